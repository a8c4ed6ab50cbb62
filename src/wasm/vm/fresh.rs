//! An instance in a store of its own, before anything has run in it: what a VM begins with, and what it moves to where
//! other code of its module takes over.

use std::sync::Arc;

use tokio::sync::mpsc;
use wasmtime::{Instance, InstancePre, Memory, PoolConcurrencyLimitError, Store, TypedFunc};

use super::Message;
use super::core::Core;
use super::start::describe;
use crate::wasm::callbacks::Callbacks;
use crate::wasm::context::{Environment, Host};
use crate::wasm::engine::Runtime;
use crate::wasm::module::LoadError;
use crate::wasm::portable::move_state;

/// One that nothing has run in, or that was left.
pub(crate) struct Fresh {
    pub(super) store: Store<Host>,
    pub(super) instance: Instance,
    pub(super) callbacks: Callbacks,
    memory: Option<Memory>,
    allocate: TypedFunc<u32, u32>,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fresh({})", self.store.data().env.vm.name)
    }
}

impl Fresh {
    /// An instance of `imports`. Takes memory from the pool: call it on a blocking thread.
    pub(crate) fn new(
        runtime: &Runtime,
        imports: &InstancePre<Host>,
        env: &Arc<Environment>,
        mailbox: mpsc::UnboundedSender<Message>,
    ) -> Result<Self, LoadError> {
        let mut store = Store::new(runtime.engine(), Host::new(Arc::clone(env), mailbox));
        store.limiter(|host| &mut host.limits);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().budget.look()));
        store.set_epoch_deadline(store.data().budget.first_look());
        // Half of a start's time is much to guess: its clock is read from the beginning.
        store.data_mut().budget.count();
        let instance = imports.instantiate(&mut store).map_err(|error| {
            let reason = describe(&error, env.shift);
            match error.is::<PoolConcurrencyLimitError>() {
                true => LoadError::NoRoom(reason),
                false => LoadError::Start(reason),
            }
        })?;
        let memory = instance.get_memory(&mut store, "memory");
        let callbacks = Callbacks::of(&instance, &mut store, &env.vm, env.abi)?;
        let allocate = callbacks
            .malloc
            .as_ref()
            .or(callbacks.memory_allocate.as_ref())
            .map(|callback| callback.function.clone())
            .ok_or(LoadError::NoAllocator)?;
        let mut fresh = Self {
            store,
            instance,
            callbacks,
            memory,
            allocate,
        };
        fresh.equip();
        Ok(fresh)
    }

    /// Tells the host which memory and which allocator are this instance's.
    fn equip(&mut self) {
        let host = self.store.data_mut();
        host.memory = self.memory;
        host.allocate = Some(self.allocate.clone());
    }
}

impl Core {
    /// Goes on in `fresh`, an instance of other code of the same module, where the guest finds all as it left it; what it
    /// leaves is there afterwards, to be dropped where that holds nobody up.
    pub(super) fn move_to(&mut self, fresh: &mut Fresh) -> wasmtime::Result<()> {
        move_state(
            (&mut self.store, &self.instance),
            (&mut fresh.store, &fresh.instance),
        )?;
        std::mem::swap(self.store.data_mut(), fresh.store.data_mut());
        fresh.equip();
        std::mem::swap(&mut self.store, &mut fresh.store);
        std::mem::swap(&mut self.instance, &mut fresh.instance);
        std::mem::swap(&mut self.callbacks, &mut fresh.callbacks);
        Ok(())
    }
}
