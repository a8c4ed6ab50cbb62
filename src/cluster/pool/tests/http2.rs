//! HTTP/2: streams share a connection.

use super::*;
use crate::base::drain::{self, DrainTrigger};
use crate::config::cluster::{Http1Options, Http2Options, UpstreamProtocol};
use crate::config::http_connection_manager::{CodecType, Options};
use crate::http::codec::{Exchange, Handler, Malformed, Reply, Reset, server};
use crate::http::{ResponseHead, codec};

/// Answers with the path; `/gated` ends when let, `/reset` is reset.
struct Paths(Arc<Notify>);

impl Handler for Paths {
    type Head = ResponseHead;

    fn request(
        &self,
        exchange: Exchange,
    ) -> impl Future<Output = Result<Reply, Reset>> + Send + 'static {
        let gate = Arc::clone(&self.0);
        async move {
            let path = exchange.head.path.clone();
            match path.as_bytes() {
                b"/gated" => gate.notified().await,
                b"/reset" => return Err(Reset::Internal),
                _ => {}
            }
            Ok(Reply {
                head: ResponseHead::new(http::StatusCode::OK),
                body: Body::full(path.as_bytes().to_vec()),
                close: false,
            })
        }
    }

    fn malformed(&self, _malformed: Malformed) -> Reply {
        unreachable!("the client is ours")
    }
}

struct Server {
    address: SocketAddr,
    gate: Arc<Notify>,
    drain: DrainTrigger,
    connections: Arc<AtomicUsize>,
    _task: OwnedTask,
}

async fn start(codec: CodecType) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let gate = Arc::<Notify>::default();
    let connections = Arc::<AtomicUsize>::default();
    let (drain, watch) = drain::channel();
    let (latch, count) = (Arc::clone(&gate), Arc::clone(&connections));
    Server {
        address,
        gate,
        drain,
        connections,
        _task: OwnedTask::spawn("upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let serve = server::serve(
                    codec::Io::Tcp(stream),
                    codec,
                    Arc::new(Options::default()),
                    Paths(Arc::clone(&latch)),
                    watch.clone(),
                    Arc::default(),
                );
                drop(task::spawn("upstream", async move {
                    let _ = serve.await;
                }));
            }
        }),
    }
}

fn http2(address: SocketAddr) -> config::Cluster {
    let mut config = fixed("c", address);
    config.protocol = UpstreamProtocol::Http2(Http2Options::default());
    config
}

#[tokio::test]
async fn streams_share_a_connection() {
    let server = start(CodecType::Http2).await;
    let cluster = Cluster::new(Arc::new(http2(server.address)), &runtime());
    let (a, b, c) = tokio::join!(
        send(&cluster, Method::GET, "/a"),
        send(&cluster, Method::GET, "/b"),
        send(&cluster, Method::GET, "/c"),
    );
    let (a, b, c) = (a.expect("a"), b.expect("b"), c.expect("c"));
    assert_eq!(a.connection.protocol, Version::HTTP_2);
    assert_eq!(a.connection.id, b.connection.id);
    assert_eq!(a.connection.id, c.connection.id);
    assert_eq!(read(a).await, "/a");
    assert_eq!(read(b).await, "/b");
    assert_eq!(read(c).await, "/c");
    assert_eq!(
        counters(&cluster),
        BTreeMap::from([
            ("upstream_cx_active", 1),
            ("upstream_cx_http2_total", 1),
            ("upstream_cx_total", 1),
            ("upstream_rq_pending_total", 3),
            ("upstream_rq_total", 3),
        ])
    );
    assert_eq!(server.connections.load(SeqCst), 1);
    assert!(value(&cluster, stat::UPSTREAM_CX_RX_BYTES_TOTAL) > 0);
}

#[tokio::test]
async fn a_reset_is_told_and_costs_no_neighbour() {
    let server = start(CodecType::Http2).await;
    let cluster = Cluster::new(Arc::new(http2(server.address)), &runtime());
    let (gated, reset) = tokio::join!(
        async {
            let response = send(&cluster, Method::GET, "/gated").await;
            read(response.expect("a response")).await
        },
        async {
            let error = send(&cluster, Method::GET, "/reset").await;
            server.gate.notify_one();
            error.expect_err("reset")
        },
    );
    assert_eq!(reset.reason(), ReplyReason::UpstreamReset);
    assert_eq!(gated, "/gated");
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_RX_RESET), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_ACTIVE), 0);
}

