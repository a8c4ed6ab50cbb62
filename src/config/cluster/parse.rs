//! Protobuf to [`Cluster`]; discovery is in `discovery`, balancing in `balancer`, protocols in `upstream_protocol`.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, balancer, discovery, upstream_protocol};
use crate::config::any::{holds, is_no_op, resolve, unknown_extension, unsupported_extension};
use crate::config::endpoint::address;
use crate::config::error::At;
use crate::config::field::{
    LATER, each, flag, non_empty, percent, positive, refuse, required, uint32, uint32_within,
};
use crate::config::ignored::Ignored;
use crate::config::listener::chain::plain_text;
use crate::config::protocol::tcp_keepalive;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::cluster::v3 as proto;
use crate::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use crate::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use crate::pb::envoy::config::cluster::v3::cluster::{CommonLbConfig, LbSubsetConfig};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::upstreams::http::generic::v3::GenericConnectionPoolProto;
use crate::pb::envoy::extensions::upstreams::http::http::v3::HttpConnectionPoolProto;

/// Envoy's default of `connect_timeout`.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default of `per_connection_buffer_limit_bytes`.
const DEFAULT_BUFFER_LIMIT: usize = 1 << 20;
/// Percent.
const DEFAULT_PANIC_THRESHOLD: f64 = 50.0;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored(
        "aggression",
        "of slow start: endpoints take their full share at once",
    ),
    Ignored(
        "thresholds",
        "of circuit breakers: limits, Envoy's default of 1024 included, are not enforced yet",
    ),
    Ignored(
        "cleanup_interval",
        "for original-destination clusters, which are refused",
    ),
    Ignored(
        "close_connections_on_host_health_failure",
        "idle connections of unhealthy endpoints end by their timeouts",
    ),
    Ignored(
        "close_connections_on_host_set_change",
        "connections of removed endpoints are closed; others go on",
    ),
    Ignored(
        "consistent_hashing_lb_config",
        "for hashing balancers, which are refused",
    ),
    Ignored("dns_min_refresh_rate", "the refresh rate holds"),
    Ignored(
        "dns_resolver_options",
        "lookups use UDP, and TCP where an answer is cut",
    ),
    Ignored(
        "filter_unroutable_families",
        "an address that cannot be reached fails as any other",
    ),
    Ignored("freebind", "socket tuning"),
    Ignored(
        "happy_eyeballs_config",
        "only an endpoint's first address is used",
    ),
    Ignored(
        "ignore_health_on_host_removal",
        "an endpoint that is removed is gone at once",
    ),
    Ignored(
        "ignore_new_hosts_until_first_hc",
        "active health checks are refused",
    ),
    Ignored("lrs_report_endpoint_metrics", "load is not reported"),
    Ignored("lrs_server", "load is not reported"),
    Ignored("outlier_detection", "endpoints are not ejected yet"),
    Ignored(
        "max_connection_duration",
        "of an upstream: connections end when they are idle or used up",
    ),
    Ignored(
        "max_headers_count",
        "of an upstream: the codec's own limit of response heads holds",
    ),
    Ignored(
        "override_host_status",
        "for the override-host balancer, which is refused",
    ),
    Ignored(
        "per_connection_buffer_high_watermark_timeout",
        "the idle timeouts end such connections",
    ),
    Ignored(
        "preconnect_policy",
        "connections are made when they are needed",
    ),
    Ignored(
        "set_local_interface_name_on_upstream_connections",
        "nothing reads the name",
    ),
    Ignored(
        "slow_start_config",
        "endpoints take their full share at once",
    ),
    Ignored("socket_options", "socket tuning"),
    Ignored("stats_matcher", "all statistics are kept"),
    Ignored("track_cluster_stats", "optional statistics are not kept"),
    Ignored("track_timeout_budgets", "optional statistics are not kept"),
    Ignored("update_merge_window", "an update is applied at once"),
    Ignored(
        "upstream_http_protocol_options",
        "SNI and SAN validation; upstream TLS is refused",
    ),
    Ignored(
        "use_tcp_for_dns_lookups",
        "lookups use UDP, and TCP where an answer is cut",
    ),
    Ignored(
        "validate_network_namespaces",
        "network namespaces are refused",
    ),
    Ignored(
        "zone_aware_lb_config",
        "localities are equal, as for a proxy outside of any zone",
    ),
];

