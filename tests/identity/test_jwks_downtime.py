"""A key set whose issuer is down, slow, or answers with something that is no key set."""

import asyncio
import gzip
import json
from collections.abc import Callable

import pytest

from gateway.canonical.errors import ServiceUnavailable
from gateway.identity import jwks
from gateway.identity.jwks import KeySet
from tests.identity.issuer import Clock, JwksServer, ec_jwk, kids, rsa_jwk


def _redirect(server: JwksServer) -> None:
    server.reply(b"", "302 Found", f"Location: http://127.0.0.1:{server.port}/elsewhere\r\n")


def _oversize(server: JwksServer) -> None:
    server.reply(json.dumps({"keys": [], "x": "x" * jwks.DOCUMENT_BYTES_MAX}).encode())


def _endless(server: JwksServer) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    server.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 100


def _compressed(server: JwksServer) -> None:
    server.reply(gzip.compress(json.dumps({"keys": [rsa_jwk(kid="b")]}).encode()), headers="Content-Encoding: gzip\r\n")


def _too_many(server: JwksServer) -> None:
    server.publish(*({"kty": "oct", "kid": str(n)} for n in range(101)))


def _error_status(server: JwksServer) -> None:
    server.reply(json.dumps({"keys": [rsa_jwk(kid="b")]}).encode(), "500 Internal Server Error")


def _hang_up(server: JwksServer) -> None:
    server.is_down = True


def _cut_short(server: JwksServer) -> None:
    server.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"keys":['


FAILURES = [_redirect, _oversize, _endless, _compressed, _too_many, _error_status, _hang_up, _cut_short]


class TestDowntime:
    @pytest.mark.parametrize("fail", FAILURES)
    async def test_without_any_keys_there_is_no_service(
        self, server: JwksServer, keys: KeySet, clock: Clock, fail: Callable[[JwksServer], None]
    ) -> None:
        good = server.answer
        fail(server)
        for _ in range(3):
            with pytest.raises(ServiceUnavailable) as caught:
                await keys.find("a")
            assert "127.0.0.1" not in caught.value.message
        assert server.fetches == 1  # a redirect is not followed, and the failure is not repeated at once
        server.is_down, server.answer = False, good
        clock.now += jwks.EMPTY_RETRY_S
        assert kids(await keys.find("a")) == {"a"}

    @pytest.mark.parametrize("fail", FAILURES)
    async def test_the_last_good_keys_serve_until_their_maximum_age(
        self, server: JwksServer, keys: KeySet, clock: Clock, fail: Callable[[JwksServer], None]
    ) -> None:
        await keys.find("a")
        fail(server)
        clock.now += 300
        for _ in range(50):
            assert kids(await keys.find("a")) == {"a"}
        assert server.fetches == 2
        clock.now += 3299
        assert kids(await keys.find("a")) == {"a"}
        clock.now += 1
        with pytest.raises(ServiceUnavailable):
            await keys.find("a")

    async def test_a_stopped_server_is_downtime_too(self, server: JwksServer, keys: KeySet, clock: Clock) -> None:
        await keys.find("a")
        await server.stop()
        clock.now += 300
        assert kids(await keys.find("a")) == {"a"}

    async def test_an_unknown_kid_is_looked_for_again_once_the_issuer_is_back(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("a")
        server.publish(ec_jwk(kid="b"))
        server.is_down = True
        clock.now += 30
        assert await keys.find("b") == ()
        server.is_down = False
        clock.now += 30
        assert kids(await keys.find("b")) == {"b"}

    async def test_an_answer_that_trickles_is_given_up(self, server: JwksServer, keys: KeySet) -> None:
        server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"
        server.is_trickling = True
        keys.timeout_s = 0.1
        with pytest.raises(ServiceUnavailable):
            await keys.find("a")
        server.is_trickling = False

    async def test_known_keys_do_not_wait_for_an_issuer_that_is_down(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("a")
        server.is_down = True
        clock.now += 300
        await keys.find("a")
        server.go_on.clear()
        server.asked.clear()
        clock.now += 30
        assert kids(await keys.find("a")) == {"a"}
        assert not server.asked.is_set()  # it answered before the new fetch had even begun
        await server.asked.wait()
        assert server.fetches == 3

    async def test_the_loop_goes_on_while_the_issuer_is_slow(self, server: JwksServer, keys: KeySet) -> None:
        server.go_on.clear()
        waiting = asyncio.ensure_future(keys.find("a"))  # noqa: TID251
        await server.asked.wait()
        assert not waiting.done()
        server.go_on.set()
        assert kids(await waiting) == {"a"}
