"""The exchanges that run in this process: their common clock, and their end when the process has to go.

One coarse timer serves every stream (heartbeats, deadlines, lease renewals), so that none needs timers of its own.
"""

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import Protocol

import structlog

_log = structlog.get_logger()

TICK_S = 0.25
# With more running than this, answers nobody waits for are not read on.
_RUNNING_WITH_DRAINS_MAX = 2_000
_REVOKED_MAX = 100
_GONE_LOOK_S = 1.0


class Running(Protocol):
    """What the registry needs of an exchange."""

    def tick(self, now: float) -> None:
        """Look at the clock; ``now`` is monotonic."""
        ...

    def drain(self) -> None:
        """Come to an end: the process stops."""
        ...

    def revoke(self, name: str) -> None:
        """Come to an end if this account, or ``key:<id>``, is one's own."""
        ...


class LiveExchanges:
    """Every exchange of this process."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self._arriving: set[object] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_over = False
        # For those that are being admitted while somebody revokes them.
        self._revoked: deque[tuple[str, float]] = deque(maxlen=_REVOKED_MAX)
        self.is_draining = False
        self.now = time.monotonic()

    def __len__(self) -> int:
        return len(self._running)

    def arriving(self) -> "_Arrival":
        """A request is being read or runs while this is entered; a drain waits for it too."""
        return _Arrival(self)

    def _arrived(self, here: object) -> None:
        self._arriving.add(here)
        self._empty.clear()

    def _gone(self, here: object) -> None:
        self._arriving.discard(here)
        self._look()

    async def outlast_those_here(self) -> None:
        """Wait until every request that is here by now has gone; those that come meanwhile do not count."""
        here = frozenset(self._arriving)
        while here & self._arriving:
            await asyncio.sleep(_GONE_LOOK_S)

    def add(self, exchange: Running, *, since: float | None = None) -> None:
        """An exchange begins; one that comes after the end of a drain's grace is ended at once.

        So is one of which the account or key was revoked after ``since``, the monotonic time of its arrival.
        """
        self._running.add(exchange)
        if since is not None:
            for name, at in self._revoked:
                if at >= since:
                    exchange.revoke(name)
        self._empty.clear()
        if self.is_over:
            exchange.drain()

    def discard(self, exchange: Running) -> None:
        """An exchange ended."""
        self._running.discard(exchange)
        self._look()

    def may_drain(self) -> bool:
        """Whether one more answer may be read to its end that nobody waits for."""
        return not self.is_draining and len(self._running) < _RUNNING_WITH_DRAINS_MAX

    def _look(self) -> None:
        if not self._running and not self._arriving:
            self._empty.set()

    async def run(self) -> None:
        """The clock; a task root."""
        while True:
            await asyncio.sleep(TICK_S)
            self.now = time.monotonic()
            for exchange in tuple(self._running):
                try:
                    exchange.tick(self.now)
                except Exception:  # one stream's trouble must not stop the clock of all others
                    _log.exception("tick_failed")

    def revoke(self, name: str) -> None:
        """End what runs for an account, or ``key:<id>``."""
        self._revoked.append((name, time.monotonic()))
        for exchange in tuple(self._running):
            exchange.revoke(name)

    async def drain(self, grace_s: float) -> None:
        """Refuse new exchanges, let those that run finish for ``grace_s``, then end them and wait until they have."""
        self.is_draining = True
        if await self._emptied(grace_s):
            return
        self.is_over = True
        for exchange in tuple(self._running):
            exchange.drain()
        await self._emptied(10.0)

    async def _emptied(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


class _Arrival:
    """A request that is here; of its own, since a generator would cost three times as much per request."""

    __slots__ = ("_live",)

    def __init__(self, live: LiveExchanges) -> None:
        self._live = live

    def __enter__(self) -> None:
        self._live._arrived(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live._gone(self)
