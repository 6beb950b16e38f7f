"""What a test orders the provider to say, and how it shall go wrong.

A plan is vendor-neutral: both wire formats render the same plan, each in its own conventions (Anthropic's input tokens
leave the cached ones out, OpenAI's include them). The answer is made of *pieces*, one per chunk, always in the order
reasoning, redacted reasoning, text, refusal, tool calls; faults and derived usage count these pieces.
"""

from collections.abc import Iterator
from itertools import chain, cycle
from typing import Any, Literal, TypeAlias

import msgspec

HELLO = ("Hello", ", ", "world", "!")
INPUT_TOKENS = 10

Kind: TypeAlias = Literal["reasoning", "redacted", "text", "refusal", "tool"]
Fault: TypeAlias = Literal["none", "reset", "close", "truncate", "stall", "error_event", "garbage", "html"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token totals: ``input`` includes the cached tokens, ``output`` the reasoning; ``None`` is derived from pieces."""

    input: int = INPUT_TOKENS
    output: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call with its argument text in fragments. An empty ``id`` gets a fresh one in the vendor's style."""

    name: str
    arguments: tuple[str, ...] = ("{}",)
    id: str = ""


class Piece(msgspec.Struct, frozen=True):
    """One chunk's worth of content. ``call`` counts tool calls from 0; ``is_first`` marks the start of a call."""

    kind: Kind
    text: str
    call: int = -1
    is_first: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer.

    ``fault_at`` counts content pieces: -1 is before the response headers, 0 after them and before the first event,
    ``None`` after the last piece and before the finish. Of the faults, ``reset`` is a TCP RST, ``close`` a FIN without
    the body's end, ``truncate`` a clean end of the body; ``error_event`` and ``html`` end the body cleanly after what
    they name; ``garbage`` goes on afterwards, and so does ``stall`` once released.
    """

    # What the model says. ``text=None`` is HELLO, or nothing beside tool calls or a refusal.
    text: tuple[str, ...] | None = None
    reasoning: tuple[str, ...] = ()
    signature: str = ""
    redacted: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: tuple[str, ...] = ()
    # OpenAI's words are translated for Anthropic; any other word goes out as it is. ``None`` is derived.
    finish_reason: str | None = None
    # ``None``: one output token per piece and a fixed input. "missing": the vendor forgot.
    usage: Usage | Literal["missing"] | None = None
    # Text is repeated until the peer hangs up (or max_tokens, if obeyed).
    endless: bool = False
    obey_max_tokens: bool = False
    # Before each piece, in seconds.
    delay_s: float = 0.0

    # How it goes wrong. A ``status`` other than 200 comes in the vendor's envelope unless ``error_body`` is given.
    status: int = 200
    error_body: dict[str, Any] | str | None = None
    retry_after: int | float | str | None = None
    headers: dict[str, str] = {}
    fault: Fault = "none"
    fault_at: int | None = None
    # False: no ``[DONE]``, ``message_stop`` or end of a response, and a clean end.
    done: bool = True

    # How the bytes fall.
    crlf: bool = False
    cut: int | None = None
    coalesce: bool = False
    comments: bool = False
    no_space: bool = False

    # Quirks of OpenAI-compatible servers. In Responses, ``reasoning`` is shown in its own words and not as a summary.
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    role_on_every_chunk: bool = False
    usage_in_choices_chunk: bool = False
    usage_on_every_chunk: bool = False
    output_excludes_reasoning: bool = False
    no_tool_index: bool = False
    whole_tool_call: bool = False
    finish_stop_with_tools: bool = False
    json_instead_of_stream: bool = False

    def __post_init__(self) -> None:
        if self.cut is not None and self.cut < 1:
            raise ValueError("cut must be at least 1 byte")
        if self.cut is not None and self.coalesce:
            raise ValueError("cut and coalesce contradict each other")
        if self.fault == "none":
            if self.fault_at is not None:
                raise ValueError("fault_at needs a fault")
            return
        if self.fault == "error_event" and self.fault_at == -1:
            raise ValueError("an error event needs a stream: use status for an error before the headers")
        if self.fault_at is not None and self.fault_at < -1:
            raise ValueError("fault_at counts pieces from 0; -1 is before the headers")

    @property
    def words(self) -> tuple[str, ...]:
        """The pieces of text that this plan says."""
        if self.text is not None:
            return self.text
        return () if self.tool_calls or self.refusal else HELLO

    def pieces(self) -> Iterator[Piece]:
        """Everything the model says, in order; without end if the plan is endless."""
        words = cycle(self.words) if self.endless else self.words
        yield from (Piece("reasoning", text) for text in self.reasoning)
        if self.redacted:
            yield Piece("redacted", self.redacted)
        yield from (Piece("text", text) for text in words)
        yield from (Piece("refusal", text) for text in self.refusal)
        yield from chain.from_iterable(self._call_pieces(i) for i in range(len(self.tool_calls)))

    def _call_pieces(self, call: int) -> Iterator[Piece]:
        fragments = self.tool_calls[call].arguments
        if self.whole_tool_call or not fragments:
            fragments = ("".join(fragments),)
        for position, fragment in enumerate(fragments):
            yield Piece("tool", fragment, call, position == 0)
