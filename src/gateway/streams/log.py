"""The log of one answer in Redis, as it is made: written by the gateway that runs it, read by any.

An entry is what was said in a twentieth of a second. Entries are numbered without gaps, so that one which is sent twice
is written once, and a reader knows when some were lost with a Redis that failed.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from gateway.canonical.errors import ErrorCode, LimitExceeded, ServiceUnavailable
from gateway.ledger import Streams
from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable, forget_result
from gateway.protocols.wire import Headers

_log = structlog.get_logger()

_COLLECT_S = 0.05
_RETRY_S = 0.25
_RETRIES_S_MAX = 15.0
_RUNNING_MS = 900_000
_RENEW_S = 60.0
_PAGE = 64
_LOOK_S = 0.05
_LOOK_S_MAX = 0.25
# After so long without a word, a reader asks whether the answer is still being made.
_QUIET_S = 2.0
_MISSING = "This answer broke off, and the rest of it is lost."


class LogBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How long an answer goes on unread, how long it is kept once it ended, and how much of it may be kept.

    One account may read ``readers_max`` at once from one process, since each reader asks Redis several times a second.
    """

    orphan_s: float = 60.0
    kept_s: float = 300.0
    bytes_max: int = 4_194_304
    readers_max: int = 100


class Head(msgspec.Struct, frozen=True):
    """The status line and the headers of the answer that is logged."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def to_headers(self) -> Headers:
        """The headers as they are sent."""
        return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers)


class Part(msgspec.Struct, frozen=True):
    """One entry: ``number`` counts from 1, the first has the ``head``, the last one ``is_end``."""

    number: int
    payload: bytes
    head: Head | None = None
    is_end: bool = False


class StreamLog:
    """The writing side. Nothing waits for Redis here; where it stays away for long, the log ``is_lost``."""

    def __init__(self, redis: Redis, account: str, sid: str, bounds: LogBounds) -> None:
        self._redis = redis
        self._key = keys.log(account, sid)
        self._bounds = bounds
        self._waiting: list[bytes] = []
        self._head: bytes | None = None
        self._size = 0
        self._number = 0
        self._sending: tuple[Any, ...] | None = None
        self._failing_since = 0.0
        self._renew_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._is_closed = False
        self.is_lost = False

    def begin(self, status: int, headers: Headers) -> None:
        """What the answer's status line said; only the first call counts."""
        if self._head is None:
            told = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
            self._head = msgspec.json.encode(Head(status, told))

    def append(self, payload: bytes) -> None:
        """Something more was said."""
        self._size += len(payload)
        if self._size > self._bounds.bytes_max:
            self.drop()
        elif payload and not self._is_ending:
            self._waiting.append(payload)
            self._schedule(_COLLECT_S if self._number else 0.0)

    def close(self) -> None:
        """Nothing follows; the log is kept for a while."""
        self._is_ending = True
        self._schedule(0.0)

    def drop(self) -> None:
        """Forget everything: nobody is going to read this."""
        if not self.is_lost:
            self.is_lost = True
            self._waiting.clear()
            forget_result(self._redis.call("DEL", self._key))

    def _schedule(self, delay_s: float) -> None:
        if self._sending is not None or self.is_lost or self._is_closed:
            return
        if self._timer is not None:
            if delay_s:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self.is_lost or not (self._waiting or self._is_ending):
            return
        fields: list[Any] = ["b", b"".join(self._waiting)]
        self._waiting.clear()
        if not self._number:
            fields += ["h", self._head or b"null"]
        if self._is_ending:
            self._is_closed = True
            fields += ["e", "1"]
        self._number += 1
        self._sending = ("XADD", self._key, f"{self._number}-1", *fields)
        self._send()

    def _send(self) -> None:
        self._timer = None
        if self._sending is not None and not self.is_lost:
            self._redis.call(*self._sending).add_done_callback(self._sent)
            self._renew()

    def _renew(self) -> None:
        now = time.monotonic()
        if self._is_closed or now >= self._renew_at:
            self._renew_at = now + _RENEW_S
            kept_ms = int(self._bounds.kept_s * 1000) if self._is_closed else _RUNNING_MS
            forget_result(self._redis.call("PEXPIRE", self._key, kept_ms))

    def _sent(self, done: asyncio.Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        now = time.monotonic()
        if isinstance(error, StoreUnavailable):
            self._failing_since = self._failing_since or now
            if now - self._failing_since > _RETRIES_S_MAX:
                _log.warning("stream_log_lost", reason=str(error))
                self.is_lost = True
            else:
                self._timer = asyncio.get_running_loop().call_later(_RETRY_S, self._send)
            return
        if error is not None and not _is_repeated(error):
            _log.error("stream_log_refused", exc_info=error)
            self.is_lost = True
            return
        self._failing_since = 0.0
        self._sending = None
        if self._waiting or (self._is_ending and not self._is_closed):
            self._schedule(_COLLECT_S)


def _is_repeated(error: BaseException) -> bool:
    """The entry was written the first time, and only the answer got lost."""
    return isinstance(error, ResponseError) and "equal or smaller" in str(error)


class LogReader:
    """Reads logs, of answers that are still being made or ended a while ago."""

    def __init__(self, redis: Redis, streams: Streams, bounds: LogBounds) -> None:
        self._redis = redis
        self._streams = streams
        self._readers: Counter[str] = Counter()
        self.bounds = bounds

    async def follow(self, account: str, sid: str) -> AsyncGenerator[Part | None]:
        """Every part from the first to the last, as they come; ``None`` where there is nothing at the moment.

        Raises ``LimitExceeded`` where the account has as many readers as it may, ``ServiceUnavailable`` where the rest
        is not to be had, and ``StoreUnavailable``. Whoever stops early closes it.
        """
        with self._place(account):
            async with contextlib.aclosing(self._parts(account, sid)) as parts:
                async for part in parts:
                    yield part

    @contextlib.contextmanager
    def _place(self, account: str) -> Iterator[None]:
        """One of the account's places for readers."""
        if self._readers[account] >= self.bounds.readers_max:
            raise LimitExceeded(
                f"This account reads as many answers again as it may at once ({self.bounds.readers_max}).",
                limit="readers",
                scope="account",
                code=ErrorCode.CONCURRENCY_LIMIT_EXCEEDED,
                retry_after_s=1,
            )
        self._readers[account] += 1
        try:
            yield
        finally:
            self._readers[account] -= 1
            if not self._readers[account]:
                del self._readers[account]

    async def _parts(self, account: str, sid: str) -> AsyncGenerator[Part | None]:
        number, quiet_since, pause_s, seen_at = 0, time.monotonic(), _LOOK_S, 0.0
        while True:
            now = time.monotonic()
            if now - seen_at > self.bounds.orphan_s / 3:
                seen_at = now
                watched_ms = max(1, int(self.bounds.orphan_s * 1000))
                await self._redis.call("SET", keys.watched(account, sid), "1", "PX", watched_ms)
            parts = await self._read(account, sid, number)
            for part in parts:
                if part.number != number + 1:
                    raise _missing()
                number = part.number
                yield part
                if part.is_end:
                    return
            if parts:
                quiet_since, pause_s = time.monotonic(), _LOOK_S
                continue
            if now - quiet_since > _QUIET_S:
                await self._check_running(account, sid, number)
                quiet_since = now
            yield None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_S_MAX)

    async def _read(self, account: str, sid: str, after: int) -> list[Part]:
        entries = await self._redis.call(
            "XRANGE", keys.log(account, sid), f"({after}-1" if after else "-", "+", "COUNT", _PAGE
        )
        return [_part(entry) for entry in entries]

    async def _check_running(self, account: str, sid: str, number: int) -> None:
        """Nothing was said for a while: either the model thinks, or the gateway that ran it is gone."""
        found = await self._streams.get(account, sid)
        if (found is None or found.state != "open") and not await self._read(account, sid, number):
            raise _missing()


def _missing() -> ServiceUnavailable:
    return ServiceUnavailable(_MISSING, code=ErrorCode.STREAM_TRUNCATED)


def _part(entry: Any) -> Part:
    identity, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    head = fields.get(b"h")
    return Part(
        number=int(identity.partition(b"-")[0]),
        payload=fields[b"b"],
        head=None if head is None else msgspec.json.decode(head, type=Head | None),
        is_end=b"e" in fields,
    )
