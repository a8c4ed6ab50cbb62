//! Properties: attributes by path, and what plugins set.
//!
//! What a plugin sets is an object of the filter state, `wasm.<name>`, of the type that its root context declared.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::attributes::{Scope, Value, state_name};
use super::{Guest, Outcome, Status, bytes, give};
use crate::base::WorkerCell;
use crate::pb;
use crate::stream::state::{FilterState, LifeSpan, StateKind, StateObject};
use crate::stream::state::{set_object, with_object, with_object_mut};

/// Longest path, and longest value that a plugin sets.
const MAX_PATH: u32 = 4096;
const MAX_VALUE: u32 = 1 << 20;
/// Most properties on one stream, and most declared ones of one context.
const MAX_PROPERTIES: usize = 1000;
/// Most bytes of names and values on one stream, those of its connection included: that may be idle for long.
const MAX_STATE: usize = 4 << 20;

/// What `declare_property` says of a property.
#[derive(Clone, Debug)]
pub(crate) struct Prototype {
    kind: StateKind,
    span: LifeSpan,
    read_only: bool,
}

/// Declarations by name.
pub(crate) type Declared = FxHashMap<Vec<u8>, Prototype>;

pub(super) fn get(
    guest: &mut Guest<'_>,
    path: u32,
    len: u32,
    at_out: u32,
    len_out: u32,
) -> Outcome {
    if len > MAX_PATH {
        return Err(Status::NotFound.into());
    }
    let path = bytes(guest, path, len)?;
    let value = find(guest, &path).ok_or(Status::NotFound)?.encode()?;
    give(guest, &value, at_out, len_out)
}

fn find(guest: &Guest<'_>, path: &[u8]) -> Option<Value> {
    // A NUL at the end ends the last segment; without any segment there is nothing, which has no form.
    let path = match path {
        [] => return Some(Value::Null),
        path => path.strip_suffix(b"\0").unwrap_or(path),
    };
    let segments: smallvec::SmallVec<[&[u8]; 8]> = path.split(|byte| *byte == 0).collect();
    Scope::effective(guest.data()).find(&segments, true)
}

pub(super) fn set(
    guest: &mut Guest<'_>,
    path: u32,
    len: u32,
    value: u32,
    value_len: u32,
) -> Outcome {
    if len > MAX_PATH || value_len > MAX_VALUE {
        return Err(Status::InternalFailure.into());
    }
    let path = bytes(guest, path, len)?;
    let value = bytes(guest, value, value_len)?;
    let host = guest.data();
    let stream = host.own_stream().ok_or(Status::NotFound)?;
    let name = state_name(&path);
    let mut info = stream.info.lock();
    let state = &mut info.filter_state;
    let connection = &stream.connection.filter_state;
    room(state, connection, &name, value.len())?;
    let known = with_object_mut(state, connection, &name, |object| {
        if object.read_only {
            return Err(Status::BadArgument);
        }
        object.value = value.clone().into();
        Ok(())
    });
    if let Some(outcome) = known {
        return Ok(outcome?);
    }
    let declared = host.root().and_then(|root| root.declared.get(&path));
    let object = match declared {
        Some(declared) => StateObject {
            value: value.into(),
            kind: declared.kind.clone(),
            span: host.span(declared.span),
            read_only: declared.read_only,
        },
        None => StateObject {
            value: value.into(),
            kind: StateKind::Bytes,
            span: host.span(LifeSpan::FilterChain),
            read_only: false,
        },
    };
    set_object(state, connection, &name, object);
    Ok(())
}

/// Whether a stream and its connection may have an object of that name and size.
pub(super) fn room(
    stream: &FilterState,
    connection: &WorkerCell<FilterState>,
    name: &str,
    size: usize,
) -> Result<(), Status> {
    let present = with_object(stream, connection, name, |object| object.value.len());
    let connection = connection.lock();
    let (more, less) = match present {
        Some(present) => (0, present),
        None => (1, 0),
    };
    let objects = stream.len() + connection.len() + more;
    let bytes = stream.bytes() + connection.bytes() + more * name.len() + size - less;
    if size > MAX_VALUE as usize || objects > MAX_PROPERTIES || bytes > MAX_STATE {
        return Err(Status::InternalFailure);
    }
    Ok(())
}

/// `LifeSpan` of the arguments of foreign functions; unknown ones are the shortest.
pub(super) fn life_span(number: i32) -> LifeSpan {
    match number {
        1 => LifeSpan::Request,
        2 => LifeSpan::Connection,
        _ => LifeSpan::FilterChain,
    }
}

/// `DeclarePropertyArguments`.
#[derive(Clone, PartialEq, prost::Message)]
struct Declaration {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    read_only: bool,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(string, tag = "4")]
    schema: String,
    #[prost(int32, tag = "5")]
    span: i32,
}

/// `declare_property`: a declaration belongs to the context whose callback runs, and what root contexts declare is what
/// counts. The second of a name is refused.
pub(super) fn declare(guest: &mut Guest<'_>, argument: &[u8]) -> Result<(), Status> {
    let Declaration {
        name,
        read_only,
        kind,
        schema,
        span,
    } = prost::Message::decode(argument).map_err(|_| Status::BadArgument)?;
    // The schema of a message is the name of its type, and kept.
    let longest = if kind == 3 { MAX_PATH } else { MAX_VALUE };
    if name.len() > MAX_PATH as usize || schema.len() > longest as usize {
        return Err(Status::InternalFailure);
    }
    let host = guest.data_mut();
    let current = host.current;
    let of_root = host.root_of(current).is_some();
    let declared = match host.root_of(current) {
        Some(root) => &mut root.declared,
        None => match host.streams.get_mut(current) {
            Some(context) => context.declared.get_or_insert_default(),
            None => return Ok(()),
        },
    };
    if declared.contains_key(name.as_bytes()) {
        return Err(Status::BadArgument);
    }
    if declared.len() >= MAX_PROPERTIES {
        return Err(Status::InternalFailure);
    }
    let kind = match kind {
        1 => StateKind::Text,
        2 => StateKind::FlatBuffers,
        3 => StateKind::Message {
            // The text before the name must end in a slash, as in any type URL. Descriptors are not loaded for a
            // stream, whose declarations have no effect.
            descriptor: (of_root && schema.contains('/'))
                .then(|| pb::descriptors().get_message_by_name(pb::type_name(&schema)))
                .flatten(),
            type_url: Arc::from(schema),
        },
        _ => StateKind::Bytes,
    };
    let prototype = Prototype {
        kind,
        span: life_span(span),
        read_only,
    };
    declared.insert(name.into_bytes(), prototype);
    Ok(())
}
