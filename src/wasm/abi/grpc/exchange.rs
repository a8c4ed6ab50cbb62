//! One gRPC callout on its way: what it sends, how its answer is read, and what the guest is told of it.
//!
//! What is told is what a running Envoy 1.40 told: of an answer that is all headers these come as trailers, with their
//! status; one of another status than 200 shows no headers; what breaks off ends with empty trailers.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::{Kind, PIECE, Request};
use crate::cluster::client::{self, Answer, CallError, Sent, Unanswered};
use crate::cluster::{Cluster, ClusterMap, Host};
use crate::http::grpc::{self, Deframer, FrameError};
use crate::http::{BodyError, LocalReply, RequestHead, ResponseHead};
use crate::wasm::payload::Charge;
use crate::wasm::vm::Message;

/// Bytes of messages that are told together at most, and those of one frame.
const MAX_BATCH: usize = 64 << 10;
/// What Envoy says of an answer that an upstream gave.
const VIA_UPSTREAM: &str = "via_upstream";

/// Headers or trailers of an answer. Where these are all of it they are told as trailers, with the HTTP status.
#[derive(Debug)]
pub(crate) enum Metadata {
    Head(ResponseHead),
    Fields(HeaderMap),
}

impl Metadata {
    fn none() -> Self {
        Self::Fields(HeaderMap::new())
    }

