"""``reserve``: holds and how they are shared, ids that come again, slots, what is only watched."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Bucket, Slots, Unit, Window

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

HOUR = (60_000, 60, 0)
HOUR_MS = 3_600_000


class TestHold:
    async def test_a_stream_is_admitted_with_a_hold_and_a_lease(self, teller: Teller) -> None:
        await teller.grant(1000)
        reply = await teller.reserve("s", 100)
        assert (reply.code, reply.held, reply.available) == (1, 100, 900)
        record = teller.record("s")
        assert (record["st"], record["h"], record["u"], record["m"]) == ("open", "100", "0", '{"model":"m"}')
        assert teller.store.zscore(keys.leases("acme"), "s") > teller.now_ms()
        assert teller.store.pttl(keys.record("acme", "s")) == -1

    async def test_near_the_end_of_the_balance_streams_share_what_is_left(self, teller: Teller) -> None:
        await teller.grant(1000)
        assert (await teller.reserve("a", 10, 10_000)).held == 500
        assert (await teller.reserve("b", 10, 10_000)).held == 125
        assert (await teller.reserve("c", 10, 20)).held == 20
        assert (await teller.reserve("d", 355, 10_000)).held == 355
        assert (await teller.reserve("e", 1)).code == -2

    async def test_a_stream_is_never_given_less_than_it_needs(self, teller: Teller) -> None:
        await teller.grant(100)
        assert (await teller.reserve("a", 90, 10_000)).held == 90
        reply = await teller.reserve("b", 11, 10_000)
        assert (reply.code, reply.available) == (-2, 10)

    async def test_one_that_takes_all_does_not_share(self, teller: Teller) -> None:
        await teller.grant(1000)
        assert (await teller.reserve("a", 10, 900, takes_all=True)).held == 900
        assert (await teller.reserve("b", 10, 900, takes_all=True)).held == 100

    async def test_the_tightest_budget_bounds_the_hold(self, teller: Teller) -> None:
        budgets = [Window("wide", 800, HOUR, Unit.MONEY), Window("narrow", 300, HOUR, Unit.MONEY)]
        teller.limit(windows=budgets)
        await teller.grant(10_000)
        reply = await teller.reserve("a", 10, 5000, takes_all=True)
        assert (reply.code, reply.held) == (1, 300)
        assert [teller.window(name) for name in ("wide", "narrow")] == [(0, 300), (0, 300)]
        reply = await teller.reserve("b", 10)
        assert (reply.code, reply.index) == (-3, 2)
        assert (await teller.settle("a", 120)).charged == 120
        assert [teller.window(name) for name in ("wide", "narrow")] == [(120, 0), (120, 0)]
        assert (await teller.reserve("b", 10, 5000, takes_all=True)).held == 180

    async def test_how_much_is_used_is_told_of_whatever_is_used_most(self, teller: Teller) -> None:
        teller.limit(windows=[Window("wide", 900, HOUR, Unit.MONEY), Window("narrow", 200, HOUR, Unit.MONEY)])
        await teller.grant(1000)
        first = await teller.reserve("a", 100)
        assert (first.used_permille, first.used_index) == (0, 0)
        second = await teller.reserve("b", 50)
        assert (second.used_permille, second.used_index) == (500, 2)

    async def test_dead_holds_are_told_from_an_empty_account(self, teller: Teller) -> None:
        await teller.grant(100)
        await teller.reserve("dead", 100)
        assert (await teller.reserve("s", 10)).code == -2
        teller.lapse("dead")
        assert (await teller.reserve("s", 10)).code == -8
        assert (await teller.reap("dead")).reaped == 1
        assert (await teller.reserve("s", 10)).code == 1

    async def test_dead_holds_in_a_window_are_told_from_a_full_one(self, teller: Teller) -> None:
        teller.limit(windows=[Window("requests", 1, HOUR, Unit.REQUESTS)])
        await teller.grant(100)
        await teller.reserve("dead")
        assert (await teller.reserve("s")).code == -3
        teller.lapse("dead")
        assert (await teller.reserve("s")).code == -8

    async def test_a_suspended_account_gets_nothing_until_it_is_resumed(self, teller: Teller) -> None:
        await teller.grant(100)
        teller.store.hset(keys.wallet("acme"), "x", 1)
        assert (await teller.reserve("s")).code == -6
        teller.store.hdel(keys.wallet("acme"), "x")
        assert (await teller.reserve("s")).code == 1


class TestIds:
    async def test_our_own_retry_is_told_what_it_has_and_takes_nothing_twice(self, teller: Teller) -> None:
        teller.limit(buckets=[Bucket("b", 5, 60_000, 5)], slots=[Slots("c", 5)])
        await teller.grant(1000)
        await teller.reserve("s", 100)
        before = teller.everything()
        reply = await teller.reserve("s", 100)
        assert (reply.code, reply.held, reply.available) == (2, 100, 900)
        assert teller.everything() == before

    async def test_an_id_that_runs_or_has_run_is_not_run_again(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce="a", request="r")
        assert (await teller.reserve("s", 100, nonce="b", request="r")).code == 3
        assert (await teller.reserve("s", 100, nonce="b", request="other")).code == 5
        await teller.settle("s", 70, nonce="a", request="r")
        for nonce in ("a", "b"):
            reply = await teller.reserve("s", 100, nonce=nonce, request="r")
            assert (reply.code, reply.held) == (4, 70)
        assert (await teller.reserve("s", 100, nonce="b", request="other")).code == 5
        assert teller.wallet()["held"] == 0

    async def test_what_completed_for_nothing_has_run(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce="a")
        await teller.settle("s", 0, nonce="a", outcome="complete")
        reply = await teller.reserve("s", 100, nonce="b")
        assert (reply.code, reply.held) == (4, 0)

    async def test_what_failed_at_a_cost_has_run(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce="a")
        await teller.settle("s", 5, nonce="a", outcome="failed")
        assert (await teller.reserve("s", 100, nonce="b")).code == 4

    async def test_what_only_the_operator_paid_for_has_run(self, teller: Teller) -> None:
        await teller.grant(0)
        await teller.settle("s", 5, nonce="a", outcome="failed")
        assert teller.wallet()["absorbed"] == 5
        await teller.grant(1000, "more")
        assert (await teller.reserve("s", 100, nonce="b")).code == 4

    async def test_what_failed_at_no_cost_may_run_again(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce="a", request="r")
        await teller.settle("s", 0, nonce="a", request="r", outcome="failed", refund=True)
        assert teller.store.pttl(keys.record("acme", "s")) > 0
        assert (await teller.reserve("s", 100, nonce="b", request="other")).code == 5
        assert (await teller.reserve("s", 200, nonce="b", request="r")).code == 1
        assert teller.store.pttl(keys.record("acme", "s")) == -1
        assert (await teller.settle("s", 150, nonce="b", request="r")).charged == 150
        assert teller.wallet() == {"granted": 1000, "spent": 150, "held": 0, "absorbed": 0}

    async def test_late_duplicates_of_a_withdrawn_run_are_refused(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.settle("s", 0, nonce="a", outcome="failed", refund=True)  # withdrawn before it arrived
        assert (await teller.reserve("s", 100, nonce="a")).code == 4
        assert (await teller.reserve("s", 100, nonce="b")).code == 1
        before = teller.everything()
        assert (await teller.reserve("s", 100, nonce="a")).code == 3
        assert (await teller.settle("s", 0, nonce="a", outcome="failed", refund=True)).code == 2
        assert (await teller.extend("s", used=50, need=60, target=90, nonce="a")).code == -10
        assert teller.everything() == before

    async def test_what_was_reaped_does_not_run_again_and_is_corrected_by_its_gateway(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100, nonce="frozen")
        teller.lapse("s")
        await teller.reap("s")
        assert (await teller.reserve("s", 100, nonce="next")).code == 4, "its gateway may still say what it cost"
        assert (await teller.extend("s", used=90, need=100, target=200, nonce="frozen")).code == -10
        settled = await teller.settle("s", 90, nonce="frozen")
        assert (settled.code, settled.charged) == (3, 90)

    async def test_an_id_whose_record_is_over_its_retention_is_forgotten(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        await teller.settle("s", 5)
        assert 0 < teller.store.pttl(keys.record("acme", "s")) <= teller.retention.stream_ms
        teller.store.delete(keys.record("acme", "s"))
        assert (await teller.reserve("s", 100, nonce="b")).code == 1


class TestSlots:
    async def test_slots_are_counted_by_leases_that_run(self, teller: Teller) -> None:
        teller.limit(slots=[Slots("wide", 5), Slots("narrow", 2)])
        await teller.grant(1000)
        assert [(await teller.reserve(sid)).code for sid in "abc"] == [1, 1, -5]
        assert (await teller.reserve("c")).index == 2
        teller.lapse("a")
        assert (await teller.reserve("c")).code == 1
        assert teller.store.zrange(keys.limits_of("acme").slots("narrow"), 0, -1) == [b"b", b"c"]
        await teller.settle("b", 1)
        assert (await teller.reserve("d")).code == 1

    async def test_a_slot_of_a_stream_that_comes_back_counts_again(self, teller: Teller) -> None:
        teller.limit(slots=[Slots("streams", 1)])
        await teller.grant(1000)
        await teller.reserve("slow")
        teller.lapse("slow")
        assert (await teller.reserve("next")).code == 1
        assert (await teller.extend("slow")).code == 1
        assert teller.store.zcard(keys.limits_of("acme").slots("streams")) == 2
        await teller.settle("next", 0)
        assert (await teller.reserve("third")).code == -5


class TestShadow:
    async def test_what_is_only_watched_is_reported_and_refuses_nothing(self, teller: Teller) -> None:
        teller.limit(
            windows=[
                Window("real", 9, HOUR, Unit.REQUESTS),
                Window("requests", 1, HOUR, Unit.REQUESTS, True),
                Window("money", 15, HOUR, Unit.MONEY, True),
            ],
            buckets=[Bucket("rpm", 1, HOUR_MS, 1, Unit.REQUESTS, True), Bucket("real", 9, HOUR_MS, 9)],
            slots=[Slots("streams", 1, True)],
        )
        await teller.grant(1000)
        assert (await teller.reserve("a")).shadowed == []
        reply = await teller.reserve("b", 10, 500, takes_all=True)
        assert (reply.code, reply.held, reply.shadowed) == (1, 500, [2, 3, 4, 6])
        assert [teller.allowances.at(index).is_shadow for index in reply.shadowed] == [True] * 4
        assert teller.window("money") == (0, 510)
        assert (await teller.extend("b", need=700, target=700)).held == 700

    async def test_what_is_only_watched_refuses_nothing_that_could_never_fit(self, teller: Teller) -> None:
        teller.limit(
            windows=[Window("tokens", 5, HOUR, Unit.TOKENS, True)],
            buckets=[Bucket("tpm", 5, HOUR_MS, 5, Unit.TOKENS, True)],
        )
        await teller.grant(1000)
        reply = await teller.reserve("a", tokens=50)
        assert (reply.code, reply.shadowed) == (1, [1, 2])
        assert teller.level("tpm") == -5 * HOUR_MS, "taken as far as debt goes, since settling gives it back"

    async def test_a_budget_that_is_only_watched_is_not_told_as_used(self, teller: Teller) -> None:
        teller.limit(windows=[Window("money", 10, HOUR, Unit.MONEY, True)])
        await teller.grant(1000)
        await teller.reserve("a", 10)
        reply = await teller.reserve("b", 10)
        assert (reply.used_permille, reply.used_index) == (10, 0)
        assert (await teller.extend("b", need=10, target=20)).used_index == 0


@pytest.mark.parametrize("limit", [0, 5])
async def test_a_budget_that_was_lowered_refuses_and_claws_nothing_back(teller: Teller, limit: int) -> None:
    teller.limit(windows=[Window("money", 500, HOUR, Unit.MONEY)])
    await teller.grant(1000)
    await teller.reserve("a", 300)
    teller.limit(windows=[Window("money", limit, HOUR, Unit.MONEY)])
    assert (await teller.reserve("b", 6)).code == -7
    reply = await teller.extend("a", used=200, need=200, target=400)
    assert (reply.code, reply.held) == (1, 300)
    assert 0 <= reply.used_permille <= 60_000
    assert (await teller.extend("a", used=200, need=301, target=400)).held == 300
    assert (await teller.settle("a", 280)).absorbed == 0
    assert teller.window("money") == (280, 0)
