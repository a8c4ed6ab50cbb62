//! The HTTP connection manager's per-request entry point: from the codec's exchange to the filter chain and back.
//!
//! Every request takes the Generation of its moment; where the chain that admitted its connection drains, the last
//! Generation that had it. A connection itself holds names, numbers and a weak reference to the manager it saw last, so
//! that an idle connection pins no old configuration but that of a chain that drains.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use futures_util::FutureExt as _;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::connection::ServeContext;
use super::request_head::{self, Facts, append_via};
use crate::base::WorkerCell;
use crate::config::http_connection_manager::ServerHeader;
use crate::filter::Observer;
use crate::generation::chain_match::ConnectionFacts;
use crate::generation::stats::{http as stat, listener_http};
use crate::generation::{ChainDrain, ChainIdentity, HttpConnectionManager, LiveChain};
use crate::http::codec::{Exchange, Handler, Malformed, Refusal, Reply, Reset};
use crate::http::order::take_out_all;
use crate::http::{Lend, LocalReply, RequestHead, ResponseFlag, ResponseHead};
use crate::stream::info::Refusal as RefusedBy;
use crate::stream::{ConnectionInfo, Stream, Verdict};
use crate::telemetry::metrics::{Stat, StatSet};

const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The `date` header of one second.
#[derive(Debug)]
pub(super) struct Date {
    second: u64,
    value: HeaderValue,
}

impl Default for Date {
    fn default() -> Self {
        Self {
            second: 0,
            value: HeaderValue::from_static(""),
        }
    }
}

impl Date {
    fn at(&mut self, now: SystemTime) -> HeaderValue {
        let second = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if self.second != second || self.value.is_empty() {
            self.second = second;
            let text = jiff::Timestamp::from_second(i64::try_from(second).unwrap_or_default())
                .unwrap_or_default()
                .strftime("%a, %d %b %Y %H:%M:%S GMT")
                .to_string();
            self.value = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        }
        self.value.clone()
    }
}

/// One downstream HTTP connection: what the codec calls, and what its streams report to.
#[derive(Debug)]
pub(super) struct HttpConnection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<ServeContext>,
    info: Arc<ConnectionInfo>,
    identity: ChainIdentity,
    drain: Arc<ChainDrain>,
    known: WorkerCell<Known>,
    /// Where the connection is counted by its protocol, which the first request shows.
    counted: WorkerCell<Option<(Arc<StatSet>, bool)>>,
    /// The client has left a request without its answer.
    left: AtomicBool,
    /// An answer has said that the connection ends because of a drain; it is counted.
    drained: Arc<AtomicBool>,
}

impl Inner {
    fn count_protocol(&self, stats: &Arc<StatSet>, http2: bool) {
        let mut counted = self.counted.lock();
        if counted.is_none() {
            let (total, active) = protocol_stats(http2);
            stats.inc(total);
            stats.inc(active);
            *counted = Some((Arc::clone(stats), http2));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((stats, http2)) = self.counted.get_mut() {
            stats.dec(protocol_stats(*http2).1);
        }
    }
}

fn protocol_stats(http2: bool) -> (Stat, Stat) {
    if http2 {
        (
            stat::DOWNSTREAM_CX_HTTP2_TOTAL,
            stat::DOWNSTREAM_CX_HTTP2_ACTIVE,
        )
    } else {
        (
            stat::DOWNSTREAM_CX_HTTP1_TOTAL,
            stat::DOWNSTREAM_CX_HTTP1_ACTIVE,
        )
    }
}

/// The manager that the last request met.
#[derive(Debug)]
struct Known {
    generation: u64,
    manager: Weak<HttpConnectionManager>,
    /// The chain that admitted the connection is gone: close it with the next response.
    stale: bool,
}

impl HttpConnection {
    /// Set once an answer was counted as the last one because of a drain.
    pub(super) fn drained(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.drained)
    }

    pub(super) fn new(
        context: Arc<ServeContext>,
        info: Arc<ConnectionInfo>,
        chain: &LiveChain,
        manager: &Arc<HttpConnectionManager>,
    ) -> Self {
        let known = Known {
            generation: manager.stream.generation,
            manager: Arc::downgrade(manager),
            stale: false,
        };
        Self(Arc::new(Inner {
            context,
            info,
            identity: chain.identity.clone(),
            drain: Arc::clone(&chain.drain),
            known: WorkerCell::new(known),
            counted: WorkerCell::default(),
            left: AtomicBool::new(false),
            drained: Arc::default(),
        }))
    }

