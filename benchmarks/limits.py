"""`python -m benchmarks.limits`: what the credit protocol costs by itself, in the gateway and in Redis, per stream.

One process calls the scripts as the gateway does, 64 streams at a time, through the gateway's own Redis client. Its
CPU time is the gateway's share, the server's own count of its CPU time is Redis's. The streams are limited by every
scope there is: two budgets, six token buckets, two concurrency limits; by what a plain tier has, requests per minute
and streams at once; and by their balance alone. Nobody waits for a settlement, as in the gateway.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from itertools import count

import msgspec
import uvloop

from gateway.ledger import UsageRecord
from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.connect import open_redis
from gateway.limits.scripts import Growth, HoldRange, Posting, Retention, Scripts, SettleReply, Stream
from tests.harness import RedisServer

ACCOUNT = "bench"
CALLERS = 64
LEASE_MS = 9_000
DAY_PART_MS = 1_440_000
PLENTY = 10**9
RESERVE_AND_SETTLE_BUDGET_US = 120
REDIS_BUDGET_US = 350
PLAIN_REDIS_BUDGET_US = 120
USAGE = msgspec.json.encode(
    UsageRecord(request_id="0" * 32, subject="key:abcdefghijkl", model="openai/gpt-4o", outcome="complete", cost=1234)
)


@dataclass(frozen=True)
class Case:
    """What one measured stream does."""

    name: str
    allowances: Allowances
    extends: int


def every_scope() -> Allowances:
    scopes = ("account", "key", "user")
    kinds = (("requests", Unit.REQUESTS), ("tokens", Unit.TOKENS))
    return Allowances(
        keys.limits_of(ACCOUNT),
        windows=[Window(f"{scope}.budget", 10**12, (DAY_PART_MS, 60, 0), Unit.MONEY) for scope in ("account", "key")],
        buckets=[
            Bucket(f"{scope}.{word}.60000", PLENTY, 60_000, PLENTY, unit) for scope in scopes for word, unit in kinds
        ],
        slots=[Slots(f"{scope}.streams", PLENTY) for scope in ("account", "key")],
    )


def plain_tier() -> Allowances:
    return Allowances(
        keys.limits_of(ACCOUNT),
        buckets=[Bucket("account.requests.60000", PLENTY, 60_000, PLENTY)],
        slots=[Slots("account.streams", PLENTY)],
    )


async def run_stream(scripts: Scripts, case: Case, number: int) -> asyncio.Future[SettleReply]:
    stream = Stream(
        sid=os.urandom(16).hex(),
        account=ACCOUNT,
        created_ms=int(time.time() * 1000),
        nonce=f"{number:016x}",
        allowances=case.allowances,
    )
    reserved = await scripts.reserve(stream, hold=HoldRange(10, 1_000), lease_ms=LEASE_MS, tokens=412, facts=b"{}")
    assert reserved.code == 1, reserved
    for step in range(case.extends):
        growth = Growth(
            used=200 * step, need=200 * step, target=1_000 + 200 * step, believed=1_000, tokens=400, is_beyond=False
        )
        extended = await scripts.extend(stream, growth, lease_ms=LEASE_MS)
        assert extended.code == 1, extended
    posting = Posting(actual=1_234, outcome="complete", tokens=357, refund=False, usage=USAGE)
    return scripts.settle(stream, posting, Retention(), is_patient=True)


async def redis_cpu_s(scripts: Scripts) -> float:
    info = await scripts.redis.call("INFO", "cpu")
    fields = dict(line.split(b":") for line in info.splitlines() if b":" in line)
    return float(fields[b"used_cpu_sys"]) + float(fields[b"used_cpu_user"])


async def measure(url: str, case: Case, streams: int) -> tuple[float, float]:
    """CPU µs per stream: the gateway's, and Redis's."""
    redis = open_redis(url, timeout_s=10)
    redis.start()
    scripts = Scripts(redis, "bench")
    await redis.call("FLUSHALL")
    await scripts.grant(ACCOUNT, grant_id="all", amount=10**12)
    numbers = count(1)

    async def call_on(until: int) -> None:
        settling = []
        while (number := next(numbers)) <= until:
            settling.append(await run_stream(scripts, case, number))
        for settled in await asyncio.gather(*settling):
            assert settled.code == 1, settled

    await call_on(200)
    began, redis_began = time.process_time(), await redis_cpu_s(scripts)
    numbers = count(1_000)
    await asyncio.gather(*(call_on(999 + streams) for _ in range(CALLERS)))
    own = (time.process_time() - began) / streams * 1e6
    theirs = (await redis_cpu_s(scripts) - redis_began) / streams * 1e6
    await redis.aclose()
    return own, theirs


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--streams", type=int, default=3_000, help="streams per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fsync", choices=("always", "everysec", "no"), default="everysec")
    arguments = parser.parse_args()
    cases = [
        Case("every scope, reserve + settle", every_scope(), 0),
        Case("every scope, with 5 extensions", every_scope(), 5),
        Case("plain tier, reserve + settle", plain_tier(), 0),
        Case("balance alone, reserve + settle", Allowances(keys.limits_of(ACCOUNT)), 0),
        Case("balance alone, with 5 extensions", Allowances(keys.limits_of(ACCOUNT)), 5),
    ]
    figures: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    with RedisServer(shutil.which("redis-server"), "--appendfsync", arguments.fsync) as server:
        for _ in range(arguments.rounds):
            for case in cases:
                figures[case.name].append(uvloop.run(measure(server.url, case, arguments.streams)))
    print("| per stream | gateway CPU µs | Redis CPU µs |\n|---|---|---|")
    for name, rounds in figures.items():
        own, theirs = zip(*rounds, strict=True)
        print(f"| {name} | {shown(list(own))} | {shown(list(theirs))} |")
    print(
        f"| *budget, every scope* | *≤ {RESERVE_AND_SETTLE_BUDGET_US} for reserve + settle* "
        f"| *≤ {REDIS_BUDGET_US} with 5 extensions* |\n"
        f"| *budget, plain tier* | | *≤ {PLAIN_REDIS_BUDGET_US} for reserve + settle* |"
    )


if __name__ == "__main__":
    main()
