"""``cap`` over rolling windows: no minute, wherever it begins, has more in it than the limit."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Allowances, Slots, Unit, Window
from gateway.limits.scripts import Share

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

OWNER = keys.capacity("deployment.d")
START_MS = 1_800_000_000_500
MINUTE = (1000, 60, 0)


def share(requests: int = 3, tokens: int = 1000, *, estimate: int = 100, streams: int = 50) -> Share:
    windows = (Window("rpm", requests, MINUTE, Unit.REQUESTS), Window("tpm", tokens, MINUTE, Unit.TOKENS))
    allowances = Allowances(OWNER, windows=windows, slots=(Slots("streams", streams),))
    return Share(owner=OWNER, allowances=allowances, estimate=estimate, lease_ms=300_000)


def used(teller: Teller, name: str) -> int:
    return int(teller.store.hget(OWNER.window(name), "sum") or 0)


@pytest.fixture(autouse=True)
def clock(teller: Teller) -> None:
    teller.set_clock(START_MS)


async def test_a_request_counts_for_a_whole_minute_and_the_wait_for_it_is_true(teller: Teller) -> None:
    it = share()
    for number in range(3):
        teller.set_clock(START_MS + number * 10_000)
        assert (await teller.cap(it, "acquire", f"a{number}")).code == 1
        assert (await teller.cap(it, "release", f"a{number}", refund=True)).code == 1
    refused = await teller.cap(it, "acquire", "late")
    assert (refused.code, refused.index) == (-3, 1)
    until = START_MS + 20_000 + refused.retry_after_ms
    assert START_MS + 60_000 < until <= START_MS + 61_000
    teller.set_clock(until - 1)
    assert (await teller.cap(it, "acquire", "late")).code == -3
    teller.set_clock(until)
    assert (await teller.cap(it, "acquire", "late")).code == 1
    assert (await teller.cap(it, "acquire", "later")).code == -3, "only the first of them is over"


async def test_tokens_that_were_not_used_come_back_at_once_and_count_no_longer_than_they_did(teller: Teller) -> None:
    it = share(99, estimate=600)
    assert (await teller.cap(it, "acquire", "a")).code == 1
    assert (await teller.cap(it, "acquire", "b")).code == -3
    teller.set_clock(START_MS + 30_000)
    await teller.cap(it, "touch", "a")
    await teller.cap(it, "release", "a", tokens=10)
    assert used(teller, "tpm") == 10
    assert (await teller.cap(it, "acquire", "b")).code == 1
    teller.set_clock(START_MS + 61_000)
    assert (await teller.cap(it, "acquire", "c")).code == -3, "what came back lay in the first second, not in a later"
    assert used(teller, "tpm") == 600


async def test_tokens_of_a_call_that_outlasts_the_minute_are_not_given_back_twice(teller: Teller) -> None:
    it = share(99, estimate=600)
    await teller.cap(it, "acquire", "long")
    teller.set_clock(START_MS + 100_000)
    assert (await teller.cap(it, "acquire", "b")).code == 1
    await teller.cap(it, "release", "long", tokens=10)
    assert used(teller, "tpm") == 600


async def test_more_tokens_than_were_estimated_count_from_when_they_are_known(teller: Teller) -> None:
    it = share(99, estimate=100)
    await teller.cap(it, "acquire", "a")
    teller.set_clock(START_MS + 5_000)
    await teller.cap(it, "release", "a", tokens=950)
    assert (await teller.cap(it, "acquire", "b")).code == -3
    assert used(teller, "tpm") == 950
    too_much = share(99, estimate=1001)
    assert (await teller.cap(too_much, "acquire", "c")).code == -7


async def test_all_of_it_is_taken_or_nothing(teller: Teller) -> None:
    narrow = share(99, streams=1)
    assert (await teller.cap(narrow, "acquire", "a")).code == 1
    before = teller.everything()
    refused = await teller.cap(narrow, "acquire", "b")
    assert (refused.code, refused.index) == (-5, 3)
    assert teller.everything() == before


async def test_no_minute_has_more_than_the_limit(teller: Teller) -> None:
    it, took = share(5, 10**9), []
    for step in range(260):
        at = START_MS + step * 997
        teller.set_clock(at)
        if (await teller.cap(it, "acquire", f"s{step}")).code == 1:
            took.append(at)
    worst = max(sum(start <= at < start + 60_000 for at in took) for start in took)
    assert worst == 5 and len(took) == 25
