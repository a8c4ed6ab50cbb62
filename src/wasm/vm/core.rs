//! What a VM is inside: the store, the callbacks, and each call into the guest, under its deadline.
//!
//! Whoever enters the guest leaves it again with [`Core::settle`]: what the guest asked for while it ran is done then,
//! when no call is on its stack.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use wasmtime::{Store, WasmParams, WasmResults};

use super::start::{describe, with_words};
use super::{Answer, Counters, DataAction, Dead, Direction, HeadersAction, Message, OnDeath};
use crate::cluster::client::{CallError, CallResponse};
use crate::http::LocalReply;
use crate::stream::{Stream, Verdict};
use crate::wasm::abi::{self, invalid_request_reply};
use crate::wasm::callbacks::{Callback, Callbacks};
use crate::wasm::context::{BodyView, CallAnswer, Effect, Host, ROOT, StreamContext, Visible};
use crate::wasm::engine::{Budget, Running};
use crate::wasm::meter::Quota;
use crate::wasm::module::LoadError;
use crate::wasm::pause;

/// The inner VM: used by its worker alone.
pub(super) struct Core {
    pub(super) store: Store<Host>,
    pub(super) callbacks: Callbacks,
    /// Set while a guest runs: a panic of ours leaves it set, and the VM is then as good as dead.
    pub(super) entered: bool,
    pub(super) dead: bool,
    pub(super) first_look: u64,
    pub(super) counters: Arc<Counters>,
    pub(super) on_death: OnceLock<OnDeath>,
    /// When it was last told of a callback that is too slow.
    pub(super) warned: Option<Instant>,
    pub(super) _running: Running,
}

/// How often that is told.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// Ticks take at most one part in so many of a worker's time.
const TICK_SHARE: u32 = 5;

