//! `ConfigSource` and `GrpcService` to the model.

use super::{ConfigSource, GrpcService};
use crate::config::ConfigError;
use crate::pb::envoy::config::core::v3 as core;

impl ConfigSource {
    /// Validates a `ConfigSource`.
    ///
    /// # Errors
    /// No source, or one that is not supported (REST).
    pub fn parse(proto: core::ConfigSource) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }

    /// Validates an `ApiConfigSource` (also the bootstrap's `ads_config`).
    ///
    /// # Errors
    /// As [`ConfigSource::parse`].
    pub fn parse_api(
        proto: core::ApiConfigSource,
        initial_fetch_timeout: Option<std::time::Duration>,
    ) -> Result<Self, ConfigError> {
        let _ = (proto, initial_fetch_timeout);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl GrpcService {
    /// Validates a `GrpcService`.
    ///
    /// # Errors
    /// No target, or credentials that are not supported.
    pub fn parse(proto: core::GrpcService) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
