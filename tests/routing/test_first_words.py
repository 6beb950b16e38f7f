"""The sample of times to the first word: what is late, and that it stays small and recent."""

import pytest

from gateway.routing.first_words import FirstWords, HedgeRules


def times(*seconds: float) -> FirstWords:
    kept = FirstWords()
    for it in seconds:
        kept.add(it)
    return kept


@pytest.mark.parametrize(("percentile", "late_s"), [(50, 50), (95, 95), (99, 99), (99.5, 100)])
def test_late_is_later_than_a_percentile_of_its_own_times(percentile: float, late_s: float) -> None:
    kept = times(*reversed(range(1, 101)))
    assert kept.late_after_s(HedgeRules(percentile=percentile), 120) == late_s


def test_nothing_is_late_before_the_least_that_was_named() -> None:
    assert times(*[0.01] * 50).late_after_s(HedgeRules(at_least_s=0.3), 120) == 0.3


@pytest.mark.parametrize(("first_event_s", "late_s"), [(120, 12), (1, 0.2)])
def test_as_long_as_little_is_known_a_share_of_the_time_out_is_late(first_event_s: float, late_s: float) -> None:
    assert times(*[5.0] * 19).late_after_s(HedgeRules(at_least_s=0.2), first_event_s) == late_s
    assert times(*[5.0] * 20).late_after_s(HedgeRules(at_least_s=0.2), first_event_s) == 5.0


def test_old_times_are_forgotten() -> None:
    kept = times(*[9.0] * 500, *[1.0, 2.0] * 64)
    assert kept.late_after_s(HedgeRules(percentile=50), 120) == 1.0
    assert kept.late_after_s(HedgeRules(percentile=99), 120) == 2.0
