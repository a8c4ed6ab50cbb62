//! One request/response exchange: everything that filters, the router and the access log know of it.
//!
//! A [`Stream`] is made by the connection manager when a head has arrived, and ends in exactly one *end* record.
//! It holds the routes and clusters of one Generation to its last byte. It belongs to one worker: its cells are
//! [`WorkerCell`]s, locked for the length of a statement and never across a call into a filter.

pub mod access_log;
pub mod attempt;
pub mod drive;
pub mod finalize;
pub mod finish;
pub mod format;
pub mod info;
pub mod local_reply;
pub mod network;
pub mod pump;
pub mod state;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use http::HeaderMap;

use crate::base::WorkerCell;
use crate::cluster::ClusterMap;
use crate::config::http_connection_manager::Options;
use crate::http::{Lend, RequestHead, ResponseHead};
use crate::route::{RouteTable, SelectedRoute};
use crate::telemetry::metrics::StatSet;
use access_log::AccessLogger;

pub use drive::{Companion, Phase, Progress, Timeout, Timeouts, Verdict};
pub use finish::{Ending, Finish};
pub use info::{
    ByteCounts, CloseInfo, CloseType, ConnectionInfo, Refusal, StreamInfo, UpstreamInfo,
};
pub use pump::{Flow, PumpHandle, Side, Start, Tap};

/// What a stream pins of one Generation. One instance a connection manager and Generation.
#[derive(Debug)]
pub struct StreamConfig {
    /// The route table; `None` where RDS never answered.
    pub routes: Option<Arc<RouteTable>>,
    /// All clusters.
    pub clusters: Arc<ClusterMap>,
    /// The live HTTP filters of clusters that have any (`filter::upstream` knows the type).
    pub upstream_filters: Option<Arc<dyn Any + Send + Sync>>,
    /// The connection manager's settings.
    pub options: Arc<Options>,
    /// The number of the Generation.
    pub generation: u64,
    /// Where the stream is recorded; `None` in tests of filters.
    pub records: Option<Records>,
}

/// Where the streams of a connection manager are recorded.
#[derive(Clone, Debug)]
pub struct Records {
    /// The access logs.
    pub access_log: Arc<AccessLogger>,
    /// `http.<stat_prefix>.`
    pub http: Arc<StatSet>,
    /// `listener.<address>.http.<stat_prefix>.`
    pub listener: Arc<StatSet>,
}

/// One exchange.
pub struct Stream {
    /// The connection that it came on.
    pub connection: Arc<ConnectionInfo>,
    /// What it pins of its Generation.
    pub config: Arc<StreamConfig>,
    /// The request head as filters have left it so far.
    pub request: WorkerCell<RequestHead>,
    /// The response head, once there is one.
    pub response: WorkerCell<Option<ResponseHead>>,
    /// The response head in whose place a filter's reply came while it passed the filters: those that hold it back see it
    /// still, as in Envoy.
    pub overwritten: WorkerCell<Option<ResponseHead>>,
    /// Trailers: the request's, once they have arrived.
    pub request_trailers: WorkerCell<Option<HeaderMap>>,
    /// The response's.
    pub response_trailers: WorkerCell<Option<HeaderMap>>,
    /// Times, sizes, flags, details, upstream.
    pub info: WorkerCell<StreamInfo>,
    drive: WorkerCell<drive::Drive>,
    route: WorkerCell<RouteState>,
    slots: WorkerCell<Vec<attempt::Slot>>,
    attempt: WorkerCell<Option<Box<attempt::Attempt>>>,
}

#[derive(Debug, Default)]
enum RouteState {
    #[default]
    Unresolved,
    Resolved(Option<Arc<SelectedRoute>>),
    /// To be resolved anew; until then, what is told of the stream is told of the route before.
    Cleared(Option<Arc<SelectedRoute>>),
}

