"""Tiers over HTTP: models, features, endpoints, size of a request, and a change that counts at once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.exchange.fleet import AI_SDK, CHAT, Fleet, ask, code_of, fleet, notes, said
from tests.upstream import Plan, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}
TIERS: dict[str, Any] = {
    "default": WIDE,
    "narrow": {**WIDE, "models": ["up/small*", "fast"]},
    "plain": {**WIDE, "features": []},
    "streamed": {**WIDE, "features": ["stream"]},
    "chat-only": {**WIDE, "endpoints": ["openai_chat"]},
    "short": {**WIDE, "tokens_per_request": 20},
    "slow": {**WIDE, "requests": {"limit": 1, "period_s": 86_400}},
}
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """Two gateways."""
    async with fleet({"tiers": TIERS, "models": {"fast": {"targets": ["up/any"]}}}, replicas=2) as started:
        yield started


@pytest.fixture
def stage(running: Fleet) -> Fleet:
    """The same, with a provider that says what our count expects of it."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return running


async def test_a_tier_may_use_its_models_only(stage: Fleet) -> None:
    party = await stage.party("narrow")
    assert [code_of(await party.post(model=model)) for model in ("up/small-1", "fast")] == ["", ""]
    refused = await party.post(model="up/large")
    assert (refused.status_code, code_of(refused)) == (403, "model_not_allowed")
    assert len(stage.upstream.requests) == 2


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("stream", {"stream": True}),
        ("tools", {"tools": [TOOL]}),
        ("images", {"messages": [{"role": "user", "content": [PICTURE]}]}),
        ("reasoning", {"reasoning_effort": "low"}),
        ("structured output", {"response_format": SCHEMA}),
        ("choices", {"n": 2}),
    ],
)
async def test_a_tier_has_its_features_only(stage: Fleet, feature: str, change: dict[str, Any]) -> None:
    party = await stage.party("plain")
    assert await party.codes(1) == [""]
    refused = await party.post(**change)
    assert (refused.status_code, code_of(refused)) == (403, "feature_not_allowed")
    assert refused.json()["error"]["message"] == f"This account's tier does not include {feature}."
    assert len(stage.upstream.requests) == 1


async def test_a_feature_that_is_listed_is_there(stage: Fleet) -> None:
    party = await stage.party("streamed")
    assert said(await party.frames()) == ["one", " two"]


async def test_a_tier_has_its_endpoints_only(stage: Fleet) -> None:
    party = await stage.party("chat-only")
    assert await party.codes(1) == [""]
    body = {"model": "up/any", "messages": [{"role": "user", "content": "Hello"}]}
    refused = await stage.client.post(stage.url() + AI_SDK, json=body, headers=party.headers())
    assert (refused.status_code, code_of(refused)) == (403, "feature_not_allowed")


async def test_the_provider_is_told_what_a_request_may_still_say(stage: Fleet) -> None:
    party = await stage.party("short")
    stage.upstream.plan = Plan(text=(" go", " on"), endless=True, obey_max_tokens=True)
    frames = await party.frames(max_tokens=1_000)
    assert stage.upstream.requests[0].body["max_tokens"] == 20 - 8
    assert len(said(frames)) == 12


async def test_a_provider_that_goes_on_nevertheless_is_cut(stage: Fleet) -> None:
    party = await stage.party("short")
    stage.upstream.plan = Plan(text=(" go", " on"), endless=True, delay_s=0.05)
    frames = await party.frames()
    assert frames[-1] == "[DONE]"
    assert [note["reason"] for note in notes(frames)] == ["tokens_per_request_exceeded"]
    assert 12 <= len(said(frames)) < 50
    record = await party.record()
    assert (record["outcome"], record["reason"]) == ("cut", "tokens_per_request_exceeded")
    await stage.upstream.until(lambda upstream: upstream.open_streams == 0)


async def test_a_fast_provider_is_cut_at_the_very_token(stage: Fleet) -> None:
    party = await stage.party("short")
    stage.upstream.plan = Plan(text=(" go", " on"), endless=True)
    assert len(said(await party.frames())) == 12


async def test_a_new_tier_counts_from_the_next_request_on(stage: Fleet) -> None:
    party = await stage.party("slow")
    assert await party.codes(2, replica=0) == ["", "rate_limit_exceeded"]
    await party.change(tier="default")
    assert await party.codes(3, replica=0) == [""] * 3
    await party.change(tier="narrow")
    assert code_of(await party.post(replica=0, model="up/large")) == "model_not_allowed"
    await party.change(tier="")
    assert code_of(await party.post(replica=0, model="up/large")) == ""


