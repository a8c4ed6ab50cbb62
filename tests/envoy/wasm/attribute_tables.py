"""The tables of `attributes.py`: properties and the streams they are asked of, foreign functions, expressions."""

import json
import pathlib
import zlib

from script import LENGTH, UNSEEN, Out, path

TYPE = "type.googleapis.com/"
KEYS = json.loads((pathlib.Path(__file__).resolve().parent / "keys.json").read_text())


def metadata(owner):
    """Metadata with a value of every kind."""
    return {
        "filter_metadata": {
            "ns": {
                "text": owner, "number": 1.5, "whole": 7, "yes": True, "no": False, "null": None, "empty": "",
                "list": ["a", 2, True], "nested": {"deep": {"er": "x"}},
            }
        },
        "typed_filter_metadata": {"typed": {"@type": TYPE + "google.protobuf.StringValue", "value": "v"}},
    }  # fmt: skip


NODE = {
    "id": "node-id",
    "cluster": "node-cluster",
    "locality": {"region": "region", "zone": "zone", "sub_zone": "sub"},
    "metadata": {"key": "value", "number": 2, "list": ["a", "b"], "nested": {"deep": True}, "null": None},
}


def cluster(name, port, bare=False):
    """`bare`: nothing is said of it, its locality or its host."""
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "metadata": metadata("cluster-" + name),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "locality": {"region": "r1", "zone": "z1"},
                    "metadata": metadata("locality"),
                    "lb_endpoints": [
                        {
                            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
                            "metadata": metadata("host"),
                        }
                    ],
                }
            ],
        },
    }
    if bare:
        del made["metadata"]
        locality = made["load_assignment"]["endpoints"][0]
        del locality["metadata"], locality["locality"], locality["lb_endpoints"][0]["metadata"]
    return made


VIRTUAL_HOSTS = [
    {
        "name": "the-host",
        "domains": ["*"],
        "metadata": metadata("vhost"),
        "routes": [
            {"name": "direct", "match": {"path": "/direct"}, "direct_response": {"status": 203}, "metadata": metadata("direct")},
            {"name": "redirect", "match": {"path": "/redirect"}, "redirect": {"path_redirect": "/x"}},
            {"name": "dead", "match": {"path": "/dead"}, "route": {"cluster": "dead"}},
            {"name": "bare", "match": {"path": "/bare"}, "route": {"cluster": "bare"}},
            {"match": {"path": "/unnamed"}, "route": {"cluster": "echo"}},
            {"name": "header", "match": {"path": "/header"}, "route": {"cluster_header": "x-cluster"}},
            {"name": "main", "match": {"safe_regex": {"regex": "/|/t.*|/g.*"}}, "route": {"cluster": "echo"}, "metadata": metadata("route")},
        ],
    }
]  # fmt: skip

ANSWERS = {
    "/": "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-up: 1\r\nx-twice: a\r\nx-twice: b\r\n\r\nhello",
    "/trailers": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-up: 1\r\n\r\n5\r\nhello\r\n0\r\nx-t: t1\r\nx-t: t2\r\n\r\n",
    "/grpc": "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 5\r\n\r\n",
    "/grpc-head": "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 7\r\ncontent-length: 0\r\n\r\n",
}

STREAMS = {
    "get": {
        "path": "/?a=1&b=2",
        "headers": ["user-agent: agent", "referer: http://ref/", "x-request-id: id-1", "x-twice: a", "x-twice: b", "X-Mixed: M"],
    },
    "post": {
        "method": "POST", "path": "/trailers", "headers": ["transfer-encoding: chunked"],
        "body": "3\r\nabc\r\n2\r\nde\r\n0\r\nx-rt: rt\r\n\r\n",
    },
    "length": {"method": "POST", "path": "/unnamed", "headers": ["content-length: 4"], "body": "abcd"},
    "bare": {"path": "/bare"},
    "direct": {"path": "/direct"},
    "redirect": {"path": "/redirect?x"},
    "dead": {"path": "/dead"},
    "none": {"path": "/none"},
    "grpc": {"method": "POST", "path": "/grpc", "headers": ["content-type: application/grpc", "te: trailers", "content-length: 0"]},
    "grpc-head": {"method": "POST", "path": "/grpc-head", "headers": ["content-type: application/grpc", "content-length: 0"]},
    "by-header": {"path": "/header", "headers": ["x-cluster: echo"]},
    "unknown-cluster": {"path": "/header", "headers": ["x-cluster: nosuch"]},
}  # fmt: skip

_CERTIFICATES = [
    "tls_version", "subject_local_certificate", "subject_peer_certificate", "dns_san_local_certificate",
    "dns_san_peer_certificate", "uri_san_local_certificate", "uri_san_peer_certificate",
    "sha256_peer_certificate_digest", "peer_certificate",
]  # fmt: skip


def _metadata_paths(*base):
    yield base, 0
    yield (*base, "filter_metadata"), LENGTH
    yield (*base, "filter_metadata", "none"), 0
    yield (*base, "filter_metadata", "ns"), LENGTH
    for key in ("text", "number", "whole", "yes", "no", "null", "empty", "list", "nested", "none"):
        yield (*base, "filter_metadata", "ns", key), 0
    yield (*base, "filter_metadata", "ns", "list", "0"), 0
    yield (*base, "filter_metadata", "ns", "list", "1"), 0
    yield (*base, "filter_metadata", "ns", "list", "3"), 0
    yield (*base, "filter_metadata", "ns", "list", "-1"), 0
    yield (*base, "filter_metadata", "ns", "list", "x"), 0
    yield (*base, "filter_metadata", "ns", "text", "more"), 0
    yield (*base, "filter_metadata", "ns", "nested", "deep", "er"), 0
    yield (*base, "filter_metadata", "ns", "nested", "deep"), 0
    yield (*base, "typed_filter_metadata"), 0
    yield (*base, "typed_filter_metadata", "typed"), 0
    yield (*base, "nosuch"), 0


