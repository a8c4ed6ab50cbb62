#!/usr/bin/env python3
"""Differential tests: the same configuration in a real Envoy and in Plenipo, the same requests, the same answers.

    run.py [--suite routing] [--only GLOB] [--self] [-v]
    run.py --suite ../sdk

A suite is a folder with `envoy.yaml` (`@name@` stands for a port or path that the runner chooses), `cases.json` (what to
send) and, optionally, `plenipo.yaml` (laid over the configuration for Plenipo alone) and `deviations.txt` (differences that
are wanted: case glob, field glob, reason). The exit status is 1 where there is a difference that is not listed; of one or
two that show once and not in further plays the summary tells, and no more. `--self` compares Envoy with itself: it shows
that the suite is stable.
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
import urllib.request

import h2client
import upstream_http2
from upstream import Upstream

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from ports import reserve


# ---------------------------------------------------------------------------------------------------------------------
# Ports, and what listens on them
# ---------------------------------------------------------------------------------------------------------------------


class Ports:
    """Free ports by name; the sockets that reserve them are closed just before they are needed."""

    def __init__(self):
        self.held = {}
        self.numbers = {}

    def get(self, name):
        if name not in self.numbers:
            held = reserve()
            self.held[name] = held
            self.numbers[name] = held.getsockname()[1]
        return self.numbers[name]

    def release(self):
        for held in self.held.values():
            held.close()
        self.held = {}


class BlackHole:
    """A port that takes connections and never completes them: its backlog is full."""

    def __init__(self):
        self.server = socket.socket()
        self.server.bind(("127.0.0.1", 0))
        self.server.listen(0)
        self.port = self.server.getsockname()[1]
        self.clients = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            try:
                client.connect(("127.0.0.1", self.port))
            except BlockingIOError:
                pass
            self.clients.append(client)


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Process:
    """One proxy process, its ports and its upstream's. `values` are the ports and paths by the names that configurations
    use for them."""

    def __init__(self, name, work, upstream):
        self.name = name
        self.work = work / name
        self.work.mkdir()
        self.ports = Ports()
        self.upstream = upstream
        self.blackhole = BlackHole()
        self.log = self.work / "access.log"
        self.output = self.work / "output.txt"
        self.values = {"upstream": upstream.port, "blackhole": self.blackhole.port}

    def port(self, name):
        if name not in self.values:
            self.values[name] = self.ports.get(name)
        return self.values[name]

    def start(self, command, text, *arguments):
        """Starts it with a configuration, on one worker."""
        config = self.work / "envoy.yaml"
        config.write_text(text)
        self.ports.release()
        arguments = [
            *command, "-c", str(config), "--file-flush-interval-msec", "100", "--concurrency", "1",
            "--use-dynamic-base-id", *arguments,
        ]  # fmt: skip
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=self.work)

    def wait_until_ready(self, listeners):
        # Compiling the largest plugins takes a minute.
        for _ in range(3000):
            if self.process.poll() is not None:
                break
            if all(accepts(self.values[listener]) for listener in listeners):
                return
            time.sleep(0.05)
        output = self.output.read_text(errors="replace")
        tail = output[:1500] + ("\n…\n" + output[-500:] if len(output) > 2000 else "")
        self.stop()
        raise SystemExit(f"{self.name} did not become ready:\n{tail}")

    def stop(self):
        """Ends it. Gives the status with which it had ended before, if it had."""
        died = self.process.poll()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return died

    def names_of_ports(self):
        return {str(port): f"@{name}@" for name, port in self.values.items() if isinstance(port, int)}

    def log_records(self):
        """The access log by the client's address: every case has one of its own."""
        records = {}
        if self.log.exists():
            for line in self.log.read_text(errors="replace").splitlines():
                # A text names its case in front: `@address `.
                if line.startswith("@") and " " in line:
                    case, _, line = line[1:].partition(" ")
                    records.setdefault(case, []).append({"line": line})
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    record = {"unreadable": line}
                records.setdefault(record.pop("case", ""), []).append(record)
        return records


