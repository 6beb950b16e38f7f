"""Responses towards a provider: the body that any request becomes."""

import json
from typing import Any

import pytest

from gateway.canonical.errors import RequestError
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
    Loss,
    Message,
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
from gateway.protocols.openai_responses.client import OpenAiResponsesClient
from gateway.protocols.openai_responses.server import OpenAiResponsesServer

CLIENT, SERVER = OpenAiResponsesClient(), OpenAiResponsesServer()
ISSUED = "responses:rs_1:gAAA+/="
Object = dict[str, Any]


def user(*parts: Part) -> Message:
    return Message("user", parts or (Text("Hi"),))


def send(*messages: Message, model: str = "gpt-4o", **fields: Any) -> Object:
    request = Request(format="anthropic_messages", model="m", messages=messages or (user(),), **fields)
    body: Object = json.loads(CLIENT.encode_request(request, model))
    return body


def items(*messages: Message) -> list[Object]:
    said: list[Object] = send(*messages)["input"]
    return said


def forwarded(model: str = "gpt-4o", **fields: Any) -> Object:
    request = SERVER.decode_request(json.dumps({"model": "m", "input": "Hi", **fields}).encode(), {})
    body: Object = json.loads(CLIENT.encode_request(request, model))
    return body


def test_the_least_request_is_not_stored() -> None:
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    assert send() == {"model": "gpt-4o", "input": [message], "stream": True, "store": False}


def test_instructions_are_the_system_messages_at_the_head() -> None:
    body = send(
        Message("system", (Text("A"),)), Message("system", (Text("B"),)), user(), Message("system", (Text("C"),))
    )
    assert body["instructions"] == "A\n\nB"
    assert [item["role"] for item in body["input"]] == ["user", "developer"]


def test_a_turn_becomes_a_row_of_items_in_its_order() -> None:
    turn = (
        Reasoning("Hm", ISSUED),
        Text("Let "),
        Text("me."),
        Refusal("No."),
        ToolCall("c1", "f", '{"a":1.50}'),
        ToolCall("c2", "g", ""),
    )
    results = (ToolResult("c2", (Text("two"),)), ToolResult("c1", (Text("o"), Text("ne"))))
    _, thought, said, *calls = items(user(), Message("assistant", turn), Message("tool", results))
    assert thought == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Hm"}],
        "encrypted_content": "gAAA+/=",
    }
    assert [part["type"] for part in said["content"]] == ["output_text", "output_text", "refusal"]
    assert [(call.get("arguments"), call.get("output")) for call in calls] == [
        *(('{"a":1.50}', None), ("{}", None), (None, "one"), (None, "two"))
    ]


@pytest.mark.parametrize(
    "foreign",
    [Reasoning("Hm", "EqQB+/=="), Reasoning(redacted="c2VjcmV0"), Reasoning("Hm"), Reasoning("Hm", "signature.x")],
)
def test_reasoning_that_no_such_provider_issued_is_left_out(foreign: Reasoning) -> None:
    assert [item["type"] for item in items(user(), Message("assistant", (foreign, Text("So."))), user())] == [
        "message"
    ] * 3


def test_reasoning_that_led_to_nothing_is_left_out() -> None:
    assert [item["role"] for item in items(user(), Message("assistant", (Reasoning("", "", ISSUED),)), user())] == [
        *("user", "user")
    ]


