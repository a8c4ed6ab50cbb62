//! The way of one version: from its spec to life, or to a failure that waiting will not mend; and of one whose source may
//! change, on to what the source gives later.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::modules::{Asker, Loaded};
use super::supply::{Outlook, Supply, remote};
use super::{Failure, Home, Inner, Outcome, Record, Wanted};
use crate::wasm::engine::Tier;
use crate::wasm::module::LoadError;
use crate::wasm::plugin::Plugin;
use crate::wasm::spec::{Code, PluginSpec, PullPolicy};
use crate::wasm::status::{State, wasm_stats};
use crate::wasm::store::Given;

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

/// How far it is.
#[derive(Default)]
struct Progress {
    /// What is live.
    live: Option<Given>,
    /// Code of a source that may give other code would not do.
    refused: bool,
    attempts: u32,
}

/// Whether to try again.
enum Next {
    /// When a source is due.
    Again,
    /// Never.
    Done,
}

/// Code, and a plugin of it.
struct Made {
    loaded: Loaded,
    /// `None`: the code is what is live.
    plugin: Option<Arc<Plugin>>,
    /// It is what the source gave earlier: now it gives nothing, or nothing good.
    stale: Option<Failure>,
}

impl Loader {
    pub(super) async fn run(self) {
        let mut progress = Progress::default();
        loop {
            let code = self.supply.turn().await;
            let Some(inner) = self.inner.upgrade() else {
                return;
            };
            match self.attempt(&inner, &code, &mut progress).await {
                Next::Again => {}
                Next::Done => return,
            }
        }
    }

