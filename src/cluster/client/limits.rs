//! How long a call may take: as its caller says, or as the call's headers ask of Envoy's router, which plugins know.

use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::{Cluster, Host, Observer, Origin, UpstreamConnection};
use super::millis;
use crate::http::router_headers::{
    self, EXPECTED_RQ_TIMEOUT, HEDGE_ON_PER_TRY_TIMEOUT, UPSTREAM_RQ_PER_TRY_TIMEOUT,
    UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
};
use crate::http::{LocalReply, ReplyReason};

/// What limits a call in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the call, from the end of its request; zero is for ever.
    timeout: Duration,
    /// Of its one attempt, from when it has a connection up to the head of the answer, where that is less.
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
        // Where another attempt would be made beside the first one, this one goes on.
        let hedges = headers
            .get(HEDGE_ON_PER_TRY_TIMEOUT)
            .is_some_and(|value| value == "true");
        let attempt = headers.get(UPSTREAM_RQ_PER_TRY_TIMEOUT);
        let attempt = attempt.and_then(|value| router_headers::duration(value)?);
        let attempt =
            attempt.filter(|attempt| !hedges && (timeout.is_zero() || *attempt < timeout));
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

    /// A call begins. Its time does when `whole` comes, where that is given: the end of its request.
    pub fn begin(self, whole: Option<Moment>) -> Deadline {
        Deadline {
            limits: self,
            begun: Instant::now(),
            whole,
            connected: self.attempt.map(|_| Moment::default()),
        }
    }
}

/// A moment that comes once, and that others wait for.
#[derive(Clone, Debug, Default)]
pub struct Moment(Arc<(OnceLock<Instant>, Notify)>);

impl Moment {
    /// It is here.
    pub(super) fn come(&self) {
        let (at, waiting) = &*self.0;
        if at.set(Instant::now()).is_ok() {
            waiting.notify_waiters();
        }
    }

    /// Waits for it, and tells when it was.
    async fn passed(&self) -> Instant {
        let (at, waiting) = &*self.0;
        // Asked for before the look: it may come between the two.
        let comes = waiting.notified();
        if let Some(at) = at.get() {
            return *at;
        }
        comes.await;
        at.get().copied().unwrap_or_else(Instant::now)
    }
}

/// A connection for the attempt is ready.
impl Observer for Option<Moment> {
    fn connected(&mut self, _: &UpstreamConnection) {
        if let Some(moment) = self {
            moment.come();
        }
    }
}

/// Which limit a call exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Call,
    Attempt,
}

/// When a call must have been answered.
#[derive(Clone, Debug)]
pub struct Deadline {
    limits: Limits,
    begun: Instant,
    whole: Option<Moment>,
    /// `None` where nothing depends on it.
    connected: Option<Moment>,
}

impl Deadline {
    /// Is to hear of the attempt's connection.
    pub(super) fn connected(&self) -> Option<Moment> {
        self.connected.clone()
    }

    /// Waits for the head.
    ///
    /// # Errors
    /// It takes too long.
    pub(super) async fn head<T>(&self, head: impl Future<Output = T>) -> Result<T, Exceeded> {
        tokio::select! {
            biased;
            head = head => Ok(head),
            () = self.end() => Err(Exceeded::Call),
            () = self.end_of_attempt() => Err(Exceeded::Attempt),
        }
    }

