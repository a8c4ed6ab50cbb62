//! The state of one VM on the host's side: its contexts, which of them a host function means, and what is visible.
//!
//! Ids count up from 1 in each VM and are never used again, for root contexts (one a plugin version) and streams alike;
//! 0 is the VM itself. A host function works on the *effective* context: that of the running callback, until the guest
//! names another. What is said of a plugin (its name, configuration, timer) is said of the effective context's root.

mod stream;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wasmtime::{Memory, TypedFunc};

use super::abi::Status;
use super::abi::calls::Calls;
use super::abi::dns::{Dns, Lookups};
use super::abi::expressions::Expressions;
use super::abi::grpc;
use super::abi::metrics::Metrics;
use super::abi::names::Names;
use super::abi::properties::Declared;
use super::engine::{Budget, Limits};
use super::meter::{Meter, Quota};
use super::module::Abi;
use super::payload::{Charge, Payloads};
use super::probe::Probe;
use super::shared::{Consumer, Shared, Space};
use super::spec::PluginSpec;
use super::streams::Streams;
use super::trace::Trace;
use super::vm::{Counters, Direction, Message};
use crate::cluster::ClusterMap;
use crate::config::wasm_settings::PluginPolicy;
use crate::http::LocalReply;
use crate::pb;
use crate::stream::Stream;
use crate::stream::state::LifeSpan;
use crate::telemetry::metrics::Registry;

pub use stream::OnLoss;
pub(crate) use stream::{BodyView, NetworkView, Pause, Removed, StreamContext, Visible, Waiting};

/// So much, and so much more for each stream, may be asked for in one callback that happens after it: going on and closing can
/// be said again and again.
const MAX_EFFECTS: usize = 10_000;
const EFFECTS_A_STREAM: usize = 4;

/// What all VMs of one key have in common.
pub(crate) struct Environment {
    /// The version that they were first made for: what it says of its VM (`vm_id`, configuration, environment,
    /// capabilities) holds for all in it. What it says of its plugin does not: see [`Host::spec`].
    pub(crate) vm: Arc<PluginSpec>,
    pub(crate) abi: Abi,
    /// See [`Module::shift`](super::module::Module::shift).
    pub(crate) shift: i64,
    pub(crate) registry: Registry,
    pub(crate) clusters: Arc<ArcSwap<ClusterMap>>,
    pub(crate) node: Option<Arc<pb::Node>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: Arc<Space>,
    pub(crate) policy: PluginPolicy,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    /// Who answers names; nobody in a tool.
    pub(crate) dns: Option<Dns>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({})", self.vm.vm_id)
    }
}

/// What a root context is made for.
#[derive(Debug)]
pub(crate) struct RootSpec {
    pub(crate) spec: Arc<PluginSpec>,
    /// What its configuration took in a VM that was made to see that, of its thread's time.
    pub(crate) proven: OnceLock<Duration>,
    /// It has a slot, or had one: a version that waits, or is only tried, leaves others their queues.
    pub(crate) serves: Arc<AtomicBool>,
    /// `wasm log <name> <root_id> <vm_id>`, what log lines of the guest for a stream begin with; without the name where it
    /// speaks for the root (measured on Envoy 1.40).
    log_prefixes: [Box<str>; 2],
}

impl RootSpec {
    pub(crate) fn new(spec: &Arc<PluginSpec>) -> Self {
        let prefix = |name: &str| {
            let mut prefix = "wasm log".to_owned();
            for part in [name, &*spec.root_id, &*spec.vm_id] {
                if !part.is_empty() {
                    prefix.push(' ');
                    prefix.push_str(part);
                }
            }
            prefix.into_boxed_str()
        };
        Self {
            spec: Arc::clone(spec),
            proven: OnceLock::new(),
            serves: Arc::default(),
            log_prefixes: [prefix(&spec.name), prefix("")],
        }
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
    /// The root of the effective context; 0 while there is none.
    pub(crate) root_id: u32,
    pub(crate) streams: Streams,
    pub(crate) last_id: u32,
    /// A few, so that looking through them is the quickest way to one.
    pub(crate) roots: Vec<Root>,
    /// The answer to a callout, while its callback runs.
    pub(crate) call: Option<CallAnswer>,
    /// What a gRPC callout tells, while its callback runs.
    pub(crate) grpc: grpc::View,
    /// `CallData`, while its callback runs.
    pub(crate) call_data: Option<Bytes>,
    /// What the guest last wrote to its standard error: the message of a panic, most likely.
    pub(crate) last_words: String,
    pub(crate) calls: Calls,
    pub(crate) lookups: Lookups,
    /// What these hold.
    pub(crate) payloads: Payloads,
    pub(crate) metrics: Metrics,
    /// Of headers that the guest wrote.
    pub(crate) names: Names,
    /// A queue was registered: messages may come.
    pub(crate) listens: bool,
    /// The VM is in its place on a worker.
    pub(crate) adopted: Arc<AtomicBool>,
    /// A local reply was made in the callback that runs, for whatever stream: the callback stops its own.
    pub(crate) stopped: bool,
    /// Pauses with a limit, in the order in which they end.
    pub(crate) pauses: VecDeque<(Instant, u32, Direction)>,
    /// To be done when the guest has returned.
    pub(crate) effects: Vec<Effect>,
    /// The VM's task is about to look at its timers.
    pub(crate) waking: bool,
    /// What is counted of it.
    pub(crate) counters: Arc<Counters>,
    pub(crate) trace: Trace,
    pub(crate) log_lines: LogLines,
    pub(crate) mailbox: mpsc::UnboundedSender<Message>,
}

/// A root context: one plugin version in the VM.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) id: u32,
    pub(crate) made_for: Arc<RootSpec>,
    /// The plugin's configuration can be read: during its creation and `on_configure`.
    pub(crate) configuring: bool,
    pub(crate) tick_period: Option<Duration>,
    pub(crate) next_tick: Option<Instant>,
    /// `on_done` returned false and `proxy_done` has not come; when it is waited for no more.
    pub(crate) pending_done: Option<Instant>,
    /// A pause that nothing may end was told of.
    pub(crate) warned: bool,
    /// Properties that it declared, by name.
    pub(crate) declared: Declared,
    /// Expressions that it made.
    pub(crate) expressions: Expressions,
    /// `proxy_get_status`: what the last callout that failed said.
    pub(crate) status: (u32, String),
}

