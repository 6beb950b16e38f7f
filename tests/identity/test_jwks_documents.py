"""What a key set's document and address may be: one key, the whole set, the URL."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk

from gateway.identity import jwks
from gateway.identity.jwks import KeySet, KeySetInvalid, check_jwks_url, parse_key, parse_key_set
from tests.identity.issuer import CURVES, RSA_PRIVATE, ec_jwk, public_jwk, rsa_jwk


def fitting(entry: dict[str, Any]) -> set[str]:
    key = parse_key(entry)
    names = {*jwks.ALGORITHMS, "HS256", "PS256", "none", "EdDSA"}
    return set() if key is None else {name for name in names if key.fits(name)}


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
