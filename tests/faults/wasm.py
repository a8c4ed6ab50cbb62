#!/usr/bin/env python3
"""Faults of Wasm plugins, W1 to W12, against the binary: what is promised, what was measured, and whether that will do.

    wasm.py [--proxy target/release/plenipo] [--only W2,W7] [--long] [--json FILE]

The exit status is 1 where a promise is missed. README.md says what each row promises and which other tests show it.
Times of others' requests depend on who else uses the machine: where only such a time is missed, the row has three tries.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ports import free_port
GUESTS = ROOT / "target" / "tmp" / "guests"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
WASM = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
SETTINGS = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings"
STRING = "type.googleapis.com/google.protobuf.StringValue"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ANSWER = b"x" * 4096

# What the client itself adds, in seconds: below this, twice as long is no finding.
NOISE = 0.010


# ---------------------------------------------------------------------------------------------------------------------
# The world around the proxy
# ---------------------------------------------------------------------------------------------------------------------


async def serve(reader, writer, code, hits):
    """One connection: `/code/<how>/<file>` is a source of code, `/hits` the number of other requests, all else ANSWER."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            if length:
                await reader.readexactly(length)
            status, body, cut = "200 OK", ANSWER, None
            if target.startswith("/code/"):
                _, _, how, name = target.split("/", 3)
                body = (pathlib.Path(code) / name).read_bytes()
                if how == "hang":
                    await asyncio.sleep(60)
                elif how.isdigit():
                    status, body = f"{how} Nope", b""
                elif how == "cut":
                    cut = len(body) // 2
                elif how == "large":
                    body = body + b"\0" * (65 << 20)
                elif how == "slow":
                    await asyncio.sleep(0.4)
            elif target == "/hits":
                body = str(hits[0]).encode()
            else:
                hits[0] += 1
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:cut])
            await writer.drain()
            if cut is not None:
                break
    writer.close()


def upstream(port, code):
    async def run():
        hits = [0]
        server = await asyncio.start_server(lambda r, w: serve(r, w, code, hits), "127.0.0.1", port, backlog=1000)
        async with server:
            await server.serve_forever()

    asyncio.run(run())


class World:
    """A proxy with a listener for each plugin: {name: {guest, config, policy, remote}}; a plugin without a guest is none."""

    def __init__(self, args, plugins, settings=None, workers=1, dynamic=False):
        self.args, self.plugins, self.settings = args, plugins, settings or {}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
        self.workers, self.dynamic = workers, dynamic
        self.ports = {name: free_port() for name in plugins}
        self.admin_port, self.up_port = free_port(), free_port()

    def filter(self, name, plugin):
        code = plugin.get("remote") or {"local": {"filename": str(GUESTS / f"{plugin['guest']}.wasm")}}
        config = {
            "name": name, "root_id": name,
            "vm_config": {"vm_id": plugin.get("vm_id", name), "code": code},
            "configuration": {"@type": STRING, "value": plugin.get("config", "")},
        }
        config.update(plugin.get("fields", {}))
        return {"name": "plugin", "typed_config": {"@type": WASM, "config": config}}

    def listener(self, name, plugin):
        filters = [self.filter(name, plugin)] if plugin.get("guest") or plugin.get("remote") else []
        filters.append({"name": "router", "typed_config": {"@type": ROUTER}})
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.ports[name]}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": HCM, "stat_prefix": name, "http_filters": filters,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]},
            }}]}],
        }

    def write_listeners(self):
        resources = [{"@type": LISTENER, **self.listener(name, plugin)} for name, plugin in self.plugins.items()]
        partial = self.folder / "partial"
        partial.write_text(json.dumps({"version_info": str(time.time_ns()), "resources": resources}))
        partial.rename(self.folder / "listeners.yaml")

    def bootstrap(self):
        static = {"clusters": [{
            "name": "up", "connect_timeout": "1s", "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.up_port}}}}]}]},
        }]}
        config = {
            "node": {"id": "faults", "cluster": "faults"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.admin_port}}},
            "bootstrap_extensions": [{"name": "wasm", "typed_config": {"@type": SETTINGS, **self.settings}}],
            "static_resources": static,
        }
        if self.dynamic:
            self.write_listeners()
            config["dynamic_resources"] = {"lds_config": {"path_config_source": {"path": str(self.folder / "listeners.yaml")}}}
        else:
            static["listeners"] = [self.listener(name, plugin) for name, plugin in self.plugins.items()]
        return config

    async def __aenter__(self):
        self.upstream = multiprocessing.get_context("spawn").Process(target=upstream, args=(self.up_port, str(GUESTS)), daemon=True)
        self.upstream.start()
        await until(lambda: reachable(self.up_port), "the upstream")
        path = self.folder / "bootstrap.yaml"
        path.write_text(json.dumps(self.bootstrap()))
        self.log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(
            [self.args.proxy, "-c", str(path), "--concurrency", str(self.workers), "-l", "warning"],
            stdout=self.log, stderr=self.log, env={**os.environ, "PLENIPO_CACHE_DIR": str(self.folder / "cache")},
        )
        for port in self.ports.values():
            await until(lambda: reachable(port) or self.process.poll() is not None, "the listeners")
        if self.process.poll() is not None:
            raise Miss(f"the proxy ended: {(self.folder / 'log').read_text()[-500:]}")
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.upstream.kill()
        self.upstream.join()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def alive(self):
        if self.process.poll() is not None:
            raise Miss(f"the proxy ended with {self.process.returncode}: {(self.folder / 'log').read_text()[-500:]}")

    def wasm(self, name):
        """What `/wasm` says of a plugin's live version."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/wasm?format=json", timeout=10) as page:
            found = [plugin for plugin in json.load(page)["plugins"] if plugin["name"] == name]
        return next((plugin for plugin in found if plugin["state"] == "live"), found[0])

    def sum(self, name, key):
        return sum(int(vm[key]) for vm in self.wasm(name)["vms"])

    def rss(self):
        """In MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def cpu(self):
        """Seconds."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def client(self, name):
        return await Client.open(self.ports[name])


class Miss(Exception):
    """A promise that was not kept."""


class Slow(Miss):
    """A time that was not kept: perhaps the machine's."""


