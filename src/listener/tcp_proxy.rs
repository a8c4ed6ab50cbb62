//! `envoy.filters.network.tcp_proxy`: the bytes of a connection to a host of a cluster, and back.
//!
//! One task serves both connections. Nothing is read from the client before the upstream connection stands, as in Envoy.
//! What is read walks through the network filters of the chain ([`crate::filter::network`]) and is then on its way out; a
//! side is not read while as much as the buffer limit waits for the other, or is held by a filter. The end of one side's
//! data is passed on, and the other goes on; a reset of one side resets the other.

mod closing;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _};
use tokio::time::{Instant, Sleep};

use self::closing::{Closing, Failure};
use super::bytes::{FLUSH, Outgoing, flush, poll_read_all};
use super::connection::{ServeContext, drained};
use crate::base::drain::DrainWatch;
use crate::cluster::{Cluster, ConnectError, Host, PickContext, TcpConnection};
use crate::filter::network::{ConnectionFilters, Peer, REQUESTS, Request, Walk};
use crate::generation::TcpProxy;
use crate::generation::stats::tcp as stat;
use crate::http::ResponseFlag;
use crate::http::codec::{ConnectionMeter, Io};
use crate::stream::format::LogType;
use crate::stream::network::Towards;
use crate::stream::state::{StateObject, with_object};
use crate::stream::{CloseInfo, CloseType, Stream};

/// Objects of the filter state by which filters ask for a cluster, and for a time without data in milliseconds.
const CLUSTER: &str = "envoy.tcp_proxy.cluster";
const IDLE_TIMEOUT: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";

type Connecting = Pin<Box<dyn Future<Output = Result<TcpConnection, ConnectError>> + Send>>;

enum Upstream {
    /// The filters have not let the connection pass.
    NotYet,
    Connecting {
        cluster: Arc<Cluster>,
        host: Arc<Host>,
        attempt: Connecting,
    },
    Connected(TcpConnection),
    Gone,
}

/// One connection of a client with its counterpart.
struct Session {
    context: Arc<ServeContext>,
    proxy: Arc<TcpProxy>,
    stream: Arc<Stream>,
    filters: ConnectionFilters,
    meter: Arc<ConnectionMeter>,
    client: Io,
    upstream: Upstream,
    to_upstream: Outgoing,
    to_client: Outgoing,
    /// The client has sent all.
    client_end: bool,
    /// The host has sent all.
    upstream_end: bool,
    /// The client's connection has failed behind what came of it, which goes on first; then the host's likewise.
    failed: [Option<io::Error>; 2],
    /// The client is not read, since its data are not taken.
    paused: bool,
    /// Both limits run from the moment the filters have let the connection pass.
    last_activity: Instant,
    idle: Option<Pin<Box<Sleep>>>,
    /// The time without data after which it ends.
    idle_limit: Option<Duration>,
    lifetime: Option<Pin<Box<Sleep>>>,
    /// What the gauges show of it: bytes that filters hold of the client's, and bytes on their way to it.
    buffered: (u64, u64),
    logged: bool,
}

/// Serves a connection until it ends. `stream` stands for it, and `filters` are its own. `drain`, once it starts, gives it
/// `drain_time`.
pub(super) async fn serve(
    context: Arc<ServeContext>,
    proxy: Arc<TcpProxy>,
    client: Io,
    (stream, filters): (Arc<Stream>, ConnectionFilters),
    drain: DrainWatch,
    drain_time: Duration,
) {
    proxy.stats.inc(stat::DOWNSTREAM_CX_TOTAL);
    let meter = Arc::clone(&stream.connection.meter);
    let (of, connection) = (Arc::clone(&context), Arc::clone(&stream.connection));
    let drained = || drained(&of, &connection.listener, drain_time);
    let mut session = Session {
        filters,
        context,
        stream,
        meter,
        client,
        upstream: Upstream::NotYet,
        to_upstream: Outgoing::default(),
        to_client: Outgoing::default(),
        client_end: false,
        upstream_end: false,
        failed: [None, None],
        paused: false,
        last_activity: Instant::now(),
        idle: None,
        idle_limit: None,
        lifetime: None,
        buffered: (0, 0),
        logged: false,
        proxy,
    };
    let closing = match session.walk(0) {
        Err(closing) => closing,
        Ok(()) => {
            let served = pin!(std::future::poll_fn(|cx| session.poll(cx)));
            let ended = drain.race(served, drained).await;
            ended.unwrap_or_else(Closing::abrupt)
        }
    };
    session.close(closing).await;
}

