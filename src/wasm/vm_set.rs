//! The VMs of one key: one a worker, shared by the plugin versions that have the key, and replaced when they die.
//!
//! A version joins with a root context of its own. Where a worker has no VM, one is built off the workers with the root
//! contexts of all versions, and moved there. Where one lives, the root context is made in it, on its worker, as in
//! Envoy: but only of a version that a VM of its own, off the workers, has shown to be willing and quick. So a worker is
//! never held up by more than one callback's budget.
//!
//! A dead VM's worker gets a fresh one: the first at once (after its back-off with `FAIL_RELOAD`), the next ones after
//! waits that double from a second to a minute while VMs keep dying young. So a plugin that crashes on every request
//! costs a bounded amount of work, and one that crashed once is back at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::abi::Imports;
use super::context::{Environment, RootSpec};
use super::engine::Runtime;
use super::module::{LoadError, Module};
use super::plugin::Plugin;
use super::spec::FailurePolicy;
use super::status::{VmStatus, plugin_stats};
use super::vm::{BuildError, Counters, Vm};
use crate::base::task::{OwnedTask, spawn};
use crate::base::{WorkerCell, WorkerHandles};
use crate::telemetry::metrics::StatSet;

/// A VM that lived so long owes nothing for its predecessors.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// Longest wait before a fresh VM.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Shortest wait before the second fresh VM in a row.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// All that it takes to make a VM of one key.
pub(crate) struct Recipe {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) module: Module,
    pub(crate) imports: Imports,
    pub(crate) env: Arc<Environment>,
    pub(crate) workers: WorkerHandles,
    pub(crate) process_stats: Arc<StatSet>,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({:?})", self.module.digest)
    }
}

impl Recipe {
    /// Makes one VM with these root contexts, on a blocking thread.
    async fn build(
        self: &Arc<Self>,
        roots: Vec<Arc<RootSpec>>,
        counters: Arc<Counters>,
    ) -> Result<(Arc<Vm>, Vec<u32>), BuildError> {
        let recipe = Arc::clone(self);
        let built = tokio::task::spawn_blocking(move || {
            Vm::build(
                &recipe.runtime,
                &recipe.imports.pre,
                &recipe.env,
                &roots,
                counters,
                Arc::clone(&recipe.process_stats),
            )
        });
        match built.await {
            Ok(result) => result,
            Err(_) => Err(LoadError::Trap("a host function panicked".to_owned()).into()),
        }
    }

    /// Configures a plugin in a VM that is made for this alone, and goes without a goodbye, as Envoy's canary does. What
    /// the configuration took of its thread's time.
    pub(crate) async fn prove(
        self: &Arc<Self>,
        root: Arc<RootSpec>,
    ) -> Result<Duration, LoadError> {
        let (vm, _) = self
            .build(vec![root], Arc::default())
            .await
            .map_err(|failure| failure.error)?;
        Ok(vm.configured_in())
    }
}

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
    /// Builds fresh VMs; ends with the set.
    _reviver: OwnedTask,
}

/// What changes how long a dead VM's worker waits for the next.
enum Event {
    /// The VM of this worker has died.
    Died(usize),
    /// A fresh one is at work there.
    Born(usize),
    /// There is a new version, which owes nothing for those before it.
    Joined,
}

