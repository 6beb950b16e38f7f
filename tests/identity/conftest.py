"""An issuer with one key, a key set that reads it, and a verifier that knows every key of the tests."""

from collections.abc import AsyncIterator

import pytest

from gateway.identity.jwks import KeySet
from gateway.identity.jwt import JwtVerifier
from tests.identity.issuer import Clock, JwksServer, rsa_jwk
from tests.identity.tokens import build_verifier


@pytest.fixture
async def server() -> AsyncIterator[JwksServer]:
    server = JwksServer()
    await server.start()
    server.publish(rsa_jwk(kid="a"))
    yield server
    await server.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(server: JwksServer, clock: Clock) -> AsyncIterator[KeySet]:
    keys = KeySet(server.url, ttl_s=300, cooldown_s=30, max_age_s=3600, clock=clock)
    yield keys
    await keys.aclose()


@pytest.fixture
def verifier() -> JwtVerifier:
    return build_verifier()
