//! Text to message, by descriptor.

use std::path::Path;

use prost::{Message, Name};
use prost_reflect::DynamicMessage;

use super::Error;

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML (also reads JSON).
    Yaml,
    /// JSON.
    Json,
}

impl Format {
    /// By the extension, as Envoy: `.yaml` and `.yml` are YAML, all else is JSON.
    pub fn of_path(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Json,
        }
    }
}

/// A message read from text, and what was odd about the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<M> {
    /// The message, without the unknown fields.
    pub message: M,
    /// Fields that the message does not have: `near line 3: no such field: 'admin.foo'`.
    pub unknown_fields: Vec<String>,
    /// Duplicate keys and the like, each with its line.
    pub warnings: Vec<String>,
}

impl<M: Name> Parsed<M> {
    /// The message, where it has no unknown fields.
    ///
    /// # Errors
    /// [`Error::UnknownFields`], worded as Envoy does.
    pub fn strict(self) -> Result<M, Error> {
        match self.unknown_fields.into_iter().next() {
            Some(first) => Err(Error::UnknownFields {
                message: M::full_name(),
                first,
            }),
            None => Ok(self.message),
        }
    }
}

/// Reads a message, tolerating unknown fields.
///
/// # Errors
/// Where the text is not YAML or JSON, does not fit the message, or names an unknown `@type`.
pub fn from_text<M: Name + Default>(text: &str, format: Format) -> Result<Parsed<M>, Error> {
    let _ = format;
    let descriptor = super::descriptors()
        .get_message_by_name(&M::full_name())
        .ok_or_else(|| Error::UnknownType(M::type_url()))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(descriptor, &mut deserializer)
        .map_err(|error| Error::Syntax(error.to_string()))?;
    let message =
        M::decode(message.encode_to_vec().as_slice()).map_err(|error| Error::Malformed {
            message: M::full_name(),
            reason: error.to_string(),
        })?;
    Ok(Parsed {
        message,
        unknown_fields: Vec::new(),
        warnings: Vec::new(),
    })
}

/// Reads a message from YAML or JSON, refusing unknown fields: for tests and small fixed texts.
///
/// # Errors
/// As [`from_text`], and [`Error::UnknownFields`].
pub fn from_yaml<M: Name + Default>(text: &str) -> Result<M, Error> {
    from_text::<M>(text, Format::Yaml)?.strict()
}
