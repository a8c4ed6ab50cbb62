//! A scripted upstream on a real socket, and what the pool makes of its behaviour. The expected counters are what a
//! running Envoy 1.40 showed for the same upstream.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use http::{Method, Version};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::base::task;
use crate::cluster::stats::cluster as stat;
use crate::cluster::testing::{addresses, eds, fixed, runtime};
use crate::cluster::{
    Cluster, PickContext, SendOptions, UpstreamError, UpstreamErrorKind, UpstreamResponse,
};
use crate::http::{Body, ReplyReason, RequestHead};
use crate::telemetry::metrics::{Kind, Stat};

mod http2;

/// What the upstream does with a request, by its path.
async fn serve(mut stream: TcpStream, requests: Arc<AtomicUsize>, gate: Arc<Notify>) {
    let mut buffer = Vec::new();
    for served in 0.. {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).expect("text");
        requests.fetch_add(1, SeqCst);
        let path = head.split(' ').nth(1).expect("a path");
        let (answer, close): (&[u8], bool) = match path {
            "/close" => (
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
                false,
            ),
            "/closenow" => (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
            "/drop" => (b"", true),
            "/second" if served > 0 => (b"", true),
            "/trunc" => (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok", true),
            "/eof" => (b"HTTP/1.1 200 OK\r\n\r\nok", true),
            "/garbage" => (b"asdf\r\n\r\n", false),
            "/hang" => (b"", false),
            "/gated" => {
                let first = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no";
                stream.write_all(first).await.expect("written");
                gate.notified().await;
                (b"k", false)
            }
            _ => (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
        };
        stream.write_all(answer).await.expect("written");
        if close {
            return;
        }
    }
}

struct Upstream {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    /// Lets a `/gated` answer end.
    gate: Arc<Notify>,
    _task: OwnedTask,
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let requests = Arc::<AtomicUsize>::default();
        let gate = Arc::<Notify>::default();
        let (counter, latch) = (Arc::clone(&requests), Arc::clone(&gate));
        Self {
            address: listener.local_addr().expect("an address"),
            requests,
            gate,
            _task: OwnedTask::spawn("upstream", async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let serve = serve(stream, Arc::clone(&counter), Arc::clone(&latch));
                    drop(task::spawn("upstream", serve));
                }
            }),
        }
    }
}

async fn send(
    cluster: &Arc<Cluster>,
    method: Method,
    path: &str,
) -> Result<UpstreamResponse, UpstreamError> {
    let host = cluster.pick(&PickContext::default()).expect("a host");
    let head = RequestHead::new(method, "test", path);
    cluster
        .send(&host, head, Body::empty(), SendOptions::default())
        .await
}

/// The body's text, or the error's debug form.
async fn read(response: UpstreamResponse) -> String {
    match response.body.collect().await {
        Ok(body) => String::from_utf8(body.to_bytes().to_vec()).expect("text"),
        Err(error) => format!("{error:?}"),
    }
}

async fn get(cluster: &Arc<Cluster>, path: &str) -> String {
    read(send(cluster, Method::GET, path).await.expect("a response")).await
}

fn value(cluster: &Cluster, stat: Stat) -> u64 {
    cluster.stats().set.value(stat)
}

/// Lets everything run until `done`; fails rather than hang.
async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("it comes about");
}

