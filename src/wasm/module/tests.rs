//! Tests of `wasm::module`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

fn code() -> Vec<u8> {
    wat::parse_str(r#"(module (func (export "proxy_abi_version_0_2_1")))"#).expect("valid text")
}

fn engine() -> Engine {
    Engine::default()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "cwasm")
        })
        .collect()
}

#[test]
fn what_was_compiled_is_loaded_and_only_by_its_digest() {
    let root = tempfile::tempdir().expect("a folder");
    let (folder, engine, code) = (root.path().join("a/b"), engine(), code());
    let cache = Cache::open(&folder, &engine).expect("opens");
    let digest = Digest::of(&code);
    assert!(Module::cached(&engine, digest, &cache).is_none());
    cache.store(&Module::compile(&engine, &code, digest).expect("compiles"));
    assert!(Module::cached(&engine, digest, &cache).is_some());
    assert!(Module::cached(&engine, Digest::of(b"other"), &cache).is_none());
    // Another process finds the same key.
    let again = Cache::open(&folder, &engine).expect("opens");
    assert!(Module::cached(&engine, digest, &again).is_some());
    // Another compiler's settings are another entry.
    let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).expect("an engine");
    let other_cache = Cache::open(&folder, &other).expect("opens");
    assert!(Module::cached(&other, digest, &other_cache).is_none());
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join("key"))), (0o700, 0o600));
}

#[test]
fn baseline_code_is_kept_until_what_succeeds_it_is() {
    let root = tempfile::tempdir().expect("a folder");
    let runtime = crate::wasm::engine::Runtime::new().expect("an engine");
    let engine = runtime.engine();
    let code = Bytes::from(crate::wasm::testing::guest("fault"));
    let digest = Digest::of(&code);
    let cache = Cache::open(root.path(), engine).expect("opens");
    let compile = |from| Module::compile_soon(engine, &code, digest, from).expect("compiles");
    assert_eq!(compile(code.len() + 1).tier(), Tier::Optimised);
    let baseline = compile(code.len());
    assert_eq!(baseline.tier(), Tier::Baseline);
    cache.store(&baseline);
    assert!(Module::cached(engine, digest, &cache).is_none());
    let again = Module::cached_soon(engine, &code, digest, &cache).expect("kept");
    assert_eq!((again.tier(), again.compile_time), (Tier::Baseline, None));
    // Under the other tier's name it is none of ours.
    let [first] = &entries(root.path())[..] else {
        panic!("one entry")
    };
    let renamed = first.to_str().expect("UTF-8").replace(".baseline", "");
    std::fs::copy(first, &renamed).expect("copies");
    assert!(Module::cached(engine, digest, &cache).is_none());
    let successor = again.successor.as_ref().expect("there will be one");
    let optimised = successor.compile(engine, digest).expect("compiles");
    assert_eq!(optimised.tier(), Tier::Optimised);
    cache.store(&optimised);
    assert!(Module::cached_soon(engine, &code, digest, &cache).is_none());
    let kept = Module::cached(engine, digest, &cache).expect("kept");
    let bytes = |module: &Module| module.code.serialize().expect("serializes");
    assert_eq!(bytes(&kept), bytes(&optimised));
    assert_ne!(bytes(&kept), bytes(&baseline));
    // Both are of the code as it moves, and say by how much that was moved itself.
    let shift = Portable::of(&code).expect("it moves").shift;
    assert_eq!(
        [&baseline, &optimised, &kept].map(|it| it.shift),
        [shift; 3]
    );
    let at_once = Module::compile(engine, &code, digest).expect("compiles");
    assert_eq!(at_once.shift, 0);
    let functions = |module: &Module| module.code.functions().count();
    assert_eq!(functions(&kept), functions(&at_once));
}

#[test]
fn an_entry_that_is_not_ours_is_never_run() {
    let root = tempfile::tempdir().expect("a folder");
    let (engine, code) = (engine(), code());
    let cache = Cache::open(root.path(), &engine).expect("opens");
    let digest = Digest::of(&code);
    let module = Module::compile(&engine, &code, digest).expect("compiles");
    cache.store(&module);
    let [path] = &entries(root.path())[..] else {
        panic!("one entry")
    };
    let good = std::fs::read(path).expect("readable");
    let mut flipped = good.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    let raw = module.code.serialize().expect("serializes");
    for bad in [
        flipped,
        good[..good.len() / 2].to_vec(),
        Vec::new(),
        raw,
        MAGIC.to_vec(),
    ] {
        std::fs::write(path, &bad).expect("writable");
        assert!(Module::cached(&engine, digest, &cache).is_none());
        assert!(!path.exists(), "removed");
    }
    // Nor one under another's name.
    let other = Digest::of(b"other");
    std::fs::write(
        cache.folder.path(&cache.name(other, Tier::Optimised)),
        &good,
    )
    .expect("writable");
    assert!(Module::cached(&engine, other, &cache).is_none());
    // Nor one sealed with another key.
    std::fs::write(path, &good).expect("writable");
    std::fs::write(root.path().join("key"), [7; 32]).expect("writable");
    let cache = Cache::open(root.path(), &engine).expect("opens");
    assert!(Module::cached(&engine, digest, &cache).is_none());
}

