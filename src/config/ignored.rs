//! What is accepted without effect, and why: the documentation of compatibility is made from these lists.
//!
//! A field belongs here only where ignoring it changes neither security nor routing. Everything else that this build
//! does not do is refused. In the parsers such fields are bound to `_`; a test holds the lists and the parsers together.

use super::{cluster, endpoint, http_connection_manager, listener, protocol, route, tcp_proxy};

/// A field's name in its message, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored(pub &'static str, pub &'static str);

/// Fields of messages that occur in many places.
const SHARED: &[Ignored] = &[
    Ignored(
        "engine_type",
        "RE2 is the only engine; a limit of the compiled size of our own holds",
    ),
    Ignored("json_format_options", "keys are sorted, as by default"),
    Ignored(
        "watched_directory",
        "of a data source that is no plugin's code: it is read once, when the resource comes",
    ),
];

/// The lists by the resource or message that they belong to.
pub fn all() -> [(&'static str, &'static [Ignored]); 9] {
    [
        ("Listener", listener::parse::IGNORED),
        (
            "HttpConnectionManager",
            http_connection_manager::parse::IGNORED,
        ),
        ("TcpProxy", tcp_proxy::parse::IGNORED),
        ("RouteConfiguration", route::parse::IGNORED),
        ("Cluster", cluster::parse::IGNORED),
        ("ClusterLoadAssignment", endpoint::parse::IGNORED),
        ("ConfigSource", cluster::source::IGNORED),
        ("HttpProtocolOptions", protocol::IGNORED),
        ("shared", SHARED),
    ]
}

/// The lists as Markdown tables, for the documentation.
pub fn markdown() -> String {
    let mut text = String::new();
    for (message, list) in all() {
        text.push_str(&format!(
            "### {message}\n\n| field | why it is accepted without effect |\n|---|---|\n"
        ));
        for Ignored(field, reason) in list {
            text.push_str(&format!("| `{field}` | {reason} |\n"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn sources(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).expect("the model's sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, text);
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && !path.ends_with("ignored.rs")
            {
                text.push_str(&std::fs::read_to_string(&path).expect("a source file"));
            }
        }
    }

    #[test]
    fn what_parsers_drop_is_listed_with_a_reason() {
        let listed: BTreeSet<&str> = all()
            .iter()
            .flat_map(|(_, list)| list.iter())
            .map(|Ignored(field, reason)| {
                assert!(!reason.is_empty(), "{field}");
                *field
            })
            .collect();
        let mut text = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config"),
            &mut text,
        );
        let dropped = regex::Regex::new(r"\b([a-z][a-z0-9_]*): _[,\s}]").expect("a pattern");
        for found in dropped.captures_iter(&text) {
            assert!(
                listed.contains(&found[1]),
                "{} is dropped, and not listed",
                &found[1]
            );
        }
        for field in listed {
            assert!(text.contains(field), "{field} is listed, and in no parser");
        }
    }

    #[test]
    fn documentation_names_every_field() {
        let text = markdown();
        for (message, list) in all() {
            assert!(text.contains(&format!("### {message}\n")));
            for Ignored(field, reason) in list {
                assert!(text.contains(&format!("| `{field}` | {reason} |")));
            }
        }
    }

    #[test]
    fn a_field_is_listed_once_in_its_list() {
        for (name, list) in all() {
            let fields: BTreeSet<&str> = list.iter().map(|Ignored(field, _)| *field).collect();
            assert_eq!(fields.len(), list.len(), "{name}");
        }
    }
}
