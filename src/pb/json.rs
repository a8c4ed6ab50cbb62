//! Messages as Envoy's JSON: original field names, no defaults, 64-bit integers as strings, `Any` expanded, secrets
//! redacted.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Name;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value,
};
use serde_json::{Map, Number, Value as Json};

use super::{Any, read};

/// Deeper messages are shown as null.
const MAX_DEPTH: usize = 100;

/// The JSON of a message.
pub fn to_json<M: Name>(message: &M) -> Json {
    match any_to_json(&super::pack(message)) {
        Json::Object(mut fields) => {
            fields.shift_remove("@type");
            if read::has_special_json(&M::full_name()) {
                fields.shift_remove("value").unwrap_or(Json::Null)
            } else {
                Json::Object(fields)
            }
        }
        other => other,
    }
}

/// The JSON of the message in `any`, with `@type` first. Bytes of an unknown type, or that do not decode, are shown as
/// base64 under `value`.
pub fn any_to_json(any: &Any) -> Json {
    typed(&any.type_url, &any.value, false, 0)
}

/// Envoy's layout: indented by one space.
pub fn json_text(value: &Json) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(value, &mut serializer).expect("a JSON value serialises");
    String::from_utf8(out).expect("JSON is UTF-8")
}

fn typed(type_url: &str, bytes: &[u8], redact: bool, depth: usize) -> Json {
    if type_url.is_empty() && bytes.is_empty() {
        return Json::Object(Map::new());
    }
    let mut fields = Map::new();
    fields.insert("@type".to_owned(), type_url.into());
    let message = super::descriptors()
        .get_message_by_name(super::type_name(type_url))
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
    match message {
        None => {
            fields.insert("value".to_owned(), STANDARD.encode(bytes).into());
        }
        Some(message) => match message_to_json(&message, redact, depth) {
            Json::Object(inner) if !read::has_special_json(message.descriptor().full_name()) => {
                fields.extend(inner);
            }
            special => {
                fields.insert("value".to_owned(), special);
            }
        },
    }
    Json::Object(fields)
}

/// Keys of maps whose values are as sensitive, though no annotation can say so: istiod puts the credentials for a registry
/// among a plugin's variables.
const SENSITIVE_KEYS: &[&str] = &["ISTIO_META_WASM_IMAGE_PULL_SECRET"];

/// Fields marked `(udpa.annotations.sensitive)`, by full name.
fn sensitive() -> &'static HashSet<String> {
    static FIELDS: OnceLock<HashSet<String>> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let pool = super::descriptors();
        let Some(extension) = pool.get_extension_by_name("udpa.annotations.sensitive") else {
            return HashSet::new();
        };
        pool.all_messages()
            .flat_map(|message| message.fields().collect::<Vec<_>>())
            .filter(|field| {
                field.field_descriptor_proto().options.is_some()
                    && matches!(
                        field.options().get_extension(&extension).as_ref(),
                        Value::Bool(true)
                    )
            })
            .map(|field| field.full_name().to_owned())
            .collect()
    })
}

