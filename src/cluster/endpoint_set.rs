//! The hosts of a cluster at one moment, by priority, with what each priority is worth.
//!
//! Immutable: a pick loads one pointer and reads. The arithmetic of priorities is Envoy's: a priority takes as much
//! as its healthy share times the overprovisioning factor allows, what is left goes to the next, then to degraded
//! hosts; below the panic threshold health is ignored. Hosts that drain count for nothing in these shares: a rollout
//! that drains most of them is no reason to panic.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::balance::Group;
use super::balance::edf::Edf;
use super::host::{Attributes, Health, Host, HostKey};
use crate::base::Shards;
use crate::config::cluster::Balancer;
use crate::config::endpoint::Endpoints;

/// Highest number of a priority that the API allows.
const MAX_PRIORITY: usize = 128;

/// What decides besides the hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How one of a group is taken.
    pub balancer: Balancer,
    /// `healthy_panic_threshold`, percent; 0 never panics.
    pub panic_threshold: f64,
    /// `overprovisioning_factor`, percent.
    pub overprovisioning_factor: u32,
    /// `weighted_priority_health`.
    pub weighted_priority_health: bool,
    /// A locality is chosen first, by its weight and what of it is available.
    pub locality_weighted: bool,
    /// `drop_overloads`: category and parts of a million. Envoy heeds the first.
    pub drop_overloads: Vec<(Box<str>, u32)>,
}

/// The hosts of a cluster at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    priorities: Box<[Priority]>,
    drop: Option<(Box<str>, u32)>,
}

#[derive(Debug)]
struct Priority {
    all: Arc<Group>,
    healthy: Arc<Group>,
    degraded: Arc<Group>,
    /// With weighted localities: the same hosts by locality.
    healthy_localities: Option<Localities>,
    degraded_localities: Option<Localities>,
    /// Percent of requests that go to the healthy hosts.
    healthy_load: u32,
    /// Percent of requests that go to the degraded hosts.
    degraded_load: u32,
    panic: bool,
}

/// What [`EndpointSet::pick`] came to.
#[derive(Debug)]
pub enum Picked<'a> {
    /// A host.
    Host(&'a Arc<Host>),
    /// A host, though its priority is in panic: health was ignored.
    Panic(&'a Arc<Host>),
    /// No host.
    None,
}

/// What one cluster gains and loses by an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// All hosts.
    pub total: usize,
    /// Healthy ones.
    pub healthy: usize,
    /// Degraded ones.
    pub degraded: usize,
    /// Draining ones, which no share counts.
    pub excluded: usize,
}

impl EndpointSet {
    /// The set of `members`, in order; the first of equal keys stays. A host of `previous` that is still a member
    /// stays the same `Arc`; the others are told that they were removed.
    pub fn build(
        members: impl IntoIterator<Item = (HostKey, Attributes)>,
        policy: &Policy,
        previous: &Self,
        shards: Shards,
    ) -> Self {
        let mut known: FxHashMap<HostKey, &Arc<Host>> =
            previous.hosts().map(|host| (host.key(), host)).collect();
        let mut seen = FxHashSet::default();
        let mut by_priority: Vec<Vec<Weighted>> = Vec::new();
        for (key, attributes) in members {
            if !seen.insert(key.clone()) {
                continue;
            }
            let weight = attributes.weight.max(1);
            // The API allows 128; nothing that came past it may make us allocate for more.
            let priority = (attributes.priority as usize).min(MAX_PRIORITY);
            let host = match known.remove(&key) {
                Some(host) => {
                    host.set_attributes(attributes);
                    host.set_removed(false);
                    Arc::clone(host)
                }
                None => Host::new(key, attributes),
            };
            if by_priority.len() <= priority {
                by_priority.resize_with(priority + 1, Vec::new);
            }
            by_priority[priority].push((host, weight));
        }
        for host in known.values() {
            host.set_removed(true);
        }
        let priorities = by_priority
            .into_iter()
            .map(|members| Priority::new(members, policy, shards))
            .collect();
        Self::with_loads(priorities, policy)
    }

