"""``GET /api/chat/ws``: the chats of AI SDK 7 over one WebSocket, with its ``WebSocketChatTransport``.

A ``send`` is a ``POST /api/chat`` in a frame. Since a client says ``abort`` when it wants no more, a connection that
breaks is never taken for that: the answer goes on, and a ``resume`` on another connection, to any gateway, finds it.
Chunks are numbered as they stand in the log, so that a client may go on after the last one it has.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.canonical.caller import Caller
from gateway.canonical.errors import GatewayError, RequestError, ServiceUnavailable
from gateway.downstream import Downstream
from gateway.http.chat_streams import Resumption
from gateway.http.inference import InferenceEndpoint, Opened
from gateway.http.socket_requests import Framing, SocketRequest, headers_of
from gateway.http.websockets import CloseCode, Refusal, Socket, SocketEndpoint, Sockets, bearer
from gateway.identity.authenticator import Authenticator
from gateway.limits.redis import StoreUnavailable
from gateway.protocols.ai_sdk_ui.frames import Abort, Auth, Frames, Resume, Send, addressed, decode_frame
from gateway.protocols.wire import ResumableRole
from gateway.services import Services, Wishes
from gateway.streams.logged import Connection, LoggedDownstream
from gateway.streams.replay import Replay

PATH = "/api/chat"

_RESUMABLE = b"x-gateway-resumable"
_REQUESTS_MAX = 16
_DONE = b"[DONE]"
_UNAUTHENTICATED = 401
_AWAY = "What was said cannot be read at the moment; try again shortly."


class ChatAnswer:
    """An answer in frames. ``after`` is the number of the last chunk that the client has already."""

    def __init__(self, socket: Socket, request_id: str, *, after: int = -1) -> None:
        self._socket = socket
        self._frames = Frames(request_id)
        self._after = after
        self._next = 0
        self._has_ended = False
        self.is_own_credential = False

    async def begin(self) -> None:
        """Say so at once: a client that resumes waits for it."""
        await self._socket.send(self._frames.start())

    async def events(self, payloads: list[bytes]) -> None:
        """Each event is a chunk, but for the mark of the end."""
        frames: list[str] = []
        for payload in payloads:
            if payload == _DONE:
                self._has_ended = True
                frames.append(self._frames.end())
            elif not self._has_ended:
                if self._next > self._after:
                    frames.append(self._frames.chunk(self._next, payload))
                self._next += 1
        if frames:
            await self._socket.send(*frames)

    async def end(self) -> None:
        """Once."""
        if not self._has_ended:
            self._has_ended = True
            await self._socket.send(self._frames.end())

    async def refuse(self, status: int, body: bytes) -> None:
        """The message of the error; a connection whose own credential is no longer right has to be opened anew."""
        self._has_ended = True
        if status == _UNAUTHENTICATED and self._socket.credential and not self.is_own_credential:
            self._socket.retiring = Refusal(CloseCode.UNAUTHENTICATED, "The credential is no longer right.")
        await self._socket.send(self._frames.refused(body))

    async def nothing(self) -> None:
        """There is nothing to resume."""
        self._has_ended = True
        await self._socket.send(self._frames.no_active())


class ChatRequest(SocketRequest):
    """A request for a chat's answer. ``end_stream`` ends the stream of an id, wherever it runs."""

    def __init__(self, framing: Framing, body: bytes | None, end_stream: Callable[[str], None]) -> None:
        super().__init__(framing, body)
        self._end_stream = end_stream
        self._stream_id = ""
        self._is_stopped = False

    def follow(self, downstream: Downstream) -> None:
        """Where the answer goes on without its client, hear of the stream's id when there is one."""
        if isinstance(downstream, LoggedDownstream):
            told = downstream.on_admitted

            def admitted(stream_id: str) -> None:
                told(stream_id)
                self.admitted(stream_id)

            downstream.on_admitted = admitted

    def admitted(self, stream_id: str) -> None:
        """The stream has begun; perhaps nobody wants it any more."""
        self._stream_id = stream_id
        if self._is_stopped:
            self._end_stream(stream_id)

    def stop(self) -> None:
        """The client wants no more of it: it ends cleanly, and is charged for what was said."""
        self.is_muted = self._is_stopped = True
        if self._stream_id:
            self._end_stream(self._stream_id)
        else:
            self.leave()


class _FrameConnection(Connection):
    """Remembers the request that it is the connection of."""

    __slots__ = ("request",)

    def __init__(self, request: ChatRequest) -> None:
        super().__init__(request.send, (), request.hang_up)
        self.request = request


