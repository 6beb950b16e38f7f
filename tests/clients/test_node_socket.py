"""The chat class of AI SDK 7 over its own ``WebSocketChatTransport``, against running gateways."""

from typing import Any

import pytest

from tests.clients.scripts import needs, run
from tests.clients.test_node_ui import COLOGNE, OPENAI, TOOL, text
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("ai7-react")]

SAY = {"say": "Hi"}


class Page:
    """``useChat`` on a WebSocket, with a key."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self.url, self._key = address(gateway), key

    async def __call__(self, *acts: dict[str, Any], model: str = OPENAI, **more: Any) -> Any:
        asked = {"url": self.url, "headers": {"Authorization": f"Bearer {self._key}"}, "body": {"model": model}}
        return await run("ui_socket.mjs", acts=acts, **{**asked, **more})


def address(gateway: GatewayProcess) -> str:
    """Written as pages do; the transport makes it ``ws:``."""
    return f"{gateway.base_url}/api/chat/ws"


@pytest.fixture
def page(gateway: GatewayProcess, key: str, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("NODE_OPTIONS", "--experimental-websocket")
    return Page(gateway, key)


def is_well(seen: dict[str, Any]) -> bool:
    assert (seen["error"], seen["status"]) == (None, "ready"), seen
    return True


async def test_text_comes_over_one_connection_with_what_it_cost(upstream: Upstream, page: Page) -> None:
    upstream.plan = Plan(text=("Hé", "llo\n", "data: [DONE]\n\n", " \u2028\U0001f600"))
    seen = await page(SAY, SAY)
    assert is_well(seen) and seen["connections"] == 1
    for answer in (seen["screen"][1], seen["screen"][3]):
        assert text(answer) == "Héllo\ndata: [DONE]\n\n \u2028\U0001f600"
        assert answer["metadata"]["costUsd"]
    assert (
        seen["finishes"]
        == [
            {"isAbort": False, "isDisconnect": False, "isError": False, "finishReason": "stop"},
        ]
        * 2
    )


@pytest.mark.parametrize("way", ["params", "protocols"])
async def test_the_key_may_come_when_the_connection_is_opened(
    upstream: Upstream, page: Page, key: str, way: str
) -> None:
    shown = {"params": {"token": key}} if way == "params" else {"protocols": ["gateway.v1", f"gateway-key.{key}"]}
    assert is_well(await page(SAY, headers={}, **shown))


async def test_chats_share_a_connection(upstream: Upstream, page: Page) -> None:
    upstream.plan = Plan(text=tuple(f" {number}" for number in range(30)), delay_s=0.005)
    seen = await page({"together": ["a", "b", "c"]})
    assert seen["connections"] == 1
    assert [other["status"] for other in seen["others"]] == ["ready"] * 3
    assert len({text(other["messages"][1]) for other in seen["others"]}) == 1
    ids = [frame["requestId"] for frame in seen["came"]]
    assert len(set(ids)) == 3 and ids != sorted(ids, key=ids.index)


async def test_a_call_is_answered_on_the_page_and_the_answer_goes_on(upstream: Upstream, page: Page) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(COLOGNE,)), Plan(text=("Sun ", "shine.")))
    seen = await page(SAY, {"results": {"weather": {"sky": "clear"}}}, body={"model": OPENAI, "tools": [TOOL]})
    assert is_well(seen) and len(seen["screen"]) == 2
    assert text(seen["screen"][1]) == "Let me see.Sun shine."
    assert [call["input"]["city"] for call in seen["called"]] == ["Köln"]
    assert seen["sent"][1]["messageId"] == seen["screen"][1]["id"]
    roles = [message["role"] for message in upstream.requests[1].body["messages"]]
    assert roles == ["user", "assistant", "tool"]


async def test_stop_ends_the_stream_and_the_next_question_uses_the_same_connection(
    upstream: Upstream, page: Page, gateway: GatewayProcess
) -> None:
    upstream.queue(Plan(text=(" one", " two"), endless=True, delay_s=0.005))
    account = "stopper"
    headers = {"Authorization": f"Bearer {await gateway.account(account)}"}
    seen = await page({**SAY, "stopAfter": 10}, {"say": "Go on"}, headers=headers)
    assert is_well(seen) and seen["connections"] == 1
    assert text(seen["screen"][1]).startswith(" one two") and text(seen["screen"][3]) == "Hello, world!"
    assert seen["finishes"][0]["isAbort"] and [frame["type"] for frame in seen["sent"]] == ["send", "abort", "send"]
    await gateway.settled(account, records=2)
    newest, stopped = await gateway.usage(account)
    assert (stopped["outcome"], stopped["record"]["reason"]) == ("cancelled", "stopped")
    assert newest["outcome"] == "complete"


async def test_a_broken_connection_is_resumed_over_a_new_one(upstream: Upstream, page: Page) -> None:
    words = tuple(f" {number}" for number in range(60))
    upstream.plan = Plan(text=words, delay_s=0.01)
    seen = await page({**SAY, "dropAfter": 5}, {"resume": True})
    assert is_well(seen) and seen["connections"] == 2
    assert seen["finishes"][0]["isDisconnect"]
    assert len(seen["screen"]) == 2 and text(seen["screen"][1]) == "".join(words)
    assert len(upstream.requests) == 1


async def test_a_page_that_is_loaded_anew_finds_its_answer_on_another_gateway(page: Page) -> None:
    with RedisServer() as redis:
        async with GatewayProcess(redis_url=redis.url) as one, GatewayProcess(redis_url=redis.url) as two:
            headers = {"Authorization": f"Bearer {await one.account()}"}
            seen = await page(
                {**SAY, "dropAfter": 5},
                {"reload": address(two)},
                {"reload": address(one)},
                url=address(one),
                headers=headers,
                body={"model": "demo/reasoning"},
            )
            assert is_well(seen) and len(seen["screen"]) == 2
            assert text(seen["screen"][1]).startswith("Hello from the demo model")
            assert seen["came"][-1]["type"] == "no-active", "what was read to its end is not told again"
            await one.settled(records=1)
            (row,) = await one.usage()
            assert row["outcome"] == "complete"


async def test_errors_are_shown_with_their_message_and_the_connection_stays(upstream: Upstream, page: Page) -> None:
    seen = await page(SAY, model="nobody/nothing")
    assert seen["status"] == "error" and "nobody/nothing" in seen["error"]["message"]
    upstream.plan = Plan(fault="truncate", fault_at=2)
    seen = await page(SAY)
    assert seen["status"] == "error" and "ended before" in seen["error"]["message"]
    assert text(seen["screen"][1]) == "Hello, " and seen["connections"] == 1


async def test_a_wrong_key_is_told(page: Page) -> None:
    seen = await page(SAY, headers={"Authorization": "Bearer gw-wrong"})
    assert seen["status"] == "error" and "key" in seen["error"]["message"].lower()
    seen = await page(SAY, headers={}, params={"token": "gw-wrong"})
    assert seen["status"] == "error" and "4401" in seen["error"]["message"]
