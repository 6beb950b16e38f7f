"""The attack corpus: forged algorithms, headers that mislead, and tokens out of form."""

import base64
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from jose import jwk

from gateway.identity.jwks import ALGORITHMS
from gateway.identity.jwt import JwtVerifier
from tests.identity.issuer import RSA_PRIVATE, Clock, rsa_jwk
from tests.identity.tokens import (
    ENTRIES,
    KIDS,
    OTHER_RSA_PRIVATE,
    SECRET,
    FixedKeys,
    assemble,
    b64,
    build_claims,
    build_secret_verifier,
    build_settings,
    build_token,
    build_verifier,
    refuse,
    sign,
)


class TestAlgorithm:
    @pytest.mark.parametrize(
        "name", ["none", "None", "NONE", "nOnE", "none ", "", "rs256", "RS256 ", "RSA-OAEP", "dir"]
    )
    @pytest.mark.parametrize("make", [build_verifier, build_secret_verifier])
    async def test_none_and_unknown_names_in_any_spelling(self, name: str, make: Any) -> None:
        header, claims = b64({"alg": name, "kid": "rsa"}), b64(build_claims())
        for signature in ("", "AA", b64(sign(f"{header}.{claims}"))):
            await refuse(make(), f"{header}.{claims}.{signature}")

    @pytest.mark.parametrize("value", [None, 5, True, ["RS256"], {"RS256": 1}])
    async def test_a_name_that_is_no_text(self, verifier: JwtVerifier, value: Any) -> None:
        await refuse(verifier, assemble({"alg": value, "kid": "rsa"}, build_claims()))
        await refuse(verifier, assemble({"kid": "rsa"}, build_claims()))

    @pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
    async def test_hmac_with_the_public_key_as_secret(self, verifier: JwtVerifier, algorithm: str) -> None:
        public = RSA_PRIVATE.public_key()
        spki, pkcs1 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1
        pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
        forms = [public.public_bytes(encoding, form) for encoding in (pem, der) for form in (spki, pkcs1)]
        forms += [json.dumps(entry).encode() for entry in ENTRIES] + [b"", ENTRIES[0]["n"].encode()]
        forms += [form.strip() for form in forms]
        message = f"{b64({'alg': algorithm, 'kid': 'rsa'})}.{b64(build_claims())}"
        for secret in forms:
            mac = hmac.new(secret, message.encode(), f"sha{algorithm[2:]}").digest()
            await refuse(verifier, f"{message}.{b64(mac)}")

    async def test_a_symmetric_key_in_the_issuers_set(self) -> None:
        verifier = build_verifier({"kty": "oct", "kid": "oct", "k": b64(SECRET), "alg": "HS256"}, *ENTRIES)
        message = f"{b64({'alg': 'HS256', 'kid': 'oct'})}.{b64(build_claims())}"
        await refuse(verifier, f"{message}.{b64(hmac.digest(SECRET.encode(), message.encode(), 'sha256'))}")

    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, "HS384", "HS512"])
    async def test_another_algorithm_than_hs256_with_a_secret(self, algorithm: str) -> None:
        verifier = build_secret_verifier(algorithms=("RS256", "ES256", "HS256"))
        private = SECRET if algorithm.startswith("HS") else None
        await refuse(verifier, assemble({"alg": algorithm}, build_claims(), algorithm, private))

    async def test_an_algorithm_off_the_list(self) -> None:
        verifier = build_verifier(algorithms=("ES256",))
        await refuse(verifier, build_token("RS256"))
        assert (await verifier.verify(build_token("ES256"))).account == "acme"

    @pytest.mark.parametrize("said", list(ALGORITHMS))
    @pytest.mark.parametrize("signed", list(ALGORITHMS))
    async def test_a_header_that_does_not_fit_the_key(self, verifier: JwtVerifier, said: str, signed: str) -> None:
        for kid in {"rsa", "ec", "ec3", "ec5"} - ({KIDS[signed]} if said == signed else set()):
            await refuse(verifier, assemble({"alg": said, "kid": kid}, build_claims(), signed))

    async def test_an_algorithm_other_than_the_keys_own(self) -> None:
        verifier = build_verifier(rsa_jwk(kid="rsa", alg="RS512"))
        await refuse(verifier, build_token("RS256"))
        assert (await verifier.verify(build_token("RS512"))).account == "acme"

    async def test_a_key_for_encryption(self) -> None:
        await refuse(build_verifier(rsa_jwk(kid="rsa", use="enc")), build_token("RS256"))

    async def test_pss_is_not_taken_for_pkcs1(self, verifier: JwtVerifier) -> None:
        message = f"{b64({'alg': 'RS256', 'kid': 'rsa'})}.{b64(build_claims())}"
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
        await refuse(verifier, f"{message}.{b64(RSA_PRIVATE.sign(message.encode(), pss, hashes.SHA256()))}")


