//! HTTP filters of clusters: live with their cluster, swapped under load, waited for, refused with their place.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use plenipo::pb;
use plenipo::wasm::spec::Digest;
use plenipo::wasm::status::State;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::support::guests::marker;
use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, guest, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const MUTATION: &str =
    "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const CODEC: &str =
    "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const RDS: &str =
    "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";
const LONG: Duration = Duration::from_secs(30);

/// A cluster with these filters before the codec; none at all where they are empty.
fn cluster(name: &str, port: u16, filters: &str) -> pb::Any {
    let list = match filters {
        "" => String::new(),
        filters => format!(
            ", http_filters: [{filters}, {{name: codec, typed_config: {{'@type': {CODEC}}}}}]"
        ),
    };
    any(&format!(
        "'@type': {CLUSTER}\nname: {name}\ntype: STATIC\nconnect_timeout: 1s\nload_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n\
         typed_extension_protocol_options: {{{OPTIONS}: {{'@type': type.googleapis.com/{OPTIONS}, explicit_http_config: \
         {{http_protocol_options: {{}}}}{list}}}}}\n"
    ))
}

/// A plugin with this code, as `vm_config.code` has it.
fn plugin(code: &str, rest: &str) -> String {
    format!(
        "{{name: plugin, typed_config: {{'@type': {WASM}, config: {{name: p, vm_config: {{vm_id: up, code: {code}}}{rest}}}}}}}"
    )
}

fn file(path: &Path) -> String {
    format!("{{local: {{filename: '{}'}}}}", path.display())
}

fn routes(cluster: &str) -> pb::Any {
    any(&format!(
        "'@type': {ROUTES}\nname: routes\nvirtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         route: {{cluster: {cluster}}}}}]}}]\n"
    ))
}

struct World {
    plane: ControlPlane,
    upstream: FakeUpstream,
    proxy: TestProxy,
    files: tempfile::TempDir,
}

impl World {
    /// The cluster `up` with these filters, routed to by `routes`.
    async fn new(filters: impl FnOnce(&Path) -> String) -> Self {
        let files = tempfile::tempdir().expect("a folder");
        let upstream = FakeUpstream::start("answer").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let plane = ControlPlane::start(listener).expect("the control plane starts");
        let up = cluster("up", upstream.address.port(), &filters(files.path()));
        plane.set_resources(CLUSTER, vec![up], "1");
        plane.set_resources(ROUTES, vec![routes("up")], "1");
        plane.set_resources(LISTENER, vec![any(&listener_yaml("l", RDS, ""))], "1");
        let proxy = TestProxy::start_on(&ads_bootstrap(plane.address(), false), 1).await;
        Self {
            plane,
            upstream,
            proxy,
            files,
        }
    }

    fn push(&self, filters: &str, version: &str) {
        let up = cluster("up", self.upstream.address.port(), filters);
        self.plane.set_resources(CLUSTER, vec![up], version);
    }

    async fn client(&self) -> Client {
        Client::connect(self.proxy.address("l").await).await
    }

    async fn refusal(&self) -> String {
        let refusal = async {
            loop {
                if let Some(error) = self.plane.next_answer(CLUSTER).await.error {
                    return error;
                }
            }
        };
        let refused = tokio::time::timeout(LONG, refusal).await;
        refused.expect("a refusal")
    }
}

/// Asks until the answer has `value` in `header`; all answers are good.
async fn until(client: &mut Client, header: &str, value: &str) {
    let shows = async {
        loop {
            let response = client.get("test", "/").await;
            assert_eq!(response.status, 200, "{response:?}");
            if response.header(header) == value {
                return;
            }
        }
    };
    let shown = tokio::time::timeout(LONG, shows).await;
    shown.unwrap_or_else(|_| panic!("{header}: {value} does not show"));
}

fn mutation(value: &str) -> String {
    format!(
        "{{name: m, typed_config: {{'@type': {MUTATION}, mutations: {{\
         request_mutations: [{{append: {{header: {{key: x-to, value: '{value}'}}}}}}], \
         response_mutations: [{{append: {{header: {{key: x-from, value: '{value}'}}}}}}]}}}}}}"
    )
}

