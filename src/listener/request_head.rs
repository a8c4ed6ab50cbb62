//! What the connection manager does to a request head before filters see it, as Envoy's
//! `ConnectionManagerUtility`: path and host clean-up, then trust, forwarding headers and request id. A head that is
//! refused on the way keeps what it had until then.
//!
//! The headers are walked once; most requests carry none that must go.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use smallvec::SmallVec;

use crate::config::http_connection_manager::{EscapedSlashes, Options, StripPort};
use crate::http::order::{take_out, take_out_all};
use crate::http::{LocalReply, ReplyReason, RequestHead, Scheme};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_DOWNSTREAM_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-cluster");
const X_ENVOY_DOWNSTREAM_NODE: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-node");

/// What the rules ask of the connection and of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// The peer; `None` for a unix socket.
    pub(super) remote: Option<SocketAddr>,
    /// Our end.
    pub(super) local: Option<SocketAddr>,
    /// This machine's own address, which stands for a loopback peer in `x-forwarded-for`.
    pub(super) own_address: IpAddr,
    /// `node.cluster`.
    pub(super) node_cluster: &'a str,
    /// `node.id`.
    pub(super) node_id: &'a str,
}

/// What was learned on the way.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The client's address, as far as the configuration trusts what it says.
    pub(super) client: Option<IpAddr>,
    /// The client counts as internal.
    pub(super) internal: bool,
}

#[derive(Default)]
struct Present {
    forwarded_for: bool,
    forwarded_proto: bool,
    request_id: bool,
    user_agent: bool,
    te: bool,
    envoy: bool,
    remove: SmallVec<[HeaderName; 4]>,
}

impl Present {
    fn of(head: &RequestHead) -> Self {
        let mut present = Self::default();
        let headers = &head.headers;
        let upgrade = head.upgrade.is_some();
        for name in headers.keys() {
            match name.as_str() {
                // What an upgrade asks for goes on as it came, past all who may look at it.
                "connection" | "upgrade" | "te" if upgrade => {}
                "connection"
                | "keep-alive"
                | "proxy-connection"
                | "transfer-encoding"
                | "upgrade"
                | "x-forwarded-client-cert" => present.remove.push(name.clone()),
                "te" => present.te = true,
                "x-forwarded-for" => present.forwarded_for = true,
                "x-forwarded-proto" => present.forwarded_proto = true,
                // An empty one is none.
                "x-request-id" => {
                    present.request_id = headers.get(name).is_some_and(|value| !value.is_empty());
                }
                "user-agent" => present.user_agent = true,
                other => present.envoy |= other.starts_with("x-envoy-"),
            }
        }
        present
    }
}

/// Headers that only an internal caller may send.
const INTERNAL: &[&str] = &[
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
];

/// Headers that an external client may not send to the edge either.
const EDGE: &[&str] = &[
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
];

