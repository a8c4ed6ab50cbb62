//! Which thread this is, and one value for each.
//!
//! A proxy has one control thread (shard 0) and N workers (shards 1..=N). A [`PerWorker`] has one slot a shard.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

thread_local! {
    static SHARD: Cell<Shard> = const { Cell::new(Shard::CONTROL) };
    static WORKER: Cell<u32> = const { Cell::new(0) };
}

/// A number that the running thread has for itself, if it was ever a worker's; 0 on every other.
#[inline]
pub(super) fn worker_thread() -> u32 {
    WORKER.get()
}

/// The index of the running thread: 0 for the control side, 1..=N for workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u16);

impl Shard {
    /// The control side (also every thread that never said otherwise, such as those of a blocking pool).
    pub const CONTROL: Self = Self(0);

    /// The shard of worker `index`, counted from 0.
    pub fn worker(index: usize) -> Self {
        Self(u16::try_from(index + 1).expect("fewer than 65,535 workers"))
    }

    /// The shard of the running thread.
    #[inline]
    pub fn current() -> Self {
        SHARD.get()
    }

    /// Declares the running thread to be this shard, until told otherwise.
    pub fn enter(self) {
        static LAST: AtomicU32 = AtomicU32::new(0);
        if self != Self::CONTROL && WORKER.get() == 0 {
            let number = LAST.fetch_update(Relaxed, Relaxed, |last| last.checked_add(1));
            // Numbers are never given twice; who comes too late goes without, like the control side.
            WORKER.set(number.map_or(0, |last| last + 1));
        }
        SHARD.set(self);
    }

    /// Position in a table of [`Shards::count`] entries.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How many shards a process has: the workers and the control side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards(u16);

impl Shards {
    /// For `workers` workers (at least one).
    pub fn for_workers(workers: usize) -> Self {
        Self(u16::try_from(workers.max(1) + 1).expect("fewer than 65,535 workers"))
    }

    /// Number of shards, the control side included.
    pub fn count(self) -> usize {
        usize::from(self.0)
    }

    /// Number of workers.
    pub fn workers(self) -> usize {
        self.count() - 1
    }
}

/// One value a shard, made when the shard first asks for it.
pub struct PerWorker<T>(Box<[OnceLock<T>]>);

impl<T> PerWorker<T> {
    /// An empty slot for each of `shards`.
    pub fn new(shards: Shards) -> Self {
        Self((0..shards.count()).map(|_| OnceLock::new()).collect())
    }

    /// The running thread's value, if it was made.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        self.0.get(Shard::current().index())?.get()
    }

    /// The running thread's value, made by `init` at first use.
    #[inline]
    pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        self.0[Shard::current().index()].get_or_init(init)
    }

    /// Fills the slot of `shard`; gives the value back if it was filled before.
    pub fn set(&self, shard: Shard, value: T) -> Result<(), T> {
        self.0[shard.index()].set(value)
    }

    /// The values made so far, with their shards.
    pub fn iter(&self) -> impl Iterator<Item = (Shard, &T)> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((Shard(u16::try_from(index).ok()?), slot.get()?)))
    }
}

impl<T: fmt::Debug> fmt::Debug for PerWorker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
