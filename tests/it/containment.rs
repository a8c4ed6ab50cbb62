//! Settings of the Wasm host at work: what bounds a plugin, what happens at the bound, and where it shows.

use std::fmt::Write as _;
use std::time::Duration;

use plenipo::wasm::PluginStatus;
use plenipo::wasm::status::LiveStatus;

use crate::support::{Client, FakeUpstream, TestProxy, guest};

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

struct World {
    proxy: TestProxy,
    _upstream: FakeUpstream,
    _files: tempfile::TempDir,
}

impl World {
    /// One worker, a plugin `flood` of the guest of that name on a listener of that name, and these settings.
    async fn new(settings: &str, fields: &str) -> Self {
        let upstream = FakeUpstream::start("answer").await;
        let files = tempfile::tempdir().expect("a folder");
        let code = files.path().join("flood.wasm");
        std::fs::write(&code, guest("flood")).expect("a file");
        let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let wasm = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
        let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        let own = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings";
        let mut bootstrap = String::new();
        let _ = write!(
            bootstrap,
            "{{node: {{id: test, cluster: test}}, admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}, \
             bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': {own}, {settings}}}}}], \
             static_resources: {{listeners: [{{name: flood, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
             filter_chains: [{{filters: [{{name: http, typed_config: {{'@type': {manager}, stat_prefix: s, \
             route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}, \
             http_filters: [{{name: plugin, typed_config: {{'@type': {wasm}, config: {{name: flood, root_id: r, {fields} \
             vm_config: {{vm_id: v, code: {{local: {{filename: '{}'}}}}}}}}}}}}, {{name: router, typed_config: {{'@type': {router}}}}}]}}}}]}}]}}], \
             clusters: [{{name: up, connect_timeout: 1s, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}}}]}}}}",
            code.display(),
            upstream.endpoint()
        );
        Self {
            proxy: TestProxy::start_on(&bootstrap, 1).await,
            _upstream: upstream,
            _files: files,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(self.proxy.address("flood").await).await
    }

    fn status(&self) -> PluginStatus {
        let mut plugins = self.proxy.running.server.plugins.status();
        plugins.pop().expect("a plugin")
    }

    fn live(&self) -> LiveStatus {
        self.status().live.expect("it is live")
    }

    /// How often a quota was enforced.
    fn refused(&self, name: &str) -> u64 {
        let quotas = self.live().quotas;
        let quota = quotas.iter().find(|quota| quota.name == name);
        quota.expect(name).refused
    }

    async fn admin(&self, path: &str) -> String {
        let mut client = Client::connect(self.proxy.admin()).await;
        let response = client.get("admin", path).await;
        assert_eq!(response.status, 200, "{path}");
        response.body
    }
}

fn flood(what: &str) -> String {
    format!("GET /path HTTP/1.1\r\nhost: test\r\nx-flood: {what}\r\n\r\n")
}

