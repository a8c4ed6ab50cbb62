//! The one wasmtime engine of the process: its settings, the ticker that makes deadlines pass, and limits of a VM.
//!
//! Guests are interrupted by epochs: a thread of ours counts [`TICK`]s while any VM lives. A guest that is still
//! running after half its soft deadline is looked at again every tick; it is told of, and stopped at last, when *its
//! thread* has spent the rest computing, so that a machine that is busy elsewhere stops nobody. Epochs are seen by guest
//! code alone: host functions that may compute for long look by themselves ([`Budget::is_left`]).

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, UpdateDeadline,
};

/// The unit of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// VMs that may live at once: workers × plugins × 2 while a reload is under way.
const MAX_VMS: u32 = 2000;

/// How much work the compiler puts into code. What the code does is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Little: it is there soon.
    Baseline,
    /// All that it can.
    Optimised,
}

impl Tier {
    /// As `/wasm` prints it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Optimised => "optimised",
        }
    }

    /// An engine that compiles code of this tier for [`Runtime::engine`] to run, and runs none itself.
    pub(crate) fn compiler(self) -> wasmtime::Result<Engine> {
        let mut config = config(false);
        match self {
            // Registers are given out with the usual care: code that spills all of them wants several times the stack.
            Self::Baseline => config.cranelift_opt_level(OptLevel::None),
            // Nobody waits for it: one thread, whose priority is its caller's, is enough.
            Self::Optimised => config.parallel_compilation(false),
        };
        Engine::new(&config)
    }
}

