//! Header maps: those of the stream that the effective context shows, and those of callouts' answers.
//!
//! Pseudo-headers are entries like others, first in the map. What a plugin writes must still be a message: a name or
//! value that is none is refused for responses, and fails the request with 503, as Envoy's codec does.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use smallvec::SmallVec;

use self::order::take_out;
use super::grpc::Metadata;
use super::{Guest, Outcome, Status, give, give_with, memory, pairs, put_u32, range};
use crate::http::joined::{self, Side};
use crate::http::{RequestHead, ResponseHead, Scheme};
use crate::stream::Phase;
use crate::wasm::context::{Host, Removed};
use crate::wasm::module::Abi;

mod order;

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

/// A header map under one roof.
pub(super) enum Map<'a> {
    Request(&'a mut RequestHead),
    Response(&'a mut ResponseHead),
    Fields(&'a mut HeaderMap, Side),
}

/// What is not HTTP.
type Invalid = &'static str;

/// Most fields of a map that a plugin may add to. Far above what listeners let in: it bounds what plugins make of it.
const MAX_FIELDS: usize = 1000;
/// Most bytes of names and values of a map that a plugin may add to.
const MAX_BYTES: usize = 256 << 10;

impl Map<'_> {
    fn fields(&self) -> &HeaderMap {
        match self {
            Self::Request(head) => &head.headers,
            Self::Response(head) => &head.headers,
            Self::Fields(fields, _) => fields,
        }
    }

    fn fields_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Request(head) => &mut head.headers,
            Self::Response(head) => &mut head.headers,
            Self::Fields(fields, _) => fields,
        }
    }

    /// Calls `f` for each entry, in order.
    #[inline]
    pub(super) fn each(&self, removed: &Removed, mut f: impl FnMut(&[u8], &[u8])) {
        match self {
            Self::Request(head) => {
                if !removed.authority && head.has_host {
                    f(b":authority", head.authority.as_bytes());
                }
                if !removed.path && !head.path.is_empty() {
                    f(b":path", head.path.as_bytes());
                }
                if !removed.method {
                    f(b":method", head.method.as_str().as_bytes());
                }
                if !removed.scheme && head.scheme != Scheme::Unknown {
                    f(b":scheme", head.scheme.as_str().as_bytes());
                }
            }
            Self::Response(head) => {
                if !removed.status {
                    f(b":status", head.status.as_str().as_bytes());
                }
            }
            Self::Fields(..) => {}
        }
        for (name, value) in self.fields() {
            f(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    /// How many times [`Map::each`] calls.
    fn count(&self, removed: &Removed) -> usize {
        let pseudo = match self {
            Self::Request(head) => [
                !removed.authority && head.has_host,
                !removed.path && !head.path.is_empty(),
                !removed.method,
                !removed.scheme && head.scheme != Scheme::Unknown,
            ]
            .into_iter()
            .map(usize::from)
            .sum(),
            Self::Response(_) => usize::from(!removed.status),
            Self::Fields(..) => 0,
        };
        pseudo + self.fields().len()
    }

    /// The first value of `name`.
    pub(super) fn get(&self, removed: &Removed, name: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Request(head) => match name {
                b":authority" | b"host" => {
                    return (!removed.authority && head.has_host)
                        .then(|| head.authority.as_bytes());
                }
                b":path" => {
                    return (!removed.path && !head.path.is_empty()).then(|| head.path.as_bytes());
                }
                b":method" => {
                    return (!removed.method).then(|| head.method.as_str().as_bytes());
                }
                b":scheme" => {
                    let shown = !removed.scheme && head.scheme != Scheme::Unknown;
                    return shown.then(|| head.scheme.as_str().as_bytes());
                }
                _ => {}
            },
            Self::Response(head) => {
                if name == b":status" {
                    return (!removed.status).then(|| head.status.as_str().as_bytes());
                }
            }
            Self::Fields(..) => {}
        }
        let name = std::str::from_utf8(name).ok()?;
        self.fields().get(name).map(HeaderValue::as_bytes)
    }

    /// Sets a pseudo-header. `None`: it is none.
    fn set_pseudo(
        &mut self,
        removed: &mut Removed,
        name: &[u8],
        value: &[u8],
    ) -> Option<Result<(), Invalid>> {
        let text = || HeaderValue::from_bytes(value).map_err(|_| "invalid header value for");
        Some(match (self, name) {
            (Self::Request(head), b":authority" | b"host") => text().map(|value| {
                head.has_host = true;
                head.authority = value;
                removed.authority = false;
            }),
            (Self::Request(head), b":path") => {
                if value.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
                    return Some(Err("invalid path"));
                }
                text().map(|value| {
                    head.path = value;
                    removed.path = false;
                })
            }
            (Self::Request(head), b":method") => match Method::from_bytes(value) {
                // A request does not become a tunnel, nor a tunnel a request.
                Ok(method) if (method == Method::CONNECT) == (head.method == Method::CONNECT) => {
                    head.method = method;
                    removed.method = false;
                    Ok(())
                }
                _ => Err("invalid method"),
            },
            (Self::Request(head), b":scheme") => {
                head.scheme = match value {
                    b"http" => Scheme::Http,
                    b"https" => Scheme::Https,
                    _ => return Some(Err("invalid scheme")),
                };
                removed.scheme = false;
                Ok(())
            }
            (Self::Response(head), b":status") => {
                // Below 200 is not a final status: bytes that follow it would be taken for another response.
                match StatusCode::from_bytes(value) {
                    Ok(status) if status.as_u16() >= 200 => {
                        head.status = status;
                        removed.status = false;
                        Ok(())
                    }
                    _ => Err("invalid status"),
                }
            }
            (_, [b':', ..]) => Err("unknown pseudo-header"),
            _ => return None,
        })
    }

    /// Whether an entry more leaves the map within bounds. `added` counts what was ever added: while that is little,
    /// nothing needs to be measured.
    fn room(&self, added: &mut usize, name: &[u8], value: &[u8]) -> Result<(), Invalid> {
        let more = name.len() + value.len();
        *added = added.saturating_add(more);
        let fields = self.fields();
        if fields.len() >= MAX_FIELDS
            || (*added > MAX_BYTES && byte_size(fields) + more > MAX_BYTES)
        {
            return Err("too many headers");
        }
        Ok(())
    }

    /// Adds an entry; a pseudo-header is set. `field` is the name where it is that of a field.
    fn add(
        &mut self,
        removed: &mut Removed,
        name: &[u8],
        field: Option<HeaderName>,
        value: &[u8],
    ) -> Result<(), Invalid> {
        if may_be_pseudo(name) {
            let joined: Vec<u8>;
            let value = match self.first_of_joined(removed, name) {
                Some(first) => {
                    joined = [first, b",", value].concat();
                    &joined
                }
                None => value,
            };
            if let Some(result) = self.set_pseudo(removed, name, value) {
                return result;
            }
        }
        let (name, value) = valid(field, value)?;
        let side = match self {
            Self::Request(_) => Side::Request,
            Self::Response(_) => Side::Response,
            Self::Fields(_, side) => *side,
        };
        joined::append(side, self.fields_mut(), name, value);
        Ok(())
    }

    /// The value of a pseudo-header that another one is joined to, as to other headers that Envoy keeps once. A method,
    /// a scheme or a status of two is none: there the last one counts.
    fn first_of_joined(&self, removed: &Removed, name: &[u8]) -> Option<&[u8]> {
        match (self, name) {
            (Self::Request(_), b":path" | b":authority" | b"host") => self.get(removed, name),
            _ => None,
        }
    }

    /// Sets an entry instead of all of its name, behind the others as in Envoy; `field` as for [`Map::add`].
    fn replace(
        &mut self,
        removed: &mut Removed,
        name: &[u8],
        field: Option<HeaderName>,
        value: &[u8],
    ) -> Result<(), Invalid> {
        if may_be_pseudo(name)
            && let Some(result) = self.set_pseudo(removed, name, value)
        {
            return result;
        }
        let (name, value) = valid(field, value)?;
        let fields = self.fields_mut();
        take_out(fields, &name);
        fields
            .try_insert(name, value)
            .map(drop)
            .map_err(|_| "too many headers")
    }

    fn remove(&mut self, removed: &mut Removed, name: &[u8]) {
        match (&mut *self, name) {
            (Self::Request(_), b":authority" | b"host") => removed.authority = true,
            (Self::Request(_), b":path") => removed.path = true,
            (Self::Request(_), b":method") => removed.method = true,
            (Self::Request(_), b":scheme") => removed.scheme = true,
            (Self::Response(_), b":status") => removed.status = true,
            _ => {
                if let Ok(name) = HeaderName::from_bytes(name) {
                    take_out(self.fields_mut(), &name);
                }
            }
        }
    }

    fn clear(&mut self, removed: &mut Removed) {
        self.fields_mut().clear();
        match self {
            Self::Request(_) => {
                removed.method = true;
                removed.path = true;
                removed.authority = true;
                removed.scheme = true;
            }
            Self::Response(_) => removed.status = true,
            Self::Fields(..) => {}
        }
    }
}

