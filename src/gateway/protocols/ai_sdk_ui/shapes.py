"""The bodies of ``useChat`` and ``useCompletion`` as they are posted, with the fields that apps put beside them.

Names are the vendor's: https://ai-sdk.dev/docs/reference/ai-sdk-core/ui-message and, for the settings,
https://ai-sdk.dev/docs/reference/ai-sdk-core/stream-text. A part is one shape for all types, since what a type does
not use is not looked at.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.canonical.request import Tool

# Ids and names go into headers, logs and other formats: no control characters.
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
TokenCount = Annotated[int, Meta(ge=1, le=100_000_000)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]

NOTHING = msgspec.Raw(b"null")


class Approval(msgspec.Struct, frozen=True):
    approved: bool | None = None
    reason: str | None = None


class UiPart(msgspec.Struct, frozen=True):
    type: Name
    text: str | None = None
    providerMetadata: dict[str, Any] | None = None
    url: str | None = None
    mediaType: str | None = None
    filename: str | None = None
    toolCallId: Name | None = None
    toolName: Name | None = None
    state: str | None = None
    input: msgspec.Raw = NOTHING
    rawInput: msgspec.Raw = NOTHING
    output: msgspec.Raw = NOTHING
    errorText: str | None = None
    approval: Approval | None = None
    parts: list["UiPart"] | None = None


class UiMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    parts: Annotated[list[UiPart], Meta(max_length=10_000)] | None = None
    content: Any = None
    """Nothing a UI message has; AI SDK 4 sends it."""


class NamedTool(msgspec.Struct, frozen=True):
    type: Literal["tool"]
    toolName: Name


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    system: str | None = None
    maxOutputTokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    topP: Annotated[float, Meta(ge=0, le=1)] | None = None
    topK: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    presencePenalty: Penalty | None = None
    frequencyPenalty: Penalty | None = None
    stopSequences: Annotated[list[str], Meta(max_length=16)] | None = None
    seed: int | None = None
    reasoningEffort: str | None = None
    thinking: dict[str, Any] | None = None


class ChatBody(Settings, frozen=True, kw_only=True):
    id: Name | None = None
    messages: Annotated[list[UiMessage], Meta(min_length=1, max_length=10_000)]
    trigger: str | None = None
    messageId: Name | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None
    toolChoice: Literal["auto", "none", "required"] | NamedTool | None = None


class CompletionBody(Settings, frozen=True, kw_only=True):
    prompt: str
