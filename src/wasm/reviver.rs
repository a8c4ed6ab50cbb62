//! The task that gives workers fresh VMs, as the [`Breaker`] says.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::breaker::{Action, Breaker, BreakerState};
use super::spec::FailurePolicy;
use crate::base::task::OwnedTask;

/// How often a VM that proves itself is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What happened to the VMs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// That of this worker has died.
    Died(usize),
    /// There is a new version in all of them.
    Joined,
}

/// What came of a VM that was to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Built {
    /// It stands, with everybody in it.
    Whole,
    /// It stands, without somebody who would not be configured.
    InPart,
    /// There is none.
    Not,
}

/// What an order has come to.
enum End {
    Built(Built),
    Completed(bool),
}

/// Whose VMs they are.
pub(crate) trait Revive: Send + Sync + 'static {
    /// Builds a VM for `worker` and moves it there; `streams`: it serves no more than so many for now.
    fn rebuild(
        self: Arc<Self>,
        worker: usize,
        streams: Option<u32>,
    ) -> impl Future<Output = Built> + Send;

    /// Gives those a root context that the VM of `worker` lacks. False where somebody would not be configured again.
    fn complete(self: Arc<Self>, worker: usize) -> impl Future<Output = bool> + Send;

    /// True where the VM of `worker` has served the streams that it was allowed.
    fn is_proven(&self, worker: usize) -> bool;

    /// Of all versions in the VMs, the policy that says when a fresh one follows.
    fn failure(&self) -> FailurePolicy;

    /// The breaker's state now. While it is closed, VMs serve as many streams as come.
    fn show(&self, state: BreakerState);
}

/// Runs until `target` is gone. `happened` tells of what happens to its VMs.
pub(crate) async fn revive<R: Revive>(
    target: Weak<R>,
    mut breaker: Breaker,
    mut happened: mpsc::UnboundedReceiver<Event>,
) {
    let (done, mut built) = mpsc::unbounded_channel();
    // By number, not by worker: a VM may die before the task that built it has said so, and the next one is begun.
    let mut builds: BTreeMap<u64, OwnedTask> = BTreeMap::new();
    let mut begun = 0;
    loop {
        let until = loop {
            let (worker, streams) = match breaker.next(Instant::now()) {
                Action::Build(worker) => (worker, Some(None)),
                Action::Probe(worker, streams) => (worker, Some(Some(streams))),
                Action::Complete(worker) => (worker, None),
                Action::SleepUntil(until) => break Some(until),
                Action::Idle => break None,
            };
            let (target, done) = (target.clone(), done.clone());
            begun += 1;
            let number = begun;
            let build = OwnedTask::spawn("wasm revival", async move {
                let Some(target) = target.upgrade() else {
                    return;
                };
                let end = match streams {
                    Some(streams) => End::Built(target.rebuild(worker, streams).await),
                    None => End::Completed(target.complete(worker).await),
                };
                // This task outlives nobody who listens.
                let _ = done.send((number, worker, end));
            });
            builds.insert(number, build);
        };
        let probe = breaker.probe();
        {
            let Some(target) = target.upgrade() else {
                return;
            };
            target.show(breaker.state());
            if let Some(worker) = probe
                && target.is_proven(worker)
            {
                breaker.proven(worker);
                continue;
            }
        }
        let look = probe.map(|_| Instant::now() + LOOK);
        let until = match (until, look) {
            (Some(until), Some(look)) => Some(until.min(look)),
            (until, look) => until.or(look),
        };
        let sleep = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = happened.recv() => {
                let Some(target) = target.upgrade() else {
                    return;
                };
                breaker.obey(target.failure());
                match event {
                    Some(Event::Died(worker)) => breaker.failed(worker, Instant::now()),
                    Some(Event::Joined) => breaker.forgive(Instant::now()),
                    None => return,
                }
            }
            Some((number, worker, end)) = built.recv() => {
                builds.remove(&number);
                let now = Instant::now();
                match end {
                    End::Built(Built::Not) => breaker.not_built(worker, now),
                    End::Built(built) => {
                        breaker.built(worker, now);
                        if built == Built::InPart {
                            breaker.incomplete(worker, now);
                        }
                    }
                    End::Completed(true) => breaker.completed(worker),
                    End::Completed(false) => breaker.incomplete(worker, now),
                }
            }
            () = sleep => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::config::wasm_settings::{AfterCrash, BreakerPolicy};

    /// Its first VMs die as soon as they are in their place.
    struct Mortal {
        events: mpsc::UnboundedSender<Event>,
        dying: usize,
        built: AtomicUsize,
    }

    impl Revive for Mortal {
        async fn rebuild(self: Arc<Self>, worker: usize, _: Option<u32>) -> Built {
            // As long as it takes.
            tokio::task::yield_now().await;
            if self.built.fetch_add(1, SeqCst) < self.dying {
                self.events
                    .send(Event::Died(worker))
                    .expect("somebody listens");
            }
            Built::Whole
        }

        async fn complete(self: Arc<Self>, _: usize) -> bool {
            true
        }

        fn is_proven(&self, _: usize) -> bool {
            false
        }

        fn failure(&self) -> FailurePolicy {
            FailurePolicy::Closed
        }

        fn show(&self, _: BreakerState) {}
    }

    #[tokio::test(start_paused = true)]
    async fn who_dies_before_its_builder_says_that_it_is_there_is_followed_too() {
        let (events, happened) = mpsc::unbounded_channel();
        let dying = 30;
        let target = Arc::new(Mortal {
            events: events.clone(),
            dying,
            built: AtomicUsize::new(0),
        });
        let policy = BreakerPolicy {
            tokens: 1000,
            ..BreakerPolicy::default()
        };
        let breaker = Breaker::new(
            policy,
            AfterCrash::Rebuild,
            FailurePolicy::Closed,
            1,
            Instant::now(),
        );
        let _reviver = OwnedTask::spawn(
            "reviver",
            revive(Arc::downgrade(&target), breaker, happened),
        );
        events.send(Event::Died(0)).expect("it listens");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(target.built.load(SeqCst), dying + 1);
    }
}
