#!/usr/bin/env python3
"""gRPC callouts of scripted guests, in a real Envoy and in Plenipo, case by case.

    grpc_compare.py [--only GLOB] [--self] [-v]

Compared: the guest's lines (callbacks with their arguments, host calls with their statuses and what they gave), and what the
upstream saw of each stream. A case goes on until both proxies have nothing more to say, and, for a while, until they have said
the same: what comes late on a busy machine is waited for. `WANTED` lists the cases that differ, with reasons; a case there that does not differ is an error too. The exit
status is 1 where anything else differs. `--self` compares Envoy with itself; `PLENIPO` names the binary.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import config
import filtered
from grpc_service import field, service
from grpc_upstream import SLOW, GrpcUpstream
from run import BlackHole, Ports, accepts
from script import TEXT, TOKEN, Out, Out32, Reg, Self, configuration, encode, pairs

ROOT = HERE.parent.parent.parent
GUEST = HERE / "guest" / "guest-0_2_1.wasm"
# What stands before a line is for `compare.py` to compare.
LINE = re.compile(r"^@\w+ wasm log (?:plain )?root-plain plain: ~(\d+)~(.*)$")
# A context's last line.
GONE = re.compile(r"Astream delete \|")
# Seconds: without a word the proxies are at rest; what has not come within so many will not come.
QUIET, LONGEST = 0.15, 6
HOLD = 1
R, R1, R2 = Reg(0), Reg(1), Reg(2)


# ---------------------------------------------------------------------------------------------------------------------
# Services
# ---------------------------------------------------------------------------------------------------------------------


GOOGLE = field(2, field(1, b"127.0.0.1:1") + field(4, b"g"))
TENTH_OF_A_SECOND = bytes([16, 0x80, 0xC2, 0xD7, 0x2F])


def call(method, to=None, message=b"ping", metadata=b"", timeout=0, name="svc", register=0):
    to = service() if to is None else to
    return ("grpc_call", to, name, method, metadata, message, timeout, Out32(TOKEN, register))


def stream(method, to=None, metadata=b"", register=0):
    to = service() if to is None else to
    return ("grpc_stream", to, "svc", method, metadata, Out32(TOKEN, register))


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------

SHOW = [("get_header_map_pairs", 4, Out(TEXT)), ("get_header_map_pairs", 5, Out(TEXT)), ("get_buffer_bytes", 5, 0, 1000, Out(TEXT))]
TOLD = {
    "grpc_initial": (0, SHOW),
    "grpc_receive": (0, SHOW),
    "grpc_trailing": (0, SHOW),
    "grpc_close": (0, [("get_status", Out32(), Out(TEXT)), *SHOW]),
}
EDIT = [
    ("get_header_map_size", 4, Out32()),
    ("get_header_map_value", 4, "x-init", Out()),
    ("get_header_map_value", 4, "no", Out()),
    ("add_header_map_value", 4, "k", "v"),
    ("replace_header_map_value", 5, "k", "v"),
    ("remove_header_map_value", 4, "x-init"),
    ("set_header_map_pairs", 4, pairs(("a", "b"))),
    ("get_header_map_pairs", 4, Out()),
    ("get_header_map_value", 5, "x-trail", Out()),
    ("set_buffer_bytes", 5, 0, 0, "pre"),
    ("get_buffer_bytes", 5, 0, 100, Out()),
    ("get_buffer_status", 5, Out32(), Out32()),
]


def does(*operations, **callbacks):
    """Operations when a request comes; what other callbacks do, else they show what there is."""
    return {
        "request_headers": (HOLD, list(operations)),
        **TOLD,
        **{name.replace("_0", "#0").replace("_1", "#1"): (0, list(steps)) for name, steps in callbacks.items()},
    }


def cases():
    """(name, script, seconds that the client stays at least)"""
    both = """unary empty two split partial none error error_after only only_good only_plain unavailable compressed flags
        compressed_empty no_trailers reset reset_after no_number number no_status binary early early_error html close
        s503 s404 s302 s400 s401 s403 s429 s500 s502 t404 t503"""
    for method in both.split():
        yield f"call/{method}", does(call(method)), 0.15
        yield f"stream/{method}", does(stream(method), ("grpc_send", R, b"ab", 1)), 0.15
    one = ("grpc_send", R, b"one", 0)
    yield "stream/ping-pong", does(stream("echo"), one, grpc_receive_0=[one], grpc_receive=[("grpc_close", R)]), 0.3
    yield "stream/closed-at-once", does(stream("echo"), ("grpc_close", R)), 0.15
    yield "stream/sent-then-closed", does(stream("echo"), one, ("grpc_close", R), ("grpc_send", R, b"x", 0), ("grpc_close", R)), 0.15
    yield "stream/ended-then-sent", does(stream("echo"), ("grpc_send", R, b"x", 1), ("grpc_send", R, b"y", 0)), 0.15
    yield "stream/no-message", does(stream("echo")), 0.15
    yield "stream/no-timeout", does(stream("slow_body", service(timeout=TENTH_OF_A_SECOND)), ("grpc_send", R, b"x", 1)), SLOW + 0.2
    yield "call/service-timeout", does(call("slow_body", service(timeout=TENTH_OF_A_SECOND))), SLOW + 0.2
    yield "call/timeout", does(call("slow", timeout=400)), 0.6
    yield "call/timeout-in-body", does(call("slow_body", timeout=400)), 0.6
    yield "call/timeout-hang", does(call("unary", service("hang"), timeout=100)), 0.3
    asked = {name: pairs((f"x-envoy-upstream-rq-{name}", "400")) for name in ("timeout-ms", "per-try-timeout-ms", "timeout-alt-response")}
    for method in ("slow", "slow_body"):
        yield f"call/asks-timeout/{method}", does(call(method, metadata=asked["timeout-ms"])), 0.6
        yield f"call/asks-try-timeout/{method}", does(call(method, metadata=asked["per-try-timeout-ms"], timeout=60000)), 0.6
        yield f"stream/asks-timeout/{method}", does(stream(method, metadata=asked["timeout-ms"]), ("grpc_send", R, b"x", 1)), 0.6
    for name in ("timeout-ms", "per-try-timeout-ms"):
        # Its time begins with the end of the request.
        open_for_long = [("set_tick_period_milliseconds", 700)]
        yield f"stream/asks-{name}-open", does(stream("echo", metadata=asked[name]), one, *open_for_long, tick_0=[("grpc_send", R, b"two", 0)], grpc_receive_1=[("grpc_close", R)]), 1.8
        yield f"stream/asks-{name}-ended-late", does(stream("slow", metadata=asked[name]), *open_for_long, tick_0=[("grpc_send", R, b"two", 1), ("set_tick_period_milliseconds", 0)]), 1.8
    yield "call/asks-try-hang", does(call("unary", service("hang"), metadata=pairs(("x-envoy-upstream-rq-per-try-timeout-ms", "100")), timeout=400)), 0.6
    yield "call/asks-alternative", does(call("slow", metadata=asked["timeout-alt-response"], timeout=400)), 0.6
    yield "call/asks-retries", does(call("unary", metadata=pairs(("x-envoy-retry-on", "5xx"), ("x-envoy-retry-grpc-on", "internal"), ("x-envoy-max-retries", "3")))), 0.15
    for timeout in (1500, 0x7FFFFFFF, 0xFFFFFFFF):
        yield f"head/timeout-{timeout}", does(call("unary", timeout=timeout)), 0.15
    metadata = pairs(("x-a", "1"), ("x-a", "2"), (":path", "/svc/error"), (":authority", "a.test"), ("host", "h"), ("X-Upper", "u"), ("content-type", "x"))
    yield "head/metadata", does(call("unary", metadata=metadata)), 0.15
    yield "head/binary", does(call("unary", service(metadata=[("s-bin", "\1\2")]), metadata=pairs(("a-bin", "\1\2"), ("b-bin", "AQI="), ("c-bin", "")))), 0.15
    told = service(authority="au.th", skip=True, metadata=[("x-s", "s"), ("x-a", "s"), ("X-Up", "%DOWNSTREAM_REMOTE_ADDRESS%")])
    yield "head/service", does(call("unary", told, metadata=pairs(("x-a", "1")))), 0.15
    yield "head/names", does(call("x/unary", name="/a")), 0.15
    # A head is looked at when there is a connection for it. Nobody has been called at these clusters.
    bad = "a\r\nb"
    yield "head/bad-path", does(call(bad, service("new1"))), 0.15
    yield "head/bad-path-stream", does(stream(bad, service("new2")), ("grpc_send", R, b"x", 1), ("grpc_send", R, b"x", 0), ("grpc_close", R)), 0.15
    yield "head/bad-path-cancelled", does(call(bad, service("new3")), ("grpc_cancel", R), ("grpc_cancel", R)), 0.15
    yield "head/bad-path-dead", does(call(bad, service("dead"))), 0.15
    yield "head/bad-path-hang", does(call(bad, service("hang"), timeout=100)), 0.3
    yield "head/bad-path-empty", does(call(bad, service("empty"))), 0.15
    yield "head/bad-path-unknown", does(call(bad, service("nosuch"))), 0.15
    yield "head/bad-path-connected", does(call("unary"), grpc_receive_0=[call(bad, register=1), ("grpc_cancel", R1)]), 0.15
    yield "head/bad-path-stream-connected", does(call("unary"), grpc_receive_0=[stream(bad, register=1)]), 0.15
    yield "head/bad-authority", does(call("unary", metadata=pairs((":authority", bad)))), 0.15
    yield "head/empty-message", does(call("unary", message=b"")), 0.15
    yield "service/name", does(call("unary", b"grpc")), 0.15
    yield "service/unknown-name", does(call("unary", b"nosuch"), stream("unary", b"nosuch")), 0.15
    yield "service/unknown", does(call("unary", service("nosuch")), stream("unary", service("nosuch"))), 0.15
    yield "service/not-parsed", does(call("unary", b"\xff\xff"), stream("unary", b"\xff\xff")), 0.15
    yield "service/unknown-field", does(call("unary", service() + field(15, b"x"))), 0.15
    yield "service/no-cluster", does(call("unary", service(""))), 0.15
    yield "service/empty-key", does(call("unary", service(metadata=[("", "v")]))), 0.15
    yield "service/bad-format", does(call("unary", service(metadata=[("x", "%NO%")]))), 0.15
    yield "service/google", does(call("unary", GOOGLE)), 0.3
    for longest in (4, 5):
        yield f"service/longest-{longest}", does(call("unary", service(longest=longest))), 0.15
        yield f"service/longest-{longest}-stream", does(stream("unary", service(longest=longest)), ("grpc_send", R, b"x", 1)), 0.15
    # The second of two that come in one piece is too long.
    yield "service/longest-3-of-two", does(stream("two", service(longest=3)), ("grpc_send", R, b"x", 1)), 0.15
    yield "cluster/dead", does(call("unary", service("dead"))), 0.15
    yield "cluster/dead-stream", does(stream("unary", service("dead")), ("grpc_send", R, b"x", 1)), 0.15
    yield "cluster/dead-stream-open", does(stream("unary", service("dead")), one), 0.15
    yield "cluster/dead-not-grpc", does(stream("unary", service("dead"), pairs(("content-type", "x"))), ("grpc_send", R, b"x", 1)), 0.15
    yield "service/longest-4-compressed", does(call("compressed", service(longest=4))), 0.15
    yield "cluster/empty", does(call("unary", service("empty"))), 0.15
    yield "cluster/empty-stream", does(stream("unary", service("empty"))), 0.15
    tokens = [(f, token, *((b"x", 0) if f == "grpc_send" else ())) for token in (0, 3, 4, 997, 998, 999, 1000) for f in ("grpc_send", "grpc_close", "grpc_cancel")]
    yield "token/unknown", does(*tokens), 0.1
    yield "token/send-to-call", does(call("unary"), ("grpc_send", R, b"x", 0)), 0.15
    yield "token/bad-range", does(("grpc_send", 6, 0xFFFFFFF0, 5, 0), ("grpc_call", 0xFFFFFFF0, 5, "s", "m", "", "x", 0, Out32(TOKEN))), 0.1
    for verb in ("grpc_cancel", "grpc_close"):
        again = [(verb, R), (verb, R)]
        tick = ("set_tick_period_milliseconds", 1)
        yield f"{verb}/call", does(call("slow"), ("set_tick_period_milliseconds", 200), tick_0=again), 0.4
        yield f"{verb}/in-receive", does(call("unary"), grpc_receive=again), 0.15
        yield f"{verb}/in-close", does(call("error"), grpc_close=again), 0.15
        yield f"{verb}/after-call", does(call("unary"), grpc_receive_0=[tick], tick_0=again), 0.15
        yield f"{verb}/after-stream", does(stream("echo"), ("grpc_send", R, b"x", 1), grpc_close_0=[tick], tick_0=again), 0.15
        yield f"{verb}/after-closed-stream", does(stream("echo"), ("grpc_close", R), grpc_close_0=[tick], tick_0=again), 0.15
        yield f"{verb}/after-early-end", does(stream("early"), grpc_close_0=[tick], tick_0=again), 0.15
        yield f"{verb}/in-early-end", does(stream("early"), grpc_close=[*again, ("grpc_cancel", R)]), 0.15
    yield "grpc_cancel/at-once", does(stream("echo"), one, ("grpc_cancel", R), ("grpc_cancel", R), ("grpc_send", R, b"x", 0)), 0.15
    yield "grpc_cancel/in-initial", does(stream("echo"), one, grpc_initial=[("grpc_cancel", R)]), 0.15
    yield "grpc_cancel/in-initial-of-all", does(stream("only"), ("grpc_send", R, b"x", 1), grpc_initial=[("grpc_cancel", R)]), 0.15
    yield "grpc_cancel/in-message", does(stream("two"), ("grpc_send", R, b"x", 1), grpc_receive=[("grpc_cancel", R)]), 0.15
    yield "grpc_cancel/between-messages", does(stream("held"), ("grpc_send", R, b"x", 1), grpc_receive=[("grpc_cancel", R)]), 0.15
    yield "stream/apart", does(stream("apart"), ("grpc_send", R, b"x", 1)), 0.2
    yield "grpc_cancel/in-trailing", does(stream("two"), ("grpc_send", R, b"x", 1), grpc_trailing=[("grpc_cancel", R)]), 0.15
    yield "grpc_cancel/in-done", does(stream("echo"), done=[("grpc_cancel", R)]), 0.15
    yield "view/edits", does(stream("unary"), ("grpc_send", R, b"x", 1), grpc_initial=EDIT, grpc_receive=EDIT, grpc_trailing=EDIT, grpc_close=EDIT), 0.15
    yield "view/effective", does(stream("unary"), ("grpc_send", R, b"x", 1), grpc_initial=[("set_effective_context", Self()), *SHOW], grpc_receive=[("set_effective_context", Self()), *SHOW]), 0.15
    for phase in ("log", "done", "delete"):
        yield f"context/call-in-{phase}", does(**{phase: [call("unary")]}), 0.1
        yield f"context/stream-in-{phase}", does(**{phase: [stream("echo"), ("grpc_close", R)]}), 0.1
    # Its answer is told when its context is gone.
    yield "context/ended-before", does(call("slow")), 0.1
    # Through the filters of a cluster: a header mutation, and before it a guest that plays what the metadata say.
    for method in "unary two error only s503 reset_after early".split():
        yield f"filtered/mutated-call/{method}", does(call(method, service("mutated"))), 0.15
        yield f"filtered/mutated-stream/{method}", does(stream(method, service("mutated")), ("grpc_send", R, b"x", 1)), 0.15
    yield "filtered/ping-pong", does(stream("echo", service("guarded")), one, grpc_receive_0=[one], grpc_receive=[("grpc_close", R)]), 0.3
    reply = ("send_local_response", 403, "by_guest", "no", pairs(("x-local", "1")), 7)
    plain = ("send_local_response", 403, "by_guest", "no", pairs(("x-local", "1")), 0xFFFFFFFF)
    for phase in ("request_headers", "response_headers", "response_body", "response_trailers"):
        for what, action in {"nothing": (0, []), "reply": (1, [reply]), "reply-plain": (1, [plain]), "reset": (1, [("close_stream", 1)]), "hold": (1, [])}.items():
            if (what, phase) == ("reset", "response_trailers"):
                # It ends an Envoy.
                continue
            told = pairs((filtered.HEADER, encode({phase + "#0": action}, 9998).hex()))
            yield f"filtered/{what}-call/{phase}", does(call("two", service("guarded"), metadata=told, timeout=400)), 0.5
            if what != "hold":
                yield f"filtered/{what}-stream/{phase}", does(stream("two", service("guarded"), metadata=told), ("grpc_send", R, b"x", 1)), 0.15
    yield "context/calls-in-callbacks", does(call("unary"), grpc_receive_0=[call("none", register=1)], grpc_close=[call("unary", register=2)]), 0.3


WITHIN = "Envoy enters the guest from within a host call"
FILTERED = "a call passes its cluster's filters when the callback that made it has returned, and has not failed by then"
BROKEN = "of a call that a filter breaks off after its head the message tells that, and not what the filter said"
WANTED = {
    "service/no-cluster": "a service without a cluster is a bad argument",
    "service/empty-key": "metadata without a key is a bad argument",
    "service/bad-format": "formats are sent as they are",
    "service/google": "google_grpc is not supported for callouts",
    "cluster/empty-stream": WITHIN,
    "head/bad-path-stream-connected": WITHIN,
    **{f"filtered/{what}-{kind}/request_headers": FILTERED for what in ("reply", "reply-plain", "reset") for kind in ("call", "stream")},
    **{f"filtered/{what}-{kind}/response_{part}": BROKEN for what in ("reply", "reply-plain") for kind in ("call", "stream") for part in ("body", "trailers")},
    **{f"filtered/reset-{kind}/response_body": BROKEN for kind in ("call", "stream")},
}


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def http2(made):
    options = made["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    # Connections last: where a request is the last of its connection Envoy closes that instead of resetting a stream.
    del options["common_http_protocol_options"]
    options["explicit_http_config"] = {"http2_protocol_options": {}}
    return made


class Proxy:
    """One proxy with one plugin, an upstream, and what its guest says."""

    def __init__(self, name, command, work):
        self.name = name
        work.mkdir()
        ports = Ports()
        self.upstream, self.hole = GrpcUpstream(), BlackHole()
        self.port, admin, dead = ports.get("plain"), ports.get("admin"), ports.get("dead")
        # A failure whose token the guest never learns is told to the root.
        text = configuration("A", "x-script", b"", encode(TOLD, 9999))
        listener = config.listener("plain", self.port, str(work / "access.log"), [config.plugin("plain", GUEST, text, "plain")])
        clusters = [("grpc", self.upstream.port), ("dead", dead), ("hang", self.hole.port), ("empty", None), ("echo", dead)]
        clusters += [(f"new{n}", self.upstream.port) for n in (1, 2, 3)]
        clusters += [("mutated", self.upstream.port, "http2_protocol_options", [config.MUTATION])]
        up = config.plugin("up", GUEST, configuration("U", filtered.HEADER), "up")
        clusters += [("guarded", self.upstream.port, "http2_protocol_options", [up, config.MUTATION])]
        bootstrap = {
            "node": {"id": "id", "cluster": "cluster"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {
                "listeners": [listener],
                "clusters": [http2(config.cluster(*cluster)) for cluster in clusters],
            },
        }
        (work / "envoy.json").write_text(json.dumps(bootstrap))
        ports.release()
        self.output = work / "output.txt"
        arguments = ["-c", str(work / "envoy.json"), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        arguments += ["--component-log-level", "wasm:info", "--log-format", "@%l %v"]
        with open(self.output, "w") as output:
            self.process = subprocess.Popen([*command, *arguments], stdout=output, stderr=output)
        for _ in range(600):
            if self.process.poll() is not None or accepts(self.port):
                break
            time.sleep(0.1)
        if self.process.poll() is not None:
            raise SystemExit(f"{command} did not start: {self.output.read_text()[-2000:]}")
        self.read, self.moved, self.lines = 0, 0.0, {}

    def begin(self, number, script):
        self.upstream.case = number
        self.client = socket.create_connection(("127.0.0.1", self.port))
        self.client.sendall(f"GET / HTTP/1.1\r\nhost: h\r\nx-script: {encode(script, number).hex()}\r\n\r\n".encode())

    def listen(self):
        """Takes in what the guest has said since."""
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} ended with {self.process.returncode}: {self.output.read_text()[-2000:]}")
        with open(self.output, encoding="latin1", newline="") as output:
            output.seek(self.read)
            said = output.read()
        whole = said[: said.rfind("\n") + 1]
        self.read += len(whole)
        for match in filter(None, map(LINE.match, whole.splitlines())):
            line = re.sub(r"(x-envoy-upstream-service-time%00)\d+", r"\1N", match[2])
            # Values of different lengths serialize to different lengths: so times do, and only they.
            line = re.sub(r"(%1d%00%00%00)%0[1-4](%00%00%00)", r"\1N\2", line)
            self.lines.setdefault(int(match[1]), []).append(line)
            self.moved = time.monotonic()

    def silence(self):
        return time.monotonic() - max(self.moved, self.upstream.moved)

    def said(self, number):
        return self.lines.get(number, [])

    def seen(self, number):
        """What the upstream saw, a list a stream."""
        return [list(record) for record in self.upstream.seen.get(number, [])]

    def stop(self):
        self.process.kill()
        self.process.wait()


def settle(proxies, number, least, differs, done):
    """Waits `least` seconds, then until `done` of what each has said, silence, and, unless the case differs, sameness."""
    begun = time.monotonic()
    while time.monotonic() - begun < least + LONGEST:
        time.sleep(0.01)
        for proxy in proxies:
            proxy.listen()
        if time.monotonic() - begun < least or any(proxy.silence() < QUIET for proxy in proxies):
            continue
        said = [proxy.said(number) for proxy in proxies]
        same = said[0] == said[1] and proxies[0].seen(number) == proxies[1].seen(number)
        if all(map(done, said)) and (same or differs):
            return


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*")
    parser.add_argument("--self", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    envoy = [shutil.which("envoy") or "envoy"]
    ours = envoy if options.self else [os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo"))]
    chosen = [case for case in cases() if fnmatch.fnmatch(case[0], options.only)]
    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor(2) as pool:
        sides = [("envoy", envoy), ("envoy2" if options.self else "plenipo", ours)]
        proxies = list(pool.map(lambda side: Proxy(*side, pathlib.Path(work) / side[0]), sides))
        wanted = {} if options.self else WANTED
        for number, (name, script, seconds) in enumerate(chosen, 1):
            for proxy in proxies:
                proxy.begin(number, script)
            settle(proxies, number, seconds, name in wanted, lambda said: said)
            for proxy in proxies:
                proxy.client.close()
            # What is told after the end of a context comes with `slow`.
            after = SLOW if name == "context/ended-before" else 0
            settle(proxies, number, after, name in wanted, lambda said: any(map(GONE.match, said)))
        # Only now: nothing that came too late for its case is lost.
        failures, listed = 0, 0
        for number, (name, _, _) in enumerate(chosen, 1):
            same = proxies[0].said(number) == proxies[1].said(number) and proxies[0].seen(number) == proxies[1].seen(number)
            if same == (name not in wanted):
                listed += not same
                continue
            failures += 1
            print(f"== {name}" + (f": does not differ, though listed: {wanted[name]}" if same else ""))
            for proxy in proxies:
                seen = [f"upstream: {text}" for record in proxy.seen(number) for text in record]
                for line in [*proxy.said(number), *seen]:
                    print(f"  {proxy.name:8} {line if options.verbose else line[:400]}")
        for proxy in proxies:
            proxy.stop()
    print(f"{len(chosen)} cases, {failures} differ, {listed} listed differences")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
