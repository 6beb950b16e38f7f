"""One master, one replica and one Sentinel: whoever is master is found, without a restart."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from redis import Redis as Client
from redis.exceptions import RedisError, ResponseError

from gateway.limits.connect import open_redis
from gateway.limits.redis import Redis, RedisOwner, StoreUnavailable, retrying
from tests.harness import RedisServer, free_port
from tests.limits.conftest import BINARIES
from tests.redis_cluster import wait_until

BUDGET_S = 20
MASTER = "money"


class Sentinel:
    """A Sentinel of one, which is enough for an election here."""

    def __init__(self, binary: str, master: RedisServer, *lines: str) -> None:
        self.port = free_port()
        self._binary = binary
        self._folder = Path(tempfile.mkdtemp(prefix="gw-sentinel-"))
        self._config = self._folder / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\nlogfile {self._folder}/log\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 300\nsentinel failover-timeout {MASTER} 3000\n"
            + "".join(f"{line}\n" for line in lines)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *args: Any) -> Any:
        """One command."""
        with Client(port=self.port) as client:
            return client.execute_command(*args)

    def fields(self) -> dict[str, Any]:
        """The master as this Sentinel sees it."""
        fields: dict[str, Any] = self.ask("SENTINEL MASTER", MASTER)
        return fields

    def fail_over(self) -> None:
        """Make the replica the master, as soon as this Sentinel has heard from it."""

        def begins() -> bool:
            with contextlib.suppress(ResponseError):  # NOGOODSLAVE
                return bool(self.ask("SENTINEL", "FAILOVER", MASTER))
            return False

        wait_until(begins, "no failover began")

    def start(self) -> Self:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen([self._binary, str(self._config), "--sentinel"])

        def answers() -> bool:
            with contextlib.suppress(RedisError):
                return bool(self.fields())
            return False

        wait_until(answers, "the Sentinel does not answer")
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Stop it and throw its state away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class Deployment:
    """A master, its replica, and the Sentinel that watches them."""

    def __init__(self, binary: str) -> None:
        self.master = RedisServer(binary, "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(binary, "--repl-diskless-sync-delay", "0")
        self.sentinel = Sentinel(binary, self.master)
        # The first one is dead, as a Sentinel may be.
        self.url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/{MASTER}"

    def __enter__(self) -> Self:
        self.master.start()
        self.replica.start()
        with Client(port=self.replica.port) as client:
            client.replicaof("127.0.0.1", self.master.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica is not in step")
        self.sentinel.start()
        wait_until(lambda: int(self.sentinel.fields()["num-slaves"]) == 1, "the Sentinel does not know the replica")
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.stop()


@contextlib.asynccontextmanager
async def opened(url: str, timeout_s: float = 2) -> AsyncIterator[Redis]:
    redis = open_redis(url, timeout_s=timeout_s)
    redis.start()
    try:
        yield redis
    finally:
        await redis.aclose()


@pytest.fixture(params=BINARIES.values(), ids=list(BINARIES))
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with Deployment(request.param) as running:
        yield running


def port_of(redis: Redis) -> int:
    assert isinstance(redis, RedisOwner)
    return int(redis.address.rpartition(":")[2] or 0)


async def test_a_failover_is_followed_without_a_restart(deployment: Deployment) -> None:
    async with opened(deployment.url) as redis:
        await redis.call("SET", "kept", "1")
        assert port_of(redis) == deployment.master.port
        await redis.call("WAIT", 1, 1000)
        deployment.master.kill()
        with pytest.raises(StoreUnavailable):
            await redis.call("SET", "kept", "2")
        assert await retrying(lambda: redis.call("GET", "kept"), BUDGET_S) == b"1"
        assert port_of(redis) == deployment.replica.port
        await redis.call("SET", "kept", "3")


async def test_a_master_that_is_none_any_more_is_left_before_it_knows(deployment: Deployment) -> None:
    async with opened(deployment.url) as redis:
        await redis.call("SET", "kept", "1")
        deployment.sentinel.fail_over()

        async def until_moved() -> None:
            if await retrying(lambda: redis.call("SET", "kept", "2"), BUDGET_S) != b"OK":
                raise AssertionError
            if port_of(redis) != deployment.replica.port:
                raise StoreUnavailable("still the old one")

        await retrying(until_moved, BUDGET_S)
        with Client(port=deployment.master.port) as old:
            assert old.role()[0] == b"master"  # some ten seconds long: what it is told then is lost
        await redis.call("SET", "kept", "3")


async def test_a_server_that_may_not_write_is_left_though_the_sentinel_still_names_it(deployment: Deployment) -> None:
    async with opened(deployment.url) as redis:
        await redis.call("SET", "kept", "1")
        with Client(port=deployment.master.port) as master:
            master.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable):
                await redis.call("SET", "kept", "2")
            assert isinstance(redis, RedisOwner) and not redis.is_connected
            with pytest.raises(StoreUnavailable, match="is no master"):
                await redis.call("GET", "kept")  # what it says may be old
            master.replicaof("NO", "ONE")
        assert await retrying(lambda: redis.call("SET", "kept", "3"), BUDGET_S) == b"OK"


async def test_the_newest_election_counts(deployment: Deployment) -> None:
    """Two Sentinels disagree: the one that has seen more elections is right."""
    deployment.sentinel.fail_over()
    wait_until(lambda: int(deployment.sentinel.fields()["port"]) == deployment.replica.port, "no failover")
    impostor = RedisServer(None).start()
    behind = Sentinel(next(iter(BINARIES.values())), impostor).start()
    try:
        hosts = f"127.0.0.1:{behind.port},127.0.0.1:{deployment.sentinel.port}"
        async with opened(f"redis+sentinel://{hosts}/{MASTER}") as redis:
            await retrying(lambda: redis.call("SET", "a", "1"), BUDGET_S)
            assert port_of(redis) == deployment.replica.port
    finally:
        behind.stop()
        impostor.stop()


async def test_a_hanging_sentinel_does_not_keep_the_others_from_answering(deployment: Deployment) -> None:
    hanging = [Sentinel(next(iter(BINARIES.values())), deployment.master).start() for _ in range(1)]
    try:
        hanging[0].signal(signal.SIGSTOP)
        url = f"redis+sentinel://127.0.0.1:{hanging[0].port},127.0.0.1:{deployment.sentinel.port}/{MASTER}"
        async with opened(url, timeout_s=0.3) as redis:
            assert await retrying(lambda: redis.call("PING"), BUDGET_S) == b"PONG"
    finally:
        hanging[0].stop()


async def test_who_names_no_master_is_quoted(deployment: Deployment) -> None:
    async with opened(deployment.url.replace(MASTER, "other")) as redis:
        with pytest.raises(StoreUnavailable, match="No such master"):
            await redis.call("PING")


async def test_sentinels_and_master_have_passwords_and_a_database_of_their_own() -> None:
    binary = next(iter(BINARIES.values()))
    with RedisServer(binary) as master:
        with Client(port=master.port) as client:
            client.config_set("requirepass", "m@ster")
        sentinel = Sentinel(
            binary, master, f"sentinel auth-pass {MASTER} m@ster", "requirepass s/ntinel", "sentinel sentinel-pass x"
        )
        sentinel.ask = lambda *_: True  # type: ignore[method-assign]  # it answers nobody without a password
        sentinel.start()
        try:
            url = f"redis+sentinel://:m%40ster@127.0.0.1:{sentinel.port}/{MASTER}/3"
            async with opened(f"{url}?sentinel_password=s%2Fntinel") as redis:
                await retrying(lambda: redis.call("SET", "a", "1"), BUDGET_S)
            with Client(port=master.port, password="m@ster", db=3) as client:
                assert client.get("a") == b"1"
            async with opened(url) as redis:
                with pytest.raises(StoreUnavailable, match="Authentication"):
                    await redis.call("GET", "a")
        finally:
            sentinel.stop()


async def test_many_calls_at_once_survive_a_failover_without_a_wrong_answer(deployment: Deployment) -> None:
    async with opened(deployment.url, timeout_s=1) as redis:
        wrong: list[tuple[int, bytes]] = []
        is_over = False

        async def keep_asking(number: int) -> None:
            while not is_over:
                answer = await retrying(lambda: redis.call("ECHO", number), BUDGET_S)
                if answer != str(number).encode():
                    wrong.append((number, answer))

        asking = asyncio.gather(*(keep_asking(number) for number in range(20)))
        await asyncio.to_thread(deployment.sentinel.fail_over)
        while not asking.done() and port_of(redis) != deployment.replica.port:
            await asyncio.sleep(0.01)
        is_over = True
        await asking
        assert wrong == []
        assert port_of(redis) == deployment.replica.port
