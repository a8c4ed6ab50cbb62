//! `envoy.config.core.v3.Address` to the model.

use super::Address;
use crate::config::ConfigError;
use crate::pb::envoy::config::core::v3 as core;

impl Address {
    /// Validates an `Address`. A host name becomes [`Address::Name`]; who cannot resolve must refuse it.
    ///
    /// # Errors
    /// No address, a bad port, or a kind that is not supported.
    pub fn parse(proto: core::Address) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
