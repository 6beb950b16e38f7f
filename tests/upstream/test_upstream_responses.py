"""OpenAI's own SDK reads the responses of the simulated provider."""

import json
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI

from . import Plan, ToolCall, Upstream, Usage

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "gpt-5-upstream", "input": [USER], "store": False}
SEALED: dict[str, Any] = {"include": ["reasoning.encrypted_content"]}
TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
WEATHER = ToolCall(name="weather", arguments=('{"city":', '"Köln"}'))


async def events(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [event async for event in await client.responses.create(**{**ASK, **more}, stream=True)]


async def final(client: AsyncOpenAI, **more: Any) -> Any:
    async with client.responses.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_response()


async def test_whole_and_streamed_answers_agree(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(
        reasoning=("Let me", " think"),
        redacted="b64",
        text=("So", ":"),
        refusal=("N", "o."),
        tool_calls=(WEATHER, ToolCall(name="weather", arguments=(), id="call_x")),
    )
    for answer in (await openai.responses.create(**ASK, **SEALED), await final(openai, **SEALED)):
        kinds = [item.type for item in answer.output]
        assert kinds == ["reasoning", "reasoning", "message", "function_call", "function_call"]
        assert [part.text for part in answer.output[0].summary] == ["Let me think"]
        assert (answer.output[1].summary, answer.output[1].encrypted_content) == ([], "b64")
        assert [part.type for part in answer.output[2].content] == ["output_text", "refusal"]
        assert (answer.output_text, answer.output[2].content[1].refusal) == ("So:", "No.")
        assert [item.arguments for item in answer.output[3:]] == ['{"city":"Köln"}', ""]
        assert answer.output[4].call_id == "call_x" and answer.status == "completed"
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 10)
        assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert upstream.delivered[0] == upstream.delivered[1]


async def test_events_are_named_and_numbered(upstream: Upstream) -> None:
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk"}) as client:
        answer = await client.post(f"{upstream.openai_url}/responses", json=ASK | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, end = answer.text.split("\n\n")
    names, payloads = zip(*(frame.split("\n") for frame in frames), strict=True)
    told = [json.loads(payload.removeprefix("data: ")) for payload in payloads]
    assert end == "" and [f"event: {event['type']}" for event in told] == list(names)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 4,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]


async def test_reasoning_is_sealed_only_where_it_is_asked_for(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(reasoning=("Hm",), redacted="b64")
    plain, sealed = await final(openai), await final(openai, **SEALED)
    assert [item.encrypted_content for item in plain.output[:2]] == [None, None]
    assert all(item.encrypted_content for item in sealed.output[:2])
    assert sealed.output[0].encrypted_content.startswith("gAAAA")


async def test_open_models_show_their_own_words(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), reasoning_field="reasoning")
    seen = await events(openai)
    assert "".join(event.delta for event in seen if event.type == "response.reasoning_text.delta") == "Hmm"
    assert seen[-1].response.output[0].content[0].text == "Hmm"


async def test_reasoning_comes_back_only_as_it_was_sealed(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(reasoning=("Hm",), tool_calls=(WEATHER,))
    thought, call = [item.model_dump(exclude_none=True) for item in (await final(openai, tools=TOOLS, **SEALED)).output]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"}

    async def reply(*items: dict[str, Any]) -> Any:
        return await openai.responses.create(**ASK | {"input": [USER, *items, result]}, tools=TOOLS)

    assert (await reply(thought, call)).status == "completed"
    for changed, message in [
        ({"encrypted_content": "gAAAother"}, "could not be decrypted"),
        ({"id": "rs_other"}, "item_id did not match"),
    ]:
        with pytest.raises(sdk.BadRequestError, match=message) as caught:
            await reply(thought | changed, call)
        assert caught.value.code == "invalid_encrypted_content"
    with pytest.raises(sdk.NotFoundError, match="not persisted"):
        await reply({name: value for name, value in thought.items() if name != "encrypted_content"}, call)
    with pytest.raises(sdk.BadRequestError, match="required following item"):
        await reply(call, thought)


async def test_reasons_to_end_are_translated(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.queue(Plan(finish_reason="length"), Plan(finish_reason="content_filter"), Plan(usage="missing"))
    answers = [await openai.responses.create(**ASK) for _ in range(3)]
    assert [answer.status for answer in answers] == ["incomplete", "incomplete", "completed"]
    reasons = [answer.incomplete_details.reason for answer in answers if answer.incomplete_details]
    assert reasons == ["max_output_tokens", "content_filter"] and answers[2].usage is None
    upstream.plan = Plan(obey_max_tokens=True, endless=True)
    short = (await events(openai, max_output_tokens=16))[-1].response
    assert (short.incomplete_details.reason, short.usage.output_tokens) == ("max_output_tokens", 16)


async def test_usage_includes_what_was_cached_and_thought(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(usage=Usage(input=100, cache_read=60, cache_write=30, output=42, reasoning=7))
    usage = (await final(openai)).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (100, 42, 142)
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (60, 30)
    assert usage.output_tokens_details.reasoning_tokens == 7


async def test_an_error_within_a_stream_is_raised_by_the_sdk(upstream: Upstream, openai: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(sdk.APIError, match="The server had an error") as caught:
        await events(openai)
    assert caught.value.code == "server_error"
    assert upstream.delivered == [["Hello", ", "]]


async def test_a_failed_response_follows_its_error(upstream: Upstream) -> None:
    upstream.plan = Plan(fault="error_event")
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk"}) as client:
        answer = await client.post(f"{upstream.openai_url}/responses", json=ASK | {"stream": True})
    error, failed = (json.loads(frame.split("data: ")[1]) for frame in answer.text.split("\n\n")[-3:-1])
    assert (error["type"], error["error"]["code"]) == ("error", "server_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["sequence_number"] == error["sequence_number"] + 1


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, sdk.BadRequestError, None),
        (401, sdk.AuthenticationError, "invalid_api_key"),
        (429, sdk.RateLimitError, "rate_limit_exceeded"),
        (503, sdk.InternalServerError, "server_is_overloaded"),
    ],
)
async def test_ordered_statuses_come_in_the_envelope(
    upstream: Upstream, openai: AsyncOpenAI, status: int, error: type[sdk.APIStatusError], code: str | None
) -> None:
    upstream.plan = Plan(status=status, retry_after=7)
    with pytest.raises(error) as caught:
        await events(openai)
    assert caught.value.code == code and caught.value.response.headers["retry-after"] == "7"


async def test_a_server_may_ignore_that_a_stream_was_asked(upstream: Upstream) -> None:
    upstream.plan = Plan(json_instead_of_stream=True)
    async with httpx.AsyncClient(headers={"authorization": "Bearer sk"}) as client:
        answer = await client.post(f"{upstream.openai_url}/responses", json=ASK | {"stream": True})
    assert answer.json()["object"] == "response"


CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
NESTED = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LOOSE = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def said(role: str, kind: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": kind, "text": "x"}]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": [USER, CALL]}, "No tool output found for function call call_1"),
        ({"input": [USER, RESULT]}, "No tool call found"),
        ({"input": [USER, RESULT, CALL]}, "No tool call found"),
        ({"input": [USER, CALL | {"call_id": "c" * 65}, RESULT]}, "1 to 64 characters"),
        ({"input": [USER, CALL | {"id": "call_1"}, RESULT]}, "begins with 'fc'"),
        ({"input": [USER | {"id": "msg." + "x"}]}, "letters, numbers"),
        ({"input": said("user", "output_text")}, "Invalid value: 'output_text'"),
        ({"input": said("assistant", "input_text")}, "Invalid value: 'input_text'"),
        ({"input": said("user", "text")}, "Invalid value: 'text'"),
        ({"input": [{"role": "tool", "content": "x"}]}, "Invalid value: 'tool'"),
        ({"input": [{"role": "user", "content": None}]}, "Missing required parameter: 'input.0..content'"),
        ({"input": []}, "non-empty"),
        ({"input": None}, "Missing required parameter: 'input'"),
        ({"model": None}, "Missing required parameter: 'model'"),
        ({"max_output_tokens": 15}, "between 16"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [NESTED]}, "Missing required parameter: 'tools.0..name'"),
        ({"tools": [LOOSE]}, "additionalProperties"),
        ({"tool_choice": "required"}, "must be specified with 'tools'"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "'tool_choice.name'"),
        ({"tool_choice": {"type": "function", "name": "weather"}}, "not found in 'tools'"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "'text.format.name'"),
        ({"include": ["thoughts"]}, "Invalid value: 'thoughts'"),
        ({"model": "gpt-4o", **SEALED}, "Encrypted content is not supported with this model"),
        ({"reasoning": {"effort": "heroic"}}, "heroic"),
        ({"previous_response_id": "resp_1"}, "'resp_1' not found"),
        ({"stream_options": {"include_obfuscation": False}}, "only allowed when 'stream'"),
    ],
)
async def test_bad_requests_are_refused_and_take_no_plan(
    upstream: Upstream, openai: AsyncOpenAI, change: dict[str, Any], message: str
) -> None:
    upstream.queue(Plan(text=("ordered",)))
    with pytest.raises(sdk.BadRequestError, match=message):
        await openai.responses.create(**ASK, extra_body=change)
    assert upstream.requests[0].refused and upstream.requests[0].status == 400
    assert (await openai.responses.create(**ASK)).output_text == "ordered"


async def test_unknown_fields_are_refused_where_wanted() -> None:
    async with (
        Upstream(strict_fields=True) as upstream,
        httpx.AsyncClient(base_url=upstream.openai_url, headers={"authorization": "Bearer sk"}) as client,
    ):
        unknown = await client.post("/responses", json=ASK | {"stop": ["x"]})
        right = await client.post("/responses", json=ASK)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")
    assert right.status_code == 200
