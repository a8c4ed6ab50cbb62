//! gRPC callouts: single calls, and streams that last. What comes of them is told to the root context.
//!
//! A call starts as one of HTTP does (see [`calls`](super::calls)), and does not end with the stream that asked for it
//! either. The service is a serialized `envoy.config.core.v3.GrpcService`, or a cluster's name. An answer is told in
//! pieces: what has come together is told together, as in Envoy, and more is read when the guest has returned from the
//! last of its callbacks, so that an upstream cannot fill our memory. A single call tells its message (`grpc_receive`) or its failure (`grpc_close`), a stream
//! everything, up to `grpc_close`.

mod exchange;
mod failed;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use http::{Method, StatusCode};
use prost::Message as _;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::UnboundedSender;

pub(crate) use self::exchange::{Event, Metadata};
use self::exchange::{Teller, exchange, is_grpc, replied};
pub(crate) use self::failed::Failed;
use super::calls::MAX_HEAD;
use super::headers::{add_to, authority_value, path_value, pseudo};
use super::{Guest, Outcome, Status, memory, pairs, put_u32, range};
use crate::base::task::{OwnedTask, spawn};
use crate::cluster::client::{self, Limits, Sender, Sent};
use crate::cluster::{Cluster, ClusterMap, Host as Endpoint, PickContext};
use crate::config::cluster::GrpcService;
use crate::http::grpc;
use crate::http::joined::{self, Side};
use crate::http::{Body, LocalReply, ReplyReason, RequestHead};
use crate::pb::envoy::config::core::v3 as core;
use crate::wasm::context::{Effect, Host};
use crate::wasm::meter::Quota;
use crate::wasm::payload::Charge;
use crate::wasm::vm::Message;

/// Largest message of an answer, and most bytes of a stream that wait to be sent.
const MAX_MESSAGE: usize = 16 << 20;
/// Largest serialized service.
const MAX_SERVICE: usize = 1 << 20;
/// Longest name of a service and its method, together: they are a path.
const MAX_NAMES: usize = 64 << 10;
/// What a message that waits, to be sent or to be told, counts beside its bytes.
const PIECE: usize = 128;
/// Streams that the other side has ended and the guest has not, whose tokens are remembered.
const MAX_ENDED: usize = 1024;
/// So many that were cancelled still send what they had; of more, what waits is lost.
const MAX_LEAVING: usize = 16;

/// What the running callback shows.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) initial: Option<Metadata>,
    pub(crate) message: Option<Bytes>,
    pub(crate) trailing: Option<Metadata>,
}

/// What the low bits of a token tell, as in Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Call = 1,
    Stream = 2,
}

impl Kind {
    fn of(token: u32) -> Option<Self> {
        match token & 3 {
            1 => Some(Self::Call),
            2 => Some(Self::Stream),
            _ => None,
        }
    }
}

/// The gRPC callouts of one VM.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    /// The last token of each kind: calls have 5, 9, 13, …, streams 6, 10, 14, ….
    last: [u32; 2],
    open: FxHashMap<u32, Exchange>,
    /// How many of them are under way.
    active: usize,
    /// Streams in [`State::Ended`], and some that were, the oldest first.
    ended: VecDeque<u32>,
    /// Those that failed as they were made, of which the guest has not heard.
    failing: usize,
    /// While one of these is told: how many led to those that are made now.
    depth: u32,
    /// Held by each that was cancelled and is still to send what it had sent before.
    leaving: Arc<()>,
}

#[derive(Debug)]
struct Exchange {
    /// The root context that hears of it.
    root: u32,
    state: State,
    /// A stream's way to the upstream.
    sender: Option<Sender>,
    /// The guest has said `grpc_close`.
    closed: bool,
}

#[derive(Debug)]
enum State {
    /// Waits for its VM to be adopted.
    Waiting(Box<Request>),
    /// Under way; the task ends with it.
    Running(#[allow(dead_code, reason = "held for its end")] OwnedTask),
    /// The other side has ended it.
    Ended,
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    cluster: Box<str>,
    /// Or what is answered in its place: it cannot be sent.
    head: Result<RequestHead, LocalReply>,
    body: Body,
    sent: Option<Sent>,
    limits: Limits,
    /// Largest message of the answer.
    limit: usize,
    /// What it holds of the VM's callout bytes.
    charge: Charge,
}

impl Exchange {
    fn is_active(&self) -> bool {
        !matches!(self.state, State::Ended)
    }
}

impl Exchanges {
    /// Those under way, and those whose failure is not told yet.
    pub(crate) fn len(&self) -> usize {
        self.active + self.failing
    }

