"""The way to Redis: one task owns the connection and pipelines whatever is waiting.

Callers await a future, so a request that is cancelled never touches a socket: no half-read reply, no leaked
connection, no pool to exhaust, and half the CPU of a call of its own. redis-py's own retries are off; every script is
safe to repeat, so the one retry policy is ours (``retrying``).
"""

import asyncio
import contextlib
import hashlib
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

T = TypeVar("T")

# Answers that mean "not now", by class and by text; anything else a server refuses is a bug in what we sent. redis-py
# turns some first words into a class and strips them, and Redis 6.2 wraps them ("Error running script … -OOM …").
_NOT_NOW_CLASSES = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError, MasterDownError)
_NOT_NOW = (
    "OOM",
    "maxmemory",
    "MISCONF",
    "READONLY",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "LOADING",
    "loading the dataset",
    "TRYAGAIN",
    "BUSY",
)

_STOPPING = "The gateway is stopping."


class StoreUnavailable(Exception):
    """Redis did not answer, or answered that it cannot now. The call may or may not have been carried out."""


class LuaSource:
    """A script's text and the digest Redis knows it by."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Call:
    __slots__ = ("args", "future", "packed", "parse", "source")

    def __init__(
        self,
        args: tuple[Any, ...],
        source: LuaSource | None,
        parse: Callable[[Any], Any] | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.args = args
        self.source = source
        self.parse = parse
        self.future = future
        # Packed here, so that what cannot be sent is told to its caller and never reaches the owner.
        self.packed: bytes = pack_command(args if source is None else ("EVALSHA", source.sha, *args))

    def packed_with_source(self) -> bytes:
        assert self.source is not None
        packed: bytes = pack_command(("EVAL", self.source.text, *self.args))
        return packed

    def answer(self, reply: Any) -> None:
        if self.future.done():
            return
        try:
            self.future.set_result(reply if self.parse is None else self.parse(reply))
        except (TypeError, ValueError) as error:  # a script answered in another shape than its stub expects
            self.future.set_exception(error)

    def refuse(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class RedisOwner:
    """One connection, one owner. ``call`` and ``script`` return futures that fail with ``StoreUnavailable``.

    ``timeout_s`` bounds one round trip; ``calls_max`` bounds what may wait.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5, calls_max: int = 20_000, batch_max: int = 256) -> None:
        self._pool = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._timeout_s = timeout_s
        self._calls_max = calls_max
        self._batch_max = batch_max
        self._waiting: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self.on_round_trip: Callable[[float], None] = lambda seconds: None

    def start(self) -> None:
        """Start the owner task; call from a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-owner")

    def call(self, *args: Any) -> asyncio.Future[Any]:
        """Send one command."""
        return self._enqueue(_Call(args, None, None, self._future()))

    def script(
        self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        """Run one script; ``parse`` gives its reply a type."""
        return self._enqueue(_Call((len(keys), *keys, *args), source, parse, self._future()))

    def _future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def _enqueue(self, call: _Call) -> asyncio.Future[Any]:
        if self._is_closed:
            call.refuse(StoreUnavailable(_STOPPING))
        elif len(self._waiting) >= self._calls_max:
            call.refuse(StoreUnavailable("Too many calls are waiting for Redis."))
        else:
            self._waiting.append(call)
            self._wake.set()
        return call.future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
                batch = [call for call in batch if not call.future.done()]
                if batch:
                    await self._serve(batch)

    async def _serve(self, batch: list[_Call]) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._round_trip(batch)
        except Exception as error:  # whatever a broken connection raises (uvloop: RuntimeError), the owner lives on
            await self._drop_connection()
            for call in batch:
                call.refuse(StoreUnavailable(type(error).__name__))
        except asyncio.CancelledError:
            for call in batch:
                call.refuse(StoreUnavailable(_STOPPING))
            raise
        else:
            self.on_round_trip(time.perf_counter() - started)

    async def _round_trip(self, batch: list[_Call]) -> None:
        unknown = await self._exchange(batch, with_source=False)
        if unknown:  # after a restart or SCRIPT FLUSH: EVAL runs a script and caches it in the same trip
            await self._exchange(unknown, with_source=True)

    async def _exchange(self, batch: list[_Call], *, with_source: bool) -> list[_Call]:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()
        packed = b"".join([call.packed_with_source() if with_source else call.packed for call in batch])
        await connection.send_packed_command(packed, check_health=False)
        unknown: list[_Call] = []
        for call in batch:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except NoScriptError:
                unknown.append(call)
            except ResponseError as error:
                call.refuse(_classified(error))
            else:
                call.answer(reply)
        return unknown

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError, RuntimeError):
                await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Stop the owner; calls that still wait fail, and so do later ones."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drop_connection()
        while self._waiting:
            self._waiting.popleft().refuse(StoreUnavailable(_STOPPING))


def _classified(error: ResponseError) -> Exception:
    text = str(error)
    is_for_now = isinstance(error, _NOT_NOW_CLASSES) or any(phrase in text for phrase in _NOT_NOW)
    return StoreUnavailable(text) if is_for_now else error


async def retrying(call: Callable[[], Awaitable[T]], budget_s: float) -> T:
    """Repeat a call that is safe to repeat until it answers or ``budget_s`` is over; then ``StoreUnavailable``."""
    deadline = time.monotonic() + budget_s
    attempt = 0
    while True:
        try:
            return await call()
        except StoreUnavailable:
            attempt += 1
            pause = random.random() * min(0.5, 0.01 * 2 ** min(attempt, 6))
            if time.monotonic() + pause >= deadline:
                raise
            await asyncio.sleep(pause)
