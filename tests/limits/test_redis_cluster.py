"""A cluster of three masters: calls find their server, whatever moves, dies or comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.exceptions import ResponseError

from gateway.limits.checks import UnfitRedis, check_redis
from gateway.limits.cluster import RedisCluster, key_of, slot_of
from gateway.limits.connect import open_redis
from gateway.limits.redis import LuaSource, Redis, RedisOwner, StoreUnavailable, retrying
from tests.limits.conftest import BINARIES
from tests.limits.test_checks import ACL_COMMANDS, ACL_FORMS, ACL_KEYS
from tests.redis_cluster import Cluster, wait_until

# Three accounts of which each has another master.
ACCOUNTS = ("acme", "hooli", "umbrella")
BUDGET_S = 20

PAY = LuaSource("redis.call('HINCRBY', KEYS[1], 's', ARGV[1]) return redis.call('RPUSH', KEYS[2], ARGV[1])")


def wallet(account: str) -> str:
    return f"cr:{{{account}}}:w"


def ledger(account: str) -> str:
    return f"cr:{{{account}}}:led"


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Redis]:
    redis = open_redis(url, timeout_s=2)
    redis.start()
    try:
        yield redis
    finally:
        await redis.aclose()


@pytest.fixture(scope="module", params=BINARIES.values(), ids=list(BINARIES))
def whole(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole: Cluster) -> Cluster:
    for node in whole.nodes:
        node.ask("FLUSHALL")
    return whole


@pytest.fixture
def fragile() -> Iterator[Cluster]:
    """A cluster of the test's own, of which the living part goes on without the dead one."""
    with Cluster(None, "--cluster-require-full-coverage", "no") as cluster:
        yield cluster


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[Redis]:
    async with opened(cluster.url) as redis:
        yield redis


def pay(redis: Redis, account: str, amount: int) -> "asyncio.Future[int]":
    return redis.script(PAY, (wallet(account), ledger(account)), (amount,), int)


async def test_each_key_is_kept_by_the_master_of_its_slot(cluster: Cluster, redis: Redis) -> None:
    names = [f"k{number}" for number in range(300)]
    await asyncio.gather(*(redis.call("SET", name, name) for name in names))
    assert await asyncio.gather(*(redis.call("GET", name) for name in names)) == [name.encode() for name in names]
    sizes = [node.ask("DBSIZE") for node in cluster.nodes]
    assert sum(sizes) == len(names) and all(sizes)


async def test_the_accounts_of_these_tests_have_a_master_each(cluster: Cluster) -> None:
    assert len({cluster.master_of(wallet(account)).port for account in ACCOUNTS}) == len(ACCOUNTS)


async def test_a_script_runs_where_its_account_is_even_if_no_server_knows_it_yet(
    cluster: Cluster, redis: Redis
) -> None:
    for node in cluster.nodes:
        node.ask("SCRIPT", "FLUSH")
    for count in (1, 2):
        assert await asyncio.gather(*(pay(redis, account, 5) for account in ACCOUNTS)) == [count] * 3
    assert [await redis.call("HGET", wallet(account), "s") for account in ACCOUNTS] == [b"10"] * 3


async def test_what_has_no_key_goes_to_any_master(redis: Redis) -> None:
    assert await redis.call("PING") == b"PONG"
    assert len(await redis.call("TIME")) == 2
    assert b"cluster_enabled:1" in await redis.call("INFO")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a"), "a"),
        (("zadd", "z", 1, "m"), "z"),
        (("SET", 7, 1), "7"),
        (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), "s"),
        (("XINFO", "STREAM", "s"), "s"),
        (("TIME",), None),
        (("CONFIG", "GET", "appendfsync"), None),
        (("PUBLISH", "channel", "text"), None),
    ],
)
def test_the_key_of_a_command_is_known(command: tuple[object, ...], key: str | None) -> None:
    assert key_of(command) == key


def test_a_hash_tag_decides_over_the_slot() -> None:
    assert slot_of("cr:{acme}:w") == slot_of(b"cap:{acme}:x") == slot_of("acme")


async def test_one_round_trip_observer_hears_of_every_master(redis: Redis) -> None:
    trips: list[float] = []
    redis.on_round_trip = trips.append
    await asyncio.gather(*(redis.call("GET", wallet(account)) for account in ACCOUNTS))
    assert len(trips) >= len(ACCOUNTS)


