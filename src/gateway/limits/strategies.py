"""How a tier's limits follow load and trust: small classes, chosen by name.

A strategy answers in thousandths of what is configured, in steps of 50, so that a limit changes seldom and by something
one can see. Rates, bursts and streams at once are scaled; budgets and tokens per request never are. Base limits come
from outside: nothing here knows the configuration.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from gateway.limits.load import Gauges
from gateway.limits.trust import Trust

AS_CONFIGURED = 1000
PERMILLE_MIN = 50
PERMILLE_MAX = 2000
_STEP = 50


class Strategy(Protocol):
    """One way to scale limits."""

    name: str

    def permille(self, load: float, trust: float) -> int:
        """Thousandths of the configured limits, 50 to 2000 in steps of 50."""
        ...


class Fixed:
    """As configured, always."""

    name = "fixed"

    def permille(self, load: float, trust: float) -> int:
        """1000."""
        return AS_CONFIGURED


class ByLoad:
    """Everybody's share shrinks while the gateways are busy."""

    name = "load"

    def permille(self, load: float, trust: float) -> int:
        """The load factor."""
        return _quantised(load)


class ByTrust:
    """Each account's share follows its history."""

    name = "trust"

    def permille(self, load: float, trust: float) -> int:
        """The trust factor."""
        return _quantised(trust)


class Adaptive:
    """Both: history says whose share shrinks less while the gateways are busy."""

    name = "adaptive"

    def permille(self, load: float, trust: float) -> int:
        """The product of both factors."""
        return _quantised(load * trust)


STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (Fixed(), ByLoad(), ByTrust(), Adaptive())}


def _quantised(factor: float) -> int:
    return min(PERMILLE_MAX, max(PERMILLE_MIN, round(factor * 1000 / _STEP) * _STEP))


def scaled(limit: int, permille: int) -> int:
    """A limit under a strategy; never below 1, which would be a ban."""
    return max(1, limit * permille // 1000)


class BaseLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit as configured. ``unit`` is what it counts, e.g. requests, tokens, streams, microusd."""

    name: str
    unit: str
    limit: int
    burst: int | None = None
    period_s: float | None = None
    is_scaled: bool = True

    def effective(self, permille: int) -> "BaseLimit":
        """The same under a strategy."""
        if not self.is_scaled:
            return self
        burst = None if self.burst is None else scaled(self.burst, permille)
        return msgspec.structs.replace(self, limit=scaled(self.limit, permille), burst=burst)


class BaseLimits(msgspec.Struct, frozen=True, kw_only=True):
    """An account's limits as configured; ``variant`` is ``experiment/arm`` where it takes part in one."""

    tier: str
    strategy: str
    variant: str | None
    limits: tuple[BaseLimit, ...]


class LimitsExplanation:
    """Says why an account has the limits it has. ``base`` supplies what is configured, ``None`` for no such account."""

    def __init__(self, gauges: Gauges, trust: Trust, base: Callable[[str], Awaitable[BaseLimits | None]]) -> None:
        self._gauges = gauges
        self._trust = trust
        self._base = base

    async def explain(self, account: str) -> dict[str, object] | None:
        """The answer of the admin API; ``None`` where there is no such account."""
        base = await self._base(account)
        if base is None:
            return None
        standing = await self._trust.of(account)
        permille = STRATEGIES[base.strategy].permille(self._gauges.factor, standing.factor)
        return {
            "account": account,
            "tier": base.tier,
            "strategy": base.strategy,
            "variant": base.variant,
            "permille": permille,
            "load": self._gauges.explain(),
            "trust": standing.explain(),
            "limits": [_line(limit, permille) for limit in base.limits],
        }


def _line(limit: BaseLimit, permille: int) -> dict[str, object]:
    effective = limit.effective(permille)
    return {
        "name": limit.name,
        "unit": limit.unit,
        "period_s": limit.period_s,
        "scaled": limit.is_scaled,
        "base": {"limit": limit.limit, "burst": limit.burst},
        "effective": {"limit": effective.limit, "burst": effective.burst},
    }
