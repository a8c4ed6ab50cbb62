//! One VM: a store, an instance in it, and every way into the guest.
//!
//! A VM is built off the workers ([`Vm::build`]), moved to one ([`Vm::adopt`]) and used only there. The way in is a
//! lock that is only ever tried, so that no guest is entered twice: what a host function sets off (a reply, going on,
//! a callout's answer) happens when the guest has returned. Nothing here is called from a `Drop`: who ends a stream in
//! one posts it ([`Vm::post_end`]), and the VM's task on the worker tells the guest.
//!
//! A trap is the end of a VM: nothing in it is called again. Whoever waits for it wakes at once and finds it dead.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wasmtime::{InstancePre, Store, TypedFunc, WasmParams, WasmResults};

use super::abi::{self, calls, invalid_request_reply};
use super::callbacks::Callbacks;
use super::context::{
    BodyView, CallAnswer, Effect, Environment, Host, Phase, ROOT, StreamContext, Visible,
};
use super::engine::{Running, Runtime};
use super::module::LoadError;
use super::status::wasm_stats;
use crate::base::WorkerCell;
use crate::base::task::spawn;
use crate::cluster::client::{CallError, CallResponse};
use crate::http::LocalReply;
use crate::stream::{PumpHandle, Stream, Verdict};
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
    pub reply: Option<LocalReply>,
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
    /// A queue has a message.
    QueueReady { root: u32, token: u32 },
    /// A stream has ended, perhaps in a `Drop`.
    End {
        id: u32,
        stream: Arc<Stream>,
        log: bool,
    },
    /// The timer was set anew, or the VM died: look again.
    Wake,
    /// The plugin version is gone: say goodbye to the root context.
    Retire,
}

/// Counts of one worker's VMs of a plugin version, one after the other. Written by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) traps: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) contexts: AtomicU64,
    pub(crate) memory: AtomicU64,
}

/// Who hears of a VM's death; called on the worker, at most once, with the reason.
pub(crate) type OnDeath = Box<dyn Fn(&str) + Send + Sync>;

/// A VM.
pub struct Vm {
    core: WorkerCell<Core>,
    mailbox: mpsc::UnboundedSender<Message>,
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Message>>>,
    exports: Exports,
    dead: AtomicBool,
    stats: Arc<StatSet>,
}

/// Which traffic callbacks the guest has.
#[derive(Clone, Copy, Debug)]
struct Exports {
    bodies: [bool; 2],
    trailers: [bool; 2],
    log: bool,
}

struct Core {
    store: Store<Host>,
    callbacks: Callbacks,
    /// Set while a guest runs: a panic of ours leaves it set, and the VM is then as good as dead.
    entered: bool,
    dead: bool,
    first_look: u64,
    counters: Arc<Counters>,
    on_death: OnceLock<OnDeath>,
    _running: Running,
}

