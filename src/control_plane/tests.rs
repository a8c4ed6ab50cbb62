//! The whole client against this server, over a socket: every transport, restarts, refusals, warming.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::base::Shards;
use crate::config::cluster::{ConfigSource, GrpcService, SourceSpecifier};
use crate::config::extension::HttpFilterConfig;
use crate::config::snapshot::Sourced;
use crate::config::{Cluster, ConfigError, Extensions, ParseContext, Snapshot, Source};
use crate::telemetry::metrics::Registry;
use crate::xds::admission::AdmitAll;
use crate::xds::{Admission, ApiSource, Candidate, Client, Options, Progress, ResourceType};

mod admission;
mod files;
mod streams;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoints;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;
const ECDS: ResourceType = ResourceType::Extension;

/// Knows every filter; `test.Bad` is always wrong.
struct AnyFilter;

impl Extensions for AnyFilter {
    fn http_filter(
        &self,
        _: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        if config.value == b"\x0a\x03bad" {
            return Err(ConfigError::invalid("is bad").at("stat_prefix"));
        }
        Ok(Some(HttpFilterConfig {
            type_url: config.type_url.as_str().into(),
            source: config.clone(),
            parsed: Arc::new(()),
        }))
    }

    fn per_route(
        &self,
        name: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
        self.http_filter(name, config)
    }

    fn is_terminal(&self, config: &HttpFilterConfig) -> bool {
        config.type_url.ends_with("router.v3.Router")
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    AdsSotw,
    AdsDelta,
    Sotw,
    Delta,
}

const MODES: [Mode; 4] = [Mode::AdsSotw, Mode::AdsDelta, Mode::Sotw, Mode::Delta];

impl Mode {
    /// The `config_source` that resources of this mode carry.
    fn source_yaml(self) -> &'static str {
        match self {
            Self::AdsSotw | Self::AdsDelta => "{ads: {}, resource_api_version: V3}",
            Self::Sotw => {
                "{resource_api_version: V3, api_config_source: {api_type: GRPC, \
                 transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}"
            }
            Self::Delta => {
                "{resource_api_version: V3, api_config_source: {api_type: DELTA_GRPC, \
                 transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}"
            }
        }
    }

    fn source(self) -> ConfigSource {
        ConfigSource::parse(yaml(self.source_yaml())).unwrap()
    }

    fn is_delta(self) -> bool {
        matches!(self, Self::AdsDelta | Self::Delta)
    }
}

