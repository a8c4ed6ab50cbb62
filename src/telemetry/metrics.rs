//! The metric registry: Envoy's names, one writer a cell, nothing allocated before its first use.
//!
//! * A [`StatTable`] is a static list of names (`upstream_cx_total`, …) of one family (`cluster`, `http`, …).
//! * A [`StatSet`] is one owner's instance of a table (cluster `a`). It costs a name and an empty slot a shard
//!   until a shard first writes; zeros are printed from the table.
//! * A [`Metric`] is a single one with a name known only at run time (what plugins define).
//!
//! Workers (shards 1..=N) are the only writers of their cells, so that a write is a load and a store; the control
//! shard may be several threads and uses atomic additions. A stat is *used* once it was written, even to zero
//! (`/stats?usedonly`, which Istio's readiness depends on).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use crate::base::{PerWorker, Shard, Shards};

mod owned;

/// What a stat measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; Envoy's unit is the millisecond unless the name says otherwise.
    Histogram,
}

/// Position of a stat in its table. Made by [`stats!`](crate::stats).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat(pub u16);

/// One line of a table.
#[derive(Debug)]
pub struct StatDef {
    /// The name after the set's prefix.
    pub name: &'static str,
    /// What it measures.
    pub kind: Kind,
}

/// The names of a family.
#[derive(Debug)]
pub struct StatTable {
    /// In the order of their [`Stat`] numbers.
    pub stats: &'static [StatDef],
}

/// Declares a [`StatTable`] as a module with one constant a stat and `TABLE`.
///
/// ```ignore
/// stats! { pub mod cluster { UPSTREAM_CX_TOTAL: Counter = "upstream_cx_total", } }
/// ```
#[macro_export]
macro_rules! stats {
    ($(#[$doc:meta])* $vis:vis mod $module:ident { $($stat:ident : $kind:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, dead_code, reason = "each constant is the stat that its string names; one that nothing writes yet is printed as zero")]
        $vis mod $module {
            use $crate::telemetry::metrics::{Kind, Stat, StatDef, StatTable};
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "used only to number the stats")]
            #[repr(u16)]
            enum Index { $($stat),* }
            $(pub const $stat: Stat = Stat(Index::$stat as u16);)*
            pub static TABLE: StatTable = StatTable {
                stats: &[$(StatDef { name: $name, kind: Kind::$kind }),*],
            };
        }
    };
}

/// Upper bounds of the histogram buckets, Envoy's defaults; values beyond the last fall in a further bucket.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0,
    60000.0, 300000.0, 600000.0, 1800000.0, 3600000.0,
];

/// A histogram's counts: per bucket (not cumulative), and the sum of all values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramCounts {
    /// Number of values a bucket; the last entry is beyond every bound.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// Sum of the values.
    pub sum: u64,
}

impl HistogramCounts {
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    fn record(&self, value: u64, exclusive: bool) {
        let bucket = BUCKETS.partition_point(|bound| *bound < value as f64);
        add(&self.buckets[bucket], 1, exclusive);
        add(&self.sum, value, exclusive);
    }

    fn add_to(&self, counts: &mut HistogramCounts) {
        for (to, from) in counts.buckets.iter_mut().zip(&self.buckets) {
            *to += from.load(Relaxed);
        }
        counts.sum = counts.sum.wrapping_add(self.sum.load(Relaxed));
    }
}

/// `exclusive`: the running thread is the only writer.
#[inline]
fn add(cell: &AtomicU64, by: u64, exclusive: bool) {
    if exclusive {
        cell.store(cell.load(Relaxed).wrapping_add(by), Relaxed);
    } else {
        cell.fetch_add(by, Relaxed);
    }
}

/// What stands for the status codes that have no counter of their own: `upstream_rq_unknown`.
pub(super) const UNKNOWN_CODE: u16 = 600;

/// HTTP status codes that have a counter of their own (`upstream_rq_<code>`), and the one that stands for others.
const CODES: std::ops::Range<u16> = 100..UNKNOWN_CODE + 1;

