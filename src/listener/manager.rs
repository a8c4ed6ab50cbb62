//! Reconciles listening sockets with the current Generation.
//!
//! A listener whose addresses did not change keeps its sockets, and so does an address that goes to a listener of
//! another name: no connection is refused or lost. One that moved is bound at its new place before the old one closes;
//! one that is gone stops accepting and drains.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::accept;
use super::connection::{Entrance, ServeContext};
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
    /// What was served when it was last counted.
    counted: BTreeMap<Arc<str>, Arc<Listener>>,
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
            counted: BTreeMap::new(),
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
        // All are opened before any closes: sockets may change hands.
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
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
            match self.bind(name, wanted, generation) {
                Ok(bound) => opened.push((Arc::clone(name), bound)),
                Err(error) => {
                    self.stats
                        .inc(stats::listener_manager::LISTENER_CREATE_FAILURE);
                    tracing::error!(target: "config", listener = %error.listener, %error, "listener not bound");
                    failed.push(error);
                }
            }
        }
        // What cannot move keeps its place, unless that is another's by now.
        for error in &failed {
            if let Some(stuck) = self.bound.get(&error.listener)
                && opened.iter().any(|(_, bound)| bound.meets(stuck))
            {
                self.bound.remove(&error.listener);
            }
        }
        // The predecessors, if any, stop accepting only now.
        self.bound.extend(opened);
        self.bound.retain(|name, _| {
            let wanted = generation.listeners.contains_key(name);
            if !wanted {
                tracing::info!(target: "config", listener = %name, "listener stops accepting and drains");
            }
            wanted
        });
        self.publish();
        self.count_changes(generation, &failed);
        failed
    }

    /// Counts what is new, changed or gone since the last time; a listener that serves is created once on every worker, as
    /// in Envoy.
    fn count_changes(&mut self, generation: &Generation, failed: &[BindError]) {
        let before = std::mem::take(&mut self.counted);
        for (name, live) in &generation.listeners {
            let (config, known) = (&live.config, before.get(name));
            self.counted.insert(Arc::clone(name), Arc::clone(config));
            if known.is_some_and(|known| Arc::ptr_eq(known, config) || known == config) {
                continue;
            }
            match known {
                None => self.stats.inc(stats::listener_manager::LISTENER_ADDED),
                Some(known) => {
                    self.stats.inc(stats::listener_manager::LISTENER_MODIFIED);
                    if known.differs_in_chains_alone(config) {
                        let in_place = stats::listener_manager::LISTENER_IN_PLACE_UPDATED;
                        self.stats.inc(in_place);
                    }
                }
            }
            let serves =
                !self.stopped.covers(config) && !failed.iter().any(|error| error.listener == *name);
            if serves {
                let created = stats::listener_manager::LISTENER_CREATE_SUCCESS;
                self.stats.add(created, self.workers.count() as u64);
            }
        }
        let gone = before
            .keys()
            .filter(|name| !self.counted.contains_key(*name));
        let gone = gone.count() as u64;
        if gone > 0 {
            self.stats
                .add(stats::listener_manager::LISTENER_REMOVED, gone);
        }
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
        let before = self.bound.len();
        self.bound.retain(|name, _| {
            let live = generation.listeners.get(name);
            !live.map_or(self.stopped == Stopped::All, |live| {
                self.stopped.covers(&live.config)
            })
        });
        if self.bound.len() < before {
            let stopped = (before - self.bound.len()) as u64;
            self.stats
                .add(stats::listener_manager::LISTENER_STOPPED, stopped);
        }
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

    fn bind(
        &self,
        name: &Arc<str>,
        listener: &Listener,
        generation: &Generation,
    ) -> Result<Bound, BindError> {
        let (stop, watch) = drain::channel();
        let mut sockets = Vec::new();
        if listener.bind_to_port {
            for address in &listener.addresses {
                let bound = self
                    .open(name, address, listener, generation)
                    .map_err(|source| BindError {
                        listener: Arc::clone(name),
                        address: address.clone(),
                        source,
                    })?;
                sockets.push(bound);
            }
        }
        for (address, socket) in listener.addresses.iter().zip(&sockets) {
            for index in 0..self.workers.count() {
                let acceptor = match socket.duplicate(index) {
                    Ok(acceptor) => acceptor,
                    Err(source) => {
                        stop.drain();
                        return Err(BindError {
                            listener: Arc::clone(name),
                            address: address.clone(),
                            source,
                        });
                    }
                };
                let entrance = Arc::new(Entrance {
                    listener: Arc::clone(name),
                    place: address.is_fixed().then(|| address.clone()),
                });
                let (context, watch) = (Arc::clone(&self.context), watch.clone());
                self.workers.run_on(index, move || {
                    let name = Arc::clone(&entrance.listener);
                    if let Err(error) = accept::start(context, entrance, acceptor, watch) {
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

    /// The sockets of an address: those that are there, where their listener is this one, or leaves the address.
    fn open(
        &self,
        name: &Arc<str>,
        address: &Address,
        listener: &Listener,
        generation: &Generation,
    ) -> io::Result<Sockets> {
        let leaves = |holder: &Arc<str>| {
            let stays = generation.listeners.get(holder);
            !stays.is_some_and(|live| live.config.addresses.contains(address))
        };
        let there = self
            .bound
            .iter()
            .filter(|(holder, _)| address.is_fixed() && (*holder == name || leaves(holder)))
            .find_map(|(holder, bound)| {
                let mut places = bound.addresses.iter().zip(&bound.sockets);
                let (_, sockets) = places.find(|(place, _)| *place == address)?;
                Some((holder, bound, sockets))
            });
        match there {
            Some((holder, _, sockets)) if holder == name || sockets.suit(listener) => {
                sockets.share(listener)
            }
            // Sockets of another kind cannot be bound beside these.
            Some((_, bound, sockets)) => {
                bound.stop.drain();
                sockets.stop_listening();
                Sockets::bind(address, listener, self.workers.count())
            }
            None => Sockets::bind(address, listener, self.workers.count()),
        }
    }
}

impl Bound {
    /// True where both listen on one address.
    fn meets(&self, other: &Self) -> bool {
        Address::meet(&self.addresses, &other.addresses)
    }

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
