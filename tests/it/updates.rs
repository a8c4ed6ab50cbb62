//! Updates from a control plane while traffic flows: nothing fails, nothing mixes, nothing is kept too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use tokio::net::TcpListener;

use crate::support::{Client, FakeUpstream, TestProxy, ads_bootstrap, any, listener_yaml};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

const RDS: &str =
    "rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}";

fn cluster(name: &str) -> plenipo::pb::Any {
    any(&format!(
        "'@type': {CLUSTER}\nname: {name}\ntype: EDS\nconnect_timeout: 1s\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}\n"
    ))
}

fn endpoints(cluster: &str, upstream: &FakeUpstream) -> plenipo::pb::Any {
    any(&format!(
        "'@type': {ENDPOINTS}\ncluster_name: {cluster}\nendpoints: [{{lb_endpoints: [{}]}}]\n",
        upstream.endpoint()
    ))
}

fn routes(cluster: &str, header: &str) -> plenipo::pb::Any {
    any(&format!(
        "'@type': {ROUTES}\nname: routes\nvirtual_hosts:\n- name: all\n  domains: ['*']\n  routes:\n  \
         - match: {{prefix: /}}\n    route: {{cluster: {cluster}}}\n    \
         response_headers_to_add: [{{header: {{key: x-version, value: '{header}'}}}}]\n"
    ))
}

async fn plane() -> ControlPlane {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    ControlPlane::start(listener).expect("the control plane starts")
}

struct World {
    plane: ControlPlane,
    upstream: FakeUpstream,
    proxy: TestProxy,
}

async fn world(delta: bool) -> World {
    let upstream = FakeUpstream::start("a").await;
    let plane = plane().await;
    plane.set_resources(CLUSTER, vec![cluster("a")], "1");
    plane.set_resources(ENDPOINTS, vec![endpoints("a", &upstream)], "1");
    plane.set_resources(ROUTES, vec![routes("a", "1")], "1");
    plane.set_resources(LISTENER, vec![any(&listener_yaml("web", RDS, ""))], "1");
    let proxy = TestProxy::start(&ads_bootstrap(plane.address(), delta)).await;
    World {
        plane,
        upstream,
        proxy,
    }
}

/// Asks until the answer carries this version.
async fn await_version(client: &mut Client, version: &str) {
    let shows = async {
        while client.get("test", "/").await.header("x-version") != version {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), shows)
        .await
        .expect("the version shows");
}

