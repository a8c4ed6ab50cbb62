//! [`IncomingBody`]: a received body in our terms.

use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http::BodyError;
use crate::http::joined::{self, join_repeated};

/// Counts a stream for as long as it lives.
pub(super) struct StreamGuard(Arc<AtomicUsize>);

impl StreamGuard {
    pub(super) fn new(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(active))
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that arrives on an HTTP/2 stream.
pub(in crate::http) struct IncomingBody(Arrives);

enum Arrives {
    Request(Request),
    Response(Response),
}

struct Request {
    stream: RecvStream,
    /// What is still to come, where the client has said it.
    left: Option<u64>,
    /// All data has come; trailers may.
    data_done: bool,
}

struct Response {
    incoming: Incoming,
    /// Upstream streams are counted until their last byte.
    guard: Option<StreamGuard>,
}

impl IncomingBody {
    /// A request's, of so many bytes where that is known. Where the client resets the stream it never ends: the handler's
    /// future is dropped then.
    pub(super) fn request(stream: RecvStream, length: Option<u64>) -> Box<Self> {
        Box::new(Self(Arrives::Request(Request {
            stream,
            left: length,
            data_done: false,
        })))
    }

    /// A response's.
    pub(super) fn response(incoming: Incoming, guard: StreamGuard) -> Box<Self> {
        Box::new(Self(Arrives::Response(Response {
            incoming,
            guard: Some(guard),
        })))
    }

    pub(in crate::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Arrives::Request(request) => request.poll_frame(cx),
            Arrives::Response(response) => response.poll_frame(cx),
        }
    }

    pub(in crate::http) fn is_end_stream(&self) -> bool {
        match &self.0 {
            Arrives::Request(request) => request.stream.is_end_stream(),
            Arrives::Response(response) => response.incoming.is_end_stream(),
        }
    }

    pub(in crate::http) fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Arrives::Request(request) => match request.left {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
            Arrives::Response(response) => response.incoming.size_hint(),
        }
    }
}

impl Request {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Self::failed(&error),
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Self::failed(&error),
        }
    }

    fn failed(error: &h2::Error) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Whatever the reason is, a request that was reset is not complete: one that has ended is not told of it.
        match body_error(Some(error)) {
            BodyError::Reset | BodyError::StreamReset => Poll::Pending,
            error => Poll::Ready(Some(Err(error))),
        }
    }
}

impl Response {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let ends = match &polled {
            None | Some(Err(_)) => true,
            Some(Ok(_)) => self.incoming.is_end_stream(),
        };
        if ends {
            self.guard = None;
        }
        match polled {
            Some(Err(error)) => Poll::Ready(Some(Err(body_error(http2_error(&error))))),
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    join_repeated(joined::Side::ResponseTrailers, trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => Poll::Ready(None),
        }
    }
}

impl fmt::Debug for IncomingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IncomingBody")
    }
}

/// The HTTP/2 error below one of hyper's.
pub(super) fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

fn body_error(error: Option<&h2::Error>) -> BodyError {
    match error {
        Some(error) if error.is_library() => BodyError::Malformed("http2.protocol_error".into()),
        Some(error) if error.is_reset() && error.is_remote() => BodyError::StreamReset,
        _ => BodyError::Reset,
    }
}
