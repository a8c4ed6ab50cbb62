//! The read side of a connection, and the bodies that are read from it on demand.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};

use super::super::{ConnectionMeter, Io};
use super::client::Arrival;
use super::decode::{Framing, Piece};
use super::encode::OutBuf;
use super::violation::Violation;
use crate::http::BodyError;

/// Reads up to this size go through the stack, so that nothing is allocated before there is something to keep.
const STACK_READ: usize = 16 << 10;
/// Sizes of the reads of a bulk body.
const BULK_READ: std::ops::RangeInclusive<usize> = (64 << 10)..=(256 << 10);
/// How far we read ahead of what anybody asked for, to notice that the peer is gone.
const READ_AHEAD: usize = 64 << 10;

/// A connection and what was read from it. An idle one holds no memory for reading.
#[derive(Debug)]
pub(in super::super) struct Wire {
    pub(in super::super) io: Io,
    pub(in super::super) buf: BytesMut,
    /// The peer has closed its side.
    pub(super) eof: bool,
    pub(in super::super) meter: Arc<ConnectionMeter>,
    /// 0, or the size of the next bulk read.
    bulk: usize,
}

impl Wire {
    pub(in super::super) fn new(io: Io, meter: Arc<ConnectionMeter>) -> Self {
        Self {
            io,
            buf: BytesMut::new(),
            eof: false,
            meter,
            bulk: 0,
        }
    }

    /// Reads once. Ready with 0 at the end, which is remembered.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let count = if self.bulk > 0 {
            ready!(self.poll_read_bulk(cx))?
        } else {
            ready!(self.poll_read_stack(cx))?
        };
        self.eof = count == 0;
        self.meter.add_received(count);
        Poll::Ready(Ok(count))
    }

    fn poll_read_stack(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut memory = [const { MaybeUninit::<u8>::uninit() }; STACK_READ];
        let mut read = ReadBuf::uninit(&mut memory);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        let count = read.filled().len();
        self.buf.extend_from_slice(read.filled());
        if count == STACK_READ {
            self.bulk = *BULK_READ.start();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_read_bulk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let free = self.buf.capacity() - self.buf.len();
        if free < STACK_READ {
            self.buf.reserve(self.bulk);
        }
        let room = self.buf.capacity() - self.buf.len();
        let polled = pin!(self.io.read_buf(&mut self.buf)).poll(cx);
        match polled {
            Poll::Ready(Ok(count)) => {
                if count == room {
                    self.bulk = (self.bulk * 2).min(*BULK_READ.end());
                } else if count < STACK_READ {
                    self.bulk = 0;
                }
            }
            Poll::Ready(Err(_)) | Poll::Pending => self.release(),
        }
        polled
    }

    /// Lets go of memory that holds nothing.
    pub(super) fn release(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }
}

/// The downstream half that the connection's task and the body of the request in hand share.
///
/// Never locked while a handler or a body runs. The lock is uncontended unless a body is read by another
/// thread, which works but is not meant.
pub(super) struct Half {
    pub(super) wire: Wire,
    /// Of the request in hand.
    pub(super) framing: Framing,
    /// Number of the request in hand: a body that outlives its exchange reads nothing.
    exchange: u64,
    /// Its body was asked for.
    asked: bool,
    failed: Option<BodyError>,
    /// The connection's task: whom the socket wakes.
    task: Waker,
    /// Another task that waits for body bytes.
    reader: Option<Waker>,
}

/// Shared [`Half`].
pub(super) struct Shared(Mutex<Half>);

