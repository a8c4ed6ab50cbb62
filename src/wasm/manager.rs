//! The control-side manager: which plugin versions are wanted where, and the way of each from its spec to a live
//! [`Plugin`]. What is live in a slot stays until its successor is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::abi::linker;
use super::context::{Host, RootSpec};
use super::engine::Runtime;
use super::fetch::FetchError;
use super::module::{Cache, LoadError};
use super::options::{Options, Resolution, RolloutCommand};
use super::plugin::Plugin;
use super::service::GOODBYE;
use super::shared::Shared;
use super::slot::Asked;
use super::source::download::Downloader;
use super::source::shown;
use super::spec::{Code, Digest, PluginSpec};
use super::status::{Event, PluginStatus, State, wasm_stats};
use super::store::Store;
use super::vm_set::VmSet;
use crate::base::task::OwnedTask;
use crate::config::ConfigError;
use crate::config::wasm_settings::VmSharing;
use crate::telemetry::metrics::StatSet;

mod compiler;
mod loader;
mod modules;
mod optimise;
mod slots;
mod start;
mod supply;
mod trials;
mod watched;

use modules::{Modules, Wanted};
use slots::{Slot, Table};
use supply::Supply;
use watched::WatchedFiles;

/// Steps of a version's life that are remembered.
const MAX_HISTORY: usize = 32;

/// The manager. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plugins(Arc<Inner>);

struct Inner {
    options: Options,
    /// Made for the first plugin: a proxy without one needs none of it.
    machine: OnceLock<Result<Machine, Box<str>>>,
    shared: Arc<Shared>,
    stats: Arc<StatSet>,
    control: tokio::runtime::Handle,
    /// By digest of the code; one load at a time for each.
    modules: Mutex<Modules>,
    /// Compiled modules on their way to the disk.
    writes: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    /// Made for the first source without a cluster.
    downloader: tokio::sync::OnceCell<Downloader>,
    /// Versions that a canary has shown to work, and what their configuration took.
    proven: Mutex<HashMap<Digest, Duration>>,
    /// The VMs that versions share, by VM key; more than one where plugins' settings differ.
    sets: Mutex<HashMap<Digest, Vec<Weak<VmSet>>>>,
    /// By plugin name: one for all versions of it, so that no count falls when another takes over.
    plugin_stats: Mutex<HashMap<Box<str>, Weak<StatSet>>>,
    state: Mutex<Table>,
    watched: Mutex<WatchedFiles>,
    changed: watch::Sender<u64>,
}

/// What compiles and runs plugins.
struct Machine {
    runtime: Arc<Runtime>,
    linker: wasmtime::Linker<Host>,
    cache: Option<Cache>,
    store: Option<Store>,
}

impl Machine {
    fn new(options: &Options) -> wasmtime::Result<Self> {
        let runtime = Runtime::new()?;
        let linker = linker(runtime.engine())?;
        let cache = options.cache_dir.as_deref().and_then(|folder| {
            // Without it everything works, only slower.
            Cache::open(folder, runtime.engine())
                .map(|cache| cache.keeping(options.settings.modules_on_disk))
                .inspect_err(|error| {
                    let folder = folder.display();
                    tracing::warn!(target: "wasm", "neither compiled modules nor fetched code is kept in {folder}: {error}");
                })
                .ok()
        });
        let max_bytes = options.settings.source_bytes_on_disk;
        // A folder that will not do for the one will not do for the other, which is in it.
        let store = options
            .cache_dir
            .as_deref()
            .filter(|_| cache.is_some() && max_bytes > 0);
        let store = store.and_then(|folder| {
            let folder = folder.join("sources");
            Store::open(&folder, max_bytes)
                .inspect_err(|error| {
                    let folder = folder.display();
                    tracing::warn!(target: "wasm", "fetched code is not kept in {folder}: {error}");
                })
                .ok()
        });
        Ok(Self {
            runtime: Arc::new(runtime),
            linker,
            cache,
            store,
        })
    }
}

struct Version {
    record: Arc<Mutex<Record>>,
    outcome: Arc<Mutex<Outcome>>,
    supply: Arc<Supply>,
    /// Those of its name, from when it is wanted, and not from when it is live.
    _stats: Arc<StatSet>,
    _loading: OwnedTask,
}

#[derive(Default)]
enum Outcome {
    #[default]
    Loading,
    Live(Arc<Plugin>),
}

