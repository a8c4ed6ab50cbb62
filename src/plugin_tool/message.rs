//! Requests and responses as text: what a person writes on the command line and in files, and what is shown of messages.
//!
//! ```text
//! POST /orders HTTP/1.1          (or `HTTP/1.1 200 OK`, of which `200` is enough)
//! host: shop.test
//!
//! the body
//! ```
//!
//! A body that is one line `< path` is the content of that file. A request without `host` goes to `localhost`.

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::http::{RequestHead, ResponseHead, Scheme};
use crate::wasm::spec::Digest;

/// A request to send.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) body: Bytes,
}

/// A response to give.
#[derive(Clone, Debug)]
pub(super) struct Response {
    pub(super) head: ResponseHead,
    pub(super) body: Bytes,
}

impl Request {
    /// Reads the text; files are looked for from `folder`.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let (start, fields, body) = split(text, folder)?;
        let mut words = start.split_ascii_whitespace();
        let (method, target) = match (words.next(), words.next()) {
            (Some(target), None) if target.starts_with('/') => ("GET", target),
            (Some(method), Some(target)) => (method, target),
            _ => return Err(format!("{start:?} is no request line such as 'GET /path'")),
        };
        match words.next() {
            None | Some("HTTP/1.1" | "HTTP/1.0" | "HTTP/2" | "HTTP/3")
                if words.next().is_none() => {}
            _ => return Err(format!("{start:?} is no request line such as 'GET /path'")),
        }
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| format!("{method:?} is no method"))?;
        let mut head = RequestHead::new(method, "localhost", "/");
        let mut path = Cow::Borrowed(target);
        if let Some((scheme, rest)) = target.split_once("://") {
            head.scheme = match scheme {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                _ => return Err(format!("{scheme:?} is neither http nor https")),
            };
            let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            set_authority(&mut head, authority)?;
            path = if rest.starts_with('/') {
                Cow::Borrowed(rest)
            } else {
                Cow::Owned(format!("/{rest}"))
            };
        } else if !target.starts_with('/') && target != "*" {
            return Err(format!("the path {target:?} does not begin with '/'"));
        }
        head.path = value(&path)?;
        for (name, value) in fields {
            set_request_header(&mut head, name, value)?;
        }
        Ok(Self { head, body })
    }
}

/// Adds a header as a client would send it: `host` is the authority.
pub(super) fn set_request_header(
    head: &mut RequestHead,
    name: &str,
    text: &str,
) -> Result<(), String> {
    match name {
        _ if name.eq_ignore_ascii_case("host") || name == ":authority" => set_authority(head, text),
        _ => add_header(&mut head.headers, name, text),
    }
}

/// Adds a header.
pub(super) fn add_header(headers: &mut HeaderMap, name: &str, text: &str) -> Result<(), String> {
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("{name:?} is no name of a header"))?;
    headers
        .try_append(name, value(text)?)
        .map_err(|_| "there are too many headers".to_owned())?;
    Ok(())
}

fn set_authority(head: &mut RequestHead, text: &str) -> Result<(), String> {
    head.authority = value(text)?;
    head.has_host = true;
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|_| format!("{text:?} is no value of a header"))
}

impl Response {
    /// Reads the text; files are looked for from `folder`.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let (start, fields, body) = split(text, folder)?;
        let mut words = start.split_ascii_whitespace();
        let mut status = words.next().unwrap_or_default();
        if status.starts_with("HTTP/") {
            status = words.next().unwrap_or_default();
        }
        let code = Some(status)
            .filter(|status| status.len() == 3)
            .and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok())
            .ok_or_else(|| format!("{start:?} does not begin with a status such as 200"))?;
        let mut head = ResponseHead::new(code);
        for (name, value) in fields {
            add_header(&mut head.headers, name, value)?;
        }
        Ok(Self { head, body })
    }
}

/// A text's first line, its headers and its body.
type Parts<'a> = (&'a str, Vec<(&'a str, &'a str)>, Bytes);

fn split<'a>(text: &'a str, folder: &Path) -> Result<Parts<'a>, String> {
    let mut rest = text;
    let mut line = || -> Option<&'a str> {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        Some(line.strip_suffix('\r').unwrap_or(line))
    };
    let start = line().unwrap_or_default();
    if start.trim().is_empty() {
        return Err("the message is empty: its first line is missing".to_owned());
    }
    let mut fields = Vec::new();
    while let Some(field) = line().filter(|line| !line.is_empty()) {
        // Names of pseudo-headers begin with a colon.
        let at = field.get(1..).and_then(|rest| rest.find(':'));
        let Some(at) = at else {
            return Err(format!("{field:?} is no header such as 'name: value'"));
        };
        fields.push((field[..=at].trim(), field[at + 2..].trim()));
    }
    let body = match rest.trim_end().strip_prefix("< ") {
        Some(path) if !path.contains('\n') => {
            let path = folder.join(path.trim());
            let read = super::source::read(&path);
            read.map_err(|error| format!("the body: {error:#}"))?.into()
        }
        _ => Bytes::copy_from_slice(rest.as_bytes()),
    };
    Ok((start, fields, body))
}

/// A message that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The first line.
    pub(super) start: String,
    /// In their order; `host` first.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
}

impl Message {
    pub(super) fn request(head: &RequestHead, body: &[u8], trailers: Option<&HeaderMap>) -> Self {
        let path = shown(&head.path);
        let mut headers = Vec::new();
        let target = match &head.scheme {
            Scheme::Https => format!("https://{}{path}", shown(&head.authority)),
            // What is no scheme the router makes that of the request.
            Scheme::Http | Scheme::Unknown | Scheme::Other(_) => {
                if head.has_host {
                    headers.push(("host".to_owned(), shown(&head.authority)));
                }
                path
            }
        };
        headers.extend(fields(&head.headers));
        Self {
            start: format!("{} {target} HTTP/1.1", head.method),
            headers,
            body: body.to_vec(),
            trailers: trailers.map(fields).unwrap_or_default(),
        }
    }