impl Stream {
    /// Begins a stream with room for `filters` per-filter slots.
    pub fn new(
        connection: Arc<ConnectionInfo>,
        config: impl Into<Arc<StreamConfig>>,
        request: RequestHead,
        filters: usize,
    ) -> Arc<Self> {
        let mut slots = Vec::new();
        slots.resize_with(filters, || None);
        let mut info = StreamInfo::new();
        info.grpc = request.is_grpc();
        Arc::new(Self {
            connection,
            config: config.into(),
            request: WorkerCell::new(request),
            response: WorkerCell::new(None),
            overwritten: WorkerCell::new(None),
            request_trailers: WorkerCell::new(None),
            response_trailers: WorkerCell::new(None),
            info: WorkerCell::new(info),
            drive: WorkerCell::default(),
            route: WorkerCell::default(),
            slots: WorkerCell::new(slots),
            attempt: WorkerCell::new(None),
        })
    }

    /// The route of the request as it stands, resolved at first use and kept until [`Stream::clear_route`].
    pub fn route(&self) -> Option<Arc<SelectedRoute>> {
        let before = match &mut *self.route.lock() {
            RouteState::Resolved(route) => return route.clone(),
            RouteState::Cleared(before) => before.take(),
            RouteState::Unresolved => None,
        };
        let route = self.config.routes.as_ref().and_then(|routes| {
            let (request, random) = (self.request.lock(), fastrand::u64(..));
            match before {
                Some(before) => routes.select_again(&request, random, before),
                None => routes.select(&request, random).map(Arc::new),
            }
        });
        *self.route.lock() = RouteState::Resolved(route.clone());
        route
    }

    /// The route as last resolved, also where it was cleared since, as Envoy's logs and local replies have it; `None` where
    /// it never was.
    pub fn resolved_route(&self) -> Option<Arc<SelectedRoute>> {
        match &*self.route.lock() {
            RouteState::Resolved(route) | RouteState::Cleared(route) => route.clone(),
            RouteState::Unresolved => None,
        }
    }

    /// Settles that the stream has no route, without looking for one.
    pub fn skip_route(&self) {
        *self.route.lock() = RouteState::Resolved(None);
    }

    /// Forgets the route: the next [`Stream::route`] matches anew (Envoy's `clearRouteCache`).
    pub fn clear_route(&self) {
        let mut state = self.route.lock();
        if let RouteState::Resolved(route) = &mut *state {
            *state = RouteState::Cleared(route.take());
        }
    }

    /// Runs `f` on the state that filter number `slot` keeps for this stream, made by `init` at first use. The slots are
    /// locked meanwhile.
    ///
    /// # Panics
    /// Where the slot holds another type: a slot belongs to one filter.
    #[inline]
    pub fn with_slot<T: Any + Send, R>(
        &self,
        slot: usize,
        init: impl FnOnce() -> T,
        f: impl FnOnce(&mut T) -> R,
    ) -> R {
        self.slot(slot, |slot| {
            let value = slot.get_or_insert_with(|| Box::new(init()));
            f(value
                .downcast_mut::<T>()
                .expect("a slot belongs to one filter"))
        })
    }
}

impl Stream {
    /// Runs `f` on the state of filter number `slot`, where it keeps any.
    ///
    /// # Panics
    /// As [`Stream::with_slot`].
    #[inline]
    pub fn peek_slot<T: Any + Send, R>(
        &self,
        slot: usize,
        f: impl FnOnce(&mut T) -> R,
    ) -> Option<R> {
        self.slot(slot, |slot| {
            let value = slot.as_mut()?;
            Some(f(value
                .downcast_mut::<T>()
                .expect("a slot belongs to one filter")))
        })
    }

    /// Keeps `value` as the state of filter number `slot`, unless it has one: then `value` comes back.
    #[inline]
    pub fn fill_slot<T: Any + Send>(&self, slot: usize, value: T) -> Option<T> {
        self.slot(slot, |slot| {
            if slot.is_some() {
                return Some(value);
            }
            *slot = Some(Box::new(value));
            None
        })
    }

    /// Takes the state of filter number `slot` out, where it keeps any.
    ///
    /// # Panics
    /// As [`Stream::with_slot`].
    pub fn take_slot<T: Any + Send>(&self, slot: usize) -> Option<Box<T>> {
        let value = self.slot(slot, Option::take)?;
        Some(value.downcast().expect("a slot belongs to one filter"))
    }
}

/// The request head as filters have left it so far. It stays with the stream for logs, retries and the response's
/// filters.
impl Lend<RequestHead> for Stream {
    fn lend<R>(&self, read: impl FnOnce(&RequestHead) -> R) -> R {
        read(&self.request.lock())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
