"""Chat Completions towards clients: chunks, whole answers, errors.

Official clients concatenate what they are sent: the role goes out once per choice, a call's id and name once per call,
usage last and only on request, and the stream ends with exactly ``data: [DONE]`` (none after an error).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.canonical.errors import GatewayError
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
    UsageReport,
)
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.protocols.openai_chat import NAME, incoming
from gateway.protocols.openai_chat.collect import Answer
from gateway.protocols.openai_objects import error_object, error_reply, usage_object
from gateway.protocols.rates import openai_headers
from gateway.protocols.sse import encode_data
from gateway.protocols.wire import (
    STREAM_HEADERS,
    Allowance,
    Cut,
    Encoder,
    Headers,
    Notice,
    Reply,
    StreamMeta,
)

_DONE = b"data: [DONE]\n\n"
_CHUNK = "chat.completion.chunk"

_FINISH = {
    Unified.STOP: "stop",
    Unified.LENGTH: "length",
    Unified.TOOL_CALLS: "tool_calls",
    Unified.CONTENT_FILTER: "content_filter",
    Unified.ERROR: "stop",
    Unified.OTHER: "stop",
}


class _Name(msgspec.Struct, frozen=True):
    """What all chunks of a stream have in common."""

    id: str = ""
    model: str | None = None
    created: int = 0


_NAME = msgspec.json.Decoder(_Name)


class OpenAiChatServer:
    """OpenAI's Chat Completions, streamed or whole."""

    name = NAME

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named in the body."""
        return incoming.decode(body)

    def encoder(self, request: Request, meta: StreamMeta) -> Encoder:
        """Chunks where the client streams, else one whole answer."""
        include_usage = request.include_usage or not request.stream
        chunks = ChunkEncoder(meta, include_usage=include_usage, model=request.model)
        return chunks if request.stream else AnswerEncoder(chunks)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """OpenAI's envelope; SDKs choose their error class by the status and read ``code``."""
        return error_reply(error)


