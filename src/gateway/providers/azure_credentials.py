"""Microsoft Entra's proof of who calls: a token for the gateway's own application, renewed before it expires.

The client-credentials flow, with a secret or with a token that the platform leaves in a file (workload identity).
It is one form to one URL; ``azure-identity`` would bring a second HTTP client and a second JWT library for it.
Flow: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from gateway.providers.credentials import CredentialError, Headers, OutgoingRequest
from gateway.tasks import TaskOwner

AUTHORITY = "https://login.microsoftonline.com"
_SCOPE = "https://cognitiveservices.azure.com/.default"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# From here on calls go out with the old token while a new one is fetched; an attempt that fails has company.
_RENEW_BEFORE_S = 300.0
_RENEW_PAUSE_S = 10.0
# How long a refusal stands for those that waited for the same answer.
_TRY_AGAIN_S = 2.0
# A token with less left than this may expire on its way.
_LEAST_S = 5.0
_TIMEOUT_S = 10.0


class Entra(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's application at Entra, with its secret or the file that its platform keeps a token in."""

    tenant_id: str
    client_id: str
    client_secret: str | None = None
    token_file: str | None = None
    authority: str = AUTHORITY


class _Granted(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int


class _Refused(msgspec.Struct, frozen=True):
    error: str = ""


_GRANTED = msgspec.json.Decoder(_Granted, strict=False)
_REFUSED = msgspec.json.Decoder(_Refused)


class EntraCredentials:
    """A bearer token for Azure's AI services. The first call waits for it, later ones find it there."""

    def __init__(
        self,
        entra: Entra,
        *,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._entra = entra
        self._clock = clock
        self._transport = transport
        self._headers: Headers = {}
        self._expires_at = float("-inf")
        self._tried_at = float("-inf")
        self._ask_at = float("-inf")
        self._why = ""
        self._lock = asyncio.Lock()
        self._tasks = TaskOwner()

    async def headers(self, request: OutgoingRequest) -> Headers:
        """The same for every call until it is renewed. Raises ``CredentialError``."""
        left_s = self._expires_at - self._clock()
        if left_s < _LEAST_S:
            await self._renew()
        elif left_s < _RENEW_BEFORE_S and not self._lock.locked() and self._clock() - self._tried_at > _RENEW_PAUSE_S:
            self._tried_at = self._clock()
            self._tasks.start(self._renew_in_time(), "entra-token")
        return self._headers

    async def aclose(self) -> None:
        """End a renewal that is under way."""
        await self._tasks.aclose()

    async def _renew_in_time(self) -> None:
        try:
            await self._renew(_RENEW_BEFORE_S)
        except CredentialError:
            return  # the old one is good for a while; who finds it expired is told

    async def _renew(self, least_s: float = _LEAST_S) -> None:
        async with self._lock:
            if self._expires_at - self._clock() >= least_s:
                return
            asked_at = self._clock()
            if asked_at < self._ask_at:
                raise CredentialError(self._why)
            try:
                granted = await self._ask()
            except CredentialError as error:
                self._why = str(error)
                self._ask_at = self._clock() + _TRY_AGAIN_S
                raise
            self._headers = {"authorization": f"Bearer {granted.access_token}"}
            self._expires_at = asked_at + granted.expires_in

    async def _ask(self) -> _Granted:
        url = f"{self._entra.authority.rstrip('/')}/{self._entra.tenant_id}/oauth2/v2.0/token"
        form = await self._form()
        try:
            async with httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=_TIMEOUT_S, transport=self._transport
            ) as client:
                answer = await client.post(url, data=form)
        except httpx.HTTPError as error:
            raise CredentialError(f"Entra could not be asked: {type(error).__name__}") from error
        try:
            if answer.status_code == 200:
                return _GRANTED.decode(answer.content)
            why = _REFUSED.decode(answer.content).error
        except (ValueError, RecursionError):
            why = "an answer that is none"
        raise CredentialError(f"Entra gave no token: status {answer.status_code}, {why}")

    async def _form(self) -> dict[str, str]:
        entra = self._entra
        form = {"grant_type": "client_credentials", "client_id": entra.client_id, "scope": _SCOPE}
        if entra.token_file is None:
            return {**form, "client_secret": entra.client_secret or ""}
        try:  # the platform writes a new one every hour
            assertion = await asyncio.to_thread(Path(entra.token_file).read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialError(f"the token file could not be read: {type(error).__name__}") from error
        return {**form, "client_assertion_type": _ASSERTION_TYPE, "client_assertion": assertion.strip()}
