//! Tests of `cluster::endpoint_set`.

use std::collections::HashMap;

use super::*;
use crate::cluster::testing::{endpoint, socket};
use crate::config::endpoint::{HealthStatus, Locality, LocalityEndpoints};

fn shards() -> Shards {
    Shards::for_workers(1)
}

fn policy(balancer: Balancer) -> Policy {
    Policy {
        balancer,
        panic_threshold: 50.0,
        overprovisioning_factor: 140,
        weighted_priority_health: false,
        locality_weighted: false,
        drop_overloads: Vec::new(),
    }
}

/// One line a locality: priority, weight of the locality, and the hosts' (weight, health).
type Line<'a> = (u32, u32, &'a [(u32, HealthStatus)]);

fn set(lines: &[Line<'_>], policy: &Policy) -> EndpointSet {
    set_after(lines, policy, &EndpointSet::default())
}

fn set_after(lines: &[Line<'_>], policy: &Policy, previous: &EndpointSet) -> EndpointSet {
    let localities = (0u32..)
        .zip(lines)
        .map(|(zone, (priority, weight, hosts))| LocalityEndpoints {
            locality: Locality {
                zone: zone.to_string().into(),
                ..Locality::default()
            },
            endpoints: (1u32..)
                .zip(*hosts)
                .map(|(host, (weight, health))| {
                    let mut endpoint = endpoint(socket(&format!("10.0.{zone}.{host}:80")));
                    endpoint.weight = *weight;
                    endpoint.health = *health;
                    endpoint
                })
                .collect(),
            weight: Some(*weight),
            metadata: None,
            priority: *priority,
        })
        .collect();
    let endpoints = Endpoints {
        localities,
        ..Endpoints::default()
    };
    EndpointSet::build(members(&endpoints), policy, previous, shards())
}

/// Picks per host of 10,000, by address.
fn distribution(set: &EndpointSet) -> HashMap<String, u32> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut picks = HashMap::new();
    for _ in 0..10_000 {
        match set.pick(&mut rng) {
            Picked::Host(host) | Picked::Panic(host) => {
                *picks.entry(host.address.to_string()).or_default() += 1;
            }
            Picked::None => {}
        }
    }
    picks
}

fn assert_near(picks: &HashMap<String, u32>, host: &str, expected: u32) {
    let got = picks.get(host).copied().unwrap_or(0);
    assert!(
        got.abs_diff(expected) <= 150 && (expected != 0 || got == 0),
        "{host}: {got} picks, {expected} expected of {picks:?}"
    );
}

const UP: HealthStatus = HealthStatus::Healthy;
const DOWN: HealthStatus = HealthStatus::Unhealthy;
const WEAK: HealthStatus = HealthStatus::Degraded;

/// Percent of healthy and of degraded hosts by priority → loads. The first rows are those of Envoy's documentation
/// of priority levels and of degraded endpoints.
#[test]
fn priorities_share_the_load_as_in_envoy() {
    type Row<'a> = (&'a [(usize, usize)], &'a [u32], &'a [u32]);
    let rows: &[Row<'_>] = &[
        (&[(100, 0), (100, 0)], &[100, 0], &[0, 0]),
        (&[(72, 0), (72, 0)], &[100, 0], &[0, 0]),
        (&[(71, 0), (71, 0)], &[99, 1], &[0, 0]),
        (&[(50, 0), (50, 0)], &[70, 30], &[0, 0]),
        (&[(25, 0), (100, 0)], &[35, 65], &[0, 0]),
        (&[(25, 0), (25, 0)], &[50, 50], &[0, 0]),
        (&[(5, 0), (65, 0)], &[8, 92], &[0, 0]),
        (&[(0, 0), (100, 0)], &[0, 100], &[0, 0]),
        (&[(100, 0), (100, 0), (100, 0)], &[100, 0, 0], &[0, 0, 0]),
        (&[(50, 0), (50, 0), (50, 0)], &[70, 30, 0], &[0, 0, 0]),
        (&[(25, 0), (100, 0), (100, 0)], &[35, 65, 0], &[0, 0, 0]),
        (&[(25, 0), (25, 0), (100, 0)], &[35, 35, 30], &[0, 0, 0]),
        (&[(25, 0), (25, 0), (20, 0)], &[37, 35, 28], &[0, 0, 0]),
        (&[(50, 50), (0, 0)], &[70, 0], &[30, 0]),
        (&[(25, 75), (100, 0)], &[35, 65], &[0, 0]),
        (&[(25, 75), (25, 0)], &[35, 35], &[30, 0]),
        (&[(0, 100), (0, 0)], &[0, 0], &[100, 0]),
    ];
    for (percents, healthy, degraded) in rows {
        let counts: Vec<Counts> = percents
            .iter()
            .map(|(healthy, degraded)| Counts {
                hosts: 100,
                counted_hosts: 100,
                healthy_hosts: *healthy,
                degraded_hosts: *degraded,
                total: 100,
                healthy: *healthy as u64,
                degraded: *degraded as u64,
            })
            .collect();
        // The threshold of 0 keeps panic out of it.
        let loads = Loads::of(&counts, 140, 0.0);
        assert_eq!(loads.healthy, *healthy, "healthy of {percents:?}");
        assert_eq!(loads.degraded, *degraded, "degraded of {percents:?}");
    }
}

