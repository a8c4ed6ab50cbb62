//! The downstream HTTP/2 connection: hyper's, inside our idea of a connection's life.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::super::h1::Wire;
use super::super::server::ConnectionEnd;
use super::super::{ConnectionMeter, Ending, Exchange, Handler, Malformed, Reset};
use super::body::{IncomingBody, StreamGuard, http2_error};
use super::convert;
use super::io::HyperIo;
use super::runtime::Timer;
use super::sending::{Answer, Executor};
use super::tails::{TailWatch, Tails};
use crate::base::drain::DrainWatch;
use crate::config::http_connection_manager::Options;
use crate::http::{Body, Lend as _, ReplyReason};

/// What the streams of a connection tell it.
struct Streams {
    active: Arc<AtomicUsize>,
    begun: AtomicU32,
    /// A reply asked for the end of the connection.
    close: AtomicBool,
    /// When the last stream ended.
    idle_since: Mutex<Instant>,
}

/// Notes the end of a stream.
struct Stream {
    guard: Option<StreamGuard>,
    streams: Arc<Streams>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.guard = None;
        *self.streams.idle_since.lock() = Instant::now();
    }
}

struct Service<H> {
    handler: Arc<H>,
    options: Arc<Options>,
    streams: Arc<Streams>,
    executor: Executor,
}

impl<H: Handler> hyper::service::Service<Request<Incoming>> for Service<H> {
    type Response = Response<Answer<Stream>>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer<Stream>>, h2::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let stream = Stream {
            guard: Some(StreamGuard::new(&self.streams.active)),
            streams: Arc::clone(&self.streams),
        };
        let begun = self.streams.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = self.options.max_requests_per_connection;
        if limit.is_some_and(|limit| begun >= limit) {
            self.streams.close.store(true, Ordering::Relaxed);
        }
        let watch = self.executor.watch();
        let head_request = request.method() == Method::HEAD;
        let (head, incoming) = match convert::request_head(request, &self.options) {
            Ok(request) => request,
            Err(refusal) => {
                self.handler.refused(refusal);
                return Box::pin(std::future::ready(Err(reason(refusal.reset))));
            }
        };
        let body = Body::http2(IncomingBody::request(incoming));
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.handler.request(Exchange { head, body })
        }));
        let handler = Arc::clone(&self.handler);
        Box::pin(async move {
            let answer = match answer {
                Ok(answer) => AssertUnwindSafe(answer).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            let reply = match answer {
                Ok(Ok(reply)) => reply,
                Ok(Err(reset)) => return Err(reason(reset)),
                Err(_panic) => {
                    let reply = ReplyReason::FilterPanic.into();
                    let mut reply = handler.malformed(Malformed { head: None, reply });
                    reply.close = false;
                    reply
                }
            };
            if reply.close {
                stream.streams.close.store(true, Ordering::Relaxed);
            }
            let response =
                convert::response(reply.head.lend(Clone::clone), reply.body, head_request);
            // The stream counts as active until hyper has sent the body.
            Ok(response.map(|body| Answer::new(watch, body, stream)))
        })
    }
}

fn reason(reset: Reset) -> h2::Error {
    match reset {
        Reset::NoError => h2::Reason::NO_ERROR,
        Reset::Protocol => h2::Reason::PROTOCOL_ERROR,
        Reset::Internal => h2::Reason::INTERNAL_ERROR,
        Reset::Refused => h2::Reason::REFUSED_STREAM,
        Reset::Cancel => h2::Reason::CANCEL,
    }
    .into()
}

