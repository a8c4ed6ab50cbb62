//! Protobuf to [`Endpoints`].

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::sync::Arc;

use super::address::malformed;
use super::{Address, Endpoint, Endpoints, HealthStatus, Locality, LocalityEndpoints};
use crate::config::error::At;
use crate::config::field::{
    each, enumeration, non_empty, per_million, positive, refuse, required, uint32_within,
};
use crate::config::ignored::Ignored;
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::endpoint::v3 as proto;
use crate::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use crate::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload;
use crate::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use crate::pb::envoy::config::endpoint::v3::locality_lb_endpoints::LbConfig;

/// The lowest priority.
const MAX_PRIORITY: u32 = 128;

/// Percent: how far a priority's health may drop before the next one is used.
const DEFAULT_OVERPROVISIONING: u32 = 140;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored(
        "additional_addresses",
        "only an endpoint's first address is used",
    ),
    Ignored(
        "health_check_config",
        "clusters that ask for active health checks are refused",
    ),
    Ignored(
        "observability_name",
        "statistics of single endpoints are not kept",
    ),
    Ignored("proximity", "Envoy does not use it either"),
];

impl Endpoints {
    /// Validates an EDS resource: addresses must be numeric.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::ClusterLoadAssignment,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        let _ = context;
        Self::parse_assignment(proto, false)
    }

    /// Validates an EDS resource or a cluster's `load_assignment`, where DNS clusters have names to resolve.
    pub(in crate::config) fn parse_assignment(
        proto: proto::ClusterLoadAssignment,
        names: bool,
    ) -> Result<Self, ConfigError> {
        let proto::ClusterLoadAssignment {
            cluster_name,
            endpoints,
            named_endpoints,
            policy,
        } = proto;
        let cluster_name = non_empty(cluster_name, "cluster_name")?;
        refuse(
            !named_endpoints.is_empty(),
            "named_endpoints",
            "give endpoints where they are used",
        )?;
        let localities = each(endpoints, "endpoints", |locality| {
            LocalityEndpoints::parse(locality, names)
        })?;
        let Policy {
            drop_overloads,
            overprovisioning_factor,
            endpoint_stale_after,
            weighted_priority_health,
        } = policy.unwrap_or_default();
        let drop_overloads = each(drop_overloads, "drop_overloads", drop_overload).at("policy")?;
        if drop_overloads.len() > 1 {
            return Err(ConfigError::invalid(format!(
                "Cluster drop_overloads config has {} categories. Envoy only support one.",
                drop_overloads.len()
            ))
            .at("drop_overloads")
            .at("policy"));
        }
        let overprovisioning_factor = uint32_within(
            overprovisioning_factor,
            1,
            u32::MAX,
            "overprovisioning_factor",
        )
        .at("policy")?
        .unwrap_or(DEFAULT_OVERPROVISIONING);
        Ok(Self {
            cluster_name: cluster_name.into(),
            localities,
            overprovisioning_factor,
            weighted_priority_health,
            drop_overloads,
            stale_after: positive(endpoint_stale_after, "endpoint_stale_after").at("policy")?,
        })
    }

    /// The assignment of a cluster that has none.
    pub(in crate::config) fn none(cluster_name: &str) -> Self {
        Self {
            cluster_name: cluster_name.into(),
            overprovisioning_factor: DEFAULT_OVERPROVISIONING,
            ..Self::default()
        }
    }
}

impl LocalityEndpoints {
    fn parse(proto: proto::LocalityLbEndpoints, names: bool) -> Result<Self, ConfigError> {
        let proto::LocalityLbEndpoints {
            locality,
            metadata,
            lb_endpoints,
            load_balancing_weight,
            priority,
            proximity: _,
            lb_config,
        } = proto;
        match lb_config {
            None => {}
            Some(LbConfig::LoadBalancerEndpoints(_)) => {
                return Err(ConfigError::unsupported(
                    "load_balancer_endpoints",
                    "use lb_endpoints",
                ));
            }
            Some(LbConfig::LedsClusterLocalityConfig(_)) => {
                return Err(ConfigError::unsupported(
                    "leds_cluster_locality_config",
                    "LEDS is not implemented by this build yet",
                ));
            }
        }
        if priority > MAX_PRIORITY {
            return Err(ConfigError::invalid(format!(
                "value must be less than or equal to {MAX_PRIORITY}"
            ))
            .at("priority"));
        }
        Ok(Self {
            locality: locality.map(Locality::from).unwrap_or_default(),
            endpoints: each(lb_endpoints, "lb_endpoints", |endpoint| {
                Endpoint::parse(endpoint, names)
            })?,
            weight: uint32_within(load_balancing_weight, 1, u32::MAX, "load_balancing_weight")?,
            priority,
            metadata: metadata.map(Arc::new),
        })
    }
}

