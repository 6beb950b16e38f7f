"""Anthropic's own Python client against a running gateway, with a provider of Anthropic's format behind it."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: Any = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "claude/claude-upstream", "max_tokens": 1000, "messages": [USER]}
THINKING: Any = {"type": "enabled", "budget_tokens": 2000}
LONG: dict[str, Any] = {"max_tokens": 4000, "thinking": THINKING}
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
COLOGNE = ToolCall(name="weather", arguments=("", '{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
BOTH = pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])


async def ask(client: AsyncAnthropic, is_streamed: bool = False, **more: Any) -> Any:
    """One answer, through the stream helper or whole."""
    if not is_streamed:
        return await client.messages.create(**{**ASK, **more})
    async with client.messages.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_message()


def results(message: Any, *contents: str) -> dict[str, Any]:
    """The turn that answers each call of ``message``."""
    calls = [block for block in message.content if block.type == "tool_use"]
    pairs = zip(calls, contents, strict=True)
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": text} for call, text in pairs],
    }


@BOTH
async def test_a_message_has_text_reason_and_usage(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(usage=Usage(input=100, output=50, cache_read=60, cache_write=30, reasoning=20))
    message = await ask(claude, is_streamed)
    assert [block.text for block in message.content] == ["Hello, world!"]
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", "claude-upstream")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 60, 30)
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (50, 20)
    assert usage.cache_creation.ephemeral_5m_input_tokens == 30 and usage.service_tier == "standard"


async def test_the_providers_events_come_as_it_sent_them(
    upstream: Upstream, claude: AsyncAnthropic, gateway: GatewayProcess, key: str
) -> None:
    upstream.plan = Plan(reasoning=("Hm.",), redacted="c2Vj", tool_calls=(COLOGNE,))
    body = {**ASK, "stream": True, "tools": [TOOL]}
    async with httpx.AsyncClient(trust_env=False, headers={"x-api-key": key}) as client:
        through = await client.post(f"{gateway.base_url}/v1/messages", json=body)
        headers = {"x-api-key": "sk-upstream", "anthropic-version": "2023-06-01"}
        direct = await client.post(
            f"{upstream.base_url}/v1/messages", json=body | {"model": "claude-upstream"}, headers=headers
        )
    assert through.headers["content-type"] == "text/event-stream; charset=utf-8"
    serials = [f"{received.serial:020d}" for received in upstream.requests]
    assert through.text == direct.text.replace(serials[1], serials[0])


async def test_a_provider_that_takes_its_time_is_passed_on_byte_for_byte_too(
    upstream: Upstream, claude: AsyncAnthropic
) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    async with claude.messages.with_streaming_response.create(**ASK, stream=True) as response:
        assert upstream.stalled == 1  # so it is with a heartbeat that the answer began
        upstream.release()
        body = await response.read()
    assert b'"service_tier":"standard"' in body and f"msg_{upstream.requests[0].serial:024d}".encode() in body


async def test_the_body_goes_on_as_it_came(upstream: Upstream, claude: AsyncAnthropic) -> None:
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    await ask(claude, system=system, tools=[TOOL], metadata={"user_id": "u1"}, stop_sequences=["END"], **LONG)
    received = upstream.requests[0]
    assert received.key == "sk-upstream" and received.path == "/v1/messages"
    assert received.body == {
        "model": "claude-upstream",
        "stream": True,
        "messages": [USER],
        "system": system,
        "tools": [TOOL],
        "metadata": {"user_id": "u1"},
        "stop_sequences": ["END"],
        **LONG,
    }


async def test_betas_reach_the_provider_and_the_credential_does_not(
    upstream: Upstream, claude: AsyncAnthropic, key: str
) -> None:
    await claude.beta.messages.create(**ASK, betas=["context-management-2025-06-27", "x-1"])
    received = upstream.requests[0]
    assert received.headers["anthropic-beta"] == "context-management-2025-06-27,x-1"
    assert key.encode() not in received.raw and key not in str(dict(received.headers))


@BOTH
async def test_tools_go_round(upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    message = await ask(claude, is_streamed, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in message.content[1:]] == [{"city": "Köln"}, {"city": "Oslo"}]
    upstream.plan = Plan()
    turns = [USER, {"role": "assistant", "content": message.content}, results(message, "sunny", "rainy")]
    assert (await ask(claude, is_streamed, tools=[TOOL], messages=turns)).stop_reason == "end_turn"
    assert [block["content"] for block in upstream.requests[1].body["messages"][2]["content"]] == ["sunny", "rainy"]


@BOTH
async def test_thinking_comes_back_as_it_was_signed(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(reasoning=("Where is ", "Köln?\u2028"), redacted="c2VjcmV0", tool_calls=(COLOGNE,))
    message = await ask(claude, is_streamed, tools=[TOOL], **LONG)
    thinking, redacted, _ = message.content
    assert (thinking.thinking, redacted.data) == ("Where is Köln?\u2028", "c2VjcmV0") and thinking.signature
    upstream.plan = Plan()
    turns = [USER, {"role": "assistant", "content": message.content}, results(message, "sunny")]
    # The simulated provider refuses what it did not sign.
    assert (await ask(claude, is_streamed, tools=[TOOL], messages=turns, **LONG)).stop_reason == "end_turn"


async def test_the_helpers_events_tell_what_happens(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(reasoning=("Hm.",), text=("Hello", "!"), tool_calls=(OSLO,))
    async with claude.messages.stream(**{**ASK, **LONG}, tools=[TOOL]) as stream:
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert (kinds.count("thinking"), kinds.count("signature"), kinds.count("text")) == (1, 1, 2)
    assert [event.index for event in events if event.type == "content_block_stop"] == [0, 1, 2]


async def test_the_text_stream_of_the_helper(upstream: Upstream, claude: AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASK) as stream:
        assert [text async for text in stream.text_stream] == ["Hello", ", ", "world", "!"]


class Verdict(BaseModel):
    good: bool


async def test_an_answer_is_parsed_into_a_model(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(text=('{"good":', "true}"))
    message = await claude.messages.parse(**ASK, output_format=Verdict)
    assert message.parsed_output == Verdict(good=True)
    assert upstream.requests[0].body["output_config"]["format"]["type"] == "json_schema"


async def test_a_stream_full_of_quirks_is_read_all_the_same(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE,), crlf=True, comments=True, cut=3, no_space=True)
    message = await ask(claude, True, tools=[TOOL])
    assert message.content[1].input == {"city": "Köln"}


async def test_usage_that_the_provider_forgot_is_counted(upstream: Upstream, claude: AsyncAnthropic) -> None:
    upstream.plan = Plan(usage="missing", text=("one", " two", " three"))
    for is_streamed in (True, False):
        usage = (await ask(claude, is_streamed)).usage
        assert usage.output_tokens == 3 and usage.input_tokens > 0


@BOTH
async def test_a_provider_that_answers_whole_is_read_all_the_same(
    upstream: Upstream, claude: AsyncAnthropic, is_streamed: bool
) -> None:
    upstream.plan = Plan(json_instead_of_stream=True, text=("Let me see.",), tool_calls=(COLOGNE,))
    message = await ask(claude, is_streamed, tools=[TOOL])
    assert (message.content[0].text, message.content[1].input) == ("Let me see.", {"city": "Köln"})
    assert message.stop_reason == "tool_use"


async def test_the_blocking_client_works_too(upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
    def talk() -> tuple[str, str]:
        with Anthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as blocking:
            with blocking.messages.stream(**ASK) as stream:
                return stream.get_final_text(), blocking.messages.create(**ASK).content[0].text  # type: ignore

    assert await asyncio.to_thread(talk) == ("Hello, world!", "Hello, world!")


async def test_a_raw_answer_names_its_request_and_the_limits(upstream: Upstream, claude: AsyncAnthropic) -> None:
    raw = await claude.messages.with_raw_response.create(**ASK)
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert int(raw.headers["anthropic-ratelimit-requests-remaining"]) < 100_000
    assert (await raw.parse())._request_id == raw.headers["request-id"]


async def test_what_it_costs_is_billed_by_the_providers_figures(upstream: Upstream, gateway: GatewayProcess) -> None:
    key = await gateway.account("billed-messages")
    upstream.plan = Plan(usage=Usage(input=100, output=50))
    async with AsyncAnthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
        await ask(client, True)
    await gateway.settled("billed-messages", records=1)
    record = (await gateway.usage("billed-messages"))[0]["record"]
    assert (record["input_tokens"], record["output_tokens"], record["protocol"]) == (100, 50, "anthropic_messages")


async def test_tokens_are_counted_without_asking_or_charging(upstream: Upstream, gateway: GatewayProcess) -> None:
    key = await gateway.account("counter", usd="0")
    async with AsyncAnthropic(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
        few = await client.messages.count_tokens(model=ASK["model"], messages=[USER])
        more = await client.messages.count_tokens(
            model=ASK["model"], messages=[USER], system="Be brief.", tools=[TOOL], thinking=THINKING
        )
    assert 0 < few.input_tokens < more.input_tokens
    assert not upstream.requests and await gateway.usage("counter") == []


async def test_models_are_listed_page_by_page(claude: AsyncAnthropic) -> None:
    whole = await claude.models.list(limit=1000)
    names = [model.id for model in whole.data]
    assert names == sorted(names) and "fast" in names and not whole.has_more
    assert [model.id async for model in claude.models.list(limit=2)] == names
    before = await claude.models.list(limit=2, before_id=names[3])
    assert [model.id for model in before.data] == names[1:3] and before.has_more
    assert (before.first_id, before.last_id) == (names[1], names[2])
    model = await claude.models.retrieve("up/family/large")
    assert (model.id, model.type, model.display_name) == ("up/family/large", "model", "up/family/large")


async def test_an_older_client_with_its_own_header_and_version_is_served(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client:
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
        answer = await client.post("/v1/messages", json={**ASK, "temperature": 0.5}, headers=headers)
    assert answer.status_code == 200 and answer.json()["content"][0]["text"] == "Hello, world!"
    assert json.loads(upstream.requests[0].raw)["temperature"] == 0.5