class Proxy(Process):
    """One proxy process with a suite's configuration."""

    def __init__(self, name, command, suite, work, listeners):
        super().__init__(name, work, Upstream())
        self.values |= {"log": str(self.log), "root": str(ROOT)}
        if "@upstream2@" in (suite / "envoy.yaml").read_text():
            self.values["upstream2"] = Upstream(upstream_http2.connection).port
        text = re.sub(
            r"@([a-z][a-z0-9_]*)@", lambda match: str(self.port(match.group(1))), (suite / "envoy.yaml").read_text()
        )
        self.port("admin")
        extra = suite / "plenipo.yaml"
        overlay = ["--config-yaml", extra.read_text()] if name == "plenipo" and extra.exists() else []
        self.start(command, text, "-l", "warning", *overlay)
        self.wait_until_ready(listeners)


# ---------------------------------------------------------------------------------------------------------------------
# One case
# ---------------------------------------------------------------------------------------------------------------------


def request_bytes(case):
    text, count = case.get("fill", ("", 0))
    if "raw" in case:
        return case["raw"].replace("@fill@", text * count).encode("latin1")
    lines = [f"{case.get('method', 'GET')} {case['path']} {case.get('version', 'HTTP/1.1')}"]
    if case.get("host") is not None:
        lines.append(f"host: {case['host']}")
    lines += [f"{name}: {value}" for name, value in case.get("headers", [])]
    body = case.get("body", "").replace("@fill@", text * count).encode("latin1")
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + body


class Client:
    """Reads HTTP/1 answers byte by byte as they were sent."""

    def __init__(self, port, address, timeout):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))
        self.deadline = time.monotonic() + timeout
        self.buffer = b""
        self.ended = None

    def receive(self):
        left = self.deadline - time.monotonic()
        if self.ended or left <= 0:
            self.ended = self.ended or "timeout"
            return False
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            self.ended = "timeout"
            return False
        except OSError:
            self.ended = "reset"
            return False
        if not data:
            self.ended = "closed"
            return False
        self.buffer += data
        return True

    def send(self, text):
        try:
            self.socket.sendall(text.encode("latin1"))
        except OSError:
            pass

    def until(self, mark):
        while mark not in self.buffer:
            if not self.receive():
                return None
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def exactly(self, size):
        while len(self.buffer) < size and self.receive():
            pass
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def answer(self, method):
        head = self.until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin1").split("\r\n")
        headers = [tuple(line.split(": ", 1)) if ": " in line else (line.rstrip(":"), "") for line in lines[1:]]
        fields = {name.lower(): value for name, value in headers}
        code = (lines[0].split(" ") + [""])[1]
        answer = {"status": lines[0], "code": code, "headers": headers, "body": "", "trailers": []}
        if code.startswith("1") or code in ("204", "304") or method == "HEAD":
            return answer
        if "chunked" in fields.get("transfer-encoding", ""):
            body = b""
            while True:
                line = self.until(b"\r\n")
                if line is None:
                    answer["truncated"] = True
                    break
                size = int(line.split(b";")[0], 16)
                if size == 0:
                    while line := self.until(b"\r\n"):
                        answer["trailers"].append(line.decode("latin1"))
                    break
                body += self.exactly(size)
                self.exactly(2)
        elif "content-length" in fields:
            size = int(fields["content-length"])
            body = self.exactly(size)
            if len(body) < size:
                answer["truncated"] = True
        else:
            while self.receive():
                pass
            body, self.buffer = self.buffer, b""
        answer["body"] = body.decode("latin1")
        return answer

    def state_after(self, closing):
        """Whether the connection is kept: Envoy closes at once, or lingers for a second once it said so."""
        self.deadline = time.monotonic() + (2.0 if closing else 0.3)
        while self.receive():
            pass
        return {"timeout": "kept", None: "kept"}.get(self.ended, self.ended)


def address_of(index):
    """A loopback address for a case: it names the case in the access log."""
    return f"127.1.{index // 250}.{index % 250 + 1}"