/// One shard's part of a set.
struct Block {
    cells: Box<[AtomicU64]>,
    written: Box<[AtomicU64]>,
    histograms: Box<[OnceLock<Box<Histogram>>]>,
    codes: OnceLock<Box<[AtomicU64]>>,
}

impl Block {
    fn new(table: &StatTable) -> Self {
        let n = table.stats.len();
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        // A table that names its histograms first pays for no more slots than it has histograms.
        let histograms = table
            .stats
            .iter()
            .rposition(|stat| stat.kind == Kind::Histogram)
            .map_or(0, |last| last + 1);
        Self {
            cells: zeros(n),
            written: zeros(n.div_ceil(64)),
            histograms: (0..histograms).map(|_| OnceLock::new()).collect(),
            codes: OnceLock::new(),
        }
    }

    #[inline]
    fn mark(&self, stat: Stat) {
        let (word, bit) = (usize::from(stat.0) / 64, 1u64 << (stat.0 % 64));
        if self.written[word].load(Relaxed) & bit == 0 {
            self.written[word].fetch_or(bit, Relaxed);
        }
    }

    fn is_written(&self, stat: Stat) -> bool {
        self.written[usize::from(stat.0) / 64].load(Relaxed) & (1 << (stat.0 % 64)) != 0
    }
}

