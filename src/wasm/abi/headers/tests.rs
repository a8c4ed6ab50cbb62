//! What a message has once, what is joined, and the order of fields.

use http::{HeaderValue, Method, StatusCode};

use super::*;
use crate::http::{RequestHead, ResponseHead};

#[test]
fn what_a_message_has_once_is_joined() {
    let mut head = RequestHead::new(Method::GET, "a", "/");
    let mut removed = Removed::default();
    let mut names = Names::default();
    for (name, value) in [
        ("user-agent", "u"),
        ("user-agent", "v"),
        ("x-multi", "1"),
        ("x-multi", "2"),
        (":path", "/b"),
        ("host", "b"),
    ] {
        let field = names.parse(name.as_bytes());
        Map::Request(&mut head)
            .add(&mut removed, name.as_bytes(), field, value.as_bytes())
            .expect("HTTP");
    }
    assert_eq!(
        (&head.path, &head.authority),
        (
            &HeaderValue::from_static("/,/b"),
            &HeaderValue::from_static("a,b")
        )
    );
    assert_eq!(head.headers["user-agent"], "u,v");
    assert_eq!(head.headers.get_all("x-multi").iter().count(), 2);

    // What was taken away is not joined to.
    removed.path = true;
    Map::Request(&mut head)
        .add(&mut removed, b":path", None, b"/c")
        .expect("HTTP");
    assert_eq!(head.path, "/c");
}

#[test]
fn what_is_left_keeps_its_order() {
    let names = |head: &ResponseHead| -> Vec<String> {
        let entries = head.headers.iter();
        entries
            .map(|(name, value)| format!("{name}={}", value.to_str().expect("text")))
            .collect()
    };
    let mut removed = Removed::default();
    let mut head = ResponseHead::new(StatusCode::OK);
    for (name, value) in [
        ("a", "1"),
        ("b", "1"),
        ("b", "2"),
        ("c", "1"),
        ("d", "1"),
        ("d", "2"),
    ] {
        head.headers.append(name, HeaderValue::from_static(value));
    }
    let mut known = Names::default();
    let mut replace = |head: &mut ResponseHead, name: &'static str| {
        let field = known.parse(name.as_bytes());
        Map::Response(head)
            .replace(&mut removed, name.as_bytes(), field, b"new")
            .expect("HTTP");
    };
    replace(&mut head, "b");
    assert_eq!(names(&head), ["a=1", "c=1", "d=1", "d=2", "b=new"]);
    replace(&mut head, "b");
    assert_eq!(names(&head), ["a=1", "c=1", "d=1", "d=2", "b=new"]);
    replace(&mut head, "e");
    let mut known = Names::default();
    let mut remove = |head: &mut ResponseHead, name: &[u8]| {
        let field = known.parse(name);
        Map::Response(head).remove(&mut Removed::default(), name, field);
    };
    remove(&mut head, b"A");
    assert_eq!(names(&head), ["c=1", "d=1", "d=2", "b=new", "e=new"]);
    remove(&mut head, b"d");
    remove(&mut head, b"e");
    assert_eq!(names(&head), ["c=1", "b=new"]);
}

#[test]
fn pseudo_headers_count_for_the_size_of_a_map() {
    let long = [b'a'; 100 << 10];
    for name in [":path", ":authority", "host"] {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        let (mut removed, mut added) = (Removed::default(), 0);
        let mut add = |head: &mut RequestHead, name: &str, value: &[u8]| {
            let (mut map, name) = (Map::Request(head), name.as_bytes());
            map.room(&removed, &mut added, name, value)?;
            let mut names = Names::default();
            map.add(&mut removed, name, names.parse(name), value)
        };
        for good in [true, true, false, false] {
            assert_eq!(add(&mut head, name, &long).is_ok(), good, "{name}");
        }
        let held = head.path.len() + head.authority.len();
        assert!(held < 256 << 10, "{name}: {held}");
        // Nor is there room for others.
        assert!(add(&mut head, "x-other", &long).is_err());
        assert!(add(&mut head, "x-other", b"short").is_ok());
    }
    // What was taken away is none of it.
    let mut head = RequestHead::new(Method::GET, "a", "/");
    let (mut removed, mut added) = (Removed::default(), 0);
    for _ in 0..8 {
        let mut map = Map::Request(&mut head);
        map.clear(&mut removed);
        for name in [b":path", &b":authority"[..]] {
            assert_eq!(map.room(&removed, &mut added, name, &long), Ok(()));
            assert_eq!(map.add(&mut removed, name, None, &long), Ok(()));
        }
    }
}

