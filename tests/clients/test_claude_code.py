"""Claude Code without a terminal against a running gateway: it asks, reads a file as it is told, and answers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.clients.command_line import NOTE, events, folder_with_note, needs
from tests.clients.documented import shown
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("claude")]

CLAUDE = "claude/claude-upstream"
MODELS = pytest.mark.parametrize("model", [CLAUDE, "up/gpt-upstream"])
ASK = ["claude", "-p", "What does note.txt say?", "--output-format", "stream-json", "--verbose"]
OPENAI_USER_CHARS_MAX = 64


async def ask(gateway: GatewayProcess, key: str, home: Path, model: str) -> tuple[int, list[Any]]:
    [exports] = shown("Claude Code", "sh")
    environment = dict(re.findall(r"^export (\w+)=(\S+)$", exports, re.MULTILINE))
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    models = {name: model for name in environment if name.endswith("_MODEL")}
    here = {"ANTHROPIC_BASE_URL": gateway.base_url, "ANTHROPIC_AUTH_TOKEN": key, **models}
    assert here.keys() == environment.keys()
    return await events(ASK, home, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", **here)


def read(path: Path) -> ToolCall:
    return ToolCall(name="Read", arguments=('{"file_path":', json.dumps(str(path)) + "}"))


def blocks(told: list[Any], kind: str) -> list[Any]:
    said = [block for event in told if event["type"] in ("assistant", "user") for block in event["message"]["content"]]
    return [block for block in said if isinstance(block, dict) and block["type"] == kind]


@MODELS
async def test_it_reads_a_file_and_answers(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path, model: str
) -> None:
    note = folder_with_note(tmp_path) / "note.txt"
    usage = Usage(input=100, output=50, cache_read=60)
    upstream.queue(
        Plan(reasoning=("Hm", "."), text=("Let me see.",), tool_calls=(read(note),), usage=usage),
        Plan(text=("It says ", f"{NOTE}."), usage=usage),
    )
    code, told = await ask(gateway, key, tmp_path, model)
    result = told[-1]
    assert (code, result["type"], result["result"]) == (0, "result", f"It says {NOTE}."), result
    assert result["stop_reason"] == "end_turn" and not result["is_error"]
    assert [block["input"] for block in blocks(told, "tool_use")] == [{"file_path": str(note)}]
    assert NOTE in blocks(told, "tool_result")[0]["content"]
    assert [block["thinking"] for block in blocks(told, "thinking")] == ["Hm."]
    spent = result["usage"]
    assert (spent["input_tokens"], spent["cache_read_input_tokens"], spent["output_tokens"]) == (80, 120, 100)
    assert [received.refused for received in upstream.requests] == [None, None]
    assert NOTE in upstream.requests[1].raw.decode()


async def test_what_it_sends_reaches_anthropic_whole(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    folder_with_note(tmp_path)
    assert (await ask(gateway, key, tmp_path, CLAUDE))[0] == 0
    received = upstream.requests[0]
    assert "claude-code-20250219" in received.headers["anthropic-beta"].split(",")
    assert received.body["metadata"]["user_id"].startswith("{") and received.body["thinking"]
    assert '"cache_control"' in received.raw.decode() and len(received.body["tools"]) > 5


async def test_its_long_user_id_is_none_that_openai_would_refuse(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    folder_with_note(tmp_path)
    assert (await ask(gateway, key, tmp_path, "up/gpt-upstream"))[0] == 0
    assert 0 < len(upstream.requests[0].body["user"]) <= OPENAI_USER_CHARS_MAX


async def test_a_provider_that_fails_once_is_asked_again(
    upstream: Upstream, gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    folder_with_note(tmp_path)
    upstream.queue(Plan(status=529), Plan(status=529), Plan())  # the gateway itself asks once more
    code, told = await ask(gateway, key, tmp_path, CLAUDE)
    assert (code, told[-1]["result"]) == (0, "Hello, world!") and len(upstream.requests) == 3


async def test_an_empty_account_is_told_so_at_once(upstream: Upstream, gateway: GatewayProcess, tmp_path: Path) -> None:
    folder_with_note(tmp_path)
    code, told = await ask(gateway, await gateway.account("poor-coder", usd="0"), tmp_path, CLAUDE)
    assert code == 1 and told[-1]["is_error"] and told[-1]["api_error_status"] == 402
    assert "credit" in told[-1]["result"].lower()
    assert not upstream.requests
