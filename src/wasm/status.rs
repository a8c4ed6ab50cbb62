//! What admin's `/wasm` shows, and the names of the host's statistics.

use std::time::{Duration, SystemTime};

use super::spec::Digest;

crate::stats! {
    /// Envoy's `wasm.*` of the whole process, and ours: `load_failures` counts attempts to make a version live that failed,
    /// `vm_failures` VMs that trapped or exceeded their budget, `paused_streams` halves of streams that plugins hold back
    /// now, `paused_for_nothing` pauses that began with nothing under way that could end them, `pauses_ended` those that
    /// their limit ended.
    pub mod wasm_stats {
        RUNTIME_ACTIVE: Gauge = "envoy.wasm.runtime.v8.active",
        RUNTIME_CREATED: Counter = "envoy.wasm.runtime.v8.created",
        REMOTE_LOAD_CACHE_ENTRIES: Gauge = "remote_load_cache_entries",
        REMOTE_LOAD_CACHE_HITS: Counter = "remote_load_cache_hits",
        REMOTE_LOAD_CACHE_MISSES: Counter = "remote_load_cache_misses",
        REMOTE_LOAD_CACHE_NEGATIVE_HITS: Counter = "remote_load_cache_negative_hits",
        REMOTE_LOAD_FETCH_FAILURES: Counter = "remote_load_fetch_failures",
        REMOTE_LOAD_FETCH_SUCCESSES: Counter = "remote_load_fetch_successes",
        LOAD_FAILURES: Counter = "load_failures",
        PAUSED_FOR_NOTHING: Counter = "paused_for_nothing",
        PAUSED_STREAMS: Gauge = "paused_streams",
        PAUSES_ENDED: Counter = "pauses_ended",
        VM_FAILURES: Counter = "vm_failures",
        WASM_VM_COUNT: Gauge = "wasm_vm_count",
    }
}

crate::stats! {
    /// Envoy's `wasm.<plugin>.*`.
    pub mod plugin_stats {
        VM_RELOAD: Counter = "vm_reload",
        VM_RELOAD_BACKOFF: Counter = "vm_reload_backoff",
        VM_RELOAD_FAILURE: Counter = "vm_reload_failure",
        VM_RELOAD_SUCCESS: Counter = "vm_reload_success",
    }
}

/// Where a plugin version is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its code is being fetched.
    Fetching,
    /// The code is here and has the right sum; it is being compiled.
    Compiling,
    /// VMs are being built and configured.
    Configuring,
    /// Every worker has a configured VM: it can serve.
    Live,
    /// It serves a share of the streams beside the version before it.
    Trial,
    /// It was on trial, and the version before it serves again.
    RolledBack,
    /// Nothing refers to it any more but streams in flight.
    Draining,
    /// It will not come to be; `error` says why.
    Failed,
}

impl State {
    /// As `/wasm` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Compiling => "compiling",
            Self::Configuring => "configuring",
            Self::Live => "live",
            Self::Trial => "trial",
            Self::RolledBack => "rolled_back",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// One step of a version's life.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// What it became.
    pub state: State,
    /// Why, where something failed; empty otherwise.
    pub detail: String,
}

/// The end of a VM that served.
#[derive(Clone, Debug)]
pub struct Trap {
    /// When.
    pub at: SystemTime,
    /// On which worker, counted from 0.
    pub worker: usize,
    /// The reason in one line; then the backtrace, the callback, and the last host calls, oldest first.
    pub description: String,
}

