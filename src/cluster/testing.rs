//! What the tests of this module share: configurations, a runtime, load assignments in a line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Runtime;
use super::dns::{ResolveError, Resolved, Resolver};
use crate::base::Shards;
use crate::config::Cluster;
use crate::config::cluster::{
    Balancer, ConfigSource, Discovery, DnsFamily, DnsOptions, SourceSpecifier, UpstreamProtocol,
};
use crate::config::endpoint::{
    Address, Endpoint, Endpoints, HealthStatus, Locality, LocalityEndpoints,
};
use crate::telemetry::metrics::Registry;

/// Fails every name.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        _options: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move { Err(ResolveError::Failed(name.into())) })
    }
}

pub(crate) fn runtime() -> Runtime {
    runtime_with(Arc::new(NoResolver))
}

pub(crate) fn runtime_with(resolver: Arc<dyn Resolver>) -> Runtime {
    Runtime {
        registry: Registry::new(Shards::for_workers(1)),
        resolver,
        connection_ids: Arc::new(AtomicU64::new(0)),
    }
}

pub(crate) fn socket(text: &str) -> Address {
    Address::Socket(text.parse().expect("a socket address"))
}

pub(crate) fn endpoint(address: Address) -> Endpoint {
    Endpoint {
        address,
        hostname: "".into(),
        health: HealthStatus::Unknown,
        weight: 1,
        metadata: None,
    }
}

/// One locality of priority 0.
pub(crate) fn endpoints(list: impl IntoIterator<Item = Endpoint>) -> Arc<Endpoints> {
    Arc::new(Endpoints {
        localities: vec![LocalityEndpoints {
            locality: Locality::default(),
            metadata: None,
            endpoints: list.into_iter().collect(),
            weight: None,
            priority: 0,
        }],
        overprovisioning_factor: 140,
        ..Endpoints::default()
    })
}

pub(crate) fn addresses(list: &[&str]) -> Arc<Endpoints> {
    endpoints(list.iter().map(|address| endpoint(socket(address))))
}

pub(crate) fn config(name: &str, discovery: Discovery) -> Cluster {
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        discovery,
        balancer: Balancer::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        buffer_limit: 1 << 20,
        protocol: UpstreamProtocol::Http1(crate::config::cluster::Http1Options::default()),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_requests_per_connection: None,
        max_stream_duration: None,
        healthy_panic_threshold: 50.0,
        locality_weighted: false,
        dns: DnsOptions {
            refresh: Duration::from_secs(5),
            respect_ttl: false,
            failure_refresh: (Duration::from_secs(5), Duration::from_secs(5)),
            jitter: Duration::ZERO,
            family: DnsFamily::Auto,
            resolvers: Vec::new(),
        },
        tcp_keepalive: None,
        source_address: None,
        metadata: None,
        wait_for_warm_on_init: true,
        upstream_filters: None,
    }
}

pub(crate) fn fixed(name: &str, address: SocketAddr) -> Cluster {
    let list = endpoints([endpoint(Address::Socket(address))]);
    config(name, Discovery::Static(list))
}

pub(crate) fn eds(name: &str) -> Cluster {
    config(
        name,
        Discovery::Eds {
            service_name: name.into(),
            source: ConfigSource {
                specifier: SourceSpecifier::Ads,
                initial_fetch_timeout: None,
            },
        },
    )
}
