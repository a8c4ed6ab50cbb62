//! Root contexts in a VM: made and configured, ticked, told of answers and messages, and let go.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Instant;
use wasmtime::{WasmParams, WasmResults};

use super::Dead;
use super::core::Core;
use super::start::{describe, with_words};
use crate::cluster::client::{CallError, CallResponse};
use crate::stream::Stream;
use crate::wasm::callbacks::{Callback, Callbacks};
use crate::wasm::context::{CallAnswer, Root, RootSpec, StreamContext};
use crate::wasm::module::LoadError;
use crate::wasm::spec::PluginSpec;

/// Time for a root context to call `proxy_done` after its `on_done` returned false.
const FAREWELL: Duration = Duration::from_secs(10);
/// Ticks of one root context take at most one part in so many of a worker's time, and so do the messages of a VM's queues.
pub(super) const SHARE: u32 = 5;

impl Core {
    /// A root context: its creation, `on_vm_start`, `on_configure`, all within what is left of one budget. Envoy too
    /// starts "the VM" once a root context. After an error other than a trap there is nothing left of it.
    pub(super) fn add_root(&mut self, made_for: &Arc<RootSpec>) -> Result<u32, LoadError> {
        let host = self.store.data_mut();
        let id = host.fresh_id();
        host.roots.push(Root::new(id, Arc::clone(made_for)));
        self.enter_root(id);
        self.entered = true;
        let result = self.configure(id, &made_for.spec);
        self.entered = false;
        if matches!(result, Err(LoadError::Trap(_))) {
            // The rest is for who calls: nothing may be called again.
            return result.map(|()| id);
        }
        let host = self.leave();
        if result.is_err() {
            host.forget_root(id);
        }
        self.count_memory();
        self.settle().map_err(|Dead| LoadError::Configure)?;
        result.map(|()| id)
    }

    fn configure(&mut self, id: u32, spec: &PluginSpec) -> Result<(), LoadError> {
        let size = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let configuring = |core: &mut Self, now| {
            if let Some(root) = core.store.data_mut().root_of(id) {
                root.configuring = now;
            }
        };
        configuring(self, true);
        self.setup(|c| c.context_create.as_ref(), (id, 0))?;
        configuring(self, false);
        self.enter_root(id);
        let started = self.setup(|c| c.vm_start.as_ref(), (id, size(&spec.vm_configuration)))?;
        if started == Some(0) {
            return Err(LoadError::VmStart);
        }
        configuring(self, true);
        self.enter_root(id);
        let configured = self.setup(|c| c.configure.as_ref(), (id, size(&spec.configuration)))?;
        configuring(self, false);
        if configured == Some(0) {
            return Err(LoadError::Configure);
        }
        Ok(())
    }

    pub(super) fn setup<P: WasmParams, R: WasmResults>(
        &mut self,
        pick: impl FnOnce(&Callbacks) -> Option<&Callback<P, R>>,
        params: P,
    ) -> Result<Option<R>, LoadError> {
        let Some(&Callback {
            ref function, name, ..
        }) = pick(&self.callbacks)
        else {
            return Ok(None);
        };
        let begin = Instant::now();
        // One budget for all of the start: the deadline is not set anew.
        let result = function.call(&mut self.store, params);
        if let Some(probe) = &self.store.data().env.probe {
            probe.called(name, begin.elapsed());
        }
        result.map(Some).map_err(|error| {
            let host = self.store.data_mut();
            let words = std::mem::take(&mut host.last_words);
            let reason = format!("{}\n  in {name}", describe(&error, host.env.shift));
            LoadError::Trap(with_words(&reason, &words))
        })
    }

    pub(super) fn timers(&mut self) -> Result<(), Dead> {
        let now = Instant::now();
        let roots = &self.store.data().roots;
        let due: SmallVec<[u32; 4]> = roots
            .iter()
            .filter(|root| root.due().is_some_and(|due| due <= now))
            .map(|root| root.id)
            .collect();
        for id in due {
            let Some(root) = self.store.data_mut().root_of(id) else {
                continue;
            };
            if root.next_tick.take_if(|tick| *tick <= now).is_some() {
                self.tick(id)?;
            }
            let Some(root) = self.store.data_mut().root_of(id) else {
                continue;
            };
            if root.pending_done.take_if(|end| *end <= now).is_some() {
                self.delete_root(id)?;
            }
        }
        self.end_pauses(now);
        self.count_memory();
        Ok(())
    }

    fn tick(&mut self, id: u32) -> Result<(), Dead> {
        self.enter_root(id);
        let begin = Instant::now();
        self.call(|c| c.tick.as_ref(), id)?;
        let host = self.leave();
        let now = Instant::now();
        if let Some(root) = host.root_of(id) {
            // The next one counts from the end of this one, unless this one has set it.
            if root.next_tick.is_none() {
                root.next_tick = root.tick_period.map(|period| now + period);
            }
            let earliest = now + (now - begin) * (SHARE - 1);
            if let Some(next) = &mut root.next_tick {
                *next = earliest.max(*next);
            }
        }
        Ok(())
    }

