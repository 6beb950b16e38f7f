"""A canonical conversation as the items of an input, every call answered.

What one turn was made of becomes a row of items in its order: reasoning before what it led to, words, calls; results
follow their calls. What cannot be carried raises ``RequestError``.
"""

import hashlib
from typing import Any

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
from gateway.protocols.openai_responses.issued import reasoning_item
from gateway.protocols.tool_results import answered

_CALL_ID_MAX = 64

Item = dict[str, Any]


def encode_input(messages: tuple[Message, ...]) -> list[Item]:
    """The items of all messages."""
    return [item for message in answered(messages) for item in _items(message)]


def _items(message: Message) -> list[Item]:
    match message.role:
        case "assistant":
            return _assistant(message.parts)
        case "tool":
            return [_result(part) for part in message.parts if isinstance(part, ToolResult)]
        case role:
            content = [_content(part) for part in message.parts]
            return [_message("developer" if role == "system" else "user", content)] if content else []


def _message(role: str, content: list[Item]) -> Item:
    return {"type": "message", "role": role, "content": content}


def _assistant(parts: tuple[Part, ...]) -> list[Item]:
    items: list[Item] = []
    for part in parts:
        match part:
            case Text() | Refusal():
                _say(items, part)
            case ToolCall():
                items.append(
                    {
                        "type": "function_call",
                        "call_id": _call_id(part.id),
                        "name": part.name,
                        "arguments": part.arguments or "{}",
                    }
                )
            case Reasoning():
                thought = reasoning_item(part)
                items += [] if thought is None else [thought]
            case _:
                raise _unsupported(part)
    # "Item of type 'reasoning' was provided without its required following item": what an abort leaves.
    while items and items[-1]["type"] == "reasoning":
        items.pop()
    return items


def _say(items: list[Item], part: Text | Refusal) -> None:
    if not part.text:
        return
    if isinstance(part, Text):
        content = {"type": "output_text", "text": part.text}
    else:
        content = {"type": "refusal", "refusal": part.text}
    if items and items[-1]["type"] == "message":
        items[-1]["content"].append(content)
    else:
        items.append(_message("assistant", [content]))


def _result(result: ToolResult) -> Item:
    content = result.content
    output: str | list[Item]
    if all(isinstance(part, Text) for part in content):
        output = "".join(part.text for part in content if isinstance(part, Text))
    else:
        output = [_content(part) for part in content]
    return {"type": "function_call_output", "call_id": _call_id(result.tool_call_id), "output": output}


def _content(part: Part) -> Item:
    match part:
        case Text():
            return {"type": "input_text", "text": part.text}
        case Image():
            detail = {} if part.detail is None else {"detail": part.detail}
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            return {"type": "input_image", "image_url": url, **detail}
        case Document() if part.file_id is not None:
            return {"type": "input_file", "file_id": part.file_id}
        case Document():
            data = f"data:{part.media_type};base64,{part.data}"
            return {"type": "input_file", "filename": part.filename or "document", "file_data": data}
        case _:
            raise _unsupported(part)


def _call_id(call_id: str) -> str:
    """The id itself where it is short enough, else a digest: the same in every request, so prompt caches still hit."""
    if len(call_id) <= _CALL_ID_MAX:
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _unsupported(part: Part) -> RequestError:
    return RequestError(
        f"A {type(part).__name__.lower()} part cannot be sent to this model.",
        code=ErrorCode.UNSUPPORTED_VALUE,
        param="messages",
    )
