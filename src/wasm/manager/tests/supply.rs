//! Where code is had from: what is asked, when, and what it takes until that gives up.

use super::super::supply::{Outlook, Supply};
use super::images::registry::{FakeRegistry, Fault, Layout};
use super::images::{ALWAYS, bench, configured_image, image};
use super::*;

/// A docker configuration that says nothing of this registry, and yet is another one than others.
fn secret(name: &str) -> String {
    format!(r#"{{"auths": {{"{name}.test": {{"registrytoken": "x"}}}}}}"#)
}

/// Begins as a module does, and is cut.
const CUT: &[u8] = b"\0asm\x01\0\0\0\x01\x7f\x01";

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.expect(what);
}

impl Bench {
    async fn failed(&self, spec: &Arc<PluginSpec>) {
        let failed = |resolution: &Resolution| matches!(resolution, Resolution::Failed(_));
        self.until(spec, failed).await;
    }

    /// What is said of the one version.
    fn told(&self) -> String {
        let statuses = self.plugins.status();
        let told = statuses.first().and_then(|status| status.error.clone());
        told.unwrap_or_default()
    }
}

#[tokio::test]
async fn a_hopeless_secret_does_not_end_the_retries_with_a_good_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    let (manifest, _) = registry.push("v1", Layout::Oci, &guest("add-header"));
    let sum = manifest.trim_start_matches("sha256:");
    let with = |secret: &str| {
        let secret = [("IMAGE_PULL_SECRET", secret)];
        image(&registry, "a:v1", sum, &secret)
    };
    let (missing, right) = (with(""), with(&secret("a")));
    assert_eq!(missing.key(), right.key());
    // The bad one comes first.
    let first = bench(&registry, folder.path(), |_| ());
    first.failed(&missing).await;
    assert!(first.told().contains("secret is missing"));
    assert_eq!(first.plugins.status()[0].state, State::Failed);
    registry.set_fault(Fault::Down);
    first.plugins.resolve("slot", &right);
    eventually("it is asked", || !registry.requests().is_empty()).await;
    registry.set_fault(Fault::None);
    first.ready(&right).await;
    drop(first);
    // It comes in between.
    let folder = tempfile::tempdir().expect("a folder");
    let second = bench(&registry, folder.path(), |_| ());
    registry.set_fault(Fault::Down);
    second.failed(&right).await;
    // The right one is configured no more: what is told is what is wrong with the other.
    let failed = || second.plugins.status()[0].state == State::Failed;
    eventually("it is tried", || {
        second.plugins.resolve("slot", &missing);
        failed() && second.told().contains("secret is missing")
    })
    .await;
    second.plugins.resolve("slot", &right);
    registry.set_fault(Fault::None);
    second.ready(&right).await;
}

/// Sources of one version.
fn sources<const N: usize>(registry: &FakeRegistry) -> [Code; N] {
    let sum = Digest::of(b"any").to_string();
    let names: [String; N] = std::array::from_fn(|number| secret(&number.to_string()));
    names.map(|secret| {
        let secret = [("IMAGE_PULL_SECRET", &*secret)];
        let mut code = image(registry, "a:v1", &sum, &secret).code.clone();
        if let Code::Remote(remote) = &mut code {
            remote.backoff_base = Duration::from_secs(1);
            remote.backoff_cap = Duration::from_secs(30);
        }
        code
    })
}

/// Who is asked how often in an hour in which nothing can be had and the configuration names `named`.
async fn an_hour(supply: &Supply, asked: &[Code], named: &[Code]) -> Vec<usize> {
    an_hour_with(supply, asked, named, None).await
}

/// Likewise, where one says nothing.
async fn an_hour_with(
    supply: &Supply,
    asked: &[Code],
    named: &[Code],
    silent: Option<&Code>,
) -> Vec<usize> {
    let mut counts = vec![0; asked.len()];
    let ask = async {
        loop {
            let code = supply.turn().await;
            let index = asked.iter().position(|known| *known == code);
            counts[index.expect("one of them")] += 1;
            if Some(&code) == silent {
                supply.another(&code).await;
                supply.abandoned(&code);
                continue;
            }
            supply.failed(&code, "", Outlook::Soon, None);
            for code in named {
                supply.offer(code);
            }
        }
    };
    let _ = timeout(Duration::from_secs(3600), ask).await;
    counts
}

