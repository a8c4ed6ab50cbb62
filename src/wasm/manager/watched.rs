//! Files of code that are read again when something comes into their directories.
//!
//! What such a file has then is code of another version, as if it had been configured: it loads, is tried and rolled out likewise,
//! and where it will not do, what was there before goes on. A file that cannot be read changes nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Inner;
use crate::base::file::read_regular;
use crate::base::task::OwnedTask;
use crate::base::watch::{DirectoryWatcher, Watch};
use crate::wasm::spec::{Code, Digest, MAX_CODE, PluginSpec, Watched};
use crate::wasm::status::wasm_stats;

/// A directory, and whether what is written there counts.
type Place = (Box<str>, bool);

#[derive(Default)]
pub(super) struct WatchedFiles(HashMap<Place, Directory>);

struct Directory {
    /// By path.
    files: HashMap<Box<str>, File>,
    _look: OwnedTask,
}

struct File {
    /// The directories of what is configured with it, as long as that is.
    wanted: Vec<Weak<str>>,
    now: Reading,
}

#[derive(Clone)]
struct Reading {
    /// When it began.
    at: Instant,
    bytes: Bytes,
    digest: Digest,
}

impl WatchedFiles {
    /// `spec` with what its file has now; `None` where that is what it has, and where no file is watched.
    pub(super) fn current(&mut self, host: &Arc<Inner>, spec: &PluginSpec) -> Option<PluginSpec> {
        let Code::Local {
            bytes,
            digest,
            origin,
            watched: Some(watched),
        } = &spec.code
        else {
            return None;
        };
        let configured = Reading {
            at: watched.read,
            bytes: bytes.clone(),
            digest: *digest,
        };
        let place = (Box::from(&*watched.directory), watched.writes);
        let directory = self.0.entry(place).or_insert_with_key(|place| {
            let _runtime = host.control.enter();
            let look = look(Arc::downgrade(host), place.clone());
            Directory {
                files: HashMap::new(),
                _look: OwnedTask::spawn("wasm files", look),
            }
        });
        let file = directory.files.entry(origin.clone());
        let file = file.or_insert_with(|| File {
            wanted: Vec::new(),
            now: configured.clone(),
        });
        let wanted = Arc::downgrade(&watched.directory);
        file.wanted.retain(|wanted| wanted.strong_count() > 0);
        if !file.wanted.iter().any(|known| known.ptr_eq(&wanted)) {
            file.wanted.push(wanted);
        }
        if file.now.at < configured.at {
            file.now = configured;
        }
        let now = &file.now;
        (now.digest != *digest).then(|| {
            spec.with_code(Code::Local {
                bytes: now.bytes.clone(),
                digest: now.digest,
                origin: origin.clone(),
                watched: Some(Watched {
                    read: now.at,
                    ..watched.clone()
                }),
            })
        })
    }

    /// Forgets the files with which nothing is configured any more.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|_, directory| {
            let files = &mut directory.files;
            files.retain(|_, file| file.wanted.iter().any(|wanted| wanted.strong_count() > 0));
            !files.is_empty()
        });
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn paths(&self, place: &Place) -> Vec<Box<str>> {
        let directory = self.0.get(place);
        directory.map_or_else(Vec::new, |directory| {
            directory.files.keys().cloned().collect()
        })
    }

    /// True where that is other code.
    fn take(&mut self, place: &Place, path: &str, reading: Reading) -> bool {
        let directory = self.0.get_mut(place);
        let Some(file) = directory.and_then(|directory| directory.files.get_mut(path)) else {
            return false;
        };
        if file.now.at >= reading.at {
            return false;
        }
        let is_news = file.now.digest != reading.digest;
        file.now = reading;
        is_news
    }
}

/// Reads the files of a directory at once, since they may have changed while nobody watched, and whenever something comes there.
async fn look(host: Weak<Inner>, place: Place) {
    let come = Arc::new(Notify::new());
    let told = Arc::clone(&come);
    let watch = Watch {
        file: None,
        writes: place.1,
    };
    let watcher = DirectoryWatcher::new(Path::new(&*place.0), watch, move || told.notify_one());
    if let Err(error) = &watcher {
        tracing::error!(target: "wasm", "cannot watch {} for code of plugins: {error}", place.0);
    }
    loop {
        let Some(host) = host.upgrade() else { return };
        let paths = host.watched.lock().paths(&place);
        for path in paths {
            if let Some(reading) = read(&host, path.clone()).await
                && host.watched.lock().take(&place, &path, reading)
            {
                tracing::info!(target: "wasm", "{path} has other code");
                host.ring();
            }
        }
        drop(host);
        come.notified().await;
    }
}

async fn read(host: &Inner, path: Box<str>) -> Option<Reading> {
    let at = Instant::now();
    let read = tokio::task::spawn_blocking(move || {
        let read = read_regular(Path::new(&*path), MAX_CODE as u64);
        let read = read.map_err(|error| error.to_string()).and_then(|bytes| {
            if bytes.is_empty() {
                return Err("it is empty".to_owned());
            }
            let digest = Digest::of(&bytes);
            Ok((bytes.into(), digest))
        });
        read.map_err(|error| format!("Failed to load Wasm code from {path}: {error}"))
    });
    match read.await {
        Ok(Ok((bytes, digest))) => Some(Reading { at, bytes, digest }),
        Ok(Err(error)) => {
            host.stats.inc(wasm_stats::LOAD_FAILURES);
            tracing::error!(target: "wasm", "{error}; what was read before goes on");
            None
        }
        // It was cancelled: the process ends.
        Err(_) => None,
    }
}
