"""Gemini's answers, streamed in any shape and cut at any byte, or whole."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import ErrorCode, ProviderProtocolError, ProviderUnavailable, StreamTruncated
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
from gateway.canonical.usage import Usage
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.sse import EVENT_BYTES_MAX
from gateway.protocols.wire import ClientRole

CREATED = 1_700_000_000
CLIENT: ClientRole = GeminiClient(clock=lambda: CREATED)
HEAD = {"modelVersion": "gemini-3-flash", "responseId": "abc123"}
START = MessageStart("abc123", "gemini-3-flash", CREATED)
SIGNATURE = "EpEg+/=="
UNAVAILABLE = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


def chunk(*parts: Any, finish: str | None = None, index: int | None = 0, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {"candidates": [candidate], **HEAD, **more}


def sse(*payloads: Any, end: str = "\r\n") -> bytes:
    return b"".join(b"data: " + json.dumps(each, ensure_ascii=False).encode() + (end * 2).encode() for each in payloads)


def read(*pieces: bytes) -> list[Event]:
    """The events of a stream that came in these pieces, in legal order."""
    decoder = CLIENT.decoder("g")
    frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    assert not decoder.is_done  # nothing in the stream says that it is
    return checked(frames + decoder.end_of_bytes())


def checked(frames: list[Frame]) -> list[Event]:
    order = Order()
    events = [event for frame in frames for event in frame.events]
    for event in events:
        order.check(event, "g")
    assert all(frame.raw is None for frame in frames)
    return events


def stop(reason: str = "STOP", unified: Unified = Unified.STOP, choice: int = 0) -> Finish:
    return Finish(FinishReason(unified, reason), choice)


def failure(events: list[Event]) -> Any:
    assert isinstance(events[-1], Failure)
    return events[-1].error


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"text": words, **more}


def thought(words: str, **more: Any) -> dict[str, Any]:
    return {"text": words, "thought": True, **more}


def call(name: str, args: Any = None, **more: Any) -> dict[str, Any]:
    arguments = {} if args is None else {"args": args}
    identity = {"id": more.pop("id")} if "id" in more else {}
    return {"functionCall": {"name": name, **arguments, **identity}, **more}


RICH = sse(
    chunk(thought("Hm"), usageMetadata={"promptTokenCount": 9, "thoughtsTokenCount": 2, "totalTokenCount": 11}),
    chunk(thought("m \u2028ä"), thought("?")),
    chunk(text("Grüße, "), text("\U0001f30d")),
    chunk(call("weather", {"city": "Köln", "n": 1}, id="fc_1", thoughtSignature=SIGNATURE), call("now")),
    chunk(text(""), finish="STOP", usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 5}),
)


def test_a_stream_of_everything_becomes_events_in_their_order() -> None:
    events = read(RICH)
    made = events[12]
    assert isinstance(made, ToolCallStart) and made.id.startswith("call_") and len(made.id) == 29
    assert events == [
        START,
        ReasoningDelta("Hm"),
        UsageReport(
            Usage(
                input=9,
                output=2,
                reasoning=2,
                raw={"promptTokenCount": 9, "thoughtsTokenCount": 2, "totalTokenCount": 11},
            )
        ),
        ReasoningDelta("m \u2028ä"),
        ReasoningDelta("?"),
        ReasoningEnd(""),
        TextDelta("Grüße, "),
        TextDelta("\U0001f30d"),
        RedactedReasoning(f"gemini:call.fc_1:{SIGNATURE}"),
        ToolCallStart(0, "fc_1", "weather"),
        ToolCallDelta(0, '{"city":"Köln","n":1}'),
        ToolCallEnd(0),
        ToolCallStart(1, made.id, "now"),
        ToolCallEnd(1),
        stop(unified=Unified.TOOL_CALLS),
        events[-1],
    ]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_a_stream_may_be_cut_at_any_byte(end: str) -> None:
    stream = RICH.replace(b"\r\n", end.encode())
    whole = read(stream)
    assert isinstance(whole[-2], Finish) and len(whole) == 16
    for offset in range(1, len(stream)):
        assert read(stream[:offset], stream[offset:]) == whole
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == whole


def test_an_id_that_gemini_leaves_out_is_made_once_and_in_everybodys_alphabet() -> None:
    stream = sse(chunk(call("a"), call("a"), finish="STOP"))
    ids = [event.id for event in read(stream) if isinstance(event, ToolCallStart)]
    assert len(set(ids)) == 2 and all(identity.isascii() and identity[5:].isalnum() for identity in ids)
    assert ids == [event.id for event in read(stream) if isinstance(event, ToolCallStart)]
    twice = read(sse(chunk(call("a", id="x"), call("b", id="x"), call("c", id="a b"), finish="STOP")))
    given = [event.id for event in twice if isinstance(event, ToolCallStart)]
    assert given[0] == "x" and len(set(given)) == 3 and given[2].startswith("call_")


def test_arguments_keep_the_digits_of_their_numbers() -> None:
    stream = (
        b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a": 1.50, "b": [ ]}}}]}}]}'
    )
    (delta,) = (event for event in read(stream + b"\n\n") if isinstance(event, ToolCallDelta))
    assert delta.arguments == '{"a":1.50,"b":[]}'


class TestSignatures:
    def test_one_on_the_first_call_ends_the_thought_before_it(self) -> None:
        parts = (thought("Hm"), call("a", id="c1", thoughtSignature=SIGNATURE), call("b", id="c2"))
        events = read(sse(chunk(*parts, finish="STOP")))
        assert events[1:4] == [
            ReasoningDelta("Hm"),
            ReasoningEnd(f"gemini:call.c1:{SIGNATURE}"),
            ToolCallStart(0, "c1", "a"),
        ]

    def test_one_on_an_empty_part_after_the_words_is_a_block_of_its_own(self) -> None:
        events = read(sse(chunk(text("Hi")), chunk(text("", thoughtSignature=SIGNATURE), finish="STOP")))
        assert events[1:] == [TextDelta("Hi"), RedactedReasoning(f"gemini:end:{SIGNATURE}"), stop()]

    def test_one_on_words_comes_before_them(self) -> None:
        events = read(sse(chunk(thought("Hm"), text("Hi", thoughtSignature=SIGNATURE), finish="STOP")))
        assert events[1:] == [
            ReasoningDelta("Hm"),
            ReasoningEnd(f"gemini:text:{SIGNATURE}"),
            TextDelta("Hi"),
            stop(),
        ]

    def test_one_on_a_thought_is_the_thoughts_own(self) -> None:
        events = read(sse(chunk(thought("Hm", thoughtSignature=SIGNATURE), text("Hi"), finish="STOP")))
        assert events[1:] == [
            ReasoningDelta("Hm"),
            ReasoningEnd(f"gemini:thought:{SIGNATURE}"),
            TextDelta("Hi"),
            stop(),
        ]


@pytest.mark.parametrize(
    ("reason", "unified"),
    [
        ("STOP", Unified.STOP),
        ("MAX_TOKENS", Unified.LENGTH),
        ("CONTINUATION", Unified.LENGTH),
        ("SAFETY", Unified.CONTENT_FILTER),
        ("RECITATION", Unified.CONTENT_FILTER),
        ("BLOCKLIST", Unified.CONTENT_FILTER),
        ("PROHIBITED_CONTENT", Unified.CONTENT_FILTER),
        ("SPII", Unified.CONTENT_FILTER),
        ("IMAGE_SAFETY", Unified.CONTENT_FILTER),
        ("MODEL_ARMOR", Unified.CONTENT_FILTER),
        ("MALFORMED_FUNCTION_CALL", Unified.ERROR),
        ("LANGUAGE", Unified.OTHER),
        ("SOMETHING_NEW", Unified.OTHER),
    ],
)
def test_reasons_to_end_are_told_in_our_words_and_in_theirs(reason: str, unified: Unified) -> None:
    assert read(sse(chunk(text("Hi"), finish=reason)))[-1] == stop(reason, unified)


def test_a_stop_after_calls_is_a_stop_for_calls_but_a_cut_call_is_cut() -> None:
    assert read(sse(chunk(call("a")), chunk(finish="STOP")))[-1] == stop(unified=Unified.TOOL_CALLS)
    assert read(sse(chunk(call("a")), chunk(finish="MAX_TOKENS")))[-1] == stop("MAX_TOKENS", Unified.LENGTH)


def test_a_blocked_prompt_is_a_whole_answer_that_was_filtered() -> None:
    blocked = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 9},
        **HEAD,
    }
    events = read(sse(blocked))
    assert events[:2] == [START, stop("PROHIBITED_CONTENT", Unified.CONTENT_FILTER)]
    assert events[2] == UsageReport(Usage(input=9, raw={"promptTokenCount": 9}))


def test_what_follows_the_end_of_a_choice_is_passed_over_but_its_usage_counts() -> None:
    events = read(sse(chunk(text("Hi"), finish="STOP"), chunk(text("more"), usageMetadata={"promptTokenCount": 3})))
    assert events == [START, TextDelta("Hi"), stop(), UsageReport(Usage(input=3, raw={"promptTokenCount": 3}))]


def test_several_candidates_are_several_choices() -> None:
    both = chunk(text("A"))
    both["candidates"].append({"content": {"parts": [text("B")]}, "index": 1})
    events = read(sse(both, chunk(finish="STOP"), chunk(finish="MAX_TOKENS", index=1)))
    assert events == [
        START,
        TextDelta("A"),
        TextDelta("B", 1),
        stop(),
        stop("MAX_TOKENS", Unified.LENGTH, 1),
    ]


def test_parts_of_other_kinds_and_unknown_fields_say_nothing() -> None:
    odd: tuple[dict[str, Any], ...] = (
        {"inlineData": {"mimeType": "image/png", "data": "iVBO"}, "thoughtSignature": SIGNATURE},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"functionCall": {}},
        {"text": None},
        {},
    )
    extra: dict[str, Any] = {
        "candidates": [{"content": {}, "safetyRatings": [], "groundingMetadata": {}, "finishReason": None}]
    }
    unspecified = chunk(finish="FINISH_REASON_UNSPECIFIED")
    events = read(sse(chunk(*odd, index=None), extra, {"candidates": []}, unspecified, chunk(finish="STOP")))
    assert events == [START, stop()]


class TestUsage:
    def test_thoughts_are_output_tools_prompts_are_input_and_the_last_word_counts(self) -> None:
        first = {"promptTokenCount": 12, "cachedContentTokenCount": 4, "totalTokenCount": 12}
        last = {
            "promptTokenCount": 12,
            "toolUsePromptTokenCount": 65,
            "candidatesTokenCount": 71,
            "thoughtsTokenCount": 89,
            "totalTokenCount": 237,
            "cachedContentTokenCount": None,
        }
        events = read(sse(chunk(text("Hi"), usageMetadata=first), chunk(finish="STOP", usageMetadata=last)))
        reports = [event.usage for event in events if isinstance(event, UsageReport)]
        raw = {**first, **{name: value for name, value in last.items() if value is not None}}
        assert reports[0] == Usage(input=12, cache_read=4, raw=first)
        assert reports[1] == Usage(input=77, output=160, cache_read=4, reasoning=89, raw=raw)
        assert reports[1].total == last["totalTokenCount"]

    @pytest.mark.parametrize("figure", [-1, "9", 1.5, True, 2**60, [], {}])
    def test_figures_that_are_none_count_nothing(self, figure: Any) -> None:
        events = read(sse(chunk(finish="STOP", usageMetadata={"promptTokenCount": figure, "candidatesTokenCount": 2})))
        (report,) = (event.usage for event in events if isinstance(event, UsageReport))
        assert (report.input, report.output) == (0, 2)


class TestBrokenStreams:
    @pytest.mark.parametrize("finish", [None, "FINISH_REASON_UNSPECIFIED"])
    def test_an_end_without_a_reason_is_a_truncation(self, finish: str | None) -> None:
        events = read(sse(chunk(text("Hi"), finish=finish)))
        assert events[:-1] == [START, TextDelta("Hi")]
        assert isinstance(failure(events), StreamTruncated)

    @pytest.mark.parametrize("stream", [b"", b": keep-alive\n\n", sse(HEAD), b"data: {"])
    def test_a_stream_of_nothing_is_a_truncation(self, stream: bytes) -> None:
        assert isinstance(failure(read(stream)), StreamTruncated)

    def test_one_choice_of_two_is_not_the_whole_answer(self) -> None:
        events = read(sse(chunk(text("A")), chunk(text("B"), index=1), chunk(finish="STOP")))
        assert isinstance(failure(events), StreamTruncated)

    def test_the_last_event_may_lack_its_blank_line(self) -> None:
        assert read(sse(chunk(text("Hi"), finish="STOP")).rstrip()) == [START, TextDelta("Hi"), stop()]

    def test_half_an_event_at_the_end_is_a_truncation_and_no_fault_of_the_format(self) -> None:
        stream = sse(chunk(text("Hi"))) + sse(chunk(finish="STOP"))[:-20]
        assert isinstance(failure(read(stream)), StreamTruncated)

    @pytest.mark.parametrize(
        "payload",
        [
            b"[1]",
            b'"text"',
            b"nonsense",
            b'{"candidates":{}}',
            b'{"candidates":[{"index":-1}]}',
            b'{"candidates":[{"index":4096}]}',
            b'{"candidates":[{"content":{"parts":[{"text":1}]}}]}',
            b'{"modelVersion":"\xff\xfe"}',
            b'{"unknown":"\xff\xfe"}',
            b'{"a":' * 5000,
            b'{"usageMetadata":5}',
        ],
    )
    def test_what_is_not_of_the_format_is_a_failure_and_ends_it(self, payload: bytes) -> None:
        events = read(sse(chunk(text("Hi"))), b"data: " + payload + b"\n\n", sse(chunk(text("never"), finish="STOP")))
        assert events[:-1] == [START, TextDelta("Hi")]
        assert type(failure(events)) is ProviderProtocolError

    def test_an_event_without_end_is_a_failure(self) -> None:
        events = read(b"data: {", b"x" * (EVENT_BYTES_MAX + 1), sse(chunk(finish="STOP")))
        assert type(failure(events)) is ProviderProtocolError
        events = read(b"[{", b"x" * (EVENT_BYTES_MAX + 1), sse(chunk(finish="STOP")))
        assert type(failure(events)) is ProviderProtocolError


class TestErrorsWithinAStream:
    @pytest.mark.parametrize(
        "tail",
        [
            sse(UNAVAILABLE),
            json.dumps(UNAVAILABLE).encode(),
            json.dumps(UNAVAILABLE, indent=2).encode() + b"\n",
            json.dumps([UNAVAILABLE], indent=2).encode(),
            json.dumps(UNAVAILABLE, indent=2).replace("\n", "\r\n").encode() + b"\r\n\r\n",
        ],
        ids=["event", "line", "lines", "array", "crlf"],
    )
    def test_they_are_found_as_events_and_as_bare_json_wherever_it_is_cut(self, tail: bytes) -> None:
        stream = sse(chunk(text("Hi"))) + tail
        expected = read(stream)
        assert expected[:-1] == [START, TextDelta("Hi")]
        assert isinstance(failure(expected), ProviderUnavailable)
        assert failure(expected).code is ErrorCode.PROVIDER_OVERLOADED and failure(expected).status is None
        for offset in range(1, len(stream)):
            events = read(stream[:offset], stream[offset:])
            assert events[:-1] == expected[:-1]
            assert failure(events).message == failure(expected).message

    def test_they_are_found_although_the_event_before_has_no_end(self) -> None:
        events = read(sse(chunk(text("Hi")))[:-2] + json.dumps(UNAVAILABLE).encode())
        assert events[:-1] == [START, TextDelta("Hi")]
        assert isinstance(failure(events), ProviderUnavailable)

    def test_an_error_may_be_all_there_is(self) -> None:
        events = read(json.dumps(UNAVAILABLE).encode())
        assert len(events) == 1 and isinstance(failure(events), ProviderUnavailable)

    def test_half_of_one_is_a_truncation(self) -> None:
        assert isinstance(failure(read(sse(chunk(text("Hi"))) + b'{"error": {"code": 503')), StreamTruncated)

    def test_brackets_within_an_event_are_none_of_that(self) -> None:
        assert read(sse(chunk(text("\n{ \r[ {"), finish="STOP")))[1] == TextDelta("\n{ \r[ {")


class TestWholeAnswers:
    CHUNKS = (
        chunk(thought("Hm"), text("Hi")),
        chunk(call("a", {"b": 1}, id="c1"), finish="STOP", usageMetadata={"promptTokenCount": 3}),
    )

    def test_an_array_of_chunks_says_what_the_stream_says(self) -> None:
        streamed = read(sse(*self.CHUNKS))
        whole = json.dumps(self.CHUNKS, indent=1).encode()
        assert checked(CLIENT.decode_response(whole, "g")) == streamed
        assert read(whole) == streamed  # the same array where a stream was announced

    def test_one_object_is_an_answer(self) -> None:
        body = json.dumps(chunk(text("Hi"), finish="STOP")).encode()
        assert checked(CLIENT.decode_response(body, "g")) == [START, TextDelta("Hi"), stop()]

    def test_an_error_in_it_is_found(self) -> None:
        for body in (UNAVAILABLE, [UNAVAILABLE], [self.CHUNKS[0], UNAVAILABLE]):
            events = checked(CLIENT.decode_response(json.dumps(body).encode(), "g"))
            assert isinstance(failure(events), ProviderUnavailable)

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"[{}]", b'{"candidates":[]}'])
    def test_what_says_nothing_is_a_truncation(self, body: bytes) -> None:
        events = checked(CLIENT.decode_response(body, "g"))
        assert isinstance(failure(events), ProviderProtocolError)

    @pytest.mark.parametrize("body", [b"<html>", b"nope", b'{"candidates":1}', b"[1", b"[1]", b"\xff"])
    def test_what_is_not_of_the_format_is_a_failure(self, body: bytes) -> None:
        assert type(failure(checked(CLIENT.decode_response(body, "g")))) is ProviderProtocolError


def test_events_that_come_one_by_one_say_what_they_say_at_once() -> None:
    events = [sse(payload) for payload in (chunk(text("A")), chunk(text("\r\n {")), chunk(text("B"), finish="STOP"))]
    assert read(*events) == read(b"".join(events))
    assert read(events[0][:9], events[0][9:], *events[1:]) == read(b"".join(events))
    bare = json.dumps(UNAVAILABLE, indent=2).replace("\n", "\r\n\r\n").encode()
    for offset in range(1, len(bare)):
        found = read(events[0], bare[:offset], bare[offset:], events[2])
        assert found[:-1] == [START, TextDelta("A")] and isinstance(failure(found), ProviderUnavailable)