def run_case(proxy, case, address):
    if "h2" in case:
        return h2client.run(proxy.values[case.get("listener", "main")], case, address)
    raw = request_bytes(case)
    method = raw.split(b" ", 1)[0].decode("latin1")
    listener = case.get("listener", "main")
    outcome = {}
    try:
        client = Client(proxy.values[listener], address, case.get("timeout", 8))
    except OSError as error:
        return {"answer": f"no connection: {error}"}
    before = []
    for _ in range(case.get("times", 1) - 1):
        client.send(raw.decode("latin1"))
        first = client.answer(method)
        before.append(first["code"] if first else f"nothing ({client.ended})")
    try:
        client.socket.sendall(raw)
        for piece in case.get("pieces", []):
            time.sleep(0.05)
            client.socket.sendall(piece.encode("latin1"))
        if case.get("half_close"):
            client.socket.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    interim = []
    answer = client.answer(method)
    while answer and answer["code"].startswith("1") and answer["code"] != "101":
        interim.append(answer["status"])
        if answer["code"] == "100":
            client.send(case.get("then", ""))
        answer = client.answer(method)
    if answer and answer["code"] == "101":
        # A tunnel: what is sent comes back.
        text = case.get("then", "")
        client.send(text)
        answer["body"] = client.exactly(len(text)).decode("latin1")
    outcome["answer"] = answer or f"nothing ({client.ended})"
    if interim:
        outcome["interim"] = interim
    if before:
        outcome["before"] = before
    closing = not answer or ("connection", "close") in [(n.lower(), v) for n, v in answer["headers"]]
    outcome["after"] = client.state_after(closing)
    client.socket.close()
    return outcome


# ---------------------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------------------

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MILLIS = {"x-envoy-upstream-service-time"}


def normalise_header(name, value, ports):
    lower = name.lower()
    if lower == "date":
        return "<date>"
    if lower in MILLIS and value.isdigit():
        return "<ms>"
    if lower == "content-length":
        return "<length>"
    if lower == "x-envoy-expected-rq-timeout-ms" and re.fullmatch(r"149\d\d", value):
        return "15000"
    return normalise_text(value, ports)


def normalise_text(text, ports):
    text = UUID.sub("<uuid>", text)
    # In a `grpc-message` a port may follow an escaped byte.
    return re.sub(r"(?:(?<!\d)|(?<=%[0-9A-F][0-9A-F]))\d{4,5}(?!\d)", lambda match: ports.get(match.group(0), match.group(0)), text)


def flatten(proxy, outcome, records):
    """An outcome as a flat table of fields."""
    ports = proxy.names_of_ports()
    if "connection" in outcome:
        flat = h2client.flatten(
            outcome, lambda name, value: normalise_header(name, value, ports), lambda body: flatten_body(body, ports)
        )
        return flat | flatten_log(sorted(records, key=json.dumps) if len(outcome.get("streams", {})) > 1 else records, ports)
    flat = {"after": outcome.get("after", "")}
    for key in ("interim", "before"):
        if key in outcome:
            flat[key] = outcome[key]
    answer = outcome["answer"]
    if isinstance(answer, str):
        flat["status"] = answer
    else:
        flat["status"] = answer["status"]
        flat["truncated"] = answer.get("truncated", False)
        flat["trailers"] = answer["trailers"]
        for name, value in answer["headers"]:
            flat.setdefault(f"header.{name}", []).append(normalise_header(name, value, ports))
        flat |= flatten_body(answer["body"], ports)
    return flat | flatten_log(records, ports)


def flatten_log(records, ports):
    flat = {}
    for index, record in enumerate(records):
        for key, value in record.items():
            flat[f"log{index or ''}.{key}"] = normalise_logged(key, value, ports)
    return flat


