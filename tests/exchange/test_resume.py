"""Answers that outlive their page: read again on another gateway, by several, once paid for, stopped, or left alone."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.exchange.fleet import provider
from tests.harness import GatewayProcess, RedisServer
from tests.upstream import Plan, Upstream

RESUMABLE = {"x-gateway-resumable": "true"}


def body(chat_id: str = "chat-1", model: str = "demo/reasoning") -> dict[str, Any]:
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Tell me"}]}
    return {"id": chat_id, "messages": [message], "trigger": "submit-message", "model": model}


class Page:
    """A page of the AI SDK: an open answer, and what it has read of it."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._base_url = gateway.base_url
        self._own = {"Authorization": f"Bearer {key}"} if key else {}

    @contextlib.asynccontextmanager
    async def stream(self, method: str, path: str, **sent: Any) -> AsyncIterator[httpx.Response]:
        headers = self._own | sent.pop("headers", {})
        async with httpx.AsyncClient(base_url=self._base_url, trust_env=False, timeout=30) as http:
            async with http.stream(method, path, headers=headers, **sent) as answer:
                yield answer

    async def call(self, method: str, path: str, **sent: Any) -> httpx.Response:
        async with self.stream(method, path, **sent) as answer:
            await answer.aread()
        return answer

    @contextlib.asynccontextmanager
    async def ask(self, asked: dict[str, Any], **headers: str) -> AsyncIterator[httpx.Response]:
        async with self.stream("POST", "/api/chat", json=asked, headers={**RESUMABLE, **headers}) as answer:
            assert answer.status_code == 200
            yield answer

    async def leave_after(self, pieces: int, asked: dict[str, Any]) -> tuple[list[str], str]:
        """Hang up in mid-answer; returns the events that came and the stream's id."""
        events: list[str] = []
        async with self.ask(asked) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    events.append(line)
                if sum('-delta"' in event for event in events) >= pieces:
                    break
            return events, answer.headers["x-gateway-stream-id"]

    async def resume(self, chat_id: str = "chat-1") -> list[str]:
        """Every event of the stream the chat is at."""
        async with self.stream("GET", f"/api/chat/{chat_id}/stream") as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
            return [line async for line in answer.aiter_lines() if line.startswith("data:")]

    async def resume_status(self, chat_id: str = "chat-1") -> int:
        return (await self.call("GET", f"/api/chat/{chat_id}/stream")).status_code

    async def stop(self, chat_id: str = "chat-1") -> dict[str, Any]:
        answer = await self.call("POST", f"/api/chat/{chat_id}/stop")
        assert answer.status_code == 200, answer.text
        stopped: dict[str, Any] = answer.json()
        return stopped


def text_of(events: list[str]) -> str:
    chunks = [json.loads(event[6:]) for event in events if event != "data: [DONE]"]
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


@contextlib.asynccontextmanager
async def replicas(**config: Any) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess]]:
    with RedisServer() as redis:
        async with (
            GatewayProcess(config, redis_url=redis.url) as one,
            GatewayProcess(config, redis_url=redis.url) as two,
        ):
            yield one, two


async def test_a_page_that_comes_back_reads_the_whole_answer_on_another_gateway_and_it_is_paid_once() -> None:
    async with replicas() as (one, two):
        key = await one.account()
        seen, _ = await Page(one, key).leave_after(5, body())
        events = await Page(two, key).resume()
        assert events[: len(seen)] == seen
        assert events[-1] == "data: [DONE]"
        assert '"type":"finish"' in events[-2]
        await one.settled(records=1)
        (row,) = await one.usage()
        assert row["outcome"] == "complete"
        assert row["record"]["output_tokens"] == sum('-delta"' in event for event in events)


async def test_several_readers_see_the_same_answer_to_its_end() -> None:
    async with replicas() as (one, two):
        key = await one.account()
        async with Page(one, key).ask(body()) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            readers = [asyncio.ensure_future(Page(gateway, key).resume()) for gateway in (one, two, two)]  # noqa: TID251
            own = [line async for line in lines if line.startswith("data:")]
            read = await asyncio.gather(*readers)
        assert read[0] == read[1] == read[2]
        assert read[0][1:] == own
        assert (await one.settled(records=1))["held"] == 0
        assert len(await one.usage()) == 1


