//! Tests of `filter::router`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

mod filters;

use super::*;
use crate::base::task::OwnedTask;
use crate::cluster::{ClusterMap, testing as clusters};
use crate::config::Snapshot;
use crate::config::route::{DirectResponse, RedirectAction, RedirectPath};
use crate::filter::testing::{Answer, TestChain, build, chain, forward, metrics, parse};

/// Answers every request with the same bytes, then does as told.
struct Upstream {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _task: OwnedTask,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Hang,
}

async fn upstream(answer: &'static str, then: Then) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let task = OwnedTask::spawn("upstream", async move {
        let mut kept = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match socket.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            seen.lock()
                .push(String::from_utf8_lossy(&head).into_owned());
            let _ = socket.write_all(answer.as_bytes()).await;
            if then == Then::Hang {
                kept.push(socket);
            }
        }
    });
    Upstream {
        address,
        heads,
        _task: task,
    }
}

const OK: &str =
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-envoy-upstream-service-time: 77\r\n\r\nhi";

/// A chain of the router alone, with one cluster `a`.
fn router(yaml: &str, cluster: crate::config::Cluster) -> TestChain {
    let snapshot = Snapshot {
        clusters: BTreeMap::from([("a".into(), Arc::new(cluster))]),
        ..Snapshot::default()
    };
    let map = ClusterMap::next(&ClusterMap::default(), &snapshot, &clusters::runtime());
    let mut chain = chain![]
        .terminal(build::<Router>(0, yaml, &metrics()))
        .forward("a");
    chain.clusters = Arc::new(map);
    chain
}

async fn ask(upstream: &Upstream, headers: &[(&str, &str)]) -> Answer {
    router("{}", clusters::fixed("a", upstream.address))
        .get_with("/p?x=1", headers)
        .await
}

#[tokio::test]
async fn forwards_and_tells() {
    let upstream = upstream(OK, Then::Hang).await;
    let chain = router("{}", clusters::fixed("a", upstream.address));
    let answer = chain.get("/p?x=1").await;
    assert_eq!((answer.status(), answer.text()), (200, "hi"));
    assert_eq!(answer.details(), "via_upstream");
    let took = answer
        .header("x-envoy-upstream-service-time")
        .expect("told");
    assert_ne!(took, "77", "ours, not the upstream's");
    assert_eq!(answer.header("x-envoy-attempt-count"), None);
    let head = upstream.heads.lock()[0].to_ascii_lowercase();
    assert!(
        head.starts_with("get /p?x=1 http/1.1\r\nhost: a.test\r\n"),
        "{head}"
    );
    assert!(
        head.contains("x-envoy-expected-rq-timeout-ms: 15000\r\n"),
        "{head}"
    );
    assert!(!head.contains("attempt-count"), "{head}");
    let info = answer.stream.info.lock();
    assert!(info.reached_router);
    assert_eq!(info.upstream.remote, Some(upstream.address));
    assert!(info.upstream.host.is_some());
    assert!(info.upstream_first_tx.is_some() && info.upstream_last_rx.is_some());
    assert_eq!(info.bytes_sent, 2);
    let cluster = info.upstream.cluster.clone().expect("chosen");
    assert_eq!(cluster.stats().set.codes(), [(200, 1)]);
}

#[tokio::test]
async fn attempts_are_told_where_the_virtual_host_wants_it() {
    let upstream = upstream(OK, Then::Hang).await;
    let mut chain = router("{}", clusters::fixed("a", upstream.address));
    if let Some(routes) = &mut chain.routes {
        routes.virtual_hosts[0].include_request_attempt_count = true;
        routes.virtual_hosts[0].include_attempt_count_in_response = true;
    }
    let answer = chain.get("/").await;
    assert_eq!(answer.header("x-envoy-attempt-count"), Some("1"));
    assert!(upstream.heads.lock()[0].contains("x-envoy-attempt-count: 1"));
}

#[tokio::test]
async fn a_trusted_client_sets_its_timeout() {
    let upstream = upstream(OK, Then::Hang).await;
    ask(&upstream, &[("x-envoy-upstream-rq-timeout-ms", "700")]).await;
    ask(&upstream, &[("x-envoy-upstream-rq-timeout-ms", "0")]).await;
    ask(&upstream, &[("x-envoy-upstream-rq-timeout-ms", "soon")]).await;
    let heads = upstream.heads.lock().clone();
    assert!(heads[0].contains("x-envoy-expected-rq-timeout-ms: 700\r\n"));
    assert!(!heads[1].contains("expected-rq-timeout"));
    assert!(heads[2].contains("x-envoy-expected-rq-timeout-ms: 15000\r\n"));
    for head in heads {
        assert!(!head.contains("x-envoy-upstream-rq-timeout-ms"));
    }
}