impl Cluster {
    /// Validates a message.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(proto: proto::Cluster, context: &ParseContext<'_>) -> Result<Self, ConfigError> {
        let proto::Cluster {
            transport_socket_matches,
            transport_socket_matcher,
            name,
            alt_stat_name,
            stats_matcher: _,
            eds_cluster_config,
            connect_timeout,
            per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout: _,
            lb_policy,
            load_assignment,
            health_checks,
            max_requests_per_connection,
            circuit_breakers,
            upstream_http_protocol_options: _,
            common_http_protocol_options,
            http_protocol_options,
            http2_protocol_options,
            typed_extension_protocol_options,
            dns_refresh_rate,
            dns_jitter,
            dns_failure_refresh_rate,
            respect_dns_ttl,
            dns_lookup_family,
            dns_resolvers,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config,
            typed_dns_resolver_config,
            wait_for_warm_on_init,
            outlier_detection,
            cleanup_interval,
            upstream_bind_config,
            lb_subset_config,
            common_lb_config,
            transport_socket,
            metadata,
            protocol_selection,
            upstream_connection_options,
            close_connections_on_host_health_failure: _,
            ignore_health_on_host_removal: _,
            filters,
            load_balancing_policy,
            lrs_server: _,
            lrs_report_endpoint_metrics: _,
            track_timeout_budgets: _,
            upstream_config,
            track_cluster_stats: _,
            preconnect_policy: _,
            connection_pool_per_downstream_connection,
            queuing_policies,
            cluster_discovery_type,
            lb_config,
        } = proto;
        let name = non_empty(name, "name")?;
        plain_text(transport_socket).at("transport_socket")?;
        refuse(
            !transport_socket_matches.is_empty(),
            "transport_socket_matches",
            "upstream TLS is not implemented by this build yet",
        )?;
        refuse(
            transport_socket_matcher.is_some(),
            "transport_socket_matcher",
            LATER,
        )?;
        refuse(
            !health_checks.is_empty(),
            "health_checks",
            "active health checks are not implemented by this build yet",
        )?;
        refuse(
            connection_pool_per_downstream_connection,
            "connection_pool_per_downstream_connection",
            LATER,
        )?;
        refuse(queuing_policies.is_some(), "queuing_policies", LATER)?;
        refuse(
            lb_subset_config
                .as_ref()
                .is_some_and(|subset: &LbSubsetConfig| !subset.subset_selectors.is_empty()),
            "lb_subset_config",
            LATER,
        )?;
        breakers(circuit_breakers).at("circuit_breakers")?;
        outliers(outlier_detection).at("outlier_detection")?;
        connection_pool(upstream_config).at("upstream_config")?;
        each(filters, "filters", filter)?;
        positive(cleanup_interval, "cleanup_interval")?;

        let dns = discovery::DnsFields {
            refresh_rate: dns_refresh_rate,
            jitter: dns_jitter,
            failure_refresh_rate: dns_failure_refresh_rate,
            respect_ttl: respect_dns_ttl,
            lookup_family: dns_lookup_family,
            resolvers: dns_resolvers,
            resolution_config: dns_resolution_config,
            typed_resolver_config: typed_dns_resolver_config,
        };
        let (discovery, dns) = discovery::parse(
            &name,
            cluster_discovery_type,
            load_assignment,
            eds_cluster_config,
            dns,
        )?;
        let http = upstream_protocol::parse(
            typed_extension_protocol_options,
            upstream_protocol::Deprecated {
                common: common_http_protocol_options,
                http1: http_protocol_options,
                http2: http2_protocol_options,
                selection: protocol_selection,
            },
            context.extensions,
        )?;
        let lb = common_lb(common_lb_config).at("common_lb_config")?;
        let (balancer, locality_weighted) =
            balancer::parse(&name, lb_policy, lb_config, load_balancing_policy)?;
        let proto::UpstreamConnectionOptions {
            tcp_keepalive: keepalive,
            set_local_interface_name_on_upstream_connections: _,
            happy_eyeballs_config: _,
        } = upstream_connection_options.unwrap_or_default();
        Ok(Self {
            stat_name: if alt_stat_name.is_empty() {
                name.as_str().into()
            } else {
                alt_stat_name.into()
            },
            name: name.into(),
            discovery,
            balancer,
            connect_timeout: positive(connect_timeout, "connect_timeout")?
                .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
            buffer_limit: match uint32(per_connection_buffer_limit_bytes) {
                None => DEFAULT_BUFFER_LIMIT,
                // Zero is no limit.
                Some(0) => u32::MAX as usize,
                Some(limit) => limit as usize,
            },
            protocol: http.protocol,
            upstream_filters: http.filters,
            idle_timeout: http.common.idle_timeout,
            max_requests_per_connection: http
                .common
                .max_requests_per_connection
                .or_else(|| uint32(max_requests_per_connection).filter(|max| *max > 0)),
            max_stream_duration: http.common.max_stream_duration,
            healthy_panic_threshold: lb.panic_threshold,
            locality_weighted: locality_weighted || lb.locality_weighted,
            dns,
            tcp_keepalive: keepalive.map(tcp_keepalive),
            source_address: upstream_bind_config
                .map(bind)
                .transpose()
                .at("upstream_bind_config")?
                .flatten(),
            metadata: metadata.map(Arc::new),
            wait_for_warm_on_init: flag(wait_for_warm_on_init, true),
        })
    }
}

