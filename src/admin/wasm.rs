//! `/wasm`, ours: every plugin version, where it is in its life, and what its VMs did.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::{Value, json};

use super::Context;
use super::request::{Request, Response};
use crate::wasm::status::LiveStatus;
use crate::wasm::{PluginStatus, RolloutCommand};

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let plugins = context.proxy.plugins();
    if request.wants_json() {
        let plugins: Vec<_> = plugins.iter().map(plugin_json).collect();
        return Response::json(&json!({ "plugins": plugins }));
    }
    let mut out = String::new();
    for plugin in &plugins {
        plugin_text(plugin, &mut out);
    }
    if plugins.is_empty() {
        out.push_str("no plugins\n");
    }
    Response::text(out)
}

/// `/wasm/rollout`: what becomes of a version on trial.
pub(super) fn rollout(context: &Context, request: &Request) -> Response {
    const USAGE: &str = "usage: /wasm/rollout?plugin=<name>&decision=promote|roll_back\n\
                         usage: /wasm/rollout?plugin=<name>&share=<percent>\n";
    let command = match (request.param("decision"), request.param("share")) {
        (Some("promote"), None) => Some(RolloutCommand::Promote),
        (Some("roll_back"), None) => Some(RolloutCommand::RollBack),
        (None, Some(share)) => share
            .parse()
            .ok()
            .filter(|percent| *percent <= 100)
            .map(RolloutCommand::Share),
        _ => None,
    };
    let (Some(plugin), Some(command)) = (request.param("plugin"), command) else {
        return Response::bad(USAGE);
    };
    match context.proxy.rollout(plugin, command) {
        0 => Response::error(
            StatusCode::NOT_FOUND,
            format!("no version of {plugin} is on trial\n"),
        ),
        _ => Response::ok(),
    }
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        .unwrap_or_default()
}

/// Writing to a string cannot fail.
fn plugin_text(plugin: &PluginStatus, out: &mut String) {
    let name = &plugin.name;
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let line = format!("{name}::{:.12}::{key}::{value}", plugin.key.to_string());
        push_line(&line, out);
    };
    line("state", &plugin.state.as_str());
    line("root_id", &plugin.root_id);
    line("vm_id", &plugin.vm_id);
    line("origin", &plugin.origin);
    if let Some(sha256) = &plugin.sha256 {
        line("sha256", sha256);
    }
    if let Some(image) = &plugin.image {
        line("image", &format_args!("sha256:{image}"));
    }
    if let Some(took) = plugin.compile_time {
        line("compile_ms", &took.as_millis());
    }
    if let Some(trial) = &plugin.trial {
        line("trial", trial);
    }
    if let Some(error) = &plugin.error {
        line("error", error);
    }
    for import in &plugin.unknown_imports {
        line("unknown_import", import);
    }
    for slot in &plugin.slots {
        line("slot", slot);
    }
    for (index, vm) in plugin.vms.iter().enumerate() {
        let worker = format!("worker_{index}");
        for (key, value) in [
            ("working", u64::from(vm.working)),
            ("calls", vm.calls),
            ("traps", vm.traps),
            ("created", vm.created),
            ("contexts", vm.contexts),
            ("memory", vm.memory),
            ("soft_deadlines", vm.soft_deadlines),
            ("hard_deadlines", vm.hard_deadlines),
            ("paused_streams", vm.paused),
            ("paused_streams_ended", vm.overdue),
            ("callouts", vm.callouts),
        ] {
            line(&format!("{worker}::{key}"), &value);
        }
    }
    if let Some(live) = &plugin.live {
        live_text(live, &mut line);
    }
    for event in &plugin.history {
        line(
            "history",
            &format_args!(
                "{} {} {}",
                time(event.at),
                event.state.as_str(),
                event.detail
            ),
        );
    }
}

