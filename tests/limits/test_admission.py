"""Whether a request may start: shares before money, nothing left by a refusal, a lost answer or a cancelled request."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any

import pytest

from gateway.canonical.errors import (
    CreditsExhausted,
    ErrorCode,
    LimitExceeded,
    PermissionDenied,
    RequestError,
    ServiceUnavailable,
)
from gateway.limits import keys
from gateway.limits.admission import stream_id
from gateway.limits.allowances import Allowances, Bucket, Slots, Unit, Window
from gateway.limits.redis import StoreUnavailable
from tests.harness import RedisServer
from tests.limits.desk import Desk, end, until

TIER, MODEL = keys.capacity("tier.gold"), keys.capacity("model.m")
SHARED = (
    (TIER, Allowances(TIER, buckets=[Bucket("tier.tokens.60000", 1000, 3_600_000, 1000, Unit.TOKENS)])),
    (MODEL, Allowances(MODEL, buckets=[Bucket("rpm", 5, 3_600_000, 5)], slots=[Slots("model.streams", 2)])),
)


def shares(desk: Desk) -> tuple[float, float, int]:
    """Tokens left of the tier, requests and slots left of the model."""
    levels = []
    for owner, allowances in SHARED:
        (bucket,) = allowances.buckets
        stored = desk.teller.store.get(owner.bucket(bucket.name))
        levels.append(bucket.burst if stored is None else round(int(stored.split()[0]) / bucket.period_ms))
    return levels[0], levels[1], 2 - desk.teller.store.zcard(MODEL.slots("model.streams"))


class TestRefusals:
    async def test_credit_that_does_not_reach_is_named(self, desk: Desk) -> None:
        error = await desk.refused(10_001)
        assert isinstance(error, CreditsExhausted)
        assert "$0.010000" in error.message and "$0.010001" in error.message

    async def test_credit_that_only_the_dead_hold_is_freed_first(self, desk: Desk) -> None:
        dead = await desk.reserve(10_000, 0)
        desk.teller.lapse(dead.stream.sid)
        assert (await desk.reserve(10_000, 0)).held == 10_000

    async def test_a_window_that_only_the_dead_fill_is_freed_first(self, desk: Desk) -> None:
        desk.teller.limit(windows=[Window("account.budget.1", 100, (60_000, 60, 0), Unit.MONEY)])
        dead = await desk.reserve(100, 0)
        assert (await desk.refused(100)).code is ErrorCode.BUDGET_EXCEEDED
        desk.teller.lapse(dead.stream.sid)
        assert (await desk.reserve(100, 0)).held == 100

    async def test_too_many_requests_are_told_when_to_come_back(self, desk: Desk) -> None:
        desk.teller.limit(buckets=[Bucket("key.0f.requests.50000", 1, 50_000, 1)])
        await desk.reserve()
        error = await desk.refused()
        assert isinstance(error, LimitExceeded)
        assert (error.code, error.scope) == (ErrorCode.RATE_LIMIT_EXCEEDED, "key")
        assert error.retry_after_s is not None and 0 < error.retry_after_s <= 50

    async def test_too_many_streams_at_once_are_told_so(self, desk: Desk) -> None:
        desk.teller.limit(slots=[Slots("account.streams", 1)])
        first = await desk.reserve()
        assert (await desk.refused()).code is ErrorCode.CONCURRENCY_LIMIT_EXCEEDED
        first.settle(end(1))
        await desk.flushed()
        await desk.reserve()

    async def test_unknown_and_suspended_accounts_are_denied(self, desk: Desk) -> None:
        desk.teller.store.hset(keys.wallet("acme"), "x", 1)
        assert (await desk.refused()).code is ErrorCode.ACCOUNT_SUSPENDED
        desk.teller.store.delete(keys.wallet("acme"))
        assert isinstance(await desk.refused(), PermissionDenied)

    async def test_a_full_journal_refuses_before_anything_is_taken(self, desk: Desk) -> None:
        for _ in range(8):
            await desk.reserve(1, 0)
        assert isinstance(await desk.refused(), ServiceUnavailable)
        assert desk.teller.wallet()["held"] == 8

    async def test_a_refusal_leaves_no_trace_in_the_journal(self, desk: Desk) -> None:
        for _ in range(20):
            await desk.refused(10_001)
        assert (desk.used(), desk.journal.room) == ([], 8)


class TestIdempotency:
    async def test_a_key_stands_for_one_stream(self, desk: Desk) -> None:
        first = await desk.reserve(idempotency_key="k", digest="d")
        assert first.stream.sid == stream_id("acme", "k") != stream_id("umbrella", "k")
        running = await desk.refused(idempotency_key="k", digest="d")
        assert (running.code, type(running)) == (ErrorCode.IDEMPOTENCY_IN_PROGRESS, RequestError)
        other = await desk.refused(idempotency_key="k", digest="other")
        assert other.code is ErrorCode.IDEMPOTENCY_MISMATCH
        first.settle(end(70))
        await desk.flushed()
        has_run = await desk.refused(idempotency_key="k", digest="d")
        assert has_run.code is ErrorCode.CONFLICT
        assert "$0.000070" in has_run.message
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 70, "held": 0, "absorbed": 0}

    async def test_what_failed_at_no_cost_may_be_sent_again(self, desk: Desk) -> None:
        first = await desk.reserve(idempotency_key="k", digest="d")
        first.settle(end(0, outcome="failed", refund=True))
        await desk.flushed()
        again = await desk.reserve(idempotency_key="k", digest="d")
        assert again.stream.nonce != first.stream.nonce
        again.settle(end(30))
        await desk.flushed()
        assert desk.teller.wallet()["spent"] == 30


class TestShares:
    async def test_they_are_taken_before_and_given_back_with_the_true_figure(self, desk: Desk) -> None:
        reservation = await desk.reserve(tokens=400, shared=SHARED)
        assert shares(desk) == (600, 4, 1)
        reservation.settle(end(5, tokens=150))
        await desk.flushed()
        await until(lambda: shares(desk) == (850, 4, 2))

    async def test_a_refusal_of_the_account_gives_them_back(self, desk: Desk) -> None:
        error = await desk.refused(10_001, tokens=400, shared=SHARED)
        assert isinstance(error, CreditsExhausted)
        await until(lambda: shares(desk) == (1000, 5, 2))

    async def test_a_refusal_of_the_second_gives_the_first_back(self, desk: Desk) -> None:
        for _ in range(2):
            await desk.reserve(tokens=100, shared=SHARED)
        error = await desk.refused(tokens=100, shared=SHARED)
        assert isinstance(error, LimitExceeded)
        assert (error.code, error.scope) == (ErrorCode.CONCURRENCY_LIMIT_EXCEEDED, "model")
        await until(lambda: shares(desk) == (800, 3, 0))
        assert desk.teller.wallet()["held"] == 200

    async def test_they_are_renewed_as_long_as_the_stream_runs(self, desk: Desk) -> None:
        reservation = await desk.reserve(shared=SHARED)
        sid = reservation.stream.nonce
        desk.teller.store.zadd(MODEL.slots("model.streams"), {sid: 1})
        reservation.beat(reservation._touch_at - 0.001)
        reservation.beat(reservation._touch_at)
        await until(lambda: desk.teller.store.zscore(MODEL.slots("model.streams"), sid) > 1)


def cut_after(desk: Desk, monkeypatch: pytest.MonkeyPatch, calls: int, is_carried_out: bool) -> Callable[[], bool]:
    """The request waits for ever with its call of that number, which Redis gets, or not; tells when it does."""
    original, count = desk.owner.script, 0
    stuck = asyncio.Event()

    def script(*args: Any) -> asyncio.Future[Any]:
        nonlocal count
        count += 1
        if count != calls:
            return original(*args)
        stuck.set()
        if is_carried_out:
            original(*args)
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(desk.owner, "script", script)
    return stuck.is_set


class TestNobodyKnows:
    @pytest.mark.parametrize("is_carried_out", [True, False])
    @pytest.mark.parametrize("call", [1, 2, 3], ids=["first share", "second share", "reserve"])
    async def test_a_request_that_is_cancelled_while_it_asks_leaves_nothing(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, call: int, is_carried_out: bool
    ) -> None:
        desk.teller.limit(slots=[Slots("account.streams", 1)])
        is_stuck = cut_after(desk, monkeypatch, call, is_carried_out)
        asking = asyncio.gather(desk.reserve(tokens=400, shared=SHARED))
        await until(is_stuck)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await desk.flushed() == 0
        await until(lambda: shares(desk) == (1000, 5, 2))
        assert (desk.teller.wallet()["held"], desk.used()) == (0, [])
        assert desk.teller.store.exists(keys.leases("acme"), keys.limits_of("acme").slots("account.streams")) == 0
        assert [int(row["d"]) for row in desk.teller.ledger() if row["op"] != "grant"] in ([], [0])

    async def test_a_request_is_refused_and_what_redis_did_anyway_is_undone(
        self, desk: Desk, redis_server: RedisServer
    ) -> None:
        desk.teller.limit(slots=[Slots("account.streams", 1)])
        redis_server.signal(signal.SIGSTOP)
        with contextlib.ExitStack() as stack:
            stack.callback(redis_server.signal, signal.SIGCONT)
            error = await desk.refused()
            assert isinstance(error, ServiceUnavailable)
            assert (error.code, error.retry_after_s) == (ErrorCode.CREDIT_STORE_UNAVAILABLE, 1)
        assert await desk.flushed() == 0
        assert desk.teller.wallet() == {"granted": 10_000, "spent": 0, "held": 0, "absorbed": 0}
        assert desk.teller.store.exists(keys.leases("acme"), keys.limits_of("acme").slots("account.streams")) == 0
        assert desk.used() == []

    async def test_an_answer_that_was_lost_is_asked_for_again_and_counts_once(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.teller.limit(buckets=[Bucket("account.requests.1", 5, 3_600_000, 5)])
        original, lost = desk.owner.script, [True]

        def script(*args: Any) -> asyncio.Future[Any]:
            future = original(*args)
            if not lost:
                return future
            lost.clear()
            from_nowhere: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            from_nowhere.set_exception(StoreUnavailable("it took too long"))
            return from_nowhere

        monkeypatch.setattr(desk.owner, "script", script)
        reservation = await desk.reserve(10, 90)
        assert (reservation.held, desk.teller.wallet()["held"]) == (100, 100)
        assert round((desk.teller.level("account.requests.1") or 0) / 3_600_000) == 4


async def test_an_admission_waits_while_redis_is_told_again_what_it_lost(desk: Desk) -> None:
    earlier = desk.teller.dumps()
    lost = await desk.reserve(10, 90)
    desk.teller.restore(earlier)
    reservation = await desk.reserve(10, 90)
    assert reservation.held == 100
    assert desk.teller.wallet()["held"] == reservation.held + lost.held
