//! Round robin: hosts in turn, each worker from a start of its own; by weight where weights differ.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::edf::Edf;
use crate::base::{PerWorker, Shards};

/// Whose turn it is.
#[derive(Debug)]
pub(super) enum RoundRobin {
    /// One cursor a worker, made at the first pick.
    Equal {
        shards: Shards,
        cursors: OnceLock<PerWorker<Cursor>>,
    },
    Weighted(Edf),
}

/// On a cache line of its own, since workers write theirs on every request.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Cursor(AtomicUsize);

impl RoundRobin {
    pub(super) fn new(weights: Option<&[u32]>, shards: Shards, rng: &mut fastrand::Rng) -> Self {
        match weights {
            None => Self::Equal {
                shards,
                cursors: OnceLock::new(),
            },
            Some(weights) => Self::Weighted(Edf::new(
                weights.iter().map(|weight| f64::from(*weight)),
                shards,
                rng,
            )),
        }
    }

    /// Index of one of `count` hosts.
    pub(super) fn pick(&self, count: usize, rng: &mut fastrand::Rng) -> usize {
        match self {
            Self::Equal { shards, cursors } => {
                let cursor = cursors
                    .get_or_init(|| PerWorker::new(*shards))
                    .get_or_init(|| Cursor(AtomicUsize::new(rng.usize(..count))));
                // Only this worker writes it (the control side may lose a turn to itself).
                let turn = cursor.0.load(Relaxed);
                cursor.0.store(turn.wrapping_add(1), Relaxed);
                turn % count
            }
            Self::Weighted(edf) => edf.pick(rng, |_, weight| weight),
        }
    }
}
