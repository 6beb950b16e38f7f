"""The endpoints that models answer: authenticate, read, decode, and hand over to an ``Exchange``."""

import hashlib
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec
import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.canonical.caller import Caller
from gateway.canonical.errors import ErrorCode, GatewayError, RequestError, ServiceUnavailable
from gateway.canonical.request import Request as InferenceRequest
from gateway.downstream import Downstream
from gateway.endings import broke_error
from gateway.exchange import Exchange
from gateway.http.chat_streams import Resumption
from gateway.http.front import HEADERS, REQUEST_ID, Receive, Scope, Send
from gateway.http.request_headers import idempotency_key, truth
from gateway.http.server_protocol import reset_of, wire_of
from gateway.identity.authenticator import Authenticator
from gateway.mirror import MirroredExchange
from gateway.protocols.anthropic_messages.listing import model_object, model_page
from gateway.protocols.bodies import check_model_name
from gateway.protocols.wire import Reply, ServerRole
from gateway.router import ModelEntry
from gateway.services import Services, Wishes
from gateway.streams.logged import Connection

_log = structlog.get_logger()

_LISTED_SINCE = 1_735_689_600  # 2025-01-01: models have no date of their own here, and clients want a number


class Opened(NamedTuple):
    """A request that was read, in which format it is answered, and where to."""

    protocol: ServerRole
    request: InferenceRequest
    downstream: Downstream