fn message_to_json(message: &DynamicMessage, redact: bool, depth: usize) -> Json {
    if depth == MAX_DEPTH {
        return Json::Null;
    }
    let descriptor = message.descriptor();
    let number = |number: u32| message.get_field_by_number(number);
    if let Some(name) = descriptor.full_name().strip_prefix("google.protobuf.") {
        match name {
            "Any" => {
                let type_url = number(1).and_then(|v| v.as_str().map(str::to_owned));
                let bytes = number(2).and_then(|v| v.as_bytes().cloned());
                return typed(
                    &type_url.unwrap_or_default(),
                    &bytes.unwrap_or_default(),
                    redact,
                    depth + 1,
                );
            }
            "Duration" | "Timestamp" => {
                let seconds = number(1).and_then(|v| v.as_i64()).unwrap_or(0);
                let nanos = number(2).and_then(|v| v.as_i32()).unwrap_or(0);
                return if name == "Duration" {
                    duration(seconds, nanos).into()
                } else {
                    timestamp(seconds, nanos).into()
                };
            }
            "FieldMask" => {
                let paths = number(1).map(|v| {
                    let paths = v.as_list().unwrap_or(&[]).iter();
                    paths
                        .filter_map(Value::as_str)
                        .map(camel_case)
                        .collect::<Vec<_>>()
                        .join(",")
                });
                return paths.unwrap_or_default().into();
            }
            "Struct" | "ListValue" => {
                let empty = || {
                    if name == "Struct" {
                        Json::Object(Map::new())
                    } else {
                        Json::Array(Vec::new())
                    }
                };
                return number(1).map_or_else(empty, |value| match value.as_ref() {
                    Value::Map(map) => {
                        map_to_json(map, &Kind::Message(value_type(&descriptor)), redact, depth)
                    }
                    Value::List(list) => list
                        .iter()
                        .map(|item| {
                            single(item, &Kind::Message(value_type(&descriptor)), redact, depth)
                        })
                        .collect(),
                    _ => empty(),
                });
            }
            "Value" => {
                return match message.fields().next() {
                    Some((field, value)) if field.number() != 1 => {
                        single(value, &field.kind(), redact, depth)
                    }
                    _ => Json::Null,
                };
            }
            name if name.ends_with("Value") => {
                return match (descriptor.get_field(1), number(1)) {
                    (Some(field), Some(value)) => single(&value, &field.kind(), redact, depth),
                    _ => Json::Null,
                };
            }
            _ => {}
        }
    }
    let mut fields = Map::new();
    for (field, value) in message.fields() {
        let redact = redact || is_sensitive(&field);
        let kind = field.kind();
        let json = match value {
            Value::List(items) => items
                .iter()
                .map(|item| single(item, &kind, redact, depth))
                .collect(),
            Value::Map(map) => {
                let kind = match &kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    _ => kind,
                };
                map_to_json(map, &kind, redact, depth)
            }
            value => single(value, &kind, redact, depth),
        };
        fields.insert(field.name().to_owned(), json);
    }
    Json::Object(fields)
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    sensitive().contains(field.full_name())
}

fn value_type(descriptor: &prost_reflect::MessageDescriptor) -> prost_reflect::MessageDescriptor {
    descriptor
        .parent_pool()
        .get_message_by_name("google.protobuf.Value")
        .unwrap_or_else(|| descriptor.clone())
}

/// Sorted by key: maps have no order of their own, and a dump should not change by itself.
fn map_to_json(
    map: &std::collections::HashMap<MapKey, Value>,
    kind: &Kind,
    redact: bool,
    depth: usize,
) -> Json {
    let sorted: BTreeMap<_, _> = map.iter().collect();
    let entries = sorted.into_iter().map(|(key, value)| {
        let key = match key {
            MapKey::Bool(key) => key.to_string(),
            MapKey::I32(key) => key.to_string(),
            MapKey::I64(key) => key.to_string(),
            MapKey::U32(key) => key.to_string(),
            MapKey::U64(key) => key.to_string(),
            MapKey::String(key) => key.clone(),
        };
        let redact = redact || SENSITIVE_KEYS.contains(&&*key);
        (key, single(value, kind, redact, depth))
    });
    Json::Object(entries.collect())
}

fn single(value: &Value, kind: &Kind, redact: bool, depth: usize) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::I64(value) => value.to_string().into(),
        Value::U64(value) => value.to_string().into(),
        Value::F32(value) => {
            // By way of the shortest text: 0.1f is 0.1, not 0.10000000149.
            number(
                value
                    .to_string()
                    .parse()
                    .unwrap_or_else(|_| f64::from(*value)),
            )
        }
        Value::F64(value) => number(*value),
        Value::String(_) if redact => "[redacted]".into(),
        Value::Bytes(_) if redact => STANDARD.encode("[redacted]").into(),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Value::EnumNumber(number) => match kind {
            Kind::Enum(descriptor) => enumeration(descriptor, *number),
            _ => (*number).into(),
        },
        Value::Message(message) => message_to_json(message, redact, depth + 1),
        Value::List(_) | Value::Map(_) => Json::Null,
    }
}

fn enumeration(descriptor: &EnumDescriptor, number: i32) -> Json {
    if descriptor.full_name() == "google.protobuf.NullValue" {
        return Json::Null;
    }
    descriptor
        .get_value(number)
        .map_or_else(|| number.into(), |value| value.name().into())
}

