//! The upstream HTTP/2 connection.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Body as _;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::super::client::SendError;
use super::super::{ConnectionMeter, Ending, Io};
use super::body::{IncomingBody, StreamGuard, http2_error};
use super::convert;
use super::io::Metered;
use super::runtime::{Executor, Timer};
use crate::base::task;
use crate::config::cluster::Http2Options;
use crate::http::{Body, RequestHead, ResponseHead};

/// Most bytes of a response head.
const MAX_HEAD: u32 = 80 << 10;
/// Most fields of a response head.
const MAX_FIELDS: usize = 100;

/// An HTTP/2 connection. Clones share it; it closes when the last one and all its streams are gone.
#[derive(Clone)]
pub struct Http2 {
    requests: SendRequest<Body>,
    active: Arc<AtomicUsize>,
    max_streams: Arc<AtomicUsize>,
    closed: watch::Receiver<bool>,
}

impl Http2 {
    /// Speaks the preface; the connection is then driven by a task of the current runtime. How it ends is told to
    /// `meter`.
    pub async fn handshake(
        io: Io,
        options: &Http2Options,
        meter: Arc<ConnectionMeter>,
    ) -> Result<Self, SendError> {
        let mut builder = Builder::new(Executor);
        builder
            .timer(Timer)
            .initial_stream_window_size(options.initial_stream_window)
            .initial_connection_window_size(options.initial_connection_window)
            .initial_max_send_streams(Some(options.max_concurrent_streams as usize))
            .max_header_list_size(MAX_HEAD);
        if let Some((interval, timeout)) = options.keepalive {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(true);
        }
        let io = TokioIo::new(Metered::new(io, Bytes::new(), Arc::clone(&meter)));
        let (requests, connection) = builder
            .handshake(io)
            .await
            .map_err(|_| SendError::Closed { reused: false })?;
        let (ended, closed) = watch::channel(false);
        let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let told = Arc::clone(&max_streams);
        // It ends by itself: when its last clone and stream are gone, or with the peer.
        task::spawn("http2-connection", async move {
            let mut connection = pin!(connection);
            let result = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() {
                    told.store(connection.current_max_send_streams(), Ordering::Relaxed);
                }
                polled
            })
            .await;
            let ending = match result {
                Ok(()) => Ending::Peer,
                Err(error) => match http2_error(&error) {
                    Some(error) if error.is_library() => Ending::Malformed,
                    _ => Ending::Peer,
                },
            };
            meter.set_ending(ending);
            ended.send_replace(true);
        });
        Ok(Self {
            requests,
            active: Arc::default(),
            max_streams,
            closed,
        })
    }

    /// Streams in flight.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Streams that the peer allows at once, as far as it has told.
    pub fn max_streams(&self) -> usize {
        self.max_streams.load(Ordering::Relaxed)
    }

    /// True once no new stream may be opened: closed, or GOAWAY received. Streams in flight go on.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Ends when [`Http2::is_closed`] becomes true. The future does not keep the connection open.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.clone();
        async move {
            // The sender goes away with the connection's task.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Opens a stream. Dropping the future, or the response's body, resets it.
    pub async fn send(
        &self,
        head: RequestHead,
        body: Body,
    ) -> Result<(ResponseHead, Body), SendError> {
        let guard = StreamGuard::new(&self.active);
        let head_request = head.method == Method::HEAD;
        // The library keeps what the upstream says of it to itself.
        if let Some(interim) = &head.interim {
            interim.offer(ResponseHead::new(StatusCode::CONTINUE));
        }
        let request =
            convert::request(head, body).map_err(|details| SendError::Protocol(details.into()))?;
        let mut requests = self.requests.clone();
        let response = requests
            .send_request(request)
            .await
            .map_err(|error| send_error(&error))?;
        let (parts, incoming) = response.into_parts();
        if parts.headers.len() > MAX_FIELDS {
            return Err(SendError::Protocol("http2.too_many_headers".into()));
        }
        let head = convert::response_head(parts);
        let body = if incoming.is_end_stream() || head_request {
            Body::empty()
        } else {
            Body::http2(IncomingBody::response(incoming, guard))
        };
        Ok((head, body))
    }
}

/// What became of a request, by hyper's error.
fn send_error(error: &hyper::Error) -> SendError {
    if let Some(body) = request_body_error(error) {
        return SendError::RequestBody(body);
    }
    let Some(error) = http2_error(error) else {
        // Never sent: the connection was closed before.
        return if error.is_canceled() {
            SendError::Refused
        } else {
            SendError::Closed { reused: true }
        };
    };
    let reason = error.reason();
    if error.is_reset() && error.is_remote() {
        return match reason {
            Some(h2::Reason::REFUSED_STREAM) => SendError::Refused,
            _ => SendError::Reset,
        };
    }
    if error.is_go_away() && error.is_remote() {
        return match reason {
            Some(h2::Reason::NO_ERROR) => SendError::Refused,
            _ => SendError::Closed { reused: true },
        };
    }
    if error.is_library() {
        return SendError::Protocol("http2.protocol_error".into());
    }
    SendError::Closed { reused: true }
}

/// The request's own body error, where hyper gives it back.
fn request_body_error(error: &hyper::Error) -> Option<crate::http::BodyError> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<crate::http::BodyError>() {
            return Some(found.clone());
        }
        source = error.source();
    }
    None
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2")
            .field("active", &self.active())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
