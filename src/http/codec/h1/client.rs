//! The upstream HTTP/1 connection: one exchange at a time.
//!
//! The request is written while the response is awaited, and the response may come first. A response that is in memory
//! as a whole when its head is read gives the connection back at once; otherwise its body holds the connection. The
//! rest of an upload that is overtaken by its response is sent by a task of its own, since nobody else would poll it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::AsyncWrite as _;

use super::super::client::SendError;
use super::super::{ConnectionMeter, Ending, Io};
use super::decode::{Framing, Piece};
use super::encode::{self, OutBuf, Sending};
use super::incoming::{ResponseBody, Wire, hint};
use super::outgoing::{Outgoing, Sent};
use super::parse;
use super::response::{self, Asked, MAX_HEAD, Response};
use super::violation::Violation;
use crate::base::task::OwnedTask;
use crate::config::cluster::Http1Options;
use crate::http::{Body, BodyError, Interim, Lend, RequestHead, ResponseHead};

/// An HTTP/1 connection that is ready for an exchange.
#[derive(Debug)]
pub struct Http1(Box<Conn>);

#[derive(Debug)]
struct Conn {
    wire: Wire,
    proper_case: bool,
    trailers: bool,
    /// An exchange was completed on it.
    reused: bool,
}

impl Http1 {
    /// Takes over a fresh connection. Bytes, and how it ends, are told to `meter`, whose other owner keeps the
    /// statistics.
    pub fn new(io: Io, options: &Http1Options, meter: Arc<ConnectionMeter>) -> Self {
        Self(Box::new(Conn {
            wire: Wire::new(io, meter),
            proper_case: options.proper_case,
            trailers: options.enable_trailers,
            reused: false,
        }))
    }

