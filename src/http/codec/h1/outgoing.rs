//! A message on its way out: frames are taken from its body while there is room, and written while the peer takes them.

use std::future::Future as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as _, Frame};
use tokio::time::Sleep;

use super::encode::{OutBuf, Sending};
use crate::http::{Body, BodyError};

/// What became of a message.
#[derive(Debug)]
pub(super) enum Sent {
    /// It is written to its end.
    Whole,
    /// Its body failed, or does not fit its head. What could be written was; it must not look complete.
    Broken(BodyError),
    /// The peer takes nothing any more.
    Lost,
}

/// A message that is being written. Begin with the head in `out`.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) out: OutBuf,
    sending: Sending,
    /// `None` once it has ended.
    body: Option<Body>,
    broken: Option<BodyError>,
    trailers: bool,
    proper_case: bool,
}

impl Outgoing {
    /// `trailers`: write them.
    pub(super) fn new(
        out: OutBuf,
        sending: Sending,
        body: Body,
        trailers: bool,
        proper_case: bool,
    ) -> Self {
        Self {
            out,
            sending,
            body: (sending != Sending::Nothing).then_some(body),
            broken: None,
            trailers,
            proper_case,
        }
    }

    /// True once nothing more will come of the body: what is left to write is in the buffer.
    pub(super) fn is_gathered(&self) -> bool {
        self.body.is_none()
    }

    /// Goes on as far as body and peer allow. `write` writes all of the buffer; the body is never polled within it.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &mut OutBuf) -> Poll<io::Result<()>>,
    ) -> Poll<Sent> {
        loop {
            let waits = self.gather(cx).is_pending();
            match write(cx, &mut self.out) {
                Poll::Pending => {
                    // A body that waits has looked at its deadlines; one that waits for room has not been asked.
                    return match &mut self.body {
                        Some(body) if !waits => body.poll_deadline(cx).map(Sent::Broken),
                        _ => Poll::Pending,
                    };
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Sent::Lost),
                Poll::Ready(Ok(())) => {}
            }
            if let Some(error) = self.broken.take() {
                return Poll::Ready(Sent::Broken(error));
            }
            if self.body.is_none() {
                return Poll::Ready(Sent::Whole);
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Takes frames while there is room. Pending where the body has none now.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(body) = &mut self.body {
            if !self.out.has_room() {
                break;
            }
            let polled = catch_unwind(AssertUnwindSafe(|| {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                (polled, body.is_end_stream())
            }));
            match polled {
                Ok((Poll::Pending, _)) => return Poll::Pending,
                Ok((Poll::Ready(Some(Ok(frame))), last)) => self.frame(frame, last),
                Ok((Poll::Ready(None), _)) => self.finish(None),
                Ok((Poll::Ready(Some(Err(error))), _)) => self.fail(error),
                Err(_panic) => self.fail(BodyError::Aborted("the body panicked")),
            }
        }
        Poll::Ready(())
    }

    fn frame(&mut self, frame: Frame<bytes::Bytes>, last: bool) {
        match frame.into_data() {
            Ok(data) => {
                if self.out.frame(data, &mut self.sending, last).is_err() {
                    self.fail(WRONG_LENGTH);
                } else if last {
                    self.finish(None);
                }
            }
            Err(frame) => self.finish(frame.into_trailers().ok().as_ref()),
        }
    }

    fn finish(&mut self, trailers: Option<&http::HeaderMap>) {
        let trailers = trailers.filter(|_| self.trailers);
        match self.out.finish(self.sending, trailers, self.proper_case) {
            Ok(()) => self.body = None,
            Err(_) => self.fail(WRONG_LENGTH),
        }
    }

    fn fail(&mut self, error: BodyError) {
        self.body = None;
        self.broken = Some(error);
    }
}

const WRONG_LENGTH: BodyError = BodyError::Aborted("the body does not have the announced length");

/// Notices a client that takes nothing of the rest of a message, whose stream is over.
#[derive(Default)]
pub(super) struct Stall {
    timer: Option<Pin<Box<Sleep>>>,
    left: usize,
}

impl Stall {
    /// True once nothing of the bytes that are `left` was taken for `limit`.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        limit: Option<Duration>,
        left: usize,
    ) -> bool {
        if self.left != left {
            self.left = left;
            self.timer = None;
        }
        let Some(limit) = limit.filter(|_| left > 0) else {
            return false;
        };
        self.timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)))
            .as_mut()
            .poll(cx)
            .is_ready()
    }
}
