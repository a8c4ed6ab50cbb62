//! A complete, warmed configuration: plain data, no sockets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::endpoint::Endpoints;
use super::extension::HttpFilterConfig;
use super::{Cluster, Listener, RouteConfig};

/// What is to be served, as of one moment. What has the same `Arc` as in the snapshot before has not changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name. Every RDS name that a listener here refers to is in `routes`, or has timed out.
    pub listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    /// RDS tables by name.
    pub routes: BTreeMap<Arc<str>, Arc<RouteConfig>>,
    /// By name. A cluster is here once it is warm.
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// EDS assignments by service name.
    pub endpoints: BTreeMap<Arc<str>, Arc<Endpoints>>,
    /// ECDS filter configurations by name; what is missing has timed out without a default.
    pub extensions: BTreeMap<Arc<str>, Arc<HttpFilterConfig>>,
}

impl Snapshot {
    /// True where both hold the same `Arc`s under the same names.
    pub fn same_as(&self, other: &Self) -> bool {
        fn same<T>(a: &BTreeMap<Arc<str>, Arc<T>>, b: &BTreeMap<Arc<str>, Arc<T>>) -> bool {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((an, av), (bn, bv))| an == bn && Arc::ptr_eq(av, bv))
        }
        same(&self.listeners, &other.listeners)
            && same(&self.routes, &other.routes)
            && same(&self.clusters, &other.clusters)
            && same(&self.endpoints, &other.endpoints)
            && same(&self.extensions, &other.extensions)
    }
}
