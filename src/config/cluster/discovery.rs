//! Where a cluster's hosts come from, and how DNS is asked.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{ConfigSource, Discovery, DnsFamily, DnsOptions};
use crate::config::ConfigError;
use crate::config::any::{holds, resolve, unpack, unsupported_extension};
use crate::config::endpoint::{Address, Endpoints};
use crate::config::error::At;
use crate::config::field::{
    LATER, above_a_millisecond, duration, each, enumeration, non_empty, refuse, required,
};
use crate::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
    RefreshRate,
};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as TypedFamily;
use crate::pb::envoy::extensions::clusters::dns::v3::{DnsCluster, dns_cluster};
use crate::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use crate::pb::envoy::extensions::network::dns_resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig;
use crate::pb::google::protobuf::Duration as ProtoDuration;

/// Envoy's default of `dns_refresh_rate`.
const DEFAULT_REFRESH: Duration = Duration::from_secs(5);

/// Envoy's own words for a logical cluster that is not one host.
const ONE_ENDPOINT: &str =
    "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint";

/// The cluster's own DNS fields, which `DnsCluster` replaces.
pub(super) struct DnsFields {
    pub(super) refresh_rate: Option<ProtoDuration>,
    pub(super) jitter: Option<ProtoDuration>,
    pub(super) failure_refresh_rate: Option<RefreshRate>,
    pub(super) respect_ttl: bool,
    pub(super) lookup_family: i32,
    pub(super) resolvers: Vec<core::Address>,
    pub(super) resolution_config: Option<core::DnsResolutionConfig>,
    pub(super) typed_resolver_config: Option<core::TypedExtensionConfig>,
}

enum Kind {
    Static,
    StrictDns,
    LogicalDns,
    Eds,
}

/// The discovery of the cluster called `name`.
pub(super) fn parse(
    name: &str,
    kind: Option<ClusterDiscoveryType>,
    assignment: Option<ClusterLoadAssignment>,
    eds: Option<EdsClusterConfig>,
    fields: DnsFields,
) -> Result<(Discovery, DnsOptions), ConfigError> {
    let own = dns_options(fields)?;
    let (kind, dns) = match kind {
        None => (Kind::Static, own),
        Some(ClusterDiscoveryType::Type(kind)) => (by_enumeration(kind)?, own),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            by_name(custom, own).at("cluster_type")?
        }
    };
    if !matches!(kind, Kind::Eds) && eds.is_some() {
        return Err(ConfigError::invalid(
            "eds_cluster_config set in a non-EDS cluster",
        ));
    }
    let endpoints = |names: bool| -> Result<Arc<Endpoints>, ConfigError> {
        let parsed = assignment
            .map(|assignment| Endpoints::parse_assignment(assignment, names))
            .transpose()
            .at("load_assignment")?;
        Ok(Arc::new(parsed.unwrap_or_else(|| Endpoints::none(name))))
    };
    let discovery = match kind {
        Kind::Static => Discovery::Static(endpoints(false)?),
        Kind::StrictDns => Discovery::StrictDns(endpoints(true)?),
        Kind::LogicalDns => {
            let endpoints = endpoints(true)?;
            let single = matches!(
                endpoints.localities.as_slice(),
                [locality] if locality.endpoints.len() == 1
            );
            if !single {
                return Err(ConfigError::invalid(ONE_ENDPOINT).at("load_assignment"));
            }
            Discovery::LogicalDns(endpoints)
        }
        Kind::Eds => discovered(name, eds)?,
    };
    Ok((discovery, dns))
}

fn by_enumeration(kind: i32) -> Result<Kind, ConfigError> {
    match enumeration::<DiscoveryType>(kind, "type")? {
        DiscoveryType::Static => Ok(Kind::Static),
        DiscoveryType::StrictDns => Ok(Kind::StrictDns),
        DiscoveryType::LogicalDns => Ok(Kind::LogicalDns),
        DiscoveryType::Eds => Ok(Kind::Eds),
        DiscoveryType::OriginalDst => Err(ConfigError::unsupported(
            "type",
            "ORIGINAL_DST is not implemented by this build yet",
        )),
    }
}

