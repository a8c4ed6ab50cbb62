//! A subscription to a file (`path_config_source`): a `DiscoveryResponse` in YAML, JSON or protobuf.
//!
//! As in Envoy, the file is read again when something is *moved* into its place (or into the watched directory,
//! which is how Kubernetes swaps mounted files); writing in place does nothing, so that no half-written file is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::mpsc;

use super::client::{Event, UnknownFields};
use super::engine::ChannelId;
use crate::base::watch::{DirectoryWatcher, Watch};
use crate::pb;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::telemetry::metrics::{Stat, StatSet};

/// What a file's task needs.
pub(super) struct File {
    pub(super) channel: ChannelId,
    pub(super) path: PathBuf,
    /// `watched_directory`.
    pub(super) directory: Option<PathBuf>,
    pub(super) unknown_fields: UnknownFields,
    /// Where an accepted unknown field is counted.
    pub(super) unknown_fields_stat: Option<(Arc<StatSet>, Stat)>,
    pub(super) events: mpsc::Sender<Event>,
    /// Asks for another reading.
    pub(super) reload: mpsc::UnboundedReceiver<()>,
    /// The other end of `reload`.
    pub(super) moved: mpsc::UnboundedSender<()>,
}

impl File {
    /// Reads the file, and again whenever it is to; until it is dropped, or nobody listens.
    pub(super) async fn run(mut self) {
        let _watcher = match self.watch() {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "cannot watch for changes");
                None
            }
        };
        loop {
            let read = self.load().await;
            let event = Event::Loaded(self.channel, read.map(Box::new));
            if self.events.send(event).await.is_err() || self.reload.recv().await.is_none() {
                return;
            }
            // One rename is several events, and several renames one change.
            while self.reload.try_recv().is_ok() {}
        }
    }

    fn watch(&self) -> notify::Result<DirectoryWatcher> {
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (directory, file) = match &self.directory {
            None => (parent, self.path.file_name().map(ToOwned::to_owned)),
            Some(directory) => (directory.as_path(), None),
        };
        let moved = self.moved.clone();
        let watch = Watch {
            file,
            writes: false,
        };
        DirectoryWatcher::new(directory, watch, move || {
            // The task may have ended meanwhile.
            let _ = moved.send(());
        })
    }

    async fn load(&self) -> Result<DiscoveryResponse, String> {
        let path = &self.path;
        let bytes = tokio::fs::read(path)
            .await
            .map_err(|error| error.to_string())?;
        if path.extension().is_some_and(|extension| extension == "pb") {
            return DiscoveryResponse::decode(bytes.as_slice()).map_err(|error| error.to_string());
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
        let parsed = pb::from_text::<DiscoveryResponse>(text, pb::Format::of_path(path))
            .map_err(|error| error.to_string())?;
        match self.unknown_fields {
            UnknownFields::Reject => parsed.strict().map_err(|error| error.to_string()),
            UnknownFields::Warn => {
                for field in &parsed.unknown_fields {
                    tracing::warn!(path = %path.display(), "unknown field ignored: {field}");
                }
                if let Some((set, stat)) = &self.unknown_fields_stat
                    && !parsed.unknown_fields.is_empty()
                {
                    set.add(*stat, parsed.unknown_fields.len() as u64);
                }
                Ok(parsed.message)
            }
            UnknownFields::Ignore => Ok(parsed.message),
        }
    }
}
