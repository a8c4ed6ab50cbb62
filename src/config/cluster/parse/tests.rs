//! Tables of clusters.

use std::time::Duration;

use super::super::{
    Balancer, ConfigSource, Discovery, DnsFamily, SourceSpecifier, UpstreamProtocol,
};
use super::*;
use crate::config::stub;
use crate::pb;

fn parse(yaml: &str) -> Result<Cluster, String> {
    let proto = pb::from_yaml::<proto::Cluster>(yaml).expect("a Cluster");
    Cluster::parse(proto, &stub::context()).map_err(|error| error.to_string())
}

fn with(fields: &str) -> Result<Cluster, String> {
    parse(&format!("{{name: c, {fields}}}"))
}

/// A cluster with `HttpProtocolOptions`.
fn with_http(options: &str) -> Result<Cluster, String> {
    with(&format!(
        "typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {options}}}}}"
    ))
}

/// A cluster with one typed policy after another.
fn with_policies(policies: &[&str]) -> Result<Cluster, String> {
    let list: Vec<String> = policies
        .iter()
        .map(|policy| {
            format!("{{typed_extension_config: {{name: n, typed_config: {{'@type': type.googleapis.com/{policy}}}}}}}")
        })
        .collect();
    with(&format!(
        "load_balancing_policy: {{policies: [{}]}}",
        list.join(", ")
    ))
}

fn assignment(address: &str) -> String {
    format!(
        "load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: 80}}}}}}}}]}}]}}"
    )
}

const DEFAULT_LEAST: Balancer = Balancer::LeastRequest {
    choice_count: 2,
    active_request_bias: 1.0,
};

#[test]
fn unset_fields_are_envoys_defaults() {
    let cluster = parse("name: c").expect("valid");
    assert_eq!((&*cluster.name, &*cluster.stat_name), ("c", "c"));
    assert!(
        matches!(&cluster.discovery, Discovery::Static(endpoints) if endpoints.localities.is_empty())
    );
    assert_eq!(cluster.balancer, Balancer::RoundRobin);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.buffer_limit, 1 << 20);
    assert_eq!(cluster.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(cluster.healthy_panic_threshold, 50.0);
    assert!(matches!(cluster.protocol, UpstreamProtocol::Http1(_)));
    assert_eq!(cluster.dns.refresh, Duration::from_secs(5));
    assert_eq!(
        cluster.dns.failure_refresh,
        (Duration::from_secs(5), Duration::from_secs(5))
    );
    assert_eq!(cluster.dns.family, DnsFamily::Auto);
    assert!(cluster.wait_for_warm_on_init && !cluster.locality_weighted);
    assert!(cluster.max_requests_per_connection.is_none() && cluster.tcp_keepalive.is_none());
}

#[test]
fn hosts_come_from_five_kinds_of_discovery() {
    for (kind, expected) in [
        ("type: STATIC", "static"),
        ("cluster_type: {name: envoy.cluster.static}", "static"),
        ("type: STRICT_DNS", "strict"),
        ("cluster_type: {name: envoy.cluster.strict_dns}", "strict"),
        ("type: LOGICAL_DNS", "logical"),
        (
            "cluster_type: {name: envoy.cluster.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster}}",
            "strict",
        ),
        (
            "cluster_type: {name: envoy.cluster.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, all_addresses_in_single_endpoint: true}}",
            "logical",
        ),
    ] {
        let cluster = with(&format!("{kind}, {}", assignment("10.0.0.1"))).expect("valid");
        let found = match cluster.discovery {
            Discovery::Static(_) => "static",
            Discovery::StrictDns(_) => "strict",
            Discovery::LogicalDns(_) => "logical",
            Discovery::Eds { .. } => "eds",
        };
        assert_eq!(found, expected, "{kind}");
    }
    let eds = |rest: &str| {
        with(&format!(
            "type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}, {rest}}}"
        ))
        .map(|cluster| cluster.discovery)
    };
    let source = ConfigSource {
        specifier: SourceSpecifier::Ads,
        initial_fetch_timeout: Some(Duration::from_secs(15)),
    };
    for (rest, name) in [("", "c"), ("service_name: s", "s")] {
        assert_eq!(
            eds(rest),
            Ok(Discovery::Eds {
                service_name: name.into(),
                source: source.clone()
            })
        );
    }
}

