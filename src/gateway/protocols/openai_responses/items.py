"""Input items as a conversation.

Responses has an item for every message, call, result and block of reasoning; a conversation has turns. What one
answer of a model was made of comes back as a row of items, and becomes one turn again. Reasoning is sealed: what its
provider has to see again unchanged stands in ``encrypted_content``, marked with what it is.
"""

import re
from collections.abc import Sequence
from typing import assert_never

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
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
from gateway.protocols.bodies import check_base64, check_image_type
from gateway.protocols.openai_responses.namespaces import NO_NAMESPACES, FlatNames
from gateway.protocols.openai_responses.shapes import ContentPart, InputItem

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)
# Neither mark is base64, so content that OpenAI sealed is never taken for ours.
_SIGNATURE = "signature."
_REDACTED = "redacted."
# What a file is whose client did not say so, by the end of its name.
_MEDIA_TYPES = {
    "csv": "text/csv",
    "html": "text/html",
    "json": "application/json",
    "md": "text/markdown",
    "pdf": "application/pdf",
    "txt": "text/plain",
}


def seal_signature(signature: str) -> str:
    """A signature as ``encrypted_content``."""
    return _SIGNATURE + signature


def seal_redacted(data: str) -> str:
    """Reasoning that only its provider can read, as ``encrypted_content``."""
    return _REDACTED + data


def conversation(
    said: str | list[InputItem] | None, earlier: Sequence[InputItem] = (), names: FlatNames = NO_NAMESPACES
) -> tuple[Message, ...]:
    """What is said, after the ``earlier`` items of a stored conversation; functions have their flat ``names``.

    Raises ``RequestError`` for an item that cannot be carried.
    """
    turns = _Turns(names)
    for item in earlier:
        _add_item(turns, item, "previous_response_id")
    if isinstance(said, str):
        turns.add(Message("user", (Text(said),)))
        return turns.close()
    for number, item in enumerate(said or ()):
        _add_item(turns, item, f"input[{number}]")
    return turns.close()


class _Turns:
    """Rows of items as turns. A second message of an assistant is a second turn, unless a call stands between."""

    __slots__ = ("_parts", "_role", "_turns", "names")

    def __init__(self, names: FlatNames) -> None:
        self.names = names
        self._turns: list[Message] = []
        self._role = ""
        self._parts: list[Part] = []

    def add(self, message: Message) -> None:
        self.close()
        self._turns.append(message)

    def add_result(self, result: ToolResult) -> None:
        self._open("tool")
        self._parts.append(result)

    def add_said(self, *parts: Part) -> None:
        """A message of the assistant's, or the reasoning before one."""
        has_call = any(isinstance(part, ToolCall) for part in self._parts)
        if self._role == "assistant" and not has_call and any(isinstance(part, Text) for part in self._parts):
            self.close()
        self._open("assistant")
        self._parts += parts

    def add_call(self, call: ToolCall) -> None:
        self._open("assistant")
        self._parts.append(call)

    def _open(self, role: str) -> None:
        if self._role != role:
            self.close()
            self._role = role

    def close(self) -> tuple[Message, ...]:
        if self._parts:
            self._turns.append(Message("tool" if self._role == "tool" else "assistant", tuple(self._parts)))
        self._role, self._parts = "", []
        return tuple(self._turns)


def _add_item(turns: _Turns, item: InputItem, where: str) -> None:
    match item.type:
        case "message" | None if item.role is not None:
            _add_message(turns, item, where)
        case "function_call":
            call_id, name = _named(item.call_id, f"{where}.call_id"), _named(item.name, f"{where}.name")
            name = turns.names.flat(item.namespace, name) if item.namespace else name
            turns.add_call(ToolCall(call_id, name, item.arguments or ""))
        case "function_call_output":
            call_id = _named(item.call_id, f"{where}.call_id")
            turns.add_result(ToolResult(call_id, _parts(item.output, f"{where}.output")))
        case "reasoning":
            turns.add_said(_reasoning(item))
        case "item_reference" | None:
            raise RequestError(
                f"{where} refers to an item that is not stored here; send the item itself (the AI SDK does where its "
                "option store is false).",
                code=ErrorCode.NOT_FOUND,
                param=where,
            )
        case "message":
            raise RequestError(f"{where}.role is missing.", code=ErrorCode.INVALID_VALUE, param=f"{where}.role")
        case kind:
            raise RequestError(
                f"{where} is of type {kind[:64]}, which cannot be sent to a model here.",
                code=ErrorCode.UNSUPPORTED_VALUE,
                param=where,
            )


