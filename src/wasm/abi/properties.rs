//! Properties: Envoy's attributes of the stream, the connection, the upstream and the plugin, and what plugins set.
//!
//! A path is segments with NULs between them. Values are in Envoy's forms: strings and bytes as they are, numbers as 8
//! bytes little-endian, booleans as one byte, times and durations in nanoseconds, messages serialized, maps as pairs.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use prost::Message as _;

use super::{Guest, Outcome, Status, bytes, give, pairs};
use crate::config::listener::TrafficDirection;
use crate::http::ResponseFlag;
use crate::pb::google::protobuf::value::Kind;
use crate::pb::{self, google};
use crate::stream::Stream;
use crate::wasm::context::Host;

/// Longest path, and longest value that a plugin sets.
const MAX_PATH: u32 = 4096;
const MAX_VALUE: u32 = 1 << 20;
/// Most properties on one stream.
const MAX_PROPERTIES: usize = 1000;

/// A property's value before it is encoded.
enum Value {
    Bytes(Vec<u8>),
    Int(i64),
    Uint(u64),
    Double(f64),
    Bool(bool),
    Map(Vec<(Vec<u8>, Value)>),
    /// It exists, and has no form.
    Opaque,
}

impl Value {
    fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Bytes(text.as_ref().to_vec())
    }

    fn duration(duration: Duration) -> Self {
        Self::Int(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    fn encode(self) -> Result<Vec<u8>, Status> {
        Ok(match self {
            Self::Bytes(bytes) => bytes,
            Self::Int(number) => number.to_le_bytes().to_vec(),
            Self::Uint(number) => number.to_le_bytes().to_vec(),
            Self::Double(number) => number.to_le_bytes().to_vec(),
            Self::Bool(value) => vec![u8::from(value)],
            Self::Map(entries) => {
                let entries: Vec<_> = entries
                    .into_iter()
                    .map(|(key, value)| Ok((key, value.encode()?)))
                    .collect::<Result<_, Status>>()?;
                pairs::to_bytes(&entries)
            }
            Self::Opaque => return Err(Status::SerializationFailure),
        })
    }
}

pub(super) fn get(
    guest: &mut Guest<'_>,
    path: u32,
    len: u32,
    at_out: u32,
    len_out: u32,
) -> Outcome {
    if len > MAX_PATH {
        return Err(Status::NotFound.into());
    }
    let path = bytes(guest, path, len)?;
    let value = find(guest.data(), &path)
        .ok_or(Status::NotFound)?
        .encode()?;
    give(guest, &value, at_out, len_out)
}

pub(super) fn set(
    guest: &mut Guest<'_>,
    path: u32,
    len: u32,
    value: u32,
    value_len: u32,
) -> Outcome {
    if len > MAX_PATH || value_len > MAX_VALUE {
        return Err(Status::InternalFailure.into());
    }
    let path = bytes(guest, path, len)?;
    let value = bytes(guest, value, value_len)?;
    let host = guest.data();
    let stream = host.stream.as_ref().ok_or(Status::NotFound)?;
    let name = state_name(&path);
    let mut info = stream.info.lock();
    let count = info.filter_state.len();
    match info.filter_state.iter_mut().find(|(key, _)| **key == *name) {
        Some((_, present)) => *present = value.into(),
        None if count >= MAX_PROPERTIES => return Err(Status::InternalFailure.into()),
        None => info.filter_state.push((name.into(), value.into())),
    }
    Ok(())
}

/// `declare_property`: we keep bytes whatever the declared type is; only its arguments are checked.
pub(super) fn declare(guest: &mut Guest<'_>, argument: &[u8]) -> Outcome {
    // The message is not in the API's package: a string field 1 is all that matters.
    let _ = (guest, argument);
    Ok(())
}

fn state_name(path: &[u8]) -> String {
    format!("wasm.{}", String::from_utf8_lossy(path))
}

fn find(host: &Host, path: &[u8]) -> Option<Value> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let mut segments = path.split(|byte| *byte == 0);
    let first = segments.next()?;
    let rest: Vec<&str> = segments
        .map(std::str::from_utf8)
        .collect::<Result<_, _>>()
        .ok()?;
    let spec = host.spec();
    let built_in = match first {
        b"plugin_name" => Some(Value::text(&*spec.name)),
        b"plugin_root_id" => Some(Value::text(&*spec.root_id)),
        b"plugin_vm_id" => Some(Value::text(&*spec.vm_id)),
        // The tokens before 1.33, which plugins still ask for.
        b"node" => node(host, &rest),
        b"xds" if rest.first() == Some(&"node") => node(host, &rest[1..]),
        _ => host
            .stream
            .as_ref()
            .and_then(|stream| of_stream(host, stream, first, &rest)),
    };
    built_in.or_else(|| {
        let info = host.stream.as_ref()?.info.lock();
        let name = state_name(path);
        let value = info.filter_state.iter().find(|(key, _)| **key == *name)?;
        Some(Value::text(&value.1))
    })
}

