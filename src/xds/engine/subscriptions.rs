//! What is asked for: of each type, the names that are asked for on each channel.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::ChannelId;
use crate::xds::ads::WILDCARD;
use crate::xds::assemble::Answered;
use crate::xds::stats::SubscriptionStats;

/// One name on one channel.
pub(super) struct Subscription {
    pub(super) answered: Answered,
    /// When waiting ends. A deadline in the heap that differs is that of a predecessor.
    pub(super) deadline: Option<Instant>,
    pub(super) stats: SubscriptionStats,
}

impl Subscription {
    /// Takes an answer in; true where the state is another now. What had a value once has had its answer.
    pub(super) fn answer(&mut self, answered: Answered) -> bool {
        let better = match answered {
            Answered::Value => self.answered != Answered::Value,
            _ => self.answered == Answered::Waiting,
        };
        if better {
            self.answered = answered;
        }
        better
    }
}

/// Those of one channel.
type OfChannel = FxHashMap<Arc<str>, Subscription>;

/// Those of one type.
#[derive(Default)]
pub(super) struct Subscriptions(FxHashMap<ChannelId, OfChannel>);

impl Subscriptions {
    pub(super) fn get(&self, channel: ChannelId, name: &str) -> Option<&Subscription> {
        self.0.get(&channel)?.get(name)
    }

    pub(super) fn get_mut(&mut self, channel: ChannelId, name: &str) -> Option<&mut Subscription> {
        self.0.get_mut(&channel)?.get_mut(name)
    }

    /// Those of a name, on any channel.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Subscription> + Clone {
        self.0.values().filter_map(move |known| known.get(name))
    }

    /// That of a type which is asked for as a whole.
    pub(super) fn wildcard(&self) -> Option<&Subscription> {
        self.0.values().find_map(|known| known.get(WILDCARD))
    }

    pub(super) fn insert(&mut self, channel: ChannelId, name: Arc<str>, new: Subscription) {
        self.0.entry(channel).or_default().insert(name, new);
    }

    /// The names of a channel.
    pub(super) fn names(&self, channel: ChannelId) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(&channel).into_iter().flat_map(FxHashMap::keys)
    }

    pub(super) fn of(&self, channel: ChannelId) -> impl Iterator<Item = &Subscription> {
        self.0.get(&channel).into_iter().flat_map(FxHashMap::values)
    }

    pub(super) fn of_mut(
        &mut self,
        channel: ChannelId,
    ) -> impl Iterator<Item = (&Arc<str>, &mut Subscription)> {
        let known = self.0.get_mut(&channel);
        known.into_iter().flatten()
    }

    /// The channels that something is asked for on.
    pub(super) fn channels(&self) -> impl Iterator<Item = ChannelId> {
        self.0.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().map(FxHashMap::len).sum()
    }

    /// Lets go of those that `keep` does not want.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(ChannelId, &Arc<str>) -> bool) {
        self.0.retain(|channel, known| {
            known.retain(|name, _| keep(*channel, name));
            !known.is_empty()
        });
    }
}
