//! Plugins in a chain: a host, one worker (the test itself), a recording upstream.

use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::time::timeout;

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
use crate::wasm::Options;
use crate::wasm::status::State as LifeState;
use crate::wasm::testing::{built, cluster_map, config, guest, spec};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Frame;

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
        let filter = Arc::new(Wasm {
            slot: 0,
            name: "wasm".into(),
            own: Choice::new(0, spec, plugin, None),
            by_route: HashMap::new(),
        });
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
}

impl HttpFilter for Upstream {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let (stream, requests) = (Arc::clone(stream), Arc::clone(&self.requests));
        let trailers = self.trailers.lock().clone();
        let version = *self.version.lock();
        let hang = self.hang.load(std::sync::atomic::Ordering::Relaxed);
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
                return pending().await;
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
            listener_metadata: None,
            accepted: tokio::time::Instant::now(),
            meter: Arc::default(),
            filter_state: Default::default(),
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
        let details = stream
            .info
            .lock()
            .details
            .as_deref()
            .unwrap_or_default()
            .to_owned();
        Ok(Outcome {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            details,
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

#[tokio::test]
async fn a_guest_edits_heads_of_both_directions() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("add-header"), "")).await;
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, outcome.body.as_deref()),
        (200, Ok("answer"))
    );
    assert_eq!(outcome.headers["x-guest"], "1");
    assert_eq!(chain.requests()[0].0.headers["x-guest"], "1");
}

#[tokio::test]
async fn the_oldest_abi_is_served() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("old-abi"), "")).await;
    assert_eq!(chain.get("/").await.status, 200);
    assert_eq!(chain.requests()[0].0.headers["x-guest"], "1");
}

/// Where a fault happens, and what the client sees of it: with FAIL_CLOSED, FAIL_OPEN, the deprecated fail_open.
#[tokio::test]
async fn a_trap_costs_what_envoys_costs_and_the_next_request_is_served() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Seen {
        Fail,
        Cut,
        Fine,
    }
    use Seen::{Cut, Fail, Fine};
    let cases = [
        ('n', [Fail, Fail, Fail]),
        ('h', [Fail, Fail, Fine]),
        ('b', [Fail, Fail, Fine]),
        ('z', [Fail, Fail, Fine]),
        ('H', [Fail, Fail, Fine]),
        ('B', [Cut, Cut, Fine]),
        ('Z', [Cut, Cut, Fine]),
        ('o', [Fine, Fine, Fine]),
        ('d', [Fine, Fine, Fine]),
        ('e', [Fine, Fine, Fine]),
    ];
    let bench = Bench::new();
    for (place, expected) in cases {
        for (policy, expected) in ["closed", "open", "legacy"].into_iter().zip(expected) {
            let mut config = config(guest("fault"), &format!("t{place}{policy}"));
            #[allow(deprecated, reason = "the field under test")]
            match policy {
                "open" => config.failure_policy = pb_wasm::FailurePolicy::FailOpen as i32,
                "legacy" => config.fail_open = true,
                _ => {}
            }
            // VMs of its own.
            if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
                vm.vm_id = format!("{place}{policy}");
            }
            // A context that cannot be made is not the request's crash: who passes, passes at once.
            let expected = if place == 'n' && policy != "closed" {
                Fine
            } else {
                expected
            };
            let chain = bench.chain(config).await;
            *chain.upstream.trailers.lock() = Some(trailers());
            let outcome = chain
                .post(&["body"], Some(trailers()))
                .await
                .expect("no reset");
            let seen = match (outcome.status, &outcome.body) {
                (503, _) => {
                    assert_eq!(outcome.details, "wasm_fail_stream", "{place} {policy}");
                    Fail
                }
                (200, Ok(body)) => {
                    assert_eq!(body, "answer", "{place} {policy}");
                    Fine
                }
                (200, Err(_)) => Cut,
                other => panic!("{place} {policy}: {other:?}"),
            };
            assert_eq!(seen, expected, "{place} {policy}");
            // The fresh VM is built off the worker; it takes the next request, and fails the same way.
            let created = async {
                loop {
                    let status = bench.status(LifeState::Live).expect("live");
                    if status.vms[0].created == 2 && status.vms[0].working {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(60), created)
                .await
                .expect("a fresh VM");
            let again = chain
                .post(&["body"], Some(trailers()))
                .await
                .expect("no reset");
            assert_eq!(again.status, outcome.status, "{place} {policy}");
        }
    }
}

#[tokio::test]
async fn a_callout_outlives_the_vm_that_made_it() {
    let bench = Bench::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    bench.clusters.store(cluster_map(&bench.registry, address));
    let chain = bench
        .chain(config(guest("callout-then-trap"), "orphan"))
        .await;
    assert_eq!(chain.get("/").await.status, 200);
    let (mut upstream, _) = timeout(Duration::from_secs(10), listener.accept())
        .await
        .expect("a callout")
        .expect("a connection");
    let mut head = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut upstream, &mut head)
        .await
        .expect("a request");
    assert_eq!(&head, b"GET ");
}