/// Whole numbers without a fraction, as Envoy writes them.
fn number(value: f64) -> Json {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    if value.fract() == 0.0 && value.abs() < 9e15 {
        #[allow(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        let value = value as i64;
        return value.into();
    }
    Number::from_f64(value).map_or(Json::Null, Json::Number)
}

/// No fraction, or as many of 3, 6 or 9 digits as it needs.
fn fraction(nanos: u32) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        format!(".{:06}", nanos / 1_000)
    } else {
        format!(".{nanos:09}")
    }
}

fn duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!(
        "{sign}{}{}s",
        seconds.unsigned_abs(),
        fraction(nanos.unsigned_abs())
    )
}

fn timestamp(seconds: i64, nanos: i32) -> String {
    let whole = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    format!(
        "{}{}Z",
        whole.strftime("%Y-%m-%dT%H:%M:%S"),
        fraction(nanos.clamp(0, 999_999_999).unsigned_abs())
    )
}

fn camel_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for c in path.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::admin::v3::{Clusters, ConfigDump, Listeners};
    use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    use crate::pb::{Format, from_text, from_yaml};

    /// Reads what a real Envoy wrote, writes it, and compares: nothing may be lost, added or renamed.
    fn round_trip<M: Name + Default>(text: &str) {
        let expected: Json = serde_json::from_str(text).unwrap();
        let message = from_text::<M>(text, Format::Json)
            .unwrap()
            .strict()
            .unwrap();
        let written = to_json(&message);
        // Maps have no order, so neither has this comparison.
        assert_eq!(written, expected);
    }

    #[test]
    fn what_envoy_wrote_comes_back_the_same() {
        round_trip::<Clusters>(include_str!("../../tests/golden/admin/clusters.json"));
        round_trip::<Listeners>(include_str!("../../tests/golden/admin/listeners.json"));
        round_trip::<ConfigDump>(include_str!(
            "../../tests/golden/admin/config_dump_include_eds.json"
        ));
        let text = include_str!("../../tests/golden/admin/clusters.json");
        let clusters: Clusters = from_yaml(text).unwrap();
        assert_eq!(
            json_text(&to_json(&clusters)),
            text.trim_end(),
            "fields keep their order"
        );
    }

    #[test]
    fn an_unknown_type_is_shown_as_bytes() {
        let any = Any {
            type_url: "type.googleapis.com/stats.PluginConfig".to_owned(),
            value: vec![1, 2],
        };
        assert_eq!(
            any_to_json(&any).to_string(),
            r#"{"@type":"type.googleapis.com/stats.PluginConfig","value":"AQI="}"#
        );
        assert_eq!(any_to_json(&Any::default()).to_string(), "{}");
    }

    #[test]
    fn private_keys_are_redacted() {
        let secret: Secret = from_yaml(
            "name: s\ntls_certificate: {certificate_chain: {inline_string: CERT}, private_key: {inline_bytes: c2VjcmV0}, \
             password: {inline_string: secret}}",
        )
        .unwrap();
        let json = to_json(&secret);
        let certificate = &json["tls_certificate"];
        assert_eq!(certificate["certificate_chain"]["inline_string"], "CERT");
        assert_eq!(
            certificate["private_key"]["inline_bytes"],
            STANDARD.encode("[redacted]")
        );
        assert_eq!(certificate["password"]["inline_string"], "[redacted]");
    }

    #[test]
    fn numbers_and_times_are_written_as_envoy_does() {
        assert_eq!(number(50.0).to_string(), "50");
        assert_eq!(number(0.5).to_string(), "0.5");
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(duration(-1, -500_000_000), "-1.500s");
        assert_eq!(duration(0, 1), "0.000000001s");
        assert_eq!(
            timestamp(1_795_190_232, 109_000_000),
            "2026-11-20T15:57:12.109Z"
        );
        assert_eq!(timestamp(-1, 0), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn the_layout_is_envoys() {
        assert_eq!(
            json_text(&serde_json::json!({"a": [1], "b": {}})),
            "{\n \"a\": [\n  1\n ],\n \"b\": {}\n}"
        );
    }
}
