//! Tests of `cluster::dns`.

use std::collections::{HashMap, VecDeque};

use super::*;
use crate::cluster::testing::{addresses, config, endpoint, endpoints, runtime_with};
use crate::cluster::{Cluster, PickContext};
use crate::config::cluster::Discovery;
use tokio::time::Instant;

/// Answers from a script: the last answer of a name repeats.
#[derive(Debug, Default)]
struct Script {
    answers: Mutex<HashMap<String, VecDeque<Result<Resolved, ResolveError>>>>,
    asked: Mutex<Vec<(String, Instant)>>,
}

impl Script {
    fn new(lines: &[(&str, &[&str])]) -> Arc<Self> {
        let script = Self::default();
        for (name, answers) in lines {
            script
                .answers
                .lock()
                .insert((*name).to_owned(), answers.iter().map(answer).collect());
        }
        Arc::new(script)
    }

    /// Seconds since `start` at which `name` was asked for.
    fn asked(&self, name: &str, start: Instant) -> Vec<u64> {
        self.asked
            .lock()
            .iter()
            .filter(|(asked, _)| asked == name)
            .map(|(_, at)| (*at - start).as_secs())
            .collect()
    }
}

/// `"10.0.0.1 10.0.0.2 ttl=30"`, `"none"` or `"fail"`.
fn answer(text: &&str) -> Result<Resolved, ResolveError> {
    match *text {
        "none" => Err(ResolveError::NoAddresses),
        "fail" => Err(ResolveError::Failed("timeout".into())),
        text => {
            let (ttl, addresses): (Vec<_>, Vec<_>) =
                text.split(' ').partition(|word| word.starts_with("ttl="));
            Ok(Resolved {
                addresses: addresses
                    .iter()
                    .map(|address| address.parse().expect("an address"))
                    .collect(),
                ttl: ttl
                    .first()
                    .map(|ttl| Duration::from_secs(ttl[4..].parse().expect("seconds"))),
            })
        }
    }
}

impl Resolver for Script {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        _options: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move {
            self.asked.lock().push((name.to_owned(), Instant::now()));
            // A question takes a moment.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut answers = self.answers.lock();
            let answers = answers.get_mut(name).expect("a scripted name");
            if answers.len() > 1 {
                answers.pop_front().expect("an answer")
            } else {
                answers[0].clone()
            }
        })
    }
}

fn names(list: &[&str]) -> Arc<Endpoints> {
    endpoints(
        list.iter()
            .map(|name| endpoint(Address::Name((*name).into(), 80))),
    )
}

fn hosts(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status();
    status
        .hosts
        .iter()
        .map(|host| format!("{} {}", host.address, host.host.hostname))
        .collect()
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(100)).await;
}

fn stat_value(cluster: &Cluster, stat: crate::telemetry::metrics::Stat) -> u64 {
    cluster.stats().set.value(stat)
}

