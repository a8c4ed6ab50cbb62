//! "Finish what you have": one trigger, many watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Starts a drain; dropping it without triggering never starts one.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<bool>, Arc<AtomicBool>);

/// Learns of a drain. Cheap to clone. The flag beside the channel is what the request path reads: no lock.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<bool>, Arc<AtomicBool>);

/// A trigger and its first watcher.
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (trigger, watch) = watch::channel(false);
    let flag = Arc::new(AtomicBool::new(false));
    (
        DrainTrigger(trigger, Arc::clone(&flag)),
        DrainWatch(watch, flag),
    )
}

impl DrainTrigger {
    /// Starts the drain.
    pub fn drain(&self) {
        self.1.store(true, Ordering::Release);
        self.0.send_replace(true);
    }

    /// A further watcher.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe(), Arc::clone(&self.1))
    }

    /// True while there are watchers.
    pub fn is_watched(&self) -> bool {
        !self.0.is_closed()
    }
}

impl DrainWatch {
    /// True once the drain has started.
    pub fn is_draining(&self) -> bool {
        self.1.load(Ordering::Acquire)
    }

    /// Ends when the drain starts; never where the trigger is gone without one.
    pub async fn draining(&mut self) {
        if self.0.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
