//! Attributes: what is known of the stream, its connection, the upstream, the configuration and the plugin, by path.
//!
//! One tree serves `proxy_get_property` and expressions. Envoy resolves a path segment by segment: a name at the top is
//! a group, a message or a value; what plugins set comes after Envoy's own names, and the names before 1.33 last.

pub(super) mod message;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Status, pairs};
use crate::pb;
use crate::stream::Stream;
use crate::stream::state::{StateKind, StateObject, with_object};
use crate::wasm::context::{Host, Removed, Visible};
use crate::wasm::spec::PluginSpec;

/// A value before it is encoded.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    /// Text: as Envoy, not always UTF-8.
    Text(Bytes),
    Bytes(Bytes),
    /// Nanoseconds since 1970.
    Time(i64),
    /// Nanoseconds.
    Span(i64),
    List(Vec<Value>),
    /// Keys in their encoded form.
    Map(Vec<(Vec<u8>, Value)>),
    /// A serialized message.
    Message(Bytes),
    /// A group of attributes: each can be asked for, all of them cannot.
    Group,
}

impl Value {
    pub(super) fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(Bytes::copy_from_slice(text.as_ref()))
    }

    pub(super) fn message(message: &impl prost::Message) -> Self {
        Self::Message(message.encode_to_vec().into())
    }

    pub(super) fn span(duration: Duration) -> Self {
        Self::Span(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    pub(super) fn time(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self::Time(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)),
            Err(before) => {
                let nanos = i64::try_from(before.duration().as_nanos());
                Self::Time(nanos.map_or(i64::MIN, |nanos| -nanos))
            }
        }
    }

    /// Envoy's form: strings, bytes and messages as they are, numbers as 8 bytes little-endian, booleans as one byte,
    /// times in nanoseconds, maps as pairs, lists as pairs of elements and nothing.
    pub(super) fn encode(self) -> Result<Bytes, Status> {
        Ok(match self {
            Self::Text(bytes) | Self::Bytes(bytes) | Self::Message(bytes) => bytes,
            Self::Int(number) | Self::Time(number) | Self::Span(number) => {
                Bytes::copy_from_slice(&number.to_le_bytes())
            }
            Self::Uint(number) => Bytes::copy_from_slice(&number.to_le_bytes()),
            Self::Double(number) => Bytes::copy_from_slice(&number.to_le_bytes()),
            Self::Bool(value) => Bytes::from_static(if value { b"\x01" } else { b"\0" }),
            Self::List(elements) => {
                let pairs: Vec<(Bytes, &[u8])> = elements
                    .into_iter()
                    .map(|element| Ok((element.encode()?, &b""[..])))
                    .collect::<Result<_, Status>>()?;
                pairs::to_bytes(&pairs).into()
            }
            Self::Map(entries) => {
                let pairs: Vec<(Vec<u8>, Bytes)> = entries
                    .into_iter()
                    .map(|(key, value)| Ok((key, value.encode()?)))
                    .collect::<Result<_, Status>>()?;
                pairs::to_bytes(&pairs).into()
            }
            Self::Null | Self::Group => return Err(Status::SerializationFailure),
        })
    }
}

/// What a context sees. Owned, so that the values of an expression can hold on to it.
#[derive(Debug)]
pub(super) struct Scope {
    plugin: Arc<PluginSpec>,
    node: Option<Arc<pb::Node>>,
    exchange: Option<Exchange>,
}

/// A stream as a context sees it.
#[derive(Debug)]
struct Exchange {
    stream: Arc<Stream>,
    /// An access logger is shown it.
    logged: bool,
    visible: Visible,
    removed: Removed,
    /// The context holds a response head that a direct reply has taken the place of.
    overwritten: bool,
}

impl Scope {
    /// That of the effective context.
    pub(super) fn effective(host: &Host) -> Self {
        Self::of(host, host.effective)
    }

    /// That of the context whose callback runs, whatever context the guest has chosen.
    pub(super) fn current(host: &Host) -> Self {
        Self::of(host, host.current)
    }

    fn of(host: &Host, id: u32) -> Self {
        let context = host.streams.get(id);
        let stream = context.map(|context| Arc::clone(&context.stream));
        let root = context.map_or(id, |context| context.root);
        let root = host.roots.iter().find(|known| known.id == root);
        Self {
            plugin: Arc::clone(root.map_or(host.spec(), |root| &root.made_for.spec)),
            node: host.env.node.clone(),
            exchange: stream.map(|stream| {
                let lenient = host.env.policy.lenient_header_reads;
                Exchange {
                    overwritten: context.is_some_and(|context| context.visible.response_headers)
                        && stream.overwritten.lock().is_some(),
                    stream,
                    logged: context.is_some_and(|context| context.root == id),
                    visible: context
                        .map(|context| context.readable(lenient))
                        .unwrap_or_default(),
                    removed: context.map(|context| context.removed).unwrap_or_default(),
                }
            }),
        }
    }

