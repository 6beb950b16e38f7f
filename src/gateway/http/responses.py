"""``POST /v1/responses`` where responses are stored: what came before is said again, and the answer is kept.

One in the background goes on without its client (``background_responses``); all others end with theirs.
"""

from typing import Any

import msgspec
from prometheus_client import Counter

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, RequestError, ServiceUnavailable
from gateway.downstream import Downstream
from gateway.exchange import Exchange
from gateway.http.background_responses import BackgroundDownstream, BackgroundRuns
from gateway.http.front import Receive
from gateway.http.inference import InferenceEndpoint, Opened
from gateway.http.response_keeping import Keeper, KeepingDownstream, KeepingServer, Shelf
from gateway.identity.authenticator import Authenticator
from gateway.limits.redis import StoreUnavailable
from gateway.protocols.openai_responses.background import is_running
from gateway.protocols.openai_responses.collect import Storage
from gateway.protocols.openai_responses.history import by_id, output_of, response_of, sayable
from gateway.protocols.openai_responses.incoming import Incoming, read, request_of
from gateway.protocols.openai_responses.server import OpenAiResponsesServer
from gateway.responses.store import ResponseStore, StoreBounds
from gateway.services import Services, Wishes
from gateway.streams.logged import Connection


class ResponsesEndpoint(InferenceEndpoint):
    """Responses that may go on from stored ones, and are stored unless that is declined."""

    # Whether what is declined is kept, too, though by nobody else than the connection.
    _keeps_all = False

    def __init__(
        self,
        authenticator: Authenticator,
        services: Services,
        background: BackgroundRuns | None,
        unkept: Counter,
        *,
        body_bytes_max: int,
    ) -> None:
        super().__init__(OpenAiResponsesServer(), authenticator, services, body_bytes_max=body_bytes_max)
        self._background = background
        self._unkept = unkept

    async def _open(
        self, caller: Caller, body: bytes, query: dict[str, str], wishes: Wishes, connection: Connection
    ) -> Opened:
        incoming, store = read(body), self._store_of(connection)
        try:
            earlier = await self._earlier(store, caller, incoming.wanted.previous_response_id)
            if incoming.references:
                incoming = incoming.resolve(await _referenced(store, caller, incoming.references.values()))
        except StoreUnavailable:
            raise ServiceUnavailable(
                "Stored responses cannot be read at the moment; try again shortly.", retry_after_s=1
            ) from None
        request = request_of(incoming, earlier)
        wanted, shelf = incoming.wanted, Shelf(store, caller, self._unkept)
        is_kept = self._background is not None and _is_kept(incoming, store.bounds)
        storage = Storage(wanted.previous_response_id, is_kept, bool(wanted.background))
        if storage.is_background and self._background is not None:
            downstream = self._background.downstream(connection, request, shelf, storage, incoming.items)
            downstream.is_watched = bool(wanted.stream)
            downstream.server.wants_notices = wishes.notices
            return Opened(downstream.server, request, downstream)
        server = KeepingServer(storage)
        is_kept = is_kept or self._keeps_all
        keeper = Keeper(shelf, incoming.items if is_kept else "", server, is_kept=is_kept)
        return Opened(server, request, KeepingDownstream(connection, keeper))

    def _store_of(self, connection: Connection) -> ResponseStore:
        """Where what a request goes on from is, and where its response is kept."""
        assert self._background is not None
        return self._background.store

    async def _earlier(self, store: ResponseStore, caller: Caller, previous: str | None) -> list[msgspec.Raw]:
        """What was said before, from the beginning of a conversation to its ``previous`` response."""
        if previous is None:
            return []
        chain = await store.chain(caller, previous)
        if self._background is not None and is_running(chain[-1].response):
            newest = await self._background.settled(caller, chain[-1])
            if newest is None or is_running(newest.response):
                raise RequestError(
                    "The previous response is still in progress; go on from it once it is complete.",
                    code=ErrorCode.INVALID_VALUE,
                    param="previous_response_id",
                )
            chain[-1] = newest
        return [item for kept in chain for item in (*kept.input, *sayable(output_of(kept.response)))]

    async def _run(self, exchange: Exchange, receive: Receive, downstream: Downstream) -> None:
        if isinstance(downstream, BackgroundDownstream):
            assert self._background is not None
            await self._background.run(exchange, receive, downstream)
            return
        await super()._run(exchange, receive, downstream)
        assert isinstance(downstream, KeepingDownstream)
        await downstream.keeper.close()


def _is_kept(incoming: Incoming, bounds: StoreBounds) -> bool:
    """Raises ``RequestError`` where the client insists on what cannot be."""
    wanted = incoming.wanted
    bytes_max = min(bounds.response_bytes_max, bounds.account_bytes_max)
    if wanted.store is False or wanted.input is None:
        return wanted.store is not False
    if memoryview(incoming.raw["input"]).nbytes <= bytes_max:
        return True
    if wanted.store or wanted.background:
        raise RequestError(
            f"The input is larger than the {bytes_max} bytes that are stored of a response; send store: false.",
            code=ErrorCode.REQUEST_TOO_LARGE,
            param="store" if wanted.store else "background",
        )
    return False


async def _referenced(store: ResponseStore, caller: Caller, item_ids: Any) -> dict[str, msgspec.Raw]:
    """Stored items by their ids, as far as they are there."""
    places = {identity: response_of(identity) for identity in item_ids}
    ids = list(dict.fromkeys(place for place in places.values() if place is not None))
    if not ids:
        return {}
    if len(ids) > store.bounds.conversation_max:
        raise RequestError(
            f"The input refers to more than {store.bounds.conversation_max} responses.",
            code=ErrorCode.INVALID_VALUE,
            param="input",
        )
    found: dict[str, msgspec.Raw] = {}
    for kept in (await store.find(caller, ids)).values():
        found |= by_id((*kept.input, *output_of(kept.response)))
    return {identity: found[identity] for identity in places if identity in found}
