//! Protobuf to [`Listener`].

use super::Listener;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::listener::v3 as proto;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[crate::config::ignored::Ignored] = &[];

impl Listener {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(proto: proto::Listener, context: &ParseContext<'_>) -> Result<Self, ConfigError> {
        let _ = (proto, context);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
