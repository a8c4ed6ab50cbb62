//! The streams of a downstream connection: each is asked of the handler, and answered, within the connection's task.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, header};
use http_body::Body as _;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::super::{Exchange, Handler, Malformed, Reply, Reset};
use super::body::IncomingBody;
use super::convert;
use super::resets::Resets;
use super::sending::{Chunk, Sending};
use super::tails::Tails;
use super::wakes::{StreamWake, Wakes};
use crate::config::http_connection_manager::Options;
use crate::http::order::take_out;
use crate::http::{Body, Lend as _, ReplyReason};

/// The streams of a connection, by place.
pub(super) struct Streams<H: Handler> {
    connection: Connection<H>,
    places: Vec<Place<H>>,
    free: Vec<usize>,
    wakes: Arc<Wakes>,
    active: usize,
    begun: u32,
    /// The places of those that have not been polled yet.
    fresh: Vec<usize>,
    /// When the last one ended.
    idle_since: Instant,
    resets: Resets,
}

/// What a stream asks of its connection.
struct Connection<H> {
    handler: H,
    options: Arc<Options>,
    tails: Arc<Tails>,
    /// A reply asked for the end of the connection.
    close: bool,
}

struct Place<H: Handler> {
    wake: Arc<StreamWake>,
    waker: Waker,
    stream: Option<Stream<H>>,
}

/// The handler's future.
type Answer<H> = Pin<Box<dyn Future<Output = Result<Reply<<H as Handler>::Head>, Reset>> + Send>>;

enum Stream<H: Handler> {
    /// The handler has not answered.
    Waiting {
        answer: Answer<H>,
        asked: Asked,
    },
    Sending(Box<Sending>),
    Over {
        /// It was told something.
        answered: bool,
    },
}

/// What an answer needs of its request.
struct Asked {
    respond: SendResponse<Chunk>,
    begun: Instant,
    head_request: bool,
    /// The stream of a CONNECT, which nobody reads.
    connect: Option<RecvStream>,
}

impl<H: Handler> Streams<H> {
    pub(super) fn new(
        handler: H,
        options: Arc<Options>,
        tails: Arc<Tails>,
        wakes: Arc<Wakes>,
    ) -> Self {
        Self {
            connection: Connection {
                handler,
                options,
                tails,
                close: false,
            },
            places: Vec::new(),
            free: Vec::new(),
            wakes,
            active: 0,
            begun: 0,
            fresh: Vec::new(),
            idle_since: Instant::now(),
            resets: Resets::default(),
        }
    }

    /// How many there are.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// When the last one ended.
    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    /// How many have begun.
    pub(super) fn begun(&self) -> u32 {
        self.begun
    }

    /// True where the client resets so many that it is to be given up.
    pub(super) fn too_many_resets(&self) -> bool {
        self.resets.too_many()
    }

    /// True where the connection is to end with its streams.
    pub(super) fn close(&self) -> bool {
        self.connection.close
    }

    /// Begins a stream. It goes on with [`Streams::poll_fresh`].
    pub(super) fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Chunk>) {
        self.begun = self.begun.wrapping_add(1);
        let begun = Instant::now();
        let limit = self.connection.options.max_requests_per_connection;
        if limit.is_some_and(|limit| self.begun >= limit) {
            self.connection.close = true;
        }
        let (mut parts, incoming) = request.into_parts();
        let head_request = parts.method == Method::HEAD;
        let connect = parts.method == Method::CONNECT;
        let length = content_length(&parts.headers);
        if connect {
            // It has none (RFC 9110 section 9.3.6), and none is passed on for it.
            take_out(&mut parts.headers, &header::CONTENT_LENGTH);
        }
        let head = match convert::request_head(parts, &self.connection.options) {
            Ok(head) => head,
            Err(refusal) => {
                let reset = reason(refusal.reset);
                let handler = &self.connection.handler;
                let _ = catch_unwind(AssertUnwindSafe(|| handler.refused(refusal)));
                respond.send_reset(reset);
                self.resets.ended(false, begun);
                return;
            }
        };
        let (body, connect) = if connect {
            (Body::empty(), Some(incoming))
        } else if incoming.is_end_stream() {
            (Body::empty(), None)
        } else {
            (Body::http2(IncomingBody::request(incoming, length)), None)
        };
        let asked = Asked {
            respond,
            begun,
            head_request,
            connect,
        };
        let handler = &self.connection.handler;
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let answer: Answer<H> = Box::pin(handler.request(Exchange { head, body }));
            answer
        }));
        let stream = match answer {
            Ok(answer) => Stream::Waiting { answer, asked },
            Err(_panic) => {
                let answered = catch_unwind(AssertUnwindSafe(|| {
                    let reply = self.connection.panicked();
                    self.connection.answered(Ok(reply), asked)
                }));
                answered.unwrap_or(Stream::Over { answered: true })
            }
        };
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let wake = StreamWake::new(place, &self.wakes);
            self.places.push(Place {
                waker: Waker::from(Arc::clone(&wake)),
                wake,
                stream: None,
            });
            place
        });
        if let Some(Place { stream: room, .. }) = self.places.get_mut(place) {
            *room = Some(stream);
        }
        self.active += 1;
        self.fresh.push(place);
    }

    /// Goes on with the streams that have begun; false where there are none. To be called when all that had come was read:
    /// a stream then finds what came with its head, and is not answered without it.
    pub(super) fn poll_fresh(&mut self) -> bool {
        let mut fresh = std::mem::take(&mut self.fresh);
        let any = !fresh.is_empty();
        for place in fresh.drain(..) {
            self.poll(place);
        }
        // The room is kept; nothing begins a stream meanwhile.
        self.fresh = fresh;
        any
    }

    /// Goes on with the stream of that place, where there is one.
    pub(super) fn poll(&mut self, place: usize) {
        // Nothing is done for one whose connection is about to end.
        if self.resets.too_many() {
            return;
        }
        let Some(Place {
            wake,
            waker,
            stream,
        }) = self.places.get_mut(place)
        else {
            return;
        };
        wake.clear();
        let Some(running) = stream else {
            return;
        };
        let begun = match running {
            Stream::Waiting { asked, .. } => Some(asked.begun),
            Stream::Sending(_) | Stream::Over { .. } => None,
        };
        let mut cx = Context::from_waker(waker);
        let connection = &mut self.connection;
        // What one stream may do at once ends with what is in its windows and sockets; a budget for all would stop them in the middle.
        let polled = catch_unwind(AssertUnwindSafe(|| running.poll(connection, &mut cx))).or_else(
            |_panic| {
                catch_unwind(AssertUnwindSafe(|| {
                    running.panicked(connection);
                    running.poll(connection, &mut cx)
                }))
            },
        );
        match (polled, begun) {
            (Ok(Poll::Pending), _) => return,
            (Ok(Poll::Ready(answered)), Some(begun)) => self.resets.ended(answered, begun),
            (_, begun) => self.resets.ended(true, begun.unwrap_or(self.idle_since)),
        }
        // A filter that panics as its stream ends costs that stream alone.
        let over = stream.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(over)));
        self.free.push(place);
        self.active -= 1;
        if self.active == 0 {
            self.idle_since = Instant::now();
            // An idle connection keeps little.
            self.places.truncate(KEPT);
            self.places.shrink_to(KEPT);
            self.free.retain(|place| *place < KEPT);
        }
    }
}

