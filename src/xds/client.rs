//! The task that moves bytes and keeps time; see the module's figure.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::ResourceType;
use super::admission::Admission;
use super::ads::{Request, Response};
use super::engine::{ChannelId, Effects, Engine, Origin, Question};
use super::file::File;
use super::status::Status;
use super::stream::Stream;
use super::transport::Target;
use crate::base::task::OwnedTask;
use crate::config::cluster::{ConfigSource, GrpcService};
use crate::config::{Cluster, ConfigError, Extensions, Listener, Snapshot};
use crate::pb;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::telemetry::metrics::{Registry, Stat, StatSet};

/// Events that may wait: the back-pressure on the streams.
const EVENTS: usize = 64;

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
    warming: watch::Receiver<BTreeSet<Arc<str>>>,
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
        let clusters: FxHashMap<Arc<str>, Arc<Cluster>> = options
            .static_clusters
            .iter()
            .map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster)))
            .collect();
        let unknown_fields = options.unknown_fields;
        let unknown_fields_stat = options.unknown_fields_stat.clone();
        let mut engine = Engine::new(options, extensions, admission, registry, Instant::now())?;
        let effects = engine.settle(Instant::now());
        let (snapshots, snapshots_watch) =
            watch::channel(effects.snapshot.clone().unwrap_or_default());
        let (progress, progress_watch) = watch::channel(engine.progress());
        let (warming, warming_watch) = watch::channel(engine.warming_listeners().clone());
        let status = engine.status();
        let (events, inbox) = mpsc::channel(EVENTS);
        let driver = Driver {
            engine,
            clusters,
            unknown_fields,
            unknown_fields_stat,
            tasks: FxHashMap::default(),
            admissions: FuturesUnordered::new(),
            events,
            inbox,
            snapshots,
            progress,
            warming,
        };
        Ok(Self {
            snapshots: snapshots_watch,
            progress: progress_watch,
            warming: warming_watch,
            status,
            _task: OwnedTask::spawn("xds", driver.run(effects)),
        })
    }

    /// What is to be served. The first value holds the static resources that need nothing else.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// How far the initial configuration has come.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The listeners that wait for routes or discovered filters.
    pub fn warming_listeners(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.warming.clone()
    }

    /// For the admin endpoints.
    pub fn status(&self) -> Status {
        self.status.clone()
    }
}

/// What the tasks of streams and files report.
pub(super) enum Event {
    /// A stream is open; what is to be said on it goes into the sender.
    Opened(ChannelId, mpsc::UnboundedSender<Request>),
    /// A response.
    Received(ChannelId, Response),
    /// A stream broke, or could not be opened.
    Closed(ChannelId),
    /// A file was read.
    Loaded(ChannelId, Result<Box<DiscoveryResponse>, String>),
}

/// The task of one channel.
struct Task {
    requests: Option<mpsc::UnboundedSender<Request>>,
    reload: Option<mpsc::UnboundedSender<()>>,
    _task: OwnedTask,
}

type Refusals = Vec<(Arc<str>, ConfigError)>;

/// Carries events to the engine and its effects out.
struct Driver {
    engine: Engine,
    clusters: FxHashMap<Arc<str>, Arc<Cluster>>,
    unknown_fields: UnknownFields,
    unknown_fields_stat: Option<(Arc<StatSet>, Stat)>,
    tasks: FxHashMap<ChannelId, Task>,
    admissions: FuturesUnordered<BoxFuture<'static, (u64, Refusals)>>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    progress: watch::Sender<Progress>,
    warming: watch::Sender<BTreeSet<Arc<str>>>,
}

