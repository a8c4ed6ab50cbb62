//! The upstream side: [`Http1`], one exchange at a time, and [`Http2`], many.
//!
//! Connecting, pooling, retries and timeouts belong to the owner; this module only speaks the protocol.

use std::borrow::Cow;
use std::sync::Arc;

pub use super::h1::client::Http1;
use super::{ConnectionMeter, Io};
use crate::config::cluster::Http2Options;
use crate::http::{Body, BodyError, RequestHead, ResponseHead};

/// Why a request got no response head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection ended before the first byte of a response. `reused` is true where it had served an earlier
    /// exchange: the request may never have been read, and an idempotent one can be sent anew elsewhere.
    #[error("connection closed before a response")]
    Closed {
        /// An earlier exchange was completed on this connection.
        reused: bool,
    },
    /// The response is not HTTP, or breaks a limit; with Envoy's details where it has them.
    #[error("invalid response: {0}")]
    Protocol(Cow<'static, str>),
    /// HTTP/2: the peer reset the stream.
    #[error("stream reset by the peer")]
    Reset,
    /// HTTP/2: the peer promises that it did nothing (REFUSED_STREAM, or above the last stream of a GOAWAY).
    #[error("stream refused by the peer")]
    Refused,
    /// The request's own body ended in an error before a response head: the client went away.
    #[error("request body: {0}")]
    RequestBody(BodyError),
}

/// An HTTP/2 connection. Clones share it; it closes when the last one and all its streams are gone.
#[derive(Clone, Debug)]
pub struct Http2 {}

impl Http2 {
    /// Speaks the preface; the connection is then driven by a task of the current runtime.
    pub async fn handshake(
        io: Io,
        options: &Http2Options,
        meter: Arc<ConnectionMeter>,
    ) -> Result<Self, SendError> {
        let _ = (io, options, meter);
        Err(SendError::Closed { reused: false })
    }

    /// Streams in flight.
    pub fn active(&self) -> usize {
        0
    }

    /// Streams that the peer allows at once, as far as it has told.
    pub fn max_streams(&self) -> usize {
        100
    }

    /// True once no new stream may be opened: closed, or GOAWAY received. Streams in flight go on.
    pub fn is_closed(&self) -> bool {
        true
    }

    /// Ends when [`Http2::is_closed`] becomes true.
    pub async fn closed(&self) {}

    /// Opens a stream.
    pub async fn send(
        &self,
        head: RequestHead,
        body: Body,
    ) -> Result<(ResponseHead, Body), SendError> {
        let _ = (head, body);
        Err(SendError::Closed { reused: false })
    }
}
