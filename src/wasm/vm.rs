//! One VM: a store, an instance in it, and every way into the guest.
//!
//! A VM is built off the workers ([`Vm::build`]), moved to one ([`Vm::adopt`]) and used only there. The way in is a
//! lock that is only ever tried, so that no guest is entered twice: what a host function sets off (a reply, going on,
//! a callout's answer) happens when the guest has returned. Nothing here is called from a `Drop`: who ends a stream in
//! one posts it ([`Vm::post_end`]), and the VM's task on the worker tells the guest.
//!
//! A trap is the end of a VM: nothing in it is called again. Whoever waits for it wakes at once and finds it dead.

mod core;
mod ends;
mod fresh;
mod grpc;
mod network;
mod pace;
mod pauses;
mod roots;
mod start;
mod task;
mod traffic;

use self::core::Core;
pub use self::ends::ContextId;
use self::ends::LogPart;
pub(crate) use self::fresh::Fresh;
use self::start::start;
use self::task::serve;
use self::traffic::{repair, without_status};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wasmtime::{InstancePre, Module};

use super::abi::calls;
use super::abi::grpc::{Event, Failed};
use super::context::{Environment, Host, OnLoss, Phase, RootSpec, Waiting};
use super::engine::{Budget, Runtime, thread_cpu_time};
use super::meter::Meter;
use super::module::LoadError;
use super::probe::BuildTimes;
use super::status::wasm_stats;
use crate::base::WorkerCell;
use crate::base::task::spawn;
use crate::cluster::client::{CallError, CallResponse};
use crate::http::LocalReply;
use crate::stream::{PumpHandle, Stream};
use crate::telemetry::metrics::StatSet;

/// Which half of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the upstream.
    Request = 0,
    /// Towards the client.
    Response = 1,
}

/// What a headers callback decided, as Envoy reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadersAction {
    /// Go on.
    Continue,
    /// Hold the headers; body callbacks come, and going on from one of them releases the headers.
    Stop,
    /// Hold everything, up to the buffer limit.
    StopAllAndBuffer,
    /// Hold everything, and read no more than the buffer limit.
    StopAllAndWatermark,
}

/// What a body or trailers callback decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataAction {
    /// Go on, with what was held.
    Continue,
    /// Hold it, and show it again.
    Buffer,
    /// Hold it.
    Watermark,
    /// Drop it.
    Drop,
}

/// What came of a traffic callback.
#[derive(Debug)]
pub struct Answer<A> {
    /// The decision. Means nothing beside a reply or a reset.
    pub action: A,
    /// The guest answers by itself.
    pub reply: Option<Box<LocalReply>>,
    /// The guest resets the stream.
    pub reset: bool,
    /// `continue_stream` was called inside the callback: a stop does not last.
    pub resumed: bool,
}

/// The VM has failed, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead;

/// What reaches a VM from outside its worker's calls.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "few are ever queued, and each is moved once"
)]
pub(crate) enum Message {
    /// A callout has ended.
    Called {
        token: u32,
        result: Result<CallResponse, CallError>,
    },
    /// A gRPC callout has something to tell, and goes on when `handled` is dropped.
    Grpc {
        token: u32,
        /// What came together is told without a pause.
        events: Vec<Event>,
        handled: oneshot::Sender<()>,
    },
    /// A gRPC callout has failed as it was made.
    GrpcFailed(Failed),
    /// A name was resolved.
    Resolved { token: u32, answer: Bytes },
    /// A queue has a message.
    QueueReady { root: u32, token: u32 },
    /// `on_log` of a stream that has ended, perhaps in a `Drop`; its context is made for that where it has none.
    LogStream {
        root: u32,
        id: ContextId,
        stream: Arc<Stream>,
    },
    /// What follows once all have logged it.
    End { id: ContextId },
    /// `on_log` of an access logger.
    Log {
        root: u32,
        stream: Arc<Stream>,
        part: Option<LogPart>,
    },
    /// A connection was closed; by which peer, as the ABI has it.
    Closed { id: u32, peer: u32 },
    /// Other code of the module takes over. Who waits hears whether it has, and gets what was left; where the VM has died,
    /// they get nothing.
    Move {
        to: Box<Fresh>,
        moved: oneshot::Sender<(Box<Fresh>, wasmtime::Result<()>)>,
    },
    /// Somebody waits until all before this has been dealt with.
    Sync(oneshot::Sender<()>),
    /// Values of the statistics, for a sink of them.
    Stats { root: u32, update: Arc<Bytes> },
    /// The timer was set anew, or the VM died: look again.
    Wake,
    /// A plugin version is gone: say goodbye to its root context.
    Leave { root: u32 },
    /// All of them are gone, and the VM goes when its last root context has.
    Retire,
}

