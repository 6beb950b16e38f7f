"""A client that waits sees real errors at first, and signs of life after that."""

import asyncio
import json

import pytest

from tests.exchange.test_endings import parsed, staged, text_of
from tests.upstream import Plan


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/ai/chat-stream?model=up/any"])
async def test_a_silent_provider_is_bridged_by_harmless_heartbeats(path: str) -> None:
    async with staged(commit_s=0.3, heartbeat_s=0.3) as stage:
        stage.upstream.plan = Plan(text=("late", " but", " whole"), fault="stall", fault_at=-1)
        body = stage.body() if path.startswith("/v1") else {"messages": [{"role": "user", "content": "Hello"}]}
        async with stage.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200
            chunks = response.aiter_bytes()
            early = b"".join([await anext(chunks), await anext(chunks)])
            assert set(early.split(b"\n")) == ({b"", b": keep-alive"} if path.startswith("/v1") else {b""})
            stage.upstream.release()
            rest = b"".join([chunk async for chunk in chunks]).decode()
        if path.startswith("/v1"):
            assert (
                text_of([parsed(line) for line in rest.splitlines() if line.startswith("data: ")]) == "late but whole"
            )
        else:
            assert "".join(json.loads(line[2:]) for line in rest.splitlines() if line[:2] == "0:") == "late but whole"
        await stage.ended("complete")


async def test_an_error_after_the_status_line_went_out_is_told_within_the_stream() -> None:
    async with staged(commit_s=0.3, heartbeat_s=0.3) as stage:
        stage.upstream.plan = Plan(fault="stall", fault_at=-1)
        frames = await asyncio.wait_for(stage.frames(), 20)
        assert frames == [frames[0]]
        assert frames[0]["error"]["code"] == "provider_timeout"
        row = await stage.ended("failed", reason="provider_timeout")
        assert row["charged_usd"] == "0.000000"


async def test_a_whole_answer_is_never_preceded_by_heartbeats() -> None:
    async with staged(commit_s=0.3, heartbeat_s=0.3) as stage:
        stage.upstream.plan = Plan(text=("a", "b"), delay_s=0.6)
        answer = await stage.client.post("/v1/chat/completions", json=stage.body(stream=False))
        assert answer.json()["choices"][0]["message"]["content"] == "ab"
        assert answer.headers["content-length"] == str(len(answer.content))
        await stage.ended("complete")
