//! Earliest deadline first: the scheduler behind weighted hosts and weighted localities.
//!
//! Each entry has a deadline; the earliest is picked and is due again `1/weight` later, so that picks are spread in
//! proportion to weight and evenly in time. The first deadlines are random within their period, so that workers
//! (and proxies) do not all begin with the same one.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::base::{PerWorker, Shard, Shards, WorkerCell};

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: f64,
    host: u32,
}

// The heap gives the greatest first: the earliest deadline, then the lowest index, is greatest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .deadline
            .total_cmp(&self.deadline)
            .then(other.host.cmp(&self.host))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

/// A schedule a worker.
#[derive(Debug)]
pub(in crate::cluster) struct Edf {
    heaps: PerWorker<WorkerCell<BinaryHeap<Entry>>>,
    weights: Box<[f64]>,
}

impl Edf {
    /// `weights` are above zero.
    pub(in crate::cluster) fn new(
        weights: impl IntoIterator<Item = f64>,
        shards: Shards,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let weights: Box<[f64]> = weights.into_iter().collect();
        let heaps = PerWorker::new(shards);
        // Made here, on the control side, for all workers: a pick never builds anything.
        for index in 0..shards.count() {
            let shard = index.checked_sub(1).map_or(Shard::CONTROL, Shard::worker);
            let heap: BinaryHeap<Entry> = (0u32..)
                .zip(&weights)
                .map(|(host, weight)| Entry {
                    deadline: rng.f64() / weight,
                    host,
                })
                .collect();
            heaps
                .set(shard, WorkerCell::new(heap))
                .expect("each shard once");
        }
        Self { heaps, weights }
    }

    /// The index of the entry that is due; `weight` gives what its weight is worth at the moment.
    ///
    /// The control side may be several threads: where two meet, the second picks by chance.
    pub(in crate::cluster) fn pick(
        &self,
        rng: &mut fastrand::Rng,
        weight: impl FnOnce(usize, f64) -> f64,
    ) -> usize {
        let heap = self.heaps.get().and_then(WorkerCell::try_lock);
        let Some(mut heap) = heap else {
            return rng.usize(..self.weights.len());
        };
        let mut entry = heap.peek_mut().expect("nobody schedules nothing");
        let index = entry.host as usize;
        let weight = weight(index, self.weights[index]);
        entry.deadline += 1.0 / weight;
        // Dropping the guard puts the entry where it now belongs.
        drop(entry);
        index
    }
}
