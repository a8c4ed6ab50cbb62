#!/usr/bin/env python3
"""Delivery of plugins against the binary: registries and web servers that are good, slow, dead, lying, huge or elsewhere.

    run.py [--proxy target/release/plenipo] [--only NAME,NAME] [--keep]

Each row gives one source to two listeners at once: to one by ECDS, to the other in the listener itself (LDS), both under
FAIL_CLOSED. Clients ask all the while; a request that fails, or is answered without a plugin, fails the row. The exit
status is 1 where a row fails. Needs `docker-registry`, `openssl` and `perl`, and the guests of `cargo test --test it guests`.
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ports import free_port
GUEST = ROOT / "target" / "tmp" / "guests" / "add-header.wasm"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
WASM = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
SETTINGS = "type.googleapis.com/plenipo.extensions.wasm.v1.WasmSettings"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
EXTENSION = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
WAYS = ("ecds", "lds")
RUN = str(time.time_ns())


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def until(what, look, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def module(mark):
    """A plugin that adds `x-guest: MARK`; no other run has these bytes."""
    code = GUEST.read_bytes()
    assert code.count(b"x-guest1") == 1
    unique = f"delivery {RUN} {mark}".encode()
    section = bytes([len(unique)]) + unique
    return code.replace(b"x-guest1", b"x-guest" + mark.encode()) + b"\0" + bytes([len(section)]) + section


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def layer_of_files(code):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        entry = tarfile.TarInfo("plugin.wasm")
        entry.size = len(code)
        tar.addfile(entry, io.BytesIO(code))
    return out.getvalue()


def image(layers):
    """Manifest and blobs of an image of `layers`: (media type, content) each."""
    blobs = {"sha256:" + sha256(content): content for _, content in layers}
    config = b"{}"
    blobs["sha256:" + sha256(config)] = config
    descriptor = lambda kind, content: {"mediaType": kind, "digest": "sha256:" + sha256(content), "size": len(content)}
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor(kind, content) for kind, content in layers],
    }
    return json.dumps(manifest).encode(), blobs


LAYOUTS = {
    "compat": lambda code: [("application/vnd.oci.image.layer.v1.tar+gzip", layer_of_files(code))],
    "solo": lambda code: [("application/vnd.module.wasm.config.v1+json", b"{ }"), ("application/vnd.module.wasm.content.layer.v1+wasm", code)],
    "cncf": lambda code: [("application/wasm", code)],
}


# ---------------------------------------------------------------------------------------------------------------------
# The registry that Debian ships
# ---------------------------------------------------------------------------------------------------------------------


class Registry:
    def __init__(self, folder, password=None):
        self.folder, self.password, self.port = folder, password, free_port()
        self.host = f"127.0.0.1:{self.port}"
        folder.mkdir()
        auth = ""
        if password:
            salted = subprocess.run(["perl", "-e", "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')", password],
                                    check=True, capture_output=True, text=True).stdout
            (folder / "htpasswd").write_text(f"me:{salted}\n")
            auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        (folder / "config.yml").write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: {self.host}}}\n{auth}")
        self.process = None

    def start(self):
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(["docker-registry", "serve", self.folder / "config.yml"], stdout=self.log, stderr=self.log)
        until("the registry answers", self.answers)

    def answers(self):
        with contextlib.suppress(OSError):
            return self.ask("GET", "/v2/")[0] in (200, 401)
        return False

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def ask(self, method, target, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = dict(headers)
        if self.password:
            headers["authorization"] = "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.headers

    def push(self, repository, tag, layers):
        manifest, blobs = image(layers)
        for digest, content in blobs.items():
            status, headers = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
            assert status == 202, status
            target = headers["location"].split(self.host, 1)[-1]
            target += ("&" if "?" in target else "?") + f"digest={digest}"
            status, _ = self.ask("PUT", target, content, {"content-type": "application/octet-stream"})
            assert status == 201, status
        status, _ = self.ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, {"content-type": OCI_MANIFEST})
        assert status == 201, status
        return sha256(manifest)


# ---------------------------------------------------------------------------------------------------------------------
# Sources over TLS that behave badly
# ---------------------------------------------------------------------------------------------------------------------


class Sources:
    """`/v2/<name>/…` is the image `name`, `/code/<name>` its module; how they behave is in `behaviours[name]`."""

    def __init__(self, folder, trap):
        self.images, self.codes, self.behaviours, self.moves = {}, {}, {}, {}
        self.trap = trap
        self.port = free_port()
        self.host = f"localhost:{self.port}"
        self.ca = folder / "ca.pem"
        # A certificate that vouches for itself is refused as that of a server: an authority of our own signs one.
        run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=delivery test",
            "-keyout", "ca.key", "-out", "ca.pem")
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem")
        (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        run("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "extensions", "-out", "cert.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        sources = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def log_message(self, *_):
                pass

            def do_GET(self):
                with contextlib.suppress(OSError):
                    sources.answer(self)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, name, code, behaviour="good", layers=None):
        self.images[name] = image(layers or LAYOUTS["compat"](code))
        self.codes[name] = code
        self.behaviours[name] = behaviour
        return sha256(self.images[name][0])

    def answer(self, request):
        path = request.path.split("?")[0]
        parts = path.strip("/").split("/")
        name = parts[1]
        behaviour = self.behaviours.get(name, "missing")
        if parts[0] == "v2":
            manifest, blobs = self.images[name]
            body = manifest if parts[2] == "manifests" else blobs[parts[3]]
            is_code = parts[2] == "blobs"
        else:
            body, is_code = self.codes.get(name), True
        send = lambda status, body=b"", **headers: self.send(request, status, body, headers)
        if behaviour == "missing":
            return send(404)
        if behaviour == "broken":
            return send(500)
        if behaviour.startswith("realm "):
            return send(401, www_authenticate=f'Bearer realm="{behaviour[6:]}",service="x"')
        if behaviour == "hang":
            time.sleep(8)
            return None
        if behaviour == "loop":
            return send(302, location=request.path)
        if behaviour.startswith("redirect ") and is_code:
            return send(307, location=behaviour[9:])
        if behaviour == "elsewhere" and is_code and "again" not in request.path:
            return send(307, location=request.path + "?again")
        if behaviour == "lying" and is_code:
            return send(200, body + b"\0")
        if behaviour == "lying manifest":
            return send(200, body + b" ")
        if behaviour == "short" and is_code:
            return self.send(request, 200, body[: len(body) // 2], {}, announced=len(body))
        if behaviour == "huge" and is_code:
            return send(200, body, pad=80 << 20)
        if behaviour == "slow" and is_code:
            return send(200, body, slow=True)
        if behaviour == "moving" and not is_code:
            # Whoever has read the manifest finds the tag moved before the layer is there.
            self.images[name] = (self.moves[name][0], {**blobs, **self.moves[name][1]})
        return send(200, body)

    def send(self, request, status, body, headers, announced=None):
        pad, slow = headers.pop("pad", 0), headers.pop("slow", False)
        request.send_response(status)
        if pad:
            request.send_header("transfer-encoding", "chunked")
        else:
            request.send_header("content-length", str(len(body) if announced is None else announced))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        if announced is not None:
            request.close_connection = True
        request.end_headers()
        if pad:
            chunk = bytes(1 << 20)
            for _ in range(pad >> 20):
                request.wfile.write(b"100000\r\n" + chunk + b"\r\n")
            request.wfile.write(b"0\r\n\r\n")
        elif slow:
            step = max(1, len(body) // 10)
            for at in range(0, len(body), step):
                request.wfile.write(body[at : at + step])
                request.wfile.flush()
                time.sleep(0.2)
        else:
            request.wfile.write(body)


class Trap:
    """Where nobody is to be sent: it counts who comes."""

    def __init__(self):
        self.hits = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            self.hits += 1
            connection.close()


def upstream():
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


# ---------------------------------------------------------------------------------------------------------------------
# The proxy
# ---------------------------------------------------------------------------------------------------------------------


def remote(uri, digest="nil", timeout="3s"):
    return {"remote": {
        "http_uri": {"uri": uri, "cluster": "_", "timeout": timeout}, "sha256": digest,
        "retry_policy": {"num_retries": 1, "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.3s"}},
    }}


class Proxy:
    def __init__(self, args, folder, up, ca, insecure):
        self.args, self.folder, self.ca = args, folder, ca
        self.ports = {way: free_port() for way in WAYS}
        self.admin = free_port()
        self.cache = folder / "cache"
        self.version = 0
        (folder / "bootstrap.json").write_text(json.dumps({
            "node": {"id": "delivery", "cluster": "delivery"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": self.admin}}},
            "bootstrap_extensions": [{"name": "wasm", "typed_config": {"@type": SETTINGS, "insecure_registries": insecure}}],
            "dynamic_resources": {"lds_config": {"path_config_source": {"path": str(folder / "lds.json")}}},
            "static_resources": {"clusters": [{"name": "up", "connect_timeout": "1s", "load_assignment": {
                "cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                    "socket_address": {"address": "127.0.0.1", "port_value": up}}}}]}]}}]},
        }))

    def wasm(self, way, code, variables):
        return {"@type": WASM, "config": {"name": f"by-{way}", "failure_policy": "FAIL_CLOSED", "vm_config": {
            "vm_id": way, "code": code,
            "environment_variables": {"key_values": {f"ISTIO_META_WASM_{name}": value for name, value in variables.items()}},
        }}}

    def listener(self, way, plugin):
        return {
            "@type": LISTENER, "name": way,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.ports[way]}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": HCM, "stat_prefix": way,
                "http_filters": [{"name": "plugin", **plugin}, {"name": "router", "typed_config": {"@type": ROUTER}}],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]},
            }}]}],
        }

    def write(self, name, resources):
        partial = self.folder / "partial"
        partial.write_text(json.dumps({"version_info": str(self.version), "resources": resources}))
        partial.rename(self.folder / name)

    def want(self, code, **variables):
        """Gives this source to both listeners."""
        self.version += 1
        by_ecds = {"@type": EXTENSION, "name": "plugin", "typed_config": self.wasm("ecds", code, variables)}
        self.write("ecds.json", [by_ecds])
        discovery = {"config_discovery": {"type_urls": [WASM], "config_source": {
            "path_config_source": {"path": str(self.folder / "ecds.json")}}}}
        self.write("lds.json", [
            self.listener("ecds", discovery),
            self.listener("lds", {"typed_config": self.wasm("lds", code, variables)}),
        ])

    def start(self):
        env = {**os.environ, "PLENIPO_CACHE_DIR": str(self.cache), "SSL_CERT_FILE": str(self.ca), "DOCKER_CONFIG": str(self.folder)}
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            [self.args.proxy, "-c", self.folder / "bootstrap.json", "--concurrency", "2", "--drain-time-s", "1"],
            env=env, stdout=self.log, stderr=self.log)
        until("the admin page answers", lambda: self.plugins() is not None)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def plugins(self):
        assert self.process.poll() is None, f"the proxy has ended: {self.process.returncode}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/wasm?format=json", timeout=5) as page:
                page = json.load(page)
                return page["plugins"] if isinstance(page, dict) else page
        return None

    def mark(self, way):
        """The status of an answer, and the mark of the plugin that it passed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[way], timeout=10)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            return response.status, response.headers.get("x-guest")
        except (OSError, http.client.HTTPException):
            return None, None
        finally:
            connection.close()

    def serves(self, mark, seconds=20):
        for way in WAYS:
            until(f"{mark} serves by {way}", lambda: self.mark(way)[1] == mark, seconds)

    def told(self, origin, text):
        """The state of the versions of this origin, once both tell this."""
        def both():
            states = [plugin["state"] for plugin in self.plugins() or []
                      if plugin["origin"] == origin and any(text in step["detail"] for step in plugin["history"])]
            return states if len(states) >= len(WAYS) else None
        return until(f"{origin}: {text}", both)


