//! Calls of our own whose two bodies go on over time, as those of gRPC do.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::{Cluster, ClusterMap, Host, Origin, Parties};
use super::filters::{self, Refused, Sending};
use super::limits::{Deadline, Moment};
use super::{CallError, failed, millis, next_frame};
use crate::http::{Body, BodyError, LocalReply, RequestHead, ResponseHead};

/// The sending end of a request's body. Dropping it before [`Sender::end`] resets the stream.
#[derive(Debug)]
pub struct Sender {
    /// `None` after the end.
    pieces: Option<mpsc::UnboundedSender<Piece>>,
    progress: Arc<Progress>,
    limit: usize,
}

#[derive(Debug)]
struct Piece {
    data: Bytes,
    last: bool,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes that wait to be sent.
    waiting: AtomicUsize,
    /// The last piece was sent.
    ended: AtomicBool,
    /// The last piece was given.
    whole: Moment,
}

/// Tells whether a body was sent whole.
#[derive(Clone, Debug)]
pub struct Sent(Arc<Progress>);

impl Sent {
    /// When the last piece was given, or will be.
    pub fn whole(&self) -> Moment {
        self.0.whole.clone()
    }

    fn is_whole(&self) -> bool {
        self.0.ended.load(Relaxed)
    }
}

/// More waits to be sent than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits to be sent")]
pub struct Full;

/// A body that is sent in pieces, of which at most `limit` bytes wait.
pub fn channel(limit: usize) -> (Sender, Body, Sent) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let progress = Arc::new(Progress::default());
    let sender = Sender {
        pieces: Some(sender),
        progress: Arc::clone(&progress),
        limit,
    };
    let body = Pieces {
        pieces,
        progress: Arc::clone(&progress),
    };
    (sender, Body::new(body), Sent(progress))
}

impl Sender {
    /// True while something that was sent has not been taken by the connection.
    pub fn waits(&self) -> bool {
        self.progress.waiting.load(Relaxed) > 0
    }

    /// Sends a piece, and with `last` the end. After the end it goes nowhere.
    ///
    /// # Errors
    /// The peer does not take what was sent before.
    pub fn send(&mut self, data: Bytes, last: bool) -> Result<(), Full> {
        let Some(pieces) = &self.pieces else {
            return Ok(());
        };
        let waiting = self.progress.waiting.load(Relaxed);
        if waiting.saturating_add(data.len()) > self.limit {
            return Err(Full);
        }
        self.progress.waiting.fetch_add(data.len(), Relaxed);
        // Nobody takes it where the call has ended.
        let _ = pieces.send(Piece { data, last });
        if last {
            self.progress.whole.come();
            self.pieces = None;
        }
        Ok(())
    }

    /// Ends the body.
    pub fn end(&mut self) {
        if let Some(pieces) = self.pieces.take() {
            let data = Bytes::new();
            self.progress.whole.come();
            // As above.
            let _ = pieces.send(Piece { data, last: true });
        }
    }
}

/// The receiving end.
struct Pieces {
    pieces: mpsc::UnboundedReceiver<Piece>,
    progress: Arc<Progress>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let Some(Piece { data, last }) = std::task::ready!(self.pieces.poll_recv(cx)) else {
            return Poll::Ready(Some(Err(BodyError::Aborted("the call was given up"))));
        };
        self.progress.waiting.fetch_sub(data.len(), Relaxed);
        if last {
            self.progress.ended.store(true, Relaxed);
        }
        let ends = last && data.is_empty();
        Poll::Ready((!ends).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.progress.ended.load(Relaxed)
    }
}

