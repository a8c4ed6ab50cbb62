//! Connections that no codec reads: the TCP proxy, and plugins before it; and plugins before an HTTP connection manager.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{Client, TestProxy, ads_bootstrap, any};

const PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Sends back what it gets, and its end.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // Whoever resets the connection wants nothing back.
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    (address, task)
}

fn cluster(name: &str, address: SocketAddr) -> String {
    format!(
        "{{name: {name}, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}",
        address.port()
    )
}

/// A listener called `name` with a TCP proxy, configured with `proxy`, and filters before it.
fn listener(name: &str, filters: &[String], proxy: &str) -> String {
    let mut list = filters.to_vec();
    list.push(format!(
        "{{name: tcp, typed_config: {{'@type': {PROXY}, stat_prefix: {name}, {proxy}}}}}"
    ));
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{}]}}]}}",
        list.join(", ")
    )
}

fn access_log(path: &Path) -> String {
    format!(
        "access_log: [{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: '{}', log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% \
         %UPSTREAM_CLUSTER% %DOWNSTREAM_LOCAL_CLOSE_REASON% %PROTOCOL% %REQ(:METHOD)% %ACCESS_LOG_TYPE%\\n\"}}}}}}}}]",
        path.display()
    )
}

fn bootstrap(listeners: &[String], clusters: &[String]) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources:\n  listeners: [{}]\n  clusters: [{}]\n",
        listeners.join(", "),
        clusters.join(", ")
    )
}

/// Sends `data` and the end, and reads all.
async fn exchange(address: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(data).await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an end");
    answer
}

/// As [`exchange`], with whatever comes before a connection that is closed meanwhile.
async fn attempt(address: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let mut answer = Vec::new();
    if stream.write_all(data).await.is_ok() && stream.shutdown().await.is_ok() {
        // A reset ends it as well.
        let _ = stream.read_to_end(&mut answer).await;
    }
    answer
}

/// Reads exactly `text`.
async fn expect(stream: &mut TcpStream, text: &str) {
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).await.expect(text);
    assert_eq!(buffer, text.as_bytes());
}

/// The lines of a log, once there are `count`; the proxy is asked to write them now.
pub(crate) async fn lines(proxy: &TestProxy, path: &Path, count: usize) -> Vec<String> {
    let find = async {
        loop {
            let mut admin = Client::connect(proxy.admin()).await;
            admin
                .send("POST /reopen_logs HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n")
                .await;
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), find)
        .await
        .expect("the log within 20 s")
}

async fn stat(proxy: &TestProxy, name: &str) -> u64 {
    let mut admin = Client::connect(proxy.admin()).await;
    let text = admin.get("admin", "/stats").await.body;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name}"))
        .parse()
        .expect("a number")
}

async fn wait_for(proxy: &TestProxy, name: &str, value: u64) {
    let find = async {
        while stat(proxy, name).await != value {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), find)
        .await
        .unwrap_or_else(|_| panic!("{name} is not {value}"));
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_side_ends_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let (host, _task) = echo().await;
    let proxy = TestProxy::start(&bootstrap(
        &[listener(
            "tcp",
            &[],
            &format!("cluster: up, {}", access_log(&log)),
        )],
        &[cluster("up", host)],
    ))
    .await;
    let address = proxy.address("tcp").await;
    // More than all buffers on the way hold, with the client reading only when it has sent.
    let data: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let stream = TcpStream::connect(address).await.expect("connected");
    let (mut read, mut write) = stream.into_split();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        write.write_all(&sent).await.expect("sent");
        write.shutdown().await.expect("ended");
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.expect("an end");
    sender.await.expect("sent");
    assert!(answer == data, "{} bytes of {}", answer.len(), data.len());
    // One side has ended; the other goes on.
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"hello").await.expect("sent");
    expect(&mut stream, "hello").await;
    stream.write_all(b"more").await.expect("sent");
    stream.shutdown().await.expect("ended");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an end");
    assert_eq!(rest, "more");
    let lines = lines(&proxy, &log, 2).await;
    assert!(
        lines[0].starts_with("- 3000000 3000000 up - - - TcpConnectionEnd"),
        "{lines:?}"
    );
    assert_eq!(lines[1], "- 9 9 up - - - TcpConnectionEnd");
    for (name, value) in [
        ("tcp.tcp.downstream_cx_total", 2),
        ("tcp.tcp.downstream_cx_rx_bytes_total", 3_000_009),
        ("tcp.tcp.downstream_cx_tx_bytes_total", 3_000_009),
        ("cluster.up.upstream_cx_total", 2),
        ("cluster.up.upstream_cx_active", 0),
        ("cluster.up.upstream_cx_tx_bytes_total", 3_000_009),
    ] {
        assert_eq!(stat(&proxy, name).await, value, "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_joined_is_closed_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("an address")
    };
    let empty = "{name: empty, type: STATIC, load_assignment: {cluster_name: empty}}".to_owned();
    let log_to = access_log(&log);
    let proxy = TestProxy::start(&bootstrap(
        &[
            listener("missing", &[], &format!("cluster: nobody, {log_to}")),
            listener("empty", &[], &format!("cluster: empty, {log_to}")),
            listener(
                "dead",
                &[],
                &format!("cluster: dead, max_connect_attempts: 3, {log_to}"),
            ),
        ],
        &[cluster("dead", dead), empty],
    ))
    .await;
    let mut expected = Vec::new();
    for (name, line) in [
        (
            "missing",
            "NC 0 0 - tcp_initializion_failure:3 - - TcpConnectionEnd",
        ),
        (
            "empty",
            "UH 0 0 empty tcp_initializion_failure:1 - - TcpConnectionEnd",
        ),
        (
            "dead",
            "UF,URX 0 0 dead tcp_initializion_failure:0 - - TcpConnectionEnd",
        ),
    ] {
        let address = proxy.address(name).await;
        assert_eq!(exchange(address, b"").await, b"");
        expected.push(line);
    }
    assert_eq!(lines(&proxy, &log, 3).await, expected);
    assert_eq!(stat(&proxy, "tcp.missing.downstream_cx_no_route").await, 1);
    assert_eq!(
        stat(&proxy, "cluster.dead.upstream_cx_connect_fail").await,
        3
    );
    assert_eq!(
        stat(&proxy, "cluster.dead.upstream_cx_connect_attempts_exceeded").await,
        1
    );
}

