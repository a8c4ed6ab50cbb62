//! The control side's numbers, under Envoy's names; each set is made when its subscription is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ResourceType;
use crate::pb;
use crate::telemetry::metrics::{Registry, Stat, StatSet, StatTable};

crate::stats! {
    /// What every subscription counts, first and in this order in each table below.
    mod common {
        INIT_FETCH_TIMEOUT: Counter = "init_fetch_timeout",
        UPDATE_ATTEMPT: Counter = "update_attempt",
        UPDATE_FAILURE: Counter = "update_failure",
        UPDATE_REJECTED: Counter = "update_rejected",
        UPDATE_SUCCESS: Counter = "update_success",
        UPDATE_TIME: Gauge = "update_time",
        VERSION: Gauge = "version",
        UPDATE_DURATION: Histogram = "update_duration",
    }
}

crate::stats! {
    /// CDS.
    #[allow(dead_code, reason = "Envoy prints them all; some are always zero")]
    mod reloaded {
        _0: Counter = "init_fetch_timeout",
        _1: Counter = "update_attempt",
        _2: Counter = "update_failure",
        _3: Counter = "update_rejected",
        _4: Counter = "update_success",
        _5: Gauge = "update_time",
        _6: Gauge = "version",
        _7: Histogram = "update_duration",
        CONFIG_RELOAD: Counter = "config_reload",
        CONFIG_RELOAD_TIME_MS: Gauge = "config_reload_time_ms",
    }
}

crate::stats! {
    /// One RDS name.
    #[allow(dead_code, reason = "Envoy prints them all; some are always zero")]
    mod route {
        _0: Counter = "init_fetch_timeout",
        _1: Counter = "update_attempt",
        _2: Counter = "update_failure",
        _3: Counter = "update_rejected",
        _4: Counter = "update_success",
        _5: Gauge = "update_time",
        _6: Gauge = "version",
        _7: Histogram = "update_duration",
        CONFIG_RELOAD: Counter = "config_reload",
        CONFIG_RELOAD_TIME_MS: Gauge = "config_reload_time_ms",
        UPDATE_EMPTY: Counter = "update_empty",
    }
}

crate::stats! {
    /// One ECDS name.
    #[allow(dead_code, reason = "Envoy prints them all; some are always zero")]
    mod extension {
        _0: Counter = "init_fetch_timeout",
        _1: Counter = "update_attempt",
        _2: Counter = "update_failure",
        _3: Counter = "update_rejected",
        _4: Counter = "update_success",
        _5: Gauge = "update_time",
        _6: Gauge = "version",
        _7: Histogram = "update_duration",
        CONFIG_CONFLICT: Counter = "config_conflict",
        CONFIG_FAIL: Counter = "config_fail",
        CONFIG_RELOAD: Counter = "config_reload",
    }
}

crate::stats! {
    /// `cluster_manager.*`
    #[allow(dead_code, reason = "Envoy prints them all; some are always zero")]
    pub(super) mod cluster_manager {
        ACTIVE_CLUSTERS: Gauge = "active_clusters",
        CLUSTER_ADDED: Counter = "cluster_added",
        CLUSTER_MODIFIED: Counter = "cluster_modified",
        CLUSTER_REMOVED: Counter = "cluster_removed",
        CLUSTER_UPDATED: Counter = "cluster_updated",
        CLUSTER_UPDATED_VIA_MERGE: Counter = "cluster_updated_via_merge",
        UPDATE_MERGE_CANCELLED: Counter = "update_merge_cancelled",
        UPDATE_OUT_OF_MERGE_WINDOW: Counter = "update_out_of_merge_window",
        WARMING_CLUSTERS: Gauge = "warming_clusters",
    }
}

crate::stats! {
    /// `control_plane.*`
    #[allow(dead_code, reason = "Envoy prints them all; some are always zero")]
    pub(super) mod control_plane {
        CONNECTED_STATE: Gauge = "connected_state",
        PENDING_REQUESTS: Gauge = "pending_requests",
        RATE_LIMIT_ENFORCED: Counter = "rate_limit_enforced",
    }
}

/// The numbers of one subscription. Dropping it takes them out of the registry.
#[derive(Debug)]
pub(super) struct SubscriptionStats {
    kind: ResourceType,
    set: Arc<StatSet>,
    /// `….control_plane.`, where the subscription has a stream of its type.
    stream: Option<StreamStats>,
    registry: Registry,
}

