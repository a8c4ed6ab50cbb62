//! Tests of `wasm::store`.

use std::time::{Duration, SystemTime};

use super::*;

fn code(byte: u8) -> (Digest, Vec<u8>) {
    let bytes = vec![byte; 1000];
    (Digest::of(&bytes), bytes)
}

/// As if it had been used so many seconds ago.
fn age(folder: &Path, digest: Digest, seconds: u64) {
    let file = File::open(folder.join(code_name(digest))).expect("there");
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .expect("ours");
}

#[test]
fn what_was_kept_is_found_and_nothing_else_is_believed() {
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::open(root.path(), 1 << 20).expect("opens");
    let (digest, bytes) = code(1);
    assert!(store.code(digest).is_none());
    drop(store.keep(digest, &bytes).expect("kept"));
    // Another process.
    let again = Store::open(root.path(), 1 << 20).expect("opens");
    let (found, pin) = again.code(digest).expect("there");
    assert_eq!(found, bytes);
    drop(pin);
    let path = root.path().join(code_name(digest));
    let mut tampered = bytes;
    tampered[0] ^= 1;
    for wrong in [&tampered[..], b"", &tampered[..500]] {
        std::fs::write(&path, wrong).expect("ours");
        assert!(again.code(digest).is_none());
        assert!(!path.exists(), "it is removed");
    }
}

#[test]
fn notes_of_sources_are_sealed() {
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::open(root.path(), 1 << 20).expect("opens");
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let given = Given {
        code: Digest::of(b"code"),
        image: Some(Digest::of(b"image")),
    };
    store.note(one, "oci://reg.test/a:1", &given);
    assert_eq!(store.given(one), Some(given));
    let bare = Given {
        image: None,
        ..given
    };
    store.note(one, "oci://reg.test/a:1", &bare);
    assert_eq!(store.given(one), Some(bare));
    // A note of one source is none of another.
    let note = std::fs::read(root.path().join(note_name(one))).expect("there");
    std::fs::write(root.path().join(note_name(two)), &note).expect("ours");
    assert_eq!(store.given(two), None);
    let mut changed = note;
    let at = changed
        .iter()
        .rposition(|byte| *byte == b'"')
        .expect("JSON")
        - 1;
    changed[at] ^= 1;
    std::fs::write(root.path().join(note_name(one)), &changed).expect("ours");
    assert_eq!(store.given(one), None);
    assert!(!root.path().join(note_name(one)).exists());
}

#[test]
fn the_least_recently_used_goes_but_not_what_is_in_use() {
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::open(root.path(), 2500).expect("opens");
    let other = Store::open(root.path(), 2500).expect("opens");
    let [a, b, c, d] = [1, 2, 3, 4].map(code);
    let pin = store.keep(a.0, &a.1);
    drop(store.keep(b.0, &b.1));
    age(root.path(), a.0, 20);
    age(root.path(), b.0, 10);
    // Another process makes room: the oldest is in use here.
    drop(other.keep(c.0, &c.1));
    assert!(store.pin(a.0).is_some() && store.pin(b.0).is_none());
    age(root.path(), a.0, 20);
    drop(pin);
    drop(other.keep(d.0, &d.1));
    assert!(store.pin(a.0).is_none());
    assert!(store.pin(c.0).is_some() && store.pin(d.0).is_some());
    // What is larger than all of it is not kept.
    let large = vec![0; 3000];
    assert!(store.keep(Digest::of(&large), &large).is_none());
    assert!(store.pin(c.0).is_some());
}

#[test]
fn who_keeps_the_same_at_once_holds_the_same_file() {
    use std::os::unix::fs::MetadataExt as _;
    for round in 0..10 {
        let root = tempfile::tempdir().expect("a folder");
        let stores: Vec<_> = (0..4)
            .map(|_| Store::open(root.path(), 1 << 20).expect("opens"))
            .collect();
        let (digest, bytes) = code(round);
        let begin = std::sync::Barrier::new(stores.len());
        let pins: Vec<_> = std::thread::scope(|scope| {
            let keep = |store| {
                begin.wait();
                Store::keep(store, digest, &bytes).expect("kept")
            };
            let keepers: Vec<_> = stores
                .iter()
                .map(|store| scope.spawn(move || keep(store)))
                .collect();
            let pins = keepers.into_iter().map(|keeper| keeper.join());
            pins.collect::<Result<_, _>>().expect("none panics")
        });
        let there = std::fs::metadata(root.path().join(code_name(digest))).expect("there");
        for pin in &pins {
            let held = pin.0.metadata().expect("open");
            assert_eq!((held.ino(), held.nlink()), (there.ino(), 1));
        }
        // Nothing of the making is left: the key, and the code.
        assert_eq!(std::fs::read_dir(root.path()).expect("there").count(), 2);
        // The last to have come may be the first to go.
        let first = pins.into_iter().next();
        let narrow = Store::open(root.path(), 1500).expect("opens");
        let (other, bytes) = code(100);
        age(root.path(), digest, 20);
        drop(narrow.keep(other, &bytes));
        assert!(narrow.code(digest).is_some());
        drop(first);
    }
}

#[test]
fn what_is_there_and_will_not_do_is_replaced() {
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::open(root.path(), 1 << 20).expect("opens");
    let (digest, bytes) = code(1);
    let path = root.path().join(code_name(digest));
    std::fs::write(&path, &bytes[1..]).expect("ours");
    drop(store.keep(digest, &bytes).expect("kept"));
    assert_eq!(std::fs::read(&path).expect("there"), bytes);
    // More than all code may have.
    let file = std::fs::File::create(&path).expect("ours");
    file.set_len(MAX_CODE as u64 + 2).expect("ours");
    drop(store.keep(digest, &bytes).expect("kept"));
    assert_eq!(std::fs::read(&path).expect("there"), bytes);
}

#[test]
fn notes_are_bounded_though_no_code_comes() {
    let root = tempfile::tempdir().expect("a folder");
    let store = Store::open(root.path(), 1 << 20).expect("opens");
    let number = |extension: &str| store.folder.entries(extension).len();
    let given = Given::of(Digest::of(b"code"), None);
    let fill = |more: usize| {
        for number in 0..more {
            std::fs::write(root.path().join(format!("{number}.source")), b"").expect("ours");
        }
    };
    // Of an earlier process.
    fill(MAX_NOTES + 100);
    let note = |number: usize| {
        let source = Digest::of(&number.to_le_bytes());
        store.note(source, "oci://reg.test/a:1", &given);
        assert_eq!(store.given(source), Some(given));
    };
    note(0);
    assert_eq!(number("source"), MAX_NOTES);
    for more in 1..=NOTES_A_SWEEP {
        note(more);
        assert!(number("source") < MAX_NOTES + NOTES_A_SWEEP);
    }
    assert_eq!(number("source"), MAX_NOTES);
}

#[test]
fn where_the_disk_is_full_there_is_room_after_a_sweep() {
    let root = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(root.path(), 1 << 20).expect("opens");
    let left = root.path().join("dead.wasm.1-1.partial");
    let fill = || {
        let file = File::create(&left).expect("ours");
        file.set_len(5000).expect("ours");
        file.set_modified(SystemTime::now() - Duration::from_secs(3600))
            .expect("ours");
    };
    store.folder.room = 5000;
    fill();
    let (digest, bytes) = code(1);
    assert!(store.keep(digest, &bytes).is_some() && !left.exists());
    fill();
    let given = Given::of(digest, None);
    store.note(digest, "oci://reg.test/a:1", &given);
    assert!(store.given(digest) == Some(given) && !left.exists());
}
