//! One request to one host: a pooled connection or a new one, the request, the head of its answer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Version};
use http_body::{Body as _, Frame, SizeHint};

use super::connect::{self, ConnectError, Connected};
use super::connection::Connection;
use super::pool::{Lease, LeaseOrWait, Shared, WorkerPool};
use super::stats::cluster as stat;
use super::{Cluster, Host, Live};
use crate::base::task;
use crate::config;
use crate::config::cluster::{Http1Options, Http2Options, UpstreamProtocol};
use crate::http::codec::client::{Http1, Http2, SendError};
use crate::http::{Body, BodyError, Lend, ReplyReason, RequestHead, ResponseHead};

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
#[derive(Debug)]
pub struct SendOptions<O = ()> {
    /// Hears of the connection before there is an answer.
    pub observer: O,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { observer: () }
    }
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
#[derive(Debug, thiserror::Error)]
pub enum UpstreamErrorKind {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(ConnectError),
    /// The connection closed before the answer's head.
    #[error("the connection closed before an answer")]
    Closed,
    /// The peer reset the stream (HTTP/2).
    #[error("the peer reset the stream")]
    Reset,
    /// The peer promises that it did nothing with the request (HTTP/2).
    #[error("the peer refused the stream")]
    Refused,
    /// The answer is not HTTP; with Envoy's details where it has them.
    #[error("the answer is malformed: {0}")]
    Protocol(std::borrow::Cow<'static, str>),
    /// Too many connections or requests.
    #[error("too many connections or requests")]
    Overflow,
    /// A CONNECT with a path and without a protocol, which no codec can write: plugins can make one.
    #[error("a CONNECT cannot be sent")]
    MissingProtocol,
    /// Our own request body failed.
    #[error("the request's body failed: {0}")]
    RequestBody(BodyError),
}

impl UpstreamError {
    fn connecting(error: ConnectError) -> Self {
        Self {
            kind: UpstreamErrorKind::Connect(error),
            connection: None,
        }
    }

    fn sending(error: SendError, connection: UpstreamConnection) -> Self {
        let kind = match error {
            SendError::Closed { .. } => UpstreamErrorKind::Closed,
            SendError::Protocol(details) => UpstreamErrorKind::Protocol(details),
            SendError::Reset => UpstreamErrorKind::Reset,
            SendError::Refused => UpstreamErrorKind::Refused,
            SendError::RequestBody(error) => UpstreamErrorKind::RequestBody(error),
        };
        Self {
            kind,
            connection: Some(connection),
        }
    }

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
            UpstreamErrorKind::Reset | UpstreamErrorKind::Refused => ReplyReason::UpstreamReset,
            UpstreamErrorKind::Protocol(_) => ReplyReason::UpstreamProtocolError,
            UpstreamErrorKind::Overflow => ReplyReason::Overflow,
            UpstreamErrorKind::MissingProtocol => ReplyReason::MissingProtocol,
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
    /// Sends a request to `host` on a connection of this worker's pool, and waits for the head of the answer.
    /// Dropping the future, or the answer's body before its end, gives the attempt up.
    ///
    /// A safe request (`GET` and the like) without a body is sent once more, on a fresh connection, where the pooled one turns
    /// out to have been closed before a byte of an answer: the peer's idle timeout then met our use. Envoy answers 503 here
    /// (`docs/decisions/0011`).
    pub async fn send<O: Observer>(
        self: &Arc<Self>,
        host: &Arc<Host>,
        head: impl Lend<RequestHead> + Send + Sync,
        body: Body,
        options: SendOptions<O>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        // That of a tunnel has no path, or a protocol.
        let unsendable = |head: &RequestHead| {
            head.method == Method::CONNECT && !head.path.is_empty() && head.upgrade.is_none()
        };
        if head.lend(unsendable) {
            // Envoy's codec finds that, when there is one for the request.
            self.reach(host).await?;
            return Err(UpstreamError {
                kind: UpstreamErrorKind::MissingProtocol,
                connection: None,
            });
        }
        match &self.config.protocol {
            UpstreamProtocol::Http1(http1) => {
                self.send_http1(host, head, body, options, http1).await
            }
            UpstreamProtocol::Downstream(http1, _)
                if head.lend(|head| head.version < Version::HTTP_2) =>
            {
                self.send_http1(host, head, body, options, http1).await
            }
            UpstreamProtocol::Http2(http2) | UpstreamProtocol::Downstream(_, http2) => {
                self.send_http2(host, head, body, options, http2).await
            }
        }
    }

