"""The wire of Anthropic Messages as msgspec structs; no rule about them lives here.

What we send is strict: one struct per block, defaults left out. What we read is loose: blocks and deltas are one
struct each with every field optional, because Anthropic adds block and delta types without a new version and a reader
must pass over what it does not know. Format: https://platform.claude.com/docs/en/api/messages
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

NAME = "anthropic_messages"

CacheControl: TypeAlias = dict[str, Any]

# Beyond 2**53 a count is no count: limits and ledger compute in Lua's doubles.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Base64Source(msgspec.Struct, frozen=True, tag_field="type", tag="base64"):
    """Bytes of a picture or a PDF, in base64."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, frozen=True, tag_field="type", tag="url"):
    """A picture that Anthropic fetches."""

    url: str


class TextSource(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A document of plain text; ``data`` is the text itself, not base64."""

    data: str
    media_type: str = "text/plain"


class FileSource(msgspec.Struct, frozen=True, tag_field="type", tag="file"):
    """A file that was uploaded to Anthropic before."""

    file_id: str


class Block(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """Root of the content blocks that we send."""


class TextBlock(Block, frozen=True, tag="text"):
    """Words."""

    text: str
    cache_control: CacheControl | None = None


class ImageBlock(Block, frozen=True, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource
    cache_control: CacheControl | None = None


class DocumentBlock(Block, frozen=True, tag="document"):
    """A file for the model to read."""

    source: Base64Source | TextSource | FileSource
    title: str | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Block, frozen=True, tag="thinking"):
    """Earlier reasoning, replayed with the signature it came with."""

    thinking: str
    signature: str


class RedactedThinkingBlock(Block, frozen=True, tag="redacted_thinking"):
    """Earlier reasoning that only Anthropic can read."""

    data: str


class ToolUseBlock(Block, frozen=True, tag="tool_use"):
    """An earlier call; ``input`` is the JSON text of an object."""

    id: str
    name: str
    input: msgspec.Raw
    cache_control: CacheControl | None = None


class ToolResultBlock(Block, frozen=True, tag="tool_result"):
    """The answer to a call."""

    tool_use_id: str
    content: tuple[Block, ...] = ()
    is_error: bool = False
    cache_control: CacheControl | None = None


class Turn(msgspec.Struct, frozen=True):
    """One entry of ``messages``."""

    role: Literal["user", "assistant"]
    content: list[Block]


class ToolShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of ``tools``."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoiceShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """The field ``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesBody(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of ``POST /v1/messages``."""

    model: str
    max_tokens: int
    messages: list[Turn]
    stream: bool = False
    system: str | list[TextBlock] | None = None
    tools: list[ToolShape] | None = None
    tool_choice: ToolChoiceShape | None = None
    thinking: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


class UsageDetails(msgspec.Struct, frozen=True):
    """The field ``output_tokens_details``."""

    thinking_tokens: Count | None = None


class UsageShape(msgspec.Struct, frozen=True):
    """The field ``usage``; ``input_tokens`` leaves out what the cache read and wrote."""

    input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    output_tokens: Count | None = None
    output_tokens_details: UsageDetails | None = None


class BlockShape(msgspec.Struct, frozen=True):
    """Any content block that we read; ``type`` says which of the fields mean something."""

    type: str
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class MessageShape(msgspec.Struct, frozen=True):
    """A message of the model: whole, or as it stands at ``message_start``."""

    id: str = ""
    model: str = ""
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    usage: dict[str, Any] | None = None


class DeltaShape(msgspec.Struct, frozen=True, gc=False):
    """Any delta of a content block."""

    type: str
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None


class StopShape(msgspec.Struct, frozen=True):
    """The delta of a whole message."""

    stop_reason: str | None = None


class ErrorShape(msgspec.Struct, frozen=True):
    """The field ``error``."""

    type: str = ""
    message: str = ""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an answer that is an error."""

    error: ErrorShape


class StreamEvent(msgspec.Struct, frozen=True, tag_field="type"):
    """Root of the events of a stream. The JSON repeats in ``type`` what the SSE line ``event:`` says."""


class MessageStartEvent(StreamEvent, frozen=True, tag="message_start"):
    """The provider accepted the request."""

    message: MessageShape


class BlockStartEvent(StreamEvent, frozen=True, tag="content_block_start"):
    """A content block opens."""

    content_block: BlockShape
    index: int = 0


class BlockDeltaEvent(StreamEvent, frozen=True, gc=False, tag="content_block_delta"):
    """More of a content block."""

    delta: DeltaShape
    index: int = 0


class BlockStopEvent(StreamEvent, frozen=True, tag="content_block_stop"):
    """A content block is complete."""

    index: int = 0


class MessageDeltaEvent(StreamEvent, frozen=True, tag="message_delta"):
    """The reason of the end, and usage so far."""

    delta: StopShape = StopShape()
    usage: dict[str, Any] | None = None


class MessageStopEvent(StreamEvent, frozen=True, tag="message_stop"):
    """The end of the stream."""


class PingEvent(StreamEvent, frozen=True, tag="ping"):
    """A heartbeat."""


class ErrorEvent(StreamEvent, frozen=True, tag="error"):
    """The provider gave up within the stream."""

    error: ErrorShape = ErrorShape()


AnyStreamEvent: TypeAlias = (
    BlockDeltaEvent
    | MessageStartEvent
    | BlockStartEvent
    | BlockStopEvent
    | MessageDeltaEvent
    | MessageStopEvent
    | PingEvent
    | ErrorEvent
)


class KindShape(msgspec.Struct, frozen=True):
    """What an event, block or delta calls itself: read alone only to tell the unknown from the broken."""

    type: str = ""


class InnerKindShape(msgspec.Struct, frozen=True):
    """What the block or delta inside an event calls itself."""

    content_block: KindShape | None = None
    delta: KindShape | None = None
