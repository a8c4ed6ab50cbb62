//! Reconciles listening sockets with the current Generation.
//!
//! A listener whose addresses did not change keeps its sockets, so that no connection is refused or lost; one that
//! moved is bound at its new place before the old one closes; one that is gone stops accepting and drains.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::accept;
use super::connection::ServeContext;
use super::socket::Sockets;
use crate::base::WorkerHandles;
use crate::base::drain::{self, DrainTrigger};
use crate::config::Listener;
use crate::config::endpoint::Address;
use crate::config::listener::TrafficDirection;
use crate::generation::{Generation, stats};
use crate::telemetry::metrics::StatSet;

/// Owns the listening sockets of a process.
#[derive(Debug)]
pub struct ListenerManager {
    context: Arc<ServeContext>,
    workers: WorkerHandles,
    bound: BTreeMap<Arc<str>, Bound>,
    stopped: Stopped,
    /// The workers accept.
    started: bool,
    stats: Arc<StatSet>,
    bound_tx: tokio::sync::watch::Sender<Vec<BoundListener>>,
}

/// Which listeners do not accept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stopped {
    No,
    Inbound,
    All,
}

impl Stopped {
    fn covers(self, listener: &Listener) -> bool {
        match self {
            Self::No => false,
            Self::Inbound => listener.direction == TrafficDirection::Inbound,
            Self::All => true,
        }
    }
}

/// A listener's name and where it really listens, for `/listeners`.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundListener {
    /// The listener's name.
    pub name: Arc<str>,
    /// As configured, with port 0 replaced by the port that was bound.
    pub addresses: Vec<Address>,
}

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind '{address}': {}", reason(.source))]
pub struct BindError {
    /// The listener.
    pub listener: Arc<str>,
    /// Where.
    pub address: Address,
    /// Why.
    pub source: io::Error,
}

/// The reason alone, as Envoy prints it, without the number that Rust adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[derive(Debug)]
struct Bound {
    addresses: Vec<Address>,
    sockets: Vec<Sockets>,
    stop: DrainTrigger,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stop.drain();
    }
}

impl ListenerManager {
    /// Manages no listener yet.
    pub fn new(context: Arc<ServeContext>, workers: WorkerHandles) -> Self {
        let stats = context.registry.set(
            &stats::listener_manager::TABLE,
            "listener_manager.",
            "listener_manager",
            [],
        );
        stats.set(stats::listener_manager::WORKERS_STARTED, 0);
        Self {
            context,
            workers,
            bound: BTreeMap::new(),
            stopped: Stopped::No,
            started: false,
            stats,
            bound_tx: tokio::sync::watch::channel(Vec::new()).0,
        }
    }

    /// Where the listeners really listen, as of the last [`ListenerManager::apply`].
    pub fn bound(&self) -> tokio::sync::watch::Receiver<Vec<BoundListener>> {
        self.bound_tx.subscribe()
    }

    /// The statistics of the manager (`listener_manager.`).
    pub fn stats(&self) -> &Arc<StatSet> {
        &self.stats
    }

    /// Says that the workers have begun to accept (`listener_manager.workers_started`, which readiness probes read).
    pub fn workers_started(&mut self) {
        self.started = true;
        self.stats.set(stats::listener_manager::WORKERS_STARTED, 1);
    }

    /// Makes the sockets match `generation`. Listeners that cannot be bound keep what they had, and are named.
    pub fn apply(&mut self, generation: &Generation) -> Vec<BindError> {
        let mut failed = Vec::new();
        for (name, live) in &generation.listeners {
            let wanted = &live.config;
            if self.stopped.covers(wanted) {
                continue;
            }
            if self
                .bound
                .get(name)
                .is_some_and(|bound| bound.addresses == wanted.addresses)
            {
                continue;
            }
            match self.bind(name, wanted) {
                Ok(bound) => {
                    self.stats
                        .inc(stats::listener_manager::LISTENER_CREATE_SUCCESS);
                    // The predecessor, if any, stops accepting only now.
                    self.bound.insert(Arc::clone(name), bound);
                }
                Err(error) => {
                    self.stats
                        .inc(stats::listener_manager::LISTENER_CREATE_FAILURE);
                    tracing::error!(target: "config", listener = %error.listener, %error, "listener not bound");
                    failed.push(error);
                }
            }
        }
        self.bound.retain(|name, _| {
            let wanted = generation.listeners.contains_key(name);
            if !wanted {
                tracing::info!(target: "config", listener = %name, "listener stops accepting and drains");
            }
            wanted
        });
        self.publish();
        failed
    }

