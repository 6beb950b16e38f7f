"""The caller's own streams: what became of one, what it cost, and stopping it, whichever gateway runs it."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.identity.authenticator import Authenticator
from gateway.ledger import Streams, StreamState
from gateway.metering.prices import usd_string

STREAM_ID = re.compile(r"[0-9a-f]{32}")


def streams_router(authenticator: Authenticator, streams: Streams, stop: Callable[[str], Awaitable[None]]) -> APIRouter:
    """Everything under ``/v1/streams``; ``stop`` ends the stream of an id, wherever it runs."""
    router = APIRouter(prefix="/v1/streams", tags=["streams"])

    @router.get("/{stream_id}", summary="What became of a stream of this account, and what it cost")
    async def get_stream(request: Request, stream_id: str) -> Response:
        return _json(await find(request, stream_id))

    @router.post("/{stream_id}/stop", summary="Stop a stream of this account, on whichever gateway it runs")
    async def stop_stream(request: Request, stream_id: str) -> Response:
        found = await find(request, stream_id)
        if found.state == "open":
            await stop(stream_id)
        return _json(found)

    async def find(request: Request, stream_id: str) -> StreamState:
        caller = await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))
        found = await streams.get(caller.account, stream_id) if STREAM_ID.fullmatch(stream_id) else None
        if found is None:
            raise RequestError("There is no such stream.", code=ErrorCode.NOT_FOUND)
        return found

    return router


def stream_object(found: StreamState) -> dict[str, object]:
    """A stream as this API and the operator's show it."""
    return {
        "id": found.id,
        "object": "stream",
        "state": found.state,
        "outcome": found.outcome,
        "owner": found.subject,
        "model": found.model,
        "protocol": found.protocol,
        "started_at": datetime.fromtimestamp(found.started_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "charged_usd": usd_string(found.charged),
        "held_usd": usd_string(found.held),
    }


def _json(found: StreamState) -> Response:
    return Response(msgspec.json.encode(stream_object(found)), media_type="application/json")
