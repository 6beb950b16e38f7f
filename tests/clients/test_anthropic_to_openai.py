"""Anthropic's own client talking to a provider that speaks Chat Completions. Neither of the two notices."""

from typing import Any

import anthropic as sdk
import pytest
from anthropic import AsyncAnthropic

from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: Any = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "up/gpt-upstream", "max_tokens": 4000, "messages": [USER]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: Any = {"name": "weather", "description": "Get it.", "input_schema": SCHEMA}
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
NOTHING = ToolCall(name="now", arguments=("",))
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
PNG = "iVBORw0KGgo="


async def ask(client: AsyncAnthropic, is_streamed: bool = False, **more: Any) -> Any:
    """One answer, through the stream helper or whole."""
    if not is_streamed:
        return await client.messages.create(**{**ASK, **more})
    async with client.messages.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_message()


def results(message: Any, *contents: Any) -> dict[str, Any]:
    """The turn that answers each call of ``message``."""
    calls = [block for block in message.content if block.type == "tool_use"]
    pairs = zip(calls, contents, strict=True)
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": content} for call, content in pairs],
    }


@BOTH
async def test_a_message_has_text_reason_and_usage(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5, reasoning=3))
    message = await ask(claude, is_streamed)
    assert [block.text for block in message.content] == ["Hello, world!"]
    assert message.id.startswith("msg_") and message.stop_reason == "end_turn"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (15, 5, 9)
    assert usage.output_tokens_details.thinking_tokens == 3


async def test_the_start_names_the_input_as_it_was_counted(upstream: Upstream, claude: AsyncAnthropic) -> None:
    counted = await claude.messages.count_tokens(model=ASK["model"], messages=[USER])
    first = await anext(await claude.messages.create(**ASK, stream=True))
    assert first.type == "message_start" and first.message.usage.input_tokens == counted.input_tokens


async def test_the_request_is_carried_over_field_by_field(upstream: Upstream, claude: AsyncAnthropic) -> None:
    await ask(
        claude,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        metadata={"user_id": "u1"},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    body = upstream.requests[0].body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, USER]
    assert (body["max_tokens"], body["stop"], body["user"]) == (4000, ["END"], "u1")
    function = {"name": "weather", "description": "Get it.", "parameters": SCHEMA}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert (body["parallel_tool_calls"], body["reasoning_effort"]) == (False, "low")
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


async def test_pictures_and_documents_are_carried_over(upstream: Upstream, claude: AsyncAnthropic) -> None:
    parts = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}, "title": "a"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Once."}},
    ]
    await ask(claude, messages=[{"role": "user", "content": parts}])
    image, pdf, words = upstream.requests[0].body["messages"][0]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert pdf["file"] == {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "a"}
    assert words == {"type": "text", "text": "Once."}


@BOTH
async def test_parallel_calls_and_their_results_go_round(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, NOTHING, OSLO))
    message = await ask(claude, is_streamed, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", *["tool_use"] * 3]
    assert [block.input for block in message.content[1:]] == [{"city": "Köln"}, {}, {"city": "Oslo"}]
    upstream.plan = Plan()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    answers = results(message, "sunny", [{"type": "text", "text": "noon"}, picture], "rainy")
    turns = [USER, {"role": "assistant", "content": message.content}, answers]
    assert (await ask(claude, is_streamed, tools=[TOOL], messages=turns)).stop_reason == "end_turn"
    _, assistant, *tools, shown = upstream.requests[1].body["messages"]
    assert assistant["content"] == "Let me see."
    assert [call["id"] for call in assistant["tool_calls"]] == [block.id for block in message.content[1:]]
    assert [(tool["role"], tool["content"]) for tool in tools] == [("tool", t) for t in ("sunny", "noon", "rainy")]
    assert (shown["role"], shown["content"][0]["type"]) == ("user", "image_url")


async def test_calls_stream_one_block_after_another(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    events = [event async for event in await claude.messages.create(**ASK, tools=[TOOL], stream=True)]
    blocks = [(event.type, event.index) for event in events if event.type.startswith("content_block_st")]
    assert blocks == [(f"content_block_{what}", index) for index in range(3) for what in ("start", "stop")]


@pytest.mark.parametrize(
    "quirk", ["no_tool_index", "whole_tool_call", "finish_stop_with_tools", "usage_on_every_chunk"]
)
async def test_calls_of_servers_with_quirks_are_regular_too(
    upstream: Upstream, claude: AsyncAnthropic, quirk: str
) -> None:
    upstream.plan = Plan(tool_calls=(COLOGNE, OSLO), **{quirk: True})  # type: ignore[arg-type]
    message = await ask(claude, True, tools=[TOOL])
    assert [block.input for block in message.content] == [{"city": "Köln"}, {"city": "Oslo"}]
    assert message.stop_reason == "tool_use"


@BOTH
async def test_reasoning_is_thinking_that_can_be_sent_back_to_anyone(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(reasoning=("Where is ", "Köln?"), tool_calls=(COLOGNE,))
    thinking: Any = {"type": "enabled", "budget_tokens": 2048}
    message = await ask(claude, is_streamed, tools=[TOOL], thinking=thinking)
    thought, call = message.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "Where is Köln?", "")
    assert call.type == "tool_use"
    upstream.plan = Plan()
    turns = [USER, {"role": "assistant", "content": message.content}, results(message, "sunny")]
    for model in ("up/gpt-upstream", "claude/claude-upstream"):
        # Anthropic would refuse thinking that it did not sign.
        answer = await ask(claude, is_streamed, model=model, tools=[TOOL], messages=turns, thinking=thinking)
        assert answer.stop_reason == "end_turn"
    assert "Where is" not in str(upstream.requests[1].body) + str(upstream.requests[2].body)


@pytest.mark.parametrize(
    ("reason", "stop_reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal"), ("weird", "end_turn")],
)
async def test_finish_reasons_are_translated(
    upstream: Upstream, claude: AsyncAnthropic, reason: str, stop_reason: str
) -> None:
    upstream.plan = Plan(finish_reason=reason)
    assert (await ask(claude, True)).stop_reason == stop_reason


async def test_a_refusal_is_said_as_text(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(refusal=("I will ", "not."))
    assert (await ask(claude, True)).content[0].text == "I will not."


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"inference_geo": "us"}, "inference_geo"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
            "messages[0].content[0]",
        ),
    ],
)
async def test_what_only_anthropic_can_do_is_refused_by_name(
    upstream: Upstream, claude: AsyncAnthropic, more: dict[str, Any], field: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        await ask(claude, **more)
    assert f"{field} cannot be sent to this model." in caught.value.message
    assert not upstream.requests


async def test_the_demo_thinks_and_calls(claude: AsyncAnthropic) -> None:
    thinking = await ask(claude, True, model="demo/reasoning")
    assert [block.type for block in thinking.content] == ["thinking", "text"]
    assert thinking.content[0].signature == "demo-signature"
    calling = await ask(claude, model="demo/tool", tools=[TOOL])
    assert calling.content[0].input == {"city": "Paris"}
