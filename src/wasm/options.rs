//! What the host is made with, and what it answers.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Plugin, Probe};
use crate::base::WorkerHandles;
use crate::cluster::ClusterMap;
use crate::cluster::dns::{Resolver, Silent};
use crate::config::WasmSettings;
use crate::config::wasm_settings::PluginPolicy;
use crate::pb;
use crate::route::matcher::string_matches;
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
    /// What bounds plugins.
    pub settings: WasmSettings,
    /// Answers the names that plugins ask for.
    pub resolver: Arc<dyn Resolver>,
    /// What stands around the plugins in a tool; a proxy has none.
    pub probe: Option<Arc<dyn Probe>>,
}

impl Options {
    /// With the default settings, no cache directory, and nobody to answer names.
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
            settings: WasmSettings::default(),
            resolver: Arc::new(Silent),
            probe: None,
        }
    }

    /// What bounds the plugin `name`.
    pub fn policy(&self, name: &str) -> PluginPolicy {
        let mut overrides = self.settings.overrides.iter();
        overrides
            .find(|(pattern, _)| string_matches(pattern, name.as_bytes()))
            .map_or(self.settings.defaults, |(_, policy)| *policy)
    }
}

/// What serves a slot now.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The wanted version is live.
    Ready(Arc<Plugin>),
    /// The wanted version is loading, or failed; this earlier one goes on.
    Previous(Arc<Plugin>),
    /// The wanted version is live, and on trial beside this earlier one.
    #[cfg(feature = "wasm")]
    Trial(Arc<Plugin>, Arc<super::rollout::Trial>),
    /// Nothing was ready here before, and the wanted version is still loading.
    Pending,
    /// Nothing was ready here before, and the wanted version failed for now; it is tried again where that may help.
    Failed(Arc<str>),
}

/// What an operator wants of a version on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutCommand {
    /// It takes all streams.
    Promote,
    /// The old one keeps them.
    RollBack,
    /// So many percent of streams begin with it.
    Share(u32),
}
