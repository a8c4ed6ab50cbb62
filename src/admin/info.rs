//! The process: readiness, version, memory, what it waits for.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::request::{Request, Response};
use super::{Context, ServerState};
use crate::base::memory;
use crate::bootstrap::version;
use crate::pb;

pub(super) fn ready(context: &Context, _: &Request) -> Response {
    let state = context.proxy.server_state();
    let status = if state == ServerState::Live {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Response::error(status, format!("{}\n", state.name()))
}

pub(super) fn server_info(context: &Context, _: &Request) -> Response {
    let uptime = format!("{}s", context.started.elapsed().as_secs());
    Response::json(&json!({
        "version": version::full(),
        "state": context.proxy.server_state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": context.command_line,
        "node": node(&context.bootstrap.node),
        "hot_restart_initializing": false,
    }))
}

/// This endpoint also prints fields that are not set.
fn node(node: &pb::Node) -> Value {
    let mut fields = match pb::to_json(node) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for (name, default) in [
        ("id", json!("")),
        ("cluster", json!("")),
        ("extensions", json!([])),
        ("client_features", json!([])),
        ("listening_addresses", json!([])),
        ("dynamic_parameters", json!({})),
    ] {
        fields.entry(name).or_insert(default);
    }
    if let Some(Value::Object(locality)) = fields.get_mut("locality") {
        for name in ["region", "zone", "sub_zone"] {
            locality.entry(name).or_insert_with(|| json!(""));
        }
    }
    let (_, _, patch) = version::ENVOY;
    if let Some(Value::Object(version)) = fields
        .get_mut("user_agent_build_version")
        .and_then(|build| build.get_mut("version"))
    {
        version.entry("patch").or_insert_with(|| json!(patch));
    }
    Value::Object(fields)
}

/// There are no certificates yet.
pub(super) fn certs(_: &Context, _: &Request) -> Response {
    Response::json(&json!({ "certificates": [] }))
}

/// The resident memory of the process stands for Envoy's view of its allocator.
pub(super) fn memory_use(_: &Context, _: &Request) -> Response {
    let resident = memory::resident_bytes().unwrap_or(0).to_string();
    Response::json(&json!({
        "allocated": resident,
        "heap_size": resident,
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": resident,
    }))
}

pub(super) fn init_dump(context: &Context, request: &Request) -> Response {
    // The one component that a mask can name is `listener`.
    let masked_out = request
        .text("mask")
        .is_some_and(|mask| !mask.split(',').any(|part| part == "listener"));
    let unready = if masked_out {
        Vec::new()
    } else {
        context.proxy.unready()
    };
    if unready.is_empty() {
        return Response::json(&json!({}));
    }
    let dumps: Vec<_> = unready
        .iter()
        .map(|unready| json!({"name": unready.name, "target_names": unready.targets}))
        .collect();
    Response::json(&json!({ "unready_targets_dumps": dumps }))
}
