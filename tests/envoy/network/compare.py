#!/usr/bin/env python3
"""Connections through a TCP proxy and through an HTTP connection manager, with and without plugins before it, in a real Envoy and
in Plenipo.

    compare.py [--only GLOB] [--self] [-v]

Compared are what client and upstream got and how each connection ended, what the guest logged, the record of the access log,
and the statistics of proxy and clusters at the end. The guest is tests/guests/network.wat, compiled by `cargo test --test it guests`:
it logs every callback with what its buffers hold, and does what the first byte of the data says. PLENIPO names the binary
(target/release/plenipo). `--self` compares Envoy with itself. The exit status is 1 where there is a difference that is not in `DEVIATIONS`.
"""

import argparse
import base64
import fnmatch
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
GUEST = ROOT / "target/tmp/guests/network.wasm"
STATE = ROOT / "target/tmp/guests/connection-state.wasm"
LOGGER = ROOT / "target/tmp/guests/connection-log.wasm"
# What separates two things that must not arrive together.
PAUSE = 0.12

# ---------------------------------------------------------------------------------------------------------------------
# What is configured: a listener each
# ---------------------------------------------------------------------------------------------------------------------



def envoy_state(path, value):
    """`SetEnvoyFilterStateArguments`."""
    return b"".join(bytes([10 + 8 * field, len(text)]) + text.encode() for field, text in enumerate((path, value)))


CLUSTER, IDLE = "envoy.tcp_proxy.cluster", "envoy.tcp_proxy.per_connection_idle_timeout_ms"

# name: cluster, plugins (configurations; `network.wat` explains them, and `connection-state.wat` those in bytes), plugin settings,
# proxy settings
LISTENERS = {
    "plain": ("echo", [], {}, {}),
    "first": ("first", [], {}, {}),
    "ends": ("ends", [], {}, {}),
    "resets": ("resets", [], {}, {}),
    "dead": ("dead", [], {}, {}),
    "dead3": ("dead", [], {}, {"max_connect_attempts": 3}),
    "nohost": ("nohost", [], {}, {}),
    "missing": ("missing", [], {}, {}),
    "idle": ("sink", [], {}, {"idle_timeout": "0.3s"}),
    "long": ("sink", [], {}, {"max_downstream_connection_duration": "0.3s"}),
    "pass": ("echo", ["0."], {}, {}),
    "pass-first": ("first", ["0."], {}, {}),
    "pass-ends": ("ends", ["0."], {}, {}),
    "pass-resets": ("resets", ["0."], {}, {}),
    "pass-dead": ("dead", ["0."], {}, {}),
    "pass-idle": ("sink", ["0."], {}, {"idle_timeout": "0.3s"}),
    "two": ("echo", ["0.", "0."], {}, {}),
    "stop": ("echo", ["#."], {}, {}),
    "stop-tick": ("echo", ["#&"], {}, {}),
    "close-new": ("echo", ["$."], {}, {}),
    "close-pass": ("echo", ["^."], {}, {}),
    "go-on-new": ("echo", ["&."], {}, {}),
    "closed": ("echo", ["0."], {}, {}),
    "open": ("echo", ["0."], {"failure_policy": "FAIL_OPEN"}, {}),
    "trap-new": ("echo", ["!."], {}, {}),
    "props": ("echo", ["0."], {}, {}),
    "state": ("echo", [b""], {}, {}),
    "state-cluster": ("sink", [envoy_state(CLUSTER, "echo")], {}, {}),
    "state-cluster-later": ("sink", ["0.", envoy_state(CLUSTER, "echo")], {}, {}),
    "state-missing": ("echo", [envoy_state(CLUSTER, "nosuch")], {}, {}),
    "state-idle": ("sink", [envoy_state(IDLE, "300")], {}, {}),
    "state-idle-longer": ("sink", [envoy_state(IDLE, "900")], {}, {"idle_timeout": "0.3s"}),
    "state-idle-none": ("sink", [envoy_state(IDLE, "0")], {}, {"idle_timeout": "0.3s"}),
    # Access loggers that are plugins; `True`: those of the connections' ends alone, `False`: of others.
    "logged": ("echo", [], {}, {"loggers": [None]}),
    "logged-pass": ("echo", ["0."], {}, {"loggers": [None, True, False]}),
    "logged-dead": ("dead", [], {}, {"loggers": [None]}),
    "logged-idle": ("sink", [], {}, {"loggers": [None], "idle_timeout": "0.3s"}),
}

