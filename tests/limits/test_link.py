"""A connection's reader: replies that arrive in any pieces, errors among them, and ends in the middle of a batch."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from gateway.limits.redis import LuaSource, RedisOwner, StoreUnavailable

# What a server says to three calls, and what they make of it.
REPLIES = b"$5\r\nhe\r\no\r\n-WRONGTYPE no hash\r\n*3\r\n:1\r\n$-1\r\n*1\r\n$0\r\n\r\n"
HELLO, WRONG, LIST = b"he\r\no", "WRONGTYPE no hash", [1, None, [b""]]


class Script:
    """A server that answers the first bytes of each connection with the next list of pieces, then hangs or closes."""

    def __init__(self, *connections: list[bytes]) -> None:
        self.connections = list(connections)
        self.asked: list[bytes] = []
        self.closes = True
        self.running = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        try:
            self.asked.append(await reader.read(65_536))
            for piece in self.connections.pop(0) if self.connections else []:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not self.closes:
                await reader.read(65_536)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.running -= 1


@contextlib.asynccontextmanager
async def served(script: Script, *, timeout_s: float = 5) -> AsyncIterator[RedisOwner]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    owner = RedisOwner(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=timeout_s)
    owner.start()
    try:
        yield owner
    finally:
        await owner.aclose()
        server.close()
        await server.wait_closed()
        while script.running:
            await asyncio.sleep(0)


async def three(owner: RedisOwner) -> list[object]:
    return await asyncio.gather(owner.call("A"), owner.call("B"), owner.call("C"), return_exceptions=True)


async def test_replies_may_be_cut_anywhere() -> None:
    cuts = range(1, len(REPLIES))
    script = Script(*([REPLIES[:cut], REPLIES[cut:]] for cut in cuts), [bytes([byte]) for byte in REPLIES])
    async with served(script) as owner:
        for _ in (*cuts, "each byte alone"):
            hello, wrong, listed = await three(owner)
            assert (hello, str(wrong), listed) == (HELLO, WRONG, LIST)
            assert isinstance(wrong, ResponseError)
            while owner.is_connected:  # the server closes after each batch
                await asyncio.sleep(0)
    assert script.connections == []


async def test_a_connection_that_ends_while_nothing_is_on_its_way_fails_no_call() -> None:
    async with served(Script([REPLIES], [b"+again\r\n"])) as owner:
        await three(owner)
        while owner.is_connected:
            await asyncio.sleep(0)
        assert await owner.call("PING") == b"again"


@pytest.mark.parametrize("sent", [0, 3, 11, len(REPLIES) - 1])
async def test_a_connection_that_ends_within_a_batch_fails_what_has_no_answer(sent: int) -> None:
    async with served(Script([REPLIES[:sent]], [REPLIES])) as owner:
        answers = await three(owner)
        assert answers[0] == HELLO if sent >= 11 else isinstance(answers[0], StoreUnavailable)
        assert isinstance(answers[2], StoreUnavailable)
        assert (await three(owner))[2] == LIST


async def test_a_reply_that_does_not_come_ends_the_connection_and_what_waits_behind_it() -> None:
    script = Script([REPLIES[:11]], [REPLIES])
    script.closes = False
    async with served(script, timeout_s=0.5) as owner:
        calls = asyncio.gather(three(owner), three(owner))
        answers = [answer for answers in await calls for answer in answers]
        assert answers[0] == HELLO
        assert [type(answer) for answer in answers[1:]] == [StoreUnavailable] * 5
        assert (await three(owner))[2] == LIST


async def test_a_caller_that_gave_up_leaves_its_reply_to_nobody() -> None:
    script = Script([REPLIES])
    async with served(script) as owner:
        first, second, third = owner.call("A"), owner.call("B"), owner.call("C")
        while not script.asked:
            await asyncio.sleep(0)
        second.cancel()
        assert (await first, await third) == (HELLO, LIST)


@pytest.mark.parametrize("said", [b"+one\r\n+nobody asked\r\n", b"?what\r\n"], ids=["too much", "no Redis"])
async def test_what_cannot_be_an_answer_ends_the_connection(said: bytes) -> None:
    script = Script([said], [b"+fine\r\n"])
    script.closes = False
    async with served(script) as owner:
        await asyncio.gather(owner.call("A"), return_exceptions=True)
        while owner.is_connected:
            await asyncio.sleep(0)
        assert await owner.call("A") == b"fine"


async def test_scripts_the_server_does_not_know_are_sent_whole_in_the_same_trip(
    redis: RedisOwner, store: Redis
) -> None:
    trips: list[float] = []
    redis.on_round_trip = trips.append
    sources = [LuaSource(f"return ARGV[1] + {number}") for number in range(3)]
    for _ in range(2):
        calls = [redis.script(source, (), (10,), int) for source in sources]
        assert await asyncio.gather(redis.call("ECHO", "x"), *calls) == [b"x", 10, 11, 12]
    assert len(trips) == 2


async def test_a_patient_call_travels_with_the_next_one_before_it(redis: RedisOwner) -> None:
    trips: list[float] = []
    source = LuaSource("return redis.call('INCR', KEYS[1])", patience_s=60)
    assert await redis.script(source, ("n",), (), int) == 1
    redis.on_round_trip = trips.append
    patient = redis.script(source, ("n",), (), int)
    await asyncio.sleep(0)
    assert trips == []
    assert await redis.call("GET", "n") == b"2"
    assert await patient == 2
    assert len(trips) == 1


async def test_a_script_that_redis_may_not_know_is_not_patient(redis: RedisOwner) -> None:
    source = LuaSource("return redis.call('INCR', KEYS[1])", patience_s=60)
    assert await redis.script(source, ("n",), (), int) == 1  # nobody follows, and it does not wait a minute


async def test_a_patient_call_that_nobody_follows_goes_alone(redis: RedisOwner) -> None:
    source = LuaSource("return redis.call('INCR', KEYS[1])", patience_s=0.001)
    assert await redis.script(source, ("n",), (), int) == 1
    began = time.monotonic()
    assert await asyncio.gather(*(redis.script(source, ("n",), (), int) for _ in range(3))) == [2, 3, 4]
    assert time.monotonic() - began >= 0.001
