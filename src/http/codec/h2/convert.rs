//! The library's heads to ours and back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::ext::Protocol;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame};

use super::super::{Refusal, Reset};
use crate::config::http_connection_manager::{HeadersWithUnderscores, Options};
use crate::http::joined::{Side, join_repeated};
use crate::http::order::{take_out, take_out_all};
use crate::http::{Body, BodyError, RequestHead, ResponseFlag, ResponseHead, Scheme};

/// True for headers that belong to an HTTP/1 connection.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection"
    )
}

/// A rule of HTTP/2's messages is broken.
const INVALID: Refusal = Refusal {
    reset: Reset::Protocol,
    details: "http2.invalid.header.field",
    flag: ResponseFlag::DownstreamProtocolError,
};

/// A limit or an option of ours refuses the head.
const fn unwanted(details: &'static str) -> Refusal {
    Refusal {
        reset: Reset::Internal,
        details,
        flag: ResponseFlag::DownstreamRemoteReset,
    }
}

/// A received request; `Err` where Envoy ends its stream.
pub(super) fn request_head(parts: Parts, options: &Options) -> Result<RequestHead, Refusal> {
    let mut headers = parts.headers;
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if headers.len() > options.max_headers_count {
        return Err(unwanted("http2.too_many_headers"));
    }
    if size > options.max_request_headers {
        return Err(unwanted("http2.header_list_size_too_large"));
    }
    let uri = parts.uri;
    let connect = parts.method == Method::CONNECT;
    let authority = match uri.authority() {
        Some(authority) => value(authority.as_str())?,
        // RFC 9113 section 8.3.1: a request that came as HTTP/1.1 may have `host` alone.
        None if !connect => sole_host(&headers).ok_or(INVALID)?,
        None => return Err(INVALID),
    };
    if authority.as_bytes().contains(&b'@') {
        return Err(INVALID);
    }
    let scheme = match uri.scheme_str() {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
        // The library drops the scheme where there is no authority.
        None if connect || uri.authority().is_none() => Scheme::Http,
        _ => return Err(INVALID),
    };
    let path = match uri.path_and_query() {
        Some(path) => value(path.as_str())?,
        None => HeaderValue::from_static(""),
    };
    // RFC 9113 section 8.3.1: a path begins with a slash, but for the asterisk of OPTIONS.
    let rooted = path.as_bytes().first() == Some(&b'/');
    let asterisk = parts.method == Method::OPTIONS && path == "*";
    if !connect && !rooted && !asterisk {
        return Err(INVALID);
    }
    tidy(&mut headers, options)?;
    let upgrade = match parts.extensions.get::<Protocol>() {
        Some(protocol) => Some(value(protocol.as_str())?),
        None => None,
    };
    Ok(RequestHead {
        method: parts.method,
        scheme,
        authority,
        has_host: true,
        path,
        version: Version::HTTP_2,
        headers,
        upgrade,
        interim: None,
    })
}

fn sole_host(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().filter(|host| !host.is_empty())?;
    hosts.next().is_none().then(|| host.clone())
}

fn value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(text.as_bytes())).map_err(|_| INVALID)
}

fn tidy(headers: &mut HeaderMap, options: &Options) -> Result<(), Refusal> {
    // `expect: 100-continue` is met at this hop, as in HTTP/1; a client of HTTP/2 hardly waits for a 100.
    let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get(header::EXPECT).is_some_and(waits) {
        take_out(headers, &header::EXPECT);
    }
    take_out_all(headers, |name| {
        matches!(name.as_str(), "host" | "http2-settings")
    });
    if options.underscores != HeadersWithUnderscores::Allow {
        let named: Vec<HeaderName> = headers
            .keys()
            .filter(|name| name.as_str().contains('_'))
            .cloned()
            .collect();
        if !named.is_empty() && options.underscores == HeadersWithUnderscores::Reject {
            return Err(unwanted("http2.unexpected_underscore"));
        }
        take_out_all(headers, |name| named.contains(name));
    }
    join_cookies(headers);
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(INVALID);
    }
    join_repeated(Side::Request, headers);
    Ok(())
}

/// Crumbs of a cookie become one header again; an empty one is none.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    match (crumbs.next(), crumbs.next()) {
        (None, _) => return,
        (Some(only), None) if !only.is_empty() => return,
        (Some(_), _) => {}
    }
    let mut joined = BytesMut::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.put_slice(b"; ");
        }
        joined.put_slice(crumb.as_bytes());
    }
    if joined.is_empty() {
        take_out(headers, &header::COOKIE);
        return;
    }
    let joined = HeaderValue::from_maybe_shared(joined.freeze());
    headers.insert(header::COOKIE, joined.expect("valid values and separators"));
}

