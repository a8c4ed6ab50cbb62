//! The interface on its sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

pub(super) async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    request: &str,
) -> String {
    let (mut read, mut write) = tokio::io::split(stream);
    write.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn over_tcp_with_the_address_told() {
    let world = world();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("address");
    let admin = world.context.bootstrap.admin.clone().unwrap();
    let running = start(Arc::clone(&world.context), &admin, Some(&file)).unwrap();
    let address = std::fs::read_to_string(&file).unwrap();
    assert_eq!(address, running.address.to_string());
    assert!(!address.ends_with(":0"));

    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let text = exchange(
        stream,
        "GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("HTTP/1.1 200 OK"));
    let headers: BTreeSet<_> = lines.filter(|line| !line.starts_with("date: ")).collect();
    assert_eq!(
        headers,
        BTreeSet::from([
            "content-type: text/plain; charset=UTF-8",
            "cache-control: no-cache, max-age=0",
            "x-content-type-options: nosniff",
            "server: envoy",
            "transfer-encoding: chunked",
            "connection: close",
        ])
    );
    assert_eq!(body, "5\r\nLIVE\n\r\n0\r\n\r\n");

    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let form = "POST /logging HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\n\
                content-length: 14\r\n\r\nupstream=debug";
    assert!(exchange(stream, form).await.contains("upstream: debug"));

    let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let old = exchange(stream, "GET /ready HTTP/1.0\r\n\r\n").await;
    assert!(
        old.starts_with("HTTP/1.1 426 Upgrade Required\r\n"),
        "{old}"
    );
    let stats = world
        .get("/stats?usedonly&filter=admin.*downstream_(rq_2xx|cx_total)")
        .body;
    assert!(
        stats.contains("listener.admin.downstream_cx_total: 3\n"),
        "{stats}"
    );
    assert!(
        stats.contains("http.admin.downstream_rq_2xx: 2\n"),
        "{stats}"
    );
}

#[tokio::test]
async fn over_a_unix_socket_with_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = world();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let admin = Admin {
        address: Address::Pipe(path.clone()),
        pipe_mode: Some(0o600),
        allow_paths: Vec::new(),
    };
    // What is left of an earlier process does not matter.
    drop(tokio::net::UnixListener::bind(&path).unwrap());
    let _running = start(Arc::clone(&world.context), &admin, None).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let text = exchange(
        stream,
        "GET /stats/prometheus HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(
        text.contains("# TYPE envoy_cluster_upstream_cx_total counter"),
        "{text}"
    );
}

#[tokio::test]
async fn a_taken_address_is_an_error() {
    let world = world();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = Admin {
        address: Address::Socket(taken.local_addr().unwrap()),
        pipe_mode: None,
        allow_paths: Vec::new(),
    };
    let error = start(Arc::clone(&world.context), &admin, None).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}
