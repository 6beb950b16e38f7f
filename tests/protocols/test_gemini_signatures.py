"""Gemini's thought signatures in conversations that go to another vendor, or come back through the AI SDK."""

import json
from typing import Any

import pytest

from gateway.canonical.request import Message, Reasoning, Request, Text, ToolCall, ToolResult
from gateway.protocols.ai_sdk_4 import AiSdk4Server
from gateway.protocols.ai_sdk_ui.server import AiSdkUiServer
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.anthropic_messages.server import AnthropicMessagesServer
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.wire import ClientRole

SIGNATURE = "EpEgCo4gAb4+9vv/Ww=="
MARKED = f"gemini:call.c1:{SIGNATURE}"
OTHERS: tuple[ClientRole, ...] = (
    AnthropicMessagesClient(),
    BedrockConverseClient(),
    OpenAiChatClient(),
    OpenAiResponsesClient(),
)


def calls(request: Request) -> list[Any]:
    """The calls that reach Gemini, with what stands beside them."""
    contents = json.loads(GeminiClient().encode_request(request, "gemini-3-flash"))["contents"]
    return [part for content in contents for part in content["parts"] if "functionCall" in part]


@pytest.mark.parametrize("thought", [Reasoning("Hm", MARKED), Reasoning(redacted=MARKED)], ids=["shown", "hidden"])
@pytest.mark.parametrize("role", OTHERS, ids=lambda role: role.name)
def test_another_vendor_is_not_sent_them(role: ClientRole, thought: Reasoning) -> None:
    turns = (
        Message("user", (Text("Hi"),)),
        Message("assistant", (thought, ToolCall("c1", "f", "{}"))),
        Message("tool", (ToolResult("c1", (Text("x"),)),)),
    )
    request = Request(format="ai_sdk_ui", model="x/m", messages=turns)
    body = role.encode_request(request, "anthropic.claude-x")
    assert SIGNATURE.encode() not in body and b"gemini:" not in body


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "Hm", "signature": MARKED},
        {"type": "redacted_thinking", "data": MARKED},
    ],
    ids=["shown", "hidden"],
)
def test_anthropic_is_not_sent_them_by_its_own_clients(block: dict[str, Any]) -> None:
    content = [block, {"type": "tool_use", "id": "c1", "name": "f", "input": {}}]
    body = {
        "model": "x/m",
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "x"}]},
        ],
    }
    request = AnthropicMessagesServer().decode_request(json.dumps(body).encode(), {})
    assert SIGNATURE.encode() not in AnthropicMessagesClient().encode_request(request, "claude-x")
    assert calls(request)[0]["thoughtSignature"] == SIGNATURE


@pytest.mark.parametrize("kept", [{"signature": MARKED}, {"redactedData": MARKED}], ids=["shown", "hidden"])
def test_they_come_back_through_the_ai_sdk(kept: dict[str, str]) -> None:
    thought = {"type": "reasoning", "text": "", "state": "done", "providerMetadata": {"anthropic": kept}}
    call = {"type": "tool-f", "toolCallId": "c1", "state": "output-available", "input": {}, "output": "x"}
    messages = [
        {"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]},
        {"id": "2", "role": "assistant", "parts": [{"type": "step-start"}, thought, call]},
    ]
    body = {"id": "c", "model": "x/m", "messages": messages}
    assert calls(AiSdkUiServer().decode_request(json.dumps(body).encode(), {}))[0]["thoughtSignature"] == SIGNATURE


@pytest.mark.parametrize(
    "detail",
    [{"type": "text", "text": "Hm", "signature": MARKED}, {"type": "redacted", "data": MARKED}],
    ids=["shown", "hidden"],
)
def test_they_come_back_through_the_ai_sdk_4(detail: dict[str, str]) -> None:
    invocation = {"state": "result", "toolCallId": "c1", "toolName": "f", "args": {}, "result": "x"}
    parts = [
        {"type": "reasoning", "reasoning": "Hm", "details": [detail]},
        {"type": "tool-invocation", "toolInvocation": invocation},
    ]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "parts": parts}]
    body = {"id": "c", "model": "x/m", "messages": messages}
    assert calls(AiSdk4Server().decode_request(json.dumps(body).encode(), {}))[0]["thoughtSignature"] == SIGNATURE