PROPERTIES = (
    "connection.mtls connection.requested_server_name connection.termination_details upstream.num_endpoints "
    "upstream.request_attempt_count upstream.transport_failure_reason request.protocol request.id request.path request.host "
    "request.duration request.headers response.code response.flags response.code_details response.headers xds.cluster_name "
    "xds.cluster_metadata xds.route_name xds.virtual_host_name xds.filter_chain_name xds.listener_direction xds.listener_metadata "
    "xds.upstream_host_metadata plugin_name plugin_root_id metadata filter_state upstream.tls_version connection.tls_version "
    "upstream.locality"
).split()

# What access loggers ask for, too.
LOGGED = [
    # Not what differs from run to run, and not the bytes of flags, which are no text.
    *(name for name in PROPERTIES if name not in ("request.duration", "response.flags")),
    *"source.address destination.address upstream.address upstream.local_address request.size response.size request.total_size "
    "plugin_vm_id".split(),
]

# name: listener, steps. A text is sent; `read` reads what is there, to its end if that comes.
# Before an HTTP connection manager. name: plugins, plugin settings, the manager's settings
HTTP = {
    "http": (["0."], {}, {}),
    "http2": (["0."], {}, {}),
    "http-state": ([b""], {}, {}),
    "http-two": (["0.", "0."], {}, {}),
    "http-open": (["0."], {"failure_policy": "FAIL_OPEN"}, {}),
    "http-stop": (["#."], {}, {}),
    "http-tick": (["#&"], {}, {}),
    "http-tick-data": (["0+"], {}, {}),
    "http-trap": (["0."], {}, {}),
    "http-tick-close": (["0$"], {}, {}),
    "http-close-new": (["$."], {}, {}),
    "http-trap-new": (["!."], {}, {}),
    "http-replaced": (["0.="], {}, {}),
    "http-before": (["0.("], {}, {}),
    "http-after": (["0.)"], {}, {}),
    "http-stop-up": (["0.#"], {}, {}),
    "http-close-up": (["0.$"], {}, {}),
    "http-trap-up": (["0.!"], {}, {}),
    "http-trap-up-open": (["0.!"], {"failure_policy": "FAIL_OPEN"}, {}),
    "http-idle": (["0."], {}, {"common_http_protocol_options": {"idle_timeout": "0.3s"}}),
    "http-no-linger": (["0."], {}, {"delayed_close_timeout": "0s"}),
}


def ask(path, *fields):
    return f"GET {path} HTTP/1.1\r\nhost: a\r\n" + "".join(field + "\r\n" for field in fields) + "\r\n"


PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=""):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head.decode("latin1") + payload


def ask2(stream, path):
    """HEADERS of a GET, that ends its stream: `:method`, `:scheme` by index, `:path` and `:authority` as they are."""
    block = "\x82\x86" + "\x04" + chr(len(path)) + path + "\x01\x01a"
    return frame(1, 5, stream, block)


