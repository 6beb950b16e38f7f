"""A client's Messages body as a canonical request: what is read, what is kept as it is, and what is refused."""

import base64
import json
from typing import Any

import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Document,
    Image,
    JsonSchema,
    Message,
    Opaque,
    Reasoning,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.limits.features import features_of
from gateway.protocols.anthropic_messages import AnthropicMessagesServer
from gateway.protocols.anthropic_messages.incoming import decode_countable

SERVER = AnthropicMessagesServer()
OLD, NEW = {"anthropic-version": "2023-06-01"}, {"anthropic-version": "2026-10-21"}
USER = {"role": "user", "content": "Hi"}
CACHE = {"type": "ephemeral"}
PNG = base64.b64encode(b"\x89PNG").decode()


def read(query: dict[str, str] | None = None, **fields: Any) -> Request:
    body = {"model": "fast", "max_tokens": 10, "messages": [USER], **fields}
    encoded = json.dumps({name: value for name, value in body.items() if value is not ...})
    return SERVER.decode_request(encoded.encode(), query or {})


def heard(*blocks: Any, role: str = "user", query: dict[str, str] | None = None) -> Request:
    return read(query, messages=[{"role": role, "content": list(blocks)}])


def parts(*blocks: Any, role: str = "user") -> tuple[Any, ...]:
    return heard(*blocks, role=role).messages[0].parts


