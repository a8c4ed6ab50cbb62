//! Tables of listeners.

use std::path::PathBuf;

use super::super::{FilterChainMatch, SourceType};
use super::*;
use crate::config::stub::{self, NETWORK, ROUTER};
use crate::pb;

fn parse(yaml: &str) -> Result<Listener, String> {
    let proto = pb::from_yaml::<proto::Listener>(yaml).expect("a Listener");
    Listener::parse(proto, &stub::context()).map_err(|error| error.to_string())
}

/// A connection manager as a network filter.
fn manager() -> String {
    format!(
        "{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, route_config: {{}}, http_filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/{ROUTER}}}}}]}}}}"
    )
}

/// A TCP proxy as a network filter.
fn tcp() -> String {
    "{name: tcp, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: c}}".to_owned()
}

fn chain(rest: &str) -> String {
    format!("{{filters: [{}], {rest}}}", manager())
}

const ADDRESS: &str = "address: {socket_address: {address: 127.0.0.1, port_value: 80}}";

fn with_chains(chains: &[String], rest: &str) -> Result<Listener, String> {
    parse(&format!(
        "{{name: l, {ADDRESS}, filter_chains: [{}], {rest}}}",
        chains.join(", ")
    ))
}

/// A listener with one chain, and more.
fn with(rest: &str) -> Result<Listener, String> {
    with_chains(&[chain("")], rest)
}

#[test]
fn unset_fields_are_envoys_defaults() {
    let listener = with("").expect("valid");
    assert_eq!(
        listener.addresses,
        [Address::Socket("127.0.0.1:80".parse().expect("an address"))]
    );
    assert_eq!(listener.buffer_limit, 1 << 20);
    assert!(listener.bind_to_port && listener.reuse_port && !listener.drain_modify_only);
    assert_eq!(listener.direction, TrafficDirection::Unspecified);
    assert_eq!(
        listener.filter_chains[0].matcher,
        FilterChainMatch::default()
    );
    assert!(listener.default_filter_chain.is_none() && listener.backlog.is_none());
}

#[test]
fn a_nameless_listener_is_called_by_its_address() {
    let listener = parse(&format!("{{{ADDRESS}, filter_chains: [{}]}}", chain(""))).expect("valid");
    assert_eq!(&*listener.name, "127.0.0.1:80");
}

#[test]
fn a_default_chain_is_enough() {
    // As Envoy Gateway sends plain-text listeners.
    let listener = parse(&format!(
        "
name: default/gateway-1/http
address: {{socket_address: {{address: 0.0.0.0, port_value: 10080}}}}
default_filter_chain: {}
max_connections_to_accept_per_socket_event: 1
per_connection_buffer_limit_bytes: 32768
",
        chain("name: default/gateway-1/http")
    ))
    .expect("valid");
    assert!(listener.filter_chains.is_empty());
    let chain = listener.default_filter_chain.expect("a default chain");
    assert_eq!(&*chain.name, "default/gateway-1/http");
    assert_eq!(listener.buffer_limit, 32768);
    assert_eq!(
        chain.http().map(|http| http.options.buffer_limit),
        Some(32768)
    );
    assert_eq!(
        parse(&format!("{{name: l, {ADDRESS}}}")),
        Err("filter_chains: no filter chains specified".to_owned())
    );
}

#[test]
fn sockets_are_read() {
    let listener = with("additional_addresses: [{address: {socket_address: {address: '::1', port_value: 81}}}], tcp_backlog_size: 7, enable_reuse_port: false, drain_type: MODIFY_ONLY, traffic_direction: OUTBOUND, bind_to_port: false, per_connection_buffer_limit_bytes: 0").expect("valid");
    assert_eq!(listener.addresses.len(), 2);
    assert_eq!(listener.backlog, Some(7));
    assert!(!listener.reuse_port && listener.drain_modify_only && !listener.bind_to_port);
    assert_eq!(listener.direction, TrafficDirection::Outbound);
    assert_eq!(listener.buffer_limit, u32::MAX as usize);
    assert!(with("deprecated_v1: {bind_to_port: false}").is_ok_and(|l| !l.bind_to_port));

    let pipe = parse(&format!(
        "{{address: {{pipe: {{path: /run/a.sock, mode: 432}}}}, filter_chains: [{}]}}",
        chain("")
    ))
    .expect("valid");
    assert_eq!(
        pipe.addresses,
        [Address::Pipe(PathBuf::from("/run/a.sock"))]
    );
    assert_eq!(pipe.pipe_mode, Some(0o660));
    let both = parse(&format!(
        "{{address: {{socket_address: {{address: '::', port_value: 80, ipv4_compat: true}}}}, filter_chains: [{}]}}",
        chain("")
    ));
    assert!(both.is_ok_and(|l| l.ipv4_compat));
}

