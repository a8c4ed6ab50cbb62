//! Plugins in a chain: a host, one worker (the test itself), a recording upstream.

use std::future::pending;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::declared::declared;
use super::*;
use crate::base::Workers;
use crate::base::task::OwnedTask;
use crate::cluster::ClusterMap;
use crate::config::http_connection_manager::HttpConnectionManager;
use crate::config::listener::TrafficDirection;
use crate::config::wasm_settings::VmSharing;
use crate::config::{ParseContext, context::Source};
use crate::filter::{HttpFilterChain, Registry};
use crate::http::BodyError;
use crate::http::codec::Reset;
use crate::http::{RequestHead, ResponseHead};
use crate::pb;
use crate::pb::envoy::extensions::wasm::v3 as pb_wasm;
use crate::stream::{ConnectionInfo, StreamConfig};
use crate::telemetry::metrics;
use crate::wasm::status::State as LifeState;
use crate::wasm::testing::{built, cluster_map, config, guest, spec};
use crate::wasm::{Options, Plugin, Resolution};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Frame;

#[path = "tests/failure.rs"]
mod failure;
#[path = "tests/sharing.rs"]
mod sharing;
#[path = "tests/traffic.rs"]
mod traffic;
#[path = "tests/versions.rs"]
mod versions;

const SLOT: &str = "the slot";

struct Bench {
    _workers: Workers,
    plugins: Plugins,
    registry: metrics::Registry,
    clusters: Arc<ArcSwap<ClusterMap>>,
    options: Arc<crate::config::http_connection_manager::Options>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let workers = Workers::inline();
        let registry = metrics::Registry::new(workers.handles().shards());
        let clusters: Arc<ArcSwap<ClusterMap>> = Arc::default();
        let mut options = Options::new(workers.handles(), registry.clone(), Arc::clone(&clusters));
        change(&mut options);
        let extensions = Registry::new();
        let manager = pb::from_yaml(
            "
            stat_prefix: s
            route_config: {}
            http_filters:
            - name: router
              typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
            ",
        )
        .expect("YAML");
        let manager = HttpConnectionManager::parse(
            manager,
            1000,
            &ParseContext::new(&extensions, Source::Static),
        )
        .expect("a valid manager");
        Self {
            _workers: workers,
            plugins: Plugins::new(options),
            registry,
            clusters,
            options: manager.options,
        }
    }

    async fn plugin(&self, config: pb_wasm::PluginConfig) -> Arc<Plugin> {
        self.plugin_at(SLOT, config).await
    }

    async fn plugin_at(&self, slot: &str, config: pb_wasm::PluginConfig) -> Arc<Plugin> {
        let spec = spec(config);
        let mut changed = self.plugins.changed();
        for _ in 0..100 {
            match self.plugins.resolve(slot, &spec) {
                Resolution::Ready(plugin) => {
                    // As a Generation does, and the next one: what was there before goes.
                    self.plugins.retain(|_| true);
                    self.plugins.retain(|_| true);
                    return plugin;
                }
                Resolution::Failed(error) => panic!("{error}"),
                Resolution::Pending | Resolution::Previous(_) | Resolution::Trial(..) => {
                    timeout(Duration::from_secs(60), changed.changed())
                        .await
                        .expect("in time")
                        .expect("the host lives");
                }
            }
        }
        panic!("never ready");
    }

    async fn chain(&self, config: pb_wasm::PluginConfig) -> Chain {
        let plugin = self.plugin(config).await;
        self.chain_of(Some(plugin), None)
    }

    fn chain_of(&self, plugin: Option<Arc<Plugin>>, spec: Option<Arc<PluginSpec>>) -> Chain {
        let upstream = Arc::new(Upstream::default());
        let spec = spec
            .or_else(|| plugin.as_ref().map(|plugin| Arc::clone(plugin.spec())))
            .expect("one of them");
        let own = Choice::new(0, spec, plugin, None);
        let filter = Arc::new(Wasm::with(0, "wasm", own, OfRoutes::default()));
        Chain {
            filters: Arc::new(HttpFilterChain::of([
                ("wasm".into(), filter as Arc<dyn HttpFilter>),
                (
                    "upstream".into(),
                    Arc::clone(&upstream) as Arc<dyn HttpFilter>,
                ),
            ])),
            upstream,
            config: Arc::new(StreamConfig {
                routes: None,
                clusters: self.clusters.load_full(),
                upstream_filters: None,
                options: Arc::clone(&self.options),
                generation: 1,
                records: None,
            }),
        }
    }

    /// What `/wasm` says of the only version in `state`.
    fn status(&self, state: LifeState) -> Option<crate::wasm::PluginStatus> {
        self.plugins
            .status()
            .into_iter()
            .find(|status| status.state == state)
    }
}

struct Chain {
    filters: Arc<HttpFilterChain>,
    upstream: Arc<Upstream>,
    config: Arc<StreamConfig>,
}

