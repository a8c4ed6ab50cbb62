//! Both sides of HTTP/2, against each other and against hyper.

mod pressure;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::super::client::{Http2, SendError};
use super::super::server::ConnectionEnd;
use super::super::testing::{Endless, Served, describe, listen, reply, serve, talk, value};
use super::super::{ConnectionMeter, Exchange, Io, Reply, Reset};
use crate::config::cluster::Http2Options;
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::{Body, BodyError, RequestHead};

/// A served connection and our client on it.
async fn connected<F, A>(codec: CodecType, options: Options, answer: F) -> (Http2, Served)
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    let mut served = serve(codec, options, answer);
    let (spare, _) = tokio::io::duplex(1);
    let client = std::mem::replace(&mut served.client, spare);
    (client_on(client).await, served)
}

async fn client_on(io: DuplexStream) -> Http2 {
    let meter = Arc::<ConnectionMeter>::default();
    Http2::handshake(Io::from(io), &Http2Options::default(), meter)
        .await
        .expect("a connection")
}

async fn text(body: Body) -> String {
    let bytes = body.collect().await.expect("a body").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[tokio::test(start_paused = true)]
async fn a_request_and_its_answer() {
    for codec in [CodecType::Http2, CodecType::Auto] {
        let (client, served) = connected(codec, Options::default(), describe).await;
        let mut head = RequestHead::new(Method::POST, "a.test", "/e?q");
        head.headers.insert("x-a", value("1"));
        head.headers.insert("connection", value("x-a"));
        let (head, body) = client
            .send(head, Body::full("hello"))
            .await
            .expect("an answer");
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(
            text(body).await,
            "POST /e?q HTTP/2.0 [a.test] x-a=1 content-length=5 <hello>"
        );
        assert_eq!(client.active(), 0);
        assert!(served.meter.received() > 0 && served.meter.sent() > 0);
        drop(client);
        assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Remote);
    }
}

