"""Anthropic Messages towards a provider: what we send for any history, and what we read in any shape it comes."""

import base64
import json
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamTruncated,
)
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    Order,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
    Message,
    Part,
    Reasoning,
    Refusal,
    Request,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.wire import ClientRole

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


def test_the_client_is_a_client_role() -> None:
    role: ClientRole = AnthropicMessagesClient()
    assert role.name == "anthropic_messages"


class TestReadingAStream:
    def test_every_kind_of_block_becomes_its_events_in_order(self) -> None:
        frames, is_done = read(EVERYTHING_BYTES)
        events = events_of(frames)
        assert events[0] == MessageStart("msg_1", "claude-x", CREATED)
        assert said(events) == EVERYTHING_SAID
        assert events[-1] == Finish(FinishReason(Unified.TOOL_CALLS, "tool_use"))
        assert is_done

    def test_usage_counts_the_cache_into_the_input_and_keeps_what_a_later_report_leaves_out(self) -> None:
        first, last = usages(hear(*EVERYTHING))
        assert (first.input, first.output, first.cache_write, first.cache_read) == (17, 1, 3, 4)
        assert (last.input, last.output, last.cache_write, last.cache_read, last.reasoning) == (17, 42, 3, 4, 7)
        assert last.raw is not None
        assert last.raw["input_tokens"] == 10

    def test_a_later_report_may_correct_the_input(self) -> None:
        events = hear(start(), ended("end_turn", input_tokens=99, output_tokens=5), STOP)
        assert [usage.input for usage in usages(events)] == [10, 99]

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
    def test_cut_at_any_byte_the_frames_are_the_same(self, line_end: bytes) -> None:
        stream = EVERYTHING_BYTES.replace(b"\n", line_end)
        whole = read(stream)
        for offset in range(len(stream)):
            assert read(stream[:offset], stream[offset:]) == whole
        assert read(*(bytes([byte]) for byte in stream)) == whole

    def test_a_frame_carries_its_own_bytes_and_silent_events_make_no_frame(self) -> None:
        frames, _ = read(EVERYTHING_BYTES)
        speaking = [
            sse(payload) for payload in (EVERYTHING[i] for i in (0, 3, 4, 6, 7, 10, 12, 14, 15, 16, 17, 19, 20))
        ]
        assert [frame.raw for frame in frames] == speaking
        assert all(frame.events for frame in frames)

    def test_data_without_an_event_line_is_framed_with_one(self) -> None:
        payload = start()
        frames, _ = read(b"data:" + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n")
        assert frames[0].raw == sse(payload)

    def test_a_payload_over_several_lines_is_framed_as_one(self) -> None:
        lines = json.dumps(start(), indent=1).encode().split(b"\n")
        frames, _ = read(b"".join(b"data: " + line + b"\n" for line in lines) + b"\n")
        assert frames[0].raw is not None
        assert events_of(read(frames[0].raw)[0])[:2] == list(frames[0].events)
        assert frames[0].raw.count(b"\n") == 3

    def test_the_events_keep_the_legal_order(self) -> None:
        order = Order()
        for event in hear(*EVERYTHING):
            order.check(event, "anthropic")
        assert order.is_finished

    @pytest.mark.parametrize(
        ("reason", "unified"),
        [
            ("end_turn", Unified.STOP),
            ("stop_sequence", Unified.STOP),
            ("pause_turn", Unified.STOP),
            ("max_tokens", Unified.LENGTH),
            ("model_context_window_exceeded", Unified.LENGTH),
            ("tool_use", Unified.TOOL_CALLS),
            ("refusal", Unified.CONTENT_FILTER),
            ("compaction", Unified.OTHER),
            ("of a later year", Unified.OTHER),
        ],
    )
    def test_the_reason_is_kept_in_our_word_and_in_theirs(self, reason: str, unified: Unified) -> None:
        assert finishes(hear(start(), ended(reason, output_tokens=1), STOP)) == [FinishReason(unified, reason)]

    def test_calls_that_end_in_end_turn_are_reported_as_calls(self) -> None:
        events = hear(
            start(), opened(0, {"type": "tool_use", "id": "a", "name": "n"}), closed(0), ended("end_turn"), STOP
        )
        assert finishes(events) == [FinishReason(Unified.TOOL_CALLS, "end_turn")]

    def test_reasoning_that_is_not_shown_still_yields_its_signature(self) -> None:
        events = hear(start(), opened(0, {"type": "thinking"}), delta(0, "signature_delta", signature="sig"), closed(0))
        assert said(events)[:-1] == [ReasoningEnd("sig")]

    def test_input_given_at_the_start_of_a_call_is_not_lost(self) -> None:
        block = {"type": "tool_use", "id": "a", "name": "n", "input": {"q": [1, 2]}}
        events = hear(start(), opened(0, block), closed(0), ended("tool_use"), STOP)
        assert said(events) == [ToolCallStart(0, "a", "n"), ToolCallDelta(0, '{"q":[1,2]}'), ToolCallEnd(0)]

    def test_hosted_tools_are_passed_over_and_leave_no_gap_in_the_index(self) -> None:
        events = hear(
            start(),
            opened(0, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
            delta(0, "input_json_delta", partial_json='{"query":"x"}'),
            closed(0),
            opened(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "x"}]}),
            closed(1),
            opened(2, {"type": "tool_use", "id": "toolu_9", "name": "n", "input": {}}),
            closed(2),
            ended("tool_use", output_tokens=1),
            STOP,
        )
        assert said(events) == [ToolCallStart(0, "toolu_9", "n"), ToolCallEnd(0)]

    @pytest.mark.parametrize(
        "strange",
        [
            {"type": "of_a_later_year", "index": "none", "delta": 5},
            opened(0, {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}}),
            opened(0, {"type": "later_block", "text": {"not": "a string"}}),
            delta(0, "later_delta", text=["not a string"]),
            delta(0, "citations_delta", citation={"type": "char_location"}),
            delta(7, "input_json_delta", partial_json="{}"),
            delta(7, "signature_delta", signature="of no block"),
            closed(7),
            PING,
            {},
        ],
    )
    def test_what_a_newer_api_adds_is_passed_over(self, strange: dict[str, Any]) -> None:
        odd = b"event: odd\ndata: " + json.dumps(strange).encode() + b"\n\n"
        rest = sse(delta(1, "text_delta", text="ok")) + sse(ended("end_turn", output_tokens=1)) + sse(STOP)
        frames, is_done = read(sse(start()) + odd + rest)
        assert said(events_of(frames)) == [TextDelta("ok")]
        assert is_done

    def test_a_second_start_spliced_in_goes_on_with_the_same_answer(self) -> None:
        again = start({"input_tokens": 99, "output_tokens": 2}, id="msg_2")
        frames, _ = read(
            b"".join(map(sse, (start(), again, delta(0, "text_delta", text="ok"), ended("end_turn"), STOP)))
        )
        events = events_of(frames)
        assert [event.id for event in events if isinstance(event, MessageStart)] == ["msg_1"]
        assert usages(events)[-1].input == 99
        assert frames[1].raw is None
        assert said(events) == [TextDelta("ok")]

    def test_a_start_that_already_holds_the_message_yields_its_content_and_reason(self) -> None:
        content = [{"type": "code_execution_tool_result", "content": {}}, tool_use("toolu_1", city="Bern")]
        events = hear(start(content=content, stop_reason="tool_use"), STOP)
        assert said(events) == [
            ToolCallStart(0, "toolu_1", "weather"),
            ToolCallDelta(0, '{"city":"Bern"}'),
            ToolCallEnd(0),
        ]
        assert finishes(events) == [FinishReason(Unified.TOOL_CALLS, "tool_use")]

    def test_an_answer_without_content_or_reason_still_finishes(self) -> None:
        assert finishes(hear(start(), STOP)) == [FinishReason(Unified.OTHER, "")]

    def test_nothing_counts_after_the_end(self) -> None:
        decoder = CLIENT.decoder("anthropic")
        decoder.feed(EVERYTHING_BYTES)
        assert decoder.feed(b"data: [DONE]\n\n" + EVERYTHING_BYTES + b"data: {\n\n") == []
        assert decoder.end_of_bytes() == []

    def test_done_of_another_format_is_passed_over(self) -> None:
        frames, is_done = read(sse(start()) + sse(ended("end_turn")) + b"data: [DONE]\n\n")
        assert finishes(events_of(frames)) == [FinishReason(Unified.STOP, "end_turn")]
        assert not is_done


