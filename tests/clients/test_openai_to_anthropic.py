"""OpenAI's own client talking to a provider that speaks Anthropic Messages. Neither of the two notices."""

import json
from typing import Any

import openai as sdk
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude/claude-upstream", "messages": [USER]}
WITH_USAGE = {"stream_options": {"include_usage": True}}
EPHEMERAL = {"type": "ephemeral"}
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])


class Weather(BaseModel):
    """Get the weather."""

    city: str


TOOLS = [pydantic_function_tool(Weather)]
COLOGNE = ToolCall(name="Weather", arguments=("", '{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'))


async def ask(client: AsyncOpenAI, is_streamed: bool = False, **more: Any) -> Any:
    """One answer, through the stream helper or whole."""
    if not is_streamed:
        return await client.chat.completions.create(**{**ASK, **more})
    async with client.chat.completions.stream(**{**ASK, **WITH_USAGE, **more}) as stream:
        return await stream.get_final_completion()


async def chunks(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**{**ASK, **more}, stream=True)]


def results(message: Any, *contents: str) -> list[dict[str, Any]]:
    """A result for each call of ``message``."""
    calls = message.tool_calls
    pairs = zip(calls, contents, strict=True)
    return [{"role": "tool", "tool_call_id": call.id, "content": content} for call, content in pairs]


async def test_text_streams_as_chunks_of_one_regular_answer(upstream: Upstream, client: AsyncOpenAI) -> None:
    stream = await chunks(client)
    assert [chunk.choices[0].delta.role for chunk in stream] == ["assistant", *[None] * 5]
    assert [chunk.choices[0].delta.content for chunk in stream[1:-1]] == ["Hello", ", ", "world", "!"]
    assert [chunk.choices[0].finish_reason for chunk in stream] == [*[None] * 5, "stop"]
    assert len({(chunk.id, chunk.model, chunk.created) for chunk in stream}) == 1
    assert stream[0].model == "claude-upstream" and stream[0].object == "chat.completion.chunk"


@BOTH
async def test_a_message_has_text_reason_and_usage(upstream: Upstream, client: AsyncOpenAI, is_streamed: bool) -> None:
    answer = await ask(client, is_streamed)
    message = answer.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "Hello, world!", None)
    assert message.tool_calls is None and answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)
    received = upstream.requests[0]
    assert received.path == "/v1/messages" and received.key == "sk-upstream"
    assert received.body["model"] == "claude-upstream" and received.body["stream"] is True


async def test_the_request_is_carried_over_field_by_field(upstream: Upstream, client: AsyncOpenAI) -> None:
    await ask(client, max_completion_tokens=50, temperature=0.5, top_p=0.9, stop=["END"], user="u1", seed=7)
    body = upstream.requests[0].body
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (50, 0.5, 0.9)
    assert (body["stop_sequences"], body["metadata"]) == (["END"], {"user_id": "u1"})
    assert "seed" not in body


async def test_an_answer_without_a_bound_gets_one(upstream: Upstream, client: AsyncOpenAI) -> None:
    await ask(client)
    assert upstream.requests[0].body["max_tokens"] == 8192


async def test_system_messages_are_gathered_from_wherever_they_stand(upstream: Upstream, client: AsyncOpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "Hello."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "How are you?"},
        {"role": "user", "content": "Well?"},
    ]
    await ask(client, messages=messages)
    body = upstream.requests[0].body
    assert body["system"] == "Be brief.\n\nBe kind."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert [block["text"] for block in body["messages"][2]["content"]] == ["How are you?", "Well?"]


async def test_images_and_documents_are_carried_over(upstream: Upstream, client: AsyncOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]
    await ask(client, messages=[{"role": "user", "content": parts}])
    text, inline, linked, document = upstream.requests[0].body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert inline["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert linked["source"] == {"type": "url", "url": "https://example.com/cat.png"}
    assert document["source"] == {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}


async def test_cache_markers_on_parts_and_tools_reach_the_provider(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=5, cache_read=60, cache_write=30, reasoning=0))
    marked = {"type": "text", "text": "A long text.", "cache_control": EPHEMERAL}
    tool = {"type": "function", "function": {"name": "now"}, "cache_control": EPHEMERAL}
    messages = [{"role": "system", "content": [marked]}, {"role": "user", "content": [marked]}]
    answer = await ask(client, messages=messages, tools=[tool])
    body = upstream.requests[0].body
    assert body["system"] == [marked]
    assert body["messages"][0]["content"] == [marked]
    assert body["tools"][0]["cache_control"] == EPHEMERAL
    assert answer.usage.prompt_tokens == 100
    assert answer.usage.prompt_tokens_details.cached_tokens == 60


@BOTH
async def test_usage_includes_what_was_cached_and_thought(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60, cache_write=30, reasoning=20))
    usage = (await ask(client, is_streamed)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 50, 150)
    assert usage.prompt_tokens_details.cached_tokens == 60
    assert usage.prompt_tokens_details.cache_write_tokens == 30
    assert usage.completion_tokens_details.reasoning_tokens == 20


