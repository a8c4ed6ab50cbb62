//! Full-jitter exponential back-off, as Envoy uses for its xDS streams (base 500 ms, cap 30 s) and retries.

use std::time::Duration;

/// A sequence of waits: the n-th is uniform in `[0, min(cap, base · 2ⁿ))`.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Starts at `base` and never waits longer than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base: base.max(Duration::from_millis(1)),
            cap: cap.max(base),
            attempt: 0,
        }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let limit = self
            .base
            .saturating_mul(1u32.checked_shl(self.attempt).unwrap_or(u32::MAX))
            .min(self.cap);
        self.attempt = (self.attempt + 1).min(30);
        limit.mul_f64(fastrand::f64())
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_the_doubling_limit_and_the_cap() {
        let base = Duration::from_millis(500);
        let cap = Duration::from_secs(30);
        let mut backoff = Backoff::new(base, cap);
        for attempt in 0..40u32 {
            let limit = base.saturating_mul(1 << attempt.min(20)).min(cap);
            assert!(backoff.next_wait() < limit);
        }
        backoff.reset();
        assert!(backoff.next_wait() < base);
    }
}
