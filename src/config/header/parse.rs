//! Protobuf to header mutations.

use super::{HeaderMutations, HeaderTarget, HeaderValueOption};
use crate::config::ConfigError;
use crate::pb::envoy::config::core::v3 as core;

impl HeaderMutations {
    /// Validates `…_headers_to_add` and `…_headers_to_remove`; `prefix` (`request_headers` and the like) begins their
    /// names in errors.
    ///
    /// # Errors
    /// A bad name, value or format, or a header that must not be touched here.
    pub fn parse(
        add: Vec<core::HeaderValueOption>,
        remove: Vec<String>,
        prefix: &str,
    ) -> Result<Self, ConfigError> {
        let _ = (add, remove, prefix);
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl HeaderValueOption {
    /// Validates one `HeaderValueOption`.
    ///
    /// # Errors
    /// A bad name, value or format.
    pub fn parse(proto: core::HeaderValueOption) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl HeaderTarget {
    /// Reads a header name; pseudo-headers by their names, `host` is `:authority`.
    ///
    /// # Errors
    /// No header name.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        let _ = name;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
