//! Timeouts that requests and routes ask for: `grpc-timeout` (up to eight digits and a unit), and the longest duration.

use std::time::Duration;

use http::HeaderMap;

use crate::config::route::{ForwardAction, GrpcTimeout, StreamDuration};
pub(super) use crate::http::grpc::{TIMEOUT as GRPC_TIMEOUT, timeout as to_grpc};
use crate::http::order::take_out;

/// The timeout of a gRPC request on a route with `max_grpc_timeout`.
pub(super) fn of_grpc(headers: &HeaderMap, rule: &GrpcTimeout) -> Option<Duration> {
    let asked = asked_by_grpc(headers).filter(|asked| !asked.is_zero());
    // An offset that leaves nothing does not count.
    let asked = asked.map(|asked| match asked.checked_sub(rule.offset) {
        Some(rest) if !rest.is_zero() => rest,
        _ => asked,
    });
    match (asked, rule.max) {
        (Some(asked), Some(max)) => Some(asked.min(max)),
        (Some(asked), None) => Some(asked),
        (None, max) => max,
    }
}

/// How long an exchange on a route may last: as a `grpc-timeout` says where the route goes by it, else as the route or the
/// connection manager (`fallback`) says. `None` is for ever.
pub(in crate::filter) fn max_duration(
    headers: &HeaderMap,
    action: &ForwardAction,
    fallback: Option<Duration>,
) -> Option<Duration> {
    let Some(rule) = &action.stream_duration else {
        return fallback;
    };
    if let Some(grpc) = &rule.grpc
        && let Some(asked) = asked_by_grpc(headers)
    {
        let capped = grpc.max.map_or(asked, |max| asked.min(max));
        return Some(capped.saturating_sub(grpc.offset));
    }
    rule.max.unwrap_or(fallback)
}

/// Tells the upstream of a gRPC request how long the exchange may last on a route that says so, as Envoy does: what has no
/// limit has no `grpc-timeout` either.
pub(super) fn tell(headers: &mut HeaderMap, rule: &StreamDuration, duration: Option<Duration>) {
    match duration {
        Some(duration) if !duration.is_zero() => {
            headers.insert(GRPC_TIMEOUT, to_grpc(duration));
        }
        None if rule.max.is_none() => {}
        _ => {
            take_out(headers, &GRPC_TIMEOUT);
        }
    }
}

/// What a `grpc-timeout` asks for, if there is one that can be read.
fn asked_by_grpc(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get(GRPC_TIMEOUT)
        .and_then(|value| from_grpc(value.as_bytes()))
}

fn from_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        // Envoy counts in milliseconds, rounded up.
        b'u' => Some(Duration::from_millis(number.div_ceil(1_000))),
        b'n' => Some(Duration::from_millis(number.div_ceil(1_000_000))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_a_grpc_client_asks_for_is_capped() {
        let rule = |max: u64, offset: u64| GrpcTimeout {
            max: (max > 0).then(|| Duration::from_millis(max)),
            offset: Duration::from_millis(offset),
        };
        let cases = [
            (Some("500m"), rule(0, 0), Some(500)),
            (Some("2S"), rule(1000, 0), Some(1000)),
            (Some("500m"), rule(1000, 100), Some(400)),
            (Some("50m"), rule(1000, 100), Some(50)),
            (Some("1500u"), rule(0, 0), Some(2)),
            (Some("1H"), rule(0, 0), Some(3_600_000)),
            (Some("123456789m"), rule(70, 0), Some(70)),
            (Some("m"), rule(70, 0), Some(70)),
            (None, rule(0, 0), None),
            (None, rule(70, 0), Some(70)),
        ];
        for (asked, rule, millis) in cases {
            let mut headers = HeaderMap::new();
            if let Some(asked) = asked {
                headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(asked));
            }
            let expected = millis.map(Duration::from_millis);
            assert_eq!(of_grpc(&headers, &rule), expected, "{asked:?}");
        }
        assert_eq!(to_grpc(Duration::from_millis(1500)), "1500m");
        assert_eq!(to_grpc(Duration::from_secs(200_000)), "200000S");
    }

    #[test]
    fn the_upstream_of_grpc_is_told_the_longest_duration() {
        let rule = |max| StreamDuration { max, grpc: None };
        let two = Duration::from_secs(2);
        for (rule, duration, told) in [
            (rule(Some(Some(two))), Some(two), Some("2000m")),
            (rule(None), Some(two), Some("2000m")),
            (rule(None), None, Some("1S")),
            (rule(Some(None)), None, None),
            (rule(None), Some(Duration::ZERO), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
            tell(&mut headers, &rule, duration);
            let found = headers.get(GRPC_TIMEOUT);
            assert_eq!(found.map(HeaderValue::as_bytes), told.map(str::as_bytes));
        }
    }

    #[test]
    fn the_longest_duration_is_the_routes_or_what_grpc_asks_for() {
        use crate::config::route::StreamDuration;
        let second = Duration::from_secs;
        let grpc = |max: u64, offset: u64| {
            Some(GrpcTimeout {
                max: (max > 0).then(|| second(max)),
                offset: second(offset),
            })
        };
        let rule = |max, grpc| Some(StreamDuration { max, grpc });
        let cases = [
            (None, Some("3S"), Some(9)),
            (rule(None, None), None, Some(9)),
            (rule(Some(None), None), None, None),
            (rule(Some(Some(second(5))), None), Some("3S"), Some(5)),
            (rule(Some(Some(second(5))), grpc(0, 0)), Some("7S"), Some(7)),
            (rule(Some(Some(second(5))), grpc(0, 0)), None, Some(5)),
            (rule(None, grpc(2, 0)), Some("7S"), Some(2)),
            (rule(None, grpc(0, 1)), Some("7S"), Some(6)),
            (rule(None, grpc(0, 8)), Some("7S"), Some(0)),
            (rule(Some(None), grpc(0, 0)), Some("7x"), None),
        ];
        for (stream_duration, asked, expected) in cases {
            let crate::config::route::Action::Forward(mut action) =
                crate::filter::testing::forward("c")
            else {
                unreachable!("it forwards")
            };
            action.stream_duration = stream_duration;
            let mut headers = HeaderMap::new();
            if let Some(asked) = asked {
                headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(asked));
            }
            let found = max_duration(&headers, &action, Some(second(9)));
            assert_eq!(found, expected.map(second), "{stream_duration:?} {asked:?}");
        }
    }
}
