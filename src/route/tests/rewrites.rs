//! What routes make of paths and hosts: rewrites, redirects, and the place that a direct response names.

use super::*;

#[test]
fn prefix_and_regex_rewrites_keep_the_query() {
    for (route, path, expected) in [
        (
            "match: {prefix: /a}, route: {cluster: c, prefix_rewrite: /b}",
            "/a/x?q",
            "/b/x?q",
        ),
        (
            "match: {prefix: /a/}, route: {cluster: c, prefix_rewrite: /}",
            "/a/x",
            "/x",
        ),
        (
            "match: {prefix: /a}, route: {cluster: c, prefix_rewrite: /}",
            "/a/x",
            "//x",
        ),
        (
            "match: {path: /a}, route: {cluster: c, prefix_rewrite: /b}",
            "/a?q",
            "/b?q",
        ),
        (
            "match: {prefix: /A, case_sensitive: false}, route: {cluster: c, prefix_rewrite: /b}",
            "/ax",
            "/bx",
        ),
        (
            "match: {safe_regex: {regex: '/x/.*'}}, route: {cluster: c, prefix_rewrite: /b}",
            "/x/y?q",
            "/b?q",
        ),
        (
            r"match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: '^/([^/]+)/(.*)$'}, substitution: '/\2/\1'}}",
            "/a/b/c?d=e",
            "/b/c/a?d=e",
        ),
        (
            r"match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: 'o'}, substitution: '0'}}",
            "/foo?o=o",
            "/f00?o=o",
        ),
        (
            r"match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: '(a)(b)?'}, substitution: '[\0|\1|\2]'}}",
            "/aba",
            "/[ab|a|b][a|a|]",
        ),
        (
            r"match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: 'x'}, substitution: '\\'}}",
            "/x",
            "/\\",
        ),
    ] {
        let table = routes(&format!("{{{route}}}"));
        let selected = table.select(&get("h", path), 0).expect("a route");
        let rewritten = rewrite::rewritten_path(&selected, path.as_bytes()).expect("rewritten");
        assert_eq!(String::from_utf8_lossy(&rewritten), expected, "{route}");
    }
    let table = routes(
        "{match: {prefix: /a}, route: {cluster: c, regex_rewrite: {pattern: {regex: '/a'}, substitution: ''}}}",
    );
    let selected = table.select(&get("h", "/a"), 0).expect("a route");
    for path in ["/a", "/a?q"] {
        let rewritten = rewrite::rewritten_path(&selected, path.as_bytes());
        assert_eq!(rewritten, None, "nothing would be left of {path}");
    }
}

#[test]
fn hosts_are_rewritten_and_remembered() {
    let mut head = with(get("old.test", "/"), &[("x-forwarded-host", "first.test")]);
    rewrite::set_authority(&mut head, HeaderValue::from_static("new.test"), true, true);
    assert_eq!(head.authority, "new.test");
    assert_eq!(head.headers["x-forwarded-host"], "first.test,old.test");
    assert_eq!(head.headers["x-envoy-original-host"], "old.test");
    // The last entry is not repeated.
    head.headers.insert(
        "x-forwarded-host",
        HeaderValue::from_static("a.test,new.test"),
    );
    rewrite::set_authority(
        &mut head,
        HeaderValue::from_static("newer.test"),
        true,
        false,
    );
    assert_eq!(head.headers["x-forwarded-host"], "a.test,new.test");
    assert_eq!(head.headers["x-envoy-original-host"], "old.test");
}