    /// `failed` is about to be told.
    pub(crate) fn begin_failure(&mut self, failed: &Failed) {
        self.failing -= 1;
        self.depth = failed.depth.saturating_add(1);
    }

    /// It has been.
    pub(crate) fn end_failure(&mut self) {
        self.depth = 0;
    }

    /// The root context that hears of the call of `token`.
    pub(crate) fn root(&self, token: u32) -> Option<u32> {
        let exchange = self.open.get(&token)?;
        exchange.is_active().then_some(exchange.root)
    }

    /// That of `token`, for the root context that made it: no other of the VM knows the token.
    fn of(&mut self, root: u32, token: u32) -> Result<&mut Exchange, Status> {
        let exchange = self.open.get_mut(&token);
        let own = exchange.filter(|exchange| exchange.root == root);
        own.ok_or(Status::NotFound)
    }

    /// True for a single call, which ends with its message.
    pub(crate) fn is_single(token: u32) -> bool {
        Kind::of(token) == Some(Kind::Call)
    }

    /// The guest is about to hear the last of a stream. Unless it has closed it its token is good until it does.
    pub(crate) fn end(&mut self, token: u32) {
        if Self::is_single(token) {
            return;
        }
        let Some(exchange) = self.open.get_mut(&token) else {
            return;
        };
        if exchange.is_active() {
            self.active -= 1;
        }
        exchange.state = State::Ended;
        exchange.sender = None;
        if exchange.closed {
            return;
        }
        self.ended.push_back(token);
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
            && self.open.get(&oldest).is_some_and(|e| !e.is_active())
        {
            self.open.remove(&oldest);
        }
    }

    /// The guest has heard the last of a call.
    pub(crate) fn finish(&mut self, token: u32) {
        let closed = |exchange: &Exchange| exchange.closed;
        if Self::is_single(token) || self.open.get(&token).is_some_and(closed) {
            self.remove(token);
        }
    }

    fn insert(&mut self, token: u32, exchange: Exchange) {
        self.active += usize::from(exchange.is_active());
        self.open.insert(token, exchange);
    }

    fn remove(&mut self, token: u32) -> Option<Exchange> {
        let exchange = self.open.remove(&token)?;
        self.active -= usize::from(exchange.is_active());
        Some(exchange)
    }

    pub(super) fn cancel_root(&mut self, root: u32) {
        self.open.retain(|_, exchange| exchange.root != root);
        self.active = self.open.values().filter(|e| e.is_active()).count();
    }

    pub(super) fn cancel(&mut self) {
        self.open.clear();
        self.active = 0;
    }

