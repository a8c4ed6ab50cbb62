//! One downstream connection: which filter chain takes it, and its life until the codec ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

use super::http::HttpConnection;
use super::server_state::ServerState;
use super::stats::{http, socket, worker};
use crate::base::{PerWorker, WorkerCell};
use crate::generation::chain_match::ConnectionFacts;
use crate::generation::{CurrentGeneration, HttpConnectionManager, LiveChain, LiveListener};
use crate::http::codec::server::{self, ConnectionEnd};
use crate::http::codec::{ConnectionMeter, Io};
use crate::stream::ConnectionInfo;
use crate::telemetry::metrics::{Registry, StatSet};

/// What every connection of a process shares.
#[derive(Debug)]
pub struct ServeContext {
    /// Where the configuration of the moment is.
    pub current: Arc<CurrentGeneration>,
    /// All metrics.
    pub registry: Registry,
    /// Drain and health.
    pub state: Arc<ServerState>,
    /// `node.cluster`.
    pub node_cluster: Box<str>,
    /// `node.id`.
    pub node_id: Box<str>,
    /// This machine's own address.
    pub own_address: IpAddr,
    /// `%CONNECTION_ID%` of the next connection.
    next_connection: AtomicU64,
    /// The `date` header of the second, by worker.
    pub(super) dates: PerWorker<WorkerCell<super::http::Date>>,
}

impl ServeContext {
    /// For a process that is called `node_id` in `node_cluster`.
    pub fn new(
        current: Arc<CurrentGeneration>,
        registry: Registry,
        state: Arc<ServerState>,
        node_cluster: &str,
        node_id: &str,
    ) -> Self {
        let dates = PerWorker::new(registry.shards());
        Self {
            current,
            registry,
            state,
            node_cluster: node_cluster.into(),
            node_id: node_id.into(),
            own_address: own_address(),
            next_connection: AtomicU64::new(0),
            dates,
        }
    }
}

/// The address by which this machine would reach another: what Envoy puts for a loopback peer. No packet is sent.
fn own_address() -> IpAddr {
    let probe = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        // TEST-NET-1: routed by default routes, owned by nobody.
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    };
    probe().map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

/// Counts a connection while it lives.
struct Counted<'a> {
    listener: &'a LiveListener,
    hcm: Option<Arc<StatSet>>,
    http2: bool,
    begin: Instant,
}

impl<'a> Counted<'a> {
    fn new(listener: &'a LiveListener) -> Self {
        listener.stats.inc(socket::DOWNSTREAM_CX_TOTAL);
        listener.stats.inc(socket::DOWNSTREAM_CX_ACTIVE);
        if let Some(stats) = listener.worker_stats() {
            stats.inc(worker::DOWNSTREAM_CX_TOTAL);
            stats.inc(worker::DOWNSTREAM_CX_ACTIVE);
        }
        Self { listener, hcm: None, http2: false, begin: Instant::now() }
    }

    fn managed_by(&mut self, hcm: &HttpConnectionManager) {
        hcm.stats.inc(http::DOWNSTREAM_CX_TOTAL);
        hcm.stats.inc(http::DOWNSTREAM_CX_ACTIVE);
        self.hcm = Some(Arc::clone(&hcm.stats));
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let length = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.listener.stats.dec(socket::DOWNSTREAM_CX_ACTIVE);
        self.listener.stats.inc(socket::DOWNSTREAM_CX_DESTROY);
        self.listener.stats.record(socket::DOWNSTREAM_CX_LENGTH_MS, length);
        if let Some(stats) = self.listener.worker_stats() {
            stats.dec(worker::DOWNSTREAM_CX_ACTIVE);
        }
        if let Some(stats) = &self.hcm {
            stats.dec(http::DOWNSTREAM_CX_ACTIVE);
            stats.inc(http::DOWNSTREAM_CX_DESTROY);
            stats.record(http::DOWNSTREAM_CX_LENGTH_MS, length);
            let (total, active) = if self.http2 {
                (http::DOWNSTREAM_CX_HTTP2_TOTAL, http::DOWNSTREAM_CX_HTTP2_ACTIVE)
            } else {
                (http::DOWNSTREAM_CX_HTTP1_TOTAL, http::DOWNSTREAM_CX_HTTP1_ACTIVE)
            };
            let _ = (total, active);
        }
    }
}

