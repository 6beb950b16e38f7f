"""``settle`` and ``reap``: one posting per stream whoever comes first, corrections, losses, what is too old."""

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Slots, Unit, Window

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

HOUR = (60_000, 60, 0)


def books_balance(teller: Teller) -> None:
    """Spent is what the ledger's rows and the records say, and nothing is held that no open stream holds."""
    wallet, rows = teller.wallet(), teller.ledger()
    records = [teller.hash(key.decode()) for key in teller.names() if key.startswith(b"cr:{acme}:s:")]
    assert wallet["granted"] == sum(int(row["d"]) for row in rows if row["op"] == "grant")
    assert wallet["spent"] == sum(int(row["d"]) for row in rows if row["op"] != "grant")
    assert wallet["spent"] == sum(int(record["c"]) for record in records)
    assert wallet["absorbed"] == sum(int(record.get("o", 0)) for record in records)
    assert wallet["held"] == sum(int(record["h"]) for record in records if record["st"] == "open")
    assert 0 <= wallet["granted"] - wallet["spent"] - wallet["held"]


class TestSettle:
    async def test_the_actual_cost_is_posted_and_the_rest_of_the_hold_returns(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        reply = await teller.settle("s", 60, usage=b'{"model":"m"}')
        assert (reply.code, reply.charged, reply.absorbed) == (1, 60, 0)
        assert teller.wallet() == {"granted": 1000, "spent": 60, "held": 0, "absorbed": 0}
        row = teller.ledger()[-1]
        assert (row["op"], row["sid"], row["d"], row["rec"]) == ("post", "s", "60", '{"model":"m"}')
        assert not {"m", "lim"} & teller.record("s").keys()
        assert teller.store.exists(keys.leases("acme")) == 0

    async def test_what_was_not_held_comes_from_the_balance_and_the_rest_is_absorbed(self, teller: Teller) -> None:
        await teller.grant(100)
        await teller.reserve("s", 60)
        reply = await teller.settle("s", 130)
        assert (reply.charged, reply.absorbed) == (100, 30)
        assert teller.wallet() == {"granted": 100, "spent": 100, "held": 0, "absorbed": 30}
        assert teller.ledger()[-1]["o"] == teller.record("s")["o"] == "30"

    async def test_the_holds_of_others_are_not_touched(self, teller: Teller) -> None:
        await teller.grant(100)
        await teller.reserve("a", 50)
        await teller.reserve("b", 50)
        assert (await teller.settle("a", 80)).absorbed == 30
        assert (await teller.settle("b", 50)).absorbed == 0
        books_balance(teller)

    async def test_the_first_settlement_wins(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        await teller.settle("s", 60)
        before = teller.everything()
        for actual in (60, 0, 9999):
            reply = await teller.settle("s", actual)
            assert (reply.code, reply.charged) == (2, 60)
        assert teller.everything() == before

    async def test_a_suspended_account_still_pays_for_what_it_had(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        teller.store.hset(keys.wallet("acme"), "x", 1)
        assert (await teller.settle("s", 60)).charged == 60

    async def test_without_a_wallet_nothing_is_posted(self, teller: Teller) -> None:
        assert (await teller.settle("s", 1)).code == -1
        assert teller.everything() == {}


class TestLostRecord:
    async def test_it_is_posted_from_the_balance_once(self, teller: Teller) -> None:
        await teller.grant(100)
        assert [(await teller.settle("lost", 77)).code for _ in range(2)] == [4, 2]
        assert (await teller.settle("lost too", 77)).absorbed == 54
        assert teller.wallet()["spent"] == 100
        books_balance(teller)

    async def test_what_never_ran_leaves_no_row_but_what_ran_for_nothing_does(self, teller: Teller) -> None:
        await teller.grant(100)
        await teller.settle("withdrawn", 0, outcome="failed", refund=True)
        assert [row["op"] for row in teller.ledger()] == ["grant"]
        assert teller.record("withdrawn")["st"] == "done"
        await teller.settle("free", 0, outcome="complete")
        assert [row["op"] for row in teller.ledger()] == ["grant", "post"]

    async def test_what_is_older_than_the_retention_is_not_posted(self, teller: Teller) -> None:
        await teller.grant(1000)
        before = teller.everything()
        age_ms = teller.retention.stream_ms + 10_000
        assert (await teller.settle("old", 77, age_ms=age_ms)).code == -9
        assert teller.everything() == before
        await teller.reserve("long", 100)
        assert (await teller.settle("long", 77, age_ms=age_ms)).code == 1

    async def test_the_retention_ends_to_the_millisecond(self, teller: Teller) -> None:
        teller.set_clock(1_800_000_000_000)
        await teller.grant(1000)
        assert (await teller.settle("late", 7, age_ms=teller.retention.stream_ms)).code == 4
        assert (await teller.settle("too late", 7, age_ms=teller.retention.stream_ms + 1)).code == -9

    async def test_a_gateway_whose_clock_is_ahead_posts_all_the_same(self, teller: Teller) -> None:
        await teller.grant(1000)
        assert (await teller.settle("future", 7, age_ms=-3_600_000)).code == 4


class TestReap:
    async def test_a_dead_stream_is_charged_what_it_was_known_to_have_used(self, teller: Teller) -> None:
        teller.limit(slots=[Slots("streams", 9)], windows=[Window("money", 500, HOUR, Unit.MONEY)])
        await teller.grant(1000)
        for sid in ("dead", "alive"):
            await teller.reserve(sid, 100)
            await teller.extend(sid, used=30)
        teller.lapse("dead")
        reply = await teller.reap("dead", "alive", "unknown")
        assert (reply.codes, reply.posted) == ([1, 0, 0], 30)
        assert teller.wallet() == {"granted": 1000, "spent": 30, "held": 100, "absorbed": 0}
        assert teller.window("money") == (30, 100)
        assert teller.store.zrange(keys.leases("acme"), 0, -1) == [b"alive"]
        assert teller.store.zrange(keys.limits_of("acme").slots("streams"), 0, -1) == [b"alive"]
        assert (teller.ledger()[-1]["out"], teller.ledger()[-1]["rec"]) == ("failed", '{"model":"m"}')
        before = teller.everything()
        assert (await teller.reap("dead", "alive", "unknown")).reaped == 0
        assert teller.everything() == before

    async def test_its_hold_is_charged_where_the_operator_wants_that(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        await teller.extend("s", used=30)
        teller.lapse("s")
        assert (await teller.reap("s", charge_held=True)).posted == 100
        assert (await teller.settle("s", 40)).charged == 40
        assert teller.wallet()["spent"] == 40
        books_balance(teller)

    async def test_grace_counts_to_the_millisecond(self, teller: Teller) -> None:
        teller.set_clock(1_800_000_000_000)
        await teller.grant(1000)
        await teller.reserve("s", 100)
        end_ms = int(teller.store.zscore(keys.leases("acme"), "s"))
        teller.set_clock(end_ms + 499)
        assert (await teller.reap("s", grace_ms=500)).codes == [0]
        teller.set_clock(end_ms + 500)
        assert (await teller.reap("s", grace_ms=500)).codes == [1]

    async def test_a_lease_without_a_stream_is_cleared(self, teller: Teller) -> None:
        await teller.grant(1000)
        teller.store.zadd(keys.leases("acme"), {"nobody": 1})
        assert (await teller.reap("nobody")).codes == [0]
        assert teller.store.exists(keys.leases("acme")) == 0

    async def test_a_stream_that_came_back_in_time_is_left_alone(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        teller.lapse("s")
        assert (await teller.extend("s", used=20, need=50, target=50)).code == 1
        assert (await teller.reap("s")).codes == [0]


class TestRaces:
    """Whoever comes first, a stream is charged what it cost, once."""

    @pytest.mark.parametrize("actual", [0, 40, 70, 150, 5000])
    async def test_a_reaped_stream_is_corrected_once(self, teller: Teller, actual: int) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        await teller.extend("s", used=40)
        teller.lapse("s")
        assert (await teller.reap("s")).posted == 40
        replies = [await teller.settle("s", actual) for _ in range(2)]
        assert [reply.code for reply in replies] == [3, 2]
        assert {(reply.charged, reply.absorbed) for reply in replies} == {(min(actual, 1000), max(actual - 1000, 0))}
        assert teller.wallet()["spent"] == min(actual, 1000)
        assert [row["op"] for row in teller.ledger()] == ["grant", "reap", "trueup"]
        books_balance(teller)

    async def test_a_settled_stream_is_not_reaped(self, teller: Teller) -> None:
        await teller.grant(1000)
        await teller.reserve("s", 100)
        teller.lapse("s")
        assert (await teller.settle("s", 70)).code == 1
        assert (await teller.reap("s")).codes == [0]
        assert [row["op"] for row in teller.ledger()] == ["grant", "post"]

    async def test_two_reapers_post_once(self, teller: Teller) -> None:
        await teller.grant(1000)
        for number in range(20):
            await teller.reserve(f"s{number}", 10)
            await teller.extend(f"s{number}", used=7)
            teller.lapse(f"s{number}")
        other = teller.from_gateway("there")
        sids = [f"s{number}" for number in range(20)]
        replies = await asyncio.gather(*(one.reap(*sids) for one in (teller, other)))
        assert sum(reply.reaped for reply in replies) == 20
        assert teller.wallet() == {"granted": 1000, "spent": 140, "held": 0, "absorbed": 0}
        assert [row["op"] for row in teller.ledger()] == ["grant", *["reap"] * 20]
        books_balance(teller)

    async def test_settlements_and_reapers_at_once_charge_what_was_owed(self, teller: Teller) -> None:
        await teller.grant(10_000)
        sids = [f"s{number}" for number in range(30)]
        for sid in sids:
            await teller.reserve(sid, 10)
            await teller.extend(sid, used=7)
            teller.lapse(sid)
        other = teller.from_gateway("there")
        await asyncio.gather(
            *(teller.settle(sid, 12) for sid in sids[::2]), other.reap(*sids), *(other.settle(sid, 12) for sid in sids)
        )
        assert teller.wallet() == {"granted": 10_000, "spent": 12 * 30, "held": 0, "absorbed": 0}
        books_balance(teller)
