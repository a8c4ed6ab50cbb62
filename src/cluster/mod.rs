//! The upstream side: clusters, their hosts, load balancing, pools, connections; and [`client`] for our own calls.
//!
//! A [`Cluster`] is immutable configuration plus what survives updates: hosts (shared by workers and by updates),
//! pools (per worker, keyed by host) and statistics. Its endpoints change without a new Generation.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config;

/// All clusters of a Generation by name.
#[derive(Debug, Default)]
pub struct ClusterMap(pub HashMap<Arc<str>, Arc<Cluster>, rustc_hash::FxBuildHasher>);

impl ClusterMap {
    /// The cluster called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.0.get(name)
    }
}

/// A live cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its configuration.
    pub config: Arc<config::Cluster>,
}

/// One endpoint, shared by workers and by updates: what changes is atomics in it.
#[derive(Debug)]
pub struct Host {
    /// Where it is.
    pub address: config::endpoint::Address,
    /// `hostname` of the endpoint, or the DNS name; may be empty.
    pub hostname: Box<str>,
}