async def test_what_its_page_read_to_the_end_is_not_told_again() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        async with page.ask(body(model="demo/fast")) as answer:
            assert (await answer.aread()).endswith(b"data: [DONE]\n\n")
        while await page.resume_status() != 204:
            await asyncio.sleep(0.05)
        assert await page.resume_status("unheard-of") == 204


async def test_an_answer_that_ended_unread_is_still_there_once() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        await page.leave_after(1, body())
        await gateway.settled(records=1)
        assert (await page.resume())[-1] == "data: [DONE]"
        while await page.resume_status() != 204:
            await asyncio.sleep(0.05)


async def test_without_the_wish_an_answer_ends_with_its_page() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        async with page.ask(body(), **{"x-gateway-resumable": "false"}) as answer:
            await anext(answer.aiter_lines())
        await gateway.settled(records=1)
        (row,) = await gateway.usage()
        assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "client_left")
        assert await page.resume_status() == 204


async def test_the_configuration_makes_every_chat_resumable_and_a_request_may_refuse() -> None:
    async with GatewayProcess({"chat": {"resumable": True}}) as gateway:
        page = Page(gateway, await gateway.account())
        async with page.stream("POST", "/api/chat", json=body()) as answer:
            await anext(answer.aiter_lines())
        assert (await page.resume())[-1] == "data: [DONE]"
        refused = await page.call("POST", "/api/chat", json=body(), headers={"x-gateway-resumable": "perhaps"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-gateway-resumable")


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_a_stop_ends_it_on_whichever_gateway_with_what_was_said(is_elsewhere: bool) -> None:
    async with replicas() as (one, two):
        key = await one.account()
        _, stream_id = await Page(one, key).leave_after(3, body(model="demo/endless"))
        other = Page(two if is_elsewhere else one, key)
        reading = asyncio.ensure_future(other.resume())  # noqa: TID251
        stopped = await other.stop()
        assert stopped["stream_id"] == stream_id
        events = await reading
        assert '"type":"abort"' in events[-2]
        assert '"data-gateway-cut"' in "".join(events)
        await one.settled(records=1)
        (row,) = await one.usage()
        assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "stopped")
        assert row["record"]["output_tokens"] == sum('-delta"' in event for event in events)


async def test_an_answer_nobody_reads_ends_after_a_while_and_one_that_is_read_goes_on() -> None:
    async with replicas(resume={"orphan_s": 1}) as (one, two):
        key = await one.account()
        await Page(one, key).leave_after(1, body("left", model="demo/endless"))
        await Page(one, key).leave_after(1, body("read", model="demo/endless"))
        async with Page(two, key).stream("GET", "/api/chat/read/stream") as answer:
            lines = answer.aiter_lines()
            async with asyncio.timeout(15):
                while not (rows := await one.usage()):
                    await asyncio.sleep(0.05)
            (row,) = rows
            assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "client_left")
            await anext(lines)
            await Page(two, key).stop("read")
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        await one.settled(records=2)


async def test_a_killed_gateways_answer_breaks_off_with_an_error_and_is_paid_as_far_as_it_came() -> None:
    async with replicas(holds={"lease_s": 3}, resume={"orphan_s": 5}) as (one, two):
        key = await one.account()
        await Page(one, key).leave_after(3, body(model="demo/endless"))
        reading = asyncio.ensure_future(Page(two, key).resume())  # noqa: TID251
        await asyncio.sleep(0)
        one.kill()
        events = await reading
        assert '"type":"error"' in events[-2]
        assert events[-1] == "data: [DONE]"
        assert (await two.settled())["held"] == 0


async def test_nobody_reads_or_stops_a_chat_of_another_account() -> None:
    async with GatewayProcess() as gateway:
        key, stranger = await gateway.account(), await gateway.account("stranger")
        page, other = Page(gateway, key), Page(gateway, stranger)
        await page.leave_after(1, body())
        assert await other.resume_status() == 204
        assert (await other.stop())["stream_id"] is None
        assert await Page(gateway, "").resume_status() == 401
        assert (await page.resume())[-1] == "data: [DONE]"


