//! The values of the operators without arguments.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Version};
use tokio::time::Instant;

use super::{
    Scope, Written, bytes, client, display, non_empty, number, request_end, status, text,
    underscored, write_grpc_status,
};
use crate::cluster::Cluster;
use crate::config::access_log::{Field, GrpcStatusFormat};
use crate::http::{RequestHead, ResponseFlag, ResponseHead};
use crate::stream::{CloseType, Refusal};

pub(super) fn write(field: Field, scope: &Scope<'_>, out: &mut Vec<u8>) -> Written {
    let (info, connection) = (scope.info, scope.connection);
    let upstream = &info.upstream;
    let counts = &info.counts;
    let closed = info.closed.as_deref();
    match field {
        Field::Protocol => version(scope.request.version, out),
        Field::UpstreamProtocol => upstream
            .protocol
            .map_or(Written::Missing, |protocol| version(protocol, out)),
        Field::ResponseCode => number(status(scope).map_or(0, u64::from), out),
        Field::ConnectionTerminationDetails => optional(info.termination_details.as_deref(), out),
        Field::ResponseFlags => flags(scope, ResponseFlag::short, out),
        Field::ResponseFlagsLong => flags(scope, ResponseFlag::long, out),
        Field::BytesReceived => number(info.bytes_received, out),
        Field::BytesSent => number(info.bytes_sent, out),
        // QUIC only.
        Field::BytesRetransmitted | Field::PacketsRetransmitted => number(0, out),
        Field::UpstreamWireBytesSent => number(counts.upstream_wire_sent, out),
        Field::UpstreamWireBytesReceived => number(counts.upstream_wire_received, out),
        Field::UpstreamHeaderBytesSent | Field::UpstreamDecompressedHeaderBytesSent => {
            number(counts.upstream_header_sent, out)
        }
        Field::UpstreamHeaderBytesReceived | Field::UpstreamDecompressedHeaderBytesReceived => {
            number(counts.upstream_header_received, out)
        }
        Field::DownstreamWireBytesSent => number(counts.downstream_wire_sent, out),
        Field::DownstreamWireBytesReceived => number(counts.downstream_wire_received, out),
        Field::DownstreamHeaderBytesSent | Field::DownstreamDecompressedHeaderBytesSent => {
            number(counts.downstream_header_sent, out)
        }
        Field::DownstreamHeaderBytesReceived | Field::DownstreamDecompressedHeaderBytesReceived => {
            number(counts.downstream_header_received, out)
        }
        Field::Duration => millis(info.begin, Some(info.end.unwrap_or_else(Instant::now)), out),
        Field::RequestDuration => millis(info.begin, request_end(info), out),
        Field::RequestTxDuration => millis(info.begin, info.upstream_last_tx, out),
        Field::ResponseDuration => millis(info.begin, info.upstream_first_rx, out),
        Field::ResponseTxDuration => info.upstream_first_rx.map_or(Written::Missing, |first| {
            millis(first, info.response_begin.and(info.end), out)
        }),
        Field::UpstreamConnectionPoolReadyDuration => millis(info.begin, upstream.pool_ready, out),
        Field::UpstreamHost => upstream_host(scope, out),
        Field::UpstreamHostName => upstream_host_name(scope, true, out),
        Field::UpstreamHostNameWithoutPort => upstream_host_name(scope, false, out),
        Field::UpstreamCluster => optional(
            cluster(scope).map(|cluster| &*cluster.config.stat_name),
            out,
        ),
        Field::UpstreamClusterRaw => {
            optional(cluster(scope).map(|cluster| &*cluster.config.name), out)
        }
        Field::UpstreamLocalAddress => address(upstream.local, out),
        Field::UpstreamLocalAddressWithoutPort => ip(upstream.local, out),
        Field::UpstreamLocalPort => port(upstream.local, out),
        Field::UpstreamRemoteAddress => address(upstream.remote, out),
        Field::UpstreamRemoteAddressWithoutPort => ip(upstream.remote, out),
        Field::UpstreamRemotePort => port(upstream.remote, out),
        Field::UpstreamRemoteAddressEndpointId => {
            upstream.remote.map_or(Written::Missing, |_| Written::Text)
        }
        Field::UpstreamRequestAttemptCount => number(u64::from(info.attempts), out),
        Field::UpstreamConnectionId => number(upstream.connection_id.unwrap_or(0), out),
        // One attempt is all that is made at a request: the last host is all that were tried.
        Field::UpstreamHostsAttempted => match upstream.connection_id {
            Some(_) => {
                for host in closed.iter().flat_map(|closed| &closed.earlier_hosts) {
                    display(format_args!("{},", host.connect_address()), out);
                }
                upstream_host(scope, out)
            }
            None => Written::Missing,
        },
        Field::UpstreamHostsAttemptedWithoutPort => match upstream.connection_id {
            Some(_) => ip(upstream.remote, out),
            None => Written::Missing,
        },
        Field::UpstreamHostNamesAttempted => match upstream.connection_id {
            Some(_) => upstream_host_name(scope, true, out),
            None => Written::Missing,
        },
        Field::UpstreamHostNamesAttemptedWithoutPort => match upstream.connection_id {
            Some(_) => upstream_host_name(scope, false, out),
            None => Written::Missing,
        },
        Field::UpstreamConnectionIdsAttempted => upstream
            .connection_id
            .map_or(Written::Missing, |id| display(id, out)),
        Field::UpstreamTransportFailureReason => match upstream.transport_failure.as_deref() {
            Some(reason) => underscored(reason, out),
            None => Written::Missing,
        },
        Field::UpstreamDetectedCloseType => match closed {
            Some(closed) => text(closed.upstream.as_str(), out),
            None if upstream.host.is_some() => text("Normal", out),
            None => Written::Missing,
        },
        Field::DownstreamDetectedCloseType => {
            let kind = closed.map_or(CloseType::Normal, |closed| closed.downstream);
            text(kind.as_str(), out)
        }
        Field::UpstreamLocalCloseReason => reason(
            closed.and_then(|closed| closed.upstream_reason.as_deref()),
            out,
        ),
        Field::DownstreamLocalCloseReason => reason(
            closed.and_then(|closed| closed.downstream_reason.as_deref()),
            out,
        ),
        Field::DownstreamRemoteAddress => address(client(scope), out),
        Field::DownstreamRemoteAddressWithoutPort => ip(client(scope), out),
        Field::DownstreamRemotePort => port(client(scope), out),
        Field::DownstreamDirectRemoteAddress => address(connection.remote, out),
        Field::DownstreamDirectRemoteAddressWithoutPort => ip(connection.remote, out),
        Field::DownstreamDirectRemotePort => port(connection.remote, out),
        Field::DownstreamLocalAddress | Field::DownstreamDirectLocalAddress => {
            address(connection.local, out)
        }
        Field::DownstreamLocalAddressWithoutPort
        | Field::DownstreamDirectLocalAddressWithoutPort => ip(connection.local, out),
        Field::DownstreamLocalPort | Field::DownstreamDirectLocalPort => {
            port(connection.local, out)
        }
        // Internal listeners only.
        Field::DownstreamLocalAddressEndpointId | Field::DownstreamDirectLocalAddressEndpointId => {
            Written::Text
        }
        Field::ConnectionId => number(connection.id, out),
        Field::StreamId => scope
            .request
            .headers
            .get("x-request-id")
            .map_or(Written::Missing, |id| bytes(id.as_bytes(), out)),
        Field::UniqueId => display(
            uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid(),
            out,
        ),
        Field::RouteName => match scope.route {
            Some(route) => non_empty(route.route.name.as_bytes(), out),
            None => Written::Missing,
        },
        Field::FilterChainName => non_empty(connection.filter_chain.as_bytes(), out),
        Field::ListenerName => non_empty(connection.listener.as_bytes(), out),
        Field::RouteResolutionCount => number(u64::from(info.refused != Some(Refusal::Codec)), out),
        Field::RouteResolutionTimeUs => number(0, out),
        Field::CustomFlags => Written::Text,
        Field::AccessLogType => text(scope.log_type.as_str(), out),
        Field::LocalReplyBody => bytes(scope.local_reply_body, out),
        Field::RequestHeadersBytes if scope.info.without_head => number(0, out),
        Field::RequestHeadersBytes => number(request_bytes(scope.request), out),
        Field::ResponseHeadersBytes => number(scope.response.map_or(0, response_bytes), out),
        Field::ResponseTrailersBytes => {
            number(scope.response_trailers.map_or(0, header_bytes), out)
        }
        Field::GrpcStatusNumber => write_grpc_status(GrpcStatusFormat::Number, scope, out),
        // TLS, QUIC, tracing, virtual clusters and what the system does not tell.
        Field::DownstreamHandshakeDuration
        | Field::RoundtripDuration
        | Field::DownstreamTransportFailureReason
        | Field::DownstreamCxRtt
        | Field::TraceId
        | Field::SpanId
        | Field::VirtualClusterName => Written::Missing,
    }
}

