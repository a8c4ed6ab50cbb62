//! From who refers to whom to what is asked for, and from what is warm to what is served.

use std::cmp::Reverse;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::subscriptions::{Subscription, Subscriptions};
use super::{Channel, ChannelId, Engine, Line, Origin};
use crate::config::cluster::{ConfigSource, SourceSpecifier};
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
        source: &SourceSpecifier,
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
        let dynamic = cache.entries(ResourceType::Listener);
        let dynamic = dynamic.filter_map(|(_, entry)| match &entry.current.as_ref()?.value {
            Value::Listener(listener) => Some(listener),
            _ => None,
        });
        for listener in self.statics.listeners.values().chain(dynamic) {
            for reference in listener_references(listener) {
                if let Reference::Extension {
                    name: referred,
                    source: from,
                    type_urls,
                    ..
                } = reference
                    && referred == name
                    && from.specifier == *source
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
            let entry = cache.sole(ResourceType::Listener, name);
            let Some(Value::Listener(listener)) = entry
                .and_then(|entry| entry.current.as_ref())
                .map(|accepted| &accepted.value)
            else {
                continue;
            };
            for reference in listener_references(listener) {
                let kind = ResourceType::Extension;
                if let Reference::Extension {
                    name,
                    source,
                    type_urls,
                    ..
                } = reference
                    && let Some(accepted) = cache.current(kind, &source.specifier, name)
                    && let Value::Extension(config) = &accepted.value
                    && !allows(type_urls, &config.type_url)
                    && let Some(channel) = channel_of(&self.channels, kind, &source.specifier)
                    && let Some(subscription) = self.subscriptions[kind.index()].get(channel, name)
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
        let Some(channel) = self.channel(kind, &source.specifier) else {
            return;
        };
        let answered = match self.cache.read().current(kind, &source.specifier, &name) {
            Some(_) => Answered::Value,
            None => Answered::Waiting,
        };
        let deadline = source
            .initial_fetch_timeout
            .filter(|_| answered == Answered::Waiting)
            .map(|timeout| now + timeout);
        if let Some(at) = deadline {
            self.deadlines
                .push(Reverse((at, kind, channel, Arc::clone(&name))));
        }
        self.wants_changed = true;
        let known = self.channels.iter().find(|known| known.id == channel);
        let own_stream = matches!(source.specifier, SourceSpecifier::Grpc { .. });
        let others = self.subscriptions[kind.index()].named(&name);
        let stats = SubscriptionStats::new(
            &self.registry,
            kind,
            (&name, stat_prefix),
            own_stream,
            others.map(|other| &other.stats),
        );
        if !matches!(source.specifier, SourceSpecifier::Path { .. }) {
            stats.asked();
        }
        if let Some(Channel {
            line: Line::Stream(conversation),
            identifier,
            ..
        }) = known
            && let Some(stream) = stats.stream()
        {
            stream.set_connected(conversation.is_open());
            stream.set_identifier(identifier);
        }
        let subscription = Subscription {
            answered,
            deadline,
            stats,
        };
        self.subscriptions[kind.index()].insert(channel, name, subscription);
    }

    /// The channel that leads to a source; opened where there is none.
    fn channel(&mut self, kind: ResourceType, source: &SourceSpecifier) -> Option<ChannelId> {
        let known = channel_of(&self.channels, kind, source);
        let is_file = matches!(source, SourceSpecifier::Path { .. });
        if known.is_some() && !is_file {
            return known;
        }
        let (origin, api) = match source {
            SourceSpecifier::Ads => {
                let api = self.options.ads.clone()?;
                (Origin::Ads(api.clone()), Some(api))
            }
            SourceSpecifier::Grpc {
                delta,
                service,
                node_on_first_message_only,
            } => {
                let api = ApiSource {
                    delta: *delta,
                    service: service.clone(),
                    node_on_first_message_only: *node_on_first_message_only,
                };
                (Origin::Grpc(kind, api.clone()), Some(api))
            }
            SourceSpecifier::Path {
                path,
                watched_directory,
            } => (
                Origin::File(kind, path.clone(), watched_directory.clone()),
                None,
            ),
        };
        if let Some(known) = known {
            // It is to be read again: it may hold the name.
            self.effects.open.push((known, origin));
            return Some(known);
        }
        self.last_id += 1;
        let line = match api {
            Some(api) => {
                let encoding = if api.delta {
                    Encoding::Delta
                } else {
                    Encoding::Sotw
                };
                let node = self.options.node.clone();
                Line::Stream(Box::new(Conversation::new(
                    encoding,
                    node,
                    api.node_on_first_message_only,
                )))
            }
            None => Line::File {
                queue: Default::default(),
                judging: false,
            },
        };
        self.channels.push(Channel {
            id: self.last_id,
            kind: (*source != SourceSpecifier::Ads).then_some(kind),
            source: source.clone(),
            line,
            identifier: Box::default(),
        });
        self.effects.open.push((self.last_id, origin));
        Some(self.last_id)
    }

    /// Makes subscriptions out of who refers to whom, and lets go of those that nobody needs.
    pub(super) fn sync(&mut self, now: Instant) {
        let mut missing = Vec::new();
        let mut needed: [FxHashMap<ChannelId, FxHashSet<Arc<str>>>; ResourceType::ALL.len()] =
            Default::default();
        let mut refer =
            |kind: ResourceType, name: &Arc<str>, source: &ConfigSource, prefix: &str| {
                let channel = channel_of(&self.channels, kind, &source.specifier);
                if let Some(channel) = channel {
                    let needed = needed[kind.index()].entry(channel).or_default();
                    if !needed.insert(Arc::clone(name)) {
                        return;
                    }
                }
                let subscriptions = &self.subscriptions[kind.index()];
                if channel.is_none_or(|channel| subscriptions.get(channel, name).is_none()) {
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
            for (_, entry) in cache.entries(ResourceType::Cluster) {
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
                for (_, entry) in cache.entries(ResourceType::Listener) {
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
            let wanted: usize = needed.values().map(FxHashSet::len).sum();
            if subscriptions.len() == wanted && missing.is_empty() {
                continue;
            }
            let mut cache = self.cache.write();
            subscriptions.retain(|id, name| {
                let keep = needed.get(&id).is_some_and(|known| known.contains(name));
                if !keep
                    && let Some(channel) = self.channels.iter().find(|channel| channel.id == id)
                {
                    cache.remove(kind, &channel.source, name);
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
            // Two may have asked for a name before there was a channel to its source.
            let known = channel_of(&self.channels, kind, &source.specifier)
                .is_some_and(|id| self.subscriptions[kind.index()].get(id, &name).is_some());
            if !known {
                self.subscribe(kind, name, &source, &stat_prefix, now);
            }
        }
        if let_go {
            self.dirty = true;
            self.wants_changed = true;
            self.close_unused();
        }
    }

    fn close_unused(&mut self) {
        let used: FxHashSet<ChannelId> = self
            .subscriptions
            .iter()
            .flat_map(Subscriptions::channels)
            .collect();
        let close = &mut self.effects.close;
        let mut cache = self.cache.write();
        self.channels.retain(|channel| {
            let keep = used.contains(&channel.id) || channel.source == SourceSpecifier::Ads;
            if !keep {
                close.push(channel.id);
                if let Some(kind) = channel.kind {
                    cache.tables_mut(kind).remove(&channel.source);
                }
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
                if channel.kind.is_some_and(|of| of != kind) {
                    continue;
                }
                let names = subscriptions.names(channel.id).cloned().collect();
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
            let (channels, subscriptions) = (&self.channels, &self.subscriptions);
            let mut cache = self.cache.write();
            let assembled = assemble(
                &mut cache,
                &self.statics,
                &self.snapshot,
                self.progress >= Progress::Listeners,
                |kind, source, name| {
                    channel_of(channels, kind, source)
                        .and_then(|channel| subscriptions[kind.index()].get(channel, name))
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
                || cluster_reference(cluster).is_none_or(|(name, source)| {
                    channel_of(&self.channels, ResourceType::Endpoints, &source.specifier)
                        .and_then(|channel| endpoints.get(channel, name))
                        .is_none_or(|subscription| subscription.answered != Answered::Waiting)
                })
        };
        let cache = self.cache.read();
        let mut entries = cache.entries(ResourceType::Cluster);
        self.statics.clusters.values().all(|cluster| warm(cluster))
            && entries.all(|(_, entry)| {
                match entry.current.as_ref().map(|current| &current.value) {
                    Some(Value::Cluster(cluster)) => warm(cluster),
                    _ => true,
                }
            })
    }

    fn advance(&mut self, now: Instant) {
        let answered = |kind: ResourceType| {
            self.subscriptions[kind.index()]
                .wildcard()
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

/// The channel that leads to a source of a type.
fn channel_of(
    channels: &[Channel],
    kind: ResourceType,
    source: &SourceSpecifier,
) -> Option<ChannelId> {
    let leads_there =
        |channel: &&Channel| channel.source == *source && channel.kind.is_none_or(|of| of == kind);
    channels.iter().find(leads_there).map(|channel| channel.id)
}