class Load:
    """Clients that ask without pause, on connections that last."""

    def __init__(self, proxy):
        self.proxy, self.stopping, self.lock = proxy, False, threading.Lock()
        self.clear()
        self.threads = [threading.Thread(target=self.run, args=(way,), daemon=True) for way in WAYS for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def clear(self):
        with self.lock:
            self.sent, self.failed, self.bare, self.examples = 0, 0, 0, []

    def run(self, way):
        connection = None
        while not self.stopping:
            error, mark = None, None
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.proxy.ports[way], timeout=10)
                    connection.connect()
                    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.request("GET", "/")
                response = connection.getresponse()
                body, mark = response.read(), response.headers.get("x-guest")
                if response.status != 200 or body != b"ok":
                    error = f"{way}: {response.status} {body!r}"
                if response.will_close:
                    connection = None
            except (OSError, http.client.HTTPException) as failure:
                error, connection = f"{way}: {failure!r}", None
            with self.lock:
                self.sent += 1
                if error:
                    self.failed += 1
                    self.examples.append(error)
                elif mark is None:
                    self.bare += 1
            time.sleep(0.002)

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# The rows
# ---------------------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, args):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="delivery-"))
        self.trap = Trap()
        self.registry = Registry(self.folder / "open")
        self.closed = Registry(self.folder / "closed", "right")
        self.dead = f"127.0.0.1:{free_port()}"
        self.sources = Sources(self.folder, self.trap)
        insecure = [self.registry.host, self.closed.host, self.dead]
        self.proxy = Proxy(args, self.folder, upstream(), self.sources.ca, insecure)
        self.registry.start()
        self.closed.start()
        self.marks = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
        self.home()

    def home(self):
        """The good source that rows begin with and that serves through what is bad."""
        self.good = next(self.marks)
        self.registry.push("home", self.good.lower() + RUN, LAYOUTS["cncf"](module(self.good)))
        self.home_uri = f"oci://{self.registry.host}/home:{self.good.lower()}{RUN}"

    def go_home(self):
        self.proxy.want(remote(self.home_uri))
        self.proxy.serves(self.good)

    def close(self, keep):
        with contextlib.suppress(ProcessLookupError):
            self.proxy.stop()
        self.registry.stop()
        self.closed.stop()
        if keep:
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def goes_live(world, code, mark, **variables):
    world.proxy.want(code, **variables)
    world.proxy.serves(mark)


