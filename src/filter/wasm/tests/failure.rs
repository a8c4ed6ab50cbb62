//! Traps, loops, memory and the death of a VM: who pays, and who goes on.

use super::*;
use crate::config::wasm_settings::AfterCrash;

/// Where a fault happens, and what the client sees of it: with FAIL_CLOSED, FAIL_OPEN, the deprecated fail_open.
#[tokio::test]
async fn a_trap_costs_what_envoys_costs_and_the_next_request_is_served() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Seen {
        Fail,
        Cut,
        Fine,
    }
    use Seen::{Cut, Fail, Fine};
    let cases = [
        ('n', [Fail, Fail, Fine]),
        ('h', [Fail, Fail, Fine]),
        ('b', [Fail, Fail, Fine]),
        ('z', [Fail, Fail, Fine]),
        ('H', [Fail, Fail, Fine]),
        ('B', [Cut, Cut, Fine]),
        ('Z', [Cut, Cut, Fine]),
        ('o', [Fine, Fine, Fine]),
        ('d', [Fine, Fine, Fine]),
        ('e', [Fine, Fine, Fine]),
    ];
    let bench = Bench::new();
    for (place, expected) in cases {
        for (policy, expected) in ["closed", "open", "legacy"].into_iter().zip(expected) {
            let mut config = config(guest("fault"), &format!("t{place}{policy}"));
            #[allow(deprecated, reason = "the field under test")]
            match policy {
                "open" => config.failure_policy = pb_wasm::FailurePolicy::FailOpen as i32,
                "legacy" => config.fail_open = true,
                _ => {}
            }
            // VMs of its own.
            if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
                vm.vm_id = format!("{place}{policy}");
            }
            let chain = bench.chain(config).await;
            *chain.upstream.trailers.lock() = Some(trailers());
            let outcome = chain
                .post(&["body"], Some(trailers()))
                .await
                .expect("no reset");
            let seen = match (outcome.status, &outcome.body) {
                (503, _) => {
                    assert_eq!(outcome.details, "wasm_fail_stream", "{place} {policy}");
                    Fail
                }
                (200, Ok(body)) => {
                    assert_eq!(body, "answer", "{place} {policy}");
                    Fine
                }
                (200, Err(_)) => Cut,
                other => panic!("{place} {policy}: {other:?}"),
            };
            assert_eq!(seen, expected, "{place} {policy}");
            // The fresh VM is built off the worker; it takes the next request, and fails the same way.
            let created = async {
                loop {
                    let status = bench.status(LifeState::Live).expect("live");
                    if status.vms[0].created == 2 && status.vms[0].working {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(60), created)
                .await
                .expect("a fresh VM");
            let again = chain
                .post(&["body"], Some(trailers()))
                .await
                .expect("no reset");
            assert_eq!(again.status, outcome.status, "{place} {policy}");
        }
    }
}

#[tokio::test]
async fn a_callout_outlives_the_vm_that_made_it() {
    let bench = Bench::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    bench.clusters.store(cluster_map(&bench.registry, address));
    let chain = bench
        .chain(config(guest("callout-then-trap"), "orphan"))
        .await;
    assert_eq!(chain.get("/").await.status, 200);
    let (mut upstream, _) = timeout(Duration::from_secs(10), listener.accept())
        .await
        .expect("a callout")
        .expect("a connection");
    let mut head = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut upstream, &mut head)
        .await
        .expect("a request");
    assert_eq!(&head, b"GET ");
}

#[tokio::test]
async fn without_a_vm_the_policy_decides() {
    let bench = Bench::new();
    for (policy, status) in [
        (pb_wasm::FailurePolicy::FailClosed, 503),
        (pb_wasm::FailurePolicy::FailOpen, 200),
        (pb_wasm::FailurePolicy::FailReload, 503),
    ] {
        let mut config = config(guest("add-header"), "");
        config.failure_policy = policy as i32;
        let chain = bench.chain_of(None, Some(spec(config)));
        assert_eq!(chain.get("/").await.status, status, "{policy:?}");
    }
}

#[tokio::test]
async fn a_crash_loop_is_slowed_down() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("fault"), "th")).await;
    for _ in 0..200 {
        assert_eq!(chain.get("/").await.status, 503);
        tokio::task::yield_now().await;
    }
    let vms = &bench.status(LifeState::Live).expect("live").vms;
    assert!(vms[0].created <= 3, "{vms:?}");
}