#[test]
fn redirects_compute_their_location() {
    for (redirect, authority, path, https, expected) in [
        (
            "host_redirect: n.test",
            "h.test",
            "/x?y=1",
            false,
            "http://n.test/x?y=1",
        ),
        (
            "path_redirect: /p",
            "h.test",
            "/x?y=1",
            false,
            "http://h.test/p?y=1",
        ),
        (
            "path_redirect: p, port_redirect: 81",
            "h.test",
            "/x?y=1",
            false,
            "http://h.test:81/p?y=1",
        ),
        (
            "path_redirect: '/p?own=1', strip_query: true",
            "h.test",
            "/x?y=1",
            false,
            "http://h.test/p?own=1",
        ),
        (
            "prefix_rewrite: /n",
            "h.test",
            "/x?y=1",
            false,
            "http://h.test/nx?y=1",
        ),
        (
            "strip_query: true",
            "h.test",
            "/x?y=1",
            false,
            "http://h.test/x",
        ),
        (
            "https_redirect: true",
            "h.test:80",
            "/",
            false,
            "https://h.test/",
        ),
        (
            "https_redirect: true",
            "h.test:81",
            "/",
            false,
            "https://h.test:81/",
        ),
        (
            "https_redirect: true",
            "h.test:443",
            "/",
            true,
            "https://h.test:443/",
        ),
        (
            "scheme_redirect: http",
            "h.test:443",
            "/",
            true,
            "http://h.test/",
        ),
        (
            "scheme_redirect: FTP",
            "h.test",
            "/",
            false,
            "FTP://h.test/",
        ),
        (
            "https_redirect: true",
            "[::1]:80",
            "/",
            false,
            "https://[::1]/",
        ),
        (
            "https_redirect: true",
            "[::1]",
            "/",
            false,
            "https://[::1]/",
        ),
        (
            "port_redirect: 99",
            "h.test:80",
            "/",
            false,
            "http://h.test:99/",
        ),
    ] {
        let table = routes(&format!(
            "{{match: {{prefix: /}}, redirect: {{{redirect}}}}}"
        ));
        let proto = if https { "https" } else { "http" };
        let mut head = with(get(authority, path), &[("x-forwarded-proto", proto)]);
        if https {
            head.scheme = Scheme::Https;
        }
        let selected = table.select(&head, 0).expect("a route");
        let Action::Redirect(action) = &selected.route.action else {
            panic!("a redirect");
        };
        if let Some(path) = redirect::rewritten_path(&selected, action, head.path.as_bytes()) {
            head.path = HeaderValue::from_bytes(&path).expect("a path");
        }
        let location = redirect::location(&selected, action, &head).expect("a location");
        assert_eq!(location, expected, "{redirect}");
    }
}

#[test]
fn plain_requests_are_sent_to_tls_where_it_is_required() {
    let table = table(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], require_tls: EXTERNAL_ONLY, routes: [{name: r, match: {prefix: /}, route: {cluster: c}}], request_headers_to_add: [{header: {key: a, value: b}}]}]}",
    );
    let external = table.select(&get("h.test:80", "/x"), 0).expect("a route");
    assert!(external.tls_redirect);
    assert_eq!(external.request_mutations().count(), 0);
    let Action::Redirect(action) = &external.route.action else {
        panic!("a redirect");
    };
    let location = redirect::location(&external, action, &get("h.test:80", "/x"));
    assert_eq!(location.expect("a location"), "https://h.test:80/x");
    assert_eq!(external.per_filter_all("f").count(), 0);
    let internal = with(get("h.test", "/x"), &[("x-envoy-internal", "true")]);
    assert_eq!(name(table.select(&internal, 0)), "r");
    let secure = with(get("h.test", "/x"), &[("x-forwarded-proto", "https")]);
    assert_eq!(name(table.select(&secure, 0)), "r");
    let shouted = with(get("h.test", "/x"), &[("x-forwarded-proto", "HTTPS")]);
    assert!(table.select(&shouted, 0).expect("a route").tls_redirect);
}

#[test]
fn the_default_port_of_a_redirect_goes_by_what_the_client_spoke() {
    let table = routes("{match: {prefix: /}, redirect: {scheme_redirect: ftp}}");
    let location = |scheme: Scheme, proto: &'static str| {
        let mut head = with(get("h.test:80", "/x"), &[("x-forwarded-proto", proto)]);
        head.scheme = scheme;
        if proto.is_empty() {
            head.headers.remove("x-forwarded-proto");
        }
        let selected = table.select(&head, 0).expect("a route");
        let Action::Redirect(action) = &selected.route.action else {
            panic!("a redirect");
        };
        redirect::location(&selected, action, &head).expect("a location")
    };
    assert_eq!(location(Scheme::Https, "http"), "ftp://h.test/x");
    assert_eq!(location(Scheme::Http, "https"), "ftp://h.test:80/x");
    // A filter has taken away what tells.
    assert_eq!(location(Scheme::Http, ""), "ftp://h.test:80/x");
}

#[test]
fn a_direct_response_names_its_own_place_as_a_redirect_does() {
    let location = |host: &str, scheme: Scheme, proto: &'static str| {
        let mut head = with(get(host, "/x"), &[("x-forwarded-proto", proto)]);
        head.scheme = scheme;
        redirect::own_location(&head).expect("a location")
    };
    for (host, without) in [
        ("[::1]:80", "[::1]"),
        ("1.2.3.4:80", "1.2.3.4"),
        ("h:80", "h"),
    ] {
        let https = location(host, Scheme::Https, "http");
        assert_eq!(https, format!("https://{without}/x"));
        let http = location(host, Scheme::Http, "http");
        assert_eq!(http, format!("http://{host}/x"));
        let not_default = location(host, Scheme::Http, "https");
        assert_eq!(not_default, format!("http://{host}/x"));
    }
    assert_eq!(location("[::1]", Scheme::Https, "http"), "https://[::1]/x");
}
