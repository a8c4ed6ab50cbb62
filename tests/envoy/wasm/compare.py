#!/usr/bin/env python3
"""The differential suite of the Proxy-Wasm host: scripted guests in a real Envoy and in Plenipo, side by side.

    compare.py [--only GLOB] [--scripts N --seed S [--index I]] [--without GROUP] [--self] [-v]

Without arguments: the fixed list (`cases.py`), then 300 generated scripts (`generate.py`) with a seed that is printed.
Compared for each case: the answer, what the upstream saw of the request and of callouts, the guest's log lines (every
callback with its arguments, every host call with its status and what it gave) in order, the access log, and the
statistics that the plugin made. `deviations.txt` lists what may differ: case glob, field glob, reason. The exit status
is 1 where anything else differs. `--self` compares Envoy with itself. `--without` leaves out a group of host calls
(`grpc`, `foreign`, `properties`): their cases, and their calls in generated scripts.

Some scripts end an Envoy. Those of the fixed list are known (`cases.FATAL`), and of the generated ones it is found out;
the others then run in another Envoy. Plenipo plays them all and must live.
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
from pace import Pace
from rounds import CASE, Rounds
from run import ROOT, Client, Deviations, Process, address_of, normalise_header, normalise_text
from script import show
from servers import Recorder

GUEST = HERE / "guest" / "guest-0_2_1.wasm"
OLD_GUEST = HERE / "guest" / "guest-0_1_0.wasm"
LINE = re.compile(r"^@(\w+) wasm log ?(.*?): ~(\d+)~(.*)$")
DATE = re.compile(r"[A-Z][a-z]{2},%20\d\d%20[A-Z][a-z]{2}%20\d{4}%20[\d:]{8}%20GMT")
SERVICE_TIME = re.compile(r"(x-envoy-upstream-service-time%00)\d+")
# Its length in a serialized map: how many digits it has is a matter of moments, too.
SERVICE_TIME_LENGTH = re.compile(r"(%1d%00%00%00)%0\d(?=%00%00%00.*x-envoy-upstream-service-time%00)")
STATISTIC = re.compile(r"^wasmcustom\.c(\d+)\.")
# How long a client waits for all of its answer: a machine may be slow.
CLIENT = 30
# What a stream still has to do when its client is answered: callouts with deadlines, ticks.
SETTLE = 1.5


class Log(threading.Thread):
    """Follows a proxy's output: the guest's lines by case."""

    def __init__(self, file, pace):
        super().__init__(daemon=True)
        self.file = file
        self.pace = pace
        self.rounds = None
        self.lines = {}
        # The case of the last line: where the process dies, what it died of.
        self.last = None
        self.ended = False

    def run(self):
        with open(self.file, encoding="latin1") as file:
            rest = ""
            while True:
                ended = self.ended
                text = file.read()
                if not text:
                    if ended:
                        break
                    time.sleep(0.003)
                    continue
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    match = LINE.match(line)
                    if match:
                        level, prefix, case, said = match.groups()
                        if int(case) == CASE:
                            if self.rounds:
                                self.rounds.heard(said)
                            continue
                        self.last = int(case)
                        self.lines.setdefault(self.last, []).append(f"{level} [{prefix}] {said}")
                        self.pace.heard(case, said)


class Proxy(Process):
    """One proxy process with all listeners of the cases."""

    def __init__(self, name, command, numbered, work):
        self.pace = Pace()
        super().__init__(name, work, Recorder(self.pace))
        self.values["grpc"] = self.upstream.grpc.port
        text = config.bootstrap(numbered, GUEST, OLD_GUEST, self.port, str(self.log))
        overlay = ["--config-yaml", json.dumps(config.PLENIPO)] if name == "plenipo" else []
        self.start(
            command, text, "-l", "error", "--component-log-level", "wasm:info", "--log-format", "@%l %v", *overlay
        )  # fmt: skip
        self.said = Log(self.output, self.pace)
        self.said.start()
        self.wait_until_ready([name for name in self.values if name not in ("dead", "blackhole", "upstream", "grpc")])
        self.said.rounds = Rounds(self.pace, self.process, self.values["pace"])
        self.said.rounds.start()
        self.died_at = None
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        self.process.wait()
        self.died_at = time.monotonic()

    def statistics(self):
        """What plugins defined, by case."""
        url = f"http://127.0.0.1:{self.values['admin']}/stats?filter=wasmcustom"
        by_case = {}
        with urllib.request.urlopen(url, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                match = STATISTIC.match(line)
                # Of a histogram it is a matter of moments whether its values were gathered already.
                if match and "P0(" not in line and "No recorded values" not in line:
                    by_case.setdefault(int(match.group(1)), []).append(line)
        return by_case



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
    pieces = ["\r\n".join(lines) + "\r\n\r\n"]
    if case.get("length"):
        pieces += chunks
    elif "chunks" in case:
        pieces += [f"{len(chunk):x}\r\n{chunk}\r\n" for chunk in chunks]
        pieces.append("0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in case.get("trailers", [])) + "\r\n")
    key = str(number)
    with proxy.pace.sending(key):
        try:
            client = Client(port, address, CLIENT)
        except OSError as error:
            return {"answer": f"no connection: {error}", "after": ""}
        if waits_for_tick(case):
            # Ticks wait for nobody: all is there when the first one comes.
            pieces = ["".join(pieces)]
        for index, piece in enumerate(pieces):
            if index:
                reached = index > 1 or not case.get("id", "").startswith("seed")
                while not (proxy.pace.followed(key, mark) and (reached or proxy.pace.arrived(key, mark))):
                    time.sleep(0.005)
            mark = proxy.pace.now(key)
            # Before it is sent: what the upstream does then may not count the silence of before.
            proxy.pace.moved(key)
            client.send(piece)
    answer = client.answer(lines[0].split()[0])
    outcome = {"answer": answer or f"nothing ({(client.ended or '').replace('reset', 'closed')})"}
    closing = not answer or ("connection", "close") in [(n.lower(), v) for n, v in answer["headers"]]
    # A close is a reset where the other side has not read all: a matter of moments.
    outcome["after"] = client.state_after(closing).replace("reset", "closed")
    if answer and answer["code"].startswith("1"):
        # For the client it has no body. That the proxy sends one nevertheless it does not break off by leaving.
        while not proxy.pace.at_rest(key):
            time.sleep(0.005)
    client.socket.close()
    return outcome


def waits_for_tick(case):
    """Whether a tick ends the wait of the request's headers."""
    action, operations = case.get("script", {}).get("request_headers", (0, []))
    return action and any(call[0] == "set_tick_period_milliseconds" for call in operations)


