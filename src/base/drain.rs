//! "Finish what you have": one trigger, many watchers.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

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

    /// Ends when there are no watchers.
    pub async fn unwatched(&self) {
        self.0.closed().await;
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

    /// What `future` gives, or what comes of `then`, which is made when the drain starts: whichever is there first. Every
    /// connection waits so: until the drain, nothing is held of what follows it but what makes it.
    ///
    /// # Errors
    /// What comes of `then`.
    pub async fn race<F: Future, L: Future>(
        &self,
        mut future: Pin<&mut F>,
        then: impl FnOnce() -> L,
    ) -> Result<F::Output, L::Output> {
        let first = {
            let mut watch = self.clone();
            let mut draining = pin!(watch.draining());
            let mut waits = false;
            poll_fn(|context| {
                if let Poll::Ready(output) = future.as_mut().poll(context) {
                    return Poll::Ready(Some(output));
                }
                // Registered once, since a task's waker stays the same; asking the flag is cheap.
                if waits && !self.is_draining() {
                    return Poll::Pending;
                }
                waits = true;
                draining.as_mut().poll(context).map(|()| None)
            })
            .await
        };
        if let Some(output) = first {
            return Ok(output);
        }
        let mut late = Box::pin(then());
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => late.as_mut().poll(context).map(Err),
        })
        .await
    }
}
