"""What an account's history says for it: a factor between 0.25 and 2 that limits may follow.

History is the account's statistics per day, each day weighing less the longer it is over, and the time it was created.
``score`` is the formula and does no I/O; ``Trust`` reads, keeps the answer for a few seconds, and goes on with the last
one while Redis is away. Strikes are written by the statistics, not here.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.limits import keys
from gateway.limits.redis import Redis, StoreUnavailable

TRUST_MIN = 0.25
TRUST_MAX = 2.0

_HALF_LIFE_DAYS = 7.0
_STRIKES_HALF_LIFE_DAYS = 14.0
# What is older is not read: it weighs under 2 %, a strike 6 %. Sixty days are kept.
_DAYS = 42
_STRIKES_DAYS = 56

_NEW = 0.5
_KNOWN_DAYS = 30.0
_KNOWN_MICROUSD = 50_000_000
_LARGE_MICROUSD = 5_000_000_000
_REFUSED_MANY = 0.5
# As many served requests are taken for granted, so that the first refusals of an account say little.
_PRIOR_REQUESTS = 20

_CACHE_S = 5.0
_CLAIM_S = 1.0
_ACCOUNTS_MAX = 10_000
_DAY_S = 86_400.0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """An account's history, decayed, and the factor it comes to; ``is_known`` is false where Redis never answered."""

    factor: float
    age_days: float = 0.0
    spent_microusd: int = 0
    refused_share: float = 0.0
    strikes: float = 0.0
    is_known: bool = True

    def explain(self) -> dict[str, object]:
        """The factor and every input and part of it, as the admin API shows them."""
        parts = {
            "from_age": from_age(self.age_days),
            "from_spend": from_spend(self.spent_microusd),
            "from_large_spend": from_large_spend(self.spent_microusd, self.refused_share),
            "strikes_multiply_by": for_strikes(self.strikes),
            "refusals_multiply_by": for_refusals(self.refused_share),
        }
        return {
            "factor": round(self.factor, 3),
            "source": "history" if self.is_known else "unknown",
            "inputs": {
                "age_days": round(self.age_days, 2),
                "spent_microusd": self.spent_microusd,
                "refused_share": round(self.refused_share, 3),
                "strikes": round(self.strikes, 3),
            },
            "parts": {name: round(value, 3) for name, value in parts.items()},
        }


UNKNOWN = Standing(factor=1.0, is_known=False)


def from_age(age_days: float) -> float:
    """0 for a new account, 1 after 30 days; it rises fast at first and arrives level."""
    return 1.0 - (1.0 - _share(age_days / _KNOWN_DAYS)) ** 2


def from_spend(spent_microusd: float) -> float:
    """0 without spend, 1 from $50; the same shape as age."""
    return 1.0 - (1.0 - _share(spent_microusd / _KNOWN_MICROUSD)) ** 2


def from_large_spend(spent_microusd: float, refused_share: float) -> float:
    """0 up to $50, 1 from $5000, a half at $500 (equal steps per factor); less the more requests were refused."""
    if spent_microusd <= _KNOWN_MICROUSD:
        return 0.0
    large = _share(math.log(spent_microusd / _KNOWN_MICROUSD) / math.log(_LARGE_MICROUSD / _KNOWN_MICROUSD))
    return large * (1.0 - _share(refused_share / _REFUSED_MANY))


def for_strikes(strikes: float) -> float:
    """1 without strikes; each halves it."""
    return math.exp2(-max(0.0, strikes))


def for_refusals(refused_share: float) -> float:
    """1 up to a half of requests refused, falling to 0.5 where all were: weak evidence, so it weighs little."""
    return 1.0 - 0.5 * _share((refused_share - _REFUSED_MANY) / (1.0 - _REFUSED_MANY))