/// Names and reasons come from configurations and plugins: they end no line and steer no terminal.
fn push_line(line: &str, out: &mut String) {
    for char in line.chars() {
        if char.is_control() {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    out.push('\n');
}

fn live_text(live: &LiveStatus, line: &mut impl FnMut(&str, &dyn std::fmt::Display)) {
    line("abi", &live.abi);
    line("tier", &live.tier);
    if let Some(sdk) = &live.sdk {
        line("sdk", sdk);
    }
    line("breaker", &live.breaker);
    for callback in &live.callbacks {
        let key = format!("callback::{}", callback.name);
        line(&format!("{key}::calls"), &callback.calls);
        for (quantile, time) in [("p50_us", callback.p50), ("p99_us", callback.p99)] {
            if let Some(time) = time {
                line(
                    &format!("{key}::{quantile}"),
                    &format_args!("{:.1}", time.as_secs_f64() * 1e6),
                );
            }
        }
    }
    for quota in &live.quotas {
        let key = format!("quota::{}", quota.name);
        line(&format!("{key}::limit"), &quota.limit);
        if let Some(used) = quota.used {
            line(&format!("{key}::used"), &used);
        }
        line(&format!("{key}::refused"), &quota.refused);
    }
    line("shared::bytes", &live.shared.bytes);
    line("shared::count", &live.shared.count);
    for (key, size) in &live.shared.entries {
        line(&format!("shared::data::{key}"), size);
    }
    for queue in &live.shared.queues {
        let key = format!("shared::queue::{}", queue.name);
        line(&format!("{key}::messages"), &queue.messages);
        line(&format!("{key}::bytes"), &queue.bytes);
    }
    for trap in &live.traps {
        line(
            "trap",
            &format_args!(
                "{} worker_{} {}",
                time(trap.at),
                trap.worker,
                trap.description
            ),
        );
    }
}

fn live_json(live: &LiveStatus) -> Value {
    let micros = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e6);
    let callbacks: Vec<_> = live
        .callbacks
        .iter()
        .map(|callback| {
            json!({
                "name": callback.name,
                "calls": callback.calls.to_string(),
                "p50_us": micros(callback.p50),
                "p99_us": micros(callback.p99),
            })
        })
        .collect();
    let quotas: Vec<_> = live
        .quotas
        .iter()
        .map(|quota| {
            json!({
                "name": quota.name,
                "limit": quota.limit.to_string(),
                "used": quota.used.map(|used| used.to_string()),
                "refused": quota.refused.to_string(),
            })
        })
        .collect();
    let data: Vec<_> = live
        .shared
        .entries
        .iter()
        .map(|(key, size)| json!({"key": key, "bytes": size}))
        .collect();
    let queues: Vec<_> = live
        .shared
        .queues
        .iter()
        .map(|queue| json!({"name": queue.name, "messages": queue.messages, "bytes": queue.bytes}))
        .collect();
    let traps: Vec<_> = live
        .traps
        .iter()
        .map(|trap| {
            json!({"at": time(trap.at), "worker": trap.worker, "description": trap.description})
        })
        .collect();
    json!({
        "abi": live.abi,
        "tier": live.tier,
        "sdk": live.sdk,
        "breaker": live.breaker,
        "callbacks": callbacks,
        "quotas": quotas,
        "shared": {"bytes": live.shared.bytes, "count": live.shared.count, "data": data, "queues": queues},
        "traps": traps,
    })
}

fn plugin_json(plugin: &PluginStatus) -> Value {
    let vms: Vec<_> = plugin
        .vms
        .iter()
        .map(|vm| {
            json!({
                "working": vm.working,
                "calls": vm.calls.to_string(),
                "traps": vm.traps.to_string(),
                "created": vm.created.to_string(),
                "contexts": vm.contexts.to_string(),
                "memory": vm.memory.to_string(),
                "soft_deadlines": vm.soft_deadlines.to_string(),
                "hard_deadlines": vm.hard_deadlines.to_string(),
                "paused_streams": vm.paused,
                "paused_streams_ended": vm.overdue.to_string(),
                "callouts": vm.callouts,
            })
        })
        .collect();
    let history: Vec<_> = plugin
        .history
        .iter()
        .map(|event| json!({"at": time(event.at), "state": event.state.as_str(), "detail": event.detail}))
        .collect();
    json!({
        "name": plugin.name,
        "key": plugin.key.to_string(),
        "state": plugin.state.as_str(),
        "root_id": plugin.root_id,
        "vm_id": plugin.vm_id,
        "origin": plugin.origin,
        "sha256": plugin.sha256.map(|sha256| sha256.to_string()),
        "image": plugin.image.map(|image| format!("sha256:{image}")),
        "compile_ms": plugin.compile_time.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        "trial": plugin.trial,
        "error": plugin.error,
        "unknown_imports": plugin.unknown_imports,
        "slots": plugin.slots,
        "vms": vms,
        "live": plugin.live.as_ref().map(live_json),
        "history": history,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_is_one_line() {
        let mut out = String::new();
        super::push_line("a\nb\r\u{1b}[31m\u{e9}\"\\", &mut out);
        assert_eq!(out, "a\\nb\\r\\u{1b}[31m\u{e9}\"\\\n");
    }
}
