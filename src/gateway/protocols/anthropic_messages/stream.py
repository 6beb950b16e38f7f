"""What Anthropic answers, as canonical events: its stream, and a whole message where it did not stream.

Each payload is decoded once, into one struct chosen by its ``type``. What a newer API adds (events, blocks, deltas)
makes a frame without canonical events: only clients of the same format see it. What is broken becomes a ``Failure``.
Nothing here raises.
Format: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import re
from collections.abc import Iterable

import msgspec

from gateway.canonical.errors import ProviderError, ProviderProtocolError, StreamTruncated
from gateway.canonical.events import Failure, Frame, MessageStart
from gateway.protocols.anthropic_messages.content import BLOCK_KINDS, MessageContent
from gateway.protocols.anthropic_messages.errors import decode_stream_error
from gateway.protocols.anthropic_messages.shapes import (
    AnyStreamEvent,
    BlockDeltaEvent,
    BlockStartEvent,
    BlockStopEvent,
    ErrorEvent,
    InnerKindShape,
    KindShape,
    MessageDeltaEvent,
    MessageShape,
    MessageStartEvent,
    MessageStopEvent,
    PingEvent,
)
from gateway.protocols.sse import EventTooLarge, SseDecoder, encode_event

# What a payload can make msgspec raise: DecodeError and UnicodeDecodeError are ValueErrors, deep nesting is the other.
_UNREADABLE = (ValueError, RecursionError)

_DONE = b"[DONE]"
_EVENT_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_EVENT_KINDS = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    )
)
_DELTA_KINDS = frozenset(("text_delta", "input_json_delta", "thinking_delta", "signature_delta"))

_event = msgspec.json.Decoder(AnyStreamEvent).decode
_kind = msgspec.json.Decoder(KindShape).decode
_inner_kind = msgspec.json.Decoder(InnerKindShape).decode
_message = msgspec.json.Decoder(MessageShape).decode
_raw_json = msgspec.json.Decoder(msgspec.Raw).decode


class MessagesDecoder:
    """The state of one stream. A ``StreamDecoder``."""

    __slots__ = ("_content", "_is_closed", "_is_started", "_provider", "_sse", "is_done")

    def __init__(self, provider: str, *, created: int) -> None:
        self.is_done = False
        self._provider = provider
        self._sse = SseDecoder()
        self._content = MessageContent(created)
        self._is_started = False
        self._is_closed = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take bytes as they came; after the end or a failure they are passed over."""
        if self._is_closed:
            return []
        try:
            wire_events = self._sse.feed(chunk)
        except EventTooLarge:
            return [self._fail("The provider sent an event that is too large.")]
        return self._frames(event.data for event in wire_events)

    def end_of_bytes(self) -> list[Frame]:
        """The connection closed. Once ``Finish`` was seen nothing of the answer can be missing."""
        if self._is_closed:
            return []
        try:
            # Half a payload is what a truncated stream ends in, no fault of the provider's format.
            frames = self._frames(event.data for event in self._sse.flush() if _is_json(event.data))
        except EventTooLarge:
            frames = []
        if not self._is_closed and not self._content.is_finished:
            error = StreamTruncated("The provider's stream ended before the answer did.", provider=self._provider)
            frames.append(self._failure(error))
        self._is_closed = True
        return frames

    def _frames(self, payloads: Iterable[bytes]) -> list[Frame]:
        frames: list[Frame] = []
        for payload in payloads:
            frame = self._frame(payload)
            # A frame of neither events nor bytes is one more to pass through every room.
            if frame is not None and (frame.events or frame.raw is not None):
                frames.append(frame)
            if self._is_closed:
                break
        return frames

    def _frame(self, payload: bytes) -> Frame | None:
        try:
            wire = _event(payload)
            if type(wire) is BlockDeltaEvent:
                event = self._content.extend_block(wire.index, wire.delta)
                return Frame((event,) if event is not None else (), self._raw("content_block_delta", payload))
            return self._rare_frame(wire, payload)
        except _UNREADABLE:
            if _is_unknown(payload):
                return self._unknown_frame(payload)
            return self._fail("The provider sent an event that is not in its own format.")

    def _rare_frame(self, wire: AnyStreamEvent, payload: bytes) -> Frame | None:
        content = self._content
        match wire:
            case MessageStartEvent():
                return self._start(wire, payload)
            case BlockStartEvent():
                events = content.open_block(wire.index, wire.content_block)
                return Frame(tuple(events), self._raw("content_block_start", payload))
            case BlockStopEvent():
                return Frame(tuple(content.close_block(wire.index)), self._raw("content_block_stop", payload))
            case MessageDeltaEvent():
                events = [*content.report(wire.usage), *content.finish(wire.delta.stop_reason or None)]
                # anthropic-python needs a number of output tokens here.
                is_whole = wire.usage is not None and wire.usage.get("output_tokens") is not None
                return Frame(tuple(events), self._raw("message_delta", payload) if is_whole else None)
            case MessageStopEvent():
                return self._stop(payload)
            case PingEvent():
                return Frame((), self._raw("ping", payload))
            case ErrorEvent():
                # No raw: the vendor's text may name its hosts or the gateway's account.
                return self._failure(decode_stream_error(wire.error, self._provider))
            case _:
                return None

    def _start(self, wire: MessageStartEvent, payload: bytes) -> Frame | None:
        events = self._content.start(wire.message)
        for block in wire.message.content or ():
            events += self._content.whole_block(bytes(block))
        if self._is_started:
            # Spliced in by a fallback to another model: the answer goes on, its figures count. Clients of the same
            # format get no second start.
            events = [event for event in events if type(event) is not MessageStart]
            return Frame(tuple(events)) if events else None
        self._is_started = True
        return Frame(tuple(events), self._raw("message_start", payload) if wire.message.usage is not None else None)

    def _stop(self, payload: bytes) -> Frame:
        if not self._is_started:
            return self._fail("The provider's stream ended before it began.")
        self.is_done = self._is_closed = True
        events = self._content.finish_late()
        # A reason that comes this late has to be told in an event of its own.
        return Frame(tuple(events), None if events else self._raw("message_stop", payload))

    def _unknown_frame(self, payload: bytes) -> Frame | None:
        """An event, block or delta that is newer than we are; it bears nothing but its bytes."""
        name = "" if payload.strip() == _DONE else _kind(payload).type
        return Frame((), self._raw(name, payload)) if _EVENT_NAME.fullmatch(name) else None

    def _raw(self, name: str, payload: bytes) -> bytes | None:
        """The event as it is sent on; nothing may come before the message starts.

        Official SDKs drop data without an ``event:`` line, so it is written even where the provider left it out. A line
        end can stand in a payload of several data lines only between tokens: inside strings JSON forbids it.
        """
        if not self._is_started or not _is_utf8(payload):
            return None
        return encode_event(name, payload if b"\n" not in payload else payload.replace(b"\n", b" "))

    def _fail(self, message: str) -> Frame:
        return self._failure(ProviderProtocolError(message, provider=self._provider))

    def _failure(self, error: ProviderError) -> Frame:
        self._is_closed = True
        return Frame((Failure(error),))


