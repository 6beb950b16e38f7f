"""What the start-up checks refuse and what they warn of, and the least that an ACL has to allow."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis as Client
from redis.exceptions import NoPermissionError, ResponseError
from structlog.testing import capture_logs

from gateway.embedded_redis import EmbeddedRedis
from gateway.limits.checks import UnfitRedis, check_redis
from gateway.limits.redis import LuaSource, RedisOwner, StoreUnavailable
from tests.harness import GatewayProcess, RedisServer
from tests.limits.conftest import BINARIES
from tests.redis_cluster import wait_until

SOURCE = Path(__file__).parent.parent.parent / "src" / "gateway"

# The whole of it: `ACL SETUSER gateway reset on >password <keys> <commands>`.
ACL_KEYS = "resetchannels resetkeys ~cr:* ~key:* ~gw:* ~cap:*"
ACL_COMMANDS = (
    "-@all +ping +time +info +config|get +eval +evalsha +get +mget +set +del +expire +pexpire +persist +pttl"
    " +hexists +hget +hmget +hgetall +hset +hsetnx +hdel +hincrby +sadd +sismember +smembers"
    " +zadd +zcard +zcount +zscore +zrange +zrangebyscore +zrevrange +zrem +zremrangebyscore +xadd +xrange +xrevrange"
)
# For a cluster, for Sentinel, and for a database that is not 0.
ACL_FORMS = "+cluster|slots +asking +role +select"

Sabotage = Callable[[Client], Any]


@pytest.fixture(params=BINARIES.values(), ids=list(BINARIES))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of the test's own, since it is about to be misconfigured."""
    with RedisServer(request.param) as running:
        yield running


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Client]:
    with Client.from_url(server.url) as client:
        yield client


@pytest.fixture
async def owner(server: RedisServer) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(server.url, timeout_s=5)
    owner.start()
    yield owner
    await owner.aclose()


async def warnings_of(redis: RedisOwner, **options: Any) -> list[str]:
    with capture_logs() as logs:
        await check_redis(redis, **options)
    return [log["event"] for log in logs]


async def test_a_good_redis_passes_in_silence(owner: RedisOwner) -> None:
    assert await warnings_of(owner) == []


async def test_the_embedded_redis_passes_in_silence(tmp_path: Path) -> None:
    embedded = EmbeddedRedis(tmp_path)
    await embedded.start()
    owner = RedisOwner(embedded.url, timeout_s=5)
    owner.start()
    try:
        assert await warnings_of(owner, is_own=True) == []
    finally:
        await owner.aclose()
        await embedded.stop()


async def test_a_redis_without_a_file_is_refused_with_a_way_out(owner: RedisOwner, admin: Client) -> None:
    admin.config_set("appendonly", "no")
    with pytest.raises(UnfitRedis, match=r"appendonly yes.*redis: \{durability: none\}"):
        await check_redis(owner)
    assert await warnings_of(owner, durability="none") == ["redis_not_persistent"]


async def test_a_redis_that_may_evict_money_is_refused_and_one_that_might_is_warned_of(
    owner: RedisOwner, admin: Client
) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    assert await warnings_of(owner) == ["redis_policy"]
    admin.config_set("maxmemory", 10**9)
    with pytest.raises(UnfitRedis, match="evict"):
        await check_redis(owner)


@pytest.mark.parametrize(
    ("version", "is_fit"),
    [("5.0.14", False), ("6.0.16", False), ("6.2.0", True), ("7.2.4", True), ("10.0.1", True)],
)
async def test_versions_are_compared_as_numbers(version: str, is_fit: bool) -> None:
    class Answers:
        is_exposed = False

        async def masters(self) -> tuple["Answers"]:
            return (self,)

        async def call(self, command: str, *_: str) -> Any:
            info = f"# Server\r\nredis_version:{version}\r\nrole:master\r\naof_enabled:1\r\n".encode()
            return info if command == "INFO" else [b"appendfsync", b"always"]

    if is_fit:
        await check_redis(Answers())  # type: ignore[arg-type]
    else:
        with pytest.raises(UnfitRedis, match="too old"):
            await check_redis(Answers())  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["everysec", "no"])