#[tokio::test]
async fn quotas_end_floods_with_a_status_and_are_counted() {
    let world = World::new(
        "defaults: {deadlines: {callback_hard: 5s}, quotas: {metrics: 20, shared_data_bytes: 11630, queues: 4, queue_bytes: 5280, \
         callouts: 3, log_lines_per_second: 10, min_tick_period: 0.2s}}",
        "",
    )
    .await;
    let mut client = world.client().await;
    for (what, quota, answer) in [
        // Ten values of 1,163 bytes with their keys, five messages of 1,056 with what they cost.
        ("m", "metrics", "000010 000020"),
        ("d", "shared_data_bytes", "000010 000010"),
        ("q", "queue_bytes", "000010 000005"),
        // One queue is there.
        ("Q", "queues", "000010 000003"),
        ("c", "callouts", "000010 000003"),
    ] {
        assert_eq!(world.refused(quota), 0, "{quota}");
        let response = client.send(&flood(what)).await;
        assert_eq!((response.status, &*response.body), (200, answer), "{quota}");
        assert_eq!(world.refused(quota), 1, "{quota}");
    }
    assert_eq!(client.send(&flood("t")).await.status, 200);
    assert_eq!(world.refused("min_tick_period"), 1);
    let live = world.live();
    assert_eq!((live.shared.count, live.shared.queues.len()), (10, 4));
    let used = |name| {
        let quota = live.quotas.iter().find(|quota| quota.name == name);
        quota.expect("listed").used
    };
    assert_eq!(used("metrics"), Some(20));
    assert_eq!(used("shared_data_bytes"), Some(11630));
    assert_eq!(used("queue_bytes"), Some(5280));
    // The plugin works on, and its page tells.
    assert_eq!(client.send(GET).await.status, 200);
    let page = world.admin("/wasm").await;
    for line in [
        "::quota::metrics::limit::20",
        "::quota::metrics::refused::1",
        "::shared::bytes::11630",
        "::breaker::closed",
        "::abi::0.2.1",
        "::callback::proxy_on_request_headers::calls::",
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
    let page = world.admin("/stats/prometheus").await;
    assert!(
        page.contains("plenipo_wasm_quota_refused_total{plugin=\"flood\",version=\""),
        "{page}"
    );
    assert!(
        page.contains("callback=\"proxy_on_request_headers\""),
        "{page}"
    );
    let json = world.admin("/wasm?format=json").await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let plugin = &json["plugins"][0];
    assert_eq!(plugin["live"]["breaker"], "closed");
    assert_eq!(plugin["live"]["shared"]["count"], 10);
}

#[tokio::test]
async fn a_slow_callback_is_counted_and_one_that_is_too_slow_is_stopped() {
    let world = World::new(
        "defaults: {deadlines: {callback_soft: 0.005s, callback_hard: 5s}}, \
         overrides: [{plugin: {exact: other}, settings: {deadlines: {callback_hard: 0.005s}}}]",
        "",
    )
    .await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.status, 200);
    assert_eq!(world.status().vms[0].soft_deadlines, 0);
    // It counts its thread's time alone: on a busy machine it may take several.
    for _ in 0..50 {
        assert_eq!(client.send(&flood("s")).await.status, 200);
        if world.status().vms[0].soft_deadlines > 0 {
            break;
        }
    }
    let vm = world.status().vms[0];
    assert!(vm.soft_deadlines > 0, "{vm:?}");
    assert_eq!((vm.hard_deadlines, vm.traps), (0, 0));

    let world = World::new("defaults: {deadlines: {callback_hard: 0.01s}}", "").await;
    let mut client = world.client().await;
    for _ in 0..50 {
        if client.send(&flood("s")).await.status == 503 {
            break;
        }
    }
    let vm = world.status().vms[0];
    assert_eq!((vm.hard_deadlines, vm.traps), (1, 1));
    let error = world.status().error.expect("told");
    assert!(error.contains("time budget"), "{error}");
}

#[tokio::test]
async fn what_the_host_computes_for_a_callback_counts_as_its_own() {
    let world = World::new("defaults: {deadlines: {callback_hard: 0.005s}}", "").await;
    let mut client = world.client().await;
    let response = client.send(&flood("z")).await;
    assert_eq!(response.status, 503);
    let vm = world.status().vms[0];
    assert_eq!((vm.hard_deadlines, vm.traps), (1, 1));
    let live = world.live();
    let [trap] = &live.traps[..] else {
        panic!("one trap: {:?}", live.traps);
    };
    assert!(
        trap.description
            .starts_with("the time budget is exhausted\n  0: "),
        "{}",
        trap.description
    );
}

#[tokio::test]
async fn overrides_are_for_those_whose_name_they_fit() {
    let world = World::new(
        "overrides: [{plugin: {suffix: ood}, settings: {quotas: {metrics: 2}}}, {plugin: {exact: flood}, settings: {quotas: {metrics: 3}}}]",
        "",
    )
    .await;
    let response = world.client().await.send(&flood("m")).await;
    assert_eq!(response.body, "000010 000002", "the first that fits");
}

#[tokio::test]
async fn a_stream_that_is_held_for_too_long_ends() {
    let world = World::new("defaults: {max_pause: 0.3s}", "").await;
    let mut held = world.client().await;
    held.write(flood("p").as_bytes()).await;
    let paused = async {
        while world.status().vms[0].paused == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), paused)
        .await
        .expect("it is counted");
    let response = tokio::time::timeout(Duration::from_secs(10), held.read())
        .await
        .expect("it ends")
        .expect("an answer");
    assert_eq!(response.status, 504);
    let vm = world.status().vms[0];
    assert_eq!((vm.paused, vm.overdue, vm.traps), (0, 1, 0));
    // Nor does a timer help that lets nothing go on.
    assert_eq!(held.send(&flood("t")).await.status, 200);
    assert_eq!(held.send(&flood("p")).await.status, 504);
    // Those that are not held are left alone, on the same connection, too.
    assert_eq!(held.send(GET).await.status, 200);
}

