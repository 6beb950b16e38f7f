"""The simulated Google: what it says as a stream and whole, what it refuses, and how it goes wrong."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from . import Plan, ToolCall, Upstream, Usage

USER = {"role": "user", "parts": [{"text": "Hi"}]}
MODEL = "gemini-3-flash"
DECLARED = {"tools": [{"functionDeclarations": [{"name": "weather"}, {"name": "now"}]}]}


@pytest_asyncio.fixture
async def client(upstream: Upstream) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=upstream.base_url, headers={"x-goog-api-key": "key"}) as running:
        yield running


async def post(client: httpx.AsyncClient, *contents: Any, model: str = MODEL, **more: Any) -> httpx.Response:
    body = {"contents": list(contents) or [USER], **more}
    return await client.post(f"/v1beta/models/{model}:streamGenerateContent?alt=sse", json=body)


async def chunks(client: httpx.AsyncClient, *contents: Any, **more: Any) -> list[Any]:
    answer = await post(client, *contents, **more)
    assert answer.status_code == 200, answer.text
    *frames, end = answer.text.split("\r\n\r\n")
    assert end == ""
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def parts(answer: list[Any]) -> list[Any]:
    return [part for chunk in answer for part in chunk["candidates"][0]["content"]["parts"]]


async def refused(client: httpx.AsyncClient, *contents: Any, **more: Any) -> str:
    answer = await post(client, *contents, **more)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    return str(error["message"])


async def test_a_chunk_per_piece_and_one_with_the_reason(upstream: Upstream, client: httpx.AsyncClient) -> None:
    upstream.plan = Plan(usage=Usage(input=9, cache_read=4, output=7, reasoning=3))
    answer = await chunks(client)
    assert [part["text"] for part in parts(answer)] == ["Hello", ", ", "world", "!", ""]
    assert [chunk["candidates"][0].get("finishReason") for chunk in answer] == [*[None] * 4, "STOP"]
    usage = answer[-1]["usageMetadata"]
    assert (usage["promptTokenCount"], usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (9, 4, 3)
    assert (usage["cachedContentTokenCount"], usage["totalTokenCount"]) == (4, 16)
    assert {(chunk["modelVersion"], chunk["responseId"]) for chunk in answer} == {(MODEL, "resp-0000000001")}


async def test_usage_grows_with_every_chunk(client: httpx.AsyncClient) -> None:
    assert [chunk["usageMetadata"]["candidatesTokenCount"] for chunk in await chunks(client)] == [1, 2, 3, 4, 4]


async def test_calls_come_whole_and_the_first_is_signed(upstream: Upstream, client: httpx.AsyncClient) -> None:
    calls = (ToolCall(name="weather", arguments=('{"a":', "1}"), id="x"), ToolCall(name="now"))
    upstream.plan = Plan(reasoning=("Hm",), tool_calls=calls, signature="c2ln")
    thought, first, second, last = parts(await chunks(client, **DECLARED))
    assert thought == {"text": "Hm", "thought": True}
    assert first == {"functionCall": {"name": "weather", "args": {"a": 1}, "id": "x"}, "thoughtSignature": "c2ln"}
    assert second == {"functionCall": {"name": "now", "args": {}}} and last == {"text": ""}


async def test_a_blocked_prompt_has_no_candidates(upstream: Upstream, client: httpx.AsyncClient) -> None:
    upstream.plan = Plan(finish_reason="PROMPT_SAFETY")
    (only,) = await chunks(client)
    assert only["promptFeedback"] == {"blockReason": "SAFETY"} and "candidates" not in only


async def test_without_sse_it_is_one_array(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/v1beta/models/{MODEL}:streamGenerateContent", json={"contents": [USER]})
    assert answer.headers["content-type"] == "application/json"
    assert parts(answer.json()) == parts(await chunks(client))


async def test_vertex_has_the_same_under_a_longer_path(upstream: Upstream) -> None:
    path = f"/v1beta1/projects/p/locations/global/publishers/google/models/{MODEL}:streamGenerateContent?alt=sse"
    async with httpx.AsyncClient(base_url=upstream.base_url, headers={"authorization": "Bearer t"}) as client:
        answer = await client.post(path, json={"contents": [USER]})
    assert answer.status_code == 200 and upstream.requests[0].key == "t"


async def test_faults_within_a_stream(upstream: Upstream, client: httpx.AsyncClient) -> None:
    upstream.queue(
        Plan(fault="error_event", fault_at=1),
        Plan(fault="error_event", fault_at=1, error_body='{\n "error": {}\n}'),
        Plan(done=False),
        Plan(status=429),
    )
    assert json.loads((await post(client)).text.split("data: ")[2])["error"]["status"] == "UNAVAILABLE"
    assert (await post(client)).text.endswith('\r\n\r\n{\n "error": {}\n}')
    assert "finishReason" not in (await post(client)).text
    assert (await post(client)).json()["error"]["status"] == "RESOURCE_EXHAUSTED"


def called(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"role": "model", "parts": [{"functionCall": {"name": name, "args": {}}, **more}]}


def answered(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"role": "user", "parts": [{"functionResponse": {"name": name, "response": {"output": "x"}, **more}}]}


SIGNED = {"thoughtSignature": "skip_thought_signature_validator"}


@pytest.mark.parametrize(
    ("contents", "more", "message"),
    [
        ([USER], {"model_name": 1}, 'Unknown name "model_name"'),
        ([{"role": "assistant", "parts": [{"text": "x"}]}], {}, "valid role"),
        ([{"role": "user", "parts": []}], {}, "must not be empty"),
        ([{"role": "user", "parts": [{"text": "a", "inlineData": {}}]}], {}, "exactly one"),
        ([{"role": "user", "parts": [{"type": "text"}]}], {}, 'Unknown name "type"'),
        ([called()], {}, "immediately after a user turn"),
        ([USER, called(**SIGNED)], {}, "followed by a function response"),
        ([USER, called(**SIGNED), USER], {}, "equal to the number"),
        ([USER, called(**SIGNED), answered("now")], {}, "answer the function call"),
        ([USER, called(**SIGNED), answered(id="x")], {}, "answer the function call"),
        ([USER, answered()], {}, "equal to the number"),
        ([USER, called(), answered()], {}, "missing a thought_signature"),
        ([USER, called(thoughtSignature="invented"), answered()], {}, "Corrupted thought signature"),
        ([USER], {"generationConfig": {"max_tokens": 1}}, 'Unknown name "max_tokens"'),
        ([USER], {"generationConfig": {"temperature": 3}}, "temperature value of 3"),
        ([USER], {"generationConfig": {"stopSequences": ["a"] * 6}}, "at most 5"),
        ([USER], {"generationConfig": {"thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "LOW"}}}, "only one"),
        ([USER], {"generationConfig": {"responseJsonSchema": {}}}, "response_mime_type"),
        (
            [USER],
            {"tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"$schema": "x"}}]}]},
            'Unknown name "$schema"',
        ),
        ([USER], {"tools": [{"functionDeclarations": [{"name": "1"}]}]}, "Invalid function name"),
        ([USER], {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "without function_declarations"),
    ],
)
async def test_bad_requests_are_refused_and_take_no_plan(
    upstream: Upstream, client: httpx.AsyncClient, contents: list[Any], more: dict[str, Any], message: str
) -> None:
    upstream.queue(Plan(text=("ordered",)))
    assert message in await refused(client, *contents, **more)
    assert upstream.requests[0].refused
    assert parts(await chunks(client))[0] == {"text": "ordered"}


async def test_signatures_are_taken_only_where_they_were_put(upstream: Upstream, client: httpx.AsyncClient) -> None:
    upstream.queue(
        Plan(tool_calls=(ToolCall(name="weather"),), signature="one"), Plan(signature="two"), Plan(), Plan(), Plan()
    )
    await chunks(client, **DECLARED)
    await chunks(client)
    words = {"role": "model", "parts": [{"text": "", "thoughtSignature": "two"}]}
    await chunks(client, USER, called(thoughtSignature="one"), answered(), words, USER)
    assert "Corrupted" in await refused(client, USER, called("now", thoughtSignature="one"), answered("now"))
    assert "Corrupted" in await refused(client, USER, called(thoughtSignature="two"), answered())
    await chunks(client, USER, called(), answered(), USER)  # of earlier turns none is demanded
    await chunks(client, USER, called(), answered(), model="gemini-2.5-flash")


async def test_a_call_without_a_key_is_refused(upstream: Upstream) -> None:
    async with httpx.AsyncClient(base_url=upstream.base_url) as client:
        assert (await post(client)).json()["error"]["status"] == "PERMISSION_DENIED"


async def test_claude_on_vertex_has_the_model_in_its_path(upstream: Upstream) -> None:
    path = "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-x@1:streamRawPredict"
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "stream": True}
    version = {"anthropic_version": "vertex-2023-10-16"}
    async with httpx.AsyncClient(base_url=upstream.base_url, headers={"authorization": "Bearer t"}) as client:
        for change, status in [(version, 200), ({}, 400), ({**version, "model": "x"}, 400)]:
            answer = await client.post(path, json={**body, **change})
            assert answer.status_code == status
    assert upstream.requests[0].body["model"] == "claude-x@1"
