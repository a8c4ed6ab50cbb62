//! Protobuf to what a route does: forward, redirect, answer.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::parse::Parser;
use super::{
    ClusterSpecifier, DirectResponse, ForwardAction, FullRegexSearch, GrpcTimeout, HostRewrite,
    PathRewrite, RedirectAction, RedirectPath, StreamDuration, WeightedCluster,
};
use crate::config::ConfigError;
use crate::config::access_log::Format;
use crate::config::error::At;
use crate::config::field::{
    LATER, data_source, duration, each, enumeration, flag, header_name, header_text, non_empty,
    non_empty_list, refuse, required, timeout, uint32,
};
use crate::config::header::HeaderMutations;
use crate::config::matcher::{parse::pattern, regex};
use crate::pb::Any;
use crate::pb::envoy::config::core::v3::RoutingPriority;
use crate::pb::envoy::config::route::v3 as proto;
use crate::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use crate::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier as ClusterKind, HostRewriteSpecifier,
    InternalRedirectAction, MaxStreamDuration, UpgradeConfig,
};
use crate::pb::envoy::config::route::v3::weighted_cluster::{
    ClusterWeight, RandomValueSpecifier, cluster_weight,
};
use crate::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

/// Envoy's default of `RouteAction.timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// Refuses a policy that makes retries. One without `retry_on` makes none.
pub(super) fn refuse_retries(
    policy: Option<&proto::RetryPolicy>,
    typed: Option<&Any>,
) -> Result<(), ConfigError> {
    refuse(
        policy.is_some_and(|policy| !policy.retry_on.is_empty()),
        "retry_policy",
        "retries are not implemented by this build yet",
    )?;
    refuse(typed.is_some(), "retry_policy_typed_config", LATER)
}

/// Refuses a policy that hedges.
pub(super) fn refuse_hedging(policy: Option<&proto::HedgePolicy>) -> Result<(), ConfigError> {
    refuse(
        policy.is_some_and(|policy| policy.hedge_on_per_try_timeout),
        "hedge_policy",
        LATER,
    )
}

/// Refuses the deprecated place of the CORS policy.
pub(super) fn refuse_cors(policy: Option<&proto::CorsPolicy>) -> Result<(), ConfigError> {
    refuse(
        policy.is_some(),
        "cors",
        "use typed_per_filter_config with envoy.extensions.filters.http.cors.v3.CorsPolicy",
    )
}

impl FullRegexSearch {
    /// Compiles a pattern to search for.
    ///
    /// # Errors
    /// A bad regular expression, or one whose program is too large.
    pub fn new(pattern: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            source: pattern.into(),
            regex: regex::search(pattern)?,
        })
    }
}

/// A `RegexMatchAndSubstitute`.
fn substitution(
    proto: RegexMatchAndSubstitute,
) -> Result<(FullRegexSearch, Box<str>), ConfigError> {
    let RegexMatchAndSubstitute {
        pattern: matcher,
        substitution,
    } = proto;
    let source = required(matcher, "pattern").and_then(|m| pattern(m).at("pattern"))?;
    let compiled = FullRegexSearch::new(&source).at("regex").at("pattern")?;
    Ok((compiled, header_text(substitution, "substitution")?.into()))
}

