"""What all gateways together may ask of a deployment: never more of it, the next where it is full, and a true wait."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

ASKED = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}


@contextlib.asynccontextmanager
async def replicas(upstream: Upstream, *targets: Any) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    provider = {"type": "openai", "base_url": upstream.openai_url, "api_key": "k", "price": {"input": 1, "output": 1}}
    config = {"providers": {"one": provider, "two": provider}, "models": {"fast": {"targets": list(targets)}}}
    with RedisServer() as redis:
        async with (
            GatewayProcess(config, redis_url=redis.url) as first,
            GatewayProcess(config, redis_url=redis.url) as second,
        ):
            yield first, second


def limited(model: str, **capacity: int) -> dict[str, Any]:
    return {"model": model, "capacity": capacity}


async def ask(
    gateways: tuple[GatewayProcess, GatewayProcess], count: int, **asked: Any
) -> tuple[GatewayProcess, list[httpx.Response]]:
    key = await gateways[0].account()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as client:
        calls = [
            client.post(f"{gateways[number % 2].base_url}/v1/chat/completions", json={**ASKED, **asked})
            for number in range(count)
        ]
        return gateways[0], list(await asyncio.gather(*calls))


async def test_requests_per_minute_are_exact_over_replicas_and_the_rest_is_told_how_long_to_wait() -> None:
    async with Upstream() as upstream, replicas(upstream, limited("one/gpt", requests_per_minute=7)) as gateways:
        gateway, answers = await ask(gateways, 30)
        assert Counter(answer.status_code for answer in answers) == {200: 7, 429: 23}
        assert len(upstream.requests) == 7
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "provider_rate_limited"
        assert 50 <= int(refused.headers["retry-after"]) <= 61, "any minute, and not one that fills up meanwhile"
        assert (await gateway.settled())["held"] == 0


async def test_a_full_deployment_is_passed_over() -> None:
    async with (
        Upstream() as upstream,
        replicas(upstream, limited("one/gpt", requests_per_minute=4), "two/gpt") as gateways,
    ):
        gateway, answers = await ask(gateways, 12)
        assert all(answer.status_code == 200 for answer in answers)
        await gateway.settled(records=12)
        rows = await gateway.usage()
        assert Counter(row["record"]["target"] for row in rows) == {"one/gpt": 4, "two/gpt": 8}
        assert all(row["record"].get("attempts", 1) == 1 for row in rows)


async def test_tokens_are_taken_as_an_estimate_and_what_was_not_used_comes_back() -> None:
    async with Upstream() as upstream, replicas(upstream, limited("one/gpt", tokens_per_minute=1000)) as gateways:
        upstream.plan = Plan(text=("Hi",))
        for _ in range(3):  # each is thought to use more than half of the minute
            _, (answer,) = await ask(gateways, 1, max_tokens=600)
            assert answer.status_code == 200, answer.text
            await gateways[0].settled()
        long = [{"role": "user", "content": "word " * 2000}]
        _, (never,) = await ask(gateways, 1, messages=long)
        assert (never.status_code, "retry-after" in never.headers) == (429, False)


async def test_so_many_run_at_once_and_a_place_is_free_again_when_one_ends() -> None:
    async with Upstream() as upstream, replicas(upstream, limited("one/gpt", streams=2)) as gateways:
        upstream.plan = Plan(text=("Hi",), delay_s=0.3)
        gateway, answers = await ask(gateways, 6)
        assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 4}
        await gateway.settled()
        async with asyncio.timeout(15):
            while (await ask(gateways, 1))[1][0].status_code != 200:
                await asyncio.sleep(0.05)
