"""What we send to Anthropic beside the history: content, settings, and thinking."""

import base64
from typing import Any

import msgspec
import pytest

from gateway.canonical.errors import ErrorCode
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
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
from gateway.protocols.anthropic_messages import AnthropicMessagesClient
from gateway.protocols.wire import ClientRole
from tests.protocols.anthropic_shapes import (
    CACHE,
    CLIENT,
    TOOL,
    assistant,
    call,
    refused,
    result,
    send,
    system,
    text,
    tool_use,
    turns,
    user,
)


def test_the_client_is_a_client_role() -> None:
    role: ClientRole = AnthropicMessagesClient()
    assert role.name == "anthropic_messages"


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
