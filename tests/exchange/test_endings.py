"""Every way a stream can end. Each is settled exactly once and leaves no slot, hold or socket behind."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.harness import GatewayProcess
from tests.upstream import Plan, Upstream

PRICE = {"input": 1, "output": 10}
WORDS = tuple(f" word{i}" for i in range(20))


class Stage:
    """An upstream, a gateway in front of it, and one funded account."""

    def __init__(self, upstream: Upstream, gateway: GatewayProcess, key: str) -> None:
        self.upstream = upstream
        self.gateway = gateway
        self.key = key
        self.client = httpx.AsyncClient(
            base_url=gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False
        )

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": "up/any", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}

    @contextlib.asynccontextmanager
    async def streaming(self, **more: Any) -> AsyncIterator[httpx.Response]:
        async with self.client.stream("POST", "/v1/chat/completions", json=self.body(**more)) as response:
            yield response

    async def frames(self, **more: Any) -> list[Any]:
        """The events of one stream, ``"[DONE]"`` included, until it closes."""
        async with self.streaming(**more) as response:
            assert response.status_code == 200, await response.aread()
            return [parsed(line) async for line in response.aiter_lines() if line.startswith("data: ")]

    async def ended(self, outcome: str, *, reason: str | None = None) -> dict[str, Any]:
        """The one record of the one exchange; everything it had taken is back."""
        balance = await self.gateway.settled(records=1)
        rows = await self.gateway.usage()
        assert len(rows) == 1
        assert rows[0]["outcome"] == outcome
        if reason is not None:
            assert rows[0]["record"]["reason"] == reason
        assert balance["spent"] == int(rows[0]["charged_usd"].replace(".", ""))
        assert balance["granted"] == balance["available"] + balance["spent"]
        await self.upstream.until(lambda upstream: upstream.open_streams == 0, timeout_s=5)
        await self.nothing_running()
        await self.slot_is_free()
        return rows[0]

    async def nothing_running(self) -> None:
        async with asyncio.timeout(5):
            while await self.gateway.metric("gateway_streams_in_flight"):
                await asyncio.sleep(0.01)
        assert await self.gateway.metric("gateway_settlements_pending") == 0

    async def slot_is_free(self) -> None:
        """The account's tier has one slot: another request only gets in where it was given back."""
        self.upstream.queue(Plan(text=("again",)))
        answer = await self.client.post("/v1/chat/completions", json=self.body(stream=False))
        assert answer.status_code == 200, answer.text


def parsed(line: str) -> Any:
    return "[DONE]" if line == "data: [DONE]" else json.loads(line[6:])


def text_of(frames: list[Any]) -> str:
    deltas = [choice["delta"] for frame in frames if frame != "[DONE]" for choice in frame.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


@contextlib.asynccontextmanager
async def staged(*, usd: str = "1", **server: Any) -> AsyncIterator[Stage]:
    async with Upstream() as upstream:
        timeouts = {"first_event_s": 3, "idle_s": 1, "connect_s": 2}
        config = {
            "providers": {
                "up": {
                    "type": "openai",
                    "base_url": upstream.openai_url,
                    "api_key": "sk-upstream",
                    "price": PRICE,
                    "timeouts": timeouts,
                }
            },
            "tiers": {"default": {"requests": {"limit": 1000}, "concurrent_streams": 1}},
            "server": {"send_timeout_s": 1, "drain_s": 1, **server},
        }
        async with GatewayProcess(config) as gateway:
            stage = Stage(upstream, gateway, await gateway.account(usd=usd))
            try:
                yield stage
            finally:
                await stage.client.aclose()


async def test_complete_is_charged_by_the_providers_figure() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS)
        frames = await stage.frames()
        assert text_of(frames) == "".join(WORDS)
        assert frames[-1] == "[DONE]"
        row = await stage.ended("complete")
        assert row["record"]["output_tokens"] == len(WORDS)
        assert row["charged_usd"] == "0.000210"


