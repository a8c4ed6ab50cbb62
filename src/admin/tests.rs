//! Tests of `admin`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::endpoints::answer;
use super::*;
use crate::base::Shards;
use crate::bootstrap::{self, Admin};
use crate::cluster::Cluster;
use crate::cluster::dns::{ResolveError, Resolved, Resolver};
use crate::config::cluster::DnsOptions;
use crate::config::endpoint::Address;
use crate::config::extension::{ExtensionConfig, HttpFilterConfig};
use crate::config::{ConfigError, Extensions};
use crate::pb;
use crate::pb::envoy::admin::v3 as admin_pb;
use crate::telemetry::log;
use crate::telemetry::metrics::Kind as MetricKind;
use crate::xds::status::{ErrorState, ResourceState};

mod config_dump;
mod logging;
mod server;
mod stats;

const BOOTSTRAP: &str = r#"
node: {id: n1, cluster: c1, locality: {zone: z}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
layered_runtime: {layers: [{name: static_layer, static_layer: {re2.max_program_size.error_level: 1000, my.key: 5}}, {name: admin, admin_layer: {}}]}
static_resources:
  secrets: [{name: s1, generic_secret: {secret: {inline_string: abc}}}]
  clusters:
  - name: a
    type: STATIC
    load_assignment:
      cluster_name: a
      endpoints:
      - {priority: 1, lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}
      - {locality: {region: r}, lb_endpoints: [{health_status: DRAINING, load_balancing_weight: 3, endpoint: {hostname: h, address: {pipe: {path: /tmp/x}}}}]}
  listeners:
  - name: l1
    address: {socket_address: {address: 127.0.0.1, port_value: 27702}}
    filter_chains:
    - filters:
      - name: h
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

/// Knows the router alone.
#[derive(Debug)]
struct RouterOnly;

impl Extensions for RouterOnly {
    fn http_filter(
        &self,
        _: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        let parsed: Arc<dyn ExtensionConfig> = Arc::new(());
        Ok(Some(HttpFilterConfig {
            type_url: config.type_url.as_str().into(),
            source: config.clone(),
            parsed,
        }))
    }

    fn per_route(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok(None)
    }

    fn is_terminal(&self, _: &HttpFilterConfig) -> bool {
        true
    }
}

#[derive(Debug)]
struct NoNames;

impl Resolver for NoNames {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        std::future::ready(Err(ResolveError::NoAddresses)).boxed()
    }
}

struct FakeProxy {
    clusters: Vec<Arc<Cluster>>,
    state: Mutex<ServerState>,
    done: Mutex<Vec<String>>,
    /// Drains that have begun, by whether they are of inbound listeners alone.
    drains: Mutex<Vec<bool>>,
}

impl FakeProxy {
    fn note(&self, what: impl Into<String>) {
        self.done.lock().push(what.into());
    }

    fn took(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock())
    }
}

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_190_232_000 + millis)
}

fn resource(name: &str, version: &str, text: &str, kind: ResourceType) -> ResourceStatus {
    let any = pb::from_yaml::<pb::envoy::config::core::v3::TypedExtensionConfig>(&format!(
        "{{typed_config: {{'@type': '{}', {text}}}}}",
        kind.type_url()
    ))
    .unwrap()
    .typed_config
    .unwrap();
    ResourceStatus {
        name: name.into(),
        active: Some(ResourceState {
            version: version.into(),
            last_updated: at(109),
            resource: any,
        }),
        ..ResourceStatus::default()
    }
}

fn refused(name: &str) -> ResourceStatus {
    ResourceStatus {
        name: name.into(),
        error: Some(ErrorState {
            version: "v2".into(),
            last_update_attempt: at(5),
            failed_configuration: Some(pb::Any {
                type_url: ResourceType::Listener.type_url().to_owned(),
                value: Vec::new(),
            }),
            details: "filter_chains[0]: not supported".to_owned(),
        }),
        ..ResourceStatus::default()
    }
}

