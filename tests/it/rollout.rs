//! A new plugin version on trial: rolled back by itself, promoted by itself, or as an operator says.

use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use plenipo::wasm::PluginStatus;
use plenipo::wasm::status::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, guest, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const LOGGER: &str = "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog";
const SETTINGS: &str = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings";
const ROUTES: &str = "route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: up}}]}]}";
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

struct World {
    plane: ControlPlane,
    _upstream: FakeUpstream,
    files: tempfile::TempDir,
    proxy: TestProxy,
}

impl World {
    /// The good version 1 serves.
    async fn new(rollout: &str) -> Self {
        let upstream = FakeUpstream::start("answer").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let plane = ControlPlane::start(listener).expect("the control plane starts");
        let port = upstream.address.port();
        plane.set_resources(CLUSTER, vec![cluster(port)], "1");
        let files = tempfile::tempdir().expect("a folder");
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
             bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': {SETTINGS}, defaults: {{rollout: {{{rollout}}}, \
             breaker: {{tokens: 1000, token_interval: 0.001s}}}}}}}}]\n{}",
            ads_bootstrap(plane.address(), false)
        );
        push(&plane, &files, "add-header", "1");
        let proxy = TestProxy::start_on(&bootstrap, 1).await;
        Self {
            plane,
            _upstream: upstream,
            files,
            proxy,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(self.proxy.address("l").await).await
    }

    /// The version that has been `state` at any time; none has yet.
    fn version(&self, state: State) -> Option<PluginStatus> {
        let plugins = self.proxy.running.server.plugins.status();
        plugins
            .into_iter()
            .find(|plugin| plugin.history.iter().any(|event| event.state == state))
    }

    async fn post(&self, query: &str) -> u16 {
        let mut admin = Client::connect(self.proxy.admin()).await;
        let request = format!(
            "POST /wasm/rollout?{query} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n"
        );
        admin.send(&request).await.status
    }
}

