"""What happens to a gateway: it blocks, stops, runs out of descriptors or disk, and is replaced by another version."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from tests.harness import RedisServer, free_port
from tests.reliability.crowd import Habit
from tests.reliability.results import record
from tests.reliability.stage import Setting, Stage, crowd_of, note, play, staged

pytestmark = pytest.mark.timeout(180)

# Python imports a module of this name at every start; the signal's handler runs between two turns of the event loop.
BLOCKER = """
import signal, time

def block(*_):
    until = time.monotonic() + 2
    while time.monotonic() < until:
        pass
    open("blocked", "w").close()

signal.signal(signal.SIGUSR1, block)
"""


def python_path(folder: Path) -> dict[str, str]:
    """The environment in which a folder is looked at first."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


async def test_an_event_loop_that_blocks_for_two_seconds_loses_no_lease(tmp_path: Path) -> None:
    async def block(stage: Stage) -> None:
        stage.gateways[0].signal(signal.SIGUSR1)
        await stage.until((stage.gateways[0].log.parent / "blocked").exists, "the loop was blocked")

    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    setting = Setting(clients=50, gateways=2, lease_s=9)
    async with staged(setting, tmp_path, environments={0: python_path(tmp_path)}) as stage:
        crowd_of(stage, [Habit()] * 50)
        verdict = await play(stage, block, served=1.0)
        assert stage.crowd.ends() == {"done": 50}
        assert not [row for row in await stage.judge.movements() if row.kind == "reap"]
        note(stage, verdict, 14, outcome="every stream complete, none reaped")


async def test_a_gateway_that_is_told_to_stop_ends_and_settles_everything_first(tmp_path: Path) -> None:
    async def stop(stage: Stage) -> None:
        stage.gateways[0].terminate()
        assert await stage.gateways[0].exited() == 0
        left = await stage.judge.left_over([])
        records = await stage.judge.records()
        assert not left and all(fields["st"] == "done" for fields in records.values()), left

    async with staged(Setting(clients=40, gateways=1, pieces=3000), tmp_path) as stage:
        crowd_of(stage, [Habit()] * 40)
        verdict = await play(stage, stop, served=1.0)
        assert stage.crowd.ends() == {"error: draining": 40}
        note(stage, verdict, 15, outcome="told and settled before the process went")


async def test_a_second_signal_ends_a_gateway_at_once_and_its_journal_has_the_truth(tmp_path: Path) -> None:
    async def stop_twice(stage: Stage) -> None:
        doomed = stage.gateways[0]
        doomed.terminate()
        async with asyncio.timeout(30):
            while "draining" not in doomed.log.read_text():
                await asyncio.sleep(0.02)
        doomed.terminate()
        assert await doomed.exited() == 128 + signal.SIGTERM
        assert (await stage.judge.left_over([]))["held"] > 0
        await doomed.start()

    setting = Setting(clients=40, gateways=1, pieces=3000, lease_s=60, config={"server": {"drain_s": 60}})
    async with staged(setting, tmp_path) as stage:
        crowd_of(stage, [Habit()] * 40)
        verdict = await play(stage, stop_twice, served=1.0)
        await stage.canaries()
        assert stage.crowd.ends() == {"broken": 40}
        note(stage, verdict, 16, outcome="settled by its journal at the next start")


async def test_a_gateway_without_descriptors_keeps_what_runs_and_recovers(tmp_path: Path) -> None:
    async def starve(stage: Stage) -> None:
        process = stage.gateways[0].process
        assert process is not None
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        taken = len(os.listdir(f"/proc/{process.pid}/fd"))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (taken, limits[1]))
        writers = []
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", stage.gateways[0].port)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            writers.append(writer)
        await stage.until_served(20)
        seen = [client.received for client in stage.crowd.clients]
        await stage.until(
            lambda: all(
                client.received > before or client.is_over
                for client, before in zip(stage.crowd.clients, seen, strict=True)
            ),
            "streams go on",
        )
        for writer in writers:
            writer.transport.abort()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)

    async with staged(Setting(clients=20, gateways=1), tmp_path) as stage:
        crowd_of(stage, [Habit()] * 20)
        verdict = await play(stage, starve, served=1.0)
        await stage.canaries()
        assert stage.crowd.ends() == {"done": 20}
        note(stage, verdict, 46, outcome="running streams go on, new connections wait, then as before")


@pytest.mark.parametrize("why", ["no room", "no folder"])
def test_a_gateway_without_a_journal_does_not_start(why: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if why == "no folder":
        (folder / "journal").write_text("in the way")
    with RedisServer() as redis:
        limited = f"ulimit -f {1024 if why == 'no room' else 'unlimited'}; exec '{sys.executable}' -m gateway serve"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")},
            "GATEWAY_PORT": str(free_port()),
            "GATEWAY_DATA_DIR": str(folder),
            "GATEWAY_REDIS_URL": redis.url,
        }
        ended = subprocess.run(
            ["bash", "-c", limited], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0 and "GATEWAY_DATA_DIR" in said and "Traceback" not in said, said
    record(47, outcome=f"{why}: refuses to start", charged=0, delivered=0, absorbed=0, leaked=0)


def other_version(folder: Path) -> Path:
    """A copy of the package of which every script differs, if only in a comment, and so in its digest."""
    shutil.copytree(Path(gateway.__file__).parent, folder / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    scripts = list((folder / "gateway").rglob("*.lua"))
    assert scripts
    for script in scripts:
        script.write_text(script.read_text() + "-- another version\n")
    return folder


async def test_two_versions_share_their_books_while_one_replaces_the_other(tmp_path: Path) -> None:
    async def roll(stage: Stage) -> None:
        for member in stage.gateways:
            member.terminate()
            assert await member.exited() == 0
            await member.start()

    newer = python_path(other_version(tmp_path / "newer"))
    async with staged(Setting(pieces=60), tmp_path, environments={1: newer, 2: newer}) as stage:
        verdict = await play(stage, roll)
        await stage.canaries()
        assert verdict.absorbed == 0 and not [row for row in await stage.judge.movements() if row.kind == "reap"]
        note(stage, verdict, 50, outcome="two sets of scripts at once, all three gateways replaced one after another")
