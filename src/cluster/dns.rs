//! Name resolution for `STRICT_DNS` and `LOGICAL_DNS`, on the control side only.
//!
//! A cluster has one task, which resolves each of its names on a schedule of its own: after the refresh rate (or the
//! records' time to live), and after a failure with back-off. What a name last resolved to stays until it is answered
//! anew; an answer without addresses removes its hosts, as in Envoy, a failure does not. The cluster is warm once
//! every name was answered, be it with a failure.

mod system;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;

use super::host::{Attributes, HostKey};
use super::stats::cluster as stat;
use super::{Live, Runtime};
use crate::base::backoff::Backoff;
use crate::base::task::OwnedTask;
use crate::config;
use crate::config::cluster::{DnsFamily, DnsOptions};
use crate::config::endpoint::{Address, Endpoints};

pub use system::SystemResolver;

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// In the resolver's order; not empty.
    pub addresses: Vec<IpAddr>,
    /// How long they hold; `None` where nothing said.
    pub ttl: Option<Duration>,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or has no address of the family.
    #[error("no addresses")]
    NoAddresses,
    /// No answer.
    #[error("{0}")]
    Failed(Box<str>),
}

/// Answers names. Tests put a fake in its place.
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// The addresses of `name` as `options` ask for them (family, servers).
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        options: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>>;
}

/// Asks nobody: no name is ever answered.
#[derive(Debug)]
pub struct Silent;

impl Resolver for Silent {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(std::future::pending())
    }
}

/// What needs no resolver: IP literals, and `localhost` with all below it (RFC 6761).
pub(crate) fn literal(name: &str, family: DnsFamily) -> Option<Resolved> {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    );
    let addresses = if let Ok(address) = name.parse::<IpAddr>() {
        vec![address]
    } else {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name != "localhost" && !name.ends_with(".localhost") {
            return None;
        }
        match family {
            DnsFamily::Auto | DnsFamily::V6Only => vec![v6],
            DnsFamily::V4Only | DnsFamily::V4Preferred => vec![v4],
            DnsFamily::All => vec![v4, v6],
        }
    };
    Some(Resolved {
        addresses,
        ttl: None,
    })
}

/// One endpoint of the configuration: a name or an address, and what every host made of it is like.
#[derive(Debug)]
struct Target {
    name: Box<str>,
    port: u16,
    hostname: Box<str>,
    attributes: Attributes,
    /// What it resolved to last.
    addresses: Vec<IpAddr>,
    answered: bool,
}

impl Target {
    /// The hosts that it stands for at the moment.
    fn members(&self, logical: bool) -> impl Iterator<Item = (HostKey, Attributes)> + '_ {
        let addresses = if logical {
            &self.addresses[..self.addresses.len().min(1)]
        } else {
            &self.addresses[..]
        };
        addresses.iter().map(move |address| {
            let address = if logical {
                Address::Name(self.name.clone(), self.port)
            } else {
                Address::Socket(SocketAddr::new(*address, self.port))
            };
            let key = HostKey {
                address,
                hostname: self.hostname.clone(),
            };
            (key, self.attributes.clone())
        })
    }
}

/// The task's view of its cluster; it does not keep the cluster alive.
struct Resolution {
    live: Weak<Live>,
    options: DnsOptions,
    logical: bool,
    /// The configuration before this one left hosts: they stay until every name was answered.
    hold: bool,
    resolver: Arc<dyn Resolver>,
    targets: Mutex<Vec<Target>>,
}

/// Starts to resolve the names of `endpoints`; what is literal is applied before this returns.
pub(super) fn start(
    live: &Arc<Live>,
    config: &Arc<config::Cluster>,
    endpoints: &Arc<Endpoints>,
    logical: bool,
    runtime: &Runtime,
) -> Option<OwnedTask> {
    {
        let mut source = live.source.lock();
        source.applied = None;
        source.policy = super::policy(config, Some(endpoints));
    }
    let mut targets = targets(endpoints);
    if logical {
        // Envoy accepts exactly one endpoint; the parser sees to it.
        targets.truncate(1);
    }
    let resolution = Arc::new(Resolution {
        live: Arc::downgrade(live),
        options: config.dns.clone(),
        logical,
        hold: live.endpoints.load().hosts().next().is_some(),
        resolver: Arc::clone(&runtime.resolver),
        targets: Mutex::new(targets),
    });
    let all: Vec<(usize, Box<str>)> = {
        let targets = resolution.targets.lock();
        let names = targets.iter().map(|target| target.name.clone());
        names.enumerate().collect()
    };
    let mut names = Vec::new();
    for (index, name) in all {
        match literal(&name, config.dns.family) {
            Some(resolved) => {
                live.stats.set.inc(stat::UPDATE_ATTEMPT);
                resolution.answered(index, Ok(&resolved));
            }
            None => names.push((index, name)),
        }
    }
    if names.is_empty() {
        // Also where there are no endpoints at all.
        if resolution.targets.lock().is_empty() {
            resolution.publish();
            live.set_warm();
        }
        return None;
    }
    Some(OwnedTask::spawn("dns", async move {
        let resolution = &resolution;
        join_all(
            names
                .iter()
                .map(|(index, name)| resolution.follow(*index, name)),
        )
        .await;
    }))
}

