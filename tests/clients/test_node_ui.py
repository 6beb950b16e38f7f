"""The chat classes of AI SDK 5, 6 and 7, and their ``useCompletion``, against a running gateway.

``5-first`` is 5.0.0, the strictest reader there is: it refuses any field it does not know. Release 7 asks for Node 22,
and what is used of it here runs on 20 as well.
"""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.clients.scripts import appears, needs, run
from tests.harness import GatewayProcess
from tests.upstream import Plan, ToolCall, Upstream, Usage

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs("ai7-react"),
]

OPENAI, CLAUDE = "up/gpt-upstream", "claude/claude-upstream"
VERSIONS = pytest.mark.parametrize("version", ["5-first", "5", "6", "7"])
BOTH = pytest.mark.parametrize("model", [OPENAI, CLAUDE])
SAY = {"say": "Hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Get the weather.", "parameters": PARAMETERS}
COLOGNE = ToolCall(name="weather", arguments=('{"ci', 'ty":"Kö', 'ln"}'))
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))


class Chat:
    """``useChat`` with a key. Its users see ``screen``."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._base_url, self._key = gateway.base_url, key

    async def __call__(
        self, version: str, model: str, *acts: dict[str, Any], key: str | None = None, **more: Any
    ) -> Any:
        provider, _, name = model.partition("/")
        query = f"provider={provider}&model={name}" + ("&protocol=text" if more.get("protocol") == "text" else "")
        headers = {"authorization": f"Bearer {key or self._key}"}
        asked = {"version": version, "api": f"{self._base_url}/api/chat?{query}", "headers": headers, **more}
        return await run("ui_chat.mjs", acts=acts, **asked)

    async def complete(self, version: str, **more: Any) -> Any:
        own = "data" if version == "4" else "ui"
        query = f"model={OPENAI}&protocol={'text' if more.get('protocol') == 'text' else own}"
        headers = {"authorization": f"Bearer {more.pop('key', self._key)}"}
        asked = {"version": version, "api": f"{self._base_url}/api/completion?{query}", "headers": headers}
        return await run("completion.mjs", **asked, **more)


@pytest.fixture
def chat(gateway: GatewayProcess, key: str) -> Chat:
    return Chat(gateway, key)


def kinds(message: dict[str, Any]) -> list[str]:
    return [part["type"] for part in message["parts"]]


def text(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


def is_well(seen: dict[str, Any]) -> bool:
    assert (seen["error"], seen["status"]) == (None, "ready"), seen["error"]
    assert all(
        part["state"] == "done"
        for message in seen["screen"]
        for part in message["parts"]
        if "state" in part and "text" in part
    )
    return True


@VERSIONS
@BOTH
async def test_text_comes_word_by_word_with_what_it_cost(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, version: str, model: str
) -> None:
    upstream.plan = Plan(text=("Hé", "llo\n", "data: [DONE]\n\n", " \u2028\U0001f600"), usage=Usage(input=20, output=9))
    account = f"acme-{uuid.uuid4().hex[:12]}"
    seen = await chat(version, model, SAY, key=await gateway.account(account))
    assert is_well(seen)
    question, answer = seen["screen"]
    assert (text(question), text(answer)) == ("Hi", "Héllo\ndata: [DONE]\n\n \u2028\U0001f600")
    assert kinds(answer) == ["step-start", "text"] and answer["id"].startswith("msg-")
    assert answer["metadata"]["finishReason"] == "stop"
    usage = answer["metadata"]["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (20, 9, 29)
    balance = await gateway.settled(account, records=1)
    assert int(answer["metadata"]["costUsd"].replace(".", "")) == balance["spent"] > 0
    texts = [text(snapshot) for snapshot in seen["snapshots"]]
    assert texts == sorted(texts, key=len) and len(set(texts)) == 5
    (received,) = seen["received"]
    assert received["headers"]["x-vercel-ai-ui-message-stream"] == "v1"
    assert received["headers"]["content-type"] == "text/event-stream"


@VERSIONS
async def test_reasoning_comes_back_to_its_provider_as_it_was(upstream: Upstream, chat: Chat, version: str) -> None:
    upstream.queue(
        Plan(reasoning=("Hm", "m."), signature="c2ln+/==", redacted="UmVk", text=("So.",), tool_calls=(OSLO,)),
        Plan(text=("Sun.",)),
    )
    body = {"tools": [TOOL], "thinking": {"type": "enabled", "budget_tokens": 1024}, "maxOutputTokens": 4096}
    seen = await chat(version, CLAUDE, SAY, {"results": {"weather": "sun"}}, body=body)
    assert is_well(seen)
    answer = seen["screen"][1]
    assert [part["text"] for part in answer["parts"] if part["type"] == "reasoning"] == ["Hmm.", ""]
    sent = upstream.requests[1].body["messages"][1]["content"]
    # The provider refuses thinking that it did not write itself.
    assert sent[:2] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "c2ln+/=="},
        {"type": "redacted_thinking", "data": "UmVk"},
    ]
    assert [block["type"] for block in sent[2:]] == ["text", "tool_use"]


@VERSIONS
@BOTH
async def test_calls_grow_are_answered_on_the_page_and_the_answer_goes_on(
    upstream: Upstream, chat: Chat, version: str, model: str
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE, OSLO)), Plan(text=("Sun ", "shine.")))
    seen = await chat(version, model, SAY, {"results": {"weather": {"sky": "clear"}}}, body={"tools": [TOOL]})
    assert is_well(seen)
    assert len(seen["screen"]) == 2, "the second step belongs to the same message"
    answer = seen["screen"][1]
    assert kinds(answer) == ["step-start", "text", "tool-weather", "tool-weather", "step-start", "text"]
    assert text(answer) == "Let me see.Sun shine."
    roles = [message["role"] for message in seen["model"]]
    assert roles == ["user", "assistant", "tool", "assistant"], "the SDK's own server takes the messages as well"
    growing = [snapshot["parts"][2] for snapshot in seen["snapshots"] if len(snapshot["parts"]) > 2]
    partial = [part.get("input") for part in growing if part["state"] == "input-streaming"]
    assert {"city": "Kö"} in partial
    assert [call["input"]["city"] for call in seen["called"]] == ["Köln", "Oslo"]
    assert seen["posts"][1]["messageId"] == answer["id"]
    sent = upstream.requests[1].body["messages"]
    if model == OPENAI:
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
        assert [json.loads(call["function"]["arguments"])["city"] for call in sent[1]["tool_calls"]] == ["Köln", "Oslo"]
        assert [json.loads(message["content"]) for message in sent[2:]] == [{"sky": "clear"}] * 2
    else:
        assert [block["type"] for block in sent[1]["content"]] == ["text", "tool_use", "tool_use"]
        assert [block["type"] for block in sent[2]["content"]] == ["tool_result"] * 2


@VERSIONS
async def test_a_tool_that_failed_on_the_page_is_an_error_to_the_model(
    upstream: Upstream, chat: Chat, version: str
) -> None:
    if version == "5-first":
        pytest.skip("5.0.0 has no way to say so")
    upstream.queue(Plan(tool_calls=(OSLO,)), Plan(text=("Never mind.",)))
    seen = await chat(version, CLAUDE, SAY, {"failures": {"weather": "No signal."}}, SAY, body={"tools": [TOOL]})
    assert is_well(seen)
    result = upstream.requests[1].body["messages"][2]["content"][0]
    assert result["is_error"] and "No signal." in json.dumps(result["content"])


@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize(
    ("approved", "told"), [(False, "denied this tool call. Too warm."), (True, "nothing has run it")]
)
async def test_what_a_user_thinks_of_a_call_is_told_to_the_model(
    upstream: Upstream, chat: Chat, version: str, approved: bool, told: str
) -> None:
    call = {"type": "tool-weather", "toolCallId": "c1", "state": "approval-requested", "input": {"city": "Oslo"}}
    messages = [
        {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]},
        {"id": "m2", "role": "assistant", "parts": [{"type": "step-start"}, {**call, "approval": {"id": "p1"}}]},
    ]
    verdict = {"id": "p1", "approved": approved, "reason": "Too warm."}
    seen = await chat(version, OPENAI, {"approval": verdict}, messages=messages)
    assert is_well(seen) and [message["id"] for message in seen["screen"]] == ["m1", "m2"]
    sent = upstream.requests[0].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"] and told in sent[2]["content"]


@VERSIONS
async def test_arguments_that_are_no_object_run_nothing(upstream: Upstream, chat: Chat, version: str) -> None:
    upstream.queue(Plan(tool_calls=(ToolCall(name="weather", arguments=('{"city":',)),)), Plan(text=("Sorry.",)))
    seen = await chat(version, OPENAI, SAY, SAY)
    assert seen["error"] is None and seen["called"] == []
    call = next(part for part in seen["screen"][1]["parts"] if part["type"] == "tool-weather")
    assert (call["state"], call["errorText"]) == ("output-error", "The arguments are not a JSON object.")
    assert "not a JSON object" in upstream.requests[1].raw.decode(), "the model is told"


@VERSIONS
async def test_a_call_without_arguments_has_an_empty_object(upstream: Upstream, chat: Chat, version: str) -> None:
    upstream.plan = Plan(tool_calls=(ToolCall(name="now", arguments=()),))
    seen = await chat(version, OPENAI, SAY)
    assert is_well(seen) and seen["screen"][1]["parts"][1]["input"] == {}


@VERSIONS
async def test_ids_that_a_provider_uses_again_do_not_overwrite_an_earlier_call(
    upstream: Upstream, chat: Chat, version: str
) -> None:
    calls = [ToolCall(name="weather", arguments=(f'{{"city":"{city}"}}',), id="call_0") for city in ("Rome", "Oslo")]
    upstream.queue(Plan(tool_calls=(calls[0],)), Plan(tool_calls=(calls[1],)), Plan(text=("Both.",)))
    results = {"results": {"weather": "sun"}}
    seen = await chat(version, OPENAI, SAY, results, results)
    assert is_well(seen)
    cities = [part["input"]["city"] for part in seen["screen"][1]["parts"] if part["type"] == "tool-weather"]
    assert cities == ["Rome", "Oslo"] and text(seen["screen"][1]) == "Both."


@VERSIONS
async def test_a_call_that_nobody_answered_does_not_lock_the_chat(upstream: Upstream, chat: Chat, version: str) -> None:
    for model in (OPENAI, CLAUDE):
        upstream.queue(Plan(text=("Shall I?",), tool_calls=(OSLO,)))
        seen = await chat(version, model, SAY, {"say": "No."})
        assert seen["error"] is None and text(seen["screen"][-1]) == "Hello, world!"


@VERSIONS
async def test_files_and_settings_reach_the_provider(upstream: Upstream, chat: Chat, version: str) -> None:
    image = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,iVBORw0KGgo=", "filename": "a.png"}
    body = {"maxOutputTokens": 50, "temperature": 0.5, "system": "Be kind.", "tools": [TOOL], "toolChoice": "none"}
    assert is_well(await chat(version, OPENAI, {"say": "What is this?", "files": [image]}, body=body))
    sent = upstream.requests[0].body
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    pictures = [part["image_url"]["url"] for part in sent["messages"][1]["content"] if part["type"] == "image_url"]
    assert pictures == [image["url"]]
    assert (sent["max_tokens"], sent["temperature"], sent["tool_choice"]) == (50, 0.5, "none")


@VERSIONS
async def test_stopping_keeps_what_was_said_and_the_chat_goes_on(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, version: str
) -> None:
    upstream.queue(Plan(text=(" one", " two"), endless=True, delay_s=0.005))
    account = f"acme-{uuid.uuid4().hex[:12]}"
    key = await gateway.account(account)
    seen = await chat(version, OPENAI, {"say": "Count", "stopAfter": 10}, {"say": "Go on"}, key=key)
    assert (seen["error"], seen["status"]) == (None, "ready")
    assert text(seen["screen"][1]).startswith(" one two")
    assert (text(seen["screen"][3])) == "Hello, world!"
    await gateway.settled(account, records=2)
    assert [row["outcome"] for row in await gateway.usage(account)] == ["complete", "cancelled"]


@VERSIONS
async def test_an_answer_may_be_asked_for_again(upstream: Upstream, chat: Chat, version: str) -> None:
    seen = await chat(version, OPENAI, SAY, {"regenerate": True})
    assert is_well(seen) and len(seen["screen"]) == 2
    assert seen["posts"][1]["trigger"] == "regenerate-message"
    assert seen["screen"][1]["id"] != seen["snapshots"][0]["id"]


@VERSIONS
@BOTH
async def test_an_error_within_the_stream_is_shown_and_what_was_said_stays(
    upstream: Upstream, chat: Chat, version: str, model: str
) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    seen = await chat(version, model, SAY)
    assert seen["status"] == "error" and "ended before" in seen["error"]["message"]
    assert text(seen["screen"][1]) == "Hello, "
    (told,) = seen["told"]
    assert (told["type"], told["data"]["code"]) == ("data-gateway-error", "stream_truncated")


@VERSIONS
async def test_an_error_after_the_head_was_sent_makes_no_empty_message(
    upstream: Upstream, chat: Chat, version: str, tmp_path: Path
) -> None:
    upstream.queue(Plan(fault="stall", fault_at=-1, status=500), Plan(status=500))
    head = tmp_path / "head"
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(chat(version, OPENAI, SAY, signal=str(head)))
        await appears(head)
        upstream.release()
    seen = asking.result()
    assert seen["received"][0]["status"] == 200
    assert seen["status"] == "error" and "provider" in seen["error"]["message"]
    assert [message["role"] for message in seen["screen"]] == ["user"]


@VERSIONS
async def test_heartbeats_are_passed_over(upstream: Upstream, chat: Chat, version: str, tmp_path: Path) -> None:
    upstream.plan = Plan(fault="stall", fault_at=-1)
    head = tmp_path / "head"
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(chat(version, OPENAI, SAY, signal=str(head)))
        await appears(head)
        upstream.release()
    seen = asking.result()
    assert is_well(seen) and text(seen["screen"][1]) == "Hello, world!"


@VERSIONS
async def test_a_cut_is_told_in_the_message_and_the_way_to_it_beside(
    upstream: Upstream, chat: Chat, gateway: GatewayProcess, version: str
) -> None:
    upstream.plan = Plan(text=(" one", " two"), endless=True, delay_s=0.005)
    account = f"acme-{uuid.uuid4().hex[:12]}"
    seen = await chat(version, OPENAI, SAY, key=await gateway.account(account, usd="0.0005"))
    assert is_well(seen)
    answer = seen["screen"][1]
    assert text(answer).startswith(" one two one two")
    assert answer["parts"][-1]["type"] == "data-gateway-cut"
    assert answer["parts"][-1]["data"] == {
        "reason": "credits_exhausted",
        "message": "The account's credit is used up; the answer ends here.",
    }
    assert "data-gateway-budget" in {part["type"] for part in seen["told"]}
    balance = await gateway.settled(account, records=1)
    assert int(answer["metadata"]["costUsd"].replace(".", "")) == balance["spent"]


@VERSIONS
async def test_an_http_error_is_the_message_of_the_error(chat: Chat, version: str) -> None:
    wrong = await chat(version, OPENAI, SAY, key="sk-wrong")
    assert wrong["received"][0]["status"] == 401
    assert json.loads(wrong["error"]["message"])["error"]["code"] == "invalid_api_key"
    assert wrong["error"].get("statusCode") == (401 if version == "7" else None)
    assert [message["role"] for message in wrong["screen"]] == ["user"]
    unknown = await chat(version, "nobody/nothing", SAY)
    assert json.loads(unknown["error"]["message"])["error"]["code"] == "model_not_found"


@VERSIONS
async def test_bare_text_is_a_protocol_too(upstream: Upstream, chat: Chat, version: str) -> None:
    upstream.plan = Plan(reasoning=("Hm.",), text=("Hé", "llo"))
    seen = await chat(version, OPENAI, SAY, protocol="text")
    assert is_well(seen) and text(seen["screen"][1]) == "Héllo"
    assert seen["received"][0]["headers"]["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("version", "protocol"), [(version, protocol) for version in "4567" for protocol in ("text", "data")]
)
async def test_use_completion_shows_the_text(upstream: Upstream, chat: Chat, version: str, protocol: str) -> None:
    upstream.plan = Plan(text=("Hé", "llo"))
    seen = await chat.complete(version, prompt="Hi", protocol=protocol, body={"maxOutputTokens": 9})
    assert (seen["completion"], seen["error"]) == ("Héllo", None)
    assert upstream.requests[0].body["messages"] == [{"role": "user", "content": "Hi"}]
    assert upstream.requests[0].body["max_tokens"] == 9


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
async def test_use_completion_shows_errors(upstream: Upstream, chat: Chat, version: str) -> None:
    upstream.plan = Plan(fault="truncate", fault_at=2)
    seen = await chat.complete(version, prompt="Hi")
    assert seen["completion"] == "Hello, " and "ended before" in seen["error"]["message"]
    wrong = await chat.complete(version, prompt="Hi", key="sk-wrong")
    assert json.loads(wrong["error"]["message"])["error"]["code"] == "invalid_api_key"