#[test]
fn wrong_discovery_is_refused() {
    let malformed = "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address: localhost. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'";
    let two = "load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a, port_value: 80}}}}, {endpoint: {address: {socket_address: {address: b, port_value: 80}}}}]}]}";
    let single = "load_assignment: LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint";
    for (fields, error) in [
        (assignment("localhost"), malformed),
        (format!("type: LOGICAL_DNS, {two}"), single),
        ("type: LOGICAL_DNS".to_owned(), single),
        ("type: EDS".to_owned(), "cannot create an EDS cluster without an EDS config"),
        (
            "type: EDS, eds_cluster_config: {}".to_owned(),
            "eds_cluster_config.eds_config: value is required",
        ),
        (
            "eds_cluster_config: {eds_config: {ads: {}}}".to_owned(),
            "eds_cluster_config set in a non-EDS cluster",
        ),
        (
            "type: ORIGINAL_DST".to_owned(),
            "type: not supported: ORIGINAL_DST is not implemented by this build yet",
        ),
        (
            "cluster_type: {name: foo}".to_owned(),
            "cluster_type: Didn't find a registered cluster factory implementation for name: 'foo'",
        ),
        (
            "cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a]}}".to_owned(),
            "cluster_type: not supported: 'envoy.clusters.aggregate' (envoy.extensions.clusters.aggregate.v3.ClusterConfig) is not implemented by this build yet",
        ),
    ] {
        assert_eq!(with(&fields), Err(error.to_owned()), "{fields}");
    }
    assert!(with(&format!("type: STRICT_DNS, {two}")).is_ok());
}

#[test]
fn dns_is_asked_as_configured() {
    // As Istio sends a ServiceEntry with DNS resolution.
    let cluster = with(&format!(
        "type: STRICT_DNS, {}, dns_refresh_rate: 60s, respect_dns_ttl: true, dns_lookup_family: V4_ONLY, dns_jitter: 0.1s, dns_failure_refresh_rate: {{base_interval: 2s}}, typed_dns_resolver_config: {{name: envoy.network.dns_resolver.cares, typed_config: {{'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [{{socket_address: {{address: 10.0.0.53, port_value: 53}}}}], udp_max_queries: 100}}}}",
        assignment("a.test")
    ))
    .expect("valid");
    assert_eq!(cluster.dns.refresh, Duration::from_secs(60));
    assert!(cluster.dns.respect_ttl);
    assert_eq!(cluster.dns.family, DnsFamily::V4Only);
    assert_eq!(cluster.dns.jitter, Duration::from_millis(100));
    assert_eq!(
        cluster.dns.failure_refresh,
        (Duration::from_secs(2), Duration::from_secs(20))
    );
    assert_eq!(
        cluster.dns.resolvers,
        ["10.0.0.53:53".parse().expect("an address")]
    );
    // As Envoy Gateway sends it.
    let typed = with(&format!(
        "cluster_type: {{name: envoy.cluster.dns, typed_config: {{'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, dns_lookup_family: V4_PREFERRED, dns_refresh_rate: 30s, respect_dns_ttl: true}}}}, {}",
        assignment("a.test")
    ))
    .expect("valid");
    assert_eq!(typed.dns.family, DnsFamily::V4Preferred);
    assert_eq!(typed.dns.refresh, Duration::from_secs(30));
    for (fields, error) in [
        (
            "dns_refresh_rate: 0.001s",
            "dns_refresh_rate: value must be greater than 1ms",
        ),
        (
            "dns_failure_refresh_rate: {base_interval: 5s, max_interval: 1s}",
            "dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval",
        ),
        (
            "dns_failure_refresh_rate: {}",
            "dns_failure_refresh_rate.base_interval: value is required",
        ),
    ] {
        assert_eq!(with(fields), Err(error.to_owned()));
    }
}