#[tokio::test]
async fn without_a_vm_the_policy_decides() {
    let bench = Bench::new();
    for (policy, status) in [
        (pb_wasm::FailurePolicy::FailClosed, 503),
        (pb_wasm::FailurePolicy::FailOpen, 200),
        (pb_wasm::FailurePolicy::FailReload, 503),
    ] {
        let mut config = config(guest("add-header"), "");
        config.failure_policy = policy as i32;
        let chain = bench.chain_of(None, Some(spec(config)));
        assert_eq!(chain.get("/").await.status, status, "{policy:?}");
    }
}

#[tokio::test]
async fn a_crash_loop_is_slowed_down() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("fault"), "th")).await;
    for _ in 0..200 {
        assert_eq!(chain.get("/").await.status, 503);
        tokio::task::yield_now().await;
    }
    let vms = &bench.status(LifeState::Live).expect("live").vms;
    assert!(vms[0].created <= 3, "{vms:?}");
}

#[tokio::test]
async fn a_loop_ends_at_its_budget() {
    let bench =
        Bench::with(|options| options.settings.defaults.callback_hard = Duration::from_millis(50));
    let chain = bench.chain(config(guest("fault"), "lh")).await;
    let begin = std::time::SystemTime::now();
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, &*outcome.details),
        (503, "wasm_fail_stream")
    );
    // On a busy machine the thread's time counts, not the wall's: only a generous bound holds.
    let took = begin.elapsed().expect("the clock goes forward");
    assert!(took >= Duration::from_millis(40), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let error = bench.status(LifeState::Live).expect("live").error;
    assert!(error.expect("told").contains("time budget"));
}

#[tokio::test]
async fn memory_ends_at_its_limit_and_the_guest_goes_on() {
    let bench = Bench::with(|options| options.settings.defaults.memory = 4 << 20);
    let chain = bench.chain(config(guest("fault"), "bh")).await;
    assert_eq!(chain.get("/").await.status, 200);
    let memory = bench.status(LifeState::Live).expect("live").vms[0].memory;
    assert!(memory <= 4 << 20 && memory > 3 << 20, "{memory}");
}

#[tokio::test]
async fn a_local_reply_takes_the_course_of_its_phase() {
    let bench = Bench::new();
    // Where, what the client sees, whether the upstream was asked.
    for (place, status, asked) in [('h', 418, false), ('H', 418, true), ('o', 200, true)] {
        let chain = bench
            .chain(config(guest("fault"), &format!("r{place}")))
            .await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{place}");
        if status == 418 {
            assert_eq!(
                (outcome.body.as_deref(), &*outcome.details),
                (Ok("teapot"), "teapot")
            );
        }
        assert_eq!(!chain.requests().is_empty(), asked, "{place}");
    }
    let chain = bench.chain(config(guest("fault"), "rb")).await;
    assert_eq!(chain.post(&["x"], None).await.expect("a reply").status, 418);
    // Once the head is out there is no other answer: the body ends early.
    let chain = bench.chain(config(guest("fault"), "rB")).await;
    let outcome = chain.get("/").await;
    assert!(
        outcome.status == 418 || outcome.body.is_err(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_reply_to_nobody_stops_the_callback_that_made_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("reply-of-none"), "")).await;
    let answer = timeout(Duration::from_millis(200), chain.get("/")).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(chain.requests().is_empty());
}

#[tokio::test]
async fn closing_the_stream_resets_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("fault"), "ch")).await;
    let reset = chain
        .send(RequestHead::new(Method::GET, "h", "/"), Body::empty())
        .await;
    assert!(reset.is_err());
}

#[tokio::test]
async fn paused_heads_wait_for_the_tick_and_can_be_changed_until_then() {
    let bench = Bench::new();
    for action in ['1', '3', '4', '9'] {
        let chain = bench
            .chain(config(guest("action"), &format!("{action}00000t")))
            .await;
        let outcome = chain.post(&["one", "two"], None).await.expect("no reset");
        assert_eq!(outcome.status, 200, "{action}");
        let (head, body) = &chain.requests()[0];
        assert_eq!(head.headers["x-released"], "1", "{action}");
        // The guest saw everything in one piece after it let the heads go, then perhaps the end.
        assert!(body.starts_with("onetwo"), "{action}: {body}");
    }
    let chain = bench.chain(config(guest("action"), "000100t")).await;
    assert_eq!(chain.get("/").await.status, 200);
}

#[tokio::test]
async fn continue_inside_the_callback_undoes_its_pause() {
    let bench = Bench::new();
    for config_text in ["100000n", "000100n", "111111n", "000000n"] {
        let chain = bench.chain(config(guest("action"), config_text)).await;
        let outcome = chain
            .post(&["x"], Some(trailers()))
            .await
            .expect("no reset");
        assert_eq!(outcome.status, 200, "{config_text}");
        assert_eq!(chain.requests().len(), 1, "sent once: {config_text}");
    }
}