    /// False once the peer has closed the idle connection, or sent something that nobody asked for: ask before use.
    /// Costs no system call where nothing has happened. Replaces the waker of [`Http1::poll_closed`].
    pub fn is_open(&mut self) -> bool {
        self.poll_closed(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    /// Ready when the idle connection is no longer usable; registers the waker otherwise.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wire = &mut self.0.wire;
        if wire.eof || !wire.buf.is_empty() {
            return Poll::Ready(());
        }
        let read = ready!(wire.poll_read(cx));
        wire.meter.set_ending(match read {
            // A peer that closes in time may say so: 408 before FIN.
            Ok(count) if count > 0 && !wire.buf.starts_with(b"HTTP/1.1 408") => Ending::Malformed,
            _ => Ending::Peer,
        });
        Poll::Ready(())
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// `reclaim` is given the connection back when both messages have ended cleanly and it may be used again: perhaps
    /// before this future ends, perhaps when the response body has been read. Otherwise it is dropped, and the
    /// connection closed. Dropping the future, or the response body before its end, closes the connection.
    ///
    /// The body of an upgrade or CONNECT is held back until the peer has agreed. From then on both bodies are the
    /// tunnel's bytes; where the peer closes it, the response's ends in [`BodyError::Reset`] behind them.
    ///
    /// A caller that lends the head can send it again.
    pub async fn send<R>(
        self,
        head: impl Lend<RequestHead> + Send,
        body: Body,
        reclaim: R,
    ) -> Result<(ResponseHead, Body), SendError>
    where
        R: FnOnce(Self) + Send + 'static,
    {
        let mut conn = self.0;
        let meter = Arc::clone(&conn.wire.meter);
        let mut out = OutBuf::default();
        let (mut sending, method, upgrade, interim) = head.lend(|head| {
            let sending = encode::request_framing(head, body.size_hint().exact());
            encode::request(out.text(), head, sending, conn.proper_case);
            (
                sending,
                head.method.clone(),
                head.is_upgrade(),
                head.interim.clone(),
            )
        });
        drop(head);
        let (mut body, mut held) = (body, None);
        let tunnel = sending == Sending::Raw;
        if tunnel {
            held = Some(std::mem::take(&mut body));
            sending = Sending::Nothing;
        }
        let mut upload = Some(Outgoing::new(
            out,
            sending,
            body,
            conn.trailers,
            conn.proper_case,
        ));
        let asked = Asked {
            method: &method,
            upgrade,
            trailers: conn.trailers,
        };
        let mut scanned = 0;
        let mut unread = false;
        let response = poll_fn(|cx| {
            if let Some(outgoing) = &mut upload
                && let Poll::Ready(sent) = conn.poll_upload(cx, outgoing)
            {
                upload = None;
                match sent {
                    Sent::Whole => {}
                    Sent::Broken(error) => return Poll::Ready(Err(SendError::RequestBody(error))),
                    // It may have answered before it closed.
                    Sent::Lost => unread = true,
                }
            }
            conn.poll_response(cx, asked, &mut scanned, interim.as_deref())
        })
        .await
        .inspect_err(|error| {
            meter.set_ending(match error {
                SendError::Closed { .. } => Ending::Peer,
                SendError::Protocol(_) => Ending::Malformed,
                _ => Ending::Open,
            });
        })?;

        let Response {
            head,
            framing,
            keep_alive,
        } = response;
        let agreed = head.status == StatusCode::SWITCHING_PROTOCOLS
            || (method == Method::CONNECT && head.status.is_success());
        let keep_alive = keep_alive && !unread && !tunnel;
        if tunnel && agreed && matches!(framing, Framing::UntilEnd) {
            let body = held.unwrap_or_default();
            let raw = Outgoing::new(OutBuf::default(), Sending::Raw, body, false, false);
            return Ok((head, shared(conn.wire, framing, raw, true, reclaim)));
        }
        if let Some(rest) = upload {
            return Ok((head, shared(conn.wire, framing, rest, false, reclaim)));
        }
        Ok((head, conn.body(framing, keep_alive, reclaim)))
    }
}

/// A body whose connection is shared with the rest of an upload. It is never given back; `reclaim` lives as long as the
/// exchange does.
fn shared<R>(wire: Wire, framing: Framing, upload: Outgoing, tunnel: bool, reclaim: R) -> Body
where
    R: FnOnce(Http1) + Send + 'static,
{
    let duplex = Arc::new(Mutex::new(Duplex {
        wire,
        failed: None,
        reader: None,
    }));
    let task = OwnedTask::spawn(
        "http1-upload",
        finish_upload(Arc::clone(&duplex), upload, tunnel),
    );
    Body::response(ResponseBody(Box::new(Arrival {
        owner: Owner::Shared(duplex, task),
        framing,
        tunnel,
        ready: None,
        failed: None,
        keep_alive: false,
        reclaim: Some(Box::new(reclaim)),
    })))
}

/// Sends the rest of a request while its response is read.
async fn finish_upload(duplex: Arc<Mutex<Duplex>>, mut upload: Outgoing, tunnel: bool) {
    let sent = poll_fn(|cx| {
        upload.poll(cx, |cx, out| {
            let Duplex { wire, .. } = &mut *duplex.lock();
            out.poll_write(&mut wire.io, &wire.meter, cx)
        })
    })
    .await;
    match sent {
        Sent::Whole if tunnel => {
            let shut = |cx: &mut Context<'_>| {
                let mut duplex = duplex.lock();
                Pin::new(&mut duplex.wire.io).poll_shutdown(cx)
            };
            let _ = poll_fn(shut).await;
        }
        Sent::Whole | Sent::Lost => {}
        Sent::Broken(error) => {
            let mut duplex = duplex.lock();
            duplex.failed = Some(error);
            if let Some(reader) = duplex.reader.take() {
                reader.wake();
            }
        }
    }
}

impl Conn {
    fn poll_upload(&mut self, cx: &mut Context<'_>, upload: &mut Outgoing) -> Poll<Sent> {
        let wire = &mut self.wire;
        upload.poll(cx, |cx, out| out.poll_write(&mut wire.io, &wire.meter, cx))
    }

