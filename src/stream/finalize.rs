//! What the selected route makes of heads: header mutations and rewrites on the way to the upstream, and back.
//!
//! As in Envoy, one set of mutations first removes, then evaluates all its values over what is left, then overwrites,
//! then appends. A value that comes out empty is not added, unless it is to be kept.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use smallvec::SmallVec;

use super::Stream;
use super::format::{LogType, Scope, write_text};
use crate::config::header::{AppendAction, HeaderMutations, HeaderTarget, HeaderValueOption};
use crate::config::route::{PathRewrite, RedirectAction};
use crate::http::joined::{self, Side};
use crate::http::order::take_out_all;
use crate::http::{RequestHead, ResponseHead, Scheme};
use crate::route::{SelectedRoute, redirect, rewrite};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Prepares the request for the upstream as `route` says: header mutations of all levels, path and host rewrites, and
/// the `x-envoy-original-…` headers where `keep_original` (the router's `suppress_envoy_headers` is off).
/// `auto_host_rewrite` is left to the router (`route::rewrite::set_authority`).
pub fn finalize_request(stream: &Stream, route: &SelectedRoute, keep_original: bool) {
    let weighted = route.weighted_cluster();
    let mut host = weighted
        .and_then(|cluster| cluster.host_rewrite.as_deref())
        .and_then(|host| HeaderValue::from_str(host).ok());
    for mutations in route.request_mutations() {
        // Those of the weighted cluster come first. Its host is what the others see.
        let own = weighted.is_some_and(|cluster| std::ptr::eq(mutations, &cluster.request_headers));
        if !own && let Some(host) = host.take() {
            stream.request.lock().authority = host;
        }
        mutate_request_for(stream, Some(route), mutations);
    }
    if let Some(host) = host {
        stream.request.lock().authority = host;
    }
    let Some(forward) = route.forward() else {
        return;
    };
    let formatted = match &forward.path_rewrite {
        PathRewrite::Format(format) => {
            let mut out = Vec::new();
            with_scope(stream, Some(route), None, |scope| {
                write_text(format, scope, true, &mut out);
            });
            Some(out)
        }
        PathRewrite::None | PathRewrite::Prefix(_) | PathRewrite::Regex { .. } => None,
    };
    let mut request = stream.request.lock();
    // The route's own rewrite of the host sees the path before it is rewritten.
    let host = rewrite::rewritten_host(route, &request);
    let path = formatted.or_else(|| rewrite::rewritten_path(route, request.path.as_bytes()));
    if let Some(path) = path.and_then(|path| HeaderValue::from_bytes(&path).ok()) {
        set_path(&mut request, path, keep_original);
    }
    if let Some(host) = host {
        rewrite::set_authority(
            &mut request,
            host,
            forward.append_x_forwarded_host,
            keep_original,
        );
    }
    mend_scheme(&mut request);
}

/// Replaces a scheme that a filter has removed or made none; Envoy's router does that last.
fn mend_scheme(request: &mut RequestHead) {
    if request.scheme.is_valid() {
        return;
    }
    let told = request.headers.get(X_FORWARDED_PROTO);
    let told = told.and_then(|told| told.to_str().ok()).map(Scheme::of);
    request.scheme = told.filter(Scheme::is_valid).unwrap_or(Scheme::Http);
}

/// Rewrites the request's path as a redirect says, before its `location` is computed from it.
pub fn rewrite_for_redirect(
    stream: &Stream,
    route: &SelectedRoute,
    redirect: &RedirectAction,
    keep_original: bool,
) {
    let mut request = stream.request.lock();
    let path = redirect::rewritten_path(route, redirect, request.path.as_bytes());
    if let Some(path) = path.and_then(|path| HeaderValue::from_bytes(&path).ok()) {
        set_path(&mut request, path, keep_original);
    }
}

/// Replaces the path, and keeps what it was in `x-envoy-original-path`.
pub fn set_path(request: &mut RequestHead, path: HeaderValue, keep_original: bool) {
    if keep_original {
        request.headers.insert(ORIGINAL_PATH, request.path.clone());
    }
    request.path = path;
}

