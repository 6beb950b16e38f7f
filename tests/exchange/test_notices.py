"""A client is told at 80 % and 95 % of its credit or of a budget, where it asks for it or its format has a place."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.exchange.fleet import Fleet, ask, fleet, notes, said
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}
SCOPES = ["account", "key", "user", "model"]
TIERS: dict[str, Any] = {
    "default": WIDE,
    **{scope: {**WIDE, "limits": [{"per": scope, "budget_usd": 0.01, "window": "24h"}]} for scope in SCOPES},
    "shadow": {**WIDE, "limits": [{"budget_usd": 0.01, "window": "day", "mode": "shadow"}]},
}
LISTENING = {"x_gateway_events": "1"}
# 950 tokens at 10 µ$, of the $0.01 that there is.
LONG = Plan(text=tuple(" a" for _ in range(970)), delay_s=0.001)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """One gateway that holds small slices, so that what is held is near to what is used."""
    async with fleet({"tiers": TIERS, "holds": {"slice_s": 0.1}}) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says nearly all that can be paid."""
    running.upstream.plan = LONG
    running.upstream.requests.clear()
    return running


async def test_credit_is_told_about_twice(stage: Fleet) -> None:
    party = await stage.party(usd="0.01")
    frames = await party.frames(headers=LISTENING, max_tokens=10_000)
    told = notes(frames)
    assert [note["share"] for note in told] == [0.8, 0.95]
    assert told[0] == {
        "event": "budget",
        "reason": "budget_used",
        "message": "80% of the account's credit is used or held.",
        "share": 0.8,
    }
    assert len(said(frames)) == 970


async def test_who_did_not_ask_is_not_disturbed(stage: Fleet) -> None:
    party = await stage.party(usd="0.01")
    assert notes(await party.frames(max_tokens=10_000)) == []


async def test_ai_sdk_4_has_a_place_for_it_always(stage: Fleet) -> None:
    party = await stage.party(usd="0.01")
    parts = [json.loads(line[2:]) for line in await party.lines(maxTokens=10_000) if line.startswith("2:")]
    assert [part[0]["type"] for part in parts] == ["gateway-budget"] * 2
    assert [part[0]["share"] for part in parts] == [0.8, 0.95]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_budget_is_told_about_by_its_name(stage: Fleet, scope: str) -> None:
    party = await stage.party(scope, usd="1")
    told = notes(await party.frames(headers=LISTENING, max_tokens=10_000, user="ann"))
    assert [note["share"] for note in told] == [0.8, 0.95]
    assert told[0]["limit"] == f"{scope}.budget"
    assert told[0]["message"] == f"80% of this {scope}'s budget is used or held."


async def test_a_budget_in_shadow_mode_is_told_to_nobody(stage: Fleet) -> None:
    party = await stage.party("shadow", usd="1")
    assert notes(await party.frames(headers=LISTENING, max_tokens=10_000)) == []


async def test_a_request_that_finds_the_credit_nearly_used_is_told_at_once(stage: Fleet) -> None:
    party = await stage.party(usd="0.01")
    await party.frames(max_tokens=10_000)
    await party.settled(records=1)
    stage.upstream.plan = Plan(text=(" a", " b"), usage=Usage(input=8))
    assert [note["share"] for note in notes(await party.frames(headers=LISTENING))] == [0.95]


async def test_openais_client_reads_them_without_tripping(stage: Fleet) -> None:
    party = await stage.party(usd="0.01")
    shares, text = [], ""
    async with AsyncOpenAI(base_url=stage.url() + "/v1", api_key=party.key, max_retries=0) as client:
        body = ask(max_tokens=10_000, stream=True)
        async for chunk in await client.chat.completions.create(**body, extra_headers={"x-gateway-events": "1"}):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            elif chunk.model_extra:
                shares.append(chunk.model_extra["x_gateway"]["share"])
    assert shares == [0.8, 0.95]
    assert text == " a" * 970
