"""The data stream of Vercel's AI SDK 4: one ``CODE:JSON`` line per part.

Reference: https://v4.ai-sdk.dev/docs/ai-sdk-ui/stream-protocol and the parser in ``@ai-sdk/ui-utils`` 1.2. The parser
takes whole lines only, drops empty ones (so a bare line feed is the heartbeat; anything else kills the stream), wants
``9``'s ``args`` as an object and every number present. Server role only: nobody serves models in this format.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.canonical.errors import ErrorCode, GatewayError, RequestError
from gateway.canonical.events import (
    Event,
    Finish,
    Frame,
    MessageStart,
    ReasoningDelta,
    ReasoningEnd,
    RedactedReasoning,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Unified,
)
from gateway.canonical.request import (
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Request,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from gateway.canonical.usage import Usage
from gateway.protocols.bodies import (
    check_base64,
    check_image_type,
    check_model_name,
    check_name,
    decode_fields,
    decode_json,
    refuse_routing_fields,
    untold_fields,
)
from gateway.protocols.rates import openai_headers
from gateway.protocols.wire import (
    STREAM_HEADERS,
    Allowance,
    Cut,
    Encoder,
    Headers,
    Notice,
    Reply,
    StreamMeta,
    json_reply,
    retry_headers,
)

NAME = "ai_sdk_4"

_FINISH = {
    Unified.STOP: "stop",
    Unified.LENGTH: "length",
    Unified.TOOL_CALLS: "tool-calls",
    Unified.CONTENT_FILTER: "content-filter",
    Unified.ERROR: "error",
    Unified.OTHER: "other",
}
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class Attachment(msgspec.Struct, frozen=True):
    url: str
    name: str | None = None
    contentType: str | None = None


# Ids go into headers, logs and other formats: no control characters.
Id = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z")]


class ToolInvocation(msgspec.Struct, frozen=True):
    toolCallId: Id
    toolName: Id
    state: str
    args: Any = None
    result: Any = None


class ReasoningDetail(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    signature: str | None = None
    data: str | None = None


class UiPart(msgspec.Struct, frozen=True):
    """A part of any type; parts the model has no use for (sources, step marks) are passed over."""

    type: str
    text: str | None = None
    reasoning: str | None = None
    details: list[ReasoningDetail] | None = None
    toolInvocation: ToolInvocation | None = None
    data: str | None = None
    mimeType: str | None = None


class UiMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant", "data"]
    content: str = ""
    parts: list[UiPart] | None = None
    toolInvocations: list[ToolInvocation] | None = None
    experimental_attachments: list[Attachment] | None = None


class ChatBody(msgspec.Struct, frozen=True):
    """What ``useChat`` posts, and the fields that apps put beside it through ``body``."""

    messages: Annotated[list[UiMessage], Meta(min_length=1, max_length=10_000)]
    id: str | None = None
    system: str | None = None
    model: str | None = None
    maxTokens: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    topP: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    reasoningEffort: str | None = None
    thinking: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None


_BODY = msgspec.json.Decoder(ChatBody)
_SPELLING = {"max_tokens": "maxTokens", "reasoning_effort": "reasoningEffort", "top_p": "topP"}


class AiSdk4Server:
    """The data stream that `useChat` of AI SDK 4 reads."""

    name = NAME
    heartbeat = b"\n"
    nothing_to_resume = 200  # with an empty body; it takes 204 for an error

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named by ``?provider=&model=``, by ``?model=`` alone, or by the body's ``model``."""
        chat = decode_json(body, _BODY)
        fields = decode_fields(body)
        refuse_routing_fields(fields.keys())
        for number, tool in enumerate(chat.tools or ()):
            check_name(tool.name, f"tools[{number}].name")
        messages = [message for item in chat.messages for message in _messages(item)]
        if chat.system:
            messages.insert(0, Message("system", (Text(chat.system),)))
        return Request(
            format=NAME,
            model=_model(chat, query),
            messages=tuple(messages),
            stream=True,
            output_tokens_max=chat.maxTokens,
            tools=tuple(chat.tools or ()),
            sampling=Sampling(temperature=chat.temperature, top_p=chat.topP, seed=chat.seed),
            effort=chat.reasoningEffort,
            thinking=chat.thinking,
            chat_id=chat.id,
            untold=untold_fields(fields, ChatBody.__struct_fields__),
            spelling=_SPELLING,
        )

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Always a stream: ``useChat`` knows nothing else."""
        return DataStreamEncoder(meta)

    def broken_off(self, error: GatewayError) -> bytes:
        """An error part."""
        return _line(b"3", error.message)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """``useChat`` shows the body of an error answer as the message of its error."""
        body = {"error": {"message": error.message, "code": error.code.value, "param": error.param}}
        return json_reply(error.code.http_status, body, retry_headers(error))


def _model(chat: ChatBody, query: Mapping[str, str]) -> str:
    model = query.get("model") or chat.model
    if not model:
        raise RequestError(
            "Name the model: ?provider=openai&model=gpt-4o-mini, or model in the body.",
            code=ErrorCode.INVALID_VALUE,
            param="model",
        )
    provider = query.get("provider")
    return check_model_name(f"{provider}/{model}" if provider else model)


def _messages(message: UiMessage) -> list[Message]:
    """One message of the UI; an assistant's becomes a turn and its tool results for each step."""
    if message.role == "data":
        return []
    if message.role != "assistant":
        return [Message(message.role, (Text(message.content), *_attachments(message)))]
    if message.parts is None:
        parts: list[Part] = [Text(message.content)] if message.content else []
        return _turns(parts, message.toolInvocations or [])
    turns: list[Message] = []
    step: list[Part] = []
    invocations: list[ToolInvocation] = []
    for part in message.parts:
        if part.type == "step-start":
            turns += _turns(step, invocations)
            step, invocations = [], []
        elif part.type == "tool-invocation" and part.toolInvocation is not None:
            invocations.append(part.toolInvocation)
        else:
            step += _ui_part(part)
    return turns + _turns(step, invocations)


