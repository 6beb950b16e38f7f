"""Responses that go on without their client: OpenAI's own client, two gateways on one Redis, and a bill for each."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.clients.conftest import PRICE
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream, Usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "up/gpt-upstream"
WORDS = tuple(f"{n} " for n in range(12))
SLOW = Plan(text=WORDS, delay_s=0.05, usage=Usage(input=100, output=50))
COST_MICROUSD = 100 * 1 + 50 * 10
RUNNING = ("queued", "in_progress")


def config_of(provider: Upstream) -> dict[str, Any]:
    up = {"type": "openai", "base_url": provider.openai_url, "api_key": "sk-upstream", "price": PRICE}
    newer = {**up, "type": "openai_responses"}
    return {
        "providers": {"up": up, "newer": newer},
        "tiers": {"default": {"requests": {"limit": 100_000}}},
        "server": {"commit_s": 0.5, "heartbeat_s": 0.2},
        "holds": {"lease_s": 5},
        "responses": {"response_bytes_max": 20_000},
    }


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(provider: Upstream, redis_server: RedisServer) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    config = config_of(provider)
    async with GatewayProcess(config, redis_url=redis_server.url) as one:
        async with GatewayProcess(config, redis_url=redis_server.url) as two:
            yield one, two


class Account:
    """An account of its own for each test, as its clients at both gateways see it."""

    def __init__(self, pair: tuple[GatewayProcess, GatewayProcess], name: str, key: str) -> None:
        self.name = name
        self.key = key
        self._gateway = pair[0]
        self.clients = [AsyncOpenAI(base_url=f"{one.base_url}/v1", api_key=key, max_retries=0) for one in pair]

    async def has_paid(self, cost_microusd: int = COST_MICROUSD) -> None:
        """Once, and nothing is held."""
        balance = await self._gateway.settled(self.name, records=1)
        rows = await self._gateway.usage(self.name)
        assert (len(rows), balance["spent"]) == (1, cost_microusd), rows

    async def raw(self, method: str, path: str, *, at: int = 0, **sent: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=str(self.clients[at].base_url), trust_env=False, timeout=30) as http:
            return await http.request(method, path, headers={"Authorization": f"Bearer {self.key}"}, **sent)


@pytest_asyncio.fixture(loop_scope="module")
async def acme(
    pair: tuple[GatewayProcess, GatewayProcess], request: pytest.FixtureRequest, upstream: Upstream
) -> AsyncIterator[Account]:
    name = f"acme-{abs(hash(request.node.nodeid))}"[:40]
    account = Account(pair, name, await pair[0].account(name))
    yield account
    for client in account.clients:
        await client.close()


async def suspend(gateway: GatewayProcess, account: Account, *, suspended: bool) -> None:
    answer = await gateway.admin.patch(f"/accounts/{account.name}", json={"suspended": suspended})
    assert answer.status_code == 200, answer.text


async def ended(client: AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(25):
        while True:
            found = await client.responses.retrieve(response_id)
            if found.status not in RUNNING:
                return found
            await asyncio.sleep(0.02)


async def begin(client: AsyncOpenAI, **more: Any) -> Any:
    return await client.responses.create(**{"model": MODEL, "input": "Hi", "background": True, **more})


async def leave_at(client: AsyncOpenAI, word: str, **more: Any) -> list[Any]:
    """The events up to one that says a word; then the client hangs up."""
    seen: list[Any] = []
    stream = await begin(client, stream=True, **more)
    async for event in stream:
        seen.append(event)
        if getattr(event, "delta", None) == word:
            break
    await stream.close()
    return seen


async def replayed(client: AsyncOpenAI, response_id: str, **how: Any) -> list[Any]:
    return [event async for event in await client.responses.retrieve(response_id, stream=True, **how)]


async def refused(call: Any) -> tuple[int, str | None, str | None]:
    with pytest.raises(openai.APIStatusError) as raised:
        await call
    return raised.value.status_code, raised.value.code, raised.value.param


@pytest.mark.parametrize("model", [MODEL, "newer/gpt-upstream"])
async def test_a_response_is_made_while_its_client_polls_at_any_gateway(
    upstream: Upstream, acme: Account, model: str
) -> None:
    upstream.plan = SLOW
    one, two = acme.clients
    made = await begin(one, model=model)
    assert (made.status, made.background, made.store, made.output) == ("queued", True, True, [])
    running = await two.responses.retrieve(made.id)
    assert (running.status, running.background, running.output) == ("in_progress", True, [])
    found = await ended(two, made.id)
    assert (found.status, found.output_text, found.created_at) == ("completed", "".join(WORDS), made.created_at)
    assert (await one.responses.retrieve(made.id)).to_dict() == found.to_dict()
    assert "background" not in upstream.requests[0].body
    await acme.has_paid()


async def test_events_come_again_after_the_one_that_was_seen_last(upstream: Upstream, acme: Account) -> None:
    upstream.plan = SLOW
    one, two = acme.clients
    seen = await leave_at(one, "3 ")
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event.response.status for event in seen[:3]] == ["queued", "queued", "in_progress"]
    response_id = seen[0].response.id
    missing, all_of_them = await asyncio.gather(
        replayed(two, response_id, starting_after=seen[-1].sequence_number), replayed(one, response_id)
    )
    numbers = [event.sequence_number for event in (*seen, *missing)]
    assert numbers == list(range(len(numbers))) == [event.sequence_number for event in all_of_them]
    assert [event.to_dict() for event in all_of_them] == [event.to_dict() for event in (*seen, *missing)]
    assert missing[-1].type == "response.completed" and missing[-1].response.output_text == "".join(WORDS)
    assert await two.responses.retrieve(response_id) == missing[-1].response
    assert [event.to_dict() for event in await replayed(two, response_id)] == [e.to_dict() for e in all_of_them]
    assert await replayed(two, response_id, starting_after=numbers[-1]) == []
    await acme.has_paid()


async def test_a_helper_goes_on_with_a_response_elsewhere(upstream: Upstream, acme: Account) -> None:
    upstream.plan = SLOW
    one, two = acme.clients
    seen: list[Any] = []
    async with one.responses.stream(model=MODEL, input="Hi", background=True) as stream:
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta" and event.delta == "3 ":
                break
    async with two.responses.stream(response_id=seen[0].response.id, starting_after=seen[-1].sequence_number) as stream:
        rest = [event async for event in stream]
        whole = await stream.get_final_response()
    assert whole.output_text == "".join(WORDS)
    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == list(range(len(numbers)))
    await acme.has_paid()


async def test_events_of_one_that_nobody_streamed_are_there_too(upstream: Upstream, acme: Account) -> None:
    one, two = acme.clients
    made = await begin(one)
    told = await replayed(two, made.id)
    assert (told[0].type, told[-1].type) == ("response.created", "response.completed")
    assert told[0].response.to_dict() == made.to_dict()


async def test_a_response_is_cancelled_from_elsewhere(upstream: Upstream, acme: Account) -> None:
    upstream.plan = Plan(endless=True, delay_s=0.02)
    one, two = acme.clients
    made = await begin(one)
    reader = asyncio.gather(replayed(two, made.id))
    async with asyncio.timeout(10):
        while not upstream.requests:
            await asyncio.sleep(0.02)
    cancelled = await two.responses.cancel(made.id)
    assert (cancelled.id, cancelled.status) == (made.id, "cancelled")
    again = await one.responses.cancel(made.id)
    assert again.to_dict() == cancelled.to_dict() == (await one.responses.retrieve(made.id)).to_dict()
    [told] = await reader
    assert (told[-1].type, told[-1].response.status) == ("response.incomplete", "cancelled")
    await acme._gateway.settled(acme.name, records=1)
    (row,) = await acme._gateway.usage(acme.name)
    assert (row["record"]["outcome"], row["record"]["reason"]) == ("cancelled", "stopped")


async def test_what_is_over_or_was_waited_for_is_not_cancelled(upstream: Upstream, acme: Account) -> None:
    one, two = acme.clients
    made = await begin(one)
    whole = await ended(one, made.id)
    assert (await two.responses.cancel(made.id)).to_dict() == whole.to_dict()
    waited = await one.responses.create(model=MODEL, input="Hi")
    assert await refused(two.responses.cancel(waited.id)) == (400, "invalid_value", "response_id")
    assert await refused(replayed(two, waited.id)) == (400, "invalid_value", "stream")
    assert await refused(two.responses.cancel("resp_" + "0" * 32)) == (404, "not_found", "response_id")


async def test_one_that_is_deleted_while_it_runs_ends_and_stays_away(upstream: Upstream, acme: Account) -> None:
    upstream.plan = Plan(endless=True, delay_s=0.02)
    one, two = acme.clients
    made = await begin(one)
    await two.responses.delete(made.id)
    await acme._gateway.settled(acme.name, records=1)
    for client in acme.clients:
        assert await refused(client.responses.retrieve(made.id)) == (404, "not_found", "response_id")
        assert await refused(replayed(client, made.id)) == (404, "not_found", "response_id")


async def test_a_conversation_goes_on_from_it_once_it_is_complete(upstream: Upstream, acme: Account) -> None:
    upstream.plan = SLOW
    one, two = acme.clients
    made = await begin(one)
    asked = two.responses.create(model=MODEL, input="So?", previous_response_id=made.id)
    assert await refused(asked) == (400, "invalid_value", "previous_response_id")
    await ended(one, made.id)
    upstream.plan = Plan()
    followed = await begin(two, input="So?", previous_response_id=made.id)
    assert (await ended(one, followed.id)).previous_response_id == made.id
    said = [message["content"] for message in upstream.requests[-1].body["messages"]]
    assert said == ["Hi", "".join(WORDS), "So?"]
    assert [item.type async for item in one.responses.input_items.list(followed.id)] == ["message"]


async def test_what_fails_after_it_was_admitted_is_a_failed_response(upstream: Upstream, acme: Account) -> None:
    upstream.plan = Plan(status=500)
    one, two = acme.clients
    found = await ended(two, (await begin(one)).id)
    assert found.status == "failed" and found.error is not None and found.error.code == "server_error"
    seen: list[Any] = []
    with pytest.raises(openai.APIError):
        async for event in await begin(one, stream=True):
            seen.append(event)
    assert [event.type for event in seen][:2] == ["response.created", "response.queued"]
    assert (await two.responses.retrieve(seen[0].response.id)).status == "failed"


async def test_what_is_not_admitted_is_refused_as_ever(
    upstream: Upstream, pair: tuple[GatewayProcess, GatewayProcess], acme: Account
) -> None:
    one, _ = acme.clients
    for stream in (False, True):
        assert await refused(begin(one, store=False, stream=stream)) == (400, "invalid_value", "background")
        status, code, _ = await refused(begin(one, model="nobody/none", stream=stream))
        assert (status, code) == (404, "model_not_found")
        poor = one.with_options(api_key=await pair[0].account("poor-background", usd="0"))
        assert (await refused(begin(poor, stream=stream)))[:2] == (402, "credits_exhausted")
        large = begin(one, input="word " * 5_000, stream=stream)
        assert await refused(large) == (413, "request_too_large", "background")
    assert upstream.requests == []


async def test_an_answer_too_large_to_store_is_said_to_be_that(upstream: Upstream, acme: Account) -> None:
    upstream.plan = Plan(text=("word " * 5_000,))
    one, two = acme.clients
    found = await ended(two, (await begin(one)).id)
    assert found.status == "failed" and found.error is not None
    assert "larger" in found.error.message and found.output == []


async def test_nobody_else_sees_hears_or_ends_it(
    upstream: Upstream, pair: tuple[GatewayProcess, GatewayProcess], acme: Account
) -> None:
    upstream.plan = SLOW
    one, two = acme.clients
    made = await begin(one)
    stranger = two.with_options(api_key=await pair[0].account("stranger-background"))
    for call in (
        stranger.responses.retrieve(made.id),
        replayed(stranger, made.id),
        stranger.responses.cancel(made.id),
        stranger.responses.delete(made.id),
    ):
        assert await refused(call) == (404, "not_found", "response_id")
    nobody = two.with_options(api_key="gw-nobody")
    assert (await refused(nobody.responses.cancel(made.id)))[0] == 401
    assert (await refused(replayed(nobody, made.id)))[0] == 401
    assert (await ended(one, made.id)).status == "completed"
    await acme.has_paid()


async def test_a_suspended_account_gets_no_more_of_it(
    upstream: Upstream, pair: tuple[GatewayProcess, GatewayProcess], acme: Account
) -> None:
    upstream.plan = Plan(endless=True, delay_s=0.02)
    one, _ = acme.clients
    made = await begin(one)
    await suspend(pair[1], acme, suspended=True)
    await pair[0].settled(acme.name, records=1)
    await suspend(pair[1], acme, suspended=False)
    found = await ended(one, made.id)
    assert found.status == "incomplete" and found.to_dict()["x_gateway"]["reason"] == "access_revoked"


WRONG_QUERIES = [
    ({"stream": "perhaps"}, "stream"),
    ({"stream": "true", "starting_after": "-1"}, "starting_after"),
    ({"stream": "true", "starting_after": "x"}, "starting_after"),
    ({"stream": "true", "starting_after": "²"}, "starting_after"),
    ({"stream": "true", "starting_after": "9" * 30}, "starting_after"),
    ({"stream": "true", "starting_after": ""}, "starting_after"),
    ({"starting_after": "3"}, "starting_after"),
]


@pytest.mark.parametrize(("query", "param"), WRONG_QUERIES)
async def test_a_wrong_query_is_refused_by_name(acme: Account, query: dict[str, str], param: str) -> None:
    made = await begin(acme.clients[0])
    answer = await acme.raw("GET", f"responses/{made.id}", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await acme.raw("POST", "responses/nonsense/cancel")).json()["error"]["param"] == "response_id"


@pytest.mark.parametrize(("ending", "reason"), [("kill", "stream_truncated"), ("terminate", "draining")])
async def test_one_whose_gateway_goes_is_told_as_failed_elsewhere(
    provider: Upstream, upstream: Upstream, redis_server: RedisServer, acme: Account, ending: str, reason: str
) -> None:
    upstream.plan = Plan(text=("Hello", ", ", "world"), fault="stall", fault_at=2)
    config = config_of(provider)
    config["server"]["drain_s"] = 0.5
    async with GatewayProcess(config, redis_url=redis_server.url) as doomed:
        client = AsyncOpenAI(base_url=f"{doomed.base_url}/v1", api_key=acme.key, max_retries=0)
        seen = await leave_at(client, ", ")
        response_id = seen[0].response.id
        getattr(doomed, ending)()
        two = acme.clients[1]
        rest = await acme.raw(
            "GET",
            f"responses/{response_id}",
            at=1,
            params={"stream": "true", "starting_after": str(seen[-1].sequence_number)},
        )
        events = [json.loads(line[6:]) for line in rest.text.splitlines() if line.startswith("data: ")]
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        numbers = [event["sequence_number"] for event in events]
        assert numbers == list(range(seen[-1].sequence_number + 1, seen[-1].sequence_number + 1 + len(numbers)))
        found = await ended(two, response_id)
        noted: Any = found.to_dict()["x_gateway"]
        assert (found.status, noted) == ("failed", {"outcome": "failed", "reason": reason})
        assert (await two.responses.cancel(response_id)).status == "failed"
        await client.close()
    await acme._gateway.settled(acme.name, records=1)
    assert len(await acme._gateway.usage(acme.name)) == 1


async def test_a_response_whose_events_are_too_many_to_keep_is_still_made(
    upstream: Upstream, provider: Upstream, redis_server: RedisServer, acme: Account
) -> None:
    upstream.plan = Plan(text=("word ",) * 60, delay_s=0.02)
    config = {**config_of(provider), "resume": {"bytes_max": 4096}}
    async with GatewayProcess(config, redis_url=redis_server.url) as small:
        async with AsyncOpenAI(base_url=f"{small.base_url}/v1", api_key=acme.key, max_retries=0) as client:
            made = await begin(client)
            told = await replayed(acme.clients[1], made.id)
            assert (told[-1].type, told[-1].response.status) == ("response.completed", "completed")
            found = await client.responses.retrieve(made.id)
            assert found.output_text == "word " * 60 and found == told[-1].response
            assert await refused(replayed(client, made.id)) == (404, "not_found", "stream")


async def test_a_request_too_large_to_store_with_its_answer_is_refused(upstream: Upstream, acme: Account) -> None:
    for stream in (False, True):
        large = begin(acme.clients[0], input="word " * 3_980, stream=stream)
        assert await refused(large) == (413, "request_too_large", "background")
