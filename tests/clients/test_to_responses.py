"""The official clients of three formats talking to a provider that speaks Responses. None of them notices."""

import json
from typing import Any

import anthropic as anthropic_sdk
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
MODEL = "newer/gpt-5-upstream"
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
SEALED = "gAAAAABk+/=_-\u00e9"
REDACTED = "gAAAAABredacted=="


class Weather(BaseModel):
    """Get the weather."""

    city: str


NESTED = [pydantic_function_tool(Weather)]
FLAT: Any = [{"type": "function", **NESTED[0]["function"]}]
LOOSE: Any = [{"name": "Weather", "description": "Get the weather.", "input_schema": Weather.model_json_schema()}]
COLOGNE = ToolCall(name="Weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'))
CITIES = [{"city": "Köln"}, {"city": "Oslo"}]
THOUGHT = Plan(
    reasoning=("Hm", "m \n", "\u2028ä\U0001f914?"), signature=SEALED, redacted=REDACTED, tool_calls=(COLOGNE, OSLO)
)


def asked(upstream: Upstream) -> dict[str, Any]:
    """The latest body, which went to the right place with the gateway's own key."""
    received = upstream.requests[-1]
    assert (received.path, received.key) == ("/v1/responses", "sk-upstream")
    assert received.refused is None
    assert (received.body["stream"], received.body["store"]) == (True, False)
    body: dict[str, Any] = received.body
    return body


def check_thoughts(upstream: Upstream) -> None:
    """The reasoning that was issued came back as it was, byte for byte, in its place."""
    kinds = [item.get("type", "message") for item in asked(upstream)["input"]]
    assert kinds == ["message", "reasoning", "reasoning", *["function_call"] * 2, *["function_call_output"] * 2]
    shown, hidden = asked(upstream)["input"][1:3]
    assert (shown["encrypted_content"], hidden["encrypted_content"]) == (SEALED, REDACTED)
    assert shown["summary"] == [{"type": "summary_text", "text": "Hmm \n\u2028ä\U0001f914?"}]
    assert shown["id"] != hidden["id"] and hidden["summary"] == []


# Chat Completions


async def chat(client: AsyncOpenAI, is_streamed: bool = False, **more: Any) -> Any:
    ask: dict[str, Any] = {"model": MODEL, "messages": [USER], **more}
    if not is_streamed:
        return await client.chat.completions.create(**ask)
    async with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        return await stream.get_final_completion()


@BOTH
async def test_chat_gets_text_reason_and_usage(upstream: Upstream, client: AsyncOpenAI, is_streamed: bool) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60, cache_write=30, reasoning=20))
    answer = await chat(client, is_streamed)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello, world!", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 50, 150)
    assert usage.prompt_tokens_details.cached_tokens == 60
    assert usage.completion_tokens_details.reasoning_tokens == 20


async def test_a_chat_is_carried_over_field_by_field(upstream: Upstream, client: AsyncOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": "Hello."},
        {"role": "system", "content": "Be quick."},
        {"role": "user", "content": parts},
    ]
    await chat(client, messages=messages, max_completion_tokens=50, temperature=0.5, top_p=0.9, user="u1", seed=7)
    body = asked(upstream)
    assert body["instructions"] == "Be brief.\n\nBe kind."
    assert [item["role"] for item in body["input"]] == ["user", "assistant", "developer", "user"]
    text, inline, linked, document = body["input"][-1]["content"]
    assert text == {"type": "input_text", "text": "What is this?"}
    assert inline == {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}
    assert linked == {"type": "input_image", "image_url": "https://example.com/cat.png"}
    assert document["file_data"] == "data:application/pdf;base64,JVBERi0=" and document["filename"] == "a.pdf"
    assert (body["max_output_tokens"], body["temperature"], body["top_p"], body["user"]) == (50, 0.5, 0.9, "u1")
    assert "seed" not in body


async def test_a_chats_tools_are_described_in_the_providers_words(upstream: Upstream, client: AsyncOpenAI) -> None:
    choice = {"type": "function", "function": {"name": "Weather"}}
    for sent, expected in [(choice, {"type": "function", "name": "Weather"}), ("required", "required")]:
        await chat(client, tools=NESTED, tool_choice=sent, parallel_tool_calls=False, reasoning_effort="high")
        body = asked(upstream)
        assert (body["tool_choice"], body["parallel_tool_calls"]) == (expected, False)
        assert (body["tools"][0]["name"], body["tools"][0]["strict"]) == ("Weather", True)
        assert body["reasoning"] == {"effort": "high"}
    loose = {"type": "function", "function": {"name": "now"}}
    await chat(client, tools=[loose])
    assert asked(upstream)["tools"] == [
        {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}, "strict": False}
    ]