async def test_another_replica_knows_of_a_new_tier_within_seconds(stage: Fleet) -> None:
    party = await stage.party("default")
    assert await party.codes(1, replica=1, model="up/large") == [""]
    await party.change(tier="narrow", replica=0)

    async def is_refused() -> bool:
        return code_of(await party.post(replica=1, model="up/large")) == "model_not_allowed"

    for _ in range(2_000):
        if await is_refused():
            break
    else:
        raise AssertionError("the other replica still goes by the old tier")


async def test_what_runs_is_not_touched_by_a_new_tier(stage: Fleet) -> None:
    party = await stage.party("default")
    stage.upstream.plan = Plan(text=(" one", " two"), fault="stall", fault_at=1, usage=Usage(input=8, output=2))
    async with party.streaming(replica=0, model="up/large") as response:
        await party.change(tier="narrow")
        stage.upstream.release()
        text = (await response.aread()).decode()
    assert text.rstrip().endswith("[DONE]") and " two" in text
    assert (await party.record())["outcome"] == "complete"


async def test_the_operator_is_told_of_a_tier_that_is_not_there(stage: Fleet) -> None:
    party = await stage.party()
    admin = stage.gateways[0].admin
    refused = await admin.patch(f"/accounts/{party.account}", json={"tier": "gold", "suspended": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tier")
    shown = (await admin.get(f"/accounts/{party.account}")).json()
    assert (shown["tier"], shown["suspended"]) == (None, False)


async def test_changing_nothing_and_nobody(stage: Fleet) -> None:
    party = await stage.party("narrow")
    admin = stage.gateways[0].admin
    assert (await admin.patch(f"/accounts/{party.account}", json={})).json()["tier"] == "narrow"
    assert (await admin.patch("/accounts/nobody", json={"tier": "narrow"})).status_code == 404
    assert (await admin.patch(f"/accounts/{party.account}", json={"level": 1})).status_code in (400, 422)


# What the provider is told.


async def test_the_provider_is_told_what_the_account_can_pay(stage: Fleet) -> None:
    party = await stage.party(usd="0.000108")  # 8 µ$ of input, and 10 tokens at 10 µ$
    stage.upstream.plan = Plan(text=(" go", " on"), endless=True, obey_max_tokens=True, usage=Usage(input=8))
    answer = await party.post(max_tokens=500)
    assert stage.upstream.requests[0].body["max_tokens"] == 10
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert answer.json()["x_gateway"]["reason"] == "credits_exhausted", "the provider ended it, and the bound was ours"
    assert (await party.settled(records=1))["available"] == 0


async def test_a_bound_that_can_be_paid_is_left_alone(stage: Fleet) -> None:
    party = await stage.party()
    await party.post(max_tokens=500)
    body = ask()
    del body["max_tokens"]
    await stage.client.post(stage.url() + CHAT, json=body, headers=party.headers())
    asked, unasked = (received.body for received in stage.upstream.requests)
    assert asked["max_tokens"] == 500
    assert "max_tokens" not in unasked and "max_completion_tokens" not in unasked


async def test_the_bound_is_per_choice(stage: Fleet) -> None:
    party = await stage.party(usd="0.000108")
    await party.post(max_tokens=500, n=5)
    assert stage.upstream.requests[0].body["max_tokens"] == 2


# What became of a stream.


async def test_a_stream_can_be_asked_about_by_its_own_account_only(stage: Fleet) -> None:
    party, other = await stage.party(), await stage.party()
    stage.upstream.plan = Plan(text=("one", " two"), fault="stall", fault_at=1, usage=Usage(input=8, output=2))

    async def shown(asker: Any, stream: str) -> Any:
        return await stage.client.get(f"{stage.url()}/v1/streams/{stream}", headers=asker.headers())

    async with party.streaming(max_tokens=2) as response:
        stream = response.headers["x-gateway-stream-id"]
        running = (await shown(party, stream)).json()
        assert running.pop("started_at").startswith("20")
        assert running == {
            "id": stream,
            "object": "stream",
            "state": "open",
            "outcome": running["outcome"],
            "owner": running["owner"],
            "model": running["model"],
            "protocol": "openai_chat",
            "charged_usd": "0.000000",
            "held_usd": "0.000028",
        }
        stage.upstream.release()
        await response.aread()
    await party.settled(records=1)
    ended = (await shown(party, stream)).json()
    assert (ended["outcome"], ended["charged_usd"], ended["held_usd"]) == ("complete", "0.000028", "0.000000")
    unknown = ["0" * 32, "nonsense", "%00", stream[:31]]
    for asker, name in ((other, stream), *((party, name) for name in unknown)):
        missing = await shown(asker, name)
        assert (missing.status_code, code_of(missing)) == (404, "not_found"), name
    nobody = await stage.client.get(f"{stage.url()}/v1/streams/{stream}")
    assert nobody.status_code == 401
