"""What a running stream may do with its hold: real scripts, a clock we can stop, a server that hangs and forgets."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Bucket, Slots, Unit, Window
from gateway.limits.reservation import HoldPolicy, Shortfall
from tests.harness import RedisServer
from tests.limits.desk import POLICY, Clock, Desk, end, until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("gateway.limits.reservation.time", fake)
    return fake


@contextlib.contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


class TestCover:
    async def test_what_is_held_is_covered_and_not_a_micro_more(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        assert reservation.held == 100
        assert reservation.covers(100)
        assert not reservation.covers(101)

    async def test_what_is_used_is_in_the_journal_before_it_is_sent(self, desk: Desk) -> None:
        reservation = await desk.reserve()
        for cost in (10, 40, 70):
            reservation.use(cost)
            assert (reservation.used, desk.used()) == (cost, [cost])

    async def test_the_hold_grows_in_the_background_once_half_a_slice_is_left(self, desk: Desk) -> None:
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
        reservation = await desk.reserve(10, 90)
        reservation.use(100)
        assert await reservation.cover(700) is None
        assert reservation.covers(700)
        assert desk.teller.wallet()["held"] == reservation.held == 790

    async def test_a_call_in_the_background_may_bring_what_is_waited_for(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        reservation.use(100)
        reservation.keep_ahead()
        assert await reservation.cover(180) is None
        reservation.keep_ahead()
        assert await reservation.cover(5_000) is None
        assert reservation.covers(5_000)

    async def test_the_last_of_the_balance_can_be_used_to_the_end(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 900)
        for cost in range(0, 10_001, 500):
            assert await reservation.cover(cost) is None
            reservation.use(cost)
            reservation.keep_ahead()
        assert await reservation.cover(10_001) is Shortfall.CREDITS_EXHAUSTED
        reservation.settle(end(10_000))
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 10_000, "held": 0, "absorbed": 0}

    async def test_new_credit_lets_a_stream_go_on_that_ran_dry(self, desk: Desk) -> None:
        reservation = await desk.reserve(10_000, 0)
        assert await reservation.cover(10_050) is Shortfall.CREDITS_EXHAUSTED
        await desk.teller.grant(100, "more")
        assert await reservation.cover(10_050) is None

    async def test_a_budget_ends_a_stream_as_the_balance_does(self, desk: Desk) -> None:
        desk.teller.limit(windows=[Window("account.budget.1", 300, (60_000, 60, 0), Unit.MONEY)])
        reservation = await desk.reserve(10, 90)
        assert await reservation.cover(300) is None
        assert await reservation.cover(301) is Shortfall.BUDGET_EXCEEDED

    async def test_what_only_the_dead_hold_is_freed_for_the_living(self, desk: Desk) -> None:
        dead, alive = await desk.reserve(9_000, 0), await desk.reserve(1_000, 0)
        assert await alive.cover(2_000) is Shortfall.CREDITS_EXHAUSTED
        desk.teller.lapse(dead.stream.sid)
        assert await alive.cover(2_000) is None
        assert desk.teller.record(dead.stream.sid)["st"] == "reaped"

    async def test_a_suspended_account_is_cut_at_its_next_extension(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        desk.teller.store.hset(keys.wallet("acme"), "x", 1)
        assert reservation.covers(100)
        assert await reservation.cover(101) is Shortfall.ACCOUNT_SUSPENDED
        assert not reservation.covers(1)

    async def test_a_reaped_stream_may_not_go_on(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        desk.teller.lapse(reservation.stream.sid)
        await desk.teller.reap(reservation.stream.sid)
        reservation.beat(time.monotonic() + POLICY.lease_s)
        await until(lambda: not reservation.covers(1))
        assert await reservation.cover(1) is Shortfall.LEASE_LOST

    async def test_tokens_beyond_the_estimate_tell_how_long_the_limit_is_in_debt(self, desk: Desk) -> None:
        desk.teller.limit(buckets=[Bucket("account.tokens.60000", 60_000, 60_000, 100, Unit.TOKENS)])
        reservation = await desk.reserve(10, 90, tokens=100)
        reservation.tokens = 150
        assert await reservation.cover(500) is None
        assert 0 < reservation.debt_ms <= 50


class TestSlices:
    async def test_they_follow_the_rate_and_never_go_below_the_least(self, desk: Desk, clock: Clock) -> None:
        reservation = await desk.reserve(10, 90)
        reservation.use(100)
        clock.skipped_s += 1
        await reservation._start_extend(100)
        assert reservation._slice > 90 + 50  # about a hundred a second, of which a slice covers four seconds
        grown = reservation._slice
        for _ in range(12):
            clock.skipped_s += 1
            await reservation._start_extend(100)
        assert grown > reservation._slice == 90

    async def test_they_shrink_near_the_end_so_that_others_get_their_share(self, desk: Desk) -> None:
        streams = [await desk.reserve(10, 990) for _ in range(8)]
        assert [stream.held for stream in streams] == sorted((stream.held for stream in streams), reverse=True)
        assert all(stream.held >= 10 for stream in streams)
        assert streams[0].held == 1000 and streams[-1].held < 500
        assert desk.teller.wallet()["held"] < 10_000

    async def test_one_that_got_less_than_it_asked_for_does_not_ask_with_every_token(
        self, desk: Desk, clock: Clock
    ) -> None:
        reservation = await desk.reserve(9_990, 100)
        reservation.use(9_980)
        reservation.keep_ahead()
        await until(lambda: reservation._extending is None)
        assert reservation.held < 9_980 + 100
        for _ in range(5):
            reservation.keep_ahead()
        assert reservation._extending is None
        clock.skipped_s += 0.3
        reservation.keep_ahead()
        assert reservation._extending is not None


class TestLease:
    async def test_a_process_frozen_beyond_its_lease_covers_nothing_until_it_asked_again(
        self, desk: Desk, clock: Clock
    ) -> None:
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
        reservation = await desk.reserve(10, 90)
        reservation.use(20)
        clock.skipped_s = POLICY.lease_s
        desk.teller.lapse(reservation.stream.sid)
        await desk.teller.reap(reservation.stream.sid)
        assert await reservation.cover(21) is Shortfall.LEASE_LOST
        reservation.settle(end(20))
        assert await desk.flushed() == 0
        assert desk.teller.wallet()["spent"] == 20

    async def test_the_deadline_counts_from_before_the_call(self, desk: Desk, clock: Clock) -> None:
        reservation = await desk.reserve(10, 90)
        extended = reservation._start_extend(100)
        clock.skipped_s = POLICY.lease_s  # frozen between the question and the answer
        await extended
        await until(lambda: reservation._extending is None)
        assert reservation.held >= 100
        assert not reservation.covers(100)
        assert await reservation.cover(100) is None

    async def test_a_beat_renews_where_a_third_of_the_lease_is_over(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        desk.teller.lapse(reservation.stream.sid)
        reservation.beat(time.monotonic())
        assert reservation._extending is None
        reservation.beat(time.monotonic() + POLICY.lease_s / 3)
        await until(lambda: reservation._extending is None)
        assert desk.teller.store.zscore(keys.leases("acme"), reservation.stream.sid) > desk.teller.now_ms()


class TestLost:
    async def test_a_record_that_was_lost_is_made_again(self, desk: Desk) -> None:
        desk.teller.limit(slots=[Slots("account.streams", 3)])
        earlier = desk.teller.dumps()
        reservation = await desk.reserve(100, 400)
        reservation.use(60)
        desk.teller.restore(earlier)
        reservation._policy = HoldPolicy(lease_s=30, extend_budget_s=20)
        assert await reservation.cover(600) is None
        record = desk.teller.record(reservation.stream.sid)
        assert (record["st"], record["h"], record["u"]) == ("open", str(reservation.held), "60")
        assert desk.teller.wallet()["held"] == reservation.held
        assert [row["op"] for row in desk.teller.ledger()] == ["grant", "rollback"]
        reservation.settle(end(250))
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 250, "held": 0, "absorbed": 0}

    async def test_a_whole_hold_is_held_again_however_little_of_it_is_used(self, desk: Desk) -> None:
        """A stream that cannot be hung up on holds all it may cost; nobody else may have that meanwhile."""
        other = desk.teller.from_gateway("there")
        earlier = desk.teller.dumps()
        reservation = await desk.reserve(8_000, 0)
        desk.teller.restore(earlier)
        reservation.beat(time.monotonic() + POLICY.lease_s / 3)
        await until(lambda: reservation._extending is None and desk.teller.wallet()["held"])
        assert (reservation.held, desk.teller.wallet()["held"]) == (8_000, 8_000)
        assert (await other.reserve("greedy", 5_000)).code == -20

    async def test_while_redis_recovers_a_stream_waits_for_what_goes_beyond_what_it_had(self, desk: Desk) -> None:
        reservation = await desk.reserve(100, 0)
        earlier = desk.teller.dumps()
        assert await reservation.cover(400) is None
        desk.teller.restore(earlier)
        assert await reservation.cover(400) is None
        reservation._policy = HoldPolicy(lease_s=30, extend_budget_s=20)
        assert await reservation.cover(900) is None
        assert desk.teller.wallet()["held"] == 900

    async def test_a_redis_without_the_wallet_ends_it(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        desk.teller.store.delete(*desk.teller.store.keys("cr:{acme}:*"))
        assert await reservation.cover(500) is Shortfall.CREDIT_STORE_UNAVAILABLE


class TestRedisAway:
    async def test_a_stream_goes_on_within_its_hold_and_then_says_why_not(
        self, desk: Desk, redis_server: RedisServer
    ) -> None:
        reservation = await desk.reserve(10, 90)
        with hanging(redis_server):
            reservation.use(90)
            reservation.keep_ahead()
            assert reservation.covers(100)
            assert await reservation.cover(500) is Shortfall.CREDIT_STORE_UNAVAILABLE
            reservation.settle(end(100))
            assert await desk.flushed(0.01) == 1
            assert desk.used() == [100]
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 100, "held": 0, "absorbed": 0}

    async def test_a_short_outage_is_waited_for(self, desk: Desk, redis_server: RedisServer) -> None:
        reservation = await desk.reserve(10, 90)
        reservation._policy = HoldPolicy(lease_s=30, extend_budget_s=20)
        with hanging(redis_server):
            waiting = asyncio.gather(reservation.cover(500))
            await until(lambda: reservation._extending is not None)
            first = reservation._extending
            await until(lambda: reservation._extending is not first)
        assert await waiting == [None]


class TestSettle:
    async def test_a_stream_is_settled_once(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        for actual in (60, 70, 0):
            reservation.settle(end(actual))
        assert reservation.is_settled
        assert await desk.flushed() == 0
        reservation.settle(end(80))
        assert desk.settlements.pending == 0
        assert desk.teller.wallet()["spent"] == 60
        assert desk.books.open == {}

    async def test_an_extension_that_comes_too_late_changes_nothing(self, desk: Desk) -> None:
        reservation = await desk.reserve(10, 90)
        reservation.settle(end(60))
        reservation.beat(time.monotonic() + POLICY.lease_s)
        await until(lambda: reservation._extending is None)
        assert not reservation.covers(1)
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 60, "held": 0, "absorbed": 0}
