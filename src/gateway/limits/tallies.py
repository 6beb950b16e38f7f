"""Counters that all replicas share: summed here for a second, then added to hashes in Redis.

``add`` is for the hot path and only adds to a dictionary. What Redis did not take stays for the next flush. A flush
that Redis carried out but could not acknowledge is sent again and counts twice: these are statistics, not money.
"""

import asyncio
from typing import Any

import msgspec
import structlog

from gateway.limits.redis import Redis, StoreUnavailable

_log = structlog.get_logger()

_FLUSH_S = 1.0
COUNTERS_MAX = 50_000
# Commands to have in the queue at once: the queue is the one that money goes through, and this can wait.
_COMMANDS_MAX = 128


class _Key(msgspec.Struct):
    """What one hash is owed: sums by field, fields to remove, and how long it then lives."""

    ttl_s: int
    sums: dict[str, int] = {}
    stale: tuple[str, ...] = ()


class _Command(msgspec.Struct, frozen=True):
    """One call, and what is owed again where Redis does not take it."""

    key: str
    field: str
    amount: int
    ttl_s: int
    arguments: tuple[Any, ...]


class Tallies:
    """Sums on their way to Redis. ``dropped`` counts the additions that were lost for want of room."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owed: dict[str, _Key] = {}
        self._counters = 0
        self._told = 0
        self.dropped = 0

    def add(self, key: str, field: str, amount: int, *, ttl_s: int) -> None:
        """Add to one field of one hash, which lives for ``ttl_s`` from then on."""
        owed = self._owed.get(key)
        if owed is not None and field in owed.sums:
            owed.sums[field] += amount
        elif self._counters >= COUNTERS_MAX:
            self.dropped += 1
        else:
            self._counters += 1
            if owed is None:
                owed = self._owed[key] = _Key(ttl_s)
            owed.sums[field] = amount

    def forget(self, key: str, fields: tuple[str, ...]) -> None:
        """Remove fields of a hash that is about to be added to; without an addition under way nothing happens."""
        owed = self._owed.get(key)
        if owed is not None:
            owed.stale = fields

    async def run(self) -> None:
        """Flush every second, for ever; a task root."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Send what there is; what Redis does not take stays, and nothing is raised."""
        keys = list(self._owed)
        while keys:
            batch: list[_Command] = []
            while keys and len(batch) < _COMMANDS_MAX:
                batch += self._take(keys.pop())
            if not await self._send(batch):
                break
        if self.dropped > self._told:
            self._told = self.dropped
            _log.warning("tallies_dropped", dropped=self.dropped, advice="statistics have gaps; is Redis away?")

    def _take(self, key: str) -> list[_Command]:
        owed = self._owed.pop(key, None)
        if owed is None:  # another flush has it
            return []
        self._counters -= len(owed.sums)
        return _commands(key, owed)

    async def _send(self, batch: list[_Command]) -> bool:
        """Whether Redis took every command; what it did not is owed again, also where this is cancelled."""
        futures = [self._redis.call(*command.arguments) for command in batch]
        try:
            if futures:
                await asyncio.wait(futures)
        finally:
            left = [
                command for command, future in zip(batch, futures, strict=True) if self._is_left(command.key, future)
            ]
            for command in left:
                self.add(command.key, command.field, command.amount, ttl_s=command.ttl_s)
        return not left

    def _is_left(self, key: str, future: asyncio.Future[Any]) -> bool:
        if not future.done():
            future.cancel()
        if future.cancelled():
            return True
        error = future.exception()
        if error is None or isinstance(error, StoreUnavailable):
            return error is not None
        self.dropped += 1
        _log.warning("tally_refused", key=key, reason=str(error))
        return False

    async def read(self, *keys: str) -> list[dict[str, int]]:
        """Each hash as all replicas have flushed it so far; empty where there is none. Raises ``StoreUnavailable``."""
        replies = await asyncio.gather(*(self._redis.call("HGETALL", key) for key in keys))
        return [_counters(flat) for flat in replies]


def _commands(key: str, owed: _Key) -> list[_Command]:
    """Everything one hash is owed."""
    commands = [
        _Command(key, field, amount, owed.ttl_s, ("HINCRBY", key, field, amount)) for field, amount in owed.sums.items()
    ]
    whole: list[tuple[Any, ...]] = [("EXPIRE", key, owed.ttl_s)]
    if owed.stale:
        whole.append(("HDEL", key, *owed.stale))
    # Where one of these is not taken, adding nothing to a field brings the end along next time.
    field = next(iter(owed.sums))
    return commands + [_Command(key, field, 0, owed.ttl_s, arguments) for arguments in whole]


def _counters(flat: list[bytes]) -> dict[str, int]:
    return {field.decode(): int(count) for field, count in zip(flat[::2], flat[1::2], strict=True)}
