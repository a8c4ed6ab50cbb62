//! [`ConnectionMeter`]: what a connection counts while it lives, for its owner's statistics.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How an upstream connection came to its end, as far as its codec has seen one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It has not, or its owner gave it up.
    #[default]
    Open,
    /// The last exchange was complete, and the peer had asked to close (`connection: close`, HTTP/1.0).
    Asked,
    /// The last exchange was complete, and we may not use the connection again (surplus bytes, request unread).
    Spent,
    /// The last exchange was complete: the response's body ended with the connection.
    Eof,
    /// The peer closed or reset it: idle, or before a response head.
    Peer,
    /// The peer closed it within a response body.
    Truncated,
    /// The peer does not speak HTTP.
    Malformed,
}

/// Bytes on the wire of one connection. Only the connection writes; its owner may read at any time.
#[derive(Debug, Default)]
pub struct ConnectionMeter {
    received: AtomicU64,
    sent: AtomicU64,
    ending: AtomicU8,
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

    /// How it ended.
    pub fn ending(&self) -> Ending {
        match self.ending.load(Ordering::Relaxed) {
            1 => Ending::Asked,
            2 => Ending::Spent,
            3 => Ending::Eof,
            4 => Ending::Peer,
            5 => Ending::Truncated,
            6 => Ending::Malformed,
            _ => Ending::Open,
        }
    }

    /// The codec says how it ended, before it lets go of the connection; the first word stays.
    pub(crate) fn set_ending(&self, ending: Ending) {
        if self.ending() == Ending::Open {
            self.ending.store(ending as u8, Ordering::Relaxed);
        }
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