def _add_message(turns: _Turns, item: InputItem, where: str) -> None:
    parts = _parts(item.content, f"{where}.content")
    match item.role:
        case "assistant":
            turns.add_said(*parts)
        case "user":
            turns.add(Message("user", parts))
        case "system" | "developer":
            turns.add(Message("system", parts))
        case None:
            return
        case role:
            assert_never(role)


def _named(name: str | None, where: str) -> str:
    if not name:
        raise RequestError(f"{where} is missing.", code=ErrorCode.INVALID_VALUE, param=where)
    return name


def _reasoning(item: InputItem) -> Part:
    """Reasoning that somebody else sealed keeps its text, but nobody here can replay it."""
    sealed = item.encrypted_content or ""
    if sealed.startswith(_REDACTED):
        return Reasoning(redacted=sealed.removeprefix(_REDACTED))
    shown = item.summary or (item.content if isinstance(item.content, list) else ())
    signature = sealed.removeprefix(_SIGNATURE) if sealed.startswith(_SIGNATURE) else ""
    return Reasoning("".join(part.text or "" for part in shown), signature)


def _parts(content: str | list[ContentPart] | None, where: str) -> tuple[Part, ...]:
    if content is None:
        raise RequestError(f"{where} is missing.", code=ErrorCode.INVALID_VALUE, param=where)
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, where: str) -> Part:
    match part:
        case ContentPart(type="input_text" | "output_text", text=str(text)):
            return Text(text)
        case ContentPart(type="refusal", refusal=str(text)):
            return Refusal(text)
        case ContentPart(type="input_image", image_url=str(url)):
            return _image(url, part.detail, f"{where}.image_url")
        case ContentPart(type="input_file", file_data=str(data)):
            return _file(data, part.filename, f"{where}.file_data")
        case ContentPart(type="input_file", file_id=str(file_id)):
            return Document(file_id=file_id, filename=part.filename)
        case ContentPart(type="input_image", file_id=str()):
            raise _unsupported(f"{where} names a file; an image must be an http(s) URL or a base64 data URL.", where)
        case ContentPart(type="input_file", file_url=str()):
            raise _unsupported(f"{where} names a URL; a file must be file_data in base64 or a file_id.", where)
        case ContentPart(type="input_text" | "output_text" | "refusal" | "input_image" | "input_file"):
            raise RequestError(
                f"{where} is of type {part.type} but has no such content.", code=ErrorCode.INVALID_VALUE, param=where
            )
    raise _unsupported(f"{where} is of type {part.type[:64]}, which cannot be sent to a model here.", where)


def _image(url: str, detail: str | None, where: str) -> Image:
    if url.startswith(("https://", "http://")):
        return Image(url=url, detail=detail)
    head = _DATA_URL.match(url)
    if head is None:
        raise RequestError(
            f"{where} must be an http(s) URL or a base64 data URL.", code=ErrorCode.INVALID_VALUE, param=where
        )
    check_image_type(head.group(1), where)
    check_base64(url[head.end() :], where)
    return Image(data=url[head.end() :], media_type=head.group(1), detail=detail)


def _file(data: str, filename: str | None, where: str) -> Document:
    """``file_data`` is a data URL; bare base64 is taken where the file's name tells what it is."""
    head = _DATA_URL.match(data)
    media_type = head.group(1) if head else _MEDIA_TYPES.get((filename or "").rpartition(".")[2].lower())
    if media_type is None:
        raise RequestError(
            f"{where} must be a base64 data URL, or have a filename that tells its type.",
            code=ErrorCode.INVALID_VALUE,
            param=where,
        )
    text = data[head.end() :] if head else data
    check_base64(text, where)
    return Document(data=text, media_type=media_type, filename=filename)


def _unsupported(message: str, where: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param=where)