def decode_message(body: bytes, provider: str, *, created: int) -> list[Frame]:
    """A whole message: one frame to start, one per block, one to finish; a ``Failure`` where it is none."""
    content = MessageContent(created)
    try:
        if _kind(body).type == "error":
            error = msgspec.json.decode(body, type=ErrorEvent).error
            return [Frame((Failure(decode_stream_error(error, provider)),))]
        message = _message(body)
        if message.content is None:
            raise ValueError("no content")
        batches = [content.start(message), *(content.whole_block(bytes(block)) for block in message.content)]
    except _UNREADABLE:
        broken = ProviderProtocolError("The provider's answer is not in its own format.", provider=provider)
        return [Frame((Failure(broken),))]
    batches.append([*content.report(None), *content.finish_late()])
    return [Frame(tuple(events)) for events in batches if events]


def _is_unknown(payload: bytes) -> bool:
    """Whether a payload that fits no shape is only newer than we are."""
    if payload.strip() == _DONE:
        return True
    try:
        kind = _kind(payload).type
        if kind not in _EVENT_KINDS:
            return True
        inner = _inner_kind(payload)
    except _UNREADABLE:
        return False
    if kind == "content_block_start" and inner.content_block is not None:
        return inner.content_block.type not in BLOCK_KINDS
    return kind == "content_block_delta" and inner.delta is not None and inner.delta.type not in _DELTA_KINDS


def _is_utf8(payload: bytes) -> bool:
    """Of strings that nobody asked for msgspec does not look at the bytes; clients do."""
    if payload.isascii():
        return True
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_json(payload: bytes) -> bool:
    try:
        _raw_json(payload)
    except _UNREADABLE:
        return False
    return True
