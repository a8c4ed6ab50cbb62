//! Tests of `cluster`.

use super::testing::{addresses, config, eds, fixed, runtime};
use super::*;
use crate::config::Snapshot;
use crate::config::cluster::SourceSpecifier;

fn snapshot(clusters: &[&Arc<config::Cluster>]) -> Snapshot {
    Snapshot {
        clusters: clusters
            .iter()
            .map(|config| (Arc::clone(&config.name), Arc::clone(config)))
            .collect(),
        ..Snapshot::default()
    }
}

fn pick(cluster: &Cluster) -> Option<Arc<Host>> {
    cluster.pick(&PickContext::default())
}

#[test]
fn what_is_unchanged_survives_an_update() {
    let runtime = runtime();
    let address = "127.0.0.1:80".parse().expect("an address");
    let a = Arc::new(fixed("a", address));
    let b = Arc::new(fixed("b", address));
    let first = ClusterMap::next(&ClusterMap::default(), &snapshot(&[&a, &b]), &runtime);
    let host = pick(first.get("a").expect("a")).expect("a host");
    host.stats
        .rq_total
        .fetch_add(3, std::sync::atomic::Ordering::Relaxed);

    let mut changed = (*a).clone();
    changed.connect_timeout = Duration::from_secs(1);
    let changed = Arc::new(changed);
    let second = ClusterMap::next(&first, &snapshot(&[&changed, &b]), &runtime);
    assert!(Arc::ptr_eq(
        first.get("b").expect("b"),
        second.get("b").expect("b")
    ));
    let (old, new) = (first.get("a").expect("a"), second.get("a").expect("a"));
    assert!(!Arc::ptr_eq(old, new));
    assert!(
        Arc::ptr_eq(&old.live, &new.live),
        "hosts and statistics stay"
    );
    assert!(Arc::ptr_eq(&old.pools, &new.pools), "connections stay");
    assert!(Arc::ptr_eq(&host, &pick(new).expect("a host")));

    let mut other = (*changed).clone();
    other.protocol =
        config::cluster::UpstreamProtocol::Http2(config::cluster::Http2Options::default());
    let other = Arc::new(other);
    let third = ClusterMap::next(&second, &snapshot(&[&other]), &runtime);
    let new = third.get("a").expect("a");
    assert!(!Arc::ptr_eq(&old.pools, &new.pools), "other connections");
    assert!(Arc::ptr_eq(&host, &pick(new).expect("a host")));
    assert!(third.get("b").is_none());
}

#[test]
fn eds_endpoints_come_with_the_snapshot_and_without() {
    let runtime = runtime();
    let a = Arc::new(eds("a"));
    let mut snapshot = snapshot(&[&a]);
    let map = ClusterMap::next(&ClusterMap::default(), &snapshot, &runtime);
    let cluster = map.get("a").expect("a");
    assert!(pick(cluster).is_none());
    assert!(!*cluster.warmed().borrow());
    let stats = &cluster.stats().set;
    assert_eq!(stats.value(stat::UPSTREAM_CX_NONE_HEALTHY), 1);
    assert_eq!(stats.value(stat::LB_HEALTHY_PANIC), 1, "nobody is healthy");
    assert_eq!(stats.value(stat::MEMBERSHIP_CHANGE), 0);

    let list = addresses(&["10.0.0.1:80", "10.0.0.2:80"]);
    snapshot
        .endpoints
        .insert(&SourceSpecifier::Ads, "a".into(), Arc::clone(&list));
    map.apply_endpoints(&snapshot);
    assert!(pick(cluster).is_some());
    assert!(*cluster.warmed().borrow());
    map.apply_endpoints(&snapshot);
    assert_eq!(stats.value(stat::MEMBERSHIP_CHANGE), 1, "applied once");
    assert_eq!(stats.value(stat::MEMBERSHIP_TOTAL), 2);

    let status = cluster.status();
    assert_eq!(status.hosts.len(), 2);
    assert_eq!(status.hosts[0].health_flags, "healthy");
    assert_eq!(status.hosts[0].address.to_string(), "10.0.0.1:80");
}

