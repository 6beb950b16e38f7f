"""Thousands of accounts at once: `python -m benchmarks.accounts REDIS_URL COUNT` prints one API key a line.

They are made with the gateway's own classes but beside it, many at a time through one pipelining connection: through
the admin API ten thousand would take longer than all scenarios together.
"""

import asyncio
import sys

import uvloop

from gateway.identity.keys import ApiKeys
from gateway.limits.accounts import Accounts
from gateway.limits.connect import open_redis
from gateway.limits.scripts import Scripts

AT_ONCE = 50
AMOUNT_MICROUSD = 100_000_000
ROUND_TRIP_S = 5.0


async def make(accounts: Accounts, api_keys: ApiKeys, name: str) -> str:
    await accounts.create(name, name=name, tier=None)
    await accounts.grant(name, grant_id="first", amount=AMOUNT_MICROUSD)
    return (await api_keys.create(name, name=name)).token


async def make_all(url: str, count: int) -> list[str]:
    redis = open_redis(url, timeout_s=ROUND_TRIP_S)
    redis.start()
    accounts, api_keys = Accounts(Scripts(redis, "bench")), ApiKeys(redis)
    tokens: list[str] = []
    for first in range(0, count, AT_ONCE):
        names = (f"spread-{index}" for index in range(first, min(count, first + AT_ONCE)))
        tokens += await asyncio.gather(*(make(accounts, api_keys, name) for name in names))
    await redis.aclose()
    return tokens


if __name__ == "__main__":
    print("\n".join(uvloop.run(make_all(sys.argv[1], int(sys.argv[2])))))
