"""The way to Redis, with callers that give up and a Redis that dies, hangs, is full, is busy or belongs to another."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots
from gateway.limits.redis import RedisOwner, StoreUnavailable, retrying
from tests.harness import RedisServer

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any


@contextlib.asynccontextmanager
async def owner_of(server: RedisServer, **options: Any) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(server.url, **options)
    owner.start()
    try:
        yield owner
    finally:
        await owner.aclose()


@contextlib.contextmanager
def stopped(server: RedisServer) -> Any:
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


async def test_whatever_waits_travels_together(redis: RedisOwner) -> None:
    trips: list[float] = []
    redis.on_round_trip = trips.append
    answers = await asyncio.gather(*(redis.call("ECHO", number) for number in range(200)))
    assert answers == [str(number).encode() for number in range(200)]
    assert len(trips) == 1


async def test_a_batch_is_bounded(redis_server: RedisServer, store: Redis) -> None:
    trips: list[float] = []
    async with owner_of(redis_server, batch_max=10, timeout_s=5) as owner:
        owner.on_round_trip = trips.append
        await asyncio.gather(*(owner.call("ECHO", number) for number in range(95)))
    assert len(trips) == 10


async def test_no_caller_gets_the_answer_of_one_who_gave_up(redis: RedisOwner) -> None:
    rnd = random.Random(random.SystemRandom().random())
    wrong: list[tuple[int, bytes]] = []

    async def ask(number: int) -> None:
        answer = await redis.call("ECHO", number)
        if answer != str(number).encode():
            wrong.append((number, answer))

    cancelled = 0
    for round_number in range(60):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(round_number * 100 + number)) for number in range(30)]
            for task in rnd.sample(tasks, 12):
                for _ in range(rnd.randrange(3)):
                    await asyncio.sleep(0)
                cancelled += task.cancel()
    assert wrong == []
    assert cancelled > 200


async def test_calls_fail_while_redis_is_gone_and_work_once_it_is_back(redis_server: RedisServer, store: Redis) -> None:
    async with owner_of(redis_server, timeout_s=5) as owner:
        await owner.call("SET", "kept", "1")
        redis_server.kill()
        try:
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await owner.call("GET", "kept")
        finally:
            redis_server.start()
        assert await retrying(lambda: owner.call("GET", "kept"), 10) == b"1"


async def test_a_connection_that_was_cut_is_replaced(redis: RedisOwner, store: Redis) -> None:
    for number in range(5):
        await retrying(lambda: redis.call("INCR", "n"), 10)
        store.client_kill_filter(_type="normal", skipme=True)
        assert await retrying(lambda value=number: redis.call("ECHO", value), 10) == str(number).encode()
    assert store.get("n") == b"5"


async def test_a_redis_that_hangs_is_given_up_and_late_calls_do_no_harm(
    teller: Teller, redis_server: RedisServer
) -> None:
    async with owner_of(redis_server, timeout_s=0.5) as owner:
        hasty = type(teller)(owner, teller.store)
        await hasty.grant(1000)
        await hasty.reserve("s", 100)
        with stopped(redis_server):
            for call in (
                lambda: hasty.grant(500, "second"),
                lambda: hasty.extend("s", used=60, need=100, target=300),
                lambda: hasty.settle("s", 70),
            ):
                with pytest.raises(StoreUnavailable):
                    await retrying(call, 0.3)
        assert (await retrying(lambda: hasty.grant(500, "second"), 10)).granted == 1500
        assert (await retrying(lambda: hasty.settle("s", 70), 10)).charged == 70
        assert teller.wallet() == {"granted": 1500, "spent": 70, "held": 0, "absorbed": 0}


OOM: dict[str, Callable[[Teller], Awaitable[Any]]] = {
    "grant": lambda teller: teller.grant(5, "another"),
    "reserve": lambda teller: teller.reserve("new", 10),
    "extend": lambda teller: teller.extend("s", used=9, need=100, target=200),
    "extend without growth": lambda teller: teller.extend("s", used=9),
    "settle": lambda teller: teller.settle("s", 70, refund=True),
    "settle beyond the hold": lambda teller: teller.settle("s", 5000),
    "settle a lost stream": lambda teller: teller.settle("lost", 5),
    "reap": lambda teller: teller.reap("unknown", "dead", "s"),
}


@pytest.mark.parametrize("script", OOM)
@pytest.mark.parametrize("is_known", [True, False], ids=["script known", "script unknown"])
async def test_where_memory_is_full_a_script_does_all_or_nothing(teller: Teller, script: str, is_known: bool) -> None:
    teller.allowances = Allowances(
        keys.limits_of("acme"), buckets=[Bucket("b", 5, 86_400_000, 5)], slots=[Slots("streams", 5)]
    )
    await teller.grant(1000)
    await teller.reserve("s", 100)
    await teller.reserve("dead", 100)
    teller.lapse("dead")
    if not is_known:
        teller.store.script_flush()
    before = teller.everything()
    try:
        teller.store.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable):
            await OOM[script](teller)
        assert teller.everything() == before
    finally:
        teller.store.config_set("maxmemory", 0)
    assert (await OOM[script](teller)).code if script != "reap" else (await OOM[script](teller)).reaped


async def test_a_redis_that_may_not_write_is_unavailable(teller: Teller) -> None:
    await teller.grant(1000)
    teller.store.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable):
            await teller.reserve("s")
        with pytest.raises(StoreUnavailable):
            await teller.redis.call("SET", "a", "b")
    finally:
        teller.store.replicaof("NO", "ONE")
    assert (await teller.reserve("s")).code == 1


async def test_a_redis_that_misses_its_replicas_is_unavailable(teller: Teller) -> None:
    await teller.grant(1000)
    teller.store.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreUnavailable):
            await teller.reserve("s")
    finally:
        teller.store.config_set("min-replicas-to-write", 0)
    assert (await teller.reserve("s")).code == 1


async def test_a_redis_that_runs_somebodys_script_is_unavailable(
    redis: RedisOwner, store: Redis, redis_server: RedisServer
) -> None:
    store.config_set("lua-time-limit", 1)

    def hog() -> None:
        with Redis.from_url(redis_server.url) as other, contextlib.suppress(RedisError):
            other.eval("while true do end", 0)

    running = asyncio.get_running_loop().run_in_executor(None, hog)
    try:
        with pytest.raises(StoreUnavailable):
            while True:
                await redis.call("GET", "a")
    finally:
        store.script_kill()
        await running
    store.config_set("lua-time-limit", 5000)
    assert await redis.call("GET", "a") is None


async def test_what_redis_refuses_for_good_is_a_bug_and_raised_as_itself(redis: RedisOwner, store: Redis) -> None:
    store.set("text", "x")
    answers = await asyncio.gather(
        redis.call("GET", "text"),
        redis.call("HGET", "text", "f"),
        redis.call("NOSUCHCOMMAND"),
        redis.call("GET", "text"),
        return_exceptions=True,
    )
    assert answers[0] == answers[3] == b"x"
    assert type(answers[1]) is type(answers[2]) is ResponseError
    with pytest.raises(ResponseError):
        await retrying(lambda: redis.call("HGET", "text", "f"), 60)


async def test_what_cannot_be_sent_is_told_to_its_caller_and_nobody_else(redis: RedisOwner) -> None:
    other = redis.call("ECHO", "other")
    with pytest.raises(TypeError):
        redis.call("SET", "a", None)
    assert await other == b"other"
    assert await redis.call("ECHO", "later") == b"later"


async def test_too_many_waiting_calls_are_refused_at_once(redis_server: RedisServer, store: Redis) -> None:
    owner = RedisOwner(redis_server.url, timeout_s=5, calls_max=3)
    waiting = [owner.call("ECHO", number) for number in range(3)]
    with pytest.raises(StoreUnavailable, match="Too many"):
        await owner.call("ECHO", "one more")
    owner.start()
    assert await asyncio.gather(*waiting) == [b"0", b"1", b"2"]
    assert await owner.call("ECHO", "again") == b"again"
    await owner.aclose()


async def test_closing_fails_every_call_on_its_way_every_one_that_waits_and_later_ones(
    redis_server: RedisServer, store: Redis
) -> None:
    owner = RedisOwner(redis_server.url, timeout_s=30, batch_max=2)
    owner.start()
    await owner.call("PING")
    with stopped(redis_server):
        calls = [owner.call("ECHO", number) for number in range(5)]
        while len(owner._waiting) > 3:  # two are on their way
            await asyncio.sleep(0)
        await owner.aclose()
        for call in [*calls, owner.call("PING")]:
            with pytest.raises(StoreUnavailable, match="stopping"):
                await call


async def test_closing_ends_also_where_connecting_takes_no_notice_of_being_cancelled(redis_server: RedisServer) -> None:
    class Stubborn(RedisOwner):
        async def _connect(self) -> Any:
            is_connecting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return await super()._connect()

    is_connecting = asyncio.Event()
    owner = Stubborn(redis_server.url, timeout_s=5)
    owner.start()
    call = owner.call("PING")
    await is_connecting.wait()
    async with asyncio.timeout(30):
        await owner.aclose()
    assert call.done() and not owner.is_connected


async def test_a_call_that_nobody_waits_for_is_not_sent(redis_server: RedisServer, store: Redis) -> None:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.call("SET", "a", 1).cancel()
    kept = owner.call("SET", "b", 1)
    owner.start()
    await kept
    await owner.aclose()
    assert store.keys() == [b"b"]


async def test_retrying_ends_with_its_budget() -> None:
    attempts = 0

    async def never() -> None:
        nonlocal attempts
        attempts += 1
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        await retrying(never, 0.1)
    assert attempts > 1


@pytest.mark.parametrize("name", ["acme", "a", "0-_", "a" * 64])
def test_keys_of_one_account_share_its_tag(name: str) -> None:
    assert keys.ACCOUNT_NAME.fullmatch(name)
    owner = keys.limits_of(name)
    made = (
        *(key(name) for key in (keys.account, keys.wallet, keys.leases, keys.ledger, keys.grants, keys.account_keys)),
        *(keys.record(name, "s"), keys.revision(name, "g"), keys.history(name)),
        *(limit("l") for limit in (owner.window, owner.bucket, owner.slots)),
    )
    assert len(set(made)) == len(made)
    assert all(key.startswith(f"cr:{{{name}}}:") for key in made)


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "a}b", "{a", "-a", "a" * 65, "ä", "a\n"])
def test_no_account_name_can_reach_anothers_keys(name: str) -> None:
    assert not keys.ACCOUNT_NAME.fullmatch(name)


async def test_an_error_nobody_thought_of_costs_a_connection_and_not_the_owner(
    redis: RedisOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.call("PING")
    assert redis._link is not None

    def broken(data: bytes) -> None:
        raise RuntimeError("unable to perform operation: the handler is closed")  # what uvloop raises after a reset

    monkeypatch.setattr(redis._link, "write", broken)
    with pytest.raises(StoreUnavailable):
        await redis.call("PING")
    assert await redis.call("PING") == b"PONG"
