//! One downstream connection: which filter chain takes it, and its life until the codec ends.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::filtered::{self, Filtered};
use super::http::HttpConnection;
use super::server_state::ServerState;
use super::tcp_proxy;
use crate::base::drain::{self, DrainTrigger, DrainWatch};
use crate::base::{PerWorker, WorkerCell};
use crate::config::endpoint::Address;
use crate::config::listener::TrafficDirection;
use crate::filter::network::ConnectionFilters;
use crate::generation::chain_match::ConnectionFacts;
use crate::generation::stats::{http, socket, worker};
use crate::generation::{
    CurrentGeneration, Generation, ListenerStats, LiveChain, LiveListener, LiveNetwork,
    LiveTerminal,
};
use crate::http::RequestHead;
use crate::http::codec::server::{self, ConnectionEnd};
use crate::http::codec::{ConnectionMeter, Io};
use crate::pb;
use crate::stream::{ConnectionInfo, Stream};
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
    /// `%CONNECTION_ID%` of the next connection; shared with the clusters, as in Envoy.
    pub connection_ids: Arc<AtomicU64>,
    /// The `date` header of the second, by worker.
    pub(super) dates: PerWorker<WorkerCell<super::http::Date>>,
    /// Ends all connections; watched by each of them while it is there.
    cut: DrainTrigger,
}

/// Why a connection ends that goes with the process or with its listener: Envoy's words.
const CUT: &str = "purging_socket_that_have_not_progressed_to_connections";

impl ServeContext {
    /// For a process that is called `node_id` in `node_cluster`.
    pub fn new(
        current: Arc<CurrentGeneration>,
        registry: Registry,
        state: Arc<ServerState>,
        connection_ids: Arc<AtomicU64>,
        (node_cluster, node_id): (&str, &str),
    ) -> Self {
        let dates = PerWorker::new(registry.shards());
        Self {
            current,
            registry,
            state,
            node_cluster: node_cluster.into(),
            node_id: node_id.into(),
            own_address: own_address(),
            connection_ids,
            dates,
            cut: drain::channel().0,
        }
    }

    /// Ends all connections as they are, and those that still come, and returns when they are gone: whoever hears of their
    /// ends was told.
    pub async fn cut(&self) {
        self.cut.drain();
        self.cut.unwatched().await;
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
struct Counted {
    listener: Arc<ListenerStats>,
    manager: Option<(Arc<StatSet>, Arc<ConnectionMeter>)>,
    begin: Instant,
}

impl Counted {
    fn new(listener: Arc<ListenerStats>) -> Self {
        listener.set.inc(socket::DOWNSTREAM_CX_TOTAL);
        listener
            .set
            .record(socket::CONNECTIONS_ACCEPTED_PER_SOCKET_EVENT, 1);
        listener.set.inc(socket::DOWNSTREAM_CX_ACTIVE);
        if let Some(stats) = listener.workers.get() {
            stats.inc(worker::DOWNSTREAM_CX_TOTAL);
            stats.inc(worker::DOWNSTREAM_CX_ACTIVE);
        }
        Self {
            listener,
            manager: None,
            begin: Instant::now(),
        }
    }

    fn managed(&mut self, stats: &Arc<StatSet>) -> Arc<ConnectionMeter> {
        stats.inc(http::DOWNSTREAM_CX_TOTAL);
        stats.inc(http::DOWNSTREAM_CX_ACTIVE);
        let meter = Arc::new(ConnectionMeter::default());
        self.manager = Some((Arc::clone(stats), Arc::clone(&meter)));
        meter
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let length = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.listener.set.dec(socket::DOWNSTREAM_CX_ACTIVE);
        self.listener.set.inc(socket::DOWNSTREAM_CX_DESTROY);
        self.listener
            .set
            .record(socket::DOWNSTREAM_CX_LENGTH_MS, length);
        if let Some(stats) = self.listener.workers.get() {
            stats.dec(worker::DOWNSTREAM_CX_ACTIVE);
        }
        if let Some((stats, meter)) = &self.manager {
            stats.dec(http::DOWNSTREAM_CX_ACTIVE);
            stats.inc(http::DOWNSTREAM_CX_DESTROY);
            stats.record(http::DOWNSTREAM_CX_LENGTH_MS, length);
            stats.add(http::DOWNSTREAM_CX_RX_BYTES_TOTAL, meter.received());
            stats.add(http::DOWNSTREAM_CX_TX_BYTES_TOTAL, meter.sent());
        }
    }
}

/// Where connections come in: whose sockets they were accepted from.
#[derive(Debug)]
pub(super) struct Entrance {
    /// The listener's name.
    pub(super) listener: Arc<str>,
    /// The address as configured; `None` where the system chose the port.
    pub(super) place: Option<Address>,
}

impl Entrance {
    /// The listener that has the address. Sockets change hands a moment after the Generation does.
    fn listener<'a>(&self, generation: &'a Generation) -> Option<&'a Arc<LiveListener>> {
        let named = generation.listeners.get(&self.listener);
        let Some(place) = &self.place else {
            return named;
        };
        let has_it = |live: &&Arc<LiveListener>| live.config.addresses.contains(place);
        let heir = || {
            let mut others = generation.listeners.values();
            others.find(|live| live.config.bind_to_port && has_it(live))
        };
        named.filter(has_it).or_else(heir).or(named)
    }
}