#[test]
fn code_that_was_planted_where_anybody_could_write_is_never_run() {
    let root = tempfile::tempdir().expect("a folder");
    let (engine, code) = (engine(), code());
    let digest = Digest::of(&code);
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    // A whole cache of a stranger's: its entry is sealed with its key.
    let stranger = Cache::open(root.path(), &engine).expect("opens");
    stranger.store(&Module::compile(&engine, &code, digest).expect("compiles"));
    for (folder_mode, key_mode) in [(0o777, 0o644), (0o770, 0o600), (0o700, 0o644)] {
        set_mode(&root.path().join("key"), key_mode);
        set_mode(root.path(), folder_mode);
        let cache = Cache::open(root.path(), &engine).expect("opens");
        assert!(Module::cached(&engine, digest, &cache).is_none());
        cache.store(&Module::compile(&engine, &code, digest).expect("compiles"));
        let again = Cache::open(root.path(), &engine).expect("opens");
        assert!(Module::cached(&engine, digest, &again).is_some());
    }
}

#[test]
fn the_folder_stays_small() {
    let root = tempfile::tempdir().expect("a folder");
    let (engine, code) = (engine(), code());
    let cache = Cache::open(root.path(), &engine).expect("opens");
    let mut module = Module::compile(&engine, &code, Digest::of(&code)).expect("compiles");
    for number in 0..MAX_ENTRIES as u32 + 5 {
        module.digest = Digest::of(&number.to_le_bytes());
        module.held = Arc::default();
        cache.store(&module);
    }
    assert_eq!(entries(root.path()).len(), MAX_ENTRIES);
}

#[test]
fn what_is_in_use_stays_in_the_folder() {
    let root = tempfile::tempdir().expect("a folder");
    let (engine, code) = (engine(), code());
    let cache = Cache::open(root.path(), &engine).expect("opens").keeping(1);
    let store = |number: u8| {
        let module = Module::compile(&engine, &code, Digest::of(&[number])).expect("compiles");
        cache.store(&module);
        module
    };
    let is_there = |number: u8| Module::cached(&engine, Digest::of(&[number]), &cache).is_some();
    let first = store(1);
    let second = store(2);
    assert!(is_there(1) && is_there(2));
    drop((first, second));
    let _third = store(3);
    assert!(!is_there(1) && !is_there(2) && is_there(3));
}

#[test]
fn what_a_crashed_writer_left_is_removed_where_the_disk_is_full() {
    let root = tempfile::tempdir().expect("a folder");
    let (engine, code) = (engine(), code());
    let digest = Digest::of(&code);
    let module = Module::compile(&engine, &code, digest).expect("compiles");
    let mut cache = Cache::open(root.path(), &engine).expect("opens");
    cache.folder.room = 1 << 20;
    let left = root.path().join("dead.cwasm.1-1.partial");
    let file = std::fs::File::create(&left).expect("ours");
    file.set_len(1 << 20).expect("ours");
    cache.store(&module);
    assert!(
        entries(root.path()).is_empty() && left.exists(),
        "its writer may be at it"
    );
    let before = std::time::SystemTime::now() - Duration::from_secs(3600);
    file.set_modified(before).expect("ours");
    cache.store(&module);
    assert!(entries(root.path()).len() == 1 && !left.exists());
    // Nor does it outlive a start.
    let file = std::fs::File::create(&left).expect("ours");
    file.set_modified(before).expect("ours");
    Cache::open(root.path(), &engine).expect("opens");
    assert!(!left.exists());
}

#[test]
fn the_marker_says_the_version() {
    let engine = engine();
    let load = |name: &str| {
        let code = wat::parse_str(format!(r#"(module (func (export "{name}")))"#)).expect("valid");
        Module::compile(&engine, &code, Digest::of(&code)).map(|module| module.abi)
    };
    assert_eq!(load("proxy_abi_version_0_1_0").ok(), Some(Abi::V0_1_0));
    assert_eq!(load("proxy_abi_version_0_2_0").ok(), Some(Abi::V0_2_0));
    assert_eq!(load("proxy_abi_version_0_2_1").ok(), Some(Abi::V0_2_1));
    assert!(matches!(
        load("proxy_abi_version_0_3_0"),
        Err(LoadError::UnknownAbi)
    ));
    let memory = wat::parse_str(r#"(module (memory (export "proxy_abi_version_0_2_1") 1))"#);
    let result = Module::compile(&engine, &memory.expect("valid"), Digest::of(b""));
    assert!(
        matches!(result, Err(LoadError::UnknownAbi)),
        "a marker is a function"
    );
}
