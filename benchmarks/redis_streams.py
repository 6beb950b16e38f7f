"""Streams for `benchmarks.redis_scale`: what limits them, their four phases, and what a Redis has used so far.

The scripts are called as the gateway calls them, through one pipelining connection. Between two phases Redis is asked
for its CPU time, its memory, and the size of its append-only file.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec
from redis import Redis as Client

from benchmarks.measure import cpu_s_of
from gateway.ledger import UsageRecord
from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.connect import open_redis
from gateway.limits.redis import Redis
from gateway.limits.scripts import Growth, HoldRange, Posting, Retention, Scripts, Stream
from tests.harness import RedisServer

BINARY = shutil.which("redis-server")
CALLERS = 64
LEASE_MS = 9_000
PLENTY = 10**9
GRANT = 10**12
DAY_PART_MS = 1_440_000
PHASES = ("start", "grow", "renew", "end")
RECORD = UsageRecord(
    request_id="0" * 32,
    subject="key:abcdefghijkl",
    model="openai/gpt-4o",
    target="openai/gpt-4o",
    protocol="openai_chat",
    stream=True,
    input_tokens=812,
)
FACTS = msgspec.json.encode(RECORD)
USAGE = msgspec.json.encode(
    msgspec.structs.replace(
        RECORD, outcome="complete", output_tokens=357, counted_output=357, reported_output=357, cost=1234, held=4000,
        first_token_ms=412.3, duration_ms=9_120,
    )
)  # fmt: skip


def balance_alone(account: str) -> Allowances:
    return Allowances(keys.limits_of(account))


def default_tier(account: str) -> Allowances:
    """What ``tiers.default`` has where nothing is configured: requests per minute, and streams at once."""
    return Allowances(
        keys.limits_of(account),
        buckets=[Bucket("account.requests.60000", PLENTY, 60_000, PLENTY, Unit.REQUESTS)],
        slots=[Slots("account.streams", PLENTY)],
    )


def every_scope(account: str) -> Allowances:
    """As in ``benchmarks.limits``: two budgets, six token buckets, two concurrency limits."""
    kinds = (("requests", Unit.REQUESTS), ("tokens", Unit.TOKENS))
    return Allowances(
        keys.limits_of(account),
        windows=[Window(f"{scope}.budget", GRANT, (DAY_PART_MS, 60, 0), Unit.MONEY) for scope in ("account", "key")],
        buckets=[
            Bucket(f"{scope}.{word}.60000", PLENTY, 60_000, PLENTY, unit)
            for scope in ("account", "key", "user")
            for word, unit in kinds
        ],
        slots=[Slots(f"{scope}.streams", PLENTY) for scope in ("account", "key")],
    )


@dataclass(frozen=True)
class Case:
    """Whose streams they are, and what limits them. ``packed_max`` is Redis's ``hash-max-listpack-value``."""

    name: str
    limits: Callable[[str], Allowances]
    accounts: int
    packed_max: int = 64


CASES = (
    Case("balance alone, 1,000 accounts", balance_alone, 1_000),
    Case("default tier, 1,000 accounts", default_tier, 1_000),
    Case("the same, hash-max-listpack-value 1024", default_tier, 1_000, 1_024),
    Case("default tier, one account", default_tier, 1),
    Case("every scope, 1,000 accounts", every_scope, 1_000),
    Case("every scope, one account", every_scope, 1),
)


@dataclass(frozen=True)
class Reading:
    """What the servers have used so far. CPU in µs, the rest in bytes."""

    cpu: float
    memory: float
    aof: float
    received: float
    sent: float

    def since(self, before: "Reading", each: int) -> "Reading":
        return Reading(*((now - then) / each for now, then in zip(astuple(self), astuple(before), strict=True)))


def astuple(reading: Reading) -> tuple[float, ...]:
    return (reading.cpu, reading.memory, reading.aof, reading.received, reading.sent)


def cpu_us(server: RedisServer) -> float:
    assert server.process is not None
    return cpu_s_of(server.process.pid) * 1e6


def read(server: RedisServer) -> Reading:
    with Client(port=server.port) as client:
        info: dict[str, Any] = client.info("everything")
    return Reading(
        cpu_us(server),
        info["used_memory"],
        info["aof_current_size"],
        info["total_net_input_bytes"],
        info["total_net_output_bytes"],
    )


def fresh(server: RedisServer) -> None:
    """Forget everything, and begin a new append-only file."""
    with Client(port=server.port) as client:
        client.flushall()
        rewrite(client)


def rewrite(client: Client) -> None:
    client.bgrewriteaof()
    while True:
        persistence: dict[str, Any] = client.info("persistence")
        if not persistence["aof_rewrite_in_progress"] and not persistence["aof_rewrite_scheduled"]:
            return
        time.sleep(0.02)


