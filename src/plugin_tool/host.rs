//! The host of the data path around one plugin, in process: one worker, which is the running thread, and a chain of the
//! plugin's filter and an upstream that answers as told. Every host has statistics and shared data of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::message::{Message, Request, Response};
use super::outcome::{End, Metric, Outcome, hint};
use super::recorder::Recorder;
use crate::base::Workers;
use crate::cluster::ClusterMap;
use crate::config::context::Source;
use crate::config::http_connection_manager::{HttpConnectionManager, Options, RouteSource};
use crate::config::listener::TrafficDirection;
use crate::config::wasm_settings::AfterCrash;
use crate::config::{ParseContext, RouteConfig};
use crate::filter::factory::Warmth;
use crate::filter::wasm::Wasm;
use crate::filter::{
    BuildContext, ChainContext, FilterFactory as _, HttpFilter, HttpFilterChain, Registry, Step,
};
use crate::http::{Body, BodyError, ResponseHead};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::wasm::v3 as pb_wasm;
use crate::route::RouteTable;
use crate::stream::{ConnectionInfo, Stream, StreamConfig};
use crate::telemetry::metrics::{self, Kind};
use crate::wasm::status::State;
use crate::wasm::{self, PluginSpec, PluginStatus, Plugins, Probe};
use crate::{cli, pb};

/// How long a plugin may go on with what a request left behind.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The largest body that a plugin may hold back: Envoy's default.
const BUFFER_LIMIT: usize = 1 << 20;

/// A plugin as configured.
#[derive(Clone, Debug, Default)]
pub(super) struct Setup {
    pub(super) code: Bytes,
    pub(super) name: String,
    pub(super) root_id: String,
    pub(super) vm_id: String,
    pub(super) config: Vec<u8>,
    pub(super) vm_config: Vec<u8>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) allow_on_headers_stop_iteration: bool,
}

impl Setup {
    /// From the command line.
    pub(super) fn of(arguments: &cli::plugin::SetupArgs, code: Vec<u8>) -> anyhow::Result<Self> {
        let cli::plugin::SetupArgs {
            config,
            vm_config,
            root_id,
            vm_id,
            name,
            environment,
            allow_on_headers_stop_iteration,
        } = arguments;
        let read = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            super::source::text(text).map(|(text, _)| text)
        };
        Ok(Self {
            code: code.into(),
            name: name.clone(),
            root_id: root_id.clone(),
            vm_id: vm_id.clone(),
            config: read(config)?,
            vm_config: read(vm_config)?,
            environment: environment.clone(),
            allow_on_headers_stop_iteration: *allow_on_headers_stop_iteration,
        })
    }

    fn spec(&self) -> anyhow::Result<Arc<PluginSpec>> {
        let configuration = |bytes: &Vec<u8>| (!bytes.is_empty()).then(|| pb::pack(bytes));
        let code = core::async_data_source::Specifier::Local(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineBytes(
                self.code.to_vec(),
            )),
            watched_directory: None,
        });
        let environment = self.environment.iter().cloned().collect();
        let spec = PluginSpec::parse(pb_wasm::PluginConfig {
            name: self.name.clone(),
            root_id: self.root_id.clone(),
            configuration: configuration(&self.config),
            allow_on_headers_stop_iteration: self
                .allow_on_headers_stop_iteration
                .then_some(pb::google::protobuf::BoolValue { value: true }),
            vm: Some(pb_wasm::plugin_config::Vm::VmConfig(pb_wasm::VmConfig {
                vm_id: self.vm_id.clone(),
                code: Some(core::AsyncDataSource {
                    specifier: Some(code),
                }),
                configuration: configuration(&self.vm_config),
                environment_variables: Some(pb_wasm::EnvironmentVariables {
                    host_env_keys: Vec::new(),
                    key_values: environment,
                }),
                ..Default::default()
            })),
            ..Default::default()
        });
        Ok(Arc::new(spec?))
    }
}