async fn hundred_updates(delta: bool) {
    let World {
        plane,
        upstream,
        proxy,
    } = world(delta).await;
    let address = proxy.address("web").await;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                while !stop.load(Relaxed) {
                    let response = client.get("test", "/").await;
                    assert_eq!(response.status, 200, "{response:?}");
                    sent.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let mut client = Client::connect(address).await;
    for update in 2..=100 {
        let version = update.to_string();
        // A cluster of a new name each time; the one that the routes name stays until they have moved.
        let name = |number: i32| match number {
            0 => "a".to_owned(),
            number => format!("c{number}"),
        };
        let served = [name(update - 2), name(update - 1), name(update)];
        let old = &served[1];
        plane.set_resources(
            ENDPOINTS,
            served
                .iter()
                .map(|name| endpoints(name, &upstream))
                .collect(),
            &version,
        );
        plane.set_resources(
            CLUSTER,
            served.iter().map(|name| cluster(name)).collect(),
            &version,
        );
        plane.set_resources(ROUTES, vec![routes(old, &version)], &version);
        await_version(&mut client, &version).await;
    }
    stop.store(true, Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    assert!(sent.load(Relaxed) > 100);
}

#[tokio::test]
async fn a_hundred_updates_by_state_of_the_world_lose_no_request() {
    hundred_updates(false).await;
}

#[tokio::test]
async fn a_hundred_updates_by_delta_lose_no_request() {
    hundred_updates(true).await;
}

#[tokio::test]
async fn a_refused_resource_changes_nothing_and_its_neighbour_applies() {
    let World {
        plane,
        upstream,
        proxy,
    } = world(false).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    let bad = any(&format!(
        "'@type': {CLUSTER}\nname: bad\nconnect_timeout: -1s\n"
    ));
    plane.set_resources(
        ENDPOINTS,
        vec![endpoints("a", &upstream), endpoints("good", &upstream)],
        "2",
    );
    plane.set_resources(CLUSTER, vec![cluster("a"), bad, cluster("good")], "2");
    let refusal = loop {
        let answer = plane.next_answer(CLUSTER).await;
        if let Some(error) = answer.error {
            break error;
        }
    };
    assert!(
        refusal.contains("bad") && refusal.contains("connect_timeout"),
        "{refusal}"
    );
    let held = proxy
        .running
        .server
        .xds
        .version(plenipo::xds::ResourceType::Cluster);
    assert_eq!(held, "1", "a refusal keeps the old version");
    plane.set_resources(ROUTES, vec![routes("good", "2")], "2");
    await_version(&mut client, "2").await;
    assert_eq!(client.get("test", "/").await.status, 200);
}

#[tokio::test]
async fn a_cluster_that_leaves_and_returns_in_one_batch_keeps_its_pool() {
    let World {
        plane,
        upstream,
        proxy,
    } = world(false).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    assert_eq!(client.get("test", "/").await.status, 200);
    let before = upstream.connections();
    // The same cluster in a response of another version: nothing may be rebuilt.
    plane.set_resources(CLUSTER, vec![cluster("a")], "2");
    plane.set_resources(ROUTES, vec![routes("a", "2")], "2");
    await_version(&mut client, "2").await;
    assert_eq!(
        upstream.connections(),
        before,
        "the pooled connection is still in use"
    );
}

#[tokio::test]
async fn a_listener_that_changes_in_place_refuses_no_connection_and_keeps_its_routes() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = world(false).await;
    let address = proxy.address("web").await;
    for update in 2..20u64 {
        let before = proxy.generation_number();
        let changed = listener_yaml("web", &format!("server_name: s{update}\n      {RDS}"), "");
        plane.set_resources(LISTENER, vec![any(&changed)], &update.to_string());
        proxy.generation(before + 1).await;
        assert_eq!(proxy.address("web").await, address, "the same socket");
        let response = Client::connect(address).await.get("test", "/").await;
        assert_eq!(
            (response.status, response.header("server")),
            (200, &*format!("s{update}"))
        );
    }
}

#[tokio::test]
async fn a_listener_that_is_gone_drains_its_connections() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = world(false).await;
    let address = proxy.address("web").await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("test", "/").await.status, 200);
    let mut silent = Client::connect(address).await;
    assert_eq!(silent.get("test", "/").await.status, 200);
    let before = proxy.generation_number();
    plane.set_resources(LISTENER, vec![], "2");
    proxy.generation(before + 1).await;
    let since = tokio::time::Instant::now();
    // What it was admitted to still answers, and says that it is the last time.
    let last = client.get("test", "/").await;
    assert_eq!((last.status, last.header("x-version")), (200, "1"));
    assert_eq!(last.header("connection"), "close");
    assert!(client.is_closed().await);
    assert!(
        proxy.running.server.current.sweep() > 1,
        "kept for the silent one"
    );
    assert!(
        silent.is_closed().await,
        "an idle connection is closed in the end"
    );
    assert!(
        since.elapsed() > Duration::from_millis(900),
        "after the drain time"
    );
    let alive = async {
        while proxy.running.server.current.sweep() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), alive)
        .await
        .expect("nothing is kept for nobody");
    // Each worker closes its socket when it hears of it.
    let refused = async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused)
        .await
        .expect("nobody accepts");
}

/// A listener at `port` whose one filter chain is called `chain`, and whose answers say `version`.
fn versioned(
    name: &str,
    port: u16,
    chain: &str,
    version: &str,
    reuse_port: bool,
) -> plenipo::pb::Any {
    any(&versioned_text(name, port, chain, version, reuse_port))
}

