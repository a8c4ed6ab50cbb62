//! What a VM is inside: the store, the callbacks, and each call into the guest, under its deadline.
//!
//! Whoever enters the guest leaves it again with [`Core::settle`]: what the guest asked for while it ran is done then,
//! when no call is on its stack.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::{Instance, Store, WasmParams, WasmResults};

use super::start::{describe, with_words};
use super::{Counters, Dead, Direction, Message, OnDeath, reset_details};
use crate::stream::{Stream, Verdict};
use crate::telemetry::metrics::StatSet;
use crate::wasm::callbacks::{Callback, Callbacks};
use crate::wasm::context::{Effect, Host, NetworkView, StreamContext};
use crate::wasm::engine::{Budget, Running};
use crate::wasm::meter::Quota;

/// The inner VM: used by its worker alone.
pub(super) struct Core {
    pub(super) store: Store<Host>,
    pub(super) instance: Instance,
    pub(super) callbacks: Callbacks,
    /// Set while a guest runs: a panic of ours leaves it set, and the VM is then as good as dead.
    pub(super) entered: bool,
    pub(super) dead: bool,
    pub(super) first_look: u64,
    pub(super) counters: Arc<Counters>,
    pub(super) on_death: OnceLock<OnDeath>,
    pub(super) stats: Arc<StatSet>,
    /// When it was last told of a callback that is too slow.
    pub(super) warned: Option<Instant>,
    pub(super) _running: Running,
}

