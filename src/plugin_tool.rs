//! `plenipo plugin`: the tool for those who write plugins, on the host code of the data path.
//!
//! Code comes by [`source::resolve`], whatever its form; each subcommand has a file of its own.

use std::io::Write as _;

use crate::cli::PluginCommand;

mod inspect;
mod source;

/// Runs the subcommand; prints to standard output.
///
/// # Errors
/// Where the source cannot be read, or the code is not a plugin that this host would load.
pub fn run(command: &PluginCommand) -> anyhow::Result<()> {
    match command {
        PluginCommand::Inspect(arguments) => {
            let code = source::resolve(&arguments.source)?;
            let found = crate::wasm::inspect(&code)?;
            let text = if arguments.json {
                let mut text = serde_json::to_string_pretty(&found)?;
                text.push('\n');
                text
            } else {
                inspect::text(&arguments.source, &found)
            };
            std::io::stdout().write_all(text.as_bytes())?;
            match found.refused {
                None => Ok(()),
                Some(reason) => anyhow::bail!("{}: {reason}", arguments.source),
            }
        }
    }
}