/// Counters that are not zero, of connections and requests, without bytes.
fn counters(cluster: &Cluster) -> BTreeMap<&'static str, u64> {
    let set = &cluster.stats().set;
    (0u16..)
        .zip(set.table().stats)
        .filter(|(_, def)| def.kind != Kind::Histogram)
        .filter(|(_, def)| def.name.starts_with("upstream_") && !def.name.contains("bytes"))
        .map(|(index, def)| (def.name, set.value(Stat(index))))
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    let first = send(&cluster, Method::GET, "/").await.expect("a response");
    let facts = first.connection;
    assert_eq!(facts.remote, Some(upstream.address));
    assert_eq!(facts.protocol, Version::HTTP_11);
    assert!(facts.local.is_some() && !facts.reused);
    assert_eq!(read(first).await, "ok");
    let second = send(&cluster, Method::GET, "/").await.expect("a response");
    assert!(second.connection.reused);
    assert_eq!(
        (second.connection.id, second.connection.local),
        (facts.id, facts.local)
    );
    assert_eq!(read(second).await, "ok");
    assert_eq!(
        counters(&cluster),
        BTreeMap::from([
            ("upstream_cx_active", 1),
            ("upstream_cx_http1_total", 1),
            ("upstream_cx_total", 1),
            ("upstream_rq_pending_total", 1),
            ("upstream_rq_total", 2),
        ])
    );
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_RX_BYTES_TOTAL), 80);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_TX_BYTES_TOTAL), 60);
    let status = cluster.status();
    let host = &status.hosts[0].host.stats;
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    assert_eq!(
        (
            load(&host.cx_total),
            load(&host.cx_active),
            load(&host.rq_total),
            load(&host.rq_active)
        ),
        (1, 1, 2, 0)
    );
}

#[tokio::test]
async fn concurrent_requests_have_connections_of_their_own() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    let (a, b) = tokio::join!(
        send(&cluster, Method::GET, "/"),
        send(&cluster, Method::GET, "/")
    );
    let (a, b) = (a.expect("a response"), b.expect("a response"));
    assert_ne!(a.connection.id, b.connection.id);
    read(a).await;
    read(b).await;
    // The connection that came back last is used first: the other one grows old.
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        let next = send(&cluster, Method::GET, "/").await.expect("a response");
        ids.insert(next.connection.id);
        read(next).await;
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_TOTAL), 2);
}

/// What a running Envoy counted for one request of each kind on a fresh cluster, besides what every request counts.
#[tokio::test]
async fn every_end_of_a_connection_is_counted_as_by_envoy() {
    let local = "upstream_cx_destroy_local";
    let local_rq = "upstream_cx_destroy_local_with_active_rq";
    let remote = "upstream_cx_destroy_remote";
    let remote_rq = "upstream_cx_destroy_remote_with_active_rq";
    let with_rq = "upstream_cx_destroy_with_active_rq";
    let protocol = "upstream_cx_protocol_error";
    let rows: [(&str, &[&str]); 7] = [
        ("/close", &[local, "upstream_cx_close_notify"]),
        ("/closenow", &[remote]),
        ("/drop", &[remote, remote_rq, with_rq]),
        ("/trunc", &[remote, remote_rq, with_rq, protocol]),
        ("/eof", &[remote]),
        ("/garbage", &[local, local_rq, with_rq, protocol]),
        ("/hang", &[local, local_rq, with_rq]),
    ];
    for (path, expected) in rows {
        let upstream = Upstream::start().await;
        let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
        let attempt = async {
            if let Ok(response) = send(&cluster, Method::GET, path).await {
                read(response).await;
            }
        };
        let requests = Arc::clone(&upstream.requests);
        tokio::select! {
            () = attempt => {}
            // Given up, as by a timeout.
            () = until(move || path == "/hang" && requests.load(SeqCst) == 1) => {}
        }
        until(|| value(&cluster, stat::UPSTREAM_CX_DESTROY) == 1).await;
        let mut all = BTreeMap::from([
            ("upstream_cx_total", 1),
            ("upstream_cx_http1_total", 1),
            ("upstream_cx_destroy", 1),
            ("upstream_rq_total", 1),
            ("upstream_rq_pending_total", 1),
        ]);
        all.extend(expected.iter().map(|name| (*name, 1)));
        assert_eq!(counters(&cluster), all, "{path}");
        let set = &cluster.stats().set;
        assert_eq!(set.histogram(stat::UPSTREAM_CX_LENGTH_MS).count(), 1);
        assert_eq!(set.histogram(stat::UPSTREAM_RQ_PER_CX).sum, 1);
    }
}

#[tokio::test]
async fn errors_tell_what_to_answer() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    for (path, reason) in [
        ("/drop", ReplyReason::UpstreamTermination),
        ("/garbage", ReplyReason::UpstreamProtocolError),
    ] {
        let error = send(&cluster, Method::GET, path).await.expect_err("none");
        assert_eq!(error.reason(), reason, "{path}");
        assert!(error.connection.is_some());
    }
}

