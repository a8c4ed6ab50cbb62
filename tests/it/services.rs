//! Plugins without streams: services of the bootstrap and sinks of statistics, with real worker threads.

use std::time::Duration;

use plenipo::wasm::PluginStatus;
use plenipo::wasm::status::State;

use crate::support::{Client, FakeUpstream, TestProxy, guest};

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

const SERVICE: &str = "type.googleapis.com/envoy.extensions.wasm.v3.WasmService";
const SINK: &str = "type.googleapis.com/envoy.extensions.stat_sinks.wasm.v3.Wasm";

const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

/// The guest, as a file in `folder`.
fn code(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("service.wasm");
    std::fs::write(&path, guest("service")).expect("a file");
    path
}

/// A `PluginConfig` called `svc` of the VM `vm` with this configuration.
fn plugin(path: &std::path::Path, configuration: &str) -> String {
    let path = path.display();
    let value = |text: &str| {
        format!("{{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{text}'}}")
    };
    format!(
        "{{name: svc, configuration: {}, vm_config: {{vm_id: vm, code: {{local: {{filename: '{path}'}}}}}}}}",
        value(configuration)
    )
}

fn service(plugin: &str, singleton: bool) -> String {
    format!(
        "bootstrap_extensions: [{{name: envoy.bootstrap.wasm, typed_config: {{'@type': {SERVICE}, singleton: {singleton}, \
         config: {plugin}}}}}]\n"
    )
}

/// A value that the guest kept, once `fits` likes it.
async fn kept(proxy: &TestProxy, key: &str, fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let find = async {
        loop {
            look.tick().await;
            let value = proxy
                .running
                .server
                .plugins
                .shared_value("vm", key.as_bytes());
            if let Some(value) = value.filter(|value| fits(value)) {
                return value.to_vec();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), find)
        .await
        .unwrap_or_else(|_| panic!("nothing fit for {key}"))
}

fn status(proxy: &TestProxy) -> PluginStatus {
    let mut all = proxy.running.server.plugins.status();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The value of a plugin's own metric.
fn metric(proxy: &TestProxy, name: &str) -> u64 {
    let metrics = proxy.running.server.metrics.metrics();
    let found = metrics.iter().find(|metric| metric.name() == name);
    found.map_or(0, |metric| metric.value())
}

#[tokio::test]
async fn a_service_is_there_before_the_listeners_and_does_what_roots_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let upstream = FakeUpstream::start("answer").await;
    let port = upstream.address.port();
    let bootstrap = format!(
        "{}static_resources: {{clusters: [{{name: callout, type: STATIC, connect_timeout: 1s, load_assignment: \
         {{cluster_name: callout, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
         port_value: {port}}}}}}}}}]}}]}}}}]}}\n",
        service(&plugin(&path, "c"), true)
    );
    let proxy = TestProxy::start_cold(&bootstrap, 2).await;
    let plugin = status(&proxy);
    assert_eq!(plugin.state, State::Live, "before anything else ran");
    assert_eq!(plugin.slots, ["bootstrap_extensions[0]"]);
    assert_eq!(plugin.vms.len(), 1, "a singleton");
    proxy.running.live().await.expect("listeners are open");
    assert_eq!(kept(&proxy, "answer", |_| true).await, b"answer");
    assert_eq!(kept(&proxy, "message", |_| true).await, b"ticks");
    assert!(metric(&proxy, "wasmcustom.ticks") > 0);
    // Generations do not take it for their own.
    assert_eq!(status(&proxy).state, State::Live);
    assert_eq!(status(&proxy).vms[0].created, 1);
}

#[tokio::test]
async fn without_singleton_every_worker_has_a_vm() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let proxy = TestProxy::start(&service(&plugin(&path, ""), false)).await;
    let plugin = status(&proxy);
    assert_eq!(plugin.vms.len(), 2);
    assert!(plugin.vms.iter().all(|vm| vm.working && vm.created == 1));
}