def run_case(proxy, case, number):
    """What the clients saw, and when the last one ended. `None`: not begun, as the process is dead."""
    if proxy.died_at:
        return None
    own = case["listener"]
    port = proxy.values[f"c{number}" if isinstance(own, dict) else own]
    address = address_of(number)
    outcomes = [exchange(proxy, case, number, case.get("script"), case.get("script2"), port, address)]
    if "then" in case:
        if isinstance(own, dict) and own.get("policy") == "FAIL_RELOAD":
            # The back-off before a fresh VM is one second, more or less.
            time.sleep(2.5)
        outcomes.append(exchange(proxy, {}, number, case["then"], None, port, address))
    return outcomes, time.monotonic()


def run_until_dead(name, command, numbered, work, parallel):
    """Runs cases in one process. Gives the results of those that ended before it did, and the case of its last line if it
    died."""
    proxy = Proxy(name, command, numbered, work)
    # The first requests of a process are slow.
    for listener in ("plain", "stop", "small", "chain", "pair", "old"):
        exchange(proxy, {}, 0, {}, {}, proxy.values[listener], address_of(0))
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        jobs = [pool.submit(run_case, proxy, case, number) for number, case in numbered]
        outcomes = [job.result() for job in jobs]
    if not proxy.died_at:
        end = proxy.pace.now(None)
        while not proxy.pace.passed(end, SETTLE):
            time.sleep(0.05)
            if proxy.upstream.turns.pending:
                end = proxy.pace.now(None)
    statistics = {} if proxy.died_at else proxy.statistics()
    # What roots say at the end of the process is not compared: Plenipo's guests are not called then.
    proxy.said.ended = True
    proxy.said.join(5)
    calls = {str(number): proxy.upstream.grpc.of(str(number)) for number, _ in numbered}
    died = proxy.stop()
    records = proxy.log_records()
    results = {}
    for (number, case), outcome in zip(numbered, outcomes):
        if outcome is None:
            continue
        ended = max(outcome[1], proxy.upstream.turns.ended.get(str(number), 0))
        if died is not None and ended > proxy.died_at - SETTLE:
            continue
        results[number] = flatten(proxy, case, number, outcome[0], records.get(address_of(number), []))
        # What a dead VM has under way is given up here; an Envoy goes on with it.
        for index, seen in enumerate([] if case.get("traps") else calls[str(number)]):
            results[number] |= {f"grpc{index}.{at:02}": said for at, said in enumerate(seen)}
        results[number] |= {f"stat.{line.split(':')[0]}": line for line in statistics.get(number, [])}
        results[number]["counted"] = died is None
    return results, None if died is None else (proxy.said.last, died)