    /// Reads until the head of the final response is there.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked<'_>,
        scanned: &mut usize,
        interim: Option<&Interim>,
    ) -> Poll<Result<Response, SendError>> {
        loop {
            let buf = &mut self.wire.buf;
            if let Some(end) = parse::find_end(buf, scanned) {
                *scanned = 0;
                if end > MAX_HEAD {
                    return Poll::Ready(Err(protocol(Violation::TOO_LARGE)));
                }
                let block = if end == buf.len() {
                    std::mem::take(buf).freeze()
                } else {
                    buf.split_to(end).freeze()
                };
                let response = match response::parse(&block, asked) {
                    Ok(response) => response,
                    Err(violation) => return Poll::Ready(Err(protocol(violation))),
                };
                let status = response.head.status;
                if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                    if let Some(interim) = interim {
                        interim.offer(response.head);
                    }
                    continue;
                }
                return Poll::Ready(Ok(response));
            }
            if buf.len() > MAX_HEAD {
                return Poll::Ready(Err(protocol(Violation::TOO_LARGE)));
            }
            // A peer that speaks something else may never end a line.
            let common = buf.len().min(7);
            if buf[..common] != b"HTTP/1."[..common] {
                return Poll::Ready(Err(protocol(Violation::CODEC)));
            }
            match ready!(self.wire.poll_read(cx)) {
                Ok(count) if count > 0 => {}
                _ if self.wire.buf.is_empty() => {
                    return Poll::Ready(Err(SendError::Closed {
                        reused: self.reused,
                    }));
                }
                _ => return Poll::Ready(Err(protocol(Violation::CODEC))),
            }
        }
    }

    /// The body of a response to a request that is written to its end.
    fn body<R>(mut self: Box<Self>, mut framing: Framing, keep_alive: bool, reclaim: R) -> Body
    where
        R: FnOnce(Http1) + Send + 'static,
    {
        let buf = &mut self.wire.buf;
        let mut ready = None;
        let mut failed = None;
        match &framing {
            Framing::Done => {
                self.finish(keep_alive, reclaim);
                return Body::empty();
            }
            Framing::Length(length) => {
                if let Ok(length) = usize::try_from(*length)
                    && buf.len() >= length
                {
                    let data = buf.split_to(length).freeze();
                    self.finish(keep_alive, reclaim);
                    return Body::full(data);
                }
            }
            Framing::Chunked(_) if !buf.is_empty() => match framing.next(buf) {
                Ok(Piece::Data(data)) if framing.is_done() => {
                    self.finish(keep_alive, reclaim);
                    return Body::of_unknown_length(data);
                }
                Ok(Piece::End) => {
                    self.finish(keep_alive, reclaim);
                    return Body::of_unknown_length(Bytes::new());
                }
                Ok(Piece::Data(data)) => ready = Some(Frame::data(data)),
                Ok(Piece::Trailers(trailers)) => ready = Some(Frame::trailers(trailers)),
                Ok(Piece::Hungry) => {}
                Err(_) => failed = Some(self.wire.broken(Ending::Malformed)),
            },
            Framing::Chunked(_) | Framing::UntilEnd => {}
        }
        Body::response(ResponseBody(Box::new(Arrival {
            owner: Owner::Sole(self),
            framing,
            tunnel: false,
            ready,
            failed,
            keep_alive,
            reclaim: Some(Box::new(reclaim)),
        })))
    }

    /// The exchange is complete: gives the connection back, or closes it.
    fn finish(mut self: Box<Self>, keep_alive: bool, reclaim: impl FnOnce(Http1)) {
        if !keep_alive {
            self.wire.meter.set_ending(Ending::Asked);
        } else if !self.wire.buf.is_empty() {
            self.wire.meter.set_ending(Ending::Spent);
        } else if self.wire.eof {
            self.wire.meter.set_ending(Ending::Peer);
        } else {
            self.wire.release();
            self.reused = true;
            reclaim(Http1(self));
        }
    }
}

