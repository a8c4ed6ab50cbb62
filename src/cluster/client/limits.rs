//! How long a call may take: as its caller says, or as the call's headers ask of Envoy's router, which plugins know.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::super::{Cluster, Host};
use super::millis;
use crate::http::router_headers::{
    self, EXPECTED_RQ_TIMEOUT, UPSTREAM_RQ_PER_TRY_TIMEOUT, UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
};
use crate::http::{LocalReply, ReplyReason};

/// What limits a call in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the call; zero is for ever.
    timeout: Duration,
    /// Of its one attempt, up to the head of the answer, where that is less.
    attempt: Option<Duration>,
    /// What takes too long is answered with 204.
    alternative: bool,
}

impl Limits {
    /// No more than `timeout`; zero is for ever.
    pub const fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            attempt: None,
            alternative: false,
        }
    }

    /// Those that `headers` ask for, in the place of `timeout`. What is meant for the router is taken out of the headers, and
    /// the upstream is told how long it has.
    pub fn take(headers: &mut HeaderMap, timeout: Duration) -> Self {
        let timeout = match router_headers::take_timeout(headers) {
            Some(asked) => asked.unwrap_or_default(),
            None => timeout,
        };
        let attempt = headers.get(UPSTREAM_RQ_PER_TRY_TIMEOUT);
        let attempt = attempt.and_then(|value| router_headers::duration(value)?);
        let attempt = attempt.filter(|attempt| timeout.is_zero() || *attempt < timeout);
        let alternative = headers.contains_key(UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE);
        router_headers::take_wishes(headers);
        let told = attempt.unwrap_or(timeout);
        if !told.is_zero() {
            headers.insert(EXPECTED_RQ_TIMEOUT, millis(told).into());
        }
        Self {
            timeout,
            attempt,
            alternative,
        }
    }

    /// The time begins.
    pub fn begin(self) -> Deadline {
        let now = Instant::now();
        Deadline {
            head: self.attempt.map(|time| now + time),
            end: (!self.timeout.is_zero()).then(|| now + self.timeout),
            alternative: self.alternative,
        }
    }
}

/// When a call must have been answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The head; `None` as `end`.
    head: Option<Instant>,
    /// All of it; `None` is never.
    end: Option<Instant>,
    alternative: bool,
}

impl Deadline {
    /// Waits for the head; `None` where the time for that is over first.
    pub(super) async fn head<T>(self, future: impl Future<Output = T>) -> Option<T> {
        until(self.head.or(self.end), future).await
    }

    /// Waits for what follows the head; `None` where the time is over first.
    pub(super) async fn rest<T>(self, future: impl Future<Output = T>) -> Option<T> {
        until(self.end, future).await
    }

    /// Counts that no head came in time; what is answered in its place.
    pub(super) fn headless(self, cluster: &Cluster, host: &Host) -> LocalReply {
        let mut reply = LocalReply::from(ReplyReason::ResponseTimeout);
        if self.head.is_some() {
            cluster.try_timed_out(host);
            reply.details = "upstream_per_try_timeout".into();
        } else {
            cluster.timed_out(Some(host));
        }
        if self.alternative {
            reply.status = StatusCode::NO_CONTENT;
            reply.body = Bytes::new();
        }
        reply
    }
}

async fn until<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    /// What the headers ask for beside a timeout of a second: how long a call may take, and what the upstream is told.
    #[test]
    fn headers_ask_for_limits() {
        const TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";
        const ATTEMPT: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
        let millis = |millis: u64| Limits::new(Duration::from_millis(millis));
        let attempt = |all: u64, one: u64| Limits {
            attempt: Some(Duration::from_millis(one)),
            ..millis(all)
        };
        let alternative = Limits {
            alternative: true,
            ..millis(1000)
        };
        let rows: [(&[(&str, &str)], Limits, Option<&str>); 9] = [
            (&[], millis(1000), Some("1000")),
            (&[(TIMEOUT, "50")], millis(50), Some("50")),
            (&[(TIMEOUT, "0")], millis(0), None),
            (&[(TIMEOUT, "soon")], millis(1000), Some("1000")),
            (&[(ATTEMPT, "50")], attempt(1000, 50), Some("50")),
            (&[(ATTEMPT, "1000")], millis(1000), Some("1000")),
            (&[(ATTEMPT, "0")], millis(1000), Some("1000")),
            (
                &[(ATTEMPT, "50"), (TIMEOUT, "0")],
                attempt(0, 50),
                Some("50"),
            ),
            (
                &[
                    ("x-envoy-upstream-rq-timeout-alt-response", "1"),
                    ("x-envoy-retry-on", "5xx"),
                    ("x-envoy-max-retries", "3"),
                ],
                alternative,
                Some("1000"),
            ),
        ];
        for (asked, limits, told) in rows {
            let mut headers = HeaderMap::new();
            for (name, value) in asked {
                let name = HeaderName::from_static(name);
                headers.insert(name, http::HeaderValue::from_static(value));
            }
            let taken = Limits::take(&mut headers, Duration::from_secs(1));
            assert_eq!(taken, limits, "{asked:?}");
            let value = headers.remove(EXPECTED_RQ_TIMEOUT);
            let value = value.as_ref().map(|value| value.to_str().expect("text"));
            assert_eq!(value, told, "{asked:?}");
            assert!(headers.is_empty(), "{asked:?}: {headers:?}");
        }
    }
}
