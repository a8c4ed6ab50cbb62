//! Text as a tree that remembers lines and how scalars were written.
//!
//! What YAML leaves open (is `y` a text or a boolean?) is decided by the reader, who knows the field's type. Accepted
//! beyond Envoy: `<<` merges, `!!str`. As Envoy: only the first document counts, keys tagged `!ignore` are dropped (their
//! anchors stay), of duplicate keys the last wins (with a warning here).

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::google::protobuf::{Struct, Value as PbValue, value::Kind};
use super::{Error, Format};

/// Deeper text is refused (protobuf's own limit is 100 messages).
const MAX_DEPTH: usize = 200;
/// Nodes that aliases may multiply into.
const MAX_NODES: usize = 1_000_000;

/// One value of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Counted from 1; 0 where it is not known.
    pub(super) line: u32,
    /// The value.
    pub(super) data: Data,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    /// A scalar as written; `quoted` ones are text for certain.
    Scalar { text: String, quoted: bool },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order written, keys unique.
    Map(Vec<(String, Node)>),
}

impl Node {
    fn scalar(line: u32, text: impl Into<String>, quoted: bool) -> Self {
        Self {
            line,
            data: Data::Scalar {
                text: text.into(),
                quoted,
            },
        }
    }

    /// True for an unquoted `null`, `~` or nothing.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, quoted: false }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for an error text.
    pub(super) fn describe(&self) -> String {
        match &self.data {
            Data::Scalar { .. } if self.is_null() => "null".to_owned(),
            Data::Scalar { text, .. } => format!("'{text}'"),
            Data::List(_) => "'['".to_owned(),
            Data::Map(_) => "'{'".to_owned(),
        }
    }

    fn count(&self) -> usize {
        match &self.data {
            Data::Scalar { .. } => 1,
            Data::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Data::Map(entries) => 1 + entries.iter().map(|(_, node)| node.count()).sum::<usize>(),
        }
    }
}

/// Reads text. Warnings are appended.
pub(super) fn parse(text: &str, format: Format, warnings: &mut Vec<String>) -> Result<Node, Error> {
    match format {
        Format::Yaml => parse_yaml(text, warnings).map_err(|error| {
            // yaml-cpp's wording, which tools show to their users.
            Error::Syntax(format!(
                "yaml-cpp: error at line {}, column {}: {}",
                error.marker().line(),
                error.marker().col() + 1,
                error.info()
            ))
        }),
        Format::Json => {
            let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
                Error::Syntax(format!(
                    "Unable to parse JSON as proto (INVALID_ARGUMENT: invalid JSON, near {}:{}: {error})",
                    error.line(),
                    error.column(),
                ))
            })?;
            // Valid JSON is nearly always YAML too, and that parser knows the lines.
            let mut yaml_warnings = Vec::new();
            match parse_yaml(text, &mut yaml_warnings) {
                Ok(node) => {
                    warnings.append(&mut yaml_warnings);
                    Ok(node)
                }
                Err(_) => Ok(from_json(value)),
            }
        }
    }
}

fn from_json(value: serde_json::Value) -> Node {
    let data = match value {
        serde_json::Value::Null => return Node::scalar(0, "null", false),
        serde_json::Value::Bool(value) => return Node::scalar(0, value.to_string(), false),
        serde_json::Value::Number(value) => return Node::scalar(0, value.to_string(), false),
        serde_json::Value::String(text) => return Node::scalar(0, text, true),
        serde_json::Value::Array(items) => Data::List(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(fields) => Data::Map(
            fields
                .into_iter()
                .map(|(key, value)| (key, from_json(value)))
                .collect(),
        ),
    };
    Node { line: 0, data }
}

/// The tree of a `Struct`.
pub(super) fn from_struct(value: &Struct) -> Node {
    let mut entries: Vec<_> = value
        .fields
        .iter()
        .map(|(key, value)| (key.clone(), from_value(value)))
        .collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Node {
        line: 0,
        data: Data::Map(entries),
    }
}

fn from_value(value: &PbValue) -> Node {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Node::scalar(0, "null", false),
        Some(Kind::BoolValue(value)) => Node::scalar(0, value.to_string(), false),
        Some(Kind::NumberValue(value)) => Node::scalar(0, value.to_string(), false),
        Some(Kind::StringValue(text)) => Node::scalar(0, text.clone(), true),
        Some(Kind::StructValue(value)) => from_struct(value),
        Some(Kind::ListValue(list)) => Node {
            line: 0,
            data: Data::List(list.values.iter().map(from_value).collect()),
        },
    }
}

/// A collection that is not yet complete.
struct Open {
    anchor: usize,
    node: Node,
    /// Maps: the key whose value comes next; `None` inside where the entry is to be dropped.
    key: Option<Option<String>>,
}

struct Builder<'a> {
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
    warnings: &'a mut Vec<String>,
}

