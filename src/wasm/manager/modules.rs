//! Compiled modules: in memory, on disk, or compiled of code that is at hand, kept or fetched. One load at a time for each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::{Failure, Inner, Machine, compiler};
use crate::wasm::fetch::{self, FetchError};
use crate::wasm::module::{LoadError, Module};
use crate::wasm::source::download::Downloader;
use crate::wasm::source::oci::Image;
use crate::wasm::source::reference::Reference;
use crate::wasm::source::shown;
use crate::wasm::spec::{Code, Digest, Origin, PullPolicy, Remote};
use crate::wasm::status::{State, wasm_stats};
use crate::wasm::store::{Given, Pin, Store};

/// So many answers of sources without sums are remembered.
const MAX_GIVEN: usize = 1024;

/// Those in memory.
#[derive(Default)]
pub(super) struct Modules {
    cells: HashMap<Digest, Arc<OnceCell<Module>>>,
    /// The order of use, oldest first.
    order: VecDeque<Digest>,
    /// Those of them that a source gave.
    remote: HashSet<Digest>,
    /// What sources gave, for those whose code has no sum of its own.
    given: HashMap<Digest, Given>,
    /// One asks a source at a time, for all who want the same of it.
    turns: HashMap<Digest, Weak<Turn>>,
}

/// Held by who asks a source, for all who ask in the same [way](Remote::way); with how it failed last.
type Turn = tokio::sync::Mutex<Option<FailedTurn>>;

struct FailedTurn {
    at: Instant,
    /// What it took at most; zero is for ever.
    timeout: Duration,
    error: Arc<FetchError>,
}

impl FailedTurn {
    /// True where who has waited since `begun` would have seen the same, had he asked.
    fn answers(&self, remote: &Remote, begun: Instant) -> bool {
        let patience = |timeout: Duration| match timeout {
            Duration::ZERO => Duration::MAX,
            timeout => timeout,
        };
        self.at >= begun && patience(self.timeout) >= patience(remote.timeout)
    }
}

/// What a module is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing serves until it is there.
    First,
    /// Something serves meanwhile.
    Known,
    /// Likewise, and the source is asked whatever is known; nothing stands in for its answer.
    Fresh,
}

/// Which version wants a module.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    /// The key of its spec.
    pub(super) version: Digest,
    /// What its source gave would not do for it: whatever is known, it is asked.
    pub(super) refused: bool,
}

/// A module, and how it came.
pub(super) struct Loaded {
    pub(super) module: Module,
    pub(super) given: Given,
    /// Holds the code on disk.
    pub(super) pin: Option<Pin>,
}

impl Modules {
    /// Its cell; of the others so many stay as were used last.
    fn cell(&mut self, digest: Digest, spare: usize) -> Arc<OnceCell<Module>> {
        self.order.retain(|known| *known != digest);
        self.order.push_back(digest);
        let cell = Arc::clone(self.cells.entry(digest).or_default());
        while self.order.len() > spare.max(1) {
            // Those in use live on in their plugins; only a second load of them would be paid anew.
            if let Some(oldest) = self.order.pop_front() {
                self.cells.remove(&oldest);
            }
        }
        cell
    }

    /// `module` is the better form of what is in memory.
    pub(super) fn replace(&mut self, module: &Module) {
        if let Some(cell) = self.cells.get_mut(&module.digest) {
            *cell = Arc::new(OnceCell::new_with(Some(module.clone())));
        }
    }

    /// Its cell has stayed empty.
    fn forget(&mut self, digest: Digest) {
        if self
            .cells
            .get(&digest)
            .is_some_and(|cell| !cell.initialized())
        {
            self.cells.remove(&digest);
            self.order.retain(|known| *known != digest);
        }
    }

    /// How many of those in memory a source gave, where one has given that of `more`.
    fn count_remote(&mut self, more: Option<Digest>) -> u64 {
        self.remote.extend(more);
        let cells = &self.cells;
        self.remote.retain(|digest| cells.contains_key(digest));
        self.remote.len() as u64
    }

    fn turn(&mut self, way: Digest) -> Arc<Turn> {
        if let Some(turn) = self.turns.get(&way).and_then(Weak::upgrade) {
            return turn;
        }
        self.turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        self.turns.insert(way, Arc::downgrade(&turn));
        turn
    }
}

