//! A request head: what it asks for, where its body ends, whether it may be served at all.
//!
//! The order of the checks is Envoy's, since a head that breaks two rules is answered for the first.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Version};

use super::decode::Framing;
use super::fields::{self, has_token};
use super::parse::{self, LineVersion};
use super::violation::Violation;
use crate::config::http_connection_manager::{HeadersWithUnderscores, Options};
use crate::http::joined::{self, Side};
use crate::http::order::{take_out, take_out_all};
use crate::http::{RequestHead, Scheme};

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request as its head describes it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) framing: Framing,
    /// The client wants the connection to go on.
    pub(super) keep_alive: bool,
    /// It waits for `100 Continue`.
    pub(super) expects: bool,
}

/// Room for the headers that the proxy itself will add.
const SPARE_HEADERS: usize = 8;

/// Parses a complete head (blank line included, leading blank lines removed).
pub(super) fn parse(block: &Bytes, options: &Options) -> Result<Request, Violation> {
    Draft::read(block, options)
        .map_err(|violation| violation.or_characters(block))?
        .finish(options)
}

/// The parts as they stand in the block, syntax checked.
struct Draft {
    method: Method,
    target: HeaderValue,
    version: LineVersion,
    headers: HeaderMap,
    host: Option<HeaderValue>,
    length: Option<u64>,
    coding: Option<HeaderValue>,
}

impl Draft {
    fn read(block: &Bytes, options: &Options) -> Result<Self, Violation> {
        let (line, next) = parse::first_line(block);
        let (method, target, version) = parse::request_line(line);
        let method = known_method(method)
            .or_else(|| {
                let custom = options.http1.allow_custom_methods;
                custom.then(|| Method::from_bytes(method).ok()).flatten()
            })
            .ok_or(Violation::CODEC)?;
        if !is_target(target, method == Method::CONNECT) {
            return Err(Violation::CODEC);
        }
        let target = HeaderValue::from_maybe_shared(block.slice_ref(target))
            .map_err(|_| Violation::CODEC)?;
        let version = parse::version(version)?;

        let room = parse::likely_fields(block).min(options.max_headers_count) + SPARE_HEADERS;
        let mut draft = Self {
            method,
            target,
            version,
            headers: HeaderMap::try_with_capacity(room).map_err(|_| Violation::TOO_MANY)?,
            host: None,
            length: None,
            coding: None,
        };
        let mut count = 0;
        parse::fields(block, next, |name, value| {
            count += 1;
            if count > options.max_headers_count {
                return Err(Violation::TOO_MANY);
            }
            draft.field(name, value, options)
        })?;
        Ok(draft)
    }

    fn field(
        &mut self,
        name: HeaderName,
        value: HeaderValue,
        options: &Options,
    ) -> Result<(), Violation> {
        if name == header::HOST {
            self.host = Some(match self.host.take() {
                Some(first) => joined::join(&first, &value),
                None => value,
            });
            return Ok(());
        }
        if name == header::TRANSFER_ENCODING {
            self.coding = Some(match self.coding.take() {
                Some(first) => joined::join(&first, &value),
                None => value.clone(),
            });
        }
        if name == header::CONTENT_LENGTH {
            let length = parse::decimal(value.as_bytes()).ok_or(Violation::CODEC)?;
            if self.length.replace(length).is_some() {
                return Err(Violation::CODEC);
            }
        } else if options.underscores != HeadersWithUnderscores::Allow
            && name.as_str().contains('_')
        {
            return match options.underscores {
                HeadersWithUnderscores::Reject => Err(Violation::UNDERSCORE),
                _ => Ok(()),
            };
        }
        fields::add(&mut self.headers, Side::Request, name, value)
    }

