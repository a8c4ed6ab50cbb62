//! The end of a stream: logged once, then ended once, from one place, however it came about.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::Version;
use tokio::time::Instant;

use super::{Phase, Stream};
use crate::http::ResponseFlag;
use crate::http::codec::Ending as ConnectionEnding;

/// Who must hear of a stream's end.
///
/// Both methods may run inside a `Drop` (the client went away): they must be short, and a plugin's guest is never
/// entered from there but told later.
pub trait Ending: Send + Sync {
    /// The stream is over: write it down.
    fn log(&self, stream: &Arc<Stream>);
    /// It was written down by all: forget it.
    fn end(&self, stream: &Arc<Stream>);
}

/// Ends its stream when dropped, if it has not ended before: a stream ends exactly once.
pub struct Finish<E: Ending> {
    stream: Arc<Stream>,
    ending: E,
}

impl<E: Ending> Finish<E> {
    /// Takes responsibility for the end of `stream`.
    pub fn new(stream: Arc<Stream>, ending: E) -> Self {
        Self { stream, ending }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Who hears of the end.
    pub fn ending(&self) -> &E {
        &self.ending
    }

    /// The exchange was completed, or reset by us: log and end.
    pub fn complete(&self) {
        self.stream.finish(&self.ending);
    }
}

impl<E: Ending> Drop for Finish<E> {
    fn drop(&mut self) {
        if self.stream.phase() != Phase::Ended {
            self.stream.abandoned();
            self.stream.finish(&self.ending);
        }
    }
}

impl Stream {
    /// Nobody waits for the rest of the response: what the log says, unless the codec has said it.
    fn abandoned(&self) {
        let http2 = self.request.lock().version == Version::HTTP_2;
        let mut info = self.info.lock();
        info.abandoned = true;
        let told = [
            ResponseFlag::DownstreamConnectionTermination,
            ResponseFlag::DownstreamRemoteReset,
            ResponseFlag::DownstreamProtocolError,
        ];
        if !told.into_iter().any(|flag| info.flags.contains(flag)) {
            if let Some(reason) = self.connection.meter.closed() {
                info.flags
                    .set(ResponseFlag::DownstreamConnectionTermination);
                info.details = Some(format!("downstream_local_disconnect({reason})").into());
                return;
            }
            let (flag, details) = match self.connection.meter.ending() {
                // No flag, as in Envoy.
                ConnectionEnding::PrematureResets => {
                    info.details = Some("too_many_premature_resets".into());
                    return;
                }
                // An HTTP/2 stream can end while its connection goes on.
                ConnectionEnding::Open if http2 => {
                    (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset")
                }
                ConnectionEnding::Malformed => (
                    ResponseFlag::DownstreamProtocolError,
                    "http2.protocol_error",
                ),
                _ => (
                    ResponseFlag::DownstreamConnectionTermination,
                    "downstream_remote_disconnect",
                ),
            };
            info.flags.set(flag);
            info.details = Some(details.into());
        }
    }

    /// Logs and ends, at the first call.
    pub fn finish<E: Ending + ?Sized>(self: &Arc<Self>, ending: &E) {
        if !self.end_drive() {
            return;
        }
        self.info.lock().end.get_or_insert_with(Instant::now);
        // A panic here may run inside a drop: it must not become an abort, and `end` must follow `log`.
        if catch_unwind(AssertUnwindSafe(|| ending.log(self))).is_err() {
            tracing::error!("a stream's log panicked");
        }
        if catch_unwind(AssertUnwindSafe(|| ending.end(self))).is_err() {
            tracing::error!("a stream's end panicked");
        }
        self.end_attempt();
    }
}
