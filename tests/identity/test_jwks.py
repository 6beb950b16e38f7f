"""The key set against a real HTTP server on this machine that counts what is asked of it."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk

from gateway.canonical.errors import ServiceUnavailable
from gateway.identity import jwks
from gateway.identity.jwks import KeySet, KeySetInvalid, SigningKey, check_jwks_url, parse_key, parse_key_set

RSA_PRIVATE = rsa.generate_private_key(65537, 2048)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EC_PRIVATE = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}


class Clock:
    """Time that moves only when told."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class JwksServer:
    """Answers every request with ``answer``, counts them, and can be slow or down."""

    def __init__(self) -> None:
        self.fetches = 0
        self.requests: list[bytes] = []
        self.answer = b""
        self.is_down = False
        self.is_trickling = False
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/jwks"

    async def stop(self) -> None:
        self.go_on.set()
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._tasks)

    def publish(self, *entries: dict[str, Any]) -> None:
        self.reply(json.dumps({"keys": entries}).encode())

    def reply(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.answer = head.encode() + body

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.fetches += 1
            self.asked.set()
            await self.go_on.wait()
            while self.is_trickling:
                writer.write(self.answer or b" ")
                self.answer = b""
                await writer.drain()
                await asyncio.sleep(0.01)
            if not self.is_down:
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass
            self._tasks.discard(task)


def public_jwk(private: Any, algorithm: str, **members: Any) -> dict[str, Any]:
    """The public JWK without ``alg``, plus members; a member that is ``None`` is left out."""
    entry = dict(jwk.construct(private.public_key(), algorithm).to_dict(), alg=None)
    return {name: value for name, value in (entry | members).items() if value is not None}


def rsa_jwk(**members: Any) -> dict[str, Any]:
    return public_jwk(RSA_PRIVATE, "RS256", **members)


def ec_jwk(algorithm: str = "ES256", **members: Any) -> dict[str, Any]:
    return public_jwk(EC_PRIVATE[algorithm], algorithm, **members)


def fitting(entry: dict[str, Any]) -> set[str]:
    key = parse_key(entry)
    names = {*jwks.ALGORITHMS, "HS256", "PS256", "none", "EdDSA"}
    return set() if key is None else {name for name in names if key.fits(name)}


def kids(keys: tuple[SigningKey, ...]) -> set[str | None]:
    return {key.kid for key in keys}


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


class TestOneKey:
    def test_an_rsa_key_fits_the_three_pkcs1_algorithms(self) -> None:
        assert fitting(rsa_jwk(kid="a", use="sig")) == {"RS256", "RS384", "RS512"}

    @pytest.mark.parametrize("algorithm", list(CURVES))
    def test_a_curve_fits_exactly_one_algorithm(self, algorithm: str) -> None:
        assert fitting(ec_jwk(algorithm)) == {algorithm}

    def test_a_keys_own_alg_narrows_what_it_fits(self) -> None:
        assert fitting(rsa_jwk(alg="RS384")) == {"RS384"}
        assert fitting(rsa_jwk(alg="ES256")) == set()
        assert fitting(rsa_jwk(alg="PS256")) == set()
        assert fitting(ec_jwk("ES256", alg="ES384")) == set()

    def test_a_key_verifies_its_own_signature_and_no_other(self) -> None:
        key = parse_key(rsa_jwk())
        assert key is not None
        signature = jwk.construct(RSA_PRIVATE, "RS256").sign(b"message")
        assert key.verify("RS256", b"message", signature)
        assert not key.verify("RS256", b"another", signature)
        assert not key.verify("RS384", b"message", signature)
        assert not key.verify("RS256", b"message", b"")

    @pytest.mark.parametrize(
        "entry",
        [
            {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I"},
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            rsa_jwk(use="enc"),
            rsa_jwk(use=["sig"]),
            rsa_jwk(key_ops=["encrypt"]),
            rsa_jwk(key_ops="verify"),
            rsa_jwk(d="AQAB"),
            rsa_jwk(kid=7),
            rsa_jwk(kid="k" * 257),
            rsa_jwk(kty=["RSA"]),
            rsa_jwk(kty="EC"),
            rsa_jwk(alg=["RS256"]),
            rsa_jwk(n=5),
            rsa_jwk(n=""),
            rsa_jwk(n="A"),
            rsa_jwk(n="A" * 1367),
            rsa_jwk(n=rsa_jwk()["n"] + "=="),
            rsa_jwk(n=None),
            rsa_jwk(e="AA"),
            rsa_jwk(e="_" * 44),
            public_jwk(rsa.generate_private_key(65537, 1024), "RS256"),
            ec_jwk(crv=None),
            ec_jwk(crv=5),
            ec_jwk(crv="secp256k1"),
            ec_jwk(crv="P-384"),
            ec_jwk(y=ec_jwk()["x"]),
            ec_jwk(x="AA", y="AA"),
            {},
        ],
    )
    def test_a_key_that_is_not_for_us_is_left_out(self, entry: dict[str, Any]) -> None:
        assert parse_key(entry) is None
        assert parse_key_set(json.dumps({"keys": [entry, rsa_jwk(kid="good")]}).encode())[0].kid == "good"


class TestDocument:
    def test_an_empty_set_is_the_issuers_word(self) -> None:
        assert parse_key_set(b'{"keys":[]}') == ()

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"[]",
            b"{}",
            b'{"keys":{}}',
            b'{"keys":[1]}',
            b'{"keys":null}',
            b'{"keys":[]} trailing',
            b'\xff{"keys":[]}',
            b'{"keys":[' + b"[" * 100_000,
            b'{"keys":[]}' + b" " * jwks.DOCUMENT_BYTES_MAX,
            json.dumps({"keys": [{"kty": "oct"}] * 101}).encode(),
        ],
        ids=range(12),
    )
    def test_anything_else_is_refused_whole(self, body: bytes) -> None:
        with pytest.raises(KeySetInvalid):
            parse_key_set(body)


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        ["https://issuer.example/jwks", "http://127.0.0.1:8000/jwks", "http://[::1]/jwks", "http://localhost/jwks"],
    )
    def test_https_or_loopback_is_accepted(self, url: str) -> None:
        check_jwks_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            "http://issuer.example/jwks",
            "http://127.0.0.1.issuer.example/jwks",
            "http://localhost.issuer.example/jwks",
            "http://169.254.169.254/latest",
            "http://10.0.0.1/jwks",
            "http://127.0.0.1@issuer.example/jwks",
            "https://user:word@issuer.example/jwks",
            "file:///etc/passwd",
            "ftp://127.0.0.1/jwks",
            "https:///jwks",
            "127.0.0.1/jwks",
            "http://[::1/jwks",
            "",
        ],
    )
    def test_anything_else_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="jwks_url"):
            KeySet(url)


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
