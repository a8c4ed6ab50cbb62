//! The upstream side: clusters, their hosts, load balancing, pools, connections; and [`client`] for our own calls.
//!
//! A [`Cluster`] is immutable configuration plus what survives updates: hosts (shared by workers and by updates),
//! pools (per worker, keyed by host) and statistics. Its endpoints change without a new Generation.
//!
//! One attempt at a request is [`Cluster::pick`], then [`Cluster::send`]; what became of it is told with
//! [`Cluster::answered`] and its neighbours, because only the caller knows what was answered in the end.

pub mod client;
pub mod connect;
pub mod dns;
pub mod endpoint_set;
pub mod host;
pub mod stats;

mod balance;
mod connection;
mod map;
mod pool;
mod send;
mod status;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use connect::ConnectError;
pub use endpoint_set::EndpointSet;
pub use host::Host;
pub use map::ClusterMap;
pub use send::{
    Observer, SendOptions, UpstreamConnection, UpstreamError, UpstreamErrorKind, UpstreamResponse,
};
pub use stats::{ClusterStats, Origin, Parties};
pub use status::{ClusterStatus, HostStatus};
pub use tcp::TcpConnection;

use crate::base::Shards;
use crate::base::task::OwnedTask;
use crate::config;
use crate::config::cluster::Discovery;
use crate::config::endpoint::Endpoints;
use crate::telemetry::metrics::Registry;
use endpoint_set::{Picked, Policy};
use stats::cluster as stat;

/// What clusters need of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where statistics are registered.
    pub registry: Registry,
    /// Answers names for `STRICT_DNS` and `LOGICAL_DNS`.
    pub resolver: Arc<dyn dns::Resolver>,
    /// The numbers of connections (`%UPSTREAM_CONNECTION_ID%`); shared with the listeners, as in Envoy.
    pub connection_ids: Arc<std::sync::atomic::AtomicU64>,
}

/// A live cluster.
pub struct Cluster {
    /// Its configuration.
    pub config: Arc<config::Cluster>,
    live: Arc<Live>,
    pools: Arc<pool::Pools>,
}

/// What survives an update of the configuration.
#[derive(Debug)]
struct Live {
    stats: ClusterStats,
    endpoints: ArcSwap<EndpointSet>,
    shards: Shards,
    connection_ids: Arc<std::sync::atomic::AtomicU64>,
    /// What the endpoints are made of; one writer at a time.
    source: Mutex<Source>,
    warm: tokio::sync::watch::Sender<bool>,
    /// The task that resolves names: at most one, so that no old names speak for a new configuration.
    resolution: Mutex<Option<OwnedTask>>,
    /// Rings when hosts have left, for the keepers of idle connections.
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Debug)]
struct Source {
    policy: Policy,
    /// The assignment applied last, to tell whether one is new.
    applied: Option<Arc<Endpoints>>,
    /// The configuration itself names the hosts: Envoy then keeps no `max_host_weight`.
    fixed: bool,
}

/// What a pick may take into account. Room for a hash, and for the hosts that were tried before.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext {}

/// `drop_overloads` says that this request is not to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropOverload {
    /// The category.
    pub category: Box<str>,
    /// All requests are dropped.
    pub unconditional: bool,
}

impl Cluster {
    /// A cluster that no configuration preceded. Where it resolves names, this must run on the control runtime.
    pub fn new(config: Arc<config::Cluster>, runtime: &Runtime) -> Arc<Self> {
        let stats = ClusterStats::new(&runtime.registry, &config.stat_name);
        let live = Arc::new(Live {
            stats,
            endpoints: ArcSwap::from_pointee(EndpointSet::default()),
            shards: runtime.registry.shards(),
            connection_ids: Arc::clone(&runtime.connection_ids),
            source: Mutex::new(Source {
                policy: policy(&config, None),
                applied: None,
                fixed: false,
            }),
            warm: tokio::sync::watch::Sender::new(false),
            resolution: Mutex::new(None),
            changed: Arc::default(),
        });
        live.stats.set.set(stat::WARMING_STATE, 0);
        let pools = Arc::new(pool::Pools::new(live.shards, &live.changed));
        Self::start(config, live, pools, false, runtime)
    }

