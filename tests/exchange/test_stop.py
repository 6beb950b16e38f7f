"""Stopping a stream by its id: from any gateway, by its owner only, cleanly, and charged for what was sent."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.harness import GatewayProcess, RedisServer

BODY = {"model": "demo/endless", "stream": True, "messages": [{"role": "user", "content": "Sing"}]}


async def stop_after_first_word(running: GatewayProcess, other: GatewayProcess, key: str) -> tuple[list[Any], str]:
    """Reads a stream at one gateway and stops it at the other; returns its chunks and its id."""
    chunks: list[Any] = []
    stream_id = ""
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {key}"}) as client:
        async with client.stream("POST", f"{running.base_url}/v1/chat/completions", json=BODY) as answer:
            stream_id = answer.headers["x-gateway-stream-id"]
            is_stopped = False
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunks.append(json.loads(line[6:]))
                if len(chunks) > 5 and not is_stopped:
                    is_stopped = True
                    stopped = await client.post(f"{other.base_url}/v1/streams/{stream_id}/stop")
                    assert (stopped.status_code, stopped.json()["state"]) == (200, "open")
                if "[DONE]" in line:
                    chunks.append("[DONE]")
    return chunks, stream_id


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_its_owner_stops_it_from_any_gateway_and_pays_for_what_was_sent(is_elsewhere: bool) -> None:
    with RedisServer() as redis:
        async with GatewayProcess(redis_url=redis.url) as one, GatewayProcess(redis_url=redis.url) as two:
            key = await one.account()
            async with asyncio.timeout(30):
                chunks, stream_id = await stop_after_first_word(one, two if is_elsewhere else one, key)
            assert chunks[-1] == "[DONE]"
            assert chunks[-2]["choices"][0]["finish_reason"] == "length"
            assert chunks[-2]["x_gateway"]["reason"] == "stopped"
            await one.settled(records=1)
            (row,) = await one.usage()
            assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "stopped")
            said = sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks[:-1])
            assert row["record"]["output_tokens"] == said
            async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
                again = await client.post(f"{two.base_url}/v1/streams/{stream_id}/stop")
                assert (again.status_code, again.json()["state"]) == (200, "done")


async def test_nobody_stops_a_stream_of_another_account() -> None:
    async with GatewayProcess() as gateway:
        key, stranger = await gateway.account(), await gateway.account("stranger")
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            address = f"{gateway.base_url}/v1/chat/completions"
            own = {"Authorization": f"Bearer {key}"}
            async with client.stream("POST", address, json=BODY, headers=own) as answer:
                stream_id = answer.headers["x-gateway-stream-id"]
                stop = f"{gateway.base_url}/v1/streams/{stream_id}/stop"
                refused = await client.post(stop, headers={"Authorization": f"Bearer {stranger}"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
                assert (await client.post(stop)).status_code == 401
                words = [line async for line in answer.aiter_lines() if await _is_read(line, client, stop, own)]
                assert words, "it went on until its owner stopped it"


async def _is_read(line: str, client: httpx.AsyncClient, stop: str, headers: dict[str, str]) -> bool:
    if '"content":" it"' in line:
        await client.post(stop, headers=headers)
    return bool(line)


async def test_the_operator_sees_what_runs_and_stops_it_from_any_gateway() -> None:
    with RedisServer() as redis:
        async with GatewayProcess(redis_url=redis.url) as one, GatewayProcess(redis_url=redis.url) as two:
            key = await one.account()
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                own = {"Authorization": f"Bearer {key}"}
                async with client.stream(
                    "POST", f"{one.base_url}/v1/chat/completions", json=BODY, headers=own
                ) as answer:
                    stream_id = answer.headers["x-gateway-stream-id"]
                    (running,) = (await two.admin.get("/accounts/acme/streams")).json()["data"]
                    assert (running["id"], running["state"], running["model"]) == (stream_id, "open", "demo/endless")
                    assert running["owner"].startswith("key:")
                    stop = f"/accounts/acme/streams/{stream_id}/stop"
                    assert (await two.admin.post(stop)).status_code == 200
                    assert (await answer.aread()).endswith(b"data: [DONE]\n\n")
                await one.settled(records=1)
                assert (await two.admin.get("/accounts/acme/streams")).json() == {"data": []}
                assert (await two.admin.post(stop)).json()["state"] == "done"
                assert (await two.admin.post("/accounts/acme/streams/unknown/stop")).status_code == 404
                assert (await two.admin.get("/accounts/nobody/streams")).status_code == 404
                assert (
                    await client.get(f"{one.base_url}/admin/v1/accounts/acme/streams", headers=own)
                ).status_code == 401
