//! An attempt at an upstream, as far as it is more than the stream itself: the filters that run for it alone.
//!
//! Such filters see the stream, and keep their state in slots of their own, numbered from [`UPSTREAM_SLOTS`]. They end with
//! the attempt, which is mostly before the stream does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{Ending, Stream};

/// The numbers of upstream filters' slots begin here.
pub const UPSTREAM_SLOTS: usize = 1 << 24;

/// True for the slot of an upstream filter.
pub fn is_upstream(slot: usize) -> bool {
    slot >= UPSTREAM_SLOTS
}

/// A filter's state.
pub(super) type Slot = Option<Box<dyn Any + Send>>;

pub(super) struct Attempt {
    /// Who hears of its end; taken out then.
    ending: Option<Arc<dyn Ending>>,
    slots: Vec<Slot>,
}

impl Stream {
    /// An attempt begins, with `filters` filters. `ending` hears once of its end, which comes with that of the stream at the
    /// latest.
    pub fn begin_attempt(self: &Arc<Self>, ending: Arc<dyn Ending>, filters: usize) {
        self.end_attempt();
        let mut slots = Vec::new();
        slots.resize_with(filters, || None);
        *self.attempt.lock() = Some(Box::new(Attempt {
            ending: Some(ending),
            slots,
        }));
    }

    /// The attempt has ended, if there is one that has not yet.
    pub fn end_attempt(self: &Arc<Self>) {
        let ending = match &mut *self.attempt.lock() {
            Some(attempt) => attempt.ending.take(),
            None => None,
        };
        // As at a stream's end, this may run inside a drop.
        if let Some(ending) = ending
            && catch_unwind(AssertUnwindSafe(|| ending.end(self))).is_err()
        {
            tracing::error!("an attempt's end panicked");
        }
    }

    /// Runs `f` on a slot: one of the chain's filters, or one of the attempt's.
    pub(super) fn slot<R>(&self, slot: usize, f: impl FnOnce(&mut Slot) -> R) -> R {
        if !is_upstream(slot) {
            return f(&mut self.slots.lock()[slot]);
        }
        let mut attempt = self.attempt.lock();
        let attempt = attempt
            .as_mut()
            .expect("an upstream filter runs in an attempt");
        f(&mut attempt.slots[slot - UPSTREAM_SLOTS])
    }
}
