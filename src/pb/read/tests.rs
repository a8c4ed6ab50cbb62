//! Tests of `pb::read`.

use super::scalar::duration;
use super::*;
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::Node as PbNode;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::pb::google::protobuf::value::Kind as ValueKind;

fn error(text: &str) -> String {
    from_yaml::<Bootstrap>(text)
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn nested_any_becomes_bytes_that_the_typed_message_reads() {
    let listener: Listener = from_yaml(
        r#"
name: l
address: {socket_address: {address: 127.0.0.1, port_value: 0644}}
filterChains:
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: yes
      streamIdleTimeout: 1.5s
      http_filters:
      - name: router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: off}
"#,
    )
    .unwrap();
    use crate::pb::envoy::config::listener::v3::filter::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = &listener.filter_chains[0].filters[0].config_type
    else {
        panic!("no typed_config")
    };
    let hcm: HttpConnectionManager = crate::pb::unpack(any).unwrap();
    assert_eq!(hcm.stat_prefix, "yes");
    let timeout = hcm.stream_idle_timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (1, 500_000_000));
    assert_eq!(hcm.http_filters.len(), 1);
    assert_eq!(
        crate::pb::to_json(&listener)["address"]["socket_address"]["port_value"],
        420,
        "a leading zero is octal, as in yaml-cpp"
    );
}

#[test]
fn errors_name_field_type_line_and_value() {
    assert_eq!(
        error(
            "admin:\n  address:\n    socket_address: {address: 127.0.0.1,\n      port_value: x}\n"
        ),
        "Unable to parse JSON as proto (INVALID_ARGUMENT: invalid JSON in envoy.config.bootstrap.v3.Bootstrap @ \
         admin.address.socket_address.port_value: uint32, near line 4: invalid number: 'x')"
    );
    assert!(error("node: [1]").contains(
        "@ node: message envoy.config.core.v3.Node, near line 1: unexpected '['; expected '{'"
    ));
    assert!(
        error("static_resources: {clusters: [{connect_timeout: 5}]}")
            .contains("clusters[0].connect_timeout: message google.protobuf.Duration")
    );
    assert!(
        error("static_resources: {clusters: [{type: NOPE}]}")
            .contains("unknown enum value: 'NOPE'")
    );
    assert!(error("- a").contains(
        "invalid JSON in envoy.config.bootstrap.v3.Bootstrap, near line 1: unexpected '['"
    ));
    assert!(
        error("bootstrap_extensions: [{typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.nope.v3.Nope}}]")
            .contains("could not find @type 'type.googleapis.com/envoy.extensions.filters.http.nope.v3.Nope'")
    );
    assert!(error("bootstrap_extensions: [{typed_config: {a: b}}]").contains("missing @type"));
}

#[test]
fn unknown_fields_are_collected_with_their_places() {
    let parsed: Parsed<Bootstrap> =
        from_text("foo: 1\nnode:\n  id: a\n  bar: {}\n", Format::Yaml).unwrap();
    assert_eq!(parsed.message.node.as_ref().unwrap().id, "a");
    let texts: Vec<_> = parsed
        .unknown_fields
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        texts,
        [
            "near line 1: no such field: 'foo'",
            "@ node: message envoy.config.core.v3.Node, near line 4: no such field: 'bar'"
        ]
    );
    assert_eq!(
        parsed.strict().unwrap_err().to_string(),
        "Protobuf message (type envoy.config.bootstrap.v3.Bootstrap reason INVALID_ARGUMENT: invalid JSON in \
         envoy.config.bootstrap.v3.Bootstrap, near line 1: no such field: 'foo'; @ node: message \
         envoy.config.core.v3.Node, near line 4: no such field: 'bar') has unknown fields"
    );
}

#[test]
fn keys_of_the_writer_are_allowed_at_the_top_only() {
    let parsed: Parsed<Bootstrap> = from_text(
        "x-base: &b {id: q}\nnode: {<<: *b, x-foo: 1}\n",
        Format::Yaml,
    )
    .unwrap();
    assert_eq!(parsed.message.node.unwrap().id, "q");
    assert_eq!(parsed.unknown_fields.len(), 1);
}

#[test]
fn enums_may_be_written_in_any_case() {
    let cluster: Cluster =
        from_yaml("type: strict_dns\nlb_policy: least-request\ndns_lookup_family: V4_ONLY")
            .unwrap();
    use crate::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(1))
    );
    assert_eq!((cluster.lb_policy, cluster.dns_lookup_family), (1, 1));
}

#[test]
fn an_unknown_enum_value_counts_as_an_unknown_field() {
    let parsed: Parsed<Cluster> = from_text("name: a\nlb_policy: NOPE", Format::Yaml).unwrap();
    assert_eq!(parsed.message.lb_policy, 0);
    assert_eq!(
        parsed.unknown_fields[0].to_string(),
        "@ lb_policy: enum envoy.config.cluster.v3.Cluster.LbPolicy, near line 2: unknown enum value: 'NOPE'"
    );
    assert!(parsed.strict().is_err());
}

#[test]
fn durations_and_wrappers_may_be_objects() {
    let cluster: Cluster = from_yaml(
        "connect_timeout: {seconds: 5, nanos: 250000000}\nper_connection_buffer_limit_bytes: {value: 7}\n\
         cleanup_interval: {}",
    )
    .unwrap();
    let timeout = cluster.connect_timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (5, 250_000_000));
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 7);
    assert_eq!(cluster.cleanup_interval, Some(Default::default()));
    assert!(error("stats_flush_interval: {minutes: 5}").contains("no such field: 'minutes'"));
}

