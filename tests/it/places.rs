//! What a place of a plugin is across updates: its last good version serves there whatever changes beside it, and nowhere
//! else.

use std::path::Path;
use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use plenipo::pb;
use plenipo::wasm::PluginStatus;
use plenipo::wasm::spec::Digest;
use plenipo::wasm::status::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{
    Client, FakeUpstream, TestProxy, ads_bootstrap, any, exchange, guests, listener_yaml,
};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const ROUTER: &str = "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const CORS: &str = "- {name: cors, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}\n      ";
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
const INLINE: &str = "route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: up}}]}]}";
const RDS: &str =
    "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";

struct World {
    plane: ControlPlane,
    upstream: FakeUpstream,
    folder: tempfile::TempDir,
    silent: TcpListener,
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let world = Self {
            plane: ControlPlane::start(listener).expect("the control plane starts"),
            upstream: FakeUpstream::start("answer").await,
            folder: tempfile::tempdir().expect("a folder"),
            silent: TcpListener::bind("127.0.0.1:0").await.expect("a free port"),
        };
        world.clusters("1");
        let table = any(&format!(
            "'@type': {ROUTES}\nname: routes\nvirtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: up}}}}]}}]\n"
        ));
        world.plane.set_resources(ROUTES, vec![table], "1");
        world
    }

    fn clusters(&self, version: &str) {
        let of = |name: &str, port: u16| {
            any(&format!(
                "'@type': {CLUSTER}\nname: {name}\ntype: STATIC\nconnect_timeout: {version}s\nload_assignment: {{cluster_name: \
                 {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
                 port_value: {port}}}}}}}}}]}}]}}\n"
            ))
        };
        let silent = self.silent.local_addr().expect("bound").port();
        let clusters = vec![of("up", self.upstream.address.port()), of("silent", silent)];
        self.plane.set_resources(CLUSTER, clusters, version);
    }

    async fn start(&self) -> TestProxy {
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
            ads_bootstrap(self.plane.address(), false)
        );
        TestProxy::start_on(&bootstrap, 1).await
    }

    /// The configuration of the plugin `name`, which is at hand and adds `x-guest: <mark>`.
    fn good(&self, name: &str, mark: u8) -> String {
        let path = marker(self.folder.path(), mark);
        let path = path.display();
        plugin(name, &format!("local: {{filename: '{path}'}}"))
    }

    fn listener(&self, manager: &str, filters: &str, version: &str) {
        let listener = any(&listener_yaml("l", manager, filters));
        self.plane.set_resources(LISTENER, vec![listener], version);
    }
}

fn plugin(name: &str, code: &str) -> String {
    format!(
        "{{'@type': {WASM}, config: {{name: {name}, vm_config: {{vm_id: v, code: {{{code}}}}}}}}}"
    )
}

/// The configuration of the plugin `name` whose code cannot be had, and is not waited for.
fn down(name: &str) -> String {
    plugin(
        name,
        &format!(
            "remote: {{http_uri: {{uri: 'http://nowhere/p.wasm', cluster: nowhere, timeout: 1s}}, retry_policy: \
             {{num_retries: 0}}, sha256: {}}}",
            "0".repeat(64)
        ),
    )
}

/// Likewise, and waited for without end.
fn silent(name: &str) -> String {
    plugin(
        name,
        &format!(
            "remote: {{http_uri: {{uri: 'http://silent/p.wasm', cluster: silent, timeout: 60s}}, sha256: {}}}",
            "1".repeat(64)
        ),
    )
}

fn filter(name: &str, config: &str) -> String {
    format!("- {{name: {name}, typed_config: {config}}}\n      ")
}

