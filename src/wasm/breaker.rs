//! When a dead VM's worker gets a fresh one: a token bucket, a back-off, and a probe. Pure: it is told what happened and
//! what time it is, and says what to do.
//!
//! | state | what it means | what happens |
//! |---|---|---|
//! | closed | failures are few | every dead VM is replaced at once, and each costs a token |
//! | open | no tokens are left | nothing is built until the wait is over; waits double while failures go on |
//! | half-open | the wait is over | *one* VM is built, for one worker. It serves a few streams. When it has served them, or has lived for a while, the breaker closes and the other workers follow; when it fails, the breaker opens again |
//! | off | never again | nothing is built (`after_crash: ENVOY` without `FAIL_RELOAD`) |
//!
//! Under `FAIL_RELOAD` there is none of this. As in Envoy the back-off is what lies between one VM of a worker and the next, at
//! least: one that has lived for longer is replaced at once, and waits do not grow. It is shown as open while somebody waits.
//!
//! A VM that stands without a version that would not be configured serves the others as any VM does. Whom it lacks is
//! tried again by itself, with waits that grow as those above, and takes no token.
//!
//! So a plugin that crashed once is back at once, and one that crashes on every request costs one VM a wait, however many
//! workers there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::spec::FailurePolicy;
use crate::config::wasm_settings::{AfterCrash, BreakerPolicy};

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make a VM for this worker.
    Build(usize),
    /// As `Build`; it serves no more than so many streams until the breaker closes.
    Probe(usize, u32),
    /// Give those a root context that the VM of this worker lacks.
    Complete(usize),
    /// Ask again then, or when something has happened.
    SleepUntil(Instant),
    /// Ask again when something has happened.
    Idle,
}

/// As `/wasm` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Dead VMs are replaced at once.
    #[default]
    Closed,
    /// No VM is built for a while.
    Open,
    /// One VM proves itself.
    HalfOpen,
    /// Dead VMs are not replaced.
    Off,
}

impl BreakerState {
    /// As `/wasm` prints it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Off => "off",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    /// `since`: when the VM was there; `None` while it is being built.
    HalfOpen {
        worker: usize,
        since: Option<Instant>,
    },
    Off,
}

/// The breaker of the VMs of one key, for all workers.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// As set.
    given: BreakerPolicy,
    after_crash: AfterCrash,
    workers: usize,
    failure: FailurePolicy,
    /// As it holds under the failure policy.
    policy: BreakerPolicy,
    off: bool,
    /// `FAIL_RELOAD`: the back-off.
    reload: Option<Duration>,
    /// When each worker's VM was made; nothing is waited for where it has lived long enough.
    born: Vec<Instant>,
    /// Under `FAIL_RELOAD`, when those of `waiting` are due.
    due: BTreeMap<usize, Instant>,
    capacity: f64,
    tokens: f64,
    /// When the tokens were last counted.
    counted: Instant,
    /// Failures in a row that found no token.
    failures: u32,
    last_failure: Option<Instant>,
    phase: Phase,
    /// Workers without a VM for which none is being built.
    waiting: BTreeSet<usize>,
    /// Workers whose VM stands, and lacks somebody.
    lacking: BTreeMap<usize, Lack>,
}

/// Somebody would not be configured.
#[derive(Clone, Copy, Debug, Default)]
struct Lack {
    /// When that is tried again; `None` while it is.
    due: Option<Instant>,
    /// How often that came to nothing.
    tries: u32,
}

impl Breaker {
    pub(crate) fn new(
        policy: BreakerPolicy,
        after_crash: AfterCrash,
        failure: FailurePolicy,
        workers: usize,
        now: Instant,
    ) -> Self {
        let mut breaker = Self {
            given: policy,
            after_crash,
            workers,
            failure,
            policy,
            off: false,
            reload: None,
            born: vec![now; workers],
            due: BTreeMap::new(),
            capacity: 0.0,
            tokens: 0.0,
            counted: now,
            failures: 0,
            last_failure: None,
            phase: Phase::Closed,
            waiting: BTreeSet::new(),
            lacking: BTreeMap::new(),
        };
        breaker.set_rules();
        breaker
    }

    /// The failure policy of who is in the VMs; another than before begins with all of its tokens.
    pub(crate) fn obey(&mut self, failure: FailurePolicy) {
        if failure == self.failure {
            return;
        }
        self.failure = failure;
        self.set_rules();
        if !self.off && matches!(self.phase, Phase::Off) {
            self.phase = Phase::Closed;
        }
    }

