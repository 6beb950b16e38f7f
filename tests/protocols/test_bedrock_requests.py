"""Canonical requests as Converse bodies: what each family of models takes, and what is told to be left out."""

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
    Request,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.protocols.bedrock_converse.client import BedrockConverseClient
from gateway.protocols.bedrock_converse.families import Family, family_of

CLIENT = BedrockConverseClient()
CLAUDE = "eu.anthropic.claude-sonnet-4-20250514-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
LLAMA = "meta.llama3-70b-instruct-v1:0"
GPT = "openai.gpt-oss-120b-1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
HI = Message("user", (Text("Hi"),))
TOOL = Tool(name="now")
SIGNED = Reasoning("Hm.", "c2lnbmVk")


def request(*messages: Message, **fields: Any) -> Request:
    return Request(format="openai_chat", model="m", messages=messages or (HI,), **fields)


def body(asked: Request, model: str = CLAUDE) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(CLIENT.encode_request(asked, model))
    return written


def content(*parts: Part, model: str = CLAUDE) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = body(request(Message("user", parts)), model)["messages"][0]["content"]
    return blocks


def dropped(asked: Request, model: str = CLAUDE) -> set[str]:
    return {loss.field for loss in CLIENT.losses(asked, model) if loss.fate == "dropped"}


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("anthropic.claude-3-5-sonnet-20240620-v1:0", Family.CLAUDE),
        (CLAUDE, Family.CLAUDE),
        ("arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-5", Family.CLAUDE),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", Family.NOVA),
        (NOVA, Family.NOVA),
        (GPT, Family.OPENAI),
        (LLAMA, Family.OTHER),
        (PROFILE, Family.NAMELESS),
        ("arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:provisioned-model/a1b2c3d4e5f6", Family.NAMELESS),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint/anthropic-lookalike", Family.NAMELESS),
    ],
)
def test_a_family_is_found_in_ids_profiles_and_arns(model: str, family: Family) -> None:
    assert family_of(model) is family


def test_nothing_is_sent_that_was_not_asked_for() -> None:
    assert body(request()) == {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}


@pytest.mark.parametrize(
    ("model", "effort", "fields"),
    [
        (CLAUDE, "high", {"thinking": {"type": "enabled", "budget_tokens": 16384}}),
        (CLAUDE, "none", {"thinking": {"type": "disabled"}}),
        (NOVA, "low", {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}),
        (NOVA, "high", {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}}),
        (GPT, "medium", {"reasoning_effort": "medium"}),
        (GPT, "minimal", {"reasoning_effort": "low"}),
        (LLAMA, "high", None),
        ("amazon.nova-pro-v1:0", "high", None),
        (PROFILE, "high", None),
    ],
)
def test_each_vendor_is_asked_to_reason_in_its_own_word(model: str, effort: str, fields: dict[str, Any] | None) -> None:
    asked = request(effort=effort)
    assert body(asked, model).get("additionalModelRequestFields") == fields
    assert ("reasoning_effort" in dropped(asked, model)) is (fields is None)
    assert (Loss("changed", "reasoning_effort") in CLIENT.losses(asked, model)) is (effort == "minimal")


