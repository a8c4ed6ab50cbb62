//! Where lines go: buffers in memory, and one thread that writes them out.
//!
//! The same path is one [`Sink`], whichever Generation asks for it; lines keep their order. A buffer is written when it
//! is full enough, or at the flush interval; what does not fit because the device does not keep up is dropped and
//! counted, so that a stalled reader of standard output costs lines and no traffic.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::base::{PerWorker, WorkerCell};
use crate::config::access_log::AccessLogSink;
use crate::telemetry::metrics::{Kind, Metric, Registry, StatSet};

crate::stats! {
    /// `filesystem.`
    pub mod filesystem {
        FLUSHED_BY_TIMER: Counter = "flushed_by_timer",
        REOPEN_FAILED: Counter = "reopen_failed",
        WRITE_BUFFERED: Counter = "write_buffered",
        WRITE_COMPLETED: Counter = "write_completed",
        WRITE_FAILED: Counter = "write_failed",
        WRITE_TOTAL_BUFFERED: Gauge = "write_total_buffered",
    }
}

/// A buffer never grows beyond this: further lines are dropped.
const MAX_BUFFER: usize = 16 << 20;

/// Buffers that grew beyond this are given back after use.
const KEEP_SCRATCH: usize = 64 << 10;

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
pub struct Sinks {
    shared: Arc<Shared>,
    scratch: PerWorker<WorkerCell<Vec<u8>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    options: SinkOptions,
    stats: Arc<StatSet>,
    dropped: Arc<Metric>,
    state: Mutex<State>,
    /// Wakes the writer.
    wake: Condvar,
    /// Tells that the writer has been through.
    done: Condvar,
}

#[derive(Default)]
struct State {
    open: HashMap<AccessLogSink, Arc<Sink>>,
    /// Rounds asked for, and rounds done: a flush waits for the one to reach the other.
    asked: u64,
    completed: u64,
    stop: bool,
}

/// One file, or standard stream.
pub struct Sink {
    target: AccessLogSink,
    shared: Arc<Shared>,
    buffer: Mutex<Buffer>,
    /// The writer's alone, but for the first opening.
    file: Mutex<File>,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The writer was told of a full buffer already.
    told: bool,
    /// A line was written.
    begun: bool,
    reopen: bool,
}

impl Sinks {
    /// With no sink open. The writing thread begins with the first sink, and ends when the last handle is dropped,
    /// after a last flush.
    pub fn new(options: SinkOptions, registry: &Registry) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                options,
                stats: registry.set(&filesystem::TABLE, "filesystem.", "filesystem", []),
                dropped: registry.metric("access_log.lines_dropped", Kind::Counter),
                state: Mutex::default(),
                wake: Condvar::new(),
                done: Condvar::new(),
            }),
            scratch: PerWorker::new(registry.shards()),
            writer: Mutex::new(None),
        })
    }

    /// The sink for `target`, opened at first use.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be had.
    pub fn open(&self, target: &AccessLogSink) -> std::io::Result<Arc<Sink>> {
        let target = canonical(target);
        self.start_writer()?;
        let mut state = self.shared.state.lock();
        if let Some(sink) = state.open.get(&target) {
            return Ok(Arc::clone(sink));
        }
        let file = open(&target).map_err(|error| match &target {
            AccessLogSink::File(path) => std::io::Error::new(
                error.kind(),
                format!("unable to open file '{}': {error}", path.display()),
            ),
            AccessLogSink::Stdout | AccessLogSink::Stderr => error,
        })?;
        let sink = Arc::new(Sink {
            file: Mutex::new(file),
            target: target.clone(),
            shared: Arc::clone(&self.shared),
            buffer: Mutex::default(),
        });
        state.open.insert(target, Arc::clone(&sink));
        Ok(sink)
    }

    /// Opens every file anew before the next write (SIGUSR1, `/reopen_logs`).
    pub fn reopen(&self) {
        let mut state = self.shared.state.lock();
        for sink in state.open.values() {
            sink.buffer.lock().reopen = true;
        }
        state.asked += 1;
        self.shared.wake.notify_one();
    }

    /// Writes out what is buffered, and returns when that is done. Blocks: control side only.
    pub fn flush(&self) {
        if self.writer.lock().is_none() {
            return;
        }
        let mut state = self.shared.state.lock();
        state.asked += 1;
        let round = state.asked;
        self.shared.wake.notify_one();
        while state.completed < round && !state.stop {
            self.shared.done.wait(&mut state);
        }
    }

    /// Lends a buffer of the running thread.
    pub(super) fn with_scratch(&self, f: impl FnOnce(&mut Vec<u8>)) {
        let cell = self.scratch.get_or_init(WorkerCell::default);
        match cell.try_lock() {
            Some(mut scratch) => {
                f(&mut scratch);
                if scratch.capacity() > KEEP_SCRATCH {
                    *scratch = Vec::new();
                }
            }
            // The control side may be several threads.
            None => f(&mut Vec::new()),
        }
    }

    fn start_writer(&self) -> std::io::Result<()> {
        let mut writer = self.writer.lock();
        if writer.is_none() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("access-log".into())
                .spawn(move || write_forever(&shared))?;
            *writer = Some(thread);
        }
        Ok(())
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.writer.lock().take() {
            // A panic of the writer has been told by its own message.
            let _ = thread.join();
        }
        // Sinks point at what is shared, and that at the sinks.
        self.shared.state.lock().open.clear();
    }
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sink").field(&self.target).finish()
    }
}

