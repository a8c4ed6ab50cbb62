//! From what is accepted to what is served: a snapshot of all that is warm.
//!
//! A cluster is warm once the first answer for its endpoints has come, a listener once its routes and discovered
//! filters have; an answer may also be that there is none, or that waiting has ended. What is not warm yet is served
//! as it was before. What has not changed keeps its `Arc`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ResourceType;
use super::cache::{Accepted, Cache};
use super::resource::Value;
use super::status::Unready;
use crate::config::cluster::{ConfigSource, Discovery, SourceSpecifier};
use crate::config::extension::HttpFilterConfig;
use crate::config::http_connection_manager::{FilterSource, RouteSource};
use crate::config::snapshot::Sourced;
use crate::config::{Cluster, Listener, RouteConfig, Snapshot};

/// How a subscription to one name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Not yet.
    Waiting,
    /// With a value, at least once.
    Value,
    /// With one that was refused, and none before.
    Rejected,
    /// There is none, or waiting has ended.
    Nothing,
}

/// What a listener needs besides itself.
#[derive(Debug)]
pub(super) enum Reference<'a> {
    Route {
        name: &'a Arc<str>,
        source: &'a ConfigSource,
        stat_prefix: &'a str,
    },
    Extension {
        name: &'a str,
        source: &'a ConfigSource,
        type_urls: &'a [Box<str>],
        default: Option<&'a HttpFilterConfig>,
        default_without_warming: bool,
    },
}

/// The EDS name of a cluster.
pub(super) fn cluster_reference(cluster: &Cluster) -> Option<(&Arc<str>, &ConfigSource)> {
    match &cluster.discovery {
        Discovery::Eds {
            service_name,
            source,
        } => Some((service_name, source)),
        Discovery::Static(_) | Discovery::StrictDns(_) | Discovery::LogicalDns(_) => None,
    }
}

/// The RDS and ECDS names of a listener.
pub(super) fn listener_references(listener: &Listener) -> impl Iterator<Item = Reference<'_>> {
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);
    chains.filter_map(|chain| chain.http()).flat_map(|http| {
        let routes = match &http.routes {
            RouteSource::Inline(_) => None,
            RouteSource::Rds { name, source } => Some(Reference::Route {
                name,
                source,
                stat_prefix: &http.stat_prefix,
            }),
        };
        let filters = http
            .http_filters
            .iter()
            .filter_map(|filter| match &filter.config {
                FilterSource::Inline(_) => None,
                FilterSource::Discovered {
                    source,
                    type_urls,
                    default,
                    apply_default_without_warming,
                } => Some(Reference::Extension {
                    name: &filter.name,
                    source,
                    type_urls,
                    default: default.as_ref(),
                    default_without_warming: *apply_default_without_warming,
                }),
            });
        routes.into_iter().chain(filters)
    })
}

/// What the bootstrap holds; it wins over dynamic resources of the same name.
#[derive(Debug, Default)]
pub(super) struct Statics {
    pub(super) clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    pub(super) listeners: BTreeMap<Arc<str>, Arc<Listener>>,
}

/// What an assembly came to.
#[derive(Debug, Default)]
pub(super) struct Assembled {
    pub(super) snapshot: Snapshot,
    /// Accepted clusters that are not served yet.
    pub(super) warming_clusters: usize,
    /// Accepted or static listeners that are not served yet.
    pub(super) warming_listeners: BTreeSet<Arc<str>>,
    pub(super) unready: Vec<Unready>,
    /// Something that was served was replaced: what only it referred to is no longer needed.
    pub(super) replaced: bool,
}

/// Makes the snapshot, and moves in `cache` what has become warm to active. `answered` tells of subscriptions;
/// listeners are left out until `with_listeners`.
pub(super) fn assemble(
    cache: &mut Cache,
    statics: &Statics,
    previous: &Snapshot,
    with_listeners: bool,
    answered: impl Fn(ResourceType, &SourceSpecifier, &str) -> Answered,
) -> Assembled {
    let mut assembled = Assembled::default();
    clusters(cache, statics, &mut assembled, &answered);
    endpoints(cache, &mut assembled.snapshot);
    if with_listeners {
        listeners(cache, statics, &mut assembled, &answered);
        referred(cache, &mut assembled.snapshot, previous, &answered);
    }
    assembled
}

