//! Fields into a map: which repeated headers Envoy joins, and what `Connection` takes away.

use bytes::BytesMut;
use http::header::{self, Entry, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::parse::tokens;
use super::violation::Violation;

/// Which of Envoy's two lists of joined headers applies (measured on Envoy 1.40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Side {
    Request,
    Response,
}

/// Adds a field: repeated ones that Envoy keeps in a single slot are joined by a comma without space, others stay
/// separate.
pub(super) fn add(
    headers: &mut HeaderMap,
    side: Side,
    name: HeaderName,
    value: HeaderValue,
) -> Result<(), Violation> {
    match headers.try_entry(name).map_err(|_| Violation::TOO_MANY)? {
        Entry::Vacant(entry) => {
            entry.try_insert(value).map_err(|_| Violation::TOO_MANY)?;
        }
        Entry::Occupied(mut entry) if is_joined(entry.key(), side) => {
            let joined = join(entry.get(), &value);
            entry.insert(joined);
        }
        Entry::Occupied(mut entry) => entry.append(value),
    }
    Ok(())
}

/// `first,second`.
pub(super) fn join(first: &HeaderValue, second: &HeaderValue) -> HeaderValue {
    let mut joined = BytesMut::with_capacity(first.len() + 1 + second.len());
    joined.extend_from_slice(first.as_bytes());
    joined.extend_from_slice(b",");
    joined.extend_from_slice(second.as_bytes());
    HeaderValue::from_maybe_shared(joined.freeze()).expect("two valid values and a comma")
}

fn is_joined(name: &HeaderName, side: Side) -> bool {
    let name = name.as_str();
    match name {
        "connection"
        | "content-length"
        | "content-type"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-status"
        | "transfer-encoding"
        | "upgrade"
        | "via"
        | "x-request-id"
        | "x-envoy-attempt-count"
        | "x-envoy-decorator-operation"
        | "cache-control"
        | "content-encoding" => true,
        _ => match side {
            Side::Request => is_joined_in_requests(name),
            Side::Response => is_joined_in_responses(name),
        },
    }
}

fn is_joined_in_requests(name: &str) -> bool {
    matches!(
        name,
        "accept"
            | "accept-encoding"
            | "access-control-request-headers"
            | "access-control-request-method"
            | "access-control-request-private-network"
            | "authorization"
            | "expect"
            | "grpc-accept-encoding"
            | "grpc-timeout"
            | "if-match"
            | "if-modified-since"
            | "if-none-match"
            | "if-range"
            | "if-unmodified-since"
            | "origin"
            | "pragma"
            | "referer"
            | "te"
            | "user-agent"
            | "x-client-trace-id"
            | "x-forwarded-client-cert"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
            | "x-envoy-downstream-service-cluster"
            | "x-envoy-downstream-service-node"
            | "x-envoy-expected-rq-timeout-ms"
            | "x-envoy-external-address"
            | "x-envoy-force-trace"
            | "x-envoy-hedge-on-per-try-timeout"
            | "x-envoy-internal"
            | "x-envoy-ip-tags"
            | "x-envoy-is-timeout-retry"
            | "x-envoy-max-retries"
            | "x-envoy-original-host"
            | "x-envoy-original-path"
            | "x-envoy-original-url"
            | "x-envoy-retriable-header-names"
            | "x-envoy-retriable-status-codes"
            | "x-envoy-retry-grpc-on"
            | "x-envoy-retry-on"
            | "x-envoy-upstream-alt-stat-name"
            | "x-envoy-upstream-rq-per-try-timeout-ms"
            | "x-envoy-upstream-rq-timeout-alt-response"
            | "x-envoy-upstream-rq-timeout-ms"
            | "x-envoy-upstream-stream-duration-ms"
    )
}

fn is_joined_in_responses(name: &str) -> bool {
    matches!(
        name,
        "access-control-allow-credentials"
            | "access-control-allow-headers"
            | "access-control-allow-methods"
            | "access-control-allow-origin"
            | "access-control-allow-private-network"
            | "access-control-expose-headers"
            | "access-control-max-age"
            | "age"
            | "date"
            | "etag"
            | "expires"
            | "grpc-message"
            | "grpc-status"
            | "last-modified"
            | "location"
            | "server"
            | "vary"
            | "x-envoy-degraded"
            | "x-envoy-immediate-health-check-fail"
            | "x-envoy-ratelimited"
            | "x-envoy-upstream-canary"
            | "x-envoy-upstream-healthchecked-cluster"
            | "x-envoy-upstream-service-time"
    )
}

/// Envoy refuses ten nominated headers or more.
const MAX_NOMINATED: usize = 10;
/// And a nominated `TE` of this many bytes.
const MAX_TE: usize = 256;

/// Takes away the headers that a request's `Connection` nominates, by Envoy's rules: `X-Forwarded-*` may not be
/// nominated, `TE: trailers` survives. Gives back whether `host` was among them (it is kept outside the map).
pub(super) fn remove_nominated(
    headers: &mut HeaderMap,
    connection: &HeaderValue,
) -> Result<bool, Violation> {
    let mut host = false;
    let list = connection.as_bytes();
    if list.split(|byte| *byte == b',').count() >= MAX_NOMINATED
        && tokens(list).count() >= MAX_NOMINATED
    {
        return Err(Violation::CONNECTION);
    }
    for token in tokens(list) {
        let is = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
        if is("close") || is("keep-alive") || is("upgrade") || is("http2-settings") {
            continue;
        }
        if is("connection") {
            continue;
        }
        if is("x-forwarded-for")
            || is("x-forwarded-host")
            || is("x-forwarded-proto")
            || token.first() == Some(&b':')
        {
            return Err(Violation::CONNECTION);
        }
        if is("host") {
            host = true;
        } else if is("te") {
            let Some(value) = headers.get(header::TE) else {
                continue;
            };
            if value.len() >= MAX_TE {
                return Err(Violation::CONNECTION);
            }
            if tokens(value.as_bytes()).any(|item| item.eq_ignore_ascii_case(b"trailers")) {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
            } else {
                headers.remove(header::TE);
            }
        } else if let Ok(name) = HeaderName::from_bytes(token) {
            headers.remove(name);
        }
    }
    Ok(host)
}

/// True where the comma-separated value has this token, in any case.
pub(super) fn has_token(value: &HeaderValue, wanted: &[u8]) -> bool {
    tokens(value.as_bytes()).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// Joins what [`add`] would have joined, in a map that was filled otherwise.
pub(in super::super) fn join_repeated(headers: &mut HeaderMap, side: Side) {
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        let mut values = headers.get_all(&name).iter();
        let (Some(first), Some(second)) = (values.next(), values.next()) else {
            continue;
        };
        if is_joined(&name, side) {
            let joined = values.fold(join(first, second), |joined, value| join(&joined, value));
            headers.insert(name, joined);
        }
    }
}
