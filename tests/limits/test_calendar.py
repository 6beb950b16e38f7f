"""Where periods of the calendar begin, whatever a clock change adds or takes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.calendar import Calendar

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo"]
PERIODS = ["day", "week", "month"]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def starts(calendar: Calendar, now: float) -> list[str]:
    zone = ZoneInfo(calendar.timezone)
    return [datetime.fromtimestamp(bound / 1000, zone).strftime("%Y-%m-%d %H:%M") for bound in calendar.bounds(now)]


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        ("day", ["2025-12-30 00:00", "2025-12-31 00:00", "2026-01-01 00:00"]),
        ("week", ["2025-12-22 00:00", "2025-12-29 00:00", "2026-01-05 00:00"]),
        ("month", ["2025-11-01 00:00", "2025-12-01 00:00", "2026-01-01 00:00"]),
    ],
)
def test_the_periods_around_the_end_of_a_year(period: str, expected: list[str]) -> None:
    assert starts(Calendar(period), at("2025-12-31 23:59")) == expected  # type: ignore[arg-type]


def test_the_first_moment_of_a_period_is_its_own() -> None:
    midnight = at("2026-03-01 00:00", "Europe/Berlin")
    month = Calendar("month", "Europe/Berlin")
    assert month.bounds(midnight)[1] == midnight * 1000
    assert month.bounds(midnight - 0.001)[2] == midnight * 1000


def test_february_and_its_leap_day() -> None:
    assert starts(Calendar("month"), at("2024-02-29 12:00")) == [
        *("2024-01-01 00:00", "2024-02-01 00:00", "2024-03-01 00:00")
    ]
    assert starts(Calendar("month"), at("2026-01-31 12:00"))[2] == "2026-02-01 00:00"


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_of_a_clock_change_is_as_long_as_it_is(day: str, hours: int) -> None:
    _, start, end = Calendar("day", "Europe/Berlin").bounds(at(f"{day} 12:00", "Europe/Berlin"))
    assert end - start == hours * 3_600_000


def test_a_zone_decides_which_day_it_is() -> None:
    now = at("2026-05-01 03:00")
    assert starts(Calendar("day", "America/New_York"), now)[1] == "2026-04-30 00:00"
    assert starts(Calendar("day", "Asia/Kolkata"), now)[1] == "2026-05-01 00:00"


moments = st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)).map(lambda it: it.replace(tzinfo=UTC).timestamp())


@given(now=moments, zone=st.sampled_from(ZONES), period=st.sampled_from(PERIODS))
def test_periods_follow_each_other_without_gap_or_overlap(now: float, zone: str, period: str) -> None:
    calendar = Calendar(period, zone)  # type: ignore[arg-type]
    before, start, following = calendar.bounds(now)
    assert before < start <= now * 1000 < following
    assert calendar.next_start(now) == following / 1000
    # Seen from the neighbours the boundaries are the same.
    assert calendar.bounds((start - 1) / 1000)[1:] == (before, start)
    assert calendar.bounds(following / 1000)[:2] == (start, following)
    for bound in (before, start, following):
        local = datetime.fromtimestamp(bound / 1000, ZoneInfo(zone))
        assert local.weekday() == 0 or period != "week"
        assert local.day == 1 or period != "month"
    longest = {"day": 1, "week": 7, "month": 31}[period]
    for earlier, later in pairwise((before, start, following)):
        assert timedelta(0) < timedelta(milliseconds=later - earlier) <= timedelta(days=longest, hours=1)