fn by_name(custom: CustomClusterType, own: DnsOptions) -> Result<(Kind, DnsOptions), ConfigError> {
    let CustomClusterType { name, typed_config } = custom;
    let name = non_empty(name, "name")?;
    match (name.as_str(), typed_config) {
        ("envoy.cluster.static", _) => Ok((Kind::Static, own)),
        ("envoy.cluster.eds", _) => Ok((Kind::Eds, own)),
        ("envoy.cluster.strict_dns", None) => Ok((Kind::StrictDns, own)),
        ("envoy.cluster.logical_dns", None) => Ok((Kind::LogicalDns, own)),
        (_, Some(any)) => {
            let any = resolve(&any).at("typed_config")?;
            if holds::<DnsCluster>(&any) {
                return dns_cluster(unpack(&any)?).at("typed_config");
            }
            let error = unsupported_extension(&name, &any.type_url);
            if matches!(error.kind, crate::config::error::ErrorKind::Unsupported(_)) {
                return Err(error);
            }
            Err(no_factory(&name))
        }
        ("envoy.cluster.original_dst", None) => Err(ConfigError::unsupported("name", LATER)),
        (name, None) => Err(no_factory(name)),
    }
}

fn no_factory(name: &str) -> ConfigError {
    ConfigError::invalid(format!(
        "Didn't find a registered cluster factory implementation for name: '{name}'"
    ))
}

fn dns_cluster(proto: DnsCluster) -> Result<(Kind, DnsOptions), ConfigError> {
    let DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate: _,
    } = proto;
    let refresh = refresh_rate(dns_refresh_rate)?;
    let failure = dns_failure_refresh_rate.map(
        |dns_cluster::RefreshRate {
             base_interval,
             max_interval,
         }| (base_interval, max_interval),
    );
    // Envoy takes an undefined number for the default.
    let family = match TypedFamily::try_from(dns_lookup_family).unwrap_or_default() {
        TypedFamily::Unspecified | TypedFamily::Auto => DnsFamily::Auto,
        TypedFamily::V4Only => DnsFamily::V4Only,
        TypedFamily::V6Only => DnsFamily::V6Only,
        TypedFamily::V4Preferred => DnsFamily::V4Preferred,
        TypedFamily::All => DnsFamily::All,
    };
    let options = DnsOptions {
        refresh,
        respect_ttl: respect_dns_ttl,
        failure_refresh: failure_refresh(failure, refresh)?,
        jitter: duration(dns_jitter, "dns_jitter")?.unwrap_or_default(),
        family,
        resolvers: typed_resolvers(typed_dns_resolver_config)
            .at("typed_dns_resolver_config")?
            .unwrap_or_default(),
    };
    let kind = if all_addresses_in_single_endpoint {
        Kind::LogicalDns
    } else {
        Kind::StrictDns
    };
    Ok((kind, options))
}

fn dns_options(fields: DnsFields) -> Result<DnsOptions, ConfigError> {
    let DnsFields {
        refresh_rate: rate,
        jitter,
        failure_refresh_rate,
        respect_ttl,
        lookup_family,
        resolvers: deprecated_resolvers,
        resolution_config,
        typed_resolver_config,
    } = fields;
    let refresh = refresh_rate(rate)?;
    let failure = failure_refresh_rate.map(
        |RefreshRate {
             base_interval,
             max_interval,
         }| (base_interval, max_interval),
    );
    let family = match enumeration::<DnsLookupFamily>(lookup_family, "dns_lookup_family")? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    // The newest form wins, as in Envoy.
    let resolvers = match typed_resolvers(typed_resolver_config).at("typed_dns_resolver_config")? {
        Some(resolvers) => resolvers,
        None => match resolution_config {
            Some(core::DnsResolutionConfig {
                resolvers: list,
                dns_resolver_options: _,
            }) => addresses(list).at("dns_resolution_config")?,
            None => each(deprecated_resolvers, "dns_resolvers", resolver)?,
        },
    };
    Ok(DnsOptions {
        refresh,
        respect_ttl,
        failure_refresh: failure_refresh(failure, refresh)?,
        jitter: duration(jitter, "dns_jitter")?.unwrap_or_default(),
        family,
        resolvers,
    })
}

