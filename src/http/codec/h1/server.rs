//! The downstream HTTP/1 connection: one future that reads heads, polls the handler and writes its answers.
//!
//! Requests are answered in order, one at a time; what a client pipelines waits in the socket, and up to 64 KiB of it
//! in memory. A client that closes its side, even half, gets no answer: the handler's future is dropped (Envoy does
//! the same).

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf as _;
use futures_util::FutureExt as _;
use http::{Method, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, Sleep};

use super::super::server::ConnectionEnd;
use super::super::{Exchange, Handler, Malformed, Reply, Reset};
use super::decode::Framing;
use super::encode::{self, Answering, OutBuf, Persistence, Sending};
use super::incoming::{Client, Shared, Wire};
use super::outgoing::{Outgoing, Sent, Stall};
use super::parse;
use super::request::{self, Request};
use super::violation::Violation;
use crate::base::drain::DrainWatch;
use crate::config::http_connection_manager::Options;
use crate::http::{Body, BodyError, Lend as _, LocalReply, ReplyReason};

/// As much of the HTTP/2 preface as decides.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// A downstream connection.
pub(in super::super) struct Server<H> {
    shared: Arc<Shared>,
    handler: H,
    options: Arc<Options>,
    drain: DrainWatch,
    /// Watch for an HTTP/2 preface before the first request.
    detect: bool,
    timers: Timers,
    /// Requests begun.
    served: u32,
}

/// How [`Server::run`] ended.
pub(in super::super) enum Outcome<H> {
    End(ConnectionEnd),
    /// The client speaks HTTP/2: nothing was taken from the wire.
    Http2 {
        wire: Wire,
        handler: H,
        options: Arc<Options>,
        drain: DrainWatch,
    },
}

#[derive(Default)]
struct Timers {
    idle: Option<Pin<Box<Sleep>>>,
    /// `max_connection_duration`, and `drain_timeout` behind it.
    life: Option<Pin<Box<Sleep>>>,
    /// The first of these is over.
    expired: bool,
}

/// What came of waiting for more of a head.
enum More {
    Read,
    Remote,
    Idle,
    Duration,
    HeadTimeout,
}

/// What came of waiting for a head.
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and moved once"
)]
enum Head {
    Request(Request),
    Refused(LocalReply),
    End(ConnectionEnd),
    Http2,
}

/// What came of writing a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// All of it.
    Whole,
    /// The body failed, or does not fit its head: what was written must not look complete.
    Broken,
    /// The client is gone, or takes nothing any more.
    Gone,
}

type Answer<H> = Result<Result<Reply<H>, Reset>, Box<dyn Any + Send>>;

impl<H: Handler> Server<H> {
    pub(in super::super) fn new(
        wire: Wire,
        options: Arc<Options>,
        handler: H,
        drain: DrainWatch,
        detect: bool,
    ) -> Self {
        let life = options
            .max_connection_duration
            .map(|life| Box::pin(tokio::time::sleep(life)));
        Self {
            shared: Shared::new(wire),
            handler,
            options,
            drain,
            detect,
            timers: Timers {
                life,
                ..Timers::default()
            },
            served: 0,
        }
    }

    /// Serves until the connection ends, or turns out to be HTTP/2.
    pub(in super::super) async fn run(mut self) -> Outcome<H> {
        loop {
            let end = match self.head().await {
                // Boxed, so that an idle connection is small: the handler's future lies within.
                Head::Request(request) => match Box::pin(self.exchange(request)).await {
                    None => continue,
                    Some(end) => {
                        self.shared.lock().abandon();
                        end
                    }
                },
                Head::Refused(reply) => {
                    let refusal = self.handler.malformed(Malformed { head: None, reply });
                    Box::pin(self.refuse(refusal)).await;
                    ConnectionEnd::Local
                }
                Head::End(end) => end,
                Head::Http2 => match Shared::into_wire(self.shared) {
                    None => ConnectionEnd::Local,
                    Some(wire) => {
                        return Outcome::Http2 {
                            wire,
                            handler: self.handler,
                            options: self.options,
                            drain: self.drain,
                        };
                    }
                },
            };
            return Outcome::End(end);
        }
    }