class ChunkEncoder:
    """One stream of chunks."""

    headers = ((b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS)
    heartbeat = b": keep-alive\n\n"

    def __init__(self, meta: StreamMeta, *, include_usage: bool, model: str = "") -> None:
        """``model`` is named where the provider names none."""
        self.wants_notices = meta.wants_notices
        self._is_native = meta.wire == NAME
        self._include_usage = include_usage
        self._usage_sent = False
        self._id = f"chatcmpl-{meta.request_id}"
        self._created = meta.created
        self._model = model
        self._started: set[int] = set()
        self._finished: set[int] = set()
        # Reasoning that is being shown, by choice: kept whole, since its signature belongs to the whole.
        self._blocks: dict[int, list[str]] = {}
        self._details = 0
        # Calls that have no arguments yet, as (choice, index): clients read theirs as JSON, and an empty text is none.
        self._bare: set[tuple[int, int]] = set()
        # Notices that wait for the first frame, and whether the stream has the id that they must share with it.
        self._held: list[Notice] = []
        self._is_named = False

    def encode(self, frame: Frame) -> bytes:
        """The provider's own frame where it can pass, else chunks of our own."""
        raw = frame.raw
        if frame.is_plain and self._is_native and raw is not None and not self._held:
            return raw
        if raw is None or not self._is_native:
            return b"".join([self._encode_event(event) for event in frame.events])
        for event in frame.events:
            kind = type(event)
            if kind is TextDelta and not event.choice:  # type: ignore[attr-defined]
                continue
            if kind is UsageReport:
                if not self._include_usage:
                    return b""
                self._usage_sent = True
            else:
                self._follow(event)
        return raw if not self._held else self._release_before(frame, raw) + raw

    def _follow(self, event: Event) -> None:
        if isinstance(event, MessageStart):
            self._id = event.id or self._id
            self._model = event.model or self._model
            self._created = event.created
            self._started.add(0)
            self._is_named = bool(event.id)
            return
        choice: int = event.choice  # type: ignore[attr-defined]
        self._started.add(choice)
        if isinstance(event, ToolCallDelta):
            self._bare.discard((choice, event.index))
        if isinstance(event, Finish):
            self._finished.add(choice)

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case MessageStart():
                self._follow(event)
                self._is_named = True  # by us, where the provider has no name for it
                self._started.clear()
                return self._release() + self._open(0)
            case TextDelta(text, choice):
                return self._delta(choice, {"content": text})
            case ReasoningDelta(text, choice):
                self._blocks.setdefault(choice, []).append(text)
                return self._delta(choice, {"reasoning_content": text})
            case ReasoningEnd(signature, choice):
                return self._end_reasoning(signature, choice)
            case RedactedReasoning(data, choice):
                return self._detail(choice, {"type": "reasoning.encrypted", "data": data})
            case RefusalDelta(text, choice):
                return self._delta(choice, {"refusal": text})
            case Finish(reason, choice):
                opened = self._open(choice)
                self._finished.add(choice)
                return opened + self._chunk([_choice(choice, {}, _FINISH[reason.unified])])
            case _:
                return self._encode_call(event)

    def _encode_call(self, event: Event) -> bytes:
        match event:
            case ToolCallStart(index, identity, name, choice):
                self._bare.add((choice, index))
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": identity, "type": "function", "function": function}
                return self._delta(choice, {"tool_calls": [call]})
            case ToolCallDelta(index, arguments, choice):
                self._bare.discard((choice, index))
                return self._delta(choice, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case ToolCallEnd(index, choice) if (choice, index) in self._bare:
                return self._encode_call(ToolCallDelta(index, "{}", choice))
            case _:
                return b""

    def _open(self, choice: int) -> bytes:
        if choice in self._started:
            return b""
        self._started.add(choice)
        return self._chunk([_choice(choice, {"role": "assistant", "content": "", "refusal": None})])

    def _delta(self, choice: int, delta: dict[str, Any]) -> bytes:
        return self._open(choice) + self._chunk([_choice(choice, delta)])

    def _end_reasoning(self, signature: str, choice: int) -> bytes:
        text = "".join(self._blocks.pop(choice, ()))
        if not signature:
            return b""
        return self._detail(choice, {"type": "reasoning.text", "text": text, "signature": signature})

    def _detail(self, choice: int, detail: dict[str, Any]) -> bytes:
        """What a client must send back unchanged for the reasoning to be replayed to its provider."""
        detail["index"] = self._details
        self._details += 1
        return self._delta(choice, {"reasoning_details": [detail]})

    def _chunk(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        chunk = {
            "id": self._id,
            "object": _CHUNK,
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **extra,
        }
        if self._include_usage and "usage" not in extra:
            chunk["usage"] = None
        return encode_data(msgspec.json.encode(chunk))

    def notice(self, notice: Notice) -> bytes:
        """A chunk without choices, where such were asked for: clients that index ``choices[0]`` fail on it.

        It waits until the id of the stream is known, since openai-node takes another id for another answer. After
        the usage it would come too late: openai-python keeps the usage of the last chunk, even if that has none.
        """
        if not self.wants_notices or self._usage_sent:
            return b""
        self._held.append(notice)
        return self._release() if self._is_named else b""

    def _release_before(self, frame: Frame, raw: bytes) -> bytes:
        """The notices that waited, once the stream has its id; Azure gives it with the second frame."""
        if not self._is_named:
            name = _name(raw)
            if name is None and any(type(event) is MessageStart for event in frame.events):
                return b""
            # A stream that has none by then never has one, and ours disturbs nobody.
            self._is_named = True
            if name is not None:
                self._id, self._model, self._created = name.id, name.model or self._model, name.created
        return self._release()

    def _release(self) -> bytes:
        held, self._held = self._held, []
        return b"".join([self._chunk([], x_gateway=notice.fields) for notice in held])

    def _usage_chunk(self, usage: Usage) -> bytes:
        if not self._include_usage or self._usage_sent:
            return b""
        self._usage_sent = True
        return self._chunk([], usage=usage_object(usage))

    def end(self, usage: Usage) -> bytes:
        """Usage where it was asked for and has not passed yet, and the terminator."""
        return self._release() + self._usage_chunk(usage) + _DONE

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """``finish_reason: length`` for every choice that is still open, with the reason beside it."""
        note = {"outcome": "cut", "reason": cut.reason, "message": cut.message}
        opened = b"" if self._started else self._open(0)
        choices = [_choice(choice, {}, "length") for choice in sorted(self._started - self._finished)]
        return self._release() + opened + self._chunk(choices, x_gateway=note) + self.end(usage)

    def fail(self, error: GatewayError) -> bytes:
        """An error chunk; both official clients raise on it."""
        return self._release() + encode_data(msgspec.json.encode({"error": error_object(error)}))


def _name(raw: bytes) -> _Name | None:
    """What a provider's frame calls its stream, where it does."""
    try:
        name = _NAME.decode(raw.removeprefix(b"data: "))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return name if name.id else None


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


class AnswerEncoder:
    """Collects the chunks of a stream into one whole answer."""

    headers = ((b"content-type", b"application/json"),)
    heartbeat = b""

    def __init__(self, chunks: ChunkEncoder) -> None:
        self._chunks = chunks
        self._answer = Answer()

    def encode(self, frame: Frame) -> bytes:
        """Nothing reaches the client before the end."""
        if frame.is_plain:
            delta: TextDelta = frame.events[0]  # type: ignore[assignment]
            text = self._answer.texts.get(delta.choice)
            if text is not None:
                text.append(delta.text)
                return b""
        self._answer.take(self._chunks.encode(frame))
        return b""

    def notice(self, notice: Notice) -> bytes:
        """Into the answer's ``x_gateway``, where such were asked for."""
        if self._chunks.wants_notices:
            self._answer.add_event(notice.fields)
        return b""

    def end(self, usage: Usage) -> bytes:
        """The whole answer."""
        self._answer.take(self._chunks.end(usage))
        return self._answer.encode()

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """What there is of the answer, marked as cut."""
        self._answer.take(self._chunks.cut(cut, usage))
        return self._answer.encode()

    def fail(self, error: GatewayError) -> bytes:
        """Not reached: nothing was sent, so an error still is an HTTP answer."""
        return b""
