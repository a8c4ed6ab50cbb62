//! Protobuf to [`RouteConfig`]: tables, virtual hosts and routes; what a route does is in `action`.

#![allow(
    deprecated,
    reason = "Envoy still honours its deprecated fields, and control planes send them"
)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::encoded::Encoded;
use super::{
    Action, ClusterSpecifier, Domain, PathMatch, RequireTls, Route, RouteConfig, RouteMatch,
    VirtualHost, action,
};
use crate::config::error::At;
use crate::config::extension::parse::per_filter;
use crate::config::field::{
    LATER, each, enumeration, flag, header_name, non_empty, non_empty_list, refuse, required,
    runtime_per_million, uint32,
};
use crate::config::header::HeaderMutations;
use crate::config::ignored::Ignored;
use crate::config::matcher::{FullRegex, HeaderMatcher, QueryMatcher};
use crate::config::{ConfigError, ParseContext};
use crate::pb::envoy::config::route::v3 as proto;
use crate::pb::envoy::config::route::v3::route::Action as ActionKind;
use crate::pb::envoy::config::route::v3::route_match::PathSpecifier;
use crate::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;

/// Envoy's default of `max_direct_response_body_size_bytes`.
const DEFAULT_MAX_DIRECT_RESPONSE: usize = 4096;

/// Accepted without effect.
pub(in crate::config) const IGNORED: &[Ignored] = &[
    Ignored("early_data_policy", "there is no TLS early data"),
    Ignored(
        "flush_timeout",
        "the idle timeouts hold while a response is flushed too",
    ),
    Ignored(
        "include_is_timeout_retry_header",
        "set on retries, of which there are none",
    ),
    Ignored("include_vh_rate_limits", "rate limits are refused"),
    Ignored("max_internal_redirects", "internal redirects are refused"),
    Ignored(
        "metadata_match",
        "only the subset load balancer reads it, and clusters that ask for that are refused",
    ),
    Ignored(
        "per_request_buffer_limit_bytes",
        "bodies are buffered up to the listener's limit",
    ),
    Ignored("propagate", "of a decorator: there is no tracing"),
    Ignored(
        "request_body_buffer_limit",
        "bodies are buffered up to the listener's limit",
    ),
    Ignored(
        "runtime_key",
        "there is no runtime; the default value holds",
    ),
    Ignored(
        "runtime_key_prefix",
        "there is no runtime; the weights of the configuration hold",
    ),
    Ignored("stat_prefix", "statistics of single routes are not kept"),
    Ignored("total_weight", "the sum of the weights counts, as in Envoy"),
    Ignored("tracing", "requests are not traced"),
    Ignored(
        "virtual_clusters",
        "only statistics; they change no routing",
    ),
];

impl RouteConfig {
    /// Validates an RDS resource.
    ///
    /// # Errors
    /// The first field that is wrong or not supported, by its path.
    pub fn parse(
        proto: proto::RouteConfiguration,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        Self::parse_checking(proto, context, false, None)
    }

    /// Validates a connection manager's `route_config`: clusters must exist unless it says otherwise.
    pub(in crate::config) fn parse_inline(
        proto: proto::RouteConfiguration,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        Self::parse_checking(proto, context, true, None)
    }

    /// Where `encoded` is there it has the routes, and `proto` has none.
    pub(super) fn parse_checking(
        proto: proto::RouteConfiguration,
        context: &ParseContext<'_>,
        validate: bool,
        encoded: Option<&Encoded<'_>>,
    ) -> Result<Self, ConfigError> {
        let proto::RouteConfiguration {
            name,
            virtual_hosts,
            vhds,
            internal_only_headers,
            response_headers_to_add,
            response_headers_to_remove,
            request_headers_to_add,
            request_headers_to_remove,
            most_specific_header_mutations_wins,
            validate_clusters,
            max_direct_response_body_size_bytes,
            cluster_specifier_plugins,
            request_mirror_policies,
            ignore_port_in_host_matching,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            metadata,
            route_specifiers,
        } = proto;
        refuse(
            vhds.is_some(),
            "vhds",
            "virtual hosts on demand are not implemented by this build yet",
        )?;
        refuse(
            !cluster_specifier_plugins.is_empty(),
            "cluster_specifier_plugins",
            LATER,
        )?;
        refuse(
            !request_mirror_policies.is_empty(),
            "request_mirror_policies",
            LATER,
        )?;
        refuse(!vhost_header.is_empty(), "vhost_header", LATER)?;
        refuse(
            ignore_path_parameters_in_path_matching,
            "ignore_path_parameters_in_path_matching",
            LATER,
        )?;
        refuse(!route_specifiers.is_empty(), "route_specifiers", LATER)?;
        let max_direct_response_body_size = uint32(max_direct_response_body_size_bytes)
            .map_or(DEFAULT_MAX_DIRECT_RESPONSE, |size| size as usize);
        let parser = Parser {
            context,
            max_direct_response: max_direct_response_body_size,
        };
        let mut index = 0..;
        let virtual_hosts = each(virtual_hosts, "virtual_hosts", |host| {
            parser.virtual_host(host, encoded.zip(index.next()))
        })?;
        unique_domains(&name, &virtual_hosts)?;
        let config = Self {
            name: name.into(),
            virtual_hosts,
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
            internal_only_headers: each(internal_only_headers, "internal_only_headers", |name| {
                header_name(name, "")
            })?,
            most_specific_header_mutations_wins,
            validate_clusters: validate_clusters.map(|value| value.value),
            ignore_port_in_host_matching,
            max_direct_response_body_size,
            per_filter: per_filter(typed_per_filter_config, context)?,
            metadata: metadata.map(Arc::new),
        };
        if config.validate_clusters.unwrap_or(validate)
            && let Some(known) = context.clusters
        {
            config.check_clusters(known)?;
        }
        Ok(config)
    }

