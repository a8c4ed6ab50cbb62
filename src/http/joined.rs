//! Headers of which a message has one: Envoy knows them by name, and joins repeated ones with `,` (no space).
//!
//! The lists are what Envoy 1.40 was seen to do, header by header. All others stay as many as they are.

use bytes::BytesMut;
use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Which part of a message a header is of: the lists differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request's head.
    Request,
    /// A response's head.
    Response,
    /// What follows a request's body: nothing is joined.
    RequestTrailers,
    /// What follows a response's body: the status of gRPC is joined.
    ResponseTrailers,
}

/// True where repeated headers called `name` become one.
pub fn is_joined(side: Side, name: &HeaderName) -> bool {
    let name = name.as_str();
    match side {
        Side::Request => is_joined_in_both(name) || is_joined_in_requests(name),
        Side::Response => is_joined_in_both(name) || is_joined_in_responses(name),
        Side::RequestTrailers => false,
        Side::ResponseTrailers => matches!(name, "grpc-message" | "grpc-status"),
    }
}

/// On which sides a name is [joined](is_joined): for who meets the same few names all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joins(u8);

impl Joins {
    /// Those of `name`.
    pub fn of(name: &HeaderName) -> Self {
        let sides = [
            Side::Request,
            Side::Response,
            Side::RequestTrailers,
            Side::ResponseTrailers,
        ];
        let joined = sides.into_iter().filter(|side| is_joined(*side, name));
        Self(joined.map(|side| 1 << side as u8).sum())
    }

    fn on(self, side: Side) -> bool {
        self.0 & (1 << side as u8) != 0
    }
}

