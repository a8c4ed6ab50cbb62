//! The proxy as a process: from its command line to its exit code.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::control::Readiness;
use super::server::{Server, Setup};
use super::stats::server as stat;
use crate::admin;
use crate::base::{Shard, Workers};
use crate::bootstrap::{self, Bootstrap};
use crate::cli::{self, Mode, Options};
use crate::cluster::dns::SystemResolver;
use crate::config::cluster::SourceSpecifier;
use crate::config::endpoint::Address;
use crate::filter;
use crate::listener::DrainStrategy;
use crate::stream::access_log::SinkOptions;
use crate::telemetry::log::{self, Log};
use crate::telemetry::metrics::{Registry, Stat, StatSet};
use crate::xds;

/// Runs a proxy as the command line asks, until a signal or `/quitquitquit` ends it.
///
/// # Errors
/// What kept it from starting, for a person to read; the exit code is 1.
pub fn serve(options: Options) -> anyhow::Result<()> {
    if options.mode == Mode::Serve {
        return serve_as_asked(options);
    }
    let path = options.config_path.clone().unwrap_or_default();
    serve_as_asked(options)
        .with_context(|| format!("error initializing configuration '{}'", path.display()))
}

fn serve_as_asked(options: Options) -> anyhow::Result<()> {
    let prepared = Prepared::load(options, set_up_log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Shard::CONTROL.enter();
    let result = runtime.block_on(async move {
        match prepared.options.mode {
            Mode::Serve => run(prepared).await,
            Mode::Validate | Mode::InitOnly => {
                prepared.validate().await?;
                let path = prepared.options.config_path.unwrap_or_default();
                println!("configuration '{}' OK", path.display());
                Ok(())
            }
        }
    });
    // A blocking task (a compilation) must not keep the process.
    runtime.shutdown_background();
    result
}

/// A proxy whose configuration is read and valid, and that has not started.
#[derive(Debug)]
pub struct Prepared {
    options: Options,
    bootstrap: Bootstrap,
    filters: Arc<filter::Registry>,
    unknown_fields: usize,
    log: Option<Log>,
}

impl Prepared {
    /// Reads and validates the bootstrap; `set_up_log` runs between the two.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn load(
        options: Options,
        set_up_log: impl FnOnce(&Options, &bootstrap::Loaded) -> anyhow::Result<Option<Log>>,
    ) -> anyhow::Result<Self> {
        let loaded = bootstrap::load(&options.bootstrap_source())?;
        let log = set_up_log(&options, &loaded)?;
        for warning in options.warnings.iter().chain(&loaded.warnings) {
            tracing::warn!(target: "main", "{warning}");
        }
        let filters = Arc::new(filter::Registry::new());
        let bootstrap = Bootstrap::parse(loaded.proto, &*filters)?;
        // Envoy looks at them even where nobody will ask for statistics.
        admin::tags(&bootstrap.stats, &options.stats_tags)?;
        for note in &bootstrap.notes {
            tracing::info!(target: "main", "{note}");
        }
        Ok(Self {
            options,
            bootstrap,
            filters,
            unknown_fields: loaded.unknown_fields,
            log,
        })
    }

    /// Checks all that [`Prepared::start`] would before it opens a port; see [`validate`](super::validate).
    ///
    /// # Errors
    /// What would keep it from starting.
    pub async fn validate(&self) -> anyhow::Result<()> {
        super::validate::validate(&self.options, &self.bootstrap, &self.filters).await
    }

    /// Starts it on the running runtime, which becomes the control side's.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start(self) -> anyhow::Result<Running> {
        let workers =
            Workers::threads(self.options.concurrency).context("cannot start the workers")?;
        let metrics = Registry::new(workers.handles().shards());
        let stats = metrics.set(&stat::TABLE, "server.", "server", []);
        stats.add(stat::STATIC_UNKNOWN_FIELDS, self.unknown_fields as u64);
        let setup = setup(
            &self.options,
            &self.bootstrap,
            Arc::clone(&self.filters),
            workers,
            metrics,
            stats,
        )?;
        let server = Arc::new(Server::start(setup).await?);
        let quit = Arc::new(Notify::new());
        let admin = self.start_admin(&server, &quit)?;
        Ok(Running {
            server,
            quit,
            prepared: self,
            admin,
        })
    }
}

impl Prepared {
    fn start_admin(
        &self,
        server: &Arc<Server>,
        quit: &Arc<Notify>,
    ) -> anyhow::Result<Option<admin::Running>> {
        let Some(config) = &self.bootstrap.admin else {
            tracing::info!(target: "main", "No admin address given, so no admin HTTP server started.");
            return Ok(None);
        };
        let context = admin::Context::new(
            Arc::new(super::admin::View {
                server: Arc::clone(server),
                quit: Arc::clone(quit),
            }),
            Arc::new(self.bootstrap.clone()),
            self.options.to_json(),
            server.metrics.clone(),
            &self.options.stats_tags,
            self.log.clone(),
        )?;
        let file = self.options.admin_address_path.as_deref();
        let running = admin::start(Arc::new(context), config, file)
            .with_context(|| format!("cannot bind '{}'", config.address))?;
        Ok(Some(running))
    }
}

/// A running proxy with its admin interface.
#[derive(Debug)]
pub struct Running {
    /// The proxy.
    pub server: Arc<Server>,
    /// Rung by `/quitquitquit`.
    pub quit: Arc<Notify>,
    prepared: Prepared,
    admin: Option<admin::Running>,
}