fn parse_yaml(text: &str, warnings: &mut Vec<String>) -> Result<Node, ScanError> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder {
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        root: None,
        warnings,
    };
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        let line = u32::try_from(span.start.line()).unwrap_or(0);
        let fail = |text: &str| ScanError::new_str(span.start, text);
        let (anchor, node, ignored) = match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => continue,
            Event::StreamEnd | Event::DocumentEnd => break,
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if builder.stack.len() == MAX_DEPTH {
                    return Err(fail("too deeply nested"));
                }
                let data = match event {
                    Event::SequenceStart(..) => Data::List(Vec::new()),
                    _ => Data::Map(Vec::new()),
                };
                builder.stack.push(Open {
                    anchor,
                    node: Node { line, data },
                    key: None,
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let mut open = builder.stack.pop().ok_or_else(|| fail("unexpected end"))?;
                merge(&mut open.node).map_err(fail)?;
                (open.anchor, open.node, false)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || is_string_tag(tag.as_deref());
                let ignored = tag
                    .as_deref()
                    .is_some_and(|tag| tag.handle == "!" && tag.suffix == "ignore");
                (anchor, Node::scalar(line, text, quoted), ignored)
            }
            Event::Alias(anchor) => {
                let node = builder
                    .anchors
                    .get(&anchor)
                    .ok_or_else(|| fail("alias of an unfinished anchor"))?;
                builder.nodes += node.count();
                if builder.nodes > MAX_NODES {
                    return Err(fail("aliases expand to too much"));
                }
                (0, node.clone(), false)
            }
        };
        if anchor > 0 {
            builder.anchors.insert(anchor, node.clone());
        }
        builder.add(node, ignored).map_err(fail)?;
    }
    Ok(builder.root.unwrap_or_else(|| Node::scalar(1, "", false)))
}

fn is_string_tag(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str")
}

impl Builder<'_> {
    fn add(&mut self, node: Node, ignored: bool) -> Result<(), &'static str> {
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.data {
            Data::Scalar { .. } => Err("a scalar cannot hold values"),
            Data::List(items) => {
                items.push(node);
                Ok(())
            }
            Data::Map(entries) => match open.key.take() {
                None => {
                    let Data::Scalar { text, .. } = node.data else {
                        return Err("a key must be a scalar");
                    };
                    open.key = Some((!ignored).then_some(text));
                    Ok(())
                }
                Some(None) => Ok(()),
                Some(Some(key)) => {
                    match entries.iter_mut().find(|(name, _)| *name == key) {
                        Some((_, old)) if key != "<<" => {
                            self.warnings.push(format!(
                                "line {}: duplicate key '{key}' (also at line {}): the last one counts",
                                node.line, old.line
                            ));
                            *old = node;
                        }
                        _ => entries.push((key, node)),
                    }
                    Ok(())
                }
            },
        }
    }
}

/// Replaces `<<` by the entries of the mappings that it names, where the mapping has none of its own.
fn merge(node: &mut Node) -> Result<(), &'static str> {
    let Data::Map(entries) = &mut node.data else {
        return Ok(());
    };
    while let Some(at) = entries.iter().position(|(key, _)| key == "<<") {
        let (_, from) = entries.remove(at);
        let sources = match from.data {
            Data::List(items) => items,
            _ => vec![from],
        };
        for source in sources {
            let Data::Map(fields) = source.data else {
                return Err("'<<' takes mappings");
            };
            for (key, value) in fields {
                if !entries.iter().any(|(name, _)| *name == key) {
                    entries.push((key, value));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> (Node, Vec<String>) {
        let mut warnings = Vec::new();
        (
            parse(text, Format::Yaml, &mut warnings).expect("valid"),
            warnings,
        )
    }

    fn get<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
        match &node.data {
            Data::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|e| &e.1),
            _ => None,
        }
    }

    #[test]
    fn ignored_keys_go_and_their_anchors_stay() {
        let (node, _) = yaml("!ignore base: &b {k: 1}\nuse: *b\n");
        assert!(get(&node, "base").is_none());
        assert!(get(get(&node, "use").unwrap(), "k").is_some());
    }

    #[test]
    fn merges_yield_to_what_is_written() {
        let (node, _) = yaml("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\n");
        let text = |key| match &get(get(&node, "c").unwrap(), key).unwrap().data {
            Data::Scalar { text, .. } => text.clone(),
            _ => unreachable!(),
        };
        assert_eq!(
            (text("x"), text("y"), text("z")),
            ("9".into(), "2".into(), "4".into())
        );
    }

    #[test]
    fn the_last_duplicate_counts_and_is_told() {
        let (node, warnings) = yaml("id: a\nid: b\n");
        assert_eq!(get(&node, "id").unwrap().describe(), "'b'");
        assert_eq!(
            warnings,
            ["line 2: duplicate key 'id' (also at line 1): the last one counts"]
        );
    }

    #[test]
    fn only_the_first_document_counts() {
        let (node, _) = yaml("a: 1\n---\nb: 2\n");
        assert!(get(&node, "a").is_some() && get(&node, "b").is_none());
    }

    #[test]
    fn errors_name_the_line() {
        let error = parse("a:\n  - [1, 2\nb: 1\n", Format::Yaml, &mut Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("yaml-cpp: error at line 3, column "),
            "{error}"
        );
        let error = parse("{\"a\": }", Format::Json, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("near 1:7"), "{error}");
    }

    #[test]
    fn json_that_is_not_yaml_is_still_read() {
        let text = r#"{"emoji": "\ud83d\ude00", "slash": "\/"}"#;
        let node = parse(text, Format::Json, &mut Vec::new()).unwrap();
        assert_eq!(get(&node, "emoji").unwrap().describe(), "'😀'");
        assert_eq!(get(&node, "slash").unwrap().describe(), "'/'");
    }

    #[test]
    fn hostile_text_is_refused() {
        let deep = "[".repeat(5000);
        assert!(parse(&deep, Format::Yaml, &mut Vec::new()).is_err());
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        let error = parse(&bomb, Format::Yaml, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("aliases expand"), "{error}");
    }
}
