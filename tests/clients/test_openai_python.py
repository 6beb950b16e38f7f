"""OpenAI's own Python client against a running gateway: what a caller of any provider can do."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "up/gpt-upstream", "messages": [USER]}
WITH_USAGE = {"stream_options": {"include_usage": True}}


class Weather(BaseModel):
    """Get the weather."""

    city: str


class Verdict(BaseModel):
    good: bool


TOOLS = [pydantic_function_tool(Weather)]
COLOGNE = ToolCall(name="Weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'))


async def chunks(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**{**ASK, **more}, stream=True)]


async def final(client: AsyncOpenAI, **more: Any) -> Any:
    async with client.chat.completions.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_completion()


def text_of(stream: list[Any], choice: int = 0) -> str:
    choices = (each for chunk in stream for each in chunk.choices if each.index == choice)
    return "".join(each.delta.content or "" for each in choices)


async def test_a_stream_says_the_role_once_and_gives_no_usage_unasked(upstream: Upstream, client: AsyncOpenAI) -> None:
    stream = await chunks(client)
    assert text_of(stream) == "Hello, world!"
    assert [chunk.choices[0].delta.role for chunk in stream] == ["assistant", *[None] * 5]
    assert stream[-1].choices[0].finish_reason == "stop"
    assert len({(chunk.id, chunk.model, chunk.created) for chunk in stream}) == 1
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


async def test_the_provider_is_called_with_the_gateways_key_and_its_own_models_name(
    upstream: Upstream, client: AsyncOpenAI, key: str
) -> None:
    await client.chat.completions.create(**ASK)
    received = upstream.requests[0]
    assert received.key == "sk-upstream"
    assert key.encode() not in received.raw and key not in str(dict(received.headers))
    assert received.body["model"] == "gpt-upstream"
    assert received.body["stream"] is True
    assert received.body["stream_options"] == {"include_usage": True}


async def test_usage_comes_last_and_alone_where_it_is_asked_for(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5, reasoning=3))
    stream = await chunks(client, **WITH_USAGE)
    assert [chunk.usage for chunk in stream[:-1]] == [None] * 6
    assert stream[-1].choices == []
    usage = stream[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (20, 9, 29)
    assert usage.prompt_tokens_details.cached_tokens == 5
    assert usage.completion_tokens_details.reasoning_tokens == 3


async def test_usage_that_the_provider_forgot_is_counted(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(usage="missing", text=("one", " two", " three"))
    stream = await chunks(client, **WITH_USAGE)
    assert stream[-1].choices == [] and stream[-1].usage.completion_tokens == 3
    assert stream[-1].usage.prompt_tokens > 0


async def test_a_whole_answer_has_text_and_usage(upstream: Upstream, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", "Hello, world!")
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 4, 14)


async def test_a_provider_that_answers_whole_is_read_all_the_same(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(json_instead_of_stream=True, text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    for answer in (await final(client, tools=TOOLS), await client.chat.completions.create(**ASK, tools=TOOLS)):
        assert answer.choices[0].message.content == "Let me see."
        calls = answer.choices[0].message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Köln", "Oslo"]
        assert answer.choices[0].finish_reason == "tool_calls"


async def test_the_blocking_client_works_too(upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
    def talk() -> tuple[str, str | None]:
        with OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as blocking:
            streamed = "".join(
                chunk.choices[0].delta.content or "" for chunk in blocking.chat.completions.create(**ASK, stream=True)
            )
            return streamed, blocking.chat.completions.create(**ASK).choices[0].message.content

    assert await asyncio.to_thread(talk) == ("Hello, world!", "Hello, world!")


async def test_the_stream_helper_collects_text_and_usage(upstream: Upstream, client: AsyncOpenAI) -> None:
    answer = await final(client, **WITH_USAGE)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 4


async def test_the_stream_helper_parses_the_arguments_of_parallel_calls(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    seen = []
    async with client.chat.completions.stream(**ASK, tools=TOOLS) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                seen.append(event.parsed_arguments)
        answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert seen == [Weather(city="Köln"), Weather(city="Oslo")]
    assert message.tool_calls is not None
    assert [call.function.parsed_arguments for call in message.tool_calls] == seen
    assert len({call.id for call in message.tool_calls}) == 2
    assert message.content == "Let me see." and answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_results_go_back_with_the_calls_they_answer(
    upstream: Upstream, client: AsyncOpenAI, is_streamed: bool
) -> None:
    upstream.queue(Plan(tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    ask = final if is_streamed else lambda client, **more: client.chat.completions.create(**{**ASK, **more})
    first = (await ask(client, tools=TOOLS)).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": content}
        for call, content in zip(first.tool_calls, ("sun", "rain"), strict=True)
    ]
    second = await ask(client, tools=TOOLS, messages=[USER, first.model_dump(), *results])
    assert second.choices[0].message.content == "Sun and rain."
    sent = upstream.requests[1].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["arguments"] for call in sent[1]["tool_calls"]] == ['{"city":"Köln"}', '{"city":"Oslo"}']
    assert sent[2:] == results


async def test_a_call_without_arguments_is_regular(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(tool_calls=(ToolCall(name="now", arguments=(), id="call_now"),))
    tools = [{"type": "function", "function": {"name": "now"}}]
    call = (await final(client, tools=tools)).choices[0].message.tool_calls[0]
    assert (call.id, call.function.name, call.function.arguments) == ("call_now", "now", "")


async def test_images_files_and_every_other_field_reach_the_provider_unchanged(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]
    sent = {
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "Zoë"}],
        "temperature": 0.25,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["\n\n"],
        "logit_bias": {"42": -100},
        "reasoning_effort": "low",
        "metadata": {"trace": "1"},
        "user": "u1",
    }
    await client.chat.completions.create(**{**ASK, **sent})
    body = upstream.requests[0].body
    assert {name: body[name] for name in sent} == sent


async def test_unknown_fields_pass_to_the_provider(upstream: Upstream, client: AsyncOpenAI) -> None:
    extra = {"top_k": 3, "vendor": {"deep": [None, {"x": "ü"}], "large": 2**62, "small": 1e-9}}
    await client.chat.completions.create(**ASK, extra_body=extra)
    body = upstream.requests[0].body
    assert {name: body[name] for name in extra} == extra


async def test_a_stream_passes_byte_for_byte(upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), reasoning_field="reasoning", tool_calls=(COLOGNE,), text=("So:",))
    body = {**ASK, **WITH_USAGE, "stream": True}
    async with httpx.AsyncClient(trust_env=False) as plain:
        direct = await plain.post(
            f"{upstream.openai_url}/chat/completions",
            json={**body, "model": "gpt-upstream"},
            headers={"authorization": "Bearer sk-upstream"},
        )
        through = await plain.post(
            f"{gateway.base_url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        )
    assert "system_fingerprint" in through.text and '"reasoning":"Hm"' in through.text
    serial = re.compile(r"(chatcmpl-|call_)\d+")
    assert serial.sub(r"\1", through.text) == serial.sub(r"\1", direct.text)
    assert through.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-store" in through.headers["cache-control"] and through.headers["x-accel-buffering"] == "no"


async def test_a_whole_answer_keeps_fields_that_the_gateway_does_not_know(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), reasoning_field="reasoning")
    answer = await client.chat.completions.create(**ASK)
    assert (answer.service_tier, answer.system_fingerprint) == ("default", "fp_upstream")
    assert answer.choices[0].message.model_extra["reasoning"] == "Hmm"
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 0


async def test_an_answer_of_a_given_shape_is_parsed(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"good":', "true}"))
    whole = await client.chat.completions.parse(**ASK, response_format=Verdict)
    assert whole.choices[0].message.parsed == Verdict(good=True)
    assert (await final(client, response_format=Verdict)).choices[0].message.parsed == Verdict(good=True)
    wanted = upstream.requests[0].body["response_format"]
    assert wanted["type"] == "json_schema" and wanted["json_schema"]["schema"]["required"] == ["good"]


async def test_a_refusal_is_a_refusal(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(refusal=("No", "."))
    for answer in (await client.chat.completions.create(**ASK), await final(client)):
        assert answer.choices[0].message.refusal == "No."
        assert not answer.choices[0].message.content


async def test_two_choices_are_kept_apart(upstream: Upstream, client: AsyncOpenAI) -> None:
    stream = await chunks(client, n=2, **WITH_USAGE)
    assert [text_of(stream, choice) for choice in (0, 1)] == ["Hello, world!"] * 2
    assert stream[-1].usage.completion_tokens == 8
    for answer in (await final(client, n=2), await client.chat.completions.create(**ASK, n=2)):
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert [choice.message.content for choice in answer.choices] == ["Hello, world!"] * 2
        assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_comes_in_the_providers_own_field(upstream: Upstream, client: AsyncOpenAI, field: Any) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), reasoning_field=field)
    stream = await chunks(client, **WITH_USAGE)
    assert [(chunk.choices[0].delta.model_extra or {}).get(field) for chunk in stream[1:3]] == ["Hm", "m"]
    assert stream[-1].usage.completion_tokens_details.reasoning_tokens == 2
    assert (await final(client)).choices[0].message.model_extra[field] == "Hmm"


async def test_models_are_listed_and_retrieved_by_ids_with_slashes(
    gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    listed = {model.id: model async for model in client.models.list()}
    assert {"fast", "up/gpt-upstream", "up/family/large", "demo/fast"} <= listed.keys()
    for name in ("fast", "up/family/large"):
        assert await client.models.retrieve(name) == listed[name]
    assert (await client.models.retrieve("up/not-listed")).owned_by == "up"
    limited = await gateway.account(usd="0", models=["fast"])
    assert [model.id async for model in client.with_options(api_key=limited).models.list()] == ["fast"]


async def test_an_alias_and_a_name_with_slashes_are_answered(upstream: Upstream, client: AsyncOpenAI) -> None:
    for name, model in (("fast", "gpt-upstream"), ("up/family/large", "family/large")):
        await client.chat.completions.create(model=name, messages=[USER])
        assert upstream.requests[-1].body["model"] == model


async def test_the_demo_provider_talks_thinks_and_counts(client: AsyncOpenAI) -> None:
    answer = await final(client, model="demo/reasoning", **WITH_USAGE)
    message = answer.choices[0].message
    assert message.content.startswith("Hello from the demo model.")
    assert message.model_extra["reasoning_content"].startswith("The user wants")
    assert message.model_extra["reasoning_details"][0]["signature"] == "demo-signature"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    short = await client.chat.completions.create(**{**ASK, "model": "demo/fast"}, max_completion_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)


async def test_the_demo_provider_calls_a_tool_and_takes_its_result(client: AsyncOpenAI) -> None:
    first = await final(client, model="demo/tool", tools=TOOLS)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Paris")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}
    second = await client.chat.completions.create(
        model="demo/tool", messages=[USER, message.model_dump(), result], tools=TOOLS
    )
    assert second.choices[0].message.content == "The tool has answered and so can I."
