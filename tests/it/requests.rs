//! Whole requests through a proxy of static resources: what the upstream sees, and what clients are answered.

use crate::support::{Client, FakeUpstream, TestProxy, exchange};

fn bootstrap(upstream: &FakeUpstream, options: &str) -> String {
    format!(
        r#"
static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          {options}
          route_config:
            virtual_hosts:
            - name: exact
              domains: [exact.test]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: exact}}}}}}]
            - name: suffix
              domains: ["*.test"]
              routes:
              - match: {{prefix: /dead}}
                route: {{cluster: dead}}
              - match: {{prefix: /rewrite}}
                route: {{cluster: up, prefix_rewrite: /new}}
              - match: {{prefix: /}}
                route: {{cluster: up}}
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}
  - name: dead
    connect_timeout: 0.2s
    load_assignment: {{cluster_name: dead, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}
"#,
        upstream.endpoint()
    )
}

#[tokio::test]
async fn fields_keep_their_order_where_others_are_taken_out() {
    let upstream = FakeUpstream::answering(
        "HTTP/1.1 200 OK\r\nx-a: 1\r\nkeep-alive: 5\r\nx-b: 2\r\nx-out: 3\r\nx-c: 4\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
    )
    .await;
    let text = bootstrap(&upstream, "").replace(
        "{cluster: up, prefix_rewrite: /new}",
        "{cluster: up}\n                request_headers_to_remove: [x-out, x-not-there]\n                response_headers_to_remove: [x-out]",
    );
    let proxy = TestProxy::start(&text).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    let response = client
        .send(
            "GET /rewrite HTTP/1.1\r\nhost: a.test\r\nconnection: keep-alive, x-gone\r\nx-a: 1\r\nx-gone: 1\r\nx-b: 2\r\n\
             x-envoy-max-retries: 3\r\nx-out: 3\r\nx-c: 4\r\n\r\n",
        )
        .await;
    let ours = |headers: &[(String, String)]| {
        let ours = |name: &&str| name.len() == 3 && name.starts_with("x-");
        let names = headers.iter().map(|(name, _)| &**name);
        names.filter(ours).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ours(&upstream.seen()[0].headers), "x-a x-b x-c");
    assert_eq!(ours(&response.headers), "x-a x-b x-c");
}

#[tokio::test]
async fn the_upstream_sees_what_envoy_would_send() {
    let upstream = FakeUpstream::start("up").await;
    let proxy = TestProxy::start(&bootstrap(&upstream, "")).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    let response = client
        .send(
            "POST /rewrite/x?q=1 HTTP/1.1\r\nHost: a.test\r\nX-Foo: 1\r\nx-foo: 2\r\nConnection: keep-alive, x-gone\r\n\
             x-gone: 1\r\nx-envoy-max-retries: 3\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
    assert_eq!((response.status, &*response.body), (200, "up"));
    assert_eq!(response.header("server"), "envoy");
    assert!(!response.header("date").is_empty());
    let seen = &upstream.seen()[0];
    assert_eq!(seen.line, "POST /new/x?q=1 HTTP/1.1");
    assert_eq!(seen.body, "hello");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("x-request-id").len(), 36);
    assert_eq!(seen.header("x-envoy-expected-rq-timeout-ms"), "15000");
    assert_eq!(seen.header("x-envoy-original-path"), "/rewrite/x?q=1");
    let names: Vec<&str> = seen.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names.iter().filter(|name| **name == "x-foo").count(), 2);
    for gone in [
        "connection",
        "x-gone",
        "x-envoy-max-retries",
        "x-forwarded-for",
    ] {
        assert!(!names.contains(&gone), "{gone} reached the upstream");
    }
}

#[tokio::test]
async fn local_replies_are_envoys() {
    let upstream = FakeUpstream::start("up").await;
    let proxy = TestProxy::start(&bootstrap(&upstream, "")).await;
    let address = proxy.address("web").await;
    for (request, status, body) in [
        ("GET / HTTP/1.1\r\nhost: exact.test\r\n\r\n", 200, "exact"),
        ("GET / HTTP/1.1\r\nhost: other\r\n\r\n", 404, ""),
        ("GET / HTTP/1.1\r\n\r\n", 400, ""),
        (
            "GET / HTTP/1.0\r\nhost: a.test\r\n\r\n",
            426,
            "Upgrade Required",
        ),
        ("GET /#x HTTP/1.1\r\nhost: a.test\r\n\r\n", 400, ""),
        (
            "GET / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "Bad Request",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: gzip\r\n\r\n",
            501,
            "Not Implemented",
        ),
        ("OPTIONS * HTTP/1.1\r\nhost: a.test\r\n\r\n", 404, ""),
        (
            "GET /dead HTTP/1.1\r\nhost: a.test\r\n\r\n",
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        ),
    ] {
        let response = exchange(address, request).await;
        assert_eq!(
            (response.status, &*response.body),
            (status, body),
            "{request}"
        );
        assert_eq!(response.header("server"), "envoy", "{request}");
    }
    let seen = upstream.seen();
    assert!(
        seen.is_empty(),
        "nothing of these reaches an upstream: {seen:?}"
    );
}

#[tokio::test]
async fn pooled_connections_are_used_again() {
    let upstream = FakeUpstream::start("up").await;
    let proxy = TestProxy::start(&bootstrap(&upstream, "")).await;
    let mut client = Client::connect(proxy.address("web").await).await;
    for _ in 0..20 {
        assert_eq!(client.get("a.test", "/").await.status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn the_server_name_can_be_changed() {
    let upstream = FakeUpstream::start("up").await;
    let proxy = TestProxy::start(&bootstrap(&upstream, "server_name: other")).await;
    let response = exchange(
        proxy.address("web").await,
        "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n",
    )
    .await;
    assert_eq!(response.header("server"), "other");
}

#[tokio::test]
async fn a_response_that_stalls_is_reset_and_counted() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned();
    let upstream = FakeUpstream::answering(half).await;
    let proxy = TestProxy::start(&format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        bootstrap(&upstream, "stream_idle_timeout: 0.1s")
    ))
    .await;
    let mut client = Client::connect(proxy.address("web").await).await;
    client
        .write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    assert!(client.read().await.is_none(), "cut off");
    let page = exchange(
        proxy.admin(),
        "GET /stats?filter=http.web.downstream_rq HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    for name in ["idle_timeout", "tx_reset", "rx_reset"] {
        let line = format!("http.web.downstream_rq_{name}: 1\n");
        assert!(page.body.contains(&line), "{line}{}", page.body);
    }
}
