"""The upstream of the Wasm suite: records what it saw of each case and answers as the request's `x-answer` says."""

import asyncio
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from callouts import GrpcCallouts, Turns, number_of
from pace import NOTHING
from upstream import Upstream, each_exchange, read_body, read_headers, reset


class Recorder(Upstream):
    """Answers as it is told, at the pace of what the guest says."""

    def __init__(self, pace):
        self.seen = {}
        self.pace = pace
        self.turns = Turns(pace)
        super().__init__(self.serve)
        self.grpc = GrpcCallouts(self.loop, pace, self.turns)

    async def serve(self, reader, writer):
        await each_exchange(self.exchange, reader, writer)

    async def exchange(self, reader, writer):
        line = (await reader.readline()).decode("latin1").rstrip("\r\n")
        if not line:
            return False
        headers = await read_headers(reader)
        fields = {name.lower(): value for name, value in headers}
        seen = {
            "line": line,
            "headers": sorted([name, value] for name, value in headers if not name.startswith("x-script")),
            "body": "cut",
            "trailers": [],
        }
        kind = "call" if "/callout" in line else "seen"
        self.seen.setdefault((fields.get("x-case", "?"), kind), []).append(seen)
        case = fields.get("x-case", "?")
        if kind == "seen":
            self.pace.unanswered.add(case)
            self.pace.reached.add(case)
        body, seen["trailers"] = await read_body(reader, fields)
        seen["trailers"].sort()
        seen["body"] = body.decode("latin1") if len(body) < 300 else f"{len(body)} of {sorted(set(body))}"
        try:
            answer = json.loads(fields.get("x-answer", "{}"))
        except ValueError:
            answer = {}
        head = line.startswith("HEAD ")
        if kind == "seen":
            with self.pace.sending(case):
                self.pace.unanswered.discard(case)
                # What the guest has to say of the request is said before it has to speak of the answer.
                await self.until_settled(case)
                return await self.answer(answer, case, kind, head, writer)
        # A case's callouts are answered one after the other, each of HTTP in one piece. And not before its duration in
        # milliseconds has three digits.
        async with self.turns.turn(case, number_of(fields), 0.11):
            going_on = await self.answer(answer, case, kind, head, writer)
            await writer.drain()
            return going_on

    async def answer(self, answer, case, kind, head, writer):
        """`status`, `headers`, `chunks` (texts, or numbers of bytes), `trailers`, `length` (instead of chunks),
        `delay` (ms), `end` (`close` or `reset` instead of an answer, `cut` after the chunks)."""
        await asyncio.sleep(answer.get("delay", 0) / 1000)
        end = answer.get("end")
        if end == "close":
            return False
        if end == "reset":
            reset(writer)
            return False
        status = answer.get("status", 200)
        out = f"HTTP/1.1 {status} X\r\ncontent-type: text/plain\r\nx-up: 1\r\n"
        for name, value in answer.get("headers", []):
            out += f"{name}: {value}\r\n"
        chunks = [chunk * "r" if isinstance(chunk, int) else chunk for chunk in answer.get("chunks", ["hello", "-up"])]
        if status in (204, 304):
            writer.write(out.encode("latin1") + b"\r\n")
            return True
        if answer.get("length"):
            text = "".join(chunks)
            out += f"content-length: {len(text)}\r\n\r\n" + ("" if head else text)
            writer.write(out.encode("latin1"))
            await writer.drain()
            return True
        mark = self.pace.now(case)
        writer.write((out + "transfer-encoding: chunked\r\n\r\n").encode("latin1"))
        await writer.drain()
        if head:
            return True
        framed = [f"{len(chunk):x}\r\n{chunk}\r\n" for chunk in chunks]
        # Where nobody is waited for in between, what comes apart is a matter of moments.
        for piece in framed if kind == "seen" else ["".join(framed)]:
            mark = await self.until_followed(case, kind, mark)
            writer.write(piece.encode("latin1"))
            await writer.drain()
        await self.until_followed(case, kind, mark)
        if end == "cut":
            return False
        out = "0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in answer.get("trailers", [])) + "\r\n"
        writer.write(out.encode("latin1"))
        await writer.drain()
        return True

    async def until_followed(self, case, kind, mark):
        """Until the guest has said what it has to say of what was written at `mark`."""
        while kind == "seen" and not self.pace.followed(case, mark):
            await asyncio.sleep(0.005)
        return self.pace.now(case)

    async def until_settled(self, case):
        # Not for ever: of what a dead VM has put into queues nobody is told.
        since = self.pace.now(case)
        while not (self.pace.settled(case) or self.pace.passed(since, NOTHING)):
            await asyncio.sleep(0.005)