impl Wire {
    fn broken(&self, ending: Ending) -> BodyError {
        self.meter.set_ending(ending);
        BodyError::Malformed(Violation::CODEC.details.into())
    }
}

fn protocol(violation: Violation) -> SendError {
    SendError::Protocol(violation.details.into())
}

/// A connection that a response body and an upload share.
#[derive(Debug)]
struct Duplex {
    wire: Wire,
    /// The request's body ended in an error.
    failed: Option<BodyError>,
    reader: Option<Waker>,
}

enum Owner {
    Sole(Box<Conn>),
    /// With the task that sends the rest of the request; dropping it closes the connection.
    Shared(
        Arc<Mutex<Duplex>>,
        #[allow(dead_code, reason = "owned")] OwnedTask,
    ),
    /// Given back or closed.
    Gone,
}

/// A response whose body is still arriving.
pub(super) struct Arrival {
    owner: Owner,
    framing: Framing,
    /// What is in it has no end of its own: that of the connection cuts it off.
    tunnel: bool,
    /// Read already, to be handed on first.
    ready: Option<Frame<Bytes>>,
    failed: Option<BodyError>,
    keep_alive: bool,
    reclaim: Option<Box<dyn FnOnce(Http1) + Send>>,
}

impl Arrival {
    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.ready {
            None => hint(&self.framing),
            Some(_) => SizeHint::default(),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ready.is_none() && self.failed.is_none() && self.framing.is_done()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.ready.take() {
            self.finish_if_done();
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = &self.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        if self.framing.is_done() {
            self.finish_if_done();
            return Poll::Ready(None);
        }
        let polled = match &mut self.owner {
            Owner::Sole(conn) => poll_piece(&mut conn.wire, &mut self.framing, self.tunnel, cx),
            Owner::Shared(duplex, _) => {
                let mut duplex = duplex.lock();
                if let Some(error) = duplex.failed.clone() {
                    Poll::Ready(Some(Err(error)))
                } else {
                    let polled = poll_piece(&mut duplex.wire, &mut self.framing, self.tunnel, cx);
                    if polled.is_pending() {
                        duplex.reader = Some(cx.waker().clone());
                    }
                    polled
                }
            }
            Owner::Gone => Poll::Ready(None),
        };
        if let Poll::Ready(polled) = &polled {
            if let Some(Err(error)) = polled {
                self.failed = Some(error.clone());
                self.owner = Owner::Gone;
            }
            self.finish_if_done();
        }
        polled
    }

    fn finish_if_done(&mut self) {
        if !self.framing.is_done() {
            return;
        }
        match std::mem::replace(&mut self.owner, Owner::Gone) {
            Owner::Sole(conn) => {
                if let Some(reclaim) = self.reclaim.take() {
                    conn.finish(self.keep_alive, reclaim);
                }
            }
            Owner::Shared(duplex, _) => {
                duplex.lock().wire.meter.set_ending(Ending::Spent);
                self.reclaim = None;
            }
            Owner::Gone => {}
        }
    }
}

fn poll_piece(
    wire: &mut Wire,
    framing: &mut Framing,
    tunnel: bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    loop {
        match framing.next(&mut wire.buf) {
            Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(Piece::Trailers(trailers)) => {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            Ok(Piece::End) => return Poll::Ready(None),
            Ok(Piece::Hungry) => {}
            Err(_) => return Poll::Ready(Some(Err(wire.broken(Ending::Malformed)))),
        }
        let read: io::Result<usize> = ready!(wire.poll_read(cx));
        match (read, &framing) {
            (Ok(count), _) if count > 0 => {}
            _ if tunnel => {
                wire.meter.set_ending(Ending::Peer);
                return Poll::Ready(Some(Err(BodyError::Reset)));
            }
            (Ok(_), Framing::UntilEnd) => {
                wire.meter.set_ending(Ending::Eof);
                *framing = Framing::Done;
                return Poll::Ready(None);
            }
            _ => return Poll::Ready(Some(Err(wire.broken(Ending::Truncated)))),
        }
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival")
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}
