//! The table of endpoints, and the way to each.

use std::fmt::Write as _;

use http::StatusCode;

use super::request::{Request, Response};
use super::{
    Context, actions, clusters, config_dump, fixed, home, info, listeners, logging, runtime, stats,
    wasm,
};

type Handler = fn(&Context, &Request) -> Response;

/// One path.
pub(super) struct Endpoint {
    /// The path.
    pub(super) path: &'static str,
    /// What it does, for `/help`.
    pub(super) help: &'static str,
    /// Its parameters: name and meaning.
    pub(super) params: &'static [(&'static str, &'static str)],
    /// Only POST will do: it changes something.
    pub(super) changes: bool,
    /// Its work grows with the configuration: not for the thread that everything else runs on.
    pub(super) heavy: bool,
    handler: Handler,
}

const fn get(path: &'static str, help: &'static str, handler: Handler) -> Endpoint {
    Endpoint {
        path,
        help,
        params: &[],
        changes: false,
        heavy: false,
        handler,
    }
}

const fn post(path: &'static str, help: &'static str, handler: Handler) -> Endpoint {
    Endpoint {
        changes: true,
        ..get(path, help, handler)
    }
}

const fn heavy(path: &'static str, help: &'static str, handler: Handler) -> Endpoint {
    Endpoint {
        heavy: true,
        ..get(path, help, handler)
    }
}

/// All endpoints, by path.
pub(super) static ENDPOINTS: [Endpoint; 35] = [
    get("/", "Admin home page", home::page),
    Endpoint {
        params: &[("enable", "y or n")],
        ..post(
            "/allocprofiler",
            "switch the allocation profiler",
            fixed::usage_enable,
        )
    },
    get("/certs", "print the certificates in use", info::certs),
    Endpoint {
        params: &[
            ("filter", "regular expression on cluster names"),
            ("format", "text or json"),
        ],
        ..heavy(
            "/clusters",
            "print clusters and their hosts",
            clusters::page,
        )
    },
    Endpoint {
        params: &[
            (
                "resource",
                "the list to print: static_listeners, dynamic_active_clusters, …",
            ),
            ("mask", "the fields to print, as a field mask"),
            (
                "name_regex",
                "regular expression that names must match as a whole",
            ),
            ("include_eds", "print endpoints, too"),
        ],
        ..heavy(
            "/config_dump",
            "print the configuration as received",
            config_dump::page,
        )
    },
    get(
        "/contention",
        "print lock contention (where traced)",
        fixed::contention,
    ),
    Endpoint {
        params: &[("enable", "y or n")],
        ..post(
            "/cpuprofiler",
            "switch the CPU profiler",
            fixed::usage_enable,
        )
    },
    Endpoint {
        params: &[
            ("graceful", "stop listening only after the drain time"),
            ("skip_exit", "never stop listening"),
            ("inboundonly", "only listeners of inbound traffic"),
        ],
        ..post(
            "/drain_listeners",
            "drain listeners",
            actions::drain_listeners,
        )
    },
    post(
        "/healthcheck/fail",
        "fail health checks",
        actions::health_fail,
    ),
    post(
        "/healthcheck/ok",
        "pass health checks again",
        actions::health_ok,
    ),
    get(
        "/heap_dump",
        "dump the heap (not in this build)",
        fixed::no_profiler,
    ),
    Endpoint {
        params: &[("enable", "y or n")],
        ..post(
            "/heapprofiler",
            "switch the heap profiler",
            fixed::no_profiler,
        )
    },
    get("/help", "print this list", help),
    get(
        "/hot_restart_version",
        "print the hot restart version",
        fixed::hot_restart_version,
    ),
    Endpoint {
        params: &[("mask", "what to print: listener")],
        ..get(
            "/init_dump",
            "print what start-up waits for",
            info::init_dump,
        )
    },
    Endpoint {
        params: &[("format", "text or json")],
        ..get(
            "/listeners",
            "print listeners and their addresses",
            listeners::page,
        )
    },
    Endpoint {
        params: &[
            ("level", "the level of all loggers"),
            (
                "paths",
                "levels of several loggers: name1:level1,name2:level2",
            ),
            ("<name>", "the level of one logger"),
        ],
        ..post("/logging", "print and change log levels", logging::page)
    },
    get("/memory", "print memory use", info::memory_use),
    get(
        "/memory/tcmalloc",
        "print the allocator's state (not in this build)",
        fixed::no_profiler,
    ),
    get(
        "/peak_heap_dump",
        "dump the heap's peak (not in this build)",
        fixed::no_profiler,
    ),
    post("/quitquitquit", "exit the server", actions::quit),
    get(
        "/ready",
        "print the server's state; 503 until it is LIVE",
        info::ready,
    ),
    post("/reopen_logs", "open log files again", actions::reopen_logs),
    post(
        "/reset_counters",
        "set all counters to zero",
        actions::reset_counters,
    ),
    get("/runtime", "print runtime values", runtime::page),
    post(
        "/runtime_modify",
        "set runtime values: ?key1=value1&key2=value2",
        runtime::modify,
    ),
    get(
        "/server_info",
        "print version, state, options and node",
        info::server_info,
    ),
    Endpoint {
        params: &[
            ("usedonly", "only what was written since the start"),
            ("filter", "regular expression on names"),
            ("invert_filter", "what the filter does not match"),
            ("format", "text, json, html or prometheus"),
            ("type", "All, Counters, Gauges, Histograms or TextReadouts"),
            (
                "histogram_buckets",
                "cumulative, disjoint, detailed or summary",
            ),
        ],
        ..heavy("/stats", "print statistics", stats::page)
    },
    Endpoint {
        params: &[
            ("usedonly", "only what was written since the start"),
            ("text_readouts", "text readouts, too, as gauges of value 0"),
            ("filter", "regular expression on names (as in /stats)"),
            ("invert_filter", "what the filter does not match"),
            ("histogram_buckets", "cumulative or summary"),
        ],
        ..heavy(
            "/stats/prometheus",
            "print statistics for Prometheus",
            stats::prometheus,
        )
    },
    get(
        "/stats/recentlookups",
        "print recent look-ups of names",
        fixed::lookups,
    ),
    post(
        "/stats/recentlookups/clear",
        "forget look-ups",
        fixed::lookups_clear,
    ),
    post(
        "/stats/recentlookups/disable",
        "record no look-ups",
        fixed::lookups_disable,
    ),
    post(
        "/stats/recentlookups/enable",
        "record look-ups",
        fixed::lookups_enable,
    ),
    Endpoint {
        params: &[("format", "text or json")],
        ..get(
            "/wasm",
            "print Wasm plugins: versions, states, VMs",
            wasm::page,
        )
    },
    Endpoint {
        params: &[
            ("plugin", "its name"),
            ("decision", "promote or roll_back"),
            ("share", "percent of streams that begin with it"),
        ],
        ..post(
            "/wasm/rollout",
            "decide on a plugin version on trial",
            wasm::rollout,
        )
    },
];

