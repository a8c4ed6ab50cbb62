//! The codec seam: a connection becomes (head, [`Body`], reply) and back, on both sides.
//!
//! HTTP/2 is the h2 library's, upstream below hyper (this folder is its only importer); HTTP/1 is our own, because what hyper answers by itself
//! (400, 431, no body, no log) must be Envoy's replies, seen by logs and statistics, and because a proxy that polls
//! both sides in one task pays for no channels (`docs/decisions/`).

pub mod client;
mod h1;
mod h2;
pub mod io;
pub mod meter;
pub mod server;
#[cfg(test)]
mod testing;

pub(in crate::http) use h1::{RequestBody, ResponseBody};
pub(in crate::http) use h2::IncomingBody;
pub use io::{Io, Layer};
pub use meter::{ConnectionMeter, Ending};

use std::future::Future;

use super::{Body, Lend, LocalReply, RequestHead, ResponseFlag, ResponseHead};

/// A request as the server codec hands it up.
#[derive(Debug)]
pub struct Exchange {
    /// The head, with Envoy's header joining rules applied.
    pub head: RequestHead,
    /// The body. Dropping it unread is allowed; the codec then drains or closes.
    pub body: Body,
}

/// The answer to an [`Exchange`].
#[derive(Debug)]
pub struct Reply<H = ResponseHead> {
    /// The head; framing headers (`transfer-encoding`, and `content-length` where the body is not of known length)
    /// are the codec's business.
    pub head: H,
    /// The body; a body error resets the stream (h2) or closes the connection mid-message (h1).
    pub body: Body,
    /// Close the HTTP/1 connection after this response (adds `connection: close`); HTTP/2: GOAWAY.
    pub close: bool,
}

/// A request that is not HTTP, or that the codec's limits refuse: the HTTP/1 codec answers it with what
/// [`Handler::malformed`] makes of `reply`, and closes.
#[derive(Debug)]
pub struct Malformed {
    /// As much of the head as was understood.
    pub head: Option<RequestHead>,
    /// What Envoy answers (400, 426, 431, 501; `DPE`; `http1.codec_error` and the like).
    pub reply: LocalReply,
}

/// An HTTP/2 stream that is reset for its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// How it is reset.
    pub reset: Reset,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
    /// Envoy's flag: a broken rule (`DPE`), or a limit (`DR`).
    pub flag: ResponseFlag,
}

/// No answer: the stream is reset (h2, with this code) or the connection closed (h1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// NO_ERROR: the rest of the request is not wanted.
    NoError,
    /// PROTOCOL_ERROR.
    Protocol,
    /// INTERNAL_ERROR: what Envoy sends for its own resets.
    Internal,
    /// REFUSED_STREAM.
    Refused,
    /// CANCEL.
    Cancel,
}

/// What a downstream connection asks of its owner. One instance a connection.
pub trait Handler: Send + Sync + 'static {
    /// The head of an answer, or what keeps it.
    type Head: Lend<ResponseHead> + Send + 'static;

    /// Answers a request. Dropping the future means that the client went away.
    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply<Self::Head>, Reset>> + Send + 'static;

    /// Turns a refusal of the codec into the reply to send (headers, mapping) and records it.
    fn malformed(&self, malformed: Malformed) -> Reply<Self::Head>;

    /// Records a stream that is reset for its head; nothing where no one keeps records.
    fn refused(&self, refusal: Refusal) {
        let _ = refusal;
    }
}