#[test]
fn panic_needs_a_low_priority_and_too_little_elsewhere() {
    let counts = |percents: &[usize]| -> Vec<Counts> {
        percents
            .iter()
            .map(|healthy| Counts {
                hosts: 100,
                counted_hosts: 100,
                healthy_hosts: *healthy,
                degraded_hosts: 0,
                total: 100,
                healthy: *healthy as u64,
                degraded: 0,
            })
            .collect()
    };
    let panic = |percents: &[usize], threshold| Loads::of(&counts(percents), 140, threshold);
    assert_eq!(panic(&[72, 0], 50.0).panic, [false, false]);
    assert_eq!(
        panic(&[5, 70], 50.0).panic,
        [false, false],
        "98 + 7 = 100 %"
    );
    assert_eq!(panic(&[5, 65], 50.0).panic, [true, false]);
    let total = panic(&[5, 25], 50.0);
    assert_eq!(total.panic, [true, true]);
    assert_eq!(total.healthy, [50, 50], "by number of hosts");
    let disabled = panic(&[0, 0], 0.0);
    assert_eq!(disabled.panic, [false, false]);
    assert_eq!(disabled.healthy, [100, 0]);
}

#[test]
fn unhealthy_hosts_are_chosen_in_panic_alone() {
    for status in [DOWN, HealthStatus::Timeout] {
        let most = set(
            &[(0, 0, &[(1, UP), (1, UP), (1, status)])],
            &policy(Balancer::RoundRobin),
        );
        let picks = distribution(&most);
        assert_near(&picks, "10.0.0.1:80", 5000);
        assert_near(&picks, "10.0.0.3:80", 0);

        let few = set(
            &[(0, 0, &[(1, UP), (1, status), (1, status)])],
            &policy(Balancer::RoundRobin),
        );
        let mut rng = fastrand::Rng::with_seed(1);
        assert!(matches!(few.pick(&mut rng), Picked::Panic(_)));
        assert_near(&distribution(&few), "10.0.0.3:80", 3333);

        let mut never = policy(Balancer::RoundRobin);
        never.panic_threshold = 0.0;
        let none = set(&[(0, 0, &[(1, status)])], &never);
        assert!(matches!(none.pick(&mut rng), Picked::None));
    }
    assert!(matches!(
        EndpointSet::default().pick(&mut fastrand::Rng::new()),
        Picked::None
    ));
}