#[tokio::test(start_paused = true)]
async fn cookies_and_known_headers_are_joined() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), describe).await;
    let mut head = RequestHead::new(Method::GET, "a", "/");
    for (name, text) in [
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("accept", "x"),
        ("accept", "y"),
        ("x-u", "1"),
        ("x-u", "2"),
    ] {
        head.headers.append(name, value(text));
    }
    let (_, body) = client.send(head, Body::empty()).await.expect("an answer");
    let said = text(body).await;
    assert!(said.contains(" cookie=a=1; b=2 "), "{said}");
    assert!(said.contains(" accept=x,y "), "{said}");
    assert!(said.contains(" x-u=1 x-u=2 "), "{said}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_cookie_is_none_and_other_expectations_pass() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), describe).await;
    for (name, sent, seen) in [
        ("cookie", &[""][..], false),
        ("cookie", &["", ""], false),
        ("cookie", &["", "a=1"], true),
        ("expect", &["100-continue"], false),
        ("expect", &["other"], true),
    ] {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        for text in sent {
            head.headers.append(name, value(text));
        }
        let (_, body) = client.send(head, Body::empty()).await.expect("an answer");
        let said = text(body).await;
        assert_eq!(said.contains(&format!(" {name}=")), seen, "{said}");
        assert!(!said.contains("; "), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_body_is_not_announced() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), describe).await;
    for (method, body) in [
        (Method::POST, Body::empty()),
        (Method::OPTIONS, Body::empty()),
    ] {
        let head = RequestHead::new(method, "a", "/");
        let (_, body) = client.send(head, body).await.expect("an answer");
        let said = text(body).await;
        assert!(!said.contains("content-length"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_both_ways() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), |exchange| async {
        let body = exchange.body.collect().await.map_err(|_| Reset::Internal)?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let frames = [
            Ok(Frame::data(body.to_bytes())),
            Ok(Frame::trailers(trailers)),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Ok(Reply {
            body: Body::new(body),
            ..reply(200, "")
        })
    })
    .await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", value("0"));
    let frames: [Result<_, BodyError>; 2] = [
        Ok(Frame::data(Bytes::from_static(b"x"))),
        Ok(Frame::trailers(trailers.clone())),
    ];
    let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    let head = RequestHead::new(Method::POST, "a", "/");
    let (_, body) = client.send(head, body).await.expect("an answer");
    let body = body.collect().await.expect("a body");
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "x");
}

#[tokio::test(start_paused = true)]
async fn too_many_headers_reset_the_stream_alone() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), describe).await;
    let mut head = RequestHead::new(Method::GET, "a", "/");
    for index in 0..101 {
        let name = http::HeaderName::try_from(format!("x-{index}")).expect("a name");
        head.headers.insert(name, value("1"));
    }
    let refused = client.send(head, Body::empty()).await;
    assert_eq!(refused.expect_err("a reset"), SendError::Reset);
    let head = RequestHead::new(Method::GET, "a", "/");
    assert!(client.send(head, Body::empty()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handlers_reset_has_its_code() {
    for (reset, expected) in [
        (Reset::Refused, SendError::Refused),
        (Reset::Internal, SendError::Reset),
    ] {
        let (client, _served) =
            connected(CodecType::Http2, Options::default(), move |_| async move {
                Err(reset)
            })
            .await;
        let head = RequestHead::new(Method::GET, "a", "/");
        let refused = client.send(head, Body::empty()).await;
        assert_eq!(refused.expect_err("a reset"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_stream() {
    let (client, served) = connected(
        CodecType::Http2,
        Options::default(),
        |exchange| async move {
            assert_ne!(exchange.head.path, "/panic");
            describe(exchange).await
        },
    )
    .await;
    let head = RequestHead::new(Method::GET, "a", "/panic");
    let (head, _) = client.send(head, Body::empty()).await.expect("an answer");
    assert_eq!(head.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(*served.refused.lock(), ["filter_panic"]);
    let head = RequestHead::new(Method::GET, "a", "/");
    assert!(client.send(head, Body::empty()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_broken_response_body_is_a_reset() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), |_| async {
        let half = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
        let failure = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err(BodyError::Reset)
        });
        let body = Body::new(StreamBody::new(Box::pin(half.chain(failure))));
        Ok(Reply {
            body,
            ..reply(200, "")
        })
    })
    .await;
    let head = RequestHead::new(Method::GET, "a", "/");
    let (_, body) = client.send(head, Body::empty()).await.expect("an answer");
    assert_eq!(
        body.collect().await.expect_err("a reset"),
        BodyError::StreamReset
    );
    assert_eq!(client.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_drops_the_handlers_future() {
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel::<()>();
    let (client, _served) = connected(CodecType::Http2, Options::default(), move |_| {
        let ended = ended.clone();
        async move {
            let _kept = ended;
            std::future::pending().await
        }
    })
    .await;
    let head = RequestHead::new(Method::GET, "a", "/");
    let sent = tokio::time::timeout(Duration::from_secs(1), client.send(head, Body::empty()));
    assert!(sent.await.is_err());
    assert_eq!(client.active(), 0);
    // The handler's sender is dropped with its future; the closure's own stays.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(end.try_recv().is_err());
    assert_eq!(end.sender_strong_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_goaway_and_finishes() {
    let (client, served) = connected(CodecType::Http2, Options::default(), |_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(reply(200, "late"))
    })
    .await;
    let head = RequestHead::new(Method::GET, "a", "/");
    let sent = client.clone();
    let answer =
        crate::base::task::spawn(
            "request",
            async move { sent.send(head, Body::empty()).await },
        );
    tokio::time::sleep(Duration::from_millis(10)).await;
    served.drain.drain();
    client.closed().await;
    let head = RequestHead::new(Method::GET, "a", "/");
    assert_eq!(
        client.send(head, Body::empty()).await.expect_err("no more"),
        SendError::Refused
    );
    let (_, body) = answer.await.expect("a task").expect("an answer");
    assert_eq!(text(body).await, "late");
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed() {
    let options = Options {
        idle_timeout: Some(Duration::from_secs(10)),
        ..Options::default()
    };
    let (client, served) = connected(CodecType::Http2, options, |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Ok(reply(200, "late"))
    })
    .await;
    let head = RequestHead::new(Method::GET, "a", "/");
    let (_, body) = client.send(head, Body::empty()).await.expect("not idle");
    assert_eq!(text(body).await, "late");
    let before = tokio::time::Instant::now();
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Idle);
    assert_eq!(before.elapsed().as_secs(), 10);
    assert!(client.is_closed());
}

/// What a client sends first, with a `GET`.
const RAW_GET: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
    \0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a";

/// A connection whose client asks once, and never answers a PING.
async fn deaf(options: Options, took: u64) -> Served {
    let mut served = serve(CodecType::Http2, options, move |_| async move {
        tokio::time::sleep(Duration::from_secs(took)).await;
        Ok(reply(200, "late"))
    });
    served.client.write_all(RAW_GET).await.expect("written");
    served
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_not_waited_for() {
    let begin = tokio::time::Instant::now();
    let idle = || Options {
        idle_timeout: Some(Duration::from_secs(10)),
        drain_timeout: Duration::from_secs(4),
        ..Options::default()
    };
    let served = deaf(idle(), 0).await;
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Idle);
    assert_eq!(begin.elapsed().as_secs(), 14);

    // A stream is waited for.
    let begin = tokio::time::Instant::now();
    let aged = Options {
        max_connection_duration: Some(Duration::from_secs(10)),
        drain_timeout: Duration::from_secs(4),
        ..Options::default()
    };
    let mut served = deaf(aged, 30).await;
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Duration);
    assert_eq!(begin.elapsed().as_secs(), 34);
    assert!(listen(&mut served.client).await.0.contains("late"));

    // So is a peer that shows signs of life: it may be behind with reading, the PING not yet met.
    let mut served = deaf(idle(), 0).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let update = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";
        served.client.write_all(update).await.expect("not closed");
    }
    let begin = tokio::time::Instant::now();
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Idle);
    assert!(
        (4..=8).contains(&begin.elapsed().as_secs()),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_path_begins_with_a_slash() {
    for (path, served) in [("*", false), ("?q", false), ("/?q", true)] {
        let mut connection = serve(CodecType::Http2, Options::default(), describe);
        let length = u8::try_from(path.len()).expect("short");
        let mut request = RAW_GET[..RAW_GET.len() - 6].to_vec();
        request.extend([b'\x82', b'\x86', b'\x04', length]);
        request.extend(path.as_bytes());
        request.extend(b"\x41\x01a");
        let frame = RAW_GET.len() - 15;
        request[frame + 2] = 7 + length;
        let (heard, ended) = talk(&mut connection.client, &request).await;
        assert!(!ended);
        assert_eq!(heard.contains("GET /?q"), served, "{path}: {heard:?}");
        let reset = "\0\0\x04\x03\0\0\0\0\x01\0\0\0\x01";
        assert_eq!(heard.contains(reset), !served, "{path}: {heard:?}");
    }
    // OPTIONS may ask of the server as a whole.
    let mut connection = serve(CodecType::Http2, Options::default(), describe);
    let mut request = RAW_GET[..RAW_GET.len() - 6].to_vec();
    request.extend(b"\x02\x07OPTIONS\x86\x04\x01*\x41\x01a");
    let frame = RAW_GET.len() - 15;
    request[frame + 2] = 16;
    let (heard, _) = talk(&mut connection.client, &request).await;
    assert!(heard.contains("OPTIONS * "), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_requests_ends_the_connection() {
    let options = Options {
        max_requests_per_connection: Some(1),
        ..Options::default()
    };
    let (client, served) = connected(CodecType::Http2, options, describe).await;
    let head = RequestHead::new(Method::GET, "a", "/");
    assert!(client.send(head, Body::empty()).await.is_ok());
    client.closed().await;
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_within_its_request() {
    let (saw, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (client, _served) = connected(
        CodecType::Http2,
        Options::default(),
        move |exchange: Exchange| {
            let saw = saw.clone();
            async move {
                let result = exchange.body.collect().await;
                let _ = saw.send(result.map(|_| ()));
                Ok(reply(200, ""))
            }
        },
    )
    .await;
    let body = Body::new(StreamBody::new(futures_util::stream::pending()));
    let head = RequestHead::new(Method::POST, "a", "/");
    let sent = tokio::time::timeout(Duration::from_secs(1), client.send(head, body));
    assert!(sent.await.is_err());
    tokio::time::sleep(Duration::from_millis(10)).await;
    // The handler is gone, without an error to answer.
    assert!(seen.try_recv().is_err());
    assert_eq!(seen.sender_strong_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_reset_is_not_complete_whatever_the_reason() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let (saw, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let (mut client, _body, _served) =
            granting(1 << 16, Options::default(), move |exchange: Exchange| {
                let saw = saw.clone();
                async move {
                    if exchange.head.method == Method::POST {
                        let result = exchange.body.collect().await;
                        let _ = saw.send(result.map(|_| ()));
                    }
                    Ok(reply(200, ""))
                }
            })
            .await;
        let request = http::Request::post("http://a.test/").body(());
        let request = request.expect("a request");
        let (_, mut stream) = client.send_request(request, false).expect("a stream");
        stream.send_data("half".into(), false).expect("sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
        stream.send_reset(reason);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!matches!(seen.try_recv(), Ok(Ok(()))), "{reason:?}");
    }
}

/// A client that grants each stream so much window, and what its first request was answered.
async fn granting<F, A>(
    window: u32,
    options: Options,
    answer: F,
) -> (h2::client::SendRequest<Bytes>, h2::RecvStream, Served)
where
    F: Fn(Exchange) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Reset>> + Send + 'static,
{
    let mut served = serve(CodecType::Http2, options, answer);
    let (spare, _) = tokio::io::duplex(1);
    let io = std::mem::replace(&mut served.client, spare);
    let (mut client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake(io)
        .await
        .expect("a connection");
    crate::base::task::spawn("client", async move {
        let _ = connection.await;
    });
    let body = body_of(&mut client).await;
    (client, body, served)
}

async fn body_of(client: &mut h2::client::SendRequest<Bytes>) -> h2::RecvStream {
    let request = http::Request::get("http://a.test/")
        .body(())
        .expect("a request");
    let (answer, _) = client.send_request(request, true).expect("a stream");
    answer.await.expect("an answer").into_body()
}

/// Waits for the end of a body that must not come to a good one.
async fn reset_of(body: &mut h2::RecvStream) -> Option<h2::Reason> {
    loop {
        match body.data().await.expect("no end but a reset") {
            Ok(_) => {}
            Err(error) => return error.reason(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_costs_one_stream() {
    let (client, _served) = connected(
        CodecType::Http2,
        Options::default(),
        |exchange| async move {
            if exchange.head.path != "/panic" {
                return describe(exchange).await;
            }
            let begin = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
            let panic = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                panic!("a body panics")
            });
            Ok(Reply {
                body: Body::new(StreamBody::new(Box::pin(begin.chain(panic)))),
                ..reply(200, "")
            })
        },
    )
    .await;
    let head = RequestHead::new(Method::GET, "a", "/panic");
    let (_, body) = client.send(head, Body::empty()).await.expect("an answer");
    assert_eq!(
        body.collect().await.expect_err("a reset"),
        BodyError::StreamReset
    );
    let head = RequestHead::new(Method::GET, "a", "/");
    assert!(client.send(head, Body::empty()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn many_streams_at_once_and_one_after_another() {
    let (client, _served) = connected(CodecType::Http2, Options::default(), |exchange| async {
        let wait = exchange.head.path.len() as u64 % 7;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        describe(exchange).await
    })
    .await;
    for round in 0..5 {
        let asked = (0..50).map(|number| {
            let client = client.clone();
            async move {
                let path = format!("/{round}/{}", "x".repeat(number));
                let head = RequestHead::new(Method::POST, "a", &path);
                let body = Body::full(path.clone().into_bytes());
                let (_, body) = client.send(head, body).await.expect("an answer");
                let said = text(body).await;
                assert!(said.contains(&format!("POST {path} HTTP/2.0")), "{said}");
                assert!(said.contains(&format!("<{path}>")), "{said}");
            }
        });
        futures_util::future::join_all(asked).await;
    }
}

fn asking(interval: u64, timeout: u64) -> Options {
    let mut options = Options::default();
    options.http2.keepalive = Some((Duration::from_secs(interval), Duration::from_secs(timeout)));
    options
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_given_up() {
    let begin = tokio::time::Instant::now();
    let mut served = deaf(asking(10, 3), 5).await;
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert_eq!(begin.elapsed().as_secs(), 13);
    assert_eq!(served.meter.closed(), Some("http2_ping_timeout"));
    // The answer, the PING and a GOAWAY.
    let (heard, ended) = listen(&mut served.client).await;
    assert!(ended);
    assert!(heard.contains("late"), "{heard:?}");
    assert!(heard.contains("\0\0\x08\x06\0\0\0\0\0"), "{heard:?}");
    assert!(heard.contains("\x07\0\0\0\0\0"), "{heard:?}");

    // Whoever is heard of is not asked.
    let begin = tokio::time::Instant::now();
    let mut served = deaf(asking(10, 3), 0).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let update = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";
        served.client.write_all(update).await.expect("not closed");
    }
    assert_eq!(served.task.await.expect("an end"), ConnectionEnd::Local);
    assert_eq!(begin.elapsed().as_secs(), 63);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_stays() {
    let (client, served) = connected(CodecType::Http2, asking(10, 3), describe).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let head = RequestHead::new(Method::GET, "a", "/");
    assert!(client.send(head, Body::empty()).await.is_ok());
    assert!(!served.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_connect_has_no_content() {
    for (length, expected) in [("0", Ok(200)), ("5", Err(h2::Reason::INTERNAL_ERROR))] {
        let (mut client, _, _served) =
            granting(65_535, Options::default(), move |exchange| async move {
                let mut answer = reply(200, "");
                if exchange.head.method == Method::CONNECT {
                    answer.head.headers.insert("content-length", value(length));
                    answer.body = Body::full("x".repeat(length.parse().expect("a number")));
                }
                Ok(answer)
            })
            .await;
        let request = http::Request::builder()
            .method(Method::CONNECT)
            .uri("a.test:1")
            .body(())
            .expect("a request");
        let (answer, _body) = client.send_request(request, false).expect("a stream");
        let got = match answer.await {
            Ok(answer) => {
                assert!(!answer.headers().contains_key("content-length"));
                let mut body = answer.into_body();
                assert!(
                    body.data()
                        .await
                        .is_none_or(|data| data.is_ok_and(|data| data.is_empty()))
                );
                Ok(200)
            }
            Err(error) => Err(error.reason().expect("a reset")),
        };
        assert_eq!(got, expected);
    }
}
