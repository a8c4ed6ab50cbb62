//! What a message has once, and what is joined.

use http::{HeaderValue, Method};

use super::*;
use crate::http::RequestHead;

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