class TestAStreamThatFails:
    @pytest.mark.parametrize(
        ("kind", "error_class", "code"),
        [
            ("overloaded_error", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
            ("api_error", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
            ("unheard_of_error", ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
            ("rate_limit_error", ProviderRateLimited, ErrorCode.PROVIDER_RATE_LIMITED),
            ("timeout_error", ProviderTimeout, ErrorCode.PROVIDER_TIMEOUT),
            ("invalid_request_error", ProviderRejected, ErrorCode.PROVIDER_REJECTED),
            ("request_too_large", ProviderRejected, ErrorCode.PROVIDER_REJECTED),
            ("authentication_error", ProviderError, ErrorCode.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_an_error_event_becomes_its_error(
        self, kind: str, error_class: type[ProviderError], code: ErrorCode
    ) -> None:
        frames, is_done = read(sse(start()) + sse({"type": "error", "error": {"type": kind, "message": "Why."}}))
        error = failure(events_of(frames))
        assert type(error) is error_class
        assert (error.code, error.provider, error.status) == (code, "anthropic", None)
        assert frames[-1].raw is None
        assert not is_done

    @pytest.mark.parametrize("cut", range(len(EVERYTHING) - 2))
    def test_a_stream_cut_before_its_finish_is_truncated(self, cut: int) -> None:
        events = hear(*EVERYTHING[: cut + 1])
        assert type(failure(events)) is StreamTruncated
        assert sum(isinstance(event, Failure) for event in events) == 1

    @pytest.mark.parametrize("tail", [b"", b"data", b'event: ping\ndata: {"type":"pi', b"event: ping\r"])
    def test_half_an_event_at_the_end_is_truncation_too(self, tail: bytes) -> None:
        frames, _ = read(sse(start()) + tail)
        assert type(failure(events_of(frames))) is StreamTruncated

    def test_nothing_at_all_is_truncation(self) -> None:
        assert type(failure(hear())) is StreamTruncated

    def test_a_stream_cut_after_its_finish_is_whole(self) -> None:
        events = hear(start(), ended("end_turn", output_tokens=1))
        assert isinstance(events[-1], Finish)

    def test_a_last_event_without_its_blank_line_counts(self) -> None:
        frames, is_done = read(EVERYTHING_BYTES.removesuffix(b"\n\n"))
        assert is_done
        assert frames == read(EVERYTHING_BYTES)[0]

    @pytest.mark.parametrize(
        "broken",
        [
            b"{",
            b"null",
            b"[]",
            b'"text"',
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"type":5}',
            b'{"type":"message_start","message":5}',
            b'{"type":"message_start","message":{"content":[5]}}',
            b'{"type":"message_start","message":{"content":[{"type":"text","text":5}]}}',
            b'{"type":"content_block_start","index":0}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\ud800"}}',
            b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\xff"}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":-1}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":"5"}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1e300}}',
        ],
    )
    def test_a_broken_event_fails_after_what_came_before_it(self, broken: bytes) -> None:
        text = sse(delta(0, "text_delta", text="kept"))
        frames, _ = read(sse(start()) + text + b"data: " + broken + b"\n\n" + text)
        events = events_of(frames)
        assert type(failure(events)) is ProviderProtocolError
        assert said(events)[:-1] == [TextDelta("kept")]

    def test_an_event_that_never_ends_fails(self) -> None:
        decoder = CLIENT.decoder("anthropic")
        frames = [frame for _ in range(12) for frame in decoder.feed(b"x" * 1024 * 1024)]
        assert type(failure(events_of(frames))) is ProviderProtocolError
        assert decoder.end_of_bytes() == []

    def test_an_end_without_a_beginning_fails(self) -> None:
        assert type(failure(hear(STOP))) is ProviderProtocolError

    @given(st.lists(st.binary(max_size=200), max_size=8))
    def test_random_bytes_never_raise(self, chunks: list[bytes]) -> None:
        assert isinstance(events_of(read(*chunks)[0])[-1], Failure)

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_random_mutations_of_a_stream_never_raise(self, data: st.DataObject) -> None:
        stream = bytearray(EVERYTHING_BYTES)
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(stream) - 1))
            stream[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=12))
        cut = data.draw(st.integers(0, len(stream)))
        frames, is_done = read(bytes(stream[:cut]), bytes(stream[cut:]))
        events = events_of(frames)
        assert all(frame.events for frame in frames)
        assert is_done or isinstance(events[-1], Failure) or finishes(events)

    @given(
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=6)
    )
    @settings(deadline=None)
    def test_any_value_in_the_place_of_any_field_never_raises(self, value: Any) -> None:
        for payload in EVERYTHING:
            for field, inner in dict[str, Any](payload).items():
                read(sse(start()) + b"data: " + json.dumps({**payload, field: value}).encode() + b"\n\n")
                for name in inner if isinstance(inner, dict) else ():
                    changed = {**payload, field: {**inner, name: value}}
                    read(sse(start()) + b"data: " + json.dumps(changed).encode() + b"\n\n")


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