fn of_stream(host: &Host, stream: &Stream, first: &[u8], rest: &[&str]) -> Option<Value> {
    match (first, rest) {
        (b"request", []) | (b"response", []) | (b"filter_state", []) => Some(Value::Opaque),
        (b"request", rest) => request(host, stream, rest),
        (b"response", rest) => response(host, stream, rest),
        (b"source", rest) => address(stream.connection.remote, rest),
        (b"destination", rest) => address(stream.connection.local, rest),
        (b"connection", ["id"]) | (b"connection_id", []) => Some(Value::Uint(stream.connection.id)),
        (b"connection", ["mtls"]) => Some(Value::Bool(false)),
        (b"connection", ["termination_details"]) => {
            let info = stream.info.lock();
            info.termination_details.as_deref().map(Value::text)
        }
        (b"upstream", rest) => upstream(stream, rest),
        (b"metadata", rest) => {
            let info = stream.info.lock();
            let dynamic = info.dynamic_metadata.as_deref();
            match dynamic {
                Some(found) => metadata(found, rest),
                None => metadata(&pb::Metadata::default(), rest),
            }
        }
        (b"filter_state", [name]) => filter_state(stream, name),
        (b"xds", [name, rest @ ..]) => xds(stream, name, rest),
        (
            b"cluster_name"
            | b"cluster_metadata"
            | b"route_name"
            | b"route_metadata"
            | b"listener_direction"
            | b"listener_metadata"
            | b"upstream_host_metadata",
            rest,
        ) => xds(stream, std::str::from_utf8(first).ok()?, rest),
        _ => None,
    }
}

fn request(host: &Host, stream: &Stream, rest: &[&str]) -> Option<Value> {
    // Those that do not come from the headers.
    match rest {
        ["time"] => {
            let since = stream
                .info
                .lock()
                .start
                .duration_since(SystemTime::UNIX_EPOCH);
            return since.ok().map(Value::duration);
        }
        ["duration"] => {
            let info = stream.info.lock();
            return info.end.map(|end| Value::duration(end - info.begin));
        }
        ["protocol"] => return Some(Value::text(protocol(stream.request.lock().version))),
        ["size"] => return Some(Value::Int(int(stream.info.lock().bytes_received))),
        ["total_size"] => {
            let headers = super::byte_size(&stream.request.lock().headers) as u64;
            return Some(Value::Int(int(headers + stream.info.lock().bytes_received)));
        }
        ["headers_bytes"] => {
            return Some(Value::Int(int(
                super::byte_size(&stream.request.lock().headers) as u64,
            )));
        }
        _ => {}
    }
    if !host.readable()?.request_headers {
        return None;
    }
    let head = stream.request.lock();
    let header = |name: &str| joined(&head.headers, name).map(Value::Bytes);
    match rest {
        ["path"] => Some(Value::text(head.path.as_bytes())),
        ["url_path"] => Some(Value::text(head.path_only())),
        ["query"] => Some(Value::text(head.query().unwrap_or_default())),
        ["host"] => Some(Value::text(head.authority.as_bytes())),
        ["scheme"] => Some(Value::text(head.scheme.as_str())),
        ["method"] => Some(Value::text(head.method.as_str())),
        ["referer"] => header("referer"),
        ["useragent"] => header("user-agent"),
        ["id"] => header("x-request-id"),
        ["headers"] => {
            let mut entries = vec![
                (
                    b":authority".to_vec(),
                    Value::text(head.authority.as_bytes()),
                ),
                (b":path".to_vec(), Value::text(head.path.as_bytes())),
                (b":method".to_vec(), Value::text(head.method.as_str())),
                (b":scheme".to_vec(), Value::text(head.scheme.as_str())),
            ];
            entries.extend(map_of(&head.headers));
            Some(Value::Map(entries))
        }
        ["headers", name] => match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Some(Value::text(head.authority.as_bytes())),
            ":path" => Some(Value::text(head.path.as_bytes())),
            ":method" => Some(Value::text(head.method.as_str())),
            ":scheme" => Some(Value::text(head.scheme.as_str())),
            name => header(name),
        },
        _ => None,
    }
}

