//! Fields into a map, and what `Connection` takes away from it.

use http::header::{self, Entry, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::parse::tokens;
use super::violation::Violation;
use crate::http::joined::{Side, is_joined, join};
use crate::http::order::take_out;

/// Adds a field: repeated ones that Envoy keeps in a single slot are joined by a comma without space, others stay
/// separate.
pub(super) fn add(
    headers: &mut HeaderMap,
    side: Side,
    name: HeaderName,
    value: HeaderValue,
) -> Result<(), Violation> {
    match headers.try_entry(name).map_err(|_| Violation::TOO_MANY)? {
        Entry::Vacant(entry) => {
            entry.try_insert(value).map_err(|_| Violation::TOO_MANY)?;
        }
        Entry::Occupied(mut entry) if is_joined(side, entry.key()) => {
            let joined = join(entry.get(), &value);
            entry.insert(joined);
        }
        Entry::Occupied(mut entry) => entry.append(value),
    }
    Ok(())
}

/// Envoy refuses ten nominated headers or more.
const MAX_NOMINATED: usize = 10;
/// And a nominated `TE` of this many bytes.
const MAX_TE: usize = 256;

/// Takes away the headers that a request's `Connection` nominates, and their names from it, by Envoy's rules:
/// `X-Forwarded-*` may not be nominated, `TE: trailers` survives. Gives back whether `host` was among them (it is kept
/// outside the map).
pub(super) fn remove_nominated(
    headers: &mut HeaderMap,
    connection: &HeaderValue,
) -> Result<bool, Violation> {
    let mut host = false;
    let mut nominated = false;
    let mut kept: Vec<u8> = Vec::new();
    let mut keep = |token: &[u8]| {
        if !kept.is_empty() {
            kept.push(b',');
        }
        kept.extend_from_slice(token);
    };
    let list = connection.as_bytes();
    if list.split(|byte| *byte == b',').count() >= MAX_NOMINATED
        && tokens(list).count() >= MAX_NOMINATED
    {
        return Err(Violation::CONNECTION);
    }
    for token in tokens(list) {
        let is = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
        if is("close") || is("keep-alive") || is("upgrade") || is("http2-settings") {
            keep(token);
            continue;
        }
        if is("connection") {
            nominated = true;
            continue;
        }
        if is("x-forwarded-for")
            || is("x-forwarded-host")
            || is("x-forwarded-proto")
            || token.first() == Some(&b':')
        {
            return Err(Violation::CONNECTION);
        }
        if is("te")
            && let Some(value) = headers.get(header::TE)
        {
            if value.len() >= MAX_TE {
                return Err(Violation::CONNECTION);
            }
            if tokens(value.as_bytes()).any(|item| item.eq_ignore_ascii_case(b"trailers")) {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
                keep(token);
                continue;
            }
        }
        nominated = true;
        if is("host") {
            host = true;
        } else if let Ok(name) = HeaderName::from_bytes(token) {
            take_out(headers, &name);
        }
    }
    if nominated {
        match HeaderValue::try_from(kept) {
            Ok(kept) if !kept.is_empty() => {
                headers.insert(header::CONNECTION, kept);
            }
            _ => {
                take_out(headers, &header::CONNECTION);
            }
        }
    }
    Ok(host)
}

/// True where the comma-separated value has this token, in any case.
pub(super) fn has_token(value: &HeaderValue, wanted: &[u8]) -> bool {
    tokens(value.as_bytes()).any(|token| token.eq_ignore_ascii_case(wanted))
}
