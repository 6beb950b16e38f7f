"""Codex without a terminal against a running gateway: Responses, with a command it is told to run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.command_line import NOTE, events, folder_with_note, needs
from tests.clients.documented import shown
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("codex")]

ELSEWHERE = ["up/gpt-upstream", "claude/claude-upstream"]
MODELS = pytest.mark.parametrize("model", [*ELSEWHERE, "newer/gpt-upstream"])
ASK = ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--json"]
# Nothing from elsewhere, and no long waits.
ALSO = """
request_max_retries = 1
stream_max_retries = 1

[features]
plugins = false
"""
AGENTS = "multi_agent_v1"
CLOSE = ToolCall(name=f"{AGENTS}__close_agent", arguments=('{"target": ', '"nobody"}'))
CAT = ToolCall(name="exec_command", arguments=('{"cmd":', '"cat note.txt"}'))


async def ask(gateway: GatewayProcess, key: str, home: Path, model: str) -> tuple[int, list[Any]]:
    folder_with_note(home)
    (home / ".codex").mkdir()
    [config] = shown("Codex", "toml")
    config = config.replace("http://127.0.0.1:8080", gateway.base_url).replace("openai/gpt-5", model)
    (home / ".codex" / "config.toml").write_text(config.rstrip() + ALSO)
    return await events([*ASK, "What does note.txt say?"], home, GATEWAY_KEY=key)


def items(told: list[Any], kind: str) -> list[Any]:
    done = [event["item"] for event in told if event["type"] == "item.completed"]
    return [item for item in done if item["type"] == kind]


@MODELS
async def test_it_runs_a_command_and_answers(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path, model: str
) -> None:
    usage = Usage(input=100, output=50, cache_read=60)
    # Its reasoning goes back with the command's output; the simulated provider refuses what it did not sign.
    upstream.queue(
        Plan(reasoning=("Hm", "."), text=("Let me see.",), tool_calls=(CAT,), usage=usage),
        Plan(text=("It says ", f"{NOTE}."), usage=usage),
    )
    code, told = await ask(gateway, key, tmp_path, model)
    assert (code, told[-1]["type"]) == (0, "turn.completed"), told
    assert [item["text"] for item in items(told, "agent_message")] == ["Let me see.", f"It says {NOTE}."]
    assert [item["text"] for item in items(told, "reasoning")] == ["Hm."]
    [ran] = items(told, "command_execution")
    assert (ran["aggregated_output"], ran["exit_code"]) == (f"{NOTE}\n", 0)
    spent = told[-1]["usage"]
    assert (spent["input_tokens"], spent["cached_input_tokens"], spent["output_tokens"]) == (200, 120, 100)
    assert [received.refused for received in upstream.requests] == [None, None]
    assert NOTE in json.dumps(upstream.requests[1].body)


@pytest.mark.parametrize("model", ELSEWHERE)
async def test_its_grouped_tools_have_flat_names_elsewhere(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path, model: str
) -> None:
    upstream.queue(Plan(tool_calls=(CLOSE,)), Plan(text=("Done.",)))
    code, told = await ask(gateway, key, tmp_path, model)
    assert (code, told[-1]["type"]) == (0, "turn.completed"), told
    offered = json.dumps(upstream.requests[0].body["tools"])
    assert f'"{AGENTS}__spawn_agent"' in offered and "web_search" not in offered and '"namespace"' not in offered
    answered = json.dumps(upstream.requests[1].body["messages"][-1])
    # Codex knows the function that was called, and the agent it names not.
    assert "unsupported" not in answered and "nobody" in answered, answered


async def test_a_responses_provider_gets_its_tools_as_they_are(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    bare = ToolCall(name="close_agent", arguments=CLOSE.arguments)
    upstream.queue(Plan(tool_calls=(bare,)), Plan(text=("Done.",)))
    code, told = await ask(gateway, key, tmp_path, "newer/gpt-upstream")
    assert (code, told[-1]["type"]) == (0, "turn.completed"), told
    kinds = [tool["type"] for tool in upstream.requests[0].body["tools"]]
    assert "namespace" in kinds and "web_search" in kinds
    [called] = [item for item in upstream.requests[1].body["input"] if item["type"] == "function_call"]
    assert (called["namespace"], called["name"]) == (AGENTS, "close_agent")
    [answered] = [item for item in upstream.requests[1].body["input"] if item["type"] == "function_call_output"]
    assert "unsupported" not in json.dumps(answered) and "nobody" in json.dumps(answered), answered


async def test_an_empty_account_is_told_so(upstream: Upstream, gateway: GatewayProcess, tmp_path: Path) -> None:
    code, told = await ask(gateway, await gateway.account("poor-codex", usd="0"), tmp_path, "up/gpt-upstream")
    assert (code, told[-1]["type"]) == (1, "turn.failed")
    assert "credits_exhausted" in told[-1]["error"]["message"] or "credit" in told[-1]["error"]["message"]
    assert not upstream.requests


async def test_a_provider_that_fails_within_the_stream_is_asked_again(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    upstream.queue(Plan(fault="error_event", fault_at=1), Plan())
    code, told = await ask(gateway, key, tmp_path, "up/gpt-upstream")
    assert code == 0 and items(told, "agent_message")[-1]["text"] == "Hello, world!"
    assert len(upstream.requests) == 2