    /// The value at `path`, which has a segment at least. `whole`: nothing will be asked of the value itself, which
    /// matters to messages that plugins set.
    pub(super) fn find(&self, path: &[&[u8]], whole: bool) -> Option<Value> {
        let (first, rest) = path.split_first()?;
        self.envoys(first, rest)
            .unwrap_or_else(|| self.property(first, rest, whole))
    }

    /// What Envoy itself has by that name; `None` where it does not know it (now).
    fn envoys(&self, first: &[u8], rest: &[&[u8]]) -> Option<Option<Value>> {
        if first == b"xds" {
            return Some(self.xds(rest));
        }
        let exchange = match self.exchange.as_ref() {
            Some(exchange) if exchange.has(first) => exchange,
            _ => return None,
        };
        Some(exchange.find(first, rest, self))
    }

    fn xds(&self, rest: &[&[u8]]) -> Option<Value> {
        match rest {
            [] => Some(Value::Group),
            [b"node", rest @ ..] => message::node(self.node.as_deref()?, rest),
            [name, rest @ ..] => self.exchange.as_ref()?.xds(name, rest),
        }
    }

    /// What the host adds, and what plugins set.
    fn property(&self, first: &[u8], rest: &[&[u8]], whole: bool) -> Option<Value> {
        let value = match first {
            b"plugin_name" => Value::text(&*self.plugin.name),
            b"plugin_root_id" => Value::text(&*self.plugin.root_id),
            b"plugin_vm_id" => Value::text(&*self.plugin.vm_id),
            b"connection_id" => {
                let exchange = self.exchange.as_ref().filter(|exchange| !exchange.logged)?;
                Value::Uint(exchange.stream.connection.id)
            }
            _ => {
                let name = state_name(first);
                let whole = whole && rest.is_empty();
                return match self.state(&name, |object| of_object(object, rest, whole)) {
                    Some(found) => found,
                    None => self.before_1_33(first, rest),
                };
            }
        };
        rest.is_empty().then_some(value)
    }

    /// Names that Envoy dropped in 1.33 and that plugins still ask for.
    fn before_1_33(&self, first: &[u8], rest: &[&[u8]]) -> Option<Value> {
        match first {
            b"node" => message::node(self.node.as_deref()?, rest),
            b"cluster_name"
            | b"cluster_metadata"
            | b"route_name"
            | b"route_metadata"
            | b"listener_direction"
            | b"listener_metadata"
            | b"upstream_host_metadata" => self.exchange.as_ref()?.xds(first, rest),
            _ => None,
        }
    }

    fn state<R>(&self, name: &str, f: impl FnOnce(&StateObject) -> R) -> Option<R> {
        let stream = &self.exchange.as_ref()?.stream;
        let info = stream.info.lock();
        let connection = &stream.connection.filter_state;
        with_object(&info.filter_state, connection, name, f)
    }
}

/// The name in the filter state of what a plugin calls `name`.
pub(super) fn state_name(name: &[u8]) -> String {
    format!("wasm.{}", latin1_or_utf8(name))
}

/// Names are bytes in Envoy. What is no UTF-8 gets a name of its own.
fn latin1_or_utf8(name: &[u8]) -> std::borrow::Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(text) => text.into(),
        Err(_) => name
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .into(),
    }
}

/// An object of the filter state, or a field of it. `whole`: the bytes of a message are asked for.
fn of_object(object: &StateObject, rest: &[&[u8]], whole: bool) -> Option<Value> {
    let value = match &object.kind {
        StateKind::Bytes | StateKind::FlatBuffers | StateKind::Object | StateKind::String => {
            Value::Bytes(object.value.clone())
        }
        StateKind::Text => Value::Text(object.value.clone()),
        StateKind::Message { .. } if whole => Value::Bytes(object.value.clone()),
        StateKind::Message { descriptor, .. } => {
            return message::declared(descriptor.as_ref(), &object.value, rest);
        }
        StateKind::Address(address) => {
            return match rest {
                [] => Some(Value::Map(Vec::new())),
                [b"ip"] => Some(Value::text(address.ip().to_string())),
                [b"port"] => Some(Value::Int(i64::from(address.port()))),
                _ => None,
            };
        }
        StateKind::Opaque => return None,
    };
    rest.is_empty().then_some(value)
}
