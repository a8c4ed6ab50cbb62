//! Our own calls: what Wasm plugins send and what we fetch. Works on any runtime and thread.
//!
//! Failures become the responses that Envoy's asynchronous client makes of them (503 and 504 with the router's
//! texts), because plugins look at `:status`; what is left without any response is a [`CallError`].
//!
//! What plugins call passes the HTTP filters of its cluster, which see the call with all that is added to it, and its answer
//! as the host gave it. What we [`download`] does not: it is nobody's request, and runs where no plugin does.

mod filters;
mod limits;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use http_body::{Body as _, Frame};
use tokio::time::Instant;

pub use filters::{CallFilters, Received, Refused, Sending};
pub use limits::{Deadline, Limits, Moment};
pub use stream::{Answer, Full, Sender, Sent, Unanswered, channel, open, refuse};

use super::{Cluster, ClusterMap, Host, Origin, Parties, PickContext};
use crate::http::{Body, BodyError, LocalReply, ReplyReason, RequestHead, ResponseHead, grpc};

/// A request of our own.
#[derive(Debug)]
pub struct Call {
    /// The head. `x-envoy-internal` and `x-envoy-expected-rq-timeout-ms` are added, as Envoy adds them, and what it asks of a
    /// router is taken out of it: see [`Limits::take`].
    pub head: RequestHead,
    /// The body.
    pub body: Bytes,
    /// Trailers; empty for none. They are told and not sent: Envoy's client sends none.
    pub trailers: HeaderMap,
    /// From the request to the end of the answer, unless the head asks for another; zero is none.
    pub timeout: Duration,
    /// Largest answer body.
    pub limit: usize,
}

impl Call {
    /// A call without body and trailers, and with no limit but that of memory.
    pub fn new(head: RequestHead, timeout: Duration) -> Self {
        Self {
            head,
            body: Bytes::new(),
            trailers: HeaderMap::new(),
            timeout,
            limit: usize::MAX,
        }
    }
}

/// The whole answer, which may be one that we made because of a failure.
#[derive(Debug)]
pub struct CallResponse {
    /// The head.
    pub head: ResponseHead,
    /// The body.
    pub body: Bytes,
    /// Trailers, where there were any.
    pub trailers: Option<HeaderMap>,
}

/// Why there is no answer at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such cluster.
    #[error("unknown cluster {0:?}")]
    UnknownCluster(Box<str>),
    /// The answer ended before its end: what Envoy reports as a reset.
    #[error("the answer ended early: {0}")]
    Reset(BodyError),
    /// The answer had begun when the time was over.
    #[error("no complete answer in time")]
    Timeout,
    /// The answer is larger than the caller allows.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The caller has no room for more of the answer.
    #[error("no room for the answer")]
    NoRoom,
}

/// Calls `cluster` and waits for the whole answer.
pub async fn call(
    clusters: &ClusterMap,
    cluster: &str,
    call: Call,
) -> Result<CallResponse, CallError> {
    call_within(clusters, cluster, call, |_| true).await
}

/// As [`call`], for as long as `room`, which is given how much has come of the body, says that it may be held. What is
/// returned does not hold `clusters`.
pub fn call_within<F: FnMut(usize) -> bool + Send>(
    clusters: &ClusterMap,
    cluster: &str,
    call: Call,
    mut room: F,
) -> impl Future<Output = Result<CallResponse, CallError>> + Send + use<F> {
    let begun = Begun::new(clusters, cluster, call, filters::send);
    async move {
        let mut body = Collected::default();
        let mut received = 0usize;
        let mut response = receive(begun?, |chunk| {
            received = received.saturating_add(chunk.len());
            let fits = room(received);
            if fits {
                body.push(chunk);
            }
            fits
        })
        .await?;
        if response.body.is_empty() {
            response.body = body.finish();
        }
        Ok(response)
    }
}

/// As [`call`], giving the body to `chunk` as it comes; the answer's `body` is then that of a failure alone.
pub async fn download(
    clusters: &ClusterMap,
    cluster: &str,
    call: Call,
    mut chunk: impl FnMut(Bytes) + Send,
) -> Result<CallResponse, CallError> {
    let past_filters =
        |_: &ClusterMap, cluster: &Arc<Cluster>, host: &Arc<Host>, head, body, connected| {
            filters::unfiltered(cluster, host, head, body, connected)
        };
    let begun = Begun::new(clusters, cluster, call, past_filters)?;
    receive(begun, |data| {
        chunk(data);
        true
    })
    .await
}

/// A call on its way.
struct Begun {
    cluster: Arc<Cluster>,
    /// Where there is a host to call.
    to: Option<(Arc<Host>, Sending)>,
    deadline: Deadline,
    limit: usize,
    asker: Asker,
}

