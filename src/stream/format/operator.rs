//! The value of each operator.

mod field;
mod state;

use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use http::HeaderMap;
use tokio::time::Instant;

use super::value::{write_f64, write_struct, write_u64, write_value};
use super::{Scope, time};
use crate::config::access_log::{
    DurationUnit, FormatHeader, GrpcStatusFormat, HeaderChoice, MaskableAddress, MetadataSource,
    Operator, PathSource, ServerNameChoice, TimePoint,
};
use crate::http::RequestHead;
use crate::pb;
use crate::pb::google::protobuf::value::Kind;
use crate::stream::state::with_object;
use crate::stream::{Refusal, StreamInfo};

/// What was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing: there is no value.
    Missing,
    /// A text.
    Text,
    /// A number, truth value, list or object, as JSON.
    Json,
}

/// Appends the value of `operator`.
pub(super) fn write(operator: &Operator, scope: &Scope<'_>, out: &mut Vec<u8>) -> Written {
    match operator {
        // A head that was not understood has no headers: that of the stream is made up.
        Operator::RequestHeader(_) if scope.info.without_head => Written::Missing,
        Operator::RequestHeader(choice) => choose(choice, out, |header, out| {
            request_header(header, scope.request, out)
        }),
        Operator::ResponseHeader(choice) => {
            choose(choice, out, |header, out| match (header, scope.response) {
                (FormatHeader::Status, Some(head)) => display(head.status.as_u16(), out),
                (FormatHeader::Status, None) => match status(scope) {
                    Some(status) => display(status, out),
                    None => Written::Missing,
                },
                (_, Some(head)) => map_header(header, &head.headers, out),
                (_, None) => Written::Missing,
            })
        }
        Operator::ResponseTrailer(choice) => choose(choice, out, |header, out| {
            scope
                .response_trailers
                .map_or(Written::Missing, |trailers| {
                    map_header(header, trailers, out)
                })
        }),
        Operator::Path { query, source } => path(*query, *source, scope.request, out),
        Operator::QueryParam(name) => query_param(name, scope.request, out),
        Operator::QueryParams { decoded } => query_params(*decoded, scope.request, out),
        Operator::Field(field) => field::write(*field, scope, out),
        Operator::ResponseCodeDetails { keep_spaces } => match scope.info.details.as_deref() {
            None => Written::Missing,
            Some(details) if *keep_spaces => text(details, out),
            Some(details) => underscored(details, out),
        },
        Operator::Time {
            emit,
            local,
            format,
        } => {
            let moment = if *emit {
                SystemTime::now()
            } else {
                scope.info.start
            };
            time::write(format, *local, moment, out);
            Written::Text
        }
        Operator::CommonDuration { start, end, unit } => {
            let (Some(start), Some(end)) = (point(start, scope), point(end, scope)) else {
                return Written::Missing;
            };
            // A moment that came before the other has no distance to it.
            let Some(duration) = end.checked_duration_since(start) else {
                return Written::Missing;
            };
            let value = match unit {
                DurationUnit::Millis => duration.as_millis(),
                DurationUnit::Micros => duration.as_micros(),
                DurationUnit::Nanos => duration.as_nanos(),
            };
            number(u64::try_from(value).unwrap_or(u64::MAX), out)
        }
        Operator::GrpcStatus(format) => write_grpc_status(*format, scope, out),
        Operator::MaskedAddress { address, bits } => masked(*address, *bits, scope, out),
        Operator::Metadata { source, path } => metadata(*source, path, scope, out),
        Operator::FilterState {
            upstream,
            key,
            field,
            typed,
        } => {
            // There are no objects of the upstream connection.
            if *upstream {
                return Written::Missing;
            }
            let connection = &scope.connection.filter_state;
            with_object(&scope.info.filter_state, connection, key, |object| {
                state::write(object, field.as_deref(), *typed, out)
            })
            .unwrap_or(Written::Missing)
        }
        Operator::RequestedServerName(choice) => match choice {
            // There is no TLS server name in this build: only the host can be told.
            ServerNameChoice::SniOnly => Written::Missing,
            // Envoy asks for the host when the head has been accepted.
            ServerNameChoice::Host(_) if scope.info.refused.is_some() => Written::Missing,
            ServerNameChoice::Host(source) => server_name(*source, scope.request, out),
        },
        Operator::Hostname(name) => text(name, out),
        // An unset variable is the text `-`, not a missing value.
        Operator::Environment(value) => text(value.as_deref().unwrap_or("-"), out),
        Operator::XfccValue(key) => xfcc(key, &scope.request.headers, out),
        Operator::Coalesce(operators) => {
            for (operator, max_len) in operators {
                let start = out.len();
                let written = write(operator, scope, out);
                // An empty value is one.
                if written != Written::Missing {
                    if let Some(max_len) = max_len {
                        out.truncate(start + (out.len() - start).min(*max_len));
                    }
                    return written;
                }
                out.truncate(start);
            }
            Written::Missing
        }
        Operator::Unavailable => Written::Missing,
    }
}

