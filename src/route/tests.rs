//! Tests of `route`: what is selected, and by what.

mod rewrites;

use std::sync::Arc;

use http::{HeaderValue, Method};

use super::{RouteTable, SelectedRoute, redirect, rewrite};
use crate::config::context::{ParseContext, Source};
use crate::config::route::Action;
use crate::config::{RouteConfig, stub};
use crate::http::{RequestHead, Scheme};
use crate::pb;

fn config(yaml: &str) -> RouteConfig {
    let proto = pb::from_yaml(yaml).expect("valid YAML");
    RouteConfig::parse(proto, &ParseContext::new(&stub::Stub, Source::Dynamic))
        .expect("valid routes")
}

fn table(yaml: &str) -> Arc<RouteTable> {
    Arc::new(RouteTable::new(Arc::new(config(yaml))))
}

/// A virtual host for everything; routes are YAML list entries.
fn routes(list: &str) -> Arc<RouteTable> {
    table(&format!(
        "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{list}]}}]}}"
    ))
}

fn get(authority: &str, path: &str) -> RequestHead {
    RequestHead::new(Method::GET, authority, path)
}

fn with(mut head: RequestHead, headers: &[(&'static str, &'static str)]) -> RequestHead {
    for (name, value) in headers {
        head.headers.append(*name, HeaderValue::from_static(value));
    }
    head
}

fn name(selected: Option<SelectedRoute>) -> String {
    selected.map_or_else(
        || "-".to_owned(),
        |selected| selected.route.name.to_string(),
    )
}

#[test]
fn a_virtual_host_is_found_where_no_route_of_it_fits() {
    let table = table(
        "{name: r, virtual_hosts: [{name: v, domains: [a.test], routes: [{match: {path: /}, route: {cluster: c}}]}]}",
    );
    let host = |authority, path| Some(&*table.virtual_host(&get(authority, path))?.name);
    assert!(table.select(&get("a.test", "/none"), 0).is_none());
    assert_eq!(host("a.test", "/none"), Some("v"));
    assert_eq!(host("b.test", "/"), None);
}

#[test]
fn domains_go_from_exact_to_suffix_to_prefix_to_any() {
    let hosts = [
        ("exact", "a.dom.test"),
        ("suffix", "*.dom.test"),
        ("long_suffix", "*.b.dom.test"),
        ("dash", "*-x.dom.test"),
        ("prefix", "pre.*"),
        ("long_prefix", "pre.fix.*"),
        ("port", "p.test:80"),
        ("any", "*"),
    ];
    let hosts: Vec<String> = hosts
        .iter()
        .map(|(name, domain)| {
            format!(
                "{{name: {name}, domains: ['{domain}'], routes: [{{name: {name}, match: {{prefix: /}}, route: {{cluster: c}}}}]}}"
            )
        })
        .collect();
    let yaml = format!("{{name: r, virtual_hosts: [{}]}}", hosts.join(","));
    let plain = table(&yaml);
    let ignoring =
        table(&yaml.replace("{name: r,", "{name: r, ignore_port_in_host_matching: true,"));
    for (authority, expected, without_port) in [
        ("a.dom.test", "exact", "exact"),
        ("A.DOM.Test", "exact", "exact"),
        ("a.dom.test:80", "any", "exact"),
        ("x.dom.test", "suffix", "suffix"),
        ("x.b.dom.test", "long_suffix", "long_suffix"),
        ("b.dom.test", "suffix", "suffix"),
        (".b.dom.test", "suffix", "suffix"),
        ("y-x.dom.test", "dash", "dash"),
        ("-x.dom.test", "suffix", "suffix"),
        (".dom.test", "any", "any"),
        ("dom.test", "any", "any"),
        ("pre.x", "prefix", "prefix"),
        ("pre.", "any", "any"),
        ("pre.fix.y", "long_prefix", "long_prefix"),
        ("pre.fix.", "prefix", "prefix"),
        ("p.test:80", "port", "any"),
        ("p.test", "any", "any"),
        ("", "any", "any"),
        ("[::1]:80", "any", "any"),
    ] {
        assert_eq!(
            name(plain.select(&get(authority, "/"), 0)),
            expected,
            "{authority}"
        );
        assert_eq!(
            name(ignoring.select(&get(authority, "/"), 0)),
            without_port,
            "{authority} without its port"
        );
    }
}

