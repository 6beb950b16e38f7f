"""Responses that were stored: look at one, at what it was asked, hear its events again, end it, and forget it."""

from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, GatewayError, RequestError, ServiceUnavailable
from gateway.downstream import Downstream
from gateway.http.background_responses import BackgroundRuns
from gateway.http.front import Receive, Send
from gateway.http.inference import json_response
from gateway.http.server_protocol import reset_of
from gateway.identity.authenticator import Authenticator
from gateway.protocols.openai_responses.background import after, ending, error_event, is_background, is_running
from gateway.protocols.openai_responses.history import RESPONSE_ID, check_include, item_page, stream_of
from gateway.protocols.openai_responses.server import EventEncoder
from gateway.responses.store import KeptResponse
from gateway.streams.log import Head, Part
from gateway.streams.replay import Replay

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_NUMBER_MAX = 10**9
_HEAD = tuple((name.decode(), value.decode()) for name, value in EventEncoder.headers)


def stored_responses_router(authenticator: Authenticator, runs: BackgroundRuns | None) -> APIRouter:
    """Everything under ``/v1/responses/{response_id}``; without ``runs`` there is no response to be found."""
    router = APIRouter(prefix="/v1/responses/{response_id}", tags=["responses"])

    @router.get("", summary="A stored response of this account; with `stream=true` its events")
    async def get_response(request: Request, response_id: str) -> Response:
        caller = await authenticate(request)
        number = _starting_after(request.query_params)
        _check_include(request.query_params)
        own, found = await _find(runs, caller, response_id)
        if number is None:
            return _as_it_is(found)
        _check_background(found, "stream", "can be streamed again")
        return ResponseReplay(own, caller, found, number)

    @router.post("/cancel", summary="Stop a response in the background, on whichever gateway it runs")
    async def cancel_response(request: Request, response_id: str) -> Response:
        caller = await authenticate(request)
        own, found = await _find(runs, caller, response_id)
        _check_background(found, "response_id", "can be cancelled")
        ended = await own.end(caller, found)
        if ended is None:
            raise _no_such_response()
        return _as_it_is(ended)

    @router.delete("", summary="Forget a stored response, and stop it where it runs")
    async def delete_response(request: Request, response_id: str) -> Response:
        caller = await authenticate(request)
        own, found = await _find(runs, caller, response_id)
        await own.store.delete(caller.account, found.id)
        await own.stop(found)
        return json_response({"id": found.id, "object": "response", "deleted": True})

    @router.get("/input_items", summary="What a stored response was asked")
    async def list_input_items(request: Request, response_id: str) -> Response:
        caller = await authenticate(request)
        _check_include(request.query_params)
        _, found = await _find(runs, caller, response_id)
        return json_response(item_page(found.input, request.query_params))

    async def authenticate(request: Request) -> Caller:
        return await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))

    return router


async def _find(runs: BackgroundRuns | None, caller: Caller, response_id: str) -> tuple[BackgroundRuns, KeptResponse]:
    """A response, and where it is from; raises ``RequestError`` where there is none."""
    if not RESPONSE_ID.fullmatch(response_id):
        raise RequestError("The id of a response begins with resp_.", code=ErrorCode.INVALID_VALUE, param="response_id")
    found = await runs.find(caller, response_id) if runs is not None else None
    if runs is None or found is None:
        raise _no_such_response()
    return runs, found


class ResponseReplay(Response):
    """An answer of the framework's that is a response's events once more; ``number`` is of the last that is known."""

    media_type = "text/event-stream"

    def __init__(self, runs: BackgroundRuns, caller: Caller, found: KeptResponse, number: int) -> None:
        super().__init__()
        self._runs = runs
        self._caller = caller
        self._found = found
        self._number = number

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        services = self._runs.services
        with services.live.arriving():
            downstream = Downstream(
                send, ((b"x-gateway-stream-id", stream_of(self._found.id).encode()),), reset_of(scope)
            )
            replay = Replay(downstream, services.live, services.patience, services.tasks)
            await replay.run(self._rest(), receive, heartbeat=EventEncoder.heartbeat, fail=self._fail)

    async def _rest(self) -> AsyncGenerator[Part | None]:
        is_logged = is_running(self._found.response)
        try:
            async with aclosing(self._runs.follow(self._caller, self._found)) as parts:
                async for part in parts:
                    is_logged = is_logged or part is not None  # the end is stored before the log has it
                    if not is_logged:
                        raise _events_gone()
                    yield None if part is None else self._after(part)
        except ServiceUnavailable as error:
            newest = await self._runs.find(self._caller, self._found.id)
            if newest is None or is_running(newest.response):
                raise
            yield Part(0, ending(error, newest.response, self._number + 1), Head(200, _HEAD), is_end=True)

    def _after(self, part: Part) -> Part:
        payload, self._number = after(self._number, part.payload)
        return msgspec.structs.replace(part, payload=payload)

    def _fail(self, error: GatewayError) -> bytes:
        """The events cannot be read; nothing is known of the response."""
        return error_event(error, self._number + 1)


def _events_gone() -> RequestError:
    return RequestError(
        "The events of this response are no longer kept; ask for it without stream.",
        code=ErrorCode.NOT_FOUND,
        param="stream",
    )


def _no_such_response() -> RequestError:
    return RequestError("There is no such response.", code=ErrorCode.NOT_FOUND, param="response_id")


def _as_it_is(found: KeptResponse) -> Response:
    return Response(bytes(found.response), media_type="application/json")


def _check_background(found: KeptResponse, param: str, what: str) -> None:
    if not is_background(found.response):
        raise RequestError(
            f"Only a response that was asked for with background: true {what}.",
            code=ErrorCode.INVALID_VALUE,
            param=param,
        )


def _starting_after(query: QueryParams) -> int | None:
    """The number of the last event that the client has, -1 for none; ``None`` where it does not ask for events."""
    is_stream = _TRUTHS.get(query.get("stream", "false"))
    if is_stream is None:
        raise RequestError("stream must be true or false.", code=ErrorCode.INVALID_VALUE, param="stream")
    text = query.get("starting_after")
    if text is None:
        return -1 if is_stream else None
    if not is_stream:
        raise RequestError("starting_after needs stream=true.", code=ErrorCode.INVALID_VALUE, param="starting_after")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _NUMBER_MAX):
        raise RequestError(
            "starting_after must be the sequence_number of an event.",
            code=ErrorCode.INVALID_VALUE,
            param="starting_after",
        )
    return int(text)


def _check_include(query: QueryParams) -> None:
    check_include([value for name, value in query.multi_items() if name in ("include", "include[]")])
