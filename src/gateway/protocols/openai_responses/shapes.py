"""The objects of a Responses request, as far as the gateway reads them.

An item or a part is one object of any type, and which of its fields are set follows from ``type``: clients send back
what they were given, with fields nobody here has heard of.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TokenCount = Annotated[int, Meta(ge=1, le=100_000_000)]
# Names and ids go into headers, logs and other formats: no control characters.
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z")]


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None


class InputItem(msgspec.Struct, frozen=True):
    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: Name | None = None
    name: Name | None = None
    namespace: Name | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None


class ResponsesTool(msgspec.Struct, frozen=True):
    type: str
    name: Annotated[Name, Meta(min_length=1, max_length=256)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: Annotated[list["ResponsesTool"], Meta(max_length=1024)] | None = None


class NamedToolChoice(msgspec.Struct, frozen=True):
    type: str
    name: Name | None = None


class TextFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str = "response"
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway reads; limits as OpenAI's reference gives them."""

    model: str
    input: str | Annotated[list[InputItem], Meta(max_length=10_000)] | None = None
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=1024)] | None = None
    tool_choice: str | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    user: Annotated[Name, Meta(max_length=512)] | None = None