fn yaml<M: prost::Name + Default>(text: &str) -> M {
    pb::from_yaml(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn any<M: prost::Name + Default>(text: &str) -> pb::Any {
    pb::pack(&yaml::<M>(text))
}

fn static_cluster(text: &str) -> Arc<Cluster> {
    let context = ParseContext::new(&AnyFilter, Source::Static);
    Arc::new(Cluster::parse(yaml(text), &context).unwrap())
}

fn cluster(mode: Mode, name: &str, timeout: &str) -> pb::Any {
    any::<pb::envoy::config::cluster::v3::Cluster>(&format!(
        "{{name: {name}, type: EDS, connect_timeout: {timeout}, \
         eds_cluster_config: {{eds_config: {}}}}}",
        mode.source_yaml()
    ))
}

fn endpoints(name: &str, port: u16) -> pb::Any {
    any::<pb::envoy::config::endpoint::v3::ClusterLoadAssignment>(&format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    ))
}

fn listener(mode: Mode, name: &str, routes: &str, filters: &str) -> pb::Any {
    any::<pb::envoy::config::listener::v3::Listener>(&format!(
        r#"
name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      rds: {{route_config_name: {routes}, config_source: {source}}}
      http_filters: [{filters} {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#,
        source = mode.source_yaml()
    ))
}

fn routes(name: &str, cluster: &str) -> pb::Any {
    any::<pb::envoy::config::route::v3::RouteConfiguration>(&format!(
        "{{name: {name}, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         route: {{cluster: {cluster}}}}}]}}]}}"
    ))
}

/// A client of a control plane.
struct World {
    control_plane: ControlPlane,
    client: Client,
    registry: Registry,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mode: Mode,
}

fn xds_cluster(port: u16) -> Arc<Cluster> {
    static_cluster(&format!(
        "{{name: xds, type: STATIC, connect_timeout: 1s, http2_protocol_options: {{}}, \
         load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}"
    ))
}

fn options(mode: Mode, port: u16) -> Options {
    let service = GrpcService {
        cluster: "xds".into(),
        target_uri: None,
        authority: None,
        metadata: vec![("x-token".into(), "secret".into())],
        timeout: None,
        max_message: None,
        skip_envoy_headers: false,
    };
    Options {
        node: pb::Node {
            id: "test".to_owned(),
            ..pb::Node::default()
        },
        ads: Some(ApiSource {
            delta: mode.is_delta(),
            service,
            node_on_first_message_only: true,
        }),
        cds: Some(mode.source()),
        lds: Some(mode.source()),
        static_clusters: vec![xds_cluster(port)],
        ..Options::default()
    }
}

impl World {
    async fn new(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control_plane = ControlPlane::start(listener).unwrap();
        Self::with(mode, control_plane, Arc::new(AdmitAll))
    }

    fn with(mode: Mode, control_plane: ControlPlane, admission: Arc<dyn Admission>) -> Self {
        let registry = Registry::new(Shards::for_workers(1));
        let options = options(mode, control_plane.address().port());
        let client = Client::start(options, Arc::new(AnyFilter), admission, &registry).unwrap();
        Self {
            control_plane,
            snapshots: client.snapshots(),
            client,
            registry,
            mode,
        }
    }

    fn serve(&self, kind: ResourceType, resources: Vec<pb::Any>, version: &str) {
        self.control_plane
            .set_resources(kind.type_url(), resources, version);
    }

    /// A cluster `a` with endpoints, a listener `l` with routes `r` to it.
    fn serve_basics(&self) {
        self.serve(EDS, vec![endpoints("a", 1)], "1");
        self.serve(RDS, vec![routes("r", "a")], "1");
        self.serve(CDS, vec![cluster(self.mode, "a", "1s")], "1");
        self.serve(LDS, vec![listener(self.mode, "l", "r", "")], "1");
    }

    async fn ack(&self, kind: ResourceType) -> Answer {
        within(self.control_plane.expect_ack(kind.type_url()))
            .await
            .unwrap_or_else(|refused| panic!("{:?}: {kind} refused: {refused:?}", self.mode))
    }

    async fn nack(&self, kind: ResourceType) -> String {
        within(self.control_plane.expect_nack(kind.type_url()))
            .await
            .unwrap_or_else(|accepted| panic!("{:?}: {kind} accepted: {accepted:?}", self.mode))
            .error
            .unwrap()
    }

    async fn until(&mut self, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let snapshot = within(self.snapshots.wait_for(|snapshot| holds(snapshot))).await;
        Arc::clone(&snapshot.unwrap())
    }

    async fn ready(&self) {
        let mut progress = self.client.progress();
        within(progress.wait_for(|progress| *progress == Progress::Ready))
            .await
            .unwrap();
    }

    fn stat(&self, name: &str) -> Option<u64> {
        self.registry.sets().iter().find_map(|set| {
            let rest = name.strip_prefix(set.prefix())?;
            let index = set.table().stats.iter().position(|def| def.name == rest)?;
            Some(set.value(crate::telemetry::metrics::Stat(index as u16)))
        })
    }
}

/// Real time runs here; nothing in these tests takes long unless it never comes.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("comes in time")
}

/// The names of what comes from any source.
fn names_of<T>(resources: &Sourced<T>) -> Vec<&str> {
    resources.iter().map(|(_, name, _)| &**name).collect()
}

/// The one of a name, from any source.
fn one<'a, T>(resources: &'a Sourced<T>, wanted: &str) -> Option<&'a Arc<T>> {
    let mut all = resources.iter();
    all.find_map(|(_, name, value)| (&**name == wanted).then_some(value))
}

fn names<T>(map: &std::collections::BTreeMap<Arc<str>, T>) -> Vec<&str> {
    map.keys().map(|name| &**name).collect()
}

