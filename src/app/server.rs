//! A running proxy, in parts that its owner can hold: the binary, the demonstration, and tests in process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::admission::{Trial, callable};
use super::control::{Command, Control, Readiness};
use super::flush::Flush;
use super::services::Services;
use super::stats::{generation as generation_stat, server as stat};
use crate::base::task::OwnedTask;
use crate::base::{Workers, memory};
use crate::bootstrap;
use crate::cluster;
use crate::config::WasmSettings;
use crate::filter;
use crate::generation::{Builder, CurrentGeneration, Parts};
use crate::listener::{
    BindError, BoundListener, DrainStrategy, ListenerManager, ServeContext, ServerState,
};
use crate::stream::access_log::{SinkOptions, Sinks};
use crate::telemetry::metrics::{Registry, StatSet};
use crate::wasm;
use crate::xds;

/// How long connections may take to end when they are cut: a plugin may be at work for one.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a proxy is made of.
#[derive(Debug)]
pub struct Setup {
    /// Who we are, where the configuration comes from, and what is static.
    pub xds: xds::Options,
    /// The worker threads.
    pub workers: Workers,
    /// `--drain-strategy`.
    pub drain_strategy: DrainStrategy,
    /// `--drain-time-s`.
    pub drain_time: Duration,
    /// How access logs are written.
    pub sinks: SinkOptions,
    /// What bounds plugins.
    pub wasm: WasmSettings,
    /// Plugins that run beside the traffic.
    pub services: Vec<bootstrap::Service>,
    /// Which statistics there are for sinks, and how often they are told.
    pub stats_config: bootstrap::StatsConfig,
    /// Where compiled plugins are kept.
    pub wasm_cache: Option<PathBuf>,
    /// How names are resolved.
    pub resolver: Arc<dyn cluster::dns::Resolver>,
    /// All metrics; its shards are those of `workers`.
    pub metrics: Registry,
    /// The filters of this build.
    pub filters: Arc<filter::Registry>,
    /// `server.`; made here unless the caller counted already.
    pub stats: Option<Arc<StatSet>>,
}

/// A running proxy. Dropping it ends it, cutting what it serves.
#[derive(Debug)]
pub struct Server {
    /// The configuration of the moment.
    pub current: Arc<CurrentGeneration>,
    /// All metrics.
    pub metrics: Registry,
    /// Drain and health.
    pub state: Arc<ServerState>,
    /// The Wasm host.
    pub plugins: wasm::Plugins,
    /// Access log sinks.
    pub sinks: Arc<Sinks>,
    /// What was received and what was refused.
    pub xds: xds::Status,
    /// `server.`
    pub stats: Arc<StatSet>,
    /// When it started.
    pub started: Instant,
    readiness: watch::Receiver<Readiness>,
    bound: watch::Receiver<Vec<BoundListener>>,
    bind_errors: watch::Receiver<Vec<Arc<BindError>>>,
    commands: mpsc::UnboundedSender<Command>,
    flush: Arc<Flush>,
    connections: Arc<ServeContext>,
    _control: OwnedTask,
    _flush: OwnedTask,
    services: Mutex<Vec<wasm::Service>>,
    _rest: OwnedTask,
    _client: xds::Client,
    // Last: connections are cut when everything else is gone.
    _workers: Workers,
}

