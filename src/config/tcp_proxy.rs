//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy` as believed.

pub(in crate::config) mod parse;

use std::sync::Arc;
use std::time::Duration;

use super::access_log::{AccessLog, PluginLog};

/// Connections are joined to a host of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpProxy {
    /// `stat_prefix`: statistics are `tcp.<stat_prefix>.…`.
    pub stat_prefix: Box<str>,
    /// `cluster` or `weighted_clusters`; never empty.
    pub clusters: Vec<WeightedCluster>,
    /// `idle_timeout`: nothing is received or sent for so long; default 1 h, `None` without end.
    pub idle_timeout: Option<Duration>,
    /// `max_downstream_connection_duration`.
    pub max_duration: Option<Duration>,
    /// `max_downstream_connection_duration_jitter_percentage`: at most so much more.
    pub max_duration_jitter: f64,
    /// `max_connect_attempts`, at least 1.
    pub max_connect_attempts: u32,
    /// `access_log`, those that are plugins apart.
    pub access_log: Vec<AccessLog>,
    /// Those that are plugins.
    pub plugin_logs: Vec<PluginLog>,
    /// The listener's `per_connection_buffer_limit_bytes`.
    pub buffer_limit: usize,
}

/// A cluster with its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// Its name.
    pub name: Arc<str>,
    /// At least 1.
    pub weight: u32,
}

impl TcpProxy {
    /// The cluster of a connection that draws the lot `random`.
    pub fn choose(&self, random: u64) -> &Arc<str> {
        let total: u64 = self.clusters.iter().map(|one| u64::from(one.weight)).sum();
        let mut left = random % total.max(1);
        for one in &self.clusters {
            match left.checked_sub(u64::from(one.weight)) {
                Some(rest) => left = rest,
                None => return &one.name,
            }
        }
        // Not reached: the lot is below the sum of the weights.
        &self.clusters[0].name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::stub;
    use crate::pb;
    use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;

    fn parse(yaml: &str) -> Result<TcpProxy, String> {
        let proto = pb::from_yaml::<proto::TcpProxy>(yaml).expect("a TcpProxy");
        TcpProxy::parse(proto, 1000, &stub::context()).map_err(|error| error.to_string())
    }

    #[test]
    fn unset_fields_are_envoys_defaults() {
        let proxy = parse("{stat_prefix: s, cluster: a}").expect("valid");
        assert_eq!(proxy.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(proxy.max_connect_attempts, 1);
        assert_eq!((proxy.max_duration, proxy.buffer_limit), (None, 1000));
        assert_eq!(&**proxy.choose(7), "a");
        let endless = parse("{stat_prefix: s, cluster: a, idle_timeout: 0s}").expect("valid");
        assert_eq!(endless.idle_timeout, None);
    }

    #[test]
    fn weights_share_the_connections_out() {
        let proxy = parse(
            "{stat_prefix: s, weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 3}]}}",
        )
        .expect("valid");
        let chosen: String = (0..8).map(|lot| &**proxy.choose(lot)).collect();
        assert_eq!(chosen, "abbbabbb");
    }

    #[test]
    fn what_is_wrong_or_not_supported_is_named() {
        for (rest, error) in [
            ("", "cluster_specifier: value is required"),
            (
                "weighted_clusters: {}",
                "weighted_clusters.clusters: value must contain at least 1 item(s)",
            ),
            (
                "weighted_clusters: {clusters: [{name: a}]}",
                "weighted_clusters.clusters[0].weight: value must be greater than or equal to 1",
            ),
            (
                "cluster: a, max_connect_attempts: 0",
                "max_connect_attempts: value must be greater than or equal to 1",
            ),
            (
                "cluster: a, tunneling_config: {hostname: h}",
                "tunneling_config: not supported: not implemented by this build yet",
            ),
            (
                "cluster: a, upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 1",
                "upstream_connect_mode: not supported: not implemented by this build yet",
            ),
            (
                "cluster: a, check_drain_close: true",
                "check_drain_close: not supported: not implemented by this build yet",
            ),
            (
                "cluster: a, max_downstream_connection_duration: 0s",
                "max_downstream_connection_duration: value must be greater than or equal to 1ms",
            ),
        ] {
            assert_eq!(
                parse(&format!("{{stat_prefix: s, {rest}}}")),
                Err(error.to_owned()),
                "{rest}"
            );
        }
        assert_eq!(
            parse("{cluster: a}"),
            Err("stat_prefix: value length must be at least 1 characters".to_owned())
        );
    }
}