    pub(super) fn response(head: &ResponseHead, body: &[u8], trailers: Option<&HeaderMap>) -> Self {
        let reason = head.status.canonical_reason().unwrap_or_default();
        Self {
            start: format!("HTTP/1.1 {} {reason}", head.status.as_u16())
                .trim_end()
                .to_owned(),
            headers: fields(&head.headers),
            body: body.to_vec(),
            trailers: trailers.map(fields).unwrap_or_default(),
        }
    }

    /// The first line and the headers.
    pub(super) fn head(&self) -> Vec<String> {
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {value}"));
        std::iter::once(self.start.clone()).chain(headers).collect()
    }

    /// All of it. Trailers stand below the headers, by a word that is no name of one.
    pub(super) fn text(&self) -> String {
        let mut text = self.head().join("\n");
        for (name, value) in &self.trailers {
            text.push_str("\ntrailer ");
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
        }
        text.push('\n');
        if !self.body.is_empty() {
            text.push('\n');
            text.push_str(&body_text(&self.body));
        }
        text
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let pairs = |pairs: &[(String, String)]| -> serde_json::Value {
            let pairs = pairs.iter();
            pairs.map(|(name, value)| json!([name, value])).collect()
        };
        json!({
            "start": self.start,
            "headers": pairs(&self.headers),
            "body": body_text(&self.body),
            "body_bytes": self.body.len(),
            "trailers": pairs(&self.trailers),
        })
    }
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.as_str().to_owned(), shown(value)))
        .collect()
}

fn shown(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().escape_ascii().to_string(),
    }
}

/// The body, where it is text.
pub(super) fn body_text(body: &[u8]) -> String {
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
    match std::str::from_utf8(body) {
        Ok(text) if !text.contains(odd) => text.to_owned(),
        _ => format!(
            "<{} bytes that are not text, sha256 {}>",
            body.len(),
            Digest::of(body)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Request, String> {
        Request::parse(text, Path::new("/nonesuch"))
    }

    #[test]
    fn a_request_is_read_as_it_is_shown() {
        let text =
            "POST /a?b=c HTTP/1.1\nhost: shop.test\nx-a: 1\nx-a: 2\n\nbody: of\n\ntwo lines\n";
        let read = request(text).unwrap();
        assert_eq!(read.head.authority, "shop.test");
        assert_eq!(read.head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(&read.body[..], b"body: of\n\ntwo lines\n");
        assert_eq!(Message::request(&read.head, &read.body, None).text(), text);

        let secure = request("GET https://shop.test/a HTTP/1.1\r\nx-b: 1\r\n\r\n").unwrap();
        assert_eq!(secure.head.scheme, Scheme::Https);
        assert_eq!(secure.head.headers["x-b"], "1");
        assert!(secure.body.is_empty());
        let shown = Message::request(&secure.head, &secure.body, None).text();
        assert_eq!(shown, "GET https://shop.test/a HTTP/1.1\nx-b: 1\n");
        assert_eq!(request("/only/a/path").unwrap().head.method, Method::GET);
    }

    #[test]
    fn a_url_needs_no_path() {
        for (url, path) in [
            ("http://shop.test", "/"),
            ("http://shop.test/", "/"),
            ("http://shop.test?x=1", "/?x=1"),
            ("http://shop.test?x=/1", "/?x=/1"),
            ("http://shop.test/a?x=1", "/a?x=1"),
        ] {
            let head = request(&format!("GET {url}")).unwrap().head;
            assert_eq!(
                (head.authority, head.path),
                ("shop.test".parse().unwrap(), path.parse().unwrap())
            );
        }
    }

    #[test]
    fn trailers_stand_below_the_headers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let read = request("POST /\nhost: localhost\nx-a: 1\n\nbody").unwrap();
        let shown = Message::request(&read.head, &read.body, Some(&trailers)).text();
        assert_eq!(
            shown,
            "POST / HTTP/1.1\nhost: localhost\nx-a: 1\ntrailer x-sum: 7\n\nbody"
        );
    }

    #[test]
    fn a_response_is_read_as_it_is_shown() {
        for start in ["404", "404 Whatever", "HTTP/1.1 404 Not Found"] {
            let read = Response::parse(&format!("{start}\nx-a: 1\n\ngone"), Path::new("/"));
            let read = read.unwrap();
            let shown = Message::response(&read.head, &read.body, None).text();
            assert_eq!(shown, "HTTP/1.1 404 Not Found\nx-a: 1\n\ngone");
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (text, reason) in [
            ("", "first line"),
            ("\nGET /", "first line"),
            ("GET", "request line"),
            ("GET path", "begin with '/'"),
            ("GET / HTTP/1.1 x", "request line"),
            ("G(T /", "no method"),
            ("GET ftp://a/", "neither http"),
            ("GET /\nno header", "no header"),
            ("GET /\na b: c", "no name"),
            ("GET /\n\n< nonesuch.json", "nonesuch.json"),
        ] {
            let error = request(text).expect_err(text);
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        for text in ["", "hello", "20", "2000", "HTTP/1.1"] {
            assert!(Response::parse(text, Path::new("/")).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_described() {
        assert_eq!(body_text(b"a\r\nb\tc"), "a\r\nb\tc");
        for body in [&b"\xff\xfe"[..], b"\x1b[2J"] {
            let text = body_text(body);
            assert!(text.contains("bytes that are not text, sha256 "), "{text}");
        }
    }
}
