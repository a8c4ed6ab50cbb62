//! The chain of a connection manager: brings the filters to life, and drives a stream through them.
//!
//! The driver is one future. At each wake it looks first at the stream's verdict, then at its deadlines, then polls the
//! companions (pumps), then the phase in flight. When the head is ready it hands the body out wrapped, and the wrapper
//! goes on with the same duties until the last byte. However it ends, also by a drop, [`Stream::finish`] runs once.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Method};
use smallvec::SmallVec;

use super::body::{RequestBody, ResponseBody, drain, set_timeouts};
use super::factory::{BuildContext, ChainContext};
use super::timer::Timer;
use super::{HttpFilter, Registry, Step, local_reply, router};
use crate::config::access_log::{AccessLogFilter, PluginLog};
use crate::config::extension::HttpFilterConfig;
use crate::config::http_connection_manager::{FilterSource, HttpFilter as FilterEntry};
use crate::config::route::Action;
use crate::http::codec::Reset;
use crate::http::{Body, LocalReply, ReplyReason, ResponseHead};
use crate::route::SelectedRoute;
use crate::stream::attempt::UPSTREAM_SLOTS;
use crate::stream::format::LogType;
use crate::stream::{Ending, Finish, Phase, Side, Stream, Verdict, access_log};

/// What the connection manager does at the edges of a stream. One instance a manager, shared by its streams.
pub trait Observer: Send + Sync + 'static {
    /// The response head has passed the filters and goes to the codec next: the manager's own headers.
    fn head(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }

    /// The request asks for an upgrade, or is a CONNECT, and its route or the manager takes it.
    fn upgrading(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }

    /// The stream is over; the filters have logged: access logs and statistics. May run inside a `Drop`.
    fn log(&self, stream: &Arc<Stream>) {
        let _ = stream;
    }
}

/// Sees nothing.
impl Observer for () {}

#[derive(Debug)]
struct Entry {
    name: Box<str>,
    filter: Arc<dyn HttpFilter>,
    disabled: bool,
    /// For access loggers: which streams they hear of.
    wants: Option<AccessLogFilter>,
}

impl Entry {
    fn wants(&self, stream: &Stream, log_type: LogType) -> bool {
        let filter = self.wants.as_ref();
        filter.is_none_or(|filter| access_log::wants(filter, stream, log_type))
    }

    /// Calls what must not panic, and does not take others with it where it does.
    fn tell(&self, stream: &Arc<Stream>, call: impl FnOnce(&Self, &Arc<Stream>)) {
        if catch_unwind(AssertUnwindSafe(|| call(self, stream))).is_err() {
            tracing::error!(filter = &*self.name, "a filter panicked at a stream's end");
        }
    }
}

/// The HTTP filters of one connection manager in one Generation.
#[derive(Debug, Default)]
pub struct HttpFilterChain {
    entries: Box<[Entry]>,
    /// So many of them, the last ones, are access loggers.
    logs: usize,
}

/// Which filters of the chain a stream has, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Active(SmallVec<[u64; 1]>);

impl Active {
    fn contains(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

/// Stands where a discovered filter's configuration has not come.
#[derive(Debug)]
struct Unconfigured;

impl HttpFilter for Unconfigured {
    fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
        Step::reply(ReplyReason::NoFilterConfig.into())
    }
}

impl HttpFilterChain {
    /// Brings `filters` to life. What is configured by discovery is taken from `discovered` (in the order of those
    /// filters), else from its default; without either the filter answers 500 (`NFCF`).
    pub fn build(
        registry: &Registry,
        filters: &[FilterEntry],
        discovered: &[Option<Arc<HttpFilterConfig>>],
        context: &ChainContext<'_>,
    ) -> Self {
        Self::build_from(0, registry, filters, discovered, context)
    }

    /// As [`HttpFilterChain::build`], of filters that run for each request to an upstream.
    pub fn build_upstream(
        registry: &Registry,
        filters: &[FilterEntry],
        context: &ChainContext<'_>,
    ) -> Self {
        Self::build_from(UPSTREAM_SLOTS, registry, filters, &[], context)
    }

    fn build_from(
        first_slot: usize,
        registry: &Registry,
        filters: &[FilterEntry],
        discovered: &[Option<Arc<HttpFilterConfig>>],
        context: &ChainContext<'_>,
    ) -> Self {
        let mut discovered = discovered.iter();
        let entries = (first_slot..).zip(filters).map(|(slot, entry)| {
            let config = match &entry.config {
                FilterSource::Inline(config) => Some(config),
                FilterSource::Discovered { default, .. } => discovered
                    .next()
                    .and_then(Option::as_deref)
                    .or(default.as_ref()),
            };
            let filter = config.and_then(|config| {
                registry.build(
                    config,
                    &BuildContext {
                        slot,
                        name: &entry.name,
                        source: &config.source,
                        chain: context,
                    },
                )
            });
            Entry {
                name: entry.name.clone(),
                filter: filter.unwrap_or_else(|| Arc::new(Unconfigured)),
                disabled: entry.disabled,
                wants: None,
            }
        });
        Self {
            entries: entries.collect(),
            logs: 0,
        }
    }