async def test_a_file_that_is_behind_is_warned_of(owner: RedisOwner, admin: Client, policy: str) -> None:
    admin.config_set("appendfsync", policy)
    assert await warnings_of(owner) == ["redis_fsync"]


async def test_little_memory_is_warned_of(owner: RedisOwner, admin: Client) -> None:
    admin.config_set("maxmemory", 10**9)
    assert await warnings_of(owner) == []
    admin.config_set("maxmemory", int(admin.info("memory")["used_memory"] * 1.5))
    assert await warnings_of(owner) == ["redis_memory"]


async def test_replicas_without_a_minimum_are_warned_of(owner: RedisOwner, admin: Client, server: RedisServer) -> None:
    admin.config_set("repl-diskless-sync-delay", 0)
    with RedisServer(server._binary) as replica, Client.from_url(replica.url) as follower:
        follower.replicaof("127.0.0.1", server.port)
        wait_until(lambda: admin.info("replication")["connected_slaves"] == 1, "the replica does not connect")
        assert await warnings_of(owner) == ["redis_replicas"]
        admin.config_set("min-replicas-to-write", 1)
        assert await warnings_of(owner) == []


async def test_a_replica_is_refused(owner: RedisOwner, admin: Client) -> None:
    admin.replicaof("127.0.0.1", 1)
    with pytest.raises(UnfitRedis, match="replica"):
        await check_redis(owner)


