"""Errors that no endpoint answers itself, each in the envelope of the path it happened on.

What was refused before it was routed (``front.REFUSAL``) is routed to its refusal here.
"""

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from gateway.canonical.errors import ErrorCode, GatewayError, RequestError, ServiceUnavailable
from gateway.http.front import REFUSAL, REQUEST_ID
from gateway.limits.redis import StoreUnavailable
from gateway.protocols.wire import Reply, ServerRole

_log = structlog.get_logger()

_WHERE_MAX = 200

_CODES = {
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.REQUEST_TOO_LARGE,
    415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
}


def add_error_handlers(app: FastAPI, envelopes: dict[str, ServerRole], default: ServerRole) -> None:
    """``envelopes`` maps path prefixes to the protocol whose envelope is used below them.

    A name without a slash is a header: who sends it gets that envelope on the paths of the default one.
    """

    def answer(request: Request, error: GatewayError) -> Response:
        path = request.scope["path"]
        headers = request.headers
        role = next((role for key, role in envelopes.items() if path.startswith(key) or key in headers), default)
        error.request_id = request.scope.get(REQUEST_ID)
        return _response(role.encode_error(error))

    async def on_gateway_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return answer(request, error)

    async def on_store_error(request: Request, error: Exception) -> Response:
        return answer(
            request, ServiceUnavailable("The credit store does not answer. Try again shortly.", retry_after_s=1)
        )

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, ErrorCode.INVALID_REQUEST)
        what = {
            ErrorCode.NOT_FOUND: f"There is no {request.method} {request.scope['path'][:200]!r} here.",
            ErrorCode.METHOD_NOT_ALLOWED: f"{request.method} is not allowed here.",
        }.get(code, str(error.detail))
        response = answer(request, RequestError(what, code=code))
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"The body is not valid JSON (character {first['loc'][-1]})."
            return answer(request, RequestError(message, code=ErrorCode.INVALID_JSON))
        where = ".".join(str(part) for part in first["loc"][1:])[:_WHERE_MAX]
        message = f"{where}: {first['msg']}." if where else f"{first['msg']}."
        return answer(request, RequestError(message, code=ErrorCode.INVALID_VALUE, param=where or None))

    async def on_bug(request: Request, error: Exception) -> Response:
        _log.error("request_broke", path=request.scope["path"], exc_info=error)
        return answer(request, GatewayError("The gateway failed. The request id helps its operator to find out why."))

    app.add_exception_handler(GatewayError, on_gateway_error)
    app.add_exception_handler(StoreUnavailable, on_store_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)
    app.router.routes.insert(0, _RefusalRoute())


class _RefusalRoute(BaseRoute):
    """Takes the requests that were refused before they came here, whatever they ask for."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL if REFUSAL in scope else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise scope[REFUSAL]


def _response(reply: Reply) -> Response:
    response = Response(reply.body, status_code=reply.status)
    for name, value in reply.headers:
        response.headers[name.decode()] = value.decode()
    return response