#[tokio::test]
async fn a_refused_connection_is_counted_and_explained_as_by_envoy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let cluster = Cluster::new(Arc::new(fixed("c", address)), &runtime());
    let error = send(&cluster, Method::GET, "/").await.expect_err("refused");
    assert_eq!(
        error.reason(),
        ReplyReason::ConnectFailure("delayed connect error: Connection refused".into())
    );
    assert_eq!(
        counters(&cluster),
        BTreeMap::from([
            ("upstream_cx_connect_fail", 1),
            ("upstream_cx_destroy", 1),
            ("upstream_cx_destroy_remote", 1),
            ("upstream_cx_http1_total", 1),
            ("upstream_cx_total", 1),
            ("upstream_rq_pending_failure_eject", 1),
            ("upstream_rq_pending_total", 1),
        ])
    );
    let host = &cluster.status().hosts[0].host;
    assert_eq!(host.stats.cx_connect_fail.load(Relaxed), 1);
    assert_eq!(host.stats.cx_active.load(Relaxed), 0);
}

#[tokio::test]
async fn a_connection_that_takes_too_long_is_given_up() {
    // A listener whose queue is full answers no SYN.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    loop {
        let attempt = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(100), attempt).await {
            Ok(stream) => queued.push(stream.expect("connected")),
            Err(_) => break,
        }
        assert!(queued.len() < 64, "the queue never fills");
    }
    let mut config = fixed("c", address);
    config.connect_timeout = Duration::from_millis(20);
    let cluster = Cluster::new(Arc::new(config), &runtime());
    let error = send(&cluster, Method::GET, "/").await.expect_err("timeout");
    assert_eq!(error.reason(), ReplyReason::ConnectTimeout);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_CONNECT_TIMEOUT), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_CONNECT_FAIL), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_DESTROY_LOCAL), 1);
}

#[tokio::test]
async fn a_stale_connection_costs_no_safe_request() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    get(&cluster, "/").await;
    // The upstream closes the connection when a second request comes; the first of a connection it answers.
    assert_eq!(get(&cluster, "/second").await, "ok");
    assert_eq!(upstream.requests.load(SeqCst), 3);

    let error = send(&cluster, Method::POST, "/second")
        .await
        .expect_err("not replayed");
    assert!(matches!(error.kind, UpstreamErrorKind::Closed));
    assert_eq!(upstream.requests.load(SeqCst), 4);

    get(&cluster, "/").await;
    let error = send(&cluster, Method::GET, "/drop")
        .await
        .expect_err("twice");
    assert!(matches!(error.kind, UpstreamErrorKind::Closed));
    assert_eq!(
        upstream.requests.load(SeqCst),
        7,
        "once more and no further"
    );
}

#[tokio::test]
async fn a_connection_serves_no_more_than_it_may() {
    let upstream = Upstream::start().await;
    let mut config = fixed("c", upstream.address);
    config.max_requests_per_connection = Some(2);
    let cluster = Cluster::new(Arc::new(config), &runtime());
    for _ in 0..4 {
        assert_eq!(get(&cluster, "/").await, "ok");
    }
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_TOTAL), 2);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_MAX_REQUESTS), 2);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_DESTROY_LOCAL), 2);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let upstream = Upstream::start().await;
    let mut config = fixed("c", upstream.address);
    config.idle_timeout = Some(Duration::from_secs(60));
    let cluster = Cluster::new(Arc::new(config), &runtime());
    get(&cluster, "/").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 1);
    get(&cluster, "/").await;
    tokio::time::advance(Duration::from_secs(59)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        value(&cluster, stat::UPSTREAM_CX_ACTIVE),
        1,
        "used in between"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_IDLE_TIMEOUT), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_DESTROY_LOCAL), 1);
}

