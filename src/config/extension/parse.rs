//! `TypedExtensionConfig` (ECDS) and `typed_per_filter_config` to the model.

use super::HttpFilterConfig;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::core::v3::TypedExtensionConfig;

/// Validates an ECDS resource: its name, and the filter's configuration.
///
/// # Errors
/// A type that no factory knows, or a configuration that its factory refuses.
pub fn parse_typed_extension(
    proto: TypedExtensionConfig,
    context: &ParseContext<'_>,
) -> Result<(Box<str>, HttpFilterConfig), ConfigError> {
    let _ = (proto, context);
    Err(ConfigError::unsupported("", "not parsed yet"))
}