def run_all(name, command, numbered, work, parallel):
    """Runs cases, in another process where one dies: what it died of runs alone. Such a case's result is its end."""
    by_number = dict(numbered)
    results, rounds = {}, 0
    left = list(numbered)
    while left:
        (work / str(rounds)).mkdir()
        got, death = run_until_dead(name, command, left, work / str(rounds), parallel)
        rounds += 1
        results |= got
        left = [(number, case) for number, case in left if number not in results]
        if death:
            last, status = death
            suspect = last if last in by_number and last not in results else left[0][0]
            (work / str(rounds)).mkdir()
            got, death = run_until_dead(name, command, [(suspect, by_number[suspect])], work / str(rounds), 1)
            rounds += 1
            results |= {suspect: {"process": f"ended with {death[1]}"}} if death else got
            left = [entry for entry in left if entry[0] != suspect]
    return results


def flatten(proxy, case, number, outcomes, records):
    """What is compared, as a flat table."""
    ports = proxy.names_of_ports()
    flat = {}
    for index, outcome in enumerate(outcomes):
        mark = "then." if index else ""
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
    lines = [normalise_line(line, ports) for line in proxy.said.lines.get(number, [])]
    own = case["listener"]
    if isinstance(own, dict) and own.keys() & {"root", "logger"}:
        # Envoy configures a canary and a VM for its main thread, too: what the first one says is compared.
        firsts = {}
        for line in lines:
            firsts.setdefault(line.partition("|")[0], line)
        lines = list(firsts.values())
    if case.get("apart"):
        # A call passes its cluster's filters inside of the callback that makes it in Envoy, and here when that has returned:
        # the lines of each guest are compared for themselves.
        lines.sort(key=lambda line: line.partition("]")[0].split()[-1])
    for index, line in enumerate(lines):
        flat[f"line{index:02}"] = line
    for index, record in enumerate(records):
        for key, value in record.items():
            flat[f"log{index or ''}.{key}"] = normalise_text(value, ports) if isinstance(value, str) else value
    return flat


def normalise_line(line, ports):
    line = DATE.sub("<date>", normalise_text(line, ports))
    return SERVICE_TIME.sub(r"\1<ms>", SERVICE_TIME_LENGTH.sub(r"\1<length>", line))


def shorten(text):
    return text if len(text) < 300 else f"{len(text)} of {sorted(set(text))}"


class Count:
    """What came out so far."""

    def __init__(self):
        self.cases = self.differ = self.listed = self.fatal = 0


