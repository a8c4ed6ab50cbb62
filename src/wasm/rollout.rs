//! A new version on trial: it takes a share of the streams beside the old one, and is promoted or rolled back by what
//! comes of them.
//!
//! What is compared: the part of streams that the plugin itself broke (a VM that failed under them, or a reply of its own
//! with a status of 500 or more), or, where those are more, the VMs that failed whatever they were at – a log, the end of a
//! stream, a timer –, and how long streams took. A version that breaks more is rolled back as soon as that is
//! plain, and at the latest when the window ends. Streams stay with the version that they began with; those for which the
//! version on trial has no VM begin with the old one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::meter::{BUCKETS, bound, bucket};
use super::plugin::Plugin;
use crate::config::wasm_settings::RolloutPolicy;

/// So many broken streams are the least to tell anything before the window ends.
const FEW: u64 = 5;
/// A window in which too few streams came is that much longer at most.
const PATIENCE: u32 = 10;

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
pub(crate) enum Arm {
    Old = 0,
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
    begin: Instant,
    /// VMs of either that had failed before.
    failed_before: [u64; 2],
    tallies: [Tally; 2],
    verdict: Mutex<Option<Verdict>>,
}

/// What came of one version's streams.
#[derive(Debug)]
struct Tally {
    streams: AtomicU64,
    broken: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            streams: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// A stream's part in a trial.
#[derive(Clone, Debug)]
pub struct Part {
    trial: Arc<Trial>,
    arm: Arm,
}

impl Part {
    /// The stream has ended: whether the plugin broke it, and how long it took.
    pub fn ended(&self, broken: bool, took: Duration) {
        let tally = &self.trial.tallies[self.arm as usize];
        tally.streams.fetch_add(1, Relaxed);
        if broken {
            tally.broken.fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        tally.times[bucket(nanos)].fetch_add(1, Relaxed);
    }
}

impl Trial {
    pub(crate) fn new(old: Arc<Plugin>, new: Arc<Plugin>, policy: RolloutPolicy) -> Self {
        new.set_on_trial(true);
        Self {
            share: AtomicU32::new(per_million(policy.share_percent)),
            policy,
            begin: Instant::now(),
            failed_before: [old.failed_vms(), new.failed_vms()],
            tallies: Default::default(),
            verdict: Mutex::new(None),
            old,
            new,
        }
    }

    /// Which version a stream begins with, and its part in the trial.
    pub fn pick(self: &Arc<Self>) -> (&Arc<Plugin>, Part) {
        let arm = if fastrand::u32(..1_000_000) < self.share.load(Relaxed) {
            Arm::New
        } else {
            Arm::Old
        };
        (self.plugin(arm), self.part(arm))
    }

    /// As [`Plugin::hears_ends`], of either.
    pub fn hears_ends(&self) -> bool {
        self.old.hears_ends() || self.new.hears_ends()
    }

    /// The old version, for a stream that the new one cannot take.
    pub fn fall_back(self: &Arc<Self>) -> (&Arc<Plugin>, Part) {
        (&self.old, self.part(Arm::Old))
    }

    fn part(self: &Arc<Self>, arm: Arm) -> Part {
        Part {
            trial: Arc::clone(self),
            arm,
        }
    }

