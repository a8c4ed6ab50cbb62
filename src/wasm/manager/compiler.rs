//! Where modules are compiled: each on a thread of its own, which gives back what the compiler leaves of memory.

use tokio::sync::oneshot;

use super::Failure;
use crate::base::memory;
use crate::wasm::module::{LoadError, Module};

/// What `compile` gives, which begins at once; `then` follows it on the same thread, and nobody waits for that.
///
/// No thread of the runtime does it: an end of the process would wait for it, and what it freed would stay with the thread.
pub(super) async fn compile(
    thread: &str,
    compile: impl FnOnce() -> Result<Module, LoadError> + Send + 'static,
    then: impl FnOnce(&Module) + Send + 'static,
) -> Result<Module, Failure> {
    let (done, compiled) = oneshot::channel();
    let work = move || {
        let module = compile();
        let kept = module.as_ref().ok().cloned();
        let _ = done.send(module);
        if let Some(module) = kept {
            then(&module);
        }
        // The start may have come to rest before. Workers serve: their code stays.
        memory::collect();
    };
    let thread = std::thread::Builder::new().name(thread.to_owned());
    // There may be room for one later.
    let started = thread.spawn(work);
    started.map_err(|error| Failure::Load(LoadError::NoRoom(error.to_string())))?;
    let panicked = |_| LoadError::Start("a panic of the compiler".to_owned());
    let module = compiled.await.map_err(panicked).map_err(Failure::Load)?;
    module.map_err(Failure::Load)
}