#[tokio::test]
async fn a_reset_of_one_side_resets_the_other() {
    let listener_socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = listener_socket.local_addr().expect("an address");
    let proxy = TestProxy::start(&bootstrap(
        &[listener("tcp", &[], "cluster: up")],
        &[cluster("up", host)],
    ))
    .await;
    let address = proxy.address("tcp").await;
    for (by_client, behind_data) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut client = TcpStream::connect(address).await.expect("connected");
        let (mut server, _) = listener_socket.accept().await.expect("accepted");
        client.write_all(b"x").await.expect("sent");
        expect(&mut server, "x").await;
        let (mut gone, mut stays) = if by_client {
            (client, server)
        } else {
            (server, client)
        };
        if behind_data {
            // Read in one go with what follows.
            gone.write_all(&[b'x'; 1000]).await.expect("sent");
        }
        gone.set_zero_linger().expect("an option");
        drop(gone);
        let error = stays.read_to_end(&mut Vec::new()).await;
        let error = error.expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn an_idle_connection_and_one_that_lasts_too_long_are_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let (host, _task) = echo().await;
    let log_to = access_log(&log);
    let proxy = TestProxy::start(&bootstrap(
        &[
            listener(
                "idle",
                &[],
                &format!("cluster: up, idle_timeout: 0.1s, {log_to}"),
            ),
            listener(
                "long",
                &[],
                &format!("cluster: up, max_downstream_connection_duration: 0.1s, {log_to}"),
            ),
        ],
        &[cluster("up", host)],
    ))
    .await;
    let mut expected = Vec::new();
    for (name, flags, reason) in [
        ("idle", "-", "tcp_session_idle_timeout"),
        ("long", "DT", "max_connection_duration_reached"),
    ] {
        let mut stream = TcpStream::connect(proxy.address(name).await)
            .await
            .expect("connected");
        stream.write_all(b"x").await.expect("sent");
        let mut all = String::new();
        stream.read_to_string(&mut all).await.expect("an end");
        assert_eq!(all, "x");
        expected.push(format!("{flags} 1 1 up {reason} - - TcpConnectionEnd"));
    }
    assert_eq!(lines(&proxy, &log, 2).await, expected);
    assert_eq!(stat(&proxy, "tcp.idle.idle_timeout").await, 1);
}

