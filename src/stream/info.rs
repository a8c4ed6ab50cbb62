//! What is recorded of a stream and of its connection, for logs, properties and statistics.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::state::FilterState;
use crate::base::WorkerCell;
use crate::cluster::{Cluster, Host};
use crate::config::listener::TrafficDirection;
use crate::http::ResponseFlags;
use crate::http::codec::ConnectionMeter;
use crate::pb;

/// What is known of a downstream connection. Immutable, one a connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Counted from 0 in the process (`%CONNECTION_ID%`).
    pub id: u64,
    /// The peer; `None` for unix sockets.
    pub remote: Option<SocketAddr>,
    /// Our end.
    pub local: Option<SocketAddr>,
    /// The listener's name.
    pub listener: Arc<str>,
    /// The filter chain's name; may be empty.
    pub filter_chain: Box<str>,
    /// The listener's direction.
    pub direction: TrafficDirection,
    /// The listener's metadata.
    pub listener_metadata: Option<Arc<pb::Metadata>>,
    /// When it was accepted.
    pub accepted: Instant,
    /// What the codec counts, and whether the connection goes on.
    pub meter: Arc<ConnectionMeter>,
    /// Filter state that its streams share.
    pub filter_state: WorkerCell<FilterState>,
}

impl ConnectionInfo {
    /// That of a stream which has none: a call of our own, a request on a desk.
    pub fn none() -> Self {
        Self {
            id: 0,
            remote: None,
            local: None,
            listener: "".into(),
            filter_chain: "".into(),
            direction: TrafficDirection::Unspecified,
            listener_metadata: None,
            accepted: Instant::now(),
            meter: Arc::default(),
            filter_state: WorkerCell::default(),
        }
    }
}

/// Times, sizes, flags, details, upstream.
#[derive(Debug)]
pub struct StreamInfo {
    /// Wall clock at the first byte of the head (`%START_TIME%`).
    pub start: SystemTime,
    /// The same moment, for durations.
    pub begin: Instant,
    /// The last byte of the request was received.
    pub request_end: Option<Instant>,
    /// The request's first byte went upstream.
    pub upstream_first_tx: Option<Instant>,
    /// The request's last byte went upstream.
    pub upstream_last_tx: Option<Instant>,
    /// The response's first byte came from upstream.
    pub upstream_first_rx: Option<Instant>,
    /// The response's last byte came from upstream.
    pub upstream_last_rx: Option<Instant>,
    /// The response's first byte went downstream.
    pub response_begin: Option<Instant>,
    /// The response's last byte went downstream, or the stream ended otherwise.
    pub end: Option<Instant>,
    /// The client as far as it is trusted to say who it is (`x-forwarded-for`, with port 0); `None`: the peer.
    pub client: Option<SocketAddr>,
    /// Bytes of heads and on the wire.
    pub counts: ByteCounts,
    /// Request body bytes received.
    pub bytes_received: u64,
    /// Response body bytes sent.
    pub bytes_sent: u64,
    /// Response flags.
    pub flags: ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
    /// The body of a local reply (`%LOCAL_REPLY_BODY%`).
    pub local_reply_body: Option<bytes::Bytes>,
    /// The path before any rewrite (`x-envoy-original-path` semantics for logs).
    pub original_path: Option<http::HeaderValue>,
    /// The upstream side, once a cluster was chosen.
    pub upstream: UpstreamInfo,
    /// Attempts made by the router.
    pub attempts: u32,
    /// Dynamic metadata by namespace.
    pub dynamic_metadata: Option<Box<pb::Metadata>>,
    /// Filter state of the stream.
    pub filter_state: FilterState,
    /// The client went away: the end is told inside a `Drop`, where no guest may be entered.
    pub abandoned: bool,
    /// We reset the stream after its head was sent.
    pub reset: bool,
    /// A call of our own: nobody's request.
    pub own_call: bool,
    /// True for a health check of the health_check filter.
    pub health_check: bool,
    /// The codec understood nothing of the request's head: the stream's is made up.
    pub without_head: bool,
    /// The head was refused before it was routed: some of what is told of requests is not told of it.
    pub refused: Option<Refusal>,
    /// The request came as one of gRPC, whatever filters have made of it.
    pub grpc: bool,
    /// An upgrade was asked for, and may be.
    pub upgrade: bool,
    /// The router filter saw the request (`rq_total`).
    pub reached_router: bool,
    /// The response is one of our own.
    pub local_reply: bool,
    /// A filter before the terminal one answered with a head of its own (to a preflight, say).
    pub answered_by_filter: bool,
    /// Bytes of a request's body that came whole with its head, once something was waited for: Envoy reads on then, so that
    /// the request counts as complete, whoever answers it.
    pub held: Option<u64>,
    /// The status that a local reply had before it took the form of gRPC: the filters' `%RESPONSE_CODE%`.
    pub reply_status: Option<http::StatusCode>,
    /// The local reply asked for the connection to be closed after it (HTTP/1).
    pub close: bool,
    /// Of a connection that no codec reads: how it ended.
    pub closed: Option<Box<CloseInfo>>,
}

