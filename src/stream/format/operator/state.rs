//! Objects of the filter state: their text, a field, or the message that they are, as JSON.

use base64::Engine as _;

use super::super::value::escape_from;
use super::{Written, bytes, display, number};
use crate::pb::{Any, TYPE_PREFIX, any_to_json};
use crate::stream::state::{StateKind, StateObject};

pub(super) fn write(
    object: &StateObject,
    field: Option<&str>,
    typed: bool,
    out: &mut Vec<u8>,
) -> Written {
    match (&object.kind, field) {
        (StateKind::Address(address), Some("ip")) => display(address.ip(), out),
        (StateKind::Address(address), Some("port")) => number(u64::from(address.port()), out),
        (_, Some(_)) | (StateKind::Opaque, _) => Written::Missing,
        (StateKind::Address(address), None) if !typed => display(address, out),
        (_, None) if !typed => bytes(&object.value, out),
        (StateKind::Message { type_url, .. }, None) => {
            let any = Any {
                type_url: type_url.to_string(),
                value: object.value.to_vec(),
            };
            display(any_to_json(&any), out);
            Written::Json
        }
        (StateKind::Bytes | StateKind::Text | StateKind::FlatBuffers, None) => {
            let value = base64::engine::general_purpose::STANDARD.encode(&object.value);
            let kind = format_args!("{TYPE_PREFIX}google.protobuf.BytesValue");
            display(
                format_args!("{{\"@type\":\"{kind}\",\"value\":\"{value}\"}}"),
                out,
            );
            Written::Json
        }
        (StateKind::String, None) => {
            out.push(b'"');
            let start = out.len();
            out.extend_from_slice(&object.value);
            escape_from(out, start);
            out.push(b'"');
            Written::Json
        }
        // Objects of Envoy's that are no messages.
        (StateKind::Object | StateKind::Address(_), None) => Written::Missing,
    }
}
