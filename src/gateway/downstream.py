"""The client's side of one exchange: one write in flight, a status line that is held back, and no patience without end.

uvicorn's ``send`` says nothing when the client has gone; only ``receive`` tells. It waits for ever when a client
stops reading, so whoever watches the clock looks at ``sending_since``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gateway.protocols.wire import Headers, Reply

_Send = Callable[[Any], Awaitable[None]]


class Wire(Protocol):
    """The short way to a client, where the server has one beside ASGI's."""

    def watch(self, on_gone: Callable[[], None]) -> bool:
        """Call this once the client has left; returns whether it is still there."""
        ...

    def unwatch(self) -> None:
        """Call nothing any more."""
        ...

    def answer(self, headers: Headers, payload: bytes, *, more: bool) -> bool:
        """Begin to answer 200, with the first piece of a stream or with all of it; ``False`` where nothing happened."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether ``push`` would send."""
        ...

    def push(self, payload: bytes, *, more: bool) -> bool:
        """Send a piece of a stream that has begun, or its last; ``False`` where nothing happened."""
        ...


class Downstream:
    """Sends one response. The first write decides its status line."""

    __slots__ = (
        "_abort",
        "_extra",
        "_is_watching",
        "_lock",
        "_send",
        "_wire",
        "is_finished",
        "is_started",
        "last_write_at",
        "sending_since",
    )

    def __init__(self, send: _Send, extra: Headers, abort: Callable[[], None], wire: Wire | None = None) -> None:
        """``extra`` headers go out with any answer; ``abort`` resets the connection.

        With a ``wire``, pieces of a stream take the short way.
        """
        self._send = send
        self._extra = extra
        self._abort = abort
        self._wire = wire
        self._lock = asyncio.Lock()
        self._is_watching = False
        self.is_started = False
        self.is_finished = False
        self.sending_since: float | None = None
        self.last_write_at = time.monotonic()

    def add_headers(self, headers: Headers) -> None:
        """Send these with the answer too; before its first byte."""
        self._extra = (*self._extra, *headers)

    def admitted(self, stream_id: str) -> None:
        """The exchange may run, and this is what it is called."""

    def outlives_client(self) -> bool:
        """The client left or takes nothing: whether the answer goes on all the same, for whoever comes back."""
        return False

    def is_orphan(self, now: float) -> bool:
        """Whether the answer goes on and nobody has read it for too long; ``now`` is monotonic."""
        return False

    def detach(self) -> None:
        """The client has gone, and the answer is read to its end nevertheless: nothing is sent any more."""
        self.is_finished = True
        self.unwatch()

    def watch(self, on_gone: Callable[[], None]) -> bool:
        """Call this once the client has left, or now where it has; ``False`` where only ``receive`` can tell."""
        if self._wire is None:
            return False
        self._is_watching = True
        if not self._wire.watch(on_gone):
            on_gone()
        return True

    def unwatch(self) -> None:
        """Nobody is told any more. Once answered, the connection may carry another request, which watches it too."""
        if self._is_watching and self._wire is not None:
            self._is_watching = False
            self._wire.unwatch()

    @property
    def is_free(self) -> bool:
        """Whether the stream has begun and ``push`` would send more of it."""
        wire = self._wire
        return (
            wire is not None and self.is_started and not self.is_finished and not self._lock.locked() and wire.is_free
        )

    def push(self, payload: bytes, headers: Headers, *, more: bool = True) -> bool:
        """Send bytes of a stream without waiting for anything; ``False`` where they have to be written."""
        wire = self._wire
        if wire is None or self.is_finished or self._lock.locked():
            return False
        if self.is_started:
            is_sent = wire.push(payload, more=more)
        else:
            is_sent = self.is_started = wire.answer((*headers, *self._extra), payload, more=more)
        if is_sent:
            self.last_write_at = time.monotonic()
            self.is_finished = not more
        return is_sent

    async def write(self, payload: bytes, headers: Headers) -> None:
        """Send bytes of a stream, after the status line where it has not gone out yet."""
        async with self._lock:
            if not self.is_finished:
                await self._body(200, headers, payload, more=True)

    async def beat(self, payload: bytes, headers: Headers) -> None:
        """Send something that only keeps the connection alive."""
        await self.write(payload, headers)

    async def finish(self, payload: bytes, headers: Headers) -> None:
        """Send the last bytes; a response that was nothing else gets a length."""
        if not self.is_started:
            headers = (*headers, (b"content-length", b"%d" % len(payload)))
        if self.push(payload, headers, more=False):
            return
        async with self._lock:
            if not self.is_finished:
                await self._body(200, headers, payload, more=False)

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer; only before anything else was sent."""
        async with self._lock:
            headers = (*reply.headers, (b"content-length", str(len(reply.body)).encode()))
            await self._body(reply.status, headers, reply.body, more=False)

    async def _body(self, status: int, headers: Headers, payload: bytes, *, more: bool) -> None:
        self.last_write_at = self.sending_since = time.monotonic()
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._extra]})
        if not more:
            self.is_finished = True
        try:
            await self._send({"type": "http.response.body", "body": payload, "more_body": more})
        finally:
            self.sending_since = None

    def abort(self) -> None:
        """Reset the connection: for a client that no longer reads."""
        self.is_finished = True
        self._abort()
