"""How a call proves who makes it, where one fixed header is not enough: a token that expires, a signature of the body.

A provider whose key never changes has it in ``Endpoint.headers`` and needs nothing of this. The others name a
``Credentials`` in ``Endpoint.credentials``; ``HttpProvider`` asks it once per call, and sends what it answers on top.
"""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import msgspec

Headers: TypeAlias = Mapping[str, str]


class CredentialError(Exception):
    """A credential cannot be had now. The message is for the operator's log; clients only learn that it is so."""


class OutgoingRequest(msgspec.Struct, frozen=True, gc=False):
    """What is about to be sent: the URL as it goes on the wire, and every header but those of the connection."""

    method: str
    url: str
    headers: Headers
    body: bytes


class Credentials(Protocol):
    """The headers that make a provider accept a call."""

    async def headers(self, request: OutgoingRequest) -> Headers:
        """What to add to the call, or put in place of what it has. Raises ``CredentialError``."""
        ...

    async def aclose(self) -> None:
        """Give up what it holds."""
        ...


class StaticCredentials:
    """Headers that never change."""

    def __init__(self, headers: Headers) -> None:
        self._headers = dict(headers)

    async def headers(self, request: OutgoingRequest) -> Headers:
        """The same for every call."""
        return self._headers

    async def aclose(self) -> None:
        """It holds nothing."""
