//! The way of one version: from its spec to life, or to a failure that waiting will not mend; and of one whose source may
//! change, on to what the source gives later.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Failure, Home, Inner, Outcome, Record, Wanted};
use crate::base::backoff::Backoff;
use crate::wasm::engine::Tier;
use crate::wasm::module::Module;
use crate::wasm::plugin::Plugin;
use crate::wasm::spec::{Code, PluginSpec, PullPolicy, Remote};
use crate::wasm::status::{State, wasm_stats};
use crate::wasm::store::{Given, Pin};

/// So many places of the same code are tried.
const MAX_SOURCES: usize = 4;

/// Where the code of a version comes from, and what holds it on disk.
pub(super) struct Supply {
    /// Where to look next is at the front.
    sources: Mutex<VecDeque<Code>>,
    added: Notify,
    pin: Mutex<Option<Pin>>,
}

impl Supply {
    pub(super) fn new(code: Code) -> Self {
        Self {
            sources: Mutex::new(VecDeque::from([code])),
            added: Notify::new(),
            pin: Mutex::default(),
        }
    }

    /// Takes up another place of the code, or other credentials for it: a version is the same wherever it comes from, and
    /// one that cannot be had from where it was looked for may be had from there.
    pub(super) fn offer(&self, code: &Code) {
        let Code::Remote(_) = code else {
            return;
        };
        let mut sources = self.sources.lock();
        if !sources.contains(code) {
            sources.push_front(code.clone());
            sources.truncate(MAX_SOURCES);
            self.added.notify_one();
        }
    }

    /// The source whose turn it is.
    fn source(&self) -> Code {
        let sources = self.sources.lock();
        sources[0].clone()
    }

    /// `code` has failed: others come first.
    fn failed(&self, code: &Code) {
        let mut sources = self.sources.lock();
        if sources.front() == Some(code) {
            sources.rotate_left(1);
        }
    }
}

/// Loads one version.
pub(super) struct Loader {
    pub(super) inner: Weak<Inner>,
    pub(super) spec: Arc<PluginSpec>,
    pub(super) home: Home,
    /// Nothing serves in its place until it is live.
    pub(super) first: bool,
    pub(super) record: Arc<Mutex<Record>>,
    pub(super) outcome: Arc<Mutex<Outcome>>,
    pub(super) supply: Arc<Supply>,
}

/// When to try again.
enum Next {
    /// After the back-off, or when there is another source.
    Again,
    /// When there is another source.
    Source,
    /// After so long.
    Refresh(Duration),
    /// Never.
    Done,
}

impl Loader {
    pub(super) async fn run(self) {
        let mut code = self.supply.source();
        let mut backoff = backoff_of(&code);
        let mut attempts = 0;
        // What is live.
        let mut live: Option<Given> = None;
        loop {
            let Some(inner) = self.inner.upgrade() else {
                return;
            };
            let next = self.attempt(&inner, &code, &mut live, attempts).await;
            drop(inner);
            attempts = attempts.saturating_add(1);
            let added = self.supply.added.notified();
            match next {
                Next::Done => return,
                Next::Source => added.await,
                Next::Again => {
                    let wait = backoff.next_wait();
                    let _ = tokio::time::timeout(wait, added).await;
                }
                Next::Refresh(wait) => {
                    backoff = backoff_of(&code);
                    let _ = tokio::time::timeout(wait, added).await;
                }
            }
            let source = self.supply.source();
            if source != code {
                backoff = backoff_of(&source);
                code = source;
            }
        }
    }

    async fn attempt(
        &self,
        inner: &Arc<Inner>,
        code: &Code,
        live: &mut Option<Given>,
        attempts: u32,
    ) -> Next {
        let enter = |state| {
            let mut record = self.record.lock();
            if live.is_none() && record.state != state {
                record.enter(state, "");
            }
        };
        let wanted = match (live.is_some(), self.first) {
            (true, _) => Wanted::Fresh,
            (false, true) => Wanted::First,
            (false, false) => Wanted::Known,
        };
        let (loaded, recipe) = match inner.recipe(&self.spec, code, wanted, enter).await {
            Ok(made) => made,
            Err(failure) => return self.fail(inner, code, &failure, live.is_some(), attempts),
        };
        let given = loaded.given;
        let new = *live != Some(given);
        if new {
            {
                let mut record = self.record.lock();
                record.compile_time = loaded.module.compile_time;
                record.unknown_imports.clone_from(&recipe.imports.unknown);
                if live.is_none() {
                    record.code = Some(given.code);
                    record.image = given.image;
                }
            }
            let plugin = match inner.start(&self.spec, recipe, self.home).await {
                Ok(plugin) => plugin,
                Err(error) => {
                    let failure = Failure::Load(error);
                    return self.fail(inner, code, &failure, live.is_some(), attempts);
                }
            };
            self.replace(inner, plugin, "its source gives another code now");
            *live = Some(given);
            *self.supply.pin.lock() = loaded.pin;
            let mut record = self.record.lock();
            record.code = Some(given.code);
            record.image = given.image;
            record.given_up = false;
            let image = given.image.map(|image| format!("image sha256:{image}"));
            let baseline = loaded.module.tier() == Tier::Baseline;
            let details = [image, baseline.then(|| "baseline code".to_owned())];
            let details: Vec<_> = details.into_iter().flatten().collect();
            record.enter(State::Live, &details.join(", "));
            tracing::info!(target: "wasm", "plugin {}: live, {}", self.spec.name, given.code);
        }
        self.record.lock().error = loaded.stale.as_ref().map(|error| {
            let text = format!("what its source gave in an earlier run serves: {error}");
            tracing::warn!(target: "wasm", "plugin {}: {text}", self.spec.name);
            text.into()
        });
        inner.ring();
        if new {
            self.optimise(inner, &loaded.module).await;
        }
        match (loaded.stale, refresh_of(inner, code)) {
            (Some(_), _) => Next::Again,
            (None, Some(interval)) => Next::Refresh(interval),
            (None, None) => Next::Done,
        }
    }

