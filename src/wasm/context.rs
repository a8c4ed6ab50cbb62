//! The state of one VM on the host's side: its contexts, which of them a host function means, and what is visible.
//!
//! Ids count up from 1 in each VM and are never used again: the root context is 1, streams follow; 0 is the VM itself.
//! A host function works on the *effective* context: that of the running callback, until the guest names another.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wasmtime::{Memory, TypedFunc};

use super::abi::calls::Calls;
use super::abi::metrics::Metrics;
use super::engine::{Budget, Limits};
use super::meter::Meter;
use super::module::Abi;
use super::shared::{Shared, Space};
use super::spec::PluginSpec;
use super::trace::Trace;
use super::vm::{Counters, Direction, Message};
use crate::cluster::ClusterMap;
use crate::config::wasm_settings::PluginPolicy;
use crate::http::LocalReply;
use crate::pb;
use crate::stream::{PumpHandle, Stream};
use crate::telemetry::metrics::Registry;

/// The id of the root context: there is one in a VM, and it is made first.
pub(crate) const ROOT: u32 = 1;

/// What all VMs of a plugin version have in common.
pub(crate) struct Environment {
    pub(crate) spec: Arc<PluginSpec>,
    pub(crate) abi: Abi,
    pub(crate) registry: Registry,
    pub(crate) clusters: Arc<ArcSwap<ClusterMap>>,
    pub(crate) node: Option<Arc<pb::Node>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: Arc<Space>,
    /// `wasm log <name> <root_id> <vm_id>`, what log lines of the guest begin with.
    pub(crate) log_prefix: Box<str>,
    pub(crate) policy: PluginPolicy,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({})", self.spec.name)
    }
}

/// Which host functions may be called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The module is starting: only what a runtime needs to set itself up.
    Start,
    /// The guest's allocator runs inside a host function: next to nothing.
    Allocate,
    /// All.
    Open,
}

/// The store's data.
pub(crate) struct Host {
    pub(crate) env: Arc<Environment>,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    pub(crate) phase: Phase,
    pub(crate) limits: Limits,
    pub(crate) budget: Budget,
    /// The context whose callback runs.
    pub(crate) current: u32,
    /// The context that host functions work on.
    pub(crate) effective: u32,
    /// The effective context's stream, while a callback runs.
    pub(crate) stream: Option<Arc<Stream>>,
    pub(crate) streams: FxHashMap<u32, StreamContext>,
    pub(crate) next_id: u32,
    pub(crate) root: Root,
    /// The answer to a callout, while its callback runs.
    pub(crate) call: Option<CallAnswer>,
    /// `proxy_get_status`: the last code and message.
    pub(crate) status: (u32, String),
    /// What the guest last wrote to its standard error: the message of a panic, most likely.
    pub(crate) last_words: String,
    pub(crate) calls: Calls,
    pub(crate) metrics: Metrics,
    /// To be done when the guest has returned.
    pub(crate) effects: Vec<Effect>,
    /// What is counted of it.
    pub(crate) counters: Arc<Counters>,
    pub(crate) trace: Trace,
    pub(crate) log_lines: LogLines,
    pub(crate) mailbox: mpsc::UnboundedSender<Message>,
}

/// The root context.
#[derive(Debug, Default)]
pub(crate) struct Root {
    /// The plugin's configuration can be read: during its creation and `on_configure`.
    pub(crate) configuring: bool,
    pub(crate) tick_period: Option<Duration>,
    pub(crate) next_tick: Option<Instant>,
    /// `on_done` returned false and `proxy_done` has not come.
    pub(crate) pending_done: bool,
    /// `on_delete` was called.
    pub(crate) gone: bool,
}

/// The answer to a callout as the guest reads it.
#[derive(Debug)]
pub(crate) struct CallAnswer {
    pub(crate) head: Option<crate::http::ResponseHead>,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// One stream in the VM.
pub(crate) struct StreamContext {
    /// Weak: a stream owns its context, never the reverse.
    pub(crate) stream: Weak<Stream>,
    /// What header maps can be reached now.
    pub(crate) visible: Visible,
    /// Body data that the guest can see, by direction.
    pub(crate) bodies: [BodyView; 2],
    /// The pumps of the bodies, by direction: what they hold can be read and changed from any callback.
    pub(crate) pumps: [Option<PumpHandle>; 2],
    /// Who waits for `continue_stream`, by direction.
    pub(crate) waiting: [Option<oneshot::Sender<()>>; 2],
    /// `continue_stream` was called in the callback that runs, by direction.
    pub(crate) resumed: [bool; 2],
    /// The traffic callback that runs, if one does.
    pub(crate) callback: Option<Direction>,
    /// A local reply or a reset was made; there is only one.
    pub(crate) ended: bool,
    /// The reply made in the callback that runs.
    pub(crate) reply: Option<LocalReply>,
    /// A reset made in the callback that runs.
    pub(crate) reset: bool,
    /// Since when it is held by this plugin's doing, by direction.
    pub(crate) held: [Option<Instant>; 2],
    /// The response's headers have been shown: replies are direct from now on.
    pub(crate) responding: bool,
    /// `on_log` runs.
    pub(crate) logging: bool,
    /// The guest wrote what cannot be a request; the reason.
    pub(crate) invalid: Option<&'static str>,
    /// Pseudo-headers that the guest removed and did not set again.
    pub(crate) removed: Removed,
}

/// Which header maps a context shows. See `proxy-wasm` on the life of header maps: a map can be reached in its own
/// callback, and afterwards only while this context holds the headers back.
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
    pub(crate) scheme: bool,
    pub(crate) status: bool,
}