/// What a filter holds up has not begun for the proxy behind it.
#[tokio::test]
async fn the_limits_of_a_connection_begin_when_its_filters_let_it_pass() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let path = guest(folder.path());
    let (host, _task) = echo().await;
    let log_to = access_log(&log);
    for (limit, flags, reason) in [
        ("idle_timeout", "-", "tcp_session_idle_timeout"),
        (
            "max_downstream_connection_duration",
            "DT",
            "max_connection_duration_reached",
        ),
    ] {
        let proxy = TestProxy::start(&bootstrap(
            &[listener(
                "tcp",
                &[filter(&path, "#&", "")],
                &format!("cluster: up, {limit}: 0.001s, {log_to}"),
            )],
            &[cluster("up", host)],
        ))
        .await;
        let mut stream = TcpStream::connect(proxy.address("tcp").await)
            .await
            .expect("connected");
        // Reset, where something was unread.
        let _ = stream.read(&mut [0]).await;
        // The cluster is chosen when the plugin's tick, after 20 ms, has let it pass.
        assert_eq!(
            lines(&proxy, &log, 1).await,
            [format!("{flags} 0 0 up {reason} - - TcpConnectionEnd")]
        );
        std::fs::remove_file(&log).expect("a log");
    }
}

/// A proxy whose listener and clusters come from the control plane.
async fn planed(clusters: &[String]) -> (ControlPlane, TestProxy) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let plane = ControlPlane::start(socket).expect("the control plane starts");
    let clusters = clusters
        .iter()
        .map(|yaml| any(&typed(CLUSTER, yaml)))
        .collect();
    plane.set_resources(CLUSTER, clusters, "1");
    let mut bootstrap = ads_bootstrap(plane.address(), false);
    bootstrap.push_str("admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n");
    let proxy = TestProxy::start_cold(&bootstrap, 1).await;
    (plane, proxy)
}

fn typed(kind: &str, yaml: &str) -> String {
    yaml.replacen('{', &format!("{{'@type': {kind}, "), 1)
}

#[tokio::test]
async fn connections_pin_no_generation_and_drain_when_their_proxy_changes() {
    let ((one, _one), (two, _two)) = (echo().await, echo().await);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let (plane, proxy) = planed(&[cluster("one", one), cluster("two", two)]).await;
    let set = |to: &str, version: &str| {
        let log_to = access_log(&log);
        let listener = listener("tcp", &[], &format!("cluster: {to}, {log_to}"));
        plane.set_resources(LISTENER, vec![any(&typed(LISTENER, &listener))], version);
    };
    set("one", "1");
    let address = proxy.address("tcp").await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"a").await.expect("sent");
    expect(&mut stream, "a").await;
    let before = proxy.generation_number();
    // What does not touch the chain leaves the connection alone.
    plane.set_resources(
        CLUSTER,
        vec![any(&typed(CLUSTER, &cluster("one", one)))],
        "2",
    );
    proxy.generation(before + 1).await;
    stream.write_all(b"b").await.expect("sent");
    expect(&mut stream, "b").await;
    assert_eq!(proxy.running.server.current.sweep(), 1, "Generations alive");
    plane.set_resources(
        CLUSTER,
        vec![
            any(&typed(CLUSTER, &cluster("one", one))),
            any(&typed(CLUSTER, &cluster("two", two))),
        ],
        "3",
    );
    proxy.generation(before + 2).await;
    set("two", "2");
    proxy.generation(before + 3).await;
    // It is served until the drain time (1 s) has passed; new ones go to the other cluster.
    stream.write_all(b"c").await.expect("sent");
    expect(&mut stream, "c").await;
    assert_eq!(exchange(address, b"new").await, b"new");
    assert_eq!(stat(&proxy, "cluster.two.upstream_cx_total").await, 1);
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await;
    assert!(matches!(end, Ok(Ok(0))), "{end:?}");
    let reason = "filter_chain_is_being_removed";
    let said = format!("- 3 3 one {reason} - - TcpConnectionEnd");
    assert_eq!(lines(&proxy, &log, 2).await[1], said);
}

/// A request in flight, and a connection of the TCP proxy, whose listeners go: it is we who end them.
#[tokio::test]
async fn what_is_cut_off_with_its_listener_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let upstream = silent.local_addr().expect("an address");
    let (plane, proxy) = planed(&[cluster("up", upstream)]).await;
    let tcp = listener("tcp", &[], &format!("cluster: up, {}", access_log(&log)));
    let details =
        access_log(&log).replace("DOWNSTREAM_LOCAL_CLOSE_REASON", "RESPONSE_CODE_DETAILS");
    let http = web(&[], &format!("web, {details}"));
    let listeners = [tcp, http].map(|listener| any(&typed(LISTENER, &listener)));
    plane.set_resources(LISTENER, listeners.into(), "1");
    let mut client = TcpStream::connect(proxy.address("tcp").await)
        .await
        .expect("connected");
    client.write_all(b"x").await.expect("sent");
    let (mut host, _) = silent.accept().await.expect("a connection");
    expect(&mut host, "x").await;
    let mut asking = TcpStream::connect(proxy.address("web").await)
        .await
        .expect("connected");
    asking
        .write_all(b"GET /up HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("sent");
    let (mut other, _) = silent.accept().await.expect("a connection");
    expect(&mut other, "GET").await;
    plane.set_resources(LISTENER, Vec::new(), "2");
    let mut lines = lines(&proxy, &log, 2).await;
    lines.sort_unstable();
    let reason = "purging_socket_that_have_not_progressed_to_connections";
    assert_eq!(
        lines,
        [
            format!("- 1 0 up {reason} - - TcpConnectionEnd"),
            format!("DC 0 0 up downstream_local_disconnect({reason}) HTTP/1.1 GET DownstreamEnd"),
        ]
    );
}