fn versioned_text(name: &str, port: u16, chain: &str, version: &str, reuse_port: bool) -> String {
    let routes = format!(
        "server_name: {version}\n      \
         route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}]}}"
    );
    let yaml = listener_yaml(name, &routes, "")
        .replace("port_value: 0", &format!("port_value: {port}"))
        .replace("- filters:", &format!("- name: {chain}\n  filters:"));
    format!("{yaml}enable_reuse_port: {reuse_port}\n")
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Asks on connections that are kept as long as they may be, until told to stop; gives the number of answers.
async fn keep_asking(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> usize {
    let mut asked = 0;
    while !stop.load(Relaxed) {
        let mut client = Client::connect(address).await;
        let mut admitted = None;
        loop {
            let response = client.get("test", "/").await;
            assert_eq!(response.status, 200, "{response:?}");
            asked += 1;
            let version = response.header("server").to_owned();
            assert_eq!(*admitted.get_or_insert(version.clone()), version);
            if response.header("connection") == "close" {
                assert!(client.is_closed().await);
                break;
            }
            if stop.load(Relaxed) {
                break;
            }
        }
    }
    asked
}

#[tokio::test]
async fn kept_connections_lose_no_request_to_a_filter_chain_that_changes() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = listening(vec![versioned("web", 0, "c1", "v1", true)]).await;
    let address = proxy.address("web").await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| tokio::spawn(keep_asking(address, Arc::clone(&stop))))
        .collect();
    let mut idle = Vec::new();
    for update in 2..=20 {
        let mut client = Client::connect(address).await;
        let response = client.get("test", "/").await;
        assert_eq!(response.header("server"), format!("v{}", update - 1));
        idle.push(client);
        let before = proxy.generation_number();
        let (chain, version) = (format!("c{update}"), format!("v{update}"));
        let changed = versioned("web", 0, &chain, &version, true);
        plane.set_resources(LISTENER, vec![changed], &update.to_string());
        proxy.generation(before + 1).await;
    }
    stop.store(true, Relaxed);
    for task in load {
        assert!(task.await.expect("no request failed") > 0);
    }
    // A connection that said nothing all the while is answered by what admitted it, once.
    for (index, mut client) in idle.into_iter().enumerate() {
        let last = client.get("test", "/").await;
        assert_eq!(last.header("server"), format!("v{}", index + 1));
        assert_eq!((last.status, last.header("connection")), (200, "close"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn kept_connections_lose_no_request_to_the_removal_of_their_listener() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = listening(vec![versioned("web", 0, "c", "v1", true)]).await;
    let address = proxy.address("web").await;
    let asking = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..20)
        .map(|_| {
            let asking = Arc::clone(&asking);
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for round in 0.. {
                    let response = client.get("test", "/").await;
                    assert_eq!((response.status, response.header("server")), (200, "v1"));
                    if round == 0 {
                        asking.fetch_add(1, Relaxed);
                    }
                    if response.header("connection") == "close" {
                        return client.is_closed().await;
                    }
                }
                false
            })
        })
        .collect();
    while asking.load(Relaxed) < 20 {
        tokio::task::yield_now().await;
    }
    let mut resting = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("test", "/").await.status, 200);
        resting.push(client);
    }
    let before = proxy.generation_number();
    plane.set_resources(LISTENER, vec![], "2");
    proxy.generation(before + 1).await;
    for mut client in resting {
        let last = client.get("test", "/").await;
        assert_eq!((last.status, last.header("server")), (200, "v1"));
        assert_eq!(last.header("connection"), "close");
    }
    for task in load {
        let announced = tokio::time::timeout(Duration::from_secs(20), task).await;
        assert!(announced.expect("in time").expect("no request failed"));
    }
}

/// A proxy with these listeners, and the means to change them.
async fn listening(listeners: Vec<plenipo::pb::Any>) -> World {
    let upstream = FakeUpstream::start("a").await;
    let plane = plane().await;
    plane.set_resources(CLUSTER, vec![cluster("a")], "1");
    plane.set_resources(ENDPOINTS, vec![endpoints("a", &upstream)], "1");
    plane.set_resources(LISTENER, listeners, "1");
    let bootstrap = ads_bootstrap(plane.address(), false);
    let proxy = TestProxy::start_draining_for(&bootstrap, "60").await;
    World {
        plane,
        upstream,
        proxy,
    }
}

/// The version that a new connection meets.
async fn met(address: std::net::SocketAddr) -> String {
    let response = Client::connect(address).await.get("test", "/").await;
    assert_eq!(response.status, 200, "{response:?}");
    response.header("server").to_owned()
}

