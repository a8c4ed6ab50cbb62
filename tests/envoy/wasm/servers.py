"""The upstream of the Wasm suite: records what it saw of each case and answers as the request's `x-answer` says."""

import asyncio
import json
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from upstream import read_headers, reset


class Recorder:
    """A server on a port of its own, in a thread of its own. `grown(case)` waits for a line of that case in the log."""

    def __init__(self):
        self.seen = {}
        self.grown = None
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        if not ready.wait(10):
            raise RuntimeError("the upstream did not start")

    def _run(self, ready):
        asyncio.set_event_loop(self.loop)

        async def start():
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=1 << 22)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            async with server:
                await server.serve_forever()

        self.loop.run_until_complete(start())

    async def serve(self, reader, writer):
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
            pass
        finally:
            writer.close()

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
        body = b""
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int((await reader.readline()).split(b";")[0], 16)
                if size == 0:
                    seen["trailers"] = sorted(await read_headers(reader))
                    break
                body += await reader.readexactly(size)
                await reader.readexactly(2)
        elif "content-length" in fields:
            body = await reader.readexactly(int(fields["content-length"]))
        seen["body"] = body.decode("latin1") if len(body) < 300 else f"{len(body)} of {sorted(set(body))}"
        try:
            answer = json.loads(fields.get("x-answer", "{}"))
        except ValueError:
            answer = {}
        return await self.answer(answer, fields.get("x-case", "?"), line.startswith("HEAD "), writer)

    async def answer(self, answer, case, head, writer):
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
        writer.write((out + "transfer-encoding: chunked\r\n\r\n").encode("latin1"))
        if head:
            return True
        await writer.drain()
        lines = self.lines(case)
        for chunk in chunks:
            lines = await self.until_grown(case, lines)
            writer.write(f"{len(chunk):x}\r\n{chunk}\r\n".encode("latin1"))
            await writer.drain()
        await self.until_grown(case, lines)
        if end == "cut":
            return False
        out = "0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in answer.get("trailers", [])) + "\r\n"
        writer.write(out.encode("latin1"))
        await writer.drain()
        return True

    async def until_grown(self, case, before):
        """Waits until the guest has said something more of this case, or for a while."""
        for _ in range(40):
            await asyncio.sleep(0.004)
            if self.lines(case) > before:
                await asyncio.sleep(0.004)
                break
        return self.lines(case)

    def lines(self, case):
        return self.grown(case) if self.grown else 0
