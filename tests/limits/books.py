"""An account with every kind of movement in it, made by the scripts: what audits and restores are tested on."""

import time
from typing import Any

from redis import Redis as Client

from gateway.limits import keys
from gateway.limits.accounts import Accounts
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.redis import Redis
from gateway.limits.scripts import Growth, HoldRange, Posting, Retention, Scripts, Stream

GRANTED = 100_000
LEASE_MS = 60_000
RETENTION = Retention()


class Books:
    """The scripts for one account. ``open`` is a stream that runs; the others have ended."""

    open, done, free, reaped, corrected = "run-open", "run-done", "run-free", "run-reaped", "run-corrected"

    def __init__(self, redis: Redis, account: str = "acme") -> None:
        self.redis = redis
        self.account = account
        self.scripts = Scripts(redis, "gateway-of-the-tests")
        self.allowances = Allowances(
            keys.limits_of(account),
            windows=[
                Window("account.budget.86400000", 10**6, (60_000, 24, 0), Unit.MONEY),
                Window("account.requests.3600000", 10**6, (60_000, 60, 0), Unit.REQUESTS),
                Window("account.tokens.3600000", 10**6, (60_000, 60, 0), Unit.TOKENS),
            ],
            buckets=[Bucket("account.requests.60000", 100_000, 60_000, 100_000)],
            slots=[Slots("account.streams", 100)],
        )

    def stream(self, sid: str) -> Stream:
        """A stream of the account."""
        now_ms = int(time.time() * 1000)
        return Stream(sid=sid, account=self.account, created_ms=now_ms, nonce="n" + sid, allowances=self.allowances)

    async def create(self, *, grant: int = GRANTED) -> None:
        """The account, in its list, with credit."""
        accounts = Accounts(self.scripts)
        await accounts.create(self.account, name="Acme", tier="pro")
        await accounts.grant(self.account, grant_id=f"grant-{grant}", amount=grant)

    async def start(self, sid: str, *, lease_ms: int = LEASE_MS) -> None:
        """Admit a stream with a hold of 100."""
        await self.redis.call("ZADD", keys.ACTIVE, int(time.time() * 1000) + LEASE_MS, self.account)
        reply = await self.scripts.reserve(
            self.stream(sid), hold=HoldRange(100, 100), lease_ms=lease_ms, tokens=7, facts=b'{"model":"m"}'
        )
        assert reply.code == 1

    async def use(self, sid: str, used: int, *, lease_ms: int = LEASE_MS) -> None:
        """Let it use some of what it holds, and hold more."""
        growth = Growth(used=used, need=used, target=used + 100, believed=100, tokens=20)
        assert (await self.scripts.extend(self.stream(sid), growth, lease_ms=lease_ms)).code == 1

    async def settle(self, sid: str, actual: int, *, outcome: str = "complete") -> int:
        """End it; returns the script's code."""
        posting = Posting(actual=actual, outcome=outcome, tokens=30, refund=False, usage=b'{"request_id":"r"}')
        return (await self.scripts.settle(self.stream(sid), posting, RETENTION)).code

    async def fill(self) -> None:
        """Every kind of movement."""
        await self.create()
        for sid in (self.done, self.free, self.open):
            await self.start(sid)
        for sid in (self.reaped, self.corrected):
            await self.start(sid, lease_ms=0)
            await self.use(sid, 60, lease_ms=0)
            reply = await self.scripts.reap(self.stream(sid), grace_ms=-1, retention=RETENTION, charge_held=False)
            assert (reply.code, reply.posted) == (1, 60)
        assert await self.settle(self.corrected, 75) == 3
        await self.use(self.done, 90)
        assert await self.settle(self.done, 120) == 1
        assert await self.settle(self.free, 0, outcome="failed") == 1
        await self.use(self.open, 40)
        accounts = Accounts(self.scripts)
        await accounts.grant(self.account, grant_id="back", amount=-500)
        # A provider that bills more than there is: the rest is absorbed.
        await self.start("run-dear")
        assert await self.settle("run-dear", 2 * GRANTED) == 1
        await accounts.grant(self.account, grant_id="more", amount=GRANTED)


def everything(store: Client) -> dict[bytes, Any]:
    """Every key there is, with what is in it."""
    read = {
        b"hash": store.hgetall,
        b"zset": lambda key: store.zrange(key, 0, -1, withscores=True),
        b"set": store.smembers,
        b"stream": store.xrange,
        b"string": store.get,
    }
    return {key: read[store.type(key)](key) for key in store.keys()}