fn refresh_rate(value: Option<ProtoDuration>) -> Result<Duration, ConfigError> {
    Ok(above_a_millisecond(value, "dns_refresh_rate")?.unwrap_or(DEFAULT_REFRESH))
}

/// Base and cap.
fn failure_refresh(
    value: Option<(Option<ProtoDuration>, Option<ProtoDuration>)>,
    refresh: Duration,
) -> Result<(Duration, Duration), ConfigError> {
    let Some((base, max)) = value else {
        return Ok((refresh, refresh));
    };
    let field = "dns_failure_refresh_rate";
    let base = required(
        above_a_millisecond(base, "base_interval").at(field)?,
        "base_interval",
    )
    .at(field)?;
    let max = above_a_millisecond(max, "max_interval")
        .at(field)?
        .unwrap_or(base.saturating_mul(10));
    if max < base {
        return Err(ConfigError::invalid(
            "dns_failure_refresh_rate must have max_interval greater than or equal to the base_interval",
        ));
    }
    Ok((base, max))
}

/// `None` where nothing is said.
fn typed_resolvers(
    proto: Option<core::TypedExtensionConfig>,
) -> Result<Option<Vec<SocketAddr>>, ConfigError> {
    let Some(core::TypedExtensionConfig { name, typed_config }) = proto else {
        return Ok(None);
    };
    let any = required(typed_config, "typed_config")?;
    let any = resolve(&any).at("typed_config")?;
    if holds::<GetAddrInfoDnsResolverConfig>(&any) {
        // The system's resolver, by another way.
        return Ok(Some(Vec::new()));
    }
    if !holds::<CaresDnsResolverConfig>(&any) {
        return Err(unsupported_extension(&name, &any.type_url));
    }
    // What tunes c-ares itself (queries, tries, caches) is left to our own resolver.
    let config: CaresDnsResolverConfig = unpack(&any)?;
    if config.use_resolvers_as_fallback {
        return Ok(Some(Vec::new()));
    }
    addresses(config.resolvers).map(Some).at("typed_config")
}

fn addresses(list: Vec<core::Address>) -> Result<Vec<SocketAddr>, ConfigError> {
    each(list, "resolvers", resolver)
}

fn resolver(proto: core::Address) -> Result<SocketAddr, ConfigError> {
    match Address::parse_numeric(proto)? {
        Address::Socket(address) => Ok(address),
        Address::Name(..) | Address::Pipe(_) => {
            Err(ConfigError::invalid("a resolver must be an IP address"))
        }
    }
}

fn discovered(name: &str, eds: Option<EdsClusterConfig>) -> Result<Discovery, ConfigError> {
    let EdsClusterConfig {
        eds_config,
        service_name,
    } = eds.ok_or_else(|| {
        ConfigError::invalid("cannot create an EDS cluster without an EDS config")
    })?;
    let source = required(eds_config, "eds_config")
        .and_then(|source| ConfigSource::parse(source).at("eds_config"))
        .at("eds_cluster_config")?;
    refuse(
        service_name.starts_with("xdstp:"),
        "service_name",
        "xdstp resource names are not implemented by this build yet",
    )
    .at("eds_cluster_config")?;
    Ok(Discovery::Eds {
        service_name: if service_name.is_empty() {
            name.into()
        } else {
            service_name.into()
        },
        source,
    })
}