/// The guest of `tests/guests/network.wat`, compiled.
fn guest(folder: &Path) -> PathBuf {
    guest_of(folder, "network")
}

fn guest_of(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name).with_extension("wasm");
    std::fs::write(&path, crate::support::guest(name)).expect("a file");
    path
}

/// A network filter that runs it, with this configuration; `more` goes into the plugin's.
fn filter(path: &Path, config: &str, more: &str) -> String {
    format!(
        "{{name: plugin, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm, config: {{name: p, \
         {more} configuration: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{config}'}}, vm_config: {{vm_id: network, \
         code: {{local: {{filename: '{}'}}}}}}}}}}}}",
        path.display()
    )
}

async fn with_guest(
    config: &str,
    more: &str,
) -> (TestProxy, SocketAddr, JoinHandle<()>, tempfile::TempDir) {
    with_guest_of("network", config, more).await
}

async fn with_guest_of(
    name: &str,
    config: &str,
    more: &str,
) -> (TestProxy, SocketAddr, JoinHandle<()>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest_of(folder.path(), name);
    let (host, task) = echo().await;
    let bootstrap = bootstrap(
        &[listener(
            "tcp",
            &[filter(&path, config, more)],
            "cluster: up",
        )],
        &[cluster("up", host)],
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let address = proxy.address("tcp").await;
    (proxy, address, task, folder)
}

#[tokio::test]
async fn a_plugin_sees_holds_and_changes_what_passes() {
    let (proxy, address, _task, _folder) = with_guest("0.", "").await;
    for (sent, answer) in [
        ("hello", "hello"),
        ("=hello", "<replaced>"),
        ("(hello", "<before>(hello"),
        // Both ways.
        (")hello", ")hello<after><after>"),
        // Held until the end.
        ("~hello", "~hello"),
        // Closed: not a byte passes.
        ("$hello", ""),
        ("%hello", ""),
        ("^hello", ""),
    ] {
        assert_eq!(
            String::from_utf8(attempt(address, sent.as_bytes()).await).expect("text"),
            answer,
            "{sent}"
        );
    }
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"~held").await.expect("sent");
    let early = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0])).await;
    assert!(early.is_err(), "{early:?}");
    wait_for(&proxy, "tcp.tcp.downstream_cx_rx_bytes_buffered", 5).await;
    stream.shutdown().await.expect("ended");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an end");
    assert_eq!(rest, "~held");
    wait_for(&proxy, "tcp.tcp.downstream_cx_rx_bytes_buffered", 0).await;
}

#[tokio::test]
async fn a_plugin_lets_a_connection_wait_and_go_on() {
    // It stops the connection; its tick lets it go on.
    let (proxy, address, _task, _folder) = with_guest("#&", "").await;
    assert_eq!(exchange(address, b"hello").await, b"hello");
    wait_for(&proxy, "wasm.paused_streams", 0).await;
}

#[tokio::test]
async fn a_plugin_that_traps_closes_its_connections_or_is_left_out_of_them() {
    for (more, answer) in [
        ("", &b""[..]),
        ("failure_policy: FAIL_OPEN,", &b""[..]),
        // The older switch lets the connection pass in whose callback it failed.
        ("fail_open: true,", &b"!x"[..]),
    ] {
        let (proxy, address, _task, _folder) = with_guest("0.", more).await;
        assert_eq!(attempt(address, b"!x").await, answer, "{more}");
        // A fresh VM serves the next ones.
        let again = async {
            while attempt(address, b"=x").await != b"<replaced>" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again)
            .await
            .expect("a fresh VM");
        drop(proxy);
    }
}