class TestReadingAnError:
    @staticmethod
    def error(status: int, message: str = "prompt is too long", kind: str = "x") -> ProviderError:
        body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
        return CLIENT.decode_error(status, body, "anthropic")

    @pytest.mark.parametrize(
        ("status", "error_class", "retryable"),
        [
            (400, ProviderRejected, False),
            (404, ProviderRejected, False),
            (413, ProviderRejected, False),
            (422, ProviderRejected, False),
            (408, ProviderTimeout, True),
            (504, ProviderTimeout, True),
            (429, ProviderRateLimited, True),
            (500, ProviderUnavailable, True),
            (502, ProviderUnavailable, True),
            (503, ProviderUnavailable, True),
            (529, ProviderUnavailable, True),
            (302, ProviderProtocolError, True),
        ],
    )
    def test_the_status_decides(self, status: int, error_class: type[ProviderError], retryable: bool) -> None:
        error = self.error(status)
        assert type(error) is error_class
        assert (error.status, error.retryable, error.provider) == (status, retryable, "anthropic")

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_a_refused_credential_of_ours_is_not_the_clients_fault(self, status: int) -> None:
        error = self.error(status, "invalid x-api-key sk-ant-123")
        assert (type(error), error.code, error.retryable) == (ProviderError, ErrorCode.PROVIDER_UNAVAILABLE, True)
        assert "x-api-key" not in error.message

    def test_a_rejection_says_what_the_vendor_said(self) -> None:
        assert self.error(400, "prompt is too long: 9 > 8").message == "prompt is too long: 9 > 8"

    @pytest.mark.parametrize(
        "secret",
        [
            "sk-ant-api03-abc_DEF",
            "SK-proj-abc",
            "https://user:pw@api.anthropic.com/v1?key=1",
            "api.anthropic.com",
            "gpu-7.eu.internal:8443",
            "10.1.2.3:80",
            "Bearer abcdef",
            "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        ],
    )
    def test_a_rejection_leaks_no_key_host_or_account(self, secret: str) -> None:
        message = self.error(400, f"bad field ({secret}) in messages.0").message
        assert message.startswith("bad field (")
        assert "messages.0" in message
        assert not any(word in message for word in (secret, "anthropic", "internal", "abc", "10.1"))

    def test_a_rejection_is_one_bounded_line(self) -> None:
        assert self.error(400, "a\r\n\x1b[31mb\u2028c\u202e").message == "a [31mb c"
        assert len(self.error(400, "é" * 100_000).message) == 500

    @pytest.mark.parametrize("body", [b"", b"<html>nginx at 10.0.0.1</html>", b"[]", b'{"error":"text"}', b"\xff" * 9])
    def test_a_body_that_is_no_error_gets_a_message_of_ours(self, body: bytes) -> None:
        assert CLIENT.decode_error(400, body, "p").message == "The provider rejected the request and gave no reason."
        assert "nginx" not in CLIENT.decode_error(502, body, "p").message


class TestRepairingAHistory:
    def test_turns_of_one_role_are_merged(self) -> None:
        assert turns(user("a"), user("b"), assistant("c"), assistant("d"), user("e")) == [
            ("user", [text("a"), text("b")]),
            ("assistant", [text("c"), text("d")]),
            ("user", [text("e")]),
        ]

    def test_results_of_parallel_calls_come_first_in_the_next_turn_in_the_order_of_the_calls(self) -> None:
        history = (user("?"), assistant("Wait.", call("a"), call("b")), result("b"), user("And?"), result("a", "rain"))
        assert turns(*history)[1:] == [
            ("assistant", [text("Wait."), tool_use("a"), tool_use("b")]),
            ("user", [tool_result("a", text("rain")), tool_result("b"), text("And?")]),
        ]

    def test_calls_spread_over_several_messages_are_answered_together(self) -> None:
        history = (user("?"), assistant(call("a")), assistant(call("b")), result("a"), result("b"))
        assert turns(*history)[1:] == [
            ("assistant", [tool_use("a"), tool_use("b")]),
            ("user", [tool_result("a"), tool_result("b")]),
        ]

    def test_calls_in_sequence_stay_apart(self) -> None:
        history = (user("?"), assistant(call("a")), result("a"), assistant(call("b")), result("b"), assistant("Done."))
        assert [role for role, _ in turns(*history)] == ["user", "assistant", "user", "assistant", "user", "assistant"]

    def test_an_id_used_in_two_turns_keeps_its_pairs_apart(self) -> None:
        history = (
            *(user("?"), assistant(call("a")), user("never mind"), assistant("Well.")),
            *(user("?"), assistant(call("a")), result("a", "rain")),
        )
        content = [blocks for role, blocks in turns(*history) if role == "user"]
        assert content[1] == [tool_result("a", UNANSWERED, is_error=True), text("never mind")]
        assert content[3] == [tool_result("a", text("rain"))]

    @pytest.mark.parametrize("following", [(), (user("Stop."),), (assistant("Stop."),)])
    def test_a_call_that_was_never_answered_gets_an_error_as_its_answer(self, following: tuple[Message, ...]) -> None:
        sent = turns(user("?"), assistant(call("a")), *following)
        assert sent[2][0] == "user"
        assert sent[2][1][0] == tool_result("a", UNANSWERED, is_error=True)

    def test_a_result_that_comes_late_is_moved_to_where_it_belongs(self) -> None:
        sent = turns(user("?"), assistant(call("a")), user("Hm."), assistant("Hm."), result("a"), user("So?"))
        assert sent[2] == ("user", [tool_result("a"), text("Hm.")])
        assert sent[4] == ("user", [text("So?")])

    def test_a_result_without_its_call_is_dropped_and_leaves_no_empty_turn(self) -> None:
        assert turns(user("a"), assistant("b"), result("gone"), assistant("c"), result("gone"), user("d")) == [
            ("user", [text("a")]),
            ("assistant", [text("b"), text("c")]),
            ("user", [text("d")]),
        ]

    def test_a_result_before_its_call_is_dropped(self) -> None:
        sent = turns(user("?"), result("a", "early"), assistant(call("a")), result("a", "right"))
        assert sent == [
            ("user", [text("?")]),
            ("assistant", [tool_use("a")]),
            ("user", [tool_result("a", text("right"))]),
        ]

    def test_a_second_result_of_one_call_is_dropped(self) -> None:
        assert turns(user("?"), assistant(call("a")), result("a", "first"), result("a", "second"))[2] == (
            "user",
            [tool_result("a", text("first"))],
        )

    def test_results_may_stand_in_a_user_message_and_hold_pictures_errors_and_markers(self) -> None:
        content = (Text("see"), Image(data="aGk=", media_type="image/png"), Text(""))
        answer = user("Now?", ToolResult("a", content, is_error=True, cache=CACHE))
        picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
        assert turns(user("?"), assistant(call("a")), answer)[2] == (
            "user",
            [tool_result("a", text("see"), picture, is_error=True, cache_control=CACHE), text("Now?")],
        )

    def test_an_empty_result_stays_an_answer(self) -> None:
        sent = turns(user("?"), assistant(call("a")), result("a", ""))
        assert sent[2] == ("user", [{"type": "tool_result", "tool_use_id": "a"}])

    def test_empty_texts_are_dropped_and_so_are_turns_of_nothing_else(self) -> None:
        assert turns(user("a", "", " \n"), assistant(""), user("b"), assistant("c", "")) == [
            ("user", [text("a"), text("b")]),
            ("assistant", [text("c")]),
        ]

    def test_a_prefill_loses_its_trailing_whitespace(self) -> None:
        assert turns(user("a"), assistant("Sure: \n"))[1] == ("assistant", [text("Sure:")])
        assert turns(user("a"), assistant(" \n")) == [("user", [text("a")])]
        assert turns(user("a"), assistant("b "), user("c"))[1] == ("assistant", [text("b ")])

    def test_ids_in_another_alphabet_are_mapped_alike_in_call_result_and_next_request(self) -> None:
        history = (user("?"), assistant(call("functions.f:0"), call("")), result("functions.f:0"), result(""))
        first, second = turns(*history), turns(*history, user("more"))
        ids = [block["id"] for block in first[1][1]]
        assert [block["tool_use_id"] for block in first[2][1]] == ids == [block["id"] for block in second[1][1]]
        assert all(len(mapped) == 29 and mapped.startswith("call_") for mapped in ids)
        assert len(set(ids)) == 2

    def test_an_id_with_a_line_end_is_mapped_too(self) -> None:
        assert turns(user("?"), assistant(call("a\n")))[1][1][0]["id"] != "a\n"

    def test_signed_reasoning_is_replayed_as_it_was_and_unsigned_is_dropped(self) -> None:
        thought = (Reasoning("Hm. \n", "EqQB+/=="), Reasoning(redacted="c2Vj"), Reasoning("unsigned"))
        assert turns(user("?"), assistant(*thought, call("a")), result("a"))[1][1] == [
            {"type": "thinking", "thinking": "Hm. \n", "signature": "EqQB+/=="},
            {"type": "redacted_thinking", "data": "c2Vj"},
            tool_use("a"),
        ]

    def test_reasoning_that_nothing_follows_is_dropped(self) -> None:
        assert turns(user("a"), assistant(Reasoning("Hm.", "sig")), user("b")) == [("user", [text("a"), text("b")])]
        assert turns(user("a"), assistant(Reasoning("Hm.", "sig")), assistant("c"))[1][1][0]["type"] == "thinking"

    @pytest.mark.parametrize(
        ("arguments", "given"),
        [
            ("", {}),
            (" ", {}),
            ('{"city": "Bern"}', {"city": "Bern"}),
            ('{"city": "Be', {"_raw": '{"city": "Be'}),
            ("[1]", {"_raw": "[1]"}),
            ("[" * 100_000, {"_raw": "[" * 100_000}),
        ],
    )
    def test_arguments_are_always_an_object(self, arguments: str, given: dict[str, Any]) -> None:
        assert turns(user("?"), assistant(call("a", arguments)))[1][1][0]["input"] == given

    def test_numbers_in_arguments_keep_their_digits(self) -> None:
        request = Request(
            format="x", model="m", messages=(user("?"), assistant(call("a", '{"n":1.00000000000000000009}')))
        )
        assert b'{"n":1.00000000000000000009}' in CLIENT.encode_request(request, "m")

    def test_a_history_without_content_is_refused(self) -> None:
        for history in [(system("You are."),), (user(""),), (result("gone"),)]:
            error = refused(*history)
            assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "messages")

    @given(
        st.lists(
            st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.lists(st.sampled_from("ab "), max_size=3)),
            max_size=12,
        )
    )
    @settings(deadline=None)
    def test_whatever_the_history_turns_alternate_and_every_call_is_answered_in_the_next(self, script: Any) -> None:
        history = [user("Hi")]
        for role, letters in script:
            made: list[Part] = [Text(letter) for letter in letters]
            if role == "assistant":
                made += [call(letter) for letter in dict.fromkeys(letters)]
            elif role == "tool":
                made = [ToolResult(letter, (Text(letter),)) for letter in letters]
            history.append(Message(role, tuple(made)))
        sent = turns(*history)
        assert [role for role, _ in sent] == ["user" if i % 2 == 0 else "assistant" for i in range(len(sent))]
        for (_, blocks), (_, after) in zip(sent, [*sent[1:], ("user", [])], strict=True):
            asked = list(dict.fromkeys(block["id"] for block in blocks if block["type"] == "tool_use"))
            answered = [block["tool_use_id"] for block in after if block["type"] == "tool_result"]
            assert sorted(set(answered)) == sorted(asked)
            assert all(block["type"] == "tool_result" for block in after[: len(answered)])
            assert blocks


