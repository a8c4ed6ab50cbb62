//! Path and host rewriting, as the matched route says.

use http::{HeaderName, HeaderValue};

use super::SelectedRoute;
use crate::config::route::{HostRewrite, PathMatch, PathRewrite};
use crate::http::RequestHead;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// Replaces the authority. What the client sent is kept in `x-envoy-original-host` where `keep_original`; `append` adds
/// it to `x-forwarded-host`, unless it is the last entry there.
pub fn set_authority(
    head: &mut RequestHead,
    authority: HeaderValue,
    append: bool,
    keep_original: bool,
) {
    if append && !head.authority.is_empty() {
        append_forwarded_host(head);
    }
    if keep_original && !head.authority.is_empty() {
        head.headers.insert(ORIGINAL_HOST, head.authority.clone());
    }
    head.authority = authority;
    head.has_host = true;
}

fn append_forwarded_host(head: &mut RequestHead) {
    let host = head.authority.as_bytes();
    let mut all: Vec<u8> = Vec::new();
    for value in head.headers.get_all(FORWARDED_HOST) {
        if !all.is_empty() {
            all.push(b',');
        }
        all.extend_from_slice(value.as_bytes());
    }
    let last = all
        .split(|byte| *byte == b',')
        .rfind(|entry| !entry.is_empty());
    if last == Some(host) {
        return;
    }
    if !all.is_empty() {
        all.push(b',');
    }
    all.extend_from_slice(host);
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        head.headers.insert(FORWARDED_HOST, value);
    }
}

/// The path (with the query) that the route's prefix or regex rewrite makes of `path`; `None` where it has none, or has
/// a format, which `stream` evaluates.
///
/// One that would leave nothing is not made, as in Envoy.
pub fn rewritten_path(selected: &SelectedRoute, path: &[u8]) -> Option<Vec<u8>> {
    let path = match &selected.forward()?.path_rewrite {
        PathRewrite::None | PathRewrite::Format(_) => return None,
        PathRewrite::Prefix(prefix) => replace_prefix(selected, path, prefix),
        PathRewrite::Regex {
            pattern,
            substitution,
        } => replace_regex(&pattern.regex, substitution, path),
    };
    names_something(path)
}

/// `path` with what the route matched replaced: the prefix, or the whole path for the other kinds of match.
pub(super) fn replace_prefix(selected: &SelectedRoute, path: &[u8], with: &str) -> Vec<u8> {
    let matched = match &selected.route.matcher.path {
        PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => path_end(path),
    };
    let rest = path.get(matched..).unwrap_or_default();
    [with.as_bytes(), rest].concat()
}

/// `path`, but for one that is nothing, or nothing before its query.
pub(super) fn names_something(path: Vec<u8>) -> Option<Vec<u8>> {
    (!matches!(path.first(), None | Some(b'?'))).then_some(path)
}

/// `path` with every match in its path part replaced; the query stays.
pub(super) fn replace_regex(
    regex: &regex::bytes::Regex,
    substitution: &str,
    path: &[u8],
) -> Vec<u8> {
    let (only, query) = path.split_at(path_end(path));
    let mut out = substitute(regex, substitution, only);
    out.extend_from_slice(query);
    out
}

/// The authority that the route's own host rewrite asks for, `auto_host_rewrite` excepted. `path` is the request's.
pub fn rewritten_host(selected: &SelectedRoute, head: &RequestHead) -> Option<HeaderValue> {
    match &selected.forward()?.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => None,
        HostRewrite::Literal(host) => HeaderValue::from_str(host).ok(),
        HostRewrite::Header(name) => head
            .headers
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned(),
        HostRewrite::PathRegex {
            pattern,
            substitution,
        } => HeaderValue::from_bytes(&substitute(&pattern.regex, substitution, head.path_only()))
            .ok(),
    }
}

/// Where the query or fragment begins.
pub(super) fn path_end(path: &[u8]) -> usize {
    memchr::memchr2(b'?', b'#', path).unwrap_or(path.len())
}

/// Replaces every match; `\1` is a group, `\0` the match, `\\` a backslash, as in RE2.
fn substitute(regex: &regex::bytes::Regex, substitution: &str, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + substitution.len());
    let mut end = 0;
    for captures in regex.captures_iter(text) {
        let Some(whole) = captures.get(0) else {
            continue;
        };
        out.extend_from_slice(&text[end..whole.start()]);
        end = whole.end();
        let mut rest = substitution.as_bytes();
        while let Some(at) = memchr::memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..at]);
            match rest.get(at + 1) {
                Some(digit @ b'0'..=b'9') => {
                    if let Some(group) = captures.get(usize::from(digit - b'0')) {
                        out.extend_from_slice(group.as_bytes());
                    }
                }
                Some(other) => out.push(*other),
                None => out.push(b'\\'),
            }
            rest = rest.get(at + 2..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
    }
    out.extend_from_slice(&text[end..]);
    out
}
