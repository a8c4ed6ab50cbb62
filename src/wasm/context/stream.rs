//! One stream as a VM knows it: what its guest sees of it, holds back, and has decided.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::http::LocalReply;
use crate::stream::network::NetworkHandle;
use crate::stream::{PumpHandle, Stream};
use crate::telemetry::metrics::StatSet;
use crate::wasm::abi::properties::Declared;
use crate::wasm::status::wasm_stats;
use crate::wasm::vm::{Counters, Direction};

/// A head that is held.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) sender: oneshot::Sender<()>,
    /// The body's callbacks come meanwhile, and may hold it by themselves.
    pub(crate) flowing: bool,
}

/// One stream in the VM.
pub(crate) struct StreamContext {
    /// Kept to the context's end, which every stream brings about when it ends.
    pub(crate) stream: Arc<Stream>,
    /// The root context that it belongs to.
    pub(crate) root: u32,
    /// What header maps can be reached now.
    pub(crate) visible: Visible,
    /// The end of the body was seen, which has not gone on: trailers can be made, by direction.
    pub(crate) may_add_trailers: [bool; 2],
    /// Body data that the guest can see, by direction.
    pub(crate) bodies: [BodyView; 2],
    /// The pumps of the bodies, by direction: what they hold can be read and changed from any callback.
    pub(crate) pumps: [Option<PumpHandle>; 2],
    /// Who hears of it where a pump is held and the VM dies.
    pub(crate) on_loss: Option<OnLoss>,
    /// The pause of each direction.
    pub(crate) paused: [Option<Box<Pause>>; 2],
    /// Bytes of header names and values that the guest has added.
    pub(crate) added: usize,
    /// The connection that it stands for, where it is one of a network filter.
    pub(crate) network: Option<Box<NetworkView>>,
    /// Who waits for `continue_stream`, by direction.
    pub(crate) waiting: [Option<Waiting>; 2],
    /// `continue_stream` was called in the callback that runs, by direction.
    pub(crate) resumed: [bool; 2],
    /// The traffic callback that runs, if one does.
    pub(crate) callback: Option<Direction>,
    /// A local reply or a reset was made; there is only one.
    pub(crate) ended: bool,
    /// It was answered with 500 or more, by the guest or for what it holds.
    pub(crate) failed: bool,
    /// The reply made in the callback that runs.
    pub(crate) reply: Option<Box<LocalReply>>,
    /// A reset made in the callback that runs.
    pub(crate) reset: bool,
    /// It is one of an upstream filter.
    pub(crate) upstream: bool,
    /// The response's headers have been shown: replies are direct from now on.
    pub(crate) responding: bool,
    /// `on_log` runs.
    pub(crate) logging: bool,
    /// The guest wrote what cannot be a request; the reason.
    pub(crate) invalid: Option<Box<str>>,
    /// A copy of the response's head that was changed after it had been sent.
    pub(crate) late_response: Option<Box<crate::http::ResponseHead>>,
    /// The request's headers have gone on: what is done to them is of no effect.
    pub(crate) request_gone: bool,
    /// Pseudo-headers that the guest removed and did not set again.
    pub(crate) removed: Removed,
    /// Properties that it declared: kept to refuse a second declaration, and otherwise without effect, as in Envoy.
    pub(crate) declared: Option<Box<Declared>>,
}

/// Which header maps a context shows. See `proxy-wasm` on the life of header maps: a map can be reached in its own
/// callback, and afterwards while this context holds the headers back. As in Envoy that lasts to the stream's end where
/// nothing lets them go, and of a response also where `continue_stream` does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Visible {
    pub(crate) request_headers: bool,
    pub(crate) request_trailers: bool,
    pub(crate) response_headers: bool,
    pub(crate) response_trailers: bool,
}

/// Required pseudo-headers that are gone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Removed {
    pub(crate) method: bool,
    pub(crate) path: bool,
    pub(crate) authority: bool,
    pub(crate) status: bool,
}

/// What becomes of a stream whose body is held in a VM that dies; called on the worker. Cheap to clone.
#[derive(Clone)]
pub struct OnLoss(Arc<Loss>);

type Loss = dyn Fn(&Arc<Stream>, Direction, &PumpHandle) + Send + Sync;

