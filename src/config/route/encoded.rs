//! A route table from its bytes, with the routes of the table before it wherever their bytes are the same.
//!
//! Control planes send the whole table again for one changed route. Routes are decoded one at a time: as messages,
//! ten thousand of them are tens of MiB, which to write and to clear costs more than all that is done with them.

use std::cell::OnceCell;
use std::sync::Arc;

use prost::Message as _;
use rustc_hash::FxHashMap;

use super::parse::Parser;
use super::{Action, ClusterSpecifier, Route, RouteConfig};
use crate::config::{ConfigError, ParseContext};
use crate::pb;
use crate::pb::envoy::config::route::v3 as proto;

/// `RouteConfiguration.virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;
/// `VirtualHost.routes`.
const ROUTES: u32 = 3;

/// The encoded routes of a table, by virtual host, and the routes of the table before.
#[derive(Debug)]
pub(super) struct Encoded<'a> {
    routes: Vec<Vec<&'a [u8]>>,
    previous: Option<Previous<'a>>,
}

#[derive(Debug)]
struct Previous<'a> {
    table: &'a RouteConfig,
    routes: Vec<Vec<&'a [u8]>>,
    /// For routes that have moved.
    by_bytes: OnceCell<FxHashMap<&'a [u8], &'a Arc<Route>>>,
}

impl RouteConfig {
    /// Validates an encoded RDS resource. `previous` is the table that it replaces, with its bytes.
    ///
    /// # Errors
    /// As [`RouteConfig::parse`], and where the bytes do not decode.
    pub fn parse_encoded(
        body: &[u8],
        previous: Option<(&[u8], &Self)>,
        context: &ParseContext<'_>,
    ) -> Result<Self, ConfigError> {
        if let Some(table) = Self::parse_by_route(body, previous, context) {
            return Ok(table);
        }
        // Errors are those of the whole message.
        let message = proto::RouteConfiguration::decode(body)
            .map_err(|error| ConfigError::invalid(error.to_string()))?;
        Self::parse(message, context)
    }

    /// `None` where anything is wrong.
    fn parse_by_route(
        body: &[u8],
        previous: Option<(&[u8], &Self)>,
        context: &ParseContext<'_>,
    ) -> Option<Self> {
        let (shell, routes) = split(body)?;
        let message = proto::RouteConfiguration::decode(shell.as_slice()).ok()?;
        let previous = previous.and_then(|(body, table)| {
            let (_, routes) = split(body)?;
            Some(Previous {
                table,
                routes,
                by_bytes: OnceCell::new(),
            })
        });
        let encoded = Encoded { routes, previous };
        Self::parse_checking(message, context, false, Some(&encoded)).ok()
    }
}

/// A table without its routes, and the routes by virtual host.
fn split(body: &[u8]) -> Option<(Vec<u8>, Vec<Vec<&[u8]>>)> {
    let (mut shell, hosts) = pb::split_off(body, VIRTUAL_HOSTS)?;
    let mut routes = Vec::with_capacity(hosts.len());
    for host in hosts {
        let (host, of_host) = pb::split_off(host, ROUTES)?;
        prost::encoding::bytes::encode(VIRTUAL_HOSTS, &host, &mut shell);
        routes.push(of_host);
    }
    Some((shell, routes))
}

impl<'a> Encoded<'a> {
    /// The routes of the virtual host at this position.
    pub(super) fn of_host(&self, host: usize) -> &[&'a [u8]] {
        self.routes.get(host).map_or(&[], Vec::as_slice)
    }

    /// The route with these bytes, at this position.
    pub(super) fn route(
        &self,
        (host, position): (usize, usize),
        bytes: &[u8],
        parser: &Parser<'_>,
    ) -> Result<Arc<Route>, ConfigError> {
        if let Some(previous) = &self.previous
            && previous.table.max_direct_response_body_size == parser.max_direct_response
            && let Some(known) = previous.find((host, position), bytes)
            && depends_on_its_bytes_only(known)
        {
            return Ok(Arc::clone(known));
        }
        let message =
            proto::Route::decode(bytes).map_err(|error| ConfigError::invalid(error.to_string()))?;
        parser.route(message).map(Arc::new)
    }
}

impl<'a> Previous<'a> {
    fn find(&self, (host, position): (usize, usize), bytes: &[u8]) -> Option<&Arc<Route>> {
        let in_place = self
            .routes
            .get(host)
            .and_then(|routes| routes.get(position));
        if in_place.is_some_and(|known| *known == bytes) {
            return self.table.virtual_hosts.get(host)?.routes.get(position);
        }
        self.by_bytes
            .get_or_init(|| self.by_bytes())
            .get(bytes)
            .copied()
    }