    /// The same hosts after a change of their health flags or of the policy.
    pub fn rebuild(&self, policy: &Policy, shards: Shards) -> Self {
        let priorities = self
            .priorities
            .iter()
            .map(|priority| {
                let members = priority
                    .all
                    .hosts()
                    .iter()
                    .map(|host| (Arc::clone(host), host.attributes().weight))
                    .collect();
                Priority::new(members, policy, shards)
            })
            .collect();
        Self::with_loads(priorities, policy)
    }

    fn with_loads(mut priorities: Box<[Priority]>, policy: &Policy) -> Self {
        let counts: Vec<Counts> = priorities
            .iter()
            .map(|priority| Counts::of(priority, policy.weighted_priority_health))
            .collect();
        let loads = Loads::of(
            &counts,
            policy.overprovisioning_factor,
            policy.panic_threshold,
        );
        for (index, priority) in priorities.iter_mut().enumerate() {
            priority.healthy_load = loads.healthy[index];
            priority.degraded_load = loads.degraded[index];
            priority.panic = loads.panic[index];
        }
        Self {
            priorities,
            drop: policy.drop_overloads.first().cloned(),
        }
    }

    /// Chooses a host. Costs the same for any number of hosts where their weights are equal.
    #[inline]
    pub fn pick(&self, rng: &mut fastrand::Rng) -> Picked<'_> {
        let Some((priority, degraded)) = self.choose_priority(rng) else {
            return Picked::None;
        };
        if priority.panic {
            return priority.all.pick(rng).map_or(Picked::None, Picked::Panic);
        }
        let (localities, group) = if degraded {
            (&priority.degraded_localities, &priority.degraded)
        } else {
            (&priority.healthy_localities, &priority.healthy)
        };
        let group = match localities {
            Some(localities) => localities.pick(rng),
            None => group,
        };
        group.pick(rng).map_or(Picked::None, Picked::Host)
    }

    /// The priority of the next request, and whether its degraded hosts are meant.
    fn choose_priority(&self, rng: &mut fastrand::Rng) -> Option<(&Priority, bool)> {
        let first = self.priorities.first()?;
        if first.healthy_load == 100 {
            return Some((first, false));
        }
        let mut rest = rng.u32(1..=100);
        for (degraded, priority) in (self.priorities.iter().map(|p| (false, p)))
            .chain(self.priorities.iter().map(|p| (true, p)))
        {
            let load = if degraded {
                priority.degraded_load
            } else {
                priority.healthy_load
            };
            if rest <= load {
                return Some((priority, degraded));
            }
            rest -= load;
        }
        Some((first, false))
    }

    /// All hosts, by priority.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities
            .iter()
            .flat_map(|priority| priority.all.hosts())
    }

    /// How many there are.
    pub fn membership(&self) -> Membership {
        let sum = |group: fn(&Priority) -> &Arc<Group>| {
            self.priorities
                .iter()
                .map(|priority| group(priority).hosts().len())
                .sum()
        };
        Membership {
            total: sum(|priority| &priority.all),
            healthy: sum(|priority| &priority.healthy),
            degraded: sum(|priority| &priority.degraded),
            excluded: self.hosts().filter(|host| host.is_excluded()).count(),
        }
    }

    /// `drop_overloads`: category and parts of a million, of the first category (Envoy allows one).
    pub fn drop_overload(&self) -> Option<(&str, u32)> {
        self.drop
            .as_ref()
            .map(|(category, parts)| (&**category, *parts))
    }
}

impl Priority {
    fn new(members: Vec<Weighted>, policy: &Policy, shards: Shards) -> Self {
        let mut builder = Builder {
            policy,
            shards,
            rng: fastrand::Rng::new(),
        };
        let all = builder.group(members.iter());
        let of = |health| {
            members
                .iter()
                .filter(move |(host, _)| host.health() == health)
        };
        // Most of the time one group is all: then it is kept once.
        let healthy = if of(Health::Healthy).count() == members.len() {
            Arc::clone(&all)
        } else {
            builder.group(of(Health::Healthy))
        };
        let degraded = builder.group(of(Health::Degraded));
        Self {
            all,
            healthy,
            degraded,
            healthy_localities: builder.localities(&members, Health::Healthy),
            degraded_localities: builder.localities(&members, Health::Degraded),
            healthy_load: 0,
            degraded_load: 0,
            panic: false,
        }
    }
}

