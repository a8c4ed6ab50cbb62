//! Compiled modules: in memory, on disk, or compiled of code that is at hand or fetched. One load at a time for each.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::{Failure, Inner, Machine};
use crate::wasm::fetch;
use crate::wasm::module::{LoadError, Module};
use crate::wasm::spec::{Code, Digest, PluginSpec, Remote};
use crate::wasm::status::{State, wasm_stats};

/// Those in memory.
#[derive(Default)]
pub(super) struct Modules {
    cells: HashMap<Digest, Arc<OnceCell<Module>>>,
    /// The order of use, oldest first.
    order: VecDeque<Digest>,
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
}

impl Inner {
    /// The compiled module: the one in memory, the one on disk, or a new one of code fetched or at hand.
    pub(super) async fn module(
        self: &Arc<Self>,
        spec: &Arc<PluginSpec>,
        enter: impl Fn(State),
    ) -> Result<Module, Failure> {
        let digest = spec.code.digest();
        let spare = self.options.settings.modules_in_memory;
        let cell = self.modules.lock().cell(digest, spare);
        let remote = matches!(spec.code, Code::Remote(_));
        if remote && cell.initialized() {
            self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_HITS);
        }
        let module = cell
            .get_or_try_init(|| async {
                let kept = self
                    .blocking(move |inner| {
                        let Machine { runtime, cache, .. } = inner.machine()?;
                        let cache = cache.as_ref();
                        Ok(cache.and_then(|cache| Module::cached(runtime.engine(), digest, cache)))
                    })
                    .await?;
                if let Some(module) = kept {
                    if remote {
                        self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_HITS);
                    }
                    return Ok(module);
                }
                let bytes = match &spec.code {
                    Code::Local { bytes, .. } => bytes.clone(),
                    Code::Remote(remote) => self.fetch(remote).await?,
                };
                enter(State::Compiling);
                self.blocking(move |inner| {
                    let Machine { runtime, cache, .. } = inner.machine()?;
                    Module::compile(runtime.engine(), &bytes, digest, cache.as_ref())
                })
                .await
            })
            .await?
            .clone();
        if remote {
            let entries = self.modules.lock().cells.len() as u64;
            self.stats
                .set(wasm_stats::REMOTE_LOAD_CACHE_ENTRIES, entries);
        }
        Ok(module)
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

    async fn fetch(&self, remote: &Remote) -> Result<bytes::Bytes, Failure> {
        self.stats.inc(wasm_stats::REMOTE_LOAD_CACHE_MISSES);
        let clusters = self.options.clusters.load_full();
        let result = fetch::fetch(&clusters, remote).await;
        self.stats.inc(match &result {
            Ok(_) => wasm_stats::REMOTE_LOAD_FETCH_SUCCESSES,
            Err(_) => wasm_stats::REMOTE_LOAD_FETCH_FAILURES,
        });
        result.map_err(Failure::Fetch)
    }
}
