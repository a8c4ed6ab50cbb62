//! Tables of route configurations.

use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::super::{
    DirectResponse, ForwardAction, GrpcTimeout, HostRewrite, PathRewrite, RedirectPath,
    StreamDuration,
};
use super::*;
use crate::config::stub::{self, Stub};
use crate::config::{ParseContext, Source};
use crate::pb;

fn parse(yaml: &str) -> Result<RouteConfig, String> {
    let proto = pb::from_yaml::<proto::RouteConfiguration>(yaml).expect("a RouteConfiguration");
    RouteConfig::parse(proto, &stub::context()).map_err(|error| error.to_string())
}

/// The only route of a table.
fn route(yaml: &str) -> Result<Route, String> {
    let config = parse(&format!(
        "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{yaml}]}}]}}"
    ))?;
    Ok(Route::clone(&config.virtual_hosts[0].routes[0]))
}

fn forward(action: &str) -> Result<ForwardAction, String> {
    let route = route(&format!("{{match: {{prefix: /}}, route: {action}}}"))?;
    match route.action {
        Action::Forward(forward) => Ok(*forward),
        other => panic!("{other:?}"),
    }
}

fn error_of<T: std::fmt::Debug>(result: Result<T, String>) -> String {
    let error = result.expect_err("must be refused");
    error
        .strip_prefix("virtual_hosts[0].routes[0].")
        .unwrap_or(&error)
        .to_owned()
}

#[test]
fn domains_are_sorted_into_envoys_four_kinds() {
    let config = parse(
        "{name: r, virtual_hosts: [{name: v, domains: ['*', A.test, '*.B.test', '*-c.test', 'd.*', 'a.*.b', '']}]}",
    )
    .expect("valid");
    assert_eq!(
        config.virtual_hosts[0].domains,
        [
            Domain::Any,
            Domain::Exact("a.test".into()),
            Domain::Suffix(".b.test".into()),
            Domain::Suffix("-c.test".into()),
            Domain::Prefix("d.".into()),
            Domain::Exact("a.*.b".into()),
            Domain::Exact("".into()),
        ]
    );
}

#[test]
fn domains_are_unique_over_the_table() {
    for (domains, error) in [
        (
            "[a, A]",
            "virtual_hosts[0].domains: Only unique values for domains are permitted. Duplicate entry of domain a in route r",
        ),
        (
            "['*.a', '*.A']",
            "virtual_hosts[0].domains: Only unique values for domains are permitted. Duplicate entry of domain *.a in route r",
        ),
        (
            "['*', '*']",
            "virtual_hosts[0].domains: Only a single wildcard domain is permitted in route r",
        ),
    ] {
        let yaml = format!("{{name: r, virtual_hosts: [{{name: v, domains: {domains}}}]}}");
        assert_eq!(parse(&yaml).expect_err("duplicates"), error);
    }
    let across = "{name: r, virtual_hosts: [{name: v, domains: [a]}, {name: w, domains: [b, a]}]}";
    assert!(parse(across).is_err_and(|error| error.starts_with("virtual_hosts[1].domains: ")));
    // The same text may be an exact name and a suffix, and virtual hosts may share a name.
    assert!(
        parse(
            "{name: r, virtual_hosts: [{name: v, domains: [a.b]}, {name: v, domains: ['*a.b']}]}"
        )
        .is_ok()
    );
}

#[test]
fn paths_are_matched_in_six_ways() {
    for (yaml, path) in [
        ("prefix: /a", PathMatch::Prefix("/a".into())),
        ("prefix: ''", PathMatch::Prefix("".into())),
        ("path: /a", PathMatch::Exact("/a".into())),
        (
            "path_separated_prefix: /a",
            PathMatch::SeparatedPrefix("/a".into()),
        ),
        (
            "safe_regex: {regex: '/a/[0-9]+'}",
            PathMatch::Regex(FullRegex::new("/a/[0-9]+").expect("a pattern")),
        ),
        ("connect_matcher: {}", PathMatch::Connect),
    ] {
        let route = route(&format!(
            "{{match: {{{yaml}}}, direct_response: {{status: 200}}}}"
        ));
        assert_eq!(route.map(|route| route.matcher.path), Ok(path), "{yaml}");
    }
}

