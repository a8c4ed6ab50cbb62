//! A stand-in for the filters of higher levels, for tests of parsing: the router, CORS, and a filter that refuses.

use std::sync::Arc;

use super::any::type_name;
use super::{ConfigError, Extensions, ParseContext, Source};
use crate::config::extension::HttpFilterConfig;
use crate::pb;

/// The filters.
pub(crate) const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
/// A filter with route configuration.
pub(crate) const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
/// Its route configuration.
pub(crate) const CORS_ROUTE: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
/// A filter whose configuration is always wrong.
pub(crate) const BROKEN: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";

/// A filter that can run for an upstream.
pub(crate) const HEADER_MUTATION: &str =
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
/// A network filter.
pub(crate) const NETWORK: &str = "envoy.extensions.filters.network.wasm.v3.Wasm";

/// Knows the constants of this file.
#[derive(Debug)]
pub(crate) struct Stub;

/// A context for dynamic resources that knows the stub's filters.
pub(crate) fn context() -> ParseContext<'static> {
    ParseContext::new(&Stub, Source::Dynamic)
}

fn config(any: &pb::Any) -> HttpFilterConfig {
    HttpFilterConfig {
        type_url: any.type_url.as_str().into(),
        source: any.clone(),
        parsed: Arc::new(()),
    }
}

impl Extensions for Stub {
    fn http_filter(
        &self,
        _name: &str,
        any: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        match type_name(any) {
            ROUTER | CORS => Ok(Some(config(any))),
            BROKEN => Err(ConfigError::missing("max_request_bytes")),
            _ => Ok(None),
        }
    }

    fn upstream_filter(
        &self,
        _name: &str,
        any: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        match type_name(any) {
            HEADER_MUTATION if any.value.is_empty() => Ok(Some(config(any))),
            HEADER_MUTATION => Err(ConfigError::invalid("wrong").at("mutations")),
            _ => Ok(None),
        }
    }

    fn per_route(
        &self,
        name: &str,
        any: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        match type_name(any) {
            CORS_ROUTE => Ok(Some(config(any))),
            ROUTER => Err(ConfigError::invalid(format!(
                "The filter {name} doesn't support virtual host or route specific configurations"
            ))),
            _ => Ok(None),
        }
    }

    fn network_filter(
        &self,
        _name: &str,
        any: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok((type_name(any) == NETWORK).then(|| config(any)))
    }

    fn is_terminal(&self, config: &HttpFilterConfig) -> bool {
        pb::type_name(&config.type_url) == ROUTER
    }
}
