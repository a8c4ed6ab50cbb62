//! The attributes of a stream: its two halves, the peers, the upstream, the configuration that it met.

use std::net::SocketAddr;

use http::HeaderMap;

use super::message::{locality, metadata};
use super::{Exchange, Scope, Value, of_object};
use crate::base::WorkerCell;
use crate::config::endpoint::Address;
use crate::config::listener::TrafficDirection;
use crate::http::{ResponseFlag, ResponseHead};
use crate::pb;
use crate::stream::Stream;
use crate::wasm::abi::byte_size;

impl Exchange {
    /// True where `first` is one of Envoy's names, and has something behind it now.
    pub(super) fn has(&self, first: &[u8]) -> bool {
        match first {
            b"request" | b"response" | b"connection" | b"upstream" | b"source" | b"destination"
            | b"metadata" | b"filter_state" => true,
            // It is the upstream connection's.
            b"upstream_filter_state" => {
                let info = self.stream.info.lock();
                info.upstream.host.is_some() && info.upstream.transport_failure.is_none()
            }
            _ => false,
        }
    }

    pub(super) fn find(&self, first: &[u8], rest: &[&[u8]], scope: &Scope) -> Option<Value> {
        let connection = &self.stream.connection;
        match (first, rest) {
            (b"metadata", rest) => {
                let info = self.stream.info.lock();
                metadata(info.dynamic_metadata.as_deref(), rest)
            }
            (_, []) => Some(Value::Group),
            (b"request", [name, rest @ ..]) => self.request(name, rest),
            (b"response", [name, rest @ ..]) => self.response(name, rest),
            (b"source", [name]) => peer(connection.remote, name),
            (b"destination", [name]) => peer(connection.local, name),
            (b"connection", [name]) => self.connection(name),
            (b"upstream", [name, rest @ ..]) => self.upstream(name, rest),
            (b"filter_state", [name, rest @ ..]) => {
                let name = super::latin1_or_utf8(name);
                scope.state(&name, |object| of_object(object, rest, false))?
            }
            _ => None,
        }
    }

    fn request(&self, name: &[u8], rest: &[&[u8]]) -> Option<Value> {
        let (stream, removed) = (&self.stream, &self.removed);
        let shown = self.visible.request_headers;
        if name == b"headers" {
            return self.request_headers(rest);
        }
        if !rest.is_empty() {
            return None;
        }
        let headers_bytes = || if shown { self.request_size() } else { 0 };
        // Those that do not come from the headers, or not only.
        match name {
            b"time" => return Some(Value::time(stream.info.lock().start)),
            b"duration" => {
                let info = stream.info.lock();
                return info.end.map(|end| Value::span(end - info.begin));
            }
            b"protocol" => {
                let version = stream.request.lock().version;
                // A connection has none.
                return (version != http::Version::HTTP_09).then(|| Value::text(protocol(version)));
            }
            b"size" => {
                if shown && let Some(told) = stream.request.lock().headers.get("content-length") {
                    let told = told.to_str().ok()?.trim().parse().ok()?;
                    return Some(Value::Int(told));
                }
                return Some(int(stream.info.lock().bytes_received));
            }
            b"total_size" => {
                let headers = headers_bytes();
                return Some(int(headers + stream.info.lock().bytes_received));
            }
            b"headers_bytes" => return Some(int(headers_bytes())),
            _ => {}
        }
        if !shown {
            return None;
        }
        let head = stream.request.lock();
        let first = |name: &str| {
            head.headers
                .get(name)
                .map(|value| Value::text(value.as_bytes()))
        };
        match name {
            b"path" => (!removed.path).then(|| Value::text(head.path.as_bytes())),
            b"url_path" => {
                let path = head.path.as_bytes();
                let end = memchr::memchr(b'?', path).unwrap_or(path.len());
                Some(Value::text(&path[..end]))
            }
            b"query" => {
                let query = head.query().unwrap_or_default();
                let end = memchr::memchr(b'#', query).unwrap_or(query.len());
                Some(Value::text(&query[..end]))
            }
            b"host" => (!removed.authority).then(|| Value::text(head.authority.as_bytes())),
            b"scheme" => head.scheme.shown().map(Value::text),
            b"method" => (!removed.method).then(|| Value::text(head.method.as_str())),
            b"referer" => first("referer"),
            b"useragent" => first("user-agent"),
            b"id" => first("x-request-id"),
            _ => None,
        }
    }