    /// Whether this worker's pool has a connection to `host` for a request.
    pub fn is_connected(&self, host: &Arc<Host>) -> bool {
        self.pools.here().is_ready(host)
    }

    /// Waits for a connection to `host` on which a request could be sent, and leaves it to the pool.
    ///
    /// # Errors
    /// What [`Cluster::send`] would fail with before it sends anything.
    pub async fn reach(self: &Arc<Self>, host: &Arc<Host>) -> Result<(), UpstreamError> {
        let pool = self.pools.here();
        match &self.config.protocol {
            UpstreamProtocol::Http1(http1) | UpstreamProtocol::Downstream(http1, _) => {
                let (codec, connection) = match pool.take(host) {
                    Some(ready) => ready,
                    None => self.connect_http1(pool, host, http1).await?,
                };
                pool.put(codec, connection, self.config.idle_timeout);
            }
            UpstreamProtocol::Http2(http2) => drop(self.lease(pool, host, http2).await?),
        }
        Ok(())
    }

    async fn send_http1<O: Observer>(
        self: &Arc<Self>,
        host: &Arc<Host>,
        head: impl Lend<RequestHead> + Send + Sync,
        body: Body,
        mut options: SendOptions<O>,
        http1: &Http1Options,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let pool = self.pools.here();
        let mut replay = body.is_end_stream() && head.lend(|head| head.method.is_safe());
        let mut body = Some(body);
        let mut pooled = pool.take(host);
        loop {
            let (codec, mut connection) = match pooled.take() {
                Some(ready) => ready,
                // Boxed: a request on a pooled connection does not carry the room for this.
                None => Box::pin(self.connect_http1(pool, host, http1)).await?,
            };
            let facts = connection.begin();
            options.observer.connected(&facts);
            let exchange = Exchange {
                connection: Some(connection),
                pool: Arc::clone(pool),
                cluster: Arc::clone(self),
            };
            let body = body.take().unwrap_or_default();
            let sent = codec
                .send(&head, body, move |codec| exchange.finish(codec))
                .await;
            match sent {
                Ok((head, body)) => {
                    return Ok(UpstreamResponse {
                        head,
                        body,
                        connection: facts,
                    });
                }
                // The second turn takes a fresh connection.
                Err(SendError::Closed { reused: true }) if replay => replay = false,
                Err(error) => return Err(UpstreamError::sending(error, facts)),
            }
        }
    }

    async fn connect_http1(
        self: &Arc<Self>,
        pool: &Arc<WorkerPool>,
        host: &Arc<Host>,
        http1: &Http1Options,
    ) -> Result<(Http1, Box<Connection>), UpstreamError> {
        pool.keep();
        let mut pending = Pending::new(&self.live, host);
        let result = self.connect(host, Version::HTTP_11).await;
        pending.resolved(result.is_ok());
        let (connected, connection) = result.map_err(UpstreamError::connecting)?;
        let meter = Arc::clone(connection.meter());
        Ok((Http1::new(connected.io, http1, meter), connection))
    }

    async fn connect(
        &self,
        host: &Arc<Host>,
        protocol: Version,
    ) -> Result<(Connected, Box<Connection>), ConnectError> {
        let mut connection = Connection::new(&self.live, host, protocol);
        match connect::connect(&host.connect_address(), &self.config).await {
            Ok(connected) => {
                connection.established(&connected);
                Ok((connected, connection))
            }
            Err(error) => {
                connection.failed(&error);
                Err(error)
            }
        }
    }

