"""What `useChat` and `useCompletion` of AI SDK 5, 6 and 7 post, and what of it reaches the model."""

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.canonical.errors import CreditsExhausted, ErrorCode, LimitExceeded, RequestError
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Request,
    Text,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.metering.tokens import count_bytes, count_input
from gateway.protocols.ai_sdk_4 import DataStreamEncoder
from gateway.protocols.ai_sdk_ui.incoming import UiRequest
from gateway.protocols.ai_sdk_ui.server import AiSdkCompletionServer, AiSdkUiServer
from gateway.protocols.ai_sdk_ui.stream import UiMessageEncoder
from gateway.protocols.ai_sdk_ui.text import TextEncoder
from gateway.protocols.anthropic_messages.client import AnthropicMessagesClient
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from tests.protocols.chat_streams import FOREIGN

SERVER, COMPLETION = AiSdkUiServer(), AiSdkCompletionServer(DataStreamEncoder)
USER = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
HI = Message("user", (Text("Hi"),))
STEP = {"type": "step-start"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def request(query: dict[str, str] | None = None, server: AiSdkUiServer = SERVER, **body: Any) -> UiRequest:
    asked = {"id": "chat-1", "trigger": "submit-message", "messages": [USER], **body}
    decoded = server.decode_request(json.dumps(asked).encode(), {"model": "m"} if query is None else query)
    assert isinstance(decoded, UiRequest)
    return decoded


def user(*parts: dict[str, Any]) -> tuple[Part, ...]:
    (message,) = request(messages=[{"role": "user", "parts": list(parts)}]).messages
    return message.parts


def turns(*parts: dict[str, Any]) -> tuple[Message, ...]:
    hi, *rest = request(messages=[USER, {"id": "a1", "role": "assistant", "parts": list(parts)}]).messages
    assert hi == HI
    return tuple(rest)


def tool(state: str, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": f"tool-{name}", "toolCallId": "c1", "state": state, "input": {"city": "Zürich"}, **more}


class TestModel:
    @pytest.mark.parametrize(
        ("query", "named", "model"),
        [
            ({"provider": "openai", "model": "gpt"}, None, "openai/gpt"),
            ({"model": "fast"}, None, "fast"),
            ({"model": "query"}, "body", "query"),
            ({"provider": "openai"}, "gpt", "openai/gpt"),
            ({}, "openai/gpt", "openai/gpt"),
            ({}, None, "default/one"),
        ],
    )
    def test_it_is_found(self, query: dict[str, str], named: str | None, model: str) -> None:
        server = AiSdkUiServer(default_model="default/one")
        assert request(query, server, model=named).model == model

    @pytest.mark.parametrize(
        ("query", "default"),
        [({}, None), ({"provider": "x"}, "one"), ({"model": "a b"}, "one"), ({"model": "é"}, None)],
    )
    def test_none_is_refused(self, query: dict[str, str], default: str | None) -> None:
        with pytest.raises(RequestError) as caught:
            request(query, AiSdkUiServer(default_model=default))
        assert caught.value.param == "model"


def test_a_post_of_the_default_transport_is_taken_as_it_is() -> None:
    asked = request(messageId="m1", app={"anything": [1]})
    assert asked.messages == (HI,)
    assert asked.stream and asked.format == SERVER.name and not asked.continues


def test_settings_have_the_sdks_names() -> None:
    asked = request(
        system="Be brief.",
        maxOutputTokens=5,
        temperature=0.5,
        topP=0.9,
        topK=40,
        seed=3,
        presencePenalty=1,
        frequencyPenalty=-1,
        stopSequences=["END"],
        reasoningEffort="low",
        tools=[{"name": "weather", "parameters": {"type": "object"}}],
        toolChoice={"type": "tool", "toolName": "weather"},
    )
    assert asked.messages == (Message("system", (Text("Be brief."),)), HI)
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 40, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.stop) == (1, -1, ("END",))
    assert (asked.output_tokens_max, asked.effort) == (5, "low")
    assert [tool.name for tool in asked.tools] == ["weather"]
    assert asked.tool_choice == ToolChoice("tool", "weather")


@pytest.mark.parametrize("mode", ["auto", "none", "required"])
def test_a_tool_choice_may_be_a_word(mode: Any) -> None:
    assert request(toolChoice=mode).tool_choice == ToolChoice(mode)


class TestUserParts:
    def test_text_files_and_data(self) -> None:
        assert user(
            {"type": "text", "text": "See"},
            {"type": "file", "mediaType": "image/png", "url": PNG, "filename": "a.png"},
            {"type": "file", "mediaType": "image/png", "url": "https://x/y.png"},
            {
                "type": "file",
                "mediaType": "application/pdf",
                "url": "data:application/pdf;base64,BBBB",
                "filename": "b",
            },
            {"type": "file", "url": "data:text/plain;charset=utf-8;base64,aGk="},
            {"type": "file", "mediaType": "audio/mpeg", "url": "data:audio/mpeg;base64,AAAA"},
            {"type": "file", "mediaType": "audio/wav", "url": "data:audio/wav;base64,AAAA"},
            {"type": "data-location", "data": {"city": "Zürich"}},
        ) == (
            Text("See"),
            Image(data="iVBORw0KGgo=", media_type="image/png"),
            Image(url="https://x/y.png", media_type="image/png"),
            Document(data="BBBB", media_type="application/pdf", filename="b"),
            Document(data="aGk=", media_type="text/plain"),
            Audio("AAAA", "mp3"),
            Audio("AAAA", "wav"),
        )

    @pytest.mark.parametrize(
        "file",
        [
            {"url": "https://x/y.pdf", "mediaType": "application/pdf"},
            {"url": "blob:x", "mediaType": "image/png"},
            {"url": "data:image/png;base64,???"},
            {"url": "data:image/svg+xml;base64,AAAA"},
            {"url": PNG, "mediaType": "image/svg+xml"},
            {"mediaType": "image/png"},
        ],
    )
    def test_a_file_nobody_can_read_is_refused_by_its_place(self, file: dict[str, str]) -> None:
        with pytest.raises(RequestError) as caught:
            user({"type": "text", "text": "x"}, {"type": "file", **file})
        assert caught.value.param == "messages[0].parts[1].url"

    def test_messages_with_nothing_for_the_model_are_left_out(self) -> None:
        empty = {"role": "user", "parts": [{"type": "data-x", "data": 1}]}
        assert request(messages=[empty, USER]).messages == (HI,)
        with pytest.raises(RequestError) as caught:
            request(messages=[empty])
        assert caught.value.param == "messages"


class TestAssistantParts:
    def test_each_step_becomes_a_turn_and_its_results(self) -> None:
        signed = {"anthropic": {"signature": "s=="}}
        assert turns(
            STEP,
            {"type": "reasoning", "id": "0", "text": "Hm. ", "state": "done", "providerMetadata": signed},
            {"type": "reasoning", "text": "", "providerMetadata": {"anthropic": {"redactedData": "UmVk"}}},
            {"type": "text", "text": "Let me see.", "state": "done"},
            tool("output-available", output={"c": 7.0}),
            {"type": "source-url", "sourceId": "1", "url": "https://x"},
            STEP,
            {"type": "data-gateway-cut", "data": {}},
            {"type": "file", "mediaType": "image/png", "url": "blob:x"},
            {"type": "text", "text": "Seven."},
        ) == (
            Message(
                "assistant",
                (
                    Reasoning("Hm. ", "s=="),
                    Reasoning(redacted="UmVk"),
                    Text("Let me see."),
                    ToolCall("c1", "weather", '{"city": "Z\\u00fcrich"}'),
                ),
            ),
            Message("tool", (ToolResult("c1", (Text('{"c": 7.0}'),)),)),
            Message("assistant", (Text("Seven."),)),
        )

    @pytest.mark.parametrize("metadata", [None, {}, {"anthropic": None}, {"anthropic": {"signature": 7}}, {"x": {}}])
    def test_reasoning_without_a_signature_is_text(self, metadata: Any) -> None:
        part = {"type": "reasoning", "text": "Hm.", "providerMetadata": metadata}
        assert turns(part) == (Message("assistant", (Reasoning("Hm."),)),)

    @pytest.mark.parametrize(
        ("part", "said", "is_error"),
        [
            (tool("output-available", output="noon"), "noon", False),
            (tool("output-available", output=None), "null", False),
            (tool("output-available", output=[1, {}]), "[1, {}]", False),
            (tool("output-error", errorText="No signal."), "No signal.", True),
            (tool("output-denied", approval={"id": "p", "approved": False}), "The user denied this tool call.", True),
            (
                tool("approval-responded", approval={"id": "p", "approved": False, "reason": "Too late."}),
                "The user denied this tool call. Too late.",
                True,
            ),
            (
                tool("approval-responded", approval={"id": "p", "approved": True}),
                "The user approved this tool call, but nothing has run it.",
                True,
            ),
        ],
    )
    def test_a_call_goes_with_its_answer(self, part: dict[str, Any], said: str, is_error: bool) -> None:
        call, result = turns(part)
        assert call.parts == (ToolCall("c1", "weather", '{"city": "Z\\u00fcrich"}'),)
        assert result == Message("tool", (ToolResult("c1", (Text(said),), is_error=is_error),))

    @pytest.mark.parametrize(
        "part",
        [
            tool("input-streaming"),
            tool("input-available"),
            tool("approval-requested", approval={"id": "p"}),
            tool("approval-responded", approval={"id": "p"}),
            tool("something-new"),
            {"type": "tool-weather"},
        ],
    )
    def test_a_call_without_an_answer_is_left_out(self, part: dict[str, Any]) -> None:
        assert turns({"type": "text", "text": "Hm."}, part) == (Message("assistant", (Text("Hm."),)),)

    def test_names_and_arguments_are_found_wherever_they_are(self) -> None:
        done = {"state": "output-available", "output": 1}
        (said, _) = turns(
            {"type": "dynamic-tool", "toolName": "now", "toolCallId": "c1", **done},
            {"type": "tool-a-b-c", "toolCallId": "c2", "input": None, **done},
            {"type": "tool-f", "toolCallId": "c3", "rawInput": '{"a":', "state": "output-error", "errorText": "x"},
            {"type": "tool-f", "toolCallId": "c4", "input": {"n": 12345678901234567}, **done},
        )
        assert said.parts == (
            ToolCall("c1", "now", "{}"),
            ToolCall("c2", "a-b-c", "{}"),
            ToolCall("c3", "f", '{"a":'),
            ToolCall("c4", "f", '{"n": 12345678901234567}'),
        )

    @pytest.mark.parametrize(
        ("part", "missing"),
        [
            ({"type": "tool-f"}, "toolCallId"),
            ({"type": "tool-", "toolCallId": "c"}, "toolName"),
            ({"type": "dynamic-tool"}, "toolName"),
        ],
    )
    def test_an_answer_to_no_call_is_refused_by_its_place(self, part: dict[str, Any], missing: str) -> None:
        with pytest.raises(RequestError) as caught:
            turns(STEP, {**part, "state": "output-available", "output": 1})
        assert caught.value.param == f"messages[1].parts[1].{missing}"

    def test_what_a_user_said_in_between_is_a_turn_of_its_own(self) -> None:
        steering = {"type": "steering-message", "id": "s", "parts": [{"type": "text", "text": "Shorter!"}]}
        assert turns(STEP, {"type": "text", "text": "Well,"}, steering, STEP, {"type": "text", "text": "so."}) == (
            Message("assistant", (Text("Well,"),)),
            Message("user", (Text("Shorter!"),)),
            Message("assistant", (Text("so."),)),
        )


@pytest.mark.parametrize(
    ("last", "continues"), [([], False), ([{"role": "assistant", "parts": [STEP]}], True), ([USER], False)]
)
def test_an_answer_goes_on_where_the_last_message_is_the_assistants(last: list[Any], continues: bool) -> None:
    assert request(messages=[USER, *last]).continues is continues


def test_system_messages_are_taken_too() -> None:
    system = {"role": "system", "parts": [{"type": "text", "text": "Be brief."}, STEP]}
    assert request(messages=[system, USER]).messages == (Message("system", (Text("Be brief."),)), HI)


@pytest.mark.parametrize(
    ("message", "trigger"),
    [
        ({"role": "user", "content": "Hi"}, "submit-message"),
        ({"role": "user", "content": "Hi", "parts": [{"type": "text", "text": "Hi"}]}, None),
    ],
)
def test_a_client_of_ai_sdk_4_is_told_where_to_go(message: dict[str, Any], trigger: str | None) -> None:
    with pytest.raises(RequestError, match="/api/ai/chat-stream") as caught:
        request(messages=[USER, message], trigger=trigger)
    assert caught.value.param == "messages[1].parts"


class TestProtocol:
    def test_text_is_answered_with_text(self) -> None:
        for server, body in ((SERVER, {"messages": [USER]}), (COMPLETION, {"prompt": "Hi"})):
            asked = server.decode_request(json.dumps(body).encode(), {"model": "m", "protocol": "text"})
            assert isinstance(server.encoder(asked, FOREIGN), TextEncoder)

    def test_a_completion_may_be_the_data_stream_of_ai_sdk_4(self) -> None:
        for protocol, kind in (("data", DataStreamEncoder), ("ui", UiMessageEncoder)):
            asked = COMPLETION.decode_request(b'{"prompt":"Hi"}', {"model": "m", "protocol": protocol})
            assert isinstance(COMPLETION.encoder(asked, FOREIGN), kind)

    def test_another_one_is_refused(self) -> None:
        with pytest.raises(RequestError) as caught:
            request({"model": "m", "protocol": "data"})
        assert caught.value.param == "protocol"


class TestCompletion:
    def test_a_prompt_is_a_users_message(self) -> None:
        body = {"prompt": "Hi", "system": "Be brief.", "maxOutputTokens": 5, "model": "fast"}
        asked = COMPLETION.decode_request(json.dumps(body).encode(), {})
        assert asked.messages == (Message("system", (Text("Be brief."),)), HI)
        assert (asked.model, asked.output_tokens_max, asked.stream) == ("fast", 5, True)

    @pytest.mark.parametrize("body", [b"{}", b'{"prompt":7}', b'{"prompt":"x","baseURL":"http://x"}', b"", b"[]"])
    def test_a_wrong_body_is_refused(self, body: bytes) -> None:
        with pytest.raises(RequestError):
            COMPLETION.decode_request(body, {"model": "m"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{}", "messages"),
        ('{"messages":[]}', "messages"),
        ('{"messages":7}', "messages"),
        ('{"messages":[{"role":"tool","parts":[]}]}', "messages[0].role"),
        ('{"messages":[{"role":"user","parts":[{}]}]}', "messages[0].parts[0].type"),
        ('{"messages":[{"role":"user","parts":[{"type":"text","text":7}]}]}', "messages[0].parts[0].text"),
        ('{"messages":[{"role":"user","parts":[{"type":"a\\u0000"}]}]}', "messages[0].parts[0].type"),
        ('{"message":{"role":"user","parts":[]},"id":"c"}', "messages"),
        ('{"messages":[{"role":"user","parts":[]}],"maxOutputTokens":0}', "maxOutputTokens"),
        ('{"messages":[{"role":"user","parts":[]}],"toolChoice":"any"}', "toolChoice"),
        ('{"messages":[{"role":"user","parts":[]}],"apiKey":"x"}', "apiKey"),
        ('{"messages":[{"role":"user","parts":[]}],"tools":[{"name":"\\n"}]}', "tools[0].name"),
        ("[]", None),
        ("", None),
    ],
)
def test_a_wrong_body_is_refused_by_its_place(body: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        SERVER.decode_request(body.encode(), {"model": "m"})
    assert caught.value.param == param


def test_an_error_before_the_stream_is_json() -> None:
    reply = SERVER.encode_error(RequestError("Wrong.", code=ErrorCode.INVALID_VALUE, param="model"))
    assert reply.status == 400
    assert json.loads(reply.body) == {"error": {"message": "Wrong.", "code": "invalid_value", "param": "model"}}
    limited = SERVER.encode_error(LimitExceeded("Slow down.", limit="requests", scope="key", retry_after_s=1.5))
    assert (limited.status, dict(limited.headers)[b"retry-after"]) == (429, b"2")
    assert dict(SERVER.encode_error(CreditsExhausted("Empty.")).headers)[b"x-should-retry"] == b"false"


# Bodies nobody thought of. This one has every field that is read, so that a mutation can reach it.
_DONE = {"toolCallId": "c", "state": "output-available", "output": {"x": 1}}
BODY: dict[str, Any] = {
    "id": "chat",
    "trigger": "submit-message",
    "messageId": "a1",
    "messages": [
        {"role": "system", "parts": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "parts": [{"type": "text", "text": "Hi"}, {"type": "file", "mediaType": "image/png", "url": PNG}],
        },
        {
            "role": "assistant",
            "metadata": {"usage": {}},
            "parts": [
                STEP,
                {"type": "reasoning", "text": "Hm.", "providerMetadata": {"anthropic": {"signature": "s"}}},
                {"type": "tool-f", "input": {"city": "Paris"}, **_DONE},
                {"type": "dynamic-tool", "toolName": "g", "rawInput": "{", **_DONE, "toolCallId": "d"},
                tool("approval-responded", approval={"id": "p", "approved": False, "reason": "No."}),
                {"type": "steering-message", "id": "s", "parts": [{"type": "text", "text": "Stop."}]},
                {"type": "text", "text": "So."},
            ],
        },
        USER,
    ],
    **{"model": "demo/fast", "system": "x", "maxOutputTokens": 1, "temperature": 1, "topP": 0.5, "topK": 1, "seed": 7},
    **{"presencePenalty": 1, "frequencyPenalty": 1, "stopSequences": ["x"], "reasoningEffort": "low", "thinking": {}},
    **{"tools": [{"name": "f", "parameters": {"type": "object"}}], "toolChoice": {"type": "tool", "toolName": "f"}},
}
_texts = st.text() | st.sampled_from(["", "\0", "\ud800", "a" * 600, "data:image/png;base64,", "tool-", "text", "[["])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts
_values = st.recursive(_scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(_texts, one, max_size=3))


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good body of which a value or two are something else, or gone."""
    changed = copy.deepcopy(BODY)
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(_places(changed)))
        if draw(st.booleans()):
            container[key] = draw(_values)
        else:
            del container[key]
    return json.dumps(changed, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_body_is_refused_or_can_be_counted_and_written_for_any_provider(body: bytes) -> None:
    try:
        request: Request = SERVER.decode_request(body, {})
    except RequestError as error:
        assert 400 <= error.code.http_status < 500
        assert 0 < len(error.message) < 600
        SERVER.encode_error(error).body.decode()
        return
    assert asyncio.run(count_input(request, count_bytes)) > 0
    for provider in (OpenAiChatClient(), AnthropicMessagesClient(), OpenAiResponsesClient()):
        try:
            json.loads(provider.encode_request(request, "model"))
        except RequestError as error:
            assert 400 <= error.code.http_status < 500
