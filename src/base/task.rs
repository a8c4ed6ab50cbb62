//! Spawning tasks by name, so that every task can be told apart in a trace and owned by somebody.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Spawns `future` on the current runtime inside a span called `task` with the field `name`.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that may call tokio::spawn"
)]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}

/// A task that is aborted when its handle is dropped: nothing outlives its owner by accident.
#[derive(Debug)]
pub struct OwnedTask(JoinHandle<()>);

impl OwnedTask {
    /// Spawns `future` as [`spawn`] does and owns it.
    pub fn spawn<F>(name: &'static str, future: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(spawn(name, future))
    }

    /// True once the task has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