#[tokio::test]
async fn real_stop_iteration_shows_the_body_while_the_heads_wait() {
    let bench = Bench::new();
    let mut config = config(guest("action"), "1100000");
    config.allow_on_headers_stop_iteration = Some(pb::google::protobuf::BoolValue { value: true });
    // The body callback stops too, until trailers come and go on.
    let chain = bench.chain(config.clone()).await;
    let outcome = chain
        .post(&["x", "y"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 200);
    assert_eq!(chain.requests()[0].1, "x0;y0;+1");
}

#[tokio::test]
async fn a_buffered_body_grows_and_goes_on_at_once() {
    let bench = Bench::new();
    // Stop at data, go on at the trailers.
    let chain = bench.chain(config(guest("action"), "0100000")).await;
    let outcome = chain
        .post(&["x", "y"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 200);
    assert_eq!(chain.requests()[0].1, "x0;y0;+1");
    // Past the buffer limit it is too large.
    let big = "z".repeat(1500);
    let outcome = chain
        .post(&[&big], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!(outcome.status, 413);
    // StopIterationNoBuffer drops.
    let chain = bench.chain(config(guest("action"), "0300000")).await;
    let outcome = chain
        .post(&["x"], Some(trailers()))
        .await
        .expect("no reset");
    assert_eq!((outcome.status, &*chain.requests()[0].1), (200, "+1"));
}

#[tokio::test]
async fn the_death_of_a_vm_wakes_those_who_wait_for_it() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("action"), "100000!")).await;
    let outcome = chain.get("/").await;
    assert_eq!(
        (outcome.status, &*outcome.details),
        (503, "wasm_fail_stream")
    );
}

#[tokio::test]
async fn the_death_of_a_vm_lets_nobody_wait_whose_body_it_holds() {
    let bench = Bench::new();
    let cases = [
        ("010000!", pb_wasm::FailurePolicy::FailClosed, 503),
        ("040000!", pb_wasm::FailurePolicy::FailClosed, 503),
        ("010000!", pb_wasm::FailurePolicy::FailOpen, 200),
        ("001000!", pb_wasm::FailurePolicy::FailClosed, 503),
    ];
    for (actions, policy, status) in cases {
        let mut config = config(guest("action"), actions);
        config.failure_policy = policy as i32;
        let chain = bench.chain(config).await;
        let trailers = actions.starts_with("001").then(trailers);
        let outcome = chain.post(&["x"], trailers).await.expect("no reset");
        assert_eq!(outcome.status, status, "{actions} {policy:?}");
        if status == 503 {
            assert_eq!(outcome.details, "wasm_fail_stream");
        } else {
            assert_eq!(chain.requests()[0].1, "x0;1;", "it goes on as it is");
        }
    }
}

#[tokio::test]
async fn a_pause_that_nothing_can_end_is_counted_and_ends_at_its_limit() {
    use crate::wasm::status::wasm_stats;
    let limit = Duration::from_millis(50);
    let bench = Bench::with(|options| options.settings.defaults.max_pause = Some(limit));
    let stat = |stat| {
        let sets = bench.registry.sets();
        let set = sets.iter().find(|set| set.prefix() == "wasm.");
        set.expect("registered").value(stat)
    };
    let cases = [
        ("1000000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("0100000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("0001000", pb_wasm::FailurePolicy::FailClosed, 504),
        ("1000000", pb_wasm::FailurePolicy::FailOpen, 200),
    ];
    for (number, (actions, policy, status)) in cases.into_iter().enumerate() {
        let mut config = config(guest("action"), actions);
        config.failure_policy = policy as i32;
        let chain = bench.chain(config).await;
        let outcome = chain.post(&["x"], None).await.expect("no reset");
        assert_eq!(outcome.status, status, "{actions} {policy:?}");
        if status == 504 {
            assert_eq!(outcome.details, "wasm_max_pause");
        }
        let number = number as u64 + 1;
        assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), number, "{actions}");
        assert_eq!(stat(wasm_stats::PAUSES_ENDED), number, "{actions}");
        let gone = async {
            while stat(wasm_stats::PAUSED_STREAMS) != 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), gone).await.expect("over");
    }
    // Where a timer runs, it may be what ends the pause.
    let chain = bench.chain(config(guest("action"), "100000t")).await;
    assert_eq!(chain.get("/").await.status, 200);
    assert_eq!(stat(wasm_stats::PAUSED_FOR_NOTHING), 4);
    assert_eq!(stat(wasm_stats::PAUSES_ENDED), 4);
}

