//! The VMs of one key: one a worker (of a singleton one, on the first), shared by the plugin versions that have the key, and replaced when they die.
//!
//! A version joins with a root context of its own. Where a worker has no VM, one is built off the workers with the root
//! contexts of all versions, and moved there. Where one lives, the root context is made in it, on its worker, as in
//! Envoy: but only of a version that a VM of its own, off the workers, has shown to be willing and quick. So a worker is
//! never held up by more than one callback's budget.
//!
//! A dead VM's worker gets a fresh one with everybody in it, built off the workers, when the set's [`Breaker`] lets it. So
//! a plugin that crashes on every request costs a bounded amount of work, and one that crashed once is back at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wasmtime::Linker;

use super::abi::Imports;
use super::breaker::{Breaker, BreakerState, Gate};
use super::callbacks::ENDS;
use super::context::Host;
use super::engine::Tier;
use super::module::{LoadError, Module};
use super::plugin::Plugin;
use super::recipe::{Linked, Recipe};
use super::report;
use super::reviver::{Built, Event, Revive, revive};
use super::spec::FailurePolicy;
use super::status::{LiveStatus, Trap, VmStatus, plugin_stats};
use super::vm::{BuildError, Counters, Vm};
use crate::base::WorkerCell;
use crate::base::task::{OwnedTask, spawn};
use crate::config::wasm_settings::PluginPolicy;

/// Traps that are remembered.
const MAX_TRAPS: usize = 8;

/// Why a version is not in a set.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It will not do.
    Load(LoadError),
    /// It does by itself, but not here.
    Here(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(error) => error.fmt(f),
            Self::Here(reason) => f.write_str(reason),
        }
    }
}

/// The VMs of one key.
#[derive(Debug)]
pub(crate) struct VmSet {
    recipe: Arc<Recipe>,
    slots: Box<[Slot]>,
    /// Versions with root contexts in these VMs; each holds the set.
    members: Mutex<Vec<Weak<Plugin>>>,
    /// One at a time joins or rebuilds.
    changing: tokio::sync::Mutex<()>,
    events: mpsc::UnboundedSender<Event>,
    traps: Mutex<VecDeque<Trap>>,
    breaker: Mutex<BreakerState>,
    /// Builds fresh VMs; ends with the set.
    _reviver: OwnedTask,
}

/// One worker's place.
#[derive(Debug)]
struct Slot {
    vm: WorkerCell<Option<Arc<Vm>>>,
    /// The same VM, for the control side.
    current: Mutex<Weak<Vm>>,
    gate: Gate,
    counters: Arc<Counters>,
}

impl Slot {
    fn lives(&self) -> bool {
        let current = self.current.lock().upgrade();
        current.is_some_and(|vm| !vm.is_dead())
    }
}