#[tokio::test]
async fn code_at_hand_that_does_not_work_is_no_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let bad = folder.path().join("bad.wasm");
    std::fs::write(&bad, "nonsense").expect("a file");
    let refuse = plugin(&path, "").replace(
        "vm_id: vm",
        "vm_id: vm, configuration: {'@type': type.googleapis.com/google.protobuf.StringValue, value: v}",
    );
    let open = plugin(&path, "f").replace("name: svc", "name: svc, failure_policy: FAIL_OPEN");
    for (plugin, reason) in [
        (plugin(&path, "f"), "proxy_on_configure"),
        (open, "proxy_on_configure"),
        (plugin(&path, "t"), "unreachable"),
        (refuse, "proxy_on_vm_start"),
        (plugin(&bad, ""), "Unable to create"),
    ] {
        let sink = format!(
            "stats_sinks: [{{name: s, typed_config: {{'@type': {SINK}, config: {plugin}}}}}]\n"
        );
        for (bootstrap, place) in [
            (service(&plugin, true), "bootstrap_extensions[0]"),
            (service(&plugin, false), "bootstrap_extensions[0]"),
            (sink, "stats_sinks[0]"),
        ] {
            let error = TestProxy::try_start(&bootstrap, 1).await;
            let error = error.expect_err("no start").to_string();
            let start = format!("{place}.typed_config.config: Unable to create Wasm plugin svc: ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }
}

/// A module whose bytes are all ASCII, so that it fits into the text of an answer; no two are the same, so that none was
/// kept by an earlier run.
fn ascii_module() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos();
    let text = format!(
        r#"(module (memory (export "memory") 1) (func (export "v{now}") (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 32)))"#
    );
    String::from_utf8(wat::parse_str(text).expect("valid text")).expect("ASCII")
}

#[tokio::test]
async fn listeners_wait_for_the_first_attempts_at_remote_code() {
    for state in [State::Live, State::Fetching] {
        let code = ascii_module();
        let sum = plenipo::wasm::spec::Digest::of(code.as_bytes());
        let size = code.len();
        let answer = match state {
            State::Live => format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{code}"),
            _ => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        let server = FakeUpstream::answering(answer).await;
        let port = server.address.port();
        let plugin = format!(
            "{{name: svc, vm_config: {{code: {{remote: {{http_uri: {{uri: 'http://code/', cluster: code, timeout: 5s}}, \
             sha256: '{sum}', retry_policy: {{num_retries: 0}}}}}}}}}}"
        );
        let bootstrap = format!(
            "{}static_resources: {{clusters: [{{name: code, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: \
             code, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
             {port}}}}}}}}}]}}]}}}}]}}\n",
            service(&plugin, true)
        );
        let proxy = TestProxy::start(&bootstrap).await;
        assert_eq!(status(&proxy).state, state);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_service_that_trapped_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let proxy = TestProxy::start(&service(&plugin(&path, "k"), true)).await;
    // A message is only sent by a tick after the one that traps.
    kept(&proxy, "message", |_| true).await;
    let plugin = status(&proxy);
    assert_eq!(plugin.vms[0].traps, 1);
    assert_eq!(plugin.vms[0].created, 2);
    assert!(plugin.vms[0].working);
    let live = plugin.live.expect("it is live");
    assert!(live.traps[0].description.contains("proxy_on_tick"));
}

#[tokio::test]
async fn a_service_hears_of_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let plugin = plugin(&path, "");
    let sink = format!(
        "stats_sinks: [{{name: s, typed_config: {{'@type': {SINK}, config: {plugin}}}}}]\n"
    );
    for (bootstrap, roots) in [
        (service(&plugin, true), 1),
        (service(&plugin, false), 2),
        (sink, 1),
    ] {
        let proxy = TestProxy::start(&bootstrap).await;
        let server = &proxy.running.server;
        assert_eq!(metric(&proxy, "wasmcustom.goodbye"), 0);
        server.stop_plugins().await;
        assert_eq!(metric(&proxy, "wasmcustom.goodbye"), 11 * roots);
        assert!(server.plugins.status().is_empty());
    }
}

#[tokio::test]
async fn a_filter_hears_of_the_end_of_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let bootstrap = format!(
        "static_resources: {{listeners: [{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, \
         filter_chains: [{{filters: [{{name: http, typed_config: {{'@type': {MANAGER}, stat_prefix: web, route_config: {{}}, \
         http_filters: [{{name: plugin, typed_config: {{'@type': {FILTER}, config: {}}}}}, \
         {{name: router, typed_config: {{'@type': {ROUTER}}}}}]}}}}]}}]}}]}}",
        plugin(&path, "")
    );
    let proxy = TestProxy::start(&bootstrap).await;
    assert_eq!(metric(&proxy, "wasmcustom.goodbye"), 0);
    let mut client = Client::connect(proxy.address("web").await).await;
    let server = &proxy.running.server;
    // `on_done` (1) and `on_delete` (10) on both workers, and once only.
    for _ in 0..2 {
        server.stop_plugins().await;
        assert_eq!(metric(&proxy, "wasmcustom.goodbye"), 22);
    }
    // No stream gets a context below a root that is gone.
    assert_eq!(client.send(GET).await.status, 503);
}