    /// Begins the stream of a request; what refuses its head is decided already.
    fn begin(&self, mut head: RequestHead, refused: Option<Verdict>) -> Option<Begun> {
        let inner = &self.0;
        let manager = inner.manager()?;
        let options = &manager.stream.options;
        let http = &manager.records.http;
        inner.count_protocol(http, head.version >= http::Version::HTTP_2);
        http.inc(stat::DOWNSTREAM_RQ_TOTAL);
        http.inc(stat::DOWNSTREAM_RQ_ACTIVE);
        http.inc(if head.version >= http::Version::HTTP_2 {
            stat::DOWNSTREAM_RQ_HTTP2_TOTAL
        } else {
            stat::DOWNSTREAM_RQ_HTTP1_TOTAL
        });
        let facts = Facts {
            remote: inner.info.remote,
            local: inner.info.local,
            own_address: inner.context.own_address,
            node_cluster: &inner.context.node_cluster,
            node_id: &inner.context.node_id,
        };
        let mut client = None;
        let by = match refused {
            Some(_) => RefusedBy::Codec,
            None => RefusedBy::Manager,
        };
        let refused = match refused {
            Some(verdict) => Some(verdict),
            None => match request_head::prepare(&mut head, options, &facts) {
                Ok(seen) => {
                    client = seen.client;
                    if !seen.internal
                        && let Some(routes) = &manager.stream.routes
                    {
                        let internal = &routes.config().internal_only_headers;
                        if !internal.is_empty() {
                            take_out_all(&mut head.headers, |name| internal.contains(name));
                        }
                    }
                    None
                }
                Err(reply) => {
                    count_unclean_path(&reply, http);
                    Some(answer_with(reply))
                }
            },
        };
        let stream = Stream::new(
            Arc::clone(&inner.info),
            Arc::clone(&manager.stream),
            head,
            manager.filters.len(),
        );
        // A client that only a header knows has no port.
        let peer = inner.info.remote.map(|address| address.ip().to_canonical());
        if client.is_some() && client != peer {
            stream.info.lock().client = client.map(|ip| SocketAddr::new(ip, 0));
        }
        if let Some(verdict) = refused {
            if by == RefusedBy::Codec || !request_head::is_routable(&stream.request.lock()) {
                stream.skip_route();
            }
            stream.info.lock().refused = Some(by);
            stream.decide(verdict);
        }
        Some(Begun { stream, manager })
    }
}

struct Begun {
    stream: Arc<Stream>,
    manager: Arc<HttpConnectionManager>,
}

impl Inner {
    /// The manager of this moment. `None`: no chain would take this connection any more.
    fn manager(&self) -> Option<Arc<HttpConnectionManager>> {
        let generation = self.context.current.load();
        let mut known = self.known.lock();
        if known.generation == generation.number
            && let Some(manager) = known.manager.upgrade()
        {
            return Some(manager);
        }
        if let Some(last) = self.drain.last() {
            known.generation = generation.number;
            known.manager = Arc::downgrade(&last);
            known.stale = true;
            return Some(last);
        }
        let taken = generation
            .listeners
            .get(&self.info.listener)
            .and_then(|listener| {
                listener.select(&ConnectionFacts {
                    destination: self.info.local,
                    source: self.info.remote,
                    server_name: "",
                    transport_protocol: "raw_buffer",
                    application_protocols: &[],
                })
            });
        match taken.and_then(|chain| Some((chain, chain.http()?))) {
            Some((chain, hcm)) => {
                known.generation = generation.number;
                known.manager = Arc::downgrade(hcm);
                known.stale = chain.identity != self.identity;
                Some(Arc::clone(hcm))
            }
            // No chain would take it, or none that serves HTTP: what was seen last still answers, and closes.
            None => {
                known.stale = true;
                known.manager.upgrade()
            }
        }
    }

    fn is_closing(&self) -> bool {
        self.known.lock().stale || self.context.state.closes(self.info.direction)
    }
}

