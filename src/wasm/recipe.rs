//! What VMs of one key are made of, and what they move to: all of it happens off the workers.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::abi::Imports;
use super::context::{Environment, RootSpec};
use super::engine::Runtime;
use super::module::{LoadError, Module};
use super::vm::{BuildError, Counters, Fresh, Vm};
use crate::base::WorkerHandles;
use crate::telemetry::metrics::StatSet;

/// All that it takes to make a VM of one key.
pub(crate) struct Recipe {
    pub(crate) runtime: Arc<Runtime>,
    /// Of the baseline tier at first, perhaps.
    pub(crate) code: ArcSwap<Linked>,
    pub(crate) env: Arc<Environment>,
    pub(crate) workers: WorkerHandles,
    pub(crate) process_stats: Arc<StatSet>,
}

/// A module that can be instantiated.
pub(crate) struct Linked {
    pub(crate) module: Module,
    pub(crate) imports: Imports,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({:?})", self.code.load().module.digest)
    }
}

impl Recipe {
    /// Makes one VM with these root contexts, on a blocking thread.
    pub(super) async fn build(
        self: &Arc<Self>,
        roots: Vec<Arc<RootSpec>>,
        counters: Arc<Counters>,
    ) -> Result<(Arc<Vm>, Vec<u32>), BuildError> {
        let recipe = Arc::clone(self);
        let built = tokio::task::spawn_blocking(move || {
            Vm::build(
                &recipe.runtime,
                &recipe.code.load().imports.pre,
                &recipe.env,
                &roots,
                counters,
                Arc::clone(&recipe.process_stats),
            )
        });
        match built.await {
            Ok(result) => result,
            Err(_) => Err(LoadError::Trap("a host function panicked".to_owned()).into()),
        }
    }

    /// Makes a VM go on in the code that there is now, unless it runs that.
    pub(super) async fn refit(self: &Arc<Self>, vm: &Vm) -> Result<(), LoadError> {
        if vm.runs(&self.code.load().module.code) {
            return Ok(());
        }
        let recipe = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            // Nobody writes to it before it has another's host.
            let (mailbox, _) = mpsc::unbounded_channel();
            let code = recipe.code.load();
            Fresh::new(&recipe.runtime, &code.imports.pre, &recipe.env, mailbox)
        });
        let panicked = |_| LoadError::Start("a host function panicked".to_owned());
        let fresh = made.await.map_err(panicked)??;
        let Some((left, moved)) = vm.move_to(fresh).await else {
            return Ok(());
        };
        // To give its memory back takes a while; the next one may need the room. A panic in it is none of ours.
        let _ = tokio::task::spawn_blocking(move || drop(left)).await;
        moved.map_err(|error| LoadError::NoRoom(format!("{error:#}")))
    }

    /// Configures a plugin in a VM that is made for this alone, and goes without a goodbye, as Envoy's canary does. What
    /// the configuration took of its thread's time.
    pub(crate) async fn prove(
        self: &Arc<Self>,
        root: Arc<RootSpec>,
    ) -> Result<Duration, LoadError> {
        let (vm, _) = self
            .build(vec![root], Arc::default())
            .await
            .map_err(|failure| failure.error)?;
        Ok(vm.configured_in())
    }
}
