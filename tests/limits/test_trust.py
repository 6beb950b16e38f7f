"""Trust in an account: the laws of its formula, how history fades, and what is read, kept and done without Redis."""

import asyncio
import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from gateway.limits import keys
from gateway.limits.redis import RedisOwner, retrying
from gateway.limits.tallies import Tallies
from gateway.limits.trust import TRUST_MAX, TRUST_MIN, Day, Trust, score, standing
from gateway.statistics import Statistics
from gateway.tasks import TaskOwner
from tests.harness import RedisServer

DAY_S = 86_400
NOW_S = 20_000.25 * DAY_S
TODAY = 20_000
USD = 1_000_000

AGES = st.floats(0, 5_000)
SPENDS = st.floats(0, 1e12)
SHARES = st.floats(0, 1)
STRIKES = st.floats(0, 1e6)
MORE = st.floats(0, 1e12)
HISTORY = st.builds(
    Day,
    number=st.integers(TODAY - 60, TODAY),
    requests=st.integers(0, 10**9),
    refused=st.integers(0, 10**9),
    strikes=st.integers(0, 1000),
    spent_microusd=st.integers(0, 10**12),
)


def at(days_later: float, *days: Day, created_day: int | None = 0) -> float:
    created_ms = None if created_day is None else created_day * DAY_S * 1000
    return standing(list(days), created_ms=created_ms, now_s=NOW_S + days_later * DAY_S).factor


# The formula.


@pytest.mark.parametrize(
    ("age_days", "usd", "refused_share", "strikes", "expected"),
    [
        (0, 0, 0, 0, 0.5),
        (30, 0, 0, 0, 1.0),
        (0, 50, 0, 0, 1.0),
        (30, 50, 0, 0, 1.0),
        (365, 500, 0, 0, 1.5),
        (365, 5000, 0, 0, 2.0),
        (365, 5000, 0.5, 0, 1.0),
        (365, 0, 0.5, 0, 1.0),
        (365, 0, 1.0, 0, 0.5),
        (365, 0, 0, 1, 0.5),
        (365, 5000, 0, 1, 1.0),
        (0, 0, 0, 1, 0.25),
        (365, 5000, 0, 40, 0.25),
    ],
)
def test_the_marks_of_the_formula(
    age_days: float, usd: float, refused_share: float, strikes: float, expected: float
) -> None:
    factor = score(age_days=age_days, spent_microusd=usd * USD, refused_share=refused_share, strikes=strikes)
    assert factor == pytest.approx(expected)


@given(AGES, SPENDS, SHARES, STRIKES)
def test_trust_is_bounded(age_days: float, spent: float, refused_share: float, strikes: float) -> None:
    factor = score(age_days=age_days, spent_microusd=spent, refused_share=refused_share, strikes=strikes)
    assert TRUST_MIN <= factor <= TRUST_MAX


@given(AGES, SPENDS, SHARES, STRIKES, MORE)
def test_trust_rises_with_age_and_spend_and_falls_with_refusals_and_strikes(
    age_days: float, spent: float, refused_share: float, strikes: float, more: float
) -> None:
    inputs = {"age_days": age_days, "spent_microusd": spent, "refused_share": refused_share, "strikes": strikes}
    factor = score(**inputs)
    slack = 1e-9
    assert score(**{**inputs, "age_days": age_days + more}) >= factor - slack
    assert score(**{**inputs, "spent_microusd": spent + more}) >= factor - slack
    assert score(**{**inputs, "refused_share": min(1.0, refused_share + more)}) <= factor + slack
    assert score(**{**inputs, "strikes": strikes + more}) <= factor + slack


@given(st.floats(0, 100), st.floats(0, 10_000))
def test_trust_has_no_jumps(age_days: float, usd: float) -> None:
    def factor(age: float, dollars: float) -> float:
        return score(age_days=age, spent_microusd=dollars * USD, refused_share=0.1, strikes=0.5)

    assert factor(age_days + 0.01, usd) == pytest.approx(factor(age_days, usd), abs=0.01)
    assert factor(age_days, usd + 0.01) == pytest.approx(factor(age_days, usd), abs=0.01)


