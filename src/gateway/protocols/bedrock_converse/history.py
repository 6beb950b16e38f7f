"""A canonical conversation as Converse wants it: alternating turns, a user's first, no blank text, every call answered.

What Bedrock would answer with 400 and a client could not mend is repaired here: unanswered calls, ids in another
alphabet, names of documents, a trimmed beginning. What cannot be carried at all raises ``RequestError``.
Rules: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Message.html
"""

import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Audio,
    CacheMarker,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
)
from gateway.protocols.bedrock_converse.families import (
    CACHES_MESSAGES,
    TAKES_REASONING,
    TAKES_RESULT_STATUS,
    Family,
)
from gateway.protocols.tool_results import answered

Block: TypeAlias = dict[str, Any]

# "A conversation must start with a user message": what a client trimmed away is not made up.
_OPENING: Block = {"text": "…"}
# Blank text is refused in results too, and an empty result is one that tools often give.
_NOTHING: Block = {"text": "(empty)"}

_TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOOL_NAME_MAX = 64
# Signatures are base64 at every vendor; what another format sealed in its own way is marked with a colon.
_SIGNATURE = re.compile(r"[A-Za-z0-9+/=_-]+")
_BEYOND_DOCUMENT_NAMES = re.compile(r"[^A-Za-z0-9()\[\]-]+")
_DOCUMENT_NAME_MAX = 190

_IMAGE_FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif"} | {
    "image/webp": "webp"
}
_DOCUMENT_FORMATS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/markdown": "md",
}


class Turn(msgspec.Struct):
    """One turn of the conversation."""

    role: str
    content: list[Block]


def encode_system(messages: Iterable[Message], family: Family) -> list[Block]:
    """All system messages in their order, wherever they stood."""
    writer = _Writer(family)
    blocks: list[Block] = []
    for message in messages:
        if message.role == "system":
            for part in message.parts:
                if not isinstance(part, Text):
                    raise _unsupported("A system message can hold only text for this model.")
                blocks += writer.shown(part)
    return blocks


def encode_turns(messages: tuple[Message, ...], family: Family) -> list[Turn]:
    """Everything but the system messages, repaired; empty where nothing is left."""
    writer = _Writer(family)
    spoken = answered(tuple(message for message in messages if message.role != "system"))
    turns = _merged(_ending_in_words(_merged([writer.turn(message) for message in spoken])))
    if turns and turns[0].role == "assistant":
        turns.insert(0, Turn("user", [_OPENING]))
    for turn in turns:
        if any("document" in block for block in turn.content) and not any("text" in block for block in turn.content):
            turn.content.append(_OPENING)  # "you must also include a ContentBlock with a text field"
    return turns


def calls_in(turns: Iterable[Turn]) -> list[str]:
    """The names of the tools that were called, each once."""
    calls = (block["toolUse"]["name"] for turn in turns for block in turn.content if "toolUse" in block)
    return list(dict.fromkeys(calls))


def can_continue_thinking(turns: list[Turn]) -> bool:
    """Whether Claude may be asked to think: not while its last turn called tools and lacks its reasoning.

    https://platform.claude.com/docs/en/build-with-claude/extended-thinking#extended-thinking-with-tool-use
    """
    last = next((turn.content for turn in reversed(turns) if turn.role == "assistant"), [])
    is_open = any("toolUse" in block for block in last)
    return not is_open or "reasoningContent" in last[0]


def can_replay(part: Reasoning, family: Family) -> bool:
    """Whether a block of reasoning may go back to the model: with its signature, and as only Bedrock spells it."""
    if family not in TAKES_REASONING:
        return False
    if part.redacted:
        return _is_base64(part.redacted)
    return _SIGNATURE.fullmatch(part.signature) is not None


