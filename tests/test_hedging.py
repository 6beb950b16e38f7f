"""Two targets asked at once: who wins, what becomes of the other, and that no call stays open whatever happens."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.canonical.errors import ProviderRejected, ProviderTimeout, ProviderUnavailable, RequestError
from gateway.canonical.events import Batch, TextDelta, UsageReport
from gateway.canonical.usage import Usage
from gateway.providers.provider import Call, Hangup, Timeouts
from gateway.routing.first_words import HedgeRules
from tests.test_opening import HELLO, INPUT_TOKENS, NEVER, START, Desk, Scripted, down, limited, said


class Slowly(Scripted):
    """One that takes a while to hang up."""

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        stream = super().stream(call)
        try:
            async for batch in stream:
                yield batch
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                await stream.aclose()


def patient(*providers: Scripted) -> tuple[Scripted, ...]:
    for provider in providers:
        provider.timeouts = Timeouts(first_event_s=5)
    return providers


def desk_of(*providers: Scripted, **more: Any) -> Desk:
    """A desk at which whoever has not answered at once is late."""
    desk = Desk(*providers, hedge=HedgeRules(percentile=95, at_least_s=0), **more)
    for provider in providers:
        for _ in range(128):
            desk.router.deployments.of(f"{provider.name}/m").first_words.add(0.0)
    return desk


async def until_asked(*providers: Scripted) -> None:
    while not all(provider.is_open for provider in providers):
        await asyncio.sleep(0)


async def test_a_late_target_is_beaten_by_the_next_and_hung_up_on() -> None:
    late, quick = patient(Scripted("a", NEVER), Scripted("b", HELLO))
    desk = desk_of(late, quick, in_a_row=1)
    assert await desk.open() == "b/m"
    assert desk.first is HELLO
    (attempt,) = desk.calls.failed
    assert (attempt.target, attempt.code, attempt.status) == ("a/m", "hedged_away", None)
    assert (attempt.input_tokens, attempt.output_tokens, attempt.cost) == (INPUT_TOKENS, 0, INPUT_TOKENS)
    assert desk.router.deployments.of("a/m").breaker.state == "closed", "being late is no failure"
    assert desk.room.taken == ["b/m"]


async def test_one_that_is_in_time_is_asked_alone() -> None:
    quick, spare = Scripted("a", HELLO), Scripted("b", HELLO)
    desk = Desk(quick, spare, hedge=HedgeRules(at_least_s=5))
    assert (await desk.open(), desk.failed, spare.calls) == ("a/m", [], [])


async def test_one_that_is_late_may_still_be_first() -> None:
    word = asyncio.Event()
    late, spare = patient(Scripted("a", word, HELLO), Scripted("b", NEVER))
    desk = desk_of(late, spare)
    opening = asyncio.gather(desk.open())
    await until_asked(late, spare)
    word.set()
    assert await opening == ["a/m"]
    assert desk.failed == [("b/m", "hedged_away", None)]
    assert desk.room.taken == ["a/m"]


async def test_of_two_that_begin_at_once_one_is_heard_and_the_other_billed_for_what_it_said() -> None:
    word = asyncio.Event()
    report = UsageReport(Usage(input=70))
    late = Scripted("a", word, HELLO)
    spare = Scripted("b", word, said(START, report, TextDelta("Hi")))
    desk = desk_of(*patient(late, spare))
    opening = asyncio.gather(desk.open())
    await until_asked(late, spare)
    word.set()
    assert await opening == ["a/m"]
    (attempt,) = desk.calls.failed
    assert (attempt.code, attempt.target) == ("hedged_away", "b/m")
    assert (attempt.input_tokens, attempt.output_tokens, attempt.cost) == (70, 2, 74), "a token of ours is a byte here"


@pytest.mark.parametrize("act", [down("a"), NEVER, Batch([], is_last=False)])
async def test_while_one_fails_the_other_is_waited_for(act: Any) -> None:
    told = asyncio.Event()
    failing, other = Scripted("a", told, act), Scripted("b", told, HELLO)
    patient(other)
    desk = desk_of(failing, other)
    opening = asyncio.gather(desk.open())
    await until_asked(failing, other)
    if act == NEVER:
        while failing.is_open:
            await asyncio.sleep(0.01)
    told.set()
    assert await opening == ["b/m"]
    assert [attempt.target for attempt in desk.calls.failed] == ["a/m"]


@pytest.mark.parametrize("act", [down("b"), limited(), ProviderRejected("Bad.", provider="b", status=400)])
async def test_where_the_second_fails_the_late_one_is_waited_for(act: BaseException) -> None:
    word = asyncio.Event()
    late, second = patient(Scripted("a", word, HELLO), Scripted("b", act))
    desk = desk_of(late, second)
    opening = asyncio.gather(desk.open())
    while not desk.calls.failed:
        await asyncio.sleep(0)
    assert desk.calls.current is not None and desk.calls.current.name == "a/m"
    word.set()
    assert await opening == ["a/m"]
    assert [attempt.cost for attempt in desk.calls.failed] == [0]


async def test_where_both_fail_the_rest_is_asked_as_ever_and_nobody_twice() -> None:
    late, second, third = Scripted("a", NEVER), Scripted("b", down("b")), Scripted("c", HELLO)
    desk = desk_of(late, second, third)
    assert await desk.open() == "c/m"
    assert desk.failed == [("b/m", "provider_unavailable", 503), ("a/m", "provider_timeout", None)]
    assert len(second.calls) == 1 and desk.room.taken == ["c/m"]


async def test_where_all_fail_the_error_is_told_and_further_rounds_follow() -> None:
    desk = desk_of(Scripted("a", NEVER), Scripted("b", NEVER))
    with pytest.raises(ProviderTimeout):
        await desk.open()
    assert len(desk.calls.failed) == 2
    desk.check_quiet()
    told = asyncio.Event()
    late, second = Scripted("a", told, down("a")), Scripted("b", told, down("b"), then=((HELLO,),))
    desk = desk_of(late, second, rounds=1)
    opening = asyncio.gather(desk.open())
    await until_asked(late, second)
    told.set()
    assert await opening == ["b/m"]
    assert (len(late.calls), len(second.calls)) == (2, 2)


async def test_a_judgement_of_the_request_ends_both() -> None:
    told = asyncio.Event()
    late, second = patient(
        Scripted("a", told, ProviderRejected("Bad.", provider="a", status=400)), Scripted("b", NEVER)
    )
    desk = desk_of(late, second, rounds=1)
    opening = asyncio.gather(desk.open())
    await until_asked(late, second)
    told.set()
    with pytest.raises(ProviderRejected):
        await opening
    desk.check_quiet()
    assert desk.failed == [("a/m", "provider_rejected", 400), ("b/m", "abandoned", None)]


async def test_a_failure_in_the_instant_of_the_others_word_changes_nothing() -> None:
    fails, speaks = asyncio.Event(), asyncio.Event()
    late = Scripted("a", fails, ProviderRejected("Bad.", provider="a", status=400))
    second = Scripted("b", speaks, HELLO)
    desk = desk_of(*patient(late, second))
    opening = asyncio.gather(desk.open())
    await until_asked(late, second)
    speaks.set()
    fails.set()
    assert await opening == ["b/m"]
    assert desk.failed == [("a/m", "provider_rejected", 400)]
    assert desk.room.taken == ["b/m"]


async def test_a_request_that_the_late_target_cannot_take_is_told_so() -> None:
    told = asyncio.Event()
    late, second = patient(Scripted("a", told, RequestError("No audio here.")), Scripted("b", NEVER))
    desk = desk_of(late, second)
    opening = asyncio.gather(desk.open())
    await until_asked(late, second)
    told.set()
    with pytest.raises(RequestError):
        await opening
    desk.check_quiet()
    assert desk.calls.target_name == "a/m"
    assert desk.failed == [("b/m", "abandoned", None)]


async def test_a_request_has_one_hedge() -> None:
    providers = Scripted("a", NEVER), Scripted("b", NEVER), Scripted("c", NEVER), Scripted("d", HELLO)
    desk = desk_of(*providers)
    assert await desk.open() == "d/m"
    assert [attempt.code for attempt in desk.calls.failed] == ["provider_timeout"] * 3
    assert desk.calls.failed[2].after_ms >= desk.calls.failed[0].took_ms, "the third was asked alone"


async def test_one_that_is_full_or_left_alone_or_the_same_is_no_help() -> None:
    late, full, sick, fit = patient(*[Scripted(name, NEVER) for name in "abc"], Scripted("d", HELLO))
    desk = desk_of(late, full, sick, fit)
    desk.room.full["b/m"] = 30
    desk.router.deployments.of("c/m").used_up(30)
    assert await desk.open() == "d/m"
    assert (full.calls, sick.calls) == ([], [])


async def test_on_a_bad_day_the_load_does_not_double() -> None:
    late, spare = patient(Scripted("a", NEVER), Scripted("b", NEVER))
    desk = desk_of(late, spare)
    for count in range(100):
        word = asyncio.Event()
        late.turns = [[word, HELLO]]
        opening = asyncio.gather(desk.open())
        while len(late.calls) <= count:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        word.set()
        assert await opening == ["a/m"]
    assert 3 <= len(spare.calls) <= 3 + 100 * 0.2 + 1


async def test_a_bug_is_not_hidden_and_closes_both_calls() -> None:
    late, buggy = patient(Scripted("a", NEVER), Scripted("b", ValueError("bug")))
    desk = desk_of(late, buggy)
    with pytest.raises(ValueError, match="bug"):
        await desk.open()
    desk.check_quiet()


@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("acts", [(NEVER, HELLO), (NEVER, NEVER), (down("a"), HELLO)])
async def test_a_cancel_at_any_moment_leaves_no_call_open(acts: tuple[Any, Any], cancels: int) -> None:
    for steps in range(40):
        late, second = patient(Slowly("a", acts[0]), Slowly("b", acts[1]))
        desk = desk_of(late, second)
        opening = asyncio.gather(desk.open())
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(cancels):
            opening.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        desk.check_quiet()
        running = desk.calls.current is not None
        assert len(desk.calls.failed) + running <= len(late.calls) + len(second.calls)


class TestTheClientLeaves:
    """Two calls run; one of the providers bills its whole answer whoever listens."""

    async def running(self, drained: str, acts: dict[str, tuple[Any, ...]]) -> tuple[Desk, "asyncio.Future[list[str]]"]:
        providers = patient(*[Scripted(name, *own) for name, own in acts.items()])
        for provider in providers:
            provider.hangup = Hangup(policy="drain" if provider.name == drained else "cancel")
        desk = desk_of(*providers)
        opening = asyncio.gather(desk.open())
        await until_asked(*providers)
        return desk, opening

    @pytest.mark.parametrize("drained", ["a", "b"])
    async def test_the_one_that_bills_anyway_is_the_one_that_counts(self, drained: str) -> None:
        words = {"a": asyncio.Event(), "b": asyncio.Event()}
        desk, opening = await self.running(drained, {name: (word, HELLO) for name, word in words.items()})
        assert desk.calls.current is not None and desk.calls.current.name == f"{drained}/m"
        other = "b" if drained == "a" else "a"
        desk.calls.abandon()
        words[other].set()
        while desk.providers["ab".index(other)].is_open:
            await asyncio.sleep(0)
        words[drained].set()
        assert await opening == [f"{drained}/m"]
        assert [(it.target, it.code, it.cost) for it in desk.calls.failed] == [
            (f"{other}/m", "abandoned", INPUT_TOKENS)
        ]

    async def test_a_word_that_comes_as_the_client_leaves_does_not_count_either(self) -> None:
        words = {"a": (first := asyncio.Event(), HELLO), "b": (second := asyncio.Event(), HELLO)}
        desk, opening = await self.running("b", words)
        desk.calls.is_abandoned = True
        first.set()
        while not desk.calls.failed:
            await asyncio.sleep(0)
        second.set()
        assert await opening == ["b/m"]
        assert [(it.target, it.code, it.output_tokens > 0) for it in desk.calls.failed] == [("a/m", "abandoned", True)]

    async def test_once_that_one_failed_nobody_else_is_listened_to(self) -> None:
        breaks = asyncio.Event()
        desk, opening = await self.running("b", {"a": (NEVER,), "b": (breaks, down("b"))})
        desk.calls.abandon()
        breaks.set()
        with pytest.raises(ProviderUnavailable):
            await opening
        desk.check_quiet()
        assert sorted((it.target, it.code) for it in desk.calls.failed) == [
            ("a/m", "abandoned"),
            ("b/m", "provider_unavailable"),
        ]

    async def test_where_nobody_bills_on_both_are_given_up_and_one_is_on_the_operator(self) -> None:
        desk, opening = await self.running("", {"a": (NEVER,), "b": (NEVER,)})
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        desk.check_quiet()
        assert desk.calls.current is not None and desk.calls.current.name == "a/m"
        assert [(it.target, it.code, it.cost) for it in desk.calls.failed] == [("b/m", "abandoned", INPUT_TOKENS)]

    async def test_no_hedge_is_made_for_a_client_that_left(self) -> None:
        late, spare = patient(Scripted("a", NEVER), Scripted("b", HELLO))
        late.timeouts = Timeouts(first_event_s=0.05)
        desk = desk_of(late, spare)
        opening = asyncio.gather(desk.open())
        await asyncio.sleep(0)
        desk.calls.abandon()
        with pytest.raises(ProviderTimeout):
            await opening
        assert spare.calls == []


async def test_a_late_call_counts_among_the_times_and_a_short_lived_hedge_does_not() -> None:
    late, spare = patient(Scripted("a", NEVER), Scripted("b", HELLO))
    desk = desk_of(late, spare)
    rules = HedgeRules(percentile=99.9, at_least_s=0)
    before = desk.router.deployments.of("a/m").first_words.late_after_s(rules, 5)
    await desk.open()
    assert before == 0 < desk.router.deployments.of("a/m").first_words.late_after_s(rules, 5)


async def test_without_hedging_no_task_is_made() -> None:
    desk = Desk(Scripted("a", HELLO), Scripted("b", HELLO))
    before = asyncio.all_tasks()
    opening = asyncio.gather(desk.open())
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before) <= 1
    assert await opening == ["a/m"]
