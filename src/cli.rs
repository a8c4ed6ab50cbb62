//! The command line: Envoy's, read as Envoy reads it, and our own subcommands.
//!
//! The first word decides: `demo`, `control-plane` and `plugin` are ours, everything else is Envoy's. Envoy's is read
//! the way its launchers rely on: `"--flag value"` may be one argument (Contour's manifests), `--` and what follows is
//! ignored (func-e), a flag given twice is an error. Accepted beyond Envoy: `--flag=value`, and a handful of flags of
//! older releases, each with one warning.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::bootstrap::{self, version};
use crate::telemetry::log::{Component, Level};

mod flags;
mod json;
mod own;
#[cfg(feature = "wasm")]
pub mod plugin;

pub use own::{ControlPlaneArgs, DemoArgs};
#[cfg(feature = "wasm")]
pub use plugin::PluginCommand;

/// Envoy's default log pattern.
pub const DEFAULT_LOG_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// What the process was asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Be a proxy (or check its configuration: [`Options::mode`]).
    Proxy(Box<Options>),
    /// `plenipo demo`.
    Demo(DemoArgs),
    /// `plenipo control-plane`.
    ControlPlane(ControlPlaneArgs),
    /// `plenipo plugin`.
    #[cfg(feature = "wasm")]
    Plugin(Box<PluginCommand>),
}

/// The process ends without having done anything but print.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
    /// The exit code: 0 or 1; 2 for the arguments of `plenipo plugin`.
    pub code: u8,
}

impl Exit {
    fn error(text: impl std::fmt::Display) -> Self {
        Self {
            stderr: format!("error: {text}\n"),
            code: 1,
            ..Self::default()
        }
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Serve traffic.
    #[default]
    Serve,
    /// Check the configuration and exit; opens no port.
    Validate,
    /// Initialise, and exit.
    InitOnly,
}

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    /// Close a rising share of connections over the drain time.
    #[default]
    Gradual,
    /// Close each after its next response.
    Immediate,
}

/// Envoy's command line. Fields without a comment of their own have the flag's meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `argv[0]`.
    pub program: String,
    /// `-c`, `--config-path`; as given, never made canonical (it may be `/dev/fd/N`, or unlinked already).
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`, merged over the file. Empty is absent.
    pub config_yaml: Option<String>,
    /// `--mode`.
    pub mode: Mode,
    /// `--concurrency`: number of workers; by default what the cgroup and the affinity mask grant.
    pub concurrency: usize,
    /// `--service-cluster`.
    pub service_cluster: Option<String>,
    /// `--service-node`.
    pub service_node: Option<String>,
    /// `--service-zone`.
    pub service_zone: Option<String>,
    /// `-l`, `--log-level`.
    pub log_level: Level,
    /// `--component-log-level`.
    pub component_log_levels: Vec<(Component, Level)>,
    /// `--component-log-level` as given, for `/server_info`.
    pub component_log_level: String,
    /// `--log-format`; `None` leaves it to the bootstrap.
    pub log_format: Option<String>,
    /// `--log-format-escaped`.
    pub log_format_escaped: bool,
    /// `--log-path`.
    pub log_path: Option<PathBuf>,
    /// `--enable-fine-grain-logging` (accepted; levels stay per component).
    pub fine_grain_logging: bool,
    /// `--drain-time-s`; default 600 s.
    pub drain_time: Duration,
    /// `--drain-strategy`.
    pub drain_strategy: DrainStrategy,
    /// `--parent-shutdown-time-s`; default 900 s.
    pub parent_shutdown_time: Duration,
    /// `--allow-unknown-static-fields`, or the deprecated `--allow-unknown-fields`.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`.
    pub reject_unknown_dynamic_fields: bool,
    /// `--ignore-unknown-dynamic-fields`.
    pub ignore_unknown_dynamic_fields: bool,
    /// `--skip-deprecated-logs`.
    pub skip_deprecated_logs: bool,
    /// `--admin-address-path`.
    pub admin_address_path: Option<PathBuf>,
    /// `--local-address-ip-version v6`.
    pub ipv6: bool,
    /// `--file-flush-interval-msec`; default 10 s.
    pub file_flush_interval: Duration,
    /// `--file-flush-min-size-kb`, in KiB; default 64.
    pub file_flush_min_size_kb: u32,
    /// `--stats-tag`, each `name:value`.
    pub stats_tags: Vec<(String, String)>,
    /// `--disable-extensions`.
    pub disabled_extensions: Vec<String>,
    /// `--disable-hot-restart`. There is none in either case.
    pub disable_hot_restart: bool,
    /// `--restart-epoch`.
    pub restart_epoch: u32,
    /// `--base-id`.
    pub base_id: u32,
    /// `--use-dynamic-base-id`.
    pub use_dynamic_base_id: bool,
    /// `--base-id-path`; nothing is written, as in Envoy without hot restart.
    pub base_id_path: Option<PathBuf>,
    /// `--socket-path`.
    pub socket_path: String,
    /// `--socket-mode`.
    pub socket_mode: u32,
    /// `--skip-hot-restart-on-no-parent`.
    pub skip_hot_restart_on_no_parent: bool,
    /// `--skip-hot-restart-parent-stats`.
    pub skip_hot_restart_parent_stats: bool,
    /// `--enable-core-dump`.
    pub enable_core_dump: bool,
    /// `--enable-mutex-tracing`.
    pub enable_mutex_tracing: bool,
    /// `--cpuset-threads`.
    pub cpuset_threads: bool,
    /// `--log-stacktrace-single-entry`.
    pub log_stacktrace_single_entry: bool,
    /// To be logged once the log is set up.
    pub warnings: Vec<String>,
}