fn clusters(
    cache: &mut Cache,
    statics: &Statics,
    assembled: &mut Assembled,
    answered: &impl Fn(ResourceType, &SourceSpecifier, &str) -> Answered,
) {
    let waiting = |cluster: &Cluster, has_predecessor: bool| {
        let (name, source) = cluster_reference(cluster)?;
        let answered = answered(ResourceType::Endpoints, &source.specifier, name);
        is_waiting(answered, has_predecessor).then(|| Arc::clone(name))
    };
    let mut served: Vec<(Arc<str>, Arc<Cluster>)> = Vec::new();
    for (name, cluster) in &statics.clusters {
        match waiting(cluster, false) {
            None => served.push((Arc::clone(name), Arc::clone(cluster))),
            Some(endpoints) => assembled.wait_for_cluster(name, &endpoints),
        }
    }
    let tables = cache.tables_mut(ResourceType::Cluster).values_mut();
    for (name, entry) in tables.flat_map(|table| &mut table.entries) {
        if let Some(Accepted {
            value: Value::Cluster(cluster),
            ..
        }) = entry.warming().map(Arc::as_ref)
        {
            match waiting(cluster, entry.active.is_some()) {
                None => {
                    assembled.replaced |= entry.active.is_some();
                    entry.active.clone_from(&entry.current);
                }
                Some(endpoints) => {
                    assembled.warming_clusters += 1;
                    assembled.wait_for_cluster(name, &endpoints);
                }
            }
        }
        if let Some(Accepted {
            value: Value::Cluster(cluster),
            ..
        }) = entry.active.as_deref()
            && !statics.clusters.contains_key(name)
        {
            served.push((Arc::clone(name), Arc::clone(cluster)));
        }
    }
    assembled.snapshot.clusters = served.into_iter().collect();
}

/// Endpoints belong to every cluster that is served or warming: those of a warming one are simply not used yet.
fn endpoints(cache: &mut Cache, snapshot: &mut Snapshot) {
    for (source, table) in cache.tables_mut(ResourceType::Endpoints) {
        for (name, entry) in &mut table.entries {
            if entry.warming().is_some() {
                entry.active.clone_from(&entry.current);
            }
            if let Some(Accepted {
                value: Value::Endpoints(endpoints),
                ..
            }) = entry.active.as_deref()
            {
                let (name, endpoints) = (Arc::clone(name), Arc::clone(endpoints));
                snapshot.endpoints.insert(source, name, endpoints);
            }
        }
    }
}

fn listeners(
    cache: &mut Cache,
    statics: &Statics,
    assembled: &mut Assembled,
    answered: &impl Fn(ResourceType, &SourceSpecifier, &str) -> Answered,
) {
    let waiting = |listener: &Listener, has_predecessor: bool| -> Vec<String> {
        listener_references(listener)
            .filter_map(|reference| match reference {
                Reference::Route { name, source, .. } => {
                    let answered = answered(ResourceType::Route, &source.specifier, name);
                    is_waiting(answered, has_predecessor).then(|| {
                        format!("shared target RdsRouteConfigSubscription RDS init {name}")
                    })
                }
                Reference::Extension {
                    name,
                    source,
                    default,
                    default_without_warming,
                    ..
                } => {
                    let answered = answered(ResourceType::Extension, &source.specifier, name);
                    (is_waiting(answered, has_predecessor)
                        && !(default.is_some() && default_without_warming))
                        .then(|| format!("shared target FilterConfigSubscription init {name}"))
                }
            })
            .collect()
    };
    for (name, listener) in &statics.listeners {
        let targets = waiting(listener, false);
        if targets.is_empty() {
            assembled
                .snapshot
                .listeners
                .insert(Arc::clone(name), Arc::clone(listener));
        } else {
            assembled.wait_for_listener(name, targets);
        }
    }
    let tables = cache.tables_mut(ResourceType::Listener).values_mut();
    for (name, entry) in tables.flat_map(|table| &mut table.entries) {
        if let Some(Accepted {
            value: Value::Listener(listener),
            ..
        }) = entry.warming().map(Arc::as_ref)
        {
            let targets = waiting(listener, entry.active.is_some());
            if targets.is_empty() {
                assembled.replaced |= entry.active.is_some();
                entry.replace_active();
            } else {
                assembled.wait_for_listener(name, targets);
            }
        }
        if let Some(Accepted {
            value: Value::Listener(listener),
            ..
        }) = entry.active.as_deref()
            && !statics.listeners.contains_key(name)
        {
            assembled
                .snapshot
                .listeners
                .insert(Arc::clone(name), Arc::clone(listener));
        }
    }
}

