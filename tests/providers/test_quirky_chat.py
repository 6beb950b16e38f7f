"""What vendors that call themselves compatible are sent, and what they are not."""

import json
from typing import Any

import msgspec
import pytest

from gateway.canonical.request import Loss, Message, Reasoning, Request, Text, ToolCall, ToolResult
from gateway.protocols.openai_chat.client import OpenAiChatClient
from gateway.protocols.openai_chat.server import OpenAiChatServer
from gateway.providers.quirky_chat import Quirk, QuirkyChatClient
from gateway.providers.rows import ROWS

CALL = {"id": "call_0123456789abcdef", "type": "function", "function": {"name": "now", "arguments": '{"a": 1.10}'}}
SAID = {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "Hm.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "content": "noon"}
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi", "name": "ann"}, SAID, RESULT],
    "max_completion_tokens": 50,
    "safe_prompt": True,
}
FOREIGN = Request(
    format="anthropic_messages",
    model="m",
    messages=(
        Message("user", (Text("Hi"),)),
        Message("assistant", (Reasoning("Hm.", "c2ln"), ToolCall("c1", "now", ""))),
        Message("user", (ToolResult("c1", (Text("noon"),)),)),
        Message("assistant", (Text("Noon."),)),
    ),
)


def sent(*quirks: Quirk, request: Request | None = None, **more: Any) -> dict[str, Any]:
    asked = request or OpenAiChatServer().decode_request(json.dumps({**BODY, **more}).encode(), {})
    body: dict[str, Any] = json.loads(QuirkyChatClient(frozenset(quirks)).encode_request(asked, "m"))
    return body


def test_without_a_quirk_nothing_changes() -> None:
    asked = OpenAiChatServer().decode_request(json.dumps(BODY).encode(), {})
    assert sent() == json.loads(OpenAiChatClient().encode_request(asked, "m"))


def test_usage_is_not_asked_for_where_asking_is_refused() -> None:
    assert "stream_options" not in sent(Quirk.NO_STREAM_OPTIONS, stream=True, stream_options={"include_usage": True})


def test_the_bound_has_its_older_name_where_only_that_is_known() -> None:
    body = sent(Quirk.MAX_TOKENS_ONLY)
    assert body["max_tokens"] == 50 and "max_completion_tokens" not in body


def test_a_call_and_its_result_keep_one_short_id() -> None:
    _, said, result = sent(Quirk.SHORT_TOOL_IDS)["messages"]
    short = said["tool_calls"][0]["id"]
    assert result["tool_call_id"] == short and len(short) == 9 and short.isalnum()
    assert said["tool_calls"][0]["function"] == CALL["function"]
    known = {**CALL, "id": "abcDEF123"}
    again = sent(Quirk.SHORT_TOOL_IDS, messages=[BODY["messages"][0], {**SAID, "tool_calls": [known]}])  # type: ignore[index]
    assert again["messages"][1]["tool_calls"][0]["id"] == "abcDEF123"


def test_a_plain_history_has_only_what_everybody_knows() -> None:
    body = sent(Quirk.PLAIN_HISTORY)
    assert [set(message) for message in body["messages"]] == [
        {"role", "content", "name"},
        {"role", "content", "tool_calls"},
        {"role", "tool_call_id", "content"},
    ]
    assert body["safe_prompt"] is True


def test_reasoning_goes_back_to_who_wants_it_from_clients_of_every_format() -> None:
    assert sent(Quirk.REASONING_BACK)["messages"][1]["reasoning_content"] == "Hm."
    silent = {name: value for name, value in SAID.items() if name != "reasoning_content"}
    body = sent(Quirk.REASONING_BACK, messages=[BODY["messages"][0], silent, RESULT])  # type: ignore[index]
    assert body["messages"][1]["reasoning_content"] == ""
    foreign = sent(Quirk.REASONING_BACK, request=FOREIGN)["messages"]
    assert [message.get("reasoning_content") for message in foreign] == [None, "Hm.", None, ""]


def test_what_goes_back_is_no_loss() -> None:
    assert Loss("dropped", "messages.reasoning") in OpenAiChatClient().losses(FOREIGN, "m")
    assert QuirkyChatClient(frozenset((Quirk.REASONING_BACK,))).losses(FOREIGN, "m") == ()
    own = msgspec.structs.replace(FOREIGN, format="openai_chat")
    assert QuirkyChatClient(frozenset((Quirk.REASONING_BACK,))).losses(own, "m") == ()


@pytest.mark.parametrize(
    ("row", "quirks"),
    [
        ("openai", set()),
        ("groq", {Quirk.PLAIN_HISTORY}),
        ("mistral", set(Quirk) - {Quirk.REASONING_BACK}),
        ("deepseek", {Quirk.REASONING_BACK}),
        ("moonshot", {Quirk.REASONING_BACK}),
    ],
)
def test_the_vendors_with_quirks_are_known(row: str, quirks: set[Quirk]) -> None:
    assert ROWS[row].quirks == quirks