def bad_then_good(world, name, behaviour, text, uri=None, digest="nil", hopeless=False, layers=None):
    """A bad source is told of and costs nothing; when it is mended the version goes live by itself."""
    mark = next(world.marks)
    world.sources.put(name, module(mark), behaviour, layers)
    uri = uri or f"oci://{world.sources.host}/{name}:1"
    world.proxy.want(remote(uri, digest, "2s"))
    states = world.proxy.told(uri, text)
    time.sleep(0.3)
    for way in WAYS:
        status = world.proxy.mark(way)
        assert status == (200, world.good), f"{way}: {status}"
    if hopeless:
        assert set(states) == {"failed"}, states
        return
    world.sources.behaviours[name] = "good"
    world.proxy.serves(mark)


def row_layouts(world):
    for layout, layers in LAYOUTS.items():
        mark = next(world.marks)
        world.registry.push("layouts", layout, layers(module(mark)))
        goes_live(world, remote(f"oci://{world.registry.host}/layouts:{layout}"), mark)


def row_digest(world):
    for pin in ("uri", "sha256"):
        mark = next(world.marks)
        manifest = world.registry.push("pinned", pin, LAYOUTS["compat"](module(mark)))
        name = f"oci://{world.registry.host}/pinned"
        code = remote(f"{name}@sha256:{manifest}") if pin == "uri" else remote(f"{name}:{pin}", manifest)
        goes_live(world, code, mark)


