"""A stream of Anthropic's read in any shape it comes, cut at any byte."""

import json
from typing import Any

import pytest

from gateway.canonical.events import (
    Finish,
    FinishReason,
    MessageStart,
    Order,
    ReasoningEnd,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from tests.protocols.anthropic_shapes import (
    CLIENT,
    CREATED,
    EVERYTHING,
    EVERYTHING_BYTES,
    EVERYTHING_SAID,
    PING,
    STOP,
    closed,
    delta,
    ended,
    events_of,
    finishes,
    hear,
    opened,
    read,
    said,
    sse,
    start,
    tool_use,
    usages,
)


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

    def test_every_frame_carries_its_own_bytes_and_silent_events_make_frames_too(self) -> None:
        frames, _ = read(EVERYTHING_BYTES)
        assert [frame.raw for frame in frames] == [sse(payload) for payload in EVERYTHING]
        silent = {number for number, frame in enumerate(frames) if not frame.events}
        assert silent == {1, 2, 5, 8, 9, 11, 13, 18, 21}

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