/// One owner's stats of one family.
pub struct StatSet {
    table: &'static StatTable,
    /// What stands before each name in `/stats`, with its last dot: `cluster.a.`.
    prefix: Box<str>,
    /// What stands before each name in Prometheus, after `envoy_`: `cluster`.
    family: &'static str,
    /// Prometheus labels.
    labels: Box<[(&'static str, Box<str>)]>,
    blocks: PerWorker<Block>,
    /// What counters and codes are counted from, since the last reset: workers' cells have one writer each.
    baseline: RwLock<Option<Box<Baseline>>>,
}

/// Sums at the moment of a reset.
struct Baseline {
    cells: Box<[u64]>,
    codes: Box<[u64]>,
}

impl StatSet {
    #[inline]
    fn block(&self) -> &Block {
        self.blocks.get_or_init(|| Block::new(self.table))
    }

    /// Adds one to a counter or gauge.
    #[inline]
    pub fn inc(&self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Takes one from a gauge.
    #[inline]
    pub fn dec(&self, stat: Stat) {
        self.add(stat, 1u64.wrapping_neg());
    }

    /// Adds to a counter, or (wrapping) to a gauge.
    #[inline]
    pub fn add(&self, stat: Stat, by: u64) {
        let block = self.block();
        add(
            &block.cells[usize::from(stat.0)],
            by,
            Shard::current() != Shard::CONTROL,
        );
        block.mark(stat);
    }

    /// Sets a gauge. Only one shard may set a given gauge; by convention the control side.
    pub fn set(&self, stat: Stat, value: u64) {
        let block = self.block();
        block.cells[usize::from(stat.0)].store(value, Relaxed);
        block.mark(stat);
    }

    /// Records a value in a histogram.
    #[inline]
    pub fn record(&self, stat: Stat, value: u64) {
        let block = self.block();
        block.histograms[usize::from(stat.0)]
            .get_or_init(Box::default)
            .record(value, Shard::current() != Shard::CONTROL);
        block.mark(stat);
    }

    /// Counts a response code as `upstream_rq_<code>`; codes outside 100..600 as `upstream_rq_unknown`.
    #[inline]
    pub fn inc_code(&self, code: u16) {
        let code = if CODES.contains(&code) {
            code
        } else {
            UNKNOWN_CODE
        };
        let codes = self
            .block()
            .codes
            .get_or_init(|| CODES.map(|_| AtomicU64::new(0)).collect());
        add(
            &codes[usize::from(code - CODES.start)],
            1,
            Shard::current() != Shard::CONTROL,
        );
    }

    /// The sum over all shards, of counters since the last reset.
    pub fn value(&self, stat: Stat) -> u64 {
        let sum = self.sum(stat);
        match &*self.baseline.read() {
            Some(baseline) => sum.wrapping_sub(baseline.cells[usize::from(stat.0)]),
            None => sum,
        }
    }

    fn sum(&self, stat: Stat) -> u64 {
        self.blocks
            .iter()
            .map(|(_, block)| block.cells[usize::from(stat.0)].load(Relaxed))
            .fold(0, u64::wrapping_add)
    }

    /// Counters and codes start again from zero; gauges and histograms stay.
    pub fn reset_counters(&self) {
        let mut baseline = self.baseline.write();
        let cells = (0u16..)
            .zip(self.table.stats)
            .map(|(index, def)| match def.kind {
                Kind::Counter => self.sum(Stat(index)),
                Kind::Gauge | Kind::Histogram => 0,
            })
            .collect();
        let mut codes = vec![0; CODES.len()];
        for (code, count) in self.code_sums() {
            codes[usize::from(code - CODES.start)] = count;
        }
        *baseline = Some(Box::new(Baseline {
            cells,
            codes: codes.into(),
        }));
    }

    /// True once the stat was written.
    pub fn is_used(&self, stat: Stat) -> bool {
        self.blocks.iter().any(|(_, block)| block.is_written(stat))
    }

    /// A histogram's counts over all shards.
    pub fn histogram(&self, stat: Stat) -> HistogramCounts {
        let mut counts = HistogramCounts::default();
        for (_, block) in self.blocks.iter() {
            if let Some(histogram) = block
                .histograms
                .get(usize::from(stat.0))
                .and_then(OnceLock::get)
            {
                histogram.add_to(&mut counts);
            }
        }
        counts
    }

    /// Counted response codes with their sums since the last reset, ascending; 600 stands for all from there.
    pub fn codes(&self) -> Vec<(u16, u64)> {
        let mut sums = self.code_sums();
        if let Some(baseline) = &*self.baseline.read() {
            for (code, count) in &mut sums {
                *count -= baseline.codes[usize::from(*code - CODES.start)].min(*count);
            }
        }
        sums
    }

    fn code_sums(&self) -> Vec<(u16, u64)> {
        let blocks: Vec<_> = self
            .blocks
            .iter()
            .filter_map(|(_, block)| block.codes.get())
            .collect();
        CODES
            .map(|code| {
                let cell = usize::from(code - CODES.start);
                (
                    code,
                    blocks
                        .iter()
                        .map(|codes| codes[cell].load(Relaxed))
                        .sum::<u64>(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// What stands before each name, with its last dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The family name for Prometheus (`cluster`).
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Prometheus labels of every stat of the set.
    pub fn labels(&self) -> &[(&'static str, Box<str>)] {
        &self.labels
    }

    /// The table of the set.
    pub fn table(&self) -> &'static StatTable {
        self.table
    }
}

impl fmt::Debug for StatSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatSet").field(&self.prefix).finish()
    }
}

/// A metric of a name known only at run time.
pub struct Metric {
    name: Box<str>,
    kind: Kind,
    value: AtomicU64,
    histogram: OnceLock<Box<Histogram>>,
    written: AtomicU64,
}

impl Metric {
    /// The name in `/stats`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it measures.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds (wrapping) to a counter or gauge.
    pub fn add(&self, by: u64) {
        self.value.fetch_add(by, Relaxed);
        self.written.store(1, Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.value.store(value, Relaxed);
        self.written.store(1, Relaxed);
    }

    /// Records a value in a histogram.
    pub fn record(&self, value: u64) {
        self.histogram
            .get_or_init(Box::default)
            .record(value, false);
        self.written.store(1, Relaxed);
    }

    /// The value of a counter or gauge.
    pub fn value(&self) -> u64 {
        self.value.load(Relaxed)
    }

    /// True once it was written.
    pub fn is_used(&self) -> bool {
        self.written.load(Relaxed) != 0
    }

    /// A histogram's counts.
    pub fn counts(&self) -> HistogramCounts {
        let mut counts = HistogramCounts::default();
        if let Some(histogram) = self.histogram.get() {
            histogram.add_to(&mut counts);
        }
        counts
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish()
    }
}

/// All metrics of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shards: Shards,
    sets: RwLock<Vec<Weak<StatSet>>>,
    metrics: RwLock<BTreeMap<Box<str>, Kinds>>,
    /// By name, which of them count for whom. Locked before `metrics`.
    owners: Mutex<HashMap<Box<str>, owned::Owned>>,
    /// Text readouts: `listener_manager.lds.version_text`.
    texts: RwLock<BTreeMap<Box<str>, String>>,
}

/// The metrics of one name, by kind: as in Envoy they have nothing to do with one another.
#[derive(Debug, Default)]
struct Kinds([Option<Arc<Metric>>; 3]);

impl Kinds {
    /// True where a metric that nobody holds any more stands beside one of another kind that somebody holds.
    fn are_stale(&self) -> bool {
        let mut metrics = self.0.iter().flatten().map(Arc::strong_count);
        metrics.clone().any(|count| count > 1) && metrics.any(|count| count == 1)
    }

    /// Forgets such metrics.
    fn refresh(&mut self) {
        if self.are_stale() {
            for metric in &mut self.0 {
                metric.take_if(|metric| Arc::strong_count(metric) == 1);
            }
        }
    }
}

impl Registry {
    /// An empty registry for a process of so many shards.
    pub fn new(shards: Shards) -> Self {
        Self(Arc::new(Inner {
            shards,
            sets: RwLock::default(),
            metrics: RwLock::default(),
            owners: Mutex::default(),
            texts: RwLock::default(),
        }))
    }

    /// The shards that may write.
    pub fn shards(&self) -> Shards {
        self.0.shards
    }

    /// Adds a set; it leaves the registry when its last `Arc` goes.
    pub fn set(
        &self,
        table: &'static StatTable,
        prefix: impl Into<Box<str>>,
        family: &'static str,
        labels: impl Into<Box<[(&'static str, Box<str>)]>>,
    ) -> Arc<StatSet> {
        let set = Arc::new(StatSet {
            table,
            prefix: prefix.into(),
            family,
            labels: labels.into(),
            blocks: PerWorker::new(self.0.shards),
            baseline: RwLock::new(None),
        });
        let mut sets = self.0.sets.write();
        // Sweep the dead when the list would grow: amortised O(1) an addition.
        if sets.len() == sets.capacity() {
            sets.retain(|set| set.strong_count() > 0);
        }
        sets.push(Arc::downgrade(&set));
        set
    }

    /// The metric of that kind called `name`, made at first use.
    pub fn metric(&self, name: &str, kind: Kind) -> Arc<Metric> {
        if let Some(metric) = self.known(name, kind) {
            return metric;
        }
        let mut metrics = self.0.metrics.write();
        let kinds = metrics.entry(name.into()).or_default();
        let metric = kinds.0[kind as usize].get_or_insert_with(|| {
            Arc::new(Metric {
                name: name.into(),
                kind,
                value: AtomicU64::new(0),
                histogram: OnceLock::new(),
                written: AtomicU64::new(0),
            })
        });
        Arc::clone(metric)
    }

    fn known(&self, name: &str, kind: Kind) -> Option<Arc<Metric>> {
        let metrics = self.0.metrics.read();
        metrics.get(name)?.0[kind as usize].clone()
    }

    /// All counters start again from zero.
    pub fn reset_counters(&self) {
        for set in self.sets() {
            set.reset_counters();
        }
        for metric in self.metrics() {
            if metric.kind() == Kind::Counter {
                metric.value.store(0, Relaxed);
            }
        }
    }

    /// Sets a text readout.
    pub fn set_text(&self, name: &str, value: impl Into<String>) {
        self.0.texts.write().insert(name.into(), value.into());
    }

    /// Takes a text readout away.
    pub fn remove_text(&self, name: &str) {
        self.0.texts.write().remove(name);
    }

    /// All living sets.
    pub fn sets(&self) -> Vec<Arc<StatSet>> {
        self.0
            .sets
            .read()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// All single metrics, by name. Where a plugin's new version has made another kind of a metric, the old one is there
    /// for as long as somebody holds it: nothing could read a page that has both for ever.
    pub fn metrics(&self) -> Vec<Arc<Metric>> {
        let stale = self.0.metrics.read().values().any(Kinds::are_stale);
        if stale {
            self.0.metrics.write().values_mut().for_each(Kinds::refresh);
        }
        let metrics = self.0.metrics.read();
        let kinds = metrics.values().flat_map(|kinds| &kinds.0);
        kinds.flatten().cloned().collect()
    }

    /// All text readouts, by name.
    pub fn texts(&self) -> Vec<(Box<str>, String)> {
        self.0
            .texts
            .read()
            .iter()
            .map(|(name, text)| (name.clone(), text.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stats! { mod sample { HITS: Counter = "hits", OPEN: Gauge = "open", TOOK: Histogram = "took_ms" } }

    #[test]
    fn sums_shards_and_knows_what_was_written() {
        let registry = Registry::new(Shards::for_workers(2));
        let set = registry.set(&sample::TABLE, "sample.a.", "sample", []);
        assert!(!set.is_used(sample::HITS));
        set.inc(sample::HITS);
        let remote = Arc::clone(&set);
        std::thread::spawn(move || {
            Shard::worker(1).enter();
            remote.add(sample::HITS, 2);
            remote.inc(sample::OPEN);
            remote.dec(sample::OPEN);
            remote.record(sample::TOOK, 3);
            remote.inc_code(204);
        })
        .join()
        .expect("no panic");
        assert_eq!(set.value(sample::HITS), 3);
        assert_eq!(set.value(sample::OPEN), 0);
        assert!(set.is_used(sample::OPEN), "written, though zero");
        assert_eq!(
            set.histogram(sample::TOOK).buckets[2],
            1,
            "3 ms lies in (1, 5]"
        );
        assert_eq!(set.codes(), [(204, 1)]);
    }

    #[test]
    fn a_set_leaves_with_its_owner() {
        let registry = Registry::new(Shards::for_workers(1));
        let set = registry.set(&sample::TABLE, "sample.b.", "sample", []);
        assert_eq!(registry.sets().len(), 1);
        drop(set);
        assert!(registry.sets().is_empty());
    }

    #[test]
    fn a_name_may_have_several_kinds_while_somebody_holds_them() {
        let registry = Registry::new(Shards::for_workers(1));
        let kinds = || -> Vec<Kind> {
            let metrics = registry.metrics();
            metrics.iter().map(|metric| metric.kind()).collect()
        };
        let counter = registry.metric("m", Kind::Counter);
        counter.add(2);
        let gauge = registry.metric("m", Kind::Gauge);
        gauge.set(7);
        assert_eq!(registry.metric("m", Kind::Counter).value(), 2);
        assert_eq!(kinds(), [Kind::Counter, Kind::Gauge]);
        drop(counter);
        assert_eq!(kinds(), [Kind::Gauge]);
        drop(gauge);
        assert_eq!(kinds(), [Kind::Gauge], "it is there for who comes back");
        assert_eq!(registry.metric("m", Kind::Gauge).value(), 7);
    }

    #[test]
    fn a_reset_is_for_counters() {
        let registry = Registry::new(Shards::for_workers(1));
        let set = registry.set(&sample::TABLE, "sample.c.", "sample", []);
        let metric = registry.metric("m", Kind::Counter);
        set.add(sample::HITS, 3);
        set.inc(sample::OPEN);
        set.inc_code(200);
        metric.add(2);
        registry.reset_counters();
        assert_eq!((set.value(sample::HITS), set.value(sample::OPEN)), (0, 1));
        assert_eq!((set.codes(), metric.value()), (vec![(200, 0)], 0));
        set.inc(sample::HITS);
        set.inc_code(200);
        set.inc_code(404);
        assert_eq!(set.value(sample::HITS), 1);
        assert_eq!(set.codes(), [(200, 1), (404, 1)]);
    }
}
