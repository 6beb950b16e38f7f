"""Canonical events as Anthropic's: named events of a stream, or one whole message.

Blocks are strictly one after another and counted from 0, so what comes for another block while a call is open has to
wait. The SDKs read nothing without its ``event:`` line, want usage at both ends, and take a stream that just stops for
one that is fine: each ends in ``message_stop`` or ``error``.
Format: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import contextlib
from collections import deque
from typing import Any

import msgspec

from gateway.canonical.errors import GatewayError
from gateway.canonical.events import (
    Event,
    Finish,
    FinishReason,
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
from gateway.canonical.usage import Usage
from gateway.protocols.anthropic_messages.collect import Collected
from gateway.protocols.anthropic_messages.envelope import envelope
from gateway.protocols.anthropic_messages.shapes import NAME
from gateway.protocols.sse import encode_event
from gateway.protocols.wire import STREAM_HEADERS, Cut, Headers, Notice, StreamMeta

_STOP_REASONS = {
    Unified.STOP: "end_turn",
    Unified.LENGTH: "max_tokens",
    Unified.TOOL_CALLS: "tool_use",
    Unified.CONTENT_FILTER: "refusal",
    Unified.ERROR: "end_turn",
    Unified.OTHER: "end_turn",
}
_DELTA = b"event: content_block_delta\n"
_STOP = b"event: message_stop\n"
_EMPTY: dict[str, dict[str, str]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage as Messages spells it: the input leaves out what the cache read and wrote."""
    return {
        "input_tokens": max(0, usage.input - usage.cache_read - usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


class _Started(msgspec.Struct, frozen=True):
    class Block(msgspec.Struct, frozen=True):
        type: str = ""

    index: int = 0
    content_block: Block = Block()


class _Ended(msgspec.Struct, frozen=True):
    class Delta(msgspec.Struct, frozen=True):
        stop_reason: str | None = None

    delta: Delta = Delta()


_STARTED = msgspec.json.Decoder(_Started)
_ENDED = msgspec.json.Decoder(_Ended)


class EventEncoder:
    """One stream of events."""

    heartbeat = encode_event("ping", b'{"type":"ping"}')

    def __init__(self, meta: StreamMeta, model: str) -> None:
        request_id = meta.request_id.encode()
        self.headers: Headers = (
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"request-id", request_id),
            *STREAM_HEADERS,
        )
        self.wants_notices = meta.wants_notices
        self._is_native = meta.wire == NAME
        self._request_id = meta.request_id
        self._input_tokens = meta.input_tokens
        self._model = model
        # How far the message is.
        self._is_started = self._is_ended = False
        self._last = encode_event("message_stop", b'{"type":"message_stop"}')
        self._reason: FinishReason | None = None
        # The open block: its type, "" for none, and its number; afterwards the number is the next one's.
        self._block = ""
        self._index = 0
        # The open call: its number among the calls and its arguments; and what waits for its end.
        self._call = -1
        self._arguments: list[str] = []
        self._is_looked_at = False
        self._waiting: list[Event] = []

    def encode(self, frame: Frame) -> bytes:
        """The provider's own event where it can pass, else events of our own."""
        raw = frame.raw
        if raw is None or not self._is_native:
            return b"".join([self._encode_event(event) for event in frame.events])
        if raw.startswith(_DELTA):
            return raw
        if raw.startswith(_STOP):
            self._last = raw  # what has to be told before it may be missing
            return b""
        self._follow(raw)
        return raw

    def _follow(self, raw: bytes) -> None:
        """Keep account of an event that passes: what is open has to be closed if the stream is cut."""
        name, _, payload = raw.removeprefix(b"event: ").partition(b"\ndata: ")
        with contextlib.suppress(msgspec.MsgspecError):  # newer than we are, in a shape of its own
            self._follow_event(name, payload)

    def _follow_event(self, name: bytes, payload: bytes) -> None:
        match name:
            case b"message_start":
                self._is_started = True
            case b"content_block_start":
                started = _STARTED.decode(payload)
                self._index, self._block = started.index, started.content_block.type
            case b"content_block_stop":
                self._index, self._block = self._index + 1, ""
            case b"message_delta":
                self._is_ended = self._is_ended or bool(_ENDED.decode(payload).delta.stop_reason)

    def _encode_event(self, event: Event) -> bytes:
        match event:
            case MessageStart():
                self._model = event.model or self._model
                return self._start()
            case Finish(reason, 0):
                # Told at the end, together with the usage, which some providers send after it.
                self._reason = reason
                return self._start()
            case UsageReport():
                return b""
        return self._encode_content(event) if self._call < 0 else self._encode_in_turn(deque((event,)))

    def _encode_in_turn(self, events: deque[Event]) -> bytes:
        """Say what belongs to the open call, and let the rest wait until that has ended."""
        out: list[bytes] = []
        while events:
            event = events.popleft()
            is_of_call = isinstance(event, ToolCallDelta | ToolCallEnd) and event.index == self._call
            if self._call < 0 or (is_of_call and isinstance(event, ToolCallDelta)):
                out.append(self._encode_content(event))
            elif is_of_call or self._is_call_complete():
                out.append(self._close_call())
                events.extendleft([] if is_of_call else [event])
                events.extendleft(reversed(self._waiting))
                self._waiting = []
            else:
                self._waiting.append(event)
        return b"".join(out)

    def _encode_content(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, 0) | RefusalDelta(text, 0):
                return self._delta("text", {"type": "text_delta", "text": text}) if text else b""
            case ReasoningDelta(text, 0):
                return self._delta("thinking", {"type": "thinking_delta", "thinking": text}) if text else b""
            case ReasoningEnd(signature, 0):
                return self._end_reasoning(signature)
            case RedactedReasoning(data, 0):
                return self._open({"type": "redacted_thinking", "data": data}) + self._close()
            case ToolCallStart(index, identity, name, 0):
                opened = self._open({"type": "tool_use", "id": identity, "name": name, "input": {}})
                self._call, self._arguments, self._is_looked_at = index, [], False
                return opened
            case ToolCallDelta(index, arguments, 0) if index == self._call and arguments:
                self._arguments.append(arguments)
                self._is_looked_at = False
                return self._delta("tool_use", {"type": "input_json_delta", "partial_json": arguments})
        return b""

    def _is_call_complete(self) -> bool:
        """Whether nothing can be missing from the open call: many providers end their calls all at once, at the end."""
        if self._is_looked_at:
            return False
        self._is_looked_at = True
        try:
            return isinstance(msgspec.json.decode("".join(self._arguments)), dict)
        except (ValueError, RecursionError):
            return False

    def _close_call(self) -> bytes:
        self._call = -1
        return self._close()

    def _end_reasoning(self, signature: str) -> bytes:
        """The signature comes once, last. An empty one is not sent: clients would send it back to be refused."""
        if not signature:
            return self._close() if self._block == "thinking" else b""
        return self._delta("thinking", {"type": "signature_delta", "signature": signature}) + self._close()

    def _start(self) -> bytes:
        if self._is_started:
            return b""
        self._is_started = True
        message: dict[str, Any] = {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Usage(input=self._input_tokens)),
        }
        return _event("message_start", message=message)

    def _delta(self, kind: str, delta: dict[str, Any]) -> bytes:
        opened = b"" if self._block == kind else self._open(_EMPTY[kind])
        return opened + _event("content_block_delta", index=self._index, delta=delta)

    def _open(self, block: dict[str, Any]) -> bytes:
        before = self._start() + self._close()
        self._block = block["type"]
        return before + _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if not self._block:
            return b""
        self._block = ""
        self._index += 1
        return _event("content_block_stop", index=self._index - 1)

    def _close_all(self) -> bytes:
        """Close what is open, and say what waits, call after call."""
        out = self._start()
        while self._call >= 0:
            out += self._encode_in_turn(deque((ToolCallEnd(self._call),)))
        return out + self._close()

    def notice(self, notice: Notice) -> bytes:
        """A ping with more in it: the one event that every client passes over, whatever it holds."""
        if not self.wants_notices:
            return b""
        return encode_event("ping", msgspec.json.encode({"type": "ping", "x_gateway": notice.fields}))

    def end(self, usage: Usage) -> bytes:
        """The stop reason and the usage, as far as they have not passed, and ``message_stop``."""
        return self._close_all() + self._end(usage) + self._last

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """``stop_reason: max_tokens``, with the reason beside it; open blocks are closed first."""
        if self._reason is None:
            self._reason = FinishReason(Unified.LENGTH)
        note = {"outcome": "cut", "reason": cut.reason, "message": cut.message}
        return self._close_all() + self._end(usage, x_gateway=note) + self._last

    def _end(self, usage: Usage, **extra: Any) -> bytes:
        if self._is_ended:
            return b""
        self._is_ended = True
        reason = self._reason or FinishReason(Unified.OTHER)
        # Anthropic's own word where it said one, such as pause_turn.
        stop = (reason.raw if self._is_native else "") or _STOP_REASONS[reason.unified]
        delta = {"stop_reason": stop, "stop_sequence": None}
        return _event("message_delta", delta=delta, usage=usage_object(usage), **extra)

    def fail(self, error: GatewayError) -> bytes:
        """``event: error``; every SDK raises on it. A call stays open: some clients run what looks finished."""
        closed = self._close() if self._block in _EMPTY else b""
        return closed + encode_event("error", msgspec.json.encode(envelope(error, self._request_id)))