    /// Refuses a route to a cluster that does not exist.
    fn check_clusters(&self, known: &dyn Fn(&str) -> bool) -> Result<(), ConfigError> {
        for (h, host) in self.virtual_hosts.iter().enumerate() {
            for (r, route) in host.routes.iter().enumerate() {
                let Action::Forward(forward) = &route.action else {
                    continue;
                };
                let unknown = match &forward.cluster {
                    ClusterSpecifier::Cluster(name) if !known(name) => {
                        format!("route: unknown cluster '{name}'")
                    }
                    ClusterSpecifier::Weighted { clusters, .. } => {
                        match clusters
                            .iter()
                            .find(|c| c.header.is_none() && !known(&c.name))
                        {
                            Some(cluster) => {
                                format!("route: unknown weighted cluster '{}'", cluster.name)
                            }
                            None => continue,
                        }
                    }
                    ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => continue,
                };
                return Err(ConfigError::invalid(unknown)
                    .at_index("routes", r)
                    .at_index("virtual_hosts", h));
            }
        }
        Ok(())
    }
}

/// No two virtual hosts claim one domain.
fn unique_domains(config: &str, hosts: &[VirtualHost]) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for (index, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if seen.insert(domain) {
                continue;
            }
            let reason = if *domain == Domain::Any {
                format!("Only a single wildcard domain is permitted in route {config}")
            } else {
                format!(
                    "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {config}"
                )
            };
            return Err(ConfigError::invalid(reason)
                .at("domains")
                .at_index("virtual_hosts", index));
        }
    }
    Ok(())
}

impl Domain {
    /// Reads a domain rule; letters count in lower case.
    fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match (
            text.as_str(),
            text.strip_prefix('*'),
            text.strip_suffix('*'),
        ) {
            ("*", ..) => Self::Any,
            (_, Some(suffix), _) => Self::Suffix(suffix.into()),
            (_, None, Some(prefix)) => Self::Prefix(prefix.into()),
            (exact, None, None) => Self::Exact(exact.into()),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// What the parts of a table need to know of it.
pub(super) struct Parser<'a> {
    pub(super) context: &'a ParseContext<'a>,
    pub(super) max_direct_response: usize,
}

impl Parser<'_> {
    fn virtual_host(
        &self,
        proto: proto::VirtualHost,
        encoded: Option<(&Encoded<'_>, usize)>,
    ) -> Result<VirtualHost, ConfigError> {
        let proto::VirtualHost {
            name,
            domains,
            routes,
            matcher,
            require_tls,
            virtual_clusters: _,
            rate_limits,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cors,
            typed_per_filter_config,
            include_request_attempt_count,
            include_attempt_count_in_response,
            retry_policy,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header: _,
            per_request_buffer_limit_bytes: _,
            request_body_buffer_limit: _,
            request_mirror_policies,
            metadata,
            route_specifiers,
        } = proto;
        let name = non_empty(name, "name")?;
        let domains = non_empty_list(domains, "domains")?;
        refuse(matcher.is_some(), "matcher", LATER)?;
        refuse(!rate_limits.is_empty(), "rate_limits", LATER)?;
        action::refuse_cors(cors.as_ref())?;
        action::refuse_retries(retry_policy.as_ref(), retry_policy_typed_config.as_ref())?;
        action::refuse_hedging(hedge_policy.as_ref())?;
        refuse(
            !request_mirror_policies.is_empty(),
            "request_mirror_policies",
            LATER,
        )?;
        refuse(!route_specifiers.is_empty(), "route_specifiers", LATER)?;
        let require_tls = match enumeration::<TlsRequirementType>(require_tls, "require_tls")? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        };
        Ok(VirtualHost {
            name: name.into(),
            domains: domains.iter().map(|domain| Domain::parse(domain)).collect(),
            routes: match encoded {
                Some((encoded, host)) => encoded
                    .of_host(host)
                    .iter()
                    .enumerate()
                    .map(|(at, bytes)| encoded.route((host, at), bytes, self))
                    .collect::<Result<_, _>>()?,
                None => each(routes, "routes", |route| self.route(route).map(Arc::new))?,
            },
            require_tls,
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
            per_filter: per_filter(typed_per_filter_config, self.context)?,
            include_request_attempt_count,
            include_attempt_count_in_response,
            metadata: metadata.map(Arc::new),
        })
    }

