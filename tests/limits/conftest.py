"""Real servers of each version at hand and a cluster, emptied for each test; a check that nothing is left for ever.

The scripts' own tests run over all of them (``-m cluster`` selects the cluster), the others over single servers.
"""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from redis import Redis as Store
from redis.cluster import RedisCluster as ClusterStore

from gateway.embedded_redis import find_server
from gateway.limits import keys
from gateway.limits.allowances import Allowances
from gateway.limits.connect import open_redis
from gateway.limits.redis import LuaSource, Redis, RedisOwner
from gateway.limits.scripts import (
    CapReply,
    ExtendReply,
    GrantReply,
    Growth,
    HoldRange,
    Posting,
    ReserveReply,
    Retention,
    Scripts,
    SettleReply,
    Share,
    Stream,
)
from tests.harness import RedisServer
from tests.limits.desk import Desk
from tests.limits.model_world import SEED
from tests.redis_cluster import Cluster

T = TypeVar("T")

LEASE_MS = 60_000
GATEWAY = "here"
_FINISHED = (b"done", b"reaped")
_CLUSTER = "cluster"
_CLOCK = """local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""


def _version(binary: str) -> str:
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return next(word.removeprefix("v=") for word in words if word.startswith("v="))


def _binaries() -> dict[str, str]:
    found = (find_server(), shutil.which("redis-server"))
    return {_version(binary): binary for binary in found if binary is not None}


BINARIES = _binaries()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: runs over a Redis cluster of three masters")


def pytest_report_header() -> str:
    return f"limits model: first seed {SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Again, since the header is only asked for where this folder was named on the command line."""
    terminalreporter.write_line(pytest_report_header())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_server" not in metafunc.fixturenames:
        return
    servers = [pytest.param(binary, id=version) for version, binary in BINARIES.items()]
    if metafunc.module.__name__.rpartition(".")[2].startswith("test_scripts"):
        servers.append(pytest.param(_CLUSTER, id=_CLUSTER, marks=pytest.mark.cluster))
    metafunc.parametrize("redis_server", servers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer | Cluster]:
    """One server for all tests; a test that hurts its server starts one of its own."""
    with Cluster() if request.param == _CLUSTER else RedisServer(request.param) as server:
        yield server


def _store(server: RedisServer | Cluster) -> Store | ClusterStore:
    if isinstance(server, Cluster):
        return ClusterStore(host="127.0.0.1", port=server.nodes[0].port)
    return Store.from_url(server.url)


@pytest.fixture
def store(redis_server: RedisServer | Cluster) -> Iterator[Store | ClusterStore]:
    """The same server seen from outside of our code, empty."""
    with _store(redis_server) as client:
        client.flushall()
        yield client


@pytest.fixture
async def redis(redis_server: RedisServer | Cluster, store: Store) -> AsyncIterator[Redis]:
    """The way to Redis that is under test, or that the code under test goes."""
    if isinstance(redis_server, Cluster):
        redis = open_redis(redis_server.url, timeout_s=5)
    else:
        redis = RedisOwner(redis_server.url, timeout_s=5)
    redis.start()
    yield redis
    await redis.aclose()


@pytest.fixture(autouse=True)
def no_key_is_left_for_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limits and the records of finished streams owe an end; money, keys and open streams do not."""
    store = request.getfixturevalue("store") if "store" in request.fixturenames else None
    yield
    if store is not None:
        assert [key for key in store.scan_iter(count=1000) if _owes_ttl(store, key) and store.pttl(key) == -1] == []


def _owes_ttl(store: Store, key: bytes) -> bool:
    match key.split(b":"):
        case [b"cap", *_] | [b"cr", _, b"c" | b"r" | b"b" | b"q", *_]:
            return True
        case [b"cr", _, b"s", _]:
            return store.hget(key, "st") in _FINISHED
    return False


class Reaped(msgspec.Struct, frozen=True):
    """How many streams were finished, what was posted for all of them, and each one's code."""

    reaped: int
    posted: int
    codes: list[int]


