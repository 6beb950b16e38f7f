"""Stored responses in a real Redis: who finds them, for how long, and how much of them there may be."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis as outside

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, RequestError
from gateway.limits import keys
from gateway.limits.redis import RedisOwner, StoreUnavailable
from gateway.responses.store import KeptResponse, ResponseStore, StoreBounds
from tests.harness import RedisServer

ACME = Caller(account="acme", subject="key:1", method="api_key")
ANNA = Caller(account="acme", subject="anna", method="jwt")
BERT = Caller(account="acme", subject="bert", method="jwt")
OTHER = Caller(account="other", subject="key:2", method="api_key")


@pytest.fixture
async def owner(redis_server: RedisServer, store: outside.Redis) -> AsyncIterator[RedisOwner]:
    owner = RedisOwner(redis_server.url, timeout_s=5)
    owner.start()
    yield owner
    await owner.aclose()


def bounded(owner: RedisOwner, **bounds: Any) -> ResponseStore:
    return ResponseStore(owner, StoreBounds(**bounds))


def response(name: str, previous: str = "", *, by: Caller = ACME, size: int = 0) -> KeptResponse:
    told = msgspec.json.encode({"id": name, "output": [], "text": "x" * size})
    item = msgspec.Raw(b'{"id":"msg_1","type":"message"}')
    return KeptResponse(
        id=name, method=by.method, subject=by.subject, previous=previous, response=msgspec.Raw(told), input=[item]
    )


def names(found: list[KeptResponse]) -> list[str]:
    return [kept.id for kept in found]


async def refused(call: Any) -> ErrorCode:
    with pytest.raises(RequestError) as raised:
        await call
    return raised.value.code


async def test_a_response_is_found_as_it_was_put(owner: RedisOwner) -> None:
    kept = bounded(owner)
    assert await kept.put("acme", response("resp_a"))
    found = await kept.get(ACME, "resp_a")
    assert found is not None and msgspec.json.encode(found) == msgspec.json.encode(response("resp_a"))
    assert await kept.get(ACME, "resp_b") is None
    assert await kept.get(OTHER, "resp_a") is None


async def test_what_is_put_again_takes_the_place_of_what_was(owner: RedisOwner, store: outside.Redis) -> None:
    kept = bounded(owner)
    await kept.put("acme", response("resp_a", size=1000))
    await kept.put("acme", response("resp_a"))
    body = store.hget(keys.responses("acme"), "resp_a")
    assert isinstance(body, bytes)
    assert store.hget(keys.responses("acme"), "bytes") == str(len(body)).encode()


async def test_a_conversation_is_found_from_its_beginning(owner: RedisOwner) -> None:
    kept = bounded(owner)
    for name, previous in (("resp_a", ""), ("resp_b", "resp_a"), ("resp_c", "resp_b"), ("resp_x", "resp_a")):
        await kept.put("acme", response(name, previous))
    assert names(await kept.chain(ACME, "resp_c")) == ["resp_a", "resp_b", "resp_c"]
    assert names(await kept.chain(ACME, "resp_x")) == ["resp_a", "resp_x"]
    assert await refused(kept.chain(OTHER, "resp_c")) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
    await kept.delete("acme", "resp_b")
    assert await refused(kept.chain(ACME, "resp_c")) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
    assert names(await kept.chain(ACME, "resp_x")) == ["resp_a", "resp_x"]


@pytest.mark.parametrize("name", ["", "bytes", "<resp_a", "resp_a ", "resp_\x00", "é"])
async def test_a_name_that_is_no_response_finds_none(owner: RedisOwner, name: str) -> None:
    kept = bounded(owner)
    await kept.put("acme", response("resp_a"))
    assert await refused(kept.chain(ACME, name)) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
    assert await kept.get(ACME, name) is None
    await kept.delete("acme", name)
    assert await kept.get(ACME, "resp_a") is not None


async def test_a_token_sees_its_subjects_responses_and_a_key_all(owner: RedisOwner) -> None:
    kept = bounded(owner)
    await kept.put("acme", response("resp_a", by=ANNA))
    await kept.put("acme", response("resp_k"))
    assert await kept.get(ANNA, "resp_a") is not None and await kept.get(ACME, "resp_a") is not None
    assert await kept.get(BERT, "resp_a") is None and await kept.get(ANNA, "resp_k") is None
    assert await refused(kept.chain(BERT, "resp_a")) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
    await kept.put("acme", response("resp_b", "resp_k", by=ANNA))
    assert await refused(kept.chain(ANNA, "resp_b")) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND


async def test_a_response_goes_after_its_time_and_one_that_was_gone_on_from_stays(
    owner: RedisOwner, store: outside.Redis
) -> None:
    kept = bounded(owner, ttl_s=60)
    for name, previous in (("resp_a", ""), ("resp_b", "resp_a"), ("resp_x", "")):
        await kept.put("acme", response(name, previous))
    ends = keys.response_ends("acme")
    store.zadd(ends, {"resp_a": 1, "resp_x": 1}, xx=True)
    assert await kept.get(ACME, "resp_a") is None
    assert await refused(kept.chain(ACME, "resp_b")) is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND
    await kept.put("acme", response("resp_c", "resp_b"))
    assert names(await kept.chain(ACME, "resp_c")) == ["resp_a", "resp_b", "resp_c"]
    assert store.zscore(ends, "resp_a") == store.zscore(ends, "resp_c")
    assert store.hget(keys.responses("acme"), "resp_x") is None
    for key in (keys.responses("acme"), ends):
        assert 0 < store.pttl(key) <= 60_000


async def test_nothing_is_left_once_the_last_has_gone(owner: RedisOwner, store: outside.Redis) -> None:
    await bounded(owner, ttl_s=0.05).put("acme", response("resp_a"))
    async with asyncio.timeout(15):
        while store.keys("*"):
            await asyncio.sleep(0.01)


async def test_the_oldest_make_room_for_the_newest(owner: RedisOwner, store: outside.Redis) -> None:
    kept = bounded(owner, account_bytes_max=5_000)
    for n in range(9):
        await kept.put("acme", response(f"resp_{n}", size=1_000))
        await asyncio.sleep(0.002)  # so that the server's clock tells them apart
    await kept.put("other", response("resp_0", size=1_000))
    there = [n for n in range(9) if await kept.get(ACME, f"resp_{n}") is not None]
    assert there == [5, 6, 7, 8]
    assert int(store.hget(keys.responses("acme"), "bytes") or 0) <= 5_000
    assert store.zcard(keys.response_ends("acme")) == 4 and store.hlen(keys.responses("acme")) == 9
    assert await kept.get(OTHER, "resp_0") is not None


async def test_a_response_that_is_too_large_is_not_put(owner: RedisOwner, store: outside.Redis) -> None:
    assert not await bounded(owner, response_bytes_max=500).put("acme", response("resp_a", size=500))
    assert not await bounded(owner, account_bytes_max=500).put("acme", response("resp_a", size=500))
    assert store.keys("*") == []


async def test_a_conversation_has_bounds(owner: RedisOwner) -> None:
    kept = bounded(owner)
    for n in range(4):
        await kept.put("acme", response(f"resp_{n}", f"resp_{n - 1}" if n else "", size=500))
    assert await refused(bounded(owner, conversation_max=3).chain(ACME, "resp_3")) is ErrorCode.REQUEST_TOO_LARGE
    assert await refused(bounded(owner, conversation_bytes_max=2_000).chain(ACME, "resp_3")) is (
        ErrorCode.REQUEST_TOO_LARGE
    )
    assert len(await bounded(owner, conversation_max=4).chain(ACME, "resp_3")) == 4
    many = [f"resp_{n}" for n in range(4)]
    assert await refused(bounded(owner, conversation_bytes_max=2_000).find(ACME, many)) is ErrorCode.REQUEST_TOO_LARGE
    assert list(await kept.find(ACME, ["resp_2", "resp_none", "resp_0"])) == ["resp_2", "resp_0"]


async def test_what_redis_refuses_for_good_is_no_more_than_unavailable(owner: RedisOwner, store: outside.Redis) -> None:
    store.set(keys.responses("acme"), "no hash")
    kept = bounded(owner)
    with pytest.raises(StoreUnavailable):
        await kept.put("acme", response("resp_a"))


async def test_the_scripts_ask_for_no_right_that_a_gateway_lacks(
    owner: RedisOwner, store: outside.Redis, redis_server: RedisServer
) -> None:
    rights = "+eval +evalsha +time +hget +hset +hdel +hincrby +zadd +zscore +zrange +zrangebyscore +zrem +pexpire"
    command: Any = store.execute_command
    command(
        "ACL", "SETUSER", "gateway", "reset", "on", ">secret", "~cr:*", "-@all", "+ping", "+select", *rights.split()
    )
    url = redis_server.url.replace("redis://", "redis://gateway:secret@")
    limited = RedisOwner(url, timeout_s=5)
    limited.start()
    try:
        kept = bounded(limited, account_bytes_max=2_000)
        for name, previous in (("resp_a", ""), ("resp_b", "resp_a"), ("resp_c", "")):
            assert await kept.put("acme", response(name, previous, size=800))
        await kept.find(ACME, ["resp_c"])
        await kept.delete("acme", "resp_c")
    finally:
        await limited.aclose()
        command("ACL", "DELUSER", "gateway")
