"""What a model may say in one answer, as events, and what a client must have understood in the end.

A case is written once, in the words of this project, and holds for every format. Where a format has no place for
something, that is declared in ``losses`` and changes what is expected there; nothing is left out of the suite.
"""

from typing import Literal

import msgspec

from gateway.canonical.errors import GatewayError, ProviderUnavailable, StreamTruncated
from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from gateway.canonical.usage import Usage

CREATED = 1_700_000_001
WORDS = ("Hel", "lo ", "Zü😀\u2028\n!")
THOUGHTS = ("Where is ", "Zürich?")
SIGNATURE = "EqQB+/=="
USAGE = Usage(input=20, output=7)
DETAILED = Usage(input=20, output=7, cache_read=5, cache_write=4, reasoning=3)


class Understood(msgspec.Struct, frozen=True):
    """What a client knows when its answer has ended. Arguments of ``calls`` are JSON, read and written anew.

    ``signature`` is what vouches for reasoning, be it on a thought or in a block of its own that nobody can read.
    ``usage`` leaves ``raw`` out; ``None`` where the client was told none. ``error`` is the message it is shown.
    """

    text: str = ""
    reasoning: str = ""
    signature: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    finish: Unified | None = None
    usage: Usage | None = None
    error: str = ""


class Case(msgspec.Struct, frozen=True):
    """One answer, by what happens after ``events``: a regular end, an error, or an error before anything was said."""

    name: str
    events: tuple[Event, ...]
    understood: Understood
    usage: Usage = USAGE
    error: GatewayError | None = None
    ending: Literal["end", "fail", "refuse"] = "end"


def told(name: str, *events: Event, finish: Unified = Unified.STOP, usage: Usage = USAGE, **said: object) -> Case:
    """An answer that ran to its end."""
    ended = (MessageStart("up-1", "m", CREATED), *events, Finish(FinishReason(finish)))
    return Case(name, ended, Understood(finish=finish, usage=usage, **said), usage)  # type: ignore[arg-type]


def failed(name: str, error: GatewayError, *events: Event, **said: object) -> Case:
    """An answer that broke off after ``events``."""
    begun = (MessageStart("up-1", "m", CREATED), *events)
    return Case(name, begun, Understood(error=error.message, **said), error=error, ending="fail")  # type: ignore[arg-type]


def call(index: int, identity: str, name: str, *fragments: str) -> tuple[Event, ...]:
    """The events of one tool call."""
    deltas = (ToolCallDelta(index, fragment) for fragment in fragments)
    return (ToolCallStart(index, identity, name), *deltas, ToolCallEnd(index))


TEXT = tuple(map(TextDelta, WORDS))
THINKING = (*map(ReasoningDelta, THOUGHTS), ReasoningEnd(SIGNATURE))
WEATHER = call(0, "call_a", "weather", '{"city":', '"Zürich"}')
NOW = call(1, "call_b", "now", '{"zone":1.50}')
BARE = call(0, "call_a", "now")
OVERLOADED = ProviderUnavailable("The provider is overloaded.", provider="up", status=503)
TRUNCATED = StreamTruncated("The provider's stream ended before it was complete.", provider="up")

CITY = ("call_a", "weather", '{"city":"Zürich"}')
ZONE = ("call_b", "now", '{"zone":1.5}')
SAID = "".join(WORDS)

CASES = (
    told("text", *TEXT, text=SAID),
    told("reasoning", *THINKING, *TEXT, text=SAID, reasoning="".join(THOUGHTS), signature=SIGNATURE),
    told("single tool", *TEXT, *WEATHER, finish=Unified.TOOL_CALLS, text=SAID, calls=(CITY,)),
    told("parallel tools", *WEATHER, *NOW, finish=Unified.TOOL_CALLS, calls=(CITY, ZONE)),
    told("tool without arguments", *BARE, finish=Unified.TOOL_CALLS, calls=(("call_a", "now", "{}"),)),
    told("refusal", RefusalDelta("I will "), RefusalDelta("not."), refusal="I will not."),
    told("length", *TEXT, finish=Unified.LENGTH, text=SAID),
    told("content filter", *TEXT[:2], finish=Unified.CONTENT_FILTER, text="Hello "),
    Case("error before", (), Understood(error=OVERLOADED.message), error=OVERLOADED, ending="refuse"),
    failed("error within", OVERLOADED, *TEXT, text=SAID),
    failed("truncated", TRUNCATED, *TEXT[:1], text="Hel"),
    told("usage", *TEXT, usage=DETAILED, text=SAID),
)
