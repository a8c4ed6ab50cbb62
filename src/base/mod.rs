//! What every other module may rest on: worker-affine cells, task spawning, back-off, drain signals, bounded
//! reads of files, directories that are watched, memory at rest.
//!
//! Imports nothing of the crate. Nothing here knows of HTTP, xDS or Wasm.

pub mod backoff;
pub mod cell;
pub mod drain;
pub mod file;
pub mod memory;
pub mod task;
pub mod watch;
pub mod worker;
pub mod workers;

pub use cell::WorkerCell;
pub use worker::{PerWorker, Shard, Shards};
pub use workers::{WorkerHandles, Workers};
