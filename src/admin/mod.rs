//! The admin interface: Envoy's paths, texts and JSON, over HTTP/1.1 and HTTP/2 on TCP or a unix socket.
//!
//! One file a family of endpoints; [`endpoints`] is the table of all. They read the proxy through [`Proxy`] and the
//! [`Context`], and change it only through [`Proxy`].

mod actions;
mod clusters;
mod config_dump;
mod counters;
mod endpoints;
mod families;
mod fixed;
mod home;
mod info;
mod listeners;
mod logging;
mod mask;
mod request;
mod runtime;
mod server;
mod stats;
mod wasm;
mod wasm_metrics;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::time::Instant;

pub use request::{Kind, Request, Response};
pub use server::{Running, start};
pub use stats::{hidden, tags};

use crate::bootstrap::Bootstrap;
use crate::cluster::ClusterStatus;
use crate::listener::BoundListener;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Registry;
use crate::telemetry::tags::TagExtractor;
use crate::wasm::{PluginStatus, RolloutCommand};
use crate::xds::ResourceType;
use crate::xds::status::{ResourceStatus, Unready};

/// `server.state`, and the body of `/ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Serving.
    Live,
    /// Its health check was failed on purpose.
    Draining,
    /// Clusters are waited for.
    PreInitializing,
    /// Listeners are.
    Initializing,
}

impl ServerState {
    /// As Envoy spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// The running proxy, as the admin interface sees it.
pub trait Proxy: Send + Sync + 'static {
    /// How far start-up has come, and whether the health check was failed.
    fn server_state(&self) -> ServerState;
    /// The version of a type's last fully accepted response.
    fn version(&self, kind: ResourceType) -> String;
    /// The dynamic resources of a type.
    fn resources(&self, kind: ResourceType) -> Vec<ResourceStatus>;
    /// What start-up waits for.
    fn unready(&self) -> Vec<Unready>;
    /// Every cluster, static ones too.
    fn clusters(&self) -> Vec<ClusterStatus>;
    /// Where the listeners listen.
    fn listeners(&self) -> Vec<BoundListener>;
    /// The Wasm plugins.
    fn plugins(&self) -> Vec<PluginStatus>;
    /// `/wasm/rollout`; how many trials of that plugin there are.
    fn rollout(&self, plugin: &str, command: RolloutCommand) -> usize;
    /// `/healthcheck/fail` and `/healthcheck/ok`.
    fn set_health_failed(&self, failed: bool);
    /// Responses begin to close their connections.
    fn start_drain(&self, inbound_only: bool) -> bool;
    /// Listeners stop accepting.
    fn stop_accepting(&self, inbound_only: bool);
    /// `--drain-time-s`.
    fn drain_time(&self) -> Duration;
    /// Statistics are flushed to their sinks, and what is written then is written (`stats_flush_on_admin`).
    fn flush_stats(&self);
    /// Access logs are opened again.
    fn reopen_logs(&self);
    /// The process ends, with exit code 0.
    fn quit(&self);
}

/// What the endpoints work on.
pub struct Context {
    /// The running proxy.
    pub proxy: Arc<dyn Proxy>,
    /// Node, static resources, runtime layers, `admin`.
    pub bootstrap: Arc<Bootstrap>,
    /// `command_line_options` of `/server_info`, as JSON.
    pub command_line: serde_json::Value,
    /// All metrics.
    pub metrics: Registry,
    /// Which parts of their names are labels.
    pub tags: TagExtractor,
    /// The process log; `None` where it is not ours.
    pub log: Option<Log>,
    /// For uptimes.
    pub started: Instant,
    /// When static resources were loaded.
    pub started_at: SystemTime,
    /// What `/runtime_modify` set.
    pub runtime: RwLock<std::collections::BTreeMap<String, String>>,
    /// `/stats/recentlookups/enable`.
    pub lookups: AtomicBool,
    families: families::Families,
}

impl Context {
    /// A context of a proxy that starts now.
    ///
    /// # Errors
    /// A regular expression of the bootstrap's `stats_tags` that does not compile.
    pub fn new(
        proxy: Arc<dyn Proxy>,
        bootstrap: Arc<Bootstrap>,
        command_line: serde_json::Value,
        metrics: Registry,
        cli_tags: &[(String, String)],
        log: Option<Log>,
    ) -> Result<Self, crate::config::ConfigError> {
        Ok(Self {
            tags: stats::tags(&bootstrap.stats, cli_tags)?,
            families: families::Families::new(&metrics, &bootstrap.runtime),
            proxy,
            bootstrap,
            command_line,
            metrics,
            log,
            started: Instant::now(),
            started_at: SystemTime::now(),
            runtime: RwLock::default(),
            lookups: AtomicBool::new(false),
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
