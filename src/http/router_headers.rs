//! `x-envoy-*` headers by which those whom it trusts tell a router how to send a request: internal clients, and plugins of
//! what they call. They end at that router; what it tells the upstream in their place is among them, too.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::order::{take_out, take_out_all};

/// How long the whole may take, in milliseconds; 0 is for ever.
pub const UPSTREAM_RQ_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
/// How long one attempt may take, in milliseconds.
pub const UPSTREAM_RQ_PER_TRY_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
/// Where it stands what takes too long is answered with 204.
pub const UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response");
/// With `true` an attempt that takes too long goes on, beside another one.
pub const HEDGE_ON_PER_TRY_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout");
/// What an upstream is told of the time that it has, in milliseconds.
pub const EXPECTED_RQ_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

static WISHES: [HeaderName; 10] = [
    UPSTREAM_RQ_PER_TRY_TIMEOUT,
    HEDGE_ON_PER_TRY_TIMEOUT,
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
    HeaderName::from_static("x-envoy-upstream-stream-duration-ms"),
];

/// Takes the timeout out. `None`: there is none that can be read; `Some(None)`: for ever.
pub fn take_timeout(headers: &mut HeaderMap) -> Option<Option<Duration>> {
    let asked = duration(headers.get(UPSTREAM_RQ_TIMEOUT)?);
    take_out(headers, &UPSTREAM_RQ_TIMEOUT);
    asked
}

/// Takes the other wishes out.
pub fn take_wishes(headers: &mut HeaderMap) {
    take_out_all(headers, |name| WISHES.contains(name));
}

/// Milliseconds, as Envoy reads them: with space around. `None`: not to be read; `Some(None)`: 0, which is for ever.
pub fn duration(value: &HeaderValue) -> Option<Option<Duration>> {
    let millis: u64 = value.to_str().ok()?.trim_ascii().parse().ok()?;
    Some((millis > 0).then(|| Duration::from_millis(millis)))
}
