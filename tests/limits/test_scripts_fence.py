"""The fence: a Redis that forgot what it had acknowledged lets nobody spend until it was told again."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Slots, Unit, Window

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

START_MS = 1_800_000_000_000
BARRIER_MS = 1500


@pytest.fixture(autouse=True)
async def account(teller: Teller) -> None:
    teller.limit(windows=[Window("money", 10_000, (60_000, 60, 0), Unit.MONEY)], slots=[Slots("streams", 9)])
    teller.set_clock(START_MS)
    await teller.grant(1000)


async def lose(teller: Teller) -> None:
    """Of two streams, one that runs and one that was settled, the server only knows how the first one began."""
    await teller.reserve("runs", 300)
    earlier = teller.dumps()
    assert (await teller.extend("runs", used=250, need=500, target=600, believed=300)).held == 600
    await teller.reserve("ended", 400)
    assert (await teller.settle("ended", 390)).charged == 390
    teller.restore(earlier)


async def test_nothing_new_is_held_until_lost_writes_were_told_again(teller: Teller) -> None:
    told: list[str] = []
    teller.scripts.on_rollback = told.append
    await lose(teller)
    assert teller.wallet()["held"] == 300, "it believes that 700 are free; 10 are"
    refused = await teller.reserve("new", 500)
    assert (refused.code, refused.retry_after_ms) == (-20, BARRIER_MS)
    assert told == ["acme"]
    again = await teller.extend("runs", used=260, need=260, target=900, believed=600)
    assert (again.code, again.held, again.available) == (20, 600, 400)
    assert (await teller.settle("ended", 390)).code == 4
    teller.set_clock(START_MS + BARRIER_MS - 1)
    assert (await teller.reserve("new", 500)).retry_after_ms == 1
    teller.set_clock(START_MS + BARRIER_MS)
    refused = await teller.reserve("new", 500)
    assert (refused.code, refused.available) == (-2, 10)
    assert (await teller.extend("runs", used=260, need=610, target=610)).held == 610
    assert (await teller.settle("runs", 610)).absorbed == 0
    assert teller.wallet() == {"granted": 1000, "spent": 1000, "held": 0, "absorbed": 0}
    assert teller.window("money") == (1000, 0)
    assert [row["op"] for row in teller.ledger()] == ["grant", "rollback", "post", "post"]


async def test_it_binds_a_gateway_that_noticed_nothing(teller: Teller) -> None:
    other = teller.from_gateway("there")
    told: list[str] = []
    other.scripts.on_rollback = told.append
    await lose(teller)
    assert (await teller.reserve("new", 1)).code == -20
    assert (await other.reserve("other", 1)).code == -20
    assert told == ["acme"]
    other.set_clock(START_MS + BARRIER_MS)
    assert (await other.reserve("other", 1)).code == 1


async def test_each_gateway_testifies_for_itself(teller: Teller) -> None:
    """With one counter for all, the others' traffic would hide from the owner that its writes were lost."""
    other = teller.from_gateway("there")
    await lose(teller)
    for number in range(20):
        assert (await other.reserve(f"o{number}", 1)).code in (1, -5)
    assert (await teller.reserve("new", 1)).code == -20


async def test_it_is_noticed_once_for_each_loss(teller: Teller) -> None:
    await lose(teller)
    assert (await teller.reserve("new", 1)).code == -20
    teller.set_clock(START_MS + BARRIER_MS)
    for number in range(3):
        assert (await teller.reserve(f"n{number}", 1)).code == 1
    assert [row["op"] for row in teller.ledger()].count("rollback") == 1
    earlier = teller.dumps()
    await teller.reserve("lost", 5)
    teller.restore(earlier)
    assert (await teller.reserve("new", 1)).code == -20
    assert [row["out"] for row in teller.ledger() if row["op"] == "rollback"] == ["3", "1"]


async def test_a_settlement_that_meets_the_loss_first_says_so(teller: Teller) -> None:
    told: list[str] = []
    teller.scripts.on_rollback = told.append
    await lose(teller)
    assert (await teller.settle("runs", 250)).code == 1
    assert told == ["acme"]
    assert (await teller.settle("ended", 390)).code == 4
    assert told == ["acme", "acme"]
    assert (await teller.reserve("new", 500)).code == -20


