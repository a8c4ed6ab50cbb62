//! The thread that writes: whoever logs never waits for a disk or a pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that may wait.
const QUEUE: usize = 8192;

enum Order {
    Line(String),
    Flush(SyncSender<()>),
    Reopen,
}

/// The way to the writing thread, which ends with the last of these. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    orders: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread; it appends to `path`, or writes to standard error.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn start(path: Option<PathBuf>) -> io::Result<Self> {
        let sink = match &path {
            Some(path) => Sink::File(open(path)?),
            None => Sink::Stderr,
        };
        let (orders, queue) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let thread = Thread {
            queue,
            sink,
            path,
            dropped: Arc::clone(&dropped),
            told: 0,
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || thread.run())?;
        Ok(Self { orders, dropped })
    }

    /// Hands a line over; drops and counts it where the thread is too far behind.
    pub fn write(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.orders.try_send(Order::Line(line)) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until what was handed over is written, for a second at most.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.orders.send(Order::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }

    /// Opens the file again.
    pub fn reopen(&self) {
        // A full queue means that the thread is busy with the old file; the next rotation will find it idle.
        let _ = self.orders.try_send(Order::Reopen);
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

enum Sink {
    Stderr,
    File(File),
}

impl Sink {
    /// Errors are nobody's to handle: there is no other place to tell them.
    fn write(&mut self, bytes: &[u8]) {
        let _ = match self {
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File(file) => file.write_all(bytes),
        };
    }
}

struct Thread {
    queue: Receiver<Order>,
    sink: Sink,
    path: Option<PathBuf>,
    dropped: Arc<AtomicU64>,
    told: u64,
}

impl Thread {
    fn run(mut self) {
        let mut batch = Vec::with_capacity(16 * 1024);
        // Nothing waits in `batch` while this waits for orders.
        while let Ok(order) = self.queue.recv() {
            let mut next = Some(order);
            while let Some(order) = next {
                match order {
                    Order::Line(line) => batch.extend_from_slice(line.as_bytes()),
                    Order::Flush(done) => {
                        self.write(&mut batch);
                        let _ = done.try_send(());
                    }
                    Order::Reopen => {
                        self.write(&mut batch);
                        self.reopen();
                    }
                }
                next = if batch.len() < 64 * 1024 {
                    self.queue.recv_timeout(Duration::ZERO).ok()
                } else {
                    None
                };
            }
            let dropped = self.dropped.load(Relaxed);
            if dropped > self.told {
                let lines = dropped - self.told;
                batch.extend_from_slice(
                    format!("{lines} log lines were dropped: the log is too slow\n").as_bytes(),
                );
                self.told = dropped;
            }
            self.write(&mut batch);
        }
    }

    fn write(&mut self, batch: &mut Vec<u8>) {
        if !batch.is_empty() {
            self.sink.write(batch);
            batch.clear();
        }
    }

    fn reopen(&mut self) {
        if let Some(file) = self.path.as_deref().and_then(|path| open(path).ok()) {
            self.sink = Sink::File(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_sink_costs_lines_and_never_a_wait() {
        // A pipe that nobody reads blocks the thread.
        let (reader, pipe) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pipe));
        let writer = Writer::start(Some(path.into())).unwrap();
        let line = "x".repeat(1023) + "\n";
        for _ in 0..QUEUE * 3 {
            writer.write(line.clone());
        }
        assert!(writer.dropped() > 0);
        drop((pipe, writer));
        // Everything is written once somebody reads, and the loss is told.
        let text = io::read_to_string(reader).unwrap();
        assert!(text.contains("log lines were dropped"));
    }
}
