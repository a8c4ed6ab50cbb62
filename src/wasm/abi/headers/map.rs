//! A header map as a plugin sees and edits it: pseudo-headers are entries like others, first in the map.
//!
//! What is written must still be a message: what is none is refused with its reason.

use std::borrow::Cow;

use http::header::HeaderValue;
use http::{HeaderMap, Method, StatusCode};

use super::super::names::Known;
use crate::http::joined::{self, Side};
use crate::http::order::take_out;
use crate::http::{RequestHead, ResponseHead, Scheme};
use crate::wasm::context::Removed;

/// A header map under one roof.
pub(in crate::wasm::abi) enum Map<'a> {
    Request(&'a mut RequestHead),
    Response(&'a mut ResponseHead),
    Fields(&'a mut HeaderMap, Side),
}

/// What is not HTTP.
pub(super) type Invalid = &'static str;

/// Most fields of a map that a plugin may add to. Far above what listeners let in: it bounds what plugins make of it.
const MAX_FIELDS: usize = 1000;
/// Most bytes of names and values of a map that a plugin may add to, pseudo-headers included.
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
    pub(in crate::wasm::abi) fn each(&self, removed: &Removed, mut f: impl FnMut(&[u8], &[u8])) {
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
                if let Some(scheme) = head.scheme.shown() {
                    f(b":scheme", scheme.as_bytes());
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
    pub(super) fn count(&self, removed: &Removed) -> usize {
        let pseudo = match self {
            Self::Request(head) => [
                !removed.authority && head.has_host,
                !removed.path && !head.path.is_empty(),
                !removed.method,
                head.scheme.shown().is_some(),
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
    pub(in crate::wasm::abi) fn get(&self, removed: &Removed, name: &[u8]) -> Option<&[u8]> {
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
                b":scheme" => return head.scheme.shown().map(str::as_bytes),
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
        Some(match (self, name) {
            (Self::Request(head), b":authority" | b"host") => {
                // That of a tunnel is in the request line.
                if value.is_empty() && head.method == Method::CONNECT {
                    return Some(Err("invalid authority"));
                }
                authority_value(value).map(|value| {
                    head.has_host = true;
                    head.authority = value;
                    removed.authority = false;
                })
            }
            (Self::Request(head), b":path") => path_value(value).map(|value| {
                head.path = value;
                removed.path = false;
            }),
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
                // Whatever it is: the router mends it.
                let text = HeaderValue::from_bytes(value).map_err(|_| "invalid scheme");
                text.map(|_| head.scheme = Scheme::of(&String::from_utf8_lossy(value)))
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
    pub(super) fn room(
        &self,
        removed: &Removed,
        added: &mut usize,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), Invalid> {
        let more = name.len() + value.len();
        *added = added.saturating_add(more);
        if self.fields().len() >= MAX_FIELDS
            || (*added > MAX_BYTES && self.size(removed) + more > MAX_BYTES)
        {
            return Err("too many headers");
        }
        Ok(())
    }

    /// Bytes of all that [`Map::each`] tells.
    pub(super) fn size(&self, removed: &Removed) -> usize {
        let mut size = 0;
        self.each(removed, |name, value| size += name.len() + value.len());
        size
    }

    /// Adds an entry; a pseudo-header is set. `field` is the name where it is that of a field.
    #[inline]
    pub(super) fn add(
        &mut self,
        removed: &mut Removed,
        name: &[u8],
        field: Option<&mut Known>,
        value: &[u8],
    ) -> Result<(), Invalid> {
        if let Some(name) = pseudo(name) {
            let joined: Vec<u8>;
            let value = match self.first_of_joined(removed, &name) {
                // Nothing comes to what is there.
                Some(_) if value.is_empty() => return Ok(()),
                Some(first) => {
                    let mut all = first.to_vec();
                    add_to(&mut all, value);
                    joined = all;
                    &joined
                }
                None => value,
            };
            if let Some(result) = self.set_pseudo(removed, &name, value) {
                return result;
            }
        }
        let (known, value) = valid(field, value)?;
        let side = match self {
            Self::Request(_) => Side::Request,
            Self::Response(_) => Side::Response,
            Self::Fields(_, side) => *side,
        };
        joined::append_known(side, known.joins, self.fields_mut(), &known.name, value);
        Ok(())
    }

    /// The value of a pseudo-header that another one is joined to, as to other headers that Envoy keeps once. A method or a
    /// status of two is none: there the last one counts.
    fn first_of_joined(&self, removed: &Removed, name: &[u8]) -> Option<&[u8]> {
        match (self, name) {
            (Self::Request(_), b":path" | b":authority" | b"host" | b":scheme") => {
                self.get(removed, name)
            }
            _ => None,
        }
    }

    /// Sets an entry instead of all of its name, behind the others as in Envoy; `field` as for [`Map::add`].
    pub(super) fn replace(
        &mut self,
        removed: &mut Removed,
        name: &[u8],
        field: Option<&mut Known>,
        value: &[u8],
    ) -> Result<(), Invalid> {
        if let Some(name) = pseudo(name)
            && let Some(result) = self.set_pseudo(removed, &name, value)
        {
            return result;
        }
        let (known, value) = valid(field, value)?;
        let fields = self.fields_mut();
        take_out(fields, &known.name);
        fields
            .try_insert(&known.name, value)
            .map(drop)
            .map_err(|_| "too many headers")
    }

    /// Removes all entries of a name; `field` as for [`Map::add`].
    pub(super) fn remove(&mut self, removed: &mut Removed, name: &[u8], field: Option<&mut Known>) {
        match (&mut *self, pseudo(name).as_deref().unwrap_or_default()) {
            (Self::Request(_), b":authority" | b"host") => removed.authority = true,
            (Self::Request(_), b":path") => removed.path = true,
            (Self::Request(_), b":method") => removed.method = true,
            (Self::Request(head), b":scheme") => head.scheme = Scheme::Unknown,
            (Self::Response(_), b":status") => removed.status = true,
            _ => {
                if let Some(known) = field {
                    take_out(self.fields_mut(), &known.name);
                }
            }
        }
    }

    pub(super) fn clear(&mut self, removed: &mut Removed) {
        self.fields_mut().clear();
        match self {
            Self::Request(head) => {
                removed.method = true;
                removed.path = true;
                removed.authority = true;
                head.scheme = Scheme::Unknown;
            }
            Self::Response(_) => removed.status = true,
            Self::Fields(..) => {}
        }
    }
}

/// Adds `value` to what a message has once: as in Envoy nothing where there is nothing, nor a comma to nothing.
pub(in crate::wasm::abi) fn add_to(first: &mut Vec<u8>, value: &[u8]) {
    if !first.is_empty() && !value.is_empty() {
        first.push(b',');
    }
    first.extend_from_slice(value);
}

/// A path that a request line can hold.
pub(in crate::wasm::abi) fn path_value(path: &[u8]) -> Result<HeaderValue, Invalid> {
    let breaks = |byte: &u8| matches!(byte, 0..=b' ' | 0x7f);
    if path.is_empty() || path.iter().any(breaks) {
        return Err("invalid path");
    }
    HeaderValue::from_bytes(path).map_err(|_| "invalid path")
}

/// An authority, which may be none. White space would part a request line that it is in.
pub(in crate::wasm::abi) fn authority_value(authority: &[u8]) -> Result<HeaderValue, Invalid> {
    let value = HeaderValue::from_bytes(authority).map_err(|_| "invalid header value for")?;
    if memchr::memchr2(b' ', b'\t', authority).is_some() {
        return Err("invalid authority");
    }
    Ok(value)
}

/// The name in lower case where it may be that of a pseudo-header; `None` for names of fields, whichever head they are of.
#[inline]
pub(in crate::wasm::abi) fn pseudo(name: &[u8]) -> Option<Cow<'_, [u8]>> {
    match name {
        [b':', ..] if name.iter().any(u8::is_ascii_uppercase) => {
            Some(Cow::Owned(name.to_ascii_lowercase()))
        }
        [b':', ..] => Some(Cow::Borrowed(name)),
        [_, _, _, _] if name.eq_ignore_ascii_case(b"host") => Some(Cow::Borrowed(b"host")),
        _ => None,
    }
}

#[inline]
fn valid<'n>(
    name: Option<&'n mut Known>,
    value: &[u8],
) -> Result<(&'n Known, HeaderValue), Invalid> {
    let known = name.ok_or("invalid header name")?;
    let value = known.value(value).map_err(|_| "invalid header value for")?;
    Ok((known, value))
}

/// Bytes of all names and values: what Envoy calls the size of a map.
pub(crate) fn byte_size(fields: &HeaderMap) -> usize {
    fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