@pytest.mark.parametrize("is_known", [True, False])
async def test_an_extension_that_says_what_is_over_leaves_the_loss_to_be_noticed(
    teller: Teller, is_known: bool
) -> None:
    """Unknown and finished streams get no answer that means a loss; so they must not use up the evidence of it."""
    if is_known:
        await teller.reserve("over", 5)
        await teller.settle("over", 5)
    await lose(teller)
    assert (await teller.extend("over")).code == (-10 if is_known else -11)
    assert (await teller.settle("over", 5)).code == (2 if is_known else 4)
    assert (await teller.reserve("new", 1)).code == -20


async def test_a_suspension_does_not_hide_the_loss(teller: Teller) -> None:
    told: list[str] = []
    teller.scripts.on_rollback = told.append
    await lose(teller)
    teller.store.hset(keys.wallet("acme"), "x", 1)
    reply = await teller.extend("runs", used=260, need=260, target=900, believed=600)
    assert (reply.code, reply.held, told) == (20, 300, ["acme"])
    teller.set_clock(START_MS + BARRIER_MS)
    assert (await teller.extend("runs", used=260, need=260, target=900, believed=600)).code == -6


async def test_nobody_is_reaped_meanwhile(teller: Teller) -> None:
    await lose(teller)
    teller.lapse("runs")
    assert (await teller.reserve("new", 1)).code == -20
    assert (await teller.reap("runs")).codes == [-20]
    teller.set_clock(START_MS + BARRIER_MS)
    assert (await teller.reap("runs")).codes == [1]


async def test_a_stream_that_was_lost_as_a_whole_comes_back_with_what_it_held(teller: Teller) -> None:
    earlier = teller.dumps()
    await teller.reserve("runs", 300)
    await teller.extend("runs", used=250, need=500, target=600)
    teller.restore(earlier)
    assert (await teller.extend("runs", used=250, need=500, target=900, believed=600)).code == -11
    reply = await teller.extend("runs", used=250, need=500, target=900, believed=600, revive=True)
    assert (reply.code, reply.held) == (20, 600)
    assert teller.window("money") == (0, 600)


async def test_no_more_than_there_is_is_believed(teller: Teller) -> None:
    """A grant that was lost cannot be seen: what its money was held for is not covered until it is granted again."""
    earlier = teller.dumps()
    await teller.grant(5000, "lost")
    await teller.reserve("runs", 3000)
    teller.restore(earlier)
    reply = await teller.extend("runs", used=2000, need=3000, target=3000, believed=3000, revive=True)
    assert (reply.code, reply.held, reply.available) == (20, 1000, 0)
    assert (await teller.grant(5000, "lost")).code == 1
    assert (await teller.extend("runs", used=2000, need=3000, target=3000, believed=3000)).held == 3000


async def test_what_was_lost_with_the_gateway_is_charged_from_what_is_left(teller: Teller) -> None:
    """Its journal says later what nobody could say in time."""
    dead = teller.from_gateway("dead")
    earlier = teller.dumps()
    await dead.reserve("old", 600)
    teller.restore(earlier)
    await teller.reserve("new", 700)
    reply = await dead.settle("old", 500)
    assert (reply.code, reply.charged, reply.absorbed) == (4, 300, 200)
    assert teller.wallet() == {"granted": 1000, "spent": 300, "held": 700, "absorbed": 200}


async def test_a_flush_is_no_loss_to_be_filled_up_again(teller: Teller) -> None:
    await teller.reserve("s", 100)
    for key in teller.names():
        teller.store.delete(key)
    assert (await teller.reserve("t", 1)).code == -1
    assert (await teller.extend("s", revive=True)).code == -1
    assert (await teller.settle("s", 50)).code == -1
    assert teller.everything() == {}


async def test_a_gateways_revision_is_forgotten_in_the_end(teller: Teller) -> None:
    await teller.reserve("s", 100)
    assert 0 < teller.store.pttl(keys.revision("acme", "here")) <= 86_400_000
