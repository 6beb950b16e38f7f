"""Chats over a WebSocket: answered, resumed anywhere, stopped and paid for once, whatever happens to the connection."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness import GatewayProcess, RedisServer
from tests.http.raw import Wire
from tests.http.talk import PATH, chunks_of, frame_bytes, send_frame, talking, text_of, upgrade, words_of
from tests.upstream import Plan, Upstream


@contextlib.asynccontextmanager
async def replicas(**config: Any) -> AsyncIterator[tuple[GatewayProcess, GatewayProcess, str]]:
    with RedisServer() as redis:
        async with (
            GatewayProcess(config, redis_url=redis.url) as one,
            GatewayProcess(config, redis_url=redis.url) as two,
        ):
            yield one, two, await one.account()


async def only_row(gateway: GatewayProcess) -> dict[str, Any]:
    balance = await gateway.settled(records=1)
    (row,) = await gateway.usage()
    assert balance["spent"] == int(row["charged_usd"].replace(".", ""))
    return row


async def test_an_answer_comes_in_numbered_chunks_and_is_paid_once() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            await talk.ask()
            frames = await talk.ended()
            assert [frames[0]["type"], frames[-1]["type"]] == ["start", "end"]
            assert frames[1]["sequence"] == 0
            kinds = [chunk["type"] for chunk in chunks_of(frames)]
            assert (kinds[:3], kinds[-2:]) == (["start", "start-step", "text-start"], ["finish-step", "finish"])
            assert text_of(frames).startswith("Hello from the demo model")
        row = await only_row(gateway)
        assert (row["outcome"], row["record"]["protocol"]) == ("complete", "ai_sdk_ui")
        assert row["record"]["output_tokens"] == words_of(frames)
        assert await gateway.metric("gateway_websockets") == 0


async def test_several_answers_share_a_connection() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            for number in range(5):
                await talk.ask(f"r{number}", f"chat-{number}", "demo/reasoning")
            answers = [await talk.ended(f"r{number}") for number in range(5)]
            assert len({text_of(frames) for frames in answers}) == 1
            assert len(set(talk.order[:30])) == 5, "none waits for another one's end"
        await gateway.settled(records=5)


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_a_lost_connection_is_no_stop_and_the_answer_is_resumed_on_any_gateway(is_elsewhere: bool) -> None:
    async with replicas() as (one, two, key):
        async with talking(one, key) as talk:
            await talk.ask(model="demo/reasoning")
            seen = await talk.said(8)
        async with talking(two if is_elsewhere else one, key) as talk:
            await talk.resume("all")
            await talk.resume("rest", lastSequence=7)
            whole, rest = await talk.ended("all"), await talk.ended("rest")
            assert chunks_of(whole)[:8] == chunks_of(seen)[:8]
            assert rest[0]["type"] == "start" and rest[1]["sequence"] == 8
            assert chunks_of(rest) == chunks_of(whole)[8:]
            assert whole[-1]["type"] == rest[-1]["type"] == "end"
        row = await only_row(one)
        assert row["outcome"] == "complete" and row["record"]["output_tokens"] == words_of(whole)


async def test_what_was_read_to_its_end_is_told_again_to_those_only_who_say_how_far_they_came() -> None:
    async with GatewayProcess() as gateway:
        key = await gateway.account()
        async with talking(gateway, key) as talk:
            await talk.ask()
            frames = await talk.ended()
        async with talking(gateway, key) as talk:
            await talk.resume("again")
            assert [frame["type"] for frame in await talk.ended("again")] == ["no-active"]
            await talk.resume("rest", lastSequence=40)
            assert chunks_of(await talk.ended("rest")) == chunks_of(frames)[41:]
            await talk.resume("unheard-of", "another", lastSequence=1)
            assert [frame["type"] for frame in await talk.ended("unheard-of")] == ["no-active"]


async def test_an_abort_ends_the_stream_and_only_what_was_said_is_charged() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            await talk.ask(model="demo/endless")
            await talk.said(10)
            await talk.abort("r1")
            row = await only_row(gateway)
            assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "stopped")
            await talk.abort("unheard-of")
            await talk.ask("r2", "chat-2")
            assert (await talk.ended("r2"))[-1]["type"] == "end"
            assert words_of(talk.frames["r1"]) <= row["record"]["output_tokens"] < 1000
            assert talk.frames["r1"][-1]["type"] == "chunk", "who aborts hears no more of it"
            await talk.resume("r3")
            assert [frame["type"] for frame in await talk.ended("r3")] == ["no-active"]


async def test_an_abort_right_behind_the_request_leaves_nothing_running() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            for number in range(20):
                await talk.ask(f"r{number}", f"chat-{number}", "demo/endless")
                await talk.abort(f"r{number}")
                await talk.ask(f"q{number}", f"chat-{number}", "demo/fast", body={"maxOutputTokens": 1})
                assert (await talk.ended(f"q{number}"))[-1]["type"] == "end"
            await gateway.settled()
            assert await gateway.metric("gateway_streams_in_flight") == 0


async def test_aborting_a_resumed_answer_stops_it_where_it_runs() -> None:
    async with replicas() as (one, two, key):
        async with talking(one, key) as talk:
            await talk.ask(model="demo/endless")
            await talk.said(5)
        async with talking(two, key) as talk:
            await talk.resume("r2")
            await talk.said(5, "r2")
            await talk.abort("r2")
            row = await only_row(one)
            assert (row["outcome"], row["record"]["reason"]) == ("cancelled", "stopped")


async def test_who_refuses_to_be_resumable_is_stopped_by_a_lost_connection() -> None:
    async with GatewayProcess() as gateway:
        key = await gateway.account()
        for leaves in (True, False):
            async with talking(gateway, key) as talk:
                await talk.ask(model="demo/endless", headers={"X-Gateway-Resumable": "false"})
                await talk.said(5)
                if not leaves:
                    await talk.abort("r1")
                    await gateway.settled(records=2)
            await gateway.settled(records=1)
        reasons = {row["record"]["reason"] for row in await gateway.usage()}
        assert reasons == {"client_left"}


async def test_errors_are_told_by_request_with_their_message() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            await talk.ask("r1", model="nobody/nothing")
            (refused,) = await talk.ended("r1")
            assert refused["code"] == "model_not_found" and "nobody/nothing" in refused["errorText"]
            await talk.ask("r2", body={"temperature": 9})
            assert "temperature" in (await talk.ended("r2"))[0]["errorText"]
            await talk.ask("r3", "chat-3", "demo/error")
            frames = await talk.ended("r3")
            assert [chunk["type"] for chunk in chunks_of(frames)][-1] == "error" and frames[-1]["type"] == "end"
            await talk.ask("r4", headers={"idempotency-key": "not one"})
            assert "Idempotency-Key" in (await talk.ended("r4"))[0]["errorText"]


async def test_a_request_with_the_key_of_another_one_runs_once() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            headers = {"Idempotency-Key": "once"}
            await talk.ask("r1", headers=headers)
            await talk.ended("r1")
            await gateway.settled(records=1)
            await talk.ask("r2", headers=headers)
            await talk.ended("r2")
        assert len(await gateway.usage()) == 1


async def test_the_address_may_name_the_model_of_every_request() -> None:
    async with GatewayProcess() as gateway:
        key = await gateway.account()
        async with talking(gateway, key, query="?provider=demo&model=fast&protocol=text") as talk:
            await talk.ask(model="demo/error")
            assert text_of(await talk.ended())
    async with GatewayProcess({"chat": {"default_model": "demo/fast"}}) as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            frame = send_frame()
            del frame["body"]["model"]
            await talk.send(frame)
            assert text_of(await talk.ended())


async def test_credit_that_ends_ends_the_answer_cleanly() -> None:
    async with GatewayProcess() as gateway:
        async with talking(gateway, await gateway.account(usd="0.0001")) as talk:
            await talk.ask(model="demo/endless")
            frames = await talk.ended()
            kinds = [chunk["type"] for chunk in chunks_of(frames)]
            assert kinds[-1] == "abort" and "data-gateway-cut" in kinds and frames[-1]["type"] == "end"
        assert (await gateway.settled(records=1))["available"] >= 0


async def test_a_killed_gateways_answer_breaks_off_with_an_error_on_another_one() -> None:
    async with replicas(holds={"lease_s": 3}, resume={"orphan_s": 5}) as (one, two, key):
        async with talking(one, key) as talk, talking(two, key) as other:
            await talk.ask(model="demo/endless")
            await talk.said(10)
            await other.resume("r2")
            await other.said(5, "r2")
            one.kill()
            await talk.closed()
            frames = await other.ended("r2")
            assert chunks_of(frames)[-1]["type"] == "error" and frames[-1]["type"] == "end"
        assert (await two.settled())["held"] == 0


async def test_a_drain_lets_answers_end_refuses_new_ones_and_sends_clients_elsewhere() -> None:
    async with GatewayProcess({"server": {"drain_s": 20}}) as gateway:
        key = await gateway.account()
        async with talking(gateway, key) as busy, talking(gateway, key) as idle:
            await busy.ask(model="demo/reasoning")
            await busy.said(3)
            gateway.terminate()
            assert (await idle.closed())[0] == 1001
            await busy.ask("r2", "chat-2")
            (refused,) = await busy.ended("r2")
            assert refused["code"] == "draining"
            assert (await busy.ended("r1"))[-1]["type"] == "end"
            assert (await busy.closed())[0] == 1001
        assert await gateway.exited() == 0


async def test_answers_that_outlast_the_drain_end_with_an_error_and_the_connection_with_them() -> None:
    async with GatewayProcess({"server": {"drain_s": 1}}) as gateway:
        async with talking(gateway, await gateway.account()) as talk:
            await talk.ask(model="demo/endless")
            await talk.said(3)
            gateway.terminate()
            frames = await talk.ended("r1")
            assert chunks_of(frames)[-1]["type"] == "error"
            assert (await talk.closed())[0] == 1001
        assert await gateway.exited() == 0


async def test_who_takes_nothing_is_cut_and_the_answer_goes_on_for_whoever_comes_back() -> None:
    config: dict[str, Any] = {"server": {"send_timeout_s": 1}, "resume": {"orphan_s": 2, "bytes_max": 64_000_000}}
    async with Upstream() as upstream:
        price = {"input": 1, "output": 1}
        config["providers"] = {
            "up": {"type": "openai", "base_url": upstream.openai_url, "price": price, "api_key": "k"}
        }
        async with GatewayProcess(config) as gateway:
            key = await gateway.account(usd="1000")
            upstream.plan = Plan(text=("x" * 20_000,), endless=True, delay_s=0.005)
            with Wire(gateway.port) as deaf:
                deaf.send(upgrade(PATH, f"Authorization: Bearer {key}"))
                assert (await asyncio.to_thread(deaf.answer)).status == 101
                deaf.send(frame_bytes(json.dumps(send_frame(model="up/gpt")).encode()))
                await upstream.until(lambda upstream: len(upstream.requests) == 1)
                async with talking(gateway, key) as talk:
                    await is_forgotten(gateway)
                    await talk.resume("r2")
                    await talk.said(3, "r2")
                    await talk.abort("r2")
                    assert (await only_row(gateway))["record"]["reason"] == "stopped"


async def is_forgotten(gateway: GatewayProcess) -> None:
    """Wait until only one connection is left."""
    async with asyncio.timeout(30):
        while await gateway.metric("gateway_websockets") != 1:
            await asyncio.sleep(0.05)
