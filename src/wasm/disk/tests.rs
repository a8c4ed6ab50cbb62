//! Tests of `wasm::disk`.

use std::os::unix::fs::symlink;

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

fn key(folder: &Path) -> [u8; 32] {
    PrivateFolder::open(folder).expect("opens").key
}

/// Below a place that is as open as `above`.
fn folder(above: u32) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().expect("a folder");
    set_mode(root.path(), above);
    let folder = root.path().join("wasm");
    (root, folder)
}

#[test]
fn what_is_above_may_be_open_to_all() {
    // As volumes of Kubernetes are, without and with a group.
    for above in [0o777, 0o1777, 0o2777, 0o2775] {
        let (_root, folder) = folder(above);
        let first = key(&folder);
        assert_eq!((mode(&folder), mode(&folder.join("key"))), (0o700, 0o600));
        assert_eq!(key(&folder), first, "{above:o}");
        // Nothing of the making is left.
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 1);
    }
}

#[test]
fn a_folder_that_others_could_write_to_is_closed_and_gets_a_new_key() {
    for open in [0o777, 0o770, 0o720, 0o702] {
        let (_root, folder) = folder(0o755);
        let first = key(&folder);
        set_mode(&folder, open);
        let second = key(&folder);
        assert!(
            second != first,
            "{open:o}: anybody may have put the key there"
        );
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(key(&folder), second);
        // Who could only look has put nothing there.
        set_mode(&folder, 0o755);
        assert_eq!(key(&folder), second);
        assert_eq!(mode(&folder), 0o700);
    }
}

#[test]
fn a_key_that_others_could_have_made_or_read_is_none() {
    let (_root, folder) = folder(0o755);
    let path = folder.join("key");
    key(&folder);
    for open in [0o644, 0o640, 0o620, 0o602] {
        std::fs::write(&path, [7; 32]).expect("ours");
        set_mode(&path, open);
        assert_ne!(key(&folder), [7; 32], "{open:o}");
        assert_eq!(mode(&path), 0o600);
    }
    let own = std::fs::metadata(&path).expect("there").uid();
    assert!(read_key(&path, own).expect("read").is_some());
    assert_eq!(read_key(&path, own + 1).expect("read"), None);
    // A link, be it to a file that is as it should be.
    let elsewhere = folder.join("elsewhere");
    std::fs::rename(&path, &elsewhere).expect("ours");
    let (before, content) = (elsewhere.clone(), std::fs::read(&elsewhere).expect("ours"));
    symlink(&before, &path).expect("ours");
    assert_ne!(key(&folder)[..], content);
    assert!(path.symlink_metadata().expect("there").is_file());
    for broken in [0, 31, 33] {
        std::fs::write(&path, vec![7; broken]).expect("ours");
        assert_eq!(key(&folder), key(&folder));
    }
}

#[test]
fn a_folder_of_another_user_is_refused_and_left_as_it_is() {
    let (_root, folder) = folder(0o755);
    let first = key(&folder);
    set_mode(&folder, 0o777);
    let own = std::fs::metadata(&folder).expect("there").uid();
    let error = PrivateFolder::open_as(&folder, own + 1).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(mode(&folder), 0o777);
    assert_eq!(std::fs::read(folder.join("key")).expect("there"), first);
}

#[test]
fn a_link_is_not_followed() {
    let (root, folder) = folder(0o755);
    let victim = root.path().join("victim");
    std::fs::create_dir(&victim).expect("ours");
    set_mode(&victim, 0o755);
    symlink(&victim, &folder).expect("ours");
    let error = PrivateFolder::open(&folder).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
    assert_eq!(mode(&victim), 0o755);
    assert_eq!(std::fs::read_dir(&victim).expect("there").count(), 0);
}

#[test]
fn who_opens_at_once_has_one_key() {
    for _ in 0..20 {
        let (_root, folder) = folder(0o755);
        std::fs::create_dir(&folder).expect("ours");
        std::fs::write(folder.join("key"), [7; 32]).expect("ours");
        set_mode(&folder, 0o777);
        let keys: Vec<_> = std::thread::scope(|scope| {
            let openers: Vec<_> = (0..4).map(|_| scope.spawn(|| key(&folder))).collect();
            let keys = openers.into_iter().map(|opener| opener.join());
            keys.collect::<std::result::Result<_, _>>()
                .expect("none panics")
        });
        assert_ne!(keys[0], [7; 32]);
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}

#[test]
fn a_pipe_is_not_waited_for() {
    let (root, _) = folder(0o755);
    let path = root.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if made.is_ok_and(|status| status.success()) {
        let error = open_file(&path).expect_err("no file");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn what_is_added_replaces_nothing_and_is_held_from_the_beginning() {
    let (_root, path) = folder(0o755);
    let folder = PrivateFolder::open(&path).expect("opens");
    let held = folder.add("a.wasm", &[b"o", b"ne"]).expect("written");
    assert!(held.is_some());
    let there = File::open(folder.path("a.wasm")).expect("there");
    assert!(there.try_lock().is_err(), "it is held");
    assert!(folder.add("a.wasm", &[b"two"]).expect("written").is_none());
    assert_eq!(std::fs::read(folder.path("a.wasm")).expect("there"), b"one");
    drop(held);
    assert!(there.try_lock().is_ok());
    folder.write("a.wasm", &[b"two"]).expect("written");
    assert_eq!(std::fs::read(folder.path("a.wasm")).expect("there"), b"two");
    assert_eq!(std::fs::read_dir(&path).expect("there").count(), 2);
}
