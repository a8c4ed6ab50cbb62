//! Fetched code on disk, so that a restart needs no source, and which code a source gave.
//!
//! | file | what it is | why it is believed |
//! |---|---|---|
//! | `<sha256>.wasm` | code as it was fetched, or as it was in an image | its sum is its name: checked at each read |
//! | `<sha256>.source` | which code a source gave (an image's manifest, a tag, a URL without a sum) | it is sealed with the folder's key |
//!
//! The code is bounded in bytes, the notes of sources in number; the least recently used go. What is in use is pinned: a
//! [`Pin`] holds a lock on the file, which processes see of each other, and nothing that is locked is removed, nor another
//! file put in its place.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::{PrivateFolder, open_file, touch, with_room};
use super::module::MAX_CODE;
use super::spec::Digest;

/// Notes of sources; each is a few hundred bytes.
const MAX_NOTES: usize = 4096;
/// So many are written, the first at once, before the surplus goes: to look for it takes longer than to write one.
const NOTES_A_SWEEP: usize = 64;
/// A longer note is none of ours.
const MAX_NOTE: u64 = 64 << 10;

/// Keeps a file from being removed for as long as it lives.
#[derive(Debug)]
pub(crate) struct Pin(File);

/// What a source gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// Of the code.
    pub(crate) code: Digest,
    /// Of the image's manifest, where it was one.
    pub(crate) image: Option<Digest>,
}

impl Given {
    pub(crate) fn of(code: Digest, image: Option<Digest>) -> Self {
        Self { code, image }
    }
}

#[derive(Deserialize, Serialize)]
struct Note {
    /// For a person who looks into the folder.
    uri: String,
    code: String,
    image: Option<String>,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PrivateFolder,
    max_bytes: u64,
    /// Notes that were written.
    noted: AtomicUsize,
}

impl Store {
    /// Opens or makes the folder, which holds so many bytes of code.
    pub(crate) fn open(folder: &Path, max_bytes: u64) -> std::io::Result<Self> {
        Ok(Self {
            folder: PrivateFolder::open(folder)?,
            max_bytes,
            noted: AtomicUsize::new(0),
        })
    }

    /// The code of this sum. Reads a file: call it on a blocking thread.
    pub(crate) fn code(&self, digest: Digest) -> Option<(Bytes, Pin)> {
        let path = self.folder.path(&code_name(digest));
        let (bytes, pin) = read_pinned(&path, MAX_CODE as u64)?;
        if Digest::of(&bytes) != digest {
            tracing::warn!(target: "wasm", "{} is not what its name says; it is removed", path.display());
            if is_linked(&pin.0) {
                let _ = std::fs::remove_file(&path);
            }
            return None;
        }
        touch(&path);
        Some((bytes.into(), pin))
    }

    /// Holds the code of this sum, if it is there, without reading it.
    pub(crate) fn pin(&self, digest: Digest) -> Option<Pin> {
        let path = self.folder.path(&code_name(digest));
        let pin = lock(open_file(&path).ok()?)?;
        touch(&path);
        Some(pin)
    }

    /// Keeps `code`, which has the sum `digest`; failing to is no failure. Call it on a blocking thread.
    pub(crate) fn keep(&self, digest: Digest, code: &[u8]) -> Option<Pin> {
        if code.len() as u64 > self.max_bytes {
            return None;
        }
        let pin = self.put(digest, code);
        self.evict();
        pin
    }

    fn put(&self, digest: Digest, code: &[u8]) -> Option<Pin> {
        // It may come, or go, between two looks, but hardly so often.
        for _ in 0..10 {
            // Whoever holds it holds that file: another one in its place would be held by nobody.
            if let Some((_, pin)) = self.code(digest) {
                return Some(pin);
            }
            let name = code_name(digest);
            match with_room(|| self.evict(), || self.folder.add(&name, &[code])) {
                Ok(Some(file)) => return Some(Pin(file)),
                Ok(None) => {}
                Err(error) => {
                    self.warn(&error);
                    return None;
                }
            }
        }
        None
    }

