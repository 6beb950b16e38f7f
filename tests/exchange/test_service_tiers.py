"""Requests that ask a vendor to be served sooner or later: at the price of that, or not at all."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.exchange.fleet import AI_SDK, Fleet, Party, code_of, fleet, provider
from tests.upstream import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLEX, PRIORITY = {"input": 0.5, "output": 5}, {"input": 100, "output": 1000}
TIERED = {"input": 1, "output": 10, "service_tiers": {"flex": FLEX, "priority": PRIORITY}}
SAME = {"input": 1, "output": 10, "service_tiers": "ignore"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Fleet]:
    async with Upstream() as upstream:
        others = {
            "tiered": provider(upstream, TIERED),
            "same": provider(upstream, SAME),
            "newer": provider(upstream, TIERED, type="openai_responses"),
            "claude": provider(upstream, type="anthropic"),
        }
        models = {"fast": {"targets": ["up/any", "tiered/any"]}}
        async with fleet({"providers": others, "models": models}) as running:
            upstream.plan = running.upstream.plan
            running.upstream = upstream
            yield running


async def charged(party: Party) -> int:
    return (await party.settled(records=1))["spent"]


@pytest.mark.parametrize(
    ("tier", "cost"),
    [(None, 30), ("auto", 30), ("default", 30), ("flex", 15), ("priority", 3000)],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_costs_what_its_tier_costs_and_its_provider_is_told(
    site: Fleet, tier: str | None, cost: int, stream: bool
) -> None:
    party = await site.party()
    asked: dict[str, Any] = {} if tier is None else {"service_tier": tier}
    answer = await party.post(model="tiered/any", stream=stream, **asked)
    assert (answer.status_code, await charged(party)) == (200, cost)
    assert site.upstream.requests[-1].body.get("service_tier") == tier


async def test_what_a_dear_tier_may_cost_is_held_before_it_is_asked(site: Fleet) -> None:
    party = await site.party(usd="0.001")
    asked = len(site.upstream.requests)
    refused = await party.post(model="tiered/any", service_tier="priority")
    assert (refused.status_code, code_of(refused)) == (402, "credits_exhausted")
    assert len(site.upstream.requests) == asked
    assert (await party.post(model="tiered/any")).status_code == 200


@pytest.mark.parametrize("tier", ["flex", "turbo", 7, {"a": 1}])
async def test_a_tier_without_a_price_is_refused(site: Fleet, tier: Any) -> None:
    party = await site.party()
    asked = len(site.upstream.requests)
    refused = await party.post(model="up/any", service_tier=tier)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_value", "service_tier")
    assert "has no price for the service_tier" in error["message"]
    assert len(site.upstream.requests) == asked
    assert (await party.settled())["spent"] == 0


async def test_ignore_says_that_every_tier_costs_the_same(site: Fleet) -> None:
    party = await site.party()
    assert (await party.post(model="same/any", service_tier="turbo")).status_code == 200
    assert await charged(party) == 30


async def test_of_several_targets_one_that_has_a_price_for_it_answers(site: Fleet) -> None:
    party = await site.party()
    assert (await party.post(model="fast", service_tier="flex")).status_code == 200
    assert await charged(party) == 15
    assert (await party.record())["target"] == "tiered/any"


@pytest.mark.parametrize(("model", "cost"), [("newer/any", 15), ("up/any", 30)])
async def test_a_provider_of_another_format_is_not_told_and_costs_what_it_does(
    site: Fleet, model: str, cost: int
) -> None:
    party = await site.party()
    body = {"model": model, "input": "Hello", "service_tier": "flex", "max_output_tokens": 16}
    answer = await site.client.post(site.url() + "/v1/responses", json=body, headers=party.headers())
    assert answer.status_code == 200, answer.text
    assert await charged(party) == cost
    if model == "newer/any":
        assert site.upstream.requests[-1].body["service_tier"] == "flex"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (AI_SDK, {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/api/chat", {"messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2}),
    ],
)
async def test_a_format_that_no_provider_speaks_has_no_tiers(site: Fleet, path: str, body: dict[str, Any]) -> None:
    party = await site.party()
    body = {"model": "tiered/any", "service_tier": "priority", **body}
    answer = await site.client.post(site.url() + path, json=body, headers=party.headers())
    assert answer.status_code == 200, answer.text
    assert await charged(party) == 30
    assert "service_tier" not in site.upstream.requests[-1].body


async def test_anthropics_fast_mode_is_a_tier_too(site: Fleet) -> None:
    party = await site.party()
    body = {"model": "claude/any", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    for more, status in (({"speed": "fast"}, 400), ({"speed": "standard", "service_tier": "standard_only"}, 200)):
        answer = await site.client.post(site.url() + "/v1/messages", json={**body, **more}, headers=party.headers())
        assert answer.status_code == status, answer.text
    assert await charged(party) == 30
