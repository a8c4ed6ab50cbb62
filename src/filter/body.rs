//! The two edges of a chain: what is counted of the bodies, and who goes on with the driver's duties after the head.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::chain::{Ends, poll_after_head};
use super::router::timeout;
use super::timer::Timer;
use crate::config::route::Action;
use crate::http::{Body, BodyError, LocalReply, ResponseFlag, TimedBody};
use crate::stream::{Finish, Phase, Stream, Timeout, Verdict};

/// The request's body as the codec gives it, counted.
pub(super) struct RequestBody {
    stream: Arc<Stream>,
    inner: Body,
}

impl RequestBody {
    /// Wraps `body`, or notes that there is none.
    pub(super) fn wrap(stream: &Arc<Stream>, body: Body) -> Body {
        if body.is_end_stream() {
            stream.without_body();
            return body;
        }
        Body::new(Self {
            stream: Arc::clone(stream),
            inner: body,
        })
    }
}

impl RequestBody {
    /// What the client did ends the stream, whatever waits for an upstream.
    fn broken(&self, error: &BodyError) {
        let verdict = match error {
            // HTTP/2 has an answer of its own to a stream that breaks its rules.
            BodyError::Malformed(details) if details.starts_with("http2.") => {
                let mut info = self.stream.info.lock();
                info.flags.set(ResponseFlag::DownstreamProtocolError);
                Verdict::Reset {
                    details: "http2.violation.of.messaging.rule".into(),
                }
            }
            BodyError::Malformed(details) => Verdict::Reply {
                reply: Box::new(LocalReply::malformed_body(details)),
                direct: false,
            },
            // The codec drops the stream when the connection is gone.
            BodyError::Reset | BodyError::StreamReset | BodyError::Aborted(_) => return,
        };
        self.stream.decide(verdict);
    }
}

impl Drop for RequestBody {
    /// Whoever drops it before there is a response answers by himself, most likely: see [`drain`].
    fn drop(&mut self) {
        let unseen = !self.inner.is_end_stream() || self.stream.is_cut();
        if unseen && self.stream.phase() == Phase::Request {
            self.stream
                .keep_rest(std::mem::replace(&mut self.inner, Body::empty()));
        }
    }
}

/// Reads on, and throws away, what still comes of a request that was answered here, while its answer is held back: as in
/// Envoy it counts as received, and where its end comes before the answer's head goes out, the connection can be kept. Not where filters held so much of it
/// that it was not read before either.
pub(super) fn drain(stream: &Arc<Stream>, context: &mut Context<'_>) {
    if !stream.info.lock().local_reply || stream.is_choked() {
        return;
    }
    let Some(mut rest) = stream.take_rest() else {
        return;
    };
    loop {
        match Pin::new(&mut rest).poll_frame(context) {
            Poll::Pending => return stream.keep_rest(rest),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    stream.info.lock().bytes_received += data.len() as u64;
                }
                stream.active();
            }
            Poll::Ready(None) => {
                stream.request_ended();
                stream.cut(false);
                return;
            }
            // The codec tells by itself what became of the connection.
            Poll::Ready(Some(Err(_))) => return,
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // The answer is out: nobody wants the rest, and whoever still sends it upstream is to give up.
        if self.stream.phase() == Phase::Ended {
            return Poll::Ready(Some(Err(BodyError::Aborted("the stream has ended"))));
        }
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Pending => self.stream.park_upload(context),
            Poll::Ready(None) => self.stream.request_ended(),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let mut info = self.stream.info.lock();
                    // Of a call of our own nothing was received.
                    if !info.own_call {
                        info.bytes_received += data.len() as u64;
                    }
                }
                self.stream.active();
                if self.inner.is_end_stream() || frame.is_trailers() {
                    self.stream.request_ended();
                }
            }
            Poll::Ready(Some(Err(error))) => self.broken(error),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The response's body as the codec gets it: the driver of the stream from the head on.
pub(super) struct ResponseBody {
    finish: Finish<Ends>,
    inner: Body,
    /// Made at the first wait.
    timer: Option<Pin<Box<Timer>>>,
    /// `content-length` less what was sent: a codec that stops there has everything.
    missing: Option<u64>,
    /// The stream is reset: what the filters let go before is handed over still.
    reset: bool,
    done: bool,
}

