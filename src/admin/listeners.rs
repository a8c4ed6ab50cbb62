//! `/listeners`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Context;
use super::request::{Request, Response};
use crate::config::endpoint::Address;

pub(super) fn page(context: &Context, request: &Request) -> Response {
    let listeners = context.proxy.listeners();
    if !request.wants_json() {
        let mut out = String::new();
        for listener in &listeners {
            for address in &listener.addresses {
                let _ = writeln!(out, "{}::{address}", listener.name);
            }
        }
        return Response::text(out);
    }
    let statuses: Vec<_> = listeners
        .iter()
        .map(|listener| {
            let mut addresses = listener.addresses.iter().map(address_json);
            let mut status = json!({"name": &*listener.name});
            if let Some(first) = addresses.next() {
                status["local_address"] = first;
            }
            let others: Vec<_> = addresses.collect();
            if !others.is_empty() {
                status["additional_local_addresses"] = others.into();
            }
            status
        })
        .collect();
    Response::json(&if statuses.is_empty() {
        json!({})
    } else {
        json!({ "listener_statuses": statuses })
    })
}

/// `envoy.config.core.v3.Address` as JSON.
pub(super) fn address_json(address: &Address) -> Value {
    match address {
        Address::Socket(address) => json!({"socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        }}),
        Address::Name(name, port) => {
            json!({"socket_address": {"address": name, "port_value": port}})
        }
        Address::Pipe(path) => json!({"pipe": {"path": path.to_string_lossy()}}),
    }
}
