"""A circuit breaker: a deployment that fails is left alone, and tried again with one request at a time.

Failures are counted over a sliding window of two half windows. It opens after too many failures in a row, or where too
large a share of enough calls failed; after a pause that doubles with each time it goes on to be sick, one call is let
through, and a few good ones close it again.
Reference: M. Nygard, Release It!, 2nd ed., "Circuit Breaker".
"""

from typing import Literal

import msgspec

State = Literal["closed", "open", "half_open"]

_PROBES_TO_CLOSE = 2
_PAUSE_DOUBLINGS_MAX = 5


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """When it opens and for how long, in seconds. ``share`` of at least ``calls_min`` calls of a window failed."""

    window_s: float = 30.0
    calls_min: int = 10
    share: float = 0.5
    in_a_row: int = 5
    pause_s: float = 5.0
    pause_s_max: float = 120.0
    probe_timeout_s: float = 60.0


class Breaker:
    """One deployment's. Times are monotonic seconds; from ``ready_at`` on the deployment may be asked."""

    __slots__ = (
        "_calls",
        "_calls_before",
        "_failures",
        "_failures_before",
        "_good_probes",
        "_in_a_row",
        "_openings",
        "_window_at",
        "ready_at",
        "rules",
        "state",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self.rules = rules
        self.state: State = "closed"
        self.ready_at = 0.0
        self._window_at = 0.0
        self._calls = self._failures = 0
        self._calls_before = self._failures_before = 0
        self._in_a_row = 0
        self._openings = 0
        self._good_probes = 0

    def begin(self, now: float) -> None:
        """It is asked; where it was open, this call is the probe that others wait for."""
        if self.state != "closed":
            self.state = "half_open"
            self.ready_at = now + self.rules.probe_timeout_s  # should it never be heard of again

    def succeeded(self, now: float) -> None:
        """It answered."""
        self._count(now, failed=False)
        self._in_a_row = 0
        if self.state == "closed":
            return
        self._good_probes += 1
        self.ready_at = now
        if self._good_probes >= _PROBES_TO_CLOSE:
            self._close()

    def failed(self, now: float) -> None:
        """It did not."""
        self._count(now, failed=True)
        self._in_a_row += 1
        if self.state != "closed" or self._is_too_much():
            self._open(now)

    def abandoned(self, now: float) -> None:
        """Nobody waited for it to answer, which says nothing about it."""
        if self.state == "half_open":
            self.ready_at = now

    def hear(self, open_for_s: float, now: float) -> None:
        """Another replica found it failing and leaves it alone for so long."""
        if self.state == "closed" and open_for_s > 0:
            self.state = "open"
            self.ready_at = now + open_for_s

    def _count(self, now: float, *, failed: bool) -> None:
        half_s = self.rules.window_s / 2
        if now - self._window_at >= half_s:
            is_next = now - self._window_at < 2 * half_s
            self._calls_before = self._calls if is_next else 0
            self._failures_before = self._failures if is_next else 0
            self._calls = self._failures = 0
            self._window_at = now
        self._calls += 1
        self._failures += failed

    def _is_too_much(self) -> bool:
        rules = self.rules
        calls, failures = self._calls + self._calls_before, self._failures + self._failures_before
        return self._in_a_row >= rules.in_a_row or (calls >= rules.calls_min and failures >= rules.share * calls)

    def _open(self, now: float) -> None:
        pause_s = self.rules.pause_s * 2 ** min(self._openings, _PAUSE_DOUBLINGS_MAX)
        self._openings += 1
        self._good_probes = 0
        self.state = "open"
        self.ready_at = now + min(pause_s, self.rules.pause_s_max)

    def _close(self) -> None:
        self.state = "closed"
        self.ready_at = 0.0
        self._good_probes = self._openings = 0
        self._calls = self._failures = self._calls_before = self._failures_before = 0
