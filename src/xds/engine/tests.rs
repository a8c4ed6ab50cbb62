//! When the world is warm, and what is asked for meanwhile: without a socket, with a clock of our own.

use super::*;
use crate::config::cluster::{ConfigSource, GrpcService};
use crate::config::extension::HttpFilterConfig;
use crate::config::{Cluster, Listener};
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use crate::xds::admission::AdmitAll;

mod addresses;
mod extensions;
mod sources;
mod waiting;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoints;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;
const ECDS: ResourceType = ResourceType::Extension;

const ADS: &SourceSpecifier = &SourceSpecifier::Ads;

struct AnyFilter;

impl Extensions for AnyFilter {
    fn http_filter(
        &self,
        _: &str,
        config: &pb::Any,
    ) -> Result<Option<HttpFilterConfig>, ConfigError> {
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

fn yaml<M: prost::Name + Default>(text: &str) -> M {
    pb::from_yaml(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A resource of a type, from YAML.
fn any(kind: ResourceType, text: &str) -> pb::Any {
    use pb::envoy::config;
    match kind {
        CDS => pb::pack(&yaml::<config::cluster::v3::Cluster>(text)),
        EDS => pb::pack(&yaml::<config::endpoint::v3::ClusterLoadAssignment>(text)),
        LDS => pb::pack(&yaml::<config::listener::v3::Listener>(text)),
        ECDS => pb::pack(&yaml::<config::core::v3::TypedExtensionConfig>(text)),
        RDS => pb::pack(&yaml::<config::route::v3::RouteConfiguration>(text)),
    }
}

/// An EDS cluster whose endpoints have this name and timeout (in seconds).
fn cluster(name: &str, endpoints: &str, timeout: u64) -> String {
    format!(
        "{{name: {name}, type: EDS, eds_cluster_config: {{service_name: {endpoints}, eds_config: \
         {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: {timeout}s}}}}}}"
    )
}

fn listener(name: &str, routes: &str, filters: &str) -> String {
    format!(
        r#"
name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      rds: {{route_config_name: {routes}, config_source: {{ads: {{}}, initial_fetch_timeout: 5s}}}}
      http_filters: [{filters} {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
    )
}

fn route(name: &str) -> String {
    format!("{{name: {name}, virtual_hosts: [{{name: v, domains: ['*']}}]}}")
}

fn parse_cluster(text: &str) -> Arc<Cluster> {
    let context = ParseContext::new(&AnyFilter, Source::Static);
    Arc::new(Cluster::parse(yaml(text), &context).unwrap())
}

fn parse_listener(text: &str) -> Arc<Listener> {
    let context = ParseContext::new(&AnyFilter, Source::Static);
    Arc::new(Listener::parse(yaml(text), &context).unwrap())
}

fn ads(timeout: u64) -> ConfigSource {
    ConfigSource {
        specifier: SourceSpecifier::Ads,
        initial_fetch_timeout: Some(Duration::from_secs(timeout)).filter(|t| !t.is_zero()),
    }
}

fn options(delta: bool) -> Options {
    Options {
        ads: Some(ApiSource {
            delta,
            service: GrpcService {
                cluster: "xds".into(),
                target_uri: Some("127.0.0.1:1".into()),
                authority: None,
                metadata: Vec::new(),
                timeout: None,
                max_message: None,
                skip_envoy_headers: false,
            },
            node_on_first_message_only: true,
        }),
        cds: Some(ads(15)),
        lds: Some(ads(15)),
        ..Options::default()
    }
}

/// An engine with one aggregated stream that is open, and its world.
struct Side {
    engine: Engine,
    registry: Registry,
    channel: ChannelId,
    now: Instant,
    snapshot: Arc<Snapshot>,
    said: Vec<String>,
    delta: bool,
    nonce: u32,
    /// Judgements that wait for admission.
    asked: Vec<u64>,
}

/// Decides on routes later, and on nothing else.
struct RoutesLater;

impl Admission for RoutesLater {
    fn admit(&self, candidate: &crate::xds::Candidate) -> Option<Admitted> {
        matches!(candidate, crate::xds::Candidate::Route(_))
            .then(|| -> Admitted { Box::pin(std::future::pending()) })
    }
}

impl Side {
    fn new(options: Options) -> Self {
        Self::with(options, Arc::new(AdmitAll))
    }

    fn with(options: Options, admission: Arc<dyn Admission>) -> Self {
        let registry = Registry::new(crate::base::Shards::for_workers(1));
        let now = Instant::now();
        let delta = options.ads.as_ref().is_some_and(|api| api.delta);
        let engine = Engine::new(options, Arc::new(AnyFilter), admission, &registry, now).unwrap();
        let mut side = Self {
            channel: 0,
            engine,
            registry,
            now,
            snapshot: Arc::default(),
            said: Vec::new(),
            delta,
            nonce: 0,
            asked: Vec::new(),
        };
        side.settle();
        side.channel = side.engine.channels[0].id;
        side.engine.opened(side.channel);
        side.settle();
        side
    }

    fn settle(&mut self) {
        let effects = self.engine.settle(self.now);
        if let Some(snapshot) = effects.snapshot {
            self.snapshot = snapshot;
        }
        self.asked
            .extend(effects.admissions.iter().map(|question| question.judgement));
        for (_, request) in effects.requests {
            self.said.push(match request {
                Request::Sotw(request) => {
                    let kind = ResourceType::of_url(&request.type_url).unwrap();
                    let error = request
                        .error_detail
                        .map(|error| format!(" !{}", error.message));
                    format!(
                        "{kind} [{}]{}{}",
                        request.resource_names.join(","),
                        if request.response_nonce.is_empty() {
                            ""
                        } else {
                            " ok"
                        },
                        error.unwrap_or_default()
                    )
                }
                Request::Delta(request) => {
                    let kind = ResourceType::of_url(&request.type_url).unwrap();
                    format!(
                        "{kind} +[{}] -[{}]",
                        request.resource_names_subscribe.join(","),
                        request.resource_names_unsubscribe.join(",")
                    )
                }
            });
        }
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.settle();
    }

    fn respond(&mut self, kind: ResourceType, resources: &[String]) {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let resources = resources.iter().map(|text| any(kind, text));
        let response = if self.delta {
            Response::Delta(DeltaDiscoveryResponse {
                nonce,
                type_url: kind.type_url().to_owned(),
                resources: resources
                    .map(|any| Resource {
                        resource: Some(any),
                        version: "1".to_owned(),
                        ..Resource::default()
                    })
                    .collect(),
                ..DeltaDiscoveryResponse::default()
            })
        } else {
            Response::Sotw(DiscoveryResponse {
                version_info: nonce.clone(),
                nonce,
                type_url: kind.type_url().to_owned(),
                resources: resources.collect(),
                ..DiscoveryResponse::default()
            })
        };
        self.engine.received(self.channel, response);
        self.settle();
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        self.nonce += 1;
        let response = Response::Delta(DeltaDiscoveryResponse {
            nonce: self.nonce.to_string(),
            type_url: kind.type_url().to_owned(),
            removed_resources: vec![name.to_owned()],
            ..DeltaDiscoveryResponse::default()
        });
        self.engine.received(self.channel, response);
        self.settle();
    }

    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.said)
    }

    fn clusters(&self) -> Vec<&str> {
        self.snapshot.clusters.keys().map(|name| &**name).collect()
    }

    fn listeners(&self) -> Vec<&str> {
        self.snapshot.listeners.keys().map(|name| &**name).collect()
    }

    fn stat(&self, name: &str) -> u64 {
        let sets = self.registry.sets();
        let found = sets.iter().find_map(|set| {
            let rest = name.strip_prefix(set.prefix())?;
            let index = set.table().stats.iter().position(|def| def.name == rest)?;
            Some(set.value(crate::telemetry::metrics::Stat(index as u16)))
        });
        found.unwrap_or_else(|| panic!("{name} exists"))
    }
}

/// A side whose clusters are out of the way.
fn at_listeners(delta: bool) -> Side {
    let mut side = Side::new(Options {
        cds: None,
        ..options(delta)
    });
    assert_eq!(side.engine.progress(), Progress::Listeners);
    side.said();
    side
}

#[tokio::test]
async fn a_moved_cluster_keeps_its_endpoints_until_the_new_ones_are_there() {
    let mut side = Side::new(options(false));
    side.respond(CDS, &[cluster("a", "e", 15)]);
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    side.said();
    side.respond(CDS, &[cluster("a", "f", 15)]);
    assert_eq!(side.said(), ["eds [e,f] ok", "cds [] ok"]);
    let dump = side.engine.status().resources(CDS);
    assert!(dump[0].active.is_some() && dump[0].warming.is_some());
    assert!(side.snapshot.endpoints.get(ADS, "e").is_some());
    side.respond(EDS, &["{cluster_name: f}".to_owned()]);
    assert_eq!(side.said(), ["eds [e,f] ok", "eds [f] ok"]);
    assert!(side.engine.status().resources(CDS)[0].warming.is_none());
    assert_eq!(side.stat("cluster_manager.cluster_modified"), 1);
}

#[tokio::test]
async fn the_bootstrap_wins_its_names_and_may_refer() {
    let mut side = Side::new(Options {
        static_clusters: vec![
            parse_cluster(&cluster("s", "e", 15)),
            parse_cluster("{name: plain, type: STATIC}"),
        ],
        static_listeners: vec![parse_listener(&listener("l", "r", ""))],
        ..options(false)
    });
    assert_eq!(side.said(), ["cds []", "eds [e]"]);
    assert_eq!(side.clusters(), ["plain"]);
    side.respond(
        CDS,
        &["{name: plain, type: STATIC, connect_timeout: 9s}".to_owned()],
    );
    let kept = side.snapshot.clusters["plain"].connect_timeout;
    assert_eq!(kept, Duration::from_secs(5));
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    assert_eq!(side.clusters(), ["plain", "s"]);
    assert_eq!(
        side.said(),
        ["cds [] ok", "eds [e] ok", "lds []", "rds [r]"]
    );
    side.respond(RDS, &[route("r")]);
    side.respond(LDS, &[]);
    assert_eq!(side.listeners(), ["l"]);
    assert_eq!(side.engine.progress(), Progress::Ready);
}

#[tokio::test]
async fn sources_that_cannot_be_are_refused() {
    let nowhere = "{name: a, type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC, \
        transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: nope}}]}}}}";
    let mut side = Side::new(options(false));
    side.respond(CDS, &[nowhere.to_owned()]);
    let said = side.said();
    assert!(
        said[1].ends_with(
            "!Error adding/updating cluster(s) a: eds_cluster_config.eds_config.api_config_source.grpc_services: \
             envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: 'nope' does not exist, \
             was added via api, or is an EDS cluster"
        ),
        "{said:?}"
    );
    for (options, reason) in [
        (
            Options {
                cds: Some(ads(1)),
                ..Options::default()
            },
            "dynamic_resources.cds_config: ADS must be configured",
        ),
        (
            Options {
                static_clusters: vec![parse_cluster(nowhere)],
                ..Options::default()
            },
            "static_resources.clusters[0].eds_cluster_config",
        ),
    ] {
        let registry = Registry::new(crate::base::Shards::for_workers(1));
        let error = Engine::new(
            options,
            Arc::new(AnyFilter),
            Arc::new(AdmitAll),
            &registry,
            Instant::now(),
        )
        .err()
        .unwrap();
        assert!(error.to_string().starts_with(reason), "{error}");
    }
}

#[tokio::test]
async fn unknown_fields_follow_the_policy() {
    let mut unknown = any(CDS, "{name: a, type: STATIC}");
    // Field 4000, a varint.
    unknown.value.extend([0x80, 0xfa, 0x01, 0x01]);
    for (policy, accepted, counted) in [
        (UnknownFields::Warn, true, 1),
        (UnknownFields::Ignore, true, 0),
        (UnknownFields::Reject, false, 0),
    ] {
        let registry = Registry::new(crate::base::Shards::for_workers(1));
        let set = registry.set(&cluster_manager::TABLE, "test.", "test", []);
        let mut side = Side::new(Options {
            unknown_fields: policy,
            unknown_fields_stat: Some((Arc::clone(&set), cluster_manager::CLUSTER_UPDATED)),
            ..options(false)
        });
        side.engine.received(
            side.channel,
            Response::Sotw(DiscoveryResponse {
                type_url: CDS.type_url().to_owned(),
                resources: vec![unknown.clone()],
                nonce: "1".to_owned(),
                ..DiscoveryResponse::default()
            }),
        );
        side.settle();
        assert_eq!(!side.clusters().is_empty(), accepted, "{policy:?}");
        assert_eq!(side.said().iter().any(|said| said.contains('!')), !accepted);
        assert_eq!(set.value(cluster_manager::CLUSTER_UPDATED), counted);
    }
}

#[tokio::test]
async fn an_outage_counts_and_changes_nothing() {
    let mut side = Side::new(options(false));
    side.respond(CDS, &[cluster("a", "e", 15)]);
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    let before = Arc::clone(&side.snapshot);
    side.engine.closed(side.channel);
    side.said();
    side.after(1_000_000);
    assert!(Arc::ptr_eq(&side.snapshot, &before));
    assert_eq!(side.stat("cluster.e.update_failure"), 1);
    assert!(side.said().is_empty(), "nothing is said to nobody");
    side.engine.opened(side.channel);
    side.settle();
    assert_eq!(side.said(), ["cds []", "eds [e]", "lds []"]);
}

#[tokio::test]
async fn the_same_again_makes_no_new_world() {
    let mut side = Side::new(options(false));
    side.respond(CDS, &[cluster("a", "e", 15)]);
    side.respond(EDS, &["{cluster_name: e}".to_owned()]);
    let before = Arc::clone(&side.snapshot);
    side.respond(CDS, &[cluster("a", "e", 15)]);
    side.respond(
        EDS,
        &["{cluster_name: e, policy: {overprovisioning_factor: 140}}".to_owned()],
    );
    assert!(Arc::ptr_eq(&side.snapshot, &before), "140 is the default");
    side.respond(
        EDS,
        &["{cluster_name: e, policy: {overprovisioning_factor: 150}}".to_owned()],
    );
    assert!(!Arc::ptr_eq(&side.snapshot, &before));
    assert!(Arc::ptr_eq(
        &side.snapshot.clusters["a"],
        &before.clusters["a"]
    ));
}

#[tokio::test]
async fn what_is_let_go_while_it_is_judged_is_not_kept() {
    for delta in [false, true] {
        let options = Options {
            cds: None,
            ..options(delta)
        };
        let mut side = Side::with(options, Arc::new(RoutesLater));
        side.respond(LDS, &[listener("l", "r", "")]);
        side.respond(RDS, &[route("r")]);
        let asked = std::mem::take(&mut side.asked);
        side.respond(LDS, &[listener("l", "r2", "")]);
        side.said();
        side.engine.admitted(asked[0], &[], side.now);
        side.settle();
        assert_eq!(side.said().len(), 1, "it is answered");
        assert!(side.engine.status().resources(RDS).is_empty());
    }
}
