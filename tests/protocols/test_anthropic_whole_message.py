"""An answer of Anthropic's that comes whole bears the events of a stream."""

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import ProviderProtocolError, ProviderUnavailable
from gateway.canonical.events import (
    Finish,
    FinishReason,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from tests.protocols.anthropic_shapes import CLIENT, CREATED, events_of, failure, said, usages


class TestReadingAWholeMessage:
    BODY: ClassVar[dict[str, Any]] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
            {"type": "redacted_thinking", "data": "c2Vj"},
            {"type": "later_block", "text": 5},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
            {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 9},
    }

    def test_it_bears_the_events_of_a_stream(self) -> None:
        frames = CLIENT.decode_response(json.dumps(self.BODY).encode(), "anthropic")
        events = events_of(frames)
        assert events[0] == MessageStart("msg_1", "claude-x", CREATED)
        assert said(events) == [
            ReasoningDelta("Hm."),
            ReasoningEnd("sig"),
            RedactedReasoning("c2Vj"),
            TextDelta("Hi"),
            ToolCallStart(0, "toolu_1", "weather"),
            ToolCallDelta(0, '{"city":"Bern"}'),
            ToolCallEnd(0),
            ToolCallStart(1, "toolu_2", "now"),
            ToolCallEnd(1),
        ]
        assert [(usage.input, usage.output, usage.cache_read) for usage in usages(events)] == [(7, 9, 2)] * 2
        assert events[-1] == Finish(FinishReason(Unified.TOOL_CALLS, "tool_use"))
        assert all(frame.raw is None for frame in frames)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"content":5}', b'{"content":[5]}', b"\xff"])
    def test_a_body_that_is_no_message_is_a_failure(self, body: bytes) -> None:
        assert type(failure(events_of(CLIENT.decode_response(body, "anthropic")))) is ProviderProtocolError

    def test_an_error_sent_with_success_is_that_error(self) -> None:
        body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
        assert type(failure(events_of(CLIENT.decode_response(body, "anthropic")))) is ProviderUnavailable

    @given(st.binary(max_size=300))
    def test_random_bytes_never_raise(self, body: bytes) -> None:
        CLIENT.decode_response(body, "anthropic")
        CLIENT.decode_error(400, body, "anthropic")
