//! Bodies that a plugin has seen, in the length that their heads say.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::http::{Body, BodyError};
use crate::stream::Stream;
use crate::wasm::Direction;

/// A pumped body as long as its head says, as in Envoy: a plugin that changes the one must change (or remove) the other. Where
/// the head does not say, nor does the body, though all of it may be here.
pub(super) fn declared(stream: &Stream, direction: Direction, body: Body, pumped: bool) -> Body {
    if !pumped {
        return body;
    }
    let length = |headers: &HeaderMap| {
        let value = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
        value.parse().ok()
    };
    let left = match direction {
        Direction::Request => length(&stream.request.lock().headers),
        Direction::Response => {
            let head = stream.response.lock();
            head.as_ref().and_then(|head| length(&head.headers))
        }
    };
    match left {
        Some(left) => Body::new(Declared { body, left }),
        None => Body::new(Undeclared(body)),
    }
}

/// See [`declared`].
struct Undeclared(Body);

impl HttpBody for Undeclared {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// See [`declared`]. The codec breaks the message off where the body does not keep the promise.
struct Declared {
    body: Body,
    left: u64,
}

impl HttpBody for Declared {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.left = self.left.saturating_sub(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
