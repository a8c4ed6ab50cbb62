//! A complete, warmed configuration: plain data, no sockets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::SourceSpecifier;
use super::endpoint::Endpoints;
use super::extension::HttpFilterConfig;
use super::{Cluster, Listener, RouteConfig};

/// What is to be served, as of one moment. What has the same `Arc` as in the snapshot before has not changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name. Every RDS name that a listener here refers to is in `routes`, or has timed out.
    pub listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    /// RDS tables.
    pub routes: Sourced<RouteConfig>,
    /// By name. A cluster is here once it is warm.
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// EDS assignments by service name.
    pub endpoints: Sourced<Endpoints>,
    /// ECDS filter configurations; what is missing has timed out without a default.
    pub extensions: Sourced<HttpFilterConfig>,
}

/// Resources by source and name: one name from two sources is two resources, as in Envoy.
#[derive(Clone, Debug)]
pub struct Sourced<T>(BTreeMap<SourceSpecifier, ByName<T>>);

type ByName<T> = BTreeMap<Arc<str>, Arc<T>>;

impl<T> Default for Sourced<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Sourced<T> {
    /// The resource called `name` of this source.
    pub fn get(&self, source: &SourceSpecifier, name: &str) -> Option<&Arc<T>> {
        self.0.get(source)?.get(name)
    }

    /// Adds a resource, or replaces the one of its source and name.
    pub fn insert(&mut self, source: &SourceSpecifier, name: Arc<str>, value: Arc<T>) {
        match self.0.get_mut(source) {
            Some(known) => {
                known.insert(name, value);
            }
            None => {
                let of_source = BTreeMap::from([(name, value)]);
                self.0.insert(source.clone(), of_source);
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&SourceSpecifier, &Arc<str>, &Arc<T>)> {
        self.0.iter().flat_map(|(source, known)| {
            known.iter().map(move |(name, value)| (source, name, value))
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn same_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|((a, known), (b, others))| a == b && same(known, others))
    }
}

fn same<T>(a: &ByName<T>, b: &ByName<T>) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|((an, av), (bn, bv))| an == bn && Arc::ptr_eq(av, bv))
}

impl Snapshot {
    /// True where both hold the same `Arc`s under the same names.
    pub fn same_as(&self, other: &Self) -> bool {
        same(&self.listeners, &other.listeners)
            && self.routes.same_as(&other.routes)
            && same(&self.clusters, &other.clusters)
            && self.endpoints.same_as(&other.endpoints)
            && self.extensions.same_as(&other.extensions)
    }
}
