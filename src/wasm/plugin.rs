//! A live plugin version: one configured VM a worker, replaced when it dies.
//!
//! A dead VM's worker gets a fresh one, built off the workers: the first at once (after its back-off with
//! `FAIL_RELOAD`), the next ones after waits that double from a second to a minute while VMs keep dying young. So a
//! plugin that crashes on every request costs a bounded amount of work, and one that crashed once is back at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::abi::Imports;
use super::context::Environment;
use super::engine::Runtime;
use super::module::{LoadError, Module};
use super::spec::{FailurePolicy, PluginSpec};
use super::status::{VmStatus, plugin_stats};
use super::vm::{Counters, Vm};
use crate::base::task::OwnedTask;
use crate::base::{Shard, WorkerCell, WorkerHandles};
use crate::telemetry::metrics::StatSet;

/// A VM that lived so long owes nothing for its predecessors.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// Longest wait before a fresh VM.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Shortest wait before the second fresh VM in a row.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// A live plugin version.
#[derive(Debug)]
pub struct Plugin {
    spec: Arc<PluginSpec>,
    slots: Box<[Slot]>,
    recipe: Arc<Recipe>,
    deaths: mpsc::UnboundedSender<usize>,
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
                counters: Arc::default(),
            })
            .collect();
        let mut vms = Vec::with_capacity(count);
        for slot in &slots {
            vms.push(recipe.build(Arc::clone(&slot.counters)).await?);
        }
        let (deaths, died) = mpsc::unbounded_channel();
        let plugin = Arc::new_cyclic(|this: &Weak<Self>| Self {
            spec: Arc::clone(&recipe.env.spec),
            slots,
            recipe,
            deaths,
            _reviver: OwnedTask::spawn("wasm reviver", revive(this.clone(), died)),
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
        *self.recipe.last_error.lock() = Some(reason.to_owned());
        // The reviver lives as long as this plugin.
        let _ = self.deaths.send(worker);
    }

    /// What it was made of.
    pub fn spec(&self) -> &Arc<PluginSpec> {
        &self.spec
    }

    /// The running worker's VM; `None` while a dead one is being replaced.
    #[inline]
    pub fn vm(&self) -> Option<Arc<Vm>> {
        let worker = Shard::current().index().checked_sub(1)?;
        self.slots.get(worker)?.vm.lock().clone()
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
                }
            })
            .collect()
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

async fn revive(plugin: Weak<Plugin>, mut died: mpsc::UnboundedReceiver<usize>) {
    let mut lives: Vec<Life> = Vec::new();
    let (done, mut born) = mpsc::unbounded_channel();
    loop {
        let worker = tokio::select! {
            worker = died.recv() => worker,
            worker = born.recv() => {
                if let Some(life) = worker.and_then(|worker: usize| lives.get_mut(worker)) {
                    life.born = Some(Instant::now());
                }
                continue;
            }
        };
        let Some(worker) = worker else { return };
        let Some(policy) = plugin.upgrade().map(|plugin| plugin.spec.failure) else {
            return;
        };
        if lives.len() <= worker {
            lives.resize_with(worker + 1, Life::default);
        }
        let life = &mut lives[worker];
        let wait = life.wait(Instant::now(), policy);
        let (plugin, done) = (plugin.clone(), done.clone());
        life.building = Some(OwnedTask::spawn("wasm revival", async move {
            tokio::time::sleep(wait).await;
            let mut wait = FIRST_WAIT;
            loop {
                let Some((recipe, counters)) = plugin.upgrade().map(|plugin| {
                    (
                        Arc::clone(&plugin.recipe),
                        Arc::clone(&plugin.slots[worker].counters),
                    )
                }) else {
                    return;
                };
                match recipe.build(counters).await {
                    Ok(vm) => {
                        if let Some(plugin) = plugin.upgrade() {
                            plugin.recipe.stats.inc(plugin_stats::VM_RELOAD_SUCCESS);
                            plugin.install(worker, vm).await;
                        }
                        let _ = done.send(worker);
                        return;
                    }
                    Err(error) => {
                        recipe.stats.inc(plugin_stats::VM_RELOAD_FAILURE);
                        *recipe.last_error.lock() = Some(error.to_string());
                        tracing::error!(target: "wasm", "plugin {}: {error}", recipe.env.spec.name);
                    }
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }));
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
