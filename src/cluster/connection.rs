//! What is counted of one upstream connection, from the attempt to make it to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::Version;
use tokio::time::Instant;

use super::Live;
use super::connect::{ConnectError, Connected};
use super::host::Host;
use super::send::UpstreamConnection;
use super::stats::cluster as stat;
use crate::http::codec::{ConnectionMeter, Ending};

/// A connection's part in the statistics: counted from when it is tried, taken back when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    live: Arc<Live>,
    host: Arc<Host>,
    facts: UpstreamConnection,
    meter: Arc<ConnectionMeter>,
    begun: Instant,
    established: bool,
    requests: u64,
    /// Bytes received and sent that are in the statistics already.
    counted: (u64, u64),
    by_peer: bool,
    with_request: bool,
    /// It carries requests, which are counted by connection.
    http: bool,
}

impl Connection {
    /// A connection for requests that is about to be tried.
    pub(super) fn new(live: &Arc<Live>, host: &Arc<Host>, protocol: Version) -> Box<Self> {
        let stats = &live.stats.set;
        if protocol == Version::HTTP_2 {
            stats.inc(stat::UPSTREAM_CX_HTTP2_TOTAL);
        } else {
            stats.inc(stat::UPSTREAM_CX_HTTP1_TOTAL);
        }
        // And shows the codec's statistics from the first connection on.
        if protocol == Version::HTTP_2 {
            live.stats.http2();
        } else {
            live.stats.http1();
        }
        let mut connection = Self::tcp(live, host);
        connection.http = true;
        connection.facts.protocol = protocol;
        connection
    }

    /// A connection for the bytes of another one that is about to be tried.
    pub(super) fn tcp(live: &Arc<Live>, host: &Arc<Host>) -> Box<Self> {
        let stats = &live.stats.set;
        stats.inc(stat::UPSTREAM_CX_TOTAL);
        stats.inc(stat::UPSTREAM_CX_ACTIVE);
        // Envoy writes these gauges with every connection; nothing opens a circuit yet.
        for open in [
            stat::CIRCUIT_BREAKERS_DEFAULT_CX_OPEN,
            stat::CIRCUIT_BREAKERS_DEFAULT_CX_POOL_OPEN,
            stat::CIRCUIT_BREAKERS_DEFAULT_RQ_PENDING_OPEN,
            stat::CIRCUIT_BREAKERS_HIGH_CX_POOL_OPEN,
        ] {
            stats.set(open, 0);
        }
        host.stats.cx_total.fetch_add(1, Relaxed);
        host.stats.cx_active.fetch_add(1, Relaxed);
        Box::new(Self {
            facts: UpstreamConnection {
                id: live.connection_ids.fetch_add(1, Relaxed),
                local: None,
                remote: None,
                protocol: Version::HTTP_09,
                reused: false,
            },
            live: Arc::clone(live),
            host: Arc::clone(host),
            meter: Arc::default(),
            begun: Instant::now(),
            established: false,
            requests: 0,
            counted: (0, 0),
            by_peer: false,
            with_request: false,
            http: false,
        })
    }

    /// It was made.
    pub(super) fn established(&mut self, connected: &Connected) {
        self.established = true;
        self.facts.local = connected.local;
        self.facts.remote = connected.remote;
        let stats = &self.live.stats.set;
        stats.record(stat::UPSTREAM_CX_CONNECT_MS, millis(self.begun));
        stats.set(stat::CIRCUIT_BREAKERS_DEFAULT_RQ_OPEN, 0);
    }

    /// It could not be made.
    pub(super) fn failed(&mut self, error: &ConnectError) {
        self.by_peer = !error.is_local();
        match error {
            ConnectError::Timeout(_) => self.live.stats.set.inc(stat::UPSTREAM_CX_CONNECT_TIMEOUT),
            ConnectError::Bind(_) => self.live.stats.set.inc(stat::BIND_ERRORS),
            _ => {}
        }
    }

    /// Its meter, for the codec.
    pub(super) fn meter(&self) -> &Arc<ConnectionMeter> {
        &self.meter
    }