impl Proxy for FakeProxy {
    fn server_state(&self) -> ServerState {
        *self.state.lock()
    }

    fn version(&self, _: ResourceType) -> String {
        "v1".to_owned()
    }

    fn resources(&self, kind: ResourceType) -> Vec<ResourceStatus> {
        match kind {
            ResourceType::Cluster => {
                let mut warming = resource("w", "v2", "name: w, type: EDS", kind);
                warming.warming = warming.active.take();
                vec![resource("d", "v1", "name: d, type: EDS", kind), warming]
            }
            ResourceType::Listener => {
                vec![refused("bad"), resource("dyn", "v1", "name: dyn", kind)]
            }
            ResourceType::Route => vec![resource("rd", "v1", "name: rd", kind)],
            ResourceType::Extension => vec![resource("ext", "v1", "name: ext", kind)],
            ResourceType::Endpoints => Vec::new(),
        }
    }

    fn unready(&self) -> Vec<Unready> {
        vec![Unready {
            name: "init manager Server".to_owned(),
            targets: vec!["target LDS".to_owned()],
        }]
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        self.clusters
            .iter()
            .map(|cluster| cluster.status())
            .collect()
    }

    fn listeners(&self) -> Vec<BoundListener> {
        let address = |port| Address::Socket(([127, 0, 0, 1], port).into());
        vec![BoundListener {
            name: "l1".into(),
            addresses: vec![address(27702), address(27703)],
        }]
    }

    fn plugins(&self) -> Vec<PluginStatus> {
        Vec::new()
    }

    fn rollout(&self, plugin: &str, command: crate::wasm::RolloutCommand) -> usize {
        self.note(format!("rollout {plugin} {command:?}"));
        usize::from(plugin == "on trial")
    }

    fn set_health_failed(&self, failed: bool) {
        self.note(format!("health failed {failed}"));
    }

    fn start_drain(&self, inbound_only: bool) -> bool {
        self.note(format!("drain {inbound_only}"));
        let mut begun = self.drains.lock();
        let begins = !begun.contains(&inbound_only);
        begun.push(inbound_only);
        begins
    }

    fn stop_accepting(&self, inbound_only: bool) {
        self.note(format!("stop {inbound_only}"));
    }

    fn drain_time(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn flush_stats(&self) {
        self.note("flush");
    }

    fn reopen_logs(&self) {
        self.note("reopen");
    }

    fn quit(&self) {
        self.note("quit");
    }
}

struct World {
    context: Arc<Context>,
    proxy: Arc<FakeProxy>,
}

fn world_of(text: &str) -> World {
    let loaded = bootstrap::load(&bootstrap::Source {
        yaml: Some(text.to_owned()),
        ..bootstrap::Source::default()
    })
    .unwrap();
    let bootstrap = Arc::new(Bootstrap::parse(loaded.proto, &RouterOnly).unwrap());
    let metrics = Registry::new(Shards::for_workers(1));
    let runtime = crate::cluster::Runtime {
        registry: metrics.clone(),
        resolver: Arc::new(NoNames),
        connection_ids: Arc::new(AtomicU64::new(0)),
    };
    let clusters = bootstrap
        .clusters
        .iter()
        .map(|cluster| Cluster::new(Arc::clone(&cluster.value), &runtime))
        .collect();
    let proxy = Arc::new(FakeProxy {
        clusters,
        state: Mutex::new(ServerState::Live),
        done: Mutex::default(),
        drains: Mutex::default(),
    });
    let context = Context::new(
        Arc::clone(&proxy) as Arc<dyn Proxy>,
        bootstrap,
        json!({"concurrency": 1}),
        metrics,
        &[],
        Some(log::build(&log::Options::default()).unwrap()),
    )
    .unwrap();
    World {
        context: Arc::new(context),
        proxy,
    }
}

fn world() -> World {
    world_of(BOOTSTRAP)
}

impl World {
    fn get(&self, target: &str) -> Response {
        answer(&self.context, &Request::new(http::Method::GET, target))
    }

