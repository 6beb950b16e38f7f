"""What passes without waking its exchange: only frames that would have passed there as they are, changing nothing."""

import pytest

from gateway.canonical.errors import ProviderUnavailable
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    FinishReason,
    Frame,
    MessageStart,
    Phase,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.guard import Guard

TEXT, THOUGHT = TextDelta("a"), ReasoningDelta("b")
FINISH = Finish(FinishReason(Unified.STOP))


def opened(*events: Event) -> Guard:
    guard = Guard()
    assert guard.check([Frame((TEXT,)), *(Frame((event,)) for event in events)])[1] is None
    return guard


def test_text_where_text_may_come_is_mere_text_and_passes_unchanged() -> None:
    guard = opened()
    frames = [Frame((TEXT,), b"raw", True), Frame((TEXT,)), Frame((THOUGHT,), b"raw")]
    assert guard.is_mere_text(frames) and guard.is_mere_text([])
    phases = dict(guard._order.phases)
    assert guard.check(list(frames)) == (frames, None) and guard._order.phases == phases == {0: Phase.OPEN}


@pytest.mark.parametrize(
    "events",
    [
        (),
        (TEXT, TEXT),
        (TextDelta("a", choice=1),),
        (FINISH,),
        (UsageReport(Usage(input=1, output=1)),),
        (MessageStart("id", "m", 0),),
        (ToolCallStart(0, "id", "f"),),
        (Failure(ProviderUnavailable("gone", provider="p")),),
    ],
    ids=lambda events: "+".join(type(event).__name__ for event in events) or "nothing",
)
def test_everything_else_is_not(events: tuple[Event, ...]) -> None:
    assert not opened().is_mere_text([Frame((TEXT,), b"raw", True), Frame(events, b"raw")])


@pytest.mark.parametrize("before", [FINISH, ToolCallStart(0, "id", "f")], ids=lambda event: type(event).__name__)
def test_nor_is_text_where_something_else_is_going_on(before: Event) -> None:
    guard = opened(before)
    assert not guard.is_mere_text([Frame((TEXT,), b"raw", True)])
    assert not guard.is_mere_text([Frame((ToolCallDelta(0, "{}"),))])
    assert not Guard().is_mere_text([Frame((TEXT,))])
