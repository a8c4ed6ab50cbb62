//! The resolver of the system (`/etc/hosts`, `/etc/resolv.conf`), or of the servers that a cluster names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{Resolver as Hickory, TokioResolver};
use parking_lot::Mutex;

use super::{ResolveError, Resolved, Resolver};
use crate::config::cluster::{DnsFamily, DnsOptions};

/// Resolves through hickory. One resolver for each family and list of servers, made at first use; made anew after a
/// failure, so that a changed `resolv.conf` is found.
#[derive(Default)]
pub struct SystemResolver {
    resolvers: Mutex<Vec<(Kind, Arc<TokioResolver>)>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    strategy: LookupIpStrategy,
    servers: Vec<SocketAddr>,
}

impl SystemResolver {
    fn resolver(&self, kind: &Kind) -> Result<Arc<TokioResolver>, ResolveError> {
        let mut resolvers = self.resolvers.lock();
        if let Some((_, resolver)) = resolvers.iter().find(|(known, _)| known == kind) {
            return Ok(Arc::clone(resolver));
        }
        let resolver = Arc::new(build(kind).map_err(failed)?);
        resolvers.push((kind.clone(), Arc::clone(&resolver)));
        Ok(resolver)
    }

    fn forget(&self, kind: &Kind) {
        self.resolvers.lock().retain(|(known, _)| known != kind);
    }
}

fn build(kind: &Kind) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = if kind.servers.is_empty() {
        Hickory::builder(provider)?
    } else {
        let servers = kind.servers.iter().map(name_server).collect();
        Hickory::builder_with_config(
            ResolverConfig::from_parts(None, Vec::new(), servers),
            provider,
        )
    };
    configure(builder.options_mut(), kind.strategy);
    builder.build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

fn configure(options: &mut ResolverOpts, strategy: LookupIpStrategy) {
    options.ip_strategy = strategy;
    options.use_hosts_file = ResolveHosts::Always;
    // The schedule is the cluster's: every question is asked.
    options.cache_size = 0;
}

fn failed(error: NetError) -> ResolveError {
    if error.is_no_records_found() {
        ResolveError::NoAddresses
    } else {
        ResolveError::Failed(error.to_string().into())
    }
}

impl Resolver for SystemResolver {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        options: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move {
            if let Err(error) = Name::from_utf8(name) {
                // No answer would tell, and no new resolver would help.
                return Err(ResolveError::Failed(error.to_string().into()));
            }
            let kind = Kind {
                strategy: match options.family {
                    DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
                    DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
                    DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
                    DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
                    DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
                },
                servers: options.resolvers.clone(),
            };
            let lookup = match self.resolver(&kind)?.lookup_ip(name).await.map_err(failed) {
                Ok(lookup) => lookup,
                Err(error) => {
                    if error != ResolveError::NoAddresses {
                        self.forget(&kind);
                    }
                    return Err(error);
                }
            };
            let addresses: Vec<_> = lookup.iter().collect();
            if addresses.is_empty() {
                return Err(ResolveError::NoAddresses);
            }
            let ttl = lookup
                .as_lookup()
                .answers()
                .iter()
                .map(|record| record.ttl)
                .min()
                .map(|seconds| Duration::from_secs(seconds.into()));
            Ok(Resolved { addresses, ttl })
        })
    }
}

impl std::fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemResolver").finish_non_exhaustive()
    }
}