def refused(query: dict[str, str] | None = None, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(query, **fields)
    return caught.value


def refused_block(block: Any, role: str = "user", query: dict[str, str] | None = None) -> RequestError:
    return refused(query, messages=[{"role": role, "content": [block]}])


class TestFields:
    def test_the_plainest_body(self) -> None:
        request = read()
        assert (request.format, request.model, request.output_tokens_max) == ("anthropic_messages", "fast", 10)
        assert request.messages == (Message("user", (Text("Hi"),)),)
        assert (request.stream, request.thinking, request.effort) == (False, None, None)

    def test_everything_that_has_a_canonical_place(self) -> None:
        request = read(
            OLD,
            stream=True,
            system="Be brief.",
            stop_sequences=["END"],
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            metadata={"user_id": "u1"},
            thinking={"type": "enabled", "budget_tokens": 5000, "display": "omitted"},
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        )
        assert request.stream and request.user == "u1"
        assert request.messages[0] == Message("system", (Text("Be brief."),))
        sampling = request.sampling
        assert (sampling.stop, sampling.temperature, sampling.top_p, sampling.top_k) == (("END",), 0.5, 0.9, 5)
        assert request.thinking == {"type": "enabled", "budget_tokens": 5000, "display": "omitted"}
        assert (request.effort, request.json_schema) == ("medium", JsonSchema(schema={"type": "object"}))
        assert request.untranslatable == ()

    def test_system_blocks_keep_their_cache_markers(self) -> None:
        request = read(system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B", "cache_control": CACHE}])
        assert request.messages[0] == Message("system", (Text("A"), Text("B", CACHE)))

    def test_a_system_message_may_stand_among_the_others(self) -> None:
        assert read(messages=[USER, {"role": "system", "content": "Now."}]).messages[1].role == "system"

    def test_tools_and_what_only_anthropic_can_run(self) -> None:
        schema = {"type": "object", "properties": {}}
        own = {"name": "f", "description": "d", "input_schema": schema, "strict": True, "cache_control": CACHE}
        request = read(
            tools=[own, {"type": "web_search_20250305", "name": "web_search"}, own | {"name": "g", "type": "custom"}]
        )
        assert request.tools[0] == Tool(name="f", description="d", parameters=schema, strict=True, cache=CACHE)
        assert [tool.name for tool in request.tools] == ["f", "g"]
        assert request.untranslatable == ("tools[1]",)

    def test_what_a_tier_may_forbid_is_seen_wherever_it_runs(self) -> None:
        assert "tools" in features_of(read(tools=[{"type": "web_search_20250305", "name": "web_search"}]))
        assert "tools" in features_of(read(mcp_servers=[{"url": "https://x"}]))
        stored = {"type": "document", "source": {"type": "file", "file_id": "f1"}}
        assert features_of(heard(stored)) == {"documents"}
        assert "reasoning" in features_of(read(thinking={"type": "adaptive"}))
        assert features_of(read(thinking={"type": "disabled"})) == set()

    @pytest.mark.parametrize(
        ("asked", "choice", "parallel"),
        [
            ({"type": "auto"}, ToolChoice("auto"), None),
            ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
            ({"type": "tool", "name": "f"}, ToolChoice("tool", "f"), None),
            ({"type": "none"}, ToolChoice("none"), None),
        ],
    )
    def test_every_choice_of_tools(self, asked: dict[str, Any], choice: ToolChoice, parallel: bool | None) -> None:
        request = read(tool_choice=asked)
        assert (request.tool_choice, request.parallel_tool_calls) == (choice, parallel)

    @pytest.mark.parametrize(
        ("fields", "effort"),
        [
            ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
            ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium"),
            ({"thinking": {"type": "enabled", "budget_tokens": 30_000}}, "high"),
            ({"thinking": {"type": "adaptive"}}, None),
            ({"thinking": {"type": "disabled"}}, None),
            ({"output_config": {"effort": "low"}}, "low"),
            ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ],
    )
    def test_thinking_in_the_words_of_other_formats(self, fields: dict[str, Any], effort: str | None) -> None:
        assert read(**fields).effort == effort

    def test_disabled_thinking_is_no_thinking(self) -> None:
        assert read(thinking={"type": "disabled"}).thinking is None

    def test_zero_tokens_warm_a_cache(self) -> None:
        assert read(max_tokens=0).output_tokens_max == 0

    def test_where_an_answer_is_made_is_never_dropped_silently(self) -> None:
        request = read(inference_geo="eu", mcp_servers=[{"url": "https://x"}], container="c", service_tier="auto")
        assert request.untranslatable == ("container", "inference_geo", "mcp_servers")

    def test_unknown_fields_stay_in_the_raw_body(self) -> None:
        assert bytes(read(context_management={"edits": [1.0]}).raw["context_management"]) == b'{"edits": [1.0]}'


class TestBlocks:
    def test_text_and_pictures(self) -> None:
        inline = {"type": "base64", "media_type": "image/png", "data": PNG}
        assert parts(
            {"type": "text", "text": "What?", "cache_control": CACHE},
            {"type": "image", "source": inline},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        ) == (Text("What?", CACHE), Image(data=PNG, media_type="image/png"), Image(url="https://example.com/a.png"))

    def test_documents_that_are_text_become_words_and_others_stay_files(self) -> None:
        pdf = {"type": "base64", "media_type": "application/pdf", "data": PNG}
        words = {"type": "text", "media_type": "text/plain", "data": "Once."}
        blocks = {"type": "content", "content": [{"type": "text", "text": "Upon."}]}
        assert parts(
            {"type": "document", "source": pdf, "title": "a.pdf"},
            {"type": "document", "source": words, "title": "T", "citations": {"enabled": True}},
            {"type": "document", "source": blocks},
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "found"}]},
        ) == (
            Document(PNG, "application/pdf", None, "a.pdf"),
            *(Text("T\n"), Text("Once.")),
            Text("Upon."),
            *(Text("t\ns\n"), Text("found")),
        )

    def test_thinking_and_calls_keep_every_byte(self) -> None:
        signature = "EqQB+/==\u00e9"
        body = (
            b'{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":'
            b'"Hm.\\u2028","signature":"EqQB+/==\\u00e9"},{"type":"redacted_thinking","data":"c2Vj"},'
            b'{"type":"tool_use","id":"t1","name":"f","input":{ "x": 1.10, "y": 12345678901234567.25 }}]}]}'
        )
        thinking, redacted, call = SERVER.decode_request(body, {}).messages[0].parts
        assert thinking == Reasoning("Hm.\u2028", signature)
        assert redacted == Reasoning(redacted="c2Vj")
        assert call == ToolCall("t1", "f", '{ "x": 1.10, "y": 12345678901234567.25 }')

    def test_results_hold_text_or_blocks(self) -> None:
        inline = {"type": "base64", "media_type": "image/png", "data": PNG}
        inner = [{"type": "text", "text": "sunny"}, {"type": "image", "source": inline}]
        assert parts(
            {"type": "tool_result", "tool_use_id": "a", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "b", "content": inner, "is_error": True, "cache_control": CACHE},
            {"type": "tool_result", "tool_use_id": "c"},
        ) == (
            ToolResult("a", (Text("sunny"),)),
            ToolResult("b", (Text("sunny"), Image(data=PNG, media_type="image/png")), True, CACHE),
            ToolResult("c", ()),
        )

    def test_what_only_anthropic_knows_is_kept_and_named_by_its_place(self) -> None:
        search = {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"error_code": "x"}}
        request = heard({"type": "text", "text": "a"}, search, role="assistant")
        assert request.messages[0].parts[1] == Opaque("web_search_tool_result", json.dumps(search))
        assert request.untranslatable == ("messages[0].content[1]",)

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "image", "source": {"type": "file", "file_id": "f1"}},
            {"type": "document", "source": {"type": "file", "file_id": "f1"}},
            {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
        ],
    )
    def test_what_lies_at_anthropic_goes_nowhere_else(self, block: dict[str, Any]) -> None:
        assert heard(block).untranslatable == ("messages[0].content[0]",)

    @pytest.mark.parametrize(
        ("block", "role", "param"),
        [
            ({"text": "x"}, "user", "messages[0].content[0].type"),
            ({"type": 5}, "user", "messages[0].content[0].type"),
            ("x", "user", "messages[0].content[0]"),
            ({"type": "text"}, "user", "messages[0].content[0].text"),
            ({"type": "text", "text": 5}, "user", "messages[0].content[0].text"),
            ({"type": "text", "text": "x", "cache_control": 5}, "user", "messages[0].content[0].cache_control"),
            ({"type": "image"}, "user", "messages[0].content[0].source"),
            ({"type": "image", "source": {"type": "hologram"}}, "user", "messages[0].content[0].source.type"),
            (
                {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}},
                "user",
                "messages[0].content[0].source.url",
            ),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "*"}},
                "user",
                "messages[0].content[0].source.data",
            ),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "image/svg+xml", "data": PNG}},
                "user",
                "messages[0].content[0].source.media_type",
            ),
            ({"type": "tool_use", "id": "a b", "name": "f", "input": {}}, "assistant", "messages[0].content[0].id"),
            ({"type": "tool_use", "id": "a", "name": "f", "input": "{}"}, "assistant", "messages[0].content[0].input"),
            ({"type": "tool_use", "id": "a", "name": "f"}, "assistant", "messages[0].content[0].input"),
            ({"type": "tool_use", "id": "a", "name": "f\0", "input": {}}, "assistant", "messages[0].content[0].name"),
            ({"type": "tool_use", "id": "a", "name": "f", "input": {}}, "user", "messages[0].content[0]"),
            ({"type": "tool_result", "tool_use_id": "a"}, "assistant", "messages[0].content[0]"),
            ({"type": "tool_result", "tool_use_id": "a\0"}, "user", "messages[0].content[0].tool_use_id"),
            (
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text"}]},
                "user",
                "messages[0].content[0].content[0].text",
            ),
            ({"type": "thinking", "thinking": "x"}, "assistant", "messages[0].content[0].signature"),
            ({"type": "thinking", "thinking": "x", "signature": "s"}, "user", "messages[0].content[0]"),
        ],
    )
    def test_a_bad_block_is_named_by_its_place(self, block: Any, role: str, param: str) -> None:
        error = refused_block(block, role)
        assert error.param == param
        assert error.message.startswith(param)