#[tokio::test]
async fn what_a_plugin_adds_is_bounded() {
    let bench = Bench::new();
    for (what, status, details) in [
        ("h", 503, "too_many_headers"),
        ("v", 503, "too_many_headers"),
        ("g", 413, "request_payload_too_large"),
        ("a", 503, "invalid_header_value"),
        ("H", 200, ""),
    ] {
        let chain = bench.chain(config(guest("excess"), what)).await;
        let outcome = chain.post(&["x"], None).await.expect("no reset");
        assert_eq!(outcome.status, status, "{what} {}", outcome.details);
        assert!(outcome.details.contains(details), "{what}: {outcome:?}");
        assert!(outcome.headers.len() <= 1000, "{what}");
        assert_eq!(chain.requests().len(), usize::from(status == 200), "{what}");
    }
    let chain = bench.chain(config(guest("excess"), "G")).await;
    let outcome = chain.get("/").await;
    assert!(
        outcome.status == 500 || outcome.body.is_err(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_local_reply_is_http_whatever_the_plugin_says() {
    let bench = Bench::new();
    for (code, status, body) in [
        ("s200", 200, "x-much"),
        ("s599", 599, "x-much"),
        ("s204", 204, ""),
        ("s304", 304, ""),
        ("s0", 500, "x-much"),
        ("s99", 500, "x-much"),
        ("s100", 500, "x-much"),
        ("s101", 500, "x-much"),
        ("s600", 500, "x-much"),
        ("s1000", 500, "x-much"),
        ("s70000", 500, "x-much"),
    ] {
        let chain = bench.chain(config(guest("excess"), code)).await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{code}");
        assert_eq!(outcome.body.as_deref(), Ok(body), "{code}");
        let length = outcome.headers.get(CONTENT_LENGTH);
        let length = length.map(|value| value.to_str().expect("text").to_owned());
        let expected = (!body.is_empty()).then(|| body.len().to_string());
        assert_eq!(length, expected, "{code}");
    }
}

#[tokio::test]
async fn callbacks_come_in_envoys_order() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("order"), "")).await;
    chain.post(&["x"], None).await.expect("no reset");
    assert_eq!(shared(&bench, "order").await, "rvfcHbbiLdx");
}

#[tokio::test]
async fn who_leaves_early_is_told_of_by_the_vms_task() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("order"), "")).await;
    chain
        .upstream
        .hang
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let stream = chain.stream(RequestHead::new(Method::GET, "h", "/"));
    let run = Arc::clone(&chain.filters).run(stream, Body::empty(), Arc::new(()));
    assert!(timeout(Duration::from_millis(20), run).await.is_err());
    assert!(shared(&bench, "order").await.starts_with("rvfcH"));
    let told = async {
        while !shared(&bench, "order").await.ends_with("Ldx") {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), told).await.expect("told");
    assert_eq!(
        bench.status(LifeState::Live).expect("live").vms[0].contexts,
        0
    );
}

#[tokio::test]
async fn a_stream_that_never_reached_the_plugin_is_logged_by_it() {
    let bench = Bench::new();
    let plugin = bench.plugin(config(guest("order"), "")).await;
    #[derive(Debug)]
    struct Refuse;
    impl HttpFilter for Refuse {
        fn request(&self, _: &Arc<Stream>, _: Body) -> Step<Body> {
            Step::reply(LocalReply::new(StatusCode::FORBIDDEN, "", "no"))
        }
    }
    let wasm = Wasm {
        slot: 1,
        name: "wasm".into(),
        own: Choice::new(1, Arc::clone(plugin.spec()), Some(plugin), None),
        by_route: HashMap::new(),
    };
    let mut chain = bench.chain(config(guest("order"), "")).await;
    chain.filters = Arc::new(HttpFilterChain::of([
        ("refuse".into(), Arc::new(Refuse) as Arc<dyn HttpFilter>),
        ("wasm".into(), Arc::new(wasm) as Arc<dyn HttpFilter>),
    ]));
    assert_eq!(chain.get("/").await.status, 403);
    assert_eq!(shared(&bench, "order").await, "rvfcLdx");
}

#[tokio::test]
async fn a_pumped_body_is_as_long_as_its_head_says() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("add-header"), "")).await;
    let stream = chain.stream(RequestHead::new(Method::POST, "h", "/"));
    let frames = |text: &'static str| Body::full(text);
    let exact = |body: Body| body.size_hint().exact();
    let declare = |body, pumped| exact(declared(&stream, Direction::Request, body, pumped));
    let unknown = || Body::new(StreamBody::new(tokio_stream::iter(Vec::new())));
    assert_eq!(declare(unknown(), true), None, "the head says nothing");
    stream
        .request
        .lock()
        .headers
        .insert(CONTENT_LENGTH, HeaderValue::from_static("6"));
    assert_eq!(declare(unknown(), true), Some(6));
    assert_eq!(declare(frames("x"), false), Some(1), "not pumped: as it is");
    let mut body = declared(&stream, Direction::Request, frames("four"), true);
    body.frame().await.expect("a frame").expect("data");
    assert_eq!(exact(body), Some(2));
}

