//! Heads, before and after.

use super::*;

const FACTS: Facts<'_> = Facts {
    remote: Some(SocketAddr::new(
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
        5,
    )),
    local: Some(SocketAddr::new(
        IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        80,
    )),
    own_address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
    node_cluster: "cluster",
    node_id: "node",
};

/// A head as the HTTP/1 codec gives it.
fn get(path: &str, headers: &[(&'static str, &'static str)]) -> RequestHead {
    let mut head = RequestHead::new(Method::GET, "a.test", path);
    head.scheme = Scheme::Unknown;
    for (name, value) in headers {
        head.headers.append(*name, HeaderValue::from_static(value));
    }
    head
}

fn header<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    head.headers.get(name)?.to_str().ok()
}

#[test]
fn what_an_upgrade_asks_for_stays_and_other_requests_lose_it() {
    let asked = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("te", "gzip"),
        ("keep-alive", "3"),
        ("proxy-connection", "close"),
    ];
    for upgrade in [true, false] {
        let mut head = get("/", &asked);
        head.upgrade = upgrade.then(|| HeaderValue::from_static("WebSocket"));
        prepare(&mut head, &Options::default(), &FACTS).expect("served");
        for (name, value) in asked {
            let stays = upgrade && matches!(name, "connection" | "upgrade" | "te");
            assert_eq!(header(&head, name), stays.then_some(value), "{name}");
        }
    }
}

#[test]
fn paths_are_normalised_as_envoy_does() {
    for (path, normal) in [
        ("/a/../echo", "/echo"),
        ("//a//b", "//a//b"),
        ("/a%2e%2e/b", "/a../b"),
        ("/a/./b", "/a/b"),
        ("/../../x", "/x"),
        ("/a%41", "/aA"),
        ("/a;b", "/a;b"),
        ("/a\\b", "/a/b"),
        ("/%zz", "/%zz"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/", "/"),
    ] {
        assert_eq!(
            normalize(path.as_bytes()).map(|path| String::from_utf8_lossy(&path).into_owned()),
            Some(normal.to_owned()),
            "{path}"
        );
    }
    assert_eq!(normalize(b"/a%00b"), None);
}

#[test]
fn escaped_slashes_are_found_in_either_case() {
    assert_eq!(
        unescape_slashes(b"/a%2Fb%5cc").as_deref(),
        Some(&b"/a/b\\c"[..])
    );
    assert_eq!(unescape_slashes(b"/a%2"), None);
}

#[test]
fn the_port_of_an_authority_is_after_the_brackets() {
    assert_eq!(split_port(b"a.test:80"), (&b"a.test"[..], Some(80)));
    assert_eq!(split_port(b"[::1]"), (&b"[::1]"[..], None));
    assert_eq!(split_port(b"[::1]:8"), (&b"[::1]"[..], Some(8)));
    assert_eq!(split_port(b"a:x"), (&b"a:x"[..], None));
}

#[test]
fn the_scheme_is_what_a_trusted_hop_says_of_it() {
    let edge = Options {
        use_remote_address: true,
        ..Options::default()
    };
    let behind = Options {
        xff_num_trusted_hops: 1,
        ..edge.clone()
    };
    let fixed = Options {
        scheme_to_overwrite: Some("https".into()),
        ..Options::default()
    };
    for (options, told, scheme, forwarded) in [
        (&Options::default(), None, Scheme::Http, "http"),
        (&Options::default(), Some("https"), Scheme::Https, "https"),
        (&Options::default(), Some("HTTPS"), Scheme::Https, "HTTPS"),
        (&Options::default(), Some("bad"), Scheme::Http, "bad"),
        (&edge, Some("https"), Scheme::Http, "http"),
        (&behind, Some("https"), Scheme::Https, "https"),
        (&behind, None, Scheme::Http, "http"),
        (&fixed, None, Scheme::Https, "https"),
        (&fixed, Some("bad"), Scheme::Https, "https"),
    ] {
        let headers: Vec<_> = told
            .map(|told| ("x-forwarded-proto", told))
            .into_iter()
            .collect();
        let mut head = get("/", &headers);
        prepare(&mut head, options, &FACTS).expect("accepted");
        assert_eq!(
            (head.scheme.clone(), header(&head, "x-forwarded-proto")),
            (scheme, Some(forwarded)),
            "{told:?}"
        );
    }
}

#[test]
fn the_port_is_told_wherever_no_trusted_hop_tells_one() {
    for (use_remote_address, told, port) in [
        (true, None, "80"),
        (true, Some("1"), "80"),
        (false, None, "80"),
        (false, Some("1"), "1"),
    ] {
        let options = Options {
            use_remote_address,
            append_x_forwarded_port: true,
            ..Options::default()
        };
        let headers: Vec<_> = told
            .map(|told| ("x-forwarded-port", told))
            .into_iter()
            .collect();
        let mut head = get("/", &headers);
        prepare(&mut head, &options, &FACTS).expect("accepted");
        assert_eq!(header(&head, "x-forwarded-port"), Some(port), "{told:?}");
    }
}

#[test]
fn an_empty_request_id_is_replaced() {
    let mut head = get("/", &[("x-request-id", "")]);
    prepare(&mut head, &Options::default(), &FACTS).expect("accepted");
    assert_eq!(header(&head, "x-request-id").map(str::len), Some(36));
}

#[test]
fn slashes_are_merged_but_two_stay_of_nothing_else() {
    for (path, merged) in [
        ("/", None),
        ("/a/", None),
        ("//", Some("//")),
        ("///", Some("//")),
        ("//a", Some("/a")),
        ("/a//b//", Some("/a/b/")),
    ] {
        let made = merge_slashes(path.as_bytes());
        assert_eq!(made.as_deref(), merged.map(str::as_bytes), "{path}");
    }
}

#[test]
fn what_is_refused_for_its_slashes_has_no_scheme_yet() {
    let options = |escaped_slashes| Options {
        escaped_slashes,
        ..Options::default()
    };
    let mut head = get("/a%2Fb", &[]);
    let reply = prepare(&mut head, &options(EscapedSlashes::Reject), &FACTS).expect_err("refused");
    assert_eq!(reply.status, 400);
    assert_eq!(
        (head.scheme, head.path.as_bytes()),
        (Scheme::Unknown, &b"/a/b"[..])
    );

    let redirect = options(EscapedSlashes::UnescapeAndRedirect);
    let reply = prepare(&mut get("/a%2Fb?q", &[]), &redirect, &FACTS).expect_err("redirected");
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["location"]),
        (307, &HeaderValue::from_static("/a/b?q"))
    );
    let mut grpc = get("/a%2Fb", &[("content-type", "application/grpc")]);
    let reply = prepare(&mut grpc, &redirect, &FACTS).expect_err("refused");
    assert_eq!(
        (reply.status.as_u16(), reply.headers.get("location")),
        (400, None)
    );
}

