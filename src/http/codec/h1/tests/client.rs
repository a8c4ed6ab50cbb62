//! The upstream side against raw upstreams, good and bad.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::super::super::client::{Http1, SendError};
use super::super::super::testing::{listen, talk, value};
use super::super::super::{ConnectionMeter, Ending, Io};
use crate::base::task;
use crate::config::cluster::Http1Options;
use crate::http::{Body, BodyError, Interim, RequestHead, ResponseHead};

type Answer = Result<(ResponseHead, Body), SendError>;

/// A connection, the upstream's end of it, and its meter.
fn connection(options: &Http1Options) -> (Http1, DuplexStream, Arc<ConnectionMeter>) {
    let (io, upstream) = tokio::io::duplex(64 << 10);
    let meter = Arc::<ConnectionMeter>::default();
    let client = Http1::new(Io::from(io), options, Arc::clone(&meter));
    (client, upstream, meter)
}

fn head(method: Method) -> RequestHead {
    RequestHead::new(method, "a", "/")
}

/// What became of one exchange.
struct Outcome {
    /// `<status> <headers> <body>`, or the error.
    said: String,
    reclaimed: Option<Http1>,
    ending: Ending,
}

/// Sends a request to an upstream that answers `response`, and closes where `closes`.
async fn exchange(method: Method, response: &[u8], closes: bool) -> Outcome {
    let (client, mut upstream, meter) = connection(&Http1Options::default());
    let (reclaim, mut reclaimed) = tokio::sync::mpsc::unbounded_channel();
    let sent = task::spawn("send", async move {
        let give_back = move |client| {
            let _ = reclaim.send(client);
        };
        let answer: Answer = client.send(head(method), Body::empty(), give_back).await;
        match answer {
            Ok((head, body)) => {
                let mut said = head.status.as_u16().to_string();
                for (name, value) in &head.headers {
                    said += &format!(" {name}={}", value.to_str().expect("text"));
                }
                match body.collect().await {
                    Ok(body) => said + &format!(" <{}>", String::from_utf8_lossy(&body.to_bytes())),
                    Err(error) => said + &format!(" !{error}"),
                }
            }
            Err(error) => format!("{error:?}"),
        }
    });
    listen(&mut upstream).await;
    upstream.write_all(response).await.expect("written");
    if closes {
        upstream.shutdown().await.expect("shut down");
    }
    let said = tokio::time::timeout(Duration::from_secs(1), sent).await;
    Outcome {
        said: said.map_or_else(|_| "waits".to_owned(), |said| said.expect("no panic")),
        reclaimed: reclaimed.try_recv().ok(),
        ending: meter.ending(),
    }
}

