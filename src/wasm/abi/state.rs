//! `set_envoy_filter_state`: objects of Envoy's own in the filter state, made from text.
//!
//! Known are those that Envoy 1.40 has a factory for, with its checks of their text. They can be read as properties and
//! in the access log; the TCP proxy acts upon its cluster and its idle timeout, nothing else upon others.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use bytes::Bytes;

use super::properties::{life_span, room};
use super::{Guest, Status};
use crate::stream::state::{StateKind, StateObject, set_object};

/// `SetEnvoyFilterStateArguments`.
#[derive(Clone, PartialEq, prost::Message)]
struct Arguments {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(int32, tag = "3")]
    span: i32,
}

pub(super) fn set(guest: &mut Guest<'_>, argument: &[u8]) -> Result<(), Status> {
    let Arguments { path, value, span } =
        prost::Message::decode(argument).map_err(|_| Status::BadArgument)?;
    let (kind, value) = made(&path, value)?;
    let stream = guest.data().own_stream().ok_or(Status::NotFound)?;
    let connection = &stream.connection.filter_state;
    let mut info = stream.info.lock();
    room(&info.filter_state, connection, &path, value.len())?;
    let object = StateObject {
        value: Bytes::from(value),
        kind,
        span: guest.data().span(life_span(span)),
        read_only: false,
    };
    set_object(&mut info.filter_state, connection, &path, object);
    Ok(())
}

/// The object of that key: what it is, and its text.
fn made(key: &str, value: String) -> Result<(StateKind, String), Status> {
    let bad = Status::BadArgument;
    Ok(match key {
        "envoy.tcp_proxy.cluster"
        | "envoy.network.upstream_server_name"
        | "envoy.network.upstream_subject_alt_names"
        | "envoy.network.network_namespace"
        | "envoy.upstream.dynamic_host" => (StateKind::Object, value),
        "envoy.network.application_protocols" => (StateKind::Opaque, value),
        "envoy.string" | "envoy.hashable_string" => (StateKind::String, value),
        "envoy.tcp_proxy.per_connection_idle_timeout_ms" | "envoy.ratelimit.hits_addend" => {
            (StateKind::Object, number::<u64>(&value).ok_or(bad)?)
        }
        "envoy.upstream.dynamic_port" => (StateKind::Object, number::<u32>(&value).ok_or(bad)?),
        "envoy.tcp_proxy.disable_tunneling" | "envoy.bool" => {
            (StateKind::Object, (value == "true").to_string())
        }
        "envoy.network.transport_socket.original_dst_address"
        | "envoy.filters.listener.original_dst.local_ip"
        | "envoy.filters.listener.original_dst.remote_ip" => {
            let address = SocketAddr::from_str(&value).map_err(|_| bad)?;
            (StateKind::Address(address), value)
        }
        "envoy.network.ip" => {
            let address = IpAddr::from_str(&value).map_err(|_| bad)?;
            (StateKind::Object, SocketAddr::new(address, 0).to_string())
        }
        _ => return Err(Status::NotFound),
    })
}

/// A number as Envoy reads it: white space around it is no matter.
fn number<T: FromStr + ToString>(text: &str) -> Option<String> {
    Some(text.trim().parse::<T>().ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_made_as_envoy_makes_them() {
        for (key, value, text) in [
            ("envoy.tcp_proxy.cluster", "echo", "echo"),
            ("envoy.tcp_proxy.per_connection_idle_timeout_ms", "5 ", "5"),
            ("envoy.upstream.dynamic_port", "65536", "65536"),
            ("envoy.tcp_proxy.disable_tunneling", "x", "false"),
            ("envoy.bool", "true", "true"),
            ("envoy.network.ip", "1.2.3.4", "1.2.3.4:0"),
            (
                "envoy.filters.listener.original_dst.local_ip",
                "[::1]:9",
                "[::1]:9",
            ),
            ("envoy.string", "", ""),
        ] {
            let (_, made) = made(key, value.to_owned()).expect("made");
            assert_eq!(made, text, "{key}");
        }
        for (key, value, status) in [
            ("nosuch", "v", Status::NotFound),
            ("wasm.mine", "v", Status::NotFound),
            ("envoy.upstream.dynamic_port", "-1", Status::BadArgument),
            ("envoy.upstream.dynamic_port", "", Status::BadArgument),
            (
                "envoy.ratelimit.hits_addend",
                "18446744073709551616",
                Status::BadArgument,
            ),
            ("envoy.network.ip", "x", Status::BadArgument),
            (
                "envoy.network.transport_socket.original_dst_address",
                "127.0.0.1",
                Status::BadArgument,
            ),
        ] {
            let refused = made(key, value.to_owned()).map(|(_, text)| text);
            assert_eq!(refused, Err(status), "{key} {value}");
        }
    }
}