/// Serves a connection that was accepted at `entrance`, until it ends.
pub(super) async fn serve(
    context: Arc<ServeContext>,
    entrance: Arc<Entrance>,
    io: Io,
    remote: Option<SocketAddr>,
) {
    // Kept until all else of the connection is gone.
    let cut = context.cut.watch();
    if cut.is_draining() {
        return;
    }
    let local = io.local_addr();
    // Nothing of this Generation is held while the connection idles but what survives updates anyway.
    let Some((listener, stats, chain)) = admit(&context, &entrance, local, remote) else {
        return;
    };
    drop(entrance);
    let mut counted = Counted::new(stats);
    let Some((chain, drain, direction, metadata)) = chain else {
        counted.listener.set.inc(socket::NO_FILTER_CHAIN_MATCH);
        return;
    };
    let meter = match &chain.terminal {
        LiveTerminal::Http(hcm) => counted.managed(&hcm.records.http),
        LiveTerminal::Tcp(_) => Arc::default(),
    };
    let info = Arc::new(ConnectionInfo {
        id: context.connection_ids.fetch_add(1, Relaxed),
        remote,
        local,
        listener,
        filter_chain: chain.identity.name.clone(),
        direction,
        listener_metadata: metadata,
        accepted: Instant::now(),
        meter: Arc::clone(&meter),
        filter_state: Default::default(),
    });
    let mut served = pin!(serve_chain(context, io, info, chain, drain));
    let cut = cut.race(served.as_mut(), || std::future::ready(()));
    if cut.await.is_err() {
        meter.set_closed(CUT);
    }
}

/// Serves it with its chain.
async fn serve_chain(
    context: Arc<ServeContext>,
    io: Io,
    info: Arc<ConnectionInfo>,
    chain: Arc<LiveChain>,
    drain: DrainWatch,
) {
    let meter = Arc::clone(&info.meter);
    let drain_time = context.state.drain_time();
    let hcm = match &chain.terminal {
        LiveTerminal::Http(hcm) => hcm,
        LiveTerminal::Tcp(proxy) => {
            let proxy = Arc::clone(proxy);
            let filters = filters_of(&chain.network, &info);
            drop(chain);
            // Boxed, lest connections that speak HTTP are as large.
            let served = tcp_proxy::serve(context, proxy, io, filters, drain, drain_time);
            return Box::pin(served).await;
        }
    };
    let stats = Arc::clone(&hcm.records.http);
    let codec = hcm.config.codec;
    let options = Arc::clone(&hcm.stream.options);
    let deadline = drain.clone();
    let of = (Arc::clone(&context), Arc::clone(&info));
    let network = Some(&chain.network).filter(|network| !network.filters.is_empty());
    let filters = network.map(|network| filters_of(network, &info));
    let handler = HttpConnection::new(Arc::clone(&context), info, &chain, hcm);
    let drained = handler.drained();
    drop(chain);
    let end = match filters {
        None => {
            let served = pin!(server::serve(io, codec, options, handler, drain, meter));
            until(served, &deadline, drain_time, &of).await
        }
        Some((stream, filters)) => {
            let patience = options.delayed_close_timeout;
            let filtered = Filtered::new(io, stream, filters);
            let served = server::serve(filtered.io(), codec, options, handler, drain, meter);
            let served = Box::pin(async move {
                let served = pin!(served);
                until(served, &deadline, drain_time, &of).await
            });
            Box::pin(filtered::serve(filtered, served, patience)).await
        }
    };
    stats.inc(match &end {
        ConnectionEnd::Remote => http::DOWNSTREAM_CX_DESTROY_REMOTE,
        _ => http::DOWNSTREAM_CX_DESTROY_LOCAL,
    });
    match end {
        ConnectionEnd::Idle => stats.inc(http::DOWNSTREAM_CX_IDLE_TIMEOUT),
        ConnectionEnd::Duration => stats.inc(http::DOWNSTREAM_CX_MAX_DURATION_REACHED),
        // Unless an answer was counted as the last one already.
        ConnectionEnd::Drained if !drained.load(Relaxed) => {
            stats.inc(http::DOWNSTREAM_CX_DRAIN_CLOSE);
        }
        ConnectionEnd::Drained => {}
        ConnectionEnd::Protocol(_) => stats.inc(http::DOWNSTREAM_CX_PROTOCOL_ERROR),
        ConnectionEnd::PrematureResets => {
            stats.inc(http::DOWNSTREAM_RQ_TOO_MANY_PREMATURE_RESETS);
            stats.inc(http::DOWNSTREAM_CX_PROTOCOL_ERROR);
        }
        ConnectionEnd::Remote | ConnectionEnd::Local => {}
    }
}

