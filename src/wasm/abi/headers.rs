//! Header maps: those of the stream that the effective context shows, and those of callouts' answers.
//!
//! Pseudo-headers are entries like others, first in the map. What a plugin writes must still be a message: a name or
//! value that is none is refused for responses, and fails the request with 503, as Envoy's codec does.

mod map;

use http::HeaderMap;
use smallvec::SmallVec;

use self::map::{Invalid, Map};
use super::grpc::Metadata;
use super::names::Names;
use super::{Guest, Outcome, Status, give, give_with, memory, pairs, put_u32, range};
use crate::http::joined::Side;
use crate::stream::Phase;
use crate::wasm::context::{Host, Removed, StreamContext};
use crate::wasm::module::Abi;
use crate::wasm::vm::Direction;

pub(crate) use map::byte_size;
pub(super) use map::{add_to, authority_value, path_value, pseudo};

/// `WasmHeaderMapType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapType {
    RequestHeaders,
    RequestTrailers,
    ResponseHeaders,
    ResponseTrailers,
    GrpcInitialMetadata,
    GrpcTrailingMetadata,
    CallHeaders,
    CallTrailers,
}

impl MapType {
    fn parse(number: u32) -> Result<Self, Status> {
        Ok(match number {
            0 => Self::RequestHeaders,
            1 => Self::RequestTrailers,
            2 => Self::ResponseHeaders,
            3 => Self::ResponseTrailers,
            4 => Self::GrpcInitialMetadata,
            5 => Self::GrpcTrailingMetadata,
            6 => Self::CallHeaders,
            7 => Self::CallTrailers,
            _ => return Err(Status::BadArgument),
        })
    }

    fn is_grpc(self) -> bool {
        matches!(self, Self::GrpcInitialMetadata | Self::GrpcTrailingMetadata)
    }
}