def batch(name, numbered, options, work, deviations, count):
    """Runs cases in both and prints what differs."""
    right_name = "envoy2" if options.self else "plenipo"
    ours = [options.envoy] if options.self else [str(pathlib.Path(options.plenipo).resolve())]
    mortal = [(number, case) for number, case in numbered if not case.get("fatal")]
    sides = [("envoy", [options.envoy], mortal), (right_name, ours, mortal if options.self else numbered)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = []
        for label, command, some in sides:
            (work / name / label).mkdir(parents=True)
            jobs.append(pool.submit(run_all, label, command, some, work / name / label, options.parallel))
        left, right = [job.result() for job in jobs]
    if options.record:
        table = {case["id"]: {"envoy": left.get(n), right_name: right.get(n)} for n, case in numbered}
        pathlib.Path(f"{options.record}.{name}.json").write_text(json.dumps(table, indent=1))
    for number, case in numbered:
        count.cases += 1
        theirs, mine = left.get(number, {"process": "not run"}), right.get(number, {})
        if "process" in theirs and "process" not in mine:
            # The end of an Envoy, known or found out: here it must be an exchange like others.
            count.fatal += 1
            if not case.get("fatal"):
                print(f"ended an envoy: {case['id']}")
            continue
        fields = []
        # What dies takes its statistics with it.
        counted = theirs.pop("counted", True) & mine.pop("counted", True)
        for field in sorted(theirs.keys() | mine.keys()):
            if field.startswith("stat.") and not counted:
                continue
            if theirs.get(field) == mine.get(field):
                continue
            if not options.self and deviations.allows(case["id"], field):
                count.listed += 1
                if not options.verbose:
                    continue
            fields.append((field, theirs.get(field), mine.get(field)))
        if not fields:
            continue
        count.differ += 1
        print(f"== {case['id']}")
        if options.verbose or "/" in case["id"] and case["id"].startswith("seed"):
            for key in ("script", "script2"):
                if case.get(key):
                    print(f" {key}:\n{show(case[key])}")
            print(" ", {k: v for k, v in case.items() if k not in ("script", "script2", "id")})
        for field, theirs, mine in fields[: options.fields]:
            print(f"  {field:16} envoy: {cut(theirs, mine)}\n{'':10} {right_name:>14}: {cut(mine, theirs)}")
        if len(fields) > options.fields:
            print(f"  … and {len(fields) - options.fields} more fields")
    sys.stdout.flush()


def cut(text, other):
    """A long text from where it differs."""
    text, other = str(text), str(other)
    at = len(os.path.commonprefix([text, other]))
    begin = max(0, at - 60)
    return ("…" if begin else "") + text[begin : at + 140]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases of the fixed list to run")
    parser.add_argument("--scripts", type=int, default=300, help="generated scripts")
    parser.add_argument("--seed", type=int, help="of the generated scripts; default: a new one")
    parser.add_argument("--index", type=int, action="append", help="run one generated script alone")
    parser.add_argument("--no-fixed", action="store_true", help="generated scripts alone")
    parser.add_argument("--without", action="append", default=[], choices=fixed_list.GROUPS, help="leave out a group")
    parser.add_argument("--envoy", default=os.environ.get("ENVOY", "envoy"))
    parser.add_argument("--plenipo", default=os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo")))
    parser.add_argument("--self", action="store_true", help="compare Envoy with itself")
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--fields", type=int, default=8, help="fields to show of a case")
    parser.add_argument("--record", metavar="PREFIX", help="write what both did as JSON, a file for each batch")
    parser.add_argument("--keep", action="store_true", help="keep configurations, logs and outputs")
    parser.add_argument("-v", "--verbose", action="store_true", help="show scripts, and listed differences")
    options = parser.parse_args()
    started = time.monotonic()
    work = pathlib.Path(tempfile.mkdtemp(prefix="envoy-wasm-"))
    deviations = Deviations(HERE / "deviations.txt")
    count = Count()
    if not options.no_fixed and options.index is None:
        chosen = [case for case in fixed_list.fixed() if case.get("group") not in options.without]
        if options.only:
            chosen = [c for c in chosen if any(fnmatch.fnmatchcase(c["id"], glob) for glob in options.only)]
        batch("fixed", list(enumerate(chosen, 1)), options, work, deviations, count)
    if options.scripts and not options.only:
        seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
        print(f"seed {seed}, {options.scripts} scripts", flush=True)
        numbers = options.index or list(range(options.scripts))
        # A few hundred at a time: fresh VMs are cheap, the memory of dead ones is not.
        for begin in range(0, len(numbers), 500):
            numbered = [
                (place, {**generate.case(seed, index, options.without), "id": f"seed{seed}/{index}"})
                for place, index in enumerate(numbers[begin : begin + 500], 1)
            ]
            batch(f"generated-{begin}", numbered, options, work, deviations, count)
    took = time.monotonic() - started
    print(
        f"wasm: {count.cases} cases, {count.differ} differ, {count.listed} listed differences, "
        f"{count.fatal} that end an Envoy, {took:.1f} s"
    )
    for case, field, reason, used in deviations.rules:
        if not used and not options.self and not options.only and not options.no_fixed and options.index is None:
            print(f"  unused deviation: {case} {field} {reason}")
    if options.keep:
        print(f"kept in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if count.differ else 0)


if __name__ == "__main__":
    main()
