//! The access logs of one connection manager, ready to write.
//!
//! A worker formats a line into a buffer of its own and appends it to the sink's: no file is touched on the request
//! path (see [`sink`]).

pub(in crate::stream) mod filter;
pub mod sink;

use std::sync::Arc;

use super::Stream;
use super::format::{LogType, Scope, write_record};
use crate::config::access_log::{AccessLog, AccessLogFilter, LogFormat};

pub use sink::{Sink, SinkOptions, Sinks};

/// The access logs of one connection manager, ready to write.
#[derive(Debug)]
pub struct AccessLogger {
    logs: Box<[Log]>,
    sinks: Arc<Sinks>,
}

#[derive(Debug)]
struct Log {
    sink: Arc<Sink>,
    format: LogFormat,
    filter: Option<AccessLogFilter>,
}

impl AccessLogger {
    /// Opens the sinks of `logs`.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn new(logs: &[AccessLog], sinks: &Arc<Sinks>) -> std::io::Result<Self> {
        let logs = logs
            .iter()
            .map(|log| {
                Ok(Log {
                    sink: sinks.open(&log.sink)?,
                    format: log.format.clone(),
                    filter: log.filter.clone(),
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            logs,
            sinks: Arc::clone(sinks),
        })
    }

    /// Writes the *end* record of `stream` to every log whose filter lets it pass.
    pub fn log(&self, stream: &Stream) {
        self.log_as(stream, LogType::DownstreamEnd);
    }

    /// Writes a record of the given type.
    pub fn log_as(&self, stream: &Stream, log_type: LogType) {
        if self.logs.is_empty() {
            return;
        }
        self.sinks.with_scratch(|line| {
            Scope::with(stream, log_type, |scope| {
                for log in &self.logs {
                    let wanted = log
                        .filter
                        .as_ref()
                        .is_none_or(|filter| filter::passes(filter, scope));
                    if wanted {
                        line.clear();
                        write_record(&log.format, scope, line);
                        log.sink.write(line);
                    }
                }
            });
        });
    }
}

/// Whether `filter` lets a record of `stream` pass.
pub fn wants(filter: &AccessLogFilter, stream: &Stream, log_type: LogType) -> bool {
    Scope::with(stream, log_type, |scope| filter::passes(filter, scope))
}

#[cfg(test)]
mod tests;