    fn fresh_token(&mut self, kind: Kind) -> u32 {
        let last = &mut self.last[kind as usize - 1];
        if *last == 0 {
            *last = kind as u32;
        }
        loop {
            *last = last.wrapping_add(4);
            if !self.open.contains_key(last) {
                return *last;
            }
        }
    }
}

/// The VM is on its worker: calls that waited for that start now.
pub(super) fn adopt(host: &mut Host) {
    let clusters = &host.env.clusters.load_full();
    let open = &mut host.calls.grpc.open;
    let mut tokens: Vec<u32> = open.keys().copied().collect();
    tokens.sort_unstable();
    for token in tokens {
        let Some(exchange) = open.get_mut(&token) else {
            continue;
        };
        if !matches!(exchange.state, State::Waiting(_)) {
            continue;
        }
        let State::Waiting(request) = std::mem::replace(&mut exchange.state, State::Ended) else {
            continue;
        };
        let ready = ready(clusters, &request);
        exchange.state = start(token, *request, ready, clusters, &host.mailbox);
    }
}

/// Whom to call, or what a guest is told where that is nobody.
fn ready(clusters: &ClusterMap, request: &Request) -> Result<Ready, Vec<Event>> {
    let Some(cluster) = clusters.get(&request.cluster) else {
        let message = "Cluster not available".to_owned();
        return Err(vec![Event::Close(grpc::UNAVAILABLE, message)]);
    };
    match cluster.pick(&PickContext::default()) {
        Some(host) => Ok((Arc::clone(cluster), host)),
        None => {
            let reply = ReplyReason::NoHealthyUpstream.into();
            Err(replied(reply, request.kind, is_grpc(&request.head)))
        }
    }
}

/// What a guest is told of a request that cannot be sent and whose connection is at hand. Else that is told when there is
/// one.
fn refused((cluster, host): Ready, request: &Request) -> Result<Ready, Vec<Event>> {
    match &request.head {
        Err(reply) if cluster.is_connected(&host) => {
            Err(replied(reply.clone(), request.kind, true))
        }
        _ => Ok((cluster, host)),
    }
}

type Ready = (Arc<Cluster>, Arc<Endpoint>);

fn start(
    token: u32,
    request: Request,
    ready: Result<Ready, Vec<Event>>,
    clusters: &Arc<ClusterMap>,
    mailbox: &UnboundedSender<Message>,
) -> State {
    let clusters = Arc::clone(clusters);
    let teller = Teller {
        token,
        mailbox: mailbox.clone(),
    };
    State::Running(OwnedTask::spawn("wasm grpc callout", async move {
        match ready {
            Ok((cluster, host)) => exchange(clusters, (&cluster, &host), request, teller).await,
            Err(events) => teller.tell(events).await,
        }
    }))
}

/// Whom a guest means.
fn service(host: &Host, bytes: &[u8]) -> Result<GrpcService, Status> {
    let plain = || {
        let name = std::str::from_utf8(bytes).ok()?;
        host.env.clusters.load().get(name)?;
        Some(GrpcService {
            cluster: name.into(),
            target_uri: None,
            authority: None,
            metadata: Vec::new(),
            timeout: None,
            max_message: None,
            skip_envoy_headers: false,
        })
    };
    let refused = |reason: &dyn std::fmt::Display| {
        let plugin = &host.spec().name;
        tracing::warn!(target: "wasm", "plugin {plugin}: the service of a gRPC callout: {reason}");
        Status::BadArgument
    };
    if bytes.len() > MAX_SERVICE {
        return Err(refused(&"more than 1 MiB"));
    }
    let tell = |name: &str| {
        if let Some(probe) = &host.env.probe {
            probe.grpc(name);
        }
    };
    let Ok(proto) = core::GrpcService::decode(bytes) else {
        tell(&String::from_utf8_lossy(bytes));
        return plain().ok_or(Status::ParseFailure);
    };
    let service = GrpcService::parse(proto).map_err(|error| refused(&error))?;
    tell(service.target_uri.as_deref().unwrap_or(&service.cluster));
    if service.target_uri.is_some() {
        return Err(refused(
            &"google_grpc: not supported for callouts; use envoy_grpc",
        ));
    }
    Ok(service)
}

/// The head of a request, and how long it may take. `Err`: its path or authority cannot be sent; with what is answered.
fn head(
    service: &GrpcService,
    name: &[u8],
    method: &[u8],
    metadata: &[(&[u8], &[u8])],
    timeout: Option<Duration>,
) -> (Result<RequestHead, LocalReply>, Limits) {
    let authority = service.authority.as_deref().unwrap_or(&service.cluster);
    let mut head = RequestHead::new(Method::POST, authority, "/");
    let headers = &mut head.headers;
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = timeout {
        headers.insert(grpc::TIMEOUT, grpc::timeout(timeout));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (name, value) in &service.metadata {
        if let Some((name, value)) = field(name.as_bytes(), value.as_bytes()) {
            // Services have far fewer than a map can hold.
            let _ = headers.try_insert(name, value);
        }
    }
    let mut path = [b"/", name, b"/", method].concat();
    let mut authority = authority.as_bytes().to_vec();
    for (name, value) in metadata {
        let lower = pseudo(name);
        match lower.as_deref().unwrap_or(name) {
            // Envoy has one of these, and joins what is added to it.
            b":path" => add_to(&mut path, value),
            b":authority" | b"host" => add_to(&mut authority, value),
            [b':', ..] => {}
            name => {
                if let Some((name, value)) = field(name, value) {
                    joined::append(Side::Request, headers, name, value);
                }
            }
        }
    }
    if !service.skip_envoy_headers {
        headers.insert("x-envoy-internal", HeaderValue::from_static("true"));
    }
    let limits = Limits::take(headers, timeout.unwrap_or_default());
    let invalid = |name: &str| {
        LocalReply::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("invalid header value for: {name}"),
            format!("filter_removed_required_request_headers{{invalid_header_value_for:_{name}}}"),
        )
    };
    let Ok(path) = path_value(&path) else {
        return (Err(invalid(":path")), limits);
    };
    let Ok(authority) = authority_value(&authority) else {
        return (Err(invalid(":authority")), limits);
    };
    head.path = path;
    head.authority = authority;
    (Ok(head), limits)
}

/// A field of metadata; `None` where it is none. As gRPC asks, values of `-bin` names are sent as base64.
fn field(name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name).ok()?;
    let value = if name.as_str().ends_with("-bin") {
        HeaderValue::try_from(STANDARD.encode(value))
    } else {
        HeaderValue::from_bytes(value)
    };
    Some((name, value.ok()?))
}

