//! The downstream HTTP/2 connection: the library's, inside our idea of a connection's life.
//!
//! One task serves it all: streams that are due come first, then the library's connection, so that what they have said goes
//! out in one piece.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::Reason;
use h2::server::{Builder, Connection, Handshake};
use tokio::time::{Instant, Sleep};

use super::super::h1::Wire;
use super::super::server::ConnectionEnd;
use super::super::{ConnectionMeter, Ending, Handler};
use super::io::{Gathered, Metered};
use super::keepalive::KeepAlive;
use super::sending::Chunk;
use super::streams::Streams;
use super::tails::{Tail, TailWatch, Tails};
use super::wakes::Wakes;
use crate::base::drain::DrainWatch;
use crate::config::http_connection_manager::Options;

/// Serves until the connection ends.
pub(in super::super) async fn serve<H: Handler>(
    wire: Wire,
    options: Arc<Options>,
    handler: H,
    drain: DrainWatch,
) -> ConnectionEnd {
    let meter = Arc::clone(&wire.meter);
    let io = Gathered::new(Metered::new(wire.io, wire.buf.freeze(), wire.meter));
    let wakes = Arc::<Wakes>::default();
    let tails = Arc::new(Tails::new(options.stream_idle_timeout));
    let mut served = Served {
        library: Library::Handshake(builder(&options).handshake(io.clone())),
        io,
        blocked: None,
        pace: Pace::default(),
        keepalive: None,
        silent: false,
        timers: Timers::new(&options, drain),
        tail_watch: TailWatch::new(Arc::clone(&tails), Arc::clone(&meter)),
        stuck: false,
        ending: None,
        has_news: false,
        farewell: None,
        connection_waker: wakes.connection(),
        timers_waker: wakes.timers(),
        streams: Streams::new(
            handler,
            Arc::clone(&options),
            Arc::clone(&tails),
            Arc::clone(&wakes),
        ),
        tails,
        options,
        meter,
    };
    let mut due = Vec::new();
    let mut begun = false;
    poll_fn(|cx| {
        let parts = wakes.begin(cx, &mut due);
        let first = !std::mem::replace(&mut begun, true);
        if parts.timers || first {
            served.poll_timers();
        }
        for place in due.drain(..) {
            served.streams.poll(place);
        }
        let connection = parts.connection || first || wakes.take_connection();
        let polled = served.poll(connection, &wakes);
        if wakes.end() {
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await
}

/// A connection as its task sees it.
struct Served<H: Handler> {
    // Dropped first: who is dropped with it has something to say to the library's connection.
    streams: Streams<H>,
    library: Library,
    io: Gathered,
    /// Bytes wait for the peer to take some: counts as a tail, since no stream may be left that does.
    blocked: Option<Tail>,
    /// What has happened since.
    pace: Pace,
    keepalive: Option<KeepAlive>,
    /// Our PING was not answered.
    silent: bool,
    timers: Timers,
    tails: Arc<Tails>,
    tail_watch: TailWatch,
    /// A tail has waited for too long.
    stuck: bool,
    ending: Option<ConnectionEnd>,
    /// The library's connection was told something of which it wakes nobody.
    has_news: bool,
    farewell: Option<Farewell>,
    connection_waker: Waker,
    timers_waker: Waker,
    options: Arc<Options>,
    meter: Arc<ConnectionMeter>,
}

/// The library's connection.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one a connection, inside its task"
)]
enum Library {
    Handshake(Handshake<Gathered, Chunk>),
    Connection(Connection<Gathered, Chunk>),
}

/// How the library's connection ended.
enum Over {
    Well,
    /// Our PING was not answered.
    Silent,
    Failed(h2::Error),
    /// The peer is gone.
    Cut,
    /// The peer resets its streams too early.
    PrematureResets,
}

impl<H: Handler> Served<H> {
    fn poll_timers(&mut self) {
        if self.ending.is_none() {
            let mut cx = Context::from_waker(&self.timers_waker);
            if let Poll::Ready(end) = self.timers.poll(&mut cx, &self.streams, &self.options) {
                self.end(end);
            }
        }
    }

    /// Begins to end the connection: no more streams, and those that there are come to their ends.
    fn end(&mut self, end: ConnectionEnd) {
        self.ending = Some(end);
        if let Library::Connection(connection) = &mut self.library {
            connection.graceful_shutdown();
            self.has_news = true;
        }
    }

    /// What follows on the streams. `connection`: the library's connection is due.
    fn poll(&mut self, mut connection: bool, wakes: &Arc<Wakes>) -> Poll<ConnectionEnd> {
        loop {
            connection |= std::mem::take(&mut self.has_news);
            if connection && let Poll::Ready(over) = self.poll_library(wakes) {
                return Poll::Ready(self.over(over));
            }
            if self.streams.too_many_resets() {
                return Poll::Ready(self.over(Over::PrematureResets));
            }
            let mut cx = Context::from_waker(&self.timers_waker);
            if self.streams.close() && self.ending.is_none() {
                self.end(ConnectionEnd::Local);
            } else if !self.stuck && self.tail_watch.poll(&mut cx).is_ready() {
                self.stuck = true;
                if self.ending.is_none() {
                    self.end(ConnectionEnd::Local);
                }
            }
            connection = wakes.take_connection() || self.has_news;
            if !connection {
                break;
            }
        }
        let Some(end) = &self.ending else {
            return Poll::Pending;
        };
        let mut cx = Context::from_waker(&self.timers_waker);
        self.farewell
            .get_or_insert_with(|| Farewell::new(&self.options, &self.meter))
            .poll(&mut cx, &self.streams, &self.meter)
            .map(|()| end.clone())
    }

    /// Reads and writes, and begins the streams that came.
    fn poll_library(&mut self, wakes: &Arc<Wakes>) -> Poll<Over> {
        let mut cx = Context::from_waker(&self.connection_waker);
        if let Library::Handshake(handshake) = &mut self.library {
            match Pin::new(handshake).poll(&mut cx) {
                Poll::Ready(Ok(mut connection)) => {
                    self.keepalive = self.options.http2.keepalive.and_then(|limits| {
                        let pings = connection.ping_pong()?;
                        Some(KeepAlive::new(pings, limits, Arc::clone(&self.meter)))
                    });
                    if self.ending.is_some() {
                        connection.graceful_shutdown();
                    }
                    self.library = Library::Connection(connection);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Over::Failed(error)),
                Poll::Pending => {}
            }
        }
        if let Library::Connection(connection) = &mut self.library {
            loop {
                let paused = self.blocked.is_some() && self.pace.paused(&self.streams, &self.meter);
                self.io.pace(paused);
                // What wakes it from here on is news.
                wakes.take_connection();
                match connection.poll_accept(&mut cx) {
                    // Nobody waits until a socket takes what a silent peer does not.
                    Poll::Pending if self.silent => {
                        let _ = self.io.poll_out(&mut cx);
                        return Poll::Ready(Over::Silent);
                    }
                    // What they say is written with the next round.
                    Poll::Pending if self.streams.poll_fresh() => continue,
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        self.streams.begin(request, respond);
                        continue;
                    }
                    Poll::Ready(end) => {
                        // They have begun all the same.
                        self.streams.poll_fresh();
                        return Poll::Ready(match end {
                            Some(Err(error)) => Over::Failed(error),
                            _ if self.silent => Over::Silent,
                            _ => Over::Well,
                        });
                    }
                }
                let Some(keepalive) = &mut self.keepalive else {
                    break;
                };
                if keepalive.poll(&mut cx).is_pending() {
                    break;
                }
                self.keepalive = None;
                self.silent = true;
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
        }
        match self.io.poll_out(&mut cx) {
            Poll::Ready(Ok(())) => {
                if self.blocked.take().is_some() {
                    // It reads on where it was told not to.
                    self.has_news |= self.io.pace(false);
                }
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Over::Cut),
            Poll::Pending => {
                if self.blocked.is_none() {
                    self.blocked = Some(Tail::new(&self.tails));
                    self.pace.begin(&self.streams, &self.meter);
                }
                if self.io.poll_gone(&mut cx) {
                    // What was said to it is for nobody.
                    return Poll::Ready(Over::Cut);
                }
            }
        }
        Poll::Pending
    }

    fn over(&mut self, over: Over) -> ConnectionEnd {
        if matches!(over, Over::Silent) {
            self.meter.set_closed("http2_ping_timeout");
        }
        if !matches!(over, Over::PrematureResets)
            && let Some(end) = self.ending.take()
        {
            return end;
        }
        // Its streams learn of the end only now, and ask what it was.
        let (end, ending) = match over {
            Over::Well => return ConnectionEnd::Remote,
            Over::PrematureResets => (ConnectionEnd::PrematureResets, Ending::PrematureResets),
            Over::Silent => (ConnectionEnd::Local, Ending::Peer),
            Over::Failed(error) if error.is_library() => (
                ConnectionEnd::Protocol("http2.protocol_error".into()),
                Ending::Malformed,
            ),
            Over::Failed(_) | Over::Cut => (ConnectionEnd::Remote, Ending::Peer),
        };
        self.meter.set_ending(ending);
        end
    }
}

/// What a client asks while it takes nothing. A stream that it resets then lets go of all it had, but the library keeps an
/// entry for it until it has written something: so not too many may begin meanwhile.
#[derive(Debug, Default)]
struct Pace {
    /// Streams that had begun, and bytes that were sent, when it was looked at.
    begun: u32,
    sent: u64,
}

impl Pace {
    fn begin<H: Handler>(&mut self, streams: &Streams<H>, meter: &ConnectionMeter) {
        (self.begun, self.sent) = (streams.begun(), meter.sent());
    }

    /// True where nothing more is to be read before something is sent.
    fn paused<H: Handler>(&mut self, streams: &Streams<H>, meter: &ConnectionMeter) -> bool {
        if streams.begun().wrapping_sub(self.begun) < MOST_AHEAD {
            return false;
        }
        // With a frame of each the library has come past all that it had to say something of.
        let round = (streams.active() as u64 + 1) * u64::from(FRAME);
        if meter.sent() - self.sent >= round {
            self.begin(streams, meter);
            return false;
        }
        true
    }
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
    fn poll<H: Handler>(
        &mut self,
        cx: &mut Context<'_>,
        streams: &Streams<H>,
        meter: &ConnectionMeter,
    ) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let (now, moved) = (Instant::now(), meter.received() + meter.sent());
            let silent = moved == self.moved && streams.active() == 0;
            let since = if silent { streams.idle_since() } else { now };
            if silent && since + self.limit <= now {
                return Poll::Ready(());
            }
            self.moved = moved;
            self.timer.as_mut().reset(since + self.limit);
        }
        Poll::Pending
    }
}

