//! The door through which `config` (level 1) validates what only higher levels know: the filters.
//!
//! `app` passes the filter registry in as [`Extensions`]; tests pass a stub. There is no global registry.

pub(super) mod parse;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

pub use parse::parse_typed_extension;

use super::error::ConfigError;
use crate::pb;

/// The parsed configuration of an HTTP filter, as its factory made it.
///
/// Equality is that of the `Any` it came from (see [`HttpFilterConfig`]), so implementors need none.
pub trait ExtensionConfig: Any + Debug + Send + Sync {
    /// For the factory that made it, to get its own type back.
    fn as_any(&self) -> &dyn Any;
}

impl<T: Any + Debug + Send + Sync> ExtensionConfig for T {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An HTTP filter's validated configuration with the message it came from.
#[derive(Clone, Debug)]
pub struct HttpFilterConfig {
    /// The full type URL (`type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors`), with `TypedStruct` resolved.
    pub type_url: Box<str>,
    /// The bytes of the message: what equality means.
    pub source: pb::Any,
    /// What the factory made of it.
    pub parsed: Arc<dyn ExtensionConfig>,
}

impl PartialEq for HttpFilterConfig {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// What a route, virtual host or weighted cluster says of one filter.
#[derive(Clone, Debug)]
pub struct PerRouteConfig {
    /// `FilterConfig.disabled`: skip the filter. `Some(false)` switches a filter on that the chain holds disabled.
    pub disabled: Option<bool>,
    /// The filter's own message, with the message it came from; `None` for an empty `FilterConfig`.
    pub config: Option<HttpFilterConfig>,
}

impl PartialEq for PerRouteConfig {
    fn eq(&self, other: &Self) -> bool {
        self.disabled == other.disabled && self.config == other.config
    }
}

/// What the parser of resources must ask of the filters.
pub trait Extensions: Send + Sync {
    /// Parses the configuration of the HTTP filter called `name`.
    ///
    /// # Errors
    /// `Ok(None)` where no factory knows the type (the caller decides by `is_optional`); `Err` where it is known and wrong.
    fn http_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError>;

    /// Parses the configuration of an HTTP filter called `name` that runs for each request to an upstream. `Ok(None)`: no
    /// factory of such filters knows the type.
    ///
    /// # Errors
    /// Where it is known and wrong.
    fn upstream_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let _ = (name, config);
        Ok(None)
    }

    /// Parses what `typed_per_filter_config` holds for one filter, the `FilterConfig` wrapper excepted.
    ///
    /// # Errors
    /// As [`Extensions::http_filter`].
    fn per_route(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError>;

    /// Parses the configuration of a network filter that is not terminal. `Ok(None)`: no factory knows the type.
    ///
    /// # Errors
    /// Where it is known and wrong.
    fn network_filter(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let _ = (name, config);
        Ok(None)
    }

    /// Parses an access logger that is a plugin. `Ok(None)`: it is none.
    ///
    /// # Errors
    /// Where it is one, and wrong.
    fn access_logger(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let _ = (name, config);
        Ok(None)
    }

    /// Parses a plugin of `bootstrap_extensions` that runs beside the traffic. `Ok(None)`: it is none.
    ///
    /// # Errors
    /// Where it is one, and wrong.
    fn bootstrap_service(
        &self,
        config: &pb::Any,
    ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
        let _ = config;
        Ok(None)
    }

    /// Parses a plugin of `stats_sinks`. `Ok(None)`: it is none.
    ///
    /// # Errors
    /// Where it is one, and wrong.
    fn stats_sink(
        &self,
        config: &pb::Any,
    ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
        let _ = config;
        Ok(None)
    }

    /// True for the terminal filter (`envoy.filters.http.router`), which must be the last, and only the last.
    fn is_terminal(&self, config: &HttpFilterConfig) -> bool;
}

/// True where a discovered filter may be of `type_url`: `allowed` are the `type_urls` of who refers to it.
pub fn allows(allowed: &[impl AsRef<str>], type_url: &str) -> bool {
    let name = pb::type_name(type_url);
    allowed
        .iter()
        .any(|allowed| pb::type_name(allowed.as_ref()) == name)
}

/// [`allows`], with Envoy's words where it does not.
///
/// # Errors
/// Names both sides.
pub fn check_type(allowed: &[impl AsRef<str>], type_url: &str) -> Result<(), ConfigError> {
    if allows(allowed, type_url) {
        return Ok(());
    }
    let expected: Vec<&str> = allowed
        .iter()
        .map(|allowed| pb::type_name(allowed.as_ref()))
        .collect();
    Err(ConfigError::invalid(format!(
        "Error: filter config has type URL {} but expect {}.",
        pb::type_name(type_url),
        expected.join(", ")
    )))
}
