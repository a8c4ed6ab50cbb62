"""An upstream of HTTP/2 with prior knowledge, by hand as `h2client.py`: it answers with what it saw, as `upstream.py` does, and as the
request's `x-answer` asks."""

import asyncio
import json

import hpack
from h2client import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, text
from upstream import asked

CONTINUATION = 9


class Exchange:
    """What is known of one request."""

    def __init__(self):
        self.head, self.trailers, self.body = None, [], b""


async def connection(reader, writer):
    """Serves one connection until it ends."""
    decoder, encoder = hpack.Decoder(), hpack.Encoder()
    exchanges, block, block_flags = {}, b"", 0
    try:
        await reader.readexactly(len(PREFACE))
        writer.write(frame(SETTINGS, 0, 0))
        while True:
            head = await reader.readexactly(9)
            kind, flags, number = head[3], head[4], int.from_bytes(head[5:9], "big")
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            ended = False
            if kind == SETTINGS and not flags & ACK:
                writer.write(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                writer.write(frame(PING, ACK, 0, payload))
            elif kind == RST_STREAM:
                exchanges.pop(number, None)
            elif kind in (HEADERS, CONTINUATION):
                if kind == HEADERS:
                    payload = payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
                    block, block_flags = payload[5:] if flags & PRIORITY else payload, flags
                else:
                    block += payload
                if flags & END_HEADERS:
                    fields = [[text(name), text(value)] for name, value in decoder.decode(block, raw=True)]
                    known = exchanges.setdefault(number, Exchange())
                    if known.head is None:
                        known.head = fields
                    else:
                        known.trailers = fields
                    ended = block_flags & END_STREAM
            elif kind == DATA and number in exchanges:
                if payload:
                    increment = len(payload).to_bytes(4, "big")
                    writer.write(frame(WINDOW_UPDATE, 0, 0, increment) + frame(WINDOW_UPDATE, 0, number, increment))
                exchanges[number].body += payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
                ended = flags & END_STREAM
            if ended:
                writer.write(answer(encoder, number, exchanges.pop(number)))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


def answer(encoder, number, exchange):
    """The frames of the answer."""
    fields = dict(exchange.head)
    seen = {
        "request": f"{fields.get(':method')} {fields.get(':path')} HTTP/2",
        "headers": exchange.head,
        "body": exchange.body.decode("latin1")[:2000],
        "body_len": len(exchange.body),
        "trailers": exchange.trailers,
    }
    out = json.dumps(seen).encode() + b"\n"
    status, headers, trailers, unsized = asked(fields.get("x-answer", ""))
    if not any(name == "content-type" for name, _ in headers):
        headers = [("content-type", "application/json"), *headers]
    bare = status in (204, 304) or fields.get(":method") == "HEAD"
    if not unsized and not trailers and status not in (204, 304):
        headers = [*headers, ("content-length", str(len(out)))]
    head = encoder.encode([(":status", str(status)), *headers])
    if bare and not trailers:
        return frame(HEADERS, END_HEADERS | END_STREAM, number, head)
    frames = frame(HEADERS, END_HEADERS, number, head)
    for at in range(0, 0 if bare else len(out), 16384):
        last = at + 16384 >= len(out) and not trailers
        frames += frame(DATA, END_STREAM if last else 0, number, out[at : at + 16384])
    if trailers:
        frames += frame(HEADERS, END_HEADERS | END_STREAM, number, encoder.encode(trailers))
    return frames
