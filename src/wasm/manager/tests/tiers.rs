//! The baseline tier of a first start, and the optimised code behind it.

use bytes::Bytes;

use super::*;
use crate::wasm::module::{Cache, Module};

/// Code of every size has a baseline tier.
fn tiered(cache_dir: Option<&std::path::Path>) -> Bench {
    Bench::with(|options| {
        options.cache_dir = cache_dir.map(std::path::Path::to_owned);
        options.settings.baseline_from = Some(1);
    })
}

/// What it was when it was live, in order.
fn lives(status: &PluginStatus) -> Vec<&str> {
    let history = status.history.iter();
    history
        .filter(|event| event.state == State::Live)
        .map(|event| &*event.detail)
        .collect()
}

impl Bench {
    /// What is said of the version of `spec` that is wanted.
    fn version(&self, spec: &Arc<PluginSpec>) -> PluginStatus {
        let all = self.plugins.status().into_iter();
        let mut wanted = all.filter(|status| status.state != State::Draining);
        let found = wanted.find(|status| status.key == spec.key());
        found.expect("it is wanted")
    }

    /// Waits until `plugin`, which serves for `spec`, runs its optimised code.
    async fn optimised(&self, spec: &Arc<PluginSpec>, plugin: &Arc<Plugin>) {
        let told = || lives(&self.version(spec)).contains(&"optimised code");
        eventually("it is optimised", told).await;
        assert_eq!(plugin.live_status().tier, "optimised");
        assert!(Arc::ptr_eq(&self.ready(spec).await, plugin));
    }
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.expect(what);
}

#[tokio::test]
async fn optimised_code_takes_over_from_the_baseline_code_of_a_first_start() {
    let root = tempfile::tempdir().expect("a folder");
    let kept = || {
        let entries = std::fs::read_dir(root.path()).expect("a folder").flatten();
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap_or_default();
        entries
            .map(name)
            .filter(|name| name.ends_with(".cwasm") && !name.contains("baseline"))
            .count()
    };
    let spec = spec(config(guest("add-header"), "one"));
    let bench = tiered(Some(root.path()));
    assert_eq!(bench.plugins.canary(&spec).await, Ok(()));
    let plugin = bench.ready(&spec).await;
    assert_eq!(plugin.live_status().tier, "baseline");
    bench.optimised(&spec, &plugin).await;
    assert_eq!(
        lives(&bench.version(&spec)),
        ["baseline code", "optimised code"]
    );
    // The same VM, which nobody has to leave.
    let all = bench.plugins.status();
    assert!(all.iter().all(|status| status.state != State::Draining));
    assert_eq!(plugin.vm_status()[0].created, 1);
    assert_eq!(bench.stat(wasm_stats::WASM_VM_COUNT), 1);
    drop(plugin);

    // Another version of the same code, and another process: nobody starts at the beginning.
    let second = super::spec(config(guest("add-header"), "two"));
    let plugin = bench.ready(&second).await;
    assert_eq!(plugin.live_status().tier, "optimised");
    eventually("its best is kept", || kept() == 1).await;
    drop((plugin, bench));
    let bench = tiered(Some(root.path()));
    let plugin = bench.ready(&spec).await;
    assert_eq!(plugin.live_status().tier, "optimised");
    let version = bench.version(&spec);
    assert_eq!((lives(&version), version.compile_time), (vec![""], None));
}

/// As after a process that ended before its code was optimised.
#[tokio::test]
async fn baseline_code_on_the_disk_is_a_start_and_no_end() {
    let root = tempfile::tempdir().expect("a folder");
    let code = Bytes::from(guest("add-header"));
    let digest = Digest::of(&code);
    let runtime = crate::wasm::engine::Runtime::new().expect("an engine");
    let cache = Cache::open(root.path(), runtime.engine()).expect("opens");
    cache.store(&Module::compile_soon(runtime.engine(), &code, digest, 1).expect("compiles"));
    let bench = tiered(Some(root.path()));
    let spec = spec(config(code.to_vec(), ""));
    let plugin = bench.ready(&spec).await;
    assert_eq!(plugin.live_status().tier, "baseline");
    assert_eq!(bench.version(&spec).compile_time, None);
    bench.optimised(&spec, &plugin).await;
    assert!(bench.version(&spec).compile_time.is_some());
}

