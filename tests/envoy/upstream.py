"""The upstream of the differential tests: answers with what it saw, or misbehaves as the path asks.

An answer's body is JSON: the request line, the headers in order and with their case, the body, the trailers.
"""

import asyncio
import json
import socket
import struct
import threading
import urllib.parse


class Upstream:
    """A server on a port of its own, in a thread of its own. `serve(reader, writer)` has a connection."""

    def __init__(self, serve=None):
        self.serve_connection = serve or connection
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        if not ready.wait(10):
            raise RuntimeError("the upstream did not start")

    def _run(self, ready):
        asyncio.set_event_loop(self.loop)

        async def start():
            server = await asyncio.start_server(self.serve_connection, "127.0.0.1", 0, limit=1 << 22)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            async with server:
                await server.serve_forever()

        self.loop.run_until_complete(start())


async def connection(reader, writer):
    await each_exchange(exchange, reader, writer)


async def each_exchange(exchange, reader, writer):
    """Exchange after exchange, until one says that it was the last, or the peer goes."""
    try:
        while await exchange(reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
        pass
    finally:
        writer.close()


async def read_headers(reader):
    headers = []
    while True:
        line = await reader.readline()
        if line in (b"\r\n", b"\n", b""):
            return headers
        name, _, value = line.decode("latin1").rstrip("\r\n").partition(":")
        headers.append([name, value.strip()])


async def read_body(reader, fields):
    body, trailers = b"", []
    if fields.get("transfer-encoding", "").lower() == "chunked":
        while True:
            size = int((await reader.readline()).split(b";")[0], 16)
            if size == 0:
                trailers = await read_headers(reader)
                break
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    return body, trailers


def reset(writer):
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# Fixed answers by path: the bytes, and whether the connection goes on.
FIXED = {
    "/garbage": (b"this is not http\r\n\r\n", False),
    "/clte": (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", True),
    "/badcl": (b"HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\n", False),
    "/http10": (b"HTTP/1.0 200 OK\r\n\r\nold", False),
    "/nolength": (b"HTTP/1.1 200 OK\r\n\r\nuntil close", False),
    "/chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n3\r\nabc\r\n0\r\nx-t: v\r\n\r\n",
        True,
    ),
    "/connclose": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", False),
    "/1xx": (
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        True,
    ),
    "/100": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", True),
    "/204": (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "/304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", True),
}


async def say(send, body, query):
    """The request's body comes back: of the media type `type`; with `pieces`, chunked in so many; with `trailer`, one at its end."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: %s\r\n" % query.get("type", "application/json")
    if "pieces" not in query:
        await send(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        return
    await send(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
    size = max(1, -(-len(body) // int(query["pieces"])))
    for at in range(0, len(body), size):
        await asyncio.sleep(0.03)
        piece = body[at : at + size]
        await send(b"%x\r\n%s\r\n" % (len(piece), piece))
    await send(b"0\r\n" + (b"x-t: v\r\n" if "trailer" in query else b"") + b"\r\n")


RICH = (
    b"Server: upstream/1\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Envoy-Foo: 1\r\n"
    b"x-envoy-upstream-service-time: 999\r\nVia: 1.1 up\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n"
    b"Proxy-Connection: x\r\nX-Powered-By: py\r\nX-CamelCase: Yes\r\n"
)


def asked(text):
    """What `x-answer` asks for, a query string: `status`, `h` and `t` (headers and trailers, `name:value`, repeated), `chunked`."""
    wanted = urllib.parse.parse_qs(text, keep_blank_values=True)
    pairs = {kind: [tuple(pair.split(":", 1)) for pair in wanted.get(kind, [])] for kind in "ht"}
    return int(wanted.get("status", ["200"])[0]), pairs["h"], pairs["t"], "chunked" in wanted


def as_asked(method, wanted, out):
    """Such an answer with `out` as its body, in HTTP/1."""
    status, headers, trailers, chunked = wanted
    if not any(name == "content-type" for name, _ in headers):
        headers = [("content-type", "application/json"), *headers]
    head = b"HTTP/1.1 %d X\r\n" % status + b"".join(f"{name}: {value}\r\n".encode("latin1") for name, value in headers)
    if status in (204, 304):
        return head + b"\r\n"
    if not chunked and not trailers:
        return head + b"content-length: %d\r\n\r\n" % len(out) + (b"" if method == "HEAD" else out)
    if method == "HEAD":
        return head + b"transfer-encoding: chunked\r\n\r\n"
    ends = b"".join(f"{name}: {value}\r\n".encode("latin1") for name, value in trailers)
    return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(out), out, ends)


async def exchange(reader, writer):
    """One request and its answer. False: the connection ends."""
    line = (await reader.readline()).decode("latin1")
    if not line:
        return False
    line = line.rstrip("\r\n")
    if not line:
        return True
    headers = await read_headers(reader)
    fields = {name.lower(): value for name, value in headers}
    method, target, _ = (line.split(" ") + ["", ""])[:3]
    url = urllib.parse.urlsplit(target)
    query = dict(urllib.parse.parse_qsl(url.query))
    path = url.path

    async def send(data):
        writer.write(data)
        await writer.drain()

    if path == "/early413":
        await send(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbig\n")
        # To close with the body unread would be a reset, and chance which of the two the proxy sees.
        writer.write_eof()
        try:
            await asyncio.wait_for(reader.read(), 1)
        except (TimeoutError, asyncio.TimeoutError, ConnectionError):
            pass
        return False
    if path == "/continue":
        await send(b"HTTP/1.1 100 Continue\r\nx-up: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
    body, trailers = await read_body(reader, fields)
    if path == "/close":
        return False
    if path == "/rst":
        reset(writer)
        return False
    if path == "/hang":
        await asyncio.sleep(3600)
    if path == "/slow":
        await asyncio.sleep(float(query.get("s", "1")))
    if path in ("/partial", "/partialrst", "/halfhang"):
        await send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await asyncio.sleep(3600 if path == "/halfhang" else 0.05)
        if path == "/partialrst":
            reset(writer)
        return False
    if path == "/bighdr":
        big = b"a" * int(query.get("n", "70000"))
        await send(b"HTTP/1.1 200 OK\r\nx-big: " + big + b"\r\ncontent-length: 0\r\n\r\n")
        return True
    if path == "/manyhdr":
        many = b"".join(b"x-h%d: 1\r\n" % n for n in range(int(query.get("n", "150"))))
        await send(b"HTTP/1.1 200 OK\r\n" + many + b"content-length: 0\r\n\r\n")
        return True
    if path == "/101":
        await send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n")
        while data := await reader.read(4096):
            await send(data)
        return False
    if path in FIXED:
        data, go_on = FIXED[path]
        await send(data)
        return go_on
    if path == "/say":
        await say(send, body, query)
        return True
    status = int(path.split("/")[2]) if path.startswith("/status/") else 200
    extra = b""
    if path == "/hdrs":
        extra = RICH
    # `rh=name:value`, repeated: headers of the answer.
    for name_value in urllib.parse.parse_qs(url.query).get("rh", []):
        extra += name_value.encode("latin1").replace(b":", b": ", 1) + b"\r\n"
    seen = {
        "request": line,
        "headers": headers,
        "body": body.decode("latin1")[:2000],
        "body_len": len(body),
        "trailers": trailers,
    }
    out = json.dumps(seen).encode() + b"\n"
    if "x-answer" in fields:
        await send(as_asked(method, asked(fields["x-answer"]), out))
        return fields.get("connection", "").lower() != "close"
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
    await send(head % (status, extra, len(out)) + (b"" if method == "HEAD" else out))
    return fields.get("connection", "").lower() != "close"
