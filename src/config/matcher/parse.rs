//! Protobuf to matchers.

use super::{FullRegex, HeaderMatcher, QueryMatcher, StringMatcher};
use crate::config::ConfigError;
use crate::pb::envoy::config::route::v3 as route;
use crate::pb::envoy::r#type::matcher::v3 as matcher;

impl StringMatcher {
    /// Validates a `StringMatcher`.
    ///
    /// # Errors
    /// No pattern, a custom one, or a bad regular expression.
    pub fn parse(proto: matcher::StringMatcher) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl FullRegex {
    /// Validates a `RegexMatcher`.
    ///
    /// # Errors
    /// A bad regular expression, or one whose program is too large.
    pub fn parse(proto: matcher::RegexMatcher) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl HeaderMatcher {
    /// Validates a `HeaderMatcher`, the deprecated forms included.
    ///
    /// # Errors
    /// A bad name or condition.
    pub fn parse(proto: route::HeaderMatcher) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}

impl QueryMatcher {
    /// Validates a `QueryParameterMatcher`.
    ///
    /// # Errors
    /// A bad name or condition.
    pub fn parse(proto: route::QueryParameterMatcher) -> Result<Self, ConfigError> {
        let _ = proto;
        Err(ConfigError::unsupported("", "not parsed yet"))
    }
}