fn response(host: &Host, stream: &Stream, rest: &[&str]) -> Option<Value> {
    match rest {
        ["code"] => {
            let head = stream.response.lock();
            return head
                .as_ref()
                .map(|head| Value::Int(i64::from(head.status.as_u16())));
        }
        ["code_details"] => {
            return stream.info.lock().details.as_deref().map(Value::text);
        }
        ["flags"] => {
            let info = stream.info.lock();
            let bits = info.flags.iter().fold(0i64, |bits, flag| {
                let number = ResponseFlag::ALL.iter().position(|known| *known == flag);
                bits | number.map_or(0, |number| 1 << number)
            });
            return Some(Value::Int(bits));
        }
        ["size"] => return Some(Value::Int(int(stream.info.lock().bytes_sent))),
        ["backend_latency"] => {
            let info = stream.info.lock();
            let (sent, received) = (info.upstream_last_tx?, info.upstream_first_rx?);
            return Some(Value::duration(received.saturating_duration_since(sent)));
        }
        ["grpc_status"] => {
            let number = |fields: &http::HeaderMap| {
                let value = fields.get("grpc-status")?.to_str().ok()?;
                value.parse().ok().map(Value::Int)
            };
            let trailers = stream.response_trailers.lock();
            return trailers.as_ref().and_then(number).or_else(|| {
                let head = stream.response.lock();
                head.as_ref().and_then(|head| number(&head.headers))
            });
        }
        _ => {}
    }
    let visible = host.readable()?;
    match rest {
        ["headers_bytes"] => {
            let head = stream.response.lock();
            let size = super::byte_size(&head.as_ref()?.headers);
            Some(Value::Int(int(size as u64)))
        }
        ["headers", rest @ ..] if visible.response_headers => {
            let head = stream.response.lock();
            let head = head.as_ref()?;
            match rest {
                [] => {
                    let mut entries =
                        vec![(b":status".to_vec(), Value::text(head.status.as_str()))];
                    entries.extend(map_of(&head.headers));
                    Some(Value::Map(entries))
                }
                [":status"] => Some(Value::text(head.status.as_str())),
                [name] => joined(&head.headers, name).map(Value::Bytes),
                _ => None,
            }
        }
        ["trailers", rest @ ..] if visible.response_trailers => {
            let trailers = stream.response_trailers.lock();
            let trailers = trailers.as_ref()?;
            match rest {
                [] => Some(Value::Map(map_of(trailers))),
                [name] => joined(trailers, name).map(Value::Bytes),
                _ => None,
            }
        }
        ["total_size"] => {
            let head = stream.response.lock();
            let headers = head
                .as_ref()
                .map_or(0, |head| super::byte_size(&head.headers)) as u64;
            Some(Value::Int(int(headers + stream.info.lock().bytes_sent)))
        }
        _ => None,
    }
}

fn address(address: Option<SocketAddr>, rest: &[&str]) -> Option<Value> {
    let address = address?;
    match rest {
        ["address"] => Some(Value::text(address.to_string())),
        ["port"] => Some(Value::Int(i64::from(address.port()))),
        _ => None,
    }
}

fn upstream(stream: &Stream, rest: &[&str]) -> Option<Value> {
    let info = stream.info.lock();
    let upstream = &info.upstream;
    match rest {
        ["address"] => upstream
            .remote
            .map(|address| Value::text(address.to_string())),
        ["port"] => upstream
            .remote
            .map(|address| Value::Int(i64::from(address.port()))),
        ["local_address"] => upstream
            .local
            .map(|address| Value::text(address.to_string())),
        ["transport_failure_reason"] => upstream.transport_failure.as_deref().map(Value::text),
        ["request_attempt_count"] => Some(Value::Uint(u64::from(info.attempts))),
        ["cx_pool_ready_duration"] => upstream
            .pool_ready
            .map(|ready| Value::duration(ready.saturating_duration_since(info.begin))),
        _ => None,
    }
}

fn filter_state(stream: &Stream, name: &str) -> Option<Value> {
    let info = stream.info.lock();
    let value = info.filter_state.iter().find(|(key, _)| &**key == name)?;
    Some(Value::text(&value.1))
}