def normalise_logged(key, value, ports):
    """A value of a record. Of durations (`ms_…`) and of counts that ports and clocks change (`n_…`) the kind is compared."""
    if isinstance(value, str):
        return normalise_text(value, ports)
    if isinstance(value, dict):
        return {name: normalise_logged(name, inner, ports) for name, inner in value.items()}
    if isinstance(value, list):
        return [normalise_logged("", inner, ports) for inner in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if str(value) in ports:
            return ports[str(value)]
        if key.startswith("ms_"):
            return "<ms>"
        if key.startswith("n_"):
            return "<n>" if value else 0
    return value


def flatten_body(body, ports):
    try:
        seen = json.loads(body)
        seen["request"], seen["headers"]
    except (ValueError, TypeError, KeyError):
        return {"body": normalise_text(body, ports)}
    flat = {"seen.line": normalise_text(seen["request"], ports), "seen.body": seen["body"]}
    flat["seen.body_len"] = seen["body_len"]
    flat["seen.trailers"] = seen["trailers"]
    for name, value in seen["headers"]:
        flat.setdefault(f"seen.{name}", []).append(normalise_header(name, value, ports))
    return flat


class Deviations:
    """Wanted differences: `case-glob field-glob reason`, one a line."""

    def __init__(self, path):
        self.rules = []
        if path.exists():
            for line in path.read_text().splitlines():
                if line.strip() and not line.startswith("#"):
                    case, field, reason = line.split(None, 2)
                    self.rules.append([case, field, reason, 0])

    def allows(self, case, field):
        for rule in self.rules:
            if fnmatch.fnmatchcase(case, rule[0]) and fnmatch.fnmatchcase(field, rule[1]):
                rule[3] += 1
                return True
        return False


# The case that no request is.
STATISTICS = "statistics"
# What the connection managers count of the cases, where no race decides on it.
COUNTED = re.compile(
    r"http\.(?!admin\.)(\w+\.(?:downstream_rq_(?:total|[2-5]xx|(?:idle_|header_)?timeout|max_duration_reached|non_relative_path"
    r"|failed_path_normalization|too_large|ws_on_non_ws_route)|no_route|no_cluster|rq_total|rq_direct_response|rq_redirect"
    r"|rs_too_large|downstream_cx_protocol_error)): ([1-9]\d*)"
)


def counted(proxy):
    """The statistics of the connection managers, as fields of a case of their own."""
    if "admin" not in proxy.values:
        return {}
    address = f"http://127.0.0.1:{proxy.values['admin']}/stats?filter=^http\\."
    with urllib.request.urlopen(address, timeout=10) as answer:
        return dict(COUNTED.findall(answer.read().decode()))


def run_all(proxy, cases, parallel):
    addresses = [address_of(index) for index in range(len(cases))]
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        outcomes = list(pool.map(lambda case, address: run_case(proxy, case, address), cases, addresses))
    time.sleep(0.5)
    statistics = counted(proxy)
    proxy.stop()
    records = proxy.log_records()
    return {
        case["id"]: flatten(proxy, outcome, records.get(address, []))
        for case, outcome, address in zip(cases, outcomes, addresses)
    } | {STATISTICS: statistics}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", help="a folder, by its path from here; default: those beside this file")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases to run")
    parser.add_argument("--envoy", default=os.environ.get("ENVOY", "envoy"))
    parser.add_argument("--plenipo", default=os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo")))
    parser.add_argument("--self", action="store_true", help="compare Envoy with itself")
    parser.add_argument("--parallel", type=int, default=6)
    parser.add_argument("--keep", action="store_true", help="keep configurations, logs and outputs")
    parser.add_argument("--record", metavar="FILE", help="write what Envoy did as JSON")
    parser.add_argument("--expected", metavar="FILE", help="compare with what --record wrote, without an Envoy")
    parser.add_argument("-v", "--verbose", action="store_true", help="show both sides of listed differences, too")
    options = parser.parse_args()
    suites = options.suite or sorted(path.parent.name for path in HERE.glob("*/cases.json"))
    work = pathlib.Path(tempfile.mkdtemp(prefix="envoy-diff-"))
    failed = False
    for name in suites:
        suite = (HERE / name).resolve()
        (work / suite.name).mkdir()
        failed |= run_suite(suite, work / suite.name, options)
    if options.keep:
        print(f"kept in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if failed else 0)


def play(suite, work, options, cases):
    """What the two proxies did with the cases: Envoy first."""
    listeners = sorted({case.get("listener", "main") for case in cases})
    other = [options.envoy] if options.self else [str(pathlib.Path(options.plenipo).resolve())]
    left = None
    if not options.expected:
        left = Proxy("envoy", [options.envoy], suite, work, listeners)
    right = Proxy(right_name(options), other, suite, work, listeners)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run_all, proxy, cases, options.parallel) for proxy in (left, right) if proxy]
        results = [job.result() for job in jobs]
    if options.expected:
        results.insert(0, json.loads(pathlib.Path(options.expected).read_text()))
    return results