#[tokio::test]
async fn a_context_that_cannot_be_made_is_the_crash_of_its_connection() {
    for (more, answer) in [
        ("", &b""[..]),
        ("failure_policy: FAIL_OPEN,", &b""[..]),
        ("fail_open: true,", &b"x"[..]),
    ] {
        let (proxy, address, _task, _folder) = with_guest_of("fault", "tn", more).await;
        assert_eq!(attempt(address, b"x").await, answer, "{more}");
        drop(proxy);
    }
}

#[tokio::test]
async fn what_a_failed_plugin_holds_is_closed_or_goes_on_at_once() {
    for (more, goes_on) in [("", false), ("failure_policy: FAIL_OPEN,", true)] {
        let (proxy, address, _task, _folder) = with_guest("0.", more).await;
        let mut held = TcpStream::connect(address).await.expect("connected");
        held.write_all(b"#held").await.expect("sent");
        wait_for(&proxy, "tcp.tcp.downstream_cx_rx_bytes_buffered", 5).await;
        // Another connection's callback ends the VM.
        assert_eq!(attempt(address, b"!x").await, b"");
        if goes_on {
            expect(&mut held, "#held").await;
        } else {
            let end = tokio::time::timeout(Duration::from_secs(10), held.read(&mut [0])).await;
            assert!(matches!(end, Ok(Ok(0))), "{end:?}");
        }
    }
}

#[tokio::test]
async fn contexts_end_with_their_connections() {
    let (proxy, address, _task, _folder) = with_guest("0.", "").await;
    let contexts = async || {
        let mut admin = Client::connect(proxy.admin()).await;
        let text = admin.get("admin", "/wasm?format=json").await.body;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["plugins"][0]["vms"][0]["contexts"]
            .as_str()
            .map(str::to_owned)
    };
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"x").await.expect("sent");
        expect(&mut stream, "x").await;
        streams.push(stream);
    }
    assert_eq!(contexts().await.as_deref(), Some("3"));
    // One way or the other.
    streams[0].set_zero_linger().expect("an option");
    drop(streams);
    let gone = async {
        while contexts().await.as_deref() != Some("0") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("no context is left");
}

#[tokio::test]
async fn a_plugin_is_swapped_and_connections_end_on_the_version_they_began_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest(folder.path());
    let (host, _task) = echo().await;
    let (plane, proxy) = planed(&[cluster("up", host)]).await;
    let set = |filters: &[String], version: &str| {
        let listener = listener("tcp", filters, "cluster: up");
        plane.set_resources(LISTENER, vec![any(&typed(LISTENER, &listener))], version);
    };
    set(&[filter(&path, "0.", "")], "1");
    let address = proxy.address("tcp").await;
    let mut old = TcpStream::connect(address).await.expect("connected");
    old.write_all(b"=a").await.expect("sent");
    expect(&mut old, "<replaced>").await;
    let before = proxy.generation_number();
    // The next version closes what is new; the old one is still what the old connection meets.
    set(&[filter(&path, "$.", "")], "2");
    proxy.generation(before + 1).await;
    let closed = async {
        loop {
            let mut new = TcpStream::connect(address).await.expect("connected");
            let mut byte = [0];
            let read = new.read(&mut byte);
            if let Ok(Ok(0)) = tokio::time::timeout(Duration::from_millis(200), read).await {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed)
        .await
        .expect("the next version is live");
    old.write_all(b"=b").await.expect("sent");
    expect(&mut old, "<replaced>").await;
    // It drains: the filters that admitted it are no longer those of the chain.
    let end = tokio::time::timeout(Duration::from_secs(10), old.read(&mut [0])).await;
    assert!(matches!(end, Ok(Ok(0))), "{end:?}");
}

/// A proxy with the guest and these settings, whose connections hold 20 bytes; and one connection with its host's end.
async fn narrow(host: &TcpListener, more: &str, settings: &str) -> (TestProxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest(folder.path());
    let listener = listener("tcp", &[filter(&path, "0.", more)], "cluster: up");
    let listener = listener.replacen('{', "{per_connection_buffer_limit_bytes: 20, ", 1);
    let address = host.local_addr().expect("an address");
    let bootstrap = format!(
        "bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings, \
         {settings}}}}}]\n{}",
        bootstrap(&[listener], &[cluster("up", address)])
    );
    (TestProxy::start_on(&bootstrap, 1).await, folder)
}

async fn pair(host: &TcpListener, proxy: &TestProxy) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address("tcp").await).await;
    let host = tokio::time::timeout(Duration::from_secs(10), host.accept()).await;
    let (host, _) = host.expect("in time").expect("a connection");
    (client.expect("connected"), host)
}

