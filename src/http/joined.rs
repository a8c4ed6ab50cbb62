//! Headers of which a message has one: Envoy knows them by name, and joins repeated ones with `,` (no space).
//!
//! The lists are what Envoy 1.40 was seen to do. All other headers stay as many as they are.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Which message a header is of: the lists differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request.
    Request,
    /// A response.
    Response,
}

/// True where repeated headers called `name` become one.
pub fn is_joined(side: Side, name: &HeaderName) -> bool {
    match side {
        Side::Request => matches!(
            name.as_str(),
            "accept"
                | "accept-encoding"
                | "access-control-request-headers"
                | "access-control-request-method"
                | "access-control-request-private-network"
                | "authorization"
                | "cache-control"
                | "cdn-loop"
                | "content-encoding"
                | "content-type"
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
                | "proxy-status"
                | "referer"
                | "te"
                | "user-agent"
                | "via"
                | "x-client-trace-id"
                | "x-envoy-attempt-count"
                | "x-envoy-decorator-operation"
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
                | "x-request-id"
        ),
        Side::Response => matches!(
            name.as_str(),
            "access-control-allow-credentials"
                | "access-control-allow-headers"
                | "access-control-allow-methods"
                | "access-control-allow-origin"
                | "access-control-allow-private-network"
                | "access-control-expose-headers"
                | "access-control-max-age"
                | "age"
                | "cache-control"
                | "content-encoding"
                | "content-type"
                | "date"
                | "etag"
                | "expires"
                | "grpc-message"
                | "grpc-status"
                | "last-modified"
                | "location"
                | "proxy-status"
                | "server"
                | "vary"
                | "via"
                | "x-envoy-attempt-count"
                | "x-envoy-decorator-operation"
                | "x-envoy-degraded"
                | "x-envoy-immediate-health-check-fail"
                | "x-envoy-upstream-canary"
                | "x-envoy-upstream-healthchecked-cluster"
                | "x-envoy-upstream-service-time"
                | "x-request-id"
        ),
    }
}

/// Adds a value, to the one that is there where the header is of those that join.
pub fn append(side: Side, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let joins = is_joined(side, &name);
    match headers.entry(name) {
        Entry::Occupied(mut entry) if joins => {
            let joined = [entry.get().as_bytes(), b",", value.as_bytes()].concat();
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                entry.insert(joined);
            }
        }
        Entry::Occupied(mut entry) => entry.append(value),
        Entry::Vacant(entry) => {
            entry.insert(value);
        }
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
        let values: Vec<&[u8]> = headers
            .get_all(&name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b","[..])) {
            headers.insert(name, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
