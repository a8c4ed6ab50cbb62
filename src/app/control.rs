//! The one writer of the data side: turns snapshots and finished plugins into Generations.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::cluster::ClusterMap;
use crate::config::Snapshot;
use crate::config::cluster::Discovery;
use crate::generation::{Builder, CurrentGeneration};
use crate::listener::{BindError, ListenerManager};
use crate::wasm::Plugins;
use crate::xds::Progress;

/// How often replaced Generations are looked at again.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the first opening of the listeners waits for names to resolve (Envoy waits for the initial clusters too).
const FIRST_RESOLUTION: Duration = Duration::from_secs(5);

/// What others ask of the control loop.
#[derive(Debug)]
pub(super) enum Command {
    /// Stop accepting: on all listeners, or on the inbound ones.
    StopAccepting {
        inbound_only: bool,
        done: oneshot::Sender<()>,
    },
}

/// How far start-up has come, as `/ready` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Clusters are waited for.
    PreInitializing,
    /// Listeners are.
    Initializing,
    /// Serving.
    Live,
}

/// The loop's inputs and outputs.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) progress: watch::Receiver<Progress>,
    /// Listeners that wait for routes or discovered filters.
    pub(super) warming: watch::Receiver<BTreeSet<Arc<str>>>,
    pub(super) plugins: watch::Receiver<u64>,
    pub(super) host: Plugins,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) builder: Builder,
    pub(super) current: Arc<CurrentGeneration>,
    pub(super) manager: ListenerManager,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) bind_errors: watch::Sender<Vec<Arc<BindError>>>,
}

impl Control {
    /// Runs until the configuration's source is gone. There must be a first Generation: see [`Control::advance`].
    pub(super) async fn run(mut self) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = false;
        loop {
            if !open {
                open = self.open_when_ready().await;
            }
            self.count();
            let advance = tokio::select! {
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
                Ok(()) = self.plugins.changed() => true,
                Ok(()) = self.progress.changed() => false,
                Ok(()) = self.warming.changed() => false,
                Some(command) = self.commands.recv() => {
                    self.obey(command);
                    false
                }
                _ = sweep.tick() => {
                    self.current.sweep();
                    false
                }
            };
            if advance {
                self.advance();
                if open {
                    self.reconcile();
                }
            }
        }
    }

    /// Builds the Generation of the latest snapshot and makes it current.
    pub(super) fn advance(&mut self) {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.plugins.mark_unchanged();
        let next = self.builder.next(&self.current, snapshot);
        tracing::debug!(
            target: "config",
            generation = next.number,
            listeners = next.listeners.len(),
            clusters = next.clusters.len(),
            "new generation"
        );
        self.current.swap(next);
    }

    fn count(&mut self) {
        let warming = self.warming.borrow_and_update();
        self.manager.count(&self.current.load(), &warming);
    }

    fn reconcile(&mut self) {
        let errors = self.manager.apply(&self.current.load());
        self.bind_errors
            .send_replace(errors.into_iter().map(Arc::new).collect());
    }

    /// Opens the listeners once the first configuration is complete. `true` once they are open.
    async fn open_when_ready(&mut self) -> bool {
        let progress = *self.progress.borrow_and_update();
        // Progress may have been heard before the snapshot that it speaks of.
        if self.snapshots.has_changed().unwrap_or(false) {
            self.advance();
        }
        let first_plugins = {
            let current = self.current.load();
            let waits = !current.warming.is_empty() || !current.warming_clusters.is_empty();
            waits || self.host.holds_pending()
        };
        let readiness = match progress {
            Progress::Clusters => Readiness::PreInitializing,
            Progress::Listeners => Readiness::Initializing,
            Progress::Ready if first_plugins => Readiness::Initializing,
            Progress::Ready => Readiness::Live,
        };
        if readiness != Readiness::Live {
            self.readiness
                .send_if_modified(|current| std::mem::replace(current, readiness) != readiness);
            return false;
        }
        let clusters = Arc::clone(&self.current.load().clusters);
        resolved(&clusters).await;
        self.reconcile();
        self.manager.workers_started();
        self.readiness.send_replace(Readiness::Live);
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::StopAccepting { inbound_only, done } => {
                let generation = self.current.load_full();
                self.manager.stop_accepting(&generation, inbound_only);
                let _ = done.send(());
            }
        }
    }
}

/// Waits until every cluster that resolves names has hosts or has failed to find any, but not for ever. Assignments were
/// waited for before.
async fn resolved(clusters: &ClusterMap) {
    let all = async {
        for (_, cluster) in clusters.iter() {
            match cluster.config.discovery {
                Discovery::Static(_) | Discovery::Eds { .. } => continue,
                Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {}
            }
            // A cluster that is gone will not warm.
            let _ = cluster.warmed().wait_for(|warm| *warm).await;
        }
    };
    if tokio::time::timeout(FIRST_RESOLUTION, all).await.is_err() {
        tracing::warn!(target: "config", "some names of clusters are not resolved yet; listeners open without them");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::cluster::Cluster;
    use crate::cluster::dns::Silent;
    use crate::cluster::testing::{config, eds, endpoint, endpoints, runtime_with};
    use crate::config::endpoint::Address;

    #[tokio::test(start_paused = true)]
    async fn the_first_opening_waits_for_names_alone_and_not_for_ever() {
        let runtime = runtime_with(Arc::new(Silent));
        let without_hosts = Cluster::new(Arc::new(eds("a")), &runtime);
        assert!(!*without_hosts.warmed().borrow());
        let clusters = ClusterMap::from_iter([Arc::clone(&without_hosts)]);
        assert_eq!(resolved(&clusters).now_or_never(), Some(()));

        let names = endpoints([endpoint(Address::Name("a.test".into(), 80))]);
        let named = config("b", Discovery::StrictDns(names));
        let named = Cluster::new(Arc::new(named), &runtime);
        let clusters = ClusterMap::from_iter([without_hosts, named]);
        assert_eq!(resolved(&clusters).now_or_never(), None);
        let began = tokio::time::Instant::now();
        resolved(&clusters).await;
        assert_eq!(began.elapsed(), FIRST_RESOLUTION);
    }
}
