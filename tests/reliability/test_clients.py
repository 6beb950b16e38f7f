"""What clients do to us: leave in every way, ask twice, and lose what they were allowed meanwhile."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.reliability.crowd import WORD, Client, Crowd, Departure, Habit, doors_of, request_bytes
from tests.reliability.judge import PRICE
from tests.reliability.results import record
from tests.reliability.stage import ACCOUNT, Setting, Stage, crowd_of, note, play, staged
from tests.upstream import Plan

pytestmark = pytest.mark.timeout(120)

ALONE = Setting(clients=20, gateways=1)
DEPARTURES: list[tuple[Departure, int]] = [("fin", 1), ("rst", 2), ("half-close", 5)]


def client_of(stage: Stage, **headers: str) -> httpx.AsyncClient:
    """One of the usual clients, for answers that are not counted."""
    return httpx.AsyncClient(
        base_url=stage.gateways[0].base_url,
        headers={"authorization": f"Bearer {stage.key}", **headers},
        timeout=30,
        trust_env=False,
    )


def body(text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A request for the model that works."""
    return {"model": "up/fine", "stream": True, "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(("by", "row"), DEPARTURES)
async def test_a_client_that_leaves_while_the_provider_is_idle_pays_for_what_it_was_sent(
    by: Departure, row: int, tmp_path: Path
) -> None:
    async with staged(ALONE, tmp_path) as stage:
        stage.upstream.for_model("fine", Plan(text=(WORD,) * 10, fault="stall", fault_at=3))
        crowd_of(stage, [Habit(leaves_at=3, leaves_by=by)] * 20)
        verdict = await play(stage)
        assert verdict.charged == verdict.delivered == 20 * 3 * PRICE
        note(stage, verdict, row, outcome="noticed at once, provider hung up on, charged what was sent")


async def test_a_client_that_leaves_during_admission_gets_everything_back(tmp_path: Path) -> None:
    async def leave_early(stage: Stage) -> None:
        stage.redis.signal(signal.SIGSTOP)
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", stage.gateways[0].port)
            writer.write(request_bytes(stage.key, f"early-{number}", "up/fine"))
            await writer.drain()
            await asyncio.sleep(0.01)  # the request has to be read before its client leaves
            writer.transport.abort()
        stage.redis.signal(signal.SIGCONT)

    async with staged(ALONE, tmp_path) as stage:
        crowd_of(stage, [Habit(model="up/short")])
        verdict = await play(stage, leave_early, served=1.0)
        early = [request for request in stage.upstream.requests if request.body["messages"][0]["content"] != "c0-0"]
        assert verdict.charged == PRICE
        assert not early, [request.body["messages"] for request in early]
        note(stage, verdict, 6, outcome="holds voided, nothing charged, no provider asked")


async def test_an_idempotency_key_runs_once(tmp_path: Path) -> None:
    async with staged(ALONE, tmp_path) as stage, client_of(stage, **{"idempotency-key": "once"}) as client:
        crowd_of(stage, [])
        stage.upstream.for_model("fine", Plan(text=(WORD,) * 10, fault="stall", fault_at=3))
        running = asyncio.get_running_loop().create_task(client.post("/v1/chat/completions", json=body()))
        await stage.upstream.until(lambda up: up.stalled == 1, timeout_s=20)
        twice = await client.post("/v1/chat/completions", json=body())
        stage.upstream.release()
        assert (await running).text.count(WORD) == 10
        verdict = await stage.judge.verdict([], stage.gateways)
        again = await client.post("/v1/chat/completions", json=body())
        other = await client.post("/v1/chat/completions", json=body("Something else"))
        assert (twice.status_code, again.status_code, other.status_code) == (409, 409, 422), other.text
        assert (await stage.judge.wallet())["s"] == verdict.charged == 10 * PRICE
        assert len(stage.upstream.requests) == 1
        verdict.delivered = 10 * PRICE
        note(stage, verdict, 8, outcome="409 while the first one runs")
        note(stage, verdict, 9, outcome="409 afterwards, no second charge")
        note(stage, verdict, 10, outcome="422")


async def test_a_revoked_key_ends_what_runs_with_it(tmp_path: Path) -> None:
    async def revoke(stage: Stage) -> None:
        admin = stage.gateways[0].admin
        (key,) = (await admin.get(f"/accounts/{ACCOUNT}/keys")).json()
        gone = await admin.delete(f"/accounts/{ACCOUNT}/keys/{key['id']}")
        assert gone.status_code == 204

    async with staged(Setting(clients=20, gateways=2, pieces=3000), tmp_path) as stage:
        crowd_of(stage, [Habit()] * 20)
        verdict = await play(stage, revoke, served=1.0)
        assert stage.crowd.ends() == {"cut: access_revoked": 20}
        note(stage, verdict, 45, outcome="cut on every gateway, charged what was sent")


async def test_a_change_of_tier_spares_what_runs_and_holds_for_what_comes(tmp_path: Path) -> None:
    async def change(stage: Stage) -> None:
        changed = await stage.gateways[0].admin.patch(f"/accounts/{ACCOUNT}", json={"tier": "closed"})
        assert changed.status_code == 200, changed.text

    tiers = {"default": {"concurrent_streams": 100}, "closed": {"models": ["other/*"]}}
    async with staged(Setting(clients=10, gateways=1, config={"tiers": tiers}), tmp_path) as stage:
        crowd_of(stage, [Habit()] * 10)
        verdict = await play(stage, change, served=1.0)
        assert stage.crowd.ends() == {"done": 10}
        async with client_of(stage) as client, asyncio.timeout(60):  # what is known of an account is a little old
            while (await client.post("/v1/chat/completions", json=body(model="up/short"))).status_code == 200:
                await asyncio.sleep(0.1)
        note(stage, verdict, 44, outcome="running streams untouched, the next request is refused")


async def test_a_price_holds_from_admission_to_the_end(tmp_path: Path) -> None:
    dearer = {"input": 0, "output": 2 * PRICE}
    async with staged(Setting(clients=10, gateways=1), tmp_path / "old") as stage:
        provider = {"type": "openai", "base_url": stage.upstream.openai_url, "api_key": "sk", "price": dearer}
        setting = Setting(clients=0, gateways=1, config={"providers": {"up": provider}})
        crowd_of(stage, [Habit()] * 10)
        async with staged(setting, tmp_path / "new", redis_url=stage.redis.url) as newer:
            first, second = stage.crowd, Crowd([Client(100 + number, Habit()) for number in range(10)], stage.chance)
            async with asyncio.TaskGroup() as group:
                group.create_task(first.run(doors_of(stage.gateways, stage.key)))
                group.create_task(second.run(doors_of(newer.gateways, stage.key)))
            await stage.gateways[0].settled()
            spent = (await stage.judge.wallet())["s"]
            delivered = PRICE * sum(c.received for c in first.clients) + 2 * PRICE * sum(
                c.received for c in second.clients
            )
            assert spent == delivered > 0
            record(
                44, outcome="each at the price it began with", charged=spent, delivered=delivered, absorbed=0, leaked=0
            )
