//! Local code that is read again.

use std::path::{Path, PathBuf};

use super::*;

/// Code that differs from that of another `mark`, in a file of the folder that is moved to its place.
fn put(folder: &Path, code: &[u8]) {
    let new = folder.join("new");
    std::fs::write(&new, code).expect("a file");
    std::fs::rename(new, path(folder)).expect("in its place");
}

fn path(folder: &Path) -> PathBuf {
    folder.join("plugin.wasm")
}

fn code(mark: &str) -> Vec<u8> {
    let text = std::fs::read_to_string("tests/guests/add-header.wat").expect("the guest");
    let text = text.replacen("(module", &format!("(module (data \"{mark}\")"), 1);
    wat::parse_str(text).expect("valid text")
}

/// Configured with the file as it is; `writes` to it count, too.
fn watched(folder: &Path, writes: bool) -> Arc<PluginSpec> {
    let mut config = config(Vec::new(), "");
    let Some(proto::plugin_config::Vm::VmConfig(vm)) = &mut config.vm else {
        unreachable!("it has one");
    };
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let source = core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(text(&path(folder)))),
        watched_directory: Some(core::WatchedDirectory {
            path: text(folder),
            watch_modify: writes,
        }),
    };
    vm.code = Some(core::AsyncDataSource {
        specifier: Some(core::async_data_source::Specifier::Local(source)),
    });
    spec(config)
}

fn serves(code: &[u8]) -> impl Fn(&Resolution) -> bool {
    let digest = Digest::of(code);
    move |resolution| match resolution {
        Resolution::Ready(plugin) => plugin.spec().code.identity() == digest,
        _ => false,
    }
}

/// A host that runs the code which a file of the folder has.
async fn running(code: &[u8], writes: bool) -> (tempfile::TempDir, Arc<PluginSpec>, Bench) {
    let folder = tempfile::tempdir().expect("a folder");
    put(folder.path(), code);
    let spec = watched(folder.path(), writes);
    let bench = Bench::new(None);
    bench.until(&spec, serves(code)).await;
    (folder, spec, bench)
}

#[tokio::test]
async fn code_that_is_moved_into_place_takes_over_and_bad_code_does_not() {
    let [one, two, three] = ["one", "two", "three"].map(code);
    let (folder, spec, bench) = running(&one, false).await;
    let folder = folder.path();
    put(folder, &two);
    bench.until(&spec, serves(&two)).await;
    // What comes to nothing shows, and what was there goes on.
    put(folder, b"no module");
    let failed = |resolution: &Resolution| {
        let mut statuses = bench.plugins.status().into_iter();
        let failed = statuses.any(|status| status.state == State::Failed);
        matches!(resolution, Resolution::Previous(_)) && failed
    };
    let Resolution::Previous(serving) = bench.until(&spec, failed).await else {
        unreachable!("that was waited for");
    };
    assert_eq!(serving.spec().code.identity(), Digest::of(&two));
    // So it does where the file cannot be read.
    put(folder, b"");
    let told = async {
        while bench.stat(wasm_stats::LOAD_FAILURES) < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), told)
        .await
        .expect("it is told");
    put(folder, &three);
    bench.until(&spec, serves(&three)).await;
}

#[tokio::test]
async fn code_that_is_written_in_place_takes_over_where_that_is_asked_for() {
    let (folder, spec, bench) = running(&code("one"), true).await;
    let two = code("two");
    std::fs::write(path(folder.path()), &two).expect("written");
    bench.until(&spec, serves(&two)).await;
}

#[tokio::test]
async fn what_was_read_last_counts() {
    let [one, two, three] = ["one", "two", "three"].map(code);
    let (folder, first, bench) = running(&one, false).await;
    let folder = folder.path();
    put(folder, &two);
    bench.until(&first, serves(&two)).await;
    // It is written, not moved, and configured anew.
    std::fs::write(path(folder), &three).expect("written");
    let second = watched(folder, false);
    for spec in [&second, &first] {
        bench.until(spec, serves(&three)).await;
    }
    // Files that nobody is configured with are watched no more.
    drop((first, second));
    bench.plugins.settle(&BTreeSet::new());
    bench.plugins.settle(&BTreeSet::new());
    let forgotten = async {
        while !bench.plugins.0.watched.lock().is_empty() {
            tokio::task::yield_now().await;
            bench.plugins.settle(&BTreeSet::new());
        }
    };
    timeout(Duration::from_secs(20), forgotten)
        .await
        .expect("forgotten");
}