async def test_one_upstream_connection_serves_one_request_after_the_other() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS)
        for _ in range(5):
            await stage.frames()
            await stage.nothing_running()
        assert len(stage.upstream.requests) == 5
        assert stage.upstream.connections == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_upstream_error_before_the_stream_is_an_http_error_and_costs_nothing(status: int) -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(status=status)
        answer = await stage.client.post("/v1/chat/completions", json=stage.body())
        assert answer.status_code == {429: 429, 500: 502, 503: 503}[status]
        assert answer.json()["error"]["code"].startswith("provider_")
        row = await stage.ended("failed")
        assert row["charged_usd"] == "0.000000"


async def test_a_reset_before_the_headers_is_an_http_error_and_costs_nothing() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(fault="reset", fault_at=-1)
        answer = await stage.client.post("/v1/chat/completions", json=stage.body())
        assert answer.status_code == 502
        assert (await stage.ended("failed"))["charged_usd"] == "0.000000"


async def test_an_upstream_that_says_nothing_is_an_http_error_in_time() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(fault="stall", fault_at=-1)
        answer = await stage.client.post("/v1/chat/completions", json=stage.body())
        assert answer.status_code == 504
        assert (await stage.ended("failed", reason="provider_timeout"))["charged_usd"] == "0.000000"


@pytest.mark.parametrize("fault", ["reset", "error_event", "garbage"])
async def test_an_upstream_error_within_the_stream_is_told_and_what_came_is_charged(fault: str) -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, fault=fault, fault_at=5)  # type: ignore[arg-type]
        frames = await stage.frames()
        # A reset may overtake what was sent before it; the other faults cannot.
        text = text_of(frames)
        assert "".join(WORDS[:5]).startswith(text) and (fault == "reset" or text == "".join(WORDS[:5]))
        assert frames[-1]["error"]["code"] in ("stream_truncated", "provider_unavailable", "provider_protocol_error")
        row = await stage.ended("truncated" if fault == "reset" else "failed")
        assert row["record"]["estimated"] is True
        assert row["record"]["counted_output"] == row["record"]["output_tokens"]


async def test_a_stream_without_its_end_is_told_as_truncated() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, fault="truncate", fault_at=5)
        frames = await stage.frames()
        assert frames[-1]["error"]["code"] == "stream_truncated"
        await stage.ended("truncated", reason="stream_truncated")


async def test_a_stream_that_only_lacks_done_is_complete() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, done=False)
        frames = await stage.frames()
        assert frames[-1] == "[DONE]"
        await stage.ended("complete")


async def test_a_stall_within_the_stream_is_told_after_the_idle_time() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, fault="stall", fault_at=5)
        frames = await stage.frames()
        assert frames[-1]["error"]["code"] == "provider_timeout"
        await stage.ended("failed", reason="provider_timeout")


async def test_a_refused_request_reaches_no_provider_and_leaves_no_record() -> None:
    async with staged(usd="0") as stage:
        answer = await stage.client.post("/v1/chat/completions", json=stage.body())
        assert answer.status_code == 402
        assert answer.headers["x-should-retry"] == "false"
        assert stage.upstream.requests == []
        assert await stage.gateway.usage() == []
        await stage.nothing_running()


async def test_a_client_that_leaves_pays_for_what_it_was_sent() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, endless=True, delay_s=0.01)
        async with stage.streaming() as response:
            lines = response.aiter_lines()
            for _ in range(20):
                await anext(lines)
        row = await stage.ended("cancelled", reason="client_left")
        assert row["record"]["estimated"] is True
        assert 0 < row["record"]["output_tokens"] < 2000
        assert stage.upstream.aborted == 1


async def test_a_client_that_leaves_while_the_provider_is_silent_pays_for_its_prompt() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(fault="stall", fault_at=-1)
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(stage.client.post("/v1/chat/completions", json=stage.body()))
            while not stage.upstream.requests:
                await asyncio.sleep(0.01)
            asking.cancel()
        row = await stage.ended("cancelled", reason="client_left")
        assert "output_tokens" not in row["record"]
        assert row["charged_usd"] == f"0.00000{row['record']['input_tokens']}"  # the prompt was read