# Path, and how its value is shown: what differs from run to run by its length, or not at all.
PROPERTIES = {
    "request": [
        *[(("request", name), 0) for name in (
            "path", "url_path", "host", "scheme", "method", "referer", "useragent", "protocol", "query", "size", "id",
            "total_size", "nosuch",
        )],
        (("request", "total_size"), LENGTH), (("request", "headers_bytes"), LENGTH), (("request", "headers"), UNSEEN),
        (("request", "time"), LENGTH), (("request", "duration"), LENGTH), (("request",), 0),
        *[(("request", "headers", name), 0) for name in (
            "x-twice", "x-none", "X-Mixed", "x-mixed", ":path", ":authority", "host", ":method", ":scheme", "te",
            "content-length", "x-forwarded-proto",
        )],
        # The order of all headers is nowhere defined.
        (("request", "headers", ""), UNSEEN),
        (("request", "path", "more"), 0), (("request", ""), 0), (("request", "headers", "x-mixed", "more"), 0),
        (("request", "path", ""), 0), (("", "request"), 0), (("Request", "path"), 0),
    ],
    "response": [
        *[(("response", name), 0) for name in (
            "code", "code_details", "flags", "grpc_status", "size", "headers_bytes", "total_size", "trailers", "nosuch",
        )],
        (("response", "headers"), UNSEEN), (("response", "backend_latency"), LENGTH), (("response",), 0),
        *[(("response", "headers", name), 0) for name in (":status", "x-up", "X-Up", "x-twice", "x-none")],
        (("response", "trailers", "x-t"), 0), (("response", "trailers", "x-none"), 0), (("response", "code", "x"), 0),
    ],
    "peers": [
        (("source", "address"), UNSEEN), (("source", "port"), LENGTH), (("source",), 0), (("source", "nosuch"), 0),
        (("destination", "address"), 0), (("destination", "port"), LENGTH), (("destination", "nosuch"), 0), (("destination",), 0),
        *[(("connection", name), 0) for name in (
            "mtls", "requested_server_name", "transport_failure_reason", "termination_details", "nosuch", *_CERTIFICATES,
        )],
        (("connection", "id"), LENGTH), (("connection_id",), LENGTH), (("connection",), 0), (("connection", "id", "x"), 0),
        (("connection_id", "x"), 0),
    ],
    "upstream": [
        *[(("upstream", name), 0) for name in (
            "address", "num_endpoints", "request_attempt_count", "locality", "transport_failure_reason", "nosuch",
            *_CERTIFICATES,
        )],
        *[(("upstream", "locality", name), 0) for name in ("region", "zone", "sub_zone", "nosuch")],
        (("upstream", "local_address"), UNSEEN), (("upstream", "cx_pool_ready_duration"), LENGTH), (("upstream", "port"), LENGTH), (("upstream",), 0),
    ],
    "state": [
        (("metadata",), 0), (("metadata", "filter_metadata"), 0), (("metadata", "filter_metadata", "none"), 0),
        (("metadata", "typed_filter_metadata"), 0), (("metadata", "nosuch"), 0),
        (("filter_state",), 0), (("filter_state", "none"), 0), (("filter_state", "wasm.mine"), 0),
        (("upstream_filter_state",), 0), (("upstream_filter_state", "none"), 0), (("mine",), 0), (("wasm.mine",), 0),
        (("plugin_name",), 0), (("plugin_root_id",), 0), (("plugin_vm_id",), 0), (("plugin_name", "x"), 0), ((), 0),
        (("",), 0), (("", ""), 0), (("nosuch",), 0), (("nosuch", "x"), 0),
    ],
    "xds": [
        *[(("xds", name), 0) for name in (
            "cluster_name", "cluster_metadata", "route_name", "virtual_host_name", "upstream_host_locality_metadata",
            "filter_chain_name", "listener_direction", "listener_metadata", "nosuch",
        )],
        (("xds", "node"), UNSEEN), (("xds",), 0), (("xds", "route_name", "x"), 0), (("xds", ""), 0),
        *_metadata_paths("xds", "route_metadata"),
    ],
    "xds-metadata": [
        *_metadata_paths("xds", "virtual_host_metadata"), *_metadata_paths("xds", "upstream_host_metadata"),
        (("xds", "cluster_metadata", "filter_metadata", "ns", "text"), 0),
        (("xds", "listener_metadata", "filter_metadata", "ns", "text"), 0),
        (("xds", "upstream_host_locality_metadata", "filter_metadata", "ns", "text"), 0),
    ],
    "node": [
        *[(("xds", "node", name), 0) for name in (
            "id", "cluster", "metadata", "locality", "user_agent_name", "dynamic_parameters", "client_features",
            "listening_addresses", "nosuch", "user_agent_version",
        )],
        (("xds", "node", "user_agent_build_version"), UNSEEN), (("xds", "node", "extensions"), UNSEEN),
        *[(("xds", "node", "metadata", name), 0) for name in ("key", "number", "list", "nested", "null", "none")],
        *[(("xds", "node", "locality", name), 0) for name in ("region", "zone", "sub_zone", "nosuch")],
        (("xds", "node", "metadata", "list", "1"), 0), (("xds", "node", "metadata", "nested", "deep"), 0),
        (("xds", "node", "id", "x"), 0),
        (("xds", "node", "user_agent_build_version", "version", "major_number"), 0),
        (("xds", "node", "user_agent_build_version", "nosuch"), 0),
    ],
    "legacy": [
        *[((name,), 0) for name in (
            "cluster_name", "cluster_metadata", "route_name", "route_metadata", "listener_direction",
            "listener_metadata", "upstream_host_metadata",
        )],
        (("node",), UNSEEN), (("node", "id"), 0), (("node", "metadata", "key"), 0),
    ],
}  # fmt: skip

