"""Callouts as their upstreams see them, of HTTP and of gRPC: each is answered in its turn, when its case is at rest.

What is answered when is a matter of moments where two callouts are under way, or a callout and the stream that made it.
Here a case's callouts take turns, by the number that their script gave them (`x-n`), and an answer of gRPC takes a turn for
each of its frames, unless `x-whole` asks for all of them at once.
"""

import ast
import asyncio
import contextlib
import itertools
import time

from grpc_upstream import Connection
from h2client import DATA, END_STREAM, HEADERS, RST_STREAM, frame

# Those without a number: by when they came.
UNNUMBERED = 1 << 30
# So long a turn is waited for at most: there may be ticks.
LONGEST = 9


def number_of(fields):
    number = fields.get("x-n", "")
    return int(number) if number.isdigit() else UNNUMBERED


class Turns:
    """Whose turn it is, case by case."""

    def __init__(self, pace):
        self.pace = pace
        self.waiting = {}
        self.came = itertools.count()
        # When a case's last turn ended.
        self.ended = {}

    @property
    def pending(self):
        return any(self.waiting.values())

    @contextlib.asynccontextmanager
    async def turn(self, case, number, least=0, wanted=lambda: True):
        """Waits for a turn and has it; gives false where it is not wanted any more."""
        entry = [number, next(self.came), False]
        waiting = self.waiting.setdefault(case, [])
        waiting.append(entry)
        since = time.monotonic()
        try:
            while wanted():
                await asyncio.sleep(0.015)
                waited = time.monotonic() - since
                first = min(waiting) is entry and not any(other[2] for other in waiting)
                if first and (waited > LONGEST or waited > least and self.pace.at_rest(case)):
                    break
            entry[2] = True
            yield wanted()
        finally:
            waiting.remove(entry)
            self.ended[case] = time.monotonic()
            self.pace.moved(case)


class PacedConnection(Connection):
    """A connection of gRPC: each frame of an answer in its turn."""

    def __init__(self, upstream, reader, writer):
        super().__init__(upstream, reader, writer)
        self.steps, self.tasks = {}, {}

    def write(self, kind, flags, stream, payload=b""):
        if kind in (DATA, HEADERS, RST_STREAM):
            self.push(stream, (kind, flags, stream, payload))
        else:
            super().write(kind, flags, stream, payload)

    def echo(self, stream, data):
        steps = self.steps.get(stream)
        if steps and steps[-1][0] == DATA:
            # How many frames somebody makes of what is sent at once is no matter.
            steps[-1] = (DATA, 0, stream, steps[-1][3] + data)
        else:
            self.data(stream, data)

    def push(self, stream, step):
        self.steps.setdefault(stream, []).append(step)
        if stream not in self.tasks:
            self.tasks[stream] = asyncio.get_running_loop().create_task(self.answer(stream))

    async def answer(self, stream):
        fields = self.fields[stream]
        case, number, whole = fields.get("x-case", "?"), number_of(fields), "x-whole" in fields
        steps, least = self.steps[stream], 0.11
        # The first one is not before its duration in milliseconds has three digits.
        while steps:
            async with self.upstream.turns.turn(case, number, least, lambda: stream in self.methods) as wanted:
                if not wanted:
                    steps.clear()
                taken = len(steps) if whole else 1
                self.send(stream, steps[:taken])
                del steps[:taken]
                with contextlib.suppress(ConnectionError):
                    await self.writer.drain()
            least = 0
        del self.tasks[stream]

    def send(self, stream, steps):
        """In one piece: what comes together is told together."""
        sent = b""
        for step in steps:
            if step is None or step[0] == RST_STREAM or step[1] & END_STREAM:
                self.answered.add(stream)
            if step is not None:
                sent += frame(*step)
        self.writer.write(sent)
        if None in steps:
            self.writer.close()

    def later(self, seconds, stream, f):
        f()

    def on_close(self, stream):
        self.push(stream, None)


class GrpcCallouts:
    """The upstream of gRPC callouts, on the loop of the one of HTTP."""

    def __init__(self, loop, pace, turns):
        self.pace, self.turns = pace, turns
        # What was seen of each case: (number, lines) a stream.
        self.seen = {}
        start = asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.server = asyncio.run_coroutine_threadsafe(start, loop).result(10)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        await PacedConnection(self, reader, writer).run()

    def record(self, fields):
        case, record = fields.get("x-case", "?"), []
        self.seen.setdefault(case, []).append((number_of(fields), record))
        return record

    def heard(self, fields):
        self.pace.moved(fields.get("x-case", "?"))

    def of(self, case):
        """What was seen of a case, stream by stream: frames of data that follow each other as one."""
        streams = []
        for _, record in sorted(self.seen.get(case, []), key=lambda entry: entry[0]):
            told = []
            for said in list(record):
                if said.startswith("data ") and told and told[-1].startswith("data "):
                    said = f"data {ast.literal_eval(told.pop()[5:]) + ast.literal_eval(said[5:])!r}"
                told.append(said)
            streams.append(told)
        return streams
