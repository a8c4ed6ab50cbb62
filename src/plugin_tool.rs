//! `plenipo plugin`: the tool for those who write plugins, on the host code of the data path.
//!
//! Code comes by [`source::Access`], from wherever; each subcommand has a file of its own. A request goes through a
//! [`host::Host`]: the filter and the VM that serve traffic, without a socket.

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::PluginCommand;

mod bench;
mod case;
mod diff;
mod expect;
mod host;
mod image;
mod inspect;
mod junit;
mod message;
mod outcome;
mod recorder;
mod run;
mod source;
mod test;
mod update;

/// How a subcommand ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is well: 0.
    Well,
    /// What was looked at is not as it should be: 1.
    Failed,
}

/// Runs the subcommand, prints to standard output, and to standard error what keeps it from its work; the exit code.
pub fn run(command: &PluginCommand) -> ExitCode {
    let (result, cannot) = match command {
        PluginCommand::Inspect(arguments) => (inspect::run(arguments), 1),
        PluginCommand::Run(arguments) => (run::run(arguments), 2),
        PluginCommand::Test(arguments) => (test::run(arguments), 2),
        PluginCommand::Bench(arguments) => (bench::run(arguments), 2),
        PluginCommand::Diff(arguments) => (diff::run(arguments), 2),
        PluginCommand::Push(arguments) => (image::push(arguments), 1),
        PluginCommand::Pull(arguments) => (image::pull(arguments), 1),
    };
    match result {
        Ok((text, verdict)) => {
            print(&text);
            match verdict {
                Verdict::Well => ExitCode::SUCCESS,
                Verdict::Failed => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(cannot)
        }
    }
}

/// Prints what was found; a subcommand that cannot do all of its work does so itself.
fn print(text: &str) {
    // A reader that went away is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// JSON with a line's end.
fn json_text(value: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text)
}

/// What comes from a plugin is anybody's: it does not get to steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// A size for people.
fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{}.{} KiB", count >> 10, ((count & 1023) * 10) >> 10),
        _ => format!("{}.{} MiB", count >> 20, ((count & 0xf_ffff) * 10) >> 20),
    }
}