fn targets(endpoints: &Endpoints) -> Vec<Target> {
    let mut targets = Vec::new();
    for locality in &endpoints.localities {
        let shared = Arc::new(locality.locality.clone());
        for endpoint in &locality.endpoints {
            let (name, port) = match &endpoint.address {
                Address::Name(name, port) => (name.clone(), *port),
                Address::Socket(address) => {
                    (address.ip().to_string().into_boxed_str(), address.port())
                }
                // Envoy refuses these; so does the parser.
                Address::Pipe(_) => continue,
            };
            targets.push(Target {
                hostname: if endpoint.hostname.is_empty() {
                    name.clone()
                } else {
                    endpoint.hostname.clone()
                },
                name,
                port,
                attributes: Attributes {
                    weight: endpoint.weight,
                    priority: locality.priority,
                    health: endpoint.health,
                    locality: Arc::clone(&shared),
                    locality_weight: locality.weight.unwrap_or(0),
                    locality_metadata: locality.metadata.clone(),
                    metadata: endpoint.metadata.clone(),
                },
                addresses: Vec::new(),
                answered: false,
            });
        }
    }
    targets
}

impl Resolution {
    /// Resolves one name for ever, or until the cluster is gone.
    async fn follow(&self, index: usize, name: &str) {
        let (base, cap) = self.options.failure_refresh;
        let mut backoff = Backoff::new(base, cap);
        loop {
            let Some(live) = self.live.upgrade() else {
                return;
            };
            live.stats.set.inc(stat::UPDATE_ATTEMPT);
            drop(live);
            let result = self.resolver.resolve(name, &self.options).await;
            let wait = match &result {
                Ok(resolved) => {
                    backoff.reset();
                    self.refresh(resolved.ttl)
                }
                Err(ResolveError::NoAddresses) => {
                    backoff.reset();
                    self.refresh(None)
                }
                Err(ResolveError::Failed(reason)) => {
                    tracing::debug!(name, %reason, "name resolution failed");
                    if cap > base {
                        backoff.next_wait()
                    } else {
                        base
                    }
                }
            };
            self.answered(index, result.as_ref());
            tokio::time::sleep(wait).await;
        }
    }

    /// The wait after an answer.
    fn refresh(&self, ttl: Option<Duration>) -> Duration {
        let wait = match ttl {
            Some(ttl) if self.options.respect_ttl && !ttl.is_zero() => ttl,
            _ => self.options.refresh,
        };
        wait + self.options.jitter.mul_f64(fastrand::f64())
    }

    fn answered(&self, index: usize, result: Result<&Resolved, &ResolveError>) {
        let Some(live) = self.live.upgrade() else {
            return;
        };
        let stats = &live.stats.set;
        let addresses = match result {
            Ok(resolved) => Some(resolved.addresses.as_slice()),
            Err(ResolveError::NoAddresses) => Some(&[][..]),
            Err(ResolveError::Failed(_)) => None,
        };
        let mut targets = self.targets.lock();
        let complete = targets.iter().all(|target| target.answered);
        let target = &mut targets[index];
        target.answered = true;
        let changed = addresses.is_some_and(|addresses| target.addresses != addresses);
        if let (true, Some(addresses)) = (changed, addresses) {
            target.addresses = addresses.to_vec();
        }
        let completed = !complete && targets.iter().all(|target| target.answered);
        drop(targets);
        stats.inc(match addresses {
            Some(_) => stat::UPDATE_SUCCESS,
            None => stat::UPDATE_FAILURE,
        });
        if changed || (completed && self.hold) {
            self.publish();
        } else if addresses.is_some() {
            stats.inc(stat::UPDATE_NO_REBUILD);
        }
        if completed {
            live.set_warm();
        }
    }

    /// Makes hosts of what is known.
    fn publish(&self) {
        let Some(live) = self.live.upgrade() else {
            return;
        };
        let targets = self.targets.lock();
        let members: Vec<_> = targets
            .iter()
            .flat_map(|target| target.members(self.logical))
            .collect();
        let held = self.hold && !targets.iter().all(|target| target.answered);
        let first = targets
            .first()
            .and_then(|target| Some(SocketAddr::new(*target.addresses.first()?, target.port)));
        drop(targets);
        if held {
            return;
        }
        let source = live.source.lock();
        live.set_members(&source, members, |host| {
            if let (true, Some(address)) = (self.logical, first) {
                host.set_resolved(address);
            }
        });
    }
}

#[cfg(test)]
mod tests;
