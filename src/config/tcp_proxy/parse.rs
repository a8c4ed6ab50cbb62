//! Protobuf to [`TcpProxy`].

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::time::Duration;

use super::{TcpProxy, WeightedCluster};
use crate::config::access_log::{AccessLog, PluginLog};
use crate::config::error::At;
use crate::config::field::{
    LATER, at_least_a_millisecond, each, enumeration, flag, non_empty, non_empty_list, percent,
    refuse, required, timeout, uint32_within,
};
use crate::config::ignored::Ignored;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster as WeightedProto, weighted_cluster::ClusterWeight,
};

/// Envoy's default of `idle_timeout`.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored(
        "access_log_flush_interval",
        "records are written at the end of a connection",
    ),
    Ignored(
        "access_log_options",
        "records are written at the end of a connection",
    ),
    Ignored("downstream_idle_timeout", "Envoy does not use it either"),
    Ignored(
        "flush_access_log_on_connected",
        "records are written at the end of a connection",
    ),
    Ignored("hash_policy", "no balancer of this build hashes"),
    Ignored(
        "metadata_match",
        "only the subset load balancer reads it, and clusters that ask for that are refused",
    ),
    Ignored(
        "proxy_protocol_tlv_merge_policy",
        "there is no PROXY protocol to upstreams",
    ),
    Ignored(
        "proxy_protocol_tlvs",
        "there is no PROXY protocol to upstreams",
    ),
    Ignored("upstream_idle_timeout", "Envoy does not use it either"),
];

impl TcpProxy {
    /// Validates a proxy of a listener whose `per_connection_buffer_limit_bytes` is `buffer_limit`.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::TcpProxy,
        buffer_limit: usize,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let proto::TcpProxy {
            stat_prefix,
            on_demand,
            metadata_match: _,
            idle_timeout,
            downstream_idle_timeout: _,
            upstream_idle_timeout: _,
            mut access_log,
            max_connect_attempts,
            backoff_options,
            hash_policy: _,
            tunneling_config,
            max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage,
            access_log_flush_interval: _,
            flush_access_log_on_connected: _,
            access_log_options: _,
            proxy_protocol_tlvs: _,
            proxy_protocol_tlv_merge_policy: _,
            upstream_connect_mode,
            max_early_data_bytes,
            check_drain_close,
            cluster_specifier,
        } = proto;
        let stat_prefix = non_empty(stat_prefix, "stat_prefix")?;
        refuse(on_demand.is_some(), "on_demand", LATER)?;
        refuse(backoff_options.is_some(), "backoff_options", LATER)?;
        refuse(tunneling_config.is_some(), "tunneling_config", LATER)?;
        let mode = enumeration::<proto::UpstreamConnectMode>(
            upstream_connect_mode,
            "upstream_connect_mode",
        )?;
        refuse(
            mode != proto::UpstreamConnectMode::Immediate,
            "upstream_connect_mode",
            LATER,
        )?;
        refuse(
            max_early_data_bytes.is_some(),
            "max_early_data_bytes",
            LATER,
        )?;
        refuse(flag(check_drain_close, false), "check_drain_close", LATER)?;
        let clusters = match required(cluster_specifier, "cluster_specifier")? {
            ClusterSpecifier::Cluster(name) => vec![WeightedCluster {
                name: name.into(),
                weight: 1,
            }],
            ClusterSpecifier::WeightedClusters(WeightedProto { clusters }) => {
                non_empty_list(clusters, "clusters")
                    .and_then(|clusters| each(clusters, "clusters", weighted))
                    .at("weighted_clusters")?
            }
        };
        Ok(Self {
            stat_prefix: stat_prefix.into(),
            clusters,
            idle_timeout: timeout(idle_timeout, Some(DEFAULT_IDLE_TIMEOUT), "idle_timeout")?,
            max_duration: at_least_a_millisecond(
                max_downstream_connection_duration,
                "max_downstream_connection_duration",
            )?,
            max_duration_jitter: percent(
                max_downstream_connection_duration_jitter_percentage,
                "max_downstream_connection_duration_jitter_percentage",
            )?
            .unwrap_or_default(),
            max_connect_attempts: uint32_within(
                max_connect_attempts,
                1,
                u32::MAX,
                "max_connect_attempts",
            )?
            .unwrap_or(1),
            plugin_logs: PluginLog::take_all(&mut access_log, context)?,
            access_log: AccessLog::parse_all(access_log, context)?,
            buffer_limit,
        })
    }
}

fn weighted(proto: ClusterWeight) -> Result<WeightedCluster, ConfigError> {
    let ClusterWeight {
        name,
        weight,
        metadata_match: _,
    } = proto;
    let name = non_empty(name, "name")?;
    if weight == 0 {
        return Err(ConfigError::invalid("value must be greater than or equal to 1").at("weight"));
    }
    Ok(WeightedCluster {
        name: name.into(),
        weight,
    })
}