/// Serves until the connection ends.
pub(in super::super) async fn serve<H: Handler>(
    wire: Wire,
    options: Arc<Options>,
    handler: H,
    drain: DrainWatch,
) -> ConnectionEnd {
    let streams = Arc::new(Streams {
        active: Arc::default(),
        begun: AtomicU32::new(0),
        close: AtomicBool::new(false),
        idle_since: Mutex::new(Instant::now()),
    });
    let tails = Arc::new(Tails::new(options.stream_idle_timeout));
    let executor = Executor::new(Arc::clone(&tails));
    let service = Service {
        handler: Arc::new(handler),
        options: Arc::clone(&options),
        streams: Arc::clone(&streams),
        executor: executor.clone(),
    };
    let meter = Arc::clone(&wire.meter);
    let connection = builder(&options, executor).serve_connection(
        HyperIo::new(wire.io, wire.buf.freeze(), wire.meter),
        service,
    );
    let mut connection = pin!(connection);
    let mut timers = Timers::new(&options, drain);
    let mut tails = TailWatch::new(tails, Arc::clone(&meter));
    let mut stuck = false;
    let mut ending: Option<ConnectionEnd> = None;
    let mut farewell: Option<Farewell> = None;
    poll_fn(|cx| {
        if ending.is_none()
            && let Poll::Ready(end) = timers.poll(cx, &streams, &options)
        {
            ending = Some(end);
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(match (result, ending.take()) {
                (Err(error), None) => {
                    let end = end_of(&error);
                    // Its streams learn of the end only now, and ask what it was.
                    meter.set_ending(match end {
                        ConnectionEnd::Protocol(_) => Ending::Malformed,
                        _ => Ending::Peer,
                    });
                    end
                }
                (_, Some(end)) => end,
                (Ok(()), None) => ConnectionEnd::Remote,
            });
        }
        if ending.is_none() && streams.close.load(Ordering::Relaxed) {
            ending = Some(ConnectionEnd::Local);
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if !stuck && tails.poll(cx).is_ready() {
            stuck = true;
            if ending.is_none() {
                ending = Some(ConnectionEnd::Local);
                connection.as_mut().graceful_shutdown();
            }
            cx.waker().wake_by_ref();
        }
        if let Some(end) = &ending {
            let farewell = farewell.get_or_insert_with(|| Farewell::new(&options, &meter));
            return farewell.poll(cx, &streams, &meter).map(|()| end.clone());
        }
        Poll::Pending
    })
    .await
}

/// From the first GOAWAY on. The last one follows the peer's answer to a PING: a peer that is silent is not waited for.
struct Farewell {
    timer: Pin<Box<Sleep>>,
    /// `drain_timeout`.
    limit: Duration,
    /// Bytes received and sent when the timer was set: who still takes a response shows it by these.
    moved: u64,
}

impl Farewell {
    fn new(options: &Options, meter: &ConnectionMeter) -> Self {
        // Who is given no time at all would be looked at without end, and could not answer the PING.
        let limit = options.drain_timeout.max(Duration::from_secs(1));
        Self {
            timer: Box::pin(tokio::time::sleep(limit)),
            limit,
            moved: meter.received() + meter.sent(),
        }
    }

    /// Ready where for as long as the limit there was no stream, and nothing came or went.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        streams: &Streams,
        meter: &ConnectionMeter,
    ) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let (now, moved) = (Instant::now(), meter.received() + meter.sent());
            let silent = moved == self.moved && streams.active.load(Ordering::Relaxed) == 0;
            let since = if silent {
                *streams.idle_since.lock()
            } else {
                now
            };
            if silent && since + self.limit <= now {
                return Poll::Ready(());
            }
            self.moved = moved;
            self.timer.as_mut().reset(since + self.limit);
        }
        Poll::Pending
    }
}

fn end_of(error: &hyper::Error) -> ConnectionEnd {
    match http2_error(error) {
        Some(error) if error.is_library() => ConnectionEnd::Protocol("http2.protocol_error".into()),
        Some(_) => ConnectionEnd::Remote,
        None if error.is_timeout() => ConnectionEnd::Local,
        None => ConnectionEnd::Remote,
    }
}

fn builder(options: &Options, executor: Executor) -> hyper::server::conn::http2::Builder<Executor> {
    let http2 = &options.http2;
    let mut builder = hyper::server::conn::http2::Builder::new(executor);
    // Twice the limit: below that the stream is ours to reset, as Envoy does.
    let list = u32::try_from(options.max_request_headers.saturating_mul(2)).unwrap_or(u32::MAX);
    builder
        .timer(Timer)
        .auto_date_header(false)
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_stream_window_size(http2.initial_stream_window)
        .initial_connection_window_size(http2.initial_connection_window)
        .max_header_list_size(list);
    if http2.allow_connect {
        builder.enable_connect_protocol();
    }
    if let Some((interval, timeout)) = http2.keepalive {
        builder
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout);
    }
    builder
}

/// What may end the connection from our side.
struct Timers {
    idle: Option<Pin<Box<Sleep>>>,
    life: Option<Pin<Box<Sleep>>>,
    drain: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Timers {
    fn new(options: &Options, mut drain: DrainWatch) -> Self {
        let timer =
            |limit: Option<Duration>| limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
        Self {
            idle: timer(options.idle_timeout),
            life: timer(options.max_connection_duration),
            drain: Box::pin(async move { drain.draining().await }),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        streams: &Streams,
        options: &Options,
    ) -> Poll<ConnectionEnd> {
        if self.drain.as_mut().poll(cx).is_ready() {
            return Poll::Ready(ConnectionEnd::Drained);
        }
        if let Some(life) = &mut self.life
            && life.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(ConnectionEnd::Duration);
        }
        if let (Some(idle), Some(limit)) = (&mut self.idle, options.idle_timeout) {
            while idle.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                let since = if streams.active.load(Ordering::Relaxed) > 0 {
                    now
                } else {
                    *streams.idle_since.lock()
                };
                if since + limit <= now {
                    return Poll::Ready(ConnectionEnd::Idle);
                }
                idle.as_mut().reset(since + limit);
            }
        }
        Poll::Pending
    }
}