/// Whether the connection ends within two seconds, and what came on it.
async fn ends(client: &mut TcpStream) -> (bool, String) {
    let mut came = Vec::new();
    let end = client.read_to_end(&mut came);
    let end = tokio::time::timeout(Duration::from_secs(2), end).await;
    // A host that is left may have been reset.
    (end.is_ok(), String::from_utf8(came).expect("text"))
}

#[tokio::test]
async fn a_connection_that_is_held_for_too_long_goes_on_or_ends() {
    let full = "#234567890123456789x";
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    for more in ["", "failure_policy: FAIL_OPEN,"] {
        let (proxy, _folder) = narrow(&host, more, "defaults: {max_pause: 0.2s}").await;
        // What the host sent cannot go on, whatever the policy is: at its end, and when no more of it is read.
        let (mut client, mut upstream) = pair(&host, &proxy).await;
        upstream.write_all(b"#held").await.expect("sent");
        upstream.shutdown().await.expect("ended");
        assert_eq!(ends(&mut client).await, (true, String::new()), "{more}");
        let (mut client, mut upstream) = pair(&host, &proxy).await;
        upstream.write_all(full.as_bytes()).await.expect("sent");
        assert_eq!(ends(&mut client).await, (true, String::new()), "{more}");
        // More may come.
        let (mut client, mut upstream) = pair(&host, &proxy).await;
        upstream.write_all(b"#held").await.expect("sent");
        assert_eq!(ends(&mut client).await, (false, String::new()), "{more}");
        // What the client sent.
        let (mut client, mut upstream) = pair(&host, &proxy).await;
        client.write_all(full.as_bytes()).await.expect("sent");
        if more.is_empty() {
            assert_eq!(ends(&mut client).await, (true, String::new()));
        } else {
            expect(&mut upstream, full).await;
        }
        wait_for(&proxy, "wasm.pauses_ended", 3).await;
    }
}

#[tokio::test]
async fn a_plugin_makes_no_more_of_the_data_than_a_connection_holds() {
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (proxy, _folder) = narrow(&host, "", "").await;
    // `<after>` is of seven bytes.
    let (mut client, mut upstream) = pair(&host, &proxy).await;
    client.write_all(b")234567890123").await.expect("sent");
    expect(&mut upstream, ")234567890123<after>").await;
    let (mut client, mut upstream) = pair(&host, &proxy).await;
    client.write_all(b")2345678901234").await.expect("sent");
    assert_eq!(ends(&mut client).await, (true, String::new()));
    assert_eq!(ends(&mut upstream).await, (true, String::new()));
}

const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

/// A listener called `web` whose connection manager answers `/` by itself and sends `/up` to the cluster `up`, behind
/// these filters.
fn web(filters: &[String], stat_prefix: &str) -> String {
    let mut list = filters.to_vec();
    list.push(format!(
        "{{name: hcm, typed_config: {{'@type': {MANAGER}, stat_prefix: {stat_prefix}, common_http_protocol_options: {{idle_timeout: 20s}}, \
         route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /up}}, route: {{cluster: up}}}}, \
         {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: 'hello'}}}}}}]}}]}}, \
         http_filters: [{{name: router, typed_config: {{'@type': {ROUTER}}}}}]}}}}"
    ));
    format!(
        "{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{}]}}]}}",
        list.join(", ")
    )
}