fn text(value: &str, out: &mut Vec<u8>) -> Written {
    bytes(value.as_bytes(), out)
}

fn bytes(value: &[u8], out: &mut Vec<u8>) -> Written {
    out.extend_from_slice(value);
    Written::Text
}

fn non_empty(value: &[u8], out: &mut Vec<u8>) -> Written {
    if value.is_empty() {
        Written::Missing
    } else {
        bytes(value, out)
    }
}

fn underscored(value: &str, out: &mut Vec<u8>) -> Written {
    out.extend(value.bytes().map(|byte| {
        if byte.is_ascii_whitespace() {
            b'_'
        } else {
            byte
        }
    }));
    Written::Text
}

fn number(value: u64, out: &mut Vec<u8>) -> Written {
    write_u64(value, out);
    Written::Json
}

fn display(value: impl Display, out: &mut Vec<u8>) -> Written {
    // Writing to a vector does not fail.
    let _ = write!(out, "{value}");
    Written::Text
}

fn choose(
    choice: &HeaderChoice,
    out: &mut Vec<u8>,
    mut one: impl FnMut(&FormatHeader, &mut Vec<u8>) -> Written,
) -> Written {
    match one(&choice.main, out) {
        Written::Missing => choice
            .alternative
            .as_ref()
            .map_or(Written::Missing, |header| one(header, out)),
        written => written,
    }
}

fn request_header(header: &FormatHeader, head: &RequestHead, out: &mut Vec<u8>) -> Written {
    match header {
        FormatHeader::Authority if head.has_host => bytes(head.authority.as_bytes(), out),
        FormatHeader::Authority => Written::Missing,
        FormatHeader::Method => text(head.method.as_str(), out),
        FormatHeader::Path => non_empty(head.path.as_bytes(), out),
        FormatHeader::Scheme => non_empty(head.scheme.as_str().as_bytes(), out),
        FormatHeader::Protocol => head
            .upgrade
            .as_ref()
            .map_or(Written::Missing, |value| bytes(value.as_bytes(), out)),
        FormatHeader::Status | FormatHeader::Never | FormatHeader::Header(_) => {
            map_header(header, &head.headers, out)
        }
    }
}

/// The first value only, as in Envoy.
fn map_header(header: &FormatHeader, headers: &HeaderMap, out: &mut Vec<u8>) -> Written {
    match header {
        FormatHeader::Header(name) => headers
            .get(name)
            .map_or(Written::Missing, |value| bytes(value.as_bytes(), out)),
        _ => Written::Missing,
    }
}

fn path(query: bool, source: PathSource, head: &RequestHead, out: &mut Vec<u8>) -> Written {
    let original = head.headers.get("x-envoy-original-path");
    let path = match source {
        PathSource::Original => original,
        PathSource::Current => Some(&head.path),
        PathSource::OriginalOrCurrent => Some(original.unwrap_or(&head.path)),
    };
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Written::Missing;
    };
    let path = path.as_bytes();
    let end = match query {
        true => path.len(),
        false => memchr::memchr(b'?', path).unwrap_or(path.len()),
    };
    bytes(&path[..end], out)
}

/// The host before a rewrite, or the present one.
fn server_name(source: PathSource, head: &RequestHead, out: &mut Vec<u8>) -> Written {
    let original = head.headers.get("x-envoy-original-host");
    let host = match source {
        PathSource::Original => original,
        PathSource::Current => Some(&head.authority),
        PathSource::OriginalOrCurrent => Some(original.unwrap_or(&head.authority)),
    };
    host.map_or(Written::Missing, |host| bytes(host.as_bytes(), out))
}

