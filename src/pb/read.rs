//! Text to message, by descriptor: the canonical JSON mapping, read from a tree that knows lines.
//!
//! Wider than the mapping where Envoy is: names of enums in any case, durations, timestamps and wrappers as objects of
//! their fields (`{seconds: 5}`, `{value: 5}`). And where that hurts nobody: bare scalars are text where text is wanted,
//! a boolean may be written as YAML 1.1 has it (`yes`, `on`, `y`), a single mapping stands for a list of one message,
//! keys `x-…` of the outermost message are the writer's own.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};

use super::node::{self, Data, Node};
use super::{Any, Error};
use scalar::{boolean, bytes, float, integer, map_key};
pub(super) use well_known::has_special_json;

mod scalar;
mod well_known;

/// Protobuf's own limit.
const MAX_DEPTH: usize = 100;

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML (also reads JSON).
    Yaml,
    /// JSON.
    Json,
}

impl Format {
    /// By the extension, as Envoy: `.yaml` and `.yml` in any case are YAML, all else is JSON.
    pub fn of_path(path: &Path) -> Self {
        let extension = path.extension().unwrap_or_default();
        if extension.eq_ignore_ascii_case("yaml") || extension.eq_ignore_ascii_case("yml") {
            Self::Yaml
        } else {
            Self::Json
        }
    }
}

/// A field of the text that the message does not have, or a value that the enum does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// The way to the message: `static_resources.listeners[0]`; empty for the outermost.
    pub path: String,
    /// The name of the message, or of the enum.
    pub message: String,
    /// The field, or the value.
    pub name: String,
    /// It is a value of an enum.
    pub enum_value: bool,
    /// Counted from 1; 0 where it is not known.
    pub line: u32,
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, what) = if self.enum_value {
            ("enum", "unknown enum value")
        } else {
            ("message", "no such field")
        };
        if !self.path.is_empty() {
            write!(f, "@ {}: {kind} {}, ", self.path, self.message)?;
        }
        if self.line > 0 {
            write!(f, "near line {}: ", self.line)?;
        }
        write!(f, "{what}: '{}'", self.name)
    }
}

/// A message read from text, and what was odd about the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<M> {
    /// The message, without the unknown fields.
    pub message: M,
    /// Fields that the message, or one in it, does not have.
    pub unknown_fields: Vec<UnknownField>,
    /// Full names of deprecated fields that were used, each once.
    pub deprecated: BTreeSet<String>,
    /// Duplicate keys and the like, each with its line.
    pub warnings: Vec<String>,
}

impl<M: Name> Parsed<M> {
    /// The message, where it has no unknown fields.
    ///
    /// # Errors
    /// [`Error::UnknownFields`], worded as Envoy does, listing all of them.
    pub fn strict(self) -> Result<M, Error> {
        if self.unknown_fields.is_empty() {
            return Ok(self.message);
        }
        let fields: Vec<_> = self
            .unknown_fields
            .iter()
            .map(ToString::to_string)
            .collect();
        Err(Error::UnknownFields {
            message: M::full_name(),
            fields: fields.join("; "),
        })
    }
}

/// Reads a message, tolerating unknown fields.
///
/// # Errors
/// Where the text is not YAML or JSON, does not fit the message, or names an unknown `@type`.
pub fn from_text<M: Name + Default>(text: &str, format: Format) -> Result<Parsed<M>, Error> {
    let mut warnings = Vec::new();
    let root = node::parse(text, format, &mut warnings)?;
    let name = M::full_name();
    let descriptor = super::descriptors()
        .get_message_by_name(&name)
        .ok_or_else(|| Error::UnknownType(M::type_url()))?;
    let mut reader = Reader::new(&name);
    let message = reader.root(&descriptor, &root)?;
    let (unknown_fields, deprecated) = (reader.unknown, reader.deprecated);
    // The dynamic message knows the same fields as the typed one: they are of one build of the API.
    let message =
        M::decode(message.encode_to_vec().as_slice()).map_err(|error| Error::Malformed {
            message: name,
            reason: error.to_string(),
        })?;
    Ok(Parsed {
        message,
        unknown_fields,
        deprecated,
        warnings,
    })
}