/// The cluster of the stream, or the one that its route names: Envoy knows it from the moment of routing.
pub(super) fn cluster<'a>(scope: &Scope<'a>) -> Option<&'a Arc<Cluster>> {
    scope.info.upstream.cluster.as_ref().or_else(|| {
        let name = scope.route?.cluster.as_deref()?;
        scope.config.clusters.get(name)
    })
}

fn reason(value: Option<&str>, out: &mut Vec<u8>) -> Written {
    value.map_or(Written::Missing, |value| underscored(value, out))
}

fn optional(value: Option<&str>, out: &mut Vec<u8>) -> Written {
    value.map_or(Written::Missing, |value| text(value, out))
}

fn flags(scope: &Scope<'_>, name: fn(ResponseFlag) -> &'static str, out: &mut Vec<u8>) -> Written {
    if scope.info.flags.is_empty() {
        return text("-", out);
    }
    for (index, flag) in scope.info.flags.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
    Written::Text
}

fn upstream_host(scope: &Scope<'_>, out: &mut Vec<u8>) -> Written {
    let upstream = &scope.info.upstream;
    match &upstream.host {
        None => Written::Missing,
        Some(host) => display(host.connect_address(), out),
    }
}

fn upstream_host_name(scope: &Scope<'_>, with_port: bool, out: &mut Vec<u8>) -> Written {
    let Some(host) = &scope.info.upstream.host else {
        return Written::Missing;
    };
    let start = out.len();
    if host.hostname.is_empty() {
        display(host.connect_address(), out);
    } else {
        text(&host.hostname, out);
    }
    if !with_port && let Some(port) = crate::route::port_start(&out[start..]) {
        out.truncate(start + port);
    }
    Written::Text
}