@BOTH
async def test_a_chat_gives_reasoning_back_with_its_calls(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(THOUGHT, Plan(text=("Sun ", "and rain.")))
    first = await chat(client, is_streamed, tools=NESTED)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.model_extra["reasoning_content"] == "Hmm \n\u2028ä\U0001f914?"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == CITIES
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in message.tool_calls]
    second = await chat(client, is_streamed, tools=NESTED, messages=[USER, message.model_dump(), *results])
    assert second.choices[0].message.content == "Sun and rain."
    check_thoughts(upstream)


async def test_a_chat_with_gaps_is_repaired(upstream: Upstream, client: AsyncOpenAI) -> None:
    call = {"id": "c" * 70, "type": "function", "function": {"name": "Weather", "arguments": '{"city":"Par'}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "Never mind."},
        {"role": "tool", "tool_call_id": "nobody", "content": "late"},
    ]
    answer = await chat(client, messages=messages, tools=NESTED)
    assert answer.choices[0].message.content == "Hello, world!"
    assert [item["type"] for item in asked(upstream)["input"]] == [
        *("message", "function_call", "function_call_output", "message")
    ]


@BOTH
async def test_a_chat_gets_refusals_and_reasons_to_end(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.plan = Plan(refusal=("I ", "will not."))
    refused = (await chat(client, is_streamed)).choices[0]
    assert (refused.message.refusal, refused.finish_reason) == ("I will not.", "stop")
    for reason in ("content_filter", "length"):
        upstream.plan = Plan(finish_reason=reason)
        assert (await chat(client)).choices[0].finish_reason == reason  # whole: the stream helper raises on these


async def test_a_chats_shape_to_answer_in_is_passed_on(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"city":', '"Oslo"}'))
    answer = await client.chat.completions.parse(model=MODEL, messages=[USER], response_format=Weather)  # type: ignore
    assert answer.choices[0].message.parsed == Weather(city="Oslo")
    wanted = asked(upstream)["text"]["format"]
    assert (wanted["type"], wanted["name"], wanted["strict"]) == ("json_schema", "Weather", True)
    assert wanted["schema"]["required"] == ["city"]


async def test_what_responses_cannot_do_is_refused_by_name(upstream: Upstream, client: AsyncOpenAI) -> None:
    wishes: dict[str, Any] = {"n": 2, "stop": ["END"], "modalities": ["audio"]}
    for param, value in wishes.items():
        with pytest.raises(sdk.BadRequestError) as caught:
            await chat(client, False, **{param: value})
        assert (caught.value.param, caught.value.code) == (param, "unsupported_value")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, sdk.BadRequestError, "provider_rejected"),
        (401, sdk.InternalServerError, "provider_unavailable"),
        (429, sdk.RateLimitError, "provider_rate_limited"),
        (500, sdk.InternalServerError, "provider_unavailable"),
        (503, sdk.InternalServerError, "provider_overloaded"),
    ],
)
@BOTH
async def test_errors_before_the_stream_are_http_errors(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, status: int, error: type[sdk.APIStatusError], code: str
) -> None:
    upstream.plan = Plan(status=status, retry_after=3)
    with pytest.raises(error) as caught:
        await chat(client, is_streamed)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("error_event", "provider_unavailable"),
        ("close", "stream_truncated"),
        ("truncate", "stream_truncated"),
        ("garbage", "provider_protocol_error"),
    ],
)
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: Upstream, client: AsyncOpenAI, fault: Any, code: str
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(model=MODEL, messages=[USER], stream=True):  # type: ignore
            said += chunk.choices[0].delta.content or ""
    assert (said, caught.value.code) == ("Hello, ", code)


@pytest.mark.parametrize(
    "bytes_fall", [{"cut": 1}, {"coalesce": True}, {"crlf": True}, {"json_instead_of_stream": True}]
)
async def test_however_the_answer_comes_it_is_the_same(
    upstream: Upstream, client: AsyncOpenAI, bytes_fall: dict[str, Any]
) -> None:
    upstream.plan = Plan(reasoning=("Grü", "ß"), text=("Hé", "llo"), tool_calls=(COLOGNE, OSLO), **bytes_fall)
    message = (await chat(client, True, tools=NESTED)).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Grüß", "Héllo")
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == CITIES


# Responses


async def respond(client: AsyncOpenAI, is_streamed: bool = False, **more: Any) -> Any:
    ask: dict[str, Any] = {"model": MODEL, "input": [USER], "store": False, **more}
    if not is_streamed:
        return await client.responses.create(**ask)
    async with client.responses.stream(**ask) as stream:
        return await stream.get_final_response()