    fn finish(mut self, options: &Options) -> Result<Request, Violation> {
        let old = self.version == LineVersion::Other;
        let connection = self.headers.get(header::CONNECTION).cloned();
        let upgrade = self.upgrade(connection.as_ref());
        let framing = self.framing(upgrade.is_some(), old, options)?;
        if let Some(connection) = connection.as_ref().filter(|_| upgrade.is_none())
            && fields::remove_nominated(&mut self.headers, connection)?
        {
            self.host = None;
        }

        let (scheme, path) = self.target(options)?;
        if old {
            if !options.http1.accept_http_10 {
                return Err(Violation::VERSION);
            }
            if let (None, Some(host)) = (&self.host, &options.http1.default_host_for_http_10) {
                self.host = HeaderValue::from_str(host).ok();
            }
        }
        if let Some(host) = &self.host
            && !host.as_bytes().iter().all(|byte| is_authority(*byte))
        {
            return Err(Violation::AUTHORITY);
        }

        let keep_alive = self.keep_alive(connection.as_ref(), old);
        let expects = self
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if expects && !options.proxy_100_continue {
            take_out(&mut self.headers, &header::EXPECT);
        }
        let interim = (expects && options.proxy_100_continue).then(Arc::default);
        Ok(Request {
            head: RequestHead {
                method: self.method,
                scheme,
                has_host: self.host.is_some(),
                authority: self.host.unwrap_or(HeaderValue::from_static("")),
                path,
                version: if old {
                    Version::HTTP_10
                } else {
                    Version::HTTP_11
                },
                headers: self.headers,
                upgrade,
                interim,
            },
            framing,
            keep_alive,
            expects: expects && !options.proxy_100_continue,
        })
    }

    /// The protocol to upgrade to. `h2c` is taken out: it is not supported, and the request is served without.
    fn upgrade(&mut self, connection: Option<&HeaderValue>) -> Option<HeaderValue> {
        let wanted = connection.is_some_and(|value| has_token(value, b"upgrade"));
        let protocol = self
            .headers
            .get(header::UPGRADE)
            .filter(|_| wanted)?
            .clone();
        if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            take_out_all(&mut self.headers, |name| {
                matches!(name.as_str(), "upgrade" | "http2-settings")
            });
            return None;
        }
        Some(protocol)
    }

    fn framing(
        &mut self,
        upgrade: bool,
        old: bool,
        options: &Options,
    ) -> Result<Framing, Violation> {
        let connect = self.method == Method::CONNECT;
        if connect && let Some(length) = self.length.take() {
            if length != 0 {
                return Err(Violation::BODY_DISALLOWED);
            }
            take_out(&mut self.headers, &header::CONTENT_LENGTH);
        }
        let chunked = self
            .coding
            .as_ref()
            .map(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if chunked.is_some() && self.length.is_some() {
            if chunked != Some(true) || !options.http1.allow_chunked_length {
                return Err(Violation::LENGTH_AND_CHUNKED);
            }
            self.length = None;
            take_out(&mut self.headers, &header::CONTENT_LENGTH);
        }
        match chunked {
            // HTTP/1.0 knows no codings: what stands before us may have read another body.
            Some(known) if !known || connect || (old && options.http1.accept_http_10) => {
                Err(Violation::CODING)
            }
            _ if upgrade || connect => Ok(Framing::UntilEnd),
            Some(_) => Ok(Framing::chunked(
                options.max_request_headers,
                options
                    .http1
                    .enable_trailers
                    .then_some(Side::RequestTrailers),
            )),
            None => Ok(Framing::length(self.length.unwrap_or(0))),
        }
    }

    fn keep_alive(&self, connection: Option<&HeaderValue>, old: bool) -> bool {
        let says = |token| connection.is_some_and(|value| has_token(value, token));
        let proxy_close = self
            .headers
            .get(PROXY_CONNECTION)
            .is_some_and(|value| has_token(value, b"close"));
        !says(b"close") && !proxy_close && (!old || says(b"keep-alive"))
    }

    /// Scheme and path; an absolute or authority target replaces the host.
    fn target(&mut self, options: &Options) -> Result<(Scheme, HeaderValue), Violation> {
        let target = self.target.as_bytes();
        let connect = self.method == Method::CONNECT;
        let origin = target.first() == Some(&b'/')
            || (self.method == Method::OPTIONS && target.first() == Some(&b'*'));
        if !connect && (origin || options.http1.refuse_absolute_url) {
            return Ok((Scheme::Unknown, self.target.clone()));
        }
        if connect {
            if !is_host_and_port(target, true) {
                return Err(Violation::URL);
            }
            self.host = Some(self.target.clone());
            return Ok((Scheme::Unknown, HeaderValue::from_static("")));
        }
        let colon = memchr::memmem::find(target, b"://").ok_or(Violation::URL)?;
        let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
        let path_at = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        let host = match memchr::memrchr(b'@', authority) {
            Some(at) => &authority[at + 1..],
            None => authority,
        };
        if !is_host_and_port(host, false) {
            return Err(Violation::URL);
        }
        let scheme = if scheme.eq_ignore_ascii_case(b"http") {
            Scheme::Http
        } else if scheme.eq_ignore_ascii_case(b"https") {
            Scheme::Https
        } else {
            return Err(Violation::SCHEME);
        };
        // A proxy in front that is trusted may have ended the TLS.
        let edge = options.use_remote_address && options.xff_num_trusted_hops == 0;
        if scheme == Scheme::Https && edge {
            return Err(Violation::HTTPS_IN_PLAINTEXT);
        }
        let value = |text: &[u8]| HeaderValue::from_bytes(text).map_err(|_| Violation::URL);
        self.host = Some(value(host)?);
        let path = value(if path.is_empty() { b"/" } else { path })?;
        Ok((scheme, path))
    }
}

