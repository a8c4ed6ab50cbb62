//! Delivery: fetched, verified, kept; and the old version until then.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;
use crate::base::Workers;
use crate::cluster::ClusterMap;
use crate::config::WasmSettings;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::wasm::v3 as proto;
use crate::pb::google::protobuf::{Duration as PbDuration, UInt32Value};
use crate::telemetry::metrics::Registry;
use crate::wasm::status::plugin_stats;
use crate::wasm::testing::{built, cluster_map, config, guest, spec};

#[path = "tests/images.rs"]
mod images;
#[path = "tests/queues.rs"]
mod queues;
#[path = "tests/slots.rs"]
mod slots;
#[path = "tests/supply.rs"]
mod supply;
#[path = "tests/tiers.rs"]
mod tiers;
#[path = "tests/watched.rs"]
mod watched;

/// A server that gives each connection the next of its answers, the last one for ever.
struct Server {
    address: SocketAddr,
    hits: Arc<AtomicUsize>,
    _task: OwnedTask,
}

#[derive(Clone)]
enum Reply {
    Code(Vec<u8>),
    Status(&'static str),
    Cut(Vec<u8>),
    Hang,
}

impl Server {
    async fn start(replies: Vec<Reply>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let hits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&hits);
        let task = OwnedTask::spawn("code server", async move {
            let mut held = Vec::new();
            while let Ok((mut io, _)) = listener.accept().await {
                let number = count.fetch_add(1, Relaxed);
                let _ = io.read(&mut [0; 4096]).await;
                let reply = replies
                    .get(number)
                    .or(replies.last())
                    .expect("at least one");
                let (status, length, body) = match reply {
                    Reply::Code(code) => ("200 OK", code.len(), &code[..]),
                    Reply::Status(status) => (*status, 0, &b""[..]),
                    Reply::Cut(code) => ("200 OK", code.len(), &code[..code.len() / 2]),
                    Reply::Hang => {
                        held.push(io);
                        continue;
                    }
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                );
                let _ = io.write_all(&[head.as_bytes(), body].concat()).await;
            }
        });
        Self {
            address,
            hits,
            _task: task,
        }
    }

    fn hits(&self) -> usize {
        self.hits.load(Relaxed)
    }
}

struct Bench {
    _workers: Workers,
    plugins: Plugins,
    registry: Registry,
    clusters: Arc<ArcSwap<ClusterMap>>,
}

impl Bench {
    fn new(cache_dir: Option<&std::path::Path>) -> Self {
        Self::with(|options| options.cache_dir = cache_dir.map(std::path::Path::to_owned))
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let workers = Workers::inline();
        let registry = Registry::new(workers.handles().shards());
        let clusters: Arc<ArcSwap<ClusterMap>> = Arc::default();
        let mut options = Options::new(workers.handles(), registry.clone(), Arc::clone(&clusters));
        change(&mut options);
        Self {
            _workers: workers,
            plugins: Plugins::new(options),
            registry,
            clusters,
        }
    }

    /// With these defaults of all plugins.
    fn with_defaults(yaml: &str) -> Self {
        let settings = crate::pb::from_yaml(&format!("defaults: {{{yaml}}}"));
        let settings = WasmSettings::parse(settings.expect("YAML")).expect("valid");
        Self::with(|options| options.settings = settings)
    }

    fn serve_from(&self, server: &Server) {
        self.clusters
            .store(cluster_map(&self.registry, server.address));
    }

    /// Resolves until `done` says so.
    async fn until(
        &self,
        spec: &Arc<PluginSpec>,
        done: impl Fn(&Resolution) -> bool,
    ) -> Resolution {
        self.again(|| self.plugins.resolve("slot", spec), done)
            .await
    }

    /// Asks whenever something has changed, until `done` says so.
    async fn again(
        &self,
        ask: impl Fn() -> Resolution,
        done: impl Fn(&Resolution) -> bool,
    ) -> Resolution {
        let mut changed = self.plugins.changed();
        let wait = async {
            loop {
                changed.mark_unchanged();
                let resolution = ask();
                if done(&resolution) {
                    return resolution;
                }
                changed.changed().await.expect("the host lives");
            }
        };
        timeout(Duration::from_secs(60), wait)
            .await
            .expect("in time")
    }

