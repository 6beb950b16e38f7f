"""Several gateways for `benchmarks.redis_scale`: processes that share a Redis, and what they ask of it besides.

Each process admits and settles through the gateway's own ``Admission``, with a journal and statistics of its own.
"""

import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop
from redis import Redis as Client
from redis.crc import key_slot

from benchmarks.redis_streams import (
    FACTS,
    PLENTY,
    RECORD,
    USAGE,
    Case,
    Phases,
    balance_alone,
    cpu_us,
    default_tier,
    in_turns,
    read,
)
from gateway.limits import keys
from gateway.limits.admission import Admission, Ask
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit
from gateway.limits.connect import open_redis
from gateway.limits.journal import Journal
from gateway.limits.load import Gauges, Local
from gateway.limits.reaper import Reaper
from gateway.limits.reservation import Books, HoldPolicy
from gateway.limits.revocations import Revocations
from gateway.limits.scripts import HoldRange, Posting, Retention, Scripts, Share
from gateway.limits.settlements import Settlements
from gateway.limits.sick import SickList
from gateway.limits.tallies import Tallies
from gateway.limits.tiers import Limits
from gateway.statistics import Statistics
from tests.harness import RedisServer

LOOKS = 5


def run_gateway(url: str, number: int, streams: int, accounts: int) -> tuple[float, int]:
    """A process's whole life: so many streams start, renew once and end. Returns its CPU s, and its streams."""

    async def run() -> float:
        with tempfile.TemporaryDirectory(prefix="bench-journal-") as folder:
            return await admit(url, Journal.open_free(Path(folder)), number, (streams, accounts))

    return uvloop.run(run()), streams


async def admit(url: str, journal: Journal, number: int, size: tuple[int, int]) -> float:
    redis = open_redis(url)
    redis.start()
    scripts, retention = Scripts(redis, f"bench.{number}"), Retention()
    settlements, reaper = Settlements(scripts, journal, retention), Reaper(scripts, retention, grace_s=1.0)
    policy = HoldPolicy()
    books = Books(scripts=scripts, journal=journal, settlements=settlements, policy=policy, reaper=reaper)
    admission, tallies = Admission(books), Tallies(redis)
    seen = Statistics(tallies)
    streams, accounts = size
    limits = [Limits(default_tier(f"account{n}"), ()) for n in range(accounts)]

    async def one(turn: int) -> None:
        at = (turn * 7 + number) % accounts
        ask = Ask(
            account=f"account{at}", limits=limits[at], hold=HoldRange(2_040, 6_030), tokens=1_212,
            model="openai/gpt-4o", request_id="0" * 32, facts=FACTS,
        )  # fmt: skip
        reservation = await admission.reserve(ask)
        reservation.use(4_030)
        reservation.say_again()  # one extension, as a stream of three seconds has
        reservation.settle(Posting(actual=5_600, outcome="complete", tokens=1_169, refund=False, usage=USAGE))
        seen.ended(ask.account, msgspec.structs.replace(RECORD, outcome="complete", cost=5_600))

    began = time.process_time()
    await in_turns(streams, one)
    await settlements.flush(60)
    await tallies.flush()
    spent = time.process_time() - began
    assert settlements.pending == 0
    await redis.aclose()
    journal.close()
    return spent


def fund(url: str, accounts: int) -> None:
    async def run() -> None:
        redis = open_redis(url)
        redis.start()
        await Phases(redis, Case("", balance_alone, accounts), 0).fund()
        await redis.aclose()

    uvloop.run(run())


@dataclass(frozen=True)
class Crowd:
    """CPU µs per stream: each server's, and the callers'."""

    servers: tuple[float, ...]
    own: float


