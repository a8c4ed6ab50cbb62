//! The downstream side: a connection becomes [`Exchange`](super::Exchange)s for a [`Handler`].
//!
//! One future a connection, no task of its own, nor one for a stream of HTTP/2. The handler's
//! future is polled by the connection; it is dropped when the client goes away.

use std::borrow::Cow;
use std::sync::Arc;

use super::h1::Wire;
use super::h1::server::{Outcome, Server};
use super::{ConnectionMeter, Handler, Io, h2};
use crate::base::drain::DrainWatch;
use crate::config::http_connection_manager::{CodecType, Options};

/// How a downstream connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The client closed it (FIN or reset), with or without a request in flight.
    Remote,
    /// We closed it after a last response (`connection: close`, `max_requests_per_connection`, a refused request).
    Local,
    /// Nothing happened for `idle_timeout`.
    Idle,
    /// `max_connection_duration` was over.
    Duration,
    /// Closed by a drain.
    Drained,
    /// Closed since the peer is not speaking HTTP, where there is no stream to answer on; with the details.
    Protocol(Cow<'static, str>),
    /// Closed since the client resets its streams before they are answered.
    PrematureResets,
}

/// Serves one downstream connection until it ends.
///
/// `drain`: once draining, the next response says `connection: close`; until then an idle connection stays, since it
/// may be about to send a request. HTTP/2 has GOAWAY for that, which is sent at once. Dropping the future closes the
/// connection and drops the handler's futures.
pub async fn serve<H: Handler>(
    io: Io,
    codec: CodecType,
    options: Arc<Options>,
    handler: H,
    drain: DrainWatch,
    meter: Arc<ConnectionMeter>,
) -> ConnectionEnd {
    let wire = Wire::new(io, meter);
    if codec == CodecType::Http2 {
        return Box::pin(h2::server::serve(wire, options, handler, drain)).await;
    }
    let detect = codec == CodecType::Auto;
    match Server::new(wire, options, handler, drain, detect)
        .run()
        .await
    {
        Outcome::End(end) => end,
        Outcome::Http2 {
            wire,
            handler,
            options,
            drain,
        } => Box::pin(h2::server::serve(wire, options, handler, drain)).await,
    }
}