/// What is told of a version.
#[derive(Clone)]
struct Record {
    spec: Arc<PluginSpec>,
    /// The sum of the code, as far as it is known, and that of the image's manifest.
    code: Option<Digest>,
    image: Option<Digest>,
    state: State,
    error: Option<Arc<str>>,
    /// Waiting longer will not help soon: a listener need not be held back for it.
    given_up: bool,
    history: VecDeque<Event>,
    compile_time: Option<Duration>,
    unknown_imports: Vec<String>,
}

impl Record {
    fn new(spec: Arc<PluginSpec>) -> Self {
        let (state, code) = match &spec.code {
            Code::Local { digest, .. } => (State::Compiling, Some(*digest)),
            Code::Remote(remote) => (State::Fetching, remote.sha256),
        };
        let mut record = Self {
            spec,
            code,
            image: None,
            state,
            error: None,
            given_up: false,
            history: VecDeque::new(),
            compile_time: None,
            unknown_imports: Vec::new(),
        };
        record.enter(state, "");
        record
    }

    fn enter(&mut self, state: State, detail: &str) {
        self.state = state;
        if self.history.len() >= MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Event {
            at: SystemTime::now(),
            state,
            detail: detail.to_owned(),
        });
    }

    fn status(&self, slots: Vec<String>, plugin: Option<&Plugin>) -> PluginStatus {
        let running = plugin.and_then(Plugin::last_error);
        PluginStatus {
            name: self.spec.name.to_string(),
            root_id: self.spec.root_id.to_string(),
            vm_id: self.spec.vm_id.to_string(),
            key: self.spec.key(),
            sha256: self.code,
            image: self.image,
            origin: match &self.spec.code {
                Code::Local { origin, .. } => origin.to_string(),
                Code::Remote(remote) => shown(&remote.uri).into(),
            },
            state: self.state,
            error: match self.state {
                // Its own last trap is no news.
                State::RolledBack => None,
                _ => running,
            }
            .or_else(|| self.error.as_deref().map(str::to_owned)),
            slots,
            vms: plugin.map(Plugin::vm_status).unwrap_or_default(),
            history: self.history.iter().cloned().collect(),
            compile_time: self.compile_time,
            unknown_imports: self.unknown_imports.clone(),
            live: plugin.map(Plugin::live_status),
            trial: None,
        }
    }
}

impl Plugins {
    /// Starts the host; must be called inside the control side's runtime.
    pub fn new(options: Options) -> Self {
        let stats = options
            .registry
            .set(&wasm_stats::TABLE, "wasm.", "wasm", []);
        Self(Arc::new(Inner {
            machine: OnceLock::new(),
            shared: Arc::default(),
            stats,
            control: tokio::runtime::Handle::current(),
            modules: Mutex::default(),
            writes: Mutex::default(),
            downloader: tokio::sync::OnceCell::new(),
            proven: Mutex::default(),
            sets: Mutex::default(),
            plugin_stats: Mutex::default(),
            state: Mutex::default(),
            watched: Mutex::default(),
            changed: watch::channel(0).0,
            options,
        }))
    }

    /// Compiles and configures the code of `spec` once, if it is at hand, before the resource that holds it is
    /// acknowledged. Remote code is not fetched for this.
    ///
    /// # Errors
    /// What Envoy NACKs: not a module, wrong ABI, a trap or `false` from `on_vm_start` or `on_configure`, too slow.
    pub async fn canary(&self, spec: &Arc<PluginSpec>) -> Result<(), ConfigError> {
        let Code::Local { .. } = spec.code else {
            return Ok(());
        };
        if self.0.proven.lock().contains_key(&spec.key()) {
            return Ok(());
        }
        let refuse = |error: &LoadError| {
            tracing::error!(target: "wasm", "plugin {}: {error}", spec.name);
            ConfigError::invalid(format!(
                "Unable to create Wasm plugin {}: {}",
                spec.name,
                error.to_string().lines().next().unwrap_or_default()
            ))
        };
        // Where a plugin of its name serves, this is a change of it, and nobody waits.
        let wanted = if self.serves(&spec.name) {
            Wanted::Known
        } else {
            Wanted::First
        };
        let (_, recipe) = self
            .0
            .recipe(spec, &spec.code, wanted, |_| ())
            .await
            .map_err(|error| match error {
                Failure::Load(error) => refuse(&error),
                Failure::Fetch { error, .. } => ConfigError::invalid(error.to_string()),
            })?;
        let proof = recipe.prove(Arc::new(RootSpec::new(spec))).await;
        let took = proof.map_err(|error| refuse(&error))?;
        let mut proven = self.0.proven.lock();
        if proven.len() >= 1024 {
            proven.clear();
        }
        proven.insert(spec.key(), took);
        Ok(())
    }