#[test]
fn a_match_keeps_its_conditions() {
    let route = route(
        "{match: {prefix: /, case_sensitive: false, grpc: {}, runtime_fraction: {default_value: {numerator: 5, denominator: HUNDRED}, runtime_key: k}, headers: [{name: x-a, string_match: {exact: b}}, {name: ':method', string_match: {exact: GET}}], query_parameters: [{name: q}]}, non_forwarding_action: {}, decorator: {operation: op}}",
    );
    let route = route.expect("valid");
    assert!(route.matcher.ignore_case && route.matcher.grpc);
    assert_eq!(route.matcher.fraction_per_million, Some(50_000));
    assert_eq!(route.matcher.headers.len(), 2);
    assert_eq!(route.matcher.query_parameters.len(), 1);
    assert_eq!(route.action, Action::NonForwarding);
    assert_eq!(route.decorator.as_deref(), Some("op"));
}

#[test]
fn an_action_has_envoys_defaults() {
    let action = forward("{cluster: c}").expect("valid");
    assert_eq!(action.cluster, ClusterSpecifier::Cluster("c".into()));
    assert_eq!(
        action.cluster_not_found_status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(action.timeout, Some(Duration::from_secs(15)));
    assert_eq!(action.idle_timeout, None);
    assert_eq!(action.stream_duration, None);
    assert_eq!(action.grpc_timeout, None);
    assert_eq!(action.path_rewrite, PathRewrite::None);
    assert_eq!(action.host_rewrite, HostRewrite::None);
    assert!(!action.priority_high && action.upgrades.is_empty());
}

#[test]
fn an_action_is_read() {
    // The timeouts are what Istio sends for a route without one.
    let action = forward(
        "{cluster: c, timeout: 0s, max_grpc_timeout: 0s, idle_timeout: 0s, cluster_not_found_response_code: NOT_FOUND, prefix_rewrite: /b, auto_host_rewrite: true, priority: HIGH, append_x_forwarded_host: true, upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: x, enabled: false}], max_stream_duration: {max_stream_duration: 3s, grpc_timeout_header_max: 0s, grpc_timeout_header_offset: 1s}}",
    )
    .expect("valid");
    assert_eq!(action.timeout, None);
    assert_eq!(
        action.grpc_timeout,
        Some(GrpcTimeout {
            max: None,
            offset: Duration::ZERO
        })
    );
    assert_eq!(action.idle_timeout, Some(None));
    assert_eq!(action.cluster_not_found_status, StatusCode::NOT_FOUND);
    assert_eq!(action.path_rewrite, PathRewrite::Prefix("/b".into()));
    assert_eq!(action.host_rewrite, HostRewrite::Auto);
    assert!(action.priority_high && action.append_x_forwarded_host);
    assert_eq!(
        action.upgrades,
        [(Box::from("websocket"), true), (Box::from("x"), false)]
    );
    assert_eq!(
        action.stream_duration,
        Some(StreamDuration {
            max: Some(Some(Duration::from_secs(3))),
            grpc: Some(GrpcTimeout {
                max: None,
                offset: Duration::from_secs(1)
            }),
        })
    );
}

#[test]
fn hosts_and_paths_are_rewritten_in_all_ways() {
    let host = |yaml: &str| forward(&format!("{{cluster: c, {yaml}}}")).map(|a| a.host_rewrite);
    assert_eq!(
        host("host_rewrite_literal: a.test"),
        Ok(HostRewrite::Literal("a.test".into()))
    );
    assert_eq!(host("host_rewrite_literal: ''"), Ok(HostRewrite::None));
    assert_eq!(host("auto_host_rewrite: false"), Ok(HostRewrite::None));
    assert_eq!(
        host("host_rewrite_header: X-H"),
        Ok(HostRewrite::Header(HeaderName::from_static("x-h")))
    );
    assert!(matches!(
        host(r"host_rewrite_path_regex: {pattern: {regex: '^/(.+)/.+$'}, substitution: '\1'}"),
        Ok(HostRewrite::PathRegex { .. })
    ));
    let path = |yaml: &str| forward(&format!("{{cluster: c, {yaml}}}")).map(|a| a.path_rewrite);
    assert!(matches!(
        path("regex_rewrite: {pattern: {regex: 'a+'}, substitution: b}"),
        Ok(PathRewrite::Regex { substitution, .. }) if &*substitution == "b"
    ));
    assert!(matches!(
        path("path_rewrite: '/%REQ(x)%'"),
        Ok(PathRewrite::Format(_))
    ));
    assert_eq!(
        error_of(path("prefix_rewrite: /a, path_rewrite: /b")),
        "route: Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy"
    );
}

#[test]
fn weights_are_summed() {
    let action = forward(
        "{weighted_clusters: {clusters: [{name: a, weight: 90}, {name: b, weight: 10, request_headers_to_add: [{header: {key: x, value: y}}], host_rewrite_literal: h}, {cluster_header: X-C, weight: 0}], header_name: X-R, total_weight: 5}}",
    )
    .expect("valid");
    let ClusterSpecifier::Weighted {
        clusters,
        total,
        random_value_header,
    } = action.cluster
    else {
        panic!("weighted");
    };
    assert_eq!(total, 100);
    assert_eq!(random_value_header, Some(HeaderName::from_static("x-r")));
    assert_eq!((&*clusters[0].name, clusters[0].weight), ("a", 90));
    assert_eq!(clusters[1].request_headers.add.len(), 1);
    assert_eq!(clusters[1].host_rewrite.as_deref(), Some("h"));
    assert_eq!(clusters[2].header, Some(HeaderName::from_static("x-c")));
}

#[test]
fn wrong_weights_are_refused() {
    for (yaml, error) in [
        (
            "{clusters: []}",
            "route.weighted_clusters.clusters: value must contain at least 1 item(s)",
        ),
        (
            "{clusters: [{name: a, weight: 0}]}",
            "route.weighted_clusters: Sum of weights in the weighted_cluster must be greater than 0.",
        ),
        (
            "{clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}",
            "route.weighted_clusters: The sum of weights of all weighted clusters exceeds 4294967295",
        ),
        (
            "{clusters: [{name: a}]}",
            "route.weighted_clusters.clusters[0].weight: value is required",
        ),
        (
            "{clusters: [{weight: 1}]}",
            "route.weighted_clusters.clusters[0]: At least one of name or cluster_header need to be specified",
        ),
        (
            "{clusters: [{name: a, cluster_header: b, weight: 1}]}",
            "route.weighted_clusters.clusters[0]: Only one of name or cluster_header can be specified",
        ),
        (
            "{clusters: [{name: a, weight: 1}], use_hash_policy: true}",
            "route.weighted_clusters.use_hash_policy: not supported: not implemented by this build yet",
        ),
    ] {
        assert_eq!(
            error_of(forward(&format!("{{weighted_clusters: {yaml}}}"))),
            error
        );
    }
}

#[test]
fn redirects_are_read() {
    let redirect = |yaml: &str| {
        let route = route(&format!("{{match: {{prefix: /}}, redirect: {yaml}}}")).expect("valid");
        match route.action {
            Action::Redirect(redirect) => *redirect,
            other => panic!("{other:?}"),
        }
    };
    let plain = redirect("{}");
    assert_eq!(plain.status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(
        (
            plain.scheme,
            plain.host,
            plain.port,
            plain.path,
            plain.strip_query
        ),
        (None, None, None, RedirectPath::Keep, false)
    );
    let full = redirect(
        "{https_redirect: true, host_redirect: h, port_redirect: 8443, path_redirect: /p, response_code: PERMANENT_REDIRECT, strip_query: true}",
    );
    assert_eq!(full.scheme.as_deref(), Some("https"));
    assert_eq!(full.host.as_deref(), Some("h"));
    assert_eq!(full.port, Some(8443));
    assert_eq!(full.path, RedirectPath::Whole("/p".into()));
    assert_eq!(full.status, StatusCode::PERMANENT_REDIRECT);
    assert!(full.strip_query);
    assert_eq!(
        redirect("{scheme_redirect: HTTPS}").scheme.as_deref(),
        Some("HTTPS")
    );
    assert_eq!(
        redirect("{prefix_rewrite: /b}").path,
        RedirectPath::Prefix("/b".into())
    );
}

#[test]
fn direct_responses_are_read_and_bounded() {
    let answer = |yaml: &str| {
        route(&format!(
            "{{match: {{prefix: /}}, direct_response: {yaml}}}"
        ))
        .map(|r| r.action)
    };
    assert_eq!(
        answer("{status: 404, body: {inline_string: gone}}"),
        Ok(Action::DirectResponse(DirectResponse {
            status: StatusCode::NOT_FOUND,
            body: "gone".into(),
        }))
    );
    for status in [99, 199, 600, 70_000] {
        assert_eq!(
            error_of(answer(&format!("{{status: {status}}}"))),
            "direct_response.status: value must be inside range [200, 600)"
        );
    }
    let body = "x".repeat(4097);
    assert_eq!(
        error_of(answer(&format!(
            "{{status: 200, body: {{inline_string: {body}}}}}"
        ))),
        "direct_response.body: response body size is 4097 bytes; maximum is 4096"
    );
    let yaml = format!(
        "{{max_direct_response_body_size_bytes: 5000, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}"
    );
    assert!(parse(&yaml).is_ok());
}

#[test]
fn per_filter_configuration_is_read_in_every_form() {
    let per_filter = |yaml: &str| {
        route(&format!(
            "{{match: {{prefix: /}}, direct_response: {{status: 200}}, typed_per_filter_config: {{f: {yaml}}}}}"
        ))
        .map(|route| {
            route
                .per_filter
                .get("f")
                .map(|config| (config.disabled, config.config.is_some()))
        })
    };
    let cors = format!("{{'@type': type.googleapis.com/{}}}", stub::CORS_ROUTE);
    let wrapped = |rest: &str| {
        format!("{{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, {rest}}}")
    };
    let unknown = "{'@type': type.googleapis.com/google.protobuf.Empty}";
    for (yaml, expected) in [
        (cors.clone(), Some((Some(false), true))),
        (wrapped(&format!("config: {cors}")), Some((Some(false), true))),
        (wrapped("disabled: true"), Some((Some(true), false))),
        (wrapped(&format!("disabled: true, config: {unknown}")), Some((Some(true), false))),
        // As Envoy Gateway switches a filter on.
        (wrapped("config: {}"), Some((Some(false), false))),
        (wrapped(&format!("is_optional: true, config: {unknown}")), None),
        (
            format!("{{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/{}, value: {{allow_methods: GET}}}}", stub::CORS_ROUTE),
            Some((Some(false), true)),
        ),
        (
            "{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {}}".to_owned(),
            None,
        ),
    ] {
        assert_eq!(per_filter(&yaml), Ok(expected), "{yaml}");
    }
    for (yaml, error) in [
        (
            unknown.to_owned(),
            "typed_per_filter_config[f]: Didn't find a registered implementation for 'f' with type URL: 'google.protobuf.Empty'",
        ),
        (
            wrapped("is_optional: true"),
            "typed_per_filter_config[f]: Empty route/virtual host per filter configuration for f filter",
        ),
        (
            format!("{{'@type': type.googleapis.com/{}}}", stub::ROUTER),
            "typed_per_filter_config[f]: The filter f doesn't support virtual host or route specific configurations",
        ),
        (
            wrapped(
                "config: {'@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig}",
            ),
            "typed_per_filter_config[f].config: not supported: 'f' (envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig) is not implemented by this build yet",
        ),
    ] {
        assert_eq!(error_of(per_filter(&yaml)), error, "{yaml}");
    }
}

#[test]
fn what_changes_routing_and_is_not_done_is_refused() {
    for (yaml, path) in [
        (
            "{match: {prefix: /, cookies: [{name: a, string_match: {exact: b}}]}",
            "match.cookies",
        ),
        ("{match: {prefix: /, tls_context: {}}", "match.tls_context"),
        (
            "{match: {path_match_policy: {name: x}}",
            "match.path_match_policy",
        ),
        ("{match: {prefix: /}, filter_action: {}", "filter_action"),
    ] {
        let rest = if yaml.contains("filter_action") {
            "}"
        } else {
            ", direct_response: {status: 200}}"
        };
        let error = error_of(route(&format!("{yaml}{rest}")));
        assert!(
            error.starts_with(&format!("{path}: not supported")),
            "{error}"
        );
    }
    for (yaml, path) in [
        ("retry_policy: {retry_on: 5xx}", "retry_policy"),
        ("hash_policy: [{header: {header_name: a}}]", "hash_policy"),
        (
            "request_mirror_policies: [{cluster: m}]",
            "request_mirror_policies",
        ),
        (
            "rate_limits: [{actions: [{remote_address: {}}]}]",
            "rate_limits",
        ),
        (
            "hedge_policy: {hedge_on_per_try_timeout: true}",
            "hedge_policy",
        ),
        ("internal_redirect_policy: {}", "internal_redirect_policy"),
        (
            "internal_redirect_action: HANDLE_INTERNAL_REDIRECT",
            "internal_redirect_action",
        ),
        ("cors: {}", "cors"),
        (
            "upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]",
            "upgrade_configs[0].connect_config",
        ),
        ("host_rewrite_header: ':path'", "host_rewrite_header"),
    ] {
        let error = error_of(forward(&format!("{{cluster: c, {yaml}}}")));
        assert!(
            error.starts_with(&format!("route.{path}: not supported")),
            "{error}"
        );
    }
    // What asks for nothing is nothing.
    assert!(forward("{cluster: c, retry_policy: {num_retries: 3}, hedge_policy: {}}").is_ok());
    for (yaml, path) in [
        ("vhds: {config_source: {ads: {}}}", "vhds"),
        (
            "cluster_specifier_plugins: [{}]",
            "cluster_specifier_plugins",
        ),
        (
            "request_mirror_policies: [{cluster: m}]",
            "request_mirror_policies",
        ),
        (
            "ignore_path_parameters_in_path_matching: true",
            "ignore_path_parameters_in_path_matching",
        ),
        (
            "virtual_hosts: [{name: v, domains: [a], retry_policy: {retry_on: 5xx}}]",
            "virtual_hosts[0].retry_policy",
        ),
        (
            "virtual_hosts: [{name: v, domains: [a], matcher: {}}]",
            "virtual_hosts[0].matcher",
        ),
    ] {
        let error = parse(&format!("{{{yaml}}}")).expect_err("unsupported");
        assert!(
            error.starts_with(&format!("{path}: not supported")),
            "{error}"
        );
    }
}

#[test]
fn clusters_are_validated_where_envoy_does() {
    let known = |name: &str| name == "known";
    let context = ParseContext::new(&Stub, Source::Dynamic).with_clusters(&known);
    let check = |action: &str, rest: &str, inline: bool| {
        let yaml = format!(
            "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {action}}}]}}]{rest}}}"
        );
        let proto = pb::from_yaml(&yaml).expect("a RouteConfiguration");
        let parsed = if inline {
            RouteConfig::parse_inline(proto, &context)
        } else {
            RouteConfig::parse(proto, &context)
        };
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let nope = "{cluster: nope}";
    let unknown = Err("virtual_hosts[0].routes[0]: route: unknown cluster 'nope'".to_owned());
    assert_eq!(check(nope, "", true), unknown);
    assert_eq!(check(nope, "", false), Ok(()));
    assert_eq!(check(nope, ", validate_clusters: true", false), unknown);
    assert_eq!(check(nope, ", validate_clusters: false", true), Ok(()));
    assert_eq!(check("{cluster: known}", "", true), Ok(()));
    assert_eq!(check("{cluster_header: x-c}", "", true), Ok(()));
    assert_eq!(
        check(
            "{weighted_clusters: {clusters: [{name: known, weight: 1}, {name: nope, weight: 1}]}}",
            "",
            true
        ),
        Err("virtual_hosts[0].routes[0]: route: unknown weighted cluster 'nope'".to_owned())
    );
}

#[test]
fn a_table_of_envoy_gateways_is_read() {
    let config = parse(
        "
name: default/gateway-1/http
ignore_port_in_host_matching: true
virtual_hosts:
- name: default/gateway-1/http/www_example_com
  domains: [www.example.com]
  metadata: {filter_metadata: {envoy-gateway: {resources: [{kind: Gateway, name: gateway-1}]}}}
  routes:
  - name: httproute/default/backend/rule/0/match/0/www_example_com
    match: {path_separated_prefix: /foo}
    metadata: {filter_metadata: {envoy-gateway: {resources: []}}}
    typed_per_filter_config:
      envoy.filters.http.cors:
        '@type': type.googleapis.com/envoy.config.route.v3.FilterConfig
        config: {}
    route:
      cluster: httproute/default/backend/rule/0
      upgrade_configs: [{upgrade_type: websocket}]
      cluster_not_found_response_code: INTERNAL_SERVER_ERROR
",
    )
    .expect("valid");
    assert!(config.ignore_port_in_host_matching && config.metadata.is_none());
    let host = &config.virtual_hosts[0];
    assert!(host.metadata.is_some() && host.routes[0].metadata.is_some());
    assert_eq!(host.require_tls, RequireTls::None);
    assert_eq!(host.routes[0].per_filter.len(), 1);
}

#[test]
fn a_table_of_istios_is_read() {
    let config = parse(
        "
name: '80'
validate_clusters: false
ignore_port_in_host_matching: true
max_direct_response_body_size_bytes: 1048576
virtual_hosts:
- name: httpbin.default.svc.cluster.local:80
  domains: [httpbin.default.svc.cluster.local, httpbin, 10.96.0.1]
  include_request_attempt_count: true
  routes:
  - name: default
    match: {prefix: /}
    decorator: {operation: 'httpbin.default.svc.cluster.local:80/*'}
    route:
      cluster: outbound|80||httpbin.default.svc.cluster.local
      timeout: 0s
      max_grpc_timeout: 0s
- name: allow_any
  domains: ['*']
  routes:
  - name: allow_any
    match: {prefix: /}
    route: {cluster: PassthroughCluster, timeout: 0s, max_grpc_timeout: 0s}
",
    )
    .expect("valid");
    assert_eq!(config.validate_clusters, Some(false));
    assert_eq!(config.max_direct_response_body_size, 1 << 20);
    assert!(config.virtual_hosts[0].include_request_attempt_count);
    assert_eq!(config.virtual_hosts[1].domains, [Domain::Any]);
}