/// Asks on a connection of its own each time, until told to stop; gives the number of answers.
async fn keep_coming(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> usize {
    let mut asked = 0;
    while !stop.load(Relaxed) {
        met(address).await;
        asked += 1;
    }
    asked
}

#[tokio::test]
async fn a_listener_that_is_renamed_keeps_its_sockets_and_loses_no_request() {
    for reuse_port in [false, true] {
        let port = free_port();
        let World {
            plane,
            upstream: _upstream,
            proxy,
        } = listening(vec![versioned("web1", port, "c", "v1", reuse_port)]).await;
        let address = proxy.address("web1").await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Vec::new();
        for _ in 0..4 {
            load.push(tokio::spawn(keep_coming(address, Arc::clone(&stop))));
            load.push(tokio::spawn(keep_asking(address, Arc::clone(&stop))));
        }
        for update in 2..=12 {
            let (name, version) = (format!("web{update}"), format!("v{update}"));
            let before = proxy.generation_number();
            let renamed = versioned(&name, port, "c", &version, reuse_port);
            plane.set_resources(LISTENER, vec![renamed], &update.to_string());
            proxy.generation(before + 1).await;
            assert_eq!(met(address).await, version);
            assert_eq!(proxy.address(&name).await, address);
            assert_eq!(met(address).await, version);
        }
        stop.store(true, Relaxed);
        for task in load {
            assert!(task.await.expect("no request failed") > 0);
        }
        assert!(proxy.running.server.bind_errors().borrow().is_empty());
    }
}

#[tokio::test]
async fn an_access_log_that_cannot_be_opened_spares_its_neighbour_and_shows_its_first_line_at_once()
{
    let folder = tempfile::tempdir().expect("a folder");
    let good = folder.path().join("good.log");
    let log = |path: &std::path::Path| {
        format!(
            "{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
             path: {}}}}}",
            path.display()
        )
    };
    let yaml = versioned_text("l", 0, "c", "v1", true).replace(
        "server_name: v1",
        &format!(
            "server_name: v1\n      access_log: [{}, {}]",
            log(&folder.path().join("none/bad.log")),
            log(&good)
        ),
    );
    let world = listening(vec![any(&yaml)]).await;
    met(world.proxy.address("l").await).await;
    let written = async {
        while std::fs::metadata(&good).map_or(0, |file| file.len()) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), written)
        .await
        .expect("well before the ten seconds of a flush");
}

#[tokio::test]
async fn the_second_listener_of_an_address_is_refused() {
    let (port, other) = (free_port(), free_port());
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = listening(vec![versioned("b", port, "c", "b1", true)]).await;
    let address = proxy.address("b").await;
    let mut update = 1;
    let mut set = async |listeners| {
        update += 1;
        let before = proxy.generation_number();
        plane.set_resources(LISTENER, listeners, &update.to_string());
        proxy.generation(before + 1).await;
    };
    // The name sorts first; the one that is there stays all the same.
    set(vec![
        versioned("a", port, "c", "a2", true),
        versioned("b", port, "c", "b2", true),
    ])
    .await;
    for _ in 0..20 {
        assert_eq!(met(address).await, "b2");
    }
    assert!(
        !proxy
            .running
            .server
            .current
            .load()
            .listeners
            .contains_key("a")
    );
    // Once the address is free it gets it.
    set(vec![
        versioned("a", port, "c", "a3", true),
        versioned("b", other, "c", "b3", true),
    ])
    .await;
    assert_eq!(met(proxy.address("a").await).await, "a3");
    assert_eq!(proxy.address("a").await, address);
    assert_eq!(met(proxy.address("b").await).await, "b3");
    assert!(proxy.running.server.bind_errors().borrow().is_empty());
}