/// What a request meets besides the plugin.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) request: Request,
    /// `None`: 200 with the body of the request as it arrived.
    pub(super) response: Option<Response>,
    /// Sent so many times, at least once.
    pub(super) repeat: u32,
    /// Bodies come in pieces of so many bytes.
    pub(super) chunk: Option<usize>,
    /// Between the plugin's start and the request.
    pub(super) wait: Duration,
    /// Until a request that is held is given up.
    pub(super) timeout: Duration,
}

/// What all hosts have in common: made once.
pub(super) struct Ground {
    options: Arc<Options>,
    routes: Arc<RouteTable>,
    node: pb::Node,
}

impl Ground {
    pub(super) fn new() -> anyhow::Result<Self> {
        let manager = pb::from_yaml(
            "
            stat_prefix: plugin
            route_config:
              name: local_route
              virtual_hosts:
              - name: local_host
                domains: ['*']
                routes:
                - name: local
                  match: {prefix: /}
                  route: {cluster: upstream}
            http_filters:
            - name: envoy.filters.http.router
              typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
            ",
        )?;
        let registry = Registry::new();
        let context = ParseContext::new(&registry, Source::Static);
        let manager = HttpConnectionManager::parse(manager, BUFFER_LIMIT, &context)?;
        let routes: Arc<RouteConfig> = match manager.routes {
            RouteSource::Inline(routes) => routes,
            RouteSource::Rds { .. } => anyhow::bail!("the routes are inline"),
        };
        Ok(Self {
            options: manager.options,
            routes: Arc::new(RouteTable::new(routes)),
            node: pb::Node {
                id: "plenipo-plugin".to_owned(),
                cluster: "plenipo-plugin".to_owned(),
                ..Default::default()
            },
        })
    }
}

/// A plugin that is live.
pub(super) struct Host {
    plugins: Plugins,
    registry: metrics::Registry,
    recorder: Arc<Recorder>,
    chain: Arc<HttpFilterChain>,
    upstream: Arc<Upstream>,
    connection: Arc<ConnectionInfo>,
    config: Arc<StreamConfig>,
    _workers: Workers,
}

impl Host {
    /// Brings the plugin to life, inside a runtime of this thread's own. Compiled code is kept in `cache`.
    ///
    /// # Errors
    /// Why the host will not have the plugin, in one line or with a backtrace below it.
    pub(super) async fn load(
        ground: &Ground,
        setup: &Setup,
        recorder: &Arc<Recorder>,
        cache: Option<&Path>,
    ) -> Result<Self, String> {
        let spec = setup.spec().map_err(|error| error.to_string())?;
        let workers = Workers::inline();
        let registry = metrics::Registry::new(workers.handles().shards());
        let clusters: Arc<ArcSwap<ClusterMap>> = Arc::default();
        let probe: Arc<dyn Probe> = Arc::<Recorder>::clone(recorder);
        let mut options =
            wasm::Options::new(workers.handles(), registry.clone(), Arc::clone(&clusters));
        options.node = Some(Arc::new(ground.node.clone()));
        options.cache_dir = cache.map(Path::to_owned);
        // What crashed stays down: what it did stands alone in the record.
        options.settings.defaults.after_crash = AfterCrash::Envoy;
        // One set of VMs: a second one would be in the record, too.
        options.settings.baseline_from = None;
        options.probe = Some(probe);
        let plugins = Plugins::new(options);
        let mut changed = plugins.changed();
        let filter = loop {
            let warmth = Warmth::default();
            let chain = ChainContext {
                stat_prefix: "plugin",
                place: "plugin",
                direction: TrafficDirection::Inbound,
                listener_metadata: None,
                metrics: &registry,
                node: &ground.node,
                plugins: Some(&plugins),
                warmth: &warmth,
                routes: None,
                health_failed: None,
            };
            let filter = Wasm::build(
                &spec,
                &BuildContext {
                    slot: 0,
                    name: Wasm::NAME,
                    source: &pb::Any::default(),
                    chain: &chain,
                },
            );
            if !warmth.is_cold() {
                break filter;
            }
            if changed.changed().await.is_err() {
                return Err("the host has ended".to_owned());
            }
        };
        if let Some(PluginStatus {
            state: State::Failed,
            error,
            ..
        }) = plugins.status().into_iter().next()
        {
            return Err(error.unwrap_or_default());
        }
        let upstream = Arc::new(Upstream::default());
        let entries: [(Box<str>, Arc<dyn HttpFilter>); 2] = [
            (Wasm::NAME.into(), filter),
            ("upstream".into(), Arc::clone(&upstream) as _),
        ];
        Ok(Self {
            plugins,
            registry,
            recorder: Arc::clone(recorder),
            chain: Arc::new(HttpFilterChain::of(entries)),
            upstream,
            connection: Arc::new(ConnectionInfo {
                id: 1,
                remote: Some(([127, 0, 0, 1], 40_000).into()),
                local: Some(([127, 0, 0, 1], 80).into()),
                listener: "plugin".into(),
                filter_chain: "".into(),
                direction: TrafficDirection::Inbound,
                ..ConnectionInfo::none()
            }),
            config: Arc::new(StreamConfig {
                routes: Some(Arc::clone(&ground.routes)),
                clusters: clusters.load_full(),
                upstream_filters: None,
                options: Arc::clone(&ground.options),
                generation: 1,
                records: None,
            }),
            _workers: workers,
        })
    }

