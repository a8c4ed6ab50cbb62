//! Name resolution for `STRICT_DNS` and `LOGICAL_DNS`, on the control side only.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Live, Runtime};
use crate::base::task::OwnedTask;
use crate::config;
use crate::config::cluster::DnsOptions;
use crate::config::endpoint::Endpoints;

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// In the resolver's order; not empty.
    pub addresses: Vec<IpAddr>,
    /// How long they hold; `None` where nothing said.
    pub ttl: Option<Duration>,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or has no address of the family.
    #[error("no addresses")]
    NoAddresses,
    /// No answer.
    #[error("{0}")]
    Failed(Box<str>),
}

/// Answers names. Tests put a fake in its place.
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// The addresses of `name` as `options` ask for them (family, servers).
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        options: &'a DnsOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>>;
}

pub(super) fn start(
    _live: &Arc<Live>,
    _config: &Arc<config::Cluster>,
    _endpoints: &Arc<Endpoints>,
    _logical: bool,
    _runtime: &Runtime,
) -> Option<Arc<OwnedTask>> {
    None
}