    /// Its entries; a status is one.
    pub(crate) fn count(&self) -> u32 {
        let count = match self {
            Self::Head(head) => head.headers.len() + 1,
            Self::Fields(fields) => fields.len(),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

/// What a guest is told of a call.
#[derive(Debug)]
pub(crate) enum Event {
    Initial(Metadata),
    Message(Bytes),
    Trailing(Metadata),
    Close(u32, String),
}

/// Tells a VM of a call.
pub(super) struct Teller {
    pub(super) token: u32,
    pub(super) mailbox: UnboundedSender<Message>,
}

impl Teller {
    /// Waits until the guest has heard all of it.
    pub(super) async fn tell(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let (handled, heard) = oneshot::channel();
        let message = Message::Grpc {
            token: self.token,
            events,
            handled,
        };
        if self.mailbox.send(message).is_ok() {
            // Its sender is dropped, which is all that is waited for.
            let _ = heard.await;
        }
    }
}

/// Makes a call and tells of it, from its start to its end.
pub(super) async fn exchange(
    clusters: Arc<ClusterMap>,
    (cluster, host): (&Arc<Cluster>, &Arc<Host>),
    request: Request,
    teller: Teller,
) {
    let Request {
        kind,
        cluster: _,
        head,
        body,
        sent,
        limits,
        limit,
        charge,
    } = request;
    // Of what has come and was not told yet; the request's own is held to the end.
    let mut room = charge.another();
    let deadline = limits.begin(sent.as_ref().map(Sent::whole));
    let mut last = None;
    let is_grpc = is_grpc(&head);
    let answer = match head {
        Ok(head) => {
            let to = (cluster, host);
            let opening = client::open(&clusters, to, head, body, sent.as_ref(), deadline);
            // A stream may last for days, and a Generation's filters are held by their clusters.
            drop(clusters);
            opening.await
        }
        Err(reply) => Err(Unanswered::Replied(
            client::refuse(cluster, host, reply, &deadline).await,
        )),
    };
    let events = match answer {
        Ok(answer) => receive(answer, kind, limit, &mut room, &mut last, &teller).await,
        Err(Unanswered::Replied(reply)) => replied(reply, Kind::Stream, is_grpc),
        Err(Unanswered::Reset(details)) => error(grpc::INTERNAL, details).into(),
    };
    teller.tell(told(kind, events, last)).await;
}

/// What is told of `events` to who made a call of that kind: of a single call only its outcome.
fn told(kind: Kind, events: Vec<Event>, last: Option<Bytes>) -> Vec<Event> {
    if kind == Kind::Stream {
        return events;
    }
    let outcome = events.into_iter().find_map(|event| match event {
        Event::Close(0, _) => None,
        Event::Close(..) => Some(event),
        _ => None,
    });
    let message = || last.map(Event::Message);
    // A status that is good needs a message.
    let nothing = || Event::Close(grpc::INTERNAL, String::new());
    vec![outcome.or_else(message).unwrap_or_else(nothing)]
}

/// What has come of a stream and is not told yet: what came together is told together.
struct Batch<'a> {
    events: Vec<Event>,
    /// What its messages count.
    held: usize,
    /// What is held besides, and not to be told yet.
    kept: usize,
    /// What both count.
    room: &'a mut Charge,
    teller: &'a Teller,
}

impl<'a> Batch<'a> {
    fn new(room: &'a mut Charge, teller: &'a Teller) -> Self {
        Self {
            events: Vec::new(),
            held: 0,
            kept: 0,
            room,
            teller,
        }
    }

    async fn tell(&mut self) {
        if self.events.is_empty() {
            return;
        }
        self.teller.tell(std::mem::take(&mut self.events)).await;
        self.held = 0;
        // Less than before: there is room.
        let _ = self.room.set(self.kept);
    }

    /// Counts `kept` bytes beside the messages. Where there is no room for both, these are told at once; false where there is
    /// none for `kept` alone.
    async fn keep(&mut self, kept: usize) -> bool {
        if !self.room.fits(kept + self.held) {
            self.tell().await;
        }
        self.kept = kept;
        self.room.set(kept + self.held)
    }

    /// Counts `kept` bytes beside the messages: no more than they were together with those.
    fn keep_less(&mut self, kept: usize) {
        self.kept = kept;
        // Where a message's own cost has no room, it is charged with what comes next.
        if self.room.fits(kept + self.held) {
            let _ = self.room.set(kept + self.held);
        }
    }

    fn push(&mut self, message: Bytes) {
        self.held += message.len() + PIECE;
        self.events.push(Event::Message(message));
    }

    /// What is told last, after what is told already.
    fn end(mut self, events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        self.events.extend(events);
        self.events
    }
}

/// The next frame. Where that is not here yet, the batch is told first.
async fn next(
    answer: &mut Answer,
    batch: &mut Batch<'_>,
) -> Option<Result<Frame<Bytes>, CallError>> {
    let mut frame = pin!(answer.frame());
    let ready = poll_fn(|cx| Poll::Ready(frame.as_mut().poll(cx))).await;
    match ready {
        Poll::Ready(frame) if batch.held < MAX_BATCH => frame,
        Poll::Ready(frame) => {
            batch.tell().await;
            frame
        }
        Poll::Pending => {
            batch.tell().await;
            frame.await
        }
    }
}

/// Reads an answer, for as long as there is `room` for what is not told yet; what is left to be told. Only the last
/// message of a single call counts.
async fn receive(
    mut answer: Answer,
    kind: Kind,
    limit: usize,
    room: &mut Charge,
    last: &mut Option<Bytes>,
    teller: &Teller,
) -> Vec<Event> {
    let ends = answer.is_end();
    let good = answer.head.status == StatusCode::OK;
    let details = answer.details.take();
    let details = details.as_deref().unwrap_or(VIA_UPSTREAM);
    let empty = ResponseHead::new(answer.head.status);
    let head = std::mem::replace(&mut answer.head, empty);
    let mut batch = Batch::new(room, teller);
    if ends && (good || grpc::status(&head.headers).is_some()) {
        batch.events.push(Event::Initial(Metadata::none()));
        return batch.end(trailers(Metadata::Head(head), details));
    }
    if !good {
        batch.events.push(Event::Initial(Metadata::none()));
        return batch.end(error(grpc::status_of(head.status), details));
    }
    if kind == Kind::Stream {
        batch.events.push(Event::Initial(Metadata::Head(head)));
    }
    let mut deframer = Deframer::new(limit);
    loop {
        let frame = match next(&mut answer, &mut batch).await {
            Some(Ok(frame)) => frame,
            // It ended without a status.
            None => return batch.end(error(grpc::UNKNOWN, VIA_UPSTREAM)),
            Some(Err(failure)) => return batch.end(error(grpc::INTERNAL, broken(&failure))),
        };
        match frame.into_data() {
            Ok(data) => {
                let waiting = deframer.held() + last.as_ref().map_or(0, Bytes::len);
                if !batch.keep(waiting + data.len()).await {
                    return batch.end(error(grpc::RESOURCE_EXHAUSTED, VIA_UPSTREAM));
                }
                let before = batch.events.len();
                deframer.push(&data);
                loop {
                    match deframer.message() {
                        Ok(None) => break,
                        Ok(Some(message)) if kind == Kind::Call => *last = Some(message),
                        Ok(Some(message)) => batch.push(message),
                        Err(failure) => {
                            // As in Envoy, what came in one piece with it is not told either.
                            batch.events.truncate(before);
                            let status = match failure {
                                FrameError::Flags => grpc::INTERNAL,
                                FrameError::TooLarge => grpc::RESOURCE_EXHAUSTED,
                            };
                            return batch.end(error(status, VIA_UPSTREAM));
                        }
                    }
                }
                let waiting = deframer.held() + last.as_ref().map_or(0, Bytes::len);
                batch.keep_less(waiting);
            }
            Err(frame) => {
                let fields = frame.into_trailers().unwrap_or_default();
                return batch.end(trailers(Metadata::Fields(fields), VIA_UPSTREAM));
            }
        }
    }
}

/// What is told of the end that an upstream gave.
fn trailers(metadata: Metadata, details: &str) -> [Event; 2] {
    let fields = match &metadata {
        Metadata::Head(head) => &head.headers,
        Metadata::Fields(fields) => fields,
    };
    let status = grpc::status(fields).unwrap_or(grpc::UNKNOWN);
    let message = message(fields, details);
    [Event::Trailing(metadata), Event::Close(status, message)]
}

/// What is told of an answer without an end.
fn error(status: u32, details: &str) -> [Event; 2] {
    let close = Event::Close(status, details.to_owned());
    [Event::Trailing(Metadata::none()), close]
}

/// Whether a reply of ours is one to a gRPC request: a plugin may have made the request another one.
pub(super) fn is_grpc(head: &Result<RequestHead, LocalReply>) -> bool {
    head.as_ref().map_or(true, RequestHead::is_grpc)
}

/// What is told of a reply of ours.
pub(super) fn replied(reply: LocalReply, kind: Kind, is_grpc: bool) -> Vec<Event> {
    if !is_grpc {
        let status = grpc::status_of(reply.status);
        let mut events = vec![Event::Initial(Metadata::none())];
        events.extend(error(status, &reply.details.replace(' ', "_")));
        return told(kind, events, None);
    }
    let mut head = ResponseHead::new(reply.status);
    head.headers = reply.headers;
    grpc::reply(&mut head, reply.status, &reply.body, reply.grpc_status);
    let status = grpc::status(&head.headers).unwrap_or(grpc::UNKNOWN);
    let message = message(&head.headers, &reply.details.replace(' ', "_"));
    let events = vec![
        Event::Initial(Metadata::none()),
        Event::Trailing(Metadata::Head(head)),
        Event::Close(status, message),
    ];
    told(kind, events, None)
}

/// A status's message as Envoy gives it: as it was sent, followed by what Envoy knows of the response.
fn message(fields: &HeaderMap, details: &str) -> String {
    match fields.get(grpc::MESSAGE).map(HeaderValue::as_bytes) {
        None | Some(b"") => details.to_owned(),
        Some(message) => format!("{}{{{details}}}", String::from_utf8_lossy(message)),
    }
}

fn broken(failure: &CallError) -> &'static str {
    match failure {
        CallError::Timeout => "response_timeout",
        CallError::Reset(BodyError::StreamReset) => {
            "upstream_reset_after_response_started{remote_reset}"
        }
        CallError::Reset(BodyError::Malformed(_)) => {
            "upstream_reset_after_response_started{protocol_error}"
        }
        CallError::Reset(BodyError::Reset | BodyError::Aborted(_))
        | CallError::UnknownCluster(_)
        | CallError::TooLarge(_)
        | CallError::NoRoom => "upstream_reset_after_response_started{connection_termination}",
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::base::task::OwnedTask;
    use crate::wasm::payload::Payloads;

    #[tokio::test]
    async fn a_batch_counts_until_it_is_told() {
        let payloads = Payloads::new(1000);
        let mut room = payloads.charge(0).expect("nothing is asked for");
        let (mailbox, mut inbox) = unbounded_channel();
        let teller = Teller { token: 1, mailbox };
        let _guest = OwnedTask::spawn(
            "guest",
            async move { while inbox.recv().await.is_some() {} },
        );
        let mut batch = Batch::new(&mut room, &teller);
        assert!(batch.keep(300).await);
        batch.push(Bytes::from_static(&[0; 300]));
        // The messages' own cost, too: nothing of them waits for the next frame.
        assert!(batch.keep(50).await);
        let left = 1000 - 50 - 300 - PIECE;
        assert!(payloads.charge(left + 1).is_none());
        assert!(payloads.charge(left).is_some());
        batch.tell().await;
        assert!(payloads.charge(950).is_some());
        // What has no room beside it is told before.
        batch.push(Bytes::from_static(&[0; 700]));
        assert!(batch.keep(400).await);
        assert!(batch.events.is_empty());
        assert!(!batch.keep(1001).await);
    }
}
