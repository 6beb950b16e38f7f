"""The UI message stream of AI SDK 5 and later, read as strictly as its first release does."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import CreditsExhausted
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
from gateway.canonical.request import Message, Part, Reasoning, Request, Text, ToolCall
from gateway.canonical.usage import Usage
from gateway.protocols.ai_sdk_ui import Compat
from gateway.protocols.ai_sdk_ui.server import AiSdkUiServer
from gateway.protocols.ai_sdk_ui.stream import UiMessageEncoder
from gateway.protocols.ai_sdk_ui.text import TextEncoder
from gateway.protocols.wire import Cut, Encoder, Notice, StreamMeta
from tests.protocols.chat_streams import FOREIGN, QUIRKS, relayed
from tests.protocols.ui_streams import chunks, message

USAGE = Usage(input=12, output=7, cache_read=2, reasoning=3)
FIGURES = {"inputTokens": 12, "outputTokens": 7, "totalTokens": 19, "reasoningTokens": 3, "cachedInputTokens": 2}
LEVELS: tuple[Compat, ...] = ("5-strict", "5", "6", "7")
START, STEP = {"type": "start", "messageId": "msg-req1"}, {"type": "start-step"}
BUDGET = Notice("budget", "budget_threshold", "95 % of the budget\nis used up.", 0.95, "month")
CUT = Cut("credits_exhausted", "The credit is used up.")


def ended(finish: str) -> list[dict[str, Any]]:
    about = {"finishReason": finish, "usage": FIGURES}
    return [{"type": "finish-step"}, {"type": "finish", "messageMetadata": about}]


def encoded(encoder: Encoder, *events: Event) -> bytes:
    return b"".join(encoder.encode(Frame((event,))) for event in events)


def said(*events: Event, compat: Compat = "5-strict") -> list[dict[str, Any]]:
    encoder = UiMessageEncoder(FOREIGN, compat=compat)
    found = chunks(encoded(encoder, *events) + encoder.end(USAGE), compat)
    message(found)
    return found


def parts(*events: Event, compat: Compat = "5-strict") -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = message(said(*events, compat=compat))["parts"]
    return shown[1:]


def called(arguments: str, compat: Compat = "5-strict") -> dict[str, Any]:
    (part,) = parts(ToolCallStart(0, "a", "f"), ToolCallDelta(0, arguments), ToolCallEnd(0), compat=compat)
    return part


def test_every_part_has_its_chunk() -> None:
    assert said(
        MessageStart("id", "m", 1),
        ReasoningDelta("Hm."),
        ReasoningEnd("sig"),
        RedactedReasoning("secret"),
        TextDelta("Zü\n\u2028😀"),
        RefusalDelta("No."),
        ToolCallStart(0, "a", "weather"),
        ToolCallDelta(0, '{"city":'),
        ToolCallDelta(0, ""),
        ToolCallDelta(0, '"Zürich"}'),
        ToolCallEnd(0),
        TextDelta("Wait."),
        Finish(FinishReason(Unified.TOOL_CALLS)),
    ) == [
        START,
        STEP,
        {"type": "reasoning-start", "id": "0"},
        {"type": "reasoning-delta", "id": "0", "delta": "Hm."},
        {"type": "reasoning-end", "id": "0", "providerMetadata": {"anthropic": {"signature": "sig"}}},
        {"type": "reasoning-start", "id": "1", "providerMetadata": {"anthropic": {"redactedData": "secret"}}},
        {"type": "reasoning-end", "id": "1"},
        {"type": "text-start", "id": "2"},
        {"type": "text-delta", "id": "2", "delta": "Zü\n\u2028😀"},
        {"type": "text-delta", "id": "2", "delta": "No."},
        {"type": "text-end", "id": "2"},
        {"type": "tool-input-start", "toolCallId": "a", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "a", "inputTextDelta": '{"city":'},
        {"type": "tool-input-delta", "toolCallId": "a", "inputTextDelta": '"Zürich"}'},
        {"type": "tool-input-available", "toolCallId": "a", "toolName": "weather", "input": {"city": "Zürich"}},
        {"type": "text-start", "id": "3"},
        {"type": "text-delta", "id": "3", "delta": "Wait."},
        {"type": "text-end", "id": "3"},
        *ended("tool-calls"),
    ]


@pytest.mark.parametrize("name", QUIRKS)
def test_every_providers_stream_is_one_the_parser_reads(name: str) -> None:
    data, expected = QUIRKS[name]
    output, _, failures = relayed(UiMessageEncoder(FOREIGN), data)
    shown = message(chunks(output))
    assert failures == []
    assert "".join(part["text"] for part in shown["parts"] if part["type"] == "text") == expected.text
    assert "".join(part["text"] for part in shown["parts"] if part["type"] == "reasoning") == expected.reasoning
    calls = [(part["toolCallId"], part["type"], part["input"]) for part in shown["parts"] if "toolCallId" in part]
    assert calls == [(identity, f"tool-{name}", json.loads(text)) for identity, name, text in expected.calls]
    assert shown["metadata"]["finishReason"] == (expected.finish or "").replace("_", "-")


class TestCalls:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("", {}),
            (" \n", {}),
            ('{"a":1,\r\n "b":[1.5]}', {"a": 1, "b": [1.5]}),
            ('{"a":%s}' % ("9" * 40), {"a": int("9" * 40)}),
        ],
    )
    def test_arguments_are_an_object_on_one_line(self, arguments: str, expected: dict[str, Any]) -> None:
        part = called(arguments)
        assert (part["state"], part["input"]) == ("input-available", expected)

    @pytest.mark.parametrize("arguments", ["[1]", '"x"', "null", '{"a":', '{"a":NaN}', '{"a":1e999}', "{}" * 2])
    def test_what_is_no_object_is_an_error_and_no_page_runs_it(self, arguments: str) -> None:
        for level in LEVELS:
            part = called(arguments, level)
            assert (part["state"], part["errorText"]) == ("output-error", "The arguments are not a JSON object.")
            assert part.get("rawInput") == (None if level == "5-strict" else arguments)

    def test_arguments_nested_without_end_are_an_error_too(self) -> None:
        assert called('{"a":' + "[" * 5000 + "]" * 5000 + "}")["state"] == "output-error"

    def test_the_models_own_digits_are_kept(self) -> None:
        encoder = UiMessageEncoder(FOREIGN)
        output = encoded(encoder, ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"a":1.10e2}'), ToolCallEnd(0))
        assert b'"input":{"a":1.10e2}}\n\n' in output

    def test_calls_side_by_side_are_kept_apart(self) -> None:
        first, text, second = parts(
            *(ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"n":'), TextDelta("x"), ToolCallStart(1, "b", "g")),
            *(ToolCallDelta(1, '{"m":2}'), ToolCallDelta(0, "1}"), ToolCallEnd(0), ToolCallEnd(1)),
        )
        assert (first["input"], text["text"], second["input"]) == ({"n": 1}, "x", {"m": 2})

    def test_a_call_that_was_never_ended_is_ended_with_the_stream(self) -> None:
        (part,) = parts(ToolCallStart(0, "a", "f"), ToolCallDelta(0, "{}"))
        assert part["state"] == "input-available"

    def test_an_id_that_the_conversation_knows_is_made_another(self) -> None:
        encoder = UiMessageEncoder(FOREIGN, call_ids=["call_0"])
        events = [ToolCallStart(0, "call_0", "f"), ToolCallEnd(0), ToolCallStart(1, "call_0", "f"), ToolCallEnd(1)]
        shown = message(chunks(encoded(encoder, *events) + encoder.end(USAGE)))
        assert [part["toolCallId"] for part in shown["parts"][1:]] == ["call_0-req1-0", "call_0-req1-1"]

    def test_a_call_without_an_id_or_a_name_gets_both(self) -> None:
        (part,) = parts(ToolCallStart(0, "", ""), ToolCallEnd(0))
        assert (part["toolCallId"], part["type"]) == ("call-req1-0", "tool-unknown")


class TestReasoning:
    def test_it_ends_where_something_else_begins(self) -> None:
        kinds = [part["type"] for part in parts(ReasoningDelta("a"), TextDelta("b"), ReasoningDelta("c"))]
        assert kinds == ["reasoning", "text", "reasoning"]

    def test_a_signature_without_its_text_is_carried_all_the_same(self) -> None:
        text, reasoning = parts(TextDelta("a"), ReasoningEnd(), ReasoningEnd("sig"))
        assert text == {"type": "text", "text": "a"}
        assert reasoning == {
            "type": "reasoning",
            "text": "",
            "providerMetadata": {"anthropic": {"signature": "sig"}},
        }


def test_only_the_first_choice_is_shown() -> None:
    events: list[Event] = [TextDelta("b", 1), ToolCallStart(0, "a", "f", 1), Finish(FinishReason(Unified.STOP), 1)]
    assert said(*events) == [START, STEP, *ended("other")]


def test_a_stream_that_said_nothing_still_has_its_frame() -> None:
    assert said(TextDelta("")) == [START, STEP, *ended("other")]


@pytest.mark.parametrize("reason", Unified)
def test_the_finish_reason_is_a_field_of_its_own_for_clients_that_take_it(reason: Unified) -> None:
    word = reason.value.replace("_", "-")
    for level in LEVELS:
        last = said(Finish(FinishReason(reason)), compat=level)[-1]
        assert last.get("finishReason") == (None if level == "5-strict" else word)
        assert last["messageMetadata"]["finishReason"] == word


def test_the_cost_is_told_where_it_is_known() -> None:
    encoder = UiMessageEncoder(msgspec.structs.replace(FOREIGN, cost_microusd=lambda: 1_002_003))
    assert message(chunks(encoder.end(USAGE)))["metadata"]["costUsd"] == "1.002003"


def test_an_answer_that_goes_on_has_no_id_of_its_own() -> None:
    encoder = UiMessageEncoder(FOREIGN, continues=True)
    assert chunks(encoded(encoder, TextDelta("x")) + encoder.end(USAGE))[0] == {"type": "start"}


STAGES: list[tuple[Event, ...]] = [
    (),
    (MessageStart("id", "m", 1),),
    (ReasoningDelta("Hm"),),
    (TextDelta("Hel"),),
    (TextDelta("Hel"), ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"a"')),
]


@pytest.mark.parametrize("events", STAGES)
@pytest.mark.parametrize("level", LEVELS)
class TestEnds:
    def test_a_cut_is_an_abort_with_its_reason_in_the_message(self, events: tuple[Event, ...], level: Compat) -> None:
        encoder = UiMessageEncoder(FOREIGN, compat=level)
        found = chunks(encoded(encoder, *events) + encoder.cut(CUT, USAGE), level)
        shown = message(found)
        assert found[-1]["type"] == "abort"
        assert found[-1].get("reason") == (CUT.message if level in ("6", "7") else None)
        assert shown["metadata"] == {"finishReason": "length", "usage": FIGURES}
        assert shown["parts"][-1] == {
            "type": "data-gateway-cut",
            "data": {"reason": "credits_exhausted", "message": "The credit is used up."},
        }

    def test_an_error_closes_what_is_open_and_ends_the_stream(self, events: tuple[Event, ...], level: Compat) -> None:
        encoder = UiMessageEncoder(FOREIGN, compat=level)
        found = chunks(encoded(encoder, *events) + encoder.fail(CreditsExhausted("Gone.")), level)
        assert message(found)["error"] == "Gone."
        told = {"code": "credits_exhausted", "message": "Gone."}
        assert found[-2] == {"type": "data-gateway-error", "data": told, "transient": True}
        # Where nothing was said, there is no empty message on the screen.
        assert (found[0] == START) == bool(events)


FRAMES = [Frame((event,)) for event in (MessageStart("id", "m", 1), TextDelta("Hel"), TextDelta("lo"))]


@pytest.mark.parametrize("place", range(len(FRAMES) + 1))
def test_a_notice_and_a_heartbeat_fit_anywhere(place: int) -> None:
    encoder = UiMessageEncoder(FOREIGN)
    output = b"".join(encoder.encode(frame) for frame in FRAMES[:place])
    output += encoder.heartbeat + encoder.notice(BUDGET) + encoder.heartbeat
    output += b"".join(encoder.encode(frame) for frame in FRAMES[place:]) + encoder.end(USAGE)
    found = chunks(output)
    notices = [chunk for chunk in found if chunk["type"].startswith("data-")]
    assert notices == [{"type": "data-gateway-budget", "data": BUDGET.fields, "transient": True}]
    assert message(found)["parts"] == [{"type": "step-start"}, {"type": "text", "text": "Hello"}]


def test_the_answer_says_what_it_is() -> None:
    assert (b"content-type", b"text/event-stream") in UiMessageEncoder.headers
    assert (b"x-vercel-ai-ui-message-stream", b"v1") in UiMessageEncoder.headers


# What a provider may say, block by block, and what a model must find in its history afterwards.
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_arguments = st.dictionaries(_text, st.integers(-(2**53), 2**53) | _text | st.none(), max_size=3).map(json.dumps)
_block = st.one_of(
    st.lists(_text, min_size=1, max_size=3).map(lambda texts: ("text", texts)),
    st.tuples(st.lists(_text, max_size=3), _text).map(lambda block: ("reasoning", block)),
    _text.filter(bool).map(lambda secret: ("redacted", secret)),
    st.tuples(_arguments, st.integers(0, 5)).map(lambda call: ("call", call)),
)


def _spoken(blocks: list[tuple[str, Any]]) -> tuple[list[Event], list[Part]]:
    events: list[Event] = []
    history: list[Part] = []
    calls = 0
    for kind, value in blocks:
        if kind == "text":
            events += [TextDelta(text) for text in value]
            if text := "".join(value):
                last = history.pop() if history and isinstance(history[-1], Text) else Text("")
                history.append(Text(last.text + text))
        elif kind == "reasoning":
            texts, signature = value
            events += [*(ReasoningDelta(text) for text in texts), ReasoningEnd(signature)]
            if "".join(texts) or signature:
                history.append(Reasoning("".join(texts), signature))
        elif kind == "redacted":
            events.append(RedactedReasoning(value))
            history.append(Reasoning(redacted=value))
        else:
            text, cut = value
            fragments = (text[:cut], text[cut:])
            events += [ToolCallStart(calls, f"c{calls}", "f-g"), *(ToolCallDelta(calls, one) for one in fragments)]
            events.append(ToolCallEnd(calls))
            history.append(ToolCall(f"c{calls}", "f-g", text))
            calls += 1
    return events, history


@given(st.lists(_block, max_size=8))
def test_what_was_said_comes_back_as_it_was(blocks: list[tuple[str, Any]]) -> None:
    events, history = _spoken(blocks)
    encoder = UiMessageEncoder(FOREIGN)
    shown = message(chunks(encoded(encoder, *events) + encoder.end(USAGE)))
    for part in shown["parts"]:
        if part.pop("typed", None) is not None:
            part |= {"state": "output-available", "output": "done"}
    body = json.dumps({"messages": [{"role": "user", "parts": [{"type": "text", "text": "Hi"}]}, shown]})
    request: Request = AiSdkUiServer().decode_request(body.encode(), {"model": "m"})
    said_again = [part for turn in request.messages[1:] if turn.role == "assistant" for part in turn.parts]
    assert [_as_values(part) for part in said_again] == [_as_values(part) for part in history]


def _as_values(part: Part) -> Any:
    if isinstance(part, ToolCall):
        return part.id, part.name, json.loads(part.arguments)
    return part


class TestText:
    def test_it_is_the_text_and_nothing_else(self) -> None:
        encoder = TextEncoder()
        output = encoded(encoder, ReasoningDelta("Hm."), TextDelta("Zü"), TextDelta("x", 1), RefusalDelta("No."))
        assert output + encoder.notice(BUDGET) + encoder.end(USAGE) + encoder.heartbeat == "ZüNo.".encode()
        assert (b"content-type", b"text/plain; charset=utf-8") in encoder.headers

    def test_an_early_end_is_said_in_the_text(self) -> None:
        assert TextEncoder().cut(CUT, USAGE) == b"\n\n[The credit is used up.]"
        assert TextEncoder().fail(CreditsExhausted("Gone.")) == b"\n\n[Gone.]"


def test_the_encoder_knows_the_conversation() -> None:
    server = AiSdkUiServer(compat="7")
    tool = {"type": "tool-f", "toolCallId": "call_0", "state": "output-available", "output": 1}
    body = {
        "messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}, {"role": "assistant", "parts": [tool]}]
    }
    encoder = server.encoder(server.decode_request(json.dumps(body).encode(), {"model": "m"}), FOREIGN)
    output = encoded(encoder, ToolCallStart(0, "call_0", "f"), ToolCallEnd(0)) + encoder.end(USAGE)
    start, _, begun, *_, last = chunks(output, "7")
    assert start == {"type": "start"} and begun["toolCallId"] == "call_0-req1-0" and last["finishReason"] == "other"
    plain = Request(format="x", model="m", messages=(Message("user", (Text("x"),)),))
    assert isinstance(server.encoder(plain, StreamMeta("r", 1, None)), UiMessageEncoder)