#[tokio::test]
async fn a_loop_ends_at_its_budget() {
    let bench =
        Bench::with(|options| options.settings.defaults.callback_hard = Duration::from_millis(50));
    let chain = bench.chain(config(guest("fault"), "lh")).await;
    let begin = std::time::SystemTime::now();
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, &*outcome.details),
        (503, "wasm_fail_stream")
    );
    // On a busy machine the thread's time counts, not the wall's: only a generous bound holds.
    let took = begin.elapsed().expect("the clock goes forward");
    assert!(took >= Duration::from_millis(40), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let error = bench.status(LifeState::Live).expect("live").error;
    assert!(error.expect("told").contains("time budget"));
}

#[tokio::test]
async fn memory_ends_at_its_limit_and_the_guest_goes_on() {
    let bench = Bench::with(|options| options.settings.defaults.memory = 4 << 20);
    let chain = bench.chain(config(guest("fault"), "bh")).await;
    assert_eq!(chain.get("/").await.status, 200);
    let memory = bench.status(LifeState::Live).expect("live").vms[0].memory;
    assert!(memory <= 4 << 20 && memory > 3 << 20, "{memory}");
}

#[tokio::test]
async fn the_death_of_a_vm_wakes_those_who_wait_for_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("action"), "100000!")).await;
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, &*outcome.details),
        (503, "wasm_fail_stream")
    );
}

#[tokio::test]
async fn the_death_of_a_vm_lets_nobody_wait_whose_body_it_holds() {
    let bench = Bench::new();
    let cases = [
        ("010000!", pb_wasm::FailurePolicy::FailClosed, 503),
        ("040000!", pb_wasm::FailurePolicy::FailClosed, 503),
        ("010000!", pb_wasm::FailurePolicy::FailOpen, 200),
        ("001000!", pb_wasm::FailurePolicy::FailClosed, 503),
        // The head with it.
        ("110000!", pb_wasm::FailurePolicy::FailClosed, 503),
        ("110000!", pb_wasm::FailurePolicy::FailOpen, 200),
        ("000110!", pb_wasm::FailurePolicy::FailOpen, 200),
    ];
    for (actions, policy, status) in cases {
        let mut config = config(guest("action"), actions);
        config.allow_on_headers_stop_iteration =
            Some(pb::google::protobuf::BoolValue { value: true });
        config.failure_policy = policy as i32;
        let chain = bench.chain(config).await;
        let trailers = actions.starts_with("001").then(trailers);
        let outcome = chain.post(&["x"], trailers).await.expect("no reset");
        assert_eq!(outcome.status, status, "{actions} {policy:?}");
        if status == 503 {
            assert_eq!(outcome.details, "wasm_fail_stream");
        } else {
            assert_eq!(chain.requests()[0].1, "x0;1;", "it goes on as it is");
            if actions == "000110!" {
                assert_eq!(outcome.body.as_deref(), Ok("an0;swer0;1;"));
            }
        }
    }
}

#[tokio::test]
async fn a_pause_that_nothing_can_end_is_counted_and_ends_at_its_limit() {
    use crate::wasm::status::wasm_stats;
    let limit = Duration::from_millis(50);
    let bench = Bench::with(|options| options.settings.defaults.max_pause = Some(limit));
    let stat = |stat| {
        let sets = bench.registry.sets();
        let set = sets.iter().find(|set| set.prefix() == "wasm.");
        set.expect("registered").value(stat)
    };
    let cases = [
        ("1000000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("0100000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("0001000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("1000000", pb_wasm::FailurePolicy::FailOpen, 200),
    ];
    for (number, (actions, policy, status)) in cases.into_iter().enumerate() {
        let mut config = config(guest("action"), actions);
        config.failure_policy = policy as i32;
        let chain = bench.chain(config).await;
        let outcome = chain.post(&["x"], None).await.expect("no reset");
        assert_eq!(outcome.status, status, "{actions} {policy:?}");
        if status == 504 {
            assert_eq!(outcome.details, "wasm_max_pause");
        }
        let number = number as u64 + 1;
        assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), number, "{actions}");
        assert_eq!(stat(wasm_stats::PAUSES_ENDED), number, "{actions}");
        let gone = async {
            while stat(wasm_stats::PAUSED_STREAMS) != 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), gone).await.expect("over");
    }
    // Where a timer runs, it may be what ends the pause.
    let chain = bench.chain(config(guest("action"), "100000t")).await;
    assert_eq!(chain.get("/").await.status, 200);
    assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), 4);
    assert_eq!(stat(wasm_stats::PAUSES_ENDED), 4);
}

