"""Many greedy streams on one small balance: what is delivered is what is charged, and never more than there was."""

import asyncio
import contextlib
import json
from pathlib import Path

import httpx
import pytest

from tests.harness import GatewayProcess, RedisServer

# $0.01 buys exactly 1,000 output tokens at 10 µ$ each; the demo provider says one token per piece.
CONFIG = {
    "models": {"greedy": {"targets": ["demo/endless"]}, "demo/endless": {"price": {"input": 0, "output": 10}}},
    "tiers": {"default": {"requests": {"limit": 100_000}, "concurrent_streams": 1000}},
}
STREAMS = 50
WANTED = 1_000


async def tokens_received(client: httpx.AsyncClient, url: str) -> int:
    """Pieces of text one stream delivered until it ended by itself; every end must be a regular one."""
    body = {
        "model": "greedy",
        "stream": True,
        "max_tokens": WANTED,
        "messages": [{"role": "user", "content": "Go on."}],
    }
    received = 0
    lines = []
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        if response.status_code == 402:
            return 0
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            lines.append(line)
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                received += sum(1 for choice in choices if choice["delta"].get("content"))
    assert "data: [DONE]" in lines
    return received


@pytest.mark.parametrize("binary", [None, "redis-server"])
async def test_fifty_streams_over_two_gateways_cannot_spend_more_than_a_cent(
    binary: str | None, tmp_path: Path
) -> None:
    with RedisServer(binary) as redis:
        async with contextlib.AsyncExitStack() as stack:
            gateways = [
                await stack.enter_async_context(
                    GatewayProcess(CONFIG, redis_url=redis.url, data_dir=tmp_path / str(number))
                )
                for number in range(2)
            ]
            key = await gateways[0].account(usd="0.01")
            client = await stack.enter_async_context(
                httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=50, trust_env=False)
            )
            counts = await asyncio.gather(
                *(tokens_received(client, gateways[number % 2].base_url) for number in range(STREAMS))
            )
            balance = await gateways[1].settled()
            delivered = sum(counts)
            assert 950 <= delivered <= 1_000
            assert balance["spent"] == delivered * 10
            assert balance["held"] == 0
            assert balance["available"] >= 0
            assert balance["absorbed"] == 0