impl Parser<'_> {
    pub(super) fn forward(&self, proto: proto::RouteAction) -> Result<ForwardAction, ConfigError> {
        let proto::RouteAction {
            cluster_not_found_response_code,
            metadata_match: _,
            prefix_rewrite,
            regex_rewrite,
            path_rewrite_policy,
            path_rewrite,
            append_x_forwarded_host,
            timeout: route_timeout,
            idle_timeout,
            flush_timeout: _,
            early_data_policy: _,
            retry_policy,
            retry_policy_typed_config,
            request_mirror_policies,
            priority,
            rate_limits,
            include_vh_rate_limits: _,
            hash_policy,
            cors,
            max_grpc_timeout,
            grpc_timeout_offset,
            upgrade_configs,
            internal_redirect_policy,
            internal_redirect_action,
            max_internal_redirects: _,
            hedge_policy,
            max_stream_duration,
            cluster_specifier,
            host_rewrite_specifier,
        } = proto;
        refuse(path_rewrite_policy.is_some(), "path_rewrite_policy", LATER)?;
        refuse_retries(retry_policy.as_ref(), retry_policy_typed_config.as_ref())?;
        refuse_hedging(hedge_policy.as_ref())?;
        refuse_cors(cors.as_ref())?;
        refuse(
            !request_mirror_policies.is_empty(),
            "request_mirror_policies",
            LATER,
        )?;
        refuse(!rate_limits.is_empty(), "rate_limits", LATER)?;
        refuse(!hash_policy.is_empty(), "hash_policy", LATER)?;
        refuse(
            internal_redirect_policy.is_some(),
            "internal_redirect_policy",
            LATER,
        )?;
        let internal_redirects = enumeration::<InternalRedirectAction>(
            internal_redirect_action,
            "internal_redirect_action",
        )?;
        refuse(
            internal_redirects == InternalRedirectAction::HandleInternalRedirect,
            "internal_redirect_action",
            LATER,
        )?;
        let not_found = enumeration::<ClusterNotFoundResponseCode>(
            cluster_not_found_response_code,
            "cluster_not_found_response_code",
        )?;
        let cluster = required(cluster_specifier, "cluster_specifier")?;
        Ok(ForwardAction {
            cluster: self.cluster(cluster)?,
            cluster_not_found_status: match not_found {
                ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
                ClusterNotFoundResponseCode::InternalServerError => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
            timeout: timeout(route_timeout, Some(DEFAULT_TIMEOUT), "timeout")?,
            idle_timeout: duration(idle_timeout, "idle_timeout")?
                .map(|value| (!value.is_zero()).then_some(value)),
            path_rewrite: path_rewriting(prefix_rewrite, regex_rewrite, path_rewrite)?,
            host_rewrite: host_rewriting(host_rewrite_specifier)?,
            append_x_forwarded_host,
            grpc_timeout: match duration(max_grpc_timeout, "max_grpc_timeout")? {
                None => None,
                Some(max) => Some(GrpcTimeout {
                    max: (!max.is_zero()).then_some(max),
                    offset: duration(grpc_timeout_offset, "grpc_timeout_offset")?
                        .unwrap_or_default(),
                }),
            },
            priority_high: enumeration::<RoutingPriority>(priority, "priority")?
                == RoutingPriority::High,
            upgrades: upgrades(upgrade_configs)?,
            stream_duration: stream_duration(max_stream_duration).at("max_stream_duration")?,
        })
    }

    fn cluster(&self, proto: ClusterKind) -> Result<ClusterSpecifier, ConfigError> {
        match proto {
            ClusterKind::Cluster(name) => Ok(ClusterSpecifier::Cluster(
                non_empty(name, "cluster")?.into(),
            )),
            ClusterKind::ClusterHeader(name) => Ok(ClusterSpecifier::Header(plain_header(
                name,
                "cluster_header",
            )?)),
            ClusterKind::WeightedClusters(weighted) => {
                self.weighted(weighted).at("weighted_clusters")
            }
            ClusterKind::ClusterSpecifierPlugin(_) => {
                Err(ConfigError::unsupported("cluster_specifier_plugin", LATER))
            }
            ClusterKind::InlineClusterSpecifierPlugin(_) => Err(ConfigError::unsupported(
                "inline_cluster_specifier_plugin",
                LATER,
            )),
        }
    }

    fn weighted(&self, proto: proto::WeightedCluster) -> Result<ClusterSpecifier, ConfigError> {
        let proto::WeightedCluster {
            clusters,
            total_weight: _,
            runtime_key_prefix: _,
            random_value_specifier,
        } = proto;
        let clusters = each(
            non_empty_list(clusters, "clusters")?,
            "clusters",
            |cluster| self.weighted_cluster(cluster),
        )?;
        let total: u64 = clusters
            .iter()
            .map(|cluster| u64::from(cluster.weight))
            .sum();
        if total == 0 {
            return Err(ConfigError::invalid(
                "Sum of weights in the weighted_cluster must be greater than 0.",
            ));
        }
        if total > u64::from(u32::MAX) {
            return Err(ConfigError::invalid(format!(
                "The sum of weights of all weighted clusters exceeds {}",
                u32::MAX
            )));
        }
        let random_value_header = match random_value_specifier {
            None => None,
            // Envoy reads an empty name as none.
            Some(RandomValueSpecifier::HeaderName(name)) if name.is_empty() => None,
            Some(RandomValueSpecifier::HeaderName(name)) => {
                Some(plain_header(name, "header_name")?)
            }
            Some(RandomValueSpecifier::UseHashPolicy(hash)) => {
                refuse(hash.value, "use_hash_policy", LATER)?;
                None
            }
        };
        Ok(ClusterSpecifier::Weighted {
            clusters,
            total,
            random_value_header,
        })
    }

    fn weighted_cluster(&self, proto: ClusterWeight) -> Result<WeightedCluster, ConfigError> {
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match: _,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = proto;
        let header = match (name.is_empty(), cluster_header.is_empty()) {
            (true, true) => {
                return Err(ConfigError::invalid(
                    "At least one of name or cluster_header need to be specified",
                ));
            }
            (false, false) => {
                return Err(ConfigError::invalid(
                    "Only one of name or cluster_header can be specified",
                ));
            }
            (false, true) => None,
            (true, false) => Some(plain_header(cluster_header, "cluster_header")?),
        };
        let host_rewrite = match host_rewrite_specifier {
            None => None,
            Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                let host = header_text(host, "host_rewrite_literal")?;
                (!host.is_empty()).then(|| host.into())
            }
        };
        Ok(WeightedCluster {
            name: name.into(),
            header,
            weight: required(uint32(weight), "weight")?,
            request_headers: HeaderMutations::parse(
                request_headers_to_add,
                request_headers_to_remove,
                "request_headers",
            )?,
            response_headers: HeaderMutations::parse(
                response_headers_to_add,
                response_headers_to_remove,
                "response_headers",
            )?,
            per_filter: self.per_filter(typed_per_filter_config)?,
            host_rewrite,
        })
    }

    pub(super) fn direct_response(
        &self,
        proto: proto::DirectResponseAction,
    ) -> Result<DirectResponse, ConfigError> {
        let proto::DirectResponseAction {
            status,
            body,
            body_format,
        } = proto;
        refuse(body_format.is_some(), "body_format", LATER)?;
        let status = u16::try_from(status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or_else(|| {
                ConfigError::invalid("value must be inside range [200, 600)").at("status")
            })?;
        let body = body
            .map(data_source)
            .transpose()
            .at("body")?
            .unwrap_or_default();
        if body.len() > self.max_direct_response {
            return Err(ConfigError::invalid(format!(
                "response body size is {} bytes; maximum is {}",
                body.len(),
                self.max_direct_response
            ))
            .at("body"));
        }
        Ok(DirectResponse { status, body })
    }
}

