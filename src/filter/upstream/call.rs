//! A call of our own on its way through the filters of its cluster: a stream without a client.
//!
//! The one driver of streams ([`HttpFilterChain::run`]) drives it, so that filters may wait, watch bodies and answer as they
//! do for clients; in the router's place stands [`Attempt`]. What such filters see of the stream is what Envoy's
//! asynchronous client shows: no connection, no route and no listener, but the cluster and the host. The time limit is the
//! caller's, who drops what takes too long.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Filters, Unanswered, UpstreamFilters};
use crate::cluster::client::{CallFilters, Moment, Received, Refused, Sending};
use crate::cluster::{
    Cluster, Host, Observer, Origin, SendOptions, UpstreamConnection, UpstreamErrorKind,
    UpstreamResponse,
};
use crate::config::http_connection_manager::Options;
use crate::filter::router::{note, note_answer};
use crate::filter::{HttpFilter, HttpFilterChain, Step};
use crate::http::{Body, LocalReply, RequestHead};
use crate::stream::{ConnectionInfo, Stream, StreamConfig};

impl CallFilters for UpstreamFilters {
    fn send(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        head: RequestHead,
        body: Body,
        connected: Option<Moment>,
    ) -> Option<Sending> {
        let filters = self.of_cluster(cluster)?;
        Some(Box::pin(send(
            Arc::clone(filters),
            Arc::clone(cluster),
            Arc::clone(host),
            (head, body),
            connected,
        )))
    }
}

async fn send(
    filters: Arc<HttpFilterChain>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    (head, body): (RequestHead, Body),
    connected: Option<Moment>,
) -> Result<Received, Refused> {
    let config = config(cluster.config.buffer_limit);
    let stream = Stream::new(Arc::new(ConnectionInfo::none()), config, head, 1);
    {
        let mut info = stream.info.lock();
        info.own_call = true;
        info.attempts = 1;
        info.reached_router = true;
        info.upstream.cluster = Some(Arc::clone(&cluster));
        info.upstream.host = Some(Arc::clone(&host));
    }
    let attempt = Arc::new(Attempt {
        filters,
        cluster,
        host,
        connected,
    });
    let chain = Arc::new(HttpFilterChain::of([("attempt".into(), attempt as _)]));
    let run = chain.run(Arc::clone(&stream), body, Arc::new(()));
    let body = run.await;
    let head = stream.response.lock().clone();
    let (Ok(body), Some(head)) = (body, head) else {
        let answered = stream.info.lock().upstream_first_rx.is_some();
        return Err(Refused::Reset(if answered { "via_upstream" } else { "" }));
    };
    let info = stream.info.lock();
    let details = info
        .local_reply
        .then(|| info.details.clone().unwrap_or(Cow::Borrowed("")));
    drop(info);
    Ok(Received {
        head,
        body,
        details,
    })
}

/// No routes, and no deadlines.
fn config(buffer_limit: usize) -> StreamConfig {
    StreamConfig {
        routes: None,
        clusters: Arc::default(),
        upstream_filters: None,
        options: Arc::new(Options {
            stream_idle_timeout: None,
            buffer_limit,
            ..Options::default()
        }),
        generation: 0,
        records: None,
    }
}

/// One request to one host, through filters.
#[derive(Debug)]
struct Attempt {
    filters: Arc<HttpFilterChain>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    /// Is to hear of the connection.
    connected: Option<Moment>,
}

impl HttpFilter for Attempt {
    fn request(&self, stream: &Arc<Stream>, body: Body) -> Step<Body> {
        let (stream, cluster) = (Arc::clone(stream), Arc::clone(&self.cluster));
        let connected = self.connected.clone();
        let (host, filters) = (
            Arc::clone(&self.host),
            Filters::begin(&stream, &self.filters),
        );
        Step::Wait(Box::pin(run(
            filters, stream, cluster, host, body, connected,
        )))
    }
}

async fn run(
    filters: Option<Filters>,
    stream: Arc<Stream>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    body: Body,
    connected: Option<Moment>,
) -> Step<Body> {
    let options = SendOptions {
        observer: Connected(Arc::clone(&stream), connected),
    };
    let sent = match filters {
        Some(filters) => {
            let note = |response: &mut UpstreamResponse| {
                note_answer(&stream, &host, response, Instant::now());
                true
            };
            let to = (&cluster, &host);
            filters.exchange(&stream, to, body, options, note).await
        }
        // All of them are switched off.
        None => {
            let sent = cluster.send(&host, &*stream, body, options).await;
            sent.map_err(Unanswered::Failed)
        }
    };
    match sent {
        Ok(response) => Step::Answer(Box::new(response.head), response.body),
        Err(Unanswered::Step(step)) => step,
        Err(Unanswered::Failed(error)) => {
            let reply = LocalReply::from(error.reason());
            // What cannot be sent is not the host's fault.
            if !matches!(error.kind, UpstreamErrorKind::MissingProtocol) {
                cluster.answered(Some(&host), reply.status.as_u16(), Origin::Internal);
            }
            Step::reply(reply)
        }
    }
}

struct Connected(Arc<Stream>, Option<Moment>);

impl Observer for Connected {
    fn connected(&mut self, connection: &UpstreamConnection) {
        note(&self.0, connection);
        self.1.connected(connection);
    }
}
