//! Tells of files that have come into a directory.
//!
//! What is *moved* there counts, which is how Kubernetes swaps mounted files: what is written in place may be read half written.

use std::ffi::OsString;
use std::path::Path;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

/// Tells as long as it lives.
#[derive(Debug)]
pub struct DirectoryWatcher {
    _watcher: RecommendedWatcher,
}

/// What is told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Moves to this name alone.
    pub file: Option<OsString>,
    /// Files that were open for writing and are closed, too.
    pub writes: bool,
}

impl DirectoryWatcher {
    /// Calls `changed`, on a thread of its own, whenever something comes into `directory`: for one move more than once.
    ///
    /// # Errors
    /// The directory does not exist, or the system watches no more.
    pub fn new(
        directory: &Path,
        watch: Watch,
        changed: impl Fn() + Send + 'static,
    ) -> notify::Result<Self> {
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let Ok(event) = event else { return };
                let counts = match event.kind {
                    // A move within the directory is told as `Both` once more.
                    EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Any)) => true,
                    EventKind::Access(AccessKind::Close(AccessMode::Write)) => watch.writes,
                    _ => false,
                };
                let concerns = watch.file.as_deref().is_none_or(|file| {
                    let mut names = event.paths.iter().map(|path| path.file_name());
                    names.any(|name| name == Some(file))
                });
                if counts && concerns {
                    changed();
                }
            })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher })
    }
}
