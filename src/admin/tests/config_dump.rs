//! `/config_dump`: its message, and parts of it.

use super::*;

#[test]
fn the_config_dump_is_the_message_that_tools_parse() {
    let world = world();
    let text = world.get("/config_dump?include_eds").body;
    pb::from_text::<admin_pb::ConfigDump>(&text, pb::Format::Json)
        .unwrap()
        .strict()
        .unwrap();
    let dump = world.json("/config_dump?include_eds");
    let types: Vec<_> = dump["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| {
            section["@type"]
                .as_str()
                .unwrap()
                .rsplit('.')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(
        types,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "EcdsConfigDump",
            "EndpointsConfigDump",
            "ListenersConfigDump",
            "ScopedRoutesConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let section = |index: usize| &dump["configs"][index];
    assert_eq!(section(0)["bootstrap"]["node"]["user_agent_name"], "envoy");
    assert_eq!(section(1)["version_info"], "v1");
    assert_eq!(section(1)["static_clusters"][0]["cluster"]["name"], "a");
    assert_eq!(
        section(1)["dynamic_active_clusters"][0]["last_updated"],
        "2026-11-20T15:57:12.109Z"
    );
    assert_eq!(
        section(1)["dynamic_warming_clusters"][0]["cluster"]["name"],
        "w"
    );
    assert_eq!(
        section(4)["dynamic_listeners"],
        json!([
            {"name": "bad", "error_state": {
                "failed_configuration": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener"},
                "last_update_attempt": "2026-11-20T15:57:12.005Z",
                "details": "filter_chains[0]: not supported",
                "version_info": "v2"}},
            {"name": "dyn", "active_state": {
                "version_info": "v1",
                "listener": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "dyn"},
                "last_updated": "2026-11-20T15:57:12.109Z"}}
        ])
    );
    assert_eq!(
        section(6)["static_route_configs"][0]["route_config"]["name"],
        "r"
    );
    assert_eq!(
        section(6)["dynamic_route_configs"][0]["route_config"]["name"],
        "rd"
    );
    assert_eq!(
        section(7)["static_secrets"][0]["secret"]["generic_secret"]["secret"]["inline_string"],
        "[redacted]"
    );
    let plain = world.json("/config_dump");
    assert_eq!(
        plain["configs"].as_array().unwrap().len(),
        7,
        "endpoints are asked for"
    );
}

#[test]
fn endpoints_are_dumped_as_envoy_does() {
    let dump = world().json("/config_dump?resource=static_endpoint_configs&include_eds");
    assert_eq!(
        dump,
        json!({"configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump.StaticEndpointConfig",
            "endpoint_config": {
                "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": "a",
                "endpoints": [
                    {"locality": {"region": "r"},
                     "lb_endpoints": [{
                        "endpoint": {"address": {"pipe": {"path": "/tmp/x"}}, "health_check_config": {}, "hostname": "h"},
                        "health_status": "UNHEALTHY", "load_balancing_weight": 3}],
                     "load_balancing_weight": 0},
                    {"locality": {},
                     "lb_endpoints": [{
                        "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}, "health_check_config": {}},
                        "health_status": "HEALTHY", "load_balancing_weight": 1}],
                     "load_balancing_weight": 0, "priority": 1}
                ],
                "policy": {"overprovisioning_factor": 140}
            }
        }]})
    );
}

#[test]
fn parts_of_the_config_dump() {
    let world = world();
    assert_eq!(
        world.json("/config_dump?resource=static_clusters&mask=cluster.name,cluster.type"),
        json!({"configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
            "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a", "type": "STATIC"}
        }]})
    );
    assert_eq!(
        world.json("/config_dump?resource=dynamic_warming_secrets"),
        json!({})
    );
    assert_eq!(
        world.json("/config_dump?mask=bootstrap.node.id"),
        json!({"configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": {"node": {"id": "n1"}}
        }]})
    );
    let named = world.json("/config_dump?name_regex=d.*&resource=dynamic_listeners");
    assert_eq!(named["configs"].as_array().unwrap().len(), 1);
    let named = world.json("/config_dump?name_regex=y&resource=dynamic_listeners");
    assert_eq!(named, json!({}), "the whole name must match");
    for (target, status, body) in [
        (
            "/config_dump?resource=nope",
            404,
            "nope not found in config dump",
        ),
        (
            "/config_dump?resource=bootstrap",
            400,
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        ),
        (
            "/config_dump?resource=static_endpoint_configs",
            404,
            "static_endpoint_configs not found in config dump",
        ),
        (
            "/config_dump?mask=nope",
            400,
            "FieldMask nope could not be successfully applied to any configs.",
        ),
        (
            "/config_dump?resource=static_clusters&mask=nope",
            400,
            "FieldMask paths: \"nope\"\n could not be successfully used.",
        ),
    ] {
        let response = world.get(target);
        assert_eq!(
            (
                response.status.as_u16(),
                response.body.as_str(),
                response.kind.content_type()
            ),
            (status, body, "text/plain")
        );
    }
    let response = world.get("/config_dump?name_regex=(");
    assert_eq!(
        (response.status, response.kind),
        (StatusCode::BAD_REQUEST, Kind::Bare)
    );
    assert!(
        response
            .body
            .starts_with("INVALID_ARGUMENT: Error while parsing name_regex from (: ")
    );
}