    /// The host it goes to.
    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// A request begins on it. The facts as of this request.
    #[inline]
    pub(super) fn begin(&mut self) -> UpstreamConnection {
        let stats = &self.live.stats.set;
        stats.inc(stat::UPSTREAM_RQ_TOTAL);
        stats.inc(stat::UPSTREAM_RQ_ACTIVE);
        self.host.stats.rq_total.fetch_add(1, Relaxed);
        self.host.stats.rq_active.fetch_add(1, Relaxed);
        self.facts.reused = self.requests > 0;
        self.requests += 1;
        self.facts
    }

    /// A request has ended on it, one way or the other.
    #[inline]
    pub(super) fn end(&mut self) {
        self.live.stats.set.dec(stat::UPSTREAM_RQ_ACTIVE);
        self.host.stats.rq_active.fetch_sub(1, Relaxed);
        self.count_bytes();
    }

    /// Requests begun so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// It will not come back from its last request: what the codec saw decides how it is counted.
    pub(super) fn lost(&mut self) {
        let ending = self.meter.ending();
        match ending {
            Ending::Asked => self.live.stats.set.inc(stat::UPSTREAM_CX_CLOSE_NOTIFY),
            Ending::Malformed | Ending::Truncated => {
                self.live.stats.set.inc(stat::UPSTREAM_CX_PROTOCOL_ERROR);
            }
            Ending::Open | Ending::Spent | Ending::Eof | Ending::Peer | Ending::PrematureResets => {
            }
        }
        self.by_peer = matches!(ending, Ending::Eof | Ending::Peer | Ending::Truncated);
        self.with_request = matches!(
            ending,
            Ending::Open | Ending::Peer | Ending::Malformed | Ending::Truncated
        );
    }

    /// It ends together with the one that it carries the bytes of.
    pub(super) fn ended_in_use(&mut self) {
        self.with_request = true;
    }

    /// It served as many requests as it may.
    pub(super) fn used_up(&mut self) {
        self.live.stats.set.inc(stat::UPSTREAM_CX_MAX_REQUESTS);
    }

    /// The peer closed it while no request was on it.
    pub(super) fn closed_by_peer(&mut self) {
        self.by_peer = true;
    }

    /// An HTTP/2 connection takes no further streams: the peer said so, or closed it.
    pub(super) fn went_away(&mut self) {
        if self.meter.ending() == Ending::Peer {
            self.by_peer = true;
        } else {
            self.live.stats.set.inc(stat::UPSTREAM_CX_CLOSE_NOTIFY);
        }
    }

    /// It was idle for too long.
    pub(super) fn timed_out(&mut self) {
        self.live.stats.set.inc(stat::UPSTREAM_CX_IDLE_TIMEOUT);
    }

    fn count_bytes(&mut self) {
        let (received, sent) = (self.meter.received(), self.meter.sent());
        let stats = &self.live.stats.set;
        if received > self.counted.0 {
            stats.add(stat::UPSTREAM_CX_RX_BYTES_TOTAL, received - self.counted.0);
        }
        if sent > self.counted.1 {
            stats.add(stat::UPSTREAM_CX_TX_BYTES_TOTAL, sent - self.counted.1);
        }
        self.counted = (received, sent);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_bytes();
        let stats = &self.live.stats.set;
        stats.dec(stat::UPSTREAM_CX_ACTIVE);
        self.host.stats.cx_active.fetch_sub(1, Relaxed);
        stats.inc(stat::UPSTREAM_CX_DESTROY);
        stats.inc(if self.by_peer {
            stat::UPSTREAM_CX_DESTROY_REMOTE
        } else {
            stat::UPSTREAM_CX_DESTROY_LOCAL
        });
        if self.with_request {
            stats.inc(stat::UPSTREAM_CX_DESTROY_WITH_ACTIVE_RQ);
            stats.inc(if self.by_peer {
                stat::UPSTREAM_CX_DESTROY_REMOTE_WITH_ACTIVE_RQ
            } else {
                stat::UPSTREAM_CX_DESTROY_LOCAL_WITH_ACTIVE_RQ
            });
        }
        stats.record(stat::UPSTREAM_CX_LENGTH_MS, millis(self.begun));
        if self.established {
            if self.http {
                stats.record(stat::UPSTREAM_RQ_PER_CX, self.requests);
            }
        } else {
            stats.inc(stat::UPSTREAM_CX_CONNECT_FAIL);
            self.host.stats.cx_connect_fail.fetch_add(1, Relaxed);
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
