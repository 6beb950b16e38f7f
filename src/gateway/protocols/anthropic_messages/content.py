"""The inside of one message, block by block, as canonical events.

Streamed and whole messages come through here alike: a whole block opens and closes at once. Hosted tools
(``server_tool_use`` and their results) bear no canonical events: Anthropic runs them itself and a client has nothing
to answer. Usage: https://platform.claude.com/docs/en/build-with-claude/streaming#event-types
"""

from typing import Any

import msgspec

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
    UsageReport,
)
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages.shapes import BlockShape, DeltaShape, KindShape, MessageShape, UsageShape

BLOCK_KINDS = frozenset(("text", "thinking", "redacted_thinking", "tool_use"))

_UNIFIED = {
    "end_turn": Unified.STOP,
    "stop_sequence": Unified.STOP,
    # A hosted tool's "send me again"; clients that know it find it in ``raw``.
    "pause_turn": Unified.STOP,
    "max_tokens": Unified.LENGTH,
    "model_context_window_exceeded": Unified.LENGTH,
    "tool_use": Unified.TOOL_CALLS,
    "refusal": Unified.CONTENT_FILTER,
}

_block = msgspec.json.Decoder(BlockShape).decode
_kind = msgspec.json.Decoder(KindShape).decode


class _OpenCall:
    """A tool_use block that is open. ``given`` is the input it began with, ``{}`` in Anthropic's own streams."""

    __slots__ = ("given", "has_arguments", "index")

    def __init__(self, index: int, given: bytes) -> None:
        self.index = index
        self.given = given
        self.has_arguments = False


class MessageContent:
    """The state of one message. Raises ``ValueError`` or ``RecursionError`` for what is not in Anthropic's format."""

    __slots__ = ("_calls", "_calls_seen", "_created", "_signatures", "_stop_reason", "_usage", "is_finished")

    def __init__(self, created: int) -> None:
        self.is_finished = False
        self._created = created
        self._calls: dict[int, _OpenCall] = {}
        self._calls_seen = 0
        self._signatures: dict[int, str] = {}
        self._stop_reason: str | None = None
        self._usage: dict[str, Any] = {}

    def start(self, message: MessageShape) -> list[Event]:
        """The message begins; a second time when a fallback to another model splices its own start in."""
        self._calls.clear()
        self._signatures.clear()
        self._stop_reason = message.stop_reason
        start = MessageStart(id=message.id, model=message.model, created=self._created)
        return [start, *self.report(message.usage)]

    def open_block(self, index: int, block: BlockShape) -> list[Event]:
        """A block begins, and with some servers holds something already."""
        match block.type:
            case "text":
                return [TextDelta(block.text)] if block.text else []
            case "thinking":
                self._signatures[index] = block.signature or ""
                return [ReasoningDelta(block.thinking)] if block.thinking else []
            case "redacted_thinking":
                return [RedactedReasoning(block.data or "")]
            case "tool_use":
                call = _OpenCall(self._calls_seen, bytes(block.input))
                self._calls[index] = call
                self._calls_seen += 1
                return [ToolCallStart(call.index, block.id or "", block.name or "")]
            case _:
                return []

    def extend_block(self, index: int, delta: DeltaShape) -> Event | None:
        """More of a block; ``None`` where it says nothing yet."""
        match delta.type:
            case "text_delta":
                return TextDelta(delta.text) if delta.text else None
            case "input_json_delta":
                # Fragments of a hosted tool's input have no open call and are passed over.
                call = self._calls.get(index)
                if call is None or not delta.partial_json:
                    return None
                call.has_arguments = True
                return ToolCallDelta(call.index, delta.partial_json)
            case "thinking_delta":
                return ReasoningDelta(delta.thinking) if delta.thinking else None
            case "signature_delta" if index in self._signatures:
                self._signatures[index] = delta.signature or ""
        return None

    def close_block(self, index: int) -> list[Event]:
        """A block is complete."""
        call = self._calls.pop(index, None)
        if call is not None:
            end = ToolCallEnd(call.index)
            # Anthropic streams the input; some compatible servers put it into the start.
            given = "" if call.has_arguments else _compact(call.given)
            return [ToolCallDelta(call.index, given), end] if given else [end]
        signature = self._signatures.pop(index, None)
        return [] if signature is None else [ReasoningEnd(signature)]

    def whole_block(self, block: bytes) -> list[Event]:
        """A block that came complete, of a kind we know or not."""
        try:
            shape = _block(block)
        except msgspec.ValidationError:
            if _kind(block).type in BLOCK_KINDS:
                raise
            return []
        return [*self.open_block(-1, shape), *self.close_block(-1)]

    def report(self, usage: dict[str, Any] | None) -> list[Event]:
        """Totals so far: figures are cumulative, and of each the last that is not null counts."""
        if usage is not None:
            self._usage = {**self._usage, **{name: value for name, value in usage.items() if value is not None}}
        return [UsageReport(_usage_of(self._usage))] if self._usage else []

    def finish(self, stop_reason: str | None) -> list[Event]:
        """The reason of the end; only the first counts."""
        if stop_reason is None or self.is_finished:
            return []
        self.is_finished = True
        unified = _UNIFIED.get(stop_reason, Unified.OTHER)
        if stop_reason == "end_turn" and self._calls_seen:
            # Some compatible servers say so in spite of calls; agents would stop.
            unified = Unified.TOOL_CALLS
        return [Finish(FinishReason(unified, stop_reason))]

    def finish_late(self) -> list[Event]:
        """At the very end: the reason that only the message itself gave, or none."""
        return self.finish(self._stop_reason or "")


def _compact(given: bytes) -> str:
    if not given:
        return ""
    text = msgspec.json.format(given, indent=-1).decode("utf-8")
    return "" if text in ("{}", "null", '""') else text


def _usage_of(raw: dict[str, Any]) -> Usage:
    shape = msgspec.convert(raw, UsageShape)
    cache_read = shape.cache_read_input_tokens or 0
    cache_write = shape.cache_creation_input_tokens or 0
    details = shape.output_tokens_details
    return Usage(
        input=(shape.input_tokens or 0) + cache_read + cache_write,
        output=shape.output_tokens or 0,
        cache_read=cache_read,
        cache_write=cache_write,
        reasoning=(details.thinking_tokens or 0) if details else 0,
        raw=raw,
    )