/// As Envoy: what a callback that is not there would say of the body lets the head go on, too.
#[tokio::test]
async fn a_head_held_by_a_guest_without_callbacks_of_bodies_goes_on_with_the_body() {
    use crate::wasm::status::wasm_stats;
    let limit = Duration::from_millis(50);
    let bench = Bench::with(|options| options.settings.defaults.max_pause = Some(limit));
    let mut config = config(guest("holds-heads"), "");
    config.allow_on_headers_stop_iteration = Some(pb::google::protobuf::BoolValue { value: true });
    let chain = bench.chain(config).await;
    for (frames, trailers) in [
        (&["x", "y"][..], None),
        (&["x"], Some(trailers())),
        (&[], Some(trailers())),
    ] {
        let outcome = chain.post(frames, trailers).await.expect("no reset");
        assert_eq!(outcome.status, 200);
    }
    let bodies: Vec<_> = chain.requests().into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, ["xy", "x+1", "+1"]);
    let sets = bench.registry.sets();
    let set = sets.iter().find(|set| set.prefix() == "wasm.");
    let stat = |stat| set.expect("registered").value(stat);
    assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), 0);
    // Without one there is nobody to.
    let outcome = chain.get("/").await;
    assert_eq!((outcome.status, &*outcome.details), (504, "wasm_max_pause"));
    assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), 1);
    assert_eq!(stat(wasm_stats::PAUSES_ENDED), 1);
}

/// A callout that fails at once is told of before anybody waits for the head.
#[tokio::test]
async fn who_goes_on_before_the_hold_is_there_goes_on() {
    let bench = Bench::new();
    bench.clusters.store(cluster_map(&bench.registry, None));
    for stops in [false, true] {
        let mut config = config(guest("grpc-goes-on"), "");
        config.allow_on_headers_stop_iteration =
            Some(pb::google::protobuf::BoolValue { value: stops });
        let chain = bench.chain(config).await;
        assert_eq!(chain.get("/").await.status, 200);
        let outcome = chain.post(&["x"], None).await.expect("no reset");
        assert_eq!(outcome.status, 200);
        assert_eq!(chain.requests()[1].1, "x");
        let vm = bench.status(LifeState::Live).expect("live").vms[0];
        assert_eq!(vm.paused, 0);
    }
}

#[tokio::test]
async fn who_leaves_early_is_told_of_by_the_vms_task() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("order"), "")).await;
    chain
        .upstream
        .hang
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let stream = chain.stream(RequestHead::new(Method::GET, "h", "/"));
    let run = Arc::clone(&chain.filters).run(stream, Body::empty(), Arc::new(()));
    assert!(timeout(Duration::from_millis(20), run).await.is_err());
    assert!(shared(&bench, "order").await.starts_with("rvfcH"));
    let told = async {
        while !shared(&bench, "order").await.ends_with("Ldx") {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("told");
    assert_eq!(
        bench.status(LifeState::Live).expect("live").vms[0].contexts,
        0
    );
}

#[tokio::test]
async fn a_trap_takes_all_plugins_of_the_vm_and_the_fresh_one_has_them_all() {
    let bench = Bench::new();
    let a = bench.plugin_at("a", rooted("A", "w")).await;
    let t = bench.plugin_at("t", rooted("T", "t")).await;
    let (a, t) = (bench.chain_of(Some(a), None), bench.chain_of(Some(t), None));
    let began = shared(&bench, "roots").await;
    let (waits, traps) = tokio::join!(a.get("/"), async {
        wrote(&bench, &began, "H3A ").await;
        t.get("/").await
    });
    for outcome in [waits, traps] {
        assert_eq!(
            (outcome.status, &*outcome.details),
            (503, "wasm_fail_stream")
        );
    }
    // The fresh VM writes from the beginning.
    let fresh = async {
        let expected = "C1Aw V1A F1Aw C2Tt V2T F2Tt ";
        while shared(&bench, "roots").await != expected || vms(&bench) != 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), fresh)
        .await
        .expect("both are there again");
}

