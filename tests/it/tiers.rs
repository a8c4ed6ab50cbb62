//! A first start of a plugin with its baseline code: the optimised code takes over under load, and no request fails or goes
//! without the plugin.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plenipo::wasm::status::State;

use crate::support::guests::marker;
use crate::support::{Client, FakeUpstream, TestProxy, listener_yaml};

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const SETTINGS: &str = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings";
const ROUTES: &str = "route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: up}}]}]}";
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn optimised_code_takes_over_under_load_and_nobody_notices() {
    let upstream = FakeUpstream::start("answer").await;
    let code = STANDARD.encode(marker("tiers", 1));
    let filter = format!(
        "- {{name: plugin, typed_config: {{'@type': {WASM}, config: {{name: tiers, failure_policy: FAIL_CLOSED, vm_config: {{vm_id: tiers, code: {{local: {{inline_bytes: {code}}}}}}}}}}}}}"
    );
    let listener = listener_yaml("web", ROUTES, &filter);
    let listener: Vec<_> = listener
        .lines()
        .filter(|line| !line.contains("envoy.config.listener.v3.Listener"))
        .map(|line| format!("    {line}\n"))
        .collect();
    let proxy = TestProxy::start(&format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n\
         bootstrap_extensions: [{{name: wasm, typed_config: {{'@type': {SETTINGS}, compiler: {{baseline_from_bytes: 1}}}}}}]\n\
         static_resources:\n  \
         clusters: [{{name: up, load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{}]}}]}}}}]\n  \
         listeners:\n  -\n{}",
        upstream.endpoint(),
        listener.concat()
    ))
    .await;
    let mut client = Client::connect(proxy.address("web").await).await;
    let plugins = &proxy.running.server.plugins;
    let done = async {
        let mut after = 0;
        // Some more, when all has been swapped.
        while after < 50 {
            let response = client.send(GET).await;
            assert_eq!(response.status, 200, "{response:?}");
            assert_eq!(response.header("x-guest"), "1", "{response:?}");
            let served = plugins.status();
            after += usize::from(served.iter().all(|version| {
                let live = version.live.as_ref();
                live.is_some_and(|live| live.tier == "optimised")
            }));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done)
        .await
        .expect("within a minute");
    let [version] = &plugins.status()[..] else {
        panic!("one version")
    };
    let history = version.history.iter();
    let lives: Vec<_> = history
        .filter(|event| event.state == State::Live)
        .map(|event| &*event.detail)
        .collect();
    assert_eq!(lives, ["baseline code", "optimised code"]);
    // Of two workers, once for each tier.
    assert!(version.vms.iter().all(|vm| vm.created == 1 && vm.working));
}
