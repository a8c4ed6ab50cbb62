//! The upstream side: [`Http1`], one exchange at a time, and [`Http2`], many.
//!
//! Connecting, pooling, retries and timeouts belong to the owner; this module only speaks the protocol.

use std::borrow::Cow;

pub use super::h1::client::Http1;
pub use super::h2::client::Http2;
use crate::http::BodyError;

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
