"""What Converse answers, as msgspec structs: the payloads of its events, and a whole answer.

Unions are structs of optional members, as they are on the wire; members that are not read here are passed over.
Format: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamOutput.html
"""

from typing import Any

import msgspec


class Shape(msgspec.Struct, frozen=True, rename="camel"):
    """Root of the shapes."""


class ToolUseStart(Shape, frozen=True):
    tool_use_id: str
    name: str
    type: str | None = None


class BlockStart(Shape, frozen=True):
    tool_use: ToolUseStart | None = None


class BlockStartEvent(Shape, frozen=True):
    content_block_index: int
    start: BlockStart = BlockStart()


class ToolUseDelta(Shape, frozen=True):
    input: str = ""


class ReasoningDeltaShape(Shape, frozen=True):
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class DeltaShape(Shape, frozen=True):
    text: str | None = None
    tool_use: ToolUseDelta | None = None
    reasoning_content: ReasoningDeltaShape | None = None


class BlockDeltaEvent(Shape, frozen=True):
    content_block_index: int
    delta: DeltaShape = DeltaShape()


class BlockStopEvent(Shape, frozen=True):
    content_block_index: int


class MessageStopEvent(Shape, frozen=True):
    stop_reason: str


class UsageShape(Shape, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None


class MetadataEvent(Shape, frozen=True):
    usage: dict[str, Any] | None = None


class ToolUse(Shape, frozen=True):
    tool_use_id: str
    name: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    type: str | None = None


class ReasoningText(Shape, frozen=True):
    text: str = ""
    signature: str = ""


class ReasoningContent(Shape, frozen=True):
    reasoning_text: ReasoningText | None = None
    redacted_content: str | None = None


class CitationText(Shape, frozen=True):
    text: str = ""


class CitationsContent(Shape, frozen=True):
    content: list[CitationText] = []


class ContentBlock(Shape, frozen=True):
    text: str | None = None
    tool_use: ToolUse | None = None
    reasoning_content: ReasoningContent | None = None
    citations_content: CitationsContent | None = None


class WholeMessage(Shape, frozen=True):
    content: list[ContentBlock]


class Output(Shape, frozen=True):
    message: WholeMessage


class WholeAnswer(Shape, frozen=True):
    output: Output
    stop_reason: str
    usage: dict[str, Any] | None = None
