"""Responses of a provider's, streamed in any shape and cut at any byte, or whole; and its errors."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import (
    ErrorCode,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
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
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.protocols.openai_responses.client import OpenAiResponsesClient

CREATED = 1_700_000_000
CLIENT = OpenAiResponsesClient(clock=lambda: CREATED)
ISSUED = "responses:rs_1:gAAA+/="
Object = dict[str, Any]


def sse(*payloads: Object) -> bytes:
    return b"".join(
        f"event: {it.get('type', '')}\n".encode() + b"data: " + json.dumps(it, ensure_ascii=False).encode() + b"\n\n"
        for it in payloads
    )


def read(*chunks: bytes) -> tuple[list[Frame], bool]:
    decoder = CLIENT.decoder("up")
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return [*frames, *decoder.end_of_bytes()], decoder.is_done


def hear(*payloads: Object) -> list[Event]:
    return [event for frame in read(sse(*payloads))[0] for event in frame.events]


def response(status: str = "in_progress", **fields: Any) -> Object:
    head = {"id": "resp_1", "object": "response", "created_at": 1_700_000_001, "model": "m-2", "status": status}
    return {**head, "error": None, "incomplete_details": None, "output": [], "usage": None, **fields}


def delta(kind: str, text: str, place: int = 0, **more: Any) -> Object:
    return {"type": f"response.{kind}.delta", "item_id": "x", "output_index": place, "delta": text, **more}


def item(step: str, place: int, kind: str, **fields: Any) -> Object:
    return {"type": f"response.output_item.{step}", "output_index": place, "item": {"type": kind, "id": "i", **fields}}


def ended(status: str = "completed", **fields: Any) -> Object:
    return {"type": f"response.{status}", "response": response(status, **fields)}


CREATED_EVENT: Object = {"type": "response.created", "response": response()}
START = MessageStart("resp_1", "m-2", 1_700_000_001)
DONE = Finish(FinishReason(Unified.STOP, "completed"))
CALLED = Finish(FinishReason(Unified.TOOL_CALLS, "completed"))
USED: Object = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 4},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 29,
}
EVERYTHING: tuple[Object, ...] = (
    CREATED_EVENT,
    {"type": "response.in_progress", "response": response()},
    item("added", 0, "reasoning", id="rs_1", summary=[]),
    {"type": "response.reasoning_summary_part.added", "output_index": 0, "summary_index": 0},
    delta("reasoning_summary_text", "Hm", summary_index=0),
    delta("reasoning_summary_text", "m.", summary_index=0),
    delta("reasoning_summary_text", "Zü😀\u2028", summary_index=1),
    item("done", 0, "reasoning", id="rs_1", summary=[{"text": "Hmm."}], encrypted_content="gAAA+/="),
    item("added", 1, "reasoning", id="rs_2"),
    item("done", 1, "reasoning", id="rs_2", summary=[], encrypted_content="hidden"),
    item("added", 2, "message"),
    delta("output_text", "Hel", 2),
    delta("output_text", "lo", 2, logprobs=[], obfuscation="x7"),
    {"type": "response.output_text.annotation.added", "output_index": 2, "annotation": {"type": "url_citation"}},
    {"type": "response.output_text.done", "output_index": 2, "text": "Hello"},
    delta("refusal", "No.", 2),
    item("done", 2, "message", content=[{"type": "output_text", "text": "Hello"}]),
    item("added", 3, "web_search_call", action={"query": "x"}),
    {"type": "response.web_search_call.searching", "output_index": 3, "delta": {"not": "text"}},
    item("done", 3, "web_search_call", content="none", arguments=[1]),
    item("added", 4, "function_call", call_id="c1", name="f", arguments=""),
    item("added", 5, "function_call", call_id="c2", name="g", arguments=""),
    delta("function_call_arguments", '{"a":', 4),
    delta("function_call_arguments", "{", 5),
    delta("function_call_arguments", "1}", 4),
    delta("function_call_arguments", "}", 5),
    {"type": "response.function_call_arguments.done", "output_index": 4, "arguments": '{"a":1}'},
    item("done", 4, "function_call", call_id="c1", name="f", arguments='{"a":1}'),
    item("done", 5, "function_call", call_id="c2", name="g", arguments="{}"),
    ended(usage=USED, output=[{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}]),
)
HEARD: list[Event] = [
    START,
    *map(ReasoningDelta, ("Hm", "m.", "\n\nZü😀\u2028")),
    ReasoningEnd(ISSUED),
    RedactedReasoning("responses:rs_2:hidden"),
    *map(TextDelta, ("Hel", "lo")),
    RefusalDelta("No."),
    *(ToolCallStart(0, "c1", "f"), ToolCallStart(1, "c2", "g")),
    *(ToolCallDelta(0, '{"a":'), ToolCallDelta(1, "{"), ToolCallDelta(0, "1}"), ToolCallDelta(1, "}")),
    *(ToolCallEnd(0), ToolCallEnd(1)),
    UsageReport(Usage(input=20, output=9, cache_read=5, cache_write=4, reasoning=3, raw=USED)),
    CALLED,
]


def test_every_kind_of_item_becomes_its_events_in_order() -> None:
    assert hear(*EVERYTHING) == HEARD
    order = Order()
    for event in HEARD:
        order.check(event, "up")
    assert order.is_finished


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_cut_at_any_byte_the_frames_are_the_same(line_end: bytes) -> None:
    data = sse(*EVERYTHING).replace(b"\n", line_end)
    whole = read(data)
    assert whole[1]
    for offset in range(0, len(data), 3):
        assert read(data[:offset], data[offset:]) == whole
    assert read(*(bytes([byte]) for byte in data)) == whole


def test_what_a_server_left_out_of_the_pieces_is_taken_from_the_whole_item() -> None:
    heard = hear(
        item("added", 0, "reasoning", id="rs_1"),
        item("done", 0, "reasoning", id="rs_1", summary=[{"text": "A"}, {"text": "B"}], encrypted_content="gAAA+/="),
        item(
            "done", 1, "message", content=[{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "No"}]
        ),
        item("done", 2, "function_call", call_id="c1", name="f", arguments={"a": [1]}),
        item("added", 3, "function_call", id="fc_9", name="g"),
        ended(),
    )
    assert heard == [
        *(MessageStart("", "", CREATED), ReasoningDelta("A\n\nB"), ReasoningEnd(ISSUED)),
        *(TextDelta("Hi"), RefusalDelta("No")),
        *(ToolCallStart(0, "c1", "f"), ToolCallDelta(0, '{"a":[1]}'), ToolCallEnd(0)),
        *(ToolCallStart(1, "fc_9", "g"), ToolCallEnd(1), CALLED),
    ]


def test_what_a_server_told_only_at_the_end_is_taken_from_there() -> None:
    output = [
        {"type": "image_generation_call", "result": "x"},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
    ]
    assert hear(CREATED_EVENT, ended(output=output)) == [START, TextDelta("Hi"), DONE]


def test_of_summaries_and_own_words_the_first_are_told() -> None:
    both = (delta("reasoning_text", "Hm"), delta("reasoning_summary_text", "Thinks."), delta("reasoning_text", "m"))
    done = item("done", 0, "reasoning", summary=[{"text": "Thinks."}], content=[{"text": "Hmm"}])
    assert hear(CREATED_EVENT, *both, done, ended()) == [
        *(START, ReasoningDelta("Hm"), ReasoningDelta("m"), ReasoningEnd(""), DONE)
    ]


@pytest.mark.parametrize(
    ("reason", "unified"),
    [
        ("max_output_tokens", Unified.LENGTH),
        ("content_filter", Unified.CONTENT_FILTER),
        ("steered", Unified.OTHER),
        (None, Unified.OTHER),
    ],
)
def test_the_reason_is_kept_in_our_word_and_in_theirs(reason: str | None, unified: Unified) -> None:
    events = hear(CREATED_EVENT, ended("incomplete", incomplete_details={"reason": reason}))
    assert events[-1] == Finish(FinishReason(unified, reason or ""))


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "response.of_a_later_year", "delta": {"not": "text"}, "output_index": "none"},
        {"type": "keepalive"},
        item("added", 7, "of_a_later_year", summary="none"),
        item("done", 7, "compaction", encrypted_content="x"),
        delta("function_call_arguments", "{}", 9),
        delta("custom_tool_call_input", "x", 9),
        delta("output_text", ""),
        {"type": "response.created", "response": response(id="resp_2")},
    ],
)
def test_what_is_newer_or_nobodys_business_is_passed_over(odd: Object) -> None:
    frames, is_done = read(sse(CREATED_EVENT, odd, delta("output_text", "ok")) + b"data: [DONE]\n\n" + sse(ended()))
    assert [event for frame in frames for event in frame.events] == [START, TextDelta("ok"), DONE]
    assert is_done


def failure(*chunks: bytes) -> Failure:
    frames, is_done = read(*chunks)
    assert not is_done
    event = frames[-1].events[-1]
    assert isinstance(event, Failure)
    return event


VENDOR: Object = {
    "type": "server_error",
    "code": "rate_limit_exceeded",
    "message": "At https://x sk-secret99",
    "param": None,
}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "error", "sequence_number": 3, "error": VENDOR}, ProviderRateLimited),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "x", "param": None}, ProviderRateLimited),
        ({"type": "error", "message": "x"}, ProviderUnavailable),
        ({"error": VENDOR}, ProviderRateLimited),
        (ended("failed", error={"code": "invalid_prompt", "message": "Not this."}), ProviderRejected),
        (ended("failed", error={"code": "server_error", "message": "x"}), ProviderUnavailable),
        (ended("cancelled"), ProviderUnavailable),
        (ended("failed"), ProviderUnavailable),
        ({"type": "response.output_text.delta", "delta": 7}, ProviderProtocolError),
        (item("added", 0, "message", content="x"), ProviderProtocolError),
        ({"type": "response.completed"}, ProviderProtocolError),
        ({}, StreamTruncated),
    ],
)
def test_an_error_is_ours_and_the_last_event(event: Object, error: type[Exception]) -> None:
    failed = failure(sse(CREATED_EVENT, delta("output_text", "Hi"), event, ended("completed") if event else {}))
    assert type(failed.error) is error
    assert "sk-secret" not in failed.error.message


def test_a_stream_that_just_ends_is_truncated() -> None:
    for rest in (b"", b'event: response.completed\ndata: {"type":"respon', b"data: [DONE]\n\n"):
        assert type(failure(sse(CREATED_EVENT, delta("output_text", "Hi")) + rest).error) is StreamTruncated


def test_garbage_is_a_protocol_error() -> None:
    assert type(failure(sse(CREATED_EVENT) + b'data: {"type":"re\xff\xfe\n\n').error) is ProviderProtocolError
    assert type(failure(b"data: " + b"[" * 100_000 + b"\n\n").error) is ProviderProtocolError


def test_odd_figures_leave_our_own_count_standing() -> None:
    events = hear(CREATED_EVENT, delta("output_text", "Hi"), ended(usage={"input_tokens": "many"}))
    assert events == [START, TextDelta("Hi"), DONE]


def test_a_whole_response_says_what_its_stream_says() -> None:
    output = [it["item"] for it in EVERYTHING if it["type"] == "response.output_item.done"]
    frames = CLIENT.decode_response(json.dumps(response("completed", output=output, usage=USED)).encode(), "up")
    events = [event for frame in frames for event in frame.events]
    assert events == [
        *(START, ReasoningDelta("Hmm."), ReasoningEnd(ISSUED), RedactedReasoning("responses:rs_2:hidden")),
        *(TextDelta("Hello"), ToolCallStart(0, "c1", "f"), ToolCallDelta(0, '{"a":1}'), ToolCallEnd(0)),
        *(ToolCallStart(1, "c2", "g"), ToolCallDelta(1, "{}"), ToolCallEnd(1), HEARD[-2], CALLED),
    ]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[]", ProviderProtocolError),
        (b"{}", ProviderProtocolError),
        (b'{"output":[],"status":"in_progress"}', ProviderProtocolError),
        (b'{"output":[{"type":"message","content":7}],"status":"completed"}', ProviderProtocolError),
        (b'{"error":{"code":"server_is_overloaded","message":"x"}}', ProviderUnavailable),
        (b'{"output":[],"status":"failed","error":{"code":"invalid_image","message":"x"}}', ProviderRejected),
    ],
)
def test_what_is_no_response_is_a_failure(body: bytes, error: type[Exception]) -> None:
    ((event,),) = (frame.events for frame in CLIENT.decode_response(body, "up"))
    assert isinstance(event, Failure) and type(event.error) is error


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ErrorCode.PROVIDER_REJECTED),
        (401, ErrorCode.PROVIDER_UNAVAILABLE),
        (404, ErrorCode.MODEL_NOT_FOUND),
        (408, ErrorCode.PROVIDER_TIMEOUT),
        (429, ErrorCode.PROVIDER_RATE_LIMITED),
        (500, ErrorCode.PROVIDER_UNAVAILABLE),
        (503, ErrorCode.PROVIDER_OVERLOADED),
    ],
)
@pytest.mark.parametrize("body", [json.dumps({"error": VENDOR}).encode(), b"<html>", b'{"detail":"x"}'])
def test_an_answer_that_is_an_error_is_read_by_its_status(status: int, code: ErrorCode, body: bytes) -> None:
    error = CLIENT.decode_error(status, body, "up")
    assert (error.code, error.status) == (code, status)
    assert "sk-" not in error.message and "https" not in error.message
