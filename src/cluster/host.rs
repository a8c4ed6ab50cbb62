//! One endpoint, shared by workers and by updates.
//!
//! A host is its address and hostname; as long as both stay in a cluster's endpoints, so does the `Arc<Host>`, and
//! with it its connections and counters. What an update may change (weight, health, locality, metadata) is swapped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use crate::config::endpoint::{Address, HealthStatus, Locality};
use crate::pb;

/// What makes two entries of two updates the same host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostKey {
    /// Where it is.
    pub address: Address,
    /// `hostname`.
    pub hostname: Box<str>,
}

/// One endpoint.
pub struct Host {
    /// Where it is.
    pub address: Address,
    /// `hostname` of the endpoint, or the DNS name; may be empty.
    pub hostname: Box<str>,
    /// What was counted of it.
    pub stats: HostStats,
    attributes: ArcSwap<Attributes>,
    health: HealthFlags,
    removed: AtomicBool,
    /// What its metadata say: [`Attributes::is_canary`].
    canary: AtomicBool,
    /// Current address of a logical host (`LOGICAL_DNS`): where new connections go.
    resolved: arc_swap::ArcSwapOption<std::net::SocketAddr>,
}

/// What an update says of a host besides its identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Attributes {
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// `priority`.
    pub priority: u32,
    /// `health_status`.
    pub health: HealthStatus,
    /// `locality`.
    pub locality: Arc<Locality>,
    /// `load_balancing_weight` of the locality; 0 where unset.
    pub locality_weight: u32,
    /// `metadata` of the locality.
    pub locality_metadata: Option<Arc<pb::Metadata>>,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
}

impl Attributes {
    /// `envoy.lb: {canary: true}` in the metadata.
    pub fn is_canary(&self) -> bool {
        use crate::pb::google::protobuf::value::Kind;
        self.metadata
            .as_ref()
            .and_then(|metadata| metadata.filter_metadata.get("envoy.lb"))
            .and_then(|fields| fields.fields.get("canary"))
            .is_some_and(|value| matches!(value.kind, Some(Kind::BoolValue(true))))
    }
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            weight: 1,
            priority: 0,
            health: HealthStatus::Unknown,
            locality: Arc::default(),
            locality_weight: 0,
            locality_metadata: None,
            metadata: None,
        }
    }
}

/// What `/clusters` shows of a host. Written by all workers: atomic additions.
#[derive(Debug, Default)]
pub struct HostStats {
    /// Connections made or tried.
    pub cx_total: AtomicU64,
    /// Open connections, those being made included.
    pub cx_active: AtomicU64,
    /// Connections that could not be made.
    pub cx_connect_fail: AtomicU64,
    /// Requests sent.
    pub rq_total: AtomicU64,
    /// Requests in flight: what least-request compares.
    pub rq_active: AtomicU64,
    /// Requests that wait for a connection.
    pub rq_pending_active: AtomicU64,
    /// Answers below 500.
    pub rq_success: AtomicU64,
    /// Answers from 500, and failures.
    pub rq_error: AtomicU64,
    /// Requests that timed out.
    pub rq_timeout: AtomicU64,
}

/// Reasons against a host, as bits: the configuration's, with room for what checks find out.
#[derive(Debug, Default)]
struct HealthFlags(AtomicU32);

/// One reason against a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HealthFlag {
    /// EDS says `UNHEALTHY` or `TIMEOUT`.
    FailedEds = 1,
    /// EDS says `DRAINING`.
    Draining = 1 << 1,
    /// EDS says `DEGRADED`.
    DegradedEds = 1 << 2,
    /// Active health checking failed.
    FailedActive = 1 << 3,
    /// Active health checking says degraded.
    DegradedActive = 1 << 4,
    /// Outlier detection ejected it.
    FailedOutlier = 1 << 5,
}

impl HealthFlag {
    const ALL: [Self; 6] = [
        Self::FailedActive,
        Self::FailedOutlier,
        Self::FailedEds,
        Self::DegradedActive,
        Self::DegradedEds,
        Self::Draining,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::FailedEds => "/failed_eds_health",
            Self::Draining => "/eds_status_draining",
            Self::DegradedEds => "/degraded_eds_health",
            Self::FailedActive => "/failed_active_hc",
            Self::DegradedActive => "/degraded_active_hc",
            Self::FailedOutlier => "/failed_outlier_check",
        }
    }
}

/// What a balancer makes of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// To be chosen.
    Healthy,
    /// To be chosen where healthy ones do not suffice.
    Degraded,
    /// Not to be chosen, but in panic.
    Unhealthy,
}