impl From<core::Locality> for Locality {
    fn from(proto: core::Locality) -> Self {
        let core::Locality {
            region,
            zone,
            sub_zone,
        } = proto;
        Self {
            region: region.into(),
            zone: zone.into(),
            sub_zone: sub_zone.into(),
        }
    }
}

impl Endpoint {
    fn parse(proto: proto::LbEndpoint, names: bool) -> Result<Self, ConfigError> {
        let proto::LbEndpoint {
            health_status,
            metadata,
            load_balancing_weight,
            host_identifier,
        } = proto;
        let endpoint = match required(host_identifier, "endpoint")? {
            HostIdentifier::Endpoint(endpoint) => endpoint,
            HostIdentifier::EndpointName(_) => {
                return Err(ConfigError::unsupported(
                    "endpoint_name",
                    "give endpoints where they are used",
                ));
            }
        };
        let proto::Endpoint {
            address,
            health_check_config,
            hostname,
            additional_addresses: _,
            observability_name: _,
        } = endpoint;
        if health_check_config.is_some_and(|check| check.port_value > u32::from(u16::MAX)) {
            return Err(
                ConfigError::invalid("value must be less than or equal to 65535")
                    .at("port_value")
                    .at("health_check_config")
                    .at("endpoint"),
            );
        }
        let address = required(address, "address")
            .and_then(|address| {
                let address = Address::parse(address).at("address")?;
                match &address {
                    Address::Name(name, _) if !names => Err(not_resolved(name).at("address")),
                    Address::Name(..) | Address::Socket(_) | Address::Pipe(_) => Ok(address),
                }
            })
            .at("endpoint")?;
        let health = enumeration::<core::HealthStatus>(health_status, "health_status")?;
        Ok(Self {
            address,
            hostname: hostname.into(),
            health: match health {
                core::HealthStatus::Unknown => HealthStatus::Unknown,
                core::HealthStatus::Healthy => HealthStatus::Healthy,
                core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
                core::HealthStatus::Draining => HealthStatus::Draining,
                core::HealthStatus::Timeout => HealthStatus::Timeout,
                core::HealthStatus::Degraded => HealthStatus::Degraded,
            },
            weight: uint32_within(load_balancing_weight, 1, u32::MAX, "load_balancing_weight")?
                .unwrap_or(1),
            metadata: metadata.map(Arc::new),
        })
    }
}

/// A host name in an assignment that nobody resolves.
fn not_resolved(name: &str) -> ConfigError {
    malformed(&format!(
        "{name}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'"
    ))
}