/// A host and its weight.
type Weighted = (Arc<Host>, u32);

struct Builder<'a> {
    policy: &'a Policy,
    shards: Shards,
    rng: fastrand::Rng,
}

impl Builder<'_> {
    fn group<'m>(&mut self, members: impl Iterator<Item = &'m Weighted>) -> Arc<Group> {
        let (hosts, weights): (Vec<_>, Vec<_>) = members.cloned().unzip();
        Arc::new(Group::new(
            hosts,
            &weights,
            &self.policy.balancer,
            self.shards,
            &mut self.rng,
        ))
    }

    /// `None` where localities are not weighted, or none of them has both a weight and a host.
    fn localities(&mut self, members: &[Weighted], health: Health) -> Option<Localities> {
        if !self.policy.locality_weighted {
            return None;
        }
        let mut by_locality: Vec<(Arc<Attributes>, Vec<&Weighted>)> = Vec::new();
        for member in members {
            let attributes = member.0.attributes();
            match by_locality
                .iter_mut()
                .find(|(known, _)| known.locality == attributes.locality)
            {
                Some((_, members)) => members.push(member),
                None => by_locality.push((attributes, vec![member])),
            }
        }
        let factor = f64::from(overprovisioning(self.policy.overprovisioning_factor)) / 100.0;
        let mut groups = Vec::new();
        let mut weights = Vec::new();
        for (attributes, members) in by_locality {
            let chosen: Vec<_> = members
                .iter()
                .copied()
                .filter(|(host, _)| host.health() == health)
                .collect();
            let counted = members
                .iter()
                .filter(|(host, _)| !host.is_excluded())
                .count();
            if counted == 0 {
                continue;
            }
            let available = (factor * chosen.len() as f64 / counted as f64).min(1.0);
            let weight = f64::from(attributes.locality_weight) * available;
            if weight > 0.0 {
                groups.push(self.group(chosen.into_iter()));
                weights.push(weight);
            }
        }
        (!groups.is_empty()).then(|| Localities {
            groups: groups.into(),
            schedule: Edf::new(weights, self.shards, &mut self.rng),
        })
    }
}

/// The localities of one priority and state of health, taken in turn by weight.
#[derive(Debug)]
struct Localities {
    groups: Box<[Arc<Group>]>,
    schedule: Edf,
}

impl Localities {
    fn pick(&self, rng: &mut fastrand::Rng) -> &Arc<Group> {
        match &*self.groups {
            [only] => only,
            groups => &groups[self.schedule.pick(rng, |_, weight| weight)],
        }
    }
}

fn overprovisioning(percent: u32) -> u32 {
    if percent == 0 { 140 } else { percent }
}

/// What the arithmetic of priorities needs to know of one.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// All of them: what total panic shares by.
    hosts: usize,
    /// Without those that drain: what all else is a share of.
    counted_hosts: usize,
    healthy_hosts: usize,
    degraded_hosts: usize,
    /// As the hosts, or by weight with `weighted_priority_health`.
    total: u64,
    healthy: u64,
    degraded: u64,
}

impl Counts {
    fn of(priority: &Priority, weighted: bool) -> Self {
        let sum = |group: &Group| -> u64 {
            let counted = group.hosts().iter().filter(|host| !host.is_excluded());
            if weighted {
                counted
                    .map(|host| u64::from(host.attributes().weight))
                    .sum()
            } else {
                counted.count() as u64
            }
        };
        let hosts = priority.all.hosts();
        Self {
            hosts: hosts.len(),
            counted_hosts: hosts.iter().filter(|host| !host.is_excluded()).count(),
            healthy_hosts: priority.healthy.hosts().len(),
            degraded_hosts: priority.degraded.hosts().len(),
            total: sum(&priority.all),
            healthy: sum(&priority.healthy),
            degraded: sum(&priority.degraded),
        }
    }
}

/// Percent of requests a priority, and its panic.
#[derive(Debug, PartialEq, Eq)]
struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
}