#[test]
fn paths_match_as_their_kind_says_and_never_with_the_query() {
    for (matcher, path, expected) in [
        ("path: /a", "/a", true),
        ("path: /a", "/a?b", true),
        ("path: /a", "/a/", false),
        ("path: /a", "/A", false),
        ("path: /A, case_sensitive: false", "/a", true),
        ("prefix: /a", "/ab", true),
        ("prefix: /a?", "/a?b", false),
        ("prefix: /A, case_sensitive: false", "/ab", true),
        ("path_separated_prefix: /a", "/a", true),
        ("path_separated_prefix: /a", "/a/b", true),
        ("path_separated_prefix: /a", "/a?b", true),
        ("path_separated_prefix: /a", "/ab", false),
        ("safe_regex: {regex: '/[0-9]+'}", "/12", true),
        ("safe_regex: {regex: '/[0-9]+'}", "/12?x", true),
        ("safe_regex: {regex: '/[0-9]+'}", "/12x", false),
        ("safe_regex: {regex: '/(a|ab)'}", "/ab", true),
        ("connect_matcher: {}", "/", false),
    ] {
        let table = routes(&format!(
            "{{name: r, match: {{{matcher}}}, route: {{cluster: c}}}}"
        ));
        assert_eq!(
            table.select(&get("h", path), 0).is_some(),
            expected,
            "{matcher} on {path}"
        );
    }
}

#[test]
fn connect_without_a_path_is_for_connect_routes_alone() {
    let table = routes(
        "{name: prefix, match: {prefix: ''}, route: {cluster: c}}, {name: connect, match: {connect_matcher: {}}, route: {cluster: c}}",
    );
    let head = RequestHead::new(Method::CONNECT, "h:1", "");
    assert_eq!(name(table.select(&head, 0)), "connect");
}

#[test]
fn a_head_without_a_scheme_has_none_to_match() {
    for (condition, with, without) in [
        ("string_match: {exact: http}", true, false),
        ("string_match: {exact: x}, invert_match: true", true, false),
        ("present_match: true", true, false),
        ("present_match: false", false, true),
    ] {
        let table = routes(&format!(
            "{{match: {{prefix: /, headers: [{{name: ':scheme', {condition}}}]}}, route: {{cluster: c}}}}"
        ));
        let mut head = get("h", "/");
        head.scheme = Scheme::Http;
        assert_eq!(table.select(&head, 0).is_some(), with, "{condition}");
        head.scheme = Scheme::Unknown;
        assert_eq!(table.select(&head, 0).is_some(), without, "{condition}");
    }
}