    /// The chain with access loggers behind it.
    pub fn with_logs(
        self,
        registry: &Registry,
        logs: &[PluginLog],
        context: &ChainContext<'_>,
    ) -> Self {
        let filters = self.entries.len() - self.logs;
        let mut entries = self.entries.into_vec();
        for (number, log) in logs.iter().enumerate() {
            let name: Box<str> = format!("access_log[{number}]").into();
            let filter = registry.build(
                &log.config,
                &BuildContext {
                    slot: entries.len(),
                    name: &name,
                    source: &log.config.source,
                    chain: context,
                },
            );
            // A registry builds what it has parsed.
            let Some(filter) = filter else { continue };
            entries.push(Entry {
                name,
                filter,
                disabled: false,
                wants: log.filter.clone(),
            });
        }
        Self {
            logs: entries.len() - filters,
            entries: entries.into(),
        }
    }

    /// The access loggers hear of a connection that is over, and that went through no filters of HTTP.
    pub fn log_connection(&self, stream: &Arc<Stream>) {
        let (_, logs) = self.entries.split_at(self.entries.len() - self.logs);
        for log in logs {
            if log.wants(stream, LogType::TcpConnectionEnd) {
                log.tell(stream, |log, stream| log.filter.log(stream));
            }
        }
    }

    /// A chain of live filters with their names.
    pub fn of(filters: impl IntoIterator<Item = (Box<str>, Arc<dyn HttpFilter>)>) -> Self {
        Self {
            entries: filters
                .into_iter()
                .map(|(name, filter)| Entry {
                    name,
                    filter,
                    disabled: false,
                    wants: None,
                })
                .collect(),
            logs: 0,
        }
    }

    /// Number of filters: the slots that a [`Stream`] needs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drives `stream` to its response: the head is then in `stream.response`, the body is the result. The stream ends
    /// when that body has ended or is dropped, or when this future is dropped.
    ///
    /// # Errors
    /// Where the stream was reset before it had a response; it has ended by then.
    pub async fn run(
        self: Arc<Self>,
        stream: Arc<Stream>,
        body: Body,
        observer: Arc<dyn Observer>,
    ) -> Result<Body, Reset> {
        let finish = Finish::new(
            Arc::clone(&stream),
            Ends {
                active: self.begin(&stream),
                chain: self,
                observer,
            },
        );
        let ends = finish.ending();
        let body = RequestBody::wrap(&stream, body);
        set_timeouts(&stream);
        let mut timer = pin!(Timer::new(&stream));
        // Of a head that is refused already nobody asks what it wishes.
        let wish = match stream.is_decided() {
            true => None,
            false => upgrade(&stream),
        };
        let refused = match wish {
            Some(false) => Some(Stop::reply(ReplyReason::UpgradeFailed.into())),
            Some(true) => {
                stream.info.lock().upgrade = true;
                ends.observer.upgrading(&stream);
                None
            }
            None => None,
        };
        let first = ends.chain.exchange(&stream, &ends.active, body, refused);
        let mut outcome = drive(&stream, timer.as_mut(), first).await;
        loop {
            match outcome {
                Ok(body) => break Ok(ResponseBody::send(finish, body)),
                Err(Stop::Reply { reply, direct }) => {
                    stream.end_attempt();
                    stream.drop_companions();
                    let direct = direct || stream.phase() >= Phase::Response;
                    if stream.phase() == Phase::Response {
                        let before = stream.response.lock().take();
                        *stream.overwritten.lock() = before;
                    }
                    stream.no_upstream_timeout();
                    let body = local_reply::apply(&stream, *reply);
                    stream.set_phase(Phase::Response);
                    outcome = if direct {
                        Ok(body)
                    } else {
                        let work = ends.chain.respond(&stream, &ends.active, body);
                        drive(&stream, timer.as_mut(), work).await
                    };
                }
                Err(Stop::Reset) => {
                    finish.complete();
                    break Err(Reset::Internal);
                }
            }
        }
    }

    /// The filters that `stream` has by its first route.
    fn begin(&self, stream: &Stream) -> Active {
        let route = stream.route();
        // As in Envoy, the log of a request that a filter answers names the cluster of its route.
        if let Some(cluster) = route.as_ref().and_then(|route| route.cluster.as_deref()) {
            stream.info.lock().upstream.cluster = stream.config.clusters.get(cluster).cloned();
        }
        self.select(route.as_deref())
    }