/// An answer as it comes.
#[derive(Debug)]
pub struct Answer {
    /// The head.
    pub head: ResponseHead,
    /// Of an answer that a filter gave in the place of the upstream: what is known of it.
    pub details: Option<Cow<'static, str>>,
    body: Body,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    begun: Instant,
    deadline: Deadline,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// This is what Envoy answers in its place.
    Replied(LocalReply),
    /// A filter of the cluster has reset the call; what Envoy tells of that.
    Reset(&'static str),
}

/// Sends a request to `host` of `cluster`, through the filters that `clusters` has for it, and waits for the head of the
/// answer. `sent` says of a body of [`channel`] whether it was sent whole. The time until the end of the answer is limited
/// by `deadline`.
///
/// # Errors
/// Where the upstream does not answer, and no filter does.
pub fn open<'a>(
    clusters: &ClusterMap,
    to: (&'a Arc<Cluster>, &'a Arc<Host>),
    head: RequestHead,
    body: Body,
    sent: Option<&'a Sent>,
    deadline: Deadline,
) -> impl Future<Output = Result<Answer, Unanswered>> + Send + use<'a> {
    let sending = filters::send(clusters, to.0, to.1, head, body, deadline.connected());
    begin(sending, to, sent, deadline)
}

async fn begin(
    sending: Sending,
    (cluster, host): (&Arc<Cluster>, &Arc<Host>),
    sent: Option<&Sent>,
    deadline: Deadline,
) -> Result<Answer, Unanswered> {
    let begun = Instant::now();
    let received = match deadline.head(sending).await {
        Ok(Ok(received)) => received,
        Ok(Err(Refused::Failed(reason))) => {
            return Err(Unanswered::Replied(failed(cluster, Some(host), reason)));
        }
        Ok(Err(Refused::Replied(reply))) => return Err(Unanswered::Replied(*reply)),
        Ok(Err(Refused::Reset(details))) => return Err(Unanswered::Reset(details)),
        Err(exceeded) => {
            let reply = deadline.headless(exceeded, cluster, host);
            return Err(Unanswered::Replied(reply));
        }
    };
    let mut head = received.head;
    if received.details.is_none() {
        cluster.answered(Some(host), head.status.as_u16(), Origin::Internal);
        if sent.is_none_or(Sent::is_whole) {
            head.headers.insert(
                "x-envoy-upstream-service-time",
                millis(begun.elapsed()).into(),
            );
        }
    }
    let answer = Answer {
        head,
        details: received.details,
        body: received.body,
        cluster: Arc::clone(cluster),
        host: Arc::clone(host),
        begun,
        deadline,
    };
    if answer.is_end() {
        answer.ended();
    }
    Ok(answer)
}

/// What is answered in the place of a request that cannot be sent: `reply`, or that there is nothing to send it on. As
/// Envoy, which looks at a head when it has a connection for it.
pub async fn refuse(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    reply: LocalReply,
    deadline: &Deadline,
) -> LocalReply {
    match deadline.head(cluster.reach(host)).await {
        Ok(Ok(())) => reply,
        Ok(Err(error)) => failed(cluster, Some(host), error.reason()),
        Err(exceeded) => deadline.headless(exceeded, cluster, host),
    }
}

impl Answer {
    /// True where the head is all.
    pub fn is_end(&self) -> bool {
        http_body::Body::is_end_stream(&self.body)
    }

    fn ended(&self) {
        if self.details.is_some() {
            return;
        }
        let time = self.begun.elapsed();
        let canary = self.host.is_canary();
        let origin = Origin::Internal;
        self.cluster.answer_time(time, Parties { origin, canary });
    }