#[tokio::test]
async fn every_transport_brings_a_whole_world_in_order() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        let snapshot = world.until(|_| true).await;
        assert_eq!(names(&snapshot.clusters), ["a", "xds"], "{mode:?}");
        assert_eq!(names_of(&snapshot.endpoints), ["a"]);
        assert_eq!(names(&snapshot.listeners), ["l"]);
        assert_eq!(names_of(&snapshot.routes), ["r"]);
        for kind in [CDS, EDS, LDS, RDS] {
            world.ack(kind).await;
        }
        for stat in [
            "cluster_manager.cds.update_success",
            "cluster.a.update_success",
            "listener_manager.lds.update_success",
            "http.in.rds.r.update_success",
            "http.in.rds.r.config_reload",
        ] {
            assert_eq!(world.stat(stat), Some(1), "{mode:?} {stat}");
        }
        let streams: &[&str] = match mode {
            Mode::AdsSotw | Mode::AdsDelta => &["control_plane"],
            Mode::Sotw | Mode::Delta => &[
                "cluster_manager.cds.control_plane",
                "cluster.a.control_plane",
                "listener_manager.lds.control_plane",
                "http.in.rds.r.control_plane",
            ],
        };
        for stream in streams {
            assert_eq!(world.stat(&format!("{stream}.connected_state")), Some(1));
            let identifier = format!("{stream}.identifier");
            let texts = world.registry.texts();
            let text = texts.iter().find(|(name, _)| **name == *identifier);
            assert_eq!(text.unwrap().1, "plenipo", "{mode:?} {stream}");
        }
        assert_eq!(world.stat("cluster_manager.active_clusters"), Some(2));
        assert_eq!(world.stat("cluster_manager.cluster_added"), Some(2));
        assert_eq!(world.client.status().version(CDS), "1", "{mode:?}");
        let dump = world.client.status().resources(LDS);
        assert!(dump[0].active.is_some() && dump[0].warming.is_none());
    }
}

#[tokio::test]
async fn on_the_aggregated_stream_clusters_come_first_and_endpoints_before_their_answer() {
    for mode in [Mode::AdsSotw, Mode::AdsDelta] {
        let world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        world.ack(RDS).await;
        let said: Vec<String> = world
            .control_plane
            .events()
            .into_iter()
            .filter_map(|event| match event {
                Event::Request(request) => {
                    let kind = ResourceType::of_url(request.type_url()).unwrap();
                    let answer = if request.nonce().is_empty() { "" } else { "!" };
                    Some(format!("{kind}{answer}"))
                }
                _ => None,
            })
            .collect();
        let position = |what: &str| said.iter().position(|said| said == what).unwrap();
        assert_eq!(position("cds"), 0, "{said:?}");
        assert!(position("eds") < position("cds!"), "{said:?}");
        assert!(position("eds!") < position("lds"), "{said:?}");
        assert!(position("rds") < position("lds!"), "{said:?}");
        assert_eq!(said.len(), 8, "nothing is said twice: {said:?}");
    }
}

#[tokio::test]
async fn a_bad_neighbour_is_refused_by_name_and_place_and_the_good_one_applied() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        world.ack(CDS).await;
        let bad = any::<pb::envoy::config::cluster::v3::Cluster>(
            "{name: bad, type: STATIC, lb_policy: RING_HASH, connect_timeout: -1s}",
        );
        world.serve(CDS, vec![bad, cluster(mode, "a", "2s")], "2");
        let text = world.nack(CDS).await;
        assert!(
            text.starts_with("Error adding/updating cluster(s) bad: "),
            "{text}"
        );
        let snapshot = world
            .until(|snapshot| snapshot.clusters["a"].connect_timeout == Duration::from_secs(2))
            .await;
        assert_eq!(names(&snapshot.clusters), ["a", "xds"]);
        let status = world.client.status();
        let bad = &status.resources(CDS)[1];
        assert_eq!(&*bad.name, "bad");
        assert!(bad.active.is_none() && text.contains(&bad.error.as_ref().unwrap().details));
        assert_eq!(world.stat("cluster_manager.cds.update_rejected"), Some(1));
        world.serve(CDS, vec![cluster(mode, "a", "3s")], "3");
        world.ack(CDS).await;
        assert_eq!(status.version(CDS), "3");
        assert_eq!(status.resources(CDS).len(), 1, "the refusal is forgotten");
    }
}