def score(*, age_days: float, spent_microusd: float, refused_share: float, strikes: float) -> float:
    """The trust factor, 0.25 to 2: it rises with age and spend, and falls with refusals and strikes."""
    known = 1.0 - (1.0 - from_age(age_days)) * (1.0 - from_spend(spent_microusd))
    earned = _NEW + (1.0 - _NEW) * known + from_large_spend(spent_microusd, refused_share)
    factor = earned * for_strikes(strikes) * for_refusals(refused_share)
    return min(TRUST_MAX, max(TRUST_MIN, factor))


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted on one Unix day; ``requests`` includes the refused ones."""

    number: int
    requests: int = 0
    refused: int = 0
    strikes: int = 0
    spent_microusd: int = 0


def standing(days: list[Day], *, created_ms: int | None, now_s: float) -> Standing:
    """What an account's days come to now. Without a time of creation its first day counts, as far as it was read."""
    today = now_s / _DAY_S
    spent = _decayed(today, _HALF_LIFE_DAYS, {day.number: day.spent_microusd for day in days})
    requests = _decayed(today, _HALF_LIFE_DAYS, {day.number: max(day.requests, day.refused) for day in days})
    refused = _decayed(today, _HALF_LIFE_DAYS, {day.number: day.refused for day in days})
    strikes = _decayed(today, _STRIKES_HALF_LIFE_DAYS, {day.number: day.strikes for day in days})
    first = min((float(day.number) for day in days if day.requests), default=today)
    born = first if created_ms is None else created_ms / 1000 / _DAY_S
    age_days = max(0.0, today - born)
    share = refused / (requests + _PRIOR_REQUESTS)
    return Standing(
        factor=score(age_days=age_days, spent_microusd=spent, refused_share=share, strikes=strikes),
        age_days=age_days,
        spent_microusd=int(spent),
        refused_share=share,
        strikes=strikes,
    )


def _decayed(today: float, half_life_days: float, counts: dict[int, int]) -> float:
    # A day counts in full until it is over, so that nothing jumps at midnight.
    return sum(
        count * math.exp2(-max(0.0, today - (day + 1)) / half_life_days) for day, count in counts.items() if count
    )


class Trust:
    """Each account's standing, a few seconds old at most. ``now`` is Unix time, ``clock`` monotonic, in seconds."""

    def __init__(
        self,
        redis: Redis,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._now = now
        self._clock = clock
        self._cache: dict[str, tuple[float, Standing]] = {}

    async def of(self, account: str) -> Standing:
        """The account's standing; with Redis away the last one known, else one that changes nothing."""
        until, known = self._cache.get(account, (-math.inf, UNKNOWN))
        if self._clock() < until:
            return known
        if known.is_known:  # whoever comes meanwhile takes the old one instead of reading as well
            self._keep(account, known, _CLAIM_S)
        try:
            fresh = await self._fetch(account)
        except StoreUnavailable:
            fresh = known
        self._keep(account, fresh, _CACHE_S if fresh.is_known else _CLAIM_S)
        return fresh

    def _keep(self, account: str, known: Standing, ttl_s: float) -> None:
        self._cache.pop(account, None)  # the one kept longest ago comes first
        if len(self._cache) >= _ACCOUNTS_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[account] = (self._clock() + ttl_s, known)

    async def _fetch(self, account: str) -> Standing:
        now_s = self._now()
        fields = _fields(int(now_s // _DAY_S))
        counts, created = await asyncio.gather(
            self._redis.call("HMGET", keys.history(account), *(f"{day}:{what}" for day, what in fields)),
            self._redis.call("HGET", keys.account(account), "created"),
        )
        days = _days(dict(zip(fields, counts, strict=True)))
        return standing(days, created_ms=None if created is None else int(created), now_s=now_s)


def _fields(today: int) -> list[tuple[int, str]]:
    recent = range(today, today - _DAYS, -1)
    striking = range(today, today - _STRIKES_DAYS, -1)
    counted = [(day, what) for day in recent for what in ("requests", "refused", "spent")]
    return counted + [(day, "strikes") for day in striking]


def _days(counts: dict[tuple[int, str], Any]) -> list[Day]:
    found: dict[int, dict[str, int]] = {}
    for (day, what), count in counts.items():
        if count is not None:
            found.setdefault(day, {})[what] = int(count)
    return [
        Day(
            number=number,
            requests=day.get("requests", 0),
            refused=day.get("refused", 0),
            strikes=day.get("strikes", 0),
            spent_microusd=day.get("spent", 0),
        )
        for number, day in found.items()
    ]
