//! The plugins that routes put in the place of a filter's own.
//!
//! Each place of a route table is one of its own: what served there serves until its next version does, and nothing that
//! another route asks for ever does.

use std::collections::HashMap;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;

use super::Choice;
use crate::config::RouteConfig;
use crate::config::route::Place;
use crate::filter::BuildContext;
use crate::filter::factory::per_route_all;
use crate::stream::Stream;
use crate::wasm::{PluginSpec, slot};

/// The address of what a place says, which its choice keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(NonZero<usize>);

impl Key {
    fn of(spec: &PluginSpec) -> Self {
        Self(NonNull::from(spec).addr())
    }
}

#[derive(Debug)]
struct OfRoute {
    _asked: Arc<PluginSpec>,
    choice: Choice,
}

/// Those of one filter in one table.
#[derive(Debug, Default)]
pub(super) struct OfRoutes(HashMap<Key, OfRoute>);

impl OfRoutes {
    /// What serves at each place of the chain's routes now.
    pub(super) fn resolve(context: &BuildContext<'_>) -> Self {
        let mut found = HashMap::new();
        let Some(table) = context.chain.routes else {
            return Self(found);
        };
        let filter = slot::part(context.name);
        table.each_per_filter(&mut |place, per_filter| {
            let config = per_filter.get(context.name);
            let Some(config) = config.and_then(|config| config.config.as_ref()) else {
                return;
            };
            let parsed: Arc<dyn std::any::Any + Send + Sync> = config.parsed.clone();
            let Ok(spec) = parsed.downcast::<PluginSpec>() else {
                return;
            };
            let place = name(table, place);
            let slot = slot::of(&[context.chain.place, "route", &place, &filter], &spec);
            let choice = Choice::resolve(slot, &spec, context);
            let of_route = OfRoute {
                _asked: Arc::clone(&spec),
                choice,
            };
            found.insert(Key::of(&spec), of_route);
        });
        Self(found)
    }

    /// What the route of `stream` says for the filter called `name`.
    #[inline]
    pub(super) fn choose(&self, name: &str, stream: &Stream) -> Option<(Key, &Choice)> {
        if self.0.is_empty() {
            return None;
        }
        let route = stream.route()?;
        let key = per_route_all::<PluginSpec>(&route, name)
            .next()
            .map(Key::of)?;
        Some((key, self.get(key)?))
    }

    pub(super) fn get(&self, key: Key) -> Option<&Choice> {
        self.0.get(&key).map(|of_route| &of_route.choice)
    }

    /// False where none of them has a callback that hears of a stream's end.
    pub(super) fn hear_ends(&self) -> bool {
        self.0.values().any(|of_route| of_route.choice.hears_ends)
    }
}

/// The virtual host, the route and the weighted cluster of a place; what it has not of these is empty. A route is its match,
/// which tells whose requests those are: routes may lack a name, share one, or be numbered by it.
fn name(table: &RouteConfig, place: &Place) -> String {
    let host = place.virtual_host(table);
    let route = place.route(table);
    let cluster = place.cluster(table).map(|cluster| match &cluster.header {
        Some(header) if cluster.name.is_empty() => format!("({header})"),
        _ => slot::part(&cluster.name),
    });
    format!(
        "{}/{}/{}",
        host.map(|host| slot::part(&host.name)).unwrap_or_default(),
        route
            .map(|route| slot::sum(&route.matcher))
            .unwrap_or_default(),
        cluster.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::stub;
    use crate::pb;

    fn names(yaml: &str) -> Vec<String> {
        let message = pb::from_yaml(yaml).expect("YAML");
        let table = RouteConfig::parse(message, &stub::context()).expect("a valid table");
        let mut names = Vec::new();
        table.each_per_filter(&mut |place, _| names.push(name(&table, place)));
        names
    }

    #[test]
    fn places_are_what_they_match() {
        let first = names(
            "
            name: t
            virtual_hosts:
            - name: a/1
              domains: [a]
              routes:
              - {match: {prefix: /1}, route: {cluster: c}, name: one}
              - {match: {prefix: /2}, route: {cluster: c}, name: two}
              - {match: {prefix: /3}, route: {cluster: c}, name: two}
              - match: {prefix: /4}
                route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {cluster_header: x-c, weight: 1}]}}
            - {name: b, domains: [b], routes: [{match: {prefix: /4}, route: {cluster: c}}]}
            ",
        );
        let apart: std::collections::BTreeSet<_> = first.iter().collect();
        assert_eq!(apart.len(), first.len(), "{first:?}");
        assert_eq!(first[..2], ["//", "a%2F1//"]);
        let tail = |name: &String, part: usize| name.split('/').nth(part).map(str::to_owned);
        assert_eq!(tail(&first[6], 2).as_deref(), Some("c"));
        assert_eq!(tail(&first[7], 2).as_deref(), Some("(x-c)"));
        assert_eq!(tail(&first[5], 1), tail(&first[9], 1), "the same match");
        // In another order, by another name, with another action: the same places.
        let second = names(
            "
            name: t
            virtual_hosts:
            - {name: b, domains: [b], routes: [{match: {prefix: /}, route: {cluster: c}}, {match: {prefix: /4}, route: {cluster: d}}]}
            - name: a/1
              domains: [a]
              routes:
              - {match: {prefix: /new}, route: {cluster: c}, name: one}
              - {match: {prefix: /1}, route: {cluster: c}, name: two}
              - {match: {prefix: /2}, route: {cluster: c}}
            ",
        );
        let kept: Vec<_> = second.iter().map(|name| first.contains(name)).collect();
        assert_eq!(
            kept,
            [true, true, false, true, true, false, true, true],
            "{second:?}"
        );
    }
}