def _event(kind: str, **fields: Any) -> bytes:
    return encode_event(kind, msgspec.json.encode({"type": kind, **fields}))


class MessageEncoder:
    """Collects the events of a stream into one whole message."""

    heartbeat = b""

    def __init__(self, events: EventEncoder, meta: StreamMeta) -> None:
        self.headers: Headers = ((b"content-type", b"application/json"), (b"request-id", meta.request_id.encode()))
        self._events = events
        self._message = Collected()

    def encode(self, frame: Frame) -> bytes:
        """Nothing reaches the client before the end."""
        self._message.take(self._events.encode(frame))
        return b""

    def notice(self, notice: Notice) -> bytes:
        """Into the message's ``x_gateway``, where such were asked for."""
        if self._events.wants_notices:
            self._message.add_notice(notice.fields)
        return b""

    def end(self, usage: Usage) -> bytes:
        """The whole message."""
        self._message.take(self._events.end(usage))
        return self._message.encode()

    def cut(self, cut: Cut, usage: Usage) -> bytes:
        """What there is of the message, marked as cut."""
        self._message.take(self._events.cut(cut, usage))
        return self._message.encode()

    def fail(self, error: GatewayError) -> bytes:
        """Not reached: nothing was sent, so an error still is an HTTP answer."""
        return b""
