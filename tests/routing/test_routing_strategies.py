"""The order in which deployments are asked by each strategy, sick and full ones last, and the same for the same."""

from collections import Counter
from itertools import pairwise

import pytest

from gateway.routing.deployments import Deployment, Deployments
from gateway.routing.strategies import TRIES_MAX, Candidate, Pool, StrategyName

STRATEGIES: tuple[StrategyName, ...] = ("priority", "weighted", "least_in_flight", "lowest_latency", "cheapest")
NOW = 1000.0


def candidates(count: int, **changes: list[float]) -> list[Candidate]:
    known = Deployments()
    weights, costs = changes.get("weights", [1.0] * count), changes.get("costs", [1] * count)
    return [Candidate(known.of(f"p/{n}"), weights[n], int(costs[n])) for n in range(count)]


def rest(deployment: Deployment) -> None:
    deployment.cool_down(60, NOW)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
def test_each_is_tried_once_and_few_at_all(strategy: StrategyName, count: int) -> None:
    pool = Pool(candidates(count), strategy)
    for number in range(50):
        order = pool.order(NOW, who=f"user {number}" if number % 2 else "")
        assert len(order) == len(set(order)) == min(count, TRIES_MAX)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_is_not_ready_comes_last_and_the_soonest_first_where_none_is(strategy: StrategyName) -> None:
    those = candidates(4)
    pool = Pool(those, strategy)
    rest(those[0].deployment)
    those[2].deployment.cool_down(30, NOW)
    order = pool.order(NOW)
    assert set(order[:2]) == {1, 3} and order[2:] == [2, 0]
    those[1].deployment.cool_down(10, NOW)
    those[3].deployment.cool_down(20, NOW)
    assert pool.order(NOW, who="me") == [1, 3, 2, 0]


def test_priority_is_the_order_of_the_list() -> None:
    assert Pool(candidates(6), "priority").order(NOW) == [0, 1, 2, 3]


def test_weights_are_the_shares_of_requests_and_none_goes_to_weight_0() -> None:
    pool = Pool(candidates(4, weights=[6, 3, 1, 0]), "weighted")
    first = Counter(pool.order(NOW)[0] for _ in range(10_000))
    assert [round(first[number] / 1000) for number in range(4)] == [6, 3, 1, 0]
    assert pool.order(NOW)[-1] == 3


def test_the_least_busy_for_its_weight_is_first() -> None:
    those = candidates(3, weights=[1, 2, 1])
    for _ in range(3):
        those[0].deployment.begin(NOW)
    for _ in range(5):
        those[1].deployment.begin(NOW)
    those[2].deployment.begin(NOW)
    those[2].deployment.begin(NOW)
    assert Pool(those, "least_in_flight").order(NOW) == [2, 1, 0]


def test_equally_busy_ones_take_turns() -> None:
    pool = Pool(candidates(5), "least_in_flight")
    assert {pool.order(NOW)[0] for _ in range(200)} == {0, 1, 2, 3, 4}


def test_the_quickest_is_first_after_those_nothing_is_known_of() -> None:
    those = candidates(4)
    for number, after_s in ((0, 0.9), (1, 0.2), (3, 0.5)):
        those[number].deployment.begin(NOW)
        those[number].deployment.began_to_answer(after_s, NOW)
    assert Pool(those, "lowest_latency").order(NOW) == [2, 1, 3, 0]
    assert Pool(those, "lowest_latency").order(NOW + 61) == [0, 1, 2, 3], "what is known of long ago is not known"


def test_its_time_is_an_average_that_forgets() -> None:
    (it,) = candidates(1)
    for _ in range(30):
        it.deployment.began_to_answer(1.0, NOW)
    for _ in range(30):
        it.deployment.began_to_answer(0.1, NOW)
    assert 0.1 <= it.deployment.latency_s(NOW) < 0.11


def test_the_cheapest_is_first() -> None:
    assert Pool(candidates(4, costs=[5, 1, 9, 3]), "cheapest").order(NOW) == [1, 3, 0, 2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_one_is_first_for_the_same_whatever_the_strategy(strategy: StrategyName) -> None:
    those = candidates(10)
    one, other = Pool(those, strategy), Pool(those, strategy)
    assert all(one.order(NOW, who=f"u{n}")[0] == other.order(NOW, who=f"u{n}")[0] for n in range(100))
    shares = Counter(one.order(NOW, who=f"u{n}")[0] for n in range(5000))
    assert all(250 < shares[number] < 900 for number in range(10))


def test_one_that_rests_moves_only_those_who_had_it_and_they_come_back() -> None:
    those = candidates(5)
    pool = Pool(those, "weighted")
    before = {n: pool.order(NOW, who=f"u{n}")[0] for n in range(500)}
    rest(those[2].deployment)
    during = {n: pool.order(NOW, who=f"u{n}")[0] for n in range(500)}
    assert {n for n in before if before[n] != during[n]} == {n for n in before if before[n] == 2}
    assert {n: pool.order(NOW + 61, who=f"u{n}")[0] for n in range(500)} == before


def test_deployments_that_nobody_asks_for_are_forgotten_and_busy_ones_are_not() -> None:
    known = Deployments()
    busy = known.of("p/busy")
    busy.begin(NOW)
    for number in range(10_000):
        known.of(f"p/{number}")
    assert known.of("p/busy") is busy


def test_it_tells_and_hears_which_are_left_alone() -> None:
    one, other = Deployments(), Deployments()
    for _ in range(5):
        one.of("p/a").breaker.failed(NOW)
    for name, for_s in one.sick(NOW).items():
        other.hear(name, for_s)
    assert list(one.sick(NOW)) == ["p/a"] and one.sick(NOW)["p/a"] == pytest.approx(5)
    assert other.of("p/a").breaker.state == "open"
    assert all(a <= b for a, b in pairwise(sorted(one.sick(NOW).values())))