/// How often that is told.
const WARN_EVERY: Duration = Duration::from_secs(5);

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
        let probed = self.store.data().env.probe.is_some();
        let timed = (meter.begin(number) || probed).then(Instant::now);
        let result = function.call(&mut self.store, params);
        self.entered = false;
        if let Some(begin) = timed {
            let took = begin.elapsed();
            meter.time(number, took);
            if let Some(probe) = &self.store.data().env.probe {
                probe.called(name, took);
            }
        }
        if self.store.data().budget.exceeded {
            self.slow(name);
        }
        let calls = &self.counters.calls;
        calls.store(calls.load(Relaxed) + 1, Relaxed);
        match result {
            Ok(result) => Ok(Some(result)),
            Err(error) => Err(self.trapped(name, &error)),
        }
    }

    /// A callback has trapped.
    #[cold]
    fn trapped(&mut self, name: &str, error: &wasmtime::Error) -> Dead {
        let mut reason = describe(error, self.store.data().env.shift);
        if matches!(error.downcast_ref(), Some(wasmtime::Trap::Interrupt)) {
            self.counters.meter.hard.add(1);
        }
        reason.push_str("\n  in ");
        reason.push_str(name);
        self.fail(&reason);
        Dead
    }

    /// Makes the root context `id` the context of what follows.
    pub(super) fn enter_root(&mut self, id: u32) -> &mut Host {
        let host = self.store.data_mut();
        host.current = id;
        host.effective = id;
        host.root_id = id;
        host.stopped = false;
        host
    }

    /// Makes the stream context `id` the context of what follows; `None` where there is none of that id.
    #[inline]
    pub(super) fn enter(&mut self, id: u32) -> Option<&mut StreamContext> {
        let host = self.store.data_mut();
        let context = host.streams.get_mut(id)?;
        host.current = id;
        host.effective = id;
        host.root_id = context.root;
        host.stopped = false;
        Some(context)
    }

    /// Undoes [`Core::enter`].
    #[inline]
    pub(super) fn leave(&mut self) -> &mut Host {
        let host = self.store.data_mut();
        host.current = 0;
        host.effective = 0;
        host.root_id = 0;
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
                host.log_prefix(),
                host.env.policy.callback_soft,
                self.counters.meter.soft.get(),
            );
        }
    }

    /// The end of this VM.
    #[cold]
    pub(super) fn fail(&mut self, reason: &str) {
        self.dead = true;
        let host = self.store.data_mut();
        let words = std::mem::take(&mut host.last_words);
        let mut reason = with_words(reason, &words);
        if !host.trace.is_empty() {
            use std::fmt::Write as _;
            // Writing to a string does not fail.
            let _ = write!(reason, "\n  last host calls: {}", host.trace);
        }
        let spec = host.spec();
        tracing::error!(
            target: "wasm",
            "plugin {} {} {}: the VM has failed: {reason}",
            spec.name,
            spec.root_id,
            spec.vm_id,
        );
        let host = self.leave();
        host.calls.orphan();
        host.lookups.cancel();
        host.effects.clear();
        host.roots.clear();
        host.pauses.clear();
        let streams = std::mem::take(&mut host.streams);
        for context in streams.values() {
            lose(context);
        }
        // Those who wait for their heads wake when their senders go.
        drop(streams);
        let traps = &self.counters.traps;
        traps.store(traps.load(Relaxed) + 1, Relaxed);
        self.counters.contexts.store(0, Relaxed);
        self.counters.meter.paused.set(0);
        self.counters.meter.callouts.set(0);
        self.counters.meter.callout_bytes.set(0);
        self.counters.meter.metrics.set(0);
        if let Some(on_death) = self.on_death.get() {
            on_death(&reason);
        }
    }

    /// Sets how long each of the next calls may take.
    pub(super) fn set_budget(&mut self, budget: Budget) {
        self.first_look = budget.first_look();
        self.store.data_mut().budget = budget;
    }

    /// Gives what follows a whole budget.
    pub(super) fn rearm(&mut self) {
        self.store.data_mut().budget.begin();
        self.store.set_epoch_deadline(self.first_look);
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

    /// Apart, so that [`Core::settle`] is a comparison.
    #[cold]
    #[inline(never)]
    pub(super) fn settle_all(&mut self) -> Result<(), Dead> {
        let mut told = 0;
        loop {
            let effects = std::mem::take(&mut self.store.data_mut().effects);
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects {
                let host = self.store.data_mut();
                match effect {
                    Effect::Continue(id, direction) => {
                        if let Some(context) = host.streams.get_mut(id) {
                            go_on(context, direction);
                        }
                    }
                    Effect::Reply(id, reply) => {
                        if let Some(context) = host.streams.get(id) {
                            context.stream.decide(Verdict::Reply {
                                reply: Box::new(reply),
                                direct: context.replies_directly(),
                            });
                        }
                    }
                    Effect::Reset(id) => {
                        if let Some(context) = host.streams.get(id) {
                            context.stream.decide(Verdict::Reset {
                                details: reset_details(context.responding).into(),
                            });
                        }
                    }
                    Effect::Close(id, reason) => {
                        let network = host.streams.get(id);
                        if let Some(network) = network.and_then(|context| context.network.as_ref())
                        {
                            network.handle.close(reason);
                        }
                    }
                    Effect::Wake => {
                        // The task itself listens.
                        let _ = host.mailbox.send(Message::Wake);
                    }
                    Effect::Done(root) => self.delete_root(root)?,
                    Effect::GrpcFailed(failed) if failed.is_told_at_once(told) => {
                        told += 1;
                        self.grpc_failed(failed)?;
                    }
                    Effect::GrpcFailed(failed) => failed.post(&host.mailbox),
                }
            }
        }
    }

    pub(super) fn create_context(
        &mut self,
        root: u32,
        stream: &Arc<Stream>,
        upstream: bool,
    ) -> Result<u32, Dead> {
        self.create(root, stream, None, upstream)
    }

    pub(super) fn create(
        &mut self,
        root: u32,
        stream: &Arc<Stream>,
        network: Option<Box<NetworkView>>,
        upstream: bool,
    ) -> Result<u32, Dead> {
        let host = self.store.data_mut();
        let id = host.fresh_id();
        let mut context = StreamContext::new(Arc::clone(stream), root);
        context.network = network;
        context.upstream = upstream;
        host.streams.insert(id, context);
        let contexts = host.streams.len() as u64;
        self.counters.contexts.store(contexts, Relaxed);
        self.enter(id);
        self.call(|c| c.context_create.as_ref(), (id, root))?;
        self.leave();
        Ok(id)
    }

    pub(super) fn log(&mut self, root: u32, id: u32, stream: &Arc<Stream>) -> Result<u32, Dead> {
        let id = if id == 0 {
            self.create_context(root, stream, false)?
        } else {
            id
        };
        let Some(context) = self.enter(id) else {
            return Ok(id);
        };
        context.logging = true;
        self.call(|c| c.log.as_ref(), id)?;
        self.leave();
        Ok(id)
    }

    pub(super) fn end(&mut self, id: u32) -> Result<(), Dead> {
        if self.callbacks.done.is_none() && self.callbacks.delete.is_none() {
            self.remove(id);
            return Ok(());
        }
        let Some(context) = self.enter(id) else {
            return Ok(());
        };
        context.ended = true;
        context.logging = false;
        context.waiting = [None, None];
        context.may_add_trailers = [false; 2];
        context.paused = [None, None];
        self.call(|c| c.done.as_ref(), id)?;
        // `on_done` may have turned to another context.
        self.enter(id);
        self.call(|c| c.delete.as_ref(), id)?;
        self.remove(id);
        Ok(())
    }

    /// Forgets the context of a stream whose guest has heard of its end.
    pub(super) fn remove(&mut self, id: u32) {
        let host = self.leave();
        host.streams.remove(id);
        let contexts = host.streams.len() as u64;
        self.counters.contexts.store(contexts, Relaxed);
        self.count_memory();
    }
}

/// The VM of a stream is dead: where its body is held, nobody else would come to let it go.
fn lose(context: &StreamContext) {
    // The callback that died tells of it by itself.
    if context.callback.is_some() {
        return;
    }
    if let Some(network) = &context.network {
        network.handle.lose();
        return;
    }
    let Some(on_loss) = &context.on_loss else {
        return;
    };
    for direction in [Direction::Request, Direction::Response] {
        let side = direction as usize;
        if context.waiting[side].is_none()
            && let Some(pump) = &context.pumps[side]
            && pump.is_stopped()
        {
            on_loss.tell(&context.stream, direction, pump);
        }
    }
}

/// `continue_stream` from another callback.
pub(super) fn go_on(context: &mut StreamContext, direction: Direction) {
    context.may_add_trailers[direction as usize] = false;
    context.paused[direction as usize] = None;
    if let Some(network) = &context.network {
        network.handle.go_on();
        return;
    }
    match context.waiting[direction as usize].take() {
        Some(waiting) => {
            // What its own callbacks hold of the body goes with the head.
            if waiting.flowing
                && let Some(pump) = &context.pumps[direction as usize]
                && pump.is_stopped()
            {
                pump.resume();
            }
            // Nobody waits where the stream has gone on already.
            let _ = waiting.sender.send(());
        }
        None => {
            if let Some(pump) = &context.pumps[direction as usize] {
                pump.resume();
            }
        }
    }
}
