"""openai-python against a running gateway: the major of today, and the one before in a process of its own."""

import json
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

PREVIOUS = "openai-previous"
USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "up/gpt-upstream", "messages": [USER]}
INPUT: dict[str, Any] = {"model": "up/gpt-upstream", "input": "Hi"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "parameters": PARAMETERS, "strict": True}
TOOLS = {"tools": [{"type": "function", "function": WEATHER}]}
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
BOTH = pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[CURRENT, PREVIOUS])
async def sdk(request: pytest.FixtureRequest, gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    async with running("openai_ways", request.param, gateway, key) as client:
        yield client


async def test_the_major_is_the_one_meant(sdk: Client) -> None:
    version = await sdk("installed")
    if sdk.packages == PREVIOUS:
        assert f"openai=={version}" in pins(PREVIOUS).read_text().split() and version.startswith("2.")
    else:
        assert version.startswith("3.")


@BOTH
async def test_a_stream_has_text_reason_and_usage(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5))
    *said, last, usage = await sdk("stream", ask={**ASK, "model": model, "stream_options": {"include_usage": True}})
    assert "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in said) == "Hello, world!"
    assert last["choices"][0]["finish_reason"] == "stop" and usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (20, 9)
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


@BOTH
@pytest.mark.parametrize("way", ["whole", "helper"])
async def test_an_answer_has_text_and_reason(upstream: Upstream, sdk: Client, model: str, way: str) -> None:
    answer = await sdk(way, ask={**ASK, "model": model})
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello, world!", "stop")


@BOTH
async def test_tools_go_round(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    round_ = await sdk("tools", ask={**ASK, **TOOLS, "model": model}, outputs=["sun", "rain"])
    cities = [json.loads(call["function"]["arguments"])["city"] for call in round_["calls"]]
    assert cities == ["Köln", "Oslo"]
    assert round_["answer"]["choices"][0]["message"]["content"] == "Sun and rain."
    assert len(upstream.requests) == 2


async def test_reasoning_is_there_beside_the_text(upstream: Upstream, sdk: Client) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"))
    chunks = await sdk("stream", ask={**ASK, "reasoning_effort": "low"})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Hmm"
    assert upstream.requests[0].body["reasoning_effort"] == "low"


@BOTH
async def test_responses_stream_every_step(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"))
    events = await sdk("responses_stream", ask={**INPUT, "model": model})
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello, world!"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]


@BOTH
async def test_a_whole_response_has_text_and_usage(upstream: Upstream, sdk: Client, model: str) -> None:
    response = await sdk("responses_whole", ask={**INPUT, "model": model})
    assert (response["output_text"], response["status"]) == ("Hello, world!", "completed")
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (10, 4)


@BOTH
async def test_tools_go_round_in_responses(upstream: Upstream, sdk: Client, model: str) -> None:
    upstream.queue(Plan(tool_calls=(COLOGNE,)), Plan(text=("Sun.",)))
    ask = {**INPUT, "model": model, "tools": [{"type": "function", **WEATHER}]}
    round_ = await sdk("responses_tools", ask=ask, outputs=["sun"])
    assert round_ == {"kinds": ["function_call"], "arguments": ['{"city":"Köln"}'], "text": "Sun."}


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (429, "RateLimitError", "provider_rate_limited"),
        (500, "InternalServerError", "provider_unavailable"),
        (400, "BadRequestError", None),
    ],
)
@pytest.mark.parametrize("way", ["stream", "whole"])
async def test_the_providers_errors_have_their_classes(
    upstream: Upstream, sdk: Client, status: int, kind: str, code: str | None, way: str
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(Raised) as caught:
        await sdk(way, ask=ASK)
    told = caught.value.told
    assert told["kind"] == kind and told["request_id"]
    assert code is None or told["code"] == code
    assert status != 429 or told["retry_after"] == "7"


async def test_an_error_within_the_stream_is_raised(upstream: Upstream, sdk: Client) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(Raised) as caught:
        await sdk("stream", ask=ASK)
    assert (caught.value.told["kind"], caught.value.told["code"]) == ("APIError", "provider_unavailable")


async def test_a_wrong_key_an_empty_account_and_a_full_bucket(
    upstream: Upstream, gateway: GatewayProcess, sdk: Client
) -> None:
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key="sk-wrong")
    assert (caught.value.told["kind"], caught.value.told["code"]) == ("AuthenticationError", "invalid_api_key")
    poor = await gateway.account(f"poor-{uuid.uuid4().hex[:12]}", usd="0")
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key=poor, max_retries=2)
    assert (caught.value.told["status"], caught.value.told["code"]) == (402, "credits_exhausted")
    assert not upstream.requests
    tiny = await gateway.account(f"tiny-{uuid.uuid4().hex[:12]}", tier="tiny")
    assert (await sdk("whole", ask=ASK, api_key=tiny))["choices"]
    with pytest.raises(Raised) as caught:
        await sdk("whole", ask=ASK, api_key=tiny)
    assert (caught.value.told["kind"], caught.value.told["code"]) == ("RateLimitError", "rate_limit_exceeded")
    assert 1 <= int(caught.value.told["retry_after"]) <= 50


async def test_a_provider_that_failed_once_is_tried_again_by_the_client(upstream: Upstream, sdk: Client) -> None:
    upstream.queue(Plan(status=500), Plan(status=500), Plan())  # the gateway itself asks once more
    answer = await sdk("whole", ask=ASK, max_retries=2)
    assert answer["choices"][0]["message"]["content"] == "Hello, world!" and len(upstream.requests) == 3


async def test_models_are_listed(sdk: Client) -> None:
    assert {"fast", "up/gpt-upstream"} <= set(await sdk("models"))