    fn by_bytes(&self) -> FxHashMap<&'a [u8], &'a Arc<Route>> {
        let values = self.table.virtual_hosts.iter().map(|host| &host.routes);
        self.routes
            .iter()
            .zip(values)
            .flat_map(|(bytes, routes)| bytes.iter().copied().zip(routes))
            .collect()
    }
}

/// False where the same bytes may mean something else today: a body from a file, a plugin's code.
fn depends_on_its_bytes_only(route: &Route) -> bool {
    route.per_filter.is_empty()
        && match &route.action {
            Action::Forward(forward) => match &forward.cluster {
                ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => true,
                ClusterSpecifier::Weighted { clusters, .. } => {
                    clusters.iter().all(|cluster| cluster.per_filter.is_empty())
                }
            },
            Action::Redirect(_) | Action::NonForwarding => true,
            Action::DirectResponse(_) => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::stub;

    fn encode(text: &str) -> Vec<u8> {
        pb::from_yaml::<proto::RouteConfiguration>(text)
            .unwrap()
            .encode_to_vec()
    }

    /// Two virtual hosts, routes of every kind.
    fn table(first: &str, extra: &str) -> Vec<u8> {
        encode(&format!(
            r#"
name: t
response_headers_to_remove: [x-a]
virtual_hosts:
- name: a
  domains: ["a.test"]
  routes:
  {extra}
  - {{match: {{path: /first}}, route: {{cluster: {first}}}}}
  - {{match: {{prefix: /w}}, route: {{weighted_clusters: {{clusters: [{{name: c, weight: 1}}, {{name: d, weight: 2}}]}}}}}}
  - {{match: {{prefix: /d}}, direct_response: {{status: 200, body: {{inline_string: body}}}}}}
  request_headers_to_remove: [x-b]
- name: b
  domains: ["*"]
  routes:
  - {{match: {{prefix: /r}}, redirect: {{host_redirect: b.test}}}}
  - {{match: {{prefix: /}}, route: {{cluster: c, timeout: 3s}}}}
"#
        ))
    }

    fn whole(body: &[u8]) -> Result<RouteConfig, String> {
        let message = proto::RouteConfiguration::decode(body).map_err(|error| error.to_string())?;
        RouteConfig::parse(message, &stub::context()).map_err(|error| error.to_string())
    }

    fn by_route(body: &[u8], previous: Option<(&[u8], &RouteConfig)>) -> RouteConfig {
        RouteConfig::parse_by_route(body, previous, &stub::context()).expect("a valid table")
    }

    #[test]
    fn it_reads_what_the_whole_message_says() {
        let body = table("c", "");
        assert_eq!(by_route(&body, None), whole(&body).unwrap());
        assert_eq!(by_route(b"", None), whole(b"").unwrap());
    }

    #[test]
    fn unchanged_routes_are_shared_wherever_they_stand() {
        let before = table("c", "");
        let old = by_route(&before, None);
        for (after, from) in [
            (table("d", ""), 0),
            (
                table("d", "- {match: {path: /new}, route: {cluster: n}}"),
                1,
            ),
        ] {
            let new = by_route(&after, Some((&before, &old)));
            assert_eq!(new, whole(&after).unwrap());
            let shared = |host: usize, old_at: usize, new_at: usize| {
                Arc::ptr_eq(
                    &old.virtual_hosts[host].routes[old_at],
                    &new.virtual_hosts[host].routes[new_at],
                )
            };
            assert!(!shared(0, 0, from), "it has changed");
            assert!(shared(0, 1, from + 1));
            assert!(!shared(0, 2, from + 2), "its body may come from a file");
            assert!(shared(1, 0, 0) && shared(1, 1, 1));
        }
    }

    #[test]
    fn a_smaller_limit_holds_for_old_routes_too() {
        let before = table("c", "");
        let old = by_route(&before, None);
        let mut after = before.clone();
        // max_direct_response_body_size_bytes: 2
        after.extend([0x5a, 2, 8, 2]);
        let error = RouteConfig::parse_encoded(&after, Some((&before, &old)), &stub::context())
            .expect_err("the body has 4 bytes");
        assert_eq!(error.to_string(), whole(&after).unwrap_err());
    }

    #[test]
    fn errors_are_those_of_the_whole_message() {
        let good = table("c", "");
        let old = by_route(&good, None);
        let mut broken = vec![
            encode(
                "{name: t, virtual_hosts: [{name: a, domains: ['*'], routes: [{match: {prefix: /}}]}]}",
            ),
            encode(
                "{name: t, virtual_hosts: [{name: a, domains: ['*']}, {name: b, domains: ['*']}]}",
            ),
        ];
        for cut in 1..good.len() {
            broken.push(good[..cut].to_vec());
        }
        for body in broken {
            let got = RouteConfig::parse_encoded(&body, Some((&good, &old)), &stub::context());
            assert_eq!(got.map_err(|error| error.to_string()), whole(&body));
        }
    }
}
