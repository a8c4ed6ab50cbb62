//! Wires the parts of a proxy together: configuration in, Generations out, sockets open, signals heeded. No logic.

mod admission;
mod control;
mod server;
mod stats;

use crate::cli::Command;

pub use server::{Server, Setup};

/// Does what the command line asks for, until it is done.
///
/// # Errors
/// What went wrong, for a person to read; the exit code is 1.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Proxy(_) | Command::Demo(_) | Command::ControlPlane(_) | Command::Plugin(_) => {
            anyhow::bail!("not built yet")
        }
    }
}
