"""Tokens verified the whole way, with the keys of a real key server on this machine."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.canonical.errors import GatewayError, ServiceUnavailable
from gateway.identity.jwks import KeySet
from gateway.identity.jwt import JwtVerifier
from tests.identity.issuer import Clock, JwksServer, ec_jwk
from tests.identity.tokens import (
    ENTRIES,
    OTHER_RSA_PRIVATE,
    assemble,
    b64,
    build_claims,
    build_settings,
    build_token,
    refuse,
)


@pytest.fixture
async def server() -> AsyncIterator[JwksServer]:
    server = JwksServer()
    await server.start()
    server.publish(*ENTRIES)
    yield server
    await server.stop()


class TestOverTheWire:
    @pytest.fixture
    async def online(self, server: JwksServer, clock: Clock) -> AsyncIterator[JwtVerifier]:
        settings = build_settings(jwks_url=server.url)
        verifier = JwtVerifier(settings, KeySet(server.url, clock=clock), clock=clock)
        yield verifier
        await verifier.aclose()

    async def test_many_tokens_at_once_need_one_fetch(self, server: JwksServer, online: JwtVerifier) -> None:
        callers = await asyncio.gather(*(online.verify(build_token(sub=f"user-{n}")) for n in range(50)))
        assert len({caller.subject for caller in callers}) == 50
        assert server.fetches == 1

    async def test_a_rotated_key_is_found_and_the_old_one_ends(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        old = build_token("RS256")
        await online.verify(old)
        server.publish(ec_jwk(kid="new"))
        clock.now += 60
        token = assemble({"alg": "ES256", "kid": "new"}, build_claims(), "ES256")
        assert (await online.verify(token)).account == "acme"
        await refuse(online, old)

    async def test_forged_kids_do_not_reach_the_issuer(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        await online.verify(build_token())
        message, signature = b64(build_claims()), b64(bytes(256))
        for n in range(300):
            await refuse(online, f"{b64({'alg': 'RS256', 'kid': f'random-{n}'})}.{message}.{signature}")
        assert server.fetches == 1

    async def test_a_refused_algorithm_asks_for_no_key(self, server: JwksServer, online: JwtVerifier) -> None:
        await refuse(online, f"{b64({'alg': 'none', 'kid': 'x'})}.{b64(build_claims())}.AA")
        assert server.fetches == 0

    async def test_a_tokens_jku_is_not_fetched(self, server: JwksServer, online: JwtVerifier) -> None:
        header = {"alg": "RS256", "kid": "evil", "jku": f"http://127.0.0.1:{server.port}/evil", "x5u": server.url}
        await refuse(online, assemble(header, build_claims(), "RS256", OTHER_RSA_PRIVATE))
        assert not any(b"evil" in request for request in server.requests)

    async def test_without_keys_a_token_is_not_called_wrong(self, server: JwksServer, online: JwtVerifier) -> None:
        server.is_down = True
        with pytest.raises(ServiceUnavailable) as caught:
            await online.verify(build_token())
        assert isinstance(caught.value, GatewayError) and caught.value.retry_after_s
        assert caught.value.code.http_status == 503

    async def test_downtime_goes_unnoticed_with_keys_at_hand(
        self, server: JwksServer, online: JwtVerifier, clock: Clock
    ) -> None:
        await online.verify(build_token())
        server.is_down = True
        clock.now += 500
        assert (await online.verify(build_token(sub="user-2"))).subject == "user-2"