/// The endpoint of a path.
pub(super) fn find(path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.path == path)
}

/// True where the answer will show statistics.
pub(super) fn shows_stats(context: &Context, request: &Request) -> bool {
    is_allowed(context, request) && stats::is_shown(request)
}

/// As Envoy: `allow_paths` sees the query, too.
fn is_allowed(context: &Context, request: &Request) -> bool {
    let Some(admin) = &context.bootstrap.admin else {
        return true;
    };
    let allows =
        |matcher| crate::route::matcher::string_matches(matcher, request.target.as_bytes());
    admin.allow_paths.is_empty() || admin.allow_paths.iter().any(allows)
}

/// Answers a request.
pub(super) fn answer(context: &Context, request: &Request) -> Response {
    if !is_allowed(context, request) {
        return Response::error(
            StatusCode::FORBIDDEN,
            format!("request to path {} not allowed", request.target),
        );
    }
    let Some(endpoint) = find(&request.path) else {
        return unknown(context, request);
    };
    if endpoint.changes && request.method != http::Method::POST {
        return Response::error(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("Method {} not allowed, POST required.", request.method),
        );
    }
    (endpoint.handler)(context, request)
}

fn unknown(_: &Context, _: &Request) -> Response {
    Response::error(
        StatusCode::NOT_FOUND,
        format!("invalid path. {}", help_text()),
    )
}

fn help(_: &Context, _: &Request) -> Response {
    Response::text(help_text())
}

fn help_text() -> String {
    let mut out = String::from("admin commands are:\n");
    for endpoint in &ENDPOINTS {
        let method = if endpoint.changes { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{method}: {}", endpoint.path, endpoint.help);
        for (name, meaning) in endpoint.params {
            let _ = writeln!(out, "      {name}: {meaning}");
        }
    }
    out
}
