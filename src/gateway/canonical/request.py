"""What a client asks for, in one shape for every protocol.

A request keeps the client's own body beside its canonical form (``raw``, by field). Where the provider speaks the same
format, the body goes out as it came in, with only the fields changed that the gateway owns; nothing a vendor invents
is lost. Where it does not, the canonical form is encoded, and what the target cannot take is dropped by name.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

CacheMarker: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


class Part(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Root of what a message is made of."""


class Text(Part, frozen=True):
    """Words. ``cache`` marks the end of a prefix that the provider should keep (Anthropic's ``cache_control``)."""

    text: str
    cache: CacheMarker | None = None


class Tokens(Part, frozen=True):
    """Words that the client has made into a tokenizer's numbers itself; only models for embeddings take them."""

    ids: tuple[int, ...]


class Image(Part, frozen=True):
    """A picture: either ``url``, or ``data`` in base64 with its ``media_type``."""

    url: str | None = None
    data: str | None = None
    media_type: str | None = None
    detail: str | None = None
    cache: CacheMarker | None = None


class Document(Part, frozen=True):
    """A file for the model to read: ``data`` in base64 with its ``media_type``, or a provider's ``file_id``."""

    data: str | None = None
    media_type: str | None = None
    file_id: str | None = None
    filename: str | None = None
    cache: CacheMarker | None = None


class Audio(Part, frozen=True):
    """Sound, ``data`` in base64; ``format`` as the vendor names it (``wav``, ``mp3``)."""

    data: str
    format: str


class Refusal(Part, frozen=True):
    """What the model said earlier when it would not answer."""

    text: str


class Reasoning(Part, frozen=True):
    """A block of the model's earlier reasoning.

    ``signature`` and ``redacted`` belong to the provider that issued them; without a signature a block cannot be
    replayed to a provider that asks for one.
    """

    text: str = ""
    signature: str = ""
    redacted: str = ""


class ToolCall(Part, frozen=True):
    """A call the model made earlier. ``arguments`` is JSON text; ``""`` means ``{}``."""

    id: str
    name: str
    arguments: str
    cache: CacheMarker | None = None


class ToolResult(Part, frozen=True):
    """The answer to a call."""

    tool_call_id: str
    content: tuple[Part, ...]
    is_error: bool = False
    cache: CacheMarker | None = None


class Opaque(Part, frozen=True):
    """Something only the client's own format knows; ``name`` is the vendor's word for it, ``text`` what is counted."""

    name: str
    text: str = ""


class Message(msgspec.Struct, frozen=True):
    """One turn."""

    role: Role
    parts: tuple[Part, ...]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; ``parameters`` is a JSON Schema object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache: CacheMarker | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether the model must call: ``mode`` ``tool`` names the one in ``name``."""

    mode: Literal["auto", "none", "required", "tool"]
    name: str | None = None


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """The shape an answer must have. ``schema`` is ``None`` for "any JSON object"."""

    name: str = "response"
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the model picks its words; ``None`` leaves it to the provider."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """Which vectors are wanted: how long, ``None`` for the model's own length, and whether as base64 or as numbers."""

    dimensions: int | None = None
    is_base64: bool = False


class Loss(msgspec.Struct, frozen=True):
    """Something of a request that its provider is not asked for as the client did.

    ``dropped`` is left out, ``lowered`` a smaller number, ``changed`` said in the nearest word there is. ``field`` is
    spelled as Chat Completions does; what stands in messages or tools has that in front (``messages.is_error``).
    """

    fate: Literal["dropped", "lowered", "changed"]
    field: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a model's answer.

    ``format`` names the protocol it came in. ``model`` is as the client wrote it. ``output_tokens_max`` is per choice,
    ``None`` where the client sets no bound. ``effort`` is the reasoning effort; ``thinking`` the Anthropic-shaped
    object where a client sent one. ``bills_unseen`` says that it asks for something that is billed and not sent. With
    ``embedding`` a vector of each message is wanted and no answer; then ``output_tokens_max`` is 0. ``headers`` are
    those that a provider of the same format needs to understand the body. ``raw`` maps the fields of the client's body
    to their JSON text, and ``untranslatable`` names those among them whose meaning another format would lose.
    ``untold`` names fields that only a provider of the same format is told of, ``spelling`` is the client's word for
    fields that Chat Completions calls otherwise.
    ``unread`` is text of the body that no part stands for and that a provider of the same format is sent all the same.
    ``chat_id`` is the client's own name for the conversation, where its format has one.
    """

    format: str
    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    output_tokens_max: int | None = None
    choices: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    json_schema: JsonSchema | None = None
    sampling: Sampling = Sampling()
    effort: str | None = None
    thinking: dict[str, Any] | None = None
    user: str | None = None
    headers: dict[str, str] = {}
    bills_unseen: bool = False
    embedding: Embedding | None = None
    raw: dict[str, msgspec.Raw] = {}
    unread: tuple[str, ...] = ()
    chat_id: str | None = None
    untranslatable: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    spelling: Mapping[str, str] = {}
