//! What follows baseline code: it is compiled again, behind everything else, and the VMs go on with that.

use std::sync::Arc;

use parking_lot::Mutex;

use super::loader::Loader;
use super::{Failure, Inner, Outcome, Record, compiler};
use crate::base::task::spawn;
use crate::wasm::engine::Tier;
use crate::wasm::module::{LoadError, Module, Successor, give_way};
use crate::wasm::spec::Digest;

impl Loader {
    /// Where the VMs that it is live in run baseline code, be it of an earlier version: has them go on with the optimised code
    /// of that, behind everything else. Where that fails they go on as they are.
    pub(super) fn optimise(&self, inner: &Arc<Inner>) {
        let set = match &*self.outcome.lock() {
            Outcome::Live(plugin) => Arc::clone(plugin.set()),
            _ => return,
        };
        let module = set.module();
        if module.tier() == Tier::Optimised {
            return;
        }
        let (set, inner) = (Arc::downgrade(&set), Arc::clone(inner));
        let (record, name) = (Arc::clone(&self.record), Arc::clone(&self.spec));
        drop(spawn("wasm optimise", async move {
            let optimise = async {
                let module = inner.optimised(&module).await?;
                // Nobody may be there any more.
                if let Some(set) = set.upgrade() {
                    let linker = &inner.machine().map_err(Failure::Load)?.linker;
                    let moved = set.optimise(linker, &module).await;
                    moved.map_err(Failure::Load)?;
                }
                Ok(module)
            };
            tell(&record, &name.name, optimise.await);
            inner.ring();
        }));
    }
}

fn tell(record: &Mutex<Record>, name: &str, optimised: Result<Module, Failure>) {
    let mut record = record.lock();
    // It may be on trial still, or not serve any more.
    let state = record.state;
    match optimised {
        Ok(module) => {
            tracing::info!(target: "wasm", "plugin {name}: optimised, {}", module.digest);
            record.compile_time = module.compile_time;
            record.enter(state, "optimised code");
        }
        Err(failure) => {
            tracing::warn!(target: "wasm", "plugin {name}: its baseline code goes on: {failure}");
            record.enter(state, &format!("baseline code goes on: {failure}"));
        }
    }
}

impl Inner {
    /// The optimised form of `module`: compiled once, however many wait for it, and whether or not they go on to.
    async fn optimised(self: &Arc<Self>, module: &Module) -> Result<Module, Failure> {
        let Some(successor) = module.successor.clone() else {
            return Ok(module.clone());
        };
        let (inner, digest) = (Arc::clone(self), module.digest);
        let work = spawn("wasm compile", async move {
            let compile = || inner.optimise(&successor, digest);
            successor.module.get_or_try_init(compile).await.cloned()
        });
        let panicked = |_| Err(Failure::Load(LoadError::Start("a panic".to_owned())));
        work.await.unwrap_or_else(panicked)
    }

    async fn optimise(
        self: &Arc<Self>,
        successor: &Arc<Successor>,
        digest: Digest,
    ) -> Result<Module, Failure> {
        let (inner, work) = (Arc::clone(self), Arc::clone(successor));
        let compile = move || {
            give_way();
            work.compile(inner.machine()?.runtime.engine(), digest)
        };
        let inner = Arc::clone(self);
        // At the end of the process nobody waits; what was compiled is kept all the same.
        let keep = move |module: &Module| {
            if let Ok(machine) = inner.machine()
                && let Some(cache) = &machine.cache
            {
                cache.store(module);
            }
        };
        let module = compiler::compile("wasm:optimise", compile, keep).await?;
        self.modules.lock().replace(&module);
        Ok(module)
    }
}
