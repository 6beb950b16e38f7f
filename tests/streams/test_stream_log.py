"""The log of one answer on a real Redis: what is read is what was said, whatever happens to Redis meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.canonical.errors import ErrorCode, LimitExceeded, ServiceUnavailable
from gateway.ledger import Streams
from gateway.limits import keys
from gateway.limits.redis import RedisOwner
from gateway.streams.log import Head, LogBounds, LogReader, Part, StreamLog
from tests.harness import RedisServer

HEADERS = ((b"content-type", b"text/event-stream"), (b"x-odd", b"\xe9"))


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest_asyncio.fixture
async def redis(server: RedisServer) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(server.url)
    owner.start()
    yield owner
    await owner.aclose()


def opened(redis: RedisOwner, **bounds: float) -> StreamLog:
    log = StreamLog(redis, "acme", "s1", LogBounds(**bounds))  # type: ignore[arg-type]
    log.begin(200, HEADERS)
    return log


async def read(redis: RedisOwner) -> list[Part]:
    reader = LogReader(redis, Streams(redis), LogBounds())
    async with asyncio.timeout(20):
        return [part async for part in reader.follow("acme", "s1") if part is not None]


async def said(redis: RedisOwner) -> bytes:
    return b"".join([part.payload for part in await read(redis)])


async def length(redis: RedisOwner) -> int:
    count: int = await redis.call("XLEN", keys.log("acme", "s1"))
    return count


async def test_a_reader_gets_the_head_the_bytes_and_the_end(redis: RedisOwner) -> None:
    log = opened(redis)
    log.append(b"one ")
    log.append(b"two")
    log.close()
    parts = await read(redis)
    assert parts[0].head == Head(200, (("content-type", "text/event-stream"), ("x-odd", "\xe9")))
    assert parts[0].head.to_headers() == HEADERS
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert [part.is_end for part in parts] == [False] * (len(parts) - 1) + [True]
    assert await said(redis) == b"one two"


async def test_a_reader_that_is_there_first_waits_and_follows(redis: RedisOwner) -> None:
    reading = asyncio.ensure_future(said(redis))  # noqa: TID251
    await redis.call("HSET", keys.record("acme", "s1"), "st", "open")
    log = opened(redis)
    for number in range(20):
        log.append(b"%d " % number)
        await asyncio.sleep(0.01)
    log.close()
    assert await reading == b"".join(b"%d " % number for number in range(20))


async def test_pieces_that_come_quickly_are_written_together(redis: RedisOwner) -> None:
    log = opened(redis)
    for _ in range(1000):
        log.append(b"x")
        await asyncio.sleep(0)
    log.close()
    assert await said(redis) == b"x" * 1000
    assert await length(redis) < 50


async def test_an_empty_answer_has_an_end_too(redis: RedisOwner) -> None:
    opened(redis).close()
    assert await said(redis) == b""


async def test_an_entry_of_which_only_the_reply_got_lost_is_there_once(redis: RedisOwner) -> None:
    log = opened(redis)
    log.append(b"first ")
    while not await length(redis):
        await asyncio.sleep(0.01)
    await redis.call("XADD", keys.log("acme", "s1"), "2-1", "b", b"second")  # as if it had been written before
    log.append(b"second")
    await asyncio.sleep(0.1)
    log.close()
    assert await said(redis) == b"first second"


async def test_a_redis_that_is_away_for_a_while_gets_everything_afterwards(
    server: RedisServer, redis: RedisOwner
) -> None:
    log = opened(redis)
    log.append(b"before ")
    while not await length(redis):
        await asyncio.sleep(0.01)
    server.kill()
    log.append(b"during ")
    await asyncio.sleep(0.2)
    log.append(b"still ")
    server.start()
    log.append(b"after")
    log.close()
    async with asyncio.timeout(15):
        while await length(redis) < 3:
            await asyncio.sleep(0.05)
    assert await said(redis) == b"before during still after"
    assert not log.is_lost


async def test_what_failed_over_redis_lost_is_noticed_and_not_passed_over(redis: RedisOwner) -> None:
    log = opened(redis)
    for number, piece in enumerate((b"one", b"two", b"three"), 1):
        log.append(piece)
        while await length(redis) < number:
            await asyncio.sleep(0.01)
    log.close()
    while await redis.call("XLEN", keys.log("acme", "s1")) < 4:
        await asyncio.sleep(0.01)
    await redis.call("XDEL", keys.log("acme", "s1"), "2-1")
    with pytest.raises(ServiceUnavailable) as refused:
        await read(redis)
    assert refused.value.code is ErrorCode.STREAM_TRUNCATED


@pytest.mark.parametrize("state", [None, "done", "reaped"])
async def test_a_log_without_an_end_whose_stream_is_over_broke_off(redis: RedisOwner, state: str | None) -> None:
    if state is not None:
        await redis.call("HSET", keys.record("acme", "s1"), "st", state)
    opened(redis).append(b"and then")
    with pytest.raises(ServiceUnavailable):
        await read(redis)


async def test_a_log_that_grows_too_long_is_given_up_and_its_memory_freed(redis: RedisOwner) -> None:
    log = opened(redis, bytes_max=100)
    log.append(b"x" * 60)
    while not await length(redis):
        await asyncio.sleep(0.01)
    log.append(b"x" * 60)
    assert log.is_lost
    log.close()
    async with asyncio.timeout(5):
        while await length(redis):
            await asyncio.sleep(0.01)


async def test_a_log_expires_after_its_end_and_while_it_grows_much_later(redis: RedisOwner) -> None:
    log = opened(redis, kept_s=30)
    log.append(b"x")
    while not await length(redis):
        await asyncio.sleep(0.01)
    assert 30_000 < await redis.call("PTTL", keys.log("acme", "s1")) <= 900_000
    log.close()
    async with asyncio.timeout(5):
        while await redis.call("PTTL", keys.log("acme", "s1")) > 30_000:
            await asyncio.sleep(0.01)


async def test_a_reader_leaves_a_mark_that_goes_away_with_it(redis: RedisOwner) -> None:
    opened(redis).append(b"x")
    reader = LogReader(redis, Streams(redis), LogBounds(orphan_s=30))
    parts = reader.follow("acme", "s1")
    await anext(parts)
    assert 0 < await redis.call("PTTL", keys.watched("acme", "s1")) <= 30_000
    await parts.aclose()


async def test_an_account_has_so_many_readers_at_once_and_who_leaves_makes_room(redis: RedisOwner) -> None:
    opened(redis).append(b"x")
    reader = LogReader(redis, Streams(redis), LogBounds(readers_max=2))
    one, two, beyond, other = (reader.follow(account, "s1") for account in ("acme", "acme", "acme", "other"))
    for parts in (one, two, other):
        await anext(parts)
    with pytest.raises(LimitExceeded, match=r"as it may at once \(2\)") as refused:
        await anext(beyond)
    assert refused.value.code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
    await one.aclose()
    last = reader.follow("acme", "s1")
    await anext(last)
    for parts in (two, other, last):
        await parts.aclose()