impl Begun {
    fn new(
        clusters: &ClusterMap,
        cluster: &str,
        call: Call,
        send: impl FnOnce(
            &ClusterMap,
            &Arc<Cluster>,
            &Arc<Host>,
            RequestHead,
            Body,
            Option<Moment>,
        ) -> Sending,
    ) -> Result<Self, CallError> {
        let cluster = clusters
            .get(cluster)
            .ok_or_else(|| CallError::UnknownCluster(cluster.into()))?;
        let limit = call.limit;
        let (head, body, limits) = request(call);
        let deadline = limits.begin(None);
        let asker = Asker::of(&head);
        let to = cluster.pick(&PickContext::default()).map(|host| {
            let connected = deadline.connected();
            let sending = send(clusters, cluster, &host, head, body, connected);
            (host, sending)
        });
        Ok(Self {
            cluster: Arc::clone(cluster),
            to,
            deadline,
            limit,
            asker,
        })
    }
}

/// Gives the body to `chunk` until that returns false.
async fn receive(
    call: Begun,
    mut chunk: impl FnMut(Bytes) -> bool + Send,
) -> Result<CallResponse, CallError> {
    let Begun {
        cluster,
        to,
        deadline,
        limit,
        asker,
    } = call;
    let Some((host, sending)) = to else {
        let reply = failed(&cluster, None, ReplyReason::NoHealthyUpstream);
        return Ok(asker.told(reply));
    };
    let begun = Instant::now();
    let received = match deadline.head(sending).await {
        Ok(Ok(received)) => received,
        Ok(Err(Refused::Failed(reason))) => {
            return Ok(asker.told(failed(&cluster, Some(&host), reason)));
        }
        Ok(Err(Refused::Replied(reply))) => return Ok(asker.told(*reply)),
        Ok(Err(Refused::Reset(_))) => return Err(CallError::Reset(BodyError::StreamReset)),
        Err(exceeded) => return Ok(asker.told(deadline.headless(exceeded, &cluster, &host))),
    };
    let collecting = collect(&cluster, &host, begun, received, limit, &mut chunk);
    deadline.rest(collecting).await.unwrap_or_else(|| {
        cluster.timed_out(Some(&host));
        Err(CallError::Timeout)
    })
}

/// Reads an answer to its end.
async fn collect(
    cluster: &Cluster,
    host: &Host,
    begun: Instant,
    received: Received,
    limit: usize,
    chunk: &mut (impl FnMut(Bytes) -> bool + Send),
) -> Result<CallResponse, CallError> {
    let Received {
        mut head,
        mut body,
        details,
    } = received;
    // What a filter answers is no word of the host.
    let of_host = details.is_none();
    if of_host {
        cluster.answered(Some(host), head.status.as_u16(), Origin::Internal);
        head.headers.insert(
            "x-envoy-upstream-service-time",
            millis(begun.elapsed()).into(),
        );
    }
    let mut received = 0usize;
    let mut trailers = None;
    while let Some(frame) = next_frame(&mut body).await {
        match frame.map_err(CallError::Reset)?.into_data() {
            Ok(data) => {
                received = received.saturating_add(data.len());
                if received > limit {
                    return Err(CallError::TooLarge(limit));
                }
                if !chunk(data) {
                    return Err(CallError::NoRoom);
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if of_host {
        let canary = host.is_canary();
        let origin = Origin::Internal;
        cluster.answer_time(begun.elapsed(), Parties { origin, canary });
    }
    Ok(CallResponse {
        head,
        body: Bytes::new(),
        trailers,
    })
}

async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, BodyError>> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await
}

fn request(call: Call) -> (RequestHead, Body, Limits) {
    let Call {
        mut head,
        body,
        trailers: _,
        timeout,
        limit: _,
    } = call;
    if !body.is_empty() {
        head.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    head.headers
        .insert("x-envoy-internal", HeaderValue::from_static("true"));
    let limits = Limits::take(&mut head.headers, timeout);
    (head, Body::full(body), limits)
}

/// The reply that Envoy makes of a failure, counted.
fn failed(cluster: &Cluster, host: Option<&Host>, reason: ReplyReason) -> LocalReply {
    let reply = LocalReply::from(reason);
    cluster.answered(host, reply.status.as_u16(), Origin::Internal);
    reply
}

/// How replies of ours look to who asked.
#[derive(Clone, Copy, Debug)]
struct Asker {
    head_alone: bool,
    grpc: bool,
}

impl Asker {
    fn of(head: &RequestHead) -> Self {
        Self {
            head_alone: head.method == Method::HEAD,
            grpc: head.is_grpc(),
        }
    }

    fn told(self, reply: LocalReply) -> CallResponse {
        let mut head = ResponseHead::new(reply.status);
        head.headers = reply.headers;
        let mut body = reply.body;
        if self.grpc {
            grpc::reply(&mut head, reply.status, &body, reply.grpc_status);
            body = Bytes::new();
        } else if !body.is_empty() {
            head.headers.insert(CONTENT_LENGTH, body.len().into());
            head.headers
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if self.head_alone {
            body = Bytes::new();
        }
        CallResponse {
            head,
            body,
            trailers: None,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Chunks as one: no copy where there is one chunk, as is usual.
#[derive(Default)]
struct Collected {
    first: Bytes,
    rest: BytesMut,
}

impl Collected {
    fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = chunk;
            return;
        }
        if self.rest.is_empty() {
            self.rest.extend_from_slice(&self.first);
        }
        self.rest.extend_from_slice(&chunk);
    }

    fn finish(self) -> Bytes {
        if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        }
    }
}

#[cfg(test)]
mod tests;
