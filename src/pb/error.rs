//! Why text or bytes are not the message they should be.

/// A failure to read a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither YAML nor JSON; the text says where.
    #[error("{0}")]
    Syntax(String),
    /// The text does not fit the message. Worded as Envoy does, with the place added.
    #[error(
        "Unable to parse JSON as proto (INVALID_ARGUMENT: invalid JSON in {message} @ {path}: {kind}, {place}: {reason})"
    )]
    Mismatch {
        /// The message that was asked for.
        message: String,
        /// The way to the field.
        path: String,
        /// The type of the field.
        kind: String,
        /// `line 3`, or `unknown line`.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Strict reading met fields that the message does not have.
    #[error(
        "Protobuf message (type {message} reason INVALID_ARGUMENT: invalid JSON in {message}, {first}) has unknown fields"
    )]
    UnknownFields {
        /// The message that was asked for.
        message: String,
        /// The first one: `near line 3: no such field: 'foo'`.
        first: String,
    },
    /// An `Any` holds something else.
    #[error("expected {expected}, got '{got}'")]
    WrongType {
        /// The type URL that was asked for.
        expected: String,
        /// The type URL of the `Any`.
        got: String,
    },
    /// No message of this name is known.
    #[error("could not find @type '{0}'")]
    UnknownType(String),
    /// The bytes are not an encoded message.
    #[error("malformed {message}: {reason}")]
    Malformed {
        /// Its type.
        message: String,
        /// The decoder's words.
        reason: String,
    },
}