#[test]
fn headers_match_value_by_value() {
    let cases: &[(&str, &[&'static str], bool)] = &[
        ("string_match: {exact: a}", &["a"], true),
        ("string_match: {exact: a}", &["b", "a"], true),
        ("string_match: {exact: 'b,a'}", &["b", "a"], false),
        ("string_match: {exact: a}", &[], false),
        ("string_match: {exact: a}, invert_match: true", &["b"], true),
        (
            "string_match: {exact: a}, invert_match: true",
            &["b", "a"],
            false,
        ),
        ("string_match: {exact: a}, invert_match: true", &[], false),
        (
            "string_match: {exact: a}, invert_match: true, treat_missing_header_as_empty: true",
            &[],
            true,
        ),
        ("present_match: true", &[""], true),
        ("present_match: true", &[], false),
        ("present_match: false", &["a"], false),
        ("present_match: false", &[], true),
        ("present_match: true, invert_match: true", &[], true),
        ("present_match: false, invert_match: true", &["a"], true),
        ("range_match: {start: -5, end: 10}", &["-5"], true),
        ("range_match: {start: -5, end: 10}", &["10"], false),
        ("range_match: {start: -5, end: 10}", &["x"], false),
        (
            "range_match: {start: -5, end: 10}, invert_match: true",
            &["x"],
            true,
        ),
        (
            "string_match: {contains: B, ignore_case: true}",
            &["abc"],
            true,
        ),
        ("string_match: {suffix: c}", &["abc"], true),
        (
            "string_match: {prefix: AB, ignore_case: true}",
            &["abc"],
            true,
        ),
        ("string_match: {safe_regex: {regex: b}}", &["abc"], false),
    ];
    for (condition, values, expected) in cases {
        let table = routes(&format!(
            "{{match: {{prefix: /, headers: [{{name: x-a, {condition}}}]}}, route: {{cluster: c}}}}"
        ));
        let headers: Vec<_> = values.iter().map(|value| ("x-a", *value)).collect();
        let head = with(get("h", "/"), &headers);
        assert_eq!(
            table.select(&head, 0).is_some(),
            *expected,
            "{condition} on {values:?}"
        );
    }
}

#[test]
fn query_parameters_match_their_first_value_undecoded() {
    for (condition, path, expected) in [
        ("present_match: true", "/?q", true),
        ("present_match: true", "/?x=q", false),
        ("present_match: false", "/", true),
        ("present_match: false", "/?q=1", false),
        ("string_match: {exact: v}", "/?q=v&q=w", true),
        ("string_match: {exact: v}", "/?q=w&q=v", false),
        ("string_match: {exact: 'a b'}", "/?q=a%20b", false),
        ("string_match: {exact: v=v}", "/?q=v=v", true),
    ] {
        let table = routes(&format!(
            "{{match: {{prefix: /, query_parameters: [{{name: q, {condition}}}]}}, route: {{cluster: c}}}}"
        ));
        assert_eq!(
            table.select(&get("h", path), 0).is_some(),
            expected,
            "{condition} on {path}"
        );
    }
}

#[test]
fn weights_share_the_random_number() {
    let table = routes(
        "{match: {prefix: /h}, route: {weighted_clusters: {header_name: x-random, clusters: [{name: a, weight: 3}, {name: b, weight: 1}]}}}, {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 30}, {name: zero, weight: 0}, {name: b, weight: 70}]}}}",
    );
    for (random, expected) in [
        (0, "a"),
        (29, "a"),
        (30, "b"),
        (99, "b"),
        (100, "a"),
        (u64::MAX, "a"),
    ] {
        let selected = table.select(&get("h", "/"), random).expect("a route");
        assert_eq!(selected.cluster.as_deref(), Some(expected), "{random}");
    }
    let head = with(get("h", "/h"), &[("x-random", "3")]);
    let selected = table.select(&head, 0).expect("a route");
    assert_eq!(selected.cluster.as_deref(), Some("b"));
    assert_eq!(&*selected.weighted_cluster().expect("weighted").name, "b");
}

#[test]
fn a_header_names_the_cluster() {
    let table = routes("{match: {prefix: /}, route: {cluster_header: x-c}}");
    let cluster = |head: &RequestHead| table.select(head, 0).expect("a route").cluster;
    assert_eq!(cluster(&get("h", "/")), None);
    assert_eq!(cluster(&with(get("h", "/"), &[("x-c", "")])), None);
    assert_eq!(
        cluster(&with(get("h", "/"), &[("x-c", "a")])).as_deref(),
        Some("a")
    );
}

#[test]
fn fractions_are_parts_of_a_million() {
    let table = routes(
        "{match: {prefix: /, runtime_fraction: {default_value: {numerator: 25, denominator: HUNDRED}}}, route: {cluster: c}}",
    );
    for (random, expected) in [
        (0u64, true),
        (249_999, true),
        (250_000, false),
        (999_999, false),
    ] {
        assert_eq!(
            table.select(&get("h", "/"), random << 32).is_some(),
            expected,
            "{random}"
        );
    }
}

/// What the index finds is what a walk finds, in the order of the configuration.
#[test]
fn an_index_keeps_the_order() {
    let mut random = fastrand::Rng::with_seed(7);
    let letters = ["a", "b", "c", "/", "/a"];
    let word = |random: &mut fastrand::Rng| -> String {
        let length = random.usize(0..5);
        let mut word = "/".to_owned();
        for _ in 0..length {
            word.push_str(letters[random.usize(..letters.len())]);
        }
        word
    };
    for _ in 0..40 {
        let list: Vec<String> = (0..random.usize(9..60))
            .map(|index| {
                let path = word(&mut random);
                let matcher = match random.u8(0..6) {
                    0 | 1 => format!("path: '{path}'"),
                    2 | 3 => format!("prefix: '{path}'"),
                    4 => format!("path_separated_prefix: '/{}a'", path.trim_matches('/')),
                    _ => format!("safe_regex: {{regex: '{path}.?'}}"),
                };
                let header = if random.bool() {
                    ", headers: [{name: x-a, present_match: true}]"
                } else {
                    ""
                };
                format!("{{name: r{index}, match: {{{matcher}{header}}}, route: {{cluster: c}}}}")
            })
            .collect();
        let indexed = routes(&list.join(","));
        let singles: Vec<_> = list.iter().map(|route| routes(route)).collect();
        for _ in 0..200 {
            let path = word(&mut random);
            let mut head = get("h", &path);
            if random.bool() {
                head = with(head, &[("x-a", "1")]);
            }
            let walked = singles
                .iter()
                .find_map(|table| table.select(&head, 0))
                .map_or_else(
                    || "-".to_owned(),
                    |selected| selected.route.name.to_string(),
                );
            assert_eq!(name(indexed.select(&head, 0)), walked, "{path} in {list:?}");
        }
    }
}

#[test]
fn mutations_apply_from_the_most_specific_or_the_other_way_round() {
    let add =
        |value: &str| format!("request_headers_to_add: [{{header: {{key: x, value: {value}}}}}]");
    let yaml = format!(
        "{{name: r, {}, virtual_hosts: [{{name: v, domains: ['*'], {}, routes: [{{match: {{prefix: /}}, {}, route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1, {}}}]}}}}}}]}}]}}",
        add("table"),
        add("vhost"),
        add("route"),
        add("weighted")
    );
    let order = |yaml: &str| -> Vec<String> {
        let selected = table(yaml).select(&get("h", "/"), 0).expect("a route");
        selected
            .request_mutations()
            .map(|mutations| mutations.add[0].value.source.to_string())
            .collect()
    };
    assert_eq!(order(&yaml), ["weighted", "route", "vhost", "table"]);
    let yaml = yaml.replacen(
        "{name: r,",
        "{name: r, most_specific_header_mutations_wins: true,",
        1,
    );
    assert_eq!(order(&yaml), ["weighted", "table", "vhost", "route"]);
}

#[test]
fn a_request_whose_head_changes_is_routed_as_a_new_one() {
    let table = table(
        "
        virtual_hosts:
        - name: a
          domains: [a]
          routes:
          - {match: {prefix: /h, headers: [{name: x, present_match: true}]}, route: {cluster: h}, name: headers}
          - {match: {prefix: /w}, name: weighted, route: {weighted_clusters: {clusters: [{name: one, weight: 1}, {name: two, weight: 1}]}}}
          - {match: {prefix: /c}, name: by header, route: {cluster_header: x}}
          - {match: {prefix: /}, name: a, route: {cluster: c}}
        - name: tls
          domains: [tls]
          require_tls: ALL
          routes: [{match: {prefix: /}, name: tls, route: {cluster: c}}]
        - name: any
          domains: ['*']
          routes: [{match: {prefix: /}, name: any, route: {cluster: c}}]
        ",
    );
    let requests: Vec<RequestHead> = ["a", "tls", "b"]
        .into_iter()
        .flat_map(|host| ["/", "/h", "/w", "/c"].map(|path| get(host, path)))
        .flat_map(|head| {
            let more = [("x", "y"), ("x-forwarded-proto", "https")]
                .map(|field| with(head.clone(), &[field]));
            [head].into_iter().chain(more)
        })
        .collect();
    let what = |selected: Option<SelectedRoute>| {
        selected.map(|found| {
            (
                found.route.name.clone(),
                found.cluster,
                found.weighted,
                found.tls_redirect,
            )
        })
    };
    for (before, now) in requests
        .iter()
        .flat_map(|before| requests.iter().map(move |now| (before, now)))
    {
        for random in [0, 1] {
            let Some(before) = table.select(before, 0).map(Arc::new) else {
                continue;
            };
            let again = table.select_again(now, random, Arc::clone(&before));
            let new = what(table.select(now, random));
            assert_eq!(what(again.as_deref().cloned()), new, "{before:?} {now:?}");
        }
    }
    // Where nothing has changed it is the same one.
    let before = table
        .select(&get("a", "/"), 0)
        .map(Arc::new)
        .expect("a route");
    let again = table.select_again(&with(get("a", "/x"), &[("x", "y")]), 1, Arc::clone(&before));
    assert!(again.is_some_and(|again| Arc::ptr_eq(&again, &before)));
}