#[tokio::test]
async fn sockets_that_cannot_be_shared_change_hands_one_after_the_other() {
    let (first, second) = (free_port(), free_port());
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = listening(vec![
        versioned("a", first, "c", "a1", false),
        versioned("b", second, "c", "b1", false),
    ])
    .await;
    let (one, two) = (proxy.address("a").await, proxy.address("b").await);
    assert_eq!((met(one).await, met(two).await), ("a1".into(), "b1".into()));
    let mut update = 1;
    let mut set = async |listeners| {
        update += 1;
        let before = proxy.generation_number();
        plane.set_resources(LISTENER, listeners, &update.to_string());
        proxy.generation(before + 1).await;
    };
    // They change places.
    set(vec![
        versioned("a", second, "c", "a2", false),
        versioned("b", first, "c", "b2", false),
    ])
    .await;
    assert_eq!((met(one).await, met(two).await), ("b2".into(), "a2".into()));
    // Other names, and sockets of another kind.
    set(vec![
        versioned("d", first, "c", "d3", true),
        versioned("e", second, "c", "e3", true),
    ])
    .await;
    assert_eq!(
        (proxy.address("d").await, proxy.address("e").await),
        (one, two)
    );
    assert_eq!((met(one).await, met(two).await), ("d3".into(), "e3".into()));
    // And back; one of them has both addresses.
    let mut both = versioned_text("f", first, "c", "f4", false);
    both.push_str(&format!(
        "additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {second}}}}}}}]\n"
    ));
    set(vec![any(&both)]).await;
    assert_eq!(proxy.address("f").await, one);
    assert_eq!((met(one).await, met(two).await), ("f4".into(), "f4".into()));
    // It gives one up.
    set(vec![versioned("f", second, "c", "f5", false)]).await;
    assert_eq!(proxy.address("f").await, two);
    assert_eq!(met(two).await, "f5");
    assert!(proxy.running.server.bind_errors().borrow().is_empty());
}

#[tokio::test]
async fn idle_connections_pin_no_old_generation() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = world(false).await;
    let address = proxy.address("web").await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("test", "/").await.status, 200);
        clients.push(client);
    }
    for update in 2..20u64 {
        plane.set_resources(
            ROUTES,
            vec![routes("a", &update.to_string())],
            &update.to_string(),
        );
        let mut one = Client::connect(address).await;
        await_version(&mut one, &update.to_string()).await;
    }
    let alive = async {
        while proxy.running.server.current.sweep() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), alive)
        .await
        .expect("one Generation is alive");
    for client in &mut clients {
        assert_eq!(client.get("test", "/").await.header("x-version"), "19");
    }
}

#[tokio::test]
async fn an_outage_of_the_control_plane_changes_nothing() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = world(true).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    plane.disconnect();
    assert_eq!(client.get("test", "/").await.status, 200);
    let address = plane.address();
    drop(plane);
    assert_eq!(client.get("test", "/").await.status, 200);
    // It comes back on its port with another version.
    let listener = TcpListener::bind(address)
        .await
        .expect("the port is free again");
    let plane = ControlPlane::start(listener).expect("the control plane starts");
    let upstream = FakeUpstream::start("b").await;
    plane.set_resources(CLUSTER, vec![cluster("a")], "9");
    plane.set_resources(ENDPOINTS, vec![endpoints("a", &upstream)], "9");
    plane.set_resources(ROUTES, vec![routes("a", "9")], "9");
    plane.set_resources(LISTENER, vec![any(&listener_yaml("web", RDS, ""))], "1");
    await_version(&mut client, "9").await;
    assert_eq!(client.get("test", "/").await.header("x-upstream"), "b");
}

#[tokio::test]
async fn listeners_that_were_told_to_stop_stay_stopped_whatever_is_configured() {
    let World {
        plane,
        upstream,
        proxy,
    } = world(false).await;
    let address = proxy.address("web").await;
    let change = async |version: &str| {
        let before = proxy.generation_number();
        plane.set_resources(ROUTES, vec![routes("a", version)], version);
        proxy.generation(before + 1).await;
        tokio::task::yield_now().await;
    };
    // The listener has no direction, so that it is not an inbound one.
    proxy.running.server.stop_accepting(true).await;
    change("2").await;
    let mut client = Client::connect(address).await;
    await_version(&mut client, "2").await;

    proxy.running.server.stop_accepting(false).await;
    for version in ["3", "4"] {
        change(version).await;
        assert!(proxy.running.server.bound().borrow().is_empty());
    }
    plane.set_resources(ENDPOINTS, vec![endpoints("a", &upstream)], "2");
    let before = proxy.generation_number();
    plane.set_resources(
        LISTENER,
        vec![
            any(&listener_yaml("web", RDS, "")),
            any(&listener_yaml("new", RDS, "")),
        ],
        "2",
    );
    proxy.generation(before + 1).await;
    tokio::task::yield_now().await;
    assert!(proxy.running.server.bound().borrow().is_empty());
}