    fn post(&self, target: &str) -> Response {
        answer(&self.context, &Request::new(http::Method::POST, target))
    }

    fn json(&self, target: &str) -> Value {
        let response = self.get(target);
        assert_eq!(
            (response.status, response.kind),
            (StatusCode::OK, Kind::Json),
            "{target}"
        );
        serde_json::from_str(&response.body).unwrap()
    }
}

#[test]
fn paths_and_methods() {
    let world = world();
    let response = world.get("/nope");
    assert_eq!(response.status, StatusCode::NOT_FOUND);
    assert!(
        response
            .body
            .starts_with("invalid path. admin commands are:\n  /: ")
    );
    let response = world.get("/quitquitquit");
    assert_eq!(
        (response.status.as_u16(), response.body.as_str()),
        (405, "Method GET not allowed, POST required.")
    );
    let delete = Request::new(http::Method::DELETE, "/quitquitquit");
    assert_eq!(
        answer(&world.context, &delete).body,
        "Method DELETE not allowed, POST required."
    );
    assert_eq!(world.get("//ready?x").body, "LIVE\n", "slashes are merged");
    assert_eq!(
        world.post("/ready").body,
        "LIVE\n",
        "POST will do where GET does"
    );
    assert_eq!(world.get("/").kind, Kind::Html);
}

#[test]
fn every_path_of_envoys_is_there() {
    let world = world();
    let help = world.get("/help").body;
    for line in include_str!("../../tests/golden/admin/help_paths.txt").lines() {
        assert!(help.contains(&format!("\n  {line}: ")), "{line}");
    }
}

#[test]
fn only_allowed_paths_are_served() {
    let world = world_of(
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}, allow_paths: [{exact: /ready}, {prefix: /stats}]}",
    );
    assert_eq!(world.get("/ready").status, StatusCode::OK);
    assert_eq!(world.get("/stats/prometheus").status, StatusCode::OK);
    let response = world.get("//config_dump?x=%41");
    assert_eq!(
        (response.status.as_u16(), response.body.as_str()),
        (403, "request to path /config_dump?x=%41 not allowed")
    );
    // As in a running Envoy: the query is part of it.
    assert_eq!(world.get("/ready?x").status, StatusCode::FORBIDDEN);
    let world = world_of(
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}, allow_paths: [{exact: '/stats?usedonly'}, \
         {suffix: '=json'}]}",
    );
    for (target, status) in [
        ("/stats?usedonly", 200),
        ("/stats", 403),
        ("/listeners?format=json", 200),
        ("/listeners", 403),
    ] {
        assert_eq!(world.get(target).status.as_u16(), status, "{target}");
    }
}