/// A response for the library, and what of the body goes with it.
pub(super) fn response(
    head: ResponseHead,
    mut body: Body,
    head_request: bool,
) -> (Response<()>, Body) {
    let mut headers = head.headers;
    take_out_all(&mut headers, |name| {
        is_of_connection(name) || *name == header::TE
    });
    let status = head.status;
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        take_out(&mut headers, &header::CONTENT_LENGTH);
        body = Body::empty();
    } else if head_request || status == StatusCode::NOT_MODIFIED {
        body = Body::empty();
    } else {
        fit_length(&mut headers, &body);
        if !body.is_end_stream()
            && let Some(length) = body.size_hint().exact()
        {
            headers
                .entry(header::CONTENT_LENGTH)
                .or_insert_with(|| length.into());
        }
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers;
    (response, body)
}

/// A `content-length` that the body does not have is taken away.
fn fit_length(headers: &mut HeaderMap, body: &Body) {
    if let Some(stated) = headers.get(header::CONTENT_LENGTH) {
        let stated = stated.to_str().ok().and_then(|text| text.parse().ok());
        if stated.is_none() || stated != body.size_hint().exact() {
            take_out(headers, &header::CONTENT_LENGTH);
        }
    }
}

/// Leaves out what belongs to an HTTP/1 connection.
pub(super) fn drop_connection_headers(headers: &mut HeaderMap) {
    take_out_all(headers, |name| is_of_connection(name) || name == header::TE);
}

/// A request for hyper; `Err` where HTTP/2 cannot say it.
pub(super) fn request(head: RequestHead, body: Body) -> Result<Request<Body>, &'static str> {
    let mut headers = head.headers;
    take_out_all(&mut headers, is_of_connection);
    fit_length(&mut headers, &body);
    let body = match headers.contains_key(header::CONTENT_LENGTH) {
        true => body,
        false => unannounced(&head.method, body),
    };
    let authority = Authority::from_maybe_shared(bytes_of(&head.authority))
        .map_err(|_| "http2.invalid_authority")?;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority);
    if head.method != Method::CONNECT || head.upgrade.is_some() {
        parts.scheme = Some(match &head.scheme {
            Scheme::Http | Scheme::Unknown => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
            // An upstream's filters come after the router: what is no scheme at all goes as one.
            Scheme::Other(text) => {
                http::uri::Scheme::try_from(&**text).unwrap_or(http::uri::Scheme::HTTP)
            }
        });
        parts.path_and_query = Some(path(&head.path)?);
    }
    let uri = Uri::from_parts(parts).map_err(|_| "http2.invalid_url")?;
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// hyper announces that there is no body where the method commonly has one; a head that ends its stream says so already.
fn unannounced(method: &Method, body: Body) -> Body {
    let bare = [Method::GET, Method::HEAD, Method::DELETE, Method::CONNECT].contains(method);
    match body.size_hint().exact() {
        Some(0) if !bare => Body::new(Unannounced(body)),
        _ => body,
    }
}

/// A body that keeps its length to itself.
struct Unannounced(Body);

impl http_body::Body for Unannounced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

fn bytes_of(value: &HeaderValue) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// hyper refuses a few characters that a path may have on the wire of HTTP/1: they are escaped.
fn path(path: &HeaderValue) -> Result<PathAndQuery, &'static str> {
    let unsafe_byte = |byte: &u8| matches!(byte, b'<' | b'>' | b'`' | b'#' | b'\\' | b'^');
    let text = path.as_bytes();
    let bytes = if text.iter().any(unsafe_byte) {
        let mut escaped = BytesMut::with_capacity(text.len() + 8);
        for byte in text {
            if unsafe_byte(byte) {
                escaped.put_u8(b'%');
                escaped.put_u8(b"0123456789ABCDEF"[usize::from(byte >> 4)]);
                escaped.put_u8(b"0123456789ABCDEF"[usize::from(byte & 15)]);
            } else {
                escaped.put_u8(*byte);
            }
        }
        escaped.freeze()
    } else {
        bytes_of(path)
    };
    PathAndQuery::from_maybe_shared(bytes).map_err(|_| "http2.invalid_url")
}

/// A received response.
pub(super) fn response_head(parts: http::response::Parts) -> ResponseHead {
    let mut headers = parts.headers;
    join_repeated(Side::Response, &mut headers);
    ResponseHead {
        status: parts.status,
        version: Version::HTTP_2,
        headers,
    }
}
