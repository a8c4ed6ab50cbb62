//! Wires the parts of a proxy together: configuration in, Generations out, sockets open, signals heeded. No logic.

mod admin;
mod admission;
mod control;
mod flush;
mod process;
mod server;
mod services;
mod stats;
mod validate;

use std::path::PathBuf;

pub use control::Readiness;
pub use process::{Prepared, Running, serve};
pub use server::{Server, Setup};

/// Where compiled plugins are kept: `$PLENIPO_CACHE_DIR`, else below the user's cache directory, else nowhere.
fn wasm_cache() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("PLENIPO_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("plenipo")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/plenipo")))
        .map(|root| root.join("wasm"))
}
