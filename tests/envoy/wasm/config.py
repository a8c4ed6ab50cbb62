"""The configuration of both proxies, written as JSON (which is YAML): listeners with plugins, routes, clusters."""

import json

import cases
import filtered
from script import configuration

TYPE = "type.googleapis.com/"
HTTP = TYPE + "envoy.extensions.filters.http."


def plugin(name, guest, text, vm="", **options):
    return {
        "name": f"envoy.filters.http.wasm.{name}",
        "typed_config": {
            "@type": HTTP + "wasm.v3.Wasm",
            "config": {
                "name": name,
                "root_id": "root-" + name,
                "vm_config": {
                    "vm_id": vm,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": str(guest)}},
                    "configuration": {"@type": TYPE + "google.protobuf.StringValue", "value": "vm-configuration"},
                    "environment_variables": {"key_values": {"KEY": "value"}},
                },
                "configuration": {"@type": TYPE + "google.protobuf.StringValue", "value": text},
                **options,
            },
        },
    }


def routes():
    def to(cluster, **action):
        return {"cluster": cluster, "timeout": "25s", **action}

    metadata = {"filter_metadata": {"ns": {"k": "route"}}}
    return [
        {"name": "b", "match": {"prefix": "/", "headers": [{"name": "x-route", "string_match": {"exact": "b"}}]}, "route": to("echo")},
        {"name": "direct", "match": {"path": "/direct"}, "direct_response": {"status": 203, "body": {"inline_string": "direct"}}},
        {"name": "redirect", "match": {"path": "/redirect"}, "redirect": {"path_redirect": "/elsewhere"}},
        {"name": "dead", "match": {"path": "/dead"}, "route": to("dead")},
        {"name": "hang", "match": {"path": "/hang"}, "route": to("hang", timeout="0.4s")},
        {"name": "empty", "match": {"path": "/empty"}, "route": to("empty")},
        {"name": "main", "match": {"prefix": "/", "headers": [{"name": ":path", "string_match": {"exact": "/none"}, "invert_match": True}]}, "route": to("echo"), "metadata": metadata},
    ]  # fmt: skip


def listener(name, port, log, filters, buffer=None, idle=4, loggers=()):
    """`loggers`: plugins that hear of the end of streams, before the file does."""
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "generate_request_id": False,
        "use_remote_address": True,
        "stream_idle_timeout": f"{idle}s",
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes()}],
        },
        "http_filters": [
            *filters,
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": HTTP + "router.v3.Router", "suppress_envoy_headers": True},
            },
        ],
        "access_log": [
            *[
                {
                    "name": "wasm",
                    "typed_config": {
                        "@type": TYPE + "envoy.extensions.access_loggers.wasm.v3.WasmAccessLog",
                        "config": logger["typed_config"]["config"],
                    },
                }
                for logger in loggers
            ],
            {
                "name": "log",
                "typed_config": {
                    "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": log,
                    "log_format": {
                        "json_format": {
                            "case": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                            "code": "%RESPONSE_CODE%",
                            "details": "%RESPONSE_CODE_DETAILS%",
                            "flags": "%RESPONSE_FLAGS%",
                            "received": "%BYTES_RECEIVED%",
                            "sent": "%BYTES_SENT%",
                            "route": "%ROUTE_NAME%",
                            "cluster": "%UPSTREAM_CLUSTER%",
                            "path": "%REQ(:PATH)%",
                            "state": "%FILTER_STATE(wasm.mine:PLAIN)%",
                            "string": "%FILTER_STATE(envoy.string:PLAIN)%",
                        }
                    },
                },
            }
        ],
    }
    made = {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "traffic_direction": "INBOUND",
        "metadata": {"filter_metadata": {"ns": {"k": "listener"}}},
        "filter_chains": [
            {
                "name": "chain-" + name,
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
            }
        ],
    }
    if buffer:
        made["per_connection_buffer_limit_bytes"] = buffer
    return made


# The header mutation of clusters: what its operators know.
_KNOWN = "%REQ(:METHOD)% %REQ(:AUTHORITY)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %ROUTE_NAME% %UPSTREAM_CLUSTER% %PROTOCOL% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %VIRTUAL_CLUSTER_NAME% %FILTER_CHAIN_NAME% %TRACE_ID% %CONNECTION_ID% %STREAM_ID%"
MUTATION = {
    "name": "mutation",
    "typed_config": {
        "@type": HTTP + "header_mutation.v3.HeaderMutation",
        "mutations": {
            "request_mutations": [
                {"append": {"header": {"key": "x-req", "value": "mutated"}}},
                {"append": {"header": {"key": "x-known", "value": _KNOWN}}},
            ],
            "response_mutations": [
                {"append": {"header": {"key": "x-resp", "value": "mutated"}}},
                {"append": {"header": {"key": "x-known", "value": _KNOWN}}},
            ],
        },
    },
}
CODEC = {"name": "codec", "typed_config": {"@type": HTTP + "upstream_codec.v3.UpstreamCodec"}}


