#!/usr/bin/env python3
"""The differential suite of the Proxy-Wasm host: scripted guests in a real Envoy and in Plenipo, side by side.

    compare.py [--only GLOB] [--count N --seed N [--index I]] [--self] [-v]

Without arguments: the fixed list (`cases.py`), then 300 generated scripts (`generate.py`) with a seed that is printed.
Compared for each case: the answer, what the upstream saw of the request and of callouts, the guest's log lines (every
callback with its arguments, every host call with its status and what it gave) in order, the access log, and at the end
the statistics that plugins made. `deviations.txt` lists what may differ: case glob, field glob, reason. The exit status
is 1 where anything else differs. `--self` compares Envoy with itself.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import cases as fixed_list
import config
import generate
from run import BlackHole, Client, Deviations, Ports, accepts, address_of, normalise_header, normalise_text
from script import show
from servers import Recorder

ROOT = HERE.parent.parent.parent
GUEST = HERE / "guest" / "guest-0_2_1.wasm"
OLD_GUEST = HERE / "guest" / "guest-0_1_0.wasm"
LINE = re.compile(r"^@(\w+) wasm log ?(.*?): ~(\d+)~(.*)$")
SAID = re.compile(r"^@(\w+) wasm log ?(.*?): (.*)$")
# What a stream still has to do when its client is answered: callouts with deadlines, ticks.
SETTLE = 1.0


class Log(threading.Thread):
    """Follows a proxy's output: the guest's lines by case."""

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file = file
        self.lines = {}
        self.counts = {}
        self.ended = False
        self.done = threading.Event()

    def run(self):
        with open(self.file, encoding="latin1") as file:
            rest = ""
            while True:
                text = file.read()
                if not text:
                    if self.ended:
                        break
                    time.sleep(0.002)
                    continue
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    match = LINE.match(line)
                    if match:
                        level, prefix, case, said = match.groups()
                        self.lines.setdefault(int(case), []).append(f"{level} [{prefix}] {said}")
                        self.counts[case] = self.counts.get(case, 0) + 1
        self.done.set()

    def count(self, case):
        return self.counts.get(case, 0)

    def wait(self, case, before):
        """Until a line came; not for long, as there may be no callback. The first one does come."""
        until = time.monotonic() + (0.25 if before else 1.5)
        while self.count(case) <= before and time.monotonic() < until:
            time.sleep(0.003)
        time.sleep(0.004)


class Proxy:
    """One proxy process with all listeners of the cases."""

    def __init__(self, name, command, numbered, work):
        self.name = name
        self.work = work / name
        self.work.mkdir()
        self.ports = Ports()
        self.blackhole = BlackHole()
        self.upstream = Recorder()
        self.values = {"upstream": self.upstream.port, "blackhole": self.blackhole.port}
        self.access = self.work / "access.log"

        def port(name):
            if name not in self.values:
                self.values[name] = self.ports.get(name)
            return self.values[name]

        text = config.bootstrap(numbered, GUEST, OLD_GUEST, port, str(self.access))
        file = self.work / "envoy.json"
        file.write_text(text)
        self.ports.release()
        output = self.work / "output.txt"
        self.output = open(output, "w")
        arguments = [
            *command, "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error",
            "--component-log-level", "wasm:info", "--log-format", "@%l %v", "--file-flush-interval-msec", "100",
        ]  # fmt: skip
        self.process = subprocess.Popen(arguments, stdout=self.output, stderr=self.output, cwd=self.work)
        self.log = Log(output)
        self.log.start()
        self.upstream.grown = self.log.count
        for _ in range(1200):
            if self.process.poll() is not None or all(
                accepts(number)
                for name, number in self.values.items()
                if name not in ("dead", "blackhole", "upstream")
            ):
                break
            time.sleep(0.1)
        if self.process.poll() is not None:
            raise SystemExit(f"{name} did not start: {output.read_text()[-2000:]}")

    def names_of_ports(self):
        return {str(number): f"@{name}@" for name, number in self.values.items()}

    def statistics(self):
        """What plugins defined."""
        if self.process.poll() is not None:
            return ["the proxy is dead"]
        url = f"http://127.0.0.1:{self.values['admin']}/stats?filter=wasmcustom"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return sorted(line for line in answer.read().decode().splitlines() if "P0(" not in line)

    def stop(self):
        died = self.process.poll()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.log.ended = True
        self.log.done.wait(5)
        return died

    def access_records(self):
        records = {}
        for line in self.access.read_text(errors="replace").splitlines() if self.access.exists() else []:
            record = json.loads(line)
            records.setdefault(record.pop("case"), []).append(record)
        return records


def head_of(case, number, script, script2):
    lines = [f"{case.get('method', 'POST' if 'chunks' in case else 'GET')} {case.get('path', '/path?query=1')} HTTP/1.1"]
    lines += ["host: test.example", f"x-case: {number}"]
    if script is not None:
        lines.append(f"x-script: {fixed_list.encoded(script, number).hex()}")
    if script2 is not None:
        lines.append(f"x-script-2: {fixed_list.encoded(script2, number).hex()}")
    if "answer" in case:
        lines.append(f"x-answer: {json.dumps(case['answer'])}")
    lines += [f"{name}: {value}" for name, value in case.get("headers", [])]
    return lines


def exchange(proxy, case, number, script, script2, port, address):
    """One request and its answer, chunk by chunk: each waits until the guest has spoken of the one before."""
    lines = head_of(case, number, script, script2)
    chunks = [chunk * "q" if isinstance(chunk, int) else chunk for chunk in case.get("chunks", [])]
    if case.get("length"):
        lines.append(f"content-length: {len(''.join(chunks))}")
    elif "chunks" in case:
        lines.append("transfer-encoding: chunked")
    try:
        client = Client(port, address, 6)
    except OSError as error:
        return {"answer": f"no connection: {error}", "after": ""}
    key = str(number)
    before = proxy.log.count(key)
    client.send("\r\n".join(lines) + "\r\n\r\n")
    for chunk in chunks:
        proxy.log.wait(key, before)
        before = proxy.log.count(key)
        client.send(chunk if case.get("length") else f"{len(chunk):x}\r\n{chunk}\r\n")
    if "chunks" in case and not case.get("length"):
        proxy.log.wait(key, before)
        trailers = "".join(f"{name}: {value}\r\n" for name, value in case.get("trailers", []))
        client.send(f"0\r\n{trailers}\r\n")
    answer = client.answer(lines[0].split()[0])
    outcome = {"answer": answer or f"nothing ({client.ended})"}
    closing = not answer or ("connection", "close") in [(n.lower(), v) for n, v in answer["headers"]]
    outcome["after"] = client.state_after(closing)
    client.socket.close()
    return outcome


def run_case(proxy, case, number):
    own = case["listener"]
    port = proxy.values[f"c{number}" if isinstance(own, dict) else own]
    script = case.get("script")
    outcomes = [exchange(proxy, case, number, script, case.get("script2"), port, address_of(number))]
    if "then" in case:
        outcomes.append(exchange(proxy, {}, number, case["then"], None, port, address_of(number)))
    return outcomes


def run_all(proxy, numbered, parallel):
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(run_case, proxy, case, number) for number, case in numbered]
        outcomes = [job.result() for job in jobs]
    time.sleep(SETTLE)
    statistics = proxy.statistics()
    died = proxy.stop()
    records = proxy.access_records()
    results = {}
    for (number, case), outcome in zip(numbered, outcomes):
        results[case["id"]] = flatten(proxy, case, number, outcome, records.get(address_of(number), []))
    results["statistics"] = {line.split(":")[0]: line for line in statistics}
    if died is not None:
        # Whoever was in flight when the first of the later ones was refused.
        refused = [place for place, o in enumerate(outcomes) if str(o[0]["answer"]).startswith("no connection")]
        first = refused[0] if refused else len(outcomes)
        suspects = [
            case["id"]
            for (_, case), outcome in list(zip(numbered, outcomes))[max(0, first - 2 * parallel) : first]
            if isinstance(outcome[0]["answer"], str)
        ]
        results["statistics"]["process"] = f"ended with {died}"
        print(f"{proxy.name} died, {len(outcomes) - first} cases before the end, in one of: {suspects}", flush=True)
    return results


def flatten(proxy, case, number, outcomes, records):
    """What is compared, as a flat table."""
    ports = proxy.names_of_ports()
    flat = {}
    for index, outcome in enumerate(outcomes):
        mark = f"then." if index else ""
        flat[mark + "after"] = outcome["after"]
        answer = outcome["answer"]
        if isinstance(answer, str):
            flat[mark + "status"] = answer
            continue
        flat[mark + "status"] = answer["status"]
        flat[mark + "truncated"] = answer.get("truncated", False)
        flat[mark + "trailers"] = sorted(answer["trailers"])
        for name, value in answer["headers"]:
            flat.setdefault(f"{mark}header.{name}", []).append(normalise_header(name, value, ports))
        flat[mark + "body"] = shorten(answer["body"])
    for kind in ("seen", "call"):
        for index, seen in enumerate(proxy.upstream.seen.get((str(number), kind), [])):
            for key, value in seen.items():
                flat[f"{kind}{index or ''}.{key}"] = normalise_text(json.dumps(value), ports)
    lines = [normalise_text(line, ports) for line in proxy.log.lines.get(number, [])]
    own = case["listener"]
    if isinstance(own, dict) and "root" in own:
        # Envoy configures a canary and a VM for its main thread, too.
        lines = list(dict.fromkeys(lines))
    for index, line in enumerate(lines):
        flat[f"line{index:02}"] = line
    for index, record in enumerate(records):
        for key, value in record.items():
            flat[f"log{index or ''}.{key}"] = normalise_text(value, ports) if isinstance(value, str) else value
    return flat


def shorten(text):
    return text if len(text) < 300 else f"{len(text)} of {sorted(set(text))}"


def batch(name, numbered, options, work, deviations):
    """Runs cases in both and prints what differs. Gives the number of cases that differ, and of listed differences."""
    (work / name).mkdir()
    ours = [options.envoy] if options.self else [str(pathlib.Path(options.plenipo).resolve())]
    right_name = "envoy2" if options.self else "plenipo"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        starts = [
            pool.submit(Proxy, label, command, numbered, work / name)
            for label, command in (("envoy", [options.envoy]), (right_name, ours))
        ]
        proxies = [start.result() for start in starts]
        jobs = [pool.submit(run_all, proxy, numbered, options.parallel) for proxy in proxies]
        left, right = [job.result() for job in jobs]
    by_id = {case["id"]: (number, case) for number, case in numbered}
    differ, listed = 0, 0
    for id in [*by_id, "statistics"]:
        fields = []
        for field in sorted(left[id].keys() | right[id].keys()):
            theirs, mine = left[id].get(field), right[id].get(field)
            if theirs == mine:
                continue
            if not options.self and deviations.allows(id, field):
                listed += 1
                if not options.verbose:
                    continue
            fields.append((field, theirs, mine))
        if not fields:
            continue
        differ += 1
        print(f"== {id}")
        if id in by_id and (options.verbose or id.startswith("seed")):
            for key in ("script", "script2"):
                if by_id[id][1].get(key):
                    print(f" {key}:\n{show(by_id[id][1][key])}")
            print(" ", {k: v for k, v in by_id[id][1].items() if k not in ("script", "script2", "id")})
        for field, theirs, mine in fields[: options.fields]:
            print(f"  {field:16} envoy: {cut(theirs, mine)}\n{'':10} {right_name:>14}: {cut(mine, theirs)}")
        if len(fields) > options.fields:
            print(f"  … and {len(fields) - options.fields} more fields")
    return differ, listed


def cut(text, other):
    """A long text from where it differs."""
    text, other = str(text), str(other)
    at = len(os.path.commonprefix([text, other]))
    begin = max(0, at - 60)
    return ("…" if begin else "") + text[begin : at + 140]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases of the fixed list to run")
    parser.add_argument("--count", type=int, default=300, help="generated scripts")
    parser.add_argument("--seed", type=int, help="of the generated scripts; default: a new one")
    parser.add_argument("--index", type=int, action="append", help="run one generated script alone")
    parser.add_argument("--no-fixed", action="store_true", help="generated scripts alone")
    parser.add_argument("--envoy", default=os.environ.get("ENVOY", "envoy"))
    parser.add_argument("--plenipo", default=os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo")))
    parser.add_argument("--self", action="store_true", help="compare Envoy with itself")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--fields", type=int, default=8, help="fields to show of a case")
    parser.add_argument("--keep", action="store_true", help="keep configurations, logs and outputs")
    parser.add_argument("-v", "--verbose", action="store_true", help="show scripts, and listed differences")
    options = parser.parse_args()
    started = time.monotonic()
    work = pathlib.Path(tempfile.mkdtemp(prefix="envoy-wasm-"))
    deviations = Deviations(HERE / "deviations.txt")
    differ, listed, count = 0, 0, 0
    if not options.no_fixed and options.index is None:
        chosen = fixed_list.fixed()
        if options.only:
            chosen = [c for c in chosen if any(fnmatch.fnmatchcase(c["id"], glob) for glob in options.only)]
        numbered = list(enumerate(chosen, 1))
        count += len(numbered)
        result = batch("fixed", numbered, options, work, deviations)
        differ, listed = differ + result[0], listed + result[1]
    if options.count and not options.only:
        seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
        print(f"seed {seed}, {options.count} scripts", flush=True)
        numbers = options.index or range(options.count)
        # A few hundred at a time: fresh VMs are cheap, the memory of dead ones is not.
        numbers = list(numbers)
        for begin in range(0, len(numbers), 500):
            numbered = [
                (place, {**generate.case(seed, index), "id": f"seed{seed}/{index}"})
                for place, index in enumerate(numbers[begin : begin + 500], 1)
            ]
            count += len(numbered)
            result = batch(f"generated-{begin}", numbered, options, work, deviations)
            differ, listed = differ + result[0], listed + result[1]
    took = time.monotonic() - started
    print(f"wasm: {count} cases, {differ} differ, {listed} listed differences, {took:.1f} s")
    for case, field, reason, used in deviations.rules:
        if not used and not options.self and not options.only and not options.no_fixed and options.index is None:
            print(f"  unused deviation: {case} {field} {reason}")
    if options.keep:
        print(f"kept in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
