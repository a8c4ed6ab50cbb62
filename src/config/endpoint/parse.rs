//! Protobuf to [`Endpoints`].

use super::Endpoints;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::endpoint::v3 as proto;

impl Endpoints {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::ClusterLoadAssignment,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let _ = (proto, context);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
