//! Responses on their way out: each is watched over also while its client grants no window.
//!
//! hyper takes a frame from a body and polls that no more until the window has room for the frame. The task of a stream
//! therefore shares the body with hyper: where hyper waits, the task looks at the body's deadlines, and ends at one, which
//! resets the stream. What was handed over to the last byte has the stream idle timeout left to find a window; what of it
//! is with the HTTP/2 library by then is out of a task's reach, and is the business of [`Tails`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::tails::{Tail, Tails};
use crate::base::{WorkerCell, task};
use crate::http::{Body, BodyError};

/// What hyper, the stream's task and the chunks in the library's queue share.
type Shared = Arc<WorkerCell<State>>;

#[derive(Default)]
enum State {
    /// The handler has not answered.
    #[default]
    Waiting,
    Sending {
        body: Body,
        /// The body was polled last, and waits: it has looked at its deadlines itself.
        waits: bool,
        flush: Flush,
    },
    /// The task has ended.
    Over { _tail: Option<Tail> },
}

/// What is left when a body has given all.
enum Flush {
    /// It has not yet.
    Later,
    Due,
    Timed(Pin<Box<Sleep>>),
}

/// The body of a response, as hyper gets it.
pub(super) struct Answer<K> {
    shared: Shared,
    /// Lives as long as hyper needs the body.
    _kept: K,
}

impl<K> Answer<K> {
    /// The body that the task with this watch is to send.
    pub(super) fn new(watch: Watch, body: Body, kept: K) -> Self {
        *watch.0.lock() = State::Sending {
            body,
            waits: false,
            flush: Flush::Later,
        };
        Self {
            shared: watch.0,
            _kept: kept,
        }
    }
}

impl<K: Unpin> http_body::Body for Answer<K> {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let mut state = self.shared.lock();
        let State::Sending { body, waits, flush } = &mut *state else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        *waits = polled.is_pending();
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        if frame.is_trailers() || body.is_end_stream() {
            *flush = Flush::Due;
        }
        drop(state);
        let chunk = |data| Chunk {
            data,
            _shared: Arc::clone(&self.shared),
        };
        Poll::Ready(Some(Ok(frame.map_data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match &*self.shared.lock() {
            State::Sending { body, .. } => body.is_end_stream(),
            State::Waiting | State::Over { .. } => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.shared.lock() {
            State::Sending { body, .. } => body.size_hint(),
            State::Waiting | State::Over { .. } => SizeHint::with_exact(0),
        }
    }
}

/// Data of a response. The library drops it once it is written.
pub(super) struct Chunk {
    data: Bytes,
    _shared: Shared,
}

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

/// Where a stream's task finds the body that hyper sends.
#[derive(Clone, Default)]
pub(super) struct Watch(Shared);

impl Watch {
    /// Ready where a deadline has passed while hyper had no room for more.
    fn poll_deadline(&self, limit: Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.lock() {
            State::Sending {
                body,
                waits: false,
                flush: Flush::Later,
            } => body.poll_deadline(cx).map(drop),
            State::Sending {
                waits: false,
                flush,
                ..
            } => {
                if let Flush::Due = flush
                    && let Some(limit) = limit
                {
                    *flush = Flush::Timed(Box::pin(tokio::time::sleep(limit)));
                }
                match flush {
                    Flush::Timed(timer) => timer.as_mut().poll(cx),
                    Flush::Later | Flush::Due => Poll::Pending,
                }
            }
            _ => Poll::Pending,
        }
    }
}

/// Where the service leaves the watch of a request for the task that hyper spawns for it next.
#[derive(Clone)]
pub(super) struct Executor {
    next: Arc<WorkerCell<Option<Watch>>>,
    tails: Arc<Tails>,
}

impl Executor {
    pub(super) fn new(tails: Arc<Tails>) -> Self {
        Self {
            next: Arc::default(),
            tails,
        }
    }

    /// A watch for the next task.
    pub(super) fn watch(&self) -> Watch {
        let watch = Watch::default();
        *self.next.lock() = Some(watch.clone());
        watch
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let watch = self.next.lock().take();
        let Some(watch) = watch else {
            task::spawn("http2", future);
            return;
        };
        let tails = Arc::clone(&self.tails);
        let rest = Rest { watch, tails };
        task::spawn("http2", Watched { future, rest });
    }
}

pin_project! {
    /// hyper's task of a stream. To drop it is to reset the stream, unless it is complete.
    struct Watched<F> {
        // Dropped first.
        #[pin]
        future: F,
        rest: Rest,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.future.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Rest { watch, tails } = this.rest;
        watch.poll_deadline(tails.limit(), cx)
    }
}

/// What a task leaves behind.
struct Rest {
    watch: Watch,
    tails: Arc<Tails>,
}

impl Drop for Rest {
    fn drop(&mut self) {
        // Others that hold it are chunks.
        let tail = (Arc::strong_count(&self.watch.0) > 1).then(|| Tail::new(&self.tails));
        let over = State::Over { _tail: tail };
        // A task may be dropped with its runtime, wherever that is.
        let before = self
            .watch
            .0
            .try_lock()
            .map(|mut state| std::mem::replace(&mut *state, over));
        drop(before);
    }
}
