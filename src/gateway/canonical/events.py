"""What a model says, one event at a time, and the order in which events are legal.

A decoder turns a provider's bytes into frames. A ``Frame`` holds the events that one wire frame bore and, where that
frame can be shown to a client of the same format as it is, its bytes: an encoder of the same format reuses them, so
unknown vendor fields survive and nothing is encoded twice. Errors arrive as an event too (``Failure``), so that what
came before them in the same read is still delivered.
"""

from enum import StrEnum

import msgspec

from gateway.canonical.errors import ProviderError, ProviderProtocolError
from gateway.canonical.usage import Usage


class Unified(StrEnum):
    """Why a model stopped, in the words of this project."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    ERROR = "error"
    OTHER = "other"


class FinishReason(msgspec.Struct, frozen=True):
    """Why a model stopped: our word, and the vendor's own for clients that know it."""

    unified: Unified
    raw: str = ""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Root of all events."""


class MessageStart(Event, frozen=True):
    """The provider accepted the request. ``created`` is in Unix seconds."""

    id: str
    model: str
    created: int


class TextDelta(Event, frozen=True):
    """More of the answer."""

    text: str
    choice: int = 0


class RefusalDelta(Event, frozen=True):
    """More of the model's explanation why it will not answer."""

    text: str
    choice: int = 0


class ReasoningDelta(Event, frozen=True):
    """More of the reasoning that a model shows."""

    text: str
    choice: int = 0


class ReasoningEnd(Event, frozen=True):
    """One block of reasoning is complete; its ``signature``, if it has one, must come back unchanged with it."""

    signature: str = ""
    choice: int = 0


class RedactedReasoning(Event, frozen=True):
    """A whole block of reasoning that only its provider can read."""

    data: str
    choice: int = 0


class ToolCallStart(Event, frozen=True):
    """A tool call begins. ``index`` counts the calls of one choice from 0 without gaps."""

    index: int
    id: str
    name: str
    choice: int = 0


class ToolCallDelta(Event, frozen=True):
    """More of a call's arguments, a fragment of JSON text."""

    index: int
    arguments: str
    choice: int = 0


class ToolCallEnd(Event, frozen=True):
    """The call's arguments are complete; empty text means ``{}``."""

    index: int
    choice: int = 0


class UsageReport(Event, frozen=True):
    """The provider's own token totals so far; a later report replaces an earlier one."""

    usage: Usage


class Embeddings(Event, frozen=True):
    """The vectors of a request's inputs, in their order, each as JSON: numbers, or base64 of little-endian float32."""

    vectors: tuple[msgspec.Raw, ...]


class Finish(Event, frozen=True):
    """The last event of a choice."""

    reason: FinishReason
    choice: int = 0


class Failure(Event, frozen=True):
    """The provider gave up within the stream."""

    error: ProviderError


class Frame(msgspec.Struct, frozen=True, gc=False):
    """The events that one wire frame bore.

    ``raw`` is the frame as bytes, ready to be sent to a client of the provider's own format, or ``None`` where it has
    to be encoded anew (another format, or a frame with a quirk that official clients trip over). ``is_plain`` says that
    ``raw`` holds nothing worth keeping beside its one ``TextDelta``.
    """

    events: tuple[Event, ...]
    raw: bytes | None = None
    is_plain: bool = False


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What one read from the provider bore. ``is_last`` says that the provider announced the end of its stream."""

    frames: list[Frame]
    is_last: bool = False


class Phase(StrEnum):
    """Where one choice of a stream stands."""

    OPEN = "open"
    IN_TOOL_CALL = "in_tool_call"
    FINISHED = "finished"


_CONTENT: tuple[type[Event], ...] = (TextDelta, RefusalDelta, ReasoningDelta, ReasoningEnd, RedactedReasoning)

# The legal order of events, per choice: phase → event → next phase. What is not listed is illegal.
# MessageStart, UsageReport, Embeddings and Failure belong to the whole stream and are legal at any time.
TRANSITIONS: dict[Phase, dict[type[Event], Phase]] = {
    Phase.OPEN: {
        **dict.fromkeys(_CONTENT, Phase.OPEN),
        ToolCallStart: Phase.IN_TOOL_CALL,
        ToolCallEnd: Phase.OPEN,
        Finish: Phase.FINISHED,
    },
    Phase.IN_TOOL_CALL: {
        **dict.fromkeys(_CONTENT, Phase.IN_TOOL_CALL),
        ToolCallStart: Phase.IN_TOOL_CALL,
        ToolCallDelta: Phase.IN_TOOL_CALL,
        ToolCallEnd: Phase.IN_TOOL_CALL,
        Finish: Phase.FINISHED,
    },
    Phase.FINISHED: {},
}
_WHOLE_STREAM = frozenset((MessageStart, UsageReport, Embeddings, Failure))


class Order:
    """Follows one stream through ``TRANSITIONS``."""

    __slots__ = ("phases",)

    def __init__(self) -> None:
        """``phases`` is where each choice stands; read it, and let ``check`` change it."""
        self.phases: dict[int, Phase] = {}

    def check(self, event: Event, provider: str) -> None:
        """Advance by one event; raises ``ProviderProtocolError`` where it may not come now."""
        kind = type(event)
        if kind in _WHOLE_STREAM:
            return
        choice: int = event.choice  # type: ignore[attr-defined]
        phase = self.phases.get(choice)
        following = TRANSITIONS[phase or Phase.OPEN].get(kind)
        if following is None:
            raise ProviderProtocolError(
                f"The provider sent {kind.__name__} while choice {choice} was {(phase or Phase.OPEN).value}.",
                provider=provider,
            )
        if following is not phase:
            self.phases[choice] = following

    @property
    def is_finished(self) -> bool:
        """Whether every choice that was opened has finished, and at least one has."""
        return bool(self.phases) and all(phase is Phase.FINISHED for phase in self.phases.values())