    async fn ready(&self, spec: &Arc<PluginSpec>) -> Arc<Plugin> {
        match self
            .until(spec, |resolution| {
                matches!(resolution, Resolution::Ready(_))
            })
            .await
        {
            Resolution::Ready(plugin) => plugin,
            _ => unreachable!("that was waited for"),
        }
    }

    fn stat(&self, stat: crate::telemetry::metrics::Stat) -> u64 {
        let sets = self.registry.sets();
        sets.iter()
            .find(|set| set.prefix() == "wasm.")
            .expect("registered")
            .value(stat)
    }
}

/// `code`, to be fetched with quick retries.
fn remote(code: &[u8], configuration: &str) -> Arc<PluginSpec> {
    let mut config = config(Vec::new(), configuration);
    let millis = |millis: i32| {
        Some(PbDuration {
            seconds: 0,
            nanos: millis * 1_000_000,
        })
    };
    if let Some(proto::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
        vm.code = Some(core::AsyncDataSource {
            specifier: Some(core::async_data_source::Specifier::Remote(
                core::RemoteDataSource {
                    http_uri: Some(core::HttpUri {
                        uri: "http://code/plugin.wasm".to_owned(),
                        timeout: millis(500),
                        http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(
                            "callout".to_owned(),
                        )),
                    }),
                    sha256: Digest::of(code).to_string(),
                    retry_policy: Some(core::RetryPolicy {
                        retry_back_off: Some(core::BackoffStrategy {
                            base_interval: millis(1),
                            max_interval: millis(5),
                        }),
                        num_retries: Some(UInt32Value { value: 1 }),
                        ..Default::default()
                    }),
                },
            )),
        });
    }
    spec(config)
}

#[tokio::test]
async fn remote_code_is_fetched_once_and_goes_live() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    bench.serve_from(&server);
    let first = remote(&code, "one");
    assert!(matches!(
        bench.plugins.resolve("slot", &first),
        Resolution::Pending
    ));
    bench.ready(&first).await;
    // Another configuration of the same code needs no other fetch.
    bench.ready(&remote(&code, "two")).await;
    assert_eq!(server.hits(), 1);
    assert_eq!(bench.stat(wasm_stats::REMOTE_LOAD_FETCH_SUCCESSES), 1);
    assert_eq!(bench.stat(wasm_stats::REMOTE_LOAD_CACHE_MISSES), 1);
    assert_eq!(bench.stat(wasm_stats::REMOTE_LOAD_CACHE_HITS), 1);
}

#[tokio::test]
async fn two_that_want_the_same_code_share_one_fetch() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    bench.serve_from(&server);
    let (a, b) = (remote(&code, "a"), remote(&code, "b"));
    bench.plugins.resolve("slot a", &a);
    bench.plugins.resolve("slot b", &b);
    bench.ready(&a).await;
    bench.ready(&b).await;
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn every_bad_answer_is_told_and_tried_again() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let server = Server::start(vec![
        Reply::Status("404 Not Found"),
        Reply::Status("302 Found"),
        Reply::Code(guest("order")),
        Reply::Cut(code.clone()),
        Reply::Hang,
        Reply::Code(Vec::new()),
        Reply::Code(code.clone()),
    ])
    .await;
    bench.serve_from(&server);
    let spec = remote(&code, "");
    let failed = bench
        .until(&spec, |resolution| {
            matches!(resolution, Resolution::Failed(_))
        })
        .await;
    let Resolution::Failed(error) = failed else {
        unreachable!("that was waited for")
    };
    assert!(error.contains("http://code/plugin.wasm"), "{error}");
    bench.ready(&spec).await;
    assert_eq!(server.hits(), 7);
    assert_eq!(bench.stat(wasm_stats::REMOTE_LOAD_FETCH_FAILURES), 6);
    let status = bench.plugins.status();
    assert_eq!(
        (status.len(), status[0].state, &status[0].error),
        (1, State::Live, &None)
    );
    let told: Vec<_> = status[0]
        .history
        .iter()
        .map(|event| &*event.detail)
        .collect();
    for part in ["404", "302", "sha256 is"] {
        assert!(
            told.iter().any(|detail| detail.contains(part)),
            "{part}: {told:?}"
        );
    }
}

