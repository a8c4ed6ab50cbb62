//! What is accepted without effect, and why: the documentation of compatibility is made from these lists.
//!
//! A field belongs here only where ignoring it changes neither security nor routing. Everything else that this build
//! does not do is refused. In the parsers such fields are bound to `_`; a test holds the lists and the parsers together.

use super::{cluster, endpoint, http_connection_manager, listener, protocol, route};

/// A field's name in its message, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored(pub &'static str, pub &'static str);

/// The lists by the resource or message that they belong to.
pub fn all() -> [(&'static str, &'static [Ignored]); 7] {
    [
        ("Listener", listener::parse::IGNORED),
        (
            "HttpConnectionManager",
            http_connection_manager::parse::IGNORED,
        ),
        ("RouteConfiguration", route::parse::IGNORED),
        ("Cluster", cluster::parse::IGNORED),
        ("ClusterLoadAssignment", endpoint::parse::IGNORED),
        ("ConfigSource", cluster::source::IGNORED),
        ("HttpProtocolOptions", protocol::IGNORED),
    ]
}
