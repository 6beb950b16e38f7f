"""The way to Redis: one task owns the connection and pipelines whatever is waiting.

Callers await a future, so a request that is cancelled never touches a socket: no half-read reply, no leaked
connection, no pool to exhaust, and half the CPU of a call of its own. redis-py's own retries are off; every script is
safe to repeat, so the one retry policy is ours (``retrying``). ``Redis`` is what callers see, whether behind it is one
server, a master that Sentinels name, or a cluster; ``gateway.limits.connect`` makes the right one of a URL.
"""

import asyncio
import contextlib
import hashlib
import math
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
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
# LOADING is missing among the classes: redis-py makes it a ConnectionError, which costs the connection.
_NOT_NOW_CLASSES = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError, MasterDownError)
_NOT_NOW = re.compile(
    r"\b(?:OOM|MISCONF|READONLY|NOREPLICAS|CLUSTERDOWN|MASTERDOWN|LOADING|TRYAGAIN|BUSY)\b"
    r"|'maxmemory'|loading the dataset"
)
# Answers of a server that is no master any more: somebody else may be, so its address is looked up anew.
_DEMOTED_CLASSES = (ReadOnlyError, MasterDownError)
_DEMOTED = re.compile(r"\b(?:READONLY|MASTERDOWN)\b")

_STOPPING = "The gateway is stopping."


class StoreUnavailable(Exception):
    """Redis did not answer, or answered that it cannot now. The call may or may not have been carried out."""


