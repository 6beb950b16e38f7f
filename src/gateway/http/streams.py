"""``GET /v1/streams/{id}``: what became of one of the caller's own streams, and what it cost."""

import re

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.identity.authenticator import Authenticator
from gateway.ledger import Streams
from gateway.metering.prices import usd_string

_ID = re.compile(r"[0-9a-f]{32}")


def streams_router(authenticator: Authenticator, streams: Streams) -> APIRouter:
    """Everything under ``/v1/streams``."""
    router = APIRouter(prefix="/v1/streams", tags=["streams"])

    @router.get("/{stream_id}", summary="What became of a stream of this account, and what it cost")
    async def get_stream(request: Request, stream_id: str) -> Response:
        caller = await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))
        found = await streams.get(caller.account, stream_id) if _ID.fullmatch(stream_id) else None
        if found is None:
            raise RequestError("There is no such stream.", code=ErrorCode.NOT_FOUND)
        body = {
            "id": stream_id,
            "object": "stream",
            "state": found.state,
            "outcome": found.outcome,
            "charged_usd": usd_string(found.charged),
            "held_usd": usd_string(found.held),
        }
        return Response(msgspec.json.encode(body), media_type="application/json")

    return router