impl Driver {
    async fn run(mut self, first: Effects) {
        self.carry_out(first);
        loop {
            let deadline = self.engine.deadline();
            let expired = async move {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.inbox.recv() => {
                    let Some(event) = event else { return };
                    self.take_in(event);
                }
                Some((judgement, refused)) = self.admissions.next() => {
                    self.engine.admitted(judgement, &refused, Instant::now());
                }
                () = expired => {}
            }
            // All that is there already, before anything follows from it: one world for a burst of updates.
            while let Ok(event) = self.inbox.try_recv() {
                self.take_in(event);
            }
            let effects = self.engine.settle(Instant::now());
            self.carry_out(effects);
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Opened(id, requests) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.requests = Some(requests);
                    self.engine.opened(id);
                }
            }
            Event::Received(id, response) => self.engine.received(id, response),
            Event::Closed(id) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.requests = None;
                    self.engine.closed(id);
                }
            }
            Event::Loaded(id, file) => self.engine.loaded(id, file.map(|response| *response)),
        }
    }

    fn carry_out(&mut self, effects: Effects) {
        for id in effects.close {
            self.tasks.remove(&id);
        }
        for (id, origin) in effects.open {
            self.open(id, origin);
        }
        for (id, request) in effects.requests {
            if let Some(requests) = self.tasks.get(&id).and_then(|task| task.requests.as_ref()) {
                // A stream that has just ended says so itself.
                let _ = requests.send(request);
            }
        }
        for Question { judgement, of } in effects.admissions {
            self.admissions.push(Box::pin(async move {
                let mut refused = Refusals::new();
                let mut asked: FuturesUnordered<_> = of
                    .into_iter()
                    .map(|(name, admitted)| async move { (name, admitted.await) })
                    .collect();
                while let Some((name, verdict)) = asked.next().await {
                    if let Err(error) = verdict {
                        refused.push((name, error));
                    }
                }
                (judgement, refused)
            }));
        }
        if let Some(snapshot) = effects.snapshot {
            self.snapshots.send_replace(snapshot);
        }
        let now = self.engine.progress();
        self.progress
            .send_if_modified(|progress| std::mem::replace(progress, now) != now);
        let warming = self.engine.warming_listeners();
        self.warming.send_if_modified(|known| {
            let changed = known != warming;
            if changed {
                known.clone_from(warming);
            }
            changed
        });
    }

    fn open(&mut self, id: ChannelId, origin: Origin) {
        if let Some(task) = self.tasks.get(&id) {
            if let Some(reload) = &task.reload {
                // A file whose task has ended has nobody to serve.
                let _ = reload.send(());
            }
            return;
        }
        let task = match origin {
            Origin::Ads(api) => self.stream(id, api, None),
            Origin::Grpc(kind, api) => self.stream(id, api, Some(kind)),
            Origin::File(_, path, directory) => {
                let (moved, reload) = mpsc::unbounded_channel();
                let file = File {
                    channel: id,
                    path: PathBuf::from(&*path),
                    directory: directory.map(|directory| PathBuf::from(&*directory)),
                    unknown_fields: self.unknown_fields,
                    unknown_fields_stat: self.unknown_fields_stat.clone(),
                    events: self.events.clone(),
                    reload,
                    moved: moved.clone(),
                };
                Some(Task {
                    requests: None,
                    reload: Some(moved),
                    _task: OwnedTask::spawn("xds_file", file.run()),
                })
            }
        };
        if let Some(task) = task {
            self.tasks.insert(id, task);
        }
    }

    fn stream(&self, id: ChannelId, api: ApiSource, kind: Option<ResourceType>) -> Option<Task> {
        let target = match api.service.target_uri.clone() {
            Some(uri) => Target::of_uri(&uri, api.service),
            // The engine has checked that the cluster exists.
            None => Target::of_cluster(self.clusters.get(&api.service.cluster)?, api.service),
        };
        let stream = Stream {
            channel: id,
            target,
            delta: api.delta,
            kind,
            events: self.events.clone(),
        };
        Some(Task {
            requests: None,
            reload: None,
            _task: OwnedTask::spawn("xds_stream", stream.run()),
        })
    }
}