impl Inner {
    /// The compiled module: the one in memory, the one on disk, or a new one of code at hand, kept on disk, or fetched.
    pub(super) async fn module(
        self: &Arc<Self>,
        code: &Code,
        asker: Asker,
        wanted: Wanted,
        enter: impl Fn(State),
    ) -> Result<Loaded, Failure> {
        let (loaded, fetched) = match code {
            Code::Remote(remote) => {
                let begun = Instant::now();
                let turn = self.modules.lock().turn(remote.way());
                let mut turn = turn.lock().await;
                let loaded = self
                    .remote_module(remote, asker, wanted, &enter, begun, &mut turn)
                    .await;
                let fetched = loaded.as_ref().map(|loaded| loaded.given.code).ok();
                (loaded, fetched)
            }
            Code::Local { bytes, digest, .. } => {
                let bytes = Some(bytes.clone());
                let module = self.compiled(*digest, bytes, wanted, &enter).await;
                let loaded = module.and_then(|module| {
                    Ok(Loaded {
                        module: module.ok_or_else(no_code)?,
                        given: Given::of(*digest, None),
                        pin: None,
                    })
                });
                (loaded, None)
            }
        };
        // Others may have had to go.
        let mut modules = self.modules.lock();
        let entries = modules.count_remote(fetched);
        self.stats
            .set(wasm_stats::REMOTE_LOAD_CACHE_ENTRIES, entries);
        drop(modules);
        loaded
    }

