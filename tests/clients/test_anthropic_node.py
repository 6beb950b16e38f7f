"""Anthropic's own JavaScript client against a running gateway, with providers of both formats behind it."""

from typing import Any

import pytest

from tests.clients.scripts import needs, run
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs("@anthropic-ai/sdk"),
]

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude/claude-upstream", "max_tokens": 4000, "messages": [USER]}
THINKING = {"type": "enabled", "budget_tokens": 2000}
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
BOTH = pytest.mark.parametrize("model", ["claude/claude-upstream", "up/gpt-upstream"])
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))


class AnthropicNode:
    """@anthropic-ai/sdk with a key."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._target = {"baseURL": gateway.base_url, "apiKey": key}

    async def __call__(
        self, way: str, *, ask: dict[str, Any] | None = None, key: str | None = None, **more: Any
    ) -> Any:
        target = self._target | ({"apiKey": key} if key else {})
        asked = {**ASK, **more} if ask is None else ask
        return await run("anthropic_client.mjs", **target, way=way, ask=asked)


@pytest.fixture
def node(gateway: GatewayProcess, key: str) -> AnthropicNode:
    return AnthropicNode(gateway, key)


@BOTH
async def test_it_streams(upstream: Upstream, node: AnthropicNode, model: str) -> None:
    events = (await node("stream", model=model))["events"]
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    text = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    assert text == "Hello, world!"
    assert events[-2]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("way", ["whole", "helper"])
@BOTH
async def test_messages_have_thinking_and_calls(upstream: Upstream, node: AnthropicNode, model: str, way: str) -> None:
    upstream.plan = Plan(reasoning=("Hm.",), text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    message = (await node(way, model=model, tools=[TOOL], thinking=THINKING))["message"]
    assert message["stop_reason"] == "tool_use"
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in message["content"][2:]] == [{"city": "Köln"}, {"city": "Oslo"}]


@BOTH
async def test_thinking_and_results_go_round(upstream: Upstream, node: AnthropicNode, model: str) -> None:
    upstream.plan = Plan(reasoning=("Hm.\u2028",), tool_calls=(COLOGNE,))
    message = (await node("helper", model=model, tools=[TOOL], thinking=THINKING))["message"]
    call = message["content"][1]["id"]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": "sunny"}]}
    turns = [USER, {"role": "assistant", "content": message["content"]}, result]
    upstream.plan = Plan()
    answer = await node("helper", model=model, tools=[TOOL], thinking=THINKING, messages=turns)
    assert answer["message"]["stop_reason"] == "end_turn"


@BOTH
async def test_a_cut_says_why(upstream: Upstream, gateway: GatewayProcess, node: AnthropicNode, model: str) -> None:
    upstream.plan = Plan(text=(" one", " two"), endless=True)
    key = await gateway.account(f"poor-{model.replace('/', '-')}", usd="0.0005")
    *_, ending, _ = (await node("stream", model=model, key=key))["events"]
    assert ending["delta"]["stop_reason"] == "max_tokens"
    assert ending["x_gateway"]["reason"] == "credits_exhausted"


@BOTH
@pytest.mark.parametrize("way", ["stream", "helper"])
async def test_an_error_within_the_stream_is_thrown(
    upstream: Upstream, node: AnthropicNode, model: str, way: str
) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    told = await node(way, model=model)
    assert told["error"]["kind"] in ("APIError", "AnthropicError")
    assert told["error"]["body"]["error"]["details"]["error_code"] == "stream_truncated"


async def test_errors_before_the_stream_have_their_class(upstream: Upstream, node: AnthropicNode) -> None:
    wrong = (await node("whole", key="sk-wrong"))["error"]
    assert (wrong["kind"], wrong["status"]) == ("AuthenticationError", 401) and wrong["requestID"]
    missing = (await node("whole", model="nope"))["error"]
    assert (missing["kind"], missing["body"]["error"]["type"]) == ("NotFoundError", "not_found_error")


async def test_it_retries_what_may_succeed(upstream: Upstream, node: AnthropicNode) -> None:
    upstream.queue(Plan(status=529), Plan(status=529), Plan())  # the gateway itself asks once more
    told = await node("retrying")
    assert told["requests"] == 2 and told["message"]["content"][0]["text"] == "Hello, world!"


async def test_tokens_are_counted_and_models_listed(upstream: Upstream, node: AnthropicNode) -> None:
    counted = (await node("count", ask={"model": "fast", "messages": [USER]}))["count"]
    assert counted["input_tokens"] > 0
    told = await node("models", model="up/family/large")
    assert told["listed"] == sorted(told["listed"]) and "fast" in told["listed"]
    assert told["one"]["id"] == "up/family/large"
