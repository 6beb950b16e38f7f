"""A real redis-server per version at hand, emptied for each test, and a check that nothing is left behind for ever."""

import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from gateway.embedded_redis import find_server
from gateway.limits import keys, scripts
from gateway.limits.redis import RedisOwner
from gateway.limits.scripts import (
    Allowances,
    ExtendReply,
    GrantReply,
    HoldRange,
    Posting,
    ReapReply,
    ReserveReply,
    Retention,
    SettleReply,
    Stream,
)
from tests.harness import RedisServer

LEASE_MS = 60_000
_FINISHED = (b"done", b"reaped")


def _version(binary: str) -> str:
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return next(word.removeprefix("v=") for word in words if word.startswith("v="))


def _binaries() -> dict[str, str]:
    found = (find_server(), shutil.which("redis-server"))
    return {_version(binary): binary for binary in found if binary is not None}


BINARIES = _binaries()


@pytest.fixture(scope="session", params=BINARIES.values(), ids=list(BINARIES))
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server for all tests; a test that hurts its server starts one of its own."""
    with RedisServer(request.param) as server:
        yield server


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Redis]:
    """The same server seen from outside of our code, empty."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
async def redis(redis_server: RedisServer, store: Redis) -> AsyncIterator[RedisOwner]:
    """The way to Redis that is under test, or that the code under test goes."""
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    yield owner
    await owner.aclose()


@pytest.fixture(autouse=True)
def no_key_is_left_for_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Slots, buckets and the records of finished streams owe an end; money, keys and open streams do not."""
    store = request.getfixturevalue("store") if "store" in request.fixturenames else None
    yield
    if store is not None:
        assert [key for key in store.scan_iter(count=1000) if _owes_ttl(store, key) and store.pttl(key) == -1] == []


def _owes_ttl(store: Redis, key: bytes) -> bool:
    if not key.startswith(b"cr:{"):
        return False
    match key.split(b":")[2]:
        case b"c" | b"r":
            return True
        case b"s":
            return store.hget(key, "st") in _FINISHED
    return False


class Teller:
    """The scripts for one account, with the arguments filled in that a test does not care about."""

    def __init__(self, redis: RedisOwner, store: Redis, account: str = "acme") -> None:
        self.redis = redis
        self.store = store
        self.account = account
        self.allowances = Allowances()
        self.retention = Retention()

    def at(self, account: str) -> "Teller":
        """The same for another account."""
        return Teller(self.redis, self.store, account)

    def stream(self, sid: str, *, age_ms: int = 0) -> Stream:
        created_ms = int(time.time() * 1000) - age_ms
        return Stream(sid=sid, account=self.account, created_ms=created_ms, allowances=self.allowances)

    async def grant(self, amount: int, grant_id: str = "g") -> GrantReply:
        return await scripts.grant(self.redis, self.account, grant_id=grant_id, amount=amount)

    async def reserve(self, sid: str, least: int = 10, most: int | None = None, *, nonce: str = "n") -> ReserveReply:
        hold = HoldRange(least, least if most is None else most)
        return await scripts.reserve(
            self.redis, self.stream(sid), nonce=nonce, hold=hold, lease_ms=LEASE_MS, facts=b'{"model":"m"}'
        )

    async def extend(self, sid: str, *, used: int = 0, need: int = 0, target: int = 0) -> ExtendReply:
        return await scripts.extend(
            self.redis, self.stream(sid), used=used, need=need, target=target, lease_ms=LEASE_MS
        )

    async def settle(
        self, sid: str, actual: int, *, refund: bool = False, age_ms: int = 0, usage: bytes = b"{}"
    ) -> SettleReply:
        posting = Posting(actual=actual, outcome="complete", refund=refund, usage=usage)
        return await scripts.settle(self.redis, self.stream(sid, age_ms=age_ms), posting, self.retention)

    async def reap(self, *sids: str, grace_ms: int = 0) -> ReapReply:
        return await scripts.reap(
            self.redis, self.account, sids, slots=scripts.STREAMS, grace_ms=grace_ms, retention=self.retention
        )

    def lapse(self, sid: str) -> None:
        """The stream's leases ran out long ago."""
        for key in (keys.leases(self.account), *(keys.slots(self.account, it.name) for it in self.allowances.slots)):
            self.store.zadd(key, {sid: 1}, xx=True)

    def wallet(self) -> dict[str, int]:
        """granted, spent, held and absorbed, as Redis has them."""
        names = {b"g": "granted", b"s": "spent", b"h": "held", b"o": "absorbed"}
        fields = self.store.hgetall(keys.wallet(self.account))
        return {name: int(fields.get(field, 0)) for field, name in names.items()}

    def record(self, sid: str) -> dict[str, str]:
        fields = self.store.hgetall(keys.record(self.account, sid))
        return {name.decode(): value.decode() for name, value in fields.items()}

    def ledger(self) -> list[dict[str, str]]:
        """The rows, oldest first."""
        rows = self.store.xrange(keys.ledger(self.account))
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in rows]

    def everything(self) -> dict[bytes, bytes | None]:
        """Every key there is, as it is stored."""
        return {key: self.store.dump(key) for key in self.store.keys()}

    def now_ms(self) -> int:
        """The server's clock."""
        seconds, micros = self.store.time()
        return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def teller(redis: RedisOwner, store: Redis) -> Teller:
    """The scripts for the account ``acme``, which has no wallet yet."""
    return Teller(redis, store)