#[tokio::test]
async fn the_old_version_serves_while_the_source_of_the_new_one_is_down() {
    let bench = Bench::new(None);
    let old = bench.ready(&spec(config(guest("add-header"), ""))).await;
    let code = guest("order");
    let new = remote(&code, "");
    // No such cluster: more than one failure goes by.
    let mut changed = bench.plugins.changed();
    for _ in 0..4 {
        let Resolution::Previous(serving) = bench.plugins.resolve("slot", &new) else {
            panic!("the old one serves");
        };
        assert!(Arc::ptr_eq(&serving, &old));
        changed.changed().await.expect("a failure");
    }
    // The cluster comes.
    let server = Server::start(vec![Reply::Code(code)]).await;
    bench.serve_from(&server);
    let new = bench.ready(&new).await;
    assert!(!Arc::ptr_eq(&new, &old));
}

#[tokio::test]
async fn what_is_counted_of_a_plugin_goes_with_its_last_version() {
    let bench = Bench::new(None);
    let sets = || -> Vec<_> {
        let mut sets = bench.registry.sets();
        sets.retain(|set| set.prefix() == "wasm.test.");
        sets
    };
    let reloads = || {
        let counts = sets().into_iter();
        let counts = counts.map(|set| set.value(plugin_stats::VM_RELOAD_SUCCESS));
        counts.collect::<Vec<_>>()
    };
    let old = bench.ready(&spec(config(guest("add-header"), "one"))).await;
    old.stats().inc(plugin_stats::VM_RELOAD_SUCCESS);
    let new = bench.ready(&spec(config(guest("add-header"), "two"))).await;
    new.stats().inc(plugin_stats::VM_RELOAD_SUCCESS);
    bench.plugins.retain(|_| true);
    bench.plugins.retain(|_| true);
    drop(old);
    assert_eq!(reloads(), [2], "one for both, and the first is gone");
    // Another one of the name, of which there is nothing yet but that it is wanted.
    let wanted = remote(&guest("order"), "");
    bench.plugins.resolve("other", &wanted);
    drop(new);
    bench.plugins.retain(|slot| slot == "other");
    bench.plugins.retain(|slot| slot == "other");
    assert_eq!(bench.plugins.status().len(), 1);
    assert_eq!(reloads(), [2]);
    bench.plugins.retain(|_| false);
    bench.plugins.retain(|_| false);
    assert!(sets().is_empty());
}

#[tokio::test]
async fn a_restart_needs_no_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    for _ in 0..2 {
        let bench = Bench::new(Some(folder.path()));
        bench.serve_from(&server);
        bench.ready(&remote(&code, "")).await;
        assert_eq!(server.hits(), 1);
    }
}

#[tokio::test]
async fn the_compiler_is_told_wherever_the_code_comes_from() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().expect("a folder");
    let code = built("hello");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&code).expect("into memory");
    let packed = packed.finish().expect("into memory");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    // Fetched, compiled before, at hand, and packed.
    for wanted in [
        remote(&code, ""),
        remote(&code, ""),
        spec(config(code.clone(), "")),
        spec(config(packed, "")),
    ] {
        let bench = Bench::new(Some(folder.path()));
        bench.serve_from(&server);
        let plugin = bench.ready(&wanted).await;
        let sdk = plugin.live_status().sdk.expect("known");
        assert!(sdk.starts_with("Rust"), "{sdk}");
        bench.plugins.stop().await;
    }
}

