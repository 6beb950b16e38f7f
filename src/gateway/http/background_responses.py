"""Responses that go on without their client: ``background: true``.

Such a response is in the store from its admission on, and its events are in a log as they are told. Whoever asks, at
any gateway, finds it; that the gateway which made it is gone is noticed by whoever asks then.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from anyio import move_on_after

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, GatewayError, RequestError, ServiceUnavailable
from gateway.canonical.request import Request
from gateway.downstream import Downstream
from gateway.endings import broke_error
from gateway.exchange import Exchange
from gateway.http.front import Receive
from gateway.http.response_keeping import Keeper, KeepingServer, Shelf
from gateway.ledger import Streams
from gateway.limits.redis import Redis, StoreUnavailable
from gateway.protocols.openai_responses.background import BackgroundEncoder, is_running, lost, unkeepable
from gateway.protocols.openai_responses.collect import Storage
from gateway.protocols.openai_responses.history import stream_of
from gateway.protocols.openai_responses.server import EventEncoder
from gateway.protocols.wire import Headers, Reply, StreamMeta, json_reply
from gateway.responses.store import KeptResponse, ResponseStore
from gateway.services import Services
from gateway.streams.log import LogBounds, LogReader, Part
from gateway.streams.logged import Connection, LoggedDownstream

_LOOK_S = 0.05
_STOP_S = 5.0


class BackgroundServer(KeepingServer):
    """The format for one response in the background: one encoder from its admission to its end."""

    wants_notices = False

    def __init__(self, request: Request, storage: Storage) -> None:
        super().__init__(storage)
        self._request = request

    def begin(self, stream_id: str) -> BackgroundEncoder:
        """The response was admitted."""
        meta = StreamMeta("", int(time.time()), None, wants_notices=self.wants_notices, stream_id=stream_id)
        self.newest = encoder = BackgroundEncoder(self._request, meta, self.storage)
        return encoder

    def encoder(self, request: Request, meta: StreamMeta) -> EventEncoder:
        """The one that began."""
        assert self.newest is not None
        return self.newest


class BackgroundKeeper(Keeper):
    """Keeps a response twice: as it was admitted, and at its end, unless it was deleted between."""

    # Nobody waits for the answer, and it is nowhere else.
    patience_s = 30.0
    _first_patience_s = 2.0

    def __init__(self, shelf: Shelf, said: list[msgspec.Raw] | str, server: KeepingServer) -> None:
        super().__init__(shelf, said, server)
        self._order = asyncio.Lock()

    def freeze(self) -> None:
        """It goes on: what is said unseen is part of it."""

    async def begin(self, response: dict[str, Any]) -> GatewayError | None:
        """From here on the response can be asked for; returns why it cannot."""
        async with self._order:
            reason = await self._shelf.put(self._kept(response), self._first_patience_s)
        if reason is None:
            return None
        if reason == "too_large":
            return RequestError(
                "The request is larger than what is stored of a response.",
                code=ErrorCode.REQUEST_TOO_LARGE,
                param="background",
            )
        return ServiceUnavailable("The response cannot be stored at the moment; try again shortly.", retry_after_s=1)

    async def _put(self, response: dict[str, Any]) -> None:
        kept = self._kept(response)
        async with self._order:
            if await self._shelf.put(kept, self.patience_s, is_update=True) == "too_large":
                short = self._kept(unkeepable(response))
                await self._shelf.put(short, self.patience_s, is_update=True)


class BackgroundDownstream(LoggedDownstream):
    """Tells one response to its log, and to its client where that one streams (``is_watched``) and while it is there.

    ``answer`` is what a client is told that does not stream: the response as it was admitted, or why it was not.
    """

    __slots__ = ("_end_stream", "_greeting", "_start", "answer", "is_watched", "keeper", "server")

    def __init__(
        self,
        connection: Connection,
        log: tuple[Redis, str, LogBounds],
        server: BackgroundServer,
        keeper: BackgroundKeeper,
        services: Services,
        end_stream: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__(connection, *log)
        self.server = server
        self.keeper = keeper
        self.is_watched = False
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._start = services.tasks.start
        self._end_stream = end_stream
        self._greeting: asyncio.Task[None] | None = None

    def admitted(self, stream_id: str) -> None:
        """The response exists: say so in its log, and then to the store and to the client."""
        super().admitted(stream_id)
        self._is_alone = not self.is_watched
        encoder = self.server.begin(stream_id)
        queued, opening = encoder.standing("queued"), encoder.queue()
        assert self._log is not None
        self._log.begin(200, encoder.headers)
        self._log.append(opening)
        # From here on whatever goes wrong is told within the stream.
        self.is_started = True
        told = json_reply(200, queued)
        self._greeting = self._start(self._greet(encoder, opening, told), "background-begin")

    async def _greet(self, encoder: BackgroundEncoder, opening: bytes, told: Reply) -> None:
        """Nothing else is told to the client before this is done: the lock is taken before anybody else runs."""
        async with self._lock:
            error = await self.keeper.begin(encoder.standing("in_progress"))
            if error is not None:
                told = self.server.encode_error(error)
                with suppress(StoreUnavailable):  # what runs here has ended without it
                    await self._end_stream(self._sid)
            if self._is_alone or self.is_finished:
                self._tell(told)
            elif told.status == 200:
                self.is_started = False
                await self._body(200, encoder.headers, opening, more=True)
            else:
                self.is_started = False
                await self._body(told.status, told.headers, told.body, more=False)

    def _tell(self, reply: Reply) -> None:
        if not self.answer.done():
            self.answer.set_result(reply)

    def outlives_client(self) -> bool:
        """Whatever its client does, and whatever becomes of its log."""
        if self.is_finished or self._log is None:
            return False
        if not self._is_alone:
            self._is_alone = True
            self._abort()
        return True

    def is_orphan(self, now: float) -> bool:
        """Never: its owner asks for it when he likes."""
        return False

    def detach(self) -> None:
        """It was stopped and told so; what is still read is read for the bill alone."""
        Downstream.detach(self)

    async def beat(self, payload: bytes, headers: Headers) -> None:
        """For a client that is there."""
        self.last_write_at = time.monotonic()
        await super().beat(payload, headers)

    async def finish(self, payload: bytes, headers: Headers) -> None:
        """Keep it, then tell the end."""
        if not self.is_finished:
            await self.keeper.keep()
        await super().finish(payload, headers)

    async def reply(self, reply: Reply) -> None:
        """Why it was not admitted."""
        if self.is_watched:
            await super().reply(reply)
        else:
            self.is_finished = True
            self._tell(reply)

    async def send_answer(self) -> None:
        """Tell it to a client that does not stream."""
        reply = await self.answer
        await Downstream(self._send, self._extra, self._abort).reply(reply)

    async def close(self) -> None:
        """Its exchange has ended, however it did."""
        if self._greeting is not None:
            await asyncio.wait([self._greeting])
        self._tell(self.server.encode_error(broke_error()))


class BackgroundRuns:
    """Runs responses in the background, and finds, replays and ends them again. Methods may raise ``StoreUnavailable``.

    ``end_stream`` ends the stream of an id, wherever it runs.
    """

    def __init__(
        self,
        store: ResponseStore,
        streams: Streams,
        reader: LogReader,
        log: tuple[Redis, LogBounds],
        services: Services,
        end_stream: Callable[[str], Awaitable[None]],
    ) -> None:
        self.store = store
        self.services = services
        self._reader = reader
        self._redis, self.bounds = log
        self._streams = streams
        self._end_stream = end_stream

    def downstream(
        self,
        connection: Connection,
        request: Request,
        shelf: Shelf,
        storage: Storage,
        said: list[msgspec.Raw] | str,
    ) -> BackgroundDownstream:
        """Where a response in the background is told."""
        server = BackgroundServer(request, storage)
        log = (self._redis, shelf.caller.account, self.bounds)
        keeper = BackgroundKeeper(shelf, said, server)
        return BackgroundDownstream(connection, log, server, keeper, self.services, self._end_stream)

    async def run(self, exchange: Exchange, receive: Receive, downstream: BackgroundDownstream) -> None:
        """Begin, and stay for as long as the client does."""
        is_watched = downstream.is_watched
        running = self.services.tasks.start(
            self._outlive(exchange, receive if is_watched else _stay, downstream), "background-response"
        )
        if is_watched:
            await asyncio.wait([running])
        else:
            await downstream.send_answer()

    async def _outlive(self, exchange: Exchange, receive: Receive, downstream: BackgroundDownstream) -> None:
        with self.services.live.arriving():
            try:
                await exchange.run(receive, downstream)
                await downstream.keeper.close()
            finally:
                await downstream.close()

    async def find(self, caller: Caller, response_id: str) -> KeptResponse | None:
        """A response of the caller's as it stands, whether or not it was asked for in the background."""
        found = await self.store.get(caller, response_id)
        return None if found is None else await self.settled(caller, found)

    async def settled(self, caller: Caller, found: KeptResponse) -> KeptResponse | None:
        """The same, unless it is said to be running and is not: then as it ended, or as lost."""
        if not is_running(found.response):
            return found
        stream = await self._streams.get(caller.account, stream_of(found.id))
        if stream is not None and stream.state == "open":
            return found
        again = await self.store.get(caller, found.id)
        if again is None or not is_running(again.response):
            return again
        return msgspec.structs.replace(again, response=lost(again.response))

    async def stop(self, found: KeptResponse) -> None:
        """Stop a response if it is running."""
        if is_running(found.response):
            await self._end_stream(stream_of(found.id))

    async def end(self, caller: Caller, found: KeptResponse) -> KeptResponse | None:
        """Stop a response that is running, and wait a while for its end; returns it as it stands then."""
        if not is_running(found.response):
            return found
        await self.stop(found)
        newest: KeptResponse | None = found
        with move_on_after(_STOP_S):
            while newest is not None and is_running(newest.response):
                await asyncio.sleep(_LOOK_S)
                newest = await self.find(caller, found.id)
        return newest

    def follow(self, caller: Caller, found: KeptResponse) -> AsyncGenerator[Part | None]:
        """What is told of a response, from its beginning on."""
        return self._reader.follow(caller.account, stream_of(found.id))


async def _stay() -> Any:
    """A client that has been answered has nothing more to say."""
    await asyncio.Event().wait()
