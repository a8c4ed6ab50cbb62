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
    /// The sum of the code.
    pub sha256: Digest,
    /// Where the code comes from.
    pub origin: String,
    /// The state now.
    pub state: State,
    /// The last error, of loading or of running.
    pub error: Option<String>,
    /// The slots (places in the configuration) that want this version.
    pub slots: Vec<String>,
    /// One a worker, in the order of workers.
    pub vms: Vec<VmStatus>,
    /// The last steps of its life, oldest first.
    pub history: Vec<Event>,
    /// How long the compilation took; `None` from the cache or not yet.
    pub compile_time: Option<Duration>,
    /// Imports that nobody answers; calling one traps.
    pub unknown_imports: Vec<String>,
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
}
