//! The question asked before a resource that parses is acknowledged: can it be brought to life?
//!
//! Acceptance is a pure function of bytes and of the build, with one exception that Envoy makes and control planes
//! rely on: Wasm code that is at hand is compiled and configured in a canary before the response is answered. Other
//! types go on meanwhile.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::config::extension::HttpFilterConfig;
use crate::config::{Cluster, ConfigError, Listener, RouteConfig};

/// A resource that parses and is new or changed.
#[derive(Clone, Debug)]
pub enum Candidate {
    /// By CDS.
    Cluster(Arc<Cluster>),
    /// By LDS.
    Listener(Arc<Listener>),
    /// By RDS.
    Route(Arc<RouteConfig>),
    /// By ECDS, with its name.
    Extension(Arc<str>, Arc<HttpFilterConfig>),
}

/// Decides on candidates.
pub trait Admission: Send + Sync + 'static {
    /// The future that decides, or `None` where there is nothing to ask (nearly always). The response that holds the
    /// candidate is answered when every one of its futures has ended; an error refuses this resource alone.
    ///
    /// The future must end by itself (a deadline): nothing else of its type is judged meanwhile.
    fn admit(&self, candidate: &Candidate) -> Option<BoxFuture<'static, Result<(), ConfigError>>>;
}

/// Admits everything.
#[derive(Clone, Copy, Debug)]
pub struct AdmitAll;

impl Admission for AdmitAll {
    fn admit(&self, _: &Candidate) -> Option<BoxFuture<'static, Result<(), ConfigError>>> {
        None
    }
}
