"""What happens to every request before it is routed: its id, and the answers browsers of other origins need.

Pure ASGI. The endpoints in ``direct`` are called from here and send the headers prepared here themselves: behind the
framework's middleware a request would pass nine more layers, and each chunk of a stream three. A request with a key in
its address is not let further: addresses are kept by browsers and written down by whatever stands between.
"""

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from gateway.canonical.errors import RequestError
from gateway.identity.keys import PREFIX
from gateway.protocols.wire import Headers

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = "gateway.request_id"
HEADERS = "gateway.headers"
REFUSAL = "gateway.refusal"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_EXPOSED = (
    b"x-request-id, x-gateway-stream-id, x-gateway-warnings, retry-after, x-should-retry, "
    b"x-vercel-ai-data-stream, x-vercel-ai-ui-message-stream, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"request-id, anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, "
    b"anthropic-ratelimit-requests-reset, anthropic-ratelimit-tokens-limit, anthropic-ratelimit-tokens-remaining, "
    b"anthropic-ratelimit-tokens-reset"
)
_CREDENTIALS = frozenset(
    ("key", "api_key", "api-key", "apikey", "x-api-key", "access_token", "token", "auth", "authorization", "secret")
)
_SECRETS = (PREFIX, "gwadmin-")
_PREFLIGHT_MAX_AGE_S = b"600"


class Front:
    """The outermost application. ``direct`` maps paths to the endpoints that answer POST there.

    ``sockets`` maps paths to those that take WebSockets; the server takes no offer of one on any other path.
    """

    def __init__(self, app: App, *, cors_origins: Sequence[str]) -> None:
        self._app = app
        self.direct: dict[str, App] = {}
        self.sockets: dict[str, App] = {}
        self._any_origin = "*" in cors_origins
        self._origins = frozenset(origin.encode("latin-1") for origin in cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.sockets.get(scope.get("path", ""), self._app)(scope, receive, send)
            return
        origin = request_id = asked_method = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"origin":
                origin = value
            elif name == b"access-control-request-method":
                asked_method = value
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = os.urandom(16).hex().encode()
        headers: Headers = ((b"x-request-id", request_id), *self._cors(origin))
        if scope["method"] == "OPTIONS" and origin is not None and asked_method is not None:
            await _preflight(scope, send, headers)
            return
        scope[REQUEST_ID] = request_id.decode("ascii")
        scope[HEADERS] = headers
        endpoint = self.direct.get(scope["path"])
        if scope["query_string"] and has_credential(scope["query_string"]):
            scope[REFUSAL] = RequestError("A credential must not be in the address: send Authorization: Bearer <key>.")
            endpoint = None
        if endpoint is not None and scope["method"] == "POST":
            await endpoint(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send, headers))

    def allows(self, origin: bytes) -> bool:
        """Whether pages of an origin may call."""
        return self._any_origin or origin in self._origins

    def _cors(self, origin: bytes | None) -> Headers:
        if origin is None or not self.allows(origin):
            return ()
        allowed = b"*" if self._any_origin else origin
        return (
            (b"access-control-allow-origin", allowed),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", _EXPOSED),
        )


def has_credential(query: bytes) -> bool:
    """Whether something in an address's query is, or is called, a secret."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(name.lower() in _CREDENTIALS or value.startswith(_SECRETS) for name, value in pairs)


async def _preflight(scope: Scope, send: Send, headers: Headers) -> None:
    """Answered before authentication: browsers send no credential with it."""
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"")
    allowed = asked or b"authorization, content-type"
    answer = [
        *headers,
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", allowed),
        (b"access-control-max-age", _PREFLIGHT_MAX_AGE_S),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: Headers) -> Send:
    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_headers
