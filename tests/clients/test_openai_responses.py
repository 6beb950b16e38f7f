"""OpenAI's own Python client and its Responses against a running gateway, with both kinds of provider behind it."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: dict[str, Any] = {"model": "up/gpt-upstream", "input": "Hi"}
BOTH = pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])


class Weather(BaseModel):
    """Get the weather."""

    city: str


class Verdict(BaseModel):
    good: bool


TOOL: dict[str, Any] = {"type": "function", **pydantic_function_tool(Weather)["function"]}
COLOGNE = ToolCall(name="Weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}'))


async def events(client: AsyncOpenAI, **more: Any) -> list[Any]:
    return [event async for event in await client.responses.create(**{**ASK, **more}, stream=True)]


async def final(client: AsyncOpenAI, **more: Any) -> Any:
    async with client.responses.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_response()


async def whole(client: AsyncOpenAI, **more: Any) -> Any:
    return await client.responses.create(**{**ASK, **more})


WAYS = pytest.mark.parametrize("ask", [final, whole])


@BOTH
async def test_a_stream_tells_every_step_in_its_order(upstream: Upstream, client: AsyncOpenAI, model: str) -> None:
    seen = await events(client, model=model)
    assert [event.type.removeprefix("response.") for event in seen] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 4,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "Hello, world!"
    response = seen[-1].response
    assert {seen[0].response.id, seen[1].response.id} == {response.id}
    assert (response.status, response.output_text, response.store) == ("completed", "Hello, world!", True)
    assert response.output[0].id == seen[2].item.id == seen[4].item_id
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 4, 14)


@BOTH
async def test_a_whole_response_has_text_and_usage(upstream: Upstream, client: AsyncOpenAI, model: str) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5))
    response = await client.responses.create(**{**ASK, "model": model})
    assert response.object == "response" and response.id.startswith("resp_")
    assert response.output_text == "Hello, world!" and response.status == "completed"
    assert response.usage is not None and response.usage.input_tokens_details.cached_tokens == 5
    assert (response.usage.input_tokens, response.usage.output_tokens) == (20, 9)


@WAYS
async def test_what_was_asked_for_is_told_again(upstream: Upstream, client: AsyncOpenAI, ask: Any) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "metadata": {"trace": "1"},
        "temperature": 0.25,
        "top_p": 0.5,
        "max_output_tokens": 50,
        "parallel_tool_calls": False,
        "tools": [TOOL],
        "tool_choice": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "store": True,
        "user": "u1",
    }
    response = (await ask(client, **asked)).model_dump()
    assert {name: response[name] for name in asked if name not in ("store", "tools", "reasoning")} == {
        name: value for name, value in asked.items() if name not in ("store", "tools", "reasoning")
    }
    assert response["store"] is True and response["tools"][0]["name"] == "Weather"
    assert response["reasoning"]["effort"] == "low"
    sent = upstream.requests[0].body
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.25, 0.5, 50)
    assert (sent["parallel_tool_calls"], sent["reasoning_effort"], sent["user"]) == (False, "low", "u1")
    assert sent["tools"][0]["function"]["name"] == "Weather" and sent["tools"][0]["function"]["strict"] is True


@BOTH
@WAYS
async def test_calls_come_and_their_results_go_back(
    upstream: Upstream, client: AsyncOpenAI, ask: Any, model: str
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    first = await ask(client, model=model, tools=[TOOL])
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    calls = first.output[1:]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Köln", "Oslo"]
    assert [call.status for call in calls] == ["completed", "completed"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": output}
        for call, output in zip(calls, ("sun", "rain"), strict=True)
    ]
    history = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in first.output), *results]
    second = await ask(client, model=model, tools=[TOOL], input=history)
    assert second.output_text == "Sun and rain."
    sent = upstream.requests[1].body["messages"]
    if model.startswith("up/"):
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
        assert [message["content"] for message in sent[1:]] == ["Let me see.", "sun", "rain"]
        assert [call["id"] for call in sent[1]["tool_calls"]] == [call.call_id for call in calls]
    else:
        assert [message["role"] for message in sent] == ["user", "assistant", "user"]
        assert [block["type"] for block in sent[1]["content"]] == ["text", "tool_use", "tool_use"]


async def test_the_stream_helper_parses_the_arguments_of_parallel_calls(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    response = await final(client, tools=[openai.pydantic_function_tool(Weather)])
    calls = [item for item in response.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Köln"}, {"city": "Oslo"}]


async def test_a_call_without_arguments_has_an_empty_object(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(tool_calls=(ToolCall(name="now", arguments=(), id="call_now"),))
    response = await final(client, tools=[{"type": "function", "name": "now"}])
    assert (response.output[0].call_id, response.output[0].arguments) == ("call_now", "{}")


async def test_an_answer_of_a_given_shape_is_parsed(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=('{"good":', "true}"))
    parsed = await client.responses.parse(**ASK, text_format=Verdict)
    assert parsed.output_parsed == Verdict(good=True)
    assert (await final(client, text_format=Verdict)).output_parsed == Verdict(good=True)
    wanted = upstream.requests[0].body["response_format"]
    assert wanted["type"] == "json_schema" and wanted["json_schema"]["schema"]["required"] == ["good"]


@WAYS
async def test_reasoning_is_a_summary_and_goes_back_to_whom_it_is_of(
    upstream: Upstream, client: AsyncOpenAI, ask: Any
) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), signature="c2lnbmVk", tool_calls=(OSLO,))
    ask_claude: dict[str, Any] = {"model": "claude/claude-upstream", "tools": [TOOL], "reasoning": {"effort": "low"}}
    first = await ask(client, **ask_claude, include=["reasoning.encrypted_content"], store=False)
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    assert first.output[0].summary[0].text == "Hmm" and first.output[0].encrypted_content
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"}
    history = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in first.output), result]
    await ask(client, **ask_claude, input=history)
    thinking = upstream.requests[1].body["messages"][1]["content"][0]
    assert (thinking["type"], thinking["thinking"], thinking["signature"]) == ("thinking", "Hmm", "c2lnbmVk")


@WAYS
async def test_reasoning_that_only_its_provider_can_read_goes_back_as_it_came(
    upstream: Upstream, client: AsyncOpenAI, ask: Any
) -> None:
    upstream.plan = Plan(redacted="b3BhcXVl", tool_calls=(OSLO,))
    ask_claude: dict[str, Any] = {"model": "claude/claude-upstream", "tools": [TOOL], "reasoning": {"effort": "low"}}
    first = await ask(client, **ask_claude)
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"}
    history = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in first.output), result]
    await ask(client, **ask_claude, input=history)
    sent = upstream.requests[1].body["messages"][1]["content"][0]
    assert sent == {"type": "redacted_thinking", "data": "b3BhcXVl"}


async def test_reasoning_without_a_signature_is_shown_as_it_comes(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"))
    seen = await events(client)
    kinds = [event.type.removeprefix("response.") for event in seen]
    assert kinds[2:10] == [
        *("output_item.added", "reasoning_summary_part.added"),
        *("reasoning_summary_text.delta", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        "output_item.added",
    ]
    assert seen[-1].response.usage.output_tokens_details.reasoning_tokens == 2


@WAYS
async def test_a_refusal_is_a_refusal(upstream: Upstream, client: AsyncOpenAI, ask: Any) -> None:
    upstream.plan = Plan(refusal=("No", "."))
    response = await ask(client)
    assert response.output[0].content[0].type == "refusal" and response.output[0].content[0].refusal == "No."
    assert response.status == "completed"


async def test_pictures_and_files_reach_the_provider(upstream: Upstream, client: AsyncOpenAI) -> None:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
        {"type": "input_image", "image_url": "https://example.com/cat.png"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
    ]
    await client.responses.create(**{**ASK, "input": [{"role": "user", "content": parts}]})
    sent = upstream.requests[0].body["messages"][0]["content"]
    assert sent[0] == {"type": "text", "text": "What is this?"}
    assert sent[1]["image_url"] == {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}
    assert sent[2]["image_url"] == {"url": "https://example.com/cat.png"}
    assert sent[3]["file"] == {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_stopped_is_incomplete(
    upstream: Upstream, client: AsyncOpenAI, finish: str, reason: str
) -> None:
    upstream.plan = Plan(finish_reason=finish)
    seen = await events(client)
    assert seen[-1].type == "response.incomplete"
    for response in (seen[-1].response, await whole(client)):
        assert response.status == "incomplete" and response.incomplete_details.reason == reason
        assert response.output[0].status == "incomplete" and response.output_text == "Hello, world!"


async def test_credit_that_ends_within_an_answer_makes_it_incomplete(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(endless=True)
    poor = client.with_options(api_key=await gateway.account("poor-responses", usd="0.0004"))
    seen = await events(poor)
    assert seen[-1].type == "response.incomplete"
    response = seen[-1].response
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.model_extra["x_gateway"]["reason"] == "credits_exhausted"
    assert response.output_text.startswith("Hello, world!") and response.output[0].status == "incomplete"
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    with pytest.raises(openai.APIStatusError) as refused:
        await whole(poor)
    assert (refused.value.status_code, refused.value.code) == (402, "credits_exhausted")


async def test_an_error_within_a_stream_is_raised(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    with pytest.raises(openai.APIError) as raised:
        await events(client)
    assert raised.value.type == "server_error" and raised.value.code == "provider_unavailable"
    with pytest.raises(openai.APIError):
        await final(client)


async def test_after_an_error_the_response_is_told_as_failed(
    upstream: Upstream, gateway: GatewayProcess, key: str
) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    async with httpx.AsyncClient(trust_env=False) as plain:
        answer = await plain.post(
            f"{gateway.base_url}/v1/responses",
            json={**ASK, "stream": True},
            headers={"authorization": f"Bearer {key}"},
        )
    frames = [frame.split("\n") for frame in answer.text.split("\n\n") if frame]
    told = [(head.removeprefix("event: "), json.loads(payload.removeprefix("data: "))) for head, payload in frames]
    assert all(kind == event["type"] for kind, event in told)
    assert told[-2][0] == "error" and told[-2][1]["error"]["code"] == "stream_truncated"
    assert told[-1][0] == "response.failed" and told[-1][1]["response"]["status"] == "failed"
    assert told[-1][1]["response"]["error"]["code"] == "server_error"
    assert "[DONE]" not in answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_slow_provider_is_waited_for_with_comments(
    upstream: Upstream, gateway: GatewayProcess, key: str, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(fault="stall", fault_at=0)
    body = {**ASK, "stream": True}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as plain:
        async with plain.stream(
            "POST", f"{gateway.base_url}/v1/responses", json=body, headers={"authorization": f"Bearer {key}"}
        ) as answer:
            lines = answer.aiter_lines()
            assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
            upstream.release()
            rest = [line async for line in lines]
    assert "event: response.created" in rest and "event: response.completed" in rest
    upstream.plan = Plan(delay_s=0.3)
    assert (await final(client)).output_text == "Hello, world!"


async def test_an_error_before_the_stream_is_an_http_error(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(status=429, retry_after=3)
    with pytest.raises(openai.RateLimitError) as limited:
        await events(client)
    assert limited.value.code == "rate_limit_exceeded" or limited.value.code == "provider_rate_limited"
    with pytest.raises(openai.NotFoundError) as missing:
        await whole(client, model="nowhere/x")
    assert missing.value.code == "model_not_found"


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"previous_response_id": "resp_1"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"input": [{"type": "item_reference", "id": "rs_1"}]}, 404, "not_found", "input[0]"),
    ({"conversation": "conv_1"}, 400, "unsupported_value", "conversation"),
    ({"background": True, "store": False}, 400, "invalid_value", "background"),
    ({"tools": [{"type": "web_search"}]}, 400, "unsupported_value", "tools[0]"),
    ({"tool_choice": {"type": "web_search_preview"}}, 400, "unsupported_value", "tool_choice"),
    ({"top_logprobs": 2}, 400, "unsupported_value", "top_logprobs"),
    ({"input": [{"type": "computer_call_output", "call_id": "x"}]}, 400, "unsupported_value", "input[0]"),
    ({"input": []}, 400, "invalid_value", "input"),
    ({"max_output_tokens": 0}, 400, "invalid_value", "max_output_tokens"),
    ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
]


@pytest.mark.parametrize(("asked", "status", "code", "param"), REFUSED, ids=[str(case[0])[:40] for case in REFUSED])
async def test_what_cannot_be_done_is_refused_by_name(
    upstream: Upstream, client: AsyncOpenAI, asked: dict[str, Any], status: int, code: str, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await whole(client, **asked)
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (status, code, param)
    assert upstream.requests == []


async def test_the_demo_provider_thinks_and_calls_a_tool(client: AsyncOpenAI) -> None:
    response = await final(client, model="demo/reasoning")
    assert response.output_text.startswith("Hello from the demo model.")
    assert response.output[0].encrypted_content == "signature.demo-signature"
    first = await final(client, model="demo/tool", tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "sun"}
    second = await whole(client, model="demo/tool", tools=[TOOL], input=[*first.output, result])
    assert second.output_text == "The tool has answered and so can I."


async def test_notices_come_as_events_of_their_own_where_they_are_asked_for(
    upstream: Upstream, gateway: GatewayProcess, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(text=(" word",) * 32)
    near = client.with_options(api_key=await gateway.account("near-responses", usd="0.0004"))
    await whole(near)
    await gateway.settled("near-responses", records=1)  # after which most of the credit is used
    upstream.plan = Plan(text=("a",), delay_s=0.05)
    asked = {"extra_headers": {"x-gateway-events": "1"}}
    seen = []
    async with near.responses.stream(**ASK, **asked) as stream:
        async for event in stream:
            seen.append(event)
        assert (await stream.get_final_response()).output_text == "a"
    assert seen[0].type == "response.created"
    assert [event.x_gateway["event"] for event in seen if event.type == "gateway.notice"] == ["budget"]
    await gateway.settled("near-responses", records=2)
    told = (await whole(near, **asked)).model_extra["x_gateway"]["events"]
    assert told[0]["event"] == "budget" and told[0]["reason"] == "budget_used"