/// The shared data of `vm`.
async fn shared(bench: &Bench, key: &str) -> String {
    let value = bench.plugins.shared_value("vm", key.as_bytes());
    String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
}

#[tokio::test]
async fn headers_that_are_none_fail_the_request_and_never_reach_the_wire() {
    let bench = Bench::new();
    let cases: [(&str, u16, &str); 13] = [
        ("ax-a=b", 200, ""),
        ("ax-a=b\r\nset-cookie: c", 503, "invalid_header_value"),
        ("a=v", 503, "invalid_header_name"),
        ("abad name=v", 503, "invalid_header_name"),
        ("p:path=/a b", 503, "invalid_path"),
        ("p:method=GE T", 503, "invalid_method"),
        ("p:method=CONNECT", 503, "invalid_method"),
        ("r:path=", 503, "missing_required_header:_:path"),
        ("r:method=", 503, "missing_required_header:_:method"),
        ("r:authority=", 200, ""),
        ("p:path=/new", 200, ""),
        ("rx-none=", 200, ""),
        ("sgarbage", 503, "missing_required_header:_:method"),
    ];
    for (edit, status, detail) in cases {
        let chain = bench.chain(config(guest("edit"), edit)).await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, status, "{edit:?} {outcome:?}");
        assert!(
            outcome.details.contains(detail),
            "{edit:?}: {}",
            outcome.details
        );
        assert!(!outcome.headers.contains_key("set-cookie"), "{edit:?}");
    }
}

#[tokio::test]
async fn properties_have_envoys_names_and_forms() {
    let bench = Bench::new();
    let cases: [(&str, Result<&[u8], u8>); 17] = [
        ("plugin_name", Ok(b"test")),
        ("plugin_root_id", Ok(b"root")),
        ("plugin_vm_id", Ok(b"vm")),
        ("request.path", Ok(b"/a?b=c")),
        ("request.url_path", Ok(b"/a")),
        ("request.query", Ok(b"b=c")),
        ("request.host", Ok(b"host")),
        ("request.method", Ok(b"GET")),
        ("request.scheme", Ok(b"http")),
        ("request.protocol", Ok(b"HTTP/1.1")),
        ("request.headers.x-two", Ok(b"1,2")),
        ("source.address", Ok(b"127.0.0.1:1234")),
        ("xds.filter_chain_name", Ok(b"fc")),
        ("request.headers.none", Err(1)),
        ("request", Err(3)),
        ("nonsense", Err(1)),
        ("xds.node", Err(1)),
    ];
    for (path, expected) in cases {
        let chain = bench.chain(config(guest("property"), path)).await;
        let mut head = RequestHead::new(Method::GET, "host", "/a?b=c");
        for value in ["1", "2"] {
            head.headers
                .append("x-two", HeaderValue::from_static(value));
        }
        let outcome = chain.send(head, Body::empty()).await.expect("no reset");
        let seen = &chain.requests()[0].0.headers;
        match expected {
            Ok(value) => {
                let property = seen.get("x-property").expect(path);
                assert_eq!(property.as_bytes(), value, "{path}");
            }
            Err(status) => {
                assert_eq!(seen["x-status"].as_bytes(), [b'a' + status], "{path}");
            }
        }
        // In the response phase the request's headers are out of reach.
        if path == "request.path" {
            assert_eq!(outcome.headers["x-status"], "b", "{path}");
        }
    }
}

#[tokio::test]
async fn what_envoy_refuses_is_refused_before_the_ack() {
    let bench = Bench::with(|options| options.settings.defaults.start = Duration::from_millis(200));
    let cases = [
        (
            guest("no-abi"),
            "",
            "Missing or unknown Proxy-Wasm ABI version",
        ),
        (
            guest("future-abi"),
            "",
            "Missing or unknown Proxy-Wasm ABI version",
        ),
        (
            guest("bad-signature"),
            "",
            "Bad function signature for: proxy_on_request_headers",
        ),
        (guest("wrong-import"), "", "proxy_log"),
        (guest("global-import"), "", "env.stack"),
        (guest("no-malloc"), "", "missing malloc"),
        (guest("start-hostcall"), "", "restricted"),
        (
            guest("refuse-configure"),
            "",
            "proxy_on_configure returned false",
        ),
        (guest("huge-memory"), "", "Failed to initialize Wasm code"),
        (guest("fault"), "tf", "unreachable"),
        (guest("fault"), "lf", "time budget"),
        (
            b"\0asm\x01\0\0\0\x01".to_vec(),
            "",
            "Failed to load Wasm module",
        ),
        (
            b"\0asm\x0d\0\x01\0".to_vec(),
            "",
            "not a WebAssembly module",
        ),
        (b"(module)".to_vec(), "", "not a WebAssembly module"),
        (
            built("broken-configure"),
            "",
            "this plugin is broken on purpose",
        ),
        (
            built("broken-configure"),
            "false",
            "proxy_on_configure returned false",
        ),
    ];
    for (code, configuration, reason) in cases {
        let error = bench
            .plugins
            .canary(&spec(config(code, configuration)))
            .await
            .expect_err(reason)
            .to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let good = spec(config(guest("add-header"), ""));
    assert_eq!(bench.plugins.canary(&good).await, Ok(()));
}

#[tokio::test]
async fn unknown_imports_are_named_and_trap_only_when_called() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("unknown-import"), "")).await;
    let unknown = bench.status(LifeState::Live).expect("live").unknown_imports;
    assert_eq!(
        unknown,
        [
            "env.proxy_from_the_future",
            "wasi_snapshot_preview1.sock_bind"
        ]
    );
    assert_eq!(chain.get("/").await.status, 503);
}

