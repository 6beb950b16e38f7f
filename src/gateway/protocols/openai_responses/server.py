"""Responses towards clients: events, whole answers, errors.

Every event has a number, one more than the last, and the text of an item is told three times: piece by piece, whole,
and within the item. Official helpers want ``response.created`` first and every item announced before its content;
there is no terminator, ``response.completed``, ``.incomplete`` or ``.failed`` is the end.
Reference: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import time
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
)
from gateway.canonical.request import Request
from gateway.canonical.usage import Usage
from gateway.protocols.openai_objects import error_object, error_reply
from gateway.protocols.openai_responses import NAME, incoming
from gateway.protocols.openai_responses.collect import (
    Answer,
    CallItem,
    Item,
    ItemStatus,
    MessageItem,
    PartKind,
    ReasoningItem,
    Storage,
    TextPart,
)
from gateway.protocols.openai_responses.items import seal_redacted, seal_signature
from gateway.protocols.openai_responses.namespaces import flat_names_of
from gateway.protocols.rates import openai_headers
from gateway.protocols.sse import encode_event
from gateway.protocols.wire import STREAM_HEADERS, Allowance, Cut, Headers, Notice, Reply, StreamMeta

_INCOMPLETE = {Unified.LENGTH: "max_output_tokens", Unified.CONTENT_FILTER: "content_filter"}
_PROVIDER_GAVE_UP = {"code": "server_error", "message": "The provider ended the answer with an error."}
# The few codes that a failed response may have; the event before it has the precise one.
_FAILED = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}
_ALONE = Storage()


class OpenAiResponsesServer:
    """OpenAI's Responses, streamed or whole; kept for a while unless ``store`` is false.

    Nothing is kept here: ``storage`` is what the answer says of that.
    """

    name = NAME

    def __init__(self, storage: Storage = _ALONE) -> None:
        self._storage = storage

    def decode_request(self, body: bytes, query: Mapping[str, str]) -> Request:
        """The model is named in the body."""
        return incoming.decode(body)

    def encoder(self, request: Request, meta: StreamMeta) -> "EventEncoder":
        """Events where the client streams, else one whole response."""
        return (EventEncoder if request.stream else WholeEncoder)(request, meta, self._storage)

    def rate_headers(self, standing: list[Allowance]) -> Headers:
        """``x-ratelimit-*``, as OpenAI's clients read them."""
        return openai_headers(standing)

    def encode_error(self, error: GatewayError) -> Reply:
        """OpenAI's envelope; SDKs choose their error class by the status and read ``code``."""
        return error_reply(error)


