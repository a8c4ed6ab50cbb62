#!/usr/bin/env python3
"""Properties and foreign functions of the Proxy-Wasm host, in a real Envoy and in Plenipo, value by value.

    attributes.py [--only GLOB] [--self] [-v]
    attributes.py --record FILE, then attributes.py --expected FILE

`attribute_tables.py` has the tables: the paths of all properties, asked for in every phase of several kinds of streams
and in root contexts; calls of foreign functions; expressions. What the guest logged of each (status and bytes) is
compared. `attribute_deviations.txt` lists what may differ: case glob, field glob, reason. The exit status is 1 where
anything else differs. `--self` compares Envoy with itself; `--expected` compares with what `--record` wrote.
"""

import argparse
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
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import attribute_tables as tables
from script import configuration, encode

ROOT = HERE.parent.parent.parent
GUEST = HERE / "guest" / "guest-0_2_1.wasm"
LINE = re.compile(r"^@\w+ wasm log ?.*?: ~(\d+)~(.*)$")
TYPE = "type.googleapis.com/"
# What a stream still has to do when its client is answered.
SETTLE = 1.0


class Upstream:
    """Answers by path, one connection a thread; both proxies use the same one, so that its port is no difference."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, connection.makefile("rb") as reader:
            while line := reader.readline():
                fields = {}
                while (header := reader.readline().strip()) != b"":
                    name, _, value = header.decode("latin1").partition(":")
                    fields[name.lower()] = value.strip()
                if "chunked" in fields.get("transfer-encoding", ""):
                    while size := int(reader.readline(), 16):
                        reader.read(size + 2)
                    while reader.readline().strip() != b"":
                        pass
                else:
                    reader.read(int(fields.get("content-length", 0)))
                path = line.split()[1].decode()
                connection.sendall(tables.ANSWERS.get(path.split("?")[0], tables.ANSWERS["/"]).encode("latin1"))


def free_ports(count):
    """Ports that are free now; each proxy in turn listens on all of them."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return numbers


def plugin(name, text):
    value = {"@type": TYPE + "google.protobuf.StringValue", "value": text}
    config = {
        "name": name,
        "root_id": "root-" + name,
        "vm_config": {"vm_id": "vm", "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": str(GUEST)}}},
        "configuration": value,
    }
    return {
        "name": "envoy.filters.http.wasm",
        "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.wasm.v3.Wasm", "config": config},
    }


def bootstrap(cases, ports, upstream, log):
    listeners = []
    # Most cases share the first one.
    for number, case in [(0, {}), *((n, c) for n, c in enumerate(cases, 1) if own_listener(c))]:
        root = encode(case["root"], number) if "root" in case else b""
        filters = [plugin(f"p{number}", configuration("A", "x-script", b"", root))]
        if "second" in case:
            filters.append(plugin(f"q{number}", configuration("B", "x-script-2")))
        manager = {
            "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": f"c{number}",
            "generate_request_id": False,
            "stream_idle_timeout": "2s",
            "http_protocol_options": {"enable_trailers": True, "accept_http_10": True},
            "route_config": {"name": "routes", "virtual_hosts": tables.VIRTUAL_HOSTS},
            "http_filters": [
                *filters,
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"},
                },
            ],
            "access_log": [
                {
                    "name": "file",
                    "typed_config": {
                        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                        "path": str(log),
                        "log_format": {
                            "json_format": {
                                "case": "%REQ(x-case)%",
                                "plain": "%FILTER_STATE(wasm.mine:PLAIN)%",
                                "typed": "%FILTER_STATE(wasm.mine:TYPED)%",
                                "declared": "%FILTER_STATE(wasm.declared:PLAIN)%",
                                "declared_typed": "%FILTER_STATE(wasm.declared)%",
                                "object": "%FILTER_STATE(envoy.tcp_proxy.cluster:PLAIN)%",
                                "string": "%FILTER_STATE(envoy.string:PLAIN)%",
                            }
                        },
                    },
                }
            ],
        }  # fmt: skip
        listeners.append(
            {
                "name": f"c{number}",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[number + 1]}},
                "traffic_direction": "INBOUND",
                "metadata": tables.metadata("listener"),
                "filter_chains": [
                    {
                        "name": "the-chain",
                        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                    }
                ],
            }
        )
    return {
        "node": tables.NODE,
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[0]}}},
        "static_resources": {
            "listeners": listeners,
            "clusters": [tables.cluster("echo", upstream), tables.cluster("dead", ports[-1]), tables.cluster("bare", upstream, True)],
        },
    }