class TestHeader:
    @pytest.mark.parametrize(
        "kid",
        [
            "../../../../dev/null",
            "/dev/null",
            "rsa' OR '1'='1",
            "rsa\x00",
            "rsa ",
            "RSA",
            "",
            "https://attacker.example/jwks",
            "k" * 256,
        ],
    )
    async def test_a_kid_is_only_compared(self, verifier: JwtVerifier, kid: str) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": kid}, build_claims()))

    @pytest.mark.parametrize("kid", [0, 1, True, ["rsa"], {"a": 1}, "k" * 257])
    async def test_a_kid_that_is_no_short_text_asks_for_no_key(self, kid: Any) -> None:
        keys: Any = FixedKeys(*ENTRIES)
        await refuse(JwtVerifier(build_settings(), keys), assemble({"alg": "RS256", "kid": kid}, build_claims()))
        assert keys.asked == []

    async def test_keys_that_the_token_brings_are_not_used(self, verifier: JwtVerifier) -> None:
        own = dict(jwk.construct(OTHER_RSA_PRIVATE.public_key(), "RS256").to_dict(), kid="rsa")
        brought = {"jwk": own, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["AA"]}
        for name, value in brought.items():
            for kid in ("rsa", "own"):
                header = {"alg": "RS256", "kid": kid, name: value}
                await refuse(verifier, assemble(header, build_claims(), "RS256", OTHER_RSA_PRIVATE))
        header = {"alg": "RS256", "kid": "rsa"} | brought
        assert (await verifier.verify(assemble(header, build_claims()))).account == "acme"

    @pytest.mark.parametrize("crit", [["exp"], [], None, "exp", ["b64"]])
    async def test_a_critical_extension_is_refused(self, verifier: JwtVerifier, crit: Any) -> None:
        await refuse(verifier, assemble({"alg": "RS256", "kid": "rsa", "crit": crit, "b64": False}, build_claims()))

    @pytest.mark.parametrize(
        "header",
        [
            '{"alg":"none","alg":"RS256","kid":"rsa"}',
            '{"alg":"RS256","alg":"RS256","kid":"rsa"}',
            '{"alg":"RS256","kid":"rsa","kid":"ec"}',
            '{"alg":"RS256","kid":"rsa"} {}',
            '{"alg":"RS256","kid":"rsa"}\x00',
            '{"alg":"RS256","kid":"rsa",}',
            '{"alg":"RS256","kid":"rsa","x":NaN}',
            '{"alg":"RS256","kid":"rsa","x":Infinity}',
            '\ufeff{"alg":"RS256","kid":"rsa"}',
            '["RS256"]',
            '"RS256"',
            "null",
            "{",
            "[" * 5000,
            '{"a":' * 1000,
            '{"alg":"RS256","kid":"rsa","x":' + "9" * 5000 + "}",
        ],
        ids=range(16),
    )
    async def test_json_that_two_parsers_could_read_differently(self, verifier: JwtVerifier, header: str) -> None:
        await refuse(verifier, assemble(header, build_claims()))

    async def test_headers_in_another_encoding(self, verifier: JwtVerifier) -> None:
        text = '{"alg":"RS256","kid":"rsa"}'
        for encoded in (text.encode("utf-16"), text.encode("utf-32"), b'{"alg":"RS256","kid":"rsa","x":"\xff"}'):
            message = f"{b64(encoded)}.{b64(build_claims())}"
            await refuse(verifier, f"{message}.{b64(sign(message))}")


