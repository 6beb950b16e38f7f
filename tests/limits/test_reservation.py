"""What a running stream may do with its hold, and how admission gives it one: real scripts, a clock we can stop."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    GatewayError,
    LimitExceeded,
    PermissionDenied,
    ServiceUnavailable,
)
from gateway.limits import keys
from gateway.limits.accounts import Accounts
from gateway.limits.admission import Admission, Ask, Tier
from gateway.limits.journal import Journal
from gateway.limits.redis import RedisOwner
from gateway.limits.reservation import Books, HoldPolicy, Reservation, Shortfall
from gateway.limits.scripts import Posting, Retention
from gateway.limits.settlements import Settlements
from gateway.tasks import TaskOwner
from tests.harness import RedisServer

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

POLICY = HoldPolicy(lease_s=30, margin_s=1, extend_budget_s=1)
TIER = Tier(requests=1000, period_ms=60_000, burst=1000, streams=100)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


class Clock:
    """The monotonic clock of a process that can be frozen."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("gateway.limits.reservation.time", fake)
    return fake


class Desk:
    """Admission to the account ``acme`` with everything behind it."""

    def __init__(self, teller: Teller, owner: RedisOwner, journal: Journal) -> None:
        self.teller = teller
        self.journal = journal
        self.settlements = Settlements(owner, journal, Retention())
        self.books = Books(redis=owner, journal=journal, settlements=self.settlements, policy=POLICY)
        self.admission = Admission(self.books, Retention())

    async def reserve(self, least: int = 10, slice_: int = 90, *, tier: Tier = TIER) -> Reservation:
        ask = Ask(
            account="acme", tier=tier, model="m", request_id="r", hold_min=least, slice=slice_, facts=b'{"model":"m"}'
        )
        return await self.admission.reserve(ask)

    async def refused(self, least: int = 10, *, tier: Tier = TIER) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.reserve(least, tier=tier)
        return caught.value

    def used(self) -> list[int]:
        return [entry.used for entry in self.journal.entries()]


def end(actual: int) -> Posting:
    return Posting(actual=actual, outcome="complete", refund=False, usage=b"{}")


@pytest.fixture
async def desk(teller: Teller, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Desk]:
    """A desk whose calls give up after a fraction of a second."""
    owner = RedisOwner(redis_server.url, timeout_s=0.5)
    owner.start()
    journal = Journal(tmp_path / "j", slots=8)
    tasks = TaskOwner()
    made = Desk(teller, owner, journal)
    tasks.start(made.settlements.run(), "outbox")
    yield made
    await tasks.aclose()
    await owner.aclose()
    journal.close()


@contextlib.contextmanager
def hanging(server: RedisServer) -> Any:
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


