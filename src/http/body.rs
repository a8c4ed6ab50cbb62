//! The one body type of both sides.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::codec::{IncomingBody, RequestBody, ResponseBody};

/// Why a body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The peer closed or reset in the middle.
    #[error("the peer ended the body early")]
    Reset,
    /// The peer reset this stream; its HTTP/2 connection goes on.
    #[error("the peer reset the stream")]
    StreamReset,
    /// The peer's framing is not HTTP.
    #[error("malformed body: {0}")]
    Malformed(Box<str>),
    /// We gave the stream up.
    #[error("aborted: {0}")]
    Aborted(&'static str),
}

/// A body with deadlines, and with work beside it, that go on whether anybody takes its frames or not.
pub trait TimedBody: HttpBody {
    /// All but the next frame: for whoever has no room for one now. Ready where a deadline has passed, or the stream was
    /// given up: the body has failed with this error then, and has ended.
    fn poll_deadline(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Error>;
}

/// A message body: data frames, then perhaps trailers.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    /// In memory, though the length was not announced: goes on without one.
    Unsized(Bytes),
    Request(RequestBody),
    Response(ResponseBody),
    Http2(Box<IncomingBody>),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>),
    Timed(Pin<Box<dyn TimedBody<Data = Bytes, Error = BodyError> + Send>>),
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// All of it at once.
    pub fn full(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        if data.is_empty() {
            Self(Kind::Empty)
        } else {
            Self(Kind::Full(data))
        }
    }

    /// All of it at once, from a message that did not say its length; nor will what it becomes.
    pub(crate) fn of_unknown_length(data: Bytes) -> Self {
        Self(Kind::Unsized(data))
    }

    /// How much it is, where all of it is in memory.
    pub fn in_memory(&self) -> Option<usize> {
        match &self.0 {
            Kind::Empty => Some(0),
            Kind::Full(data) | Kind::Unsized(data) => Some(data.len()),
            Kind::Request(_)
            | Kind::Response(_)
            | Kind::Http2(_)
            | Kind::Boxed(_)
            | Kind::Timed(_) => None,
        }
    }

    pub(in crate::http) fn request(body: RequestBody) -> Self {
        Self(Kind::Request(body))
    }

    pub(in crate::http) fn response(body: ResponseBody) -> Self {
        Self(Kind::Response(body))
    }

    pub(in crate::http) fn http2(body: Box<IncomingBody>) -> Self {
        Self(Kind::Http2(body))
    }

    /// Any other body.
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Self(Kind::Boxed(Box::pin(body)))
    }

    /// A body that watches over deadlines.
    pub fn timed<B>(body: B) -> Self
    where
        B: TimedBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Self(Kind::Timed(Box::pin(body)))
    }

    /// See [`TimedBody::poll_deadline`]; other bodies have no deadline.
    pub(crate) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match &mut self.0 {
            Kind::Timed(body) => body.as_mut().poll_deadline(cx),
            _ => Poll::Pending,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(data) | Kind::Unsized(data) => {
                let data = std::mem::take(data);
                self.0 = Kind::Empty;
                if data.is_empty() {
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Kind::Request(body) => body.poll_frame(cx),
            Kind::Response(body) => body.poll_frame(cx),
            Kind::Http2(body) => body.poll_frame(cx),
            Kind::Boxed(body) => body.as_mut().poll_frame(cx),
            Kind::Timed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) | Kind::Unsized(_) => false,
            Kind::Request(body) => body.is_end_stream(),
            Kind::Response(body) => body.is_end_stream(),
            Kind::Http2(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
            Kind::Timed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(data) => SizeHint::with_exact(data.len() as u64),
            Kind::Unsized(_) => SizeHint::default(),
            Kind::Request(body) => body.size_hint(),
            Kind::Response(body) => body.size_hint(),
            Kind::Http2(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
            Kind::Timed(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Empty => f.write_str("Body::Empty"),
            Kind::Full(data) => write!(f, "Body::Full({} bytes)", data.len()),
            Kind::Unsized(data) => write!(f, "Body::Unsized({} bytes)", data.len()),
            Kind::Request(_) => f.write_str("Body::Request"),
            Kind::Response(_) => f.write_str("Body::Response"),
            Kind::Http2(_) => f.write_str("Body::Http2"),
            Kind::Boxed(_) => f.write_str("Body::Boxed"),
            Kind::Timed(_) => f.write_str("Body::Timed"),
        }
    }
}