#[tokio::test]
async fn what_envoy_adds_can_be_suppressed() {
    let upstream = upstream(OK, Then::Hang).await;
    let chain = router(
        "suppress_envoy_headers: true",
        clusters::fixed("a", upstream.address),
    );
    let answer = chain.get("/").await;
    assert!(!upstream.heads.lock()[0].contains("x-envoy-"));
    assert_eq!(answer.header("x-envoy-upstream-service-time"), Some("77"));
}

#[tokio::test]
async fn failures_have_envoys_replies() {
    const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";
    let closed = upstream("", Then::Close).await;
    let answer = ask(&closed, &[]).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.text(), format!("{RESET}connection termination"));
    assert_eq!(answer.flags(), "UC");
    assert_eq!(
        answer.details(),
        "upstream_reset_before_response_started{connection_termination}"
    );
    let cluster = answer.stream.info.lock().upstream.cluster.clone();
    let codes = cluster.expect("chosen").stats().set.codes();
    assert_eq!(codes, [(503, 1)]);

    let garbage = upstream("garbage\r\n\r\n", Then::Hang).await;
    let answer = ask(&garbage, &[]).await;
    assert_eq!((answer.status(), answer.flags().as_str()), (502, "UPE"));
    assert_eq!(answer.text(), format!("{RESET}protocol error"));

    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = gone.local_addr().expect("bound");
    drop(gone);
    let answer = router("{}", clusters::fixed("a", address)).get("/").await;
    assert_eq!((answer.status(), answer.flags().as_str()), (503, "UF"));
    assert_eq!(answer.text(), format!("{RESET}remote connection failure"));
    assert_eq!(
        answer.details(),
        "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
    );
    assert_eq!(
        answer
            .stream
            .info
            .lock()
            .upstream
            .transport_failure
            .as_deref(),
        Some("delayed connect error: Connection refused")
    );

    // No host at all.
    let answer = router("{}", clusters::eds("a")).get("/").await;
    assert_eq!((answer.status(), answer.flags().as_str()), (503, "UH"));
    assert_eq!(answer.text(), "no healthy upstream");
}

#[tokio::test]
async fn no_route_and_no_cluster() {
    let chain = chain![].terminal(build::<Router>(0, "{}", &metrics()));
    let answer = chain.get("/").await;
    assert_eq!((answer.status(), answer.flags().as_str()), (404, "NR"));
    assert_eq!(
        (answer.text(), answer.details().as_str()),
        ("", "route_not_found")
    );

    let mut action = forward("gone");
    if let Action::Forward(action) = &mut action {
        action.cluster_not_found_status = StatusCode::NOT_FOUND;
    }
    let answer = router("{}", clusters::eds("a"))
        .route(action)
        .get("/")
        .await;
    assert_eq!((answer.status(), answer.flags().as_str()), (404, "NC"));
    assert_eq!(answer.details(), "cluster_not_found");
}

#[tokio::test]
async fn the_routes_timeout_answers_or_resets() {
    let timeout = |upstream: &Upstream| {
        let mut action = forward("a");
        if let Action::Forward(action) = &mut action {
            action.timeout = Some(Duration::from_millis(30));
        }
        router("{}", clusters::fixed("a", upstream.address)).route(action)
    };
    let silent = upstream("", Then::Hang).await;
    let answer = timeout(&silent).get("/").await;
    assert_eq!((answer.status(), answer.flags().as_str()), (504, "UT"));
    assert_eq!(
        (answer.text(), answer.details().as_str()),
        ("upstream request timeout", "response_timeout")
    );
    let cluster = answer
        .stream
        .info
        .lock()
        .upstream
        .cluster
        .clone()
        .expect("chosen");
    let stats = &cluster.stats().set;
    assert_eq!(stats.codes(), [(504, 1)]);
    assert_eq!(
        stats.value(crate::cluster::stats::cluster::UPSTREAM_RQ_TIMEOUT),
        1
    );

    let half = upstream(
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        Then::Hang,
    )
    .await;
    let answer = timeout(&half).get("/").await;
    assert_eq!((answer.status(), answer.text()), (200, "half"));
    assert!(answer.error.is_some());
    assert_eq!(
        (answer.flags().as_str(), answer.details().as_str()),
        ("UT", "response_timeout")
    );
    let cluster = answer
        .stream
        .info
        .lock()
        .upstream
        .cluster
        .clone()
        .expect("chosen");
    assert_eq!(
        cluster.stats().set.codes(),
        [(200, 1)],
        "the code that was sent"
    );
}