impl Session {
    fn start_limits(&mut self) {
        let config = &self.proxy.config;
        let more = config.max_duration_jitter / 100.0 * fastrand::f64();
        let lifetime = config.max_duration.map(|limit| limit.mul_f64(1.0 + more));
        self.lifetime = lifetime.map(|limit| Box::pin(tokio::time::sleep(limit)));
        self.start_idle();
    }

    fn start_idle(&mut self) {
        self.last_activity = Instant::now();
        self.idle_limit = match self.wish(IDLE_TIMEOUT).and_then(|limit| limit.parse().ok()) {
            Some(limit) => Some(Duration::from_millis(limit)),
            None => self.proxy.config.idle_timeout,
        };
        self.idle = self
            .idle_limit
            .map(|idle| Box::pin(tokio::time::sleep(idle)));
    }

    fn limit(&self) -> usize {
        self.proxy.config.buffer_limit
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Closing> {
        let mut requests = REQUESTS;
        loop {
            match self.advance(cx, &mut requests) {
                Ok(true) => {}
                Ok(false) => {
                    let held = self.filters.held().len(Towards::Upstream);
                    self.show((held as u64, self.to_client.len as u64));
                    return self.poll_limits(cx);
                }
                Err(closing) => return Poll::Ready(closing),
            }
        }
    }

    fn show(&mut self, buffered: (u64, u64)) {
        let before = std::mem::replace(&mut self.buffered, buffered);
        if before != buffered {
            let stats = &self.proxy.stats;
            stats.add(
                stat::DOWNSTREAM_CX_RX_BYTES_BUFFERED,
                buffered.0.wrapping_sub(before.0),
            );
            stats.add(
                stat::DOWNSTREAM_CX_TX_BYTES_BUFFERED,
                buffered.1.wrapping_sub(before.1),
            );
        }
    }

    /// Does what can be done; whether that was anything.
    fn advance(&mut self, cx: &mut Context<'_>, requests: &mut u32) -> Result<bool, Closing> {
        let mut moved = false;
        if *requests == 0 {
            // Plugins that keep each other going leave the worker to others now and then.
            cx.waker().wake_by_ref();
        } else if let Some(request) = self.filters.poll_request(
            cx,
            self.to_upstream.len < self.proxy.config.buffer_limit.max(1),
        ) {
            moved = true;
            *requests -= 1;
            match request {
                Request::GoOn(from) => self.walk(from)?,
                Request::Close(reason) => return Err(Closing::local(reason)),
            }
        }
        moved |= self.poll_connect(cx)?;
        moved |= self.poll_client(cx)?;
        moved |= self.poll_upstream(cx)?;
        moved |= self.poll_to_upstream(cx)?;
        moved |= self.poll_to_client(cx)?;
        Ok(moved)
    }

    /// Walks through the filters with what the client sent; behind them it goes upstream.
    fn walk(&mut self, from: usize) -> Result<(), Closing> {
        match self.filters.downstream(from, self.client_end) {
            Walk::Stopped => return Ok(()),
            Walk::Close(reason) => return Err(Closing::local(reason)),
            Walk::Passed => {}
        }
        match self.upstream {
            Upstream::NotYet => self.begin(),
            Upstream::Connecting { .. } | Upstream::Gone => Ok(()),
            Upstream::Connected(_) => {
                let data = self.filters.held().take(Towards::Upstream);
                let counts = &mut self.stream.info.lock().counts;
                counts.downstream_wire_received += data.len() as u64;
                counts.upstream_wire_sent += data.len() as u64;
                self.to_upstream.push(data);
                self.to_upstream.end |= self.client_end;
                Ok(())
            }
        }
    }

    /// Chooses the cluster.
    fn begin(&mut self) -> Result<(), Closing> {
        self.start_limits();
        let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid();
        if let Ok(id) = http::HeaderValue::try_from(id.to_string()) {
            self.stream
                .request
                .lock()
                .headers
                .insert("x-request-id", id);
        }
        let wish = self.wish(CLUSTER);
        let choose = || &**self.proxy.config.choose(fastrand::u64(..));
        let name = wish.as_deref().unwrap_or_else(choose);
        let cluster = self.context.current.load().clusters.get(name).cloned();
        let Some(cluster) = cluster else {
            self.proxy.stats.inc(stat::DOWNSTREAM_CX_NO_ROUTE);
            return Err(self.fail(ResponseFlag::NoClusterFound, Failure::NoCluster));
        };
        self.stream.info.lock().upstream.cluster = Some(Arc::clone(&cluster));
        if let Some(drop) = cluster.drop_overload() {
            let flag = if drop.unconditional {
                ResponseFlag::UnconditionalDropOverload
            } else {
                ResponseFlag::DropOverload
            };
            return Err(self.fail(flag, Failure::Overload));
        }
        self.attempt(cluster)
    }

    /// What filters ask of the proxy by an object of the filter state.
    fn wish(&self, name: &str) -> Option<Box<str>> {
        let info = self.stream.info.lock();
        let connection = &self.stream.connection.filter_state;
        let text = |object: &StateObject| String::from_utf8_lossy(&object.value).into();
        with_object(&info.filter_state, connection, name, text)
    }

    fn fail(&self, flag: ResponseFlag, failure: Failure) -> Closing {
        self.stream.info.lock().flags.set(flag);
        Closing::local(failure.reason())
    }

    /// Chooses a host and begins to connect.
    fn attempt(&mut self, cluster: Arc<Cluster>) -> Result<(), Closing> {
        let Some(host) = cluster.pick(&PickContext::default()) else {
            self.stream.info.lock().upstream.pool_ready = Some(Instant::now());
            return Err(self.fail(ResponseFlag::NoHealthyUpstream, Failure::NoHealthyUpstream));
        };
        self.stream.info.lock().attempts += 1;
        let (by, to) = (Arc::clone(&cluster), Arc::clone(&host));
        self.upstream = Upstream::Connecting {
            cluster,
            host,
            attempt: Box::pin(async move { by.connect_tcp(&to).await }),
        };
        Ok(())
    }

    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Result<bool, Closing> {
        let Upstream::Connecting { attempt, .. } = &mut self.upstream else {
            return Ok(false);
        };
        let Poll::Ready(result) = attempt.as_mut().poll(cx) else {
            return Ok(false);
        };
        let Upstream::Connecting { cluster, host, .. } =
            std::mem::replace(&mut self.upstream, Upstream::Gone)
        else {
            return Ok(false);
        };
        let attempts = {
            let mut info = self.stream.info.lock();
            let upstream = &mut info.upstream;
            match &result {
                Ok(connection) => {
                    let facts = connection.facts();
                    upstream.local = facts.local;
                    upstream.remote = facts.remote;
                    upstream.connection_id = Some(facts.id);
                    upstream.transport_failure = None;
                }
                Err(error) => {
                    let reason = error.transport_reason();
                    upstream.transport_failure = Some(reason).filter(|reason| !reason.is_empty());
                    // It had a number too, which nobody knows: what counts is that there was an attempt.
                    upstream.connection_id.get_or_insert(0);
                    if let crate::config::endpoint::Address::Socket(address) =
                        host.connect_address()
                    {
                        upstream.remote = Some(address);
                    }
                }
            }
            upstream.pool_ready = Some(Instant::now());
            upstream.host = Some(Arc::clone(&host));
            info.attempts
        };
        match result {
            Ok(connection) => {
                self.upstream = Upstream::Connected(connection);
                self.start_idle();
                Ok(true)
            }
            Err(_) if attempts < self.proxy.config.max_connect_attempts => {
                if let Some(closed) = &mut self.stream.info.lock().closed {
                    closed.earlier_hosts.push(host);
                }
                self.attempt(cluster)?;
                Ok(true)
            }
            Err(_) => {
                cluster.attempts_exceeded();
                let mut info = self.stream.info.lock();
                info.flags.set(ResponseFlag::UpstreamConnectionFailure);
                drop(info);
                Err(self.fail(ResponseFlag::UpstreamRetryLimitExceeded, Failure::Connect))
            }
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Closing> {
        if let Some(error) = self.failed[0].take() {
            return Err(Closing::by_client(&error));
        }
        if self.client_end || !matches!(self.upstream, Upstream::Connected(_)) {
            return Ok(false);
        }
        let held = self.filters.held();
        let full = self.to_upstream.len >= self.limit();
        if full != std::mem::replace(&mut self.paused, full) {
            self.proxy.stats.inc(if full {
                stat::DOWNSTREAM_FLOW_CONTROL_PAUSED_READING_TOTAL
            } else {
                stat::DOWNSTREAM_FLOW_CONTROL_RESUMED_READING_TOTAL
            });
        }
        let room = self.limit().saturating_sub(held.len(Towards::Upstream));
        if full || room == 0 {
            return Ok(false);
        }
        let (client, meter, stats) = (&mut self.client, &self.meter, &self.proxy.stats);
        let read = poll_read_all(
            room,
            |buffer| Pin::new(&mut *client).poll_read(cx, buffer),
            |data| {
                meter.add_received(data.len());
                stats.add(stat::DOWNSTREAM_CX_RX_BYTES_TOTAL, data.len() as u64);
                held.push(Towards::Upstream, data);
            },
        );
        match read {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(after)) => {
                self.client_end = after.end;
                self.failed[0] = after.failure;
            }
            Poll::Ready(Err(error)) => return Err(Closing::by_client(&error)),
        }
        self.last_activity = Instant::now();
        // As Envoy counts: what is shown again counts again.
        self.stream.info.lock().bytes_received += held.len(Towards::Upstream) as u64;
        self.walk(0)?;
        if self.client_end && self.to_client.shut {
            return Err(Closing::complete(Peer::Remote));
        }
        Ok(true)
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Result<bool, Closing> {
        if let Some(error) = self.failed[1].take() {
            return Err(self.by_upstream(&error));
        }
        let Upstream::Connected(upstream) = &mut self.upstream else {
            return Ok(false);
        };
        let held = self.filters.held();
        let limit = self.proxy.config.buffer_limit;
        let room = limit.saturating_sub(held.len(Towards::Downstream));
        if self.upstream_end || room == 0 || self.to_client.len >= limit {
            return Ok(false);
        }
        let read = poll_read_all(
            room,
            |buffer| upstream.poll_read(cx, buffer),
            |data| held.push(Towards::Downstream, data),
        );
        match read {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(after)) => {
                self.upstream_end = after.end;
                self.failed[1] = after.failure;
                if after.end && self.to_upstream.shut {
                    upstream.closed_by_peer();
                }
            }
            Poll::Ready(Err(error)) => return Err(self.by_upstream(&error)),
        }
        self.last_activity = Instant::now();
        let len = held.len(Towards::Downstream) as u64;
        {
            let counts = &mut self.stream.info.lock().counts;
            counts.upstream_wire_received += len;
            counts.downstream_wire_sent += len;
        }
        match self.filters.upstream(self.upstream_end) {
            // Both ways of the upstream connection have ended, and what is held will never go on.
            Walk::Stopped if self.upstream_end && self.to_upstream.shut => {
                return Err(Closing::without_upstream());
            }
            Walk::Stopped => {}
            Walk::Close(reason) => return Err(Closing::local(reason)),
            Walk::Passed => {
                let data = self.filters.held().take(Towards::Downstream);
                self.stream.info.lock().bytes_sent += data.len() as u64;
                self.to_client.push(data);
                self.to_client.end |= self.upstream_end;
            }
        }
        Ok(true)
    }

    /// The upstream connection failed.
    fn by_upstream(&mut self, error: &io::Error) -> Closing {
        if let Upstream::Connected(upstream) = &mut self.upstream {
            upstream.closed_by_peer();
        }
        if error.kind() != io::ErrorKind::ConnectionReset {
            return Closing::without_upstream();
        }
        let mut info = self.stream.info.lock();
        info.flags.set(ResponseFlag::UpstreamRemoteReset);
        Closing {
            downstream: CloseType::LocalReset,
            upstream: CloseType::RemoteReset,
            by_host: true,
            ..Closing::abrupt("")
        }
    }

    fn poll_to_upstream(&mut self, cx: &mut Context<'_>) -> Result<bool, Closing> {
        let (out, Upstream::Connected(upstream)) = (&mut self.to_upstream, &mut self.upstream)
        else {
            return Ok(false);
        };
        if out.shut || (out.len == 0 && !out.end) {
            return Ok(false);
        }
        let before = out.len;
        let mut sent = out.poll(|data| upstream.poll_write(cx, data));
        if sent.is_ready() && out.end && matches!(sent, Poll::Ready(Ok(()))) {
            sent = upstream.poll_shutdown(cx);
            out.shut = sent.is_ready();
        }
        let moved = out.len < before || out.shut;
        if moved {
            self.last_activity = Instant::now();
        }
        match sent {
            Poll::Ready(Err(error)) => Err(self.by_upstream(&error)),
            // As where the upstream ends second.
            Poll::Ready(Ok(())) if out.shut && self.upstream_end && !self.to_client.end => {
                Err(Closing::without_upstream())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(moved),
        }
    }

    fn poll_to_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Closing> {
        let out = &mut self.to_client;
        if out.shut || (out.len == 0 && !out.end) {
            return Ok(false);
        }
        let (client, meter, stats) = (&mut self.client, &self.meter, &self.proxy.stats);
        let before = out.len;
        let mut sent = out.poll(|data| {
            let written = ready!(Pin::new(&mut *client).poll_write(cx, data))?;
            meter.add_sent(written);
            stats.add(stat::DOWNSTREAM_CX_TX_BYTES_TOTAL, written as u64);
            Poll::Ready(Ok(written))
        });
        if out.end && matches!(sent, Poll::Ready(Ok(()))) {
            sent = Pin::new(client).poll_shutdown(cx);
            out.shut = sent.is_ready();
        }
        let moved = out.len < before || out.shut;
        if moved {
            self.last_activity = Instant::now();
        }
        match sent {
            Poll::Ready(Err(error)) => Err(Closing::by_client(&error)),
            Poll::Ready(Ok(())) if self.to_client.shut && self.client_end => {
                Err(Closing::complete(Peer::Local))
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(moved),
        }
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Closing> {
        if let Some(lifetime) = &mut self.lifetime
            && lifetime.as_mut().poll(cx).is_ready()
        {
            let stats = &self.proxy.stats;
            stats.inc(stat::MAX_DOWNSTREAM_CONNECTION_DURATION);
            let mut info = self.stream.info.lock();
            info.flags.set(ResponseFlag::DurationTimeout);
            return Poll::Ready(Closing::abrupt("max_connection_duration_reached"));
        }
        let (Some(idle), Some(limit)) = (&mut self.idle, self.idle_limit) else {
            return Poll::Pending;
        };
        loop {
            ready!(idle.as_mut().poll(cx));
            // Moved on now and then, not with every read.
            let end = self.last_activity + limit;
            if end <= Instant::now() {
                self.proxy.stats.inc(stat::IDLE_TIMEOUT);
                return Poll::Ready(Closing::abrupt("tcp_session_idle_timeout"));
            }
            idle.as_mut().reset(end);
        }
    }

    async fn close(mut self, closing: Closing) {
        let patience = self.idle_limit.unwrap_or(FLUSH);
        if closing.flush && self.to_client.len > 0 {
            let (client, meter, stats) = (&mut self.client, &self.meter, &self.proxy.stats);
            flush(&mut self.to_client, patience, |cx, data| {
                let written = ready!(Pin::new(&mut *client).poll_write(cx, data))?;
                meter.add_sent(written);
                stats.add(stat::DOWNSTREAM_CX_TX_BYTES_TOTAL, written as u64);
                Poll::Ready(Ok(written))
            })
            .await;
        }
        if closing.downstream == CloseType::LocalReset {
            self.client.reset_on_close();
        }
        self.filters.closed(closing.peer);
        self.note(&closing);
        self.log();
        let Upstream::Connected(mut upstream) =
            std::mem::replace(&mut self.upstream, Upstream::Gone)
        else {
            return;
        };
        if closing.upstream == CloseType::LocalReset {
            upstream.reset_on_close();
        }
        if !closing.flush_upstream || self.to_upstream.len == 0 {
            return;
        }
        // The client has its answer, and the host has not yet all that the client sent.
        let mut out = std::mem::take(&mut self.to_upstream);
        let stats = Arc::clone(&self.proxy.stats);
        drop(self);
        stats.inc(stat::UPSTREAM_FLUSH_TOTAL);
        stats.inc(stat::UPSTREAM_FLUSH_ACTIVE);
        flush(&mut out, patience, |cx, data| upstream.poll_write(cx, data)).await;
        stats.dec(stat::UPSTREAM_FLUSH_ACTIVE);
    }

    /// What the log says of the end.
    fn note(&self, closing: &Closing) {
        let connected = matches!(self.upstream, Upstream::Connected(_));
        let mut info = self.stream.info.lock();
        let closed = info.closed.get_or_insert_with(Box::<CloseInfo>::default);
        let reason = Some(closing.reason).filter(|reason| !reason.is_empty());
        closed.downstream_reason = reason.map(Box::from);
        // What has ended by itself is not closed by us.
        let by_us =
            connected && closing.peer == Peer::Local && !closing.by_host && !closing.flush_upstream;
        closed.upstream_reason = by_us.then(|| {
            reason
                .unwrap_or("closing_upstream_tcp_connection_due_to_downstream_local_close")
                .into()
        });
        closed.downstream = closing.downstream;
        closed.upstream = if closing.upstream == CloseType::LocalReset {
            // Envoy tells of its own reset on the client's side alone.
            CloseType::Normal
        } else {
            closing.upstream
        };
    }

    fn log(&mut self) {
        if !std::mem::replace(&mut self.logged, true) {
            self.stream.info.lock().end.get_or_insert_with(Instant::now);
            self.proxy
                .access_log
                .log_as(&self.stream, LogType::TcpConnectionEnd);
            self.proxy.plugin_logs.log_connection(&self.stream);
        }
    }
}

impl Drop for Session {
    /// Where the connection was cut, the worker is gone or the task panicked, the record is written all the same.
    fn drop(&mut self) {
        self.show((0, 0));
        self.filters.cut();
        let mut info = self.stream.info.lock();
        info.abandoned = true;
        if let (Some(reason), Some(closed)) = (self.meter.closed(), &mut info.closed) {
            closed
                .downstream_reason
                .get_or_insert_with(|| reason.into());
        }
        drop(info);
        self.log();
    }
}
