//! "Finish what you have": one trigger, many watchers.

use tokio::sync::watch;

/// Starts a drain; dropping it without triggering never starts one.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<bool>);

/// Learns of a drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<bool>);

/// A trigger and its first watcher.
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (trigger, watch) = watch::channel(false);
    (DrainTrigger(trigger), DrainWatch(watch))
}

impl DrainTrigger {
    /// Starts the drain.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }

    /// A further watcher.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
    }

    /// Ends when every watcher is gone.
    pub async fn drained(&self) {
        self.0.closed().await;
    }
}

impl DrainWatch {
    /// True once the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when the drain starts; never where the trigger is gone without one.
    pub async fn draining(&mut self) {
        if self.0.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
