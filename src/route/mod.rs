//! Routing: a [`RouteTable`] compiled from a [`RouteConfig`], and what it selects.
//!
//! Selection costs a hash look-up for exact domains and one for exact paths, a binary search for prefixes, and a walk
//! over what is neither; its order is Envoy's (exact domain, longest suffix, longest prefix, `*`; then the first
//! matching route in the order of the configuration).

mod domains;
mod index;
pub mod matcher;
pub mod redirect;
pub mod rewrite;

use std::sync::{Arc, OnceLock};

use http::{Method, StatusCode};

use crate::config::RouteConfig;
use crate::config::extension::PerRouteConfig;
use crate::config::header::HeaderMutations;
use crate::config::route::{
    Action, ClusterSpecifier, ForwardAction, PathMatch, PerFilter, RedirectAction, RedirectPath,
    RequireTls, Route, RouteMatch, VirtualHost, WeightedCluster,
};
use crate::http::RequestHead;

use domains::Domains;
pub use domains::port_start;
use index::RouteIndex;

/// A compiled route table. Immutable.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfig>,
    domains: Domains,
    /// By position of the virtual host.
    indices: Box<[RouteIndex]>,
    /// What `require_tls` answers with.
    tls_redirect: OnceLock<Arc<Route>>,
}

impl RouteTable {
    /// Compiles `config`.
    pub fn new(config: Arc<RouteConfig>) -> Self {
        Self {
            domains: Domains::new(&config.virtual_hosts),
            indices: config
                .virtual_hosts
                .iter()
                .map(|host| RouteIndex::new(&host.routes))
                .collect(),
            config,
            tls_redirect: OnceLock::new(),
        }
    }

    /// The configuration it was compiled from.
    pub fn config(&self) -> &Arc<RouteConfig> {
        &self.config
    }

    /// The virtual host for `request`, whether or not it has a route there.
    pub fn virtual_host(&self, request: &RequestHead) -> Option<&VirtualHost> {
        let ignore_port = self.config.ignore_port_in_host_matching;
        let found = self
            .domains
            .find(request.authority.as_bytes(), ignore_port)?;
        self.config.virtual_hosts.get(found as usize)
    }

    /// The route for `request`; `random` decides fractions and weights. `None`: no virtual host or no route.
    pub fn select(self: &Arc<Self>, request: &RequestHead, random: u64) -> Option<SelectedRoute> {
        let found = self.domains.find(
            request.authority.as_bytes(),
            self.config.ignore_port_in_host_matching,
        )?;
        let index = found as usize;
        let host = &self.config.virtual_hosts[index];
        if needs_tls(host.require_tls, request) {
            return Some(SelectedRoute {
                table: self.clone(),
                virtual_host: index,
                route: self.tls_redirect.get_or_init(tls_redirect).clone(),
                cluster: None,
                weighted: None,
                tls_redirect: true,
            });
        }
        let at = self.find(index, request, random)?;
        let route = host.routes[at].clone();
        let (cluster, weighted) = match &route.action {
            Action::Forward(forward) => choose_cluster(&forward.cluster, request, random),
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => (None, None),
        };
        Some(SelectedRoute {
            table: self.clone(),
            virtual_host: index,
            route,
            cluster,
            weighted,
            tls_redirect: false,
        })
    }

    /// As [`RouteTable::select`], for a request that was on the route `before` until its head was changed. Where it still is,
    /// that costs less.
    pub fn select_again(
        self: &Arc<Self>,
        request: &RequestHead,
        random: u64,
        before: Arc<SelectedRoute>,
    ) -> Option<Arc<SelectedRoute>> {
        let index = before.virtual_host;
        let ignore_port = self.config.ignore_port_in_host_matching;
        let chosen_once = match &before.route.action {
            Action::Forward(forward) => matches!(forward.cluster, ClusterSpecifier::Cluster(_)),
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => true,
        };
        let same = chosen_once
            && Arc::ptr_eq(&before.table, self)
            && self.domains.find(request.authority.as_bytes(), ignore_port)
                == u32::try_from(index).ok()
            && self.config.virtual_hosts[index].require_tls == RequireTls::None
            && self.find(index, request, random).is_some_and(|at| {
                Arc::ptr_eq(&self.config.virtual_hosts[index].routes[at], &before.route)
            });
        if same {
            return Some(before);
        }
        self.select(request, random).map(Arc::new)
    }