#[test]
fn balancers_are_named_in_two_ways() {
    let policy = "envoy.extensions.load_balancing_policies";
    for (cluster, balancer, weighted) in [
        (with("lb_policy: ROUND_ROBIN"), Balancer::RoundRobin, false),
        (
            with("lb_policy: RANDOM, least_request_lb_config: {}"),
            Balancer::Random,
            false,
        ),
        (with("lb_policy: LEAST_REQUEST"), DEFAULT_LEAST, false),
        (
            with(
                "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 5, active_request_bias: {default_value: 0.5, runtime_key: k}}",
            ),
            Balancer::LeastRequest {
                choice_count: 5,
                active_request_bias: 0.5,
            },
            false,
        ),
        (
            with("lb_policy: LEAST_REQUEST, common_lb_config: {locality_weighted_lb_config: {}}"),
            DEFAULT_LEAST,
            true,
        ),
        (
            with_policies(&[&format!("{policy}.round_robin.v3.RoundRobin")]),
            Balancer::RoundRobin,
            false,
        ),
        (
            with_policies(&[&format!("{policy}.random.v3.Random")]),
            Balancer::Random,
            false,
        ),
        (
            // As Envoy Gateway sends it.
            with_policies(&[&format!(
                "{policy}.least_request.v3.LeastRequest, locality_lb_config: {{locality_weighted_lb_config: {{}}}}"
            )]),
            DEFAULT_LEAST,
            true,
        ),
        (
            // The list is there for those who do not have its first.
            with_policies(&[
                "google.protobuf.Empty",
                &format!("{policy}.round_robin.v3.RoundRobin"),
            ]),
            Balancer::RoundRobin,
            false,
        ),
        (
            // The typed form wins.
            with(&format!(
                "lb_policy: RING_HASH, load_balancing_policy: {{policies: [{{typed_extension_config: {{name: n, typed_config: {{'@type': type.googleapis.com/{policy}.random.v3.Random}}}}}}]}}"
            )),
            Balancer::Random,
            false,
        ),
    ] {
        assert_eq!(
            cluster.map(|cluster| (cluster.balancer, cluster.locality_weighted)),
            Ok((balancer, weighted))
        );
    }
    for (cluster, error) in [
        (
            with("lb_policy: RING_HASH"),
            "lb_policy: not supported: RING_HASH is not implemented by this build yet",
        ),
        (
            with("lb_policy: CLUSTER_PROVIDED"),
            "lb_policy: not supported: CLUSTER_PROVIDED is not implemented by this build yet",
        ),
        (
            with("lb_policy: LOAD_BALANCING_POLICY_CONFIG"),
            "cluster: field load_balancing_policy need to be set",
        ),
        (
            with("lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 1}"),
            "least_request_lb_config.choice_count: value must be greater than or equal to 2",
        ),
        (
            with_policies(&[&format!("{policy}.maglev.v3.Maglev")]),
            "load_balancing_policy: cluster: didn't find a registered load balancer factory implementation for cluster: 'c' with names from [n (envoy.extensions.load_balancing_policies.maglev.v3.Maglev)]",
        ),
        (
            with_policies(&[&format!(
                "{policy}.least_request.v3.LeastRequest, enable_full_scan: true"
            )]),
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.enable_full_scan: not supported: not implemented by this build yet",
        ),
    ] {
        assert_eq!(cluster, Err(error.to_owned()));
    }
}

#[test]
fn the_protocol_is_named_in_two_ways() {
    let kind = |cluster: Result<Cluster, String>| {
        cluster.map(|cluster| match cluster.protocol {
            UpstreamProtocol::Http1(_) => "1",
            UpstreamProtocol::Http2(_) => "2",
            UpstreamProtocol::Downstream(..) => "downstream",
        })
    };
    assert_eq!(kind(with("")), Ok("1"));
    assert_eq!(kind(with("http2_protocol_options: {}")), Ok("2"));
    assert_eq!(
        kind(with("protocol_selection: USE_DOWNSTREAM_PROTOCOL")),
        Ok("downstream")
    );
    assert_eq!(
        kind(with_http(
            "explicit_http_config: {http_protocol_options: {}}"
        )),
        Ok("1")
    );
    assert_eq!(
        kind(with_http(
            "explicit_http_config: {http2_protocol_options: {}}"
        )),
        Ok("2")
    );
    assert_eq!(
        kind(with_http("use_downstream_protocol_config: {}")),
        Ok("downstream")
    );
    // The typed form wins over the deprecated one.
    assert_eq!(
        kind(parse(
            "{name: c, http2_protocol_options: {}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}}}}"
        )),
        Ok("1")
    );

    let options =
        "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions]";
    for (cluster, error) in [
        (
            with_http(""),
            "upstream_protocol_options: value is required",
        ),
        (
            with_http("explicit_http_config: {}"),
            "explicit_http_config.protocol_config: value is required",
        ),
        (
            with_http("explicit_http_config: {http3_protocol_options: {}}"),
            "explicit_http_config.http3_protocol_options: not supported: not implemented by this build yet",
        ),
        (
            with_http("auto_config: {}"),
            "auto_config: not supported: it needs ALPN, and upstream TLS is not implemented by this build yet",
        ),
        (
            with_http(
                "use_downstream_protocol_config: {http2_protocol_options: {max_concurrent_streams: 0}}",
            ),
            "use_downstream_protocol_config.http2_protocol_options.max_concurrent_streams: value must be inside range [1, 2147483647]",
        ),
        (
            with_http(
                "explicit_http_config: {http_protocol_options: {}}, http_filters: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector}}]",
            ),
            "http_filters: The codec filter is the only valid terminal upstream HTTP filter, use 'envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec'",
        ),
    ] {
        assert_eq!(cluster, Err(format!("{options}.{error}")));
    }
    let filters = |list: &str| {
        let cluster = with_http(&format!(
            "explicit_http_config: {{http_protocol_options: {{}}}}, http_filters: [{list}]"
        ));
        cluster
            .expect("valid")
            .upstream_filters
            .map(|filters| filters.len())
    };
    let codec = "{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}";
    let mutation = "{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}}";
    assert_eq!(filters(""), None, "the router's list holds");
    assert_eq!(filters(codec), Some(0), "no list but its own");
    assert_eq!(filters(&format!("{mutation}, {codec}")), Some(1));
}