    fn set_rules(&mut self) {
        self.policy = self.given;
        self.capacity = f64::from(self.given.tokens) * self.workers as f64;
        (self.off, self.reload) = (false, None);
        self.due.clear();
        match self.failure {
            FailurePolicy::Reload { backoff } => {
                self.reload = Some(backoff);
                self.phase = Phase::Closed;
            }
            FailurePolicy::Closed | FailurePolicy::Open { .. } => {
                self.off = self.after_crash == AfterCrash::Envoy;
            }
        }
        self.tokens = self.capacity;
        if self.off {
            self.lacking.clear();
        }
    }

    /// Somebody new is in the VMs, who owes nothing for those before.
    pub(crate) fn forgive(&mut self, now: Instant) {
        self.tokens = self.capacity;
        self.counted = now;
        self.failures = 0;
        self.last_failure = None;
        self.phase = Phase::Closed;
        self.due.clear();
        if self.off {
            // Each worker got a VM with the newcomer.
            self.waiting.clear();
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed if !self.due.is_empty() => BreakerState::Open,
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
            Phase::Off => BreakerState::Off,
        }
    }

    /// The worker whose VM proves itself now.
    pub(crate) fn probe(&self) -> Option<usize> {
        match self.phase {
            Phase::HalfOpen {
                worker,
                since: Some(_),
            } => Some(worker),
            _ => None,
        }
    }

    /// The VM of `worker` has died.
    pub(crate) fn failed(&mut self, worker: usize, now: Instant) {
        self.waiting.insert(worker);
        // The next VM is tried with everybody.
        self.lacking.remove(&worker);
        if self.off {
            self.phase = Phase::Off;
            return;
        }
        if let Some(backoff) = self.reload {
            // Jitter, so that proxies do not build in step: up to half as much again, as Envoy's.
            let pause = backoff.mul_f64(fastrand::f64().mul_add(0.5, 1.0));
            let due = self.born.get(worker).map_or(now, |born| *born + pause);
            self.due.insert(worker, due);
            return;
        }
        let calm = self.policy.token_interval;
        if self.last_failure.is_some_and(|last| now - last >= calm) {
            self.failures = 0;
        }
        self.last_failure = Some(now);
        match self.phase {
            Phase::Closed => {
                if !self.take_token(now) {
                    self.open(now);
                }
            }
            Phase::HalfOpen { worker: probe, .. } => {
                // Another worker's VM had outlived the opening, and shows no more than was known.
                if probe == worker {
                    self.open(now);
                }
            }
            Phase::Open { .. } | Phase::Off => {}
        }
    }

    /// The VM of `worker` could not be built. Its back-off begins now, however long that took.
    pub(crate) fn not_built(&mut self, worker: usize, now: Instant) {
        if let Some(born) = self.born.get_mut(worker) {
            *born = now;
        }
        self.failed(worker, now);
    }

    /// The VM of `worker` is in its place.
    pub(crate) fn built(&mut self, worker: usize, now: Instant) {
        if let Some(born) = self.born.get_mut(worker) {
            *born = now;
        }
        if let Phase::HalfOpen {
            worker: probe,
            since,
        } = &mut self.phase
            && *probe == worker
        {
            *since = Some(now);
        }
    }

    /// The VM of `worker` stands, but would not have everybody.
    pub(crate) fn incomplete(&mut self, worker: usize, now: Instant) {
        if self.off {
            return;
        }
        let BreakerPolicy { base, max, .. } = self.policy;
        let lack = self.lacking.entry(worker).or_default();
        let wait = self.reload.unwrap_or_else(|| {
            let doubled = base.saturating_mul(1u32.checked_shl(lack.tries).unwrap_or(u32::MAX));
            doubled.min(max)
        });
        lack.tries = (lack.tries + 1).min(30);
        lack.due = Some(now + wait.mul_f64(fastrand::f64().mul_add(0.5, 0.5)));
    }

    /// The VM of `worker` lacks nobody any more, or is gone.
    pub(crate) fn completed(&mut self, worker: usize) {
        self.lacking.remove(&worker);
    }

    /// The VM of `worker` has served the streams that it was allowed.
    pub(crate) fn proven(&mut self, worker: usize) {
        if matches!(self.phase, Phase::HalfOpen { worker: probe, since: Some(_) } if probe == worker)
        {
            self.phase = Phase::Closed;
        }
    }