class ClockedRedis:
    """Redis, of which the scripts may be told the time: the server's clock cannot be set, and nobody wants to wait."""

    def __init__(self, redis: Redis) -> None:
        self.inner = redis
        self.now_ms: int | None = None
        self._sources: dict[tuple[str, int], LuaSource] = {}

    def call(self, *args: Any) -> asyncio.Future[Any]:
        return self.inner.call(*args)

    def script(
        self, source: LuaSource, keys: tuple[str, ...], args: tuple[Any, ...], parse: Callable[[Any], T]
    ) -> asyncio.Future[T]:
        return self.inner.script(source if self.now_ms is None else self._clocked(source), keys, args, parse)

    def _clocked(self, source: LuaSource) -> LuaSource:
        assert self.now_ms is not None and _CLOCK in source.text
        known = (source.sha, self.now_ms)
        if known not in self._sources:
            self._sources[known] = LuaSource(source.text.replace(_CLOCK, f"local now = {self.now_ms}\n"))
        return self._sources[known]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Teller:
    """The scripts for one account, with the arguments filled in that a test does not care about."""

    def __init__(
        self, redis: Redis | ClockedRedis, store: Store, account: str = "acme", *, gateway: str = GATEWAY
    ) -> None:
        self.redis = redis if isinstance(redis, ClockedRedis) else ClockedRedis(redis)
        self.store = store
        self.account = account
        self.scripts = Scripts(self.redis, gateway)
        self.allowances = Allowances(keys.limits_of(account))
        self.retention = Retention()

    def at(self, account: str) -> "Teller":
        """The same for another account."""
        return Teller(self.redis, self.store, account)

    def from_gateway(self, name: str) -> "Teller":
        """The same account and limits, seen from another gateway."""
        other = Teller(self.redis, self.store, self.account, gateway=name)
        other.allowances = self.allowances
        return other

    def limit(self, **limits: Any) -> None:
        """Let the following streams have these windows, buckets and slots."""
        self.allowances = Allowances(keys.limits_of(self.account), **limits)

    def set_clock(self, now_ms: int) -> None:
        """From now on it is this time for the scripts, until it is set again."""
        self.redis.now_ms = now_ms

    def now_ms(self) -> int:
        """What the scripts take for the time."""
        if self.redis.now_ms is not None:
            return self.redis.now_ms
        seconds, micros = self.store.eval("return redis.call('TIME')", 1, keys.wallet(self.account))
        return int(seconds) * 1000 + int(micros) // 1000

    def stream(self, sid: str, *, age_ms: int = 0, nonce: str = "n", request: str = "") -> Stream:
        now_ms = self.redis.now_ms or int(time.time() * 1000)
        return Stream(
            sid=sid,
            account=self.account,
            created_ms=now_ms - age_ms,
            nonce=nonce,
            allowances=self.allowances,
            request=request,
        )

    async def grant(self, amount: int, grant_id: str = "g") -> GrantReply:
        return await self.scripts.grant(self.account, grant_id=grant_id, amount=amount)

    async def reserve(
        self, sid: str, least: int = 10, most: int | None = None, *, tokens: int = 0, takes_all: bool = False, **of: str
    ) -> ReserveReply:
        hold = HoldRange(least, least if most is None else most, takes_all)
        stream = self.stream(sid, **of)  # type: ignore[arg-type]
        return await self.scripts.reserve(stream, hold=hold, lease_ms=LEASE_MS, tokens=tokens, facts=b'{"model":"m"}')

    async def extend(
        self, sid: str, *, used: int = 0, need: int = 0, target: int = 0, believed: int = 0, tokens: int = 0, **how: Any
    ) -> ExtendReply:
        """``how`` may have ``nonce``, ``request``, ``revive`` and ``is_beyond``."""
        revive, is_beyond = how.pop("revive", False), how.pop("is_beyond", True)
        growth = Growth(used=used, need=need, target=target, believed=believed, tokens=tokens, is_beyond=is_beyond)
        return await self.scripts.extend(self.stream(sid, **how), growth, lease_ms=LEASE_MS, revive=revive)

    async def settle(
        self, sid: str, actual: int, *, refund: bool = False, tokens: int = 0, outcome: str = "complete", **how: Any
    ) -> SettleReply:
        """``how`` may have ``usage``, ``age_ms``, ``nonce`` and ``request``."""
        usage = how.pop("usage", b"{}")
        posting = Posting(actual=actual, outcome=outcome, tokens=tokens, refund=refund, usage=usage)
        return await self.scripts.settle(self.stream(sid, **how), posting, self.retention)

    async def reap(self, *sids: str, grace_ms: int = 0, charge_held: bool = False) -> Reaped:
        replies = [
            await self.scripts.reap(
                self.stream(sid), grace_ms=grace_ms, retention=self.retention, charge_held=charge_held
            )
            for sid in sids
        ]
        codes = [reply.code for reply in replies]
        return Reaped(codes.count(1), sum(reply.posted for reply in replies), codes)

    async def cap(self, share: Share, op: str, sid: str, *, tokens: int = 0, refund: bool = False) -> CapReply:
        return await self.scripts.cap(share, op, sid, tokens=tokens, refund=refund)

    def lapse(self, sid: str) -> None:
        """The stream's leases ran out long ago."""
        owner = keys.limits_of(self.account)
        for key in (keys.leases(self.account), *(owner.slots(it.name) for it in self.allowances.slots)):
            self.store.zadd(key, {sid: 1}, xx=True)

    def wallet(self) -> dict[str, int]:
        """granted, spent, held and absorbed, as Redis has them."""
        names = {b"g": "granted", b"s": "spent", b"h": "held", b"o": "absorbed"}
        fields = self.store.hgetall(keys.wallet(self.account))
        return {name: int(fields.get(field, 0)) for field, name in names.items()}

    def record(self, sid: str) -> dict[str, str]:
        return self.hash(keys.record(self.account, sid))

    def hash(self, key: str) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.store.hgetall(key).items()}

    def window(self, name: str) -> tuple[int, int]:
        """What was posted in one of the account's windows, and what is held of it."""
        fields = self.hash(keys.limits_of(self.account).window(name))
        return int(fields.get("sum", 0)), int(fields.get("h", 0))

    def level(self, name: str) -> int | None:
        """The level of one of the account's buckets times its period; ``None`` where it is full."""
        stored = self.store.get(keys.limits_of(self.account).bucket(name))
        return None if stored is None else int(stored.split()[0])

    def ledger(self) -> list[dict[str, str]]:
        """The rows, oldest first."""
        rows = self.store.xrange(keys.ledger(self.account))
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in rows]

    def names(self) -> list[bytes]:
        """Every key there is, on whichever server."""
        return list(self.store.scan_iter(count=1000))

    def everything(self) -> dict[bytes, Any]:
        """Every key there is, as it is stored; hashes by their fields, of which the order means nothing."""
        dumps = self.dumps()
        return {key: self.store.hgetall(key) if self.store.type(key) == b"hash" else dumps[key] for key in dumps}

    def dumps(self) -> dict[bytes, bytes | None]:
        """Every key there is, in a form that ``restore`` takes."""
        return {key: self.store.dump(key) for key in self.names()}

    def restore(self, earlier: dict[bytes, bytes | None]) -> None:
        """What a lagging replica or an older snapshot has: the server loses everything that came after."""
        for key in self.names():
            self.store.delete(key)
        for key, value in earlier.items():
            self.store.restore(key, 0, value)
            if _owes_ttl(self.store, key):
                self.store.pexpire(key, 3_600_000)


@pytest.fixture
def teller(redis: Redis, store: Store) -> Teller:
    """The scripts for the account ``acme``, which has no wallet yet."""
    return Teller(redis, store)


@pytest.fixture
async def desk(teller: Teller, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """A gateway whose calls give up after half a second, with 10,000 µ$ on the account."""
    owner = RedisOwner(redis_server.url, timeout_s=0.5)
    owner.start()
    made = Desk(teller, owner, tmp_path)
    await teller.grant(10_000)
    yield made
    await made.aclose()
