//! The way of a call through the HTTP filters of its cluster, which live above this module: it knows what they do, and not
//! what they are.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::super::{Cluster, ClusterMap, Host, SendOptions, UpstreamError, UpstreamErrorKind};
use super::limits::Moment;
use crate::http::{Body, LocalReply, ReplyReason, RequestHead, ResponseHead};

/// An answer on its way.
pub type Sending = Pin<Box<dyn Future<Output = Result<Received, Refused>> + Send>>;

/// The HTTP filters of the clusters of one Generation.
pub trait CallFilters: fmt::Debug + Send + Sync {
    /// Sends a request to `host` of `cluster` through the filters of that cluster, and waits for the head of what they make
    /// of its answer; `connected` is to hear of the connection. Dropping the future, or the body before its end, gives the attempt up. `None` where the cluster's
    /// filters are not there.
    fn send(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        head: RequestHead,
        body: Body,
        connected: Option<Moment>,
    ) -> Option<Sending>;
}

/// An answer as it begins.
#[derive(Debug)]
pub struct Received {
    /// The head.
    pub head: ResponseHead,
    /// The body.
    pub body: Body,
    /// Of an answer that a filter gave in the place of the upstream: what is known of it.
    pub details: Option<Cow<'static, str>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Refused {
    /// The host did not answer.
    Failed(ReplyReason),
    /// This is answered in its place, and says nothing of the host.
    Replied(Box<LocalReply>),
    /// A filter has reset the call; what Envoy tells of that.
    Reset(&'static str),
}

impl Refused {
    fn of(error: &UpstreamError) -> Self {
        match error.kind {
            // Not the host's fault.
            UpstreamErrorKind::MissingProtocol => Self::Replied(Box::new(error.reason().into())),
            _ => Self::Failed(error.reason()),
        }
    }
}

/// Sends a request to `host` of `cluster`, through the filters that the cluster has. What is returned holds those filters,
/// and not `clusters`: a call may last for days.
pub(super) fn send(
    clusters: &ClusterMap,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    head: RequestHead,
    body: Body,
    connected: Option<Moment>,
) -> Sending {
    if !cluster.config.has_filters() {
        return unfiltered(cluster, host, head, body, connected);
    }
    let filters = clusters.filters();
    let sending = filters.and_then(|filters| filters.send(cluster, host, head, body, connected));
    // A Generation has both or none; a call must not slip by.
    sending.unwrap_or_else(|| {
        let reply = ReplyReason::NoFilterConfig.into();
        Box::pin(std::future::ready(Err(Refused::Replied(Box::new(reply)))))
    })
}

/// Sends a request to `host` of `cluster`, past the filters that the cluster has.
pub(super) fn unfiltered(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    head: RequestHead,
    body: Body,
    connected: Option<Moment>,
) -> Sending {
    let (cluster, host) = (Arc::clone(cluster), Arc::clone(host));
    Box::pin(async move {
        let options = SendOptions {
            observer: connected,
        };
        let sent = cluster.send(&host, head, body, options);
        match sent.await {
            Ok(response) => Ok(Received {
                head: response.head,
                body: response.body,
                details: None,
            }),
            Err(error) => Err(Refused::of(&error)),
        }
    })
}