impl VmSet {
    /// A set without VMs: the first version to join gets them.
    pub(crate) fn new(recipe: Arc<Recipe>) -> Arc<Self> {
        let (events, happened) = mpsc::unbounded_channel();
        let workers = if recipe.env.vm.singleton {
            1
        } else {
            recipe.workers.count()
        };
        let slots = (0..workers)
            .map(|_| Slot {
                vm: WorkerCell::new(None),
                current: Mutex::new(Weak::new()),
                gate: Gate::default(),
                counters: Arc::default(),
            })
            .collect();
        let policy = &recipe.env.policy;
        let breaker = Breaker::new(
            policy.breaker,
            policy.after_crash,
            recipe.env.vm.failure,
            workers,
            Instant::now(),
        );
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            recipe,
            slots,
            members: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            _reviver: OwnedTask::spawn("wasm reviver", revive(this.clone(), breaker, happened)),
            events,
            traps: Mutex::default(),
            breaker: Mutex::default(),
        })
    }

    /// What it runs, or moves to.
    pub(crate) fn module(&self) -> Module {
        self.recipe.code.load().module.clone()
    }

    /// How many VMs it has: one a worker, or that of a singleton.
    pub(crate) fn workers(&self) -> usize {
        self.slots.len()
    }

    /// False where the code has no callback that hears of a stream's end.
    pub(crate) fn hears_ends(&self) -> bool {
        let Recipe { code, env, .. } = &*self.recipe;
        let code = code.load();
        let mut exports = code.module.code.exports();
        exports.any(|export| ENDS.contains(&export.name()) && env.vm.allows(export.name()))
    }

    /// VMs of one worker that have failed.
    pub(crate) fn failures(&self, worker: usize) -> u64 {
        self.slots[worker].counters.traps.load(Relaxed)
    }

    /// Counts of one worker's VM.
    pub(crate) fn status(&self, worker: usize, working: bool) -> VmStatus {
        let counters = &self.slots[worker].counters;
        let read = |number: &AtomicU64| number.load(Relaxed);
        VmStatus {
            working,
            calls: read(&counters.calls),
            traps: read(&counters.traps),
            created: read(&counters.created),
            contexts: read(&counters.contexts),
            memory: read(&counters.memory),
            soft_deadlines: counters.meter.soft.get(),
            hard_deadlines: counters.meter.hard.get(),
            paused: counters.meter.paused.get(),
            overdue: counters.meter.overdue.get(),
            callouts: counters.meter.callouts.get(),
        }
    }

    /// What the VMs do, what is known of the code, and what plugins of this name hold.
    pub(crate) fn live_status(&self, name: &str) -> LiveStatus {
        let Recipe { code, env, .. } = &*self.recipe;
        let module = &code.load().module;
        let mut slots = self.slots.iter();
        let moved = slots.all(|slot| {
            let vm = slot.current.lock().upgrade();
            vm.is_none_or(|vm| vm.is_dead() || vm.runs(&module.code))
        });
        let tier = if moved { module.tier() } else { Tier::Baseline };
        let meters: Vec<_> = self.slots.iter().map(|slot| &*slot.counters).collect();
        let shared = env.space.status();
        LiveStatus {
            abi: module.abi.as_str(),
            tier: tier.as_str(),
            sdk: module.sdk.as_deref().map(str::to_owned),
            breaker: self.breaker.lock().as_str(),
            traps: self.traps.lock().iter().cloned().collect(),
            callbacks: report::callbacks(&meters),
            quotas: report::quotas(&meters, &env.policy, &shared, env.registry.owned_by(name)),
            shared,
        }
    }

    /// True where plugins under `policy` may be in these VMs.
    pub(crate) fn fits(&self, policy: &PluginPolicy) -> bool {
        self.recipe.env.policy.shares_vms_with(policy)
    }

    /// True where the VM of `worker` takes one more stream.
    #[inline]
    pub(crate) fn admits(&self, worker: usize) -> bool {
        self.slots[worker].gate.admit()
    }

    /// Puts `module`, the optimised code of what runs, below the VMs: those that live go on in it, with all that their guests
    /// hold, and those to come begin with it.
    ///
    /// # Errors
    /// Where it will not do, or a VM could not move to it: that one goes on as it was.
    pub(crate) async fn optimise(
        self: &Arc<Self>,
        linker: &Linker<Host>,
        module: &Module,
    ) -> Result<(), LoadError> {
        let imports = Imports::resolve(linker, module, &self.recipe.env.vm)?;
        let module = module.clone();
        // Whoever waits may give up half-way, which this does not.
        let this = Arc::clone(self);
        let moved = spawn("wasm move", async move {
            let _changing = this.changing.lock().await;
            if this.module().tier() == Tier::Baseline {
                this.recipe.code.store(Arc::new(Linked { module, imports }));
            }
            let mut result = Ok(());
            for slot in &this.slots {
                let vm = slot.current.lock().upgrade();
                if let Some(vm) = vm {
                    result = this.recipe.refit(&vm).await.and(result);
                }
            }
            result
        });
        let panicked = |_| Err(LoadError::Start("it panicked".to_owned()));
        moved.await.unwrap_or_else(panicked)
    }

    /// Gives `plugin` a root context on every worker.
    pub(crate) async fn join(self: &Arc<Self>, plugin: &Arc<Plugin>) -> Result<(), Refusal> {
        let _changing = self.changing.lock().await;
        self.members.lock().push(Arc::downgrade(plugin));
        for worker in 0..self.slots.len() {
            let refused = self.seat(worker).await;
            let own = refused
                .into_iter()
                .find(|(member, _)| Arc::ptr_eq(member, plugin));
            if let Some((_, refusal)) = own {
                let this = Arc::downgrade(plugin);
                self.members.lock().retain(|member| !member.ptr_eq(&this));
                return Err(refusal);
            }
        }
        // The reviver lives as long as this set.
        let _ = self.events.send(Event::Joined);
        Ok(())
    }

    fn members(&self) -> Vec<Arc<Plugin>> {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// Gives every version that has none a root context on `worker`, in its VM or in a fresh one; those for which that
    /// cannot be done. By whoever is changing the set.
    async fn seat(self: &Arc<Self>, worker: usize) -> Vec<(Arc<Plugin>, Refusal)> {
        if self.slots[worker].lives()
            && let Some(refused) = self.fill(worker, false).await
        {
            return refused;
        }
        self.build(worker).await
    }

    /// As [`VmSet::seat`], in the living VM alone; `None` where it lives no more. `again`: what they have shown before is
    /// no proof, as they have been refused since.
    async fn fill(
        self: &Arc<Self>,
        worker: usize,
        again: bool,
    ) -> Option<Vec<(Arc<Plugin>, Refusal)>> {
        let mut refused = Vec::new();
        for plugin in self.missing(worker) {
            match self.add(worker, &plugin, again).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(refusal) => refused.push((plugin, refusal)),
            }
        }
        Some(refused)
    }

    /// Versions without a root context on `worker`.
    fn missing(&self, worker: usize) -> Vec<Arc<Plugin>> {
        let members = self.members().into_iter();
        members.filter(|plugin| !plugin.sits(worker)).collect()
    }

    /// Counts and tells what became of those that were `missing` on `worker`.
    fn report(&self, worker: usize, missing: &[Arc<Plugin>], refused: Vec<(Arc<Plugin>, Refusal)>) {
        for plugin in missing {
            if plugin.sits(worker) {
                plugin.stats().inc(plugin_stats::VM_RELOAD_SUCCESS);
            }
        }
        for (plugin, refusal) in refused {
            plugin.stats().inc(plugin_stats::VM_RELOAD_FAILURE);
            let text = refusal.to_string();
            tracing::error!(target: "wasm", "plugin {}: {text}", plugin.spec().name);
            plugin.blame(&text);
        }
    }

    /// A fresh VM on `worker`, with root contexts of all versions that will do.
    async fn build(self: &Arc<Self>, worker: usize) -> Vec<(Arc<Plugin>, Refusal)> {
        let mut members = self.members();
        let mut refused = Vec::new();
        while !members.is_empty() {
            let roots = members
                .iter()
                .map(|plugin| Arc::clone(plugin.root()))
                .collect();
            let counters = Arc::clone(&self.slots[worker].counters);
            match self.recipe.build(roots, counters).await {
                Ok((vm, roots)) => {
                    let seats = members.iter().map(Arc::downgrade).zip(roots).collect();
                    self.install(worker, vm, seats).await;
                    return refused;
                }
                Err(BuildError {
                    root: Some(index),
                    error,
                }) => refused.push((members.remove(index), Refusal::Load(error))),
                Err(BuildError { root: None, error }) => {
                    // The cause goes to who came last: all others are in already, and read it in words.
                    let reason = error.to_string();
                    let last = members.pop().map(|plugin| (plugin, Refusal::Load(error)));
                    let others = members.drain(..);
                    refused.extend(others.map(|plugin| (plugin, Refusal::Here(reason.clone()))));
                    refused.extend(last);
                }
            }
        }
        refused
    }

    /// Moves a VM to its worker; returns when it is there.
    async fn install(
        self: &Arc<Self>,
        worker: usize,
        vm: Arc<Vm>,
        seats: Vec<(Weak<Plugin>, u32)>,
    ) {
        let (done, installed) = oneshot::channel();
        let set = Arc::downgrade(self);
        self.recipe.workers.run_on(worker, move || {
            let mut vm = vm;
            let Some(this) = set.upgrade() else { return };
            Vm::adopt(
                &mut vm,
                Box::new(move |reason| {
                    if let Some(set) = set.upgrade() {
                        set.died(worker, reason);
                    }
                }),
            );
            let slot = &this.slots[worker];
            *slot.current.lock() = Arc::downgrade(&vm);
            for (plugin, root) in seats {
                match plugin.upgrade() {
                    Some(plugin) => plugin.sit(worker, &vm, root),
                    None => vm.leave(root),
                }
            }
            if !vm.runs(&this.recipe.code.load().module.code) {
                // Who built it had given up by the time it came here, and has missed that the others moved.
                let (set, vm) = (Arc::clone(&this), Arc::clone(&vm));
                drop(spawn("wasm move", async move {
                    if let Err(error) = set.recipe.refit(&vm).await {
                        tracing::warn!(target: "wasm", "a VM goes on with baseline code: {error}");
                    }
                }));
            }
            *slot.vm.lock() = Some(vm);
            // The waiter may be gone: the VM is in its place all the same.
            let _ = done.send(());
        });
        // A worker that is gone takes no more requests either.
        let _ = installed.await;
    }

    /// A root context in the living VM of `worker`; false where it lives no more.
    async fn add(
        self: &Arc<Self>,
        worker: usize,
        plugin: &Arc<Plugin>,
        again: bool,
    ) -> Result<bool, Refusal> {
        let root = plugin.root();
        let took = match root.proven.get().filter(|_| !again) {
            Some(took) => *took,
            None => {
                let proof = self.recipe.prove(Arc::clone(root)).await;
                let took = proof.map_err(Refusal::Load)?;
                root.proven.get_or_init(|| took);
                took
            }
        };
        if took > self.recipe.env.policy.callback_hard / 2 {
            return Err(Refusal::Here(format!(
                "its configuration took {took:?}, too long for a VM in use"
            )));
        }
        let (done, added) = oneshot::channel();
        let (set, plugin) = (Arc::clone(self), Arc::clone(plugin));
        self.recipe.workers.run_on(worker, move || {
            // A task of its own, so that a panic ends that and not the worker.
            drop(spawn("wasm join", async move {
                let vm = set.slots[worker].vm.lock().clone();
                let result = match vm {
                    Some(vm) => vm.add_root(plugin.root()).map(|root| {
                        plugin.sit(worker, &vm, root);
                        true
                    }),
                    None => Ok(false),
                };
                // The waiter may be gone: then the plugin is, too, and takes its leave.
                let _ = done.send(result);
            }));
        });
        match added.await {
            Ok(result) => result.map_err(|error| Refusal::Here(error.to_string())),
            Err(_) => Err(Refusal::Here("the worker is gone".to_owned())),
        }
    }

    /// On the worker: its VM has failed.
    fn died(&self, worker: usize, reason: &str) {
        let vm = self.slots[worker].vm.lock().take();
        drop(vm);
        {
            let mut traps = self.traps.lock();
            if traps.len() >= MAX_TRAPS {
                traps.pop_front();
            }
            traps.push_back(Trap {
                at: SystemTime::now(),
                worker,
                description: reason.to_owned(),
            });
        }
        let first = reason.lines().next().unwrap_or_default();
        for plugin in self.members() {
            plugin.rise(worker, first);
        }
        let _ = self.events.send(Event::Died(worker));
    }
}

