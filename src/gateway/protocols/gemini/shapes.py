"""What Gemini answers, as msgspec structs: read leniently, since fields come and go from model to model.

Format: https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

_CHOICES_MAX = 127


class FunctionCall(msgspec.Struct, frozen=True, gc=False):
    """A call, whole. ``args`` is kept as text, so that numbers keep their digits."""

    name: str | None = None
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"")


class PartShape(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A piece of an answer: words, a thought, a call, or a file. Other kinds have none of these fields."""

    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None
    inline_data: msgspec.Raw = msgspec.Raw(b"")


class ContentShape(msgspec.Struct, frozen=True, gc=False):
    """The pieces that came with one chunk; some chunks have none."""

    parts: list[PartShape] | None = None


class Candidate(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One choice."""

    content: ContentShape | None = None
    finish_reason: str | None = None
    index: Annotated[int, Meta(ge=0, le=_CHOICES_MAX)] | None = None


class PromptFeedback(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Why a prompt got no candidates."""

    block_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One event of a stream, or a whole answer. ``usage_metadata`` holds totals so far."""

    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: dict[str, Any] | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: Any = None
