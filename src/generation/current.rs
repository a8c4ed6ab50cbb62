//! The one pointer to the Generation of the moment.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ChainDrain, Generation};

/// Where every request finds the configuration of the moment: one atomic load.
#[derive(Debug)]
pub struct CurrentGeneration {
    current: ArcSwap<Generation>,
    number: watch::Sender<u64>,
    /// Replaced Generations that streams still use. Only the control side touches it.
    retired: Mutex<Vec<Arc<Generation>>>,
    /// The drains that are not over. Only the control side touches them too.
    draining: Mutex<Vec<Arc<ChainDrain>>>,
}

impl Default for CurrentGeneration {
    fn default() -> Self {
        Self {
            current: ArcSwap::from_pointee(Generation::empty()),
            number: watch::channel(0).0,
            retired: Mutex::default(),
            draining: Mutex::default(),
        }
    }
}

impl CurrentGeneration {
    /// The Generation of the moment. The guard is for the length of a statement: it may not be kept.
    pub fn load(&self) -> Guard<Arc<Generation>> {
        self.current.load()
    }

    /// The same, to keep (on the control side: admin, the next build).
    pub fn load_full(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Its number, which rings at each swap.
    pub fn number(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Drains the chains that `next` no longer has, and makes it the Generation of the moment. One writer calls this.
    pub fn swap(&self, next: Arc<Generation>) {
        let number = next.number;
        let kept: std::collections::HashSet<*const ChainDrain> = next
            .listeners
            .values()
            .flat_map(|listener| &listener.chains)
            .map(|chain| Arc::as_ptr(&chain.drain))
            .collect();
        let previous = self.current.load_full();
        let chains = previous.listeners.values().flat_map(|live| &live.chains);
        // Before the swap, so that a connection finds its chain in the one place or the other at any time.
        for chain in chains.filter(|chain| !kept.contains(&Arc::as_ptr(&chain.drain))) {
            chain.drain.start(chain.http());
            self.draining.lock().push(Arc::clone(&chain.drain));
        }
        self.current.store(next);
        self.retired.lock().push(previous);
        self.number.send_replace(number);
        self.sweep();
    }

    /// Drops the replaced Generations that nothing uses any more; gives the number that lives, the current included.
    pub fn sweep(&self) -> usize {
        self.draining.lock().retain(|drain| !drain.finish());
        let mut retired = self.retired.lock();
        // A reader that loaded the pointer before the swap may still be cloning out of it: its guard counts.
        retired.retain(|generation| Arc::strong_count(generation) > 1 || !generation.is_idle());
        retired.len() + 1
    }
}