#[tokio::test]
async fn a_clusters_filters_change_with_their_cluster_and_lose_no_request() {
    let world = World::new(|_| mutation("1")).await;
    let mut client = world.client().await;
    until(&mut client, "x-from", "1").await;
    assert_eq!(world.upstream.seen()[0].header("x-to"), "1");
    let connections = world.upstream.connections();
    world.push(&mutation("2"), "2");
    until(&mut client, "x-from", "2").await;
    let last = world.upstream.seen().pop().expect("asked");
    assert_eq!(last.header("x-to"), "2");
    world.push("", "3");
    until(&mut client, "x-from", "").await;
    assert_eq!(
        world.upstream.connections(),
        connections,
        "the pool survives"
    );

    // What Envoy has no such filter for is refused with its words, and changes nothing.
    world.push(
        "{name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}",
        "4",
    );
    let error = world.refusal().await;
    assert!(
        error.contains("http_filters[0]: Didn't find a registered implementation for 'c' with type URL: 'envoy.extensions.filters.http.cors.v3.Cors'"),
        "{error}"
    );
    until(&mut client, "x-from", "").await;
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_plugin_of_a_cluster_is_swapped_under_load() {
    let write = |folder: &Path, version: u8| {
        let path = folder.join(format!("{version}.wasm"));
        std::fs::write(&path, marker("upstream-swap", version)).expect("a file");
        plugin(&file(&path), "")
    };
    let world = World::new(|folder| write(folder, 1)).await;
    let address = world.proxy.address("l").await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..3)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut last = 0;
                while !stop.load(Relaxed) {
                    let response = client.get("test", "/").await;
                    assert_eq!(response.status, 200, "{response:?}");
                    let version: u8 = response.header("x-guest").parse().expect("a version");
                    assert!(version >= last, "{version} after {last}");
                    last = version;
                }
            })
        })
        .collect();
    let mut client = world.client().await;
    for version in 1..=4 {
        let filter = write(world.files.path(), version);
        world.push(&filter, &version.to_string());
        until(&mut client, "x-guest", &version.to_string()).await;
    }

    // Code that does not work is refused before it is believed.
    let broken = world.files.path().join("broken.wasm");
    std::fs::write(&broken, b"no module").expect("a file");
    world.push(&plugin(&file(&broken), ""), "5");
    let error = world.refusal().await;
    assert!(
        error.contains(&format!(
            "typed_extension_protocol_options[{OPTIONS}].http_filters[0]"
        )),
        "{error}"
    );
    until(&mut client, "x-guest", "4").await;
    stop.store(true, Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }

    // Without its cluster's filter nobody wants the plugin.
    world.push("", "6");
    until(&mut client, "x-guest", "").await;
    let gone = async {
        while !world.proxy.running.server.plugins.status().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(LONG, gone).await;
    gone.expect("its versions go");
}

