//! Callouts that fail as they are made, and when that is told.
//!
//! Envoy tells of it when the guest has returned, before anything else happens, and so is it here. But who makes the same
//! call again in the callback that tells him would never come to an end there: after a few the failures come by the
//! mailbox, each in a turn of its own, and with pauses that grow for as long as one makes the next.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::Event;
use crate::base::task::spawn;
use crate::wasm::vm::Message;

/// So many are told when a callback has returned, and so many of which each comes of the one before.
const AT_ONCE: u32 = 8;
/// Of those that come one of the other, from this one on there are pauses.
const PATIENT: u32 = 16;
/// The longest of them; the first is a millisecond.
const LONGEST: Duration = Duration::from_secs(1);

/// A call that failed as it was made.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The root context that hears of it.
    pub(crate) root: u32,
    pub(crate) token: u32,
    pub(crate) events: Vec<Event>,
    /// So many failures led to it, each made in the callback of the one before.
    pub(crate) depth: u32,
}

impl Failed {
    /// True where it can be told as the callback has returned, after `told` others.
    pub(crate) fn is_told_at_once(&self, told: u32) -> bool {
        told < AT_ONCE && self.depth < AT_ONCE
    }

    /// Has the VM's task tell it, in its time.
    pub(crate) fn post(self, mailbox: &UnboundedSender<Message>) {
        let pause = self.pause();
        let mailbox = mailbox.clone();
        if pause.is_zero() {
            // A VM without a task is dead.
            let _ = mailbox.send(Message::GrpcFailed(self));
            return;
        }
        drop(spawn("wasm grpc failure", async move {
            tokio::time::sleep(pause).await;
            // As above.
            let _ = mailbox.send(Message::GrpcFailed(self));
        }));
    }

    fn pause(&self) -> Duration {
        match self.depth.checked_sub(PATIENT) {
            None => Duration::ZERO,
            Some(more) => Duration::from_millis(1 << more.min(10)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_failing_waits_ever_longer() {
        let failed = |depth| Failed {
            root: 1,
            token: 5,
            events: Vec::new(),
            depth,
        };
        assert!(failed(7).is_told_at_once(7));
        assert!(!failed(8).is_told_at_once(0) && !failed(0).is_told_at_once(8));
        let pauses = [15, 16, 17, 25, 26, u32::MAX].map(|depth| failed(depth).pause().as_millis());
        assert_eq!(pauses, [0, 1, 2, 512, 1000, 1000]);
    }
}
