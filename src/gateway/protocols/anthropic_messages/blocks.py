"""A client's content blocks as canonical parts.

A text document becomes words, so that every model can read it; what no other format has a place for becomes
``Opaque`` and is remembered by its place. Which block may stand in whose turn is checked here, as Anthropic does.
"""

from typing import Any, assert_never

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import Document, Image, Opaque, Part, Reasoning, Text, ToolCall, ToolResult
from gateway.protocols.anthropic_messages.asked import (
    KNOWN_KINDS,
    AskedDocument,
    AskedImage,
    AskedRedactedThinking,
    AskedSearchResult,
    AskedText,
    AskedThinking,
    AskedToolResult,
    AskedToolUse,
    BlocksSource,
    Content,
    InlineSource,
    KnownBlock,
    LinkSource,
    StoredSource,
    WordsSource,
)
from gateway.protocols.bodies import check_base64, check_image_type, check_name, invalid_value

_KIND_CHARACTERS_MAX = 64
_ONLY_IN = {
    "tool_result": "user",
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
}


class _Kind(msgspec.Struct, frozen=True):
    type: str


_KIND = msgspec.json.Decoder(_Kind)
_BLOCK: msgspec.json.Decoder[KnownBlock] = msgspec.json.Decoder(KnownBlock)


class BlockReader:
    """Reads the blocks of one request. ``own`` names those that only Anthropic understands.

    ``is_strict`` holds turns to what version 2026-10-21 took away.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self.own: list[str] = []
        self._is_strict = is_strict

    def parts(self, content: Content, where: str, role: str) -> tuple[Part, ...]:
        """Raises ``RequestError`` that names the block."""
        if isinstance(content, str):
            return (Text(content),) if content else ()
        return tuple(
            part for number, block in enumerate(content) for part in self._block(block, f"{where}[{number}]", role)
        )

    def _block(self, raw: msgspec.Raw, where: str, role: str) -> tuple[Part, ...]:
        kind = _read(_KIND, raw, where).type
        if _ONLY_IN.get(kind, role) != role:
            raise RequestError(
                f"{where} is a {kind} block; those belong to the {_ONLY_IN[kind]}.",
                code=ErrorCode.INVALID_VALUE,
                param=where,
            )
        if kind not in KNOWN_KINDS:
            return self._opaque(kind, where, raw)
        block = _read(_BLOCK, raw, where)
        self._check_place(block, where, role)
        return self._part(block, where, raw)

    def _part(self, block: KnownBlock, where: str, raw: msgspec.Raw) -> tuple[Part, ...]:
        match block:
            case AskedText():
                return (Text(block.text, block.cache_control),)
            case AskedImage():
                return self._image(block, where)
            case AskedDocument():
                return self._document(block, where)
            case AskedSearchResult():
                found = self.parts(block.content, f"{where}.content", "result")
                return (Text(f"{block.title}\n{block.source}\n"), *found)
            case AskedToolUse():
                return (ToolCall(block.id, block.name, _arguments(block, where), block.cache_control),)
            case AskedToolResult():
                content = self.parts(block.content or "", f"{where}.content", "result")
                return (ToolResult(block.tool_use_id, content, bool(block.is_error), block.cache_control),)
            case AskedThinking():
                return (Reasoning(block.thinking, block.signature),)
            case AskedRedactedThinking():
                return (Reasoning(redacted=block.data),)
        assert_never(block)

    def _check_place(self, block: KnownBlock, where: str, role: str) -> None:
        if not self._is_strict:
            return
        if isinstance(block, AskedDocument) and role == "assistant":
            raise RequestError(
                f"{where} is a document; those belong to the user.", code=ErrorCode.INVALID_VALUE, param=where
            )
        if isinstance(block, AskedText) and role == "user" and block.citations:
            param = f"{where}.citations"
            raise RequestError(f"{param} must be empty here.", code=ErrorCode.INVALID_VALUE, param=param)

    def _opaque(self, kind: str, where: str, raw: msgspec.Raw) -> tuple[Part, ...]:
        self.own.append(where)
        return (Opaque(kind[:_KIND_CHARACTERS_MAX], bytes(raw).decode()),)

    def _image(self, block: AskedImage, where: str) -> tuple[Part, ...]:
        source = block.source
        match source:
            case InlineSource(media_type, data):
                check_base64(data, f"{where}.source.data")
                check_image_type(media_type, f"{where}.source.media_type")
                return (Image(data=data, media_type=media_type, cache=block.cache_control),)
            case LinkSource(url):
                _check_url(url, f"{where}.source.url")
                return (Image(url=url, cache=block.cache_control),)
        self.own.append(where)
        return (Image(cache=block.cache_control),)

    def _document(self, block: AskedDocument, where: str) -> tuple[Part, ...]:
        source = block.source
        heading = tuple(Text(f"{text}\n") for text in (block.title, block.context) if text)
        match source:
            case InlineSource(media_type, data):
                check_base64(data, f"{where}.source.data")
                return (Document(data, media_type, None, block.title, block.cache_control),)
            case WordsSource(data):
                return (*heading, Text(data, block.cache_control))
            case BlocksSource(content):
                return (*heading, *self.parts(content, f"{where}.source.content", "result"))
            case LinkSource(url):
                _check_url(url, f"{where}.source.url")
        self.own.append(where)
        file_id = source.file_id if isinstance(source, StoredSource) else None
        return (Document(file_id=file_id, filename=block.title, cache=block.cache_control),)


def _read(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, where: str) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid_value(error, where) from None


def _arguments(block: AskedToolUse, where: str) -> str:
    text = bytes(block.input).decode()
    if not text.startswith("{"):
        raise RequestError(f"{where}.input: Expected `object`.", code=ErrorCode.INVALID_VALUE, param=f"{where}.input")
    return "" if text == "{}" else text


def _check_url(url: str, where: str) -> None:
    check_name(url, where)
    if not url.startswith(("https://", "http://")):
        raise RequestError(f"{where} must be an http(s) URL.", code=ErrorCode.INVALID_VALUE, param=where)
