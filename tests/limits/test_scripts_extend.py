"""``extend``: growth to absolute totals, fair shares, leases, lost records."""

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Bucket, Slots, Unit, Window

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

HOUR = (60_000, 60, 0)


async def test_the_hold_grows_to_an_absolute_target_once(teller: Teller) -> None:
    await teller.grant(10_000)
    await teller.reserve("s", 100)
    replies = [await teller.extend("s", used=80, need=100, target=300) for _ in range(3)]
    assert {(reply.code, reply.held, reply.available) for reply in replies} == {(1, 300, 9_700)}
    assert (await teller.extend("s", used=50, need=0, target=200)).held == 300
    assert teller.record("s")["u"] == "80"


async def test_near_the_end_it_grows_by_a_fair_share_or_by_what_is_needed(teller: Teller) -> None:
    await teller.grant(1000)
    await teller.reserve("a", 100)
    await teller.reserve("b", 100)
    assert (await teller.extend("a", need=100, target=5000)).held == 300
    assert (await teller.extend("b", need=650, target=5000)).held == 650
    assert (await teller.extend("a", need=351, target=5000)).held == 300
    assert (await teller.extend("a", need=350, target=5000)).held == 350
    assert teller.wallet()["held"] == 1000


async def test_what_cannot_reach_what_is_needed_takes_nothing(teller: Teller) -> None:
    await teller.grant(200)
    await teller.reserve("a", 100)
    reply = await teller.extend("a", need=201, target=500)
    assert (reply.code, reply.held, reply.available) == (1, 100, 100)


async def test_every_budget_bounds_it(teller: Teller) -> None:
    windows = [Window("wide", 500, HOUR, Unit.MONEY), Window("narrow", 250, HOUR, Unit.MONEY)]
    teller.limit(windows=[*windows, Window("watched", 5, HOUR, Unit.MONEY, True)])
    await teller.grant(10_000)
    await teller.reserve("a", 100)
    assert (await teller.extend("a", used=90, need=250, target=5000)).held == 250
    reply = await teller.extend("a", used=90, need=251, target=5000)
    assert (reply.held, reply.used_permille, reply.used_index) == (250, 1000, 2)
    assert [teller.window(name) for name in ("wide", "narrow", "watched")] == [(0, 250)] * 3


async def test_dead_holds_are_told_where_they_are_in_the_way(teller: Teller) -> None:
    await teller.grant(200)
    await teller.reserve("dead", 100)
    await teller.reserve("a", 50)
    teller.lapse("dead")
    assert (await teller.extend("a", need=100, target=200)).code == 1
    assert (await teller.extend("a", need=150, target=200)).code == -8
    await teller.reap("dead")
    assert (await teller.extend("a", need=150, target=150)).held == 150


async def test_it_renews_every_lease(teller: Teller) -> None:
    teller.limit(slots=[Slots("c", 1), Slots("d", 2)])
    await teller.grant(1000)
    await teller.reserve("s", 100)
    teller.lapse("s")
    assert (await teller.extend("s")).code == 1
    owner = keys.limits_of("acme")
    for key in (keys.leases("acme"), owner.slots("c"), owner.slots("d")):
        assert teller.store.zscore(key, "s") > teller.now_ms()


async def test_a_suspended_account_keeps_its_lease_and_gets_no_more(teller: Teller) -> None:
    await teller.grant(1000)
    await teller.reserve("s", 100)
    teller.store.hset(keys.wallet("acme"), "x", 1)
    reply = await teller.extend("s", used=60, need=100, target=500)
    assert (reply.code, reply.held) == (-6, 100)
    assert teller.record("s")["u"] == "60"


async def test_what_is_over_is_told(teller: Teller) -> None:
    assert (await teller.extend("s")).code == -1
    await teller.grant(1000)
    assert (await teller.extend("s")).code == -11
    for sid in ("settled", "reaped"):
        await teller.reserve(sid)
        teller.lapse(sid)
    await teller.settle("settled", 5)
    await teller.reap("reaped")
    for sid in ("settled", "reaped"):
        for revive in (False, True):
            reply = await teller.extend(sid, used=9, need=10, target=100, revive=revive)
            assert (reply.code, reply.held) == (-10, 0)
    assert teller.wallet()["held"] == 0


class TestRevive:
    LIMITS: ClassVar = {
        "windows": [Window("money", 1000, HOUR, Unit.MONEY), Window("requests", 10, HOUR, Unit.REQUESTS)],
        "buckets": [Bucket("tpm", 1000, 3_600_000, 1000, Unit.TOKENS), Bucket("rpm", 10, 3_600_000, 10)],
        "slots": [Slots("streams", 3)],
    }

    async def test_a_lost_record_is_made_again_with_all_that_it_had(self, teller: Teller) -> None:
        teller.limit(**self.LIMITS)
        await teller.grant(10_000)
        reply = await teller.extend("s", used=40, need=60, target=90, tokens=25, revive=True, request="r")
        assert (reply.code, reply.held, reply.available) == (1, 90, 9_910)
        record = teller.record("s")
        assert (record["st"], record["h"], record["u"], record["n"]) == ("open", "90", "40", "25")
        assert (record["rq"], record["no"], record["lim"]) == ("r", "n", teller.allowances.stored.decode())
        assert teller.wallet()["held"] == 90
        assert (teller.window("money"), teller.window("requests")) == ((0, 90), (0, 1))
        owner = keys.limits_of("acme")
        assert teller.store.zscore(owner.slots("streams"), "s") > teller.now_ms()
        assert teller.store.pttl(owner.slots("streams")) > 0
        assert (await teller.extend("s", used=40, need=60, target=90, tokens=25, revive=True)).held == 90
        assert (await teller.settle("s", 80, tokens=25, request="r")).code == 1
        assert teller.wallet() == {"granted": 10_000, "spent": 80, "held": 0, "absorbed": 0}
        assert (teller.window("money"), teller.window("requests")) == ((80, 0), (1, 0))

    async def test_it_gets_no_more_than_there_is(self, teller: Teller) -> None:
        await teller.grant(50)
        reply = await teller.extend("s", used=40, need=60, target=90, revive=True)
        assert (reply.code, reply.held) == (1, 0)
        assert teller.record("s")["st"] == "open"
        assert (await teller.settle("s", 60)).absorbed == 10

    async def test_in_a_suspended_account_it_holds_nothing(self, teller: Teller) -> None:
        await teller.grant(500)
        teller.store.hset(keys.wallet("acme"), "x", 1)
        reply = await teller.extend("s", used=40, need=60, target=90, revive=True)
        assert (reply.code, reply.held) == (-6, 0)

    async def test_a_stream_that_was_never_lost_is_not_changed_by_it(self, teller: Teller) -> None:
        teller.limit(**self.LIMITS)
        await teller.grant(1000)
        await teller.reserve("s", 100, tokens=5)
        before = {key: value for key, value in teller.everything().items() if b":q:" not in key and b":x" not in key}
        teller.set_clock(teller.now_ms())
        await teller.extend("s", tokens=5, revive=True)
        after = teller.everything()
        assert {key: after[key] for key in before if b":c:" not in key} == {
            key: value for key, value in before.items() if b":c:" not in key
        }


@pytest.mark.parametrize("used", [0, 100, 5000])
async def test_use_beyond_the_hold_is_noted_and_never_charged_by_a_reap(teller: Teller, used: int) -> None:
    await teller.grant(200)
    await teller.reserve("s", 100)
    await teller.extend("s", used=used)
    assert teller.record("s")["u"] == str(used)
    teller.lapse("s")
    assert (await teller.reap("s")).posted == min(used, 100)
