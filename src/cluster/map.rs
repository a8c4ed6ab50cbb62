//! All clusters of a Generation, by name.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::client::CallFilters;
use super::{Cluster, Runtime};
use crate::config::Snapshot;
use crate::config::cluster::Discovery;

type Clusters = HashMap<Arc<str>, Arc<Cluster>, FxBuildHasher>;

/// All clusters of a Generation by name.
#[derive(Debug, Default)]
pub struct ClusterMap {
    clusters: Clusters,
    /// Of those that have any, as calls of our own pass them.
    filters: Option<Arc<dyn CallFilters>>,
}

impl ClusterMap {
    /// The clusters of `snapshot`. One whose configuration is unchanged stays the same `Arc`; one that changed keeps
    /// hosts, statistics and where possible connections; one that is gone is retired. Runs on the control runtime.
    pub fn next(previous: &Self, snapshot: &Snapshot, runtime: &Runtime) -> Self {
        let next = Self::of(
            snapshot
                .clusters
                .iter()
                .map(|(name, config)| {
                    let cluster = match previous.get(name) {
                        Some(known) => {
                            let cluster = Cluster::update_from(known, Arc::clone(config), runtime);
                            // What served the old name must not serve the new one, which has no assignment.
                            if let Discovery::Eds {
                                service_name,
                                source,
                            } = &config.discovery
                                && known.config.discovery != config.discovery
                                && snapshot
                                    .endpoints
                                    .get(&source.specifier, service_name)
                                    .is_none()
                            {
                                cluster.clear_endpoints();
                            }
                            cluster
                        }
                        None => Cluster::new(Arc::clone(config), runtime),
                    };
                    (Arc::clone(name), cluster)
                })
                .collect(),
        );
        next.apply_endpoints(snapshot);
        for (name, cluster) in &previous.clusters {
            if !next.clusters.contains_key(name) {
                cluster.retire();
            }
        }
        next
    }

    fn of(clusters: Clusters) -> Self {
        Self {
            clusters,
            filters: None,
        }
    }

    /// The same clusters, where calls pass `filters`.
    #[must_use]
    pub fn with_filters(self, filters: Option<Arc<dyn CallFilters>>) -> Self {
        Self { filters, ..self }
    }

    /// The filters that calls pass.
    pub fn filters(&self) -> Option<&Arc<dyn CallFilters>> {
        self.filters.as_ref()
    }

    /// Applies the EDS assignments of `snapshot`: all that is needed where only endpoints changed.
    pub fn apply_endpoints(&self, snapshot: &Snapshot) {
        for cluster in self.clusters.values() {
            if let Discovery::Eds {
                service_name,
                source,
            } = &cluster.config.discovery
                && let Some(endpoints) = snapshot.endpoints.get(&source.specifier, service_name)
            {
                cluster.set_endpoints(endpoints);
            }
        }
    }

    /// The cluster called `name`.
    #[inline]
    pub fn get(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// All clusters, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Cluster>)> {
        self.clusters.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.clusters.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }
}

impl FromIterator<Arc<Cluster>> for ClusterMap {
    fn from_iter<I: IntoIterator<Item = Arc<Cluster>>>(clusters: I) -> Self {
        Self::of(
            clusters
                .into_iter()
                .map(|cluster| (Arc::clone(cluster.name()), cluster))
                .collect(),
        )
    }
}
