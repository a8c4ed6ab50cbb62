//! Responses on their way out: each is watched over also while its client grants no window.
//!
//! A frame is taken from the body, and waits here until its stream has a window. Meanwhile nobody polls the body: its
//! deadlines are looked at instead, and one that passes resets the stream. What is handed to the library to its last byte
//! has the stream idle timeout left to find a window; what of it waits there after that is out of a stream's reach, and
//! is the business of [`Tails`].

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use http_body::Body as _;
use tokio::time::Sleep;

use super::tails::{Tail, Tails};
use crate::base::WorkerCell;
use crate::http::Body;

/// Data of a response. The library drops it once it is written.
pub(super) struct Chunk {
    data: Bytes,
    _guard: Guard,
}

/// What the library's hold on a chunk means.
enum Guard {
    None,
    /// It is all that is left of its response.
    Tail {
        _tail: Tail,
    },
    /// More comes; whether it is the last that waits shows when the stream is done.
    Part {
        _rest: Rest,
    },
}

/// The tail of a response of many chunks, while any of them waits.
type Rest = Arc<WorkerCell<Option<Tail>>>;

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

/// A response whose head is sent. To drop it is to reset the stream, unless it is complete.
pub(super) struct Sending {
    stream: SendStream<Chunk>,
    body: Body,
    /// Waits for a window; with whether it is the last.
    next: Option<(Bytes, bool)>,
    /// Runs while the last chunk waits.
    flush: Option<Pin<Box<Sleep>>>,
    /// Set with the first chunk that is not the last.
    rest: Option<Rest>,
    tails: Arc<Tails>,
}

impl Sending {
    pub(super) fn new(stream: SendStream<Chunk>, body: Body, tails: Arc<Tails>) -> Self {
        Self {
            stream,
            body,
            next: None,
            flush: None,
            rest: None,
            tails,
        }
    }

    /// Ready where there is nothing more to be done for the stream, for good or ill.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if self.next.is_some() {
                match self.poll_window(cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => return self.poll_deadline(cx),
                }
                if let Some((data, last)) = self.next.take()
                    && (self.send(data, last).is_err() || last)
                {
                    return Poll::Ready(());
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if !data.is_empty() {
                            // No more than a claim, so that a stream which waits keeps nothing from others: the library
                            // asks for the rest when it has the chunk.
                            self.stream.reserve_capacity(1);
                            self.next = Some((data, last));
                        } else if self.send(data, last).is_err() || last {
                            return Poll::Ready(());
                        }
                    }
                    Err(frame) => {
                        if let Ok(mut trailers) = frame.into_trailers() {
                            // The library sends none with headers of another hop.
                            super::convert::drop_connection_headers(&mut trailers);
                            self.stream.reserve_capacity(0);
                            let _ = self.stream.send_trailers(trailers);
                            return Poll::Ready(());
                        }
                    }
                },
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.send(Bytes::new(), true);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Ready with whether there is a window; `false`: nor will there be.
    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// While a chunk waits for a window.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let last = self.next.as_ref().is_some_and(|(_, last)| *last);
        if !last {
            return self.body.poll_deadline(cx).map(drop);
        }
        let Some(limit) = self.tails.limit() else {
            return Poll::Pending;
        };
        let flush = self
            .flush
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        flush.as_mut().poll(cx)
    }

    fn send(&mut self, data: Bytes, last: bool) -> Result<(), h2::Error> {
        let guard = match (&self.rest, last) {
            _ if data.is_empty() => Guard::None,
            (None, true) => Guard::Tail {
                _tail: Tail::new(&self.tails),
            },
            _ => Guard::Part {
                _rest: Arc::clone(self.rest.get_or_insert_default()),
            },
        };
        let chunk = Chunk {
            data,
            _guard: guard,
        };
        self.stream.send_data(chunk, last)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(rest) = &self.rest
            // Others that hold it are chunks.
            && Arc::strong_count(rest) > 1
            // A connection may be dropped with its runtime, wherever that is.
            && let Some(mut tail) = rest.try_lock()
        {
            *tail = Some(Tail::new(&self.tails));
        }
    }
}
