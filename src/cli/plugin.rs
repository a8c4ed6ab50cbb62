//! `plenipo plugin`: the arguments of its subcommands. Values that hold a message or a configuration may be `@file`
//! everywhere; the tool reads them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::wasm::source::reference::Reference;

/// `plenipo plugin`.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum PluginCommand {
    /// Say what a plugin is made of, and whether it compiles and links here; exits with code 1 where it does not
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Send one request through a plugin, and show what it made of it
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Run the cases of a folder: requests, and what is expected to come of them
    #[command(after_help = TEST_EXAMPLES)]
    Test(TestArgs),
    /// Measure a plugin: many requests, one after the other, through one VM
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// Send the same requests through two plugins, and show where they differ; exits with code 1 where they do
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Put a plugin into a registry of images; exits with code 1 where it is not loadable, or not taken
    #[command(after_help = PUSH_EXAMPLES)]
    Push(PushArgs),
    /// Get a plugin out of a registry of images; exits with code 1 where there is none
    #[command(after_help = PULL_EXAMPLES)]
    Pull(PullArgs),
}

const INSPECT_EXAMPLES: &str = "\
Example:
  plenipo plugin inspect plugin.wasm
  plenipo plugin inspect oci://registry.example/plugins/hello:1";

const RUN_EXAMPLES: &str = "\
Examples:
  plenipo plugin run plugin.wasm --request 'GET /orders' -H 'host: shop.test'
  plenipo plugin run plugin.wasm --config @config.json --request @request.http --response 503
  plenipo plugin run plugin.wasm --callout auth=200 --callout users=@users.http

Without --response the upstream answers 200 with the body of the request as it arrived.

Exit codes: 0 the request ran through the plugin; 1 the plugin failed (it does not load, it trapped, or it held the
request for ever); 2 the arguments are wrong.";

const TEST_EXAMPLES: &str = "\
Examples:
  plenipo plugin test plugins/auth-header/tests
  plenipo plugin test tests --plugin target/wasm32-wasip1/release/plugin.wasm --junit report.xml
  plenipo plugin test tests --update

docs/plugins.md describes the files. Exit codes: 0 all cases passed; 1 a case failed, or there is none; 2 the arguments are
wrong, or a case cannot be run.";

const BENCH_EXAMPLES: &str = "\
Examples:
  plenipo plugin bench plugin.wasm
  plenipo plugin bench plugin.wasm --request 'POST /' --body @order.json --requests 100000 --seconds 30

Exit codes: 0 measured; 1 the plugin failed; 2 the arguments are wrong.";

const DIFF_EXAMPLES: &str = "\
Examples:
  plenipo plugin diff old.wasm new.wasm --request 'GET /orders' -H 'host: shop.test'
  plenipo plugin diff old.wasm new.wasm --cases tests

Exit codes: 0 the outcomes are the same; 1 they differ, or both plugins fail in all of them; 2 the arguments are wrong.";

const PUSH_EXAMPLES: &str = "\
Examples:
  plenipo plugin push plugin.wasm oci://registry.example/plugins/hello:1
  echo $TOKEN | plenipo plugin push plugin.wasm oci://registry.example/plugins/hello:1 --username me --password-stdin

Exit codes: 0 it is there; 1 it is not; 2 the arguments are wrong.";

const PULL_EXAMPLES: &str = "\
Example:
  plenipo plugin pull oci://registry.example/plugins/hello:1 -o plugin.wasm

Exit codes: 0 the file is written; 1 it is not; 2 the arguments are wrong.";

/// `plenipo plugin inspect`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct InspectArgs {
    /// The plugin: a file, oci://IMAGE or https://URL.
    pub source: String,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    /// How a registry is spoken to, where the plugin is in one.
    pub registry: RegistryArgs,
}

/// `plenipo plugin run`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RunArgs {
    /// The plugin: a file, oci://IMAGE or https://URL.
    pub source: String,
    #[command(flatten)]
    /// How the plugin is configured.
    pub setup: SetupArgs,
    #[command(flatten)]
    /// What it is shown.
    pub exchange: ExchangeArgs,
    /// The least level of log lines: trace, debug, info, warn, error or critical.
    #[arg(long, value_name = "LEVEL", default_value = "trace", value_parser = level)]
    pub log_level: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    /// How a registry is spoken to, where the plugin is in one.
    pub registry: RegistryArgs,
}

/// `plenipo plugin test`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TestArgs {
    /// Folders of cases: their files *.yaml and *.yml.
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Test this plugin, whichever the cases name.
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<String>,
    /// Write what came out into the cases that expect something else, or nothing yet.
    #[arg(long)]
    pub update: bool,
    /// Write the results as JUnit XML, too.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    #[command(flatten)]
    /// How a registry is spoken to, where the plugin is in one.
    pub registry: RegistryArgs,
}

/// `plenipo plugin bench`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BenchArgs {
    /// The plugin: a file, oci://IMAGE or https://URL.
    pub source: String,
    #[command(flatten)]
    /// How the plugin is configured.
    pub setup: SetupArgs,
    #[command(flatten)]
    /// What it is shown.
    pub exchange: ExchangeArgs,
    /// End after so many requests.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub requests: u32,
    /// End after so many seconds.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    /// How a registry is spoken to, where the plugin is in one.
    pub registry: RegistryArgs,
}

