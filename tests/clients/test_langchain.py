"""LangChain's ChatOpenAI against a running gateway, over both of OpenAI's formats and with both kinds of provider."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.clients.python.install import pins
from tests.clients.python.process import Client, Raised, running
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "up/gpt-upstream"
# Behind an address that is not OpenAI's, ChatOpenAI asks a stream for its usage only where it is told to.
CHAT = {"stream_usage": True}
RESPONSES = {"use_responses_api": True}
MODELS = pytest.mark.parametrize("model", [MODEL, "claude/claude-upstream"])
FORMATS = pytest.mark.parametrize("options", [CHAT, RESPONSES], ids=["chat", "responses"])
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
VERDICT = '{"good":true,"why":"sun"}'


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chat(gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    async with running("langchain_ways", "langchain", gateway, key) as client:
        yield client


async def test_the_version_is_the_pinned_one(chat: Client) -> None:
    assert f"langchain-openai=={await chat('installed')}" in pins("langchain").read_text().split()


async def test_the_documented_code_works(upstream: Upstream, chat: Client) -> None:
    assert await chat.documented("LangChain", MODEL) == "Hello, world!"


@MODELS
@FORMATS
async def test_an_answer_has_text_and_usage(upstream: Upstream, chat: Client, model: str, options: Any) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9, cache_read=5))
    for way in ("invoke", "stream"):
        told = await chat(way, model=model, options=options)
        assert told["text"] == "Hello, world!" and told["finish"] in ("stop", "completed")
        usage = told["usage"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 9, 29)
        assert usage["input_token_details"]["cache_read"] == 5
    assert told["texts"] == ["Hello", ", ", "world", "!"]


@MODELS
@FORMATS
async def test_bound_tools_go_round(upstream: Upstream, chat: Client, model: str, options: Any) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "everywhere.")))
    told = await chat("tools", model=model, options=options)
    assert told["first"]["calls"] == [["weather", {"city": "Köln"}], ["weather", {"city": "Oslo"}]]
    assert told["second"]["text"] == "Sun everywhere."
    sent = upstream.requests[1].raw.decode()
    assert "sun in Köln" in sent and "sun in Oslo" in sent


@MODELS
@FORMATS
async def test_an_answer_is_parsed_into_a_model(upstream: Upstream, chat: Client, model: str, options: Any) -> None:
    upstream.plan = Plan(tool_calls=(ToolCall(name="Verdict", arguments=(VERDICT,)),))
    told = await chat("structured", model=model, method="function_calling", options=options)
    assert told == {"good": True, "why": "sun"}
    upstream.plan = Plan(text=(VERDICT[:9], VERDICT[9:]))
    assert await chat("structured", model=model, method="json_schema", options=options) == told


@MODELS
async def test_reasoning_is_a_block_of_its_own_in_responses(upstream: Upstream, chat: Client, model: str) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"))
    told = await chat("stream", model=model, options={**RESPONSES, "output_version": "responses/v1"})
    assert told["text"] == "Hello, world!" and set(told["blocks"]) == {"reasoning", "text"}


@FORMATS
async def test_errors_keep_their_classes(
    upstream: Upstream, gateway: GatewayProcess, chat: Client, options: Any
) -> None:
    poor = await gateway.account(f"poor-{uuid.uuid4().hex[:12]}", usd="0")
    for key, status, code in (("sk-wrong", 401, "invalid_api_key"), (poor, 402, "credits_exhausted")):
        with pytest.raises(Raised) as caught:
            await chat("invoke", model=MODEL, options=options, api_key=key)
        assert (caught.value.told["status"], caught.value.told["code"]) == (status, code)
    assert not upstream.requests
    upstream.plan = Plan(status=429, retry_after=7)
    for way in ("invoke", "stream"):
        with pytest.raises(Raised) as caught:
            await chat(way, model=MODEL, options=options)
        assert "RateLimitError" in caught.value.told["kinds"]
    upstream.queue(Plan(status=500), Plan(status=500), Plan())  # the gateway itself asks once more
    patient = {**options, "max_retries": 2}
    assert (await chat("invoke", model=MODEL, options=patient))["text"] == "Hello, world!"