/// Applies the rules to `head`.
///
/// # Errors
/// The reply where the head is refused.
pub(super) fn prepare(
    head: &mut RequestHead,
    options: &Options,
    facts: &Facts<'_>,
) -> Result<Seen, LocalReply> {
    check_path(head)?;
    clean_path(head, options)?;
    clean_host(head, options, facts);
    let present = Present::of(head);
    if !present.remove.is_empty() {
        take_out_all(&mut head.headers, |name| {
            present.remove.contains(name)
                && !(options.keep_client_cert_header && name.as_str() == "x-forwarded-client-cert")
        });
    }
    if present.te {
        keep_only_trailers(&mut head.headers);
    }

    let remote_ip = facts.remote.map(|address| address.ip().to_canonical());
    let single = !present.forwarded_for;
    let mut client = remote_ip;
    let may_be_internal;
    // What the hop before says of its own client counts where it is trusted.
    let mut trusted = true;
    if options.use_remote_address {
        trusted = options.xff_num_trusted_hops > 0;
        if trusted
            && let Some(address) =
                last_forwarded(&head.headers, options.xff_num_trusted_hops as usize - 1)
        {
            client = Some(address.0);
        }
        may_be_internal = single;
        if !options.skip_xff_append
            && let Some(ip) = remote_ip
        {
            append_forwarded(
                &mut head.headers,
                if is_localhost(ip) {
                    facts.own_address
                } else {
                    ip
                },
            );
        }
    } else {
        let told = last_forwarded(&head.headers, options.xff_num_trusted_hops as usize);
        // Whom nobody vouches for is external, wherever it connects from.
        may_be_internal = told.is_some_and(|(_, only)| only);
        client = told.map(|(address, _)| address).or(client);
    }
    set_scheme(head, options, trusted && present.forwarded_proto);
    if options.append_x_forwarded_port
        && let Some(local) = facts.local
        && !(trusted && head.headers.contains_key(X_FORWARDED_PORT))
    {
        head.headers
            .insert(X_FORWARDED_PORT, HeaderValue::from(local.port()));
    }

    let internal = match client {
        Some(ip) => may_be_internal && options.is_internal(ip),
        None => options.internal_unix_sockets,
    };
    let edge = !internal && options.use_remote_address;
    if present.envoy && !internal {
        let from = if edge {
            &[INTERNAL, EDGE][..]
        } else {
            &[INTERNAL][..]
        };
        let gone = |name: &HeaderName| from.iter().copied().flatten().any(|gone| name == gone);
        take_out_all(&mut head.headers, gone);
    }
    if internal {
        head.headers
            .insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else if edge && let Some(ip) = client {
        set(&mut head.headers, X_ENVOY_EXTERNAL_ADDRESS, &ip.to_string());
    }
    if options.add_user_agent {
        set(
            &mut head.headers,
            X_ENVOY_DOWNSTREAM_CLUSTER,
            facts.node_cluster,
        );
        if !present.user_agent {
            set(&mut head.headers, header::USER_AGENT, facts.node_cluster);
        }
        if !facts.node_id.is_empty() {
            set(&mut head.headers, X_ENVOY_DOWNSTREAM_NODE, facts.node_id);
        }
    }
    if let Some(via) = &options.via {
        append_via(&mut head.headers, via);
    }
    if options.generate_request_id
        && (!present.request_id || (edge && !options.preserve_external_request_id))
    {
        head.headers.insert(X_REQUEST_ID, new_request_id());
    }
    Ok(Seen { client, internal })
}

/// `x-forwarded-proto`, and the scheme after it where the target named none. `keep`: the hop before says it.
fn set_scheme(head: &mut RequestHead, options: &Options, keep: bool) {
    if let Some(scheme) = &options.scheme_to_overwrite {
        set(&mut head.headers, X_FORWARDED_PROTO, scheme);
        head.scheme = match &**scheme {
            "https" => Scheme::Https,
            _ => Scheme::Http,
        };
        return;
    }
    if !keep {
        head.headers
            .insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if head.scheme == Scheme::Unknown {
        let told = head.headers.get(X_FORWARDED_PROTO);
        head.scheme = match told {
            Some(told) if told.as_bytes().eq_ignore_ascii_case(b"https") => Scheme::Https,
            _ => Scheme::Http,
        };
    }
}

/// `127.0.0.1` and `::1`; the rest of 127/8 is an address as any other to Envoy.
fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)
        || ip == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
}

/// True where Envoy finds a route for a refused head, whose answer then has that route's headers: routes are found by
/// `x-forwarded-proto`, which such a head has only where the client sent it.
pub(super) fn is_routable(head: &RequestHead) -> bool {
    let proto = head.headers.get(X_FORWARDED_PROTO);
    proto.is_some_and(|proto| !proto.is_empty())
}

