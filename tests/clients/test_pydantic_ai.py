"""Pydantic AI's agents against a running gateway, over its model classes for three formats."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.python.install import pins
from tests.clients.python.process import Client, Raised, running
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
MODELS = pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
VERDICT = ToolCall(name="final_result", arguments=('{"good":', 'true,"why":"sun"}'))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(gateway: GatewayProcess, key: str) -> AsyncIterator[Client]:
    async with running("pydantic_ai_ways", "pydantic-ai", gateway, key) as client:
        yield client


async def test_the_version_is_the_pinned_one(agent: Client) -> None:
    assert f"pydantic-ai-slim=={await agent('installed')}" in pins("pydantic-ai").read_text().split()


async def test_the_documented_code_works(upstream: Upstream, agent: Client) -> None:
    assert await agent.documented("Pydantic AI", "up/gpt-upstream") == "Hello, world!\n"


@KINDS
@MODELS
async def test_an_agent_runs_its_tools_and_answers(upstream: Upstream, agent: Client, kind: str, model: str) -> None:
    usage = Usage(input=20, output=9)
    upstream.queue(
        Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO), usage=usage), Plan(text=("Sun.",), usage=usage)
    )
    told = await agent("run", kind=kind, model=model)
    assert sorted(told["asked"]) == ["Köln", "Oslo"] and told["output"] == "Sun."
    assert told["usage"] == {"requests": 2, "input": 40, "output": 18}
    sent = upstream.requests[1].raw.decode()
    assert "sun in Köln" in sent and "sun in Oslo" in sent


@KINDS
@MODELS
async def test_an_agents_answer_is_streamed_after_its_tools(
    upstream: Upstream, agent: Client, kind: str, model: str
) -> None:
    upstream.queue(Plan(tool_calls=(COLOGNE,)), Plan())
    told = await agent("stream", kind=kind, model=model)
    assert (told["texts"], told["asked"]) == (["Hello", ", ", "world", "!"], ["Köln"])
    assert told["usage"]["requests"] == 2 and told["usage"]["input"] == 20


@KINDS
@MODELS
async def test_an_agents_thoughts_do_not_disturb(upstream: Upstream, agent: Client, kind: str, model: str) -> None:
    # The thoughts go back with the results; the simulated provider refuses what it did not sign.
    upstream.queue(Plan(reasoning=("Where is ", "Köln?"), tool_calls=(COLOGNE,)), Plan())
    told = await agent("run", kind=kind, model=model)
    assert (told["output"], told["asked"]) == ("Hello, world!", ["Köln"])


@KINDS
@MODELS
async def test_an_answer_is_parsed_into_a_model_and_asked_for_again_where_it_is_wrong(
    upstream: Upstream, agent: Client, kind: str, model: str
) -> None:
    wrong = ToolCall(name="final_result", arguments=('{"good":"perhaps"}',))
    upstream.queue(Plan(tool_calls=(wrong,)), Plan(tool_calls=(VERDICT,)))
    assert await agent("structured", kind=kind, model=model) == {"good": True, "why": "sun"}
    assert len(upstream.requests) == 2


@KINDS
async def test_errors_keep_their_classes(upstream: Upstream, gateway: GatewayProcess, agent: Client, kind: str) -> None:
    model = "up/gpt-upstream"
    poor = await gateway.account(f"poor-{uuid.uuid4().hex[:12]}", usd="0")
    for key, status in (("sk-wrong", 401), (poor, 402)):
        with pytest.raises(Raised) as caught:
            await agent("run", kind=kind, model=model, api_key=key)
        assert caught.value.told["status"] == status and "ModelHTTPError" in caught.value.told["kinds"]
    assert not upstream.requests
    upstream.plan = Plan(status=400)
    with pytest.raises(Raised) as caught:
        await agent("stream", kind=kind, model=model)
    assert caught.value.told["status"] == 400