impl Server {
    /// Starts on the running runtime, which becomes the control side's.
    ///
    /// # Errors
    /// Where Wasm code of a static listener or a service that is at hand does not work (Envoy does not start with it either),
    /// or the configuration's source cannot be reached by construction.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let Setup {
            xds,
            workers,
            drain_strategy,
            drain_time,
            sinks,
            wasm,
            services,
            stats_config,
            wasm_cache,
            resolver,
            metrics,
            filters,
            stats,
        } = setup;
        let started = Instant::now();
        let stats = stats.unwrap_or_else(|| metrics.set(&stat::TABLE, "server.", "server", []));
        let node = Arc::new(xds.node.clone());
        let state = Arc::new(ServerState::new(drain_strategy, drain_time));
        let sinks = Sinks::new(sinks, &metrics);
        let connection_ids = Arc::new(AtomicU64::new(0));
        let cluster_map = Arc::new(ArcSwap::from_pointee(cluster::ClusterMap::default()));
        let mut options =
            wasm::Options::new(workers.handles(), metrics.clone(), Arc::clone(&cluster_map));
        options.node = Some(Arc::clone(&node));
        options.cache_dir = wasm_cache;
        options.settings = wasm;
        options.resolver = Arc::clone(&resolver);
        let plugins = wasm::Plugins::new(options);

        let current = Arc::new(CurrentGeneration::default());
        let context = Arc::new(ServeContext::new(
            Arc::clone(&current),
            metrics.clone(),
            Arc::clone(&state),
            Arc::clone(&connection_ids),
            (&node.cluster, &node.id),
        ));
        let mut builder = Builder::new(Parts {
            metrics: metrics.clone(),
            filters: Arc::clone(&filters),
            plugins: plugins.clone(),
            clusters: cluster::Runtime {
                registry: metrics.clone(),
                resolver,
                connection_ids,
            },
            cluster_map,
            sinks: Arc::clone(&sinks),
            node,
            health_failed: state.health_switch(),
        });
        let manager = ListenerManager::new(Arc::clone(&context), workers.handles());
        let bound = manager.bound();

        xds.check()?;
        builder.prime(&callable(&xds.static_clusters));
        let trial = Trial::new(Arc::clone(&filters), plugins.clone());
        trial.clusters(&xds.static_clusters).await?;
        trial.listeners(&xds.static_listeners).await?;
        // A log that cannot be written keeps Envoy from starting, too.
        for log in xds
            .static_listeners
            .iter()
            .flat_map(|one| one.access_logs())
        {
            sinks.open(&log.sink)?;
        }
        let client = xds::Client::start(xds, filters, Arc::new(trial), &metrics)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let status = client.status();

        let (commands, received) = mpsc::unbounded_channel();
        let (readiness, readiness_rx) = watch::channel(Readiness::PreInitializing);
        let (bind_errors, bind_errors_rx) = watch::channel(Vec::new());
        let mut control = Control {
            snapshots: client.snapshots(),
            progress: client.progress(),
            warming: client.warming_listeners(),
            plugins: plugins.changed(),
            host: plugins.clone(),
            commands: received,
            builder,
            current: Arc::clone(&current),
            manager,
            readiness,
            bind_errors,
        };
        // Services call static clusters while they start, and are there before a listener is open.
        control.advance();
        let services = Services::start(&plugins, &services).await?;
        stats.set(stat::CONCURRENCY, workers.handles().count() as u64);
        // What Envoy writes at start, too; no certificate expires where there is none.
        stats.set(stat::DAYS_UNTIL_FIRST_CERT_EXPIRING, u64::from(u32::MAX));
        for zero in [
            stat::COMPILATION_SETTINGS_FIPS_MODE,
            stat::HOT_RESTART_EPOCH,
            stat::PARENT_CONNECTIONS,
            stat::SECONDS_UNTIL_FIRST_OCSP_RESPONSE_EXPIRING,
            stat::STATS_RECENT_LOOKUPS,
            stat::TOTAL_CONNECTIONS,
        ] {
            stats.set(zero, 0);
        }
        stats.set(stat::VERSION, crate::bootstrap::version::number());
        let flush = Arc::new(Flush {
            server: Arc::clone(&stats),
            generation: metrics.set(&generation_stat::TABLE, "generation.", "generation", []),
            current: Arc::clone(&current),
            state: Arc::clone(&state),
            readiness: readiness_rx.clone(),
            started,
            registry: metrics.clone(),
            config: stats_config,
            sinks: Mutex::new(services.sinks),
        });
        let rest = come_to_rest(readiness_rx.clone(), current.number(), status.clone());
        Ok(Self {
            current,
            metrics,
            state,
            plugins,
            sinks,
            xds: status,
            stats,
            started,
            readiness: readiness_rx,
            bound,
            bind_errors: bind_errors_rx,
            commands,
            flush: Arc::clone(&flush),
            connections: context,
            _control: OwnedTask::spawn("control", control.run()),
            _flush: OwnedTask::spawn("stats flush", flush.run()),
            services: Mutex::new(services.running),
            _rest: OwnedTask::spawn("memory", rest),
            _client: client,
            _workers: workers,
        })
    }

    /// How far start-up has come.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// Where the listeners really listen.
    pub fn bound(&self) -> watch::Receiver<Vec<BoundListener>> {
        self.bound.clone()
    }

    /// The listeners that could not be bound with the current Generation.
    pub fn bind_errors(&self) -> watch::Receiver<Vec<Arc<BindError>>> {
        self.bind_errors.clone()
    }

    /// Responses begin to close their connections (`/drain_listeners`). False where they do already.
    pub fn start_drain(&self, inbound_only: bool) -> bool {
        self.state.start_drain(inbound_only)
    }

    /// Flushes statistics to their sinks. To be called on the control side.
    pub fn flush_stats(&self) {
        self.flush.now();
    }

    /// Ends what it does, as the process ends, in Envoy's order: the connections as they are, the statistics' last flush,
    /// the plugins, and the access logs.
    pub async fn end(&self) {
        self.stop_accepting(false).await;
        self.end_connections().await;
        self.flush.last();
        self.stop_plugins().await;
        self.sinks.flush();
    }

    /// Ends all connections, as the process ends, and returns when plugins and logs have heard of the ends of what they
    /// served, or take too long.
    async fn end_connections(&self) {
        if tokio::time::timeout(PATIENCE, self.connections.cut())
            .await
            .is_err()
        {
            tracing::warn!(target: "main", "some connections have not ended within {PATIENCE:?}");
        }
        self.plugins.settled().await;
    }

    /// Ends the plugins, as the process ends; returns when those beside the traffic, and then all others, have said goodbye,
    /// and compiled code is on the disk.
    pub async fn stop_plugins(&self) {
        let services = std::mem::take(&mut *self.services.lock());
        for service in services {
            service.stop().await;
        }
        self.plugins.stop().await;
    }

    /// Stops accepting, on all listeners or on the inbound ones.
    pub async fn stop_accepting(&self, inbound_only: bool) {
        let (done, stopped) = oneshot::channel();
        if self
            .commands
            .send(Command::StopAccepting { inbound_only, done })
            .is_ok()
        {
            let _ = stopped.await;
        }
    }
}

/// Gives memory back that only the start needed, and later what only texts (`/config_dump`) or a row of updates needed.
async fn come_to_rest(
    readiness: watch::Receiver<Readiness>,
    mut generation: watch::Receiver<u64>,
    xds: xds::Status,
) {
    const QUIET: Duration = Duration::from_secs(1);
    let mut started = false;
    let mut updated = false;
    loop {
        tokio::time::sleep(QUIET).await;
        let mut collect = crate::pb::release_descriptors(QUIET);
        // When no update has come for a while, what the last ones replaced is free.
        let still = !generation.has_changed().unwrap_or(false);
        collect |= updated && still;
        updated = !still;
        generation.mark_unchanged();
        if collect {
            xds.forget_replaced();
        }
        if !started && *readiness.borrow() == Readiness::Live {
            started = true;
            collect = true;
            memory::forget_startup_code();
        }
        if collect {
            memory::collect();
        }
    }
}
