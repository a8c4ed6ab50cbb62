//! `--mode validate`: everything that can be told without opening a port or a connection.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::admission::{Trial, callable};
use super::process::xds_options;
use super::services::Services;
use crate::base::Workers;
use crate::bootstrap::Bootstrap;
use crate::cli::Options;
use crate::cluster::dns::Silent;
use crate::cluster::{self, ClusterMap};
use crate::filter;
use crate::telemetry::metrics::Registry;
use crate::wasm;

/// Checks what a start checks: that every source can be reached by construction, and that Wasm code at hand works.
///
/// Files that are watched (`path_config_source`) are not read, as in Envoy; they must be there, but that of
/// `lds_config`. Plugins see the static
/// clusters, as when they are tried at a start; in Envoy's own validation they see none, so that one that makes a call
/// while it is configured is refused there, and by nothing else.
pub(super) async fn validate(
    options: &Options,
    bootstrap: &Bootstrap,
    filters: &Arc<filter::Registry>,
) -> anyhow::Result<()> {
    let xds = xds_options(options, bootstrap, None);
    xds.check_for_validation()?;
    let workers = Workers::inline();
    let metrics = Registry::new(workers.handles().shards());
    let runtime = cluster::Runtime {
        registry: metrics.clone(),
        resolver: Arc::new(Silent),
        connection_ids: Arc::default(),
    };
    let clusters = ClusterMap::next(
        &ClusterMap::default(),
        &callable(&xds.static_clusters),
        &runtime,
    );
    let clusters = Arc::new(ArcSwap::from_pointee(clusters));
    let mut host = wasm::Options::new(workers.handles(), metrics, clusters);
    host.settings = bootstrap.wasm.clone();
    let plugins = wasm::Plugins::new(host);
    let trial = Trial::new(Arc::clone(filters), plugins.clone());
    trial.clusters(&xds.static_clusters).await?;
    trial.listeners(&xds.static_listeners).await?;
    Services::try_out(&plugins, &bootstrap.services).await?;
    Ok(())
}
