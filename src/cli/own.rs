//! Our own subcommands.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[cfg(feature = "wasm")]
use super::plugin::PluginCommand;
use super::{Command, Exit};

#[derive(Parser)]
#[command(name = "plenipo")]
struct Own {
    #[command(subcommand)]
    command: OwnCommand,
}

#[derive(Subcommand)]
enum OwnCommand {
    /// A control plane, an upstream and the proxy in one process: see an update and a plugin reload under load
    Demo(DemoArgs),
    /// Serve a folder of xDS resources (YAML or JSON) over gRPC, and follow its changes
    ControlPlane(ControlPlaneArgs),
    /// Tools for those who write Proxy-Wasm plugins
    #[cfg(feature = "wasm")]
    #[command(subcommand)]
    Plugin(Box<PluginCommand>),
}

/// `plenipo demo`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DemoArgs {
    /// Run through it once and exit, with code 1 where something was not as it should be.
    #[arg(long)]
    pub once: bool,
}

/// `plenipo control-plane`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ControlPlaneArgs {
    /// The folder with the resources.
    pub folder: PathBuf,
    /// Where to serve.
    #[arg(long, default_value = "127.0.0.1:18000")]
    pub listen: SocketAddr,
}

pub(super) fn parse(program: &str, arguments: Vec<OsString>) -> Result<Command, Exit> {
    // The tools of plugin writers keep 1 for plugins that fail.
    let usage = match arguments.first() {
        Some(first) if first == "plugin" => 2,
        _ => 1,
    };
    let argv = std::iter::once(OsString::from(program)).chain(arguments);
    match Own::try_parse_from(argv) {
        Ok(Own {
            command: OwnCommand::Demo(args),
        }) => Ok(Command::Demo(args)),
        Ok(Own {
            command: OwnCommand::ControlPlane(args),
        }) => Ok(Command::ControlPlane(args)),
        #[cfg(feature = "wasm")]
        Ok(Own {
            command: OwnCommand::Plugin(command),
        }) => Ok(Command::Plugin(command)),
        Err(error) => {
            let text = error.render().to_string();
            let (stdout, stderr, code) = if error.use_stderr() {
                (String::new(), text, usage)
            } else {
                (text, String::new(), 0)
            };
            Err(Exit {
                stdout,
                stderr,
                code,
            })
        }
    }
}