impl Running {
    /// Where the admin interface listens, with port 0 replaced; `None` where there is none.
    pub fn admin_address(&self) -> Option<&Address> {
        self.admin.as_ref().map(|admin| &admin.address)
    }

    /// Ends when the listeners are open.
    ///
    /// # Errors
    /// Where a static listener could not be bound.
    pub async fn live(&self) -> anyhow::Result<()> {
        let mut readiness = self.server.readiness();
        readiness
            .wait_for(|readiness| *readiness == Readiness::Live)
            .await?;
        let errors = self.server.bind_errors().borrow().clone();
        let listeners = &self.prepared.bootstrap.listeners;
        let failed = errors.iter().find(|error| {
            listeners
                .iter()
                .any(|listener| listener.value.name == error.listener)
        });
        match failed {
            Some(error) => anyhow::bail!("{error}"),
            None => Ok(()),
        }
    }
}

async fn run(prepared: Prepared) -> anyhow::Result<()> {
    // Before anything that takes time: a plugin may take seconds to be configured, and a signal whose default action
    // still stands would kill the process.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let running = tokio::select! {
        running = prepared.start() => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let server = &running.server;
    let mut opened = std::pin::pin!(running.live());
    let mut live = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::warn!(target: "main", "caught SIGTERM");
                break;
            }
            _ = interrupt.recv() => {
                tracing::warn!(target: "main", "caught SIGINT");
                break;
            }
            () = running.quit.notified() => break,
            _ = hang_up.recv() => {
                tracing::warn!(target: "main", "caught and eating SIGHUP. See documentation for how to hot restart.");
            }
            _ = reopen.recv() => {
                server.sinks.reopen();
                if let Some(log) = &running.prepared.log {
                    log.reopen();
                }
            }
            result = &mut opened, if !live => {
                result?;
                live = true;
                tracing::info!(target: "main", "all dependencies initialized. starting workers");
            }
        }
    }
    tracing::info!(target: "main", "exiting");
    server.end().await;
    if let Some(log) = &running.prepared.log {
        log.flush();
    }
    Ok(())
}

/// What the client of control planes needs.
pub(super) fn xds_options(
    options: &cli::Options,
    bootstrap: &Bootstrap,
    unknown_fields_stat: Option<(Arc<StatSet>, Stat)>,
) -> xds::Options {
    let unknown_fields = if options.reject_unknown_dynamic_fields {
        xds::UnknownFields::Reject
    } else if options.ignore_unknown_dynamic_fields {
        xds::UnknownFields::Ignore
    } else {
        xds::UnknownFields::Warn
    };
    xds::Options {
        node: bootstrap.node.clone(),
        ads: match bootstrap.ads.clone() {
            Some(SourceSpecifier::Grpc {
                delta,
                service,
                node_on_first_message_only,
            }) => Some(xds::ApiSource {
                delta,
                service,
                node_on_first_message_only,
            }),
            _ => None,
        },
        cds: bootstrap.cds.clone(),
        lds: bootstrap.lds.clone(),
        static_clusters: bootstrap
            .clusters
            .iter()
            .map(|cluster| Arc::clone(&cluster.value))
            .collect(),
        static_listeners: bootstrap
            .listeners
            .iter()
            .map(|listener| Arc::clone(&listener.value))
            .collect(),
        unknown_fields,
        unknown_fields_stat,
    }
}

/// What a server is started with.
pub(super) fn setup(
    options: &cli::Options,
    bootstrap: &Bootstrap,
    filters: Arc<filter::Registry>,
    workers: Workers,
    metrics: Registry,
    stats: Arc<StatSet>,
) -> anyhow::Result<Setup> {
    let unknown_fields_stat = Some((Arc::clone(&stats), stat::DYNAMIC_UNKNOWN_FIELDS));
    let xds = xds_options(options, bootstrap, unknown_fields_stat);
    Ok(Setup {
        xds,
        workers,
        drain_strategy: match options.drain_strategy {
            cli::DrainStrategy::Gradual => DrainStrategy::Gradual,
            cli::DrainStrategy::Immediate => DrainStrategy::Immediate,
        },
        drain_time: options.drain_time,
        sinks: SinkOptions {
            flush_interval: options.file_flush_interval,
            flush_size: options.file_flush_min_size_kb as usize * 1024,
        },
        wasm: bootstrap.wasm.clone(),
        services: bootstrap.services.clone(),
        stats_config: bootstrap.stats.clone(),
        wasm_cache: super::wasm_cache(),
        resolver: Arc::new(SystemResolver::default()),
        metrics,
        filters,
        stats: Some(stats),
    })
}

fn set_up_log(options: &Options, loaded: &bootstrap::Loaded) -> anyhow::Result<Option<Log>> {
    let configured =
        bootstrap::load::log_format(&loaded.proto).map_err(|error| anyhow::anyhow!("{error}"))?;
    let format = options
        .log_format
        .clone()
        .or(configured)
        .unwrap_or_else(|| cli::DEFAULT_LOG_FORMAT.to_owned());
    let log = log::start(&log::Options {
        level: options.log_level,
        components: options.component_log_levels.clone(),
        format,
        escaped: options.log_format_escaped,
        // A check writes nothing, as in Envoy.
        path: options
            .log_path
            .clone()
            .filter(|_| options.mode == Mode::Serve),
    })
    .with_context(|| match &options.log_path {
        Some(path) => format!("Failed to open log-file '{}'", path.display()),
        None => "cannot start the log".to_owned(),
    })?;
    Ok(Some(log))
}
