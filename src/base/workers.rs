//! Worker threads: each a current-thread runtime that runs what it is handed.
//!
//! The control side hands a worker work with [`WorkerHandles::run_on`]: an accept loop, a Wasm VM to adopt. With
//! [`Workers::inline`] the one worker is the caller's own runtime, so that tests can pause time.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::task::OwnedTask;
use super::{Shard, Shards};

/// How long workers have to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether they have.
const STEP: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce() + Send>;

/// Reaches every worker. Cheap to clone; keeps no worker alive.
#[derive(Clone)]
pub struct WorkerHandles(Arc<[mpsc::UnboundedSender<Job>]>);

impl WorkerHandles {
    /// Runs `job` on worker `index` (from 0), inside its runtime. Lost where the worker has ended.
    pub fn run_on(&self, index: usize, job: impl FnOnce() + Send + 'static) {
        // A worker ends only with the process.
        let _ = self.0[index].send(Box::new(job));
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The shards of a process with these workers.
    pub fn shards(&self) -> Shards {
        Shards::for_workers(self.count())
    }
}

impl fmt::Debug for WorkerHandles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerHandles({})", self.0.len())
    }
}

/// Owns the workers. Dropping it ends them, with whatever they still serve: whoever wants that finished drains first. One
/// that does not end in time is left to the end of the process.
#[derive(Debug)]
pub struct Workers {
    handles: Option<WorkerHandles>,
    threads: Vec<JoinHandle<()>>,
    stops: Vec<tokio::sync::oneshot::Sender<()>>,
    patience: Duration,
    _inline: Option<OwnedTask>,
}

impl Workers {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// Where a thread or its runtime cannot be made.
    pub fn threads(count: usize) -> std::io::Result<Self> {
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        let mut stops = Vec::new();
        for index in 0..count.max(1) {
            let (sender, jobs) = mpsc::unbounded_channel();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new()
                .name(format!("wrk:worker_{index}"))
                .spawn(move || {
                    Shard::worker(index).enter();
                    runtime.block_on(async {
                        tokio::select! {
                            () = run(jobs) => {}
                            _ = stopped => {}
                        }
                    });
                    runtime.shutdown_background();
                })?;
            senders.push(sender);
            threads.push(thread);
            stops.push(stop);
        }
        Ok(Self {
            handles: Some(WorkerHandles(senders.into())),
            threads,
            stops,
            patience: PATIENCE,
            _inline: None,
        })
    }

    /// Makes the running runtime the one worker, and the running thread its shard.
    pub fn inline() -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        Shard::worker(0).enter();
        let task = OwnedTask::spawn("worker", run(jobs));
        Self {
            handles: Some(WorkerHandles([sender].into())),
            threads: Vec::new(),
            stops: Vec::new(),
            patience: PATIENCE,
            _inline: Some(task),
        }
    }

    /// The way to hand them work.
    pub fn handles(&self) -> WorkerHandles {
        self.handles.clone().expect("present until dropped")
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.handles = None;
        for stop in self.stops.drain(..) {
            let _ = stop.send(());
        }
        let late = Instant::now() + self.patience;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < late {
                std::thread::sleep(STEP);
            }
            if thread.is_finished() {
                // A worker that panicked has said so already.
                let _ = thread.join();
            } else {
                let name = thread.thread().name().unwrap_or_default();
                tracing::warn!(
                    target: "main",
                    "{name} has not ended within {:?} and is left behind",
                    self.patience
                );
            }
        }
    }
}

async fn run(mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = jobs.recv().await {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_runs_on_its_worker_inside_its_runtime() {
        let workers = Workers::threads(2).expect("threads");
        let (sender, receiver) = std::sync::mpsc::channel();
        for index in 0..2 {
            let sender = sender.clone();
            workers.handles().run_on(index, move || {
                let shard = Shard::current();
                super::super::task::spawn("test", async move {
                    sender.send((index, shard)).expect("the test waits");
                });
            });
        }
        let mut seen = [
            receiver.recv().expect("a job"),
            receiver.recv().expect("a job"),
        ];
        seen.sort_by_key(|(index, _)| *index);
        assert_eq!(seen, [(0, Shard::worker(0)), (1, Shard::worker(1))]);
    }

    #[test]
    fn a_worker_that_does_not_end_is_left() {
        let mut workers = Workers::threads(2).expect("threads");
        workers.patience = Duration::from_millis(50);
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let (sender, busy) = std::sync::mpsc::channel();
        workers.handles().run_on(0, move || {
            sender.send(()).expect("the test waits");
            let _ = held.recv();
        });
        busy.recv().expect("it runs");
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(workers);
            done.send(()).expect("the test waits");
        });
        let ended = dropped.recv_timeout(Duration::from_secs(20));
        drop(let_go);
        ended.expect("nobody waits for ever");
    }
}
