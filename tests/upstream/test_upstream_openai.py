"""OpenAI's own SDK reads what the simulated provider says."""

import json
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI

from . import Plan, ToolCall, Upstream, Usage

ASK: dict[str, Any] = {"model": "gpt-upstream", "messages": [{"role": "user", "content": "Hi"}]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
WEATHER = ToolCall(name="weather", arguments=('{"city":', '"Köln"}'))


async def chunks(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**ASK, **more, stream=True)]


async def test_a_whole_answer_holds_text_and_usage(upstream: Upstream, openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)
    assert upstream.delivered == [["Hello", ", ", "world", "!"]]


async def test_a_stream_has_the_role_once_and_usage_only_on_request(upstream: Upstream, openai: AsyncOpenAI) -> None:
    plain = await chunks(openai)
    assert [chunk.choices[0].delta.role for chunk in plain] == ["assistant", None, None, None, None, None]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == "Hello, world!"
    assert all("usage" not in chunk.model_fields_set for chunk in plain)
    counted = await chunks(openai, stream_options={"include_usage": True})
    assert len({chunk.id for chunk in counted}) == 1
    assert [chunk.usage for chunk in counted[:-1]] == [None] * 6
    assert all("usage" in chunk.model_fields_set for chunk in counted)
    assert counted[-1].choices == [] and counted[-1].usage.completion_tokens == 4


