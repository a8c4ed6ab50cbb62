//! The task that moves bytes and keeps time; see the module's figure.

use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Admission;
use super::status::Status;
use crate::base::task::OwnedTask;
use crate::config::cluster::{ConfigSource, GrpcService};
use crate::config::{Cluster, ConfigError, Extensions, Listener, Snapshot};
use crate::pb;
use crate::telemetry::metrics::{Registry, Stat, StatSet};

/// What the client needs of the bootstrap and the command line.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who we are.
    pub node: pb::Node,
    /// `dynamic_resources.ads_config`.
    pub ads: Option<ApiSource>,
    /// `dynamic_resources.cds_config`.
    pub cds: Option<ConfigSource>,
    /// `dynamic_resources.lds_config`.
    pub lds: Option<ConfigSource>,
    /// `static_resources.clusters`: part of every snapshot; control planes are reached through them.
    pub static_clusters: Vec<Arc<Cluster>>,
    /// `static_resources.listeners`; may refer to RDS and ECDS.
    pub static_listeners: Vec<Arc<Listener>>,
    /// `--reject-unknown-dynamic-fields` and the like.
    pub unknown_fields: UnknownFields,
    /// Where an accepted unknown field is counted (`server.dynamic_unknown_fields`).
    pub unknown_fields_stat: Option<(Arc<StatSet>, Stat)>,
}

/// A gRPC control plane.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiSource {
    /// `DELTA_GRPC`.
    pub delta: bool,
    /// Where.
    pub service: GrpcService,
    /// `set_node_on_first_message_only`.
    pub node_on_first_message_only: bool,
}

/// What to do with a field that this build's API does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// Accept, warn, count (Envoy's default).
    #[default]
    Warn,
    /// `--ignore-unknown-dynamic-fields`.
    Ignore,
    /// `--reject-unknown-dynamic-fields`.
    Reject,
}

/// How far the initial configuration has come; it never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Clusters, or the endpoints of some, are still waited for: Envoy's `PRE_INITIALIZING`.
    Clusters,
    /// Listeners, or what they refer to, are: `INITIALIZING`.
    Listeners,
    /// All that was asked for is here or has timed out.
    Ready,
}

/// The running client. Dropping it ends its tasks; what it published stays.
#[derive(Debug)]
pub struct Client {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    progress: watch::Receiver<Progress>,
    status: Status,
    _task: OwnedTask,
}

impl Client {
    /// Starts on the current runtime.
    ///
    /// # Errors
    /// A source that cannot be reached by construction: an unknown cluster, ADS without `ads_config`, no such file.
    pub fn start(
        options: Options,
        extensions: Arc<dyn Extensions>,
        admission: Arc<dyn Admission>,
        registry: &Registry,
    ) -> Result<Self, ConfigError> {
        let _ = (options, extensions, admission, registry);
        Err(ConfigError::unsupported("dynamic_resources", "not yet"))
    }

    /// What is to be served. The first value holds the static resources that need nothing else.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// How far the initial configuration has come.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// For the admin endpoints.
    pub fn status(&self) -> Status {
        self.status.clone()
    }
}