/// Serves a connection that was accepted for the listener called `listener`, until it ends.
pub(super) async fn serve(
    context: Arc<ServeContext>,
    listener: Arc<str>,
    io: Io,
    remote: Option<SocketAddr>,
) {
    let local = io.local_addr();
    // Nothing of this Generation may be held while the connection idles but what survives it anyway.
    let Some((live, chain, hcm)) = admit(&context, &listener, local, remote) else { return };
    let mut counted = Counted::new(&live);
    let Some((chain, hcm)) = chain.zip(hcm) else {
        live.stats.inc(socket::NO_FILTER_CHAIN_MATCH);
        return;
    };
    counted.managed_by(&hcm);
    let info = Arc::new(ConnectionInfo {
        id: context.next_connection.fetch_add(1, Relaxed),
        remote,
        local,
        listener,
        filter_chain: chain.config.name.clone(),
        direction: live.config.direction,
        listener_metadata: live.config.metadata.clone(),
        accepted: Instant::now(),
    });
    let (codec, options) = (chain.config.http.codec, Arc::clone(&hcm.config.options));
    let drain = chain.drain.watch();
    let meter = Arc::new(ConnectionMeter::default());
    let stats = Arc::clone(&hcm.stats);
    let handler = HttpConnection::new(Arc::clone(&context), info, hcm, Arc::clone(&meter));
    let mut deadline = chain.drain.watch();
    drop(chain);
    let served = server::serve(io, codec, options, handler, drain, Arc::clone(&meter));
    let drain_time = context.state.drain_time();
    let end = tokio::select! {
        end = served => end,
        () = async {
            deadline.draining().await;
            tokio::time::sleep(drain_time).await;
        } => ConnectionEnd::Drained,
    };
    match end {
        ConnectionEnd::Remote => stats.inc(http::DOWNSTREAM_CX_DESTROY_REMOTE),
        ConnectionEnd::Idle => stats.inc(http::DOWNSTREAM_CX_IDLE_TIMEOUT),
        ConnectionEnd::Duration => stats.inc(http::DOWNSTREAM_CX_MAX_DURATION_REACHED),
        ConnectionEnd::Drained => stats.inc(http::DOWNSTREAM_CX_DRAIN_CLOSE),
        ConnectionEnd::Protocol(_) => stats.inc(http::DOWNSTREAM_CX_PROTOCOL_ERROR),
        ConnectionEnd::Local => {}
    }
    if end != ConnectionEnd::Remote {
        stats.inc(http::DOWNSTREAM_CX_DESTROY_LOCAL);
    }
    stats.add(http::DOWNSTREAM_CX_RX_BYTES_TOTAL, meter.received());
    stats.add(http::DOWNSTREAM_CX_TX_BYTES_TOTAL, meter.sent());
}

type Admitted = (Arc<LiveListener>, Option<Arc<LiveChain>>, Option<Arc<HttpConnectionManager>>);

/// The listener and the chain that take the connection, of the Generation of this moment.
fn admit(
    context: &ServeContext,
    listener: &str,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
) -> Option<Admitted> {
    let generation = context.current.load();
    let live = generation.listeners.get(listener)?;
    let chain = live.select(&ConnectionFacts {
        destination: local,
        source: remote,
        server_name: "",
        transport_protocol: "raw_buffer",
        application_protocols: &[],
    });
    let hcm = chain.map(|chain| Arc::clone(&chain.hcm));
    Some((Arc::clone(live), chain.cloned(), hcm))
}