#[tokio::test]
async fn modules_of_code_at_hand_are_no_entries_of_fetched_code() {
    let bench = Bench::with(|options| options.settings.modules_in_memory = 2);
    let entries = || bench.stat(wasm_stats::REMOTE_LOAD_CACHE_ENTRIES);
    let local = |name: &str| spec(config(guest(name), ""));
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    bench.serve_from(&server);
    bench.ready(&local("order")).await;
    assert_eq!(entries(), 0);
    bench.ready(&remote(&code, "")).await;
    assert_eq!(entries(), 1);
    // It has to go from memory for others.
    bench.ready(&local("property")).await;
    assert_eq!(entries(), 1);
    bench
        .ready(&spec(config(guest("order"), "of another version")))
        .await;
    assert_eq!(entries(), 0);
}

#[tokio::test]
async fn the_end_of_the_process_waits_for_what_is_to_be_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let bench = Bench::new(Some(folder.path()));
    bench.ready(&spec(config(guest("add-header"), ""))).await;
    assert_eq!(bench.plugins.0.writes.lock().len(), 1);
    let (goes_on, waits) = std::sync::mpsc::channel();
    let slow = tokio::task::spawn_blocking(move || waits.recv().expect("it goes on"));
    bench.plugins.0.writes.lock().push(slow);
    let mut stop = std::pin::pin!(bench.plugins.stop());
    tokio::select! {
        biased;
        () = &mut stop => panic!("it does not wait"),
        () = tokio::task::yield_now() => {}
    }
    goes_on.send(()).expect("somebody waits");
    stop.await;
    let entries = std::fs::read_dir(folder.path()).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let kept = names.filter(|name| name.as_ref().is_ok_and(|name| name.ends_with(".cwasm")));
    assert_eq!(kept.count(), 1);
}

#[tokio::test]
async fn packed_code_goes_live_and_its_sum_is_that_of_the_package() {
    use std::io::Write as _;
    let bench = Bench::new(None);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&guest("add-header")).expect("into memory");
    let packed = packed.finish().expect("into memory");
    let server = Server::start(vec![Reply::Code(packed.clone())]).await;
    bench.serve_from(&server);
    bench.ready(&remote(&packed, "")).await;
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn who_is_not_wanted_any_more_stops_loading() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Status("503 Service Unavailable")]).await;
    bench.serve_from(&server);
    let spec = remote(&code, "");
    bench
        .until(&spec, |resolution| {
            matches!(resolution, Resolution::Failed(_))
        })
        .await;
    bench.plugins.retain(|_| false);
    bench.plugins.retain(|_| false);
    assert!(bench.plugins.status().is_empty());
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let hits = server.hits();
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.hits(), hits);
}

#[tokio::test]
async fn who_serves_because_its_successor_failed_is_shown_as_live() {
    let bench = Bench::new(None);
    let good = spec(config(guest("add-header"), ""));
    let old = bench.ready(&good).await;
    bench.plugins.retain(|_| true);
    let bad = spec(config(guest("refuse-configure"), ""));
    let key = bad.key();
    let failed = |plugins: &Plugins| {
        let statuses = plugins.status();
        let of_it = statuses.into_iter().find(|status| status.key == key);
        of_it.is_some_and(|status| status.state == State::Failed)
    };
    let mut changed = bench.plugins.changed();
    while !failed(&bench.plugins) {
        let resolution = bench.plugins.resolve("slot", &bad);
        assert!(matches!(resolution, Resolution::Previous(_)));
        // Each a Generation, as configurations come.
        bench.plugins.retain(|_| true);
        bench.plugins.retain(|_| true);
        if !failed(&bench.plugins) {
            changed.changed().await.expect("the host lives");
        }
    }
    let told = |key| {
        let statuses = bench.plugins.status();
        let of_it: Vec<_> = statuses
            .into_iter()
            .filter(|status| status.key == key)
            .map(|status| (status.state, status.slots))
            .collect();
        of_it
    };
    let slots = vec!["slot".to_owned()];
    assert_eq!(told(good.key()), [(State::Live, slots.clone())]);
    assert_eq!(told(key), [(State::Failed, slots.clone())]);
    // Asked for again it is there at once; the bad one goes.
    let Resolution::Ready(again) = bench.plugins.resolve("slot", &good) else {
        panic!("it has served all the while");
    };
    assert!(Arc::ptr_eq(&again, &old));
    bench.plugins.retain(|_| true);
    bench.plugins.retain(|_| true);
    assert!(told(key).is_empty());
    // A good successor ends it, as ever; streams in flight hold it.
    let next = spec(config(guest("add-header"), "next"));
    bench.ready(&next).await;
    bench.plugins.retain(|_| true);
    bench.plugins.retain(|_| true);
    assert_eq!(told(next.key()), [(State::Live, slots)]);
    assert_eq!(told(good.key()), [(State::Draining, Vec::new())]);
}