#[tokio::test]
async fn an_allocator_may_not_call_back() {
    let bench = Bench::new();
    let chain = bench.chain(config(guest("malloc-hostcall"), "")).await;
    assert_eq!(chain.get("/").await.status, 503);
}

#[tokio::test]
async fn a_denied_capability_answers_internal_failure() {
    let bench = Bench::new();
    let mut config = config(guest("property"), "plugin_name");
    let allowed = [
        "proxy_get_buffer_bytes",
        "proxy_add_header_map_value",
        "proxy_on_configure",
    ];
    let allowed = allowed.into_iter().chain(["proxy_on_request_headers"]);
    if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
        vm.capability_restriction_config = Some(pb_wasm::CapabilityRestrictionConfig {
            allowed_capabilities: allowed
                .map(|name| (name.to_owned(), pb_wasm::SanitizationConfig {}))
                .collect(),
        });
    }
    let chain = bench.chain(config).await;
    let outcome = chain.get("/").await;
    assert_eq!(chain.requests()[0].0.headers["x-status"], "k");
    assert!(
        outcome.headers.is_empty(),
        "the denied callback is not called: {outcome:?}"
    );
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

#[tokio::test]
async fn plugins_of_one_key_are_root_contexts_of_one_vm_in_envoys_order() {
    let bench = Bench::new();
    let a = bench.plugin_at("a", rooted("A", "x")).await;
    let b = bench.plugin_at("b", rooted("B", "y")).await;
    assert_eq!(vms(&bench), 1);
    let began = shared(&bench, "roots").await;
    assert_eq!(began, "C1Ax V1A F1Ax C2By V2B F2By ");
    let (a, b) = (bench.chain_of(Some(a), None), bench.chain_of(Some(b), None));
    assert_eq!(b.get("/").await.status, 200);
    assert_eq!(a.get("/").await.status, 200);
    let served = wrote(&bench, &began, "X4A ").await;
    assert_eq!(served, "C3B H3B L3B D3B X3B C4A H4A L4A D4A X4A ");
}

#[tokio::test]
async fn another_configuration_is_another_root_context_and_the_old_one_leaves_after_its_streams() {
    let bench = Bench::new();
    let old = bench.chain(rooted("A", "w")).await;
    let held = {
        let (filters, stream) = (
            Arc::clone(&old.filters),
            old.stream(RequestHead::new(Method::GET, "h", "/")),
        );
        let run = filters.run(Arc::clone(&stream), Body::empty(), Arc::new(()));
        OwnedTask::spawn("held", async move {
            let _ = run.await;
        })
    };
    let began = wrote(&bench, "", "H2A ").await;
    assert_eq!(began, "C1Aw V1A F1Aw C2A H2A ");
    let new = bench.chain(rooted("A", "x")).await;
    drop(old);
    assert_eq!(new.get("/").await.status, 200);
    let swapped = wrote(&bench, &began, "X4A ").await;
    assert_eq!(swapped, "C3Ax V3A F3Ax C4A H4A L4A D4A X4A ");
    assert_eq!(vms(&bench), 1);
    drop(held);
    let gone = wrote(&bench, &format!("{began}{swapped}"), "X1A ").await;
    assert_eq!(gone, "L2A D2A X2A D1A X1A ");
}

#[tokio::test]
async fn a_root_context_that_is_not_done_leaves_when_it_says_so() {
    let bench = Bench::new();
    drop(bench.plugin(rooted("A", "p")).await);
    let stays = bench.plugin(rooted("A", "x")).await;
    let all = wrote(&bench, "", "X1A ").await;
    assert_eq!(all, "C1Ap V1A F1Ap C2Ax V2A F2Ax D1A T1A X1A ");
    drop(stays);
}

