"""Responses without a socket: what a request becomes, and the laws of the events that tell of the answer."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import ErrorCode, GatewayError, RequestError
from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    Frame,
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
)
from gateway.canonical.request import Message, Reasoning, Refusal, Request, Text, ToolCall, ToolResult
from gateway.canonical.usage import Usage
from gateway.protocols.openai_responses.server import OpenAiResponsesServer
from gateway.protocols.sse import SseDecoder
from gateway.protocols.wire import Cut, Encoder, Notice, StreamMeta

SERVER = OpenAiResponsesServer()
START = MessageStart("up-1", "up-model", 1_700_000_000)
STOP = Finish(FinishReason(Unified.STOP, "stop"))
LENGTH = Finish(FinishReason(Unified.LENGTH, "length"))
USAGE = Usage(input=3, output=2, reasoning=1)
CUT = Cut("credits_exhausted", "Out of credit.")
BROKE = GatewayError("It broke.", code=ErrorCode.PROVIDER_UNAVAILABLE)


def request(**body: Any) -> Request:
    return SERVER.decode_request(json.dumps({"model": "m", "input": "Hi", **body}).encode(), {})


def messages(*items: dict[str, Any]) -> tuple[Message, ...]:
    return request(input=list(items)).messages


def encoder(*, stream: bool = True, notices: bool = False, **body: Any) -> Encoder:
    return SERVER.encoder(request(stream=stream, **body), StreamMeta("r1", 1_600_000_000, None, notices))


def told(payload: bytes) -> list[dict[str, Any]]:
    """The events, each of which names itself twice."""
    frames = SseDecoder().feed(payload)
    events = [json.loads(frame.data) for frame in frames]
    assert [frame.event for frame in frames] == [event["type"] for event in events]
    return events


def stream(*events: Event, **body: Any) -> list[dict[str, Any]]:
    chosen = encoder(**body)
    return told(b"".join([*(chosen.encode(Frame((event,))) for event in events), chosen.end(USAGE)]))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# What a request becomes.


def test_items_of_one_answer_become_one_turn() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "42"}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}]}
    assert messages({"role": "user", "content": "Hi"}, thought, said, call, {**call, "call_id": "c2"}, result) == (
        Message("user", (Text("Hi"),)),
        Message(
            "assistant",
            (Reasoning("Hm"), Text("Let me see."), ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}")),
        ),
        Message("tool", (ToolResult("c1", (Text("42"),)),)),
    )


def test_two_answers_in_a_row_stay_two_turns() -> None:
    said = {"role": "assistant", "content": "One."}
    thought = {"type": "reasoning", "summary": []}
    turns = messages(said, thought, {**said, "content": [{"type": "refusal", "refusal": "No."}]})
    assert turns == (
        Message("assistant", (Text("One."),)),
        Message("assistant", (Reasoning(""), Refusal("No."))),
    )


def test_instructions_come_before_everything_that_was_said() -> None:
    turns = request(instructions="Be brief.", input=[{"role": "developer", "content": "Rhyme."}]).messages
    assert [(turn.role, turn.parts) for turn in turns] == [
        ("system", (Text("Be brief."),)),
        ("system", (Text("Rhyme."),)),
    ]


@pytest.mark.parametrize(
    ("item", "where"),
    [
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "function_call", "call_id": "c", "arguments": "{}"}, "input[0].name"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({"type": "message", "content": "x"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]},
            "input[0].content[0].image_url",
        ),
        ({"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_file", "file_data": "AAAA"}]}, "input[0].content[0].file_data"),
        ({"id": "msg_1"}, "input[0]"),
        ({"type": "custom_tool_call", "call_id": "c"}, "input[0]"),
    ],
)
def test_an_item_that_is_wrong_is_named(item: dict[str, Any], where: str) -> None:
    with pytest.raises(RequestError) as refused:
        messages(item)
    assert refused.value.param == where


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"metadata": {"a": "ü" * 300}}, "metadata"),
        ({"base_url": "http://other"}, "base_url"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)
def test_a_field_that_is_wrong_is_named(body: dict[str, Any], where: str) -> None:
    with pytest.raises(RequestError) as refused:
        request(**body)
    assert refused.value.param == where


def test_a_file_without_a_type_is_what_its_name_says() -> None:
    part = {"type": "input_file", "file_data": "aGk=", "filename": "notes.TXT"}
    document = messages({"role": "user", "content": [part]})[0].parts[0]
    assert document.media_type == "text/plain"  # type: ignore[attr-defined]


def test_content_that_openai_sealed_is_not_taken_for_a_signature() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "gAAA"}
    assert messages(thought)[0].parts == (Reasoning("Hm", ""),)


# The laws of the events.

_PIECES = st.sampled_from(
    [
        (TextDelta("a"),),
        (RefusalDelta("no"),),
        (ReasoningDelta("h"),),
        (ReasoningDelta("h"), ReasoningEnd("c2ln")),
        (ReasoningEnd("c2ln"),),
        (ReasoningEnd(""),),
        (RedactedReasoning("b3Bh"),),
        ("call",),
    ]
)


def _events(pieces: list[Any], *, ends_calls: bool) -> list[Event]:
    events: list[Event] = [START]
    calls = 0
    for piece in pieces:
        if piece == ("call",):
            events += [ToolCallStart(calls, f"c{calls}", "f"), ToolCallDelta(calls, "{}")]
            calls += 1
        else:
            events += piece
    return [*events, *(ToolCallEnd(i) for i in range(calls if ends_calls else 0)), STOP]


@given(st.lists(_PIECES, max_size=12), st.booleans(), st.sampled_from(["end", "cut", "fail"]))
def test_every_stream_keeps_the_rules_of_the_format(pieces: list[Any], ends_calls: bool, ending: str) -> None:
    chosen = encoder()
    said = _events(pieces, ends_calls=ends_calls)
    said = said if ending == "end" else said[:-1]
    close = {
        "end": lambda: chosen.end(USAGE),
        "cut": lambda: chosen.cut(CUT, USAGE),
        "fail": lambda: chosen.fail(BROKE),
    }
    events = told(b"".join([*(chosen.encode(Frame((event,))) for event in said), close[ending]()]))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds(events)[:2] == ["created", "in_progress"]
    assert kinds(events)[-1] == {"end": "completed", "cut": "incomplete", "fail": "failed"}[ending]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(added)))
    done = {e["output_index"]: e["item"] for e in events if e["type"] == "response.output_item.done"}
    assert all(done[place]["id"] == added[place]["item"]["id"] for place in done)
    final = events[-1]["response"]
    assert final["output"] == [done[place] for place in sorted(done)]
    if ending != "fail":
        assert len(done) == len(added) and not any(item.get("status") == "in_progress" for item in final["output"])
    ids = {event["output_index"]: event["item"]["id"] for event in added}
    assert all(ids[event["output_index"]] == event["item_id"] for event in events if "item_id" in event)


@given(st.lists(_PIECES, max_size=12), st.sampled_from([STOP, LENGTH]))
def test_the_whole_answer_is_the_one_that_the_stream_ends_with(pieces: list[Any], finish: Finish) -> None:
    said = [*_events(pieces, ends_calls=True)[:-1], finish]
    streamed = stream(*said)[-1]["response"]
    collecting = encoder(stream=False)
    assert b"".join([collecting.encode(Frame((event,))) for event in said]) == b""
    assert _without_ids(json.loads(collecting.end(USAGE))) == _without_ids(streamed)


def _without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [{name: value for name, value in item.items() if name != "id"} for item in response["output"]]
    return {**{name: value for name, value in response.items() if name != "completed_at"}, "output": output}


def test_text_is_told_piece_by_piece_whole_and_within_its_item() -> None:
    events = stream(START, TextDelta("He"), TextDelta("y"), STOP)
    by_kind = dict(zip(kinds(events), events, strict=True))
    assert by_kind["output_text.done"]["text"] == "Hey"
    assert by_kind["content_part.done"]["part"]["text"] == "Hey"
    assert by_kind["output_item.done"]["item"]["content"][0]["text"] == "Hey"
    assert by_kind["completed"]["response"]["model"] == "up-model"
    assert by_kind["completed"]["response"]["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 5,
    }


def test_a_refusal_after_text_is_another_part_of_the_same_message() -> None:
    events = stream(START, TextDelta("Well, "), RefusalDelta("no"), STOP)
    message = events[-1]["response"]["output"][0]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
    assert [event["content_index"] for event in events if event["type"] == "response.content_part.added"] == [0, 1]


def test_calls_that_overlap_keep_their_places() -> None:
    starts = (ToolCallStart(0, "c0", "f"), ToolCallStart(1, "c1", "g"))
    deltas = (ToolCallDelta(1, "[1"), ToolCallDelta(0, "[0"), ToolCallDelta(1, "]"), ToolCallDelta(0, "]"))
    output = stream(START, *starts, *deltas, ToolCallEnd(0), ToolCallEnd(1), STOP)[-1]["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("c0", "[0]"), ("c1", "[1]")]


def test_only_the_call_that_ran_out_of_room_is_incomplete() -> None:
    chosen = encoder()
    chosen.encode(Frame((START, ToolCallStart(0, "c0", "f"), ToolCallStart(1, "c1", "g"))))
    chosen.encode(Frame((ToolCallEnd(0), ToolCallEnd(1), LENGTH)))
    output = told(chosen.end(USAGE))[-1]["response"]["output"]
    assert [item["status"] for item in output] == ["completed", "incomplete"]


def test_a_provider_that_ends_with_an_error_makes_a_failed_response() -> None:
    events = stream(START, TextDelta("x"), Finish(FinishReason(Unified.ERROR, "error")))
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["error"]["code"] == "server_error"


def test_an_error_before_anything_was_said_still_begins_with_the_response() -> None:
    events = told(encoder().fail(BROKE))
    assert kinds(events) == ["created", "in_progress", "error", "failed"]
    assert events[2]["error"] == {
        "message": "It broke.",
        "type": "server_error",
        "param": None,
        "code": "provider_unavailable",
    }
    assert events[3]["response"]["x_gateway"] == {"outcome": "failed", "reason": "provider_unavailable"}


def test_notices_are_numbered_with_the_events_however_they_are_put_before_them() -> None:
    notice = Notice(kind="budget", reason="budget_used", message="80% used.")
    chosen = encoder(notices=True)
    first = chosen.encode(Frame((START,)))
    payload = chosen.notice(notice) + first + chosen.encode(Frame((TextDelta("x"), STOP)))
    payload += chosen.notice(notice) + chosen.end(USAGE)
    events = told(payload)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds(events)[0] == "created" and kinds(events)[-1] == "completed"
    assert kinds(events).count("gateway.notice") == 2
    deaf = encoder()
    assert deaf.notice(notice) + deaf.encode(Frame((START,))) == deaf.notice(notice) + encoder().encode(Frame((START,)))


def test_a_cut_tells_the_gateways_reason_beside_the_formats() -> None:
    for stream_wanted in (True, False):
        chosen = encoder(stream=stream_wanted)
        chosen.encode(Frame((START, TextDelta("x"))))
        payload = chosen.cut(CUT, USAGE)
        response = told(payload)[-1]["response"] if stream_wanted else json.loads(payload)
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["x_gateway"]["reason"] == "credits_exhausted"


def test_what_was_asked_for_is_echoed_as_it_was_written() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "x": 1}]
    response = stream(START, STOP, tools=tools, metadata={"a": "b"}, temperature=0.5)[-1]["response"]
    assert (response["tools"], response["metadata"], response["temperature"]) == (tools, {"a": "b"}, 0.5)
    assert msgspec.json.encode(response["text"]) == b'{"format":{"type":"text"}}'