#[tokio::test(start_paused = true)]
async fn each_source_that_fails_is_asked_less_and_less() {
    let registry = FakeRegistry::start().await;
    for number in [1, 3, 12] {
        let codes = &sources::<12>(&registry)[..number];
        let supply = Supply::new(codes[0].clone());
        let counts = an_hour(&supply, codes, codes).await;
        // Each every 15 s on average; of more than are tried each has its turn.
        let fewest = if number > 8 { 10 } else { 200 };
        let fair = counts.iter().all(|count| (fewest..300).contains(count));
        assert!(fair, "{counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_configured_no_more_is_asked_no_more() {
    let registry = FakeRegistry::start().await;
    let codes = sources::<2>(&registry);
    let supply = Supply::new(codes[0].clone());
    let counts = an_hour(&supply, &codes, &codes[..1]).await;
    assert_eq!(counts[1], 0);
    supply.offer(&codes[1]);
    let counts = an_hour(&supply, &codes, &codes[1..]).await;
    assert!(counts[0] <= 2 && counts[1] > 200, "{counts:?}");
    // Nor is what has another one fail as it is.
    supply.offer(&codes[0]);
    supply.failed(&codes[1], "", Outlook::Never, None);
    let counts = an_hour(&supply, &codes, &codes).await;
    assert!(counts[0] > 200 && counts[1] == 0, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn others_are_asked_again_beside_one_that_says_nothing() {
    let registry = FakeRegistry::start().await;
    let codes = sources::<2>(&registry);
    let silent = Some(&codes[0]);
    let begin = || {
        let supply = Supply::new(codes[0].clone());
        supply.offer(&codes[1]);
        supply
    };
    // It has more time each time, so that a slow one comes to an end.
    let counts = an_hour_with(&begin(), &codes, &codes, silent).await;
    assert!((10..25).contains(&counts[0]), "{counts:?}");
    assert!(counts[1] >= counts[0] - 1, "{counts:?}");
    // What is configured no more is not waited for.
    let counts = an_hour_with(&begin(), &codes, &codes[1..], silent).await;
    assert!(counts[0] <= 2 && counts[1] > 200, "{counts:?}");
}

#[tokio::test]
async fn a_new_version_of_the_resource_is_no_other_source() {
    let registry = FakeRegistry::start().await;
    let sum = Digest::of(b"any").to_string();
    let of = |version: &str| {
        let variables = [("PLUGIN_RESOURCE_VERSION", version)];
        image(&registry, "a:v1", &sum, &variables).code.clone()
    };
    let supply = Supply::new(of("1"));
    let code = supply.turn().await;
    supply.failed(&code, "", Outlook::Never, None);
    supply.offer(&of("2"));
    let turn = timeout(Duration::from_millis(50), supply.turn()).await;
    assert!(turn.is_err(), "{turn:?}");
}

#[tokio::test]
async fn a_tag_with_a_bad_module_is_asked_until_it_has_a_good_one() {
    for bad in [CUT.to_vec(), guest("refuse-configure")] {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = FakeRegistry::start().await;
        registry.push("v1", Layout::Cncf, &bad);
        let bench = bench(&registry, folder.path(), |_| ());
        let spec = image(&registry, "a:v1", "nil", &[]);
        bench.failed(&spec).await;
        registry.push("v1", Layout::Oci, &guest("add-header"));
        bench.ready(&spec).await;
    }
}

#[tokio::test]
async fn what_a_tag_gave_before_serves_after_a_restart_where_it_has_a_bad_module() {
    for bad in [CUT.to_vec(), guest("refuse-configure")] {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = FakeRegistry::start().await;
        registry.push("v1", Layout::Cncf, &guest("add-header"));
        let spec = image(&registry, "a:v1", "nil", &ALWAYS);
        bench(&registry, folder.path(), |_| ()).ready(&spec).await;
        registry.push("v1", Layout::Cncf, &bad);
        for _ in 0..2 {
            let bench = bench(&registry, folder.path(), |_| ());
            bench.ready(&spec).await;
            assert!(bench.told().contains("earlier run"), "{}", bench.told());
        }
        let bench = bench(&registry, folder.path(), |_| ());
        let old = bench.ready(&spec).await;
        // It goes on being asked.
        let asked = registry.counts().0;
        eventually("it is asked", || registry.counts().0 > asked + 2).await;
        registry.push("v1", Layout::Oci, &guest("order"));
        let other = |resolution: &Resolution| matches!(resolution, Resolution::Ready(plugin) if !Arc::ptr_eq(plugin, &old));
        bench.until(&spec, other).await;
    }
}

/// A module that takes no configuration.
fn plain() -> Vec<u8> {
    let text = r#"
        (module
          (memory (export "memory") 1)
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 1024))
          (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (local.get 1))))
    "#;
    wat::parse_str(text).expect("valid text")
}

#[tokio::test]
async fn what_a_version_was_live_with_stands_though_the_tag_gave_another_one_other_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    let of = |configuration| configured_image(&registry, "a:v1", "nil", &ALWAYS, configuration);
    registry.push("v1", Layout::Cncf, &guest("add-header"));
    let run = || bench(&registry, folder.path(), |_| ());
    run().ready(&of("any")).await;
    registry.push("v1", Layout::Cncf, &plain());
    run().ready(&of("")).await;
    let bench = run();
    bench.ready(&of("any")).await;
    assert!(bench.told().contains("earlier run"), "{}", bench.told());
}

