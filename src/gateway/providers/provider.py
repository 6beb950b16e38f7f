"""What every provider offers to the router, and what a call to one is made of."""

from collections.abc import AsyncGenerator, Callable
from typing import Literal, Protocol

import msgspec

from gateway.canonical.events import Batch
from gateway.canonical.request import Loss, Request


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a provider may take, in seconds.

    ``first_event_s`` runs from the call to the first event, ``idle_s`` between events, ``total_s`` over all of it.
    """

    connect_s: float = 5.0
    first_event_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 1800.0


class Hangup(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider bills when its client leaves.

    ``cancel`` hangs up and charges what was sent, ``drain`` reads the answer to its end for at most ``drain_s``, since
    it is billed anyway, ``free`` hangs up and charges nothing. ``charge_delivered`` charges a drained answer as far as
    the client was sent it.
    """

    policy: Literal["cancel", "drain", "free"] = "cancel"
    charge_delivered: bool = False
    drain_s: float = 60.0


class Shortcut(msgspec.Struct):
    """The way past the one who waits for the next batch, for those that need no thought.

    A provider may offer a batch here the moment it arrives, though never the last one, while the next is waited for and
    every earlier one was yielded; what ``pass_on`` refuses it yields.
    """

    pass_on: Callable[[Batch], bool] | None = None


class Call(msgspec.Struct, frozen=True):
    """One call: the request, and the model as its provider names it.

    ``on_used_up`` is told where an answer says that it was the last for a while, in seconds.
    """

    request: Request
    model: str
    on_used_up: Callable[[float], None] | None = None
    shortcut: Shortcut | None = None


class Provider(Protocol):
    """A source of answers.

    ``wire`` names the format of its frames, ``None`` where it makes events without one. ``vendor`` is its name in the
    price book.
    """

    name: str
    wire: str | None
    vendor: str
    timeouts: Timeouts
    hangup: Hangup

    @property
    def models(self) -> tuple[str, ...]:
        """Models to list for clients; a provider may serve more than it lists."""
        ...

    def knows(self, model: str) -> bool:
        """Whether the provider may have this model; most can only be asked."""
        ...

    def holds_full(self, model: str, *, reasons: bool) -> bool:
        """Whether the longest answer has to be held before a call, since tokens are billed that are not sent.

        ``reasons`` says that the request asks for reasoning.
        """
        ...

    def losses(self, call: Call) -> tuple[Loss, ...]:
        """What the provider will not be asked for as the client did, without asking it; may raise ``RequestError``."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """The answer. Raises ``ProviderError`` before the first batch, never after it (a ``Failure`` event says so)."""
        ...

    async def aclose(self) -> None:
        """Give up connections."""
        ...