    /// The cluster after an update. Hosts and statistics stay; connections too, unless the new configuration asks
    /// for other ones.
    pub fn update_from(
        previous: &Arc<Self>,
        config: Arc<config::Cluster>,
        runtime: &Runtime,
    ) -> Arc<Self> {
        if Arc::ptr_eq(&previous.config, &config) || *previous.config == *config {
            return Arc::clone(previous);
        }
        if previous.config.stat_name != config.stat_name {
            let next = Self::new(config, runtime);
            previous.retire();
            return next;
        }
        let live = Arc::clone(&previous.live);
        let pools = if pool::compatible(&previous.config, &config) {
            Arc::clone(&previous.pools)
        } else {
            previous.pools.retire();
            Arc::new(pool::Pools::new(live.shards, &live.changed))
        };
        let same_names = previous.config.discovery == config.discovery
            && previous.config.dns == config.dns
            && live.resolution.lock().is_some();
        Self::start(config, live, pools, same_names, runtime)
    }

    /// `resolving`: the names are those of the configuration before.
    fn start(
        config: Arc<config::Cluster>,
        live: Arc<Live>,
        pools: Arc<pool::Pools>,
        resolving: bool,
        runtime: &Runtime,
    ) -> Arc<Self> {
        live.set_policy(&config);
        if !resolving {
            // Before the next one starts.
            drop(live.resolution.lock().take());
            let task = match &config.discovery {
                Discovery::Static(endpoints) => {
                    live.set_endpoints(&config, endpoints);
                    None
                }
                Discovery::Eds { .. } => None,
                Discovery::StrictDns(endpoints) => {
                    dns::start(&live, &config, endpoints, false, runtime)
                }
                Discovery::LogicalDns(endpoints) => {
                    dns::start(&live, &config, endpoints, true, runtime)
                }
            };
            *live.resolution.lock() = task;
        }
        Arc::new(Self {
            config,
            live,
            pools,
        })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.config.name
    }

    /// Its statistics.
    pub fn stats(&self) -> &ClusterStats {
        &self.live.stats
    }

    /// Its hosts at this moment.
    pub fn endpoints(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.live.endpoints.load()
    }

    /// Applies an EDS assignment; one that was applied already changes nothing.
    pub fn set_endpoints(&self, endpoints: &Arc<Endpoints>) {
        self.live.set_endpoints(&self.config, endpoints);
    }

    /// Forgets all hosts, and the assignment that they came from.
    pub(super) fn clear_endpoints(&self) {
        self.live.clear_endpoints(&self.config);
    }

    /// Chooses a host, or finds none that may be chosen.
    #[inline]
    pub fn pick(&self, _context: &PickContext) -> Option<Arc<Host>> {
        let set = self.live.endpoints.load();
        match set.pick(&mut fastrand::Rng::new()) {
            Picked::Host(host) => Some(Arc::clone(host)),
            Picked::Panic(host) => {
                self.live.stats.set.inc(stat::LB_HEALTHY_PANIC);
                Some(Arc::clone(host))
            }
            Picked::None => {
                // Who has no hosts at all is in panic, too, as in Envoy.
                if self.config.healthy_panic_threshold > 0.0 && set.hosts().next().is_none() {
                    self.live.stats.set.inc(stat::LB_HEALTHY_PANIC);
                }
                self.live.stats.set.inc(stat::UPSTREAM_CX_NONE_HEALTHY);
                None
            }
        }
    }

    /// Whether this request falls to `drop_overloads`. To be asked before [`Cluster::pick`].
    pub fn drop_overload(&self) -> Option<DropOverload> {
        const MILLION: u32 = 1_000_000;
        let set = self.live.endpoints.load();
        let (category, parts) = set.drop_overload()?;
        (parts >= MILLION || fastrand::u32(..MILLION) < parts).then(|| DropOverload {
            category: category.into(),
            unconditional: parts >= MILLION,
        })
    }

    /// Counts the answer of a request: codes for the cluster, success or error for the host. An answer that we made
    /// because the host failed counts as well (503), as in Envoy.
    pub fn answered(&self, host: Option<&Host>, code: u16, origin: Origin) {
        let canary = host.is_some_and(Host::is_canary);
        self.answered_by(host, code, Parties { origin, canary });
    }

    /// As [`Cluster::answered`], where the answer may tell that it is a canary's.
    pub fn answered_by(&self, host: Option<&Host>, code: u16, parties: Parties) {
        self.live.stats.answered(code, parties);
        if let Some(host) = host {
            host.answered(code);
        }
    }

    /// Records the time from the last byte of a request to the last byte of its answer.
    pub fn answer_time(&self, time: Duration, parties: Parties) {
        self.live.stats.answer_time(time, parties);
    }

    /// Counts a request that the route's timeout ended.
    pub fn timed_out(&self, host: Option<&Host>) {
        self.live.stats.set.inc(stat::UPSTREAM_RQ_TIMEOUT);
        if let Some(host) = host {
            host.timed_out();
        }
    }

