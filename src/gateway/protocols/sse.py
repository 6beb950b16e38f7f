"""Server-sent events as bytes: split what a provider sends, frame what a client gets.

Lines end in LF, CRLF or CR and in nothing else: splitting decoded text by Unicode's idea of a line breaks on U+2028
and its kin, which are legal inside JSON strings. Bytes may be cut anywhere, within a character or between CR and LF.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re

import msgspec

EVENT_BYTES_MAX = 10 * 1024 * 1024

# A byte is looked for as a number: as bytes it is first taken for a number, in vain, at seven times the cost.
_LF, _CR = b"\n\r"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One event. ``event`` is ``""`` where the stream names none; ``data`` is never decoded here."""

    data: bytes
    event: str = ""


class EventTooLarge(Exception):
    """An event grew beyond ``EVENT_BYTES_MAX`` without ending."""


class SseDecoder:
    """Bytes in, whole events out. Comments, ids and retry hints are passed over."""

    __slots__ = ("_buffer", "_data", "_event", "_skip_lf")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._event = ""
        self._skip_lf = False

    @property
    def is_between_events(self) -> bool:
        """Whether nothing of an event has come yet."""
        return not (self._buffer or self._data or self._event or self._skip_lf)

    def whole(self, chunk: bytes) -> list[bytes] | None:
        """The data of each event, where a chunk holds whole events of one line of data each and nothing else; or
        ``None``, and nothing was taken.

        Most chunks are such, and nothing of an event has to be remembered for them.
        """
        if chunk[-2:] != b"\n\n" or not self.is_between_events or _CR in chunk:
            return None
        if len(chunk) > EVENT_BYTES_MAX:
            return None
        lines = chunk.split(b"\n\n")
        lines.pop()
        payloads = [line[6:] for line in lines if line[:6] == b"data: " and _LF not in line]
        return payloads if len(payloads) == len(lines) else None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take bytes as they came; returns the events they completed, often none or one.

        Raises ``EventTooLarge`` when an event passes the bound, finished or not: how it is cut makes no difference.
        """
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        text = self._buffer + chunk if self._buffer else chunk
        if _CR not in text:
            *lines, rest = text.split(b"\n")
        else:
            # A CR at the very end may be half of a CRLF: take it as a line end and forget an LF that follows.
            self._skip_lf = text.endswith(b"\r")
            *lines, rest = _LINE_END.split(text)
        self._buffer = rest
        events: list[ServerSentEvent] = []
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                if len(data) > EVENT_BYTES_MAX:
                    raise EventTooLarge
                events.append(ServerSentEvent(data, self._event))
                self._data = []
                self._event = ""
            else:
                self._event = ""
        if len(rest) > EVENT_BYTES_MAX or (self._data and sum(map(len, self._data)) > EVENT_BYTES_MAX):
            raise EventTooLarge
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._event = value.decode("utf-8", "replace")

    def flush(self) -> list[ServerSentEvent]:
        """The stream ended: returns an event that lacked only its closing blank line, if there is one."""
        return self.feed(b"\n\n") if self._buffer or self._data else []


def encode_data(payload: bytes) -> bytes:
    """One unnamed event; ``payload`` must hold no line end (compact JSON never does)."""
    return b"data: " + payload + b"\n\n"


def encode_event(event: str, payload: bytes) -> bytes:
    """One named event."""
    return b"event: " + event.encode("ascii") + b"\ndata: " + payload + b"\n\n"