    /// The filters that `route` does not switch off, or switches on.
    pub(super) fn select(&self, route: Option<&SelectedRoute>) -> Active {
        let route = route.filter(|route| route.has_per_filter());
        let mut words: SmallVec<[u64; 1]> = SmallVec::new();
        words.resize(self.entries.len().div_ceil(64).max(1), 0);
        for (index, entry) in self.entries.iter().enumerate() {
            let said = route.and_then(|route| {
                route
                    .per_filter_all(&entry.name)
                    .find_map(|config| config.disabled)
            });
            if !said.unwrap_or(entry.disabled) {
                words[index / 64] |= 1 << (index % 64);
            }
        }
        Active(words)
    }

    /// Those of them, in order.
    pub(super) fn active(
        &self,
        active: &Active,
    ) -> impl DoubleEndedIterator<Item = &Arc<dyn HttpFilter>> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| active.contains(index).then_some(&entry.filter))
    }

    /// The request halves in order, then the response halves in reverse.
    async fn exchange(
        &self,
        stream: &Arc<Stream>,
        active: &Active,
        mut body: Body,
        refused: Option<Stop>,
    ) -> Result<Body, Stop> {
        if let Some(stop) = refused {
            return Err(stop);
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if !active.contains(index) {
                continue;
            }
            let mut step = entry.filter.request(stream, body);
            body = loop {
                match step {
                    Step::Next(body) => break body,
                    Step::Wait(wait) => step = wait.await,
                    Step::Reply(reply) => return Err(Stop::answer(reply)),
                    Step::Answer(head, body) => {
                        if let Some(stop) = verdict(stream) {
                            return Err(stop);
                        }
                        *stream.response.lock() = Some(*head);
                        let last = index + 1 + self.logs == self.entries.len();
                        stream.info.lock().answered_by_filter = !last;
                        stream.set_phase(Phase::Response);
                        return self.respond(stream, active, body).await;
                    }
                }
            };
            // What the filter decided besides its step stands above it.
            if let Some(stop) = verdict(stream) {
                return Err(stop);
            }
        }
        // No terminal filter: the parser of the connection manager refuses such a chain.
        Err(Stop::reply(ReplyReason::RouteNotFound.into()))
    }

    async fn respond(
        &self,
        stream: &Arc<Stream>,
        active: &Active,
        mut body: Body,
    ) -> Result<Body, Stop> {
        for (index, entry) in self.entries.iter().enumerate().rev() {
            if !active.contains(index) {
                continue;
            }
            let mut step = entry.filter.response(stream, body);
            body = loop {
                match step {
                    Step::Next(body) => break body,
                    Step::Wait(wait) => step = wait.await,
                    Step::Reply(reply) => return Err(Stop::answer(reply)),
                    Step::Answer(head, body) => {
                        *stream.response.lock() = Some(*head);
                        break body;
                    }
                }
            };
            if let Some(stop) = verdict(stream) {
                return Err(stop);
            }
        }
        Ok(body)
    }
}

/// A route says whether it takes an upgrade, else the connection manager does. CONNECT counts as one, where a route
/// matched it. `h2c` is nobody's wish: it is ignored, as by Envoy. `None` where nothing is asked for.
fn upgrade(stream: &Stream) -> Option<bool> {
    let wish = {
        let request = stream.request.lock();
        match &request.upgrade {
            Some(wish) if wish.as_bytes().eq_ignore_ascii_case(b"h2c") => return None,
            Some(wish) => wish.clone(),
            None if request.method == Method::CONNECT => HeaderValue::from_static("connect"),
            None => return None,
        }
    };
    let among = |allowed: &[(Box<str>, bool)]| {
        allowed
            .iter()
            .find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(wish.as_bytes()))
            .map(|(_, enabled)| *enabled)
    };
    let route = stream.route();
    if route.is_none() && wish == "connect" {
        return None;
    }
    let of_route = route.and_then(|route| match &route.route.action {
        Action::Forward(action) => among(&action.upgrades),
        _ => None,
    });
    of_route
        .or_else(|| among(&stream.config.options.upgrades))
        .or(Some(false))
}

/// Why a phase was given up.
enum Stop {
    Reply {
        reply: Box<LocalReply>,
        direct: bool,
    },
    Reset,
}

impl Stop {
    fn reply(reply: LocalReply) -> Self {
        Self::answer(Box::new(reply))
    }

    fn answer(reply: Box<LocalReply>) -> Self {
        Self::Reply {
            reply,
            direct: false,
        }
    }
}

