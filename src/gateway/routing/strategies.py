"""In which order the deployments of an alias are asked.

What can be known beforehand (weights, prices, who gets which one) is worked out once for a pool, so that a decision
costs a few steps however many deployments there are. Those that are not ready come last, in case all are: an answer
late is better than none.
"""

import hashlib
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

import msgspec

from gateway.routing.deployments import Deployment

StrategyName: TypeAlias = Literal["priority", "weighted", "least_in_flight", "lowest_latency", "cheapest"]

# More than this many deployments are never tried for one request.
TRIES_MAX = 4
_DRAWS_MAX = 16
_POINTS = 64


class Candidate(msgspec.Struct, frozen=True):
    """A deployment that could answer, its share of an alias's requests, and what it costs, in any unit."""

    deployment: Deployment
    weight: float
    cost: int


class Pool:
    """The deployments of one alias."""

    def __init__(
        self, candidates: Sequence[Candidate], strategy: StrategyName, draw: Callable[[], float] = random.random
    ) -> None:
        self._candidates = tuple(candidates)
        self._deployments = tuple(it.deployment for it in candidates)
        self._draw = draw
        self._weights = list(accumulate(it.weight for it in candidates))
        self._shares = [1 / it.weight if it.weight else float("inf") for it in candidates]
        self._by_cost = sorted(range(len(candidates)), key=lambda number: candidates[number].cost)
        self._ring: list[tuple[int, int]] = []
        self._first: Callable[[float], Iterable[int]] = {
            "priority": lambda now: range(len(self._candidates)),
            "weighted": self._weighted,
            "least_in_flight": self._least_in_flight,
            "lowest_latency": self._lowest_latency,
            "cheapest": lambda now: self._by_cost,
        }[strategy]

    def order(self, now: float, *, who: str = "") -> list[int]:
        """The numbers of at most ``TRIES_MAX`` candidates in the order they are tried; ``now`` is monotonic.

        ``who`` always gets the same one first while that is ready, whatever the strategy: its provider still has in
        its cache what was said before.
        """
        if len(self._candidates) == 1:
            return [0]
        chosen: dict[int, None] = {}
        if who:
            self._choose(self._own(who), chosen, now, 1)
        self._choose(self._first(now), chosen, now, TRIES_MAX)
        self._choose(range(len(self._candidates)), chosen, now, TRIES_MAX)
        if len(chosen) < TRIES_MAX:  # none of the others is ready: those that will be soonest
            rest = [number for number in range(len(self._candidates)) if number not in chosen]
            rest.sort(key=lambda number: self._deployments[number].ready_at)
            chosen |= dict.fromkeys(rest[: TRIES_MAX - len(chosen)])
        return list(chosen)

    def _choose(self, numbers: Iterable[int], chosen: dict[int, None], now: float, most: int) -> None:
        for number in numbers:
            if len(chosen) >= most:
                return
            if number not in chosen and self._deployments[number].ready_at <= now:
                chosen[number] = None

    def _weighted(self, now: float) -> Iterable[int]:
        """Drawn by their weights, without those of weight 0: they are there for when all others fail."""
        total = self._weights[-1]
        for _ in range(_DRAWS_MAX if total > 0 else 0):
            yield bisect(self._weights, self._draw() * total)

    def _least_in_flight(self, now: float) -> Iterable[int]:
        """The least busy for its weight first; among equals, by lot."""
        count, begin = len(self._candidates), int(self._draw() * len(self._candidates))
        busy = [it.deployment.in_flight * share for it, share in zip(self._candidates, self._shares, strict=True)]
        order = [*range(begin, count), *range(begin)]
        order.sort(key=busy.__getitem__)
        return order

    def _lowest_latency(self, now: float) -> Iterable[int]:
        """The quickest first; one of which nothing is known, or nothing new, is tried before it."""
        latencies = [deployment.latency_s(now) for deployment in self._deployments]
        return sorted(range(len(latencies)), key=latencies.__getitem__)

    def _own(self, who: str) -> Iterable[int]:
        """From its place on a ring of points: a deployment that comes or goes moves only those next to it.

        D. Karger et al., Consistent Hashing and Random Trees, STOC 1997.
        """
        if not self._ring:
            self._ring = sorted(
                (_point(f"{it.deployment.name}#{point}"), number)
                for number, it in enumerate(self._candidates)
                for point in range(round(_POINTS * min(it.weight, 100)))
            )
        begin = bisect(self._ring, (_point(who), -1))
        for step in range(len(self._ring)):
            yield self._ring[(begin + step) % len(self._ring)][1]


def _point(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
