//! [`ConnectionMeter`]: what a connection counts while it lives, for its owner's statistics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes on the wire of one connection. Only the connection writes; its owner may read at any time.
#[derive(Debug, Default)]
pub struct ConnectionMeter {
    received: AtomicU64,
    sent: AtomicU64,
}

impl ConnectionMeter {
    /// Bytes read so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// A single writer: no read-modify-write instruction is needed.
    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.store(
            self.received().wrapping_add(bytes as u64),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent
            .store(self.sent().wrapping_add(bytes as u64), Ordering::Relaxed);
    }
}
