//! Options of listeners and connection managers that nothing else shows: each with its opposite on a second listener.

use crate::support::{Client, FakeUpstream, TestProxy};

const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

fn listener(name: &str, address: &str, options: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{{address}, port_value: 0}}}}, default_filter_chain: {{filters: [{{name: http, typed_config: {{'@type': {MANAGER}, stat_prefix: {name}, {options} route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}, http_filters: [{{name: router, typed_config: {{'@type': {ROUTER}}}}}]}}}}]}}}}"
    )
}

async fn proxy(listeners: &[String], upstream: &FakeUpstream) -> TestProxy {
    TestProxy::start(&format!(
        "{{node: {{id: test, cluster: test}}, static_resources: {{listeners: [{}], clusters: [{{name: up, connect_timeout: 1s, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}}}]}}}}",
        listeners.join(", "),
        upstream.endpoint()
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
    let proxy = proxy(
        &[
            listener("alone", "address: '::'", ""),
            listener("both", "address: '::', ipv4_compat: true", ""),
        ],
        &upstream,
    )
    .await;
    let port = proxy.address("both").await.port();
    let mut client = Client::connect(([127, 0, 0, 1], port).into()).await;
    assert_eq!(client.get("a", "/").await.status, 200);
    let port = proxy.address("alone").await.port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