    /// Waits for what follows the head; `None` where it takes too long.
    pub(super) async fn rest<T>(&self, rest: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            rest = rest => Some(rest),
            () = self.end() => None,
        }
    }

    async fn end(&self) {
        if self.limits.timeout.is_zero() {
            return pending().await;
        }
        let begun = self.request_end().await;
        sleep_until(begun + self.limits.timeout).await;
    }

    async fn end_of_attempt(&self) {
        let (Some(time), Some(connected)) = (self.limits.attempt, &self.connected) else {
            return pending().await;
        };
        let connected = connected.passed().await;
        let begun = self.request_end().await.max(connected);
        sleep_until(begun + time).await;
    }

    async fn request_end(&self) -> Instant {
        match &self.whole {
            Some(whole) => whole.passed().await,
            None => self.begun,
        }
    }

    /// Counts that no head came in time; what is answered in its place.
    pub(super) fn headless(
        &self,
        exceeded: Exceeded,
        cluster: &Cluster,
        host: &Host,
    ) -> LocalReply {
        let mut reply = LocalReply::from(ReplyReason::ResponseTimeout);
        if exceeded == Exceeded::Attempt {
            cluster.try_timed_out(host);
            reply.details = "upstream_per_try_timeout".into();
        } else {
            cluster.timed_out(Some(host));
        }
        // Whatever is answered, the host has failed.
        host.answered(reply.status.as_u16());
        if self.limits.alternative {
            reply.status = StatusCode::NO_CONTENT;
            reply.body = Bytes::new();
        }
        cluster.answered(None, reply.status.as_u16(), Origin::Internal);
        reply
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
        const HEDGE: &str = "x-envoy-hedge-on-per-try-timeout";
        let millis = |millis: u64| Limits::new(Duration::from_millis(millis));
        let attempt = |all: u64, one: u64| Limits {
            attempt: Some(Duration::from_millis(one)),
            ..millis(all)
        };
        let alternative = Limits {
            alternative: true,
            ..millis(1000)
        };
        let rows: [(&[(&str, &str)], Limits, Option<&str>); 12] = [
            (&[], millis(1000), Some("1000")),
            (&[(TIMEOUT, "50")], millis(50), Some("50")),
            (&[(TIMEOUT, "0")], millis(0), None),
            (&[(TIMEOUT, " 50\t")], millis(50), Some("50")),
            (&[(TIMEOUT, "soon")], millis(1000), Some("1000")),
            (&[(ATTEMPT, "50")], attempt(1000, 50), Some("50")),
            (&[(ATTEMPT, "1000")], millis(1000), Some("1000")),
            (&[(ATTEMPT, "0")], millis(1000), Some("1000")),
            (
                &[(ATTEMPT, "50"), (HEDGE, "true")],
                millis(1000),
                Some("1000"),
            ),
            (
                &[(ATTEMPT, "50"), (HEDGE, "1")],
                attempt(1000, 50),
                Some("50"),
            ),
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

    async fn is_over<T>(deadline: &Deadline, head: impl Future<Output = T>) -> Option<Exceeded> {
        deadline.head(head).await.err()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_call_begins_with_the_end_of_its_request() {
        let whole = Moment::default();
        let deadline = Limits::new(Duration::from_secs(1)).begin(Some(whole.clone()));
        let minute = || tokio::time::sleep(Duration::from_secs(60));
        assert_eq!(is_over(&deadline, minute()).await, None);
        whole.come();
        let begun = Instant::now();
        assert_eq!(is_over(&deadline, minute()).await, Some(Exceeded::Call));
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        // Once is once.
        whole.come();
        assert_eq!(deadline.rest(minute()).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_an_attempt_begins_with_its_connection() {
        let limits = Limits {
            attempt: Some(Duration::from_millis(100)),
            ..Limits::new(Duration::from_secs(120))
        };
        let deadline = limits.begin(None);
        let minute = || tokio::time::sleep(Duration::from_secs(60));
        assert_eq!(is_over(&deadline, minute()).await, None);
        deadline.connected().expect("is waited for").come();
        let begun = Instant::now();
        assert_eq!(is_over(&deadline, minute()).await, Some(Exceeded::Attempt));
        assert_eq!(begun.elapsed(), Duration::from_millis(100));
        // It is one of the head alone.
        assert_eq!(
            deadline
                .rest(tokio::time::sleep(Duration::from_secs(1)))
                .await,
            Some(())
        );
    }
}
