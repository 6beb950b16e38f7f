"""Calendar periods: where a day, a week or a month begins in somebody's time zone."""

from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec


class Calendar(msgspec.Struct, frozen=True):
    """A period of the calendar in a time zone (an IANA name)."""

    period: Literal["day", "week", "month"]
    timezone: str = "UTC"

    def bounds(self, now: float) -> tuple[int, int, int]:
        """The starts of the period before, of this one and of the next, in Unix ms; ``now`` in Unix seconds."""
        start = self._start(datetime.fromtimestamp(now, ZoneInfo(self.timezone)))
        before = self._start(start - timedelta(hours=1))
        return _ms(before), _ms(start), _ms(self._next(start))

    def next_start(self, now: float) -> float:
        """When the next period begins, in Unix seconds."""
        return self.bounds(now)[2] / 1000

    def _start(self, at: datetime) -> datetime:
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "week":
            return day - timedelta(days=day.weekday())
        return day.replace(day=1) if self.period == "month" else day

    def _next(self, start: datetime) -> datetime:
        # Well into the next period, whatever a clock change adds or takes; then its start. Wall-clock arithmetic.
        days = {"day": 1, "week": 7, "month": 31}[self.period]
        return self._start(start + timedelta(days=days, hours=12))


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