class FrameEndpoint(InferenceEndpoint):
    """``POST /api/chat`` and ``GET /api/chat/{id}/stream``, asked in frames."""

    def __init__(
        self,
        role: ResumableRole,
        authenticator: Authenticator,
        services: Services,
        resumption: Resumption,
        *,
        body_bytes_max: int,
    ) -> None:
        super().__init__(role, authenticator, services, body_bytes_max=body_bytes_max, resumption=resumption)
        self._role = role
        self._chats = resumption.chats
        self._reader = resumption.reader

    async def post(self, request: ChatRequest) -> None:
        """Answer a chat's messages."""
        with self._services.live.arriving():
            await self._answer(request.scope(PATH), request.receive, _FrameConnection(request))

    async def _open(
        self, caller: Caller, body: bytes, query: dict[str, str], wishes: Wishes, connection: Connection
    ) -> Opened:
        assert isinstance(connection, _FrameConnection)
        connection.request.framing.prove()
        opened = await super()._open(caller, body, query, wishes, connection)
        connection.request.follow(opened.downstream)
        return opened

    async def resume(self, request: ChatRequest, asked: Resume, answer: ChatAnswer) -> None:
        """Tell the stream that a chat is at once more."""
        try:
            with self._services.live.arriving():
                await self._replay(request, asked, answer)
        except GatewayError as error:
            await self._refuse(answer, error)
        except StoreUnavailable:
            await self._refuse(answer, ServiceUnavailable(_AWAY, retry_after_s=1))

    async def _replay(self, request: ChatRequest, asked: Resume, answer: ChatAnswer) -> None:
        self._check_draining()
        caller = await self._authenticator.authenticate(request.headers, request.client)
        request.framing.prove()
        found = await self._chats.find(caller, asked.id)
        if found is None or (found.is_delivered and asked.lastSequence is None):
            await answer.nothing()
            return
        request.admitted(found.sid)
        services = self._services
        downstream = Downstream(request.send, (), request.hang_up)
        replay = Replay(downstream, services.live, services.patience, services.tasks)
        parts = self._reader.follow(caller.account, found.sid)
        if await replay.run(parts, request.receive, heartbeat=self._role.heartbeat, fail=self._role.broken_off):
            self._chats.deliver(caller, asked.id, found.sid)

    async def _refuse(self, answer: ChatAnswer, error: GatewayError) -> None:
        reply = self._role.encode_error(error)
        await answer.refuse(reply.status, reply.body)


class ChatSocket(SocketEndpoint):
    """The chats of one connection, each request on its own and beside the others."""

    def __init__(
        self, sockets: Sockets, endpoint: FrameEndpoint, services: Services, stop: Callable[[str], Awaitable[None]]
    ) -> None:
        """``stop`` ends the stream of an id, wherever it runs."""
        super().__init__(sockets)
        self._endpoint = endpoint
        self._services = services
        self._stop = stop

    async def take(self, socket: Socket, frame: str | bytes) -> None:
        """Begin what is asked, or say why not."""
        try:
            asked = decode_frame(frame)
        except RequestError as error:
            request_id = addressed(frame)
            await _complain(socket, "" if request_id in socket.requests else request_id, error)
            return
        match asked:
            case Auth():
                await self._authenticate(socket, asked.token)
            case Abort():
                request = socket.requests.get(asked.requestId)
                if isinstance(request, ChatRequest):
                    request.stop()
            case Send() | Resume() if asked.requestId in socket.requests:
                await _complain(socket, "", RequestError("requestId: This one is still being answered."))
            case Send() | Resume() if len(socket.requests) >= _REQUESTS_MAX:
                await _complain(socket, asked.requestId, RequestError("Too many requests at once on one connection."))
            case Send():
                self._send(socket, asked)
            case Resume():
                self._resume(socket, asked)

    async def _authenticate(self, socket: Socket, token: str) -> None:
        """A connection's credential, or a newer one. Nothing is said where it is right."""
        socket.credential, socket.retiring = (bearer(token),), None
        refusal = await self._sockets.check(socket)
        if refusal is not None:
            await socket.close(refusal.code, refusal.reason)

    def _send(self, socket: Socket, asked: Send) -> None:
        headers = headers_of(asked.headers)
        if not any(name == _RESUMABLE for name, _ in headers):
            headers += ((_RESUMABLE, b"true"),)
        answer = ChatAnswer(socket, asked.requestId)
        framing = Framing(socket, self._sockets, self._services.live, answer, headers)
        request = ChatRequest(framing, asked.to_post(), self._end_stream)
        answer.is_own_credential = request.has_credential
        socket.start(asked.requestId, request, self._endpoint.post(request))

    def _resume(self, socket: Socket, asked: Resume) -> None:
        answer = ChatAnswer(socket, asked.requestId, after=-1 if asked.lastSequence is None else asked.lastSequence)
        framing = Framing(socket, self._sockets, self._services.live, answer, headers_of(asked.headers))
        request = ChatRequest(framing, None, self._end_stream)
        answer.is_own_credential = request.has_credential
        socket.start(asked.requestId, request, self._endpoint.resume(request, asked, answer))

    def _end_stream(self, stream_id: str) -> None:
        self._services.tasks.start(self._end(stream_id), "stop-stream")

    async def _end(self, stream_id: str) -> None:
        with suppress(StoreUnavailable):  # what runs here has ended without it
            await self._stop(stream_id)


async def _complain(socket: Socket, request_id: str, error: RequestError) -> None:
    await socket.send(Frames(request_id).error(error.message, error.code.value))
