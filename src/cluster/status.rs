//! What `/clusters` shows, as plain data; admin writes it as text or JSON.

use std::sync::Arc;

use super::{Cluster, Host};
use crate::config::endpoint::HealthStatus;

/// A cluster for `/clusters`.
#[derive(Debug)]
pub struct ClusterStatus {
    /// `name`.
    pub name: Arc<str>,
    /// `observability_name`.
    pub observability_name: Arc<str>,
    /// By priority, in the order of the assignment.
    pub hosts: Vec<HostStatus>,
}

/// A host for `/clusters`.
#[derive(Debug)]
pub struct HostStatus {
    /// The host: its address, hostname and counters.
    pub host: Arc<Host>,
    /// What the address is at the moment (`LOGICAL_DNS`), else the host's own.
    pub address: crate::config::endpoint::Address,
    /// Weight, priority, locality, EDS health.
    pub attributes: Arc<super::host::Attributes>,
    /// `healthy`, or the flags after each other.
    pub health_flags: String,
    /// As `/clusters?format=json` shows it: `Unknown` appears as `HEALTHY`.
    pub eds_health: HealthStatus,
}

pub(super) fn of(cluster: &Cluster) -> ClusterStatus {
    let set = cluster.endpoints();
    ClusterStatus {
        name: Arc::clone(&cluster.config.name),
        observability_name: Arc::clone(&cluster.config.stat_name),
        hosts: set
            .hosts()
            .map(|host| {
                let attributes = host.attributes();
                HostStatus {
                    address: host.connect_address(),
                    health_flags: host.health_flags(),
                    eds_health: match attributes.health {
                        HealthStatus::Unknown => HealthStatus::Healthy,
                        other => other,
                    },
                    attributes,
                    host: Arc::clone(host),
                }
            })
            .collect(),
    }
}