def own_listener(case):
    return "root" in case or "second" in case or "expressions" in case


def request(port, case, number):
    """Sends the case's request and reads until the end."""
    stream = case["stream"]
    lines = [f"{stream.get('method', 'GET')} {stream.get('path', '/')} HTTP/1.1"]
    lines += ["host: test.example:81", f"x-case: {number}"]
    for key, header in (("script", "x-script"), ("second", "x-script-2")):
        if key in case:
            lines.append(f"{header}: {encode(case[key], number).hex()}")
    lines += [*stream.get("headers", []), "connection: close"]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(("\r\n".join(lines) + "\r\n\r\n" + stream.get("body", "")).encode("latin1"))
            answer = b""
            while data := client.recv(1 << 16):
                answer += data
    except OSError as error:
        return f"failed: {error}"
    return answer.split(b"\r\n")[0].decode("latin1") or "nothing"


def run(name, command, cases, ports, upstream, work):
    """Gives what one proxy did of each case, as a flat table."""
    folder = work / name
    folder.mkdir()
    places = {n: n + 1 if own_listener(c) else 1 for n, c in enumerate(cases, 1)}
    listening = [ports[1], *(ports[place] for place in sorted(set(places.values())))]
    file = folder / "envoy.json"
    file.write_text(json.dumps(bootstrap(cases, ports, upstream, folder / "access.log")))
    output = folder / "output.txt"
    # Addresses of loopback alone; nothing of the machine's environment changes what is compared.
    arguments = [
        *command, "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error",
        "--component-log-level", "wasm:info", "--log-format", "@%l %v", "--file-flush-interval-msec", "100",
    ]  # fmt: skip
    with open(output, "w") as sink:
        process = subprocess.Popen(arguments, stdout=sink, stderr=sink, cwd=folder)
        answers = {}
        try:
            until = time.monotonic() + 120
            while not all(accepts(port) for port in listening):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{name} did not start: {output.read_text()[-3000:]}")
                time.sleep(0.1)
            for number, case in enumerate(cases, 1):
                if "stream" in case:
                    answers[number] = request(ports[places[number]], case, number)
            time.sleep(SETTLE)
            died = process.poll()
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    lines = {}
    for line in output.read_text(encoding="latin1").splitlines():
        if match := LINE.match(line):
            lines.setdefault(int(match[1]), []).append(match[2])
    logs = {}
    access = folder / "access.log"
    for line in access.read_text().splitlines() if access.exists() else []:
        record = json.loads(line)
        logs[int(record.pop("case"))] = record
    results = {"process": {"died": died}}
    for number, case in enumerate(cases, 1):
        flat = {"answer": answers.get(number)}
        flat |= {f"log.{key}": value for key, value in logs.get(number, {}).items() if case.get("logged")}
        said = lines.get(number, [])
        if "root" in case:
            # Envoy configures a canary and a VM for its main thread, too.
            said = list(dict.fromkeys(said))
        for line in said:
            head, _, given = line.partition(" |")
            phase = head.split()[1] if not head.startswith("Broot") else "root"
            mark = ("second." if line.startswith("B") else "") + phase
            script = case["second"] if line.startswith("B") else case.get("script", {}) | case.get("root", {})
            named = names(script.get(phase, (0, []))[1])
            results_of = [plain(value) for value in given.split()]
            if "expressions" in case:
                evaluated(flat, case["expressions"], phase, results_of)
                continue
            for name_, value in zip(named, results_of):
                flat[f"{mark}:{name_}"] = value
            if len(named) != len(results_of):
                flat[f"{mark}:count"] = f"{len(results_of)} of {len(named)}"
        results[case["id"]] = flat
    return results


def evaluated(flat, texts, phase, results):
    """By expression instead of token: which one an expression has is what its creation gave."""
    if phase == "request_headers":
        # The first one sets a property.
        for text, value in zip(texts, results[1:]):
            flat[f"create {text}"] = ":".join(value.split(":")[:2])
            flat.setdefault("tokens", []).append(value.split(":")[2])
        results = results[1 + len(texts) :]
    for text, token in zip(texts, flat.get("tokens", [])):
        number = int.from_bytes(urllib.parse.unquote_to_bytes(token)[:4], "little") if token not in "-" else None
        token_is_good = number is not None and number < len(results)
        flat[f"{phase} {text}"] = results[number] if token_is_good and flat[f"create {text}"] == "38:0" else None