async def test_usage_comes_only_where_it_is_asked_for(upstream: Upstream, client: AsyncOpenAI) -> None:
    assert all(chunk.choices and chunk.usage is None for chunk in await chunks(client))
    stream = await chunks(client, **WITH_USAGE)
    assert [chunk.usage for chunk in stream[:-1]] == [None] * 6
    assert stream[-1].choices == [] and stream[-1].usage.total_tokens == 14


async def test_tools_are_described_to_the_provider_in_its_own_words(upstream: Upstream, client: AsyncOpenAI) -> None:
    choice = {"type": "function", "function": {"name": "Weather"}}
    for sent, expected in [
        (choice, {"type": "tool", "name": "Weather"}),
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
    ]:
        await ask(client, tools=TOOLS, tool_choice=sent)
        body = upstream.requests[-1].body
        assert body["tool_choice"] == expected
        assert (body["tools"][0]["name"], body["tools"][0]["description"]) == ("Weather", "Get the weather.")
        assert body["tools"][0]["input_schema"]["required"] == ["city"]
    await ask(client, tools=TOOLS, parallel_tool_calls=False)
    assert upstream.requests[-1].body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


@BOTH
async def test_parallel_calls_and_their_results_go_round(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    first = await ask(client, is_streamed, tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and message.content == "Let me see."
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Köln"}, {"city": "Oslo"}]
    rain, sun = reversed(results(message, "sun", "rain"))
    second = await ask(client, is_streamed, tools=TOOLS, messages=[USER, message.model_dump(), rain, sun])
    assert second.choices[0].message.content == "Sun and rain."
    _, called, answered = upstream.requests[1].body["messages"]
    assert [block["type"] for block in called["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in called["content"][1:]] == [{"city": "Köln"}, {"city": "Oslo"}]
    assert [block["tool_use_id"] for block in answered["content"]] == [call.id for call in message.tool_calls]
    assert [block["content"][0]["text"] for block in answered["content"]] == ["sun", "rain"]


async def test_fragments_of_calls_are_numbered_from_zero_and_named_once(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(text=("Hm.",), tool_calls=(COLOGNE, OSLO))
    deltas = [chunk.choices[0].delta for chunk in await chunks(client, tools=TOOLS)]
    fragments = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.index for call in fragments if call.id] == [0, 1]
    assert [call.function.name for call in fragments if call.function.name] == ["Weather", "Weather"]
    for index, arguments in ((0, '{"city":"Köln"}'), (1, '{"city":"Oslo"}')):
        assert "".join(call.function.arguments for call in fragments if call.index == index) == arguments


async def test_a_history_that_anthropic_would_refuse_is_repaired(upstream: Upstream, client: AsyncOpenAI) -> None:
    call = {"id": "call:1", "type": "function", "function": {"name": "Weather", "arguments": '{"city":"Par'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "Never mind."},
        {"role": "tool", "tool_call_id": "nobody", "content": "late"},
    ]
    answer = await ask(client, messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "Hello, world!"


THINKING: dict[str, Any] = {"reasoning_effort": "low", "tools": TOOLS}


async def test_thinking_streams_as_reasoning_and_its_signature_as_a_detail(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m, ", "ä?"), signature="c2lnbmVk")
    deltas = [chunk.choices[0].delta for chunk in await chunks(client, **THINKING)]
    extras = [delta.model_extra or {} for delta in deltas]
    assert [extra["reasoning_content"] for extra in extras if "reasoning_content" in extra] == ["Hm", "m, ", "ä?"]
    details = [detail for extra in extras for detail in extra.get("reasoning_details", ())]
    assert details == [{"type": "reasoning.text", "text": "Hmm, ä?", "signature": "c2lnbmVk", "index": 0}]
    assert upstream.requests[0].body["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert upstream.requests[0].body["max_tokens"] == 8192 + 2048


@BOTH
@pytest.mark.parametrize("redacted", ["", "UmVkYWN0ZWQ="])
@pytest.mark.parametrize("reasoning", [("Hm", "m \n", "\u2028ä\U0001f914?"), ()])
async def test_thinking_comes_back_to_its_provider_as_it_was(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, redacted: str, reasoning: tuple[str, ...]
) -> None:
    # The provider refuses any thinking that it did not sign, so an answer to the second turn is proof.
    upstream.queue(
        Plan(reasoning=reasoning, redacted=redacted, text=("So:",), tool_calls=(COLOGNE,)), Plan(text=("Sun.",))
    )
    message = (await ask(client, is_streamed, **THINKING)).choices[0].message
    history = [USER, message.model_dump(), *results(message, "sun")]
    second = await ask(client, is_streamed, messages=history, **THINKING)
    assert second.choices[0].message.content == "Sun."
    blocks = upstream.requests[1].body["messages"][1]["content"]
    kinds = ["thinking"] * bool(reasoning) + ["redacted_thinking"] * bool(redacted)
    assert [block["type"] for block in blocks] == [*kinds, "text", "tool_use"]
    assert ("thinking" in upstream.requests[1].body) is bool(kinds)
    if reasoning:
        assert blocks[0]["thinking"] == "".join(reasoning)
    if redacted:
        assert blocks[-3]["data"] == redacted


async def test_a_client_that_loses_the_details_is_answered_without_thinking(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.queue(Plan(reasoning=("Hm.",), tool_calls=(COLOGNE,)), Plan(text=("Sun.",)), Plan(text=("Bye.",)))
    message = (await ask(client, True, **THINKING)).choices[0].message
    lossy = message.model_dump(exclude={"reasoning_details"})
    history = [USER, lossy, *results(message, "sun")]
    assert (await ask(client, messages=history, **THINKING)).choices[0].message.content == "Sun."
    assert "thinking" not in upstream.requests[1].body
    closed = [*history, {"role": "assistant", "content": "Sun."}, {"role": "user", "content": "Bye!"}]
    assert (await ask(client, messages=closed, **THINKING)).choices[0].message.content == "Bye."
    assert upstream.requests[2].body["thinking"] == {"type": "enabled", "budget_tokens": 2048}


async def test_anthropics_own_thinking_object_passes(upstream: Upstream, client: AsyncOpenAI) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1500}
    await ask(client, extra_body={"thinking": thinking}, max_tokens=3000)
    assert upstream.requests[0].body["thinking"] == thinking
    assert upstream.requests[0].body["max_tokens"] == 3000


@BOTH
@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("stop", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("length", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filter", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_stop_reasons_are_translated(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, stop_reason: str, finish_reason: str
) -> None:
    upstream.plan = Plan(finish_reason=stop_reason)
    if is_streamed:
        reason = (await chunks(client))[-1].choices[0].finish_reason
    else:
        reason = (await ask(client)).choices[0].finish_reason
    assert reason == finish_reason


async def test_a_refusal_ends_for_its_content(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=(), refusal=("I ", "will not."))
    answer = await ask(client)
    assert answer.choices[0].finish_reason == "content_filter"
    assert answer.choices[0].message.content == "I will not."
    upstream.plan = Plan(text=(), finish_reason="content_filter")
    stream = await chunks(client)
    assert [chunk.choices[0].finish_reason for chunk in stream] == [None, "content_filter"]


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, sdk.InternalServerError, "provider_unavailable"),
        (429, sdk.RateLimitError, "provider_rate_limited"),
        (500, sdk.InternalServerError, "provider_unavailable"),
        (529, sdk.InternalServerError, "provider_overloaded"),
    ],
)
@BOTH
async def test_errors_before_the_stream_are_http_errors(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool, status: int, error: type[sdk.APIStatusError], code: str
) -> None:
    upstream.plan = Plan(status=status, retry_after=3)
    with pytest.raises(error) as caught:
        await ask(client, is_streamed)
    assert caught.value.code == code and caught.value.status_code != 401
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("fault", ["error_event", "close", "truncate", "garbage"])
async def test_an_error_within_the_stream_is_raised_after_what_came(
    upstream: Upstream, client: AsyncOpenAI, fault: Any
) -> None:
    upstream.plan = Plan(fault=fault, fault_at=2)
    said = ""
    with pytest.raises(sdk.APIError) as caught:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == "Hello, "
    expected = {"error_event": "provider_overloaded", "garbage": "provider_protocol_error"}
    assert caught.value.code == expected.get(fault, "stream_truncated")


async def test_what_anthropic_cannot_do_is_refused_by_name(upstream: Upstream, client: AsyncOpenAI) -> None:
    for change, param in [
        ({"n": 2}, "n"),
        ({"temperature": 1.5}, "temperature"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
    ]:
        with pytest.raises(sdk.BadRequestError) as caught:
            await ask(client, **change)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_value")
    assert upstream.requests == []


@pytest.mark.parametrize("bytes_fall", [{"cut": 1}, {"cut": 5}, {"coalesce": True}, {"crlf": True}, {"comments": True}])
async def test_however_the_bytes_fall_the_message_is_the_same(
    upstream: Upstream, client: AsyncOpenAI, bytes_fall: dict[str, Any]
) -> None:
    upstream.plan = Plan(reasoning=("Grü", "ß"), text=("Hé", "llo"), tool_calls=(COLOGNE, OSLO), **bytes_fall)
    message = (await ask(client, True, **THINKING)).choices[0].message
    assert (message.model_extra["reasoning_content"], message.content) == ("Grüß", "Héllo")
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        Weather(city="Köln"),
        Weather(city="Oslo"),
    ]


async def test_a_shape_to_answer_in_is_passed_on(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"city":', '"Oslo"}'))
    answer = await client.chat.completions.parse(**ASK, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo")
    assert upstream.requests[0].body["output_config"]["format"]["schema"]["required"] == ["city"]
