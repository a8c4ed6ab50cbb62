//! Messages as attributes: fields by name, with Envoy's forms of the well-known types.
//!
//! Those of the configuration are a handful and read field by field; what plugins declare is read by its descriptor.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind as FieldKind, MapKey, MessageDescriptor, ReflectMessage};

use super::Value;
use crate::pb::google::protobuf::value::Kind;
use crate::pb::{self, envoy, google};

/// `envoy.config.core.v3.Node`.
pub(super) fn node(node: &pb::Node, rest: &[&[u8]]) -> Option<Value> {
    use envoy::config::core::v3::node::UserAgentVersionType;
    let (field, rest) = match rest {
        [] => return Some(Value::message(node)),
        [field, rest @ ..] => (*field, rest),
    };
    let build = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => Some(build),
        _ => None,
    };
    match field {
        b"id" => last(rest, || Value::text(&node.id)),
        b"cluster" => last(rest, || Value::text(&node.cluster)),
        b"metadata" => in_struct(node.metadata.as_ref(), rest),
        b"dynamic_parameters" => {
            map_of_messages(node.dynamic_parameters.iter(), rest, Value::message)
        }
        b"locality" => locality(
            node.locality
                .as_ref()
                .map(|it| [&*it.region, &*it.zone, &*it.sub_zone]),
            rest,
        ),
        b"user_agent_name" => last(rest, || Value::text(&node.user_agent_name)),
        b"user_agent_version" => last(rest, || match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentVersion(version)) => Value::text(version),
            _ => Value::text(""),
        }),
        b"user_agent_build_version" => match rest {
            [] => Some(build.map_or_else(|| Value::Message(Bytes::new()), Value::message)),
            [b"metadata", rest @ ..] => in_struct(build.and_then(|it| it.metadata.as_ref()), rest),
            [b"version", rest @ ..] => {
                let version = build.and_then(|build| build.version.as_ref());
                let number = |get: fn(&envoy::r#type::v3::SemanticVersion) -> u32| {
                    Some(Value::Uint(version.map_or(0, get).into()))
                };
                match rest {
                    [] => {
                        Some(version.map_or_else(|| Value::Message(Bytes::new()), Value::message))
                    }
                    [b"major_number"] => number(|it| it.major_number),
                    [b"minor_number"] => number(|it| it.minor_number),
                    [b"patch"] => number(|it| it.patch),
                    _ => None,
                }
            }
            _ => None,
        },
        b"extensions" => element(node.extensions.iter().map(Value::message).collect(), rest),
        b"client_features" => element(node.client_features.iter().map(Value::text).collect(), rest),
        #[allow(deprecated, reason = "Envoy still shows it")]
        b"listening_addresses" => {
            let addresses = node.listening_addresses.iter();
            element(addresses.map(Value::message).collect(), rest)
        }
        _ => None,
    }
}

/// `envoy.config.core.v3.Locality`: region, zone and sub-zone.
pub(super) fn locality(parts: Option<[&str; 3]>, rest: &[&[u8]]) -> Option<Value> {
    let [region, zone, sub_zone] = parts.unwrap_or_default();
    match rest {
        [] => Some(Value::message(&envoy::config::core::v3::Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            sub_zone: sub_zone.to_owned(),
        })),
        [b"region"] => Some(Value::text(region)),
        [b"zone"] => Some(Value::text(zone)),
        [b"sub_zone"] => Some(Value::text(sub_zone)),
        _ => None,
    }
}

/// `envoy.config.core.v3.Metadata`; `None` is an empty one.
pub(super) fn metadata(metadata: Option<&pb::Metadata>, rest: &[&[u8]]) -> Option<Value> {
    match rest {
        [] => Some(metadata.map_or_else(|| Value::Message(Bytes::new()), Value::message)),
        [b"filter_metadata"] => Some(Value::Map(
            metadata
                .into_iter()
                .flat_map(|metadata| &metadata.filter_metadata)
                .map(|(name, value)| (name.clone().into_bytes(), of_struct(value)))
                .collect(),
        )),
        [b"filter_metadata", name, rest @ ..] => {
            let name = std::str::from_utf8(name).ok()?;
            in_struct(Some(metadata?.filter_metadata.get(name)?), rest)
        }
        [b"typed_filter_metadata", rest @ ..] => {
            let entries = metadata
                .into_iter()
                .flat_map(|it| &it.typed_filter_metadata);
            map_of_messages(entries, rest, of_any)
        }
        _ => None,
    }
}

