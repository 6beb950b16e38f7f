"""Responses that are stored: OpenAI's own client against two gateways on one Redis, and the provider behind them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.clients.conftest import PRICE
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, ToolCall, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "up/gpt-upstream"
CLAUDE = "claude/claude-upstream"
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
OSLO = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'))
UNKNOWN = "resp_" + "0" * 32


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(provider: Upstream, redis_server: RedisServer) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two gateways that know nothing of each other but their Redis."""
    own = {"api_key": "sk-upstream", "price": PRICE}
    config = {
        "providers": {
            "up": {"type": "openai", "base_url": provider.openai_url, **own},
            "claude": {"type": "anthropic", "base_url": f"{provider.base_url}/v1", **own},
        },
        "tiers": {"default": {"requests": {"limit": 100_000}}},
        "responses": {"response_bytes_max": 20_000, "conversation_bytes_max": 40_000, "account_bytes_max": 200_000},
    }
    async with GatewayProcess(config, redis_url=redis_server.url) as one:
        async with GatewayProcess(config, redis_url=redis_server.url) as other:
            yield one, other


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def key(pair: tuple[GatewayProcess, GatewayProcess]) -> str:
    return await pair[0].account(usd="100")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(pair: tuple[GatewayProcess, GatewayProcess], key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{pair[0].base_url}/v1", api_key=key, max_retries=0) as running:
        yield running


@pytest.fixture
def other(pair: tuple[GatewayProcess, GatewayProcess], client: AsyncOpenAI) -> Iterator[AsyncOpenAI]:
    """The same account at the other gateway."""
    yield client.with_options(base_url=f"{pair[1].base_url}/v1")


async def streamed(client: AsyncOpenAI, said: Any, **more: Any) -> Any:
    async with client.responses.stream(**{"model": MODEL, "input": said, **more}) as stream:
        return await stream.get_final_response()


async def whole(client: AsyncOpenAI, said: Any, **more: Any) -> Any:
    return await client.responses.create(**{"model": MODEL, "input": said, **more})


async def items_of(client: AsyncOpenAI, response_id: str, **how: Any) -> list[Any]:
    return [item async for item in client.responses.input_items.list(response_id, **how)]


async def refused(call: Any) -> tuple[int, str | None, str | None]:
    with pytest.raises(openai.APIStatusError) as raised:
        await call
    return raised.value.status_code, raised.value.code, raised.value.param


def said_to(upstream: Upstream) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in upstream.requests[-1].body["messages"]]


WAYS = pytest.mark.parametrize("ask", [streamed, whole])


@WAYS
async def test_a_response_lives_until_it_is_deleted_on_every_gateway(
    upstream: Upstream, client: AsyncOpenAI, other: AsyncOpenAI, ask: Any
) -> None:
    first = await ask(client, "Hi", metadata={"trace": "1"})
    assert first.store is True and first.previous_response_id is None
    assert (await other.responses.retrieve(first.id)).to_dict() == (await client.responses.retrieve(first.id)).to_dict()
    found = await other.responses.retrieve(first.id)
    assert (found.id, found.status, found.output_text) == (first.id, "completed", "Hello, world!")
    assert found.metadata == {"trace": "1"} and found.usage == first.usage

    upstream.plan = Plan(text=("And ", "you."))
    second = await ask(other, "How are you?", previous_response_id=first.id, instructions="Be brief.")
    assert second.previous_response_id == first.id and second.output_text == "And you."
    assert said_to(upstream) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello, world!"),
        ("user", "How are you?"),
    ]
    third = await ask(client, [{"role": "user", "content": "So?"}], previous_response_id=second.id)
    assert [content for _, content in said_to(upstream)] == ["Hi", "Hello, world!", "How are you?", "And you.", "So?"]

    listed = await items_of(client, third.id)
    assert [(item.type, item.role, item.content[0].text) for item in listed] == [("message", "user", "So?")]
    await other.responses.delete(third.id)
    for gone in (client.responses.retrieve(third.id), client.responses.delete(third.id), items_of(client, third.id)):
        assert await refused(gone) == (404, "not_found", "response_id")
    await client.responses.delete(first.id)
    assert (await client.responses.retrieve(second.id)).id == second.id
    asked = len(upstream.requests)
    missing = (400, "previous_response_not_found", "previous_response_id")
    assert await refused(ask(client, "Hm", previous_response_id=second.id)) == missing
    assert len(upstream.requests) == asked


