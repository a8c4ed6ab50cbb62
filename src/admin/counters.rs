//! The admin interface's own statistics: `http.admin.`, `listener.admin.` and below.

use std::sync::Arc;

use ::http::Version;
use tokio::time::Instant;

use crate::generation::stats::{http, listener_http, socket, worker};
use crate::http::codec::ConnectionMeter;
use crate::telemetry::metrics::{Registry, StatSet};

/// One for the interface.
pub(super) struct Stats {
    http: Arc<StatSet>,
    listener: Arc<StatSet>,
    listener_http: Arc<StatSet>,
    main_thread: Arc<StatSet>,
}

/// An open connection; its end is counted where this is dropped.
pub(super) struct OpenConnection {
    stats: Arc<Stats>,
    meter: Arc<ConnectionMeter>,
    opened: Instant,
}

/// A request that is being answered; its end is counted where this is dropped.
pub(super) struct ActiveRequest {
    stats: Arc<Stats>,
    asked: Instant,
}

impl Stats {
    pub(super) fn new(metrics: &Registry) -> Arc<Self> {
        Arc::new(Self {
            http: metrics.set(&http::TABLE, "http.admin.", "http", []),
            listener: metrics.set(&socket::TABLE, "listener.admin.", "listener", []),
            listener_http: metrics.set(
                &listener_http::TABLE,
                "listener.admin.http.admin.",
                "listener_http",
                [],
            ),
            main_thread: metrics.set(
                &worker::TABLE,
                "listener.admin.main_thread.",
                "listener_worker",
                [],
            ),
        })
    }

    pub(super) fn opened(self: &Arc<Self>, meter: Arc<ConnectionMeter>) -> OpenConnection {
        self.http.inc(http::DOWNSTREAM_CX_TOTAL);
        self.http.inc(http::DOWNSTREAM_CX_ACTIVE);
        self.listener.inc(socket::DOWNSTREAM_CX_TOTAL);
        self.listener.inc(socket::DOWNSTREAM_CX_ACTIVE);
        self.main_thread.inc(worker::DOWNSTREAM_CX_TOTAL);
        self.main_thread.inc(worker::DOWNSTREAM_CX_ACTIVE);
        OpenConnection {
            stats: Arc::clone(self),
            meter,
            opened: Instant::now(),
        }
    }

    pub(super) fn asked(self: &Arc<Self>, version: Version) -> ActiveRequest {
        self.http.inc(http::DOWNSTREAM_RQ_TOTAL);
        self.http.inc(http::DOWNSTREAM_RQ_ACTIVE);
        self.http.inc(if version == Version::HTTP_2 {
            http::DOWNSTREAM_RQ_HTTP2_TOTAL
        } else {
            http::DOWNSTREAM_RQ_HTTP1_TOTAL
        });
        ActiveRequest {
            stats: Arc::clone(self),
            asked: Instant::now(),
        }
    }
}

impl ActiveRequest {
    pub(super) fn answered(self, status: u16) {
        let Stats {
            http: sums,
            listener_http: below,
            ..
        } = &*self.stats;
        sums.inc(http::DOWNSTREAM_RQ_COMPLETED);
        below.inc(listener_http::DOWNSTREAM_RQ_COMPLETED);
        sums.record(http::DOWNSTREAM_RQ_TIME, millis(self.asked));
        let (class, below_class) = match status / 100 {
            2 => (http::DOWNSTREAM_RQ_2XX, listener_http::DOWNSTREAM_RQ_2XX),
            4 => (http::DOWNSTREAM_RQ_4XX, listener_http::DOWNSTREAM_RQ_4XX),
            5 => (http::DOWNSTREAM_RQ_5XX, listener_http::DOWNSTREAM_RQ_5XX),
            _ => return,
        };
        sums.inc(class);
        below.inc(below_class);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.stats.http.dec(http::DOWNSTREAM_RQ_ACTIVE);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let stats = &self.stats;
        stats.http.inc(http::DOWNSTREAM_CX_DESTROY);
        stats.http.dec(http::DOWNSTREAM_CX_ACTIVE);
        stats
            .http
            .add(http::DOWNSTREAM_CX_RX_BYTES_TOTAL, self.meter.received());
        stats
            .http
            .add(http::DOWNSTREAM_CX_TX_BYTES_TOTAL, self.meter.sent());
        stats
            .http
            .record(http::DOWNSTREAM_CX_LENGTH_MS, millis(self.opened));
        stats.listener.inc(socket::DOWNSTREAM_CX_DESTROY);
        stats.listener.dec(socket::DOWNSTREAM_CX_ACTIVE);
        stats
            .listener
            .record(socket::DOWNSTREAM_CX_LENGTH_MS, millis(self.opened));
        stats.main_thread.dec(worker::DOWNSTREAM_CX_ACTIVE);
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