@pytest.mark.parametrize("chat_id", ["a/b c", "ü-é", "%2e%2e", "x" * 500])
async def test_a_chats_id_may_be_anything_encoded_or_raw(chat_id: str) -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        await page.leave_after(1, body(chat_id))
        assert (await page.resume(quote(chat_id, safe="")))[-1] == "data: [DONE]"


async def test_an_answer_longer_than_may_be_kept_ends_with_its_page() -> None:
    async with GatewayProcess({"resume": {"bytes_max": 1024}}) as gateway:
        page = Page(gateway, await gateway.account())
        await page.leave_after(80, body(model="demo/endless"))
        await gateway.settled(records=1)
        (row,) = await gateway.usage()
        assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "client_left")


async def test_an_error_before_the_first_word_is_told_to_whoever_comes_back() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        answer = await page.call("POST", "/api/chat", json=body(model="demo/error"), headers=RESUMABLE)
        assert '"type":"error"' in answer.text
        await gateway.settled(records=1)
        assert await page.resume_status() == 204


async def test_redis_away_for_a_moment_loses_nothing_of_the_log() -> None:
    with RedisServer() as redis:
        async with GatewayProcess(redis_url=redis.url) as gateway:
            page = Page(gateway, await gateway.account())
            events: list[str] = []
            async with page.ask(body()) as answer:
                async for line in answer.aiter_lines():
                    events.append(line)
                    if len(events) == 8:
                        redis.kill()
                        redis.start()
                    if len(events) == 30:
                        break
            read = await page.resume()
            assert read[-1] == "data: [DONE]"
            assert text_of(read).startswith(text_of([event for event in events if event.startswith("data:")]))
            await gateway.settled(records=1)


async def test_the_data_stream_of_ai_sdk_4_is_resumed_by_its_chat_id() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        asked = {"id": "old", "messages": [{"role": "user", "content": "Tell me"}]}
        address = "/api/ai/chat-stream?model=demo/reasoning"
        async with page.stream("POST", address, json=asked, headers=RESUMABLE) as answer:
            await anext(answer.aiter_lines())
        read = await page.call("GET", "/api/ai/chat-stream?chatId=old")
        assert read.status_code == 200
        assert read.text.splitlines()[-1].startswith("d:")
        nothing = await page.call("GET", "/api/ai/chat-stream?chatId=other")
        assert (nothing.status_code, nothing.content) == (200, b"")
        unnamed = await page.call("GET", "/api/ai/chat-stream")
        assert (unnamed.status_code, unnamed.headers["allow"]) == (405, "POST")


async def test_a_refused_request_does_not_bring_back_what_was_read_before_it() -> None:
    async with GatewayProcess() as gateway:
        page = Page(gateway, await gateway.account())
        async with page.ask(body(model="demo/fast")) as answer:
            await answer.aread()
        while await page.resume_status() != 204:
            await asyncio.sleep(0.05)
        refused = await page.call("POST", "/api/chat", json=body(model="nobody/knows"), headers=RESUMABLE)
        assert refused.status_code == 404
        assert await page.resume_status() == 204


async def test_who_reads_too_many_answers_again_is_told_to_wait() -> None:
    async with (
        Upstream() as upstream,
        replicas(providers={"up": provider(upstream)}, resume={"readers_max": 1}) as (one, _),
    ):
        upstream.plan = Plan(endless=True, delay_s=0.05)
        key = await one.account(usd="1000")
        await Page(one, key).leave_after(1, body(model="up/any"))
        async with Page(one, key).stream("GET", "/api/chat/chat-1/stream") as answer:
            await anext(answer.aiter_lines())
            refused = await Page(one, key).call("GET", "/api/chat/chat-1/stream")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "as it may at once (1)" in refused.text
        status = refused.status_code
        async with asyncio.timeout(15):  # that a reader went away is noticed within a moment
            while status != 200:
                async with Page(one, key).stream("GET", "/api/chat/chat-1/stream") as again:
                    status = again.status_code