#[test]
fn a_match_is_read() {
    let listener = with_chains(
        &[chain("filter_chain_match: {destination_port: 80, prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 8}], direct_source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 9}], source_type: EXTERNAL, source_prefix_ranges: [{address_prefix: '::1', prefix_len: 128}], source_ports: [5], server_names: [A.test, '*.b.test'], transport_protocol: raw_buffer, application_protocols: [h2c]}")],
        "",
    )
    .expect("valid");
    let matcher = &listener.filter_chains[0].matcher;
    assert_eq!(matcher.destination_port, Some(80));
    assert_eq!(
        matcher.destination_ranges[0].address.to_string(),
        "10.0.0.0"
    );
    assert_eq!(matcher.direct_source_ranges[0].prefix_len, 9);
    assert_eq!(matcher.source_type, SourceType::External);
    assert_eq!(matcher.source_ranges[0].prefix_len, 128);
    assert_eq!(matcher.source_ports, [5]);
    assert_eq!(
        matcher.server_names,
        [Box::from("a.test"), Box::from("*.b.test")]
    );
    assert_eq!(&*matcher.transport_protocol, "raw_buffer");
    assert_eq!(matcher.application_protocols, [Box::from("h2c")]);
}

#[test]
fn chains_must_be_told_apart() {
    let matched = |name: &str, matcher: &str| {
        chain(&format!("name: {name}, filter_chain_match: {{{matcher}}}"))
    };
    let same = "filter_chains[1].filter_chain_match: filter chain 'b' has the same matching rules defined as 'a'";
    let overlap = "filter_chains[1].filter_chain_match: multiple filter chains with overlapping matching rules are defined";
    for (first, second, error) in [
        ("", "", same),
        ("destination_port: 5", "destination_port: 5", same),
        ("source_ports: [5, 6]", "source_ports: [6, 7]", overlap),
        (
            "prefix_ranges: [{address_prefix: 10.0.0.1, prefix_len: 8}]",
            "prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}, {address_prefix: 11.0.0.0, prefix_len: 8}]",
            overlap,
        ),
    ] {
        let listener = with_chains(&[matched("a", first), matched("b", second)], "");
        assert_eq!(listener, Err(error.to_owned()), "{first} | {second}");
    }
    // A longer prefix is more specific, not the same; names may repeat.
    for (first, second) in [
        ("destination_port: 5", ""),
        (
            "prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]",
            "prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 16}]",
        ),
        ("server_names: [a.test]", "server_names: ['*.test']"),
    ] {
        assert!(with_chains(&[matched("a", first), matched("a", second)], "").is_ok());
    }
    let ports = |from: u16| {
        (from..from + 2000)
            .map(|p| p.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let names = (0..1000)
        .map(|n| format!("n{n}.test"))
        .collect::<Vec<_>>()
        .join(", ");
    let huge = matched(
        "a",
        &format!("source_ports: [{}], server_names: [{names}]", ports(1)),
    );
    assert!(with_chains(&[huge], "").is_err_and(|error| error.contains("combinations")));
}

#[test]
fn inspectors_do_nothing_where_nothing_depends_on_them() {
    let tls = "listener_filters: [{name: envoy.filters.listener.tls_inspector, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]";
    let http = "listener_filters: [{name: h, filter_disabled: {any_match: true}, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}]";
    let of = |matcher: &str, filters: &str| {
        with_chains(
            &[chain(&format!("filter_chain_match: {{{matcher}}}"))],
            filters,
        )
        .map(drop)
        .map_err(|error| error.split(": ").next().unwrap_or_default().to_owned())
    };
    assert_eq!(of("transport_protocol: raw_buffer", tls), Ok(()));
    assert_eq!(of("destination_port: 80", http), Ok(()));
    assert_eq!(of("server_names: [a.test]", ""), Ok(()));
    for (matcher, filters, field) in [
        ("server_names: [a.test]", tls, "server_names"),
        ("transport_protocol: tls", tls, "transport_protocol"),
        (
            "application_protocols: [h2c]",
            http,
            "application_protocols",
        ),
    ] {
        assert_eq!(
            of(matcher, filters),
            Err(format!("filter_chains[0].filter_chain_match.{field}"))
        );
    }
}

#[test]
fn listener_filters_that_tell_who_the_client_is_are_refused() {
    for (kind, error) in [
        (
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            "not supported: 'x' (envoy.extensions.filters.listener.original_dst.v3.OriginalDst) is not implemented by this build yet",
        ),
        (
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
            "not supported: 'x' (envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol) is not implemented by this build yet",
        ),
        (
            "google.protobuf.Empty",
            "Didn't find a registered implementation for 'x' with type URL: 'google.protobuf.Empty'",
        ),
    ] {
        let filters = format!(
            "listener_filters: [{{name: x, typed_config: {{'@type': type.googleapis.com/{kind}}}}}]"
        );
        assert_eq!(
            with(&filters),
            Err(format!("listener_filters[0].typed_config: {error}"))
        );
    }
}

#[test]
fn only_the_connection_manager_ends_a_chain() {
    let filters = |list: &[String]| {
        with_chains(&[format!("{{filters: [{}]}}", list.join(", "))], "").map(drop)
    };
    let typed =
        |kind: &str| format!("{{name: x, typed_config: {{'@type': type.googleapis.com/{kind}}}}}");
    // Istio's telemetry stands before the manager and does nothing.
    let exchange = "{name: istio.metadata_exchange, typed_config: {'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, value: {protocol: istio-peer-exchange}}}".to_owned();
    assert_eq!(filters(&[exchange.clone(), manager()]), Ok(()));
    let in_struct = format!(
        "{{name: x, typed_config: {{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, value: {{stat_prefix: s, route_config: {{}}, http_filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/{ROUTER}}}}}]}}}}}}"
    );
    assert_eq!(filters(&[in_struct]), Ok(()));
    assert_eq!(filters(&[exchange.clone(), typed(NETWORK), tcp()]), Ok(()));
    assert_eq!(filters(&[typed(NETWORK), manager()]), Ok(()));
    for (list, error) in [
        (
            vec![],
            "filters: not supported: a filter chain without an HTTP connection manager or a TCP proxy",
        ),
        (
            vec![manager(), manager()],
            "filters[0]: Error: terminal filter named hcm of type envoy.filters.network.http_connection_manager must be the last filter in a network filter chain.",
        ),
        (
            vec![exchange],
            "filters[0]: Error: non-terminal filter named istio.metadata_exchange of type envoy.tcp.metadataexchange.config.MetadataExchange is the last filter in a network filter chain.",
        ),
        (
            vec![typed(
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            )],
            "filters[0].typed_config.stat_prefix: value length must be at least 1 characters",
        ),
        (
            vec![
                typed("envoy.extensions.filters.network.rbac.v3.RBAC"),
                manager(),
            ],
            "filters[0]: not supported: 'x' (envoy.extensions.filters.network.rbac.v3.RBAC) is not implemented by this build yet",
        ),
        (
            vec![tcp(), manager()],
            "filters[0]: Error: terminal filter named tcp of type envoy.filters.network.tcp_proxy must be the last filter in a network filter chain.",
        ),
        (
            vec![typed(NETWORK)],
            "filters[0]: Error: non-terminal filter named x of type envoy.extensions.filters.network.wasm.v3.Wasm is the last filter in a network filter chain.",
        ),
        (
            vec![typed("google.protobuf.Empty")],
            "filters[0]: Didn't find a registered implementation for 'x' with type URL: 'google.protobuf.Empty'",
        ),
        (
            vec!["{name: no.such.filter}".to_owned()],
            "filters[0]: Didn't find a registered implementation for 'no.such.filter' with type URL: ''",
        ),
    ] {
        assert_eq!(filters(&list), Err(format!("filter_chains[0].{error}")));
    }
}

#[test]
fn only_plain_text_is_spoken() {
    let socket =
        |socket: &str| with_chains(&[chain(&format!("transport_socket: {socket}"))], "").map(drop);
    assert_eq!(
        socket(
            "{name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}"
        ),
        Ok(())
    );
    for (yaml, error) in [
        (
            "{name: envoy.transport_sockets.tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}",
            "not supported: 'envoy.transport_sockets.tls' (envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext) is not implemented by this build yet",
        ),
        (
            "{name: envoy.transport_sockets.raw_buffer}",
            "Didn't find a registered implementation for 'envoy.transport_sockets.raw_buffer' with type URL: ''",
        ),
    ] {
        assert_eq!(
            socket(yaml),
            Err(format!("filter_chains[0].transport_socket: {error}"))
        );
    }
}

#[test]
fn wrong_values_are_refused_by_field() {
    for (rest, error) in [
        (
            "use_original_dst: true",
            "use_original_dst: not supported: not implemented by this build yet",
        ),
        (
            "transparent: true",
            "transparent: not supported: not implemented by this build yet",
        ),
        (
            "internal_listener: {}",
            "internal_listener: not supported: not implemented by this build yet",
        ),
        (
            "api_listener: {}",
            "api_listener: not supported: not implemented by this build yet",
        ),
        (
            "filter_chain_matcher: {}",
            "filter_chain_matcher: not supported: not implemented by this build yet",
        ),
        (
            "connection_balance_config: {}",
            "connection_balance_config.balance_type: value is required",
        ),
        (
            "max_connections_to_accept_per_socket_event: 0",
            "max_connections_to_accept_per_socket_event: value must be greater than 0",
        ),
        (
            "additional_addresses: [{}]",
            "additional_addresses[0].address: value is required",
        ),
        (
            "listener_filters_timeout: -1s",
            "listener_filters_timeout: Invalid duration: Expected positive duration: seconds: -1, nanos: 0",
        ),
    ] {
        assert_eq!(with(rest), Err(error.to_owned()), "{rest}");
    }
    for (address, error) in [
        (
            "{socket_address: {address: localhost, port_value: 80}}",
            "address.socket_address.address: malformed IP address: localhost",
        ),
        (
            "{pipe: {path: '@a', mode: 438}}",
            "address.pipe: Cannot set mode for Abstract AF_UNIX sockets",
        ),
        (
            "{pipe: {path: /a, mode: 512}}",
            "address.pipe.mode: value must be less than or equal to 511",
        ),
    ] {
        let listener = parse(&format!(
            "{{address: {address}, filter_chains: [{}]}}",
            chain("")
        ));
        assert_eq!(listener, Err(error.to_owned()), "{address}");
    }
    for (matcher, error) in [
        (
            "destination_port: 0",
            "destination_port: value must be inside range [1, 65535]",
        ),
        (
            "source_ports: [70000]",
            "source_ports[0]: value must be inside range [1, 65535]",
        ),
        (
            "server_names: ['*a.test']",
            "server_names[0]: partial wildcards are not supported in \"server_names\"",
        ),
        (
            "suffix_len: 1",
            "suffix_len: not supported: Envoy does not implement it either",
        ),
        (
            "prefix_ranges: [{address_prefix: x}]",
            "prefix_ranges[0].address_prefix: malformed IP address: x",
        ),
    ] {
        let listener = with_chains(&[chain(&format!("filter_chain_match: {{{matcher}}}"))], "");
        assert_eq!(
            listener,
            Err(format!("filter_chains[0].filter_chain_match.{error}")),
            "{matcher}"
        );
    }
}

#[test]
fn a_route_that_leads_nowhere_is_named_by_its_whole_path() {
    let known = |_: &str| false;
    let context = stub::context().with_clusters(&known);
    let filter = manager().replace(
        "route_config: {}",
        "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: nope}}]}]}",
    );
    let yaml = format!("{{{ADDRESS}, default_filter_chain: {{filters: [{filter}]}}}}");
    let proto = pb::from_yaml::<proto::Listener>(&yaml).expect("a Listener");
    assert_eq!(
        Listener::parse(proto, &context).map_err(|error| error.to_string()),
        Err("default_filter_chain.filters[0].typed_config.route_config.virtual_hosts[0].routes[0]: route: unknown cluster 'nope'".to_owned())
    );
}
