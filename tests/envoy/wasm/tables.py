"""Operations by the rows of the ABI: each host call with arguments that are good, wrong and out of bounds."""

from script import (
    CAS, HIDDEN, LENGTH, METRIC, QUEUE, SUM, TOKEN, UNSEEN, Iov, Out, Out32, Out64, Reg, RegBytes, Root, Self, Wide, pairs, path,
)  # fmt: skip

# A pointer that is none.
BAD = 0xFFFFFFF0
CALL_HEADERS = pairs((":method", "GET"), (":path", "/callout"), (":authority", "callout"), ("x-case", "@case@"))
# A call that breaks off when its case is at rest.
CALL_CLOSED = pairs(
    (":method", "GET"), (":path", "/callout/closed"), (":authority", "callout"), ("x-case", "@case@"), ("x-answer", '{"end": "close"}')
)  # fmt: skip
CALL_POST = pairs((":method", "POST"), (":path", "/callout/post"), (":authority", "callout"), ("x-case", "@case@"))

LOG = [
    *[("log", level, f"~@case@~level {level}") for level in (2, 3, 4, 5)],
    ("log", 6, "~@case@~no level"),
    ("log", 0xFFFFFFFF, "no level"),
    ("log", 2, ""),
    ("log", 2, BAD, 100),
    ("get_log_level", Out32()),
    ("get_log_level", BAD),
    ("get_status", Out32(), Out()),
    ("get_status", BAD, Out()),
    ("get_status", Out32(), BAD, BAD),
]

TIMES = [
    ("get_current_time_nanoseconds", Out64(HIDDEN)),
    ("get_current_time_nanoseconds", BAD),
]

_H = UNSEEN
# Path, and how its value is shown.
PROPERTIES = {
    "request": [
        *[(("request", name), 0) for name in (
            "path", "url_path", "host", "scheme", "method", "referer", "useragent", "protocol", "query", "size", "id",
        )],
        (("request", "time"), _H), (("request", "duration"), _H), (("request", "total_size"), LENGTH),
        (("request", "headers_bytes"), LENGTH), (("request", "headers"), LENGTH), (("request",), 0),
        (("request", "headers", "x-multi"), 0), (("request", "headers", "x-none"), 0),
        (("request", "headers", "X-Multi"), 0), (("request", "headers", ":path"), 0), (("request", "nosuch"), 0),
        (("request", "path", "more"), 0),
    ],
    "response": [
        *[(("response", name), 0) for name in ("code", "code_details", "flags", "grpc_status", "size", "nosuch")],
        (("response", "headers"), LENGTH), (("response", "trailers"), 0), (("response", "headers_bytes"), LENGTH),
        (("response", "total_size"), LENGTH), (("response", "backend_latency"), _H), (("response",), 0),
        (("response", "headers", "x-up"), 0), (("response", "trailers", "x-t"), 0), (("response", "headers", "x-none"), 0),
    ],
    "peers": [
        (("source", "address"), LENGTH), (("source", "port"), _H), (("source",), 0), (("source", "nosuch"), 0),
        (("destination", "address"), 0), (("destination", "port"), _H), (("destination", "nosuch"), 0),
        *[(("connection", name), 0) for name in (
            "mtls", "requested_server_name", "tls_version", "subject_local_certificate", "subject_peer_certificate",
            "dns_san_local_certificate", "dns_san_peer_certificate", "uri_san_local_certificate",
            "uri_san_peer_certificate", "sha256_peer_certificate_digest", "transport_failure_reason",
            "termination_details", "nosuch",
        )],
        (("connection", "id"), _H), (("connection_id",), _H), (("connection",), 0),
    ],
    "upstream": [
        (("upstream", "address"), 0), (("upstream", "port"), _H), (("upstream", "local_address"), _H),
        *[(("upstream", name), 0) for name in (
            "num_endpoints", "request_attempt_count", "locality", "transport_failure_reason", "tls_version",
            "subject_local_certificate", "subject_peer_certificate", "dns_san_local_certificate",
            "uri_san_peer_certificate", "sha256_peer_certificate_digest", "nosuch",
        )],
        (("upstream", "cx_pool_ready_duration"), _H), (("upstream",), 0),
    ],
    "metadata": [
        (("metadata",), 0), (("metadata", "filter_metadata"), 0), (("metadata", "filter_metadata", "none"), 0),
        (("metadata", "filter_metadata", "none", "key"), 0), (("filter_state",), 0), (("filter_state", "none"), 0),
        (("filter_state", "wasm.mine"), 0), (("upstream_filter_state",), 0), (("upstream_filter_state", "none"), 0),
        (("mine",), 0), (("plugin_name",), 0), (("plugin_root_id",), 0), (("plugin_vm_id",), 0),
        (("plugin_name", "x"), 0), ((), 0), (("",), 0), (("nosuch",), 0),
    ],
    "xds": [
        (("xds", "node"), LENGTH), (("xds", "node", "id"), 0), (("xds", "node", "cluster"), 0),
        (("xds", "node", "metadata"), 0), (("xds", "node", "metadata", "key"), 0),
        (("xds", "node", "metadata", "none"), 0), (("xds", "node", "locality"), 0),
        (("xds", "node", "locality", "zone"), 0), (("xds", "node", "nosuch"), 0),
        *[(("xds", name), 0) for name in (
            "cluster_name", "cluster_metadata", "route_name", "route_metadata", "virtual_host_name",
            "virtual_host_metadata", "upstream_host_metadata", "upstream_host_locality_metadata",
            "filter_chain_name", "listener_direction", "listener_metadata", "nosuch",
        )],
        (("xds", "cluster_metadata", "filter_metadata", "ns", "k"), 0),
        (("xds", "route_metadata", "filter_metadata", "ns", "k"), 0), (("xds",), 0),
    ],
    "legacy": [
        *[((name,), 0) for name in (
            "cluster_name", "cluster_metadata", "route_name", "route_metadata", "listener_direction",
            "listener_metadata", "upstream_host_metadata",
        )],
        (("node",), LENGTH), (("node", "id"), 0), (("node", "metadata", "key"), 0),
    ],
}  # fmt: skip


