"""Anthropic's own SDK reads what the simulated provider says."""

from typing import Any

import anthropic as sdk
import httpx
import pytest
from anthropic import AsyncAnthropic

from . import Plan, ToolCall, Upstream, Usage

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude-upstream", "max_tokens": 2048, "messages": [USER]}
THINK = {"type": "enabled", "budget_tokens": 1024}
TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
WEATHER = ToolCall(name="weather", arguments=("", '{"city":', '"Köln"}'))
CALLED = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sun"}]}


async def final(client: AsyncAnthropic, **more: Any) -> Any:
    async with client.messages.stream(**ASK | more) as stream:
        return await stream.get_final_message()


async def test_whole_and_streamed_answers_agree(upstream: Upstream, anthropic: AsyncAnthropic) -> None:
    upstream.plan = Plan(
        reasoning=("Let me", " think"), redacted="b64", text=("So", ":"), tool_calls=(WEATHER, ToolCall(name="weather"))
    )
    whole = await anthropic.messages.create(**ASK, tools=TOOLS)
    streamed = await final(anthropic, tools=TOOLS)
    for answer in (whole, streamed):
        kinds = [block.type for block in answer.content]
        assert kinds == ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"]
        assert answer.content[0].thinking == "Let me think" and len(answer.content[0].signature) == 88
        assert answer.content[3].input == {"city": "Köln"}
        assert answer.content[3].id != answer.content[4].id
        assert answer.stop_reason == "tool_use"
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 9)
    assert upstream.delivered[0] == upstream.delivered[1]