CASES = {
    "http-state": ("http-state", [ask("/1"), "read", ask("/2"), "read", "fin", "read"]),
    "state": ("state", ["x", "read", "fin", "read"]),
    "state-cluster": ("state-cluster", ["x", "read", "fin", "read"]),
    "state-cluster-later": ("state-cluster-later", ["x", "read", "fin", "read"]),
    "state-missing": ("state-missing", ["read"]),
    "state-idle": ("state-idle", ["x", 0.6, "read"]),
    "state-idle-longer": ("state-idle-longer", ["x", 0.6, "fin", "read"]),
    "state-idle-none": ("state-idle-none", ["read"]),
    "http": ("http", [ask("/"), "read", "fin", "read"]),
    "http-close": ("http", [ask("/"), "read", "close"]),
    "http-keep-alive": ("http", [ask("/1"), "read", ask("/2"), "read", "fin", "read"]),
    "http-asked-to-close": ("http", [ask("/", "connection: close"), "read", "fin"]),
    "http-not-lingering": ("http-no-linger", [ask("/", "connection: close"), "read"]),
    "http-in-two-parts": ("http", ["GET / HT", "TP/1.1\r\nhost: a\r\n\r\n", "read", "fin", "read"]),
    "http-body": ("http", [ask("/body"), "read", "fin", "read"]),
    "http-post": ("http", ["POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n", "hello", "read", "fin", "read"]),
    "http-reset": ("http", [ask("/"), "read", "reset"]),
    "http-fin-at-once": ("http", ["fin", "read"]),
    "http-fin-in-flight": ("http", [ask("/slow"), "fin", "read"]),
    "http-close-in-flight": ("http", [ask("/slow"), "close"]),
    "http-go-on-in-data": ("http", ["+" + ask("/"), "read", "fin", "read"]),
    "http-rewritten": ("http", ["@" + ask("/"), "read", "fin", "read"]),
    "http-hold": ("http", ["#" + ask("/"), "more", "read", "fin", "read"]),
    "http-close-downstream": ("http", ["$" + ask("/"), "read"]),
    "http-close-and-continue": ("http", ["^" + ask("/"), "read"]),
    "http-close-upstream": ("http", ["%" + ask("/"), "read"]),
    "http-close-with-request": ("http", [ask("/slow"), "$", "read"]),
    "http-trap": ("http-trap", [ask("/"), "read", "!", "read"]),
    "http-trap-open": ("http-open", [ask("/"), "read", "!", "read", "fin", "read"]),
    "http-two-guests": ("http-two", [ask("/"), "read", "fin", "read"]),
    "http-two-guests-rewritten": ("http-two", ["@@" + ask("/"), "read", "fin", "read"]),
    "http-stopped": ("http-stop", [ask("/"), "read", "fin", "read"]),
    "http-released": ("http-tick", [0.3, ask("/"), "read", "fin", "read"]),
    "http-held-and-released": ("http-tick-data", ["#" + ask("/"), "read", "fin", "read"]),
    "http-closed-by-tick": ("http-tick-close", [0.3, "read"]),
    "http-closed-at-once": ("http-close-new", ["read"]),
    "http-trap-new": ("http-trap-new", ["read"]),
    "http-response-replaced": ("http-replaced", [ask("/"), "read", ask("/"), "read", "fin", "read"]),
    "http-response-before": ("http-before", [ask("/"), "read", "fin", "read"]),
    "http-response-after": ("http-after", [ask("/"), "read", "fin", "read"]),
    "http-response-held": ("http-stop-up", [ask("/"), "read", ask("/"), "read", "fin", "read"]),
    "http-response-closes": ("http-close-up", [ask("/"), "read"]),
    "http-response-traps": ("http-trap-up", [ask("/"), "read"]),
    "http-response-traps-open": ("http-trap-up-open", [ask("/"), "read", "fin", "read"]),
    "http-idle": ("http-idle", [0.6, "read"]),
    "http2": ("http2", [PREFACE + frame(4, 0, 0) + ask2(1, "/"), "read2", ask2(3, "/"), "read2", "fin", "read2"]),
    "http2-rewritten": ("http2", ["@" + PREFACE + frame(4, 0, 0) + ask2(1, "/"), "read2", "fin", "read2"]),
    "http2-body": ("http2", [PREFACE + frame(4, 0, 0) + ask2(1, "/body"), "read2", "fin", "read2"]),
    "http2-close": ("http2", [PREFACE + frame(4, 0, 0) + ask2(1, "/slow"), "$", "read2"]),
    "http-properties": (
        "http",
        ["?" + name for name in PROPERTIES] + ["fin", "read"],
    ),
    "echo": ("plain", ["hello", "read", "more", "read", "fin", "read"]),
    "echo-fin-at-once": ("plain", ["hello", "fin", "read"]),
    "echo-close": ("plain", ["hello", "read", "close"]),
    "echo-reset": ("plain", ["hello", "read", "reset"]),
    "nothing": ("plain", ["fin", "read"]),
    "upstream-first": ("first", ["read", "fin", "read"]),
    "upstream-ends": ("ends", ["hello", "read", "more", "fin", "read"]),
    "upstream-resets": ("resets", ["hello", "read"]),
    "refused": ("dead", ["read"]),
    "refused-thrice": ("dead3", ["read"]),
    "no-host": ("nohost", ["read"]),
    "no-cluster": ("missing", ["read"]),
    "idle": ("idle", ["x", 0.6, "read"]),
    "too-long": ("long", ["x", 0.6, "read"]),
    "guest-echo": ("pass", ["hello", "read", "fin", "read"]),
    "guest-reset": ("pass", ["hello", "read", "reset"]),
    "guest-first": ("pass-first", ["read", "fin", "read"]),
    "guest-upstream-ends": ("pass-ends", ["hello", "read", "more", "fin", "read"]),
    "guest-upstream-resets": ("pass-resets", ["hello", "read"]),
    "guest-refused": ("pass-dead", ["read"]),
    "guest-idle": ("pass-idle", ["x", 0.6, "read"]),
    "replace": ("pass", ["=hello", "read", "fin", "read"]),
    "prepend": ("pass", ["(hello", "read", "fin", "read"]),
    "append": ("pass", [")hello", "read", "fin", "read"]),
    "hold": ("pass", ["#hello", "more", "read", "fin", "read", "reset"]),
    "hold-to-the-end": ("pass", ["~hello", "more", "fin", "read"]),
    "go-on-in-data": ("pass", ["&hello", "read", "more", "read", "fin", "read"]),
    "close-downstream": ("pass", ["$hello", "read"]),
    "close-upstream": ("pass", ["%hello", "read"]),
    "close-and-continue": ("pass", ["^hello", "read"]),
    "close-later": ("pass", ["hello", "read", "$", "read"]),
    "two-guests": ("two", ["hello", "read", "fin", "read"]),
    "two-guests-replace": ("two", ["=hello", "read", "fin", "read"]),
    "stopped": ("stop", ["hello", "read", "fin", "read"]),
    "stopped-and-released": ("stop-tick", [0.3, "hello", "read", "fin", "read"]),
    "closed-at-once": ("close-new", ["read"]),
    "closed-at-once-and-continued": ("close-pass", ["read"]),
    "released-at-once": ("go-on-new", ["hello", "read", "fin", "read"]),
    "trap": ("closed", ["hi", "read", "!x", "read"]),
    "trap-open": ("open", ["!x", "read"]),
    "trap-new": ("trap-new", ["read"]),
    "logged": ("logged", ["hello", "read", "fin", "read"]),
    "logged-reset": ("logged", ["hello", "read", "reset"]),
    "logged-refused": ("logged-dead", ["read"]),
    "logged-idle": ("logged-idle", ["x", 0.6, "read"]),
    "logged-behind-a-guest": ("logged-pass", ["hello", "read", "fin", "read"]),
    "properties": ("props", [step for name in PROPERTIES for step in ("|" + name, "read")] + ["fin", "read"]),
}

