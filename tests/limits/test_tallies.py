"""Shared counters: sums of several replicas in Redis, what happens while it is away, and how much is kept."""

import asyncio
import signal
from collections.abc import Iterator

import pytest
from redis import Redis

from gateway.limits import tallies as room
from gateway.limits.redis import RedisOwner, StoreUnavailable
from gateway.limits.tallies import Tallies
from tests.harness import RedisServer


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that a test may hurt."""
    with RedisServer() as server:
        yield server


async def test_two_replicas_add_to_the_same_counters(redis: RedisOwner) -> None:
    one, two = Tallies(redis), Tallies(redis)
    one.add("gw:a", "x", 2, ttl_s=60)
    one.add("gw:a", "x", 3, ttl_s=60)
    one.add("gw:a", "y", 7, ttl_s=60)
    two.add("gw:a", "x", 10, ttl_s=60)
    two.add("gw:b", "x", -1, ttl_s=60)
    await asyncio.gather(one.flush(), two.flush())
    assert await one.read("gw:a", "gw:b", "gw:none") == [{"x": 15, "y": 7}, {"x": -1}, {}]


async def test_nothing_is_sent_twice(redis: RedisOwner) -> None:
    tallies = Tallies(redis)
    tallies.add("gw:a", "x", 2, ttl_s=60)
    await tallies.flush()
    await tallies.flush()
    assert await tallies.read("gw:a") == [{"x": 2}]


async def test_a_hash_lives_for_as_long_as_the_last_addition_says(redis: RedisOwner, store: Redis) -> None:
    tallies = Tallies(redis)
    tallies.add("gw:a", "x", 1, ttl_s=60)
    await tallies.flush()
    store.expire("gw:a", 5)
    tallies.add("gw:a", "x", 1, ttl_s=60)
    await tallies.flush()
    assert store.ttl("gw:a") > 5


async def test_stale_fields_go_when_the_hash_is_added_to(redis: RedisOwner, store: Redis) -> None:
    store.hset("gw:a", mapping={"old": 1, "older": 1, "x": 1})
    tallies = Tallies(redis)
    tallies.forget("gw:b", ("x",))
    tallies.add("gw:a", "x", 1, ttl_s=60)
    tallies.forget("gw:a", ("old", "older"))
    await tallies.flush()
    assert await tallies.read("gw:a", "gw:b") == [{"x": 2}, {}]


async def test_more_counters_than_fit_into_one_pipeline_arrive_whole(redis: RedisOwner, store: Redis) -> None:
    tallies = Tallies(redis)
    for number in range(1000):
        tallies.add(f"gw:{number % 300}", str(number), number, ttl_s=60)
    await tallies.flush()
    hashes = await tallies.read(*(f"gw:{number}" for number in range(300)))
    assert sum(sum(counters.values()) for counters in hashes) == sum(range(1000))
    assert all(store.ttl(key) > 0 for key in store.keys())


async def test_what_redis_did_not_take_is_kept_until_it_is_back(own_server: RedisServer) -> None:
    redis = RedisOwner(own_server.url, timeout_s=5)
    redis.start()
    tallies = Tallies(redis)
    own_server.kill()
    for amount in range(10):
        tallies.add("gw:a", "x", amount, ttl_s=60)
        await tallies.flush()
    own_server.start()
    await tallies.flush()
    assert await tallies.read("gw:a") == [{"x": 45}]
    await redis.aclose()


async def test_the_end_of_a_hash_is_owed_until_it_is_set(redis: RedisOwner, store: Redis) -> None:
    class LosesEnds(RedisOwner):
        def call(self, *args: object) -> "asyncio.Future[object]":
            if args[0] != "EXPIRE":
                return redis.call(*args)
            lost: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            lost.set_exception(StoreUnavailable("lost"))
            return lost

    tallies = Tallies(LosesEnds("redis://127.0.0.1:1"))
    tallies.add("gw:a", "x", 3, ttl_s=60)
    await tallies.flush()
    assert store.ttl("gw:a") == -1
    tallies._redis = redis
    await tallies.flush()
    assert store.ttl("gw:a") > 0
    assert await tallies.read("gw:a") == [{"x": 3}]


async def test_a_flush_that_is_cancelled_loses_nothing(own_server: RedisServer) -> None:
    redis = RedisOwner(own_server.url, timeout_s=30)
    redis.start()
    tallies = Tallies(redis)
    await redis.call("PING")
    own_server.signal(signal.SIGSTOP)
    stuck = redis.call("PING")  # whatever comes next waits behind it
    await asyncio.sleep(0)
    tallies.add("gw:a", "x", 3, ttl_s=60)
    flush = asyncio.get_running_loop().create_task(tallies.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    own_server.signal(signal.SIGCONT)
    await stuck
    await tallies.flush()
    assert await tallies.read("gw:a") == [{"x": 3}]
    await redis.aclose()


async def test_beyond_the_bound_new_counters_are_dropped_and_counted(
    redis: RedisOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "COUNTERS_MAX", 3)
    tallies = Tallies(redis)
    for number in range(5):
        tallies.add(f"gw:{number}", "x", 1, ttl_s=60)
        tallies.add("gw:0", "x", 1, ttl_s=60)
    assert tallies.dropped == 2
    await tallies.flush()
    tallies.add("gw:4", "x", 1, ttl_s=60)
    await tallies.flush()
    assert tallies.dropped == 2
    assert await tallies.read("gw:0", "gw:3", "gw:4") == [{"x": 6}, {}, {"x": 1}]


async def test_a_key_of_another_kind_spoils_only_itself(redis: RedisOwner, store: Redis) -> None:
    store.set("gw:a", "text")
    tallies = Tallies(redis)
    tallies.add("gw:a", "x", 1, ttl_s=60)
    tallies.add("gw:b", "x", 1, ttl_s=60)
    await tallies.flush()
    await tallies.flush()
    assert await tallies.read("gw:b") == [{"x": 1}]
    assert tallies.dropped == 1


async def test_reading_fails_while_redis_is_away() -> None:
    redis = RedisOwner("redis://127.0.0.1:1", timeout_s=0.5)
    redis.start()
    with pytest.raises(StoreUnavailable):
        await Tallies(redis).read("gw:a", "gw:b")
    await redis.aclose()


async def test_the_task_flushes_by_itself(redis: RedisOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FLUSH_S", 0.01)
    tallies = Tallies(redis)
    task = asyncio.get_running_loop().create_task(tallies.run())
    tallies.add("gw:a", "x", 1, ttl_s=60)
    async with asyncio.timeout(10):
        while await tallies.read("gw:a") != [{"x": 1}]:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
