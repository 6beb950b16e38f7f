"""A deployment that fails is left alone, probed and asked again; one lucky call does not close it for good."""

import pytest

from gateway.routing.breaker import Breaker, BreakerRules
from gateway.routing.retries import RetryBudget, RetryRules, backoff_s

RULES = BreakerRules(window_s=30, calls_min=10, share=0.5, in_a_row=5, pause_s=5, pause_s_max=60, probe_timeout_s=20)


def is_asked(breaker: Breaker, now: float) -> bool:
    return now >= breaker.ready_at


def opened(at: float = 100.0) -> Breaker:
    breaker = Breaker(RULES)
    for _ in range(5):
        breaker.failed(at)
    assert breaker.state == "open"
    return breaker


def test_it_opens_after_enough_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(RULES)
    for _ in range(4):
        breaker.failed(100)
    assert breaker.state == "closed" and is_asked(breaker, 100)
    breaker.failed(100)
    assert breaker.state == "open" and not is_asked(breaker, 100) and is_asked(breaker, 105)


def test_it_opens_where_too_large_a_share_of_enough_calls_failed() -> None:
    breaker = Breaker(RULES)
    for number in range(9):
        (breaker.failed if number % 2 else breaker.succeeded)(100 + number)
    assert breaker.state == "closed"
    breaker.failed(110)
    assert breaker.state == "open"


def test_failures_of_long_ago_do_not_count() -> None:
    breaker = Breaker(RULES)
    for number in range(100):
        breaker.succeeded(number * 20)
        breaker.failed(number * 20 + 10)
        breaker.succeeded(number * 20 + 11)
    assert breaker.state == "closed"


def test_one_call_at_a_time_probes_it_and_two_good_ones_close_it() -> None:
    breaker = opened()
    breaker.begin(105)
    assert breaker.state == "half_open" and not is_asked(breaker, 106)
    breaker.succeeded(106)
    assert breaker.state == "half_open" and is_asked(breaker, 106)
    breaker.begin(107)
    breaker.succeeded(108)
    assert breaker.state == "closed" and is_asked(breaker, 108)


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_a_bound() -> None:
    breaker, now = opened(), 100.0
    pauses = []
    for _ in range(8):
        pauses.append(breaker.ready_at - now)
        now = breaker.ready_at
        breaker.begin(now)
        breaker.failed(now)
    assert pauses == [5, 10, 20, 40, 60, 60, 60, 60]


def test_after_it_closed_the_pauses_begin_anew() -> None:
    breaker = opened()
    breaker.begin(105)
    breaker.failed(105)
    for now in (116, 117):
        breaker.begin(now)
        breaker.succeeded(now)
    for _ in range(5):
        breaker.failed(200)
    assert breaker.ready_at == 205


@pytest.mark.parametrize("is_heard_of", [True, False])
def test_a_probe_whose_client_left_makes_room_for_another(is_heard_of: bool) -> None:
    breaker = opened()
    breaker.begin(105)
    if is_heard_of:
        breaker.abandoned(106)
        assert is_asked(breaker, 106)
    else:
        assert not is_asked(breaker, 124) and is_asked(breaker, 125)


def test_what_another_replica_found_is_believed_and_its_own_finding_is_kept() -> None:
    breaker = Breaker(RULES)
    breaker.hear(7, 100)
    assert breaker.state == "open" and is_asked(breaker, 107) and not is_asked(breaker, 106)
    breaker.hear(70, 101)
    assert breaker.ready_at == 107


def test_backoff_doubles_below_its_bound_and_is_drawn_in_full() -> None:
    rules = RetryRules(pause_s=0.25, pause_s_max=2)
    assert [backoff_s(rules, number, lambda: 1.0) for number in range(1, 6)] == [0.25, 0.5, 1, 2, 2]
    assert backoff_s(rules, 3, lambda: 0.0) == 0


def test_further_tries_are_a_share_of_ordinary_calls() -> None:
    budget = RetryBudget(RetryRules(share=0.2, at_once=3))
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    for _ in range(5):
        budget.called()
    assert [budget.take() for _ in range(2)] == [True, False]