def row_password(world):
    mark = next(world.marks)
    world.closed.push("secret", "v1", LAYOUTS["compat"](module(mark)))
    uri = f"oci://{world.closed.host}/secret:v1"
    config = lambda password: json.dumps({"auths": {world.closed.host: {"auth": base64.b64encode(f"me:{password}".encode()).decode()}}})
    world.proxy.want(remote(uri))
    world.proxy.told(uri, "not authorized")
    world.proxy.want(remote(uri), IMAGE_PULL_SECRET=config("wrong"))
    world.proxy.told(uri, "the credentials are refused")
    world.proxy.want(remote(uri), IMAGE_PULL_SECRET="")
    world.proxy.told(uri, "the pull secret is missing")
    assert world.proxy.mark("ecds") == (200, world.good)
    goes_live(world, remote(uri), mark, IMAGE_PULL_SECRET=config("right"))
    for page in ("wasm", "wasm?format=json", "config_dump"):
        with urllib.request.urlopen(f"http://127.0.0.1:{world.proxy.admin}/{page}", timeout=5) as answer:
            text = answer.read().decode()
        for password in ("right", "wrong"):
            assert base64.b64encode(f"me:{password}".encode()).decode() not in text, page
    # The same from a file of the host.
    mark = next(world.marks)
    world.closed.push("secret", "v2", LAYOUTS["cncf"](module(mark)))
    (world.folder / "config.json").write_text(config("right"))
    goes_live(world, remote(f"oci://{world.closed.host}/secret:v2"), mark)
    (world.folder / "config.json").unlink()