def _turns(parts: list[Part], invocations: list[ToolInvocation]) -> list[Message]:
    answered = [invocation for invocation in invocations if invocation.state == "result"]
    calls = [
        ToolCall(invocation.toolCallId, invocation.toolName, _json(invocation.args or {})) for invocation in answered
    ]
    turns = [Message("assistant", (*parts, *calls))] if parts or calls else []
    if answered:
        results = (ToolResult(invocation.toolCallId, (Text(_text(invocation.result)),)) for invocation in answered)
        turns.append(Message("tool", tuple(results)))
    return turns


def _ui_part(part: UiPart) -> list[Part]:
    match part:
        case UiPart(type="text", text=str(text)):
            return [Text(text)]
        case UiPart(type="reasoning"):
            return [_reasoning(detail) for detail in part.details or ()] or [Reasoning(part.reasoning or "")]
        case UiPart(type="file", data=str(data), mimeType=str(media_type)):
            check_base64(data, "parts.data")
            check_image_type(media_type, "parts.mimeType")
            if media_type.startswith("image/"):
                return [Image(data=data, media_type=media_type)]
            return [Document(data=data, media_type=media_type)]
    return []


def _reasoning(detail: ReasoningDetail) -> Part:
    if detail.data is not None:
        return Reasoning(redacted=detail.data)
    return Reasoning(detail.text or "", detail.signature or "")


def _attachments(message: UiMessage) -> tuple[Part, ...]:
    return tuple(_attachment(item, i) for i, item in enumerate(message.experimental_attachments or ()))


