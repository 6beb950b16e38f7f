"""The part of the admin API that shows an account's running streams, on all gateways, and stops one."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from gateway.canonical.errors import ErrorCode, RequestError
from gateway.http.admin import Admin
from gateway.http.streams import STREAM_ID, stream_object
from gateway.ledger import Streams
from gateway.limits import keys

_LISTED_MAX = 1000


class StreamOut(BaseModel):
    """A stream: who asked for what, and what it has cost so far."""

    id: str
    state: str = Field(description="`open`, `done`, or `reaped` where the gateway that ran it is gone.")
    outcome: str
    owner: str
    model: str
    protocol: str
    started_at: str
    charged_usd: str
    held_usd: str


class StreamList(BaseModel):
    """Running streams, at most a thousand."""

    data: list[StreamOut]


def streams_admin_router(admin: Admin, streams: Streams, stop: Callable[[str], Awaitable[None]]) -> APIRouter:
    """``/admin/v1/accounts/{id}/streams``; wants the admin key. ``stop`` ends the stream of an id."""

    def check(request: Request) -> None:
        admin.check(dict(request.scope))

    router = APIRouter(prefix="/admin/v1/accounts", tags=["admin"], dependencies=[Depends(check)])

    @router.get("/{account_id}/streams", summary="The account's running streams, on all gateways")
    async def list_streams(account_id: str) -> StreamList:
        await known(account_id)
        running = await streams.running(account_id, count=_LISTED_MAX)
        return StreamList(data=[StreamOut.model_validate(stream_object(state)) for state in running])

    @router.post("/{account_id}/streams/{stream_id}/stop", summary="Stop a stream, on whichever gateway it runs")
    async def stop_stream(account_id: str, stream_id: str) -> StreamOut:
        await known(account_id)
        found = await streams.get(account_id, stream_id) if STREAM_ID.fullmatch(stream_id) else None
        if found is None:
            raise RequestError("There is no such stream.", code=ErrorCode.NOT_FOUND)
        if found.state == "open":
            await stop(stream_id)
        return StreamOut.model_validate(stream_object(found))

    async def known(account_id: str) -> None:
        if not keys.ACCOUNT_NAME.fullmatch(account_id) or await admin.accounts.get(account_id) is None:
            raise RequestError("There is no such account.", code=ErrorCode.NOT_FOUND)

    return router
