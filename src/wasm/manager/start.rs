//! From code to a live plugin: what its VMs are made of, and which VMs those are.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use super::modules::{Asker, Loaded, Wanted};
use super::{Failure, Home, Inner};
use crate::telemetry::metrics::StatSet;
use crate::wasm::abi::Imports;
use crate::wasm::abi::dns::Dns;
use crate::wasm::context::{Environment, RootSpec};
use crate::wasm::module::{LoadError, Module};
use crate::wasm::plugin::Plugin;
use crate::wasm::recipe::{Linked, Recipe};
use crate::wasm::spec::{Code, Digest, PluginSpec};
use crate::wasm::status::{State, plugin_stats};
use crate::wasm::vm_set::{Refusal, VmSet};

impl Inner {
    /// The module of `spec`, of the source `code`, and all else that its VMs are made of.
    pub(super) async fn recipe(
        self: &Arc<Self>,
        spec: &Arc<PluginSpec>,
        code: &Code,
        wanted: Wanted,
        enter: impl Fn(State),
    ) -> Result<(Loaded, Arc<Recipe>), Failure> {
        let asker = Asker {
            version: spec.key(),
            refused: false,
        };
        let loaded = self.module(code, asker, wanted, &enter).await?;
        enter(State::Configuring);
        let recipe = self.recipe_with(spec, &loaded.module)?;
        Ok((loaded, recipe))
    }

    /// All that the VMs of `spec` are made of, with `module`.
    pub(super) fn recipe_with(
        self: &Arc<Self>,
        spec: &Arc<PluginSpec>,
        module: &Module,
    ) -> Result<Arc<Recipe>, Failure> {
        let machine = self.machine().map_err(Failure::Load)?;
        let imports = Imports::resolve(&machine.linker, module, spec).map_err(Failure::Load)?;
        if !imports.unknown.is_empty() {
            tracing::warn!(
                target: "wasm",
                "plugin {}: imports that this host does not know, and that trap when called: {}",
                spec.name,
                imports.unknown.join(", ")
            );
        }
        let options = &self.options;
        let env = Arc::new(Environment {
            vm: Arc::clone(spec),
            abi: module.abi,
            shift: module.shift,
            registry: options.registry.clone(),
            clusters: Arc::clone(&options.clusters),
            node: options.node.clone(),
            shared: Arc::clone(&self.shared),
            space: self.shared.space(&spec.vm_id),
            policy: options.policy(&spec.name),
            probe: options.probe.clone(),
            dns: options
                .probe
                .is_none()
                .then(|| Dns::new(Arc::clone(&options.resolver), self.control.clone())),
        });
        let recipe = Recipe {
            runtime: Arc::clone(&machine.runtime),
            code: ArcSwap::from_pointee(Linked {
                module: module.clone(),
                imports,
            }),
            env,
            workers: options.workers.clone(),
            process_stats: Arc::clone(&self.stats),
        };
        Ok(Arc::new(recipe))
    }

    /// A live version of `spec`, in the VMs of its key or, where it cannot or shall not be there, in VMs of its own.
    pub(super) async fn start(
        &self,
        spec: &Arc<PluginSpec>,
        recipe: Arc<Recipe>,
        home: Home,
    ) -> Result<Arc<Plugin>, LoadError> {
        let root = Arc::new(RootSpec::new(spec));
        if let Some(took) = self.proven.lock().get(&spec.key()) {
            root.proven.get_or_init(|| *took);
        }
        let stats = self.plugin_stats(&spec.name);
        if home == Home::Shared {
            let set = self.set(spec, &recipe);
            match Plugin::start(&set, Arc::clone(&root), Arc::clone(&stats)).await {
                Ok(plugin) => return Ok(plugin),
                Err(Refusal::Load(error)) => return Err(error),
                Err(Refusal::Here(reason)) => {
                    tracing::warn!(
                        target: "wasm",
                        "plugin {}: {reason}; it gets VMs of its own",
                        spec.name
                    );
                }
            }
        }
        let alone = Plugin::start(&VmSet::new(recipe), root, stats).await;
        alone.map_err(|refusal| match refusal {
            Refusal::Load(error) => error,
            Refusal::Here(reason) => LoadError::Trap(reason),
        })
    }

    /// The statistics of all versions of plugins called `name`; they go with the last one.
    pub(super) fn plugin_stats(&self, name: &str) -> Arc<StatSet> {
        let mut sets = self.plugin_stats.lock();
        if let Some(set) = sets.get(name).and_then(Weak::upgrade) {
            return set;
        }
        sets.retain(|_, set| set.strong_count() > 0);
        let prefix = format!("wasm.{name}.");
        let registry = &self.options.registry;
        let set = registry.set(&plugin_stats::TABLE, prefix, "wasm", []);
        sets.insert(name.into(), Arc::downgrade(&set));
        set
    }

    /// The VMs of the key of `spec` under the settings of `recipe`: those that live, or new ones of it. The code counts
    /// too: a source without a sum may give another one to the same key.
    fn set(&self, spec: &PluginSpec, recipe: &Arc<Recipe>) -> Arc<VmSet> {
        let parts = [spec.vm_key().0, recipe.code.load().module.digest.0];
        let key = Digest::of(&parts.concat());
        let mut sets = self.sets.lock();
        let of_key = sets.get(&key).into_iter().flatten();
        let mut living = of_key.filter_map(Weak::upgrade);
        if let Some(set) = living.find(|set| set.fits(&recipe.env.policy)) {
            return set;
        }
        drop(living);
        sets.retain(|_, sets| {
            sets.retain(|set| set.strong_count() > 0);
            !sets.is_empty()
        });
        let set = VmSet::new(Arc::clone(recipe));
        sets.entry(key).or_default().push(Arc::downgrade(&set));
        set
    }
}
