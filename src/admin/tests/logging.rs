//! `/logging`.

use super::*;

#[test]
fn log_levels_are_shown_and_changed() {
    let world = world();
    let response = world.post("/logging");
    assert!(
        response
            .body
            .starts_with("active loggers:\n  a2a: info\n  admin: info\n")
    );
    assert!(
        world
            .post("/logging?upstream=debug")
            .body
            .contains("\n  upstream: debug\n")
    );
    let changed = world
        .post("/logging?paths=upstream:info,http:warning,")
        .body;
    assert!(changed.contains("\n  upstream: info\n") && changed.contains("\n  http: warning\n"));
    assert!(
        world
            .post("/logging?level=error")
            .body
            .contains("\n  admin: error\n")
    );
    // What a real Envoy (1.40) makes of each: what is empty is not there, and the first of a name counts.
    for (query, upstream, http) in [
        ("upstream", "error", "error"),
        ("upstream=", "error", "error"),
        ("nope=", "error", "error"),
        ("level", "error", "error"),
        ("paths=,", "error", "error"),
        ("paths=&group=&level=", "error", "error"),
        ("paths=&group=&level=debug", "debug", "debug"),
        ("level=debug&paths=", "debug", "debug"),
        ("level=&upstream=debug", "debug", "error"),
        ("level&upstream=debug", "debug", "error"),
        ("upstream=debug&http=", "debug", "error"),
        ("upstream=debug&upstream=info", "debug", "error"),
        ("upstream=&upstream=debug", "error", "error"),
        ("level=&level=debug", "error", "error"),
        ("level=debug&level=info", "debug", "debug"),
        ("paths=upstream:debug,,http:info", "debug", "info"),
    ] {
        world.post("/logging?level=error");
        let response = world.post(&format!("/logging?{query}"));
        assert_eq!(response.status, StatusCode::OK, "{query}");
        for line in [
            format!("\n  upstream: {upstream}\n"),
            format!("\n  http: {http}\n"),
        ] {
            assert!(response.body.contains(&line), "{query}: {}", response.body);
        }
    }
    world.post("/logging?level=error");
    for (target, error) in [
        ("/logging?nope=debug", "unknown logger name"),
        ("/logging?=debug", "unknown logger name"),
        ("/logging?level=loud", "unknown logger level"),
        ("/logging?upstream=loud", "unknown logger level"),
        ("/logging?nope=loud", "unknown logger level"),
        (
            "/logging?paths=nope:debug,http:loud",
            "unknown logger level",
        ),
        (
            "/logging?paths=nope:debug,http",
            "empty logger name or empty logger level",
        ),
        (
            "/logging?paths=http:",
            "empty logger name or empty logger level",
        ),
        (
            "/logging?paths=:debug",
            "empty logger name or empty logger level",
        ),
        (
            "/logging?paths=upstream:debug,nope:debug",
            "unknown logger name",
        ),
        (
            "/logging?level=info&http=debug",
            "invalid number of parameters",
        ),
        (
            "/logging?group=http:debug",
            "group parameter requires fine-grain logging to be enabled",
        ),
    ] {
        let response = world.post(target);
        assert_eq!(response.status, StatusCode::BAD_REQUEST);
        assert!(
            response
                .body
                .starts_with(&format!("error: {error}\n\nusage: ")),
            "{target}"
        );
        assert!(
            response.body.contains("\n  upstream: error\n"),
            "{target} changed something"
        );
    }
}
