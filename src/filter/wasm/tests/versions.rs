//! What is refused before it serves, and one version after another.

use super::*;

#[tokio::test]
async fn what_envoy_refuses_is_refused_before_the_ack() {
    let bench = Bench::with(|options| options.settings.defaults.start = Duration::from_millis(200));
    let cases = [
        (
            guest("no-abi"),
            "",
            "Missing or unknown Proxy-Wasm ABI version",
        ),
        (
            guest("future-abi"),
            "",
            "Missing or unknown Proxy-Wasm ABI version",
        ),
        (
            guest("bad-signature"),
            "",
            "Bad function signature for: proxy_on_request_headers",
        ),
        (guest("wrong-import"), "", "proxy_log"),
        (guest("global-import"), "", "env.stack"),
        (guest("no-malloc"), "", "missing malloc"),
        (guest("start-hostcall"), "", "restricted"),
        (
            guest("refuse-configure"),
            "",
            "proxy_on_configure returned false",
        ),
        (guest("huge-memory"), "", "Failed to initialize Wasm code"),
        (guest("fault"), "tf", "unreachable"),
        (guest("fault"), "lf", "time budget"),
        (
            b"\0asm\x01\0\0\0\x01".to_vec(),
            "",
            "Failed to load Wasm module",
        ),
        (
            b"\0asm\x0d\0\x01\0".to_vec(),
            "",
            "not a WebAssembly module",
        ),
        (b"(module)".to_vec(), "", "not a WebAssembly module"),
        (
            built("broken-configure"),
            "",
            "this plugin is broken on purpose",
        ),
        (
            built("broken-configure"),
            "false",
            "proxy_on_configure returned false",
        ),
    ];
    for (code, configuration, reason) in cases {
        let error = bench
            .plugins
            .canary(&spec(config(code, configuration)))
            .await
            .expect_err(reason)
            .to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let good = spec(config(guest("add-header"), ""));
    assert_eq!(bench.plugins.canary(&good).await, Ok(()));
}

#[tokio::test]
async fn unknown_imports_are_named_and_trap_only_when_called() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("unknown-import"), "")).await;
    let unknown = bench.status(LifeState::Live).expect("live").unknown_imports;
    assert_eq!(
        unknown,
        [
            "env.proxy_from_the_future",
            "wasi_snapshot_preview1.sock_bind"
        ]
    );
    assert_eq!(chain.get("/").await.status, 503);
}

#[tokio::test]
async fn an_allocator_may_not_call_back() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("malloc-hostcall"), "")).await;
    assert_eq!(chain.get("/").await.status, 503);
}

#[tokio::test]
async fn a_denied_capability_answers_internal_failure() {
    let bench = Bench::new();
    let mut config = config(guest("property"), "plugin_name");
    let allowed = [
        "proxy_get_buffer_bytes",
        "proxy_add_header_map_value",
        "proxy_on_configure",
    ];
    let allowed = allowed.into_iter().chain(["proxy_on_request_headers"]);
    if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
        vm.capability_restriction_config = Some(pb_wasm::CapabilityRestrictionConfig {
            allowed_capabilities: allowed
                .map(|name| (name.to_owned(), pb_wasm::SanitizationConfig {}))
                .collect(),
        });
    }
    let chain = bench.chain(config).await;
    let outcome = chain.get("/").await;
    assert_eq!(chain.requests()[0].0.headers["x-status"], "k");
    assert!(
        outcome.headers.is_empty(),
        "the denied callback is not called: {outcome:?}"
    );
}

#[tokio::test]
async fn the_old_version_serves_until_the_new_one_is_live_and_streams_keep_theirs() {
    let bench = Bench::new();
    let mut config = config(built("hello"), "hi");
    let old = bench.plugin(config.clone()).await;
    let chain = bench.chain_of(Some(Arc::clone(&old)), None);
    // A stream that began on the old version.
    chain
        .upstream
        .hang
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let stream = chain.stream(RequestHead::new(Method::GET, "h", "/"));
    let mut run = Box::pin(Arc::clone(&chain.filters).run(stream, Body::empty(), Arc::new(())));
    assert!(timeout(Duration::from_millis(20), &mut run).await.is_err());
    config = super::tests::config(built("hello-v2"), "hi");
    let new = spec(config.clone());
    let Resolution::Previous(previous) = bench.plugins.resolve(SLOT, &new) else {
        panic!("the old one serves while the new one loads");
    };
    assert!(Arc::ptr_eq(&previous, &old));
    drop(previous);
    let new = bench.plugin(config).await;
    assert_eq!(
        bench
            .chain_of(Some(new), None)
            .get("/hello")
            .await
            .body
            .as_deref(),
        Ok("hi from v2\n")
    );
    assert!(
        bench.status(LifeState::Draining).is_some(),
        "a stream holds it"
    );
    drop((old, run, chain));
    // The VM says goodbye on its worker first.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(bench.status(LifeState::Draining).is_none());
    let stats = bench.registry.sets();
    let wasm = stats
        .iter()
        .find(|set| set.prefix() == "wasm.")
        .expect("registered");
    use crate::wasm::status::wasm_stats;
    assert_eq!(wasm.value(wasm_stats::RUNTIME_ACTIVE), 1);
    assert_eq!(wasm.value(wasm_stats::RUNTIME_CREATED), 2);
}