#[tokio::test]
async fn what_nobody_refers_to_any_more_is_let_go() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        world.serve(EDS, vec![endpoints("b", 2)], "2");
        world.serve(CDS, vec![cluster(mode, "b", "1s")], "2");
        world.serve(LDS, vec![], "2");
        let snapshot = world
            .until(|snapshot| snapshot.listeners.is_empty() && !snapshot.clusters.contains_key("a"))
            .await;
        assert_eq!(names_of(&snapshot.routes), [] as [&str; 0], "{mode:?}");
        let snapshot = world
            .until(|snapshot| snapshot.clusters.contains_key("b"))
            .await;
        assert_eq!(names_of(&snapshot.endpoints), ["b"], "{mode:?}");
        assert!(world.client.status().resources(RDS).is_empty());
        assert_eq!(world.stat("http.in.rds.r.update_attempt"), None);
        assert_eq!(world.stat("cluster_manager.cluster_removed"), Some(1));
    }
}

#[tokio::test]
async fn a_changed_listener_serves_as_before_until_its_new_routes_are_there() {
    for mode in MODES {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.ready().await;
        let before = world.until(|_| true).await;
        world.ack(LDS).await;
        world.serve(LDS, vec![listener(mode, "l", "late", "")], "2");
        world.ack(LDS).await;
        let status = world.client.status();
        let state = &status.resources(LDS)[0];
        assert_eq!(
            &*state.active.as_ref().unwrap().version,
            state_version(mode, "1", state)
        );
        assert!(state.warming.is_some(), "{mode:?}");
        let now = Arc::clone(&world.snapshots.borrow_and_update());
        assert!(Arc::ptr_eq(&now.listeners["l"], &before.listeners["l"]));
        assert_eq!(names_of(&now.routes), ["r"]);
        world.serve(RDS, vec![routes("late", "a")], "2");
        let after = world
            .until(|snapshot| one(&snapshot.routes, "late").is_some())
            .await;
        assert!(!Arc::ptr_eq(&after.listeners["l"], &before.listeners["l"]));
        assert_eq!(names_of(&after.routes), ["late"]);
    }
}

/// In delta a resource has a version of its own.
fn state_version<'a>(
    mode: Mode,
    sotw: &'a str,
    state: &'a crate::xds::status::ResourceStatus,
) -> &'a str {
    if mode.is_delta() {
        &state.active.as_ref().unwrap().version
    } else {
        sotw
    }
}

#[tokio::test]
async fn discovered_filters_are_waited_for_checked_and_swapped() {
    let filter = r#"{name: f, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault]}},"#;
    let extension = |kind: &str, field: &str| {
        any::<pb::envoy::config::core::v3::TypedExtensionConfig>(&format!(
            "{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{kind}, {field}}}}}"
        ))
    };
    for mode in [Mode::AdsSotw, Mode::AdsDelta] {
        let mut world = World::new(mode).await;
        world.serve_basics();
        world.serve(LDS, vec![listener(mode, "l", "r", filter)], "1");
        world.ack(LDS).await;
        world.ack(RDS).await;
        assert!(world.snapshots.borrow().listeners.is_empty(), "{mode:?}");
        assert_eq!(world.client.status().unready().len(), 1);
        world.serve(ECDS, vec![extension("cors.v3.Cors", "")], "1");
        let text = world.nack(ECDS).await;
        assert_eq!(
            text,
            "f: Error: filter config has type URL envoy.extensions.filters.http.cors.v3.Cors but expect \
             envoy.extensions.filters.http.fault.v3.HTTPFault."
        );
        world.serve(ECDS, vec![extension("fault.v3.HTTPFault", "")], "2");
        world.ack(ECDS).await;
        world.ready().await;
        let first = world
            .until(|snapshot| one(&snapshot.extensions, "f").is_some())
            .await;
        world.serve(
            ECDS,
            vec![extension("fault.v3.HTTPFault", "max_active_faults: 3")],
            "3",
        );
        let second = world
            .until(|snapshot| {
                !Arc::ptr_eq(
                    one(&snapshot.extensions, "f").unwrap(),
                    one(&first.extensions, "f").unwrap(),
                )
            })
            .await;
        assert!(Arc::ptr_eq(&first.listeners["l"], &second.listeners["l"]));
        assert_eq!(
            world.stat("extension_config_discovery.http_filter.f.config_reload"),
            Some(2)
        );
    }
}
