"""``POST /v1/messages/count_tokens``: how many tokens a request has, before it is sent.

The count is our own, the one that admission uses. No provider is asked, so nothing is charged, and it needs no credit.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.canonical.errors import ErrorCode, PermissionDenied
from gateway.http.inference import check_media_type, json_response, query_of, read_body
from gateway.identity.authenticator import Authenticator
from gateway.metering.tokens import count_input, counter
from gateway.protocols.anthropic_messages.incoming import decode_countable
from gateway.services import Services


def count_router(authenticator: Authenticator, services: Services, *, body_bytes_max: int) -> APIRouter:
    """The endpoint. It takes Anthropic's bodies, in which ``max_tokens`` may be left out."""
    router = APIRouter(tags=["models"])

    @router.post("/v1/messages/count_tokens", summary="Count the tokens of a request in Anthropic's format")
    async def count_tokens(request: Request) -> Response:
        scope = dict(request.scope)
        caller = await authenticator.authenticate(scope["headers"], scope.get("client"))
        check_media_type(scope)
        body = await read_body(scope, request.receive, body_bytes_max)
        asked = decode_countable(body, version=query_of(scope).get("anthropic-version"))
        if not caller.may_use(asked.model):
            raise PermissionDenied("This credential does not allow the model.", code=ErrorCode.MODEL_NOT_ALLOWED)
        target = services.entrance.router.resolve(asked.model)[0]
        return json_response({"input_tokens": await count_input(asked, counter(target.tokenizer))})

    return router