    /// The next frame of the body. Trailers are the last.
    ///
    /// # Errors
    /// The body broke off, or its time is over.
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, CallError>> {
        match self.deadline.rest(next_frame(&mut self.body)).await {
            Some(Some(Ok(frame))) => {
                if frame.is_trailers() {
                    // The end, which is there already: a body that is left before it counts as given up.
                    let _ = self.deadline.rest(next_frame(&mut self.body)).await;
                    self.ended();
                }
                Some(Ok(frame))
            }
            Some(Some(Err(error))) => Some(Err(CallError::Reset(error))),
            Some(None) => {
                self.ended();
                None
            }
            None => {
                self.cluster.timed_out(Some(&self.host));
                Some(Err(CallError::Timeout))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::super::Limits;
    use super::*;
    use crate::cluster::testing::{fixed, runtime};
    use crate::config::cluster::{Http1Options, Http2Options, UpstreamProtocol};

    async fn refused(address: SocketAddr, protocol: UpstreamProtocol) -> (LocalReply, usize) {
        let mut config = fixed("c", address);
        config.protocol = protocol;
        let cluster = Cluster::new(Arc::new(config), &runtime());
        let host = cluster.pick(&Default::default()).expect("a host");
        let reply = LocalReply::new(http::StatusCode::IM_A_TEAPOT, "no request", "none");
        let deadline = Limits::new(Duration::from_secs(10)).begin(None);
        let reply = refuse(&cluster, &host, reply, &deadline).await;
        (reply, cluster.stats().set.codes().len())
    }

    /// As a running Envoy 1.40: a request that cannot be sent is refused when there is a connection, and not before.
    #[tokio::test]
    async fn what_cannot_be_sent_is_refused_by_its_connection() {
        for protocol in [
            UpstreamProtocol::Http1(Http1Options::default()),
            UpstreamProtocol::Http2(Http2Options::default()),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("an address");
            let (reply, codes) = refused(address, protocol.clone()).await;
            // A plugin's mistake counts for no host.
            assert_eq!((&*reply.body, codes), (&b"no request"[..], 0));
            drop(listener);
            let (reply, codes) = refused(address, protocol).await;
            assert_eq!((reply.status.as_u16(), codes), (503, 1));
            assert!(reply.body.ends_with(b"remote connection failure"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_what_cannot_be_sent_is_limited() {
        let cluster = Cluster::new(
            Arc::new(fixed("c", SocketAddr::from(([127, 0, 0, 1], 1)))),
            &runtime(),
        );
        let host = cluster.pick(&Default::default()).expect("a host");
        let reply = LocalReply::new(http::StatusCode::IM_A_TEAPOT, "no request", "none");
        let deadline = Limits::new(Duration::from_millis(1)).begin(None);
        tokio::time::advance(Duration::from_millis(2)).await;
        let reply = refuse(&cluster, &host, reply, &deadline).await;
        assert_eq!(reply.status, http::StatusCode::GATEWAY_TIMEOUT);
    }

    async fn next(body: &mut Body) -> Option<Result<Bytes, BodyError>> {
        let frame = next_frame(body).await?;
        Some(frame.map(|frame| frame.into_data().expect("data")))
    }

    #[tokio::test]
    async fn a_body_is_sent_in_pieces_up_to_its_end() {
        let (mut sender, mut body, sent) = channel(6);
        assert_eq!(sender.send("abcd".into(), false), Ok(()));
        assert_eq!(sender.send("efg".into(), false), Err(Full));
        assert_eq!(next(&mut body).await, Some(Ok("abcd".into())));
        assert_eq!(sender.send("efg".into(), false), Ok(()));
        assert_eq!(next(&mut body).await, Some(Ok("efg".into())));
        sender.end();
        assert_eq!(sender.send("lost".into(), false), Ok(()));
        assert!(!sent.is_whole());
        assert_eq!(next(&mut body).await, None);
        assert!(sent.is_whole());
        drop(sender);
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test]
    async fn the_last_piece_is_the_end() {
        let (mut sender, mut body, sent) = channel(6);
        assert_eq!(sender.send("abc".into(), true), Ok(()));
        sender.end();
        assert_eq!(next(&mut body).await, Some(Ok("abc".into())));
        assert!(sent.is_whole() && http_body::Body::is_end_stream(&body));
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test]
    async fn a_body_without_an_end_is_broken() {
        let (sender, mut body, sent) = channel(6);
        drop(sender);
        let broken = next(&mut body).await;
        assert!(matches!(broken, Some(Err(BodyError::Aborted(_)))));
        assert!(!sent.is_whole());
    }
}
