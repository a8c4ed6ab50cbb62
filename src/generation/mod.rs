//! A [`Snapshot`] brought to life: what a request pins, swapped as one pointer.
//!
//! [`Builder::next`] builds only what changed: what has the same `Arc` in the new snapshot keeps its live part
//! (pools, statistics, route tables, filter chains with their plugins). The few structs that tie those together are
//! made anew for each Generation, so that a stream which holds one of them holds one Generation's view and nothing
//! mixes. [`CurrentGeneration`] is the one swap; replaced Generations are kept on the control side until no stream
//! uses them, so that the last drop, which costs as much as the configuration is large, never happens on a worker.

mod builder;
pub mod chain_match;
mod current;
pub mod stats;

pub use builder::{Builder, Parts};
pub use current::CurrentGeneration;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use chain_match::ConnectionFacts;

use crate::base::PerWorker;
use crate::base::drain::DrainTrigger;
use crate::cluster::ClusterMap;
use crate::config;
use crate::config::Snapshot;
use crate::config::extension::HttpFilterConfig;
use crate::config::listener::{FilterChainMatch, NetworkFilter};
use crate::filter::HttpFilterChain;
use crate::filter::factory::Warmth;
use crate::filter::network::NetworkFilters;
use crate::stream::access_log::AccessLogger;
use crate::stream::{Records, StreamConfig};
use crate::telemetry::metrics::StatSet;
use crate::wasm::slot::Asked;

/// A consistent, live configuration.
#[derive(Debug)]
pub struct Generation {
    /// Counted from 1.
    pub number: u64,
    /// The data it was made of.
    pub snapshot: Arc<Snapshot>,
    /// All clusters.
    pub clusters: Arc<ClusterMap>,
    /// The listeners that are active, by name.
    pub listeners: BTreeMap<Arc<str>, Arc<LiveListener>>,
    /// The listeners that wait for plugins' first versions, and for how many; their predecessors, if any, are in
    /// `listeners`.
    pub warming: BTreeMap<Arc<str>, usize>,
    /// The clusters that wait for plugins' first versions; what serves of their predecessors is in `clusters`.
    pub warming_clusters: BTreeSet<Arc<str>>,
}

/// A listener with its chains.
#[derive(Debug)]
pub struct LiveListener {
    /// Its configuration.
    pub config: Arc<config::Listener>,
    /// Its statistics, which survive updates.
    pub stats: Arc<ListenerStats>,
    /// As in the configuration; the default chain is last, where there is one.
    pub chains: Vec<Arc<LiveChain>>,
}

/// Statistics of a listener.
#[derive(Debug)]
pub struct ListenerStats {
    /// The address as it stands in the names, or the listener's `stat_prefix`.
    pub address: Arc<str>,
    /// `listener.<address>.`.
    pub set: Arc<StatSet>,
    /// `listener.<address>.worker_<n>.`, by worker.
    pub workers: PerWorker<Arc<StatSet>>,
}

/// A filter chain with what it serves.
#[derive(Debug)]
pub struct LiveChain {
    /// What it is across updates.
    pub identity: ChainIdentity,
    /// Starts when the chain is gone from the listener, or the listener from the configuration.
    pub drain: Arc<ChainDrain>,
    /// The network filters before the terminal one.
    pub network: Arc<LiveNetwork>,
    /// What serves its connections.
    pub terminal: LiveTerminal,
    /// What its filters said of their plugins when they were built.
    warmth: Arc<Warmth>,
    /// What its discovered filters were configured with.
    discovered: Vec<Option<Arc<HttpFilterConfig>>>,
    /// The number that the Wasm host rang last before they were built.
    plugins: u64,
}

/// What a filter chain is across updates: its name, else its match.
///
/// An HTTP connection goes on with the chain of the same identity and match in the next Generation, where what admitted it
/// (the network filters before the connection manager; there is no transport security so far) is the same. Else it drains.
/// So does a connection of a TCP proxy where the proxy or a filter before it has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainIdentity {
    /// `name`.
    pub name: Box<str>,
    /// `filter_chain_match`; `None` for the default chain.
    pub matcher: Option<FilterChainMatch>,
}

/// Drains a chain's connections when the last Generation that holds the chain is replaced.
///
/// While there are such connections, the connection manager of that Generation is kept: what they still ask is answered
/// by the configuration that admitted them.
#[derive(Debug)]
pub struct ChainDrain {
    trigger: DrainTrigger,
    last: ArcSwapOption<HttpConnectionManager>,
}

impl ChainDrain {
    fn new() -> Self {
        Self {
            trigger: crate::base::drain::channel().0,
            last: ArcSwapOption::empty(),
        }
    }