fn check_path(head: &RequestHead) -> Result<(), LocalReply> {
    if !head.has_host {
        return Err(ReplyReason::MissingHost.into());
    }
    let path = head.path.as_bytes();
    if path == b"*" && head.method == Method::OPTIONS {
        return Err(ReplyReason::AbsolutePathRejected.into());
    }
    if head.method != Method::CONNECT && !path.starts_with(b"/") {
        return Err(ReplyReason::AbsolutePathRejected.into());
    }
    if memchr::memchr(b'#', path).is_some() {
        return Err(ReplyReason::PathNormalizationFailed.into());
    }
    Ok(())
}

fn keep_only_trailers(headers: &mut HeaderMap) {
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        take_out(headers, &header::TE);
    }
}

/// The address `skip` places from the end of `x-forwarded-for`, and whether it is the only one.
fn last_forwarded(headers: &HeaderMap, skip: usize) -> Option<(IpAddr, bool)> {
    let mut last: SmallVec<[&[u8]; 8]> = SmallVec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        last.extend(value.as_bytes().split(|byte| *byte == b','));
    }
    let index = last.len().checked_sub(skip + 1)?;
    let text = std::str::from_utf8(last[index].trim_ascii()).ok()?;
    let address = text
        .parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))?;
    Some((address, last.len() == 1))
}

fn append_forwarded(headers: &mut HeaderMap, address: IpAddr) {
    let mut all = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        all.extend_from_slice(value.as_bytes());
        all.push(b',');
    }
    all.extend_from_slice(address.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Appends to `via`, after a comma and a space, on either side.
pub(super) fn append_via(headers: &mut HeaderMap, via: &HeaderValue) {
    let value = match headers.get(header::VIA) {
        None => via.clone(),
        Some(known) => {
            let joined = [known.as_bytes(), b", ", via.as_bytes()].concat();
            HeaderValue::from_bytes(&joined).unwrap_or_else(|_| via.clone())
        }
    };
    headers.insert(header::VIA, value);
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A random version 4 UUID. Its fourteenth character says "not traced" to Envoy's tracers.
fn new_request_id() -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes())
        .into_uuid()
        .hyphenated()
        .encode_lower(&mut text);
    HeaderValue::from_bytes(&text).expect("hexadecimal digits and hyphens")
}

fn clean_path(head: &mut RequestHead, options: &Options) -> Result<(), LocalReply> {
    if head.path.is_empty() {
        return Ok(());
    }
    let mut redirect = false;
    if options.escaped_slashes != EscapedSlashes::Keep {
        let (path, query) = split_query(head.path.as_bytes());
        if let Some(unescaped) = unescape_slashes(path) {
            // The log of what is refused shows the path as it would have gone on.
            set_path(head, &[&unescaped, query].concat())?;
            match options.escaped_slashes {
                EscapedSlashes::Reject => return Err(ReplyReason::PathNormalizationFailed.into()),
                EscapedSlashes::UnescapeAndRedirect => redirect = true,
                EscapedSlashes::Keep | EscapedSlashes::UnescapeAndForward => {}
            }
        }
    }
    if options.normalize_path {
        let (path, query) = split_query(head.path.as_bytes());
        let normal = normalize(path)
            .ok_or_else(|| LocalReply::from(ReplyReason::PathNormalizationFailed))?;
        if normal != path {
            let whole = [&normal, query].concat();
            set_path(head, &whole)?;
        }
    }
    if options.merge_slashes {
        let (path, query) = split_query(head.path.as_bytes());
        if let Some(mut merged) = merge_slashes(path) {
            merged.extend_from_slice(query);
            set_path(head, &merged)?;
        }
    }
    if !redirect {
        return Ok(());
    }
    // A gRPC client does not follow redirects.
    if head.is_grpc() {
        return Err(ReplyReason::PathNormalizationFailed.into());
    }
    let details = "path_normalization_failed";
    let mut reply = LocalReply::new(http::StatusCode::TEMPORARY_REDIRECT, "", details);
    reply.headers.insert(header::LOCATION, head.path.clone());
    Err(reply)
}

