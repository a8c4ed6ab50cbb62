//! Images: kept for a restart, followed where they move, had from wherever they are.

use std::path::Path;

use super::*;
use registry::{FakeRegistry, Fault, Layout};

#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "what whole proxies are tested with, and not all of it is of use here"
)]
#[path = "../../../../tests/it/support/registry.rs"]
pub(super) mod registry;

/// The image `name` of this registry, with variables of istiod's, to be fetched with quick retries.
pub(super) fn image(
    registry: &FakeRegistry,
    name: &str,
    sha256: &str,
    variables: &[(&str, &str)],
) -> Arc<PluginSpec> {
    configured_image(registry, name, sha256, variables, "")
}

/// Likewise, with a configuration.
pub(super) fn configured_image(
    registry: &FakeRegistry,
    name: &str,
    sha256: &str,
    variables: &[(&str, &str)],
    configuration: &str,
) -> Arc<PluginSpec> {
    let mut config = config(Vec::new(), configuration);
    let millis = |millis: i32| {
        Some(PbDuration {
            seconds: i64::from(millis / 1000),
            nanos: (millis % 1000) * 1_000_000,
        })
    };
    if let Some(proto::plugin_config::Vm::VmConfig(vm)) = &mut config.vm {
        vm.code = Some(core::AsyncDataSource {
            specifier: Some(core::async_data_source::Specifier::Remote(
                core::RemoteDataSource {
                    http_uri: Some(core::HttpUri {
                        uri: format!("oci://{}/{name}", registry.address),
                        timeout: millis(5000),
                        http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(
                            "_".to_owned(),
                        )),
                    }),
                    sha256: sha256.to_owned(),
                    retry_policy: Some(core::RetryPolicy {
                        retry_back_off: Some(core::BackoffStrategy {
                            base_interval: millis(1),
                            max_interval: millis(5),
                        }),
                        ..Default::default()
                    }),
                },
            )),
        });
        let pairs = variables.iter();
        vm.environment_variables = Some(proto::EnvironmentVariables {
            host_env_keys: Vec::new(),
            key_values: pairs
                .map(|(name, value)| {
                    let name = match name.strip_prefix('+') {
                        Some(of_the_guest) => of_the_guest.to_owned(),
                        None => format!("ISTIO_META_WASM_{name}"),
                    };
                    (name, (*value).to_owned())
                })
                .collect(),
        });
    }
    spec(config)
}

pub(super) const ALWAYS: [(&str, &str); 2] = [
    ("IMAGE_PULL_POLICY", "Always"),
    ("PLUGIN_RESOURCE_VERSION", "1"),
];

pub(super) fn bench(
    registry: &FakeRegistry,
    folder: &Path,
    change: impl FnOnce(&mut Options),
) -> Bench {
    Bench::with(|options| {
        options.cache_dir = Some(folder.to_owned());
        options.settings.insecure_registries = vec![registry.address.to_string().into()];
        change(options);
    })
}

/// As if another version of this program came: what was compiled is of no use.
fn forget_compiled(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("there").flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "cwasm") {
            std::fs::remove_file(entry.path()).expect("ours");
        }
    }
}

fn sources(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder.join("sources")).expect("there");
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "wasm"))
        .collect()
}

#[tokio::test]
async fn a_restart_needs_no_registry_whatever_names_the_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    let (manifest, _) = registry.push("v1", Layout::Docker, &guest("add-header"));
    let sum = manifest.trim_start_matches("sha256:");
    let wanted = || {
        [
            image(&registry, "a:v1", "nil", &[]),
            image(&registry, &format!("a@{manifest}"), "", &[]),
            image(&registry, "a:v1", sum, &[]),
            image(&registry, "a:v1", "nil", &ALWAYS),
        ]
    };
    for spec in wanted() {
        let bench = bench(&registry, folder.path(), |_| ());
        bench.ready(&spec).await;
    }
    // One layer for all of them.
    assert_eq!(registry.counts().1, 1);
    registry.set_fault(Fault::Down);
    for compiled in [true, false] {
        for spec in wanted() {
            if !compiled {
                forget_compiled(folder.path());
            }
            let bench = bench(&registry, folder.path(), |_| ());
            bench.ready(&spec).await;
            let always = spec.code != wanted()[3].code;
            let [status] = &bench.plugins.status()[..] else {
                panic!("one");
            };
            assert_eq!(status.error.is_none(), always, "{status:?}");
            assert_eq!(
                status.image.map(|image| image.to_string()).as_deref(),
                Some(sum)
            );
        }
    }
}

#[tokio::test]
async fn what_was_kept_gives_way_to_what_the_registry_says_when_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    registry.push("v1", Layout::Cncf, &guest("add-header"));
    let spec = image(&registry, "a:v1", "nil", &ALWAYS);
    bench(&registry, folder.path(), |_| ()).ready(&spec).await;
    registry.set_fault(Fault::Down);
    let bench = bench(&registry, folder.path(), |_| ());
    let old = bench.ready(&spec).await;
    let told = bench.plugins.status()[0].error.clone().expect("told");
    assert!(told.contains("earlier run"), "{told}");
    registry.push("v1", Layout::Oci, &guest("order"));
    registry.set_fault(Fault::None);
    let new = bench
        .until(&spec, |resolution| {
            matches!(resolution, Resolution::Ready(plugin) if !Arc::ptr_eq(plugin, &old))
        })
        .await;
    let Resolution::Ready(new) = new else {
        unreachable!("that was waited for")
    };
    // Streams in flight hold the old one, in VMs of its own.
    assert!(!Arc::ptr_eq(&vm_of(&new), &vm_of(&old)));
    let mut changed = bench.plugins.changed();
    while bench.plugins.status()[0].error.is_some() {
        changed.changed().await.expect("the host lives");
    }
    let states: Vec<_> = bench
        .plugins
        .status()
        .iter()
        .map(|status| status.state)
        .collect();
    assert_eq!(states, [State::Live, State::Draining]);
}