fn query_param(name: &str, head: &RequestHead, out: &mut Vec<u8>) -> Written {
    let value = head
        .query()
        .and_then(|query| crate::route::matcher::query_parameter(query, name.as_bytes()));
    match value {
        None => Written::Missing,
        Some(value) => {
            out.extend(percent_encoding::percent_decode(value));
            Written::Text
        }
    }
}

fn query_params(decoded: bool, head: &RequestHead, out: &mut Vec<u8>) -> Written {
    let Some(query) = head.query() else {
        return Written::Missing;
    };
    if !decoded {
        return bytes(query, out);
    }
    // What is visible is decoded; white space, controls and what is no ASCII stay encoded.
    let mut rest = query;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.extend_from_slice(&rest[..at]);
        let byte = rest
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(u8::is_ascii_graphic);
        match byte {
            Some(byte) => {
                out.push(byte);
                rest = &rest[at + 3..];
            }
            None => {
                out.push(b'%');
                rest = &rest[at + 1..];
            }
        }
    }
    bytes(rest, out)
}

fn status(scope: &Scope<'_>) -> Option<u16> {
    scope
        .status
        .or_else(|| scope.response.map(|head| head.status.as_u16()))
}

/// The client, as far as it is trusted to say who it is.
fn client(scope: &Scope<'_>) -> Option<SocketAddr> {
    scope.info.client.or(scope.connection.remote)
}

/// The end of the request; a head that was not understood has none.
fn request_end(info: &StreamInfo) -> Option<Instant> {
    info.request_end.filter(|_| !info.without_head)
}

fn point(point: &TimePoint, scope: &Scope<'_>) -> Option<Instant> {
    let info = scope.info;
    match point {
        TimePoint::DownstreamRxBegin => Some(info.begin),
        TimePoint::DownstreamRxEnd => request_end(info),
        TimePoint::UpstreamTxBegin => info.upstream_first_tx,
        TimePoint::UpstreamTxEnd => info.upstream_last_tx,
        TimePoint::UpstreamRxBegin => info.upstream_first_rx,
        // A response that ended with its head had no body.
        TimePoint::UpstreamRxBodyBegin => info
            .upstream_first_rx
            .filter(|_| info.upstream_last_rx != info.response_begin),
        TimePoint::UpstreamRxEnd => info.upstream_last_rx,
        TimePoint::DownstreamTxBegin => info.response_begin,
        TimePoint::DownstreamTxEnd => info.response_begin.and(info.end),
        TimePoint::UpstreamConnectBegin
        | TimePoint::UpstreamConnectEnd
        | TimePoint::UpstreamHandshakeEnd
        | TimePoint::Custom(_) => None,
    }
}

/// The gRPC status of a gRPC stream: of the trailers, the headers, or what the HTTP status stands for.
pub fn grpc_status(scope: &Scope<'_>) -> Option<u32> {
    if !scope.request.is_grpc() {
        return None;
    }
    grpc_status_of(scope)
}

/// As [`grpc_status`], whatever the request was.
pub fn grpc_status_of(scope: &Scope<'_>) -> Option<u32> {
    let of = |headers: &HeaderMap| -> Option<u32> {
        headers.get("grpc-status")?.to_str().ok()?.parse().ok()
    };
    scope
        .response_trailers
        .and_then(of)
        .or_else(|| scope.response.and_then(|head| of(&head.headers)))
        .or_else(|| {
            // The 0 of a local reply whose head is made is none.
            let status = status(scope).filter(|status| *status != 0);
            status.map(|status| match status {
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            })
        })
}

const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn write_grpc_status(format: GrpcStatusFormat, scope: &Scope<'_>, out: &mut Vec<u8>) -> Written {
    let Some(code) = grpc_status(scope) else {
        return Written::Missing;
    };
    let names = usize::try_from(code)
        .ok()
        .and_then(|code| GRPC_NAMES.get(code));
    match (format, names) {
        (GrpcStatusFormat::Number, _) => number(u64::from(code), out),
        (GrpcStatusFormat::Camel, Some((camel, _))) => text(camel, out),
        (GrpcStatusFormat::Snake, Some((_, snake))) => text(snake, out),
        (_, None) => display(code, out),
    }
}