def row_tags(world):
    host = world.registry.host
    uri = f"oci://{host}/moves:1"
    one, two, three = (next(world.marks) for _ in range(3))
    world.registry.push("moves", "1", LAYOUTS["cncf"](module(one)))
    goes_live(world, remote(uri), one, IMAGE_PULL_POLICY="Always", PLUGIN_RESOURCE_VERSION="1")
    world.registry.push("moves", "1", LAYOUTS["compat"](module(two)))
    goes_live(world, remote(uri), two, IMAGE_PULL_POLICY="Always", PLUGIN_RESOURCE_VERSION="2")
    uri = f"oci://{host}/stays:1"
    world.registry.push("stays", "1", LAYOUTS["cncf"](module(three)))
    goes_live(world, remote(uri), three, IMAGE_PULL_POLICY="IfNotPresent", PLUGIN_RESOURCE_VERSION="1")
    world.registry.push("stays", "1", LAYOUTS["cncf"](module(next(world.marks))))
    goes_live(world, remote(world.home_uri), world.good)
    goes_live(world, remote(uri), three, IMAGE_PULL_POLICY="IfNotPresent", PLUGIN_RESOURCE_VERSION="2")


def row_mid_flight(world):
    """The tag moves between the manifest and the layer: what was resolved is what comes, and later the other."""
    one, two = next(world.marks), next(world.marks)
    world.sources.put("moving", module(one), "moving")
    world.sources.moves["moving"] = image(LAYOUTS["cncf"](module(two)))
    uri = f"oci://{world.sources.host}/moving:1"
    world.proxy.want(remote(uri), IMAGE_PULL_POLICY="Always", PLUGIN_RESOURCE_VERSION="1")
    # Whichever of the two listeners asks later finds it moved.
    for way in WAYS:
        until("one of them serves", lambda: world.proxy.mark(way)[1] in (one, two))
    world.sources.behaviours["moving"] = "good"
    goes_live(world, remote(uri), two, IMAGE_PULL_POLICY="Always", PLUGIN_RESOURCE_VERSION="2")


def row_https(world):
    url = lambda name: f"https://{world.sources.host}/code/{name}"
    mark = next(world.marks)
    world.sources.put("plain", module(mark))
    goes_live(world, remote(url("plain")), mark)
    mark = next(world.marks)
    packed = gzip.compress(module(mark))
    world.sources.put("packed", packed)
    # The sum may be that of what comes, or that of the module in it.
    goes_live(world, remote(url("packed"), sha256(packed)), mark)
    world.go_home()
    goes_live(world, remote(url("packed"), sha256(module(mark))), mark)
    mark = next(world.marks)
    world.sources.put("elsewhere", module(mark), "elsewhere")
    goes_live(world, remote(url("elsewhere"), sha256(module(mark))), mark)


def row_https_bad(world):
    for behaviour, text in (("missing", "404"), ("broken", "500"), ("hang", "not done within"), ("loop", "more than 5 redirects"),
                            ("huge", "more than 67108864 bytes")):
        name = f"direct-{behaviour}"
        bad_then_good(world, name, behaviour, text, f"https://{world.sources.host}/code/{name}")
        world.go_home()
    mark = next(world.marks)
    url = f"https://{world.sources.host}/code/direct-wrong"
    world.sources.put("direct-wrong", module("!"))
    world.proxy.want(remote(url, sha256(module(mark))))
    world.proxy.told(url, "sha256 is")
    world.proxy.serves(world.good)
    world.sources.put("direct-wrong", module(mark))
    world.proxy.serves(mark)


def row_slow(world):
    mark = next(world.marks)
    world.sources.put("slow", module(mark), "slow")
    goes_live(world, remote(f"oci://{world.sources.host}/slow:1", timeout="10s"), mark)


def row_dead(world):
    uri = f"oci://{world.dead}/a:1"
    world.proxy.want(remote(uri))
    assert set(world.proxy.told(uri, "Connection refused")) == {"fetching"}
    world.proxy.serves(world.good)