#[tokio::test]
async fn a_tag_is_followed_where_the_settings_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    registry.push("latest", Layout::Cncf, &guest("add-header"));
    let bench = bench(&registry, folder.path(), |options| {
        options.settings.refresh_interval = Some(Duration::from_millis(5));
    });
    let spec = image(&registry, "a", "nil", &[]);
    let old = bench.ready(&spec).await;
    // It does not move, is gone for a while, then names what is no plugin: the old one serves.
    while registry.counts().0 < 3 {
        tokio::task::yield_now().await;
    }
    registry.set_fault(Fault::Down);
    registry.push("latest", Layout::Cncf, b"no module");
    registry.set_fault(Fault::None);
    let mut changed = bench.plugins.changed();
    while bench.plugins.status()[0].error.is_none() {
        changed.changed().await.expect("the host lives");
    }
    let Resolution::Ready(serving) = bench.plugins.resolve("slot", &spec) else {
        panic!("the old one serves")
    };
    assert!(Arc::ptr_eq(&serving, &old));
    assert_eq!(bench.plugins.status()[0].state, State::Live);
    registry.push("latest", Layout::Cncf, &guest("order"));
    bench
        .until(&spec, |resolution| {
            matches!(resolution, Resolution::Ready(plugin) if !Arc::ptr_eq(plugin, &old))
        })
        .await;
}

#[tokio::test]
async fn kept_code_that_was_tampered_with_is_fetched_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    registry.push("v1", Layout::Cncf, &guest("add-header"));
    let spec = image(&registry, "a:v1", "nil", &[]);
    bench(&registry, folder.path(), |_| ()).ready(&spec).await;
    forget_compiled(folder.path());
    let [path] = &sources(folder.path())[..] else {
        panic!("one")
    };
    let mut bytes = std::fs::read(path).expect("there");
    bytes[20] ^= 1;
    std::fs::write(path, bytes).expect("ours");
    bench(&registry, folder.path(), |_| ()).ready(&spec).await;
    assert_eq!(registry.counts().1, 2);
}

#[tokio::test]
async fn code_of_a_live_version_stays_whatever_the_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    let (first, second) = (guest("add-header"), guest("order"));
    let bound = first.len().max(second.len()) as u64;
    registry.push("v1", Layout::Cncf, &first);
    registry.push("v2", Layout::Cncf, &second);
    let bench = bench(&registry, folder.path(), |options| {
        options.settings.source_bytes_on_disk = bound;
    });
    bench.ready(&image(&registry, "a:v1", "nil", &[])).await;
    bench
        .plugins
        .resolve("other", &image(&registry, "a:v1", "nil", &[]));
    bench.ready(&image(&registry, "a:v2", "nil", &[])).await;
    bench.plugins.retain(|_| true);
    assert_eq!(sources(folder.path()).len(), 2, "both are in use");
    // Nobody wants the first any more; the next one that is kept takes its room.
    bench.plugins.retain(|slot| slot == "slot");
    bench.plugins.retain(|slot| slot == "slot");
    registry.push("v3", Layout::Cncf, &guest("refuse-configure"));
    let third = image(&registry, "a:v3", "nil", &[]);
    bench.plugins.resolve("third", &third);
    let failed = || {
        let statuses = bench.plugins.status();
        statuses.iter().any(|status| status.state == State::Failed)
    };
    while !failed() {
        tokio::task::yield_now().await;
    }
    let kept: Vec<_> = sources(folder.path())
        .iter()
        .map(|path| std::fs::read(path).expect("there"))
        .collect();
    assert!(kept.contains(&second) && !kept.contains(&first));
}

#[tokio::test]
async fn another_place_of_the_same_code_mends_a_load_that_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dead, good) = (FakeRegistry::start().await, FakeRegistry::start().await);
    dead.set_fault(Fault::Down);
    let (manifest, _) = good.push("v1", Layout::Oci, &guest("add-header"));
    let sum = manifest.trim_start_matches("sha256:");
    let bench = bench(&good, folder.path(), |options| {
        let dead = dead.address.to_string();
        options.settings.insecure_registries.push(dead.into());
    });
    let (first, second) = (
        image(&dead, "a:v1", sum, &[]),
        image(&good, "b:v1", sum, &[]),
    );
    assert_eq!(first.key(), second.key());
    bench
        .until(&first, |resolution| {
            matches!(resolution, Resolution::Failed(_))
        })
        .await;
    bench.ready(&second).await;
}

#[tokio::test]
async fn who_wants_the_same_tag_shares_one_fetch_and_one_module() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = FakeRegistry::start().await;
    registry.push("v1", Layout::Oci, &guest("add-header"));
    let bench = bench(&registry, folder.path(), |_| ());
    let spec = image(&registry, "a:v1", "nil", &[]);
    let other = image(&registry, "a:v1", "nil", &[("+SEEN", "x")]);
    bench.plugins.resolve("other", &other);
    bench.ready(&spec).await;
    bench.ready(&other).await;
    assert_eq!(registry.counts(), (1, 1));
}