impl Vm {
    /// Makes an instance, starts it and configures the plugin in it. Takes as long as the guest likes, within its
    /// budget: call it on a blocking thread.
    pub(crate) fn build(
        runtime: &Runtime,
        imports: &InstancePre<Host>,
        env: &Arc<Environment>,
        counters: Arc<Counters>,
        stats: Arc<StatSet>,
    ) -> Result<Arc<Self>, LoadError> {
        let running = runtime.running();
        let (mailbox, inbox) = mpsc::unbounded_channel();
        let mut store = Store::new(
            runtime.engine(),
            Host::new(Arc::clone(env), mailbox.clone()),
        );
        store.limiter(|host| &mut host.limits);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().budget.look()));
        store.set_epoch_deadline(store.data().budget.first_look());
        let instance = imports
            .instantiate(&mut store)
            .map_err(|error| LoadError::Start(describe(&error)))?;
        let memory = instance.get_memory(&mut store, "memory");
        let callbacks = Callbacks::of(&instance, &mut store, &env.spec, env.abi)?;
        let allocate = callbacks
            .malloc
            .clone()
            .or_else(|| callbacks.memory_allocate.clone());
        if allocate.is_none() {
            return Err(LoadError::NoAllocator);
        }
        let host = store.data_mut();
        host.memory = memory;
        host.allocate = allocate;
        start(&instance, &mut store)?;
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
            log: callbacks.log.is_some() || callbacks.done.is_some() || callbacks.delete.is_some(),
        };
        let mut core = Core {
            first_look: store.data().budget.first_look(),
            store,
            callbacks,
            entered: false,
            dead: false,
            counters,
            on_death: OnceLock::new(),
            _running: running,
        };
        core.configure()?;
        core.counters.created.fetch_add(1, Relaxed);
        stats.inc(wasm_stats::RUNTIME_CREATED);
        stats.inc(wasm_stats::RUNTIME_ACTIVE);
        stats.inc(wasm_stats::WASM_VM_COUNT);
        Ok(Arc::new(Self {
            core: WorkerCell::new(core),
            mailbox,
            inbox: Mutex::new(Some(inbox)),
            exports,
            dead: AtomicBool::new(false),
            stats,
        }))
    }

    /// Makes the running worker its home: callouts and timers of its configuration start, and a task serves it until
    /// it dies or is retired.
    pub(crate) fn adopt(self: &Arc<Self>, on_death: OnDeath) {
        let inbox = self.inbox.lock().take();
        {
            let mut core = self.core.lock();
            // A second adoption cannot happen: the inbox is gone.
            let _ = core.on_death.set(on_death);
            calls::adopt(core.store.data_mut());
        }
        if let Some(inbox) = inbox {
            drop(spawn("wasm vm", serve(Arc::clone(self), inbox)));
        }
    }

    /// Asks the VM to say goodbye to its root context; its task ends afterwards. From any thread.
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
        self.exports.log
    }

    fn with<R>(&self, f: impl FnOnce(&mut Core) -> Result<R, Dead>) -> Result<R, Dead> {
        let mut core = self.core.lock();
        if core.dead {
            return Err(Dead);
        }
        if core.entered {
            core.fail("a host function panicked");
        }
        let result = if core.dead { Err(Dead) } else { f(&mut core) };
        let result = result.and_then(|result| core.settle().map(|()| result));
        if core.dead {
            self.dead.store(true, Relaxed);
            self.stats.inc(wasm_stats::VM_FAILURES);
            let _ = self.mailbox.send(Message::Wake);
            return Err(Dead);
        }
        result
    }

    /// Makes the context of a stream.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn create_context(&self, stream: &Arc<Stream>) -> Result<u32, Dead> {
        self.with(|core| core.create_context(stream))
    }

    /// `on_request_headers`, `on_response_headers`.
    ///
    /// # Errors
    /// Where the VM is dead.
    pub fn headers(
        &self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        end_of_stream: bool,
    ) -> Result<Answer<HeadersAction>, Dead> {
        self.with(|core| core.headers(id, stream, direction, end_of_stream))
    }

    /// `on_request_body`, `on_response_body`, of `buffer`, which the guest may change.
    ///
    /// # Errors
    /// Where the VM is dead; the buffer is then lost.
    pub fn body(
        &self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        buffer: &mut Bytes,
        end_of_stream: bool,
    ) -> Result<Answer<DataAction>, Dead> {
        self.with(|core| core.body(id, stream, direction, buffer, end_of_stream))
    }

    /// `on_request_trailers`, `on_response_trailers`; `buffer` is what is held of the body.
    ///
    /// # Errors
    /// Where the VM is dead; the buffer is then lost.
    pub fn trailers(
        &self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        buffer: &mut Bytes,
    ) -> Result<Answer<DataAction>, Dead> {
        self.with(|core| core.trailers(id, stream, direction, buffer))
    }

    /// Waits for `continue_stream` of `direction`. It ends with an error where the VM or the stream dies first.
    pub fn wait(&self, id: u32, direction: Direction) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(&id) {
            context.waiting[direction as usize] = Some(sender);
        }
        receiver
    }

    /// Gives the context a hand on the pump of a body.
    pub fn set_pump(&self, id: u32, direction: Direction, pump: PumpHandle) {
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(&id) {
            context.pumps[direction as usize] = Some(pump);
        }
    }

    /// The headers of `direction` have gone on without a word of the guest: they are out of its reach.
    pub fn hide_headers(&self, id: u32, direction: Direction) {
        let mut core = self.core.lock();
        if let Some(context) = core.store.data_mut().streams.get_mut(&id) {
            match direction {
                Direction::Request => context.visible.request_headers = false,
                Direction::Response => context.visible.response_headers = false,
            }
        }
    }

    /// `on_log`, in a context made for it where `id` is 0; the context's id. `None` where the guest runs already, or
    /// is dead.
    pub fn log(&self, id: u32, stream: &Arc<Stream>) -> Option<u32> {
        self.core.try_lock()?;
        self.with(|core| core.log(id, stream)).ok()
    }

    /// `on_done`, `on_delete`. False where the guest runs already.
    pub fn end(&self, id: u32, stream: &Arc<Stream>) -> bool {
        if self.core.try_lock().is_none() {
            return false;
        }
        let _ = self.with(|core| core.end(id, stream));
        true
    }

    /// Has the VM's task tell the guest of the end of a stream: for use where the guest must not be entered.
    pub fn post_end(&self, id: u32, stream: &Arc<Stream>, log: bool) {
        // A VM without a task is dead.
        let _ = self.mailbox.send(Message::End {
            id,
            stream: Arc::clone(stream),
            log,
        });
    }

    fn next_tick(&self) -> Option<Instant> {
        self.core.lock().store.data().root.next_tick
    }

    /// Handles one message; true where it was the last.
    fn handle(&self, message: Message) -> bool {
        // What fails here has been dealt with by `with`.
        let result = match message {
            Message::Called { token, result } => self.with(|core| core.called(token, result)),
            Message::QueueReady { root, token } => self.with(|core| core.queue_ready(root, token)),
            Message::End { id, stream, log } => self.with(|core| {
                let id = if log { core.log(id, &stream)? } else { id };
                core.end(id, &stream)
            }),
            Message::Wake => Ok(()),
            Message::Retire => {
                return self.with(Core::retire).unwrap_or(true);
            }
        };
        let _ = result;
        self.is_dead()
    }

    fn tick(&self) {
        let _ = self.with(Core::tick);
    }
}

