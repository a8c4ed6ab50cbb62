//! HTTP filters of an upstream: they run for each attempt, after the router has chosen a host and before the codec.
//!
//! A list belongs to a cluster (`HttpProtocolOptions.http_filters`) or to a router (`upstream_http_filters`); a cluster's own,
//! be it the codec alone, comes before the router's. The filters see the stream of the client, with the head as the router
//! has finished it; of the answer they see what the upstream sent, before the router does. What they answer themselves
//! goes to the client through the listener's filters, and past them. Routes configure them and switch them off by their
//! names, as they do the listener's. They hear nothing of the stream's log, and end with the attempt.
//!
//! What a plugin calls passes the list of its cluster, too: see [`call`](self::call).
//!
//! Envoy begins to connect before these filters run, and we when the request has passed them.

mod call;

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rustc_hash::FxBuildHasher;

use super::chain::Active;
use super::factory::ChainContext;
use super::{BoxFuture, HttpFilterChain, Registry, Step};
use crate::cluster::client::CallFilters;
use crate::cluster::{Cluster, Host, Observer, SendOptions, UpstreamError, UpstreamResponse};
use crate::config::ConfigError;
use crate::config::http_connection_manager::{FilterSource, HttpFilter as FilterEntry};
use crate::http::{Body, BodyError, LocalReply, ReplyReason, ResponseHead};
use crate::stream::{Ending, Phase, Stream, StreamConfig};
use crate::wasm::Plugins;

/// The live filters of the clusters of one Generation that have any, by cluster.
#[derive(Debug, Default)]
pub struct UpstreamFilters(HashMap<Arc<str>, Arc<HttpFilterChain>, FxBuildHasher>);

impl UpstreamFilters {
    /// What streams pin of them.
    pub fn pinned(self: &Arc<Self>) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        (!self.0.is_empty()).then(|| Arc::clone(self) as _)
    }

    /// What calls of our own pass of them.
    pub fn for_calls(self: &Arc<Self>) -> Option<Arc<dyn CallFilters>> {
        (!self.0.is_empty()).then(|| Arc::clone(self) as _)
    }

    /// True where each cluster has the filters that it has in `other`.
    pub fn same(&self, other: &Self) -> bool {
        let same = |(name, chain): (&Arc<str>, _)| {
            let other = other.0.get(name);
            other.is_some_and(|other| Arc::ptr_eq(other, chain))
        };
        self.0.len() == other.0.len() && self.0.iter().all(same)
    }

    fn of(config: &StreamConfig) -> Option<&Self> {
        config.upstream_filters.as_ref()?.downcast_ref()
    }

    fn of_cluster(&self, cluster: &Cluster) -> Option<&Arc<HttpFilterChain>> {
        self.0.get(cluster.name())
    }
}

impl FromIterator<(Arc<str>, Arc<HttpFilterChain>)> for UpstreamFilters {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<HttpFilterChain>)>>(chains: I) -> Self {
        Self(chains.into_iter().collect())
    }
}

/// Brings `filters` to life; `None` where there are none.
pub(super) fn build(
    filters: &[FilterEntry],
    context: &ChainContext<'_>,
) -> Option<Arc<HttpFilterChain>> {
    if filters.is_empty() {
        return None;
    }
    // What a route says in the place of a plugin holds for the listener's filters.
    let context = ChainContext {
        routes: None,
        ..*context
    };
    let chain = HttpFilterChain::build_upstream(&Registry::new(), filters, &context);
    Some(Arc::new(chain))
}

/// Tries what must be tried of `filters`; see [`super::FilterFactory::admit`].
pub(super) fn admit(
    filters: &[FilterEntry],
    field: &str,
    plugins: &Plugins,
) -> Option<BoxFuture<Result<(), ConfigError>>> {
    let registry = Registry::new();
    let trials: Vec<_> = filters
        .iter()
        .enumerate()
        .filter_map(|(index, filter)| match &filter.config {
            FilterSource::Inline(config) => {
                let trial = registry.admit(config, plugins)?;
                Some((format!("{field}[{index}]"), trial))
            }
            FilterSource::Discovered { .. } => None,
        })
        .collect();
    if trials.is_empty() {
        return None;
    }
    Some(Box::pin(async move {
        for (place, trial) in trials {
            trial.await.map_err(|error| error.at(&place))?;
        }
        Ok(())
    }))
}

/// The filters of an attempt of `stream` at `cluster`, begun; `None` where it has none. `of_router` holds where the cluster
/// has no list.
///
/// # Errors
/// The answer where the cluster's filters are not there.
#[inline]
pub(super) fn begin(
    stream: &Arc<Stream>,
    cluster: &Cluster,
    of_router: Option<&Arc<HttpFilterChain>>,
) -> Result<Option<Filters>, Box<LocalReply>> {
    match (&cluster.config.upstream_filters, of_router) {
        (None, None) => Ok(None),
        (None, Some(chain)) => Ok(Filters::begin(stream, chain)),
        (Some(list), _) if list.is_empty() => Ok(None),
        (Some(_), _) => {
            let chains = UpstreamFilters::of(&stream.config);
            match chains.and_then(|chains| chains.of_cluster(cluster)) {
                Some(chain) => Ok(Filters::begin(stream, chain)),
                // A Generation has both or none; a request must not slip by.
                None => Err(Box::new(ReplyReason::NoFilterConfig.into())),
            }
        }
    }
}