fn drop_overload(proto: DropOverload) -> Result<(Box<str>, u32), ConfigError> {
    let DropOverload {
        category,
        drop_percentage,
    } = proto;
    let category = non_empty(category, "category")?;
    let share = drop_percentage
        .map(per_million)
        .transpose()
        .at("drop_percentage")?
        .unwrap_or(0);
    Ok((category.into(), share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb;

    fn parse(yaml: &str) -> Result<Endpoints, String> {
        let proto = pb::from_yaml::<proto::ClusterLoadAssignment>(yaml).expect("an assignment");
        Endpoints::parse_assignment(proto, false).map_err(|error| error.to_string())
    }

    fn one(endpoint: &str) -> Result<Endpoints, String> {
        parse(&format!(
            "{{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}"
        ))
    }

    #[test]
    fn an_assignment_keeps_localities_priorities_and_weights() {
        let endpoints = parse(
            "
cluster_name: c
endpoints:
- locality: {region: r, zone: z, sub_zone: s}
  load_balancing_weight: 3
  priority: 1
  metadata: {filter_metadata: {ns: {key: value}}}
  lb_endpoints:
  - endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}, hostname: h}
    health_status: DEGRADED
    load_balancing_weight: 7
    metadata: {filter_metadata: {envoy.lb: {canary: true}}}
  - endpoint: {address: {pipe: {path: '@abstract'}}}
policy: {overprovisioning_factor: 100, drop_overloads: [{category: x, drop_percentage: {numerator: 5}}]}
",
        )
        .expect("valid");
        let locality = &endpoints.localities[0];
        assert_eq!(&*locality.locality.region, "r");
        assert_eq!((locality.weight, locality.priority), (Some(3), 1));
        assert!(locality.metadata.is_some());
        let first = &locality.endpoints[0];
        assert_eq!(first.address.to_string(), "10.0.0.1:80");
        assert_eq!((first.health, first.weight), (HealthStatus::Degraded, 7));
        assert!(first.metadata.is_some());
        assert_eq!(locality.endpoints[1].weight, 1);
        assert_eq!(endpoints.overprovisioning_factor, 100);
        assert_eq!(endpoints.drop_overloads, [(Box::from("x"), 50_000)]);
    }

    #[test]
    fn absent_policy_has_envoys_defaults() {
        let endpoints = parse("cluster_name: c").expect("valid");
        assert_eq!(endpoints.overprovisioning_factor, 140);
        assert_eq!(endpoints, Endpoints::none("c"));
    }

    #[test]
    fn names_are_for_dns_clusters_alone() {
        let yaml = "{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: localhost, port_value: 80}}}}]}]}";
        assert_eq!(
            parse(yaml),
            Err("endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address: localhost. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'".to_owned())
        );
        let proto = pb::from_yaml(yaml).expect("an assignment");
        let named = Endpoints::parse_assignment(proto, true).expect("valid");
        assert_eq!(
            named.localities[0].endpoints[0].address,
            Address::Name("localhost".into(), 80)
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_field() {
        let address = "address: {socket_address: {address: 10.0.0.1, port_value: 80}}";
        for (endpoint, error) in [
            ("{}", "endpoint: value is required"),
            ("{endpoint: {}}", "endpoint.address: value is required"),
            (
                "{endpoint: {address: {socket_address: {address: '', port_value: 1}}}}",
                "endpoint.address.socket_address.address: value length must be at least 1 characters",
            ),
            (
                "{endpoint: {address: {socket_address: {address: 10.0.0.1}}}}",
                "endpoint.address.socket_address.port_specifier: value is required",
            ),
            (
                "{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 70000}}}}",
                "endpoint.address.socket_address.port_value: value must be less than or equal to 65535",
            ),
            (
                "{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1, protocol: UDP}}}}",
                "endpoint.address.socket_address.protocol: not supported: UDP is not implemented by this build yet",
            ),
            (
                "{endpoint: {address: {pipe: {path: ''}}}}",
                "endpoint.address.pipe.path: value length must be at least 1 characters",
            ),
            (
                "{endpoint: {address: {envoy_internal_address: {server_listener_name: x}}}}",
                "endpoint.address.envoy_internal_address: not supported: internal listeners are not implemented by this build yet",
            ),
            (
                "{endpoint_name: x}",
                "endpoint_name: not supported: give endpoints where they are used",
            ),
            (
                &format!("{{endpoint: {{{address}}}, load_balancing_weight: 0}}"),
                "load_balancing_weight: value must be greater than or equal to 1",
            ),
        ] {
            assert_eq!(
                one(endpoint),
                Err(format!("endpoints[0].lb_endpoints[0].{error}")),
                "{endpoint}"
            );
        }
    }

    #[test]
    fn the_assignment_itself_is_checked() {
        for (yaml, error) in [
            (
                "{}",
                "cluster_name: value length must be at least 1 characters",
            ),
            (
                "{cluster_name: c, endpoints: [{priority: 129}]}",
                "endpoints[0].priority: value must be less than or equal to 128",
            ),
            (
                "{cluster_name: c, endpoints: [{load_balancing_weight: 0}]}",
                "endpoints[0].load_balancing_weight: value must be greater than or equal to 1",
            ),
            (
                "{cluster_name: c, endpoints: [{leds_cluster_locality_config: {}}]}",
                "endpoints[0].leds_cluster_locality_config: not supported: LEDS is not implemented by this build yet",
            ),
            (
                "{cluster_name: c, named_endpoints: {x: {}}}",
                "named_endpoints: not supported: give endpoints where they are used",
            ),
            (
                "{cluster_name: c, policy: {overprovisioning_factor: 0}}",
                "policy.overprovisioning_factor: value must be greater than or equal to 1",
            ),
            (
                "{cluster_name: c, policy: {endpoint_stale_after: 0s}}",
                "policy.endpoint_stale_after: value must be greater than 0s",
            ),
            (
                "{cluster_name: c, policy: {drop_overloads: [{category: x}, {category: y}]}}",
                "policy.drop_overloads: Cluster drop_overloads config has 2 categories. Envoy only support one.",
            ),
            (
                "{cluster_name: c, policy: {drop_overloads: [{}]}}",
                "policy.drop_overloads[0].category: value length must be at least 1 characters",
            ),
        ] {
            assert_eq!(parse(yaml), Err(error.to_owned()), "{yaml}");
        }
    }
}
