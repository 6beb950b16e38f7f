"""What a client may ask, as msgspec structs: read strictly, since a provider of another format has to be told it anew.

Content blocks are decoded one by one, by their ``type``: Anthropic adds types without a new version, and a block that
is not known here still goes to Anthropic as it came. Fields that are not named travel in the raw body.
Format: https://platform.claude.com/docs/en/api/messages
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gateway.protocols.anthropic_messages.shapes import CacheControl

# Zero asks for nothing but a warm cache.
TokenBound = Annotated[int, Meta(ge=0, le=100_000_000)]
# Names and ids go into headers, logs and other formats: no control characters.
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=512)]
ToolName = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_-]{1,128}\Z")]
ToolId = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_-]{1,512}\Z")]
Content: TypeAlias = str | list[msgspec.Raw]


class AskedSource(msgspec.Struct, frozen=True, tag_field="type"):
    """Root of where a picture or a document comes from."""


class InlineSource(AskedSource, frozen=True, tag="base64"):
    """Bytes in base64."""

    media_type: Name
    data: str


class LinkSource(AskedSource, frozen=True, tag="url"):
    """Something that the provider fetches."""

    url: str


class WordsSource(AskedSource, frozen=True, tag="text"):
    """Plain text, not base64."""

    data: str


class BlocksSource(AskedSource, frozen=True, tag="content"):
    """Text and pictures."""

    content: Content


class StoredSource(AskedSource, frozen=True, tag="file"):
    """Something that was uploaded before."""

    file_id: Name


class AskedBlock(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """Root of the content blocks that are read."""

    cache_control: CacheControl | None = None


class AskedText(AskedBlock, frozen=True, tag="text"):
    """Words."""

    text: str
    citations: list[Any] | None = None


class AskedImage(AskedBlock, frozen=True, tag="image"):
    """A picture."""

    source: InlineSource | LinkSource | StoredSource


class AskedDocument(AskedBlock, frozen=True, tag="document"):
    """A file for the model to read."""

    source: InlineSource | LinkSource | WordsSource | BlocksSource | StoredSource
    title: str | None = None
    context: str | None = None


class AskedSearchResult(AskedBlock, frozen=True, tag="search_result"):
    """Something that the client's own search found."""

    source: str
    title: str
    content: list[msgspec.Raw]


class AskedToolUse(AskedBlock, frozen=True, tag="tool_use"):
    """An earlier call; ``input`` keeps the digits of its numbers."""

    id: ToolId
    name: Name
    input: msgspec.Raw


class AskedToolResult(AskedBlock, frozen=True, tag="tool_result"):
    """The answer to a call."""

    tool_use_id: ToolId
    content: Content | None = None
    is_error: bool | None = None


class AskedThinking(AskedBlock, frozen=True, tag="thinking"):
    """Earlier reasoning, with its signature."""

    thinking: str
    signature: str


class AskedRedactedThinking(AskedBlock, frozen=True, tag="redacted_thinking"):
    """Earlier reasoning that only its provider can read."""

    data: str


KnownBlock: TypeAlias = (
    AskedText
    | AskedImage
    | AskedDocument
    | AskedSearchResult
    | AskedToolUse
    | AskedToolResult
    | AskedThinking
    | AskedRedactedThinking
)
KNOWN_KINDS = frozenset(
    "text image document search_result tool_use tool_result thinking redacted_thinking".split(),
)


class AskedMessage(msgspec.Struct, frozen=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Content


class AskedTool(msgspec.Struct, frozen=True):
    """A tool: the client's own, or one of Anthropic's where ``type`` says so."""

    name: ToolName | None = None
    type: Name | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AskedToolChoice(msgspec.Struct, frozen=True):
    """Whether the model must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingAsked(msgspec.Struct, frozen=True):
    """Whether the model may think before it answers, and how long."""

    type: Name
    budget_tokens: Annotated[int, Meta(ge=1024, le=100_000_000)] | None = None


class AskedFormat(msgspec.Struct, frozen=True):
    """The shape of the answer."""

    type: Name
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, frozen=True):
    """How hard the model tries, and the shape of its answer."""

    effort: Name | None = None
    format: AskedFormat | None = None


class Metadata(msgspec.Struct, frozen=True):
    """Who asks."""

    user_id: Name | None = None


class MessagesRequest(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway reads. Only counting its tokens may leave ``max_tokens`` out."""

    model: str
    messages: Annotated[list[AskedMessage], Meta(min_length=1, max_length=10_000)]
    max_tokens: TokenBound | None = None
    stream: bool | None = None
    system: Content | None = None
    tools: Annotated[list[AskedTool], Meta(max_length=1024)] | None = None
    tool_choice: AskedToolChoice | None = None
    thinking: ThinkingAsked | None = None
    output_config: OutputConfig | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=256)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    metadata: Metadata | None = None