    /// Where `module`, which is live, is of the baseline tier: puts VMs with its optimised code in the place of those
    /// that serve, as a new version would be put there. Where that fails they go on.
    async fn optimise(&self, inner: &Arc<Inner>, module: &Module) {
        if module.tier() == Tier::Optimised {
            return;
        }
        let optimise = async {
            let module = inner.optimised(module).await?;
            let recipe = inner.recipe_with(&self.spec, &module)?;
            let plugin = inner.start(&self.spec, recipe, self.home).await;
            Ok((module, plugin.map_err(Failure::Load)?))
        };
        let name = &self.spec.name;
        let (module, plugin) = match optimise.await {
            Ok(made) => made,
            Err(failure) => {
                let failure: Failure = failure;
                tracing::warn!(target: "wasm", "plugin {name}: its baseline code goes on: {failure}");
                let detail = format!("baseline code goes on: {failure}");
                self.record.lock().enter(State::Live, &detail);
                return;
            }
        };
        self.replace(inner, plugin, "its code was optimised");
        {
            let mut record = self.record.lock();
            record.compile_time = module.compile_time;
            record.enter(State::Live, "optimised code");
        }
        tracing::info!(target: "wasm", "plugin {name}: optimised, {}", module.digest);
        inner.ring();
    }

    /// `plugin` is live; what was so until now drains, and why.
    fn replace(&self, inner: &Inner, plugin: Arc<Plugin>, why: &str) {
        let old = std::mem::replace(&mut *self.outcome.lock(), Outcome::Live(plugin));
        if let Outcome::Live(plugin) = old {
            let mut record = self.record.lock().clone();
            record.enter(State::Draining, why);
            let mut state = inner.state.lock();
            state.draining.push((Arc::downgrade(&plugin), record));
        }
    }

    fn fail(
        &self,
        inner: &Inner,
        code: &Code,
        failure: &Failure,
        live: bool,
        attempts: u32,
    ) -> Next {
        let text = failure.to_string();
        inner.stats.inc(wasm_stats::LOAD_FAILURES);
        tracing::error!(target: "wasm", "plugin {}: {text}", self.spec.name);
        let heals = matches!(failure, Failure::Fetch { heals: true, .. });
        let retries = remote(code).map_or(0, |remote| remote.retries);
        {
            let mut record = self.record.lock();
            record.error = Some(text.as_str().into());
            if !live {
                let state = if heals {
                    State::Fetching
                } else {
                    State::Failed
                };
                record.enter(state, &text);
                record.given_up = !heals || attempts >= retries;
            }
        }
        self.supply.failed(code);
        inner.ring();
        if heals {
            return Next::Again;
        }
        match refresh_of(inner, code) {
            Some(interval) => Next::Refresh(interval),
            None => Next::Source,
        }
    }
}

fn remote(code: &Code) -> Option<&Remote> {
    match code {
        Code::Local { .. } => None,
        Code::Remote(remote) => Some(remote),
    }
}

fn backoff_of(code: &Code) -> Backoff {
    match remote(code) {
        Some(remote) => Backoff::new(remote.backoff_base, remote.backoff_cap),
        None => Backoff::new(Duration::from_secs(1), Duration::from_secs(1)),
    }
}

/// How often to ask a source whose answer may change.
fn refresh_of(inner: &Inner, code: &Code) -> Option<Duration> {
    let remote = remote(code)?;
    let changes = remote.pin().is_none() && remote.pull.policy == PullPolicy::Always;
    inner.options.settings.refresh_interval.filter(|_| changes)
}