impl Shared {
    pub(super) fn new(wire: Wire) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Half {
            wire,
            framing: Framing::Done,
            exchange: 0,
            asked: false,
            failed: None,
            task: Waker::noop().clone(),
            reader: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Half> {
        self.0.lock()
    }

    /// The connection alone, where nobody else holds it.
    pub(super) fn into_wire(this: Arc<Self>) -> Option<Wire> {
        Arc::into_inner(this).map(|shared| shared.0.into_inner().wire)
    }

    /// Begins a request whose body is framed so, and gives the body.
    pub(super) fn begin(self: &Arc<Self>, framing: Framing) -> RequestBody {
        let mut half = self.lock();
        half.exchange += 1;
        half.asked = false;
        half.failed = None;
        half.framing = framing;
        RequestBody {
            exchange: half.exchange,
            shared: Arc::clone(self),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// What is known of the client while its request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// It closed or reset the connection.
    Gone,
    /// More of the request's body has come.
    Sent,
}

impl Half {
    /// The task that serves the connection has this waker.
    pub(super) fn served_by(&mut self, cx: &Context<'_>) {
        if !self.task.will_wake(cx.waker()) {
            self.task = cx.waker().clone();
        }
    }

    /// Writes all of `out`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut OutBuf,
    ) -> Poll<io::Result<()>> {
        out.poll_write(&mut self.wire.io, &self.wire.meter, cx)
    }

    /// The exchange is over: its body, wherever it is, gives an error. True where all of it was read.
    pub(super) fn finish_exchange(&mut self) -> bool {
        self.abandon();
        let complete = self.is_complete() || self.discard();
        self.wire.release();
        complete
    }

    /// True once nothing of the request is left to read.
    pub(super) fn is_complete(&self) -> bool {
        self.framing.is_done()
    }

    /// Reads ahead of demand, within bounds: what the client does while it waits.
    ///
    /// A client that closes its side ends a tunnel too, both ways (Envoy does the same), but not before what it sent is
    /// on its way to the upstream: the body tells by its end.
    pub(super) fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Client> {
        let tunnel = self.asked && matches!(self.framing, Framing::UntilEnd);
        let mut more = false;
        let gone = loop {
            if self.wire.eof {
                break !tunnel;
            }
            if self.wire.buf.len() >= READ_AHEAD {
                break false;
            }
            match self.wire.poll_read(cx) {
                Poll::Ready(Ok(_)) => more = true,
                Poll::Ready(Err(_)) => {
                    self.wire.eof = true;
                    break true;
                }
                Poll::Pending => break false,
            }
        };
        let reader = if more { self.reader.take() } else { None };
        if let Some(reader) = reader {
            reader.wake();
        }
        if gone {
            Poll::Ready(Client::Gone)
        } else if more && !self.is_complete() {
            Poll::Ready(Client::Sent)
        } else {
            Poll::Pending
        }
    }

    /// Throws away what has come of the request's body; true where that was the rest of it.
    pub(super) fn discard(&mut self) -> bool {
        loop {
            match self.framing.next(&mut self.wire.buf) {
                Ok(Piece::Data(_) | Piece::Trailers(_)) => {}
                Ok(Piece::End) => return true,
                Ok(Piece::Hungry) | Err(_) => return false,
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.asked = true;
        if let Some(error) = &self.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let error = loop {
            match self.framing.next(&mut self.wire.buf) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(trailers)) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::Hungry) => {}
                Err(violation) => break malformed(violation),
            }
            if self.wire.eof {
                if matches!(self.framing, Framing::UntilEnd) {
                    self.framing = Framing::Done;
                    if !self.task.will_wake(cx.waker()) {
                        self.task.wake_by_ref();
                    }
                    return Poll::Ready(None);
                }
                return self.client_left(cx);
            }
            let read = if self.task.will_wake(cx.waker()) {
                self.wire.poll_read(cx)
            } else {
                // The socket knows one reader, the connection's task; that wakes this one.
                self.reader = Some(cx.waker().clone());
                let task = self.task.clone();
                self.wire.poll_read(&mut Context::from_waker(&task))
            };
            if ready!(read).is_err() {
                // A reset is not the end of a tunnel either.
                self.wire.eof = true;
                self.framing = Framing::Length(1);
            }
        };
        self.failed = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }

    /// A body that the client cut off does not end in an error: the whole exchange is dropped by the connection's
    /// task, which looks at the wire after the handler.
    fn client_left<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.task.will_wake(cx.waker()) {
            self.reader = Some(cx.waker().clone());
            self.task.wake_by_ref();
        }
        Poll::Pending
    }

    /// The exchange is over: a body that outlives it tells so.
    pub(super) fn abandon(&mut self) {
        self.exchange += 1;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn malformed(violation: Violation) -> BodyError {
    BodyError::Malformed(violation.details.into())
}

/// The body of a request that is still arriving.
#[derive(Debug)]
pub(in crate::http) struct RequestBody {
    shared: Arc<Shared>,
    exchange: u64,
}

impl RequestBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut half = self.shared.lock();
        if half.exchange != self.exchange {
            return Poll::Ready(Some(Err(BodyError::Aborted("the exchange is over"))));
        }
        half.poll_body(cx)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let half = self.shared.lock();
        half.exchange == self.exchange && half.failed.is_none() && half.is_complete()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let half = self.shared.lock();
        if half.exchange == self.exchange {
            hint(&half.framing)
        } else {
            SizeHint::default()
        }
    }
}

pub(super) fn hint(framing: &Framing) -> SizeHint {
    match framing {
        Framing::Done => SizeHint::with_exact(0),
        Framing::Length(left) => SizeHint::with_exact(*left),
        Framing::Chunked(_) | Framing::UntilEnd => SizeHint::default(),
    }
}

/// The body of a response that is still arriving. Holds the upstream connection, and gives it back at its end.
#[derive(Debug)]
pub(in crate::http) struct ResponseBody(pub(super) Box<Arrival>);

impl ResponseBody {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_frame(cx)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
