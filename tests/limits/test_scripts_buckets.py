"""Token buckets in the scripts: exact refill, exact retry, debt, refunds, a clock that steps."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Bucket, Unit

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

DAY_MS = 86_400_000
START_MS = 1_800_000_000_123


def stored(teller: Teller, name: str) -> tuple[int, int]:
    level, last = teller.store.get(keys.limits_of("acme").bucket(name)).split()
    return int(level), int(last)


def put(teller: Teller, name: str, level: int, last: int) -> None:
    teller.store.set(keys.limits_of("acme").bucket(name), f"{level} {last}", px=3_600_000)


async def test_a_missing_bucket_is_full_and_is_emptied_one_by_one(teller: Teller) -> None:
    teller.limit(buckets=[Bucket("rpm", 3, DAY_MS, 3)])
    teller.set_clock(START_MS)
    await teller.grant(1000)
    replies = [await teller.reserve(sid) for sid in "abcd"]
    assert [reply.code for reply in replies] == [1, 1, 1, -4]
    assert [reply.left for reply in replies] == [[2], [1], [0], [0]]


@pytest.mark.parametrize(
    ("limit", "period_ms", "burst"), [(3, 3_600_000, 3), (7, 60_000, 50), (1, DAY_MS, 1), (999, 1000, 1), (60, 1000, 9)]
)
async def test_after_exactly_the_time_it_is_told_a_request_passes(
    teller: Teller, limit: int, period_ms: int, burst: int
) -> None:
    teller.limit(buckets=[Bucket("spare", 999, 1000, 999), Bucket("rpm", limit, period_ms, burst)])
    teller.set_clock(START_MS)
    await teller.grant(1000)
    assert {(await teller.reserve(f"s{number}", 0)).code for number in range(burst)} == {1}
    refused = await teller.reserve("next", 0)
    assert (refused.code, refused.index) == (-4, 2)
    assert refused.retry_after_ms == -(-period_ms // limit)
    teller.set_clock(START_MS + refused.retry_after_ms - 1)
    last = await teller.reserve("next", 0)
    assert (last.code, last.retry_after_ms) == (-4, 1)
    teller.set_clock(START_MS + refused.retry_after_ms)
    assert (await teller.reserve("next", 0)).code == 1


async def test_a_refill_is_exact_to_the_millisecond(teller: Teller) -> None:
    bucket = Bucket("rpm", 7, DAY_MS, 50)
    teller.limit(buckets=[bucket])
    await teller.grant(1000)
    full = bucket.burst * bucket.period_ms
    for number, (level, elapsed) in enumerate([(0, 50_000_000), (full - 5, 3), (-full, 10**9), (full // 3, 12_345)]):
        teller.set_clock(START_MS + number * 10**10)
        put(teller, "rpm", level, teller.now_ms() - elapsed)
        assert (await teller.reserve(f"s{number}")).code == 1
        left = min(full, level + elapsed * bucket.limit) - bucket.period_ms
        assert stored(teller, "rpm") == (left, teller.now_ms())
        assert 0 < teller.store.pttl(keys.limits_of("acme").bucket("rpm")) <= -(-(full - left) // bucket.limit) + 1000


async def test_nothing_is_lost_to_rounding_however_often_it_is_asked(teller: Teller) -> None:
    teller.limit(buckets=[Bucket("rpm", 7, 60_000, 7)])
    teller.set_clock(START_MS)
    await teller.grant(1000)
    passed = 0
    for number in range(300):
        teller.set_clock(START_MS + number * 1009)
        passed += (await teller.reserve(f"s{number}", 0)).code == 1
    assert passed == 7 + 299 * 1009 * 7 // 60_000


async def test_more_than_it_ever_holds_is_never_and_not_later(teller: Teller) -> None:
    teller.limit(buckets=[Bucket("tpm", 1000, 60_000, 100, Unit.TOKENS)])
    await teller.grant(1000)
    before = teller.everything()
    reply = await teller.reserve("s", tokens=101)
    assert (reply.code, reply.index, reply.retry_after_ms) == (-7, 1, 0)
    assert teller.everything() == before
    assert (await teller.reserve("s", tokens=100)).code == 1


async def test_a_clock_that_stepped_back_takes_nothing_and_freezes_nothing(teller: Teller) -> None:
    teller.limit(buckets=[Bucket("rpm", 3, 3_600_000, 3)])
    teller.set_clock(START_MS)
    await teller.grant(1000)
    put(teller, "rpm", 0, START_MS + 1_800_000)
    reply = await teller.reserve("s")
    assert (reply.code, reply.retry_after_ms) == (-4, 1_200_000)
    put(teller, "rpm", 0, START_MS + 2 * 3_600_000)
    assert (await teller.reserve("s")).code == 1


class TestTokens:
    TPM = Bucket("tpm", 1000, 60_000, 1000, Unit.TOKENS)
    RPM = Bucket("rpm", 10, 60_000, 10)

    @pytest.fixture(autouse=True)
    async def account(self, teller: Teller) -> None:
        teller.limit(buckets=[self.TPM, self.RPM])
        teller.set_clock(START_MS)
        await teller.grant(100_000)

    def left(self, teller: Teller) -> tuple[float, float]:
        """Tokens and requests."""
        full = (1000 * 60_000, 10 * 60_000)
        tpm, rpm = (
            full[i] if (level := teller.level(name)) is None else level for i, name in enumerate(("tpm", "rpm"))
        )
        return tpm / 60_000, rpm / 60_000

    async def test_the_estimate_is_taken_and_becomes_the_true_figure(self, teller: Teller) -> None:
        reply = await teller.reserve("s", tokens=400)
        assert (reply.left, self.left(teller)) == ([600, 9], (600, 9))
        await teller.settle("s", 5, tokens=150)
        assert self.left(teller) == (850, 9)

    async def test_what_the_true_figure_is_more_is_taken_at_the_end(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        await teller.settle("s", 5, tokens=950)
        assert self.left(teller) == (50, 9)

    async def test_a_refund_gives_the_request_back_too(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        await teller.settle("s", 0, tokens=0, refund=True)
        assert self.left(teller) == (1000, 10)
        before = teller.everything()
        await teller.settle("s", 0, tokens=0, refund=True)
        await teller.settle("never admitted", 0, tokens=0, refund=True, outcome="failed")
        assert {key: teller.store.dump(key) for key in before if b":r:" in key} == {
            key: value for key, value in before.items() if b":r:" in key
        }

    async def test_nothing_is_given_back_beyond_a_full_bucket(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        teller.set_clock(START_MS + 60_000)
        await teller.settle("s", 0, tokens=0, refund=True)
        assert self.left(teller) == (1000, 10)

    async def test_a_stream_that_says_more_than_estimated_is_taken_from_as_it_goes(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        assert (await teller.extend("s", tokens=300)).debt_ms == 0
        assert self.left(teller) == (600, 9)
        assert (await teller.extend("s", tokens=900)).debt_ms == 0
        assert self.left(teller) == (100, 9)
        reply = await teller.extend("s", tokens=1200)
        assert self.left(teller) == (-200, 9)
        assert reply.debt_ms == 12_000
        assert teller.record("s")["n"] == "1200"
        assert (await teller.extend("s", tokens=1100)).debt_ms == 0
        await teller.settle("s", 5, tokens=1200)
        assert self.left(teller) == (-200, 9)

    async def test_debt_is_out_of_the_way_after_exactly_its_time(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=1000)
        debt_ms = (await teller.extend("s", tokens=1333)).debt_ms
        assert debt_ms == 333 * 60
        refused = await teller.reserve("t", tokens=0)
        assert (refused.code, refused.retry_after_ms) == (-4, debt_ms)
        teller.set_clock(START_MS + debt_ms)
        assert (await teller.reserve("t", tokens=0)).code == 1

    async def test_debt_is_one_burst_at_most_once_the_stream_is_settled(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=1000)
        assert (await teller.extend("s", tokens=10**6)).debt_ms == (10**6 - 1000) * 60
        await teller.settle("s", 5, tokens=2 * 10**6)
        assert self.left(teller) == (-1000, 9)

    async def test_a_figure_that_turns_out_lower_forgives_no_more_than_was_taken(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=1000)
        await teller.extend("s", tokens=1900)
        await teller.settle("s", 5, tokens=1800)
        assert self.left(teller) == (-800, 9)

    async def test_a_correction_after_a_reap_counts_once(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        teller.lapse("s")
        await teller.reap("s")
        assert self.left(teller) == (600, 9)
        await teller.settle("s", 5, tokens=700)
        await teller.settle("s", 5, tokens=900)
        assert self.left(teller) == (300, 9)

    async def test_what_was_lost_takes_nothing_from_buckets(self, teller: Teller) -> None:
        await teller.settle("lost", 5, tokens=700)
        assert self.left(teller) == (1000, 10)

    async def test_a_beat_that_names_no_more_tokens_leaves_buckets_alone(self, teller: Teller) -> None:
        await teller.reserve("s", tokens=400)
        teller.set_clock(START_MS + 1000)
        await teller.extend("s", tokens=400, is_beyond=False)
        assert stored(teller, "tpm") == (600 * 60_000, START_MS)

    async def test_a_limit_that_is_only_watched_tells_no_debt(self, teller: Teller) -> None:
        teller.limit(buckets=[Bucket("watched", 10, 60_000, 10, Unit.TOKENS, True)])
        await teller.reserve("s", tokens=5)
        assert (await teller.extend("s", tokens=15)).debt_ms == 0
