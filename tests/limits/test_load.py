"""The load of several gateways as one factor: its shape, what it is made of, who counts, and Redis coming and going."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from gateway.limits import keys
from gateway.limits.load import (
    LOAD_MIN,
    Damped,
    Gauges,
    Latency,
    Local,
    LoopLag,
    lag_factor,
    shared,
    streams_factor,
    upstream_factor,
)
from gateway.limits.redis import RedisOwner, retrying
from gateway.tasks import TaskOwner
from tests.harness import RedisServer

IDLE = Local(streams=0, capacity=100)
FULL = Local(streams=100, capacity=100)
AMOUNTS = st.floats(0, 1e9)


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def beats(gauges: Gauges, count: int = 60) -> None:
    for _ in range(count):
        await gauges.beat()


def gateways(gauges: Gauges) -> list[str]:
    shown = gauges.explain()["gateways"]
    assert isinstance(shown, dict)
    return list(shown)


def make_older(store: Redis, gateway_id: str, by_ms: int) -> None:
    entry = json.loads(store.hget(keys.GAUGES, gateway_id) or b"")
    entry["at_ms"] -= by_ms
    store.hset(keys.GAUGES, gateway_id, json.dumps(entry))


# The factors.


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (streams_factor(0, 100), 1),
        (streams_factor(70, 100), 1),
        (streams_factor(85, 100), 0.55),
        (streams_factor(100, 100), 0.1),
        (streams_factor(900, 100), 0.1),
        (streams_factor(900, 0), 1),
        (lag_factor(50), 1),
        (lag_factor(275), 0.55),
        (lag_factor(9000), 0.1),
        (upstream_factor(2), 1),
        (upstream_factor(5), 0.625),
        (upstream_factor(80), 0.25),
    ],
)
def test_each_factor_falls_in_a_line_between_two_marks(factor: float, expected: float) -> None:
    assert factor == pytest.approx(expected)


@given(low=AMOUNTS, more=AMOUNTS)
def test_more_load_never_raises_a_factor(low: float, more: float) -> None:
    for factor in (lag_factor, upstream_factor, lambda value: streams_factor(int(value), 1000)):
        assert LOAD_MIN - 1e-9 <= factor(low + more) <= factor(low) <= 1


def test_the_smallest_factor_counts() -> None:
    load = shared([Local(streams=85, capacity=100, lag_ms=275, upstream_ms=900, upstream_ratio=8)])
    assert load.raw == load.upstream_factor == pytest.approx(0.25)


def test_streams_of_all_gateways_are_set_against_the_capacity_of_all() -> None:
    load = shared([Local(streams=100, capacity=100), Local(streams=0, capacity=300)])
    assert (load.streams, load.capacity, load.streams_factor) == (100, 400, 1)


def test_a_gateway_without_a_bound_neither_adds_capacity_nor_uses_it() -> None:
    load = shared([FULL, Local(streams=5000, capacity=0)])
    assert load.streams == 5100
    assert load.streams_factor == pytest.approx(0.1)


def test_one_stalled_gateway_of_four_costs_a_quarter_of_what_four_cost() -> None:
    stalled = Local(streams=0, capacity=100, lag_ms=60_000)
    assert 1 - shared([stalled, IDLE, IDLE, IDLE]).raw == pytest.approx((1 - shared([stalled] * 4).raw) / 4)


# Smoothing.


def test_a_single_bad_beat_does_not_bring_the_factor_to_its_end() -> None:
    damped = Damped()
    assert 0.5 < damped.follow(0.1) < 1


def test_the_factor_falls_faster_than_it_rises_and_arrives_at_both_ends() -> None:
    damped = Damped()
    down = next(beat for beat in range(1000) if damped.follow(0.1) == 0.1)
    up = next(beat for beat in range(1000) if damped.follow(1.0) == 1.0)
    assert 0 < down < up / 2


def test_load_that_trembles_does_not_move_the_factor() -> None:
    damped = Damped()
    for _ in range(100):
        damped.follow(0.6)
    seen = {damped.follow(raw) for raw in (0.58, 0.62, 0.6, 0.57, 0.63) * 50}
    assert len(seen) == 1


@given(st.lists(st.floats(0.1, 1), max_size=200))
def test_the_factor_stays_within_its_bounds_and_near_what_was_asked(raws: list[float]) -> None:
    damped = Damped()
    for raw in raws:
        assert 0.1 <= damped.follow(raw) <= 1
        assert abs(damped.value - damped.smoothed) < 0.05
        assert min([1.0, *raws]) <= damped.smoothed


@given(st.floats(0.1, 1))
def test_steady_load_is_followed_to_within_a_step(raw: float) -> None:
    damped = Damped()
    for _ in range(200):
        damped.follow(raw)
    assert abs(damped.value - raw) < 0.05


# Several gateways.


async def test_two_gateways_come_to_the_same_factor(redis: RedisOwner) -> None:
    busy, idle = Gauges(redis, "busy", lambda: FULL), Gauges(redis, "idle", lambda: IDLE)
    await beats(busy, 1)
    assert busy.factor < 1
    for _ in range(80):
        await asyncio.gather(busy.beat(), idle.beat())
    assert busy.factor == idle.factor == 1.0
    assert gateways(busy) == gateways(idle) == ["busy", "idle"]


async def test_a_busy_neighbour_lowers_the_factor_here(redis: RedisOwner) -> None:
    here = Gauges(redis, "here", lambda: Local(streams=10, capacity=10))
    there = Gauges(redis, "there", lambda: Local(streams=170, capacity=190))
    await there.beat()
    await beats(here)
    assert here.factor == pytest.approx(streams_factor(180, 200), abs=0.05)


async def test_a_gateway_that_dies_drops_out(redis: RedisOwner, store: Redis) -> None:
    survivor = Gauges(redis, "survivor", lambda: IDLE)
    await Gauges(redis, "dead", lambda: FULL).beat()
    await survivor.beat()
    assert gateways(survivor) == ["dead", "survivor"]
    make_older(store, "dead", 6_000)
    await beats(survivor)
    assert gateways(survivor) == ["survivor"]
    assert survivor.factor == 1.0
    newcomer = Gauges(redis, "newcomer", lambda: IDLE)
    await newcomer.beat()
    assert gateways(newcomer) == ["newcomer", "survivor"]


async def test_a_dead_gateway_drops_out_by_the_passing_of_time(redis: RedisOwner) -> None:
    survivor = Gauges(redis, "survivor", lambda: IDLE, fresh_s=0.2)
    await Gauges(redis, "dead", lambda: FULL).beat()
    async with asyncio.timeout(20):
        while gateways(survivor) != ["survivor"]:
            await survivor.beat()
            await asyncio.sleep(0.01)


async def test_what_nobody_writes_any_more_is_swept_and_expires(redis: RedisOwner, store: Redis) -> None:
    gauges = Gauges(redis, "here", lambda: IDLE)
    await Gauges(redis, "dead", lambda: FULL).beat()
    make_older(store, "dead", 120_000)
    store.hset(keys.GAUGES, mapping={"foreign": "{}", "broken": b"\xff", "odd": '{"at_ms":1,"local":{"streams":null}}'})
    await gauges.beat()
    assert store.hkeys(keys.GAUGES) == [b"here"]
    assert 0 < store.pttl(keys.GAUGES) <= 60_000


async def test_a_newer_version_may_publish_more(redis: RedisOwner, store: Redis) -> None:
    gauges = Gauges(redis, "here", lambda: IDLE)
    await Gauges(redis, "newer", lambda: FULL).beat()
    entry = json.loads(store.hget(keys.GAUGES, "newer") or b"")
    entry["local"]["temperature"] = 21
    store.hset(keys.GAUGES, "newer", json.dumps(entry))
    await gauges.beat()
    assert gateways(gauges) == ["here", "newer"]


async def test_entries_from_before_a_clock_went_back_do_not_count(redis: RedisOwner, store: Redis) -> None:
    gauges = Gauges(redis, "here", lambda: IDLE)
    await Gauges(redis, "future", lambda: FULL).beat()
    make_older(store, "future", -30_000)
    await gauges.beat()
    assert gateways(gauges) == ["here"]
    assert store.hexists(keys.GAUGES, "future")


async def test_every_input_is_explained(redis: RedisOwner) -> None:
    gauges = Gauges(redis, "here", lambda: Local(streams=85, capacity=100, lag_ms=20, upstream_ms=800))
    before = gauges.explain()
    assert (before["factor"], before["inputs"], before["gateways"]) == (1.0, {}, {})
    await beats(gauges)
    explained = gauges.explain()
    assert json.loads(json.dumps(explained)) == explained
    assert explained["store"] == "shared"
    assert explained["raw"] == explained["smoothed"] == 0.55
    assert explained["inputs"] == {
        "streams": 85,
        "capacity": 100,
        "lag_ms": 20,
        "upstream_ms": 800,
        "upstream_ratio": 1,
        "streams_factor": 0.55,
        "lag_factor": 1,
        "upstream_factor": 1,
    }


async def test_it_beats_by_itself_and_lowers_nothing_once_it_ended(redis: RedisOwner, store: Redis) -> None:
    gauges = Gauges(redis, "here", lambda: FULL)
    tasks = TaskOwner()
    tasks.start(gauges.run(), "gauges")
    await until(lambda: gauges.factor < 1)
    assert store.hkeys(keys.GAUGES) == [b"here"]
    await tasks.aclose()
    assert gauges.factor == 1.0


# Redis away.


@contextlib.asynccontextmanager
async def an_owner(server: RedisServer) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(server.url, timeout_s=5)
    owner.start()
    try:
        yield owner
    finally:
        await owner.aclose()


async def test_without_redis_a_gateway_goes_by_its_own_gauges(redis_server: RedisServer, store: Redis) -> None:
    clock = Clock()
    async with an_owner(redis_server) as owner:
        here = Gauges(owner, "here", lambda: IDLE, clock=clock)
        await Gauges(owner, "there", lambda: Local(streams=1000, capacity=900)).beat()
        await beats(here, 20)
        assert here.factor == pytest.approx(0.1, abs=0.05)
        redis_server.kill()
        try:
            await here.beat()
            assert here.explain()["store"] == "away"
            assert gateways(here) == ["here", "there"]  # a moment's silence of Redis forgets nobody
            clock.now += 6
            await beats(here, 60)
            assert gateways(here) == ["here"]
            assert here.factor == 1.0
        finally:
            redis_server.start()
        await retrying(lambda: owner.call("PING"), 10)
        await here.beat()
        assert here.explain()["store"] == "shared"


async def test_a_gateway_that_never_saw_redis_has_a_factor_of_its_own() -> None:
    owner = RedisOwner("redis://127.0.0.1:1/0", timeout_s=1)
    owner.start()
    gauges = Gauges(owner, "here", lambda: FULL)
    await beats(gauges, 20)
    assert gauges.factor == pytest.approx(0.1)
    await owner.aclose()


# What a gateway measures of itself.


def test_lag_is_the_second_worst_of_ten_seconds() -> None:
    clock = Clock()
    lag = LoopLag(clock=clock)
    assert lag.p99_ms == 0
    for late_s in (*(0.001,) * 98, 0.2, 9.0):
        lag.observe(late_s)
    assert lag.p99_ms == pytest.approx(200)
    clock.now += 11
    assert lag.p99_ms == 0


async def test_lag_is_measured_by_napping() -> None:
    lag = LoopLag()
    tasks = TaskOwner()
    tasks.start(lag.run(), "loop-lag")
    await until(lambda: lag.p99_ms > 0)
    await tasks.aclose()


def seen(latency: Latency, clock: Clock, seconds: float, *, target: str = "", count: int = 60) -> None:
    for _ in range(count):
        clock.now += 0.5
        latency.observe(seconds, target)


def test_providers_that_slow_down_show_against_what_is_usual() -> None:
    clock = Clock()
    latency = Latency(clock=clock)
    assert (latency.p50_ms, latency.ratio) == (0, 1)
    seen(latency, clock, 0.5)
    assert latency.p50_ms == pytest.approx(500)
    assert latency.ratio == pytest.approx(1)
    seen(latency, clock, 4.0, count=120)
    assert latency.p50_ms == pytest.approx(4000)
    assert latency.ratio == pytest.approx(8, rel=0.1)


def test_a_slow_model_is_not_a_slow_provider() -> None:
    clock = Clock()
    latency = Latency(clock=clock)
    seen(latency, clock, 0.5, target="fast", count=30)
    seen(latency, clock, 20.0, target="thinks", count=30)
    seen(latency, clock, 20.0, target="thinks", count=120)
    assert latency.ratio == pytest.approx(1)


def test_what_lasts_becomes_usual() -> None:
    clock = Clock()
    latency = Latency(clock=clock)
    seen(latency, clock, 0.5)
    seen(latency, clock, 4.0, count=2 * 3 * 3600)
    assert latency.ratio < 1.5


def test_a_few_answers_say_nothing() -> None:
    clock = Clock()
    latency = Latency(clock=clock)
    seen(latency, clock, 0.5)
    clock.now += 3600
    seen(latency, clock, 50.0, count=4)
    assert latency.ratio == 1


def test_targets_are_bounded() -> None:
    latency = Latency(clock=Clock())
    for number in range(2000):
        latency.observe(1.0, f"model-{number}")
    assert len(latency._usual) == 500
