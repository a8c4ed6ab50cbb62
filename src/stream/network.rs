//! What network filters share of one connection: the data that have not gone on, and what is asked for between
//! callbacks.
//!
//! As in Envoy there is one buffer a direction, of the whole chain: what one filter stops is shown to all filters before it
//! again, together with what has come since. The task of the connection owns the chain; a plugin has a
//! [`NetworkHandle`], and the task wakes when the plugin asks it for something.

use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::base::WorkerCell;

/// Which data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// From the client.
    Upstream = 0,
    /// To the client.
    Downstream = 1,
}

/// What a connection's filters share. It belongs to the connection's worker.
#[derive(Debug)]
pub struct Held(WorkerCell<State>);

#[derive(Debug, Default)]
struct State {
    buffers: [Bytes; 2],
    /// By the filter's place in the chain.
    filters: SmallVec<[Asked; 2]>,
    close: Option<&'static str>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    go_on: bool,
    lost: bool,
}

impl Held {
    /// Nothing, for a chain of `filters` filters.
    pub fn new(filters: usize) -> Arc<Self> {
        Arc::new(Self(WorkerCell::new(State {
            filters: smallvec![Asked::default(); filters],
            ..State::default()
        })))
    }

    /// The hand of filter number `filter` on it.
    pub fn handle(self: &Arc<Self>, filter: usize) -> NetworkHandle {
        NetworkHandle {
            held: Arc::clone(self),
            filter,
        }
    }

    /// How much has not gone on.
    pub fn len(&self, towards: Towards) -> usize {
        self.0.lock().buffers[towards as usize].len()
    }

    /// Adds what has arrived.
    pub fn push(&self, towards: Towards, data: &[u8]) {
        let mut state = self.0.lock();
        let buffer = &mut state.buffers[towards as usize];
        *buffer = if buffer.is_empty() {
            Bytes::copy_from_slice(data)
        } else {
            let mut joined = std::mem::take(buffer)
                .try_into_mut()
                .unwrap_or_else(|shared| bytes::BytesMut::from(shared.as_ref()));
            joined.extend_from_slice(data);
            joined.freeze()
        };
    }

    /// Takes all of it out, to go on.
    pub fn take(&self, towards: Towards) -> Bytes {
        std::mem::take(&mut self.0.lock().buffers[towards as usize])
    }

    /// A plugin wants the connection closed; why.
    pub fn take_close(&self) -> Option<&'static str> {
        self.0.lock().close.take()
    }

    /// Filter number `filter` has asked to go on.
    pub fn take_go_on(&self, filter: usize) -> bool {
        std::mem::take(&mut self.0.lock().filters[filter].go_on)
    }

    /// The plugin of filter number `filter` has failed while no callback of this connection ran.
    pub fn take_lost(&self, filter: usize) -> bool {
        std::mem::take(&mut self.0.lock().filters[filter].lost)
    }

    /// Whom to wake when something is asked for.
    pub fn register(&self, cx: &Context<'_>) {
        let mut state = self.0.lock();
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn ask(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.0.lock();
            change(&mut state);
            state.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// One filter's hand on its connection.
#[derive(Clone, Debug)]
pub struct NetworkHandle {
    held: Arc<Held>,
    filter: usize,
}

impl NetworkHandle {
    /// What this filter has stopped of the client's data, or of the connection itself, goes on to the next filter.
    pub fn go_on(&self) {
        let filter = self.filter;
        self.held.ask(|state| state.filters[filter].go_on = true);
    }

    /// Closes the connection when what was sent to the client has left; `reason` is what the log says. The first word
    /// stays.
    pub fn close(&self, reason: &'static str) {
        self.held.ask(|state| {
            state.close.get_or_insert(reason);
        });
    }

    /// Less is held than before: more may be read.
    pub fn has_room(&self) {
        self.held.ask(|_| {});
    }

    /// The filter's plugin has failed.
    pub fn lose(&self) {
        let filter = self.filter;
        self.held.ask(|state| state.filters[filter].lost = true);
    }

    /// Runs `f` on the data that have not gone on.
    pub fn with_buffer<R>(&self, towards: Towards, f: impl FnOnce(&mut Bytes) -> R) -> R {
        f(&mut self.held.0.lock().buffers[towards as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stopped_is_joined_by_what_follows() {
        let held = Held::new(1);
        held.push(Towards::Upstream, b"ab");
        held.push(Towards::Upstream, b"cd");
        let seen = held
            .handle(0)
            .with_buffer(Towards::Upstream, |data| data.clone());
        // Somebody still looks at it: the next ones do not change what is seen.
        held.push(Towards::Upstream, b"e");
        assert_eq!((&*seen, held.len(Towards::Upstream)), (&b"abcd"[..], 5));
        assert_eq!(held.take(Towards::Upstream), "abcde");
        assert_eq!(held.len(Towards::Downstream), 0);
    }

    #[test]
    fn the_first_reason_to_close_stays() {
        let held = Held::new(2);
        let handle = held.handle(1);
        handle.close("a");
        handle.close("b");
        handle.go_on();
        assert_eq!(held.take_close(), Some("a"));
        assert_eq!(held.take_close(), None);
        assert!(!held.take_go_on(0) && held.take_go_on(1) && !held.take_go_on(1));
        assert!(!held.take_lost(1));
    }
}
