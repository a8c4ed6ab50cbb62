#!/usr/bin/env python3
"""The load that a profile for the compiler is taken under: `bench/pgo.sh` runs it with a binary that counts.

It is the traffic that `bench/run.py` measures, one set of filters after the other, one set of updates, and the compilation of
the example plugins. Nothing is measured here.
"""

import argparse
import shutil
import subprocess
import time

import proxies
import run
import wasm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plenipo")
    parser.add_argument("--seconds", type=int, default=4)
    arguments = parser.parse_args()
    run.need("wrk", "h2load", "taskset")
    bench = run.Bench(argparse.Namespace(seconds=arguments.seconds, pairs=1, plenipo=arguments.plenipo, only=None))
    running = []
    try:
        up = proxies.free_port()
        answer = {"direct_response": {"status": 200, "body": {"inline_string": "x" * 1024}}}
        running.append(bench.start("plenipo", {"static_resources": {"listeners": [
            proxies.listener("up", up, proxies.inline(answer))]}}, run.LOAD_CPU))
        bench.await_port(up)
        ports = {name: proxies.free_port() for name in wasm.filters()}
        running.append(bench.start("plenipo", {"static_resources": {
            "listeners": [proxies.listener(name, ports[name], proxies.inline({"route": {"cluster": "c"}}), chain)
                          for name, chain in wasm.filters().items()],
            "clusters": [proxies.static_cluster("c", up)]}}))
        for name, port in ports.items():
            bench.await_port(port)
            print(f"  {name}: {bench.wrk(port)} requests", flush=True)
        print(f"  h2: {bench.h2load(ports['plain'])} requests", flush=True)
        bench.xds_once("plenipo", 2000)
        for module in sorted((run.ROOT / "plugins/bin").glob("*.wasm")):
            # That a plugin refuses to start is as good: it was compiled.
            subprocess.run([arguments.plenipo, "plugin", "run", str(module), "--request", "GET /"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=60, check=False)
    finally:
        for process in running:
            process.end()
        # The counters are written as a process exits.
        time.sleep(1)
        shutil.rmtree(bench.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