#[tokio::test]
async fn a_version_that_fails_leaves_the_old_one_in_place() {
    let bench = Bench::new();
    let old = bench.plugin(config(built("hello"), "")).await;
    let broken = spec(config(built("broken-configure"), ""));
    let mut changed = bench.plugins.changed();
    changed.mark_unchanged();
    assert!(matches!(
        bench.plugins.resolve(SLOT, &broken),
        Resolution::Previous(_)
    ));
    changed.changed().await.expect("it fails");
    let Resolution::Previous(still) = bench.plugins.resolve(SLOT, &broken) else {
        panic!("the old one goes on");
    };
    assert!(Arc::ptr_eq(&still, &old));
    let failed = bench.status(LifeState::Failed).expect("told");
    assert!(failed.error.expect("told").contains("broken on purpose"));
    assert!(matches!(
        bench.plugins.resolve("another slot", &broken),
        Resolution::Failed(_)
    ));
}

mod sdk {
    //! Unmodified plugins of the Rust SDK.

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn hello_greets_and_marks() {
        let bench = Bench::new();
        for (name, version) in [("hello", "v1"), ("hello-v2", "v2")] {
            let chain = bench.chain(config(built(name), "good day")).await;
            let outcome = chain.get("/hello").await;
            let body = format!("good day from {version}\n");
            assert_eq!((outcome.status, outcome.body), (200, Ok(body)));
            assert!(chain.requests().is_empty());
            let outcome = chain.get("/").await;
            assert_eq!(outcome.headers["x-hello"], version);
            assert_eq!(chain.requests()[0].0.headers["x-hello"], version);
            assert_eq!(
                outcome.headers.contains_key("x-hello-greeting"),
                version == "v2"
            );
        }
    }

    #[tokio::test]
    async fn auth_lets_the_right_token_through() {
        let bench = Bench::new();
        let chain = bench
            .chain(config(built("auth-header"), "open sesame"))
            .await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, 401);
        assert_eq!(outcome.headers["www-authenticate"], "token");
        assert_eq!(outcome.body.as_deref(), Ok("no valid token\n"));
        let mut head = RequestHead::new(Method::GET, "host", "/");
        head.headers
            .insert("x-token", HeaderValue::from_static("open sesame"));
        let outcome = chain.send(head, Body::empty()).await.expect("no reset");
        assert_eq!(outcome.status, 200);
        assert!(!chain.requests()[0].0.headers.contains_key("x-token"));
    }

    #[tokio::test]
    async fn bodies_are_rewritten() {
        let bench = Bench::new();
        let chain = bench.chain(config(built("body-rewrite"), "")).await;
        let outcome = chain.post(&["one ", "two"], None).await.expect("no reset");
        assert_eq!(
            (outcome.status, outcome.body.as_deref()),
            (200, Ok("ANSWER"))
        );
        assert_eq!(chain.requests()[0].1, "[one two]");
    }

    /// Answers every connection with `status`, once.
    async fn serve(status: &'static str) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        crate::base::task::spawn("callout server", async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let _ = io.read(&mut request).await;
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                );
                let _ = io.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_callout_decides_and_counts() {
        let bench = Bench::new();
        for (status, expected) in [("200 OK", 200), ("404 Not Found", 403)] {
            bench
                .clusters
                .store(cluster_map(&bench.registry, serve(status).await));
            let chain = bench.chain(config(built("metrics-callout"), "")).await;
            let outcome = chain.get("/asked").await;
            assert_eq!(outcome.status, expected, "{outcome:?}");
            if expected == 200 {
                assert_eq!(chain.requests()[0].0.headers["x-checked"], "yes");
            }
        }
        assert_eq!(shared(&bench, "last-path").await, "/asked");
        let ticked = async {
            loop {
                let metrics = bench.registry.metrics();
                let value = |name: &str| {
                    metrics
                        .iter()
                        .find(|metric| metric.name() == name)
                        .map(|metric| metric.value())
                };
                assert_eq!(value("wasmcustom.callouts"), Some(2));
                assert_eq!(value("wasmcustom.in_flight"), Some(0));
                if value("wasmcustom.ticks") > Some(0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), ticked)
            .await
            .expect("a tick");
        // Where the cluster is unknown the plugin lets the request on.
        bench.clusters.store(Arc::default());
        let chain = bench.chain(config(built("metrics-callout"), "")).await;
        assert_eq!(chain.get("/").await.status, 200);
    }
}