    /// Waits for a request's head.
    async fn head(&mut self) -> Head {
        let idle_since = Instant::now();
        let mut scanned = 0;
        let mut head_timer: Option<Pin<Box<Sleep>>> = None;
        let limit = self.head_limit();
        loop {
            let started = match self.take_head(&mut scanned) {
                Ok(Some(head)) => return head,
                Ok(None) => !self.shared.lock().wire.buf.is_empty(),
                Err(violation) => {
                    return Head::Refused(violation.malformed(None).reply);
                }
            };
            if started && head_timer.is_none() {
                head_timer = limit.map(|limit| Box::pin(tokio::time::sleep(limit)));
            }
            let more = poll_fn(|cx| {
                let timer = head_timer.as_mut().map(Pin::as_mut);
                self.poll_more(cx, started, idle_since, timer)
            })
            .await;
            return match more {
                More::Read => continue,
                More::HeadTimeout => Head::Refused(self.head_too_late()),
                More::Remote => Head::End(ConnectionEnd::Remote),
                More::Idle => Head::End(ConnectionEnd::Idle),
                More::Duration => Head::End(ConnectionEnd::Duration),
            };
        }
    }

    /// How long a head may take from its first byte on. A head that never ends is an idle stream.
    fn head_limit(&self) -> Option<Duration> {
        let limits = [
            self.options.request_headers_timeout,
            self.options.stream_idle_timeout,
        ];
        limits.into_iter().flatten().min()
    }

    /// The answer where it takes longer.
    fn head_too_late(&self) -> LocalReply {
        if self.head_limit() == self.options.request_headers_timeout {
            return ReplyReason::RequestHeaderTimeout.into();
        }
        let mut reply: LocalReply = ReplyReason::StreamIdle.into();
        reply.status = StatusCode::REQUEST_TIMEOUT;
        reply
    }

    /// The head at the front of the buffer, if it is all there.
    fn take_head(&mut self, scanned: &mut usize) -> Result<Option<Head>, Violation> {
        let mut half = self.shared.lock();
        let buf = &mut half.wire.buf;
        if self.detect && !buf.is_empty() {
            let common = PREFACE.len().min(buf.len());
            if buf[..common] != PREFACE[..common] {
                self.detect = false;
            } else if common == PREFACE.len() {
                return Ok(Some(Head::Http2));
            } else {
                return Ok(None);
            }
        }
        if *scanned == 0 {
            let blank = parse::leading_blank(buf);
            buf.advance(blank);
        }
        let Some(end) = parse::find_end(buf, scanned) else {
            if buf.len() > self.options.max_request_headers {
                return Err(Violation::TOO_LARGE);
            }
            // What cannot become a request is refused before its end, which may never come.
            let hopeless = match buf[..] {
                [] | [b'\r'] | [b'\r', b'\n', ..] => false,
                [first, ..] => !first.is_ascii_uppercase(),
            };
            if hopeless {
                return Err(Violation::CODEC.or_characters(buf));
            }
            half.wire.release();
            return Ok(None);
        };
        if end > self.options.max_request_headers {
            return Err(Violation::TOO_LARGE);
        }
        let block = if end == buf.len() {
            std::mem::take(buf).freeze()
        } else {
            buf.split_to(end).freeze()
        };
        drop(half);
        let request = request::parse(&block, &self.options)?;
        self.detect = false;
        Ok(Some(Head::Request(request)))
    }

    fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
        started: bool,
        idle_since: Instant,
        head_timer: Option<Pin<&mut Sleep>>,
    ) -> Poll<More> {
        {
            let mut half = self.shared.lock();
            half.served_by(cx);
            match half.wire.poll_read(cx) {
                Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(More::Read),
                Poll::Ready(_) => return Poll::Ready(More::Remote),
                Poll::Pending => {}
            }
        }
        let timers = &mut self.timers;
        // An old connection is not cut at once: a request may be on its way, and is told that it is the last.
        while let Some(life) = &mut timers.life
            && life.as_mut().poll(cx).is_ready()
        {
            if timers.expired {
                timers.life = None;
            } else {
                timers.expired = true;
                let grace = self.options.drain_timeout;
                life.as_mut().reset(Instant::now() + grace);
            }
        }
        if started {
            return match head_timer {
                Some(timer) => timer.poll(cx).map(|()| More::HeadTimeout),
                None => Poll::Pending,
            };
        }
        if timers.expired && timers.life.is_none() {
            return Poll::Ready(More::Duration);
        }
        match self.options.idle_timeout {
            Some(limit) => timers.poll_idle(cx, idle_since + limit),
            None => Poll::Pending,
        }
    }

    /// One request and its answer. `None` where the connection goes on.
    async fn exchange(&mut self, request: Request) -> Option<ConnectionEnd> {
        self.served = self.served.saturating_add(1);
        let Request {
            head,
            framing,
            keep_alive,
            expects,
        } = request;
        let answering = Answering {
            head_request: head.method == Method::HEAD,
            connect: head.method == Method::CONNECT,
            upgrade: head.upgrade.is_some(),
            old: head.version == Version::HTTP_10,
        };
        if expects && !self.interim(head.version).await {
            return Some(ConnectionEnd::Remote);
        }
        let body = self.body(framing);
        let request = Exchange { head, body };
        let mut before = OutBuf::default();
        let answer = match self.answer(request, answering, &mut before).await {
            Some(answer) => answer,
            None => return Some(ConnectionEnd::Remote),
        };
        let reply = match answer {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => return Some(ConnectionEnd::Local),
            Err(_panic) => {
                let reply = ReplyReason::FilterPanic.into();
                let mut reply = self.handler.malformed(Malformed { head: None, reply });
                reply.close = true;
                reply
            }
        };
        let limit = self.options.max_requests_per_connection;
        let draining = self.drain.is_draining();
        let close = reply.close
            || !keep_alive
            || draining
            || self.timers.is_expired()
            || limit.is_some_and(|limit| self.served >= limit)
            || answering.upgrade
            || answering.connect;
        let (written, close) = self.write(reply, answering, close, before).await;
        match written {
            Written::Whole => {}
            Written::Broken => {
                self.abort(answering);
                return Some(ConnectionEnd::Local);
            }
            Written::Gone => return Some(ConnectionEnd::Remote),
        }
        let complete = self.finish_request().await;
        if !close && complete {
            return None;
        }
        self.close(complete).await;
        Some(if draining {
            ConnectionEnd::Drained
        } else if self.timers.is_expired() {
            ConnectionEnd::Duration
        } else {
            ConnectionEnd::Local
        })
    }

    /// Writes `100 Continue`; false where the client is gone.
    async fn interim(&mut self, version: Version) -> bool {
        let mut out = OutBuf::default();
        encode::interim(out.text(), version);
        self.shared.lock().wire.meter.add_interim();
        let written = poll_fn(|cx| self.shared.lock().poll_write(cx, &mut out));
        match self.options.stream_idle_timeout {
            Some(limit) => matches!(tokio::time::timeout(limit, written).await, Ok(Ok(()))),
            None => written.await.is_ok(),
        }
    }

    /// The body of a request that is framed so; in memory, where all of it is there.
    fn body(&self, framing: Framing) -> Body {
        let here = match framing {
            Framing::Done => Some(0),
            Framing::Length(length) => usize::try_from(length).ok(),
            Framing::Chunked(_) | Framing::UntilEnd => None,
        };
        if let Some(length) = here {
            let mut half = self.shared.lock();
            let buf = &mut half.wire.buf;
            if buf.len() >= length {
                let data = if buf.len() == length {
                    std::mem::take(buf).freeze()
                } else {
                    buf.split_to(length).freeze()
                };
                half.framing = Framing::Done;
                return Body::full(data);
            }
        }
        Body::request(self.shared.begin(framing))
    }

    /// Polls the handler until it answers. `None`: the client is gone, and the handler's future was dropped. An interim
    /// answer is written meanwhile; what is left of it in `before` comes before the answer.
    async fn answer(
        &mut self,
        request: Exchange,
        answering: Answering,
        before: &mut OutBuf,
    ) -> Option<Answer<H::Head>> {
        let interim = request.head.interim.clone();
        let proper_case = self.options.http1.proper_case;
        let begun = std::panic::catch_unwind(AssertUnwindSafe(|| self.handler.request(request)));
        let answer = match begun {
            Ok(answer) => AssertUnwindSafe(answer).catch_unwind(),
            Err(panic) => return Some(Err(panic)),
        };
        let mut answer = pin!(answer);
        poll_fn(|cx| {
            loop {
                self.shared.lock().served_by(cx);
                let polled = answer.as_mut().poll(cx);
                if let Some(interim) = &interim
                    && let Poll::Ready(head) = interim.poll_take(cx)
                {
                    let (text, persistence) = (before.text(), Persistence::Implied);
                    let sending = Sending::Nothing;
                    encode::response(text, &head, sending, answering, persistence, proper_case);
                    self.shared.lock().wire.meter.add_interim();
                }
                if let Poll::Ready(answer) = polled {
                    return Poll::Ready(Some(answer));
                }
                if !before.is_empty()
                    && let Poll::Ready(Err(_)) = self.shared.lock().poll_write(cx, before)
                {
                    return Poll::Ready(None);
                }
                match self.shared.lock().poll_client(cx) {
                    Poll::Ready(Client::Gone) => return Poll::Ready(None),
                    Poll::Ready(Client::Sent) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Writes a response, and says whether the connection must close behind it.
    async fn write(
        &mut self,
        reply: Reply<H::Head>,
        answering: Answering,
        close: bool,
        mut out: OutBuf,
    ) -> (Written, bool) {
        let Reply { head, body, .. } = reply;
        let exact = body.size_hint().exact();
        // Envoy keeps an HTTP/1.0 connection only where the length stands in the head before it is framed.
        let length_missing = answering.old && body.is_end_stream();
        let http1 = &self.options.http1;
        let (sending, close, tunnel) = head.lend(|head| {
            let sending = encode::response_framing(head, exact, answering);
            let tunnel = encode::is_tunnel(head.status, answering);
            let close = close
                || sending == Sending::Raw
                || (length_missing && !head.headers.contains_key(header::CONTENT_LENGTH));
            let persistence = match (close, answering.old) {
                _ if sending == Sending::Raw && answering.connect => Persistence::Implied,
                (true, _) => Persistence::Close,
                (false, true) => Persistence::KeepAlive,
                (false, false) => Persistence::Implied,
            };
            let (text, proper_case) = (out.text(), http1.proper_case);
            encode::response(text, head, sending, answering, persistence, proper_case);
            (sending, close, tunnel)
        });
        drop(head);
        let mut outgoing =
            Outgoing::new(out, sending, body, http1.enable_trailers, http1.proper_case);
        let mut stall = Stall::default();
        let shared = &self.shared;
        let written = poll_fn(|cx| {
            loop {
                shared.lock().served_by(cx);
                match outgoing.poll(cx, |cx, out| shared.lock().poll_write(cx, out)) {
                    Poll::Ready(Sent::Whole) => return Poll::Ready(Written::Whole),
                    // The upstream has closed a tunnel: the client may read what is on its way.
                    Poll::Ready(Sent::Broken(BodyError::Reset)) if tunnel => {
                        return Poll::Ready(Written::Whole);
                    }
                    Poll::Ready(Sent::Broken(_)) => return Poll::Ready(Written::Broken),
                    Poll::Ready(Sent::Lost) => return Poll::Ready(Written::Gone),
                    Poll::Pending => {}
                }
                // Until then it is the stream's own deadlines that count.
                let limit = self
                    .options
                    .stream_idle_timeout
                    .filter(|_| outgoing.is_gathered());
                if stall.poll(cx, limit, outgoing.out.left()) {
                    return Poll::Ready(Written::Gone);
                }
                match shared.lock().poll_client(cx) {
                    Poll::Ready(Client::Gone) => return Poll::Ready(Written::Gone),
                    Poll::Ready(Client::Sent) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        (written, close)
    }

    /// Ends the request side of an exchange that is answered; true where the request was read to its end.
    async fn finish_request(&mut self) -> bool {
        if self.shared.lock().finish_exchange() {
            return true;
        }
        // What has come by now is not waited for, but may be all that was missing.
        poll_fn(|cx| {
            let mut half = self.shared.lock();
            let _ = half.poll_client(cx);
            Poll::Ready(half.discard())
        })
        .await
    }

    /// Sends a last answer and closes.
    async fn refuse(&mut self, mut reply: Reply<H::Head>) {
        reply.close = true;
        let answering = Answering {
            head_request: false,
            connect: false,
            upgrade: false,
            old: false,
        };
        if let (Written::Whole, _) = self.write(reply, answering, true, OutBuf::default()).await {
            self.close(false).await;
        }
    }

    /// Closes after a response. A client that may still be sending is given time to read it: closing at once would
    /// reset the connection under it.
    async fn close(&mut self, complete: bool) {
        let shut = poll_fn(|cx| {
            let mut half = self.shared.lock();
            Pin::new(&mut half.wire.io).poll_shutdown(cx)
        })
        .await;
        let idle = complete && self.shared.lock().wire.buf.is_empty();
        let (Ok(()), false, Some(limit)) = (shut, idle, self.options.delayed_close_timeout) else {
            return;
        };
        let drained = poll_fn(|cx| {
            let mut half = self.shared.lock();
            loop {
                half.wire.buf.clear();
                match half.wire.poll_read(cx) {
                    Poll::Ready(Ok(count)) if count > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {
                        half.wire.release();
                        return Poll::Pending;
                    }
                }
            }
        });
        let _ = tokio::time::timeout(limit, drained).await;
    }

    /// A response that ends where the connection ends looks complete after a FIN: the client gets a reset instead.
    fn abort(&self, answering: Answering) {
        if answering.old || answering.connect || answering.upgrade {
            self.shared.lock().wire.io.reset_on_close();
        }
    }
}

impl Timers {
    fn is_expired(&self) -> bool {
        self.expired
            || self
                .life
                .as_ref()
                .is_some_and(|life| life.deadline() <= Instant::now())
    }

    /// The timer is not moved with every request: it looks at the true deadline when it fires.
    fn poll_idle(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<More> {
        let timer = self
            .idle
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(More::Idle);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
