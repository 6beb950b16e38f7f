"""Whatever a compatible provider gets wrong, OpenAI's own client ends up with the same message."""

import json
from typing import Any

import msgspec
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Weather(BaseModel):
    city: str


ASK: dict[str, Any] = {
    "model": "up/gpt-upstream",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [pydantic_function_tool(Weather)],
    "stream_options": {"include_usage": True},
}
# U+2028 splits a line for str.splitlines and for nobody else.
PLAIN = Plan(
    reasoning=("Grüß", " \u2028Gott"),
    text=("Hello", ", \U0001f600", " wörld\n\n", "data: x"),
    tool_calls=(
        ToolCall(name="Weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'), id="call_a"),
        ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'), id="call_b"),
    ),
    usage=Usage(input=50, output=40, reasoning=12),
)
QUIRKS: dict[str, dict[str, Any]] = {
    "none": {},
    "a role on every chunk": {"role_on_every_chunk": True},
    "usage beside choices": {"usage_in_choices_chunk": True},
    "usage on every chunk": {"usage_on_every_chunk": True},
    "no index on calls": {"no_tool_index": True},
    "calls come whole": {"whole_tool_call": True},
    "calls come whole and without index": {"whole_tool_call": True, "no_tool_index": True},
    "stop in spite of calls": {"finish_stop_with_tools": True},
    "carriage returns": {"crlf": True},
    "comments": {"comments": True},
    "no space after the colon": {"no_space": True},
    "all in one packet": {"coalesce": True},
    "no terminator": {"done": False},
    "another field for reasoning": {"reasoning_field": "reasoning"},
    "no stream at all": {"json_instead_of_stream": True},
    **{f"packets of {size}": {"cut": size} for size in range(1, 8)},
    "everything": {
        "role_on_every_chunk": True,
        "usage_in_choices_chunk": True,
        "no_tool_index": True,
        "finish_stop_with_tools": True,
        "crlf": True,
        "comments": True,
        "no_space": True,
        "cut": 3,
        "done": False,
    },
}


def check(answer: Any) -> None:
    """The message that ``PLAIN`` says, however it came."""
    (choice,) = answer.choices
    message = choice.message
    assert message.role == "assistant"
    assert message.content == "Hello, \U0001f600 wörld\n\ndata: x"
    assert (message.model_extra.get("reasoning_content") or message.model_extra["reasoning"]) == "Grüß \u2028Gott"
    assert [call.id for call in message.tool_calls] == ["call_a", "call_b"]
    assert [call.type for call in message.tool_calls] == ["function", "function"]
    assert [call.function.name for call in message.tool_calls] == ["Weather", "Weather"]
    assert [json.loads(call.function.arguments)["city"] for call in message.tool_calls] == ["Köln", "Oslo"]
    assert choice.finish_reason == "tool_calls"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (50, 40, 90)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 12


@pytest.mark.parametrize("quirk", QUIRKS)
async def test_the_stream_helper_gets_the_same_message(upstream: Upstream, client: AsyncOpenAI, quirk: str) -> None:
    upstream.plan = msgspec.structs.replace(PLAIN, **QUIRKS[quirk])
    async with client.chat.completions.stream(**ASK) as stream:
        check(await stream.get_final_completion())


@pytest.mark.parametrize("quirk", QUIRKS)
async def test_a_whole_answer_is_the_same(upstream: Upstream, client: AsyncOpenAI, quirk: str) -> None:
    upstream.plan = msgspec.structs.replace(PLAIN, **QUIRKS[quirk])
    ask = {name: value for name, value in ASK.items() if name != "stream_options"}
    check(await client.chat.completions.create(**ask))


@pytest.mark.parametrize("quirk", QUIRKS)
async def test_a_raw_stream_is_regular(upstream: Upstream, client: AsyncOpenAI, quirk: str) -> None:
    upstream.plan = msgspec.structs.replace(PLAIN, **QUIRKS[quirk])
    stream = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
    deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    fragments = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.id for call in fragments if call.id] == ["call_a", "call_b"]
    assert sorted({call.index for call in fragments}) == [0, 1]
    assert [call.index for call in fragments] == sorted(call.index for call in fragments)
    assert [bool(chunk.usage) for chunk in stream] == [False] * (len(stream) - 1) + [True]
    assert stream[-1].choices == []


@pytest.mark.parametrize("quirk", ["usage beside choices", "usage on every chunk", "everything"])
async def test_usage_that_nobody_asked_for_is_left_out(upstream: Upstream, client: AsyncOpenAI, quirk: str) -> None:
    upstream.plan = msgspec.structs.replace(PLAIN, **QUIRKS[quirk])
    ask = {name: value for name, value in ASK.items() if name != "stream_options"}
    stream = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
    assert all(chunk.choices and not chunk.usage for chunk in stream)


async def test_reasoning_that_the_provider_leaves_out_of_its_total_is_billed(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(usage=Usage(input=5, output=40, reasoning=30), output_excludes_reasoning=True)
    stream = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
    assert stream[-1].usage is not None and stream[-1].usage.total_tokens == 45