def properties(group):
    return [("get_property", path(*parts), Out(mode)) for parts, mode in PROPERTIES[group]]


SET_PROPERTY = [
    ("set_property", "mine", "first"),
    ("get_property", "mine", Out()),
    ("get_property", path("filter_state", "wasm.mine"), Out()),
    ("set_property", "mine", "second"),
    ("get_property", "mine", Out()),
    ("set_property", path("a", "b"), "deep"),
    ("get_property", path("a", "b"), Out()),
    ("set_property", path("request", "path"), "shadowed"),
    ("get_property", path("request", "path"), Out()),
    ("set_property", "", "empty path"),
    ("set_property", "empty", ""),
    ("get_property", "empty", Out()),
    ("set_property", BAD, 10, "x"),
    ("set_property", "oob", BAD, 10),
    ("get_property", BAD, 10, Out()),
    ("get_property", "mine", BAD, BAD),
]

BUFFERS = [
    op
    # Not 8: outside of a call of a foreign function Envoy shows in it what the VM has shown last of any other.
    for kind in (0, 1, 2, 3, 4, 5, 6, 7, 9)
    for op in [
        ("get_buffer_bytes", kind, 0, 100, Out()),
        ("get_buffer_bytes", kind, 1, 2, Out()),
        ("get_buffer_bytes", kind, 50, 5, Out()),
        ("get_buffer_bytes", kind, 0xFFFFFFFF, 2, Out()),
        ("get_buffer_bytes", kind, 0, 0, Out()),
        ("get_buffer_bytes", kind, 0, 100, BAD, BAD),
        ("get_buffer_status", kind, Out32(), Out32()),
        ("get_buffer_status", kind, BAD, BAD),
    ]
    # What is in 7 is the script itself.
    if not (kind == 7 and op[0] == "get_buffer_bytes" and op[3] == 100 and len(op) == 5)
]

SET_BUFFERS = [
    op
    for kind in (0, 1, 4, 6, 7, 9)
    for op in [
        ("set_buffer_bytes", kind, 0, 0, "<"),
        ("get_buffer_bytes", kind, 0, 100, Out(SUM)),
        ("set_buffer_bytes", kind, 1, 1, "no"),
        ("set_buffer_bytes", kind, 100000, 0, ">"),
        ("get_buffer_bytes", kind, 0, 100, Out(SUM)),
        ("set_buffer_bytes", kind, 0, 2, "begin"),
        ("set_buffer_bytes", kind, 0, 2, BAD, 10),
        ("get_buffer_bytes", kind, 0, 100, Out(SUM)),
        ("set_buffer_bytes", kind, 0, 100000, "all"),
        ("get_buffer_bytes", kind, 0, 100, Out(SUM)),
        ("set_buffer_bytes", kind, 0, 0xFFFFFFFF, ""),
        ("get_buffer_bytes", kind, 0, 100, Out(SUM)),
        ("set_buffer_bytes", kind, 0, 1, "again"),
    ]
]