    /// `spec` with the code that its file has now, where that is watched: what is to be [asked](Self::ask) for.
    pub fn current(&self, spec: &Arc<PluginSpec>) -> Arc<PluginSpec> {
        let changed = self.0.watched.lock().current(&self.0, spec);
        changed.map_or_else(|| Arc::clone(spec), Arc::new)
    }

    /// Says what serves `slot` (a place in the configuration, any stable name) where that wants `spec`, and starts to load it
    /// where it is new. Call it anew for every Generation, which [settles](Self::settle) it; [`Plugins::changed`] tells when.
    pub fn ask(&self, slot: &str, spec: &Arc<PluginSpec>) -> Resolution {
        self.0.state.lock().ask(&self.0, slot, spec)
    }

    /// As [`Plugins::hold`], until a Generation without the slot is built.
    #[cfg(test)]
    pub(crate) fn resolve(&self, slot: &str, spec: &Arc<PluginSpec>) -> Resolution {
        self.ask_and_take(slot, spec, false)
    }

    /// As [`Plugins::ask`] of what is [current](Self::current), settled at once, for a slot that stays whatever Generations
    /// have, until it is [released](Self::release).
    pub(crate) fn hold(&self, slot: &str, spec: &Arc<PluginSpec>) -> Resolution {
        self.ask_and_take(slot, spec, true)
    }

    fn ask_and_take(&self, slot: &str, spec: &Arc<PluginSpec>, held: bool) -> Resolution {
        let spec = &self.current(spec);
        let mut state = self.0.state.lock();
        let resolution = state.ask(&self.0, slot, spec);
        state.take(&self.0, &(slot.into(), spec.key()), held);
        resolution
    }

    /// True while a held slot waits for its first version, and waiting may help soon.
    pub(crate) fn holds_pending(&self) -> bool {
        let state = self.0.state.lock();
        let first = |slot: &&Slot| slot.held && slot.live.is_none();
        let wanted = state.slots.values().filter(first).map(|slot| slot.wanted);
        let mut versions = wanted.filter_map(|key| state.versions.get(&key));
        versions.any(|version| {
            matches!(*version.outcome.lock(), Outcome::Loading) && !version.record.lock().given_up
        })
    }

    /// True where a plugin of this name serves a slot.
    fn serves(&self, name: &str) -> bool {
        let state = self.0.state.lock();
        let mut live = state.slots.values().filter_map(|slot| slot.live.as_ref());
        live.any(|plugin| &*plugin.spec().name == name)
    }

    /// What serves `slot` now.
    pub(crate) fn serving(&self, slot: &str) -> Option<Arc<Plugin>> {
        let state = self.0.state.lock();
        state.slots.get(slot)?.live.clone()
    }

    /// Tells the root contexts of all plugins that the process ends (`on_done`, `on_delete`), and returns when they have
    /// heard it and compiled code is on the disk, or either takes too long.
    pub async fn stop(&self) {
        let plugins = self.all();
        let vms: Vec<_> = plugins.iter().flat_map(|plugin| plugin.leave()).collect();
        let settled = futures_util::future::join_all(vms.iter().map(|vm| vm.settled()));
        let writes = std::mem::take(&mut *self.0.writes.lock());
        let written = futures_util::future::join_all(writes);
        // Either way it is over.
        let _ = tokio::time::timeout(GOODBYE, async { (settled.await, written.await) }).await;
    }

    /// Ends when all VMs have dealt with what was posted to them until now, or take too long.
    pub async fn settled(&self) {
        let plugins = self.all();
        let vms = plugins.iter().flat_map(|plugin| plugin.vms());
        let vms = vms.filter_map(|vm| Some(vm.upgrade()?.settled()));
        let settled = futures_util::future::join_all(vms);
        let _ = tokio::time::timeout(GOODBYE, settled).await;
    }

    /// All versions that are live, serve or are let go.
    fn all(&self) -> Vec<Arc<Plugin>> {
        let state = self.0.state.lock();
        let loaded = state.versions.values().filter_map(|version| {
            let outcome = version.outcome.lock();
            match &*outcome {
                Outcome::Live(plugin) => Some(Arc::clone(plugin)),
                Outcome::Loading => None,
            }
        });
        let serving = state.slots.values().filter_map(|slot| slot.live.clone());
        let draining = state.draining.iter();
        let draining = draining.filter_map(|(plugin, _)| plugin.upgrade());
        loaded.chain(serving).chain(draining).collect()
    }

    /// Forgets a slot.
    pub(crate) fn release(&self, slot: &str) {
        let mut state = self.0.state.lock();
        state.slots.remove(slot);
        state.sweep();
    }

