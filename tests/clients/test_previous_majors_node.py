"""Both majors of openai-node against a running gateway: 6 on the node of this machine, 7 on node 22."""

import asyncio
import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.clients.command_line import BIN, INSTALL
from tests.clients.scripts import FOLDER, needs
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("openai7")]

NODE_22 = BIN / "node"
USER = {"role": "user", "content": "Hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "parameters": PARAMETERS}
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
BOTH = pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])


class OpenAiNode:
    """One major with a key."""

    def __init__(self, major: str, gateway: GatewayProcess, key: str) -> None:
        self.major = major
        self._node = str(NODE_22) if major == "7" else shutil.which("node") or "node"
        sdk = "openai" if major == "6" else f"openai{major}"
        self._target = {"sdk": sdk, "baseURL": f"{gateway.base_url}/v1", "apiKey": key}

    async def __call__(self, way: str, *, key: str | None = None, **ask: Any) -> Any:
        argument = {**self._target, **({"apiKey": key} if key else {}), "way": way, "ask": ask}
        command = [self._node, str(FOLDER / "openai_majors.mjs"), json.dumps(argument)]
        ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=50, check=False)
        assert ended.returncode == 0 and not ended.stderr, ended.stderr.decode()
        return json.loads(ended.stdout)


@pytest.fixture(params=["6", "7"])
def sdk(request: pytest.FixtureRequest, gateway: GatewayProcess, key: str) -> OpenAiNode:
    if request.param == "7" and not NODE_22.exists():
        pytest.skip(f"needs node 22 from npm: {INSTALL}")
    return OpenAiNode(request.param, gateway, key)


async def test_the_major_is_the_one_meant(sdk: OpenAiNode) -> None:
    assert (await sdk("version"))["result"].partition(".")[0] == sdk.major


@BOTH
async def test_a_stream_has_text_reason_and_usage(upstream: Upstream, sdk: OpenAiNode, model: str) -> None:
    upstream.plan = Plan(usage=Usage(input=20, output=9))
    told = await sdk("stream", model=model, messages=[USER], stream_options={"include_usage": True})
    *said, last, usage = told["result"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in said) == "Hello, world!"
    assert last["choices"][0]["finish_reason"] == "stop" and usage["usage"]["total_tokens"] == 29


@BOTH
async def test_tools_go_round(upstream: Upstream, sdk: OpenAiNode, model: str) -> None:
    upstream.queue(Plan(tool_calls=(COLOGNE,)), Plan(text=("Sun.",)))
    told = await sdk("tools", model=model, messages=[USER], tools=[WEATHER])
    assert told["result"]["content"] == "Sun."
    assert [message["role"] for message in told["result"]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert "sun in Köln" in upstream.requests[1].raw.decode()


@BOTH
async def test_responses_are_streamed(upstream: Upstream, sdk: OpenAiNode, model: str) -> None:
    events = (await sdk("responses", model=model, input="Hi"))["result"]
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello, world!"
    assert (await sdk("response", model=model, input="Hi"))["result"] == "Hello, world!"


async def test_errors_have_their_classes(upstream: Upstream, gateway: GatewayProcess, sdk: OpenAiNode) -> None:
    ask: dict[str, Any] = {"model": "up/gpt-upstream", "messages": [USER]}
    told = await sdk("whole", key="sk-wrong", **ask)
    assert (told["error"]["kind"], told["error"]["code"]) == ("AuthenticationError", "invalid_api_key")
    poor = await gateway.account(f"poor-node-{sdk.major}", usd="0")
    told = await sdk("whole", key=poor, **ask)
    assert (told["error"]["status"], told["error"]["code"]) == (402, "credits_exhausted")
    upstream.plan = Plan(status=429, retry_after=7)
    told = await sdk("stream", **ask)
    assert (told["error"]["kind"], told["error"]["retryAfter"]) == ("RateLimitError", "7")