/// `control_plane.*` of one stream.
#[derive(Debug)]
pub(super) struct StreamStats {
    set: Arc<StatSet>,
    registry: Registry,
}

impl StreamStats {
    /// `prefix` stands before `control_plane.`, with its last dot.
    pub(super) fn new(registry: &Registry, prefix: &str) -> Self {
        let set = registry.set(
            &control_plane::TABLE,
            format!("{prefix}control_plane."),
            "control_plane",
            [],
        );
        let stats = Self {
            set,
            registry: registry.clone(),
        };
        stats.set_connected(false);
        stats.set_identifier("");
        stats
    }

    fn share(&self) -> Self {
        Self {
            set: Arc::clone(&self.set),
            registry: self.registry.clone(),
        }
    }

    /// The stream has opened or broken.
    pub(super) fn set_connected(&self, connected: bool) {
        self.set
            .set(control_plane::CONNECTED_STATE, u64::from(connected));
        // Nothing is held back: there is no limit to how much is asked.
        self.set.set(control_plane::PENDING_REQUESTS, 0);
    }

    /// Who answers.
    pub(super) fn set_identifier(&self, identifier: &str) {
        self.registry.set_text(&self.text(), identifier);
    }

    fn text(&self) -> String {
        format!("{}identifier", self.set.prefix())
    }
}

impl Drop for StreamStats {
    fn drop(&mut self) {
        if Arc::strong_count(&self.set) == 1 {
            self.registry.remove_text(&self.text());
        }
    }
}