    async fn send_http2<O: Observer>(
        self: &Arc<Self>,
        host: &Arc<Host>,
        head: impl Lend<RequestHead> + Send + Sync,
        body: Body,
        mut options: SendOptions<O>,
        http2: &Http2Options,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let pool = self.pools.here();
        let mut lease = self.lease(pool, host, http2).await?;
        lease.begin();
        let shared = Arc::clone(lease.shared());
        let facts = shared.connection.lock().begin();
        options.observer.connected(&facts);
        let stream = StreamGuard {
            lease,
            pool: Arc::clone(pool),
            live: Arc::clone(&self.live),
            complete: false,
        };
        if stream.is_used_up(&self.config) {
            pool.forget(&shared);
        }
        match shared.http2.send(head.lend(Clone::clone), body).await {
            Ok((head, body)) => Ok(UpstreamResponse {
                head,
                body: stream.track(body),
                connection: facts,
            }),
            Err(error) => {
                stream.failed(&error);
                Err(UpstreamError::sending(error, facts))
            }
        }
    }

    /// Room for a stream on a connection of the pool, or on a new one.
    async fn lease(
        self: &Arc<Self>,
        pool: &Arc<WorkerPool>,
        host: &Arc<Host>,
        http2: &Http2Options,
    ) -> Result<Lease, UpstreamError> {
        let (receiver, first) = match pool.lease(host, self.requests_per_connection()) {
            LeaseOrWait::Lease(lease) => return Ok(lease),
            LeaseOrWait::Wait(receiver, first) => (receiver, first),
        };
        let mut pending = Pending::new(&self.live, host);
        if first {
            pool.keep();
            let connect =
                Arc::clone(self).connect_http2(Arc::clone(pool), Arc::clone(host), http2.clone());
            // A task of its own: others wait for it too, and must not lose it with this request.
            drop(task::spawn("upstream-connect", connect));
        }
        let result = receiver.await.unwrap_or(Err(ConnectError::Handshake(
            "the connection was given up".into(),
        )));
        pending.resolved(result.is_ok());
        result.map_err(UpstreamError::connecting)
    }

    /// How many requests one connection may have.
    fn requests_per_connection(&self) -> usize {
        let limit = self.config.max_requests_per_connection;
        limit.map_or(usize::MAX, |limit| limit as usize)
    }

    async fn connect_http2(
        self: Arc<Self>,
        pool: Arc<WorkerPool>,
        host: Arc<Host>,
        options: Http2Options,
    ) {
        loop {
            let shared = self.handshake(&host, &options).await;
            let made = shared.as_ref().ok().cloned();
            let again = pool.connected(&host, self.requests_per_connection(), shared);
            if let Some(shared) = made {
                let closed = shared.http2.closed();
                let (pool, shared) = (Arc::downgrade(&pool), Arc::downgrade(&shared));
                // Keeps neither alive: the connection closes when the pool and the last stream have let go of it.
                drop(task::spawn("upstream-http2", async move {
                    closed.await;
                    if let (Some(pool), Some(shared)) = (pool.upgrade(), shared.upgrade()) {
                        shared.connection.lock().went_away();
                        pool.forget(&shared);
                    }
                }));
            }
            if !again {
                return;
            }
        }
    }

    async fn handshake(
        &self,
        host: &Arc<Host>,
        options: &Http2Options,
    ) -> Result<Arc<Shared>, ConnectError> {
        let (connected, connection) = self.connect(host, Version::HTTP_2).await?;
        let meter = Arc::clone(connection.meter());
        match Http2::handshake(connected.io, options, meter).await {
            Ok(http2) => Ok(Shared::new(
                http2,
                connection,
                self.config.idle_timeout,
                self.requests_per_connection(),
            )),
            Err(error) => Err(ConnectError::Handshake(error.to_string().into())),
        }
    }
}

/// A request that waits for a connection.
pub(super) struct Pending<'a> {
    live: &'a Live,
    host: &'a Host,
    resolved: bool,
}

