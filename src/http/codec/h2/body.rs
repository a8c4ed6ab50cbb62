//! [`IncomingBody`]: hyper's received body in our terms.

use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
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
pub(in crate::http) struct IncomingBody {
    incoming: Incoming,
    /// Upstream streams are counted until their last byte.
    guard: Option<StreamGuard>,
    side: Side,
}

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

impl IncomingBody {
    /// A request's. Where the client resets the stream it never ends: hyper drops the handler's future then.
    pub(super) fn request(incoming: Incoming) -> Box<Self> {
        Box::new(Self {
            incoming,
            guard: None,
            side: Side::Request,
        })
    }

    /// A response's.
    pub(super) fn response(incoming: Incoming, guard: StreamGuard) -> Box<Self> {
        Box::new(Self {
            incoming,
            guard: Some(guard),
            side: Side::Response,
        })
    }

    pub(in crate::http) fn poll_frame(
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
            Some(Err(error)) => match body_error(&error) {
                BodyError::Reset | BodyError::StreamReset if self.side == Side::Request => {
                    Poll::Pending
                }
                error => Poll::Ready(Some(Err(error))),
            },
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut()
                    && self.side == Side::Response
                {
                    join_repeated(joined::Side::ResponseTrailers, trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => Poll::Ready(None),
        }
    }

    pub(in crate::http) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(in crate::http) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
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

fn body_error(error: &hyper::Error) -> BodyError {
    match http2_error(error) {
        Some(error) if error.is_library() => BodyError::Malformed("http2.protocol_error".into()),
        Some(error) if error.is_reset() && error.is_remote() => BodyError::StreamReset,
        _ => BodyError::Reset,
    }
}