class TestSendingContent:
    def test_system_messages_are_hoisted_in_order(self) -> None:
        body = send(system("Be kind."), user("a"), system("Be", "brief."), user("b"))
        assert body["system"] == "Be kind.\n\nBe\n\nbrief."
        assert [turn["role"] for turn in body["messages"]] == ["user"]

    def test_system_messages_stay_blocks_where_one_is_marked_for_the_cache(self) -> None:
        body = send(system(Text("long", CACHE), ""), system("short"), user("a"))
        assert body["system"] == [{**text("long"), "cache_control": CACHE}, text("short")]

    def test_a_system_message_can_only_be_text(self) -> None:
        assert "system" not in send(system(" "), user("a"))
        assert refused(system(Image(url="https://x/y.png")), user("a")).param == "messages"

    @pytest.mark.parametrize(
        ("part", "block"),
        [
            (Text("a", CACHE), {**text("a"), "cache_control": CACHE}),
            (Refusal("No."), text("No.")),
            (
                Image(data="aGk=", media_type="image/png", cache=CACHE),
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                    "cache_control": CACHE,
                },
            ),
            (
                Image(url="https://example.org/a.png"),
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ),
            (
                Document(data="JVBERi0=", media_type="application/pdf", filename="a.pdf", cache=CACHE),
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                    "title": "a.pdf",
                    "cache_control": CACHE,
                },
            ),
            (
                Document(data=base64.b64encode("Grüezi".encode()).decode(), media_type="text/plain; charset=utf-8"),
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüezi"}},
            ),
            (Document(file_id="file_1"), {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
        ],
    )
    def test_parts_become_blocks(self, part: Part, block: dict[str, Any]) -> None:
        assert turns(user(part)) == [("user", [block])]

    @pytest.mark.parametrize(
        ("part", "code"),
        [
            (Audio("aGk=", "wav"), ErrorCode.UNSUPPORTED_VALUE),
            (Image(data="aGk="), ErrorCode.UNSUPPORTED_VALUE),
            (Image(), ErrorCode.UNSUPPORTED_VALUE),
            (Document(data="aGk=", media_type="application/zip"), ErrorCode.UNSUPPORTED_VALUE),
            (Document(data="aGk="), ErrorCode.UNSUPPORTED_VALUE),
            (Document(data="!!!", media_type="text/plain"), ErrorCode.INVALID_VALUE),
            (Document(data="/w==", media_type="text/plain"), ErrorCode.INVALID_VALUE),
        ],
    )
    def test_what_cannot_be_carried_is_refused_by_name(self, part: Part, code: ErrorCode) -> None:
        for history in [(user(part),), (user("?"), assistant(call("a")), user(ToolResult("a", (part,))))]:
            error = refused(*history)
            assert (error.code, error.param) == (code, "messages")

    def test_a_call_keeps_its_cache_marker(self) -> None:
        marked = ToolCall("a", "weather", "{}", CACHE)
        assert turns(user("?"), assistant(marked))[1][1] == [{**tool_use("a"), "cache_control": CACHE}]


