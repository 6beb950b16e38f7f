"""Rate limits while Redis is away: each gateway keeps its own share of them, in its own memory.

Only where no money is at stake (``credits: off``): a balance that cannot be asked for is not spent. A share is the
limit divided by the gateways that were last heard of, so together they keep to about the limit; slots are the requests
that this process runs. Windows cannot be known and are not looked at.
"""

import time
from collections.abc import Callable

from gateway.limits.allowances import Allowances, Bucket, Slots, Unit
from gateway.limits.refusals import limit_error

_KEYS_MAX = 50_000


class Alone:
    """Decides by itself. ``replicas`` tells how many gateways share the limits."""

    def __init__(self, replicas: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas = replicas
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}

    def take(self, allowances: Allowances, tokens: int) -> None:
        """Take one request from every bucket and slot, or raise ``LimitExceeded`` and take nothing."""
        now = self._clock()
        share = max(1, self._replicas())
        names = allowances.keys[len(allowances.windows) :]
        levels: dict[str, tuple[float, float]] = {}
        limits: tuple[Bucket | Slots, ...] = (*allowances.buckets, *allowances.slots)
        for name, limit in zip(names, limits, strict=True):
            if limit.is_shadow:
                continue
            if isinstance(limit, Slots):
                if self._running.get(name, 0) >= max(1, limit.max // share):
                    raise limit_error(limit, 1000, is_hopeless=False)
            else:
                levels[name] = (self._left(name, limit, tokens, share, now), now)
        if len(self._levels) >= _KEYS_MAX:
            self._levels.clear()
        self._levels.update(levels)
        for name in self._slots(allowances):
            self._running[name] = self._running.get(name, 0) + 1

    def _left(self, name: str, bucket: Bucket, tokens: int, share: int, now: float) -> float:
        burst = max(1.0, bucket.burst / share)
        rate = bucket.limit / share / bucket.period_ms * 1000
        level, at = self._levels.get(name, (burst, now))
        level = min(burst, level + (now - at) * rate)
        cost = tokens if bucket.unit is Unit.TOKENS else 1
        if cost > level:
            raise limit_error(bucket, int((cost - level) / rate * 1000) + 1, is_hopeless=cost > bucket.burst)
        return level - cost

    def give_back(self, allowances: Allowances) -> None:
        """A request that was let in by ``take`` has ended."""
        for name in self._slots(allowances):
            running = self._running.get(name, 0) - 1
            if running > 0:
                self._running[name] = running
            else:
                self._running.pop(name, None)

    def _slots(self, allowances: Allowances) -> tuple[str, ...]:
        return allowances.keys[len(allowances.windows) + len(allowances.buckets) :]
