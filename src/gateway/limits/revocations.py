"""Accounts that were suspended and keys that were revoked a moment ago: what ends streams that already run.

Admission refuses them by itself; this is for what was admitted before. Each gateway looks twice a second at one short
list that all share, so a stream outlives its account's suspension by a second at most.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable, retrying

_log = structlog.get_logger()

_PAUSE_S = 0.5
_KEPT_MS = 3_600_000
_BUDGET_S = 5.0

KEY_PREFIX = "key:"
STANDING_PREFIX = "standing:"
STREAM_PREFIX = "stream:"


class Revocations:
    """Tells ``on_revoked`` of each account, or ``key:<id>``, that was suspended or revoked.

    The same list carries ``stream:<id>``, which its caller stopped, and ``standing:<account>``, of which only what is
    remembered has to be read anew.
    """

    def __init__(self, redis: Redis, on_revoked: Callable[[str], None]) -> None:
        self._redis = redis
        self._on_revoked = on_revoked
        self._known: dict[bytes, bytes] = {}

    async def run(self) -> None:
        """Look for ever; a task root. What was revoked before the first look is known already."""
        self._known = await self._read_known()
        while True:
            await asyncio.sleep(_PAUSE_S)
            try:
                await self.look()
            except StoreUnavailable:
                continue
            except RedisError:
                _log.exception("revocations_unread")

    async def _read_known(self) -> dict[bytes, bytes]:
        while True:
            try:
                return await self._listed()
            except StoreUnavailable:
                await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Look once."""
        listed = await self._listed()
        fresh = [name for name, at in listed.items() if self._known.get(name) != at]
        self._known = listed
        for name in fresh:
            self._on_revoked(name.decode())

    async def _listed(self) -> dict[bytes, bytes]:
        flat = await self._redis.call("ZRANGE", keys.REVOKED, 0, -1, "WITHSCORES")
        return dict(zip(flat[::2], flat[1::2], strict=True))


async def revoke(redis: Redis, name: str) -> None:
    """Put an account, or ``key:<id>``, on the list; what is old on it goes. Tried for a while: it is urgent."""
    now_ms = int(time.time() * 1000)
    await retrying(lambda: redis.call("ZADD", keys.REVOKED, now_ms, name), _BUDGET_S)
    await retrying(lambda: redis.call("ZREMRANGEBYSCORE", keys.REVOKED, "-inf", now_ms - _KEPT_MS), _BUDGET_S)
