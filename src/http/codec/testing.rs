//! What the codec's tests share: handlers and raw peers over memory. Time is paused in these tests, so that "nothing
//! more comes" is known at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::server::{self, ConnectionEnd};
use super::{ConnectionMeter, Exchange, Handler, Io, Malformed, Reply, Reset};
use crate::base::drain::{self, DrainTrigger};
use crate::base::task;
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::{Body, BodyError, ResponseHead, TimedBody};

/// A handler made of a closure; remembers the details of what was refused.
pub(crate) struct Scripted<F> {
    pub(crate) answer: F,
    pub(crate) refused: Arc<Mutex<Vec<String>>>,
}

impl<F, A> Handler for Scripted<F>
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    type Head = ResponseHead;

    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply, Reset>> + Send + 'static {
        (self.answer)(exchange)
    }

    fn malformed(&self, malformed: Malformed) -> Reply {
        let reply = malformed.reply;
        self.refused.lock().push(reply.details.to_string());
        let mut answer = self::reply(reply.status.as_u16(), reply.body);
        answer.close = reply.close;
        answer
    }
}

/// A reply with a body of known length.
pub(crate) fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply {
        head: ResponseHead::new(StatusCode::from_u16(status).expect("a status")),
        body: Body::full(body),
        close: false,
    }
}

/// Tells what was asked: request line, authority, headers, body, trailers.
pub(crate) async fn describe(exchange: Exchange) -> Result<Reply, Reset> {
    let Exchange { head, body } = exchange;
    let mut text = format!(
        "{} {} {:?} [{}]",
        head.method,
        String::from_utf8_lossy(head.path.as_bytes()),
        head.version,
        String::from_utf8_lossy(head.authority.as_bytes()),
    );
    if !head.has_host {
        text.push_str(" nohost");
    }
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        text.push_str(&format!(" {name}={value}"));
    }
    match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().cloned();
            let data = body.to_bytes();
            text.push_str(&format!(" <{}>", String::from_utf8_lossy(&data)));
            for (name, value) in trailers.iter().flatten() {
                text.push_str(&format!(" +{name}={}", value.to_str().expect("text")));
            }
            Ok(reply(200, text))
        }
        Err(error) => {
            let mut answer = reply(400, format!("{text} {error}"));
            answer.close = true;
            Ok(answer)
        }
    }
}

/// A served connection and its raw client.
pub(crate) struct Served {
    pub(crate) client: DuplexStream,
    pub(crate) task: JoinHandle<ConnectionEnd>,
    pub(crate) refused: Arc<Mutex<Vec<String>>>,
    pub(crate) drain: DrainTrigger,
    pub(crate) meter: Arc<ConnectionMeter>,
}

/// Serves one end of a pipe with `answer`.
pub(crate) fn serve<F, A>(codec: CodecType, options: Options, answer: F) -> Served
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    let (client, io) = tokio::io::duplex(64 << 10);
    let refused = Arc::<Mutex<Vec<String>>>::default();
    let handler = Scripted {
        answer,
        refused: Arc::clone(&refused),
    };
    let (drain, watch) = drain::channel();
    let meter = Arc::<ConnectionMeter>::default();
    let served = server::serve(
        Io::from(io),
        codec,
        Arc::new(options),
        handler,
        watch,
        Arc::clone(&meter),
    );
    Served {
        client,
        task: task::spawn("server", served),
        refused,
        drain,
        meter,
    }
}

/// As [`serve`], for HTTP/1 with default options.
pub(crate) fn serve_http1<F, A>(answer: F) -> Served
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    serve(CodecType::Http1, Options::default(), answer)
}

/// Writes `bytes` and gives all that comes until nothing more does; whether the end came too.
pub(crate) async fn talk(stream: &mut DuplexStream, bytes: &[u8]) -> (String, bool) {
    // A peer that refuses early may close before it has read all.
    let _ = stream.write_all(bytes).await;
    listen(stream).await
}

/// All that comes until nothing more does; whether the end came too.
pub(crate) async fn listen(stream: &mut DuplexStream) -> (String, bool) {
    let mut heard = Vec::new();
    let mut buf = vec![0; 64 << 10];
    let ended = loop {
        match tokio::time::timeout(Duration::from_millis(10), stream.read(&mut buf)).await {
            Err(_) => break false,
            Ok(Ok(0)) | Ok(Err(_)) => break true,
            Ok(Ok(count)) => heard.extend_from_slice(&buf[..count]),
        }
    };
    (heard.iter().map(|byte| char::from(*byte)).collect(), ended)
}

/// A body without end whose frames are always there, with a deadline so long after it was made.
pub(crate) struct Endless(Pin<Box<tokio::time::Sleep>>);

impl Endless {
    pub(crate) fn body(deadline: Duration) -> Body {
        Body::timed(Self(Box::pin(tokio::time::sleep(deadline))))
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = Bytes::from_static(&[b'x'; 16 << 10]);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl TimedBody for Endless {
    fn poll_deadline(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.0
            .as_mut()
            .poll(cx)
            .map(|()| BodyError::Aborted("the deadline"))
    }
}

/// A header value.
pub(crate) fn value(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}
