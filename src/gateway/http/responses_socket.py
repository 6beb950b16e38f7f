"""``GET /v1/responses`` as a WebSocket: OpenAI's WebSocket mode of Responses.

A ``response.create`` is a ``POST /v1/responses`` in a frame, and each event of its stream is a frame. Those of one
``stream_id`` are answered one after the other, those of different ones beside each other. A client goes on from any
response of its connection, stored or not; when the connection breaks, what runs on it ends as it would over HTTP.
Reference: https://platform.openai.com/docs/guides/websocket-mode
"""

import time
from collections import deque
from itertools import count
from weakref import WeakKeyDictionary

from gateway.canonical.caller import Caller
from gateway.canonical.errors import RequestError
from gateway.http.inference import Opened
from gateway.http.responses import ResponsesEndpoint
from gateway.http.socket_requests import Framing, SocketRequest
from gateway.http.websockets import CloseCode, Refusal, Socket, SocketEndpoint, Sockets
from gateway.protocols.openai_responses.background import is_stored
from gateway.protocols.openai_responses.frames import Create, Frames, decode_frame, lane_of
from gateway.responses.connection import ConnectionStore
from gateway.responses.store import ResponseStore
from gateway.services import Services, Wishes
from gateway.streams.logged import Connection

PATH = "/v1/responses"

_LIFE_S = 3600.0
_WAITING_MAX = 32
_UNAUTHENTICATED = 401


class ResponseAnswer:
    """An answer in frames."""

    def __init__(self, socket: Socket, stream_id: str | None) -> None:
        self._socket = socket
        self._frames = Frames(stream_id)

    async def begin(self) -> None:
        """The first event says so."""

    async def events(self, payloads: list[bytes]) -> None:
        """Each event is a frame."""
        if payloads:
            await self._socket.send(*[self._frames.event(payload) for payload in payloads])

    async def end(self) -> None:
        """The last event said so."""

    async def refuse(self, status: int, body: bytes) -> None:
        """The error; a connection whose credential is no longer right has to be opened anew."""
        if status == _UNAUTHENTICATED:
            self._socket.retiring = Refusal(CloseCode.UNAUTHENTICATED, "The credential is no longer right.")
        await self._socket.send(self._frames.refused(status, body))


class _Asked(SocketRequest):
    """A request with what its connection remembers."""

    def __init__(self, framing: Framing, body: bytes, store: ConnectionStore) -> None:
        super().__init__(framing, body)
        self.store = store


class _FrameConnection(Connection):
    """Remembers the request that it is the connection of."""

    __slots__ = ("request",)

    def __init__(self, request: _Asked) -> None:
        super().__init__(request.send, (), request.hang_up)
        self.request = request


class FramedResponses(ResponsesEndpoint):
    """``POST /v1/responses``, asked in frames; with no ``background``, only connections remember what was said."""

    _keeps_all = True

    async def post(self, request: _Asked) -> None:
        """Answer one request."""
        with self._services.live.arriving():
            await self._answer(request.scope(PATH), request.receive, _FrameConnection(request))

    async def _open(
        self, caller: Caller, body: bytes, query: dict[str, str], wishes: Wishes, connection: Connection
    ) -> Opened:
        assert isinstance(connection, _FrameConnection)
        connection.request.framing.prove()
        return await super()._open(caller, body, query, wishes, connection)

    def _store_of(self, connection: Connection) -> ResponseStore:
        assert isinstance(connection, _FrameConnection)
        return connection.request.store

    def new_store(self) -> ConnectionStore:
        """What a fresh connection remembers."""
        below = self._background.store if self._background is not None else None
        return ConnectionStore(below, lambda kept: is_stored(kept.response))


class _Lane:
    """The requests of one ``stream_id``, one after the other."""

    def __init__(self, endpoint: FramedResponses) -> None:
        self._endpoint = endpoint
        self._current: _Asked | None = None
        self.waiting: deque[_Asked] = deque()
        self.is_running = False

    async def run(self) -> None:
        """Answer what waits, and what comes meanwhile."""
        try:
            while self.waiting:
                self._current = self.waiting.popleft()
                await self._endpoint.post(self._current)
        finally:
            self.is_running = False

    def leave(self) -> None:
        """The client has gone."""
        self.waiting.clear()
        if self._current is not None:
            self._current.leave()


class _Conversation:
    """What belongs to one connection."""

    def __init__(self, store: ConnectionStore) -> None:
        self.store = store
        self.lanes: dict[str | None, _Lane] = {}
        self.numbers = count()

    @property
    def waiting(self) -> int:
        """How many requests run or wait for their turn."""
        return sum(len(lane.waiting) + lane.is_running for lane in self.lanes.values())


class ResponsesSocket(SocketEndpoint):
    """The responses of one connection, for an hour."""

    def __init__(
        self, sockets: Sockets, endpoint: FramedResponses, services: Services, *, life_s: float = _LIFE_S
    ) -> None:
        super().__init__(sockets)
        self._endpoint = endpoint
        self._services = services
        self._life_s = life_s
        self._conversations: WeakKeyDictionary[Socket, _Conversation] = WeakKeyDictionary()

    async def take(self, socket: Socket, frame: str | bytes) -> None:
        """Begin what is asked, or say why not."""
        try:
            asked = decode_frame(frame)
        except RequestError as error:
            await socket.send(Frames(lane_of(frame)).error(400, error))
            return
        conversation = self._conversations.get(socket)
        if conversation is None:
            conversation = self._conversations[socket] = _Conversation(self._endpoint.new_store())
        if time.monotonic() - socket.opened_at > self._life_s:
            await socket.send(Frames(asked.stream_id).too_old(self._life_s))
            socket.retiring = Refusal(CloseCode.NORMAL, "The connection has had its time.")
        elif conversation.waiting >= _WAITING_MAX:
            too_many = RequestError(f"More than {_WAITING_MAX} requests wait on this connection.")
            await socket.send(Frames(asked.stream_id).error(400, too_many))
        else:
            self._begin(socket, conversation, asked)

    def _begin(self, socket: Socket, conversation: _Conversation, asked: Create) -> None:
        answer = ResponseAnswer(socket, asked.stream_id)
        framing = Framing(socket, self._sockets, self._services.live, answer, ())
        for name in [name for name, lane in conversation.lanes.items() if not lane.is_running]:
            del conversation.lanes[name]
        lane = conversation.lanes.setdefault(asked.stream_id, _Lane(self._endpoint))
        lane.waiting.append(_Asked(framing, asked.body, conversation.store))
        if not lane.is_running:
            lane.is_running = True
            socket.start(str(next(conversation.numbers)), lane, lane.run())
