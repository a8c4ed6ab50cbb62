//! `--mode validate`: everything that can be told without opening a port.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::admission::Trial;
use super::services::Services;
use crate::base::Workers;
use crate::bootstrap::Bootstrap;
use crate::cli::Options;
use crate::cluster::ClusterMap;
use crate::filter;
use crate::telemetry::metrics::Registry;
use crate::wasm;

/// Validates what the bootstrap holds, Wasm code at hand included, and says so on standard output. Files that are
/// watched (`path_config_source`) are not read, as in Envoy.
pub(super) async fn validate(
    options: &Options,
    bootstrap: &Bootstrap,
    filters: &Arc<filter::Registry>,
) -> anyhow::Result<()> {
    let workers = Workers::inline();
    let metrics = Registry::new(workers.handles().shards());
    let clusters = Arc::new(ArcSwap::from_pointee(ClusterMap::default()));
    let mut host = wasm::Options::new(workers.handles(), metrics, clusters);
    host.settings = bootstrap.wasm.clone();
    let plugins = wasm::Plugins::new(host);
    let trial = Trial::new(Arc::clone(filters), plugins.clone());
    let listeners: Vec<_> = bootstrap
        .listeners
        .iter()
        .map(|listener| Arc::clone(&listener.value))
        .collect();
    trial.listeners(&listeners).await?;
    Services::try_out(&plugins, &bootstrap.services).await?;
    let path = options
        .config_path
        .as_ref()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    println!("configuration '{path}' OK");
    Ok(())
}