#[test]
fn hosts_that_drain_are_no_reason_to_panic() {
    const DRAINING: HealthStatus = HealthStatus::Draining;
    let round_robin = policy(Balancer::RoundRobin);
    // As a real Envoy 1.40 chose: a rollout that drains most hosts leaves the rest to serve.
    let rollout = set(
        &[(
            0,
            0,
            &[(1, UP), (1, DRAINING), (1, DRAINING), (1, DRAINING)],
        )],
        &round_robin,
    );
    assert_near(&distribution(&rollout), "10.0.0.1:80", 10_000);
    assert_eq!(
        rollout.membership(),
        Membership {
            total: 4,
            healthy: 1,
            degraded: 0,
            excluded: 3
        }
    );
    let half = set(
        &[(0, 0, &[(1, UP), (1, DRAINING), (1, DOWN)])],
        &round_robin,
    );
    assert_near(&distribution(&half), "10.0.0.1:80", 10_000);
    let degraded = set(
        &[(
            0,
            0,
            &[(1, HealthStatus::Degraded), (1, DRAINING), (1, DRAINING)],
        )],
        &round_robin,
    );
    assert_near(&distribution(&degraded), "10.0.0.1:80", 10_000);
    // Nothing but draining ones: better these than none.
    let all = set(&[(0, 0, &[(1, DRAINING), (1, DRAINING)])], &round_robin);
    assert!(matches!(
        all.pick(&mut fastrand::Rng::with_seed(1)),
        Picked::Panic(_)
    ));
    // A locality keeps its share though most of it drains.
    let mut by_locality = policy(Balancer::RoundRobin);
    by_locality.locality_weighted = true;
    let localities = set(
        &[
            (0, 1, &[(1, UP), (1, DRAINING), (1, DRAINING)]),
            (0, 1, &[(1, UP)]),
        ],
        &by_locality,
    );
    assert_near(&distribution(&localities), "10.0.0.1:80", 5000);
}

#[test]
fn balancers_spread_picks_by_weight() {
    let least_request = Balancer::LeastRequest {
        choice_count: 2,
        active_request_bias: 1.0,
    };
    for (balancer, equal, weighted) in [
        (Balancer::RoundRobin, [3333; 3], [6000, 3000, 1000]),
        (least_request, [3333; 3], [6000, 3000, 1000]),
        (Balancer::Random, [3333; 3], [3333; 3]),
    ] {
        let policy = policy(balancer);
        for (weights, expected) in [([1; 3], equal), ([6, 3, 1], weighted)] {
            let hosts = weights.map(|weight| (weight, UP));
            let picks = distribution(&set(&[(0, 0, &hosts)], &policy));
            for (host, expected) in (1..).zip(expected) {
                assert_near(&picks, &format!("10.0.0.{host}:80"), expected);
            }
        }
    }
}