#[tokio::test(start_paused = true)]
async fn responses() {
    let many: String = (0..100).map(|index| format!("x-{index}: 1\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{many}\r\nok");
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(82_000));
    let protocol = |details: &str| format!("Protocol(\"{details}\")");
    let codec = protocol("http1.codec_error");
    let broken = "!malformed body: http1.codec_error";
    // Response, whether the upstream closes behind it, what is made of it, whether the connection comes back.
    let rows: Vec<(&str, &[u8], bool, String, bool)> = vec![
        ("length", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "200 content-length=2 <ok>".into(), true),
        ("no reason", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", false, "200 content-length=2 <ok>".into(), true),
        ("bare LF", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", false, "200 content-length=2 <ok>".into(), true),
        ("fold", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n", false, "200 x=a b content-length=0 <>".into(), true),
        ("chunked", b"HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n", false, "200 transfer-encoding=CHUNKED <ok>".into(), true),
        ("empty chunked", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false, "200 transfer-encoding=chunked <>".into(), true),
        ("to the end", b"HTTP/1.1 200 OK\r\n\r\nhello", true, "200 <hello>".into(), false),
        ("1.0 to the end", b"HTTP/1.0 200 OK\r\n\r\nold", true, "200 <old>".into(), false),
        ("1.0 with length", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "200 content-length=2 <ok>".into(), false),
        ("1.0 keep-alive", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", false, "200 connection=keep-alive content-length=2 <ok>".into(), true),
        ("close", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", false, "200 connection=close content-length=2 <ok>".into(), false),
        ("100 first", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "200 content-length=2 <ok>".into(), true),
        ("103 first", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "200 content-length=2 <ok>".into(), true),
        ("103 with length", b"HTTP/1.1 103 C\r\ncontent-length: 2\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, protocol("http1.content_length_not_allowed"), false),
        ("204", b"HTTP/1.1 204 No Content\r\n\r\n", false, "204 <>".into(), true),
        ("204, length 0", b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", false, "204 <>".into(), true),
        ("204 with body", b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", false, protocol("http1.content_length_not_allowed"), false),
        ("204 chunked", b"HTTP/1.1 204 NC\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false, protocol("http1.transfer_encoding_not_allowed"), false),
        ("304 with length", b"HTTP/1.1 304 NM\r\ncontent-length: 5\r\n\r\n", false, "304 content-length=5 <>".into(), true),
        ("surplus", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEXTRA", false, "200 content-length=2 <ok>".into(), false),
        ("closed with it", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true, "200 content-length=2 <ok>".into(), true),
        ("nothing", b"", true, "Closed { reused: false }".into(), false),
        ("part of a head", b"HTTP/1.1 200 OK\r\nx: 1\r\n", true, codec.clone(), false),
        ("garbage", b"garbage\r\n\r\n", false, codec.clone(), false),
        ("garbage without end", b"garbage", false, codec.clone(), false),
        ("leading CRLF", b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, codec.clone(), false),
        ("HTTP/2.0", b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("lower case", b"http/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("four digits (stricter)", b"HTTP/1.1 1000 OK\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("two digits", b"HTTP/1.1 99 OK\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("letters", b"HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("unasked 101", b"HTTP/1.1 101 SP\r\nupgrade: x\r\n\r\n", false, "101 upgrade=x <>".into(), true),
        ("unasked 101 with data", b"HTTP/1.1 101 SP\r\n\r\nhi", false, "101 <>".into(), false),
        ("unasked 101 with length", b"HTTP/1.1 101 SP\r\ncontent-length: 2\r\n\r\nhi", false, protocol("http1.content_length_not_allowed"), false),
        ("length twice", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", false, codec.clone(), false),
        ("length +", b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", false, codec.clone(), false),
        ("length empty", b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nok", false, codec.clone(), false),
        ("length and chunked", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false, protocol("http1.content_length_and_chunked_not_allowed"), false),
        ("gzip", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx", false, protocol("http1.invalid_transfer_encoding"), false),
        ("gzip, chunked", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false, protocol("http1.invalid_transfer_encoding"), false),
        ("NUL", b"HTTP/1.1 200 OK\r\nx: \0\r\n\r\n", false, protocol("http1.invalid_characters"), false),
        ("bare CR (stricter)", b"HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n", false, protocol("http1.invalid_characters"), false),
        ("space before colon", b"HTTP/1.1 200 OK\r\nx : 1\r\n\r\n", false, codec.clone(), false),
        ("no colon", b"HTTP/1.1 200 OK\r\nxx\r\n\r\n", false, codec.clone(), false),
        ("too many", many.as_bytes(), false, protocol("http1.too_many_headers"), false),
        ("truncated length", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", true, format!("200 content-length=9 {broken}"), false),
        ("truncated chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok", true, format!("200 transfer-encoding=chunked {broken}"), false),
        ("no last chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", true, format!("200 transfer-encoding=chunked {broken}"), false),
        ("bad chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", false, format!("200 transfer-encoding=chunked {broken}"), false),
        ("chunk too long (stricter)", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n", false, format!("200 transfer-encoding=chunked {broken}"), false),
    ];
    for (name, response, closes, said, reclaimed) in rows {
        let outcome = exchange(Method::GET, response, closes).await;
        assert_eq!(outcome.said, said, "{name}");
        assert_eq!(outcome.reclaimed.is_some(), reclaimed, "{name}");
        assert_eq!(outcome.ending == Ending::Open, reclaimed, "{name}: {:?}", outcome.ending);
    }
    let outcome = exchange_large(large.as_bytes()).await;
    assert_eq!(outcome, protocol("http1.headers_too_large"));
}

/// As [`exchange`], for a response that does not fit the pipe.
async fn exchange_large(response: &[u8]) -> String {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let sent = task::spawn("send", client.send(head(Method::GET), Body::empty(), drop));
    listen(&mut upstream).await;
    let _ = upstream.write_all(response).await;
    match sent.await.expect("no panic") {
        Ok((head, _)) => head.status.to_string(),
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn responses_to_head() {
    for response in [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".as_slice(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let outcome = exchange(Method::HEAD, response, false).await;
        assert!(outcome.said.ends_with("<>"), "{}", outcome.said);
        assert!(outcome.reclaimed.is_some());
    }
}

/// The bytes of a request.
async fn written(head: RequestHead, body: Body, options: &Http1Options) -> String {
    let (client, mut upstream, _) = connection(options);
    let sent = task::spawn("send", client.send(head, body, drop));
    let (heard, _) = listen(&mut upstream).await;
    drop(sent);
    heard
}

fn unsized_body(parts: &[&'static str]) -> Body {
    let frames: Vec<Result<_, BodyError>> = parts
        .iter()
        .map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))))
        .collect();
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test(start_paused = true)]
async fn requests() {
    let with = |method, pairs: &[(&'static str, &'static str)]| {
        let mut head = head(method);
        for (name, text) in pairs {
            head.headers.append(*name, value(text));
        }
        head
    };
    let options = Http1Options::default();
    let rows = [
        ("GET", with(Method::GET, &[("x", "1")]), Body::empty(), "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n\r\n"),
        ("GET that states 0", with(Method::GET, &[("content-length", "0")]), Body::empty(), "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        ("POST without body", with(Method::POST, &[]), Body::empty(), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        ("DELETE", with(Method::DELETE, &[]), Body::empty(), "DELETE / HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("length", with(Method::POST, &[("content-length", "2"), ("x", "1")]), Body::full("ok"), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nx: 1\r\n\r\nok"),
        ("stale length", with(Method::POST, &[("content-length", "7"), ("x", "1")]), Body::full("ok"), "POST / HTTP/1.1\r\nhost: a\r\nx: 1\r\ncontent-length: 2\r\n\r\nok"),
        ("chunked", with(Method::POST, &[("content-length", "7")]), unsized_body(&["ok", "!"]), "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n"),
        ("hop by hop", with(Method::GET, &[("connection", "x"), ("transfer-encoding", "gzip"), ("upgrade", "h2c")]), Body::empty(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("two cookies", with(Method::GET, &[("cookie", "a"), ("cookie", "b")]), Body::empty(), "GET / HTTP/1.1\r\nhost: a\r\ncookie: a\r\ncookie: b\r\n\r\n"),
    ];
    for (name, head, body, expected) in rows {
        assert_eq!(written(head, body, &options).await, expected, "{name}");
    }
    let proper = Http1Options { proper_case: true, ..options };
    let heard = written(with(Method::GET, &[("x-a_b", "1")]), Body::empty(), &proper).await;
    assert_eq!(heard, "GET / HTTP/1.1\r\nHost: a\r\nX-A_B: 1\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_connection_serves_many_exchanges() {
    let (mut client, mut upstream, meter) = connection(&Http1Options::default());
    for _ in 0..3 {
        assert!(client.is_open());
        let (reclaim, mut reclaimed) = tokio::sync::mpsc::channel(1);
        let give_back = move |client| {
            let _ = reclaim.try_send(client);
        };
        let sent = task::spawn("send", client.send(head(Method::GET), Body::empty(), give_back));
        let (heard, _) = listen(&mut upstream).await;
        assert!(heard.starts_with("GET / "));
        // In two pieces, so that the body holds the connection to its end.
        upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha").await.expect("written");
        let (_, body) = sent.await.expect("no panic").expect("an answer");
        assert!(reclaimed.try_recv().is_err());
        upstream.write_all(b"lf").await.expect("written");
        assert_eq!(body.collect().await.expect("a body").to_bytes(), "half");
        client = reclaimed.try_recv().expect("it comes back");
    }
    assert_eq!(meter.ending(), Ending::Open);
    // A peer that closes is noticed before the next use.
    drop(upstream);
    assert!(!client.is_open());
    assert_eq!(meter.ending(), Ending::Peer);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_speaks_is_not_used() {
    for (bytes, ending) in [
        (b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), Ending::Malformed),
        (b"HTTP/1.1 408 Request Timeout\r\n\r\n", Ending::Peer),
    ] {
        let (mut client, mut upstream, meter) = connection(&Http1Options::default());
        assert!(client.is_open());
        upstream.write_all(bytes).await.expect("written");
        std::future::poll_fn(|cx| client.poll_closed(cx)).await;
        assert!(!client.is_open());
        assert_eq!(meter.ending(), ending);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reused_connection_that_closes_says_so() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let (reclaim, mut reclaimed) = tokio::sync::mpsc::channel(1);
    let give_back = move |client| {
        let _ = reclaim.try_send(client);
    };
    let sent = task::spawn("send", client.send(head(Method::GET), Body::empty(), give_back));
    listen(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 204 NC\r\n\r\n").await.expect("written");
    sent.await.expect("no panic").expect("an answer");
    let client: Http1 = reclaimed.try_recv().expect("it comes back");
    let sent = task::spawn("send", client.send(head(Method::GET), Body::empty(), drop));
    listen(&mut upstream).await;
    drop(upstream);
    let error = sent.await.expect("no panic").expect_err("closed");
    assert_eq!(error, SendError::Closed { reused: true });
}

/// A body whose frames are sent by hand.
fn body_by_hand() -> (tokio::sync::mpsc::UnboundedSender<Result<Frame<Bytes>, BodyError>>, Body) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, Body::new(StreamBody::new(stream)))
}

fn frame(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

#[tokio::test(start_paused = true)]
async fn a_response_may_overtake_its_request() {
    let (client, mut upstream, meter) = connection(&Http1Options::default());
    let (sender, body) = body_by_hand();
    let sent = task::spawn("send", client.send(head(Method::POST), body, |_| panic!("not reusable")));
    let (heard, _) = listen(&mut upstream).await;
    assert!(heard.ends_with("transfer-encoding: chunked\r\n\r\n"), "{heard}");
    upstream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await.expect("written");
    let (_, mut body) = sent.await.expect("no panic").expect("an answer");
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().expect("data"), "a");
    // Nobody polls the response's body, and the request goes on.
    sender.send(frame("more")).expect("open");
    assert_eq!(listen(&mut upstream).await.0, "4\r\nmore\r\n");
    drop(sender);
    assert_eq!(listen(&mut upstream).await.0, "0\r\n\r\n");
    upstream.write_all(b"0\r\n\r\n").await.expect("written");
    assert!(body.frame().await.is_none());
    assert_eq!(meter.ending(), Ending::Spent);
    assert_eq!(listen(&mut upstream).await, (String::new(), true));
}

#[tokio::test(start_paused = true)]
async fn a_whole_response_ends_an_unfinished_request() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let (sender, body) = body_by_hand();
    let sent = task::spawn("send", client.send(head(Method::POST), body, |_| panic!("not reusable")));
    listen(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig").await.expect("written");
    let (head, body) = sent.await.expect("no panic").expect("an answer");
    assert_eq!(head.status, 413);
    assert_eq!(body.collect().await.expect("a body").to_bytes(), "big");
    assert_eq!(listen(&mut upstream).await, (String::new(), true));
    tokio::task::yield_now().await;
    assert!(sender.is_closed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_read_though_the_request_cannot_be_written() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    upstream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig").await.expect("written");
    drop(upstream);
    let body = Body::full("x".repeat(1 << 20));
    let (head, body) = client.send(head(Method::POST), body, |_| panic!("not reusable")).await.expect("an answer");
    assert_eq!(head.status, 413);
    assert_eq!(body.collect().await.expect("a body").to_bytes(), "big");
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_breaks() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let (sender, body) = body_by_hand();
    let sent = task::spawn("send", client.send(head(Method::POST), body, |_| panic!("not reusable")));
    sender.send(frame("half")).expect("open");
    sender.send(Err(BodyError::Reset)).expect("open");
    let error = sent.await.expect("no panic").expect_err("broken");
    assert_eq!(error, SendError::RequestBody(BodyError::Reset));
    let (heard, ended) = listen(&mut upstream).await;
    assert!(heard.ends_with("4\r\nhalf\r\n") && ended, "{heard}");

    // After the response's head, its body breaks.
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let (sender, body) = body_by_hand();
    let sent = task::spawn("send", client.send(head(Method::POST), body, drop));
    listen(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
    let (_, mut body) = sent.await.expect("no panic").expect("an answer");
    let read = task::spawn("read", async move { body.frame().await });
    tokio::task::yield_now().await;
    sender.send(Err(BodyError::Reset)).expect("open");
    let frame = read.await.expect("no panic").expect("an error");
    assert_eq!(frame.expect_err("broken"), BodyError::Reset);
}

#[tokio::test(start_paused = true)]
async fn the_first_interim_answer_is_offered() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let interim = Arc::<Interim>::default();
    let mut head = head(Method::POST);
    head.interim = Some(Arc::clone(&interim));
    let sent = task::spawn("send", client.send(head, Body::full("x"), drop));
    let (heard, _) = listen(&mut upstream).await;
    assert!(heard.starts_with("POST "), "{heard}");
    let taken = task::spawn("take", async move {
        std::future::poll_fn(|cx| interim.poll_take(cx)).await
    });
    tokio::task::yield_now().await;
    upstream
        .write_all(b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
        .await
        .expect("written");
    let first = taken.await.expect("no panic");
    assert_eq!((first.status.as_u16(), &first.headers["x-a"]), (100, &value("1")));
    upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
    let (head, _) = sent.await.expect("no panic").expect("an answer");
    assert_eq!(head.status.as_u16(), 204);
}

#[tokio::test(start_paused = true)]
async fn trailers() {
    let options = Http1Options { enable_trailers: true, ..Http1Options::default() };
    let (client, mut upstream, _) = connection(&options);
    let mut fields = http::HeaderMap::new();
    fields.insert("x-t", value("1"));
    let frames = [frame("ok"), Ok(Frame::trailers(fields.clone()))];
    let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    let sent = task::spawn("send", client.send(head(Method::POST), body, drop));
    let (heard, _) = listen(&mut upstream).await;
    assert!(heard.ends_with("2\r\nok\r\n0\r\nx-t: 1\r\n\r\n"), "{heard}");
    upstream
        .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\nvia: 1\r\nvia: 2\r\ngrpc-message: a\r\ngrpc-message: b\r\n\r\n")
        .await
        .expect("written");
    let (_, body) = sent.await.expect("no panic").expect("an answer");
    let body = body.collect().await.expect("a body");
    // Of those of responses Envoy knows gRPC's by name alone, and joins them.
    fields.append("via", value("1"));
    fields.append("via", value("2"));
    fields.append("grpc-message", value("a,b"));
    assert_eq!(body.trailers(), Some(&fields));
    assert_eq!(body.to_bytes(), "ok");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_holds_its_payload_back() {
    let upgrade = || {
        let mut head = head(Method::GET);
        head.upgrade = Some(value("websocket"));
        head.headers.insert("connection", value("keep-alive, Upgrade"));
        head.headers.insert("upgrade", value("websocket"));
        head
    };
    let (client, mut upstream, meter) = connection(&Http1Options::default());
    let (sender, body) = body_by_hand();
    sender.send(frame("early")).expect("open");
    let sent = task::spawn("send", client.send(upgrade(), body, |_| panic!("not reusable")));
    let (heard, _) = listen(&mut upstream).await;
    assert_eq!(heard, "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n");
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
    assert_eq!(talk(&mut upstream, agreed).await.0, "early");
    let (head, mut body) = sent.await.expect("no panic").expect("an answer");
    assert_eq!(head.status, 101);
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().expect("data"), "hi");
    drop(sender);
    assert_eq!(listen(&mut upstream).await, (String::new(), true), "half a close goes on");
    upstream.write_all(b"bye").await.expect("written");
    drop(upstream);
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().expect("data"), "bye");
    assert_eq!(body.frame().await.expect("a frame").expect_err("no end"), BodyError::Reset, "the tunnel is cut off");
    assert_eq!(meter.ending(), Ending::Peer);

    // Refused: the payload is never sent, and the connection never used again. Nothing but a 101 agrees.
    for refusal in ["content-length: 0\r\n\r\n", "\r\n"] {
        let (client, mut upstream, _) = connection(&Http1Options::default());
        let (sender, body) = body_by_hand();
        sender.send(frame("GET /smuggled HTTP/1.1\r\n\r\n")).expect("open");
        let sent = task::spawn("send", client.send(upgrade(), body, |_| panic!("not reusable")));
        listen(&mut upstream).await;
        let refusal = format!("HTTP/1.1 200 OK\r\n{refusal}");
        let (heard, _) = talk(&mut upstream, refusal.as_bytes()).await;
        assert_eq!(heard, "", "the payload is held back");
        drop(upstream);
        let (head, body) = sent.await.expect("no panic").expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(body.collect().await.expect("an end").to_bytes(), "");
    }
}

/// A filter may have changed what an upgrade asks for, or that it asks for one.
#[tokio::test(start_paused = true)]
async fn an_upgrade_is_what_its_headers_say_in_the_end() {
    let chunks = "transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    for (headers, heard) in [
        (vec![("connection", "upgrade"), ("upgrade", "other")], "connection: upgrade\r\nupgrade: other\r\n\r\n"),
        (vec![("connection", "x, UPGRADE"), ("upgrade", "a")], "connection: x, UPGRADE\r\nupgrade: a\r\n\r\n"),
        (vec![("connection", "upgrade")], chunks),
        (vec![("connection", "close"), ("upgrade", "websocket")], chunks),
        (vec![("connection", "upgrades"), ("upgrade", "websocket")], chunks),
        (vec![("upgrade", "websocket")], chunks),
    ] {
        let mut head = head(Method::GET);
        head.upgrade = Some(value("websocket"));
        head.headers.extend(headers.iter().map(|(name, of)| (HeaderName::from_static(name), value(of))));
        let wanted = format!("GET / HTTP/1.1\r\nhost: a\r\n{heard}");
        assert_eq!(written(head, unsized_body(&["hi"]), &Http1Options::default()).await, wanted, "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fragments_of_a_response() {
    let response = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n";
    for at in 0..=response.len() {
        let (client, mut upstream, _) = connection(&Http1Options::default());
        let (reclaim, mut reclaimed) = tokio::sync::mpsc::unbounded_channel();
        let sent = task::spawn("send", async move {
            let give_back = move |client: Http1| {
                let _ = reclaim.send(client);
            };
            let (_, body) = client.send(head(Method::GET), Body::empty(), give_back).await.expect("an answer");
            body.collect().await.expect("a body").to_bytes()
        });
        talk(&mut upstream, &response[..at]).await;
        talk(&mut upstream, &response[at..]).await;
        assert_eq!(sent.await.expect("no panic"), "abcde", "split at {at}");
        assert!(reclaimed.try_recv().is_ok(), "split at {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_closes() {
    let (client, mut upstream, _) = connection(&Http1Options::default());
    let sent = tokio::time::timeout(Duration::from_secs(1), client.send(head(Method::GET), Body::empty(), drop));
    assert!(sent.await.is_err());
    assert!(listen(&mut upstream).await.1);

    let (client, mut upstream, _) = connection(&Http1Options::default());
    let sent = task::spawn("send", client.send(head(Method::GET), Body::empty(), |_| panic!("not reusable")));
    talk(&mut upstream, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    drop(sent.await.expect("no panic").expect("an answer"));
    assert!(listen(&mut upstream).await.1);
}
