//! `envoy.config.endpoint.v3.ClusterLoadAssignment` as believed.

pub(super) mod address;
pub(super) mod parse;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::pb;

/// The endpoints of a cluster, by locality.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    /// `cluster_name`.
    pub cluster_name: Box<str>,
    /// In the order given.
    pub localities: Vec<LocalityEndpoints>,
    /// `policy.overprovisioning_factor` in percent; default 140.
    pub overprovisioning_factor: u32,
    /// `policy.weighted_priority_health`.
    pub weighted_priority_health: bool,
    /// `policy.drop_overloads`: category and parts of a million.
    pub drop_overloads: Vec<(Box<str>, u32)>,
    /// `policy.endpoint_stale_after`.
    pub stale_after: Option<std::time::Duration>,
}

/// `LocalityLbEndpoints`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalityEndpoints {
    /// `locality`.
    pub locality: Locality,
    /// `lb_endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// `load_balancing_weight`; `None` where unset.
    pub weight: Option<u32>,
    /// `priority`, from 0 (highest).
    pub priority: u32,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
}

/// `Locality`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// `region`.
    pub region: Box<str>,
    /// `zone`.
    pub zone: Box<str>,
    /// `sub_zone`.
    pub sub_zone: Box<str>,
}

/// `LbEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// `hostname`; may be empty.
    pub hostname: Box<str>,
    /// `health_status`.
    pub health: HealthStatus,
    /// `load_balancing_weight`; default 1.
    pub weight: u32,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
}

/// `HealthStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// Treated as healthy.
    #[default]
    Unknown,
    /// Healthy.
    Healthy,
    /// Never chosen (panic excepted).
    Unhealthy,
    /// Treated as unhealthy.
    Draining,
    /// Treated as unhealthy.
    Timeout,
    /// Chosen only where too few healthy ones are left.
    Degraded,
}

/// `envoy.config.core.v3.Address`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A socket address.
    Socket(SocketAddr),
    /// A name to resolve, and a port (DNS clusters only).
    Name(Box<str>, u16),
    /// A unix socket; `@` first means the abstract namespace. The mode is for listeners.
    Pipe(PathBuf),
}

impl Address {
    /// True where it is the configuration that says which address it is, not the system or a resolver.
    pub fn is_fixed(&self) -> bool {
        match self {
            Self::Socket(address) => address.port() != 0,
            Self::Pipe(_) => true,
            Self::Name(..) => false,
        }
    }

    /// True where two listeners name an address that only one of them can have.
    pub fn meet(some: &[Self], others: &[Self]) -> bool {
        let mut fixed = some.iter().filter(|address| address.is_fixed());
        fixed.any(|address| others.contains(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Pipe(path) => path.display().fmt(f),
        }
    }
}