def _merged(turns: Iterable[Turn]) -> list[Turn]:
    """Alternating, and none without content."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1].content += turn.content
        elif turn.content:
            merged.append(turn)
    return merged


def _ending_in_words(turns: list[Turn]) -> list[Turn]:
    """What a stream cut short in thought leaves: "the final block in an assistant message cannot be `thinking`"."""
    for turn in turns:
        while turn.role == "assistant" and turn.content and "reasoningContent" in turn.content[-1]:
            turn.content.pop()
    return turns


class _Writer:
    """Writes parts as blocks; a document's name may stand in a request once."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._document_names: set[str] = set()

    def turn(self, message: Message) -> Turn:
        """One message; all but the assistant's are the user's."""
        role = "assistant" if message.role == "assistant" else "user"
        return Turn(role, [block for part in message.parts for block in self.write(part, role)])

    def write(self, part: Part, role: str) -> list[Block]:
        """The blocks of one part of a turn."""
        match part:
            case ToolResult():
                return self._result(part)
            case ToolCall():
                call = {"toolUseId": _tool_id(part.id), "name": _name(part.name), "input": _input(part.arguments)}
                return self._marked({"toolUse": call}, part.cache)
            case Reasoning():
                return [_reasoning(part)] if can_replay(part, self._family) else []
            case Image() | Document() | Audio() if role == "assistant":
                raise _unsupported("This model takes pictures, documents and sound from the user only.")
        return self.shown(part)

    def shown(self, part: Part) -> list[Block]:
        """What may stand in a turn as well as in a result."""
        match part:
            case Text(text=text):
                # "The text field in the ContentBlock object is blank."
                return self._marked({"text": text}, part.cache) if text.strip() else []
            case Refusal(text=text):
                return [{"text": text}] if text.strip() else []
            case Image():
                return self._marked({"image": _image(part)}, part.cache)
            case Document():
                return self._marked({"document": self._document(part)}, part.cache)
            case Audio(data=data, format=kind):
                return [{"audio": {"format": kind, "source": {"bytes": data}}}]
        raise _unsupported(f"This model does not take {type(part).__name__.lower()} content here.")

    def _result(self, part: ToolResult) -> list[Block]:
        blocks = [block for shown in part.content for block in self.shown(shown)]
        content = [block for block in blocks if "cachePoint" not in block]
        result: Block = {"toolUseId": _tool_id(part.tool_call_id), "content": content or [_NOTHING]}
        if part.is_error and self._family in TAKES_RESULT_STATUS:
            result["status"] = "error"
        # Within a result there is no place for a mark, so one that stood there comes right after it.
        marks = [block for block in blocks if "cachePoint" in block]
        return self._marked({"toolResult": result}, part.cache) if part.cache else [{"toolResult": result}, *marks[-1:]]

    def _marked(self, block: Block, cache: CacheMarker | None) -> list[Block]:
        return [block, cache_point(cache)] if cache and self._family in CACHES_MESSAGES else [block]

    def _document(self, part: Document) -> Block:
        if part.data is None:
            raise _unsupported("A document must be sent inline for this model.")
        media_type = (part.media_type or "").partition(";")[0].strip().lower()
        kind = _DOCUMENT_FORMATS.get(media_type) or ("txt" if media_type.startswith("text/") else None)
        if kind is None:
            raise _unsupported("A document must be a PDF, text, HTML, Word or Excel for this model.")
        return {"format": kind, "name": self._document_name(part.filename), "source": {"bytes": part.data}}

    def _document_name(self, filename: str | None) -> str:
        """In the alphabet that Bedrock takes, and unlike the others of the request."""
        stem = (filename or "").rpartition(".")[0] or filename or ""
        name = _BEYOND_DOCUMENT_NAMES.sub(" ", stem).strip()[:_DOCUMENT_NAME_MAX].strip() or "document"
        unique, number = name, 2
        while unique in self._document_names:
            unique, number = f"{name} {number}", number + 1
        self._document_names.add(unique)
        return unique


def cache_point(cache: CacheMarker) -> Block:
    """The end of a prefix to keep, and for how long where the client says so."""
    ttl = cache.get("ttl")
    return {"cachePoint": {"type": "default", **({"ttl": ttl} if ttl in ("5m", "1h") else {})}}


def is_tool_name(name: str) -> bool:
    """Whether Bedrock takes a tool of this name."""
    return _TOOL_NAME.fullmatch(name) is not None


def _reasoning(part: Reasoning) -> Block:
    if part.redacted:
        return {"reasoningContent": {"redactedContent": part.redacted}}
    return {"reasoningContent": {"reasoningText": {"text": part.text, "signature": part.signature}}}


def _image(part: Image) -> Block:
    if part.data is None:
        raise _unsupported("An image must be sent inline, in base64, for this model: it fetches none.")
    kind = _IMAGE_FORMATS.get((part.media_type or "").lower())
    if kind is None:
        raise _unsupported("An image must be PNG, JPEG, GIF or WebP for this model.")
    return {"format": kind, "source": {"bytes": part.data}}


def _tool_id(call_id: str) -> str:
    """The id itself where Bedrock takes it, else a digest: the same in every request, so prompt caches still hit."""
    if _TOOL_ID.fullmatch(call_id):
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _name(name: str) -> str:
    """A name in the history, in Bedrock's alphabet: a model that made one up may still be talked to."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:_TOOL_NAME_MAX] or "_"


def _input(arguments: str) -> msgspec.Raw:
    """The arguments as the text of an object, unchanged where they are one, so that numbers keep their digits."""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    text = arguments.encode("utf-8", "replace")
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        # A model wrote this and nothing will run it again; wrapped, it sees its own mistake.
        return msgspec.Raw(msgspec.json.encode({"_raw": arguments}))
    return msgspec.Raw(text)


def _is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _unsupported(message: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param="messages")