@BOTH
async def test_a_response_gives_reasoning_back_as_it_was_issued(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(THOUGHT, Plan(text=("Sun.",)), Plan(text=("Bye.",)))
    first = await respond(client, is_streamed, tools=FLAT)
    assert [item.type for item in first.output] == [*["reasoning"] * 2, *["function_call"] * 2]
    assert first.output[0].summary[0].text == "Hmm \n\u2028ä\U0001f914?"
    items = [item.model_dump(exclude_none=True) for item in first.output]
    calls = [item["call_id"] for item in items[2:]]
    results = [{"type": "function_call_output", "call_id": call, "output": "sun"} for call in calls]
    second = await respond(client, is_streamed, tools=FLAT, input=[USER, *items, *results])
    assert second.output_text == "Sun."
    check_thoughts(upstream)
    lost = [{name: value for name, value in item.items() if name != "encrypted_content"} for item in items]
    assert (await respond(client, tools=FLAT, input=[USER, *lost, *results])).output_text == "Bye."
    assert "reasoning" not in [item.get("type") for item in asked(upstream)["input"]]


async def test_reasoning_of_a_stored_response_is_given_back_too(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.queue(THOUGHT, Plan(text=("Sun.",)))
    first = await respond(client, tools=FLAT, store=True)
    calls = [item.call_id for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call, "output": "sun"} for call in calls]
    second = await respond(client, tools=FLAT, input=results, previous_response_id=first.id)
    assert second.output_text == "Sun."
    check_thoughts(upstream)


async def test_a_response_asks_for_all_that_the_client_asked(upstream: Upstream, client: AsyncOpenAI) -> None:
    wishes = {"truncation": "auto", "metadata": {"a": "b"}, "text": {"verbosity": "low"}, "x_vendor": {"new": [1.50]}}
    await respond(client, extra_body=wishes, instructions="Be brief.", reasoning={"effort": "low", "summary": "auto"})
    body = asked(upstream)
    assert {name: body[name] for name in wishes} == wishes
    assert (body["instructions"], body["reasoning"]) == ("Be brief.", {"effort": "low", "summary": "auto"})
    assert (body["input"], body["include"]) == ([USER], ["reasoning.encrypted_content"])


async def test_encrypted_reasoning_is_not_asked_of_models_without(upstream: Upstream, client: AsyncOpenAI) -> None:
    assert (await respond(client, model="newer/gpt-4o")).output_text == "Hello, world!"
    assert "include" not in asked(upstream)


@BOTH
async def test_a_response_has_refusals_usage_and_its_end(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.plan = Plan(text=("So:",), refusal=("No.",), usage=Usage(input=20, output=9, cache_read=5, reasoning=3))
    response = await respond(client, is_streamed)
    assert [part.type for part in response.output[0].content] == ["output_text", "refusal"]
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (20, 5)
    assert response.usage.output_tokens_details.reasoning_tokens == 3


async def test_a_response_that_broke_off_is_an_error(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(sdk.APIError, match="status 500"):
        await respond(client, True)


# Messages


async def say(claude: AsyncAnthropic, is_streamed: bool = False, **more: Any) -> Any:
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 4000, "messages": [USER], **more}
    if not is_streamed:
        return await claude.messages.create(**ask)
    async with claude.messages.stream(**ask) as stream:
        return await stream.get_final_message()


@BOTH
async def test_a_message_gives_thinking_back_with_its_calls(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    thinking = {"type": "enabled", "budget_tokens": 2048}
    upstream.queue(THOUGHT, Plan(text=("Sun.",)))
    first = await say(claude, is_streamed, tools=LOOSE, thinking=thinking, system="Be brief.")
    assert [block.type for block in first.content] == ["thinking", "redacted_thinking", "tool_use", "tool_use"]
    assert [block.input for block in first.content[2:]] == CITIES and first.stop_reason == "tool_use"
    body = asked(upstream)
    assert body["instructions"] == "Be brief." and body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert (body["tools"][0]["name"], body["tools"][0]["strict"]) == ("Weather", False)
    blocks = [{"type": "tool_result", "tool_use_id": block.id, "content": "sun"} for block in first.content[2:]]
    turns = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": blocks}]
    second = await say(claude, is_streamed, tools=LOOSE, thinking=thinking, messages=turns)
    assert ([block.text for block in second.content], second.stop_reason) == (["Sun."], "end_turn")
    check_thoughts(upstream)


@BOTH
async def test_a_message_has_usage_without_what_was_cached(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5, reasoning=3), finish_reason="length")
    message = await say(claude, is_streamed)
    usage = message.usage
    assert message.stop_reason == "max_tokens"
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (15, 5, 9)


async def test_pictures_in_results_stay_in_results(upstream: Upstream, claude: AsyncAnthropic) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    called = {"type": "tool_use", "id": "toolu_1", "name": "Weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "noon"}, picture]}
    turns = [USER, {"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
    await say(claude, tools=LOOSE, messages=turns)
    assert asked(upstream)["input"][-1]["output"] == [
        {"type": "input_text", "text": "noon"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
    ]


async def test_stop_sequences_are_refused(upstream: Upstream, claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic_sdk.BadRequestError, match="stop sequences"):
        await say(claude, stop_sequences=["END"])
    assert upstream.requests == []
