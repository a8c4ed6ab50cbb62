"""What Wasm filters cost: CPU of the first and of each further one, memory of a VM, time to the first answer.

The plugins are those of `guests/` on the bare ABI, and for the time to the first answer one of the Rust SDK and, where
`tests/sdk/build.sh` has built it, one of the Go SDK (2.7 MB). What a filter adds is measured with and without it in turn.
"""

import collections
import contextlib
import os
import pathlib
import shutil
import statistics
import time
import urllib.request

import proxies

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUESTS = ROOT / "bench/guests"
SMALL = ROOT / "plugins/bin/hello.wasm"
LARGE = ROOT / "tests/sdk/build/go.wasm"

# What it is, and the ratio that is demanded.
TARGETS = {
    "wasm_hello": ("CPU that a first filter of the Rust SDK adds (hello)", 0.15),
    "wasm_add": ("CPU that the first filter adds: add headers", 0.15),
    "wasm_read": ("CPU that the first filter adds: read all headers", 0.25),
    "wasm_body": ("CPU that the first filter adds: rewrite a 1 KB body", 0.20),
    "wasm_next": ("CPU that each further filter adds: add headers", 0.35),
    "wasm_five": ("CPU of a whole request with five filters", 0.33),
    "wasm_memory": ("memory of a further VM", 0.10),
    "cold_small": ("time to the first answer that a small module adds", 0.60),
    "cold_large": ("time to the first answer that a large module adds", 0.50),
    "cold_cached": ("the same with the cache, small module", 0.05),
    "cold_cached_large": ("the same with the cache, large module", 0.05),
}


def plugin(name, path, root_id="", configuration=None):
    config = {"name": name, "root_id": root_id, "vm_config": {
        "vm_id": name, "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": str(path)}}}}
    if configuration is not None:
        config["configuration"] = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": configuration}
    return {"name": name, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "config": config}}


def filters():
    """The sets of filters that requests are measured with."""
    return {
        "plain": [],
        "hello": [plugin("hello", SMALL, "hello")],
        "add": [plugin("add", GUESTS / "add.wasm")],
        "read": [plugin("read", GUESTS / "read.wasm")],
        "body": [plugin("body", GUESTS / "body.wasm")],
        "five": [plugin(f"add-{number}", GUESTS / "add.wasm") for number in range(5)],
    }


def traffic(bench, upstream_port):
    """CPU of requests, in each round of every proxy with every set of filters."""
    sets = filters()
    wanted = {"plain", *(name.removeprefix("wasm_") for name in TARGETS if name.startswith("wasm_") and bench.wants(name))}
    if "next" in wanted:
        wanted |= {"add", "five"}
    if wanted <= {"plain", "memory"}:
        return
    sets = {name: chain for name, chain in sets.items() if name in wanted}
    running, ports = {}, {}
    try:
        for which in ("envoy", "plenipo"):
            listeners = []
            for name, chain in sets.items():
                ports[which, name] = proxies.free_port()
                listeners.append(proxies.listener(name, ports[which, name], proxies.inline({"route": {"cluster": "c"}}), chain))
            running[which] = bench.start(which, {"static_resources": {
                "listeners": listeners, "clusters": [proxies.static_cluster("c", upstream_port)]}})
            for name in sets:
                bench.await_port(ports[which, name])
                bench.wrk(ports[which, name])
        # What a filter adds is a small difference of large numbers, and a machine has its moods for seconds: so a round is
        # made of slices of a second, in which all sets have their turn.
        rounds = []
        for _ in range(bench.pairs):
            spent, served = collections.Counter(), collections.Counter()
            for _ in range(bench.seconds):
                for name in sets:
                    for which in ("envoy", "plenipo"):
                        before = running[which].cpu()
                        served[which, name] += bench.wrk(ports[which, name], 1)
                        spent[which, name] += running[which].cpu() - before
            rounds.append({key: spent[key] / served[key] * 1e6 for key in spent})
    finally:
        for process in running.values():
            process.end()

    def record(figure, value):
        if bench.wants(figure):
            bench.record(figure, [(value(cost, "envoy"), value(cost, "plenipo")) for cost in rounds], "µs")

    for name in ("hello", "add", "read", "body"):
        if name in sets:
            record(f"wasm_{name}", lambda cost, which, name=name: cost[which, name] - cost[which, "plain"])
    if "five" in sets:
        record("wasm_five", lambda cost, which: cost[which, "five"])
    if {"add", "five"} <= set(sets):
        record("wasm_next", lambda cost, which: (cost[which, "five"] - cost[which, "add"]) / 4)


def memory(bench, more=20):
    """Resident memory of `more` VMs beside a first one, of the Rust SDK's plugin."""
    if not bench.wants("wasm_memory"):
        return
    pairs = []
    for _ in range(min(bench.pairs, 9)):
        pair = []
        for which in ("envoy", "plenipo"):
            sizes = []
            for count in (1, 1 + more):
                port = proxies.free_port()
                filters = [plugin(f"vm-{number}", SMALL, "hello") for number in range(count)]
                answer = {"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
                process = bench.start(which, {"static_resources": {"listeners": [
                    proxies.listener("web", port, proxies.inline(answer), filters)]}})
                bench.await_port(port)
                first_answer(port)
                time.sleep(3)
                sizes.append(process.rss())
                process.end()
            pair.append(max(sizes[1] - sizes[0], 1) / more)
        pairs.append(tuple(pair))
    bench.record("wasm_memory", pairs, "KiB")


def first_answer(port, limit=120):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.002)
    raise SystemExit(f"no answer on {port} within {limit} s")


def cold(bench):
    """Wall time from the start of the process to the first 200, less that of the same proxy without the filter."""
    answer = {"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}

    def once(which, filters):
        port = proxies.free_port()
        config = {"static_resources": {"listeners": [proxies.listener("web", port, proxies.inline(answer), filters)]}}
        begin = time.monotonic()
        process = bench.start(which, config)
        first_answer(port)
        took = time.monotonic() - begin
        process.end()
        return took

    modules = [("cold_small", "cold_cached", plugin("small", SMALL, "hello"), bench.pairs)]
    if LARGE.exists():
        modules.append(("cold_large", "cold_cached_large", plugin("large", LARGE, "sdk", "hello"), min(bench.pairs, 5)))
    elif bench.wants("cold_large", "cold_cached_large"):
        print("  cold_large: left out, tests/sdk/build.sh has not built the Go plugin", flush=True)
    for figure, cached, filters, rounds in modules:
        if not bench.wants(figure, cached):
            continue
        fresh_pairs, cached_pairs = [], []
        for _ in range(rounds):
            envoy = once("envoy", [filters]) - once("envoy", [])
            cache = pathlib.Path(os.environ["PLENIPO_CACHE_DIR"])
            shutil.rmtree(cache, ignore_errors=True)
            bare = statistics.median(once("plenipo", []) for _ in range(3))
            fresh = once("plenipo", [filters]) - bare
            again = once("plenipo", [filters]) - bare
            fresh_pairs.append((envoy * 1e3, fresh * 1e3))
            cached_pairs.append((envoy * 1e3, max(again, 0) * 1e3))
        bench.record(figure, fresh_pairs, "ms")
        bench.record(cached, cached_pairs, "ms")