#[tokio::test(start_paused = true)]
async fn every_address_of_every_name_is_a_host_and_is_refreshed() {
    let script = Script::new(&[
        ("a.test", &["10.0.0.1 10.0.0.2", "10.0.0.2 10.0.0.3"]),
        ("b.test", &["10.0.1.1"]),
    ]);
    let runtime = runtime_with(script.clone());
    let start = Instant::now();
    let config = config("c", Discovery::StrictDns(names(&["a.test", "b.test"])));
    let cluster = Cluster::new(Arc::new(config), &runtime);
    let mut warmed = cluster.warmed();
    assert!(!*warmed.borrow());
    assert!(cluster.pick(&PickContext::default()).is_none());
    warmed.wait_for(|warm| *warm).await.expect("warm");
    assert_eq!(
        hosts(&cluster),
        [
            "10.0.0.1:80 a.test",
            "10.0.0.2:80 a.test",
            "10.0.1.1:80 b.test"
        ]
    );
    let kept: Vec<_> = cluster.endpoints().hosts().cloned().collect();
    after(5).await;
    assert_eq!(
        hosts(&cluster),
        [
            "10.0.0.2:80 a.test",
            "10.0.0.3:80 a.test",
            "10.0.1.1:80 b.test"
        ]
    );
    let now: Vec<_> = cluster.endpoints().hosts().cloned().collect();
    assert!(Arc::ptr_eq(&kept[1], &now[0]), "the same host");
    assert!(kept[0].is_removed());
    after(5).await;
    assert_eq!(script.asked("a.test", start), [0, 5, 10]);
    assert_eq!(stat_value(&cluster, stat::UPDATE_ATTEMPT), 6);
    assert_eq!(stat_value(&cluster, stat::UPDATE_SUCCESS), 6);
    assert_eq!(stat_value(&cluster, stat::UPDATE_NO_REBUILD), 3);

    drop(cluster);
    let asked = script.asked("a.test", start).len();
    after(60).await;
    assert_eq!(
        script.asked("a.test", start).len(),
        asked,
        "nobody asks for a cluster that is gone"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_keeps_the_hosts_and_no_addresses_removes_them() {
    let script = Script::new(&[("a.test", &["10.0.0.1", "fail", "none", "10.0.0.1"])]);
    let runtime = runtime_with(script.clone());
    let mut config = config("c", Discovery::StrictDns(names(&["a.test"])));
    config.dns.failure_refresh = (Duration::from_secs(2), Duration::from_secs(2));
    let start = Instant::now();
    let cluster = Cluster::new(Arc::new(config), &runtime);
    after(5).await;
    assert_eq!(hosts(&cluster), ["10.0.0.1:80 a.test"], "after the failure");
    assert_eq!(stat_value(&cluster, stat::UPDATE_FAILURE), 1);
    after(2).await;
    assert_eq!(hosts(&cluster), [""; 0]);
    after(5).await;
    assert_eq!(hosts(&cluster), ["10.0.0.1:80 a.test"]);
    assert_eq!(script.asked("a.test", start), [0, 5, 7, 12]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_resolves_does_not_hold_back_the_start() {
    let script = Script::new(&[("a.test", &["fail"]), ("b.test", &["none"])]);
    let config = config("c", Discovery::StrictDns(names(&["a.test", "b.test"])));
    let cluster = Cluster::new(Arc::new(config), &runtime_with(script));
    cluster.warmed().wait_for(|warm| *warm).await.expect("warm");
    assert_eq!(hosts(&cluster), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_time_to_live_rules_where_asked_and_failures_back_off() {
    let script = Script::new(&[("a.test", &["10.0.0.1 ttl=30", "10.0.0.1 ttl=0", "fail"])]);
    let mut config = config("c", Discovery::StrictDns(names(&["a.test"])));
    config.dns.respect_ttl = true;
    config.dns.failure_refresh = (Duration::from_secs(1), Duration::from_secs(8));
    let start = Instant::now();
    let cluster = Cluster::new(Arc::new(config), &runtime_with(script.clone()));
    after(36).await;
    let asked = script.asked("a.test", start);
    assert_eq!(asked[..3], [0, 30, 35], "a TTL of 0 is none");
    after(600).await;
    let failures = stat_value(&cluster, stat::UPDATE_FAILURE);
    // Waits are uniform below 1, 2, 4, 8, 8, … seconds: about 150 questions in ten minutes.
    assert!((75..600).contains(&failures), "{failures}");
}

#[tokio::test(start_paused = true)]
async fn a_logical_host_stays_while_its_address_changes() {
    let script = Script::new(&[("a.test", &["10.0.0.1 10.0.0.9", "10.0.0.2", "fail"])]);
    let config = config("c", Discovery::LogicalDns(names(&["a.test"])));
    let cluster = Cluster::new(Arc::new(config), &runtime_with(script));
    after(0).await;
    assert_eq!(hosts(&cluster), ["10.0.0.1:80 a.test"]);
    let host = cluster.pick(&PickContext::default()).expect("a host");
    after(5).await;
    assert_eq!(hosts(&cluster), ["10.0.0.2:80 a.test"]);
    after(5).await;
    assert_eq!(hosts(&cluster), ["10.0.0.2:80 a.test"]);
    let now = cluster.pick(&PickContext::default()).expect("a host");
    assert!(Arc::ptr_eq(&host, &now));
    assert!(!host.is_removed());
    assert_eq!(host.connect_address().to_string(), "10.0.0.2:80");
}

#[tokio::test(start_paused = true)]
async fn an_update_keeps_the_old_hosts_until_the_new_names_are_answered() {
    let script = Script::new(&[
        ("a.test", &["10.0.0.1"]),
        ("b.test", &["10.0.0.1"]),
        ("c.test", &["fail"]),
    ]);
    let runtime = runtime_with(script.clone());
    let start = Instant::now();
    let first = Arc::new(config("c", Discovery::StrictDns(names(&["a.test"]))));
    let cluster = Cluster::new(Arc::clone(&first), &runtime);
    after(0).await;

    let mut faster = (*first).clone();
    faster.connect_timeout = Duration::from_secs(1);
    let same = Cluster::update_from(&cluster, Arc::new(faster), &runtime);
    drop(cluster);
    after(5).await;
    assert_eq!(
        script.asked("a.test", start),
        [0, 5],
        "the schedule goes on"
    );

    let mut other = (*first).clone();
    other.discovery = Discovery::StrictDns(names(&["b.test", "c.test"]));
    let next = Cluster::update_from(&same, Arc::new(other), &runtime);
    assert_eq!(hosts(&next), ["10.0.0.1:80 a.test"]);
    after(0).await;
    assert_eq!(hosts(&next), ["10.0.0.1:80 b.test"]);
}

#[tokio::test]
async fn literals_and_localhost_need_no_resolver() {
    let runtime = runtime_with(Script::new(&[]));
    let list = addresses(&["127.0.0.1:80", "[::1]:81"]);
    let cluster = Cluster::new(Arc::new(config("c", Discovery::StrictDns(list))), &runtime);
    assert!(*cluster.warmed().borrow());
    assert_eq!(hosts(&cluster), ["127.0.0.1:80 127.0.0.1", "[::1]:81 ::1"]);

    // As a running Envoy answers `localhost`.
    for (family, expected) in [
        (DnsFamily::Auto, vec!["[::1]:80 localhost"]),
        (DnsFamily::V6Only, vec!["[::1]:80 localhost"]),
        (DnsFamily::V4Only, vec!["127.0.0.1:80 localhost"]),
        (DnsFamily::V4Preferred, vec!["127.0.0.1:80 localhost"]),
        (
            DnsFamily::All,
            vec!["127.0.0.1:80 localhost", "[::1]:80 localhost"],
        ),
    ] {
        let mut config = config("c", Discovery::StrictDns(names(&["localhost"])));
        config.dns.family = family;
        let cluster = Cluster::new(Arc::new(config), &runtime);
        assert_eq!(hosts(&cluster), expected, "{family:?}");
    }
}