async def test_a_stored_response_is_the_one_that_was_told(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(reasoning=("Hm", "m"), tool_calls=(OSLO,))
    ask: dict[str, Any] = {"model": MODEL, "input": "Hi", "tools": [TOOL], "stream": True}
    told = [event async for event in await client.responses.create(**ask)][-1]
    assert told.type == "response.completed"
    assert await client.responses.retrieve(told.response.id) == told.response


async def test_each_response_has_an_id_that_nobody_chose(client: AsyncOpenAI, upstream: Upstream) -> None:
    mine = {"x-request-id": "mine"}
    one = await client.responses.with_raw_response.create(model=MODEL, input="Hi", extra_headers=mine)
    two = await whole(client, "Hi", extra_headers=mine)
    assert one.parse().id == f"resp_{one.headers['x-gateway-stream-id']}" != two.id


@WAYS
@pytest.mark.parametrize("model", [MODEL, CLAUDE])
async def test_a_call_is_answered_by_the_id_of_its_response(
    upstream: Upstream, client: AsyncOpenAI, other: AsyncOpenAI, ask: Any, model: str
) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(OSLO,)), Plan(text=("Rain.",)))
    first = await ask(client, "Weather?", model=model, tools=[TOOL])
    call = first.output[1]
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    second = await ask(other, [answer], model=model, tools=[TOOL], previous_response_id=first.id)
    assert second.output_text == "Rain."
    sent = upstream.requests[-1].body["messages"]
    if model == MODEL:
        assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
        assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == call.call_id
    else:
        assert [message["role"] for message in sent] == ["user", "assistant", "user"]
        assert [block["type"] for block in sent[1]["content"]] == ["text", "tool_use"]
    assert [item.type for item in await items_of(other, second.id)] == ["function_call_output"]


@WAYS
async def test_reasoning_goes_back_sealed_to_whom_it_is_of(upstream: Upstream, client: AsyncOpenAI, ask: Any) -> None:
    upstream.queue(Plan(reasoning=("Hm", "m"), signature="c2lnbmVk", tool_calls=(OSLO,)), Plan(text=("Rain.",)))
    how: dict[str, Any] = {"model": CLAUDE, "tools": [TOOL], "reasoning": {"effort": "low"}}
    first = await ask(client, "Weather?", **how)
    answer = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"}
    await ask(client, [answer], previous_response_id=first.id, **how)
    thought, called = upstream.requests[-1].body["messages"][1]["content"]
    assert (thought["thinking"], thought["signature"], called["type"]) == ("Hmm", "c2lnbmVk", "tool_use")


async def test_items_may_be_named_instead_of_sent(upstream: Upstream, client: AsyncOpenAI, other: AsyncOpenAI) -> None:
    upstream.queue(Plan(text=("Let me see.",), tool_calls=(OSLO,)), Plan(text=("Rain.",)), Plan())
    first = await streamed(client, "Weather?", tools=[TOOL])
    asked = await items_of(client, first.id)
    history: list[Any] = [{"type": "item_reference", "id": item.id} for item in (*asked, *first.output)]
    history.append({"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"})
    second = await whole(other, history, tools=[TOOL])
    sent = upstream.requests[-1].body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[0]["content"] == "Weather?" and sent[1]["tool_calls"][0]["id"] == first.output[1].call_id
    assert len(await items_of(client, second.id)) == 4
    await whole(client, "Thanks", previous_response_id=second.id)
    assert [message["role"] for message in upstream.requests[-1].body["messages"]][-2:] == ["assistant", "user"]
    unknown = {"type": "item_reference", "id": "msg_" + "0" * 32 + "0000"}
    assert await refused(whole(client, [unknown])) == (404, "not_found", "input[0]")


async def test_what_was_asked_comes_in_pages(upstream: Upstream, client: AsyncOpenAI) -> None:
    said = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"word {n}"} for n in range(45)]
    made = await whole(client, [*said, {"role": "user", "content": "So?"}])
    page = await client.responses.input_items.list(made.id)
    assert len(page.data) == 20 and page.has_more is True
    newest: Any = page.data[0]
    assert newest.content[0].text == "So?"
    listed = await items_of(client, made.id, order="asc", limit=7)
    assert [item.content[0].text for item in listed] == [*(message["content"] for message in said), "So?"]
    assert len({item.id for item in listed}) == 46
    last = await client.responses.input_items.list(made.id, order="asc", after=listed[-2].id, limit=100)
    assert [item.id for item in last.data] == [listed[-1].id] and last.has_more is False
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"include": ["everything"]}):
        status, code, param = await refused(items_of(client, made.id, **wrong))
        assert (status, code, param) == (400, "invalid_value", next(iter(wrong)))
    assert await refused(items_of(client, made.id, after="msg_x")) == (404, "not_found", "after")


