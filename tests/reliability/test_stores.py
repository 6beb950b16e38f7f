"""What happens to Redis beyond a restart: it may not write, its clock jumps, a master is lost, a slot moves."""

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.limits import keys
from tests.harness import RedisServer
from tests.redis_cluster import Cluster
from tests.reliability.stage import ACCOUNT, Setting, Stage, note, play, staged

pytestmark = pytest.mark.timeout(240)

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")


async def test_a_redis_whose_disk_is_full_refuses_and_recovers(tmp_path: Path) -> None:
    async def fill(stage: Stage) -> None:
        process = stage.redis.process
        assert process is not None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        async with asyncio.timeout(30):
            while (await stage.judge.store.info("persistence"))["aof_last_write_status"] == "ok":
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)  # the time without writes that this is about
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    setting = Setting(binary="redis-server", redis_options=("--appendfsync", "everysec"))
    async with staged(setting, tmp_path) as stage:
        verdict = await play(stage, fill)
        await stage.canaries()
        assert verdict.absorbed == 0
        note(stage, verdict, 25, outcome=f"{stage.crowd.ends()['refused: 503']} × 503 while it lasted, then as before")


def false_time(folder: Path, offset: str) -> dict[str, str]:
    """The environment of a process with a wrong clock, which may be changed in ``folder/time``."""
    (folder / "time").write_text(offset)
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "time"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.mark.slow
@needs_faketime
@pytest.mark.parametrize("offset", ["+1h", "-1h"])
async def test_a_redis_whose_clock_jumps_freezes_nothing(offset: str, tmp_path: Path) -> None:
    async def jump(stage: Stage) -> None:
        before = await stage.judge.store.time()
        (tmp_path / "time").write_text(offset)
        after = await stage.judge.store.time()
        assert abs(after[0] - before[0]) > 3000
        await asyncio.sleep(2)  # the time in between that this is about
        (tmp_path / "time").write_text("+0")

    redis = RedisServer()  # the bundled one: the library and the allocator of Debian's do not go together
    redis.environment = false_time(tmp_path, "+0")
    with redis:
        async with staged(Setting(), tmp_path, redis_url=redis.url) as stage:
            verdict = await play(stage, jump)
            await stage.canaries()
            assert verdict.absorbed == 0
            moved = sum(row.kind == "reap" for row in await stage.judge.movements())
            note(stage, verdict, 33, outcome=f"{offset} and back: {moved} streams reaped early and corrected")


@pytest.mark.slow
@needs_faketime
async def test_gateways_with_wrong_clocks_make_no_difference(tmp_path: Path) -> None:
    environments = {}
    for number, offset in enumerate(("+1h", "-1h")):
        folder = tmp_path / offset
        folder.mkdir()
        environments[number] = false_time(folder, offset)
    async with staged(Setting(), tmp_path, environments=environments) as stage:
        verdict = await play(stage)
        await stage.canaries()
        assert verdict.absorbed == 0 and not [row for row in await stage.judge.movements() if row.kind == "reap"]
        note(stage, verdict, 34, outcome="an hour ahead and an hour behind: no effect")


@contextlib.asynccontextmanager
async def clustered(setting: Setting, folder: Path, *, with_replica: bool) -> AsyncIterator[tuple[Stage, Cluster]]:
    """A stage on three masters, the account's with a replica where asked for."""
    options = ("--appendfsync", "everysec", "--cluster-replica-validity-factor", "0")
    with Cluster("redis-server", *options) as cluster:
        if with_replica:
            await asyncio.to_thread(cluster.add, replica_of=cluster.master_of(keys.wallet(ACCOUNT)))
        async with staged(setting, folder, redis_url=cluster.url) as stage:
            yield stage, cluster


@pytest.mark.slow
@pytest.mark.parametrize("usd", ["10", "0.04"], ids=["ample", "exhausted"])
async def test_a_failover_to_a_replica_that_lags_is_told_what_it_lost(usd: str, tmp_path: Path) -> None:
    setting = Setting(usd=usd, pieces=120, config={"holds": {"lease_s": 15, "slice_s": 10}})
    async with clustered(setting, tmp_path, with_replica=True) as (stage, cluster):
        lost = 0

        async def fail_over(_: Stage) -> None:
            nonlocal lost
            await stage.until(
                lambda: sum(client.received >= 30 for client in stage.crowd.clients) > 100 or stage.crowd.is_over,
                "holds have grown with the streams",
            )
            master, replica = cluster.master_of(keys.wallet(ACCOUNT)), cluster.nodes[-1]
            replica.signal(signal.SIGSTOP)
            master.ask("CLIENT", "KILL", "TYPE", "replica")
            await asyncio.sleep(1)  # what is written now never reaches the replica
            written = master.client.info("replication")["master_repl_offset"]
            master.kill()
            replica.signal(signal.SIGCONT)
            async with asyncio.timeout(40):
                while (told := await asyncio.to_thread(replica.client.info, "replication"))["role"] != "master":
                    await asyncio.sleep(0.05)
            lost = written - told["second_repl_offset"] + 1

        verdict = await play(stage, fail_over, served=0.5)
        if usd == "10":
            await stage.canaries()
        assert lost > 0 and verdict.absorbed == 0
        note(
            stage, verdict, 21, outcome=f"{lost // 1000} kB of writes lost and told again, absorbed {verdict.absorbed}"
        )


@pytest.mark.slow
async def test_a_slot_that_moves_while_it_is_used_is_followed(tmp_path: Path) -> None:
    async with clustered(Setting(pieces=80), tmp_path, with_replica=False) as (stage, cluster):

        async def move(_: Stage) -> None:
            wallet = keys.wallet(ACCOUNT)
            for _ in range(4):
                source = await asyncio.to_thread(cluster.master_of, wallet)
                target = next(node for node in cluster.nodes if node is not source)
                await asyncio.to_thread(cluster.begin_move, wallet, target)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(cluster.end_move, wallet, source, target)
                await asyncio.sleep(0.3)

        verdict = await play(stage, move)
        await stage.canaries()
        assert verdict.absorbed == 0
        note(stage, verdict, 32, outcome="moved four times under load, every call repeated where the keys were")