/// Serves `code` once it is told to.
async fn gated(code: Vec<u8>) -> (u16, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let gate = Arc::new(Notify::new());
    let open = Arc::clone(&gate);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        open.notified().await;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", code.len());
        stream.write_all(head.as_bytes()).await.expect("it listens");
        stream.write_all(&code).await.expect("it listens");
        // Until the proxy has read it and closes.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    (port, gate)
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_cluster_waits_for_its_plugin_and_routes_wait_for_the_cluster() {
    let world = World::new(|_| String::new()).await;
    let mut client = world.client().await;
    until(&mut client, "x-guest", "").await;
    let code = marker("upstream-wait", 7);
    let sha256 = Digest::of(&code);
    let (port, gate) = gated(code).await;
    let remote = plugin(
        &format!(
            "{{remote: {{http_uri: {{uri: 'http://code/p', cluster: code, timeout: 20s}}, sha256: {sha256}}}}}"
        ),
        "",
    );
    let up = world.upstream.address.port();
    // One that is there keeps what it has; one that is new is not there yet, and nobody is sent to it.
    let clusters = || {
        vec![
            cluster("up", up, &remote),
            cluster("new", up, &remote),
            cluster("code", port, ""),
        ]
    };
    world.plane.set_resources(CLUSTER, clusters(), "2");
    world.plane.set_resources(ROUTES, vec![routes("new")], "2");
    let names = |generation: &plenipo::generation::Generation| -> Vec<String> {
        let waiting = generation.warming_clusters.iter();
        waiting.map(ToString::to_string).collect()
    };
    let waiting = async {
        loop {
            let generation = world.proxy.running.server.current.load_full();
            let moved = generation
                .snapshot
                .routes
                .iter()
                .any(|(.., routes)| format!("{routes:?}").contains("\"new\""));
            if moved && names(&generation) == ["new", "up"] {
                return generation;
            }
            drop(generation);
            until(&mut client, "x-guest", "").await;
        }
    };
    let generation = tokio::time::timeout(LONG, waiting).await.expect("it waits");
    assert!(generation.clusters.get("new").is_none());
    let served = generation.clusters.get("up").expect("as before");
    assert_eq!(served.config.upstream_filters, None);
    drop(generation);
    for _ in 0..20 {
        until(&mut client, "x-guest", "").await;
    }

    gate.notify_one();
    until(&mut client, "x-guest", "7").await;
    let generation = world.proxy.running.server.current.load_full();
    assert_eq!(names(&generation), Vec::<String>::new());
    assert!(generation.clusters.get("new").is_some());
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_plugin_hears_of_an_attempt_and_not_of_the_log() {
    let world = World::new(|folder| {
        let path = folder.join("order.wasm");
        std::fs::write(&path, guest("order")).expect("a file");
        plugin(&file(&path), "")
    })
    .await;
    let mut client = world.client().await;
    until(&mut client, "x-guest", "").await;
    let value = world
        .proxy
        .running
        .server
        .plugins
        .shared_value("up", b"order");
    let wrote = String::from_utf8(value.expect("written").to_vec()).expect("letters");
    // Root, start, configure; then a stream: create, request and response headers, done, delete.
    assert_eq!(wrote, "rvfcHidx");
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_plugin_that_fails_is_answered_for_and_its_own_answer_passes() {
    let fault = |folder: &Path, what: &str, rest: &str| {
        let path = folder.join("fault.wasm");
        std::fs::write(&path, guest("fault")).expect("a file");
        let text = format!(
            ", configuration: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {what}}}{rest}"
        );
        plugin(&file(&path), &text)
    };
    let world = World::new(|folder| fault(folder, "rh", "")).await;
    let mut client = world.client().await;
    let response = client.get("test", "/").await;
    assert_eq!((response.status, &*response.body), (418, "teapot"));
    assert_eq!(world.upstream.seen().len(), 0);

    // It replies after the upstream has.
    world.push(&fault(world.files.path(), "rH", ""), "2");
    let asked = async {
        while world.upstream.seen().is_empty() {
            let response = client.get("test", "/").await;
            assert_eq!((response.status, &*response.body), (418, "teapot"));
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("it swaps");

    for (what, version) in [("th", "3"), ("tH", "4")] {
        world.push(&fault(world.files.path(), what, ""), version);
        let failed = async { while client.get("test", "/").await.status != 503 {} };
        tokio::time::timeout(LONG, failed).await.expect("it traps");
    }
    let open = fault(world.files.path(), "th", ", failure_policy: FAIL_OPEN");
    world.push(&open, "5");
    let passes = async { while client.get("test", "/").await.status != 200 {} };
    let passed = tokio::time::timeout(LONG, passes).await;
    passed.expect("without its plugin");
}

/// A plugin of `plugins/bin` in this VM, with this configuration.
#[cfg(feature = "wasm")]
fn shipped(name: &str, vm: &str, configuration: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    format!(
        "{{name: {name}, typed_config: {{'@type': {WASM}, config: {{name: {name}, vm_config: {{vm_id: {vm}, \
         code: {{local: {{filename: '{root}/plugins/bin/{name}.wasm'}}}}}}, configuration: \
         {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {configuration}}}}}}}}}"
    )
}

/// Adds `value` as the header `name` to requests.
#[cfg(feature = "wasm")]
fn adds(name: &str, value: &str) -> String {
    format!(
        "{{name: adds, typed_config: {{'@type': {MUTATION}, mutations: {{\
         request_mutations: [{{append: {{header: {{key: {name}, value: '{value}'}}}}}}]}}}}}}"
    )
}

/// A second listener, whose plugin asks the cluster `auth` about each request, and lets on what that answers with 200. `auth`
/// has these filters.
#[cfg(feature = "wasm")]
async fn asking(world: &World, auth: &str, version: &str) -> Client {
    let port = world.upstream.address.port();
    let clusters = vec![cluster("up", port, ""), cluster("auth", port, auth)];
    world.plane.set_resources(CLUSTER, clusters, version);
    let filters = format!("- {}", shipped("metrics-callout", "asks", "auth"));
    let asking = any(&listener_yaml("asking", RDS, &filters));
    let plain = any(&listener_yaml("l", RDS, ""));
    world
        .plane
        .set_resources(LISTENER, vec![plain, asking], version);
    Client::connect(world.proxy.address("asking").await).await
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn what_a_plugin_calls_passes_the_filters_of_its_cluster() {
    let world = World::new(|_| String::new()).await;
    let mut client = asking(&world, &adds("x-to", "1"), "2").await;
    let answer = client.get("test", "/page").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = world.upstream.seen();
    let told: Vec<_> = seen
        .iter()
        .map(|seen| {
            (
                seen.header("x-path"),
                seen.header("x-to"),
                seen.header("x-checked"),
            )
        })
        .collect();
    assert_eq!(told, [("/page", "1", ""), ("", "", "yes")]);

    // A plugin on that cluster answers in its place: what it was called for is refused, and nobody upstream is asked.
    let guard = shipped("auth-header", "guard", "secret");
    let mut client = asking(&world, &guard, "3").await;
    let refused = async {
        while client.get("test", "/page").await.status != 403 {
            world.upstream.seen();
        }
    };
    let refused = tokio::time::timeout(LONG, refused).await;
    refused.expect("it is refused at last");
    world.upstream.seen();
    assert_eq!(client.get("test", "/page").await.status, 403);
    assert!(world.upstream.seen().is_empty());

    // In their order: the plugin sees what the filter before it has added, and takes it out.
    let both = format!("{}, {guard}", adds("x-token", "secret"));
    let mut client = asking(&world, &both, "4").await;
    let passed = async { while client.get("test", "/page").await.status != 200 {} };
    let passed = tokio::time::timeout(LONG, passed).await;
    passed.expect("it passes at last");
    let seen = world.upstream.seen();
    let call = seen.iter().find(|seen| seen.header("x-path") == "/page");
    assert_eq!(call.expect("asked").header("x-token"), "");
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_plugin_whose_calls_pass_itself_comes_to_an_end() {
    let world = World::new(|_| String::new()).await;
    // Each call makes another, in the same VM, up to what a VM may have under way.
    let asks = shipped("metrics-callout", "asks", "auth");
    let mut client = asking(&world, &asks, "2").await;
    let answer = client.get("test", "/page").await;
    // The last one goes on without a call; how many get through within the second that each waits depends on the machine.
    assert!(matches!(answer.status, 200 | 403), "{answer:?}");
    assert!(world.upstream.seen().len() <= 1001);
    // The worker and the plugin live.
    let up = world.proxy.address("l").await;
    assert_eq!(Client::connect(up).await.get("test", "/").await.status, 200);
    let status = world.proxy.running.server.plugins.status();
    assert!(
        status.iter().all(|plugin| plugin.error.is_none()),
        "{status:?}"
    );
}

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_cluster_that_waits_changes_nothing_for_the_one_that_goes_on() {
    let world = World::new(|_| String::new()).await;
    let write = |number: u8| {
        let path = world.files.path().join(format!("{number}.wasm"));
        std::fs::write(&path, marker("upstream-goes-on", number)).expect("a file");
        plugin(&file(&path), "")
    };
    let gated = async |number: u8| {
        let code = marker("upstream-goes-on", number);
        let sha256 = Digest::of(&code);
        let (port, gate) = gated(code).await;
        let name = format!("code{number}");
        let remote = plugin(
            &format!(
                "{{remote: {{http_uri: {{uri: 'http://code/p', cluster: {name}, timeout: 60s}}, sha256: {sha256}}}}}"
            ),
            "",
        );
        (cluster(&name, port, ""), remote, gate)
    };
    let up = world.upstream.address.port();
    let (late_source, late, gate) = gated(4).await;
    let (another_source, another, _shut) = gated(5).await;
    let another = another
        .replace("{name: plugin,", "{name: other,")
        .replace("config: {name: p,", "config: {name: q,");
    let push = |filters: &str, version: &str| {
        let clusters = vec![
            cluster("up", up, filters),
            late_source.clone(),
            another_source.clone(),
        ];
        world.plane.set_resources(CLUSTER, clusters, version);
    };
    let mut client = world.client().await;
    push(&write(2), "2");
    until(&mut client, "x-guest", "2").await;
    push(&late, "3");
    let states = |state: State| {
        let plugins = world.proxy.running.server.plugins.status().into_iter();
        plugins.filter(move |plugin| plugin.state == state).count()
    };
    until_states(&mut client, || states(State::Fetching) == 1).await;

    // Waits for the other, though its own plugin is there.
    push(&format!("{}, {another}", write(3)), "4");
    until_states(&mut client, || {
        states(State::Live) == 2 && states(State::Fetching) == 2
    })
    .await;
    gate.notify_one();
    let late_serves = async {
        loop {
            match client.get("test", "/").await.header("x-guest") {
                "2" => {}
                "4" => return,
                other => panic!("{other} serves"),
            }
        }
    };
    tokio::time::timeout(LONG, late_serves)
        .await
        .expect("in time");
    assert_eq!(states(State::Live), 2);
}

/// Asks until it is so; `2` serves all the while.
#[cfg(feature = "wasm")]
async fn until_states(client: &mut Client, so: impl Fn() -> bool) {
    let wait = async {
        while !so() {
            assert_eq!(client.get("test", "/").await.header("x-guest"), "2");
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("in time");
}