@WAYS
async def test_what_is_not_stored_is_not_there(upstream: Upstream, client: AsyncOpenAI, ask: Any) -> None:
    made = await ask(client, "Hi", store=False)
    assert made.store is False
    assert await refused(client.responses.retrieve(made.id)) == (404, "not_found", "response_id")
    missing = (400, "previous_response_not_found", "previous_response_id")
    assert await refused(ask(client, "Hm", previous_response_id=made.id)) == missing
    assert await refused(ask(client, "Hm", previous_response_id=UNKNOWN)) == missing
    kept = await ask(client, "Hi")
    followed = await ask(client, "Hm", previous_response_id=kept.id, store=False)
    assert (followed.previous_response_id, followed.store) == (kept.id, False)


async def test_nobody_sees_the_responses_of_another_account(
    upstream: Upstream, pair: tuple[GatewayProcess, GatewayProcess], client: AsyncOpenAI
) -> None:
    made = await whole(client, "Hi")
    stranger = client.with_options(api_key=await pair[0].account("stranger"))
    colleague = client.with_options(api_key=await pair[0].account())
    for call in (stranger.responses.retrieve(made.id), stranger.responses.delete(made.id), items_of(stranger, made.id)):
        assert await refused(call) == (404, "not_found", "response_id")
    missing = (400, "previous_response_not_found", "previous_response_id")
    assert await refused(whole(stranger, "Hm", previous_response_id=made.id)) == missing
    reference = {"type": "item_reference", "id": made.output[0].id}
    assert await refused(whole(stranger, [reference])) == (404, "not_found", "input[0]")
    assert (await colleague.responses.retrieve(made.id)).id == made.id
    nobody = client.with_options(api_key="gw-nobody")
    assert (await refused(nobody.responses.retrieve(made.id)))[0] == 401


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_incomplete_response_is_stored_as_one(
    upstream: Upstream, client: AsyncOpenAI, finish: str, reason: str
) -> None:
    upstream.plan = Plan(finish_reason=finish)
    made = await whole(client, "Hi")
    found = await client.responses.retrieve(made.id)
    assert found.status == "incomplete" and found.incomplete_details is not None
    assert found.incomplete_details.reason == reason
    upstream.plan = Plan()
    await whole(client, "Go on", previous_response_id=made.id)
    assert said_to(upstream) == [("user", "Hi"), ("assistant", "Hello, world!"), ("user", "Go on")]


async def test_a_call_that_was_cut_off_is_not_said_again(upstream: Upstream, client: AsyncOpenAI) -> None:
    upstream.plan = Plan(text=("Let me see.",), tool_calls=(OSLO,), finish_reason="length")
    made = await whole(client, "Weather?", tools=[TOOL])
    assert [item.status for item in made.output] == ["completed", "incomplete"]
    upstream.plan = Plan()
    await whole(client, "Never mind", previous_response_id=made.id)
    assert said_to(upstream) == [("user", "Weather?"), ("assistant", "Let me see."), ("user", "Never mind")]


async def test_a_response_that_failed_within_its_stream_is_stored_as_failed(
    upstream: Upstream, client: AsyncOpenAI
) -> None:
    upstream.plan = Plan(fault="error_event", fault_at=2)
    seen: list[Any] = []
    with pytest.raises(openai.APIError):
        async for event in await client.responses.create(model=MODEL, input="Hi", stream=True):
            seen.append(event)
    found = await client.responses.retrieve(seen[0].response.id)
    assert found.status == "failed" and found.error is not None and found.error.code == "server_error"


async def test_what_a_client_saw_before_it_left_is_stored_as_cancelled(
    upstream: Upstream, client: AsyncOpenAI, other: AsyncOpenAI
) -> None:
    upstream.plan = Plan(fault="stall", fault_at=2)
    stream = await client.responses.create(model=MODEL, input="Hi", stream=True)
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta" and event.delta == ", ":
            break
    await stream.close()
    response_id = seen[0].response.id
    async with asyncio.timeout(15):
        while True:
            try:
                found = await other.responses.retrieve(response_id)
                break
            except openai.NotFoundError:
                await asyncio.sleep(0.02)
    assert (found.status, found.output_text) == ("cancelled", "Hello, ")
    upstream.release()
    upstream.plan = Plan()
    await whole(client, "Go on", previous_response_id=response_id)
    assert said_to(upstream) == [("user", "Hi"), ("assistant", "Hello, "), ("user", "Go on")]