/// Entries of the head of `direction`, pseudo-headers included, as `context` shows them in the callback of that head.
pub(crate) fn count(context: &mut StreamContext, direction: Direction) -> u32 {
    let map = match direction {
        Direction::Request => MapType::RequestHeaders,
        Direction::Response => MapType::ResponseHeaders,
    };
    let count = of_stream(context, map, Access::Read, |map, removed| {
        map.count(removed)
    });
    u32::try_from(count.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    /// `lenient_header_reads`.
    ReadLeniently,
    Write,
}

/// Runs `f` on a map; `None` where it cannot be reached now.
fn with<R>(host: &mut Host, map: MapType, f: impl FnOnce(Map<'_>, &mut Removed) -> R) -> Option<R> {
    let access = if host.env.policy.lenient_header_reads {
        Access::ReadLeniently
    } else {
        Access::Read
    };
    with_access(host, map, access, f)
}

/// As [`with`], of what may be written. Trailers come into being by it, at the end of a body that has none.
fn with_writable<R>(
    host: &mut Host,
    map: MapType,
    f: impl FnOnce(Map<'_>, &mut Removed) -> R,
) -> Option<R> {
    with_access(host, map, Access::Write, f)
}

fn with_access<R>(
    host: &mut Host,
    map: MapType,
    access: Access,
    f: impl FnOnce(Map<'_>, &mut Removed) -> R,
) -> Option<R> {
    match map {
        MapType::CallHeaders => {
            let head = host.answer()?.head.as_mut()?;
            Some(f(Map::Response(head), &mut Removed::default()))
        }
        MapType::CallTrailers => {
            let trailers = host.answer()?.trailers.as_mut()?;
            Some(f(
                Map::Fields(trailers, Side::ResponseTrailers),
                &mut Removed::default(),
            ))
        }
        MapType::GrpcInitialMetadata => metadata(host.grpc_view()?.initial.as_mut()?, f),
        MapType::GrpcTrailingMetadata => metadata(host.grpc_view()?.trailing.as_mut()?, f),
        _ => of_stream(host.context_mut()?, map, access, f),
    }
}

/// As [`with`], of a map of the context's stream.
#[inline]
fn of_stream<R>(
    context: &mut StreamContext,
    map: MapType,
    access: Access,
    f: impl FnOnce(Map<'_>, &mut Removed) -> R,
) -> Option<R> {
    let write = access == Access::Write;
    let visible = if write {
        let may_add = context.may_add_trailers;
        let visible = &mut context.visible;
        match map {
            MapType::RequestTrailers => visible.request_trailers |= may_add[0],
            MapType::ResponseTrailers => visible.response_trailers |= may_add[1],
            _ => {}
        }
        *visible
    } else {
        context.readable(access == Access::ReadLeniently)
    };
    match map {
        MapType::RequestHeaders if visible.request_headers => {
            let mut head = context.stream.request.lock();
            Some(f(Map::Request(&mut head), &mut context.removed))
        }
        MapType::ResponseHeaders if visible.response_headers => {
            let stream = &context.stream;
            // A direct reply takes the head's place in the stream. Who holds the head keeps it; the log reads the reply's.
            let held = context.visible.response_headers && (write || !context.logging);
            if held
                && context.late_response.is_none()
                && let Some(overwritten) = &*stream.overwritten.lock()
            {
                context.late_response = Some(Box::new(overwritten.clone()));
            }
            let mut head = stream.response.lock();
            if write && context.late_response.is_none() && stream.phase() >= Phase::Sent {
                // It went to the codec, which may have to write it still: what is done to it now is for the plugin alone.
                context.late_response = head.clone().map(Box::new);
            }
            if let Some(late) = &mut context.late_response
                && (held || stream.overwritten.lock().is_none())
            {
                return Some(f(Map::Response(late), &mut context.removed));
            }
            Some(f(Map::Response(head.as_mut()?), &mut context.removed))
        }
        MapType::RequestTrailers if visible.request_trailers => {
            let mut trailers = context.stream.request_trailers.lock();
            Some(fields(&mut trailers, Side::RequestTrailers, |map| {
                f(map, &mut context.removed)
            }))
        }
        MapType::ResponseTrailers if visible.response_trailers => {
            let mut trailers = context.stream.response_trailers.lock();
            if context.logging && !write && trailers.is_none() {
                return None;
            }
            Some(fields(&mut trailers, Side::ResponseTrailers, |map| {
                f(map, &mut context.removed)
            }))
        }
        _ => None,
    }
}

fn metadata<R>(metadata: &mut Metadata, f: impl FnOnce(Map<'_>, &mut Removed) -> R) -> Option<R> {
    let map = match metadata {
        Metadata::Head(head) => Map::Response(head),
        Metadata::Fields(fields) => Map::Fields(fields, Side::ResponseTrailers),
    };
    Some(f(map, &mut Removed::default()))
}

/// Trailers come into being when something is added: a plugin may make them at the end of a body.
fn fields<R>(trailers: &mut Option<HeaderMap>, side: Side, f: impl FnOnce(Map<'_>) -> R) -> R {
    match trailers {
        Some(trailers) => f(Map::Fields(trailers, side)),
        None => {
            let mut made = HeaderMap::new();
            let result = f(Map::Fields(&mut made, side));
            if !made.is_empty() {
                *trailers = Some(made);
            }
            result
        }
    }
}

pub(super) fn get_value(
    guest: &mut Guest<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value_out: u32,
    len_out: u32,
) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let key = range(data, key, key_len)?;
    let lower: SmallVec<[u8; 64]>;
    let key = if key.iter().any(u8::is_ascii_uppercase) {
        lower = key.iter().map(u8::to_ascii_lowercase).collect();
        &lower
    } else {
        key
    };
    let value = with(host, map, |map, removed| {
        map.get(removed, key).map(SmallVec::<[u8; 128]>::from_slice)
    });
    let value = match (value, host.env.abi) {
        (Some(value), _) => value,
        // The oldest ABI knows no absence.
        (None, Abi::V0_1_0) if absent(host) == Status::NotFound => None,
        (None, _) => return Err(absent(host).into()),
    };
    match value {
        Some(value) => give(guest, &value, value_out, len_out),
        None if host.env.abi == Abi::V0_1_0 => give(guest, &[], value_out, len_out),
        None => Err(Status::NotFound.into()),
    }
}

/// What a value of a map is that cannot be reached now.
fn absent(host: &Host) -> Status {
    if host.context().is_some_and(|context| context.logging) {
        Status::NotFound
    } else {
        Status::BadArgument
    }
}

pub(super) fn get_pairs(guest: &mut Guest<'_>, map: u32, at_out: u32, len_out: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let (mut count, mut len) = (0, 4);
    let present = with(guest.data_mut(), map, |map, removed| {
        map.each(removed, |name, value| {
            count += 1;
            len += name.len() + value.len() + pairs::OVERHEAD;
        });
    });
    if present.is_none() || count == 0 {
        // Envoy: an absent map is an empty one here.
        return give(guest, &[], at_out, len_out);
    }
    give_with(guest, len, at_out, len_out, |host, block| {
        with(host, map, |map, removed| {
            let mut writer = pairs::Writer::new(block, count);
            map.each(removed, |name, value| writer.pair(name, value));
        });
    })
}

pub(super) fn get_size(guest: &mut Guest<'_>, map: u32, size_out: u32) -> Outcome {
    let map = MapType::parse(map)?;
    // Of a callout's answer Envoy does not tell it, nor of what may not be written.
    if map.is_grpc() || matches!(map, MapType::CallHeaders | MapType::CallTrailers) {
        return Err(Status::BadArgument.into());
    }
    let size = with_writable(guest.data_mut(), map, |map, removed| map.size(removed))
        .ok_or(Status::BadArgument)?;
    put_u32(guest, size_out, u32::try_from(size).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Edits a map of the effective context's stream by `apply`, which is given the bytes that the context has added so far,
/// and the names that its VM knows. `name`: of the entry, for the message where the edit is refused.
#[inline]
fn edit(
    host: &mut Host,
    map: MapType,
    name: &[u8],
    apply: impl FnOnce(&mut Map<'_>, &mut Removed, &mut usize, &mut Names) -> Result<(), Invalid>,
) -> Result<(), Status> {
    if map.is_grpc() || matches!(map, MapType::CallHeaders | MapType::CallTrailers) {
        return Err(Status::BadArgument);
    }
    // One look for the context serves all: this is what plugins do most.
    let context = host.streams.get_mut(host.effective);
    let context = context.ok_or(Status::BadArgument)?;
    let mut added = context.added;
    let names = &mut host.names;
    let result = of_stream(context, map, Access::Write, |mut map, removed| {
        apply(&mut map, removed, &mut added, names)
    })
    .ok_or(Status::BadArgument)?;
    context.added = added;
    if map == MapType::RequestHeaders {
        context.clear_route();
    }
    if let Err(reason) = result {
        refuse(host, map, reason, name);
    }
    Ok(())
}

/// The SDKs panic at any other status than Ok, which would kill the VM: so it is Ok, and the message pays.
#[cold]
fn refuse(host: &mut Host, map: MapType, reason: Invalid, name: &[u8]) {
    let plugin = &host.spec().name;
    tracing::warn!(target: "wasm", "plugin {plugin}: {map:?}: {reason}; the edit was refused");
    if matches!(map, MapType::RequestHeaders | MapType::RequestTrailers)
        && let Some(context) = host.context_mut()
        && !(context.request_gone && map == MapType::RequestHeaders)
    {
        context
            .invalid
            .get_or_insert_with(|| format!("{reason}: {}", shown(name)).into());
    }
}

/// A name as text. It becomes a body, and details that stand in log lines.
fn shown(name: &[u8]) -> String {
    const ENOUGH: usize = 128;
    let mut shown = name[..name.len().min(ENOUGH)].escape_ascii().to_string();
    shown.truncate(ENOUGH);
    shown
}

pub(super) fn add(guest: &mut Guest<'_>, map: u32, k: u32, kl: u32, v: u32, vl: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let (name, value) = (range(data, k, kl)?, range(data, v, vl)?);
    edit(host, map, name, |map, removed, added, names| {
        map.room(removed, added, name, value)?;
        map.add(removed, name, names.parse(name), value)
    })?;
    Ok(())
}

pub(super) fn replace(
    guest: &mut Guest<'_>,
    map: u32,
    k: u32,
    kl: u32,
    v: u32,
    vl: u32,
) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let (name, value) = (range(data, k, kl)?, range(data, v, vl)?);
    edit(host, map, name, |map, removed, added, names| {
        map.room(removed, added, name, value)?;
        map.replace(removed, name, names.parse(name), value)
    })?;
    Ok(())
}

pub(super) fn remove(guest: &mut Guest<'_>, map: u32, key: u32, key_len: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let name = range(data, key, key_len)?;
    edit(host, map, name, |map, removed, _, names| {
        map.remove(removed, name, names.parse(name));
        Ok(())
    })?;
    Ok(())
}

pub(super) fn set_pairs(guest: &mut Guest<'_>, map: u32, at: u32, len: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let pairs = pairs::read(range(data, at, len)?).unwrap_or_else(|| {
        let plugin = &host.spec().name;
        tracing::warn!(target: "wasm", "plugin {plugin}: {map:?} set from malformed bytes: taken for empty");
        Vec::new()
    });
    edit(host, map, b"", |map, removed, added, names| {
        map.clear(removed);
        // All that is good, and the first of what is not.
        let mut result = Ok(());
        for (name, value) in pairs {
            let set = map
                .room(removed, added, name, value)
                .and_then(|()| map.add(removed, name, names.parse(name), value));
            result = result.and(set);
        }
        result
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