/// A header to read, which cannot be a pseudo-header here.
fn plain_header(name: String, field: &str) -> Result<HeaderName, ConfigError> {
    refuse(
        name.starts_with(':') || name.eq_ignore_ascii_case("host"),
        field,
        "pseudo-headers are not read here by this build yet",
    )?;
    header_name(name, field)
}

fn path_rewriting(
    prefix: String,
    regex: Option<RegexMatchAndSubstitute>,
    format: String,
) -> Result<PathRewrite, ConfigError> {
    let prefix = header_text(prefix, "prefix_rewrite")?;
    match (prefix.is_empty(), regex, format.is_empty()) {
        (true, None, true) => Ok(PathRewrite::None),
        (false, None, true) => Ok(PathRewrite::Prefix(prefix.into())),
        (true, Some(regex), true) => {
            let (pattern, substitution) = substitution(regex).at("regex_rewrite")?;
            Ok(PathRewrite::Regex {
                pattern,
                substitution,
            })
        }
        (true, None, false) => Ok(PathRewrite::Format(
            Format::parse(&format).at("path_rewrite")?,
        )),
        _ => Err(ConfigError::invalid(
            "Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy",
        )),
    }
}

fn host_rewriting(proto: Option<HostRewriteSpecifier>) -> Result<HostRewrite, ConfigError> {
    Ok(match proto {
        None => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            let host = header_text(host, "host_rewrite_literal")?;
            if host.is_empty() {
                HostRewrite::None
            } else {
                HostRewrite::Literal(host.into())
            }
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if flag(Some(auto), false) => {
            HostRewrite::Auto
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) if name.is_empty() => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            HostRewrite::Header(plain_header(name, "host_rewrite_header")?)
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let (pattern, substitution) = substitution(regex).at("host_rewrite_path_regex")?;
            HostRewrite::PathRegex {
                pattern,
                substitution,
            }
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            return Err(ConfigError::unsupported("host_rewrite", LATER));
        }
    })
}