async def in_turns(number: int, do: Callable[[int], Awaitable[None]]) -> None:
    """Call ``do`` with 0, 1, … so many times, ``CALLERS`` at once."""
    numbers = count()

    async def caller() -> None:
        while (turn := next(numbers)) < number:
            await do(turn)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


class Phases:
    """So many streams of one case, through one connection."""

    def __init__(self, redis: Redis, case: Case, streams: int) -> None:
        self.scripts = Scripts(redis, "bench")
        self.names = [f"account{number}" for number in range(case.accounts)]
        allowances = [case.limits(name) for name in self.names]
        now_ms = int(time.time() * 1000)
        self.streams = [
            Stream(
                sid=os.urandom(16).hex(),
                account=self.names[number % case.accounts],
                created_ms=now_ms,
                nonce=f"{number:016x}",
                allowances=allowances[number % case.accounts],
            )
            for number in range(streams)
        ]

    async def fund(self) -> None:
        async def grant(turn: int) -> None:
            await self.scripts.grant(self.names[turn], grant_id="all", amount=GRANT)

        await in_turns(len(self.names), grant)

    async def run(self, phase: str) -> None:
        step: Callable[[int], Awaitable[None]] = getattr(self, f"_{phase}")
        await in_turns(len(self.streams), step)

    async def _start(self, turn: int) -> None:
        reply = await self.scripts.reserve(
            self.streams[turn], hold=HoldRange(2_040, 6_030), lease_ms=LEASE_MS, tokens=1_212, facts=FACTS
        )
        assert reply.code == 1, reply

    async def _grow(self, turn: int) -> None:
        """Half a slice is used up, and the token limits are told of more than was estimated."""
        await self._extend(turn, Growth(used=4_030, need=4_030, target=8_030, believed=6_030, tokens=1_412))

    async def _renew(self, turn: int) -> None:
        """Nothing has changed but the time."""
        growth = Growth(used=4_030, need=4_030, target=8_030, believed=8_030, tokens=1_412, is_beyond=False)
        await self._extend(turn, growth)

    async def _extend(self, turn: int, growth: Growth) -> None:
        reply = await self.scripts.extend(self.streams[turn], growth, lease_ms=PLENTY)
        assert reply.code == 1, reply

    async def _end(self, turn: int) -> None:
        posting = Posting(actual=5_600, outcome="complete", tokens=1_169, refund=False, usage=USAGE)
        reply = await self.scripts.settle(self.streams[turn], posting, Retention())
        assert reply.code == 1, reply


@dataclass(frozen=True)
class Measured:
    """One round of one case. ``client_us`` is CPU of the caller; memory in bytes per stream, or per account."""

    phases: dict[str, Reading]
    client_us: dict[str, float]
    open_bytes: float
    finished_bytes: float
    ledger_bytes: float
    account_bytes: float


async def measure(server: RedisServer, case: Case, streams: int) -> Measured:
    fresh(server)
    with Client(port=server.port) as client:
        client.config_set("hash-max-ziplist-value", case.packed_max)  # its name in 6.2 is known to later ones too
    redis = open_redis(server.url)
    redis.start()
    warm = Phases(redis, case, CALLERS)
    bare = read(server)
    await warm.fund()
    account_bytes = (read(server).memory - bare.memory) / case.accounts
    for phase in PHASES:
        await warm.run(phase)
    bench = Phases(redis, case, streams)
    empty = last = read(server)
    phases, client_us, open_bytes = {}, {}, 0.0
    for phase in PHASES:
        own = time.process_time()
        await bench.run(phase)
        client_us[phase] = (time.process_time() - own) / streams * 1e6
        reading = read(server)
        phases[phase] = reading.since(last, streams)
        last = reading
        if phase == "renew":
            open_bytes = (reading.memory - empty.memory) / streams
    with Client(port=server.port) as client:
        finished = freed(client, [keys.record(stream.account, stream.sid) for stream in bench.streams])
        ledger = freed(client, [keys.ledger(name) for name in bench.names])
    await redis.aclose()
    # A ledger has the rows of the warm-up and of the grants as well.
    rows = streams + CALLERS + case.accounts
    return Measured(phases, client_us, open_bytes, finished / streams, ledger / rows, account_bytes)


def freed(client: Client, names: list[str]) -> float:
    """How many bytes these keys take, told by deleting them."""
    before: dict[str, Any] = client.info("memory")
    for first in range(0, len(names), 500):
        client.delete(*names[first : first + 500])
    after: dict[str, Any] = client.info("memory")
    return float(before["used_memory"]) - float(after["used_memory"])
