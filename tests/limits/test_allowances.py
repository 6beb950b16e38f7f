"""What is told of limits: which one a number names, and what is left of rates."""

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window

WINDOW = Window("w", 9, (1000, 60, 0), Unit.MONEY)
TIGHT, WIDE = Bucket("tight", 10, 1000, 10), Bucket("wide", 100, 60_000, 100)
TOKENS = Bucket("tokens", 1000, 60_000, 2000, Unit.TOKENS)
WATCHED = Bucket("watched", 1, 1000, 1, Unit.REQUESTS, True)
LIMITS = Allowances(
    keys.limits_of("acme"), windows=[WINDOW], buckets=[WIDE, TIGHT, TOKENS, WATCHED], slots=[Slots("s", 1)]
)


def test_numbers_count_windows_then_buckets_then_slots() -> None:
    assert [LIMITS.at(number).name for number in range(1, 7)] == ["w", "wide", "tight", "tokens", "watched", "s"]
    kinds = [key.split(":")[2] for key in LIMITS.keys]
    assert kinds == ["b", "r", "r", "r", "r", "c"]


@pytest.mark.parametrize(("left", "limit"), [([90, 1, 500, 0], 10), ([5, 9, 500, 0], 100)])
def test_the_tightest_rate_of_each_unit_is_told_and_none_that_is_only_watched(left: list[int], limit: int) -> None:
    requests, tokens = LIMITS.rates(left)
    assert (requests.unit, requests.limit) == (Unit.REQUESTS, limit)
    assert (tokens.unit, tokens.left, tokens.reset_s) == (Unit.TOKENS, 500, 90)


def test_debt_is_told_as_nothing_left_and_takes_longer() -> None:
    _, tokens = LIMITS.rates([100, 10, -1000, 1])
    assert (tokens.left, tokens.reset_s) == (0, 180)


def test_without_buckets_the_rest_is_the_same() -> None:
    rest = LIMITS.without_buckets
    assert (rest.windows, rest.buckets, rest.slots) == (LIMITS.windows, (), LIMITS.slots)
    assert rest.keys == tuple(key for key in LIMITS.keys if ":r:" not in key)
    assert rest.without_buckets is rest
