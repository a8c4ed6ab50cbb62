//! Metrics of owners that may have so many: what plugins define.
//!
//! A metric counts for the owner that made it for as long as the registry has it, be it used by others or by nobody. Where
//! an owner has what it may have, those of its metrics that nobody holds make way for new ones; what somebody holds stays.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, Metric, Registry};

/// An owner that has what it may have is looked through no more often, for what nobody holds: it may ask at every call.
const PAUSE: Duration = Duration::from_secs(1);

/// What one owner has.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// With what each costs.
    metrics: Vec<(Weak<Metric>, usize)>,
    cost: usize,
    looked_through: Option<Instant>,
}

impl Registry {
    /// As [`Registry::metric`], of an owner that has metrics that cost `quota` at most, one that is there already costs it
    /// nothing. `None`: there is no room.
    pub fn owned_metric(
        &self,
        owner: &str,
        name: &str,
        kind: Kind,
        cost: usize,
        quota: usize,
    ) -> Option<Arc<Metric>> {
        if let Some(metric) = self.known(name, kind) {
            return Some(metric);
        }
        let mut owners = self.0.owners.lock();
        // Made by another thread since.
        if let Some(metric) = self.known(name, kind) {
            return Some(metric);
        }
        let owned = owners.entry(owner.into()).or_default();
        if owned.cost.saturating_add(cost) > quota {
            self.make_way(owned);
            if owned.cost.saturating_add(cost) > quota {
                return None;
            }
        }
        let metric = self.metric(name, kind);
        owned.metrics.push((Arc::downgrade(&metric), cost));
        owned.cost += cost;
        Some(metric)
    }

    /// What the metrics of `owner` cost.
    pub fn owned_by(&self, owner: &str) -> usize {
        let owners = self.0.owners.lock();
        owners.get(owner).map_or(0, |owned| owned.cost)
    }

    /// Forgets the metrics that nobody holds.
    fn make_way(&self, owned: &mut Owned) {
        let now = Instant::now();
        if owned.looked_through.is_some_and(|then| now - then < PAUSE) {
            return;
        }
        owned.looked_through = Some(now);
        // Whoever has none of them gets one through this lock alone.
        let mut all = self.0.metrics.write();
        owned.metrics.retain(|(metric, cost)| {
            let metric = metric.upgrade();
            // Beside the registry and this place.
            let kept = metric
                .as_ref()
                .is_some_and(|metric| Arc::strong_count(metric) > 2);
            if !kept {
                owned.cost -= cost;
                if let Some(metric) = metric
                    && let Some(kinds) = all.get_mut(&*metric.name)
                {
                    kinds.0[metric.kind as usize] = None;
                    if kinds.0.iter().all(Option::is_none) {
                        all.remove(&*metric.name);
                    }
                }
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Shards;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_holds_makes_way_and_nothing_else() {
        let registry = Registry::new(Shards::for_workers(1));
        let get = |owner, name, cost| registry.owned_metric(owner, name, Kind::Counter, cost, 3);
        let names = || -> Vec<String> {
            let metrics = registry.metrics();
            let names = metrics.iter().map(|metric| metric.name().to_owned());
            names.collect()
        };
        let held = get("a", "held", 1).expect("room");
        held.add(7);
        drop(get("a", "left", 2).expect("room"));
        let gauge = registry.owned_metric("b", "left", Kind::Gauge, 1, 3);
        assert!(gauge.is_some());
        assert_eq!((registry.owned_by("a"), registry.owned_by("b")), (3, 1));
        assert!(get("a", "left", 2).is_some(), "it is there already");
        assert!(get("b", "left", 9).is_some(), "and costs nobody anything");
        assert_eq!(registry.owned_by("b"), 1);

        let new = get("a", "new", 2).expect("what is left makes way");
        assert_eq!(names(), ["held", "left", "new"], "a gauge of another's");
        assert_eq!(registry.owned_by("a"), 3);
        drop(new);
        assert!(get("a", "newer", 1).is_none(), "that was a moment ago");
        tokio::time::advance(PAUSE).await;
        let newer = get("a", "newer", 2).expect("room");
        tokio::time::advance(PAUSE).await;
        assert!(get("a", "newest", 1).is_none(), "all are held");
        assert_eq!(names(), ["held", "left", "newer"]);
        assert_eq!(get("a", "held", 1).expect("held").value(), 7);
        assert_eq!(newer.kind(), Kind::Counter);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_another_kind_took_the_place_of_costs_nothing_in_the_end() {
        let registry = Registry::new(Shards::for_workers(1));
        drop(registry.owned_metric("a", "m", Kind::Counter, 1, 2));
        let gauge = registry.owned_metric("a", "m", Kind::Gauge, 1, 2);
        assert_eq!(registry.metrics().len(), 1);
        let other = registry.owned_metric("a", "n", Kind::Gauge, 1, 2);
        assert!(gauge.is_some() && other.is_some());
        assert_eq!(registry.owned_by("a"), 2);
    }
}
