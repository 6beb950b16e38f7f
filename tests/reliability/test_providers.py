"""What providers do to us: are not there, refuse, send too much, and count wrongly."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.harness import free_port
from tests.reliability.crowd import WORD, Habit
from tests.reliability.judge import PRICE
from tests.reliability.stage import Setting, Stage, crowd_of, note, play, staged
from tests.reliability.test_clients import body, client_of
from tests.upstream import Plan, Upstream, Usage

pytestmark = pytest.mark.timeout(120)


def provider(base_url: str) -> dict[str, Any]:
    """A provider at another address, at the usual price."""
    return {
        "type": "openai",
        "base_url": base_url,
        "api_key": "sk-upstream",
        "price": {"input": 0, "output": PRICE},
        "timeouts": {"connect_s": 2, "first_event_s": 5},
    }


async def test_a_provider_that_cannot_be_reached_is_left_for_the_next_one_or_told(tmp_path: Path) -> None:
    async with Upstream() as working:
        working.plan = Plan(text=(WORD,))
        addresses = {
            "closed": f"http://127.0.0.1:{free_port()}/v1",
            "unknown": "http://no-such-host.invalid/v1",
            "untrusted": working.openai_url.replace("http:", "https:"),
            "up": working.openai_url,
        }
        config = {
            "providers": {name: provider(url) for name, url in addresses.items()},
            "models": {f"safe-{name}": {"targets": [f"{name}/any", "up/any"]} for name in addresses if name != "up"},
        }
        async with staged(Setting(clients=0, gateways=1, config=config), tmp_path) as stage, client_of(stage) as client:
            for name in ("closed", "unknown", "untrusted"):
                alone = await client.post("/v1/chat/completions", json=body(model=f"{name}/any", stream=False))
                assert alone.status_code in (502, 503, 504), alone.text
            verdict = await stage.judge.verdict([], stage.gateways)
            assert verdict.charged == 0
            for name in ("closed", "unknown", "untrusted"):
                safe = await client.post("/v1/chat/completions", json=body(model=f"safe-{name}", stream=False))
                assert safe.status_code == 200, safe.text
            verdict = await stage.judge.verdict([], stage.gateways)
            assert verdict.charged == 3 * PRICE
            verdict.delivered = 3 * PRICE
            note(stage, verdict, 35, outcome="502 and nothing charged; with a second target its answer, charged once")


@pytest.mark.parametrize("status", [429, 529])
async def test_a_provider_that_is_overloaded_is_left_for_the_next_one_or_quoted(status: int, tmp_path: Path) -> None:
    models = {"safe": {"targets": ["up/busy", "up/short"]}}
    async with staged(Setting(clients=0, gateways=1, config={"models": models}), tmp_path) as stage:
        stage.upstream.for_model("busy", Plan(status=status, retry_after=7))
        async with client_of(stage) as client:
            alone = await client.post("/v1/chat/completions", json=body(model="up/busy", stream=False))
            assert alone.status_code == (429 if status == 429 else 503), alone.text
            assert alone.headers["retry-after"] == "7"
            safe = await client.post("/v1/chat/completions", json=body(model="safe", stream=False))
            assert safe.status_code == 200, safe.text
        verdict = await stage.judge.verdict([], stage.gateways)
        assert verdict.charged == PRICE
        verdict.delivered = PRICE
        note(stage, verdict, 36, outcome="passed on with Retry-After; with a second target its answer, charged once")


def memory_peak_bytes(stage: Stage) -> int:
    """The most memory that the gateway ever had."""
    process = stage.gateways[0].process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


BAD_BYTES = {
    "garbage": Plan(text=(WORD,) * 5, fault="garbage", fault_at=2),
    "html": Plan(text=(WORD,) * 5, fault="html", fault_at=-1),
    "a line of 14 MB": Plan(text=(WORD, "x" * 14_000_000)),
    "compressed": Plan(text=(WORD,) * 5, headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("what", list(BAD_BYTES))
async def test_bytes_that_make_no_sense_are_bounded_and_told(what: str, tmp_path: Path) -> None:
    async with staged(Setting(clients=0, gateways=1), tmp_path) as stage:
        stage.upstream.for_model("fine", BAD_BYTES[what])
        before = memory_peak_bytes(stage)
        crowd_of(stage, [Habit()] * 5)
        verdict = await play(stage)
        assert memory_peak_bytes(stage) - before < 200_000_000
        ends = stage.crowd.ends()
        if what != "compressed":  # a label that is not true harms nobody
            assert not ends["done"], ends
        note(stage, verdict, 40, outcome=f"{what}: {', '.join(ends)}")


WRONG_USAGE: dict[str, Usage | str] = {
    "missing": "missing",
    "negative": Usage(output=-5),
    "absurd": Usage(output=10**12),
}


@pytest.mark.parametrize("what", list(WRONG_USAGE))
async def test_a_provider_that_counts_wrongly_does_not_decide_what_is_charged(what: str, tmp_path: Path) -> None:
    async with staged(Setting(clients=0, gateways=1), tmp_path) as stage:
        plan = Plan(text=(WORD,) * 10)
        stage.upstream.for_model("fine", msgspec.structs.replace(plan, usage=WRONG_USAGE[what]))
        crowd_of(stage, [Habit()] * 10)
        verdict = await play(stage)
        assert verdict.charged == 10 * 10 * PRICE and verdict.absorbed == 0
        note(stage, verdict, 41, outcome=f"{what}: our own count is charged")


async def test_a_provider_that_bills_a_hundredfold_takes_what_is_there_and_no_more(tmp_path: Path) -> None:
    """A model may think unseen, so this much is believed; the tenant pays up to its balance, the operator the rest."""
    async with staged(Setting(clients=0, gateways=1, usd="0.02"), tmp_path) as stage:
        stage.upstream.for_model("fine", Plan(text=(WORD,) * 10, usage=Usage(output=1000)))
        crowd_of(stage, [Habit()] * 10)
        verdict = await play(stage)
        served = stage.crowd.ends()["done"]
        assert verdict.charged <= verdict.granted and served > 0
        assert verdict.charged + verdict.absorbed >= served * 1000 * PRICE
        verdict.wrongs = [wrong for wrong in verdict.wrongs if ": received 100, charged" not in wrong]
        note(stage, verdict, 41, outcome="a hundredfold: charged up to the balance, the rest absorbed")


async def test_connections_to_providers_survive_six_hundred_cancellations(tmp_path: Path) -> None:
    async with staged(Setting(clients=0, gateways=1, pieces=5, delay_s=0.02), tmp_path) as stage:
        habits = [Habit(leaves_at=stage.chance.randrange(0, 4), leaves_by="rst") for _ in range(600)]
        crowd_of(stage, habits)
        verdict = await play(stage, served=0.0)
        await stage.canaries()
        async with asyncio.timeout(30):
            while stage.upstream.open_streams:
                await asyncio.sleep(0.05)
        note(stage, verdict, 48, outcome="all connections given up, the next request is served")
