"""Gemini's bytes as JSON payloads: server-sent events, and JSON that stands among them or in their place.

An error within a stream may come as bare JSON over several lines, and a server that overlooks ``alt=sse`` sends one
array. A line of an event begins with ``data:``, so one that begins with a bracket is neither.
"""

import re

import msgspec

from gateway.protocols.sse import EVENT_BYTES_MAX, EventTooLarge, SseDecoder

# What is longer is only looked at when the bytes end: an error is short.
_ERROR_BYTES_MAX = 64 * 1024
_BEGIN, _END = b"data: ", b"\r\n\r\n"
_BARE = re.compile(rb"[\r\n](?=[\[{])")
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_RAW = msgspec.json.Decoder(msgspec.Raw)


class Payloads:
    """Bytes in, whole JSON texts out."""

    __slots__ = ("_bare", "_is_between_events", "_is_line_start", "_sse")

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._bare: bytearray | None = None
        self._is_line_start = True
        self._is_between_events = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take bytes as they came. Raises ``EventTooLarge``."""
        if self._is_between_events and self._bare is None and _is_one_event(chunk):
            return [chunk[len(_BEGIN) : -len(_END)]]
        self._is_between_events = chunk.endswith(_END)
        payloads: list[bytes] = []
        if self._bare is None:
            start = self._start_of_bare(chunk)
            if start is None:
                return [event.data for event in self._sse.feed(chunk) if event.data]
            payloads = [event.data for event in (*self._sse.feed(chunk[:start]), *self._sse.flush()) if event.data]
            chunk, self._bare = chunk[start:], bytearray()
        self._bare += chunk
        if len(self._bare) > EVENT_BYTES_MAX:
            raise EventTooLarge
        if len(self._bare) <= _ERROR_BYTES_MAX and chunk.rstrip().endswith((b"}", b"]")):
            payloads += self._take_bare()
        return payloads

    def _start_of_bare(self, chunk: bytes) -> int | None:
        if not chunk:
            return None
        start: int | None = None
        if self._is_line_start and chunk[:1] in (b"{", b"["):
            start = 0
        elif found := _BARE.search(chunk):
            start = found.end()
        self._is_line_start = chunk.endswith((b"\n", b"\r"))
        return start

    def _take_bare(self) -> list[bytes]:
        """What stands in bare JSON, once it is whole; the bytes that follow may be events again."""
        if self._bare is None or (payloads := split(bytes(self._bare))) is None:
            return []
        self._bare = None
        self._is_line_start = False
        return payloads

    def flush(self) -> list[bytes]:
        """The bytes ended: a last event that lacked only its blank line, or nothing where half of one is left."""
        if self._bare is not None:
            return self._take_bare()
        return [event.data for event in self._sse.flush() if is_json(event.data)]


def _is_one_event(chunk: bytes) -> bool:
    """Whether it is one whole event, as Google sends them."""
    is_framed = chunk.startswith(_BEGIN) and chunk.endswith(_END)
    return is_framed and chunk.count(b"\n") == 2 and chunk.count(b"\r") == 2


def split(body: bytes) -> list[bytes] | None:
    """The answers that a JSON text holds, one or an array of them; ``None`` where it is no JSON."""
    try:
        if body.lstrip()[:1] == b"[":
            return [bytes(item) for item in _ITEMS.decode(body)]
        return [bytes(_RAW.decode(body))]
    except (ValueError, RecursionError):
        return None


def is_json(payload: bytes) -> bool:
    """Whether it is one JSON text, which half of one is not."""
    try:
        _RAW.decode(payload)
    except (ValueError, RecursionError):
        return False
    return True
