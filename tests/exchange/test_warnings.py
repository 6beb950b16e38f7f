"""What a provider was not asked for: said in a header of every answer, or refused where the client is strict."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis import Redis

from tests.exchange.fleet import Fleet, Party, provider
from tests.harness import GatewayProcess, RedisServer, free_port
from tests.upstream import Plan, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WARNINGS = "x-gateway-warnings"
HI = [{"role": "user", "content": "Hello"}]
UI = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]

# A request of each protocol that the provider of another format does not get whole, and what is said of it.
LOSSY: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("/v1/chat/completions", {"model": "claude/x", "messages": HI, "seed": 7}, "seed"),
    "completions": ("/v1/completions", {"model": "claude/x", "prompt": "Hello", "seed": 7}, "seed"),
    "messages": ("/v1/messages", {"model": "up/x", "messages": HI, "max_tokens": 9, "top_k": 5}, "top_k"),
    "ui": ("/api/chat", {"model": "up/x", "messages": UI, "topK": 5}, "topK"),
    "sdk4": ("/api/ai/chat-stream", {"model": "claude/x", "messages": HI, "seed": 7}, "seed"),
}
# Formats of the AI SDK have nothing to say whether they stream.
ANSWERS = [(name, {"stream": on}) for name in LOSSY for on in (True, False) if name not in ("ui", "sdk4")]
ANSWERS += [("ui", {}), ("sdk4", {})]
STRICT = {"x_gateway_strict": "true"}


MODELS = {
    "spare": {"targets": ["down/x", "claude/x"]},
    "same": {"targets": ["down/x", "up/x"]},
    "either": {"targets": ["claude/x", "up/x"]},
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Fleet]:
    """One gateway, a provider that speaks both formats, and one that cannot be reached."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        redis = stack.enter_context(RedisServer())
        store = stack.enter_context(Redis.from_url(redis.url))
        config = {
            "providers": {
                "up": provider(upstream),
                "claude": provider(upstream, type="anthropic"),
                "down": provider(upstream, base_url=f"http://127.0.0.1:{free_port()}"),
            },
            "models": MODELS,
            "tiers": {"default": {"requests": {"limit": 1_000_000}, "concurrent_streams": 1_000}},
            "server": {"commit_s": 0.2},
        }
        gateway = GatewayProcess(config, redis_url=redis.url)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        started = Fleet(upstream, store, [gateway])
        stack.push_async_callback(started.client.aclose)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def party(running: Fleet) -> Party:
    """An account with credit, in front of a provider as if it were fresh."""
    running.upstream.plan = Plan(text=("one", " two"), usage=Usage(input=8, output=2))
    running.upstream.requests.clear()
    return await running.party()


async def post(party: Party, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    url = party.fleet.url() + path
    return await party.fleet.client.post(url, json=body, headers=party.headers(**headers))


@pytest.mark.parametrize(("name", "more"), ANSWERS)
async def test_every_answer_names_what_was_dropped(party: Party, name: str, more: dict[str, Any]) -> None:
    path, body, field = LOSSY[name]
    answer = await post(party, path, {**body, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers[WARNINGS] == f"dropped:{field}"


async def test_a_provider_of_the_clients_own_format_is_asked_for_everything(party: Party) -> None:
    path, body, _ = LOSSY["chat"]
    answer = await post(party, path, {**body, "model": "up/x", "x_vendor": [1]})
    assert answer.status_code == 200 and WARNINGS not in answer.headers
    assert party.fleet.upstream.requests[-1].body["x_vendor"] == [1]


async def test_an_unknown_field_is_dropped_towards_another_format_with_a_word_about_it(party: Party) -> None:
    path, body, field = LOSSY["chat"]
    answer = await post(party, path, {**body, "x_vendor": [1]})
    assert answer.headers[WARNINGS] == f"dropped:x_vendor, dropped:{field}"
    assert "x_vendor" not in party.fleet.upstream.requests[-1].body


@pytest.mark.parametrize("name", LOSSY)
async def test_a_strict_client_is_refused_before_anything_is_asked_or_held(party: Party, name: str) -> None:
    path, body, field = LOSSY[name]
    before = await party.settled()
    answer = await post(party, path, body, **STRICT)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert field in error["message"]
    if name != "messages":  # Anthropic's envelope has no place for it but the message
        assert error["param"] == field
    assert not party.fleet.upstream.requests
    assert await party.settled() == before and await party.usage() == []


async def test_a_strict_client_that_loses_nothing_is_answered(party: Party) -> None:
    path, body, _ = LOSSY["messages"]
    answer = await post(party, path, {**body, "top_k": None}, **STRICT)
    assert answer.status_code == 200 and WARNINGS not in answer.headers


async def test_a_strict_client_is_answered_by_the_target_that_is_asked_for_everything(party: Party) -> None:
    path, body, field = LOSSY["chat"]
    lax = await post(party, path, {**body, "model": "either"})
    assert lax.headers[WARNINGS] == f"dropped:{field}"
    strict = await post(party, path, {**body, "model": "either"}, **STRICT)
    assert strict.status_code == 200 and WARNINGS not in strict.headers
    assert party.fleet.upstream.requests[-1].body["seed"] == 7


async def test_a_header_that_says_neither_yes_nor_no_is_refused(party: Party) -> None:
    path, body, _ = LOSSY["chat"]
    answer = await post(party, path, body, x_gateway_strict="maybe")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "x-gateway-strict"


async def test_after_a_failover_the_warnings_are_of_the_target_that_answered(party: Party) -> None:
    path, body, field = LOSSY["chat"]
    spare = await post(party, path, {**body, "model": "spare"})
    assert spare.headers[WARNINGS] == f"dropped:{field}"
    same = await post(party, path, {**body, "model": "same"})
    assert same.status_code == 200 and WARNINGS not in same.headers


async def test_a_status_line_that_goes_out_ahead_of_the_answer_has_them_too(party: Party) -> None:
    path, body, field = LOSSY["chat"]
    party.fleet.upstream.plan = Plan(fault="stall", fault_at=-1)
    request = {**body, "stream": True}
    async with party.fleet.client.stream(
        "POST", party.fleet.url() + path, json=request, headers=party.headers()
    ) as answer:
        assert party.fleet.upstream.stalled == 1
        assert answer.headers.get_list(WARNINGS) == [f"dropped:{field}"]
        party.fleet.upstream.release()
        assert (await answer.aread()).endswith(b"data: [DONE]\n\n")


async def test_a_bound_that_credit_lowered_is_told(running: Fleet, party: Party) -> None:
    poor = await running.party(usd="0.001")
    path, body, field = LOSSY["chat"]
    answer = await post(poor, path, {**body, "max_tokens": 5000})
    assert answer.headers[WARNINGS] == f"lowered:max_tokens, dropped:{field}"
    assert running.upstream.requests[-1].body["max_tokens"] < 5000
    same = await post(await running.party(usd="0.001"), path, {**body, "model": "up/x", "max_tokens": 5000}, **STRICT)
    assert same.status_code == 200 and same.headers[WARNINGS] == "lowered:max_tokens"


async def test_browsers_of_other_origins_may_read_it(party: Party) -> None:
    path, body, _ = LOSSY["ui"]
    answer = await post(party, path, body, origin="https://app.example")
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert WARNINGS in exposed and WARNINGS in answer.headers
