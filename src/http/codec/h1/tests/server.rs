//! The life of a downstream connection, and the responses on it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::AsyncWriteExt as _;

use super::super::super::server::ConnectionEnd;
use super::super::super::testing::{
    Endless, Served, describe, listen, reply, serve, serve_http1, talk, value,
};
use super::super::super::{Exchange, Reply, Reset};
use crate::base::task;
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::{Body, BodyError, ResponseHead};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A body of these frames, of unknown length.
fn frames(frames: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn answered(request: &[u8], answer: fn() -> Reply) -> (String, bool) {
    answered_with(Options::default(), request, answer).await
}

async fn answered_with(
    options: Options,
    request: &[u8],
    answer: fn() -> Reply,
) -> (String, bool) {
    let mut served = serve(CodecType::Http1, options, move |_| async move { Ok(answer()) });
    talk(&mut served.client, request).await
}

#[tokio::test(start_paused = true)]
async fn framings_of_responses() {
    const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    fn of(status: u16, length: Option<&'static str>, body: Body) -> Reply {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).expect("a status"));
        if let Some(length) = length {
            head.headers.insert("content-length", value(length));
        }
        head.headers.insert("transfer-encoding", value("gzip"));
        head.headers.insert("x", value("y"));
        Reply { head, body, close: false }
    }
    type Row = (&'static str, &'static [u8], fn() -> Reply, &'static str);
    let rows: &[Row] = &[
        ("length", GET, || of(200, None, Body::full("ok")), "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nok"),
        ("length kept in place", GET, || of(200, Some("2"), Body::full("ok")), "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\nok"),
        ("stale length", GET, || of(200, Some("7"), Body::full("ok")), "HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nok"),
        ("empty", GET, || of(404, None, Body::empty()), "HTTP/1.1 404 Not Found\r\nx: y\r\ncontent-length: 0\r\n\r\n"),
        ("chunked", GET, || of(200, None, frames(vec![data("ok"), data("more")])), "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n4\r\nmore\r\n0\r\n\r\n"),
        ("chunked for a stale length", GET, || of(200, Some("9"), frames(vec![data("ok")])), "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("chunked and empty", GET, || of(200, None, frames(vec![])), "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("empty frames", GET, || of(200, None, frames(vec![data(""), data("a"), data("")])), "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        ("204", GET, || of(204, Some("0"), Body::empty()), "HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"),
        ("204 with a body", GET, || of(204, None, Body::full("no")), "HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"),
        ("304", GET, || of(304, None, Body::empty()), "HTTP/1.1 304 Not Modified\r\nx: y\r\n\r\n"),
        ("304 with length", GET, || of(304, Some("5"), Body::empty()), "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nx: y\r\n\r\n"),
        ("HEAD", HEAD, || of(200, Some("243"), Body::empty()), "HTTP/1.1 200 OK\r\ncontent-length: 243\r\nx: y\r\n\r\n"),
        ("HEAD without length", HEAD, || of(200, None, Body::empty()), "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("HEAD with a body", HEAD, || of(200, Some("2"), Body::full("ok")), "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\n"),
        ("reason", GET, || of(203, None, Body::empty()), "HTTP/1.1 203 Non-Authoritative Information\r\nx: y\r\ncontent-length: 0\r\n\r\n"),
        ("no reason", GET, || of(598, None, Body::empty()), "HTTP/1.1 598 Unknown\r\nx: y\r\ncontent-length: 0\r\n\r\n"),
    ];
    for (name, request, answer, expected) in rows {
        let (heard, ended) = answered(request, *answer).await;
        assert_eq!(heard, *expected, "{name}");
        assert!(!ended, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_and_case_of_responses() {
    fn with_trailers() -> Reply {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-t", value("1"));
        trailers.insert("content-length", value("1"));
        let body = frames(vec![data("ok"), Ok(Frame::trailers(trailers))]);
        Reply { body, ..reply(200, "") }
    }
    let (heard, _) = answered(GET, with_trailers).await;
    assert!(heard.ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "{heard}");
    let mut options = Options::default();
    options.http1.enable_trailers = true;
    options.http1.proper_case = true;
    let (heard, _) = answered_with(options, GET, with_trailers).await;
    assert_eq!(
        heard,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_never_looks_complete() {
    let broken = || Reply {
        body: frames(vec![data("half"), Err(BodyError::Reset)]),
        ..reply(200, "")
    };
    let (heard, ended) = answered(GET, broken).await;
    assert!(heard.ends_with("4\r\nhalf\r\n"), "{heard}");
    assert!(ended);

    /// Says that it has three bytes.
    struct Lying(Option<&'static str>);
    impl http_body::Body for Lying {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            std::task::Poll::Ready(self.0.take().map(data))
        }
        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(3)
        }
    }
    let short = || Reply { body: Body::new(Lying(Some("ab"))), ..reply(200, "") };
    let (heard, ended) = answered(GET, short).await;
    assert!(heard.ends_with("content-length: 3\r\n\r\nab") && ended, "{heard}");
    let long = || Reply { body: Body::new(Lying(Some("abcd"))), ..reply(200, "") };
    let (heard, ended) = answered(GET, long).await;
    assert!(heard.ends_with("content-length: 3\r\n\r\n") && ended, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn large_bodies_go_through_whole() {
    let big = "x".repeat(300_000);
    let mut served = serve_http1(|exchange: Exchange| async move {
        let body = exchange.body.collect().await.map_err(|_| Reset::Internal)?;
        Ok(reply(200, body.to_bytes()))
    });
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: {}\r\n\r\n", big.len());
    let (mut read, mut write) = tokio::io::split(&mut served.client);
    let mut heard = vec![0; b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n".len() + big.len()];
    let sent = async {
        write.write_all(request.as_bytes()).await.expect("written");
        write.write_all(big.as_bytes()).await.expect("written");
    };
    let (_, got) = tokio::join!(sent, tokio::io::AsyncReadExt::read_exact(&mut read, &mut heard));
    got.expect("a whole answer");
    assert!(heard.ends_with(big.as_bytes()));
    assert_eq!(served.meter.received(), (request.len() + big.len()) as u64);
    assert_eq!(served.meter.sent(), heard.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn persistence() {
    let mut old = Options::default();
    old.http1.accept_http_10 = true;
    old.http1.default_host_for_http_10 = Some("def.test".into());
    let rows: &[(&str, &str, &str, bool)] = &[
        ("1.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n", false),
        ("close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", "HTTP/1.1 200 OK\r\nconnection: close\r\n", true),
        ("close in a list", "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n", "HTTP/1.1 200 OK\r\nconnection: close\r\n", true),
        ("proxy", "GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nconnection: close\r\n", true),
        ("1.0", "GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\nconnection: close\r\n", true),
        ("1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n", false),
        ("0.9", "GET /\r\n\r\n", "HTTP/1.0 200 OK\r\nconnection: close\r\n", true),
    ];
    for (name, request, head, ends) in rows {
        let mut served = serve(CodecType::Http1, old.clone(), describe);
        let (heard, ended) = talk(&mut served.client, request.as_bytes()).await;
        assert!(heard.starts_with(head), "{name}: {heard}");
        assert_eq!(ended, *ends, "{name}");
        if name.starts_with("1.0") {
            assert!(heard.contains("HTTP/1.0 [def.test]"), "{name}: {heard}");
        }
    }
    // No chunks for HTTP/1.0: the end of the connection is the end of the body.
    let unsized_body = || Reply { body: frames(vec![data("ok")]), ..reply(200, "") };
    let request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let (heard, ended) = answered_with(old.clone(), request, unsized_body).await;
    assert_eq!(heard, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nok");
    assert!(ended);
    // Whoever understands no codings may have seen another body.
    let request = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let (heard, _) = answered_with(old, request, || reply(200, "")).await;
    assert!(heard.starts_with("HTTP/1.1 501 "), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order() {
    let mut served = serve_http1(|exchange: Exchange| async move {
        let slow = exchange.head.path == "/1";
        if slow {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        describe(exchange).await
    });
    let requests: String = (1..4)
        .map(|index| format!("POST /{index} HTTP/1.1\r\nHost: a\r\ncontent-length: 1\r\n\r\n{index}"))
        .collect();
    let (heard, _) = talk(&mut served.client, requests.as_bytes()).await;
    let bodies: Vec<_> = heard.matches("] content-length=1 <").collect();
    assert_eq!(bodies.len(), 3, "{heard}");
    let order: Vec<_> = heard.match_indices("POST /").map(|(at, _)| heard.as_bytes()[at + 6]).collect();
    assert_eq!(order, b"123");
    // What follows a request that closes is not served.
    let (heard, ended) = talk(
        &mut served.client,
        b"GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /5 HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert!(heard.contains("GET /4") && !heard.contains("GET /5") && ended, "{heard}");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
}

#[tokio::test(start_paused = true)]
async fn expectations() {
    for (request, head) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\ncontent-length: 1\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: foo\r\ncontent-length: 1\r\n\r\n", ""),
    ] {
        let mut served = serve_http1(describe);
        let (heard, _) = talk(&mut served.client, request.as_bytes()).await;
        assert_eq!(heard, head);
        let (heard, ended) = talk(&mut served.client, b"x").await;
        assert!(heard.starts_with("HTTP/1.1 200 OK\r\n") && heard.ends_with(" <x>"), "{heard}");
        assert_eq!(heard.contains("expect=foo"), head.is_empty());
        assert!(!ended);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_says_to_an_expectation() {
    async fn answer(exchange: Exchange) -> Result<Reply, Reset> {
        let interim = exchange.head.interim.clone().expect("one waits");
        assert_eq!(exchange.head.headers["expect"], "100-continue");
        tokio::time::sleep(Duration::from_secs(1)).await;
        if exchange.head.path == "/no" {
            return Ok(reply(417, ""));
        }
        let mut early = ResponseHead::new(StatusCode::EARLY_HINTS);
        early.headers.insert("link", value("a"));
        early.headers.insert("content-length", value("1"));
        interim.offer(early);
        interim.offer(ResponseHead::new(StatusCode::CONTINUE));
        if exchange.head.path == "/both" {
            return Ok(reply(200, ""));
        }
        describe(exchange).await
    }
    let early = "HTTP/1.1 103 Unknown\r\nlink: a\r\n\r\n";
    for (path, first, last) in [
        ("/", early, "HTTP/1.1 200 OK\r\n"),
        ("/both", "HTTP/1.1 103 Unknown\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        ("/no", "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n", ""),
    ] {
        let options = Options { proxy_100_continue: true, ..Options::default() };
        let mut served = serve(CodecType::Http1, options, answer);
        let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\ncontent-length: 1\r\n\r\n");
        let (heard, _) = talk(&mut served.client, request.as_bytes()).await;
        assert_eq!(heard, "", "{path}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (heard, ended) = listen(&mut served.client).await;
        assert_eq!(heard, first, "{path}");
        if !last.is_empty() {
            assert!(!ended);
            let (heard, _) = talk(&mut served.client, b"x").await;
            assert!(heard.starts_with(last) && heard.ends_with(" <x>"), "{heard}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_heads() {
    let many: String = (0..100).map(|index| format!("x-{index}: 1\r\n")).collect();
    let rows = [
        ("count", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "http1.too_many_headers"),
        ("size", format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(61_440)), "http1.headers_too_large"),
        ("size without end", format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "a".repeat(61_440)), "http1.headers_too_large"),
        ("target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(61_440)), "http1.headers_too_large"),
        ("target without end", format!("GET /{}", "a".repeat(61_440)), "http1.headers_too_large"),
    ];
    for (name, request, details) in rows {
        let mut served = serve_http1(describe);
        let (heard, ended) = talk(&mut served.client, request.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{name}: {heard}");
        assert_eq!(*served.refused.lock(), [details], "{name}");
        assert!(ended, "{name}");
    }
    let fits: String = (0..99).map(|index| format!("x-{index}: 1\r\n")).collect();
    let (heard, _) = answered(format!("GET / HTTP/1.1\r\nHost: a\r\n{fits}\r\n").as_bytes(), || reply(200, "")).await;
    assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
}

/// A handler that never answers; its future's end closes the channel.
fn hanging() -> (Served, tokio::sync::mpsc::Receiver<()>) {
    let (ended, end) = tokio::sync::mpsc::channel::<()>(1);
    let served = serve_http1(move |exchange: Exchange| {
        let ended = ended.clone();
        async move {
            let (_ended, _exchange) = (ended, exchange);
            std::future::pending().await
        }
    });
    (served, end)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_drops_the_handlers_future() {
    for (name, request) in [
        ("without body", GET),
        ("within a body", b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 9\r\n\r\nx".as_slice()),
        ("having pipelined", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let (mut served, mut end) = hanging();
        let (heard, ended) = talk(&mut served.client, request).await;
        assert!(heard.is_empty() && !ended, "{name}");
        // Half is enough: Envoy gives no answer to a client that has closed its side.
        served.client.shutdown().await.expect("shut down");
        assert_eq!(listen(&mut served.client).await, (String::new(), true), "{name}");
        assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
        assert!(end.recv().await.is_none(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_within_its_request() {
    // The handler reads, in its own task or another: it sees no error, and is dropped.
    for elsewhere in [false, true] {
        let (saw, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let mut served = serve_http1(move |exchange: Exchange| {
            let saw = saw.clone();
            async move {
                let read = async move {
                    let result = exchange.body.collect().await;
                    let _ = saw.send(result.map(|_| ()));
                };
                if elsewhere {
                    crate::base::task::spawn("reader", read);
                    std::future::pending().await
                } else {
                    read.await;
                    Ok(reply(200, "unheard"))
                }
            }
        });
        let request = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 9\r\n\r\nx";
        let (heard, ended) = talk(&mut served.client, request).await;
        assert!(heard.is_empty() && !ended);
        served.client.shutdown().await.expect("shut down");
        assert_eq!(listen(&mut served.client).await, (String::new(), true));
        assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
        let seen = seen.recv().await;
        if elsewhere {
            assert!(matches!(seen, Some(Err(BodyError::Aborted(_)))), "{seen:?}");
        } else {
            assert!(seen.is_none(), "{seen:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_within_a_response() {
    let mut served = serve_http1(|_| async {
        let body = futures_util::stream::iter([data("half")]).chain(futures_util::stream::pending());
        Ok(Reply { body: Body::new(StreamBody::new(Box::pin(body))), ..reply(200, "") })
    });
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(heard.ends_with("4\r\nhalf\r\n") && !ended, "{heard}");
    drop(served.client);
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
}

#[tokio::test(start_paused = true)]
async fn unread_request_bodies() {
    // What has come is thrown away, and the connection goes on.
    let mut served = serve_http1(|_| async { Ok(reply(200, "ok")) });
    let request = b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for _ in 0..2 {
        let (heard, ended) = talk(&mut served.client, request).await;
        assert!(heard.ends_with("ok") && !ended, "{heard}");
    }
    // What has not come is not waited for: the answer is given, and time to read it.
    let request = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 100000\r\n\r\nxxxx";
    let (heard, ended) = talk(&mut served.client, request).await;
    assert!(heard.ends_with("ok") && ended, "{heard}");
    assert!(!heard.contains("connection: close"), "as Envoy: {heard}");
    assert!(served.client.write_all(b"xxxx").await.is_ok(), "still read");
    let before = tokio::time::Instant::now();
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert!(before.elapsed() > Duration::from_millis(900));
}

#[tokio::test(start_paused = true)]
async fn a_body_outlives_its_exchange_without_harm() {
    let (kept, mut keeper) = tokio::sync::mpsc::channel(1);
    let mut served = serve_http1(move |exchange: Exchange| {
        let kept = kept.clone();
        async move {
            let _ = kept.try_send(exchange.body);
            Ok(reply(200, "ok"))
        }
    });
    let first = b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    served.client.write_all(first).await.expect("written");
    let mut body = keeper.recv().await.expect("a body");
    let (heard, ended) = talk(&mut served.client, b"").await;
    assert!(heard.ends_with("ok") && ended, "{heard}");
    let frame = body.frame().await.expect("an end");
    assert!(matches!(frame, Err(BodyError::Aborted(_))));
}

#[tokio::test(start_paused = true)]
async fn timeouts() {
    let options = || Options {
        request_headers_timeout: Some(Duration::from_secs(2)),
        idle_timeout: Some(Duration::from_secs(10)),
        ..Options::default()
    };
    let timed = async |served: Served| {
        let before = tokio::time::Instant::now();
        let end = served.task.await.expect("an end");
        (end, before.elapsed().as_secs())
    };
    // Nothing said.
    let served = serve(CodecType::Http1, options(), describe);
    assert_eq!(timed(served).await, (ConnectionEnd::Idle, 10));
    // Idle after a request.
    let mut served = serve(CodecType::Auto, options(), describe);
    for _ in 0..3 {
        let (heard, _) = talk(&mut served.client, GET).await;
        assert!(heard.starts_with("HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
    assert_eq!(timed(served).await.0, ConnectionEnd::Idle);
    // A head that does not end.
    let mut served = serve(CodecType::Http1, options(), describe);
    talk(&mut served.client, b"GET / HTTP/1.1\r\n").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (heard, ended) = listen(&mut served.client).await;
    assert!(heard.starts_with("HTTP/1.1 408 Request Timeout\r\n") && ended, "{heard}");
    assert!(heard.ends_with("\r\n\r\nrequest header timeout"), "{heard}");
    // Without a limit of its own it is an idle stream.
    let idle = Options { request_headers_timeout: None, stream_idle_timeout: Some(Duration::from_secs(4)), ..options() };
    let mut served = serve(CodecType::Http1, idle, describe);
    talk(&mut served.client, b"GET /slow HTTP/1.1\r\nho").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(talk(&mut served.client, b"s").await, (String::new(), false));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (heard, ended) = listen(&mut served.client).await;
    assert!(heard.starts_with("HTTP/1.1 408 Request Timeout\r\n") && ended, "{heard}");
    assert!(heard.ends_with("\r\n\r\nstream timeout"), "{heard}");
    // A connection that is old.
    let old = Options {
        max_connection_duration: Some(Duration::from_secs(5)),
        drain_timeout: Duration::from_secs(3),
        ..options()
    };
    let served = serve(CodecType::Http1, old.clone(), describe);
    assert_eq!(timed(served).await, (ConnectionEnd::Duration, 8), "and the drain timeout");
    let mut served = serve(CodecType::Http1, old.clone(), describe);
    let (heard, _) = talk(&mut served.client, GET).await;
    assert!(!heard.contains("connection: close\r\n"), "{heard}");
    tokio::time::sleep(Duration::from_secs(7)).await;
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\nconnection: close\r\n") && ended, "{heard}");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Duration);
    let mut served = serve(CodecType::Http1, old, |exchange| async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        describe(exchange).await
    });
    served.client.write_all(GET).await.expect("written");
    tokio::time::sleep(Duration::from_secs(9)).await;
    let (heard, ended) = listen(&mut served.client).await;
    assert!(heard.contains("connection: close\r\n") && ended, "{heard}");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Duration);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up() {
    let options = Options { stream_idle_timeout: Some(Duration::from_secs(7)), ..Options::default() };
    let mut served = serve(CodecType::Http1, options, |_| async {
        Ok(reply(200, "x".repeat(1 << 20)))
    });
    served.client.write_all(GET).await.expect("written");
    let before = tokio::time::Instant::now();
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
    assert_eq!(before.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_while_the_client_takes_nothing() {
    let options = Options { stream_idle_timeout: Some(Duration::from_secs(7)), ..Options::default() };
    let mut served = serve(CodecType::Http1, options, |_| async {
        let mut answer = reply(200, "");
        answer.body = Endless::body(Duration::from_secs(9));
        Ok(answer)
    });
    served.client.write_all(GET).await.expect("written");
    let before = tokio::time::Instant::now();
    // A body that is not over has deadlines of its own: the codec's is for what comes behind.
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert_eq!(before.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn drains() {
    // Idle: a request may be on its way, and is answered. Nothing but an answer can say that none may follow.
    let mut served = serve_http1(describe);
    talk(&mut served.client, GET).await;
    served.drain.drain();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(listen(&mut served.client).await, (String::new(), false));
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\nconnection: close\r\n") && ended, "{heard}");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Drained);
    // In flight: with the response.
    let mut served = serve_http1(|exchange| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        describe(exchange).await
    });
    talk(&mut served.client, GET).await;
    served.drain.drain();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (heard, ended) = listen(&mut served.client).await;
    assert!(heard.starts_with("HTTP/1.1 200 OK\r\nconnection: close\r\n") && ended, "{heard}");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn ends_that_the_handler_or_a_limit_wants() {
    let options = Options { max_requests_per_connection: Some(2), ..Options::default() };
    let mut served = serve(CodecType::Http1, options, describe);
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(!heard.contains("connection: close") && !ended);
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(heard.contains("connection: close\r\n") && ended, "{heard}");

    let closing = || Reply { close: true, ..reply(403, "") };
    let (heard, ended) = answered(GET, closing).await;
    assert_eq!(heard, "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert!(ended);

    let mut served = serve_http1(|_| async { Err(Reset::Internal) });
    assert_eq!(talk(&mut served.client, GET).await, (String::new(), true));
}

#[tokio::test(start_paused = true)]
async fn panics_cost_one_request() {
    let mut served = serve_http1(|_| async { panic!("on purpose") });
    let (heard, ended) = talk(&mut served.client, GET).await;
    assert!(heard.starts_with("HTTP/1.1 500 ") && ended, "{heard}");
    assert_eq!(*served.refused.lock(), ["filter_panic"]);
    let panicking = || {
        let body = futures_util::stream::once(async { panic!("on purpose") });
        Reply { body: Body::new(StreamBody::new(Box::pin(body))), ..reply(200, "") }
    };
    let (heard, ended) = answered(GET, panicking).await;
    assert!(!heard.contains("0\r\n\r\n") && ended, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn detection_waits_for_enough() {
    for at in 1..12 {
        let mut served = serve(CodecType::Auto, Options::default(), describe);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let (heard, ended) = talk(&mut served.client, &preface[..at]).await;
        assert!(heard.is_empty() && !ended);
        let (heard, ended) = talk(&mut served.client, &preface[at..]).await;
        // SETTINGS.
        assert!(heard.as_bytes()[3] == 4 && !ended, "{at}: {heard:?}");
    }
    let mut served = serve(CodecType::Auto, Options::default(), describe);
    let (heard, _) = talk(&mut served.client, b"P").await;
    assert!(heard.is_empty());
    let (heard, _) = talk(&mut served.client, b"UT / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(heard.ends_with("PUT / HTTP/1.1 [a] <>"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_becomes_a_tunnel() {
    let mut served = serve_http1(|exchange: Exchange| async move {
        assert_eq!(exchange.head.upgrade.as_ref().map(|value| value.as_bytes()), Some(b"websocket".as_slice()));
        let mut head = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
        head.headers.insert("upgrade", value("websocket"));
        head.headers.insert("connection", value("Upgrade"));
        Ok(Reply { head, body: exchange.body, close: false })
    });
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    let (heard, _) = talk(&mut served.client, request).await;
    assert_eq!(
        heard,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nearly"
    );
    let (heard, ended) = talk(&mut served.client, b"late").await;
    assert_eq!((heard.as_str(), ended), ("late", false));
    served.client.shutdown().await.expect("shut down");
    assert_eq!(listen(&mut served.client).await, (String::new(), true));

    // Refused: what follows is not a request.
    let mut served = serve_http1(|_| async { Ok(reply(403, "")) });
    let (heard, ended) = talk(&mut served.client, request).await;
    assert_eq!(heard, "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert!(ended);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_side_ends_a_tunnel() {
    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    // Another task carries what the client sends to an upstream that says nothing.
    let (upstream, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let mut served = serve_http1(move |exchange: Exchange| {
        let upstream = upstream.clone();
        async move {
            task::spawn("upload", async move {
                let _ = upstream.send(exchange.body.collect().await.map(|body| body.to_bytes()));
            });
            let body = Body::new(StreamBody::new(futures_util::stream::pending()));
            Ok(Reply { head: ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS), body, close: false })
        }
    });
    let (heard, ended) = talk(&mut served.client, UPGRADE).await;
    assert!(heard.starts_with("HTTP/1.1 101 ") && !ended, "{heard}");
    served.client.write_all(b"last words").await.expect("written");
    served.client.shutdown().await.expect("shut down");
    assert_eq!(listen(&mut served.client).await, (String::new(), true), "at once, not with the next write");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
    let sent = sent.recv().await.expect("the upload ends");
    assert_eq!(sent.expect("an end like any other"), "last words");

    // While the upgrade is not answered yet, nobody takes what was sent.
    let mut served = serve_http1(|exchange: Exchange| async move {
        let _unread = exchange.body;
        std::future::pending().await
    });
    served.client.write_all(UPGRADE).await.expect("written");
    assert_eq!(talk(&mut served.client, b"early").await, (String::new(), false));
    served.client.shutdown().await.expect("shut down");
    assert_eq!(listen(&mut served.client).await, (String::new(), true));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_waits_for_any_more_says_so() {
    let (upstream, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let mut served = serve_http1(move |exchange: Exchange| {
        let upstream = upstream.clone();
        async move {
            task::spawn("upload", async move {
                let _ = upstream.send(exchange.body.collect().await.map(|_| ()));
            });
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(reply(413, ""))
        }
    });
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
    let (heard, _) = talk(&mut served.client, request).await;
    assert!(heard.starts_with("HTTP/1.1 413 "), "{heard}");
    let sent = tokio::time::timeout(Duration::from_millis(1), sent.recv()).await;
    assert!(matches!(sent, Ok(Some(Err(BodyError::Aborted(_))))), "{sent:?}");
}

#[test]
fn a_connection_is_small() {
    let served = |options| {
        let (_, io) = tokio::io::duplex(1);
        let (_, drain) = crate::base::drain::channel();
        let handler = super::super::super::testing::Scripted {
            answer: |_: Exchange| async { Ok(reply(200, "")) },
            refused: std::sync::Arc::default(),
        };
        let future = super::super::super::server::serve(
            io.into(),
            CodecType::Http1,
            std::sync::Arc::new(options),
            handler,
            drain,
            std::sync::Arc::default(),
        );
        std::mem::size_of_val(&future)
    };
    let size = served(Options::default());
    assert!(size < 1024, "{size}");
}