#[tokio::test]
async fn what_filters_are_built_with_reaches_them_when_it_changes() {
    let upstream = FakeUpstream::start("a").await;
    let plane = plane().await;
    plane.set_resources(CLUSTER, vec![cluster("a")], "1");
    plane.set_resources(ENDPOINTS, vec![endpoints("a", &upstream)], "1");
    plane.set_resources(ROUTES, vec![routes("a", "1")], "1");
    let fault = "- {name: fault, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
                 abort: {http_status: 418, percentage: {numerator: 100}}}}";
    let listener = |prefix: &str| {
        let text = listener_yaml("web", RDS, fault);
        any(&text.replace("stat_prefix: web", &format!("stat_prefix: {prefix}")))
    };
    plane.set_resources(LISTENER, vec![listener("one")], "1");
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        ads_bootstrap(plane.address(), false)
    );
    let proxy = TestProxy::start(&bootstrap).await;
    let address = proxy.address("web").await;
    let aborts = async |prefix: &str| {
        let mut admin = Client::connect(proxy.admin()).await;
        let path = format!("/stats?filter=http.{prefix}.fault.aborts_injected");
        admin.get("admin", &path).await.body
    };
    assert_eq!(
        Client::connect(address).await.get("test", "/").await.status,
        418
    );
    assert_eq!(aborts("one").await, "http.one.fault.aborts_injected: 1\n");
    let before = proxy.generation_number();
    plane.set_resources(LISTENER, vec![listener("two")], "2");
    proxy.generation(before + 1).await;
    assert_eq!(
        Client::connect(address).await.get("test", "/").await.status,
        418
    );
    assert_eq!(aborts("two").await, "http.two.fault.aborts_injected: 1\n");
}

#[tokio::test]
async fn filters_are_rebuilt_when_what_they_see_of_their_listener_changes_and_only_then() {
    let World { plane, proxy, .. } = world(false).await;
    let filters = || {
        let now = proxy.running.server.current.load_full();
        Arc::clone(&now.listeners["web"].chains[0].http().expect("HTTP").filters)
    };
    let mut update = 1;
    let mut change = async |extra: &str| {
        update += 1;
        let before = proxy.generation_number();
        let listener = any(&format!("{}{extra}\n", listener_yaml("web", RDS, "")));
        plane.set_resources(LISTENER, vec![listener], &update.to_string());
        proxy.generation(before + 1).await;
    };
    let first = filters();
    change("per_connection_buffer_limit_bytes: 4096").await;
    assert!(Arc::ptr_eq(&filters(), &first), "nothing that they see");
    change("traffic_direction: INBOUND").await;
    let inbound = filters();
    assert!(!Arc::ptr_eq(&inbound, &first));
    let metadata = "metadata: {filter_metadata: {a: {b: c}}}";
    change(&format!("traffic_direction: INBOUND\n{metadata}")).await;
    let with_metadata = filters();
    assert!(!Arc::ptr_eq(&with_metadata, &inbound));
    change(&format!(
        "traffic_direction: INBOUND\n{metadata}\nper_connection_buffer_limit_bytes: 4096"
    ))
    .await;
    assert!(Arc::ptr_eq(&filters(), &with_metadata));
}