fn marker(folder: &Path, mark: u8) -> std::path::PathBuf {
    let source = format!("{}/tests/guests/add-header.wat", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(source).expect("the guest is there");
    let text = text.replace("x-guest1", &format!("x-guest{mark}"));
    let path = folder.join(format!("{mark}.wasm"));
    std::fs::write(&path, wat::parse_str(text).expect("valid text")).expect("a file");
    path
}

async fn until(mut reached: impl AsyncFnMut() -> bool, what: &str) {
    let wait = async {
        while !reached().await {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), wait).await;
    waited.unwrap_or_else(|_| panic!("{what}"));
}

fn versions(proxy: &TestProxy, name: &str, state: State) -> Vec<PluginStatus> {
    let plugins = proxy.running.server.plugins.status();
    let of_it = |plugin: &PluginStatus| plugin.name == name && plugin.state == state;
    plugins.into_iter().filter(of_it).collect()
}

/// Until the snapshot that has this version of the listener is what serves.
async fn serves(proxy: &TestProxy, has: impl Fn(&plenipo::config::Listener) -> bool) {
    until(
        async || {
            let now = proxy.running.server.current.load_full();
            now.listeners
                .get("l")
                .is_some_and(|listener| has(&listener.config))
        },
        "the listener does not come",
    )
    .await;
}

/// A chain of a plugin, for connections from `source`; this client's is 127.0.0.1.
fn chain(name: &str, source: &str, plugin: &str) -> String {
    format!(
        "{{name: '{name}', filter_chain_match: {{source_prefix_ranges: [{{address_prefix: {source}, prefix_len: 32}}]}}, {}}}",
        filters(plugin)
    )
}

fn filters(plugin: &str) -> String {
    format!(
        "filters: [{{name: m, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: p, {RDS}, http_filters: [{{name: plugin, \
         typed_config: {plugin}}}, {ROUTER}]}}}}]"
    )
}

fn chains(chains: &[String], default: &str) -> pb::Any {
    any(&format!(
        "'@type': {LISTENER}\nname: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n\
         filter_chains: [{}]\n{default}",
        chains.join(", ")
    ))
}

/// Two chains without names, alike but for their match.
fn two_chains(first: &str, second: &str) -> pb::Any {
    let default = format!("default_filter_chain: {{{}}}\n", filters(second));
    chains(&[chain("", "127.0.0.1", first)], &default)
}

#[tokio::test]
async fn chains_without_names_share_no_plugin() {
    let world = World::new().await;
    let listener = two_chains(&down("p"), &world.good("p", 2));
    world.plane.set_resources(LISTENER, vec![listener], "1");
    let proxy = world.start().await;
    // That of the default chain is live, and no predecessor of this one.
    assert_eq!(versions(&proxy, "p", State::Live).len(), 1);
    let mut client = Client::connect(proxy.address("l").await).await;
    for _ in 0..3 {
        let response = client.get("test", "/").await;
        assert_eq!((response.status, response.header("x-guest")), (503, ""));
    }

    // Each keeps its own when Generations come that have nothing to do with them.
    let listener = two_chains(&world.good("p", 1), &world.good("p", 2));
    world.plane.set_resources(LISTENER, vec![listener], "2");
    let mut client = Client::connect(proxy.address("l").await).await;
    until(
        async || client.get("test", "/").await.header("x-guest") == "1",
        "the plugin does not come",
    )
    .await;
    for round in 2..5 {
        let before = proxy.running.server.current.load_full().number;
        world.clusters(&round.to_string());
        until(
            async || proxy.running.server.current.load_full().number > before,
            "no Generation comes",
        )
        .await;
        assert_eq!(versions(&proxy, "p", State::Live).len(), 2);
    }
}

/// A chain is what it matches: not what it is called, which may be the number that another had.
#[tokio::test]
async fn a_chain_of_anothers_name_does_not_run_its_plugin() {
    let world = World::new().await;
    let rest = format!(
        "default_filter_chain: {{{}}}\n",
        filters(&world.good("p", 3))
    );
    let listener = |chain: String| chains(&[chain], &rest);
    let first = listener(chain("0", "127.0.0.2", &world.good("p", 1)));
    world.plane.set_resources(LISTENER, vec![first], "1");
    let proxy = world.start().await;
    let second = listener(chain("0", "127.0.0.1", &down("p")));
    world.plane.set_resources(LISTENER, vec![second], "2");
    until(
        async || {
            let response = exchange(proxy.address("l").await, GET).await;
            assert_ne!(response.header("x-guest"), "1");
            response.status == 503
        },
        "it is not answered for",
    )
    .await;
    // Its own it keeps, whatever it is called.
    let third = listener(chain("0", "127.0.0.1", &world.good("p", 2)));
    world.plane.set_resources(LISTENER, vec![third], "3");
    let mut client = Client::connect(proxy.address("l").await).await;
    until(
        async || client.get("test", "/").await.header("x-guest") == "2",
        "it does not come",
    )
    .await;
    let fourth = listener(chain("1", "127.0.0.1", &down("p")));
    world.plane.set_resources(LISTENER, vec![fourth], "4");
    serves(&proxy, |listener| &*listener.filter_chains[0].name == "1").await;
    let response = exchange(proxy.address("l").await, GET).await;
    assert_eq!((response.status, response.header("x-guest")), (200, "2"));
}

#[tokio::test]
async fn what_changes_beside_a_plugin_does_not_take_its_last_good_version() {
    let world = World::new().await;
    world.listener(INLINE, &filter("plugin", &world.good("p", 1)), "1");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("test", "/").await.header("x-guest"), "1");
    for (version, before, prefix) in [(2, 0, "l"), (3, 1, "l"), (4, 2, "other")] {
        let filters = format!("{}{}", CORS.repeat(before), filter("plugin", &down("p")));
        let listener = listener_yaml("l", INLINE, &filters);
        let listener = listener.replace("stat_prefix: l", &format!("stat_prefix: {prefix}"));
        let listener = any(&listener);
        let version = version.to_string();
        world
            .plane
            .set_resources(LISTENER, vec![listener], &version);
        let count = before + 2;
        serves(&proxy, |listener| {
            let terminal = &listener.filter_chains[0].terminal;
            matches!(terminal, plenipo::config::listener::Terminal::Http(manager) if manager.http_filters.len() == count)
        })
        .await;
        until(
            async || {
                let mut all = proxy.running.server.plugins.status().into_iter();
                all.any(|plugin| plugin.error.is_some())
            },
            "the new version does not fail",
        )
        .await;
        for _ in 0..3 {
            let response = client.get("test", "/").await;
            assert_eq!((response.status, response.header("x-guest")), (200, "1"));
        }
    }
}

