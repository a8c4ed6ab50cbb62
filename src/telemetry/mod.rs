//! What the process tells of itself: the metric registry, its encoders, and log set-up.
//!
//! [`metrics`] is written by the data path, per shard and without contention; the encoders read the sums.

pub mod limit;
pub mod log;
pub mod metrics;