def plain(value):
    """Without ports. Entries of maps come in no order: a long value is compared as a bag of bytes."""
    value = re.sub(r"(127\.0\.0\.1:)\d+", r"\1@", value)
    parts = value.split(":", 2)
    if len(parts) == 3 and len(parts[2]) > 60:
        data = urllib.parse.unquote_to_bytes(parts[2])
        parts[2] = f"{len(data)} bytes, sorted: " + "".join(map(chr, sorted(data))).encode("unicode_escape").decode()
    return ":".join(parts)


def names(operations):
    """A name for each operation of a phase: what it is called with, and its turn where that is not the first."""
    seen, out = {}, []
    for call, *arguments in operations:
        shown = ",".join(show(a) for a in arguments if isinstance(a, (str, bytes, int)))
        text = shown if call == "get_property" else f"{call}({shown})"
        seen[text] = seen.get(text, 0) + 1
        out.append(text if seen[text] == 1 else f"{text}#{seen[text]}")
    return out


def show(argument):
    if isinstance(argument, bytes):
        argument = argument.decode("latin1")
    text = str(argument).replace("\0", ".")
    text = text if text.isprintable() else urllib.parse.quote(text, safe=" .,:/=<>()[]'\"")
    return text if len(text) < 90 else text[:60] + "…" + text[-25:]


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Deviations:
    """Wanted differences: `case-glob field-glob reason`, one a line; blanks in globs are written `?`."""

    def __init__(self, path):
        self.rules = []
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.strip() and not line.startswith("#"):
                self.rules.append([*line.split(None, 2), 0])

    def allows(self, case, field):
        for rule in self.rules:
            if fnmatch.fnmatchcase(case, rule[0]) and fnmatch.fnmatchcase(field, rule[1]):
                rule[3] += 1
                return True
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases to run")
    parser.add_argument("--envoy", default=os.environ.get("ENVOY", "envoy"))
    parser.add_argument("--plenipo", default=os.environ.get("PLENIPO", str(ROOT / "target/release/plenipo")))
    parser.add_argument("--self", action="store_true", help="compare Envoy with itself")
    parser.add_argument("--keep", action="store_true", help="keep configurations, logs and outputs")
    parser.add_argument("--record", metavar="FILE", help="write what Envoy did, as JSON")
    parser.add_argument("--expected", metavar="FILE", help="compare with what --record wrote, without an Envoy")
    parser.add_argument("-v", "--verbose", action="store_true", help="show listed differences, too")
    options = parser.parse_args()
    cases = [c for c in tables.cases() if not options.only or any(fnmatch.fnmatchcase(c["id"], g) for g in options.only)]
    if not cases:
        raise SystemExit("no such case")
    deviations = Deviations(HERE / "attribute_deviations.txt")
    work = pathlib.Path(tempfile.mkdtemp(prefix="attributes-"))
    started = time.monotonic()
    upstream = Upstream().port
    # The administration's, the shared listener's, the cases' own, and one that nothing ever listens on.
    ports = free_ports(len(cases) + 3)
    if options.expected:
        theirs = json.loads(pathlib.Path(options.expected).read_text())
        theirs = {id: theirs.get(id, {}) for id in ["process", *(case["id"] for case in cases)]}
    else:
        theirs = run("envoy", [options.envoy], cases, ports, upstream, work)
    if options.record:
        pathlib.Path(options.record).write_text(json.dumps(theirs, indent=1) + "\n")
    command = [options.envoy] if options.self else [str(pathlib.Path(options.plenipo).resolve())]
    ours = run("envoy2" if options.self else "plenipo", command, cases, ports, upstream, work)
    compared, differ, listed = 0, 0, 0
    for case in theirs:
        shown = False
        for field in sorted(theirs[case].keys() | ours[case].keys()):
            left, right = theirs[case].get(field), ours[case].get(field)
            compared += 1
            if left == right:
                continue
            allowed = not options.self and deviations.allows(case, field)
            differ, listed = differ + (not allowed), listed + allowed
            if allowed and not options.verbose:
                continue
            if not shown:
                print(f"== {case}")
                shown = True
            print(f"  {field}\n      envoy: {left}\n    plenipo: {right}")
    for case, field, reason, used in deviations.rules:
        if not used and not options.self and not options.only:
            print(f"  unused deviation: {case} {field} {reason}")
    took = time.monotonic() - started
    print(f"attributes: {len(cases)} cases, {compared} values, {differ} differ, {listed} listed differences, {took:.1f} s")
    if options.keep:
        print(f"kept in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
