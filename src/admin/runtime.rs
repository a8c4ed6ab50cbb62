//! `/runtime`: the layers of the bootstrap, and the one that `/runtime_modify` fills. Nothing here reads them yet.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::Context;
use super::request::{Request, Response};
use crate::bootstrap::RuntimeLayerKind;
use crate::pb;

pub(super) fn page(context: &Context, _: &Request) -> Response {
    let layers = &context.bootstrap.runtime;
    let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let values = match &layer.kind {
            RuntimeLayerKind::Static(fields) => flat(fields),
            RuntimeLayerKind::Admin => context.runtime.read().clone(),
            RuntimeLayerKind::Empty => BTreeMap::new(),
        };
        for (key, value) in values {
            entries
                .entry(key)
                .or_insert_with(|| vec![String::new(); layers.len()])[index] = value;
        }
    }
    let entries: serde_json::Map<String, Value> = entries
        .into_iter()
        .map(|(key, values)| {
            let last = values.iter().rfind(|value| !value.is_empty()).cloned();
            let entry = json!({"layer_values": values, "final_value": last.unwrap_or_default()});
            (key, entry)
        })
        .collect();
    let names: Vec<_> = layers.iter().map(|layer| layer.name.as_str()).collect();
    Response::json(&json!({"entries": entries, "layers": names}))
}

pub(super) fn modify(context: &Context, request: &Request) -> Response {
    if request.params.is_empty() {
        return Response::bad(
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       \
             or send the parameters as form values\nuse an empty value to remove a previously added override",
        );
    }
    let layers = &context.bootstrap.runtime;
    if !layers
        .iter()
        .any(|layer| layer.kind == RuntimeLayerKind::Admin)
    {
        return Response::error(StatusCode::SERVICE_UNAVAILABLE, "No admin layer specified");
    }
    let mut values = context.runtime.write();
    for (key, value) in &request.params {
        if value.is_empty() {
            values.remove(key);
        } else {
            values.insert(key.clone(), value.clone());
        }
    }
    context.families.runtime_overridden(!values.is_empty());
    Response::ok()
}

/// A layer's values by their dotted names.
fn flat(fields: &pb::Struct) -> BTreeMap<String, String> {
    fn add(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let name = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    add(&name, value, out);
                }
            }
            Value::String(text) => {
                out.insert(prefix.to_owned(), text.clone());
            }
            other => {
                out.insert(prefix.to_owned(), other.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    add("", &pb::to_json(fields), &mut out);
    out
}
