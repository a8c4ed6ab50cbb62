//! The router's settings, and the strict checks of trusted headers.

use http::{HeaderMap, HeaderName, StatusCode};

use super::proto;
use crate::config::ConfigError;
use crate::config::http_connection_manager::{HttpFilter, upstream};
use crate::filter::Registry;
use crate::http::router_headers::{
    EXPECTED_RQ_TIMEOUT, UPSTREAM_RQ_PER_TRY_TIMEOUT, UPSTREAM_RQ_TIMEOUT,
};
use crate::http::{LocalReply, ResponseFlag};

/// The router's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `dynamic_stats`: count answers by code; default true.
    pub dynamic_stats: bool,
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `strict_check_headers`: refuse requests in which one of these does not parse.
    pub strict_check_headers: Vec<HeaderName>,
    /// `respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// `suppress_grpc_request_failure_code_stats`.
    pub suppress_grpc_failure_stats: bool,
    /// `upstream_http_filters`, without the codec at their end.
    pub upstream_filters: Vec<HttpFilter>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dynamic_stats: true,
            suppress_envoy_headers: false,
            strict_check_headers: Vec::new(),
            respect_expected_rq_timeout: false,
            suppress_grpc_failure_stats: false,
            upstream_filters: Vec::new(),
        }
    }
}

const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");

impl Config {
    /// Validates the message.
    ///
    /// # Errors
    /// A field that is not supported, or a header that cannot be checked.
    #[allow(deprecated, reason = "every field is looked at")]
    pub(super) fn parse(proto: proto::Router) -> Result<Self, ConfigError> {
        let proto::Router {
            dynamic_stats,
            start_child_span: _,
            upstream_log,
            upstream_log_options,
            suppress_envoy_headers,
            strict_check_headers,
            respect_expected_rq_timeout,
            suppress_grpc_request_failure_code_stats,
            upstream_http_filters,
            reject_connect_request_early_data: _,
        } = proto;
        if !upstream_log.is_empty() || upstream_log_options.is_some() {
            return Err(ConfigError::unsupported(
                "upstream_log",
                "use the connection manager's access_log",
            ));
        }
        let upstream_filters = if upstream_http_filters.is_empty() {
            Vec::new()
        } else {
            upstream::of_router(upstream_http_filters, &Registry::new())?
        };
        let strict_check_headers = strict_check_headers
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let name = HeaderName::try_from(name.as_str()).ok();
                name.filter(|name| {
                    [
                        UPSTREAM_RQ_TIMEOUT,
                        UPSTREAM_RQ_PER_TRY_TIMEOUT,
                        MAX_RETRIES,
                        RETRY_ON,
                        RETRY_GRPC_ON,
                    ]
                    .contains(name)
                })
                .ok_or_else(|| {
                    ConfigError::invalid("value must be in list [x-envoy-upstream-rq-timeout-ms, x-envoy-upstream-rq-per-try-timeout-ms, x-envoy-max-retries, x-envoy-retry-grpc-on, x-envoy-retry-on]")
                        .at_index("strict_check_headers", index)
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            dynamic_stats: dynamic_stats.is_none_or(|value| value.value),
            suppress_envoy_headers,
            strict_check_headers,
            respect_expected_rq_timeout,
            suppress_grpc_failure_stats: suppress_grpc_request_failure_code_stats,
            upstream_filters,
        })
    }
}

/// Refuses a request in which one of `names` is present and has no meaning.
pub(super) fn strict_check(
    names: &[HeaderName],
    headers: &HeaderMap,
) -> Result<(), Box<LocalReply>> {
    for name in names {
        let Some(value) = headers.get(name) else {
            continue;
        };
        let text = value.to_str().unwrap_or_default();
        let valid = if *name == RETRY_ON {
            text.split(',').all(|policy| {
                RETRY_POLICIES.contains(&policy.trim()) || GRPC_POLICIES.contains(&policy.trim())
            })
        } else if *name == RETRY_GRPC_ON {
            text.split(',')
                .all(|policy| GRPC_POLICIES.contains(&policy.trim()))
        } else {
            text.parse::<u64>().is_ok()
        };
        if !valid {
            let body = format!("invalid header '{name}' with value '{text}'");
            let reply = LocalReply::new(
                StatusCode::BAD_REQUEST,
                body,
                "request_headers_failed_strict_check",
            );
            return Err(Box::new(
                reply.flag(ResponseFlag::InvalidEnvoyRequestHeaders),
            ));
        }
    }
    debug_assert!(!names.contains(&EXPECTED_RQ_TIMEOUT));
    Ok(())
}

const RETRY_POLICIES: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
];

const GRPC_POLICIES: &[&str] = &[
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
