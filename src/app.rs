//! Wires the parts of a proxy together: configuration in, Generations out, sockets open, signals heeded. No logic.

mod admission;
mod control;
mod process;
mod server;
mod stats;
mod validate;

use std::path::PathBuf;

use crate::cli::Command;
use crate::control_plane;

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

/// Does what the command line asks for, until it is done.
///
/// # Errors
/// What went wrong, for a person to read; the exit code is 1.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Proxy(options) => serve(*options),
        Command::ControlPlane(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(control_plane::serve_folder(
                &arguments.folder,
                arguments.listen,
            ))
        }
        Command::Demo(_) | Command::Plugin(_) => anyhow::bail!("not built yet"),
    }
}
