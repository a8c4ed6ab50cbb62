//! Tables of connection managers.

use std::time::Duration;

use super::super::{FilterSource, HeadersWithUnderscores, HttpFilter};
use super::*;
use crate::config::cluster::SourceSpecifier;
use crate::config::stub::{self, BROKEN, CORS, ROUTER};

const ROUTES: &str = "route_config: {name: r}";

fn typed(name: &str) -> String {
    format!("{{'@type': type.googleapis.com/{name}}}")
}

fn filter(name: &str, kind: &str) -> String {
    format!("{{name: {name}, typed_config: {}}}", typed(kind))
}

fn parse(fields: &str) -> Result<HttpConnectionManager, String> {
    let proto = pb::from_yaml::<proto::HttpConnectionManager>(fields).expect("a manager");
    HttpConnectionManager::parse(proto, 1 << 20, &stub::context())
        .map_err(|error| error.to_string())
}

/// A manager with a route table and a router, and more.
fn with(fields: &str) -> Result<HttpConnectionManager, String> {
    parse(&format!(
        "{{stat_prefix: s, {ROUTES}, http_filters: [{}], {fields}}}",
        filter("router", ROUTER)
    ))
}

fn filters(list: &[String]) -> Result<Vec<HttpFilter>, String> {
    parse(&format!(
        "{{stat_prefix: s, {ROUTES}, http_filters: [{}]}}",
        list.join(", ")
    ))
    .map(|manager| manager.http_filters)
}

#[test]
fn a_limit_of_headers_is_no_more_than_a_message_can_have() {
    for (asked, expected) in [("200", 200), ("16385", 16_384), ("4294967295", 16_384)] {
        let fields = format!("common_http_protocol_options: {{max_headers_count: {asked}}}");
        let options = with(&fields).expect("valid").options;
        assert_eq!(options.max_headers_count, expected);
    }
}

#[test]
fn unset_options_are_envoys_defaults() {
    let manager = with("").expect("valid");
    let options = &manager.options;
    assert_eq!(manager.codec, CodecType::Auto);
    assert_eq!(options.server_name, "envoy");
    assert_eq!(options.server_header, ServerHeader::Overwrite);
    assert_eq!(options.max_request_headers, 60 * 1024);
    assert_eq!(options.max_headers_count, 100);
    assert_eq!(options.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(options.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(options.request_timeout, None);
    assert_eq!(options.request_headers_timeout, None);
    assert_eq!(options.max_connection_duration, None);
    assert_eq!(options.drain_timeout, Duration::from_secs(5));
    assert_eq!(options.delayed_close_timeout, Some(Duration::from_secs(1)));
    assert_eq!(options.escaped_slashes, EscapedSlashes::Keep);
    assert_eq!(options.strip_port, StripPort::No);
    assert_eq!(options.underscores, HeadersWithUnderscores::Allow);
    assert!(options.generate_request_id);
    assert!(!options.use_remote_address && !options.normalize_path);
    assert!(!options.keep_client_cert_header && options.via.is_none());
    assert!(options.internal_ranges.is_empty() && !options.internal_unix_sockets);
    assert_eq!(options.buffer_limit, 1 << 20);
    assert!(manager.access_log.is_empty());
}

#[test]
fn a_manager_of_envoy_gateways_is_read() {
    let manager = parse(&format!(
        "
access_log:
- name: envoy.access_loggers.file
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: /dev/stdout
- name: envoy.access_loggers.open_telemetry
  typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig}}
common_http_protocol_options: {{headers_with_underscores_action: REJECT_REQUEST}}
http2_protocol_options: {{initial_connection_window_size: 1048576, initial_stream_window_size: 65536, max_concurrent_streams: 100}}
http_filters:
- {}
- {}
merge_slashes: true
normalize_path: true
path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT
rds: {{config_source: {{ads: {{}}, resource_api_version: V3}}, route_config_name: default/gateway-1/http}}
server_header_transformation: PASS_THROUGH
stat_prefix: http-10080
use_remote_address: true
tracing: {{random_sampling: {{value: 100}}}}
",
        format_args!("{{name: cors, disabled: true, typed_config: {}}}", typed(CORS)),
        filter("envoy.filters.http.router", ROUTER)
    ))
    .expect("valid");
    let options = &manager.options;
    assert_eq!(options.underscores, HeadersWithUnderscores::Reject);
    assert_eq!(options.http2.max_concurrent_streams, 100);
    assert_eq!(options.escaped_slashes, EscapedSlashes::UnescapeAndRedirect);
    assert_eq!(options.server_header, ServerHeader::PassThrough);
    assert!(options.merge_slashes && options.normalize_path && options.use_remote_address);
    assert!(
        matches!(&manager.routes, RouteSource::Rds { name, .. } if &**name == "default/gateway-1/http")
    );
    assert_eq!(manager.access_log.len(), 1);
    assert!(manager.http_filters[0].disabled && !manager.http_filters[1].disabled);
}

