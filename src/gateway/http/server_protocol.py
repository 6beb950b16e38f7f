"""uvicorn's HTTP protocol with the bounds it lacks.

Stock uvicorn waits for ever on a connection that says nothing, trickles its header, or never ends its body; takes
headers of any size, with no host or two, and chunks with extensions of any size; and never notices a peer whose machine
is gone. Nor does it let an application reset a connection of which the client no longer reads, hear that the client
left without a task that waits for it, or send a piece of a stream without six calls: hence ``RESET`` and ``WIRE``.
"""

import asyncio
import socket
import struct
import uuid
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.canonical.errors import ErrorCode
from gateway.protocols.wire import Headers

RESET = "gateway.reset"
WIRE = "gateway.wire"

# A byte is looked for as a number: as bytes it is first taken for a number, in vain, at seven times the cost.
_UNDERSCORE = ord("_")
_URL_BYTES_MAX = 16 * 1024
_HEADER_BYTES_MAX = 64 * 1024
_HEADERS_MAX = 100
# What a chunked body may have beside its bytes: chunk sizes and line ends, some extensions, a trailer.
_FRAMING_BYTES_MAX = 64 * 1024
_FRAMING_BYTES_PER_CHUNK = 16
# Linux counts the time in which a peer takes nothing too: less than this would cut slow readers before their time.
_UNACKNOWLEDGED_MS = 30_000
_KEEPALIVE = (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3))


