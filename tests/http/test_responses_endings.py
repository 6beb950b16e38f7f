"""What becomes of a stored response when its stream, its store or its time ends, and where nothing is stored."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest
from jose import jwt

from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

RESPONSES = "/v1/responses"
SECRET = "a secret that is long enough to be one"
UNKNOWN = "resp_" + "0" * 32


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(api_key="sk-upstream") as running:
        yield running
        running.release()


def config_of(upstream: Upstream, *, responses: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    own = {"type": "openai", "base_url": upstream.openai_url, "api_key": "sk-upstream"}
    price = {"input": 0, "output": 10}
    return {
        "providers": {
            "up": {**own, "price": price},
            "slow": {**own, "price": price, "on_disconnect": "drain", "disconnect_charge": "delivered"},
        },
        "responses": responses or {},
        **more,
    }


def client_of(gateway: GatewayProcess, token: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=gateway.base_url, headers=headers, timeout=30, trust_env=False)


def ask(said: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"model": "up/any", "input": said, **more}


async def told(lines: AsyncIterator[str]) -> AsyncGenerator[Any, None]:
    async for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


async def appears(client: httpx.AsyncClient, response_id: str, status: int = 200) -> Any:
    """Wait until asking for a response is answered so."""
    async with asyncio.timeout(20):
        while True:
            answer = await client.get(f"{RESPONSES}/{response_id}")
            if answer.status_code == status:
                return answer.json()
            await asyncio.sleep(0.02)


async def leave_after(client: httpx.AsyncClient, word: str, **more: Any) -> str:
    """Stream an answer and hang up at a word; returns the response's id."""
    async with client.stream("POST", RESPONSES, json=ask(stream=True, **more)) as answer:
        stream_id = answer.headers["x-gateway-stream-id"]
        async with contextlib.aclosing(told(answer.aiter_lines())) as events:
            async for event in events:
                if event.get("delta") == word:
                    break
    return f"resp_{stream_id}"


async def test_an_answer_that_is_read_on_unseen_is_stored_as_far_as_it_was_seen(upstream: Upstream) -> None:
    words = tuple(f"{n} " for n in range(60))
    async with GatewayProcess(config_of(upstream)) as gateway:
        async with client_of(gateway, await gateway.account()) as client:
            upstream.plan = Plan(text=words, delay_s=0.05)
            response_id = await leave_after(client, "1 ", model="slow/any")
            found = await appears(client, response_id)
            assert upstream.requests[0].is_complete
            said = found["output"][0]["content"][0]["text"]
            assert found["status"] == "cancelled"
            assert said.startswith("0 1 ") and "".join(words).startswith(said) and "59" not in said
            await gateway.settled(records=1)
            (row,) = await gateway.usage()
            assert row["record"]["output_tokens"] < 60


async def test_a_stopped_answer_is_stored_as_incomplete(upstream: Upstream) -> None:
    async with GatewayProcess(config_of(upstream)) as gateway:
        async with client_of(gateway, await gateway.account()) as client:
            upstream.plan = Plan(endless=True, delay_s=0.01)
            last: Any = None
            async with client.stream("POST", RESPONSES, json=ask(stream=True)) as answer:
                stream_id = answer.headers["x-gateway-stream-id"]
                async for event in told(answer.aiter_lines()):
                    if last is None:
                        await client.post(f"/v1/streams/{stream_id}/stop")
                    last = event
            assert last["type"] == "response.incomplete"
            found = (await client.get(f"{RESPONSES}/resp_{stream_id}")).json()
            assert found == last["response"] and found["x_gateway"]["reason"] == "stopped"


async def test_an_answer_goes_out_although_the_store_has_gone(upstream: Upstream) -> None:
    with RedisServer() as redis:
        async with GatewayProcess(config_of(upstream), redis_url=redis.url) as gateway:
            async with client_of(gateway, await gateway.account()) as client:
                first = (await client.post(RESPONSES, json=ask())).json()
                upstream.plan = Plan(fault="stall", fault_at=2)
                async with client.stream("POST", RESPONSES, json=ask(stream=True)) as answer:
                    events = told(answer.aiter_lines())
                    async for event in events:
                        if event.get("delta") == ", ":
                            break
                    redis.kill()
                    upstream.release()
                    last = [event async for event in events][-1]
                assert (last["type"], last["response"]["status"]) == ("response.completed", "completed")
                assert await gateway.metric("gateway_responses_unkept_total") == 1
                for away in (
                    await client.get(f"{RESPONSES}/{first['id']}"),
                    await client.delete(f"{RESPONSES}/{first['id']}"),
                    await client.post(RESPONSES, json=ask(previous_response_id=first["id"])),
                ):
                    assert away.status_code == 503 and "retry-after" in away.headers, away.text
                redis.start()
                await appears(client, first["id"])
                missing = await client.get(f"{RESPONSES}/{last['response']['id']}")
                assert missing.status_code == 404


