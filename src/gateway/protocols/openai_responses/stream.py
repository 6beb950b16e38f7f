"""What a provider of Responses answers, as canonical events: its stream, and a whole response where it did not stream.

The end is ``response.completed``, ``.incomplete`` or ``.failed``; an ``error`` event may come before the last. Events
and items that are newer than we are, or that only the provider has a use for, are passed over; what is broken becomes
a ``Failure``. Nothing here raises. Frames carry no bytes: in a response everything refers to ids and numbers, and
clients get those of the gateway.
Format: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.canonical.errors import ProviderError, ProviderProtocolError, StreamTruncated
from gateway.canonical.events import Event, Failure, Frame
from gateway.protocols.openai_errors import provider_error
from gateway.protocols.openai_responses.content import ResponseContent, ResponseShape
from gateway.protocols.sse import EventTooLarge, SseDecoder

# What a payload can make msgspec raise: DecodeError and UnicodeDecodeError are ValueErrors, deep nesting is the other.
_UNREADABLE = (ValueError, RecursionError)
_DONE = b"[DONE]"
_NULL = b"null"

_BEGINNINGS = frozenset(("response.created", "response.queued", "response.in_progress"))
_ENDS = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))
_ITEMS = frozenset(("response.output_item.added", "response.output_item.done"))
_SHOWN = {"response.reasoning_summary_text.delta": "summary", "response.reasoning_text.delta": "text"}
_DELTAS = frozenset(
    ("response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta", *_SHOWN)
)
_KNOWN = _BEGINNINGS | _ENDS | _ITEMS | _DELTAS


class _WireEvent(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    delta: str | None = None
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    item: msgspec.Raw = msgspec.Raw(_NULL)
    response: msgspec.Raw = msgspec.Raw(_NULL)
    error: msgspec.Raw = msgspec.Raw(_NULL)


class _Kind(msgspec.Struct, frozen=True):
    type: str = ""


_event = msgspec.json.Decoder(_WireEvent).decode
_kind = msgspec.json.Decoder(_Kind).decode
_response = msgspec.json.Decoder(ResponseShape, strict=False).decode
_object = msgspec.json.Decoder(dict[str, Any]).decode
_any = msgspec.json.Decoder().decode


class ResponsesDecoder:
    """The state of one stream. A ``StreamDecoder``."""

    __slots__ = ("_content", "_is_closed", "_provider", "_sse", "is_done")

    def __init__(self, provider: str, *, created: int) -> None:
        self.is_done = False
        self._provider = provider
        self._sse = SseDecoder()
        self._content = ResponseContent(created)
        self._is_closed = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes as they came; after the end or a failure they are passed over."""
        if self._is_closed:
            return []
        try:
            wire_events = self._sse.feed(chunk)
        except EventTooLarge:
            return [self._broken("an event larger than the gateway accepts")]
        return self._frames(event.data for event in wire_events)

    def end_of_bytes(self) -> list[Frame]:
        """The connection closed; without the response's end something of it is missing."""
        if self._is_closed:
            return []
        try:
            # Half a payload is what a truncated stream ends in, no fault of the provider's format.
            frames = self._frames(event.data for event in self._sse.flush() if _is_json(event.data))
        except EventTooLarge:
            frames = []
        if not self._is_closed:
            error = StreamTruncated("The provider's stream ended before it was complete.", provider=self._provider)
            frames.append(self._failure(error))
        return frames

    def _frames(self, payloads: Iterable[bytes]) -> list[Frame]:
        frames: list[Frame] = []
        for payload in payloads:
            frame = self._frame(payload)
            if frame.events:
                frames.append(frame)
            if self._is_closed:
                break
        return frames

    def _frame(self, payload: bytes) -> Frame:
        try:
            wire = _event(payload)
            if wire.type in _DELTAS:
                return Frame(tuple(self._delta(wire)))
            return self._rare_frame(wire, payload)
        except _UNREADABLE:
            return Frame(()) if _is_unknown(payload) else self._broken("an event that is not of its format")

    def _delta(self, wire: _WireEvent) -> list[Event]:
        text, content = wire.delta, self._content
        if not text:
            return []
        match wire.type:
            case "response.output_text.delta":
                events = content.say(wire.output_index, text)
            case "response.refusal.delta":
                events = content.say(wire.output_index, text, is_refusal=True)
            case "response.function_call_arguments.delta":
                events = content.argue(wire.output_index, text)
            case kind:
                part = wire.summary_index or wire.content_index
                events = content.think(wire.output_index, text, _SHOWN[kind], part)
        return [*content.start(), *events]

    def _rare_frame(self, wire: _WireEvent, payload: bytes) -> Frame:
        content = self._content
        match wire.type:
            case "response.output_item.added":
                return Frame((*content.start(), *content.open_item(wire.output_index, bytes(wire.item))))
            case "response.output_item.done":
                return Frame((*content.start(), *content.close_item(wire.output_index, bytes(wire.item))))
            case kind if kind in _BEGINNINGS:
                return Frame(tuple(content.start(_response(wire.response))))
            case kind if kind in _ENDS:
                return self._end(kind, _response(wire.response))
            case kind if kind == "error" or bytes(wire.error) != _NULL:
                # OpenAI nests what went wrong, the SDKs' own types do not.
                error = _any(wire.error) if bytes(wire.error) != _NULL else _object(payload)
                return self._failure(_vendor_error(error, self._provider))
        return Frame(())

    def _end(self, kind: str, response: ResponseShape) -> Frame:
        if kind in ("response.failed", "response.cancelled"):
            return self._failure(_vendor_error(response.error, self._provider))
        events = self._content.finish(msgspec.structs.replace(response, status=kind.removeprefix("response.")))
        self.is_done = self._is_closed = True
        return Frame(tuple(events))

    def _broken(self, what: str) -> Frame:
        return self._failure(ProviderProtocolError(f"The provider sent {what}.", provider=self._provider))

    def _failure(self, error: ProviderError) -> Frame:
        self._is_closed = True
        return Frame((Failure(error),))


def decode_response(body: bytes, provider: str, *, created: int) -> list[Frame]:
    """A whole response, one frame for each step; a ``Failure`` where it is none."""
    content = ResponseContent(created)
    try:
        response = _response(body)
        if response.error or response.status in ("failed", "cancelled"):
            return [Frame((Failure(_vendor_error(response.error, provider)),))]
        if response.output is None or response.status not in ("completed", "incomplete"):
            raise ValueError("no response, or one that goes on")
        steps = [content.start(response), content.whole_items(response), content.finish(response)]
    except _UNREADABLE:
        broken = ProviderProtocolError("The provider's answer is not in its own format.", provider=provider)
        return [Frame((Failure(broken),))]
    return [Frame(tuple(events)) for events in steps if events]


def _vendor_error(error: Any, provider: str) -> ProviderError:
    fields = dict(error) if isinstance(error, dict) else {"message": error}
    if fields.get("type") == "error":  # the flat kind: its type is the event's, and says nothing of what went wrong
        del fields["type"]
    return provider_error(None, fields, provider)


def _is_unknown(payload: bytes) -> bool:
    """Whether a payload that fits no shape is only newer than we are, or another format's end."""
    if payload.strip() == _DONE:
        return True
    try:
        kind = _kind(payload).type
    except _UNREADABLE:
        return False
    return kind not in _KNOWN and kind not in ("", "error")


def _is_json(payload: bytes) -> bool:
    try:
        _any(payload)
    except _UNREADABLE:
        return False
    return True
