//! Which version each slot has, and which ones are only asked for: what filters would run that are not to serve yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use super::trials::Trials;
use super::{Inner, Outcome, Record, Version};
use crate::wasm::options::Resolution;
use crate::wasm::plugin::Plugin;
use crate::wasm::slot::Asked;
use crate::wasm::spec::{Digest, PluginSpec};
use crate::wasm::status::State;

#[derive(Default)]
pub(super) struct Table {
    pub(super) versions: BTreeMap<Digest, Version>,
    pub(super) slots: BTreeMap<Box<str>, Slot>,
    /// What was asked for since the last [`Table::retain`], and is not taken: none of it goes in the middle of a build.
    asked: BTreeMap<Asked, Step>,
    /// Likewise in the build before: filters wait for it, or for what else they need.
    awaited: BTreeSet<Asked>,
    /// Versions on trial.
    pub(super) trials: Trials,
    /// Versions that nobody wants, as long as streams hold them.
    pub(super) draining: Vec<(Weak<Plugin>, Record)>,
}

pub(super) struct Slot {
    pub(super) wanted: Digest,
    pub(super) live: Option<Arc<Plugin>>,
    /// Of no Generation: it stays until it is released.
    pub(super) held: bool,
    /// False while its place waits, and none before it serves: what was ready there stands in for what comes next.
    pub(super) serves: bool,
}

impl Slot {
    /// The version that serves it, which is an earlier one than the wanted where that cannot.
    fn served_by(&self) -> Option<Digest> {
        self.live.as_ref().map(|plugin| plugin.spec().key())
    }
}

/// What becomes of a slot where what was asked for is taken.
enum Step {
    /// What serves goes on, if anything does.
    Stay,
    /// This serves.
    Turn(Arc<Plugin>),
    /// What was asked for is tried beside this one, unless it was.
    Try(Digest),
}

impl Table {
    /// What serves `slot` where it wants `spec`. The slot is as it was until that is [taken](Self::take).
    pub(super) fn ask(
        &mut self,
        host: &Arc<Inner>,
        slot: &str,
        spec: &Arc<PluginSpec>,
    ) -> Resolution {
        let key = spec.key();
        let of_slot = self.slots.get(slot);
        let live = of_slot.and_then(|slot| slot.live.clone());
        let serving = live
            .as_ref()
            .filter(|_| of_slot.is_some_and(|slot| slot.serves));
        let version = self
            .versions
            .entry(key)
            .or_insert_with(|| host.load(spec, host.home(spec, serving), live.is_none()));
        version.supply.offer(&spec.code);
        let ready = match &*version.outcome.lock() {
            Outcome::Live(plugin) => Some(Arc::clone(plugin)),
            Outcome::Loading => None,
        };
        let tried = ready.as_ref().zip(serving).and_then(|(new, old)| {
            let resolution = self.trials.resolve(host, old, new)?;
            Some((Step::Try(old.spec().key()), resolution))
        });
        let (step, resolution) = match (ready, live) {
            _ if let Some(tried) = tried => tried,
            (Some(plugin), _) => (Step::Turn(Arc::clone(&plugin)), Resolution::Ready(plugin)),
            (None, Some(live)) => (Step::Stay, Resolution::Previous(live)),
            (None, None) => {
                let record = version.record.lock();
                let resolution = if record.given_up {
                    Resolution::Failed(record.error.clone().unwrap_or_default())
                } else {
                    Resolution::Pending
                };
                (Step::Stay, resolution)
            }
        };
        self.asked.insert((slot.into(), key), step);
        resolution
    }

    /// What was asked for is what the slot wants.
    pub(super) fn take(&mut self, host: &Arc<Inner>, asked: &Asked, held: bool) {
        let Some(step) = self.asked.remove(asked) else {
            return;
        };
        let (slot, key) = asked;
        let entry = self.slots.entry(slot.clone()).or_insert_with(|| Slot {
            wanted: *key,
            live: None,
            held,
            serves: true,
        });
        entry.wanted = *key;
        entry.serves = true;
        match step {
            Step::Stay => {}
            Step::Turn(plugin) => entry.live = Some(plugin),
            Step::Try(old) => {
                if let Some(version) = self.versions.get(key) {
                    self.trials.start(host, &version.record, (old, *key));
                }
            }
        }
        if let Some(live) = &entry.live {
            live.serve();
        }
    }

    /// Forgets the slots of Generations for which `keep` is false, and what was asked for before the last build.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let asked = std::mem::take(&mut self.asked);
        let waiting: BTreeSet<&str> = asked.keys().map(|(slot, _)| &**slot).collect();
        self.slots.retain(|name, slot| {
            slot.serves = slot.held || keep(name);
            slot.serves || waiting.contains(&**name)
        });
        for ((name, key), step) in &asked {
            let Step::Turn(plugin) = step else { continue };
            let slot = self.slots.entry(name.clone()).or_insert_with(|| Slot {
                wanted: *key,
                live: None,
                held: false,
                serves: false,
            });
            if !slot.serves {
                slot.wanted = *key;
                slot.live = Some(Arc::clone(plugin));
            }
        }
        self.awaited = asked.into_keys().collect();
        self.sweep();
        self.forget_trials();
    }

    /// Forgets those without a verdict that no slot is in any more, and those of versions that are gone.
    fn forget_trials(&mut self) {
        let in_a_slot = |(old, new): &(Digest, Digest)| {
            let mut slots = self.slots.values();
            slots.any(|slot| slot.wanted == *new && slot.served_by() == Some(*old))
        };
        let versions = &self.versions;
        let kept = |new: &Digest| versions.contains_key(new);
        for new in self.trials.retain(in_a_slot, kept) {
            if let Some(version) = versions.get(&new) {
                let gone = "no stream comes to its trial any more";
                version.record.lock().enter(State::Live, gone);
            }
        }
    }

    /// The slots that want this version, are served by it, or whose filters wait with it.
    pub(super) fn slots_of(&self, key: &Digest) -> Vec<String> {
        let of_slots = self.slots.iter().filter_map(|(name, slot)| {
            (slot.wanted == *key || slot.served_by() == Some(*key)).then_some(name)
        });
        let names: BTreeSet<&Box<str>> = self
            .not_taken()
            .filter_map(|(name, asked)| (asked == key).then_some(name))
            .chain(of_slots)
            .collect();
        names.into_iter().map(ToString::to_string).collect()
    }

    fn not_taken(&self) -> impl Iterator<Item = &Asked> {
        self.asked.keys().chain(&self.awaited)
    }

    /// Lets go of versions that no slot wants, nor is served by while its own cannot, and that nobody waits for.
    pub(super) fn sweep(&mut self) {
        let slots = self.slots.values();
        let wanted: BTreeSet<Digest> = slots
            .flat_map(|slot| [Some(slot.wanted), slot.served_by()])
            .flatten()
            .chain(self.not_taken().map(|(_, key)| *key))
            .collect();
        let unwanted: Vec<Digest> = self
            .versions
            .keys()
            .filter(|key| !wanted.contains(*key))
            .copied()
            .collect();
        for key in unwanted {
            let Some(version) = self.versions.remove(&key) else {
                continue;
            };
            if let Outcome::Live(plugin) = &*version.outcome.lock() {
                let mut record = version.record.lock().clone();
                record.enter(State::Draining, "");
                self.draining.push((Arc::downgrade(plugin), record));
            }
        }
        self.draining
            .retain(|(plugin, _)| plugin.strong_count() > 0);
    }
}
