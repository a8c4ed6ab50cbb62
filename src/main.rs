//! Arguments in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use plenipo::cli::{self, Command};
use plenipo::{app, control_plane, demo};

#[global_allocator]
static ALLOCATOR: plenipo::base::memory::Allocator = plenipo::base::memory::Allocator;

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
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            // The one-line summary comes last: tools show it to their users.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Proxy(options) => app::serve(*options)?,
        Command::Demo(arguments) => demo::run(&arguments)?,
        Command::ControlPlane(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(control_plane::serve_folder(
                &arguments.folder,
                arguments.listen,
            ))?;
        }
        #[cfg(feature = "wasm")]
        Command::Plugin(command) => return Ok(plenipo::plugin_tool::run(&command)),
    }
    Ok(ExitCode::SUCCESS)
}