# case glob (or `stats`), what differs (`ends`, `guest`, `log`, or a statistic), why
DEVIATIONS = [
    ("http-body", "guest", "head and body are written at once, and no empty piece for the end"),
    ("http2*", "guest", "the library writes other settings, and several frames at once"),
    ("http2-body", "ends", "the end of the data is told with the last of them"),
    ("http-response-closes", "log", "an exchange is over when the codec has all of its answer"),
    ("http-response-traps*", "log", "likewise"),
    ("stats", "http.http2.downstream_cx_tx_bytes_total", "other settings and frames"),
]

FORMAT = (
    "%RESPONSE_FLAGS%|%BYTES_RECEIVED%|%BYTES_SENT%|%RESPONSE_CODE%|%RESPONSE_CODE_DETAILS%|%CONNECTION_TERMINATION_DETAILS%|"
    "%PROTOCOL%|%REQ(:METHOD)%|%REQ(X-REQUEST-ID)%|%UPSTREAM_PROTOCOL%|%ROUTE_NAME%|%ACCESS_LOG_TYPE%|%UPSTREAM_CLUSTER%|"
    "%UPSTREAM_HOST%|%UPSTREAM_TRANSPORT_FAILURE_REASON%|%UPSTREAM_REQUEST_ATTEMPT_COUNT%|%UPSTREAM_HOSTS_ATTEMPTED%|"
    "%DOWNSTREAM_LOCAL_CLOSE_REASON%|%UPSTREAM_LOCAL_CLOSE_REASON%|%DOWNSTREAM_DETECTED_CLOSE_TYPE%|"
    "%UPSTREAM_DETECTED_CLOSE_TYPE%|%UPSTREAM_WIRE_BYTES_SENT%|%UPSTREAM_WIRE_BYTES_RECEIVED%|%DOWNSTREAM_WIRE_BYTES_SENT%|"
    "%DOWNSTREAM_WIRE_BYTES_RECEIVED%|%REQUEST_DURATION%|%RESPONSE_DURATION%|%STREAM_ID%|%FILTER_STATE(wasm.peer:PLAIN)%\n"
)
HTTP_FORMAT = (
    "%RESPONSE_FLAGS%|%BYTES_RECEIVED%|%BYTES_SENT%|%RESPONSE_CODE%|%RESPONSE_CODE_DETAILS%|%CONNECTION_TERMINATION_DETAILS%|"
    "%PROTOCOL%|%REQ(:METHOD)%|%REQ(:PATH)%|%DOWNSTREAM_LOCAL_CLOSE_REASON%|%UPSTREAM_HOST%|%FILTER_STATE(wasm.peer:PLAIN)%\n"
)


