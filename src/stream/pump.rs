//! Body filters are pumped, not pulled: the root driver reads frames at the source's pace, shows each to a [`Tap`], and
//! fills a queue whose other end is the body that goes on. So a filter's callbacks do not depend on whether anybody
//! reads the result, and the queue bounds what that costs.
//!
//! What a tap may decide, and what each decision does, is Envoy's (`FilterDataStatus`):
//!
//! | [`Flow`] | bytes that the tap saw | the tap sees next | beyond the limit |
//! |---|---|---|---|
//! | `Continue` | go on, in one frame with those held before | the next frame | the source is not read until the queue drains |
//! | `Buffer` | held | all that is held, the next frame last | 413 (request); 500, or a reset (response) |
//! | `Watermark` | held | the next frame alone | the source is not read |
//! | `Drop` | dropped | the next frame alone | – |
//!
//! [`PumpHandle::resume`] lets what is held go on as one frame, from anywhere on the worker. The limit is the listener's
//! `per_connection_buffer_limit_bytes`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Companion, Progress, Stream, Verdict};
use crate::base::WorkerCell;
use crate::http::{Body, BodyError, ReplyReason};

/// Which of the two bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The request's.
    Request,
    /// The response's.
    Response,
}

/// What a tap decides about what it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Everything goes on.
    Continue,
    /// Hold, and show me all of it again with the next frame.
    Buffer,
    /// Hold, and read no more than the limit.
    Watermark,
    /// Drop it.
    Drop,
}

/// Where a pump begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first frame.
    Flowing,
    /// Held (`StopAllIterationAndBuffer`): frames accumulate unseen; [`PumpHandle::resume`] shows the tap all of them
    /// at once. More than the limit is an overflow.
    HeldBuffer,
    /// Held (`StopAllIterationAndWatermark`): the same, but the source is not read beyond the limit.
    HeldWatermark,
}

/// A filter's eyes on a body. Called by the root driver, one call at a time, never from a `Drop`.
pub trait Tap: Send {
    /// Data, or the end (then `buffer` may be empty). `buffer` is what the filter may see and change: assign to it.
    ///
    /// HTTP/1 ends with a call of its own (empty, but for what is held); HTTP/2 marks the last frame. Where trailers
    /// come, no data call is marked as the end. A tap that wants trailers where none came puts them into the stream's
    /// trailers during the last call.
    fn data(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes, end_of_stream: bool) -> Flow;

    /// Trailers: they are in the stream, to be seen and changed there; `buffer` is what is held. Any flow but `Continue`
    /// waits for [`PumpHandle::resume`].
    fn trailers(&mut self, stream: &Arc<Stream>, buffer: &mut Bytes) -> Flow {
        let _ = (stream, buffer);
        Flow::Continue
    }
}

/// How the source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// After data.
    Plain,
    /// With trailers.
    Trailers,
}

#[derive(Default)]
struct Shared {
    /// What goes on.
    queue: VecDeque<Frame<Bytes>>,
    queued: usize,
    /// The source is not read while so much is queued.
    limit: usize,
    /// Nothing more comes; with the error, if any.
    closed: Option<Result<(), BodyError>>,
    consumer: Option<Waker>,
    consumer_gone: bool,
    /// What does not.
    held: Bytes,
    /// Why, while something stopped the flow.
    stopped: Option<Flow>,
    /// The tap is in a call: `held` is out of here.
    running: bool,
    resume: bool,
    driver: Option<Waker>,
}

impl Shared {
    fn emit(&mut self, data: Bytes) {
        if !data.is_empty() && !self.consumer_gone {
            self.queued += data.len();
            self.queue.push_back(Frame::data(data));
            self.wake_consumer();
        }
    }

    fn close(&mut self, result: Result<(), BodyError>) {
        self.closed.get_or_insert(result);
        self.wake_consumer();
    }

    fn wake_consumer(&mut self) {
        if let Some(waker) = self.consumer.take() {
            waker.wake();
        }
    }
}

/// A filter's hand on its pump. Cheap to clone.
#[derive(Clone)]
pub struct PumpHandle(Arc<WorkerCell<Shared>>);