#[tokio::test]
async fn who_will_not_be_configured_again_leaves_the_others_at_work_and_comes_back() {
    let bench =
        Bench::with(|options| options.settings.defaults.breaker.base = Duration::from_millis(10));
    let plugin =
        async |name, configuration| bench.plugin_at(name, rooted(name, configuration)).await;
    let o = plugin("o", "o").await;
    let (a, k, t) = (
        plugin("a", "x").await,
        plugin("k", "k").await,
        plugin("t", "t").await,
    );
    assert_eq!(vms(&bench), 1);
    let [a_chain, k_chain, t_chain] =
        [&a, &k, &t].map(|plugin| bench.chain_of(Some(Arc::clone(plugin)), None));
    assert_eq!(k_chain.get("/").await.status, 200);
    // Of two deaths the second is one too many: the next VM proves itself.
    for _ in 0..2 {
        assert_eq!(t_chain.get("/").await.status, 503);
        let there = async {
            while a.place().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), there).await.expect("a VM");
    }
    let proven = async {
        while a.live_status().breaker != "closed" {
            a_chain.get("/").await;
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), proven)
        .await
        .expect("a VM at work");
    for _ in 0..20 {
        assert_eq!(a_chain.get("/").await.status, 200);
    }
    assert!(o.place().is_none());
    let error = o.last_error().expect("told");
    assert!(
        error.contains("proxy_on_configure returned false"),
        "{error}"
    );
    assert_eq!(k_chain.get("/").await.status, 200, "it may come back");
    let back = async {
        while o.place().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), back)
        .await
        .expect("in the same VM");
    assert_eq!(vms(&bench), 1);
}

/// The baseline code of a first start fails as optimised code does, in the same function and at the same deadlines.
#[tokio::test]
async fn both_tiers_fail_alike() {
    for (how, reason) in [("th", "unreachable"), ("lh", "time budget")] {
        let mut told = Vec::new();
        for (from, tier) in [(Some(1), "baseline"), (None, "optimised")] {
            let bench = Bench::with(|options| {
                options.settings.baseline_from = from;
                options.settings.defaults.after_crash = AfterCrash::Envoy;
            });
            let plugin = bench.plugin(config(guest("fault"), how)).await;
            assert_eq!(plugin.live_status().tier, tier);
            let chain = bench.chain_of(Some(Arc::clone(&plugin)), None);
            assert_eq!(chain.get("/").await.status, 503, "{how} {tier}");
            let trap = plugin.live_status().traps.remove(0).description;
            assert!(trap.contains(reason), "{tier}: {trap}");
            // Offsets of baseline code may be those of the instruction after.
            let words = trap.split_whitespace();
            let words: Vec<_> = words.filter(|word| !word.starts_with("0x")).collect();
            told.push(words.join(" "));
        }
        assert_eq!(told[0], told[1], "{how}");
    }
}

/// The first request is answered by the code that takes over while it is under way.
#[tokio::test]
async fn a_guest_finds_all_as_it_left_it_when_its_code_is_optimised() {
    let bench = Bench::with(|options| options.settings.baseline_from = Some(1));
    let plugin = bench.plugin(config(guest("counter"), "")).await;
    let chain = bench.chain_of(Some(Arc::clone(&plugin)), None);
    let tier = || plugin.live_status().tier;
    let hang = |hang| {
        let flag = &chain.upstream.hang;
        flag.store(hang, std::sync::atomic::Ordering::Relaxed);
    };
    hang(true);
    let stream = chain.stream(RequestHead::new(Method::GET, "h", "/"));
    let filters = Arc::clone(&chain.filters);
    let mut run = Box::pin(filters.run(Arc::clone(&stream), Body::empty(), Arc::new(())));
    assert_eq!(tier(), "baseline");
    while tier() == "baseline" {
        let still = timeout(Duration::from_millis(5), &mut run).await;
        assert!(still.is_err(), "the stream is held");
    }
    let contexts = || plugin.vm_status()[0].contexts;
    assert_eq!(contexts(), 1);
    hang(false);
    chain.upstream.go_on.notify_one();
    drop(run.await.expect("no reset"));
    let answer = stream.response.lock().clone().expect("a head");
    assert_eq!(answer.headers["x-count"], "111");
    for count in ["222", "333"] {
        assert_eq!(chain.get("/").await.headers["x-count"], count);
    }
    let status = &plugin.vm_status()[0];
    assert_eq!((status.created, status.traps), (1, 0));
}