PHASES = [
    "context_create", "request_headers", "request_body", "request_trailers", "response_headers", "response_body",
    "response_trailers", "log", "done", "delete",
]  # fmt: skip


def properties(group):
    return [("get_property", path(*parts), Out(mode)) for parts, mode in PROPERTIES[group]]


def foreign(name, argument="", mode=0):
    return ("call_foreign_function", name, argument, Out(mode))


def field(number, value):
    """A field of a message: a number or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def declare(name, readonly=0, kind=0, schema="", span=0):
    return field(1, name) + field(2, readonly) + field(3, kind) + field(4, schema) + field(5, span)


def state(key, value, span=0):
    return field(1, key) + field(2, value) + field(3, span)


def get(*parts, mode=0):
    return ("get_property", path(*parts), Out(mode))


DESTINATION = b"\x0a\x02ab"
SET = {
    "plain": [
        ("set_property", "mine", "first"), get("mine"), get("mine", "x"), get("filter_state", "wasm.mine"), get("wasm.mine"),
        ("set_property", "mine", "second"), get("mine"), get("filter_state", "wasm.mine", "x"),
    ],
    "odd": [
        ("set_property", path("a", "b"), "deep"), get("a", "b"), get("a"), get("filter_state", "wasm.a\0b"),
        ("set_property", path("request", "path"), "shadowed"), get("request", "path"),
        ("set_property", "request", "shadowed"), get("request"), ("set_property", "plugin_name", "shadowed"), get("plugin_name"),
        ("set_property", "node", "mine"), get("node"), get("node", "id"), ("set_property", "xds", "mine"), get("xds"),
        ("set_property", "", "empty path"), get(""), get("filter_state", "wasm."), ("set_property", "empty", ""), get("empty"),
        ("set_property", "ends\0", "nul"), get("ends"), get("ends\0"), get("filter_state", "wasm.empty"),
        ("set_property", "bytes", b"\xff\x00\xfe"), get("bytes"), ("set_property", b"\xff", "name"), get("\xff"),
    ],
}  # fmt: skip
# What a root context declared.
DECLARED = [
    foreign("declare_property", declare("declared", readonly=1, kind=1)),
    foreign("declare_property", declare("declared")),
    foreign("declare_property", declare("bytes", kind=0)), foreign("declare_property", declare("text", kind=1)),
    foreign("declare_property", declare("flat", kind=2, schema="no schema")),
    foreign("declare_property", declare("locality", kind=3, schema=TYPE + "envoy.config.core.v3.Locality")),
    foreign("declare_property", declare("struct", kind=3, schema=TYPE + "google.protobuf.Struct")),
    foreign("declare_property", declare("unknown", kind=3, schema=TYPE + "no.such.Message")),
    foreign("declare_property", declare("nourl", kind=3, schema="envoy.config.core.v3.Locality")),
    foreign("declare_property", declare("kind9", kind=9)), foreign("declare_property", declare("request-span", span=1)),
    foreign("declare_property", declare("connection-span", span=2)), foreign("declare_property", declare("span9", span=9)),
    foreign("declare_property", b"\xff"), foreign("declare_property", b""), foreign("declare_property", declare("")),
    foreign("declare_property", declare("", kind=1)),
]  # fmt: skip
_LOCALITY = field(1, "region") + field(2, "zone")
_STRUCT = field(1, field(1, "k") + field(2, field(3, "v")))
USED = [
    ("set_property", "declared", "once"), ("set_property", "declared", "twice"), get("declared"), get("filter_state", "wasm.declared"),
    ("set_property", "bytes", "b"), get("bytes"), ("set_property", "text", "t"), get("text"), ("set_property", "text", "t2"), get("text"),
    ("set_property", "locality", _LOCALITY), get("locality"), get("locality", "region"), get("locality", "sub_zone"),
    get("locality", "nosuch"), get("filter_state", "wasm.locality"), get("filter_state", "wasm.locality", "zone"),
    ("set_property", "locality", b"\xff"), get("locality"), get("locality", "region"), get("filter_state", "wasm.locality"),
    ("set_property", "struct", _STRUCT), get("struct"), get("struct", "k"), get("filter_state", "wasm.struct", "k"),
    ("set_property", "unknown", _LOCALITY), get("unknown"), get("unknown", "region"), get("filter_state", "wasm.unknown"),
    get("unknown", "type_url"), get("unknown", "value"),
    ("set_property", "nourl", _LOCALITY), get("nourl"), get("nourl", "region"), get("filter_state", "wasm.nourl"),
    ("set_property", "kind9", "9"), get("kind9"), ("set_property", "request-span", "r"), get("request-span"),
    ("set_property", "request-span", "r2"), get("request-span"), ("set_property", "connection-span", "c"), get("connection-span"),
    ("set_property", "flat", "x"), get("flat"),
]  # fmt: skip

OBJECTS = [
    foreign("set_envoy_filter_state", b"\xff"), foreign("set_envoy_filter_state", b""),
    foreign("set_envoy_filter_state", state("nosuch", "v")), foreign("set_envoy_filter_state", state("wasm.mine", "v")),
    *[
        op
        for key, values in {
            "envoy.tcp_proxy.cluster": ["echo", ""],
            "envoy.tcp_proxy.per_connection_idle_timeout_ms": ["100", "x", "-1", "", "18446744073709551616", "5 "],
            "envoy.network.upstream_server_name": ["name", ""],
            "envoy.network.upstream_subject_alt_names": ["a,b", "", "a,,b", "a"],
            "envoy.network.application_protocols": ["h2,http/1.1", "", "h2"],
            "envoy.network.transport_socket.original_dst_address": ["127.0.0.1:80", "x", "", "[::1]:9", "127.0.0.1"],
            "envoy.filters.listener.original_dst.local_ip": ["127.0.0.1:80", "x"],
            "envoy.filters.listener.original_dst.remote_ip": ["127.0.0.1:80", "127.0.0.1"],
            "envoy.upstream.dynamic_host": ["host", ""],
            "envoy.upstream.dynamic_port": ["80", "0", "65535", "65536", "x", "-1", ""],
            "envoy.network.network_namespace": ["/run/ns", ""],
            "envoy.network.ip": ["1.2.3.4", "x"],
            "envoy.string": ["text", "", b"\xff"],
            "envoy.hashable_string": ["text"],
            "envoy.ratelimit.hits_addend": ["5", "x", "-1"],
            "envoy.network.proxy_protocol_options": ["x"],
            "envoy.tcp_proxy.disable_tunneling": ["true", "false", "x"],
            "envoy.stream.disable_tunneling": ["true"],
            "envoy.stateful_session.key": ["x"],
            "envoy.load_balancing_policies.override_host": ["127.0.0.1:1"],
            "envoy.filters.network.http_connection_manager.local_reply_owner": ["x"],
            "envoy.network.upstream_tls_provider": ["x"],
            "io.istio.peer_principal": ["spiffe://x"],
            "io.istio.local_principal": ["spiffe://x"],
            "envoy.reverse_tunnel": ["x"],
            "envoy.access_loggers.file": ["x"],
            "envoy.rate_limit.per_descriptor": ["x"],
            "envoy.filters.udp_proxy.cluster": ["x"],
            "envoy.udp_proxy.cluster": ["x"],
            "envoy.sni_cluster": ["x"],
            "envoy.internal_listener.passthrough": ["x"],
            "envoy.uint64": ["5"],
            "envoy.bool": ["true"],
            "envoy.set_filter_state.object": ["x"],
            "envoy.wasm.set_property": ["x"],
        }.items()
        for value in values
        for op in (foreign("set_envoy_filter_state", state(key, value)), get("filter_state", key), get(key))
    ],
    get("filter_state", "envoy.tcp_proxy.cluster", "x"), get("filter_state", "envoy.upstream.dynamic_host", "value"),
    get("filter_state", "envoy.network.transport_socket.original_dst_address", "ip"),
    get("filter_state", "envoy.network.transport_socket.original_dst_address", "port"),
]  # fmt: skip
SPANS = [
    op
    for span in (0, 1, 2, 9)
    for op in (
        foreign("set_envoy_filter_state", state("envoy.string", f"s{span}", span)),
        get("filter_state", "envoy.string"),
    )
]
SPANS += [
    op
    for span in (2, 1, 0, 2)
    for op in (
        foreign("set_envoy_filter_state", state("envoy.hashable_string", f"s{span}", span)),
        get("filter_state", "envoy.hashable_string"),
    )
]

_TEXT = b"hello hello hello hello"
PLAIN = [
    foreign("nosuch"), foreign(""), foreign("Compress"), foreign("compress\0"), foreign("envoy.compress"),
    foreign("clear_route_cache"), foreign("clear_route_cache", "ignored"),
    foreign("compress", _TEXT), foreign("compress"), foreign("compress", bytes(5000), LENGTH),
    foreign("compress", bytes(range(256))), foreign("uncompress", "not zlib"), foreign("uncompress"),
    foreign("uncompress", zlib.compress(_TEXT)), foreign("uncompress", zlib.compress(b"")),
    foreign("uncompress", zlib.compress(_TEXT) + b"more"), foreign("uncompress", zlib.compress(bytes(100000)), LENGTH),
    foreign("uncompress", zlib.compress(_TEXT, 9)), foreign("uncompress", zlib.compress(_TEXT)[2:-4]),
    foreign("uncompress", zlib.compress(_TEXT)[:-1] + b"\0"),
    foreign("declare_property", b"\x08\x01"), foreign("declare_property", b"\x0a\x7f"),
    foreign("expr_evaluate", b"\xff\xff\xff\xff"), foreign("expr_evaluate"), foreign("expr_evaluate", b"\0\0\0"),
    foreign("expr_evaluate", b"\0\0\0\0\0"), foreign("expr_delete", b"\xff\xff\xff\xff"), foreign("expr_delete"),
    foreign("expr_delete", b"\0\0\0\0\0"), foreign("send_udp"), foreign("resolve_dns"), foreign("verify_signature"),
    foreign("sign"), foreign("set_envoy_filter_state"), foreign("inject_encoded_data_to_filter_chain"),
]  # fmt: skip


def _verify(key, hash_, signature, text="text", form="der"):
    value = KEYS["public"][key][form]
    signature = bytes.fromhex(KEYS["signatures"].get(signature, signature))
    place = field(2, bytes.fromhex(value)) if form == "der" else field(5, value)
    return foreign("verify_signature", field(1, hash_) + place + field(3, signature) + field(4, text))


def _sign(key, hash_, form="der", text="text", mode=0):
    value = KEYS["private"][key][form]
    place = field(2, bytes.fromhex(value)) if form.endswith("der") else field(4, value)
    return foreign("sign", field(1, hash_) + place + field(3, text), mode)


_PUBLIC = bytes.fromhex(KEYS["public"]["p256"]["der"])
_PRIVATE = bytes.fromhex(KEYS["private"]["p256"]["der"])
VERIFY = [
    *[_verify("rsa", h, f"rsa.{h}") for h in ("sha1", "sha224", "sha256", "sha384", "sha512")],
    *[_verify("p256", h, f"p256.{h}") for h in ("sha1", "sha224", "sha256", "sha384", "sha512")],
    _verify("rsa", "sha256", "rsa.sha256", form="pem"), _verify("p256", "sha256", "p256.sha256", form="pem"),
    _verify("p384", "sha384", "p384.sha384"), _verify("p521", "sha512", "p521.sha512"), _verify("p224", "sha256", "p224.sha256"),
    _verify("rsa1024", "sha256", "rsa1024.sha256"), _verify("ed25519", "sha256", "00"), _verify("ed25519", "", "00"),
    _verify("rsa", "SHA256", "rsa.sha256"), _verify("rsa", "md5", "rsa.sha256"), _verify("rsa", "", "rsa.sha256"),
    _verify("rsa", "sha-256", "rsa.sha256"), _verify("rsa", "sha256", "rsa.sha512"), _verify("rsa", "sha256", "rsa.sha256", "other"),
    _verify("rsa", "sha256", ""), _verify("rsa", "sha256", "00"), _verify("p256", "sha256", ""), _verify("p256", "sha256", "3000"),
    _verify("p256", "sha256", "p384.sha384"), _verify("p256", "sha256", "rsa.sha256"), _verify("rsa", "sha256", "p256.sha256"),
]  # fmt: skip
VERIFY_ARGUMENTS = [
    foreign("verify_signature", b"\xff"), foreign("verify_signature"), foreign("verify_signature", field(1, "sha256")),
    foreign("verify_signature", field(1, "sha256") + field(2, "x") + field(3, "y") + field(4, "z")),
    foreign("verify_signature", field(1, "nosuch") + field(2, "x") + field(3, "y") + field(4, "z")),
    foreign("verify_signature", field(1, "sha256") + field(5, "x") + field(3, "y") + field(4, "z")),
    foreign("verify_signature", field(1, "sha256") + field(2, _PUBLIC) + field(5, KEYS["public"]["p256"]["pem"])),
    foreign("verify_signature", field(1, "sha256") + field(2, _PUBLIC + b"more") + field(3, bytes.fromhex(KEYS["signatures"]["p256.sha256"])) + field(4, "text")),
    foreign("verify_signature", field(1, "sha256") + field(5, "junk\n" + KEYS["public"]["p256"]["pem"]) + field(3, bytes.fromhex(KEYS["signatures"]["p256.sha256"])) + field(4, "text")),
    foreign("verify_signature", field(1, "sha256") + field(2, _PRIVATE) + field(3, "y") + field(4, "z")),
    foreign("verify_signature", field(1, "sha256") + field(5, KEYS["private"]["p256"]["pem"]) + field(3, "y")),
    foreign("verify_signature", field(1, b"\xff\xfe") + field(2, _PUBLIC)),
]  # fmt: skip
SIGN = [
    *[_sign("rsa", h) for h in ("sha1", "sha224", "sha256", "sha384", "sha512")],
    _sign("rsa", "sha256", "pem"), _sign("rsa", "sha256", "pkcs1_pem"), _sign("rsa", "sha256", "pkcs1_der"),
    _sign("rsa1024", "sha256"), _sign("rsa", "SHA256"), _sign("rsa", "md5"), _sign("rsa", ""), _sign("rsa", "sha256", text=""),
]  # fmt: skip
SIGN_OTHER = [
    *[_sign("p256", h, mode=UNSEEN) for h in ("sha1", "sha224", "sha256", "sha384", "sha512")],
    _sign("p256", "sha256", "pem", mode=UNSEEN), _sign("p256", "sha256", "sec1_pem", mode=UNSEEN),
    _sign("p384", "sha384", mode=UNSEEN), _sign("p521", "sha512", mode=UNSEEN), _sign("p224", "sha256", mode=UNSEEN),
    _sign("ed25519", "sha256"), _sign("p256", "md5"),
    foreign("sign", b"\xff"), foreign("sign"), foreign("sign", field(1, "sha256")), foreign("sign", field(1, "sha256") + field(2, "x")),
    foreign("sign", field(1, "sha256") + field(4, "x")), foreign("sign", field(1, "nosuch") + field(2, "x")),
    foreign("sign", field(1, "sha256") + field(2, _PRIVATE) + field(4, KEYS["private"]["p256"]["pem"])),
    foreign("sign", field(1, "sha256") + field(2, _PUBLIC)), foreign("sign", field(1, "sha256") + field(4, KEYS["public"]["p256"]["pem"])),
]  # fmt: skip

EXPRESSIONS = """
1 | -1 | 1u | 1.5 | -0.0 | 'text' | "dou\\"ble" | b'by\\x00tes' | true | null | [] | [1, 2] | ['a', [1u]] | {} | {'a': 1} | {1: 'a'}
{'a': {'b': true}} | [null] | {'a': null} | r'raw\\n' | '''three''' | 0x10 | 0x10u | 1e3 | .5 | '\\u00e9' | '\\xe9' | // comment
1 + 1 | 1 + 1u | 1 + 1.0 | 'a' + 'b' | b'a' + b'b' | [1] + [2] | 'a' + 1 | 2 - 3 | 2u - 3u | 2 * 3 | 7 / 2 | -7 / 2 | 7 % 3 | -7 % 3 | 1 / 0 | 1 % 0 | 1u / 0u
1.0 / 0.0 | 9223372036854775807 + 1 | -9223372036854775808 | 9223372036854775808 | 18446744073709551615u | 18446744073709551616u | -(-9223372036854775808) | 9223372036854775807 * 2
18446744073709551615u + 1u | 1.5 % 1.0 | -'a' | -1u | !true | !1 | true && false | true || 1 / 0 == 1 | 1 / 0 == 1 || true | 1 / 0 == 1 && false | true && 1 | 1 && true | false && 1 | true ? 1 : 2
1 ? 1 : 2 | false ? 1 / 0 : 2 | (1 / 0 == 1) ? 1 : 2 | nosuch ? 1 : 2
1 == 1 | 1 == 1u | 1 == 1.0 | 1u == 1.0 | 'a' == 1 | null == null | 1 == null | [1] == [1] | [1] == [1.0] | {'a': 1} == {'a': 1} | {'a': 1} == {'a': 2} | b'a' == 'a' | 1 != 2 | 'a' != 1
1 < 2 | 1 < 2u | 1 < 1.5 | 'a' < 'b' | b'a' < b'b' | true > false | 1 < 'a' | [1] < [2] | null < null | 0.0 == -0.0 | 0.0 / 0.0 == 0.0 / 0.0 | 'B' < 'a' | 1 <= 1 | 2 >= 3
'a' in ['a'] | 1 in [1.0] | 1 in ['a'] | 'a' in {'a': 1} | 1 in {1: 1} | 1u in {1: 1} | 1.0 in {1: 1} | 'a' in 'abc' | 1 in 1 | 'a' in [] | 1 / 0 in [1]
[1, 2][0] | [1, 2][2] | [1, 2][-1] | [1, 2][0u] | [1, 2][1.0] | [1, 2]['a'] | {'a': 1}['a'] | {'a': 1}['b'] | {'a': 1}.a | {'a': 1}.b | {1: 2}[1] | {1: 2}[1u] | {1: 2}[1.0] | {true: 2}[true] | 'abc'[0]
{'a': 1, 'a': 2} | {1.5: 1} | {null: 1} | {[1]: 1} | {'a': 1, 1: 2}['a'] | has({'a': 1}.a) | has({'a': 1}.b) | has(request.path) | has(request.nosuch) | has(nosuch.x) | has(request.headers.x) | has(request) | has(1.a)
size('abc') | size('é') | 'abc'.size() | size(b'abc') | size([1, 2]) | size({'a': 1}) | [1].size() | size(1) | size(request.headers) > 0 | size() | size('a', 'b')
'abc'.startsWith('a') | 'abc'.endsWith('c') | 'abc'.contains('b') | 'abc'.matches('b') | 'abc'.matches('^b') | matches('abc', 'a.c') | 'abc'.matches('(') | 'a\\nb'.matches('a.b') | 'abc'.matches('\\\\w+') | startsWith('abc', 'a') | 'abc'.startsWith(1)
'aaa'.matches('(?=a)') | 'aaa'.matches('a{3}') | 'aaa'.matches('a{1001}') | ''.matches('') | 'abc'.lowerAscii() | 'abc'.replace('a', 'b') | 'a,b'.split(',') | ['a'].join(',') | 'abc'.charAt(0) | 'abc'.indexOf('b') | 'ABC'.lowerAscii() == 'abc' | math.greatest(1, 2) | base64.encode(b'a')
int('5') | int('x') | int(5u) | int(5.9) | int(-5.9) | int(1e30) | int(true) | int(timestamp('1970-01-01T00:00:01Z')) | int(' 5') | int('+5') | int('0x5') | uint('5') | uint(-1) | uint(5.9) | uint('-1') | double('1.5') | double(1) | double('x') | double('1e400') | double('inf')
string(1) | string(1u) | string(1.5) | string(1.0) | string(1e100) | string(true) | string(b'a') | string(b'\\xff') | string(null) | string([1]) | string(timestamp('2020-01-02T03:04:05.678Z')) | string(duration('90s')) | string(duration('1.5s')) | string(0.1) | string(-0.0) | string(123456789.0) | string(1e-7)
string(100000.0) | string(1000000.0) | string(123456.0) | string(1234567.0) | string(1234567.5) | string(0.001) | string(0.0001) | string(0.00001) | string(0.00012345) | string(1e15) | string(1e16) | string(1e20) | string(1e21) | string(12345678901234567.0) | string(100.25) | string(1.0 / 3.0) | string(1.0 / 0.0) | string(-1.0 / 0.0) | string(0.0 / 0.0) | string(1e5) | string(-1234567.0) | string(1e22) | string(10000000.0) | string(0.1 + 0.2)
string(duration('0s')) | string(duration('-1.5s')) | string(duration('1ms')) | string(duration('1us')) | string(duration('1ns')) | string(duration('3661s')) | string(timestamp('2020-01-02T03:04:05.5Z')) | string(timestamp('2020-01-02T03:04:05Z')) | int('') | int('5 ') | int('-5') | int('5_0') | int(false) | uint(' 5') | uint(true) | uint('+5') | double(' 1.5') | double(true) | double('nan') | bool('0') | bool('False') | bool('no') | bool('yes') | bool(' true') | bool(1) | int(9223372036854775807u) | int(9223372036854775808u) | int('9223372036854775808') | int(9223372036854775807.0) | uint(-1.0) | uint(1.8446744073709552e19)
duration('-1.5s').getMilliseconds() | duration('1h').getSeconds() | duration('1h').getMilliseconds() | duration('-90s').getMinutes() | duration('25h').getHours() | timestamp('1969-12-31T23:59:59.5Z').getMilliseconds() | timestamp('2020-01-02T03:04:05.678Z').getMilliseconds('UTC') | timestamp('2020-01-02T03:04:05Z').getSeconds() | timestamp('2020-01-02T03:04:05Z').getMinutes() | duration('1s') == duration('1000ms') | duration('1.5h') | duration('+1s') | duration('1s1ms') | duration('.5s') | duration('0') | timestamp('2020-01-02T03:04:05.123456789Z') | timestamp('2020-01-02t03:04:05z') | timestamp('2020-01-02 03:04:05Z') | timestamp(1.5) | timestamp(duration('1s')) | timestamp(1u)
bytes('a') | bytes(1) | bool('true') | bool('1') | bool('x') | bool(true) | bool('TRUE') | bool('t') | type(1) | type(1) == int | type('a') == string | type(type(1)) | type(null) | type([]) == list | dyn(1) | dyn(1) == 1.0 | int | string(type(1))
duration('1s') | duration('1.5s') | duration('1h30m') | duration('-1s') | duration('x') | duration('1') | duration('100000000000000s') | duration('1ms') | duration('1us') | duration('1ns') | duration('') | duration(1) | duration('1s') + duration('1s') | duration('1s') - duration('2s') | duration('1s') < duration('2s') | duration('1d')
timestamp('2020-01-02T03:04:05Z') | timestamp('2020-01-02T03:04:05+01:00') | timestamp('2020-01-02') | timestamp('x') | timestamp(0) | timestamp('9999-12-31T23:59:59Z') | timestamp('0001-01-01T00:00:00Z') | timestamp('10000-01-01T00:00:00Z')
timestamp('2020-01-02T03:04:05Z') + duration('1s') | duration('1s') + timestamp('2020-01-02T03:04:05Z') | timestamp('2020-01-02T03:04:05Z') - duration('1s') | timestamp('2020-01-02T03:04:05Z') - timestamp('2020-01-02T03:04:04Z') | timestamp('2020-01-02T03:04:05Z') < timestamp('2020-01-02T03:04:06Z')
timestamp('2020-01-02T03:04:05.678Z').getFullYear() | timestamp('2020-01-02T03:04:05Z').getMonth() | timestamp('2020-01-02T03:04:05Z').getDate() | timestamp('2020-01-02T03:04:05Z').getDayOfMonth() | timestamp('2020-01-02T03:04:05Z').getDayOfYear() | timestamp('2020-01-02T03:04:05Z').getDayOfWeek()
timestamp('2020-01-02T03:04:05Z').getHours() | timestamp('2020-01-02T03:04:05Z').getHours('America/New_York') | timestamp('2020-01-02T03:04:05Z').getHours('-02:30') | timestamp('2020-01-02T03:04:05Z').getHours('nowhere') | timestamp('2020-01-02T03:04:05.678Z').getMilliseconds() | duration('90m').getHours() | duration('90s').getMinutes() | duration('1.5s').getMilliseconds() | duration('90s').getSeconds()
[1, 2].all(x, x > 0) | [1, 2].exists(x, x > 1) | [1, 2].exists_one(x, x > 1) | [1, 2].map(x, x + 1) | [1, 2].map(x, x > 1, x + 1) | [1, 2].filter(x, x > 1) | {'a': 1}.all(k, k == 'a') | {'a': 1}.map(k, k) | [].all(x, false) | [1].all(x, 1 / 0 == 1) | [1, 0].exists(x, 1 / x == 1) | [0, 1].exists(x, 1 / x == 1) | [0, 1].all(x, 1 / x == 2)
[1].all(1, true) | [1].all(x) | 1.all(x, true) | [[1]].map(x, x.map(y, y + 1)) | request.headers.exists(k, k == 'x-twice') | request.exists(k, true) | request.headers.all(k, k != '') | [1, 2].existsOne(x, x > 1) | [1].exists(x, x)
request.path | request.url_path | request.query | request.host | request.method | request.scheme | request.protocol | request.headers['x-twice'] | request.headers['X-Twice'] | request.headers['x-none'] | request.headers['x-none'] == '' | request.headers.host | request.headers[':path'] | 'x-twice' in request.headers | 'x-none' in request.headers | 'path' in request | 'nosuch' in request
request['path'] | request[1] | request | request.nosuch | request.path.nosuch | request.path == '/trailers' | request.path.startsWith('/') | request.path + '!' | request.size | request.size == 0 | request.useragent | request.id | request.time > timestamp('2020-01-01T00:00:00Z') | request.time.getFullYear() >= 2024 | request.duration > duration("0s") | size(request.path) | type(request) | type(request.path) | type(request.size) | request == request
response.code | response.code == 200 | response.headers['x-up'] | response.code_details | response.flags | response.grpc_status | response.trailers['x-t'] | response
source.address == '' | source.port > 0 | destination.port > 0 | destination.address.startsWith('127.0.0.1:') | connection.mtls | connection.id >= 0u | connection.requested_server_name | connection.tls_version | upstream.address | upstream.port > 0 | upstream.num_endpoints | upstream.locality | upstream.locality.region | upstream.locality.nosuch | has(upstream.locality.region) | type(upstream.locality)
xds.route_name | xds.node.id | xds.node.metadata.key | xds.node.metadata['key'] | xds.node.metadata.number | xds.node.metadata | xds.node.metadata.list[1] | size(xds.node.metadata.list) | xds.node.locality | xds.node.locality.zone | xds.node.nosuch | xds.node.metadata.none | has(xds.node.metadata.none) | has(xds.node.locality) | has(xds.node.user_agent_version) | xds.node.client_features | 'key' in xds.node.metadata | xds.cluster_name | xds.virtual_host_name | xds.filter_chain_name | xds.listener_direction | xds
xds.route_metadata.filter_metadata['ns'].text | xds.route_metadata.filter_metadata.ns.number + 1.0 | xds.route_metadata.filter_metadata.ns.whole == 7 | xds.route_metadata.filter_metadata.ns.whole + 1 | xds.route_metadata.filter_metadata.ns['null'] == null | xds.route_metadata.filter_metadata.ns.list.exists(x, x == 'a') | xds.route_metadata.filter_metadata.ns | xds.route_metadata.filter_metadata | xds.route_metadata | xds.route_metadata.typed_filter_metadata.typed | xds.route_metadata.typed_filter_metadata.typed == 'v' | xds.listener_metadata.filter_metadata.ns.text | has(xds.route_metadata.filter_metadata.ns)
xds.upstream_host_metadata.filter_metadata.ns.text | xds.cluster_metadata.filter_metadata.ns.text | xds.virtual_host_metadata.filter_metadata.ns.text | size(xds.route_metadata.filter_metadata) | xds.route_metadata == xds.route_metadata | xds.node.metadata == {'a': 1} | xds.node.metadata.nested.deep
metadata | metadata.filter_metadata | metadata.filter_metadata['none'] | 'none' in metadata.filter_metadata | filter_state | filter_state['wasm.mine'] | filter_state['none'] | 'wasm.mine' in filter_state | mine | mine == b'set' | mine == 'set' | string(mine) | type(mine) | upstream_filter_state | plugin_name | plugin_root_id | plugin_vm_id | connection_id >= 0u | nosuch | node | node.id | route_name | cluster_name | plugin_name == 'x' || true
1 + | '' | (| ) | a.b.c | a..b | 'unclosed | 1 2 | f(1) | x.f(1) | unknownFunction(1) | [1, | {1} | request.path( | true ? 1 | a b | === | && | if | for | 'a' 'b' | in | 1 = 1 | $ | @ | # | a.? | a.?b | a[?0] | optional.none() | optional.of(1) | `a` | request.`path` | 1.path | request.headers.x-twice | "\\q" | '\\777' | cel.bind(x, 1, x) | {'a': 1}.?a | .request.path | request . path
google.protobuf.Duration{seconds: 1} | google.protobuf.StringValue{value: 'a'} | Foo{a: 1} | google.protobuf.Struct{} | google.protobuf.Int64Value{value: 1} == 1 | google.protobuf.Timestamp{seconds: 1} | envoy.config.core.v3.Locality{region: 'r'} | envoy.config.core.v3.Locality{region: 'r'}.region | envoy.config.core.v3.Locality{nosuch: 'r'} | google.protobuf.Any{}
"""  # fmt: skip


def expressions():
    out = [""]
    for line in EXPRESSIONS.strip().splitlines():
        # `||` is an operator.
        for text in line.replace("||", "\0").split("|"):
            text = text.replace("\0", "||")
            out.append(text.strip())
    return list(dict.fromkeys(out))


def evaluate(texts):
    """Creates all and evaluates their tokens, which a root context counts from 0, there and in two later phases."""
    tokens = [bytes([number, 0, 0, 0]) for number in range(len(texts))]
    every = [foreign("expr_evaluate", token) for token in tokens]
    create = [foreign("expr_create", text) for text in texts]
    deleted = [op for token in tokens for op in (foreign("expr_delete", token), foreign("expr_evaluate", token))]
    return {
        "request_headers": (0, [("set_property", "mine", "set"), *create, *every]),
        "response_headers": (0, every),
        "log": (0, every),
        "delete": (0, deleted),
    }


def cases():
    out = []
    for name, stream in STREAMS.items():
        for group in PROPERTIES:
            for phases in (PHASES[:5], PHASES[5:]):
                if group in ("node", "legacy") and name not in ("get", "post"):
                    continue
                script = {phase: (0, properties(group)) for phase in phases}
                out.append({"id": f"{name}/{group}/{phases[0]}", "stream": stream, "script": script})
    for group in PROPERTIES:
        root = {phase: (1, properties(group)) for phase in ("context_create", "vm_start", "configure")}
        out.append({"id": f"root/{group}", "root": root})
    get_, post = STREAMS["get"], STREAMS["post"]
    for name, operations in SET.items():
        for phase in ("request_headers", "response_headers", "log", "done"):
            script = {phase: (0, operations), "log": (0, operations if phase == "log" else [get("mine"), get("a", "b")])}
            out.append({"id": f"set/{name}/{phase}", "stream": post, "script": script, "logged": True})
    out.append({"id": "set/root", "root": {"configure": (1, [*SET["plain"], *SET["odd"]])}})
    later = {
        "request_headers": (0, [get("mine"), get("declared"), ("set_property", "declared", "mine"), ("set_property", "mine", "third"), get("mine")]),
        "log": (0, [get("mine"), get("declared")]),
    }  # fmt: skip
    out.append({"id": "set/later-filter", "stream": get_, "script": {"request_headers": (0, SET["plain"])}, "second": later, "logged": True})
    declared = {"configure": (1, DECLARED)}
    out.append({"id": "declare/root", "stream": post, "root": declared, "script": {"request_headers": (0, USED), "log": (0, [get("declared"), get("locality", "region"), get("struct", "k")])}, "second": later, "logged": True})
    out.append({"id": "declare/stream", "stream": get_, "script": {"request_headers": (0, [*DECLARED, *USED])}, "logged": True})
    for phase in ("request_headers", "log", "done"):
        out.append({"id": f"state/{phase}", "stream": get_, "script": {phase: (0, OBJECTS)}, "second": {"request_headers": (0, [get("filter_state", "envoy.string")])}, "logged": True})
    out.append({"id": "state/spans", "stream": get_, "script": {"request_headers": (0, SPANS)}, "logged": True})
    out.append({"id": "state/root", "root": {"configure": (1, OBJECTS[:12])}})
    for phase in ("request_headers", "log", "done"):
        out.append({"id": f"plain/{phase}", "stream": get_, "script": {phase: (0, PLAIN)}})
    out.append({"id": "plain/root", "root": {"configure": (1, PLAIN)}})
    for name, operations in {"verify": VERIFY, "verify-arguments": VERIFY_ARGUMENTS, "sign": SIGN, "sign-other": SIGN_OTHER}.items():
        half = len(operations) // 2
        for part, chosen in enumerate((operations[:half], operations[half:])):
            out.append({"id": f"{name}/{part}", "stream": get_, "script": {"request_headers": (0, chosen)}})
    every = expressions()
    for begin in range(0, len(every), 16):
        texts = every[begin : begin + 16]
        out.append({"id": f"cel/{begin // 16}", "stream": post, "script": evaluate(texts), "expressions": texts})
    out.append({"id": "cel/root", "root": {"configure": (1, [
        op for text in ("1 + 1", "plugin_name", "xds.node.id", "request.path", "request", "nosuch", "xds.route_name", "mine", "1 +")
        for op in (foreign("expr_create", text),)
    ] + [foreign("expr_evaluate", bytes([n, 0, 0, 0])) for n in range(9)])}})
    return out
