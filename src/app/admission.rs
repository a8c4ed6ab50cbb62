//! What is tried before a resource is acknowledged: the filters in it that want to be (Wasm code at hand).

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};

use crate::config::cluster::Discovery;
use crate::config::extension::HttpFilterConfig;
use crate::config::http_connection_manager::{FilterSource, RouteSource};
use crate::config::listener::{FilterChain, Terminal};
use crate::config::{Cluster, ConfigError, Listener, RouteConfig, Snapshot};
use crate::filter::Registry;
use crate::wasm::Plugins;
use crate::xds::{Admission, Candidate};

/// Tries filters through their factories.
#[derive(Debug)]
pub(super) struct Trial {
    filters: Arc<Registry>,
    plugins: Plugins,
}

impl Trial {
    pub(super) fn new(filters: Arc<Registry>, plugins: Plugins) -> Self {
        Self { filters, plugins }
    }

    fn one(
        &self,
        config: &HttpFilterConfig,
        path: String,
    ) -> Option<BoxFuture<'static, Result<(), ConfigError>>> {
        let trial = self.filters.admit(config, &self.plugins)?;
        Some(
            trial
                .map(move |result| result.map_err(|error| error.at(&path)))
                .boxed(),
        )
    }

    /// Tries what static listeners hold.
    ///
    /// # Errors
    /// Names the listener and the filter.
    pub(super) async fn listeners(&self, listeners: &[Arc<Listener>]) -> Result<(), ConfigError> {
        for listener in listeners {
            if let Some(trial) = self.admit(&Candidate::Listener(Arc::clone(listener))) {
                trial.await.map_err(|error| {
                    error.at(&format!("static_resources.listeners[{}]", listener.name))
                })?;
            }
        }
        Ok(())
    }

    /// Tries what static clusters hold.
    ///
    /// # Errors
    /// Names the cluster and the filter.
    pub(super) async fn clusters(&self, clusters: &[Arc<Cluster>]) -> Result<(), ConfigError> {
        for cluster in clusters {
            if let Some(trial) = self.admit(&Candidate::Cluster(Arc::clone(cluster))) {
                trial.await.map_err(|error| {
                    error.at(&format!("static_resources.clusters[{}]", cluster.name))
                })?;
            }
        }
        Ok(())
    }

    fn cluster(&self, cluster: &Cluster) -> Vec<BoxFuture<'static, Result<(), ConfigError>>> {
        const FIELD: &str = "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions].http_filters";
        let filters = cluster.upstream_filters.iter().flatten().enumerate();
        filters
            .filter_map(|(index, filter)| match &filter.config {
                FilterSource::Inline(config) => self.one(config, format!("{FIELD}[{index}]")),
                FilterSource::Discovered { .. } => None,
            })
            .collect()
    }

    fn listener(&self, listener: &Listener) -> Vec<BoxFuture<'static, Result<(), ConfigError>>> {
        let chains = listener
            .filter_chains
            .iter()
            .enumerate()
            .map(|(index, chain)| (format!("filter_chains[{index}]"), chain));
        let default = listener
            .default_filter_chain
            .iter()
            .map(|chain| ("default_filter_chain".to_owned(), chain));
        chains
            .chain(default)
            .flat_map(|(path, chain)| self.chain(&path, chain))
            .collect()
    }

    fn chain(
        &self,
        path: &str,
        chain: &FilterChain,
    ) -> Vec<BoxFuture<'static, Result<(), ConfigError>>> {
        let mut trials: Vec<_> = chain
            .network
            .iter()
            .enumerate()
            .filter_map(|(index, filter)| {
                self.one(&filter.config, format!("{path}.filters[{index}]"))
            })
            .collect();
        let (logs, http) = match &chain.terminal {
            Terminal::Http(http) => (&http.plugin_logs, Some(http)),
            Terminal::Tcp(tcp) => (&tcp.plugin_logs, None),
        };
        let logs = logs.iter();
        trials.extend(
            logs.filter_map(|log| {
                self.one(&log.config, format!("{path}.access_log[{}]", log.index))
            }),
        );
        let Some(http) = http else { return trials };
        let filters = http.http_filters.iter().enumerate();
        trials.extend(filters.filter_map(|(index, filter)| {
            let config = match &filter.config {
                FilterSource::Inline(config) => config,
                FilterSource::Discovered { default, .. } => default.as_ref()?,
            };
            self.one(config, format!("{path}.http_filters[{index}]"))
        }));
        if let RouteSource::Inline(routes) = &http.routes {
            trials.extend(self.routes(&format!("{path}.route_config."), routes));
        }
        trials
    }

    fn routes(
        &self,
        path: &str,
        routes: &RouteConfig,
    ) -> Vec<BoxFuture<'static, Result<(), ConfigError>>> {
        let mut trials = Vec::new();
        routes.each_per_filter(&mut |place, per_filter| {
            for (name, config) in per_filter {
                let path = format!("{path}{place}typed_per_filter_config[{name}]");
                let config = config.config.as_ref();
                trials.extend(config.and_then(|config| self.one(config, path)));
            }
        });
        trials
    }
}

/// What plugins of static listeners may call while they are tried: the static clusters that need no control plane.
pub(super) fn callable(clusters: &[Arc<Cluster>]) -> Snapshot {
    let without_eds = clusters
        .iter()
        .filter(|cluster| !matches!(cluster.discovery, Discovery::Eds { .. }));
    Snapshot {
        clusters: without_eds
            .map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster)))
            .collect(),
        ..Snapshot::default()
    }
}

impl Admission for Trial {
    fn admit(&self, candidate: &Candidate) -> Option<BoxFuture<'static, Result<(), ConfigError>>> {
        let trials = match candidate {
            Candidate::Listener(listener) => self.listener(listener),
            Candidate::Extension(_, config) => self
                .one(config, "typed_config".to_owned())
                .into_iter()
                .collect(),
            Candidate::Route(routes) => self.routes("", routes),
            Candidate::Cluster(cluster) => self.cluster(cluster),
        };
        if trials.is_empty() {
            return None;
        }
        Some(
            try_join_all(trials)
                .map(|result| result.map(|_| ()))
                .boxed(),
        )
    }
}
