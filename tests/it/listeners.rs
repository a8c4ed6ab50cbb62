//! Listeners that come, change and go, as `listener_manager.` counts them. The numbers are those of Envoy 1.40 for the same steps.

use std::time::Duration;

use plenipo::control_plane::ControlPlane;
use tokio::net::TcpListener;

use crate::support::{Client, TestProxy, ads_bootstrap, any, listener_yaml};

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// A listener that answers with `body`, with other fields of its own.
fn listener(name: &str, body: &str, fields: &str) -> plenipo::pb::Any {
    let routes = format!(
        "route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}]}}"
    );
    any(&format!("{}{fields}\n", listener_yaml(name, &routes, "")))
}

#[tokio::test]
async fn listeners_are_counted_as_envoy_counts_them() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let plane = ControlPlane::start(socket).expect("the control plane starts");
    plane.set_resources(
        LISTENER,
        vec![listener("a", "1", ""), listener("b", "1", "")],
        "1",
    );
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{}",
        ads_bootstrap(plane.address(), false)
    );
    let proxy = TestProxy::start_on(&bootstrap, 2).await;
    let mut admin = Client::connect(proxy.admin()).await;
    // Added, modified, of them in place, created (by worker), removed, stopped.
    let mut counts = async |expected: [u64; 6]| {
        let names = [
            "added",
            "modified",
            "in_place_updated",
            "create_success",
            "removed",
            "stopped",
        ];
        let mut counted = async || {
            let stats = admin
                .get("admin", "/stats?filter=listener_manager")
                .await
                .body;
            names.map(|name| {
                let line = format!("listener_manager.listener_{name}: ");
                let value = stats.lines().find_map(|text| text.strip_prefix(&line));
                value
                    .and_then(|value| value.parse::<u64>().ok())
                    .expect("a number")
            })
        };
        let mut last = [0; 6];
        let shows = async {
            while last != expected {
                last = counted().await;
                tokio::task::yield_now().await;
            }
        };
        let shown = tokio::time::timeout(Duration::from_secs(10), shows).await;
        assert!(shown.is_ok(), "{last:?}, not {expected:?}");
    };
    let mut update = 1;
    let mut set = |listeners| {
        update += 1;
        plane.set_resources(LISTENER, listeners, &update.to_string());
    };
    counts([2, 0, 0, 4, 0, 0]).await;
    // Its filter chains alone.
    set(vec![listener("a", "2", ""), listener("b", "1", "")]);
    counts([2, 1, 1, 6, 0, 0]).await;
    let limit = "per_connection_buffer_limit_bytes: 1000";
    set(vec![listener("a", "2", limit), listener("b", "1", "")]);
    counts([2, 2, 1, 8, 0, 0]).await;
    set(vec![listener("b", "1", "")]);
    counts([2, 2, 1, 8, 1, 0]).await;
    set(vec![listener("b", "1", ""), listener("a", "2", "")]);
    counts([3, 2, 1, 10, 1, 0]).await;
    proxy.running.server.stop_accepting(true).await;
    counts([3, 2, 1, 10, 1, 0]).await;
    proxy.running.server.stop_accepting(false).await;
    counts([3, 2, 1, 10, 1, 2]).await;
    // It is there, and nobody serves it.
    set(vec![listener("b", "1", ""), listener("c", "2", "")]);
    counts([4, 2, 1, 10, 2, 2]).await;
}