class TestSendingSettings:
    def test_the_least_request_is_a_stream_with_a_bound(self) -> None:
        assert send(user("Hi")) == {
            "model": "claude-x",
            "max_tokens": 8192,
            "messages": [{"role": "user", "content": [text("Hi")]}],
            "stream": True,
        }

    def test_the_bound_is_the_clients_or_the_operators(self) -> None:
        assert send(user("Hi"), output_tokens_max=7)["max_tokens"] == 7
        assert send(user("Hi"), client=AnthropicMessagesClient(default_output_tokens=99))["max_tokens"] == 99

    def test_tools_keep_schema_marker_and_strictness(self) -> None:
        tools = (
            Tool(name="a"),
            Tool(name="b", description="B.", parameters={"properties": {}}, strict=True, cache=CACHE),
            Tool(name="c", parameters={}, strict=False),
        )
        assert send(user("Hi"), tools=tools)["tools"] == [
            {"name": "a", "input_schema": {"type": "object", "properties": {}}},
            {
                "name": "b",
                "input_schema": {"type": "object", "properties": {}},
                "description": "B.",
                "strict": True,
                "cache_control": CACHE,
            },
            {"name": "c", "input_schema": {"type": "object", "properties": {}}},
        ]

    @pytest.mark.parametrize(
        ("choice", "parallel", "sent"),
        [
            (None, None, None),
            (None, True, None),
            (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
            (ToolChoice("auto"), True, {"type": "auto"}),
            (ToolChoice("required"), None, {"type": "any"}),
            (ToolChoice("required"), False, {"type": "any", "disable_parallel_tool_use": True}),
            (ToolChoice("tool", "weather"), None, {"type": "tool", "name": "weather"}),
            (ToolChoice("none"), False, {"type": "none"}),
        ],
    )
    def test_the_choice_of_tools_is_translated(
        self, choice: ToolChoice | None, parallel: bool | None, sent: dict[str, Any] | None
    ) -> None:
        body = send(user("Hi"), tools=(TOOL,), tool_choice=choice, parallel_tool_calls=parallel)
        assert body.get("tool_choice") == sent

    def test_a_choice_without_tools_is_dropped(self) -> None:
        assert "tool_choice" not in send(user("Hi"), tool_choice=ToolChoice("auto"), parallel_tool_calls=False)

    def test_sampling_is_carried_and_what_anthropic_has_no_word_for_is_dropped(self) -> None:
        sampling = Sampling(
            temperature=0.5,
            top_p=0.5,
            top_k=5,
            stop=("END", " \n", ""),
            seed=1,
            frequency_penalty=1.0,
            presence_penalty=1.0,
        )
        body = send(user("Hi"), sampling=sampling, user="u1")
        assert body.keys() - send(user("Hi")).keys() == {"temperature", "top_p", "top_k", "stop_sequences", "metadata"}
        assert (body["temperature"], body["top_p"], body["top_k"]) == (0.5, 0.5, 5)
        assert body["stop_sequences"] == ["END"]
        assert body["metadata"] == {"user_id": "u1"}

    def test_stops_of_whitespace_alone_leave_no_field(self) -> None:
        assert "stop_sequences" not in send(user("Hi"), sampling=Sampling(stop=("\n",)))

    def test_what_would_change_the_meaning_is_refused(self) -> None:
        hot, several = refused(sampling=Sampling(temperature=1.5)), refused(choices=2)
        assert (hot.code, hot.param) == (ErrorCode.UNSUPPORTED_VALUE, "temperature")
        assert (several.code, several.param) == (ErrorCode.UNSUPPORTED_VALUE, "n")

    def test_a_schema_is_an_output_format_and_any_object_is_not(self) -> None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        body = send(user("Hi"), json_schema=JsonSchema(schema=schema))
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
        assert "output_config" not in send(user("Hi"), json_schema=JsonSchema())


class TestSendingThinking:
    @pytest.mark.parametrize(
        ("effort", "budget"),
        [("minimal", 1024), ("low", 2048), ("medium", 8192), ("high", 16384), ("xhigh", 20480), ("max", 23808)],
    )
    def test_effort_is_a_budget_beside_the_answers_own_room(self, effort: str, budget: int) -> None:
        body = send(user("Hi"), effort=effort)
        assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
        assert body["max_tokens"] == budget + 8192 <= 32_000

    @pytest.mark.parametrize(
        ("bound", "budget"), [(1024, None), (1025, 1024), (2048, 1024), (4096, 2048), (100_000, 16384)]
    )
    def test_a_bound_of_the_clients_lowers_the_budget_or_leaves_thinking_out(
        self, bound: int, budget: int | None
    ) -> None:
        body = send(user("Hi"), effort="high", output_tokens_max=bound)
        assert body["max_tokens"] == bound
        assert body.get("thinking", {}).get("budget_tokens") == budget

    def test_no_effort_switches_thinking_off_and_an_unknown_one_is_refused(self) -> None:
        assert send(user("Hi"), effort="none")["thinking"] == {"type": "disabled"}
        assert refused(effort="heroic").param == "reasoning_effort"

    @pytest.mark.parametrize(
        "thinking", [{"type": "enabled", "budget_tokens": 9000}, {"type": "adaptive"}, {"type": "disabled"}]
    )
    def test_the_clients_own_thinking_passes_as_it_is(self, thinking: dict[str, Any]) -> None:
        body = send(user("Hi"), thinking=thinking, effort="low")
        assert body["thinking"] == thinking
        assert body["max_tokens"] == 8192 + thinking.get("budget_tokens", 0)

    def test_a_forced_call_goes_before_effort(self) -> None:
        for choice in (ToolChoice("required"), ToolChoice("tool", "weather")):
            assert "thinking" not in send(user("Hi"), effort="low", tools=(TOOL,), tool_choice=choice)

    def test_thinking_drops_the_sampling_it_forbids(self) -> None:
        body = send(user("Hi"), effort="low", sampling=Sampling(temperature=0.2, top_p=0.5, top_k=5))
        assert not body.keys() & {"temperature", "top_p", "top_k"}
        body = send(user("Hi"), effort="low", sampling=Sampling(temperature=1.0, top_p=0.95))
        assert (body["temperature"], body["top_p"]) == (1.0, 0.95)
        assert send(user("Hi"), effort="none", sampling=Sampling(temperature=0.2, top_k=5))["temperature"] == 0.2

    def test_thinking_is_left_out_where_the_last_calls_lost_their_reasoning(self) -> None:
        signed, redacted, bare = Reasoning("Hm.", "sig"), Reasoning(redacted="c2Vj"), Reasoning("Hm.")
        for parts, is_kept in [
            ((signed, call()), True),
            ((redacted, "Wait.", call()), True),
            ((call(),), False),
            ((bare, call()), False),
            ((call(), signed, "Wait."), False),
        ]:
            body = send(user("?"), assistant(*parts), result("c1"), effort="low", sampling=Sampling(top_k=5))
            assert ("thinking" in body) is is_kept
            assert ("top_k" in body) is not is_kept
            assert body["max_tokens"] == (8192 + 2048 if is_kept else 8192)

    def test_only_a_tool_loop_that_is_still_open_needs_its_reasoning(self) -> None:
        signed = Reasoning("Hm.", "sig")
        bare = (user("?"), assistant(call("a")), result("a"))
        assert "thinking" in send(*bare, assistant(signed, call("b")), result("b"), effort="low")
        assert "thinking" in send(user("?"), assistant("No calls."), user("?"), effort="low")
        closed = (*bare, assistant("Done."), user("?"))
        assert send(*closed, thinking={"type": "adaptive"})["thinking"] == {"type": "adaptive"}
        assert "thinking" not in send(*closed, assistant(call("b")), result("b"), effort="low")

    def test_words_beside_the_results_do_not_close_the_loop(self) -> None:
        assert "thinking" not in send(user("?"), assistant(call("a")), result("a"), user("Go on."), effort="low")


def test_the_body_is_one_json_object_without_nulls() -> None:
    request = Request(format="openai_chat", model="fast", messages=(user("Hi"),))
    assert b"null" not in CLIENT.encode_request(request, "claude-x")
    assert msgspec.json.decode(CLIENT.encode_request(request, "claude-x"), type=dict[str, Any])["stream"] is True