impl PumpHandle {
    /// Lets go on what a stop holds (Proxy-Wasm's `continue_stream`): one frame, then the end if it was seen. Where
    /// nothing is stopped it does nothing.
    pub fn resume(&self) {
        let waker = {
            let mut shared = self.0.lock();
            if shared.stopped.is_none() && !shared.running {
                return;
            }
            shared.resume = true;
            shared.driver.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True while a stop holds the flow.
    pub fn is_stopped(&self) -> bool {
        self.0.lock().stopped.is_some()
    }

    /// Shows what is held by [`Flow::Buffer`] or a held start, to read and change outside the tap's calls. `None` where
    /// nothing is stopped, or while the tap is in a call (it has the bytes then).
    pub fn with_held<R>(&self, f: impl FnOnce(&mut Bytes) -> R) -> Option<R> {
        let mut held = {
            let mut shared = self.0.lock();
            if shared.running || shared.stopped.is_none() {
                return None;
            }
            std::mem::take(&mut shared.held)
        };
        let result = f(&mut held);
        self.0.lock().held = held;
        Some(result)
    }
}

impl std::fmt::Debug for PumpHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PumpHandle")
    }
}

impl Stream {
    /// Pumps `body` through `tap`. A body that has already ended is not pumped: the handle then does nothing.
    pub fn pump(
        self: &Arc<Self>,
        side: Side,
        body: Body,
        start: Start,
        tap: Box<dyn Tap>,
    ) -> (Body, PumpHandle) {
        let limit = self.config.options.buffer_limit;
        let shared = Arc::new(WorkerCell::new(Shared {
            limit: limit.max(1),
            ..Shared::default()
        }));
        let handle = PumpHandle(Arc::clone(&shared));
        if body.is_end_stream() {
            return (body, handle);
        }
        let hold = match start {
            Start::Flowing => None,
            Start::HeldBuffer => Some(Flow::Buffer),
            Start::HeldWatermark => Some(Flow::Watermark),
        };
        shared.lock().stopped = hold;
        let behind_another = self.count_pump(side);
        self.attach(Box::new(Pump {
            side,
            behind_another,
            source: Some(body),
            tap,
            limit,
            holding: hold.is_some(),
            over: false,
            end: None,
            trailers_wait: false,
            shared: Arc::clone(&shared),
        }));
        (Body::new(Queue(shared)), handle)
    }
}

struct Pump {
    side: Side,
    /// Its source is another pump's queue.
    behind_another: bool,
    /// `None` once it has ended.
    source: Option<Body>,
    tap: Box<dyn Tap>,
    limit: usize,
    /// Began held, and was not resumed yet: the tap sees nothing.
    holding: bool,
    /// Holds more than the limit, which keeps the source from being read.
    over: bool,
    /// Set with the end; the tap may still hold the flow.
    end: Option<End>,
    /// Trailers came while it began held, and the tap is to see them next.
    trailers_wait: bool,
    shared: Arc<WorkerCell<Shared>>,
}

impl Companion for Pump {
    /// One step: a frame goes through the whole chain before the next one is read, as in Envoy.
    fn poll(&mut self, stream: &Arc<Stream>, context: &mut Context<'_>) -> Progress {
        let (stopped, held, full) = {
            let mut shared = self.shared.lock();
            if shared.closed.is_some() {
                return Progress::Done;
            }
            if std::mem::take(&mut shared.resume) && shared.stopped.is_some() {
                drop(shared);
                self.resume(stream);
                return Progress::Moved;
            }
            let waker = context.waker();
            if !shared.driver.as_ref().is_some_and(|w| w.will_wake(waker)) {
                shared.driver = Some(waker.clone());
            }
            (
                shared.stopped,
                shared.held.len(),
                shared.queued >= shared.limit,
            )
        };
        if std::mem::take(&mut self.trailers_wait) {
            self.end = Some(End::Trailers);
            self.trailers_came(stream);
            return Progress::Moved;
        }
        // After the end only a resume (or a verdict) goes on.
        let Some(source) = &mut self.source else {
            return Progress::Idle;
        };
        let watermark = stopped == Some(Flow::Watermark);
        let over = watermark && held > self.limit;
        if self.over != over {
            self.over = over;
            if self.side == Side::Request {
                stream.choke(over);
            }
        }
        if over || (full && !watermark) {
            return Progress::Idle;
        }
        let frame = match Pin::new(&mut *source).poll_frame(context) {
            Poll::Pending => return Progress::Idle,
            Poll::Ready(frame) => frame,
        };
        match frame {
            None => {
                self.source = None;
                self.end = Some(End::Plain);
                self.frame(stream, Bytes::new());
            }
            Some(Err(error)) => {
                self.source = None;
                self.shared.lock().close(Err(error));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if source.is_end_stream() && self.marks_the_last_frame(stream) {
                        self.source = None;
                        self.end = Some(End::Plain);
                    }
                    self.frame(stream, data);
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        *self.trailers(stream).lock() = Some(trailers);
                        self.source = None;
                        self.end = Some(End::Trailers);
                        self.trailers_came(stream);
                    }
                }
            },
        }
        Progress::Moved
    }
}

