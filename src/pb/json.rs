//! Messages as Envoy's JSON: original field names, no defaults, 64-bit integers as strings, `Any` expanded.

use prost::Name;
use serde_json::Value;

use super::Any;

/// The JSON of a message.
pub fn to_json<M: Name>(message: &M) -> Value {
    let mut value = any_to_json(&super::pack(message));
    if let Value::Object(fields) = &mut value {
        fields.shift_remove("@type");
    }
    value
}

/// The JSON of the message in `any`, with `@type` first. Bytes of an unknown type, or that do not decode, are shown as
/// base64 under `value`.
pub fn any_to_json(any: &Any) -> Value {
    let _ = any;
    Value::Null
}

/// Envoy's layout: indented by one space.
pub fn json_text(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(value, &mut serializer).expect("a JSON value serialises");
    String::from_utf8(out).expect("JSON is UTF-8")
}
