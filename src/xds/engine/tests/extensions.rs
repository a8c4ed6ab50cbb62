//! Discovered filters.

use super::*;

fn discovered(type_name: &str) -> String {
    format!(
        "{{name: f, config_discovery: {{config_source: {{ads: {{}}, initial_fetch_timeout: 5s}}, \
         type_urls: [type.googleapis.com/envoy.extensions.filters.http.{type_name}]}}}},"
    )
}

fn extension(type_name: &str) -> String {
    format!(
        "{{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{type_name}}}}}"
    )
}

const CORS: &str = "cors.v3.Cors";

const ROUTER: &str = "router.v3.Router";

#[tokio::test]
async fn a_discovered_filter_may_have_a_default() {
    let filter = |extra: &str| {
        format!(
            r#"{{name: f, config_discovery: {{config_source: {{ads: {{}}, initial_fetch_timeout: 5s}},
            type_urls: [type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors]{extra}}}}},"#
        )
    };
    let default = r#", default_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}"#;
    for (extra, at_once, at_last) in [
        (String::new(), false, false),
        (default.to_owned(), true, true),
        (
            format!("{default}, apply_default_config_without_warming: true"),
            true,
            true,
        ),
    ] {
        let waits = extra.is_empty() || !extra.contains("without_warming");
        let mut side = at_listeners(true);
        side.respond(LDS, &[listener("l", "r", &filter(&extra))]);
        side.respond(RDS, &[route("r")]);
        assert_eq!(side.listeners().is_empty(), waits, "{extra}");
        side.after(5);
        assert_eq!(side.listeners(), ["l"], "{extra}");
        assert_eq!(
            side.snapshot.extensions.get(ADS, "f").is_some(),
            at_last,
            "{extra}"
        );
        let before = side.snapshot.extensions.get(ADS, "f").cloned();
        side.respond(
            ECDS,
            &["{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}".to_owned()],
        );
        assert!(side.snapshot.extensions.get(ADS, "f").is_some());
        side.remove(ECDS, "f");
        assert_eq!(
            side.snapshot.extensions.get(ADS, "f").is_some(),
            at_once,
            "{extra}"
        );
        assert_eq!(
            side.snapshot.extensions.get(ADS, "f").is_some(),
            before.is_some()
        );
    }
}

#[tokio::test]
async fn a_discovered_filter_cannot_be_the_end_of_a_chain() {
    for delta in [false, true] {
        let mut side = at_listeners(delta);
        // Its type is allowed; what is wrong is where it stands: the filters behind it would never run.
        side.respond(LDS, &[listener("l", "r", &discovered(ROUTER))]);
        side.respond(RDS, &[route("r")]);
        side.said();
        side.respond(ECDS, &[extension(ROUTER)]);
        assert_eq!(side.listeners(), ["l"], "a refusal ends the wait");
        assert!(side.snapshot.extensions.is_empty());
        let rejection = side.engine.status().resources(ECDS);
        assert_eq!(
            rejection[0].error.as_ref().unwrap().details,
            "Error: terminal filter named f of type envoy.filters.http.router must be the last filter in a http filter \
             chain."
        );
        assert_eq!(
            side.stat("extension_config_discovery.http_filter.f.config_fail"),
            1
        );
    }
}

#[tokio::test]
async fn a_listener_that_does_not_allow_a_filter_that_is_there_counts_a_conflict() {
    let mut side = at_listeners(false);
    side.respond(LDS, &[listener("l", "r", &discovered(CORS))]);
    side.respond(RDS, &[route("r")]);
    side.respond(ECDS, &[extension(CORS)]);
    let conflicts = "extension_config_discovery.http_filter.f.config_conflict";
    assert_eq!(side.stat(conflicts), 0);
    side.respond(
        LDS,
        &[
            listener("l", "r", &discovered(CORS)),
            listener("m", "r", &discovered("buffer.v3.Buffer")),
        ],
    );
    assert_eq!(side.listeners(), ["l", "m"]);
    assert_eq!(side.stat(conflicts), 1);
}