    /// What is to be done at `now`. To be asked until it says to wait.
    pub(crate) fn next(&mut self, now: Instant) -> Action {
        let action = self.next_vm(now);
        if !matches!(action, Action::SleepUntil(_) | Action::Idle) {
            return action;
        }
        let lacking = self.lacking.iter_mut();
        let due = lacking.filter_map(|(worker, lack)| Some((lack.due?, *worker, lack)));
        match (due.min_by_key(|(due, ..)| *due), action) {
            (Some((due, worker, lack)), _) if due <= now => {
                lack.due = None;
                Action::Complete(worker)
            }
            (Some((due, ..)), Action::SleepUntil(until)) => Action::SleepUntil(until.min(due)),
            (Some((due, ..)), _) => Action::SleepUntil(due),
            (None, action) => action,
        }
    }

    fn next_vm(&mut self, now: Instant) -> Action {
        loop {
            match self.phase {
                Phase::Closed => return self.next_closed(now),
                Phase::Open { until } if now >= until => {
                    let Some(worker) = self.waiting.pop_first() else {
                        self.phase = Phase::Closed;
                        continue;
                    };
                    self.phase = Phase::HalfOpen {
                        worker,
                        since: None,
                    };
                    return Action::Probe(worker, self.policy.probe_streams);
                }
                Phase::Open { until } => return Action::SleepUntil(until),
                Phase::HalfOpen {
                    since: Some(since), ..
                } => {
                    let end = since + self.policy.probe_time;
                    if now < end {
                        return Action::SleepUntil(end);
                    }
                    self.phase = Phase::Closed;
                }
                Phase::HalfOpen { since: None, .. } | Phase::Off => return Action::Idle,
            }
        }
    }

    /// Whoever is not told to wait gets a VM.
    fn next_closed(&mut self, now: Instant) -> Action {
        let due = |worker: &usize| self.due.get(worker).copied().unwrap_or(now);
        let Some(worker) = self.waiting.iter().copied().min_by_key(due) else {
            return Action::Idle;
        };
        let due = due(&worker);
        if due > now {
            return Action::SleepUntil(due);
        }
        self.waiting.remove(&worker);
        self.due.remove(&worker);
        if let Some(born) = self.born.get_mut(worker) {
            // Also where it comes to nothing.
            *born = now;
        }
        Action::Build(worker)
    }

    fn take_token(&mut self, now: Instant) -> bool {
        let back = (now - self.counted).as_secs_f64() / self.policy.token_interval.as_secs_f64();
        // Each worker's tokens come back on their own.
        let share = if self.policy.tokens == 0 {
            0.0
        } else {
            self.capacity / f64::from(self.policy.tokens)
        };
        self.tokens = (self.tokens + back * share).min(self.capacity);
        self.counted = now;
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    fn open(&mut self, now: Instant) {
        let doubled = self
            .policy
            .base
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let limit = doubled.min(self.policy.max);
        self.failures = (self.failures + 1).min(30);
        // Jitter, so that proxies do not build in step.
        let wait: Duration = limit.mul_f64(fastrand::f64().mul_add(0.5, 0.5));
        let until = now + wait;
        // A good life is counted from the next VM on.
        self.last_failure = Some(until);
        self.phase = Phase::Open { until };
    }
}

/// How many more streams a worker's VM serves. Belongs to the worker, but that it is closed and opened from elsewhere.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU32);

impl Default for Gate {
    fn default() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Gate {
    /// Lets so many pass.
    pub(crate) fn limit(&self, streams: u32) {
        self.0.store(streams, Relaxed);
    }

    /// Lets all pass.
    pub(crate) fn lift(&self) {
        self.0.store(u32::MAX, Relaxed);
    }

    /// True where all that may pass have.
    pub(crate) fn is_shut(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// One wants to pass.
    #[inline]
    pub(crate) fn admit(&self) -> bool {
        let left = self.0.load(Relaxed);
        if left == u32::MAX {
            return true;
        }
        self.take()
    }

    #[cold]
    fn take(&self) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |left| match left {
                u32::MAX => Some(left),
                left => left.checked_sub(1),
            })
            .is_ok()
    }
}

#[cfg(test)]
#[path = "breaker/tests.rs"]
mod tests;