    /// Bytes of all names and values, pseudo-headers included.
    fn request_size(&self) -> u64 {
        let head = self.stream.request.lock();
        let mut size = byte_size(&head.headers);
        self.each_pseudo(&head, |name, value| size += name.len() + value.len());
        size as u64
    }

    fn each_pseudo(&self, head: &crate::http::RequestHead, mut f: impl FnMut(&str, &[u8])) {
        let removed = &self.removed;
        for (name, value, gone) in [
            (":authority", head.authority.as_bytes(), removed.authority),
            (":path", head.path.as_bytes(), removed.path),
            (":method", head.method.as_str().as_bytes(), removed.method),
            (
                ":scheme",
                head.scheme.as_str().as_bytes(),
                head.scheme.shown().is_none(),
            ),
        ] {
            if !gone {
                f(name, value);
            }
        }
    }

    fn request_headers(&self, rest: &[&[u8]]) -> Option<Value> {
        if !self.visible.request_headers {
            return rest.is_empty().then(|| Value::Map(Vec::new()));
        }
        let head = self.stream.request.lock();
        let [name] = rest else {
            return rest.is_empty().then(|| {
                let mut entries = Vec::new();
                self.each_pseudo(&head, |name, value| {
                    entries.push((name.into(), Value::text(value)));
                });
                entries.extend(entries_of(&head.headers));
                Value::Map(entries)
            });
        };
        let name = name.to_ascii_lowercase();
        let wanted: &[u8] = if name == b"host" {
            b":authority"
        } else {
            &name
        };
        let mut found = None;
        self.each_pseudo(&head, |name, value| {
            if name.as_bytes() == wanted {
                found = Some(Value::text(value));
            }
        });
        found.or_else(|| joined(&head.headers, &name))
    }

    fn response(&self, name: &[u8], rest: &[&[u8]]) -> Option<Value> {
        let stream = &self.stream;
        match (name, rest) {
            (b"headers", rest) => return self.response_headers(rest),
            (b"trailers", rest) => {
                let trailers = stream.response_trailers.lock();
                let shown = self.visible.response_trailers.then_some(trailers.as_ref());
                let shown = shown.flatten();
                return match rest {
                    [] => Some(Value::Map(shown.into_iter().flat_map(entries_of).collect())),
                    [name] => joined(shown?, &name.to_ascii_lowercase()),
                    _ => None,
                };
            }
            (_, [_, ..]) => return None,
            _ => {}
        }
        match name {
            b"code" => self.code().map(Value::Int),
            b"code_details" => stream.info.lock().details.as_deref().map(Value::text),
            b"flags" => {
                let info = stream.info.lock();
                Some(Value::Int(info.flags.iter().fold(0, |bits, flag| {
                    let number = ResponseFlag::ALL.iter().position(|known| *known == flag);
                    bits | number.map_or(0, |number| 1 << number)
                })))
            }
            b"size" => Some(int(stream.info.lock().bytes_sent)),
            b"headers_bytes" => Some(int(self.response_size())),
            b"total_size" => {
                let trailers = stream.response_trailers.lock();
                let shown = trailers.as_ref().filter(|_| self.visible.response_trailers);
                let trailers = shown.map_or(0, byte_size) as u64;
                Some(int(stream.info.lock().bytes_sent
                    + self.response_size()
                    + trailers))
            }
            b"backend_latency" => {
                let info = stream.info.lock();
                let (sent, received) = (info.upstream_first_tx?, info.upstream_last_rx?);
                Some(Value::span(received.saturating_duration_since(sent)))
            }
            b"grpc_status" => self.grpc_status().map(Value::Int),
            _ => None,
        }
    }

    fn code(&self) -> Option<i64> {
        if !self.stream.has_status() {
            return None;
        }
        let head = self.stream.response.lock();
        head.as_ref().map(|head| i64::from(head.status.as_u16()))
    }

    /// The response head that the context sees.
    fn head(&self) -> &WorkerCell<Option<ResponseHead>> {
        if self.overwritten {
            &self.stream.overwritten
        } else {
            &self.stream.response
        }
    }

