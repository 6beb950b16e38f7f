"""Anthropic's Python client against a running gateway: the major of today, and the one before in its own process."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.clients.python.install import pins
from tests.clients.python.process import CURRENT, Client, Raised, running
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREVIOUS = "anthropic-previous"
USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude/claude-upstream", "max_tokens": 4000, "messages": [USER]}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
COLOGNE = ToolCall(name="weather", arguments=("", '{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
BOTH = pytest.mark.parametrize("model", ["claude/claude-upstream", "up/gpt-upstream"])


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[CURRENT, PREVIOUS])
async def sdk(request: pytest.FixtureRequest, gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    async with running("anthropic_ways", request.param, gateway, key) as client:
        yield client


async def test_the_major_is_the_one_meant(sdk: Client) -> None:
    version = await sdk("installed")
    if sdk.packages == PREVIOUS:
        assert f"anthropic=={version}" in pins(PREVIOUS).read_text().split() and version.startswith("1.")
    else:
        assert version.startswith("2.")


@BOTH
async def test_a_message_has_text_reason_and_usage(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60))
    streamed = await sdk("stream", ask={**ASK, "model": model})
    assert (streamed["kinds"][0], streamed["kinds"][-1]) == ("message_start", "message_stop")
    for message in (streamed["message"], await sdk("whole", ask={**ASK, "model": model})):
        assert [block["text"] for block in message["content"]] == ["Hello, world!"]
        assert (message["role"], message["stop_reason"]) == ("assistant", "end_turn")
        usage = message["usage"]
        assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (40, 60, 50)


@BOTH
async def test_tools_go_round(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    round_ = await sdk("tools", ask={**ASK, "model": model, "tools": [TOOL]}, outputs=["sun", "rain"])
    first = round_["first"]
    assert first["stop_reason"] == "tool_use"
    assert [block["input"] for block in first["content"][1:]] == [{"city": "Köln"}, {"city": "Oslo"}]
    assert round_["second"]["content"][0]["text"] == "Sun and rain."


async def test_thinking_goes_back_as_it_was_signed(upstream: Upstream, sdk: Client) -> None:
    # The simulated provider refuses what it did not sign.
    upstream.queue(Plan(reasoning=("Where is ", "Köln?"), redacted="c2VjcmV0", tool_calls=(COLOGNE,)), Plan())
    round_ = await sdk("tools", ask={**ASK, **THINKING, "tools": [TOOL]}, outputs=["sun"])
    thinking, redacted, _ = round_["first"]["content"]
    assert (thinking["thinking"], redacted["data"]) == ("Where is Köln?", "c2VjcmV0") and thinking["signature"]
    assert round_["second"]["stop_reason"] == "end_turn"


async def test_tokens_are_counted_without_asking(upstream: Upstream, sdk: Client) -> None:
    ask = {"model": ASK["model"], "messages": [USER]}
    few = await sdk("count_tokens", ask=ask)
    assert 0 < few < await sdk("count_tokens", ask={**ask, "system": "Be brief.", "tools": [TOOL]})
    assert not upstream.requests


async def test_a_long_user_id_is_short_where_openai_would_refuse_it(upstream: Upstream, sdk: Client) -> None:
    ask = {**ASK, "metadata": {"user_id": "u" * 150}}
    for model in ("up/gpt-upstream", "up/gpt-upstream", ASK["model"]):
        await sdk("whole", ask={**ask, "model": model})
    first, second, own = (received.body for received in upstream.requests)
    assert first["user"] == second["user"] and len(first["user"]) == 64
    assert own["metadata"] == ask["metadata"]


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "RateLimitError"), (500, "InternalServerError"), (400, "BadRequestError")]
)
@pytest.mark.parametrize("way", ["stream", "whole"])
async def test_the_providers_errors_have_their_classes(
    upstream: Upstream, sdk: Client, status: int, kind: str, way: str
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(Raised) as caught:
        await sdk(way, ask=ASK)
    assert caught.value.told["kind"] == kind and caught.value.told["request_id"]
    assert status != 429 or caught.value.told["retry_after"] == "7"


async def test_an_error_within_the_stream_is_raised(upstream: Upstream, sdk: Client) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(Raised) as caught:
        await sdk("stream", ask=ASK)
    assert caught.value.told["kind"] in ("APIStatusError", "APIError", "InternalServerError")


async def test_a_wrong_key_an_empty_account_and_a_full_bucket(
    upstream: Upstream, gateway: GatewayProcess, sdk: Client
) -> None:
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key="sk-ant-wrong")
    assert (caught.value.told["kind"], caught.value.told["type"]) == ("AuthenticationError", "authentication_error")
    poor = await gateway.account(f"poor-{uuid.uuid4().hex[:12]}", usd="0")
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key=poor, max_retries=2)
    assert caught.value.told["status"] == 402
    assert not upstream.requests
    tiny = await gateway.account(f"tiny-{uuid.uuid4().hex[:12]}", tier="tiny")
    assert (await sdk("whole", ask=ASK, api_key=tiny))["content"]
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key=tiny)
    assert (caught.value.told["kind"], caught.value.told["type"]) == ("RateLimitError", "rate_limit_error")
    assert 1 <= int(caught.value.told["retry_after"]) <= 50


async def test_models_are_listed_page_by_page(sdk: Client) -> None:
    names = await sdk("models")
    assert names == sorted(names) and {"fast", "claude/claude-upstream"} & set(names)
