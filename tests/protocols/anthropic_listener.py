"""What a client of Anthropic's hears: the server role's encoders, and their streams taken apart."""

import json
from typing import Any

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    Unified,
)
from gateway.canonical.request import Message, Request, Text
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesServer
from gateway.protocols.wire import Cut, Encoder, StreamMeta

SERVER = AnthropicMessagesServer()
USAGE = Usage(input=20, output=7, cache_read=5, cache_write=4, reasoning=3)
CUT = Cut("credits_exhausted", "The credit is used up.")
NATIVE = "anthropic_messages"
DONE = Finish(FinishReason(Unified.STOP))


def encoder(wire: str | None = None, *, stream: bool = True, notices: bool = False) -> Encoder:
    request = Request(format=NATIVE, model="fast", messages=(Message("user", (Text("Hi"),)),), stream=stream)
    return SERVER.encoder(request, StreamMeta("r1", 1, wire, notices, input_tokens=9))


def say(into: Encoder, *events: Event) -> bytes:
    return b"".join(into.encode(Frame((event,))) for event in events)


def stream_of(*events: Event, usage: Usage = USAGE) -> bytes:
    fresh = encoder()
    return say(fresh, MessageStart("x", "gpt-x", 1), *events) + fresh.end(usage)


def parsed(stream: bytes) -> list[dict[str, Any]]:
    """The payloads; each has the event line that official SDKs ask for."""
    payloads = []
    for event in stream.split(b"\n\n")[:-1]:
        line, _, payload = event.partition(b"\ndata: ")
        payloads.append(json.loads(payload))
        assert line.decode() == f"event: {payloads[-1]['type']}"
    return payloads


def kinds(stream: bytes) -> list[str]:
    """The events in short: what opens, grows and closes."""
    names = []
    for payload in parsed(stream):
        inner = payload.get("content_block") or payload.get("delta") or {}
        index = f" {payload['index']}" if "index" in payload else ""
        names.append(payload["type"] + index + (f" {inner['type']}" if "type" in inner else ""))
    return names


def assert_regular(stream: bytes) -> None:
    """Blocks one after another, counted from 0 without gaps; one start, one end, nothing after it."""
    payloads = [payload for payload in parsed(stream) if payload["type"] != "ping"]
    assert payloads[0]["type"] == "message_start"
    assert [payload["type"] for payload in payloads[-2:]] == ["message_delta", "message_stop"]
    number, is_open = 0, False
    for payload in payloads[1:-2]:
        assert payload["index"] == number
        match payload["type"]:
            case "content_block_start":
                assert not is_open
                is_open = True
            case "content_block_delta":
                assert is_open
            case "content_block_stop":
                assert is_open
                number, is_open = number + 1, False
            case other:
                raise AssertionError(other)
    assert not is_open