/// Reads a message from YAML or JSON, refusing unknown fields: for tests and small fixed texts.
///
/// # Errors
/// As [`from_text`], and [`Error::UnknownFields`].
pub fn from_yaml<M: Name + Default>(text: &str) -> Result<M, Error> {
    from_text::<M>(text, Format::Yaml)?.strict()
}

/// Reads the message of type `type_url` from a tree; unknown fields are dropped.
pub(super) fn any_from_node(type_url: &str, node: &Node) -> Result<Any, Error> {
    let name = super::type_name(type_url);
    let descriptor = super::descriptors()
        .get_message_by_name(name)
        .ok_or_else(|| Error::UnknownType(type_url.to_owned()))?;
    let message = Reader::new(name).message(&descriptor, node)?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    })
}

/// The fields of a tree that the message of type `type_url` does not have; none for a type that is not known, or a tree
/// that does not fit it.
pub(super) fn unknown_in_node(type_url: &str, node: &Node) -> Vec<UnknownField> {
    let name = super::type_name(type_url);
    let Some(descriptor) = super::descriptors().get_message_by_name(name) else {
        return Vec::new();
    };
    let mut reader = Reader::new(name);
    match reader.message(&descriptor, node) {
        Ok(_) => reader.unknown,
        Err(_) => Vec::new(),
    }
}