async def test_a_slot_that_moved_is_followed(cluster: Cluster, redis: Redis) -> None:
    await pay(redis, "acme", 5)
    source = cluster.master_of(wallet("acme"))
    target = next(node for node in cluster.nodes if node is not source)
    cluster.end_move(wallet("acme"), cluster.begin_move(wallet("acme"), target), target)
    try:
        assert await retrying(lambda: pay(redis, "acme", 5), BUDGET_S) == 2
        assert target.ask("HGET", wallet("acme"), "s") == b"10"
    finally:
        wait_until(lambda: cluster.master_of(wallet("acme")) is target, "the others did not hear of it")
        cluster.end_move(wallet("acme"), cluster.begin_move(wallet("acme"), source), source)
        wait_until(lambda: cluster.master_of(wallet("acme")) is source, "the others did not hear of it")
    assert await retrying(lambda: pay(redis, "acme", 5), BUDGET_S) == 3


async def test_a_slot_on_its_way_is_asked_for_where_its_keys_are(cluster: Cluster, redis: Redis) -> None:
    await redis.call("SET", "here{way}", "1")
    source = cluster.master_of("{way}")
    target = next(node for node in cluster.nodes if node is not source)
    cluster.begin_move("{way}", target)
    try:
        assert await redis.call("GET", "here{way}") == b"1"
        await redis.call("SET", "there{way}", "2")  # ASK: the new server has what does not exist on the old one
        assert source.ask("CLUSTER", "COUNTKEYSINSLOT", slot_of("{way}")) == 1
        assert await redis.call("GET", "there{way}") == b"2"
        single = LuaSource("return redis.call('INCR', KEYS[1])")
        assert [await redis.script(single, ("there{way}",), (), int) for _ in range(2)] == [3, 4]
        with pytest.raises(StoreUnavailable):  # TRYAGAIN: its keys are on two servers
            await redis.call("MGET", "here{way}", "there{way}")
    finally:
        cluster.end_move("{way}", source, target)
    assert await retrying(lambda: redis.call("MGET", "here{way}", "there{way}"), BUDGET_S) == [b"1", b"4"]
    wait_until(lambda: cluster.master_of("{way}") is target, "the others did not hear of it")
    cluster.end_move("{way}", cluster.begin_move("{way}", source), source)
    wait_until(lambda: cluster.master_of("{way}") is source, "the others did not hear of it")


async def test_calls_for_two_slots_at_once_are_a_bug_and_raised_as_itself(redis: Redis) -> None:
    with pytest.raises(ResponseError):
        await redis.call("MGET", *(wallet(account) for account in ACCOUNTS))


async def test_a_dead_master_costs_its_own_accounts_only_until_it_is_back(fragile: Cluster) -> None:
    async with opened(fragile.url) as redis:
        for account in ACCOUNTS:
            await retrying(lambda account=account: pay(redis, account, 5), BUDGET_S)
        dead = fragile.master_of(wallet("acme"))
        dead.kill()
        with pytest.raises(StoreUnavailable):
            await retrying(lambda: pay(redis, "acme", 5), 0.5)
        for account in ("hooli", "umbrella"):
            assert await retrying(lambda account=account: pay(redis, account, 5), BUDGET_S) == 2
        assert await retrying(lambda: redis.call("PING"), BUDGET_S) == b"PONG"
        dead.start()
        assert await retrying(lambda: pay(redis, "acme", 5), BUDGET_S) == 2


async def test_a_cluster_that_is_down_is_unavailable_and_then_back() -> None:
    with Cluster() as whole:
        async with opened(whole.url) as redis:
            await retrying(lambda: pay(redis, "hooli", 5), BUDGET_S)
            dead = whole.master_of(wallet("acme"))
            dead.kill()
            living = whole.master_of(wallet("hooli"))
            wait_until(lambda: b"cluster_state:fail" in living.ask("CLUSTER", "INFO"), "nobody noticed")
            with pytest.raises(StoreUnavailable):
                await pay(redis, "hooli", 5)
            dead.start()
            assert await retrying(lambda: pay(redis, "hooli", 5), BUDGET_S) == 2