#[tokio::test]
async fn a_truncated_answer_breaks() {
    let half = upstream(
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        Then::Close,
    )
    .await;
    let answer = ask(&half, &[]).await;
    assert_eq!((answer.status(), answer.text()), (200, "half"));
    assert!(answer.error.is_some());
    assert_eq!(answer.flags(), "UPE", "as a real Envoy logs it");
    assert_eq!(
        answer.details(),
        "upstream_reset_after_response_started{protocol_error}"
    );
}

#[tokio::test]
async fn an_upgrade_that_is_not_switched_ends_the_connection() {
    let fine = upstream(OK, Then::Hang).await;
    let missing = upstream(
        "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
        Then::Hang,
    )
    .await;
    for (upstream, status, text, details) in [
        (&fine, 200, "", "websocket_handshake_unsuccessful"),
        (&missing, 404, "no", "via_upstream"),
    ] {
        let chain = router("{}", clusters::fixed("a", upstream.address))
            .options(|options| options.upgrades = vec![("websocket".into(), true)]);
        let mut head = RequestHead::new(http::Method::GET, "a", "/");
        let wish = HeaderValue::from_static("websocket");
        head.upgrade = Some(wish.clone());
        head.headers.insert("upgrade", wish);
        let upgrade = HeaderValue::from_static("upgrade");
        head.headers.insert("connection", upgrade);
        let (_client, body) = crate::filter::testing::body();
        let answer = chain.send(head, body).await;
        assert_eq!((answer.status(), answer.text()), (status, text));
        assert_eq!(answer.details(), details);
        assert!(answer.stream.info.lock().close);
    }
}

#[tokio::test]
async fn routes_that_answer() {
    let direct = Action::DirectResponse(DirectResponse {
        status: StatusCode::OK,
        body: "hello".into(),
    });
    let answer = router("{}", clusters::eds("a"))
        .route(direct)
        .get("/")
        .await;
    assert_eq!((answer.status(), answer.text()), (200, "hello"));
    assert_eq!(answer.details(), "direct_response");
    let redirect = Action::Redirect(Box::new(RedirectAction {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: RedirectPath::Keep,
        status: StatusCode::MOVED_PERMANENTLY,
        strip_query: false,
    }));
    let answer = router("{}", clusters::eds("a"))
        .route(redirect)
        .get("/p?x=1")
        .await;
    assert_eq!((answer.status(), answer.text()), (301, ""));
    assert_eq!(answer.header("location"), Some("https://a.test/p?x=1"));
}

#[test]
fn strict_checks_refuse_what_has_no_meaning() {
    let yaml = "strict_check_headers: [x-envoy-upstream-rq-timeout-ms, x-envoy-retry-on]";
    let config = parse::<Router>(yaml).expect("valid");
    let check = |name: &'static str, value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        config::strict_check(&config.strict_check_headers, &headers)
    };
    assert!(check("x-envoy-upstream-rq-timeout-ms", "10").is_ok());
    assert!(check("x-envoy-retry-on", "5xx,connect-failure").is_ok());
    assert!(
        check("x-envoy-max-retries", "many").is_ok(),
        "not asked for"
    );
    let reply = check("x-envoy-upstream-rq-timeout-ms", "soon").expect_err("refused");
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.body,
        "invalid header 'x-envoy-upstream-rq-timeout-ms' with value 'soon'"
    );
    assert!(check("x-envoy-retry-on", "never").is_err());
}

#[test]
fn refuses_what_it_cannot_do() {
    for (yaml, error) in [
        (
            "upstream_http_filters: [{name: other}]",
            "upstream_http_filters[0]: Didn't find a registered implementation for 'other' with type URL: ''",
        ),
        (
            "strict_check_headers: [x]",
            "strict_check_headers[0]: value must be in list",
        ),
        ("upstream_log: [{name: x}]", "upstream_log: not supported"),
    ] {
        let text = parse::<Router>(yaml).expect_err("refused").to_string();
        assert!(text.starts_with(error), "{text}");
    }
    let codec = "{name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}";
    let mutation = "{name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}}";
    for (list, count) in [(codec.to_owned(), 0), (format!("{mutation}, {codec}"), 1)] {
        let config = parse::<Router>(&format!("upstream_http_filters: [{list}]"));
        assert_eq!(config.expect("valid").upstream_filters.len(), count);
    }
}
