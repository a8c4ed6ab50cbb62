//! `envoy.config.route.v3.RouteConfiguration` as believed.

mod action;
mod encoded;
pub(super) mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::extension::PerRouteConfig;
use super::header::HeaderMutations;
use super::matcher::{FullRegex, HeaderMatcher, QueryMatcher};
use crate::pb;

/// Per-filter overrides of one level, by the filter's name in the chain.
pub type PerFilter = BTreeMap<Box<str>, PerRouteConfig>;

/// A named route table.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// `name`.
    pub name: Box<str>,
    /// In the order given; names and domains are unique (checked).
    pub virtual_hosts: Vec<VirtualHost>,
    /// `request_headers_to_add/remove`.
    pub request_headers: HeaderMutations,
    /// `response_headers_to_add/remove`.
    pub response_headers: HeaderMutations,
    /// `internal_only_headers`.
    pub internal_only_headers: Vec<http::HeaderName>,
    /// `most_specific_header_mutations_wins`.
    pub most_specific_header_mutations_wins: bool,
    /// `validate_clusters`; `None` leaves it to the place the table comes from (RDS: no, inline: yes).
    pub validate_clusters: Option<bool>,
    /// `ignore_port_in_host_matching`.
    pub ignore_port_in_host_matching: bool,
    /// `max_direct_response_body_size_bytes`; Envoy's default is 4096.
    pub max_direct_response_body_size: usize,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilter,
    /// `metadata`, for `%METADATA(ROUTE…)%` and the like.
    pub metadata: Option<Arc<pb::Metadata>>,
}

impl RouteConfig {
    /// True where a route of the table goes to one of `clusters`.
    pub fn names_any(&self, clusters: &BTreeSet<Arc<str>>) -> bool {
        if clusters.is_empty() {
            return false;
        }
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.into_iter().any(|route| match &route.action {
            Action::Forward(forward) => match &forward.cluster {
                ClusterSpecifier::Cluster(name) => clusters.contains(name),
                ClusterSpecifier::Weighted {
                    clusters: weighted, ..
                } => weighted
                    .iter()
                    .any(|cluster| clusters.contains(&cluster.name)),
                ClusterSpecifier::Header(_) => false,
            },
            _ => false,
        })
    }

    /// Calls `f` with every `typed_per_filter_config` of the table, and where it stands.
    pub fn each_per_filter(&self, f: &mut dyn FnMut(&Place, &PerFilter)) {
        let mut place = Place::default();
        f(&place, &self.per_filter);
        for (number, host) in self.virtual_hosts.iter().enumerate() {
            place = Place {
                virtual_host: Some(number),
                ..Place::default()
            };
            f(&place, &host.per_filter);
            for (number, route) in host.routes.iter().enumerate() {
                place.route = Some(number);
                place.cluster = None;
                f(&place, &route.per_filter);
                if let Action::Forward(forward) = &route.action
                    && let ClusterSpecifier::Weighted { clusters, .. } = &forward.cluster
                {
                    for (number, cluster) in clusters.iter().enumerate() {
                        place.cluster = Some(number);
                        f(&place, &cluster.per_filter);
                    }
                }
            }
        }
    }
}

/// A place in a route table, printed as the beginning of a field's path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    virtual_host: Option<usize>,
    route: Option<usize>,
    cluster: Option<usize>,
}

impl Place {
    /// The virtual host that it is in; `None` for the table's own place.
    pub fn virtual_host<'a>(&self, table: &'a RouteConfig) -> Option<&'a VirtualHost> {
        table.virtual_hosts.get(self.virtual_host?)
    }

    /// The route that it is in.
    pub fn route<'a>(&self, table: &'a RouteConfig) -> Option<&'a Route> {
        let route = self.virtual_host(table)?.routes.get(self.route?)?;
        Some(route)
    }

    /// The weighted cluster that it is in.
    pub fn cluster<'a>(&self, table: &'a RouteConfig) -> Option<&'a WeightedCluster> {
        match &self.route(table)?.action {
            Action::Forward(forward) => match &forward.cluster {
                ClusterSpecifier::Weighted { clusters, .. } => clusters.get(self.cluster?),
                ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => None,
            },
            _ => None,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(number) = self.virtual_host {
            write!(f, "virtual_hosts[{number}].")?;
        }
        if let Some(number) = self.route {
            write!(f, "routes[{number}].")?;
        }
        if let Some(number) = self.cluster {
            write!(f, "route.weighted_clusters.clusters[{number}].")?;
        }
        Ok(())
    }
}

