//! Protobuf to [`HttpConnectionManager`].

use super::HttpConnectionManager;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[crate::config::ignored::Ignored] = &[];

impl HttpConnectionManager {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::HttpConnectionManager,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let _ = (proto, context);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
