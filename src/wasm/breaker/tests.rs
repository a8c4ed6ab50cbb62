//! The breaker on a clock that is paused.

use tokio::time::advance;

use super::*;

fn breaker(failure: FailurePolicy, workers: usize) -> Breaker {
    Breaker::new(
        BreakerPolicy::default(),
        AfterCrash::Rebuild,
        failure,
        workers,
        Instant::now(),
    )
}

/// Waits as it is told, and says for how long; what came then.
async fn wait(breaker: &mut Breaker) -> (Duration, Action) {
    let Action::SleepUntil(until) = breaker.next(Instant::now()) else {
        panic!("it does not wait");
    };
    let wait = until - Instant::now();
    advance(wait).await;
    (wait, breaker.next(Instant::now()))
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_of_each_worker_costs_nothing_and_a_row_of_them_more_and_more() {
    let mut breaker = breaker(FailurePolicy::Closed, 2);
    for worker in [1, 0] {
        breaker.failed(worker, Instant::now());
        assert_eq!(breaker.next(Instant::now()), Action::Build(worker));
        breaker.built(worker, Instant::now());
        assert_eq!(breaker.next(Instant::now()), Action::Idle);
    }
    for second in [1, 2, 4, 8, 16] {
        breaker.failed(0, Instant::now());
        assert_eq!(breaker.state(), BreakerState::Open);
        let limit = Duration::from_secs(second);
        let (waited, action) = wait(&mut breaker).await;
        assert!(
            waited >= limit / 2 && waited <= limit,
            "{waited:?} of {limit:?}"
        );
        assert_eq!(action, Action::Probe(0, 10));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.built(0, Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn waits_end_at_the_longest() {
    let mut breaker = breaker(FailurePolicy::Closed, 1);
    breaker.failed(0, Instant::now());
    breaker.next(Instant::now());
    for _ in 0..40 {
        breaker.failed(0, Instant::now());
        let (waited, _) = wait(&mut breaker).await;
        assert!(waited <= Duration::from_secs(60));
        breaker.built(0, Instant::now());
    }
    breaker.failed(0, Instant::now());
    assert!(wait(&mut breaker).await.0 >= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn one_vm_probes_and_the_others_follow_when_it_has_served() {
    let mut breaker = breaker(FailurePolicy::Closed, 3);
    for worker in [0, 1, 2] {
        breaker.failed(worker, Instant::now());
        breaker.next(Instant::now());
        breaker.built(worker, Instant::now());
    }
    // No token is left.
    for worker in [0, 1, 2] {
        breaker.failed(worker, Instant::now());
    }
    assert_eq!(wait(&mut breaker).await.1, Action::Probe(0, 10));
    // Nobody follows while it is built, nor while it serves.
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
    breaker.proven(0);
    assert_eq!(
        breaker.state(),
        BreakerState::HalfOpen,
        "it is not there yet"
    );
    breaker.built(0, Instant::now());
    assert!(matches!(
        breaker.next(Instant::now()),
        Action::SleepUntil(_)
    ));
    breaker.proven(1);
    assert_eq!(breaker.state(), BreakerState::HalfOpen, "another's word");
    breaker.proven(0);
    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!(breaker.next(Instant::now()), Action::Build(1));
    assert_eq!(breaker.next(Instant::now()), Action::Build(2));
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
    // What has not yet been forgotten: the next wait is longer.
    breaker.failed(1, Instant::now());
    assert!(wait(&mut breaker).await.0 >= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_nobody_asks_closes_by_its_age() {
    let mut breaker = breaker(FailurePolicy::Closed, 2);
    for worker in [0, 1, 0, 1] {
        breaker.failed(worker, Instant::now());
        breaker.next(Instant::now());
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    assert_eq!(wait(&mut breaker).await.1, Action::Probe(0, 10));
    breaker.built(0, Instant::now());
    assert_eq!(
        wait(&mut breaker).await,
        (Duration::from_secs(1), Action::Build(1))
    );
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_good_life_is_rewarded() {
    let mut breaker = breaker(FailurePolicy::Closed, 1);
    for _ in 0..2 {
        breaker.failed(0, Instant::now());
        breaker.next(Instant::now());
    }
    for _ in 0..5 {
        wait(&mut breaker).await;
        breaker.failed(0, Instant::now());
    }
    wait(&mut breaker).await;
    breaker.built(0, Instant::now());
    advance(Duration::from_secs(60)).await;
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
    // The token is back, and the row is forgotten.
    breaker.failed(0, Instant::now());
    assert_eq!(breaker.next(Instant::now()), Action::Build(0));
    breaker.failed(0, Instant::now());
    assert!(wait(&mut breaker).await.0 <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn reload_keeps_its_backoff_between_two_vms_of_a_worker() {
    let backoff = Duration::from_secs(90);
    let mut breaker = breaker(FailurePolicy::Reload { backoff }, 2);
    // The first has just been made, and so has each that follows; waits do not grow.
    for _ in 0..5 {
        breaker.failed(0, Instant::now());
        assert_eq!(breaker.state(), BreakerState::Open);
        let (waited, action) = wait(&mut breaker).await;
        assert!(waited >= backoff && waited <= backoff * 3 / 2, "{waited:?}");
        assert_eq!(action, Action::Build(0));
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.built(0, Instant::now());
    }
    // One that has lived for longer is replaced at once, on each worker by itself.
    breaker.failed(1, Instant::now());
    assert_eq!(breaker.next(Instant::now()), Action::Build(1));
    breaker.built(1, Instant::now());
    advance(backoff * 2).await;
    for worker in [0, 1] {
        breaker.failed(worker, Instant::now());
        assert_eq!(breaker.next(Instant::now()), Action::Build(worker));
    }
    // One that cannot be built is not tried without pause.
    breaker.failed(0, Instant::now());
    let (waited, _) = wait(&mut breaker).await;
    assert!(waited >= backoff, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn as_envoy_only_reload_builds_again() {
    let as_envoy = |failure| {
        let policy = BreakerPolicy::default();
        Breaker::new(policy, AfterCrash::Envoy, failure, 1, Instant::now())
    };
    for failure in [
        FailurePolicy::Closed,
        FailurePolicy::Open { crashing: false },
    ] {
        let mut breaker = as_envoy(failure);
        breaker.failed(0, Instant::now());
        assert_eq!(breaker.next(Instant::now()), Action::Idle);
        assert_eq!(breaker.state(), BreakerState::Off);
    }
    let backoff = Duration::from_secs(1);
    let mut breaker = as_envoy(FailurePolicy::Reload { backoff });
    breaker.failed(0, Instant::now());
    assert_eq!(wait(&mut breaker).await.1, Action::Build(0));
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_builds_at_most_one_vm_a_wait() {
    let mut breaker = breaker(FailurePolicy::Closed, 4);
    let begin = Instant::now();
    let mut built = 0;
    for worker in 0..4 {
        breaker.failed(worker, begin);
    }
    while begin.elapsed() < Duration::from_secs(300) {
        match breaker.next(Instant::now()) {
            // It dies on its first request.
            Action::Build(worker) | Action::Probe(worker, _) => {
                built += 1;
                breaker.built(worker, Instant::now());
                breaker.failed(worker, Instant::now());
            }
            Action::SleepUntil(until) => advance(until - Instant::now()).await,
            Action::Idle => panic!("workers wait"),
            Action::Complete(_) => panic!("nobody is missing"),
        }
    }
    // A token for each worker, then waits of at least 0.5, 1, 2, 4, 8, 16 and 30 seconds, and again 30 …
    assert!((10..=30).contains(&built), "{built}");
}

#[test]
fn a_gate_lets_as_many_pass_as_it_is_told() {
    let gate = Gate::default();
    assert!((0..100).all(|_| gate.admit()));
    gate.limit(2);
    assert_eq!(
        [gate.admit(), gate.admit(), gate.admit()],
        [true, true, false]
    );
    assert!(gate.is_shut());
    gate.lift();
    assert!(gate.admit() && !gate.is_shut());
}

#[tokio::test(start_paused = true)]
async fn who_joins_owes_nothing_for_those_before() {
    let mut breaker = breaker(FailurePolicy::Closed, 1);
    breaker.failed(0, Instant::now());
    breaker.next(Instant::now());
    breaker.failed(0, Instant::now());
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker.forgive(Instant::now());
    assert_eq!(breaker.state(), BreakerState::Closed);
    // Who is in it already is there again with the newcomer, who has a token.
    assert_eq!(breaker.next(Instant::now()), Action::Build(0));
    breaker.failed(0, Instant::now());
    assert_eq!(breaker.next(Instant::now()), Action::Build(0));
    breaker.failed(0, Instant::now());
    let (waited, _) = wait(&mut breaker).await;
    assert!(waited <= Duration::from_secs(1), "the first wait again");
}

#[tokio::test(start_paused = true)]
async fn the_rules_follow_the_failure_policy_of_who_is_in() {
    let backoff = Duration::from_secs(9);
    let mut breaker = Breaker::new(
        BreakerPolicy::default(),
        AfterCrash::Envoy,
        FailurePolicy::Closed,
        1,
        Instant::now(),
    );
    breaker.failed(0, Instant::now());
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
    assert_eq!(breaker.state(), BreakerState::Off);
    // One that reloads has come: the dead VM comes back.
    breaker.obey(FailurePolicy::Reload { backoff });
    assert_eq!(breaker.next(Instant::now()), Action::Build(0));
    breaker.failed(0, Instant::now());
    let (waited, _) = wait(&mut breaker).await;
    assert!(waited >= backoff && waited <= backoff * 3 / 2, "{waited:?}");
    // And gone.
    breaker.obey(FailurePolicy::Closed);
    breaker.failed(0, Instant::now());
    assert_eq!(breaker.state(), BreakerState::Off);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_fails_slowly_waits_all_the_same() {
    let backoff = Duration::from_secs(1);
    let mut breaker = breaker(FailurePolicy::Reload { backoff }, 1);
    advance(backoff * 2).await;
    breaker.failed(0, Instant::now());
    for _ in 0..3 {
        assert_eq!(breaker.next(Instant::now()), Action::Build(0));
        advance(backoff * 5).await;
        breaker.not_built(0, Instant::now());
        let Action::SleepUntil(until) = breaker.next(Instant::now()) else {
            panic!("it does not wait");
        };
        assert!(until - Instant::now() >= backoff);
        advance(until - Instant::now()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_missing_in_a_vm_is_tried_again_and_costs_the_others_nothing() {
    let mut breaker = breaker(FailurePolicy::Closed, 2);
    for worker in [0, 1, 0, 1] {
        breaker.failed(worker, Instant::now());
        breaker.next(Instant::now());
    }
    // The VM of the probe stands without somebody: it closes the breaker all the same, and the other worker follows.
    assert_eq!(wait(&mut breaker).await.1, Action::Probe(0, 10));
    breaker.built(0, Instant::now());
    breaker.incomplete(0, Instant::now());
    breaker.proven(0);
    assert_eq!(breaker.next(Instant::now()), Action::Build(1));
    breaker.built(1, Instant::now());
    assert_eq!(breaker.state(), BreakerState::Closed);
    for second in [1, 2, 4] {
        let limit = Duration::from_secs(second);
        let (waited, action) = wait(&mut breaker).await;
        assert!(
            waited >= limit / 2 && waited <= limit,
            "{waited:?} of {limit:?}"
        );
        assert_eq!(action, Action::Complete(0));
        assert_eq!(breaker.next(Instant::now()), Action::Idle, "it is tried");
        breaker.incomplete(0, Instant::now());
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
    assert_eq!(wait(&mut breaker).await.1, Action::Complete(0));
    breaker.completed(0);
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
    // Nor is it tried where there is no VM.
    breaker.incomplete(1, Instant::now());
    advance(Duration::from_secs(60)).await;
    breaker.failed(1, Instant::now());
    assert_eq!(breaker.next(Instant::now()), Action::Build(1));
    assert_eq!(breaker.next(Instant::now()), Action::Idle);
}