#[tokio::test]
async fn a_trap_takes_all_plugins_of_the_vm_and_the_fresh_one_has_them_all() {
    let bench = Bench::new();
    let a = bench.plugin_at("a", rooted("A", "w")).await;
    let t = bench.plugin_at("t", rooted("T", "t")).await;
    let (a, t) = (bench.chain_of(Some(a), None), bench.chain_of(Some(t), None));
    let began = shared(&bench, "roots").await;
    let (waits, traps) = tokio::join!(a.get("/"), async {
        wrote(&bench, &began, "H3A ").await;
        t.get("/").await
    });
    for outcome in [waits, traps] {
        assert_eq!(
            (outcome.status, &*outcome.details),
            (503, "wasm_fail_stream")
        );
    }
    // The fresh VM writes from the beginning.
    let fresh = async {
        let expected = "C1Aw V1A F1Aw C2Tt V2T F2Tt ";
        while shared(&bench, "roots").await != expected || vms(&bench) != 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), fresh)
        .await
        .expect("both are there again");
}

#[tokio::test]
async fn vms_are_not_shared_where_that_is_switched_off_or_their_keys_differ() {
    let isolated =
        Bench::with(|options| options.settings.defaults.vm_sharing = VmSharing::Isolated);
    let held = [
        isolated.plugin_at("a", rooted("A", "x")).await,
        isolated.plugin_at("b", rooted("B", "x")).await,
    ];
    assert_eq!(vms(&isolated), 2);
    drop(held);
    let bench = Bench::new();
    let mut held = vec![bench.plugin_at("a", rooted("A", "x")).await];
    for (slot, change) in [
        (
            "id",
            &(|vm: &mut pb_wasm::VmConfig| vm.vm_id = "other".to_owned())
                as &dyn Fn(&mut pb_wasm::VmConfig),
        ),
        ("configuration", &|vm: &mut pb_wasm::VmConfig| {
            vm.configuration = Some(pb::pack(&"other".to_owned()));
        }),
        ("environment", &|vm: &mut pb_wasm::VmConfig| {
            vm.environment_variables = Some(pb_wasm::EnvironmentVariables {
                host_env_keys: Vec::new(),
                key_values: [("k".to_owned(), "v".to_owned())].into(),
            });
        }),
    ] {
        let mut config = rooted("A", "x");
        if let Some(pb_wasm::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
            change(vm);
        }
        held.push(bench.plugin_at(slot, config).await);
    }
    assert_eq!(vms(&bench), 4);
}

#[tokio::test]
async fn who_is_slow_or_refuses_to_configure_harms_no_vm_in_use() {
    let bench =
        Bench::with(|options| options.settings.defaults.callback_hard = Duration::from_millis(20));
    let first = bench.plugin_at("a", rooted("A", "x")).await;
    let slow = bench.plugin_at("slow", rooted("S", "s")).await;
    assert_eq!(vms(&bench), 2, "the slow one is by itself");
    assert!(!Arc::ptr_eq(
        &first.place().expect("a VM").vm,
        &slow.place().expect("a VM").vm
    ));
    let refused = spec(rooted("N", "n"));
    let mut changed = bench.plugins.changed();
    let error = loop {
        match bench.plugins.resolve("n", &refused) {
            Resolution::Failed(error) => break error,
            Resolution::Pending => changed.changed().await.expect("the host lives"),
            other => panic!("{other:?}"),
        }
    };
    assert!(
        error.contains("proxy_on_configure returned false"),
        "{error}"
    );
    assert!(first.place().is_some());
    assert_eq!(bench.status(LifeState::Live).expect("live").vms[0].traps, 0);
}

#[tokio::test]
async fn the_old_version_serves_until_the_new_one_is_live_and_streams_keep_theirs() {
    let bench = Bench::new();
    let mut config = config(built("hello"), "hi");
    let old = bench.plugin(config.clone()).await;
    let chain = bench.chain_of(Some(Arc::clone(&old)), None);
    // A stream that began on the old version.
    chain
        .upstream
        .hang
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let stream = chain.stream(RequestHead::new(Method::GET, "h", "/"));
    let mut run = Box::pin(Arc::clone(&chain.filters).run(stream, Body::empty(), Arc::new(())));
    assert!(timeout(Duration::from_millis(20), &mut run).await.is_err());
    config = super::tests::config(built("hello-v2"), "hi");
    let new = spec(config.clone());
    let Resolution::Previous(previous) = bench.plugins.resolve(SLOT, &new) else {
        panic!("the old one serves while the new one loads");
    };
    assert!(Arc::ptr_eq(&previous, &old));
    drop(previous);
    let new = bench.plugin(config).await;
    assert_eq!(
        bench
            .chain_of(Some(new), None)
            .get("/hello")
            .await
            .body
            .as_deref(),
        Ok("hi from v2\n")
    );
    assert!(
        bench.status(LifeState::Draining).is_some(),
        "a stream holds it"
    );
    drop((old, run, chain));
    // The VM says goodbye on its worker first.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(bench.status(LifeState::Draining).is_none());
    let stats = bench.registry.sets();
    let wasm = stats
        .iter()
        .find(|set| set.prefix() == "wasm.")
        .expect("registered");
    use crate::wasm::status::wasm_stats;
    assert_eq!(wasm.value(wasm_stats::RUNTIME_ACTIVE), 1);
    assert_eq!(wasm.value(wasm_stats::RUNTIME_CREATED), 2);
}