def row_lying(world):
    bad_then_good(world, "lying", "lying", "sha256 is")
    world.go_home()
    mark = next(world.marks)
    manifest = world.sources.put("lying-manifest", module(mark), "lying manifest")
    uri = f"oci://{world.sources.host}/lying-manifest@sha256:{manifest}"
    world.proxy.want(remote(uri))
    world.proxy.told(uri, "sha256 is")
    world.proxy.serves(world.good)
    world.sources.behaviours["lying-manifest"] = "good"
    world.proxy.serves(mark)


def row_broken(world):
    for behaviour, text in (("missing", "404"), ("broken", "500"), ("short", "blobs"), ("hang", "not done within")):
        bad_then_good(world, f"image-{behaviour}", behaviour, text)
        world.go_home()


def row_huge(world):
    memory = lambda: {line.split(":")[0]: int(line.split()[1]) for line in
                      pathlib.Path(f"/proc/{world.proxy.process.pid}/status").read_text().splitlines() if line.startswith("Vm")}
    before = memory()["VmRSS"]
    bad_then_good(world, "huge", "huge", "more than 67108864 bytes")
    world.go_home()
    bomb = gzip.compress(bytes(100 << 20))
    layers = [("application/vnd.oci.image.layer.v1.tar+gzip", bomb)]
    manifest = sha256(image(layers)[0])
    uri = f"oci://{world.sources.host}/bomb@sha256:{manifest}"
    bad_then_good(world, "bomb", "good", "come out of its gzip", uri, hopeless=True, layers=layers)
    # The cap, and as much again while the buffer grows.
    grown = memory()["VmHWM"] - before
    assert grown < 150 << 10, f"{grown >> 10} MiB more at the peak"


def row_sent_elsewhere(world):
    """A registry sends us to where it must not: nobody comes there."""
    before = world.trap.hits
    port = world.trap.port
    for name, behaviour, text in (
        ("to-address", f"redirect http://127.0.0.1:{port}/", "refused"),
        ("to-tls", f"redirect https://127.0.0.1:{port}/", "private address"),
        ("to-six", f"redirect https://[::ffff:127.0.0.1]:{port}/", "private address"),
        ("to-name", f"redirect https://localhost:{port}/", "no public address"),
        ("realm-plain", f"realm http://127.0.0.1:{port}/token", "refused"),
        ("realm-tls", f"realm https://127.0.0.1:{port}/token", "private address"),
        ("realm-metadata", "realm https://169.254.169.254/latest", "private address"),
        ("realm-number", f"realm https://2130706433:{port}/token", "private address"),
        ("realm-name", f"realm https://localhost:{port}/token", "no public address"),
        ("realm-loop", "loop", "more than 5 redirects"),
    ):
        bad_then_good(world, name, behaviour, text)
        world.go_home()
    assert world.trap.hits == before, "somebody came"
    mark = next(world.marks)
    world.sources.put("elsewhere-image", module(mark), "elsewhere")
    goes_live(world, remote(f"oci://{world.sources.host}/elsewhere-image:1"), mark)


def row_no_tls(world):
    """Without TLS only registries of the settings: this one speaks it, and is asked with TLS where it is not listed."""
    uri = f"oci://localhost:{world.registry.port}/home:{world.good.lower()}{RUN}"
    world.proxy.want(remote(uri))
    world.proxy.told(uri, "fetching")
    world.proxy.serves(world.good)
    url = f"http://localhost:{world.registry.port}/v2/"
    world.proxy.want(remote(url))
    assert set(world.proxy.told(url, "insecure_registries")) == {"failed"}
    world.proxy.serves(world.good)


def restart(world, load):
    """Sources are gone, this process too: what was kept serves, whatever names it."""
    results = []
    mark = next(world.marks)
    manifest = world.registry.push("kept", "v1", LAYOUTS["compat"](module(mark)))
    name = f"oci://{world.registry.host}/kept"
    cases = [(remote(f"{name}:v1"), {}), (remote(f"{name}:v1"), {"IMAGE_PULL_POLICY": "Always", "PLUGIN_RESOURCE_VERSION": "1"}),
             (remote(f"{name}@sha256:{manifest}"), {}), (remote(f"{name}:v1", manifest), {})]
    for code, variables in cases:
        goes_live(world, code, mark, **variables)
    world.registry.stop()
    for number, (code, variables) in enumerate(cases):
        world.proxy.stop()
        if number % 2:
            for entry in (world.proxy.cache / "wasm").glob("*.cwasm"):
                entry.unlink()
        world.proxy.want(code, **variables)
        begin = time.monotonic()
        world.proxy.start()
        # Until it is open nobody answers; what answers has passed the plugin.
        for way in WAYS:
            seen = until(f"{way} answers", lambda: (lambda answer: answer if answer[0] else None)(world.proxy.mark(way)))
            assert seen == (200, mark), f"{way}: {seen}"
        results.append(time.monotonic() - begin)
    world.registry.start()
    return f"answers {max(results):.1f} s after the start"


