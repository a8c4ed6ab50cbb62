//! The HTTP filters of clusters, brought to life across Generations, and clusters that wait for a plugin among them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Builder;
use crate::cluster::ClusterMap;
use crate::config::http_connection_manager::HttpFilter;
use crate::config::listener::TrafficDirection;
use crate::config::{Cluster, Snapshot};
use crate::filter::HttpFilterChain;
use crate::filter::factory::{ChainContext, Warmth};
use crate::filter::upstream::UpstreamFilters;
use crate::wasm::slot::{self, Asked};

/// Filters of a cluster that serve.
#[derive(Debug)]
pub(super) struct LiveFilters {
    config: Vec<HttpFilter>,
    chain: Arc<HttpFilterChain>,
    warmth: Warmth,
    /// The number that the Wasm host rang last before they were built.
    plugins: u64,
}

/// What became of the filters of a snapshot's clusters.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    /// The clusters whose filters wait for a plugin's first version, with the predecessor that goes on meanwhile.
    held: BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
    /// Those without a predecessor: they are not served.
    pub(super) absent: BTreeSet<Arc<str>>,
}

impl Upstreams {
    /// The snapshot with what is served of its clusters.
    pub(super) fn served<'a>(&self, snapshot: &'a Snapshot) -> Cow<'a, Snapshot> {
        if self.held.is_empty() {
            return Cow::Borrowed(snapshot);
        }
        let mut served = snapshot.clone();
        for (name, predecessor) in &self.held {
            match predecessor {
                Some(config) => served.clusters.insert(Arc::clone(name), Arc::clone(config)),
                None => served.clusters.remove(name),
            };
        }
        Cow::Owned(served)
    }

    /// The clusters that wait.
    pub(super) fn waiting(&self) -> BTreeSet<Arc<str>> {
        self.held.keys().cloned().collect()
    }
}

impl Builder {
    /// Brings the filters of the snapshot's clusters to life; those that have not changed stay, and where one waits for a
    /// plugin, those of its cluster before, with their plugins of now. `previous` are the clusters that are served so far.
    pub(super) fn upstreams(
        &mut self,
        previous: &ClusterMap,
        snapshot: &Snapshot,
        plugins: u64,
    ) -> Upstreams {
        let mut upstreams = Upstreams::default();
        let mut known = std::mem::take(&mut self.upstream_filters);
        for (name, cluster) in &snapshot.clusters {
            let filters = match cluster.upstream_filters.as_deref() {
                None | Some([]) => continue,
                Some(filters) => filters,
            };
            let before = known.remove(name);
            let unchanged = before.as_ref().is_some_and(|before| {
                before.config == filters && (before.warmth.is_still() || before.plugins == plugins)
            });
            let live = if unchanged {
                before
            } else {
                let made = self.live_filters(name, filters, plugins);
                if made.warmth.is_cold() {
                    let predecessor = previous
                        .get(name)
                        .map(|cluster| Arc::clone(&cluster.config));
                    if predecessor.is_none() {
                        upstreams.absent.insert(Arc::clone(name));
                    }
                    upstreams.held.insert(Arc::clone(name), predecessor);
                    before.map(|before| self.going_on(name, before, plugins))
                } else {
                    Some(made)
                }
            };
            if let Some(live) = live {
                self.upstream_filters.insert(Arc::clone(name), live);
            }
        }
        upstreams
    }

    /// Filters that go on while their successors wait.
    fn going_on(&self, cluster: &str, before: LiveFilters, plugins: u64) -> LiveFilters {
        if before.warmth.is_still() || before.plugins == plugins {
            return before;
        }
        self.live_filters(cluster, &before.config, plugins)
    }

    /// What the filters that serve asked the Wasm host for.
    pub(super) fn asked_upstream(&self) -> BTreeSet<Asked> {
        let live = self.upstream_filters.values();
        live.flat_map(|live| live.warmth.asked()).collect()
    }

    fn live_filters(&self, cluster: &str, filters: &[HttpFilter], plugins: u64) -> LiveFilters {
        let warmth = Warmth::default();
        let place = format!("{}/{}", slot::CLUSTER, slot::part(cluster));
        let context = ChainContext {
            stat_prefix: "",
            place: &place,
            direction: TrafficDirection::Unspecified,
            listener_metadata: None,
            metrics: &self.parts.metrics,
            node: &self.parts.node,
            plugins: Some(&self.parts.plugins),
            warmth: &warmth,
            routes: None,
            health_failed: None,
        };
        let chain = HttpFilterChain::build_upstream(&self.parts.filters, filters, &context);
        LiveFilters {
            config: filters.to_vec(),
            chain: Arc::new(chain),
            warmth,
            plugins,
        }
    }

    /// The filters that serve: those of the last Generation where they are the same.
    pub(super) fn serving_filters(&self) -> Arc<UpstreamFilters> {
        let live = self.upstream_filters.iter();
        let serving: UpstreamFilters = live
            .map(|(name, live)| (Arc::clone(name), Arc::clone(&live.chain)))
            .collect();
        if serving.same(&self.filters_before) {
            return Arc::clone(&self.filters_before);
        }
        Arc::new(serving)
    }
}
