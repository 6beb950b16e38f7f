"""WebSockets: who may open one and how he says who he is, the frames on it, and when it ends.

A connection carries several requests, and each of them is authenticated for itself: what a connection knows is the
credential of those requests that bring none of their own. What a request means is the endpoint's business
(``SocketEndpoint``); that an answer goes out as frames instead of as an HTTP response is ``socket_requests``'.

Wrong credentials and foreign origins are told with a close code of 4401 and 4403 after the handshake, since a browser
does not show its page how a handshake failed. One clock looks after all connections.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from enum import IntEnum
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

import msgspec
from anyio import move_on_after
from prometheus_client import Gauge
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.canonical.errors import AuthenticationError, GatewayError, LimitExceeded, RequestError, ServiceUnavailable
from gateway.http.front import Receive, Scope, Send, has_credential
from gateway.http.server_protocol import reset_of
from gateway.http.socket_protocol import SIZE
from gateway.identity.authenticator import Authenticator
from gateway.limits.redis import StoreUnavailable
from gateway.protocols.wire import Headers
from gateway.services import Services
from gateway.tasks import TaskOwner

CREDENTIALS = (b"authorization", b"x-api-key")

_SECRET_PROTOCOLS = ("gateway-key.", "openai-insecure-api-key.")
_TOKEN = "token"
# Names the format of an answer elsewhere; here it is frames.
_PROTOCOL = "protocol"
_LOOK_S = 0.25
_UNPROVEN_S = 10.0
_UNPROVEN_MAX = 256
_IDLE_S = 900.0
_CLOSE_S = 5.0
_FRAME_BYTES_BESIDE_BODY = 64 * 1024


class CloseCode(IntEnum):
    """Why a connection ends; below 4000 from RFC 6455 and its registry, above it after the HTTP status."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TRY_AGAIN_LATER = 1013
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    TOO_MANY_REQUESTS = 4429


class Refusal(msgspec.Struct, frozen=True):
    """What a client is told that may not stay."""

    code: CloseCode
    reason: str


class SocketBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections there may be, whose pages may open them, and how large a request's body may be."""

    connections_max: int
    body_bytes_max: int
    allows_origin: Callable[[bytes], bool]


class Leaver(Protocol):
    """What a connection needs of the requests that run on it."""

    def leave(self) -> None:
        """The client has gone."""
        ...


class Socket:
    """One connection: frames in, frames out, and the requests that run on it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.client: tuple[str, int] | None = scope.get("client")
        self.credential: Headers = ()
        self.query: dict[str, str] = {}
        self.is_proven = False
        self.is_closed = False
        self.requests: dict[str, Leaver] = {}
        self.retiring: Refusal | None = None
        self.opened_at = self.active_at = time.monotonic()
        self.sending_since: float | None = None
        self._receive = receive
        self._send = send
        self._reset = reset_of(scope)
        self._allow = scope.get("extensions", {}).get(SIZE, {}).get("allow", lambda bytes_max: None)
        self._lock = asyncio.Lock()
        self._tasks = TaskOwner()
        self._running: set[asyncio.Task[None]] = set()

    async def next_frame(self) -> str | bytes | None:
        """The next message, ``None`` where the connection has ended."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.is_closed = True
            return None
        self.active_at = time.monotonic()
        text: str | None = message.get("text")
        return message["bytes"] if text is None else text

    async def send(self, *frames: str) -> None:
        """Send text messages, with no other ones between them; nothing happens where the connection has ended."""
        async with self._lock:
            self.sending_since = time.monotonic()
            try:
                for frame in frames:
                    if self.is_closed:
                        return
                    await self._send({"type": "websocket.send", "text": frame})
            except OSError:
                self.is_closed = True
            finally:
                self.sending_since = None

    async def close(self, code: CloseCode, reason: str) -> None:
        """Say goodbye; a client that does not listen is cut."""
        if self.is_closed:
            return
        self.is_closed = True
        with move_on_after(_CLOSE_S) as patience, suppress(OSError):
            await self._send({"type": "websocket.close", "code": int(code), "reason": reason})
        if patience.cancelled_caught:
            self.reset()

    def reset(self) -> None:
        """Drop the connection at once: for a client that takes nothing."""
        self.is_closed = True
        self._reset()

    def prove(self, bytes_max: int) -> None:
        """The client has shown a credential that is right; messages may be of this size from here on."""
        if not self.is_proven:
            self.is_proven = True
            self._allow(bytes_max)

    def start(self, request_id: str, request: Leaver, work: Coroutine[Any, Any, None]) -> None:
        """Run a request beside the others; its id is its own until it has ended."""

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            del self.requests[request_id]
            self.active_at = time.monotonic()

        self.requests[request_id] = request
        task = self._tasks.start(work, "socket-request")
        self._running.add(task)
        task.add_done_callback(ended)

    async def wind_up(self) -> None:
        """The connection has ended: tell the requests, and wait until they have, too."""
        self.is_closed = True
        for request in tuple(self.requests.values()):
            request.leave()
        try:
            if self._running:
                await asyncio.wait(self._running)
        finally:
            await self._tasks.aclose()


