//! A response head: where its body ends, whether the connection goes on, whether it is HTTP at all.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, Method, StatusCode, Version};

use super::decode::Framing;
use super::fields::{self, has_token};
use super::parse;
use super::violation::Violation;
use crate::http::ResponseHead;
use crate::http::joined::Side;
use crate::http::order::take_out;

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The largest response head that Envoy reads.
pub(super) const MAX_HEAD: usize = 80 << 10;
/// The most fields of a response head.
pub(super) const MAX_FIELDS: usize = 100;

/// A response as its head describes it.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) head: ResponseHead,
    pub(super) framing: Framing,
    /// The connection may serve another exchange.
    pub(super) keep_alive: bool,
}

/// What decides the framing of the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    /// An upgrade was asked for: 101 agrees to it.
    pub(super) upgrade: bool,
    /// Trailers are handed up.
    pub(super) trailers: bool,
}

/// Parses a complete head, blank line included.
pub(super) fn parse(block: &Bytes, asked: Asked<'_>) -> Result<Response, Violation> {
    let (line, next) = parse::first_line(block);
    let (minor, status) = parse::status_line(line)?;
    let room = parse::likely_fields(block).min(MAX_FIELDS);
    let mut headers = HeaderMap::try_with_capacity(room).map_err(|_| Violation::TOO_MANY)?;
    let (mut count, mut length, mut coding) = (0, None, None);
    // The connection says something about itself.
    let mut persistence = false;
    parse::fields(block, next, |name, value| {
        count += 1;
        if count > MAX_FIELDS {
            return Err(Violation::TOO_MANY);
        }
        if name == header::CONTENT_LENGTH {
            let parsed = parse::decimal(value.as_bytes()).ok_or(Violation::CODEC)?;
            if length.replace(parsed).is_some() {
                return Err(Violation::CODEC);
            }
        } else if name == header::CONNECTION || name == PROXY_CONNECTION {
            persistence = true;
        } else if name == header::TRANSFER_ENCODING {
            let chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            return match coding.replace(()) {
                // Filters see it, as in Envoy; what is written downstream has a framing of its own.
                None if chunked => fields::add(&mut headers, Side::Response, name, value),
                _ => Err(Violation::CODING),
            };
        }
        fields::add(&mut headers, Side::Response, name, value)
    })
    .map_err(|violation| violation.or_characters(block))?;

    if coding.is_some() && length.is_some() {
        return Err(Violation::LENGTH_AND_CHUNKED);
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        if coding.is_some() {
            return Err(Violation::CODING_NOT_ALLOWED);
        }
        if length.is_some_and(|length| length != 0) {
            return Err(Violation::LENGTH_NOT_ALLOWED);
        }
        take_out(&mut headers, &header::CONTENT_LENGTH);
    }
    // Where nobody asked, it is an answer without a body, as in Envoy.
    let switched = status == StatusCode::SWITCHING_PROTOCOLS && asked.upgrade;
    let tunnel = switched || (asked.method == Method::CONNECT && status.is_success());
    let bodiless = asked.method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational();
    let framing = if tunnel {
        Framing::UntilEnd
    } else if bodiless {
        Framing::Done
    } else if coding.is_some() {
        Framing::chunked(MAX_HEAD, asked.trailers.then_some(Side::ResponseTrailers))
    } else if let Some(length) = length {
        Framing::length(length)
    } else {
        Framing::UntilEnd
    };
    let says = |name: &HeaderName, token| {
        headers
            .get(name)
            .is_some_and(|value| has_token(value, token))
    };
    let keep_alive = !matches!(framing, Framing::UntilEnd)
        && if persistence {
            !says(&header::CONNECTION, b"close")
                && !says(&PROXY_CONNECTION, b"close")
                && (minor != 0 || says(&header::CONNECTION, b"keep-alive"))
        } else {
            minor != 0
        };
    Ok(Response {
        head: ResponseHead {
            status,
            version: if minor == 0 {
                Version::HTTP_10
            } else {
                Version::HTTP_11
            },
            headers,
        },
        framing,
        keep_alive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_see_how_a_body_was_framed() {
        let block = Bytes::from_static(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let asked = Asked {
            method: &Method::GET,
            upgrade: false,
            trailers: false,
        };
        let response = parse(&block, asked).expect("a head");
        assert_eq!(response.head.headers["transfer-encoding"], "chunked");
    }
}