#[tokio::test]
async fn a_version_that_fails_leaves_the_old_one_in_place() {
    let bench = Bench::new();
    let old = bench.plugin(config(built("hello"), "")).await;
    let broken = spec(config(built("broken-configure"), ""));
    let mut changed = bench.plugins.changed();
    changed.mark_unchanged();
    assert!(matches!(
        bench.plugins.resolve(SLOT, &broken),
        Resolution::Previous(_)
    ));
    changed.changed().await.expect("it fails");
    let Resolution::Previous(still) = bench.plugins.resolve(SLOT, &broken) else {
        panic!("the old one goes on");
    };
    assert!(Arc::ptr_eq(&still, &old));
    let failed = bench.status(LifeState::Failed).expect("told");
    assert!(failed.error.expect("told").contains("broken on purpose"));
    assert!(matches!(
        bench.plugins.resolve("another slot", &broken),
        Resolution::Failed(_)
    ));
}

mod sdk {
    //! Unmodified plugins of the Rust SDK.

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn hello_greets_and_marks() {
        let bench = Bench::new();
        for (name, version) in [("hello", "v1"), ("hello-v2", "v2")] {
            let chain = bench.chain(config(built(name), "good day")).await;
            let outcome = chain.get("/hello").await;
            let body = format!("good day from {version}\n");
            assert_eq!((outcome.status, outcome.body), (200, Ok(body)));
            assert!(chain.requests().is_empty());
            let outcome = chain.get("/").await;
            assert_eq!(outcome.headers["x-hello"], version);
            assert_eq!(chain.requests()[0].0.headers["x-hello"], version);
            assert_eq!(
                outcome.headers.contains_key("x-hello-greeting"),
                version == "v2"
            );
        }
    }

    #[tokio::test]
    async fn auth_lets_the_right_token_through() {
        let bench = Bench::new();
        let chain = bench
            .chain(config(built("auth-header"), "open sesame"))
            .await;
        let outcome = chain.get("/").await;
        assert_eq!(outcome.status, 401);
        assert_eq!(outcome.headers["www-authenticate"], "token");
        assert_eq!(outcome.body.as_deref(), Ok("no valid token\n"));
        let mut head = RequestHead::new(Method::GET, "host", "/");
        head.headers
            .insert("x-token", HeaderValue::from_static("open sesame"));
        let outcome = chain.send(head, Body::empty()).await.expect("no reset");
        assert_eq!(outcome.status, 200);
        assert!(!chain.requests()[0].0.headers.contains_key("x-token"));
    }

    #[tokio::test]
    async fn bodies_are_rewritten() {
        let bench = Bench::new();
        let chain = bench.chain(config(built("body-rewrite"), "")).await;
        let outcome = chain.post(&["one ", "two"], None).await.expect("no reset");
        assert_eq!(
            (outcome.status, outcome.body.as_deref()),
            (200, Ok("ANSWER"))
        );
        assert_eq!(chain.requests()[0].1, "[one two]");
    }

    /// Answers every connection with `status`, once.
    async fn serve(status: &'static str) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        crate::base::task::spawn("callout server", async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let _ = io.read(&mut request).await;
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                );
                let _ = io.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_callout_decides_and_counts() {
        let bench = Bench::new();
        for (status, expected) in [("200 OK", 200), ("404 Not Found", 403)] {
            bench
                .clusters
                .store(cluster_map(&bench.registry, serve(status).await));
            let chain = bench.chain(config(built("metrics-callout"), "")).await;
            let outcome = chain.get("/asked").await;
            assert_eq!(outcome.status, expected, "{outcome:?}");
            if expected == 200 {
                assert_eq!(chain.requests()[0].0.headers["x-checked"], "yes");
            }
        }
        assert_eq!(shared(&bench, "last-path").await, "/asked");
        let ticked = async {
            loop {
                let metrics = bench.registry.metrics();
                let value = |name: &str| {
                    metrics
                        .iter()
                        .find(|metric| metric.name() == name)
                        .map(|metric| metric.value())
                };
                assert_eq!(value("wasmcustom.callouts"), Some(2));
                assert_eq!(value("wasmcustom.in_flight"), Some(0));
                if value("wasmcustom.ticks") > Some(0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), ticked)
            .await
            .expect("a tick");
        // Where the cluster is unknown the plugin lets the request on.
        bench.clusters.store(Arc::default());
        let chain = bench.chain(config(built("metrics-callout"), "")).await;
        assert_eq!(chain.get("/").await.status, 200);
    }
}