    /// The position of the route for `request` in the virtual host number `host`.
    fn find(&self, host: usize, request: &RequestHead, random: u64) -> Option<usize> {
        let path = request.path_only();
        let routes = &self.config.virtual_hosts[host].routes;
        self.indices[host].find(routes, path, |route| {
            route_matches(&route.matcher, request, path, random)
        })
    }
}

fn needs_tls(required: RequireTls, request: &RequestHead) -> bool {
    // Not the scheme: the two may differ, and Envoy compares letter by letter here.
    let proto = request.headers.get("x-forwarded-proto");
    let plain = proto.is_none_or(|proto| proto != "https");
    match required {
        RequireTls::None => false,
        RequireTls::All => plain,
        RequireTls::ExternalOnly => {
            plain
                && request
                    .headers
                    .get("x-envoy-internal")
                    .is_none_or(|value| value != "true")
        }
    }
}

fn tls_redirect() -> Arc<Route> {
    Arc::new(Route {
        name: "".into(),
        matcher: RouteMatch {
            path: PathMatch::Prefix("".into()),
            ignore_case: false,
            fraction_per_million: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            grpc: false,
        },
        action: Action::Redirect(Box::new(RedirectAction {
            scheme: Some("https".into()),
            host: None,
            port: None,
            path: RedirectPath::Keep,
            status: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
        })),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        per_filter: Default::default(),
        metadata: None,
        decorator: None,
    })
}

fn route_matches(matcher: &RouteMatch, request: &RequestHead, path: &[u8], random: u64) -> bool {
    path_matches(matcher, request, path)
        && matcher.fraction_per_million.is_none_or(|fraction| {
            // The upper half, so that the choice of a weighted cluster does not depend on it.
            (random >> 32) % 1_000_000 < u64::from(fraction)
        })
        && (!matcher.grpc || request.is_grpc())
        && matcher
            .headers
            .iter()
            .all(|header| matcher::header_matches(header, request))
        && (matcher.query_parameters.is_empty() || {
            let query = request.query();
            matcher
                .query_parameters
                .iter()
                .all(|parameter| matcher::query_matches(parameter, query))
        })
}

fn path_matches(matcher: &RouteMatch, request: &RequestHead, path: &[u8]) -> bool {
    // A plain CONNECT has no path: no other kind of route is for it.
    let connect = matches!(matcher.path, PathMatch::Connect);
    if request.path.is_empty() && !connect {
        return false;
    }
    match &matcher.path {
        PathMatch::Prefix(prefix) => starts_with(path, prefix, matcher.ignore_case),
        PathMatch::Exact(whole) => {
            path.len() == whole.len() && starts_with(path, whole, matcher.ignore_case)
        }
        PathMatch::SeparatedPrefix(prefix) => {
            starts_with(path, prefix, matcher.ignore_case)
                && path.get(prefix.len()).is_none_or(|byte| *byte == b'/')
        }
        PathMatch::Regex(regex) => regex.regex.is_match(path),
        PathMatch::Connect => request.method == Method::CONNECT,
    }
}

fn starts_with(path: &[u8], prefix: &str, ignore_case: bool) -> bool {
    path.get(..prefix.len()).is_some_and(|head| {
        if ignore_case {
            head.eq_ignore_ascii_case(prefix.as_bytes())
        } else {
            head == prefix.as_bytes()
        }
    })
}

fn choose_cluster(
    specifier: &ClusterSpecifier,
    request: &RequestHead,
    random: u64,
) -> (Option<Arc<str>>, Option<usize>) {
    match specifier {
        ClusterSpecifier::Cluster(name) => (Some(name.clone()), None),
        ClusterSpecifier::Header(name) => (cluster_from_header(request, name), None),
        ClusterSpecifier::Weighted {
            clusters,
            total,
            random_value_header,
        } => {
            let value = random_value_header
                .as_ref()
                .and_then(|name| {
                    request
                        .headers
                        .get(name)?
                        .to_str()
                        .ok()?
                        .parse::<u64>()
                        .ok()
                })
                .unwrap_or(random);
            let mut left = value % (*total).max(1);
            let chosen = clusters.iter().position(|cluster| {
                let weight = u64::from(cluster.weight);
                let here = left < weight;
                left = left.saturating_sub(weight);
                here
            });
            let name = chosen.and_then(|index| {
                let cluster = &clusters[index];
                match &cluster.header {
                    Some(header) => cluster_from_header(request, header),
                    None => Some(cluster.name.clone()),
                }
            });
            (name, chosen)
        }
    }
}

