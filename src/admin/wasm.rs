//! `/wasm`, ours: every plugin version, where it is in its life, and what its VMs did.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Context;
use super::request::{Request, Response};
use crate::wasm::PluginStatus;

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

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        .unwrap_or_default()
}

/// Writing to a string cannot fail.
fn plugin_text(plugin: &PluginStatus, out: &mut String) {
    let name = &plugin.name;
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(
            out,
            "{name}::{:.12}::{key}::{value}",
            plugin.key.to_string()
        );
    };
    line("state", &plugin.state.as_str());
    line("root_id", &plugin.root_id);
    line("vm_id", &plugin.vm_id);
    line("origin", &plugin.origin);
    line("sha256", &plugin.sha256);
    if let Some(took) = plugin.compile_time {
        line("compile_ms", &took.as_millis());
    }
    if let Some(error) = &plugin.error {
        line("error", &error.replace('\n', "\\n"));
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
        ] {
            line(&format!("{worker}::{key}"), &value);
        }
    }
    for event in &plugin.history {
        let detail = event.detail.replace('\n', "\\n");
        line(
            "history",
            &format_args!("{} {} {detail}", time(event.at), event.state.as_str()),
        );
    }
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
        "sha256": plugin.sha256.to_string(),
        "compile_ms": plugin.compile_time.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        "error": plugin.error,
        "unknown_imports": plugin.unknown_imports,
        "slots": plugin.slots,
        "vms": vms,
        "history": history,
    })
}
