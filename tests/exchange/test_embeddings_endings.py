"""Every way a request for embeddings can end. Each is settled exactly once, and what brought nothing costs nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.harness import GatewayProcess
from tests.upstream_embeddings import EmbeddingsPlan, EmbeddingsUpstream

# The price book's: 0.02 USD per million tokens.
BODY: dict[str, Any] = {"model": "up/text-embedding-3-small", "input": ["Hello", "you"]}


class Stage:
    """A provider, a gateway in front of it, and one funded account whose tier runs one request at a time."""

    def __init__(self, upstream: EmbeddingsUpstream, gateway: GatewayProcess, key: str) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.client = httpx.AsyncClient(
            base_url=gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False
        )

    async def ask(self, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/embeddings", json={**BODY, **more})

    async def ended(self, outcome: str, reason: str = "") -> dict[str, Any]:
        """The one record; everything it had taken is back, its slot as well."""
        balance = await self.gateway.settled(records=1)
        rows = await self.gateway.usage()
        assert [row["outcome"] for row in rows] == [outcome]
        record: dict[str, Any] = rows[0]["record"]
        assert record.get("reason", "") == reason
        assert balance["spent"] == int(rows[0]["charged_usd"].replace(".", ""))
        assert balance["granted"] == balance["available"] + balance["spent"]
        self.upstream.plan = EmbeddingsPlan()
        assert (await self.ask()).status_code == 200
        return {**record, "charged": balance["spent"]}


@contextlib.asynccontextmanager
async def staged(*, usd: str = "1", server: dict[str, Any] | None = None, **tier: Any) -> AsyncIterator[Stage]:
    async with EmbeddingsUpstream() as upstream:
        provider = {
            "type": "openai",
            "base_url": upstream.url,
            "api_key": "sk-upstream",
            "price_book": "openai",
            "timeouts": {"first_event_s": 1, "connect_s": 2},
        }
        config = {
            "providers": {"up": provider, "gone": {**provider, "base_url": "http://127.0.0.1:9/v1"}},
            "models": {"spare": {"targets": ["gone/text-embedding-3-small", "up/text-embedding-3-small"]}},
            "tiers": {"default": {"requests": {"limit": 1000}, "concurrent_streams": 1, **tier}},
            "server": {"drain_s": 1, **(server or {})},
        }
        async with GatewayProcess(config) as gateway:
            stage = Stage(upstream, gateway, await gateway.account(usd=usd))
            try:
                yield stage
            finally:
                await stage.client.aclose()


async def test_complete_is_charged_by_the_providers_figure() -> None:
    async with staged() as stage:
        stage.upstream.plan = EmbeddingsPlan(tokens=1000)
        answer = await stage.ask()
        assert answer.json()["usage"]["prompt_tokens"] == 1000
        assert answer.headers["x-gateway-stream-id"] and answer.headers["x-ratelimit-remaining-requests"] == "999"
        record = await stage.ended("complete")
        assert record["charged"] == 20
        assert (record["input_tokens"], record.get("output_tokens", 0)) == (1000, 0)
        assert record["protocol"] == "openai_embeddings" and not record.get("estimated")


async def test_a_provider_that_says_nothing_of_usage_is_charged_by_our_count() -> None:
    async with staged() as stage:
        stage.upstream.plan = EmbeddingsPlan(forgets=("usage", "index"))
        assert (await stage.ask(input=["Hello"] * 100)).json()["usage"]["prompt_tokens"] == 100
        record = await stage.ended("complete")
        assert (record["input_tokens"], record["charged"], record["estimated"]) == (100, 2, True)


@pytest.mark.parametrize(
    ("plan", "status", "reason"),
    [
        ({"status": 500}, 502, "provider_unavailable"),
        ({"status": 429}, 429, "provider_rate_limited"),
        ({"status": 400}, 400, "provider_rejected"),
        ({"body": b"<html>"}, 502, "provider_protocol_error"),
        ({"body": b'{"data":[{"embedding":[1]}]}'}, 502, "provider_protocol_error"),
        ({"body": b'{"data":[{"embedding":"***"},{"embedding":[1]}]}'}, 502, "provider_protocol_error"),
        ({"breaks": True}, 502, "provider_unavailable"),
        ({"stalls": True}, 504, "provider_timeout"),
    ],
)
async def test_what_fails_costs_nothing_and_is_told_as_an_error(plan: dict[str, Any], status: int, reason: str) -> None:
    async with staged() as stage:
        stage.upstream.plan = EmbeddingsPlan(**plan)
        answer = await stage.ask()
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["code"] == reason
        assert (await stage.ended("failed", reason))["charged"] == 0


async def test_another_target_is_tried_where_the_first_is_away() -> None:
    async with staged() as stage:
        assert (await stage.ask(model="spare")).status_code == 200
        record = await stage.ended("complete")
        assert (record["target"], record["attempts"]) == ("up/text-embedding-3-small", 2)


async def test_a_client_that_leaves_pays_for_what_was_read() -> None:
    async with staged() as stage:
        stage.upstream.plan = EmbeddingsPlan(stalls=True)
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(stage.ask(input=["Hello"] * 100))
            async with asyncio.timeout(5):
                await stage.upstream.is_asked.wait()
            leaving.cancel()
        record = await stage.ended("cancelled", "client_left")
        assert (record["charged"], record["estimated"]) == (2, True)
        assert stage.upstream.aborted == 1


async def test_a_drain_ends_it_with_an_error() -> None:
    async with staged() as stage:
        stage.upstream.plan = EmbeddingsPlan(stalls=True)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(stage.ask())
            async with asyncio.timeout(5):
                await stage.upstream.is_asked.wait()
            stage.gateway.terminate()
        answer = waiting.result()
        assert answer.status_code in (503, 504)
        assert await stage.gateway.exited() == 0


async def test_what_the_account_cannot_pay_is_not_asked_for() -> None:
    async with staged(usd="0.00001") as stage:
        answer = await stage.ask(input=["Hello"] * 1000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "credits_exhausted")
        assert stage.upstream.bodies == []
        assert (await stage.gateway.balance())["available"] == 10


async def test_more_than_was_held_is_taken_where_the_provider_counts_more() -> None:
    async with staged(usd="0.00001") as stage:
        stage.upstream.plan = EmbeddingsPlan(tokens=450)
        assert (await stage.ask()).status_code == 200
        balance = await stage.gateway.settled(records=1)
        assert (balance["spent"], balance["available"]) == (9, 1)


async def test_the_vectors_are_given_even_where_their_true_price_cannot_be_paid() -> None:
    async with staged(usd="0.00001") as stage:
        stage.upstream.plan = EmbeddingsPlan(tokens=100_000)
        answer = (await stage.ask()).json()
        assert len(answer["data"]) == 2 and answer["x_gateway"]["reason"] == "credits_exhausted"
        balance = await stage.gateway.settled(records=1)
        assert (balance["available"], balance["held"]) == (0, 0)


async def test_token_limits_count_the_input() -> None:
    async with staged(tokens={"limit": 150, "period_s": 3600}) as stage:
        stage.upstream.plan = EmbeddingsPlan(tokens=100)
        assert (await stage.ask(input=["Hello"] * 100)).status_code == 200
        await stage.gateway.settled(records=1)
        refused = await stage.ask(input=["Hello"] * 100)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert len(stage.upstream.bodies) == 1


async def test_a_downgraded_account_keeps_its_embeddings_model() -> None:
    flow = {"identical_prompts": 1, "identical_action": "downgrade", "downgrade_to": "demo/fast", "downgrade_s": 600}
    async with staged(flow=flow) as stage:
        for _ in range(3):
            assert (await stage.ask()).status_code == 200
        assert {row["record"]["target"] for row in await stage.gateway.usage()} == {"up/text-embedding-3-small"}