#[test]
fn the_policy_of_a_new_configuration_applies_to_the_hosts_at_hand() {
    let runtime = runtime();
    let a = Arc::new(eds("a"));
    let mut list = (*addresses(&["10.0.0.1:80", "10.0.0.2:80"])).clone();
    list.localities[0].endpoints[0].health = config::endpoint::HealthStatus::Unhealthy;
    list.localities[0].endpoints[1].health = config::endpoint::HealthStatus::Unhealthy;
    let first = Cluster::new(Arc::clone(&a), &runtime);
    first.set_endpoints(&Arc::new(list));
    assert!(pick(&first).is_some(), "in panic");
    assert_eq!(first.stats().set.value(stat::LB_HEALTHY_PANIC), 1);
    let mut strict = (*a).clone();
    strict.healthy_panic_threshold = 0.0;
    let second = Cluster::update_from(&first, Arc::new(strict), &runtime);
    assert!(pick(&second).is_none());
}

#[test]
fn overload_drops_are_announced() {
    let cluster = Cluster::new(Arc::new(eds("a")), &runtime());
    assert_eq!(cluster.drop_overload(), None);
    let mut list = (*addresses(&["10.0.0.1:80"])).clone();
    list.drop_overloads = vec![("throttle".into(), 1_000_000)];
    cluster.set_endpoints(&Arc::new(list));
    assert_eq!(
        cluster.drop_overload(),
        Some(DropOverload {
            category: "throttle".into(),
            unconditional: true,
        })
    );
}

/// Ten thousand idle clusters are to cost less than 4 KB each.
#[test]
fn an_idle_cluster_is_small() {
    // What is allocated at creation: the structs, one block of the control shard, the names.
    let stats = stats::cluster::TABLE.stats.len();
    let histograms = 3;
    let block = stats * 8 + stats.div_ceil(64) * 8 + histograms * 16;
    let fixed = std::mem::size_of::<Cluster>()
        + std::mem::size_of::<Live>()
        + std::mem::size_of::<Host>()
        + std::mem::size_of::<EndpointSet>();
    assert!(block + fixed < 2500, "{block} + {fixed}");
}

#[test]
fn a_removed_cluster_is_retired_and_an_alternate_name_is_another_set_of_statistics() {
    let runtime = runtime();
    let a = Arc::new(config(
        "a",
        config::cluster::Discovery::Static(addresses(&["10.0.0.1:80"])),
    ));
    let first = Cluster::new(Arc::clone(&a), &runtime);
    let mut renamed = (*a).clone();
    renamed.stat_name = "b:c".into();
    let second = Cluster::update_from(&first, Arc::new(renamed), &runtime);
    assert_eq!(second.stats().set.prefix(), "cluster.b_c.");
    assert_eq!(first.stats().set.prefix(), "cluster.a.");
}

#[test]
fn a_cluster_that_asks_for_another_assignment_forgets_the_hosts_of_the_old_one() {
    let runtime = runtime();
    let named = |service: &str| {
        let mut cluster = eds("a");
        let config::cluster::Discovery::Eds { service_name, .. } = &mut cluster.discovery else {
            unreachable!("made so");
        };
        *service_name = service.into();
        Arc::new(cluster)
    };
    let (one, two) = (named("one"), named("two"));
    let fixed = Arc::new(config(
        "a",
        config::cluster::Discovery::Static(addresses(&["10.0.0.9:80"])),
    ));
    let old = addresses(&["10.0.0.1:80"]);
    let next = |previous: &ClusterMap, config: &Arc<config::Cluster>, known: &[&str]| {
        let mut snapshot = snapshot(&[config]);
        for name in known {
            let name = Arc::from(*name);
            snapshot
                .endpoints
                .insert(&SourceSpecifier::Ads, name, Arc::clone(&old));
        }
        ClusterMap::next(previous, &snapshot, &runtime)
    };
    let host = |map: &ClusterMap| pick(map.get("a").expect("a"));
    for (before, known, after, has_host) in [
        (&one, &["one"][..], &two, false),
        (&one, &["one", "two"], &two, true),
        (&fixed, &[], &one, false),
        (&fixed, &["one"], &one, true),
    ] {
        let first = next(&ClusterMap::default(), before, known);
        assert!(host(&first).is_some());
        let second = next(&first, after, known);
        assert_eq!(host(&second).is_some(), has_host, "{known:?}");
        // And back: the assignment that was applied before is applied again.
        let third = next(&second, before, known);
        assert!(host(&third).is_some(), "{known:?}");
    }
}
