//! From who refers to whom to what is asked for, and from what is warm to what is served.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tokio::time::Instant;

use super::{Channel, ChannelId, Engine, Line, Origin, Subscription};
use crate::config::cluster::ConfigSource;
use crate::config::extension::{HttpFilterConfig, allows, check_type};
use crate::config::{Cluster, ConfigError, Listener};
use crate::xds::ads::{Conversation, Encoding, WILDCARD};
use crate::xds::assemble::{Answered, Reference, assemble, cluster_reference, listener_references};
use crate::xds::client::{ApiSource, Progress};
use crate::xds::resource::{ResourceType, Value};
use crate::xds::stats::{SubscriptionStats, cluster_manager, set_size};

/// A name that something refers to and nobody has asked for.
struct Missing {
    kind: ResourceType,
    name: Arc<str>,
    source: ConfigSource,
    stat_prefix: Box<str>,
}

impl Engine {
    /// A discovered filter has one of the types that those who refer to it allow, and hides no filter behind it: what
    /// is discovered is never the last of its chain.
    pub(super) fn check_extension(
        &self,
        name: &str,
        config: &HttpFilterConfig,
    ) -> Result<(), ConfigError> {
        if self.extensions.is_terminal(config) {
            return Err(ConfigError::invalid(format!(
                "Error: terminal filter named {name} of type envoy.filters.http.router must be the last filter in a \
                 http filter chain."
            )));
        }
        let cache = self.cache.read();
        let dynamic = cache
            .table(ResourceType::Listener)
            .entries
            .values()
            .filter_map(|entry| match &entry.current.as_ref()?.value {
                Value::Listener(listener) => Some(listener),
                _ => None,
            });
        for listener in self.statics.listeners.values().chain(dynamic) {
            for reference in listener_references(listener) {
                if let Reference::Extension {
                    name: referred,
                    type_urls,
                    ..
                } = reference
                    && referred == name
                {
                    check_type(type_urls, &config.type_url)?;
                }
            }
        }
        Ok(())
    }

