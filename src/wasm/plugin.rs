//! A live plugin version: one configured VM a worker, replaced when it dies.
//!
//! A dead VM's worker gets a fresh one, built off the workers, when its [`Breaker`] lets it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::abi::Imports;
use super::breaker::{Breaker, BreakerState, Gate};
use super::context::Environment;
use super::engine::Runtime;
use super::module::{LoadError, Module};
use super::reviver::{Revive, revive};
use super::spec::{Code, FailurePolicy, PluginSpec};
use super::status::{LiveStatus, Trap, VmStatus, plugin_stats};
use super::vm::{Counters, Vm};
use super::{report, sdk};
use crate::base::task::OwnedTask;
use crate::base::{Shard, WorkerCell, WorkerHandles};
use crate::telemetry::metrics::StatSet;

/// Traps that are remembered.
const MAX_TRAPS: usize = 8;

/// A live plugin version.
#[derive(Debug)]
pub struct Plugin {
    spec: Arc<PluginSpec>,
    slots: Box<[Slot]>,
    recipe: Arc<Recipe>,
    deaths: mpsc::UnboundedSender<usize>,
    traps: Mutex<VecDeque<Trap>>,
    breaker: Mutex<BreakerState>,
    /// Builds fresh VMs; ends with the plugin.
    _reviver: OwnedTask,
}

/// One worker's place.
#[derive(Debug)]
struct Slot {
    vm: WorkerCell<Option<Arc<Vm>>>,
    /// The same VM, for the control side: to retire it.
    current: Mutex<Weak<Vm>>,
    working: AtomicBool,
    gate: Gate,
    counters: Arc<Counters>,
}

/// All that it takes to make a VM of this version.
pub(crate) struct Recipe {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) module: Module,
    pub(crate) imports: Imports,
    pub(crate) env: Arc<Environment>,
    pub(crate) workers: WorkerHandles,
    pub(crate) process_stats: Arc<StatSet>,
    pub(crate) stats: Arc<StatSet>,
    pub(crate) last_error: Mutex<Option<String>>,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({:?})", self.module.digest)
    }
}

impl Recipe {
    /// Makes one VM on a blocking thread.
    pub(crate) async fn build(
        self: &Arc<Self>,
        counters: Arc<Counters>,
    ) -> Result<Arc<Vm>, LoadError> {
        let recipe = Arc::clone(self);
        let built = tokio::task::spawn_blocking(move || {
            Vm::build(
                &recipe.runtime,
                &recipe.imports.pre,
                &recipe.env,
                counters,
                Arc::clone(&recipe.process_stats),
            )
        });
        match built.await {
            Ok(result) => result,
            Err(_) => Err(LoadError::Trap("a host function panicked".to_owned())),
        }
    }
}

impl Plugin {
    /// Makes the VMs of all workers, and has each adopt its own.
    ///
    /// # Errors
    /// Where one cannot be made: then there are none.
    pub(crate) async fn start(recipe: Arc<Recipe>) -> Result<Arc<Self>, LoadError> {
        let count = recipe.workers.count();
        let slots: Box<[Slot]> = (0..count)
            .map(|_| Slot {
                vm: WorkerCell::new(None),
                current: Mutex::new(Weak::new()),
                working: AtomicBool::new(false),
                gate: Gate::default(),
                counters: Arc::default(),
            })
            .collect();
        let mut vms = Vec::with_capacity(count);
        for slot in &slots {
            vms.push(recipe.build(Arc::clone(&slot.counters)).await?);
        }
        let (deaths, died) = mpsc::unbounded_channel();
        let policy = &recipe.env.policy;
        let breaker = Breaker::new(
            policy.breaker,
            policy.after_crash,
            recipe.env.spec.failure,
            count,
            Instant::now(),
        );
        let plugin = Arc::new_cyclic(|this: &Weak<Self>| Self {
            spec: Arc::clone(&recipe.env.spec),
            slots,
            recipe,
            deaths,
            _reviver: OwnedTask::spawn("wasm reviver", revive(this.clone(), breaker, died)),
            traps: Mutex::default(),
            breaker: Mutex::default(),
        });
        for (worker, vm) in vms.into_iter().enumerate() {
            plugin.install(worker, vm).await;
        }
        Ok(plugin)
    }

    /// Moves a VM to its worker; returns when it is there.
    async fn install(self: &Arc<Self>, worker: usize, vm: Arc<Vm>) {
        let (done, installed) = oneshot::channel();
        let plugin = Arc::clone(self);
        self.recipe.workers.run_on(worker, move || {
            let this = Arc::downgrade(&plugin);
            let slot = &plugin.slots[worker];
            vm.adopt(Box::new(move |reason| {
                if let Some(plugin) = this.upgrade() {
                    plugin.died(worker, reason);
                }
            }));
            *slot.current.lock() = Arc::downgrade(&vm);
            *slot.vm.lock() = Some(vm);
            slot.working.store(true, Relaxed);
            // The waiter may be gone: the VM is in its place all the same.
            let _ = done.send(());
        });
        // A worker that is gone takes no more requests either.
        let _ = installed.await;
    }

