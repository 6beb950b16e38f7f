"""From request headers to a ``Caller``: which credential it is, and who checks it.

Whoever guesses API keys is slowed down by address. Guessing is no way into 256 random bits, but each guess asks Redis.
Tokens ask nobody and are not counted.
"""

from collections.abc import Iterable

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode, LimitExceeded
from gateway.identity import keys
from gateway.identity.attempts import FailedAttempts
from gateway.identity.jwt import JwtVerifier

_MISSING = "No credential: send Authorization: Bearer <API key or token>, or the same as x-api-key."


class Authenticator:
    """Checks API keys, and JWTs where the configuration trusts an issuer."""

    def __init__(self, api_keys: keys.ApiKeys, jwt: JwtVerifier | None) -> None:
        self._api_keys = api_keys
        self._jwt = jwt
        self._failed = FailedAttempts()

    async def authenticate(
        self, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None = None
    ) -> Caller:
        """Raises ``AuthenticationError``, or ``ServiceUnavailable`` while the credential cannot be checked.

        ``client`` is the peer as ASGI's scope names it; one from which too many keys were wrong gets ``LimitExceeded``.
        """
        token = credential(headers)
        if token.startswith(keys.PREFIX):
            return await self._verify_key(token, client[0] if client is not None else None)
        if self._jwt is not None and token.count(".") == 2:
            return await self._jwt.verify(token)
        raise AuthenticationError("The credential is neither an API key of this gateway nor a token it trusts.")

    async def _verify_key(self, token: str, address: str | None) -> Caller:
        if address is None:
            return await self._api_keys.verify(token)
        retry_after_s = self._failed.retry_after_s(address)
        # A key that is known may go on: behind one address there may be many callers.
        if retry_after_s is not None and not self._api_keys.is_known(token):
            raise LimitExceeded(
                "Too many unknown keys came from this address.",
                limit="failed_attempts",
                scope="address",
                retry_after_s=retry_after_s,
            )
        try:
            return await self._api_keys.verify(token)
        except AuthenticationError:
            if not self._api_keys.is_known(token):  # a key that ran out is no guess
                self._failed.note(address)
            raise


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one credential of a request, as bearer or as ``x-api-key``; two would leave it open which of them counts."""
    bearers: list[bytes] = []
    api_keys: list[bytes] = []
    for name, value in headers:
        if name == b"authorization":
            bearers.append(value)
        elif name == b"x-api-key":
            api_keys.append(value)
    if len(bearers) > 1 or len(api_keys) > 1:
        which = "Authorization" if len(bearers) > 1 else "x-api-key"
        raise AuthenticationError(f"More than one {which} header.", code=ErrorCode.INVALID_REQUEST)
    tokens = {_bearer(value) for value in bearers} | {_token(value.decode("latin-1")) for value in api_keys}
    if not tokens:
        raise AuthenticationError(_MISSING)
    if len(tokens) > 1:
        raise AuthenticationError("Authorization and x-api-key differ; send one.", code=ErrorCode.INVALID_REQUEST)
    return tokens.pop()


def _bearer(value: bytes) -> str:
    scheme, _, token = value.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise AuthenticationError(_MISSING)
    return _token(token)


def _token(text: str) -> str:
    token = text.strip()
    if not token or not token.isascii():
        raise AuthenticationError(_MISSING)
    return token