fn cluster_from_header(request: &RequestHead, name: &http::HeaderName) -> Option<Arc<str>> {
    let value = std::str::from_utf8(request.headers.get(name)?.as_bytes()).ok()?;
    (!value.is_empty()).then(|| value.into())
}

/// A matched route, with the choices made on the way.
#[derive(Clone, Debug)]
pub struct SelectedRoute {
    /// The table that it is of.
    pub table: Arc<RouteTable>,
    /// Index of the virtual host in the table's configuration.
    pub virtual_host: usize,
    /// The route.
    pub route: Arc<Route>,
    /// The cluster's name, for a forwarding route: weighted and header choices made. `None`: the header is missing.
    pub cluster: Option<Arc<str>>,
    /// Index of the chosen weighted cluster.
    pub weighted: Option<usize>,
    /// The route is the answer of `require_tls`: no header mutation and no filter configuration of any level applies.
    pub tls_redirect: bool,
}

impl SelectedRoute {
    /// The virtual host.
    pub fn virtual_host(&self) -> &VirtualHost {
        &self.table.config.virtual_hosts[self.virtual_host]
    }

    /// True where the route sends requests on, or would: Envoy's route entry. Redirects and direct responses are none.
    pub fn is_entry(&self) -> bool {
        match &self.route.action {
            Action::Forward(_) | Action::NonForwarding => true,
            Action::Redirect(_) | Action::DirectResponse(_) => false,
        }
    }

    /// The forwarding action, where the route forwards.
    pub fn forward(&self) -> Option<&ForwardAction> {
        match &self.route.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => None,
        }
    }

    /// The chosen weighted cluster.
    pub fn weighted_cluster(&self) -> Option<&WeightedCluster> {
        match &self.forward()?.cluster {
            ClusterSpecifier::Weighted { clusters, .. } => clusters.get(self.weighted?),
            ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => None,
        }
    }

    /// The most specific configuration for the filter called `name`: weighted cluster, route, virtual host, table.
    pub fn per_filter(&self, name: &str) -> Option<&PerRouteConfig> {
        self.per_filter_all(name).next()
    }

    /// Every level's configuration for the filter called `name`, most specific first.
    pub fn per_filter_all(&self, name: &str) -> impl Iterator<Item = &PerRouteConfig> {
        self.per_filter_levels()
            .filter_map(move |level| level.get(name))
    }

    /// True where there is configuration for any filter.
    pub fn has_per_filter(&self) -> bool {
        self.per_filter_levels().any(|level| !level.is_empty())
    }

    fn per_filter_levels(&self) -> impl Iterator<Item = &PerFilter> {
        let levels = [
            self.weighted_cluster().map(|cluster| &cluster.per_filter),
            Some(&self.route.per_filter),
            Some(&self.virtual_host().per_filter),
            Some(&self.table.config.per_filter),
        ];
        levels.into_iter().flatten().filter(|_| !self.tls_redirect)
    }

    /// The request header mutations of all levels in the order in which they apply: the most specific first, so that
    /// the least specific has the last word; with `most_specific_header_mutations_wins` the other way round, but for
    /// the weighted cluster's, which Envoy always applies first.
    pub fn request_mutations(&self) -> impl Iterator<Item = &HeaderMutations> {
        self.in_order([
            self.weighted_cluster()
                .map(|cluster| &cluster.request_headers),
            Some(&self.route.request_headers),
            Some(&self.virtual_host().request_headers),
            Some(&self.table.config.request_headers),
        ])
    }

    /// The response header mutations, ordered as [`SelectedRoute::request_mutations`].
    pub fn response_mutations(&self) -> impl Iterator<Item = &HeaderMutations> {
        self.in_order([
            self.weighted_cluster()
                .map(|cluster| &cluster.response_headers),
            Some(&self.route.response_headers),
            Some(&self.virtual_host().response_headers),
            Some(&self.table.config.response_headers),
        ])
    }

    fn in_order<'a>(
        &self,
        mut levels: [Option<&'a HeaderMutations>; 4],
    ) -> impl Iterator<Item = &'a HeaderMutations> + use<'a> {
        if self.tls_redirect {
            levels = [None; 4];
        } else if self.table.config.most_specific_header_mutations_wins {
            levels[1..].reverse();
        }
        levels
            .into_iter()
            .flatten()
            .filter(|mutations| !mutations.is_empty())
    }
}

#[cfg(test)]
mod tests;