    /// Each slot named here wants that version from now on, and serves what [`Plugins::ask`] answered; other slots of
    /// Generations are forgotten. Call it once a Generation is built, with what its filters have asked for, lately or long ago.
    ///
    /// What was asked for by filters that are not to serve yet loads on, and changes nothing in a slot that serves.
    pub fn settle(&self, serving: &BTreeSet<Asked>) {
        let mut state = self.0.state.lock();
        for asked in serving {
            state.take(&self.0, asked, false);
        }
        let slots: BTreeSet<&str> = serving.iter().map(|(slot, _)| &**slot).collect();
        state.retain(|slot| slots.contains(slot));
        drop(state);
        self.0.watched.lock().sweep();
    }

    /// Forgets the slots of Generations for which `keep` is false.
    #[cfg(test)]
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.state.lock().retain(keep);
    }

    /// Rings (with a growing number) whenever a version has become live or has failed: time for a new Generation.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// A value that the plugins of `vm_id` share, if there are any such plugins.
    pub fn shared_value(&self, vm_id: &str, key: &[u8]) -> Option<bytes::Bytes> {
        let value = self.0.shared.find(vm_id)?.get(key)?;
        Some(value.0)
    }

    /// What an operator wants of the running trials of the plugin `name`; how many there are.
    pub fn rollout(&self, name: &str, command: RolloutCommand) -> usize {
        self.0.state.lock().trials.command(name, command)
    }

    /// For admin's `/wasm`.
    pub fn status(&self) -> Vec<PluginStatus> {
        let state = self.0.state.lock();
        let mut statuses = Vec::new();
        for (key, version) in &state.versions {
            let slots = state.slots_of(key);
            let plugin = match &*version.outcome.lock() {
                Outcome::Live(plugin) => Some(Arc::clone(plugin)),
                Outcome::Loading => None,
            };
            let mut status = version.record.lock().status(slots, plugin.as_deref());
            status.trial = state.trials.describe(key);
            statuses.push(status);
        }
        for (plugin, record) in &state.draining {
            if let Some(plugin) = plugin.upgrade() {
                statuses.push(record.status(Vec::new(), Some(&plugin)));
            }
        }
        statuses
    }
}

/// In whose VMs a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// In those of all versions with its VM key and its settings.
    Shared,
    /// In its own.
    Alone,
}

/// Why a version is not there yet.
enum Failure {
    /// The code is here and will not do: only other code would help, or room.
    Load(LoadError),
    /// The code is not here.
    Fetch {
        error: Arc<FetchError>,
        /// Trying again may help.
        heals: bool,
    },
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(error) => error.fmt(f),
            Self::Fetch { error, .. } => error.fmt(f),
        }
    }
}

impl Inner {
    /// Starts a version on its way; `first`: nothing serves meanwhile.
    fn load(self: &Arc<Self>, spec: &Arc<PluginSpec>, home: Home, first: bool) -> Version {
        let record = Arc::new(Mutex::new(Record::new(Arc::clone(spec))));
        let outcome = Arc::new(Mutex::new(Outcome::Loading));
        let supply = Arc::new(Supply::new(spec.code.clone()));
        let _runtime = self.control.enter();
        let loading = OwnedTask::spawn(
            "wasm load",
            loader::Loader {
                inner: Arc::downgrade(self),
                spec: Arc::clone(spec),
                home,
                first,
                record: Arc::clone(&record),
                outcome: Arc::clone(&outcome),
                supply: Arc::clone(&supply),
            }
            .run(),
        );
        Version {
            record,
            outcome,
            supply,
            _stats: self.plugin_stats(&spec.name),
            _loading: loading,
        }
    }

    /// Where a new version belongs that is to follow `serving`. One that begins with a trial is not to harm those who
    /// serve beside it.
    fn home(&self, spec: &PluginSpec, serving: Option<&Arc<Plugin>>) -> Home {
        let policy = self.options.policy(&spec.name);
        let on_trial = policy.rollout.share_percent > 0
            && serving.is_some_and(|old| old.spec().name == spec.name);
        if on_trial || policy.vm_sharing == VmSharing::Isolated {
            Home::Alone
        } else {
            Home::Shared
        }
    }

    fn machine(&self) -> Result<&Machine, LoadError> {
        let machine = self.machine.get_or_init(|| {
            Machine::new(&self.options).map_err(|error| format!("{error:#}").into())
        });
        machine
            .as_ref()
            .map_err(|error| LoadError::Start(format!("no WebAssembly engine: {error}")))
    }

    fn ring(&self) {
        self.changed.send_modify(|number| *number += 1);
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugins").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "manager/tests.rs"]
mod tests;
