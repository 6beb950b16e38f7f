"""A canonical conversation as Gemini's contents, every call answered in the content that follows it.

Clients of other formats send histories that Gemini answers with 400: calls without results, results without calls, a
call with nobody's turn before it, calls whose thought signature was lost. They are repaired here; what cannot be
carried at all raises ``RequestError``. https://ai.google.dev/gemini-api/docs/function-calling
"""

import mimetypes
import urllib.parse
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Audio,
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
from gateway.protocols.gemini.issued import END, TEXT, THOUGHT, of_call, places, unmark
from gateway.protocols.tool_results import answered

Item: TypeAlias = dict[str, Any]

# "To inject custom function call blocks …, set the following dummy signature in the thought signature field":
# https://ai.google.dev/gemini-api/docs/thought-signatures#faqs
UNSIGNED = "skip_thought_signature_validator"

_TRIMMED = "(The conversation began earlier.)"
_ANY_PICTURE = "image/jpeg"
# Addresses there stand for files of the gateway's own project, which no client may name.
_OWN_FILES = "generativelanguage.googleapis.com"


def encode_system(messages: Iterable[Message]) -> Item | None:
    """All system messages in their order, wherever they stood."""
    parts: list[Item] = []
    for message in messages:
        if message.role == "system":
            for part in message.parts:
                if not isinstance(part, Text):
                    raise _unsupported("A system message can hold only text for this model.")
                if part.text:
                    parts.append({"text": part.text})
    return {"parts": parts} if parts else None


def encode_contents(messages: tuple[Message, ...], *, must_be_signed: bool) -> list[Item]:
    """Everything but the system messages. Where calls ``must_be_signed``, lost signatures are replaced by a dummy."""
    contents: list[Item] = []
    names: dict[str, str] = {}
    for message in answered(tuple(message for message in messages if message.role != "system")):
        match message.role:
            case "assistant":
                names |= {part.id: part.name for part in message.parts if isinstance(part, ToolCall)}
                _extend(contents, "model", _said(message.parts, must_be_signed))
            case "tool":
                # A content of its own: it has as many answers as the one before has calls.
                contents.append({"role": "user", "parts": _results(message.parts, names)})
            case _:
                _extend(contents, "user", [item for part in message.parts if (item := _part(part)) is not None])
    if contents and _has_call(contents[0]):
        contents.insert(0, {"role": "user", "parts": [{"text": _TRIMMED}]})
    return contents


def _extend(contents: list[Item], role: str, parts: list[Item]) -> None:
    if not parts:
        return
    last = contents[-1] if contents else None
    if last is not None and last["role"] == role and not any("functionResponse" in part for part in last["parts"]):
        last["parts"] += parts
    else:
        contents.append({"role": role, "parts": parts})


def _has_call(content: Item) -> bool:
    return content["role"] == "model" and any("functionCall" in part for part in content["parts"])


def _said(parts: tuple[Part, ...], must_be_signed: bool) -> list[Item]:
    """One turn of the model, each signature on the part that it came with."""
    signatures = places(parts)
    items: list[Item] = []
    is_first = True
    for part in parts:
        match part:
            case ToolCall():
                signature = signatures.get(of_call(part.id)) or (UNSIGNED if is_first and must_be_signed else "")
                items.append(_signed(_call(part), signature))
                is_first = False
            case Reasoning():
                issued = unmark(part)
                if issued is not None and issued[0] == THOUGHT:
                    items.append(_signed({"text": part.text, "thought": True}, issued[1]))
            case _:
                item = _part(part)
                if item is not None:
                    items.append(item)
    if TEXT in signatures:
        for item in [item for item in items if "text" in item and "thought" not in item][-1:]:
            item["thoughtSignature"] = signatures[TEXT]
    if END in signatures:
        items.append(_signed({"text": ""}, signatures[END]))
    return items


def _signed(item: Item, signature: str) -> Item:
    return {**item, "thoughtSignature": signature} if signature else item


def _call(part: ToolCall) -> Item:
    return {"functionCall": {"id": part.id, "name": part.name, "args": _arguments(part.arguments)}}


def _arguments(arguments: str) -> msgspec.Raw:
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


def _results(parts: tuple[Part, ...], names: dict[str, str]) -> list[Item]:
    results = [part for part in parts if isinstance(part, ToolResult)]
    items = [_result(result, names.get(result.tool_call_id, "")) for result in results]
    # An answer holds an object only: what else a tool gave is shown after it.
    shown = (part for result in results for part in result.content if not isinstance(part, Text))
    return items + [item for part in shown if (item := _part(part)) is not None]


def _result(result: ToolResult, name: str) -> Item:
    text = "".join(part.text for part in result.content if isinstance(part, Text))
    # "output" and "error" are the keys that Gemini knows.
    response = {"error" if result.is_error else "output": text}
    return {"functionResponse": {"id": result.tool_call_id, "name": name, "response": response}}


def _part(part: Part) -> Item | None:
    match part:
        case Text(text=text) | Refusal(text=text):
            return {"text": text} if text else None
        case Image():
            return _image(part)
        case Document():
            return _document(part)
        case Audio():
            return _inline(f"audio/{part.format}", part.data)
        case _:
            raise _unsupported(f"This model does not take {type(part).__name__.lower()} content here.")


def _image(image: Image) -> Item:
    if image.data is not None and image.media_type:
        return _inline(image.media_type, image.data)
    if not image.url:
        raise _unsupported("An image needs a URL, or base64 data with its media type.")
    address = urllib.parse.urlsplit(image.url)
    if address.scheme not in ("http", "https") or (address.hostname or "").lower() == _OWN_FILES:
        raise _unsupported("An image's URL must be one of the public web for this model.")
    guessed = mimetypes.guess_type(address.path)[0] or ""
    media_type = guessed if guessed.startswith("image/") else _ANY_PICTURE
    return {"fileData": {"mimeType": media_type, "fileUri": image.url}}


def _document(document: Document) -> Item:
    media_type = (document.media_type or "").partition(";")[0].strip().lower()
    if document.data is None or not media_type:
        raise _unsupported("A document must be base64 data with its media type for this model.")
    return _inline(media_type, document.data)


def _inline(media_type: str, data: str) -> Item:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _unsupported(message: str) -> RequestError:
    return RequestError(message, code=ErrorCode.UNSUPPORTED_VALUE, param="messages")