/// `VirtualHost`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualHost {
    /// `name`.
    pub name: Box<str>,
    /// Lower-cased domain rules.
    pub domains: Vec<Domain>,
    /// Tried in order.
    pub routes: Vec<Arc<Route>>,
    /// `require_tls`.
    pub require_tls: RequireTls,
    /// `request_headers_to_add/remove`.
    pub request_headers: HeaderMutations,
    /// `response_headers_to_add/remove`.
    pub response_headers: HeaderMutations,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilter,
    /// `include_request_attempt_count`.
    pub include_request_attempt_count: bool,
    /// `include_attempt_count_in_response`.
    pub include_attempt_count_in_response: bool,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
}

/// A domain rule. Envoy's precedence: exact, then longest suffix (`*.a`), then longest prefix (`a.*`), then `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// `a.test`.
    Exact(Box<str>),
    /// `*.a.test` or `*-a.test`: what follows the star. The star stands for at least one character.
    Suffix(Box<str>),
    /// `a.*`: what precedes the star.
    Prefix(Box<str>),
    /// `*`.
    Any,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    /// No redirect.
    #[default]
    None,
    /// Plain-text external requests are redirected to https.
    ExternalOnly,
    /// All plain-text requests are.
    All,
}

/// `Route`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `name`, for `%ROUTE_NAME%`; may be empty.
    pub name: Box<str>,
    /// `match`.
    pub matcher: RouteMatch,
    /// What to do.
    pub action: Action,
    /// `request_headers_to_add/remove`.
    pub request_headers: HeaderMutations,
    /// `response_headers_to_add/remove`.
    pub response_headers: HeaderMutations,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilter,
    /// `metadata`.
    pub metadata: Option<Arc<pb::Metadata>>,
    /// `decorator.operation`, for tracing and `x-envoy-decorator-operation`.
    pub decorator: Option<Box<str>>,
}

/// `RouteMatch`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// What is asked of the path (the query excluded, but for `Connect`).
    pub path: PathMatch,
    /// `case_sensitive: false` (not for `Regex`).
    pub ignore_case: bool,
    /// `runtime_fraction.default_value`, as parts of a million. `None`: always.
    pub fraction_per_million: Option<u32>,
    /// All must hold.
    pub headers: Vec<HeaderMatcher>,
    /// All must hold.
    pub query_parameters: Vec<QueryMatcher>,
    /// `grpc: {}`: only requests with a gRPC content type.
    pub grpc: bool,
}

/// The path specifier of a route.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// `prefix`.
    Prefix(Box<str>),
    /// `path`: the whole path.
    Exact(Box<str>),
    /// `path_separated_prefix`: the whole path, or followed by `/`. No trailing slash.
    SeparatedPrefix(Box<str>),
    /// `safe_regex`: the whole path.
    Regex(FullRegex),
    /// `connect_matcher`: the CONNECT method.
    Connect,
}

/// What a matched route does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `route`.
    Forward(Box<ForwardAction>),
    /// `redirect`.
    Redirect(Box<RedirectAction>),
    /// `direct_response`.
    DirectResponse(DirectResponse),
    /// `non_forwarding_action`: filters answer, or 404.
    NonForwarding,
}

/// `RouteAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardAction {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// `cluster_not_found_response_code`; default 503.
    pub cluster_not_found_status: http::StatusCode,
    /// Route timeout; `None` is none (`0s`), the default 15 s is filled in.
    pub timeout: Option<Duration>,
    /// `idle_timeout`: overrides the connection manager's stream idle timeout; `Some(None)` switches it off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Path rewriting.
    pub path_rewrite: PathRewrite,
    /// Host rewriting.
    pub host_rewrite: HostRewrite,
    /// `append_x_forwarded_host`.
    pub append_x_forwarded_host: bool,
    /// `max_grpc_timeout` and `grpc_timeout_offset`: gRPC requests go by their own `grpc-timeout` header.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// `priority: HIGH`.
    pub priority_high: bool,
    /// `upgrade_configs` by lower-case upgrade type: enabled or not.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// `max_stream_duration`; where it is set the old timeouts do not hold.
    pub stream_duration: Option<StreamDuration>,
}