fn upgrades(protos: Vec<UpgradeConfig>) -> Result<Vec<(Box<str>, bool)>, ConfigError> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::new();
    for (index, proto) in protos.into_iter().enumerate() {
        let UpgradeConfig {
            upgrade_type,
            enabled,
            connect_config,
        } = proto;
        let at = |error: ConfigError| error.at_index("upgrade_configs", index);
        let kind = non_empty(upgrade_type, "upgrade_type").map_err(at)?;
        if connect_config.is_some() {
            if !kind.eq_ignore_ascii_case("connect") {
                return Err(at(ConfigError::invalid(format!(
                    "Non-CONNECT upgrade type {kind} has ConnectConfig"
                ))));
            }
            return Err(at(ConfigError::unsupported("connect_config", LATER)));
        }
        let lower = kind.to_ascii_lowercase();
        if upgrades.iter().any(|(known, _)| **known == *lower) {
            return Err(at(ConfigError::invalid(format!(
                "Duplicate upgrade {kind}"
            ))));
        }
        upgrades.push((lower.into(), flag(enabled, true)));
    }
    Ok(upgrades)
}

fn stream_duration(
    proto: Option<MaxStreamDuration>,
) -> Result<Option<StreamDuration>, ConfigError> {
    let Some(MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    }) = proto
    else {
        return Ok(None);
    };
    // The offset alone means nothing.
    let offset =
        duration(grpc_timeout_header_offset, "grpc_timeout_header_offset")?.unwrap_or_default();
    let limit = |value: Duration| (!value.is_zero()).then_some(value);
    Ok(Some(StreamDuration {
        max: duration(max_stream_duration, "max_stream_duration")?.map(limit),
        grpc: duration(grpc_timeout_header_max, "grpc_timeout_header_max")?.map(|max| {
            GrpcTimeout {
                max: limit(max),
                offset,
            }
        }),
    }))
}

/// A `RedirectAction`.
pub(super) fn redirect(proto: proto::RedirectAction) -> Result<RedirectAction, ConfigError> {
    let proto::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = proto;
    let host = header_text(host_redirect, "host_redirect")?;
    let port = u16::try_from(port_redirect).map_err(|_| {
        ConfigError::invalid("value must be less than or equal to 65535").at("port_redirect")
    })?;
    let status = match enumeration::<RedirectResponseCode>(response_code, "response_code")? {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    };
    let scheme: Option<Box<str>> = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => {
            Some(header_text(scheme, "scheme_redirect")?.into())
        }
        None
        | Some(
            SchemeRewriteSpecifier::HttpsRedirect(false)
            | SchemeRewriteSpecifier::SchemeRedirect(_),
        ) => None,
    };
    let path = match path_rewrite_specifier {
        None => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            RedirectPath::Whole(header_text(path, "path_redirect")?.into())
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if prefix.is_empty() => {
            RedirectPath::Keep
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            RedirectPath::Prefix(header_text(prefix, "prefix_rewrite")?.into())
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            let (pattern, substitution) = substitution(regex).at("regex_rewrite")?;
            RedirectPath::Regex {
                pattern,
                substitution,
            }
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(ConfigError::unsupported("path_rewrite", LATER));
        }
    };
    Ok(RedirectAction {
        scheme,
        host: (!host.is_empty()).then(|| host.into()),
        port: (port != 0).then_some(port),
        path,
        status,
        strip_query,
    })
}
