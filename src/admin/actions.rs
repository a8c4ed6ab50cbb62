//! What changes the process: health, draining, exit, logs, counters.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use super::request::{Request, Response};
use crate::base::task;

pub(super) fn health_fail(context: &Context, _: &Request) -> Response {
    context.proxy.set_health_failed(true);
    Response::ok()
}

pub(super) fn health_ok(context: &Context, _: &Request) -> Response {
    context.proxy.set_health_failed(false);
    Response::ok()
}

/// `graceful` stops listening after the drain time, unless a drain has begun before; `skip_exit` never does, in spite of
/// its name.
pub(super) fn drain_listeners(context: &Context, request: &Request) -> Response {
    let inbound_only = request.flag("inboundonly");
    let begins = context.proxy.start_drain(inbound_only);
    if !request.flag("skip_exit") {
        if request.flag("graceful") {
            if !begins {
                return Response::ok();
            }
            let proxy = Arc::clone(&context.proxy);
            let wait = proxy.drain_time();
            task::spawn("drain listeners", async move {
                tokio::time::sleep(wait).await;
                proxy.stop_accepting(inbound_only);
            });
        } else {
            context.proxy.stop_accepting(inbound_only);
        }
    }
    Response::ok()
}

/// The answer is sent first.
pub(super) fn quit(context: &Context, _: &Request) -> Response {
    let proxy = Arc::clone(&context.proxy);
    task::spawn("quit", async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.quit();
    });
    Response::ok()
}

pub(super) fn reopen_logs(context: &Context, _: &Request) -> Response {
    context.proxy.reopen_logs();
    if let Some(log) = &context.log {
        log.reopen();
    }
    Response::ok()
}

pub(super) fn reset_counters(context: &Context, _: &Request) -> Response {
    context.metrics.reset_counters();
    Response::ok()
}
