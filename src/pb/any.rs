//! `Any` and what it may hold.

use std::borrow::Cow;
use std::fmt::Write as _;

use prost::{Message as _, Name};
use prost_reflect::{Kind, MessageDescriptor};
use smallvec::SmallVec;

use super::schema::{Message, Schema};
use super::wire::{Value, next_field};
use super::{Any, Error, Struct, node, read};

/// Deeper messages are not scanned.
const MAX_DEPTH: usize = 100;

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

/// `xds.type.v3.TypedStruct` and `udpa.type.v1.TypedStruct`, which are the same on the wire and absent from
/// `envoy_types`.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

pub(super) fn is_typed_struct(name: &str) -> bool {
    matches!(name, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// The `Any` itself, or what its `TypedStruct` (`xds.type.v3` or `udpa.type.v1`) stands for.
///
/// Where the API does not know the inner type (`stats.PluginConfig` of Istio's own build), the result has that type's
/// URL, and the bytes of the `Struct` as its value: enough to tell which type it is.
///
/// # Errors
/// Where the bytes do not decode, or the `Struct` does not fit the inner message.
pub fn resolve_typed_struct(any: &Any) -> Result<Cow<'_, Any>, Error> {
    let name = super::type_name(&any.type_url);
    if !is_typed_struct(name) {
        return Ok(Cow::Borrowed(any));
    }
    let typed = TypedStruct::decode(any.value.as_slice()).map_err(|error| Error::Malformed {
        message: name.to_owned(),
        reason: error.to_string(),
    })?;
    let value = typed.value.unwrap_or_default();
    match read::any_from_node(&typed.type_url, &node::from_struct(&value)) {
        Err(Error::UnknownType(type_url)) => Ok(Cow::Owned(Any {
            type_url,
            value: value.encode_to_vec(),
        })),
        result => result.map(Cow::Owned),
    }
}

/// The paths of fields in `bytes` that this build's API does not have, `Any` included:
/// `filter_chains[0].filters[1].typed_config.<any>.99`. Empty for an unknown type and for bytes that do not decode: the
/// decoder will say so.
pub fn unknown_fields(type_url: &str, bytes: &[u8]) -> Vec<String> {
    let schema = Schema::embedded();
    let mut scan = Scan {
        schema,
        path: Vec::new(),
        found: Vec::new(),
    };
    if let Some(message) = schema.find(super::type_name(type_url)) {
        scan.message(message, bytes, 0);
    }
    scan.found
}

/// True where the API has the message that `type_url` names.
pub fn is_message(type_url: &str) -> bool {
    Schema::embedded()
        .find(super::type_name(type_url))
        .is_some()
}

/// True where each path names a field of the message that `type_url` names, `message` being its JSON: through singular
/// messages, and through an `Any` as its `@type` in the JSON says. A repeated field can only be the last of a path.
pub fn mask_fits(type_url: &str, message: &serde_json::Value, paths: &[Vec<&str>]) -> bool {
    fn fits(descriptor: &MessageDescriptor, message: &serde_json::Value, path: &[&str]) -> bool {
        let Some((name, rest)) = path.split_first() else {
            return true;
        };
        if descriptor.full_name() == "google.protobuf.Any" {
            // Nothing there, nothing to be wrong about.
            let Some(type_url) = message["@type"].as_str() else {
                return true;
            };
            return super::any::descriptor(type_url)
                .is_some_and(|descriptor| fits(&descriptor, message, path));
        }
        let Some(field) = descriptor.get_field_by_name(name) else {
            return false;
        };
        match field.kind() {
            _ if rest.is_empty() => true,
            Kind::Message(inner) if !field.is_list() && !field.is_map() => {
                fits(&inner, &message[name], rest)
            }
            _ => false,
        }
    }
    descriptor(type_url)
        .is_some_and(|descriptor| paths.iter().all(|path| fits(&descriptor, message, path)))
}

fn descriptor(type_url: &str) -> Option<MessageDescriptor> {
    super::descriptors().get_message_by_name(super::type_name(type_url))
}

/// A step down a message: the field's name, and which of a list.
#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Element(&'static str, usize),
    Any,
}

struct Scan {
    schema: &'static Schema,
    /// Where the scan is; written out only where something is found.
    path: Vec<Step>,
    found: Vec<String>,
}