/// Counts of one worker's VMs of a key, one after the other. Written by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) traps: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) contexts: AtomicU64,
    pub(crate) memory: AtomicU64,
    pub(crate) meter: Meter,
}

/// Who hears of a VM's death; called on the worker, at most once, with the reason: one line, then the backtrace, the
/// callback and the last host calls.
pub(crate) type OnDeath = Box<dyn Fn(&str) + Send + Sync>;

/// Why there is no VM.
#[derive(Debug)]
pub(crate) struct BuildError {
    /// The root context that is to blame, by its place in the list; `None`: the module itself.
    pub(crate) root: Option<usize>,
    pub(crate) error: LoadError,
}

impl From<LoadError> for BuildError {
    fn from(error: LoadError) -> Self {
        Self { root: None, error }
    }
}

/// A VM.
pub struct Vm {
    core: WorkerCell<Core>,
    mailbox: mpsc::UnboundedSender<Message>,
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Message>>>,
    exports: Exports,
    dead: AtomicBool,
    /// What it runs.
    code: Mutex<Module>,
    stats: Arc<StatSet>,
    /// What its root contexts took to be made and configured, before it was adopted.
    configured_in: Duration,
}

/// Which traffic callbacks the guest has.
#[derive(Clone, Copy, Debug)]
struct Exports {
    bodies: [bool; 2],
    trailers: [bool; 2],
    ends: bool,
}

