"""Which target answers: tried in order, again after a pause, and left alone while it fails."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.canonical.errors import (
    ErrorCode,
    GatewayError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    StreamTruncated,
)
from gateway.canonical.events import Batch, Event, Failure, Frame, MessageStart, TextDelta
from gateway.canonical.request import Loss, Request
from gateway.limits.deployment_capacity import Full
from gateway.metering.meter import Meter
from gateway.metering.prices import Price, PriceBook, PriceSchedule
from gateway.metering.tokens import count_bytes
from gateway.opening import Calls, open_first
from gateway.providers.credentials import CredentialError
from gateway.providers.provider import Call, Hangup, Timeouts
from gateway.providers.transport import ConnectTimeout, TransportError
from gateway.router import ModelOptions, Router
from gateway.routing.breaker import BreakerRules
from gateway.routing.deployments import DeploymentRules, Deployments
from gateway.routing.first_words import HedgeRules
from gateway.routing.retries import RetryRules

PRICE = PriceSchedule(Price(input=1_000_000, output=2_000_000))
INPUT_TOKENS = 100
REQUEST = Request(format="openai_chat", model="fast", messages=())
START = MessageStart("id", "m", 1)


def said(*events: Event) -> Batch:
    return Batch([Frame((event,)) for event in events])


HELLO = said(START, TextDelta("Hello"))
NEVER = "never"
Act = Batch | BaseException | asyncio.Event | str


class Scripted:
    """A provider that does what it was told, call by call: batches to send, errors to raise, events to wait for."""

    wire: str | None = None
    hangup = Hangup()
    models = ()

    def __init__(self, name: str, *acts: Act, then: tuple[tuple[Act, ...], ...] = ()) -> None:
        self.name = name
        self.vendor = name
        self.timeouts = Timeouts(first_event_s=0.05)
        self.turns = [acts, *then]
        self.calls: list[Call] = []
        self.is_open = False

    def knows(self, model: str) -> bool:
        return True

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        return False

    def losses(self, call: Call) -> tuple[Loss, ...]:
        return ()

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        acts = self.turns[min(len(self.calls), len(self.turns) - 1)]
        self.calls.append(call)
        self.is_open = True
        try:
            for act in acts:
                if act == NEVER:
                    await asyncio.Event().wait()
                elif isinstance(act, asyncio.Event):
                    await act.wait()
                elif isinstance(act, BaseException):
                    raise act
                else:
                    assert isinstance(act, Batch)
                    yield act
        finally:
            self.is_open = False

    async def aclose(self) -> None:
        """Nothing to give up."""


class Room:
    """What providers may be asked: ``full`` says by name for how long there is none."""

    def __init__(self) -> None:
        self.full: dict[str, float] = {}
        self.taken: list[str] = []

    async def take(self, name: str) -> Full | None:
        if name in self.full:
            return Full(self.full[name])
        self.taken.append(name)
        return None

    def failed(self, name: str) -> None:
        if name in self.taken:
            self.taken.remove(name)


class Desk:
    """A router over some providers, behind the alias ``fast``."""

    def __init__(self, *providers: Scripted, rounds: int = 0, hedge: HedgeRules | None = None, **breaker: Any) -> None:
        self.providers = providers
        rules = DeploymentRules(
            breaker=BreakerRules(**breaker), retries=RetryRules(rounds=rounds, pause_s=0.001, at_once=3)
        )
        models = {"fast": ModelOptions(targets=tuple(f"{provider.name}/m" for provider in providers), hedge=hedge)}
        prices = PriceBook({f"{provider.name}/*": PRICE for provider in providers})
        self.router = Router({it.name: it for it in providers}, models, prices, Deployments(rules))
        self.calls = Calls()
        self.room = Room()

    async def open(self) -> str:
        """Which target answered; the attempts before it are in ``calls``."""
        self.calls = Calls(
            meter=Meter(PRICE, count_bytes, INPUT_TOKENS),
            meter_for=lambda target, meter: Meter(target.terms.price, count_bytes, meter.input),
        )
        targets = self.router.choose("fast", reasons=False, account="acme", chat_id="")
        rules = self.router.deployments.rules.retries
        asks = [(target, REQUEST) for target in targets]
        upstream = await open_first(asks, self.calls, rules, self.room)
        assert self.calls.current is upstream.target
        self.first = upstream.first
        assert upstream.target.deployment.in_flight == 1
        await upstream.aclose()
        self.check_quiet()
        return upstream.target.name

    async def rested(self, name: str) -> None:
        """Wait until a deployment may be asked again."""
        while self.router.deployments.of(name).ready_at > time.monotonic():
            await asyncio.sleep(0.01)

    def check_quiet(self) -> None:
        assert not any(provider.is_open for provider in self.providers)
        assert all(self.router.deployments.of(f"{it.name}/m").in_flight == 0 for it in self.providers)

    @property
    def failed(self) -> list[tuple[str, str, int | None]]:
        return [(it.target, it.code, it.status) for it in self.calls.failed]


def down(provider: str) -> ProviderUnavailable:
    return ProviderUnavailable("Down.", provider=provider, status=503)


def limited(retry_after_s: float | None = None) -> ProviderRateLimited:
    return ProviderRateLimited("Slow down.", provider="a", status=429, retry_after_s=retry_after_s)


def after(cause: Exception, error: ProviderUnavailable | ProviderTimeout) -> ProviderUnavailable | ProviderTimeout:
    """A provider's error as it is raised where the transport's was caught."""
    error.__context__ = cause
    return error


class TestOneRound:
    async def test_the_first_target_that_begins_answers(self) -> None:
        first, second = Scripted("a", HELLO), Scripted("b", HELLO)
        desk = Desk(first, second)
        assert (await desk.open(), desk.failed, second.calls) == ("a/m", [], [])
        assert desk.first is HELLO
        (call,) = first.calls
        assert (call.request, call.model) == (REQUEST, "m")

    @pytest.mark.parametrize(
        ("acts", "code", "status"),
        [
            ((down("a"),), "provider_unavailable", 503),
            ((limited(),), "provider_rate_limited", 429),
            ((NEVER,), "provider_timeout", None),
            ((Batch([]), Batch([]), NEVER), "provider_timeout", None),
            ((said(Failure(down("a"))),), "provider_unavailable", 503),
            ((said(START, Failure(down("a"))),), "provider_unavailable", 503),
            ((said(START), said(Failure(down("a")))), "provider_unavailable", 503),
            ((said(START), NEVER), "provider_timeout", None),
            ((said(START),), "stream_truncated", None),
            ((Batch([]),), "stream_truncated", None),
            ((), "stream_truncated", None),
        ],
    )
    async def test_one_that_fails_before_its_first_word_is_passed_over(
        self, acts: tuple[Act, ...], code: str, status: int | None
    ) -> None:
        desk = Desk(Scripted("a", *acts), Scripted("b", Batch([]), HELLO))
        assert await desk.open() == "b/m"
        assert desk.failed == [("a/m", code, status)]

    @pytest.mark.parametrize(
        ("act", "cost"),
        [
            (down("a"), 0),
            (limited(), 0),
            (ProviderUnavailable("No.", provider="a", status=401), 0),
            (said(START, Failure(down("a"))), 0),
            (ProviderTimeout("The provider timed out.", provider="a", status=504), INPUT_TOKENS),
            (ProviderUnavailable("Broken off.", provider="a"), INPUT_TOKENS),
            (NEVER, INPUT_TOKENS),
            (said(START), INPUT_TOKENS),
            (after(ConnectTimeout(), ProviderTimeout("Not connected.", provider="a")), 0),
            (after(CredentialError("none"), ProviderUnavailable("No credential.", provider="a")), 0),
            (after(TransportError("refused"), ProviderUnavailable("Reset.", provider="a")), INPUT_TOKENS),
        ],
    )
    async def test_what_a_failed_call_has_to_be_expected_to_cost_is_remembered(self, act: Act, cost: int) -> None:
        desk = Desk(Scripted("a", act), Scripted("b", HELLO))
        await desk.open()
        (attempt,) = desk.calls.failed
        assert (attempt.input_tokens, attempt.output_tokens, attempt.cost) == (cost, 0, cost)

    async def test_a_greeting_is_not_lost_that_came_before_the_first_word(self) -> None:
        desk = Desk(Scripted("a", said(START), Batch([]), said(TextDelta("Hi"))))
        await desk.open()
        assert [event for frame in desk.first.frames for event in frame.events] == [START, TextDelta("Hi")]

    async def test_what_was_said_is_never_said_twice(self) -> None:
        second = Scripted("b", HELLO)
        desk = Desk(Scripted("a", said(TextDelta("Hel"), Failure(down("a")))), second)
        assert (await desk.open(), second.calls) == ("a/m", [])

    async def test_a_request_that_was_judged_wrong_is_not_tried_elsewhere(self) -> None:
        second = Scripted("b", HELLO)
        desk = Desk(Scripted("a", ProviderRejected("Bad.", provider="a", status=400)), second, rounds=2)
        with pytest.raises(ProviderRejected):
            await desk.open()
        assert second.calls == []

    @pytest.mark.parametrize(
        ("act", "kind"), [(down("b"), ProviderUnavailable), (NEVER, ProviderTimeout), (Batch([]), StreamTruncated)]
    )
    async def test_the_last_targets_error_is_told(self, act: Act, kind: type[GatewayError]) -> None:
        desk = Desk(Scripted("a", down("a")), Scripted("b", act))
        with pytest.raises(kind) as caught:
            await desk.open()
        assert getattr(caught.value, "provider", None) == "b"
        desk.check_quiet()

    async def test_an_answer_without_words_is_an_answer(self) -> None:
        desk = Desk(Scripted("a", Batch([], is_last=True)))
        await desk.open()
        assert desk.first.is_last

    async def test_a_bug_or_a_cancel_is_not_hidden_and_closes_the_call(self) -> None:
        desk = Desk(Scripted("a", ValueError("bug")), Scripted("b", HELLO))
        with pytest.raises(ValueError, match="bug"):
            await desk.open()
        desk.check_quiet()
        hanging = Scripted("a", NEVER)
        hanging.timeouts = Timeouts()
        desk = Desk(hanging)
        opening = asyncio.gather(desk.open())
        while not hanging.is_open:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        desk.check_quiet()


class TestFurtherRounds:
    async def test_one_that_fails_once_answers_the_next_time(self) -> None:
        desk = Desk(Scripted("a", down("a"), then=((HELLO,),)), rounds=1)
        assert await desk.open() == "a/m"
        assert desk.failed == [("a/m", "provider_unavailable", 503)]

    async def test_all_targets_are_asked_before_the_first_is_asked_again(self) -> None:
        one, two = Scripted("a", down("a")), Scripted("b", down("b"), then=((HELLO,),))
        desk = Desk(one, two, rounds=2)
        assert await desk.open() == "b/m"
        assert [target for target, _, _ in desk.failed] == ["a/m", "b/m", "a/m"]

    async def test_after_the_last_round_its_error_is_told(self) -> None:
        provider = Scripted("a", down("a"))
        desk = Desk(provider, rounds=2)
        with pytest.raises(ProviderUnavailable):
            await desk.open()
        assert len(provider.calls) == len(desk.failed) == 3

    @pytest.mark.parametrize(("act", "calls"), [(NEVER, 1), (limited(), 1), (limited(30), 1), (limited(0.001), 2)])
    async def test_a_client_is_not_kept_waiting_for_what_takes_long(self, act: Act, calls: int) -> None:
        provider = Scripted("a", act)
        desk = Desk(provider, rounds=1)
        with pytest.raises(GatewayError):
            await desk.open()
        assert len(provider.calls) == calls

    async def test_when_everything_fails_further_tries_do_not_double_the_load(self) -> None:
        provider = Scripted("a", down("a"))
        desk = Desk(provider, rounds=1, in_a_row=10_000, calls_min=10_000)
        for _ in range(200):
            with pytest.raises(ProviderUnavailable):
                await desk.open()
        assert 200 + 35 <= len(provider.calls) <= 200 + 45

    async def test_nobody_is_asked_again_for_a_client_that_left(self) -> None:
        provider = Scripted("a", down("a"))
        desk = Desk(provider, rounds=2)
        targets = desk.router.resolve("fast")
        with pytest.raises(ProviderUnavailable):
            await open_first([(targets[0], REQUEST)], Calls(is_abandoned=True), RetryRules(rounds=2), Room())
        assert len(provider.calls) == 1


class TestSickTargets:
    async def test_one_that_keeps_failing_is_left_alone_and_found_again(self) -> None:
        one, two = Scripted("a", down("a"), then=((down("a"),), (HELLO,))), Scripted("b", HELLO)
        desk = Desk(one, two, in_a_row=2, pause_s=1)
        for _ in range(10):
            assert await desk.open() == "b/m"
        assert len(one.calls) == 2
        await desk.rested("a/m")
        assert [await desk.open() for _ in range(3)] == ["a/m"] * 3

    async def test_one_at_its_own_limit_is_left_alone_for_as_long_as_it_says(self) -> None:
        one, two = Scripted("a", limited(1), then=((HELLO,),)), Scripted("b", HELLO)
        desk = Desk(one, two)
        assert [await desk.open() for _ in range(3)] == ["b/m"] * 3
        assert len(one.calls) == 1
        await desk.rested("a/m")
        assert await desk.open() == "a/m"

    async def test_one_that_says_that_nothing_is_left_is_left_alone_until_there_is(self) -> None:
        one, two = Scripted("a", HELLO), Scripted("b", HELLO)
        desk = Desk(one, two)
        assert await desk.open() == "a/m"
        told = one.calls[0].on_used_up
        assert told is not None
        told(30)
        assert [await desk.open() for _ in range(3)] == ["b/m"] * 3

    async def test_where_all_are_left_alone_the_client_is_told_for_how_long(self) -> None:
        desk = Desk(Scripted("a", limited(40)), Scripted("b", limited(20)))
        with pytest.raises(ProviderRateLimited):
            await desk.open()
        with pytest.raises(ProviderUnavailable) as caught:
            await desk.open()
        assert caught.value.code is ErrorCode.PROVIDER_OVERLOADED
        assert caught.value.retry_after_s == pytest.approx(20, abs=5)
        assert desk.failed == []

    async def test_a_lone_target_is_asked_whatever_happened(self) -> None:
        provider = Scripted("a", down("a"))
        desk = Desk(provider, in_a_row=2)
        for _ in range(6):
            with pytest.raises(ProviderUnavailable):
                await desk.open()
        assert len(provider.calls) == 6

    async def test_a_stream_that_breaks_in_the_middle_counts_as_a_failure(self) -> None:
        desk = Desk(Scripted("a", HELLO), Scripted("b", HELLO), in_a_row=3)
        targets = desk.router.resolve("fast")
        for _ in range(3):
            upstream = await open_first([(targets[0], REQUEST)], Calls(), RetryRules(), Room())
            upstream.broke(down("a"))
            await upstream.aclose()
        assert desk.router.deployments.of("a/m").breaker.state == "closed", "each had begun well"
        for _ in range(30):
            upstream = await open_first([(targets[0], REQUEST)], Calls(), RetryRules(), Room())
            upstream.broke(down("a"))
            await upstream.aclose()
        assert desk.router.deployments.of("a/m").breaker.state != "closed"


class TestFullTargets:
    async def test_one_that_is_full_is_passed_over(self) -> None:
        one, two = Scripted("a", HELLO), Scripted("b", HELLO)
        desk = Desk(one, two)
        desk.room.full["a/m"] = 30
        assert (await desk.open(), one.calls, desk.room.taken) == ("b/m", [], ["b/m"])

    async def test_where_all_are_full_the_client_is_told_for_how_long(self) -> None:
        desk = Desk(Scripted("a", HELLO), Scripted("b", HELLO))
        desk.room.full |= {"a/m": 30, "b/m": 20}
        with pytest.raises(ProviderRateLimited) as caught:
            await desk.open()
        assert caught.value.retry_after_s == 20

    async def test_what_never_fits_is_not_worth_waiting_for(self) -> None:
        desk = Desk(Scripted("a", HELLO))
        desk.room.full["a/m"] = math.inf
        with pytest.raises(ProviderRateLimited) as caught:
            await desk.open()
        assert caught.value.retry_after_s is None

    async def test_what_was_taken_for_a_failed_call_is_given_back(self) -> None:
        desk = Desk(Scripted("a", down("a")), Scripted("b", HELLO))
        await desk.open()
        assert desk.room.taken == ["b/m"]