#[test]
fn options_of_other_protocols_cannot_have_an_effect() {
    let of = |name: &str| {
        with(&format!(
            "typed_extension_protocol_options: {{{name}: {{'@type': type.googleapis.com/google.protobuf.Empty}}}}"
        ))
        .map(drop)
    };
    assert_eq!(of("envoy.filters.network.redis_proxy"), Ok(()));
    assert_eq!(
        of("envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions"),
        Ok(())
    );
    assert_eq!(
        of("foo"),
        Err("typed_extension_protocol_options: Didn't find a registered network or http filter or protocol options implementation for name: 'foo'".to_owned())
    );
}

#[test]
fn connections_are_made_as_configured() {
    let cluster = with_http(
        "explicit_http_config: {http2_protocol_options: {}}, common_http_protocol_options: {idle_timeout: 0s, max_requests_per_connection: 5, max_stream_duration: 7s, headers_with_underscores_action: DROP_HEADER}",
    )
    .expect("valid");
    assert_eq!(cluster.idle_timeout, None);
    assert_eq!(cluster.max_requests_per_connection, Some(5));
    assert_eq!(cluster.max_stream_duration, Some(Duration::from_secs(7)));
    let cluster = with(
        "alt_stat_name: a, connect_timeout: 1.5s, per_connection_buffer_limit_bytes: 0, max_requests_per_connection: 3, wait_for_warm_on_init: false, upstream_connection_options: {tcp_keepalive: {keepalive_time: 10, keepalive_probes: 3}}, upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}, common_lb_config: {healthy_panic_threshold: {value: 0}}, metadata: {filter_metadata: {istio: {}}}",
    )
    .expect("valid");
    assert_eq!((&*cluster.name, &*cluster.stat_name), ("c", "a"));
    assert_eq!(cluster.connect_timeout, Duration::from_millis(1500));
    assert_eq!(cluster.buffer_limit, u32::MAX as usize);
    assert_eq!(cluster.max_requests_per_connection, Some(3));
    assert!(!cluster.wait_for_warm_on_init && cluster.metadata.is_some());
    let keepalive = cluster.tcp_keepalive.expect("keepalive");
    assert_eq!(
        (keepalive.time, keepalive.probes, keepalive.interval),
        (Some(Duration::from_secs(10)), Some(3), None)
    );
    assert_eq!(
        cluster.source_address,
        Some("127.0.0.6:0".parse().expect("an address"))
    );
    assert_eq!(cluster.healthy_panic_threshold, 0.0);
}