class Redis(Protocol):
    """What every form of Redis does. Futures fail with ``StoreUnavailable``, or with what Redis refused for good."""

    on_round_trip: Callable[[float], None]

    def start(self) -> None:
        """Start the owner task; call from a running loop."""

    def call(self, *args: Any) -> asyncio.Future[Any]:
        """Send one command."""

    def script(
        self, source: "LuaSource", keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        """Run one script; ``parse`` gives its reply a type."""

    async def masters(self) -> Sequence["RedisOwner"]:
        """Every server that is written to; may raise ``StoreUnavailable``."""

    async def aclose(self) -> None:
        """Stop; calls that still wait fail, and so do later ones."""


class LuaSource:
    """A script's text and the digest Redis knows it by."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Call:
    """A call that waits for its answer; may be sent again."""

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
        """The same with the script's text, for a server that does not know it."""
        assert self.source is not None
        packed: bytes = pack_command(("EVAL", self.source.text, *self.args))
        return packed

    def answer(self, reply: Any) -> None:
        """Give the caller what Redis replied."""
        if self.future.done():
            return
        try:
            self.future.set_result(reply if self.parse is None else self.parse(reply))
        except (TypeError, ValueError) as error:  # a script answered in another shape than its stub expects
            self.future.set_exception(error)

    def refuse(self, error: Exception) -> None:
        """Fail the call, unless its caller has gone."""
        if not self.future.done():
            self.future.set_exception(error)


class RedisOwner:
    """One connection, one owner. ``call`` and ``script`` return futures that fail with ``StoreUnavailable``.

    ``timeout_s`` bounds one round trip; ``calls_max`` bounds what may wait.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5, calls_max: int = 20_000, batch_max: int = 256) -> None:
        self._pool = connection_pool(url, timeout_s)
        self._timeout_s = timeout_s
        self._calls_max = calls_max
        self._batch_max = batch_max
        self._waiting: deque[Call] = deque()
        self._wake = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_demoted = False
        self.on_round_trip: Callable[[float], None] = lambda seconds: None

    def start(self) -> None:
        """Start the owner task; call from a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-owner")

    def call(self, *args: Any) -> asyncio.Future[Any]:
        """Send one command."""
        return self.enqueue(Call(args, None, None, self._future()))

    def script(
        self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        """Run one script; ``parse`` gives its reply a type."""
        return self.enqueue(Call((len(keys), *keys, *args), source, parse, self._future()))

    async def masters(self) -> Sequence["RedisOwner"]:
        """This one."""
        return (self,)

    @property
    def address(self) -> str:
        """Where it is connected to, as host:port or path; empty while it is not."""
        return "" if self._connection is None else _address(self._connection)

    @property
    def is_connected(self) -> bool:
        """Whether the last call reached the server."""
        return self._connection is not None

    @property
    def is_exposed(self) -> bool:
        """Whether what is said crosses a network unencrypted."""
        return self._connection is not None and _is_exposed(self._connection)

    def _future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def enqueue(self, call: Call) -> asyncio.Future[Any]:
        """Send a call that exists already; returns its future."""
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

    async def _serve(self, batch: list[Call]) -> None:
        started = time.perf_counter()
        try:
            if self._connection is None:
                await self._connect()
            async with asyncio.timeout(self._timeout_s):
                await self._round_trip(batch)
        except Exception as error:  # whatever a broken connection raises (uvloop: RuntimeError), the owner lives on
            await self._drop_connection()
            # What waits behind would only time out one batch after the other.
            waiting, self._waiting = self._waiting, deque()
            for call in (*batch, *waiting):
                call.refuse(StoreUnavailable(_reason(error)))
        except asyncio.CancelledError:
            for call in batch:
                call.refuse(StoreUnavailable(_STOPPING))
            raise
        else:
            self.on_round_trip(time.perf_counter() - started)
            if self._is_demoted:
                await self._drop_connection()

    async def _connect(self) -> None:
        """Set ``_connection``. Whoever resolves its address first overrides this, and has the same time for each."""
        async with asyncio.timeout(self._timeout_s):
            connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()

    async def _round_trip(self, batch: list[Call]) -> None:
        unknown = await self._exchange(batch, with_source=False)
        if unknown:  # after a restart or SCRIPT FLUSH: EVAL runs a script and caches it in the same trip
            await self._exchange(unknown, with_source=True)

    async def _exchange(self, batch: list[Call], *, with_source: bool) -> list[Call]:
        connection = self._connection
        assert connection is not None
        packed = b"".join([call.packed_with_source() if with_source else call.packed for call in batch])
        await connection.send_packed_command(packed, check_health=False)
        unknown: list[Call] = []
        for call in batch:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except NoScriptError:
                unknown.append(call)
            except ResponseError as error:
                self._refuse(call, error)
            else:
                call.answer(reply)
        return unknown

    def _refuse(self, call: Call, error: ResponseError) -> None:
        """Redis answered with an error; a cluster's node overrides this, since some of them say where to go."""
        self._is_demoted = self._is_demoted or _means(error, _DEMOTED_CLASSES, _DEMOTED)
        call.refuse(StoreUnavailable(str(error)) if _means(error, _NOT_NOW_CLASSES, _NOT_NOW) else error)

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        self._is_demoted = False
        if connection is not None:
            with contextlib.suppress(RedisError, OSError, RuntimeError):
                await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Stop the owner; calls that still wait fail, and so do later ones."""
        self._is_closed = True
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:  # whoever closes may be cancelled meanwhile
            await self._drop_connection()
            while self._waiting:
                self._waiting.popleft().refuse(StoreUnavailable(_STOPPING))


def _reason(error: Exception) -> str:
    if isinstance(error, StoreUnavailable):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _means(error: ResponseError, classes: tuple[type[ResponseError], ...], text: re.Pattern[str]) -> bool:
    return isinstance(error, classes) or text.search(str(error)) is not None


def connection_pool(url: str, timeout_s: float) -> ConnectionPool:
    """Makes connections; pools none. Without driver_info, redis-py sends no CLIENT SETINFO, which an ACL may refuse."""
    return ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
    )


def _address(connection: AbstractConnection) -> str:
    if isinstance(connection, UnixDomainSocketConnection):
        return str(connection.path)
    return f"{getattr(connection, 'host', '')}:{getattr(connection, 'port', '')}"


def _is_exposed(connection: AbstractConnection) -> bool:
    if isinstance(connection, (UnixDomainSocketConnection, SSLConnection)):
        return False
    host = str(getattr(connection, "host", ""))
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


async def ask(url: str, *args: Any, timeout_s: float) -> Any:
    """Send one command on a connection of its own."""
    owner = RedisOwner(url, timeout_s=timeout_s)
    owner.start()
    try:
        return await owner.call(*args)
    finally:
        await owner.aclose()


def forget_result(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this call, nor minds if it fails."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())


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