    /// Learns of the drain.
    pub fn watch(&self) -> crate::base::drain::DrainWatch {
        self.trigger.watch()
    }

    /// The connection manager for what a connection of a chain that drains still asks; `None` where none drains.
    pub fn last(&self) -> Option<Arc<HttpConnectionManager>> {
        self.last.load_full()
    }

    fn start(&self, last: Option<&Arc<HttpConnectionManager>>) {
        self.last.store(last.cloned());
        self.trigger.drain();
    }

    /// Lets go of the connection manager where no connection is left; true where that was so.
    fn finish(&self) -> bool {
        if self.trigger.is_watched() {
            return false;
        }
        let last = self.last.swap(None);
        // Somebody came meanwhile.
        let over = !self.trigger.is_watched();
        if !over {
            self.last.store(last);
        }
        over
    }
}

/// What one filter chain's requests need of *one* Generation: a few pointers, made anew for each.
pub struct HttpConnectionManager {
    /// Its configuration.
    pub config: Arc<config::HttpConnectionManager>,
    /// What streams pin: routes, clusters, options, the Generation's number.
    pub stream: Arc<StreamConfig>,
    /// The filters.
    pub filters: Arc<HttpFilterChain>,
    /// The access logs and the statistics, which survive updates.
    pub records: Records,
}

impl fmt::Debug for HttpConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnectionManager")
            .field("stat_prefix", &self.config.stat_prefix)
            .field("generation", &self.stream.generation)
            .finish_non_exhaustive()
    }
}

/// The network filters before the terminal one of a chain. They belong to no Generation: a connection that lasts for days
/// pins none.
#[derive(Debug)]
pub struct LiveNetwork {
    /// As they are configured.
    config: Vec<NetworkFilter>,
    /// The terminal filter's.
    stat_prefix: Box<str>,
    /// What they do.
    pub filters: NetworkFilters,
    /// What the streams that stand for connections pin: no routes, no clusters.
    pub stream: Arc<StreamConfig>,
    /// What they said of their plugins when they were built.
    warmth: Warmth,
    /// The number that the Wasm host rang last before they were built.
    plugins: u64,
}

/// What serves the connections of a chain.
#[derive(Clone, Debug)]
pub enum LiveTerminal {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// The bytes go to a cluster.
    Tcp(Arc<TcpProxy>),
}

impl LiveChain {
    /// What its filters asked the Wasm host for.
    fn asked(&self) -> impl Iterator<Item = Asked> {
        let network = self.network.warmth.asked();
        self.warmth.asked().into_iter().chain(network)
    }

    /// How many plugins it waits for.
    fn waiting(&self) -> usize {
        self.warmth.waiting() + self.network.warmth.waiting()
    }

    /// The connection manager, where the chain ends in one.
    pub fn http(&self) -> Option<&Arc<HttpConnectionManager>> {
        match &self.terminal {
            LiveTerminal::Http(manager) => Some(manager),
            LiveTerminal::Tcp(_) => None,
        }
    }
}

/// What the connections of a TCP proxy need. It belongs to no Generation: clusters are looked up in that of the moment.
#[derive(Debug)]
pub struct TcpProxy {
    /// Its configuration.
    pub config: Arc<config::TcpProxy>,
    /// The access logs.
    pub access_log: Arc<AccessLogger>,
    /// Those that are plugins.
    pub plugin_logs: HttpFilterChain,
    /// `tcp.<stat_prefix>.`
    pub stats: Arc<StatSet>,
}

impl LiveListener {
    /// The chain that takes a connection: the best match, else the default chain.
    pub fn select(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<LiveChain>> {
        let index = chain_match::select(&self.config.filter_chains, facts).or_else(|| {
            self.config
                .default_filter_chain
                .is_some()
                .then(|| self.chains.len() - 1)
        })?;
        self.chains.get(index)
    }
}

impl Generation {
    /// The Generation before the first snapshot: nothing.
    pub fn empty() -> Self {
        Self {
            number: 0,
            snapshot: Arc::default(),
            clusters: Arc::default(),
            listeners: BTreeMap::new(),
            warming: BTreeMap::new(),
            warming_clusters: BTreeSet::new(),
        }
    }

    /// True where no stream holds a part of this Generation: it may be dropped at leisure.
    fn is_idle(&self) -> bool {
        self.listeners
            .values()
            .flat_map(|listener| &listener.chains)
            .filter_map(|chain| chain.http())
            .all(|hcm| Arc::strong_count(hcm) == 1 && Arc::strong_count(&hcm.stream) == 1)
    }
}