async def test_a_response_goes_after_its_time(upstream: Upstream) -> None:
    async with GatewayProcess(config_of(upstream, responses={"ttl_s": 1})) as gateway:
        async with client_of(gateway, await gateway.account()) as client:
            first = (await client.post(RESPONSES, json=ask())).json()
            await appears(client, first["id"], 404)
            again = await client.post(RESPONSES, json=ask(previous_response_id=first["id"]))
            assert (again.status_code, again.json()["error"]["code"]) == (400, "previous_response_not_found")


async def test_where_storing_is_off_nothing_is_stored_and_all_else_works(upstream: Upstream) -> None:
    async with GatewayProcess(config_of(upstream, responses={"store": False})) as gateway:
        async with client_of(gateway, await gateway.account()) as client:
            made = (await client.post(RESPONSES, json=ask(store=True))).json()
            assert (made["store"], made["status"]) == (False, "completed")
            for path in (f"{RESPONSES}/{made['id']}", f"{RESPONSES}/{made['id']}/input_items"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert (await client.delete(f"{RESPONSES}/{made['id']}")).status_code == 404
            again = await client.post(RESPONSES, json=ask(previous_response_id=made["id"]))
            assert (again.status_code, again.json()["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_token_sees_the_responses_of_its_own_subject(upstream: Upstream) -> None:
    trusted = {"issuer": "https://issuer.example/", "audience": ["gateway"], "secret": SECRET}
    async with GatewayProcess(config_of(upstream, jwt=trusted)) as gateway:
        key = await gateway.account()

        def token(subject: str) -> str:
            claims = {"iss": trusted["issuer"], "aud": "gateway", "account": "acme", "exp": int(time.time()) + 600}
            return str(jwt.encode({**claims, "sub": subject}, SECRET, algorithm="HS256"))

        async with (
            client_of(gateway, token("anna")) as anna,
            client_of(gateway, token("bert")) as bert,
            client_of(gateway, key) as operator,
        ):
            made = (await anna.post(RESPONSES, json=ask())).json()
            assert (await bert.get(f"{RESPONSES}/{made['id']}")).status_code == 404
            assert (await bert.delete(f"{RESPONSES}/{made['id']}")).status_code == 404
            taken = await bert.post(RESPONSES, json=ask(previous_response_id=made["id"]))
            assert (taken.status_code, taken.json()["error"]["code"]) == (400, "previous_response_not_found")
            assert (await operator.get(f"{RESPONSES}/{made['id']}")).json() == made
            followed = await anna.post(RESPONSES, json=ask("More", previous_response_id=made["id"]))
            assert followed.json()["previous_response_id"] == made["id"]


async def test_what_came_before_is_counted_and_paid_as_input(upstream: Upstream) -> None:
    tiers = {"default": {"tokens_per_request": 60}}
    async with GatewayProcess(config_of(upstream, tiers=tiers)) as gateway:
        async with client_of(gateway, await gateway.account()) as client:
            upstream.plan = Plan(text=tuple(f"word{n} " for n in range(12)))
            first = (await client.post(RESPONSES, json=ask("one two three", max_output_tokens=20))).json()
            asked = len(upstream.requests)
            for _ in range(4):
                answer = await client.post(
                    RESPONSES, json=ask("Go on", previous_response_id=first["id"], max_output_tokens=20)
                )
                if answer.status_code != 200:
                    break
                first = answer.json()
            assert answer.json()["error"]["code"] == "tokens_per_request_exceeded", answer.text
            assert len(upstream.requests) > asked


async def test_one_in_the_background_outlives_a_short_absence_of_the_store(upstream: Upstream) -> None:
    with RedisServer() as redis:
        async with GatewayProcess(config_of(upstream), redis_url=redis.url) as gateway:
            async with client_of(gateway, await gateway.account()) as client:
                upstream.plan = Plan(fault="stall", fault_at=2)
                made = (await client.post(RESPONSES, json=ask(background=True))).json()
                path = f"{RESPONSES}/{made['id']}"
                async with asyncio.timeout(20):
                    while not upstream.requests:
                        await asyncio.sleep(0.02)
                redis.kill()
                upstream.release()
                assert (await client.get(path)).status_code == 503
                redis.start()
                found: Any = None
                async with asyncio.timeout(20):
                    while found is None or found["status"] == "in_progress":
                        found = await appears(client, made["id"])
                        await asyncio.sleep(0.02)
                assert found["status"] == "completed"
                async with client.stream("GET", path, params={"stream": "true"}) as answer:
                    last = [event async for event in told(answer.aiter_lines())][-1]
                assert (last["type"], last["response"]) == ("response.completed", found)
                await gateway.settled(records=1)
                assert len(await gateway.usage()) == 1
