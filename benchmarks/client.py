"""One cheap HTTP/1.1 client connection of the load generator, and the tally it reports to.

It parses the HTTP framing and looks for a few byte strings in the body; it never decodes JSON, so that the load costs
the same for every target. TTFT is the time to the first word of the answer, not to the first header or role chunk.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import cast

import httptools

from benchmarks.answers import FIRST_WORD

EVENT = b"data: "
CARRY_BYTES = 24  # so that a mark cut by a packet's end is still found; longer than every mark
STAMP = re.compile(rb"@(\d{6,})\D")
FIRST = FIRST_WORD.encode()

WORD, EMPTY_WORD = b'"content":"', b'"content":""'


@dataclass
class Tally:
    """What all connections have seen; `clear` begins a new window."""

    done: int = 0
    events: int = 0
    errors: int = 0
    words: int = 0
    counts_words: bool = False
    ttft_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    delay_us: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.done = self.events = self.errors = self.words = 0
        self.ttft_s, self.total_s, self.delay_us = [], [], []

    def summary(self, seconds: float) -> dict[str, object]:
        """What the window saw, times in milliseconds."""
        delay_us = quantile(self.delay_us, 0.99)
        return {
            "done": self.done,
            "events": self.events,
            "words": self.words,
            "errors": self.errors,
            "seconds": round(seconds, 3),
            "ttft_p50_ms": milliseconds(self.ttft_s, 0.5),
            "ttft_p99_ms": milliseconds(self.ttft_s, 0.99),
            "total_p50_ms": milliseconds(self.total_s, 0.5),
            "total_p99_ms": milliseconds(self.total_s, 0.99),
            "delay_p99_ms": None if delay_us is None else round(delay_us / 1000, 2),
        }


def quantile(values: list[float] | list[int], share: float) -> float | None:
    """The value below which `share` of all lie; None of nothing."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(values: list[float], share: float) -> float | None:
    value = quantile(values, share)
    return None if value is None else round(value * 1000, 3)


def words_in(text: bytes) -> int:
    return text.count(WORD) - text.count(EMPTY_WORD)


class Connection(asyncio.Protocol):
    """Sends one request at a time; `ask` waits for the whole answer, `open` for its first word."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.parser = httptools.HttpResponseParser(self)
        self.waiter: asyncio.Future[bool] | None = None
        self.until_first = False
        self.busy = self.seen_first = self.seen_done = False
        self.began = 0.0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.settle(ok=False)

    async def ask(self, request: bytes) -> bool:
        """True when a complete answer came; False (and one error counted) otherwise."""
        return await self.send(request, until_first=False)

    async def open(self, request: bytes) -> bool:
        """True as soon as the first word is there; the stream then goes on."""
        return await self.send(request, until_first=True)

    async def send(self, request: bytes, *, until_first: bool) -> bool:
        if self.transport.is_closing():
            self.tally.errors += 1
            return False
        self.busy, self.seen_first, self.seen_done, self.tail = True, False, False, b""
        self.until_first = until_first
        self.waiter = asyncio.get_running_loop().create_future()
        self.began = time.perf_counter()
        self.transport.write(request)
        return await self.waiter

    def leave(self) -> None:
        """The client goes away in the middle of its stream; not an error."""
        self.busy = False
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.seen_done = not value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        tally, seen = self.tally, self.tail + body
        tally.events += seen.count(EVENT) - self.tail.count(EVENT)
        if tally.counts_words:
            tally.words += words_in(seen) - words_in(self.tail)
        if not self.seen_first and FIRST in seen:
            self.seen_first = True
            tally.ttft_s.append(time.perf_counter() - self.began)
            if self.until_first:
                self.wake(ok=True)
        if b"@" in body:
            now_us = time.monotonic_ns() // 1000
            tally.delay_us += [now_us - int(stamp) for stamp in STAMP.findall(body)]
        if b"[DONE]" in seen:
            self.seen_done = True
        self.tail = seen[-CARRY_BYTES:]

    def on_message_complete(self) -> None:
        if self.busy:
            self.settle(ok=self.parser.get_status_code() == 200 and self.seen_first and self.seen_done)

    def settle(self, *, ok: bool) -> None:
        self.busy = False
        if ok:
            self.tally.done += 1
            self.tally.total_s.append(time.perf_counter() - self.began)
        else:
            self.tally.errors += 1
        self.wake(ok=ok)

    def wake(self, *, ok: bool) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(ok)


async def connect(port: int, tally: Tally) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(tally), "127.0.0.1", port)
    return connection