# ---------------------------------------------------------------------------------------------------------------------
# The upstreams
# ---------------------------------------------------------------------------------------------------------------------


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Upstream:
    """One behaviour, on a port; what it got of each connection is kept."""

    def __init__(self, kind):
        self.kind = kind
        self.got = []
        self.server = socket.socket()
        self.server.bind(("127.0.0.1", 0))
        self.server.listen(64)
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            sock, _ = self.server.accept()
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        got = []
        self.got.append(got)
        try:
            self.play(sock, got)
        except OSError as error:
            got.append(f"<{type(error).__name__}>")

    def play(self, sock, got):
        if self.kind == "first":
            sock.sendall(b"hi")
        while True:
            data = sock.recv(65536)
            if not data:
                got.append("<end>")
                break
            text = data.decode("latin1")
            got.append(text.split("\r\n")[0] + ";" if self.kind == "http" else text)
            if self.kind == "echo":
                sock.sendall(data)
            elif self.kind == "http":
                while b"content-length: 5" in data and not data.endswith(b"hello"):
                    data += sock.recv(65536)
                target = data.split(b" ")[1]
                if target == b"/slow":
                    time.sleep(3 * PAUSE)
                body = b"hello" if target == b"/body" else b""
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            elif self.kind == "resets":
                reset(sock)
                return
            elif self.kind == "ends" and len(got) == 1:
                sock.sendall(b"bye")
                # Its end is an event of its own.
                time.sleep(PAUSE / 2)
                sock.shutdown(socket.SHUT_WR)
        # Likewise.
        time.sleep(PAUSE / 2)
        sock.close()


def frames(text):
    """What arrived, as frames of HTTP/2: headers, data and ends, with what says how they end; the rest is the library's."""
    kinds = {0: "DATA", 1: "HEADERS", 3: "RST_STREAM", 7: "GOAWAY"}
    data, _, end = text.rpartition("<")
    seen = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3].encode("latin1"), "big")
        payload = data[9 : 9 + length]
        if kind := kinds.get(ord(data[3])):
            status = " 200" if kind == "HEADERS" and payload[:1] == "\x88" else ""
            body = " " + payload if kind == "DATA" and payload else ""
            ends = " end" if kind in ("DATA", "HEADERS") and ord(data[4]) & 1 else ""
            seen.append(f"{kind} {ord(data[8])}{status}{body}{ends}")
        data = data[9 + length :]
    return [*seen, "<" + end]


# ---------------------------------------------------------------------------------------------------------------------
# A proxy
# ---------------------------------------------------------------------------------------------------------------------


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def any_of(kind, **fields):
    return {"@type": f"type.googleapis.com/{kind}", **fields}


