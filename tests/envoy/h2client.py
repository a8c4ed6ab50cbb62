"""An HTTP/2 client for the differential tests: it sends what it is told, right or wrong, and records what comes back.

Frames are made by hand, since a library would refuse to send most of what is worth sending; only header blocks are coded by
one (`hpack`).
"""

import socket
import struct
import time

try:
    import hpack
except ImportError as error:
    raise SystemExit("the differential tests need hpack: pip install hpack==4.2.0") from error

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
ACK = 0x1


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


class Stream:
    """What came back on one stream."""

    def __init__(self):
        self.heads = []
        self.body = b""
        self.end = None

    def outcome(self):
        final = [head for head in self.heads if not status_of(head).startswith("1")]
        return {
            "interim": [status_of(head) for head in self.heads if status_of(head).startswith("1")],
            "head": final[0] if final else None,
            "trailers": final[1] if len(final) > 1 else [],
            "body": self.body.decode("latin1"),
            "end": self.end or "open",
        }


def status_of(head):
    return next((value for name, value in head if name == ":status"), "")


class Connection:
    """One connection from a given loopback address."""

    def __init__(self, port, address, timeout, settings):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))
        self.deadline = time.monotonic() + timeout
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 24
        self.buffer = b""
        self.unsent = b""
        self.streams = {}
        self.goaway = None
        self.closed = None
        self.block = None
        # Room for every answer, so that flow control is no part of a case that does not ask for it.
        settings = {4: (1 << 31) - 1} | settings
        self.send(PREFACE + frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", *pair) for pair in settings.items())))
        if 4 not in settings or settings[4] > 65535:
            self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 30))))

    def send(self, data):
        """Frames go out together when the client next waits: whether the proxy saw a head without its body is no chance."""
        self.unsent += data

    def flush(self):
        data, self.unsent = self.unsent, b""
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def headers(self, stream, headers, end=False, more=b"", raw=None):
        """A header block; `raw` is one that is coded already. Pieces over a frame's size go on in CONTINUATION frames."""
        block = raw if raw is not None else b"".join(literal(name, value) for name, value in headers)
        self.streams.setdefault(stream, Stream())
        flags = END_STREAM if end else 0
        first, rest = block[:16384], block[16384:]
        out = frame(HEADERS, flags | (0 if rest else END_HEADERS), stream, first)
        while rest:
            piece, rest = rest[:16384], rest[16384:]
            out += frame(9, 0 if rest else END_HEADERS, stream, piece)
        self.send(out + more)

    def data(self, stream, text, end=False):
        body = text.encode("latin1")
        pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)] or [b""]
        for piece in pieces:
            self.send(frame(DATA, END_STREAM if end and piece is pieces[-1] else 0, stream, piece))

    def read(self, until, limit=None):
        """Sends what is unsent, and handles frames until `until()` holds, the connection ends, or time is over."""
        self.flush()
        deadline = min(self.deadline, time.monotonic() + limit) if limit else self.deadline
        while not until() and not self.closed:
            while len(self.buffer) >= 9:
                length = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) < 9 + length:
                    break
                kind, flags = self.buffer[3], self.buffer[4]
                stream = int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF
                payload, self.buffer = self.buffer[9 : 9 + length], self.buffer[9 + length :]
                self.handle(kind, flags, stream, payload)
            self.flush()
            if until():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return
            except OSError:
                # Whether a close is a reset depends on what was still unread.
                self.closed = "closed"
                return
            if not data:
                self.closed = "closed"
                return
            self.buffer += data

    def handle(self, kind, flags, number, payload):
        stream = self.streams.get(number)
        if kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & PRIORITY:
                payload = payload[5:]
            self.block = payload
            self.block_flags = flags
        elif kind == 9:
            self.block += payload
        elif kind == DATA and stream:
            stream.body += payload
            if flags & END_STREAM:
                stream.end = "end"
        elif kind == RST_STREAM and stream:
            code = int.from_bytes(payload, "big")
            # After the end, NO_ERROR says that the rest of the request is not wanted: whether it was still on its way is chance.
            if not (stream.end and code == 0):
                stream.end = f"{stream.end}, reset {code}" if stream.end else f"reset {code}"
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        if kind in (HEADERS, 9) and flags & END_HEADERS:
            head = [(text(name), text(value)) for name, value in self.decoder.decode(self.block, raw=True)]
            if stream:
                stream.heads.append(head)
                if self.block_flags & END_STREAM:
                    stream.end = "end"


