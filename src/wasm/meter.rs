//! What is counted of one worker's VMs: calls and their times by callback, deadlines, what quotas refused, what is held.
//!
//! Each cell has one writer, the worker; admin reads. A call costs an addition. Its time is taken of one call in
//! [`SAMPLE`], since reading the clock twice costs as much as a small call.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One call in so many is timed.
const SAMPLE: u64 = 8;

/// Callbacks of the ABI.
pub(crate) const MAX_CALLBACKS: usize = 32;

/// What a plugin may take only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Quota {
    Metrics,
    SharedData,
    Queues,
    QueueBytes,
    TickPeriod,
    Callouts,
    CalloutBytes,
    LogLines,
    Memory,
}

impl Quota {
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Metrics, "metrics"),
        (Self::SharedData, "shared_data_bytes"),
        (Self::Queues, "queues"),
        (Self::QueueBytes, "queue_bytes"),
        (Self::TickPeriod, "min_tick_period"),
        (Self::Callouts, "callouts"),
        (Self::CalloutBytes, "callout_bytes"),
        (Self::LogLines, "log_lines_per_second"),
        (Self::Memory, "memory_limit_bytes"),
    ];
}

/// A count with one writer.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    #[inline]
    pub(crate) fn add(&self, by: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(by), Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One worker's.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Callbacks that exceeded the soft deadline.
    pub(crate) soft: Cell,
    /// Callbacks that were stopped at the hard one.
    pub(crate) hard: Cell,
    /// Streams that are held.
    pub(crate) paused: Cell,
    /// Streams that were held for too long, and ended.
    pub(crate) overdue: Cell,
    /// Callouts under way.
    pub(crate) callouts: Cell,
    /// What they hold, when their number last changed.
    pub(crate) callout_bytes: Cell,
    /// Metrics defined.
    pub(crate) metrics: Cell,
    refused: [Cell; Quota::ALL.len()],
    callbacks: [OnceLock<Box<Series>>; MAX_CALLBACKS],
}

impl Meter {
    /// A quota refused something.
    pub(crate) fn refuse(&self, quota: Quota) {
        self.refused[quota as usize].add(1);
    }

    pub(crate) fn refused(&self, quota: Quota) -> u64 {
        self.refused[quota as usize].get()
    }

    /// Counts a call of the callback; true where it is to be timed.
    #[inline]
    pub(crate) fn begin(&self, callback: usize) -> bool {
        let series = self.callbacks[callback].get_or_init(Box::default);
        let calls = series.calls.get();
        series.calls.set(calls + 1);
        calls.is_multiple_of(SAMPLE)
    }

    /// A timed call has returned.
    pub(crate) fn time(&self, callback: usize, took: Duration) {
        if let Some(series) = self.callbacks[callback].get() {
            series.record(took);
        }
    }

    /// What is known of each callback that was called, by its number.
    pub(crate) fn callbacks(&self) -> impl Iterator<Item = (usize, &Series)> {
        let numbered = self.callbacks.iter().enumerate();
        numbered.filter_map(|(number, series)| Some((number, &**series.get()?)))
    }
}

/// Buckets for each doubling: a value is known to 6 %.
const STEPS: u64 = 8;
/// All values below 2⁶ ns are one, and those above 2³⁶ (a minute).
const LOWEST: u32 = 6;
const HIGHEST: u32 = 36;
pub(crate) const BUCKETS: usize = ((HIGHEST - LOWEST) as u64 * STEPS) as usize + 1;

/// One callback's calls.
#[derive(Debug)]
pub(crate) struct Series {
    calls: Cell,
    buckets: [Cell; BUCKETS],
}

impl Default for Series {
    fn default() -> Self {
        Self {
            calls: Cell::default(),
            buckets: std::array::from_fn(|_| Cell::default()),
        }
    }
}

impl Series {
    fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].add(1);
    }
}

pub(crate) fn bucket(nanos: u64) -> usize {
    let nanos = nanos.clamp(1 << LOWEST, (1 << HIGHEST) - 1);
    let power = nanos.ilog2();
    let step = (nanos >> (power - 3)) & (STEPS - 1);
    (u64::from(power - LOWEST) * STEPS + step) as usize
}

/// The least value beyond the bucket.
pub(crate) fn bound(bucket: usize) -> u64 {
    let (power, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    (STEPS + step + 1) << (power + u64::from(LOWEST) - 3)
}

/// The calls of one callback over several workers.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    pub(crate) calls: u64,
    buckets: Vec<u64>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            calls: 0,
            buckets: vec![0; BUCKETS],
        }
    }
}

impl Times {
    pub(crate) fn add(&mut self, series: &Series) {
        self.calls += series.calls.get();
        for (to, from) in self.buckets.iter_mut().zip(&series.buckets) {
            *to += from.get();
        }
    }

    /// The time that so large a part of the timed calls did not exceed; `None` where none was timed.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let timed: u64 = self.buckets.iter().sum();
        if timed == 0 {
            return None;
        }
        let rank = ((timed as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(|found| Duration::from_nanos(bound(found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_bounds_it() {
        for nanos in [
            0,
            1,
            63,
            64,
            65,
            71,
            72,
            1000,
            1_000_000,
            50_000_000,
            u64::MAX,
        ] {
            let found = bucket(nanos);
            assert!(found < BUCKETS);
            let held = nanos.clamp(64, (1 << HIGHEST) - 1);
            assert!(bound(found) > held, "{nanos}");
            assert!(bound(found) as f64 <= held as f64 * 1.13, "{nanos}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 2);
    }

    #[test]
    fn quantiles_are_those_of_the_timed_calls() {
        let meter = Meter::default();
        let mut timed = 0;
        for call in 0..800u64 {
            if meter.begin(3) {
                timed += 1;
                // One in a hundred is slow.
                let micros = if call < 792 { 10 } else { 1000 };
                meter.time(3, Duration::from_micros(micros));
            }
        }
        assert_eq!(timed, 100);
        let mut times = Times::default();
        for (number, series) in meter.callbacks() {
            assert_eq!(number, 3);
            times.add(series);
        }
        assert_eq!(times.calls, 800);
        let near = |part: f64, micros: f64| {
            let found = times.quantile(part).expect("timed").as_nanos() as f64 / 1000.0;
            assert!(found >= micros && found <= micros * 1.13, "{found}");
        };
        near(0.5, 10.0);
        near(0.99, 10.0);
        near(1.0, 1000.0);
        assert_eq!(Times::default().quantile(0.5), None);
    }

    #[test]
    fn refusals_are_counted_by_quota() {
        let meter = Meter::default();
        for (quota, _) in Quota::ALL {
            assert_eq!(meter.refused(quota), 0);
            meter.refuse(quota);
            assert_eq!(meter.refused(quota), 1);
        }
    }
}
