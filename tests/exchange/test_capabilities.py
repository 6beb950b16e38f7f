"""What a model cannot serve is refused before anything is held or asked; what it would refuse is not sent to it."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis import Redis

from tests.exchange.fleet import Fleet, Party, provider
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
WARNINGS = "x-gateway-warnings"
HI = [{"role": "user", "content": "Hello"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}

MODELS: dict[str, Any] = {
    "up/blind": {"capabilities": ["tools", "reasoning", "json_schema"]},
    "claude/blind": {"capabilities": ["tools", "reasoning", "json_schema"]},
    "up/plain": {"capabilities": []},
    "claude/plain": {"capabilities": []},
    "up/short": {"context_tokens": 40, "output_tokens_max": 50},
    "claude/short": {"context_tokens": 40, "output_tokens_max": 50},
    "up/fixed-*": {"refuses": ["temperature", "top_p", "stop"]},
    "claude/fixed-*": {"refuses": ["temperature", "top_k"]},
    "either": {"targets": ["up/blind", "claude/any"]},
    "neither": {"targets": ["up/blind", "claude/plain"]},
    "many": {"targets": [*(f"up/blind-{number}" for number in range(5)), "up/any"]},
    "up/blind-*": {"capabilities": ["tools"]},
    "roomy": {"targets": ["up/short", "claude/any"]},
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """One gateway and a provider that speaks both formats; ``known`` has the cards of OpenAI's models."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(Redis.from_url(redis.url))
        config = {
            "providers": {
                "up": provider(upstream),
                "claude": provider(upstream, type="anthropic"),
                "known": provider(upstream, price_book="openai"),
            },
            "models": MODELS,
            "tiers": {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}},
        }
        gateway = GatewayProcess(config, redis_url=redis.url)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        started = Fleet(upstream, store, [gateway])
        stack.push_async_callback(started.client.aclose)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def party(running: Fleet) -> Party:
    """An account with credit, in front of a provider as if it were fresh."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return await running.party()


async def post(party: Party, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    if path == MESSAGES:
        body = {"max_tokens": 20, **body}
    return await party.fleet.client.post(party.fleet.url() + path, json=body, headers=party.headers(**headers))


async def refused(party: Party, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """The error of a request that took nothing and reached nobody."""
    before = await party.settled()
    answer = await post(party, path, body, **headers)
    assert answer.status_code == 400, answer.text
    assert not party.fleet.upstream.requests
    assert await party.settled() == before and await party.usage() == []
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def pictured(path: str) -> list[dict[str, Any]]:
    """A message with a picture, as the path's format has it."""
    if path == CHAT:
        shown: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    else:
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        shown = {"type": "image", "source": source}
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, shown]}]


def tools(path: str) -> list[dict[str, Any]]:
    """One tool, as the path's format has it."""
    if path == CHAT:
        return [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    return [{"name": "f", "input_schema": SCHEMA}]


def shaped(path: str) -> dict[str, Any]:
    """The wish for an answer of a shape, as the path's format has it."""
    if path == CHAT:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}}}
    return {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}


