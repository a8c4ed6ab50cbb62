//! The start of an instance, and what is said of its end.

use wasmtime::Store;

use crate::wasm::context::Host;
use crate::wasm::module::LoadError;

/// `_initialize` and `main`, or `_start`.
pub(super) fn start(
    instance: &wasmtime::Instance,
    store: &mut Store<Host>,
) -> Result<(), LoadError> {
    let shift = store.data().env.shift;
    let trapped = |error: wasmtime::Error| LoadError::Start(describe(&error, shift));
    let mut run = |name: &str| -> Result<bool, LoadError> {
        let Some(function) = instance.get_func(&mut *store, name) else {
            return Ok(false);
        };
        let bad = |_| LoadError::BadSignature(name.to_owned());
        if name == "main" {
            let main = function.typed::<(u32, u32), u32>(&*store).map_err(bad)?;
            main.call(&mut *store, (0, 0)).map_err(trapped)?;
        } else if name == "__main_void" {
            let main = function.typed::<(), u32>(&*store).map_err(bad)?;
            main.call(&mut *store, ()).map_err(trapped)?;
        } else {
            let begin = function.typed::<(), ()>(&*store).map_err(bad)?;
            begin.call(&mut *store, ()).map_err(trapped)?;
        }
        Ok(true)
    };
    if run("_initialize")? {
        if !run("main")? {
            run("__main_void")?;
        }
    } else {
        run("_start")?;
    }
    Ok(())
}

/// A description with what the guest said last in its first line.
pub(super) fn with_words(description: &str, words: &str) -> String {
    if words.is_empty() {
        return description.to_owned();
    }
    let words = words.trim().replace('\n', " ");
    match description.split_once('\n') {
        Some((first, rest)) => format!("{first} ({words})\n{rest}"),
        None => format!("{description} ({words})"),
    }
}

/// A trap in one line, then its backtrace, in which functions are where they were before they moved down by `shift` bytes.
pub(super) fn describe(error: &wasmtime::Error, shift: i64) -> String {
    use std::fmt::Write as _;
    let mut text = match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => "the time budget is exhausted".to_owned(),
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    if let Some(trace) = error.downcast_ref::<wasmtime::WasmBacktrace>() {
        for (depth, frame) in trace.frames().iter().enumerate() {
            let name = frame.func_name().unwrap_or("<unknown>");
            let name = rustc_demangle::demangle(name);
            let at = frame.module_offset().unwrap_or(0);
            let at = at.saturating_add_signed(isize::try_from(-shift).unwrap_or(0));
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {depth}: 0x{at:x} - {name:#}");
        }
    }
    text
}