/// Body data under the eyes of a guest.
#[derive(Debug, Default)]
pub(crate) struct BodyView {
    /// `None`: there is no buffer now.
    pub(crate) data: Option<Bytes>,
}

impl StreamContext {
    pub(crate) fn new(stream: Weak<Stream>) -> Self {
        Self {
            stream,
            visible: Visible::default(),
            bodies: Default::default(),
            pumps: [None, None],
            waiting: [None, None],
            resumed: [false; 2],
            callback: None,
            ended: false,
            reply: None,
            reset: false,
            held: [None, None],
            responding: false,
            logging: false,
            invalid: None,
            removed: Removed::default(),
        }
    }
}

impl StreamContext {
    /// As [`Host::readable`].
    pub(crate) fn readable(&self, lenient: bool) -> Visible {
        let mut visible = self.visible;
        if lenient {
            visible.request_headers = true;
            visible.response_headers |= self.responding;
        }
        visible
    }
}

/// The log lines of a VM in the current second.
#[derive(Debug, Default)]
pub(crate) struct LogLines {
    pub(crate) second: Option<Instant>,
    pub(crate) written: u32,
    pub(crate) dropped: u64,
}

/// What a guest asked for that happens after its call.
pub(crate) enum Effect {
    /// `proxy_continue_stream`.
    Continue(u32, Direction),
    /// `proxy_send_local_response` on a stream whose callback does not run.
    Reply(u32, LocalReply),
    /// `proxy_close_stream` on a stream whose callback does not run.
    Reset(u32),
    /// The timer changed.
    Wake,
    /// `proxy_done`.
    Done,
}

impl Host {
    pub(crate) fn new(env: Arc<Environment>, mailbox: mpsc::UnboundedSender<Message>) -> Self {
        Self {
            limits: Limits {
                memory: env.policy.memory,
                used: 0,
                refused: 0,
            },
            budget: Budget::new(env.policy.start, env.policy.start),
            env,
            memory: None,
            allocate: None,
            phase: Phase::Start,
            current: 0,
            effective: 0,
            stream: None,
            streams: FxHashMap::default(),
            next_id: ROOT,
            root: Root::default(),
            call: None,
            status: (0, String::new()),
            last_words: String::new(),
            calls: Calls::default(),
            metrics: Metrics::default(),
            effects: Vec::new(),
            counters: Arc::default(),
            trace: Trace::default(),
            log_lines: LogLines::default(),
            mailbox,
        }
    }

    /// What is counted of it.
    #[inline]
    pub(crate) fn meter(&self) -> &Meter {
        &self.counters.meter
    }

    /// What the effective context may read, which may be more than it may write.
    pub(crate) fn readable(&self) -> Option<Visible> {
        let context = self.context()?;
        Some(context.readable(self.env.policy.lenient_header_reads))
    }

    /// Keeps what the guest says as its end may be near.
    pub(crate) fn remember(&mut self, words: &str) {
        const ENOUGH: usize = 1024;
        if self.last_words.len() < ENOUGH && !words.starts_with("note: run with `RUST_BACKTRACE") {
            if !self.last_words.is_empty() {
                self.last_words.push(' ');
            }
            self.last_words.extend(words.chars().take(ENOUGH));
        }
    }

    /// The effective context, where it is a stream's.
    #[inline]
    pub(crate) fn context(&self) -> Option<&StreamContext> {
        self.streams.get(&self.effective)
    }

    /// As [`Host::context`].
    #[inline]
    pub(crate) fn context_mut(&mut self) -> Option<&mut StreamContext> {
        self.streams.get_mut(&self.effective)
    }

    /// Makes `id` the effective context; false where there is none of that id.
    pub(crate) fn set_effective(&mut self, id: u32) -> bool {
        if id == self.effective {
            return true;
        }
        let stream = if id == 0 {
            // Envoy: back to the context of the callback.
            return self.reset_effective();
        } else if id == ROOT {
            None
        } else {
            match self.streams.get(&id) {
                Some(context) => context.stream.upgrade(),
                None => return false,
            }
        };
        self.effective = id;
        self.stream = stream;
        true
    }

    fn reset_effective(&mut self) -> bool {
        self.effective = self.current;
        self.stream = self
            .streams
            .get(&self.current)
            .and_then(|context| context.stream.upgrade());
        true
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Host({}, {} streams)",
            self.env.spec.name,
            self.streams.len()
        )
    }
}