    /// Sends one request, and waits for the plugin to have done with it.
    pub(super) async fn exchange(&self, exchange: &Exchange) -> Outcome {
        if !exchange.wait.is_zero() {
            tokio::time::sleep(exchange.wait).await;
        }
        for _ in 1..exchange.repeat {
            if self.failure().is_some() || self.send(exchange).await.0 == End::Stalled {
                break;
            }
            self.settle().await;
        }
        let begin = Instant::now();
        let (end, response, details) = self.send(exchange).await;
        let took = begin.elapsed();
        self.settle().await;
        let failure = self.failure();
        let mut outcome = Outcome {
            end,
            request: self.upstream.seen.lock().take(),
            response,
            details,
            hint: failure.as_deref().and_then(|failure| hint(failure, None)),
            failure,
            took,
            memory: self.memory(),
            metrics: self.metrics(),
            compile: self.compile_time(),
            unknown_imports: self.unknown_imports(),
            record: self.recorder.take(),
        };
        outcome.record.unanswered.dedup();
        outcome
    }

    /// Sends one request; how it ended, what the client saw, and the details of the response.
    pub(super) async fn send(&self, exchange: &Exchange) -> (End, Option<Message>, String) {
        self.upstream.prepare(exchange);
        let stream = Stream::new(
            Arc::clone(&self.connection),
            Arc::clone(&self.config),
            exchange.request.head.clone(),
            self.chain.len(),
        );
        let body = body(&exchange.request.body, exchange.chunk);
        let run = Arc::clone(&self.chain).run(Arc::clone(&stream), body, Arc::new(()));
        let (mut seen, mut head) = (Vec::new(), None);
        let all = async {
            let Ok(mut body) = run.await else {
                return End::Reset;
            };
            head = stream.response.lock().clone();
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => {
                        if let Some(data) = frame.data_ref() {
                            seen.extend_from_slice(data);
                        }
                    }
                    Err(_) => return End::Cut,
                }
            }
            if stream.info.lock().local_reply {
                End::LocalReply
            } else {
                End::Answered
            }
        };
        let end = tokio::time::timeout(exchange.timeout, all).await;
        let end = end.unwrap_or(End::Stalled);
        let details = stream.info.lock().details.as_deref().map(str::to_owned);
        let response = head.map(|head| {
            let trailers = stream.response_trailers.lock();
            Message::response(&head, &seen, trailers.as_ref())
        });
        (end, response, details.unwrap_or_default())
    }

    /// Waits until the guest has heard of the end of the last request, and of its calls.
    pub(super) async fn settle(&self) {
        let begin = Instant::now();
        let mut turns = 0;
        loop {
            // The VM's own task works off what was posted to it.
            tokio::task::yield_now().await;
            let idle = |status: &PluginStatus| {
                let mut vms = status.vms.iter();
                vms.all(|vm| vm.contexts == 0 && vm.callouts == 0)
            };
            turns += 1;
            let quiet = turns > 10 && self.plugins.status().iter().all(idle);
            if quiet || begin.elapsed() > AFTERMATH {
                return;
            }
            if turns > 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Why the VM is dead, with the backtrace.
    pub(super) fn failure(&self) -> Option<String> {
        let status = self.plugins.status().into_iter().next()?;
        let trap = status.live?.traps.into_iter().next()?;
        Some(trap.description)
    }

    /// Linear memory of the VM, in bytes.
    pub(super) fn memory(&self) -> u64 {
        let status = self.plugins.status().into_iter().next();
        let vm = status.and_then(|status| status.vms.first().copied());
        vm.map_or(0, |vm| vm.memory)
    }

    /// `None` where the code came from the cache.
    pub(super) fn compile_time(&self) -> Option<Duration> {
        self.plugins.status().into_iter().next()?.compile_time
    }

    fn unknown_imports(&self) -> Vec<String> {
        let status = self.plugins.status().into_iter().next();
        status.map_or(Vec::new(), |status| status.unknown_imports)
    }

    /// Those that the plugin has defined, by name.
    fn metrics(&self) -> Vec<Metric> {
        let metrics = self.registry.metrics().into_iter();
        metrics
            .filter_map(|metric| {
                let name = metric.name().strip_prefix("wasmcustom.")?.to_owned();
                let (kind, value) = match metric.kind() {
                    Kind::Counter => ("counter", metric.value()),
                    Kind::Gauge => ("gauge", metric.value()),
                    Kind::Histogram => ("histogram", metric.counts().count()),
                };
                Some(Metric { name, kind, value })
            })
            .collect()
    }
}

fn body(data: &Bytes, chunk: Option<usize>) -> Body {
    match chunk {
        Some(size) if data.len() > size => {
            let chunks: Vec<_> = (0..data.len())
                .step_by(size)
                .map(|at| data.slice(at..data.len().min(at + size)))
                .map(|chunk| Ok::<_, BodyError>(http_body::Frame::data(chunk)))
                .collect();
            Body::new(StreamBody::new(tokio_stream::iter(chunks)))
        }
        _ => Body::full(data.clone()),
    }
}

/// The end of the chain: keeps the request, and answers as told.
#[derive(Debug, Default)]
struct Upstream {
    answer: Mutex<Option<Response>>,
    chunk: Mutex<Option<usize>>,
    seen: Arc<Mutex<Option<Message>>>,
}

impl Upstream {
    fn prepare(&self, exchange: &Exchange) {
        self.answer.lock().clone_from(&exchange.response);
        *self.chunk.lock() = exchange.chunk;
        *self.seen.lock() = None;
    }
}

impl HttpFilter for Upstream {
    fn request(&self, stream: &Arc<Stream>, request: Body) -> Step<Body> {
        let (stream, seen) = (Arc::clone(stream), Arc::clone(&self.seen));
        let (answer, chunk) = (self.answer.lock().clone(), *self.chunk.lock());
        Step::Wait(Box::pin(async move {
            let Ok(request) = request.collect().await else {
                // The stream has ended, or is about to.
                return std::future::pending().await;
            };
            let request = request.to_bytes();
            let message = {
                let head = stream.request.lock();
                let trailers = stream.request_trailers.lock();
                Message::request(&head, &request, trailers.as_ref())
            };
            *seen.lock() = Some(message);
            let (head, data) = match answer {
                Some(Response { head, body }) => (head, body),
                None => (ResponseHead::new(StatusCode::OK), request),
            };
            {
                let now = Instant::now();
                let mut info = stream.info.lock();
                info.details = Some("via_upstream".into());
                info.upstream_first_rx = Some(now);
            }
            Step::Answer(Box::new(head), body(&data, chunk))
        }))
    }
}

/// A runtime of the running thread's own.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// A folder for compiled code while the tool runs: a plugin of many cases is compiled once.
pub(super) struct Cache(PathBuf);

impl Cache {
    pub(super) fn new() -> Self {
        let name = format!(
            "plenipo-plugin-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
