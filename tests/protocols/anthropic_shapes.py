"""The two sides of a conversation in Anthropic's shapes: what the provider sends, and what we send."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import ProviderError, RequestError
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    UsageReport,
)
from gateway.canonical.request import Message, Part, Request, Text, Tool, ToolCall, ToolResult
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesClient

CREATED = 1_790_000_000
CLIENT = AnthropicMessagesClient(clock=lambda: CREATED)
CACHE = {"type": "ephemeral"}
TOOL = Tool(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
UNANSWERED = {"type": "text", "text": "The tool call was not answered."}


# ---- the conversation: what the provider sends


def sse(payload: dict[str, Any]) -> bytes:
    return f"event: {payload['type']}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()


def start(usage: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    message |= {"stop_reason": None, "usage": usage or {"input_tokens": 10, "output_tokens": 1}} | more
    return {"type": "message_start", "message": message}


def opened(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def closed(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def ended(reason: str, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}


PING = {"type": "ping"}
STOP = {"type": "message_stop"}

EVERYTHING = (
    start({"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 1}),
    PING,
    opened(0, {"type": "thinking", "thinking": "", "signature": ""}),
    delta(0, "thinking_delta", thinking="Where is "),
    delta(0, "thinking_delta", thinking="Zürich?"),
    delta(0, "signature_delta", signature="EqQB+/=="),
    closed(0),
    opened(1, {"type": "redacted_thinking", "data": "c2VjcmV0"}),
    closed(1),
    opened(2, {"type": "text", "text": ""}),
    delta(2, "text_delta", text="Let me look\u2028 ☂."),
    closed(2),
    opened(3, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}),
    delta(3, "input_json_delta", partial_json=""),
    delta(3, "input_json_delta", partial_json='{"city":'),
    delta(3, "input_json_delta", partial_json='"Zürich"}'),
    closed(3),
    opened(4, {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}}),
    delta(4, "input_json_delta", partial_json=""),
    closed(4),
    ended("tool_use", output_tokens=42, input_tokens=None, output_tokens_details={"thinking_tokens": 7}),
    STOP,
)
EVERYTHING_SAID: list[Event] = [
    ReasoningDelta("Where is "),
    ReasoningDelta("Zürich?"),
    ReasoningEnd("EqQB+/=="),
    RedactedReasoning("c2VjcmV0"),
    TextDelta("Let me look\u2028 ☂."),
    ToolCallStart(0, "toolu_1", "weather"),
    ToolCallDelta(0, '{"city":'),
    ToolCallDelta(0, '"Zürich"}'),
    ToolCallEnd(0),
    ToolCallStart(1, "toolu_2", "now"),
    ToolCallEnd(1),
]
EVERYTHING_BYTES = b"".join(sse(payload) for payload in EVERYTHING)


def read(*chunks: bytes) -> tuple[list[Frame], bool]:
    decoder = CLIENT.decoder("anthropic")
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return frames + decoder.end_of_bytes(), decoder.is_done


def events_of(frames: list[Frame]) -> list[Event]:
    return [event for frame in frames for event in frame.events]


def hear(*payloads: dict[str, Any]) -> list[Event]:
    return events_of(read(b"".join(sse(payload) for payload in payloads))[0])


def said(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, MessageStart | UsageReport | Finish)]


def usages(events: list[Event]) -> list[Usage]:
    return [event.usage for event in events if isinstance(event, UsageReport)]


def finishes(events: list[Event]) -> list[FinishReason]:
    return [event.reason for event in events if isinstance(event, Finish)]


def failure(events: list[Event]) -> ProviderError:
    last = events[-1]
    assert isinstance(last, Failure)
    return last.error


# ---- the conversation: what we send


def send(*messages: Message, client: AnthropicMessagesClient = CLIENT, **fields: Any) -> dict[str, Any]:
    request = Request(format="openai_chat", model="fast", messages=messages, **fields)
    body: dict[str, Any] = json.loads(client.encode_request(request, "claude-x"))
    return body


def system(*parts: Part | str) -> Message:
    return Message("system", texts(parts))


def user(*parts: Part | str) -> Message:
    return Message("user", texts(parts))


def assistant(*parts: Part | str) -> Message:
    return Message("assistant", texts(parts))


def result(call_id: str, text: str = "sunny", **fields: Any) -> Message:
    return Message("tool", (ToolResult(call_id, (Text(text),), **fields),))


def call(call_id: str = "c1", arguments: str = "{}") -> ToolCall:
    return ToolCall(call_id, "weather", arguments)


def texts(parts: tuple[Part | str, ...]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def turns(*messages: Message) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(turn["role"], turn["content"]) for turn in send(*messages)["messages"]]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def tool_use(call_id: str = "c1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": given}


def tool_result(call_id: str, *content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": list(content or (text("sunny"),)), **fields}


def refused(*messages: Message, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        send(*(messages or (user("Hi"),)), **fields)
    return caught.value
