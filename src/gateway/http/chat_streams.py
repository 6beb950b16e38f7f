"""What a page of the AI SDK asks beside its messages: the stream it lost, once more, and an end to the one it sees.

``useChat`` with ``resume`` asks for ``GET /api/chat/{id}/stream`` when it is shown; nothing to resume is 204. AI SDK 4
asks for ``?chatId=`` on the path it posts to, and takes an empty answer for nothing. ``stop()`` only hangs up, which
does not end an answer that can be resumed: the page says so with ``POST /api/chat/{id}/stop``.
"""

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.canonical.caller import Caller
from gateway.downstream import Downstream
from gateway.http.front import Receive, Scope, Send
from gateway.http.server_protocol import reset_of
from gateway.identity.authenticator import Authenticator
from gateway.limits.redis import Redis
from gateway.protocols.wire import ResumableRole
from gateway.services import Services, Wishes
from gateway.streams.chats import Chats
from gateway.streams.log import LogBounds, LogReader
from gateway.streams.logged import Connection, LoggedDownstream
from gateway.streams.replay import Replay


class Resumption:
    """Makes the answers of chats resumable, and finds them again."""

    def __init__(self, redis: Redis, reader: LogReader, bounds: LogBounds, *, is_default: bool) -> None:
        """``is_default`` says whether a request that says nothing about it is resumable."""
        self.chats = Chats(redis)
        self.reader = reader
        self._is_default = is_default
        self._redis = redis
        self._bounds = bounds

    def follow(self, bounds: LogBounds, *, is_default: bool) -> None:
        """Answer later requests within other bounds."""
        self._bounds = self.reader.bounds = bounds
        self._is_default = is_default

    def is_wanted(self, wishes: Wishes) -> bool:
        """Whether a request's answer is to be resumable."""
        return self._is_default if wishes.resumable is None else wishes.resumable

    def downstream(self, connection: Connection, caller: Caller, chat_id: str) -> LoggedDownstream:
        """The client's side of an answer that goes on when its page goes away."""
        downstream = LoggedDownstream(connection, self._redis, caller.account, self._bounds)
        downstream.on_admitted = lambda sid: self.chats.begin(caller, chat_id, sid)
        downstream.on_delivered = lambda sid: self.chats.deliver(caller, chat_id, sid)
        return downstream


class ResumeEndpoint:
    """Answers with the stream that a chat is at; an ASGI application of its own, since its answers are streams."""

    def __init__(
        self, role: ResumableRole, authenticator: Authenticator, services: Services, resumption: Resumption
    ) -> None:
        self._role = role
        self._authenticator = authenticator
        self._services = services
        self._resumption = resumption

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, chats, role = Request(scope), self._resumption.chats, self._role
        caller = await self._authenticator.authenticate(scope["headers"], scope.get("client"))
        chat_id = request.path_params.get("chat_id") or request.query_params.get("chatId")
        if not chat_id:
            raise HTTPException(405, headers={"allow": "POST"})
        found = await chats.find(caller, chat_id)
        if found is None or found.is_delivered:
            await Response(status_code=role.nothing_to_resume)(scope, receive, send)
            return
        headers = ((b"x-gateway-stream-id", found.sid.encode()),)
        downstream = Downstream(send, headers, reset_of(scope))
        services = self._services
        with services.live.arriving():
            replay = Replay(downstream, services.live, services.patience, services.tasks)
            parts = self._resumption.reader.follow(caller.account, found.sid)
            if await replay.run(parts, receive, heartbeat=role.heartbeat, fail=role.broken_off):
                chats.deliver(caller, chat_id, found.sid)


def resume_routes(endpoints: dict[str, ResumeEndpoint]) -> list[Route]:
    """A route for each path on which a lost stream is asked for."""
    routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in endpoints.items()]
    for route in routes:
        route.methods = {"GET"}  # the framework adds HEAD, which would open a stream
    return routes


def chat_stop_router(
    authenticator: Authenticator, resumption: Resumption, stop: Callable[[str], Awaitable[None]]
) -> APIRouter:
    """``POST /api/chat/{id}/stop``; ``stop`` ends the stream of an id, wherever it runs."""
    router = APIRouter(prefix="/api/chat", tags=["chat"])

    @router.post("/{chat_id:path}/stop", summary="Stop the answer that a chat is at, on whichever gateway it runs")
    async def stop_chat(request: Request, chat_id: str) -> Response:
        caller = await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))
        found = await resumption.chats.find(caller, chat_id)
        if found is not None and not found.is_delivered:
            await stop(found.sid)
            resumption.chats.deliver(caller, chat_id, found.sid)  # who stops it has what it wanted
        body = {"id": chat_id, "object": "chat", "stream_id": None if found is None else found.sid}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return router