class TestVersions:
    @pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
    def test_the_newer_one_has_no_sampling(self, name: str) -> None:
        assert refused(NEW, **{name: 1}).param == name
        assert read(NEW, **{name: None}).sampling.temperature is None
        read(OLD, **{name: 1})
        read({}, **{name: 1})

    def test_the_newer_one_has_no_documents_in_answers(self) -> None:
        block = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
        assert refused_block(block, "assistant", NEW).param == "messages[0].content[0]"
        heard(block, role="assistant", query=OLD)

    def test_the_newer_one_has_no_citations_in_questions(self) -> None:
        block = {"type": "text", "text": "x", "citations": [{"type": "page_location"}]}
        assert refused_block(block, "user", NEW).param == "messages[0].content[0].citations"
        heard(block, query=OLD)
        heard(block | {"citations": []}, query=NEW)

    def test_another_one_is_refused(self) -> None:
        assert refused({"anthropic-version": "2024-01-01"}).param == "anthropic-version"

    def test_betas_go_on_to_a_provider_of_the_same_format(self) -> None:
        assert read({"anthropic-beta": "a-1, b-2"}).headers == {"anthropic-beta": "a-1,b-2"}
        assert read().headers == {}

    @pytest.mark.parametrize("betas", ["a b", "a\x00", ",".join("b" * 33), "é"])
    def test_betas_that_are_no_names_are_refused(self, betas: str) -> None:
        assert refused({"anthropic-beta": betas}).param == "anthropic-beta"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": ...}, "max_tokens"),
            ({"max_tokens": None}, "max_tokens"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"max_tokens": "5"}, "max_tokens"),
            ({"messages": []}, "messages"),
            ({"messages": ...}, "messages"),
            ({"messages": [USER] * 10_001}, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
            ({"model": ...}, "model"),
            ({"model": "a\nb"}, "model"),
            ({"system": [{"type": "image", "source": {"type": "url", "url": "https://x/y"}}]}, "system"),
            ({"temperature": 1.1}, "temperature"),
            ({"stop_sequences": [""]}, "stop_sequences"),
            ({"stop_sequences": "END"}, "stop_sequences"),
            ({"stop_sequences": ["x"] * 257}, "stop_sequences"),
            ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
            ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
            ({"thinking": {}}, "thinking.type"),
            ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
            ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
            ({"tools": [{"name": "f g", "input_schema": {}}]}, "tools[0].name"),
            ({"tools": [{"name": "f", "input_schema": []}]}, "tools[0].input_schema"),
            ({"tools": [{"name": "f", "input_schema": {}}] * 1025}, "tools"),
            ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
            ({"tool_choice": "auto"}, "tool_choice"),
            ({"metadata": {"user_id": "a\0"}}, "metadata.user_id"),
            ({"metadata": {"user_id": "u" * 513}}, "metadata.user_id"),
            ({"api_base": "http://evil"}, "api_base"),
        ],
    )
    def test_a_bad_field_is_named(self, fields: dict[str, Any], param: str) -> None:
        assert refused(**fields).param == param

    def test_too_many_fields_are_refused(self) -> None:
        assert refused(**{f"x{number}": 1 for number in range(260)}).code is ErrorCode.INVALID_REQUEST


class TestCounting:
    def test_nothing_says_how_long_the_answer_may_be(self) -> None:
        request = decode_countable(json.dumps({"model": "fast", "messages": [USER]}).encode())
        assert request.output_tokens_max is None

    def test_a_bad_body_is_refused_as_it_would_be_later(self) -> None:
        with pytest.raises(RequestError):
            decode_countable(b'{"model": "fast", "messages": []}')