impl ResponseBody {
    /// Marks the head as sent, and wraps the body.
    pub(super) fn send(finish: Finish<Ends>, body: Body) -> Body {
        let stream = finish.stream();
        finish.ending().head(stream);
        stream.set_phase(Phase::Sent);
        stream.info.lock().response_begin = Some(Instant::now());
        // Codecs write no body of these, whatever there is.
        let bodiless = stream.response.lock().as_ref().is_some_and(|head| {
            matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            )
        });
        let body = if bodiless { Body::empty() } else { body };
        if body.is_end_stream() {
            {
                let mut info = stream.info.lock();
                if info.upstream_first_rx.is_some() && !info.local_reply {
                    info.upstream_last_rx = info.response_begin;
                }
            }
            finish.complete();
            return body;
        }
        let missing = stream.response.lock().as_ref().and_then(|head| {
            let length = head.headers.get(http::header::CONTENT_LENGTH)?;
            length.to_str().ok()?.parse().ok()
        });
        Body::timed(Self {
            finish,
            inner: body,
            timer: None,
            missing,
            reset: false,
            done: false,
        })
    }

    /// Resets the stream.
    fn abort(&mut self, why: &'static str) -> BodyError {
        self.done = true;
        self.finish.stream().info.lock().reset = true;
        self.finish.complete();
        BodyError::Aborted(why)
    }

    /// Looks at the deadlines; makes the timer where there is none yet.
    fn poll_timer(&mut self, stream: &Arc<Stream>, context: &mut Context<'_>) -> Poll<BodyError> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(Timer::new(stream)));
        timer
            .as_mut()
            .poll(stream, context)
            .map(|timeout| self.timed_out(stream, timeout))
    }

    fn timed_out(&mut self, stream: &Stream, timeout: Timeout) -> BodyError {
        {
            let mut info = stream.info.lock();
            if let Some(flag) = timeout.flag() {
                info.flags.set(flag);
            }
            info.details = Some(timeout.reply(true).details);
        }
        self.abort("a timeout")
    }

    /// The last byte was handed over.
    fn complete(&self) {
        if self.finish.stream().phase() != Phase::Ended {
            let mut info = self.finish.stream().info.lock();
            let now = Instant::now();
            info.end.get_or_insert(now);
            if info.upstream_first_rx.is_some() && !info.local_reply {
                info.upstream_last_rx.get_or_insert(now);
            }
        }
        self.finish.complete();
    }

    /// The upstream broke off: Envoy's flag and details.
    fn broken(&self, error: &BodyError) {
        let (flag, reason) = match error {
            BodyError::StreamReset => (
                ResponseFlag::UpstreamRemoteReset,
                "upstream_reset_after_response_started{remote_reset}",
            ),
            BodyError::Reset => (
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            ),
            BodyError::Malformed(_) => (
                ResponseFlag::UpstreamProtocolError,
                "upstream_reset_after_response_started{protocol_error}",
            ),
            BodyError::Aborted(_) => return,
        };
        let mut info = self.finish.stream().info.lock();
        info.reset = true;
        info.flags.set(flag);
        info.details = Some(reason.into());
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let stream = Arc::clone(self.finish.stream());
        stream.park(context);
        if !self.reset {
            match poll_after_head(&stream, context) {
                Ok(()) => {}
                Err(true) => self.reset = true,
                Err(false) => return Poll::Ready(Some(Err(self.abort("the stream was reset")))),
            }
        }
        // A source that is always ready must not outlive its deadlines.
        if self.timer.as_ref().is_some_and(|timer| timer.went_off())
            && let Poll::Ready(error) = self.poll_timer(&stream, context)
        {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if self.reset && !matches!(polled, Poll::Ready(Some(Ok(_)))) {
            return Poll::Ready(Some(Err(self.abort("the stream was reset"))));
        }
        match polled {
            Poll::Pending => {
                drain(&stream, context);
                self.poll_timer(&stream, context)
                    .map(|error| Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.done = true;
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                let mut last = self.inner.is_end_stream();
                if let Some(data) = frame.data_ref() {
                    let sent = data.len() as u64;
                    stream.info.lock().bytes_sent += sent;
                    self.missing = self.missing.map(|missing| missing.saturating_sub(sent));
                } else if let Some(trailers) = frame.trailers_ref() {
                    *stream.response_trailers.lock() = Some(trailers.clone());
                    last = true;
                }
                if last {
                    self.complete();
                } else {
                    stream.active();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.broken(&error);
                self.done = true;
                self.finish.complete();
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl TimedBody for ResponseBody {
    fn poll_deadline(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<BodyError> {
        let stream = Arc::clone(self.finish.stream());
        if self.done || stream.phase() == Phase::Ended {
            return Poll::Pending;
        }
        // Who does not read the response may still be sending its request, and may be given up.
        stream.park(context);
        if !self.reset && poll_after_head(&stream, context).is_err() {
            return Poll::Ready(self.abort("the stream was reset"));
        }
        drain(&stream, context);
        self.poll_timer(&stream, context)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let stream = self.finish.stream();
        // HEAD, and codecs that count: everything that had to be sent was sent.
        let head = stream.request.lock().method == http::Method::HEAD;
        if head || self.missing == Some(0) {
            self.complete();
        }
    }
}

/// The deadlines that the connection manager and the route set.
pub(super) fn set_timeouts(stream: &Stream) {
    let options = &stream.config.options;
    let mut idle = options.stream_idle_timeout;
    let mut max_duration = options.max_stream_duration;
    if let Some(route) = stream.route()
        && let Action::Forward(action) = &route.route.action
    {
        idle = action.idle_timeout.unwrap_or(idle);
        max_duration = timeout::max_duration(&stream.request.lock().headers, action, max_duration);
    }
    stream.set_timeouts(|timeouts| {
        timeouts.idle = idle;
        timeouts.max_duration = max_duration;
        timeouts.request = options.request_timeout;
    });
}