async def test_a_client_that_stops_reading_is_cut_and_its_connection_reset() -> None:
    async with staged(usd="1000") as stage:
        stage.upstream.plan = Plan(text=("x" * 20_000,), endless=True)
        body = json.dumps(stage.body()).encode()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", stage.gateway.port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stage.key}\r\n"
        sock.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        try:
            await stage.ended("cancelled", reason="client_stalled")
            with pytest.raises(ConnectionResetError):
                while sock.recv(65536):
                    pass
        finally:
            sock.close()


async def test_a_stream_is_cut_when_the_credit_ends() -> None:
    async with staged(usd="0.0005") as stage:
        stage.upstream.plan = Plan(text=WORDS, endless=True)
        frames = await stage.frames()
        assert frames[-1] == "[DONE]"
        last = frames[-2]
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["x_gateway"]["reason"] == "credits_exhausted"
        balance = await stage.gateway.settled(records=1)
        row = (await stage.gateway.usage())[0]
        assert row["outcome"] == "cut"
        assert balance["spent"] == int(row["charged_usd"].replace(".", "")) <= balance["granted"]
        assert balance["available"] < 40  # less than one more piece costs
        await stage.upstream.until(lambda upstream: upstream.open_streams == 0)


async def test_a_running_stream_may_finish_while_the_gateway_drains() -> None:
    async with staged(drain_s=20) as stage:
        stage.upstream.plan = Plan(text=WORDS, delay_s=0.05)
        async with stage.streaming() as response:
            lines = response.aiter_lines()
            await anext(lines)
            stage.gateway.terminate()
            await until_draining(stage)
            late = await stage.client.post("/v1/chat/completions", json=stage.body())
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "draining"
            assert late.headers["connection"] == "close"
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert await stage.gateway.exited() == 0
        await after_restart(stage, "complete")


async def test_a_request_that_arrives_while_the_drain_begins_is_refused_or_served_whole() -> None:
    async with staged(drain_s=5) as stage:
        body = json.dumps(stage.body()).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stage.key}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:9])
        await writer.drain()
        await asyncio.sleep(0.1)  # the first half has to be with the gateway; nothing tells when it is
        stage.gateway.terminate()
        await until_draining(stage)
        writer.write(body[9:])
        answer = (await reader.read()).decode()
        assert answer.startswith("HTTP/1.1 503 ") and '"code":"draining"' in answer
        writer.close()
        assert await stage.gateway.exited() == 0


async def test_a_stream_that_outlasts_the_drain_is_told_and_settled() -> None:
    async with staged(drain_s=0.3) as stage:
        stage.upstream.plan = Plan(text=WORDS, endless=True, delay_s=0.01)
        async with stage.streaming() as response:
            lines = response.aiter_lines()
            await anext(lines)
            stage.gateway.terminate()
            rest = [line async for line in lines if line.startswith("data: ")]
        assert json.loads(rest[-1][6:])["error"]["code"] == "draining"
        assert await stage.gateway.exited() == 0
        await stage.upstream.until(lambda upstream: upstream.open_streams == 0)
        await after_restart(stage, "failed")


async def test_a_killed_gateway_charges_what_it_had_forwarded() -> None:
    async with staged() as stage:
        stage.upstream.plan = Plan(text=WORDS, endless=True, delay_s=0.01)
        received = 0
        async with stage.streaming() as response:
            async for line in response.aiter_lines():
                received += line.startswith("data: ")
                if received == 20:
                    break
            stage.gateway.kill()
        row = await after_restart(stage, "failed")
        assert row["record"]["reason"] == "gateway_crashed"
        assert int(row["charged_usd"].replace(".", "")) >= (received - 1) * 10


async def until_draining(stage: Stage) -> None:
    async with asyncio.timeout(5):
        while (await stage.client.get("/readyz")).status_code != 503:
            await asyncio.sleep(0.01)


async def after_restart(stage: Stage, outcome: str) -> dict[str, Any]:
    await stage.gateway.start()
    return await stage.ended(outcome)
