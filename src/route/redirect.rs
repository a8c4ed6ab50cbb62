//! Redirects: the `location` that a route answers with.

use http::HeaderValue;

use super::SelectedRoute;
use super::rewrite::{names_something, replace_prefix, replace_regex};
use crate::config::route::{RedirectAction, RedirectPath};
use crate::http::RequestHead;

/// The `location` of `redirect` for `head`, whose path [`rewritten_path`] has replaced. `None` where it is no header
/// value.
///
/// The redirect of `require_tls` keeps the port, whatever it is.
pub fn location(
    selected: &SelectedRoute,
    redirect: &RedirectAction,
    head: &RequestHead,
) -> Option<HeaderValue> {
    let mut out = Vec::with_capacity(64 + head.path.len());
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme.as_str());
    out.extend_from_slice(scheme.as_bytes());
    out.extend_from_slice(b"://");
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None if selected.tls_redirect => out.extend_from_slice(head.authority.as_bytes()),
        None => out.extend_from_slice(request_host(head, scheme, redirect.port.is_some())),
    }
    if let Some(port) = redirect.port {
        out.extend_from_slice(format!(":{port}").as_bytes());
    }
    let path = path(redirect, head.path.as_bytes());
    if !path.starts_with(b"/") {
        out.push(b'/');
    }
    out.extend_from_slice(&path);
    HeaderValue::from_bytes(&out).ok()
}

/// The `location` of a direct response with a status of 201 or 3xx: Envoy names the request's own place, as a redirect that
/// changes nothing does.
pub fn own_location(head: &RequestHead) -> Option<HeaderValue> {
    let scheme = head.scheme.as_str();
    let place = [
        scheme.as_bytes(),
        b"://",
        request_host(head, scheme, false),
        head.path.as_bytes(),
    ]
    .concat();
    HeaderValue::from_bytes(&place).ok()
}

/// The path that the request is given before it is redirected: a prefix or regex rewrite replaces that of the request,
/// as the access log shows. `None` where the redirect has neither.
pub fn rewritten_path(
    selected: &SelectedRoute,
    redirect: &RedirectAction,
    path: &[u8],
) -> Option<Vec<u8>> {
    let path = match &redirect.path {
        RedirectPath::Keep | RedirectPath::Whole(_) => return None,
        RedirectPath::Prefix(prefix) => replace_prefix(selected, path, prefix),
        RedirectPath::Regex {
            pattern,
            substitution,
        } => replace_regex(&pattern.regex, substitution, path),
    };
    names_something(path)
}

fn path(redirect: &RedirectAction, request: &[u8]) -> Vec<u8> {
    let mut path = match &redirect.path {
        RedirectPath::Whole(whole) => {
            let mut path = whole.as_bytes().to_vec();
            // A query of its own takes the place of the request's, and is never stripped.
            if whole.contains('?') {
                return path;
            }
            if let Some(query) = memchr::memchr(b'?', request) {
                path.extend_from_slice(&request[query..]);
            }
            path
        }
        RedirectPath::Keep | RedirectPath::Prefix(_) | RedirectPath::Regex { .. } => {
            request.to_vec()
        }
    };
    if redirect.strip_query {
        path.truncate(memchr::memchr(b'?', &path).unwrap_or(path.len()));
    }
    path
}

/// The request's host; its port goes where another is set, or where it is the default one of a scheme that changes.
fn request_host<'a>(head: &'a RequestHead, scheme: &str, new_port: bool) -> &'a [u8] {
    let host = head.authority.as_bytes();
    let colon = match host.first() {
        Some(b'[') => memchr::memmem::rfind(host, b"]:").map(|at| at + 1),
        _ => memchr::memrchr(b':', host),
    };
    let Some(colon) = colon else {
        return host;
    };
    // What the client spoke, which the scheme of an HTTP/2 request need not be; a filter may have taken it away.
    let proto = head.headers.get("x-forwarded-proto");
    let proto = proto.map_or(&b""[..], HeaderValue::as_bytes);
    let default_port = scheme.as_bytes() != proto
        && match proto {
            b"http" => &host[colon..] == b":80",
            b"https" => &host[colon..] == b":443",
            _ => false,
        };
    if new_port || default_port {
        &host[..colon]
    } else {
        host
    }
}
