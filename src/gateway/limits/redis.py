"""The way to Redis: one owner has the connection and pipelines whatever is waiting.

Callers await a future, so a request that is cancelled never touches a socket: no half-read reply, no leaked
connection, no pool to exhaust, and a fraction of the CPU of a call of its own. redis-py's own retries are off; every
script is safe to repeat, so the one retry policy is ours (``retrying``). ``Redis`` is what callers see, whether behind
it is one server, a master that Sentinels name, or a cluster; ``gateway.limits.connect`` makes the right one of a URL.
"""

import asyncio
import contextlib
import hashlib
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection

from gateway.limits.link import Link

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

_LAST_LOOK_S = 0.001
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
    """A script's text and the digest Redis knows it by.

    A call of it waits up to ``patience_s`` for another to travel with, and arrives before that one.
    """

    __slots__ = ("patience_s", "sha", "text")

    def __init__(self, text: str, *, patience_s: float = 0.0) -> None:
        self.text = text
        self.patience_s = patience_s
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
        except (
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # another shape than its stub expects
            self.future.set_exception(error)

    def refuse(self, error: Exception) -> None:
        """Fail the call, unless its caller has gone."""
        if not self.future.done():
            self.future.set_exception(error)


class RedisOwner:
    """One connection. ``call`` and ``script`` return futures that fail with ``StoreUnavailable``.

    What is called within one turn of the event loop travels together, and the next batch once that is answered.
    ``timeout_s`` bounds one round trip; ``calls_max`` bounds what may wait.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5, calls_max: int = 20_000, batch_max: int = 256) -> None:
        self._pool = connection_pool(url, timeout_s)
        self._timeout_s = timeout_s
        self._calls_max = calls_max
        self._batch_max = batch_max
        self._waiting: deque[Call] = deque()
        # What was sent and has no answer, in order; None is an answer that nobody waits for.
        self._on_way: deque[Call | None] = deque()
        self._unknown: list[Call] = []
        # Scripts that the server on this connection has run.
        self._known: set[str] = set()
        self._sent_at = 0.0
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_demoted = False
        self.on_round_trip: Callable[[float], None] = lambda seconds: None

    def start(self) -> None:
        """Start the owner task; call from a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-owner")
        if self._waiting:
            self._wake.set()

    def call(self, *args: Any) -> asyncio.Future[Any]:
        """Send one command."""
        return self.enqueue(Call(args, None, None, asyncio.get_running_loop().create_future()))

    def script(
        self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        """Run one script; ``parse`` gives its reply a type."""
        return self.enqueue(Call((len(keys), *keys, *args), source, parse, asyncio.get_running_loop().create_future()))

    async def masters(self) -> Sequence["RedisOwner"]:
        """This one."""
        return (self,)

    @property
    def address(self) -> str:
        """Where it is connected to, as host:port or path; empty while it is not."""
        return "" if self._link is None else self._link.address

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._link is not None

    @property
    def is_exposed(self) -> bool:
        """Whether what is said crosses a network unencrypted."""
        return self._link is not None and self._link.is_exposed

    def enqueue(self, call: Call) -> asyncio.Future[Any]:
        """Send a call that exists already; returns its future."""
        if self._is_closed:
            call.refuse(StoreUnavailable(_STOPPING))
        elif len(self._waiting) >= self._calls_max:
            call.refuse(StoreUnavailable("Too many calls are waiting for Redis."))
        else:
            self._waiting.append(call)
            if call.source is None or not call.source.patience_s or call.source.sha not in self._known:
                self._send_soon()  # a script that has to be sent again would arrive after what it was to precede
            elif self._patience is None:
                self._patience = call.future.get_loop().call_later(call.source.patience_s, self._lose_patience)
        return call.future

    def _lose_patience(self) -> None:
        self._patience = None
        if self._waiting:
            self._send_soon()

    def _send_soon(self) -> None:
        """Send what waits after this turn of the loop, or once everything on its way is answered."""
        if not self._is_due:
            self._is_due = True
            if not self._on_way and self._task is not None:
                self._task.get_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._on_way:
            return
        self._is_due = False
        if self._link is None:
            self._wake.set()
            return
        waiting = self._waiting
        batch: list[Call] = []
        while waiting and len(batch) < self._batch_max:
            call = waiting.popleft()
            if not call.future.done():
                batch.append(call)
        if batch:
            self._is_due = bool(waiting)
            self._sent_at = time.perf_counter()
            self._send(batch, with_source=False)

    def _send(self, batch: Sequence[Call], *, with_source: bool) -> None:
        self._on_way.extend(batch)
        self._write(b"".join([call.packed_with_source() if with_source else call.packed for call in batch]))

    def _write(self, packed: bytes) -> None:
        assert self._link is not None and self._task is not None
        if self._timer is None:
            self._timer = self._task.get_loop().call_later(self._timeout_s, self._look_at_clock)
        try:
            self._link.write(packed)
        except (OSError, RuntimeError) as error:  # uvloop: the handler is closed
            self._fail(error)

    def _look_at_clock(self, is_last: bool = False) -> None:
        """One timer serves all round trips: it goes off once per time-out, and sees how old the one under way is."""
        self._timer = None
        if not self._on_way or self._task is None:
            return
        left_s = self._sent_at + self._timeout_s - time.perf_counter()
        if left_s > 0:
            self._timer = self._task.get_loop().call_later(left_s, self._look_at_clock)
        elif is_last:
            self._fail(TimeoutError())
        else:  # where it was this process that stood still, the answer may be there: let the loop read it
            self._timer = self._task.get_loop().call_later(_LAST_LOOK_S, self._look_at_clock, True)

    def _take(self, reply: Any) -> None:
        """The next reply, for the oldest call on its way."""
        if isinstance(reply, LostConnection) or not self._on_way:
            self._fail(
                reply if isinstance(reply, LostConnection) else InvalidResponse("It answered what nobody asked.")
            )
            return
        call = self._on_way.popleft()
        if call is None:
            pass
        elif not isinstance(reply, ResponseError):
            if call.source is not None:
                self._known.add(call.source.sha)
            call.answer(reply)
        elif isinstance(reply, NoScriptError) and call.source is not None:
            self._known.clear()
            self._unknown.append(call)
        else:
            self._refuse(call, reply)
        if not self._on_way:
            self._arrived()

    def _arrived(self) -> None:
        """Everything on its way has been answered."""
        if self._unknown:  # after a restart or SCRIPT FLUSH: EVAL runs a script and caches it in the same trip
            unknown, self._unknown = self._unknown, []
            self._send(unknown, with_source=True)
            return
        self.on_round_trip(time.perf_counter() - self._sent_at)
        if self._is_demoted:
            self._drop_link(is_broken=True)
        if self._is_due and self._task is not None:
            # After the callers that were just answered had their turn: what they ask next travels along.
            self._task.get_loop().call_soon(self._flush)

    def _refuse(self, call: Call, error: ResponseError) -> None:
        """Redis answered with an error; a cluster's node overrides this, since some of them say where to go."""
        self._is_demoted = self._is_demoted or _means(error, _DEMOTED_CLASSES, _DEMOTED)
        call.refuse(StoreUnavailable(str(error)) if _means(error, _NOT_NOW_CLASSES, _NOT_NOW) else error)

    async def _run(self) -> None:
        """Connect whenever somebody calls and there is no connection.

        A cancellation may get lost while connecting: Python 3.11's ``wait_for``, which redis-py sends with, drops one
        that comes when it is done.
        """
        while not self._is_closed:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._link is None:
                    self._link = Link(await self._connect(), self._take, self._lost)
                self._flush()
            except Exception as error:  # whatever a connection raises, the owner lives on
                self._fail(error)

    async def _connect(self) -> AbstractConnection:
        """Whoever resolves its address first overrides this, and has the same time for each."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await hang_up(connection)
            raise
        return connection

    def _lost(self, error: Exception) -> None:
        if self._on_way:
            self._fail(error)
        else:  # what waits is not lost with it
            self._drop_link(is_broken=True)

    def _fail(self, error: Exception) -> None:
        """Give up the connection, what is on its way, and what waits: that would only time out one after the other."""
        self._drop_link(is_broken=True)
        self._refuse_all(_reason(error))

    def _refuse_all(self, reason: str) -> None:
        calls = (*self._on_way, *self._unknown, *self._waiting)
        self._is_due = False
        for queue in (self._on_way, self._unknown, self._waiting):
            queue.clear()
        for call in calls:
            if call is not None:
                call.refuse(StoreUnavailable(reason))

    def _drop_link(self, *, is_broken: bool) -> None:
        link, self._link = self._link, None
        self._is_demoted = False
        self._known.clear()
        if link is not None:
            link.close(is_broken=is_broken)

    async def aclose(self) -> None:
        """Stop the owner; calls that still wait fail, and so do later ones."""
        self._is_closed = True
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:  # whoever closes may be cancelled meanwhile
            for timer in (self._timer, self._patience):
                if timer is not None:
                    timer.cancel()
            self._drop_link(is_broken=False)
            self._refuse_all(_STOPPING)


async def hang_up(connection: AbstractConnection) -> None:
    """Close a connection that nobody has taken over."""
    with contextlib.suppress(RedisError, OSError, RuntimeError):
        await connection.disconnect(nowait=True)


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
