"""A client's Chat Completions body as a canonical request."""

import re
from itertools import chain
from typing import Any

import msgspec

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.canonical.request import (
    Audio,
    Document,
    Image,
    JsonSchema,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Role,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.protocols.bodies import (
    check_base64,
    check_image_type,
    check_model_name,
    decode_fields,
    decode_json,
    refuse_routing_fields,
    untold_fields,
)
from gateway.protocols.openai_chat import NAME
from gateway.protocols.openai_chat.shapes import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    NamedToolChoice,
    ReasoningDetail,
    ResponseFormat,
)

_REQUEST = msgspec.json.Decoder(ChatRequest)

# What a format other than this one would lose without a word.
_OWN_ONLY = ("audio", "functions", "modalities", "prediction", "web_search_options")
# With these a vendor bills tokens that it does not send: OpenRouter's and Groq's ways to hide reasoning, and OpenAI's
# predicted output, of which the rejected tokens are billed too.
_UNSEEN = frozenset(("include_reasoning", "prediction", "reasoning", "reasoning_format"))
# Fields that canonical parts stand for, or that no model reads; options of a few words cost nothing worth counting.
_READ = frozenset(ChatRequest.__struct_fields__) - {"functions", "prediction", "web_search_options"}
# Fields that other formats are told of, or whose request is refused there; and what others hold that asks for nothing.
_TOLD = (frozenset(ChatRequest.__struct_fields__) | frozenset(_OWN_ONLY)) - {"logit_bias", "metadata"}
_IDLE = {
    "logit_bias": b"{}",
    "logprobs": b"false",
    "metadata": b"{}",
    "service_tier": b'"auto"',
    "store": b"false",
    "top_logprobs": b"0",
}
_NEWER_BOUND = {"max_tokens": "max_completion_tokens"}
_SMALL_BYTES = 256
_FIELDS_MAX = 256
_LABEL_BYTES_MAX = 512

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)


def decode(body: bytes) -> Request:
    """Raises ``RequestError`` that names the field as the client wrote it."""
    chat = decode_json(body, _REQUEST)
    raw = decode_fields(body)
    _check_fields(raw)
    if chat.user or chat.metadata:
        _check_labels(chat)
    messages = tuple([_message(message, i) for i, message in enumerate(chat.messages)])
    return Request(
        format=NAME,
        model=check_model_name(chat.model),
        messages=messages,
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        output_tokens_max=chat.max_completion_tokens or chat.max_tokens,
        choices=chat.n or 1,
        tools=_tools(chat),
        tool_choice=_tool_choice(chat.tool_choice),
        parallel_tool_calls=chat.parallel_tool_calls,
        json_schema=_json_schema(chat.response_format),
        sampling=_sampling(chat),
        effort=chat.reasoning_effort,
        thinking=chat.thinking,
        user=chat.user,
        bills_unseen=not raw.keys().isdisjoint(_UNSEEN),
        raw=raw,
        unread=_unread(chat, raw, messages),
        untranslatable=_untranslatable(chat, raw),
        untold=_untold(chat, raw),
        spelling=_NEWER_BOUND if chat.max_completion_tokens is not None else {},
    )


def _unread(chat: ChatRequest, raw: dict[str, msgspec.Raw], messages: tuple[Message, ...]) -> tuple[str, ...]:
    """What goes to a provider of the same format and is in no canonical part: counted as it stands, rather too much."""
    names = [name for name in raw if name not in _READ]
    if chat.tools and any(tool.function is None for tool in chat.tools):
        names.append("tools")
    if [part for message in messages for part in message.parts if type(part) is Opaque]:
        names.append("messages")
    return tuple(bytes(raw[name]).decode() for name in names if len(bytes(raw[name])) > _SMALL_BYTES)


def _check_fields(raw: dict[str, msgspec.Raw]) -> None:
    refuse_routing_fields(raw.keys())
    if len(raw) > _FIELDS_MAX:
        raise RequestError(f"The body has more than {_FIELDS_MAX} fields.")
    if b"true" != bytes(raw.get("stream", b"")) and bytes(raw.get("stream_options", b"null")) != b"null":
        raise RequestError(
            "stream_options is only allowed when stream is true.", code=ErrorCode.INVALID_VALUE, param="stream_options"
        )


def _check_labels(chat: ChatRequest) -> None:
    """What a client calls its user and its request is small; the shapes count characters, this counts bytes."""
    for name, texts in (("user", (chat.user or "",)), ("metadata", chain.from_iterable((chat.metadata or {}).items()))):
        if any(len(text.encode()) > _LABEL_BYTES_MAX for text in texts):
            raise RequestError(
                f"{name} holds a text of more than {_LABEL_BYTES_MAX} bytes.", code=ErrorCode.INVALID_VALUE, param=name
            )


def _untranslatable(chat: ChatRequest, raw: dict[str, msgspec.Raw]) -> tuple[str, ...]:
    if not chat.tools and raw.keys().isdisjoint(_OWN_ONLY):
        return ()
    names = [name for name in _OWN_ONLY if bytes(raw.get(name, b"null")) != b"null"]
    names += [f"tools[{i}]" for i, tool in enumerate(chat.tools or ()) if tool.function is None]
    return tuple(names)


def _untold(chat: ChatRequest, raw: dict[str, msgspec.Raw]) -> tuple[str, ...]:
    names = untold_fields(raw, _TOLD, _IDLE)
    if [1 for message in chat.messages if message.name is not None and message.role not in ("tool", "function")]:
        names += ("messages.name",)
    return names


