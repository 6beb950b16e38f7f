"""Hedged requests over real sockets: one answer, one bill, a connection that is closed, and what the operator sees."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

STALLS = Plan(text=(" late",), fault="stall", fault_at=-1)
INPUT_TOKENS = 8  # "Hello", by the gateway's count


class Stage:
    """Three providers, the second dearer, the third of a kind that bills whole answers; any is late after 0.2 s."""

    def __init__(self, upstream: Upstream, gateway: GatewayProcess) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.account = ""

    async def body(self, model: str, *, stream: bool = True) -> tuple[httpx.AsyncClient, dict[str, Any]]:
        """A new account's client, and what it sends."""
        self.account = f"a{uuid.uuid4().hex[:12]}"
        key = await self.gateway.account(self.account)
        client = httpx.AsyncClient(
            base_url=self.gateway.base_url, timeout=30, trust_env=False, headers={"Authorization": f"Bearer {key}"}
        )
        messages = [{"role": "user", "content": "Hello"}]
        return client, {"model": model, "stream": stream, "max_tokens": 10, "messages": messages}

    async def ask(self, model: str, *, stream: bool = True) -> httpx.Response:
        """One request of a new account."""
        client, body = await self.body(model, stream=stream)
        async with client:
            return await client.post("/v1/chat/completions", json=body)

    async def ask_and_leave(self, model: str) -> None:
        """One whose client goes while two targets are silent."""
        client, body = await self.body(model)
        asking = asyncio.gather(client.post("/v1/chat/completions", json=body))
        await self.upstream.until(lambda upstream: upstream.stalled == 2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await client.aclose()

    async def record(self) -> tuple[dict[str, Any], int]:
        """The last account's one record, and what it spent."""
        spent = (await self.gateway.settled(self.account, records=1))["spent"]
        (row,) = await self.gateway.usage(self.account)
        return {**row["record"], "outcome": row["outcome"]}, spent


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Upstream() as upstream:
        for model in ("late", "also-late"):
            upstream.for_model(model, STALLS)
        upstream.for_model("well", Plan(text=(" well",)))
        upstream.for_model("short", Plan(text=(" one", " two", " three"), fault="truncate", fault_at=2))
        shared = {"type": "openai", "base_url": upstream.openai_url, "api_key": "k", "timeouts": {"first_event_s": 2}}
        providers = {
            "one": {**shared, "price": {"input": 1, "output": 10}},
            "two": {**shared, "price": {"input": 2, "output": 20}},
            "drained": {**shared, "price": {"input": 3, "output": 30}, "on_disconnect": "drain"},
        }
        hedge = {"percentile": 95, "at_least_ms": 50}
        models = {
            "fast": {"targets": ["two/late", "one/well"], "hedge": hedge},
            "slow": {"targets": ["one/late", "two/also-late"], "hedge": hedge},
            "billed": {"targets": ["one/late", "drained/also-late"], "hedge": hedge},
        }
        config = {"providers": providers, "models": models, "routing": {"retries": 0}}
        async with GatewayProcess(config) as gateway:
            yield Stage(upstream, gateway)


async def test_the_quick_one_answers_alone_and_the_late_one_is_the_operators(stage: Stage) -> None:
    aborted = stage.upstream.aborted
    answer = await stage.ask("fast")
    assert answer.text.count(" well") == 1 and " late" not in answer.text and answer.text.endswith("[DONE]\n\n")
    record, spent = await stage.record()
    assert (record["outcome"], record["target"], record["attempts"]) == ("complete", "one/well", 2)
    (lost,) = record["failed"]
    assert (lost["target"], lost["code"], lost["status"]) == ("two/late", "hedged_away", None)
    assert (lost["input_tokens"], lost["output_tokens"], lost["cost"]) == (INPUT_TOKENS, 0, 2 * INPUT_TOKENS)
    assert lost["took_ms"] > 0
    assert spent == record["cost"] == record["input_tokens"] + 10 * record["output_tokens"]
    await stage.upstream.until(lambda upstream: upstream.stalled == 0)
    assert stage.upstream.aborted == aborted + 1
    lines = [json.loads(line) for line in stage.gateway.log.read_text().splitlines() if record["request_id"] in line]
    (line,) = [line for line in lines if line["event"] == "attempt_failed"]
    assert (line["code"], line["input_tokens"], line["cost_usd"]) == ("hedged_away", INPUT_TOKENS, "0.000016")
    assert await stage.gateway.metric("gateway_lost_microusd_total") >= 2 * INPUT_TOKENS


async def test_a_client_that_leaves_two_pays_for_one(stage: Stage) -> None:
    await stage.ask_and_leave("slow")
    record, spent = await stage.record()
    assert (record["outcome"], record["target"], record["attempts"]) == ("cancelled", "one/late", 2)
    assert [(it["target"], it["code"], it["cost"]) for it in record["failed"]] == [
        ("two/also-late", "abandoned", 2 * INPUT_TOKENS)
    ]
    assert spent == INPUT_TOKENS
    await stage.upstream.until(lambda upstream: upstream.stalled == 0)


async def test_of_two_that_a_client_leaves_the_one_that_bills_anyway_is_read_to_its_end(stage: Stage) -> None:
    await stage.ask_and_leave("billed")
    await stage.upstream.until(lambda upstream: upstream.stalled == 1)
    stage.upstream.release()
    record, spent = await stage.record()
    assert (record["outcome"], record["target"], record["attempts"]) == ("cancelled", "drained/also-late", 2)
    assert [(it["target"], it["code"]) for it in record["failed"]] == [("one/late", "abandoned")]
    assert spent == record["cost"] == 3 * record["input_tokens"] + 30 * record["output_tokens"] > 0
    await stage.upstream.until(lambda upstream: upstream.stalled == 0)


async def test_an_answer_that_broke_off_unseen_is_the_operators(stage: Stage) -> None:
    answer = await stage.ask("two/short", stream=False)
    assert answer.json()["error"]["code"] == "stream_truncated"
    record, spent = await stage.record()
    assert (record["outcome"], record.get("attempts", 1), spent) == ("truncated", 1, 0)
    (lost,) = record["failed"]
    assert (lost["target"], lost["code"], lost["output_tokens"]) == ("two/short", "stream_truncated", 2)
    assert lost["cost"] == 2 * lost["input_tokens"] + 20 * lost["output_tokens"]
