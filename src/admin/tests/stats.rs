//! Statistics: filters, what is hidden, and what is set to zero.

use super::*;

#[test]
fn stats_are_filtered_as_asked() {
    let world = world();
    world
        .context
        .metrics
        .metric("server.live", MetricKind::Gauge)
        .set(1);
    assert_eq!(
        world.get("//stats?filter=server.live&format=json").body,
        r#"{"stats":[{"name":"server.live","value":1}]}"#
    );
    assert_eq!(
        world.get("/stats?usedonly&filter=^server\\.l").body,
        "server.live: 1\n"
    );
    let inverted = world.get("/stats?filter=^cluster&invert_filter").body;
    assert!(inverted.contains("server.live: 1\n") && !inverted.contains("cluster.a."));
    assert!(
        world
            .get("/stats/prometheus?filter=server")
            .body
            .contains("envoy_server_live{} 1\n")
    );
    assert_eq!(
        world.get("/stats?format=prometheus&filter=server").body,
        world.get("/stats/prometheus?filter=server").body
    );
    let live = |rest: &str| world.get(&format!("/stats?filter=server.live&{rest}")).body;
    for shown in [
        "type=",
        "hidden=",
        "hidden=include",
        "hidden=exclude",
        "type=Gauges&hidden=include",
    ] {
        assert_eq!(live(shown), "server.live: 1\n", "{shown}");
    }
    assert_eq!(live("hidden=only"), "", "nothing is hidden");
    for (target, body) in [
        (
            "/stats?hidden=maybe",
            "usage: /stats?hidden=(include|only|exclude)\n\n",
        ),
        (
            "/stats?format=nope",
            "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n",
        ),
        ("/stats?type=Foo", "invalid &type= param"),
        (
            "/stats/prometheus?histogram_buckets=detailed",
            "unsupported prometheus histogram bucket mode",
        ),
    ] {
        let response = world.get(target);
        assert_eq!(
            (response.status.as_u16(), response.body.as_str()),
            (400, body)
        );
    }
    let response = world.get("/stats?filter=*");
    assert_eq!(response.status, StatusCode::BAD_REQUEST);
    assert!(
        response.body.starts_with("Invalid re2 regex: "),
        "{}",
        response.body
    );
    assert_eq!(world.get("/stats?format=html").kind, Kind::Html);
}

#[test]
fn hidden_stats_are_nowhere() {
    let world = world_of(
        "stats_config: {stats_matcher: {inclusion_list: {patterns: [{prefix: server.l}]}}, stats_tags: [{tag_name: x, fixed_value: y}]}",
    );
    for name in ["server.live", "other.live"] {
        world.context.metrics.metric(name, MetricKind::Gauge).set(1);
    }
    assert_eq!(world.get("/stats").body, "server.live: 1\n");
    assert!(
        world
            .get("/stats/prometheus")
            .body
            .contains("envoy_server_live{x=\"y\"} 1\n")
    );
}

#[test]
fn counters_are_reset() {
    let world = world();
    world
        .context
        .metrics
        .metric("c", MetricKind::Counter)
        .add(5);
    assert_eq!(world.post("/reset_counters").body, "OK\n");
    assert_eq!(world.get("/stats?filter=^c$").body, "c: 0\n");
}

#[tokio::test]
async fn stats_are_flushed_where_they_are_shown_and_only_if_admin_is_to() {
    let asked = async |bootstrap: &str| {
        let world = world_of(bootstrap);
        let admin = world.context.bootstrap.admin.clone().unwrap();
        let running = start(Arc::clone(&world.context), &admin, None).unwrap();
        let address = running.address.to_string();
        let mut flushed = Vec::new();
        for target in [
            "/stats",
            "/stats?usedonly",
            "/stats?format=json",
            "/stats?format=prometheus",
            "/stats?format=html",
            "/stats/prometheus",
            "/server_info",
            "/memory",
            "/stats/recentlookups",
            "/stats?filter=(",
            "/stats?format=nope",
            "/stats?type=Nope",
            "/stats?histogram_buckets=x",
            "/stats/prometheus?filter=(",
            "/stats/prometheus?histogram_buckets=detailed",
        ] {
            let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            server::exchange(stream, &request).await;
            if world.proxy.took() == ["flush"] {
                flushed.push(target);
            }
        }
        flushed
    };
    let admin = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}";
    assert!(asked(&format!("{admin}}}")).await.is_empty());
    let on_admin = "stats_flush_on_admin: true";
    // What a running Envoy sent to a statsd sink.
    assert_eq!(
        asked(&format!("{admin}}}\n{on_admin}")).await,
        [
            "/stats",
            "/stats?usedonly",
            "/stats?format=json",
            "/stats?format=prometheus",
            "/stats?format=html",
            "/stats/prometheus",
        ]
    );
    let allowed = "allow_paths: [{exact: '/stats?usedonly'}]";
    assert_eq!(
        asked(&format!("{admin}, {allowed}}}\n{on_admin}")).await,
        ["/stats?usedonly"]
    );
}