/// `RouteAction.MaxStreamDuration`: how long an exchange may last in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamDuration {
    /// `max_stream_duration`: overrides the connection manager's; `Some(None)` (0 s) is no limit.
    pub max: Option<Option<Duration>>,
    /// `grpc_timeout_header_max` and `grpc_timeout_header_offset`: where a request has a `grpc-timeout` it holds in the
    /// place of `max`, capped and with the offset taken off.
    pub grpc: Option<GrpcTimeout>,
}

/// What a gRPC request's timeout is made of, in the place of the route's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// What the request's `grpc-timeout` is capped to; `None` (0 s) is no cap.
    pub max: Option<Duration>,
    /// Subtracted from the request's value.
    pub offset: Duration,
}

/// `cluster`, `cluster_header` or `weighted_clusters`.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterSpecifier {
    /// By name.
    Cluster(Arc<str>),
    /// By the value of a header.
    Header(http::HeaderName),
    /// One of several by weight; the total is the sum of the weights and above zero.
    Weighted {
        /// With weights; a weight of zero is never chosen.
        clusters: Vec<WeightedCluster>,
        /// Sum of the weights.
        total: u64,
        /// `header_name`: the header that holds the random value instead.
        random_value_header: Option<http::HeaderName>,
    },
}

/// `WeightedCluster.ClusterWeight`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// `name` (or see `header`).
    pub name: Arc<str>,
    /// `cluster_header`, where `name` is empty.
    pub header: Option<http::HeaderName>,
    /// `weight`.
    pub weight: u32,
    /// `request_headers_to_add/remove`.
    pub request_headers: HeaderMutations,
    /// `response_headers_to_add/remove`.
    pub response_headers: HeaderMutations,
    /// `typed_per_filter_config`.
    pub per_filter: PerFilter,
    /// `host_rewrite_literal`.
    pub host_rewrite: Option<Box<str>>,
}

/// How the path is rewritten.
#[derive(Clone, Debug, PartialEq)]
pub enum PathRewrite {
    /// It is not.
    None,
    /// `prefix_rewrite`: replaces the matched prefix (or whole path).
    Prefix(Box<str>),
    /// `regex_rewrite`: pattern (searched, all occurrences) and substitution with `\1`-style groups.
    Regex {
        /// What is searched for.
        pattern: FullRegexSearch,
        /// What replaces it.
        substitution: Box<str>,
    },
    /// `path_rewrite`: a substitution format for the whole path with query.
    Format(super::access_log::Format),
}

/// A compiled regular expression for searching; equal when the source is.
#[derive(Clone, Debug)]
pub struct FullRegexSearch {
    /// As written.
    pub source: Box<str>,
    /// Not anchored.
    pub regex: regex::bytes::Regex,
}

impl PartialEq for FullRegexSearch {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// How the authority is rewritten.
#[derive(Clone, Debug, PartialEq)]
pub enum HostRewrite {
    /// It is not.
    None,
    /// `host_rewrite_literal`.
    Literal(Box<str>),
    /// `auto_host_rewrite`: to the upstream host's name, for DNS clusters.
    Auto,
    /// `host_rewrite_header`.
    Header(http::HeaderName),
    /// `host_rewrite_path_regex`.
    PathRegex {
        /// What is searched for.
        pattern: FullRegexSearch,
        /// What replaces it.
        substitution: Box<str>,
    },
}

/// `RedirectAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct RedirectAction {
    /// `https_redirect` or `scheme_redirect`, as written.
    pub scheme: Option<Box<str>>,
    /// `host_redirect`.
    pub host: Option<Box<str>>,
    /// `port_redirect`.
    pub port: Option<u16>,
    /// Path, prefix or regex.
    pub path: RedirectPath,
    /// 301, 302, 303, 307 or 308.
    pub status: http::StatusCode,
    /// `strip_query`.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Clone, Debug, PartialEq)]
pub enum RedirectPath {
    /// That of the request.
    Keep,
    /// `path_redirect`: may hold a query of its own, which then replaces the request's.
    Whole(Box<str>),
    /// `prefix_rewrite`.
    Prefix(Box<str>),
    /// `regex_rewrite`.
    Regex {
        /// What is searched for.
        pattern: FullRegexSearch,
        /// What replaces it.
        substitution: Box<str>,
    },
}

/// `DirectResponseAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectResponse {
    /// 200..600.
    pub status: http::StatusCode,
    /// Body, already read where it came from a file or the environment.
    pub body: bytes::Bytes,
}