def crowd(url: str, servers: Sequence[RedisServer], gateways: int, sizes: tuple[int, int]) -> Crowd:
    """``gateways`` processes share so many streams of so many accounts."""
    streams, accounts = sizes
    fund(url, accounts)
    with ProcessPoolExecutor(gateways, mp_context=multiprocessing.get_context("spawn")) as pool:
        before = [cpu_us(server) for server in servers]
        futures = [pool.submit(run_gateway, url, number, streams // gateways, accounts) for number in range(gateways)]
        ran = [future.result() for future in futures]
        used = [cpu_us(server) - then for server, then in zip(servers, before, strict=True)]
    total = sum(number for _, number in ran)
    return Crowd(tuple(each / total for each in used), sum(spent for spent, _ in ran) / total * 1e6)


def homes(servers: Sequence[RedisServer]) -> tuple[list[int], list[int]]:
    """How many keys and how many accounts each master has; fails where an account has keys in two slots."""
    slots: dict[bytes, set[int]] = defaultdict(set)
    found, accounts = [], []
    for server in servers:
        with Client(port=server.port) as client:
            names = [name for name in client.scan_iter("cr:{*", count=1_000)]
        mine = {name[: name.index(b"}")] for name in names}
        for name in names:
            slots[name[: name.index(b"}")]].add(key_slot(name))
        found.append(len(names))
        accounts.append(len(mine))
    assert all(len(each) == 1 for each in slots.values()), "an account's keys lie in several slots"
    assert sum(accounts) == len(slots), "an account's keys lie on several masters"
    return found, accounts


# What gateways ask besides.


async def watching(server: RedisServer, gateways: int) -> tuple[float, float]:
    """What so many gateways cost Redis in one second in which nothing happens: CPU µs, and bytes it sends."""
    redis = open_redis(server.url)
    redis.start()
    await redis.call("FLUSHALL")
    local = Local(streams=700, capacity=1_000, lag_ms=2.5, upstream_ms=412.5, upstream_ratio=1.05)
    gauges = [Gauges(redis, f"{number:012x}.0", lambda: local) for number in range(gateways)]
    revocations = Revocations(redis, lambda name: None)
    sick = SickList(redis, lambda now: {}, lambda name, left_s: None)
    for gauge in gauges:
        await gauge.beat()
    before = read(server)
    for gauge in gauges:
        await gauge.beat()
        await revocations.look()
        await revocations.look()
        await sick.exchange()
    used = read(server).since(before, 1)
    await redis.aclose()
    return used.cpu, used.sent


async def reaping(server: RedisServer, accounts: int) -> tuple[float, float, float]:
    """One gateway's look for abandoned streams, with so many active accounts.

    CPU µs of Redis, of these the list of accounts alone, and the gateway's own.
    """
    redis = open_redis(server.url)
    redis.start()
    await redis.call("FLUSHALL")
    reaper = Reaper(Scripts(redis, "bench"), Retention(), grace_s=1.0)
    for number in range(accounts):
        reaper.announce(f"account{number}", 60)
    await reaper.reap_all()
    before, own = cpu_us(server), time.process_time()
    for _ in range(LOOKS):
        await reaper.reap_all()
    mine, theirs = time.process_time() - own, cpu_us(server) - before
    before = cpu_us(server)
    for _ in range(LOOKS):
        await redis.call("ZRANGEBYSCORE", keys.ACTIVE, "-inf", "+inf", "WITHSCORES")
    listed = cpu_us(server) - before
    await redis.aclose()
    return theirs / LOOKS, listed / LOOKS, mine / LOOKS * 1e6


async def sharing(server: RedisServer, streams: int) -> dict[str, float]:
    """CPU µs of Redis for each call of a stream that takes from a capacity which all accounts share."""
    redis = open_redis(server.url)
    redis.start()
    scripts = Scripts(redis, "bench")
    owner = keys.capacity("model.bench")
    kinds = (("requests", Unit.REQUESTS), ("tokens", Unit.TOKENS))
    allowances = Allowances(
        owner,
        buckets=[Bucket(f"model.{word}.60000", PLENTY, 60_000, PLENTY, unit) for word, unit in kinds],
        slots=[Slots("model.streams", PLENTY)],
    )
    share = Share(owner=owner, allowances=allowances, estimate=1_212, lease_ms=30_000)
    used = {}
    for op in ("acquire", "touch", "release"):

        async def call(turn: int, op: str = op) -> None:
            await scripts.cap(share, op, f"{turn:016x}", tokens=1_169)

        before = cpu_us(server)
        await in_turns(streams, call)
        used[op] = (cpu_us(server) - before) / streams
    await redis.aclose()
    return used
