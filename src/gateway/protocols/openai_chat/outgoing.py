"""The body of a call to a provider that speaks Chat Completions.

``forward`` sends the client's own body with only the fields changed that the gateway owns; ``encode`` writes one for a
request that came in another format.
"""

import re
from typing import Any

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
    Request,
    Text,
    ToolCall,
    ToolResult,
)
from gateway.protocols.tool_results import answered

_OPTIONS = msgspec.json.Decoder(dict[str, Any] | None)

_BOUNDS = ("max_completion_tokens", "max_tokens")
# "'max_tokens' is not supported with this model": OpenAI's reasoning models know the newer name only, other vendors
# often the older one only.
_NEWER_BOUND_ONLY = re.compile(r"(?:ft:)?(?:o[1-9]|gpt-[5-9])")


def forward(request: Request, model: str) -> bytes:
    """The client's body, streaming and with usage asked for, addressed to ``model``."""
    body: dict[str, Any] = dict(request.raw)
    body["model"] = model
    body["stream"] = True
    options = body.get("stream_options")
    body["stream_options"] = {**((_OPTIONS.decode(options) if options else None) or {}), "include_usage": True}
    if request.output_tokens_max is not None:
        for name in [name for name in _BOUNDS if bytes(body.get(name, b"null")) != b"null"] or [_bound_name(model)]:
            body[name] = request.output_tokens_max
    return msgspec.json.encode(body)


def _bound_name(model: str) -> str:
    return "max_completion_tokens" if _NEWER_BOUND_ONLY.match(model) else "max_tokens"


def encode(request: Request, model: str) -> bytes:
    """The canonical request as a Chat Completions body."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [encoded for message in answered(request.messages) for encoded in _message(message)],
        "stream": True,
        "stream_options": {"include_usage": True},
        _bound_name(model): request.output_tokens_max,
        "n": request.choices if request.choices > 1 else None,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "seed": request.sampling.seed,
        "stop": list(request.sampling.stop) or None,
        "frequency_penalty": request.sampling.frequency_penalty,
        "presence_penalty": request.sampling.presence_penalty,
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "reasoning_effort": request.effort,
        "user": request.user,
        "tools": _tools(request),
        "tool_choice": _tool_choice(request),
        "response_format": _response_format(request),
    }
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None})


def _tools(request: Request) -> list[dict[str, Any]] | None:
    tools = []
    for tool in request.tools:
        function: dict[str, Any] = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict,
        }
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    return tools or None


def _tool_choice(request: Request) -> str | dict[str, Any] | None:
    choice = request.tool_choice
    if choice is None or not request.tools:
        return None
    if choice.mode == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def _response_format(request: Request) -> dict[str, Any] | None:
    wanted = request.json_schema
    if wanted is None:
        return None
    if wanted.schema is None:
        return {"type": "json_object"}
    schema = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": {k: v for k, v in schema.items() if v is not None}}


def _message(message: Message) -> list[dict[str, Any]]:
    """One canonical turn; each tool result is a message of its own here."""
    results = [part for part in message.parts if isinstance(part, ToolResult)]
    encoded: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": part.tool_call_id, "content": _plain(part.content)} for part in results
    ]
    # A tool's message holds only text: what else it gave is shown by the user.
    shown = [inner for part in results for inner in part.content if isinstance(inner, Image | Document)]
    rest = shown + [part for part in message.parts if not isinstance(part, ToolResult)]
    if rest:
        role = "user" if message.role == "tool" else message.role
        encoded.append(_assistant(rest) if role == "assistant" else _speaker(role, rest))
    return encoded


def _speaker(role: str, parts: list[Part]) -> dict[str, Any]:
    if all(isinstance(part, Text) for part in parts):
        return {"role": role, "content": _plain(tuple(parts))}
    return {"role": role, "content": [_part(part) for part in parts]}


def _assistant(parts: list[Part]) -> dict[str, Any]:
    calls = [
        {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments or "{}"}}
        for part in parts
        if isinstance(part, ToolCall)
    ]
    text = _plain(tuple(part for part in parts if isinstance(part, Text)))
    refusal = "".join(part.text for part in parts if isinstance(part, Refusal))
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if refusal:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = calls
    return message


def _plain(parts: tuple[Part, ...]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            image = {"url": url} if part.detail is None else {"url": url, "detail": part.detail}
            return {"type": "image_url", "image_url": image}
        case Audio():
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
        case Document() if part.file_id is not None:
            return {"type": "file", "file": {"file_id": part.file_id}}
        case Document():
            data = f"data:{part.media_type};base64,{part.data}"
            return {"type": "file", "file": {"file_data": data, "filename": part.filename or "document"}}
        case Reasoning():
            return {"type": "text", "text": ""}
        case _:
            raise RequestError(
                f"A {type(part).__name__.lower()} part cannot be sent to this model.",
                code=ErrorCode.UNSUPPORTED_VALUE,
                param="messages",
            )
