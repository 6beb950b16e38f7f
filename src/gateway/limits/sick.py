"""Deployments that a gateway found failing: the others leave them alone too, without having to find out themselves.

One small hash that every gateway adds to and reads each second. It is advice: without Redis each finds out by itself.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable

_log = structlog.get_logger()

_PAUSE_S = 1.0
_KEPT_MS = 600_000
_TELLABLE_S = 0.5


class SickList:
    """Tells and hears, for ever. ``sick`` gives names and how much longer they are left alone, in seconds."""

    def __init__(
        self, redis: Redis, sick: Callable[[float], dict[str, float]], hear: Callable[[str, float], None]
    ) -> None:
        self._redis = redis
        self._sick = sick
        self._hear = hear

    async def run(self) -> None:
        """A task root."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            try:
                await self.exchange()
            except StoreUnavailable:
                continue
            except RedisError:
                _log.exception("sick_list_unread")

    async def exchange(self) -> None:
        """Tell what is sick here and hear what is elsewhere; times are Unix ms, clocks of replicas agree in seconds."""
        now_ms = int(time.time() * 1000)
        own = self._sick(time.monotonic())
        told = {name: now_ms + int(left_s * 1000) for name, left_s in own.items() if left_s > _TELLABLE_S}
        if told:
            await self._redis.call("HSET", keys.SICK, *[word for item in told.items() for word in item])
            await self._redis.call("PEXPIRE", keys.SICK, _KEPT_MS)
        flat = await self._redis.call("HGETALL", keys.SICK)
        over: list[bytes] = []
        for name, until in zip(flat[::2], flat[1::2], strict=True):
            left_s = (int(until) - now_ms) / 1000
            if left_s <= 0:
                over.append(name)
            elif name.decode() not in own:
                self._hear(name.decode(), left_s)
        if over:
            await self._redis.call("HDEL", keys.SICK, *over)