#[test]
fn round_robin_takes_hosts_in_turn_and_spreads_the_heavy_one() {
    let mut rng = fastrand::Rng::with_seed(3);
    let picks = |set: &EndpointSet, rng: &mut fastrand::Rng, count: usize| -> Vec<String> {
        (0..count)
            .map(|_| match set.pick(rng) {
                Picked::Host(host) => host.address.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let equal = set(&[(0, 0, &[(1, UP); 3])], &policy(Balancer::RoundRobin));
    let order = picks(&equal, &mut rng, 6);
    assert_eq!(order[..3], order[3..]);
    assert_eq!(
        order.iter().collect::<std::collections::HashSet<_>>().len(),
        3
    );

    let weighted = set(
        &[(0, 0, &[(3, UP), (1, UP)])],
        &policy(Balancer::RoundRobin),
    );
    let order = picks(&weighted, &mut rng, 40);
    for window in order.windows(5) {
        let light = window.iter().filter(|host| *host == "10.0.0.2:80").count();
        assert!((1..=2).contains(&light), "{window:?}");
    }
}

#[test]
fn least_request_prefers_the_idle_host() {
    use std::sync::atomic::Ordering::Relaxed;
    let balancer = Balancer::LeastRequest {
        choice_count: 2,
        active_request_bias: 1.0,
    };
    let equal = set(&[(0, 0, &[(1, UP), (1, UP)])], &policy(balancer.clone()));
    let busy = equal.hosts().next().expect("a host");
    busy.stats.rq_active.store(10, Relaxed);
    // Only where both choices fall on the busy host is it taken.
    assert_near(&distribution(&equal), "10.0.0.1:80", 2500);

    let weighted = set(&[(0, 0, &[(2, UP), (1, UP)])], &policy(balancer));
    let busy = weighted.hosts().next().expect("a host");
    busy.stats.rq_active.store(3, Relaxed);
    // 2 / (3 + 1) against 1.
    assert_near(&distribution(&weighted), "10.0.0.1:80", 3333);
}

#[test]
fn localities_share_by_weight_and_availability_where_asked() {
    let mut policy = policy(Balancer::RoundRobin);
    let lines: &[Line<'_>] = &[(0, 1, &[(1, UP), (1, UP)]), (0, 3, &[(1, UP)])];
    assert_near(&distribution(&set(lines, &policy)), "10.0.1.1:80", 3333);
    policy.locality_weighted = true;
    let picks = distribution(&set(lines, &policy));
    assert_near(&picks, "10.0.1.1:80", 7500);
    assert_near(&picks, "10.0.0.1:80", 1250);
    // Half of the second locality is down: its weight is 0.5 * 1.4 * 3 = 2.1 against 1.
    let picks = distribution(&set(
        &[(0, 1, &[(1, UP), (1, UP)]), (0, 3, &[(1, UP), (1, DOWN)])],
        &policy,
    ));
    assert_near(&picks, "10.0.1.1:80", 6774);
    // A locality without weight gets nothing; without any weight all hosts are equal.
    let picks = distribution(&set(&[(0, 0, &[(1, UP)]), (0, 1, &[(1, UP)])], &policy));
    assert_near(&picks, "10.0.0.1:80", 0);
    let picks = distribution(&set(&[(0, 0, &[(1, UP)]), (0, 0, &[(1, UP)])], &policy));
    assert_near(&picks, "10.0.0.1:80", 5000);
}

#[test]
fn degraded_hosts_and_the_next_priority_take_what_is_left() {
    let picks = distribution(&set(
        &[(0, 0, &[(1, UP), (1, WEAK)])],
        &policy(Balancer::RoundRobin),
    ));
    assert_near(&picks, "10.0.0.1:80", 7000);
    assert_near(&picks, "10.0.0.2:80", 3000);
    let picks = distribution(&set(
        &[(0, 0, &[(1, UP), (1, DOWN)]), (1, 0, &[(1, UP)])],
        &policy(Balancer::RoundRobin),
    ));
    assert_near(&picks, "10.0.0.1:80", 7000);
    assert_near(&picks, "10.0.1.1:80", 3000);
}

#[test]
fn a_host_that_stays_is_the_same_whatever_else_changes() {
    let policy = policy(Balancer::RoundRobin);
    let first = set(&[(0, 0, &[(1, UP), (1, UP)])], &policy);
    let old: Vec<_> = first.hosts().cloned().collect();
    let second = set_after(&[(1, 7, &[(5, WEAK)])], &policy, &first);
    let new: Vec<_> = second.hosts().cloned().collect();
    assert!(Arc::ptr_eq(&old[0], &new[0]));
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].attributes().weight, 5);
    assert_eq!(new[0].health(), Health::Degraded);
    assert_eq!(new[0].health_flags(), "/degraded_eds_health");
    assert!(!new[0].is_removed());
    assert!(old[1].is_removed());

    let mut renamed = endpoint(socket("10.0.0.1:80"));
    renamed.hostname = "other".into();
    let endpoints = crate::cluster::testing::endpoints([renamed]);
    let third = EndpointSet::build(members(&endpoints), &policy, &second, shards());
    let other = third.hosts().next().expect("a host");
    assert!(
        !Arc::ptr_eq(other, &new[0]),
        "another hostname is another host"
    );
}

#[test]
fn a_host_named_twice_counts_once() {
    let list = crate::cluster::testing::addresses(&["10.0.0.1:80", "10.0.0.1:80"]);
    let set = EndpointSet::build(
        members(&list),
        &policy(Balancer::RoundRobin),
        &EndpointSet::default(),
        shards(),
    );
    assert_eq!(set.membership().total, 1);
}