impl Handler for HttpConnection {
    type Head = AnswerHead;

    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply<AnswerHead>, Reset>> + Send + 'static {
        let begun = self.begin(exchange.head, None);
        let observer: Arc<dyn Observer> = Arc::<Inner>::clone(&self.0);
        async move {
            let Some(Begun { stream, manager }) = begun else {
                return Err(Reset::Refused);
            };
            let filters = Arc::clone(&manager.filters);
            drop(manager);
            let mut held = exchange.body.in_memory().filter(|length| *length > 0);
            let run = filters.run(Arc::clone(&stream), exchange.body, observer);
            let mut run = std::pin::pin!(run);
            let body = poll_fn(|cx| {
                let polled = run.as_mut().poll(cx);
                if polled.is_pending()
                    && let Some(length) = held.take()
                {
                    stream.info.lock().held = Some(length as u64);
                }
                polled
            })
            .await?;
            Ok(reply(stream, body))
        }
    }

    fn malformed(&self, malformed: Malformed) -> Reply<AnswerHead> {
        let Malformed {
            head,
            reply: refusal,
        } = malformed;
        let without_head = head.is_none();
        let fallback = || Reply {
            head: AnswerHead::Own(ResponseHead::new(refusal.status)),
            body: crate::http::Body::full(refusal.body.clone()),
            close: true,
        };
        let head = head.unwrap_or_else(|| RequestHead::new(http::Method::GET, "", ""));
        let Some(Begun { stream, manager }) = self.begin(head, Some(answer_with(refusal.clone())))
        else {
            return fallback();
        };
        stream.info.lock().without_head = without_head;
        let observer: Arc<dyn Observer> = Arc::<Inner>::clone(&self.0);
        let filters = Arc::clone(&manager.filters);
        // A filter that would wait cannot be waited for here; the codec needs the answer now.
        match filters
            .run(Arc::clone(&stream), crate::http::Body::empty(), observer)
            .now_or_never()
        {
            Some(Ok(body)) => {
                let mut reply = reply(stream, body);
                reply.close = true;
                reply
            }
            Some(Err(_)) | None => fallback(),
        }
    }

    fn refused(&self, refusal: Refusal) {
        let mut head = RequestHead::new(http::Method::GET, "", "");
        head.version = http::Version::HTTP_2;
        let verdict = Verdict::Reset {
            details: refusal.details.into(),
        };
        let Some(Begun { stream, manager }) = self.begin(head, Some(verdict)) else {
            return;
        };
        {
            let mut info = stream.info.lock();
            info.without_head = true;
            info.flags.set(refusal.flag);
        }
        let observer: Arc<dyn Observer> = Arc::<Inner>::clone(&self.0);
        // A reset is not waited for; dropping the future ends the stream in any case.
        let _ = Arc::clone(&manager.filters)
            .run(stream, crate::http::Body::empty(), observer)
            .now_or_never();
    }
}

/// By what is decided here: the status that is sent may be mapped to another.
fn count_unclean_path(reply: &LocalReply, http: &StatSet) {
    if reply.details == "path_normalization_failed" {
        http.inc(if reply.status.is_redirection() {
            stat::DOWNSTREAM_RQ_REDIRECTED_WITH_NORMALIZED_PATH
        } else {
            stat::DOWNSTREAM_RQ_FAILED_PATH_NORMALIZATION
        });
    }
}

fn answer_with(reply: LocalReply) -> Verdict {
    Verdict::Reply {
        reply: Box::new(reply),
        direct: false,
    }
}

/// The head of an answer. A stream keeps its own, for the log.
#[derive(Debug)]
pub(super) enum AnswerHead {
    Stream(Arc<Stream>),
    Own(ResponseHead),
}

impl Lend<ResponseHead> for AnswerHead {
    fn lend<R>(&self, read: impl FnOnce(&ResponseHead) -> R) -> R {
        match self {
            Self::Own(head) => read(head),
            Self::Stream(stream) => match &*stream.response.lock() {
                Some(head) => read(head),
                None => read(&ResponseHead::new(http::StatusCode::INTERNAL_SERVER_ERROR)),
            },
        }
    }
}

fn reply(stream: Arc<Stream>, body: crate::http::Body) -> Reply<AnswerHead> {
    let close = stream.info.lock().close;
    Reply {
        head: AnswerHead::Stream(stream),
        body,
        close,
    }
}

