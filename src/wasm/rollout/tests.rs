//! What a trial makes of the streams of two versions, on a clock that stands.

use super::*;

fn count(streams: u64, broken: u64, millis: u64) -> Count {
    Count {
        streams,
        broken,
        p90: Duration::from_millis(millis),
        ..Count::default()
    }
}

/// Of so many streams that came, these are open and overdue.
fn hanging(came: u64, overdue: u64) -> Count {
    Count {
        open: overdue,
        overdue,
        hung: overdue,
        ..count(came - overdue, 0, 5)
    }
}

/// Streams that are open, none for too long.
fn open(open: u64) -> Count {
    Count {
        open,
        ..count(0, 0, 0)
    }
}

/// Streams that ended, so many of them after all too long.
fn late(ended: u64, hung: u64) -> Count {
    Count {
        hung,
        ..count(ended, 0, 5)
    }
}

fn failing(streams: u64, failed: u64) -> Count {
    Count {
        failed,
        ..count(streams, 0, 5)
    }
}

#[test]
fn a_vm_that_failed_under_a_stream_of_which_the_end_is_not_heard_yet_is_no_other_reason() {
    let policy = RolloutPolicy {
        share_percent: 50,
        ..RolloutPolicy::default()
    };
    for (broken, failed, why) in [(19, 20, "it breaks more"), (5, 20, "its VMs fail more")] {
        let new = Count {
            failed,
            ..count(500, broken, 5)
        };
        let verdict = judge(&policy, &count(500, 0, 5), &new, Duration::ZERO, false);
        let Some(Verdict::RolledBack(reason)) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(reason.starts_with(why), "{reason}");
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
        ("all hang", count(90, 0, 5), hanging(10, 10), 8, Some(false)),
        ("four hang", count(90, 0, 5), hanging(4, 4), 8, None),
        (
            "four hang for ever",
            count(90, 0, 5),
            hanging(4, 4),
            600,
            Some(false),
        ),
        ("all are open", count(90, 0, 5), open(2), 600, Some(false)),
        (
            "few are open, and there is no old one",
            open(0),
            hanging(5, 5),
            600,
            Some(true),
        ),
        (
            "all hang, and there is no old one",
            open(0),
            hanging(100, 100),
            60,
            Some(false),
        ),
        (
            "all hung until somebody gave up",
            open(0),
            late(100, 100),
            60,
            Some(false),
        ),
        (
            "that is not told before the end",
            open(0),
            hanging(100, 100),
            59,
            None,
        ),
        (
            "one of them did not",
            open(0),
            hanging(100, 99),
            60,
            Some(true),
        ),
        (
            "all are open with either",
            open(18),
            open(2),
            600,
            Some(true),
        ),
        ("5 % hang", good, hanging(1000, 50), 30, Some(false)),
        (
            "1 % hangs, which is allowed",
            good,
            hanging(1000, 10),
            60,
            Some(true),
        ),
        ("5 % hung for long", good, late(1000, 50), 30, Some(false)),
        (
            "streams last with either",
            hanging(900, 300),
            hanging(100, 40),
            60,
            Some(true),
        ),
        (
            "and no fewer came for that",
            hanging(900, 900),
            hanging(100, 100),
            60,
            Some(true),
        ),
    ] {
        let verdict = judge(&policy, &old, &new, Duration::from_secs(seconds), false);
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
        false,
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

#[test]
fn a_trial_that_rests_is_not_promoted() {
    let policy = RolloutPolicy {
        share_percent: 10,
        ..RolloutPolicy::default()
    };
    let judge = |new| judge(&policy, &count(900, 0, 5), &new, policy.window * 100, true);
    assert_eq!(judge(count(0, 0, 0)), None);
    assert_eq!(judge(count(1000, 0, 5)), None);
    assert!(matches!(
        judge(count(10, 10, 5)),
        Some(Verdict::RolledBack(_))
    ));
    assert!(matches!(
        judge(hanging(10, 10)),
        Some(Verdict::RolledBack(_))
    ));
}

#[test]
fn at_a_share_of_all_streams_a_version_that_ends_none_is_rolled_back() {
    let trial = |streams| {
        let policy = RolloutPolicy {
            share_percent: 100,
            ..RolloutPolicy::default()
        };
        let round = Round {
            begin: Instant::now()
                .checked_sub(policy.window)
                .expect("the machine is up for longer"),
            slice: policy.window / SLICES,
            failed_before: [0; 2],
            tallies: Default::default(),
        };
        let tally = &round.tallies[Arm::New as usize];
        tally.open[0].store(streams, Relaxed);
        let [old, new] = round.counts(&policy, [0; 2]);
        judge(&policy, &old, &new, policy.window, false)
    };
    assert!(matches!(trial(100), Some(Verdict::RolledBack(_))));
    assert_eq!(trial(5), None);
}

#[test]
fn what_hangs_is_far_from_usual() {
    let policy = |window, added| RolloutPolicy {
        window: Duration::from_secs(window),
        max_added_latency: Duration::from_millis(added),
        ..RolloutPolicy::default()
    };
    for (window, added, usual, expected) in [
        (60, 10, Some(5), 1000),
        (60, 10, Some(300), 3000),
        (60, 10, Some(30_000), 7500),
        (60, 10, None, 7500),
        (2, 10, Some(5), 250),
        (2, 10_000, Some(5), 10_000),
    ] {
        let after = hangs_after(&policy(window, added), usual.map(Duration::from_millis));
        assert_eq!(
            after,
            Duration::from_millis(expected),
            "{window} {added} {usual:?}"
        );
    }
}