fn masked(which: MaskableAddress, bits: u8, scope: &Scope<'_>, out: &mut Vec<u8>) -> Written {
    let address = match which {
        MaskableAddress::DownstreamRemote => client(scope),
        MaskableAddress::DownstreamDirectRemote => scope.connection.remote,
        MaskableAddress::DownstreamLocal | MaskableAddress::DownstreamDirectLocal => {
            scope.connection.local
        }
        MaskableAddress::UpstreamLocal => scope.info.upstream.local,
        MaskableAddress::UpstreamRemote => scope.info.upstream.remote,
    };
    let Some(address) = address else {
        return Written::Missing;
    };
    match address.ip() {
        IpAddr::V4(ip) => {
            let bits = bits.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let network = std::net::Ipv4Addr::from(u32::from(ip) & mask);
            display(format_args!("{network}/{bits}"), out)
        }
        IpAddr::V6(ip) => {
            let bits = bits.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let network = std::net::Ipv6Addr::from(u128::from(ip) & mask);
            display(format_args!("{network}/{bits}"), out)
        }
    }
}

fn metadata(
    source: MetadataSource,
    path: &[Box<str>],
    scope: &Scope<'_>,
    out: &mut Vec<u8>,
) -> Written {
    let upstream = &scope.info.upstream;
    let attributes;
    let metadata: Option<&pb::Metadata> = match source {
        MetadataSource::Dynamic => scope.info.dynamic_metadata.as_deref(),
        MetadataSource::Cluster => {
            field::cluster(scope).and_then(|cluster| cluster.config.metadata.as_deref())
        }
        MetadataSource::Route => scope
            .route
            .and_then(|route| route.route.metadata.as_deref()),
        MetadataSource::VirtualHost => virtual_host(scope),
        MetadataSource::UpstreamHost => match &upstream.host {
            Some(host) => {
                attributes = host.attributes();
                attributes.metadata.as_deref()
            }
            None => None,
        },
        MetadataSource::Listener => scope.connection.listener_metadata.as_deref(),
        MetadataSource::FilterChain => None,
    };
    let Some((namespace, keys)) = path.split_first() else {
        return Written::Missing;
    };
    let Some(fields) = metadata.and_then(|metadata| metadata.filter_metadata.get(&**namespace))
    else {
        return Written::Missing;
    };
    let Some((first, rest)) = keys.split_first() else {
        write_struct(fields, out);
        return Written::Json;
    };
    let mut value = fields.fields.get(&**first);
    for key in rest {
        value = match value.and_then(|value| value.kind.as_ref()) {
            Some(Kind::StructValue(fields)) => fields.fields.get(&**key),
            _ => None,
        };
    }
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Written::Missing,
        Some(Kind::StringValue(value)) => text(value, out),
        Some(Kind::NumberValue(value)) => {
            write_f64(*value, out);
            Written::Json
        }
        Some(_) => {
            if let Some(value) = value {
                write_value(value, out);
            }
            Written::Json
        }
    }
}

/// The metadata of the virtual host, which is known where it has no route for the request.
fn virtual_host<'a>(scope: &Scope<'a>) -> Option<&'a pb::Metadata> {
    let host = match scope.route {
        Some(route) => Some(route.virtual_host()),
        None if scope.info.refused == Some(Refusal::Codec) => None,
        None => scope.config.routes.as_ref()?.virtual_host(scope.request),
    };
    host?.metadata.as_deref()
}

/// The first value of `key` in `x-forwarded-client-cert`: elements are separated by commas, pairs by semicolons.
fn xfcc(key: &str, headers: &HeaderMap, out: &mut Vec<u8>) -> Written {
    let Some(value) = headers.get("x-forwarded-client-cert") else {
        return Written::Missing;
    };
    let mut quoted = false;
    let mut escaped = false;
    let pairs = value.as_bytes().split(|byte| {
        let separates = !quoted && matches!(byte, b',' | b';');
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        separates
    });
    for pair in pairs {
        let pair = pair.trim_ascii();
        let Some(equals) = memchr::memchr(b'=', pair) else {
            continue;
        };
        if pair[..equals].eq_ignore_ascii_case(key.as_bytes()) {
            let value = &pair[equals + 1..];
            let inner = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            match inner {
                Some(inner) => {
                    let mut escaped = false;
                    out.extend(inner.iter().filter(|byte| {
                        escaped = **byte == b'\\' && !escaped;
                        !escaped
                    }));
                }
                None => out.extend_from_slice(value),
            }
            return Written::Text;
        }
    }
    Written::Missing
}
