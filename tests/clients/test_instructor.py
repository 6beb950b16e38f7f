"""Instructor against a running gateway: structured answers through tools, through JSON, and in pieces."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.python.install import pins
from tests.clients.python.process import Client, Raised, running
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "up/gpt-upstream"
MODELS = pytest.mark.parametrize("model", [MODEL, "claude/claude-upstream"])
JSON = '{"name":"Köln","people":1090000}'
KOELN = {"name": "Köln", "people": 1_090_000}
CALL = ToolCall(name="City", arguments=(JSON[:11], JSON[11:20], JSON[20:]))
EMPTY = ToolCall(name="City", arguments=('{"name":"Atlantis","people":0}',))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def structured(gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    async with running("instructor_ways", "instructor", gateway, key) as client:
        yield client


async def test_the_version_is_the_pinned_one(structured: Client) -> None:
    assert f"instructor=={await structured('installed')}" in pins("instructor").read_text().split()


async def test_the_documented_code_works(upstream: Upstream, structured: Client) -> None:
    upstream.plan = Plan(tool_calls=(CALL,))
    assert await structured.documented("Instructor", MODEL) == "Köln\n"


@MODELS
async def test_a_call_becomes_an_object(upstream: Upstream, structured: Client, model: str) -> None:
    upstream.plan = Plan(tool_calls=(CALL,), usage=Usage(input=20, output=9))
    told = await structured("create", model=model)
    assert told["city"] == KOELN and told["usage"]["total_tokens"] == 29
    assert upstream.requests[0].body["tool_choice"]["type"] in ("function", "tool")


@MODELS
@pytest.mark.parametrize("mode", ["JSON", "JSON_SCHEMA", "MD_JSON"])
async def test_json_becomes_an_object(upstream: Upstream, structured: Client, model: str, mode: str) -> None:
    upstream.plan = Plan(text=(f"```json\n{JSON}\n```",) if mode == "MD_JSON" else (JSON[:9], JSON[9:]))
    assert (await structured("create", model=model, mode=mode))["city"] == KOELN


@MODELS
async def test_an_object_that_is_not_valid_is_asked_for_again(
    upstream: Upstream, structured: Client, model: str
) -> None:
    upstream.queue(Plan(tool_calls=(EMPTY,)), Plan(tool_calls=(CALL,)))
    assert (await structured("create", model=model, max_retries=2))["city"] == KOELN
    assert "a city has people" in upstream.requests[1].raw.decode()


@MODELS
async def test_an_object_grows_while_it_is_streamed(upstream: Upstream, structured: Client, model: str) -> None:
    upstream.plan = Plan(tool_calls=(CALL,))
    states = await structured("partial", model=model)
    assert states[-1] == KOELN and len(states) > 1 and states[0]["people"] is None


async def test_errors_keep_their_classes(upstream: Upstream, gateway: GatewayProcess, structured: Client) -> None:
    poor = await gateway.account(f"poor-{uuid.uuid4().hex[:12]}", usd="0")
    for key, status, code in (("sk-wrong", 401, "invalid_api_key"), (poor, 402, "credits_exhausted")):
        with pytest.raises(Raised) as caught:
            await structured("create", model=MODEL, api_key=key)
        assert (caught.value.told["status"], caught.value.told["code"]) == (status, code)
    assert not upstream.requests