impl SubscriptionStats {
    /// `owner` is the name asked for; `stat_prefix` that of the connection manager (RDS);
    /// `own_stream` where it is not on the aggregated stream, nor a file. `others` are those of the same name from
    /// other sources: what is called the same is one number, as in Envoy.
    pub(super) fn new<'a>(
        registry: &Registry,
        kind: ResourceType,
        (owner, stat_prefix): (&str, &str),
        own_stream: bool,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> Self {
        type Labels = Vec<(&'static str, Box<str>)>;
        let (table, prefix, family, labels): (&'static StatTable, String, &'static str, Labels) =
            match kind {
                ResourceType::Cluster => (
                    &reloaded::TABLE,
                    "cluster_manager.cds.".to_owned(),
                    "cluster_manager_cds",
                    Vec::new(),
                ),
                ResourceType::Listener => (
                    &common::TABLE,
                    "listener_manager.lds.".to_owned(),
                    "listener_manager_lds",
                    Vec::new(),
                ),
                ResourceType::Endpoints => (
                    &common::TABLE,
                    format!("cluster.{owner}."),
                    "cluster",
                    vec![("envoy_cluster_name", owner.into())],
                ),
                ResourceType::Route => (
                    &route::TABLE,
                    format!("http.{stat_prefix}.rds.{owner}."),
                    "http_rds",
                    vec![
                        ("envoy_rds_route_config", owner.into()),
                        ("envoy_http_conn_manager_prefix", stat_prefix.into()),
                    ],
                ),
                ResourceType::Extension => (
                    &extension::TABLE,
                    format!("extension_config_discovery.http_filter.{owner}."),
                    "extension_config_discovery_http_filter",
                    vec![("envoy_extension_config_name", owner.into())],
                ),
            };
        let mut others = others.filter(|other| *other.set.prefix() == *prefix);
        let stream = own_stream.then(|| {
            let known = others.clone().find_map(Self::stream);
            known.map_or_else(|| StreamStats::new(registry, &prefix), StreamStats::share)
        });
        let set = match others.next() {
            Some(known) => Arc::clone(&known.set),
            None => registry.set(table, prefix, family, labels),
        };
        Self {
            kind,
            set,
            stream,
            registry: registry.clone(),
        }
    }

    /// A control plane was asked: an attempt, as in Envoy. A file is not asked.
    pub(super) fn asked(&self) {
        self.set.inc(common::UPDATE_ATTEMPT);
    }

    /// Those of its own stream.
    pub(super) fn stream(&self) -> Option<&StreamStats> {
        self.stream.as_ref()
    }

    /// An update was applied; `changed` where it changed something.
    pub(super) fn success(&self, version: &str, took: Duration, changed: bool) {
        let now = now_ms();
        self.set.inc(common::UPDATE_ATTEMPT);
        self.set.inc(common::UPDATE_SUCCESS);
        self.set.set(common::UPDATE_TIME, now);
        self.set.set(common::VERSION, pb::version_hash(version));
        self.set.record(
            common::UPDATE_DURATION,
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        );
        self.registry.set_text(&self.text(), version);
        if changed {
            match self.kind {
                ResourceType::Cluster | ResourceType::Route => {
                    self.set.inc(reloaded::CONFIG_RELOAD);
                    self.set.set(reloaded::CONFIG_RELOAD_TIME_MS, now);
                }
                ResourceType::Extension => self.set.inc(extension::CONFIG_RELOAD),
                ResourceType::Endpoints | ResourceType::Listener => {}
            }
        }
    }

    /// An update was refused.
    pub(super) fn rejected(&self) {
        self.set.inc(common::UPDATE_ATTEMPT);
        self.set.inc(common::UPDATE_REJECTED);
        if self.kind == ResourceType::Extension {
            self.set.inc(extension::CONFIG_FAIL);
        }
    }

    /// Someone refers to a discovered filter whose type they do not allow.
    pub(super) fn conflict(&self) {
        self.set.inc(extension::CONFIG_CONFLICT);
    }

    /// The stream broke, or could not be opened.
    pub(super) fn failure(&self) {
        self.set.inc(common::UPDATE_ATTEMPT);
        self.set.inc(common::UPDATE_FAILURE);
    }

    /// Nothing came in time.
    pub(super) fn timeout(&self) {
        self.set.inc(common::UPDATE_ATTEMPT);
        self.set.inc(common::INIT_FETCH_TIMEOUT);
        if self.kind == ResourceType::Extension {
            self.set.inc(extension::CONFIG_FAIL);
        }
    }

    fn text(&self) -> String {
        format!("{}version_text", self.set.prefix())
    }
}

impl Drop for SubscriptionStats {
    fn drop(&mut self) {
        if Arc::strong_count(&self.set) == 1 {
            self.registry.remove_text(&self.text());
        }
    }
}

/// Sets a gauge to a size. What was never written stays so while it is zero: `?usedonly` leaves it out.
pub(super) fn set_size(set: &StatSet, stat: Stat, size: usize) {
    let size = size as u64;
    if set.value(stat) != size {
        set.set(stat, size);
    }
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Shards;

    #[test]
    fn the_tables_begin_alike() {
        for table in [&reloaded::TABLE, &route::TABLE, &extension::TABLE] {
            for (own, common) in table.stats.iter().zip(common::TABLE.stats) {
                assert_eq!((own.name, own.kind), (common.name, common.kind));
            }
            assert!(table.stats.len() > common::TABLE.stats.len());
        }
    }

    #[test]
    fn every_outcome_is_an_attempt() {
        let registry = Registry::new(Shards::for_workers(1));
        let new = |others: &[&SubscriptionStats]| {
            let kind = ResourceType::Route;
            let others = others.iter().copied();
            SubscriptionStats::new(&registry, kind, ("r", "in"), true, others)
        };
        let stats = new(&[]);
        stats.asked();
        stats.success("v1", Duration::from_millis(3), true);
        stats.rejected();
        stats.failure();
        stats.timeout();
        let value = |stat| stats.set.value(stat);
        assert_eq!(stats.set.prefix(), "http.in.rds.r.");
        assert_eq!(value(common::UPDATE_ATTEMPT), 5);
        assert_eq!(value(common::UPDATE_SUCCESS), 1);
        assert_eq!(value(common::UPDATE_REJECTED), 1);
        assert_eq!(value(common::UPDATE_FAILURE), 1);
        assert_eq!(value(common::INIT_FETCH_TIMEOUT), 1);
        assert_eq!(value(common::VERSION), 9194640092791331756);
        assert_eq!(value(reloaded::CONFIG_RELOAD), 1);
        assert_eq!(route::CONFIG_RELOAD, reloaded::CONFIG_RELOAD);
        assert_eq!(
            registry.texts(),
            [
                (
                    "http.in.rds.r.control_plane.identifier".into(),
                    String::new()
                ),
                ("http.in.rds.r.version_text".into(), "v1".to_owned())
            ]
        );
        // From another source: the same numbers, until the last is gone.
        let other = new(&[&stats]);
        assert_eq!(registry.sets().len(), 2);
        drop(stats);
        other.asked();
        assert_eq!(other.set.value(common::UPDATE_ATTEMPT), 6);
        assert_eq!(registry.texts().len(), 2);
        drop(other);
        assert!(registry.texts().is_empty(), "no reader is told of the dead");
    }
}
