//! The versions on trial: what serves a slot meanwhile, and the record of how each trial ended.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Inner, Record};
use crate::base::task::OwnedTask;
use crate::wasm::options::{Resolution, RolloutCommand};
use crate::wasm::plugin::Plugin;
use crate::wasm::rollout::{Trial, Verdict};
use crate::wasm::spec::Digest;
use crate::wasm::status::State;

/// By the keys of the old and the new version.
#[derive(Default)]
pub(super) struct Trials(HashMap<(Digest, Digest), Running>);

/// A trial, until its new version is wanted no more.
struct Running {
    /// The verdict, once there is one: then neither version is held for it.
    trial: Result<Arc<Trial>, Verdict>,
    /// `None` before it has begun: until then no stream can come.
    look: Option<OwnedTask>,
}

impl Trials {
    /// What serves a slot of `old` where `new` is, was or is to be on trial; `None` where there is no trial, or it is
    /// promoted. One that is new is yet to be [begun](Self::start).
    pub(super) fn resolve(
        &mut self,
        host: &Inner,
        old: &Arc<Plugin>,
        new: &Arc<Plugin>,
    ) -> Option<Resolution> {
        let policy = host.options.policy(&new.spec().name).rollout;
        let keys = (old.spec().key(), new.spec().key());
        if policy.share_percent == 0 || keys.0 == keys.1 || old.spec().name != new.spec().name {
            return None;
        }
        let running = self.0.entry(keys).or_insert_with(|| Running {
            trial: Ok(Arc::new(Trial::new(
                Arc::clone(old),
                Arc::clone(new),
                policy,
            ))),
            look: None,
        });
        if let Ok(trial) = &running.trial
            && let Some(verdict) = trial.verdict()
        {
            running.trial = Err(verdict);
        }
        match &running.trial {
            Ok(trial) => Some(Resolution::Trial(Arc::clone(old), Arc::clone(trial))),
            Err(Verdict::RolledBack(_)) => Some(Resolution::Previous(Arc::clone(old))),
            Err(Verdict::Promoted(_)) => None,
        }
    }

    /// Begins the trial of these two, if it has not begun: filters with it are to serve.
    pub(super) fn start(
        &mut self,
        host: &Arc<Inner>,
        record: &Arc<Mutex<Record>>,
        keys: (Digest, Digest),
    ) {
        let Some(running) = self.0.get_mut(&keys) else {
            return;
        };
        let Ok(trial) = &running.trial else { return };
        running.look.get_or_insert_with(|| {
            record.lock().enter(State::Trial, &trial.describe());
            let _runtime = host.control.enter();
            let look = look(Arc::downgrade(host), Arc::clone(trial), Arc::clone(record));
            OwnedTask::spawn("wasm trial", look)
        });
    }

    /// Forgets those that have not begun, those whose new version is not to be kept, and those under way to which no
    /// stream comes: the new versions of these.
    pub(super) fn retain(
        &mut self,
        is_served: impl Fn(&(Digest, Digest)) -> bool,
        keep: impl Fn(&Digest) -> bool,
    ) -> Vec<Digest> {
        let mut ended = Vec::new();
        self.0.retain(|keys, running| {
            let under_way = running.trial.as_ref();
            let under_way = under_way.is_ok_and(|trial| trial.verdict().is_none());
            let stays = running.look.is_some() && (!under_way || is_served(keys));
            if running.look.is_some() && !stays {
                ended.push(keys.1);
            }
            stays && keep(&keys.1)
        });
        ended
    }

    fn running(&self) -> impl Iterator<Item = (&Digest, &Arc<Trial>)> {
        self.0
            .iter()
            .filter(|(_, running)| running.look.is_some())
            .filter_map(|((_, new), running)| Some((new, running.trial.as_ref().ok()?)))
            .filter(|(_, trial)| trial.verdict().is_none())
    }

    /// What an operator wants of those of the plugin `name`; how many there are.
    pub(super) fn command(&self, name: &str, command: RolloutCommand) -> usize {
        self.running()
            .filter(|(_, trial)| trial.name() == name)
            .map(|(_, trial)| match command {
                RolloutCommand::Promote => {
                    trial.decide(Verdict::Promoted("by the operator".to_owned()));
                }
                RolloutCommand::RollBack => {
                    trial.decide(Verdict::RolledBack("by the operator".to_owned()));
                }
                RolloutCommand::Share(percent) => trial.set_share(percent),
            })
            .count()
    }

    /// How the trial of the version `key` goes, if it is on trial.
    pub(super) fn describe(&self, key: &Digest) -> Option<String> {
        let mut of_it = self.running().filter(|(new, _)| *new == key);
        of_it.next().map(|(_, trial)| trial.describe())
    }
}

/// Looks at a trial until it has ended, and records how.
async fn look(inner: Weak<Inner>, trial: Arc<Trial>, record: Arc<Mutex<Record>>) {
    const EVERY: Duration = Duration::from_millis(100);
    let verdict = loop {
        tokio::time::sleep(EVERY).await;
        trial.look();
        if let Some(verdict) = trial.verdict() {
            break verdict;
        }
    };
    let name = trial.name();
    {
        let mut record = record.lock();
        match &verdict {
            Verdict::Promoted(reason) => {
                tracing::info!(target: "wasm", "plugin {name}: promoted: {reason}");
                record.enter(State::Live, &format!("promoted: {reason}"));
            }
            Verdict::RolledBack(reason) => {
                tracing::error!(target: "wasm", "plugin {name}: rolled back: {reason}");
                record.enter(State::RolledBack, reason);
                record.error = Some(format!("rolled back: {reason}").into());
            }
        }
    }
    if let Some(inner) = inner.upgrade() {
        inner.ring();
    }
}
