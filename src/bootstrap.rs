//! Envoy's bootstrap, validated: who we are, where the admin interface is, static resources, and how control planes are
//! reached.
//!
//! In two steps, because the log is set up between them: [`load`] reads the text into the message (and keeps what is odd
//! for the log), [`Bootstrap::parse`] validates it. Nothing is read twice: the file may be a pipe, or gone.

pub mod load;
mod node;
mod parse;
pub mod version;

use std::sync::Arc;
use std::time::Duration;

pub use load::{LoadError, Loaded, Source, load};

use crate::config::cluster::{ConfigSource, SourceSpecifier};
use crate::config::endpoint::Address;
use crate::config::extension::ExtensionConfig;
use crate::config::matcher::StringMatcher;
use crate::config::{Cluster, Listener, WasmSettings};
use crate::pb;
use crate::pb::envoy::config::bootstrap::v3 as proto;

/// A valid bootstrap.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Who we are, as told to control planes: with overrides and our version.
    pub node: pb::Node,
    /// `None`: no admin interface.
    pub admin: Option<Admin>,
    /// `static_resources.clusters`.
    pub clusters: Vec<Static<Cluster>>,
    /// `static_resources.listeners`.
    pub listeners: Vec<Static<Listener>>,
    /// `static_resources.secrets`, not yet of use.
    pub secrets: Vec<pb::Any>,
    /// `dynamic_resources.ads_config`; always [`SourceSpecifier::Grpc`].
    pub ads: Option<SourceSpecifier>,
    /// `dynamic_resources.cds_config`.
    pub cds: Option<ConfigSource>,
    /// `dynamic_resources.lds_config`.
    pub lds: Option<ConfigSource>,
    /// `layered_runtime`, for `/runtime`.
    pub runtime: Vec<RuntimeLayer>,
    /// `stats_config` and what belongs to it.
    pub stats: StatsConfig,
    /// The `plenipo.extensions.wasm.v1.WasmSettings` among `bootstrap_extensions`, or its defaults.
    pub wasm: WasmSettings,
    /// The plugins among `bootstrap_extensions` and `stats_sinks`, in that order.
    pub services: Vec<Service>,
    /// The message, for `/config_dump`; its node is [`Bootstrap::node`].
    pub proto: proto::Bootstrap,
    /// One line for each thing that is accepted without effect, for the log.
    pub notes: Vec<String>,
}

/// A static resource with the message it came from.
#[derive(Clone, Debug)]
pub struct Static<T> {
    /// For `/config_dump`.
    pub proto: pb::Any,
    /// What we believe.
    pub value: Arc<T>,
}

/// A plugin that runs beside the traffic.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its place: `bootstrap_extensions[0]`, `stats_sinks[0]`.
    pub place: Box<str>,
    /// As the extensions made it.
    pub config: Arc<dyn ExtensionConfig>,
}

/// `admin`.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where it listens: [`Address::Socket`] or [`Address::Pipe`].
    pub address: Address,
    /// `pipe.mode`; `None` leaves the umask's.
    pub pipe_mode: Option<u32>,
    /// `allow_paths`: empty allows all.
    pub allow_paths: Vec<StringMatcher>,
}

/// `layered_runtime.layers`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeLayer {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: RuntimeLayerKind,
}

/// `layer_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeLayerKind {
    /// `static_layer`.
    Static(pb::Struct),
    /// `admin_layer`: what `/runtime_modify` sets.
    Admin,
    /// `disk_layer` and `rtds_layer`: accepted, always empty.
    Empty,
}

/// `stats_config`, `stats_flush_interval` and the like.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsConfig {
    /// `stats_tags`, in order.
    pub tags: Vec<StatsTag>,
    /// `use_all_default_tags`; default true.
    pub use_default_tags: bool,
    /// `stats_matcher`.
    pub matcher: StatsMatcher,
    /// `stats_flush_interval` or `stats_flush_on_admin`.
    pub flush: StatsFlush,
    /// `stats_server_version_override`.
    pub server_version: Option<u64>,
}

/// When statistics are told to sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsFlush {
    /// `stats_flush_interval`; default 5 s.
    Every(Duration),
    /// `stats_flush_on_admin`: when the admin interface is asked for them, and at no other time.
    OnAdmin,
}

/// `TagSpecifier`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatsTag {
    /// `fixed_value`: on every statistic.
    Fixed {
        /// `tag_name`.
        name: String,
        /// The value.
        value: String,
    },
    /// `regex` (ECMAScript, with look-ahead), or none for one of Envoy's defaults by its name.
    Extracted {
        /// `tag_name`.
        name: String,
        /// Group 1 is cut from the name; group 2 (else 1) is the value.
        regex: Option<String>,
    },
}

/// `stats_matcher`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum StatsMatcher {
    /// Everything is shown.
    #[default]
    All,
    /// `reject_all`.
    None,
    /// `exclusion_list`.
    Except(Vec<StringMatcher>),
    /// `inclusion_list`.
    Only(Vec<StringMatcher>),
}

#[cfg(test)]
mod tests;
