"""Sees to it that a response is kept: once, in the state in which its client last saw it.

It is kept before its last bytes are sent, so that whoever goes on from it at once finds it, on any gateway. That has a
short time: an answer is not held back, nor lost, since it cannot be kept.
"""

from typing import Any, Literal, TypeAlias

import msgspec
import structlog
from anyio import move_on_after
from prometheus_client import CollectorRegistry, Counter

from gateway.canonical.caller import Caller
from gateway.canonical.request import Request
from gateway.downstream import Downstream
from gateway.limits.redis import StoreUnavailable, retrying
from gateway.protocols.openai_responses.collect import Storage
from gateway.protocols.openai_responses.history import keepable
from gateway.protocols.openai_responses.server import EventEncoder, OpenAiResponsesServer
from gateway.protocols.wire import Headers, StreamMeta
from gateway.responses.store import KeptResponse, ResponseStore
from gateway.streams.logged import Connection

_log = structlog.get_logger()

Unkept: TypeAlias = Literal["unavailable", "too_large"]


def unkept_counter(registry: CollectorRegistry) -> Counter:
    """The count of responses that should have been kept and were not, by the reason."""
    return Counter(
        "gateway_responses_unkept",
        "Responses that should have been kept and were not: the store was unavailable, or they were too_large.",
        ("reason",),
        registry=registry,
    )


class KeepingServer(OpenAiResponsesServer):
    """The format for one request; ``storage`` says what its response says. ``newest`` is the encoder that answers."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.storage = storage
        self.newest: EventEncoder | None = None

    def encoder(self, request: Request, meta: StreamMeta) -> EventEncoder:
        self.newest = super().encoder(request, meta)
        return self.newest


class Shelf(msgspec.Struct, frozen=True):
    """Where the responses of a caller are kept, and the count of those that could not be."""

    store: ResponseStore
    caller: Caller
    unkept: Counter

    async def put(self, kept: KeptResponse, patience_s: float, *, is_update: bool = False) -> Unkept | None:
        """Keep a response; returns why that could not be, and raises nothing."""
        reason: Unkept = "unavailable"
        message = "The store took too long."
        with move_on_after(patience_s):
            try:
                if await retrying(lambda: self.store.put(self.caller.account, kept, is_update=is_update), patience_s):
                    return None
                reason, message = "too_large", "It is larger than what is kept of a response."
            except StoreUnavailable as error:
                message = str(error)
        self.unkept.labels(reason).inc()
        _log.warning("response_unkept", account=self.caller.account, reason=reason, message=message)
        return reason


class Keeper:
    """Keeps one response."""

    patience_s = 2.0

    def __init__(
        self, shelf: Shelf, said: list[msgspec.Raw] | str, server: KeepingServer, *, is_kept: bool = True
    ) -> None:
        self._shelf = shelf
        self._said = said
        self._server = server
        self._seen: dict[str, Any] | None = None
        self._is_done = not is_kept

    def freeze(self) -> None:
        """The client sees no more of it, whatever else is said."""
        self._seen = self._seen or self._newest()
        self._is_done = self._is_done or self._seen is None

    async def keep(self) -> None:
        """Keep it as it is, and never raise for that."""
        response = self._seen or self._newest()
        if self._is_done or response is None:
            return
        await self._put(response)
        self._is_done = True

    async def close(self) -> None:
        """The exchange is over: keep what its client saw of it, unless it has been kept."""
        await self.keep()
        self._is_done = True

    def _newest(self) -> dict[str, Any] | None:
        encoder = self._server.newest
        return None if encoder is None else encoder.final or encoder.so_far()

    async def _put(self, response: dict[str, Any]) -> None:
        await self._shelf.put(self._kept(response), self.patience_s)

    def _kept(self, response: dict[str, Any]) -> KeptResponse:
        caller = self._shelf.caller
        return KeptResponse(
            id=response["id"],
            method=caller.method,
            subject=caller.subject,
            previous=self._server.storage.previous or "",
            response=msgspec.Raw(msgspec.json.encode(response)),
            input=keepable(self._said, response["id"]),
        )


class KeepingDownstream(Downstream):
    """Sends one response, and has it kept before its last bytes go out."""

    __slots__ = ("keeper",)

    def __init__(self, connection: Connection, keeper: Keeper) -> None:
        super().__init__(connection.send, connection.extra, connection.abort, connection.wire)
        self.keeper = keeper

    def detach(self) -> None:
        """The client has gone; what the provider still says is not kept."""
        self.keeper.freeze()
        super().detach()

    async def finish(self, payload: bytes, headers: Headers) -> None:
        """Keep it, then send the last bytes."""
        if not self.is_finished:
            await self.keeper.keep()
        await super().finish(payload, headers)