fn is_joined_in_both(name: &str) -> bool {
    matches!(
        name,
        "cache-control"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-type"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-status"
            | "transfer-encoding"
            | "upgrade"
            | "via"
            | "x-envoy-attempt-count"
            | "x-envoy-decorator-operation"
            | "x-request-id"
    )
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
            | "cdn-loop"
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
            | "x-forwarded-client-cert"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
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

/// `first,second`, or the one that is not empty.
pub fn join(first: &HeaderValue, second: &HeaderValue) -> HeaderValue {
    // Envoy adds nothing where there is nothing, nor a comma to nothing.
    if second.is_empty() {
        return first.clone();
    }
    if first.is_empty() {
        return second.clone();
    }
    let mut joined = BytesMut::with_capacity(first.len() + 1 + second.len());
    joined.extend_from_slice(first.as_bytes());
    joined.extend_from_slice(b",");
    joined.extend_from_slice(second.as_bytes());
    HeaderValue::from_maybe_shared(joined.freeze()).expect("two valid values and a comma")
}

/// Most headers of one message: some way below what a map can hold, which panics beyond that, so that there is always
/// room for those that we set ourselves.
pub const MOST: usize = 16 << 10;

/// Adds a value, to the one that is there where the header is of those that join. Beyond [`MOST`] nothing is added.
pub fn append(side: Side, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let full = headers.len() >= MOST;
    match headers.try_entry(name) {
        Ok(Entry::Occupied(mut entry)) if is_joined(side, entry.key()) => {
            let joined = join(entry.get(), &value);
            entry.insert(joined);
        }
        Ok(Entry::Occupied(mut entry)) if !full => entry.append(value),
        Ok(Entry::Vacant(entry)) if !full => {
            // There is room.
            let _ = entry.try_insert(value);
        }
        _ => {}
    }
}

/// As [`append`], of a name that `joins` is known of.
#[inline]
pub fn append_known(
    side: Side,
    joins: Joins,
    headers: &mut HeaderMap,
    name: &HeaderName,
    value: HeaderValue,
) {
    if joins.on(side) {
        append(side, headers, name.clone(), value);
    } else if headers.len() < MOST {
        // There is room. The name is copied only where the map has none of it.
        let _ = headers.try_append(name, value);
    }
}

/// Sets a value in the place of all of its name. Beyond [`MOST`] nothing is added.
pub fn set(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if headers.len() < MOST || headers.contains_key(&name) {
        // There is room.
        let _ = headers.try_insert(name, value);
    }
}

/// Joins what was received repeated. Costs nothing where no header is.
pub fn join_repeated(side: Side, headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    let repeated: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_joined(side, name) && headers.get_all(*name).iter().nth(1).is_some())
        .cloned()
        .collect();
    for name in repeated {
        let mut values = headers.get_all(&name).iter();
        let joined = values
            .next()
            .cloned()
            .map(|first| values.fold(first, |joined, value| join(&joined, value)));
        if let Some(joined) = joined {
            headers.insert(name, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_more_headers_than_a_map_can_hold() {
        let mut headers = HeaderMap::new();
        for number in 0..40_000 {
            let name = HeaderName::try_from(format!("x-{number}")).expect("a name");
            let value = HeaderValue::from(number);
            match number % 2 {
                0 => append(Side::Request, &mut headers, name, value),
                _ => set(&mut headers, name, value),
            }
        }
        assert_eq!(headers.len(), MOST);
        let first = HeaderName::from_static("x-0");
        set(&mut headers, first.clone(), HeaderValue::from_static("new"));
        append(Side::Request, &mut headers, first, HeaderValue::from(1));
        assert_eq!(
            (&headers["x-0"], headers.len()),
            (&"new".parse().expect("a value"), MOST)
        );
        // What we set ourselves has its place.
        headers.insert("x-ours", HeaderValue::from_static(""));
    }

    #[test]
    fn known_headers_join_and_others_stay() {
        let mut headers = HeaderMap::new();
        for name in ["accept", "x-unknown", "cookie"] {
            for value in ["a", "b"] {
                headers.append(
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
            }
        }
        join_repeated(Side::Request, &mut headers);
        assert_eq!(headers["accept"], "a,b");
        assert_eq!(headers.get_all("x-unknown").iter().count(), 2);
        assert_eq!(headers.get_all("cookie").iter().count(), 2);
    }

    #[test]
    fn a_known_name_is_appended_as_any_other() {
        for side in [
            Side::Request,
            Side::Response,
            Side::RequestTrailers,
            Side::ResponseTrailers,
        ] {
            for name in ["via", "accept", "vary", "grpc-status", "x-other"] {
                let name = HeaderName::from_static(name);
                let (mut one, mut other) = (HeaderMap::new(), HeaderMap::new());
                for value in ["a", "b", "c"].map(HeaderValue::from_static) {
                    append(side, &mut one, name.clone(), value.clone());
                    append_known(side, Joins::of(&name), &mut other, &name, value);
                }
                assert_eq!(one, other, "{side:?} {name}");
            }
        }
        let (name, mut full) = (HeaderName::from_static("x-other"), HeaderMap::new());
        for number in 0..MOST + 2 {
            let value = HeaderValue::from(number);
            append_known(Side::Request, Joins::of(&name), &mut full, &name, value);
        }
        assert_eq!(full.len(), MOST);
    }

    #[test]
    fn nothing_adds_nothing() {
        let joined = |first, second| {
            let value = HeaderValue::from_static;
            join(&value(first), &value(second))
        };
        assert_eq!(joined("a", ""), "a");
        assert_eq!(joined("", "b"), "b");
        assert_eq!(joined("", ""), "");
        assert_eq!(joined("a", "b"), "a,b");
    }

    #[test]
    fn the_lists_differ_by_side() {
        let vary = HeaderName::from_static("vary");
        assert!(is_joined(Side::Response, &vary));
        assert!(!is_joined(Side::Request, &vary));
        let mut headers = HeaderMap::new();
        append(
            Side::Request,
            &mut headers,
            vary.clone(),
            HeaderValue::from_static("a"),
        );
        append(
            Side::Request,
            &mut headers,
            vary.clone(),
            HeaderValue::from_static("b"),
        );
        assert_eq!(headers.get_all(vary).iter().count(), 2);
    }
    #[test]
    fn trailers_are_joined_less() {
        let name = HeaderName::from_static;
        for (header, sides) in [
            ("grpc-status", [false, true, false, true]),
            ("vary", [false, true, false, false]),
            ("via", [true, true, false, false]),
            ("cdn-loop", [true, false, false, false]),
            ("x-envoy-original-url", [true, false, false, false]),
            ("x-envoy-ratelimited", [false, true, false, false]),
            ("x-other", [false; 4]),
        ] {
            let found = [
                Side::Request,
                Side::Response,
                Side::RequestTrailers,
                Side::ResponseTrailers,
            ]
            .map(|side| is_joined(side, &name(header)));
            assert_eq!(found, sides, "{header}");
        }
    }
}