@pytest.mark.parametrize("provider_name", ["up", "claude"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_pictures_are_refused_where_the_model_has_no_eyes(party: Party, path: str, provider_name: str) -> None:
    error = await refused(party, path, {"model": f"{provider_name}/blind", "messages": pictured(path)})
    assert "takes no images" in error["message"] and f"{provider_name}/blind" in error["message"]
    if path == CHAT:
        assert (error["param"], error["code"]) == ("messages", "unsupported_value")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_tools_and_schemas_are_refused_where_the_model_has_no_use_for_them(party: Party, path: str) -> None:
    error = await refused(party, path, {"model": "up/plain", "messages": HI, "tools": tools(path)})
    assert "calls no tools" in error["message"]
    error = await refused(party, path, {"model": "claude/plain", "messages": HI, **shaped(path)})
    assert "JSON schema" in error["message"]


async def test_in_responses_the_field_is_the_input(party: Party) -> None:
    shown = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
    body = {"model": "up/blind", "input": [{"role": "user", "content": [shown]}]}
    assert (await refused(party, RESPONSES, body))["param"] == "input"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_prompt_beyond_the_window_is_refused_as_clients_know_it(party: Party, path: str) -> None:
    long = [{"role": "user", "content": "word " * 60}]
    error = await refused(party, path, {"model": "up/short", "messages": long})
    assert "prompt is too long" in error["message"] and "> 40 maximum context length" in error["message"]
    if path == CHAT:
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    short = await post(party, path, {"model": "up/short", "messages": HI, "max_tokens": 9})
    assert short.status_code == 200 and WARNINGS not in short.headers


async def test_a_picture_is_not_taken_for_a_long_prompt(party: Party) -> None:
    answer = await post(party, CHAT, {"model": "up/short", "messages": pictured(CHAT), "max_tokens": 9})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("model", "path"), [("either", CHAT), ("either", MESSAGES), ("many", CHAT)])
async def test_of_several_targets_those_are_asked_that_can(party: Party, model: str, path: str) -> None:
    answer = await post(party, path, {"model": model, "messages": pictured(path)})
    assert answer.status_code == 200, answer.text
    (asked,) = party.fleet.upstream.requests
    assert asked.body["model"] == "any"


async def test_the_window_chooses_among_targets_too(party: Party) -> None:
    answer = await post(party, CHAT, {"model": "roomy", "messages": [{"role": "user", "content": "word " * 60}]})
    assert answer.status_code == 200, answer.text
    assert party.fleet.upstream.requests[-1].body["model"] == "any"


async def test_where_no_target_can_the_first_ones_reason_is_told(party: Party) -> None:
    error = await refused(party, CHAT, {"model": "neither", "messages": pictured(CHAT)})
    assert "takes no images" in error["message"] and "neither" in error["message"]


@pytest.mark.parametrize("provider_name", ["up", "claude"])
async def test_refused_parameters_are_not_sent_and_named(party: Party, provider_name: str) -> None:
    body = {"model": f"{provider_name}/fixed-1", "messages": HI, "temperature": 0.3}
    answer = await post(party, CHAT, body)
    assert answer.status_code == 200 and answer.headers[WARNINGS] == "dropped:temperature"
    own = await post(party, MESSAGES, body)
    assert own.status_code == 200 and own.headers[WARNINGS] == "dropped:temperature"
    assert not any("temperature" in request.body for request in party.fleet.upstream.requests)


async def test_the_default_value_of_a_refused_parameter_is_left_out_without_a_word(party: Party) -> None:
    answer = await post(party, CHAT, {"model": "up/fixed-1", "messages": HI, "temperature": 1, "top_p": 1})
    assert answer.status_code == 200 and WARNINGS not in answer.headers
    assert not {"temperature", "top_p"} & party.fleet.upstream.requests[-1].body.keys()


async def test_a_stop_sequence_is_not_dropped_but_refused(party: Party) -> None:
    error = await refused(party, CHAT, {"model": "up/fixed-1", "messages": HI, "stop": ["."]})
    assert error["param"] == "stop"


@pytest.mark.parametrize(
    ("path", "more", "field"),
    [
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}, "thinking"),
        (MESSAGES, {"output_config": {"effort": "low"}}, "output_config.effort"),
    ],
)
@pytest.mark.parametrize("provider_name", ["up", "claude"])
async def test_reasoning_is_not_asked_of_a_model_that_does_not(
    party: Party, path: str, more: dict[str, Any], field: str, provider_name: str
) -> None:
    body = {"model": f"{provider_name}/plain", "messages": HI, **more}
    answer = await post(party, path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers[WARNINGS] == f"dropped:{field}"
    sent = party.fleet.upstream.requests[-1].body
    assert not {"reasoning_effort", "thinking", "output_config"} & sent.keys()


@pytest.mark.parametrize(
    ("model", "more", "field"),
    [
        ("up/plain", {"reasoning_effort": "high"}, "reasoning_effort"),
        ("up/fixed-1", {"temperature": 0.3}, "temperature"),
        ("up/short", {"max_tokens": 500}, "max_tokens"),
    ],
)
async def test_a_strict_client_is_refused_what_a_lax_one_does_without(
    party: Party, model: str, more: dict[str, Any], field: str
) -> None:
    error = await refused(party, CHAT, {"model": model, "messages": HI, **more}, x_gateway_strict="true")
    assert error["param"] == field


async def test_a_bound_above_the_models_own_is_lowered(party: Party) -> None:
    for name in ("up", "claude"):
        answer = await post(party, CHAT, {"model": f"{name}/short", "messages": HI, "max_tokens": 500})
        assert answer.status_code == 200 and answer.headers[WARNINGS] == "lowered:max_tokens"
        assert party.fleet.upstream.requests[-1].body["max_tokens"] == 50


async def test_an_answer_that_ends_at_the_models_own_bound_ends_as_answers_do(party: Party) -> None:
    party.fleet.upstream.plan = Plan(text=("word ",), endless=True, obey_max_tokens=True)
    answer = await post(party, CHAT, {"model": "up/short", "messages": HI, "max_tokens": 500})
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length" and "x_gateway" not in answer.json()
    assert (await party.record())["outcome"] == "complete"


async def test_shipped_cards_are_those_of_the_vendor(party: Party) -> None:
    answer = await post(party, CHAT, {"model": "known/o3", "messages": HI, "temperature": 0.5})
    assert answer.status_code == 200 and answer.headers[WARNINGS] == "dropped:temperature"
    error = await post(party, CHAT, {"model": "known/gpt-3.5-turbo", "messages": pictured(CHAT)})
    assert error.status_code == 400 and "takes no images" in error.text
    assert len(party.fleet.upstream.requests) == 1


async def test_a_stream_is_refused_and_warned_of_likewise(party: Party) -> None:
    error = await refused(party, CHAT, {"model": "up/blind", "messages": pictured(CHAT), "stream": True})
    assert error["param"] == "messages"
    answer = await post(party, CHAT, {"model": "up/fixed-1", "messages": HI, "temperature": 0.3, "stream": True})
    assert answer.headers[WARNINGS] == "dropped:temperature"
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(it["delta"].get("content") or "" for chunk in chunks for it in chunk["choices"]) == "one two"
