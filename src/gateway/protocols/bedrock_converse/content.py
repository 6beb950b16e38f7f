"""The content blocks of one answer, as canonical events, whether they came in pieces or whole.

Only a tool's block is announced; text and reasoning begin with their first piece. A signature comes in a piece of its
own after the text it signs. Redacted reasoning is bytes, which travel as the base64 they came in.
"""

import base64
import binascii
from typing import Any

import msgspec

from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
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
from gateway.protocols.bedrock_converse.shapes import (
    BlockStart,
    CitationsContent,
    ContentBlock,
    DeltaShape,
    ReasoningDeltaShape,
    ToolUseDelta,
    ToolUseStart,
    UsageShape,
)

_UNIFIED = {
    "end_turn": Unified.STOP,
    "stop_sequence": Unified.STOP,
    "max_tokens": Unified.LENGTH,
    "model_context_window_exceeded": Unified.LENGTH,
    "tool_use": Unified.TOOL_CALLS,
    "content_filtered": Unified.CONTENT_FILTER,
    "guardrail_intervened": Unified.CONTENT_FILTER,
    "malformed_model_output": Unified.ERROR,
    "malformed_tool_use": Unified.ERROR,
}
# A tool of the provider's own: it runs there, and its call is nothing for the client to answer.
_HOSTED = "server_tool_use"
_NO_CITATIONS = CitationsContent()


class _Reasoning:
    """An open block of reasoning."""

    __slots__ = ("has_text", "redacted", "signature")

    def __init__(self) -> None:
        self.has_text = False
        self.signature = ""
        self.redacted: list[str] = []


class ConverseContent:
    """What has been said so far."""

    __slots__ = ("_calls", "_calls_seen", "_reasoning", "is_finished")

    def __init__(self) -> None:
        self.is_finished = False
        self._calls: dict[int, int] = {}
        self._calls_seen = 0
        self._reasoning: dict[int, _Reasoning] = {}

    def open_block(self, index: int, start: BlockStart) -> list[Event]:
        """A block begins; only a tool's says more than that."""
        call = start.tool_use
        if call is None or call.type == _HOSTED:
            return []
        number = self._calls_seen
        self._calls[index] = number
        self._calls_seen += 1
        return [ToolCallStart(number, call.tool_use_id, call.name)]

    def extend_block(self, index: int, delta: DeltaShape) -> list[Event]:
        """More of a block."""
        if self.is_finished:
            return []
        if delta.text:
            return [TextDelta(delta.text)]
        if delta.tool_use is not None:
            number = self._calls.get(index)
            has_more = number is not None and delta.tool_use.input
            return [ToolCallDelta(number, delta.tool_use.input)] if number is not None and has_more else []
        return [] if delta.reasoning_content is None else self._think(index, delta.reasoning_content)

    def _think(self, index: int, delta: ReasoningDeltaShape) -> list[Event]:
        block = self._reasoning.setdefault(index, _Reasoning())
        if delta.signature:
            block.signature += delta.signature
        if delta.redacted_content:
            block.redacted.append(delta.redacted_content)
        if not delta.text:
            return []
        block.has_text = True
        return [ReasoningDelta(delta.text)]

    def close_block(self, index: int) -> list[Event]:
        """A block is complete."""
        number = self._calls.pop(index, None)
        if number is not None:
            return [ToolCallEnd(number)]
        block = self._reasoning.pop(index, None)
        if block is None:
            return []
        ended: list[Event] = [RedactedReasoning(_joined(block.redacted))] if block.redacted else []
        return [ReasoningEnd(block.signature), *ended] if block.has_text or block.signature else ended

    def whole_block(self, index: int, block: ContentBlock) -> list[Event]:
        """A block that came complete."""
        if block.tool_use is not None:
            call = block.tool_use
            events = self.open_block(index, BlockStart(ToolUseStart(call.tool_use_id, call.name, call.type)))
            arguments = bytes(call.input).decode()
            events += self.extend_block(
                index, DeltaShape(tool_use=ToolUseDelta("" if arguments == "{}" else arguments))
            )
            return events + self.close_block(index)
        if block.reasoning_content is not None:
            thought, redacted = block.reasoning_content.reasoning_text, block.reasoning_content.redacted_content
            text, signature = (thought.text, thought.signature) if thought is not None else (None, None)
            return self._think(index, ReasoningDeltaShape(text, signature, redacted)) + self.close_block(index)
        text = block.text or "".join(piece.text for piece in (block.citations_content or _NO_CITATIONS).content)
        return [TextDelta(text)] if text else []

    def finish(self, stop_reason: str) -> list[Event]:
        """Why the model stopped; what is still open ends with it."""
        if self.is_finished:
            return []
        events = [event for index in sorted({*self._calls, *self._reasoning}) for event in self.close_block(index)]
        self.is_finished = True
        unified = _UNIFIED.get(stop_reason, Unified.OTHER)
        if unified is Unified.STOP and self._calls_seen:
            unified = Unified.TOOL_CALLS  # an agent that trusts the vendor's word would never run the tools
        return [*events, Finish(FinishReason(unified, stop_reason))]

    def report(self, usage: dict[str, Any] | None) -> list[Event]:
        """The totals; those of the vendor leave out what was cached. Raises ``ValidationError``."""
        if usage is None:
            return []
        shape = msgspec.convert(usage, UsageShape)
        cache_read, cache_write = shape.cache_read_input_tokens or 0, shape.cache_write_input_tokens or 0
        return [
            UsageReport(
                Usage(
                    input=shape.input_tokens + cache_read + cache_write,
                    output=shape.output_tokens,
                    cache_read=cache_read,
                    cache_write=cache_write,
                    raw=usage,
                )
            )
        ]


def _joined(pieces: list[str]) -> str:
    """One base64 text of several, each of which may be padded; unchanged where there is one."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return base64.b64encode(b"".join(base64.b64decode(piece, validate=True) for piece in pieces)).decode()
    except binascii.Error:
        return "".join(pieces)
