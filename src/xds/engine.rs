//! The control side without IO: which streams there are, what each asks for, what is judged next, and when the world
//! is warm. Events go in, [`Effects`] come out; the clock is an argument.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::addresses;
use super::admission::Admission;
use super::ads::{Conversation, Request, Response, Update, WILDCARD};
use super::assemble::{Answered, Statics, cluster_reference};
use super::cache::{Cache, Committed, Judgement};
use super::client::{ApiSource, Options, Progress, UnknownFields};
use super::resource::{ResourceType, Value};
use super::stats::{StreamStats, cluster_manager};
use super::status::Status;
use crate::config::cluster::SourceSpecifier;
use crate::config::context::{ParseContext, Source};
use crate::config::{ConfigError, Extensions, Snapshot};
use crate::pb;
use crate::telemetry::metrics::{Registry, StatSet};
use subscriptions::Subscriptions;

mod subscriptions;
mod sync;

/// A stream or a file. Never reused.
pub(super) type ChannelId = u64;

/// Where a channel leads.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// The aggregated stream.
    Ads(ApiSource),
    /// A stream of one type.
    Grpc(ResourceType, ApiSource),
    /// A file of one type, and the directory whose moves reload it.
    File(ResourceType, Box<str>, Option<Box<str>>),
}

/// What the engine wants done.
#[derive(Default)]
pub(super) struct Effects {
    /// Channels to open, and to keep open; a file that is open already is to be read again.
    pub(super) open: Vec<(ChannelId, Origin)>,
    /// Channels that nobody needs any more.
    pub(super) close: Vec<ChannelId>,
    /// Requests, in order.
    pub(super) requests: Vec<(ChannelId, Request)>,
    /// Questions to ask; the answers go to [`Engine::admitted`].
    pub(super) admissions: Vec<Question>,
    /// A snapshot that differs from the last.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

/// What decides on one resource.
type Admitted = BoxFuture<'static, Result<(), ConfigError>>;

/// Admission asked for what one response holds.
pub(super) struct Question {
    pub(super) judgement: u64,
    pub(super) of: Vec<(Arc<str>, Admitted)>,
}

struct Channel {
    id: ChannelId,
    /// `None` on the aggregated stream, which is for all types.
    kind: Option<ResourceType>,
    source: SourceSpecifier,
    line: Line,
    /// Who answers on it.
    identifier: Box<str>,
}

enum Line {
    Stream(Box<Conversation>),
    File {
        queue: VecDeque<Update>,
        judging: bool,
    },
}

/// A judgement that waits for admission.
struct Pending {
    id: u64,
    channel: ChannelId,
    judgement: Judgement,
    began: Instant,
}

/// The control side's state.
pub(super) struct Engine {
    options: Options,
    statics: Statics,
    extensions: Arc<dyn Extensions>,
    admission: Arc<dyn Admission>,
    registry: Registry,
    cluster_stats: Arc<StatSet>,
    /// Of the aggregated stream.
    ads_stats: Option<StreamStats>,
    cache: Arc<RwLock<Cache>>,
    channels: Vec<Channel>,
    subscriptions: [Subscriptions; ResourceType::ALL.len()],
    /// When to stop waiting; entries whose subscription has been answered are skipped.
    deadlines: BinaryHeap<Reverse<(Instant, ResourceType, ChannelId, Arc<str>)>>,
    pending: Vec<Pending>,
    last_id: u64,
    progress: Progress,
    snapshot: Arc<Snapshot>,
    warming_listeners: BTreeSet<Arc<str>>,
    /// What is wanted has changed since the streams were told.
    wants_changed: bool,
    /// Something may have become warm, or gone.
    dirty: bool,
    effects: Effects,
}

impl Engine {
    /// Checks the sources of `options`, and subscribes to what it names.
    pub(super) fn new(
        options: Options,
        extensions: Arc<dyn Extensions>,
        admission: Arc<dyn Admission>,
        registry: &Registry,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        options.check()?;
        let statics = Statics {
            clusters: options
                .static_clusters
                .iter()
                .map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster)))
                .collect(),
            listeners: options
                .static_listeners
                .iter()
                .map(|listener| (Arc::clone(&listener.name), Arc::clone(listener)))
                .collect(),
        };
        let cluster_stats = registry.set(
            &cluster_manager::TABLE,
            "cluster_manager.",
            "cluster_manager",
            [],
        );
        cluster_stats.add(
            cluster_manager::CLUSTER_ADDED,
            options.static_clusters.len() as u64,
        );
        let ads_stats = options
            .ads
            .is_some()
            .then(|| StreamStats::new(registry, ""));
        let mut engine = Self {
            options,
            statics,
            extensions,
            admission,
            registry: registry.clone(),
            cluster_stats,
            ads_stats,
            cache: Arc::default(),
            channels: Vec::new(),
            subscriptions: Default::default(),
            deadlines: BinaryHeap::new(),
            pending: Vec::new(),
            last_id: 0,
            progress: Progress::Clusters,
            snapshot: Arc::default(),
            warming_listeners: BTreeSet::new(),
            wants_changed: false,
            dirty: true,
            effects: Effects::default(),
        };
        if let Some(source) = engine.options.cds.clone() {
            engine.subscribe(ResourceType::Cluster, WILDCARD.into(), &source, "", now);
        }
        engine.sync(now);
        engine.tell_wants();
        Ok(engine)
    }

    /// For the admin endpoints.
    pub(super) fn status(&self) -> Status {
        Status(Arc::clone(&self.cache))
    }

    /// How far the initial configuration has come.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The listeners that wait for routes or discovered filters.
    pub(super) fn warming_listeners(&self) -> &BTreeSet<Arc<str>> {
        &self.warming_listeners
    }

    /// When [`Engine::settle`] is to be called even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, ..))| *at)
    }

    /// The stream of a channel is open.
    pub(super) fn opened(&mut self, id: ChannelId) {
        let channel = self.channels.iter_mut().find(|channel| channel.id == id);
        if let Some(Channel {
            source,
            line: Line::Stream(conversation),
            ..
        }) = channel
        {
            let cache = self.cache.read();
            conversation.opened(|kind, name| cache.current(kind, source, name).is_some());
        }
        self.each_stream(id, |stream| stream.set_connected(true));
        self.collect(id);
    }

    /// The stream of a channel broke, or could not be opened. What was being judged is dropped: it comes again.
    pub(super) fn closed(&mut self, id: ChannelId) {
        if let Some(Line::Stream(conversation)) = self.line(id) {
            conversation.closed();
        }
        self.each_stream(id, |stream| stream.set_connected(false));
        self.pending.retain(|pending| pending.channel != id);
        self.effects.requests.retain(|(channel, _)| *channel != id);
        for subscriptions in &self.subscriptions {
            for subscription in subscriptions.of(id) {
                subscription.stats.failure();
            }
        }
    }

    /// A response arrived.
    pub(super) fn received(&mut self, id: ChannelId, response: Response) {
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.id == id) else {
            return;
        };
        let Line::Stream(conversation) = &mut channel.line else {
            return;
        };
        let identifier = response.identifier();
        let news = (*channel.identifier != *identifier).then(|| identifier.to_owned());
        if let Some(identifier) = &news {
            channel.identifier = identifier.as_str().into();
        }
        conversation.receive(response);
        if let Some(identifier) = news {
            self.each_stream(id, |stream| stream.set_identifier(&identifier));
        }
    }

    /// The statistics of a channel's stream: the aggregated one's, or those of each subscription.
    fn each_stream(&self, id: ChannelId, act: impl Fn(&StreamStats)) {
        let Some(channel) = self.channels.iter().find(|channel| channel.id == id) else {
            return;
        };
        match channel.kind {
            None => self.ads_stats.iter().for_each(act),
            Some(kind) => self.subscriptions[kind.index()]
                .of(id)
                .filter_map(|subscription| subscription.stats.stream())
                .for_each(act),
        }
    }

    /// A file was read; `Err` holds why it could not be.
    pub(super) fn loaded(
        &mut self,
        id: ChannelId,
        file: Result<pb::envoy::service::discovery::v3::DiscoveryResponse, String>,
    ) {
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.id == id) else {
            return;
        };
        let (Some(kind), SourceSpecifier::Path { path, .. }) = (channel.kind, &channel.source)
        else {
            return;
        };
        match (file, &mut channel.line) {
            (Ok(response), Line::File { queue, .. }) => {
                queue.push_back(Update::of_sotw(kind, response));
            }
            (Err(error), _) => {
                // As Envoy: a failure ends the first wait, and what was good stays.
                tracing::warn!(%path, %error, "configuration file refused; the last good one stays");
                for (_, subscription) in self.subscriptions[kind.index()].of_mut(id) {
                    self.dirty |= subscription.answer(Answered::Nothing);
                    subscription.stats.failure();
                }
            }
            (Ok(_), Line::Stream(_)) => {}
        }
    }

    /// Admission has decided on a judgement; `refused` are those that were not admitted.
    pub(super) fn admitted(
        &mut self,
        judgement: u64,
        refused: &[(Arc<str>, ConfigError)],
        now: Instant,
    ) {
        let Some(index) = self
            .pending
            .iter()
            .position(|pending| pending.id == judgement)
        else {
            return;
        };
        let mut pending = self.pending.swap_remove(index);
        for (name, error) in refused {
            pending.judgement.refuse(name, error, SystemTime::now());
        }
        self.finish(pending, now);
    }

    /// Judges what has arrived, and works out what follows. To be called after events, and at [`Engine::deadline`].
    pub(super) fn settle(&mut self, now: Instant) -> Effects {
        self.expire(now);
        self.judge_all(now);
        loop {
            let before = self.progress;
            self.assemble(now);
            if self.progress == before {
                break;
            }
        }
        std::mem::take(&mut self.effects)
    }

    fn line(&mut self, id: ChannelId) -> Option<&mut Line> {
        self.channels
            .iter_mut()
            .find(|channel| channel.id == id)
            .map(|channel| &mut channel.line)
    }

    /// Moves what a conversation has to say to the effects, in order.
    fn collect(&mut self, id: ChannelId) {
        let channel = self.channels.iter_mut().find(|channel| channel.id == id);
        if let Some(Channel {
            line: Line::Stream(conversation),
            ..
        }) = channel
        {
            let requests = conversation.take_requests().map(|request| (id, request));
            self.effects.requests.extend(requests);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, ..))) = self.deadlines.peek()
            && *at <= now
        {
            let Some(Reverse((at, kind, channel, name))) = self.deadlines.pop() else {
                return;
            };
            if let Some(subscription) = self.subscriptions[kind.index()].get_mut(channel, &name)
                && subscription.answered == Answered::Waiting
                && subscription.deadline == Some(at)
            {
                tracing::warn!(%kind, %name, "initial fetch timed out");
                subscription.answered = Answered::Nothing;
                subscription.stats.timeout();
                self.dirty = true;
            }
        }
    }

    fn judge_all(&mut self, now: Instant) {
        loop {
            let mut next = None;
            for channel in &mut self.channels {
                let update = match &mut channel.line {
                    Line::Stream(conversation) => conversation.next_update(),
                    Line::File { judging: true, .. } => None,
                    Line::File { queue, judging } => {
                        let update = queue.pop_front();
                        *judging = update.is_some();
                        update
                    }
                };
                if let Some(update) = update {
                    next = Some((channel.id, update));
                    break;
                }
            }
            let Some((id, update)) = next else { return };
            self.judge(id, update, now);
        }
    }

    fn judge(&mut self, id: ChannelId, update: Update, now: Instant) {
        let began = Instant::now();
        let kind = update.kind;
        let channel = self.channels.iter().find(|channel| channel.id == id);
        let Some(source) = channel.map(|channel| &channel.source) else {
            return;
        };
        let mut judgement = {
            let cache = self.cache.read();
            let subscriptions = &self.subscriptions[kind.index()];
            let wildcard = kind.is_full_state();
            let wanted = |name: &str| wildcard || subscriptions.get(id, name).is_some();
            let known_cluster = |name: &str| {
                self.statics.clusters.contains_key(name)
                    || cache
                        .sole(ResourceType::Cluster, name)
                        .is_some_and(|entry| entry.current.is_some())
            };
            let context =
                ParseContext::new(&*self.extensions, Source::Dynamic).with_clusters(&known_cluster);
            let parse = |name: &str, body: &Bytes, unknown: &mut Vec<String>| {
                let previous = cache.current(kind, source, name);
                let previous = previous.map(|accepted| (&accepted.body, &accepted.value));
                self.parse((kind, source, name), body, previous, unknown, &context)
            };
            cache.judge(update, source, SystemTime::now(), wanted, parse)
        };
        if kind == ResourceType::Listener {
            let duplicates =
                addresses::duplicates(&judgement, &self.cache.read(), &self.statics.listeners);
            for (name, error) in &duplicates {
                judgement.refuse(name, error, SystemTime::now());
            }
        }
        if !judgement.unknown_fields.is_empty() {
            if let Some((set, stat)) = &self.options.unknown_fields_stat {
                set.add(*stat, judgement.unknown_fields.len() as u64);
            }
            for field in &judgement.unknown_fields {
                tracing::warn!(%kind, "unknown field ignored: {field}");
            }
        }
        self.last_id += 1;
        let pending = Pending {
            id: self.last_id,
            channel: id,
            judgement,
            began,
        };
        let of: Vec<_> = pending
            .judgement
            .fresh
            .iter()
            .filter_map(|fresh| {
                let candidate = fresh.value.candidate(&fresh.name)?;
                Some((Arc::clone(&fresh.name), self.admission.admit(&candidate)?))
            })
            .collect();
        if of.is_empty() {
            self.finish(pending, now);
        } else {
            self.effects.admissions.push(Question {
                judgement: pending.id,
                of,
            });
            self.pending.push(pending);
        }
    }

    /// Bytes to value: unknown fields by the policy, the model's own checks, and what only the client knows.
    fn parse(
        &self,
        (kind, source, name): (ResourceType, &SourceSpecifier, &str),
        body: &Bytes,
        previous: Option<(&Bytes, &Value)>,
        unknown: &mut Vec<String>,
        context: &ParseContext<'_>,
    ) -> Result<Value, ConfigError> {
        if self.options.unknown_fields != UnknownFields::Ignore {
            let fields = pb::unknown_fields(kind.type_url(), body);
            if let Some(first) = fields.first()
                && self.options.unknown_fields == UnknownFields::Reject
            {
                return Err(ConfigError::invalid(format!(
                    "Protobuf message (type {} with unknown field set {{{first}}}) has unknown fields",
                    pb::type_name(kind.type_url()),
                )));
            }
            unknown.extend(fields.into_iter().map(|field| format!("{name}: {field}")));
        }
        let value = Value::parse(kind, body, previous, context)?;
        match &value {
            Value::Cluster(cluster) => {
                if let Some((_, source)) = cluster_reference(cluster) {
                    self.options
                        .check_source(source)
                        .map_err(|error| error.at("eds_cluster_config.eds_config"))?;
                }
            }
            Value::Listener(listener) => self.options.check_listener(listener)?,
            Value::Extension(config) => self.check_extension(source, name, config)?,
            Value::Endpoints(_) | Value::Route(_) => {}
        }
        Ok(value)
    }

    fn finish(&mut self, pending: Pending, now: Instant) {
        let Pending {
            channel,
            mut judgement,
            began,
            ..
        } = pending;
        // Where nobody needs its source any more, there is nobody to answer, and nobody who would ever clean up.
        if !self.channels.iter().any(|known| known.id == channel) {
            return;
        }
        let kind = judgement.kind;
        let refusal = judgement.refusal();
        if !kind.is_full_state() {
            // What was let go while it was being judged has nobody who would ever remove it.
            let subscriptions = &self.subscriptions[kind.index()];
            judgement.keep(|name| subscriptions.get(channel, name).is_some());
        }
        let version = Arc::clone(&judgement.version);
        let rejected: Vec<Arc<str>> = named(judgement.rejected.iter().map(|(name, _)| name));
        let good: Vec<Arc<str>> = if kind.is_full_state() {
            Vec::new()
        } else {
            let fresh = judgement.fresh.iter().map(|fresh| &fresh.name);
            fresh.chain(&judgement.confirmed).cloned().collect()
        };
        let committed = self.cache.write().commit(judgement, SystemTime::now());
        self.dirty |= !committed.is_empty();
        self.record(
            (kind, channel),
            &version,
            began.elapsed(),
            &committed,
            &good,
            &rejected,
        );
        if kind == ResourceType::Cluster {
            let stats = &self.cluster_stats;
            for (stat, names) in [
                (cluster_manager::CLUSTER_ADDED, &committed.added),
                (cluster_manager::CLUSTER_MODIFIED, &committed.modified),
                (cluster_manager::CLUSTER_REMOVED, &committed.removed),
            ] {
                if !names.is_empty() {
                    stats.add(stat, names.len() as u64);
                }
            }
        }
        if kind == ResourceType::Listener {
            self.count_conflicts(committed.added.iter().chain(&committed.modified));
        }
        // What a new cluster or listener refers to is asked for before its response is answered, as Envoy does.
        if kind.is_full_state() && !committed.is_empty() {
            self.sync(now);
            self.tell_wants();
        }
        if let Some(text) = &refusal {
            // Worded as Envoy's, which log matchers know.
            tracing::warn!("gRPC config for {} rejected: {text}", kind.type_url());
        } else {
            tracing::debug!(%kind, %version, "update accepted");
        }
        match self.line(channel) {
            Some(Line::Stream(conversation)) => {
                conversation.answer(kind, refusal.map_or(Ok(()), Err));
            }
            Some(Line::File { judging, .. }) => {
                *judging = false;
                // A file says all that it will say: what it does not hold is not waited for.
                for (_, subscription) in self.subscriptions[kind.index()].of_mut(channel) {
                    self.dirty |= subscription.answer(Answered::Nothing);
                }
            }
            None => {}
        }
        self.collect(channel);
    }

    /// Subscriptions learn what came of an update.
    fn record(
        &mut self,
        (kind, channel): (ResourceType, ChannelId),
        version: &str,
        took: Duration,
        committed: &Committed,
        good: &[Arc<str>],
        rejected: &[Arc<str>],
    ) {
        let subscriptions = &mut self.subscriptions[kind.index()];
        if kind.is_full_state() {
            let Some(subscription) = subscriptions.get_mut(channel, WILDCARD) else {
                return;
            };
            if subscription.answered == Answered::Waiting {
                subscription.answered = Answered::Value;
                self.dirty = true;
            }
            if rejected.is_empty() {
                subscription
                    .stats
                    .success(version, took, !committed.is_empty());
            } else {
                subscription.stats.rejected();
            }
            return;
        }
        let changed: BTreeSet<&Arc<str>> =
            committed.added.iter().chain(&committed.modified).collect();
        for name in good {
            if let Some(subscription) = subscriptions.get_mut(channel, name) {
                self.dirty |= subscription.answer(Answered::Value);
                subscription
                    .stats
                    .success(version, took, changed.contains(name));
            }
        }
        for name in rejected {
            if let Some(subscription) = subscriptions.get_mut(channel, name) {
                self.dirty |= subscription.answer(Answered::Rejected);
                subscription.stats.rejected();
            }
        }
        if rejected.iter().any(|name| name.is_empty()) {
            // Whose it was cannot be told: it was everyone's, as in Envoy.
            for (name, subscription) in subscriptions.of_mut(channel) {
                if !good.contains(name) && !rejected.contains(name) {
                    self.dirty |= subscription.answer(Answered::Rejected);
                    subscription.stats.rejected();
                }
            }
        }
        for name in &committed.absent {
            if let Some(subscription) = subscriptions.get_mut(channel, name) {
                self.dirty |= subscription.answer(Answered::Nothing);
            }
        }
    }
}

fn named<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<Arc<str>> {
    names.cloned().collect()
}

#[cfg(test)]
mod tests;