# So often a case that differed is played once more, where so few did that chance may be the cause.
AGAIN, CHANCE = 8, 2
COPY = " again "


def unsteady_of(different, cases, suite, work, options):
    """Which of the cases that differed do not when they are played again: they depend on the order of two events that
    neither proxy decides. They are told, so that one that is seen twice can be mended."""
    suspects = different.keys() - {STATISTICS}
    if not 0 < len(suspects) <= CHANCE or options.expected or options.self:
        return []
    work = work / "again"
    work.mkdir()
    copies = [
        {**case, "id": f"{case['id']}{COPY}{number}"} for case in cases if case["id"] in suspects for number in range(AGAIN)
    ]
    results = play(suite, work, options, copies)
    still, _ = differences(copies, results, Deviations(suite / "deviations.txt"), options)
    print_differences(still, options)
    unsteady = suspects - {name.partition(COPY)[0] for name in still}
    # Where chance decides on cases, it does on their sums.
    return sorted(unsteady | (different.keys() & {STATISTICS} if unsteady == suspects else set()))


def right_name(options):
    return "envoy2" if options.self else "plenipo"


def differences(cases, results, deviations, options):
    """The fields that differ by case, and how many differences are listed as wanted."""
    different, allowed = {}, 0
    for case in [*cases, {"id": STATISTICS}]:
        ours, theirs = results[1][case["id"]], results[0].get(case["id"], {})
        for field in sorted(ours.keys() | theirs.keys()):
            if ours.get(field) != theirs.get(field):
                if not options.self and deviations.allows(case["id"].partition(COPY)[0], field):
                    allowed += 1
                    if not options.verbose:
                        continue
                different.setdefault(case["id"], []).append((field, theirs.get(field), ours.get(field)))
    return different, allowed


def print_differences(different, options):
    for case, fields in different.items():
        for field, theirs, ours in fields:
            print(f"{case:40} {field:32} envoy: {theirs!s:.160}\n{'':73} {right_name(options)}: {ours!s:.160}")


def run_suite(suite, work, options):
    cases = json.loads((suite / "cases.json").read_text())
    ids = [case["id"] for case in cases]
    assert len(set(ids)) == len(ids), "case ids are unique"
    if options.only:
        cases = [case for case in cases if any(fnmatch.fnmatchcase(case["id"], glob) for glob in options.only)]
    started = time.monotonic()
    results = play(suite, work, options, cases)
    if options.record:
        pathlib.Path(options.record).write_text(json.dumps(results[0], indent=1, sort_keys=True) + "\n")
    deviations = Deviations(suite / "deviations.txt")
    different, allowed = differences(cases, results, deviations, options)
    print_differences(different, options)
    unsteady = unsteady_of(different, cases, suite, work, options)
    for case in unsteady:
        del different[case]
    took = time.monotonic() - started
    print(
        f"{suite.name}: {len(cases)} cases, {len(different)} differ, {allowed} listed differences, "
        f"{len(unsteady)} that differed once and then {AGAIN} times not, {took:.1f} s"
    )
    for case, field, reason, used in deviations.rules:
        if not used and not options.self and not options.only and HERE in suite.parents:
            print(f"  unused deviation: {case} {field} {reason}")
    return bool(different)


if __name__ == "__main__":
    main()