impl Observer for Inner {
    fn head(&self, stream: &Arc<Stream>) {
        let options = &stream.config.options;
        let closing = self.is_closing();
        let (start, single, mut close, held) = {
            let single = stream.request.lock().version < http::Version::HTTP_2;
            let mut info = stream.info.lock();
            let unread = info.request_end.is_none();
            let held = info.held.filter(|_| unread);
            // Nobody waits for the rest of a request that has been answered already.
            info.close |= unread && held.is_none();
            info.close |= info.local_reply && stream.is_cut();
            let held = held.filter(|_| info.local_reply);
            if let Some(length) = held {
                info.bytes_received = length;
            }
            // A stream of HTTP/2 ends without its connection.
            info.close &= single;
            (info.start, single, info.close, held)
        };
        if held.is_some() {
            stream.request_ended();
        }
        close |= closing;
        let mut response = stream.response.lock();
        let Some(response) = &mut *response else {
            return;
        };
        let switches = response.status == http::StatusCode::SWITCHING_PROTOCOLS
            && stream.request.lock().upgrade.is_some();
        remove_hop_by_hop(&mut response.headers, switches);
        if let Some(via) = &options.via {
            append_via(&mut response.headers, via);
        }
        {
            let request = stream.request.lock();
            let forced = options.always_set_request_id_in_response
                || request.headers.contains_key(FORCE_TRACE);
            if forced && let Some(id) = request.headers.get(X_REQUEST_ID) {
                response.headers.insert(X_REQUEST_ID, id.clone());
            }
        }
        if !response.headers.contains_key(header::DATE) {
            let now = start + stream.info.lock().begin.elapsed();
            let date = self
                .context
                .dates
                .get_or_init(WorkerCell::default)
                .lock()
                .at(now);
            response.headers.insert(header::DATE, date);
        }
        match options.server_header {
            ServerHeader::Overwrite => {
                response
                    .headers
                    .insert(header::SERVER, options.server_name.clone());
            }
            ServerHeader::AppendIfAbsent => {
                response
                    .headers
                    .entry(header::SERVER)
                    .or_insert_with(|| options.server_name.clone());
            }
            ServerHeader::PassThrough => {}
        }
        if closing
            && let Some(records) = &stream.config.records
            && !self.drained.swap(true, Ordering::Relaxed)
        {
            records.http.inc(stat::DOWNSTREAM_CX_DRAIN_CLOSE);
        }
        stream.info.lock().close = close;
        if close && single && !switches {
            // The codec says so by itself; here it is for those who look at the head still, as in Envoy.
            let value = HeaderValue::from_static("close");
            response.headers.insert(header::CONNECTION, value);
        }
    }

    fn upgrading(&self, stream: &Arc<Stream>) {
        if let Some(records) = &stream.config.records {
            records.http.inc(stat::DOWNSTREAM_CX_UPGRADES_TOTAL);
            records.http.inc(stat::DOWNSTREAM_CX_UPGRADES_ACTIVE);
        }
    }

    fn log(&self, stream: &Arc<Stream>) {
        let Some(records) = &stream.config.records else {
            return;
        };
        record(stream, &records.http, &records.listener);
        let left = ResponseFlag::DownstreamConnectionTermination;
        if stream.info.lock().flags.contains(left) && !self.left.swap(true, Ordering::Relaxed) {
            // Once a connection, however many requests it had.
            let http = &records.http;
            http.inc(stat::DOWNSTREAM_CX_DESTROY_ACTIVE_RQ);
            http.inc(stat::DOWNSTREAM_CX_DESTROY_REMOTE_ACTIVE_RQ);
        }
        records.access_log.log(stream);
    }
}

