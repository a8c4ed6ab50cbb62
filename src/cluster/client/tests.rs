//! Against a raw upstream; the failures are those that a running Envoy 1.40 gave its own callers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::base::task;
use crate::cluster::stats::cluster as stat;
use crate::cluster::testing::{eds, fixed, runtime};

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

/// A cluster whose upstream answers one request with `answer` and gives back what it was sent.
async fn upstream(answer: &'static str) -> (ClusterMap, tokio::sync::oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (sender, receiver) = tokio::sync::oneshot::channel();
    drop(task::spawn("upstream", async move {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"hello") {
            stream.read_buf(&mut request).await.expect("read");
        }
        let _ = sender.send(String::from_utf8(request).expect("text"));
        stream.write_all(answer.as_bytes()).await.expect("written");
        if answer.is_empty() {
            // Never answers.
            let _ = stream.read_buf(&mut Vec::new()).await;
        }
    }));
    let cluster = Cluster::new(Arc::new(fixed("c", address)), &runtime());
    (ClusterMap::from_iter([cluster]), receiver)
}

fn request(method: Method) -> Call {
    let head = RequestHead::new(method, "some.host", "/p");
    Call::new(head, Duration::from_secs(5))
}

fn stat_value(clusters: &ClusterMap, stat: crate::telemetry::metrics::Stat) -> u64 {
    clusters.get("c").expect("c").stats().set.value(stat)
}

fn header<'a>(response: &'a CallResponse, name: &str) -> Option<&'a str> {
    response.head.headers.get(name)?.to_str().ok()
}

#[tokio::test]
async fn a_call_looks_like_envoy_s_and_gives_the_whole_answer() {
    let (clusters, sent) = upstream(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    )
    .await;
    let mut post = request(Method::POST);
    post.body = "hello".into();
    post.timeout = Duration::from_millis(700);
    let response = call(&clusters, "c", post).await.expect("a response");
    assert_eq!(response.head.status, 200);
    assert_eq!(response.body, "abcdef");
    assert_eq!(response.trailers, None);
    assert!(header(&response, "x-envoy-upstream-service-time").is_some());
    let sent = sent.await.expect("a request");
    let (head, body) = sent.split_once("\r\n\r\n").expect("a head");
    let mut lines: Vec<_> = head.split("\r\n").collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "POST /p HTTP/1.1",
            "content-length: 5",
            "host: some.host",
            "x-envoy-expected-rq-timeout-ms: 700",
            "x-envoy-internal: true",
        ]
    );
    assert_eq!(body, "hello");
    let cluster = clusters.get("c").expect("c");
    assert_eq!(cluster.stats().set.codes(), [(200, 1)]);
}

#[tokio::test]
async fn a_download_comes_in_pieces_and_has_a_limit() {
    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    let (clusters, _sent) = upstream(ANSWER).await;
    let mut pieces = Vec::new();
    let response = download(&clusters, "c", request(Method::GET), |piece| {
        pieces.push(piece)
    })
    .await
    .expect("a response");
    assert!(response.body.is_empty());
    assert_eq!(pieces.concat(), b"abcdef");

    let (clusters, _sent) = upstream(ANSWER).await;
    let mut limited = request(Method::GET);
    limited.limit = 5;
    let error = call(&clusters, "c", limited).await.expect_err("too large");
    assert_eq!(error, CallError::TooLarge(5));

    let (clusters, _sent) = upstream(ANSWER).await;
    let room = |received| received < 6;
    let result = call_within(&clusters, "c", request(Method::GET), room).await;
    assert_eq!(result.expect_err("no room"), CallError::NoRoom);
}

/// What a running Envoy gave its caller: status, body; the headers are two besides the status.
#[tokio::test]
async fn failures_are_the_responses_that_envoy_makes_of_them() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        ClusterMap::from_iter([Cluster::new(Arc::new(fixed("c", address)), &runtime())])
    };
    let empty = ClusterMap::from_iter([Cluster::new(Arc::new(eds("c")), &runtime())]);
    let rows = [
        (refused, 503, format!("{RESET}remote connection failure")),
        (empty, 503, "no healthy upstream".to_owned()),
        (
            upstream("asdf\r\n\r\n").await.0,
            502,
            format!("{RESET}protocol error"),
        ),
        (
            upstream("").await.0,
            504,
            "upstream request timeout".to_owned(),
        ),
    ];
    for (clusters, status, body) in rows {
        let mut get = request(Method::GET);
        get.timeout = Duration::from_millis(if status == 504 { 50 } else { 20_000 });
        let response = call(&clusters, "c", get).await.expect("a response");
        assert_eq!(response.head.status, status);
        assert_eq!(response.body, body);
        assert_eq!(
            header(&response, "content-length"),
            Some(&*body.len().to_string())
        );
        assert_eq!(header(&response, "content-type"), Some("text/plain"));
        assert_eq!(response.head.headers.len(), 2);
        let timeouts = stat_value(&clusters, stat::UPSTREAM_RQ_TIMEOUT);
        assert_eq!(timeouts, u64::from(status == 504));
        let codes = clusters.get("c").expect("c").stats().set.codes();
        assert_eq!(codes, [(status, 1)]);
    }
}

