"""A client behind a cable that is pulled: no FIN, no RST, nothing ever again. Needs root and network namespaces."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.crowd import WORD, request_bytes
from tests.reliability.judge import PRICE
from tests.reliability.stage import Setting, crowd_of, note, staged
from tests.upstream import Plan

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

HOST, GUEST = "10.213.77.1", "10.213.77.2"
# Counts what it receives until it hears nothing any more, then says how much that was.
CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(sys.stdin.buffer.read())
received = 0
buffered = b""
connection.settimeout(3)
try:
    while piece := connection.recv(65536):
        buffered += piece
        print(buffered.count(b" hello"), flush=True)
except TimeoutError:
    pass
sys.stdin.close()
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace at the other end of a cable."""
    name, cable = "gw-client", "gw-cable"
    commands = [
        f"ip netns add {name}",
        f"ip link add {cable} type veth peer name {cable}-2",
        f"ip link set {cable}-2 netns {name}",
        f"ip addr add {HOST}/24 dev {cable}",
        f"ip link set {cable} up",
        f"ip -n {name} addr add {GUEST}/24 dev {cable}-2",
        f"ip -n {name} link set {cable}-2 up",
    ]
    try:
        for command in commands:
            if subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip("network namespaces need root")
        yield name
    finally:
        subprocess.run(["ip", "link", "del", cable], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize("provider", ["talks", "is silent"])
async def test_a_client_that_vanishes_is_noticed(namespace: str, provider: str, tmp_path: Path) -> None:
    """Only the network can tell: the send deadline is far away."""
    setting = Setting(
        clients=0,
        gateways=1,
        pieces=30 if provider == "is silent" else 3000,
        config={"server": {"send_timeout_s": 600}},
    )
    async with staged(setting, tmp_path, environments={0: {"GATEWAY_HOST": "0.0.0.0"}}) as stage:
        crowd_of(stage, [])
        if provider == "is silent":
            stage.upstream.for_model("fine", Plan(text=(WORD,) * 10, fault="stall", fault_at=3))
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, sys.executable, "-c", CLIENT, HOST, str(stage.gateways[0].port)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(request_bytes(stage.key, "vanishing", "up/fine"))
        process.stdin.close()
        received = 0
        while received < 3:
            received = json.loads(await process.stdout.readline())
        # From here on nothing that the client's machine says gets through, not even that it received something.
        subprocess.run(["ip", "-n", namespace, "route", "add", "blackhole", f"{HOST}/32"], check=True)
        rest = (await process.stdout.read()).split()
        received = json.loads(rest[-1]) if rest else received
        await process.wait()
        verdict = await stage.judge.verdict([], stage.gateways)
        verdict.delivered = received * PRICE
        (row,) = [row for row in await stage.judge.movements() if row.kind == "post"]
        assert row.record["reason"] == "client_left"
        assert verdict.delivered <= verdict.charged
        seconds = row.record["duration_ms"] / 1000
        note(stage, verdict, 3, outcome=f"provider {provider}: noticed, the whole stream took {seconds:.0f} s")
