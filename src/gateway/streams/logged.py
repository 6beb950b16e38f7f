"""The client's side of an exchange that goes on without its client: what it is told is kept in a log as well."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.downstream import Downstream, Wire
from gateway.limits import keys
from gateway.limits.redis import Redis
from gateway.protocols.wire import Headers, Reply
from gateway.streams.log import LogBounds, StreamLog

_Send = Callable[[Any], Awaitable[None]]


class LoggedDownstream(Downstream):
    """Sends one response to its client while there is one, and to the log until it ends."""

    __slots__ = (
        "_account",
        "_bounds",
        "_has_asked",
        "_is_alone",
        "_is_unwatched",
        "_log",
        "_read_at",
        "_redis",
        "_sid",
        "on_admitted",
        "on_delivered",
    )

    def __init__(self, connection: "Connection", redis: Redis, account: str, bounds: LogBounds) -> None:
        """``on_admitted`` and ``on_delivered`` are told the stream's id when it begins and when its client has all."""
        super().__init__(connection.send, connection.extra, connection.abort)
        self._redis = redis
        self._account = account
        self._bounds = bounds
        self._log: StreamLog | None = None
        self._sid = ""
        self._is_alone = False
        self._read_at = 0.0
        self._has_asked = False
        self._is_unwatched = False
        self.on_admitted: Callable[[str], None] = lambda stream_id: None
        self.on_delivered: Callable[[str], None] = lambda stream_id: None

    def admitted(self, stream_id: str) -> None:
        """Open the log."""
        self._sid = stream_id
        self._log = StreamLog(self._redis, self._account, stream_id, self._bounds)
        self.on_admitted(stream_id)

    def outlives_client(self) -> bool:
        """Yes, as long as somebody could read it."""
        if self.is_finished or self._log is None or self._log.is_lost:
            return False
        if not self._is_alone:
            self._is_alone = True
            self._read_at = time.monotonic()
            self._abort()
        return True

    def is_orphan(self, now: float) -> bool:
        """Asks Redis once per period whether somebody reads the log, and knows the answer at a later tick."""
        if not self._is_alone or self.is_finished or self._log is None:
            return False
        if self._log.is_lost or self._is_unwatched:
            return True
        if now - self._read_at > self._bounds.orphan_s and not self._has_asked:
            self._has_asked = True
            self._redis.call("PTTL", keys.watched(self._account, self._sid)).add_done_callback(self._heard)
        return False

    def _heard(self, done: Any) -> None:
        self._has_asked = False
        if done.cancelled() or done.exception() is not None:
            return
        left_ms = done.result()
        self._read_at = time.monotonic()
        self._is_unwatched = left_ms <= 0

    def detach(self) -> None:
        """Nobody reads this any more, neither here nor in the log."""
        if self._log is not None and not self.is_finished:
            self._log.drop()
        super().detach()

    async def write(self, payload: bytes, headers: Headers) -> None:
        """Into the log first: who comes back has to find at least what was sent."""
        if self._log is not None and not self.is_finished:
            self._log.begin(200, headers)
            self._log.append(payload)
        if not self._is_alone:
            await super().write(payload, headers)

    async def beat(self, payload: bytes, headers: Headers) -> None:
        """The log keeps no heartbeats."""
        if not self._is_alone:
            await super().write(payload, headers)

    async def finish(self, payload: bytes, headers: Headers) -> None:
        """The last bytes, and the end of the log."""
        if self._log is None or self.is_finished:
            await super().finish(payload, headers)
            return
        self._log.begin(200, headers)
        self._log.append(payload)
        self._log.close()
        if self._is_alone:
            self.is_finished = True
            return
        await super().finish(payload, headers)
        if not self._is_alone:
            self.on_delivered(self._sid)

    async def reply(self, reply: Reply) -> None:
        """A whole answer; in the log only where the exchange had begun."""
        if self._log is not None:
            self._log.begin(reply.status, reply.headers)
            self._log.append(reply.body)
            self._log.close()
        if self._is_alone:
            self.is_finished = True
            return
        await super().reply(reply)
        if self._log is not None:
            self.on_delivered(self._sid)


class Connection:
    """How a client is reached: ``send`` as ASGI has it, headers for any answer, and a way to reset the connection."""

    __slots__ = ("abort", "extra", "send", "wire")

    def __init__(self, send: _Send, extra: Headers, abort: Callable[[], None], wire: Wire | None = None) -> None:
        self.send = send
        self.extra = extra
        self.abort = abort
        self.wire = wire
