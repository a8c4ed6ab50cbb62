//! Tests of `bootstrap`.

use std::path::PathBuf;

use super::*;
use crate::config::extension::HttpFilterConfig;
use crate::config::{ConfigError, Extensions};
use crate::pb::envoy::config::core::v3::node::UserAgentVersionType;

#[derive(Debug)]
struct NoFilters;

impl Extensions for NoFilters {
    fn http_filter(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok(None)
    }

    fn per_route(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
        Ok(None)
    }

    fn is_terminal(&self, _: &HttpFilterConfig) -> bool {
        false
    }
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn yaml(text: &str) -> Source {
    Source {
        yaml: Some(text.to_owned()),
        ..Source::default()
    }
}

fn parse(text: &str) -> Result<Bootstrap, ConfigError> {
    Bootstrap::parse(load(&yaml(text)).unwrap().proto, &NoFilters)
}

fn refused(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

#[test]
fn the_extension_decides_the_format() {
    for (name, text, good) in [
        ("a.yaml", "node: {id: x}", true),
        ("a.yml", "node: {id: x}", true),
        ("a.YAML", "node: {id: x}", true),
        ("a.json", "{\"node\": {\"id\": \"x\"}}", true),
        ("a", "{\"node\": {\"id\": \"x\"}}", true),
        ("a.json", "node: {id: x}", false),
        ("a", "node: {id: x}", false),
        ("a.pb", "\n\x03\n\x01x", true),
        ("a.pb_length_delimited", "\x05\n\x03\n\x01x", true),
        ("a.pb_text", "node { id: 'x' }", false),
    ] {
        let (_folder, path) = file(name, text);
        let loaded = load(&Source {
            path: Some(path),
            ..Source::default()
        });
        assert_eq!(loaded.is_ok(), good, "{name} {text}: {loaded:?}");
        if let Ok(loaded) = loaded {
            assert_eq!(loaded.proto.node.unwrap().id, "x", "{name}");
        }
    }
}

#[test]
fn nothing_and_a_missing_file_are_told_as_envoy_tells_them() {
    let nothing = "At least one of --config-path or --config-yaml or Options::configProto() should be non-empty";
    assert_eq!(load(&Source::default()).unwrap_err().to_string(), nothing);
    assert_eq!(load(&yaml("")).unwrap_err().to_string(), nothing);
    let missing = Source {
        path: Some("/nonexistent.yaml".into()),
        ..Source::default()
    };
    assert_eq!(
        load(&missing).unwrap_err().to_string(),
        "Invalid path: /nonexistent.yaml"
    );
}

#[test]
fn the_text_is_merged_over_the_file_and_the_flags_over_both() {
    let (_folder, path) = file(
        "b.yaml",
        "node: {id: a, cluster: ca, locality: {region: r, zone: z}, metadata: {k1: v1, k2: v2}}\n\
         static_resources: {clusters: [{name: c1}]}\n",
    );
    let mut source = Source {
        path: Some(path),
        ..yaml(
            "node: {id: b, metadata: {k2: OVERRIDE, k3: v3}}\nstatic_resources: {clusters: [{name: c2}]}",
        )
    };
    let proto = load(&source).unwrap().proto;
    let node = pb::to_json(proto.node.as_ref().unwrap());
    assert_eq!(
        node,
        serde_json::json!({"id": "b", "cluster": "ca", "locality": {"region": "r", "zone": "z"},
            "metadata": {"k1": "v1", "k2": "OVERRIDE", "k3": "v3"}})
    );
    let clusters = proto.static_resources.unwrap().clusters;
    assert_eq!(
        clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["c1", "c2"]
    );

    source.node_id = Some("SN".to_owned());
    source.node_cluster = Some("SC".to_owned());
    source.node_zone = Some("SZ".to_owned());
    let node = load(&source).unwrap().proto.node.unwrap();
    let locality = node.locality.unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("SN", "SC"));
    assert_eq!(
        (locality.region.as_str(), locality.zone.as_str()),
        ("r", "SZ")
    );
}

#[test]
fn unknown_fields_are_fatal_unless_allowed() {
    let mut source = yaml("foo: 1\nnode: {bar: 2}");
    let error = load(&source).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "Protobuf message (type envoy.config.bootstrap.v3.Bootstrap reason INVALID_ARGUMENT:"
        ) && error.ends_with(") has unknown fields"),
        "{error}"
    );
    source.allow_unknown_fields = true;
    let loaded = load(&source).unwrap();
    assert_eq!(loaded.unknown_fields, 2);
    assert!(
        loaded.warnings[0].contains("no such field: 'foo'"),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn a_deprecated_field_is_told_once() {
    let mut source = yaml(
        "static_resources: {clusters: [{name: a, http2_protocol_options: {}}, {name: b, http2_protocol_options: {}}]}",
    );
    assert_eq!(load(&source).unwrap().warnings.len(), 1);
    source.skip_deprecated = true;
    assert!(load(&source).unwrap().warnings.is_empty());
}

#[test]
fn the_log_format_is_text_or_one_line_of_json() {
    let of = |text: &str| load::log_format(&load(&yaml(text)).unwrap().proto);
    assert_eq!(of("node: {}"), Ok(None));
    assert_eq!(
        of("application_log_config: {log_format: {text_format: '%v'}}"),
        Ok(Some("%v".to_owned()))
    );
    assert_eq!(
        of("application_log_config: {log_format: {json_format: {msg: '%j', level: '%l'}}}"),
        Ok(Some(r#"{"level":"%l","msg":"%j"}"#.to_owned()))
    );
    assert!(of("application_log_config: {log_format: {json_format: {msg: '%v'}}}").is_err());
}

#[test]
fn control_planes_are_told_that_we_follow_envoy() {
    let bootstrap = parse("node: {id: a, cluster: c, metadata: {X: y}}").unwrap();
    let node = &bootstrap.node;
    assert_eq!(
        (node.id.as_str(), node.user_agent_name.as_str()),
        ("a", "envoy")
    );
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type
    else {
        panic!("no build version")
    };
    let version = build.version.as_ref().unwrap();
    assert_eq!(
        (version.major_number, version.minor_number, version.patch),
        (1, 40, 0)
    );
    for key in [
        "revision.sha",
        "revision.status",
        "build.type",
        "ssl.version",
    ] {
        assert!(
            build.metadata.as_ref().unwrap().fields.contains_key(key),
            "{key}"
        );
    }
    assert_eq!(bootstrap.proto.node.as_ref(), Some(node));
}

#[test]
fn what_has_no_effect_is_told_once_each() {
    let bootstrap = parse(
        "overload_manager: {refresh_interval: 0.25s}\nhds_config: {api_type: GRPC}\nadmin: {access_log_path: /dev/null, profile_path: /tmp/p}\n\
         layered_runtime: {layers: [{name: s, static_layer: {a: 1}}, {name: d, disk_layer: {symlink_root: /x}}, {name: a, admin_layer: {}}]}\n\
         bootstrap_extensions: [{name: envoy.bootstrap.internal_listener, typed_config: {'@type': type.googleapis.com/udpa.type.v1.TypedStruct, \
         type_url: type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, value: {buffer_size_kb: 64}}}]\n",
    )
    .unwrap();
    assert_eq!(
        bootstrap.notes,
        [
            "bootstrap: hds_config is accepted without effect",
            "bootstrap: overload_manager is accepted without effect",
            "bootstrap: extension envoy.bootstrap.internal_listener is accepted without effect",
            "bootstrap: admin.profile_path is accepted without effect",
            "bootstrap: runtime layer d is accepted without effect",
        ]
    );
    assert!(bootstrap.admin.is_none(), "no address");
    let kinds: Vec<_> = bootstrap.runtime.iter().map(|layer| &layer.kind).collect();
    assert!(matches!(
        kinds[..],
        [
            RuntimeLayerKind::Static(_),
            RuntimeLayerKind::Empty,
            RuntimeLayerKind::Admin
        ]
    ));
}

#[test]
fn our_own_settings_are_read() {
    const TYPE: &str = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings";
    let entry = |rest: &str| format!("{{name: w, typed_config: {{'@type': {TYPE}, {rest}}}}}");
    let bootstrap = parse(&format!(
        "bootstrap_extensions: [{}]",
        entry("defaults: {memory_limit_bytes: 1048576}")
    ))
    .unwrap();
    assert_eq!(bootstrap.wasm.defaults.memory, 1 << 20);
    assert_eq!(bootstrap.notes.len(), 0);
    assert_eq!(
        parse("{}").unwrap().wasm,
        crate::config::WasmSettings::default()
    );
    assert_eq!(
        refused(&format!(
            "bootstrap_extensions: [{}]",
            entry("defaults: {breaker: {probe_time: 0s}}")
        )),
        "bootstrap_extensions[0].typed_config.defaults.breaker.probe_time: value must be greater than 0s"
    );
    assert_eq!(
        refused(&format!("bootstrap_extensions: [{0}, {0}]", entry(""))),
        "bootstrap_extensions[1].typed_config: a second entry of this type"
    );
}

#[test]
fn services_are_known_by_their_places() {
    /// Takes every `Struct` for a service, and refuses every `Duration`.
    struct Services;

    impl Services {
        fn parse(config: &pb::Any) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
            match pb::type_name(&config.type_url) {
                "google.protobuf.Struct" => Ok(Some(Arc::new(config.value.clone()))),
                "google.protobuf.Duration" => Err(ConfigError::missing("config")),
                _ => Ok(None),
            }
        }
    }

    impl Extensions for Services {
        fn http_filter(
            &self,
            _: &str,
            _: &pb::Any,
        ) -> Result<Option<HttpFilterConfig>, ConfigError> {
            Ok(None)
        }

        fn per_route(&self, _: &str, _: &pb::Any) -> Result<Option<HttpFilterConfig>, ConfigError> {
            Ok(None)
        }

        fn is_terminal(&self, _: &HttpFilterConfig) -> bool {
            false
        }

        fn bootstrap_service(
            &self,
            config: &pb::Any,
        ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
            Self::parse(config)
        }

        fn stats_sink(
            &self,
            config: &pb::Any,
        ) -> Result<Option<Arc<dyn ExtensionConfig>>, ConfigError> {
            Self::parse(config)
        }
    }

    let parse = |text: &str| Bootstrap::parse(load(&yaml(text)).unwrap().proto, &Services);
    let known = "typed_config: {'@type': type.googleapis.com/google.protobuf.Struct, value: {}}";
    let envoys =
        |kind: &str| format!("typed_config: {{'@type': type.googleapis.com/envoy.{kind}}}");
    let extension = envoys("extensions.bootstrap.internal_listener.v3.InternalListener");
    let sink = envoys("config.metrics.v3.HystrixSink");
    let wrong = "typed_config: {'@type': type.googleapis.com/google.protobuf.Duration, value: 1s}";
    let bootstrap = parse(&format!(
        "bootstrap_extensions: [{{name: a, {extension}}}, {{name: b, {known}}}]\n\
         stats_sinks: [{{name: c, {known}}}, {{name: d, {sink}}}]\n"
    ))
    .unwrap();
    let places: Vec<_> = bootstrap
        .services
        .iter()
        .map(|service| &*service.place)
        .collect();
    assert_eq!(places, ["bootstrap_extensions[1]", "stats_sinks[0]"]);
    assert_eq!(
        bootstrap.notes,
        [
            "bootstrap: extension a is accepted without effect",
            "bootstrap: statistics sink d is accepted without effect",
        ]
    );
    for list in ["bootstrap_extensions", "stats_sinks"] {
        let error = parse(&format!("{list}: [{{name: w, {wrong}}}]")).expect_err("refused");
        assert!(
            error
                .to_string()
                .starts_with(&format!("{list}[0].typed_config.config")),
            "{error}"
        );
    }
}

#[test]
fn what_would_change_requests_is_refused() {
    assert_eq!(
        refused("header_prefix: x-foo"),
        "header_prefix: not supported: it is always x-envoy"
    );
    assert!(
        refused("dynamic_resources: {lds_resources_locator: 'xdstp://x'}")
            .starts_with("dynamic_resources.lds_resources_locator")
    );
    for interval in ["0s", "-5s", "300s"] {
        assert_eq!(
            refused(&format!("stats_flush_interval: {interval}")),
            "stats_flush_interval: value must be inside range [1ms, 5m0s)"
        );
    }
    assert_eq!(
        refused("stats_flush_on_admin: false"),
        "stats_flush_on_admin: value must equal true"
    );
    assert_eq!(
        refused("stats_flush_interval: 1s\nstats_flush_on_admin: true"),
        "stats_flush_on_admin: Only one of stats_flush_interval or stats_flush_on_admin should be set!"
    );
}

#[test]
fn stats_are_configured() {
    let stats = parse(
        "stats_flush_interval: 1.5s\nstats_server_version_override: 7\nstats_config: {use_all_default_tags: false, \
         stats_tags: [{tag_name: a, fixed_value: b}, {tag_name: c, regex: '^x(?=\\.)(y)'}, {tag_name: envoy.cluster_name}]}",
    )
    .unwrap()
    .stats;
    assert_eq!(stats.flush, StatsFlush::Every(Duration::from_millis(1500)));
    assert_eq!(stats.server_version, Some(7));
    assert!(!stats.use_default_tags);
    assert_eq!(stats.tags.len(), 3);
    assert_eq!(stats.matcher, StatsMatcher::All);
}

#[test]
fn stats_are_flushed_at_intervals_unless_admin_is_to_ask_for_them() {
    let flush = |text: &str| parse(text).unwrap().stats.flush;
    assert_eq!(flush("{}"), StatsFlush::Every(Duration::from_secs(5)));
    assert_eq!(flush("stats_flush_on_admin: true"), StatsFlush::OnAdmin);
}

#[test]
fn the_bootstrap_of_the_goldens_is_understood() {
    let bootstrap = parse(include_str!("../../tests/golden/bootstrap.yaml")).unwrap();
    assert_eq!(&*bootstrap.clusters[0].value.name, "xds_cluster");
    assert_eq!(
        crate::pb::type_name(&bootstrap.clusters[0].proto.type_url),
        "envoy.config.cluster.v3.Cluster"
    );
    let Some(SourceSpecifier::Grpc { delta, service, .. }) = &bootstrap.ads else {
        panic!("{:?}", bootstrap.ads)
    };
    assert_eq!((*delta, &*service.cluster), (false, "xds_cluster"));
    assert!(matches!(bootstrap.lds, Some(source) if source.specifier == SourceSpecifier::Ads));
    assert!(matches!(bootstrap.cds, Some(source) if source.specifier == SourceSpecifier::Ads));
    assert_eq!(
        bootstrap.admin.unwrap().address,
        Address::Socket(([127, 0, 0, 1], 26001).into())
    );
}

const CLUSTER: &str = "{name: x, type: STATIC, load_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: \
     {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}";

#[test]
fn control_planes_of_the_field_are_reached() {
    // Istio: delta over a unix socket, the node once, waiting for ever.
    let istio = parse(
        "node: {id: sidecar~10.0.0.1~a.b~c, cluster: a.b}\n\
         dynamic_resources: {lds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}, cds_config: {ads: {}, \
         initial_fetch_timeout: 0s, resource_api_version: V3}, ads_config: {api_type: DELTA_GRPC, set_node_on_first_message_only: true, \
         transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}}]}}\n\
         static_resources: {clusters: [{name: xds-grpc, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: xds-grpc, \
         endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ./etc/istio/proxy/XDS}}}}]}]}}]}",
    )
    .unwrap();
    assert!(matches!(
        istio.ads,
        Some(SourceSpecifier::Grpc {
            delta: true,
            node_on_first_message_only: true,
            ..
        })
    ));
    assert!(matches!(
        istio.lds,
        Some(ConfigSource {
            specifier: SourceSpecifier::Ads,
            initial_fetch_timeout: None
        })
    ));
    // Consul: grpc_services is an object, with metadata.
    let consul = parse(&format!(
        "node: {{id: a, cluster: b}}\nstatic_resources: {{clusters: [{CLUSTER}]}}\ndynamic_resources: {{lds_config: {{ads: {{}}}}, \
         ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: {{initial_metadata: [{{key: x-consul-token, value: t}}], \
         envoy_grpc: {{cluster_name: x}}}}}}}}"
    ))
    .unwrap();
    let Some(SourceSpecifier::Grpc { service, .. }) = &consul.ads else {
        panic!("{:?}", consul.ads)
    };
    assert_eq!(service.metadata, [("x-consul-token".into(), "t".into())]);
    // Contour: a stream a type, no ADS.
    let contour = parse(&format!(
        "node: {{id: a, cluster: b}}\nstatic_resources: {{clusters: [{CLUSTER}]}}\ndynamic_resources: {{cds_config: {{api_config_source: \
         {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: x}}}}]}}}}}}"
    ))
    .unwrap();
    assert!(matches!(
        contour.cds,
        Some(ConfigSource {
            specifier: SourceSpecifier::Grpc { delta: false, .. },
            ..
        })
    ));
}

#[test]
fn control_planes_are_told_who_asks() {
    let ads = |cluster: &str| {
        format!(
            "ads_config: {{api_type: GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}"
        )
    };
    let statics = format!("static_resources: {{clusters: [{CLUSTER}]}}\n");
    let node = "node: {id: a, cluster: b}\n";
    assert!(
        refused(&format!("{statics}dynamic_resources: {{{}}}", ads("x")))
            .starts_with("node 'id' and 'cluster' are required.")
    );
    assert!(
        parse(&format!(
            "{node}{statics}dynamic_resources: {{{}}}",
            ads("x")
        ))
        .is_ok()
    );
}

#[test]
fn static_resources_are_checked_and_their_places_named() {
    assert_eq!(
        refused(&format!(
            "static_resources: {{clusters: [{CLUSTER}, {CLUSTER}]}}"
        )),
        "static_resources.clusters[1]: cluster manager: duplicate cluster 'x'"
    );
    let error = refused(
        "static_resources: {listeners: [{name: l, address: {socket_address: {address: nope, port_value: 1}}}]}",
    );
    assert!(
        error.starts_with("static_resources.listeners[0]."),
        "{error}"
    );
    let error = refused("admin: {address: {socket_address: {address: localhost, port_value: 1}}}");
    assert!(error.starts_with("admin.address"), "{error}");
}

#[test]
fn the_admin_address_may_be_a_socket_of_some_mode() {
    let admin = parse("admin: {address: {pipe: {path: /admin/admin.sock, mode: 420}}}")
        .unwrap()
        .admin
        .unwrap();
    assert_eq!(
        (admin.address, admin.pipe_mode),
        (Address::Pipe("/admin/admin.sock".into()), Some(0o644))
    );
}

#[test]
fn a_control_plane_of_google_grpc_needs_no_cluster() {
    let bootstrap = parse(
        "node: {id: a, cluster: b}\ndynamic_resources: {ads_config: {api_type: GRPC, grpc_services: [{google_grpc: \
         {target_uri: '127.0.0.1:1', stat_prefix: xds}}]}}",
    );
    assert!(bootstrap.is_ok(), "{bootstrap:?}");
}

#[test]
fn no_two_listeners_have_one_address_but_port_zero() {
    let listener = |name: &str, port: u16| {
        format!(
            "{{{name} address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: \
             [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
             http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, route_config: {{}}, http_filters: [{{name: \
             r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
        )
    };
    let two = |first: String, second: String| {
        format!("static_resources: {{listeners: [{first}, {second}]}}")
    };
    let both = |name: &str| two(listener(name, 0), listener(name, 0));
    let parse =
        |text: &str| Bootstrap::parse(load(&yaml(text)).unwrap().proto, &crate::config::stub::Stub);
    let bootstrap = parse(&both("")).unwrap();
    let names = bootstrap
        .listeners
        .iter()
        .map(|listener| &*listener.value.name);
    assert_eq!(names.collect::<Vec<_>>(), ["127.0.0.1:0", "127.0.0.1:0#1"]);
    assert_eq!(
        parse(&both("name: l,")).unwrap_err().to_string(),
        "static_resources.listeners[1]: duplicate listener 'l'"
    );
    let error = parse(&two(listener("name: a,", 81), listener("name: b,", 81))).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with(
            "static_resources.listeners[1]: error adding listener: 'b' has duplicate address '127.0.0.1:81' as existing listener"
        ),
        "{error}"
    );
}

#[test]
fn runtime_layers_have_names_of_their_own_and_one_admin_layer() {
    for (layers, error) in [
        (
            "{static_layer: {a: 1}}",
            "layered_runtime.layers[0].name: value length must be at least 1 characters",
        ),
        (
            "{name: a}",
            "layered_runtime.layers[0].layer_specifier: value is required",
        ),
        (
            "{name: a, static_layer: {}}, {name: a, static_layer: {}}",
            "layered_runtime.layers[1]: Duplicate layer name: a",
        ),
        (
            "{name: a, admin_layer: {}}, {name: b, admin_layer: {}}",
            "layered_runtime.layers[1]: Too many admin layers specified in LayeredRuntime, at most one may be specified",
        ),
    ] {
        assert_eq!(
            refused(&format!("layered_runtime: {{layers: [{layers}]}}")),
            error
        );
    }
}

#[test]
fn a_pipe_that_no_socket_can_have_is_refused() {
    let path = format!("/tmp/{}", "a".repeat(120));
    assert_eq!(
        refused(&format!("admin: {{address: {{pipe: {{path: {path}}}}}}}")),
        format!(
            "admin.address.pipe.path: Path \"{path}\" exceeds maximum UNIX domain socket path size of 108."
        )
    );
}

#[test]
fn what_is_accepted_without_effect_must_be_something_that_envoy_accepts() {
    let unknown = |name: &str, kind: &str| {
        format!("Didn't find a registered implementation for '{name}' with type URL: '{kind}'")
    };
    let typed = "typed_config: {'@type': type.googleapis.com/google.protobuf.Struct}";
    let statsd = "stats_sinks: [{name: s, typed_config: {'@type': type.googleapis.com/envoy.config.metrics.v3.StatsdSink, \
                  tcp_cluster_name: x}}]";
    let zipkin = "tracing: {http: {name: z, typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig}}}";
    let local = |name: &str| {
        format!(
            "static_resources: {{clusters: [{CLUSTER}]}}\ncluster_manager: {{local_cluster_name: {name}}}"
        )
    };
    for fine in [
        statsd,
        zipkin,
        "tracing: {}",
        "application_log_config: {}",
        "stats_config: {}",
        &local("x"),
    ] {
        assert!(parse(fine).is_ok(), "{fine}");
    }
    for (text, error) in [
        (
            "stats_sinks: [{name: s}]".to_owned(),
            format!("stats_sinks[0]: {}", unknown("s", "")),
        ),
        (
            format!("stats_sinks: [{{name: s, {typed}}}]"),
            format!("stats_sinks[0]: {}", unknown("s", "google.protobuf.Struct")),
        ),
        (
            format!("bootstrap_extensions: [{{name: e, {typed}}}]"),
            format!(
                "bootstrap_extensions[0]: {}",
                unknown("e", "google.protobuf.Struct")
            ),
        ),
        (
            "bootstrap_extensions: [{name: e}]".to_owned(),
            "bootstrap_extensions[0].typed_config: value is required".to_owned(),
        ),
        (
            format!("bootstrap_extensions: [{{{typed}}}]"),
            "bootstrap_extensions[0].name: value length must be at least 1 characters".to_owned(),
        ),
        (
            "tracing: {http: {name: t}}".to_owned(),
            format!("tracing.http: {}", unknown("t", "")),
        ),
        (
            "stats_config: {stats_matcher: {}}".to_owned(),
            "stats_config.stats_matcher.stats_matcher: value is required".to_owned(),
        ),
        (
            "application_log_config: {log_format: {}}".to_owned(),
            "application_log_config.log_format.log_format: value is required".to_owned(),
        ),
        (
            local("nope"),
            "cluster_manager.local_cluster_name: local cluster 'nope' must be defined".to_owned(),
        ),
    ] {
        assert_eq!(refused(&text), error, "{text}");
    }
}
