"""``cap``: capacity that accounts share, taken before the account's own decision and given back after it."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit
from gateway.limits.scripts import Share

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

OWNER = keys.capacity("model.m")
START_MS = 1_800_000_000_000
MINUTE_MS = 60_000
RPM, TPM = Bucket("rpm", 2, MINUTE_MS, 2), Bucket("tpm", 1000, MINUTE_MS, 1000, Unit.TOKENS)


def share(*buckets: Bucket, slots: tuple[Slots, ...] = (), estimate: int = 100) -> Share:
    allowances = Allowances(OWNER, buckets=buckets, slots=slots)
    return Share(owner=OWNER, allowances=allowances, estimate=estimate, lease_ms=30_000)


def level(teller: Teller, bucket: Bucket) -> float:
    stored = teller.store.get(OWNER.bucket(bucket.name))
    return bucket.burst if stored is None else int(stored.split()[0]) / bucket.period_ms


@pytest.fixture(autouse=True)
def clock(teller: Teller) -> None:
    teller.set_clock(START_MS)


async def test_it_is_taken_once_and_given_back_once(teller: Teller) -> None:
    it = share(RPM, TPM, slots=(Slots("streams", 5),))
    assert [(await teller.cap(it, "acquire", sid)).code for sid in ("a", "a", "b")] == [1, 2, 1]
    assert (level(teller, RPM), level(teller, TPM)) == (0, 800)
    refused = await teller.cap(it, "acquire", "c")
    assert (refused.code, refused.index, refused.retry_after_ms) == (-4, 1, 30_000)
    assert [(await teller.cap(it, "release", "b", refund=True)).code for _ in range(3)] == [1, 2, 2]
    assert (level(teller, RPM), level(teller, TPM)) == (1, 900)
    assert (await teller.cap(it, "acquire", "c")).code == 1
    assert teller.store.zrange(OWNER.slots("streams"), 0, -1) == [b"a", b"c"]


async def test_the_estimate_becomes_the_true_figure(teller: Teller) -> None:
    it = share(TPM)
    for sid, tokens in (("a", 40), ("b", 250)):
        await teller.cap(it, "acquire", sid)
        await teller.cap(it, "release", sid, tokens=tokens)
    assert level(teller, TPM) == 1000 - 40 - 250


async def test_it_may_go_into_debt_by_one_burst(teller: Teller) -> None:
    it = share(TPM)
    await teller.cap(it, "acquire", "a")
    await teller.cap(it, "release", "a", tokens=10**9)
    assert level(teller, TPM) == -1000


async def test_the_time_it_tells_is_exact(teller: Teller) -> None:
    it = share(Bucket("rpm", 7, MINUTE_MS, 1))
    await teller.cap(it, "acquire", "a")
    refused = await teller.cap(it, "acquire", "b")
    assert refused.retry_after_ms == -(-MINUTE_MS // 7)
    teller.set_clock(START_MS + refused.retry_after_ms - 1)
    assert (await teller.cap(it, "acquire", "b")).code == -4
    teller.set_clock(START_MS + refused.retry_after_ms)
    assert (await teller.cap(it, "acquire", "b")).code == 1


async def test_all_of_it_is_taken_or_nothing(teller: Teller) -> None:
    it = share(Bucket("rpm", 9, MINUTE_MS, 9), TPM, slots=(Slots("wide", 9), Slots("narrow", 1)))
    await teller.cap(it, "acquire", "a")
    before = teller.everything()
    refused = await teller.cap(it, "acquire", "b")
    assert (refused.code, refused.index) == (-5, 4)
    too_large = share(Bucket("rpm", 9, MINUTE_MS, 9), TPM, estimate=1001)
    refused = await teller.cap(too_large, "acquire", "b")
    assert (refused.code, refused.index, refused.retry_after_ms) == (-7, 2, 0)
    assert teller.everything() == before


async def test_what_is_only_watched_is_reported(teller: Teller) -> None:
    watched = share(Bucket("rpm", 1, MINUTE_MS, 1, Unit.REQUESTS, True), slots=(Slots("streams", 1, True),))
    assert (await teller.cap(watched, "acquire", "a")).shadowed == []
    reply = await teller.cap(watched, "acquire", "b")
    assert (reply.code, reply.shadowed) == (1, [1, 2])


async def test_touching_keeps_it_and_a_permit_that_nobody_touches_ends(teller: Teller) -> None:
    it = share(slots=(Slots("streams", 1),))
    assert (await teller.cap(it, "acquire", "a")).code == 1
    for beat in range(1, 5):
        teller.set_clock(START_MS + beat * 20_000)
        assert [(await teller.cap(it, "touch", "a")).code for _ in range(2)] == [1, 1]
        assert (await teller.cap(it, "acquire", "b")).code == -5
    teller.set_clock(START_MS + 80_000 + 30_000)
    assert (await teller.cap(it, "acquire", "b")).code == 1
    assert teller.store.zrange(OWNER.slots("streams"), 0, -1) == [b"b"]


async def test_a_permit_that_ended_by_itself_gives_nothing_back(teller: Teller) -> None:
    it = share(RPM, slots=(Slots("streams", 1),))
    await teller.cap(it, "acquire", "a")
    teller.set_clock(START_MS + 30_000)
    before = teller.everything()
    assert (await teller.cap(it, "release", "a", refund=True)).code == 2
    assert teller.everything() == before


async def test_an_id_that_comes_again_after_its_permit_ended_takes_anew(teller: Teller) -> None:
    it = share(RPM, slots=(Slots("streams", 1),))
    await teller.cap(it, "acquire", "a")
    teller.set_clock(START_MS + 30_000)
    assert (await teller.cap(it, "acquire", "a")).code == 1
    assert level(teller, RPM) == 1
    assert (await teller.cap(it, "acquire", "b")).code == -5


async def test_a_release_that_was_not_acquired_changes_nothing(teller: Teller) -> None:
    it = share(RPM, TPM, slots=(Slots("streams", 1),))
    assert (await teller.cap(it, "release", "never", refund=True)).code == 2
    assert teller.everything() == {}


async def test_permits_before_money_are_given_back_exactly(teller: Teller) -> None:
    """Two hash slots: what the account's own decision refuses leaves nothing behind in the shared capacity."""
    it = share(Bucket("rpm", 10, MINUTE_MS, 10), slots=(Slots("streams", 3),))
    await teller.grant(150)
    admitted = []
    for sid in ("a", "b", "c"):
        assert (await teller.cap(it, "acquire", sid)).code == 1
        if (await teller.reserve(sid, 100)).code == 1:
            admitted.append(sid)
        else:
            assert (await teller.cap(it, "release", sid, refund=True)).code == 1
    assert admitted == ["a"]
    assert level(teller, Bucket("rpm", 10, MINUTE_MS, 10)) == 9
    assert teller.store.zrange(OWNER.slots("streams"), 0, -1) == [b"a"]
