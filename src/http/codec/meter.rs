//! [`ConnectionMeter`]: what a connection counts while it lives, for its owner's statistics.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

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
    /// We gave up a client that resets its streams at once.
    PrematureResets,
}

/// Bytes on the wire of one connection. Only the connection writes; its owner may read at any time.
#[derive(Debug, Default)]
pub struct ConnectionMeter {
    received: AtomicU64,
    sent: AtomicU64,
    ending: AtomicU8,
    interim: AtomicU32,
    closed: OnceLock<&'static str>,
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

    /// Interim answers (1xx) written since this was asked last.
    pub fn take_interim(&self) -> u32 {
        match self.interim.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.interim.swap(0, Ordering::Relaxed),
        }
    }

    pub(crate) fn add_interim(&self) {
        self.interim.fetch_add(1, Ordering::Relaxed);
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
            7 => Ending::PrematureResets,
            _ => Ending::Open,
        }
    }

    /// The codec says how it ended, before it lets go of the connection; the first word stays.
    pub(crate) fn set_ending(&self, ending: Ending) {
        if self.ending() == Ending::Open {
            self.ending.store(ending as u8, Ordering::Relaxed);
        }
    }

    /// Why we close the connection, whatever its codec is about; empty where there is no reason to tell.
    pub fn closed(&self) -> Option<&'static str> {
        self.closed.get().copied()
    }

    /// We close the connection; the first reason stays.
    pub(crate) fn set_closed(&self, reason: &'static str) {
        let _ = self.closed.set(reason);
    }

    /// What stands between codec and socket has counted the wire itself: this is what the codec counts beside.
    pub(crate) fn take_off(&self, received: usize, sent: usize) {
        let less = |counter: &AtomicU64, bytes: usize| {
            let now = counter.load(Ordering::Relaxed);
            counter.store(now.wrapping_sub(bytes as u64), Ordering::Relaxed);
        };
        less(&self.received, received);
        less(&self.sent, sent);
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