#[test]
fn a_manager_of_istios_is_read() {
    let manager = parse(&format!(
        "
stat_prefix: outbound_0.0.0.0_80;
rds: {{config_source: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}, route_config_name: '80'}}
server_name: istio-envoy
use_remote_address: false
forward_client_cert_details: APPEND_FORWARD
set_current_client_cert_details: {{subject: true, dns: true, uri: true}}
upgrade_configs: [{{upgrade_type: websocket}}]
stream_idle_timeout: 0s
normalize_path: true
path_with_escaped_slashes_action: KEEP_UNCHANGED
proxy_100_continue: true
request_id_extension: {{typed_config: {{'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, use_request_id_for_trace_sampling: true}}}}
http_filters:
- name: istio.metadata_exchange
  typed_config: {{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {{}}}}
- name: istio.alpn
  typed_config: {{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, value: {{}}}}
- name: envoy.filters.http.cors
  typed_config: {}
- name: istio.stats
  typed_config: {{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {{disable_host_header_fallback: true}}}}
- name: extenstions.istio.io/wasmplugin/default.plugin
  config_discovery:
    config_source: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}
    type_urls: [type.googleapis.com/{CORS}, type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]
- {}
",
        typed(CORS),
        filter("envoy.filters.http.router", ROUTER)
    ))
    .expect("valid");
    assert_eq!(manager.options.server_name, "istio-envoy");
    assert_eq!(manager.options.stream_idle_timeout, None);
    assert_eq!(manager.options.upgrades, [(Box::from("websocket"), true)]);
    assert!(manager.options.proxy_100_continue && !manager.options.keep_client_cert_header);
    // The mesh's own filters are left out.
    let names: Vec<&str> = manager
        .http_filters
        .iter()
        .map(|filter| &*filter.name)
        .collect();
    assert_eq!(
        names,
        [
            "envoy.filters.http.cors",
            "extenstions.istio.io/wasmplugin/default.plugin",
            "envoy.filters.http.router"
        ]
    );
    assert!(matches!(
        &manager.http_filters[1].config,
        FilterSource::Discovered { source: ConfigSource { specifier: SourceSpecifier::Ads, initial_fetch_timeout: None }, type_urls, default: None, apply_default_without_warming: false }
            if type_urls.len() == 2
    ));
}

#[test]
fn filters_stand_in_envoys_order() {
    let router = filter("r", ROUTER);
    let cors = filter("c", CORS);
    // Envoy allows a name twice.
    assert_eq!(
        filters(&[cors.clone(), cors.clone(), router.clone()]).map(|f| f.len()),
        Ok(3)
    );
    let unknown = |rest: &str| {
        format!(
            "{{name: x, {rest}typed_config: {}}}",
            typed("google.protobuf.Empty")
        )
    };
    assert_eq!(
        filters(&[unknown("is_optional: true, "), router.clone()]).map(|f| f.len()),
        Ok(1)
    );
    for (list, error) in [
        (
            vec![],
            "http_filters: value must contain at least 1 item(s)",
        ),
        (
            vec![cors.clone()],
            "http_filters[0]: Error: non-terminal filter named c of type envoy.extensions.filters.http.cors.v3.Cors is the last filter in a http filter chain.",
        ),
        (
            vec![router.clone(), cors.clone()],
            "http_filters[0]: Error: terminal filter named r of type envoy.extensions.filters.http.router.v3.Router must be the last filter in a http filter chain.",
        ),
        (
            vec![format!(
                "{{name: r, disabled: true, typed_config: {}}}",
                typed(ROUTER)
            )],
            "http_filters[0]: Error: the last (terminal) filter (r) in the chain cannot be disabled by default.",
        ),
        (
            vec![filter("''", CORS), router.clone()],
            "http_filters[0].name: value length must be at least 1 characters",
        ),
        (
            vec!["{name: envoy.filters.http.cors}".to_owned(), router.clone()],
            "http_filters[0]: Didn't find a registered implementation for 'envoy.filters.http.cors' with type URL: ''",
        ),
        (
            vec![unknown(""), router.clone()],
            "http_filters[0]: Didn't find a registered implementation for 'x' with type URL: 'google.protobuf.Empty'",
        ),
        (
            vec![
                filter(
                    "j",
                    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                ),
                router.clone(),
            ],
            "http_filters[0]: not supported: 'j' (envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication) is not implemented by this build yet",
        ),
        (
            vec![filter("b", BROKEN), router.clone()],
            "http_filters[0].typed_config.max_request_bytes: value is required",
        ),
    ] {
        assert_eq!(filters(&list), Err(error.to_owned()));
    }
}

#[test]
fn discovered_filters_say_what_they_may_be() {
    let discovery = |rest: &str| {
        filters(&[
            format!("{{name: d, config_discovery: {{config_source: {{ads: {{}}}}, {rest}}}}}"),
            filter("r", ROUTER),
        ])
    };
    let cors = format!("type_urls: [type.googleapis.com/{CORS}]");
    let with_default = discovery(&format!(
        "{cors}, default_config: {}, apply_default_config_without_warming: true",
        typed(CORS)
    ))
    .expect("valid");
    assert!(matches!(
        &with_default[0].config,
        FilterSource::Discovered {
            default: Some(_),
            apply_default_without_warming: true,
            ..
        }
    ));
    for (rest, error) in [
        (
            "type_urls: []".to_owned(),
            "type_urls: value must contain at least 1 item(s)",
        ),
        (
            "type_urls: [type.googleapis.com/foo.Bar]".to_owned(),
            "type_urls[0]: Error: no factory found for a required type URL foo.Bar.",
        ),
        (
            "type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]"
                .to_owned(),
            "type_urls: not supported: none of them is implemented by this build yet",
        ),
        (
            format!("{cors}, apply_default_config_without_warming: true"),
            "Error: filter config d applied without warming but has no default config.",
        ),
        (
            format!("{cors}, default_config: {}", typed(ROUTER)),
            "default_config: Error: filter config has type URL envoy.extensions.filters.http.router.v3.Router but expect envoy.extensions.filters.http.cors.v3.Cors.",
        ),
    ] {
        let expected = if error.starts_with("Error") {
            format!("http_filters[0].config_discovery: {error}")
        } else {
            format!("http_filters[0].config_discovery.{error}")
        };
        assert_eq!(discovery(&rest), Err(expected), "{rest}");
    }
    let nowhere = filters(&[
        format!("{{name: d, config_discovery: {{{cors}}}}}"),
        filter("r", ROUTER),
    ]);
    assert_eq!(
        nowhere,
        Err("http_filters[0].config_discovery.config_source: value is required".to_owned())
    );
}

#[test]
fn the_managers_stream_errors_hold_where_the_protocol_says_nothing() {
    let manager = with("stream_error_on_invalid_http_message: true, http2_protocol_options: {override_stream_error_on_invalid_http_message: false}").expect("valid");
    assert!(manager.options.http1.keep_open_on_invalid_message);
    assert!(!manager.options.http2.stream_error_on_invalid_message);
}

#[test]
fn wrong_values_are_refused_by_field() {
    for (fields, error) in [
        (
            "max_request_headers_kb: 0",
            "max_request_headers_kb: value must be inside range (0, 8192]",
        ),
        (
            "max_request_headers_kb: 8193",
            "max_request_headers_kb: value must be inside range (0, 8192]",
        ),
        (
            "common_http_protocol_options: {max_headers_count: 0}",
            "common_http_protocol_options.max_headers_count: value must be greater than or equal to 1",
        ),
        (
            "access_log_flush_interval: 0s",
            "access_log_flush_interval: value must be greater than or equal to 1ms",
        ),
        (
            "access_log_flush_interval: 1s, access_log_options: {}",
            "Only one of access_log_flush_interval or access_log_options can be specified.",
        ),
        (
            "codec_type: HTTP3",
            "codec_type: HTTP/3 codec configured on non-QUIC listener.",
        ),
        (
            "strip_matching_host_port: true, strip_any_host_port: true",
            "Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set.",
        ),
        (
            "scheme_header_transformation: {scheme_to_overwrite: ftp}",
            "scheme_header_transformation.scheme_to_overwrite: value must be in list [http https]",
        ),
        (
            "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]",
            "upgrade_configs[1]: Error: multiple upgrade configs with the same name: 'WebSocket'",
        ),
        (
            "request_id_extension: {typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}",
            "request_id_extension.typed_config: Didn't find a registered implementation for type: 'google.protobuf.Empty'",
        ),
        (
            "internal_address_config: {cidr_ranges: [{address_prefix: x, prefix_len: 8}]}",
            "internal_address_config.cidr_ranges[0].address_prefix: malformed IP address: x",
        ),
        (
            "request_timeout: -1s",
            "request_timeout: Invalid duration: Expected positive duration: seconds: -1, nanos: 0",
        ),
        (
            "via: \"a\\nb\"",
            "via: value does not match regex pattern \"^[^\\x00\\n\\r]*$\"",
        ),
        (
            "drain_timeout_jitter: {value: 101}",
            "drain_timeout_jitter.value: value must be inside range [0, 100]",
        ),
    ] {
        assert_eq!(with(fields), Err(error.to_owned()), "{fields}");
    }
    assert_eq!(
        parse("{route_config: {}}"),
        Err("stat_prefix: value length must be at least 1 characters".to_owned())
    );
    assert_eq!(
        parse("{stat_prefix: s}"),
        Err("route_specifier: value is required".to_owned())
    );
    assert_eq!(
        parse("{stat_prefix: s, rds: {route_config_name: a}}"),
        Err("rds.config_source: value is required".to_owned())
    );
}

#[test]
fn what_changes_trust_and_is_not_done_is_refused() {
    for fields in [
        "original_ip_detection_extensions: [{name: x}]",
        "early_header_mutation_extensions: [{name: x}]",
        "forward_client_cert_matcher: {}",
        "typed_header_validation_config: {name: x}",
        "proxy_status_config: {}",
        "forward_proto_config: {http_destination_ports: [80]}",
        "represent_ipv4_remote_address_as_ipv4_mapped_ipv6: true",
    ] {
        let field = fields.split(':').next().expect("a field");
        assert!(
            with(fields).is_err_and(|error| error.starts_with(&format!("{field}: not supported"))),
            "{fields}"
        );
    }
    assert!(
        parse("{stat_prefix: s, scoped_routes: {name: x}}")
            .is_err_and(|error| error.starts_with("scoped_routes: not supported"))
    );
    assert!(
        with("forward_client_cert_details: ALWAYS_FORWARD_ONLY")
            .is_ok_and(|m| m.options.keep_client_cert_header)
    );
}

#[test]
fn nobody_is_internal_unless_ranges_say_so_and_an_empty_list_means_private_networks() {
    let internal = |fields: &str, address: &str| {
        let manager = with(fields).expect("accepted");
        manager
            .options
            .is_internal(address.parse().expect("an address"))
    };
    for address in [
        "10.0.0.1",
        "172.31.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "fd00::1",
        "::1",
    ] {
        assert!(!internal("codec_type: AUTO", address), "{address}");
        assert!(
            internal("internal_address_config: {}", address),
            "{address}"
        );
    }
    for address in [
        "172.32.0.1",
        "127.0.0.5",
        "fc00::1",
        "169.254.1.1",
        "1.2.3.4",
    ] {
        assert!(
            !internal("internal_address_config: {}", address),
            "{address}"
        );
    }
    let own = "internal_address_config: {cidr_ranges: [{address_prefix: 1.2.0.0, prefix_len: 16}]}";
    assert!(internal(own, "1.2.3.4"));
    assert!(!internal(own, "10.0.0.1"));
}
