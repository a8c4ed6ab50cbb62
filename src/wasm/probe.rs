//! What a tool puts in the place of a plugin's surroundings, and what it is told of the plugin: for `plenipo plugin`.
//!
//! A proxy has no probe. Everything else of the host is the same with one and without.

use std::fmt;
use std::time::Duration;

use crate::cluster::client::{Call, CallError, CallResponse};

/// What the making of one VM took, on the wall's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildTimes {
    /// Of the instance alone.
    pub instantiate: Duration,
    /// `_initialize`, `main` or `_start`.
    pub start: Duration,
    /// The root contexts: `proxy_on_vm_start` and `proxy_on_configure` above all.
    pub configure: Duration,
}

/// The surroundings. Called on the threads that run the guest, while it runs: be short, and do not call back.
pub trait Probe: fmt::Debug + Send + Sync {
    /// The least level that is written, as the guest is told it: trace 0 to critical 5.
    fn log_level(&self) -> u32;

    /// The guest writes a line.
    fn log(&self, level: u32, message: &str);

    /// A callback has returned, or trapped.
    fn called(&self, callback: &'static str, took: Duration);

    /// A VM was made.
    fn built(&self, times: BuildTimes);

    /// True where there is a cluster of that name to call. A guest that calls another is told so, as by Envoy.
    fn has_cluster(&self, cluster: &str) -> bool;

    /// The guest calls a cluster, or what its service names, by gRPC; nothing answers but what there is of clusters.
    fn grpc(&self, service: &str);

    /// The answer of a cluster to an HTTP call.
    ///
    /// # Errors
    /// Where there is none.
    fn call(&self, cluster: &str, call: Call) -> Result<CallResponse, CallError>;
}