#[tokio::test]
async fn a_host_that_leaves_loses_its_connections_when_they_are_free() {
    let upstream = Upstream::start().await;
    let address = upstream.address.to_string();
    let cluster = Cluster::new(Arc::new(eds("c")), &runtime());
    cluster.set_endpoints(&addresses(&[&address]));
    let (idle, busy) = tokio::join!(
        send(&cluster, Method::GET, "/"),
        send(&cluster, Method::GET, "/gated")
    );
    let (idle, busy) = (idle.expect("a response"), busy.expect("a response"));
    read(idle).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 2);
    cluster.set_endpoints(&addresses(&[]));
    until(|| value(&cluster, stat::UPSTREAM_CX_ACTIVE) == 1).await;
    upstream.gate.notify_one();
    assert_eq!(read(busy).await, "ok", "what is under way ends well");
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_DESTROY_WITH_ACTIVE_RQ), 0);
}

#[tokio::test]
async fn a_body_that_is_dropped_takes_its_connection_along() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    let response = send(&cluster, Method::GET, "/gated")
        .await
        .expect("a response");
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_ACTIVE), 1);
    drop(response);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_ACTIVE), 0);
    assert_eq!(
        value(&cluster, stat::UPSTREAM_CX_DESTROY_LOCAL_WITH_ACTIVE_RQ),
        1
    );
}

#[tokio::test]
async fn a_retired_cluster_serves_who_still_holds_it_and_keeps_nothing() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    get(&cluster, "/").await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 1);
    cluster.retire();
    until(|| value(&cluster, stat::UPSTREAM_CX_ACTIVE) == 0).await;
    assert_eq!(get(&cluster, "/").await, "ok");
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
}

#[tokio::test]
async fn an_update_keeps_connections_unless_they_would_be_other_ones() {
    let upstream = Upstream::start().await;
    let config = Arc::new(fixed("c", upstream.address));
    let runtime = runtime();
    let first = Cluster::new(Arc::clone(&config), &runtime);
    get(&first, "/").await;
    let mut changed = (*config).clone();
    changed.connect_timeout = Duration::from_secs(1);
    let second = Cluster::update_from(&first, Arc::new(changed.clone()), &runtime);
    get(&second, "/").await;
    assert_eq!(value(&second, stat::UPSTREAM_CX_TOTAL), 1);
    changed.tcp_keepalive = Some(config::cluster::TcpKeepalive {
        probes: Some(3),
        time: Some(Duration::from_secs(10)),
        interval: None,
    });
    let third = Cluster::update_from(&second, Arc::new(changed), &runtime);
    until(|| value(&third, stat::UPSTREAM_CX_ACTIVE) == 0).await;
    get(&third, "/").await;
    assert_eq!(value(&third, stat::UPSTREAM_CX_TOTAL), 2);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_no_trace() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new(Arc::new(fixed("c", upstream.address)), &runtime());
    let mut request = Box::pin(send(&cluster, Method::GET, "/"));
    // Polled once: the connection is being made.
    std::future::poll_fn(|cx| {
        let _ = request.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_PENDING_ACTIVE), 1);
    drop(request);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_PENDING_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_CANCELLED), 1);
}

#[tokio::test]
async fn a_unix_socket_is_a_host_like_any_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("up.sock");
    let list = crate::cluster::testing::endpoints([crate::cluster::testing::endpoint(
        crate::config::endpoint::Address::Pipe(path.clone()),
    )]);
    let cluster = Cluster::new(
        Arc::new(crate::cluster::testing::config(
            "c",
            config::cluster::Discovery::Static(list),
        )),
        &runtime(),
    );
    let error = send(&cluster, Method::GET, "/").await.expect_err("nobody");
    let reason = error.transport_failure().expect("a reason");
    assert!(
        reason.starts_with("immediate connect error: No such file or directory|remote_address:")
    );
    let listener = tokio::net::UnixListener::bind(&path).expect("bound");
    let (response, ()) = tokio::join!(send(&cluster, Method::GET, "/"), async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.expect("read") > 0);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.expect("written");
    });
    let response = response.expect("a response");
    assert_eq!(response.connection.remote, None);
    assert_eq!(read(response).await, "ok");
}