async def test_bytes_of_a_stream_are_named_events_in_order(upstream: Upstream) -> None:
    headers = {"x-api-key": "sk", "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(headers=headers) as client:
        answer = await client.post(f"{upstream.base_url}/v1/messages", json=ASK | {"stream": True, "temperature": 1})
    names = [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event: ")]
    deltas = ["content_block_delta"] * 4
    assert names == [
        *("message_start", "ping", "content_block_start", *deltas, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert '"stop_reason":null' in answer.text.split("\n\n")[0]


async def test_usage_is_cumulative_and_leaves_cached_input_out(upstream: Upstream, anthropic: AsyncAnthropic) -> None:
    upstream.plan = Plan(usage=Usage(input=100, cache_read=60, cache_write=30, output=42, reasoning=7))
    events = [event async for event in await anthropic.messages.create(**ASK, stream=True)]
    start, delta = events[0], events[-2]
    assert start.type == "message_start" and delta.type == "message_delta"
    assert (start.message.usage.input_tokens, start.message.usage.output_tokens) == (10, 1)
    assert (delta.usage.input_tokens, delta.usage.output_tokens) == (10, 42)
    assert (delta.usage.cache_read_input_tokens, delta.usage.cache_creation_input_tokens) == (60, 30)
    assert delta.usage.output_tokens_details is not None and delta.usage.output_tokens_details.thinking_tokens == 7


async def test_reasons_to_stop_are_translated(upstream: Upstream, anthropic: AsyncAnthropic) -> None:
    orders = [Plan(finish_reason="length"), Plan(refusal=("No.",)), Plan(finish_reason="stop_sequence"), Plan()]
    upstream.queue(*orders, Plan(obey_max_tokens=True, endless=True))
    answers = [await final(anthropic, stop_sequences=["END"]) for _ in orders]
    assert [answer.stop_reason for answer in answers] == ["max_tokens", "refusal", "stop_sequence", "end_turn"]
    assert answers[2].stop_sequence == "END"
    short = await final(anthropic, max_tokens=3)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)


async def test_thinking_comes_back_only_as_it_was_signed(upstream: Upstream, anthropic: AsyncAnthropic) -> None:
    upstream.plan = Plan(reasoning=("Hm",), redacted="b64", tool_calls=(WEATHER,))
    answer = await final(anthropic, tools=TOOLS, thinking=THINK)
    blocks = [block.model_dump(exclude_none=True, include={*type(block).model_fields}) for block in answer.content]
    result = {"type": "tool_result", "tool_use_id": blocks[-1]["id"], "content": "sun"}

    async def reply(content: list[dict[str, Any]]) -> Any:
        turns = [USER, {"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
        return await anthropic.messages.create(**ASK | {"messages": turns}, tools=TOOLS, thinking=THINK)

    assert (await reply(blocks)).stop_reason == "tool_use"
    with pytest.raises(sdk.BadRequestError, match="Expected `thinking`"):
        await reply(blocks[2:])
    with pytest.raises(sdk.BadRequestError, match="Invalid `signature`"):
        await reply([blocks[0] | {"thinking": "changed"}, *blocks[1:]])
    with pytest.raises(sdk.BadRequestError, match="Invalid `signature`"):
        await reply([blocks[0] | {"signature": "bWluZQ=="}, *blocks[1:]])
    with pytest.raises(sdk.BadRequestError, match="Invalid `data`"):
        await reply([blocks[0], blocks[1] | {"data": "other"}, blocks[2]])


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, sdk.BadRequestError, "invalid_request_error"),
        (401, sdk.AuthenticationError, "authentication_error"),
        (429, sdk.RateLimitError, "rate_limit_error"),
        (500, sdk.InternalServerError, "api_error"),
        (529, sdk.APIStatusError, "overloaded_error"),
    ],
)
async def test_ordered_statuses_come_in_the_envelope(
    upstream: Upstream, anthropic: AsyncAnthropic, status: int, error: type[sdk.APIStatusError], kind: str
) -> None:
    upstream.plan = Plan(status=status, retry_after=7, headers={"x-should-retry": "false"})
    with pytest.raises(error) as caught:
        await anthropic.messages.create(**ASK, stream=True)
    assert caught.value.status_code == status and caught.value.response.headers["retry-after"] == "7"
    assert caught.value.body["error"]["type"] == kind  # type: ignore[index]
    assert caught.value.request_id == "req_000000000000000000000001"


async def test_an_error_within_a_stream_is_raised_by_the_sdk(upstream: Upstream, anthropic: AsyncAnthropic) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(sdk.APIStatusError) as caught:
        await final(anthropic)
    assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")


EMPTY = {"type": "text", "text": ""}
TWICE = [{"type": "text", "text": "so"}, *RESULT["content"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": [{"role": "user", "content": [EMPTY]}]}, "must be non-empty"),
        ({"messages": [{"role": "user", "content": ""}]}, "non-empty content"),
        ({"messages": [USER, CALLED]}, "without `tool_result`"),
        ({"messages": [USER, CALLED, USER, RESULT]}, "without `tool_result`"),
        ({"messages": [USER, CALLED, {"role": "user", "content": TWICE}]}, "without `tool_result`"),
        ({"messages": [USER, RESULT]}, "unexpected `tool_use_id`"),
        ({"messages": [USER, {"role": "assistant", "content": [CALLED["content"][0] | {"id": "a.b"}]}]}, "pattern"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [USER | {"name": "x"}]}, "messages.0.name: Extra inputs"),
        ({"thinking": THINK | {"budget_tokens": 100}}, "greater than or equal to 1024"),
        ({"thinking": THINK | {"budget_tokens": 2048}}, "must be greater than"),
        ({"tools": [{"name": "weather"}]}, "input_schema: Field required"),
        ({"tool_choice": {"type": "any"}}, "while providing tools"),
        ({"temperature": 0.5}, "temperature: Extra inputs"),
        ({"n": 1}, "n: Extra inputs"),
    ],
)
async def test_bad_requests_are_refused(
    upstream: Upstream, anthropic: AsyncAnthropic, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(sdk.BadRequestError, match=message):
        await anthropic.messages.create(**ASK, extra_body=change)
    assert upstream.requests[0].refused


async def test_turns_of_one_role_are_merged(anthropic: AsyncAnthropic) -> None:
    answer = await anthropic.messages.create(**ASK | {"messages": [USER, CALLED, RESULT, USER]}, tools=TOOLS)
    assert answer.stop_reason == "end_turn"


async def test_key_and_version_headers_are_needed(upstream: Upstream) -> None:
    async with httpx.AsyncClient(base_url=upstream.base_url) as client:
        version = {"anthropic-version": "2026-10-21"}
        keyless = await client.post("/v1/messages", json=ASK, headers=version)
        versionless = await client.post("/v1/messages", json=ASK, headers={"x-api-key": "sk"})
        bearer = await client.post("/v1/messages", json=ASK, headers={"authorization": "Bearer sk", **version})
    assert (keyless.status_code, keyless.json()["error"]["type"]) == (401, "authentication_error")
    assert (versionless.status_code, versionless.json()["error"]["type"]) == (400, "invalid_request_error")
    assert bearer.status_code == 200


async def test_models_are_listed(anthropic: AsyncAnthropic) -> None:
    assert [model.id async for model in anthropic.models.list()] == ["gpt-upstream", "claude-upstream"]