    /// Counts a request that the time limit of one attempt ended.
    fn try_timed_out(&self, host: &Host) {
        self.live.stats.set.inc(stat::UPSTREAM_RQ_PER_TRY_TIMEOUT);
        host.timed_out();
    }

    /// Becomes true when the hosts are known for the first time: at once where they are static, after the first
    /// answer or failure of the resolver, after the first assignment.
    pub fn warmed(&self) -> tokio::sync::watch::Receiver<bool> {
        self.live.warm.subscribe()
    }

    /// What `/clusters` shows.
    pub fn status(&self) -> ClusterStatus {
        status::of(self)
    }

    /// The cluster is no longer configured: idle connections close, busy ones when they are done, names are no
    /// longer resolved. Requests that still hold it are served.
    pub fn retire(&self) {
        self.pools.retire();
        drop(self.live.resolution.lock().take());
    }
}

impl Live {
    fn set_policy(&self, config: &config::Cluster) {
        let mut source = self.source.lock();
        source.fixed = matches!(config.discovery, Discovery::Static(_));
        let policy = policy(config, source.applied.as_deref());
        if source.policy != policy {
            let set = self.endpoints.load().rebuild(&policy, self.shards);
            source.policy = policy;
            self.publish(set, false);
        }
    }

    fn set_endpoints(&self, config: &config::Cluster, endpoints: &Arc<Endpoints>) {
        let mut source = self.source.lock();
        if source
            .applied
            .as_ref()
            .is_none_or(|applied| !Arc::ptr_eq(applied, endpoints))
        {
            source.policy = policy(config, Some(endpoints));
            source.applied = Some(Arc::clone(endpoints));
            self.set_members(&source, endpoint_set::members(endpoints), |_| ());
        }
        drop(source);
        self.set_warm();
    }

    fn clear_endpoints(&self, config: &config::Cluster) {
        let mut source = self.source.lock();
        source.policy = policy(config, None);
        source.applied = None;
        self.set_members(&source, [], |_| ());
    }

    fn set_warm(&self) {
        self.warm
            .send_if_modified(|warm| !std::mem::replace(warm, true));
    }

    /// Publishes the set of `members`; `prepare` sees every host before a pick can.
    fn set_members(
        &self,
        source: &Source,
        members: impl IntoIterator<Item = (host::HostKey, host::Attributes)>,
        prepare: impl Fn(&Arc<Host>),
    ) {
        let previous = self.endpoints.load_full();
        let set = EndpointSet::build(members, &source.policy, &previous, self.shards);
        set.hosts().for_each(prepare);
        let matched = set.membership().total as u64;
        if !source.fixed {
            let heaviest = set.hosts().map(|host| host.attributes().weight).max();
            let heaviest = u64::from(heaviest.unwrap_or(0));
            self.stats.set.set(stat::MAX_HOST_WEIGHT, heaviest);
        }
        self.stats.set.add(stat::DEFAULT_TOTAL_MATCH_COUNT, matched);
        let changed = {
            let (old, new) = (previous.membership().total, set.membership().total);
            old != new
                || set
                    .hosts()
                    .zip(previous.hosts())
                    .any(|(a, b)| !Arc::ptr_eq(a, b))
        };
        self.publish(set, changed);
    }

    fn publish(&self, set: EndpointSet, changed: bool) {
        let membership = set.membership();
        let stats = &self.stats.set;
        stats.set(stat::MEMBERSHIP_TOTAL, membership.total as u64);
        stats.set(stat::MEMBERSHIP_HEALTHY, membership.healthy as u64);
        stats.set(stat::MEMBERSHIP_DEGRADED, membership.degraded as u64);
        stats.set(stat::MEMBERSHIP_EXCLUDED, membership.excluded as u64);
        if changed {
            stats.inc(stat::MEMBERSHIP_CHANGE);
        }
        self.endpoints.store(Arc::new(set));
        if changed {
            self.changed.notify_waiters();
        }
    }
}

fn policy(config: &config::Cluster, endpoints: Option<&Endpoints>) -> Policy {
    Policy {
        balancer: config.balancer.clone(),
        panic_threshold: config.healthy_panic_threshold,
        locality_weighted: config.locality_weighted,
        overprovisioning_factor: endpoints.map_or(140, |e| e.overprovisioning_factor),
        weighted_priority_health: endpoints.is_some_and(|e| e.weighted_priority_health),
        drop_overloads: endpoints.map_or_else(Vec::new, |e| e.drop_overloads.clone()),
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.config.name).finish()
    }
}
