//! [`Resets`]: clients that ask and reset at once, which costs an upstream more than the client.
//!
//! Envoy's rule, with the defaults of its runtime keys: `overload.premature_reset_total_stream_count`, and
//! `overload.premature_reset_min_stream_lifetime_seconds`.

use tokio::time::Instant;

/// Of fewer streams than this, half of it may be premature; of more, half of them.
const TOTAL: u32 = 500;
/// Seconds, whole ones: a stream that lived for longer is no premature one.
const LIFETIME: u64 = 1;

/// Counts the ends of a connection's streams.
#[derive(Debug, Default)]
pub(super) struct Resets {
    ended: u32,
    premature: u32,
    too_many: bool,
}

impl Resets {
    /// A stream that began then has ended. `answered`: after the head of a response.
    pub(super) fn ended(&mut self, answered: bool, begun: Instant) {
        self.ended = self.ended.saturating_add(1);
        if !answered && begun.elapsed().as_secs() <= LIFETIME {
            self.premature = self.premature.saturating_add(1);
            self.too_many |= self.premature.saturating_mul(2) >= self.ended.max(TOTAL);
        }
    }

    /// True once there were too many.
    pub(super) fn too_many(&self) -> bool {
        self.too_many
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// After how many streams of these there are too many, where every `good`th one is answered.
    async fn after(good: usize, age: u64) -> Option<usize> {
        let mut resets = Resets::default();
        let begun = Instant::now();
        tokio::time::advance(Duration::from_millis(age)).await;
        for count in 1..=2_000 {
            resets.ended(count % good == 0, begun);
            if resets.too_many() {
                return Some(count);
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_streams_may_be_reset_early() {
        // Envoy: the connection is gone with the 250th.
        assert_eq!(after(usize::MAX, 0).await, Some(250));
        assert_eq!(after(usize::MAX, 1_999).await, Some(250));
        assert_eq!(after(usize::MAX, 2_000).await, None);
        // Two of three.
        assert_eq!(after(3, 0).await, Some(374));
        assert_eq!(after(1, 0).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn many_good_streams_make_up_for_some() {
        let mut resets = Resets::default();
        for _ in 0..600 {
            resets.ended(true, Instant::now());
        }
        for _ in 0..599 {
            resets.ended(false, Instant::now());
        }
        assert!(!resets.too_many());
        resets.ended(false, Instant::now());
        assert!(resets.too_many());
    }
}