@pytest.mark.parametrize(("host", "is_exposed"), [("localhost", False), ("127.0.0.1", False), ("{own}", True)])
async def test_an_open_network_is_warned_of(host: str, is_exposed: bool, own_address: str) -> None:
    with RedisServer(None, "--bind", "0.0.0.0", "--protected-mode", "no") as server:
        owner = RedisOwner(f"redis://{host.format(own=own_address)}:{server.port}", timeout_s=5)
        owner.start()
        try:
            assert await warnings_of(owner) == (["redis_not_encrypted"] if is_exposed else [])
        finally:
            await owner.aclose()


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not the loopback."""
    found = re.findall(r"^\s*\|--\s*(\S+)\n.*/32 host LOCAL", Path("/proc/net/fib_trie").read_text(), re.MULTILINE)
    others = [address for address in found if not address.startswith("127.")]
    if not others:
        pytest.skip("this machine has no network")
    return str(others[0])


@pytest.mark.parametrize(
    ("refused", "events"), [("-info", ["redis_unchecked"]), ("-config", ["redis_unchecked"]), ("+@all", [])]
)
async def test_what_an_acl_hides_is_said_and_not_held_against_the_server(
    server: RedisServer, admin: Client, refused: str, events: list[str]
) -> None:
    admin.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", refused)
    owner = RedisOwner(f"redis://narrow:pw@127.0.0.1:{server.port}", timeout_s=5)
    owner.start()
    try:
        assert await warnings_of(owner) == events
    finally:
        await owner.aclose()


# What each "not now" takes: (what to do to the server, what to call).
WRITE = LuaSource("return redis.call('SET', KEYS[1], '1')")
NOT_NOW: dict[str, Sabotage] = {
    "OOM": lambda admin: admin.config_set("maxmemory", 1),
    "READONLY": lambda admin: admin.replicaof("127.0.0.1", 1),
    "NOREPLICAS": lambda admin: admin.config_set("min-replicas-to-write", 1),
    "MISCONF": lambda admin: fail_to_save(admin),
    "MASTERDOWN": lambda admin: (
        admin.config_set("replica-serve-stale-data", "no"),
        admin.replicaof("127.0.0.1", 1),
    ),
}


def fail_to_save(admin: Client) -> None:
    """A directory of that name is in the way of the snapshot."""
    folder = Path(admin.config_get("dir")["dir"])
    (folder / "dump.rdb" / "x").mkdir(parents=True)
    admin.config_set("save", "3600 1")
    admin.bgsave()
    wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot was saved")


@pytest.mark.parametrize("is_script", [False, True], ids=["command", "script"])
@pytest.mark.parametrize("answer", NOT_NOW)
async def test_not_now_is_told_from_never(owner: RedisOwner, admin: Client, answer: str, is_script: bool) -> None:
    await owner.script(WRITE, ("a",), (), bytes)
    NOT_NOW[answer](admin)
    with pytest.raises(StoreUnavailable):
        await (owner.script(WRITE, ("a",), (), bytes) if is_script else owner.call("SET", "a", "2"))
    if answer in ("READONLY", "MASTERDOWN"):
        assert not owner.is_connected


async def test_a_redis_that_still_loads_is_unavailable(server: RedisServer, admin: Client, owner: RedisOwner) -> None:
    with admin.pipeline(transaction=False) as pipeline:
        for number in range(4000):  # while it loads, it listens once in a thousand commands
            pipeline.set(f"k{number}", "x")
        pipeline.execute()
    server.kill()
    server._options = ("--key-load-delay", "500")
    starting = asyncio.get_running_loop().run_in_executor(None, server.start)
    reasons = []
    async with asyncio.timeout(20):
        while True:
            try:
                assert await owner.call("GET", "k1") == b"x"
                break
            except StoreUnavailable as error:
                reasons.append(str(error))
                await asyncio.sleep(0)
        await starting
    assert any(reason.startswith("BusyLoadingError") for reason in reasons)


class TestLeastPrivilege:
    """An ACL user with exactly the rule above runs everything the gateway does."""

    def test_the_rule_names_every_command_that_the_source_uses(self) -> None:
        python = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
        lua = "\n".join(path.read_text() for path in SOURCE.rglob("*.lua"))
        used = set(re.findall(r"""edis\.call\(\s*["']([A-Z]+)["']""", python))
        used |= {"EXPIRE", "HDEL", "HINCRBY"}  # tallies.py makes these of what it is owed
        used |= set(re.findall(r"""redis\.p?call\(\s*['"]([A-Z]+)['"]""", lua))
        allowed = {word.removeprefix("+").partition("|")[0].upper() for word in ACL_COMMANDS.split()}
        assert len(used) > 20
        assert used - allowed == set(), "docs and ACL_COMMANDS have to name them"

    @pytest.fixture
    def least(self, server: RedisServer, admin: Client) -> str:
        rule = f"{ACL_KEYS} {ACL_COMMANDS} {ACL_FORMS}"
        admin.execute_command("ACL", "SETUSER", "gateway", "reset", "on", ">pw", *rule.split())
        return f"redis://gateway:pw@127.0.0.1:{server.port}"

    async def test_a_gateway_runs_with_it(self, least: str, admin: Client) -> None:
        admin.execute_command("ACL", "LOG", "RESET")
        async with GatewayProcess({"tiers": {"pro": {}}}, redis_url=least) as gateway:
            key = await gateway.account(usd="1")
            listed = await gateway.admin.get("/accounts")
            assert listed.status_code == 200
            async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
                answer = await client.post(
                    "/v1/chat/completions",
                    headers={"Authorization": f"Bearer {key}"},
                    json={"model": "demo/fast", "messages": [{"role": "user", "content": "hello"}]},
                )
                assert answer.status_code == 200, answer.text
            await gateway.settled(records=1)
        assert admin.acl_log() == []

    async def test_it_reaches_nothing_else(self, least: str) -> None:
        owner = RedisOwner(least, timeout_s=5)
        owner.start()
        try:
            for command in (("GET", "other"), ("FLUSHALL",), ("CONFIG", "SET", "maxmemory", "1"), ("KEYS", "*")):
                with pytest.raises(NoPermissionError):
                    await owner.call(*command)
            with pytest.raises(ResponseError, match=r"permission|access"):
                await owner.script(WRITE, ("other",), (), bytes)
        finally:
            await owner.aclose()
