"""uvicorn's HTTP protocol with the bounds it lacks.

Stock uvicorn waits for ever on a connection that says nothing, trickles its header, or never ends its body; takes
headers of any size; and never notices a peer whose machine is gone. It also gives an application no way to reset a
connection of which the client no longer reads, hence ``RESET``.
"""

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RESET = "gateway.reset"

_HEADER_BYTES_MAX = 64 * 1024
_HEADERS_MAX = 100
_HEADER_S = 10.0
# A body may take as long as it keeps coming: this long without a byte, and this long in all.
_BODY_QUIET_S = 10.0
_BODY_S = 120.0
_UNACKNOWLEDGED_MS = 5_000
_KEEPALIVE = (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3))


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _in_body = False
    _header_count = 0
    _header_bytes = 0
    _raw_header_bytes = 0
    _body_deadline = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            _detect_dead_peer(sock)
        self._arm(_HEADER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        self._close_with(b"408 Request Timeout")

    def _close_with(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        # Within a request that was answered before its end, another answer would be taken for the next one's.
        is_answered = self._in_body and self.cycle is not None and self.cycle.response_started
        if not is_answered and (self.cycle is None or self.cycle.response_complete or not self.cycle.response_started):
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    def reset(self) -> None:
        """Drop the connection at once, and what the kernel still has for a peer that does not take it."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._raw_header_bytes += len(data)
            if self._raw_header_bytes > 2 * _HEADER_BYTES_MAX:
                self._close_with(b"431 Request Header Fields Too Large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_count = self._header_bytes = 0
        self.scope["extensions"] = {RESET: {"reset": self.reset}}
        self._arm(_HEADER_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > _HEADERS_MAX or self._header_bytes > _HEADER_BYTES_MAX:
            self._close_with(b"431 Request Header Fields Too Large")
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._in_body = True
        self._raw_header_bytes = 0
        self._body_deadline = self.loop.time() + _BODY_S
        self._arm(_BODY_QUIET_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._arm(min(_BODY_QUIET_S, max(0.0, self._body_deadline - self.loop.time())))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_body = False
        if not self.transport.is_closing():
            super().on_message_complete()


def _detect_dead_peer(sock: Any) -> None:
    """Notice within seconds that the other machine is gone; where the platform has the options."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def reset_of(scope: Any) -> Any:
    """The function that resets this request's connection; one that does nothing on another server."""
    extension = scope.get("extensions", {}).get(RESET)
    return extension["reset"] if extension is not None else (lambda: None)