/// What was decided. Asked for after each step of each filter, and seldom anything.
#[inline]
fn verdict(stream: &Stream) -> Option<Stop> {
    if stream.is_decided() {
        decided(stream)
    } else {
        None
    }
}

#[cold]
fn decided(stream: &Stream) -> Option<Stop> {
    match stream.take_verdict() {
        Verdict::None => None,
        Verdict::Reply { reply, direct } => Some(Stop::Reply { reply, direct }),
        Verdict::Reset { details } => {
            if !details.is_empty() {
                stream.info.lock().details = Some(details);
            }
            Some(Stop::Reset)
        }
    }
}

/// Polls `work`, and all that may end it before its time.
async fn drive(
    stream: &Arc<Stream>,
    mut timer: Pin<&mut Timer>,
    work: impl Future<Output = Result<Body, Stop>>,
) -> Result<Body, Stop> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        stream.park(context);
        if let Some(stop) = verdict(stream) {
            return Poll::Ready(Err(stop));
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            // Until nothing moves any more: what one event sets off ends before others' turns, as in Envoy.
            let mut worked = false;
            loop {
                let moved = stream.poll_companions(context);
                if let Some(stop) = verdict(stream) {
                    return Poll::Ready(Err(stop));
                }
                if worked && !moved {
                    drain(stream, context);
                    return Poll::Pending;
                }
                let polled = work.as_mut().poll(context);
                if polled.is_ready() {
                    return polled;
                }
                if let Some(stop) = verdict(stream) {
                    return Poll::Ready(Err(stop));
                }
                worked = true;
            }
        }));
        match result {
            Ok(Poll::Pending) => match timer.as_mut().poll(stream, context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(timeout) => {
                    Poll::Ready(Err(Stop::reply(router::timed_out(stream, timeout))))
                }
            },
            // A decision made while the last step ran stands above it.
            Ok(Poll::Ready(result)) => Poll::Ready(verdict(stream).map_or(result, Err)),
            Err(_) => Poll::Ready(Err(Stop::reply(panicked()))),
        }
    })
    .await
}

/// What a panic of a filter costs: its stream.
fn panicked() -> LocalReply {
    tracing::error!("an HTTP filter panicked; its stream is answered with 500");
    ReplyReason::FilterPanic.into()
}

/// Polls the companions after the head was sent. `Err`: the body must end in an error; with true, after what pumps had let
/// go when one of them decided so.
pub(super) fn poll_after_head(stream: &Arc<Stream>, context: &mut Context<'_>) -> Result<(), bool> {
    let before = verdict(stream);
    let drain = before.is_none() && stream.is_pumped(Side::Response);
    let polled = catch_unwind(AssertUnwindSafe(|| {
        before.or_else(|| {
            loop {
                let moved = stream.poll_companions(context);
                let decided = verdict(stream);
                if decided.is_some() || !moved {
                    return decided;
                }
            }
        })
    }));
    let Ok(decided) = polled else {
        stream.info.lock().details = Some(panicked().details);
        return Err(false);
    };
    match decided {
        None => Ok(()),
        Some(Stop::Reset) => Err(drain),
        // Too late for an answer: as Envoy, a reset; the log keeps the status that was sent.
        Some(Stop::Reply { reply, .. }) => {
            stream.end_attempt();
            let mut info = stream.info.lock();
            for flag in &reply.flags {
                info.flags.set(*flag);
            }
            info.details = Some(reply.details);
            Err(drain)
        }
    }
}

/// Who hears of a stream's end: its filters in order, then the manager's logs, then the filters again.
pub(super) struct Ends {
    chain: Arc<HttpFilterChain>,
    active: Active,
    observer: Arc<dyn Observer>,
}

impl Ends {
    /// See [`Observer::head`].
    pub(super) fn head(&self, stream: &Arc<Stream>) {
        if stream.response.lock().is_none() {
            *stream.response.lock() =
                Some(ResponseHead::new(http::StatusCode::INTERNAL_SERVER_ERROR));
        }
        self.observer.head(stream);
    }

    fn each(&self, stream: &Arc<Stream>, call: impl Fn(&Entry, &Arc<Stream>)) {
        for (index, entry) in self.chain.entries.iter().enumerate() {
            if self.active.contains(index) {
                entry.tell(stream, &call);
            }
        }
    }
}

impl Ending for Ends {
    fn log(&self, stream: &Arc<Stream>) {
        self.each(stream, |entry, stream| {
            if entry.wants(stream, LogType::DownstreamEnd) {
                entry.filter.log(stream);
            }
        });
        self.observer.log(stream);
    }

    fn end(&self, stream: &Arc<Stream>) {
        self.each(stream, |entry, stream| entry.filter.end(stream));
    }
}

#[cfg(test)]
mod tests;
