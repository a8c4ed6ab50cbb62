//! Options of listeners and connection managers that nothing else shows: each with its opposite on a second listener.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::network::lines;
use crate::support::{Client, FakeUpstream, TestProxy};

const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

fn listener(name: &str, address: &str, options: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{{address}, port_value: 0}}}}, default_filter_chain: {{filters: [{{name: http, typed_config: {{'@type': {MANAGER}, stat_prefix: {name}, {options} route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{'@type': {ROUTER}}}}}]}}}}]}}}}"
    )
}

async fn proxy(listeners: &[String], upstream: &FakeUpstream) -> TestProxy {
    proxy_to(listeners, &upstream.endpoint()).await
}

async fn proxy_to(listeners: &[String], endpoint: &str) -> TestProxy {
    TestProxy::start(&format!(
        "{{node: {{id: test, cluster: test}}, admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}, static_resources: {{listeners: [{}], clusters: [{{name: up, connect_timeout: 1s, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}}}]}}}}",
        listeners.join(", "),
        endpoint
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manager_is_told_to_let_through() {
    let upstream = FakeUpstream::start("a").await;
    let local = "address: 127.0.0.1";
    let proxy = proxy(
        &[
            listener("strict", local, ""),
            listener(
                "open",
                local,
                "http_protocol_options: {allow_custom_methods: true}, forward_client_cert_details: ALWAYS_FORWARD_ONLY,",
            ),
        ],
        &upstream,
    )
    .await;
    let certified = "GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: By=a\r\n\r\n";
    let custom = "BREW / HTTP/1.1\r\nHost: a\r\n\r\n";

    let mut strict = Client::connect(proxy.address("strict").await).await;
    assert_eq!(strict.send(certified).await.status, 200);
    assert_eq!(strict.send(custom).await.status, 400);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("x-forwarded-client-cert"), "");

    let mut open = Client::connect(proxy.address("open").await).await;
    assert_eq!(open.send(certified).await.status, 200);
    assert_eq!(open.send(custom).await.status, 200);
    let seen = upstream.seen();
    assert_eq!(seen[0].header("x-forwarded-client-cert"), "By=a");
    assert!(seen[1].line.starts_with("BREW / "), "{}", seen[1].line);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_listener_serves_ipv4_where_it_is_told_to() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // This machine has no IPv6.
        return;
    }
    let upstream = FakeUpstream::start("a").await;
    let both = listener("both", "address: '::', ipv4_compat: true", "");
    let proxy_both = proxy(&[both], &upstream).await;
    let port = proxy_both.address("both").await.port();
    let mut client = Client::connect(([127, 0, 0, 1], port).into()).await;
    assert_eq!(client.get("a", "/").await.status, 200);
    // The same port of IPv4 may be that of another test by chance, but not time and again.
    let mut refused = false;
    for _ in 0..5 {
        let alone = listener("alone", "address: '::'", "");
        let proxy_alone = proxy(&[alone], &upstream).await;
        let port = proxy_alone.address("alone").await.port();
        refused |= std::net::TcpStream::connect(("127.0.0.1", port)).is_err();
        if refused {
            break;
        }
    }
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_and_interim_answers_are_counted() {
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream = FakeUpstream::answering(switching.to_owned()).await;
    let options = "upgrade_configs: [{upgrade_type: websocket}],";
    let proxy = proxy(&[listener("l", "address: 127.0.0.1", options)], &upstream).await;
    let mut admin = Client::connect(proxy.admin()).await;
    let address = proxy.address("l").await;

    let mut tunnel = Client::connect(address).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(tunnel.send(request).await.status, 101);
    let page = admin.get("a", "/stats?filter=http.l.*upgrades").await.body;
    assert_eq!(
        page,
        "http.l.downstream_cx_upgrades_active: 1\nhttp.l.downstream_cx_upgrades_total: 1\n"
    );
    drop(tunnel);

    let mut other = Client::connect(address).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\nconnection: close\r\n\r\n";
    assert_eq!(other.send(request).await.status, 100);
    other.write(b"x").await;
    // What switches protocols unasked is an answer without a body.
    assert_eq!(other.read().await.map(|answer| answer.status), Some(101));
    assert!(other.is_closed().await);
    // The 100 counts, too; streams are counted once they are over.
    let wanted = "http.l.downstream_cx_upgrades_active: 0\nhttp.l.downstream_rq_1xx: 3\nhttp.l.downstream_rq_5xx: 0\n";
    let filter = "^http.l.*(upgrades_active|rq_1xx|rq_5xx)";
    shows(&mut admin, filter, wanted).await;
}

/// Routes, rules, logs and the upstream see what an upgrade asks for, once each.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_upgrade_asks_for_is_seen_by_all() {
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream = FakeUpstream::answering(switching.to_owned()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let options = format!(
        r#"access_log: [{{name: file, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
           path: "{}", log_format: {{text_format_source: {{inline_string: "%RESPONSE_CODE% %REQ(UPGRADE)% %REQ(CONNECTION)%\n"}}}}}}}}],"#,
        log.display()
    );
    let listener = listener("l", "address: 127.0.0.1", &options).replace(
        "match: {prefix: /}, route: {cluster: up}",
        "match: {prefix: /, headers: [{name: upgrade, string_match: {exact: websocket}}]}, \
         route: {cluster: up, upgrade_configs: [{upgrade_type: websocket}]}",
    );
    let proxy = proxy(&[listener], &upstream).await;
    let address = proxy.address("l").await;
    let ask = |protocol| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: {protocol}\r\n\r\n"
        )
    };
    let mut tunnel = Client::connect(address).await;
    assert_eq!(tunnel.send(&ask("websocket")).await.status, 101);
    drop(tunnel);
    let mut other = Client::connect(address).await;
    assert_eq!(other.send(&ask("other")).await.status, 403);
    let seen = upstream.seen();
    let of = |name: &str| {
        let headers = seen[0].headers.iter().filter(|header| header.0 == name);
        headers.map(|header| header.1.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of("connection"), ["keep-alive, Upgrade"]);
    assert_eq!(of("upgrade"), ["websocket"]);
    let text = lines(&proxy, &log, 2).await;
    assert!(
        text.contains(&"101 websocket keep-alive, Upgrade".to_owned()),
        "{text:?}"
    );
    assert!(
        text.contains(&"403 other keep-alive, Upgrade".to_owned()),
        "{text:?}"
    );
}

