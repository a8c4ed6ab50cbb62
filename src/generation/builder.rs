//! Makes the next [`Generation`] of a snapshot and the one before.

mod network;
mod place;
mod same;
mod tcp;
mod upstream;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use super::{
    ChainDrain, ChainIdentity, CurrentGeneration, Generation, HttpConnectionManager, ListenerStats,
    LiveChain, LiveListener, LiveTerminal, stats,
};
use arc_swap::ArcSwap;

use self::same::{runs_plugins, same_clusters, same_discovered, same_table};
use self::upstream::LiveFilters;
use crate::base::{PerWorker, Shard};
use crate::cluster::client::CallFilters;
use crate::cluster::{self, ClusterMap};
use crate::config::access_log::AccessLog;
use crate::config::extension::{HttpFilterConfig, allows};
use crate::config::http_connection_manager::{FilterSource, HttpFilter, RouteSource};
use crate::config::listener::{FilterChain, Terminal};
use crate::config::{self, Listener, Snapshot};
use crate::filter::factory::{ChainContext, Warmth};
use crate::filter::upstream::UpstreamFilters;
use crate::filter::{HttpFilterChain, Registry};
use crate::pb;
use crate::route::RouteTable;
use crate::stream::access_log::{AccessLogger, Sinks};
use crate::stream::{Records, StreamConfig};
use crate::telemetry::metrics::{self, StatSet};
use crate::wasm::Plugins;

/// What a builder is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where statistics are registered.
    pub metrics: metrics::Registry,
    /// The filters of this build.
    pub filters: Arc<Registry>,
    /// The Wasm host.
    pub plugins: Plugins,
    /// What clusters need.
    pub clusters: cluster::Runtime,
    /// The clusters of the newest Generation, for calls of our own; stored as soon as they are built.
    pub cluster_map: Arc<ArcSwap<ClusterMap>>,
    /// Where access logs go.
    pub sinks: Arc<Sinks>,
    /// Who we are.
    pub node: Arc<pb::Node>,
    /// True after `/healthcheck/fail`.
    pub health_failed: Arc<std::sync::atomic::AtomicBool>,
}

/// Builds Generations, on the control side.
#[derive(Debug)]
pub struct Builder {
    parts: Parts,
    plugins: tokio::sync::watch::Receiver<u64>,
    number: u64,
    /// By the address of their configuration, which each keeps alive: compiled once, however many listeners use it.
    tables: HashMap<usize, Weak<RouteTable>>,
    http_stats: HashMap<Box<str>, Weak<StatSet>>,
    listener_http_stats: HashMap<(Arc<str>, Box<str>), Weak<StatSet>>,
    tcp_stats: HashMap<Box<str>, Weak<StatSet>>,
    /// Of the clusters that are served.
    upstream_filters: BTreeMap<Arc<str>, LiveFilters>,
    /// What the last Generation has of them.
    filters_before: Arc<UpstreamFilters>,
    /// The last Generation serves other clusters than its snapshot has: some wait.
    holds_clusters: bool,
}

