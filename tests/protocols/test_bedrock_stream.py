"""What Bedrock answers, as canonical events: frames cut anywhere, broken ones, errors by name, whole answers."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import (
    ErrorCode,
    ProviderError,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
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
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from tests.upstream.bedrock import encode_message, event, exception

CLIENT = BedrockConverseClient(clock=lambda: 1_795_000_000.0)
START = event("messageStart", {"role": "assistant"})
METADATA = event("metadata", {"usage": {"inputTokens": 10, "outputTokens": 4, "totalTokens": 14}})


def delta(index: int, **fields: Any) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": fields})


def stop(index: int) -> bytes:
    return event("contentBlockStop", {"contentBlockIndex": index})


def end(reason: str = "end_turn") -> bytes:
    return event("messageStop", {"stopReason": reason})


def tool(index: int, name: str, **more: str) -> bytes:
    start = {"toolUse": {"toolUseId": f"tooluse_{name}", "name": name, **more}}
    return event("contentBlockStart", {"contentBlockIndex": index, "start": start})


WHOLE = b"".join(
    (
        START,
        delta(0, reasoningContent={"text": "Hm"}),
        delta(0, reasoningContent={"text": "m."}),
        delta(0, reasoningContent={"signature": "c2ln"}),
        stop(0),
        delta(1, reasoningContent={"redactedContent": "UmVkYWN0ZWQ="}),
        stop(1),
        delta(2, text="Grü"),
        delta(2, text="ße \u2028"),
        stop(2),
        tool(3, "now"),
        stop(3),
        tool(4, "then"),
        delta(4, toolUse={"input": ""}),
        delta(4, toolUse={"input": '{"a":'}),
        delta(4, toolUse={"input": "1}"}),
        stop(4),
        end("tool_use"),
        METADATA,
    )
)


def read(*chunks: bytes) -> tuple[list[Event], bool]:
    """The events, checked for their order, and whether the decoder says it is done."""
    decoder = CLIENT.decoder("aws")
    frames: list[Frame] = []
    for chunk in chunks:
        frames += decoder.feed(chunk)
    is_done = decoder.is_done
    frames += decoder.end_of_bytes()
    order = Order()
    events = [each for frame in frames for each in frame.events]
    for each in events:
        order.check(each, "aws")
    return events, is_done


def failure(*chunks: bytes) -> ProviderError:
    last = read(*chunks)[0][-1]
    assert isinstance(last, Failure)
    return last.error


def test_a_stream_becomes_events_in_order() -> None:
    events, is_done = read(WHOLE)
    assert is_done and isinstance(events[0], MessageStart) and events[0].created == 1_795_000_000
    assert events[1:-2] == [
        ReasoningDelta("Hm"),
        ReasoningDelta("m."),
        ReasoningEnd("c2ln"),
        RedactedReasoning("UmVkYWN0ZWQ="),
        TextDelta("Grü"),
        TextDelta("ße \u2028"),
        ToolCallStart(0, "tooluse_now", "now"),
        ToolCallEnd(0),
        ToolCallStart(1, "tooluse_then", "then"),
        ToolCallDelta(1, '{"a":'),
        ToolCallDelta(1, "1}"),
        ToolCallEnd(1),
    ]
    finish, report = events[-2:]
    assert (
        isinstance(finish, Finish) and finish.reason.unified is Unified.TOOL_CALLS and finish.reason.raw == "tool_use"
    )
    assert isinstance(report, UsageReport) and (report.usage.input, report.usage.output) == (10, 4)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_wherever_the_bytes_are_cut_the_events_are_the_same(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    chunks = [WHOLE[a:b] for a, b in pairwise(places)]
    assert read(*chunks)[0][1:] == read(WHOLE)[0][1:]


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_whatever_byte_is_wrong_nothing_is_made_of_it(place: int, change: int) -> None:
    broken = bytearray(WHOLE)
    broken[place] ^= change
    events, _ = read(bytes(broken))
    assert isinstance(events[-1], Failure) and isinstance(events[-1].error, ProviderProtocolError)
    good = read(WHOLE)[0][1:]
    told = [each for each in events if not isinstance(each, MessageStart | Failure)]
    assert told == good[: len(told)]


@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_a_failure_and_no_exception(rubbish: bytes) -> None:
    assert isinstance(failure(rubbish), ProviderProtocolError)


@pytest.mark.parametrize("headers", [{":message-type": "event"}, {}, {":message-type": "event", ":event-type": "news"}])
def test_what_is_newer_than_the_gateway_is_passed_over(headers: dict[str, str]) -> None:
    events, is_done = read(START, encode_message(headers, b'{"a":1}'), delta(0, video={"a": 1}), end(), METADATA)
    assert is_done and [type(each) for each in events] == [MessageStart, Finish, UsageReport]


def test_usage_may_come_before_the_end_or_not_at_all() -> None:
    events, is_done = read(START, delta(0, text="Hi"), METADATA, end())
    assert is_done and [type(each) for each in events] == [MessageStart, TextDelta, UsageReport, Finish]
    events, is_done = read(START, delta(0, text="Hi"), end())
    assert not is_done and [type(each) for each in events] == [MessageStart, TextDelta, Finish]


def test_usage_counts_what_was_cached_as_input() -> None:
    usage = {"inputTokens": 10, "outputTokens": 4, "totalTokens": 104, "cacheReadInputTokens": 60}
    report = read(START, end(), event("metadata", {"usage": {**usage, "cacheWriteInputTokens": 30}}))[0][-1]
    assert isinstance(report, UsageReport)
    assert (report.usage.input, report.usage.cache_read, report.usage.cache_write) == (100, 60, 30)


@pytest.mark.parametrize(
    ("reason", "unified"),
    [
        ("end_turn", Unified.STOP),
        ("stop_sequence", Unified.STOP),
        ("max_tokens", Unified.LENGTH),
        ("model_context_window_exceeded", Unified.LENGTH),
        ("tool_use", Unified.TOOL_CALLS),
        ("content_filtered", Unified.CONTENT_FILTER),
        ("guardrail_intervened", Unified.CONTENT_FILTER),
        ("malformed_tool_use", Unified.ERROR),
        ("something_new", Unified.OTHER),
    ],
)
def test_every_reason_to_stop_is_known(reason: str, unified: Unified) -> None:
    finish = read(START, end(reason), METADATA)[0][1]
    assert isinstance(finish, Finish) and (finish.reason.unified, finish.reason.raw) == (unified, reason)


def test_a_stop_in_spite_of_calls_is_one_for_calls() -> None:
    finish = read(START, tool(0, "now"), stop(0), end("end_turn"), METADATA)[0][3]
    assert isinstance(finish, Finish) and finish.reason.unified is Unified.TOOL_CALLS


def test_what_is_open_at_the_end_is_closed() -> None:
    events, _ = read(START, delta(0, reasoningContent={"text": "Hm."}), tool(1, "now"), end("max_tokens"), METADATA)
    assert events[2:5] == [ToolCallStart(0, "tooluse_now", "now"), ReasoningEnd(), ToolCallEnd(0)]


def test_a_hosted_tools_call_is_not_the_clients_to_answer() -> None:
    hosted = tool(0, "search", type="server_tool_use")
    events, _ = read(START, hosted, delta(0, toolUse={"input": "{}"}), stop(0), delta(1, text="So."), end(), METADATA)
    assert [type(each) for each in events] == [MessageStart, TextDelta, Finish, UsageReport]


def test_redacted_reasoning_in_pieces_is_one_block() -> None:
    pieces = (delta(0, reasoningContent={"redactedContent": piece}) for piece in ("YWI=", "Yw=="))
    assert read(START, *pieces, stop(0), end(), METADATA)[0][1] == RedactedReasoning("YWJj")


@pytest.mark.parametrize("chunks", [(), (START,), (START, delta(0, text="Hi")), (START, delta(0, text="Hi")[:-3])])
def test_an_end_before_the_end_is_a_truncation(chunks: tuple[bytes, ...]) -> None:
    assert isinstance(failure(*chunks), StreamTruncated)


def test_an_event_that_is_not_of_its_format_is_a_failure() -> None:
    assert type(failure(START, event("contentBlockDelta", {"delta": {"text": 1}}))) is ProviderProtocolError
    headers = {":event-type": "messageStop", ":message-type": "event"}
    assert type(failure(START, encode_message(headers, b"\xff{"))) is ProviderProtocolError


ERRORS = [
    ("throttlingException", 429, ProviderRateLimited, ErrorCode.PROVIDER_RATE_LIMITED),
    ("modelStreamErrorException", 424, ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
    ("modelErrorException", 424, ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
    ("modelTimeoutException", 408, ProviderTimeout, ErrorCode.PROVIDER_TIMEOUT),
    ("modelNotReadyException", 429, ProviderUnavailable, ErrorCode.PROVIDER_OVERLOADED),
    ("validationException", 400, ProviderRejected, ErrorCode.PROVIDER_REJECTED),
    ("accessDeniedException", 403, ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
    ("resourceNotFoundException", 404, ProviderRejected, ErrorCode.MODEL_NOT_FOUND),
    ("internalServerException", 500, ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
    ("serviceUnavailableException", 503, ProviderUnavailable, ErrorCode.PROVIDER_OVERLOADED),
    ("incompleteSignatureException", 400, ProviderUnavailable, ErrorCode.PROVIDER_UNAVAILABLE),
    ("serviceQuotaExceededException", 400, ProviderRateLimited, ErrorCode.PROVIDER_RATE_LIMITED),
]


@pytest.mark.parametrize(("name", "status", "kind", "code"), ERRORS)
def test_errors_have_one_meaning_in_the_stream_in_a_header_and_in_a_body(
    name: str, status: int, kind: type[ProviderError], code: ErrorCode
) -> None:
    within = failure(START, exception(name, "No."))
    header = {"x-amzn-errortype": f"{name[0].upper()}{name[1:]}:http://internal.amazon.com/coral/com.amazon.bedrock/"}
    answered = CLIENT.decode_error(status, b'{"message":"No."}', "aws", header)
    named = json.dumps({"__type": f"com.amazon.coral.service#{name[0].upper()}{name[1:]}", "Message": "No."})
    bodied = CLIENT.decode_error(status, named.encode(), "aws")
    assert [(type(error), error.code) for error in (within, answered, bodied)] == [(kind, code)] * 3
    assert (within.status, answered.status) == (None, status)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message":1}', b"[" * 5000, b"\xff"])
def test_any_body_will_do_for_an_error(body: bytes) -> None:
    assert isinstance(CLIENT.decode_error(400, body, "aws"), ProviderRejected)
    assert isinstance(CLIENT.decode_error(502, body, "aws"), ProviderUnavailable)


def test_a_message_keeps_its_words_and_loses_whose_account_it_is() -> None:
    text = "messages.0: too long. arn:aws:bedrock:eu:123456789012:x/y of 123456789012, see https://aws/x AKIA12345678"
    error = CLIENT.decode_error(400, json.dumps({"message": text}).encode(), "aws")
    assert error.message == "messages.0: too long. [arn] of [account], see [url] [key]"
    assert "No." not in failure(START, exception("accessDeniedException", "No.")).message


def test_an_error_of_the_connection_is_a_failure() -> None:
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "secret"}
    error = failure(START, encode_message(headers, b""))
    assert isinstance(error, ProviderUnavailable) and "secret" not in error.message


def test_a_whole_answer_has_the_events_of_a_stream() -> None:
    blocks = [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "UmVk"}},
        {"text": "So:"},
        {"citationsContent": {"content": [{"text": "It "}, {"text": "is."}], "citations": []}},
        {"toolUse": {"toolUseId": "t1", "name": "now", "input": {}}},
        {"toolUse": {"toolUseId": "t2", "name": "then", "input": {"a": 1.10}}},
    ]
    answer = {"output": {"message": {"role": "assistant", "content": blocks}}, "stopReason": "tool_use"}
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
    (frame,) = CLIENT.decode_response(json.dumps({**answer, "usage": usage}).encode(), "aws")
    assert frame.events[1:-2] == (
        ReasoningDelta("Hm."),
        ReasoningEnd("c2ln"),
        RedactedReasoning("UmVk"),
        TextDelta("So:"),
        TextDelta("It is."),
        ToolCallStart(0, "t1", "now"),
        ToolCallEnd(0),
        ToolCallStart(1, "t2", "then"),
        ToolCallDelta(1, '{"a": 1.1}'),
        ToolCallEnd(1),
    )
    assert isinstance(CLIENT.decode_response(b'{"output":{}}', "aws")[0].events[0], Failure)