impl Scan {
    /// `None` where the bytes are not an encoded message.
    fn message(&mut self, message: &Message, bytes: &[u8], depth: usize) -> Option<()> {
        if depth == MAX_DEPTH || message.is_opaque() {
            return Some(());
        }
        if message.name() == "google.protobuf.Any" {
            let (type_url, value) = any_parts(bytes)?;
            if is_typed_struct(super::type_name(type_url)) {
                return self.within(Step::Any, |scan| scan.typed_struct(value));
            }
            let inner = self.schema.find(super::type_name(type_url))?;
            return self.within(Step::Any, |scan| scan.message(inner, value, depth + 1));
        }
        let mut repeats: SmallVec<[(u32, usize); 4]> = SmallVec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, value) = next_field(&mut rest)?;
            let Some(field) = self.schema.field(message, number) else {
                self.find(number);
                continue;
            };
            let (Some(inner), Value::Bytes(value)) = (field.message, value) else {
                continue;
            };
            let step = if field.repeated {
                let index = match repeats.iter_mut().find(|(seen, _)| *seen == number) {
                    Some((_, index)) => {
                        *index += 1;
                        *index
                    }
                    None => {
                        repeats.push((number, 0));
                        0
                    }
                };
                Step::Element(field.name, index)
            } else {
                Step::Field(field.name)
            };
            let inner = self.schema.at(inner);
            self.within(step, |scan| scan.message(inner, value, depth + 1));
        }
        Some(())
    }

    fn within<T>(&mut self, step: Step, scan: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = scan(self);
        self.path.pop();
        result
    }

    /// Fields of a `TypedStruct` have names, where those of other messages have numbers.
    fn typed_struct(&mut self, bytes: &[u8]) -> Option<()> {
        let typed = TypedStruct::decode(bytes).ok()?;
        let value = node::from_struct(&typed.value.unwrap_or_default());
        for field in read::unknown_in_node(&typed.type_url, &value) {
            let separator = if field.path.is_empty() { "" } else { "." };
            self.find(format_args!("{}{separator}{}", field.path, field.name));
        }
        Some(())
    }

    fn find(&mut self, what: impl std::fmt::Display) {
        let mut path = String::new();
        for step in &self.path {
            // Writing to a `String` does not fail.
            let _ = match step {
                Step::Field(name) => write!(path, "{name}."),
                Step::Element(name, index) => write!(path, "{name}[{index}]."),
                Step::Any => write!(path, "<any>."),
            };
        }
        let _ = write!(path, "{what}");
        if !self.found.contains(&path) {
            self.found.push(path);
        }
    }
}

/// The type URL and the bytes of an encoded `Any`.
fn any_parts(mut bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (mut type_url, mut value) = ("", &[][..]);
    while !bytes.is_empty() {
        match next_field(&mut bytes)? {
            (1, Value::Bytes(url)) => type_url = std::str::from_utf8(url).ok()?,
            (2, Value::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Some((type_url, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::core::v3::TypedExtensionConfig;
    use crate::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
    use crate::pb::envoy::extensions::filters::http::router::v3::Router;
    use crate::pb::{from_yaml, is};

    const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

    fn wrapped(type_url: &str, text: &str) -> Any {
        from_yaml::<TypedExtensionConfig>(&format!(
            "{{name: n, typed_config: {{'@type': '{type_url}', {text}}}}}"
        ))
        .unwrap()
        .typed_config
        .unwrap()
    }

    #[test]
    fn unpack_minds_the_type() {
        let any = pack(&Router::default());
        assert_eq!(any.type_url, ROUTER);
        assert!(unpack::<Router>(&any).is_ok());
        assert_eq!(
            unpack::<Listener>(&any).unwrap_err().to_string(),
            format!(
                "expected type.googleapis.com/envoy.config.listener.v3.Listener, got '{ROUTER}'"
            )
        );
        let broken = Any {
            type_url: ROUTER.to_owned(),
            value: vec![0x0a, 0xff],
        };
        assert!(matches!(
            unpack::<Router>(&broken),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn both_typed_structs_stand_for_their_message() {
        for outer in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
            let any = wrapped(
                &format!("type.googleapis.com/{outer}"),
                &format!("type_url: '{ROUTER}', value: {{suppress_envoy_headers: true}}"),
            );
            let inner = resolve_typed_struct(&any).unwrap();
            let router: Router = unpack(&inner).unwrap();
            assert!(router.suppress_envoy_headers, "{outer}");
        }
        let plain = pack(&Router::default());
        assert!(matches!(resolve_typed_struct(&plain), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn a_typed_struct_of_a_foreign_type_tells_its_type() {
        let any = wrapped(
            "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url: type.googleapis.com/stats.PluginConfig, value: {a: 1}",
        );
        let inner = resolve_typed_struct(&any).unwrap();
        assert_eq!(inner.type_url, "type.googleapis.com/stats.PluginConfig");
        assert!(!is::<Router>(&inner));
    }

    #[test]
    fn a_typed_struct_that_does_not_fit_is_an_error() {
        let any = wrapped(
            "type.googleapis.com/xds.type.v3.TypedStruct",
            &format!("type_url: '{ROUTER}', value: {{suppress_envoy_headers: 7}}"),
        );
        assert!(resolve_typed_struct(&any).is_err());
    }

    #[test]
    fn unknown_fields_are_found_inside_any() {
        let mut router = Router::default().encode_to_vec();
        prost::encoding::uint32::encode(9999, &1, &mut router);
        let listener = Listener {
            filter_chains: vec![
                FilterChain::default(),
                FilterChain {
                    filters: vec![Filter {
                        name: "f".to_owned(),
                        config_type: Some(filter::ConfigType::TypedConfig(Any {
                            type_url: ROUTER.to_owned(),
                            value: router,
                        })),
                    }],
                    ..FilterChain::default()
                },
            ],
            ..Listener::default()
        };
        let mut bytes = listener.encode_to_vec();
        let url = "type.googleapis.com/envoy.config.listener.v3.Listener";
        assert_eq!(
            unknown_fields(url, &bytes),
            ["filter_chains[1].filters[0].typed_config.<any>.9999"]
        );
        prost::encoding::string::encode(1234, &"x".to_owned(), &mut bytes);
        assert_eq!(unknown_fields(url, &bytes)[1], "1234");
        assert_eq!(
            unknown_fields("type.googleapis.com/no.Such", &bytes),
            [] as [String; 0]
        );
    }

    #[test]
    fn garbage_is_survived() {
        let url = "type.googleapis.com/envoy.config.listener.v3.Listener";
        let mut seed = 1u32;
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect();
            let _ = unknown_fields(url, &bytes);
        }
    }
}