class InferenceEndpoint:
    """One path that speaks one protocol. An ASGI application of its own: nothing stands between it and the socket."""

    def __init__(
        self,
        protocol: ServerRole,
        authenticator: Authenticator,
        services: Services,
        *,
        body_bytes_max: int,
        resumption: Resumption | None = None,
    ) -> None:
        """With a ``resumption``, answers of chats go on without their client where that is wanted."""
        self._protocol = protocol
        self._authenticator = authenticator
        self._services = services
        self._body_bytes_max = body_bytes_max
        self._resumption = resumption

    def speak(self, protocol: ServerRole) -> None:
        """Read later requests in this role, whose defaults may be others."""
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._services.live.arriving():
            await self._answer(scope, receive, Connection(send, scope[HEADERS], reset_of(scope), wire_of(scope)))

    async def _answer(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        request_id: str = scope[REQUEST_ID]
        caller: Caller | None = None
        try:
            self._check_draining()
            caller = await self._authenticator.authenticate(scope["headers"], scope.get("client"))
            check_media_type(scope)
            body = await read_body(scope, receive, self._body_bytes_max)
            self._check_draining()  # a body may have taken its time
            wishes = _wishes(scope, body)
            protocol, request, downstream = await self._open(caller, body, query_of(scope), wishes, connection)
        except GatewayError as error:
            error.request_id = request_id
            self._services.telemetry.refused(request_id, caller, error.code.value)
            await _reply(connection, _closing(self._protocol.encode_error(error), error))
            return
        except Exception:
            _log.exception("request_broke", request_id=request_id)
            await _reply(connection, self._protocol.encode_error(broke_error()))
            return
        kind = MirroredExchange if self._services.entrance.router.mirrors else Exchange
        await self._run(kind(self._services, protocol, request, caller, request_id, wishes), receive, downstream)

    async def _open(
        self, caller: Caller, body: bytes, query: dict[str, str], wishes: Wishes, connection: Connection
    ) -> "Opened":
        """What an exchange needs of a body; raises ``GatewayError``."""
        request = self._protocol.decode_request(body, query)
        downstream = Downstream(connection.send, connection.extra, connection.abort, connection.wire)
        if self._resumption is not None and request.chat_id and self._resumption.is_wanted(wishes):
            downstream = self._resumption.downstream(connection, caller, request.chat_id)
        return Opened(self._protocol, request, downstream)

    async def _run(self, exchange: Exchange, receive: Receive, downstream: Downstream) -> None:
        await exchange.run(receive, downstream)

    def _check_draining(self) -> None:
        if self._services.live.is_draining:
            raise ServiceUnavailable(
                "The gateway is stopping; send the request again.", code=ErrorCode.DRAINING, retry_after_s=1
            )


_VERSION = "anthropic-version"
_READ_BY_PROTOCOLS = (_VERSION.encode(), b"anthropic-beta")


def query_of(scope: Scope) -> dict[str, str]:
    """What stands in the address, and the headers that some protocol reads beside it, by their names."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"))) if scope["query_string"] else {}
    named = dict(scope["headers"])
    for wanted in _READ_BY_PROTOCOLS:
        if wanted not in named:
            continue
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
        query[wanted.decode()] = ",".join(values)
    return query


_NO_WISHES = Wishes()
_TRUE = (b"1", b"true")
_WISHES = (b"idempotency-key", b"x-gateway-")


def _wishes(scope: Scope, body: bytes) -> Wishes:
    """What the headers ask for; raises ``RequestError`` where one of them is no value for it."""
    headers = [header for header in scope["headers"] if header[0].startswith(_WISHES)]
    if not headers:  # as most
        return _NO_WISHES
    key = idempotency_key(headers)
    notices = any(name == b"x-gateway-events" and value.lower() in _TRUE for name, value in headers)
    resumable = truth(headers, b"x-gateway-resumable")
    is_strict = bool(truth(headers, b"x-gateway-strict"))
    if key is None:
        return Wishes(notices=notices, resumable=resumable, is_strict=is_strict)
    address = f"{scope['path']}?{scope['query_string'].decode('latin-1')}\n".encode()
    digest = hashlib.blake2b(address + body, digest_size=16).hexdigest()
    return Wishes(idempotency_key=key, digest=digest, notices=notices, resumable=resumable, is_strict=is_strict)


async def _reply(connection: Connection, reply: Reply) -> None:
    await Downstream(connection.send, connection.extra, connection.abort).reply(reply)


def _closing(reply: Reply, error: GatewayError) -> Reply:
    """An answer after which the connection is of no use: the process stops."""
    if error.code is not ErrorCode.DRAINING:
        return reply
    return Reply(reply.status, (*reply.headers, (b"connection", b"close")), reply.body)


def check_media_type(scope: Scope) -> None:
    """Raises ``RequestError`` for a body that is not said to be JSON in UTF-8."""
    content_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.lower()
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise RequestError(
                "A compressed body is not accepted.", code=ErrorCode.UNSUPPORTED_MEDIA_TYPE, param="content-encoding"
            )
    if content_type == b"application/json":
        return
    media_type, *parameters = (piece.strip() for piece in content_type.split(b";"))
    charsets = [piece[8:].strip(b'"') for piece in parameters if piece.startswith(b"charset=")]
    if media_type != b"application/json" or any(charset not in (b"utf-8", b"utf8") for charset in charsets):
        raise RequestError(
            "The content type must be application/json in UTF-8.",
            code=ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            param="content-type",
        )


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """The whole body; raises ``RequestError`` as soon as it is known to be larger than ``bytes_max``."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > bytes_max:
            raise _too_large(bytes_max)
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        body: bytes = message["body"]
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        return body
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise RequestError("The body ended early.", code=ErrorCode.INVALID_REQUEST)
        pieces.append(message["body"])
        size += len(message["body"])
        if size > bytes_max:
            raise _too_large(bytes_max)
        if not message["more_body"]:
            return b"".join(pieces)
        message = await receive()


def _too_large(bytes_max: int) -> RequestError:
    return RequestError(f"The body is larger than {bytes_max} bytes.", code=ErrorCode.REQUEST_TOO_LARGE)


def inference_routes(endpoints: dict[str, InferenceEndpoint]) -> list[Route]:
    """A route for each path, so that the framework knows which methods are wrong there."""
    return [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]


def models_router(authenticator: Authenticator, services: Services) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/{id}``; who sends ``anthropic-version`` gets Anthropic's shape."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="List the models this credential may use")
    async def list_models(request: Request) -> Response:
        caller = await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))
        entries = [entry for entry in services.entrance.router.models() if caller.may_use(entry.id)]
        if _VERSION in request.headers:
            return json_response(model_page([entry.id for entry in entries], request.query_params))
        return json_response({"object": "list", "data": [_model(entry) for entry in entries]})

    @router.get("/{model_id:path}", summary="One model")
    async def get_model(request: Request, model_id: str) -> Response:
        caller = await authenticator.authenticate(request.scope["headers"], request.scope.get("client"))
        models = services.entrance.router.models()
        entry = next((entry for entry in models if entry.id == check_model_name(model_id)), None)
        if entry is None:
            if not caller.may_use(model_id):
                raise _no_such_model()
            target = services.entrance.router.resolve(model_id)[0]
            entry = ModelEntry(model_id, target.provider.name)
        if not caller.may_use(entry.id):
            raise _no_such_model()
        return json_response(model_object(entry.id) if _VERSION in request.headers else _model(entry))

    return router


def _no_such_model() -> RequestError:
    return RequestError("There is no such model here.", code=ErrorCode.MODEL_NOT_FOUND, param="model")


def _model(entry: ModelEntry) -> dict[str, object]:
    return {"id": entry.id, "object": "model", "created": _LISTED_SINCE, "owned_by": entry.owned_by}


def json_response(value: object) -> Response:
    """An answer of the framework's, for what is not a stream."""
    return Response(msgspec.json.encode(value), media_type="application/json")