async def test_bytes_of_a_stream_are_data_lines_and_end_with_done(upstream: Upstream) -> None:
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk"}) as client:
        answer = await client.post(f"{upstream.openai_url}/chat/completions", json=ASK | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = answer.text.split("\n\n")
    assert end == "" and events[-1] == "data: [DONE]" and len(events) == 7
    first, last = (json.loads(events[i].removeprefix("data: ")) for i in (0, -2))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


async def test_the_stream_helper_puts_parallel_calls_together(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(
        text=("Let me see.",), tool_calls=(WEATHER, ToolCall(name="weather", arguments=(), id="call_x"))
    )
    async with openai.chat.completions.stream(**ASK, tools=TOOLS) as stream:  # type: ignore[arg-type]
        answer = await stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.arguments for call in calls] == ['{"city":"Köln"}', ""]
    assert calls[1].id == "call_x" and calls[0].id.startswith("call_")
    assert answer.choices[0].finish_reason == "tool_calls"
    whole = await openai.chat.completions.create(**ASK, tools=TOOLS)
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city":"Köln"}'


async def test_reasoning_refusals_and_choices_are_said(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.queue(Plan(reasoning=("Hm", "m"), reasoning_field="reasoning"), Plan(refusal=("No", ".")), Plan())
    thought = await chunks(openai, stream_options={"include_usage": True})
    assert [chunk.choices[0].delta.reasoning for chunk in thought[1:3]] == ["Hm", "m"]
    assert thought[-1].usage.completion_tokens_details.reasoning_tokens == 2
    refused = await openai.chat.completions.create(**ASK)
    assert (refused.choices[0].message.refusal, refused.choices[0].message.content) == ("No.", None)
    both = await chunks(openai, n=2)
    for index in range(2):
        said = [chunk.choices[0].delta.content or "" for chunk in both if chunk.choices[0].index == index]
        assert "".join(said) == "Hello, world!"


async def test_quirks_are_there_when_ordered(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.queue(
        Plan(tool_calls=(WEATHER,), whole_tool_call=True, no_tool_index=True, finish_stop_with_tools=True),
        Plan(role_on_every_chunk=True, usage_in_choices_chunk=True),
        Plan(usage_on_every_chunk=True, usage=Usage(output=50, reasoning=20), output_excludes_reasoning=True),
        Plan(obey_max_tokens=True, endless=True),
    )
    called = await chunks(openai)
    assert called[1].choices[0].delta.tool_calls[0].function.arguments == '{"city":"Köln"}'
    assert called[1].choices[0].delta.tool_calls[0].index is None and called[-1].choices[0].finish_reason == "stop"
    roles = await chunks(openai)
    assert {chunk.choices[0].delta.role for chunk in roles} == {"assistant"}
    assert roles[-1].choices[0].finish_reason == "stop" and roles[-1].usage.total_tokens == 14
    counted = await chunks(openai)
    assert [chunk.usage.completion_tokens for chunk in counted] == [30] * 6 and counted[-1].usage.total_tokens == 60
    short = await chunks(openai, max_tokens=3)
    assert len(short) == 5 and short[-1].choices[0].finish_reason == "length"


async def test_a_server_may_ignore_that_a_stream_was_asked(upstream: Upstream) -> None:
    upstream.plan = Plan(json_instead_of_stream=True)
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk"}) as client:
        answer = await client.post(f"{upstream.openai_url}/chat/completions", json=ASK | {"stream": True})
    assert answer.json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, sdk.BadRequestError, None),
        (401, sdk.AuthenticationError, "invalid_api_key"),
        (404, sdk.NotFoundError, "model_not_found"),
        (429, sdk.RateLimitError, "rate_limit_exceeded"),
        (500, sdk.InternalServerError, None),
        (503, sdk.InternalServerError, "server_is_overloaded"),
    ],
)
async def test_ordered_statuses_come_in_the_envelope(
    upstream: Upstream, openai: AsyncOpenAI, status: int, error: type[sdk.APIStatusError], code: str | None
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(error) as caught:
        await openai.chat.completions.create(**ASK, stream=True)
    assert caught.value.code == code and caught.value.response.headers["retry-after"] == "7"
    assert caught.value.request_id == "req_000000000000000000000001"


async def test_an_error_within_a_stream_is_raised_by_the_sdk(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(sdk.APIError, match="The server had an error") as caught:
        await chunks(openai)
    assert caught.value.type == "server_error"
    assert upstream.delivered == [["Hello", ", "]]


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sun"}
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [USER, CALLED, USER]}, "call_1"),
        ({"messages": [USER, CALLED]}, "did not have response messages"),
        ({"messages": [USER, RESULT]}, "preceeding message"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "expected a string, got null"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "non-empty array"),
        ({"messages": []}, "empty array"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model parameter"),
        ({"temperature": 3}, "temperature"),
        ({"stream_options": {"include_usage": True}}, "only allowed when 'stream'"),
        ({"tool_choice": "required"}, "when 'tools' are specified"),
        ({"tools": []}, "too short"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "expected"),
    ],
)
async def test_bad_requests_are_refused_and_take_no_plan(
    upstream: Upstream, openai: AsyncOpenAI, change: dict[str, Any], message: str
) -> None:
    upstream.queue(Plan(text=("ordered",)))
    with pytest.raises(sdk.BadRequestError, match=message):
        await openai.chat.completions.create(**ASK, extra_body=change)
    assert upstream.requests[0].refused and upstream.requests[0].status == 400
    answer = await openai.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "ordered"


async def test_an_answered_call_is_accepted(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(model="m", messages=[USER, CALLED, RESULT], tools=TOOLS)  # type: ignore
    assert answer.choices[0].finish_reason == "stop"


async def test_keys_and_unknown_fields_are_checked_where_wanted() -> None:
    async with (
        Upstream(api_key="sk-right", strict_fields=True) as upstream,
        httpx.AsyncClient(base_url=upstream.openai_url) as client,
    ):
        missing = await client.post("/chat/completions", json=ASK)
        wrong = await client.post("/chat/completions", json=ASK, headers={"authorization": "Bearer sk-wrong"})
        client.headers["authorization"] = "Bearer sk-right"
        unknown = await client.post("/chat/completions", json=ASK | {"top_k": 3})
        right = await client.post("/chat/completions", json=ASK)
    assert (missing.status_code, missing.json()["error"]["code"]) == (401, None)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")
    assert right.status_code == 200


async def test_models_are_listed(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.for_model("gpt-special", Plan(text=("special",)))
    assert [model.id async for model in openai.models.list()] == ["gpt-upstream", "claude-upstream", "gpt-special"]
    answer = await openai.chat.completions.create(**ASK | {"model": "gpt-special"})
    assert answer.choices[0].message.content == "special"