/// Applies the response header mutations of all levels of `route` to the response head in `stream`.
///
/// Values see no status of a local reply yet (`%RESPONSE_CODE%` is 0), as in Envoy.
pub fn finalize_response(stream: &Stream, route: &SelectedRoute) {
    let status = stream.info.lock().local_reply.then_some(0);
    for mutations in route.response_mutations() {
        mutate_response_for(stream, Some(route), status, mutations);
    }
}

/// Applies `mutations` to the request head in `stream`.
pub fn mutate_request(stream: &Stream, mutations: &HeaderMutations) {
    let route = stream.resolved_route();
    mutate_request_for(stream, route.as_deref(), mutations);
}

/// Applies `mutations` to the response head in `stream`, if there is one.
pub fn mutate_response(stream: &Stream, mutations: &HeaderMutations) {
    let route = stream.resolved_route();
    // A status that is none of the stream's yet is 0, as in Envoy.
    let early = (!stream.has_status()).then_some(0);
    let replied = stream.info.lock().reply_status;
    let status = early.or_else(|| replied.map(|status| status.as_u16()));
    mutate_response_for(stream, route.as_deref(), status, mutations);
}

fn remove_all(headers: &mut HeaderMap, names: &[HeaderName]) {
    if !names.is_empty() {
        take_out_all(headers, |name| names.contains(name));
    }
}

fn mutate_request_for(stream: &Stream, route: Option<&SelectedRoute>, mutations: &HeaderMutations) {
    {
        let mut request = stream.request.lock();
        remove_all(&mut request.headers, &mutations.remove);
    }
    if mutations.add.is_empty() {
        return;
    }
    let mut values = Values::new();
    with_scope(stream, route, None, |scope| {
        values = evaluate(&mutations.add, scope, |name| {
            request_has(scope.request, name)
        });
    });
    let mut request = stream.request.lock();
    in_order(values, |option, value, append| match &option.name {
        HeaderTarget::Header(name) => {
            set(Side::Request, &mut request.headers, name, value, append);
        }
        HeaderTarget::Authority => {
            request.authority = value;
            request.has_host = true;
        }
        HeaderTarget::Path => request.path = value,
        HeaderTarget::Method => {
            if let Ok(method) = Method::from_bytes(value.as_bytes()) {
                request.method = method;
            }
        }
        HeaderTarget::Scheme => {
            if let Ok(text) = value.to_str() {
                request.scheme = Scheme::of(text);
            }
        }
        HeaderTarget::Status => {}
    });
}

/// `status`: what the values see as the response's, where it is not that of the head.
fn mutate_response_for(
    stream: &Stream,
    route: Option<&SelectedRoute>,
    status: Option<u16>,
    mutations: &HeaderMutations,
) {
    {
        let mut response = stream.response.lock();
        let Some(response) = response.as_mut() else {
            return;
        };
        remove_all(&mut response.headers, &mutations.remove);
    }
    if mutations.add.is_empty() {
        return;
    }
    let mut values = Values::new();
    with_scope(stream, route, status, |scope| {
        values = evaluate(&mutations.add, scope, |name| {
            scope
                .response
                .is_some_and(|response| response_has(response, name))
        });
    });
    if let Some(response) = stream.response.lock().as_mut() {
        apply_to_response(values, response);
    }
}

/// Applies `mutations` to a head that is not yet the stream's (a local reply's); `scope` is what the values see.
pub(super) fn mutate_reply(
    mutations: &HeaderMutations,
    scope: &Scope<'_>,
    response: &mut ResponseHead,
) {
    remove_all(&mut response.headers, &mutations.remove);
    let values = evaluate(&mutations.add, scope, |name| response_has(response, name));
    apply_to_response(values, response);
}

fn apply_to_response(values: Values<'_>, response: &mut ResponseHead) {
    in_order(values, |option, value, append| match &option.name {
        HeaderTarget::Header(name) => {
            set(Side::Response, &mut response.headers, name, value, append);
        }
        HeaderTarget::Status => {
            if let Ok(status) = StatusCode::from_bytes(value.as_bytes()) {
                response.status = status;
            }
        }
        HeaderTarget::Authority
        | HeaderTarget::Path
        | HeaderTarget::Method
        | HeaderTarget::Scheme => {}
    });
}