impl<'a> Pending<'a> {
    pub(super) fn new(live: &'a Live, host: &'a Host) -> Self {
        let stats = &live.stats.set;
        stats.inc(stat::UPSTREAM_RQ_PENDING_TOTAL);
        stats.inc(stat::UPSTREAM_RQ_PENDING_ACTIVE);
        host.stats.rq_pending_active.fetch_add(1, Relaxed);
        Self {
            live,
            host,
            resolved: false,
        }
    }

    pub(super) fn resolved(&mut self, ready: bool) {
        self.resolved = true;
        if !ready {
            self.live
                .stats
                .set
                .inc(stat::UPSTREAM_RQ_PENDING_FAILURE_EJECT);
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let stats = &self.live.stats.set;
        if !self.resolved {
            stats.inc(stat::UPSTREAM_RQ_CANCELLED);
        }
        stats.dec(stat::UPSTREAM_RQ_PENDING_ACTIVE);
        self.host.stats.rq_pending_active.fetch_sub(1, Relaxed);
    }
}

/// A request on an HTTP/1 connection; lives in the codec until both messages have ended.
struct Exchange {
    connection: Option<Box<Connection>>,
    pool: Arc<WorkerPool>,
    cluster: Arc<Cluster>,
}

impl Exchange {
    /// Both messages have ended and the connection may serve another request.
    fn finish(mut self, codec: Http1) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        connection.end();
        let config = &self.cluster.config;
        match config.max_requests_per_connection {
            Some(limit) if connection.requests() >= u64::from(limit) => connection.used_up(),
            _ => self.pool.put(codec, connection, config.idle_timeout),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.end();
            connection.lost();
        }
    }
}

/// A stream on an HTTP/2 connection.
#[derive(Debug)]
struct StreamGuard {
    lease: Lease,
    pool: Arc<WorkerPool>,
    live: Arc<Live>,
    complete: bool,
}

impl StreamGuard {
    fn is_used_up(&self, config: &config::Cluster) -> bool {
        let mut connection = self.lease.shared().connection.lock();
        let used_up = config
            .max_requests_per_connection
            .is_some_and(|limit| connection.requests() >= u64::from(limit));
        if used_up {
            connection.used_up();
        }
        used_up
    }

    fn failed(mut self, error: &SendError) {
        self.complete = true;
        match error {
            SendError::Reset | SendError::Refused => {
                self.live.stats.set.inc(stat::UPSTREAM_RQ_RX_RESET);
            }
            SendError::RequestBody(_) => self.live.stats.set.inc(stat::UPSTREAM_RQ_TX_RESET),
            SendError::Closed { .. } | SendError::Protocol(_) => {}
        }
    }

    fn track(mut self, body: Body) -> Body {
        if body.is_end_stream() {
            self.complete = true;
            return body;
        }
        Body::new(Tracked {
            body,
            guard: Some(self),
        })
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if !self.complete {
            self.live.stats.set.inc(stat::UPSTREAM_RQ_TX_RESET);
        }
        let shared = self.lease.shared();
        shared.connection.lock().end();
        if shared.http2.is_closed() {
            self.pool.forget(shared);
        }
    }
}

/// The body of an HTTP/2 answer, which tells when the stream has ended.
#[derive(Debug)]
struct Tracked {
    body: Body,
    guard: Option<StreamGuard>,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let reset = matches!(frame, Some(Err(_)));
        if (frame.is_none() || reset || self.body.is_end_stream())
            && let Some(mut guard) = self.guard.take()
        {
            guard.complete = true;
            if reset {
                guard.live.stats.set.inc(stat::UPSTREAM_RQ_RX_RESET);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