    fn plugin(&self, arm: Arm) -> &Arc<Plugin> {
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

    /// Changes the share of the new version, in percent.
    pub(crate) fn set_share(&self, percent: u32) {
        if self.verdict.lock().is_none() {
            self.share.store(per_million(percent), Relaxed);
        }
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
                self.new.set_on_trial(false);
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
        let [old, new] = [Arm::Old, Arm::New].map(|arm| self.count(arm));
        match judge(&self.policy, &old, &new, self.begin.elapsed()) {
            Some(verdict) => self.decide(verdict),
            None => false,
        }
    }

    fn count(&self, arm: Arm) -> Count {
        let before = self.failed_before[arm as usize];
        let failed = self.plugin(arm).failed_vms().saturating_sub(before);
        self.tallies[arm as usize].count(failed)
    }

    /// How it goes, in a line.
    pub(crate) fn describe(&self) -> String {
        let [old, new] = [Arm::Old, Arm::New].map(|arm| self.count(arm));
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

impl Tally {
    fn count(&self, failed: u64) -> Count {
        let times: Vec<u64> = self.times.iter().map(|count| count.load(Relaxed)).collect();
        let ended: u64 = times.iter().sum();
        let rank = (ended * 9).div_ceil(10).max(1);
        let mut seen = 0;
        let p90 = times.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Count {
            streams: self.streams.load(Relaxed),
            broken: self.broken.load(Relaxed),
            failed,
            p90: p90.map_or(Duration::ZERO, |found| Duration::from_nanos(bound(found))),
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

    fn describe(&self) -> String {
        let failed = match self.failed {
            0 => String::new(),
            1 => ", 1 VM failed".to_owned(),
            failed => format!(", {failed} VMs failed"),
        };
        format!(
            "{} of {} streams broken ({:.2} %){failed}, p90 {:?}",
            self.broken,
            self.streams,
            self.broken as f64 / self.streams.max(1) as f64 * 100.0,
            self.p90
        )
    }
}

/// The verdict, once there is one.
fn judge(policy: &RolloutPolicy, old: &Count, new: &Count, age: Duration) -> Option<Verdict> {
    let report = || format!("{}; the old version: {}", new.describe(), old.describe());
    let roll_back = |why: &str| Some(Verdict::RolledBack(format!("{why}: {}", report())));
    let allowed = old.part() + policy.max_broken_percent / 100.0;
    // Two standard deviations of a count that is as small as this.
    let harm = new.harm() as f64;
    let surely = (harm - 2.0 * harm.sqrt()) / new.of() as f64;
    let breaks_more = if new.failed > new.broken {
        "its VMs fail more"
    } else {
        "it breaks more streams"
    };
    if new.harm() >= FEW && surely > allowed {
        return roll_back(breaks_more);
    }
    if age < policy.window {
        return None;
    }
    if new.streams < u64::from(policy.min_streams) {
        let waited = age >= policy.window.saturating_mul(PATIENCE);
        return match (waited, new.harm()) {
            (false, _) => None,
            (true, 0) => Some(Verdict::Promoted(format!("few streams came: {}", report()))),
            (true, _) => roll_back("few streams came, and it breaks some"),
        };
    }
    if new.part() > allowed {
        return roll_back(breaks_more);
    }
    if old.streams >= u64::from(policy.min_streams)
        && new.p90 > old.p90.saturating_add(policy.max_added_latency)
    {
        return roll_back("streams take longer");
    }
    Some(Verdict::Promoted(report()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(streams: u64, broken: u64, millis: u64) -> Count {
        Count {
            streams,
            broken,
            failed: 0,
            p90: Duration::from_millis(millis),
        }
    }

    fn failing(streams: u64, failed: u64) -> Count {
        Count {
            failed,
            ..count(streams, 0, 5)
        }
    }

    #[test]
    fn verdicts() {
        let policy = RolloutPolicy {
            share_percent: 10,
            window: Duration::from_secs(60),
            min_streams: 100,
            max_broken_percent: 1.0,
            max_added_latency: Duration::from_millis(10),
        };
        let good = count(9000, 0, 5);
        for (name, old, new, seconds, expected) in [
            ("young and good", good, count(1000, 0, 5), 59, None),
            ("good", good, count(1000, 0, 5), 60, Some(true)),
            ("a few are chance", good, count(1000, 4, 5), 30, None),
            ("2 % is not", good, count(1000, 20, 5), 30, Some(false)),
            ("all, at once", good, count(10, 10, 5), 1, Some(false)),
            ("one is no sign", good, count(10, 1, 5), 1, None),
            (
                "2 % of few, at the end",
                good,
                count(150, 3, 5),
                60,
                Some(false),
            ),
            ("what is allowed", good, count(1000, 10, 5), 60, Some(true)),
            (
                "the old one breaks as many",
                count(9000, 450, 5),
                count(1000, 50, 5),
                60,
                Some(true),
            ),
            ("slower", good, count(1000, 0, 16), 60, Some(false)),
            ("a little slower", good, count(1000, 0, 15), 60, Some(true)),
            (
                "slower than one",
                count(1, 0, 5),
                count(1000, 0, 16),
                60,
                Some(true),
            ),
            ("nobody came", good, count(0, 0, 0), 60, None),
            ("nobody ever came", good, count(0, 0, 0), 600, Some(true)),
            ("few came to harm", good, count(50, 1, 5), 600, Some(false)),
            (
                "its VMs fail when streams have ended",
                good,
                failing(5, 5),
                1,
                Some(false),
            ),
            (
                "its VMs fail before a stream comes to them",
                good,
                failing(0, 5),
                1,
                Some(false),
            ),
            (
                "one VM failed, and nobody came",
                good,
                failing(0, 1),
                600,
                Some(false),
            ),
            ("one of many", good, failing(1000, 1), 60, Some(true)),
            (
                "those of the old one fail as often",
                failing(9000, 450),
                failing(1000, 50),
                60,
                Some(true),
            ),
        ] {
            let verdict = judge(&policy, &old, &new, Duration::from_secs(seconds));
            let promoted = verdict
                .as_ref()
                .map(|verdict| matches!(verdict, Verdict::Promoted(_)));
            assert_eq!(promoted, expected, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn the_reason_has_the_figures() {
        let policy = RolloutPolicy {
            share_percent: 10,
            ..RolloutPolicy::default()
        };
        let verdict = judge(
            &policy,
            &count(900, 0, 5),
            &count(100, 50, 5),
            Duration::ZERO,
        );
        let Some(Verdict::RolledBack(reason)) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(
            reason,
            "it breaks more streams: 50 of 100 streams broken (50.00 %), p90 5ms; \
             the old version: 0 of 900 streams broken (0.00 %), p90 5ms"
        );
    }
}