NAMES = ("x-multi", "X-Multi", ":path", ":authority", "host", ":status", "x-none", "", "x-up", "x-t", ":nosuch")

GET_HEADERS = [
    op
    for kind in range(9)
    for op in [
        *[("get_header_map_value", kind, name, Out()) for name in NAMES],
        ("get_header_map_value", kind, BAD, 5, Out()),
        ("get_header_map_value", kind, "x-multi", BAD, BAD),
        ("get_header_map_pairs", kind, Out(LENGTH if kind == 0 else 0)),
        ("get_header_map_pairs", kind, BAD, BAD),
        ("get_header_map_size", kind, Out32()),
        ("get_header_map_size", kind, BAD),
    ]
]


def edit_headers(kinds=range(9)):
    return [
        op
        for kind in kinds
        for op in [
            ("add_header_map_value", kind, "x-added", "1"),
            ("add_header_map_value", kind, "X-Added", "2"),
            ("get_header_map_value", kind, "x-added", Out()),
            ("replace_header_map_value", kind, "x-multi", "one"),
            ("replace_header_map_value", kind, "x-new", "new"),
            ("replace_header_map_value", kind, "x-empty", ""),
            ("get_header_map_value", kind, "x-empty", Out()),
            ("remove_header_map_value", kind, "x-added-none"),
            ("remove_header_map_value", kind, "x-gone"),
            ("get_header_map_value", kind, "x-gone", Out()),
            ("add_header_map_value", kind, BAD, 5, "v"),
            ("add_header_map_value", kind, "k", BAD, 5),
            ("replace_header_map_value", kind, BAD, 5, "v"),
            ("replace_header_map_value", kind, "k", BAD, 5),
            ("remove_header_map_value", kind, BAD, 5),
            ("set_header_map_pairs", kind, BAD, 5),
            ("get_header_map_size", kind, Out32()),
        ]
    ]


SHARED_DATA = [
    ("get_shared_data", "@case@.key", Out(), Out32(CAS, 0)),
    ("set_shared_data", "@case@.key", "one", 0),
    ("get_shared_data", "@case@.key", Out(), Out32(CAS, 0)),
    ("set_shared_data", "@case@.key", "two", Reg(0)),
    ("set_shared_data", "@case@.key", "three", Reg(0)),
    ("get_shared_data", "@case@.key", Out(), Out32(CAS, 1)),
    ("set_shared_data", "@case@.key", "four", 0xFFFFFFF0),
    ("set_shared_data", "@case@.new", "any cas", 12345),
    ("get_shared_data", "@case@.new", Out(), Out32(CAS, 2)),
    ("set_shared_data", "@case@.empty", "", 0),
    ("get_shared_data", "@case@.empty", Out(), Out32(CAS, 2)),
    ("get_shared_data", "@case@.key", BAD, BAD, BAD),
    ("get_shared_data", BAD, 5, Out(), Out32(CAS, 2)),
    ("set_shared_data", BAD, 5, "v", 0),
    ("set_shared_data", "@case@.oob", BAD, 5, 0),
    ("get_shared_data", "@case@.key", Out(), BAD),
]

QUEUES = [
    ("register_shared_queue", "@case@.q", Out32(QUEUE, 0)),
    ("register_shared_queue", "@case@.q", Out32(QUEUE, 0)),
    ("register_shared_queue", "@case@.r", Out32(QUEUE, 1)),
    ("resolve_shared_queue", "", "@case@.q", Out32(QUEUE, 2)),
    ("resolve_shared_queue", "nosuch", "@case@.q", Out32(QUEUE, 2)),
    ("resolve_shared_queue", "", "@case@.none", Out32(QUEUE, 2)),
    ("dequeue_shared_queue", Reg(0), Out()),
    ("enqueue_shared_queue", Reg(0), "first"),
    ("enqueue_shared_queue", Reg(0), ""),
    ("enqueue_shared_queue", Reg(0), "third"),
    ("dequeue_shared_queue", Reg(0), Out()),
    ("dequeue_shared_queue", Reg(0), Out()),
    ("dequeue_shared_queue", Reg(1), Out()),
    ("enqueue_shared_queue", 99999999, "no queue"),
    ("dequeue_shared_queue", 99999999, Out()),
    ("enqueue_shared_queue", Reg(0), BAD, 5),
    ("dequeue_shared_queue", Reg(0), BAD, BAD),
    ("dequeue_shared_queue", Reg(0), Out()),
    ("register_shared_queue", BAD, 5, Out32(QUEUE, 2)),
    ("register_shared_queue", "@case@.s", BAD),
    ("resolve_shared_queue", BAD, 5, "x", Out32(QUEUE, 2)),
    ("resolve_shared_queue", "", BAD, 5, Out32(QUEUE, 2)),
]

