//! Bytes to lines, names and values. Knows nothing of what the fields mean.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::violation::Violation;

/// Where the next head ends (its blank line included), looking on from `*scanned`. `None` where it is incomplete.
pub(super) fn find_end(buf: &[u8], scanned: &mut usize) -> Option<usize> {
    loop {
        let line_end = *scanned + memchr::memchr(b'\n', buf.get(*scanned..)?)?;
        match &buf[line_end + 1..] {
            [b'\n', ..] => return Some(line_end + 2),
            [b'\r', b'\n', ..] => return Some(line_end + 3),
            [] | [b'\r'] => {
                *scanned = line_end;
                return None;
            }
            _ => *scanned = line_end + 1,
        }
    }
}

/// About how many fields the head has, and some that are added on its way: room for them is made at once. Counting them
/// costs more than a map that grows now and then.
pub(super) fn likely_fields(head: &[u8]) -> usize {
    head.len() / 32 + 4
}

/// How many bytes of blank lines stand before the first line: they are allowed before a request.
pub(super) fn leading_blank(buf: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match &buf[at..] {
            [b'\n', ..] => at += 1,
            [b'\r', b'\n', ..] => at += 2,
            _ => return at,
        }
    }
}

/// The first line without its end, and where the next one begins.
pub(super) fn first_line(head: &[u8]) -> (&[u8], usize) {
    let end = memchr::memchr(b'\n', head).unwrap_or(head.len());
    let line = &head[..end];
    (line.strip_suffix(b"\r").unwrap_or(line), end + 1)
}

/// The three words of a request line. Any run of spaces and tabs separates them; version may be empty (HTTP/0.9).
pub(super) fn request_line(line: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (method, rest) = word(line);
    let (target, rest) = word(rest);
    (method, target, trim(rest))
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr2(b' ', b'\t', text).unwrap_or(text.len());
    let (word, mut rest) = text.split_at(end);
    while let [b' ' | b'\t', tail @ ..] = rest {
        rest = tail;
    }
    (word, rest)
}

/// HTTP version of a start line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineVersion {
    /// `HTTP/1.1`.
    Http11,
    /// Any other `HTTP/<digit>.<digit>`, or none at all.
    Other,
}

/// The version word of a request line.
pub(super) fn version(word: &[u8]) -> Result<LineVersion, Violation> {
    match word {
        b"HTTP/1.1" => Ok(LineVersion::Http11),
        b"" => Ok(LineVersion::Other),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Ok(LineVersion::Other)
        }
        _ => Err(Violation::CODEC),
    }
}

/// `HTTP/1.<digit> <three digits>[ reason]`: the minor version and the status.
pub(super) fn status_line(line: &[u8]) -> Result<(u8, StatusCode), Violation> {
    let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        b'1',
        b'.',
        minor,
        b' ',
        rest @ ..,
    ] = line
    else {
        return Err(Violation::CODEC);
    };
    let (code, reason) = rest.split_at_checked(3).ok_or(Violation::CODEC)?;
    let clean = |byte: &u8| *byte >= 32 && *byte != 127 || *byte == b'\t';
    let separated = matches!(reason.first(), None | Some(b' '));
    if !minor.is_ascii_digit() || !separated || !reason.iter().all(clean) {
        return Err(Violation::CODEC);
    }
    let status = StatusCode::from_bytes(code).map_err(|_| Violation::CODEC)?;
    Ok((minor - b'0', status))
}

/// Gives every field of `head` from `start` on to `field`, until the blank line.
///
/// Values share the memory of `head`. A folded value is joined as Envoy joins it: the line end goes, the white space
/// stays. Lines may end in a bare LF; a bare CR is an error.
pub(super) fn fields(
    head: &Bytes,
    start: usize,
    mut field: impl FnMut(HeaderName, HeaderValue) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let bytes = &head[..];
    let mut at = start;
    while at < bytes.len() {
        let (line, mut next) = line_at(bytes, at)?;
        if line.is_empty() {
            break;
        }
        let colon = memchr::memchr(b':', line).ok_or(Violation::CODEC)?;
        let name = name(&line[..colon]).ok_or(Violation::CODEC)?;
        let value = if matches!(bytes.get(next), Some(b' ' | b'\t')) {
            let mut joined = line[colon + 1..].to_vec();
            while matches!(bytes.get(next), Some(b' ' | b'\t')) {
                let (more, after) = line_at(bytes, next)?;
                joined.extend_from_slice(more);
                next = after;
            }
            HeaderValue::from_bytes(trim(&joined))
        } else {
            let text = trim(&line[colon + 1..]);
            HeaderValue::from_maybe_shared(head.slice_ref(text))
        }
        .map_err(|_| Violation::CHARACTERS)?;
        field(name, value)?;
        at = next;
    }
    Ok(())
}

/// Names that many requests carry and that the `http` crate does not know: they need no memory of their own.
static FREQUENT: [HeaderName; 24] = [
    HeaderName::from_static("b3"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("priority"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("sec-ch-ua"),
    HeaderName::from_static("sec-ch-ua-mobile"),
    HeaderName::from_static("sec-ch-ua-platform"),
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-user"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-upstream-service-time"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-request-id"),
];

fn name(text: &[u8]) -> Option<HeaderName> {
    let first = text.first()?.to_ascii_lowercase();
    if matches!(first, b'x' | b's' | b'g' | b't' | b'b' | b'k' | b'p') && text.len() < 32 {
        let mut lower = [0; 32];
        let lower = &mut lower[..text.len()];
        lower.copy_from_slice(text);
        lower.make_ascii_lowercase();
        if let Ok(index) = FREQUENT.binary_search_by(|name| name.as_str().as_bytes().cmp(lower)) {
            return Some(FREQUENT[index].clone());
        }
    }
    HeaderName::from_bytes(text).ok()
}

/// The line at `at` without its end, and where the next begins.
fn line_at(bytes: &[u8], at: usize) -> Result<(&[u8], usize), Violation> {
    let length = memchr::memchr(b'\n', &bytes[at..]).ok_or(Violation::CODEC)?;
    let line = &bytes[at..at + length];
    Ok((line.strip_suffix(b"\r").unwrap_or(line), at + length + 1))
}

/// Without spaces and tabs at both ends.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Decimal digits alone, at least one, below 2^64.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The tokens of a comma-separated list, trimmed; empty ones are left out.
pub(super) fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
        .map(trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_names_are_found() {
        assert!(FREQUENT.is_sorted_by_key(HeaderName::as_str));
        for frequent in &FREQUENT {
            let upper = frequent.as_str().to_ascii_uppercase();
            assert_eq!(name(upper.as_bytes()).as_ref(), Some(frequent));
        }
        assert_eq!(name(b"X-Other").expect("a name").as_str(), "x-other");
        assert!(name(b"x other").is_none());
        assert!(name(b"").is_none());
    }

    #[test]
    fn numbers() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in ["", "18446744073709551616", "+1", "-1", "1 ", "0x1"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
    }
}