/// Evaluated values, with what they are for and whether they append.
type Values<'a> = SmallVec<[(&'a HeaderValueOption, HeaderValue, bool); 8]>;

fn evaluate<'a>(
    options: &'a [HeaderValueOption],
    scope: &Scope<'_>,
    has: impl Fn(&HeaderTarget) -> bool,
) -> Values<'a> {
    let mut values = Values::new();
    let mut buffer = Vec::new();
    for option in options {
        let append = match option.action {
            AppendAction::AppendIfExistsOrAdd => true,
            AppendAction::AddIfAbsent if has(&option.name) => continue,
            AppendAction::AddIfAbsent => true,
            AppendAction::OverwriteIfExistsOrAdd => false,
            AppendAction::OverwriteIfExists if !has(&option.name) => continue,
            AppendAction::OverwriteIfExists => false,
        };
        buffer.clear();
        let bytes: &[u8] = match option.value.as_literal() {
            Some(text) => text.as_bytes(),
            None => {
                write_text(&option.value, scope, true, &mut buffer);
                &buffer
            }
        };
        if bytes.is_empty() && !option.keep_empty_value {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            values.push((option, value, append));
        }
    }
    values
}

/// Overwrites first, then appends.
fn in_order(values: Values<'_>, mut apply: impl FnMut(&HeaderValueOption, HeaderValue, bool)) {
    let mut appended = Values::new();
    for (option, value, append) in values {
        if append {
            appended.push((option, value, append));
        } else {
            apply(option, value, false);
        }
    }
    for (option, value, append) in appended {
        apply(option, value, append);
    }
}

fn set(side: Side, headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, append: bool) {
    if append {
        joined::append(side, headers, name.clone(), value);
    } else {
        joined::set(headers, name.clone(), value);
    }
}

fn request_has(request: &RequestHead, target: &HeaderTarget) -> bool {
    match target {
        HeaderTarget::Header(name) => request.headers.contains_key(name),
        HeaderTarget::Authority => request.has_host,
        HeaderTarget::Path => !request.path.is_empty(),
        HeaderTarget::Method => true,
        HeaderTarget::Scheme => request.scheme.shown().is_some(),
        HeaderTarget::Status => false,
    }
}

fn response_has(response: &ResponseHead, target: &HeaderTarget) -> bool {
    match target {
        HeaderTarget::Header(name) => response.headers.contains_key(name),
        HeaderTarget::Status => true,
        HeaderTarget::Authority
        | HeaderTarget::Path
        | HeaderTarget::Method
        | HeaderTarget::Scheme => false,
    }
}

/// The scope of `stream`, whose cells are locked while `f` runs.
pub(super) fn with_scope<R>(
    stream: &Stream,
    route: Option<&SelectedRoute>,
    status: Option<u16>,
    f: impl FnOnce(&Scope<'_>) -> R,
) -> R {
    let request = stream.request.lock();
    let response = stream.response.lock();
    let trailers = stream.response_trailers.lock();
    let info = stream.info.lock();
    f(&Scope {
        request: &request,
        response: response.as_ref(),
        response_trailers: trailers.as_ref(),
        info: &info,
        connection: &stream.connection,
        config: &stream.config,
        route,
        status,
        local_reply_body: b"",
        log_type: LogType::NotSet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_scheme_becomes_that_of_the_request() {
        for (left, told, mended) in [
            (Scheme::of("ftp"), None, "http"),
            (Scheme::of(""), Some("https"), "https"),
            (Scheme::Unknown, Some("ftp"), "http"),
            (Scheme::of("HTTP"), Some("https"), "HTTP"),
            (Scheme::Https, Some("http"), "https"),
        ] {
            let mut head = RequestHead::new(Method::GET, "a", "/");
            head.scheme = left.clone();
            if let Some(told) = told {
                let told = HeaderValue::from_static(told);
                head.headers.insert(X_FORWARDED_PROTO, told);
            }
            assert_eq!(
                request_has(&head, &HeaderTarget::Scheme),
                left != Scheme::Unknown
            );
            mend_scheme(&mut head);
            assert_eq!(head.scheme.as_str(), mended, "{left:?} {told:?}");
        }
    }
}