/// The routes and filters that the served listeners name.
fn referred(
    cache: &mut Cache,
    snapshot: &mut Snapshot,
    previous: &Snapshot,
    answered: &impl Fn(ResourceType, &SourceSpecifier, &str) -> Answered,
) {
    for kind in [ResourceType::Route, ResourceType::Extension] {
        for table in cache.tables_mut(kind).values_mut() {
            for entry in table.entries.values_mut() {
                entry.active.clone_from(&entry.current);
            }
        }
    }
    let warming: BTreeSet<Arc<str>> = cache
        .entries(ResourceType::Cluster)
        .filter(|(_, entry)| entry.active.is_none() && entry.warming().is_some())
        .map(|(name, _)| Arc::clone(name))
        .collect();
    let mut routes: Sourced<RouteConfig> = Sourced::default();
    let mut extensions: Sourced<HttpFilterConfig> = Sourced::default();
    for listener in snapshot.listeners.values() {
        for reference in listener_references(listener) {
            match reference {
                Reference::Route { name, source, .. } => {
                    let source = &source.specifier;
                    if let Some(accepted) = cache.current(ResourceType::Route, source, name)
                        && let Value::Route(route) = &accepted.value
                    {
                        // Make before break: routes wait for the clusters that came with them.
                        let route = match previous.routes.get(source, name) {
                            Some(known)
                                if !Arc::ptr_eq(known, route) && route.names_any(&warming) =>
                            {
                                known
                            }
                            _ => route,
                        };
                        routes.insert(source, Arc::clone(name), Arc::clone(route));
                    }
                }
                Reference::Extension {
                    name,
                    source,
                    default,
                    default_without_warming,
                    ..
                } => {
                    let source = &source.specifier;
                    if let Some(accepted) = cache.current(ResourceType::Extension, source, name)
                        && let Value::Extension(config) = &accepted.value
                    {
                        extensions.insert(source, name.into(), Arc::clone(config));
                    } else if let Some(default) = default
                        && (default_without_warming
                            || answered(ResourceType::Extension, source, name) != Answered::Waiting)
                    {
                        let known = previous.extensions.get(source, name);
                        let config = match known.filter(|known| ***known == *default) {
                            Some(known) => Arc::clone(known),
                            None => Arc::new(default.clone()),
                        };
                        if extensions.get(source, name).is_none() {
                            extensions.insert(source, name.into(), config);
                        }
                    }
                }
            }
        }
    }
    snapshot.routes = routes;
    snapshot.extensions = extensions;
}

/// A refusal ends the first wait, as in Envoy; what has a predecessor goes on waiting, so that nothing good is lost.
fn is_waiting(answered: Answered, has_predecessor: bool) -> bool {
    match answered {
        Answered::Waiting => true,
        Answered::Rejected => has_predecessor,
        Answered::Value | Answered::Nothing => false,
    }
}

impl Assembled {
    fn wait_for_listener(&mut self, name: &Arc<str>, targets: Vec<String>) {
        self.warming_listeners.insert(Arc::clone(name));
        self.unready.push(Unready::listener(name, targets));
    }

    fn wait_for_cluster(&mut self, cluster: &str, endpoints: &str) {
        // One line is enough to say that clusters are waited for; ten thousand would not help.
        const SHOWN: usize = 100;
        if self.unready.len() < SHOWN {
            self.unready.push(Unready {
                name: format!("cluster {cluster}"),
                targets: vec![format!("EDS {endpoints}")],
            });
        }
    }
}
