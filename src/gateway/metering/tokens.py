"""How many tokens a text is.

Exact for the models whose tokenizer is known (``o200k``, ``cl100k``, compiled, nothing fetched). For others ``o200k``
is the estimate that running streams are metered with; the provider's own figure settles them. Where the compiled
tokenizer does not exist for the platform, where the operator wants it, and for what is left of an input that takes too
long, the safe bound is used: no tokenizer makes more tokens than UTF-8 bytes.
"""

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    Part,
    Reasoning,
    Request,
    Text,
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
    return _compiled(is_cl100k=tokenizer == "cl100k")


@functools.cache
def _compiled(*, is_cl100k: bool) -> TokenCounter:
    """One for all: what is known of texts is kept by who counted them."""
    return _Counts((_bpe.cl100k_base() if is_cl100k else _bpe.o200k_base()).count).__getitem__


class _Counts(dict[str, int]):
    """Tokens by text. Short ones, which streams bring over and over, are counted once; a look-up costs no frame."""

    def __init__(self, count: TokenCounter) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, text: str) -> int:
        tokens = self._count(text)
        if len(text) <= _SHORT_LENGTH_MAX:
            if len(self) >= _KNOWN_MAX:
                self.clear()
            self[text] = tokens
        return tokens


def tokenizer_of(model: str) -> str:
    """The name of a model's tokenizer as far as it is known, else of the estimate."""
    return "cl100k" if _CL100K.match(model) else "o200k"


# A conversation sends what was said before with each turn, and many share what the system says. Texts are known by
# their (keyed) hash and length, so none is kept.
_KNOWN: dict[tuple[TokenCounter, int, int], int] = {}
_KNOWN_MAX = 16_384
_KNOWN_LENGTH_MIN = 32
_SHORT_LENGTH_MAX = 24


def _learn(key: tuple[TokenCounter, int, int], tokens: int) -> None:
    if key[2] >= _KNOWN_LENGTH_MIN:
        if len(_KNOWN) >= _KNOWN_MAX:
            _KNOWN.clear()
        _KNOWN[key] = tokens


async def _count_in_slices(text: str, count: TokenCounter, deadline: float) -> int:
    """A long text with other streams served in between; what is left at the deadline by the safe bound."""
    tokens = 0
    for start in range(0, len(text), _SLICE_CHARACTERS):
        piece = text[start : start + _SLICE_CHARACTERS]
        tokens += count(piece) if time.monotonic() < deadline else count_bytes(piece)
        await asyncio.sleep(0)
    return tokens


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What a request sends to the model: its texts, the tokens of what is no text, its pictures.

    ``marks_cache`` says that it asks its provider to keep a prefix, which some charge more for than for reading it.
    """

    texts: list[str]
    fixed: int
    images: int
    marks_cache: bool

    async def tokens(self, count: TokenCounter) -> int:
        """Tokens of everything, as far as it can be known before the provider says."""
        tokens, characters, deadline = self.fixed, 0, 0.0
        for text in self.texts:
            length = len(text)
            key = (count, hash(text), length)
            known = _KNOWN.get(key) if length >= _KNOWN_LENGTH_MIN else None
            if known is None and characters + length <= _SLICE_CHARACTERS:
                characters += length
                known = count(text)
                _learn(key, known)
            elif known is None:
                deadline = deadline or time.monotonic() + _DEADLINE_S
                known = await _count_in_slices(text, count, deadline)
                if time.monotonic() < deadline:
                    _learn(key, known)
            tokens += known
        return tokens


def survey(request: Request) -> Survey:
    """One look at all of a request."""
    texts: list[str] = []
    others: list[Part] = []
    marks_cache = False
    for message in request.messages:
        for part in message.parts:
            if type(part) is Text:  # most
                texts.append(part.text)
                marks_cache = marks_cache or part.cache is not None
            else:
                others.append(part)
    images = 0
    # Inputs to be embedded stand alone: no roles, nothing between them.
    fixed = _PER_REQUEST + _PER_MESSAGE * len(request.messages) if request.embedding is None else 0
    for part in others:
        marks_cache = marks_cache or getattr(part, "cache", None) is not None
        for item in part.content if isinstance(part, ToolResult) else (part,):
            images += isinstance(item, Image)
            fixed += _attachment(item)
            texts += _part_texts(item)
    texts += request.unread
    for tool in request.tools:
        texts.append(msgspec.json.encode(tool).decode())
        marks_cache = marks_cache or tool.cache is not None
    if request.json_schema is not None and request.json_schema.schema is not None:
        texts.append(msgspec.json.encode(request.json_schema.schema).decode())
    return Survey(texts=texts, fixed=fixed, images=images, marks_cache=marks_cache)


async def count_input(request: Request, count: TokenCounter) -> int:
    """Tokens of everything a request sends to the model, as far as it can be known before the provider says."""
    return await survey(request).tokens(count)


def _part_texts(part: Part) -> Iterable[str]:
    match part:
        case ToolCall():
            return part.name, part.arguments
        case ToolResult():
            return [text for inner in part.content for text in _part_texts(inner)]
        case Reasoning():
            return (part.text or part.redacted,)
        case Image() | Document() | Audio() | Tokens():
            return ()
        case _:
            return (getattr(part, "text", ""),)


def _attachment(part: Part) -> int:
    """The tokens of what is no text."""
    if isinstance(part, Image):
        return _PER_IMAGE
    if isinstance(part, Tokens):
        return len(part.ids)
    if isinstance(part, Document | Audio):
        return len(part.data or "") // _BYTES_PER_TOKEN_OF_FILE
    return 0