impl Builder {
    /// Has built nothing yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            plugins: parts.plugins.changed(),
            parts,
            number: 0,
            tables: HashMap::new(),
            http_stats: HashMap::new(),
            listener_http_stats: HashMap::new(),
            tcp_stats: HashMap::new(),
            upstream_filters: BTreeMap::new(),
            filters_before: Arc::default(),
            holds_clusters: false,
        }
    }

    /// Makes the clusters of `snapshot` ahead of the first Generation, which takes them over.
    pub fn prime(&mut self, snapshot: &Snapshot) {
        self.clusters(snapshot, None);
    }

    fn clusters(
        &mut self,
        snapshot: &Snapshot,
        filters: Option<Arc<dyn CallFilters>>,
    ) -> Arc<ClusterMap> {
        let known = self.parts.cluster_map.load_full();
        let clusters = ClusterMap::next(&known, snapshot, &self.parts.clusters);
        let clusters = Arc::new(clusters.with_filters(filters));
        self.parts.cluster_map.store(Arc::clone(&clusters));
        clusters
    }

    /// Builds the successor of what is current; does not swap it in.
    ///
    /// Plugins are asked for anew: a version that has become ready serves with this Generation, unless its filters wait. A listener with a
    /// plugin that has no version at all yet is `warming`; its predecessor goes on, if there is one. So does a cluster's.
    pub fn next(
        &mut self,
        current: &CurrentGeneration,
        snapshot: Arc<Snapshot>,
    ) -> Arc<Generation> {
        let previous = current.load_full();
        self.number += 1;
        let plugins = *self.plugins.borrow_and_update();
        let upstreams = self.upstreams(&previous.clusters, &snapshot, plugins);
        let waiting = upstreams.waiting();
        let held_before = std::mem::replace(&mut self.holds_clusters, !waiting.is_empty());
        let as_they_come = waiting.is_empty() && !held_before;
        let filters = self.serving_filters();
        let same_filters = Arc::ptr_eq(&filters, &self.filters_before);
        let clusters =
            if as_they_come && same_filters && same_clusters(&previous.snapshot, &snapshot) {
                previous.clusters.apply_endpoints(&snapshot);
                Arc::clone(&previous.clusters)
            } else {
                self.clusters(&upstreams.served(&snapshot), filters.for_calls())
            };
        self.filters_before = Arc::clone(&filters);
        let mut next = Generation {
            number: self.number,
            snapshot: Arc::clone(&snapshot),
            clusters: Arc::clone(&clusters),
            listeners: BTreeMap::new(),
            warming: BTreeMap::new(),
            warming_clusters: waiting,
        };
        let world = World {
            snapshot: &snapshot,
            clusters: &clusters,
            upstream_filters: filters.pinned(),
            absent: &upstreams.absent,
            plugins,
        };
        let mut asked = self.asked_upstream();
        for (name, config) in &snapshot.listeners {
            let known = previous.listeners.get(name);
            let mut live = self.listener(config, known, false, &world);
            let waiting: usize = live.chains.iter().map(|chain| chain.waiting()).sum();
            if waiting > 0 {
                next.warming.insert(Arc::clone(name), waiting);
                let Some(known) = known else { continue };
                // The predecessor goes on as it was, with the routes and clusters of now, and with its own of before
                // where nobody asks for those any more.
                live = self.listener(&known.config, Some(known), true, &world);
            }
            asked.extend(live.chains.iter().flat_map(|chain| chain.asked()));
            next.listeners.insert(Arc::clone(name), live);
        }
        self.parts.plugins.settle(&asked);
        self.tables.retain(|_, table| table.strong_count() > 0);
        self.http_stats.retain(|_, set| set.strong_count() > 0);
        self.listener_http_stats
            .retain(|_, set| set.strong_count() > 0);
        self.tcp_stats.retain(|_, set| set.strong_count() > 0);
        Arc::new(next)
    }

    fn listener(
        &mut self,
        config: &Arc<Listener>,
        known: Option<&Arc<LiveListener>>,
        stays: bool,
        world: &World<'_>,
    ) -> Arc<LiveListener> {
        let same_listener = known.is_some_and(|known| {
            known.config.direction == config.direction && known.config.metadata == config.metadata
        });
        let stats = match known {
            Some(known)
                if known.config.addresses == config.addresses
                    && known.config.stat_prefix == config.stat_prefix =>
            {
                Arc::clone(&known.stats)
            }
            _ => Arc::new(self.listener_stats(config)),
        };
        let chains = config
            .filter_chains
            .iter()
            .map(|chain| (chain, Some(chain.matcher.clone())))
            .chain(
                config
                    .default_filter_chain
                    .iter()
                    .map(|chain| (chain, None)),
            )
            .map(|(chain, matcher)| {
                let identity = ChainIdentity {
                    name: chain.name.clone(),
                    matcher,
                };
                let known = known
                    .and_then(|known| known.chains.iter().find(|chain| chain.identity == identity))
                    .map(|chain| Predecessor {
                        chain,
                        same_listener,
                        stays,
                    });
                self.chain(config, chain, identity, known, &stats, world)
            })
            .collect();
        Arc::new(LiveListener {
            config: Arc::clone(config),
            stats,
            chains,
        })
    }

    fn chain(
        &mut self,
        listener: &Listener,
        chain: &Arc<FilterChain>,
        identity: ChainIdentity,
        predecessor: Option<Predecessor<'_>>,
        listener_stats: &ListenerStats,
        world: &World<'_>,
    ) -> Arc<LiveChain> {
        let manager = match &chain.terminal {
            Terminal::Http(manager) => manager,
            Terminal::Tcp(config) => {
                return self.tcp_chain(listener, chain, config, identity, predecessor, world);
            }
        };
        let place = place::of(listener, &identity);
        let predecessor = predecessor.as_ref();
        let network = self.network(
            listener,
            (chain, &place),
            (&manager.stat_prefix, manager.options.buffer_limit),
            predecessor,
            world,
        );
        let predecessor = predecessor.and_then(|known| {
            let hcm = known.chain.http()?;
            Some((
                known,
                KnownHttp {
                    chain: known.chain,
                    hcm,
                },
            ))
        });
        let known = predecessor.as_ref().map(|(_, known)| known);
        let kept = predecessor
            .as_ref()
            .filter(|(known, _)| known.stays)
            .map(|(_, known)| known);
        let mut routes = match &manager.routes {
            RouteSource::Inline(config) => Some(self.table(config)),
            RouteSource::Rds { name, source } => {
                let now = world.snapshot.routes.get(&source.specifier, name);
                let before = known.filter(|known| known.hcm.config.routes == manager.routes);
                match (
                    now,
                    before.and_then(|known| known.hcm.stream.routes.clone()),
                ) {
                    // Make before break: routes wait for clusters that wait for plugins.
                    (Some(config), Some(before)) if config.names_any(world.absent) => Some(before),
                    (Some(config), _) => Some(self.table(config)),
                    (None, _) => kept.and_then(|known| known.hcm.stream.routes.clone()),
                }
            }
        };
        let http_stats = self.http_stats(&manager.stat_prefix);
        let mut discovered = discovered(
            &manager.http_filters,
            world.snapshot,
            kept.map(|known| &known.chain.discovered),
        );
        let same_listener = predecessor
            .as_ref()
            .is_some_and(|(known, _)| known.same_listener);
        // All that filters are built with, but for routes and plugins.
        let same = known.filter(|known| {
            same_listener
                && known.hcm.config.stat_prefix == manager.stat_prefix
                && known.hcm.config.http_filters == manager.http_filters
                && known.hcm.config.plugin_logs == manager.plugin_logs
                && same_discovered(&known.chain.discovered, &discovered)
        });
        let place = (listener, &*place, &**manager);
        let (mut filters, mut warmth) =
            self.http_filters(place, (&routes, &discovered), same, world);
        if let Some(known) = same.or(kept)
            && warmth.is_cold()
            && !known.chain.warmth.is_cold()
        {
            // Routes, or discovered filters of a chain that is to go on, have plugins that are not ready: those before them
            // go on, with their plugins of now.
            routes.clone_from(&known.hcm.stream.routes);
            discovered.clone_from(&known.chain.discovered);
            (filters, warmth) =
                self.http_filters(place, (&routes, &discovered), Some(known), world);
            warmth.go_without();
        }
        let access_log = match known {
            Some(known) if known.hcm.config.access_log == manager.access_log => {
                Arc::clone(&known.hcm.records.access_log)
            }
            _ => self.access_log(listener, &manager.access_log),
        };
        let records = Records {
            access_log,
            http: http_stats,
            listener: self.listener_http_stats(listener_stats, &manager.stat_prefix),
        };
        let stream = Arc::new(StreamConfig {
            routes,
            clusters: Arc::clone(world.clusters),
            upstream_filters: world.upstream_filters.clone(),
            options: Arc::clone(&manager.options),
            generation: self.number,
            records: Some(records.clone()),
        });
        let hcm = Arc::new(HttpConnectionManager {
            config: Arc::clone(manager),
            stream,
            filters,
            records,
        });
        // Those that were admitted by other network filters drain.
        let admitted = known.filter(|known| known.chain.network.admits_as(&network, same_listener));
        let drain = admitted.map_or_else(
            || Arc::new(ChainDrain::new()),
            |known| Arc::clone(&known.chain.drain),
        );
        Arc::new(LiveChain {
            identity,
            drain,
            network,
            terminal: LiveTerminal::Http(hcm),
            warmth,
            discovered,
            plugins: world.plugins,
        })
    }

    /// The HTTP filters of a chain with these routes and discovered configurations: those of `same`, which was built with all else
    /// that these are, where neither routes nor plugins have changed either.
    fn http_filters(
        &self,
        (listener, place, manager): (&Listener, &str, &config::HttpConnectionManager),
        (routes, discovered): (&Option<Arc<RouteTable>>, &Discovered),
        same: Option<&KnownHttp<'_>>,
        world: &World<'_>,
    ) -> (Arc<HttpFilterChain>, Arc<Warmth>) {
        // State that filters keep beyond a stream survives an update that does not touch them.
        if let Some(known) = same
            && (same_table(&known.hcm.stream.routes, routes)
                && (known.chain.warmth.is_still() || known.chain.plugins == world.plugins)
                || known.chain.warmth.is_still() && !runs_plugins(routes))
        {
            return (
                Arc::clone(&known.hcm.filters),
                Arc::clone(&known.chain.warmth),
            );
        }
        let warmth = Arc::new(Warmth::default());
        let context = ChainContext {
            routes: routes.as_ref().map(|table| &**table.config()),
            health_failed: Some(&self.parts.health_failed),
            ..self.chain_context(listener, place, &manager.stat_prefix, &warmth)
        };
        let filters = HttpFilterChain::build(
            &self.parts.filters,
            &manager.http_filters,
            discovered,
            &context,
        )
        .with_logs(&self.parts.filters, &manager.plugin_logs, &context);
        (Arc::new(filters), warmth)
    }

    /// What filters of the chain at `place` are built with, but for what HTTP alone has.
    fn chain_context<'a>(
        &'a self,
        listener: &'a Listener,
        place: &'a str,
        stat_prefix: &'a str,
        warmth: &'a Warmth,
    ) -> ChainContext<'a> {
        ChainContext {
            stat_prefix,
            place,
            direction: listener.direction,
            listener_metadata: listener.metadata.as_ref(),
            metrics: &self.parts.metrics,
            node: &self.parts.node,
            plugins: Some(&self.parts.plugins),
            warmth,
            routes: None,
            health_failed: None,
        }
    }

    fn access_log(&self, listener: &Listener, logs: &[AccessLog]) -> Arc<AccessLogger> {
        let sinks = &self.parts.sinks;
        // One that cannot be opened takes nothing from its neighbours.
        let opened: Vec<_> = logs
            .iter()
            .filter(|log| match sinks.open(&log.sink) {
                Ok(_) => true,
                Err(error) => {
                    tracing::error!(target: "config", listener = %listener.name, "access log left out: {error}");
                    false
                }
            })
            .cloned()
            .collect();
        Arc::new(AccessLogger::new(&opened, sinks).unwrap_or_else(|error| {
            tracing::error!(target: "config", listener = %listener.name, "access logs left out: {error}");
            AccessLogger::new(&[], sinks).expect("there is nothing to open")
        }))
    }

    fn table(&mut self, config: &Arc<crate::config::RouteConfig>) -> Arc<RouteTable> {
        let key = Arc::as_ptr(config).addr();
        if let Some(table) = self.tables.get(&key).and_then(Weak::upgrade) {
            return table;
        }
        let table = Arc::new(RouteTable::new(Arc::clone(config)));
        self.tables.insert(key, Arc::downgrade(&table));
        table
    }

    fn http_stats(&mut self, prefix: &str) -> Arc<StatSet> {
        if let Some(set) = self.http_stats.get(prefix).and_then(Weak::upgrade) {
            return set;
        }
        let set = self.parts.metrics.set(
            &stats::http::TABLE,
            format!("http.{prefix}."),
            "http",
            [("envoy_http_conn_manager_prefix", prefix.into())],
        );
        self.http_stats.insert(prefix.into(), Arc::downgrade(&set));
        set
    }

    fn listener_http_stats(&mut self, listener: &ListenerStats, prefix: &str) -> Arc<StatSet> {
        let key = (Arc::clone(&listener.address), prefix.into());
        if let Some(set) = self.listener_http_stats.get(&key).and_then(Weak::upgrade) {
            return set;
        }
        let set = self.parts.metrics.set(
            &stats::listener_http::TABLE,
            format!("listener.{}.http.{prefix}.", listener.address),
            "listener_http",
            [
                ("envoy_http_conn_manager_prefix", prefix.into()),
                ("envoy_listener_address", (*listener.address).into()),
            ],
        );
        self.listener_http_stats.insert(key, Arc::downgrade(&set));
        set
    }

    fn listener_stats(&self, config: &Listener) -> ListenerStats {
        let address: Arc<str> = if config.stat_prefix.is_empty() {
            // Envoy's rule: what would be a separator in a statistic's name is a `_`.
            config
                .addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default()
                .replace(':', "_")
                .into()
        } else {
            (*config.stat_prefix).into()
        };
        let registry = &self.parts.metrics;
        let workers = PerWorker::new(registry.shards());
        for index in 0..registry.shards().workers() {
            let set = registry.set(
                &stats::worker::TABLE,
                format!("listener.{address}.worker_{index}."),
                "listener_worker",
                [
                    ("envoy_listener_address", Box::from(&*address)),
                    ("envoy_worker_id", index.to_string().into()),
                ],
            );
            // The slot was made a moment ago.
            let _ = workers.set(Shard::worker(index), set);
        }
        let set = registry.set(
            &stats::socket::TABLE,
            format!("listener.{address}."),
            "listener",
            [("envoy_listener_address", Box::from(&*address))],
        );
        ListenerStats {
            address,
            set,
            workers,
        }
    }
}

