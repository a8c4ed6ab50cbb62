//! Load balancers: how one host is taken from a group of equals (those of one priority and state of health).
//!
//! A group is immutable and belongs to one [`EndpointSet`](super::EndpointSet). What a balancer remembers between
//! picks is kept per worker, so that a pick locks nothing that another worker could hold; with equal weights it costs
//! the same for any number of hosts.

use std::sync::Arc;

use super::host::Host;
use crate::base::Shards;
use crate::config::cluster::Balancer;

pub(super) mod edf;
mod least_request;
mod random;
mod round_robin;

/// Hosts of which any may be taken, with the balancer's state.
#[derive(Debug)]
pub(super) struct Group {
    hosts: Box<[Arc<Host>]>,
    state: State,
}

#[derive(Debug)]
enum State {
    RoundRobin(round_robin::RoundRobin),
    LeastRequest(least_request::LeastRequest),
    Random,
}

impl Group {
    /// `hosts` with their weights.
    pub(super) fn new(
        hosts: Vec<Arc<Host>>,
        weights: &[u32],
        balancer: &Balancer,
        shards: Shards,
        rng: &mut fastrand::Rng,
    ) -> Self {
        debug_assert_eq!(hosts.len(), weights.len());
        let weights = weighted(weights);
        let state = match balancer {
            Balancer::RoundRobin => {
                State::RoundRobin(round_robin::RoundRobin::new(weights, shards, rng))
            }
            Balancer::LeastRequest {
                choice_count,
                active_request_bias,
            } => State::LeastRequest(least_request::LeastRequest::new(
                *choice_count,
                *active_request_bias,
                weights,
                shards,
                rng,
            )),
            Balancer::Random => State::Random,
        };
        Self {
            hosts: hosts.into(),
            state,
        }
    }

    pub(super) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// One of the hosts, unless there is none.
    #[inline]
    pub(super) fn pick(&self, rng: &mut fastrand::Rng) -> Option<&Arc<Host>> {
        match &*self.hosts {
            [] => None,
            [only] => Some(only),
            hosts => Some(
                &hosts[match &self.state {
                    State::RoundRobin(state) => state.pick(hosts.len(), rng),
                    State::LeastRequest(state) => state.pick(hosts, rng),
                    State::Random => random::pick(hosts.len(), rng),
                }],
            ),
        }
    }
}

/// The weights where they differ; `None` where all are equal.
fn weighted(weights: &[u32]) -> Option<&[u32]> {
    weights
        .windows(2)
        .any(|pair| pair[0] != pair[1])
        .then_some(weights)
}