/// The engine with its ticker.
#[derive(Debug)]
pub(crate) struct Runtime {
    engine: Engine,
    clock: Arc<Clock>,
    ticker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Clock {
    state: Mutex<ClockState>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct ClockState {
    vms: usize,
    stop: bool,
}

/// Keeps the ticker running; one a VM.
#[derive(Debug)]
pub(crate) struct Running(Arc<Clock>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().vms -= 1;
    }
}

impl Runtime {
    /// An engine with a pool of pre-reserved memories, or without one where the machine cannot reserve it.
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let engine = Engine::new(&config(true)).or_else(|error| {
            tracing::warn!(target: "wasm", "no pool of instances ({error:#}); allocating on demand");
            Engine::new(&config(false))
        })?;
        let clock = Arc::new(Clock::default());
        let ticker = std::thread::Builder::new()
            .name("wasm:epoch".to_owned())
            .spawn({
                let (engine, clock) = (engine.clone(), Arc::clone(&clock));
                move || tick(&engine, &clock)
            })?;
        Ok(Self {
            engine,
            clock,
            ticker: Some(ticker),
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Registers a VM with the ticker.
    pub(crate) fn running(&self) -> Running {
        self.clock.state.lock().vms += 1;
        self.clock.bell.notify_one();
        Running(Arc::clone(&self.clock))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.clock.state.lock().stop = true;
        self.clock.bell.notify_one();
        if let Some(ticker) = self.ticker.take() {
            // It wakes at the latest a tick from now, and never panics.
            let _ = ticker.join();
        }
    }
}

fn tick(engine: &Engine, clock: &Clock) {
    let mut state = clock.state.lock();
    while !state.stop {
        if state.vms == 0 {
            clock.bell.wait(&mut state);
        } else {
            // A spurious early tick would be harmless: deadlines are checked against CPU time.
            parking_lot::MutexGuard::unlocked(&mut state, || std::thread::sleep(TICK));
            engine.increment_epoch();
        }
    }
}

fn config(pooling: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_init_cow(true)
        .parallel_compilation(true)
        // Backtraces are taken by frame pointers; these tables are for debuggers and profilers.
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(20))
        .max_wasm_stack(512 << 10);
    if pooling {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(MAX_VMS)
            .total_memories(MAX_VMS)
            .total_tables(MAX_VMS)
            .max_memories_per_module(1)
            .max_tables_per_module(1)
            .table_elements(200_000)
            .max_core_instance_size(4 << 20)
            .max_unused_warm_slots(4);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// The time budget of the guest call that runs.
#[derive(Debug)]
pub(crate) struct Budget {
    /// How long it may compute before that is told.
    soft: Duration,
    /// How long it may compute.
    hard: Duration,
    /// CPU time of the thread when it was first read.
    since: Option<Duration>,
    /// What is taken to have been computed by then.
    booked: Duration,
    /// The soft deadline has passed.
    pub(crate) exceeded: bool,
}

impl Budget {
    pub(crate) fn new(soft: Duration, hard: Duration) -> Self {
        Self {
            soft: soft.min(hard),
            hard,
            since: None,
            booked: Duration::ZERO,
            exceeded: false,
        }
    }

    /// Ticks until the first look: at half of the first deadline. What the call had computed by then is taken to be all
    /// of that time, of which it is off by less than a tick where the deadlines are short.
    pub(crate) fn first_look(&self) -> u64 {
        u64::try_from((self.soft / 2).as_nanos() / TICK.as_nanos())
            .unwrap_or(u64::MAX / 2)
            .max(1)
    }

    fn before(&self) -> Duration {
        (self.soft / 2).max(TICK)
    }

    /// A new call begins.
    #[inline]
    pub(crate) fn begin(&mut self) {
        self.since = None;
        self.exceeded = false;
    }

    /// Long work of the host may follow, which no look interrupts: from here on the thread's clock is what counts. The
    /// guest's time until now is less than it takes to a first look, and is left out.
    pub(crate) fn count(&mut self) {
        if self.since.is_none() {
            self.since = thread_cpu_time();
            self.booked = Duration::ZERO;
        }
    }

    /// False when what was computed since [`Budget::count`] is more than the call may compute: it must end as one that a
    /// look has stopped.
    pub(crate) fn is_left(&mut self) -> bool {
        match (self.since, thread_cpu_time()) {
            (Some(_), Some(now)) => !matches!(self.judge(now), UpdateDeadline::Interrupt),
            // Without the clock of the thread there are the limits of each function alone.
            _ => true,
        }
    }

    /// Called when a deadline has passed: goes on or stops.
    pub(crate) fn look(&mut self) -> UpdateDeadline {
        match thread_cpu_time() {
            Some(now) => self.judge(now),
            // Without the clock of the thread, the wall's must do: the second look is the last.
            None => {
                let rest = self.hard.saturating_sub(self.before());
                match self.since.replace(Duration::ZERO) {
                    None => UpdateDeadline::Continue(
                        u64::try_from(rest.as_nanos() / TICK.as_nanos())
                            .unwrap_or(u64::MAX / 2)
                            .max(1),
                    ),
                    Some(_) => {
                        self.exceeded = true;
                        UpdateDeadline::Interrupt
                    }
                }
            }
        }
    }

    fn judge(&mut self, now: Duration) -> UpdateDeadline {
        let Some(since) = self.since else {
            self.since = Some(now);
            self.booked = self.before();
            return UpdateDeadline::Continue(1);
        };
        let spent = self.booked + now.saturating_sub(since);
        self.exceeded |= spent >= self.soft;
        if spent >= self.hard {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// Time that the running thread has spent on a CPU; `None` where the kernel does not say.
pub(crate) fn thread_cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// The memory that a VM may take. Growth past it fails softly, as the instruction provides.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Of all linear memories together, in bytes.
    pub(crate) memory: usize,
    /// Bytes of linear memory now.
    pub(crate) used: usize,
    /// Growths that were refused.
    pub(crate) refused: u64,
}

impl wasmtime::ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.used.saturating_sub(current).saturating_add(desired);
        let granted = total <= self.memory && maximum.is_none_or(|maximum| desired <= maximum);
        if granted {
            self.used = total;
        } else {
            self.refused += 1;
        }
        Ok(granted)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= 1_000_000 && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::ResourceLimiter as _;

    #[test]
    fn growth_past_the_limit_fails_softly() {
        let mut limits = Limits {
            memory: 3 << 16,
            used: 0,
            refused: 0,
        };
        assert!(limits.memory_growing(0, 2 << 16, None).expect("soft"));
        assert!(!limits.memory_growing(2 << 16, 4 << 16, None).expect("soft"));
        assert!(limits.memory_growing(2 << 16, 3 << 16, None).expect("soft"));
        assert_eq!((limits.used, limits.refused), (3 << 16, 1));
    }

    #[test]
    fn a_call_is_told_of_at_its_soft_deadline_and_stopped_at_its_hard_one() {
        let ms = Duration::from_millis;
        let mut budget = Budget::new(ms(10), ms(50));
        assert_eq!(budget.first_look(), 1);
        let goes_on = |verdict| matches!(verdict, UpdateDeadline::Continue(1));
        for _ in 0..2 {
            budget.begin();
            // 5 ms are behind it, on a thread that had computed for 100.
            assert!(goes_on(budget.judge(ms(100))));
            // Others computed meanwhile.
            assert!(goes_on(budget.judge(ms(100))));
            assert!(goes_on(budget.judge(ms(104))) && !budget.exceeded);
            assert!(goes_on(budget.judge(ms(105))) && budget.exceeded);
            assert!(goes_on(budget.judge(ms(144))));
            assert!(matches!(budget.judge(ms(145)), UpdateDeadline::Interrupt));
        }
        // What the host has computed counts, be it before the first look.
        budget.begin();
        budget.count();
        let begin = budget.since.expect("Linux");
        assert!(goes_on(budget.judge(begin + ms(9))) && !budget.exceeded);
        assert!(goes_on(budget.judge(begin + ms(10))) && budget.exceeded);
        budget.count();
        assert_eq!(budget.since, Some(begin));
        assert!(matches!(
            budget.judge(begin + ms(50)),
            UpdateDeadline::Interrupt
        ));
        let start = Budget::new(ms(10_000), ms(10_000));
        assert_eq!(start.first_look(), 1000);
        assert_eq!(Budget::new(ms(10), ms(1)).first_look(), 1);
    }

    #[test]
    fn the_thread_clock_counts_computing_only() {
        let before = thread_cpu_time().expect("Linux");
        std::thread::sleep(Duration::from_millis(30));
        let asleep = thread_cpu_time().expect("Linux") - before;
        assert!(asleep < Duration::from_millis(20), "{asleep:?}");
    }
}