fn last(rest: &[&[u8]], value: impl FnOnce() -> Value) -> Option<Value> {
    rest.is_empty().then(value)
}

fn element(mut list: Vec<Value>, rest: &[&[u8]]) -> Option<Value> {
    match rest {
        [] => Some(Value::List(list)),
        [index] => {
            let index = index_of(index)?;
            (index < list.len()).then(|| list.swap_remove(index))
        }
        _ => None,
    }
}

fn index_of(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn map_of_messages<'a, T: 'a>(
    mut entries: impl Iterator<Item = (&'a String, &'a T)>,
    rest: &[&[u8]],
    value: impl Fn(&T) -> Value,
) -> Option<Value> {
    match rest {
        [] => Some(Value::Map(
            entries
                .map(|(name, message)| (name.clone().into_bytes(), value(message)))
                .collect(),
        )),
        [name] => {
            let (_, message) = entries.find(|(key, _)| key.as_bytes() == *name)?;
            Some(value(message))
        }
        _ => None,
    }
}

/// What is in an `Any`, where it is one of the wrappers; otherwise its message's bytes.
fn of_any(any: &google::protobuf::Any) -> Value {
    fn unpack<M: prost::Name + Default>(any: &google::protobuf::Any) -> Option<M> {
        let name = pb::type_name(&any.type_url);
        (name == M::full_name()).then(|| M::decode(&*any.value).ok())?
    }
    use google::protobuf::{Struct, Value as AnyValue};
    if let Some(text) = unpack::<String>(any) {
        Value::text(text)
    } else if let Some(bytes) = unpack::<Vec<u8>>(any) {
        Value::Bytes(bytes.into())
    } else if let Some(value) = unpack::<bool>(any) {
        Value::Bool(value)
    } else if let Some(number) = unpack::<i64>(any) {
        Value::Int(number)
    } else if let Some(number) = unpack::<i32>(any) {
        Value::Int(number.into())
    } else if let Some(number) = unpack::<u64>(any) {
        Value::Uint(number)
    } else if let Some(number) = unpack::<u32>(any) {
        Value::Uint(number.into())
    } else if let Some(number) = unpack::<f64>(any) {
        Value::Double(number)
    } else if let Some(number) = unpack::<f32>(any) {
        Value::Double(number.into())
    } else if let Some(fields) = unpack::<Struct>(any) {
        of_struct(&fields)
    } else if let Some(value) = unpack::<AnyValue>(any) {
        of_value(&value)
    } else {
        Value::Message(any.value.clone().into())
    }
}

/// A value in a `Struct`; an absent one is empty.
fn in_struct(fields: Option<&pb::Struct>, path: &[&[u8]]) -> Option<Value> {
    match path {
        [] => Some(fields.map_or_else(|| Value::Map(Vec::new()), of_struct)),
        [name, rest @ ..] => {
            let name = std::str::from_utf8(name).ok()?;
            in_value(fields?.fields.get(name)?, rest)
        }
    }
}

fn in_value(value: &google::protobuf::Value, path: &[&[u8]]) -> Option<Value> {
    match (value.kind.as_ref(), path) {
        (_, []) => Some(of_value(value)),
        (Some(Kind::StructValue(fields)), path) => in_struct(Some(fields), path),
        (Some(Kind::ListValue(list)), [index, rest @ ..]) => {
            in_value(list.values.get(index_of(index)?)?, rest)
        }
        _ => None,
    }
}

fn of_struct(fields: &pb::Struct) -> Value {
    let entries = fields.fields.iter();
    Value::Map(
        entries
            .map(|(name, value)| (name.clone().into_bytes(), of_value(value)))
            .collect(),
    )
}

fn of_value(value: &google::protobuf::Value) -> Value {
    match value.kind.as_ref() {
        Some(Kind::StringValue(text)) => Value::text(text),
        Some(Kind::NumberValue(number)) => Value::Double(*number),
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::StructValue(fields)) => of_struct(fields),
        Some(Kind::ListValue(list)) => Value::List(list.values.iter().map(of_value).collect()),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

/// A message that a plugin declared the type of, or a field of it. Without a descriptor, or where it does not decode, it
/// is null.
pub(super) fn declared(
    descriptor: Option<&MessageDescriptor>,
    bytes: &Bytes,
    rest: &[&[u8]],
) -> Option<Value> {
    let decoded = descriptor
        .and_then(|descriptor| DynamicMessage::decode(descriptor.clone(), bytes.clone()).ok());
    let Some(decoded) = decoded else {
        return rest.is_empty().then_some(Value::Null);
    };
    in_dynamic(&decoded, rest)
}

fn in_dynamic(message: &DynamicMessage, rest: &[&[u8]]) -> Option<Value> {
    let bytes = || message.encode_to_vec();
    match message.descriptor().full_name() {
        "google.protobuf.Struct" => {
            return in_struct(Some(&pb::Struct::decode(&*bytes()).ok()?), rest);
        }
        "google.protobuf.Value" => {
            return in_value(&google::protobuf::Value::decode(&*bytes()).ok()?, rest);
        }
        "google.protobuf.ListValue" => {
            let list = google::protobuf::ListValue::decode(&*bytes()).ok()?;
            let list = google::protobuf::Value {
                kind: Some(Kind::ListValue(list)),
            };
            return in_value(&list, rest);
        }
        name if name.starts_with("google.protobuf.") && rest.is_empty() => {
            return Some(well_known(name, message));
        }
        _ => {}
    }
    let (name, rest) = match rest {
        [] => return Some(Value::Message(bytes().into())),
        [name, rest @ ..] => (std::str::from_utf8(name).ok()?, rest),
    };
    let field = message.descriptor().get_field_by_name(name)?;
    let value = message.get_field(&field);
    match (&*value, rest) {
        (prost_reflect::Value::Message(inner), rest) => in_dynamic(inner, rest),
        (prost_reflect::Value::List(list), [index, rest @ ..]) => {
            match list.get(index_of(index)?)? {
                prost_reflect::Value::Message(inner) => in_dynamic(inner, rest),
                other => last(rest, || of_dynamic(other)),
            }
        }
        (prost_reflect::Value::Map(map), [key, rest @ ..]) => {
            let key = std::str::from_utf8(key).ok()?;
            match map.get(&MapKey::String(key.to_owned()))? {
                prost_reflect::Value::Message(inner) => in_dynamic(inner, rest),
                other => last(rest, || of_dynamic(other)),
            }
        }
        (prost_reflect::Value::EnumNumber(number), []) => Some(Value::Int((*number).into())),
        (other, []) if matches!(field.kind(), FieldKind::Message(_)) || !rest.is_empty() => {
            Some(of_dynamic(other))
        }
        (other, rest) => last(rest, || of_dynamic(other)),
    }
}

fn of_dynamic(value: &prost_reflect::Value) -> Value {
    use prost_reflect::Value as Dynamic;
    match value {
        Dynamic::Bool(value) => Value::Bool(*value),
        Dynamic::I32(number) | Dynamic::EnumNumber(number) => Value::Int((*number).into()),
        Dynamic::I64(number) => Value::Int(*number),
        Dynamic::U32(number) => Value::Uint((*number).into()),
        Dynamic::U64(number) => Value::Uint(*number),
        Dynamic::F32(number) => Value::Double((*number).into()),
        Dynamic::F64(number) => Value::Double(*number),
        Dynamic::String(text) => Value::text(text),
        Dynamic::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Dynamic::Message(message) => in_dynamic(message, &[]).unwrap_or(Value::Null),
        Dynamic::List(list) => Value::List(list.iter().map(of_dynamic).collect()),
        Dynamic::Map(map) => Value::Map(
            map.iter()
                .map(|(key, value)| (map_key(key), of_dynamic(value)))
                .collect(),
        ),
    }
}

fn map_key(key: &MapKey) -> Vec<u8> {
    match key {
        MapKey::Bool(value) => vec![u8::from(*value)],
        MapKey::I32(number) => i64::from(*number).to_le_bytes().to_vec(),
        MapKey::I64(number) => number.to_le_bytes().to_vec(),
        MapKey::U32(number) => u64::from(*number).to_le_bytes().to_vec(),
        MapKey::U64(number) => number.to_le_bytes().to_vec(),
        MapKey::String(text) => text.clone().into_bytes(),
    }
}

fn well_known(name: &str, message: &DynamicMessage) -> Value {
    let field = |name: &str| message.get_field_by_name(name).map(|it| of_dynamic(&it));
    let nanos = || {
        let (Some(Value::Int(seconds)), Some(Value::Int(nanos))) =
            (field("seconds"), field("nanos"))
        else {
            return 0;
        };
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    };
    match name {
        "google.protobuf.Duration" => Value::Span(nanos()),
        "google.protobuf.Timestamp" => Value::Time(nanos()),
        _ if name.ends_with("Value") => field("value").unwrap_or(Value::Null),
        _ => Value::Message(message.encode_to_vec().into()),
    }
}