    pub(super) fn route(&self, proto: proto::Route) -> Result<Route, ConfigError> {
        let proto::Route {
            name,
            r#match,
            metadata,
            decorator,
            typed_per_filter_config,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            tracing: _,
            per_request_buffer_limit_bytes: _,
            stat_prefix: _,
            request_body_buffer_limit: _,
            route_specifiers,
            action,
        } = proto;
        refuse(!route_specifiers.is_empty(), "route_specifiers", LATER)?;
        let matcher = required(r#match, "match").and_then(|m| RouteMatch::parse(m).at("match"))?;
        let action = match required(action, "action")? {
            ActionKind::Route(route) => Action::Forward(Box::new(self.forward(route).at("route")?)),
            ActionKind::Redirect(redirect) => {
                Action::Redirect(Box::new(action::redirect(redirect).at("redirect")?))
            }
            ActionKind::DirectResponse(response) => {
                Action::DirectResponse(self.direct_response(response).at("direct_response")?)
            }
            ActionKind::NonForwardingAction(proto::NonForwardingAction {}) => Action::NonForwarding,
            ActionKind::FilterAction(_) => {
                return Err(ConfigError::unsupported("filter_action", LATER));
            }
        };
        let decorator = match decorator {
            None => None,
            Some(proto::Decorator {
                operation,
                propagate: _,
            }) => Some(non_empty(operation, "operation").at("decorator")?.into()),
        };
        Ok(Route {
            name: name.into(),
            matcher,
            action,
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
            metadata: metadata.map(Arc::new),
            decorator,
        })
    }

    pub(super) fn per_filter(
        &self,
        configs: HashMap<String, crate::pb::Any>,
    ) -> Result<super::PerFilter, ConfigError> {
        per_filter(configs, self.context)
    }
}

impl RouteMatch {
    fn parse(proto: proto::RouteMatch) -> Result<Self, ConfigError> {
        let proto::RouteMatch {
            case_sensitive,
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
            path_specifier,
        } = proto;
        refuse(!cookies.is_empty(), "cookies", LATER)?;
        refuse(tls_context.is_some(), "tls_context", LATER)?;
        refuse(!dynamic_metadata.is_empty(), "dynamic_metadata", LATER)?;
        refuse(!filter_state.is_empty(), "filter_state", LATER)?;
        let path = match required(path_specifier, "path_specifier")? {
            PathSpecifier::Prefix(prefix) => PathMatch::Prefix(prefix.into()),
            PathSpecifier::Path(path) => PathMatch::Exact(path.into()),
            PathSpecifier::SafeRegex(regex) => {
                PathMatch::Regex(FullRegex::parse(regex).at("safe_regex")?)
            }
            PathSpecifier::ConnectMatcher(proto::route_match::ConnectMatcher {}) => {
                PathMatch::Connect
            }
            PathSpecifier::PathSeparatedPrefix(prefix) => {
                if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                    return Err(ConfigError::invalid(
                        r#"value does not match regex pattern "^[^?#]+[^?#/]$""#,
                    )
                    .at("path_separated_prefix"));
                }
                PathMatch::SeparatedPrefix(prefix.into())
            }
            PathSpecifier::PathMatchPolicy(_) => {
                return Err(ConfigError::unsupported("path_match_policy", LATER));
            }
        };
        Ok(Self {
            path,
            ignore_case: !flag(case_sensitive, true),
            fraction_per_million: runtime_fraction
                .map(runtime_per_million)
                .transpose()
                .at("runtime_fraction")?,
            headers: each(headers, "headers", HeaderMatcher::parse)?,
            query_parameters: each(query_parameters, "query_parameters", QueryMatcher::parse)?,
            grpc: grpc.is_some(),
        })
    }
}

#[cfg(test)]
mod tests;