def test_a_thinking_claude_gets_room_for_its_answer_and_no_sampling() -> None:
    asked = request(effort="low", sampling=Sampling(temperature=0.3, top_p=0.5, top_k=5))
    written = body(asked)
    assert written["inferenceConfig"] == {"maxTokens": 2048 + 8192}
    assert written["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    assert dropped(asked) == {"temperature", "top_p", "top_k"}


@pytest.mark.parametrize(("bound", "budget"), [(30_000, 16_384), (10_000, 5_000), (1_500, 1_024), (1_024, None)])
def test_a_budget_stays_below_the_bound(bound: int, budget: int | None) -> None:
    asked = request(effort="high", output_tokens_max=bound)
    fields = body(asked).get("additionalModelRequestFields")
    assert fields == (None if budget is None else {"thinking": {"type": "enabled", "budget_tokens": budget}})
    assert ("reasoning_effort" in dropped(asked)) is (budget is None)
    assert body(asked)["inferenceConfig"]["maxTokens"] == bound


def test_a_clients_own_thinking_is_lowered_and_told() -> None:
    asked = request(thinking={"type": "enabled", "budget_tokens": 4000}, output_tokens_max=3000)
    assert body(asked)["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 1500
    assert CLIENT.losses(asked, CLAUDE) == (Loss("lowered", "thinking.budget_tokens"),)
    assert body(asked, PROFILE)["additionalModelRequestFields"]["thinking"]["budget_tokens"] == 1500
    assert dropped(asked, LLAMA) == {"thinking"}


def test_novas_highest_effort_is_lowered_where_there_is_a_bound() -> None:
    asked = request(effort="high", output_tokens_max=500)
    assert body(asked, NOVA)["additionalModelRequestFields"]["reasoningConfig"]["maxReasoningEffort"] == "medium"
    assert Loss("changed", "reasoning_effort") in CLIENT.losses(asked, NOVA)


def test_a_call_that_is_ordered_is_made_without_thinking() -> None:
    asked = request(effort="low", tools=(TOOL,), tool_choice=ToolChoice("required"))
    assert "additionalModelRequestFields" not in body(asked) and "reasoning_effort" in dropped(asked)


def test_top_k_goes_where_each_vendor_wants_it() -> None:
    asked = request(sampling=Sampling(top_k=5))
    assert body(asked)["additionalModelRequestFields"] == {"top_k": 5}
    assert body(asked, NOVA)["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 5}}
    assert "additionalModelRequestFields" not in body(asked, LLAMA) and dropped(asked, LLAMA) == {"top_k"}


def test_reasoning_goes_back_only_to_a_claude_and_only_signed() -> None:
    turns = (HI, Message("assistant", (SIGNED, Text("So."))), HI)
    assert body(request(*turns))["messages"][1]["content"][0] == {
        "reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2lnbmVk"}}
    }
    assert body(request(*turns), LLAMA)["messages"][1]["content"] == [{"text": "So."}]
    assert dropped(request(*turns), LLAMA) == {"messages.reasoning"}
    for foreign in (Reasoning("Hm."), Reasoning("Hm.", "responses:rs_1:c2ln"), Reasoning(redacted="not base64!")):
        asked = request(HI, Message("assistant", (foreign, Text("So."))), HI)
        assert body(asked)["messages"][1]["content"] == [{"text": "So."}]
        assert dropped(asked) == {"messages.reasoning"}


def test_a_turn_that_ends_in_thought_is_trimmed() -> None:
    asked = request(HI, Message("assistant", (SIGNED,)), Message("user", (Text("Well?"),)))
    assert body(asked)["messages"] == [{"role": "user", "content": [{"text": "Hi"}, {"text": "Well?"}]}]


def test_tools_of_the_history_are_named_even_where_the_request_has_none() -> None:
    call, result = ToolCall("c1", "now", '{"zone": 1.10}'), ToolResult("c1", (Text("noon"),), is_error=True)
    asked = request(HI, Message("assistant", (call,)), Message("tool", (result,)))
    written = body(asked)
    assert written["toolConfig"] == {
        "tools": [{"toolSpec": {"name": "now", "inputSchema": {"json": {"type": "object", "properties": {}}}}}]
    }
    assert b'"input":{"zone": 1.10}' in CLIENT.encode_request(asked, CLAUDE)
    assert written["messages"][2]["content"] == [
        {"toolResult": {"toolUseId": "c1", "content": [{"text": "noon"}], "status": "error"}}
    ]
    assert "status" not in json.dumps(body(asked, LLAMA)) and dropped(asked, LLAMA) == {"messages.is_error"}
    forbidding = request(*asked.messages, tools=(TOOL,), tool_choice=ToolChoice("none"))
    assert dropped(forbidding) == {"tool_choice"} and "toolChoice" not in body(forbidding)["toolConfig"]


def test_a_mark_within_a_result_stands_after_it() -> None:
    marked = Text("noon", {"type": "ephemeral"})
    asked = request(
        HI, Message("assistant", (ToolCall("c1", "now", ""),)), Message("tool", (ToolResult("c1", (marked,)),))
    )
    assert [next(iter(block)) for block in body(asked)["messages"][2]["content"]] == ["toolResult", "cachePoint"]


def test_marks_go_to_models_that_cache() -> None:
    marked = Text("Long.", {"type": "ephemeral", "ttl": "5m"})
    point = {"cachePoint": {"type": "default", "ttl": "5m"}}
    asked = request(Message("system", (marked,)), HI, tools=(Tool(name="now", cache={"type": "ephemeral"}),))
    assert body(asked)["system"] == [{"text": "Long."}, point]
    assert body(asked)["toolConfig"]["tools"][1:] == [{"cachePoint": {"type": "default"}}]
    assert body(asked, NOVA)["system"] == [{"text": "Long."}, point]
    assert body(asked, NOVA)["toolConfig"]["tools"][1:] == [] and dropped(asked, NOVA) == {"tools.cache_control"}
    assert body(asked, LLAMA)["system"] == [{"text": "Long."}]


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("application/pdf", "pdf"),
        ("text/plain; charset=utf-8", "txt"),
        ("text/x-python", "txt"),
        ("text/markdown", "md"),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx"),
    ],
)
def test_documents_have_a_kind_a_clean_name_and_words_beside_them(media_type: str, kind: str) -> None:
    document = Document("aGk=", media_type, filename="../Ägypten__2026 (final).v2.pdf")
    written, words = content(document)
    name = written["document"]["name"]
    assert written["document"]["format"] == kind and name == "gypten 2026 (final) v2"
    assert words == {"text": "…"} and content(document, Text("What is it?"))[1:] == [{"text": "What is it?"}]


def test_sound_goes_as_bytes() -> None:
    assert content(Audio("aGk=", "wav")) == [{"audio": {"format": "wav", "source": {"bytes": "aGk="}}}]


@pytest.mark.parametrize(
    "part",
    [
        Image(url="https://example.com/cat.png"),
        Image(data="aGk=", media_type="image/tiff"),
        Document(file_id="file_1"),
        Document("aGk=", "application/zip"),
    ],
)
def test_what_cannot_be_carried_is_refused(part: Part) -> None:
    for encode in (CLIENT.encode_request, CLIENT.losses):
        with pytest.raises(RequestError) as caught:
            encode(request(Message("user", (part,))), CLAUDE)
        assert caught.value.param == "messages"


def test_a_conversation_without_a_word_is_refused() -> None:
    with pytest.raises(RequestError):
        CLIENT.encode_request(request(Message("user", (Text(" \n"),))), CLAUDE)


def test_what_is_left_out_is_named_once() -> None:
    asked = request(
        Message("user", (Image(data="aGk=", media_type="image/png", detail="high"),) * 2),
        sampling=Sampling(seed=1, frequency_penalty=0.5, presence_penalty=0.5, stop=(" ", "END")),
        tools=(TOOL,),
        parallel_tool_calls=False,
        json_schema=JsonSchema(),
        user="u",
    )
    assert body(asked)["inferenceConfig"] == {"stopSequences": ["END"]}
    losses = CLIENT.losses(asked, CLAUDE)
    assert len(losses) == len(set(losses))
    assert dropped(asked) == {
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "stop",
        "user",
        "response_format",
        "parallel_tool_calls",
        "messages.detail",
    }