impl Pump {
    fn trailers<'s>(&self, stream: &'s Stream) -> &'s WorkerCell<Option<HeaderMap>> {
        match self.side {
            Side::Request => &stream.request_trailers,
            Side::Response => &stream.response_trailers,
        }
    }

    /// HTTP/2 ends a message with its last frame; HTTP/1 tells the end apart. Our own replies are one frame, and our own calls
    /// know which is their last. Another pump
    /// does either: what it let go at once has the end with it.
    fn marks_the_last_frame(&self, stream: &Stream) -> bool {
        if self.behind_another {
            return true;
        }
        match self.side {
            Side::Request => {
                stream.info.lock().own_call || stream.request.lock().version >= Version::HTTP_2
            }
            Side::Response => {
                stream.info.lock().local_reply
                    || stream
                        .response
                        .lock()
                        .as_ref()
                        .is_some_and(|head| head.version >= Version::HTTP_2)
            }
        }
    }

    /// Data came, or (empty) the end; `self.end` says whether it is the end.
    fn frame(&mut self, stream: &Arc<Stream>, data: Bytes) {
        if self.holding {
            self.hold(stream, data);
            return;
        }
        let (before, mut visible, overflows) = {
            let mut shared = self.shared.lock();
            shared.running = true;
            let held = std::mem::take(&mut shared.held);
            match shared.stopped {
                Some(Flow::Buffer) => {
                    let all = join(held, data);
                    let overflows = all.len() > self.limit;
                    (Bytes::new(), all, overflows)
                }
                _ => (held, data, false),
            }
        };
        if self.side == Side::Request && !self.behind_another {
            stream.cut(self.source.is_some());
        }
        let flow = self.tap.data(stream, &mut visible, self.end.is_some());
        let mut shared = self.shared.lock();
        shared.running = false;
        if overflows {
            // As in Envoy, where it is buffered before it is shown: what the tap makes of it comes too late.
            drop(shared);
            self.overflow(stream);
            return;
        }
        match flow {
            Flow::Continue => {
                shared.stopped = None;
                shared.resume = false;
                shared.emit(join(before, visible));
                drop(shared);
                self.pass_end(stream);
            }
            Flow::Buffer | Flow::Watermark => {
                shared.stopped = Some(flow);
                shared.held = join(before, visible);
                let overflow = flow == Flow::Buffer && shared.held.len() > self.limit;
                drop(shared);
                if overflow {
                    self.overflow(stream);
                }
            }
            Flow::Drop => {
                shared.stopped = Some(flow);
                shared.held = before;
            }
        }
    }

    /// Data for a pump that began held.
    fn hold(&mut self, stream: &Arc<Stream>, data: Bytes) {
        let overflow = {
            let mut shared = self.shared.lock();
            let held = std::mem::take(&mut shared.held);
            shared.held = join(held, data);
            shared.stopped == Some(Flow::Buffer) && shared.held.len() > self.limit
        };
        if overflow {
            self.overflow(stream);
        }
    }

    fn trailers_came(&mut self, stream: &Arc<Stream>) {
        if self.holding {
            return;
        }
        let mut visible = {
            let mut shared = self.shared.lock();
            shared.running = true;
            std::mem::take(&mut shared.held)
        };
        if self.side == Side::Request && !self.behind_another {
            stream.cut(false);
        }
        let flow = self.tap.trailers(stream, &mut visible);
        let mut shared = self.shared.lock();
        shared.running = false;
        if flow == Flow::Continue {
            shared.stopped = None;
            shared.resume = false;
            shared.emit(visible);
            drop(shared);
            self.pass_end(stream);
        } else {
            shared.stopped = Some(flow);
            shared.held = visible;
        }
    }

    /// Somebody called [`PumpHandle::resume`].
    fn resume(&mut self, stream: &Arc<Stream>) {
        if self.holding {
            // The tap has seen nothing so far: show it everything.
            self.holding = false;
            let held = {
                let mut shared = self.shared.lock();
                shared.stopped = None;
                std::mem::take(&mut shared.held)
            };
            if self.end == Some(End::Trailers) {
                self.end = None;
                self.trailers_wait = true;
            }
            if !held.is_empty() || self.end == Some(End::Plain) {
                self.frame(stream, held);
            }
            return;
        }
        {
            let mut shared = self.shared.lock();
            shared.stopped = None;
            let held = std::mem::take(&mut shared.held);
            shared.emit(held);
        }
        self.pass_end(stream);
    }

    /// Passes the end on, if it was seen, with trailers that came or that the tap made.
    fn pass_end(&mut self, stream: &Stream) {
        if self.end.is_none() {
            return;
        }
        let trailers = self.trailers(stream).lock().clone();
        let mut shared = self.shared.lock();
        if let Some(trailers) = trailers
            && !shared.consumer_gone
        {
            shared.queue.push_back(Frame::trailers(trailers));
        }
        shared.close(Ok(()));
    }

    fn overflow(&mut self, stream: &Stream) {
        if self.side == Side::Request && !self.behind_another && self.source.is_some() {
            stream.cut(true);
        }
        self.source = None;
        self.shared
            .lock()
            .close(Err(BodyError::Aborted("buffer limit exceeded")));
        let reason = match self.side {
            Side::Request => ReplyReason::RequestPayloadTooLarge,
            Side::Response => ReplyReason::ResponsePayloadTooLarge,
        };
        stream.decide(Verdict::Reply {
            reply: Box::new(reason.into()),
            direct: false,
        });
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        // The stream has ended: whoever still reads must not wait for ever.
        self.shared
            .lock()
            .close(Err(BodyError::Aborted("the stream has ended")));
    }
}