fn xds(stream: &Stream, name: &str, rest: &[&str]) -> Option<Value> {
    let route = stream.resolved_route();
    match name {
        "listener_direction" => Some(Value::Int(match stream.connection.direction {
            TrafficDirection::Unspecified => 0,
            TrafficDirection::Inbound => 1,
            TrafficDirection::Outbound => 2,
        })),
        "listener_metadata" => metadata(stream.connection.listener_metadata.as_deref()?, rest),
        "filter_chain_name" => Some(Value::text(&*stream.connection.filter_chain)),
        "route_name" => Some(Value::text(&*route?.route.name)),
        "route_metadata" => metadata(route?.route.metadata.as_deref()?, rest),
        "virtual_host_name" => Some(Value::text(&*route?.virtual_host().name)),
        "cluster_name" => {
            let info = stream.info.lock();
            match &info.upstream.cluster {
                Some(cluster) => Some(Value::text(&*cluster.config.name)),
                None => Some(Value::text(&**route?.cluster.as_ref()?)),
            }
        }
        "cluster_metadata" => {
            let cluster = {
                let info = stream.info.lock();
                info.upstream.cluster.clone()
            };
            let cluster = match cluster {
                Some(cluster) => cluster,
                None => {
                    let route = route?;
                    std::sync::Arc::clone(stream.config.clusters.get(route.cluster.as_ref()?)?)
                }
            };
            metadata(cluster.config.metadata.as_deref()?, rest)
        }
        _ => None,
    }
}

fn node(host: &Host, rest: &[&str]) -> Option<Value> {
    let node = host.env.node.as_deref()?;
    match rest {
        [] => Some(Value::Bytes(node.encode_to_vec())),
        ["id"] => Some(Value::text(&node.id)),
        ["cluster"] => Some(Value::text(&node.cluster)),
        ["user_agent_name"] => Some(Value::text(&node.user_agent_name)),
        ["locality"] => node
            .locality
            .as_ref()
            .map(|it| Value::Bytes(it.encode_to_vec())),
        ["locality", field] => {
            let locality = node.locality.as_ref()?;
            match *field {
                "region" => Some(Value::text(&locality.region)),
                "zone" => Some(Value::text(&locality.zone)),
                "sub_zone" => Some(Value::text(&locality.sub_zone)),
                _ => None,
            }
        }
        ["metadata", path @ ..] => in_struct(node.metadata.as_ref()?, path),
        _ => None,
    }
}

fn metadata(metadata: &pb::Metadata, rest: &[&str]) -> Option<Value> {
    match rest {
        [] => Some(Value::Bytes(metadata.encode_to_vec())),
        ["filter_metadata"] => Some(Value::Map(
            metadata
                .filter_metadata
                .iter()
                .map(|(name, value)| {
                    (
                        name.clone().into_bytes(),
                        Value::Bytes(value.encode_to_vec()),
                    )
                })
                .collect(),
        )),
        ["filter_metadata", name, path @ ..] => {
            in_struct(metadata.filter_metadata.get(*name)?, path)
        }
        ["typed_filter_metadata", name] => metadata
            .typed_filter_metadata
            .get(*name)
            .map(|any| Value::Bytes(any.encode_to_vec())),
        _ => None,
    }
}

fn in_struct(value: &pb::Struct, path: &[&str]) -> Option<Value> {
    match path {
        [] => Some(struct_map(value)),
        [name, rest @ ..] => in_value(value.fields.get(*name)?, rest),
    }
}

fn in_value(value: &google::protobuf::Value, path: &[&str]) -> Option<Value> {
    match (value.kind.as_ref()?, path) {
        (Kind::StructValue(value), path) => in_struct(value, path),
        (Kind::ListValue(list), [index, rest @ ..]) => {
            in_value(list.values.get(index.parse::<usize>().ok()?)?, rest)
        }
        (_, [_, ..]) => None,
        (kind, []) => Some(scalar(kind)),
    }
}

fn scalar(kind: &Kind) -> Value {
    match kind {
        Kind::StringValue(text) => Value::text(text),
        Kind::NumberValue(number) => Value::Double(*number),
        Kind::BoolValue(value) => Value::Bool(*value),
        Kind::StructValue(value) => struct_map(value),
        Kind::ListValue(list) => Value::Map(
            list.values
                .iter()
                .filter_map(|value| {
                    Some((scalar(value.kind.as_ref()?).encode().ok()?, Value::text("")))
                })
                .collect(),
        ),
        Kind::NullValue(_) => Value::Opaque,
    }
}

fn struct_map(value: &pb::Struct) -> Value {
    Value::Map(
        value
            .fields
            .iter()
            .filter_map(|(name, value)| {
                Some((name.clone().into_bytes(), scalar(value.kind.as_ref()?)))
            })
            .collect(),
    )
}

/// All values of a header, joined by commas.
fn joined(fields: &http::HeaderMap, name: &str) -> Option<Vec<u8>> {
    let mut values = fields.get_all(name).iter();
    let mut joined = values.next()?.as_bytes().to_vec();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

fn map_of(fields: &http::HeaderMap) -> Vec<(Vec<u8>, Value)> {
    fields
        .keys()
        .filter_map(|name| {
            let value = joined(fields, name.as_str())?;
            Some((name.as_str().as_bytes().to_vec(), Value::Bytes(value)))
        })
        .collect()
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