#[tokio::test]
async fn who_cannot_use_what_a_tag_gave_another_one_has_it_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    let of = |configuration| configured_image(&registry, "a:v1", "nil", &[], configuration);
    registry.push("v1", Layout::Cncf, &plain());
    let run = || bench(&registry, folder.path(), |_| ());
    run().ready(&of("")).await;
    let other = run();
    other.failed(&of("any")).await;
    registry.push("v1", Layout::Cncf, &guest("refuse-configure"));
    eventually("it is asked", || registry.counts().1 > 1).await;
    registry.push("v1", Layout::Oci, &guest("add-header"));
    other.ready(&of("any")).await;
    drop(other);
    // To the first its answer stands.
    let asked = registry.counts();
    let bench = run();
    bench.ready(&of("")).await;
    let sum = bench.plugins.status()[0].sha256;
    assert_eq!(sum, Some(Digest::of(&plain())));
    assert_eq!(registry.counts(), asked);
}

#[tokio::test]
async fn a_timeout_of_zero_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    registry.push("v1", Layout::Oci, &guest("add-header"));
    let mut spec = image(&registry, "a:v1", "nil", &[]);
    if let Code::Remote(remote) = &mut Arc::get_mut(&mut spec).expect("it is new").code {
        remote.timeout = Duration::ZERO;
    }
    let bench = bench(&registry, folder.path(), |_| ());
    bench.ready(&spec).await;
}

#[tokio::test]
async fn who_wants_the_same_shares_its_failure() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let server = Server::start(vec![Reply::Hang]).await;
    bench.serve_from(&server);
    let specs: Vec<_> = (0..8)
        .map(|number| remote(&code, &number.to_string()))
        .collect();
    for spec in &specs {
        bench.plugins.resolve(&spec.key().to_string(), spec);
    }
    eventually("all have failed", || {
        let statuses = bench.plugins.status();
        statuses.iter().all(|status| status.error.is_some())
    })
    .await;
    // The second is that of their next try.
    assert!(server.hits() <= 2, "{}", server.hits());
    assert!(bench.stat(wasm_stats::REMOTE_LOAD_CACHE_NEGATIVE_HITS) >= 7);
}

/// A host that waits for a registry that says nothing, for so long, and the same image of another registry.
async fn waiting_for_silence(
    good: &FakeRegistry,
    folder: &std::path::Path,
    timeout: Duration,
) -> (FakeRegistry, Bench, Arc<PluginSpec>) {
    let dead = FakeRegistry::start().await;
    dead.set_fault(Fault::Silent);
    let (manifest, _) = good.push("v1", Layout::Oci, &guest("add-header"));
    let sum = manifest.trim_start_matches("sha256:");
    let bench = bench(good, folder, |options| {
        let dead = dead.address.to_string();
        options.settings.insecure_registries.push(dead.into());
    });
    let mut first = image(&dead, "a:v1", sum, &[]);
    if let Code::Remote(remote) = &mut Arc::get_mut(&mut first).expect("it is new").code {
        remote.timeout = timeout;
    }
    bench.plugins.resolve("slot", &first);
    eventually("it is asked", || !dead.requests().is_empty()).await;
    (dead, bench, image(good, "b:v1", sum, &[]))
}

#[tokio::test]
async fn another_source_does_not_wait_for_one_that_says_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = FakeRegistry::start().await;
    let long = Duration::from_secs(600);
    let (_dead, bench, second) = waiting_for_silence(&good, folder.path(), long).await;
    bench.ready(&second).await;
}

#[tokio::test]
async fn a_source_that_fails_is_asked_again_though_another_one_says_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = FakeRegistry::start().await;
    good.set_fault(Fault::Down);
    let (_dead, bench, second) = waiting_for_silence(&good, folder.path(), Duration::ZERO).await;
    bench.plugins.resolve("slot", &second);
    eventually("it fails", || !bench.told().is_empty()).await;
    good.set_fault(Fault::None);
    bench.ready(&second).await;
}

#[tokio::test]
async fn code_at_hand_takes_the_place_of_a_source_that_fails() {
    let bench = Bench::new(None);
    let code = guest("add-header");
    let (fetched, at_hand) = (remote(&code, ""), spec(config(code, "")));
    assert_eq!(fetched.key(), at_hand.key());
    // There is no such cluster.
    bench.failed(&fetched).await;
    bench.ready(&at_hand).await;
}

#[tokio::test]
async fn a_version_without_room_goes_live_when_there_is_some() {
    let bench = Bench::new(None);
    let engine = match bench.plugins.0.machine() {
        Ok(machine) => machine.runtime.engine(),
        Err(error) => panic!("{error}"),
    };
    let module = wasmtime::Module::new(engine, b"\0asm\x01\0\0\0").expect("a module");
    let mut store = wasmtime::Store::new(engine, ());
    let full = (0..5000).any(|_| wasmtime::Instance::new(&mut store, &module, &[]).is_err());
    // Where the machine cannot reserve a pool there is no end.
    if full {
        let spec = spec(config(guest("add-header"), ""));
        bench.failed(&spec).await;
        assert_eq!(bench.plugins.status()[0].state, State::Configuring);
        drop(store);
        bench.ready(&spec).await;
    }
}