    /// What the source `source` gave. Reads a file.
    pub(crate) fn given(&self, source: Digest) -> Option<Given> {
        let path = self.folder.path(&note_name(source));
        let (bytes, _) = read_pinned(&path, MAX_NOTE)?;
        let given = self.unseal(source, &bytes);
        if given.is_none() {
            tracing::warn!(target: "wasm", "{} is not an entry of ours; it is removed", path.display());
            let _ = std::fs::remove_file(&path);
        }
        touch(&path);
        given
    }

    fn unseal(&self, source: Digest, bytes: &[u8]) -> Option<Given> {
        let (seal, body) = bytes.split_at_checked(32)?;
        if !self.folder.seal(&[&source.0, body]).is(seal) {
            return None;
        }
        let note: Note = serde_json::from_slice(body).ok()?;
        let image = match note.image {
            Some(image) => Some(Digest::parse(&image)?),
            None => None,
        };
        Some(Given {
            code: Digest::parse(&note.code)?,
            image,
        })
    }

    /// Notes what the source `source`, at `uri`, gave; failing to is no failure.
    pub(crate) fn note(&self, source: Digest, uri: &str, given: &Given) {
        let note = Note {
            uri: uri.to_owned(),
            code: given.code.to_string(),
            image: given.image.map(|image| image.to_string()),
        };
        let Ok(body) = serde_json::to_vec(&note) else {
            return;
        };
        let seal = self.folder.seal(&[&source.0, &body]);
        let (name, parts) = (note_name(source), [&seal.0[..], &body]);
        if let Err(error) = with_room(|| self.evict(), || self.folder.write(&name, &parts)) {
            self.warn(&error);
        }
        if self
            .noted
            .fetch_add(1, Relaxed)
            .is_multiple_of(NOTES_A_SWEEP)
        {
            self.evict();
        }
    }

    fn warn(&self, error: &std::io::Error) {
        tracing::warn!(target: "wasm", "cannot keep fetched code in {}: {error}", self.folder.shown());
    }

    /// Removes the least recently used beyond the bounds, but nothing that is in use.
    fn evict(&self) {
        let entries = self.folder.entries("wasm");
        let mut bytes: u64 = entries.iter().map(|entry| entry.size).sum();
        for entry in entries {
            if bytes <= self.max_bytes {
                break;
            }
            if remove_unused(&entry.path) {
                bytes -= entry.size;
            }
        }
        let notes = self.folder.entries("source");
        let surplus = notes.len().saturating_sub(MAX_NOTES);
        for note in &notes[..surplus] {
            let _ = std::fs::remove_file(&note.path);
        }
    }
}

fn code_name(digest: Digest) -> String {
    format!("{digest}.wasm")
}

fn note_name(source: Digest) -> String {
    format!("{source}.source")
}

/// A file, with the lock that keeps it. Of a larger one than `limit` there is too much, but not all.
fn read_pinned(path: &Path, limit: u64) -> Option<(Vec<u8>, Pin)> {
    let file = open_file(path).ok()?;
    let mut bytes = Vec::new();
    (&file).take(limit + 1).read_to_end(&mut bytes).ok()?;
    Some((bytes, lock(file)?))
}

/// The shared lock; `None` where the file is being removed, or has been.
fn lock(file: File) -> Option<Pin> {
    file.try_lock_shared().ok()?;
    is_linked(&file).then_some(Pin(file))
}

/// Removes a file of code that nobody uses.
fn remove_unused(path: &Path) -> bool {
    let Ok(file) = open_file(path) else {
        return false;
    };
    // Whoever uses it holds a shared lock. One that was removed meanwhile may have a successor there, which is not locked.
    file.try_lock().is_ok() && is_linked(&file) && std::fs::remove_file(path).is_ok()
}

fn is_linked(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