/// What a call that asks for a head alone, and one of gRPC, are told of a failure.
#[tokio::test]
async fn a_failure_is_told_as_the_call_can_read_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let cluster = Cluster::new(Arc::new(fixed("c", address)), &runtime());
    let clusters = ClusterMap::from_iter([cluster]);
    let text = format!("{RESET}remote connection failure");
    let length = text.len().to_string();

    let response = call(&clusters, "c", request(Method::HEAD)).await;
    let response = response.expect("a response");
    assert_eq!(response.head.status, 503);
    assert_eq!(response.body, "");
    assert_eq!(header(&response, "content-length"), Some(&*length));

    let mut grpc = request(Method::POST);
    let content_type = HeaderValue::from_static("application/grpc");
    grpc.head.headers.insert(CONTENT_TYPE, content_type);
    let response = call(&clusters, "c", grpc).await.expect("a response");
    assert_eq!(response.head.status, 200);
    assert_eq!(response.body, "");
    assert_eq!(header(&response, "grpc-status"), Some("14"));
    assert_eq!(header(&response, "grpc-message"), Some(&*text));
}

/// The header that a call asks with, and the answer where the upstream gives none.
#[tokio::test]
async fn a_call_ends_as_its_headers_ask() {
    let rows = [
        ("x-envoy-upstream-rq-timeout-ms", 504, [1, 0]),
        ("x-envoy-upstream-rq-per-try-timeout-ms", 504, [0, 1]),
        ("x-envoy-upstream-rq-timeout-alt-response", 204, [1, 0]),
    ];
    for (name, status, timeouts) in rows {
        let (clusters, sent) = upstream("").await;
        let mut get = request(Method::GET);
        get.head.headers.insert(name, 50.into());
        if status == 204 {
            get.timeout = Duration::from_millis(50);
        } else {
            get.timeout = Duration::from_secs(20);
        }
        let response = call(&clusters, "c", get).await.expect("a response");
        assert_eq!(response.head.status, status);
        assert_eq!(response.body.is_empty(), status == 204);
        assert_eq!(response.head.headers.is_empty(), status == 204);
        let stats = [stat::UPSTREAM_RQ_TIMEOUT, stat::UPSTREAM_RQ_PER_TRY_TIMEOUT];
        assert_eq!(stats.map(|stat| stat_value(&clusters, stat)), timeouts);
        // Whatever is answered, the host has failed.
        let cluster = clusters.get("c").expect("c");
        let host = cluster.pick(&PickContext::default()).expect("a host");
        let failed = [&host.stats.rq_error, &host.stats.rq_success];
        assert_eq!(failed.map(|count| count.load(Relaxed)), [1, 0]);
        let sent = sent.await.expect("a request");
        assert!(sent.contains("x-envoy-expected-rq-timeout-ms: 50\r\n"));
        assert!(!sent.contains(name));
    }
}

#[tokio::test]
async fn a_tunnel_is_not_asked_for() {
    let (clusters, _sent) = upstream("").await;
    let response = call(&clusters, "c", request(Method::CONNECT)).await;
    let response = response.expect("a response");
    assert_eq!(response.head.status, 503);
    assert_eq!(response.body, "missing required header: :protocol");
}

/// A tunnel of a client has no path.
#[tokio::test]
async fn a_tunnel_goes_through() {
    let (clusters, sent) = upstream("HTTP/1.1 200 OK\r\n\r\n").await;
    let cluster = clusters.get("c").expect("c");
    let host = cluster.pick(&PickContext::default()).expect("a host");
    let head = RequestHead::new(Method::CONNECT, "some.host:443", "");
    let response = cluster.send(
        &host,
        head,
        Body::empty(),
        crate::cluster::SendOptions::default(),
    );
    assert_eq!(response.await.expect("answered").head.status, 200);
    let sent = sent.await.expect("a request");
    assert!(
        sent.starts_with("CONNECT some.host:443 HTTP/1.1\r\n"),
        "{sent}"
    );
}

#[tokio::test]
async fn what_has_no_response_is_an_error() {
    let (clusters, _sent) = upstream("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    let error = call(&clusters, "x", request(Method::GET)).await;
    assert_eq!(
        error.expect_err("unknown"),
        CallError::UnknownCluster("x".into())
    );
    let error = call(&clusters, "c", request(Method::GET)).await;
    assert!(matches!(error.expect_err("truncated"), CallError::Reset(_)));
}
