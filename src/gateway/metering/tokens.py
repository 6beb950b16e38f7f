"""How many tokens a text is.

Exact for the models whose tokenizer is known (``o200k``, ``cl100k``, compiled, nothing fetched). For others ``o200k``
is the estimate that running streams are metered with; the provider's own figure settles them. Where the compiled
tokenizer does not exist for the platform, where the operator wants it, and for what is left of an input that takes too
long, the safe bound is used: no tokenizer makes more tokens than UTF-8 bytes.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Request,
    Tokens,
    ToolCall,
    ToolResult,
)

try:
    from rs_bpe import openai as _bpe
except ImportError:  # no wheel for this platform
    _bpe = None

TokenCounter: TypeAlias = Callable[[str], int]

# A longer text is counted in slices, with other streams served in between (a thread would not help: the tokenizer keeps
# the interpreter's lock). A slice takes about 1 ms; a seam may change the count by a token.
_SLICE_CHARACTERS = 65_536
_DEADLINE_S = 2.0

# "gpt-4", "gpt-4-turbo", "gpt-3.5-turbo"; the o200k models are newer: gpt-4o, gpt-4.1, gpt-4.5, gpt-5, o1 and later.
# Some vendors write whose model it is before its name, and OpenAI "ft:" before one that was tuned.
_CL100K = re.compile(r"(?:[^/]+/)*(?:ft:)?(?:gpt-3\.5|gpt-35|gpt-4(?![o.])|text-embedding-)")

_PER_MESSAGE = 4
_PER_REQUEST = 3
# The most that the large vendors charge for one picture they scale down themselves (Anthropic: about 1,600).
_PER_IMAGE = 1_600
_BYTES_PER_TOKEN_OF_FILE = 4


def count_bytes(text: str) -> int:
    """The bound that holds for every tokenizer."""
    return len(text.encode("utf-8", "surrogatepass"))


def counter(tokenizer: str = "o200k") -> TokenCounter:
    """A counter for a tokenizer by name: ``o200k``, ``cl100k`` or ``bytes``."""
    if _bpe is None or tokenizer == "bytes":
        return count_bytes
    encoding = _bpe.cl100k_base() if tokenizer == "cl100k" else _bpe.o200k_base()
    count: TokenCounter = encoding.count
    return count


def tokenizer_of(model: str) -> str:
    """The name of a model's tokenizer as far as it is known, else of the estimate."""
    return "cl100k" if _CL100K.match(model) else "o200k"


async def count_input(request: Request, count: TokenCounter) -> int:
    """Tokens of everything a request sends to the model, as far as it can be known before the provider says."""
    texts = list(_texts(request))
    fixed = sum(map(_attachments, request.messages))
    if request.embedding is None:  # whose inputs stand alone: no roles, nothing between them
        fixed += _PER_REQUEST + _PER_MESSAGE * len(request.messages)
    if sum(map(len, texts)) <= _SLICE_CHARACTERS:
        return fixed + sum(map(count, texts))
    tokens = fixed
    deadline = time.monotonic() + _DEADLINE_S
    for text in texts:
        for start in range(0, len(text), _SLICE_CHARACTERS):
            piece = text[start : start + _SLICE_CHARACTERS]
            tokens += count(piece) if time.monotonic() < deadline else count_bytes(piece)
            await asyncio.sleep(0)
    return tokens


def count_images(request: Request) -> int:
    """The pictures a request sends."""
    parts = (part for message in request.messages for part in message.parts)
    flat = (inner for part in parts for inner in (part.content if isinstance(part, ToolResult) else (part,)))
    return sum(isinstance(part, Image) for part in flat)


def marks_cache(request: Request) -> bool:
    """Whether a request asks its provider to keep a prefix, which some charge more for than for reading it."""
    parts = (part for message in request.messages for part in message.parts)
    return any(getattr(part, "cache", None) is not None for part in (*parts, *request.tools))


def _texts(request: Request) -> Iterable[str]:
    for message in request.messages:
        for part in message.parts:
            yield from _part_texts(part)
    yield from request.unread
    for tool in request.tools:
        yield msgspec.json.encode(tool).decode()
    if request.json_schema is not None and request.json_schema.schema is not None:
        yield msgspec.json.encode(request.json_schema.schema).decode()


def _part_texts(part: Part) -> Iterable[str]:
    match part:
        case ToolCall():
            yield part.name
            yield part.arguments
        case ToolResult():
            for inner in part.content:
                yield from _part_texts(inner)
        case Reasoning():
            yield part.text or part.redacted
        case Image() | Document() | Audio() | Tokens():
            return
        case _:
            yield getattr(part, "text", "")


def _attachments(message: Message) -> int:
    tokens = 0
    for part in message.parts:
        inner = part.content if isinstance(part, ToolResult) else (part,)
        for item in inner:
            if isinstance(item, Image):
                tokens += _PER_IMAGE
            elif isinstance(item, Tokens):
                tokens += len(item.ids)
            elif isinstance(item, Document | Audio):
                tokens += len(item.data or "") // _BYTES_PER_TOKEN_OF_FILE
    return tokens
