//! Bytes that the callouts of one VM hold: what waits to be sent, and what has come and was not told yet.
//!
//! A guest's own memory is bounded, and what it hands over is copied out of it; without a bound on the copies a small guest
//! would fill ours. Bytes count for as long as their memory is held, whoever holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

/// What one VM's callouts hold, and how much that may be. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Payloads(Arc<Total>);

#[derive(Debug)]
struct Total {
    held: AtomicUsize,
    most: usize,
    /// How often there was no room, since that was last asked.
    refused: AtomicU64,
}

impl Payloads {
    /// None yet, of `most` bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Total {
            held: AtomicUsize::new(0),
            most,
            refused: AtomicU64::new(0),
        }))
    }

    /// Room for so many bytes; `None` where there is not so much, which is counted.
    pub(crate) fn charge(&self, bytes: usize) -> Option<Charge> {
        let mut charge = Charge {
            total: Arc::clone(&self.0),
            bytes: 0,
        };
        charge.set(bytes).then_some(charge)
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.0.held.load(Relaxed)
    }

    /// How often there was no room since this was last asked.
    pub(crate) fn take_refused(&self) -> u64 {
        // A swap of what is hardly ever anything else costs more than a look.
        match self.0.refused.load(Relaxed) {
            0 => 0,
            _ => self.0.refused.swap(0, Relaxed),
        }
    }
}

/// Room that was taken; it comes back with the drop.
#[derive(Debug)]
pub(crate) struct Charge {
    total: Arc<Total>,
    bytes: usize,
}

impl Charge {
    /// A charge of nothing on the same account.
    pub(crate) fn another(&self) -> Self {
        Self {
            total: Arc::clone(&self.total),
            bytes: 0,
        }
    }

    /// Whether it can be made so many bytes.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let held = self.total.held.load(Relaxed);
        held.checked_add(more)
            .is_some_and(|held| held <= self.total.most)
    }

    /// Makes it so many bytes. False where there is no room for them, which is counted: then it stays what it was.
    #[must_use]
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let Total {
            held,
            most,
            refused,
        } = &*self.total;
        if let Some(more) = bytes.checked_sub(self.bytes) {
            let taken = held.fetch_update(Relaxed, Relaxed, |held| {
                held.checked_add(more).filter(|held| held <= most)
            });
            // What takes nothing more is never refused.
            if taken.is_err() && more > 0 {
                refused.fetch_add(1, Relaxed);
                return false;
            }
        } else {
            held.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }

    /// `data`, which this is paid for for as long as anybody holds a part of it.
    pub(crate) fn hold(self, data: Bytes) -> Bytes {
        struct Held {
            data: Bytes,
            _charge: Charge,
        }

        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.data
            }
        }

        Bytes::from_owner(Held {
            data,
            _charge: self,
        })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_while_anybody_holds_them() {
        let payloads = Payloads::new(10);
        let held = || payloads.0.held.load(Relaxed);
        let data = payloads.charge(6).expect("room").hold("abcdef".into());
        assert!(payloads.charge(5).is_none());
        assert_eq!((payloads.take_refused(), payloads.take_refused()), (1, 0));
        let part = data.slice(1..2);
        drop(data);
        assert_eq!((held(), &*part), (6, &b"b"[..]));
        drop(part);
        let mut charge = payloads.charge(10).expect("it came back");
        assert!(charge.set(3) && !charge.set(11));
        assert_eq!(held(), 3);
        let mut other = charge.another();
        assert!(other.set(7) && other.set(7) && !other.set(8));
        drop((charge, other));
        assert_eq!((held(), payloads.take_refused()), (0, 2));
    }
}
