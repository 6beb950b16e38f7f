"""AWS's proof of who calls: a signature of each call, made by botocore from keys that it finds and renews.

Finding and renewing keys may read files and ask other hosts, and botocore does so without yielding; both happen in a
thread. botocore is an extra: this module is imported only where a provider needs it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Keys
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError

from gateway.providers.credentials import CredentialError, Headers, OutgoingRequest

# How long keys are used before botocore is asked again. It renews them a quarter of an hour before they expire.
_LOOK_AGAIN_S = 60.0
# How long a search that found nothing stands for those that would follow: it may have waited for a machine's answer.
_TRY_AGAIN_S = 5.0
# A body beyond this takes longer to hash than other streams should wait.
_SIGNED_IN_LOOP_MAX = 512 * 1024

# What holds keys and renews them; ``None`` where there are none.
KeySource = Callable[[], Any]


def keys_of_session(profile: str | None) -> KeySource:
    """Where AWS's own tools look: environment, profile (with the roles it names), container, machine."""
    source: KeySource = botocore.session.Session(profile=profile).get_credentials
    return source


def fixed_keys(access_key_id: str, secret_access_key: str, session_token: str | None) -> KeySource:
    """Keys that somebody else renews, or nobody."""
    keys = Keys(access_key_id, secret_access_key, session_token)
    return lambda: keys


class SigV4Credentials:
    """Signs each call for a service in a region. Keys are not looked for before the first call."""

    def __init__(
        self, source: KeySource, *, service: str, region: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._service = service
        self._region = region
        self._clock = clock
        self._keys: ReadOnlyCredentials | None = None
        self._look_at = float("-inf")
        self._why = ""
        self._lock = asyncio.Lock()

    async def headers(self, request: OutgoingRequest) -> Headers:
        """The signature and what it is made of. Raises ``CredentialError``."""
        keys = await self._current()
        if len(request.body) > _SIGNED_IN_LOOP_MAX:
            return await asyncio.to_thread(self._sign, request, keys)
        return self._sign(request, keys)

    async def aclose(self) -> None:
        """It holds nothing open."""

    def _sign(self, request: OutgoingRequest, keys: ReadOnlyCredentials) -> Headers:
        signed = AWSRequest(method=request.method, url=request.url, data=request.body)
        SigV4Auth(keys, self._service, self._region).add_auth(signed)
        return dict(signed.headers.items())

    async def _current(self) -> ReadOnlyCredentials:
        """Whoever finds the keys old looks again, and only those wait who have none."""
        if self._keys is not None and (self._clock() < self._look_at or self._lock.locked()):
            return self._keys
        async with self._lock:
            if self._clock() >= self._look_at:
                await self._renew()
        if self._keys is None:
            raise CredentialError(self._why)
        return self._keys

    async def _renew(self) -> None:
        """Keys that cannot be renewed are used on: botocore says so long before they expire."""
        try:
            self._keys = await self._look()
        except CredentialError as error:
            self._why = str(error)
            self._look_at = self._clock() + _TRY_AGAIN_S
        else:
            self._look_at = self._clock() + _LOOK_AGAIN_S

    async def _look(self) -> ReadOnlyCredentials:
        try:
            return await asyncio.to_thread(_frozen, self._source)
        except (BotoCoreError, ClientError, OSError) as error:
            raise CredentialError(f"{type(error).__name__}: {error}") from error


def _frozen(source: KeySource) -> ReadOnlyCredentials:
    holder = source()
    if holder is None:
        raise CredentialError("there are no AWS keys in the configuration, the environment, a profile or the machine")
    return holder.get_frozen_credentials()