#[tokio::test]
async fn what_is_no_capability_is_not_restricted() {
    let bench = Bench::new(None);
    let mut config = config(guest("capabilities"), "");
    let allowed = ["proxy_on_configure", "proxy_set_shared_data"];
    if let Some(proto::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
        vm.capability_restriction_config = Some(proto::CapabilityRestrictionConfig {
            allowed_capabilities: allowed
                .map(|name| (name.to_owned(), proto::SanitizationConfig {}))
                .into(),
        });
    }
    let plugin = bench.ready(&spec(config)).await;
    assert!(plugin.send_stats(&Arc::default()));
    let told = async {
        while bench.plugins.shared_value("vm", b"told").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), told).await.expect("told");
}

fn vm_of(plugin: &Plugin) -> Arc<crate::wasm::Vm> {
    plugin.place().expect("a VM").vm
}

fn named(name: &str, configuration: &str) -> Arc<PluginSpec> {
    let mut config = config(guest("add-header"), configuration);
    config.name = name.to_owned();
    spec(config)
}

#[tokio::test]
async fn plugins_of_one_key_share_vms_where_their_settings_are_alike() {
    use crate::config::WasmSettings;
    let settings = crate::pb::from_yaml(
        "
        overrides:
        - {plugin: {exact: small}, settings: {memory_limit_bytes: 1048576}}
        - {plugin: {exact: alone}, settings: {vm_sharing: ISOLATED}}
        - {plugin: {exact: tried}, settings: {rollout: {share_percent: 10}}}
        ",
    );
    let settings = WasmSettings::parse(settings.expect("YAML")).expect("valid");
    let bench = Bench::with(|options| options.settings = settings);
    let mut plugins = Vec::new();
    for name in ["one", "two", "small", "alone", "tried"] {
        let spec = named(name, "");
        let plugin = loop {
            let mut changed = bench.plugins.changed();
            match bench.plugins.resolve(name, &spec) {
                Resolution::Ready(plugin) => break plugin,
                Resolution::Pending => changed.changed().await.expect("the host lives"),
                other => panic!("{other:?}"),
            }
        };
        plugins.push(plugin);
    }
    let [one, two, small, alone, tried] = &plugins[..] else {
        panic!("five");
    };
    assert!(Arc::ptr_eq(&vm_of(one), &vm_of(two)));
    assert!(Arc::ptr_eq(&vm_of(one), &vm_of(tried)), "nothing to try");
    for other in [small, alone] {
        assert!(!Arc::ptr_eq(&vm_of(one), &vm_of(other)));
    }
    // A successor on trial breaks nobody else's VM.
    let next = named("tried", "next");
    let mut changed = bench.plugins.changed();
    let on_trial = loop {
        match bench.plugins.resolve("tried", &next) {
            Resolution::Trial(old, _) => {
                assert!(Arc::ptr_eq(&old, tried));
                let state = bench.plugins.0.state.lock();
                let outcome = state.versions[&next.key()].outcome.lock();
                let Outcome::Live(plugin) = &*outcome else {
                    panic!("it is live");
                };
                break Arc::clone(plugin);
            }
            Resolution::Previous(_) => changed.changed().await.expect("the host lives"),
            other => panic!("{other:?}"),
        }
    };
    assert!(!Arc::ptr_eq(&vm_of(tried), &vm_of(&on_trial)));
}