/// `plenipo plugin diff`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DiffArgs {
    /// The one plugin: a file, oci://IMAGE or https://URL.
    pub old: String,
    /// The other's.
    pub new: String,
    /// Compare them on the cases of this folder (whatever these expect) instead of on one request.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["SetupArgs", "ExchangeArgs"])]
    pub cases: Option<PathBuf>,
    #[command(flatten)]
    /// How the plugins are configured.
    pub setup: SetupArgs,
    #[command(flatten)]
    /// What they are shown.
    pub exchange: ExchangeArgs,
    #[command(flatten)]
    /// How a registry is spoken to, where the plugin is in one.
    pub registry: RegistryArgs,
}

/// `plenipo plugin push`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PushArgs {
    /// The plugin's file.
    pub file: PathBuf,
    /// Where to: oci://HOST/REPOSITORY:TAG.
    #[arg(value_name = "OCI", value_parser = tagged)]
    pub image: Reference,
    /// How the image holds the module: as its layer, or as the file plugin.wasm in a layer of files.
    #[arg(long, value_enum, default_value = "artifact")]
    pub layout: ImageLayout,
    #[command(flatten)]
    /// How the registry is spoken to.
    pub registry: RegistryArgs,
}

/// `plenipo plugin pull`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct PullArgs {
    /// The image: oci://HOST/REPOSITORY, and :TAG or @sha256:DIGEST.
    #[arg(value_name = "OCI", value_parser = image)]
    pub image: Reference,
    /// The file to write; what is there is replaced.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    /// How the registry is spoken to.
    pub registry: RegistryArgs,
}

/// How an image holds a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageLayout {
    /// The layer is the module, as the CNCF's Wasm artifacts have it
    Artifact,
    /// The layer is a tar with plugin.wasm, as older tools have it
    Files,
}

/// How registries, and servers of code, are spoken to.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Without TLS.
    #[arg(long)]
    pub plain_http: bool,
    /// It may send us on to private addresses: to a token server or a store of blobs beside it.
    #[arg(long)]
    pub internal: bool,
    /// Who we are; without it, what the docker configuration has for the registry.
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
}

/// How a plugin is configured, as in `PluginConfig`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Plugin")]
pub struct SetupArgs {
    /// Its configuration.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub config: Option<String>,
    /// The configuration of its VM.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub vm_config: Option<String>,
    /// Its root_id.
    #[arg(long, value_name = "ID", default_value = "")]
    pub root_id: String,
    /// Its vm_id.
    #[arg(long, value_name = "ID", default_value = "")]
    pub vm_id: String,
    /// Its name.
    #[arg(long, value_name = "NAME", default_value = "plugin")]
    pub name: String,
    /// An environment variable of its VM; may be repeated.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    pub environment: Vec<(String, String)>,
    /// Set allow_on_headers_stop_iteration.
    #[arg(long)]
    pub allow_on_headers_stop_iteration: bool,
}

/// What a plugin is shown.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Request and answers")]
pub struct ExchangeArgs {
    /// The request: a line such as 'POST /orders', or a file of such a line, headers, an empty line and a body.
    #[arg(long, value_name = "TEXT|@FILE", default_value = "GET /")]
    pub request: String,
    /// A header of the request; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// The body of the request.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub body: Option<String>,
    /// The upstream's response: a status, or a file of a status, headers, an empty line and a body.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub response: Option<String>,
    /// A header of the upstream's response; may be repeated.
    #[arg(long = "response-header", value_name = "NAME: VALUE", value_parser = header)]
    pub response_headers: Vec<(String, String)>,
    /// The body of the upstream's response.
    #[arg(long, value_name = "TEXT|@FILE")]
    pub response_body: Option<String>,
    /// How a cluster answers HTTP calls of the plugin: a response as in --response, 'timeout' or 'reset'. Repeated for a
    /// cluster: its answers in turn, the last one for ever.
    #[arg(long = "callout", value_name = "CLUSTER=TEXT|@FILE", value_parser = pair)]
    pub callouts: Vec<(String, String)>,
    /// Send the request so many times through the VM; the last one is shown, and all that was logged, called and counted.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repeat: u32,
    /// Bodies come in pieces of so many bytes.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: Option<u32>,
    /// Seconds between the plugin's start and the request: time for its timer.
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    pub wait: Duration,
    /// Seconds until a request that the plugin holds is given up.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub timeout: Duration,
}

/// The names of levels, from trace 0 to critical 5.
pub const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "critical"];

fn level(text: &str) -> Result<u32, String> {
    LEVELS
        .iter()
        .zip(0..)
        .find_map(|(name, level)| (*name == text).then_some(level))
        .ok_or_else(|| format!("levels are {}", LEVELS.join(", ")))
}

fn image(text: &str) -> Result<Reference, String> {
    let name = text.strip_prefix("oci://");
    let name = name.ok_or("the name of an image begins with oci://")?;
    Reference::parse(name).map_err(|error| error.to_string())
}

fn tagged(text: &str) -> Result<Reference, String> {
    let name = image(text)?;
    match name.digest {
        None => Ok(name),
        Some(_) => Err("what is pushed has the digest that it has: name a tag".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 3600.0;
    match text.parse::<f64>() {
        Ok(number) if (0.0..=LONGEST).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err(format!("a number of seconds, at most {LONGEST}")),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it has the form NAME=VALUE".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("it has the form 'name: value'".to_owned()),
    }
}
