"""What is counted where: the fleet's last hour, an experiment's variants, an account's days."""

from collections.abc import AsyncIterator

import pytest
from redis import Redis

from gateway.ledger import UsageRecord
from gateway.limits import keys
from gateway.limits.redis import RedisOwner
from gateway.limits.tallies import Tallies
from gateway.statistics import Drift, Hour, Statistics
from tests.harness import RedisServer

DAY = 20_000
NOON_S = DAY * 86_400 + 43_200.0


class Clock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.now = NOON_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tallies(redis_server: RedisServer, store: Redis) -> AsyncIterator[Tallies]:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    yield Tallies(owner)
    await owner.aclose()


@pytest.fixture
def statistics(tallies: Tallies, clock: Clock) -> Statistics:
    return Statistics(tallies, clock)


def record(
    *, outcome: str = "complete", reason: str = "", cost: int = 0, variant: str = "", abuse: str = ""
) -> UsageRecord:
    return UsageRecord(
        request_id="r",
        outcome=outcome,
        reason=reason,
        cost=cost,
        input_tokens=10,
        output_tokens=5,
        variant=variant,
        abuse=abuse,
    )


async def history(tallies: Tallies, account: str = "acme") -> dict[str, int]:
    await tallies.flush()
    return (await tallies.read(keys.history(account)))[0]


async def test_the_last_hour_is_the_sum_of_what_happened_in_it(
    statistics: Statistics, tallies: Tallies, clock: Clock
) -> None:
    clock.now -= 3600  # too long ago
    statistics.ended("acme", record(cost=1_000))
    clock.now += 60
    statistics.ended("acme", record(cost=5))
    clock.now += 1800
    statistics.ended("other", record(outcome="failed", reason="provider_timeout"))
    statistics.ended("other", record(cost=2, abuse="loop"))
    clock.now = NOON_S
    statistics.refused("acme", "rate_limit_exceeded", "")
    statistics.absorbed("acme", 3)
    statistics.absorbed("acme", 0)
    statistics.drift("one/x", 100, 90)
    await tallies.flush()
    assert await statistics.last_hour() == Hour(
        requests=4,
        failed=1,
        refused=1,
        abuse=1,
        cost=7,
        absorbed=3,
        counted=100,
        reported=90,
        targets={"one/x": Drift(100, 90)},
    )


@pytest.mark.parametrize(
    ("outcome", "reason", "failed"),
    [
        ("complete", "", 0),
        ("failed", "provider_timeout", 1),
        ("truncated", "stream_truncated", 1),
        ("cancelled", "client_left", 0),
        ("cut", "credits_exhausted", 0),
        ("failed", "provider_rejected", 0),
        ("failed", "draining", 0),
    ],
)
async def test_a_failure_is_what_neither_the_client_nor_a_restart_caused(
    statistics: Statistics, tallies: Tallies, outcome: str, reason: str, failed: int
) -> None:
    statistics.ended("acme", record(outcome=outcome, reason=reason))
    await tallies.flush()
    assert (await statistics.last_hour()).failed == failed


async def test_minutes_are_forgotten_after_two_hours_and_experiments_after_400_days(
    statistics: Statistics, tallies: Tallies, store: Redis
) -> None:
    statistics.ended("acme", record(variant="more/wide"))
    await tallies.flush()
    ttls = {key.decode(): store.ttl(key) for key in store.keys()}
    assert {key: round(ttl / 3600) for key, ttl in ttls.items()} == {
        keys.stat(int(NOON_S) // 60): 2,
        keys.experiment("more"): 400 * 24,
        keys.history("acme"): 60 * 24,
    }


async def test_an_experiment_counts_each_variant_by_itself(statistics: Statistics, tallies: Tallies) -> None:
    statistics.ended("acme", record(cost=7, variant="more/wide"))
    statistics.ended("acme", record(cost=1, outcome="failed", variant="more/wide"))
    statistics.ended("other", record(outcome="cancelled", variant="more/narrow"))
    statistics.refused("other", "rate_limit_exceeded", "more/narrow")
    statistics.ended("third", record())
    await tallies.flush()
    assert await tallies.read(keys.experiment("more")) == [
        {
            "wide:requests": 2,
            "wide:completed": 1,
            "wide:failed": 1,
            "wide:input_tokens": 20,
            "wide:output_tokens": 10,
            "wide:cost": 8,
            "narrow:requests": 2,
            "narrow:refused": 1,
            "narrow:input_tokens": 10,
            "narrow:output_tokens": 5,
        }
    ]


async def test_an_account_has_a_history_by_day(statistics: Statistics, tallies: Tallies, clock: Clock) -> None:
    statistics.ended("acme", record(cost=7))
    statistics.refused("acme", "rate_limit_exceeded", "")
    clock.now += 86_400
    statistics.ended("acme", record(cost=1, abuse="loop"))
    statistics.refused("acme", "abuse_detected", "")
    assert await history(tallies) == {
        f"{DAY}:requests": 2,
        f"{DAY}:refused": 1,
        f"{DAY}:spent": 7,
        f"{DAY + 1}:requests": 2,
        f"{DAY + 1}:refused": 1,
        f"{DAY + 1}:spent": 1,
        f"{DAY + 1}:strikes": 2,
    }


@pytest.mark.parametrize("code", ["draining", "credit_store_unavailable", "internal_error"])
async def test_our_own_trouble_is_no_part_of_an_accounts_history(
    statistics: Statistics, tallies: Tallies, code: str
) -> None:
    statistics.refused("acme", code, "more/wide")
    assert await history(tallies) == {}
    assert (await statistics.last_hour()).refused == 1
    assert await tallies.read(keys.experiment("more")) == [{}]


async def test_a_history_does_not_grow_beyond_its_days(statistics: Statistics, tallies: Tallies, clock: Clock) -> None:
    for _ in range(130):
        statistics.ended("acme", record(cost=1))
        await tallies.flush()
        clock.now += 86_400
    days = {int(field.partition(":")[0]) for field in await history(tallies)}
    assert days == set(range(DAY + 69, DAY + 130))


async def test_targets_have_names_of_their_own_while_there_are_not_too_many(
    statistics: Statistics, tallies: Tallies
) -> None:
    for number in range(150):
        statistics.drift(f"one/{number}", 2, 1)
    statistics.drift("one/0", 2, 1)
    await tallies.flush()
    hour = await statistics.last_hour()
    assert len(hour.targets) == 101
    assert hour.targets["one/0"] == Drift(4, 2)
    assert hour.targets["other"] == Drift(100, 50)
    assert (hour.counted, hour.reported) == (302, 151)


async def test_two_replicas_see_the_same_hour(tallies: Tallies, clock: Clock, redis_server: RedisServer) -> None:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    there = Tallies(owner)
    one, two = Statistics(tallies, clock), Statistics(there, clock)
    one.ended("acme", record())
    two.refused("acme", "rate_limit_exceeded", "")
    await tallies.flush()
    await there.flush()
    assert await one.last_hour() == await two.last_hour() == Hour(requests=2, refused=1)
    await owner.aclose()
