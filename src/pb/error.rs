//! Why text or bytes are not the message they should be.

use std::fmt;

/// A failure to read a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Neither YAML nor JSON; the text says where.
    Syntax(String),
    /// The text does not fit the message. Worded as Envoy does, with the line in the place of its offset.
    Mismatch {
        /// The message that was asked for.
        message: String,
        /// The way to the field; empty for the message itself.
        path: String,
        /// The type of the field.
        kind: String,
        /// Counted from 1; 0 where it is not known.
        line: u32,
        /// What is wrong.
        reason: String,
    },
    /// Strict reading met fields that the message does not have.
    UnknownFields {
        /// The message that was asked for.
        message: String,
        /// All of them: `near line 3: no such field: 'foo'; …`.
        fields: String,
    },
    /// An `Any` holds something else.
    WrongType {
        /// The type URL that was asked for.
        expected: String,
        /// The type URL of the `Any`.
        got: String,
    },
    /// No message of this name is known.
    UnknownType(String),
    /// The bytes are not an encoded message.
    Malformed {
        /// Its type.
        message: String,
        /// The decoder's words.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(text) => f.write_str(text),
            Self::Mismatch {
                message,
                path,
                kind,
                line,
                reason,
            } => {
                write!(
                    f,
                    "Unable to parse JSON as proto (INVALID_ARGUMENT: invalid JSON in {message}"
                )?;
                if !path.is_empty() {
                    write!(f, " @ {path}: {kind}")?;
                }
                if *line > 0 {
                    write!(f, ", near line {line}")?;
                }
                write!(f, ": {reason})")
            }
            Self::UnknownFields { message, fields } => write!(
                f,
                "Protobuf message (type {message} reason INVALID_ARGUMENT: invalid JSON in {message}, {fields}) has unknown fields"
            ),
            Self::WrongType { expected, got } => write!(f, "expected {expected}, got '{got}'"),
            Self::UnknownType(type_url) => write!(f, "could not find @type '{type_url}'"),
            Self::Malformed { message, reason } => write!(f, "malformed {message}: {reason}"),
        }
    }
}

impl std::error::Error for Error {}
