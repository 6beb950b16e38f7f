"""The data stream of AI SDK 4, read as strictly as its own parser does, and the requests of ``useChat``."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical.errors import CreditsExhausted, ErrorCode, RequestError
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
from gateway.canonical.request import Document, Image, Message, Reasoning, Request, Text, ToolCall, ToolResult
from gateway.canonical.usage import Usage
from gateway.protocols.ai_sdk_4 import AiSdk4Server, DataStreamEncoder
from gateway.protocols.wire import Cut, StreamMeta
from tests.protocols.chat_streams import FOREIGN, QUIRKS, relayed

SERVER = AiSdk4Server()
USAGE = Usage(input=12, output=7)
TOKENS = {"promptTokens": 12, "completionTokens": 7}


def lines(output: bytes) -> list[tuple[str, Any]]:
    """The parts of a stream; fails where ``useChat`` would throw."""
    text = output.decode()
    assert text.endswith("\n") and "\r" not in text
    parts: list[tuple[str, Any]] = []
    for line in text.split("\n")[:-1]:
        if line:
            code, colon, value = line.partition(":")
            assert colon and len(code) == 1
            parts.append((code, json.loads(value, parse_constant=lambda name: pytest.fail(name))))
    assert parts[0][0] == "f" and parts[0][1]["messageId"]
    began: set[str] = set()
    for code, value in parts:
        match code:
            case "0" | "g" | "3":
                assert isinstance(value, str)
            case "b":
                began.add(value["toolCallId"])
            case "c":
                assert value["toolCallId"] in began
            case "9":
                assert isinstance(value["args"], dict)
            case "d" | "e":
                assert all(isinstance(value["usage"][name], int) for name in TOKENS)
    return parts


def said(*events: Event) -> list[tuple[str, Any]]:
    encoder = DataStreamEncoder(FOREIGN)
    return lines(b"".join(encoder.encode(Frame((event,))) for event in events) + encoder.end(USAGE))


def request(query: dict[str, str] | None = None, **body: Any) -> Request:
    return SERVER.decode_request(json.dumps(body).encode(), {"model": "m"} if query is None else query)


def messages(*given: dict[str, Any]) -> tuple[Message, ...]:
    return request(messages=list(given)).messages


class TestStream:
    def test_every_part_has_its_line(self) -> None:
        assert said(
            MessageStart("id", "m", 1),
            ReasoningDelta("Hm."),
            ReasoningEnd("sig"),
            ReasoningEnd(),
            RedactedReasoning("secret"),
            TextDelta("Zü\n\u2028😀"),
            RefusalDelta("No."),
            ToolCallStart(0, "a", "weather"),
            ToolCallDelta(0, '{"city":'),
            ToolCallDelta(0, '"Zürich"}'),
            ToolCallEnd(0),
            Finish(FinishReason(Unified.TOOL_CALLS)),
        ) == [
            ("f", {"messageId": "msg-req1"}),
            ("g", "Hm."),
            ("j", {"signature": "sig"}),
            ("i", {"data": "secret"}),
            ("0", "Zü\n\u2028😀"),
            ("0", "No."),
            ("b", {"toolCallId": "a", "toolName": "weather"}),
            ("c", {"toolCallId": "a", "argsTextDelta": '{"city":'}),
            ("c", {"toolCallId": "a", "argsTextDelta": '"Zürich"}'}),
            ("9", {"toolCallId": "a", "toolName": "weather", "args": {"city": "Zürich"}}),
            ("e", {"finishReason": "tool-calls", "usage": TOKENS, "isContinued": False}),
            ("d", {"finishReason": "tool-calls", "usage": TOKENS}),
        ]

    @pytest.mark.parametrize("name", QUIRKS)
    def test_every_providers_stream_is_one_the_parser_reads(self, name: str) -> None:
        data, expected = QUIRKS[name]
        output, bill, failures = relayed(DataStreamEncoder(FOREIGN), data)
        parts = lines(output)
        assert failures == []
        assert "".join(value for code, value in parts if code == "0") == expected.text
        assert "".join(value for code, value in parts if code == "g") == expected.reasoning
        calls = [(value["toolCallId"], value["toolName"], value["args"]) for code, value in parts if code == "9"]
        assert calls == [(identity, called, json.loads(text)) for identity, called, text in expected.calls]
        assert parts[-1] == ("d", {"finishReason": (expected.finish or "").replace("_", "-"), "usage": TOKENS})
        assert bill.usage.output == 7

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("", {}),
            ('{"a":1,\n "b":[1.5]}', {"a": 1, "b": [1.5]}),
            ("[1]", {"_invalid": "[1]"}),
            ('{"a":', {"_invalid": '{"a":'}),
            ('{"a":NaN}', {"_invalid": '{"a":NaN}'}),
            ('{"a":1e999}', {"_invalid": '{"a":1e999}'}),
            ('{"a":%s}' % ("9" * 40), {"a": int("9" * 40)}),
        ],
    )
    def test_arguments_are_always_an_object(self, arguments: str, expected: dict[str, Any]) -> None:
        parts = said(ToolCallStart(0, "a", "f"), ToolCallDelta(0, arguments), ToolCallEnd(0))
        assert [value["args"] for code, value in parts if code == "9"] == [expected]

    def test_arguments_nested_without_end_are_not_an_error(self) -> None:
        deep = '{"a":' + "[" * 5000 + "]" * 5000 + "}"
        parts = said(ToolCallStart(0, "a", "f"), ToolCallDelta(0, deep), ToolCallEnd(0))
        assert [value["args"] for code, value in parts if code == "9"] == [{"_invalid": deep}]

    def test_calls_side_by_side_are_kept_apart(self) -> None:
        parts = said(
            *(ToolCallStart(0, "a", "f"), ToolCallDelta(0, '{"n":'), ToolCallStart(1, "b", "g")),
            *(ToolCallDelta(1, '{"m":2}'), ToolCallDelta(0, "1}"), ToolCallEnd(0), ToolCallEnd(1)),
        )
        assert [value["args"] for code, value in parts if code == "9"] == [{"n": 1}, {"m": 2}]

    @given(st.lists(st.builds(TextDelta, st.text()) | st.builds(ReasoningDelta, st.text()), max_size=8))
    def test_any_text_comes_out_as_it_went_in(self, events: list[TextDelta | ReasoningDelta]) -> None:
        spoken = [(code, value) for code, value in said(*events) if code in "0g"]
        assert spoken == [("0" if isinstance(event, TextDelta) else "g", event.text) for event in events]

    def test_only_the_first_choice_is_shown(self) -> None:
        events: list[Event] = [TextDelta("b", 1), ToolCallStart(0, "a", "f", 1), Finish(FinishReason(Unified.STOP), 1)]
        assert [code for code, _ in said(*events)] == ["f", "e", "d"]

    def test_a_stream_that_said_nothing_still_has_its_frame(self) -> None:
        assert said() == [
            ("f", {"messageId": "msg-req1"}),
            ("e", {"finishReason": "unknown", "usage": TOKENS, "isContinued": False}),
            ("d", {"finishReason": "unknown", "usage": TOKENS}),
        ]

    @pytest.mark.parametrize("events", [(), (TextDelta("Hel"),)])
    def test_a_cut_and_an_error_are_shown_and_nothing_follows(self, events: tuple[Event, ...]) -> None:
        for end in ("cut", "fail"):
            encoder = DataStreamEncoder(FOREIGN)
            output = b"".join(encoder.encode(Frame((event,))) for event in events)
            output += encoder.cut(Cut("r", "Gone."), USAGE) if end == "cut" else encoder.fail(CreditsExhausted("Gone."))
            assert lines(output)[-1] == ("3", "Gone.")

    def test_the_heartbeat_is_a_line_the_parser_drops(self) -> None:
        encoder = SERVER.encoder(request(messages=[{"role": "user", "content": "x"}]), StreamMeta("r", 1, None))
        assert lines(encoder.heartbeat + encoder.encode(Frame((TextDelta("x"),))) + encoder.heartbeat)[-1] == ("0", "x")
        assert (b"x-vercel-ai-data-stream", b"v1") in encoder.headers


class TestRequest:
    @pytest.mark.parametrize(
        ("query", "body", "model"),
        [
            ({"provider": "openai", "model": "gpt"}, {}, "openai/gpt"),
            ({"model": "fast"}, {}, "fast"),
            ({}, {"model": "fast"}, "fast"),
            ({"provider": "openai"}, {"model": "gpt"}, "openai/gpt"),
            ({"model": "query"}, {"model": "body"}, "query"),
        ],
    )
    def test_the_model_is_found(self, query: dict[str, str], body: dict[str, Any], model: str) -> None:
        assert request(query, messages=[{"role": "user", "content": "x"}], **body).model == model

    @pytest.mark.parametrize("query", [{}, {"model": "a b"}, {"provider": "x"}, {"model": "é"}])
    def test_a_model_that_is_none_is_refused(self, query: dict[str, str]) -> None:
        with pytest.raises(RequestError) as caught:
            request(query, messages=[{"role": "user", "content": "x"}])
        assert caught.value.param == "model"

    def test_settings_and_tools_are_taken_over(self) -> None:
        asked = request(
            messages=[{"role": "user", "content": "Hi", "createdAt": "now", "id": "1"}],
            **{"system": "Be brief.", "maxTokens": 5, "temperature": 0.5, "topP": 0.9, "seed": 3, "id": "chat"},
            tools=[{"name": "weather", "parameters": {"type": "object"}}],
        )
        assert asked.stream
        assert asked.messages == (Message("system", (Text("Be brief."),)), Message("user", (Text("Hi"),)))
        assert (asked.output_tokens_max, asked.sampling.temperature, asked.sampling.seed) == (5, 0.5, 3)
        assert [tool.name for tool in asked.tools] == ["weather"]

    def test_a_message_with_steps_becomes_turns_with_their_results(self) -> None:
        done = {"toolCallId": "a", "toolName": "weather", "state": "result", "args": {"city": "Z"}, "result": {"c": 7}}
        signed = {"type": "text", "text": "Hm.", "signature": "s"}
        waiting = {**done, "toolCallId": "b", "state": "call"}
        turns = messages(
            {
                "role": "assistant",
                "content": "ignored where there are parts",
                "parts": [
                    {"type": "step-start"},
                    {"type": "reasoning", "reasoning": "Hm.", "details": [signed]},
                    {"type": "tool-invocation", "toolInvocation": done},
                    {"type": "tool-invocation", "toolInvocation": waiting},
                    {"type": "step-start"},
                    {"type": "source", "source": {}},
                    {"type": "text", "text": "Seven."},
                ],
            }
        )
        assert turns == (
            Message("assistant", (Reasoning("Hm.", "s"), ToolCall("a", "weather", '{"city":"Z"}'))),
            Message("tool", (ToolResult("a", (Text('{"c":7}'),)),)),
            Message("assistant", (Text("Seven."),)),
        )

    def test_an_older_message_has_its_calls_beside_its_text(self) -> None:
        done = {"toolCallId": "a", "toolName": "now", "state": "result", "result": "noon"}
        turns = messages({"role": "assistant", "content": "Let me see.", "toolInvocations": [done]})
        assert turns == (
            Message("assistant", (Text("Let me see."), ToolCall("a", "now", "{}"))),
            Message("tool", (ToolResult("a", (Text("noon"),)),)),
        )

    def test_attachments_and_files_are_read(self) -> None:
        png, pdf = "data:image/png;base64,AAAA", "data:application/pdf;base64,BBBB"
        attached = [{"url": png}, {"url": pdf, "name": "a.pdf"}, {"url": "https://x/y.png", "contentType": "image/png"}]
        (message,) = messages({"role": "user", "content": "See", "experimental_attachments": attached})
        assert message.parts == (
            Text("See"),
            Image(data="AAAA", media_type="image/png"),
            Document(data="BBBB", media_type="application/pdf", filename="a.pdf"),
            Image(url="https://x/y.png", media_type="image/png"),
        )
        file = {"type": "file", "mimeType": "image/png", "data": "AAAA"}
        (turn,) = messages({"role": "assistant", "parts": [file, {"type": "reasoning", "reasoning": "Hm."}]})
        assert turn.parts == (Image(data="AAAA", media_type="image/png"), Reasoning("Hm."))
        hidden = {"type": "reasoning", "reasoning": "", "details": [{"type": "redacted", "data": "x"}]}
        assert messages({"role": "assistant", "parts": [hidden]})[0].parts == (Reasoning(redacted="x"),)

    @pytest.mark.parametrize("url", ["https://x/y.pdf", "data:image/png;base64,???", "blob:x"])
    def test_an_attachment_nobody_can_read_is_refused_by_its_place(self, url: str) -> None:
        with pytest.raises(RequestError) as caught:
            messages({"role": "user", "content": "x", "experimental_attachments": [{"url": url}]})
        assert (caught.value.param or "").startswith("experimental_attachments[0]")

    def test_what_is_for_the_app_alone_is_passed_over(self) -> None:
        assert messages({"role": "data", "content": "x"}, {"role": "user", "content": "y"}) == (
            Message("user", (Text("y"),)),
        )

    @pytest.mark.parametrize(
        "body", [b"{}", b"[]", b'{"messages":[]}', b'{"messages":[{"role":"tool"}]}', b'{"messages":7}', b"\xff", b""]
    )
    def test_a_wrong_body_is_refused(self, body: bytes) -> None:
        with pytest.raises(RequestError):
            SERVER.decode_request(body, {"model": "m"})

    def test_an_error_before_the_stream_is_json(self) -> None:
        reply = SERVER.encode_error(RequestError("Wrong.", code=ErrorCode.INVALID_VALUE, param="model"))
        assert reply.status == 400
        assert json.loads(reply.body) == {"error": {"message": "Wrong.", "code": "invalid_value", "param": "model"}}