/// Places that an idle connection keeps.
const KEPT: usize = 16;

impl<H: Handler> Stream<H> {
    /// Ready where nothing more is to be done, with whether the client was told something.
    fn poll(&mut self, connection: &mut Connection<H>, cx: &mut Context<'_>) -> Poll<bool> {
        if let Self::Waiting { answer, asked } = self {
            match pin!(unconstrained(answer.as_mut())).poll(cx) {
                Poll::Ready(answer) => {
                    let over = Self::Over { answered: false };
                    let Self::Waiting { asked, .. } = std::mem::replace(self, over) else {
                        return Poll::Ready(false);
                    };
                    *self = connection.answered(answer, asked);
                }
                // A client that resets its stream, or is gone, is not answered.
                Poll::Pending => return asked.respond.poll_reset(cx).map(|_| false),
            }
        }
        match self {
            Self::Sending(sending) => {
                pin!(unconstrained(std::future::poll_fn(|cx| sending.poll(cx))))
                    .poll(cx)
                    .map(|()| true)
            }
            Self::Waiting { .. } => Poll::Ready(false),
            Self::Over { answered } => Poll::Ready(*answered),
        }
    }

    /// After a panic: the answer, where there is none yet.
    fn panicked(&mut self, connection: &mut Connection<H>) {
        let over = Self::Over { answered: true };
        if let Self::Waiting { asked, .. } = std::mem::replace(self, over) {
            let reply = connection.panicked();
            *self = connection.answered(Ok(reply), asked);
        }
    }
}

impl<H: Handler> Connection<H> {
    fn panicked(&self) -> Reply<H::Head> {
        let reply = ReplyReason::FilterPanic.into();
        let mut reply = self.handler.malformed(Malformed { head: None, reply });
        reply.close = false;
        reply
    }

    /// Sends the head of an answer.
    fn answered(&mut self, answer: Result<Reply<H::Head>, Reset>, asked: Asked) -> Stream<H> {
        let Asked {
            mut respond,
            begun: _,
            head_request,
            connect,
        } = asked;
        let reply = match answer {
            Ok(reply) => reply,
            Err(reset) => {
                respond.send_reset(reason(reset));
                return Stream::Over { answered: false };
            }
        };
        self.close |= reply.close;
        let head = reply.head.lend(Clone::clone);
        let (mut response, mut body) = convert::response(head, reply.body, head_request);
        let mut ends = body.is_end_stream();
        if connect.is_some() && response.status().is_success() {
            // RFC 9110 section 9.3.6: what follows is the tunnel, of which we have none.
            if !without_content(&mut response) {
                respond.send_reset(Reason::INTERNAL_ERROR);
                return Stream::Over { answered: true };
            }
            (body, ends) = (Body::empty(), false);
        }
        match respond.send_response(response, ends) {
            Ok(_) if ends => Stream::Over { answered: true },
            Ok(stream) => Stream::Sending(Box::new(Sending::new(
                stream,
                body,
                Arc::clone(&self.tails),
            ))),
            Err(_) => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                // Most likely the client has reset it before; but there was an answer.
                Stream::Over { answered: true }
            }
        }
    }
}

/// Takes a `content-length` of nothing away; `false` where it is of something.
fn without_content(response: &mut Response<()>) -> bool {
    let length = content_length(response.headers());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    length.unwrap_or_default() == 0
}

/// The library has seen that it is a number.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn reason(reset: Reset) -> Reason {
    match reset {
        Reset::NoError => Reason::NO_ERROR,
        Reset::Protocol => Reason::PROTOCOL_ERROR,
        Reset::Internal => Reason::INTERNAL_ERROR,
        Reset::Refused => Reason::REFUSED_STREAM,
        Reset::Cancel => Reason::CANCEL,
    }
}
