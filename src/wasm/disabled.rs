//! Stands in for the host where the feature `wasm` is off: every plugin is refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::options::{Options, Resolution, RolloutCommand};
use super::slot::Asked;
use super::spec::PluginSpec;
use super::status::PluginStatus;
use crate::config::ConfigError;

/// A live plugin version: one configured VM a worker.
#[derive(Debug)]
pub struct Plugin {
    spec: Arc<PluginSpec>,
}

impl Plugin {
    /// What it was made of.
    pub fn spec(&self) -> &Arc<PluginSpec> {
        &self.spec
    }

    /// There are no VMs.
    pub(crate) fn send_stats(&self, update: &Arc<Bytes>) -> bool {
        let _ = update;
        false
    }
}

/// The manager. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plugins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    changed: watch::Sender<u64>,
}

impl Plugins {
    /// Starts the host; must be called inside the control side's runtime.
    pub fn new(options: Options) -> Self {
        let _ = options;
        Self(Arc::new(Inner {
            changed: watch::channel(0).0,
        }))
    }

    /// Compiles and configures the code of `spec` once, if it is at hand, before the resource that holds it is
    /// acknowledged. Remote code is not fetched for this.
    ///
    /// # Errors
    /// What Envoy NACKs: not a module, wrong ABI, a trap or `false` from `on_vm_start` or `on_configure`, too slow.
    pub async fn canary(&self, spec: &Arc<PluginSpec>) -> Result<(), ConfigError> {
        let _ = spec;
        Err(refusal())
    }

    /// No file is watched.
    pub fn current(&self, spec: &Arc<PluginSpec>) -> Arc<PluginSpec> {
        Arc::clone(spec)
    }

    /// Says what serves `slot` (a place in the configuration, any stable name) where that wants `spec`, and starts to load it
    /// where it is new. Call it anew for every Generation, which [settles](Self::settle) it; [`Plugins::changed`] tells when.
    pub fn ask(&self, slot: &str, spec: &Arc<PluginSpec>) -> Resolution {
        let _ = (slot, spec);
        Resolution::Failed(refusal().to_string().into())
    }

    /// There are no slots.
    pub fn settle(&self, serving: &BTreeSet<Asked>) {
        let _ = serving;
    }

    /// As [`Plugins::ask`].
    pub(crate) fn hold(&self, slot: &str, spec: &Arc<PluginSpec>) -> Resolution {
        self.ask(slot, spec)
    }

    /// There are no slots.
    pub(crate) fn holds_pending(&self) -> bool {
        false
    }

    /// Nothing does.
    pub(crate) fn serving(&self, slot: &str) -> Option<Arc<Plugin>> {
        let _ = slot;
        None
    }

    /// There is nothing to stop.
    pub async fn stop(&self) {}

    /// There are no VMs.
    pub async fn settled(&self) {}

    /// There are no slots.
    pub(crate) fn release(&self, slot: &str) {
        let _ = slot;
    }

    /// Rings (with a growing number) whenever a version has become live or has failed: time for a new Generation.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// There are no trials.
    pub fn rollout(&self, name: &str, command: RolloutCommand) -> usize {
        let _ = (name, command);
        0
    }

    /// For admin's `/wasm`.
    pub fn status(&self) -> Vec<PluginStatus> {
        Vec::new()
    }
}

fn refusal() -> ConfigError {
    ConfigError::unsupported("vm_config", "built without the feature `wasm`")
}
