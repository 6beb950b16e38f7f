"""One request and its answer, in words that both vendors and the server share.

A vendor checks a request (raising ``Rejected`` as the real one would answer 400 or 401) and turns a plan into
``Step`` values; it does no I/O. The server plays the steps and the faults between them.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from .plan import Piece, Plan, Usage

CREATED = 1_795_000_000
REQUEST_ID = "req_{:024d}"


@dataclass(kw_only=True)
class Received:
    """A request as it arrived, and how far its answer came.

    ``serial`` counts from 1. ``body`` is ``None`` where the bytes are no JSON. ``refused`` says why the request broke
    the vendor's rules. ``is_complete`` turns true once all that was planned is written. An answer that stalls waits for
    ``released``.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    raw: bytes
    body: Any = None
    serial: int = 0
    status: int = 0
    refused: str | None = None
    delivered: list[str] = field(default_factory=list)
    is_complete: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> str:
        """The API key in whichever header, or an empty string."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
        return self.headers.get("x-api-key") or self.headers.get("x-goog-api-key", "")

    @property
    def is_stream(self) -> bool:
        """Whether the client asked for a stream, in the body or, at Bedrock and Google, in the path."""
        asked = isinstance(self.body, dict) and self.body.get("stream") is True
        return asked or self.path.endswith("/converse-stream") or "alt=sse" in self.query


class Rejected(Exception):
    """The vendor would refuse this request: HTTP ``status`` and the fields of its envelope."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code


class Step(NamedTuple):
    """One event, framed. ``piece`` is the content it bears; ``is_closing`` marks the first event after the content."""

    data: bytes
    piece: str | None = None
    is_closing: bool = False


class Whole(NamedTuple):
    """An answer that is not streamed, and the pieces in it."""

    body: bytes
    pieces: list[str]


class Vendor(Protocol):
    """A wire format as its vendor's server speaks it. ``garbage`` is an event that is neither UTF-8 nor JSON."""

    garbage: bytes

    def check(self, received: Received) -> None:
        """Raises ``Rejected`` as the real server would."""
        ...

    def headers(self, received: Received) -> dict[str, str]:
        """The headers that the vendor puts on every answer."""
        ...

    def stream(self, received: Received, plan: Plan) -> Iterator[Step]:
        """The events of a streamed answer."""
        ...

    def whole(self, received: Received, plan: Plan) -> Whole:
        """The answer, not streamed."""
        ...

    def error(self, received: Received, rejected: Rejected) -> bytes:
        """The vendor's envelope."""
        ...

    def ordered_error(self, status: int) -> Rejected:
        """What the vendor typically says with this status."""
        ...

    def error_event(self, received: Received, plan: Plan) -> bytes:
        """An error within a stream, framed."""
        ...


class Speech:
    """Iterates over the pieces of one answer and counts them."""

    def __init__(self, plan: Plan, tokens_max: int | None) -> None:
        self._plan = plan
        self._tokens_max = tokens_max if plan.obey_max_tokens else None
        self._spoken = 0
        self._reasoned = 0
        self._is_cut = False

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._plan.pieces():
            if self._spoken == self._tokens_max:
                self._is_cut = True
                return
            self._spoken += 1
            self._reasoned += piece.kind in ("reasoning", "redacted")
            yield piece

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        if self._is_cut:
            return "length"
        if self._plan.finish_reason is not None:
            return self._plan.finish_reason
        return "tool_calls" if self._plan.tool_calls and not self._plan.finish_stop_with_tools else "stop"

    def usage(self, choices: int = 1) -> Usage | None:
        """Totals so far, nothing left to derive; ``None`` where the vendor forgets them."""
        ordered = self._plan.usage
        if ordered == "missing":
            return None
        ordered = ordered or Usage()
        output = self._spoken * choices if ordered.output is None else ordered.output
        reasoning = self._reasoned * choices if ordered.reasoning is None else ordered.reasoning
        return msgspec.structs.replace(ordered, output=output, reasoning=reasoning)


def frame(plan: Plan, payload: bytes, event: str = "") -> bytes:
    """One server-sent event, its line ends and spaces as the plan wants them."""
    end = b"\r\n" if plan.crlf else b"\n"
    colon = b":" if plan.no_space else b": "
    name = b"event" + colon + event.encode() + end if event else b""
    return name + b"data" + colon + payload + end + end


def unknown_field(body: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """The first field of ``body`` that the vendor does not know."""
    return next((name for name in body if name not in known), None)