    async fn remote_module(
        self: &Arc<Self>,
        remote: &Remote,
        asker: Asker,
        wanted: Wanted,
        enter: &impl Fn(State),
        begun: Instant,
        turn: &mut Option<FailedTurn>,
    ) -> Result<Loaded, Failure> {
        if wanted != Wanted::Fresh && !asker.refused {
            for given in self.known(remote, asker.version).await? {
                if let Some(loaded) = self.at_hand(given, wanted, enter).await? {
                    self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_HITS);
                    return Ok(loaded);
                }
            }
        }
        let answers = |failed: &&FailedTurn| failed.answers(remote, begun);
        if let Some(failed) = turn.as_ref().filter(answers) {
            self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_NEGATIVE_HITS);
            return Err(failure(remote, Arc::clone(&failed.error)));
        }
        self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_MISSES);
        let result = self.obtain(remote, wanted, enter).await;
        self.stats.inc(match &result {
            Err(Failure::Fetch { error, .. }) => {
                *turn = Some(FailedTurn {
                    at: Instant::now(),
                    timeout: remote.timeout,
                    error: Arc::clone(error),
                });
                wasm_stats::REMOTE_LOAD_FETCH_FAILURES
            }
            _ => wasm_stats::REMOTE_LOAD_FETCH_SUCCESSES,
        });
        result
    }

    /// What `remote` gave before, to the version itself or else to another one, where it has no sum and that was another
    /// code than `tried`.
    pub(super) async fn earlier(
        self: &Arc<Self>,
        remote: &Remote,
        version: Digest,
        tried: Option<Given>,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Option<Loaded> {
        if remote.pin().is_some() {
            return None;
        }
        for key in [version_key(version), note_key(remote)] {
            if let Some(noted) = self.noted(key).await.ok()?
                && tried.is_none_or(|tried| tried.code != noted.code)
                && let Some(loaded) = self.at_hand(noted, wanted, enter).await.ok()?
            {
                return Some(loaded);
            }
        }
        None
    }

    /// What `remote` gave, `given`, is live in `version`: where the source has no sum it is noted as that, for the version
    /// and for those to come.
    pub(super) async fn approve(
        self: &Arc<Self>,
        remote: &Remote,
        version: Digest,
        given: Given,
    ) -> Result<(), Failure> {
        if remote.pin().is_none() {
            let (uri, keys) = (shown(&remote.uri), [version_key(version), note_key(remote)]);
            self.with_store(move |store| keys.map(|key| store.note(key, &uri, &given)))
                .await?;
        }
        Ok(())
    }

    /// What `remote` gave, `given`, will not do, for one at least: the source is asked anew.
    pub(super) fn disapprove(&self, remote: &Remote, given: Given) {
        let identity = remote.identity();
        let mut modules = self.modules.lock();
        if modules.given.get(&identity) == Some(&given) {
            modules.given.remove(&identity);
        }
    }

    /// What `remote` gives, as far as that is certain without asking: the likeliest first.
    async fn known(
        self: &Arc<Self>,
        remote: &Remote,
        version: Digest,
    ) -> Result<Vec<Given>, Failure> {
        let mut known = Vec::new();
        let in_memory = self.modules.lock().given.get(&remote.identity()).cloned();
        let pull = &remote.pull;
        let stays = remote.pin().is_some() || pull.policy == PullPolicy::IfNotPresent;
        // Another version may have been given other code since.
        if stays && remote.pin().is_none() {
            known.extend(self.noted(version_key(version)).await?);
        }
        // Under a resource's version the answer of this run holds; without one, each new plugin asks.
        if stays || !pull.resource_version.is_empty() {
            known.extend(in_memory);
        }
        if stays && !matches!(remote.origin, Origin::Cluster { .. }) {
            known.extend(self.noted(note_key(remote)).await?);
        }
        known.extend(remote.pin().map(|code| Given { code, image: None }));
        Ok(known)
    }

    /// Asks the source, and compiles what it gives.
    async fn obtain(
        self: &Arc<Self>,
        remote: &Remote,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Result<Loaded, Failure> {
        let fetched = match &remote.origin {
            Origin::Cluster {
                cluster,
                https,
                authority,
                path,
            } => {
                let clusters = self.options.clusters.load_full();
                let head = fetch::head(*https, authority, path);
                let bytes = fetch::through_cluster(&clusters, remote, cluster, head).await;
                let digest = remote.identity();
                bytes.map(|bytes| Fetched::New(Given::of(digest, None), bytes))
            }
            Origin::Direct => self.within(remote, self.direct(remote)).await,
            Origin::Image(reference) => {
                self.within(remote, self.image(remote, reference, wanted, enter))
                    .await
            }
        };
        let fetched = fetched.map_err(|error| failure(remote, Arc::new(error)))?;
        let (given, loaded) = match fetched {
            Fetched::New(given, bytes) => {
                let kept = bytes.clone();
                let pin = self
                    .with_store(move |store| store.keep(given.code, &kept))
                    .await?
                    .flatten();
                let module = self
                    .compiled(given.code, Some(bytes), wanted, enter)
                    .await?;
                let loaded = Loaded {
                    module: module.ok_or_else(no_code)?,
                    given,
                    pin,
                };
                (given, loaded)
            }
            Fetched::Known(loaded) => (loaded.given, *loaded),
        };
        // Noted when it has compiled: what does not is not to be met again at the next start. What a source without a sum
        // gave is noted when it is live.
        if !matches!(remote.origin, Origin::Cluster { .. }) {
            let (uri, pins) = (shown(&remote.uri), [remote.pin(), given.image]);
            self.with_store(move |store| {
                for pin in pins.into_iter().flatten() {
                    store.note(image_key(pin), &uri, &given);
                }
            })
            .await?;
            let mut modules = self.modules.lock();
            if modules.given.len() >= MAX_GIVEN {
                modules.given.clear();
            }
            modules.given.insert(remote.identity(), given);
        }
        Ok(loaded)
    }

    async fn within<T>(
        &self,
        remote: &Remote,
        fetching: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        // As through a cluster.
        if remote.timeout.is_zero() {
            return fetching.await;
        }
        match tokio::time::timeout(remote.timeout, fetching).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Timeout(shown(&remote.uri), remote.timeout)),
        }
    }

    async fn direct(self: &Arc<Self>, remote: &Remote) -> Result<Fetched, FetchError> {
        let downloader = self.downloader().await?;
        let bytes = downloader
            .code(&remote.uri, remote.sha256.is_some())
            .await?;
        let asked = remote.clone();
        let (bytes, digest) = blocking_fetch(move || fetch::check(&asked, bytes)).await?;
        Ok(Fetched::New(Given::of(digest, None), bytes))
    }

    async fn image(
        self: &Arc<Self>,
        remote: &Remote,
        reference: &Reference,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Result<Fetched, FetchError> {
        let downloader = self.downloader().await?;
        let (name, secret) = (reference.clone(), remote.pull.secret.clone());
        let mut registry =
            blocking_fetch(move || fetch::registry(downloader, &name, secret.as_ref())).await?;
        let image: Image = registry.resolve().await?;
        // The tag may have come back to an image that was here before.
        if remote.sha256.is_none_or(|sha256| image.has(sha256))
            && let Ok(Some(given)) = self.noted(image_key(image.image)).await
            && let Ok(Some(loaded)) = self.at_hand(given, wanted, enter).await
        {
            return Ok(Fetched::Known(Box::new(loaded)));
        }
        let layer = registry.layer(&image).await?;
        let (asked, digest) = (remote.clone(), image.image);
        let (bytes, code) =
            blocking_fetch(move || fetch::check_layer(&asked, &image, layer)).await?;
        Ok(Fetched::New(Given::of(code, Some(digest)), bytes))
    }

    /// The client for what has no cluster, made when it is first of use.
    async fn downloader(self: &Arc<Self>) -> Result<Downloader, FetchError> {
        let settings = self.options.settings.clone();
        let made = self.downloader.get_or_try_init(|| {
            blocking_fetch(move || Downloader::new(&settings).map_err(FetchError::Download))
        });
        made.await.cloned()
    }

    /// The module of code that is in memory or on disk.
    async fn at_hand(
        self: &Arc<Self>,
        given: Given,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Result<Option<Loaded>, Failure> {
        let Some(module) = self.compiled(given.code, None, wanted, enter).await? else {
            return Ok(None);
        };
        let pin = self.with_store(move |store| store.pin(given.code)).await?;
        Ok(Some(Loaded {
            module,
            given,
            pin: pin.flatten(),
        }))
    }

    /// The module of the sum `digest`: in memory, on disk, or compiled of `bytes` or of what is kept; `None` where there
    /// is no code. What is in memory will do whatever its tier: who has it follows what [succeeds](Self::optimised) it.
    async fn compiled(
        self: &Arc<Self>,
        digest: Digest,
        bytes: Option<Bytes>,
        wanted: Wanted,
        enter: &impl Fn(State),
    ) -> Result<Option<Module>, Failure> {
        let spare = self.options.settings.modules_in_memory;
        let cell = self.modules.lock().cell(digest, spare);
        let module: Result<_, Option<Failure>> = cell
            .get_or_try_init(|| async {
                let kept = self
                    .blocking(move |inner| {
                        let Machine { runtime, cache, .. } = inner.machine()?;
                        let cache = cache.as_ref();
                        Ok(cache.and_then(|cache| Module::cached(runtime.engine(), digest, cache)))
                    })
                    .await
                    .map_err(Some)?;
                if let Some(module) = kept {
                    return Ok(module);
                }
                let bytes = match bytes {
                    Some(bytes) => bytes,
                    None => {
                        let kept = self.with_store(move |store| store.code(digest)).await;
                        let (bytes, _) = kept.map_err(Some)?.flatten().ok_or(None)?;
                        bytes
                    }
                };
                enter(State::Compiling);
                let baseline_from = match wanted {
                    Wanted::First => self.options.settings.baseline_from,
                    Wanted::Known | Wanted::Fresh => None,
                };
                let inner = Arc::clone(self);
                let compile = move || {
                    let Machine { runtime, cache, .. } = inner.machine()?;
                    let engine = runtime.engine();
                    let Some(from) = baseline_from else {
                        return Module::compile(engine, &bytes, digest);
                    };
                    let kept = cache
                        .as_ref()
                        .and_then(|cache| Module::cached_soon(engine, &bytes, digest, cache));
                    match kept {
                        Some(module) => Ok(module),
                        None => Module::compile_soon(engine, &bytes, digest, from),
                    }
                };
                let module = compiler::compile("wasm:compile", compile, |_| ());
                let module = module.await.map_err(Some)?;
                if module.compile_time.is_some() {
                    self.keep(&module);
                }
                Ok(module)
            })
            .await;
        match module {
            Ok(module) => Ok(Some(module.best().clone())),
            Err(failure) => {
                self.modules.lock().forget(digest);
                failure.map_or(Ok(None), Err)
            }
        }
    }

    /// Writes `module` to the disk. Nobody waits for it but the end of the process.
    fn keep(self: &Arc<Self>, module: &Module) {
        let (inner, module) = (Arc::clone(self), module.clone());
        let write = tokio::task::spawn_blocking(move || {
            if let Ok(Machine {
                cache: Some(cache), ..
            }) = inner.machine()
            {
                cache.store(&module);
            }
        });
        let mut writes = self.writes.lock();
        writes.retain(|write| !write.is_finished());
        writes.push(write);
    }

    async fn noted(self: &Arc<Self>, key: Digest) -> Result<Option<Given>, Failure> {
        let noted = self.with_store(move |store| store.given(key)).await?;
        Ok(noted.flatten())
    }

    async fn with_store<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> R + Send + 'static,
    ) -> Result<Option<R>, Failure> {
        self.blocking(move |inner| Ok(inner.machine()?.store.as_ref().map(work)))
            .await
    }

    async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<R, LoadError> + Send + 'static,
    ) -> Result<R, Failure> {
        let inner = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result.map_err(Failure::Load),
            Err(_) => Err(Failure::Load(LoadError::Start(
                "the compiler panicked".to_owned(),
            ))),
        }
    }
}

/// What a source gave.
enum Fetched {
    New(Given, Bytes),
    /// What it gave before.
    Known(Box<Loaded>),
}

/// Where the answer of the source is noted: by the sum that it must have, or else by its place.
fn note_key(remote: &Remote) -> Digest {
    remote.pin().map_or_else(|| remote.place(), image_key)
}

/// Where is noted with what code of a source without a sum this version was live.
fn version_key(version: Digest) -> Digest {
    Digest::of(&[b"version ", &version.0[..]].concat())
}

/// Where is noted what the image of this manifest holds.
fn image_key(manifest: Digest) -> Digest {
    Digest::of(&[b"image ", &manifest.0[..]].concat())
}

fn failure(remote: &Remote, error: Arc<FetchError>) -> Failure {
    let heals = error.heals(remote);
    Failure::Fetch { error, heals }
}

fn no_code() -> Failure {
    Failure::Load(LoadError::NotWasm)
}

async fn blocking_fetch<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, FetchError> + Send + 'static,
) -> Result<R, FetchError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(FetchError::CutOff))
}