    /// On the worker: its VM has failed.
    fn died(&self, worker: usize, reason: &str) {
        let slot = &self.slots[worker];
        let vm = slot.vm.lock().take();
        drop(vm);
        slot.working.store(false, Relaxed);
        let first = reason.lines().next().unwrap_or_default();
        *self.recipe.last_error.lock() = Some(first.to_owned());
        let mut traps = self.traps.lock();
        if traps.len() >= MAX_TRAPS {
            traps.pop_front();
        }
        traps.push_back(Trap {
            at: SystemTime::now(),
            worker,
            description: reason.to_owned(),
        });
        // The reviver lives as long as this plugin.
        let _ = self.deaths.send(worker);
    }

    /// What it was made of.
    pub fn spec(&self) -> &Arc<PluginSpec> {
        &self.spec
    }

    /// The running worker's VM, for one more stream; `None` while a dead one is being replaced, and where a fresh one is
    /// on probation and serves no more for now.
    #[inline]
    pub fn vm(&self) -> Option<Arc<Vm>> {
        let worker = Shard::current().index().checked_sub(1)?;
        let slot = self.slots.get(worker)?;
        let vm = slot.vm.lock().clone()?;
        slot.gate.admit().then_some(vm)
    }

    /// A request met the plugin without a VM.
    pub fn count_backoff(&self) {
        if matches!(self.spec.failure, FailurePolicy::Reload { .. }) {
            self.recipe.stats.inc(plugin_stats::VM_RELOAD_BACKOFF);
        }
    }

    pub(crate) fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    pub(crate) fn live_status(&self) -> LiveStatus {
        let Recipe { module, env, .. } = &*self.recipe;
        let said = match &self.spec.code {
            Code::Local { bytes, .. } => sdk::of(bytes),
            Code::Remote(_) => None,
        };
        let guess = || sdk::guess(module.code.exports().map(|export| export.name()));
        let meters: Vec<_> = self.slots.iter().map(|slot| &*slot.counters).collect();
        let shared = env.shared.status(&env.spec.vm_id, &env.space);
        LiveStatus {
            abi: module.abi.as_str(),
            sdk: said.or_else(|| guess().map(str::to_owned)),
            breaker: self.breaker.lock().as_str(),
            traps: self.traps.lock().iter().cloned().collect(),
            callbacks: report::callbacks(&meters),
            quotas: report::quotas(&meters, &env.policy, &shared),
            shared,
        }
    }

    pub(crate) fn vm_status(&self) -> Vec<VmStatus> {
        self.slots
            .iter()
            .map(|slot| {
                let read = |number: &AtomicU64| number.load(Relaxed);
                VmStatus {
                    working: slot.working.load(Relaxed),
                    calls: read(&slot.counters.calls),
                    traps: read(&slot.counters.traps),
                    created: read(&slot.counters.created),
                    contexts: read(&slot.counters.contexts),
                    memory: read(&slot.counters.memory),
                    soft_deadlines: slot.counters.meter.soft.get(),
                    hard_deadlines: slot.counters.meter.hard.get(),
                    paused: slot.counters.meter.paused.get(),
                    overdue: slot.counters.meter.overdue.get(),
                    callouts: slot.counters.meter.callouts.get(),
                }
            })
            .collect()
    }
}

impl Revive for Plugin {
    async fn rebuild(self: Arc<Self>, worker: usize, streams: Option<u32>) -> bool {
        let slot = &self.slots[worker];
        let stats = &self.recipe.stats;
        match self.recipe.build(Arc::clone(&slot.counters)).await {
            Ok(vm) => {
                if let Some(streams) = streams {
                    slot.gate.limit(streams);
                }
                stats.inc(plugin_stats::VM_RELOAD_SUCCESS);
                self.install(worker, vm).await;
                true
            }
            Err(error) => {
                stats.inc(plugin_stats::VM_RELOAD_FAILURE);
                *self.recipe.last_error.lock() = Some(error.to_string());
                tracing::error!(target: "wasm", "plugin {}: {error}", self.spec.name);
                false
            }
        }
    }

    fn is_proven(&self, worker: usize) -> bool {
        let slot = &self.slots[worker];
        slot.gate.is_shut() && slot.counters.contexts.load(Relaxed) == 0
    }

    fn show(&self, state: BreakerState) {
        *self.breaker.lock() = state;
        if state == BreakerState::Closed {
            for slot in &self.slots {
                slot.gate.lift();
            }
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(vm) = slot.current.lock().upgrade() {
                vm.retire();
            }
        }
    }
}
