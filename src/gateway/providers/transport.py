"""HTTP to providers: one pool of connections for the whole process.

Nothing from the environment is used, no redirect is followed (a credential belongs to one host), no cookie is kept, and
bodies are asked for uncompressed: a stream that is compressed comes late, and a bomb never comes at all. A request goes
out once, since a provider that hung up may have carried it out; only where a connection of the pool proves to have been
closed before the request was sent is it sent on a fresh one.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from gateway.providers.connection import Connection, Taken, TransportError
from gateway.providers.dialing import ConnectTimeout, Dialer, Origin

__all__ = ["RESPONSE_BODY_MAX", "Answer", "ConnectTimeout", "Origin", "Post", "Transport", "TransportError"]

_POOL_MAX = 5_000
_KEEP_ALIVE_S = 30.0
_SWEEP_S = 1.0
# Providers close what is idle for seconds, seldom what was in use just now: only the former is worth a system call.
_PROBED_AFTER_S = 1.0
_ERROR_BODY_MAX = 64 * 1024
# A whole answer's.
RESPONSE_BODY_MAX = 32 * 1024 * 1024
# After its terminator a stream has only the end of its encoding left; the connection is worth waiting this long for.
_TAIL_S = 0.1


class Post(msgspec.Struct, frozen=True, gc=False):
    """One call to make. ``head`` is all of it up to the number of the body's bytes, as ``Address.head`` makes it."""

    origin: Origin
    head: bytes
    body: bytes
    connect_s: float


class Transport:
    """The shared pool. Create it in a running loop. ``tls`` replaces the usual rules for certificates."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._dialer = Dialer(tls)
        self._open: set[Connection] = set()
        self._dialling = 0
        # Since when each is idle; the one used last is the last, and used first.
        self._idle: dict[Origin, dict[Connection, float]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def post(self, post: Post) -> "Answer":
        """Send a call; returns once the head of the answer is there. Raises ``ConnectTimeout`` or ``TransportError``.

        The time limit is for making a connection; all others are kept by whoever reads.
        """
        connection = self._idle_one(post.origin) if self._idle else None
        if connection is not None:
            try:
                return await self._ask(connection, post)
            except TransportError:
                if not connection.was_unsent:
                    raise
        return await self._ask(await self._fresh(post), post)

    async def aclose(self) -> None:
        """Close every connection."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        await self._dialer.aclose()
        for connection in tuple(self._open):
            connection.abort()
        while self._open:  # the loop tells of each within its next turns
            await asyncio.sleep(0)

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """An answer's connection, for the next request or to be hung up."""
        if self._is_closed or not connection.rest():
            connection.abort()
            return
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = {}
        idle[connection] = self._loop.time()
        if self._sweep is None:
            self._sweep = self._loop.call_later(_KEEP_ALIVE_S, self._drop_old)
        if self._waiting:
            self._wake_one()

    async def _ask(self, connection: Connection, post: Post) -> "Answer":
        try:
            await connection.ask(post.head, post.body)
        except BaseException:
            connection.abort()
            raise
        return Answer(connection, self, post.origin)

    def _idle_one(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection, since = idle.popitem()
            idle_s = self._loop.time() - since
            if connection.is_kept and (idle_s < _PROBED_AFTER_S or (idle_s < _KEEP_ALIVE_S and connection.is_silent())):
                return connection
            connection.abort()
        return None

    async def _fresh(self, post: Post) -> Connection:
        """A new connection, or one that came back while there was no room for a new one."""
        while len(self._open) + self._dialling >= _POOL_MAX and not self._drop_idle():
            await self._room()
            if (connection := self._idle_one(post.origin)) is not None:
                return connection
        self._dialling += 1
        try:
            connection = await self._dialer.dial(post.origin, post.connect_s, self._lost)
        except BaseException:
            self._wake_one()
            raise
        finally:
            self._dialling -= 1
        if self._is_closed:
            connection.abort()
        if not connection.is_lost:
            self._open.add(connection)
        return connection

    async def _room(self) -> None:
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # it was our turn
            raise

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _lost(self, connection: Connection) -> None:
        """Called by every connection that is gone."""
        self._open.discard(connection)
        for origin, idle in self._idle.items():
            if idle.pop(connection, None) is not None:
                if not idle:
                    del self._idle[origin]
                break
        self._wake_one()

    def _drop_idle(self) -> bool:
        """Make room at the cost of an idle connection to anywhere."""
        for idle in self._idle.values():
            if idle:
                connection = next(iter(idle))
                del idle[connection]
                self._open.discard(connection)
                connection.abort()
                return True
        return False

    def _drop_old(self) -> None:
        now = self._loop.time()
        for origin, idle in list(self._idle.items()):
            for connection in [connection for connection, since in idle.items() if since + _KEEP_ALIVE_S <= now]:
                del idle[connection]
                connection.abort()
            if not idle:
                del self._idle[origin]
        oldest = min((next(iter(idle.values())) for idle in self._idle.values()), default=None)
        at = None if oldest is None else max(oldest + _KEEP_ALIVE_S, now + _SWEEP_S)
        self._sweep = None if at is None else self._loop.call_at(at, self._drop_old)


class Answer:
    """A provider's answer: a status now, a body as it comes. Close it whatever happens.

    The names in ``headers`` are in lower case; of those that came more than once the first counts.
    """

    __slots__ = ("_connection", "_is_closed", "_origin", "_transport", "content_type", "headers", "status")

    def __init__(self, connection: Connection, transport: Transport, origin: Origin) -> None:
        self._connection = connection
        self._transport = transport
        self._origin = origin
        self._is_closed = False
        self.status = connection.status
        self.headers = connection.headers
        self.content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def read(self, take: Callable[[bytes], Taken | None]) -> Coroutine[Any, Any, Taken | None]:
        """What ``take`` makes of the body that came since; ``None`` at its end. Raises ``TransportError`` if it broke.

        ``take`` is called where bytes arrive, and what it makes nothing of (``None``) wakes nobody.
        """
        return self._connection.read(take)

    async def read_all(self, limit: int = RESPONSE_BODY_MAX) -> bytes:
        """The whole body, cut off at ``limit`` bytes."""
        pieces: list[bytes] = []
        size = 0
        while size < limit and (piece := await self.read(bytes)):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)[:limit]

    async def read_error(self) -> bytes:
        """The body of an error answer, as far as it is worth reading; empty where it breaks off."""
        try:
            return await self.read_all(_ERROR_BODY_MAX)
        except TransportError:
            return b""

    async def finish(self) -> None:
        """The stream said it is done: take the end of its encoding too, so that the connection can be used again."""
        if self._connection.is_whole:
            return
        try:
            async with asyncio.timeout(_TAIL_S):
                await self.read(_drop)
        except (TimeoutError, TransportError):
            return

    def close(self) -> None:
        """Back into the pool where the body came to its end; otherwise hang up."""
        if not self._is_closed:
            self._is_closed = True
            self._transport.give_back(self._origin, self._connection)


def _drop(piece: bytes) -> None:
    """Nobody wants it."""