    pub(super) fn called(
        &mut self,
        token: u32,
        result: Result<CallResponse, CallError>,
    ) -> Result<(), Dead> {
        let host = self.store.data_mut();
        let Some(root) = host.calls.finish(token) else {
            return Ok(());
        };
        host.count_calls();
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (answer, headers, body, trailers) = match result {
            Ok(CallResponse {
                head,
                body,
                trailers,
            }) => {
                let sizes = (
                    size(head.headers.len() + 1),
                    size(body.len()),
                    size(trailers.as_ref().map_or(0, http::HeaderMap::len)),
                );
                let answer = CallAnswer {
                    head: Some(head),
                    body: Some(body),
                    trailers,
                };
                (answer, sizes.0, sizes.1, sizes.2)
            }
            Err(error) => {
                tracing::debug!(target: "wasm", "plugin {}: a callout failed: {error}", host.env.vm.name);
                // An answer leaves the code of the last failure, as in Envoy.
                host.set_status(root, 11, "reset".to_owned());
                let answer = CallAnswer {
                    head: None,
                    body: None,
                    trailers: None,
                };
                (answer, 0, 0, 0)
            }
        };
        self.enter_root(root).call = Some(answer);
        let params = (root, token, headers, body, trailers);
        self.call(|c| c.http_call_response.as_ref(), params)?;
        let host = self.leave();
        host.call = None;
        host.count_calls();
        host.clear_status(root);
        self.count_memory();
        Ok(())
    }

    /// `envoy_on_resolve_dns`: the guest reads the addresses as its call data.
    pub(super) fn resolved(&mut self, token: u32, answer: Bytes) -> Result<(), Dead> {
        let host = self.store.data_mut();
        let Some(root) = host.lookups.finish(token) else {
            return Ok(());
        };
        host.count_calls();
        let size = u32::try_from(answer.len()).unwrap_or(u32::MAX);
        self.enter_root(root).call_data = Some(answer);
        self.call(|c| c.resolve_dns.as_ref(), (root, token, size))?;
        self.leave().call_data = None;
        self.count_memory();
        Ok(())
    }

    pub(super) fn queue_ready(&mut self, root: u32, token: u32) -> Result<(), Dead> {
        let host = self.store.data();
        host.env.shared.heard(token, &host.mailbox, root);
        if self.store.data_mut().root_of(root).is_none() {
            return Ok(());
        }
        self.enter_root(root);
        self.call(|c| c.queue_ready.as_ref(), (root, token))?;
        self.leave();
        Ok(())
    }

    /// `envoy_on_stats_update`: the guest reads the values as its call data.
    pub(super) fn stats_update(&mut self, root: u32, update: Bytes) -> Result<(), Dead> {
        if self.store.data_mut().root_of(root).is_none() {
            return Ok(());
        }
        let size = u32::try_from(update.len()).unwrap_or(u32::MAX);
        self.enter_root(root).call_data = Some(update);
        self.call(|c| c.stats_update.as_ref(), (root, size))?;
        self.leave().call_data = None;
        self.count_memory();
        Ok(())
    }

    /// `on_log` of an access logger: as Envoy, in the root context itself, which shows the stream meanwhile.
    pub(super) fn log_in_root(&mut self, id: u32, stream: &Arc<Stream>) -> Result<(), Dead> {
        let host = self.store.data_mut();
        if host.root_of(id).is_none() {
            return Ok(());
        }
        let mut context = StreamContext::new(Arc::clone(stream), id);
        context.logging = true;
        host.streams.insert(id, context);
        self.enter(id);
        self.call(|c| c.log.as_ref(), id)?;
        self.leave().streams.remove(id);
        Ok(())
    }

    /// `on_done` of a root context; `on_delete` follows at once, or when the guest says `proxy_done`.
    pub(super) fn leave_root(&mut self, id: u32) -> Result<(), Dead> {
        if self.store.data_mut().root_of(id).is_none() {
            return Ok(());
        }
        self.enter_root(id);
        let done = self.call(|c| c.done.as_ref(), id)?;
        let host = self.leave();
        if done == Some(0) {
            if let Some(root) = host.root_of(id) {
                root.pending_done = Some(Instant::now() + FAREWELL);
            }
            return Ok(());
        }
        self.delete_root(id)
    }

    /// `on_delete` of a root context, and the end of all that is its.
    pub(super) fn delete_root(&mut self, id: u32) -> Result<(), Dead> {
        self.enter_root(id);
        self.call(|c| c.delete.as_ref(), id)?;
        self.leave().forget_root(id);
        Ok(())
    }
}
