"""What of a provider's frames may pass: events in their legal order, up to an error, and up to a bound of ours."""

from gateway.canonical.errors import ProviderError
from gateway.canonical.events import (
    Event,
    Failure,
    Finish,
    Frame,
    Order,
    Phase,
    ReasoningDelta,
    TextDelta,
    Unified,
)
from gateway.protocols.wire import Cut

_TEXT = (TextDelta, ReasoningDelta)


class Guard:
    """Looks at every frame of one exchange. ``provider`` names the vendor in errors."""

    __slots__ = ("_order", "bound_by", "is_at_bound", "provider")

    def __init__(self) -> None:
        self._order = Order()
        self.provider = ""
        # What it means if the answer ends at the bound that was sent; None where the bound is the client's own.
        self.bound_by: Cut | None = None
        self.is_at_bound = False

    def is_mere_text(self, frames: list[Frame]) -> bool:
        """Whether they are text where text may come, and nothing else: ``check`` would let them all pass."""
        phases = self._order.phases
        for frame in frames:
            events = frame.events
            if not frame.is_plain and (len(events) != 1 or type(events[0]) not in _TEXT):
                return False
            if phases.get(events[0].choice) is not Phase.OPEN:  # type: ignore[attr-defined]
                return False
        return True

    def check(self, frames: list[Frame]) -> tuple[list[Frame], ProviderError | None]:
        """The frames that may pass, and the error that ended them, if one did."""
        phases = self._order.phases
        for number, frame in enumerate(frames):
            if frame.is_plain and phases.get(frame.events[0].choice) is Phase.OPEN:  # type: ignore[attr-defined]
                continue  # text where text may come, as most
            for event in frame.events:
                if type(event) is Failure:
                    return frames[:number], event.error
                try:
                    self._order.check(event, self.provider)
                except ProviderError as error:
                    return frames[:number], error
                if self.bound_by is not None and _is_length(event):
                    # It ends where our bound says: the end of the stream tells why, in place of this one.
                    self.is_at_bound = True
                    frames[number] = Frame(tuple(other for other in frame.events if other is not event))
        return frames, None


def _is_length(event: Event) -> bool:
    return isinstance(event, Finish) and event.reason.unified is Unified.LENGTH