#[tokio::test]
async fn a_stream_given_up_is_reset_and_the_connection_stays() {
    let server = start(CodecType::Http2).await;
    let cluster = Cluster::new(Arc::new(http2(server.address)), &runtime());
    assert_eq!(get(&cluster, "/a").await, "/a");
    let mut gated = Box::pin(send(&cluster, Method::GET, "/gated"));
    tokio::select! {
        _ = &mut gated => unreachable!("nobody opens the gate"),
        body = get(&cluster, "/b") => assert_eq!(body, "/b"),
    }
    drop(gated);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_TX_RESET), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_ACTIVE), 0);
    assert_eq!(get(&cluster, "/c").await, "/c");
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_TOTAL), 1);
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced() {
    let server = start(CodecType::Http2).await;
    let cluster = Cluster::new(Arc::new(http2(server.address)), &runtime());
    assert_eq!(get(&cluster, "/a").await, "/a");
    server.drain.drain();
    until(|| value(&cluster, stat::UPSTREAM_CX_ACTIVE) == 0).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_DESTROY), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let server = start(CodecType::Http2).await;
    let mut config = http2(server.address);
    config.idle_timeout = Some(Duration::from_secs(60));
    let cluster = Cluster::new(Arc::new(config), &runtime());
    assert_eq!(get(&cluster, "/a").await, "/a");
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 1);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_ACTIVE), 0);
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_IDLE_TIMEOUT), 1);
}

#[tokio::test]
async fn a_connection_serves_no_more_streams_than_it_may() {
    let server = start(CodecType::Http2).await;
    let mut config = http2(server.address);
    config.max_requests_per_connection = Some(2);
    let cluster = Cluster::new(Arc::new(config), &runtime());
    for _ in 0..4 {
        assert_eq!(get(&cluster, "/a").await, "/a");
    }
    assert_eq!(server.connections.load(SeqCst), 2);
    until(|| value(&cluster, stat::UPSTREAM_CX_ACTIVE) == 0).await;
}

#[tokio::test]
async fn no_connection_is_made_for_who_has_gone() {
    let server = start(CodecType::Http2).await;
    let mut config = http2(server.address);
    config.max_requests_per_connection = Some(1);
    let cluster = Cluster::new(Arc::new(config), &runtime());
    for _ in 0..20 {
        tokio::select! {
            biased;
            _ = get(&cluster, "/gone") => panic!("it has to wait"),
            () = std::future::ready(()) => {}
        }
    }
    assert_eq!(get(&cluster, "/here").await, "/here");
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn who_waits_together_shares_no_more_than_a_connection_may_serve() {
    let server = start(CodecType::Http2).await;
    let mut config = http2(server.address);
    config.max_requests_per_connection = Some(2);
    let cluster = Cluster::new(Arc::new(config), &runtime());
    tokio::select! {
        biased;
        _ = get(&cluster, "/gone") => panic!("it has to wait"),
        () = std::future::ready(()) => {}
    }
    let (a, b, c) = tokio::join!(
        get(&cluster, "/a"),
        get(&cluster, "/b"),
        get(&cluster, "/c")
    );
    assert_eq!([a, b, c], ["/a", "/b", "/c"]);
    assert_eq!(server.connections.load(SeqCst), 2);
    // Of the second one half is left.
    assert_eq!(get(&cluster, "/d").await, "/d");
    assert_eq!(server.connections.load(SeqCst), 2);
    until(|| value(&cluster, stat::UPSTREAM_CX_ACTIVE) == 0).await;
}

#[tokio::test]
async fn everyone_who_waits_learns_of_a_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let cluster = Cluster::new(Arc::new(http2(address)), &runtime());
    let (a, b) = tokio::join!(
        send(&cluster, Method::GET, "/"),
        send(&cluster, Method::GET, "/")
    );
    for error in [a.expect_err("refused"), b.expect_err("refused")] {
        assert!(matches!(error.reason(), ReplyReason::ConnectFailure(_)));
    }
    assert_eq!(value(&cluster, stat::UPSTREAM_CX_TOTAL), 1);
    assert_eq!(value(&cluster, stat::UPSTREAM_RQ_PENDING_FAILURE_EJECT), 2);
}

#[tokio::test]
async fn the_request_s_version_decides_where_the_configuration_says_so() {
    let server = start(CodecType::Auto).await;
    let mut config = fixed("c", server.address);
    config.protocol =
        UpstreamProtocol::Downstream(Http1Options::default(), Http2Options::default());
    let cluster = Cluster::new(Arc::new(config), &runtime());
    for version in [Version::HTTP_11, Version::HTTP_2, Version::HTTP_10] {
        let host = cluster.pick(&PickContext::default()).expect("a host");
        let mut head = RequestHead::new(Method::GET, "test", "/a");
        head.version = version;
        let response = cluster
            .send(&host, head, Body::empty(), SendOptions::default())
            .await
            .expect("a response");
        let expected = version.max(Version::HTTP_11);
        assert_eq!(response.connection.protocol, expected);
        assert_eq!(read(response).await, "/a");
    }
}
