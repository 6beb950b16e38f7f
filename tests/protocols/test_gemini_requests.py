"""What we send to Gemini: contents, tools, settings, thinking, signatures; and what we say that we leave out."""

import json
from typing import Any

import msgspec
import pytest

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
    Loss,
    Message,
    Opaque,
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
from gateway.protocols.gemini.client import GeminiClient
from gateway.protocols.gemini.schema import loses, translate

CLIENT = GeminiClient()
NEWER, OLDER = "gemini-3-flash", "gemini-2.5-flash"
DUMMY = "skip_thought_signature_validator"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool(name="weather", description="The weather.", parameters=SCHEMA)


def request(*messages: Message, **fields: Any) -> Request:
    return Request(format="openai_chat", model="g/gemini", messages=messages or (user("Hi"),), **fields)


def send(*messages: Message, model: str = NEWER, **fields: Any) -> Any:
    return json.loads(CLIENT.encode_request(request(*messages, **fields), model))


def contents(*messages: Message, model: str = NEWER) -> Any:
    return send(*messages, model=model)["contents"]


def config(model: str = NEWER, **fields: Any) -> Any:
    return send(model=model, **fields).get("generationConfig", {})


def lost(*messages: Message, model: str = NEWER, **fields: Any) -> tuple[Loss, ...]:
    return CLIENT.losses(request(*messages, **fields), model)


