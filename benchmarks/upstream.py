"""A cheap mock of an upstream, in its own process: `python -m benchmarks.upstream` prints its port as JSON.

It speaks OpenAI's format at `/chat/completions` and Anthropic's at `/messages`. What it answers is chosen by the name
of the model, see answers.py. Every sixteenth paced word is `@` and the monotonic clock in microseconds, so that a
client can tell the delay. `GET /stats` tells what is open.
"""

import asyncio
import json
import time
from typing import cast

import httptools
import msgspec
import uvloop

from benchmarks.answers import Script, answer_of, dump, respond, script_of

STAMP_EVERY = 16
FIRST_PAUSE_S = 0.005
GOLDEN_RATIO = 0.6180339887498949


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Stats:
    """What this process has seen since it began."""

    def __init__(self) -> None:
        self.requests = self.streams = self.open_streams = self.chunks = 0


STATS = Stats()
decode_request = msgspec.json.Decoder(ChatRequest).decode


class Upstream(asyncio.Protocol):
    """One connection; requests are answered one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body = bytearray()
        self.script: Script | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.sent = 0
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close_stream()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", bytearray()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url.endswith((b"/chat/completions", b"/messages")):
            self.answer()
        elif self.url == b"/stats":
            self.transport.write(respond(200, dump(vars(STATS))))
        else:
            self.transport.write(respond(404, b'{"error":{"message":"no such path"}}'))

    def answer(self) -> None:
        STATS.requests += 1
        try:
            request = decode_request(self.body)
            options = request.stream_options
            script = script_of(
                request.model, options is not None and options.include_usage, self.url.endswith(b"/messages")
            )
        except (ValueError, msgspec.DecodeError) as error:
            refusal = {"error": {"message": str(error), "type": "invalid_request_error"}}
            self.transport.write(respond(400, dump(refusal)))
            return
        if request.stream:
            self.open_stream(script)
        else:
            self.transport.write(answer_of(request.model))

    def open_stream(self, script: Script) -> None:
        STATS.streams += 1
        STATS.open_streams += 1
        self.script, self.sent = script, 1
        self.transport.write(script.opening)
        match script.kind:
            case "burst":
                self.rush(script, 0)
            case "first":
                self.timer = self.loop.call_later(FIRST_PAUSE_S, self.rush, script, 0)
            case _:
                phase = STATS.streams * GOLDEN_RATIO % 1  # spreads the streams evenly, however they were opened
                self.due = self.loop.time() + script.period_s * phase
                self.timer = self.loop.call_at(self.due, self.tick, script)

    def rush(self, script: Script, index: int) -> None:
        """Writes the rest, one write in each turn of the loop."""
        if self.script is not script:
            return
        self.transport.write(script.rest[index])
        if index + 1 < len(script.rest):
            self.loop.call_soon(self.rush, script, index + 1)
        else:
            STATS.chunks += script.chunks
            self.close_stream()

    def tick(self, script: Script) -> None:
        if self.sent >= script.chunks:
            self.transport.write(script.closing)
            self.close_stream()
            return
        if self.sent % STAMP_EVERY:
            self.transport.write(script.words[self.sent % len(script.words)])
        else:
            before, after = script.stamp
            self.transport.write(script.frame(b"%b%d%b" % (before, time.monotonic_ns() // 1000, after)))
        self.sent += 1
        STATS.chunks += 1
        self.due += script.period_s
        self.timer = self.loop.call_at(self.due, self.tick, script)

    def close_stream(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.script is not None:
            STATS.open_streams -= 1
        self.script = self.timer = None


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(loop), "127.0.0.1", 0, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
