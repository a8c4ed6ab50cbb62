//! What the process tells of itself: the metric registry, its encoders, and log set-up.
//!
//! [`metrics`] is written by the data path, per shard and without contention; [`samples`] reads the sums, and [`text`]
//! and [`prometheus`] write them. [`log`] is the process log.

pub mod limit;
pub mod log;
pub mod metrics;
pub mod prometheus;
pub mod samples;
pub mod tags;
pub mod text;