/// False for names of fields, whichever head they are of.
fn may_be_pseudo(name: &[u8]) -> bool {
    matches!(name, [b':', ..] | b"host")
}

fn valid(name: Option<HeaderName>, value: &[u8]) -> Result<(HeaderName, HeaderValue), Invalid> {
    Ok((
        name.ok_or("invalid header name")?,
        HeaderValue::from_bytes(value).map_err(|_| "invalid header value for")?,
    ))
}

/// Bytes of all names and values: what Envoy calls the size of a map.
pub(crate) fn byte_size(fields: &HeaderMap) -> usize {
    fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// Entries of a map, pseudo-headers included.
pub(crate) fn count(host: &mut Host, response: bool) -> u32 {
    let map = if response {
        MapType::ResponseHeaders
    } else {
        MapType::RequestHeaders
    };
    let count = with(host, map, |map, removed| map.count(removed));
    u32::try_from(count.unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Runs `f` on a map; `None` where it cannot be reached now.
fn with<R>(host: &mut Host, map: MapType, f: impl FnOnce(Map<'_>, &mut Removed) -> R) -> Option<R> {
    with_view(host, map, false, f)
}

/// As [`with`], of what may be written. Trailers come into being by it, at the end of a body that has none.
fn with_writable<R>(
    host: &mut Host,
    map: MapType,
    f: impl FnOnce(Map<'_>, &mut Removed) -> R,
) -> Option<R> {
    with_view(host, map, true, f)
}

fn with_view<R>(
    host: &mut Host,
    map: MapType,
    write: bool,
    f: impl FnOnce(Map<'_>, &mut Removed) -> R,
) -> Option<R> {
    match map {
        MapType::CallHeaders => {
            let head = host.call.as_mut()?.head.as_mut()?;
            return Some(f(Map::Response(head), &mut Removed::default()));
        }
        MapType::CallTrailers => {
            let trailers = host.call.as_mut()?.trailers.as_mut()?;
            return Some(f(
                Map::Fields(trailers, Side::ResponseTrailers),
                &mut Removed::default(),
            ));
        }
        MapType::GrpcInitialMetadata => return metadata(host.grpc.initial.as_mut()?, f),
        MapType::GrpcTrailingMetadata => return metadata(host.grpc.trailing.as_mut()?, f),
        _ => {}
    }
    let lenient = host.env.policy.lenient_header_reads;
    let context = host.streams.get_mut(host.effective)?;
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
        context.readable(lenient)
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
            if held && context.late_response.is_none() {
                context.late_response = stream.overwritten.lock().clone().map(Box::new);
            }
            let mut head = stream.response.lock();
            if write && stream.phase() >= Phase::Sent && context.late_response.is_none() {
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
    let size = with_writable(guest.data_mut(), map, |map, removed| {
        let mut size = 0;
        map.each(removed, |name, value| size += name.len() + value.len());
        size
    })
    .ok_or(Status::BadArgument)?;
    put_u32(guest, size_out, u32::try_from(size).unwrap_or(u32::MAX))?;
    Ok(())
}

/// What a plugin does to a map.
enum Edit<'a> {
    Add(&'a [u8], &'a [u8]),
    Replace(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
    Set(&'a [(&'a [u8], &'a [u8])]),
}

fn edit(host: &mut Host, map: MapType, edit: &Edit<'_>) -> Result<(), Status> {
    if map.is_grpc() || matches!(map, MapType::CallHeaders | MapType::CallTrailers) {
        return Err(Status::BadArgument);
    }
    let mut added = host.context().map_or(0, |context| context.added);
    let field = match edit {
        Edit::Add(name, _) | Edit::Replace(name, _) => host.names.parse(name),
        Edit::Remove(_) | Edit::Set(_) => None,
    };
    let result = with_writable(host, map, |mut map, removed| match edit {
        Edit::Add(name, value) => map
            .room(&mut added, name, value)
            .and_then(|()| map.add(removed, name, field, value)),
        Edit::Replace(name, value) => map
            .room(&mut added, name, value)
            .and_then(|()| map.replace(removed, name, field, value)),
        Edit::Remove(name) => {
            map.remove(removed, name);
            Ok(())
        }
        Edit::Set(pairs) => {
            map.clear(removed);
            // All that is good, and the first of what is not.
            let mut result = Ok(());
            for (name, value) in *pairs {
                let set = map.room(&mut added, name, value).and_then(|()| {
                    let field = HeaderName::from_bytes(name).ok();
                    map.add(removed, name, field, value)
                });
                result = result.and(set);
            }
            result
        }
    })
    .ok_or(Status::BadArgument)?;
    let Some(context) = host.context_mut() else {
        return Err(Status::BadArgument);
    };
    context.added = added;
    if map == MapType::RequestHeaders {
        host.clear_route();
    }
    if let Err(reason) = result {
        let name = match edit {
            Edit::Add(name, _) | Edit::Replace(name, _) | Edit::Remove(name) => name,
            Edit::Set(_) => &[][..],
        };
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
            .get_or_insert_with(|| format!("{reason}: {}", name.escape_ascii()).into());
    }
}

pub(super) fn add(guest: &mut Guest<'_>, map: u32, k: u32, kl: u32, v: u32, vl: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let data = &*data;
    edit(
        host,
        map,
        &Edit::Add(range(data, k, kl)?, range(data, v, vl)?),
    )?;
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
    let data = &*data;
    edit(
        host,
        map,
        &Edit::Replace(range(data, k, kl)?, range(data, v, vl)?),
    )?;
    Ok(())
}

pub(super) fn remove(guest: &mut Guest<'_>, map: u32, key: u32, key_len: u32) -> Outcome {
    let map = MapType::parse(map)?;
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    edit(host, map, &Edit::Remove(range(data, key, key_len)?))?;
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
    edit(host, map, &Edit::Set(&pairs))?;
    Ok(())
}

#[cfg(test)]
mod tests;