#[tokio::test]
async fn one_name_from_two_sources_is_two_resources() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, resource: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("resources: [{resource}]")).expect("a file");
        format!(
            "{{path_config_source: {{path: '{}'}}, resource_api_version: V3}}",
            path.display()
        )
    };
    let upstreams = [
        FakeUpstream::start("a").await,
        FakeUpstream::start("b").await,
    ];
    let mut clusters = String::new();
    let mut listeners = String::new();
    for (name, upstream, status) in [("a", &upstreams[0], 418), ("b", &upstreams[1], 421)] {
        let assignment = format!(
            "{{'@type': {ENDPOINTS}, cluster_name: s, endpoints: [{{lb_endpoints: [{}]}}]}}",
            upstream.endpoint()
        );
        let eds = file(&format!("eds-{name}.yaml"), &assignment);
        clusters += &format!(
            "\n  - {{name: {name}, type: EDS, connect_timeout: 1s, eds_cluster_config: {{service_name: s, eds_config: {eds}}}}}"
        );
        let table = format!(
            "{{'@type': {ROUTES}, name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
             route: {{cluster: {name}}}}}]}}]}}"
        );
        let rds = file(&format!("rds-{name}.yaml"), &table);
        let fault = format!(
            "{{'@type': type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: f, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, headers: [{{name: x-fault, \
             present_match: true}}], abort: {{http_status: {status}, percentage: {{numerator: 100}}}}}}}}"
        );
        let ecds = file(&format!("ecds-{name}.yaml"), &fault);
        let listener = listener_yaml(
            name,
            &format!("rds: {{route_config_name: r, config_source: {rds}}}"),
            &format!(
                "- {{name: f, config_discovery: {{config_source: {ecds}, type_urls: \
                 [type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault]}}}}"
            ),
        );
        let listener = listener
            .trim()
            .lines()
            .skip(1)
            .collect::<Vec<_>>()
            .join("\n    ");
        listeners += &format!("\n  - {listener}");
    }
    let bootstrap = format!("static_resources:\n  clusters:{clusters}\n  listeners:{listeners}\n");
    let proxy = TestProxy::start(&bootstrap).await;
    for (name, status) in [("a", 418), ("b", 421)] {
        let mut client = Client::connect(proxy.address(name).await).await;
        assert_eq!(client.get("test", "/").await.body, name);
        let faulty = client
            .send("GET / HTTP/1.1\r\nhost: test\r\nx-fault: 1\r\n\r\n")
            .await;
        assert_eq!(faulty.status, status, "{name}");
    }
}