impl Revive for VmSet {
    async fn rebuild(self: Arc<Self>, worker: usize, streams: Option<u32>) -> Built {
        let missing = self.missing(worker);
        let refused = {
            let _changing = self.changing.lock().await;
            // A VM that serves already is not throttled for those that it lacks.
            if let Some(streams) = streams
                && !self.slots[worker].lives()
            {
                self.slots[worker].gate.limit(streams);
            }
            self.seat(worker).await
        };
        let built = match refused.is_empty() {
            true => Built::Whole,
            // Those in it are not to pay for who would not come.
            false if self.slots[worker].lives() => Built::InPart,
            false => Built::Not,
        };
        self.report(worker, &missing, refused);
        built
    }

    async fn complete(self: Arc<Self>, worker: usize) -> bool {
        let _changing = self.changing.lock().await;
        if !self.slots[worker].lives() {
            return true;
        }
        let missing = self.missing(worker);
        // Where the VM has died the next one is tried with everybody.
        let refused = self.fill(worker, true).await.unwrap_or_default();
        let complete = refused.is_empty();
        self.report(worker, &missing, refused);
        complete
    }

    fn is_proven(&self, worker: usize) -> bool {
        let slot = &self.slots[worker];
        slot.gate.is_shut() && slot.counters.contexts.load(Relaxed) == 0
    }

    /// The longest back-off, where any version asks for one.
    fn failure(&self) -> FailurePolicy {
        self.members()
            .iter()
            .map(|plugin| plugin.spec().failure)
            .max_by_key(|policy| match policy {
                FailurePolicy::Reload { backoff } => *backoff,
                FailurePolicy::Closed | FailurePolicy::Open { .. } => Duration::ZERO,
            })
            .unwrap_or(FailurePolicy::Closed)
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

impl Drop for VmSet {
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(vm) = slot.current.lock().upgrade() {
                vm.retire();
            }
        }
    }
}