/// One worker's place.
#[derive(Debug)]
struct Slot {
    vm: WorkerCell<Option<Arc<Vm>>>,
    /// The same VM, for the control side.
    current: Mutex<Weak<Vm>>,
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
        let slots = (0..recipe.workers.count())
            .map(|_| Slot {
                vm: WorkerCell::new(None),
                current: Mutex::new(Weak::new()),
                counters: Arc::default(),
            })
            .collect();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            recipe,
            slots,
            members: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            _reviver: OwnedTask::spawn(
                "wasm reviver",
                revive(this.clone(), events.downgrade(), happened),
            ),
            events,
        })
    }

    pub(crate) fn workers(&self) -> usize {
        self.slots.len()
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
        }
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
        if !self.slots[worker].lives() {
            return self.build(worker).await;
        }
        let mut refused = Vec::new();
        for plugin in self.members() {
            if plugin.sits(worker) {
                continue;
            }
            match self.add(worker, &plugin).await {
                Ok(true) => {}
                // It has died meanwhile.
                Ok(false) => return self.build(worker).await,
                Err(refusal) => refused.push((plugin, refusal)),
            }
        }
        refused
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
            let Some(this) = set.upgrade() else { return };
            vm.adopt(Box::new(move |reason| {
                if let Some(set) = set.upgrade() {
                    set.died(worker, reason);
                }
            }));
            let slot = &this.slots[worker];
            *slot.current.lock() = Arc::downgrade(&vm);
            for (plugin, root) in seats {
                match plugin.upgrade() {
                    Some(plugin) => plugin.sit(worker, &vm, root),
                    None => vm.leave(root),
                }
            }
            *slot.vm.lock() = Some(vm);
            // The waiter may be gone: the VM is in its place all the same.
            let _ = done.send(());
        });
        // A worker that is gone takes no more requests either.
        let _ = installed.await;
    }

    /// A root context in the living VM of `worker`; false where it lives no more.
    async fn add(self: &Arc<Self>, worker: usize, plugin: &Arc<Plugin>) -> Result<bool, Refusal> {
        let root = plugin.root();
        let took = match root.proven.get() {
            Some(took) => *took,
            None => {
                let proof = self.recipe.prove(Arc::clone(root)).await;
                let took = proof.map_err(Refusal::Load)?;
                *root.proven.get_or_init(|| took)
            }
        };
        if took > self.recipe.env.callback_budget / 2 {
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
        for plugin in self.members() {
            plugin.rise(worker, reason);
        }
        let _ = self.events.send(Event::Died(worker));
    }

    /// Of all versions, the policy that says how soon a fresh VM may follow.
    fn policy(&self) -> FailurePolicy {
        self.members()
            .iter()
            .map(|plugin| plugin.spec().failure)
            .max_by_key(|policy| match policy {
                FailurePolicy::Reload { backoff } => *backoff,
                FailurePolicy::Closed | FailurePolicy::Open { .. } => Duration::ZERO,
            })
            .unwrap_or(FailurePolicy::Closed)
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

/// The life of one worker's VMs.
#[derive(Default)]
struct Life {
    /// VMs in a row that died young.
    deaths: u32,
    born: Option<Instant>,
    building: Option<OwnedTask>,
}

impl Life {
    /// How long to wait before the next VM.
    fn wait(&mut self, now: Instant, policy: FailurePolicy) -> Duration {
        if self.born.is_some_and(|born| now - born >= GOOD_LIFE) {
            self.deaths = 0;
        }
        let deaths = self.deaths;
        self.deaths = (deaths + 1).min(16);
        let (base, first) = match policy {
            FailurePolicy::Reload { backoff } => (backoff, deaths),
            FailurePolicy::Closed | FailurePolicy::Open { .. } => match deaths.checked_sub(1) {
                None => return Duration::ZERO,
                Some(deaths) => (FIRST_WAIT, deaths),
            },
        };
        let limit = base.saturating_mul(1 << first).min(LONGEST_WAIT.max(base));
        // Jitter, so that the workers do not build in step.
        limit.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

async fn revive(
    set: Weak<VmSet>,
    events: mpsc::WeakUnboundedSender<Event>,
    mut happened: mpsc::UnboundedReceiver<Event>,
) {
    let mut lives: Vec<Life> = Vec::new();
    while let Some(event) = happened.recv().await {
        let worker = match event {
            Event::Died(worker) => worker,
            Event::Born(worker) => {
                if let Some(life) = lives.get_mut(worker) {
                    life.born = Some(Instant::now());
                }
                continue;
            }
            Event::Joined => {
                lives.iter_mut().for_each(|life| life.deaths = 0);
                continue;
            }
        };
        let Some(policy) = set.upgrade().map(|set| set.policy()) else {
            return;
        };
        if lives.len() <= worker {
            lives.resize_with(worker + 1, Life::default);
        }
        let life = &mut lives[worker];
        let wait = life.wait(Instant::now(), policy);
        life.building = Some(OwnedTask::spawn(
            "wasm revival",
            restore(set.clone(), worker, wait, events.clone()),
        ));
    }
}

/// Gives `worker` its VM back, with everybody in it.
async fn restore(
    set: Weak<VmSet>,
    worker: usize,
    wait: Duration,
    events: mpsc::WeakUnboundedSender<Event>,
) {
    tokio::time::sleep(wait).await;
    let mut wait = FIRST_WAIT;
    loop {
        let Some(set) = set.upgrade() else { return };
        let missing: Vec<_> = {
            let members = set.members().into_iter();
            members.filter(|plugin| !plugin.sits(worker)).collect()
        };
        let refused = {
            let _changing = set.changing.lock().await;
            set.seat(worker).await
        };
        for plugin in missing {
            if plugin.sits(worker) {
                plugin.stats().inc(plugin_stats::VM_RELOAD_SUCCESS);
            }
        }
        if refused.is_empty() {
            if let Some(events) = events.upgrade() {
                let _ = events.send(Event::Born(worker));
            }
            return;
        }
        for (plugin, refusal) in refused {
            plugin.stats().inc(plugin_stats::VM_RELOAD_FAILURE);
            let text = refusal.to_string();
            tracing::error!(target: "wasm", "plugin {}: {text}", plugin.spec().name);
            plugin.blame(&text);
        }
        drop(set);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_death_costs_nothing_and_a_row_of_them_more_and_more() {
        let mut life = Life::default();
        let mut now = Instant::now();
        assert_eq!(life.wait(now, FailurePolicy::Closed), Duration::ZERO);
        for second in [1, 2, 4, 8, 16, 32, 60, 60] {
            let limit = Duration::from_secs(second);
            life.born = Some(now);
            let wait = life.wait(now, FailurePolicy::Closed);
            assert!(wait >= limit / 2 && wait <= limit, "{wait:?} of {limit:?}");
            now += Duration::from_secs(1);
        }
        now += GOOD_LIFE;
        assert_eq!(life.wait(now, FailurePolicy::Closed), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn reload_waits_its_backoff_before_the_first() {
        let backoff = Duration::from_secs(3);
        let wait = Life::default().wait(Instant::now(), FailurePolicy::Reload { backoff });
        assert!(wait >= backoff / 2 && wait <= backoff);
    }
}