    async fn attempt(&self, inner: &Arc<Inner>, code: &Code, progress: &mut Progress) -> Next {
        let live = progress.live;
        let fetching = AtomicBool::new(true);
        let enter = |state| {
            fetching.store(state == State::Fetching, Relaxed);
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
        let asker = Asker {
            version: self.spec.key(),
            refused: progress.refused,
        };
        let mut module = std::pin::pin!(inner.module(code, asker, wanted, &enter));
        let loaded = loop {
            tokio::select! {
                biased;
                loaded = &mut module => break loaded,
                // Another source does not wait for one that says nothing; what has come is not thrown away.
                () = self.supply.another(code), if fetching.load(Relaxed) => {
                    if fetching.load(Relaxed) {
                        self.supply.abandoned(code);
                        return Next::Again;
                    }
                }
            }
        };
        progress.attempts = progress.attempts.saturating_add(1);
        let tried = loaded.as_ref().ok().map(|loaded| loaded.given);
        let made = match loaded {
            Ok(loaded) => self.make(inner, loaded, live, &enter).await,
            Err(failure) => Err(failure),
        };
        let made = match made {
            Ok(made) => made,
            Err(failure) => {
                if outlook(code, &failure) == Outlook::Later {
                    progress.refused = true;
                }
                let earlier = self.earlier(inner, code, &failure, tried, wanted, &enter);
                match earlier.await {
                    Some(made) => Made {
                        stale: Some(failure),
                        ..made
                    },
                    None => return self.fail(inner, code, &failure, progress),
                }
            }
        };
        self.go_live(inner, code, made, progress).await
    }

    /// A plugin of the code, where that is not what is live.
    async fn make(
        &self,
        inner: &Arc<Inner>,
        loaded: Loaded,
        live: Option<Given>,
        enter: &impl Fn(State),
    ) -> Result<Made, Failure> {
        enter(State::Configuring);
        let recipe = inner.recipe_with(&self.spec, &loaded.module)?;
        let given = loaded.given;
        let mut plugin = None;
        if live != Some(given) {
            {
                let mut record = self.record.lock();
                record.compile_time = loaded.module.compile_time;
                let code = recipe.code.load();
                record.unknown_imports.clone_from(&code.imports.unknown);
                if live.is_none() {
                    record.code = Some(given.code);
                    record.image = given.image;
                }
            }
            let started = inner.start(&self.spec, recipe, self.home).await;
            plugin = Some(started.map_err(Failure::Load)?);
        }
        Ok(Made {
            loaded,
            plugin,
            stale: None,
        })
    }

    /// After `failure`, what the source gave before, rather than nothing. Where something serves, code that will not do
    /// leaves that as it is: it may be the configuration that is bad.
    async fn earlier(
        &self,
        inner: &Arc<Inner>,
        code: &Code,
        failure: &Failure,
        tried: Option<Given>,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Option<Made> {
        let remote = remote(code)?;
        match (outlook(code, failure), failure) {
            (Outlook::Later, _) => {
                if let Some(given) = tried {
                    inner.disapprove(remote, given);
                }
                if wanted != Wanted::First {
                    return None;
                }
            }
            (Outlook::Soon, Failure::Fetch { .. }) if wanted != Wanted::Fresh => {}
            _ => return None,
        }
        let loaded = inner
            .earlier(remote, self.spec.key(), tried, wanted, enter)
            .await?;
        self.make(inner, loaded, None, enter).await.ok()
    }

    async fn go_live(
        &self,
        inner: &Arc<Inner>,
        code: &Code,
        made: Made,
        progress: &mut Progress,
    ) -> Next {
        let Made {
            loaded,
            plugin,
            stale,
        } = made;
        let given = loaded.given;
        let new = plugin.is_some();
        if let Some(plugin) = plugin {
            if let Some(remote) = remote(code)
                && stale.is_none()
            {
                // Failing to note it is no failure.
                let _ = inner.approve(remote, self.spec.key(), given).await;
            }
            self.replace(inner, plugin, "its source gives another code now");
            progress.live = Some(given);
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
        self.record.lock().error = stale.as_ref().map(|failure| {
            let text = format!("what its source gave in an earlier run serves: {failure}");
            tracing::warn!(target: "wasm", "plugin {}: {text}", self.spec.name);
            text.into()
        });
        inner.ring();
        let refresh = refresh_of(inner, code);
        match &stale {
            Some(failure) => {
                let outlook = outlook(code, failure);
                self.supply
                    .failed(code, &failure.to_string(), outlook, refresh);
            }
            None => self.supply.succeeded(code, refresh),
        }
        if new {
            self.optimise(inner);
        }
        match (stale, refresh) {
            (None, None) => Next::Done,
            _ => Next::Again,
        }
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

    fn fail(&self, inner: &Inner, code: &Code, failure: &Failure, progress: &Progress) -> Next {
        let text = failure.to_string();
        inner.stats.inc(wasm_stats::LOAD_FAILURES);
        tracing::error!(target: "wasm", "plugin {}: {text}", self.spec.name);
        let outlook = outlook(code, failure);
        let after = self
            .supply
            .failed(code, &text, outlook, refresh_of(inner, code));
        let retries = remote(code).map_or(0, |remote| remote.retries);
        {
            let mut record = self.record.lock();
            record.error = Some(after.error);
            if progress.live.is_none() {
                let state = match (outlook, failure) {
                    (Outlook::Soon, Failure::Load(_)) if after.goes_on => State::Configuring,
                    (_, Failure::Fetch { .. }) if after.goes_on => State::Fetching,
                    _ => State::Failed,
                };
                record.enter(state, &text);
                record.given_up = state == State::Failed || progress.attempts > retries;
            }
        }
        inner.ring();
        Next::Again
    }
}

/// What can be hoped for after `failure`.
fn outlook(code: &Code, failure: &Failure) -> Outlook {
    match failure {
        Failure::Load(LoadError::NoRoom(_)) | Failure::Fetch { heals: true, .. } => Outlook::Soon,
        Failure::Load(_) if remote(code).is_some_and(|remote| remote.pin().is_none()) => {
            Outlook::Later
        }
        Failure::Load(_) | Failure::Fetch { .. } => Outlook::Never,
    }
}

/// How often to ask a source whose answer may change.
fn refresh_of(inner: &Inner, code: &Code) -> Option<Duration> {
    let remote = remote(code)?;
    let changes = remote.pin().is_none() && remote.pull.policy == PullPolicy::Always;
    inner.options.settings.refresh_interval.filter(|_| changes)
}
