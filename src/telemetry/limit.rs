//! Saying the same thing over and over, but not as often.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lets one of many equal warnings through, and knows how many it held back.
///
/// ```ignore
/// if let Some(held_back) = self.limit.check() {
///     tracing::warn!(held_back, "cannot reach …");
/// }
/// ```
#[derive(Debug)]
pub struct Limit {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Limit {
    /// At most one in each `period`.
    pub const fn new(period: Duration) -> Self {
        Self {
            period,
            state: Mutex::new(State {
                last: None,
                held_back: 0,
            }),
        }
    }

    /// `Some` where it may be said now, with the number of times that it was held back since it was last said.
    pub fn check(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state
            .last
            .is_some_and(|last| now.duration_since(last) < self.period)
        {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_in_a_period_is_let_through() {
        let limit = Limit::new(Duration::from_secs(5));
        assert_eq!(limit.check(), Some(0));
        assert_eq!((limit.check(), limit.check()), (None, None));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(limit.check(), Some(2));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(limit.check(), Some(0));
    }
}