class Sockets:
    """Every connection of this process: lets them in, and looks after them."""

    def __init__(self, services: Services, authenticator: Authenticator, bounds: SocketBounds) -> None:
        self._services = services
        self._authenticator = authenticator
        self._bounds = bounds
        self._open: set[Socket] = set()
        gauge = Gauge("gateway_websockets", "Open WebSocket connections.", registry=services.telemetry.registry)
        gauge.set_function(lambda: len(self._open))

    async def admit(self, scope: Scope, receive: Receive, send: Send, protocols: tuple[str, ...]) -> Socket | None:
        """Finish a handshake; ``None`` where the client had to be refused. ``protocols`` are what it may choose from.

        The address's query is taken out of the scope, so that nobody writes it into a log.
        """
        query, scope["query_string"] = scope["query_string"], b""
        await receive()
        socket = Socket(scope, receive, send)
        refusal = self._unwelcome(scope) or self._read_query(socket, query)
        self._open.add(socket)
        if refusal is None:
            socket.credential += _offered(scope)
            refusal = await self.check(socket) if socket.credential else self._check_unproven()
        chosen = next((offered for offered in scope["subprotocols"] if offered in protocols), None)
        with suppress(OSError):
            await send({"type": "websocket.accept", "subprotocol": chosen})
        if refusal is not None:
            await socket.close(refusal.code, refusal.reason)
            self._open.discard(socket)
            return None
        return socket

    async def check(self, socket: Socket) -> Refusal | None:
        """Whether a connection's credential is right."""
        try:
            await self._authenticator.authenticate(socket.credential, socket.client)
        except AuthenticationError as error:
            return Refusal(CloseCode.UNAUTHENTICATED, _reason(error.message))
        except LimitExceeded as error:
            return Refusal(CloseCode.TOO_MANY_REQUESTS, _reason(error.message))
        except (ServiceUnavailable, StoreUnavailable):
            return Refusal(CloseCode.TRY_AGAIN_LATER, "The credential cannot be checked at the moment.")
        except GatewayError as error:
            return Refusal(CloseCode.FORBIDDEN, _reason(error.message))
        self.prove(socket)
        return None

    def prove(self, socket: Socket) -> None:
        """A credential on this connection was right."""
        socket.prove(self._bounds.body_bytes_max + _FRAME_BYTES_BESIDE_BODY)

    def discard(self, socket: Socket) -> None:
        """A connection has ended."""
        self._open.discard(socket)

    def _unwelcome(self, scope: Scope) -> Refusal | None:
        if self._services.live.is_draining:
            return Refusal(CloseCode.GOING_AWAY, "The gateway is stopping.")
        if len(self._open) >= self._bounds.connections_max:
            return Refusal(CloseCode.TRY_AGAIN_LATER, "There are too many connections.")
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        is_own = origin is not None and origin.partition(b"://")[2] == headers.get(b"host")
        if origin is not None and not is_own and not self._bounds.allows_origin(origin):
            return Refusal(CloseCode.FORBIDDEN, "Pages of this origin may not call.")
        return None

    def _read_query(self, socket: Socket, query: bytes) -> Refusal | None:
        """The token in an address is the credential, and the rest of its query is every request's."""
        pairs = parse_qsl(query.decode("latin-1"))
        socket.credential = tuple(bearer(value) for name, value in pairs if name == _TOKEN)
        socket.query = {name: value for name, value in pairs if name not in (_TOKEN, _PROTOCOL)}
        if has_credential(urlencode(socket.query).encode()):
            return Refusal(CloseCode.UNAUTHENTICATED, "A credential in the address must be called token.")
        return None

    def _check_unproven(self) -> Refusal | None:
        if sum(not socket.is_proven for socket in self._open) > _UNPROVEN_MAX:
            return Refusal(CloseCode.UNAUTHENTICATED, "Show a credential when you connect.")
        return None

    async def run(self) -> None:
        """The clock; a task root."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for socket in tuple(self._open):
                self._look(socket, now)

    def _look(self, socket: Socket, now: float) -> None:
        if socket.sending_since is not None and now - socket.sending_since > self._services.patience.send_s:
            socket.reset()
            return
        goodbye = self._goodbye(socket, now)
        if goodbye is not None and not socket.is_closed:
            self._services.tasks.start(socket.close(goodbye.code, goodbye.reason), "close-socket")

    def _goodbye(self, socket: Socket, now: float) -> Refusal | None:
        """Why a connection has to end now, if it has to."""
        if not socket.is_proven and now - socket.opened_at > _UNPROVEN_S:
            return Refusal(CloseCode.UNAUTHENTICATED, "No credential came in time.")
        if socket.requests:
            return None
        if socket.retiring is not None:
            return socket.retiring
        if self._services.live.is_draining:
            return Refusal(CloseCode.GOING_AWAY, "The gateway is stopping.")
        if now - socket.active_at > _IDLE_S:
            return Refusal(CloseCode.NORMAL, "Nothing was asked for a while.")
        return None


class SocketEndpoint:
    """A path that takes WebSockets: an ASGI application of its own. Subclasses say what a frame means in ``take``."""

    protocols: tuple[str, ...] = ("gateway.v1",)

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = await self._sockets.admit(scope, receive, send, self.protocols)
        if socket is None:
            return
        try:
            while (frame := await socket.next_frame()) is not None:
                await self.take(socket, frame)
        finally:
            self._sockets.discard(socket)
            await socket.wind_up()

    async def take(self, socket: Socket, frame: str | bytes) -> None:
        """One message; the next one is read when this returns. Raises nothing."""
        raise NotImplementedError


def socket_routes(paths: Iterable[str]) -> list[Route]:
    """What whoever asks for such a path without an upgrade is told."""

    async def explain(request: Request) -> Response:
        raise RequestError("This path takes WebSockets: send Upgrade: websocket.")

    return [Route(path, explain, methods=["GET"]) for path in paths]


def _offered(scope: Scope) -> Headers:
    """The credentials of a handshake, as headers; one in a subprotocol is a browser's only way to send a header."""
    headers: Headers = tuple(pair for pair in scope["headers"] if pair[0] in CREDENTIALS)
    for protocol in scope["subprotocols"]:
        for prefix in _SECRET_PROTOCOLS:
            if protocol.startswith(prefix):
                headers += (bearer(protocol.removeprefix(prefix)),)
    return headers


def bearer(token: str) -> tuple[bytes, bytes]:
    """A credential as the header that brings it elsewhere."""
    return b"authorization", b"Bearer " + token.encode("latin-1", "replace")


def _reason(message: str) -> str:
    """A close frame has room for 123 bytes."""
    return message.encode()[:120].decode("utf-8", "ignore")