#[tokio::test]
async fn a_change_of_what_serves_is_optimised_before_it_is_live() {
    let bench = tiered(None);
    let first = spec(config(guest("add-header"), ""));
    let plugin = bench.ready(&first).await;
    bench.optimised(&first, &plugin).await;
    drop(plugin);
    let changed = spec(config(guest("property"), "plugin_name"));
    assert_eq!(bench.plugins.canary(&changed).await, Ok(()));
    let plugin = bench.ready(&changed).await;
    assert_eq!(plugin.live_status().tier, "optimised");
    assert_eq!(lives(&bench.version(&changed)), [""]);
}

#[tokio::test]
async fn code_below_the_limit_and_all_of_it_without_one_is_optimised_at_once() {
    for from in [Some(1 << 20), None] {
        let bench = Bench::with(|options| options.settings.baseline_from = from);
        let spec = spec(config(guest("add-header"), ""));
        let plugin = bench.ready(&spec).await;
        assert_eq!(plugin.live_status().tier, "optimised");
        assert_eq!(lives(&bench.version(&spec)), [""]);
    }
}

#[tokio::test]
async fn fetched_code_is_optimised_without_another_fetch() {
    let bench = tiered(None);
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Code(code.clone())]).await;
    bench.serve_from(&server);
    let spec = remote(&code, "");
    let plugin = bench.ready(&spec).await;
    bench.optimised(&spec, &plugin).await;
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn versions_of_one_vm_key_end_up_in_one_vm() {
    let bench = tiered(None);
    let specs = ["one", "two"].map(|name| {
        let mut config = config(guest("add-header"), name);
        config.name = name.to_owned();
        spec(config)
    });
    let together = || {
        let ready = specs
            .each_ref()
            .map(|spec| bench.plugins.resolve(&spec.name, spec));
        bench.plugins.retain(|_| true);
        ready.iter().all(|resolution| match resolution {
            Resolution::Ready(plugin) => plugin.live_status().tier == "optimised",
            _ => false,
        })
    };
    eventually("both are optimised", together).await;
    eventually("in one VM", || bench.stat(wasm_stats::WASM_VM_COUNT) == 1).await;
}

#[tokio::test]
async fn code_whose_instances_cannot_move_is_optimised_at_once() {
    let bench = tiered(None);
    let text = r#"(module
        (memory (export "memory") 1)
        (func $begin)
        (start $begin)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024)))"#;
    let spec = spec(config(wat::parse_str(text).expect("valid text"), ""));
    let plugin = bench.ready(&spec).await;
    assert_eq!(plugin.live_status().tier, "optimised");
    assert_eq!(lives(&bench.version(&spec)), [""]);
}

/// Of code that is compiled for somebody who is gone, the next one has the best.
#[tokio::test]
async fn what_is_compiled_behind_is_there_though_its_version_is_gone() {
    let bench = tiered(None);
    let first = spec(config(guest("add-header"), "0"));
    drop(bench.ready(&first).await);
    for _ in 0..2 {
        bench.plugins.retain(|_| false);
    }
    let mut number = 0;
    loop {
        number += 1;
        let next = spec(config(guest("add-header"), &number.to_string()));
        let plugin = bench.ready(&next).await;
        if plugin.live_status().tier == "optimised" && lives(&bench.version(&next)) == [""] {
            break;
        }
        drop(plugin);
        for _ in 0..2 {
            bench.plugins.retain(|_| false);
        }
        tokio::task::yield_now().await;
        assert!(number < 10_000, "it is never there");
    }
}

/// Streams hold a VM whose version has gone before its optimised code was there; who comes back finds it.
#[tokio::test]
async fn a_vm_moves_though_its_version_is_gone() {
    let bench = tiered(None);
    let first = spec(config(guest("counter"), ""));
    let held = bench.ready(&first).await;
    assert_eq!(held.live_status().tier, "baseline");
    for _ in 0..2 {
        bench.plugins.retain(|_| false);
    }
    let moved = || held.live_status().tier == "optimised";
    eventually("it is optimised", moved).await;
    let back = bench.ready(&first).await;
    assert_eq!(back.live_status().tier, "optimised");
    assert_eq!(bench.stat(wasm_stats::WASM_VM_COUNT), 1);
    assert_eq!(held.vm_status()[0].created, 1);
}
