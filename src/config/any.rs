//! `google.protobuf.Any` to a message: the type must be the one asked for.

use prost::{Message, Name};

use super::error::ConfigError;
use crate::pb;

/// The message's full name: what follows the last `/` of a type URL.
pub fn type_name(any: &pb::Any) -> &str {
    any.type_url
        .rsplit_once('/')
        .map_or(&any.type_url, |(_, name)| name)
}

/// True where `any` holds an `M`.
pub fn holds<M: Name>(any: &pb::Any) -> bool {
    type_name(any) == M::full_name()
}

/// Decodes an `M`.
///
/// # Errors
/// Where the type is another, or the bytes are no such message.
pub fn unpack<M: Message + Name + Default>(any: &pb::Any) -> Result<M, ConfigError> {
    if !holds::<M>(any) {
        return Err(ConfigError::invalid(format!(
            "Unable to unpack as {}: [{}]",
            M::full_name(),
            any.type_url
        )));
    }
    M::decode(any.value.as_slice())
        .map_err(|_| ConfigError::invalid(format!("Unable to unpack as {}", M::full_name())))
}

/// Envoy's words for a type that nothing in this build implements.
pub fn unknown_extension(name: &str, type_url: &str) -> ConfigError {
    let type_name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
    ConfigError::invalid(format!(
        "Didn't find a registered implementation for '{name}' with type URL: '{type_name}'"
    ))
}
