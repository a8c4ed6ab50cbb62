//! Connections kept for the next request: per worker, keyed by host.

use crate::base::Shards;
use crate::config;

/// The pools of a cluster, one set a worker.
#[derive(Debug)]
pub(super) struct Pools {}

impl Pools {
    pub(super) fn new(_shards: Shards) -> Self {
        Self {}
    }

    /// Idle connections close, busy ones when they are done.
    pub(super) fn retire(&self) {}
}

/// Whether connections made for `a` are as good as those that `b` would make.
pub(super) fn compatible(a: &config::Cluster, b: &config::Cluster) -> bool {
    a.protocol == b.protocol
        && a.tcp_keepalive == b.tcp_keepalive
        && a.source_address == b.source_address
        && a.buffer_limit == b.buffer_limit
}