def test_results_may_hold_pictures_and_files() -> None:
    shown = (Text("x"), Image(url="https://x/y.png", detail="low"), Document("QQ==", "text/plain", None, "a.txt"))
    *_, result = items(
        user(), Message("assistant", (ToolCall("c", "f", "{}"),)), Message("tool", (ToolResult("c", shown),))
    )
    assert result["output"] == [
        {"type": "input_text", "text": "x"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,QQ=="},
    ]
    assert items(user(Document(file_id="f1")))[0]["content"] == [{"type": "input_file", "file_id": "f1"}]


@pytest.mark.parametrize(
    "model", ["gpt-5", "gpt-5.2-pro", "o3", "ft:o4-mini", "openai/gpt-5", "gpt-oss-120b", "gpt-4o"]
)
def test_encrypted_reasoning_is_asked_of_models_that_reason(model: str) -> None:
    include = None if model == "gpt-4o" else ["reasoning.encrypted_content"]
    assert send(model=model).get("include") == include == forwarded(model).get("include")
    asked = {"include": ["web_search_call.results"]}
    assert forwarded(model, **asked)["include"] == [*asked["include"], *(include or ())]


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5-chat-latest", "gpt-4.1"])
def test_whoever_asks_for_reasoning_gets_it_encrypted_from_any_model(model: str) -> None:
    assert "include" not in send(model=model)
    assert "include" not in send(model=model, effort="none")
    assert "include" in send(model=model, effort="low")
    assert "include" in forwarded(model, reasoning={"effort": "low"})


def test_a_summary_is_asked_for_where_thinking_is() -> None:
    enabled = {"type": "enabled", "budget_tokens": 2048}
    assert send(effort="low", thinking=enabled)["reasoning"] == {"effort": "low", "summary": "auto"}
    assert send(effort="low", thinking={**enabled, "display": "omitted"})["reasoning"] == {"effort": "low"}
    assert send(effort="low")["reasoning"] == {"effort": "low"}
    assert "reasoning" not in send(thinking={"type": "disabled"})


def test_tools_are_flat_and_strict_only_where_they_say_so() -> None:
    tools = (Tool(name="f", parameters={"type": "object"}, strict=True), Tool(name="g", description="G."))
    body = send(tools=tools, tool_choice=ToolChoice("tool", "f"), parallel_tool_calls=False)
    assert body["tools"] == [
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
        {
            "type": "function",
            "name": "g",
            "description": "G.",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        },
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ({"type": "function", "name": "f"}, False)
    assert {"tool_choice", "parallel_tool_calls"}.isdisjoint(
        send(tool_choice=ToolChoice("auto"), parallel_tool_calls=False)
    )


def test_a_shape_to_answer_in_is_a_format_of_the_text() -> None:
    assert send(json_schema=JsonSchema())["text"] == {"format": {"type": "json_object"}}
    assert send(json_schema=JsonSchema(name="n", schema={"type": "object"}, strict=True))["text"]["format"] == {
        "type": "json_schema",
        "name": "n",
        "schema": {"type": "object"},
        "strict": True,
    }


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ((user(),), {"choices": 2}, "n"),
        ((user(),), {"sampling": Sampling(stop=("x",))}, "stop_sequences"),
        ((user(Audio("AA==", "wav")),), {}, "messages"),
        ((Message("system", (Text("x"),)),), {}, "messages"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(messages: tuple[Message, ...], fields: Object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        send(*messages, **fields)
    assert caught.value.param == param


def test_losses_are_named_as_chat_completions_names_them() -> None:
    mark = {"type": "ephemeral"}
    turn = Message("assistant", (Reasoning("Hm", "foreign"), Reasoning("Hm", ISSUED), ToolCall("c", "f", "{}")))
    result = Message("tool", (ToolResult("c", (Text("x", mark),), is_error=True),))
    request = Request(
        format="anthropic_messages",
        model="m",
        messages=(user(), turn, result),
        output_tokens_max=5,
        sampling=Sampling(top_k=5, seed=1),
        tools=(Tool(name="f", cache=mark),),
        effort="low",
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert CLIENT.losses(request, "gpt-5") == (
        *(Loss("dropped", "seed"), Loss("dropped", "top_k"), Loss("dropped", "tools.cache_control")),
        *(Loss("dropped", "messages.reasoning"), Loss("dropped", "messages.is_error")),
        *(Loss("dropped", "messages.cache_control"), Loss("changed", "max_tokens")),
        Loss("changed", "thinking.budget_tokens"),
    )
    own = SERVER.decode_request(b'{"model":"m","input":"Hi"}', {})
    assert CLIENT.losses(own, "m") == ()


def thought(**fields: Any) -> Object:
    return {"type": "reasoning", "id": "rs_ours", "summary": [], **fields}


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        # The gateway's own seal of what a provider of Responses issued, shown or not.
        (f"signature.{ISSUED}", {"id": "rs_1", "encrypted_content": "gAAA+/="}),
        (f"redacted.{ISSUED}", {"id": "rs_1", "encrypted_content": "gAAA+/="}),
        ("signature.responses::gAAA", {"id": "rs_ours", "encrypted_content": "gAAA"}),
        # Sealed by the provider itself, for a client that talked to it before.
        ("gAAAother", {"id": "rs_ours", "encrypted_content": "gAAAother"}),
        # Another vendor's, or nobody's.
        ("signature.EqQB+/==", None),
        ("redacted.c2VjcmV0", None),
        (None, None),
    ],
)
def test_reasoning_in_a_response_to_its_own_kind_is_unsealed(sent: str | None, arrives: Object | None) -> None:
    said = {"role": "assistant", "content": "So.", "x_vendor": 1.50}
    item = thought(status="completed") if sent is None else thought(status="completed", encrypted_content=sent)
    body = forwarded(input=[{"role": "user", "content": "Hi"}, item, said])
    expected = [] if arrives is None else [{**item, **arrives}]
    assert body["input"] == [{"role": "user", "content": "Hi"}, *expected, said]


def test_reasoning_in_a_models_own_words_goes_back_as_it_is() -> None:
    item = thought(content=[{"type": "reasoning_text", "text": "Hm"}])
    body = forwarded(input=[item, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Hi"}])
    assert body["input"][0] == item


def test_a_body_of_its_own_kind_goes_on_with_all_that_is_in_it() -> None:
    fields: Object = {"truncation": "auto", "x": {"y": [1.50]}, "temperature": 0.5, "store": True, "stream": False}
    assert forwarded(**fields, max_output_tokens=5) == {
        **{"model": "gpt-4o", "input": "Hi", **fields},
        **{"stream": True, "store": False, "max_output_tokens": 16},
    }