class TestCover:
    async def test_what_is_held_is_covered_and_not_a_micro_more(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        assert reservation.held == 100
        assert reservation.covers(100)
        assert not reservation.covers(101)

    async def test_what_is_used_is_in_the_journal_before_it_is_sent(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve()
        for cost in (10, 40, 70):
            reservation.use(cost)
            assert (reservation.used, desk.used()) == (cost, [cost])

    async def test_the_hold_grows_in_the_background_once_half_a_slice_is_left(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.use(55)
        reservation.keep_ahead()
        assert reservation._extending is None
        reservation.use(56)
        for _ in range(3):
            reservation.keep_ahead()
        assert reservation.held == 100
        await until(lambda: reservation.held == 146)
        assert desk.teller.wallet()["held"] == 146
        assert desk.teller.record(reservation.stream.sid)["u"] == "56"

    async def test_a_stream_that_is_ahead_of_its_hold_waits_until_it_is_covered(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.use(100)
        assert await reservation.cover(700) is None
        assert reservation.covers(700)
        assert desk.teller.wallet()["held"] == reservation.held == 790

    async def test_a_call_in_the_background_may_bring_what_is_waited_for(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.use(100)
        reservation.keep_ahead()
        assert await reservation.cover(180) is None
        reservation.keep_ahead()
        assert await reservation.cover(5_000) is None
        assert reservation.covers(5_000)

    async def test_the_last_of_the_balance_can_be_used_to_the_end(self, desk: Desk) -> None:
        await desk.teller.grant(1000)
        reservation = await desk.reserve(10, 90)
        for cost in range(0, 1001, 50):
            assert await reservation.cover(cost) is None
            reservation.use(cost)
            reservation.keep_ahead()
        assert await reservation.cover(1001) is Shortfall.CREDITS_EXHAUSTED
        reservation.settle(end(1000))
        assert await desk.settlements.flush(10) == 0
        assert desk.teller.wallet() == {"granted": 1000, "spent": 1000, "held": 0, "absorbed": 0}

    async def test_new_credit_lets_a_stream_go_on_that_ran_dry(self, desk: Desk) -> None:
        await desk.teller.grant(100)
        reservation = await desk.reserve(100, 0)
        assert await reservation.cover(150) is Shortfall.CREDITS_EXHAUSTED
        await desk.teller.grant(100, "more")
        assert await reservation.cover(150) is None

    async def test_a_suspended_account_is_cut_at_its_next_extension(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        desk.teller.store.hset(keys.wallet("acme"), "x", 1)
        assert reservation.covers(100)
        assert await reservation.cover(101) is Shortfall.ACCOUNT_SUSPENDED
        assert not reservation.covers(1)

    async def test_a_reaped_stream_may_not_go_on(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        desk.teller.lapse(reservation.stream.sid)
        await desk.teller.reap(reservation.stream.sid)
        reservation.beat(time.monotonic() + POLICY.lease_s)
        await until(lambda: not reservation.covers(1))
        assert await reservation.cover(1) is Shortfall.LEASE_LOST

    @pytest.mark.parametrize(("lost", "shortfall"), [("s:*", Shortfall.LEASE_LOST), ("w", Shortfall.CREDITS_EXHAUSTED)])
    async def test_a_redis_that_lost_the_stream_or_the_wallet_ends_it(
        self, desk: Desk, lost: str, shortfall: Shortfall
    ) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        desk.teller.store.delete(*desk.teller.store.keys(f"cr:{{acme}}:{lost}"))
        assert await reservation.cover(500) is shortfall


class TestLease:
    async def test_a_process_frozen_beyond_its_lease_covers_nothing_until_it_asked_again(
        self, desk: Desk, clock: Clock
    ) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.use(20)
        clock.skipped_s = POLICY.lease_s - POLICY.margin_s - 5
        assert reservation.covers(30)
        clock.skipped_s = POLICY.lease_s - POLICY.margin_s
        assert not reservation.covers(30)
        assert await reservation.cover(30) is None
        assert reservation.covers(30)

    async def test_a_process_that_slept_while_it_was_reaped_forwards_nothing_more(
        self, desk: Desk, clock: Clock
    ) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.use(20)
        clock.skipped_s = POLICY.lease_s
        desk.teller.lapse(reservation.stream.sid)
        await desk.teller.reap(reservation.stream.sid)
        assert await reservation.cover(21) is Shortfall.LEASE_LOST
        reservation.settle(end(20))
        assert await desk.settlements.flush(10) == 0
        assert desk.teller.wallet()["spent"] == 20

    async def test_the_deadline_counts_from_before_the_call(self, desk: Desk, clock: Clock) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        extended = reservation._start_extend(100)
        clock.skipped_s = POLICY.lease_s  # frozen between the question and the answer
        await extended
        await until(lambda: reservation._extending is None)
        assert reservation.held >= 100
        assert not reservation.covers(100)
        assert await reservation.cover(100) is None

    async def test_a_beat_renews_where_a_third_of_the_lease_is_over(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        desk.teller.lapse(reservation.stream.sid)
        reservation.beat(time.monotonic())
        assert reservation._extending is None
        reservation.beat(time.monotonic() + POLICY.lease_s / 3)
        await until(lambda: reservation._extending is None)
        assert desk.teller.store.zscore(keys.leases("acme"), reservation.stream.sid) > desk.teller.now_ms()


class TestRedisAway:
    async def test_a_stream_goes_on_within_its_hold_and_then_says_why_not(
        self, desk: Desk, redis_server: RedisServer
    ) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        with hanging(redis_server):
            reservation.use(90)
            reservation.keep_ahead()
            assert reservation.covers(100)
            assert await reservation.cover(500) is Shortfall.CREDIT_STORE_UNAVAILABLE
            reservation.settle(end(100))
            assert await desk.settlements.flush(0.01) == 1
            assert desk.used() == [100]
        assert await desk.settlements.flush(20) == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 100, "held": 0, "absorbed": 0}

    async def test_a_short_outage_is_waited_for(self, desk: Desk, redis_server: RedisServer) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation._policy = HoldPolicy(lease_s=30, extend_budget_s=20)
        with hanging(redis_server):
            waiting = asyncio.gather(reservation.cover(500))
            await until(lambda: reservation._extending is not None)
            first = reservation._extending
            await until(lambda: reservation._extending is not first)
        assert await waiting == [None]

    async def test_a_request_is_refused_and_what_redis_did_anyway_is_undone(
        self, desk: Desk, redis_server: RedisServer
    ) -> None:
        await desk.teller.grant(10_000)
        with hanging(redis_server):
            error = await desk.refused()
            assert isinstance(error, ServiceUnavailable)
            assert (error.code, error.retry_after_s) == (ErrorCode.CREDIT_STORE_UNAVAILABLE, 1)
        assert await desk.settlements.flush(20) == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 0, "held": 0, "absorbed": 0}
        assert desk.teller.store.exists(keys.leases("acme"), keys.slots("acme", "streams")) == 0
        assert desk.used() == []

    async def test_a_request_that_is_cancelled_while_it_asks_leaves_nothing(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        asking = asyncio.gather(desk.reserve())
        await until(lambda: len(desk.used()) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await desk.settlements.flush(20) == 0
        assert (desk.teller.wallet()["held"], desk.used()) == (0, [])


class TestSettle:
    async def test_a_stream_is_settled_once(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        for actual in (60, 70, 0):
            reservation.settle(end(actual))
        assert reservation.is_settled
        assert await desk.settlements.flush(10) == 0
        reservation.settle(end(80))
        assert desk.settlements.pending == 0
        assert desk.teller.wallet()["spent"] == 60
        assert desk.used() == []

    async def test_an_extension_that_comes_too_late_changes_nothing(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        reservation = await desk.reserve(10, 90)
        reservation.settle(end(60))
        reservation.beat(time.monotonic() + POLICY.lease_s)
        await until(lambda: reservation._extending is None)
        assert not reservation.covers(1)
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 60, "held": 0, "absorbed": 0}


class TestRefusals:
    async def test_credit_that_does_not_reach_is_named(self, desk: Desk) -> None:
        await desk.teller.grant(5)
        error = await desk.refused(10)
        assert isinstance(error, CreditsExhausted)
        assert "$0.000005" in error.message and "$0.000010" in error.message
        assert error.should_retry is False

    async def test_credit_that_only_the_dead_hold_is_freed_first(self, desk: Desk) -> None:
        await desk.teller.grant(100)
        dead = await desk.reserve(100, 0)
        desk.teller.lapse(dead.stream.sid)
        assert (await desk.reserve(100, 0)).held == 100

    async def test_too_many_requests_are_told_when_to_come_back(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        tier = Tier(requests=1, period_ms=50_000, burst=1, streams=10)
        await desk.reserve(tier=tier)
        error = await desk.refused(tier=tier)
        assert isinstance(error, LimitExceeded)
        assert error.code is ErrorCode.RATE_LIMIT_EXCEEDED
        assert error.retry_after_s is not None and 0 < error.retry_after_s <= 50

    async def test_too_many_streams_at_once_are_told_so(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        tier = Tier(requests=9, period_ms=1000, burst=9, streams=1)
        first = await desk.reserve(tier=tier)
        error = await desk.refused(tier=tier)
        assert (error.code, error.code.http_status) == (ErrorCode.CONCURRENCY_LIMIT_EXCEEDED, 429)
        first.settle(end(1))
        await desk.settlements.flush(10)
        await desk.reserve(tier=tier)

    async def test_unknown_and_suspended_accounts_are_denied(self, desk: Desk) -> None:
        assert isinstance(await desk.refused(), PermissionDenied)
        await desk.teller.grant(10_000)
        desk.teller.store.hset(keys.wallet("acme"), "x", 1)
        assert (await desk.refused()).code is ErrorCode.ACCOUNT_SUSPENDED

    async def test_a_full_journal_refuses_before_anything_is_taken(self, desk: Desk) -> None:
        await desk.teller.grant(10_000)
        for _ in range(8):
            await desk.reserve(1, 0)
        assert isinstance(await desk.refused(), ServiceUnavailable)
        assert desk.teller.wallet()["held"] == 8

    async def test_a_refusal_leaves_no_trace_in_the_journal(self, desk: Desk) -> None:
        for _ in range(20):
            await desk.refused()
        assert (desk.used(), len(desk.journal._free)) == ([], 8)


async def test_the_reaper_finds_abandoned_streams_and_forgets_idle_accounts(desk: Desk) -> None:
    store = desk.teller.store
    await desk.teller.grant(10_000)
    reservation = await desk.reserve()
    await until(lambda: store.zscore(keys.ACTIVE, "acme") is not None)
    assert await desk.admission.reap_abandoned() == 0
    desk.teller.lapse(reservation.stream.sid)
    assert await desk.admission.reap_abandoned() == 1
    assert desk.teller.wallet()["held"] == 0
    assert store.zscore(keys.ACTIVE, "acme") is not None
    store.zadd(keys.ACTIVE, {"acme": 1})
    assert await desk.admission.reap_abandoned() == 0
    assert store.exists(keys.ACTIVE) == 0


async def test_accounts_have_names_tiers_and_wallets(desk: Desk, redis: RedisOwner) -> None:
    accounts = Accounts(redis)
    assert await accounts.create("acme", name="Acme", tier="gold")
    assert not await accounts.create("acme", name="Other", tier=None)
    assert await accounts.create("umbrella", name="", tier=None)
    account = await accounts.get("acme")
    assert account is not None and (account.name, account.tier) == ("Acme", "gold")
    assert await accounts.get("nobody") is None
    assert set(await accounts.ids(start=0, count=9)) == {"acme", "umbrella"}
    assert [await accounts.tier_of(name) for name in ("acme", "umbrella", "acme")] == ["gold", None, "gold"]
    assert (await accounts.grant("acme", grant_id="g", amount=70)).granted == 70
    await desk.reserve(10, 20)
    wallet = await accounts.wallet("acme")
    assert (wallet.granted, wallet.held, wallet.available) == (70, 30, 40)
    assert (await accounts.wallet("nobody")).available == 0