/// A filter whose code is at a server that takes connections and says nothing, and the cluster of that server.
fn never_there(silent: &TcpListener) -> (plenipo::pb::Any, String) {
    let port = silent.local_addr().expect("an address").port();
    let code = any(&format!(
        "'@type': {CLUSTER}\nname: code\ntype: STATIC\nload_assignment: {{cluster_name: code, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    ));
    let plugin = format!(
        "- {{name: plugin, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: \
         {{name: p, vm_config: {{vm_id: v, code: {{remote: {{http_uri: {{uri: 'http://127.0.0.1/p.wasm', cluster: code, \
         timeout: 60s}}, sha256: {}}}}}}}}}}}}}",
        "0".repeat(64)
    );
    (code, plugin)
}

#[tokio::test]
async fn a_listener_whose_successor_waits_for_a_plugin_keeps_its_routes() {
    let World {
        plane,
        upstream: _upstream,
        proxy,
    } = world(false).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    await_version(&mut client, "1").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (code, plugin) = never_there(&silent);
    plane.set_resources(CLUSTER, vec![cluster("a"), code], "2");
    let other = any(&format!(
        "'@type': {ROUTES}\nname: other\nvirtual_hosts: []\n"
    ));
    plane.set_resources(ROUTES, vec![routes("a", "1"), other], "2");
    let listener = listener_yaml("web", &RDS.replace("name: routes", "name: other"), &plugin);
    plane.set_resources(LISTENER, vec![any(&listener)], "2");
    let let_go = async {
        loop {
            let now = proxy.running.server.current.load_full();
            if !now.warming.is_empty()
                && now
                    .snapshot
                    .routes
                    .iter()
                    .all(|(_, name, _)| &**name != "routes")
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), let_go)
        .await
        .expect("the routes of before are asked for no more");
    let response = client.get("test", "/").await;
    assert_eq!((response.status, response.header("x-version")), (200, "1"));
}

#[tokio::test]
async fn listeners_that_wait_are_shown_to_wait() {
    let plane = plane().await;
    plane.set_resources(CLUSTER, vec![cluster("a")], "1");
    let no_hosts = any(&format!("'@type': {ENDPOINTS}\ncluster_name: a\n"));
    plane.set_resources(ENDPOINTS, vec![no_hosts], "1");
    plane.set_resources(LISTENER, vec![any(&listener_yaml("web", RDS, ""))], "1");
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        ads_bootstrap(plane.address(), false)
    );
    let proxy = TestProxy::start_cold(&bootstrap, 2).await;
    let mut admin = Client::connect(proxy.admin()).await;
    // Until its workers accept, Envoy counts all as active.
    assert_eq!(
        await_listeners(&mut admin, ["1", "0"]).await,
        vec!["web - 1".to_owned()]
    );
    plane.set_resources(ROUTES, vec![routes("a", "1")], "1");
    proxy.running.live().await.expect("bound");
    assert_eq!(
        await_listeners(&mut admin, ["1", "0"]).await,
        vec!["web 1 -".to_owned()]
    );

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (code, plugin) = never_there(&silent);
    plane.set_resources(CLUSTER, vec![cluster("a"), code], "2");
    let nowhere = RDS.replace("name: routes", "name: nowhere");
    plane.set_resources(
        LISTENER,
        vec![
            any(&listener_yaml("web", RDS, &plugin)),
            any(&listener_yaml("new", RDS, &plugin)),
            any(&listener_yaml("late", &nowhere, "")),
        ],
        "2",
    );
    let expected = ["late - 2", "new - 2", "web 1 2"].map(str::to_owned);
    assert_eq!(
        await_listeners(&mut admin, ["1", "3"]).await,
        expected.to_vec()
    );
    let dump = admin.get("admin", "/init_dump").await.body;
    let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let mut waits: Vec<_> = dump["unready_targets_dumps"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| format!("{} {}", entry["name"], entry["target_names"]))
        .collect();
    waits.sort_unstable();
    assert_eq!(
        waits,
        [
            r#""init manager Listener-local-init-manager late" ["shared target RdsRouteConfigSubscription RDS init nowhere"]"#,
            r#""init manager Listener-local-init-manager new" ["target RemoteAsyncDataProvider"]"#,
            r#""init manager Listener-local-init-manager web" ["target RemoteAsyncDataProvider"]"#,
        ]
    );
    // What is called off waits no more, and what serves is what was served all the time.
    plane.set_resources(LISTENER, vec![any(&listener_yaml("web", RDS, ""))], "3");
    assert_eq!(
        await_listeners(&mut admin, ["1", "0"]).await,
        vec!["web 3 -".to_owned()]
    );
    assert_eq!(admin.get("admin", "/init_dump").await.body, "{}\n");
}

/// Every dynamic listener with the versions of its active and its warming state, once so many count as active and as
/// warming.
async fn await_listeners(admin: &mut Client, counts: [&str; 2]) -> Vec<String> {
    let find = async {
        loop {
            let stats = "/stats?filter=total_listeners_(active|warming)";
            let stats = admin.get("admin", stats).await.body;
            let value = |name: &str| {
                let line = stats.lines().find_map(|line| line.split_once(name));
                line.map(|(_, value)| value.trim_start_matches(": ").to_owned())
            };
            let dump = "/config_dump?resource=dynamic_listeners";
            let dump = admin.get("admin", dump).await.body;
            let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
            let listeners: Vec<_> = dump["configs"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|listener| {
                    let version = |state: &str| {
                        let version = listener[state]["version_info"].as_str();
                        version.unwrap_or("-").to_owned()
                    };
                    let name = listener["name"].as_str().unwrap_or_default();
                    format!(
                        "{name} {} {}",
                        version("active_state"),
                        version("warming_state")
                    )
                })
                .collect();
            let counted = [value("active"), value("warming")];
            if counted.each_ref().map(Option::as_deref) == counts.map(Some) && !listeners.is_empty()
            {
                return listeners;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), find)
        .await
        .expect("they are counted")
}

#[tokio::test]
async fn unknown_fields_of_files_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cds.yaml");
    let cluster = "{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: c, connect_timeout: 1s, nosuch: 1}";
    std::fs::write(&path, format!("resources: [{cluster}]")).expect("a file");
    let proxy = TestProxy::start(&format!(
        "node: {{id: a, cluster: b}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\ndynamic_resources: {{cds_config: {{path_config_source: {{path: '{}'}}, resource_api_version: V3}}}}\n",
        path.display()
    ))
    .await;
    let mut admin = Client::connect(proxy.admin()).await;
    let page = admin
        .get("admin", "/stats?filter=dynamic_unknown|active_clusters")
        .await
        .body;
    assert_eq!(
        page,
        "cluster_manager.active_clusters: 1\nserver.dynamic_unknown_fields: 1\n"
    );
}