/// The methods that Envoy's parser knows; all others are refused.
fn known_method(name: &[u8]) -> Option<Method> {
    const FURTHER: &[&[u8]] = &[
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"MSEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    Some(match name {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"HEAD" => Method::HEAD,
        b"DELETE" => Method::DELETE,
        b"PATCH" => Method::PATCH,
        b"OPTIONS" => Method::OPTIONS,
        b"CONNECT" => Method::CONNECT,
        b"TRACE" => Method::TRACE,
        _ if FURTHER.contains(&name) => Method::from_bytes(name).ok()?,
        _ => return None,
    })
}

/// Envoy's syntax check of a request target: origin, absolute or authority form.
fn is_target(target: &[u8], connect: bool) -> bool {
    let in_path = |byte: &u8| (b'!'..=b'~').contains(byte);
    match target {
        [] => return false,
        [b'/' | b'*', rest @ ..] => return rest.iter().all(in_path),
        _ => {}
    }
    let rest = if connect {
        target
    } else {
        let scheme = target.iter().take_while(|byte| byte.is_ascii_alphabetic());
        let length = scheme.count();
        match target[length..].strip_prefix(b"://") {
            Some(rest) if length > 0 => rest,
            _ => return false,
        }
    };
    let path_at = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (host, path) = rest.split_at(path_at);
    host.iter().all(|byte| is_authority(*byte))
        && memchr::memmem::find(host, b"@@").is_none()
        && path.iter().all(in_path)
}

/// The bytes that an authority may hold (RFC 3986), as Envoy checks them.
fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
                | b'['
                | b']'
                | b'%'
        )
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`: a host of letters, digits, hyphens and dots, as Envoy takes it in a target.
fn is_host_and_port(text: &[u8], needs_port: bool) -> bool {
    let host_end = match text.first() {
        Some(b'[') => match memchr::memchr(b']', text) {
            Some(end) if end > 1 => end + 1,
            _ => return false,
        },
        _ => memchr::memchr2(b':', b'/', text).unwrap_or(text.len()),
    };
    let in_literal = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let good = match &text[..host_end] {
        [b'[', literal @ .., b']'] => literal.iter().all(in_literal),
        name => name.iter().all(in_name),
    };
    if !good {
        return false;
    }
    match &text[host_end..] {
        [] => host_end > 0 && !needs_port,
        [b':', port @ ..] => {
            host_end > 0 && parse::decimal(port).is_some_and(|port| port <= 65_535)
        }
        _ => false,
    }
}
