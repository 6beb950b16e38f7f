"""Google's proof of who calls: an access token of a service account, or of whatever identity the machine has.

google-auth finds the identity and asks for tokens, both without yielding; that happens in a thread, one at a time, and
well before the old token expires. It is an extra: this module is imported only where a provider needs it.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC
from functools import partial
from typing import Any, TypeAlias

import google.auth
import requests
from google.auth.credentials import Credentials as Identity
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request as TokenRequest
from google.oauth2 import service_account

from gateway.providers.credentials import CredentialError, Headers, OutgoingRequest
from gateway.tasks import TaskOwner

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

# From here on calls go out with the old token while a new one is fetched; an attempt that fails has company.
_RENEW_BEFORE_S = 300.0
_RENEW_PAUSE_S = 10.0
# A token with less left than this may expire on its way.
_LEAST_S = 10.0
_TIMEOUT_S = 10.0
_WHY_MAX = 300

IdentitySource: TypeAlias = Callable[[], Identity]


def service_account_of(path: str) -> IdentitySource:
    """The service account whose key stands in a JSON file."""
    return partial(service_account.Credentials.from_service_account_file, path, scopes=SCOPES)


def machine_identity() -> Identity:
    """Application default credentials: what ``GOOGLE_APPLICATION_CREDENTIALS``, gcloud or the machine says."""
    identity, _ = google.auth.default(scopes=SCOPES)
    return identity


class GoogleCredentials:
    """A bearer token for Google Cloud. Nothing is looked for before the first call, which waits for it."""

    def __init__(self, source: IdentitySource, *, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is in Unix seconds, as a token's expiry is."""
        self._source = source
        self._clock = clock
        self._identity: Identity | None = None
        self._headers: Headers = {}
        self._expires_at = float("-inf")
        self._tried_at = float("-inf")
        self._renewal: asyncio.Task[CredentialError | None] | None = None
        self._tasks = TaskOwner()

    async def headers(self, request: OutgoingRequest) -> Headers:
        """The same for every call until it is renewed. Raises ``CredentialError``."""
        now = self._clock()
        left_s = self._expires_at - now
        if left_s < _LEAST_S:
            # Shielded: a client that leaves must not spoil it for the others who wait.
            failure = await asyncio.shield(self._renew())
            if failure is not None:
                raise CredentialError(str(failure))
        elif left_s < _RENEW_BEFORE_S and now - self._tried_at > _RENEW_PAUSE_S:
            self._renew()
        return self._headers

    async def aclose(self) -> None:
        """Do not wait for a renewal that is under way."""
        await self._tasks.aclose()

    def _renew(self) -> "asyncio.Task[CredentialError | None]":
        """The renewal that is under way, or a new one."""
        if self._renewal is None or self._renewal.done():
            self._tried_at = self._clock()
            self._renewal = self._tasks.start(self._fetch(), "google-token")
        return self._renewal

    async def _fetch(self) -> CredentialError | None:
        """Failures are returned: whoever waits is told, and a token that is still good outlives them."""
        try:
            token, self._expires_at = await asyncio.to_thread(self._ask)
        except (GoogleAuthError, OSError, ValueError) as error:
            return CredentialError(f"Google gave no token: {type(error).__name__}: {_why(error)}")
        self._headers = {"authorization": f"Bearer {token}"}
        return None

    def _ask(self) -> tuple[str, float]:
        if self._identity is None:
            self._identity = self._source()
        with requests.Session() as session:
            session.trust_env = False
            self._identity.refresh(partial(TokenRequest(session), timeout=_TIMEOUT_S))  # type: ignore[no-untyped-call]
        token, expiry = self._identity.token, self._identity.expiry
        if not token:
            raise ValueError("the answer has none")
        return token, float("inf") if expiry is None else expiry.replace(tzinfo=UTC).timestamp()


def _why(error: Exception) -> Any:
    """What Google says, without the answer that it hangs onto it."""
    return str(error.args[0] if error.args else "")[:_WHY_MAX]
