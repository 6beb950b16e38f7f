"""What a connection remembers of its responses, above a store that may not be there."""

import pytest

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, RequestError
from gateway.limits.redis import RedisOwner
from gateway.responses.connection import ConnectionStore
from gateway.responses.store import KeptResponse, ResponseStore
from tests.responses.test_response_store import ACME, OTHER, bounded, names, owner, response

__all__ = ["owner"]


def remembering(below: ResponseStore | None = None, *, bytes_max: int = 100_000) -> ConnectionStore:
    return ConnectionStore(below, lambda kept: not kept.id.startswith("resp_own"), bytes_max=bytes_max)


async def missing(store: ResponseStore, caller: Caller, response_id: str) -> None:
    with pytest.raises(RequestError) as raised:
        await store.chain(caller, response_id)
    assert raised.value.code is ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND


async def test_a_conversation_is_remembered_where_nothing_is_stored() -> None:
    own = remembering()
    for name, previous in (("resp_a", ""), ("resp_b", "resp_a"), ("resp_x", "resp_a")):
        assert await own.put("acme", response(name, previous))
    assert names(await own.chain(ACME, "resp_b")) == ["resp_a", "resp_b"]
    assert names(await own.chain(ACME, "resp_x")) == ["resp_a", "resp_x"]
    assert set(await own.find(ACME, ["resp_a", "resp_none"])) == {"resp_a"}
    await missing(own, ACME, "resp_none")
    await missing(own, OTHER, "resp_a")
    await own.delete("acme", "resp_a")
    await missing(own, ACME, "resp_b")


async def test_the_oldest_goes_where_there_is_no_room() -> None:
    own = remembering(bytes_max=3_500)
    for number in range(5):
        await own.put("acme", response(f"resp_{number}", size=1000))
    assert set(await own.find(ACME, [f"resp_{number}" for number in range(5)])) == {"resp_2", "resp_3", "resp_4"}
    await own.put("acme", response("resp_2", size=10))
    assert set(await own.find(ACME, ["resp_2", "resp_3", "resp_4"])) == {"resp_2", "resp_3", "resp_4"}
    await own.put("acme", response("resp_huge", size=10_000))
    await missing(own, ACME, "resp_huge")


async def test_what_is_stored_and_what_is_not_make_one_conversation(owner: RedisOwner) -> None:
    below = bounded(owner)
    await below.put("acme", response("resp_a"))
    own = remembering(below)
    await own.put("acme", response("resp_own", "resp_a"))
    await own.put("acme", response("resp_b", "resp_own"))
    assert names(await own.chain(ACME, "resp_b")) == ["resp_a", "resp_own", "resp_b"]
    assert set(await own.find(ACME, ["resp_a", "resp_own", "resp_b"])) == {"resp_a", "resp_own", "resp_b"}
    found: KeptResponse | None = await below.get(ACME, "resp_b")
    assert found is not None and await below.get(ACME, "resp_own") is None
    await missing(own, ACME, "resp_none")