/// What chains are built of, besides their own configuration.
struct World<'a> {
    snapshot: &'a Snapshot,
    clusters: &'a Arc<ClusterMap>,
    /// What streams pin of the clusters' filters.
    upstream_filters: Option<Arc<dyn Any + Send + Sync>>,
    /// Clusters of the snapshot that are not served yet.
    absent: &'a BTreeSet<Arc<str>>,
    /// The number that [`Plugins::changed`] rang last.
    plugins: u64,
}

/// A chain's predecessor in the Generation before.
struct Predecessor<'a> {
    chain: &'a Arc<LiveChain>,
    /// What filters see of their listener has not changed.
    same_listener: bool,
    /// It goes on in its own right, since its successor waits.
    stays: bool,
}

/// A predecessor that serves HTTP.
struct KnownHttp<'a> {
    chain: &'a LiveChain,
    hcm: &'a Arc<HttpConnectionManager>,
}

type Discovered = Vec<Option<Arc<HttpFilterConfig>>>;

/// What the chain's discovered filters are configured with, in order; `None` where that is nothing or the default.
/// `kept` are those of a predecessor that goes on: they hold where the snapshot has none.
///
/// Two may refer to one name and allow different types: each takes only what it allows.
fn discovered(
    filters: &[HttpFilter],
    snapshot: &Snapshot,
    kept: Option<&Discovered>,
) -> Discovered {
    filters
        .iter()
        .filter_map(|filter| match &filter.config {
            FilterSource::Inline(_) => None,
            FilterSource::Discovered {
                source, type_urls, ..
            } => Some((&filter.name, source, type_urls)),
        })
        .enumerate()
        .map(|(index, (name, source, type_urls))| {
            let now = snapshot.extensions.get(&source.specifier, name);
            now.or_else(|| kept?.get(index)?.as_ref())
                .filter(|config| allows(type_urls, &config.type_url))
                .cloned()
        })
        .collect()
}

#[cfg(test)]
mod tests;