/// It has no end of its own: the log says that it was cut off. The client reads all that came of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_the_upstream_closes_was_cut_off() {
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = host.local_addr().expect("an address").port();
    let endpoint = format!(
        "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let options = format!(
        r#"upgrade_configs: [{{upgrade_type: websocket}}], access_log: [{{name: file,
           typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: "{}",
           log_format: {{text_format_source: {{inline_string: "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"}}}}}}}}],"#,
        log.display()
    );
    let proxy = proxy_to(&[listener("l", "address: 127.0.0.1", &options)], &endpoint).await;
    let mut client = TcpStream::connect(proxy.address("l").await)
        .await
        .expect("connected");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.expect("sent");
    let (mut upstream, _) = host.accept().await.expect("a connection");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(upstream.read_u8().await.expect("a head"));
    }
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbye";
    upstream
        .write_all(switching.as_bytes())
        .await
        .expect("sent");
    drop(upstream);
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.expect("no reset");
    assert!(
        heard.starts_with("HTTP/1.1 101 ") && heard.ends_with("\r\n\r\nbye"),
        "{heard}"
    );
    let reason = "101 UC upstream_reset_after_response_started{connection_termination}";
    assert_eq!(lines(&proxy, &log, 1).await, [reason]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unclean_paths_are_counted_by_what_was_decided_and_not_by_the_status_that_is_sent() {
    let upstream = FakeUpstream::start("a").await;
    let options = "path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT, local_reply_config: {mappers: [{filter: \
        {not_health_check_filter: {}}, status_code: 418}]},";
    let proxy = proxy(&[listener("l", "address: 127.0.0.1", options)], &upstream).await;
    let mut admin = Client::connect(proxy.admin()).await;
    let mut client = Client::connect(proxy.address("l").await).await;
    let answer = client.get("a", "/a%2Fb").await;
    assert_eq!((answer.status, answer.header("location")), (418, "/a/b"));
    // No client of gRPC follows a redirect.
    let grpc = "POST /a%2Fb HTTP/1.1\r\nHost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(client.send(grpc).await.status, 200);
    let wanted = "http.l.downstream_rq_failed_path_normalization: 1\nhttp.l.downstream_rq_redirected_with_normalized_path: 1\n";
    shows(&mut admin, "^http.l.*normaliz", wanted).await;
}

/// Waits until the statistics that `filter` matches are these.
async fn shows(admin: &mut Client, filter: &str, wanted: &str) {
    let target = format!("/stats?filter={filter}");
    let mut last = String::new();
    let shown = async {
        while last != wanted {
            last = admin.get("a", &target).await.body;
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(std::time::Duration::from_secs(5), shown)
        .await
        .is_err()
    {
        assert_eq!(last, wanted, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_canaries_and_with_unknown_codes_are_counted() {
    let odd = "HTTP/1.1 700 Odd\r\ncontent-length: 0\r\n\r\n".to_owned();
    let upstream = FakeUpstream::answering(odd).await;
    let metadata = "{metadata: {filter_metadata: {envoy.lb: {canary: true}}}, endpoint";
    let canary = upstream.endpoint().replacen("{endpoint", metadata, 1);
    let proxy = proxy_to(&[listener("l", "address: 127.0.0.1", "")], &canary).await;
    let mut client = Client::connect(proxy.address("l").await).await;
    assert_eq!(client.get("a", "/").await.status, 700);
    let mut admin = Client::connect(proxy.admin()).await;
    let wanted = ["canary.", "external.", ""].map(|group| {
        format!(
            "cluster.up.{group}upstream_rq_completed: 1\ncluster.up.{group}upstream_rq_unknown: 1\n"
        )
    });
    shows(
        &mut admin,
        "^cluster.up.*rq_(unknown|completed)$",
        &wanted.concat(),
    )
    .await;
    let page = admin
        .get("a", "/stats?filter=canary.upstream_rq_time")
        .await;
    assert!(
        page.body
            .starts_with("cluster.up.canary.upstream_rq_time: ")
    );

    // A host may say that it is one.
    let says = |value: &str| {
        format!("HTTP/1.1 200 OK\r\nx-envoy-upstream-canary: {value}\r\ncontent-length: 0\r\n\r\n")
    };
    for (value, counted) in [
        ("true", "cluster.up.canary.upstream_rq_200: 1\n"),
        ("TRUE", ""),
    ] {
        let upstream = FakeUpstream::answering(says(value)).await;
        let listeners = [listener("l", "address: 127.0.0.1", "")];
        let proxy = self::proxy(&listeners, &upstream).await;
        let mut client = Client::connect(proxy.address("l").await).await;
        assert_eq!(client.get("a", "/").await.status, 200);
        let mut admin = Client::connect(proxy.admin()).await;
        shows(
            &mut admin,
            "^cluster.up.upstream_rq_200",
            "cluster.up.upstream_rq_200: 1\n",
        )
        .await;
        shows(&mut admin, "canary.upstream_rq_200", counted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_health_and_drained_connections_show_at_once() {
    let upstream = FakeUpstream::start("a").await;
    let proxy = proxy(&[listener("l", "address: 127.0.0.1", "")], &upstream).await;
    let address = proxy.address("l").await;
    let mut admin = Client::connect(proxy.admin()).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("a", "/").await.header("connection"), "");
    let drained = "^http.l.downstream_cx_drain_close";
    shows(&mut admin, drained, "http.l.downstream_cx_drain_close: 0\n").await;

    // The next flush would set it, too: the first look is the one that counts.
    for (to, live) in [("fail", 0), ("ok", 1), ("fail", 0)] {
        let request =
            format!("POST /healthcheck/{to} HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(admin.send(&request).await.status, 200);
        let page = admin.get("a", "/stats?filter=^server.live").await;
        assert_eq!(page.body, format!("server.live: {live}\n"));
    }
    // Who fails health checks sends connections away.
    assert_eq!(client.get("a", "/").await.header("connection"), "close");
    assert!(client.is_closed().await);
    shows(&mut admin, drained, "http.l.downstream_cx_drain_close: 1\n").await;
}