#[test]
fn what_is_refused_is_routed_by_what_the_client_says_it_spoke() {
    for (headers, routable) in [
        (&[("x-forwarded-proto", "http")][..], true),
        (&[("x-forwarded-proto", "")][..], false),
        (&[][..], false),
    ] {
        let mut head = get("/a#b", headers);
        prepare(&mut head, &Options::default(), &FACTS).expect_err("refused");
        assert_eq!(is_routable(&head), routable, "{headers:?}");
    }
}

#[test]
fn nobody_is_internal_whom_no_header_names() {
    let options = Options {
        internal_ranges: vec![crate::config::listener::IpRange {
            address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 0)),
            prefix_len: 8,
        }],
        ..Options::default()
    };
    let mut head = get("/", &[]);
    assert!(
        !prepare(&mut head, &options, &FACTS)
            .expect("accepted")
            .internal
    );
    let mut head = get("/", &[("x-forwarded-for", "10.1.1.1")]);
    assert!(
        prepare(&mut head, &options, &FACTS)
            .expect("accepted")
            .internal
    );
    let edge = Options {
        use_remote_address: true,
        ..options
    };
    let mut head = get("/", &[]);
    assert!(
        prepare(&mut head, &edge, &FACTS)
            .expect("accepted")
            .internal
    );
}

#[test]
fn a_dot_at_the_end_of_a_host_goes_whatever_follows_the_colon() {
    let options = Options {
        strip_trailing_host_dot: true,
        ..Options::default()
    };
    for (host, stripped) in [
        ("a.test.", "a.test"),
        ("a.test.:80", "a.test:80"),
        ("a.test.:x", "a.test:x"),
        ("a.test", "a.test"),
        ("[::1]:80", "[::1]:80"),
    ] {
        let mut head = get("/", &[]);
        head.authority = HeaderValue::from_static(host);
        prepare(&mut head, &options, &FACTS).expect("accepted");
        assert_eq!(head.authority, stripped);
    }
}