#[test]
fn what_secures_or_routes_and_is_not_done_is_refused() {
    for (fields, error) in [
        (
            "transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}",
            "transport_socket: not supported: 'tls' (envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext) is not implemented by this build yet",
        ),
        (
            "transport_socket_matches: [{name: a}]",
            "transport_socket_matches: not supported: upstream TLS is not implemented by this build yet",
        ),
        (
            "health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]",
            "health_checks: not supported: active health checks are not implemented by this build yet",
        ),
        (
            "lb_subset_config: {subset_selectors: [{keys: [a]}]}",
            "lb_subset_config: not supported: not implemented by this build yet",
        ),
        (
            "connection_pool_per_downstream_connection: true",
            "connection_pool_per_downstream_connection: not supported: not implemented by this build yet",
        ),
        (
            "upstream_bind_config: {source_address: {address: localhost, port_value: 0}}",
            "upstream_bind_config.source_address.address: malformed IP address: localhost",
        ),
        (
            "filters: [{name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}]",
            "filters[0]: Didn't find a registered implementation for 'x' with type URL: 'google.protobuf.Empty'",
        ),
        (
            "connect_timeout: 0s",
            "connect_timeout: value must be greater than 0s",
        ),
        (
            "cleanup_interval: 0s",
            "cleanup_interval: value must be greater than 0s",
        ),
        (
            "common_lb_config: {healthy_panic_threshold: {value: 101}}",
            "common_lb_config.healthy_panic_threshold.value: value must be inside range [0, 100]",
        ),
    ] {
        assert_eq!(with(fields), Err(error.to_owned()), "{fields}");
    }
    assert_eq!(
        parse("{}"),
        Err("name: value length must be at least 1 characters".to_owned())
    );
}

#[test]
fn what_every_control_plane_sends_is_accepted() {
    for (plane, yaml) in [
        (
            "go-control-plane",
            "{name: cluster-v0-0, type: EDS, connect_timeout: 5s, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}}",
        ),
        (
            "go-control-plane without ADS",
            "{name: cluster-v0-0, type: EDS, connect_timeout: 5s, eds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds_cluster}}]}, resource_api_version: V3}}}",
        ),
        (
            "Istio without mutual TLS",
            "{name: 'outbound|80||a.default.svc.cluster.local', type: EDS, connect_timeout: 10s, lb_policy: LEAST_REQUEST, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}, service_name: 'outbound|80||a.default.svc.cluster.local'}, circuit_breakers: {thresholds: [{max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295, track_remaining: true}]}, common_lb_config: {locality_weighted_lb_config: {}}, metadata: {filter_metadata: {istio: {services: [{host: a}]}}}, filters: [{name: istio.metadata_exchange, typed_config: {'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, value: {protocol: istio-peer-exchange, enable_discovery: true}}}]}",
        ),
        (
            "Envoy Gateway",
            "{name: httproute/default/backend/rule/0, type: EDS, connect_timeout: 10s, common_lb_config: {}, circuit_breakers: {thresholds: [{max_retries: 1024}]}, dns_lookup_family: V4_PREFERRED, ignore_health_on_host_removal: true, per_connection_buffer_limit_bytes: 32768, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}, service_name: httproute/default/backend/rule/0}, load_balancing_policy: {policies: [{typed_extension_config: {name: envoy.load_balancing_policies.least_request, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, locality_lb_config: {locality_weighted_lb_config: {}}}}}]}}",
        ),
        (
            "Contour",
            "{name: default/kuard/8080/da39a3ee5e, alt_stat_name: default_kuard_8080, type: EDS, connect_timeout: 2s, lb_policy: ROUND_ROBIN, common_lb_config: {healthy_panic_threshold: {}}, eds_cluster_config: {service_name: default/kuard, eds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: contour, authority: contour}}]}, resource_api_version: V3}}, circuit_breakers: {per_host_thresholds: [{max_connections: 5}]}}",
        ),
        (
            "Kuma without mutual TLS",
            "{name: backend, alt_stat_name: backend, type: EDS, connect_timeout: 5s, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}, outlier_detection: {consecutive_5xx: 5, max_ejection_percent: 20}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {idle_timeout: 3600s}, explicit_http_config: {http2_protocol_options: {}}}}}",
        ),
        (
            "Consul",
            "{name: local_app, type: STATIC, connectTimeout: 5s, outlierDetection: {}, commonLbConfig: {healthyPanicThreshold: {}}, loadAssignment: {clusterName: local_app, endpoints: [{lbEndpoints: [{endpoint: {address: {socketAddress: {address: 127.0.0.1, portValue: 8080}}}}]}]}}",
        ),
    ] {
        let cluster = parse(yaml);
        assert!(cluster.is_ok(), "{plane}: {cluster:?}");
    }
}