fn cluster(port: u16) -> plenipo::pb::Any {
    any(&format!(
        "'@type': {CLUSTER}\nname: up\ntype: STATIC\nload_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: \
         {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    ))
}

fn push(plane: &ControlPlane, files: &tempfile::TempDir, name: &str, version: &str) {
    push_with(plane, files, name, version, "");
}

fn push_with(
    plane: &ControlPlane,
    files: &tempfile::TempDir,
    name: &str,
    version: &str,
    configuration: &str,
) {
    let filter = filter(files, name, configuration);
    let listener = any(&listener_yaml("l", ROUTES, &filter));
    plane.set_resources(LISTENER, vec![listener], version);
}

/// The plugin `p`, with a guest's code.
fn filter(files: &tempfile::TempDir, name: &str, configuration: &str) -> String {
    let config = plugin(files, name, configuration);
    format!("- {{name: plugin, typed_config: {config}}}")
}

fn plugin(files: &tempfile::TempDir, name: &str, configuration: &str) -> String {
    let code = files.path().join(format!("{name}.wasm"));
    std::fs::write(&code, guest(name)).expect("a file");
    format!(
        "{{\"@type\": {WASM}, config: {{name: p, vm_config: {{vm_id: v, code: {{local: {{filename: '{}'}}}}}}, \
         configuration: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{configuration}'}}}}}}",
        code.display()
    )
}

#[tokio::test]
async fn a_version_that_breaks_two_streams_of_a_hundred_is_rolled_back_and_the_record_says_why() {
    let world = World::new("share_percent: 50, window: 60s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push(&world.plane, &world.files, "sometimes", "2");
    let (mut broken, mut old, mut new) = (0, 0, 0);
    let end = Instant::now() + Duration::from_secs(55);
    let version = loop {
        assert!(
            Instant::now() < end,
            "{broken} broken, {old} old, {new} new"
        );
        let response = client.send(GET).await;
        match (response.status, response.header("x-guest")) {
            (200, "1") => old += 1,
            (200, "2") => new += 1,
            (503, "") => broken += 1,
            other => panic!("{other:?}"),
        }
        if let Some(version) = world.version(State::RolledBack) {
            break version;
        }
    };
    // Nobody else's request failed: each is a trap of the version on trial.
    let traps: u64 = version.vms.iter().map(|vm| vm.traps).sum();
    assert!(
        broken >= 5 && broken == traps,
        "{broken} broken, {traps} traps"
    );
    assert!(old > 0 && new > 0, "{old} old, {new} new");
    let event = last_word(&version);
    assert!(
        event.contains("it breaks more streams") && event.contains("streams broken"),
        "{event}"
    );
    assert!(
        version
            .error
            .expect("told")
            .contains("it breaks more streams")
    );
    // From here on the old one serves alone.
    for _ in 0..300 {
        let response = client.send(GET).await;
        assert_eq!((response.status, response.header("x-guest")), (200, "1"));
    }
}

/// The last word of a version's history.
fn last_word(version: &PluginStatus) -> &str {
    version.history.last().map_or("", |event| &event.detail)
}

/// VMs that fail when a stream has ended, or before a stream has a context, harm whoever comes next.
#[tokio::test]
async fn a_version_whose_vms_fail_outside_of_streams_is_rolled_back() {
    for fault in ["to", "td", "te", "tn"] {
        let world = World::new("share_percent: 50, window: 60s").await;
        let mut client = world.client().await;
        assert_eq!(client.send(GET).await.header("x-guest"), "1");
        push_with(&world.plane, &world.files, "fault", "2", fault);
        let end = Instant::now() + Duration::from_secs(40);
        let version = loop {
            assert!(
                Instant::now() < end,
                "{fault}: it is not rolled back: {:#?}",
                world.proxy.running.server.plugins.status()
            );
            client.send(GET).await;
            if let Some(version) = world.version(State::RolledBack) {
                break version;
            }
        };
        let event = last_word(&version);
        assert!(event.contains("VMs failed"), "{fault}: {event}");
        for _ in 0..50 {
            let response = client.send(GET).await;
            assert_eq!((response.status, response.header("x-guest")), (200, "1"));
        }
    }
}

#[tokio::test]
async fn a_good_version_is_promoted_and_no_request_fails() {
    let world =
        World::new("share_percent: 20, window: 1s, min_streams: 20, max_added_latency: 10s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push(&world.plane, &world.files, "hostile", "2");
    let end = Instant::now() + Duration::from_secs(50);
    loop {
        assert!(Instant::now() < end, "it is not promoted");
        assert_eq!(client.send(GET).await.status, 200);
        let promoted = world.version(State::Trial).is_some_and(|version| {
            version.state == State::Live && last_word(&version).starts_with("promoted: ")
        });
        if promoted {
            break;
        }
    }
    for _ in 0..100 {
        assert_eq!(client.send(GET).await.status, 200);
    }
    assert!(world.version(State::RolledBack).is_none());
    // Its predecessor goes, with its VMs.
    let gone = async {
        while world.proxy.running.server.plugins.status().len() > 1 {
            assert_eq!(client.send(GET).await.status, 200);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("one version is left");
}

#[tokio::test]
async fn an_operator_decides() {
    let world = World::new("share_percent: 1, window: 600s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    assert_eq!(world.post("plugin=p&share=100").await, 404);
    push(&world.plane, &world.files, "sometimes", "2");
    let end = Instant::now() + Duration::from_secs(20);
    while world.version(State::Trial).is_none() {
        assert!(Instant::now() < end, "it is not on trial");
        client.send(GET).await;
    }
    // The Generation that knows of it follows.
    assert_eq!(world.post("plugin=p&share=100").await, 200);
    while client.send(GET).await.header("x-guest") != "2" {
        assert!(Instant::now() < end, "it gets no streams");
    }
    assert_eq!(world.post("plugin=p&share=0").await, 200);
    for _ in 0..20 {
        assert_eq!(client.send(GET).await.header("x-guest"), "1");
    }
    assert_eq!(world.post("plugin=p&decision=roll_back").await, 200);
    assert_eq!(world.post("plugin=p&decision=promote").await, 404);
    while world.version(State::RolledBack).is_none() {
        assert!(Instant::now() < end, "the record does not say it");
        tokio::task::yield_now().await;
    }
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
}

#[tokio::test]
async fn a_version_that_was_rolled_back_stays_so_whatever_changes_beside_it() {
    let world = World::new("share_percent: 1, window: 600s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push(&world.plane, &world.files, "sometimes", "2");
    let end = Instant::now() + Duration::from_secs(20);
    while world.post("plugin=p&decision=roll_back").await != 200 {
        assert!(Instant::now() < end, "it is not on trial");
        tokio::task::yield_now().await;
    }
    let changed = ROUTES.replace(
        "[{match",
        "[{match: {path: /changed}, direct_response: {status: 418}}, {match",
    );
    let filter = filter(&world.files, "sometimes", "");
    let listener = any(&listener_yaml("l", &changed, &filter));
    world.plane.set_resources(LISTENER, vec![listener], "3");
    while client.get("test", "/changed").await.status != 418 {
        assert!(Instant::now() < end, "the change does not come");
    }
    for _ in 0..100 {
        assert_eq!(client.send(GET).await.header("x-guest"), "1");
    }
    assert_eq!(world.post("plugin=p&share=100").await, 404);
    // The record follows.
    let version = loop {
        assert!(Instant::now() < end, "the record does not say it");
        match world.version(State::RolledBack) {
            Some(version) => break version,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(version.state, State::RolledBack);
}

#[tokio::test]
async fn a_plugin_of_the_same_name_elsewhere_has_no_part_in_a_trial() {
    let world = World::new("share_percent: 1, window: 600s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    let push = |first: &str, version: &str| {
        let listeners = [("l", first), ("other", "add-header")].map(|(name, guest_name)| {
            let filter = filter(&world.files, guest_name, "");
            any(&listener_yaml(name, ROUTES, &filter))
        });
        let listeners = listeners.to_vec();
        world.plane.set_resources(LISTENER, listeners, version);
    };
    push("add-header", "2");
    let mut other = Client::connect(world.proxy.address("other").await).await;
    push("sometimes", "3");
    let end = Instant::now() + Duration::from_secs(20);
    while world.post("plugin=p&share=100").await != 200 {
        assert!(Instant::now() < end, "it is not on trial");
        tokio::task::yield_now().await;
    }
    for decision in ["share=100", "decision=promote"] {
        assert_eq!(world.post(&format!("plugin=p&{decision}")).await, 200);
        while client.send(GET).await.header("x-guest") != "2" {
            assert!(Instant::now() < end, "it gets no streams");
        }
        for _ in 0..20 {
            assert_eq!(other.send(GET).await.header("x-guest"), "1");
        }
    }
}

/// What a plugin answers when its callout is answered is told to nobody but the stream.
#[tokio::test]
async fn a_version_that_answers_with_errors_from_a_callout_is_rolled_back() {
    let world = World::new("share_percent: 50, window: 60s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push(&world.plane, &world.files, "callout-reply", "2");
    let end = Instant::now() + Duration::from_secs(40);
    let mut refused = 0;
    let version = loop {
        assert!(Instant::now() < end, "{refused} were refused");
        refused += u32::from(client.send(GET).await.status == 503);
        if let Some(version) = world.version(State::RolledBack) {
            break version;
        }
    };
    assert!(refused >= 5, "{refused}");
    let event = last_word(&version);
    assert!(event.contains("it breaks more streams"), "{event}");
}

/// It breaks no stream, and ends none; nor does the old one, where it is given none.
#[tokio::test]
async fn a_version_that_holds_streams_for_ever_is_rolled_back() {
    for (share, why) in [
        (50, "its streams hang: "),
        (100, "all of its streams hang: "),
    ] {
        holds_streams(share, why).await;
    }
}

async fn holds_streams(share: u32, why: &str) {
    let world = World::new(&format!("share_percent: {share}, window: 4s")).await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push_with(&world.plane, &world.files, "action", "2", "1000000");
    let address = world.proxy.address("l").await;
    let end = Instant::now() + Duration::from_secs(30);
    let mut streams = tokio::task::JoinSet::new();
    let version = loop {
        assert!(
            Instant::now() < end && world.version(State::Live).is_some(),
            "it is not rolled back: {:#?}",
            world.proxy.running.server.plugins.status()
        );
        streams.spawn(async move { Client::connect(address).await.send(GET).await.status });
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(version) = world.version(State::RolledBack) {
            break version;
        }
    };
    let event = last_word(&version);
    assert!(event.starts_with(why), "{event}");
    for _ in 0..20 {
        assert_eq!(client.send(GET).await.header("x-guest"), "1");
    }
}

#[tokio::test]
async fn a_trial_without_a_share_waits_for_its_operator() {
    let world = World::new("share_percent: 1, window: 0.2s").await;
    let mut client = world.client().await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    push(&world.plane, &world.files, "sometimes", "2");
    let end = Instant::now() + Duration::from_secs(20);
    while world.post("plugin=p&share=0").await != 200 {
        assert!(Instant::now() < end, "it is not on trial");
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.send(GET).await.header("x-guest"), "1");
    assert_eq!(world.post("plugin=p&share=100").await, 200);
    let end = Instant::now() + Duration::from_secs(20);
    while client.send(GET).await.header("x-guest") != "2" {
        assert!(Instant::now() < end, "it gets no streams");
    }
}

#[tokio::test]
async fn a_version_for_a_route_is_tried_as_well() {
    let world = World::new("share_percent: 50, window: 60s").await;
    let wasm = |name: &str, guest_name: &str| {
        let code = world.files.path().join(format!("{guest_name}.wasm"));
        std::fs::write(&code, guest(guest_name)).expect("a file");
        format!(
            "{{\"@type\": {WASM}, config: {{name: {name}, vm_config: {{vm_id: v, code: {{local: {{filename: '{}'}}}}}}}}}}",
            code.display()
        )
    };
    let push = |guest_name: &str, version: &str| {
        let route = format!(
            "route: {{cluster: up}}, typed_per_filter_config: {{plugin: {}}}",
            wasm("route", guest_name)
        );
        let filter = format!(
            "- {{name: plugin, typed_config: {}}}",
            wasm("p", "add-header")
        );
        let routes = ROUTES.replace("route: {cluster: up}", &route);
        let listener = any(&listener_yaml("l", &routes, &filter));
        world.plane.set_resources(LISTENER, vec![listener], version);
    };
    push("add-header", "2");
    let mut client = world.client().await;
    let end = Instant::now() + Duration::from_secs(40);
    let live = |plugin: &PluginStatus| plugin.name == "route" && plugin.state == State::Live;
    while !world.proxy.running.server.plugins.status().iter().any(live) {
        assert!(Instant::now() < end, "it does not go live");
        client.send(GET).await;
    }
    push("sometimes", "3");
    while world.version(State::RolledBack).is_none() {
        assert!(Instant::now() < end, "it is not rolled back");
        client.send(GET).await;
    }
    for _ in 0..100 {
        let response = client.send(GET).await;
        assert_eq!((response.status, response.header("x-guest")), (200, "1"));
    }
}

/// The plugin `p` as the access logger of the listener, and no filter.
fn push_logger(world: &World, name: &str, version: &str, configuration: &str) {
    let logger = plugin(&world.files, name, configuration).replace(WASM, LOGGER);
    let routes = format!("access_log: [{{name: logger, typed_config: {logger}}}]\n      {ROUTES}");
    let listener = any(&listener_yaml("l", &routes, ""));
    world.plane.set_resources(LISTENER, vec![listener], version);
}

/// A world whose version 1 is an access logger.
async fn logging(rollout: &str) -> (World, Client) {
    let world = World::new(rollout).await;
    push_logger(&world, "add-header", "2", "");
    let mut client = world.client().await;
    let end = Instant::now() + Duration::from_secs(20);
    while !client.send(GET).await.header("x-guest").is_empty() {
        assert!(Instant::now() < end, "the plugin stays a filter");
    }
    (world, client)
}

#[tokio::test]
async fn a_version_of_an_access_logger_that_breaks_logs_is_rolled_back() {
    let (world, mut client) = logging("share_percent: 50, window: 60s").await;
    push_logger(&world, "fault", "3", "to");
    let end = Instant::now() + Duration::from_secs(50);
    let version = loop {
        assert!(Instant::now() < end, "it is not rolled back");
        assert_eq!(client.send(GET).await.status, 200);
        if let Some(version) = world.version(State::RolledBack) {
            break version;
        }
    };
    let event = last_word(&version);
    assert!(event.starts_with("it breaks more streams: "), "{event}");
}

/// Of a client that left, the VM's own task tells.
#[tokio::test]
async fn what_an_access_logger_hears_of_clients_that_left_counts_in_its_trial() {
    let (world, client) =
        logging("share_percent: 100, window: 1s, min_streams: 3, max_added_latency: 10s").await;
    drop(client);
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = silent.local_addr().expect("bound").port();
    let generation = world.proxy.generation_number();
    world.plane.set_resources(CLUSTER, vec![cluster(port)], "2");
    world.proxy.generation(generation + 1).await;
    push_logger(&world, "order", "3", "");
    let address = world.proxy.address("l").await;
    let end = Instant::now() + Duration::from_secs(50);
    let version = loop {
        assert!(Instant::now() < end, "it is not promoted");
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(GET.as_bytes()).await.expect("sent");
        let (mut host, _) = silent.accept().await.expect("forwarded");
        drop(client);
        // Either way of closing will do.
        let _ = host.read_to_end(&mut Vec::new()).await;
        let version = world.version(State::Trial);
        if let Some(version) = version.filter(|version| version.state == State::Live) {
            break version;
        }
    };
    let event = last_word(&version);
    assert!(event.starts_with("promoted: 0 of "), "{event}");
}