/// One plugin version.
#[derive(Clone, Debug)]
pub struct PluginStatus {
    /// `PluginConfig.name`.
    pub name: String,
    /// `root_id`.
    pub root_id: String,
    /// `vm_id`.
    pub vm_id: String,
    /// The identity of the version.
    pub key: Digest,
    /// The sum of the code, once it is known; where the configuration has one, that until then.
    pub sha256: Option<Digest>,
    /// The sum of the manifest of the image that the code is of.
    pub image: Option<Digest>,
    /// Where the code comes from.
    pub origin: String,
    /// The state now.
    pub state: State,
    /// The last error, of loading or of running.
    pub error: Option<String>,
    /// The slots (places in the configuration) that want this version, or are served by it while theirs cannot; also those
    /// that wait with it for another plugin.
    pub slots: Vec<String>,
    /// One a worker, in the order of workers.
    pub vms: Vec<VmStatus>,
    /// The last steps of its life, oldest first.
    pub history: Vec<Event>,
    /// How long the compilation took; `None` from the cache or not yet.
    pub compile_time: Option<Duration>,
    /// Imports that nobody answers; calling one traps.
    pub unknown_imports: Vec<String>,
    /// How its trial goes, while it is on trial.
    pub trial: Option<String>,
    /// The rest, of a version whose code is here.
    pub live: Option<LiveStatus>,
}

/// What a version does, over all workers.
#[derive(Clone, Debug, Default)]
pub struct LiveStatus {
    /// The version of the ABI, by the module's marker.
    pub abi: &'static str,
    /// What its VMs run: `baseline` code, which was there sooner, or `optimised`.
    pub tier: &'static str,
    /// What the module was written with, as far as it says.
    pub sdk: Option<String>,
    /// `closed`, `open`, `half_open`, `off`.
    pub breaker: &'static str,
    /// The last traps, oldest first.
    pub traps: Vec<Trap>,
    /// Callbacks that were called.
    pub callbacks: Vec<CallbackStatus>,
    /// What it may take, and what it took.
    pub quotas: Vec<QuotaStatus>,
    /// What the plugins of its `vm_id` share.
    pub shared: SharedStatus,
}

/// The calls of one callback.
#[derive(Clone, Debug)]
pub struct CallbackStatus {
    /// The export's name.
    pub name: &'static str,
    /// How often it was called.
    pub calls: u64,
    /// The time that half of the calls did not exceed, on the wall's clock; one call in eight is timed.
    pub p50: Option<Duration>,
    /// Likewise, 99 of 100.
    pub p99: Option<Duration>,
}

/// One quota.
#[derive(Clone, Debug)]
pub struct QuotaStatus {
    /// As the settings name it.
    pub name: &'static str,
    /// The limit; of periods in milliseconds.
    pub limit: u64,
    /// What is used of it now, where that is known; of quotas a VM, by the VM that uses most, or of metrics by the process.
    pub used: Option<u64>,
    /// How often it was enforced.
    pub refused: u64,
}

/// What the plugins of a `vm_id` share.
#[derive(Clone, Debug, Default)]
pub struct SharedStatus {
    /// Bytes of shared data, as the quota counts them.
    pub bytes: usize,
    /// Number of keys.
    pub count: usize,
    /// The first keys in their order, with the sizes of their values.
    pub entries: Vec<(String, usize)>,
    /// The first queues by their names.
    pub queues: Vec<QueueStatus>,
    /// Number of queues.
    pub queue_count: usize,
    /// The bytes of that which has most.
    pub fullest_queue: usize,
    /// Messages that wait in all of them.
    pub messages: usize,
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Messages that wait.
    pub messages: usize,
    /// Their bytes, as the quota counts them.
    pub bytes: usize,
}

/// One VM's counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmStatus {
    /// False while a crashed VM is being replaced.
    pub working: bool,
    /// Calls into guest code.
    pub calls: u64,
    /// Traps, deadlines included, on this worker since the version went live.
    pub traps: u64,
    /// VMs built for this worker.
    pub created: u64,
    /// Living stream contexts.
    pub contexts: u64,
    /// Bytes of linear memory.
    pub memory: u64,
    /// Callbacks that exceeded the soft deadline.
    pub soft_deadlines: u64,
    /// Callbacks that were stopped at the hard one.
    pub hard_deadlines: u64,
    /// Streams that the plugin holds.
    pub paused: u64,
    /// Streams that it held for longer than `max_pause`.
    pub overdue: u64,
    /// Callouts under way.
    pub callouts: u64,
}