    /// Counts the listeners that serve and those that wait: for a plugin, or, as `waiting` says, for what the control
    /// plane has not sent. Before the workers accept, all count as active, as in Envoy.
    pub fn count(&self, generation: &Generation, waiting: &BTreeSet<Arc<str>>) {
        let active = generation.listeners.keys();
        let warming: BTreeSet<_> = generation.warming.keys().chain(waiting).collect();
        let (active, warming) = if self.started {
            (active.len(), warming.len())
        } else {
            (active.chain(warming).collect::<BTreeSet<_>>().len(), 0)
        };
        for (gauge, size) in [
            (stats::listener_manager::TOTAL_LISTENERS_ACTIVE, active),
            (stats::listener_manager::TOTAL_LISTENERS_WARMING, warming),
        ] {
            self.stats.set(gauge, size as u64);
        }
    }

    /// Stops accepting on the listeners of `generation`, or on its inbound ones (`/drain_listeners`), for good: no later
    /// configuration opens such listeners again, as in Envoy. They stay configured.
    pub fn stop_accepting(&mut self, generation: &Generation, inbound_only: bool) {
        let stopped = if inbound_only {
            Stopped::Inbound
        } else {
            Stopped::All
        };
        self.stopped = self.stopped.max(stopped);
        self.bound.retain(|name, _| {
            let live = generation.listeners.get(name);
            !live.map_or(self.stopped == Stopped::All, |live| {
                self.stopped.covers(&live.config)
            })
        });
        self.publish();
    }

    fn publish(&self) {
        let bound = self
            .bound
            .iter()
            .map(|(name, bound)| BoundListener {
                name: Arc::clone(name),
                addresses: bound.real_addresses(),
            })
            .collect();
        self.bound_tx.send_replace(bound);
    }

    fn bind(&self, name: &Arc<str>, listener: &Listener) -> Result<Bound, BindError> {
        let (stop, watch) = drain::channel();
        let mut sockets = Vec::new();
        if listener.bind_to_port {
            for address in &listener.addresses {
                let bound =
                    Sockets::bind(address, listener, self.workers.count()).map_err(|source| {
                        BindError {
                            listener: Arc::clone(name),
                            address: address.clone(),
                            source,
                        }
                    })?;
                sockets.push(bound);
            }
        }
        for socket in &sockets {
            for index in 0..self.workers.count() {
                let acceptor = match socket.duplicate(index) {
                    Ok(acceptor) => acceptor,
                    Err(source) => {
                        stop.drain();
                        let address = listener.addresses[0].clone();
                        return Err(BindError {
                            listener: Arc::clone(name),
                            address,
                            source,
                        });
                    }
                };
                let (context, name, watch) =
                    (Arc::clone(&self.context), Arc::clone(name), watch.clone());
                self.workers.run_on(index, move || {
                    if let Err(error) = accept::start(context, Arc::clone(&name), acceptor, watch) {
                        tracing::error!(target: "main", listener = %name, %error, "cannot accept on a socket");
                    }
                });
            }
        }
        Ok(Bound {
            addresses: listener.addresses.clone(),
            sockets,
            stop,
        })
    }
}

impl Bound {
    fn real_addresses(&self) -> Vec<Address> {
        let mut real: Vec<Option<SocketAddr>> = self.sockets.iter().map(Sockets::local).collect();
        real.resize(self.addresses.len(), None);
        self.addresses
            .iter()
            .zip(real)
            .map(|(configured, real)| real.map_or_else(|| configured.clone(), Address::Socket))
            .collect()
    }
}
