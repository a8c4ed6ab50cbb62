//! `google.protobuf.Any` to a message, and Envoy's words for types that are not there.

use std::borrow::Cow;

use prost::{Message, Name};

use super::error::ConfigError;
use crate::pb;

/// Types of Istio's own Envoy build that only observe: accepted, and nothing is done.
///
/// Istio sends them in every listener and cluster; refusing one would refuse everything.
const NO_OP_TYPES: &[&str] = &[
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
];

/// The message's full name: what follows the last `/` of a type URL.
pub fn type_name(any: &pb::Any) -> &str {
    pb::type_name(&any.type_url)
}

/// True where `any` holds an `M`.
pub fn holds<M: Name>(any: &pb::Any) -> bool {
    pb::is::<M>(any)
}

/// Decodes an `M`.
///
/// # Errors
/// Where the type is another, or the bytes are no such message.
pub fn unpack<M: Message + Name + Default>(any: &pb::Any) -> Result<M, ConfigError> {
    Ok(pb::unpack(any)?)
}

/// Turns the two `TypedStruct`s into the message that they stand for; leaves all else as it is.
///
/// # Errors
/// Where the `Struct` does not fit the message.
pub fn resolve(any: &pb::Any) -> Result<Cow<'_, pb::Any>, ConfigError> {
    Ok(pb::resolve_typed_struct(any)?)
}

/// Envoy's words for a type that nothing in this build implements.
pub fn unknown_extension(name: &str, type_url: &str) -> ConfigError {
    let type_name = pb::type_name(type_url);
    ConfigError::invalid(format!(
        "Didn't find a registered implementation for '{name}' with type URL: '{type_name}'"
    ))
}

/// A type that Envoy has and this build does not, so that an operator is not sent to look for a typing error; else
/// [`unknown_extension`].
pub fn unsupported_extension(name: &str, type_url: &str) -> ConfigError {
    let type_name = pb::type_name(type_url);
    if type_name.starts_with("envoy.extensions.") && pb::is_message(type_name) {
        ConfigError::unsupported(
            "",
            format!("'{name}' ({type_name}) is not implemented by this build yet"),
        )
    } else {
        unknown_extension(name, type_url)
    }
}

/// True for the filters of Istio's own build that are accepted and do nothing; says so in the log.
pub fn is_no_op(name: &str, any: &pb::Any) -> bool {
    let no_op = NO_OP_TYPES.contains(&type_name(any));
    if no_op {
        tracing::info!(
            name,
            kind = type_name(any),
            "accepted without effect: only the mesh's own telemetry reads it"
        );
    }
    no_op
}