METRICS = [
    *[("define_metric", kind, f"c@case@.m{kind}", Out32(METRIC, kind)) for kind in (0, 1, 2)],
    ("define_metric", 3, "c@case@.m3", Out32(METRIC, 3)),
    ("define_metric", 0, "c@case@.m0", Out32(METRIC, 4)),
    ("define_metric", 0, BAD, 5, Out32(METRIC, 5)),
    ("define_metric", 3, BAD, 5, Out32(METRIC, 5)),
    ("define_metric", 0, "c@case@.oob", BAD),
    *[("increment_metric", Reg(kind), Wide(5)) for kind in (0, 1, 2)],
    *[("increment_metric", Reg(kind), Wide(-2)) for kind in (0, 1, 2)],
    ("increment_metric", Reg(0), Wide(0)),
    ("increment_metric", 999999, Wide(1)),
    ("get_metric", Reg(0), Out64()),
    ("get_metric", Reg(4), Out64()),
    ("get_metric", Reg(1), Out64()),
    ("get_metric", Reg(2), Out64()),
    ("get_metric", 999999, Out64()),
    ("get_metric", Reg(0), BAD),
    *[("record_metric", Reg(kind), Wide(7)) for kind in (0, 1)],
    ("record_metric", 999999, Wide(7)),
    ("get_metric", Reg(0), Out64()),
    ("get_metric", Reg(1), Out64()),
    ("increment_metric", Reg(1), Wide(-100)),
    ("get_metric", Reg(1), Out64()),
]