/// Limits are not enforced yet; what is no limit at all is refused as ever.
fn breakers(proto: Option<proto::CircuitBreakers>) -> Result<(), ConfigError> {
    let proto::CircuitBreakers {
        thresholds: _,
        per_host_thresholds,
    } = proto.unwrap_or_default();
    for (index, threshold) in per_host_thresholds.into_iter().enumerate() {
        let other = Thresholds {
            priority: 0,
            max_connections: None,
            ..threshold
        };
        if other != Thresholds::default() {
            return Err(
                ConfigError::invalid("Unsupported field in per_host_thresholds")
                    .at_index("per_host_thresholds", index),
            );
        }
    }
    Ok(())
}

/// Endpoints are not ejected yet; values out of range are refused as ever.
fn outliers(proto: Option<proto::OutlierDetection>) -> Result<(), ConfigError> {
    let Some(proto) = proto else { return Ok(()) };
    for (field, value) in [
        ("max_ejection_percent", proto.max_ejection_percent),
        ("enforcing_consecutive_5xx", proto.enforcing_consecutive_5xx),
        ("enforcing_success_rate", proto.enforcing_success_rate),
        (
            "enforcing_consecutive_gateway_failure",
            proto.enforcing_consecutive_gateway_failure,
        ),
        (
            "enforcing_consecutive_local_origin_failure",
            proto.enforcing_consecutive_local_origin_failure,
        ),
        (
            "enforcing_local_origin_success_rate",
            proto.enforcing_local_origin_success_rate,
        ),
        (
            "failure_percentage_threshold",
            proto.failure_percentage_threshold,
        ),
        (
            "enforcing_failure_percentage",
            proto.enforcing_failure_percentage,
        ),
        (
            "enforcing_failure_percentage_local_origin",
            proto.enforcing_failure_percentage_local_origin,
        ),
    ] {
        uint32_within(value, 0, 100, field)?;
    }
    for (field, value) in [
        ("interval", proto.interval),
        ("base_ejection_time", proto.base_ejection_time),
        ("max_ejection_time", proto.max_ejection_time),
    ] {
        positive(value, field)?;
    }
    Ok(())
}

struct CommonLb {
    panic_threshold: f64,
    locality_weighted: bool,
}

fn common_lb(proto: Option<CommonLbConfig>) -> Result<CommonLb, ConfigError> {
    let CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window: _,
        ignore_new_hosts_until_first_hc: _,
        close_connections_on_host_set_change: _,
        consistent_hashing_lb_config: _,
        override_host_status: _,
        locality_config_specifier,
    } = proto.unwrap_or_default();
    Ok(CommonLb {
        panic_threshold: percent(healthy_panic_threshold, "healthy_panic_threshold")?
            .unwrap_or(DEFAULT_PANIC_THRESHOLD),
        locality_weighted: matches!(
            locality_config_specifier,
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
        ),
    })
}

/// The generic pool makes HTTP connections for HTTP requests: what this build does.
fn connection_pool(proto: Option<core::TypedExtensionConfig>) -> Result<(), ConfigError> {
    let Some(core::TypedExtensionConfig { name, typed_config }) = proto else {
        return Ok(());
    };
    let any = required(typed_config, "typed_config")?;
    let any = resolve(&any).at("typed_config")?;
    if holds::<GenericConnectionPoolProto>(&any) || holds::<HttpConnectionPoolProto>(&any) {
        return Ok(());
    }
    Err(unsupported_extension(&name, &any.type_url))
}

/// An upstream network filter: only what does nothing.
fn filter(proto: proto::Filter) -> Result<(), ConfigError> {
    let proto::Filter {
        name,
        typed_config,
        config_discovery,
    } = proto;
    let name = non_empty(name, "name")?;
    refuse(config_discovery.is_some(), "config_discovery", LATER)?;
    let Some(any) = typed_config else {
        return Err(unknown_extension(&name, ""));
    };
    let any = resolve(&any).at("typed_config")?;
    if is_no_op(&name, &any) {
        return Ok(());
    }
    Err(unsupported_extension(&name, &any.type_url))
}

fn bind(proto: core::BindConfig) -> Result<Option<std::net::SocketAddr>, ConfigError> {
    let core::BindConfig {
        source_address,
        freebind: _,
        socket_options: _,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces: _,
    } = proto;
    refuse(
        !extra_source_addresses.is_empty(),
        "extra_source_addresses",
        LATER,
    )?;
    refuse(
        !additional_source_addresses.is_empty(),
        "additional_source_addresses",
        LATER,
    )?;
    refuse(
        local_address_selector.is_some(),
        "local_address_selector",
        LATER,
    )?;
    source_address
        .map(address::numeric_socket)
        .transpose()
        .at("source_address")
}

#[cfg(test)]
mod tests;