#[test]
fn the_authority_of_a_tunnel_is_in_its_request_line() {
    let mut removed = Removed::default();
    for (method, authority, good) in [
        (Method::CONNECT, "b:443", true),
        (Method::CONNECT, "", false),
        (Method::CONNECT, "b c", false),
        (Method::GET, "", true),
        (Method::GET, "b c", false),
    ] {
        let mut head = RequestHead::new(method, "a:443", "");
        let set = Map::Request(&mut head).replace(
            &mut removed,
            b":authority",
            None,
            authority.as_bytes(),
        );
        assert_eq!(set.is_ok(), good, "{} {authority:?}", head.method);
        assert_eq!(head.authority == authority, good);
    }
}

#[test]
fn a_refused_name_is_shown_in_part() {
    assert_eq!(shown(b"bad name\r\n\xff"), "bad name\\r\\n\\xff");
    assert_eq!(shown(&[0xff; 1 << 20]), "\\xff".repeat(32));
    assert_eq!(shown(&[b' '; 129]).len(), 128);
}

#[test]
fn pseudo_headers_are_spelled_in_any_case() {
    let mut head = RequestHead::new(Method::GET, "a", "/");
    let (mut removed, mut names) = (Removed::default(), Names::default());
    let mut replace = |name: &str, value: &str| {
        let field = names.parse(name.as_bytes());
        let mut map = Map::Request(&mut head);
        map.replace(&mut removed, name.as_bytes(), field, value.as_bytes())
            .expect("HTTP");
    };
    replace("Host", "b.test");
    replace(":PATH", "/x");
    replace(":Method", "PUT");
    assert_eq!(
        (&head.authority, &head.path),
        (
            &"b.test".parse().expect("a value"),
            &"/x".parse().expect("a value")
        )
    );
    assert_eq!(head.method, Method::PUT);
    assert!(head.headers.is_empty());
    Map::Request(&mut head).remove(&mut removed, b":Path", None);
    assert!(removed.path);
    let mut head = ResponseHead::new(StatusCode::OK);
    Map::Response(&mut head)
        .replace(&mut removed, b":Status", None, b"201")
        .expect("HTTP");
    assert_eq!(head.status, StatusCode::CREATED);
}

#[test]
fn a_scheme_may_be_anything_or_nothing() {
    let mut head = RequestHead::new(Method::GET, "a", "/");
    let mut removed = Removed::default();
    for (value, shown) in [
        ("ftp", Some("ftp")),
        ("https", Some("https")),
        ("", Some("")),
    ] {
        Map::Request(&mut head)
            .replace(&mut removed, b":scheme", None, value.as_bytes())
            .expect("text");
        assert_eq!(head.scheme.shown(), shown);
    }
    for (value, shown) in [("http", "http"), ("", "http"), ("x", "http,x")] {
        Map::Request(&mut head)
            .add(&mut removed, b":scheme", None, value.as_bytes())
            .expect("text");
        assert_eq!(head.scheme.shown(), Some(shown));
    }
    let broken = Map::Request(&mut head).replace(&mut removed, b":scheme", None, b"a\nb");
    assert!(broken.is_err());
    Map::Request(&mut head).remove(&mut removed, b":scheme", None);
    assert_eq!(head.scheme.shown(), None);
    let removed = Removed::default();
    assert_eq!(Map::Request(&mut head).get(&removed, b":scheme"), None);
    assert_eq!(Map::Request(&mut head).count(&removed), 3);
}