def refused(*messages: Message, model: str = NEWER, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        send(*messages, model=model, **fields)
    return caught.value


def parts(*parts: Part | str) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def user(*said: Part | str) -> Message:
    return Message("user", parts(*said))


def system(*said: Part | str) -> Message:
    return Message("system", parts(*said))


def model(*said: Part | str) -> Message:
    return Message("assistant", parts(*said))


def results(*said: ToolResult) -> Message:
    return Message("tool", said)


def result(call_id: str, *said: Part | str, **more: Any) -> ToolResult:
    return ToolResult(call_id, parts(*said), **more)


class TestContents:
    def test_words_stand_in_parts_and_the_model_not_in_the_body(self) -> None:
        assert send(user("Hi", "there")) == {
            "contents": [{"role": "user", "parts": [{"text": "Hi"}, {"text": "there"}]}]
        }

    def test_system_messages_are_gathered_from_wherever_they_stand(self) -> None:
        body = send(system("Be kind."), user("a"), system("Be", ""), user("b"))
        assert body["systemInstruction"] == {"parts": [{"text": "Be kind."}, {"text": "Be"}]}
        assert body["contents"] == [{"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}]

    def test_turns_of_one_speaker_are_merged_and_empty_ones_are_no_turns(self) -> None:
        said = contents(user("a"), model(""), user(""), user("b"), model("c", Refusal("d")), model("e"))
        assert [(content["role"], [part["text"] for part in content["parts"]]) for content in said] == [
            ("user", ["a", "b"]),
            ("model", ["c", "d", "e"]),
        ]

    @pytest.mark.parametrize("messages", [(system("Hi"),), (user(""),)])
    def test_a_conversation_without_words_is_refused(self, messages: tuple[Message, ...]) -> None:
        assert refused(*messages).param == "messages"

    @pytest.mark.parametrize(
        ("part", "sent"),
        [
            (
                Image(data="iVBO", media_type="image/png", detail="low"),
                {"inlineData": {"mimeType": "image/png", "data": "iVBO"}},
            ),
            (
                Image(url="https://example.com/a%20b.webp?x=1"),
                {"fileData": {"mimeType": "image/webp", "fileUri": "https://example.com/a%20b.webp?x=1"}},
            ),
            (
                Image(url="http://example.com/cat.pdf"),
                {"fileData": {"mimeType": "image/jpeg", "fileUri": "http://example.com/cat.pdf"}},
            ),
            (
                Document(data="JVBE", media_type="Application/PDF; x=y", filename="a.pdf"),
                {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
            ),
            (Audio("UklG", "wav"), {"inlineData": {"mimeType": "audio/wav", "data": "UklG"}}),
        ],
    )
    def test_pictures_documents_and_sound_are_carried(self, part: Part, sent: Any) -> None:
        assert contents(user(part))[0]["parts"] == [sent]

    @pytest.mark.parametrize(
        "part",
        [
            Image(),
            Image(url="gs://bucket/private.png"),
            Image(url="https://generativelanguage.googleapis.com/v1beta/files/abc"),
            Image(url="https://GenerativeLanguage.googleapis.com/v1beta/files/abc"),
            Document(file_id="files/abc"),
            Document(data="JVBE"),
            Opaque("video"),
        ],
    )
    def test_what_is_none_of_the_clients_or_unknown_is_refused(self, part: Part) -> None:
        error = refused(user(part))
        assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_VALUE, "messages")

    def test_a_system_message_can_only_be_text(self) -> None:
        assert refused(system(Image(url="https://a.b/c.png")), user("Hi")).param == "messages"


class TestCalls:
    def test_calls_and_results_keep_their_ids_names_and_order(self) -> None:
        said = contents(
            user("Hi"),
            model("Let me see.", ToolCall("c1", "weather", '{"n": 1.50}'), ToolCall("c2", "now", "")),
            results(result("c2", "noon"), result("c1", "sun", "ny", is_error=True)),
            user("And?"),
            model=OLDER,
        )
        assert said[1:] == [
            {
                "role": "model",
                "parts": [
                    {"text": "Let me see."},
                    {"functionCall": {"id": "c1", "name": "weather", "args": {"n": 1.5}}},
                    {"functionCall": {"id": "c2", "name": "now", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "c1", "name": "weather", "response": {"error": "sunny"}}},
                    {"functionResponse": {"id": "c2", "name": "now", "response": {"output": "noon"}}},
                ],
            },
            {"role": "user", "parts": [{"text": "And?"}]},
        ]

    def test_numbers_keep_their_digits(self) -> None:
        body = CLIENT.encode_request(request(user("a"), model(ToolCall("c", "f", '{"n": 1.50}'))), OLDER)
        assert b'{"n": 1.50}' in body

    def test_what_a_tool_shows_comes_after_its_answer(self) -> None:
        shown = Image(data="iVBO", media_type="image/png")
        said = contents(user("a"), model(ToolCall("c", "f", "{}")), results(result("c", "look", shown)))
        answer, picture = said[2]["parts"]
        assert answer["functionResponse"]["response"] == {"output": "look"}
        assert picture == {"inlineData": {"mimeType": "image/png", "data": "iVBO"}}

    def test_a_history_with_gaps_is_repaired(self) -> None:
        said = contents(
            model(ToolCall("c1", "f", '{"broken'), ToolCall("c2", "g", "[1]")),
            user("Never mind."),
            results(result("nobody", "late")),
            model=OLDER,
        )
        assert [content["role"] for content in said] == ["user", "model", "user", "user"]
        assert [part["functionCall"]["args"] for part in said[1]["parts"]] == [{"_raw": '{"broken'}, {"_raw": "[1]"}]
        assert [list(part["functionResponse"]["response"]) for part in said[2]["parts"]] == [["error"], ["error"]]
        assert said[3]["parts"] == [{"text": "Never mind."}]

    def test_tools_are_declared_with_a_schema_or_without(self) -> None:
        empty = {"type": "object", "properties": {}}
        tools = (
            WEATHER,
            Tool(name="now"),
            Tool(name="then", parameters=empty),
            Tool(name="x", parameters={"$ref": "#"}),
        )
        declared = send(tools=tools)["tools"]
        assert declared == [
            {
                "functionDeclarations": [
                    {"name": "weather", "description": "The weather.", "parametersJsonSchema": SCHEMA},
                    {"name": "now"},
                    {"name": "then"},
                    {"name": "x", "parametersJsonSchema": {"$ref": "#"}},
                ]
            }
        ]

    @pytest.mark.parametrize(
        ("choice", "sent"),
        [
            (None, None),
            (ToolChoice("auto"), None),
            (ToolChoice("none"), {"mode": "NONE"}),
            (ToolChoice("required"), {"mode": "ANY"}),
            (ToolChoice("tool", "weather"), {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        ],
    )
    def test_a_choice_of_tools_is_said_in_their_words(self, choice: ToolChoice | None, sent: Any) -> None:
        body = send(tools=(WEATHER,), tool_choice=choice)
        assert body.get("toolConfig") == (None if sent is None else {"functionCallingConfig": sent})
        assert "toolConfig" not in send(tool_choice=choice)


class TestSignatures:
    def test_each_goes_back_on_the_part_it_came_with_byte_for_byte(self) -> None:
        said = contents(
            user("a"),
            model(
                Reasoning("Hm", "gemini:thought:A+/="),
                Reasoning(redacted="gemini:text:B:+"),
                Reasoning("", "gemini:call.c2:C=="),
                Reasoning(redacted="gemini:end:D"),
                "one",
                "two",
                ToolCall("c1", "f", "{}"),
                ToolCall("c2", "f", "{}"),
            ),
            results(result("c1", "x"), result("c2", "y")),
            model=OLDER,
        )
        assert said[1]["parts"] == [
            {"text": "Hm", "thought": True, "thoughtSignature": "A+/="},
            {"text": "one"},
            {"text": "two", "thoughtSignature": "B:+"},
            {"functionCall": {"id": "c1", "name": "f", "args": {}}},
            {"functionCall": {"id": "c2", "name": "f", "args": {}}, "thoughtSignature": "C=="},
            {"text": "", "thoughtSignature": "D"},
        ]

    def test_nobody_elses_is_sent(self) -> None:
        foreign = (
            Reasoning("Hm", "EpEg"),
            Reasoning(redacted="b64"),
            Reasoning("m"),
            Reasoning("", "responses:rs_1:x"),
        )
        assert contents(user("a"), model(*foreign, "b"), model=OLDER)[1]["parts"] == [{"text": "b"}]

    @pytest.mark.parametrize(
        ("name", "signed"),
        [
            ("gemini-3-pro-preview", DUMMY),
            ("gemini-flash-latest", DUMMY),
            ("gemini-4-argon", DUMMY),
            ("gemini-2.5-pro", None),
            ("gemini-2.0-flash", None),
        ],
    )
    def test_a_lost_one_is_replaced_where_it_is_demanded(self, name: str, signed: str | None) -> None:
        calls = (ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}"))
        first, second = contents(user("a"), model(*calls), model=name)[1]["parts"]
        assert first.get("thoughtSignature") == signed and "thoughtSignature" not in second


class TestSettings:
    def test_settings_are_carried_over_one_by_one(self) -> None:
        sampling = Sampling(
            temperature=0.5, top_p=0.9, top_k=40, stop=("a", "b"), seed=-7, frequency_penalty=0.1, presence_penalty=0.2
        )
        assert config(sampling=sampling, output_tokens_max=99, choices=2) == {
            "maxOutputTokens": 99,
            "temperature": 0.5,
            "topP": 0.9,
            "topK": 40,
            "seed": -7,
            "stopSequences": ["a", "b"],
            "frequencyPenalty": 0.1,
            "presencePenalty": 0.2,
            "candidateCount": 2,
        }
        assert "generationConfig" not in send()

    def test_answers_in_json(self) -> None:
        assert config(json_schema=JsonSchema()) == {"responseMimeType": "application/json"}
        wanted = JsonSchema(schema={"$schema": "x", **SCHEMA, "additionalProperties": False})
        assert config(json_schema=wanted) == {
            "responseMimeType": "application/json",
            "responseJsonSchema": {**SCHEMA, "additionalProperties": False},
        }

    def test_more_choices_than_there_are_is_refused(self) -> None:
        assert refused(choices=9).param == "n"
        with pytest.raises(RequestError):
            lost(choices=9)


class TestThinking:
    @pytest.mark.parametrize(
        ("name", "effort", "sent"),
        [
            (OLDER, "low", {"includeThoughts": True, "thinkingBudget": 1024}),
            (OLDER, "max", {"includeThoughts": True, "thinkingBudget": 24_576}),
            (OLDER, "none", {"thinkingBudget": 0}),
            ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
            ("gemini-2.0-flash", "high", None),
            (NEWER, "minimal", {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
            (NEWER, "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
            (NEWER, "none", {"thinkingLevel": "MINIMAL"}),
            ("gemini-3.7-flash", "none", {"thinkingLevel": "LOW"}),
            ("gemini-3-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
            ("gemini-3.1-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
            ("gemini-3.1-pro-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
            ("gemini-3.1-pro-preview", "xhigh", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ],
    )
    def test_an_effort_is_said_in_the_words_of_the_models_generation(self, name: str, effort: str, sent: Any) -> None:
        assert config(name, effort=effort).get("thinkingConfig") == sent

    @pytest.mark.parametrize(
        ("name", "thinking", "sent"),
        [
            (OLDER, {"type": "enabled", "budget_tokens": 5000}, {"includeThoughts": True, "thinkingBudget": 5000}),
            (OLDER, {"type": "enabled", "budget_tokens": 90_000}, {"includeThoughts": True, "thinkingBudget": 24_576}),
            (OLDER, {"type": "adaptive"}, {"includeThoughts": True, "thinkingBudget": -1}),
            (OLDER, {"type": "disabled"}, {"thinkingBudget": 0}),
            (NEWER, {"type": "enabled", "budget_tokens": 1000}, {"includeThoughts": True, "thinkingLevel": "LOW"}),
            (NEWER, {"type": "enabled", "budget_tokens": 90_000}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
            (NEWER, {"type": "adaptive", "display": "omitted"}, {"includeThoughts": False}),
            (NEWER, {"type": "disabled"}, {"thinkingLevel": "MINIMAL"}),
        ],
    )
    def test_anthropics_thinking_object_is_understood(self, name: str, thinking: Any, sent: Any) -> None:
        assert config(name, thinking=thinking)["thinkingConfig"] == sent

    def test_a_budget_of_ours_leaves_half_of_the_answer(self) -> None:
        assert config(OLDER, effort="high", output_tokens_max=4000)["thinkingConfig"]["thinkingBudget"] == 2000
        assert config(OLDER, effort="high", output_tokens_max=100)["thinkingConfig"]["thinkingBudget"] == 512

    def test_an_unknown_effort_is_refused(self) -> None:
        assert refused(effort="heroic").param == "reasoning_effort"

    def test_unasked_nothing_is_said(self) -> None:
        assert "thinkingConfig" not in config(sampling=Sampling(top_p=1))


class TestSchemas:
    def test_what_gemini_knows_passes_and_what_it_does_not_is_left_out(self) -> None:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "definitions": {"P": {"type": "string", "pattern": "^a"}},
            "properties": {
                "const": {"const": 5},
                "pattern": {"$ref": "#/definitions/P", "description": "gone", "default": "a"},
                "list": {"type": "array", "items": {"type": ["integer", "null"], "exclusiveMinimum": 0}, "maxItems": 3},
                "either": {"oneOf": [{"type": "string", "examples": ["x"]}, True]},
                "any": True,
            },
            "additionalProperties": False,
            "allOf": [
                {"properties": {"more": {"type": "string"}}, "required": ["more"]},
                {"required": ["list", "more"]},
            ],
        }
        assert translate(schema) == {
            "type": "object",
            "$defs": {"P": {"type": "string"}},
            "properties": {
                "const": {"enum": [5]},
                "pattern": {"$ref": "#/$defs/P"},
                "list": {"type": "array", "items": {"type": ["integer", "null"]}, "maxItems": 3},
                "either": {"oneOf": [{"type": "string"}, {}]},
                "any": {},
                "more": {"type": "string"},
            },
            "additionalProperties": False,
            "required": ["more", "list"],
        }

    def test_a_schema_of_its_own_words_loses_nothing(self) -> None:
        assert not loses(None) and not loses(SCHEMA) and not loses({**SCHEMA, "$schema": "x", "default": {}})
        assert loses({"type": "string", "pattern": "a"}) and loses({"items": {"not": {}}})

    @pytest.mark.parametrize(
        "schema", [{"allOf": 5}, {"properties": 5}, {"anyOf": "x"}, {"$ref": 5}, {"definitions": 1}]
    )
    def test_nonsense_is_left_to_the_provider(self, schema: Any) -> None:
        assert isinstance(translate(schema), dict)


class TestLosses:
    def test_nothing_is_lost_of_what_can_be_said(self) -> None:
        said = (
            system("s"),
            user("a"),
            model(Reasoning("", "gemini:call.c:x"), ToolCall("c", "f", "")),
            results(result("c")),
        )
        assert lost(*said, tools=(WEATHER,), sampling=Sampling(seed=1, top_k=2), effort="low") == ()

    def test_each_loss_is_named_once(self) -> None:
        mark = {"type": "ephemeral"}
        said = (
            user(Text("a", mark), Image(url="https://a.b/c.png", detail="high"), Text("b", mark)),
            model(Reasoning("Hm", "foreign")),
        )
        strict = Tool(name="f", parameters={"type": "object", "minProperties": 1}, strict=True, cache=mark)
        found = lost(
            *said,
            tools=(strict,),
            parallel_tool_calls=False,
            user="u",
            sampling=Sampling(seed=2**40),
            json_schema=JsonSchema(schema={"pattern": "x"}),
        )
        dropped = (
            *("seed", "user", "parallel_tool_calls", "tools.strict", "tools.cache_control"),
            *("messages.cache_control", "messages.detail", "messages.reasoning"),
        )
        assert found == (
            *(Loss("dropped", name) for name in dropped),
            Loss("changed", "tools.parameters"),
            Loss("changed", "response_format"),
        )
        assert lost(tool_choice=ToolChoice("required")) == (Loss("dropped", "tool_choice"),)

    @pytest.mark.parametrize(
        ("name", "asked", "expected"),
        [
            ("gemini-2.0-flash", {"effort": "high"}, [Loss("dropped", "reasoning_effort")]),
            ("gemini-2.0-flash", {"effort": "none"}, []),
            ("gemini-2.0-flash", {"thinking": {"type": "adaptive"}}, [Loss("dropped", "thinking")]),
            (OLDER, {"effort": "none"}, []),
            ("gemini-2.5-pro", {"effort": "none"}, [Loss("changed", "reasoning_effort")]),
            (NEWER, {"effort": "none"}, [Loss("changed", "reasoning_effort")]),
            (NEWER, {"effort": "max"}, [Loss("lowered", "reasoning_effort")]),
            ("gemini-3-pro", {"effort": "medium"}, [Loss("changed", "reasoning_effort")]),
            (OLDER, {"thinking": {"type": "enabled", "budget_tokens": 9000}}, []),
            (
                OLDER,
                {"thinking": {"type": "enabled", "budget_tokens": 90_000}},
                [Loss("lowered", "thinking.budget_tokens")],
            ),
            (
                NEWER,
                {"thinking": {"type": "enabled", "budget_tokens": 9000}},
                [Loss("changed", "thinking.budget_tokens")],
            ),
            (NEWER, {"thinking": {"type": "disabled"}}, [Loss("changed", "thinking")]),
        ],
    )
    def test_thinking_that_is_not_as_asked_is_told(self, name: str, asked: Any, expected: list[Loss]) -> None:
        assert list(lost(model=name, **asked)) == expected

    def test_an_unknown_effort_is_refused_before_the_call(self) -> None:
        with pytest.raises(RequestError):
            lost(effort="heroic")


def test_the_body_is_json_whatever_a_client_wrote() -> None:
    body = CLIENT.encode_request(request(user("\u2028\x00\U0001f30d")), NEWER)
    assert msgspec.json.decode(body)["contents"][0]["parts"] == [{"text": "\u2028\x00\U0001f30d"}]