impl Core {
    /// Calls a callback, if the guest has it.
    #[inline]
    pub(super) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        pick: impl FnOnce(&Callbacks) -> Option<&Callback<P, R>>,
        params: P,
    ) -> Result<Option<R>, Dead> {
        let Some(&Callback {
            ref function,
            name,
            number,
        }) = pick(&self.callbacks)
        else {
            return Ok(None);
        };
        self.entered = true;
        let host = self.store.data_mut();
        host.budget.begin();
        if !host.last_words.is_empty() {
            host.last_words.clear();
        }
        self.store.set_epoch_deadline(self.first_look);
        let meter = &self.counters.meter;
        let timed = meter.begin(number).then(Instant::now);
        let result = function.call(&mut self.store, params);
        self.entered = false;
        if let Some(begin) = timed {
            meter.time(number, begin.elapsed());
        }
        if self.store.data().budget.exceeded {
            self.slow(name);
        }
        let calls = &self.counters.calls;
        calls.store(calls.load(Relaxed) + 1, Relaxed);
        match result {
            Ok(result) => Ok(Some(result)),
            Err(error) => {
                let mut reason = describe(&error);
                if matches!(error.downcast_ref(), Some(wasmtime::Trap::Interrupt)) {
                    self.counters.meter.hard.add(1);
                }
                reason.push_str("\n  in ");
                reason.push_str(name);
                self.fail(&reason);
                Err(Dead)
            }
        }
    }

    /// Makes `id` the context of what follows.
    #[inline]
    pub(super) fn enter(&mut self, id: u32, stream: Option<&Arc<Stream>>) -> &mut Host {
        let host = self.store.data_mut();
        host.current = id;
        host.effective = id;
        host.stream = stream.cloned();
        host
    }

    /// Undoes [`Core::enter`].
    #[inline]
    pub(super) fn leave(&mut self) -> &mut Host {
        let host = self.store.data_mut();
        host.current = 0;
        host.effective = 0;
        host.stream = None;
        host
    }

    /// A callback has exceeded its soft deadline.
    #[cold]
    fn slow(&mut self, name: &str) {
        self.counters.meter.soft.add(1);
        let host = self.store.data();
        let now = Instant::now();
        if self.warned.is_none_or(|last| now - last >= WARN_EVERY) {
            self.warned = Some(now);
            tracing::warn!(
                target: "wasm",
                "{}: {name} computed for more than {:?}; {} of its callbacks did so far",
                host.env.log_prefix,
                host.env.policy.callback_soft,
                self.counters.meter.soft.get(),
            );
        }
    }

    /// The end of this VM.
    #[cold]
    pub(super) fn fail(&mut self, reason: &str) {
        self.dead = true;
        let host = self.leave();
        let words = std::mem::take(&mut host.last_words);
        let mut reason = with_words(reason, &words);
        if !host.trace.is_empty() {
            use std::fmt::Write as _;
            // Writing to a string does not fail.
            let _ = write!(reason, "\n  last host calls: {}", host.trace);
        }
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
        self.counters.meter.paused.set(0);
        self.counters.meter.callouts.set(0);
        self.counters.meter.metrics.set(0);
        if let Some(on_death) = self.on_death.get() {
            on_death(&reason);
        }
    }

    /// Root context, `on_vm_start`, `on_configure`. Off the worker.
    pub(super) fn configure(&mut self) -> Result<(), LoadError> {
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
        host.budget = Budget::new(env.policy.callback_soft, env.policy.callback_hard);
        self.first_look = host.budget.first_look();
        self.count_memory();
        self.settle().map_err(|Dead| LoadError::Configure)
    }

    pub(super) fn setup<P: WasmParams, R: WasmResults>(
        &mut self,
        pick: impl FnOnce(&Callbacks) -> Option<&Callback<P, R>>,
        params: P,
    ) -> Result<Option<R>, LoadError> {
        let Some(Callback { function, .. }) = pick(&self.callbacks) else {
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

    pub(super) fn count_memory(&mut self) {
        let limits = &mut self.store.data_mut().limits;
        self.counters.memory.store(limits.used as u64, Relaxed);
        for _ in 0..std::mem::take(&mut limits.refused).min(1000) {
            self.counters.meter.refuse(Quota::Memory);
        }
    }

    /// Does what the guest asked for, now that it has returned.
    #[inline]
    pub(super) fn settle(&mut self) -> Result<(), Dead> {
        if self.store.data().effects.is_empty() {
            return Ok(());
        }
        self.settle_all()
    }

    pub(super) fn settle_all(&mut self) -> Result<(), Dead> {
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
                            pause::hold(host, id, direction, false);
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

    pub(super) fn create_context(&mut self, stream: &Arc<Stream>) -> Result<u32, Dead> {
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

    pub(super) fn headers(
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
        // A stop of the heads alone waits for the body.
        let held = !goes_on && (action != HeadersAction::Stop || end_of_stream);
        pause::hold(host, id, direction, held && answer.reply.is_none());
        Ok(answer)
    }

    pub(super) fn body(
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
        let held = match action {
            DataAction::Continue => false,
            DataAction::Buffer | DataAction::Drop => end_of_stream,
            DataAction::Watermark => true,
        };
        let held = held && !answer.resumed && answer.reply.is_none();
        pause::hold(host, id, direction, held);
        Ok(answer)
    }

    pub(super) fn trailers(
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
        let held = action != DataAction::Continue && !answer.resumed && answer.reply.is_none();
        pause::hold(host, id, direction, held);
        Ok(answer)
    }

    pub(super) fn log(&mut self, id: u32, stream: &Arc<Stream>) -> Result<u32, Dead> {
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

    pub(super) fn end(&mut self, id: u32, stream: &Arc<Stream>) -> Result<(), Dead> {
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
        if let Some(context) = host.streams.remove(&id) {
            pause::forget(host, context.held);
        }
        let contexts = host.streams.len() as u64;
        self.counters.contexts.store(contexts, Relaxed);
        self.count_memory();
        Ok(())
    }

    pub(super) fn tick(&mut self) -> Result<(), Dead> {
        self.store.data_mut().root.next_tick = None;
        self.enter(ROOT, None);
        let begin = Instant::now();
        self.call(|c| c.tick.as_ref(), ROOT)?;
        let host = self.leave();
        let now = Instant::now();
        // The next one counts from the end of this one, unless this one has set it.
        if host.root.next_tick.is_none() {
            host.root.next_tick = host.root.tick_period.map(|period| now + period);
        }
        let earliest = now + (now - begin) * (TICK_SHARE - 1);
        if let Some(next) = &mut host.root.next_tick {
            *next = earliest.max(*next);
        }
        self.count_memory();
        Ok(())
    }

    pub(super) fn called(
        &mut self,
        token: u32,
        result: Result<CallResponse, CallError>,
    ) -> Result<(), Dead> {
        let host = self.store.data_mut();
        if !host.calls.finish(token) {
            return Ok(());
        }
        host.meter().callouts.set(host.calls.len() as u64);
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

    pub(super) fn queue_ready(&mut self, root: u32, token: u32) -> Result<(), Dead> {
        self.enter(root, None);
        self.call(|c| c.queue_ready.as_ref(), (root, token))?;
        self.leave();
        Ok(())
    }

    /// True where the root context is gone at once.
    pub(super) fn retire(&mut self) -> Result<bool, Dead> {
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

    pub(super) fn delete_root(&mut self) -> Result<(), Dead> {
        self.enter(ROOT, None);
        self.call(|c| c.delete.as_ref(), ROOT)?;
        self.leave().root.gone = true;
        Ok(())
    }
}

/// Takes out what the guest decided in the callback that has just returned.
pub(super) fn take_answer<A>(
    context: &mut StreamContext,
    direction: Direction,
    action: A,
) -> Answer<A> {
    context.callback = None;
    Answer {
        action,
        reply: context.reply.take(),
        reset: std::mem::take(&mut context.reset),
        resumed: std::mem::take(&mut context.resumed[direction as usize]),
    }
}

/// `continue_stream` from another callback.
pub(super) fn go_on(context: &mut StreamContext, direction: Direction) {
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

pub(super) fn hide(visible: &mut Visible, direction: Direction) {
    match direction {
        Direction::Request => visible.request_headers = false,
        Direction::Response => visible.response_headers = false,
    }
}

/// Applies what the guest removed of a request's pseudo-headers; the reply where nothing sendable is left.
#[inline]
pub(super) fn repair(context: &mut StreamContext, stream: &Stream) -> Option<LocalReply> {
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