/// The terminal filter: records the request, answers 200 with `answer` in two frames.
#[derive(Debug, Default)]
struct Upstream {
    requests: Arc<Mutex<Vec<(RequestHead, String)>>>,
    version: Mutex<Option<http::Version>>,
    trailers: Mutex<Option<HeaderMap>>,
    hang: std::sync::atomic::AtomicBool,
    /// Lets go on what hangs.
    go_on: Arc<tokio::sync::Notify>,
}

impl HttpFilter for Upstream {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let (stream, requests) = (Arc::clone(stream), Arc::clone(&self.requests));
        let trailers = self.trailers.lock().clone();
        let version = *self.version.lock();
        let hang = self.hang.load(std::sync::atomic::Ordering::Relaxed);
        let go_on = Arc::clone(&self.go_on);
        Step::Wait(Box::pin(async move {
            let head = stream.request.lock().clone();
            let Ok(body) = body.collect().await else {
                return pending().await;
            };
            let mut text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            if let Some(trailers) = stream.request_trailers.lock().as_ref() {
                text.push_str(&format!("+{}", trailers.len()));
            }
            requests.lock().push((head, text));
            if hang {
                go_on.notified().await;
            }
            let mut frames = vec![Ok("an".into()), Ok("swer".into())]
                .into_iter()
                .map(|data: Result<Bytes, BodyError>| data.map(Frame::data))
                .collect::<Vec<_>>();
            frames.extend(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            let mut head = ResponseHead::new(StatusCode::OK);
            head.version = version.unwrap_or(http::Version::HTTP_11);
            let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            Step::Answer(Box::new(head), body)
        }))
    }
}

#[derive(Debug)]
struct Outcome {
    status: u16,
    headers: HeaderMap,
    body: Result<String, BodyError>,
    details: String,
    /// As the log prints them.
    flags: String,
}

impl Chain {
    fn stream(&self, head: RequestHead) -> Arc<Stream> {
        let connection = ConnectionInfo {
            id: 7,
            remote: "127.0.0.1:1234".parse().ok(),
            local: "127.0.0.2:80".parse().ok(),
            listener: "listener".into(),
            filter_chain: "fc".into(),
            direction: TrafficDirection::Inbound,
            ..ConnectionInfo::none()
        };
        Stream::new(Arc::new(connection), Arc::clone(&self.config), head, 2)
    }

    async fn send(&self, head: RequestHead, body: Body) -> Result<Outcome, Reset> {
        let stream = self.stream(head);
        let run = Arc::clone(&self.filters).run(Arc::clone(&stream), body, Arc::new(()));
        let body = timeout(Duration::from_secs(60), run)
            .await
            .expect("an answer")?;
        let head = stream.response.lock().clone().expect("a head");
        let body = timeout(Duration::from_secs(60), body.collect())
            .await
            .expect("an end")
            .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        let info = stream.info.lock();
        let details = info.details.as_deref().unwrap_or_default().to_owned();
        let flags = info.flags.to_string();
        drop(info);
        Ok(Outcome {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            details,
            flags,
        })
    }

    async fn get(&self, path: &str) -> Outcome {
        self.send(RequestHead::new(Method::GET, "host", path), Body::empty())
            .await
            .expect("no reset")
    }

    async fn post(&self, frames: &[&str], trailers: Option<HeaderMap>) -> Result<Outcome, Reset> {
        let mut frames: Vec<Result<Frame<Bytes>, BodyError>> = frames
            .iter()
            .map(|data| Ok(Frame::data(Bytes::copy_from_slice(data.as_bytes()))))
            .collect();
        frames.extend(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        self.send(RequestHead::new(Method::POST, "host", "/"), body)
            .await
    }

    fn requests(&self) -> Vec<(RequestHead, String)> {
        self.upstream.requests.lock().clone()
    }
}

fn trailers() -> HeaderMap {
    [(http::header::ETAG, HeaderValue::from_static("t"))]
        .into_iter()
        .collect()
}

/// The shared data of `vm`.
async fn shared(bench: &Bench, key: &str) -> String {
    let value = bench.plugins.shared_value("vm", key.as_bytes());
    String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
}

/// `roots` as the plugin `name`.
fn rooted(name: &str, configuration: &str) -> pb_wasm::PluginConfig {
    let mut config = config(guest("roots"), configuration);
    config.name = name.to_owned();
    config
}

/// What the guest wrote since it had written `before`.
async fn wrote(bench: &Bench, before: &str, enough: &str) -> String {
    let wait = async {
        loop {
            let all = shared(bench, "roots").await;
            if let Some(new) = all.strip_prefix(before)
                && new.contains(enough)
            {
                return new.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), wait)
        .await
        .expect("written in time")
}

fn vms(bench: &Bench) -> u64 {
    let sets = bench.registry.sets();
    let set = sets.iter().find(|set| set.prefix() == "wasm.");
    set.expect("registered")
        .value(crate::wasm::status::wasm_stats::WASM_VM_COUNT)
}
