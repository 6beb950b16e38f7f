"""What happens to money when a part of the system is gone: Redis, a gateway, or hundreds of clients at once."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

OUTPUT_PRICE = 10


def config_of(upstream: Upstream, **holds: float) -> dict[str, Any]:
    return {
        "providers": {
            "up": {
                "type": "openai",
                "base_url": upstream.openai_url,
                "api_key": "sk-upstream",
                "price": {"input": 0, "output": OUTPUT_PRICE},
            }
        },
        "tiers": {"default": {"requests": {"limit": 100_000}, "concurrent_streams": 2000}},
        "holds": holds,
    }


def client_of(key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30, limits=limits, trust_env=False)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "up/any", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}


async def frames(client: httpx.AsyncClient, url: str) -> list[Any]:
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body()) as response:
        assert response.status_code == 200, await response.aread()
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def pieces(received: list[Any]) -> int:
    chunks = [frame for frame in received if isinstance(frame, dict)]
    return sum(1 for chunk in chunks for choice in chunk.get("choices", ()) if choice["delta"].get("content"))


async def test_without_redis_new_requests_are_refused_and_running_ones_end_with_their_hold() -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(text=(" hello",), endless=True, delay_s=0.01)
        with RedisServer() as redis:
            async with GatewayProcess(config_of(upstream, lease_s=3), redis_url=redis.url) as gateway:
                key = await gateway.account(usd="1")
                async with client_of(key) as client:
                    running = asyncio.get_running_loop().create_task(frames(client, gateway.base_url))
                    await upstream.until(lambda up: up.open_streams == 1)
                    redis.kill()
                    refused = await client.post(f"{gateway.base_url}/v1/chat/completions", json=body())
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "credit_store_unavailable"
                    assert (await client.get(f"{gateway.base_url}/readyz")).status_code == 503
                    received = await running
                    assert received[-2]["x_gateway"]["reason"] == "credit_store_unavailable"
                    redis.start()
                    while await gateway.metric("gateway_settlements_pending"):
                        await asyncio.sleep(0.02)
                    balance = await gateway.settled(records=1)
                    # A reaper may have been first; then the settlement corrected what it had posted.
                    assert [row["outcome"] for row in await gateway.usage()].count("cut") == 1
                    assert balance["spent"] == pieces(received) * OUTPUT_PRICE
                    assert balance["absorbed"] == 0


async def test_redis_restarting_within_a_lease_is_not_noticed_by_a_stream() -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(text=tuple(" hello" for _ in range(150)), delay_s=0.01)
        with RedisServer() as redis:
            async with GatewayProcess(config_of(upstream), redis_url=redis.url) as gateway:
                key = await gateway.account(usd="1")
                async with client_of(key) as client:
                    running = asyncio.get_running_loop().create_task(frames(client, gateway.base_url))
                    await upstream.until(lambda up: up.open_streams == 1)
                    redis.kill()
                    redis.start()
                    received = await running
                    assert received[-1] == "data: [DONE]"
                    balance = await gateway.settled(records=1)
                    assert balance["spent"] == pieces(received) * OUTPUT_PRICE == 150 * OUTPUT_PRICE


async def test_the_embedded_redis_comes_back_with_every_balance() -> None:
    async with Upstream() as upstream, GatewayProcess(config_of(upstream)) as gateway:
        upstream.plan = Plan(text=(" hello",))
        key = await gateway.account(usd="1")
        socket = gateway.data_dir / "redis" / "redis.sock"
        # Tried once: a second try would stop the one that comes in its place.
        with Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as embedded:
            embedded.shutdown(nosave=True)
        async with client_of(key) as client:
            await ready(client, gateway.base_url)
            assert (await gateway.balance())["available"] == 1_000_000
            answer = await client.post(f"{gateway.base_url}/v1/chat/completions", json=body(stream=False))
            assert answer.status_code == 200


async def test_a_gateway_takes_over_the_embedded_redis_of_one_that_stops(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(text=(" hello",))
        first = GatewayProcess(config_of(upstream), data_dir=tmp_path / "data")
        second = GatewayProcess(config_of(upstream), data_dir=tmp_path / "data")
        async with first, second:
            key = await first.account(usd="1")
            first.terminate()
            assert await first.exited() == 0
            async with client_of(key) as client:
                await ready(client, second.base_url)
                answer = await client.post(f"{second.base_url}/v1/chat/completions", json=body(stream=False))
                assert answer.status_code == 200, answer.text


async def ready(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(15):
        while (await client.get(f"{url}/readyz")).status_code != 200:
            await asyncio.sleep(0.02)


async def test_another_replica_frees_what_a_killed_gateway_held(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(text=(" hello",), endless=True, delay_s=0.01)
        with RedisServer() as redis:
            config = config_of(upstream, lease_s=3)
            doomed = GatewayProcess(config, redis_url=redis.url, data_dir=tmp_path / "a")
            async with GatewayProcess(config, redis_url=redis.url, data_dir=tmp_path / "b") as heir, doomed:
                key = await heir.account(usd="1")
                async with client_of(key) as client:
                    loop = asyncio.get_running_loop()
                    streams = [loop.create_task(frames(client, doomed.base_url)) for _ in range(5)]
                    await upstream.until(lambda up: up.open_streams == 5)
                    assert (await heir.balance())["held"] > 0
                    doomed.kill()
                    await asyncio.gather(*streams, return_exceptions=True)
                    await heir.settled(records=5)
                    rows = await heir.usage()
                    assert {row["kind"] for row in rows} == {"reap"}
                    # The journal knows more than Redis did: when the gateway comes back, the rest is charged too.
                    reaped = (await heir.balance())["spent"]
                    await doomed.start()
                    balance = await heir.balance()
                    assert balance["spent"] >= reaped
                    assert balance["held"] == 0


async def test_two_hundred_clients_that_leave_at_random_points_leave_nothing_behind() -> None:
    async with Upstream() as upstream:
        upstream.plan = Plan(text=(" hello",), endless=True, delay_s=0.02)
        with RedisServer() as redis:
            async with GatewayProcess(config_of(upstream), redis_url=redis.url) as gateway:
                key = await gateway.account(usd="10")

                async def leave_after(lines_wanted: int) -> int:
                    received = 0
                    async with client_of(key) as client:
                        url = f"{gateway.base_url}/v1/chat/completions"
                        async with client.stream("POST", url, json=body()) as response:
                            async for line in response.aiter_lines():
                                if line.startswith("data: "):
                                    received += bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))
                                if received >= lines_wanted:
                                    return received
                    return received

                received = await asyncio.gather(*(leave_after(number % 20) for number in range(200)))
                await upstream.until(lambda up: up.open_streams == 0, timeout_s=5)
                balance = await gateway.settled()
                while await gateway.metric("gateway_streams_in_flight"):
                    await asyncio.sleep(0.01)
                # What was charged is what was sent; a client that left had some of it still on its way.
                assert balance["spent"] >= sum(received) * OUTPUT_PRICE
                assert balance["spent"] == await gateway.metric("gateway_cost_microusd_total")
                assert balance["available"] + balance["spent"] == balance["granted"]