class Proxy:
    def __init__(self, binary, folder):
        self.binary = binary
        self.log_path = folder / "log"
        self.access_path = folder / "access"
        self.upstreams = {kind: Upstream(kind) for kind in ("echo", "first", "ends", "resets", "sink", "http")}
        *ports, dead, self.admin = free_ports(len(LISTENERS) + len(HTTP) + 2)
        self.ports = dict(zip([*LISTENERS, *HTTP], ports))
        clusters = {kind: upstream.port for kind, upstream in self.upstreams.items()}
        clusters |= {"dead": dead, "nohost": None}
        config = {
            "admin": {"address": self.address(self.admin)},
            "static_resources": {
                "listeners": [self.listener(name) for name in [*LISTENERS, *HTTP]],
                "clusters": [self.cluster(name, port) for name, port in clusters.items()],
            },
        }
        path = folder / "config.json"
        path.write_text(json.dumps(config))
        flags = ["-c", str(path), "--concurrency", "1", "-l", "warning", "--component-log-level", "wasm:info"]
        flags += ["--file-flush-interval-msec", "50", "--base-id", str(self.admin % 60000)]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen([binary, *flags], stdout=log, stderr=log)
        self.read_logs = {self.log_path: 0, self.access_path: 0}
        for _ in range(300):
            try:
                if "LIVE" in self.get("/ready"):
                    break
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{binary} does not start:\n{self.log_path.read_text()[-2000:]}")
            time.sleep(0.1)

    @staticmethod
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def cluster(self, name, port):
        hosts = [{"lb_endpoints": [{"endpoint": {"address": self.address(port)}}]}] if port else []
        assignment = {"cluster_name": name, "endpoints": hosts}
        return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}

    def listener(self, name):
        http = name in HTTP
        plugins, settings, more = HTTP[name] if http else LISTENERS[name][1:]
        filters = []
        for index, configuration in enumerate(plugins):
            text = isinstance(configuration, str)
            value = configuration if text else base64.b64encode(configuration).decode()
            wrapped = any_of(f"google.protobuf.{'String' if text else 'Bytes'}Value", value=value)
            config = {
                "name": f"{name}-{index}",
                "vm_config": {
                    "vm_id": name,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": str(GUEST if text else STATE)}},
                },
                "configuration": wrapped,
                **settings,
            }
            kind = "envoy.extensions.filters.network.wasm.v3.Wasm"
            filters.append({"name": "plugin", "typed_config": any_of(kind, config=config)})
        log = any_of(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=str(self.access_path),
            log_format={"text_format_source": {"inline_string": f"{name}|{HTTP_FORMAT if http else FORMAT}"}},
        )
        if http:
            filters.append({"name": "manager", "typed_config": self.manager(name, log, more)})
            return {"name": name, "address": self.address(self.ports[name]), "filter_chains": [{"filters": filters}]}
        more = dict(more)
        loggers = [self.logger(name, ends) for ends in more.pop("loggers", [])]
        proxy = any_of(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=name,
            cluster=LISTENERS[name][0],
            access_log=[*loggers, {"name": "log", "typed_config": log}],
            **more,
        )
        filters.append({"name": "proxy", "typed_config": proxy})
        return {"name": name, "address": self.address(self.ports[name]), "filter_chains": [{"filters": filters}]}

    @staticmethod
    def logger(name, ends):
        config = {
            "name": f"{name}-{ends}",
            "vm_config": {
                "vm_id": f"{name}-{ends}",
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": str(LOGGER)}},
            },
            "configuration": any_of("google.protobuf.StringValue", value=" ".join(LOGGED)),
        }
        logger = {"name": "wasm", "typed_config": any_of("envoy.extensions.access_loggers.wasm.v3.WasmAccessLog", config=config)}
        if ends is not None:
            types = ["TcpConnectionEnd" if ends else "DownstreamEnd"]
            logger["filter"] = {"log_type_filter": {"types": types}}
        return logger

    @staticmethod
    def manager(name, log, more):
        route = {"match": {"prefix": "/"}, "route": {"cluster": "http"}}
        router = any_of("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
        return any_of(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix=name,
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            http_filters=[{"name": "router", "typed_config": router}],
            access_log=[{"name": "log", "typed_config": log}],
            **more,
        )

    def get(self, path):
        with socket.create_connection(("127.0.0.1", self.admin), timeout=5) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
            answer = b""
            while data := sock.recv(65536):
                answer += data
        return answer.decode("latin1")

    def news(self, path):
        """What was added to a file since."""
        text = path.read_bytes().decode("latin1") if path.exists() else ""
        new = text[self.read_logs[path] :]
        self.read_logs[path] = len(text)
        return new

    def normal(self, text):
        for port in [upstream.port for upstream in self.upstreams.values()]:
            text = text.replace(f"127.0.0.1:{port}", "UPSTREAM")
        text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
        text = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "DATE", text)
        return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]+", "UUID", text)

    def play(self, name):
        listener, steps = CASES[name]
        cluster = "http" if listener in HTTP else LISTENERS[listener][0]
        upstream = self.upstreams.get(cluster)
        if upstream:
            upstream.got.clear()
        self.news(self.log_path)
        self.news(self.access_path)
        ends = self.talk(listener, steps)
        time.sleep(3 * PAUSE)
        got = ["".join(one) for one in upstream.got] if upstream else []
        guest = []
        for line in self.news(self.log_path).splitlines():
            found = re.search(r"wasm log (.*)", line)
            if found:
                guest.append(self.normal(found[1]))
        return {"ends": [ends, got], "guest": guest, "log": self.normal(self.news(self.access_path)).splitlines()}

    def talk(self, listener, steps):
        seen = []
        sock = socket.create_connection(("127.0.0.1", self.ports[listener]), timeout=5)
        try:
            for step in steps:
                if step == "fin":
                    sock.shutdown(socket.SHUT_WR)
                elif step == "reset":
                    reset(sock)
                elif step == "close":
                    sock.close()
                elif step == "read":
                    seen.append(self.normal(self.read(sock)))
                elif step == "read2":
                    seen.append(frames(self.read(sock)))
                elif isinstance(step, float):
                    time.sleep(step)
                else:
                    sock.sendall(step.encode("latin1"))
                    time.sleep(PAUSE)
        except OSError as error:
            seen.append(f"<{type(error).__name__}>")
        sock.close()
        return seen

    @staticmethod
    def read(sock):
        sock.settimeout(2.5 * PAUSE)
        seen = b""
        while True:
            try:
                data = sock.recv(65536)
            except TimeoutError:
                return seen.decode("latin1") + "<open>"
            except OSError as error:
                return seen.decode("latin1") + f"<{type(error).__name__}>"
            if not data:
                return seen.decode("latin1") + "<end>"
            seen += data

    def stats(self):
        """Statistics of the proxies and of their clusters, but for times."""
        http = r"http\.http[^.]*\.downstream_(?:(?:rq|cx)_(?:http[12]_|[rt]x_bytes_)?(?:total|active)|cx_destroy(?:_local|_remote)?)(?=:)"
        wanted = re.compile(rf"((?:tcp\.|{http}|cluster\.[a-z]+\.upstream_(?:cx|rq)).*): (\d+)$")
        lines = (wanted.match(line.strip()) for line in self.get("/stats").splitlines())
        return {found[1]: found[2] for found in lines if found}

    def stop(self):
        self.process.terminate()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*")
    parser.add_argument("--self", action="store_true", dest="itself")
    parser.add_argument("-v", action="store_true")
    args = parser.parse_args()
    if not GUEST.exists():
        sys.exit(f"{GUEST} is not there: cargo test --test it guests")
    envoy = shutil.which("envoy")
    ours = envoy if args.itself else os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo"))
    cases = [name for name in CASES if fnmatch.fnmatch(name, args.only)]
    wrong = listed = 0
    with tempfile.TemporaryDirectory() as folder:
        proxies = []
        for index, binary in enumerate((envoy, ours)):
            place = pathlib.Path(folder) / str(index)
            place.mkdir()
            proxies.append(Proxy(binary, place))
        differences = []
        try:
            for name in cases:
                results = [None, None]

                def run(index):
                    results[index] = proxies[index].play(name)

                threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if None in results:
                    sys.exit(f"{name}: a proxy cannot be reached")
                if args.v:
                    print(name, json.dumps(results[1], indent=1))
                for part in results[0]:
                    if results[0][part] != results[1][part]:
                        differences.append((name, part, results[0][part], results[1][part]))
            stats = [proxy.stats() for proxy in proxies]
            for stat in sorted(stats[0].keys() | stats[1].keys()):
                pair = [stat_of.get(stat) for stat_of in stats]
                if pair[0] != pair[1]:
                    differences.append(("stats", stat, *pair))
        finally:
            for proxy in proxies:
                proxy.stop()
    for name, part, theirs, our in differences:
        reason = next((why for case, what, why in DEVIATIONS if fnmatch.fnmatch(name, case) and fnmatch.fnmatch(part, what)), None)
        if reason:
            listed += 1
            continue
        wrong += 1
        print(f"{name}: {part}\n  envoy   {theirs}\n  plenipo {our}")
    print(f"{len(cases)} cases, {wrong} differences, {listed} more that are wanted")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