/// Counts a stream that is over.
fn record(stream: &Stream, http: &StatSet, listener: &StatSet) {
    http.dec(stat::DOWNSTREAM_RQ_ACTIVE);
    let status = stream
        .response
        .lock()
        .as_ref()
        .map(|head| head.status.as_u16());
    let single = stream.request.lock().version < http::Version::HTTP_2;
    let info = stream.info.lock();
    let malformed = single
        && info.details.as_deref() != Some("request_header_timeout")
        && (info.refused == Some(RefusedBy::Codec)
            || info.request_end.is_none()
                && info
                    .details
                    .as_deref()
                    .is_some_and(|details| details.starts_with("http1.")));
    // As in Envoy, health checks are not counted by their answers.
    if let Some(status) = status.filter(|_| !info.health_check) {
        http.inc(stat::DOWNSTREAM_RQ_COMPLETED);
        listener.inc(listener_http::DOWNSTREAM_RQ_COMPLETED);
        let class = match status / 100 {
            1 => Some((stat::DOWNSTREAM_RQ_1XX, listener_http::DOWNSTREAM_RQ_1XX)),
            2 => Some((stat::DOWNSTREAM_RQ_2XX, listener_http::DOWNSTREAM_RQ_2XX)),
            3 => Some((stat::DOWNSTREAM_RQ_3XX, listener_http::DOWNSTREAM_RQ_3XX)),
            4 => Some((stat::DOWNSTREAM_RQ_4XX, listener_http::DOWNSTREAM_RQ_4XX)),
            5 => Some((stat::DOWNSTREAM_RQ_5XX, listener_http::DOWNSTREAM_RQ_5XX)),
            // An upstream may answer with 600 to 999.
            _ => None,
        };
        if let Some((class, listener_class)) = class {
            http.inc(class);
            listener.inc(listener_class);
        }
        let took = info
            .end
            .unwrap_or_else(Instant::now)
            .saturating_duration_since(info.begin);
        http.record(
            stat::DOWNSTREAM_RQ_TIME,
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        );
    }
    if info
        .flags
        .contains(ResponseFlag::DownstreamConnectionTermination)
        || info.flags.contains(ResponseFlag::DownstreamRemoteReset)
        || info.details.as_deref() == Some("too_many_premature_resets")
    {
        http.inc(stat::DOWNSTREAM_RQ_RX_RESET);
    }
    if info.reset {
        // Envoy hears of its own resets as it hears of the client's.
        http.inc(stat::DOWNSTREAM_RQ_TX_RESET);
        http.inc(stat::DOWNSTREAM_RQ_RX_RESET);
    } else if status.is_some() && info.end.is_some() && (info.request_end.is_none() || malformed) {
        // It resets what is answered before it has ended, and what is no request never ends.
        http.inc(stat::DOWNSTREAM_RQ_RESPONSE_BEFORE_RQ_COMPLETE);
        http.inc(stat::DOWNSTREAM_RQ_RX_RESET);
    }
    if malformed {
        http.inc(stat::DOWNSTREAM_CX_PROTOCOL_ERROR);
    }
    match info.details.as_deref() {
        Some("route_not_found") => http.inc(stat::NO_ROUTE),
        Some("cluster_not_found") => http.inc(stat::NO_CLUSTER),
        Some("stream_idle_timeout") => http.inc(stat::DOWNSTREAM_RQ_IDLE_TIMEOUT),
        Some("request_overall_timeout") => http.inc(stat::DOWNSTREAM_RQ_TIMEOUT),
        Some("request_header_timeout") => http.inc(stat::DOWNSTREAM_RQ_HEADER_TIMEOUT),
        Some("max_duration_timeout") => http.inc(stat::DOWNSTREAM_RQ_MAX_DURATION_REACHED),
        Some("request_payload_too_large") => http.inc(stat::DOWNSTREAM_RQ_TOO_LARGE),
        Some("response_payload_too_large") => http.inc(stat::RS_TOO_LARGE),
        Some("absolute_path_rejected") => http.inc(stat::DOWNSTREAM_RQ_NON_RELATIVE_PATH),
        Some("upgrade_failed") => http.inc(stat::DOWNSTREAM_RQ_WS_ON_NON_WS_ROUTE),
        // Redirects as well: `rq_redirect` is 0 in Envoy.
        Some("direct_response") => http.inc(stat::RQ_DIRECT_RESPONSE),
        _ => {}
    }
    if info.reached_router {
        http.inc(stat::RQ_TOTAL);
    }
    if info.upgrade {
        http.dec(stat::DOWNSTREAM_CX_UPGRADES_ACTIVE);
    }
    // Those of the codec's own included: each is an answer, as in Envoy.
    let interim = u64::from(stream.connection.meter.take_interim());
    if interim > 0 {
        http.add(stat::DOWNSTREAM_RQ_COMPLETED, interim);
        http.add(stat::DOWNSTREAM_RQ_1XX, interim);
        listener.add(listener_http::DOWNSTREAM_RQ_COMPLETED, interim);
        listener.add(listener_http::DOWNSTREAM_RQ_1XX, interim);
    }
}

/// Connection headers end at this hop; an upgrade's go on.
fn remove_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let connection = !upgrade && headers.contains_key(header::CONNECTION);
    take_out_all(headers, |name| match name.as_str() {
        "connection" | "upgrade" => connection,
        "keep-alive" | "proxy-connection" | "transfer-encoding" => true,
        _ => false,
    });
}
