//! Least request: the least busy of a few hosts taken by chance; where weights differ, a schedule in which a busy
//! host's weight counts less.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::edf::Edf;
use crate::base::Shards;
use crate::cluster::host::Host;

/// How many to compare, or the schedule.
#[derive(Debug)]
pub(super) enum LeastRequest {
    /// Power of N choices.
    Equal { choices: u32 },
    /// Weight over `(active requests + 1)^bias`.
    Weighted { edf: Edf, bias: f64 },
}

impl LeastRequest {
    pub(super) fn new(
        choices: u32,
        bias: f64,
        weights: Option<&[u32]>,
        shards: Shards,
        rng: &mut fastrand::Rng,
    ) -> Self {
        match weights {
            None => Self::Equal {
                choices: choices.max(1),
            },
            Some(weights) => Self::Weighted {
                edf: Edf::new(weights.iter().map(|weight| f64::from(*weight)), shards, rng),
                bias,
            },
        }
    }

    /// Index of one of `hosts`, which are not empty.
    pub(super) fn pick(&self, hosts: &[Arc<Host>], rng: &mut fastrand::Rng) -> usize {
        let active = |index: usize| hosts[index].stats.rq_active.load(Relaxed);
        match self {
            Self::Equal { choices } => {
                let mut best = rng.usize(..hosts.len());
                for _ in 1..*choices {
                    let other = rng.usize(..hosts.len());
                    if active(other) < active(best) {
                        best = other;
                    }
                }
                best
            }
            Self::Weighted { edf, bias } => edf.pick(rng, |index, weight| {
                let active = (active(index) as f64 + 1.0).min(1e9);
                if *bias == 0.0 {
                    weight
                } else {
                    weight / active.powf(*bias)
                }
            }),
        }
    }
}
