//! A new version on trial: it takes a share of the streams beside the old one, and is promoted or rolled back by what
//! comes of them.
//!
//! What is compared: the part of streams that the plugin itself broke (a VM that failed under them, or a reply of its own
//! with a status of 500 or more), or, where those are more, the VMs that failed whatever they were at – a log, the end of a
//! stream, a timer –, and how long streams took. A version that breaks more is rolled back as soon as that is
//! plain, and at the latest when the window ends. One that holds streams up for ever ends none, and breaks none: so what
//! is still open long after it began counts, too, beyond the part of streams that last as long with the old version.
//! Where the old one has no streams to compare with, as at a share of 100 %, that tells only where all hang and many came.
//!
//! Streams stay with the version that they began with; those for which the
//! version on trial has no VM begin with the old one.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::meter::{BUCKETS, bound, bucket};
use super::plugin::Plugin;
use crate::config::wasm_settings::RolloutPolicy;

/// So many broken streams are the least to tell anything before the window ends.
const FEW: u64 = 5;
/// A window in which too few streams came is that much longer at most.
const PATIENCE: u32 = 10;
/// So many times in a window the streams that are open are told by their age.
const SLICES: u32 = 32;
/// A stream hangs that takes so many times as long as nearly all of the old version's,
const FAR: u32 = 10;
/// and at least so long; but never where that is more than this part of a window.
const LONG: Duration = Duration::from_secs(1);
const PART_OF_WINDOW: u32 = 8;

/// What became of a version on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It takes all streams; why.
    Promoted(String),
    /// The old one keeps them; why.
    RolledBack(String),
}

/// Of which version a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The one that served before.
    Old = 0,
    /// The one on trial.
    New = 1,
}

/// The trial of one version against another.
#[derive(Debug)]
pub struct Trial {
    old: Arc<Plugin>,
    new: Arc<Plugin>,
    policy: RolloutPolicy,
    /// Streams of a million that begin with the new version.
    share: AtomicU32,
    round: ArcSwap<Round>,
    verdict: Mutex<Option<Verdict>>,
}

/// What is counted since the trial began, or since it went on after a pause.
#[derive(Debug)]
struct Round {
    begin: Instant,
    /// How long a slice of the window is.
    slice: Duration,
    /// VMs of either that had failed before.
    failed_before: [u64; 2],
    tallies: [Tally; 2],
}

/// What came of one version's streams.
#[derive(Debug)]
struct Tally {
    streams: AtomicU64,
    broken: AtomicU64,
    times: [AtomicU64; BUCKETS],
    /// Those that have not ended, by the slice that they began in.
    open: [AtomicU64; (SLICES * PATIENCE) as usize + 1],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            streams: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
            open: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// A stream's part in a trial, until the stream has ended. One that is dropped before was no stream's.
#[derive(Debug)]
pub struct Part {
    round: Arc<Round>,
    arm: Arm,
    /// The slice that it began in.
    slice: usize,
}

impl Part {
    fn begin(round: Arc<Round>, arm: Arm) -> Self {
        let slice = round.slice_at(round.begin.elapsed());
        let part = Self { round, arm, slice };
        part.tally().open[slice].fetch_add(1, Relaxed);
        part
    }

    fn tally(&self) -> &Tally {
        &self.round.tallies[self.arm as usize]
    }

    /// The stream has ended: whether the plugin broke it, and how long it took.
    pub fn ended(self, broken: bool, took: Duration) {
        let tally = self.tally();
        tally.streams.fetch_add(1, Relaxed);
        if broken {
            tally.broken.fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        tally.times[bucket(nanos)].fetch_add(1, Relaxed);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.tally().open[self.slice].fetch_sub(1, Relaxed);
    }
}

impl Round {
    fn new(policy: &RolloutPolicy, old: &Plugin, new: &Plugin) -> Self {
        Self {
            begin: Instant::now(),
            slice: (policy.window / SLICES).max(Duration::from_millis(1)),
            failed_before: [old.failed_vms(), new.failed_vms()],
            tallies: Default::default(),
        }
    }

    /// What comes after the last slice is of it.
    fn slice_at(&self, age: Duration) -> usize {
        let slice = age.as_nanos() / self.slice.as_nanos();
        usize::try_from(slice).map_or(usize::MAX, |slice| slice.min((SLICES * PATIENCE) as usize))
    }

    /// Where so many VMs of either have `failed` until now.
    fn counts(&self, policy: &RolloutPolicy, failed: [u64; 2]) -> [Count; 2] {
        let old = &self.tallies[Arm::Old as usize];
        let usual = old.any_ended().then(|| old.quantile(99));
        let limit = hangs_after(policy, usual);
        let age = self.begin.elapsed();
        // A slice that is over for so long.
        let overdue = age.checked_sub(limit).map_or(0, |age| self.slice_at(age));
        [Arm::Old, Arm::New].map(|arm| {
            let arm = arm as usize;
            let failed = failed[arm].saturating_sub(self.failed_before[arm]);
            self.tallies[arm].count(failed, limit, overdue)
        })
    }
}

impl Trial {
    pub(crate) fn new(old: Arc<Plugin>, new: Arc<Plugin>, policy: RolloutPolicy) -> Self {
        Self {
            share: AtomicU32::new(per_million(policy.share_percent)),
            round: ArcSwap::from_pointee(Round::new(&policy, &old, &new)),
            policy,
            verdict: Mutex::new(None),
            old,
            new,
        }
    }

