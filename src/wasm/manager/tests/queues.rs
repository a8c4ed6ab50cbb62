//! Shared queues over the versions of a plugin.

use bytes::Bytes;

use super::slots::ask_beside;
use super::*;

fn queue(configuration: &str) -> Arc<PluginSpec> {
    spec(config(guest("queue"), configuration))
}

impl Bench {
    /// Puts a message into the queue, and gives all who have heard of one.
    async fn heard_after_another(&self) -> String {
        let shared = &self.plugins.0.shared;
        let heard = || self.plugins.shared_value("vm", b"heard");
        let before = heard();
        let token = shared.resolve_queue(b"vm", b"q").expect("registered");
        shared
            .enqueue(token, Bytes::from_static(b"m"), 1 << 20)
            .expect("room");
        let changed = async {
            loop {
                match heard() {
                    after if after == before => tokio::time::sleep(Duration::from_millis(1)).await,
                    after => return after.unwrap_or_default(),
                }
            }
        };
        let heard = timeout(Duration::from_secs(10), changed).await;
        String::from_utf8_lossy(&heard.expect("somebody hears")).into_owned()
    }
}

#[tokio::test]
async fn a_version_that_is_refused_takes_no_queue() {
    let bench = Bench::new(None);
    let _serving = bench.ready(&queue("")).await;
    let refused = queue("no");
    assert!(bench.plugins.canary(&refused).await.is_err());
    assert_eq!(bench.heard_after_another().await, "0");
    // Nor where it is refused in VMs of its own.
    bench
        .until(&refused, |_| {
            let mut statuses = bench.plugins.status().into_iter();
            statuses.any(|status| status.state == State::Failed)
        })
        .await;
    assert_eq!(bench.heard_after_another().await, "00");
    // Nor one that would do, and of which no more than a trial came.
    assert!(bench.plugins.canary(&queue("2")).await.is_ok());
    assert_eq!(bench.heard_after_another().await, "000");
    let _next = bench.ready(&queue("2")).await;
    assert_eq!(bench.heard_after_another().await, "0001");
}

#[tokio::test]
async fn a_version_on_trial_takes_no_queue_before_it_is_promoted() {
    for (command, heard) in [
        (RolloutCommand::RollBack, "000"),
        (RolloutCommand::Promote, "001"),
    ] {
        let bench = Bench::with_defaults("rollout: {share_percent: 10}");
        let _serving = bench.ready(&queue("")).await;
        let next = queue("2");
        let on_trial = |resolution: &Resolution| matches!(resolution, Resolution::Trial(..));
        bench.until(&next, on_trial).await;
        assert_eq!(bench.heard_after_another().await, "0");
        assert_eq!(bench.heard_after_another().await, "00");
        assert_eq!(bench.plugins.rollout("test", command), 1);
        bench.until(&next, |resolution| !on_trial(resolution)).await;
        assert_eq!(bench.heard_after_another().await, heard);
    }
}

#[tokio::test]
async fn a_version_whose_filters_wait_takes_no_queue() {
    // The guest counts for all of its VM.
    let bench = Bench::with_defaults("vm_sharing: ISOLATED");
    let serving = queue("");
    bench.ready(&serving).await;
    let next = queue("2");
    let ready = |resolution: &Resolution| matches!(resolution, Resolution::Ready(_));
    ask_beside(&bench, &serving, &next, ready).await;
    assert_eq!(bench.heard_after_another().await, "0");
    bench.ready(&next).await;
    assert_eq!(bench.heard_after_another().await, "01");
}

#[tokio::test]
async fn queues_go_with_the_last_plugin_of_their_vm_id() {
    let bench = Bench::new(None);
    let plugin = bench.ready(&queue("")).await;
    let shared = Arc::clone(&bench.plugins.0.shared);
    assert!(shared.resolve_queue(b"vm", b"q").is_some());
    drop(plugin);
    bench.plugins.retain(|_| false);
    bench.plugins.retain(|_| false);
    let gone = async {
        while shared.resolve_queue(b"vm", b"q").is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("gone");
}