impl OnLoss {
    /// Calls `f` with the stream, the half of it, and its pump.
    pub fn new(f: impl Fn(&Arc<Stream>, Direction, &PumpHandle) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    pub(crate) fn tell(&self, stream: &Arc<Stream>, direction: Direction, pump: &PumpHandle) {
        (self.0)(stream, direction, pump);
    }
}

impl fmt::Debug for OnLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLoss")
    }
}

/// A connection under the eyes of a network filter.
pub(crate) struct NetworkView {
    pub(crate) handle: NetworkHandle,
    /// Whether the data can be seen, by [`Towards`](crate::stream::network::Towards): in their callback, and afterwards
    /// while that has stopped them.
    pub(crate) shown: [bool; 2],
    /// It was closed in the callback that runs.
    pub(crate) closing: bool,
}

/// One half of a stream that a plugin holds back; counted while it lasts.
pub(crate) struct Pause {
    /// When its limit is reached; `None`: the guest will be asked again, or there is no limit.
    pub(crate) until: Option<Instant>,
    stats: Arc<StatSet>,
    counters: Arc<Counters>,
}

impl Pause {
    pub(crate) fn new(stats: &Arc<StatSet>, counters: &Arc<Counters>) -> Self {
        stats.inc(wasm_stats::PAUSED_STREAMS);
        counters.meter.paused.add(1);
        Self {
            until: None,
            stats: Arc::clone(stats),
            counters: Arc::clone(counters),
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.stats.dec(wasm_stats::PAUSED_STREAMS);
        // Streams end on the VM's worker, which is the one that writes this.
        self.counters.meter.paused.add(1u64.wrapping_neg());
    }
}

/// Body data under the eyes of a guest.
#[derive(Debug, Default)]
pub(crate) struct BodyView {
    /// `None`: there is no buffer now.
    pub(crate) data: Option<Bytes>,
    /// The last callback had the body kept (`StopIterationAndBuffer`): it can be read and changed until it goes on, from
    /// any callback. What is held for another reason is not shown, as in Envoy.
    pub(crate) kept: bool,
    /// The guest has let the stream go on in the callback that runs: what that came for is not shown any more.
    pub(crate) hidden: bool,
}

impl BodyView {
    /// The stream goes on. As in Envoy what the callback before had kept can be seen still, with what has come since.
    pub(crate) fn hide(&mut self) {
        self.hidden = !self.kept;
    }
}

impl StreamContext {
    /// One that has seen nothing yet. Inlined, so that it comes into being where it is kept.
    #[inline]
    pub(crate) fn new(stream: Arc<Stream>, root: u32) -> Self {
        Self {
            stream,
            root,
            visible: Visible::default(),
            may_add_trailers: [false; 2],
            bodies: Default::default(),
            pumps: [None, None],
            on_loss: None,
            paused: [None, None],
            added: 0,
            network: None,
            waiting: [None, None],
            resumed: [false; 2],
            callback: None,
            ended: false,
            failed: false,
            reply: None,
            reset: false,
            upstream: false,
            responding: false,
            logging: false,
            invalid: None,
            late_response: None,
            request_gone: false,
            removed: Removed::default(),
            declared: None,
        }
    }

    /// True where a reply goes past the filters. That of an upstream filter passes those of its listener, as in Envoy.
    pub(crate) fn replies_directly(&self) -> bool {
        self.responding && !self.upstream
    }

    /// Has the stream's route chosen anew. An upstream filter comes too late for that.
    #[inline]
    pub(crate) fn clear_route(&self) {
        if !self.upstream {
            self.stream.clear_route();
        }
    }

    /// What may be read, which may be more than may be written: `on_log` shows all that it knows of.
    pub(crate) fn readable(&self, lenient: bool) -> Visible {
        if self.network.is_some() {
            // There is no request.
            return Visible::default();
        }
        if self.logging {
            return Visible {
                request_headers: !self.stream.info.lock().without_head,
                request_trailers: false,
                response_headers: true,
                response_trailers: true,
            };
        }
        let mut visible = self.visible;
        if lenient {
            visible.request_headers = true;
            visible.response_headers |= self.responding;
        }
        visible
    }
}