    /// Counts where listeners refer to a filter that is there and is of a type that they do not allow: they go with
    /// their default, or without, as in Envoy.
    pub(super) fn count_conflicts<'a>(&self, listeners: impl Iterator<Item = &'a Arc<str>>) {
        let cache = self.cache.read();
        for name in listeners {
            let Some(Value::Listener(listener)) = cache
                .current(ResourceType::Listener, name)
                .map(|accepted| &accepted.value)
            else {
                continue;
            };
            for reference in listener_references(listener) {
                if let Reference::Extension {
                    name, type_urls, ..
                } = reference
                    && let Some(accepted) = cache.current(ResourceType::Extension, name)
                    && let Value::Extension(config) = &accepted.value
                    && !allows(type_urls, &config.type_url)
                    && let Some(subscription) =
                        self.subscriptions[ResourceType::Extension.index()].get(name)
                {
                    subscription.stats.conflict();
                }
            }
        }
    }

    /// Asks for a name.
    pub(super) fn subscribe(
        &mut self,
        kind: ResourceType,
        name: Arc<str>,
        source: &ConfigSource,
        stat_prefix: &str,
        now: Instant,
    ) {
        let Some(origin) = self.origin(kind, source) else {
            return;
        };
        let known = self
            .channels
            .iter()
            .find(|channel| channel.origin == origin)
            .map(|channel| channel.id);
        let channel = known.unwrap_or_else(|| {
            self.last_id += 1;
            let line = match &origin {
                Origin::Ads(api) | Origin::Grpc(_, api) => {
                    Line::Stream(Box::new(Conversation::new(
                        if api.delta {
                            Encoding::Delta
                        } else {
                            Encoding::Sotw
                        },
                        self.options.node.clone(),
                        api.node_on_first_message_only,
                    )))
                }
                Origin::File(..) => Line::File {
                    queue: Default::default(),
                    judging: false,
                },
            };
            self.channels.push(Channel {
                id: self.last_id,
                origin: origin.clone(),
                line,
                identifier: Box::default(),
            });
            self.last_id
        });
        if known.is_none() || matches!(origin, Origin::File(..)) {
            self.effects.open.push((channel, origin));
        }
        let answered = match self.cache.read().current(kind, &name) {
            Some(_) => Answered::Value,
            None => Answered::Waiting,
        };
        let deadline = initial_fetch_timeout(source)
            .filter(|_| answered == Answered::Waiting)
            .map(|timeout| now + timeout);
        if let Some(at) = deadline {
            self.deadlines
                .push(std::cmp::Reverse((at, kind, Arc::clone(&name))));
        }
        self.wants_changed = true;
        let origin = self.channels.iter().find(|known| known.id == channel);
        let own_stream = origin.is_some_and(|known| matches!(known.origin, Origin::Grpc(..)));
        let stats = SubscriptionStats::new(&self.registry, kind, &name, stat_prefix, own_stream);
        if let Some(Channel {
            line: Line::Stream(conversation),
            identifier,
            ..
        }) = origin
            && let Some(stream) = stats.stream()
        {
            stream.set_connected(conversation.is_open());
            stream.set_identifier(identifier);
        }
        self.subscriptions[kind.index()].insert(
            name,
            Subscription {
                channel,
                answered,
                deadline,
                stats,
            },
        );
    }

    fn origin(&self, kind: ResourceType, source: &ConfigSource) -> Option<Origin> {
        Some(match source {
            ConfigSource::Ads { .. } => Origin::Ads(self.options.ads.clone()?),
            ConfigSource::Grpc {
                delta,
                service,
                initial_fetch_timeout: _,
                node_on_first_message_only,
            } => Origin::Grpc(
                kind,
                ApiSource {
                    delta: *delta,
                    service: service.clone(),
                    node_on_first_message_only: *node_on_first_message_only,
                },
            ),
            ConfigSource::Path {
                path,
                watched_directory,
                initial_fetch_timeout: _,
            } => Origin::File(kind, path.clone(), watched_directory.clone()),
        })
    }

    /// Makes subscriptions out of who refers to whom, and lets go of those that nobody needs.
    pub(super) fn sync(&mut self, now: Instant) {
        let mut missing = Vec::new();
        let mut needed: [FxHashSet<Arc<str>>; ResourceType::ALL.len()] = Default::default();
        let mut refer =
            |kind: ResourceType, name: &Arc<str>, source: &ConfigSource, prefix: &str| {
                if !needed[kind.index()].insert(Arc::clone(name)) {
                    return;
                }
                let subscription = self.subscriptions[kind.index()].get(name);
                if subscription.is_none_or(|known| !self.leads_to(known.channel, source)) {
                    missing.push(Missing {
                        kind,
                        name: Arc::clone(name),
                        source: source.clone(),
                        stat_prefix: prefix.into(),
                    });
                }
            };
        let mut refer_cluster = |cluster: &Cluster| {
            if let Some((name, source)) = cluster_reference(cluster) {
                refer(ResourceType::Endpoints, name, source, "");
            }
        };
        {
            let cache = self.cache.read();
            for cluster in self.statics.clusters.values() {
                refer_cluster(cluster);
            }
            // The newest first: where two disagree on a source, it decides.
            for entry in cache.table(ResourceType::Cluster).entries.values() {
                for accepted in entry
                    .current
                    .iter()
                    .chain(entry.warming().and(entry.active.as_ref()))
                {
                    if let Value::Cluster(cluster) = &accepted.value {
                        refer_cluster(cluster);
                    }
                }
            }
            let mut refer_listener = |listener: &Listener| {
                for reference in listener_references(listener) {
                    match reference {
                        Reference::Route {
                            name,
                            source,
                            stat_prefix,
                        } => refer(ResourceType::Route, name, source, stat_prefix),
                        Reference::Extension { name, source, .. } => {
                            refer(ResourceType::Extension, &Arc::from(name), source, "");
                        }
                    }
                }
            };
            if self.progress >= Progress::Listeners {
                for listener in self.statics.listeners.values() {
                    refer_listener(listener);
                }
                for entry in cache.table(ResourceType::Listener).entries.values() {
                    for accepted in entry
                        .current
                        .iter()
                        .chain(entry.warming().and(entry.active.as_ref()))
                    {
                        if let Value::Listener(listener) = &accepted.value {
                            refer_listener(listener);
                        }
                    }
                }
            }
        }
        let mut let_go = false;
        for kind in [
            ResourceType::Endpoints,
            ResourceType::Extension,
            ResourceType::Route,
        ] {
            let needed = &needed[kind.index()];
            let subscriptions = &mut self.subscriptions[kind.index()];
            if subscriptions.len() == needed.len() && missing.is_empty() {
                continue;
            }
            let mut cache = self.cache.write();
            subscriptions.retain(|name, _| {
                let keep = needed.contains(name);
                if !keep {
                    cache.table_mut(kind).entries.remove(name);
                    let_go = true;
                }
                keep
            });
        }
        for Missing {
            kind,
            name,
            source,
            stat_prefix,
        } in missing
        {
            let_go |= self.subscriptions[kind.index()].contains_key(&name);
            self.subscribe(kind, name, &source, &stat_prefix, now);
        }
        if let_go {
            self.dirty = true;
            self.wants_changed = true;
            self.close_unused();
        }
    }

    fn leads_to(&self, channel: ChannelId, source: &ConfigSource) -> bool {
        let origin = self.channels.iter().find(|known| known.id == channel);
        match (origin.map(|channel| &channel.origin), source) {
            (Some(Origin::Ads(_)), ConfigSource::Ads { .. }) => true,
            (
                Some(Origin::Grpc(_, api)),
                ConfigSource::Grpc {
                    delta,
                    service,
                    initial_fetch_timeout: _,
                    node_on_first_message_only,
                },
            ) => {
                api.delta == *delta
                    && api.service == *service
                    && api.node_on_first_message_only == *node_on_first_message_only
            }
            (
                Some(Origin::File(_, known, directory)),
                ConfigSource::Path {
                    path,
                    watched_directory,
                    initial_fetch_timeout: _,
                },
            ) => known == path && directory == watched_directory,
            _ => false,
        }
    }

    fn close_unused(&mut self) {
        let used: FxHashSet<ChannelId> = self
            .subscriptions
            .iter()
            .flat_map(|subscriptions| subscriptions.values())
            .map(|subscription| subscription.channel)
            .collect();
        let close = &mut self.effects.close;
        self.channels.retain(|channel| {
            let keep = used.contains(&channel.id) || matches!(channel.origin, Origin::Ads(_));
            if !keep {
                close.push(channel.id);
            }
            keep
        });
        self.effects
            .open
            .retain(|(id, _)| !self.effects.close.contains(id));
    }

    /// Tells every stream what is wanted on it, in make-before-break order.
    pub(super) fn tell_wants(&mut self) {
        if !std::mem::take(&mut self.wants_changed) {
            return;
        }
        for kind in ResourceType::ALL {
            let subscriptions = &self.subscriptions[kind.index()];
            for channel in &mut self.channels {
                let Line::Stream(conversation) = &mut channel.line else {
                    continue;
                };
                if matches!(channel.origin, Origin::Grpc(of, _) if of != kind) {
                    continue;
                }
                let names: BTreeSet<Arc<str>> = subscriptions
                    .iter()
                    .filter(|(_, subscription)| subscription.channel == channel.id)
                    .map(|(name, _)| Arc::clone(name))
                    .collect();
                conversation.want(kind, names);
                let requests = conversation.take_requests();
                self.effects
                    .requests
                    .extend(requests.map(|request| (channel.id, request)));
            }
        }
    }

    /// Makes a snapshot where something may have changed, and moves the initial configuration on.
    pub(super) fn assemble(&mut self, now: Instant) {
        if self.dirty {
            self.dirty = false;
            let subscriptions = &self.subscriptions;
            let mut cache = self.cache.write();
            let assembled = assemble(
                &mut cache,
                &self.statics,
                &self.snapshot,
                self.progress >= Progress::Listeners,
                |kind, name| {
                    subscriptions[kind.index()]
                        .get(name)
                        .map_or(Answered::Nothing, |subscription| subscription.answered)
                },
            );
            cache.unready = assembled.unready;
            drop(cache);
            let stats = &self.cluster_stats;
            let served = assembled.snapshot.clusters.len();
            set_size(stats, cluster_manager::ACTIVE_CLUSTERS, served);
            set_size(
                stats,
                cluster_manager::WARMING_CLUSTERS,
                assembled.warming_clusters,
            );
            self.warming_listeners = assembled.warming_listeners;
            if !assembled.snapshot.same_as(&self.snapshot) {
                self.snapshot = Arc::new(assembled.snapshot);
                self.effects.snapshot = Some(Arc::clone(&self.snapshot));
            }
            if assembled.replaced {
                self.sync(now);
                self.tell_wants();
            }
        }
        self.advance(now);
    }

    /// True where every cluster has its endpoints, but for those that say not to wait for them.
    fn clusters_are_warm(&self) -> bool {
        let endpoints = &self.subscriptions[ResourceType::Endpoints.index()];
        let warm = |cluster: &Cluster| {
            !cluster.wait_for_warm_on_init
                || cluster_reference(cluster).is_none_or(|(name, _)| {
                    endpoints
                        .get(name)
                        .is_none_or(|subscription| subscription.answered != Answered::Waiting)
                })
        };
        let cache = self.cache.read();
        let entries = cache.table(ResourceType::Cluster).entries.values();
        self.statics.clusters.values().all(|cluster| warm(cluster))
            && entries
                .filter_map(|entry| entry.current.as_ref())
                .all(|accepted| match &accepted.value {
                    Value::Cluster(cluster) => warm(cluster),
                    _ => true,
                })
    }

    fn advance(&mut self, now: Instant) {
        let answered = |kind: ResourceType| {
            self.subscriptions[kind.index()]
                .get(WILDCARD)
                .is_none_or(|subscription| subscription.answered != Answered::Waiting)
        };
        match self.progress {
            Progress::Clusters => {
                if answered(ResourceType::Cluster) && self.clusters_are_warm() {
                    self.progress = Progress::Listeners;
                    if let Some(source) = self.options.lds.clone() {
                        self.subscribe(ResourceType::Listener, WILDCARD.into(), &source, "", now);
                    }
                    self.sync(now);
                    self.tell_wants();
                    self.dirty = true;
                }
            }
            Progress::Listeners => {
                if answered(ResourceType::Listener) && self.warming_listeners.is_empty() {
                    self.progress = Progress::Ready;
                }
            }
            Progress::Ready => {}
        }
    }
}

fn initial_fetch_timeout(source: &ConfigSource) -> Option<Duration> {
    match source {
        ConfigSource::Ads {
            initial_fetch_timeout,
        }
        | ConfigSource::Grpc {
            initial_fetch_timeout,
            ..
        }
        | ConfigSource::Path {
            initial_fetch_timeout,
            ..
        } => *initial_fetch_timeout,
    }
}