/// Runs of slashes as one, but for a path of nothing else, of which two stay, as in Envoy. `None` where there are no runs.
fn merge_slashes(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(path, b"//")?;
    let mut merged = path.to_vec();
    merged.dedup_by(|b, a| *a == b'/' && *b == b'/');
    if merged == b"/" {
        merged.push(b'/');
    }
    Some(merged)
}

fn set_path(head: &mut RequestHead, path: &[u8]) -> Result<(), LocalReply> {
    head.path = HeaderValue::from_bytes(path)
        .map_err(|_| LocalReply::from(ReplyReason::PathNormalizationFailed))?;
    Ok(())
}

/// The path, and the rest from its `?`.
fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()))
}

/// `%2F` and `%5C` of either case as `/` and `\`; `None` where there are none.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < path.len() {
        let slash = match path.get(at..at + 3) {
            Some([b'%', b'2', b'f' | b'F']) => Some(b'/'),
            Some([b'%', b'5', b'c' | b'C']) => Some(b'\\'),
            _ => None,
        };
        match slash {
            Some(slash) => {
                out.get_or_insert_with(|| path[..at].to_vec()).push(slash);
                at += 3;
            }
            None => {
                if let Some(out) = &mut out {
                    out.push(path[at]);
                }
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986 clean-up as Envoy's (that of Chromium's URL library): `\` is `/`, unreserved escapes are decoded but for the
/// dot, dot segments are removed. `None` where it is not a path.
fn normalize(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        match path[at] {
            b'\\' => decoded.push(b'/'),
            b'%' => {
                let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                match (hex(path.get(at + 1)), hex(path.get(at + 2))) {
                    (Some(high), Some(low)) => {
                        let byte = u8::try_from(high * 16 + low).ok()?;
                        match byte {
                            0 => return None,
                            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => {
                                decoded.push(byte);
                            }
                            _ => decoded.extend_from_slice(&path[at..at + 3]),
                        }
                        at += 2;
                    }
                    _ => decoded.push(b'%'),
                }
            }
            byte => decoded.push(byte),
        }
        at += 1;
    }
    if !decoded.starts_with(b"/") {
        return None;
    }
    let mut out: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                let parent = memchr::memrchr(b'/', &out).unwrap_or(0);
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

fn clean_host(head: &mut RequestHead, options: &Options, facts: &Facts<'_>) {
    let mut host = head.authority.as_bytes();
    if options.strip_trailing_host_dot {
        // Before a colon it can only be before a port: no address has a dot there.
        let dot = memchr::memrchr(b'.', host);
        if let Some(dot) = dot.filter(|dot| matches!(host.get(dot + 1), None | Some(b':'))) {
            let joined = [&host[..dot], &host[dot + 1..]].concat();
            if let Ok(value) = HeaderValue::from_bytes(&joined) {
                head.authority = value;
            }
            host = head.authority.as_bytes();
        }
    }
    let strip = match options.strip_port {
        StripPort::No => false,
        StripPort::Any => true,
        StripPort::Matching => split_port(host)
            .1
            .is_some_and(|port| facts.local.is_some_and(|local| local.port() == port)),
    };
    if strip && let (name, Some(_)) = split_port(host) {
        let name = name.len();
        if let Ok(value) = HeaderValue::from_bytes(&host[..name]) {
            head.authority = value;
        }
    }
}

/// The name and the port of an authority.
fn split_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let Some(colon) = memchr::memrchr(b':', host) else {
        return (host, None);
    };
    // A colon inside the brackets of an IPv6 literal is not a port's.
    if memchr::memchr(b']', &host[colon..]).is_some() {
        return (host, None);
    }
    match std::str::from_utf8(&host[colon + 1..])
        .ok()
        .and_then(|port| port.parse().ok())
    {
        Some(port) => (&host[..colon], Some(port)),
        None => (host, None),
    }
}

#[cfg(test)]
mod tests;