async def test_a_promoted_replica_is_found_and_a_new_master_too(fragile: Cluster) -> None:
    async with opened(fragile.url) as redis:
        await retrying(lambda: pay(redis, "acme", 5), BUDGET_S)
        old = fragile.master_of(wallet("acme"))
        fragile.add(replica_of=old)
        old.kill()
        assert await retrying(lambda: pay(redis, "acme", 5), BUDGET_S) == 2
        assert old.url not in {master.address for master in await redis.masters()}
        assert len(await redis.masters()) == 3


async def test_calls_wait_for_the_map_and_fail_where_there_is_none(cluster: Cluster) -> None:
    redis = open_redis(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[2].port}", timeout_s=2)
    early = [pay(redis, account, 5) for account in ACCOUNTS]  # before anything was asked
    redis.start()
    assert await asyncio.gather(*early) == [1, 1, 1]
    await redis.aclose()
    with pytest.raises(StoreUnavailable, match="stopping"):
        await redis.call("GET", "a")
    async with opened("redis+cluster://127.0.0.1:1") as nowhere:
        for command in (("GET", "a"), ("PING",)):
            with pytest.raises(StoreUnavailable):
                await nowhere.call(*command)


async def test_closing_fails_what_still_waits(cluster: Cluster) -> None:
    redis = open_redis(cluster.url)
    waiting = redis.call("GET", "a")
    await redis.aclose()
    with pytest.raises(StoreUnavailable, match="stopping"):
        await waiting


async def test_servers_that_never_agree_are_given_up(cluster: Cluster, redis: Redis) -> None:
    assert isinstance(redis, RedisCluster)
    await redis.call("PING")
    here = cluster.master_of("{way}")
    there = next(node for node in cluster.nodes if node is not here)
    # Each believes that the other has the slot.
    slot = slot_of("{way}")
    here.ask("CLUSTER", "SETSLOT", slot, "NODE", there.id)
    try:
        with pytest.raises(StoreUnavailable):
            await redis.call("GET", "{way}")
    finally:
        for node in cluster.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", here.id)
        cluster.wait_until_whole()
    assert await retrying(lambda: redis.call("GET", "{way}"), BUDGET_S) is None


async def test_every_master_is_checked(cluster: Cluster, redis: Redis) -> None:
    await check_redis(redis)
    bad = cluster.nodes[1]
    bad.ask("CONFIG", "SET", "appendonly", "no")
    try:
        with pytest.raises(UnfitRedis, match="append-only"):
            await check_redis(redis)
        await check_redis(redis, durability="none")
    finally:
        bad.ask("CONFIG", "SET", "appendonly", "yes")


async def test_one_server_of_a_cluster_is_no_redis_of_its_own(cluster: Cluster) -> None:
    async with opened(cluster.nodes[0].url) as redis:
        assert isinstance(redis, RedisOwner)
        with pytest.raises(UnfitRedis, match=r"redis\+cluster"):
            await check_redis(redis)


async def test_a_user_with_the_least_rights_is_enough_even_while_a_slot_moves(cluster: Cluster) -> None:
    for node in cluster.nodes:
        rule = f"{ACL_KEYS} {ACL_COMMANDS} {ACL_FORMS}".split()
        node.ask("ACL", "SETUSER", "gateway", "reset", "on", ">pw", *rule)
    source = cluster.master_of(wallet("acme"))
    target = next(node for node in cluster.nodes if node is not source)
    try:
        async with opened(cluster.url.replace("://", "://gateway:pw@")) as redis:
            await redis.call("HSET", wallet("acme"), "s", 1)
            cluster.begin_move(wallet("acme"), target)
            assert await redis.call("HGET", wallet("acme"), "s") == b"1"
            assert await redis.call("HSET", ledger("acme"), "s", 1) == 1  # by ASK
            cluster.end_move(wallet("acme"), source, target)
            assert await retrying(lambda: redis.call("HINCRBY", wallet("acme"), "s", 1), BUDGET_S) == 2  # by MOVED
            await check_redis(redis)
    finally:
        wait_until(lambda: cluster.master_of(wallet("acme")) is target, "the others did not hear of it")
        cluster.end_move(wallet("acme"), cluster.begin_move(wallet("acme"), source), source)
        wait_until(lambda: cluster.master_of(wallet("acme")) is source, "the others did not hear of it")
        for node in cluster.nodes:
            node.ask("ACL", "DELUSER", "gateway")