/// So many streams may be reset for what the peer did with them, before the connection is.
const MOST_RESET: usize = 1024;
/// So many streams that we have reset are remembered for what may still come on them: each beyond counts as one that the
/// peer has broken.
const REMEMBERED: usize = 1024;
/// So many streams may begin while the peer takes nothing.
const MOST_AHEAD: u32 = 1024;
/// So many that came at once may be reset before we have seen them. [`Streams::too_many_resets`] judges those that we have;
/// this bounds what the library reads at once.
const MOST_UNSEEN: usize = 4096;
/// Bytes of a frame at most.
const FRAME: u32 = 16 << 10;
/// What small frames that nobody has read yet may cost beyond their bytes, on one connection. The library's own measure is
/// half the connection's window, which a stream of messages of a few bytes spends long before its window.
const FRAMES: usize = 32 << 20;
/// Bytes of one response that the library holds at most.
const MOST_QUEUED: usize = 400 << 10;

fn builder(options: &Options) -> Builder {
    let http2 = &options.http2;
    // Twice the limit: below that the stream is ours to reset, as Envoy does.
    let list = u32::try_from(options.max_request_headers.saturating_mul(2)).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(http2.max_concurrent_streams)
        .initial_window_size(http2.initial_stream_window)
        .initial_connection_window_size(http2.initial_connection_window)
        .max_frame_size(FRAME)
        .max_header_list_size(list)
        .max_local_error_reset_streams(Some(MOST_RESET))
        .max_concurrent_reset_streams(REMEMBERED)
        .max_pending_accept_reset_streams(MOST_UNSEEN)
        .data_frame_budget(FRAMES)
        .max_send_buffer_size(MOST_QUEUED);
    if http2.allow_connect {
        builder.enable_connect_protocol();
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

    fn poll<H: Handler>(
        &mut self,
        cx: &mut Context<'_>,
        streams: &Streams<H>,
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
                let since = if streams.active() > 0 {
                    now
                } else {
                    streams.idle_since()
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