impl Options {
    /// What [`crate::bootstrap::load`] needs of it.
    pub fn bootstrap_source(&self) -> bootstrap::Source {
        bootstrap::Source {
            path: self.config_path.clone(),
            yaml: self.config_yaml.clone(),
            node_id: self.service_node.clone(),
            node_cluster: self.service_cluster.clone(),
            node_zone: self.service_zone.clone(),
            allow_unknown_fields: self.allow_unknown_static_fields,
            skip_deprecated: self.skip_deprecated_logs,
        }
    }
}

/// Reads the command line, `argv[0]` included.
///
/// # Errors
/// What to print and the exit code, for `--help` and the like as well as for faults.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Command, Exit> {
    let mut argv = argv.into_iter();
    let program = argv.next().map_or_else(
        || "plenipo".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let arguments: Vec<OsString> = argv.collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("demo" | "control-plane" | "plugin") => own::parse(&program, arguments),
        _ => options(program, &arguments).map(|options| Command::Proxy(Box::new(options))),
    }
}

fn options(program: String, arguments: &[OsString]) -> Result<Options, Exit> {
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let mut given = flags::read(&program, arguments.iter().map(AsRef::as_ref))?;

    let log_level = match given.text("log-level") {
        None => Level::Info,
        Some(name) => level(&name)?,
    };
    let fine_grain_logging = given.switch("enable-fine-grain-logging");
    let component_log_level = given.text("component-log-level").unwrap_or_default();
    if fine_grain_logging && !component_log_level.is_empty() {
        return Err(Exit::error(
            "--component-log-level will not work with --enable-fine-grain-logging",
        ));
    }
    let component_log_levels = component_levels(&component_log_level)?;
    let mode = match given.text("mode").as_deref() {
        None | Some("serve") => Mode::Serve,
        Some("validate") => Mode::Validate,
        Some("init_only") => Mode::InitOnly,
        Some(other) => return Err(Exit::error(format_args!("unknown mode '{other}'"))),
    };
    let ipv6 = match given.text("local-address-ip-version").as_deref() {
        None | Some("v4") => false,
        Some("v6") => true,
        Some(other) => {
            return Err(Exit::error(format_args!(
                "unknown IP address version '{other}'"
            )));
        }
    };
    let drain_strategy = match given.text("drain-strategy").as_deref() {
        None | Some("gradual") => DrainStrategy::Gradual,
        Some("immediate") => DrainStrategy::Immediate,
        Some(other) => {
            return Err(Exit::error(format_args!(
                "unknown drain-strategy '{other}'"
            )));
        }
    };
    let stats_tags = given
        .take("stats-tag")
        .into_iter()
        .map(|text| stats_tag(&text))
        .collect::<Result<_, _>>()?;
    let restart_epoch = given.number("restart-epoch").unwrap_or(0);
    let use_dynamic_base_id = given.switch("use-dynamic-base-id");
    if use_dynamic_base_id && restart_epoch != 0 {
        return Err(Exit::error(format_args!(
            "cannot use --restart-epoch={restart_epoch} with --use-dynamic-base-id"
        )));
    }
    let socket_mode = given
        .text("socket-mode")
        .and_then(|mode| u32::from_str_radix(&mode, 8).ok())
        .unwrap_or(0);
    let concurrency = given.number("concurrency").map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |number| usize::try_from(number).unwrap_or(1).clamp(1, 1024),
    );
    let seconds = |number: u32| Duration::from_secs(u64::from(number));
    // Both must be read, so that neither is left over.
    let allow_unknown_fields = given.switch("allow-unknown-fields");
    let cpuset_threads = given.switch("cpuset-threads");
    let disable_hot_restart = given.switch("disable-hot-restart");
    Ok(Options {
        program,
        config_path: given.path("config-path"),
        config_yaml: given.text("config-yaml").filter(|text| !text.is_empty()),
        mode,
        concurrency,
        service_cluster: given.name("service-cluster"),
        service_node: given.name("service-node"),
        service_zone: given.name("service-zone"),
        log_level,
        component_log_levels,
        component_log_level,
        log_format: given.text("log-format"),
        log_format_escaped: given.switch("log-format-escaped"),
        log_path: given.path("log-path"),
        fine_grain_logging,
        drain_time: seconds(given.number("drain-time-s").unwrap_or(600)),
        drain_strategy,
        parent_shutdown_time: seconds(given.number("parent-shutdown-time-s").unwrap_or(900)),
        allow_unknown_static_fields: given.switch("allow-unknown-static-fields")
            || allow_unknown_fields,
        reject_unknown_dynamic_fields: given.switch("reject-unknown-dynamic-fields"),
        ignore_unknown_dynamic_fields: given.switch("ignore-unknown-dynamic-fields"),
        skip_deprecated_logs: given.switch("skip-deprecated-logs"),
        admin_address_path: given.path("admin-address-path"),
        ipv6,
        file_flush_interval: Duration::from_millis(u64::from(
            given.number("file-flush-interval-msec").unwrap_or(10_000),
        )),
        file_flush_min_size_kb: given.number("file-flush-min-size-kb").unwrap_or(64),
        stats_tags,
        disabled_extensions: given
            .text("disable-extensions")
            .map(|names| names.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
        disable_hot_restart,
        restart_epoch,
        base_id: given.number("base-id").unwrap_or(0),
        use_dynamic_base_id,
        base_id_path: given.path("base-id-path"),
        socket_path: given
            .text("socket-path")
            .unwrap_or_else(|| "@envoy_domain_socket".to_owned()),
        socket_mode,
        skip_hot_restart_on_no_parent: given.switch("skip-hot-restart-on-no-parent"),
        skip_hot_restart_parent_stats: given.switch("skip-hot-restart-parent-stats"),
        enable_core_dump: given.switch("enable-core-dump"),
        enable_mutex_tracing: given.switch("enable-mutex-tracing"),
        cpuset_threads,
        log_stacktrace_single_entry: given.switch("log-stacktrace-single-entry"),
        warnings: given.warnings,
    })
}

