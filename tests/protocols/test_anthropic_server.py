"""Canonical events as a stream of Anthropic's: blocks in their order, every ending, and the provider's own events."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from tests.protocols.anthropic_listener import (
    CUT,
    DONE,
    NATIVE,
    USAGE,
    assert_regular,
    encoder,
    kinds,
    parsed,
    say,
    stream_of,
)
from tests.protocols.anthropic_shapes import (
    EVERYTHING,
    EVERYTHING_BYTES,
    EVERYTHING_SAID,
    STOP,
    closed,
    delta,
    ended,
    events_of,
    finishes,
    opened,
    read,
    said,
    sse,
    start,
    usages,
)


class TestAStreamOfAnotherProvider:
    def test_text_is_one_block_between_start_and_stop(self) -> None:
        stream = stream_of(TextDelta("Hel"), TextDelta("lo"), DONE)
        first, opening, hel, lo, closing, ending, stop = parsed(stream)
        assert first["message"] == {
            "id": "msg_r1",
            "type": "message",
            "role": "assistant",
            "model": "gpt-x",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 9,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
                "output_tokens_details": {"thinking_tokens": 0},
            },
        }
        assert opening == opened(0, {"type": "text", "text": ""})
        assert [hel, lo] == [delta(0, "text_delta", text="Hel"), delta(0, "text_delta", text="lo")]
        assert (closing, stop) == (closed(0), STOP)
        assert ending["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}

    def test_usage_leaves_the_cache_out_of_the_input(self) -> None:
        assert parsed(stream_of(TextDelta("a"), DONE))[-2]["usage"] == {
            "input_tokens": 11,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 5,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 3},
        }

    def test_each_kind_of_content_gets_a_block_of_its_own(self) -> None:
        stream = stream_of(
            ReasoningDelta("Hm."),
            ReasoningEnd("sig"),
            RedactedReasoning("c2VjcmV0"),
            TextDelta("Let me see."),
            ToolCallStart(0, "call_1", "weather"),
            ToolCallDelta(0, '{"city":'),
            ToolCallDelta(0, '"Oslo"}'),
            ToolCallEnd(0),
            Finish(FinishReason(Unified.TOOL_CALLS)),
        )
        assert_regular(stream)
        assert kinds(stream)[1:-2] == [
            "content_block_start 0 thinking",
            "content_block_delta 0 thinking_delta",
            "content_block_delta 0 signature_delta",
            "content_block_stop 0",
            "content_block_start 1 redacted_thinking",
            "content_block_stop 1",
            "content_block_start 2 text",
            "content_block_delta 2 text_delta",
            "content_block_stop 2",
            "content_block_start 3 tool_use",
            "content_block_delta 3 input_json_delta",
            "content_block_delta 3 input_json_delta",
            "content_block_stop 3",
        ]
        assert parsed(stream)[-2]["delta"]["stop_reason"] == "tool_use"

    def test_thinking_without_a_signature_never_gets_one(self) -> None:
        stream = stream_of(ReasoningDelta("Hm."), TextDelta("Yes."), DONE)
        assert_regular(stream)
        assert b"signature_delta" not in stream

    @pytest.mark.parametrize(
        ("unified", "stop_reason"),
        [
            (Unified.STOP, "end_turn"),
            (Unified.LENGTH, "max_tokens"),
            (Unified.TOOL_CALLS, "tool_use"),
            (Unified.CONTENT_FILTER, "refusal"),
            (Unified.OTHER, "end_turn"),
        ],
    )
    def test_every_reason_has_its_word(self, unified: Unified, stop_reason: str) -> None:
        stream = stream_of(RefusalDelta("No."), Finish(FinishReason(unified, "stop")))
        assert parsed(stream)[-2]["delta"]["stop_reason"] == stop_reason

    def test_an_answer_of_nothing_is_regular(self) -> None:
        assert kinds(stream_of(DONE)) == ["message_start", "message_delta", "message_stop"]

    def test_other_choices_are_not_for_these_clients(self) -> None:
        stream = stream_of(
            TextDelta("a"), TextDelta("b", 1), ToolCallStart(0, "c", "f", 1), DONE, Finish(DONE.reason, 1)
        )
        assert kinds(stream)[1:-2] == [
            "content_block_start 0 text",
            "content_block_delta 0 text_delta",
            "content_block_stop 0",
        ]


class TestCallsSideBySide:
    def test_a_second_call_closes_the_first_as_soon_as_that_is_whole(self) -> None:
        fresh = encoder()
        say(fresh, MessageStart("x", "m", 1), ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"x":1}'))
        assert kinds(say(fresh, ToolCallStart(1, "b", "g"))) == [
            "content_block_stop 0",
            "content_block_start 1 tool_use",
        ]

    def test_what_comes_in_turns_is_told_one_after_another(self) -> None:
        stream = stream_of(
            ToolCallStart(0, "a", "f"),
            ToolCallStart(1, "b", "g"),
            ToolCallDelta(1, '{"y":'),
            ToolCallDelta(0, '{"x":'),
            TextDelta("and "),
            ToolCallDelta(1, "2}"),
            ToolCallDelta(0, "1}"),
            TextDelta("so on"),
            ToolCallEnd(0),
            ToolCallEnd(1),
            Finish(FinishReason(Unified.TOOL_CALLS)),
        )
        assert_regular(stream)
        events = said(events_of(read(stream)[0]))
        calls = {e.index: e.name for e in events if isinstance(e, ToolCallStart)}
        inputs = {
            index: "".join(e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == index)
            for index in calls
        }
        assert (calls, inputs) == ({0: "f", 1: "g"}, {0: '{"x":1}', 1: '{"y":2}'})
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "and so on"

    def test_a_call_without_an_end_is_closed_with_the_message(self) -> None:
        stream = stream_of(
            ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"x'), ToolCallStart(1, "b", "g"), ToolCallDelta(1, "{"), DONE
        )
        assert_regular(stream)
        assert sum(kind.endswith("tool_use") for kind in kinds(stream)) == 2

    def test_usage_between_its_fragments_does_not_end_a_call(self) -> None:
        fresh = encoder()
        say(fresh, MessageStart("x", "m", 1), ToolCallStart(0, "a", "f"), ToolCallDelta(0, "{}"))
        assert say(fresh, UsageReport(USAGE)) == b""


# What a decoder makes of a stream is what an encoder made of these, so they hold nothing that has two spellings.
_words = st.text(min_size=1, max_size=8)
_signatures = st.text(st.characters(codec="ascii", exclude_categories=("C",)), max_size=8)


@st.composite
def _contents(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(("text", "reasoning", "redacted", "call")), max_size=8)):
        match kind:
            case "text":
                events += map(TextDelta, draw(st.lists(_words, min_size=1, max_size=3)))
            case "reasoning":
                events += map(ReasoningDelta, draw(st.lists(_words, min_size=1, max_size=3)))
                events.append(ReasoningEnd(draw(_signatures)))
            case "redacted":
                events.append(RedactedReasoning(draw(_words)))
            case "call":
                text = json.dumps(draw(st.dictionaries(_words, st.integers() | _words, min_size=1, max_size=3)))
                at = draw(st.integers(1, len(text)))
                events.append(ToolCallStart(calls, f"call_{calls}", draw(_words)))
                events += [ToolCallDelta(calls, piece) for piece in (text[:at], text[at:]) if piece]
                events.append(ToolCallEnd(calls))
                calls += 1
    return events


class TestTheLaw:
    @given(_contents())
    @settings(max_examples=200, deadline=None)
    def test_what_is_encoded_is_read_back(self, contents: list[Event]) -> None:
        stream = stream_of(*contents, Finish(FinishReason(Unified.LENGTH)))
        assert_regular(stream)
        frames, is_done = read(stream)
        events = events_of(frames)
        assert is_done and said(events) == contents
        assert finishes(events) == [FinishReason(Unified.LENGTH, "max_tokens")]
        assert (usages(events)[-1].input, usages(events)[-1].output, usages(events)[-1].reasoning) == (20, 7, 3)

    @given(_contents(), st.data())
    @settings(max_examples=100, deadline=None)
    def test_cut_anywhere_the_stream_is_regular_and_holds_what_came_before(
        self, contents: list[Event], data: st.DataObject
    ) -> None:
        kept = contents[: data.draw(st.integers(0, len(contents)))]
        fresh = encoder()
        stream = say(fresh, MessageStart("x", "m", 1), *kept) + fresh.cut(CUT, USAGE)
        assert_regular(stream)
        assert [e for e in said(events_of(read(stream)[0])) if isinstance(e, TextDelta | ToolCallDelta)] == [
            e for e in kept if isinstance(e, TextDelta | ToolCallDelta)
        ]

    @given(_contents())
    @settings(max_examples=100, deadline=None)
    def test_a_whole_message_is_what_its_stream_adds_up_to(self, contents: list[Event]) -> None:
        whole = encoder(stream=False)
        say(whole, MessageStart("x", "m", 1), *contents, DONE)
        message = json.loads(whole.end(USAGE))
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        assert text == "".join(e.text for e in contents if isinstance(e, TextDelta))
        inputs = [block["input"] for block in message["content"] if block["type"] == "tool_use"]
        fragments: dict[int, str] = {}
        for e in contents:
            if isinstance(e, ToolCallDelta):
                fragments[e.index] = fragments.get(e.index, "") + e.arguments
        assert inputs == [json.loads(text) for text in fragments.values()]
        assert message["stop_reason"] == "end_turn"


class TestTheProvidersOwnStream:
    def test_everything_passes_byte_for_byte(self) -> None:
        native = encoder(NATIVE)
        out = b"".join(native.encode(frame) for frame in read(EVERYTHING_BYTES)[0]) + native.end(USAGE)
        assert out == EVERYTHING_BYTES

    def test_cut_at_any_byte_on_its_way_it_is_the_same(self) -> None:
        for offset in range(len(EVERYTHING_BYTES)):
            native = encoder(NATIVE)
            frames, _ = read(EVERYTHING_BYTES[:offset], EVERYTHING_BYTES[offset:])
            assert b"".join(map(native.encode, frames)) + native.end(USAGE) == EVERYTHING_BYTES

    def test_what_is_newer_than_the_gateway_passes_too(self) -> None:
        payloads = (
            start(x_new=[1.0, "ü\u2028"]),
            {"type": "brand_new", "n": 1e2},
            opened(0, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
            delta(0, "input_json_delta", partial_json='{"query":"x"}'),
            closed(0),
            opened(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": "u"}]}),
            closed(1),
            opened(2, {"type": "text", "text": "", "citations": []}),
            delta(2, "citations_delta", citation={"type": "page_location", "cited_text": "c"}),
            delta(2, "hologram_delta", shape="cube"),
            delta(2, "text_delta", text="ok"),
            closed(2),
            ended("pause_turn", output_tokens=5, server_tool_use={"web_search_requests": 1})
            | {"context_management": {}},
            {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 1}},
        )
        stream = b"".join(map(sse, payloads))
        native = encoder(NATIVE)
        frames, _ = read(stream)
        assert b"".join(map(native.encode, frames)) + native.end(USAGE) == stream
        whole = encoder(NATIVE, stream=False)
        for frame in frames:
            whole.encode(frame)
        message = json.loads(whole.end(USAGE))
        assert [block["type"] for block in message["content"]] == ["server_tool_use", "web_search_tool_result", "text"]
        assert message["content"][0]["input"] == {"query": "x"}
        assert message["content"][2]["citations"] == [{"type": "page_location", "cited_text": "c"}]
        assert (message["content"][2]["text"], message["content"][2]["shape"]) == ("ok", "cube")
        assert (message["stop_reason"], message["x_new"]) == ("pause_turn", [1.0, "ü\u2028"])
        assert message["usage"]["server_tool_use"] == {"web_search_requests": 1}

    def test_a_client_of_another_format_gets_what_has_meaning_for_it(self) -> None:
        other = encoder("openai_chat")
        out = b"".join(other.encode(frame) for frame in read(EVERYTHING_BYTES)[0]) + other.end(USAGE)
        assert_regular(out)
        assert said(events_of(read(out)[0])) == EVERYTHING_SAID

    @pytest.mark.parametrize("count", range(len(EVERYTHING) + 1))
    def test_cut_after_any_event_it_ends_regularly(self, count: int) -> None:
        frames, _ = read(b"".join(map(sse, EVERYTHING)))
        native = encoder(NATIVE)
        out = b"".join(map(native.encode, frames[:count])) + native.cut(CUT, USAGE)
        assert_regular(out)
        if count <= 20:
            assert parsed(out)[-2]["delta"]["stop_reason"] == "max_tokens"
            assert parsed(out)[-2]["x_gateway"]["reason"] == "credits_exhausted"

    def test_events_that_sdks_trip_over_are_written_anew(self) -> None:
        naked = start()
        del naked["message"]["usage"]
        closing = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
        stream = b"".join(map(sse, (naked, opened(0, {"type": "text", "text": ""}), closed(0), closing, STOP)))
        native = encoder(NATIVE)
        out = b"".join(native.encode(frame) for frame in read(stream)[0]) + native.end(USAGE)
        assert_regular(out)
        assert parsed(out)[0]["message"]["usage"]["input_tokens"] == 9
        assert parsed(out)[-2]["usage"]["output_tokens"] == 7
        assert parsed(out)[-2]["delta"]["stop_reason"] == "max_tokens"

    def test_nothing_passes_before_the_message_starts(self) -> None:
        frames, _ = read(sse({"type": "ping"}) + sse({"type": "brand_new"}) + EVERYTHING_BYTES)
        assert isinstance(frames[0].events[0], MessageStart)