class _Phase(Enum):
    """What the next byte belongs to."""

    BETWEEN = 1
    HEADER = 2
    BODY = 3


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    header_s = 10.0
    # A body may take as long as it keeps coming: this long without a byte, and this long in all.
    body_quiet_s = 10.0
    body_s = 120.0

    on_gone: Callable[[], None] | None = None
    _is_lost = False

    _timer: asyncio.TimerHandle | None = None
    _wait_s = 0.0  # a wait that begins with the end of this read
    _phase = _Phase.BETWEEN
    _header_count = 0
    _header_bytes = 0
    _raw_header_bytes = 0
    _hosts = 0
    _body_bytes_fed = 0
    _framing_bytes = 0
    _body_deadline = 0.0
    _takes_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._extensions: dict[str, Any] = {RESET: {"reset": self.reset}, WIRE: self}
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            _detect_dead_peer(sock)
        self._arm(self.header_s)

    def _unsupported_upgrade_warning(self) -> None:
        """Not worth a line in the log: Java's client offers HTTP/2 with every request."""

    def _should_upgrade_to_ws(self) -> bool:
        return self._takes_upgrade

    def _may_upgrade(self) -> bool:
        """An Upgrade is an offer: it is taken where the application has a WebSocket, while nothing else is going on."""
        is_alone = self.cycle is None or self.cycle.response_complete
        path = self.url.partition(b"?")[0].decode("latin-1")
        return is_alone and self.parser.get_method() == b"GET" and path in getattr(self.app, "sockets", ())

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        self._extensions = {}  # it holds us
        self._is_lost = True
        if self.on_gone is not None:
            self.on_gone()

    def watch(self, on_gone: Callable[[], None]) -> bool:
        """Call this once the client has left; returns whether it is still there."""
        self.on_gone = on_gone
        self.flow.resume_reading()  # a large body may have paused it, and then nobody would notice
        return not self._is_lost

    def unwatch(self) -> None:
        """The request has been answered."""
        self.on_gone = None

    def answer(self, headers: Headers, payload: bytes, *, more: bool) -> bool:
        """Begin to answer 200, with the first piece of a stream or with all there is; ``False`` where nothing happened.

        ``headers`` name the length of what is whole. uvicorn's way is taken wherever more is to be thought of.
        """
        cycle = self.cycle
        if cycle.response_started or not cycle.keep_alive or not self._may_push():
            return False
        lines = b"".join([b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)])
        count = len(headers) + len(cycle.default_headers)
        if lines.count(b"\n") != count or lines.count(b"\r") != count:
            return False  # a header with a line end in it, which uvicorn refuses
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        cycle.chunked_encoding = more
        if more:
            head = b"HTTP/1.1 200 OK\r\n%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n"
            self.transport.write(head % (lines, len(payload), payload))
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (lines, payload))
            self._complete()
        return True

    @property
    def is_free(self) -> bool:
        """Whether ``push`` would send."""
        return bool(self.cycle.chunked_encoding) and self._may_push()

    def push(self, payload: bytes, *, more: bool) -> bool:
        """Send a piece of a chunked answer that has begun, or its last; ``False`` where nothing happened."""
        if not self.is_free:
            return False
        if more:
            self.transport.write(b"%x\r\n%b\r\n" % (len(payload), payload))
        else:
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload) if payload else b"0\r\n\r\n")
            self._complete()
        return True

    def _may_push(self) -> bool:
        return not (self.pipeline or self.flow.write_paused or self.cycle.disconnected)

    def _complete(self) -> None:
        cycle = self.cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.pipeline:  # nobody reads this request before the one in front of it is answered
            self._arm(self.header_s)
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time.", ErrorCode.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus, message: str, code: ErrorCode) -> None:
        """Close the connection, with an answer where it can be told from another one's."""
        if self.transport.is_closing():
            return
        if self._may_answer():
            self.transport.write(_refusal(status, message, code))
        self.transport.close()

    def _may_answer(self) -> bool:
        if self.cycle is None:
            return True
        if self.cycle.response_complete:
            return self._phase is not _Phase.BODY
        return not self.cycle.response_started and not self.pipeline

    def send_400_response(self, msg: str) -> None:
        """Called for what is not HTTP/1.1."""
        self._refuse(HTTPStatus.BAD_REQUEST, "This is not a valid HTTP/1.1 request.", ErrorCode.INVALID_REQUEST)

    def _refuse_header(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._refuse(status, "The request's header is too large.", ErrorCode.REQUEST_TOO_LARGE)

    def reset(self) -> None:
        """Drop the connection at once, and what the kernel still has for a peer that does not take it."""
        reset(self.transport)

    def data_received(self, data: bytes) -> None:
        message, phase = self.scope, self._phase
        self._body_bytes_fed = 0
        super().data_received(data)
        if self._takes_upgrade and self.transport.get_protocol() is not self:
            return  # it is a WebSocket's connection by now
        if self._wait_s and self._phase is not _Phase.BETWEEN:
            self._arm(self._wait_s)  # what came with one read never waits for anything, so no timer is made for it
            self._wait_s = 0.0
        if self.scope is message and phase is self._phase is not _Phase.BETWEEN:
            self._bound_what_the_parser_swallows(len(data))
        elif self._phase is _Phase.BETWEEN and self._timer is None and self.timeout_keep_alive_task is None:
            if self.cycle is None or self.cycle.response_complete:  # blank lines; they stopped the keep-alive's clock
                self._arm(self.header_s)

    def _bound_what_the_parser_swallows(self, size: int) -> None:
        """Called after ``size`` bytes that neither began nor ended a header or a body.

        The parser collects a header line until it ends, and throws the extensions of chunks away; it tells nobody how
        long they are by then.
        """
        if self._phase is _Phase.HEADER:
            self._raw_header_bytes += size
            if self._raw_header_bytes > 2 * _HEADER_BYTES_MAX:
                self._refuse_header()
            return
        self._framing_bytes += size - self._body_bytes_fed
        if self._framing_bytes > _FRAMING_BYTES_MAX:
            self.send_400_response("")

    def on_chunk_header(self) -> None:
        """Called by the parser where a chunk begins."""
        self._framing_bytes -= _FRAMING_BYTES_PER_CHUNK

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEADER
        self._takes_upgrade = False
        self._header_count = self._header_bytes = self._raw_header_bytes = self._hosts = self._framing_bytes = 0
        self.scope["extensions"] = self._extensions
        self._wait_s = self.header_s

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > _URL_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "The URL is too long.", ErrorCode.REQUEST_TOO_LARGE)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > _HEADERS_MAX or self._header_bytes > _HEADER_BYTES_MAX:
            self._refuse_header()
        elif self._phase is _Phase.HEADER and _UNDERSCORE not in name:
            # A trailer must not become a header of a request that is being read; and of two names that differ in an
            # underscore, what stands behind us might make one.
            name = name.lower()
            if name == b"host":
                self._hosts += 1
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            self.send_400_response("")
        if self.transport.is_closing():
            return
        self._takes_upgrade = self._may_upgrade()
        self._phase = _Phase.BODY
        self._body_deadline = self.loop.time() + self.body_s
        self._wait_s = self.body_quiet_s
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._body_bytes_fed += len(body)
        self._wait_s = max(0.001, min(self.body_quiet_s, self._body_deadline - self.loop.time()))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._timer is not None:
            self._disarm()
        self._wait_s = 0.0
        self._phase = _Phase.BETWEEN
        if not self.transport.is_closing():
            super().on_message_complete()


def _refusal(status: HTTPStatus, message: str, code: ErrorCode) -> bytes:
    """A whole answer. The envelope is OpenAI's: which protocol was meant is not known here."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code.value}
    body = msgspec.json.encode({"error": error})
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\nx-request-id: {uuid.uuid4().hex}\r\n\r\n"
    )
    return head.encode() + body


def _detect_dead_peer(sock: Any) -> None:
    """Notice within seconds that the other machine is gone; where the platform has the options."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def reset(transport: asyncio.Transport) -> None:
    """Drop a connection at once, and what the kernel still has for its peer."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return  # the peer was faster
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def wire_of(scope: Any) -> "GuardedProtocol | None":
    """The connection that a request came on; ``None`` on another server, or in a frame of a WebSocket."""
    wire: GuardedProtocol | None = scope.get("extensions", {}).get(WIRE)
    return wire


def reset_of(scope: Any) -> Callable[[], None]:
    """The function that resets this request's connection; one that does nothing on another server."""
    extension = scope.get("extensions", {}).get(RESET)
    return extension["reset"] if extension is not None else (lambda: None)