/// A plugin of another name is no version of what stood there.
#[tokio::test]
async fn a_plugin_that_cannot_be_had_is_not_replaced_by_its_neighbour() {
    let world = World::new().await;
    let filters = [world.good("log", 1), world.good("auth", 2)];
    let filters = filters.map(|config| filter("plugin", &config)).concat();
    world.listener(INLINE, &filters, "1");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("test", "/").await.status, 200);
    world.listener(INLINE, &filter("plugin", &down("guard")), "2");
    until(
        async || client.get("test", "/").await.status == 503,
        "it is not answered for",
    )
    .await;
    for _ in 0..20 {
        let response = client.get("test", "/").await;
        assert_eq!((response.status, response.header("x-guest")), (503, ""));
    }
}

/// `/other` with `other` in the filter's place, behind `before`.
fn routes(before: &str, other: &str, version: &str) -> pb::Any {
    any(&format!(
        "'@type': {ROUTES}\nname: routes\nresponse_headers_to_add: [{{header: {{key: x-version, value: '{version}'}}}}]\n\
         virtual_hosts:\n- name: all\n  domains: ['*']\n  routes:\n  {before}\n  \
         - match: {{prefix: /other}}\n    route: {{cluster: up}}\n    typed_per_filter_config: {{plugin: {other}}}\n  \
         - match: {{prefix: /}}\n    route: {{cluster: up}}\n"
    ))
}

#[tokio::test]
async fn a_route_keeps_its_last_good_plugin_and_gives_it_to_no_other() {
    let world = World::new().await;
    world.listener(RDS, &filter("plugin", &world.good("own", 1)), "1");
    let first = routes("", &world.good("p", 2), "1");
    world.plane.set_resources(ROUTES, vec![first], "first");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("test", "/other").await.header("x-guest"), "2");
    let another = format!(
        "- {{match: {{prefix: /new}}, route: {{cluster: up}}, typed_per_filter_config: {{plugin: {}}}}}",
        down("p")
    );
    for (version, before) in [("2", ""), ("3", &*another), ("4", "")] {
        let table = routes(before, &down("p"), version);
        world.plane.set_resources(ROUTES, vec![table], version);
        until(
            async || client.get("test", "/").await.header("x-version") == version,
            "the routes do not come",
        )
        .await;
        let response = client.get("test", "/other").await;
        let other = (response.status, response.header("x-guest"));
        assert_eq!(other, (200, "2"), "{version}");
        if !before.is_empty() {
            assert_eq!(client.get("test", "/new").await.status, 503);
        }
    }
    // What was never there is waited for by the routes before, with their plugins.
    let table = routes("", &silent("another"), "5");
    world.plane.set_resources(ROUTES, vec![table], "5");
    until(
        async || !versions(&proxy, "another", State::Fetching).is_empty(),
        "it is not fetched",
    )
    .await;
    for _ in 0..20 {
        let response = client.get("test", "/other").await;
        let seen = (response.header("x-guest"), response.header("x-version"));
        assert_eq!(seen, ("2", "4"));
    }
}

