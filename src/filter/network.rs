//! Network filters: the contract, and the chain that drives it for one connection. Terminal ones are not here: what they
//! do with the bytes is the listener's.
//!
//! The rules are those of Envoy's filter manager. What the client sent is shown to the filters in order, each with the
//! whole of what has not gone on; the first that stops ends the walk, and what arrives next begins a walk of its own, from
//! the first filter. What goes to the client is shown in reverse order. A filter hears of the connection itself
//! ([`ConnectionFilter::new_connection`]) before any data, and only when all before it have let it pass.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "wasm")]
pub(in crate::filter) mod wasm;

use std::fmt;
use std::sync::Arc;
use std::task::Context;

use super::factory::ChainContext;
use super::registry::Registry;
use crate::config::listener::NetworkFilter as NetworkFilterConfig;
use crate::stream::Stream;
use crate::stream::network::{Held, NetworkHandle, Towards};

/// What a filter decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Go on.
    Continue,
    /// Stay: until more arrives, or until the filter asks to go on.
    Stop,
}

/// Who closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// We did.
    Local = 1,
    /// The client did.
    Remote = 2,
}

/// A filter of one chain, shared by its connections.
pub trait NetworkFilter: fmt::Debug + Send + Sync + 'static {
    /// The filter's part in the connection that `stream` stands for.
    fn connection(&self, stream: &Arc<Stream>, handle: NetworkHandle) -> Box<dyn ConnectionFilter>;
}

/// A filter's part in one connection. The data are in [`Held`]; `len` is how much there is.
pub trait ConnectionFilter: Send {
    /// The connection begins for this filter.
    fn new_connection(&mut self) -> Status;

    /// Data from the client; `end`: there will be no more.
    fn downstream_data(&mut self, len: usize, end: bool) -> Status;

    /// Data to the client.
    fn upstream_data(&mut self, len: usize, end: bool) -> Status;

    /// The connection is closed, and with it the filter's part in it.
    fn closed(&mut self, peer: Peer);

    /// The filter's plugin has failed while the filter holds the connection back: whether that goes on without it.
    fn lost(&mut self) -> Status {
        Status::Stop
    }
}

/// The network filters of a chain, as they are configured, at a version of their plugins.
#[derive(Debug, Default)]
pub struct NetworkFilters(Vec<Arc<dyn NetworkFilter>>);

impl NetworkFilters {
    /// Brings the filters to life. On the control side.
    pub fn build(
        registry: &Registry,
        configs: &[NetworkFilterConfig],
        context: &ChainContext<'_>,
    ) -> Self {
        Self(
            configs
                .iter()
                .enumerate()
                .filter_map(|(slot, config)| {
                    registry.build_network(&config.config, &config.name, slot, context)
                })
                .collect(),
        )
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their parts in the connection that `stream` stands for.
    pub fn connection(&self, stream: &Arc<Stream>) -> ConnectionFilters {
        let held = Held::new(self.0.len());
        let filters = self
            .0
            .iter()
            .enumerate()
            .map(|(index, filter)| Active {
                filter: filter.connection(stream, held.handle(index)),
                begun: false,
            })
            .collect();
        ConnectionFilters {
            held,
            filters,
            stopped: None,
            held_back: None,
            closed: false,
        }
    }
}

/// Where a walk through the filters has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Past all of them: what is held goes on.
    Passed,
    /// A filter holds it.
    Stopped,
    /// A filter wants the connection closed; why.
    Close(&'static str),
}

/// What filters ask for between callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Walk on from the filter of that number.
    GoOn(usize),
    /// Close the connection; why.
    Close(&'static str),
}

/// So many requests of a connection's filters are met before others of its worker have their turn.
pub const REQUESTS: u32 = 16;

/// The filters of one connection.
pub struct ConnectionFilters {
    held: Arc<Held>,
    filters: Vec<Active>,
    /// The filter that ended the last walk of what the client sent.
    stopped: Option<usize>,
    /// The filter that ended the last walk of what goes to the client.
    held_back: Option<usize>,
    closed: bool,
}

struct Active {
    filter: Box<dyn ConnectionFilter>,
    begun: bool,
}

impl ConnectionFilters {
    /// What has not gone on.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Walks from the filter of number `from`: the connection where it is new to a filter, then what the client sent.
    /// `end`: it has sent all.
    pub fn downstream(&mut self, from: usize, end: bool) -> Walk {
        self.stopped = None;
        for (index, active) in self.filters.iter_mut().enumerate().skip(from) {
            if !std::mem::replace(&mut active.begun, true) {
                let status = active.filter.new_connection();
                if let Some(walk) = after(&self.held, index, status) {
                    self.stopped = Some(index);
                    return walk;
                }
            }
            let len = self.held.len(Towards::Upstream);
            if len > 0 || end {
                let status = active.filter.downstream_data(len, end);
                if let Some(walk) = after(&self.held, index, status) {
                    self.stopped = Some(index);
                    return walk;
                }
            }
        }
        Walk::Passed
    }

    /// Walks with what goes to the client. `end`: it is all.
    pub fn upstream(&mut self, end: bool) -> Walk {
        self.held_back = None;
        for (index, active) in self.filters.iter_mut().enumerate().rev() {
            let len = self.held.len(Towards::Downstream);
            let status = active.filter.upstream_data(len, end);
            if let Some(reason) = self.held.take_close() {
                return Walk::Close(reason);
            }
            // Nothing lets it go on but more data: Envoy cannot continue in this direction.
            if status == Status::Stop {
                self.held_back = Some(index);
                return Walk::Stopped;
            }
        }
        Walk::Passed
    }

    /// What was asked for since; whoever polls is woken for the next. Without `room` behind the filters nothing goes on:
    /// that stays asked.
    pub fn poll_request(&mut self, cx: &Context<'_>, room: bool) -> Option<Request> {
        self.held.register(cx);
        if let Some(reason) = self.held.take_close() {
            return Some(Request::Close(reason));
        }
        for index in 0..self.filters.len() {
            // To go on is one walk, however many filters ask.
            if room && self.held.take_go_on(index) {
                return Some(Request::GoOn(index + 1));
            }
            let holds = self.stopped == Some(index);
            if (holds || self.held_back == Some(index))
                && (room || !holds)
                && self.held.take_lost(index)
            {
                match self.filters[index].filter.lost() {
                    Status::Continue if holds => return Some(Request::GoOn(index + 1)),
                    // Towards the client only more data let it go on.
                    Status::Continue => {}
                    Status::Stop => {
                        return Some(Request::Close(self.held.take_close().unwrap_or_default()));
                    }
                }
            }
        }
        None
    }

    /// The connection's task is gone: what the filters say of that in their own `Drop`, they say now.
    pub fn cut(&mut self) {
        self.filters.clear();
    }

    /// The connection is closed.
    pub fn closed(&mut self, peer: Peer) {
        if !std::mem::replace(&mut self.closed, true) {
            for active in &mut self.filters {
                active.filter.closed(peer);
            }
        }
    }
}

/// What ends a walk at filter number `index`.
fn after(held: &Held, index: usize, status: Status) -> Option<Walk> {
    if let Some(reason) = held.take_close() {
        return Some(Walk::Close(reason));
    }
    // What it asked for within its callback overrides what it answered.
    let goes_on = held.take_go_on(index);
    (status == Status::Stop && !goes_on).then_some(Walk::Stopped)
}

impl fmt::Debug for ConnectionFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionFilters")
            .field("filters", &self.filters.len())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "network/tests.rs"]
mod tests;
