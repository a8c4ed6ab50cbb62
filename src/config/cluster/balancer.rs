//! The two ways of naming a load balancer: the old enumeration, and the typed policies.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use super::Balancer;
use crate::config::ConfigError;
use crate::config::any::{holds, resolve, unpack};
use crate::config::error::At;
use crate::config::field::{LATER, enumeration, flag, refuse, uint32};
use crate::pb;
use crate::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use crate::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig};
use crate::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use crate::pb::envoy::config::core::v3::{RuntimeDouble, TypedExtensionConfig};
use crate::pb::envoy::extensions::load_balancing_policies::common::v3::LocalityLbConfig;
use crate::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use crate::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use crate::pb::envoy::extensions::load_balancing_policies::least_request::v3::least_request::SelectionMethod;
use crate::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use crate::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;

/// Envoy's default of `choice_count`.
const DEFAULT_CHOICES: u32 = 2;
/// Envoy's default of `active_request_bias`.
const DEFAULT_BIAS: f64 = 1.0;

/// The balancer, and whether localities are weighted.
pub(super) fn parse(
    cluster: &str,
    policy: i32,
    config: Option<LbConfig>,
    typed: Option<LoadBalancingPolicy>,
) -> Result<(Balancer, bool), ConfigError> {
    let policy = enumeration::<LbPolicy>(policy, "lb_policy")?;
    if let Some(typed) = typed {
        return typed_policy(cluster, typed).at("load_balancing_policy");
    }
    let balancer = match policy {
        LbPolicy::RoundRobin => Balancer::RoundRobin,
        LbPolicy::Random => Balancer::Random,
        LbPolicy::LeastRequest => least_request(config).at("least_request_lb_config")?,
        LbPolicy::RingHash | LbPolicy::Maglev | LbPolicy::ClusterProvided => {
            return Err(ConfigError::unsupported(
                "lb_policy",
                format!(
                    "{} is not implemented by this build yet",
                    policy.as_str_name()
                ),
            ));
        }
        LbPolicy::LoadBalancingPolicyConfig => {
            return Err(ConfigError::invalid(
                "cluster: field load_balancing_policy need to be set",
            ));
        }
    };
    Ok((balancer, false))
}

fn least_request(config: Option<LbConfig>) -> Result<Balancer, ConfigError> {
    // The configuration of another policy is accepted and means nothing, as in Envoy.
    let Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
        choice_count,
        active_request_bias,
        slow_start_config: _,
    })) = config
    else {
        return Ok(Balancer::LeastRequest {
            choice_count: DEFAULT_CHOICES,
            active_request_bias: DEFAULT_BIAS,
        });
    };
    let choice_count = uint32(choice_count).unwrap_or(DEFAULT_CHOICES);
    if choice_count < 2 {
        return Err(
            ConfigError::invalid("value must be greater than or equal to 2").at("choice_count"),
        );
    }
    Ok(Balancer::LeastRequest {
        choice_count,
        active_request_bias: bias(active_request_bias)?,
    })
}

fn bias(value: Option<RuntimeDouble>) -> Result<f64, ConfigError> {
    let Some(RuntimeDouble {
        default_value,
        // There is no runtime.
        runtime_key: _,
    }) = value
    else {
        return Ok(DEFAULT_BIAS);
    };
    if !default_value.is_finite() || default_value < 0.0 {
        return Err(
            ConfigError::invalid("value must be greater than or equal to 0")
                .at("active_request_bias"),
        );
    }
    Ok(default_value)
}

/// The first policy of the list that this build has: that is what the list is for.
fn typed_policy(
    cluster: &str,
    proto: LoadBalancingPolicy,
) -> Result<(Balancer, bool), ConfigError> {
    let LoadBalancingPolicy { policies } = proto;
    let mut names = Vec::new();
    for (
        index,
        Policy {
            typed_extension_config,
        },
    ) in policies.into_iter().enumerate()
    {
        let Some(TypedExtensionConfig { name, typed_config }) = typed_extension_config else {
            continue;
        };
        if let Some(any) = &typed_config
            && let Some(found) = one(any)
                .at("typed_config")
                .at("typed_extension_config")
                .at_index("policies", index)?
        {
            return Ok(found);
        }
        names.push(match typed_config {
            Some(any) => format!("{name} ({})", pb::type_name(&any.type_url)),
            None => name,
        });
    }
    Err(ConfigError::invalid(format!(
        "cluster: didn't find a registered load balancer factory implementation for cluster: '{cluster}' with names from [{}]",
        names.join(", ")
    )))
}

fn one(any: &pb::Any) -> Result<Option<(Balancer, bool)>, ConfigError> {
    let any = resolve(any)?;
    if holds::<RoundRobin>(&any) {
        let RoundRobin {
            slow_start_config: _,
            locality_lb_config,
        } = unpack(&any)?;
        return Ok(Some((Balancer::RoundRobin, weighted(locality_lb_config))));
    }
    if holds::<Random>(&any) {
        let Random { locality_lb_config } = unpack(&any)?;
        return Ok(Some((Balancer::Random, weighted(locality_lb_config))));
    }
    if holds::<LeastRequest>(&any) {
        let LeastRequest {
            choice_count,
            active_request_bias,
            slow_start_config: _,
            locality_lb_config,
            enable_full_scan,
            selection_method,
        } = unpack(&any)?;
        refuse(flag(enable_full_scan, false), "enable_full_scan", LATER)?;
        refuse(
            enumeration::<SelectionMethod>(selection_method, "selection_method")?
                == SelectionMethod::FullScan,
            "selection_method",
            LATER,
        )?;
        let balancer = Balancer::LeastRequest {
            choice_count: uint32(choice_count).unwrap_or(DEFAULT_CHOICES).max(1),
            active_request_bias: bias(active_request_bias)?,
        };
        return Ok(Some((balancer, weighted(locality_lb_config))));
    }
    Ok(None)
}

fn weighted(proto: Option<LocalityLbConfig>) -> bool {
    matches!(
        proto.and_then(|config| config.locality_config_specifier),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
    )
}
