//! Filters that this build accepts and does not run: what they do changes neither security nor routing, and refusing
//! them would refuse the whole listener of a control plane that always sends them.
//!
//! | filter | what is missing |
//! |---|---|
//! | `envoy.filters.http.grpc_stats` | per-service statistics of gRPC |
//! | `istio.alpn` | ALPN of Istio's own TLS between workloads |
//! | `istio.metadata_exchange` | the peer's metadata, for telemetry |
//! | `istio.stats` | Istio's telemetry |
//!
//! Each is named in the log when a chain with it is built.

use std::sync::Arc;

use super::HttpFilter;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The filter's name.
    pub name: &'static str,
    /// The full name of its message. Istio's are in nobody's descriptors: they come as bytes or in a `TypedStruct`.
    pub message: &'static str,
    /// What is missing without it.
    pub missing: &'static str,
}

/// All of them, alphabetically.
pub const ALL: &[Ignored] = &[
    Ignored {
        name: "envoy.filters.http.grpc_stats",
        message: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        missing: "per-service statistics of gRPC",
    },
    Ignored {
        name: "istio.alpn",
        message: "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        missing: "ALPN of Istio's own TLS between workloads",
    },
    Ignored {
        name: "istio.metadata_exchange",
        message: "io.istio.http.peer_metadata.Config",
        missing: "the peer's metadata, for telemetry",
    },
    Ignored {
        name: "istio.stats",
        message: "stats.PluginConfig",
        missing: "Istio's telemetry",
    },
];

/// The one whose message is called `message`.
pub fn find(message: &str) -> Option<&'static Ignored> {
    ALL.iter().find(|ignored| ignored.message == message)
}

/// Does nothing.
#[derive(Debug)]
pub struct NoOp;

impl HttpFilter for NoOp {}

/// The filter that stands for `ignored`.
pub fn build(ignored: &Ignored) -> Arc<dyn HttpFilter> {
    tracing::info!(target: "config", filter = ignored.name, missing = ignored.missing, "filter accepted without effect");
    Arc::new(NoOp)
}