def filtered_clusters(guest, port):
    """Clusters with HTTP filters; see `filtered.py`."""
    text = configuration("U", filtered.HEADER)
    up = [plugin("up", guest, text, "up"), MUTATION]
    return [
        cluster("mutated", port("upstream"), filters=[MUTATION]),
        cluster("mutated-dead", port("dead"), filters=[MUTATION]),
        cluster("codec", port("upstream"), filters=[]),
        cluster("guarded", port("upstream"), filters=up),
        cluster("guarded-dead", port("dead"), filters=up),
        cluster("guarded-hang", port("blackhole"), filters=up),
        *[cluster(f"guarded-{phase}", port("upstream"), filters=[plugin("up", guest, text, f"up-{phase}"), MUTATION]) for phase in filtered.MORTAL],
    ]  # fmt: skip


def cluster(name, port, protocol="http_protocol_options", filters=None):
    """`filters` come before the codec."""
    # Nobody answers at the black hole: what a call's own time limit ends must not meet the connection's.
    patience = "10s" if name.endswith(("hang", "blackhole")) else "1s"
    options = {"enable_trailers": True} if protocol == "http_protocol_options" else {}
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": patience,
        "metadata": {"filter_metadata": {"ns": {"k": "cluster"}}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                # No connection is used twice: Plenipo asks again where one that was closes without an answer.
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {protocol: options},
            }
        },
    }
    if filters is not None:
        protocols = made["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
        protocols["http_filters"] = [*filters, CODEC]
    if port:
        made["load_assignment"] = {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                    ]
                }
            ],
        }
    return made


# Laid over it for Plenipo: a VM that has trapped stays dead, as in Envoy, unless its policy says otherwise; and the
# guests, which say everything, may say much.
PLENIPO = {
    "bootstrap_extensions": [
        {
            "name": "plenipo.wasm",
            "typed_config": {
                "@type": TYPE + "plenipo.extensions.wasm.v1.WasmSettings",
                "defaults": {"after_crash": "ENVOY", "quotas": {"log_lines_per_second": 1000000}},
            },
        }
    ]
}

STOP_ITERATION = {"allow_on_headers_stop_iteration": True}


def bootstrap(numbered, guest, old_guest, port, log):
    """The whole of it. `numbered`: (number, case); `port(name)` gives a port; a case with a listener of its own has
    `c<number>`."""
    # What generated scripts wait for may come late on a busy machine.
    idle = 9 if any(case["id"].startswith("seed") for _, case in numbered) else 4
    a = configuration("A", "x-script")
    b = configuration("B", "x-script-2")
    listeners = [
        listener("plain", port("plain"), log, [plugin("plain", guest, a, "plain")], idle=idle),
        listener("stop", port("stop"), log, [plugin("stop", guest, a, "stop", **STOP_ITERATION)], idle=idle),
        listener("small", port("small"), log, [plugin("small", guest, a, "small")], 1024, idle),
        # Two VMs, and one VM with two roots.
        listener("chain", port("chain"), log, [plugin("first", guest, a, "first"), plugin("second", guest, b, "second")], idle=idle),
        listener("pair", port("pair"), log, [plugin("one", guest, a, "pair"), plugin("two", guest, b, "pair")], idle=idle),
        listener("old", port("old"), log, [plugin("old", old_guest, a, "old")], idle=idle),
        # The rounds' own.
        listener("pace", port("pace"), log, [plugin("pace", guest, a, "pace")], idle=idle),
    ]
    for number, case in numbered:
        own = case["listener"]
        if not isinstance(own, dict):
            continue
        name = f"c{number}"
        scripts = own.get("root") or own.get("logger")
        root = cases.encoded(scripts, number) if scripts else b""
        create = cases.encoded(own["on_create"], number) if "on_create" in own else b""
        options = {}
        policy = own.get("policy")
        if policy == "fail_open":
            options["fail_open"] = True
        elif policy:
            options["failure_policy"] = policy
        text = configuration("A", "x-script", create, root)
        made = plugin(name, old_guest if "old" in own else guest, text, name, **options)
        if "capabilities" in own:
            allowed = {capability: {} for capability in own["capabilities"]}
            made["typed_config"]["config"]["capability_restriction_config"] = {"allowed_capabilities": allowed}
        filters, loggers = ([], [made]) if "logger" in own else ([made], [])
        if "pair" in own:
            filters.append(plugin(name + "-2", guest, b, name, **options))
        listeners.append(listener(name, port(name), log, filters, idle=idle, loggers=loggers))
    return json.dumps(
        {
            "node": {
                "id": "node-id",
                "cluster": "node-cluster",
                "locality": {"zone": "zone"},
                "metadata": {"key": "value"},
            },
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port("admin")}}},
            "static_resources": {
                "listeners": listeners,
                "clusters": [
                    cluster("echo", port("upstream")),
                    cluster("callout", port("upstream")),
                    cluster("dead", port("dead")),
                    cluster("hang", port("blackhole")),
                    cluster("empty", None),
                    *[
                        cluster("grpc" + name, port(name or "grpc"), "http2_protocol_options")
                        for name in ("", "dead", "blackhole")
                    ],
                    cluster("grpcempty", None, "http2_protocol_options"),
                    *filtered_clusters(guest, port),
                ],
            },
        },
        indent=1,
    )