def promise(kept, text):
    if not kept:
        raise Miss(text)


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


async def until(found, what, seconds=30):
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            raise Miss(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.02)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body


class Client:
    """One connection, opened anew where it was cut."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    @classmethod
    async def open(cls, port):
        client = cls(port)
        await client.connect()
        return client

    async def connect(self):
        self.close()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def close(self):
        if self.writer:
            self.writer.close()

    async def send(self, headers="", method="GET", body=b"", timeout=15):
        """The answer; its status is 0 where the connection was cut before the end, or nothing came in time."""
        if body:
            headers += f"content-length: {len(body)}\r\n"
        try:
            if self.writer.is_closing() or self.reader.at_eof():
                await self.connect()
            self.writer.write(f"{method} /path HTTP/1.1\r\nhost: test\r\n{headers}\r\n".encode() + body)
            answer = await asyncio.wait_for(self.read(), timeout)
            if answer.headers.get("connection") == "close":
                await self.connect()
            return answer
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError):
            with contextlib.suppress(ConnectionError):
                await self.connect()
            return Answer(0, {}, b"")

    async def read(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        if "content-length" in fields:
            body = await self.reader.readexactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            body = b""
        return Answer(int(head[0].split(" ")[1]), fields, body)


class Load:
    """Requests at a rate, on several connections; every answer must be `good`."""

    def __init__(self, port, rate=300, connections=16, good=None):
        self.port, self.rate, self.connections = port, rate, connections
        self.good = good or (lambda answer: answer.status == 200 and answer.body == ANSWER)
        self.times, self.failed, self.reasons, self.running = [], 0, {}, False

    async def one(self, number):
        client = await Client.open(self.port)
        gap = self.connections / self.rate
        due = time.monotonic() + gap * number / self.connections
        while self.running:
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            begin = time.monotonic()
            answer = await client.send()
            self.times.append(time.monotonic() - begin)
            if not self.good(answer):
                self.failed += 1
                self.reasons[answer.status] = self.reasons.get(answer.status, 0) + 1
            # Who is late does not catch up: that would be a storm of its own.
            due = max(due + gap, time.monotonic() - gap)
        client.close()

    async def __aenter__(self):
        self.running = True
        self.tasks = [asyncio.create_task(self.one(number)) for number in range(self.connections)]
        return self

    async def __aexit__(self, *_):
        self.running = False
        await asyncio.gather(*self.tasks)

    def p99(self):
        times = sorted(self.times)
        return times[min(len(times) - 1, len(times) * 99 // 100)] if times else 0.0


async def quiet(port, seconds=3, **kind):
    """p99 of such a load on a proxy that has nothing else to do."""
    async with Load(port, **kind) as load:
        await asyncio.sleep(seconds)
    promise(load.failed == 0, f"{load.failed} requests failed before anything happened: {load.reasons}")
    return load.p99()


def fast(load, before, factor=2.0, most=None):
    promise(load.failed == 0, f"{load.failed} of {len(load.times)} requests of others failed: {load.reasons}")
    limit = max(factor * before, NOISE)
    if most is not None:
        limit = max(limit, most)
    if load.p99() > limit:
        raise Slow(f"p99 of others {ms(load.p99())}, before {ms(before)}, limit {ms(limit)}")


def ms(seconds):
    return f"{seconds * 1000:.1f} ms"


CALM = {"guest": "add-header"}
# A breaker that does not open.
ENDLESS = {"tokens": 1000, "token_interval": "0.001s"}


async def comes_back(client, header="x-guest"):
    """How long it takes until the plugin serves again."""
    begin = time.monotonic()
    while True:
        answer = await client.send()
        if answer.status == 200 and header in answer.headers:
            return time.monotonic() - begin
        promise(answer.status in (200, 503), f"status {answer.status} while a VM is replaced")
        promise(time.monotonic() - begin < 20, "no fresh VM within 20 s")
        await asyncio.sleep(0.005)


# ---------------------------------------------------------------------------------------------------------------------
# The rows
# ---------------------------------------------------------------------------------------------------------------------


async def w1(args):
    """a trap hurts one stream"""
    policies = {"closed": "FAIL_CLOSED", "open": "FAIL_OPEN", "reload": "FAIL_RELOAD"}
    places = {"h": 503, "b": 503, "H": 503, "B": 0, "o": 200, "d": 200, "e": 200}
    plugins = {f"{policy}-{ord(place)}": {"guest": "hostile", "fields": {"failure_policy": value}}
               for policy, value in policies.items() for place in places}
    plugins |= {"calm": CALM, "callout": {"guest": "callout-trap"}}
    slowest, back = 0.0, 0.0
    async with World(args, plugins) as world:
        async with Load(world.ports["calm"], rate=100) as calm:
            for policy in policies:
                for place, expected in places.items():
                    name = f"{policy}-{ord(place)}"
                    client = await world.client(name)
                    promise((await client.send()).status == 200, f"{name} does not serve")
                    begin = time.monotonic()
                    answer = await client.send(f"x-fault: t{place}\r\n", "POST", b"body")
                    slowest = max(slowest, time.monotonic() - begin)
                    promise(answer.status == expected, f"{policy}, trap in {place}: {answer.status}, not {expected}")
                    again = await comes_back(client)
                    back = max(back, again)
                    limit = 2.5 if policy == "reload" else 1.0
                    if again > limit:
                        raise Slow(f"{name} is back after {again:.2f} s, limit {limit} s")
                    promise(world.sum(name, "traps") == 1, f"{name}: the trap is not told")
            client = await world.client("callout")
            begin = time.monotonic()
            answer = await client.send()
            callout = time.monotonic() - begin
            promise(answer.status == 503, f"trap in a callout's answer: {answer.status}")
            if callout > 0.05:
                raise Slow(f"trap in a callout's answer: {ms(callout)}, limit 50 ms")
        promise(calm.failed == 0, f"{calm.failed} requests of another plugin on that worker failed: {calm.reasons}")
        world.alive()
    return f"21 traps as golden, slowest {ms(slowest)}, back within {back:.2f} s; callout {ms(callout)}; 0 of {len(calm.times)} others failed"


async def w2(args):
    """a loop hurts one stream"""
    seconds = 120 if args.long else 20
    async with World(args, {"loop": {"guest": "hostile"}, "calm": CALM}, workers=2) as world:
        before = await quiet(world.ports["calm"], rate=500, connections=32)
        loops = []
        async with Load(world.ports["calm"], rate=500, connections=32) as calm:
            client, end = await world.client("loop"), time.monotonic() + seconds
            while time.monotonic() < end:
                begin = time.monotonic()
                answer = await client.send("x-fault: lh\r\n")
                if (took := time.monotonic() - begin) > 0.02:
                    loops.append(took)
                promise(answer.status == 503, f"a looping request ends with {answer.status}")
                await asyncio.sleep(0.2)
        fast(calm, before, most=0.025)
        longest = max(loops)
        if longest > 0.12:
            raise Slow(f"a loop lasted {ms(longest)}, limit 120 ms")
        hard, breaker = world.sum("loop", "hard_deadlines"), world.wasm("loop")["live"]["breaker"]
        promise(hard >= len(loops) > 0, f"{len(loops)} loops, {hard} told")
        world.alive()
    return f"{hard} loops, longest {ms(longest)}, breaker {breaker}; others p99 {ms(calm.p99())} (before {ms(before)}), 0 of {len(calm.times)} failed"


async def w3(args):
    """memory cap"""
    cap, bombs = 64, 1000 if args.long else 60
    settings = {"defaults": {"memory_limit_bytes": cap << 20, "deadlines": {"callback_hard": "5s"}, "breaker": ENDLESS}}
    async with World(args, {"bomb": {"guest": "hostile"}, "calm": CALM}, settings) as world:
        client, base, peak = await world.client("bomb"), 0.0, 0.0
        for number in range(bombs):
            if number == 3:
                # What the first ones warmed up stays.
                base = world.rss()
            answer = await client.send("x-fault: Mh\r\n")
            promise(answer.status == 200, f"growth does not fail softly: {answer.status}")
            held = world.rss()
            peak = max(peak, held)
            if number == 0:
                memory = world.sum("bomb", "memory") >> 20
                promise(0 < memory <= cap, f"{memory} MiB of {cap}")
            promise((await client.send("x-fault: th\r\n")).status == 503, "the trap")
            await comes_back(client)
        await asyncio.sleep(1)
        after = world.rss()
        promise(peak <= base + cap + 16, f"RSS {peak:.0f} MiB at most, {base:.0f} before, cap {cap}")
        promise(after <= base * 1.05 + 2, f"RSS {after:.0f} MiB afterwards, {base:.0f} before")
        refused = next(q for q in world.wasm("bomb")["live"]["quotas"] if q["name"] == "memory_limit_bytes")["refused"]
        promise(int(refused) >= bombs, f"{refused} refusals told")
        promise((await (await world.client("calm")).send()).status == 200, "another plugin")
        world.alive()
    return f"{bombs} bombs: VM {memory} of {cap} MiB, RSS {base:.0f} -> at most {peak:.0f} -> {after:.0f} MiB"


async def w4(args):
    """no pointer breaks the host"""
    rounds = 500 if args.long else 20
    async with World(args, {"pointers": {"guest": "pointers"}, "calm": CALM}) as world:
        client = await world.client("pointers")
        answers = {(answer.status, answer.body) for answer in [await client.send() for _ in range(rounds)]}
        promise(len(answers) == 1, f"answers differ: {answers}")
        status, body = answers.pop()
        returned, ok = (int(part) for part in body.split())
        promise((status, returned) == (200, 39 * 6), f"{status}, {returned} of {39 * 6} calls returned")
        promise(world.sum("pointers", "traps") == 0, "it trapped")
        promise((await (await world.client("calm")).send()).status == 200, "another plugin")
        world.alive()
    return f"{rounds} x {returned} calls out of bounds returned, {ok} of a round with Ok; 0 traps"


async def w5(args):
    """plugins cannot break the wire"""
    # name, configuration of `edit`, and the status that the client must see.
    cases = [
        ("crlf", "ax-a=b\r\nx-injected: 1", 503), ("lf", "ax-a=b\nx-injected: 1", 503), ("nul", "ax-a=b\0c", 503),
        ("space-name", "ax a=b", 503), ("empty-name", "a=b", 503), ("colon-name", "ax:a=b", 503),
        ("crlf-name", "ax-a\r\nx-injected=b", 503), ("method", "p:method=GE T", 503), ("path-space", "p:path=/a b", None),
        ("path-crlf", "p:path=/a\r\nx-injected: 1", 503), ("no-path", "r:path", 503), ("no-method", "r:method", 503),
        ("status-0", "p:status=0", None), ("status-text", "p:status=abc", None), ("status-99", "p:status=99", None),
        ("status-1000", "p:status=1000", None), ("te", "atransfer-encoding=chunked", None), ("te-x", "atransfer-encoding=x", None),
        ("cl-2", "acontent-length=2", None), ("cl-text", "acontent-length=abc", None), ("upgrade", "aupgrade=x", None),
        ("connection", "aconnection=x-guest", None), ("big", "ax-a=" + "y" * 4000, None),
    ]
    plugins = {name: {"guest": "edit", "config": config} for name, config, _ in cases} | {"calm": CALM}
    async with World(args, plugins) as world:
        for name, _, expected in cases:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.ports[name])
            writer.write(b"GET /path HTTP/1.1\r\nhost: test\r\n\r\n")
            data = b""
            with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
                while chunk := await asyncio.wait_for(reader.read(65536), 0.5):
                    data += chunk
            writer.close()
            head, _, body = data.partition(b"\r\n\r\n")
            promise(b"x-injected: 1" not in head.lower().replace(b"\r", b""), f"{name}: a header was injected")
            lines = head.split(b"\r\n")
            if head:
                promise(len(lines[0].split(b" ", 2)[1]) == 3 and 200 <= int(lines[0].split(b" ")[1]) < 600, f"{name}: {lines[0]!r}")
                promise(all(line.partition(b":")[0].strip() for line in lines[1:]), f"{name}: a nameless header")
                promise(not any(b"\n" in line or b"\0" in line or b"\r" in line for line in lines), f"{name}: a control byte")
                lengths = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
                chunked = any(line.lower().startswith(b"transfer-encoding:") for line in lines)
                promise(not (lengths and chunked) and len(set(lengths)) <= 1, f"{name}: two framings")
                if lengths:
                    promise(len(body) <= lengths[0], f"{name}: {len(body)} bytes after a length of {lengths[0]}")
            if expected:
                promise(lines[0].split(b" ")[1] == str(expected).encode(), f"{name}: {lines[0]!r}, not {expected}")
        promise((await (await world.client("calm")).send()).status == 200, "another plugin")
        world.alive()
    return f"{len(cases)} faults of heads: 0 malformed bytes, 0 injected headers"


async def w6(args):
    """re-entrancy"""
    places = {"h": 418, "b": 418, "H": 418, "B": None, "o": 200, "d": 200, "e": 200}
    plugins = {f"reply-{ord(place)}": {"guest": "fault", "config": f"r{place}"} for place in places}
    plugins |= {f"close-{ord(place)}": {"guest": "fault", "config": f"c{place}"} for place in places} | {"calm": CALM}
    async with World(args, plugins) as world:
        for place, expected in places.items():
            client = await world.client(f"reply-{ord(place)}")
            hits = await Client.open(world.up_port)

            async def asked():
                hits.writer.write(b"GET /hits HTTP/1.1\r\n\r\n")
                return int((await hits.read()).body)

            before = await asked()
            answer = await client.send(method="POST", body=b"body")
            requests = await asked() - before
            promise(requests <= 1, f"reply in {place}: {requests} requests upstream")
            if expected:
                promise(answer.status == expected, f"reply in {place}: {answer.status}, not {expected}")
            # Nothing is left on the connection that would be taken for another answer.
            if not client.writer.is_closing():
                with contextlib.suppress(asyncio.TimeoutError):
                    rest = await asyncio.wait_for(client.reader.read(1), 0.1)
                    promise(rest == b"", f"reply in {place}: a second answer")
            closing = await world.client(f"close-{ord(place)}")
            answer = await closing.send(method="POST", body=b"body", timeout=5)
            promise(answer.status in (0, 200), f"close in {place}: {answer.status}")
        promise((await (await world.client("calm")).send()).status == 200, "another plugin")
        world.alive()
    return "reply and close in 7 callbacks: one answer each, at most 1 upstream request, no crash"


async def w7(args):
    """quotas"""
    settings = {"defaults": {"deadlines": {"callback_hard": "1s"}, "quotas": {
        "metrics": 1000, "shared_data_bytes": 1 << 20, "queues": 100, "queue_bytes": 1 << 20, "callouts": 100, "log_lines_per_second": 1000}}}
    floods = {"m": "metrics", "d": "shared_data_bytes", "q": "queue_bytes", "Q": "queues", "c": "callouts", "l": "log_lines_per_second"}
    async with World(args, {"flood": {"guest": "flood"}, "calm": CALM}, settings, workers=2) as world:
        before = await quiet(world.ports["calm"])
        base, given = world.rss(), {}
        async with Load(world.ports["calm"]) as calm:
            client = await world.client("flood")
            promise((await client.send("x-flood: t\r\n")).status == 200, "the timer")
            for _ in range(20 if args.long else 3):
                for what, name in floods.items():
                    answer = await client.send(f"x-flood: {what}\r\n")
                    promise(answer.status == 200, f"{name}: {answer.status}")
                    status, count = (int(part) for part in answer.body.split())
                    promise(what == "l" or status == 10, f"{name}: status {status} after {count}")
                    given[name] = max(given.get(name, 0), count)
                    await asyncio.sleep(0.3)
        refused = {quota["name"]: int(quota["refused"]) for quota in world.wasm("flood")["live"]["quotas"]}
        for name in floods.values():
            promise(refused[name] > 0, f"{name}: no refusal told")
        promise(given["metrics"] <= 1000 and given["callouts"] <= 100, f"more than the quota: {given}")
        # A VM a worker may have each; the memory of what was written does not grow further.
        after = world.rss()
        promise(after <= base + 64, f"RSS {base:.0f} -> {after:.0f} MiB")
        fast(calm, before)
        world.alive()
    return f"given {given}; RSS {base:.0f} -> {after:.0f} MiB; others p99 {ms(calm.p99())} (before {ms(before)}), 0 of {len(calm.times)} failed"


async def w8(args):
    """bad modules never load"""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    good = (GUESTS / "add-header.wasm").read_bytes()
    bad = {name: (GUESTS / f"{name}.wasm").read_bytes() for name in [
        "bad-signature", "future-abi", "global-import", "huge-memory", "no-abi", "no-malloc", "refuse-configure",
        "start-hostcall", "wrong-import"]}
    bad |= {"empty": b"", "truncated": good[:len(good) // 2], "text": b"(module)", "component": b"\0asm\x0d\0\x01\0" + good[8:],
            "trailing": good + b"junk", "flipped": good[:20] + bytes([good[20] ^ 0xFF]) + good[21:],
            "too-large": good + b"\0" * (65 << 20), "start-loops": None}
    slowest = 0.0
    try:
        for name, code in bad.items():
            plugin = {"guest": "x"}
            if name == "start-loops":
                plugin, path = {"guest": "fault", "config": "lf"}, GUESTS / "fault.wasm"
            else:
                path = folder / f"{name}.wasm"
                path.write_bytes(code)
            world = World(args, {"bad": plugin}, {"defaults": {"deadlines": {"start": "1s"}}})
            config = json.dumps(world.bootstrap()).replace(str(GUESTS / f"{plugin['guest']}.wasm"), str(path))
            shutil.rmtree(world.folder)
            (folder / "bootstrap.yaml").write_text(config)
            begin = time.monotonic()
            done = await asyncio.create_subprocess_exec(
                args.proxy, "-c", str(folder / "bootstrap.yaml"), "--mode", "validate", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, "PLENIPO_CACHE_DIR": str(folder / "cache")})
            try:
                out, _ = await asyncio.wait_for(done.communicate(), 30)
            except asyncio.TimeoutError:
                done.kill()
                raise Miss(f"{name}: no verdict within 30 s") from None
            slowest = max(slowest, time.monotonic() - begin)
            promise(done.returncode == 1, f"{name}: exit {done.returncode}: {out.decode()[-300:]}")
            if time.monotonic() - begin > 10:
                raise Slow(f"{name}: {time.monotonic() - begin:.1f} s")
    finally:
        shutil.rmtree(folder)
    return f"{len(bad)} of {len(bad)} refused, slowest {slowest:.2f} s (a loop in on_configure against a deadline of 1 s among them)"


async def w9(args):
    """bad sources never hurt"""
    import hashlib
    sha = hashlib.sha256((GUESTS / "add-header.wasm").read_bytes()).hexdigest()
    other = hashlib.sha256((GUESTS / "order.wasm").read_bytes()).hexdigest()
    large = hashlib.sha256(b"large").hexdigest()

    def remote(how, sum_of, cluster="up", name="add-header.wasm"):
        return {"remote": {"http_uri": {"uri": f"http://up/code/{how}/{name}", "cluster": cluster, "timeout": "1s"}, "sha256": sum_of,
                           "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}}}}

    wrong = "0" * 64
    sources = {
        "sha mismatch": remote("ok", wrong), "404": remote("404", other, name="order.wasm"), "500": remote("500", other, name="order.wasm"),
        "302": remote("302", other, name="order.wasm"), "hang": remote("hang", other, name="order.wasm"),
        "truncated": remote("cut", other, name="order.wasm"), "too large": remote("large", large),
        "unknown cluster": remote("ok", other, cluster="nowhere", name="order.wasm"),
        "not a module": {"local": {"inline_string": "text"}},
        "no sha": remote("ok", ""),
    }
    # Every answer comes through the plugin: that is its good version.
    good = lambda answer: answer.status == 200 and answer.headers.get("x-guest") == "1"
    async with World(args, {"plugin": {"remote": remote("slow", sha)}}, dynamic=True) as world:
        client = await world.client("plugin")
        await comes_back(client)
        base = world.rss()
        async with Load(world.ports["plugin"], rate=200, good=good) as load:
            for name, source in sources.items():
                world.plugins["plugin"] = {"remote": source, "fields": {"failure_policy": "FAIL_OPEN"}}
                world.write_listeners()
                await asyncio.sleep(4 if args.long else 1.5)
                world.alive()
                promise(load.failed == 0, f"{name}: {load.failed} requests failed or missed the plugin: {load.reasons}")
            world.plugins["plugin"] = {"remote": remote("slow", sha), "config": "new"}
            world.write_listeners()
            await asyncio.sleep(2.5)
        promise(load.failed == 0, f"{load.failed} requests failed or missed the plugin: {load.reasons}")
        await asyncio.sleep(1)
        promise(world.rss() <= base + 64 + 10, f"RSS {base:.0f} -> {world.rss():.0f} MiB")
    return f"{len(sources)} bad sources: 0 of {len(load.times)} requests failed or were without plugin"


async def w10(args):
    """reload under load"""
    swaps, gap = (1000, 0.2) if args.long else (60, 0.2)
    good = lambda answer: answer.status == 200 and answer.headers.get("x-guest") == "1"
    async with World(args, {"plugin": {"guest": "add-header"}}, workers=2, dynamic=True) as world:
        await comes_back(await world.client("plugin"))
        before = await quiet(world.ports["plugin"], good=good)
        base = None
        async with Load(world.ports["plugin"], good=good) as load:
            for number in range(swaps):
                world.plugins["plugin"] = {"guest": ("hostile", "add-header")[number % 2], "config": str(number // 4)}
                world.write_listeners()
                await asyncio.sleep(gap)
                if number == swaps // 4:
                    base = world.rss()
        fast(load, before, most=0.025)
        await asyncio.sleep(2)
        after = world.rss()
        with urllib.request.urlopen(f"http://127.0.0.1:{world.admin_port}/stats?filter=wasm_vm_count", timeout=10) as page:
            vms = int(page.read().split()[-1])
        promise(vms <= 3, f"{vms} VMs are left, of 2 workers")
        promise(after <= base * 1.05 + 4, f"RSS {base:.0f} -> {after:.0f} MiB")
        world.alive()
    return f"{swaps} swaps: 0 of {len(load.times)} failed or without plugin, p99 {ms(load.p99())} (before {ms(before)}), {vms} VMs, RSS {base:.0f} -> {after:.0f} MiB"


async def w11(args):
    """crash loop bounded"""
    seconds = 300 if args.long else 25
    async with World(args, {"loop": {"guest": "fault", "config": "th"}, "calm": CALM}, workers=2) as world:
        before = await quiet(world.ports["calm"], rate=200)
        cpu = world.cpu()
        async with Load(world.ports["calm"], rate=200), Load(world.ports["calm"], rate=300):
            await asyncio.sleep(5)
        alone = (world.cpu() - cpu) / 5
        created, cpu = world.sum("loop", "created"), world.cpu()
        crashing = Load(world.ports["loop"], rate=300, good=lambda answer: answer.status == 503)
        async with Load(world.ports["calm"], rate=200) as calm, crashing:
            await asyncio.sleep(seconds)
        beside = (world.cpu() - cpu) / seconds
        made = world.sum("loop", "created") - created
        promise(crashing.failed == 0, f"answers that are not 503: {crashing.reasons}")
        # A token for each worker; then waits of at least half of 1, 2, 4 … 60 s.
        bound, wait, left = 2, 0.5, float(seconds)
        while left >= wait:
            bound, left, wait = bound + 1, left - wait, min(wait * 2, 30)
        promise(made <= bound, f"{made} VMs in {seconds} s, at most {bound} are one a wait")
        fast(calm, before)
        # As many requests as before, of which the crashing ones end early: a crash loop must not cost more.
        if beside > alone + 0.1:
            raise Slow(f"CPU {beside:.2f} cores, {alone:.2f} without the crash loop")
        breaker = world.wasm("loop")["live"]["breaker"]
        world.alive()
    return f"{made} VMs in {seconds} s (bound {bound}), breaker {breaker}; CPU {beside:.2f} cores, with as many good requests {alone:.2f}; 0 of {len(calm.times)} others failed"


async def w12(args):
    """VM isolation"""
    rounds = 10000 if args.long else 100
    settings = {"defaults": {"deadlines": {"callback_hard": "1s"}, "breaker": ENDLESS}}
    plugins = {"writer": {"guest": "secret", "config": "w", "vm_id": "a"}, "reader": {"guest": "secret", "config": "r", "vm_id": "b"}}
    scans = 0
    async with World(args, plugins, settings) as world:
        writer, reader = await world.client("writer"), await world.client("reader")
        end = time.monotonic() + (3600 if args.long else 40)
        while scans < rounds and time.monotonic() < end:
            promise((await writer.send()).status == 503, "the writer does not trap")
            traps = world.sum("reader", "traps")
            answer = await reader.send()
            promise(answer.status != 418, "the secret was seen")
            promise(answer.status == 503, f"the reader: {answer.status}")
            scans += world.sum("reader", "traps") - traps
            await asyncio.sleep(0.01)
        promise(scans >= min(rounds, 50), f"only {scans} scans in time")
        world.alive()
    return f"{scans} scans of 16 MiB after {scans} or more secrets: none seen, and no shared data of another vm_id"


ROWS = {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W6": w6, "W7": w7, "W8": w8, "W9": w9, "W10": w10, "W11": w11, "W12": w12}


async def run(row, args):
    for attempt in range(3):
        try:
            return True, await ROWS[row](args)
        except Slow as slow:
            found = str(slow)
        except Miss as miss:
            return False, str(miss)
    return False, f"three times: {found}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", default=str(ROOT / "target" / "release" / "plenipo"))
    parser.add_argument("--only", help="rows, such as W2,W7")
    parser.add_argument("--long", action="store_true", help="the figures of the promises, not their short form")
    parser.add_argument("--json", help="write what was measured there")
    args = parser.parse_args()
    args.proxy = str(pathlib.Path(args.proxy).resolve())
    subprocess.run(["cargo", "test", "--quiet", "--locked", "--test", "it", "guests::"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wanted = args.only.split(",") if args.only else list(ROWS)
    results = {}
    for row in wanted:
        begin = time.monotonic()
        kept, found = asyncio.run(run(row, args))
        seconds = time.monotonic() - begin
        results[row] = {"promise": ROWS[row].__doc__, "kept": kept, "measured": found, "seconds": round(seconds, 1)}
        print(f"{row:4} {'kept  ' if kept else 'MISSED'} {seconds:5.1f} s  {ROWS[row].__doc__}: {found}", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    missed = [row for row, result in results.items() if not result["kept"]]
    print(f"{len(results) - len(missed)} of {len(results)} kept" + (f"; missed: {', '.join(missed)}" if missed else ""))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