impl Loads {
    fn of(counts: &[Counts], percent: u32, panic_threshold: f64) -> Self {
        let factor = u64::from(overprovisioning(percent));
        let availability = |part: u64, total: u64| {
            let percent = (part * factor).checked_div(total).unwrap_or(0);
            u32::try_from(percent.min(100)).unwrap_or(100)
        };
        let healthy_availability: Vec<u32> = counts
            .iter()
            .map(|count| availability(count.healthy, count.total))
            .collect();
        let degraded_availability: Vec<u32> = counts
            .iter()
            .map(|count| availability(count.degraded, count.total))
            .collect();
        let available = healthy_availability
            .iter()
            .chain(&degraded_availability)
            .sum::<u32>()
            .min(100);
        let mut loads = Self {
            healthy: vec![0; counts.len()],
            degraded: vec![0; counts.len()],
            panic: vec![false; counts.len()],
        };
        if counts.is_empty() {
            return loads;
        }
        if available > 0 {
            let mut left = 100;
            share(
                &mut loads.healthy,
                &healthy_availability,
                available,
                &mut left,
            );
            share(
                &mut loads.degraded,
                &degraded_availability,
                available,
                &mut left,
            );
            // What rounding left over goes to the first priority that has anything.
            if let Some(index) = healthy_availability.iter().position(|share| *share > 0) {
                loads.healthy[index] += left;
            } else if let Some(index) = degraded_availability.iter().position(|share| *share > 0) {
                loads.degraded[index] += left;
            }
        }
        if panic_threshold <= 0.0 && available == 0 {
            loads.healthy[0] = 100;
            return loads;
        }
        if available < 100 {
            for (panic, count) in loads.panic.iter_mut().zip(counts) {
                let available = count.healthy_hosts + count.degraded_hosts;
                let percent = if count.counted_hosts == 0 {
                    0.0
                } else {
                    100.0 * available as f64 / count.counted_hosts as f64
                };
                *panic = percent < panic_threshold;
            }
            if loads.panic.iter().all(|panic| *panic) {
                loads.share_in_total_panic(counts);
            }
        }
        loads
    }

    /// Every priority is in panic: each gets what its number of hosts is worth.
    fn share_in_total_panic(&mut self, counts: &[Counts]) {
        let total: usize = counts.iter().map(|count| count.hosts).sum();
        self.degraded.fill(0);
        self.healthy.fill(0);
        if total == 0 {
            self.healthy[0] = 100;
            return;
        }
        let mut left = 100;
        for (load, count) in self.healthy.iter_mut().zip(counts) {
            *load = u32::try_from(100 * count.hosts / total).unwrap_or(100);
            left -= *load;
        }
        if let Some(index) = counts.iter().position(|count| count.hosts > 0) {
            self.healthy[index] += left;
        }
    }
}

/// Gives each priority its part of what is left, in order.
fn share(loads: &mut [u32], availability: &[u32], available: u32, left: &mut u32) {
    for (load, availability) in loads.iter_mut().zip(availability) {
        *load = (*left).min(availability * 100 / available);
        *left -= *load;
    }
}

/// The members that a load assignment names; names (of DNS clusters) are left out.
pub(super) fn members(endpoints: &Endpoints) -> impl Iterator<Item = (HostKey, Attributes)> + '_ {
    endpoints.localities.iter().flat_map(|locality| {
        let shared = Arc::new(locality.locality.clone());
        locality
            .endpoints
            .iter()
            .filter(|endpoint| {
                !matches!(endpoint.address, crate::config::endpoint::Address::Name(..))
            })
            .map(move |endpoint| {
                (
                    HostKey {
                        address: endpoint.address.clone(),
                        hostname: endpoint.hostname.clone(),
                    },
                    Attributes {
                        weight: endpoint.weight,
                        priority: locality.priority,
                        health: endpoint.health,
                        locality: Arc::clone(&shared),
                        locality_weight: locality.weight.unwrap_or(0),
                        locality_metadata: locality.metadata.clone(),
                        metadata: endpoint.metadata.clone(),
                    },
                )
            })
    })
}

#[cfg(test)]
mod tests;