def _sampling(chat: ChatRequest) -> Sampling:
    stop = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
    if "" in stop:
        raise RequestError("A stop sequence must not be empty.", code=ErrorCode.INVALID_VALUE, param="stop")
    return Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        stop=stop,
        seed=chat.seed,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
    )


def _tools(chat: ChatRequest) -> tuple[Tool, ...]:
    return tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description,
            parameters=tool.function.parameters,
            strict=tool.function.strict,
            cache=tool.cache_control,
        )
        for tool in chat.tools or ()
        if tool.function is not None
    )


def _tool_choice(choice: str | NamedToolChoice | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case NamedToolChoice(function=function) if function is not None:
            return ToolChoice("tool", function.name)
        case NamedToolChoice():
            return None
    raise RequestError(
        "tool_choice must be auto, none, required or a named function.",
        code=ErrorCode.INVALID_VALUE,
        param="tool_choice",
    )


def _json_schema(wanted: ResponseFormat | None) -> JsonSchema | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonSchema()
    if wanted.json_schema is None:
        raise RequestError(
            "response_format.json_schema is missing.",
            code=ErrorCode.INVALID_VALUE,
            param="response_format.json_schema",
        )
    schema = wanted.json_schema
    return JsonSchema(name=schema.name, schema=schema.schema, strict=schema.strict)


def _message(message: ChatMessage, number: int) -> Message:
    role = _SPEAKERS.get(message.role)
    if role is not None and type(message.content) is str:  # most
        return Message(role, (Text(message.content),))
    where = f"messages[{number}]"
    if role is not None:
        return Message(role, _content(message, where))
    if message.role == "assistant":
        return Message("assistant", _assistant(message, where))
    call_id = message.tool_call_id or message.name
    if not call_id:
        raise RequestError(
            f"{where}.tool_call_id is missing.", code=ErrorCode.INVALID_VALUE, param=f"{where}.tool_call_id"
        )
    return Message("tool", (ToolResult(call_id, _content(message, where)),))


_SPEAKERS: dict[str, Role] = {"developer": "system", "system": "system", "user": "user"}


def _assistant(message: ChatMessage, where: str) -> tuple[Part, ...]:
    parts: list[Part] = _reasoning(message)
    if message.content is not None:
        parts += _content(message, where)
    if message.refusal:
        parts.append(Refusal(message.refusal))
    for call in message.tool_calls or ():
        if call.function is None:
            parts.append(Opaque(call.type))
        else:
            parts.append(ToolCall(call.id, call.function.name, call.function.arguments))
    if message.function_call is not None:
        parts.append(ToolCall(message.function_call.name, message.function_call.name, message.function_call.arguments))
    if not parts and message.content is None:
        raise RequestError(
            f"{where} has neither content nor tool_calls.", code=ErrorCode.INVALID_VALUE, param=f"{where}.content"
        )
    return tuple(parts)


def _reasoning(message: ChatMessage) -> list[Part]:
    if message.reasoning_details:
        return [_reasoning_detail(detail) for detail in message.reasoning_details]
    text = message.reasoning_content or message.reasoning
    return [Reasoning(text)] if text else []


def _reasoning_detail(detail: ReasoningDetail) -> Part:
    if detail.data is not None:
        return Reasoning(redacted=detail.data)
    return Reasoning(detail.text or "", detail.signature or "")


def _content(message: ChatMessage, where: str) -> tuple[Part, ...]:
    content = message.content
    if content is None:
        raise RequestError(f"{where}.content is missing.", code=ErrorCode.INVALID_VALUE, param=f"{where}.content")
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, where: str) -> Part:
    match part:
        case ContentPart(type="text", text=str(text)):
            return Text(text, part.cache_control)
        case ContentPart(type="refusal", refusal=str(text)):
            return Refusal(text)
        case ContentPart(type="image_url", image_url=image) if image is not None:
            return _image(image.url, image.detail, part.cache_control, where)
        case ContentPart(type="input_audio", input_audio=audio) if audio is not None:
            return Audio(audio.data, audio.format)
        case ContentPart(type="file", file=file) if file is not None:
            media_type, data = _data_url(file.file_data or "", where)
            if data is None and not file.file_id:
                raise RequestError(
                    f"{where}.file needs a file_id, or file_data in base64.",
                    code=ErrorCode.INVALID_VALUE,
                    param=f"{where}.file",
                )
            return Document(data, media_type, file.file_id, file.filename, part.cache_control)
        case ContentPart(type="text" | "refusal" | "image_url" | "input_audio" | "file"):
            raise RequestError(
                f"{where} is of type {part.type} but has no such content.", code=ErrorCode.INVALID_VALUE, param=where
            )
    return Opaque(part.type[:64])


def _image(url: str, detail: str | None, cache: dict[str, Any] | None, where: str) -> Image:
    if url.startswith(("https://", "http://")):
        return Image(url=url, detail=detail, cache=cache)
    media_type, data = _data_url(url, where)
    if data is None or media_type is None:
        raise RequestError(
            f"{where}.image_url.url must be an http(s) URL or a base64 data URL.",
            code=ErrorCode.INVALID_VALUE,
            param=f"{where}.image_url.url",
        )
    check_image_type(media_type, f"{where}.image_url.url")
    return Image(data=data, media_type=media_type, detail=detail, cache=cache)


def _data_url(url: str, where: str) -> tuple[str | None, str | None]:
    """Media type and base64 text of a data URL; ``(None, text)`` where it is bare base64, ``(None, None)`` if empty."""
    if not url:
        return None, None
    head = _DATA_URL.match(url)
    data = url[head.end() :] if head else url
    if head is None and ":" in url[:32]:
        return None, None
    check_base64(data, where)
    return (head.group(1) if head else None), data
