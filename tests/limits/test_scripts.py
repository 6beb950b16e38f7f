"""Every code of every script, against real servers: what it changes, what its replay and its refusal do not."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys, scripts
from gateway.limits.redis import RedisOwner
from gateway.limits.scripts import Allowances, Bucket, Slots

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

BIG = 2**52


async def funded(teller: Teller, amount: int = 1000) -> None:
    assert (await teller.grant(amount)).code == 1


class TestGrant:
    async def test_credit_is_added_once_per_id(self, teller: Teller) -> None:
        assert [(await teller.grant(100)).code for _ in range(3)] == [1, 2, 2]
        assert (await teller.grant(50, "other")).granted == 150
        assert teller.wallet()["granted"] == 150
        assert [row["d"] for row in teller.ledger()] == ["100", "50"]

    async def test_an_id_is_not_taken_for_another_amount(self, teller: Teller) -> None:
        await funded(teller)
        before = teller.everything()
        assert (await teller.grant(1001)).code == 5
        assert teller.everything() == before

    async def test_credit_can_be_taken_back_down_to_what_is_free(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 400)
        assert (await teller.grant(-601, "too much")).code == -2
        assert (await teller.grant(-600, "all")).code == 1
        assert teller.wallet() == {"granted": 400, "spent": 0, "held": 400, "absorbed": 0}

    async def test_more_than_two_to_the_fifty_second_is_refused(self, teller: Teller) -> None:
        assert (await teller.grant(BIG + 1, "a")).code == -12
        assert (await teller.grant(BIG, "b")).code == 1
        before = teller.everything()
        assert (await teller.grant(1, "c")).code == -12
        assert teller.everything() == before

    async def test_amounts_are_exact_at_four_and_a_half_quadrillion(self, teller: Teller) -> None:
        await funded(teller, BIG - 1)
        reply = await teller.reserve("s", BIG - 2)
        assert (reply.held, reply.available) == (BIG - 2, 1)
        assert (await teller.extend("s", used=BIG - 3, need=BIG - 1, target=BIG - 1)).held == BIG - 1
        assert (await teller.settle("s", BIG - 4)).charged == BIG - 4
        assert teller.wallet() == {"granted": BIG - 1, "spent": BIG - 4, "held": 0, "absorbed": 0}
        assert teller.ledger()[-1]["d"] == str(BIG - 4)


class TestReserve:
    async def test_a_stream_is_admitted_with_a_hold_and_a_lease(self, teller: Teller) -> None:
        await funded(teller)
        reply = await teller.reserve("s", 100)
        assert (reply.code, reply.held, reply.available) == (1, 100, 900)
        record = teller.record("s")
        assert (record["st"], record["h"], record["u"], record["m"]) == ("open", "100", "0", '{"model":"m"}')
        assert teller.store.zscore(keys.leases("acme"), "s") > teller.now_ms()

    async def test_our_own_retry_is_told_what_it_has_and_takes_nothing_twice(self, teller: Teller) -> None:
        teller.allowances = Allowances((Bucket("b", 5, 60_000, 5),), (Slots("c", 5),))
        await funded(teller)
        await teller.reserve("s", 100)
        before = teller.everything()
        reply = await teller.reserve("s", 100)
        assert (reply.code, reply.held, reply.available) == (2, 100, 900)
        assert teller.everything() == before

    async def test_somebody_elses_stream_and_a_finished_one_are_told_apart(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        assert (await teller.reserve("s", 100, nonce="another")).code == 4
        await teller.settle("s", 1)
        assert (await teller.reserve("s", 100)).code == 4
        assert teller.wallet()["held"] == 0

    async def test_near_the_end_of_the_balance_streams_share_what_is_left(self, teller: Teller) -> None:
        await funded(teller)
        assert (await teller.reserve("a", 10, 10_000)).held == 500
        assert (await teller.reserve("b", 10, 10_000)).held == 125
        assert (await teller.reserve("c", 10, 20)).held == 20
        assert (await teller.reserve("d", 355, 10_000)).held == 355
        assert (await teller.reserve("e", 1)).code == -2

    async def test_a_stream_is_never_given_less_than_it_needs(self, teller: Teller) -> None:
        await funded(teller, 100)
        assert (await teller.reserve("a", 90, 10_000)).held == 90
        reply = await teller.reserve("b", 11, 10_000)
        assert (reply.code, reply.available) == (-2, 10)

    async def test_dead_holds_are_told_from_an_empty_account(self, teller: Teller) -> None:
        await funded(teller, 100)
        await teller.reserve("dead", 100)
        assert (await teller.reserve("s", 10)).code == -2
        teller.lapse("dead")
        assert (await teller.reserve("s", 10)).code == -8
        assert (await teller.reap("dead")).reaped == 1
        assert (await teller.reserve("s", 10)).code == 1

    async def test_slots_are_counted_by_leases_that_run(self, teller: Teller) -> None:
        teller.allowances = Allowances(slots=(Slots("wide", 5), Slots("narrow", 2)))
        await funded(teller)
        assert [(await teller.reserve(sid)).code for sid in "abc"] == [1, 1, -5]
        assert (await teller.reserve("c")).index == 2
        teller.lapse("a")
        assert (await teller.reserve("c")).code == 1
        assert teller.store.zrange(keys.slots("acme", "narrow"), 0, -1) == [b"b", b"c"]
        await teller.settle("b", 1)
        assert (await teller.reserve("d")).code == 1


class TestBucket:
    LIMIT = Bucket("requests", 3, 3_600_000, 3)

    async def test_what_is_asked_for_more_often_has_to_wait_exactly_as_long_as_it_takes(self, teller: Teller) -> None:
        teller.allowances = Allowances((Bucket("spare", 9, 1000, 9), self.LIMIT))
        await funded(teller)
        assert [(await teller.reserve(sid)).code for sid in "abc"] == [1, 1, 1]
        key = keys.bucket("acme", "requests")
        start = teller.now_ms()
        teller.store.hset(key, mapping={"l": 0, "t": start})
        earliest = teller.now_ms()
        reply = await teller.reserve("d")
        latest = teller.now_ms()
        assert (reply.code, reply.index) == (-4, 2)
        assert 1_200_000 - (latest - start) <= reply.retry_after_ms <= 1_200_000 - (earliest - start)

    async def test_a_refill_is_exact_to_the_millisecond(self, teller: Teller) -> None:
        bucket = Bucket("requests", 7, 86_400_000, 50)
        teller.allowances = Allowances((bucket,))
        await funded(teller)
        key, full = keys.bucket("acme", "requests"), bucket.burst * bucket.period_ms
        for number, (level, elapsed) in enumerate(
            [(0, 50_000_000), (full - 5, 3), (-full, 10**9), (full // 3, 12_345)]
        ):
            start = teller.now_ms() - elapsed
            teller.store.hset(key, mapping={"l": level, "t": start})
            assert (await teller.reserve(f"s{number}")).code == 1
            left, at = (int(value) for value in teller.store.hmget(key, "l", "t"))
            assert left == min(full, level + (at - start) * bucket.limit) - bucket.period_ms
            assert teller.store.pttl(key) <= -(-(full - left) // bucket.limit) + 1000

    async def test_a_clock_that_stepped_back_takes_nothing_and_freezes_nothing(self, teller: Teller) -> None:
        teller.allowances = Allowances((self.LIMIT,))
        await funded(teller)
        key, period = keys.bucket("acme", "requests"), self.LIMIT.period_ms
        teller.store.hset(key, mapping={"l": 0, "t": teller.now_ms() + period // 2})
        reply = await teller.reserve("s")
        assert (reply.code, reply.retry_after_ms) == (-4, 1_200_000)
        teller.store.hset(key, mapping={"l": 0, "t": teller.now_ms() + 2 * period})
        assert (await teller.reserve("s")).code == 1

    async def test_a_limit_of_nothing_says_never_and_not_later(self, teller: Teller) -> None:
        teller.allowances = Allowances((Bucket("requests", 1, 1000, 0),))
        await funded(teller)
        before = teller.everything()
        reply = await teller.reserve("s")
        assert (reply.code, reply.index, reply.retry_after_ms) == (-7, 1, 0)
        assert teller.everything() == before

    async def test_settling_gives_back_what_admission_took_where_asked_to(self, teller: Teller) -> None:
        teller.allowances = Allowances((self.LIMIT,))
        await funded(teller)
        key, period = keys.bucket("acme", "requests"), self.LIMIT.period_ms
        await teller.reserve("a")
        await teller.settle("a", 5, refund=False)
        assert int(teller.store.hget(key, "l")) < 3 * period
        await teller.reserve("b")
        level = int(teller.store.hget(key, "l"))
        await teller.settle("b", 0, refund=True)
        assert int(teller.store.hget(key, "l")) >= level + period
        assert int(teller.store.hget(key, "l")) <= 3 * period
        before = teller.everything()
        await teller.settle("b", 0, refund=True)
        await teller.settle("never admitted", 0, refund=True)
        assert teller.store.dump(key) == before[key.encode()]


class TestExtend:
    async def test_the_hold_grows_to_an_absolute_target_once(self, teller: Teller) -> None:
        await funded(teller, 10_000)
        await teller.reserve("s", 100)
        replies = [await teller.extend("s", used=80, need=100, target=300) for _ in range(3)]
        assert {(reply.code, reply.held, reply.available) for reply in replies} == {(1, 300, 9_700)}
        assert (await teller.extend("s", used=50, need=0, target=200)).held == 300
        assert teller.record("s")["u"] == "80"

    async def test_near_the_end_it_grows_by_a_fair_share_or_by_what_is_needed(self, teller: Teller) -> None:
        await funded(teller, 1000)
        await teller.reserve("a", 100)
        await teller.reserve("b", 100)
        assert (await teller.extend("a", need=100, target=5000)).held == 300
        assert (await teller.extend("b", need=650, target=5000)).held == 650
        assert (await teller.extend("a", need=351, target=5000)).held == 300
        assert (await teller.extend("a", need=350, target=5000)).held == 350
        assert teller.wallet()["held"] == 1000

    async def test_it_renews_every_lease(self, teller: Teller) -> None:
        teller.allowances = Allowances(slots=(Slots("c", 1),))
        await funded(teller)
        await teller.reserve("s", 100)
        teller.lapse("s")
        assert (await teller.extend("s")).code == 1
        for key in (keys.leases("acme"), keys.slots("acme", "c")):
            assert teller.store.zscore(key, "s") > teller.now_ms()

    async def test_a_suspended_account_keeps_its_lease_and_gets_no_more(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        teller.store.hset(keys.wallet("acme"), "x", 1)
        reply = await teller.extend("s", used=60, need=100, target=500)
        assert (reply.code, reply.held) == (-6, 100)
        assert teller.record("s")["u"] == "60"

    async def test_what_is_over_is_told(self, teller: Teller) -> None:
        assert (await teller.extend("s")).code == -1
        await funded(teller)
        assert (await teller.extend("s")).code == -11
        for sid, end in (("settled", teller.settle("settled", 5)), ("reaped", teller.reap("reaped"))):
            await teller.reserve(sid)
            teller.lapse(sid)
            await end
            assert (await teller.extend(sid, used=9, need=10, target=100)).code == -10


class TestSettle:
    async def test_the_actual_cost_is_posted_and_the_rest_of_the_hold_returns(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        reply = await teller.settle("s", 60, usage=b'{"model":"m"}')
        assert (reply.code, reply.charged, reply.absorbed) == (1, 60, 0)
        assert teller.wallet() == {"granted": 1000, "spent": 60, "held": 0, "absorbed": 0}
        row = teller.ledger()[-1]
        assert (row["op"], row["sid"], row["d"], row["rec"]) == ("post", "s", "60", '{"model":"m"}')

    async def test_what_was_not_held_comes_from_the_balance_and_the_rest_is_absorbed(self, teller: Teller) -> None:
        await funded(teller, 100)
        await teller.reserve("s", 60)
        reply = await teller.settle("s", 130)
        assert (reply.charged, reply.absorbed) == (100, 30)
        assert teller.wallet() == {"granted": 100, "spent": 100, "held": 0, "absorbed": 30}
        assert teller.ledger()[-1]["o"] == teller.record("s")["o"] == "30"

    async def test_the_holds_of_others_are_not_touched(self, teller: Teller) -> None:
        await funded(teller, 100)
        await teller.reserve("a", 50)
        await teller.reserve("b", 50)
        assert (await teller.settle("a", 80)).absorbed == 30
        assert (await teller.settle("b", 50)).absorbed == 0

    async def test_the_first_settlement_wins(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        await teller.settle("s", 60)
        before = teller.everything()
        for actual in (60, 0, 9999):
            reply = await teller.settle("s", actual)
            assert (reply.code, reply.charged) == (2, 60)
        assert teller.everything() == before

    @pytest.mark.parametrize("actual", [0, 40, 70, 150, 5000])
    async def test_a_reaped_stream_is_corrected_once(self, teller: Teller, actual: int) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        await teller.extend("s", used=40)
        teller.lapse("s")
        assert (await teller.reap("s")).posted == 40
        replies = [await teller.settle("s", actual) for _ in range(2)]
        assert [reply.code for reply in replies] == [3, 2]
        assert {reply.charged for reply in replies} == {min(actual, 1000)}
        assert teller.wallet()["spent"] == min(actual, 1000)
        assert [row["op"] for row in teller.ledger()] == ["grant", "reap", "trueup"]
        assert sum(int(row["d"]) for row in teller.ledger()[1:]) == min(actual, 1000)

    async def test_a_stream_whose_record_was_lost_is_posted_from_the_balance(self, teller: Teller) -> None:
        await funded(teller, 100)
        assert [(await teller.settle("lost", 77)).code for _ in range(2)] == [4, 2]
        assert (await teller.settle("lost too", 77)).absorbed == 54
        assert teller.wallet()["spent"] == 100

    async def test_what_is_older_than_the_retention_is_not_posted(self, teller: Teller) -> None:
        await funded(teller)
        before = teller.everything()
        age_ms = teller.retention.stream_ms + 10_000
        assert (await teller.settle("old", 77, age_ms=age_ms)).code == -9
        assert teller.everything() == before
        await teller.reserve("long", 100)
        assert (await teller.settle("long", 77, age_ms=age_ms)).code == 1

    async def test_without_a_wallet_nothing_is_posted(self, teller: Teller) -> None:
        assert (await teller.settle("s", 1)).code == -1
        assert teller.everything() == {}


class TestReap:
    async def test_a_dead_stream_is_charged_what_it_was_known_to_have_used(self, teller: Teller) -> None:
        teller.allowances = Allowances(slots=(Slots(scripts.STREAMS, 9),))
        await funded(teller)
        for sid in ("dead", "alive"):
            await teller.reserve(sid, 100)
            await teller.extend(sid, used=30)
        teller.lapse("dead")
        reply = await teller.reap("dead", "alive", "unknown")
        assert (reply.reaped, reply.posted) == (1, 30)
        assert teller.wallet() == {"granted": 1000, "spent": 30, "held": 100, "absorbed": 0}
        assert teller.store.zrange(keys.leases("acme"), 0, -1) == [b"alive"]
        assert teller.store.zrange(keys.slots("acme", scripts.STREAMS), 0, -1) == [b"alive"]
        assert (teller.ledger()[-1]["out"], teller.ledger()[-1]["rec"]) == ("failed", '{"model":"m"}')
        before = teller.everything()
        assert (await teller.reap("dead", "alive", "unknown")).reaped == 0
        assert teller.everything() == before

    async def test_grace_counts_and_more_than_was_held_is_never_charged(self, teller: Teller) -> None:
        await funded(teller)
        await teller.reserve("s", 100)
        await teller.extend("s", used=500)
        teller.store.zadd(keys.leases("acme"), {"s": teller.now_ms() - 1000})
        assert (await teller.reap("s", grace_ms=30_000)).reaped == 0
        assert (await teller.reap("s", grace_ms=500)).posted == 100

    async def test_without_a_wallet_nothing_happens(self, teller: Teller) -> None:
        assert (await teller.reap("s")).reaped == -1


Refused = Callable[[Teller], Awaitable[Any]]
REFUSALS: dict[str, tuple[int, Refused]] = {
    "no credit": (-2, lambda teller: teller.reserve("s", 5000)),
    "an empty bucket": (-4, lambda teller: teller.reserve("s")),
    "full slots": (-5, lambda teller: teller.reserve("s")),
    "a suspended account": (-6, lambda teller: teller.reserve("s")),
    "dead holds": (-8, lambda teller: teller.reserve("s", 950)),
    "a grant below zero": (-2, lambda teller: teller.grant(-950, "g2")),
    "an unknown stream": (-11, lambda teller: teller.extend("s", need=9, target=9)),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_changes_nothing(teller: Teller, refusal: str) -> None:
    code, ask = REFUSALS[refusal]
    await funded(teller)
    burst = 1 if refusal == "an empty bucket" else 9
    slots = 1 if refusal == "full slots" else 9
    teller.allowances = Allowances(
        (Bucket("a", 9, 86_400_000, 9), Bucket("b", 1, 86_400_000, burst)), (Slots("c", 9), Slots("d", slots))
    )
    await teller.reserve("before", 100)
    if refusal == "dead holds":
        teller.lapse("before")
    if refusal == "a suspended account":
        teller.store.hset(keys.wallet("acme"), "x", 1)
    before = teller.everything()
    for _ in range(2):
        assert (await ask(teller)).code == code
    assert teller.everything() == before


async def test_an_account_without_a_wallet_gets_nothing_and_leaves_nothing(teller: Teller) -> None:
    assert (await teller.reserve("s", 0)).code == -1
    assert teller.everything() == {}


async def test_forgotten_scripts_are_sent_again(teller: Teller) -> None:
    for call in (
        lambda: teller.grant(1000),
        lambda: teller.reserve("s", 100),
        lambda: teller.extend("s", used=5, need=100, target=200),
        lambda: teller.settle("s", 6),
    ):
        teller.store.script_flush()
        assert (await call()).code == 1
    teller.store.script_flush()
    assert (await teller.reap("s")).reaped == 0


async def test_a_full_ledger_loses_its_oldest_rows_only(teller: Teller) -> None:
    await funded(teller, 10_000)
    for number in range(300):
        await teller.settle(f"s{number}", 1)
    teller.retention = scripts.Retention(ledger_ms=0)
    await teller.settle("last", 1)
    assert 1 <= len(teller.ledger()) < 302
    assert teller.ledger()[-1]["sid"] == "last"
    assert teller.wallet()["spent"] == 301


def test_a_script_and_its_stub_cannot_drift_apart() -> None:
    with pytest.raises(ImportError, match="drifted apart"):
        scripts._load("grant", key_names="wallet grants", arg_names="grant_id amount")


async def test_accounts_do_not_touch_each_other(teller: Teller, redis: RedisOwner) -> None:
    other = teller.at("umbrella")
    await funded(teller)
    await funded(other, 50)
    await teller.reserve("s", 100)
    before = {key: value for key, value in teller.everything().items() if b"acme" in key}
    await other.reserve("s", 50)
    await other.settle("s", 50)
    assert {key: value for key, value in teller.everything().items() if b"acme" in key} == before
