//! Names that a plugin has resolved: what it is told. The addresses are those that a running Envoy 1.40 told, or the form of
//! what it told.

use crate::support::{Client, FakeUpstream, TestProxy, guest};

#[tokio::test]
async fn a_plugin_is_told_the_addresses_of_a_name() {
    let upstream = FakeUpstream::start("answer").await;
    let files = tempfile::tempdir().expect("a folder");
    let code = files.path().join("resolve.wasm");
    std::fs::write(&code, guest("resolve")).expect("a file");
    // Envoy's own functions are no capabilities.
    let allowed = [
        "on_context_create",
        "on_request_headers",
        "get_header_map_value",
        "get_buffer_bytes",
        "set_effective_context",
        "send_local_response",
    ]
    .map(|name| format!("proxy_{name}: {{}}"))
    .join(", ");
    let bootstrap = format!(
        "
        node: {{id: test, cluster: test}}
        admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
        static_resources:
          listeners:
          - name: in
            address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
            filter_chains:
            - filters:
              - name: http
                typed_config:
                  '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                  stat_prefix: s
                  route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}
                  http_filters:
                  - name: plugin
                    typed_config:
                      '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
                      config: {{name: resolve, capability_restriction_config: {{allowed_capabilities: {{{allowed}}}}}, vm_config: {{code: {{local: {{filename: '{}'}}}}}}}}
                  - name: router
                    typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          clusters:
          - name: up
            load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}
        ",
        code.display(),
        upstream.endpoint(),
    );
    let proxy = TestProxy::start_on(&bootstrap, 1).await;
    let mut client = Client::connect(proxy.address("in").await).await;
    for (name, told) in [
        ("127.0.0.9", "127.0.0.9:0\0"),
        ("localhost", "[::1]:0\0"),
        ("a.localhost", "[::1]:0\0"),
        // No name: no answer either.
        ("a:b", ""),
    ] {
        let response = client.get("test", &format!("/{name}")).await;
        assert_eq!((response.status, &*response.body), (200, told), "{name}");
    }
}
