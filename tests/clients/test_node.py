"""The JavaScript clients against a running gateway: openai-node, and the code behind ``useChat`` of AI SDK 4."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.clients.scripts import appears, needs, run
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs("openai"),
]

USER = {"role": "user", "content": "Hi"}
ASK: dict[str, Any] = {"model": "up/gpt-upstream", "messages": [USER]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
BOTH = pytest.mark.parametrize("model", ["up/gpt-upstream", "claude/claude-upstream"])
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))


class OpenAiNode:
    """openai-node with a key."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._target = {"baseURL": f"{gateway.base_url}/v1", "apiKey": key}

    async def __call__(self, way: str, *, signal: Path | None = None, key: str | None = None, **more: Any) -> Any:
        target = self._target | ({"apiKey": key} if key else {})
        told = {"signal": str(signal)} if signal else {}
        return await run("openai_client.mjs", **target, **told, way=way, ask={**ASK, **more})


class UseChat:
    """``useChat`` with a key. Its users see ``screen``."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._base_url, self._key = gateway.base_url, key

    async def __call__(self, model: str, *, key: str | None = None, **more: Any) -> Any:
        provider, _, name = model.partition("/")
        api = f"{self._base_url}/api/ai/chat-stream?provider={provider}&model={name}"
        headers = {"authorization": f"Bearer {key or self._key}"}
        messages = [{"id": "m1", "role": "user", "content": "Hi", "createdAt": "2026-11-20T00:00:00Z"}]
        return await run("use_chat.mjs", **{"api": api, "headers": headers, "messages": messages, **more})


@pytest.fixture
def node(gateway: GatewayProcess, key: str) -> OpenAiNode:
    return OpenAiNode(gateway, key)


@pytest.fixture
def use_chat(gateway: GatewayProcess, key: str) -> UseChat:
    return UseChat(gateway, key)


@BOTH
async def test_openai_node_streams(upstream: Upstream, node: OpenAiNode, model: str) -> None:
    chunks = (await node("stream", model=model, stream_options={"include_usage": True}))["chunks"]
    *said, last, usage = chunks
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in said) == "Hello, world!"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 14)


@pytest.mark.parametrize("way", ["whole", "helper"])
@BOTH
async def test_openai_node_gets_messages_with_calls(upstream: Upstream, node: OpenAiNode, model: str, way: str) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    choice = (await node(way, model=model, tools=[TOOL]))["completion"]["choices"][0]
    assert choice["message"]["content"] == "Let me see." and choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"])["city"] for call in calls] == ["Köln", "Oslo"]


async def test_openai_nodes_helper_reads_a_stream_full_of_quirks(upstream: Upstream, node: OpenAiNode) -> None:
    upstream.plan = Plan(
        tool_calls=(COLOGNE, OSLO),
        role_on_every_chunk=True,
        usage_in_choices_chunk=True,
        no_tool_index=True,
        finish_stop_with_tools=True,
        crlf=True,
        comments=True,
        cut=3,
        done=False,
    )
    choice = (await node("helper", tools=[TOOL]))["completion"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and len(choice["message"]["tool_calls"]) == 2


@pytest.mark.parametrize("way", ["runTools", "runToolsWhole"])
@BOTH
async def test_openai_node_runs_tools_until_there_is_an_answer(
    upstream: Upstream, node: OpenAiNode, model: str, way: str
) -> None:
    upstream.queue(Plan(tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "and rain.")))
    ran = await node(way, model=model, tools=[TOOL])
    assert ran["called"] == [{"name": "weather", "args": {"city": city}} for city in ("Köln", "Oslo")]
    assert ran["content"] == "Sun and rain."
    assert "weather says: Oslo" in upstream.requests[1].raw.decode()


async def test_openai_node_lists_models(node: OpenAiNode) -> None:
    models = await node("models", model="up/family/large")
    assert models["one"] in models["listed"] and models["one"]["id"] == "up/family/large"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"key": "sk-wrong"}, ("AuthenticationError", 401, "invalid_api_key", None)),
        ({"model": "nothing"}, ("NotFoundError", 404, "model_not_found", "model")),
        ({"temperature": 3}, ("BadRequestError", 400, "invalid_value", "temperature")),
    ],
)
@pytest.mark.parametrize("way", ["stream", "whole"])
async def test_openai_node_throws_the_right_class(
    node: OpenAiNode, way: str, change: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    error = (await node(way, **change))["error"]
    assert (error["kind"], error["status"], error["code"], error["param"]) == expected


async def test_openai_node_does_not_retry_an_empty_account(node: OpenAiNode, gateway: GatewayProcess) -> None:
    key = await gateway.account(f"acme-{uuid.uuid4().hex[:12]}", usd="0")
    answer = await node("retrying", key=key)
    assert (answer["error"]["status"], answer["error"]["code"], answer["requests"]) == (402, "credits_exhausted", 1)


async def test_openai_node_throws_on_an_error_within_the_stream(upstream: Upstream, node: OpenAiNode) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    answer = await node("stream")
    assert len(answer["chunks"]) == 3
    assert (answer["error"]["kind"], answer["error"]["code"]) == ("APIError", "stream_truncated")


async def test_openai_node_waits_through_heartbeats(upstream: Upstream, node: OpenAiNode, tmp_path: Path) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    head = tmp_path / "head"
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(node("stream", signal=head))
        await appears(head)
        upstream.release()
    chunks = asking.result()["chunks"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_openai_node_sees_a_cut_as_a_length(
    upstream: Upstream, node: OpenAiNode, gateway: GatewayProcess
) -> None:
    upstream.plan = Plan(text=(" one", " two"), endless=True)
    key = await gateway.account(f"acme-{uuid.uuid4().hex[:12]}", usd="0.0005")
    last = (await node("stream", key=key))["chunks"][-1]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["x_gateway"]["reason"] == "credits_exhausted"


V4_TOOL = {"name": "weather", "description": "Get the weather.", "parameters": PARAMETERS}


def kinds(message: dict[str, Any]) -> list[str]:
    return [part["type"] for part in message["parts"]]


@BOTH
async def test_use_chat_shows_text_and_knows_what_it_cost(upstream: Upstream, use_chat: UseChat, model: str) -> None:
    upstream.plan = Plan(text=("Hé", "llo\n", '0:"x"', " \u2028\U0001f600"), usage=Usage(input=20, output=9))
    chat = await use_chat(model)
    question, answer = chat["screen"]
    assert (question["content"], answer["content"]) == ("Hi", 'Héllo\n0:"x" \u2028\U0001f600')
    assert answer["role"] == "assistant" and kinds(answer) == ["step-start", "text"]
    assert answer["id"].startswith("msg-") and chat["error"] is None
    usage = {"promptTokens": 20, "completionTokens": 9, "totalTokens": 29}
    assert chat["finishes"] == [{"usage": usage, "finishReason": "stop"}]
    texts = [snapshot["content"] for snapshot in chat["snapshots"]]
    assert texts == sorted(texts, key=len) and len(set(texts)) == 5
    assert chat["received"][0]["headers"]["x-vercel-ai-data-stream"] == "v1"
    assert chat["received"][0]["headers"]["content-type"] == "text/plain; charset=utf-8"
    assert chat["core"][1] == {"role": "assistant", "content": [{"type": "text", "text": answer["content"]}]}


async def test_use_chat_posts_what_the_provider_gets(upstream: Upstream, use_chat: UseChat) -> None:
    image = {"url": "data:image/png;base64,iVBORw0KGgo=", "contentType": "image/png", "name": "a.png"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is this?", "experimental_attachments": [image]},
    ]
    body = {"maxTokens": 50, "temperature": 0.5, "system": "Be kind.", "tools": [V4_TOOL]}
    chat = await use_chat("up/gpt-upstream", messages=messages, body=body)
    assert chat["error"] is None
    sent = upstream.requests[0].body
    assert [message["role"] for message in sent["messages"]] == ["system", "system", "user", "assistant", "user"]
    assert sent["messages"][4]["content"][1]["image_url"] == {"url": image["url"]}
    assert (sent["max_tokens"], sent["temperature"]) == (50, 0.5)
    assert sent["tools"] == [{"type": "function", "function": V4_TOOL}]


async def test_use_chat_shows_reasoning_with_its_signature(upstream: Upstream, use_chat: UseChat) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m."), signature="c2lnbmVk", redacted="UmVk", text=("So.",))
    chat = await use_chat("claude/claude-upstream")
    answer = chat["screen"][1]
    assert kinds(answer) == ["step-start", "reasoning", "text"]
    assert (answer["reasoning"], answer["content"]) == ("Hmm.", "So.")
    assert answer["parts"][1]["details"] == [
        {"type": "text", "text": "Hmm.", "signature": "c2lnbmVk"},
        {"type": "redacted", "data": "UmVk"},
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_use_chat_shows_reasoning_of_compatible_providers(
    upstream: Upstream, use_chat: UseChat, field: Any
) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m."), reasoning_field=field)
    answer = (await use_chat("up/gpt-upstream"))["screen"][1]
    assert (answer["reasoning"], answer["content"]) == ("Hmm.", "Hello, world!")


@BOTH
async def test_use_chat_sees_a_call_grow_until_it_is_whole(upstream: Upstream, use_chat: UseChat, model: str) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO))
    chat = await use_chat(model)
    first, second = chat["screen"][1]["toolInvocations"]
    assert (first["state"], first["toolName"], first["args"]) == ("call", "weather", {"city": "Köln"})
    assert (second["state"], second["args"]) == ("call", {"city": "Oslo"})
    growing = [each["toolInvocations"][0] for each in chat["snapshots"] if each.get("toolInvocations")]
    partial = [call.get("args", {}) for call in growing if call["state"] == "partial-call"]
    assert {"city": "Kö"} in partial and partial[0] == {}
    assert chat["finishes"][0]["finishReason"] == "tool-calls"
    assert chat["error"] is None and not chat["wouldResubmit"]


async def test_use_chat_gets_an_empty_object_for_a_call_without_arguments(
    upstream: Upstream, use_chat: UseChat
) -> None:
    upstream.plan = Plan(tool_calls=(ToolCall(name="now", arguments=()),))
    assert (await use_chat("up/gpt-upstream"))["screen"][1]["toolInvocations"][0]["args"] == {}


@BOTH
async def test_use_chats_tool_results_reach_the_provider(upstream: Upstream, use_chat: UseChat, model: str) -> None:
    upstream.queue(
        Plan(reasoning=("Hm", "m."), text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "shine."))
    )
    chat = await use_chat(model, results={"weather": {"sky": "clear"}}, body={"tools": [V4_TOOL]})
    assert chat["error"] is None and len(chat["screen"]) == 2
    answer = chat["screen"][1]
    assert answer["content"] == "Let me see.Sun shine."
    assert kinds(answer)[-2:] == ["step-start", "text"]
    sent = upstream.requests[1].body["messages"]
    if model.startswith("up/"):
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
        assert sent[1]["content"] == "Let me see."
        assert [json.loads(call["function"]["arguments"])["city"] for call in sent[1]["tool_calls"]] == ["Köln", "Oslo"]
        assert [message["content"] for message in sent[2:]] == ['{"sky":"clear"}'] * 2
    else:
        # That the provider takes its thinking back proves that it was returned as it was.
        assert [block["type"] for block in sent[1]["content"]] == ["thinking", "text", "tool_use", "tool_use"]
        assert [block["type"] for block in sent[2]["content"]] == ["tool_result"] * 2
    assert [message["role"] for message in chat["core"]] == ["user", "assistant", "tool", "assistant"]


async def test_a_finished_tool_conversation_goes_on(upstream: Upstream, use_chat: UseChat) -> None:
    upstream.queue(Plan(tool_calls=(OSLO,)), Plan(text=("Sun.",)))
    first = await use_chat("up/gpt-upstream", results={"weather": "sun"})
    again = await use_chat("up/gpt-upstream", messages=[*first["screen"], {"role": "user", "content": "And now?"}])
    assert again["screen"][-1]["content"] == "Hello, world!"
    roles = [message["role"] for message in upstream.requests[2].body["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


async def test_a_call_that_nobody_answered_does_not_lock_the_chat(upstream: Upstream, use_chat: UseChat) -> None:
    for model in ("up/gpt-upstream", "claude/claude-upstream"):
        upstream.queue(Plan(text=("Shall I?",), tool_calls=(OSLO,)))
        first = await use_chat(model)
        again = await use_chat(model, messages=[*first["screen"], {"role": "user", "content": "No."}])
        assert (again["error"], again["screen"][-1]["content"]) == (None, "Hello, world!")


async def test_use_chat_shows_an_error_and_keeps_what_was_said(upstream: Upstream, use_chat: UseChat) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    chat = await use_chat("up/gpt-upstream")
    assert chat["screen"][1]["content"] == "Hello, "
    assert "ended before" in chat["error"]["message"] and chat["finishes"] == []


@BOTH
async def test_use_chat_shows_an_error_after_the_head_was_sent(
    upstream: Upstream, use_chat: UseChat, tmp_path: Path, model: str
) -> None:
    upstream.queue(Plan(fault="stall", fault_at=-1, status=500), Plan(status=500))
    head = tmp_path / "head"
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(use_chat(model, signal=str(head)))
        await appears(head)
        upstream.release()
    chat = asking.result()
    assert chat["received"][0]["status"] == 200 and "provider" in chat["error"]["message"]


async def test_use_chat_is_told_when_the_credit_ends_and_keeps_what_was_said(
    upstream: Upstream, use_chat: UseChat, gateway: GatewayProcess
) -> None:
    upstream.plan = Plan(text=(" one", " two"), endless=True)
    key = await gateway.account(f"acme-{uuid.uuid4().hex[:12]}", usd="0.0005")
    chat = await use_chat("up/gpt-upstream", key=key)
    assert chat["error"]["message"] == "The account's credit is used up; the answer ends here."
    assert chat["screen"][1]["content"].startswith(" one two one two")


async def test_use_chat_waits_through_heartbeats(upstream: Upstream, use_chat: UseChat, tmp_path: Path) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    head = tmp_path / "head"
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(use_chat("up/gpt-upstream", signal=str(head)))
        await appears(head)
        upstream.release()
    chat = asking.result()
    assert (chat["error"], chat["screen"][1]["content"]) == (None, "Hello, world!")


async def test_use_chat_shows_the_body_of_an_http_error(upstream: Upstream, use_chat: UseChat) -> None:
    wrong = await use_chat("up/gpt-upstream", key="sk-wrong")
    assert wrong["received"][0]["status"] == 401
    assert json.loads(wrong["error"]["message"])["error"]["code"] == "invalid_api_key"
    assert [message["role"] for message in wrong["screen"]] == ["user"]
    unknown = await use_chat("nobody/nothing")
    assert json.loads(unknown["error"]["message"])["error"]["code"] == "model_not_found"
    upstream.plan = Plan(status=429)
    limited = await use_chat("up/gpt-upstream")
    assert limited["received"][0]["status"] == 429


async def test_use_chat_talks_to_the_demo_provider(use_chat: UseChat) -> None:
    chat = await use_chat("demo/tool", results={"get_weather": "sun"})
    answer = chat["screen"][1]
    assert answer["toolInvocations"][0]["args"] == {"city": "Paris"}
    assert answer["content"] == "The tool has answered and so can I."
    assert chat["finishes"][1]["finishReason"] == "stop" and chat["finishes"][1]["usage"]["totalTokens"] > 0