#[test]
fn readiness_is_told_by_status_and_body() {
    let world = world();
    for (state, status, body) in [
        (ServerState::Live, 200, "LIVE\n"),
        (ServerState::Draining, 503, "DRAINING\n"),
        (ServerState::PreInitializing, 503, "PRE_INITIALIZING\n"),
        (ServerState::Initializing, 503, "INITIALIZING\n"),
    ] {
        *world.proxy.state.lock() = state;
        let response = world.get("/ready");
        assert_eq!(
            (response.status.as_u16(), response.body.as_str()),
            (status, body)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn actions_reach_the_proxy() {
    let world = world();
    for (target, done) in [
        ("/healthcheck/fail", &["health failed true"][..]),
        ("/healthcheck/ok", &["health failed false"]),
        ("/reopen_logs", &["reopen"]),
        ("/drain_listeners", &["drain false", "stop false"]),
        ("/drain_listeners?graceful&skip_exit", &["drain false"]),
        // As in Envoy: a drain that goes on is not begun again, and ends as it was to.
        ("/drain_listeners?graceful", &["drain false"]),
        ("/drain_listeners?inboundonly&graceful", &["drain true"]),
        ("/drain_listeners?inboundonly&skip_exit", &["drain true"]),
    ] {
        let response = world.post(target);
        assert_eq!(
            (response.status.as_u16(), response.body.as_str()),
            (200, "OK\n"),
            "{target}"
        );
        assert_eq!(world.proxy.took(), done, "{target}");
    }
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(world.proxy.took().is_empty(), "the drain time is not over");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.proxy.took(), ["stop true"]);
    assert_eq!(world.post("/quitquitquit").body, "OK\n");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.proxy.took(), ["quit"]);
}

#[test]
fn a_rollout_is_decided_for_a_plugin_that_is_on_trial() {
    let world = world();
    for (query, status, done) in [
        (
            "plugin=on%20trial&decision=promote",
            200,
            &["rollout on trial Promote"][..],
        ),
        (
            "plugin=on%20trial&decision=roll_back",
            200,
            &["rollout on trial RollBack"],
        ),
        (
            "plugin=on%20trial&share=100",
            200,
            &["rollout on trial Share(100)"],
        ),
        ("plugin=other&share=0", 404, &["rollout other Share(0)"]),
        ("plugin=other&share=101", 400, &[]),
        ("plugin=other&share=1&decision=promote", 400, &[]),
        ("plugin=other&decision=later", 400, &[]),
        ("decision=promote", 400, &[]),
    ] {
        let response = world.post(&format!("/wasm/rollout?{query}"));
        assert_eq!(response.status.as_u16(), status, "{query}");
        assert_eq!(world.proxy.took(), done, "{query}");
    }
}

#[test]
fn server_info_has_the_fields_that_envoy_has() {
    let ours = world().json("/server_info");
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/golden/admin/server_info.json")).unwrap();
    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(keys(&ours), keys(&golden));
    assert!(keys(&golden["node"]).is_superset(&keys(&ours["node"])));
    assert_eq!(ours["version"].as_str().unwrap().split('/').count(), 5);
    assert_eq!(
        (&ours["state"], &ours["node"]["id"]),
        (&json!("LIVE"), &json!("n1"))
    );
    assert_eq!(ours["uptime_current_epoch"], "0s");
}

#[test]
fn clusters_as_text_and_json() {
    let world = world();
    let text = world.get("/clusters").body;
    assert!(
        text.starts_with(
            "a::observability_name::a\na::default_priority::max_connections::1024\n\
             a::default_priority::max_pending_requests::1024\na::default_priority::max_requests::1024\n\
             a::default_priority::max_retries::3\na::high_priority::max_connections::1024\n"
        ),
        "{text}"
    );
    assert!(text.contains("a::added_via_api::false\n"));
    assert!(
        text.contains(
            "a::/tmp/x::cx_active::0\na::/tmp/x::cx_connect_fail::0\na::/tmp/x::cx_total::0\n\
             a::/tmp/x::rq_active::0\na::/tmp/x::rq_error::0\na::/tmp/x::rq_pending_active::0\n\
             a::/tmp/x::rq_success::0\na::/tmp/x::rq_timeout::0\na::/tmp/x::rq_total::0\n\
             a::/tmp/x::hostname::h\na::/tmp/x::health_flags::/eds_status_draining\na::/tmp/x::weight::3\n\
             a::/tmp/x::region::r\na::/tmp/x::zone::\na::/tmp/x::sub_zone::\na::/tmp/x::canary::false\n\
             a::/tmp/x::priority::0\na::/tmp/x::success_rate::-1\na::/tmp/x::local_origin_success_rate::-1\n"
        ),
        "{text}"
    );
    let host = world.proxy.clusters[0].status().hosts[0].host.clone();
    host.stats.cx_total.fetch_add(2, Relaxed);
    let response = world.get("/clusters?format=json");
    pb::from_text::<admin_pb::Clusters>(&response.body, pb::Format::Json)
        .unwrap()
        .strict()
        .unwrap();
    let json = world.json("/clusters?format=json");
    let status = &json["cluster_statuses"][0];
    assert!(status.get("added_via_api").is_none());
    let hosts = status["host_statuses"].as_array().unwrap();
    assert!(
        hosts
            .iter()
            .any(|host| host["stats"][1] == json!({"value": "2", "name": "cx_total"}))
    );
    assert_eq!(world.json("/clusters?format=json&filter=zzz"), json!({}));
    assert_eq!(
        world.get("/clusters?filter=(").status,
        StatusCode::BAD_REQUEST
    );
}

#[test]
fn listeners_as_text_and_json() {
    let world = world();
    assert_eq!(
        world.get("/listeners").body,
        "l1::127.0.0.1:27702\nl1::127.0.0.1:27703\n"
    );
    let socket = |port| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    assert_eq!(
        world.json("/listeners?format=json"),
        json!({"listener_statuses": [{
            "name": "l1", "local_address": socket(27702), "additional_local_addresses": [socket(27703)]
        }]})
    );
}

#[test]
fn runtime_layers() {
    let world = world();
    assert_eq!(
        world.json("/runtime"),
        json!({"entries": {
            "my.key": {"layer_values": ["5", ""], "final_value": "5"},
            "re2.max_program_size.error_level": {"layer_values": ["1000", ""], "final_value": "1000"}
        }, "layers": ["static_layer", "admin"]})
    );
    assert_eq!(world.post("/runtime_modify?foo=bar&my.key=6").body, "OK\n");
    let entries = world.json("/runtime")["entries"].clone();
    assert_eq!(
        entries["foo"],
        json!({"layer_values": ["", "bar"], "final_value": "bar"})
    );
    assert_eq!(entries["my.key"]["final_value"], "6");
    world.post("/runtime_modify?foo=");
    assert!(world.json("/runtime")["entries"].get("foo").is_none());
    assert_eq!(
        world.post("/runtime_modify").status,
        StatusCode::BAD_REQUEST
    );
    let bare = world_of("node: {}");
    assert_eq!(bare.json("/runtime"), json!({"entries": {}, "layers": []}));
    assert_eq!(
        bare.post("/runtime_modify?a=b").body,
        "No admin layer specified"
    );
}

#[test]
fn small_endpoints() {
    let world = world();
    assert_eq!(world.json("/certs"), json!({"certificates": []}));
    let memory = world.json("/memory");
    assert!(
        memory["allocated"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    assert_eq!(memory.as_object().unwrap().len(), 6);
    assert_eq!(
        world.json("/init_dump"),
        json!({"unready_targets_dumps": [{"name": "init manager Server", "target_names": ["target LDS"]}]})
    );
    assert_eq!(world.json("/init_dump?mask=foo"), json!({}));
    assert_eq!(world.get("/hot_restart_version").body, "disabled");
    assert_eq!(world.get("/wasm").body, "no plugins\n");
    assert_eq!(world.json("/wasm?format=json"), json!({"plugins": []}));
    assert!(
        world
            .get("/stats/recentlookups")
            .body
            .starts_with("Lookup tracking is not enabled.")
    );
    assert_eq!(world.post("/stats/recentlookups/enable").body, "OK\n");
    assert_eq!(
        world.get("/stats/recentlookups").body,
        "   Count Lookup\n\ntotal: 0\n"
    );
    assert_eq!(
        world.post("/heapprofiler?enable=y").status,
        StatusCode::NOT_IMPLEMENTED
    );
    assert_eq!(world.post("/allocprofiler").body, "?enable=<y|n>\n");
    let response = world.post("/cpuprofiler");
    assert_eq!(
        (response.status.as_u16(), response.body.as_str()),
        (400, "?enable=<y|n>\n")
    );
}