def text(value):
    return value if isinstance(value, str) else bytes(value).decode("latin1")


def literal(name, value):
    """A field without indexing, exactly as given: an encoder of a library would lower its case or index it."""
    name, value = name.encode("latin1"), value.encode("latin1")
    return b"\x00" + integer(len(name)) + name + integer(len(value)) + value


def integer(value):
    if value < 127:
        return bytes([value])
    out, value = b"\x7f", value - 127
    while value >= 128:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def steps_of(case):
    """A case's steps; a plain request is short for them."""
    plan = case["h2"]
    if isinstance(plan, list):
        return plan
    headers, body, trailers = plan["headers"], plan.get("body"), plan.get("trailers")
    steps = [["headers", 1, headers, body is None and not trailers]]
    if body is not None:
        steps.append(["data", 1, body, not trailers])
    if trailers:
        steps.append(["headers", 1, trailers, True])
    return steps


def run(port, case, address):
    """Plays a case; the outcome as a table that JSON could hold."""
    try:
        connection = Connection(
            port, address, case.get("timeout", 6), {int(k): v for k, v in case.get("settings", {}).items()}
        )
    except OSError as error:
        return {"connection": f"none: {error}"}
    for step, *arguments in steps_of(case):
        if step == "headers":
            number, headers, end = arguments
            connection.headers(number, [(n, v * repeat) for n, v, repeat in widened(headers)], end)
        elif step == "data":
            number, body, end = arguments
            connection.data(number, body, end)
        elif step == "rst":
            number, code = arguments
            connection.send(frame(RST_STREAM, 0, number, struct.pack("!I", code)))
        elif step == "frame":
            kind, flags, number, payload = arguments
            connection.send(frame(kind, flags, number, bytes.fromhex(payload)))
        elif step == "wait":
            connection.read(lambda: False, arguments[0])
        elif step == "until":
            connection.read(lambda: connection.streams[arguments[0]].end)
        else:
            raise ValueError(f"no such step: {step}")
    waits = case.get("ends", True)
    connection.read(lambda: waits and all(stream.end for stream in connection.streams.values()), case.get("limit"))
    if all(stream.end for stream in connection.streams.values()):
        # Does it stay open? Envoy closes a broken connection after a second.
        connection.read(lambda: False, 1.6 if case.get("watch_close") else 0.2)
    connection.socket.close()
    return {
        "connection": connection.closed or "open",
        "goaway": connection.goaway,
        "streams": {number: stream.outcome() for number, stream in connection.streams.items()},
    }


def widened(headers):
    return [(*field, 1) if len(field) == 2 else field for field in headers]


def flatten(outcome, normalise_header, flatten_body):
    """The outcome as a flat table of fields, the streams' names in front."""
    flat = {"connection": outcome["connection"], "goaway": outcome.get("goaway")}
    for number, stream in outcome.get("streams", {}).items():
        at = f"{number}."
        flat[at + "end"] = stream["end"]
        if stream["interim"]:
            flat[at + "interim"] = stream["interim"]
        for name, value in stream["head"] or []:
            flat.setdefault(f"{at}header.{name}", []).append(normalise_header(name, value))
        for name, value in stream["trailers"]:
            flat.setdefault(f"{at}trailer.{name}", []).append(value)
        for name, value in flatten_body(stream["body"]).items():
            flat[at + name] = value
    return flat
