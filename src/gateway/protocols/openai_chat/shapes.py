"""The objects of Chat Completions, as far as the gateway reads them.

Requests are strict (a string is not a number); chunks from providers are liberal, since every vendor bends the format
a little. Fields that are not named here travel in the raw body and the raw frame.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TokenCount = Annotated[int, Meta(ge=1, le=100_000_000)]
ShortText = Annotated[str, Meta(max_length=512)]
# Names and ids go into headers, logs and other formats: no control characters.
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z")]


class ImageUrl(msgspec.Struct, frozen=True):
    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct, frozen=True):
    data: str
    format: str


class InputFile(msgspec.Struct, frozen=True):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """A part of any type; which of the fields is set follows from ``type``."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None
    file: InputFile | None = None
    cache_control: dict[str, Any] | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    name: Name
    arguments: str = ""


class MessageToolCall(msgspec.Struct, frozen=True):
    id: Name
    type: str = "function"
    function: FunctionCall | None = None


class ReasoningDetail(msgspec.Struct, frozen=True):
    """A block of reasoning with what its provider needs to see again; a convention of OpenRouter's."""

    type: str
    text: str | None = None
    signature: str | None = None
    data: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None
    name: Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None


class FunctionTool(msgspec.Struct, frozen=True):
    name: Annotated[Name, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, frozen=True):
    type: str
    function: FunctionTool | None = None
    cache_control: dict[str, Any] | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    name: Name


class NamedToolChoice(msgspec.Struct, frozen=True):
    type: str
    function: NamedFunction | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    name: str = "response"
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway reads; limits as OpenAI's reference gives them."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=1024)] | None = None
    tool_choice: str | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    thinking: dict[str, Any] | None = None
    user: Annotated[Name, Meta(max_length=512)] | None = None
    metadata: Annotated[dict[ShortText, ShortText], Meta(max_length=16)] | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=1024)] | None = None
    functions: Annotated[list[FunctionTool], Meta(max_length=1024)] | None = None


class FunctionChunk(msgspec.Struct, frozen=True, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class ToolCallChunk(msgspec.Struct, frozen=True, gc=False):
    index: int | None = None
    id: str | int | None = None
    function: FunctionChunk | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallChunk] | None = None
    function_call: FunctionChunk | None = None


class ChunkChoice(msgspec.Struct, frozen=True, gc=False):
    index: Annotated[int, Meta(ge=0, le=1023)] = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class ChunkUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One chunk, or a whole answer: they differ in ``delta`` and ``message`` only."""

    id: str | int | None = None
    model: str | None = None
    created: float | None = None
    choices: list[ChunkChoice] | None = None
    usage: Any = None
    error: Any = None


class PlainDelta(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    content: str


class PlainChoice(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    delta: PlainDelta
    index: int = 0
    logprobs: None = None
    finish_reason: None = None


class PlainChunk(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The chunk that most are: some text, and nothing beside it that differs from one chunk to the next."""

    choices: list[PlainChoice]
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    obfuscation: str | None = None
    usage: None = None