#[test]
fn a_text_of_nothing_is_no_message() {
    for text in [
        "",
        "# all commented out",
        "~",
        "null",
        "---\n---\nnode: {id: a}",
    ] {
        assert!(
            error(text).contains("Unable to convert YAML as JSON"),
            "{text}"
        );
    }
    assert!(from_yaml::<Bootstrap>("{}").is_ok());
}

#[test]
fn unknown_fields_are_found_in_typed_structs() {
    let parsed: Parsed<Bootstrap> = from_text(
        "bootstrap_extensions: [{typed_config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, \
         type_url: type.googleapis.com/envoy.config.core.v3.Node, value: {id: a, locality: {zon: z}}}}]",
        Format::Yaml,
    )
    .unwrap();
    let texts: Vec<_> = parsed
        .unknown_fields
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        texts,
        [
            "@ bootstrap_extensions[0].typed_config.<any>.locality: message envoy.config.core.v3.Locality, near line 1: no such field: 'zon'"
        ]
    );
    // And on the wire.
    use crate::pb::envoy::config::bootstrap::v3::Bootstrap as Message;
    let bytes = prost::Message::encode_to_vec(&parsed.message);
    assert_eq!(
        crate::pb::unknown_fields(&Message::type_url(), &bytes),
        ["bootstrap_extensions[0].typed_config.<any>.locality.zon"]
    );
}

#[test]
fn scalars_mean_what_the_field_means() {
    let node: PbNode = from_yaml(
        "id: y\ncluster: 5\nmetadata: {b: yes, q: 'yes', i: 0x10, f: 1.5, s: 1.2.3, big: 12345678901234567890, \
         n: ~, l: [1, a], m: {k: v}}\nlocality: ~\n",
    )
    .unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("y", "5"));
    assert!(node.locality.is_none());
    let fields = node.metadata.unwrap().fields;
    let kind = |key: &str| fields[key].kind.clone().unwrap();
    assert_eq!(kind("b"), ValueKind::BoolValue(true));
    assert_eq!(kind("q"), ValueKind::StringValue("yes".into()));
    assert_eq!(kind("i"), ValueKind::NumberValue(16.0));
    assert_eq!(kind("f"), ValueKind::NumberValue(1.5));
    assert_eq!(kind("s"), ValueKind::StringValue("1.2.3".into()));
    assert_eq!(
        kind("big"),
        ValueKind::StringValue("12345678901234567890".into())
    );
    assert_eq!(kind("n"), ValueKind::NullValue(0));
    assert!(matches!(kind("l"), ValueKind::ListValue(list) if list.values.len() == 2));
    assert!(matches!(kind("m"), ValueKind::StructValue(_)));
}

#[test]
fn oneofs_wrappers_enums_and_bytes() {
    let cluster: Cluster = from_yaml(
        "name: c\ntype: 3\nlb_policy: RING_HASH\nper_connection_buffer_limit_bytes: '7'\nmax_requests_per_connection: 1e3\n",
    )
    .unwrap();
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 7);
    assert_eq!(cluster.lb_policy, 2);
    let parsed: Parsed<Cluster> =
        from_text("max_requests_per_connection: 3", Format::Yaml).unwrap();
    assert_eq!(
        parsed.deprecated.into_iter().collect::<Vec<_>>(),
        ["envoy.config.cluster.v3.Cluster.max_requests_per_connection"]
    );
    let error = from_yaml::<Cluster>("type: STATIC\ncluster_type: {name: x}").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("'type' and 'cluster_type' exclude each other"),
        "{error}"
    );
    use crate::pb::envoy::config::core::v3::DataSource;
    let source: DataSource = from_yaml("inline_bytes: aGk").unwrap();
    assert_eq!(crate::pb::to_json(&source)["inline_bytes"], "aGk=");
}

#[test]
fn one_mapping_stands_for_a_list_of_one() {
    // Consul's bootstrap has `grpc_services` as an object.
    use crate::pb::envoy::config::core::v3::ApiConfigSource;
    let source: ApiConfigSource =
        from_yaml("grpc_services: {envoy_grpc: {cluster_name: local_agent}}").unwrap();
    assert_eq!(source.grpc_services.len(), 1);
    assert!(from_yaml::<ApiConfigSource>("cluster_names: a").is_err());
}

#[test]
fn json_is_read_with_lines() {
    let error =
        from_text::<Bootstrap>("{\n \"node\": {\n  \"id\": []}}", Format::Json).unwrap_err();
    assert!(
        error.to_string().contains("@ node.id: string, near line 3"),
        "{error}"
    );
    assert_eq!(
        from_text::<Bootstrap>("{}", Format::Json).unwrap().message,
        Bootstrap::default()
    );
}

#[test]
fn nesting_is_bounded() {
    let mut text = String::new();
    for _ in 0..120 {
        text.push_str("{a: ");
    }
    text.push('1');
    text.push_str(&"}".repeat(120));
    assert!(from_yaml::<PbNode>(&format!("metadata: {text}")).is_err());
}

#[test]
fn durations_are_exact() {
    for (text, value) in [
        ("0s", Some((0, 0))),
        ("0.000000001s", Some((0, 1))),
        ("-1.5s", Some((-1, -500_000_000))),
        (".5s", Some((0, 500_000_000))),
        ("s", None),
        ("5", None),
        ("1.0000000001s", None),
        ("1e3s", None),
        ("99999999999999s", None),
    ] {
        assert_eq!(duration(text), value, "{text}");
    }
}

#[test]
fn every_real_bootstrap_and_resource_is_read() {
    let text = include_str!("../../../tests/golden/bootstrap.yaml");
    let parsed = from_text::<Bootstrap>(text, Format::Yaml).unwrap();
    assert_eq!(parsed.unknown_fields, []);
}
