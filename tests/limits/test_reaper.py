"""Whoever looks finishes what nobody finishes: once, in time, and on no account but the one it belongs to."""

import asyncio

from gateway.limits import keys
from gateway.limits.allowances import Slots, Unit, Window
from gateway.limits.reaper import Reaper
from gateway.limits.scripts import Retention, Scripts
from tests.limits.desk import Desk, end, until


async def test_it_finds_abandoned_streams_and_forgets_idle_accounts(desk: Desk) -> None:
    store = desk.teller.store
    reservation = await desk.reserve()
    await until(lambda: store.zscore(keys.ACTIVE, "acme") is not None)
    assert await desk.reaper.reap_all() == 0
    desk.teller.lapse(reservation.stream.sid)
    assert await desk.reaper.reap_all() == 1
    assert desk.teller.wallet()["held"] == 0
    assert store.zscore(keys.ACTIVE, "acme") is not None
    store.zadd(keys.ACTIVE, {"acme": 1})
    assert await desk.reaper.reap_all() == 0
    assert store.exists(keys.ACTIVE) == 0


async def test_an_account_with_a_stream_is_not_forgotten(desk: Desk) -> None:
    await desk.reserve()
    await until(lambda: desk.teller.store.zscore(keys.ACTIVE, "acme") is not None)
    desk.teller.store.zadd(keys.ACTIVE, {"acme": 1})
    assert await desk.reaper.reap_all() == 0
    assert desk.teller.store.zscore(keys.ACTIVE, "acme") == 1


async def test_it_knows_from_the_record_what_a_stream_had_taken(desk: Desk) -> None:
    desk.teller.limit(
        windows=[
            Window("account.budget.1", 10_000, (60_000, 60, 0), Unit.MONEY),
            Window("account.tokens.1", 10_000, (60_000, 60, 0), Unit.TOKENS),
        ],
        slots=[Slots("account.streams", 5)],
    )
    reservation = await desk.reserve(100, 0, tokens=70)
    reservation.use(60)
    await reservation._start_extend(60)
    desk.teller.lapse(reservation.stream.sid)
    assert await desk.reaper.reap("acme") == 1
    assert desk.teller.wallet() == {"granted": 10_000, "spent": 60, "held": 0, "absorbed": 0}
    assert desk.teller.window("account.budget.1") == (60, 0)
    assert desk.teller.window("account.tokens.1") == (70, 0)
    assert desk.teller.store.exists(keys.limits_of("acme").slots("account.streams")) == 0


async def test_grace_is_left_out_only_where_somebody_needs_the_money(desk: Desk) -> None:
    reservation = await desk.reserve()
    just_ended = desk.teller.now_ms() - 10
    desk.teller.store.zadd(keys.leases("acme"), {reservation.stream.sid: just_ended})
    patient = Reaper(desk.scripts, Retention(), grace_s=600)
    assert await patient.reap("acme") == 0
    assert await patient.reap("acme", has_grace=False) == 1


async def test_its_hold_is_charged_where_the_operator_wants_that(desk: Desk) -> None:
    reservation = await desk.reserve(100, 0)
    desk.teller.lapse(reservation.stream.sid)
    assert await Reaper(desk.scripts, Retention(), grace_s=0, charge_held=True).reap("acme") == 1
    assert desk.teller.wallet()["spent"] == 100


async def test_two_that_look_at_once_finish_each_stream_once(desk: Desk) -> None:
    for _ in range(8):
        reservation = await desk.reserve()
        reservation.use(7)
        await reservation._start_extend(7)
        desk.teller.lapse(reservation.stream.sid)
    other = Reaper(Scripts(desk.owner, "there"), Retention(), grace_s=1)
    assert sum(await asyncio.gather(desk.reaper.reap("acme"), other.reap("acme"))) == 8
    assert desk.teller.wallet() == {"granted": 10_000, "spent": 56, "held": 0, "absorbed": 0}


async def test_a_gateway_that_comes_back_corrects_what_was_reaped(desk: Desk) -> None:
    reservation = await desk.reserve(100, 0)
    reservation.use(40)
    await reservation._start_extend(40)
    desk.teller.lapse(reservation.stream.sid)
    assert await desk.reaper.reap("acme") == 1
    reservation.settle(end(55))
    assert await desk.flushed() == 0
    assert desk.teller.wallet()["spent"] == 55
    assert [row["op"] for row in desk.teller.ledger()] == ["grant", "reap", "trueup"]
    assert await desk.reaper.reap("acme") == 0
