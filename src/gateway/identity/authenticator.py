"""From request headers to a ``Caller``: which credential it is, and who checks it."""

from collections.abc import Iterable

from gateway.canonical.caller import Caller
from gateway.canonical.errors import AuthenticationError, ErrorCode
from gateway.identity import keys
from gateway.identity.jwt import JwtVerifier

_MISSING = "No credential: send Authorization: Bearer <API key or token>."


class Authenticator:
    """Checks API keys, and JWTs where the configuration trusts an issuer."""

    def __init__(self, api_keys: keys.ApiKeys, jwt: JwtVerifier | None) -> None:
        self._api_keys = api_keys
        self._jwt = jwt

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Raises ``AuthenticationError``, or ``ServiceUnavailable`` while the credential cannot be checked."""
        token = credential(headers)
        if token.startswith(keys.PREFIX):
            return await self._api_keys.verify(token)
        if self._jwt is not None and token.count(".") == 2:
            return await self._jwt.verify(token)
        raise AuthenticationError("The credential is neither an API key of this gateway nor a token it trusts.")


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one bearer credential of a request; two would leave it open which of them counts."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        raise AuthenticationError(_MISSING)
    if len(values) > 1:
        raise AuthenticationError("More than one Authorization header.", code=ErrorCode.INVALID_API_KEY)
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise AuthenticationError(_MISSING)
    return token
