//! What keeps a proxy from starting, and that `--mode validate` says the same of it.

use crate::support::{TestProxy, listener_yaml};

const INLINE: &str = "route_config: {name: r, virtual_hosts: []}";

/// What validation says, and what a start says; empty where they have nothing to say.
async fn both(bootstrap: &str) -> (String, String) {
    let text = |error: anyhow::Error| format!("{error:#}");
    let prepare = || TestProxy::prepare(bootstrap, 1);
    let prepared = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => return (text(error), text(prepare().expect_err("refused again"))),
    };
    let validated = prepared.validate().await;
    let started = prepared.start().await;
    let said = |result: Result<(), anyhow::Error>| result.map_err(text).err().unwrap_or_default();
    (said(validated), said(started.map(drop)))
}

/// Static resources: a cluster called `up`, others, and a listener with these routes and filters.
fn statics(clusters: &str, routes: &str, filters: &str) -> String {
    let listener = listener_yaml("web", routes, filters).replace(
        "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n",
        "",
    );
    let listener = listener.trim().replace('\n', "\n    ");
    format!(
        "node: {{id: a, cluster: b}}\nstatic_resources:\n  clusters:\n  - {{name: up, type: STATIC, load_assignment: \
         {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
         port_value: 9}}}}}}}}]}}]}}}}\n{clusters}\n  listeners:\n  - {listener}\n"
    )
}

#[tokio::test]
async fn validation_refuses_what_cannot_start() {
    let api = |cluster: &str| {
        format!(
            "api_config_source: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: \
             {cluster}}}}}]}}"
        )
    };
    let eds = |source: &str| {
        format!("  - {{name: e, type: EDS, eds_cluster_config: {{eds_config: {{{source}}}}}}}")
    };
    let rds = |source: &str| format!("rds: {{route_config_name: r, config_source: {{{source}}}}}");
    let dynamic = |field: &str| {
        format!(
            "{}dynamic_resources: {{{field}}}\n",
            statics("", INLINE, "")
        )
    };
    let discovered = |source: &str| {
        format!(
            "- {{name: f, config_discovery: {{config_source: {{{source}}}, type_urls: \
             [type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors]}}}}"
        )
    };
    let not_static = "statically defined non-EDS cluster: 'nope' does not exist";
    let no_ads = "ADS must be configured";
    let no_file = "paths must refer to an existing path in the system: '/nope' does not exist";
    let file = "path_config_source: {path: /nope}";
    for (bootstrap, reason) in [
        (
            dynamic(
                "ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: nope}}]}",
            ),
            "dynamic_resources.ads_config.grpc_services: Unknown gRPC client cluster 'nope'",
        ),
        (dynamic("cds_config: {ads: {}}"), no_ads),
        (
            dynamic(&format!("cds_config: {{{}}}", api("nope"))),
            not_static,
        ),
        (
            dynamic(&format!("lds_config: {{{}}}", api("nope"))),
            not_static,
        ),
        (dynamic(&format!("cds_config: {{{file}}}")), no_file),
        (statics(&eds("ads: {}"), INLINE, ""), no_ads),
        (statics(&eds(&api("nope")), INLINE, ""), not_static),
        (
            statics(&eds(&api("e")), INLINE, ""),
            "'e' does not exist, was added via api, or is an EDS cluster",
        ),
        (statics(&eds(file), INLINE, ""), no_file),
        (statics("", &rds("ads: {}"), ""), no_ads),
        (statics("", &rds(&api("nope")), ""), not_static),
        (statics("", &rds(file), ""), no_file),
        (statics("", INLINE, &discovered("ads: {}")), no_ads),
        (statics("", INLINE, &discovered(file)), no_file),
        (
            format!(
                "{}stats_config: {{stats_tags: [{{tag_name: t, regex: '('}}]}}\n",
                statics("", INLINE, "")
            ),
            "stats_config.stats_tags",
        ),
    ] {
        let (validated, started) = both(&bootstrap).await;
        assert!(validated.contains(reason), "{validated}\n{bootstrap}");
        assert_eq!(validated, started, "{bootstrap}");
    }
    // Envoy's validation does not look for the file of listeners; its start does.
    let (validated, started) = both(&dynamic(&format!("lds_config: {{{file}}}"))).await;
    assert_eq!(validated, "");
    assert!(started.contains(no_file), "{started}");
    let fine = statics(&eds(&api("up")), INLINE, "");
    assert_eq!(both(&fine).await, Default::default());
}

/// Calls the cluster `up` when it is configured, and is content if that is taken.
#[cfg(feature = "wasm")]
const CALLER: &str = r#"
(module
  (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 128) "up")
  (data (i32.const 160) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/\00:authority\00a\00")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $call (i32.const 128) (i32.const 2) (i32.const 160) (i32.const 61)
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2000) (i32.const 4)))))
"#;

#[cfg(feature = "wasm")]
#[tokio::test]
async fn a_plugin_of_a_static_listener_may_call_static_clusters_while_it_is_tried() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("caller.wasm");
    std::fs::write(&path, wat::parse_str(CALLER).expect("valid text")).expect("a file");
    let plugin = format!(
        "- {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {{name: p, \
         vm_config: {{code: {{local: {{filename: '{}'}}}}}}}}}}}}",
        path.display()
    );
    let upstream = crate::support::FakeUpstream::start("up").await;
    let port = format!("port_value: {}", upstream.address.port());
    let bootstrap = statics("", INLINE, &plugin).replace("port_value: 9", &port);
    let prepared = TestProxy::prepare(&bootstrap, 1).expect("valid");
    prepared.validate().await.expect("valid");
    assert_eq!(upstream.connections(), 0, "validation sends nothing");
    assert_eq!(both(&bootstrap).await, Default::default());
    let (validated, started) = both(&bootstrap.replace("name: up", "name: other")).await;
    assert!(
        validated.contains("static_resources.listeners[web].filter_chains[0].http_filters[0]")
            && validated.contains("proxy_on_configure returned false"),
        "{validated}"
    );
    assert_eq!(validated, started);
}

#[tokio::test]
async fn an_access_log_that_cannot_be_opened_keeps_a_static_listener_from_starting() {
    let log = "access_log: [{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /nonexistent/a.log}}]";
    let bootstrap = statics("", &format!("{INLINE}\n      {log}"), "");
    let (validated, started) = both(&bootstrap).await;
    // Validation writes nothing.
    assert_eq!(validated, "");
    assert!(
        started.contains("unable to open file '/nonexistent/a.log': No such file"),
        "{started}"
    );
}