    fn response_size(&self) -> u64 {
        let head = self.head().lock();
        match head.as_ref() {
            Some(head) if self.visible.response_headers => {
                let status = if self.removed.status {
                    0
                } else {
                    ":status".len() + 3
                };
                (byte_size(&head.headers) + status) as u64
            }
            _ => 0,
        }
    }

    fn response_headers(&self, rest: &[&[u8]]) -> Option<Value> {
        let head = self.head().lock();
        let shown = head.as_ref().filter(|_| self.visible.response_headers);
        let status = |head: &ResponseHead| Value::text(head.status.as_str());
        match rest {
            [] => {
                let mut entries = Vec::new();
                if let Some(head) = shown {
                    if !self.removed.status {
                        entries.push((b":status".to_vec(), status(head)));
                    }
                    entries.extend(entries_of(&head.headers));
                }
                Some(Value::Map(entries))
            }
            [b":status"] => shown.filter(|_| !self.removed.status).map(status),
            [name] => joined(&shown?.headers, &name.to_ascii_lowercase()),
            _ => None,
        }
    }

    /// The gRPC status of what can be seen: trailers, headers, or what the HTTP status stands for.
    fn grpc_status(&self) -> Option<i64> {
        let number = |fields: &HeaderMap| -> Option<i64> {
            fields.get("grpc-status")?.to_str().ok()?.parse().ok()
        };
        let visible = &self.visible;
        if visible.response_trailers
            && let Some(status) = self
                .stream
                .response_trailers
                .lock()
                .as_ref()
                .and_then(number)
        {
            return Some(status);
        }
        if visible.response_headers
            && let Some(head) = self.head().lock().as_ref()
            && let Some(status) = number(&head.headers)
        {
            return Some(status);
        }
        self.code().map(|code| match code {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }

    fn connection(&self, name: &[u8]) -> Option<Value> {
        match name {
            b"id" => Some(Value::Uint(self.stream.connection.id)),
            // Connections are plain here.
            b"mtls" => Some(Value::Bool(false)),
            b"requested_server_name" => Some(Value::text("")),
            b"termination_details" => {
                let info = self.stream.info.lock();
                info.termination_details.as_deref().map(Value::text)
            }
            _ => None,
        }
    }

    fn upstream(&self, name: &[u8], rest: &[&[u8]]) -> Option<Value> {
        if name == b"num_endpoints" && rest.is_empty() {
            let cluster = self.stream.info.lock().upstream.cluster.clone();
            let cluster = cluster.or_else(|| routed_cluster(&self.stream))?;
            return Some(Value::Uint(cluster.endpoints().hosts().count() as u64));
        }
        let info = self.stream.info.lock();
        let upstream = &info.upstream;
        let host = upstream.host.as_ref();
        let address = upstream
            .remote
            .or_else(|| match host.map(|host| &host.address) {
                Some(Address::Socket(address)) => Some(*address),
                _ => None,
            });
        match (name, rest) {
            (b"locality", rest) => {
                let attributes = host?.attributes();
                let of = &attributes.locality;
                locality(Some([&of.region, &of.zone, &of.sub_zone]), rest)
            }
            (_, [_, ..]) => None,
            (b"address", []) => match (address, host.map(|host| &host.address)) {
                (Some(address), _) => Some(Value::text(address.to_string())),
                (None, Some(Address::Pipe(path))) => {
                    Some(Value::text(path.to_string_lossy().as_bytes()))
                }
                _ => None,
            },
            (b"port", []) => address.map(|address| Value::Int(i64::from(address.port()))),
            (b"local_address", []) => upstream.local.map(|local| Value::text(local.to_string())),
            (b"transport_failure_reason", []) => {
                host?;
                Some(Value::text(
                    upstream.transport_failure.as_deref().unwrap_or_default(),
                ))
            }
            (b"request_attempt_count", []) => Some(Value::Uint(u64::from(info.attempts))),
            (b"cx_pool_ready_duration", []) => upstream
                .pool_ready
                .map(|ready| Value::span(ready.saturating_duration_since(info.begin))),
            _ => None,
        }
    }

    pub(super) fn xds(&self, name: &[u8], rest: &[&[u8]]) -> Option<Value> {
        let stream = &self.stream;
        let connection = &stream.connection;
        let text = |text: &str| rest.is_empty().then(|| Value::text(text));
        match name {
            b"listener_direction" => {
                rest.is_empty()
                    .then_some(Value::Int(match connection.direction {
                        TrafficDirection::Unspecified => 0,
                        TrafficDirection::Inbound => 1,
                        TrafficDirection::Outbound => 2,
                    }))
            }
            b"listener_metadata" => metadata(connection.listener_metadata.as_deref(), rest),
            b"filter_chain_name" => text(&connection.filter_chain),
            b"route_name" => text(&stream.resolved_route()?.route.name),
            b"route_metadata" => metadata(stream.resolved_route()?.route.metadata.as_deref(), rest),
            b"virtual_host_name" | b"virtual_host_metadata" => {
                let of = |host: &crate::config::route::VirtualHost| match name {
                    b"virtual_host_name" => text(&host.name),
                    _ => metadata(host.metadata.as_deref(), rest),
                };
                // One is found even where none of its routes fits.
                match stream.resolved_route() {
                    Some(route) => of(route.virtual_host()),
                    None => of(stream
                        .config
                        .routes
                        .as_ref()?
                        .virtual_host(&stream.request.lock())?),
                }
            }
            b"cluster_name" | b"cluster_metadata" => {
                let cluster = stream.info.lock().upstream.cluster.clone();
                let cluster = cluster.or_else(|| routed_cluster(stream))?;
                match name {
                    b"cluster_name" => text(&cluster.config.name),
                    _ => metadata(cluster.config.metadata.as_deref(), rest),
                }
            }
            b"upstream_host_metadata" | b"upstream_host_locality_metadata" => {
                let host = stream.info.lock().upstream.host.clone()?;
                let attributes = host.attributes();
                of_host(
                    match name {
                        b"upstream_host_metadata" => attributes.metadata.as_deref(),
                        _ => attributes.locality_metadata.as_deref(),
                    },
                    rest,
                )
            }
            _ => None,
        }
    }
}

/// A host's metadata, or its locality's: null where nothing was said of it, unlike that of routes and clusters.
fn of_host(found: Option<&pb::Metadata>, rest: &[&[u8]]) -> Option<Value> {
    match found {
        Some(found) => metadata(Some(found), rest),
        None => rest.is_empty().then_some(Value::Null),
    }
}

/// The cluster that the route names, where there is one.
fn routed_cluster(stream: &Stream) -> Option<std::sync::Arc<crate::cluster::Cluster>> {
    let route = stream.resolved_route()?;
    stream.config.clusters.get(route.cluster.as_ref()?).cloned()
}

fn peer(address: Option<SocketAddr>, name: &[u8]) -> Option<Value> {
    let address = address?;
    match name {
        b"address" => Some(Value::text(address.to_string())),
        b"port" => Some(Value::Int(i64::from(address.port()))),
        _ => None,
    }
}

/// All values of a header, joined by commas.
fn joined(fields: &HeaderMap, name: &[u8]) -> Option<Value> {
    let name = http::HeaderName::from_lowercase(name).ok()?;
    let mut values = fields.get_all(name).iter();
    let mut joined = values.next()?.as_bytes().to_vec();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(Value::Text(joined.into()))
}

fn entries_of(fields: &HeaderMap) -> impl Iterator<Item = (Vec<u8>, Value)> + '_ {
    fields.keys().filter_map(|name| {
        let name = name.as_str().as_bytes();
        Some((name.to_vec(), joined(fields, name)?))
    })
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn int(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_metadata_has_null_and_a_route_without_has_an_empty_message() {
        let field: &[&[u8]] = &[b"filter_metadata"];
        assert!(matches!(of_host(None, &[]), Some(Value::Null)));
        assert!(of_host(None, field).is_none());
        let empty = pb::Metadata::default();
        assert!(matches!(of_host(Some(&empty), field), Some(Value::Map(map)) if map.is_empty()));
        assert!(matches!(metadata(None, &[]), Some(Value::Message(bytes)) if bytes.is_empty()));
        assert!(matches!(metadata(None, field), Some(Value::Map(map)) if map.is_empty()));
    }
}
