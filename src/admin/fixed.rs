//! Endpoints that have nothing to tell here, and say so as Envoy does.

use std::sync::atomic::Ordering::Relaxed;

use http::StatusCode;

use super::Context;
use super::request::{Request, Response};

pub(super) fn hot_restart_version(_: &Context, _: &Request) -> Response {
    Response::text("disabled")
}

pub(super) fn contention(_: &Context, _: &Request) -> Response {
    Response::text(
        "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.",
    )
}

pub(super) fn no_profiler(_: &Context, _: &Request) -> Response {
    Response::error(
        StatusCode::NOT_IMPLEMENTED,
        "The current build does not support this profiler",
    )
}

pub(super) fn usage_enable(context: &Context, request: &Request) -> Response {
    match request.param("enable") {
        Some("y" | "n") => no_profiler(context, request),
        _ => Response::bad("?enable=<y|n>\n"),
    }
}

pub(super) fn lookups(context: &Context, _: &Request) -> Response {
    Response::text(if context.lookups.load(Relaxed) {
        "   Count Lookup\n\ntotal: 0\n"
    } else {
        "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n"
    })
}

pub(super) fn lookups_enable(context: &Context, _: &Request) -> Response {
    context.lookups.store(true, Relaxed);
    Response::ok()
}

pub(super) fn lookups_disable(context: &Context, _: &Request) -> Response {
    context.lookups.store(false, Relaxed);
    Response::ok()
}

pub(super) fn lookups_clear(_: &Context, _: &Request) -> Response {
    Response::ok()
}
