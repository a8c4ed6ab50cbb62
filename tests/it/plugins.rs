//! Plugins elsewhere than in a chain's filters: of routes, in the place of the filter's own and live together with their route;
//! and as access loggers.

use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use plenipo::pb;
use plenipo::wasm::status::State;
use tokio::net::TcpListener;

use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, guest, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";

/// A plugin called `name` of the module at `path`.
fn plugin(name: &str, path: &std::path::Path) -> String {
    let path = path.display();
    format!(
        "{{'@type': {WASM}, config: {{name: {name}, vm_config: {{vm_id: routes, code: {{local: {{filename: '{path}'}}}}}}}}}}"
    )
}

/// `/own` as the filter is; `/other` with `other` in its place.
fn routes(other: &str) -> pb::Any {
    any(&format!(
        "'@type': {ROUTES}\nname: routes\nvirtual_hosts:\n- name: all\n  domains: ['*']\n  routes:\n  \
         - match: {{prefix: /other}}\n    route: {{cluster: up}}\n    typed_per_filter_config: {{plugin: {other}}}\n  \
         - match: {{prefix: /}}\n    route: {{cluster: up}}\n"
    ))
}

/// Adds `x-guest: <version>`.
fn marker(folder: &std::path::Path, version: u8) -> std::path::PathBuf {
    let source = format!("{}/tests/guests/add-header.wat", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(source).expect("the guest is there");
    let text = text.replace("x-guest1", &format!("x-guest{version}"));
    let path = folder.join(format!("{version}.wasm"));
    std::fs::write(&path, wat::parse_str(text).expect("valid text")).expect("a file");
    path
}

#[tokio::test]
async fn a_route_puts_another_plugin_in_place_and_is_live_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (marker(folder.path(), 1), marker(folder.path(), 2));
    let upstream = FakeUpstream::start("answer").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let plane = ControlPlane::start(listener).expect("the control plane starts");
    let port = upstream.address.port();
    let up = format!(
        "'@type': {CLUSTER}\nname: up\ntype: STATIC\nconnect_timeout: 1s\nload_assignment: {{cluster_name: up, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    );
    plane.set_resources(CLUSTER, vec![any(&up)], "1");
    let filter = format!("- {{name: plugin, typed_config: {}}}", plugin("one", &one));
    let rds =
        "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";
    plane.set_resources(LISTENER, vec![any(&listener_yaml("l", rds, &filter))], "1");
    let disabled =
        "{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}";
    plane.set_resources(ROUTES, vec![routes(disabled)], "1");
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        ads_bootstrap(plane.address(), false)
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("test", "/own").await.header("x-guest"), "1");
    assert_eq!(client.get("test", "/other").await.header("x-guest"), "");

    // The route of before goes on until the plugin of the new one is ready.
    plane.set_resources(ROUTES, vec![routes(&plugin("two", &two))], "2");
    let swapped = async {
        loop {
            let response = client.get("test", "/other").await;
            assert_eq!(response.status, 200);
            match response.header("x-guest") {
                "" => {}
                header => return assert_eq!(header, "2"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), swapped)
        .await
        .expect("the route's plugin comes");
    assert_eq!(client.get("test", "/own").await.header("x-guest"), "1");

    // What will not do is refused with its place, and changes nothing.
    let broken = folder.path().join("broken.wasm");
    std::fs::write(&broken, b"no module").expect("a file");
    plane.set_resources(ROUTES, vec![routes(&plugin("bad", &broken))], "3");
    let refusal = async {
        loop {
            if let Some(error) = plane.next_answer(ROUTES).await.error {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), refusal)
        .await
        .expect("a refusal");
    assert!(
        error.contains("virtual_hosts[0].routes[0].typed_per_filter_config[plugin]"),
        "{error}"
    );
    assert_eq!(client.get("test", "/other").await.header("x-guest"), "2");

    // Once no route wants it, its version goes.
    plane.set_resources(ROUTES, vec![routes(disabled)], "4");
    let gone = async {
        loop {
            let response = client.get("test", "/other").await;
            let plugins = proxy.running.server.plugins.status();
            let live = |name: &str| {
                let mut of = plugins.iter().filter(|plugin| plugin.name == name);
                of.any(|plugin| plugin.state == State::Live)
            };
            if response.header("x-guest").is_empty() && !live("two") {
                return assert!(live("one"));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("the version goes");
}

/// What the guest `order` has written.
fn order(proxy: &TestProxy) -> String {
    let plugins = &proxy.running.server.plugins;
    let value = plugins.shared_value("routes", b"order").expect("written");
    String::from_utf8(value.to_vec()).expect("letters")
}

#[tokio::test]
async fn a_plugin_that_logs_hears_of_the_ends_that_its_filter_lets_pass() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("order.wasm");
    std::fs::write(&path, guest("order")).expect("a file");
    let logger = plugin("logger", &path).replace(
        WASM,
        "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog",
    );
    let manager = format!(
        "access_log: [{{name: w, filter: {{status_code_filter: {{comparison: {{op: GE, value: {{default_value: 400, \
         runtime_key: k}}}}}}}}, typed_config: {logger}}}]\n      \
         route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [\
         {{match: {{prefix: /bad}}, direct_response: {{status: 418}}}}, \
         {{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}]}}"
    );
    let listener = listener_yaml("l", &manager, "").replace("\n      \n", "\n");
    let indented = listener.trim().replace('\n', "\n    ");
    let proxy = TestProxy::start_on(
        &format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  listeners:\n  - {}",
            indented.replace("\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n    ", "")
        ),
        1,
    )
    .await;
    let mut client = Client::connect(proxy.address("l").await).await;
    let wrote = || order(&proxy);
    assert_eq!(client.get("test", "/").await.status, 200);
    assert_eq!(wrote(), "rvf", "its filter let nothing pass");
    for _ in 0..2 {
        assert_eq!(client.get("test", "/bad").await.status, 418);
    }
    let told = async {
        while wrote() != "rvfLL" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .expect("the root context hears of both, and sees their heads");
}

#[tokio::test]
async fn of_a_client_that_left_the_logger_hears_before_the_filter_forgets_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("order.wasm");
    std::fs::write(&path, guest("order")).expect("a file");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let logger = plugin("logger", &path).replace(
        WASM,
        "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog",
    );
    let manager = format!(
        "access_log: [{{name: w, typed_config: {logger}}}]\n      route_config: {{virtual_hosts: [{{name: v, domains: ['*'], \
         routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}"
    );
    let filter = format!(
        "- {{name: plugin, typed_config: {}}}",
        plugin("filter", &path)
    );
    let listener = listener_yaml("l", &manager, &filter);
    let lines = listener
        .lines()
        .filter(|line| !line.starts_with("\"@type\""));
    let listener: String = lines.map(|line| format!("\n    {line}")).collect();
    let bootstrap = format!(
        "static_resources:\n  clusters: [{{name: up, type: STATIC, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}]\n  listeners:\n  -{listener}\n",
        silent.local_addr().expect("bound").port()
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let mut client = Client::connect(proxy.address("l").await).await;
    client.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let _host = silent.accept().await.expect("forwarded");
    drop(client);
    let wrote = || order(&proxy);
    let told = async {
        while wrote().len() < "rvfrvfcHLLdx".len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .expect("the filter hears of it");
    // Both are in one VM.
    assert_eq!(wrote(), "rvfrvfcHLLdx");
}

#[tokio::test]
async fn a_static_listener_with_code_that_does_not_work_keeps_the_proxy_from_starting() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.wasm");
    std::fs::write(&broken, b"\0asm\x01\0\0\0").expect("a file");
    let start = |path: std::path::PathBuf| async move {
        let filter = format!("- {{name: plugin, typed_config: {}}}", plugin("p", &path));
        let listener = listener_yaml("web", "route_config: {}", &filter);
        let lines = listener
            .lines()
            .filter(|line| !line.starts_with("\"@type\""));
        let listener: String = lines.map(|line| format!("\n    {line}")).collect();
        let bootstrap = format!("static_resources:\n  listeners:\n  -{listener}\n");
        TestProxy::try_start(&bootstrap, 1).await
    };
    let error = start(broken).await.expect_err("it does not start");
    let text = format!("{error:#}");
    assert!(
        text.contains("static_resources.listeners[web]")
            && text.contains("Unable to create Wasm plugin p"),
        "{text}"
    );
    start(marker(folder.path(), 1)).await.expect("it starts");
}
