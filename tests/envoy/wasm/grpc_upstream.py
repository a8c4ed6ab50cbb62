"""A gRPC upstream whose methods are ways to answer, good and bad. Records what it saw of each stream; HTTP/2 by hand, as in
`h2client.py`. A stream belongs to the case in which it began."""

import asyncio
import pathlib
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import hpack
from h2client import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame

# Seconds that `slow` and `slow_body` take: enough that what happens before comes before it on a busy machine too.
SLOW = 1.5
HEAD = [("content-type", "application/grpc"), ("x-init", "a"), ("x-init", "b")]


def message(data, flags=0):
    return bytes([flags]) + struct.pack("!I", len(data)) + data


def trailers(status="0", text="done%20it"):
    return [("grpc-status", status), ("grpc-message", text), ("x-trail", "t")]


class Connection:
    """One connection. Methods of the service are those called `on_…`; what begins with `s` or `t` and a number answers with that
    status, with and without a body."""

    def __init__(self, upstream, reader, writer):
        self.upstream, self.reader, self.writer = upstream, reader, writer
        self.decoder, self.encoder = hpack.Decoder(), hpack.Encoder()
        self.methods = {}
        self.fields = {}
        self.records = {}
        self.answered = set()

    def write(self, kind, flags, stream, payload=b""):
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.answered.add(stream)
        self.writer.write(frame(kind, flags, stream, payload))

    def head(self, stream, headers=HEAD, status="200", end=False):
        block = self.encoder.encode([(":status", status), *headers])
        self.write(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)

    def data(self, stream, data, end=False):
        self.write(DATA, END_STREAM if end else 0, stream, data)

    def trailers(self, stream, headers):
        self.write(HEADERS, END_HEADERS | END_STREAM, stream, self.encoder.encode(headers))

    def whole(self, stream, *messages, end=None):
        """A head, bodies, trailers."""
        self.head(stream)
        for body in messages:
            self.data(stream, body)
        self.trailers(stream, trailers() if end is None else end)

    def later(self, seconds, stream, f):
        def run():
            if stream in self.methods:
                f()

        asyncio.get_running_loop().call_later(seconds, run)

    def say(self, stream, text):
        self.records[stream].append(text)
        self.upstream.heard(self.fields[stream])

    def left(self, stream):
        """The proxy has given a stream up. After a whole answer it is a matter of what crossed on the way."""
        if self.methods.pop(stream, None) and stream not in self.answered:
            self.say(stream, "reset")

    def ended(self):
        """The connection has ended, and what was open on it: a proxy may close it rather than reset its last stream."""
        for stream in list(self.methods):
            self.left(stream)

    async def run(self):
        """To its end, whoever ends it."""
        try:
            await self.serve()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended()
            self.writer.close()

    async def serve(self):
        await self.reader.readexactly(len(PREFACE))
        self.write(SETTINGS, 0, 0)
        while True:
            header = await self.reader.readexactly(9)
            kind, flags, stream = header[3], header[4], struct.unpack("!I", header[5:])[0]
            payload = await self.reader.readexactly(int.from_bytes(header[:3], "big"))
            if flags & PADDED and kind in (DATA, HEADERS):
                payload = payload[1 : len(payload) - payload[0]]
            if kind == SETTINGS and not flags & ACK:
                self.write(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                self.write(PING, ACK, 0, payload)
            elif kind == HEADERS:
                self.begin(stream, payload[5:] if flags & PRIORITY else payload)
            elif kind == DATA:
                self.receive(stream, payload)
            elif kind == RST_STREAM:
                self.left(stream)
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.say(stream, "end")
                self.finish(stream)

    def begin(self, stream, block):
        headers = [(str(name), str(value)) for name, value in self.decoder.decode(block)]
        self.fields[stream] = dict(headers)
        self.records[stream] = self.upstream.record(self.fields[stream])
        self.say(stream, f"head {sorted(headers)}")
        method = self.fields[stream][":path"].rsplit("/", 1)[-1]
        self.methods[stream] = method
        if method == "echo":
            self.head(stream)
        elif method == "early":
            self.whole(stream)
        elif method == "early_error":
            self.head(stream, [("grpc-status", "9"), ("grpc-message", "early")], end=True)

    def receive(self, stream, data):
        if not data:
            return
        for_window = struct.pack("!I", len(data))
        self.write(WINDOW_UPDATE, 0, 0, for_window)
        self.write(WINDOW_UPDATE, 0, stream, for_window)
        self.say(stream, f"data {data!r}")
        if self.methods.get(stream) == "echo":
            self.echo(stream, data)

    def echo(self, stream, data):
        self.data(stream, data)

    def finish(self, stream):
        method = self.methods.get(stream, "")
        if method[:1] in "st" and method[1:].isdigit():
            fields = [("content-type", "text/plain"), ("x-a", "1")]
            self.head(stream, fields, method[1:], end=method[0] == "t")
            if method[0] == "s":
                self.data(stream, b"body", end=True)
        elif hasattr(self, "on_" + method):
            getattr(self, "on_" + method)(stream)

    def on_echo(self, stream):
        self.trailers(stream, trailers())

    def on_unary(self, stream):
        self.whole(stream, message(b"hello"))

    def on_empty(self, stream):
        self.whole(stream, message(b""))

    def on_two(self, stream):
        self.whole(stream, message(b"one") + message(b"two!"))

    def on_apart(self, stream):
        self.head(stream)
        self.data(stream, message(b"one"))
        rest = lambda: (self.data(stream, message(b"two")), self.trailers(stream, trailers()))
        self.later(0.05, stream, rest)

    def on_held(self, stream):
        self.head(stream)
        self.data(stream, message(b"one"))

    def on_split(self, stream):
        self.head(stream)
        self.data(stream, message(b"hello")[:3])
        rest = lambda: (self.data(stream, message(b"hello")[3:]), self.trailers(stream, trailers()))
        self.later(0.02, stream, rest)

    def on_partial(self, stream):
        self.whole(stream, message(b"hello")[:7])

    def on_none(self, stream):
        self.whole(stream)

    def on_error(self, stream):
        self.whole(stream, end=trailers("5", "not%20here"))

    def on_error_after(self, stream):
        self.whole(stream, message(b"hello"), end=trailers("5", "not"))

    def on_only(self, stream):
        self.head(stream, [("grpc-status", "7"), ("grpc-message", "denied"), ("x-to", "1")], end=True)

    def on_only_good(self, stream):
        self.head(stream, [("grpc-status", "0"), ("x-to", "1")], end=True)

    def on_only_plain(self, stream):
        self.head(stream, [("x-to", "1")], end=True)

    def on_unavailable(self, stream):
        self.head(stream, [("grpc-status", "3"), ("grpc-message", "m")], "503", end=True)

    def on_compressed(self, stream):
        self.whole(stream, message(b"hello", 1))

    def on_compressed_empty(self, stream):
        self.whole(stream, message(b"", 1))

    def on_flags(self, stream):
        self.whole(stream, message(b"hello", 2))

    def on_no_trailers(self, stream):
        self.head(stream)
        self.data(stream, message(b"hello"), end=True)

    def on_reset(self, stream):
        self.write(RST_STREAM, 0, stream, struct.pack("!I", 2))

    def on_reset_after(self, stream):
        self.head(stream)
        self.data(stream, message(b"hello"))
        self.later(0.05, stream, lambda: self.on_reset(stream))

    def on_no_number(self, stream):
        self.whole(stream, message(b"x"), end=trailers("abc"))

    def on_number(self, stream):
        self.whole(stream, message(b"x"), end=trailers("99"))

    def on_no_status(self, stream):
        self.whole(stream, message(b"x"), end=[("x-trail", "t")])

    def on_binary(self, stream):
        self.head(stream, [("x-b-bin", "AQI"), ("x-c-bin", "AQI="), ("x-d-bin", "!!")])
        self.data(stream, message(b"x"))
        self.trailers(stream, [("grpc-status", "0"), ("x-t-bin", "AQI=")])

    def on_html(self, stream):
        self.head(stream, [("content-type", "text/html")])
        self.data(stream, message(b"hello"))
        self.trailers(stream, trailers())

    def on_slow(self, stream):
        self.later(SLOW, stream, lambda: self.whole(stream, message(b"late")))

    def on_slow_body(self, stream):
        self.head(stream)
        rest = lambda: (self.data(stream, message(b"late")), self.trailers(stream, trailers()))
        self.later(SLOW, stream, rest)

    def on_close(self, stream):
        self.answered.add(stream)
        self.writer.close()


class GrpcUpstream:
    """A server on a port and a thread of its own. `seen` is what it saw of each case, a list a stream; `case` is the one that
    runs; `moved` when it saw something last."""

    def __init__(self):
        self.seen, self.case, self.moved = {}, 0, 0.0
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        if not ready.wait(10):
            raise RuntimeError("the upstream did not start")

    def _run(self, ready):
        asyncio.set_event_loop(self.loop)

        async def start():
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            async with server:
                await server.serve_forever()

        self.loop.run_until_complete(start())

    async def serve(self, reader, writer):
        await Connection(self, reader, writer).run()

    def heard(self, _fields):
        """A stream has said something."""
        self.moved = time.monotonic()

    def record(self, _fields):
        """A new stream's."""
        record = []
        self.seen.setdefault(self.case, []).append(record)
        return record