struct Reader<'a> {
    /// The outermost message's name, for error texts.
    root: &'a str,
    path: String,
    depth: usize,
    unknown: Vec<UnknownField>,
    deprecated: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(root: &'a str) -> Self {
        Self {
            root,
            path: String::new(),
            depth: 0,
            unknown: Vec::new(),
            deprecated: BTreeSet::new(),
        }
    }

    fn root(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<DynamicMessage, Error> {
        // A text of nothing is a file that went wrong, not a wish for defaults; `{}` is that.
        if node.is_null() {
            return Err(Error::Syntax(
                "Unable to convert YAML as JSON: there is nothing in it".to_owned(),
            ));
        }
        self.message(descriptor, node)
    }

    fn mismatch(&self, node: &Node, kind: impl fmt::Display, reason: impl Into<String>) -> Error {
        Error::Mismatch {
            message: self.root.to_owned(),
            path: self.path.clone(),
            kind: kind.to_string(),
            line: node.line,
            reason: reason.into(),
        }
    }

    /// Runs `read` one step further down.
    fn within<T>(
        &mut self,
        step: fmt::Arguments<'_>,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        use fmt::Write as _;
        let length = self.path.len();
        let _ = self.path.write_fmt(step);
        if length == 0 && self.path.starts_with('.') {
            self.path.remove(0);
        }
        let result = read(self);
        self.path.truncate(length);
        result
    }

    fn entries<'n>(
        &self,
        node: &'n Node,
        kind: &MessageDescriptor,
    ) -> Result<&'n [(String, Node)], Error> {
        match &node.data {
            Data::Map(entries) => Ok(entries),
            _ => Err(self.mismatch(
                node,
                format_args!("message {}", kind.full_name()),
                format!("unexpected {}; expected '{{'", node.describe()),
            )),
        }
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<DynamicMessage, Error> {
        if self.depth == MAX_DEPTH {
            return Err(self.mismatch(node, "message", "too deeply nested"));
        }
        self.depth += 1;
        let result = match descriptor.full_name() {
            "google.protobuf.Any" => self.any(descriptor, node),
            name if name.starts_with("google.protobuf.") => {
                match self.well_known(descriptor, node)? {
                    Some(message) => Ok(message),
                    None => self.plain(descriptor, node, false),
                }
            }
            _ => self.plain(descriptor, node, false),
        };
        self.depth -= 1;
        result
    }

    /// A message whose JSON is an object of its fields.
    fn plain(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
        in_any: bool,
    ) -> Result<DynamicMessage, Error> {
        let mut message = DynamicMessage::new(descriptor.clone());
        for (key, value) in self.entries(node, descriptor)? {
            if in_any && key == "@type" {
                continue;
            }
            let field = descriptor
                .get_field_by_name(key)
                .or_else(|| descriptor.get_field_by_json_name(key));
            let Some(field) = field else {
                if self.path.is_empty() && !in_any && key.starts_with("x-") {
                    continue;
                }
                self.unknown.push(UnknownField {
                    path: self.path.clone(),
                    message: descriptor.full_name().to_owned(),
                    name: key.clone(),
                    enum_value: false,
                    line: value.line,
                });
                continue;
            };
            if let Some(oneof) = field.containing_oneof()
                && !value.is_null()
                && let Some(other) = oneof.fields().find(|other| message.has_field(other))
                && other != field
            {
                return Err(self.mismatch(
                    value,
                    format_args!("message {}", descriptor.full_name()),
                    format!(
                        "'{}' and '{}' exclude each other",
                        other.name(),
                        field.name()
                    ),
                ));
            }
            let options = &field.field_descriptor_proto().options;
            if options.as_ref().and_then(|options| options.deprecated) == Some(true) {
                self.deprecated.insert(field.full_name().to_owned());
            }
            let value = self.within(format_args!(".{}", field.name()), |reader| {
                reader.field(&field, value)
            })?;
            if let Some(value) = value {
                message.set_field(&field, value);
            }
        }
        Ok(message)
    }

    fn field(&mut self, field: &FieldDescriptor, node: &Node) -> Result<Option<Value>, Error> {
        let kind = field.kind();
        if node.is_null() && !takes_null(&kind, field) {
            return Ok(None);
        }
        if field.is_map() {
            let Kind::Message(entry) = &kind else {
                return Ok(None);
            };
            let (key_kind, value_field) = (
                entry.map_entry_key_field().kind(),
                entry.map_entry_value_field(),
            );
            let mut map = std::collections::HashMap::new();
            for (key, value) in self.entries(node, entry)? {
                let map_key = map_key(&key_kind, key).ok_or_else(|| {
                    self.mismatch(value, "map key", format!("invalid key '{key}'"))
                })?;
                let value = self.within(format_args!("[{key:?}]"), |reader| {
                    reader.single(&value_field.kind(), value)
                })?;
                map.insert(map_key, value);
            }
            return Ok(Some(Value::Map(map)));
        }
        if !field.is_list() {
            return self.single(&kind, node).map(Some);
        }
        let items = match (&node.data, &kind) {
            (Data::List(items), _) => items.as_slice(),
            (Data::Map(_), Kind::Message(_)) => std::slice::from_ref(node),
            _ => {
                return Err(self.mismatch(
                    node,
                    "repeated field",
                    format!("unexpected {}; expected '['", node.describe()),
                ));
            }
        };
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            list.push(self.within(format_args!("[{index}]"), |reader| {
                reader.single(&kind, item)
            })?);
        }
        Ok(Some(Value::List(list)))
    }

    fn single(&mut self, kind: &Kind, node: &Node) -> Result<Value, Error> {
        if let Kind::Message(descriptor) = kind {
            return self.message(descriptor, node).map(Value::Message);
        }
        let Data::Scalar { text, quoted } = &node.data else {
            return Err(self.mismatch(
                node,
                kind_name(kind),
                format!("unexpected {}; expected a scalar", node.describe()),
            ));
        };
        let number = || self.mismatch(node, kind_name(kind), format!("invalid number: '{text}'"));
        Ok(match kind {
            Kind::Double => Value::F64(float(text).ok_or_else(number)?),
            Kind::Float => {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "that is what `float` means"
                )]
                let value = float(text).ok_or_else(number)? as f32;
                Value::F32(value)
            }
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(
                integer(text, *quoted)
                    .and_then(|value| i32::try_from(value).ok())
                    .ok_or_else(number)?,
            ),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(
                integer(text, *quoted)
                    .and_then(|value| i64::try_from(value).ok())
                    .ok_or_else(number)?,
            ),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(
                integer(text, *quoted)
                    .and_then(|value| u32::try_from(value).ok())
                    .ok_or_else(number)?,
            ),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(
                integer(text, *quoted)
                    .and_then(|value| u64::try_from(value).ok())
                    .ok_or_else(number)?,
            ),
            Kind::Bool => Value::Bool(
                boolean(text)
                    .filter(|_| !quoted || matches!(text.as_str(), "true" | "false"))
                    .ok_or_else(|| {
                        self.mismatch(
                            node,
                            "bool",
                            format!("unexpected '{text}'; expected true or false"),
                        )
                    })?,
            ),
            Kind::String => Value::String(text.clone()),
            Kind::Bytes => Value::Bytes(
                bytes(text)
                    .ok_or_else(|| self.mismatch(node, "bytes", "invalid base64"))?
                    .into(),
            ),
            Kind::Enum(descriptor) => Value::EnumNumber(self.enumeration(descriptor, text, node)),
            Kind::Message(_) => return Err(self.mismatch(node, "message", "expected '{'")),
        })
    }

    /// A value that the enum does not have counts as an unknown field, as in Envoy: refused or passed over with those.
    fn enumeration(&mut self, descriptor: &EnumDescriptor, text: &str, node: &Node) -> i32 {
        if descriptor.full_name() == "google.protobuf.NullValue" {
            return 0;
        }
        let named = |name: &str| {
            descriptor
                .get_value_by_name(name)
                .map(|value| value.number())
        };
        named(text)
            .or_else(|| text.parse().ok())
            .or_else(|| named(&text.to_ascii_uppercase().replace('-', "_")))
            .unwrap_or_else(|| {
                self.unknown.push(UnknownField {
                    path: self.path.clone(),
                    message: descriptor.full_name().to_owned(),
                    name: text.to_owned(),
                    enum_value: true,
                    line: node.line,
                });
                0
            })
    }

    fn any(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
    ) -> Result<DynamicMessage, Error> {
        let entries = self.entries(node, descriptor)?;
        let mut any = DynamicMessage::new(descriptor.clone());
        let Some((_, type_node)) = entries.iter().find(|(key, _)| key == "@type") else {
            if entries.is_empty() {
                return Ok(any);
            }
            return Err(self.mismatch(node, "message google.protobuf.Any", "missing @type"));
        };
        let Data::Scalar { text: type_url, .. } = &type_node.data else {
            return Err(self.mismatch(type_node, "@type", "expected text"));
        };
        let inner = descriptor
            .parent_pool()
            .get_message_by_name(super::type_name(type_url))
            .ok_or_else(|| {
                self.mismatch(
                    type_node,
                    "message google.protobuf.Any",
                    format!("could not find @type '{type_url}'"),
                )
            })?;
        // As Envoy's texts have it; also tells the outermost message's `x-…` keys from these.
        let length = self.path.len();
        self.path.push_str(".<any>");
        if super::any::is_typed_struct(inner.full_name()) {
            self.typed_struct(entries);
        }
        let message = if has_special_json(inner.full_name()) {
            match entries.iter().find(|(key, _)| key == "value") {
                Some((_, value)) => self.message(&inner, value),
                None => Ok(DynamicMessage::new(inner)),
            }
        } else {
            self.plain(&inner, node, true)
        };
        self.path.truncate(length);
        any.set_field_by_number(1, Value::String(type_url.clone()));
        any.set_field_by_number(2, Value::Bytes(message?.encode_to_vec().into()));
        Ok(any)
    }

    /// Looks for fields in the value of a `TypedStruct` that the message it stands for does not have. What else may be
    /// wrong with it is told where it is resolved.
    fn typed_struct(&mut self, entries: &[(String, Node)]) {
        let entry = |name: &str, other: &str| {
            let mut entries = entries.iter();
            entries.find(|(key, _)| key == name || key == other)
        };
        let (Some((_, type_url)), Some((_, value))) =
            (entry("type_url", "typeUrl"), entry("value", "value"))
        else {
            return;
        };
        if let Data::Scalar { text, .. } = &type_url.data {
            let found = unknown_in_node(text, value);
            self.unknown
                .extend(found.into_iter().map(|field| UnknownField {
                    path: match field.path.as_str() {
                        "" => self.path.clone(),
                        path => format!("{}.{path}", self.path),
                    },
                    ..field
                }));
        }
    }
}

fn takes_null(kind: &Kind, field: &FieldDescriptor) -> bool {
    !field.is_list()
        && !field.is_map()
        && match kind {
            Kind::Message(descriptor) => descriptor.full_name() == "google.protobuf.Value",
            Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
            _ => false,
        }
}

fn kind_name(kind: &Kind) -> String {
    format!("{kind:?}")
}

#[cfg(test)]
mod tests;