/// The filters of one attempt.
#[derive(Clone)]
pub(super) struct Filters {
    chain: Arc<HttpFilterChain>,
    active: Active,
}

/// What there is to do in the place of passing an answer on.
pub(super) enum Unanswered {
    /// A filter decides.
    Step(Step<Body>),
    /// The host did not answer.
    Failed(UpstreamError),
}

impl Filters {
    fn begin(stream: &Arc<Stream>, chain: &Arc<HttpFilterChain>) -> Option<Self> {
        let route = stream.resolved_route();
        let filters = Self {
            chain: Arc::clone(chain),
            active: chain.select(route.as_deref()),
        };
        filters.chain.active(&filters.active).next()?;
        stream.begin_attempt(Arc::new(filters.clone()), chain.len());
        Some(filters)
    }

    /// The attempt: the request halves, the host, the response halves. `received` notes what is known with the head of an
    /// answer, and says whether the filters see it.
    ///
    /// # Errors
    /// Where there is no answer to pass on.
    pub(super) async fn exchange(
        &self,
        stream: &Arc<Stream>,
        (cluster, host): (&Arc<Cluster>, &Arc<Host>),
        body: Body,
        options: SendOptions<impl Observer>,
        received: impl FnOnce(&mut UpstreamResponse) -> bool,
    ) -> Result<UpstreamResponse, Unanswered> {
        let body = self.request(stream, body).await;
        let body = body.map_err(Unanswered::Step)?;
        let sent = cluster.send(host, &**stream, body, options).await;
        let mut response = sent.map_err(Unanswered::Failed)?;
        if !received(&mut response) {
            return Ok(response);
        }
        let response = self.response(stream, response).await;
        response.map_err(Unanswered::Step)
    }

    /// The request halves, in order.
    ///
    /// # Errors
    /// What the router is to do in the place of an attempt.
    async fn request(&self, stream: &Arc<Stream>, mut body: Body) -> Result<Body, Step<Body>> {
        for filter in self.chain.active(&self.active) {
            body = passed(stream, filter.request(stream, body)).await?;
        }
        Ok(body)
    }

    /// The response halves, in reverse.
    ///
    /// # Errors
    /// What the router is to do in the place of this answer.
    async fn response(
        &self,
        stream: &Arc<Stream>,
        response: UpstreamResponse,
    ) -> Result<UpstreamResponse, Step<Body>> {
        let UpstreamResponse {
            head,
            mut body,
            connection,
        } = response;
        *stream.response.lock() = Some(head);
        let shown = Shown(stream);
        for filter in self.chain.active(&self.active).rev() {
            body = match passed(stream, filter.response(stream, body)).await {
                Ok(body) => body,
                Err(Step::Answer(head, body)) => {
                    *stream.response.lock() = Some(*head);
                    body
                }
                Err(step) => return Err(step),
            };
        }
        let head = shown.take();
        if body.is_end_stream() {
            stream.end_attempt();
        } else {
            let stream = Arc::clone(stream);
            body = Body::new(AttemptBody { stream, body });
        }
        Ok(UpstreamResponse {
            head,
            body,
            connection,
        })
    }
}

impl Ending for Filters {
    fn log(&self, _: &Arc<Stream>) {}

    fn end(&self, stream: &Arc<Stream>) {
        for filter in self.chain.active(&self.active) {
            filter.end(stream);
        }
    }
}

/// The body where the filter lets it pass; else what it has decided.
async fn passed(stream: &Stream, mut step: Step<Body>) -> Result<Body, Step<Body>> {
    loop {
        match step {
            // What the filter decided besides its step stands above it: the root driver acts on it.
            Step::Next(_) if stream.is_decided() => return pending().await,
            Step::Next(body) => return Ok(body),
            Step::Wait(wait) => step = wait.await,
            Step::Reply(_) | Step::Answer(..) => return Err(step),
        }
    }
}

/// The head of an answer while upstream filters see it. Until the router has it, it is not the stream's: where the attempt
/// is given up before, nothing of it is told.
struct Shown<'a>(&'a Stream);

impl Shown<'_> {
    fn take(self) -> ResponseHead {
        let head = self.0.response.lock().take();
        head.unwrap_or_else(|| ResponseHead::new(http::StatusCode::BAD_GATEWAY))
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if self.0.phase() == Phase::Request {
            *self.0.response.lock() = None;
        }
    }
}

/// The body of an answer; its end is that of the attempt.
struct AttemptBody {
    stream: Arc<Stream>,
    body: Body,
}

impl HttpBody for AttemptBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let last = match &polled {
            Poll::Pending => false,
            Poll::Ready(None | Some(Err(_))) => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.body.is_end_stream(),
        };
        if last {
            self.stream.end_attempt();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