impl Vm {
    /// Makes an instance, starts it, and configures a root context for each of `roots` in it; their ids in that order.
    /// Takes as long as the guest likes, within its budget: call it on a blocking thread.
    pub(crate) fn build(
        runtime: &Runtime,
        imports: &InstancePre<Host>,
        env: &Arc<Environment>,
        roots: &[Arc<RootSpec>],
        counters: Arc<Counters>,
        stats: Arc<StatSet>,
    ) -> Result<(Arc<Self>, Vec<u32>), BuildError> {
        let running = runtime.running();
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let begin = Instant::now();
        let Fresh {
            mut store,
            instance,
            callbacks,
            ..
        } = Fresh::new(runtime, imports, env, mailbox.clone())?;
        let instantiated = Instant::now();
        store.data_mut().counters = Arc::clone(&counters);
        start(&instance, &mut store)?;
        let started = Instant::now();
        store.data_mut().phase = Phase::Open;
        let exports = Exports {
            bodies: [
                callbacks.request_body.is_some(),
                callbacks.response_body.is_some(),
            ],
            trailers: [
                callbacks.request_trailers.is_some(),
                callbacks.response_trailers.is_some(),
            ],
            ends: callbacks.hears_ends(),
        };
        let mut core = Core {
            first_look: store.data().budget.first_look(),
            store,
            instance,
            callbacks,
            entered: false,
            dead: false,
            counters,
            on_death: OnceLock::new(),
            stats: Arc::clone(&stats),
            warned: None,
            _running: running,
        };
        let began = thread_cpu_time();
        let mut ids = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            if index > 0 {
                core.rearm();
                core.store.data_mut().budget.count();
            }
            let id = core.add_root(root).map_err(|error| BuildError {
                root: Some(index),
                error,
            })?;
            ids.push(id);
        }
        let configured_in = began
            .zip(thread_cpu_time())
            .map_or(Duration::ZERO, |(began, now)| now.saturating_sub(began));
        if let Some(probe) = &env.probe {
            probe.built(BuildTimes {
                instantiate: instantiated - begin,
                start: started - instantiated,
                configure: started.elapsed(),
            });
        }
        core.set_budget(Budget::new(
            env.policy.callback_soft,
            env.policy.callback_hard,
        ));
        core.counters.created.fetch_add(1, Relaxed);
        stats.inc(wasm_stats::RUNTIME_CREATED);
        stats.inc(wasm_stats::RUNTIME_ACTIVE);
        stats.inc(wasm_stats::WASM_VM_COUNT);
        let vm = Arc::new(Self {
            core: WorkerCell::new(core),
            mailbox,
            inbox: Mutex::new(Some(inbox)),
            exports,
            dead: AtomicBool::new(false),
            code: Mutex::new(imports.module().clone()),
            stats,
            configured_in,
        });
        Ok((vm, ids))
    }

    /// What the root contexts that it was built with took to be configured, in time of their thread.
    pub(crate) fn configured_in(&self) -> Duration {
        self.configured_in
    }

    /// Adds a root context to the VM in use: on its worker, within one callback's budget. What the plugin refuses
    /// leaves the VM as it was; a trap ends it.
    pub(crate) fn add_root(&self, root: &Arc<RootSpec>) -> Result<u32, LoadError> {
        let mut outcome = Err(LoadError::Trap("the VM has failed".to_owned()));
        let _ = self.with(|core| {
            core.rearm();
            outcome = core.add_root(root);
            if let Err(LoadError::Trap(reason)) = &outcome {
                core.fail(reason);
                return Err(Dead);
            }
            Ok(())
        });
        outcome
    }

    /// Asks the VM to say goodbye to a root context. From any thread.
    pub(crate) fn leave(&self, root: u32) {
        // Without a task there is nobody to say goodbye to.
        let _ = self.mailbox.send(Message::Leave { root });
    }

    /// Makes the running worker its home: callouts and timers of its configuration start, and a task serves it until
    /// it dies or is retired.
    pub(crate) fn adopt(self: &mut Arc<Self>, on_death: OnDeath) {
        // Nobody else has it yet.
        if let Some(vm) = Arc::get_mut(self) {
            vm.core.settle();
        }
        let inbox = self.inbox.lock().take();
        {
            let mut core = self.core.lock();
            // A second adoption cannot happen: the inbox is gone.
            let _ = core.on_death.set(on_death);
            let host = core.store.data_mut();
            host.adopted.store(true, Relaxed);
            calls::adopt(host);
        }
        if let Some(inbox) = inbox {
            drop(spawn("wasm vm", serve(Arc::clone(self), inbox)));
        }
    }

    /// Tells the VM that all its root contexts were asked to leave: its task ends with the last. From any thread.
    pub(crate) fn retire(&self) {
        // Without a task there is nobody to say goodbye to.
        let _ = self.mailbox.send(Message::Retire);
    }

    /// True once a guest call has failed.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// True where the guest wants to see bodies or trailers of `direction`.
    #[inline]
    pub fn wants_body(&self, direction: Direction) -> bool {
        self.exports.bodies[direction as usize] || self.exports.trailers[direction as usize]
    }

    /// True where the guest wants to hear of a stream's end.
    #[inline]
    pub fn wants_end(&self) -> bool {
        self.exports.ends
    }

    fn with<R>(&self, f: impl FnOnce(&mut Core) -> Result<R, Dead>) -> Result<R, Dead> {
        self.with_locked(&mut self.core.lock(), f)
    }

    /// As [`Vm::with`]; `None` where the guest runs already.
    fn try_with<R>(&self, f: impl FnOnce(&mut Core) -> Result<R, Dead>) -> Option<Result<R, Dead>> {
        let mut core = self.core.try_lock()?;
        Some(self.with_locked(&mut core, f))
    }

    #[inline]
    fn with_locked<R>(
        &self,
        core: &mut Core,
        f: impl FnOnce(&mut Core) -> Result<R, Dead>,
    ) -> Result<R, Dead> {
        if core.dead {
            return Err(Dead);
        }
        if core.entered {
            core.fail("a host function panicked");
        }
        let result = if core.dead { Err(Dead) } else { f(core) };
        let result = result.and_then(|result| core.settle().map(|()| result));
        if core.dead {
            self.dead.store(true, Relaxed);
            self.stats.inc(wasm_stats::VM_FAILURES);
            let _ = self.mailbox.send(Message::Wake);
            return Err(Dead);
        }
        result
    }

    /// Makes the context of a stream below the root context `root`, and calls `on_request_headers` in it: the context's
    /// id, and what came of the call. `upstream`: for a filter of the stream's attempt.
    ///
    /// # Errors
    /// Where the VM was dead before. One that fails while it makes the context has failed in a callback of the stream, whose
    /// context is then 0.
    #[allow(
        clippy::type_complexity,
        reason = "a context whose VM has failed is one that its stream has met"
    )]
    pub fn begin(
        &self,
        root: u32,
        stream: &Arc<Stream>,
        upstream: bool,
        end_of_stream: bool,
    ) -> Result<(u32, Result<Answer<HeadersAction>, Dead>), Dead> {
        let (mut entered, mut made) = (false, 0);
        let answer = self.with(|core| {
            entered = true;
            let id = core.create_context(root, stream, upstream)?;
            core.settle()?;
            made = id;
            core.headers(id, Direction::Request, end_of_stream)
        });
        if entered {
            Ok((made, answer))
        } else {
            Err(Dead)
        }
    }

    /// `on_request_headers`, `on_response_headers`.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn headers(
        &self,
        id: u32,
        direction: Direction,
        end_of_stream: bool,
    ) -> Result<Answer<HeadersAction>, Dead> {
        self.with(|core| core.headers(id, direction, end_of_stream))
    }

    /// `on_request_body`, `on_response_body`, of `buffer`, which the guest may change.
    ///
    /// # Errors
    /// Where the VM is dead; the buffer is then lost.
    pub fn body(
        &self,
        id: u32,
        direction: Direction,
        buffer: &mut Bytes,
        end_of_stream: bool,
    ) -> Result<Answer<DataAction>, Dead> {
        self.with(|core| core.body(id, direction, buffer, end_of_stream))
    }

    /// `on_request_trailers`, `on_response_trailers`; `buffer` is what is held of the body.
    ///
    /// # Errors
    /// Where the VM is dead; the buffer is then lost.
    pub fn trailers(
        &self,
        id: u32,
        direction: Direction,
        buffer: &mut Bytes,
    ) -> Result<Answer<DataAction>, Dead> {
        self.with(|core| core.trailers(id, direction, buffer))
    }

    /// Waits for `continue_stream` of `direction`; `flowing`: meanwhile the body's callbacks come. It ends at once where
    /// the head is held no more, and with an error where the VM or the stream dies first.
    pub fn wait(&self, id: u32, direction: Direction, flowing: bool) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(id) {
            if context.paused[direction as usize].is_some() {
                context.waiting[direction as usize] = Some(Waiting { sender, flowing });
            } else {
                // A callback that came right after the head's, as of a callout that failed at once, has let it go on.
                let _ = sender.send(());
            }
        }
        receiver
    }

    /// Gives the context a hand on the pump of a body, and says whom to tell where the VM dies while it is held.
    pub fn set_pump(&self, id: u32, direction: Direction, pump: PumpHandle, on_loss: &OnLoss) {
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(id) {
            context.pumps[direction as usize] = Some(pump);
            context.on_loss = Some(on_loss.clone());
        }
    }

    /// What must be answered in the place of a head that the guest, in a callback of another, left so that it cannot be
    /// sent.
    pub fn refusal(&self, id: u32, direction: Direction) -> Option<Box<LocalReply>> {
        let mut core = self.core.lock();
        let context = core.store.data_mut().streams.get_mut(id)?;
        if direction == Direction::Response {
            return without_status(context);
        }
        let reply = repair(context);
        context.request_gone = true;
        reply
    }

    /// True where the stream was answered with 500 or more by its guest, in whatever callback, or for what that holds.
    pub fn has_failed(&self, id: u32) -> bool {
        // Within a call nobody can look.
        let core = self.core.try_lock();
        core.is_some_and(|core| {
            let context = core.store.data().streams.get(id);
            context.is_some_and(|context| context.failed)
        })
    }

    /// The headers of `direction` have gone on without a word of the guest: they are out of its reach.
    pub fn hide_headers(&self, id: u32, direction: Direction) {
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(id) {
            match direction {
                Direction::Request => context.visible.request_headers = false,
                Direction::Response => context.visible.response_headers = false,
            }
        }
    }

    /// `envoy_on_stats_update`, by the VM's task.
    pub(crate) fn post_stats(&self, root: u32, update: &Arc<Bytes>) {
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::Stats {
            root,
            update: Arc::clone(update),
        });
    }

    /// True where it runs `code`, and not another form of the same module.
    pub(crate) fn runs(&self, code: &Module) -> bool {
        Module::same(&self.code.lock(), code)
    }

    /// Makes the VM go on in `to`, an instance of other code of its module, in between two calls; what it left, which is
    /// best dropped elsewhere, and whether it has moved. `None` where it is dead. From any thread.
    pub(crate) async fn move_to(&self, to: Fresh) -> Option<(Box<Fresh>, wasmtime::Result<()>)> {
        let (moved, left) = oneshot::channel();
        let to = Box::new(to);
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::Move { to, moved });
        left.await.ok()
    }

    /// Ends when the VM has dealt with all that was posted until now, or is gone.
    pub(crate) fn settled(&self) -> oneshot::Receiver<()> {
        let (done, settled) = oneshot::channel();
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::Sync(done));
        settled
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stats.dec(wasm_stats::RUNTIME_ACTIVE);
        self.stats.dec(wasm_stats::WASM_VM_COUNT);
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

/// What the log says of a stream that a guest resets; of one that was answered, what it says already.
pub fn reset_details(responding: bool) -> &'static str {
    if responding { "" } else { "wasm_close_stream" }
}

#[cfg(test)]
#[path = "vm/tests.rs"]
mod tests;