fn level(name: &str) -> Result<Level, Exit> {
    Level::parse(name)
        .ok_or_else(|| Exit::error(format_args!("invalid log level specified '{name}'")))
}

fn component_levels(text: &str) -> Result<Vec<(Component, Level)>, Exit> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|entry| {
            let parts = entry
                .split_once(':')
                .filter(|(_, wanted)| !wanted.contains(':'));
            let (name, wanted) = parts.ok_or_else(|| {
                Exit::error(format_args!(
                    "component log level not correctly specified '{entry}'"
                ))
            })?;
            let wanted = level(wanted)?;
            let component = Component::named(name)
                .ok_or_else(|| Exit::error(format_args!("invalid component specified '{name}'")))?;
            Ok((component, wanted))
        })
        .collect()
}

fn stats_tag(text: &str) -> Result<(String, String), Exit> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| Exit::error(format_args!("misformatted stats-tag '{text}'")))?;
    let bad = |part: &str| {
        Exit::error(format_args!(
            "misformatted stats-tag '{text}' contains invalid char in '{part}'"
        ))
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(bad(name));
    }
    if value.is_empty() || value.contains('.') {
        return Err(bad(value));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// What `--version` prints.
fn version_text(program: &str) -> String {
    format!("\n{program}  version: {}\n\n", version::full())
}

#[cfg(test)]
mod tests;
