"""One request over a WebSocket, as the HTTP call that it would be elsewhere.

An endpoint that answers ``POST`` is called with a scope made for the frame, and what it sends is taken apart again: a
status other than 200 is a refusal, and each event of a stream one frame. So an exchange over a socket is an ordinary
one, with its errors, its heartbeats (which go nowhere: the server's pings do their work) and its end.
"""

import asyncio
import os
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

from gateway.http.front import HEADERS, REQUEST_ID, Scope
from gateway.http.server_protocol import RESET
from gateway.http.websockets import CREDENTIALS, Socket, Sockets
from gateway.live import LiveExchanges
from gateway.protocols.sse import SseDecoder
from gateway.protocols.wire import Headers

_OK = 200
# The request headers that a frame may bring; others mean something only to a server of HTTP.
_TAKEN = (*CREDENTIALS, b"idempotency-key")
_TAKEN_PREFIX = b"x-gateway-"


class Answer(Protocol):
    """How an answer is told in frames."""

    async def begin(self) -> None:
        """The request was accepted."""
        ...

    async def events(self, payloads: list[bytes]) -> None:
        """What came of the stream, the data of each event."""
        ...

    async def end(self) -> None:
        """Nothing follows."""
        ...

    async def refuse(self, status: int, body: bytes) -> None:
        """An error instead of a stream, in the endpoint's own envelope."""
        ...


class Framing(NamedTuple):
    """What a request over a socket consists of, but for its body; ``headers`` are those of the frame."""

    socket: Socket
    sockets: Sockets
    live: LiveExchanges
    answer: Answer
    headers: Headers

    def prove(self) -> None:
        """The request's credential was right."""
        self.sockets.prove(self.socket)


class SocketRequest:
    """A request of a connection: the ``scope``, ``receive`` and ``send`` that an endpoint is called with."""

    def __init__(self, framing: Framing, body: bytes | None) -> None:
        """A credential among the frame's headers goes before the connection's."""
        socket, headers = framing.socket, framing.headers
        self.framing = framing
        self.has_credential = any(name in CREDENTIALS for name, _ in headers)
        self.headers = headers if self.has_credential else (*socket.credential, *headers)
        self.client = socket.client
        self.is_muted = False
        self._answer = framing.answer
        self._body = body
        self._left = asyncio.Event()
        self._decoder = SseDecoder()
        self._refusal: list[bytes] | None = None
        self._status = 0

    def scope(self, path: str) -> Scope:
        """What stands before the body, as HTTP would have it."""
        return {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": urlencode(self.framing.socket.query).encode(),
            "headers": [(b"content-type", b"application/json"), *self.headers],
            "client": self.client,
            "extensions": {RESET: {"reset": self.hang_up}},
            REQUEST_ID: os.urandom(16).hex(),
            HEADERS: (),
        }

    async def receive(self) -> Any:
        """The body, and after it the news that the client left."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Part of a response, told in frames."""
        if self.is_muted:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._status == _OK:
                await self._answer.begin()
            else:
                self._refusal = []
            return
        if self._refusal is not None:
            self._refusal.append(message["body"])
            if not message.get("more_body"):
                await self._answer.refuse(self._status, b"".join(self._refusal))
            return
        await self._answer.events([event.data for event in self._decoder.feed(message["body"])])
        if not message.get("more_body"):
            await self._answer.end()

    def leave(self) -> None:
        """The client has gone."""
        self._left.set()

    def hang_up(self) -> None:
        """The client takes nothing, and all requests of the connection suffer from that.

        One that left on its own accord, or because the process stops, has its connection ended otherwise.
        """
        if not (self._left.is_set() or self.framing.live.is_over):
            self.framing.socket.reset()


def headers_of(fields: dict[str, str]) -> Headers:
    """A frame's headers, as far as they mean something here."""
    headers = ((name.lower().encode("latin-1", "replace"), value) for name, value in fields.items())
    return tuple(
        (name, value.encode("latin-1", "replace"))
        for name, value in headers
        if name in _TAKEN or name.startswith(_TAKEN_PREFIX)
    )