/// A proxy with a guest before its connection manager, whose upstream never answers.
async fn web_with_guest(
    config: &str,
    more: &str,
) -> (TestProxy, SocketAddr, TcpListener, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest(folder.path());
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = silent.local_addr().expect("an address");
    let bootstrap = bootstrap(
        &[web(&[filter(&path, config, more)], "web")],
        &[cluster("up", host)],
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let address = proxy.address("web").await;
    (proxy, address, silent, folder)
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Reads until `text` ends what came.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut all = Vec::new();
    let read = async {
        while !all.ends_with(text.as_bytes()) {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("more");
            all.push(byte[0]);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("an answer within 20 s");
    String::from_utf8(all).expect("text")
}

async fn ended(stream: &mut TcpStream) -> bool {
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
    // A reset where the proxy had not read all.
    matches!(end, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn a_plugin_before_a_manager_sees_holds_and_changes_what_the_codec_reads_and_writes() {
    let (proxy, address, _silent, _folder) = web_with_guest("0+", "").await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // Two requests of one connection; of the second the guest takes the first byte away; the third is held, and a tick does so.
    for prefix in ["", "@", "#"] {
        stream
            .write_all(format!("{prefix}{ASK}").as_bytes())
            .await
            .expect("sent");
        let answer = until(&mut stream, "hello").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(stat(&proxy, "http.web.downstream_rq_2xx").await, 3);
    // The guest closes it; what is left of it is counted, as it was on the wire.
    stream.write_all(b"$").await.expect("sent");
    assert!(ended(&mut stream).await);
    wait_for(&proxy, "http.web.downstream_cx_active", 0).await;
    let received = 3 * ASK.len() as u64 + 3;
    assert_eq!(
        stat(&proxy, "http.web.downstream_cx_rx_bytes_total").await,
        received
    );
    assert_eq!(
        stat(&proxy, "http.web.downstream_cx_destroy_local").await,
        1
    );
}

#[tokio::test]
async fn a_plugin_before_a_manager_changes_answers() {
    let (proxy, address, _silent, _folder) = web_with_guest("0.)", "").await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(ASK.as_bytes()).await.expect("sent");
    let answer = until(&mut stream, "<after>").await;
    assert!(answer.ends_with("hello<after>"), "{answer}");
    drop(stream);
    wait_for(&proxy, "http.web.downstream_cx_active", 0).await;
    assert_eq!(
        stat(&proxy, "http.web.downstream_cx_tx_bytes_total").await,
        answer.len() as u64
    );
}

#[tokio::test]
async fn a_plugin_before_a_manager_sees_http2() {
    let (proxy, address, _silent, _folder) = web_with_guest("0.", "").await;
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // Preface, SETTINGS, and two requests: `:method`, `:scheme` and `:path` by their index, `:authority` as it is.
    stream
        .write_all(b"@PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .expect("sent");
    for id in [1, 3] {
        let mut frame = b"\0\0\x06\x01\x05\0\0\0".to_vec();
        frame.extend([id, 0x82, 0x86, 0x84, 1, 1, b'a']);
        stream.write_all(&frame).await.expect("sent");
        let mut all = Vec::new();
        let read = async {
            while !all.ends_with(b"hello") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.expect("more");
                all.push(byte[0]);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("an answer within 20 s");
    }
    assert_eq!(stat(&proxy, "http.web.downstream_rq_http2_total").await, 2);
}

#[tokio::test]
async fn a_plugin_before_a_manager_fails_and_ends_requests_in_flight() {
    for more in ["", "failure_policy: FAIL_OPEN,"] {
        let (proxy, address, _silent, _folder) = web_with_guest("0.", more).await;
        for act in ["!", "$"] {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            // The upstream does not answer; what comes meanwhile passes the guest.
            stream
                .write_all(b"GET /up HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .expect("sent");
            wait_for(&proxy, "http.web.downstream_rq_active", 1).await;
            stream.write_all(act.as_bytes()).await.expect("sent");
            assert!(ended(&mut stream).await, "{act}");
            wait_for(&proxy, "http.web.downstream_rq_active", 0).await;
            wait_for(&proxy, "http.web.downstream_cx_active", 0).await;
            // A fresh VM serves the next ones.
            let again = async {
                loop {
                    let answer = attempt(address, b"$").await;
                    let served = attempt_http(address).await;
                    if answer.is_empty() && served {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), again)
                .await
                .expect("a fresh VM");
        }
    }
}

/// Whether a new connection is answered.
async fn attempt_http(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    if stream.write_all(ASK.as_bytes()).await.is_err() {
        return false;
    }
    let mut first = [0; 4];
    stream.read_exact(&mut first).await.is_ok() && &first == b"HTTP"
}

#[tokio::test]
async fn connections_behind_network_filters_go_on_with_what_is_new_behind_them_and_drain_where_they_change()
 {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest(folder.path());
    let (host, _task) = echo().await;
    let (plane, proxy) = planed(&[cluster("up", host)]).await;
    let set = |config: &str, stat_prefix: &str, version: &str| {
        let listener = web(&[filter(&path, config, "")], stat_prefix);
        plane.set_resources(LISTENER, vec![any(&typed(LISTENER, &listener))], version);
    };
    set("0.", "one", "1");
    let address = proxy.address("web").await;
    let mut old = TcpStream::connect(address).await.expect("connected");
    old.write_all(ASK.as_bytes()).await.expect("sent");
    until(&mut old, "hello").await;
    let before = proxy.generation_number();
    // Another manager behind the same filters serves the same connection.
    set("0.", "two", "2");
    wait_for_rq(&proxy, &mut old, "http.two.downstream_rq_2xx").await;
    // It pins nothing.
    assert!(proxy.generation_number() > before);
    assert_eq!(proxy.running.server.current.sweep(), 1, "Generations alive");
    // Other filters: it is answered by what admitted it, and told that this was the last.
    set("$.", "two", "3");
    let closed = async {
        loop {
            let mut new = TcpStream::connect(address).await.expect("connected");
            let mut byte = [0];
            let read = new.read(&mut byte);
            if let Ok(Ok(0)) = tokio::time::timeout(Duration::from_millis(200), read).await {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), closed)
        .await
        .expect("the next version is live");
    old.write_all(ASK.as_bytes()).await.expect("sent");
    let answer = until(&mut old, "hello").await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(ended(&mut old).await);
}

/// Asks on `stream` until that counts at `name`.
async fn wait_for_rq(proxy: &TestProxy, stream: &mut TcpStream, name: &str) {
    let find = async {
        loop {
            stream.write_all(ASK.as_bytes()).await.expect("sent");
            let answer = until(stream, "hello").await;
            assert!(!answer.contains("connection: close"), "{answer}");
            let mut admin = Client::connect(proxy.admin()).await;
            let text = admin.get("admin", "/stats").await.body;
            let line = format!("{name}: ");
            let found = text.lines().find_map(|text| text.strip_prefix(&line));
            if found.is_some_and(|count| count != "0") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), find)
        .await
        .unwrap_or_else(|_| panic!("{name} stays 0"));
}

#[tokio::test]
async fn a_plugin_that_logs_hears_of_the_ends_of_connections_and_sees_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest_of(folder.path(), "order");
    let logger = |name: &str, filter: &str| {
        format!(
            "{{name: {name}, {filter} typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog, \
             config: {{name: {name}, vm_config: {{vm_id: {name}, code: {{local: {{filename: '{}'}}}}}}}}}}}}",
            path.display()
        )
    };
    let logs = [
        logger("all", ""),
        logger(
            "ends",
            "filter: {log_type_filter: {types: [TcpConnectionEnd]}},",
        ),
        logger(
            "requests",
            "filter: {log_type_filter: {types: [DownstreamEnd]}},",
        ),
    ];
    let settings = format!("cluster: up, access_log: [{}]", logs.join(", "));
    let (host, _task) = echo().await;
    let bootstrap = bootstrap(&[listener("tcp", &[], &settings)], &[cluster("up", host)]);
    // Each worker's guest counts for itself.
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let address = proxy.address("tcp").await;
    for _ in 0..2 {
        assert_eq!(exchange(address, b"hello").await, b"hello");
    }
    let plugins = &proxy.running.server.plugins;
    let wrote = |vm_id: &str| {
        let value = plugins.shared_value(vm_id, b"order").expect("written");
        String::from_utf8(value.to_vec()).expect("letters")
    };
    let told = async {
        // The last that hears.
        while wrote("ends") != "rvfll" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .unwrap_or_else(|_| panic!("{}", wrote("ends")));
    assert_eq!(wrote("all"), "rvfll");
    assert_eq!(wrote("requests"), "rvf");
}

/// What a filter of a connection sets is seen by its requests and by logs, and the TCP proxy does as it is asked.
#[tokio::test]
async fn what_a_plugin_sets_of_a_connection_is_seen_behind_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = guest_of(folder.path(), "connection-state");
    let log = folder.path().join("log");
    // `SetEnvoyFilterStateArguments`: the cluster `up`.
    let wish = "\\n\\x17envoy.tcp_proxy.cluster\\x12\\x02up";
    let asks = filter(&path, "", "").replace("value: ''", &format!("value: \"{wish}\""));
    let logged = access_log(&log).replace("%PROTOCOL%", "%FILTER_STATE(wasm.peer:PLAIN)%");
    let proxy = format!("cluster: other, {logged}");
    let (host, _task) = echo().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let other = closed.local_addr().expect("an address");
    drop(closed);
    let route = "direct_response: {status: 200, body: {inline_string: 'hello'}}";
    let shown = format!(
        "{route}, response_headers_to_add: [{{header: {{key: x-peer, value: '%FILTER_STATE(wasm.peer:PLAIN)%'}}}}]"
    );
    // The guest keeps its configuration where all of a VM see it.
    let plain = filter(&path, "", "").replace("vm_id: network", "vm_id: web");
    let web = web(&[plain], "web").replace(route, &shown);
    let bootstrap = bootstrap(
        &[listener("tcp", &[asks], &proxy), web],
        &[cluster("up", host), cluster("other", other)],
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    assert_eq!(exchange(proxy.address("tcp").await, b"back").await, b"back");
    let line = &lines(&proxy, &log, 1).await[0];
    assert!(line.contains(" up ") && line.contains(" x "), "{line}");
    let mut client = Client::connect(proxy.address("web").await).await;
    for _ in 0..2 {
        assert_eq!(client.get("a", "/").await.header("x-peer"), "x");
    }
}