    /// The versions that a stream may begin with, the one that it is to begin with first. The old one stands in where the
    /// new one cannot take it.
    pub fn pick(&self) -> [Arm; 2] {
        if fastrand::u32(..1_000_000) < self.share.load(Relaxed) {
            [Arm::New, Arm::Old]
        } else {
            [Arm::Old, Arm::Old]
        }
    }

    /// A stream begins with this version.
    pub fn part(&self, arm: Arm) -> Part {
        Part::begin(self.round.load_full(), arm)
    }

    /// As [`Plugin::hears_ends`], of either.
    pub fn hears_ends(&self) -> bool {
        self.old.hears_ends() || self.new.hears_ends()
    }

    /// The version itself.
    pub fn plugin(&self, arm: Arm) -> &Arc<Plugin> {
        match arm {
            Arm::Old => &self.old,
            Arm::New => &self.new,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.new.spec().name
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict.lock().clone()
    }

    /// Changes the share of the new version, in percent. Without a share the trial rests: there is no verdict for want of
    /// streams, and it begins anew when it goes on.
    pub(crate) fn set_share(&self, percent: u32) {
        if self.verdict.lock().is_some() {
            return;
        }
        if percent > 0 && self.share.load(Relaxed) == 0 {
            let round = Round::new(&self.policy, &self.old, &self.new);
            self.round.store(Arc::new(round));
        }
        // Who sees the share sees the round.
        self.share.store(per_million(percent), Release);
    }

    /// Ends it; false where it has ended.
    pub(crate) fn decide(&self, decision: Verdict) -> bool {
        let mut verdict = self.verdict.lock();
        if verdict.is_some() {
            return false;
        }
        // Streams of the Generation that still knows of the trial follow it at once.
        let share = match decision {
            Verdict::Promoted(_) => {
                self.new.serve();
                1_000_000
            }
            Verdict::RolledBack(_) => 0,
        };
        self.share.store(share, Relaxed);
        *verdict = Some(decision);
        true
    }

    /// Looks at how it goes; true where it has ended with this look.
    pub(crate) fn look(&self) -> bool {
        // First: the round before a share is not to be judged as one that goes on.
        let rests = self.share.load(Acquire) == 0;
        let round = self.round.load();
        let [old, new] = self.counts(&round);
        match judge(&self.policy, &old, &new, round.begin.elapsed(), rests) {
            Some(verdict) => self.decide(verdict),
            None => false,
        }
    }

    fn counts(&self, round: &Round) -> [Count; 2] {
        let failed = [&self.old, &self.new].map(|plugin| plugin.failed_vms());
        round.counts(&self.policy, failed)
    }

    /// How it goes, in a line.
    pub(crate) fn describe(&self) -> String {
        let [old, new] = self.counts(&self.round.load());
        format!(
            "on trial with {} % of streams: {}; the old version: {}",
            f64::from(self.share.load(Relaxed)) / 10_000.0,
            new.describe(),
            old.describe()
        )
    }
}

fn per_million(percent: u32) -> u32 {
    percent.min(100) * 10_000
}

/// How long a stream takes that hangs, where nearly all of the old version's take up to `usual`, if any ended.
fn hangs_after(policy: &RolloutPolicy, usual: Option<Duration>) -> Duration {
    let far = usual.map_or(Duration::MAX, |usual| usual.saturating_mul(FAR).max(LONG));
    let seen = far.min(policy.window / PART_OF_WINDOW);
    // What may be added is no sign.
    seen.max(policy.max_added_latency)
}

impl Tally {
    fn any_ended(&self) -> bool {
        self.times.iter().any(|count| count.load(Relaxed) > 0)
    }