# History.


def test_history_is_halved_in_a_week_and_strikes_in_two() -> None:
    day = Day(number=TODAY - 8, requests=800, refused=400, strikes=4, spent_microusd=80 * USD)
    now = standing([day], created_ms=0, now_s=(TODAY + 0) * DAY_S)
    assert now.spent_microusd == 40 * USD
    assert now.strikes == pytest.approx(4 * 2**-0.5)
    assert now.refused_share == pytest.approx(200 / 420)


def test_nothing_jumps_at_midnight() -> None:
    days = (Day(number=TODAY, requests=1000, refused=700, strikes=1, spent_microusd=100 * USD),)
    before, after = (at(0.75 + second / DAY_S, *days) for second in (-1, 1))
    assert before == pytest.approx(after, abs=1e-4)


@given(st.lists(HISTORY, max_size=20, unique_by=lambda day: day.number))
def test_any_history_gives_a_bounded_factor(days: list[Day]) -> None:
    assert TRUST_MIN <= at(0, *days) <= TRUST_MAX
    assert TRUST_MIN <= at(0, *days, created_day=None) <= TRUST_MAX


@given(strikes=st.integers(1, 100), refused=st.integers(0, 10**6), age_days=st.integers(0, 100))
def test_what_counted_against_an_account_fades(strikes: int, refused: int, age_days: int) -> None:
    bad = Day(number=TODAY, requests=refused, refused=refused, strikes=strikes)
    factors = [at(later, bad, created_day=TODAY - age_days) for later in range(0, 400, 10)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(1.0, abs=0.01)


def test_spend_fades_to_what_age_gives() -> None:
    rich = Day(number=TODAY, spent_microusd=5000 * USD)
    assert at(0, rich) == pytest.approx(2.0)
    assert at(200, rich) == pytest.approx(1.0)


def test_the_first_refusals_of_an_account_say_little() -> None:
    few, many = (Day(number=TODAY, requests=count, refused=count) for count in (5, 5000))
    assert at(0, few) == 1.0
    assert at(0, many) == pytest.approx(0.5, abs=0.01)


def test_an_account_without_a_time_of_creation_is_as_old_as_its_first_request() -> None:
    assert at(0, created_day=None) == 0.5
    assert at(0, Day(number=TODAY - 31, requests=1), created_day=None) == 1.0


# What is read and kept.


class Clock:
    """A clock that a test sets; it begins now."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def write_day(store: Redis, account: str = "acme", *, days_ago: int = 0, **counts: int) -> None:
    day = int(time.time() // DAY_S) - days_ago
    store.hset(keys.history(account), mapping={f"{day}:{what}": count for what, count in counts.items()})


def create(store: Redis, account: str = "acme", *, days_ago: float) -> None:
    store.hset(keys.account(account), "created", int((time.time() - days_ago * DAY_S) * 1000))


async def test_a_new_account_and_one_that_nobody_created_begin_at_a_half(redis: RedisOwner, store: Redis) -> None:
    create(store, days_ago=0)
    trust = Trust(redis)
    assert (await trust.of("acme")).factor == pytest.approx(0.5, abs=0.01)
    assert (await trust.of("nobody")).factor == 0.5


async def test_statistics_and_age_are_read(redis: RedisOwner, store: Redis) -> None:
    create(store, days_ago=40)
    write_day(store, requests=980, refused=250, strikes=1, spent=60 * USD)
    write_day(store, days_ago=50, requests=10**9, refused=10**9, spent=10**12)
    now = await Trust(redis).of("acme")
    assert now.age_days == pytest.approx(40, abs=0.1)
    assert now.spent_microusd == 60 * USD
    assert now.refused_share == pytest.approx(0.25)
    assert now.strikes == 1
    assert now.factor == pytest.approx(0.51, abs=0.01)


async def test_what_the_statistics_write_is_what_trust_reads(redis: RedisOwner, store: Redis) -> None:
    create(store, days_ago=40)
    tallies = Tallies(redis)
    statistics = Statistics(tallies)
    for _ in range(60):
        statistics.refused("acme", "rate_limited", "")
    await tallies.flush()
    assert (await Trust(redis).of("acme")).refused_share == pytest.approx(60 / 80)


async def test_a_standing_is_kept_for_five_seconds(redis: RedisOwner, store: Redis) -> None:
    clock = Clock(1000)
    create(store, days_ago=40)
    trust = Trust(redis, clock=clock)
    assert (await trust.of("acme")).factor == pytest.approx(1.0)
    write_day(store, requests=1, strikes=1)
    clock.now += 4.9
    assert (await trust.of("acme")).factor == pytest.approx(1.0)
    clock.now += 0.2
    assert (await trust.of("acme")).factor == pytest.approx(0.5)


async def test_only_one_of_many_reads_again(redis: RedisOwner, store: Redis) -> None:
    clock = Clock(1000)
    create(store, days_ago=40)
    trust = Trust(redis, clock=clock)
    await trust.of("acme")
    store.config_resetstat()
    clock.now += 6
    await asyncio.gather(*(trust.of("acme") for _ in range(50)))
    assert store.info("commandstats")["cmdstat_hmget"]["calls"] == 1


async def test_a_reader_that_was_cancelled_does_not_leave_the_old_standing_for_long(
    redis: RedisOwner, store: Redis
) -> None:
    clock = Clock(1000)
    create(store, days_ago=40)
    trust = Trust(redis, clock=clock)
    await trust.of("acme")
    write_day(store, requests=1, strikes=1)
    clock.now += 6
    tasks = TaskOwner()
    tasks.start(trust.of("acme"), "reading")
    await asyncio.sleep(0)
    await tasks.aclose()
    clock.now += 1.1
    assert (await trust.of("acme")).factor == pytest.approx(0.5)


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first(
    redis: RedisOwner, store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.limits.trust._ACCOUNTS_MAX", 10)
    trust = Trust(redis)
    for number in range(30):
        await trust.of(f"a{number}")
    assert list(trust._cache) == [f"a{number}" for number in range(20, 30)]


async def test_without_redis_the_last_standing_holds_and_a_stranger_is_as_configured(
    redis_server: RedisServer, store: Redis
) -> None:
    clock = Clock(1000)
    create(store, days_ago=40)
    write_day(store, requests=1, strikes=1)
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    trust = Trust(owner, clock=clock)
    known = await trust.of("acme")
    redis_server.kill()
    try:
        clock.now += 6
        assert await trust.of("acme") == known
        clock.now += 600
        assert await trust.of("acme") == known
        stranger = await trust.of("stranger")
        assert (stranger.factor, stranger.is_known) == (1.0, False)
        assert stranger.explain()["source"] == "unknown"
    finally:
        redis_server.start()
    await retrying(lambda: owner.call("PING"), 10)
    clock.now += 2
    assert (await trust.of("stranger")).factor == 0.5
    await owner.aclose()


def test_every_input_is_explained() -> None:
    day = Day(number=TODAY, requests=980, refused=20, strikes=1, spent_microusd=500 * USD)
    explained = standing([day], created_ms=int((NOW_S - 15 * DAY_S) * 1000), now_s=NOW_S).explain()
    assert json.loads(json.dumps(explained)) == explained
    assert explained == {
        "factor": 0.74,
        "source": "history",
        "inputs": {"age_days": 15.0, "spent_microusd": 500 * USD, "refused_share": 0.02, "strikes": 1.0},
        "parts": {
            "from_age": 0.75,
            "from_spend": 1.0,
            "from_large_spend": 0.48,
            "strikes_multiply_by": 0.5,
            "refusals_multiply_by": 1.0,
        },
    }