/// A place in the guest's memory, and a length.
type Span = (u32, u32);

/// What the guest gives of a call and of a stream alike.
struct Target {
    upstream: Span,
    name: Span,
    method: Span,
    metadata: Span,
    token_out: u32,
}

#[allow(clippy::too_many_arguments, reason = "the ABI's")]
pub(super) fn call(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    name: u32,
    name_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    message: u32,
    message_len: u32,
    timeout: u32,
    token_out: u32,
) -> Outcome {
    let target = Target {
        upstream: (upstream, upstream_len),
        name: (name, name_len),
        method: (method, method_len),
        metadata: (metadata, metadata_len),
        token_out,
    };
    let timeout = Duration::from_millis(u64::from(timeout));
    begin(guest, &target, Some(((message, message_len), timeout)))
}

#[allow(clippy::too_many_arguments, reason = "the ABI's")]
pub(super) fn stream(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    name: u32,
    name_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    token_out: u32,
) -> Outcome {
    let target = Target {
        upstream: (upstream, upstream_len),
        name: (name, name_len),
        method: (method, method_len),
        metadata: (metadata, metadata_len),
        token_out,
    };
    begin(guest, &target, None)
}

/// Begins a call, of a message with a time limit, or without one a stream.
fn begin(guest: &mut Guest<'_>, target: &Target, message: Option<(Span, Duration)>) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let data = &*data;
    let part = |(at, len): Span| range(data, at, len);
    let upstream = part(target.upstream)?;
    let name = part(target.name)?;
    let method = part(target.method)?;
    let metadata = pairs::read(part(target.metadata)?).unwrap_or_default();
    let message = match message {
        Some((at, timeout)) => Some((part(at)?, timeout)),
        None => None,
    };
    if name.len() + method.len() > MAX_NAMES || pairs::size(&metadata) > MAX_HEAD {
        return Err(Status::BadArgument.into());
    }
    let service = service(host, upstream)?;
    // The place of the token is checked before anything is sent.
    part((target.token_out, 4))?;
    let parts = [target.upstream, target.name, target.method, target.metadata];
    let text: usize = parts.iter().map(|(_, len)| *len as usize).sum();
    let charge = host.charge_call(text + message.map_or(0, |(message, _)| message.len()))?;
    let timeout = message.map(|(_, timeout)| timeout);
    let (head, limits) = head(&service, name, method, &metadata, timeout);
    let (kind, body, way) = match message {
        Some((message, _)) => {
            let frame = grpc::frame(message).ok_or(Status::BadArgument)?;
            (Kind::Call, Body::of_unknown_length(frame), None)
        }
        None => {
            let (sender, body, sent) = client::channel(MAX_MESSAGE);
            (Kind::Stream, body, Some((sender, sent)))
        }
    };
    let (sender, sent) = way.unzip();
    let limit = service
        .max_message
        .map_or(MAX_MESSAGE, |limit| MAX_MESSAGE.min(limit as usize));
    let request = Request {
        kind,
        cluster: (*service.cluster).into(),
        head,
        body,
        sent,
        limits,
        limit,
        charge,
    };
    let token = admit(host, request, sender)?;
    put_u32(guest, target.token_out, token)?;
    Ok(())
}