class TestForm:
    async def test_parts_too_few_or_too_many(self, verifier: JwtVerifier) -> None:
        token = build_token()
        header, claims, signature = token.split(".")
        jwe = ".".join([b64({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF", "kid": "rsa"}), "AA", "AA", "AA", "AA"])
        for bad in ["", ".", "..", "...", header, f"{header}.{claims}", f"{token}.", f".{token}", jwe]:
            await refuse(verifier, bad)
        for bad in [f"{token}.{signature}", f"{token}.a.b", f".{claims}.{signature}", f"{header}..{signature}"]:
            await refuse(verifier, bad)

    async def test_a_missing_or_spoilt_signature(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token().rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        spoilt = [
            b"\x00" * 256,
            b"\x01",
            raw[:-1],
            raw + b"\x00",
            b"\x00" + raw,
            bytes([raw[0] ^ 1]) + raw[1:],
            raw * 2,
        ]
        for bad in ["", *map(b64, spoilt)]:
            await refuse(verifier, f"{message}.{bad}")

    async def test_elliptic_signatures_of_zero_or_in_der(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token("ES256").rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        der = b"0\x44\x02\x20" + raw[:32] + b"\x02\x20" + raw[32:]
        for bad in (bytes(64), b"\xff" * 64, bytes(31) + b"\x01" + bytes(31) + b"\x01", der, bytes(32) + raw[32:]):
            await refuse(verifier, f"{message}.{b64(bad)}")

    async def test_other_spellings_of_the_same_bytes(self, verifier: JwtVerifier) -> None:
        token = build_token()
        header, claims, signature = token.split(".")
        last = signature[-1]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        nearby = alphabet[alphabet.index(last) ^ 1]  # 256 bytes leave spare bits in the last character
        for bad in [
            f"{token}==",
            f"{token}=",
            f"{header}=.{claims}.{signature}",
            f"{token}\n",
            f" {token}",
            f"{token} ",
            f"{header}.{claims}.{signature[:-1]}{nearby}",
            f"{header}.{claims}.{signature[:9]}\n{signature[9:]}",
            f"{header}.{claims}.{signature[:9]}!{signature[9:]}",
            f"{header}.{claims}.{signature}A",
            f"{token}~trailing",
        ]:
            await refuse(verifier, bad)
        assert (await verifier.verify(token)).account == "acme"

    async def test_standard_base64_is_refused(self, verifier: JwtVerifier) -> None:
        message, _, signature = build_token().rpartition(".")
        while "-" not in signature and "_" not in signature:
            message, _, signature = build_token(jti=signature[:8]).rpartition(".")
        await refuse(verifier, f"{message}.{signature.replace('-', '+').replace('_', '/')}")

    @pytest.mark.parametrize("character", ["é", "\u212a", "\uff21", "\ud800", "\x00", "😀"])
    async def test_characters_that_do_not_belong(self, verifier: JwtVerifier, character: str) -> None:
        token = build_token()
        for at in (0, len(token) // 2, len(token)):
            await refuse(verifier, token[:at] + character + token[at:])

    async def test_a_huge_token_is_refused_unread(self) -> None:
        keys: Any = FixedKeys(*ENTRIES)
        verifier = JwtVerifier(build_settings(), keys, clock=Clock())
        for huge in (build_token(x="x" * 8000), "a" * 10_000_000, "." * 10_000_000):
            await refuse(verifier, huge)
        assert keys.asked == []
        assert len(largest := build_token(x="x" * 5400)) > 7000
        assert (await verifier.verify(largest)).account == "acme"