#[tokio::test]
async fn headers_that_have_gone_on_are_read_where_that_is_asked_for_and_never_written() {
    for (lenient, read) in [("false", "2"), ("true", "0")] {
        let settings = format!("defaults: {{lenient_header_reads: {lenient}}}");
        let world = World::new(&settings, "").await;
        let mut client = world.client().await;
        let response = client.send(&flood("r")).await;
        assert_eq!(response.header("x-read"), read, "lenient: {lenient}");
        let response = client.send(&flood("w")).await;
        assert_eq!(response.header("x-read"), "2", "lenient: {lenient}");
    }
}

#[tokio::test]
async fn a_trap_is_shown_with_its_backtrace_and_the_last_host_calls() {
    let world = World::new("", "").await;
    let mut client = world.client().await;
    assert_eq!(client.send(&flood("u")).await.status, 503);
    let live = world.live();
    let [trap] = &live.traps[..] else {
        panic!("one trap: {:?}", live.traps);
    };
    let text = &trap.description;
    assert!(text.contains("unreachable"), "{text}");
    assert!(text.contains("\n  in proxy_on_request_headers"), "{text}");
    assert!(
        text.contains("\n  last host calls: get_header_map_value=0"),
        "{text}"
    );
    let page = world.admin("/wasm").await;
    assert!(
        page.contains("last host calls: get_header_map_value=0"),
        "{page}"
    );
}

#[tokio::test]
async fn as_envoy_a_dead_vm_stays_dead_but_under_reload() {
    let world = World::new("defaults: {after_crash: ENVOY}", "").await;
    let mut client = world.client().await;
    assert_eq!(client.send(&flood("u")).await.status, 503);
    let deadline = tokio::time::Instant::now() + Duration::from_millis(1500);
    while tokio::time::Instant::now() < deadline {
        assert_eq!(client.send(GET).await.status, 503);
    }
    assert_eq!(world.live().breaker, "off");

    let world = World::new(
        "defaults: {after_crash: ENVOY}",
        "failure_policy: FAIL_RELOAD, reload_config: {backoff: {base_interval: 0.1s}},",
    )
    .await;
    let mut client = world.client().await;
    assert_eq!(client.send(&flood("u")).await.status, 503);
    let again = async { while client.send(GET).await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(20), again)
        .await
        .expect("it is back");
}

#[tokio::test]
async fn the_vm_after_a_wait_serves_a_few_streams_first() {
    let world = World::new(
        "defaults: {breaker: {tokens: 0, base_interval: 0.1s, probe_streams: 2, probe_time: 600s}}",
        "",
    )
    .await;
    let mut client = world.client().await;
    assert_eq!(client.send(&flood("u")).await.status, 503);
    let mut held = world.client().await;
    let again = async {
        // The first stream that is let through stays.
        loop {
            held.write(flood("p").as_bytes()).await;
            let answer = tokio::time::timeout(Duration::from_millis(300), held.read()).await;
            match answer {
                Ok(Some(response)) => assert_eq!(response.status, 503),
                Ok(None) => panic!("cut"),
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again)
        .await
        .expect("a fresh VM");
    assert_eq!(client.send(GET).await.status, 200, "the second");
    assert_eq!(client.send(GET).await.status, 503, "no more for now");
    assert_eq!(world.live().breaker, "half_open");
    // When both have ended, it is trusted.
    drop(held);
    let trusted = async { while client.send(GET).await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(30), trusted)
        .await
        .expect("it closes");
    assert_eq!(world.live().breaker, "closed");
    assert_eq!(world.status().vms[0].created, 2);
}

/// Each of the plugin's callouts has a head of 61 bytes.
#[tokio::test]
async fn the_bytes_of_callouts_are_bounded() {
    let world = World::new("defaults: {quotas: {callout_bytes: 220}}", "").await;
    let mut client = world.client().await;
    let response = client.send(&flood("c")).await;
    assert_eq!((response.status, &*response.body), (200, "000010 000003"));
    assert_eq!(world.refused("callout_bytes"), 1);
}