/// The entries of one block at `at`: names, values, and for counters what was added; and where the next block is.
fn block(bytes: &[u8], at: usize, counters: bool) -> (Vec<(String, u64, u64)>, usize) {
    let short = |at: usize| {
        let bytes = bytes[at..at + 4].try_into().expect("4 bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(short(at + 4), if counters { 1 } else { 2 });
    let mut entries = Vec::new();
    let mut next = at + 12;
    for _ in 0..short(at + 8) {
        let name = next + 4..next + 4 + short(next);
        next = name.end.next_multiple_of(8);
        let text = std::str::from_utf8(&bytes[name]).expect("text");
        let added = if counters { long(next + 8) } else { 0 };
        entries.push((text.to_owned(), long(next), added));
        next += if counters { 16 } else { 8 };
    }
    assert_eq!(next - at, short(at), "the size of the block");
    (entries, next)
}

#[tokio::test]
async fn a_sink_is_told_of_statistics_at_each_flush() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = code(folder.path());
    let plugin = plugin(&path, "");
    let bootstrap = format!(
        "stats_flush_interval: 0.05s\nstats_config: {{stats_matcher: {{exclusion_list: {{patterns: [{{prefix: server.con}}]}}}}}}\n\
         stats_sinks: [{{name: s, typed_config: {{'@type': {SINK}, config: {plugin}}}}}]\n"
    );
    let proxy = TestProxy::start(&bootstrap).await;
    let read = |bytes: &[u8]| {
        let (counters, next) = block(bytes, 0, true);
        let (gauges, end) = block(bytes, next, false);
        assert_eq!(end, bytes.len());
        (counters, gauges)
    };
    let ticks = |bytes: &[u8]| {
        let (counters, _) = read(bytes);
        counters
            .into_iter()
            .find(|(name, ..)| name == "wasmcustom.ticks")
    };
    let first = kept(&proxy, "stats", |bytes| ticks(bytes).is_some()).await;
    let (_, gauges) = read(&first);
    let gauge = |name: &str| gauges.iter().find(|(known, ..)| known == name);
    assert_eq!(gauge("server.live").map(|(_, value, _)| *value), Some(1));
    assert_eq!(gauge("server.concurrency"), None, "left out by the matcher");
    let (_, before, _) = ticks(&first).expect("just seen");
    let later = kept(&proxy, "stats", |bytes| {
        ticks(bytes).is_some_and(|(_, value, _)| value > before + 2)
    });
    let (_, value, added) = ticks(&later.await).expect("just seen");
    assert!(added > 0 && added < value, "{added} of {value}");
    let status = status(&proxy);
    assert_eq!(status.slots, ["stats_sinks[0]"]);
    assert_eq!(status.vms.len(), 1);
}

#[tokio::test]
async fn a_sink_is_told_when_admin_asks_where_that_is_wanted() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = plugin(&code(folder.path()), "");
    let bootstrap = format!(
        "stats_flush_on_admin: true\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         stats_sinks: [{{name: s, typed_config: {{'@type': {SINK}, config: {plugin}}}}}]\n"
    );
    let proxy = TestProxy::start(&bootstrap).await;
    let mut admin = Client::connect(proxy.admin()).await;
    // The guest ticks meanwhile; no other clock tells it anything.
    kept(&proxy, "message", |_| true).await;
    admin.get("admin", "/server_info").await;
    let server = &proxy.running.server;
    assert_eq!(server.plugins.shared_value("vm", b"stats"), None);
    let page = admin.get("admin", "/stats?filter=^server.live").await.body;
    assert_eq!(page, "server.live: 1\n");
    let told = kept(&proxy, "stats", |_| true).await;
    let (counters, next) = block(&told, 0, true);
    let (gauges, _) = block(&told, next, false);
    assert!(!counters.is_empty());
    assert!(
        gauges
            .iter()
            .any(|(name, value, _)| name == "server.live" && *value == 1)
    );
}
