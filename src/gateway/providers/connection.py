"""One connection to a provider: HTTP/1.1 on an asyncio protocol, parsed by llhttp.

Every chunk of every stream passes here, so what happens per chunk is kept to a parser's call, one append, and a call of
the one reader, who is woken only by what it does not deal with where it arrives. A connection carries one request at a
time and knows nothing of the pool; whoever made it is told when it is gone. Nothing is followed, decoded or remembered:
bytes out, a head and bytes back.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import httptools

Taken = TypeVar("Taken")

# Beyond this the provider is not read from until somebody takes what is there.
_UNREAD_BYTES_MAX = 256 * 1024
_HEAD_BYTES_MAX = 64 * 1024
_HEADERS_MAX = 256
# A longer body is not copied to stand in one write with its head.
_COPIED_BYTES_MAX = 64 * 1024


class TransportError(Exception):
    """The connection could not be made, or broke. ``cause`` says how, for the operator's log."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Connection(asyncio.Protocol):
    """An open connection. ``status`` and ``headers`` (names in lower case) are those of the answer to the last request.

    ``is_kept`` says whether the provider will take another request, ``was_unsent`` of one that failed whether nobody
    can have read it.
    """

    __slots__ = (
        "_barren_bytes",
        "_error",
        "_feed",
        "_has_begun",
        "_is_interim",
        "_is_over",
        "_is_paused",
        "_is_sending",
        "_loop",
        "_on_lost",
        "_parser",
        "_pieces",
        "_raw",
        "_sock",
        "_take",
        "_taken",
        "_transport",
        "_unread_bytes",
        "_waiter",
        "headers",
        "is_kept",
        "on_body",
        "on_header",
        "status",
        "was_unsent",
    )

    _transport: asyncio.Transport

    def __init__(self, sock: socket.socket, on_lost: "Callable[[Connection], None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_lost = on_lost
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_kept = True
        self.was_unsent = False
        self._is_over = True  # nothing of an answer is outstanding
        self._has_begun = self._is_interim = self._is_paused = self._is_sending = False
        self._error: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], Any] | None = None  # the reader's, while one waits
        self._taken: Any = None  # what it made of bytes, and did not come to fetch yet
        self._unread_bytes = self._barren_bytes = 0
        self._pieces: list[bytes] = []
        self._raw: dict[bytes, bytes] = {}
        # The parser calls these two as they are, without a frame of Python for each header and chunk.
        self.on_body = self._pieces.append
        self.on_header = self._raw.setdefault
        parser = httptools.HttpResponseParser(self)
        # What browsers and curl take from servers, too.
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._parser: httptools.HttpResponseParser | None = parser
        self._feed = parser.feed_data

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises ``TransportError``.

        ``head`` ends where the number of the body's bytes belongs.
        """
        if not self.is_kept or self._transport.is_closing():
            self.was_unsent = True
            raise TransportError("closed")
        self.status = self._barren_bytes = 0
        self._is_over = self._has_begun = self.was_unsent = False
        if len(body) <= _COPIED_BYTES_MAX:
            self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        else:
            self._transport.write(b"%b%d\r\n\r\n" % (head, len(body)))
            self._transport.write(body)
        while not self.status:
            if self._is_over:
                raise TransportError(self._error or "closed")
            waiter = self._waiter = self._loop.create_future()
            await waiter

    async def read(self, take: Callable[[bytes], Taken | None]) -> Taken | None:
        """What ``take`` makes of the body that came since; ``None`` at its end. Raises ``TransportError`` if it broke.

        ``take`` is called where bytes arrive. Those it makes nothing of (``None``) it has dealt with, and nobody wakes.
        """
        while self._taken is None:
            if self._pieces:
                self._taken = take(self._joined())
            elif self._is_over:
                if self._error is not None:
                    raise TransportError(self._error)
                break
            else:
                self._take = take
                waiter = self._waiter = self._loop.create_future()
                await waiter
        taken: Taken | None = self._taken
        self._taken = None
        return taken

    @property
    def is_lost(self) -> bool:
        """Whether it is gone, and its owner told."""
        return self._parser is None

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its proper end."""
        return self._is_over and self._error is None

    def rest(self) -> bool:
        """Forget the answer; whether the connection can take another request."""
        if not self._is_over or not self.is_kept or self._is_sending:
            return False
        self._waiter = self._take = self._taken = None
        self._take_all()
        return True

    def is_silent(self) -> bool:
        """Whether the kernel has neither bytes nor an end for us that the loop did not tell of yet."""
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return self.is_kept
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """Hang up at once."""
        self.is_kept = False
        self._transport.abort()

    def _joined(self) -> bytes:
        pieces = self._pieces
        joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._take_all()
        return joined

    def _take_all(self) -> None:
        self._pieces.clear()
        self._unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _wake(self) -> None:
        waiter, self._take = self._waiter, None
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, cause: str) -> None:
        """What was received stays to be read."""
        if not self._is_over:
            self._is_over = True
            self._error = cause
        self.abort()
        self._wake()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        # Tell of whatever the kernel does not take at once, by the next two methods. One byte and not none: TLS pauses
        # where its buffer has reached the bound, which nothing at all would.
        self._transport.set_write_buffer_limits(high=1)

    def pause_writing(self) -> None:
        self._is_sending = True

    def resume_writing(self) -> None:
        self._is_sending = False

    def data_received(self, data: bytes) -> None:
        if self._is_over:  # nobody asked
            self.abort()
            return
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"not HTTP/1.1: {error}")
            return
        if self._pieces:
            self._barren_bytes = 0
            self._unread_bytes += len(data)
            if self._unread_bytes > _UNREAD_BYTES_MAX and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        elif not self._is_over:
            self._barren_bytes += len(data)
            if self._barren_bytes > _HEAD_BYTES_MAX:  # of a head, a trailer or extensions that do not end
                self._fail("too much beside the body")
        if self._waiter is not None:
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the waiting reader what there is of a body; it sleeps on where that is all it wants."""
        waiter, take = self._waiter, self._take
        if take is not None and self._pieces and waiter is not None and not waiter.done():
            try:
                self._taken = take(self._joined())
            except Exception as error:
                self._waiter = self._take = None
                waiter.set_exception(error)
                return
            if self._taken is None and not self._is_over:
                return
        self._wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._feed = _ignore
        self._parser = None  # it refers to us
        self._on_lost(self)

    def _end(self, error: Exception | None) -> None:
        """The provider hung up, which is how an answer without any framing ends."""
        self.is_kept = False
        if self._is_over:
            return
        self._is_over = True
        if error is not None or not self.status or _is_framed(self.headers):
            self.was_unsent = (self._is_sending or isinstance(error, BrokenPipeError)) and not self._has_begun
            self._error = "closed" if error is None else cause_of(error)
        self._wake()

    # Called by the parser; what they raise ends in data_received.

    def on_message_begin(self) -> None:
        if self._is_over:
            raise ValueError("a second answer")
        self._has_begun = True

    def on_headers_complete(self) -> None:
        parser, raw = self._parser, self._raw
        assert parser is not None
        if len(raw) > _HEADERS_MAX or sum(map(len, raw.values())) > _HEAD_BYTES_MAX:
            raise ValueError("too many headers")
        status = parser.get_status_code()
        if status >= 200:
            decoded = {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in raw.items()}
            self.headers = decoded
            self.is_kept = parser.should_keep_alive()
            self.status = status
        else:
            self._is_interim = True
        raw.clear()

    def on_message_complete(self) -> None:
        self._raw.clear()
        if self._is_interim:
            self._is_interim = False
        else:
            self._is_over = True


def _is_framed(headers: dict[str, str]) -> bool:
    """Whether the end of a body shows in the body: it has a length, or comes in chunks."""
    encoding = headers.get("transfer-encoding")
    if encoding is not None:
        return encoding.lower().endswith("chunked")
    return "content-length" in headers


def _ignore(data: object) -> None:
    """Stands for the parser of a connection that is gone."""


def cause_of(error: Exception) -> str:
    """What broke a connection or kept it from being made, in a few words for the operator's log."""
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, socket.gaierror):
        return f"dns: {error.strerror}"
    tls_reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    if tls_reason:
        return f"tls: {tls_reason}"
    return getattr(error, "strerror", None) or type(error).__name__
