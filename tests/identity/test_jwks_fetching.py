"""When a key set asks a real HTTP server on this machine, which counts: first use, rotation, and closing."""

import asyncio

import pytest

from gateway.canonical.errors import ServiceUnavailable
from gateway.identity import jwks
from gateway.identity.jwks import KeySet
from tests.identity.issuer import Clock, JwksServer, ec_jwk, kids, rsa_jwk


class TestFetching:
    async def test_nothing_is_fetched_before_a_key_is_wanted(self, server: JwksServer, keys: KeySet) -> None:
        assert server.fetches == 0

    async def test_many_callers_share_one_fetch(self, server: JwksServer, keys: KeySet) -> None:
        found = await asyncio.gather(*(keys.find("a") for _ in range(200)))
        assert server.fetches == 1
        assert all(kids(each) == {"a"} for each in found)

    async def test_even_without_a_cooldown_only_one_fetch_is_under_way(self, server: JwksServer) -> None:
        keys = KeySet(server.url, cooldown_s=0)
        await asyncio.gather(*(keys.find(f"random-{n}") for n in range(50)))
        assert server.fetches == 1
        await keys.aclose()

    async def test_a_document_serves_until_its_ttl(self, server: JwksServer, keys: KeySet, clock: Clock) -> None:
        await keys.find("a")
        clock.now += 299
        await keys.find("a")
        assert server.fetches == 1
        clock.now += 1
        await keys.find("a")
        assert server.fetches == 2

    async def test_no_kid_selects_every_key(self, server: JwksServer, keys: KeySet) -> None:
        server.publish(rsa_jwk(kid="a"), ec_jwk(kid="b"), ec_jwk("ES384"))
        assert kids(await keys.find(None)) == {"a", "b", None}

    async def test_two_keys_may_share_a_kid(self, server: JwksServer, keys: KeySet) -> None:
        server.publish(rsa_jwk(kid="a"), ec_jwk(kid="a"))
        assert len(await keys.find("a")) == 2

    async def test_a_client_that_leaves_does_not_spoil_the_fetch(self, server: JwksServer, keys: KeySet) -> None:
        server.go_on.clear()
        first, second = asyncio.ensure_future(keys.find("a")), asyncio.ensure_future(keys.find("a"))  # noqa: TID251
        await server.asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        server.go_on.set()
        assert kids(await second) == {"a"}
        assert server.fetches == 1

    async def test_the_environment_and_compression_stay_out_of_it(
        self, server: JwksServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        keys = KeySet(server.url)
        assert kids(await keys.find("a")) == {"a"}
        await keys.aclose()
        assert b"accept-encoding: identity\r\n" in server.requests[0].lower()


class TestRotation:
    async def test_an_unknown_kid_brings_the_new_keys(self, server: JwksServer, keys: KeySet, clock: Clock) -> None:
        await keys.find("a")
        server.publish(rsa_jwk(kid="b"))
        clock.now += 30
        assert kids(await keys.find("b")) == {"b"}
        assert await keys.find("a") == ()  # withdrawn by the issuer
        assert server.fetches == 2

    async def test_an_emptied_set_withdraws_every_key(self, server: JwksServer, keys: KeySet, clock: Clock) -> None:
        await keys.find("a")
        server.publish()
        clock.now += 300
        assert await keys.find("a") == ()

    async def test_a_flood_of_random_kids_fetches_once_per_cooldown(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("a")
        for wave in range(3):
            clock.now += 29
            await asyncio.gather(*(keys.find(f"early-{wave}-{n}") for n in range(500)))
            assert server.fetches == 1 + wave
            clock.now += 1
            await asyncio.gather(*(keys.find(f"random-{wave}-{n}") for n in range(2000)))
            assert server.fetches == 2 + wave
        assert len(keys._missing) <= jwks.MISSING_KIDS_MAX

    async def test_a_kid_that_is_known_to_be_missing_is_not_looked_for_again(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("stale")
        for _ in range(5):
            clock.now += 31
            assert await keys.find("stale") == ()
        assert server.fetches == 1

    async def test_a_missing_kid_is_found_with_the_next_document(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        assert await keys.find("b") == ()
        server.publish(rsa_jwk(kid="a"), ec_jwk(kid="b"))
        clock.now += 300
        assert kids(await keys.find("b")) == {"b"}

    async def test_a_missing_kid_is_looked_for_again_after_the_next_document(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("b")
        clock.now += 300
        await keys.find("a")
        server.publish(ec_jwk(kid="b"))
        clock.now += 30
        assert kids(await keys.find("b")) == {"b"}

    async def test_a_kid_seen_within_the_cooldown_is_looked_for_after_it(
        self, server: JwksServer, keys: KeySet, clock: Clock
    ) -> None:
        await keys.find("a")
        server.publish(ec_jwk(kid="b"))
        clock.now += 10
        assert await keys.find("b") == ()
        clock.now += 20
        assert kids(await keys.find("b")) == {"b"}


class TestClosing:
    async def test_closing_ends_a_running_fetch_and_its_waiters(
        self, server: JwksServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(KeySet, "timeout_s", 1000.0)
        keys = KeySet(server.url)
        server.go_on.clear()
        waiting = asyncio.ensure_future(keys.find("a"))  # noqa: TID251
        await server.asked.wait()
        await keys.aclose()
        with pytest.raises(ServiceUnavailable):
            await waiting
        await keys.aclose()

    async def test_a_closed_set_fetches_no_more(self, server: JwksServer, keys: KeySet, clock: Clock) -> None:
        await keys.find("a")
        await keys.aclose()
        clock.now += 300
        assert kids(await keys.find("a")) == {"a"}
        assert server.fetches == 1
