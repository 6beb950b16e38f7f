"""How long to wait before another try, and how many further tries a deployment may be asked for in all.

Waiting is exponential with full jitter, so that clients that failed together do not come back together
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The budget is a share of ordinary calls:
when everything fails, retries must not double the load.
"""

import random
from collections.abc import Callable

import msgspec


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``rounds`` further rounds over the targets; pauses in seconds, ``share`` of a deployment's calls."""

    rounds: int = 2
    pause_s: float = 0.25
    pause_s_max: float = 8.0
    share: float = 0.2
    at_once: int = 10


def backoff_s(rules: RetryRules, number: int, draw: Callable[[], float] = random.random) -> float:
    """The pause before further round ``number`` (from 1)."""
    return draw() * min(rules.pause_s_max, rules.pause_s * 2.0 ** (number - 1))


class RetryBudget:
    """A bucket that every ordinary call fills by a share, and every further try empties by one."""

    __slots__ = ("_left", "rules")

    def __init__(self, rules: RetryRules) -> None:
        self.rules = rules
        self._left = float(rules.at_once)

    def called(self) -> None:
        """An ordinary call was made."""
        self._left = min(float(self.rules.at_once), self._left + self.rules.share)

    def take(self) -> bool:
        """Whether one more try may be made; takes it."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