fn header_bytes(headers: &HeaderMap) -> u64 {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum::<usize>() as u64
}

fn request_bytes(head: &RequestHead) -> u64 {
    let pseudo = [
        (":method", head.method.as_str().len(), true),
        (":path", head.path.len(), !head.path.is_empty()),
        (":authority", head.authority.len(), head.has_host),
        (
            ":scheme",
            head.scheme.as_str().len(),
            head.scheme.shown().is_some(),
        ),
    ];
    let pseudo: usize = pseudo
        .iter()
        .filter(|(_, _, there)| *there)
        .map(|(name, length, _)| name.len() + length)
        .sum();
    pseudo as u64 + header_bytes(&head.headers)
}

fn response_bytes(head: &ResponseHead) -> u64 {
    (":status".len() + 3) as u64 + header_bytes(&head.headers)
}

fn version(version: Version, out: &mut Vec<u8>) -> Written {
    match version {
        Version::HTTP_10 => text("HTTP/1.0", out),
        Version::HTTP_11 => text("HTTP/1.1", out),
        Version::HTTP_2 => text("HTTP/2", out),
        Version::HTTP_3 => text("HTTP/3", out),
        _ => Written::Missing,
    }
}

fn address(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Written {
    address.map_or(Written::Missing, |address| display(address, out))
}

fn ip(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Written {
    address.map_or(Written::Missing, |address| display(address.ip(), out))
}

fn port(address: Option<SocketAddr>, out: &mut Vec<u8>) -> Written {
    address.map_or(Written::Missing, |address| {
        number(u64::from(address.port()), out)
    })
}

fn millis(from: Instant, to: Option<Instant>, out: &mut Vec<u8>) -> Written {
    to.map_or(Written::Missing, |to| {
        let duration = to.saturating_duration_since(from);
        number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), out)
    })
}
