//! Arguments in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use plenipo::{app, cli};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(exit) => {
            // A reader that went away is no failure of ours.
            let _ = std::io::stdout().write_all(exit.stdout.as_bytes());
            let _ = std::io::stderr().write_all(exit.stderr.as_bytes());
            return ExitCode::from(exit.code);
        }
    };
    match app::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one-line summary comes last: tools show it to their users.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}