/// The network filters' parts in a connection, and the stream that stands for it.
fn filters_of(
    network: &LiveNetwork,
    info: &Arc<ConnectionInfo>,
) -> (Arc<Stream>, ConnectionFilters) {
    let mut head = RequestHead::new(::http::Method::GET, "", "");
    // There is no request: nothing of it is shown.
    head.version = ::http::Version::HTTP_09;
    let stream = Stream::new(Arc::clone(info), Arc::clone(&network.stream), head, 0);
    {
        let mut info = stream.info.lock();
        info.without_head = true;
        info.closed = Some(Box::default());
    }
    let filters = network.filters.connection(&stream);
    (stream, filters)
}

/// Ends with a drain that has begun: why a connection at `listener` that is still there is closed now, in Envoy's words.
pub(super) async fn drained(
    context: &ServeContext,
    listener: &str,
    drain_time: Duration,
) -> &'static str {
    tokio::time::sleep(drain_time).await;
    // Only a chain of it went, or the listener as a whole.
    let generation = context.current.load();
    if generation.listeners.contains_key(listener) {
        "filter_chain_is_being_removed"
    } else {
        CUT
    }
}

/// Serves as long as a drain allows; the reason why what is left then is cut off is known before `served` is dropped.
async fn until(
    served: Pin<&mut impl Future<Output = ConnectionEnd>>,
    deadline: &DrainWatch,
    drain_time: Duration,
    (context, info): &(Arc<ServeContext>, Arc<ConnectionInfo>),
) -> ConnectionEnd {
    let drained = || drained(context, &info.listener, drain_time);
    let ended = deadline.race(served, drained).await;
    ended.unwrap_or_else(|reason| {
        info.meter.set_closed(reason);
        ConnectionEnd::Drained
    })
}

type Admitted = (Arc<str>, Arc<ListenerStats>, Option<Chosen>);

/// The chain, the watch of its drain, and what its listener says of itself.
type Chosen = (
    Arc<LiveChain>,
    DrainWatch,
    TrafficDirection,
    Option<Arc<pb::Metadata>>,
);

/// The listener's name and statistics, and the chain that takes the connection, of the Generation of this moment.
fn admit(
    context: &ServeContext,
    entrance: &Entrance,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
) -> Option<Admitted> {
    loop {
        let generation = context.current.load();
        let live = entrance.listener(&generation)?;
        let chain = live.select(&ConnectionFacts {
            destination: local,
            source: remote,
            server_name: "",
            transport_protocol: "raw_buffer",
            application_protocols: &[],
        });
        let chain = chain.map(|chain| (Arc::clone(chain), chain.drain.watch()));
        // Its drain was over before this connection was known: the Generation that ended it is there by now.
        if let Some((chain, watch)) = &chain
            && watch.is_draining()
            && chain.http().is_some()
            && chain.drain.last().is_none()
        {
            continue;
        }
        let config = &live.config;
        let chain = chain.map(|(chain, watch)| {
            let metadata = config.metadata.clone();
            (chain, watch, config.direction, metadata)
        });
        return Some((Arc::clone(&config.name), Arc::clone(&live.stats), chain));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    /// The bytes of what `serve` makes.
    fn size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// There is one for every connection, and most of them idle.
    #[test]
    fn a_connection_is_small() {
        let size = size(super::serve);
        assert!(size <= 2300, "{size}");
    }
}
