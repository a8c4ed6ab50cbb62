//! The running proxy as its admin interface sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::control::Readiness;
use super::server::Server;
use crate::admin::{Proxy, ServerState};
use crate::base::task;
use crate::cluster::ClusterStatus;
use crate::generation::Generation;
use crate::listener::BoundListener;
use crate::wasm::{PluginStatus, RolloutCommand};
use crate::xds::ResourceType;
use crate::xds::status::{ResourceStatus, Unready};

/// Lends a [`Server`] to the admin interface.
#[derive(Debug)]
pub(super) struct View {
    pub(super) server: Arc<Server>,
    /// Rung by `/quitquitquit`.
    pub(super) quit: Arc<Notify>,
}

impl View {
    /// What the control side believes active waits where the data side has no plugin for it yet, or where the start is
    /// not complete.
    fn show_what_waits(&self, listener: &mut ResourceStatus, generation: &Generation, live: bool) {
        let waits = generation.warming.contains_key(&listener.name);
        if !waits && live {
            return;
        }
        let accepted = listener.active.take();
        listener.warming = listener.warming.take().or(accepted);
        if waits && let Some(served) = generation.listeners.get(&listener.name) {
            let name = &listener.name;
            listener.active = self.server.xds.replaced_listener(name, &served.config);
        }
    }
}

impl Proxy for View {
    fn server_state(&self) -> ServerState {
        if self.server.state.health_failed() {
            return ServerState::Draining;
        }
        match *self.server.readiness().borrow() {
            Readiness::PreInitializing => ServerState::PreInitializing,
            Readiness::Initializing => ServerState::Initializing,
            Readiness::Live => ServerState::Live,
        }
    }

    fn version(&self, kind: ResourceType) -> String {
        self.server.xds.version(kind)
    }

    fn resources(&self, kind: ResourceType) -> Vec<ResourceStatus> {
        let mut resources = self.server.xds.resources(kind);
        if kind == ResourceType::Listener {
            let generation = self.server.current.load_full();
            let live = *self.server.readiness().borrow() == Readiness::Live;
            for resource in &mut resources {
                self.show_what_waits(resource, &generation, live);
            }
        }
        resources
    }

    fn unready(&self) -> Vec<Unready> {
        let mut unready = self.server.xds.unready();
        let current = self.server.current.load();
        let targets = |plugins| vec!["target RemoteAsyncDataProvider".to_owned(); plugins];
        for (name, plugins) in &current.warming {
            unready.push(Unready::listener(name, targets(*plugins)));
        }
        for name in &current.warming_clusters {
            unready.push(Unready {
                name: format!("cluster {name}"),
                targets: targets(1),
            });
        }
        unready
    }

    fn clusters(&self) -> Vec<ClusterStatus> {
        let generation = self.server.current.load_full();
        generation
            .clusters
            .iter()
            .map(|(_, cluster)| cluster.status())
            .collect()
    }

    fn listeners(&self) -> Vec<BoundListener> {
        self.server.bound().borrow().clone()
    }

    fn plugins(&self) -> Vec<PluginStatus> {
        self.server.plugins.status()
    }

    fn rollout(&self, plugin: &str, command: RolloutCommand) -> usize {
        self.server.plugins.rollout(plugin, command)
    }

    fn set_health_failed(&self, failed: bool) {
        self.server.state.set_health_failed(failed);
        self.server
            .stats
            .set(super::stats::server::LIVE, u64::from(!failed));
    }

    fn start_drain(&self, inbound_only: bool) -> bool {
        self.server.start_drain(inbound_only)
    }

    fn stop_accepting(&self, inbound_only: bool) {
        let server = Arc::clone(&self.server);
        task::spawn("stop accepting", async move {
            server.stop_accepting(inbound_only).await;
        });
    }

    fn drain_time(&self) -> Duration {
        self.server.state.drain_time()
    }

    fn flush_stats(&self) {
        self.server.flush_stats();
    }

    fn reopen_logs(&self) {
        self.server.sinks.reopen();
    }

    fn quit(&self) {
        self.quit.notify_one();
    }
}