/// `a` then `b`, in place where `a` is not shared.
fn join(a: Bytes, b: Bytes) -> Bytes {
    if a.is_empty() {
        return b;
    }
    if b.is_empty() {
        return a;
    }
    let mut joined = a
        .try_into_mut()
        .unwrap_or_else(|a| BytesMut::from(a.as_ref()));
    joined.extend_from_slice(&b);
    joined.freeze()
}

/// The end of the queue that goes on.
struct Queue(Arc<WorkerCell<Shared>>);

impl HttpBody for Queue {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.0.lock();
        if let Some(frame) = shared.queue.pop_front() {
            let was_full = shared.queued >= shared.limit;
            shared.queued -= frame.data_ref().map_or(0, Bytes::len);
            // Room again: the pump may read on.
            let has_room = was_full && shared.queued < shared.limit;
            let driver = has_room.then(|| shared.driver.take()).flatten();
            drop(shared);
            if let Some(driver) = driver {
                driver.wake();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        match &shared.closed {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                shared.consumer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.0.lock();
        shared.queue.is_empty() && shared.closed == Some(Ok(()))
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.0.lock();
        match shared.closed {
            // With trailers it must not be told as a length: HTTP/1 has trailers behind chunks alone.
            Some(Ok(())) if !shared.queue.back().is_some_and(Frame::is_trailers) => {
                SizeHint::with_exact(shared.queued as u64)
            }
            _ => {
                let mut hint = SizeHint::new();
                hint.set_lower(shared.queued as u64);
                hint
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut shared = self.0.lock();
        shared.consumer_gone = true;
        shared.queue.clear();
        shared.queued = 0;
        let driver = shared.driver.take();
        drop(shared);
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_with_trailers_has_no_length_to_tell() {
        let queue = |frames: Vec<Frame<Bytes>>, queued| {
            Queue(Arc::new(WorkerCell::new(Shared {
                queue: frames.into(),
                queued,
                limit: 10,
                closed: Some(Ok(())),
                consumer: None,
                consumer_gone: false,
                held: Bytes::new(),
                stopped: None,
                running: false,
                resume: false,
                driver: None,
            })))
        };
        let data = || Frame::data(Bytes::from_static(b"abc"));
        assert_eq!(queue(vec![data()], 3).size_hint().exact(), Some(3));
        let with = vec![data(), Frame::trailers(HeaderMap::new())];
        assert_eq!(queue(with, 3).size_hint().exact(), None);
    }
}