/// Time for a root context to call `proxy_done` after its `on_done` returned false.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(10);

/// The VM's task on its worker.
async fn serve(vm: Arc<Vm>, mut inbox: mpsc::UnboundedReceiver<Message>) {
    let mut retired_by = None;
    loop {
        let tick = vm.next_tick();
        let message = tokio::select! {
            biased;
            message = inbox.recv() => message,
            () = sleep_until(retired_by) => return,
            () = sleep_until(tick) => {
                vm.tick();
                // Due ticks must not starve the runtime.
                tokio::task::yield_now().await;
                Some(Message::Wake)
            }
        };
        let Some(message) = message else { return };
        let retiring = matches!(message, Message::Retire);
        if vm.handle(message) {
            return;
        }
        if retiring {
            retired_by = Some(Instant::now() + FAREWELL);
        } else if retired_by.is_some() && vm.core.lock().store.data().root.gone {
            return;
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// `_initialize` and `main`, or `_start`.
fn start(instance: &wasmtime::Instance, store: &mut Store<Host>) -> Result<(), LoadError> {
    let trapped = |error: wasmtime::Error| LoadError::Start(describe(&error));
    let mut run = |name: &str| -> Result<bool, LoadError> {
        let Some(function) = instance.get_func(&mut *store, name) else {
            return Ok(false);
        };
        let bad = |_| LoadError::BadSignature(name.to_owned());
        if name == "main" {
            let main = function.typed::<(u32, u32), u32>(&*store).map_err(bad)?;
            main.call(&mut *store, (0, 0)).map_err(trapped)?;
        } else if name == "__main_void" {
            let main = function.typed::<(), u32>(&*store).map_err(bad)?;
            main.call(&mut *store, ()).map_err(trapped)?;
        } else {
            let begin = function.typed::<(), ()>(&*store).map_err(bad)?;
            begin.call(&mut *store, ()).map_err(trapped)?;
        }
        Ok(true)
    };
    if run("_initialize")? {
        if !run("main")? {
            run("__main_void")?;
        }
    } else {
        run("_start")?;
    }
    Ok(())
}

/// A description with what the guest said last in its first line.
fn with_words(description: &str, words: &str) -> String {
    if words.is_empty() {
        return description.to_owned();
    }
    let words = words.replace('\n', " ");
    match description.split_once('\n') {
        Some((first, rest)) => format!("{first} ({words})\n{rest}"),
        None => format!("{description} ({words})"),
    }
}

/// A trap in one line, then its backtrace.
fn describe(error: &wasmtime::Error) -> String {
    use std::fmt::Write as _;
    let mut text = match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => "the time budget is exhausted".to_owned(),
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    if let Some(trace) = error.downcast_ref::<wasmtime::WasmBacktrace>() {
        for (depth, frame) in trace.frames().iter().enumerate() {
            let name = frame.func_name().unwrap_or("<unknown>");
            let name = rustc_demangle::demangle(name);
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n  {depth}: 0x{:x} - {name:#}",
                frame.module_offset().unwrap_or(0)
            );
        }
    }
    text
}

impl Core {
    /// Calls a callback, if the guest has it.
    #[inline]
    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        pick: impl FnOnce(&Callbacks) -> Option<&TypedFunc<P, R>>,
        params: P,
    ) -> Result<Option<R>, Dead> {
        let Some(function) = pick(&self.callbacks) else {
            return Ok(None);
        };
        self.entered = true;
        let host = self.store.data_mut();
        host.budget.begin();
        if !host.last_words.is_empty() {
            host.last_words.clear();
        }
        self.store.set_epoch_deadline(self.first_look);
        let result = function.call(&mut self.store, params);
        self.entered = false;
        let calls = &self.counters.calls;
        calls.store(calls.load(Relaxed) + 1, Relaxed);
        match result {
            Ok(result) => Ok(Some(result)),
            Err(error) => {
                let reason = describe(&error);
                self.fail(&reason);
                Err(Dead)
            }
        }
    }

    /// Makes `id` the context of what follows.
    #[inline]
    fn enter(&mut self, id: u32, stream: Option<&Arc<Stream>>) -> &mut Host {
        let host = self.store.data_mut();
        host.current = id;
        host.effective = id;
        host.stream = stream.cloned();
        host
    }

    /// Undoes [`Core::enter`].
    #[inline]
    fn leave(&mut self) -> &mut Host {
        let host = self.store.data_mut();
        host.current = 0;
        host.effective = 0;
        host.stream = None;
        host
    }

    /// The end of this VM.
    #[cold]
    fn fail(&mut self, reason: &str) {
        self.dead = true;
        let host = self.leave();
        let words = std::mem::take(&mut host.last_words);
        let reason = with_words(reason, &words);
        tracing::error!(
            target: "wasm",
            "plugin {} {} {}: the VM has failed: {reason}",
            host.env.spec.name,
            host.env.spec.root_id,
            host.env.spec.vm_id,
        );
        host.calls.cancel();
        host.effects.clear();
        host.root.next_tick = None;
        // Those who wait wake when their senders go.
        let streams = std::mem::take(&mut host.streams);
        drop(streams);
        let traps = &self.counters.traps;
        traps.store(traps.load(Relaxed) + 1, Relaxed);
        self.counters.contexts.store(0, Relaxed);
        if let Some(on_death) = self.on_death.get() {
            on_death(reason.lines().next().unwrap_or_default());
        }
    }

    /// Root context, `on_vm_start`, `on_configure`. Off the worker.
    fn configure(&mut self) -> Result<(), LoadError> {
        let env = Arc::clone(&self.store.data().env);
        let size = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.enter(ROOT, None).root.configuring = true;
        self.setup(|c| c.context_create.as_ref(), (ROOT, 0))?;
        self.store.data_mut().root.configuring = false;
        let started = self.setup(
            |c| c.vm_start.as_ref(),
            (ROOT, size(&env.spec.vm_configuration)),
        )?;
        if started == Some(0) {
            return Err(LoadError::VmStart);
        }
        self.store.data_mut().root.configuring = true;
        let configured = self.setup(
            |c| c.configure.as_ref(),
            (ROOT, size(&env.spec.configuration)),
        )?;
        if configured == Some(0) {
            return Err(LoadError::Configure);
        }
        let host = self.leave();
        host.root.configuring = false;
        host.budget.limit = env.callback_budget;
        self.first_look = host.budget.first_look();
        self.count_memory();
        self.settle().map_err(|Dead| LoadError::Configure)
    }

    fn setup<P: WasmParams, R: WasmResults>(
        &mut self,
        pick: impl FnOnce(&Callbacks) -> Option<&TypedFunc<P, R>>,
        params: P,
    ) -> Result<Option<R>, LoadError> {
        let Some(function) = pick(&self.callbacks) else {
            return Ok(None);
        };
        // One budget for all of the start: the deadline is not set anew.
        function
            .call(&mut self.store, params)
            .map(Some)
            .map_err(|error| {
                let words = std::mem::take(&mut self.store.data_mut().last_words);
                LoadError::Trap(with_words(&describe(&error), &words))
            })
    }

    fn count_memory(&self) {
        let used = self.store.data().limits.used as u64;
        self.counters.memory.store(used, Relaxed);
    }

    /// Does what the guest asked for, now that it has returned.
    #[inline]
    fn settle(&mut self) -> Result<(), Dead> {
        if self.store.data().effects.is_empty() {
            return Ok(());
        }
        self.settle_all()
    }

    fn settle_all(&mut self) -> Result<(), Dead> {
        loop {
            let effects = std::mem::take(&mut self.store.data_mut().effects);
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects {
                let host = self.store.data_mut();
                match effect {
                    Effect::Continue(id, direction) => {
                        if let Some(context) = host.streams.get_mut(&id) {
                            go_on(context, direction);
                        }
                    }
                    Effect::Reply(id, reply) => {
                        if let Some(context) = host.streams.get(&id)
                            && let Some(stream) = context.stream.upgrade()
                        {
                            stream.decide(Verdict::Reply {
                                reply: Box::new(reply),
                                direct: context.responding,
                            });
                        }
                    }
                    Effect::Reset(id) => {
                        if let Some(context) = host.streams.get(&id)
                            && let Some(stream) = context.stream.upgrade()
                        {
                            stream.decide(Verdict::Reset {
                                details: "wasm_close_stream".into(),
                            });
                        }
                    }
                    Effect::Wake => {
                        // The task itself listens.
                        let _ = host.mailbox.send(Message::Wake);
                    }
                    Effect::Done => self.delete_root()?,
                }
            }
        }
    }

    fn create_context(&mut self, stream: &Arc<Stream>) -> Result<u32, Dead> {
        let host = self.store.data_mut();
        host.next_id = host.next_id.wrapping_add(1).max(ROOT + 1);
        let id = host.next_id;
        host.streams
            .insert(id, StreamContext::new(Arc::downgrade(stream)));
        let contexts = host.streams.len() as u64;
        self.counters.contexts.store(contexts, Relaxed);
        self.enter(id, Some(stream));
        self.call(|c| c.context_create.as_ref(), (id, ROOT))?;
        self.leave();
        Ok(id)
    }

    fn headers(
        &mut self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        end_of_stream: bool,
    ) -> Result<Answer<HeadersAction>, Dead> {
        let host = self.enter(id, Some(stream));
        let Some(context) = host.streams.get_mut(&id) else {
            return Err(Dead);
        };
        context.callback = Some(direction);
        match direction {
            Direction::Request => context.visible.request_headers = true,
            Direction::Response => {
                context.visible.response_headers = true;
                context.responding = true;
            }
        }
        let count = abi::count(host, direction == Direction::Response);
        let end = u32::from(end_of_stream);
        let action = match direction {
            Direction::Request if self.callbacks.request_headers_0_1_0.is_some() => {
                self.call(|c| c.request_headers_0_1_0.as_ref(), (id, count))?
            }
            Direction::Response if self.callbacks.response_headers_0_1_0.is_some() => {
                self.call(|c| c.response_headers_0_1_0.as_ref(), (id, count))?
            }
            Direction::Request => self.call(|c| c.request_headers.as_ref(), (id, count, end))?,
            Direction::Response => self.call(|c| c.response_headers.as_ref(), (id, count, end))?,
        };
        let host = self.leave();
        let real_stop = host.env.spec.allow_on_headers_stop_iteration;
        let context = host.streams.get_mut(&id).ok_or(Dead)?;
        let action = match action.unwrap_or(0) {
            // Envoy's filter does not end the stream at ContinueAndEndStream.
            0 | 2 => HeadersAction::Continue,
            1 if real_stop => HeadersAction::Stop,
            3 => HeadersAction::StopAllAndBuffer,
            _ => HeadersAction::StopAllAndWatermark,
        };
        let mut answer = take_answer(context, direction, action);
        let goes_on = action == HeadersAction::Continue || answer.resumed;
        if goes_on {
            match direction {
                Direction::Request => context.visible.request_headers = false,
                Direction::Response => context.visible.response_headers = false,
            }
        }
        if direction == Direction::Request && answer.reply.is_none() && !answer.reset {
            answer.reply = repair(context, stream);
        }
        Ok(answer)
    }

    fn body(
        &mut self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        buffer: &mut Bytes,
        end_of_stream: bool,
    ) -> Result<Answer<DataAction>, Dead> {
        let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let side = direction as usize;
        let host = self.enter(id, Some(stream));
        let context = host.streams.get_mut(&id).ok_or(Dead)?;
        context.callback = Some(direction);
        context.bodies[side] = BodyView {
            data: Some(std::mem::take(buffer)),
        };
        if end_of_stream {
            // A plugin may add trailers where none come.
            match direction {
                Direction::Request => context.visible.request_trailers = true,
                Direction::Response => context.visible.response_trailers = true,
            }
        }
        let params = (id, size, u32::from(end_of_stream));
        let action = match direction {
            Direction::Request => self.call(|c| c.request_body.as_ref(), params)?,
            Direction::Response => self.call(|c| c.response_body.as_ref(), params)?,
        };
        let host = self.leave();
        let context = host.streams.get_mut(&id).ok_or(Dead)?;
        *buffer = context.bodies[side].data.take().unwrap_or_default();
        let action = match action.unwrap_or(0) {
            0 => DataAction::Continue,
            1 => DataAction::Buffer,
            2 => DataAction::Watermark,
            _ => DataAction::Drop,
        };
        let mut answer = take_answer(context, direction, action);
        if answer.resumed
            && action != DataAction::Continue
            && let Some(pump) = &context.pumps[side]
        {
            pump.resume();
        }
        if action == DataAction::Continue {
            // Going on from a body callback releases headers that were held.
            if let Some(waiting) = context.waiting[side].take() {
                // Nobody waits where the stream has gone on already.
                let _ = waiting.send(());
            }
            hide(&mut context.visible, direction);
        }
        if direction == Direction::Request && answer.reply.is_none() && !answer.reset {
            answer.reply = repair(context, stream);
        }
        Ok(answer)
    }

    fn trailers(
        &mut self,
        id: u32,
        stream: &Arc<Stream>,
        direction: Direction,
        buffer: &mut Bytes,
    ) -> Result<Answer<DataAction>, Dead> {
        let side = direction as usize;
        let count = match direction {
            Direction::Request => stream
                .request_trailers
                .lock()
                .as_ref()
                .map(http::HeaderMap::len),
            Direction::Response => stream
                .response_trailers
                .lock()
                .as_ref()
                .map(http::HeaderMap::len),
        };
        let count = u32::try_from(count.unwrap_or(0)).unwrap_or(u32::MAX);
        let host = self.enter(id, Some(stream));
        let context = host.streams.get_mut(&id).ok_or(Dead)?;
        context.callback = Some(direction);
        context.bodies[side].data = Some(std::mem::take(buffer));
        match direction {
            Direction::Request => context.visible.request_trailers = true,
            Direction::Response => context.visible.response_trailers = true,
        }
        let action = match direction {
            Direction::Request => self.call(|c| c.request_trailers.as_ref(), (id, count))?,
            Direction::Response => self.call(|c| c.response_trailers.as_ref(), (id, count))?,
        };
        let host = self.leave();
        let context = host.streams.get_mut(&id).ok_or(Dead)?;
        *buffer = context.bodies[side].data.take().unwrap_or_default();
        let action = match action.unwrap_or(0) {
            0 => DataAction::Continue,
            _ => DataAction::Watermark,
        };
        let answer = take_answer(context, direction, action);
        if answer.resumed
            && action != DataAction::Continue
            && let Some(pump) = &context.pumps[side]
        {
            pump.resume();
        }
        if action == DataAction::Continue || answer.resumed {
            if let Some(waiting) = context.waiting[side].take() {
                let _ = waiting.send(());
            }
            hide(&mut context.visible, direction);
            match direction {
                Direction::Request => context.visible.request_trailers = false,
                Direction::Response => context.visible.response_trailers = false,
            }
        }
        Ok(answer)
    }

    fn log(&mut self, id: u32, stream: &Arc<Stream>) -> Result<u32, Dead> {
        let id = if id == 0 {
            self.create_context(stream)?
        } else {
            id
        };
        let host = self.enter(id, Some(stream));
        let Some(context) = host.streams.get_mut(&id) else {
            self.leave();
            return Ok(id);
        };
        context.logging = true;
        context.visible = Visible {
            request_headers: true,
            request_trailers: false,
            response_headers: true,
            response_trailers: true,
        };
        self.call(|c| c.log.as_ref(), id)?;
        self.leave();
        Ok(id)
    }

    fn end(&mut self, id: u32, stream: &Arc<Stream>) -> Result<(), Dead> {
        let host = self.enter(id, Some(stream));
        let Some(context) = host.streams.get_mut(&id) else {
            self.leave();
            return Ok(());
        };
        context.ended = true;
        context.logging = false;
        context.visible = Visible::default();
        context.waiting = [None, None];
        context.pumps = [None, None];
        self.call(|c| c.done.as_ref(), id)?;
        self.call(|c| c.delete.as_ref(), id)?;
        let host = self.leave();
        host.streams.remove(&id);
        let contexts = host.streams.len() as u64;
        self.counters.contexts.store(contexts, Relaxed);
        self.count_memory();
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Dead> {
        self.store.data_mut().root.next_tick = None;
        self.enter(ROOT, None);
        self.call(|c| c.tick.as_ref(), ROOT)?;
        let host = self.leave();
        // The next one counts from the end of this one, unless this one has set it.
        if host.root.next_tick.is_none() {
            host.root.next_tick = host.root.tick_period.map(|period| Instant::now() + period);
        }
        self.count_memory();
        Ok(())
    }

    fn called(&mut self, token: u32, result: Result<CallResponse, CallError>) -> Result<(), Dead> {
        let host = self.store.data_mut();
        if !host.calls.finish(token) {
            return Ok(());
        }
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (answer, headers, body, trailers) = match result {
            Ok(CallResponse {
                head,
                body,
                trailers,
            }) => {
                host.status = (0, String::new());
                let sizes = (
                    size(head.headers.len() + 1),
                    size(body.len()),
                    size(trailers.as_ref().map_or(0, http::HeaderMap::len)),
                );
                let answer = CallAnswer {
                    head: Some(head),
                    body,
                    trailers,
                };
                (answer, sizes.0, sizes.1, sizes.2)
            }
            Err(error) => {
                tracing::debug!(target: "wasm", "plugin {}: a callout failed: {error}", host.env.spec.name);
                host.status = (11, "reset".to_owned());
                let answer = CallAnswer {
                    head: None,
                    body: Bytes::new(),
                    trailers: None,
                };
                (answer, 0, 0, 0)
            }
        };
        self.enter(ROOT, None).call = Some(answer);
        let params = (ROOT, token, headers, body, trailers);
        self.call(|c| c.http_call_response.as_ref(), params)?;
        self.leave().call = None;
        self.count_memory();
        Ok(())
    }

    fn queue_ready(&mut self, root: u32, token: u32) -> Result<(), Dead> {
        self.enter(root, None);
        self.call(|c| c.queue_ready.as_ref(), (root, token))?;
        self.leave();
        Ok(())
    }

    /// True where the root context is gone at once.
    fn retire(&mut self) -> Result<bool, Dead> {
        self.enter(ROOT, None);
        let done = self.call(|c| c.done.as_ref(), ROOT)?;
        self.leave();
        if done == Some(0) {
            self.store.data_mut().root.pending_done = true;
            return Ok(false);
        }
        self.delete_root()?;
        Ok(true)
    }

    fn delete_root(&mut self) -> Result<(), Dead> {
        self.enter(ROOT, None);
        self.call(|c| c.delete.as_ref(), ROOT)?;
        self.leave().root.gone = true;
        Ok(())
    }
}

/// Takes out what the guest decided in the callback that has just returned.
fn take_answer<A>(context: &mut StreamContext, direction: Direction, action: A) -> Answer<A> {
    context.callback = None;
    Answer {
        action,
        reply: context.reply.take(),
        reset: std::mem::take(&mut context.reset),
        resumed: std::mem::take(&mut context.resumed[direction as usize]),
    }
}

/// `continue_stream` from another callback.
fn go_on(context: &mut StreamContext, direction: Direction) {
    hide(&mut context.visible, direction);
    match context.waiting[direction as usize].take() {
        Some(waiting) => {
            // Nobody waits where the stream has gone on already.
            let _ = waiting.send(());
        }
        None => {
            if let Some(pump) = &context.pumps[direction as usize] {
                pump.resume();
            }
        }
    }
}

fn hide(visible: &mut Visible, direction: Direction) {
    match direction {
        Direction::Request => visible.request_headers = false,
        Direction::Response => visible.response_headers = false,
    }
}

/// Applies what the guest removed of a request's pseudo-headers; the reply where nothing sendable is left.
#[inline]
fn repair(context: &mut StreamContext, stream: &Stream) -> Option<LocalReply> {
    let removed = context.removed;
    if context.invalid.is_none() && !(removed.method || removed.path || removed.authority) {
        return None;
    }
    if removed.authority {
        let mut head = stream.request.lock();
        head.authority = http::HeaderValue::from_static("");
        head.has_host = false;
    }
    let connect = stream.request.lock().method == http::Method::CONNECT;
    let reply = invalid_request_reply(context, connect)?;
    context.ended = true;
    Some(reply)
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

#[cfg(test)]
#[path = "vm/tests.rs"]
mod tests;