def cold_start(world, load):
    """Nothing is kept and the registry is down: nothing passes; when it is back it serves."""
    world.proxy.stop()
    world.registry.stop()
    shutil.rmtree(world.proxy.cache, ignore_errors=True)
    world.proxy.want(remote(world.home_uri))
    world.proxy.start()
    world.proxy.told(world.home_uri, "Connection refused")
    statuses = set()
    for _ in range(20):
        for way in WAYS:
            status, mark = world.proxy.mark(way)
            assert status in (None, 503) and mark is None, f"{way}: {status} {mark}"
            statuses.add(status)
        time.sleep(0.02)
    world.registry.start()
    world.proxy.serves(world.good)
    return f"until then {sorted(map(str, statuses))}"


ROWS = [
    ("layouts", "images of three layouts", row_layouts),
    ("digest", "a manifest's digest in the name, and in sha256", row_digest),
    ("password", "no, wrong, missing and right credentials", row_password),
    ("tags", "a tag that moves, under both pull policies", row_tags),
    ("mid-flight", "a tag that moves while it is fetched", row_mid_flight),
    ("slow", "a layer that takes 2 s", row_slow),
    ("dead", "nobody listens", row_dead),
    ("broken", "404, 500, a layer cut short, silence", row_broken),
    ("lying", "a layer, a manifest that is not its digest's", row_lying),
    ("huge", "80 MiB, and a gzip of 100 MiB", row_huge),
    ("elsewhere", "redirects and token servers at private addresses", row_sent_elsewhere),
    ("no-tls", "a registry without TLS that is not listed", row_no_tls),
    ("https", "code over HTTPS, bare and packed", row_https),
    ("https-bad", "404, 500, silence, loop, 80 MiB, wrong sum", row_https_bad),
]
RESTARTS = [
    ("restart", "registry down at the start, code kept", restart),
    ("cold", "registry down at the start, nothing kept", cold_start),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--proxy", type=pathlib.Path, default=ROOT / "target" / "release" / "plenipo")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs")
    args = parser.parse_args()
    only = {name for name in args.only.split(",") if name}
    missing = [tool for tool in ("docker-registry", "openssl", "perl") if not shutil.which(tool)]
    if missing or not GUEST.exists() or not args.proxy.exists():
        sys.exit(f"missing: {', '.join(missing) or args.proxy if not args.proxy.exists() else GUEST}; see tests/delivery/README.md")
    world = World(args)
    print(f"{'row':<12} {'what':<50} {'s':>5} {'asked':>7} {'failed':>6} {'bare':>5}  verdict")
    good = True
    try:
        world.proxy.want(remote(world.home_uri))
        world.proxy.start()
        world.proxy.serves(world.good)
        load = Load(world.proxy)
        for name, what, row in ROWS:
            if only and name not in only:
                continue
            begin, verdict = time.monotonic(), "ok"
            try:
                world.go_home()
                load.clear()
                row(world)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is the row's verdict
                verdict = f"{type(error).__name__}: {error}"
            with load.lock:
                sent, failed, bare, examples = load.sent, load.failed, load.bare, load.examples[:3]
            if verdict == "ok" and (failed or bare or sent == 0):
                verdict = f"requests: {examples}"
            good &= verdict == "ok"
            print(f"{name:<12} {what:<50} {time.monotonic() - begin:5.1f} {sent:7} {failed:6} {bare:5}  {verdict}", flush=True)
        load.stop()
        for name, what, row in RESTARTS:
            if only and name not in only:
                continue
            begin = time.monotonic()
            try:
                verdict = f"ok: {row(world, load)}"
            except Exception as error:  # noqa: BLE001 - as above
                verdict, good = f"{type(error).__name__}: {error}", False
            print(f"{name:<12} {what:<50} {time.monotonic() - begin:5.1f} {'':7} {'':6} {'':5}  {verdict}", flush=True)
    finally:
        world.close(args.keep or not good)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