impl Root {
    /// One that has not been configured.
    pub(crate) fn new(id: u32, made_for: Arc<RootSpec>) -> Self {
        Self {
            id,
            made_for,
            configuring: false,
            tick_period: None,
            next_tick: None,
            pending_done: None,
            warned: false,
            declared: Declared::default(),
            expressions: Expressions::default(),
            status: (0, String::new()),
        }
    }

    /// When it is next to be looked after.
    pub(crate) fn due(&self) -> Option<Instant> {
        match (self.next_tick, self.pending_done) {
            (Some(tick), Some(done)) => Some(tick.min(done)),
            (tick, done) => tick.or(done),
        }
    }
}

/// The answer to a callout as the guest reads it.
#[derive(Debug)]
pub(crate) struct CallAnswer {
    pub(crate) head: Option<crate::http::ResponseHead>,
    /// `None` where the call failed.
    pub(crate) body: Option<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
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
    /// `proxy_close_stream` on a connection, and the reason.
    Close(u32, &'static str),
    /// The timer changed.
    Wake,
    /// `proxy_done` of a root context.
    Done(u32),
    /// A gRPC callout failed as it was made.
    GrpcFailed(grpc::Failed),
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
            payloads: Payloads::new(env.policy.quotas.callout_bytes),
            env,
            memory: None,
            allocate: None,
            phase: Phase::Start,
            current: 0,
            effective: 0,
            root_id: 0,
            streams: Streams::default(),
            last_id: 0,
            roots: Vec::new(),
            call: None,
            grpc: grpc::View::default(),
            call_data: None,
            last_words: String::new(),
            calls: Calls::default(),
            lookups: Lookups::default(),
            metrics: Metrics::default(),
            names: Names::default(),
            listens: false,
            adopted: Arc::default(),
            stopped: false,
            pauses: VecDeque::new(),
            effects: Vec::new(),
            waking: false,
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

    /// What it has asked others for and has no answer to.
    pub(crate) fn under_way(&self) -> usize {
        self.calls.len() + self.lookups.len()
    }

    /// Callouts have begun or ended.
    pub(crate) fn count_calls(&self) {
        let under_way = self.under_way();
        self.meter().callouts.set(under_way as u64);
        self.meter().callout_bytes.set(self.payloads.held() as u64);
        for _ in 0..self.payloads.take_refused() {
            self.meter().refuse(Quota::CalloutBytes);
        }
    }

    /// Room for the bytes that a callout copies out of the guest.
    pub(crate) fn charge_call(&self, bytes: usize) -> Result<Charge, Status> {
        let charge = self.payloads.charge(bytes);
        charge.ok_or_else(|| {
            self.count_calls();
            Status::InternalFailure
        })
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
        self.streams.get(self.effective)
    }

    /// As [`Host::context`].
    #[inline]
    pub(crate) fn context_mut(&mut self) -> Option<&mut StreamContext> {
        self.streams.get_mut(self.effective)
    }

    /// The effective context's stream.
    #[inline]
    pub(crate) fn stream(&self) -> Option<&Arc<Stream>> {
        Some(&self.context()?.stream)
    }

    /// As [`Host::stream`], where the context is not that of an access logger: such a one is shown a stream and nothing of
    /// what goes with it, as in Envoy.
    pub(crate) fn own_stream(&self) -> Option<&Arc<Stream>> {
        self.stream().filter(|_| self.effective != self.root_id)
    }

    /// As [`StreamContext::clear_route`], of the effective context.
    pub(crate) fn clear_route(&self) {
        if let Some(context) = self.context() {
            context.clear_route();
        }
    }

    /// The root of the effective context.
    pub(crate) fn root(&self) -> Option<&Root> {
        let id = self.root_id;
        self.roots.iter().find(|root| root.id == id)
    }

    /// As [`Host::root`].
    pub(crate) fn root_mut(&mut self) -> Option<&mut Root> {
        let id = self.root_id;
        self.root_of(id)
    }

    /// The root of that id.
    pub(crate) fn root_of(&mut self, id: u32) -> Option<&mut Root> {
        self.roots.iter_mut().find(|root| root.id == id)
    }

    /// Takes the root context `id` away, and what it has under way.
    pub(crate) fn forget_root(&mut self, id: u32) {
        self.roots.retain(|root| root.id != id);
        self.calls.cancel_root(id);
        self.lookups.cancel_root(id);
        self.count_calls();
        if self.listens {
            self.env.space.leave_queues(&self.mailbox, id);
        }
    }

    /// Has something done when the guest has returned: not without end, as only the guest's deadline bounds how often it asks.
    pub(crate) fn ask(&mut self, effect: Effect) -> Result<(), Status> {
        if self.effects.len() >= MAX_EFFECTS + EFFECTS_A_STREAM * self.streams.len() {
            return Err(Status::InternalFailure);
        }
        self.effects.push(effect);
        Ok(())
    }

    /// Has the VM's task look at its timers when the guest has returned.
    pub(crate) fn wake(&mut self) {
        if !std::mem::replace(&mut self.waking, true) {
            self.effects.push(Effect::Wake);
        }
    }

    /// The effective context's root as one that hears of a queue.
    pub(crate) fn consumer(&self) -> Consumer {
        Consumer {
            mailbox: self.mailbox.clone(),
            root: self.root_id,
            adopted: Arc::clone(&self.adopted),
            serves: self
                .root()
                .map_or_else(Arc::default, |root| Arc::clone(&root.made_for.serves)),
            told: 0,
        }
    }

    /// What the root context `id` is about to be told of a callout.
    pub(crate) fn set_status(&mut self, id: u32, code: u32, message: String) {
        if let Some(root) = self.root_of(id) {
            root.status = (code, message);
        }
    }

    /// It has been told. The code stays.
    pub(crate) fn clear_status(&mut self, id: u32) {
        if let Some(root) = self.root_of(id) {
            root.status.1.clear();
        }
    }

    /// The plugin of the effective context; without one, that which the VM was first made for.
    pub(crate) fn spec(&self) -> &Arc<PluginSpec> {
        self.spec_of(self.root_id)
    }

    /// The plugin of the root context `id`; without one, that which the VM was first made for.
    pub(crate) fn spec_of(&self, id: u32) -> &Arc<PluginSpec> {
        match self.roots.iter().find(|root| root.id == id) {
            Some(root) => &root.made_for.spec,
            None => &self.env.vm,
        }
    }

    /// True where the stream's plugin asks for `StopIteration` to hold the headers alone.
    #[cold]
    pub(crate) fn stops_for_real(&self, id: u32) -> bool {
        let context = self.streams.get(id);
        context.is_some_and(|context| self.spec_of(context.root).allow_on_headers_stop_iteration)
    }

    /// What log lines of the guest begin with.
    pub(crate) fn log_prefix(&self) -> &str {
        match self.root() {
            Some(root) => &root.made_for.log_prefixes[usize::from(root.id == self.effective)],
            None => "wasm log",
        }
    }

    /// The answer to the callout whose callback runs: shown to its root and that root's streams, as in Envoy.
    pub(crate) fn answer(&mut self) -> Option<&mut CallAnswer> {
        let is_its_own = self.root_id == self.current;
        self.call.as_mut().filter(|_| is_its_own)
    }

    /// As [`Host::answer`], of gRPC.
    pub(crate) fn grpc_view(&mut self) -> Option<&mut grpc::View> {
        (self.root_id == self.current).then_some(&mut self.grpc)
    }

    /// How long an object lives that is set with `span`: what is a connection's is seen by its streams, as in Envoy.
    pub(crate) fn span(&self, span: LifeSpan) -> LifeSpan {
        match self.context() {
            Some(context) if context.network.is_some() => LifeSpan::Connection,
            _ => span,
        }
    }

    /// True where nothing is under way that could have a paused stream go on.
    pub(crate) fn awaits_nothing(&self) -> bool {
        self.under_way() == 0
            && !self.listens
            && self.roots.iter().all(|root| root.tick_period.is_none())
    }

    /// A number that no context of this VM has had.
    pub(crate) fn fresh_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            let id = self.last_id;
            // Once around, roots and long streams may live still.
            let taken = self.roots.iter().any(|root| root.id == id);
            if !taken && self.streams.get(id).is_none() {
                return id;
            }
        }
    }

    /// Makes `id` the effective context; false where there is none of that id.
    pub(crate) fn set_effective(&mut self, id: u32) -> bool {
        // Envoy: 0 is back to the context of the callback.
        let id = if id == 0 { self.current } else { id };
        if id == self.effective {
            return true;
        }
        if let Some(context) = self.streams.get(id) {
            self.root_id = context.root;
        } else if id == 0 || self.roots.iter().any(|root| root.id == id) {
            self.root_id = id;
        } else {
            return false;
        }
        self.effective = id;
        true
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Host({} roots, {} streams)",
            self.roots.len(),
            self.streams.len()
        )
    }
}