/// `/dev/stdout` is standard output: to open it as a file fails where it is a socket.
fn canonical(target: &AccessLogSink) -> AccessLogSink {
    match target {
        AccessLogSink::File(path) if path == Path::new("/dev/stdout") => AccessLogSink::Stdout,
        AccessLogSink::File(path) if path == Path::new("/dev/stderr") => AccessLogSink::Stderr,
        other => other.clone(),
    }
}

fn open(target: &AccessLogSink) -> std::io::Result<File> {
    match target {
        AccessLogSink::Stdout => Ok(std::io::stdout().as_fd().try_clone_to_owned()?.into()),
        AccessLogSink::Stderr => Ok(std::io::stderr().as_fd().try_clone_to_owned()?.into()),
        AccessLogSink::File(path) => OpenOptions::new().create(true).append(true).open(path),
    }
}

impl Sink {
    /// Appends a line to the buffer.
    pub fn write(&self, line: &[u8]) {
        let shared = &self.shared;
        let full = {
            let mut buffer = self.buffer.lock();
            if buffer.bytes.len() + line.len() > MAX_BUFFER {
                shared.dropped.add(1);
                return;
            }
            buffer.bytes.extend_from_slice(line);
            // The first line goes out at once, as in Envoy: it shows that there is a log.
            let first = !std::mem::replace(&mut buffer.begun, true);
            let full = (first || buffer.bytes.len() >= shared.options.flush_size) && !buffer.told;
            buffer.told |= full;
            full
        };
        shared.stats.inc(filesystem::WRITE_BUFFERED);
        shared
            .stats
            .add(filesystem::WRITE_TOTAL_BUFFERED, line.len() as u64);
        if full {
            shared.state.lock().asked += 1;
            shared.wake.notify_one();
        }
    }

    /// Writes out the buffer; the writer only. `spare` is an empty vector to put in its place.
    fn write_out(&self, spare: &mut Vec<u8>, by_timer: bool) {
        let reopen = {
            let mut buffer = self.buffer.lock();
            std::mem::swap(&mut buffer.bytes, spare);
            buffer.told = false;
            std::mem::take(&mut buffer.reopen)
        };
        let stats = &self.shared.stats;
        let mut file = self.file.lock();
        if reopen && matches!(self.target, AccessLogSink::File(_)) {
            match open(&self.target) {
                Ok(opened) => *file = opened,
                Err(error) => {
                    // The old file takes the lines until the next try.
                    self.buffer.lock().reopen = true;
                    stats.inc(filesystem::REOPEN_FAILED);
                    tracing::warn!(sink = ?self.target, %error, "access log cannot be reopened");
                }
            }
        }
        if spare.is_empty() {
            return;
        }
        match file.write_all(spare) {
            Ok(()) => stats.inc(filesystem::WRITE_COMPLETED),
            Err(_) => stats.inc(filesystem::WRITE_FAILED),
        }
        if by_timer {
            stats.inc(filesystem::FLUSHED_BY_TIMER);
        }
        stats.add(
            filesystem::WRITE_TOTAL_BUFFERED,
            (spare.len() as u64).wrapping_neg(),
        );
        spare.clear();
        if spare.capacity() > 1 << 20 {
            *spare = Vec::new();
        }
    }
}

fn write_forever(shared: &Shared) {
    let mut spare = Vec::new();
    loop {
        let (sinks, round, by_timer, stop) = {
            let mut state = shared.state.lock();
            let mut by_timer = false;
            if state.asked == state.completed && !state.stop {
                by_timer = shared
                    .wake
                    .wait_for(&mut state, shared.options.flush_interval)
                    .timed_out();
            }
            let sinks: Vec<_> = state.open.values().cloned().collect();
            (sinks, state.asked, by_timer, state.stop)
        };
        for sink in &sinks {
            sink.write_out(&mut spare, by_timer);
        }
        drop(sinks);
        let mut state = shared.state.lock();
        // A sink that only this table holds, and that has nothing left to write, belongs to no Generation any more.
        state
            .open
            .retain(|_, sink| Arc::strong_count(sink) > 1 || !sink.buffer.lock().bytes.is_empty());
        state.completed = round;
        shared.done.notify_all();
        if stop {
            return;
        }
    }
}