async def test_there_are_bounds_to_what_is_stored(upstream: Upstream, client: AsyncOpenAI) -> None:
    large = "word " * 5_000
    assert (await whole(client, large)).store is False
    status, code, param = await refused(whole(client, large, store=True))
    assert (status, code, param) == (413, "request_too_large", "store")
    made = await whole(client, "word " * 3_000)
    for _ in range(2):
        assert made.store is True
        made = await whole(client, "word " * 3_000, previous_response_id=made.id)
    refusal = await refused(whole(client, "Hm", previous_response_id=made.id))
    assert refusal == (413, "request_too_large", "previous_response_id")
    oldest = made
    for _ in range(14):
        made = await whole(client, "word " * 3_000)
    assert await refused(client.responses.retrieve(oldest.id)) == (404, "not_found", "response_id")
    assert (await client.responses.retrieve(made.id)).id == made.id


WRONG_BODIES: list[tuple[dict[str, Any], int, str, str]] = [
    ({"previous_response_id": "'; DROP"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": ""}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": "bytes"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": f"<{UNKNOWN}"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": 7}, 400, "invalid_value", "previous_response_id"),
    ({"store": "yes"}, 400, "invalid_value", "store"),
    ({"conversation": "conv_1"}, 400, "unsupported_value", "conversation"),
    ({"conversation": "conv_1", "previous_response_id": UNKNOWN}, 400, "invalid_value", "conversation"),
    ({"background": True, "store": False}, 400, "invalid_value", "background"),
    ({"background": "yes"}, 400, "invalid_value", "background"),
    ({"input": [{"type": "item_reference", "id": "resp_1"}]}, 404, "not_found", "input[0]"),
    ({"input": [{"type": "item_reference", "id": 5}]}, 400, "invalid_value", "input[0].id"),
]


@pytest.mark.parametrize(
    ("asked", "status", "code", "param"), WRONG_BODIES, ids=[str(row[0])[:50] for row in WRONG_BODIES]
)
async def test_a_wrong_body_is_refused_by_name(
    upstream: Upstream, client: AsyncOpenAI, asked: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert await refused(client.responses.create(**{"model": MODEL, "input": "Hi", **asked})) == (status, code, param)
    assert upstream.requests == []


WRONG_ADDRESSES = [
    ("GET", "/v1/responses/nonsense", 400, "response_id"),
    ("DELETE", "/v1/responses/bytes", 400, "response_id"),
    ("GET", "/v1/responses/resp_%00", 400, "response_id"),
    ("GET", f"/v1/responses/resp_{'a' * 100}", 400, "response_id"),
    ("GET", f"/v1/responses/{UNKNOWN}", 404, "response_id"),
    ("GET", f"/v1/responses/{UNKNOWN}/input_items", 404, "response_id"),
    ("DELETE", f"/v1/responses/{UNKNOWN}", 404, "response_id"),
    ("GET", f"/v1/responses/{UNKNOWN}?stream=true", 404, "response_id"),
    ("POST", f"/v1/responses/{UNKNOWN}/cancel", 404, "response_id"),
    ("POST", "/v1/responses/nonsense/cancel", 400, "response_id"),
    ("GET", f"/v1/responses/{UNKNOWN}/cancel", 405, None),
    ("GET", f"/v1/responses/{UNKNOWN}?stream=maybe", 400, "stream"),
    ("GET", f"/v1/responses/{UNKNOWN}?starting_after=3", 400, "starting_after"),
    ("GET", f"/v1/responses/{UNKNOWN}?include[]=everything", 400, "include"),
    ("POST", f"/v1/responses/{UNKNOWN}", 405, None),
    ("GET", f"/v1/responses/{UNKNOWN}/nonsense", 404, None),
]


@pytest.mark.parametrize(("method", "path", "status", "param"), WRONG_ADDRESSES)
async def test_a_wrong_address_is_refused_in_the_formats_envelope(
    pair: tuple[GatewayProcess, GatewayProcess], key: str, method: str, path: str, status: int, param: str | None
) -> None:
    async with httpx.AsyncClient(trust_env=False) as plain:
        answer = await plain.request(method, pair[0].base_url + path, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param and answer.json()["error"]["type"] == "invalid_request_error"
