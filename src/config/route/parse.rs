//! Protobuf to [`RouteConfig`].

use super::RouteConfig;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::route::v3 as proto;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[crate::config::ignored::Ignored] = &[];

impl RouteConfig {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::RouteConfiguration,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let _ = (proto, context);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
