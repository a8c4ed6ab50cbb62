//! Which version of which plugin serves: for a filter, or for a route that puts another in its place.

use std::sync::Arc;

use super::lose;
use crate::filter::BuildContext;
use crate::wasm::rollout::{Part, Trial};
use crate::wasm::{OnLoss, Place, Plugin, PluginSpec, Resolution};

/// One version of one plugin.
#[derive(Debug)]
pub(in crate::filter) struct Choice {
    spec: Arc<PluginSpec>,
    /// `None`: no version of it was ever ready.
    plugin: Option<Arc<Plugin>>,
    /// A version on trial beside it.
    trial: Option<Arc<Trial>>,
    pub(super) on_loss: OnLoss,
    /// False where neither has a callback that hears of a stream's end.
    pub(super) hears_ends: bool,
}

impl Choice {
    /// Of the filter whose slot is `slot`.
    pub(super) fn new(
        slot: usize,
        spec: Arc<PluginSpec>,
        plugin: Option<Arc<Plugin>>,
        trial: Option<Arc<Trial>>,
    ) -> Self {
        let hears_ends = plugin.as_ref().is_some_and(|plugin| plugin.hears_ends())
            || trial.as_ref().is_some_and(|trial| trial.hears_ends());
        Self {
            hears_ends,
            spec,
            plugin,
            trial,
            on_loss: OnLoss::new(move |stream, direction, pump| {
                lose(slot, stream, direction, pump);
            }),
        }
    }

    /// What serves `slot` now, or a slot of its own where another filter of the chain has that.
    pub(in crate::filter) fn resolve(
        slot: String,
        spec: &Arc<PluginSpec>,
        context: &BuildContext<'_>,
    ) -> Self {
        let chain = context.chain;
        let current = chain.plugins.map(|plugins| plugins.current(spec));
        let spec = current.as_ref().unwrap_or(spec);
        let slot = chain.warmth.slot(slot, spec);
        let mut trial = None;
        let plugin = match chain.plugins.map(|plugins| plugins.ask(&slot, spec)) {
            Some(Resolution::Ready(plugin) | Resolution::Previous(plugin)) => Some(plugin),
            Some(Resolution::Trial(plugin, running)) => {
                trial = Some(running);
                Some(plugin)
            }
            Some(Resolution::Pending) => {
                chain.warmth.wait();
                None
            }
            Some(Resolution::Failed(_)) | None => None,
        };
        // What serves decides, also how it fails: a version that is still loading has no say.
        let spec = plugin.as_ref().map_or(spec, |plugin| plugin.spec());
        Self::new(context.slot, Arc::clone(spec), plugin, trial)
    }

    /// The version that a stream begins with, and its place on this worker.
    #[inline]
    pub(in crate::filter) fn pick(&self) -> (Option<(&Arc<Plugin>, Place)>, Option<Part>) {
        let Some(trial) = &self.trial else {
            let plugin = self.plugin.as_ref();
            let found = plugin.and_then(|plugin| Some((plugin, plugin.place()?)));
            return (found, None);
        };
        for arm in trial.pick() {
            let plugin = trial.plugin(arm);
            if let Some(place) = plugin.place() {
                return (Some((plugin, place)), Some(trial.part(arm)));
            }
        }
        (None, None)
    }

    /// The configuration of what serves, or of what is waited for.
    pub(in crate::filter) fn spec(&self) -> &Arc<PluginSpec> {
        &self.spec
    }

    /// What serves.
    pub(in crate::filter) fn plugin(&self) -> Option<&Arc<Plugin>> {
        self.plugin.as_ref()
    }
}