    fn quantile(&self, percent: u64) -> Duration {
        let times: Vec<u64> = self.times.iter().map(|count| count.load(Relaxed)).collect();
        let rank = (times.iter().sum::<u64>() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = times.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(Duration::ZERO, |found| Duration::from_nanos(bound(found)))
    }

    /// With what took longer than `limit`, and is still open of the first `overdue` slices.
    fn count(&self, failed: u64, limit: Duration, overdue: usize) -> Count {
        let sum =
            |counts: &[AtomicU64]| counts.iter().map(|count| count.load(Relaxed)).sum::<u64>();
        let limit = bucket(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        let overdue = sum(&self.open[..overdue]);
        Count {
            streams: self.streams.load(Relaxed),
            broken: self.broken.load(Relaxed),
            failed,
            p90: self.quantile(90),
            open: sum(&self.open),
            overdue,
            hung: overdue + sum(&self.times[limit + 1..]),
        }
    }
}

/// What is known of one version.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    streams: u64,
    broken: u64,
    /// VMs.
    failed: u64,
    p90: Duration,
    /// Streams that have not ended.
    open: u64,
    /// Those of them that have been open for too long.
    overdue: u64,
    /// These, and those that ended after as long.
    hung: u64,
}

impl Count {
    /// Streams that it broke, or VMs that failed: a VM fails under a stream, or where none is harmed yet.
    fn harm(&self) -> u64 {
        self.broken.max(self.failed)
    }

    fn part(&self) -> f64 {
        self.harm() as f64 / self.of() as f64
    }

    /// What the harm is a part of. A VM that fails all by itself need not have seen a stream.
    fn of(&self) -> u64 {
        self.streams.max(self.harm()).max(1)
    }

    /// Streams of which is known what became of them.
    fn seen(&self) -> u64 {
        self.streams + self.overdue
    }

    /// True where more of its streams hang than of those of `old` and `allowed`, beyond chance: where streams may last,
    /// many do with either version.
    fn hangs_more(&self, old: &Self, allowed: f64) -> bool {
        if self.seen() == 0 || old.seen() == 0 {
            return false;
        }
        let [new_seen, old_seen] = [self, old].map(|count| count.seen() as f64);
        let all = (self.hung + old.hung) as f64 / (new_seen + old_seen);
        let deviation = (all * (1.0 - all) * (1.0 / new_seen + 1.0 / old_seen)).sqrt();
        let more = self.hung as f64 / new_seen - old.hung as f64 / old_seen;
        more > allowed + 3.0 * deviation
    }

    /// True where all of its streams hang, and nothing tells whether those of `old` would: then they may be such as last.
    fn hangs_alone(&self, old: &Self) -> bool {
        old.seen() == 0 && self.hung >= FEW && self.hung == self.seen()
    }

    fn describe(&self) -> String {
        let hung = match self.hung {
            0 => String::new(),
            hung => format!(", {hung} hung"),
        };
        let failed = match self.failed {
            0 => String::new(),
            1 => ", 1 VM failed".to_owned(),
            failed => format!(", {failed} VMs failed"),
        };
        format!(
            "{} of {} streams broken ({:.2} %){failed}{hung}, p90 {:?}",
            self.broken,
            self.streams,
            self.broken as f64 / self.streams.max(1) as f64 * 100.0,
            self.p90
        )
    }
}

/// The verdict, once there is one. While the trial `rests`, that is only what was plain before.
fn judge(
    policy: &RolloutPolicy,
    old: &Count,
    new: &Count,
    age: Duration,
    rests: bool,
) -> Option<Verdict> {
    let report = || format!("{}; the old version: {}", new.describe(), old.describe());
    let roll_back = |why: &str| Some(Verdict::RolledBack(format!("{why}: {}", report())));
    let margin = policy.max_broken_percent / 100.0;
    let allowed = old.part() + margin;
    // Two standard deviations of a count that is as small as this.
    let harm = new.harm() as f64;
    let surely = (harm - 2.0 * harm.sqrt()) / new.of() as f64;
    // A VM is counted before the stream that it failed under has ended: a few more tell nothing.
    let breaks_more = if new.failed > 2 * new.broken {
        "its VMs fail more"
    } else {
        "it breaks more streams"
    };
    if new.harm() >= FEW && surely > allowed {
        return roll_back(breaks_more);
    }
    let hangs_more = new.hangs_more(old, margin);
    if new.hung >= FEW && hangs_more {
        return roll_back("its streams hang");
    }
    if rests || age < policy.window {
        return None;
    }
    if new.seen() < u64::from(policy.min_streams) {
        if age < policy.window.saturating_mul(PATIENCE) {
            return None;
        }
        // Where streams last, those of the old version do as well; if it has none, these few tell nothing.
        let none_ends = new.streams == 0 && new.open > 0 && old.streams > 0;
        return match new.harm() {
            0 if hangs_more || none_ends => roll_back("few streams came, and they hang"),
            0 => Some(Verdict::Promoted(format!("few streams came: {}", report()))),
            _ => roll_back("few streams came, and it breaks some"),
        };
    }
    if new.part() > allowed {
        return roll_back(breaks_more);
    }
    if hangs_more {
        return roll_back("its streams hang");
    }
    if new.hangs_alone(old) {
        return roll_back("all of its streams hang");
    }
    if old.streams >= u64::from(policy.min_streams)
        && new.p90 > old.p90.saturating_add(policy.max_added_latency)
    {
        return roll_back("streams take longer");
    }
    Some(Verdict::Promoted(report()))
}

#[cfg(test)]
#[path = "rollout/tests.rs"]
mod tests;