impl Host {
    /// A host that nothing was counted of.
    pub fn new(key: HostKey, attributes: Attributes) -> Arc<Self> {
        let host = Self {
            address: key.address,
            hostname: key.hostname,
            stats: HostStats::default(),
            attributes: ArcSwap::from_pointee(Attributes::default()),
            health: HealthFlags::default(),
            removed: AtomicBool::new(false),
            canary: AtomicBool::new(false),
            resolved: arc_swap::ArcSwapOption::empty(),
        };
        host.set_attributes(attributes);
        Arc::new(host)
    }

    /// Its identity.
    pub fn key(&self) -> HostKey {
        HostKey {
            address: self.address.clone(),
            hostname: self.hostname.clone(),
        }
    }

    /// What the last update said of it.
    pub fn attributes(&self) -> Arc<Attributes> {
        self.attributes.load_full()
    }

    /// It is a canary; answers from it are counted apart.
    pub fn is_canary(&self) -> bool {
        self.canary.load(Relaxed)
    }

    /// Takes over what an update says.
    pub fn set_attributes(&self, attributes: Attributes) {
        const EDS: u32 = HealthFlag::FailedEds as u32
            | HealthFlag::Draining as u32
            | HealthFlag::DegradedEds as u32;
        let flag = match attributes.health {
            HealthStatus::Unknown | HealthStatus::Healthy => 0,
            HealthStatus::Unhealthy | HealthStatus::Timeout => HealthFlag::FailedEds as u32,
            HealthStatus::Draining => HealthFlag::Draining as u32,
            HealthStatus::Degraded => HealthFlag::DegradedEds as u32,
        };
        // One writer (the control side): the two steps cannot lose another's bit.
        self.health.0.fetch_or(flag, Relaxed);
        self.health.0.fetch_and(!EDS | flag, Relaxed);
        self.canary.store(attributes.is_canary(), Relaxed);
        if **self.attributes.load() != attributes {
            self.attributes.store(Arc::new(attributes));
        }
    }

    /// Sets or clears a reason against it. The owner then rebuilds the [`EndpointSet`](super::EndpointSet).
    pub fn set_health(&self, flag: HealthFlag, on: bool) {
        if on {
            self.health.0.fetch_or(flag as u32, Relaxed);
        } else {
            self.health.0.fetch_and(!(flag as u32), Relaxed);
        }
    }

    /// What the flags say together.
    pub fn health(&self) -> Health {
        const UNHEALTHY: u32 = HealthFlag::FailedEds as u32
            | HealthFlag::Draining as u32
            | HealthFlag::FailedActive as u32
            | HealthFlag::FailedOutlier as u32;
        match self.health.0.load(Relaxed) {
            0 => Health::Healthy,
            flags if flags & UNHEALTHY != 0 => Health::Unhealthy,
            _ => Health::Degraded,
        }
    }

    /// True where it drains: neither the health of its priority nor panic counts it, as in Envoy.
    pub fn is_excluded(&self) -> bool {
        self.health.0.load(Relaxed) & HealthFlag::Draining as u32 != 0
    }

    /// As in `/clusters`: `healthy`, or the flags after each other (`/failed_active_hc/failed_eds_health`).
    pub fn health_flags(&self) -> String {
        let flags = self.health.0.load(Relaxed);
        if flags == 0 {
            return "healthy".to_owned();
        }
        HealthFlag::ALL
            .into_iter()
            .filter(|flag| flags & *flag as u32 != 0)
            .map(HealthFlag::text)
            .collect()
    }

    /// Where to connect: the address, or what a logical host last resolved to.
    pub fn connect_address(&self) -> Address {
        match self.resolved.load().as_deref() {
            Some(address) => Address::Socket(*address),
            None => self.address.clone(),
        }
    }

    /// Where new connections of a logical host go from now on.
    pub fn set_resolved(&self, address: std::net::SocketAddr) {
        if self.resolved.load().as_deref() != Some(&address) {
            self.resolved.store(Some(Arc::new(address)));
        }
    }

    pub(super) fn answered(&self, code: u16) {
        let counter = if code >= 500 {
            &self.stats.rq_error
        } else {
            &self.stats.rq_success
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn timed_out(&self) {
        self.stats.rq_timeout.fetch_add(1, Relaxed);
    }

    /// True once it has left the cluster: its idle connections close, busy ones when they are done.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    pub(super) fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Relaxed);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({}", self.address)?;
        if !self.hostname.is_empty() {
            write!(f, " {}", self.hostname)?;
        }
        f.write_str(")")
    }
}
