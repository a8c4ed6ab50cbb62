//! What the host is made with, and what it answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Plugin;
use crate::base::WorkerHandles;
use crate::cluster::ClusterMap;
use crate::pb;
use crate::telemetry::metrics::Registry;

/// What the host is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The workers that get a VM each.
    pub workers: WorkerHandles,
    /// Where statistics and plugins' metrics go.
    pub registry: Registry,
    /// The clusters of the current Generation, for fetches and for callouts.
    pub clusters: Arc<ArcSwap<ClusterMap>>,
    /// The bootstrap's node, for the property `xds.node`.
    pub node: Option<Arc<pb::Node>>,
    /// Where compiled modules are kept; `None`: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// How long one callback may compute.
    pub callback_budget: Duration,
    /// How long start, `on_vm_start` and `on_configure` may take together.
    pub start_budget: Duration,
    /// Linear memory of one VM, in bytes.
    pub memory_limit: usize,
    /// Which plugins share VMs.
    pub vm_sharing: VmSharing,
    /// How long a plugin may hold a stream back while nothing is under way that could have it go on: no callout, no
    /// timer, no queue. Then it goes on with `FAIL_OPEN`, and is answered with 504 otherwise. `None`, as in Envoy: until
    /// the stream's idle timeout.
    pub max_pause: Option<Duration>,
}

/// Which plugins share VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmSharing {
    /// Those with equal VM keys (`vm_id`, VM configuration, code, environment, capabilities), as in Envoy. A trap of one
    /// ends the VM of all.
    #[default]
    ByKey,
    /// None: each plugin version has its own. Shared data and queues go by `vm_id` all the same.
    Isolated,
}

impl Options {
    /// With the defaults: 50 ms a callback, 10 s to start, 256 MiB, VMs shared by key, no cache directory.
    pub fn new(
        workers: WorkerHandles,
        registry: Registry,
        clusters: Arc<ArcSwap<ClusterMap>>,
    ) -> Self {
        Self {
            workers,
            registry,
            clusters,
            node: None,
            cache_dir: None,
            callback_budget: Duration::from_millis(50),
            start_budget: Duration::from_secs(10),
            memory_limit: 256 << 20,
            vm_sharing: VmSharing::default(),
            max_pause: None,
        }
    }
}

/// What serves a slot now.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The wanted version is live.
    Ready(Arc<Plugin>),
    /// The wanted version is loading, or failed; this earlier one goes on.
    Previous(Arc<Plugin>),
    /// Nothing was ever ready here, and the wanted version is still loading.
    Pending,
    /// Nothing was ever ready here, and the wanted version failed for now; it is tried again where that may help.
    Failed(Arc<str>),
}
