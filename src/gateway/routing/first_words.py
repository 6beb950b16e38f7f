"""How long a deployment takes to its first word, as far as this process has seen lately, and when that is too long.

Only calls of aliases that hedge are kept, a bounded number of them for each deployment. A call that was given up counts
with the time it had: left out, slow calls would vanish from the sample, and each hedge would make the next one earlier.
"""

import math
from bisect import bisect_left, insort

import msgspec

_TIMES_MAX = 128
# With fewer a percentile says little; a share of the time-out stands in for it.
_TIMES_MIN = 20
_SHARE_OF_TIMEOUT = 0.1


class HedgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """When another deployment is asked as well: after this percentile of the first one's times, or ``at_least_s``."""

    percentile: float = 95.0
    at_least_s: float = 0.2


class FirstWords:
    """The last times of one deployment, in seconds."""

    __slots__ = ("_ascending", "_oldest", "_recent")

    def __init__(self) -> None:
        self._recent: list[float] = []  # a ring once it is full
        self._oldest = 0
        self._ascending: list[float] = []

    def add(self, after_s: float) -> None:
        """It took so long, or had so long before it was given up."""
        if len(self._recent) < _TIMES_MAX:
            self._recent.append(after_s)
        else:
            del self._ascending[bisect_left(self._ascending, self._recent[self._oldest])]
            self._recent[self._oldest] = after_s
            self._oldest = (self._oldest + 1) % _TIMES_MAX
        insort(self._ascending, after_s)

    def late_after_s(self, rules: HedgeRules, first_event_s: float) -> float:
        """When a call is late; ``first_event_s`` is how long it may take at all."""
        count = len(self._ascending)
        if count < _TIMES_MIN:
            return max(rules.at_least_s, _SHARE_OF_TIMEOUT * first_event_s)
        return max(rules.at_least_s, self._ascending[math.ceil(rules.percentile / 100 * count) - 1])
