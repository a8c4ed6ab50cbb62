//! What a VM does for its queues is held to a share of its worker, as its ticks are: a queue that feeds itself, or two that
//! feed each other, would leave nothing to the listeners there.

use std::time::Duration;

use tokio::time::Instant;

use super::roots::SHARE;
use crate::wasm::engine::TICK;

/// How far it may be ahead of its share.
const AHEAD: Duration = TICK.saturating_mul(SHARE - 1);

/// The time that messages of queues have taken.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When they have had their share and no more, if none comes.
    even: Option<Instant>,
}

impl Pace {
    /// One took from `begin` to `end`.
    pub(super) fn spend(&mut self, begin: Instant, end: Instant) {
        let even = self.even.map_or(begin, |even| even.max(begin));
        self.even = Some(even + (end - begin) * SHARE);
    }

    /// When the next may begin; `None`: at once.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        let even = self.even?;
        (even > now + AHEAD).then(|| even - AHEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_takes_more_than_a_fifth_rests() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.rests_until(start), None);
        // Short ones, one after the other: after a tick of them.
        for n in 0..4 {
            pace.spend(start + ms(n), start + ms(n + 1));
            assert_eq!(pace.rests_until(start + ms(n + 1)), None, "{n}");
        }
        pace.spend(start + ms(4), start + ms(6));
        assert_eq!(pace.rests_until(start + ms(6)), Some(start + ms(10)));
        assert_eq!(pace.rests_until(start + ms(10)), None);
        // A long one for four times as long.
        let late = start + ms(1000);
        pace.spend(late, late + ms(30));
        let again = late + ms(150) - AHEAD;
        assert_eq!(pace.rests_until(late + ms(30)), Some(again));
        pace.spend(again, again + ms(30));
        let rests = pace.rests_until(again + ms(30));
        assert_eq!(rests, Some(again + ms(150)));
    }

    #[test]
    fn who_takes_less_never_rests() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.spend(now, now + ms(2));
            assert_eq!(pace.rests_until(now + ms(2)), None);
            now += ms(10);
        }
    }
}