/// Starts a call, or has it start with the VM. Where there is nobody to call, or a connection that will not have the
/// head, the guest learns no token, and is told of the failure nevertheless when it has returned: as in Envoy.
fn admit(host: &mut Host, request: Request, sender: Option<Sender>) -> Result<u32, Status> {
    if host.under_way() >= host.env.policy.quotas.callouts {
        host.meter().refuse(Quota::Callouts);
        return Err(Status::InternalFailure);
    }
    let token = host.calls.grpc.fresh_token(request.kind);
    let root = host.root_id;
    let state = if host.calls.is_adopted() {
        let clusters = host.env.clusters.load_full();
        let ready = ready(&clusters, &request);
        match ready.and_then(|ready| refused(ready, &request)) {
            Ok(ready) => start(token, request, Ok(ready), &clusters, &host.mailbox),
            Err(events) => {
                let depth = host.calls.grpc.depth;
                host.calls.grpc.failing += 1;
                host.count_calls();
                host.effects.push(Effect::GrpcFailed(Failed {
                    root,
                    token,
                    events,
                    depth,
                }));
                return Err(Status::InternalFailure);
            }
        }
    } else {
        // A VM may be configured before there are clusters.
        State::Waiting(Box::new(request))
    };
    let exchange = Exchange {
        root,
        state,
        sender,
        closed: false,
    };
    host.calls.grpc.insert(token, exchange);
    host.count_calls();
    Ok(token)
}

pub(super) fn send(guest: &mut Guest<'_>, token: u32, at: u32, len: u32, end: u32) -> Outcome {
    let memory = memory(guest)?;
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let message = range(data, at, len)?;
    if Kind::of(token) != Some(Kind::Stream) {
        return Err(Status::BadArgument.into());
    }
    let exchange = host.calls.grpc.of(host.root_id, token)?;
    let Some(sender) = &mut exchange.sender else {
        return Ok(());
    };
    let Some(charge) = host.payloads.charge(message.len() + PIECE) else {
        host.count_calls();
        return Err(Status::InternalFailure.into());
    };
    let frame = grpc::frame(message).ok_or(Status::BadArgument)?;
    if sender.send(charge.hold(frame), end != 0).is_err() {
        host.meter().refuse(Quota::Callouts);
        return Err(Status::InternalFailure.into());
    }
    Ok(())
}

pub(super) fn cancel(guest: &mut Guest<'_>, token: u32) -> Outcome {
    Kind::of(token).ok_or(Status::BadArgument)?;
    let host = guest.data_mut();
    host.calls.grpc.of(host.root_id, token)?;
    let exchange = host.calls.grpc.remove(token);
    host.count_calls();
    if let Some(exchange) = exchange
        && matches!(exchange.state, State::Running(_))
        && exchange.sender.as_ref().is_some_and(Sender::waits)
        && Arc::strong_count(&host.calls.grpc.leaving) <= MAX_LEAVING
    {
        // As in Envoy, what the guest has just sent leaves before the reset does, if the connection takes it: one turn brings
        // it to the connection, another one away.
        let leaving = Arc::clone(&host.calls.grpc.leaving);
        drop(spawn("wasm grpc cancel", async move {
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            drop((exchange, leaving));
        }));
    }
    Ok(())
}

/// Of a stream, only the guest's half is closed: the answer is still told.
pub(super) fn close(guest: &mut Guest<'_>, token: u32) -> Outcome {
    if Kind::of(token) != Some(Kind::Stream) {
        return cancel(guest, token);
    }
    let host = guest.data_mut();
    let exchange = host.calls.grpc.of(host.root_id, token)?;
    exchange.closed = true;
    if let Some(sender) = &mut exchange.sender {
        sender.end();
    }
    if matches!(exchange.state, State::Ended) {
        host.calls.grpc.remove(token);
    }
    Ok(())
}

#[cfg(test)]
#[path = "grpc/tests.rs"]
mod tests;