#[tokio::test]
async fn routes_that_wait_change_nothing_for_those_that_go_on() {
    let world = World::new().await;
    world.listener(RDS, &filter("plugin", &world.good("own", 1)), "1");
    let push = |before: &str, other: &str, version: &str| {
        let table = routes(before, other, version);
        world.plane.set_resources(ROUTES, vec![table], version);
    };
    push("", &world.good("p", 2), "1");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    let mut other = async || {
        let response = client.get("test", "/other").await;
        let header = |name| response.header(name).to_owned();
        (header("x-guest"), header("x-version"))
    };
    let shown = |guest: &str, version: &str| (guest.to_owned(), version.to_owned());
    assert_eq!(other().await, shown("2", "1"));
    let code = guests::marker("routes-that-wait", 4);
    let late = plugin(
        "p",
        &format!(
            "remote: {{http_uri: {{uri: 'http://silent/p.wasm', cluster: silent, timeout: 60s}}, sha256: {}}}",
            Digest::of(&code)
        ),
    );
    push("", &late, "2");
    let fetched = tokio::time::timeout(Duration::from_secs(30), world.silent.accept()).await;
    let (mut late_source, _) = fetched.expect("in time").expect("it is fetched");
    until(
        async || other().await == shown("2", "2"),
        "the routes do not come",
    )
    .await;

    // These wait, though what they have at this place is there.
    let another = format!(
        "- {{match: {{prefix: /new}}, route: {{cluster: up}}, typed_per_filter_config: {{plugin: {}}}}}",
        silent("another")
    );
    push(&another, &world.good("p", 3), "3");
    until(
        async || versions(&proxy, "p", State::Live).len() == 2,
        "it does not come",
    )
    .await;
    let before = proxy.running.server.current.load_full().number;
    world.clusters("2");
    until(
        async || proxy.running.server.current.load_full().number > before,
        "no Generation comes",
    )
    .await;
    for _ in 0..20 {
        assert_eq!(other().await, shown("2", "2"));
    }
    assert!(versions(&proxy, "p", State::Draining).is_empty());
    assert_eq!(versions(&proxy, "p", State::Live).len(), 2);

    // What those that go on have asked for goes live with them, and serves when they are sent again.
    let _ = late_source.read(&mut [0; 4096]).await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", code.len());
    let answer = [head.as_bytes(), &code].concat();
    late_source.write_all(&answer).await.expect("it is read");
    let mut expected = vec![shown("2", "2"), shown("4", "2"), shown("4", "4")];
    let mut turns = async |last: usize| {
        let wait = async || {
            let now = other().await;
            let known = expected.iter().position(|expected| *expected == now);
            expected.drain(..known.unwrap_or_else(|| panic!("{now:?}")));
            expected.len() == last
        };
        until(wait, "it does not come").await;
    };
    turns(2).await;
    push("", &late, "4");
    turns(1).await;
    push("", &world.good("p", 3), "5");
    until(
        async || other().await == shown("3", "5"),
        "it does not come",
    )
    .await;
}

#[tokio::test]
async fn code_that_is_moved_into_its_place_serves_without_a_new_configuration() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plugin.wasm");
    let put = |mark: u8| std::fs::rename(marker(world.folder.path(), mark), &path);
    put(1).expect("moved");
    let code = format!(
        "local: {{filename: '{}', watched_directory: {{path: '{}'}}}}",
        path.display(),
        folder.path().display()
    );
    world.listener(INLINE, &filter("plugin", &plugin("p", &code)), "1");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    let mut mark = async || {
        let response = client.get("test", "/").await;
        assert_eq!(response.status, 200);
        response.header("x-guest").to_owned()
    };
    assert_eq!(mark().await, "1");
    put(2).expect("moved");
    let taken_over = async || match &*mark().await {
        "1" => false,
        other => {
            assert_eq!(other, "2");
            true
        }
    };
    until(taken_over, "it does not come").await;
}

#[tokio::test]
async fn a_chain_goes_on_while_it_waits_for_another_plugin_that_was_discovered() {
    let world = World::new().await;
    let extension = |config: &str| {
        any(&format!(
            "{{'@type': {EXTENSION}, name: plugin, typed_config: {config}}}"
        ))
    };
    let discovered = format!(
        "- {{name: plugin, config_discovery: {{config_source: {{ads: {{}}, resource_api_version: V3}}, type_urls: [{WASM}]}}}}\n"
    );
    world.listener(INLINE, &discovered, "1");
    let first = extension(&world.good("one", 1));
    world.plane.set_resources(EXTENSION, vec![first], "1");
    let proxy = world.start().await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("test", "/").await.header("x-guest"), "1");
    let second = extension(&silent("two"));
    world.plane.set_resources(EXTENSION, vec![second], "2");
    until(
        async || !versions(&proxy, "two", State::Fetching).is_empty(),
        "it is not fetched",
    )
    .await;
    for _ in 0..50 {
        let response = client.get("test", "/").await;
        assert_eq!((response.status, response.header("x-guest")), (200, "1"));
    }
    let third = extension(&world.good("two", 2));
    world.plane.set_resources(EXTENSION, vec![third], "3");
    until(
        async || client.get("test", "/").await.header("x-guest") == "2",
        "it does not come",
    )
    .await;
}