/// Who refused a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The codec.
    Codec,
    /// The connection manager: its path, its host.
    Manager,
}

/// How a connection of a TCP proxy ended, and its upstream connection.
#[derive(Debug, Default)]
pub struct CloseInfo {
    /// Why we closed it (`%DOWNSTREAM_LOCAL_CLOSE_REASON%`).
    pub downstream_reason: Option<Box<str>>,
    /// Why we closed the upstream connection (`%UPSTREAM_LOCAL_CLOSE_REASON%`).
    pub upstream_reason: Option<Box<str>>,
    /// `%DOWNSTREAM_DETECTED_CLOSE_TYPE%`.
    pub downstream: CloseType,
    /// `%UPSTREAM_DETECTED_CLOSE_TYPE%`.
    pub upstream: CloseType,
    /// The hosts that were tried before the last one (`%UPSTREAM_HOSTS_ATTEMPTED%`).
    pub earlier_hosts: Vec<Arc<Host>>,
}

/// Whether a connection ended with a reset, and whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseType {
    /// Without one.
    #[default]
    Normal,
    /// Ours.
    LocalReset,
    /// The peer's.
    RemoteReset,
}

impl CloseType {
    /// Envoy's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// Bytes of a stream beside its bodies. What no codec counts stays zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteCounts {
    /// Head and framing of the request as received, and its body.
    pub downstream_wire_received: u64,
    /// Of these, the head's names and values.
    pub downstream_header_received: u64,
    /// The response as sent.
    pub downstream_wire_sent: u64,
    /// Of these, the head's names and values.
    pub downstream_header_sent: u64,
    /// The request as sent upstream.
    pub upstream_wire_sent: u64,
    /// Of these, the head's names and values.
    pub upstream_header_sent: u64,
    /// The response as received from upstream.
    pub upstream_wire_received: u64,
    /// Of these, the head's names and values.
    pub upstream_header_received: u64,
}

/// The upstream side of a stream.
#[derive(Debug, Default)]
pub struct UpstreamInfo {
    /// The cluster.
    pub cluster: Option<Arc<Cluster>>,
    /// The host of the last attempt.
    pub host: Option<Arc<Host>>,
    /// Our end of the upstream connection.
    pub local: Option<SocketAddr>,
    /// The peer of the upstream connection.
    pub remote: Option<SocketAddr>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: Option<Box<str>>,
    /// `%UPSTREAM_PROTOCOL%`.
    pub protocol: Option<http::Version>,
    /// `%UPSTREAM_CONNECTION_ID%`.
    pub connection_id: Option<u64>,
    /// When a pooled connection was ready.
    pub pool_ready: Option<Instant>,
    /// The answer is a canary's.
    pub canary: bool,
}

impl StreamInfo {
    /// For a stream that begins now.
    #[allow(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self {
            start: SystemTime::now(),
            begin: Instant::now(),
            request_end: None,
            upstream_first_tx: None,
            upstream_last_tx: None,
            upstream_first_rx: None,
            upstream_last_rx: None,
            response_begin: None,
            end: None,
            client: None,
            counts: ByteCounts::default(),
            bytes_received: 0,
            bytes_sent: 0,
            flags: ResponseFlags::default(),
            details: None,
            termination_details: None,
            local_reply_body: None,
            original_path: None,
            upstream: UpstreamInfo::default(),
            attempts: 0,
            dynamic_metadata: None,
            filter_state: FilterState::default(),
            abandoned: false,
            reset: false,
            own_call: false,
            health_check: false,
            without_head: false,
            refused: None,
            grpc: false,
            upgrade: false,
            reached_router: false,
            answered_by_filter: false,
            local_reply: false,
            held: None,
            reply_status: None,
            close: false,
            closed: None,
        }
    }
}