CALLS_REFUSED = [
    ("http_call", "nosuch", CALL_HEADERS, "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "", CALL_HEADERS, "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", pairs((":method", "GET"), (":path", "/")), "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", pairs((":method", "GET"), (":authority", "a")), "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", pairs((":path", "/"), (":authority", "a")), "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", "", "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", b"\xff\xff\xff\xff", "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", CALL_HEADERS, "", "", 0xFFFFFFFF, Out32(TOKEN, 0)),
    ("http_call", BAD, 5, CALL_HEADERS, "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", BAD, 5, "", "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", CALL_HEADERS, BAD, 5, "", 1000, Out32(TOKEN, 0)),
    ("http_call", "callout", CALL_HEADERS, "", BAD, 5, 1000, Out32(TOKEN, 0)),
]

GRPC = [
    ("grpc_call", "nosuch", "svc", "m", "", "msg", 1000, Out32(TOKEN, 0)),
    ("grpc_stream", "nosuch", "svc", "m", "", Out32(TOKEN, 0)),
    ("grpc_call", b"\xff\xff\xff", "svc", "m", "", "msg", 1000, Out32(TOKEN, 0)),
    ("grpc_stream", b"\xff\xff\xff", "svc", "m", "", Out32(TOKEN, 0)),
    # Not with an empty service: Envoy 1.40 aborts ("panic: unset oneof").
    ("grpc_call", BAD, 5, "svc", "m", "", "msg", 1000, Out32(TOKEN, 0)),
    ("grpc_send", 99991, "x", 0),
    ("grpc_send", 0, "x", 0),
    ("grpc_send", 6, BAD, 5, 0),
    ("grpc_cancel", 99991),
    ("grpc_close", 99991),
    ("grpc_cancel", 0),
    ("grpc_close", 0),
]

DECLARE = b"\x0a\x08declared\x10\x01\x18\x01"
FOREIGN = [
    ("call_foreign_function", "nosuch", "", Out()),
    ("call_foreign_function", "", "", Out()),
    ("call_foreign_function", BAD, 5, "", Out()),
    ("call_foreign_function", "compress", BAD, 5, Out()),
    ("call_foreign_function", "clear_route_cache", "", Out()),
    ("call_foreign_function", "clear_route_cache", "ignored", Out()),
    ("call_foreign_function", "clear_route_cache", "", BAD, BAD),
    ("call_foreign_function", "compress", "hello hello hello hello", Out()),
    ("call_foreign_function", "compress", "", Out()),
    ("call_foreign_function", "compress", "nobody asks", 0, 0),
    ("call_foreign_function", "compress", "nobody asks", 0, Out32()),
    ("call_foreign_function", "clear_route_cache", "", 0, 0),
    ("call_foreign_function", "uncompress", "not zlib", Out()),
    ("call_foreign_function", "uncompress", "", Out()),
    ("call_foreign_function", "uncompress", bytes.fromhex("789ccb48cdc9c95728cf2fca49010 01a0b045d".replace(" ", "")), Out()),
    ("call_foreign_function", "uncompress", bytes.fromhex("789ccb48cd"), Out()),
    ("call_foreign_function", "declare_property", DECLARE, Out()),
    ("call_foreign_function", "declare_property", DECLARE, Out()),
    ("set_property", "declared", "once"),
    ("set_property", "declared", "twice"),
    ("get_property", "declared", Out()),
    ("call_foreign_function", "declare_property", b"\xff", Out()),
    ("call_foreign_function", "declare_property", "", Out()),
]
FOREIGN_STATE = [
    ("call_foreign_function", "set_envoy_filter_state", b"\x0a\x06nosuch\x12\x01v", Out()),
    ("call_foreign_function", "set_envoy_filter_state", b"\xff", Out()),
    ("call_foreign_function", "set_envoy_filter_state", "", Out()),
    ("call_foreign_function", "set_envoy_filter_state", b"\x0a\x17envoy.tcp_proxy.cluster\x12\x04echo", Out()),
    ("get_property", path("filter_state", "envoy.tcp_proxy.cluster"), Out()),
]
FOREIGN_SIGN = [
    ("call_foreign_function", "verify_signature", "", Out()),
    ("call_foreign_function", "verify_signature", b"\xff", Out()),
    ("call_foreign_function", "verify_signature", b"\x0a\x06sha256\x12\x01x\x1a\x01y\x22\x01z", Out()),
    ("call_foreign_function", "sign", "", Out()),
    ("call_foreign_function", "sign", b"\xff", Out()),
    ("call_foreign_function", "sign", b"\x0a\x06sha256\x12\x01x\x1a\x01y", Out()),
]
EXPRESSIONS = [
    "request.path", "request.path + '!'", "1 + 1", "request.headers['x-multi']", "response.code == 200",
    "request.path.startsWith('/')", "request.nosuch", "xds.route_name", "'a' in request.headers", "1 / 0", "1 +", "",
    "[1, 2]", "{'a': 1}", "1.5", "true", "null", "request.time", "size(request.path)", "plugin_name", "source.address == ''",
]  # fmt: skip
FOREIGN_CEL = [
    op
    for text in EXPRESSIONS
    for op in [
        ("call_foreign_function", "expr_create", text, Out(LENGTH)),
    ]
] + [
    ("call_foreign_function", "expr_evaluate", b"\xff\xff\xff\xff", Out()),
    ("call_foreign_function", "expr_evaluate", "", Out()),
    ("call_foreign_function", "expr_delete", b"\xff\xff\xff\xff", Out()),
    ("call_foreign_function", "expr_delete", "", Out()),
]

EFFECTIVE = [
    ("set_effective_context", 999999),
    ("set_effective_context", Root()),
    ("get_header_map_value", 0, ":path", Out()),
    ("get_property", path("request", "path"), Out()),
    ("get_property", "plugin_name", Out()),
    ("log", 2, "~@case@~as the root"),
    ("set_effective_context", 0),
    ("get_header_map_value", 0, ":path", Out()),
    ("log", 2, "~@case@~as the VM"),
    ("set_effective_context", Self()),
    ("get_header_map_value", 0, ":path", Out()),
    ("log", 2, "~@case@~as the stream"),
    ("done",),
    ("set_tick_period_milliseconds", 0),
]

WASI = [
    ("args_sizes_get", Out32(), Out32()),
    ("args_sizes_get", BAD, BAD),
    ("args_get", Out32(), Out32()),
    ("environ_sizes_get", Out32(), Out32()),
    ("environ_sizes_get", BAD, Out32()),
    ("environ_get", BAD, BAD),
    ("clock_res_get", 0, Out64()),
    ("clock_res_get", 1, Out64()),
    ("clock_res_get", 2, Out64()),
    ("clock_res_get", 9, Out64()),
    ("clock_time_get", 0, Wide(1), Out64(HIDDEN)),
    ("clock_time_get", 1, Wide(1), Out64(HIDDEN)),
    ("clock_time_get", 2, Wide(1), Out64(HIDDEN)),
    ("clock_time_get", 9, Wide(1), Out64(HIDDEN)),
    ("clock_time_get", 0, Wide(1), BAD),
    ("random_get", Out32(HIDDEN), 4),
    ("random_get", BAD, 4),
    ("random_get", Out32(HIDDEN), 70000),
    ("random_get", Out32(HIDDEN), 0),
    ("random_get", BAD, 0),
    ("fd_write", 1, Iov(b"~@case@~to standard output\n"), Out32()),
    ("fd_write", 2, Iov(b"~@case@~to standard error"), Out32()),
    ("fd_write", 3, Iov(b"to nowhere"), Out32()),
    ("fd_write", 0, Iov(b"to nowhere"), Out32()),
    ("fd_write", 1, BAD, 1, Out32()),
    ("fd_write", 1, Iov(b"x"), BAD),
    ("fd_write", 1, Iov(b""), Out32()),
    ("fd_read", 0, Iov(b"    "), Out32()),
    *[("fd_seek", fd, Wide(0), 0, Out64(HIDDEN)) for fd in (0, 1, 3)],
    *[("fd_close", fd) for fd in (0, 1, 3)],
    *[("fd_fdstat_get", fd, Out64()) for fd in (0, 1, 2, 3)],
    ("fd_fdstat_get", 1, BAD),
    *[("fd_fdstat_set_flags", fd, 0) for fd in (0, 1, 3)],
    *[("fd_prestat_get", fd, Out64()) for fd in (0, 1, 3)],
    ("fd_prestat_dir_name", 3, Out32(), 4),
    *[("fd_filestat_get", fd, Out64()) for fd in (0, 1, 3)],
    *[("fd_tell", fd, Out64()) for fd in (0, 1, 3)],
    *[("fd_sync", fd) for fd in (0, 1, 3)],
    ("poll_oneoff", BAD, BAD, 1, Out32()),
    ("poll_oneoff", BAD, BAD, 0, BAD),
    ("sched_yield",),
    ("path_open", 3, 0, "file", 0, Wide(0), Wide(0), 0, Out32()),
    *[("fd_advise", fd, Wide(0), Wide(0), 0) for fd in (0, 1, 3)],
    *[("fd_readdir", fd, Out32(), 4, Wide(0), Out32()) for fd in (1, 3)],
    ("path_filestat_get", 3, 0, "file", Out64()),
    *[("fd_renumber", fd, to) for fd, to in ((1, 2), (1, 3), (0, 2), (3, 4))],
    ("sock_recv", 1, Iov(b"    "), 0, Out32(), Out32()),
    ("sock_recv", 1, Iov(b"    "), 0, BAD, Out32()),
    ("fd_pread", 1, Iov(b"    "), Wide(0), Out32()),
    *[("fd_allocate", fd, Wide(0), Wide(0)) for fd in (0, 1, 3)],
    ("path_unlink_file", 3, "file"),
    ("fd_pwrite", 1, Iov(b"written at"), Wide(0), Out32()),
    ("fd_pwrite", 3, Iov(b"written at"), Wide(0), Out32()),
    ("proc_exit", 3),
]

# Name, operations: what every phase runs.
FAMILIES = {
    "log": LOG,
    "time": TIMES,
    **{f"property-{group}": properties(group) for group in PROPERTIES},
    "set-property": SET_PROPERTY,
    "buffers": BUFFERS,
    "set-buffers": SET_BUFFERS,
    "get-headers": GET_HEADERS,
    "edit-request": edit_headers([0, 1, 4, 5, 8]),
    "edit-response": edit_headers([2, 3, 6, 7]),
    "shared-data": SHARED_DATA,
    "queues": QUEUES,
    "metrics": METRICS,
    "calls-refused": CALLS_REFUSED,
    "grpc": GRPC,
    "foreign": FOREIGN,
    "foreign-state": FOREIGN_STATE,
    "foreign-sign": FOREIGN_SIGN,
    "foreign-cel": FOREIGN_CEL,
    "effective": EFFECTIVE,
    "wasi": WASI,
}

EVALUATE = [
    (
        text,
        [
            ("call_foreign_function", "expr_create", text, Out(LENGTH)),
        ],
    )
    for text in EXPRESSIONS
]
__all__ = ["FAMILIES", "BAD", "CALL_HEADERS", "CALL_POST", "RegBytes"]
