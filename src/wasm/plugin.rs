//! A live plugin version: a configured root context in the VM of every worker.
//!
//! The VMs are those of its [`VmSet`], perhaps shared with other versions. While a worker's VM is dead the version has
//! no place there, and requests follow its failure policy.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::context::RootSpec;
use super::spec::{FailurePolicy, PluginSpec};
use super::status::{LiveStatus, VmStatus, plugin_stats};
use super::vm::Vm;
use super::vm_set::{Refusal, VmSet};
use crate::base::{Shard, WorkerCell};
use crate::telemetry::metrics::StatSet;

/// A live plugin version.
#[derive(Debug)]
pub struct Plugin {
    root: Arc<RootSpec>,
    seats: Box<[Seat]>,
    set: Arc<VmSet>,
    stats: Arc<StatSet>,
    last_error: Mutex<Option<String>>,
}

/// One worker's root context of a plugin version.
#[derive(Clone, Debug)]
pub struct Place {
    /// The worker's VM.
    pub vm: Arc<Vm>,
    /// The root context in it.
    pub root: u32,
}

/// What a version has on one worker.
#[derive(Debug, Default)]
struct Seat {
    /// Made by the worker, whose it is.
    place: OnceLock<WorkerCell<Option<Place>>>,
    /// The same, for the control side: to take leave of.
    left: Mutex<Option<(Weak<Vm>, u32)>>,
    taken: AtomicBool,
}

impl Plugin {
    /// Makes a root context for `root` on every worker.
    ///
    /// # Errors
    /// Where one cannot be made: then there are none.
    pub(crate) async fn start(
        set: &Arc<VmSet>,
        root: Arc<RootSpec>,
        stats: Arc<StatSet>,
    ) -> Result<Arc<Self>, Refusal> {
        let plugin = Arc::new(Self {
            root,
            seats: (0..set.workers()).map(|_| Seat::default()).collect(),
            set: Arc::clone(set),
            stats,
            last_error: Mutex::new(None),
        });
        set.join(&plugin).await?;
        Ok(plugin)
    }

    /// What it was made of.
    pub fn spec(&self) -> &Arc<PluginSpec> {
        &self.root.spec
    }

    pub(crate) fn root(&self) -> &Arc<RootSpec> {
        &self.root
    }

    /// The running worker's VM and the root context in it, for one more stream; `None` while a dead VM is being replaced,
    /// and where a fresh one is on probation and serves no more for now.
    #[inline]
    pub fn place(&self) -> Option<Place> {
        let worker = Shard::current().index().checked_sub(1)?;
        let seat = self.seats.get(worker)?;
        if !seat.taken.load(Relaxed) {
            return None;
        }
        let place = seat.place.get()?.lock().clone()?;
        self.set.admits(worker).then_some(place)
    }

    /// The VMs that it is in.
    pub(crate) fn set(&self) -> &Arc<VmSet> {
        &self.set
    }

    /// False where the plugin has no callback that hears of a stream's end.
    pub fn hears_ends(&self) -> bool {
        self.set.hears_ends()
    }

    /// Posts values of the statistics to its VMs: from any thread. False where none of them works.
    pub(crate) fn send_stats(&self, update: &Arc<Bytes>) -> bool {
        let mut sent = false;
        for seat in self.seats.iter().filter(|seat| seat.taken.load(Relaxed)) {
            if let Some((vm, root)) = &*seat.left.lock()
                && let Some(vm) = vm.upgrade()
            {
                vm.post_stats(*root, update);
                sent = true;
            }
        }
        sent
    }

    /// The VMs that it has root contexts in.
    pub(crate) fn vms(&self) -> Vec<Weak<Vm>> {
        let seats = self.seats.iter();
        seats
            .filter_map(|seat| seat.left.lock().as_ref().map(|(vm, _)| Weak::clone(vm)))
            .collect()
    }

    /// Has its root contexts say goodbye; once. Gives the VMs that they are in. No stream finds a place there any more.
    pub(crate) fn leave(&self) -> Vec<Arc<Vm>> {
        let mut vms = Vec::new();
        for seat in &self.seats {
            if let Some((vm, root)) = seat.left.lock().take()
                && let Some(vm) = vm.upgrade()
            {
                seat.taken.store(false, Relaxed);
                vm.leave(root);
                vms.push(vm);
            }
        }
        vms
    }

    /// A request met the plugin without a VM.
    pub fn count_backoff(&self) {
        if matches!(self.spec().failure, FailurePolicy::Reload { .. }) {
            self.stats.inc(plugin_stats::VM_RELOAD_BACKOFF);
        }
    }

    /// On `worker`: this is its place now.
    pub(crate) fn sit(&self, worker: usize, vm: &Arc<Vm>, root: u32) {
        let seat = &self.seats[worker];
        *seat.left.lock() = Some((Arc::downgrade(vm), root));
        let place = seat.place.get_or_init(WorkerCell::default);
        *place.lock() = Some(Place {
            vm: Arc::clone(vm),
            root,
        });
        seat.taken.store(true, Relaxed);
    }

    /// On `worker`: its VM has failed.
    pub(crate) fn rise(&self, worker: usize, reason: &str) {
        let seat = &self.seats[worker];
        seat.taken.store(false, Relaxed);
        let place = seat.place.get().map(|place| place.lock().take());
        drop(place);
        self.blame(reason);
    }

    pub(crate) fn sits(&self, worker: usize) -> bool {
        self.seats[worker].taken.load(Relaxed)
    }

    pub(crate) fn blame(&self, reason: &str) {
        *self.last_error.lock() = Some(reason.to_owned());
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// It takes a slot.
    pub(crate) fn serve(&self) {
        self.root.serves.store(true, Relaxed);
    }

    /// VMs that it was in and that have failed.
    pub(crate) fn failed_vms(&self) -> u64 {
        let workers = 0..self.seats.len();
        workers.map(|worker| self.set.failures(worker)).sum()
    }

    pub(crate) fn stats(&self) -> &StatSet {
        &self.stats
    }

    pub(crate) fn live_status(&self) -> LiveStatus {
        self.set.live_status(&self.spec().name)
    }

    /// Of the VMs that it is in: what it shares with others is counted for all of them.
    pub(crate) fn vm_status(&self) -> Vec<VmStatus> {
        (0..self.seats.len())
            .map(|worker| self.set.status(worker, self.sits(worker)))
            .collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.leave();
    }
}