class EventEncoder:
    """One stream of events. ``final`` is the response object that was told at its end, ``None`` before."""

    headers: Headers = ((b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS)
    heartbeat = b": keep-alive\n\n"

    def __init__(self, request: Request, meta: StreamMeta, storage: Storage = _ALONE) -> None:
        self.final: dict[str, Any] | None = None
        self._wants_notices = meta.wants_notices
        self._answer = Answer(request, meta.stream_id or meta.request_id, meta.created, storage)
        self._names = flat_names_of(request.raw.get("tools"))
        self._sequence = 0
        self._is_open = False
        self._unified = Unified.STOP
        # What still grows: one message or block of reasoning at a time, and calls by their index beside them.
        self._message: MessageItem | None = None
        self._part: TextPart | None = None
        self._reasoning: ReasoningItem | None = None
        self._calls: dict[int, CallItem] = {}
        self._held: list[Notice] = []

    def encode(self, frame: Frame) -> bytes:
        """Events for one frame. An answer that ran out of room says so of the item it was in."""
        events = frame.events
        if len(events) == 1 and type(events[0]) is TextDelta and not self._held:  # as most are
            delta = events[0]
            return b"" if delta.choice else self._text("output_text", delta.text)
        for event in events:
            if type(event) is Finish and not event.choice:
                self._unified = event.reason.unified
        told = [self._encode_event(event) for event in frame.events]
        return b"".join(told) + (self._release() if self._held else b"")

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, 0):
                return self._text("output_text", text)
            case RefusalDelta(text, 0):
                return self._text("refusal", text)
            case ReasoningDelta(text, 0):
                return self._think(text)
            case ReasoningEnd(signature, 0):
                return self._end_thought(seal_signature(signature) if signature else None)
            case RedactedReasoning(data, 0):
                return self._close_text() + self._end_thought(None) + self._end_thought(seal_redacted(data))
            case MessageStart(model=model, created=created) if not self._is_open:
                self._answer.model = model or self._answer.model
                self._answer.created = created
                return self._open()
            case Finish(choice=0):
                return self._close_all()
        return self._encode_call(event)

    def _encode_call(self, event: Event) -> bytes:
        match event:
            case ToolCallStart(index, identity, name, 0):
                return self._start_call(index, identity, name)
            case ToolCallDelta(index, arguments, 0):
                return self._extend_call(self._calls[index], arguments)
            case ToolCallEnd(index, 0):
                is_last = self._calls[index].output_index == self._answer.count - 1
                return self._close_call(index, self._status if is_last else "completed")
        return b""

    def _tell(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return encode_event(kind, msgspec.json.encode(event))

    def _open(self) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        return self._announce()

    def _announce(self) -> bytes:
        created = self._tell("response.created", response=self._answer.fields("in_progress"))
        begun = self._tell("response.in_progress", response=self._answer.fields("in_progress"))
        return created + begun

    @property
    def _status(self) -> ItemStatus:
        return "incomplete" if self._unified in _INCOMPLETE else "completed"

    def _add(self, item: Item) -> bytes:
        return self._tell("response.output_item.added", output_index=item.output_index, item=item.fields("in_progress"))

    def _finish(self, item: Item, status: ItemStatus) -> bytes:
        fields = self._answer.finish(item, status)
        return self._tell("response.output_item.done", output_index=item.output_index, item=fields)

    # What the model says.

    def _text(self, kind: PartKind, text: str) -> bytes:
        message, part = self._message, self._part
        opened = b""
        if message is None or part is None or part.kind != kind:
            opened = self._open_text(kind)
            message, part = self._message, self._part
        assert message is not None and part is not None
        part.pieces.append(text)
        return opened + self._tell_part(message, part, "delta", delta=text)

    def _open_text(self, kind: PartKind) -> bytes:
        out = self._open() + self._close_thought()
        if self._message is None:
            self._message = MessageItem(self._answer.next_place("msg"))
            out += self._add(self._message)
        else:
            out += self._close_part()
        part = self._part = self._message.open_part(kind)
        place = {"item_id": self._message.id, "output_index": self._message.output_index}
        added = self._tell("response.content_part.added", **place, content_index=part.index, part=part.fields())
        return out + added

    def _tell_part(self, message: MessageItem, part: TextPart, step: str, **fields: Any) -> bytes:
        if part.kind == "output_text":
            fields["logprobs"] = []
        return self._tell(
            f"response.{part.kind}.{step}",
            item_id=message.id,
            output_index=message.output_index,
            content_index=part.index,
            **fields,
        )

    def _close_part(self) -> bytes:
        message, part = self._message, self._part
        if message is None or part is None:
            return b""
        self._part = None
        whole = {"refusal" if part.kind == "refusal" else "text": part.text}
        place = {"item_id": message.id, "output_index": message.output_index, "content_index": part.index}
        done = self._tell_part(message, part, "done", **whole)
        return done + self._tell("response.content_part.done", **place, part=part.fields())

    def _close_text(self, status: ItemStatus = "completed") -> bytes:
        if self._message is None:
            return b""
        closed = self._close_part() + self._finish(self._message, status)
        self._message = None
        return closed

    # What it thinks: shown as a summary, which is what clients of the format show.

    def _think(self, text: str) -> bytes:
        item, opened = self._reasoning, b""
        if item is None:
            opened = self._open() + self._close_text()
            item = self._reasoning = ReasoningItem(self._answer.next_place("rs"))
            opened += self._add(item) + self._tell_summary(item, "part.added", part=_summary(""))
        item.pieces.append(text)
        return opened + self._tell_summary(item, "text.delta", delta=text)

    def _tell_summary(self, item: ReasoningItem, step: str, **fields: Any) -> bytes:
        return self._tell(
            f"response.reasoning_summary_{step}",
            item_id=item.id,
            output_index=item.output_index,
            summary_index=0,
            **fields,
        )

    def _end_thought(self, sealed: str | None) -> bytes:
        """The end of a block, which may have been nothing but sealed."""
        opened = b""
        if self._reasoning is None:
            if sealed is None:
                return b""
            opened = self._open() + self._close_text()
            self._reasoning = ReasoningItem(self._answer.next_place("rs"))
            opened += self._add(self._reasoning)
        self._reasoning.sealed = sealed
        return opened + self._close_thought()

    def _close_thought(self, status: ItemStatus = "completed") -> bytes:
        item = self._reasoning
        if item is None:
            return b""
        self._reasoning = None
        out = b""
        if item.pieces:
            out = self._tell_summary(item, "text.done", text=item.text)
            out += self._tell_summary(item, "part.done", part=_summary(item.text))
        return out + self._finish(item, status)

    # What it calls.

    def _start_call(self, index: int, identity: str, name: str) -> bytes:
        closed = self._open() + self._close_thought() + self._close_text()
        item = self._calls[index] = CallItem(self._answer.next_place("fc"), identity, self._names.own(name))
        return closed + self._add(item)

    def _extend_call(self, item: CallItem, arguments: str) -> bytes:
        item.pieces.append(arguments)
        return self._tell(
            "response.function_call_arguments.delta",
            item_id=item.id,
            output_index=item.output_index,
            delta=arguments,
        )

    def _close_call(self, index: int, status: ItemStatus) -> bytes:
        item = self._calls.pop(index)
        done = self._tell(
            "response.function_call_arguments.done",
            item_id=item.id,
            output_index=item.output_index,
            name=item.name,
            arguments=item.fields(status)["arguments"],
        )
        return done + self._finish(item, status)

    def _close_all(self, status: ItemStatus | None = None) -> bytes:
        status = status or self._status
        closed = self._close_thought(status) + self._close_text(status)
        return closed + b"".join([self._close_call(index, status) for index in sorted(self._calls)])

    # Notices and ends.

    def notice(self, notice: Notice) -> bytes:
        """An event of the gateway's own, where such were asked for.

        It goes out with the next frame: it may be put before what was encoded already, and events are numbered.
        """
        if self._wants_notices:
            self._held.append(notice)
        return b""

    def _release(self) -> bytes:
        if not self._is_open:
            return b""
        held, self._held = self._held, []
        return b"".join([self._tell("gateway.notice", x_gateway=notice.fields) for notice in held])

    def end(self, usage: Usage) -> bytes:
        """The whole response, with what it used."""
        closed = self._open() + self._close_all() + self._release()
        return closed + self._tell_end(*self._ended(usage))

    def _ended(self, usage: Usage) -> tuple[str, dict[str, Any]]:
        reason = _INCOMPLETE.get(self._unified)
        if reason is not None:
            return "incomplete", {"usage": usage, "incomplete_details": {"reason": reason}}
        if self._unified is Unified.ERROR:
            return "failed", {"usage": usage, "error": _PROVIDER_GAVE_UP}
        return "completed", {"usage": usage, "completed_at": int(time.time())}

    def _tell_end(self, status: str, fields: dict[str, Any]) -> bytes:
        self.final = self._answer.fields(status, **fields)
        return self._tell(f"response.{status}", response=self.final)

    def so_far(self) -> dict[str, Any] | None:
        """The response as the client has seen it, as cancelled; ``None`` where it has not begun or is whole.

        What was said is in it to the last word. A call of which only a part came is not: nobody could answer it.
        """
        if not self._is_open or self.final is not None:
            return None
        growing = [item.fields("incomplete") for item in (self._reasoning, self._message) if item is not None]
        told = self._answer.fields("cancelled")
        return {**told, "output": [*told["output"], *growing]}

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """The response as far as it came: incomplete, with the reason beside it."""
        closed = self._open() + self._close_all("incomplete") + self._release()
        details = {"reason": _INCOMPLETE[Unified.LENGTH]}
        note = {"outcome": "cut", "reason": cut.reason, "message": cut.message}
        return closed + self._tell_end("incomplete", {"usage": usage, "incomplete_details": details, "x_gateway": note})

    def fail(self, error: GatewayError) -> bytes:
        """The error, then the response as failed. Open items stay open: a call that was closed would be run."""
        told = error_object(error)
        failed = {"code": _FAILED.get(told["type"], "server_error"), "message": error.message}
        return (
            self._open()
            + self._release()
            + self._tell("error", error=told)
            + self._tell_end("failed", {"error": failed, "x_gateway": {"outcome": "failed", "reason": told["code"]}})
        )


def _summary(text: str) -> dict[str, str]:
    return {"type": "summary_text", "text": text}


class WholeEncoder(EventEncoder):
    """The same, told once: nothing is written before the end, and only the response itself."""

    headers = ((b"content-type", b"application/json"),)
    heartbeat = b""

    def __init__(self, request: Request, meta: StreamMeta, storage: Storage = _ALONE) -> None:
        super().__init__(request, meta, storage)
        self._events: list[dict[str, Any]] = []

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return b""

    def _tell_end(self, status: str, fields: dict[str, Any]) -> bytes:
        if self._events:
            fields["x_gateway"] = {**fields.get("x_gateway", {}), "events": self._events}
        self.final = self._answer.fields(status, **fields)
        return msgspec.json.encode(self.final)

    def so_far(self) -> dict[str, Any] | None:
        """Nothing: the client has seen none of it, and does not know its id."""
        return None

    def notice(self, notice: Notice) -> bytes:
        """Into the response's ``x_gateway``, where such were asked for."""
        if self._wants_notices:
            self._events.append(notice.fields)
        return b""

    def fail(self, error: GatewayError) -> bytes:
        """Not reached: nothing was sent, so an error still is an HTTP answer."""
        return b""
