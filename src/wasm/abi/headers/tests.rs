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