def _attachment(item: Attachment, number: int) -> Part:
    where = f"experimental_attachments[{number}].url"
    inline = _DATA_URL.match(item.url)
    media_type = item.contentType or (inline.group(1) if inline else "")
    data = item.url[inline.end() :] if inline else None
    if data is not None:
        check_base64(data, where)
        check_image_type(inline.group(1) if inline else "", where)
    check_image_type(media_type, where)
    if media_type.startswith("image/") and (inline or item.url.startswith(("https://", "http://"))):
        return Image(url=None if inline else item.url, data=data, media_type=media_type)
    if data is None:
        raise RequestError(
            f"{where} must be an image's http(s) URL or a base64 data URL.",
            code=ErrorCode.INVALID_VALUE,
            param=where,
        )
    return Document(data=data, media_type=media_type, filename=item.name)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


class DataStreamEncoder:
    """One message as data stream lines."""

    headers = (
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-vercel-ai-data-stream", b"v1"),
        *STREAM_HEADERS,
    )
    heartbeat = b"\n"

    def __init__(self, meta: StreamMeta) -> None:
        self._message_id = f"msg-{meta.request_id}"
        self._is_open = False
        self._finish = "unknown"
        self._calls: dict[int, tuple[str, str, list[str]]] = {}

    def encode(self, frame: Frame) -> bytes:
        """Lines for one frame."""
        return b"".join([self._encode_event(event) for event in frame.events])

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, 0) | RefusalDelta(text, 0):
                return self._open() + _line(b"0", text)
            case ReasoningDelta(text, 0):
                return self._open() + _line(b"g", text)
            case ReasoningEnd(signature, 0):
                return _line(b"j", {"signature": signature}) if signature else b""
            case RedactedReasoning(data, 0):
                return self._open() + _line(b"i", {"data": data})
            case ToolCallStart(index, identity, name, 0):
                self._calls[index] = (identity, name, [])
                return self._open() + _line(b"b", {"toolCallId": identity, "toolName": name})
            case ToolCallDelta(index, arguments, 0):
                identity, _, fragments = self._calls[index]
                fragments.append(arguments)
                return _line(b"c", {"toolCallId": identity, "argsTextDelta": arguments})
            case ToolCallEnd(index, 0):
                return self._end_call(index)
            case MessageStart():
                return self._open()
            case Finish(reason, 0):
                self._finish = _FINISH[reason.unified]
        return b""

    def _open(self) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        return _line(b"f", {"messageId": self._message_id})

    def _end_call(self, index: int) -> bytes:
        identity, name, fragments = self._calls.pop(index)
        try:
            arguments = _OBJECT.decode("".join(fragments) or "{}")
        except (msgspec.MsgspecError, RecursionError):
            # The format has no place for arguments that are not an object; the client keeps the call as text deltas.
            arguments = {"_invalid": "".join(fragments)}
        return _line(b"9", {"toolCallId": identity, "toolName": name, "args": arguments})

    def notice(self, notice: Notice) -> bytes:
        """A data part, which ``useChat`` appends to its ``data``; the message has to be open, or it gets another id."""
        return self._open() + _line(b"2", [{"type": f"gateway-{notice.kind}", **notice.fields}])

    def end(self, usage: Usage) -> bytes:
        """The end of the step and of the message; both want numbers."""
        tokens = {"promptTokens": usage.input, "completionTokens": usage.output}
        step = {"finishReason": self._finish, "usage": tokens, "isContinued": False}
        return self._open() + _line(b"e", step) + _line(b"d", {"finishReason": self._finish, "usage": tokens})

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """The reason as data, then an error part: the one thing ``useChat`` shows. The text so far stays."""
        note = {"type": "gateway-cut", "reason": cut.reason, "message": cut.message}
        return self._open() + _line(b"2", [note]) + _line(b"3", cut.message)

    def fail(self, error: GatewayError) -> bytes:
        """An error part; nothing after it is read."""
        return self._open() + _line(b"3", error.message)


def _line(code: bytes, value: Any) -> bytes:
    return code + b":" + msgspec.json.encode(value) + b"\n"
